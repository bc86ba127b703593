"""Also a program: python -m caller."""
