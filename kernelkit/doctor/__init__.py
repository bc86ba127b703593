"""Checks of this machine, the account and the project, and the probe of the real Kaggle.

checks  the checks of `kernelkit doctor`: `examine`, `CheckResult`, `Health`
probe   pushes a tiny kernel to find out how Kaggle behaves: `plan`, `probe`, `Report`
"""
