"""The package that the chaos tests push."""
