"""`python -m neoscope` is the command `neoscope`."""

from neoscope.commands.main import main

main()
