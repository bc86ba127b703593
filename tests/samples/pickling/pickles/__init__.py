"""Objects that are passed between processes by the name of their class."""
