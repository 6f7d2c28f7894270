"""Uplink: a tap device of ours on the user's bridge; it vanishes with the process that holds it."""

from __future__ import annotations

import contextlib
import fcntl
import os
import struct
import subprocess
from collections.abc import Iterable

from pycolo.errors import EnvironmentFault

TUNSETIFF = 0x400454CA  # linux/if_tun.h
IFF_TAP_NO_PI = 0x0002 | 0x1000
FRAME_BYTES_MAX = 65535
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
            fcntl.ioctl(self.fd, TUNSETIFF, struct.pack("16sH22x", name.encode(), IFF_TAP_NO_PI))
            _ip("link", "set", "dev", name, "addrgenmode", "none", "txqueuelen", str(QUEUE_FRAMES))
            _ip("link", "set", "dev", name, "master", bridge, "up")
        except OSError as error:
            self.close()
            raise EnvironmentFault(
                f"the tap device {name} can't be made ({error.strerror}): run as root, and see with "
                "`ip link` if somebody else has a device of that name"
            ) from None
        except EnvironmentFault:
            self.close()
            raise

    def receive(self, frames_max: int) -> list[bytes]:
        """Up to `frames_max` frames that clients sent."""
        frames: list[bytes] = []
        with contextlib.suppress(BlockingIOError):
            while len(frames) < frames_max:
                frames.append(os.read(self.fd, FRAME_BYTES_MAX))
        return frames

    def send(self, frames: Iterable[bytes]) -> int:
        """Send frames to clients; returns how many the kernel would not take (as a full wire would drop them)."""
        refused = 0
        for frame in frames:
            try:
                os.write(self.fd, frame)
            except OSError:  # queue full, or a frame no Ethernet takes (too short): the network may lose any frame
                refused += 1
        return refused

    def close(self) -> None:
        """Give the device back."""
        os.close(self.fd)


def _ip(*arguments: str) -> None:
    try:
        done = subprocess.run(["ip", *arguments], capture_output=True, text=True, timeout=10, check=False)
    except FileNotFoundError:
        raise EnvironmentFault("the program ip is missing: apt-get install iproute2") from None
    except subprocess.TimeoutExpired:
        raise EnvironmentFault(f"`ip {' '.join(arguments)}` hangs: see dmesg") from None
    if done.returncode:
        raise EnvironmentFault(
            f"`ip {' '.join(arguments)}` failed: {done.stderr.strip()}: check `bridge` and `networks` in host.toml"
        )
