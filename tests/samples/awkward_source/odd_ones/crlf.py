"""Windows line endings."""

TEXT = """one
two"""
