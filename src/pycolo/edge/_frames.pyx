# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""Frames between packet sockets or taps and packed batches (`core/packed`), compiled; `frames_twin` says what each does.

Guarantees: no Python object for a frame, and the GIL is released during system calls; memory is bounded by
CALL_FRAMES_MAX of the longest frames; no bytes make anything here read beyond a batch.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from cpython.exc cimport PyErr_SetFromErrno
from libc.errno cimport EAGAIN, ECONNABORTED, ECONNREFUSED, ECONNRESET, EINTR, EINVAL, EMSGSIZE, ENOBUFS, EPIPE, ESHUTDOWN, errno
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy, memmove, memset
from posix.time cimport clock_gettime, timespec

cdef extern from "<sys/socket.h>" nogil:
    struct iovec:
        void* iov_base
        size_t iov_len
    struct msghdr:
        iovec* msg_iov
        size_t msg_iovlen
        void* msg_control
        size_t msg_controllen
    struct cmsghdr:
        size_t cmsg_len
        int cmsg_level
        int cmsg_type
    struct mmsghdr:
        msghdr msg_hdr
        unsigned int msg_len
    int MSG_DONTWAIT
    int recvmmsg(int fd, mmsghdr* heads, unsigned int count, int flags, timespec* timeout)
    int sendmmsg(int fd, mmsghdr* heads, unsigned int count, int flags)
    cmsghdr* CMSG_FIRSTHDR(msghdr* head)
    cmsghdr* CMSG_NXTHDR(msghdr* head, cmsghdr* part)
    uint8_t* CMSG_DATA(cmsghdr* part)

cdef extern from "<sys/uio.h>" nogil:
    Py_ssize_t readv(int fd, const iovec* parts, int count)
    Py_ssize_t writev(int fd, const iovec* parts, int count)

cdef extern from "<time.h>" nogil:
    int CLOCK_BOOTTIME

include "../core/_packed.pxi"
include "_offload.pxi"

cdef enum:
    SLOT = PREFIX + FRAME_MAX
    CALL_FRAMES = 64
    COMES_MAX = FRAME_MAX - TAG - NOTE  # what is longer is cut, and too short then for what it says
    SOL_PACKET = 263
    PACKET_AUXDATA = 8
    STATUS_TAGGED = 1 << 4  # linux/if_packet.h, struct tpacket_auxdata: be it with its kind (bit 6) or without
    STATUS_TAG_KIND = 1 << 6
    CONTROL_WORDS = 8

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


cdef uint32_t _tagged(msghdr* control, uint8_t* vnet, uint8_t* frame, uint32_t length) noexcept nogil:
    """Put back the VLAN tag that the kernel has taken out; the new length."""
    cdef cmsghdr* part = CMSG_FIRSTHDR(control)
    cdef uint8_t* said
    cdef uint32_t status
    while part != NULL:
        if part.cmsg_level == SOL_PACKET and part.cmsg_type == PACKET_AUXDATA:
            said = CMSG_DATA(part)
            memcpy(&status, said, 4)
            if not status & STATUS_TAGGED or length < 12:
                return length
            memmove(frame + 12 + TAG, frame + 12, length - 12)
            put16(frame + 12, native16(said + 18) if status & STATUS_TAG_KIND else 0x8100)
            put16(frame + 14, native16(said + 16))
            put_native16(vnet + 6, native16(vnet + 6) + TAG)
            return length + TAG
        part = CMSG_NXTHDR(control, part)
    return length


def receive_frames(int fd, int frames_max):
    cdef mmsghdr heads[CALL_FRAMES]
    cdef iovec parts[CALL_FRAMES][2]
    cdef uint8_t vnets[CALL_FRAMES][VNET]
    cdef uint64_t controls[CALL_FRAMES][CONTROL_WORDS]
    cdef int number, came, failed = 0
    cdef uint32_t length
    cdef uint8_t* frame
    cdef uint8_t* room = take_room()
    try:
        with nogil:
            frames_max = max(0, min(frames_max, CALL_FRAMES))
            memset(heads, 0, sizeof(heads))
            for number in range(frames_max):
                parts[number][0].iov_base, parts[number][0].iov_len = vnets[number], VNET
                parts[number][1].iov_base, parts[number][1].iov_len = room + number * SLOT, COMES_MAX
                heads[number].msg_hdr.msg_iov, heads[number].msg_hdr.msg_iovlen = parts[number], 2
                heads[number].msg_hdr.msg_control, heads[number].msg_hdr.msg_controllen = controls[number], 8 * CONTROL_WORDS
            while True:
                came = recvmmsg(fd, heads, frames_max, MSG_DONTWAIT, NULL)
                failed = errno if came < 0 else 0
                if failed != EINTR:
                    break
            for number in range(came):
                frame, length = room + number * SLOT, 0
                if heads[number].msg_len >= VNET:
                    length = _tagged(&heads[number].msg_hdr, vnets[number], frame, heads[number].msg_len - VNET)
                    length = settled(vnets[number], frame, length)
                heads[number].msg_len = length
        if failed == EINVAL and frames_max:  # of a frame whose header the kernel can't put; it is gone
            came, heads[0].msg_len = 1, 0
        elif came <= 0:
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


def send_frames(int fd, const uint8_t[::1] packed, size_t at):
    cdef mmsghdr heads[CALL_FRAMES]
    cdef iovec parts[CALL_FRAMES][3]
    cdef uint8_t vnets[CALL_FRAMES][VNET]
    cdef uint8_t fronts[CALL_FRAMES][HEAD_MAX]
    cdef size_t ends[CALL_FRAMES]
    cdef size_t size = packed.shape[0], end
    cdef int64_t count = 0, length
    cdef int ready, went, failed = 0
    cdef bint again = False
    with nogil:
        memset(heads, 0, sizeof(heads))
        while at < size:
            ready, end = 0, at
            while ready < CALL_FRAMES:
                length = length_of(&packed[0], end, size)
                if length < 0:
                    break
                _laid_out(&packed[0] + end + PREFIX, <uint32_t>length, parts[ready], vnets[ready], fronts[ready])
                heads[ready].msg_hdr.msg_iov, heads[ready].msg_hdr.msg_iovlen = parts[ready], 3
                end += PREFIX + <size_t>length
                ends[ready] = end
                ready += 1
            if not ready:
                at = size
                break
            went = sendmmsg(fd, heads, ready, MSG_DONTWAIT)
            if went < 0:
                failed = errno
                if failed in (EINVAL, EMSGSIZE, ENOBUFS):  # of the first of them, or of a frame that came before
                    at, again = ends[0] if again else at, not again
                elif failed != EINTR:
                    break
                failed = 0
                continue
            at, again = ends[went - 1], False
            count += went
    if failed and not is_end(failed):
        fail(failed)
    return at, count


cdef void _laid_out(
    const uint8_t* frame, uint32_t length, iovec* parts, uint8_t* vnet, uint8_t* front
) noexcept nogil:
    """The parts of which a frame that leaves consists."""
    cdef uint32_t front_length
    length = described(frame, length, vnet, front, &front_length)
    parts[0].iov_base, parts[0].iov_len = vnet, VNET
    parts[1].iov_base, parts[1].iov_len = front, front_length
    parts[2].iov_base, parts[2].iov_len = <void*>(frame + front_length), length - front_length


def read_frames(int fd, int frames_max):
    cdef uint8_t* room = take_room()
    cdef uint8_t vnet[VNET]
    cdef iovec parts[2]
    cdef size_t size = 0
    cdef Py_ssize_t came
    cdef uint32_t length
    cdef int count = 0, failed = 0
    try:
        with nogil:
            frames_max = max(0, min(frames_max, CALL_FRAMES))
            while count < frames_max:
                parts[0].iov_base, parts[0].iov_len = vnet, VNET
                parts[1].iov_base, parts[1].iov_len = room + size + PREFIX, COMES_MAX
                came = readv(fd, parts, 2)
                if came < 0:
                    failed = errno
                    if failed == EINTR:
                        continue
                    break
                length = settled(vnet, room + size + PREFIX, <uint32_t>(came - VNET)) if came >= VNET else 0
                put32(room + size, length)
                size += PREFIX + length
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
    cdef iovec parts[3]
    cdef uint8_t vnet[VNET]
    cdef uint8_t front[HEAD_MAX]
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
            _laid_out(&packed[0] + at + PREFIX, <uint32_t>length, parts, vnet, front)
            if writev(fd, parts, 3) < 0:
                if errno == EINTR:
                    continue
                refused += 1
            at += PREFIX + <size_t>length
    return at, refused
