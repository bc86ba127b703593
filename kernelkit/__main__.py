"""`python -m kernelkit` is the command `kernelkit`."""

from kernelkit.cli import main

main()
