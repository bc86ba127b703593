"""Starts the checks: `python run.py` leaves result.json in the working folder."""

from sixteen.main import run

TEXT = """the first line
    the second, indented

the last
"""

if __name__ == "__main__":
    run(TEXT)
