# Plain TCP segments in frames: parsed, and their keys hashed; included by _hot.pyx.

cdef inline int32_t distance(uint32_t a, uint32_t b) noexcept nogil:
    return <int32_t>(a - b)

cdef inline uint32_t be16(const uint8_t* p) noexcept nogil:
    return (<uint32_t>p[0] << 8) | p[1]


cdef bint _plain_options(const uint8_t* frame, uint32_t at, uint32_t end) noexcept nogil:
    """Whether there is nothing but NOP, timestamp and SACK."""
    cdef uint32_t length
    while at < end:
        if frame[at] == OPTION_END:
            return True
        if frame[at] == OPTION_NOP:
            at += 1
            continue
        if at + 1 >= end:
            return False
        length = frame[at + 1]
        if length < 2 or at + length > end:
            return False
        if frame[at] != OPTION_SACK and frame[at] != OPTION_TIMESTAMP:
            return False
        at += length
    return True


cdef bint parse(const uint8_t* frame, uint32_t length, Segment* found, bint inbound) noexcept nogil:
    """A plain segment over IPv4 or IPv6 without tags, options or extensions of IP; the key as the guest sees it."""
    cdef uint32_t at, end, size, start, kind
    if length < 54:
        return False
    kind = be16(frame + 12)
    if kind == 0x0800:
        if frame[14] != 0x45 or frame[23] != 6 or be16(frame + 20) & 0xBFFF:
            return False
        at, end, size = 34, 14 + be16(frame + 16), 4
    elif kind == 0x86DD:
        if frame[14] >> 4 != 6 or frame[20] != 6 or length < 74:
            return False
        at, end, size = 54, 54 + be16(frame + 18), 16
    else:
        return False
    if end > length or at + 20 > end:
        return False
    start = at + (frame[at + 12] >> 4) * 4
    if start < at + 20 or start > end:
        return False
    found.flags = frame[at + 13]
    if found.flags & EVENTS or not found.flags & FLAG_ACK:
        return False
    if start != at + 20 and not (start == at + 32 and be32(frame + at + 20) == 0x0101080A):
        if not _plain_options(frame, at + 20, start):
            return False
    found.seq, found.ack = be32(frame + at + 4), be32(frame + at + 8)
    found.at, found.start, found.end = at, start, end
    found.key_length = 2 * size + 4
    if inbound:
        memcpy(found.key, frame + at - size, size)
        memcpy(found.key + size, frame + at - 2 * size, size)
        found.key[2 * size] = frame[at + 2]
        found.key[2 * size + 1] = frame[at + 3]
        found.key[2 * size + 2] = frame[at]
        found.key[2 * size + 3] = frame[at + 1]
    else:
        memcpy(found.key, frame + at - 2 * size, 2 * size + 4)
    return True


cdef uint64_t hash_of(const uint8_t* key, uint32_t length, uint64_t seed) noexcept nogil:
    """Keyed, so that nobody can choose addresses and ports that collide."""
    cdef uint64_t mixed = seed ^ length
    cdef uint32_t at
    for at in range(0, length, 4):
        mixed = (mixed ^ be32(key + at)) * <uint64_t>0x9E3779B97F4A7C15
        mixed ^= mixed >> 29
    mixed = (mixed ^ seed) * <uint64_t>0xBF58476D1CE4E5B9
    return mixed ^ (mixed >> 32)
