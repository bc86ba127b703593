"""`alpha` depends on this package."""
