"""`python -m neoscope` is the command `neoscope`."""

from neoscope.process import main

main()
