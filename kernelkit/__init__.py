"""Run a Python package on Kaggle GPUs as one notebook, and download verified results.

cli        the commands                     workflow   `run`, `rehearse` and each of their steps
console    everything that a person reads   config     the project file: `Config`, `load_config`
errors     exceptions and exit codes        storage    safe paths, locks, atomic writes
bundle     reads a package from disk        notebook   renders a notebook, and reads one
kaggle     calls Kaggle                     runs       pushes, follows, downloads, verifies runs
diagnosis  explains a failed run            doctor     checks machine, account and project
testing    `kernelkit prove`                emulator   a local Kaggle
"""

__version__ = "0.1.0"
