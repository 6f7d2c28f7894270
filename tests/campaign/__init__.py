"""A fault campaign on real hosts: rounds of faults drawn from seeds, judged from outside."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1]))  # pytest's `pythonpath`, for `python -m tests.campaign`
