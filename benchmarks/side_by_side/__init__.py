"""The same guest and the same clients: unprotected, protected by us, by QEMU's own COLO, and by checkpoints alone."""
