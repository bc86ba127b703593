"""Objects that travel between processes by the name of their class."""
