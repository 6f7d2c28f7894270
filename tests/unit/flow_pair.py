"""A primary data plane with one connection, for tests of what may leave of it."""

from __future__ import annotations

from pycolo.core.dataplane import PrimaryDataplane
from pycolo.core.limits import DataplaneLimits
from tcp_frames import A, Connection, R

PVM, SVM = Connection(isn=1000), Connection(isn=2**32 - 3)  # the SVM's numbers wrap at once


class Pair:
    """A primary data plane with one connection; `p` and `s` give it a segment of either VM, `c` one of the client."""

    def __init__(self, pvm: Connection = PVM, svm: Connection = SVM, *, opened: bool = True) -> None:
        self.plane = PrimaryDataplane(DataplaneLimits(), 1)
        self.pvm, self.svm = pvm, svm
        if opened:
            assert self.plane.pvm_frames([pvm.syn_ack()], 0) == []
            assert self.plane.svm_frames(1, 0, [svm.syn_ack()], 0) == [pvm.syn_ack()]

    def p(self, seq: int, ack: int, flags: int = A, payload: bytes = b"", options: bytes = b"") -> int:
        """How many frames leave when the PVM says this."""
        return len(self.plane.pvm_frames([self.pvm.out(seq, ack, flags, payload, options)], 0))

    def s(self, seq: int, ack: int, flags: int = A, payload: bytes = b"", options: bytes = b"") -> int:
        """How many frames leave when the SVM says this."""
        return len(self.plane.svm_frames(self.plane.epoch, 0, [self.svm.out(seq, ack, flags, payload, options)], 0))

    def c(self, seq: int, ack: int, flags: int = A, payload: bytes = b"") -> None:
        self.plane.client_frames([self.pvm.back(seq, ack, flags, payload)], 0)

    def gone(self, seq: int) -> int:
        """How many frames leave when the client resets."""
        return len(self.plane.client_frames([self.pvm.back(seq, 0, R)], 0))

    def checkpoint(self) -> int:
        """How many frames a checkpoint releases; the SVM is the PVM's copy then."""
        self.plane.seal(self.plane.epoch + 1)
        self.svm = self.pvm
        return len(self.plane.commit(self.plane.epoch))

    @property
    def diverged(self) -> bool:
        return self.plane.due(0) == "divergence"
