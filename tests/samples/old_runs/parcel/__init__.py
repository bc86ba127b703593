"""A small package that behaves like training code."""
