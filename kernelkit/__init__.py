"""Carry a Python package to a Kaggle GPU as one notebook, and bring its results home verified."""

__version__ = "0.1.0"
