"""Thin edges: system calls and servers, no decisions."""
