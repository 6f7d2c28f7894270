"""Deterministic simulation of a pair: see world.py."""

import sys
from pathlib import Path

sys.path.append(
    str(Path(__file__).parents[1])
)  # `python -m tests.sim` finds what all kinds of tests share, as pytest does
