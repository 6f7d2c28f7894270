"""Frames in and out in packed batches: compiled, or the Python twin where nothing could be compiled. They do the same;
`frames_twin` says what.
"""

from __future__ import annotations

try:
    from pycolo.edge._frames import (
        CALL_FRAMES_MAX,
        read_frames,
        receive_frames,
        send_frames,
        write_frames,
    )
except ImportError:
    from pycolo.edge.frames_twin import (
        CALL_FRAMES_MAX,
        read_frames,
        receive_frames,
        send_frames,
        write_frames,
    )

__all__ = ["CALL_FRAMES_MAX", "read_frames", "receive_frames", "send_frames", "write_frames"]
