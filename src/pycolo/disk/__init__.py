"""The guest's disk: what stands behind the NBD server, and the command `colo disk`."""
