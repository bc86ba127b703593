"""A package below `src`."""
