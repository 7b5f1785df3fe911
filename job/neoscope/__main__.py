"""`python -m neoscope` is the command `neoscope`."""

from neoscope.cli import main

main()
