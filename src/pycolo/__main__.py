"""`python -m pycolo` is the command `colo`."""

from pycolo.cli import main

main()
