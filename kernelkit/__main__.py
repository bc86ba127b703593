"""`python -m kernelkit` runs the command `kernelkit`."""

from kernelkit.cli import main

main()
