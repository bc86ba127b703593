"""Measures src_salt on a GPU next to a plain loop, in a few minutes: `make bench-gpu`.

`__main__` is the command: it plans the parts, starts a process of `worker`, and writes what has
been measured so far after every measurement. `programs` runs the recipes and the plain loop,
`profiling` reads where the time of a step goes, `report` writes the tables and compares with the
goals, and `results` holds the measurements.
"""
