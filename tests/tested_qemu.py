"""Which QEMU the integration tests drive, and how many processors their guests have; `make test-matrix` sets both."""

import os

from pycolo.edge.qemu_command import default_machine, qemu_version

QEMU = os.environ.get("PYCOLO_TEST_QEMU", "qemu-system-x86_64")
CPUS = int(os.environ.get("PYCOLO_TEST_CPUS", "1"))


def machine() -> str:
    """The machine type that the product chooses for this QEMU."""
    return default_machine(qemu_version(QEMU))
