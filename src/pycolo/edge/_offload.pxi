# Frames with the header by which kernels, QEMU and guests leave work to each other, compiled; `offload` has the rules,
# `frames_twin` says what the functions do. Included by _frames.pyx.

cdef enum:
    VNET = 10
    NOTE = 2
    HEAD_MAX = 256
    TAG = 4
    NEEDS_CHECKSUM = 1
    SEGMENTS_TCP4 = 1
    SEGMENTS_TCP6 = 4
    SEGMENTS_ECN = 0x80
    CHECKSUM_AT = 16
    FLAG_CWR = 0x80

cdef struct Place:
    uint32_t network  # where IP begins
    uint32_t at  # where TCP begins
    uint32_t end  # where the datagram ends
    bint v6


cdef inline uint32_t be16(const uint8_t* p) noexcept nogil:
    return (<uint32_t>p[0] << 8) | p[1]


cdef inline void put16(uint8_t* place, uint32_t value) noexcept nogil:
    place[0], place[1] = value >> 8 & 0xFF, value & 0xFF


cdef inline uint32_t native16(const uint8_t* place) noexcept nogil:
    cdef uint16_t value
    memcpy(&value, place, 2)
    return value


cdef inline void put_native16(uint8_t* place, uint32_t value) noexcept nogil:
    cdef uint16_t narrow = <uint16_t>value
    memcpy(place, &narrow, 2)


cdef uint64_t sum_of(const uint8_t* data, size_t length) noexcept nogil:
    """Of words as they lie in memory, as if zeros followed; its fold is that of 16-bit words (RFC 1071, 2)."""
    cdef uint64_t total = 0
    cdef uint32_t word
    cdef size_t at = 0
    while at + 4 <= length:
        memcpy(&word, data + at, 4)
        total += word
        at += 4
    if at < length:
        word = 0
        memcpy(&word, data + at, length - at)
        total += word
    return total


cdef uint32_t folded(uint64_t total) noexcept nogil:
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return <uint32_t>total


cdef uint32_t network_of(const uint8_t* frame, uint32_t length, uint32_t* network) noexcept nogil:
    """As `offload._network`."""
    cdef uint32_t at = 12
    while at < 20 and at + 2 <= length and be16(frame + at) in (0x8100, 0x88A8):
        at += TAG
    network[0] = at + 2 if at + 2 <= length else length
    return be16(frame + at) if at + 2 <= length else 0


cdef bint find_tcp(const uint8_t* frame, uint32_t length, Place* place) noexcept nogil:
    """As `offload.find_tcp`."""
    cdef uint32_t at
    cdef uint32_t kind = network_of(frame, length, &at)
    cdef uint8_t after
    place.network = at
    if kind == 0x0800:
        if at + 20 > length or frame[at] >> 4 != 4 or frame[at + 9] != 6 or be16(frame + at + 6) & 0x3FFF:
            return False
        if frame[at] & 15 < 5:
            return False
        place.at, place.end, place.v6 = at + 4 * (frame[at] & 15), at + be16(frame + at + 2), False
    elif kind == 0x86DD:
        if at + 40 > length or frame[at] >> 4 != 6:
            return False
        place.end, place.v6 = at + 40 + be16(frame + at + 4), True
        after, at = frame[at + 6], at + 40
        while after in (0, 43, 60) and at + 8 <= length:
            after, at = frame[at], at + 8 + 8 * frame[at + 1]
        if after != 6:
            return False
        place.at = at
    else:
        return False
    return place.at + 20 <= place.end and place.end <= length and place.at + 20 <= HEAD_MAX


cdef void fit(uint8_t* frame, uint32_t length) noexcept nogil:
    """As `offload._fitted`, in place."""
    cdef uint32_t at, head
    cdef uint32_t kind = network_of(frame, length, &at)
    length -= at
    if kind == 0x0800 and 20 <= length <= 65535 and frame[at] >> 4 == 4 and be16(frame + at + 2) != length:
        head = 4 * (frame[at] & 15)
        if 20 <= head <= length:
            put16(frame + at + 2, length)
            put16(frame + at + 10, 0)
            put_native16(frame + at + 10, folded(sum_of(frame + at, head)) ^ 0xFFFF)
    elif kind == 0x86DD and 40 <= length <= 65575 and frame[at] >> 4 == 6:
        put16(frame + at + 4, length - 40)


cdef uint32_t settled(const uint8_t* vnet, uint8_t* frame, uint32_t length) noexcept nogil:
    """As `offload.settled`, in place, with room for NOTE more bytes; returns the new length."""
    cdef uint32_t start, offset, total
    cdef bint found
    cdef Place place
    if vnet[0] & NEEDS_CHECKSUM:
        start, offset = native16(vnet + 6), native16(vnet + 8)
        if offset & 1 or start + offset + 2 > length:
            return 0
        total = folded(sum_of(frame + start, length - start)) ^ 0xFFFF
        put_native16(frame + start + offset, total if total else 0xFFFF)
    if vnet[1]:
        fit(frame, length)
    found = find_tcp(frame, length, &place)
    if vnet[1]:
        if not found or vnet[1] & ~SEGMENTS_ECN != (SEGMENTS_TCP6 if place.v6 else SEGMENTS_TCP4):
            return 0
        put16(frame + place.end, native16(vnet + 4))
        return place.end + NOTE
    return place.end if found and length == place.end + NOTE else length


cdef uint32_t described(
    const uint8_t* frame, uint32_t length, uint8_t* vnet, uint8_t* head, uint32_t* head_length
) noexcept nogil:
    """As `offload.described`: how much of the frame leaves, and in `head` what its beginning has to be instead."""
    cdef Place place
    cdef uint32_t size, data_at, addresses
    cdef uint64_t pseudo
    memset(vnet, 0, VNET)
    head_length[0] = 0
    if not find_tcp(frame, length, &place) or length != place.end + NOTE:
        return length
    length = place.end
    size, data_at = be16(frame + length), place.at + 4 * (frame[place.at + 12] >> 4)
    if not size or data_at < place.at + 20 or length <= data_at + size:
        return length
    head_length[0] = place.at + 20
    memcpy(head, frame, head_length[0])
    addresses = 32 if place.v6 else 8
    pseudo = sum_of(frame + place.network + (8 if place.v6 else 12), addresses)
    put16(head + place.at + CHECKSUM_AT, 6)
    pseudo += native16(head + place.at + CHECKSUM_AT)
    put16(head + place.at + CHECKSUM_AT, length - place.at)
    pseudo += native16(head + place.at + CHECKSUM_AT)
    put_native16(head + place.at + CHECKSUM_AT, folded(pseudo))
    vnet[0] = NEEDS_CHECKSUM
    vnet[1] = SEGMENTS_TCP6 if place.v6 else SEGMENTS_TCP4
    if frame[place.at + 13] & FLAG_CWR:
        vnet[1] |= SEGMENTS_ECN
    put_native16(vnet + 2, data_at)
    put_native16(vnet + 4, size)
    put_native16(vnet + 6, place.at)
    put_native16(vnet + 8, CHECKSUM_AT)
    return length
