"""A target for each parser of bytes that somebody else has made: `python -m tests.fuzz --help`, CONTRIBUTING.md."""
