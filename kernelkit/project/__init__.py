"""Prepares a project for kernelkit.

init    writes a first `[tool.kernelkit]`: `plan_init`, `write_init`, `open_points`,
        `InitPlan`
survey  reads from the source what could start, and which files it reads and writes: `Candidate`

Other packages import these names from the modules. This file imports nothing, so that a command
loads only what it uses.
"""
