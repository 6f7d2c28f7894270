# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""Frames between sockets or taps and packed batches (`core/packed`), compiled; `frames_twin` says what each does.

Guarantees: no Python object for a frame, and the GIL is released during system calls; memory is bounded by
CALL_FRAMES_MAX of the longest frames; no bytes make anything here read beyond a batch.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from cpython.exc cimport PyErr_SetFromErrno
from libc.errno cimport EAGAIN, ECONNABORTED, ECONNREFUSED, ECONNRESET, EINTR, EPIPE, ESHUTDOWN, errno
from libc.stdint cimport int64_t, uint8_t, uint32_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy, memset
from posix.time cimport clock_gettime, timespec
from posix.unistd cimport read, write

cdef extern from "<sys/socket.h>" nogil:
    struct iovec:
        void* iov_base
        size_t iov_len
    struct msghdr:
        iovec* msg_iov
        size_t msg_iovlen
    struct mmsghdr:
        msghdr msg_hdr
        unsigned int msg_len
    int MSG_DONTWAIT
    int recvmmsg(int fd, mmsghdr* heads, unsigned int count, int flags, timespec* timeout)
    int sendmmsg(int fd, mmsghdr* heads, unsigned int count, int flags)

cdef extern from "<time.h>" nogil:
    int CLOCK_BOOTTIME

include "../core/_packed.pxi"

cdef enum:
    SLOT = PREFIX + FRAME_MAX
    CALL_FRAMES = 64

CALL_FRAMES_MAX = CALL_FRAMES

cdef uint8_t* _spare = NULL  # room for CALL_FRAMES of the longest frames, while no call uses it


cdef uint8_t* take_room() except NULL:
    """Of which a call touches as much as frames need; allocated afresh each time it would cost a fault per frame."""
    global _spare
    cdef uint8_t* room = _spare
    _spare = NULL
    if room == NULL:
        room = <uint8_t*>malloc(CALL_FRAMES * SLOT)
    if room == NULL:
        raise MemoryError
    return room


cdef void give_room(uint8_t* room) noexcept:
    global _spare
    if _spare == NULL:
        _spare = room
    else:
        free(room)


cdef bint is_end(int failed) noexcept nogil:
    """What is BlockingIOError or ConnectionError to Python."""
    return failed in (EAGAIN, ECONNABORTED, ECONNREFUSED, ECONNRESET, EPIPE, ESHUTDOWN)


cdef int fail(int failed) except -1:
    global errno
    errno = failed
    PyErr_SetFromErrno(OSError)
    return -1


def receive_datagrams(int fd, int frames_max):
    cdef mmsghdr heads[CALL_FRAMES]
    cdef iovec parts[CALL_FRAMES]
    cdef int number, came, failed = 0
    cdef uint8_t* room = take_room()
    try:
        with nogil:
            frames_max = max(0, min(frames_max, CALL_FRAMES))
            memset(heads, 0, sizeof(heads))
            for number in range(frames_max):
                parts[number].iov_base = room + number * SLOT
                parts[number].iov_len = FRAME_MAX
                heads[number].msg_hdr.msg_iov = &parts[number]
                heads[number].msg_hdr.msg_iovlen = 1
            while True:
                came = recvmmsg(fd, heads, frames_max, MSG_DONTWAIT, NULL)
                failed = errno if came < 0 else 0
                if failed != EINTR:
                    break
        if came <= 0:
            if failed and not is_end(failed):
                fail(failed)
            return b"", 0
        return _joined(room, heads, came), came
    finally:
        give_room(room)


cdef bytes _joined(const uint8_t* room, const mmsghdr* heads, int count):
    """The frames in the slots of `room`, packed."""
    cdef int number
    cdef size_t size = 0
    cdef uint32_t length
    cdef uint8_t* to
    for number in range(count):
        size += PREFIX + heads[number].msg_len
    packed = PyBytes_FromStringAndSize(NULL, size)
    to = <uint8_t*>PyBytes_AS_STRING(packed)
    with nogil:
        for number in range(count):
            length = heads[number].msg_len
            put32(to, length)
            memcpy(to + PREFIX, room + number * SLOT, length)
            to += PREFIX + length
    return packed


def send_datagrams(int fd, const uint8_t[::1] packed, size_t at):
    cdef mmsghdr heads[CALL_FRAMES]
    cdef iovec parts[CALL_FRAMES]
    cdef size_t size = packed.shape[0], end
    cdef int64_t count = 0, length
    cdef int number, ready, went, failed = 0
    with nogil:
        memset(heads, 0, sizeof(heads))
        while at < size:
            ready, end = 0, at
            while ready < CALL_FRAMES:
                length = length_of(&packed[0], end, size)
                if length < 0:
                    break
                parts[ready].iov_base = <void*>(&packed[0] + end + PREFIX)
                parts[ready].iov_len = <size_t>length
                heads[ready].msg_hdr.msg_iov = &parts[ready]
                heads[ready].msg_hdr.msg_iovlen = 1
                end += PREFIX + <size_t>length
                ready += 1
            if not ready:
                at = size
                break
            went = sendmmsg(fd, heads, ready, MSG_DONTWAIT)
            if went < 0:
                failed = errno
                if failed == EINTR:
                    failed = 0
                    continue
                break
            for number in range(went):
                at += PREFIX + parts[number].iov_len
            count += went
    if failed and not is_end(failed):
        fail(failed)
    return at, count


def read_frames(int fd, int frames_max):
    cdef uint8_t* room = take_room()
    cdef size_t size = 0
    cdef Py_ssize_t came
    cdef int count = 0, failed = 0
    try:
        with nogil:
            frames_max = max(0, min(frames_max, CALL_FRAMES))
            while count < frames_max:
                came = read(fd, room + size + PREFIX, FRAME_MAX)
                if came < 0:
                    failed = errno
                    if failed == EINTR:
                        continue
                    break
                put32(room + size, <uint32_t>came)
                size += PREFIX + <size_t>came
                count += 1
        if not count and failed not in (0, EAGAIN):
            fail(failed)
        return (<char*>room)[:size], count
    finally:
        give_room(room)


def write_frames(int fd, const uint8_t[::1] packed, double deadline_s):
    cdef size_t at = 0, size = packed.shape[0]
    cdef int64_t length
    cdef int refused = 0
    cdef Py_ssize_t went
    cdef timespec now
    with nogil:
        while at < size:
            length = length_of(&packed[0], at, size)
            if length < 0:
                at = size
                break
            clock_gettime(CLOCK_BOOTTIME, &now)
            if now.tv_sec + now.tv_nsec * 1e-9 > deadline_s:
                break
            went = write(fd, &packed[0] + at + PREFIX, <size_t>length)
            if went < 0:
                if errno == EINTR:
                    continue
                refused += 1
            at += PREFIX + <size_t>length
    return at, refused
