"""Makes both ends of a VM's network card: a tap device for QEMU, and a packet socket on it for the agent.

Guarantees: the device is in a network namespace of its own, without addresses and without IPv6, so that the kernel says
nothing on it; both vanish with their last descriptors.
"""

from __future__ import annotations

import fcntl
import os
import socket
import struct
from contextlib import ExitStack
from io import FileIO
from pathlib import Path

from pycolo.edge.namespaces import has_ipv6, in_new_namespace
from pycolo.edge.tap import IFF_TAP, TUNSETIFF, run_ip
from pycolo.errors import EnvironmentFault

NAME = "guest"
MTU = 65_521  # the longest that a tap has; what the guest sends at a time is the guest's affair
QUEUE_FRAMES = 2000  # more than are ever in flight (`nic`)
BUFFER_BYTES = 4 << 20  # of output that the agent has not taken, which the kernel doubles; more is lost, as on a wire
QUIET = Path("/proc/sys/net/ipv6/conf/default/disable_ipv6")

_SO_RCVBUFFORCE, _SO_SNDBUFFORCE = 33, 32
_SOL_PACKET = 263
_PACKET_AUXDATA, _PACKET_VNET_HDR, _PACKET_IGNORE_OUTGOING = 8, 15, 23
_ETH_P_ALL = 3


def guest_tap() -> tuple[socket.socket, FileIO]:
    """(Our end, QEMU's end). Raises EnvironmentFault."""
    try:
        return in_new_namespace(_make)
    except OSError as error:
        raise EnvironmentFault(
            f"the VM's network card can't be made ({error.strerror}): run as root with CAP_NET_ADMIN and CAP_NET_RAW "
            "on a kernel with tun and packet sockets (modprobe tun af_packet), with /proc/sys writable"
        ) from None


def _make() -> tuple[socket.socket, FileIO]:
    if has_ipv6():
        # Without this the kernel would take an address from a router in the guest, and answer there.
        QUIET.write_text("1")
    with ExitStack() as made:
        theirs = made.enter_context(FileIO(os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC), "r+"))
        fcntl.ioctl(theirs, TUNSETIFF, struct.pack("16sH22x", NAME.encode(), IFF_TAP))
        ours = made.enter_context(socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_NONBLOCK, 0))
        for option in (_PACKET_AUXDATA, _PACKET_VNET_HDR, _PACKET_IGNORE_OUTGOING):
            ours.setsockopt(_SOL_PACKET, option, 1)
        ours.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, BUFFER_BYTES)
        ours.setsockopt(socket.SOL_SOCKET, _SO_SNDBUFFORCE, BUFFER_BYTES)
        settings = ("mtu", str(MTU), "txqueuelen", str(QUEUE_FRAMES), "arp", "off", "up")
        run_ip("link", "set", "dev", NAME, *settings, remedy="see dmesg")
        ours.bind((NAME, _ETH_P_ALL))
        made.pop_all()
        return ours, theirs
