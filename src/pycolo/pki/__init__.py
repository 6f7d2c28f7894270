"""Certificates by which two hosts know each other: a small CA of one's own."""
