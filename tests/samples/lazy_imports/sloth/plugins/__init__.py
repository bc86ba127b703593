"""Found by name only."""
