"""Prepares a project for kernelkit.

init    writes a first `[tool.kernelkit]`: `plan_init`, `write_init`, `open_points`,
        `InitPlan`
datasets  publishes a folder as a new version of a private dataset: `publish_dataset`,
        `DatasetRequest`, `DatasetVersion`, `default_state_folder`
code    publishes the packages of a kernel as a dataset: `publish_code`
folders  reads a folder that becomes a dataset
archives  reads the files inside an archive
wheels  wheels for runs without internet, and their lock file: `prepare_wheels`, `publish_wheels`,
        `wheels_for_rehearsal`, `PreparedWheels`
resolution  which wheels pip chooses for Kaggle's image, and their download
pip_for_image  the program that runs pip for that
hydra   composes the YAML files of a Hydra program
survey  reads from the source what could start, and which files it reads and writes: `Candidate`

Other packages import these names from the modules. This file imports nothing, so that a command
loads only what it uses.
"""
