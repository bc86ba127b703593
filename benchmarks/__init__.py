"""Compares rendering with similar tools, and src_salt with the reference: `make bench`.

`packages` and `checks` write the packages to be rendered, `tools` knows how each tool is called and
how its result is run, `measure` takes the time, `report` makes the tables, `__main__` does it all.
`training` compares the recipes of src_salt, each measured by a process of `workload`; `pull` has
both clients download large outputs.
"""
