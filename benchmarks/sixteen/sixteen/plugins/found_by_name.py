"""A module that no import statement names."""

ANSWER = 42
