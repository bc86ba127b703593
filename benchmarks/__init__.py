"""Compares rendering with similar tools, and src_salt with the reference: `make bench`.

`packages` writes packages to render, `sixteen` is a package of checks, `tools` calls each tool and
runs its result, `measure` takes the time, `report` writes the tables, `__main__` is the command.
`training` compares the recipes of src_salt, each measured by a process of `workload`; `gpu`
measures them on a GPU, next to the plain loop of `smp`; `pull` measures downloads of large
outputs, `startup` the command line, `quality` the parts of a recipe.
"""
