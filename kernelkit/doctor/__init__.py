"""Checks of this machine, the account and the project; the probe of the real Kaggle.

checks  every check that `kernelkit doctor` makes
probe   pushes a tiny kernel to find out how Kaggle behaves
"""
