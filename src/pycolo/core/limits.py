"""Bounds of what the agents hold, remember and wait for, and the counts that go with them."""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True, slots=True)
class DataplaneLimits:
    """A connection costs about 2 KiB besides what it holds, so `flows_max` of them 256 MiB."""

    hold_ms_min: float = 50
    hold_ms_max: float = 1000
    held_frames_max: int = 20_000
    held_bytes_max: int = 64 << 20
    flows_max: int = 1 << 17
    stream_bytes_max: int = 8 << 20  # of the SVM's stream, per flow
    unreleased_bytes_max: int = 256 << 20  # of the SVM's output, all flows together
    datagrams_max: int = 1024  # of the SVM, per flow

    def shared_by(self, cards: int) -> DataplaneLimits:
        """What each of a VM's network cards may have, so that all of them together keep within these bounds."""
        return replace(
            self,
            held_frames_max=self.held_frames_max // cards,
            held_bytes_max=self.held_bytes_max // cards,
            flows_max=self.flows_max // cards,
            unreleased_bytes_max=self.unreleased_bytes_max // cards,
        )


@dataclass(frozen=True, slots=True)
class DataplaneStats:
    """Counts since the start, and what is held now."""

    released_equal: int
    released_by_checkpoint: int
    released_by_policy: int
    diverged: int
    held_frames: int
    held_bytes: int
    lag_ms: float
    limit_ms: float
    flows: int
