"""How long rendering takes beside the tools nearest to it, and whose result runs: `make bench`.

`packages` and `checks` write the packages to be rendered, `tools` knows how each tool is called and
how its result is run, `measure` takes the time, `report` makes the tables, `__main__` does it all.
"""
