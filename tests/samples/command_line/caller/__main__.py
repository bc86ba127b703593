"""Exits with the number of its arguments."""

import sys

from caller.work import run

if __name__ == "__main__":
    print(f"{__spec__.name}: {run(sys.argv[1:])}")
    sys.exit(len(sys.argv) - 1)
