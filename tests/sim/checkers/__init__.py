"""Checkers look only from outside: at what clients received, at snapshots the harness took, and at time."""
