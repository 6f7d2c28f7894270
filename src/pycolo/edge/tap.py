"""Uplink: a tap device of ours on the user's bridge; it vanishes with the process that holds it. Frames in batches.

The guest's long segments leave whole (`offload`). What clients send comes as it was on a wire: the kernel cuts what it
has merged, which two hosts' kernels would not do alike, and one overhears what the other is sent.
"""

from __future__ import annotations

import fcntl
import math
import os
import struct
import subprocess

from pycolo.core.packed import Batch, Packed
from pycolo.edge.frames_io import read_frames, write_frames
from pycolo.edge.namespaces import has_ipv6
from pycolo.errors import EnvironmentFault

TUNSETIFF = 0x400454CA  # linux/if_tun.h
IFF_TAP = 0x0002 | 0x1000 | 0x4000  # no packet information, but the header of `offload`
QUEUE_FRAMES = 4000  # what may wait in the kernel while the feed is paused for a checkpoint


class Tap:
    """A tap device as a non-blocking source and sink of Ethernet frames."""

    def __init__(self, name: str, bridge: str) -> None:
        """Make the device and put it on the bridge. Raises EnvironmentFault."""
        self.name = name
        try:
            self.fd = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:
            raise EnvironmentFault(
                f"/dev/net/tun can't be opened ({error.strerror}): run as root on a kernel with tun (modprobe tun)"
            ) from None
        try:
            fcntl.ioctl(self.fd, TUNSETIFF, struct.pack("16sH22x", name.encode(), IFF_TAP))
            quiet = ("addrgenmode", "none") if has_ipv6() else ()
            run_ip("link", "set", "dev", name, *quiet, "txqueuelen", str(QUEUE_FRAMES))
            run_ip("link", "set", "dev", name, "master", bridge, "up")
        except OSError as error:
            self.close()
            raise EnvironmentFault(
                f"the tap device {name} can't be made ({error.strerror}): run as root, and see with "
                "`ip link` if somebody else has a device of that name"
            ) from None
        except EnvironmentFault:
            self.close()
            raise

    def receive(self, frames_max: int) -> Batch:
        """Some frames that clients sent, at most `frames_max`."""
        return Batch(*read_frames(self.fd, frames_max))

    def send(self, packed: Packed, deadline_s: float = math.inf) -> tuple[int, int]:
        """Send frames to clients: (the place reached, how many the kernel would not take, as a full wire would drop
        them).

        None is sent after `deadline_s` (of `boottime_s`): the place reached is before the end then.
        """
        return write_frames(self.fd, packed, deadline_s)

    def close(self) -> None:
        """Give the device back."""
        os.close(self.fd)


def run_ip(*arguments: str, remedy: str = "check `bridge` and `networks` in host.toml") -> None:
    """Run `ip` in this thread's namespace. Raises EnvironmentFault."""
    try:
        done = subprocess.run(["ip", *arguments], capture_output=True, text=True, timeout=10, check=False)
    except FileNotFoundError:
        raise EnvironmentFault("the program ip is missing: apt-get install iproute2") from None
    except subprocess.TimeoutExpired:
        raise EnvironmentFault(f"`ip {' '.join(arguments)}` hangs: see dmesg") from None
    if done.returncode:
        raise EnvironmentFault(f"`ip {' '.join(arguments)}` failed: {done.stderr.strip()}: {remedy}")
