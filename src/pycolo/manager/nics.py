"""The network cards of one VM copy: where they are on this host, and what connects QEMU and the agent."""

from __future__ import annotations

import socket
from io import FileIO
from typing import Any

import msgspec

from pycolo.agent.protocol import Port
from pycolo.config import CopyConfig, VmConfig
from pycolo.core.wire import NicShape
from pycolo.edge.guest_tap import guest_tap


class VmNics:
    """All cards, in the guest's order."""

    def __init__(self, host: CopyConfig, vm: VmConfig) -> None:
        self._host, self._cards = host, vm.cards
        self.macs = tuple(card.mac for card in vm.cards)
        self.pairs: list[tuple[socket.socket, FileIO]] = []

    @property
    def shapes(self) -> tuple[NicShape, ...]:
        """As both hosts must have them."""
        return tuple(NicShape(card.mac, card.network) for card in self._cards)

    @property
    def ports(self) -> tuple[Port, ...]:
        """Where they are on this host. Raises EnvironmentFault for a network that it does not know."""
        bridges = [self._host.bridge_of(card.network) for card in self._cards]
        return tuple(map(Port, self.macs, self._host.taps, bridges))

    @property
    def qemu_ends(self) -> list[FileIO]:
        """What QEMU inherits."""
        return [theirs for _, theirs in self.pairs]

    def open(self) -> None:
        """Make them. Raises EnvironmentFault."""
        for _ in self._cards:
            self.pairs.append(guest_tap())

    def close(self) -> None:
        """Let go of them."""
        for pair in self.pairs:
            for end in pair:
                end.close()

    def details(self) -> dict[str, Any]:
        """What `status` says of them."""
        return {"nics": [msgspec.structs.asdict(port) for port in self.ports]}
