"""Contains form feeds."""

A = 1



B = 2
