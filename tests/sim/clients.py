"""Model clients: one request at a time, sent again until it is answered."""

from __future__ import annotations

import random

from .guest import PLAIN, RANDOM_BIT, RANDOM_NUMBER, REQUEST, RESPONSE, TIME_OF_DAY
from .history import History, Reception
from .network import ClientNetwork
from .scheduler import Host, Scheduler

RESEND_US = 15_000
THINK_US = (200, 2_500)
_KINDS = (PLAIN, RANDOM_BIT, RANDOM_NUMBER, TIME_OF_DAY)
_WEIGHTS = (70, 8, 7, 15)


class Client:
    """One client with one connection."""

    def __init__(
        self, number: int, scheduler: Scheduler, world: Host, network: ClientNetwork, history: History, seed: str
    ) -> None:
        self._number, self._scheduler, self._world = number, scheduler, world
        self._network, self._history = network, history
        self._random = random.Random(seed)
        self._seq = 0
        self._frame = b""
        self.left = 0
        self.waiting = False

    def start(self, requests: int) -> None:
        """Send that many requests, counted from now; `waiting` while one is not answered."""
        self.left = requests
        if not self.waiting:
            self._think()

    def stop(self) -> None:
        """No new requests; the one under way is still sent until it is answered."""
        self.left = 0

    @property
    def quiet(self) -> bool:
        """Everything asked is answered, and nothing more will be asked."""
        return not self.waiting and not self.left

    def _think(self) -> None:
        self._scheduler.call_later(self._random.randint(*THINK_US), self._world, self._ask)

    def _ask(self) -> None:
        if self.waiting or not self.left:
            return
        self.left -= 1
        self._seq += 1
        self.waiting = True
        self._history.sent[self._number] = self._seq
        kind = self._random.choices(_KINDS, _WEIGHTS)[0]
        self._frame = REQUEST.pack(self._number, self._seq, kind)
        self._send(self._seq)

    def _send(self, seq: int) -> None:
        if self.waiting and seq == self._seq:
            self._network.request(self._frame)
            self._scheduler.call_later(RESEND_US, self._world, lambda: self._send(seq))

    def receive(self, response: bytes) -> None:
        """A response came in; one that answers nothing open is only recorded."""
        seq = RESPONSE.unpack(response)[1]
        self._history.receptions.append(Reception(self._scheduler.now_us, self._number, seq, response))
        if self.waiting and seq == self._seq:
            self.waiting = False
            self._think()
