# Packed batches as `packed` says: `be32 length | frame`; included by _hot.pyx and by edge/_frames.pyx.

cdef enum:
    PREFIX = 4
    FRAME_MAX = 65555


cdef inline uint32_t be32(const uint8_t* p) noexcept nogil:
    return (<uint32_t>p[0] << 24) | (<uint32_t>p[1] << 16) | (<uint32_t>p[2] << 8) | p[3]


cdef inline void put32(uint8_t* place, uint32_t value) noexcept nogil:
    place[0], place[1], place[2], place[3] = value >> 24, value >> 16 & 0xFF, value >> 8 & 0xFF, value & 0xFF


cdef inline int64_t length_of(const uint8_t* packed, size_t at, size_t size) noexcept nogil:
    """How long the frame at this place is; -1 where there is no whole one."""
    cdef uint32_t length
    if at + PREFIX > size:
        return -1
    length = be32(packed + at)
    return length if length <= FRAME_MAX and at + PREFIX + length <= size else -1
