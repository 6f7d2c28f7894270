"""The demo: two hosts, real clients, one death."""
