"""A `Bundle` and Jinja templates become a notebook, and a notebook is read back.

render     the notebook and its metadata
runtime    the code that runs inside the notebook; standard library only
preflight  problems that would cost a run, found before the push
reader     the cells and the manifest of a notebook
edits      edits made in a notebook, written back into the package
"""
