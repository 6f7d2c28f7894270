# A client's segment in the guest's numbers, with the rules of `packet.rewrite` and `Connection.to_guest`; included by
# _hot_secondary.pxi.

cdef enum:
    CHECKSUM_AT = 16
    STAMP_BYTES = 10


cdef bint _is_datagram(const uint8_t* frame, uint32_t length) noexcept nogil:
    """UDP over IPv4 or IPv6 without tags, options or extensions: nothing to translate, and to be retained."""
    if length < 54:
        return False
    if be16(frame + 12) == 0x0800:
        return (frame[14] == 0x45 and frame[23] == 17 and not frame[20] & 0x80
                and 20 <= be16(frame + 16) <= length - 14)
    return be16(frame + 12) == 0x86DD and frame[14] >> 4 == 6 and frame[20] == 17 and be16(frame + 18) <= length - 54


cdef uint64_t _sum16(const uint8_t* data, uint32_t length) noexcept nogil:
    cdef uint64_t total = 0
    cdef uint32_t at
    for at in range(0, length & ~<uint32_t>1, 2):
        total += be16(data + at)
    return total + (<uint64_t>data[length - 1] << 8) if length & 1 else total


cdef bint _is_partial(const uint8_t* frame, Segment* segment) noexcept nogil:
    """As in `packet`, for a segment that is whole."""
    cdef uint32_t addresses = segment.key_length - 4
    cdef uint64_t pseudo = _sum16(frame + segment.at - addresses, addresses) + 6 + segment.end - segment.at
    if be16(frame + segment.at + CHECKSUM_AT) % 0xFFFF != pseudo % 0xFFFF:
        return False
    return (pseudo + _sum16(frame + segment.at, segment.end - segment.at)) % 0xFFFF != 0


cdef int64_t _add(uint8_t* frame, uint32_t at, uint32_t place, uint32_t added) noexcept nogil:
    """Add to the number at this place; by how much the sum of 16-bit words from `at` on has grown."""
    cdef uint32_t old = be32(frame + place)
    cdef int64_t grown = <int64_t><uint32_t>(old + added) - old
    put32(frame + place, old + added)
    return grown * 256 if place - at & 1 else grown


cdef inline bint _is_one_stamp(const uint8_t* frame, Segment* segment) noexcept nogil:
    return segment.start == segment.at + 32 and be32(frame + segment.at + 20) == 0x0101080A


cdef uint32_t _stamp_at(const uint8_t* frame, Segment* segment) noexcept nogil:
    """As `packet.timestamps_at`, of a segment whose options are whole; 0 without."""
    cdef uint32_t at = segment.at + 20
    if _is_one_stamp(frame, segment):
        return at + 4
    while at < segment.start and frame[at] != OPTION_END:
        if frame[at] == OPTION_NOP:
            at += 1
            continue
        if frame[at] == OPTION_TIMESTAMP and frame[at + 1] == STAMP_BYTES:
            return at + 2
        at += frame[at + 1]
    return 0


cdef int64_t _add_to_options(uint8_t* frame, Segment* segment, uint32_t ack_add, uint32_t echo_add) noexcept nogil:
    """To the edges of SACK and the echo of every timestamp."""
    cdef uint32_t at = segment.at + 20
    cdef uint32_t edge
    cdef int64_t grown = 0
    if _is_one_stamp(frame, segment):
        return _add(frame, segment.at, at + 8, echo_add)
    while at < segment.start and frame[at] != OPTION_END:
        if frame[at] == OPTION_NOP:
            at += 1
            continue
        if frame[at] == OPTION_TIMESTAMP and frame[at + 1] == STAMP_BYTES:
            grown += _add(frame, segment.at, at + 6, echo_add)
        elif frame[at] == OPTION_SACK:
            edge = at + 2
            while edge + 4 <= at + frame[at + 1]:
                grown += _add(frame, segment.at, edge, ack_add)
                edge += 4
        at += frame[at + 1]
    return grown


cdef void _rewrite(uint8_t* frame, Segment* segment, uint32_t ack_add, uint32_t echo_add) noexcept nogil:
    """As in `packet`."""
    cdef bint partial
    cdef int64_t grown
    cdef uint8_t* checksum = frame + segment.at + CHECKSUM_AT
    cdef uint32_t found
    if not ack_add and not echo_add:
        return
    partial = _is_partial(frame, segment)
    grown = _add(frame, segment.at, segment.at + 8, ack_add) + _add_to_options(frame, segment, ack_add, echo_add)
    if partial:
        return
    grown = (0xFFFF - <int64_t>be16(checksum) + grown) % 0xFFFF
    if grown <= 0:
        grown += 0xFFFF
    found = <uint32_t>(0xFFFF - grown)
    checksum[0], checksum[1] = found >> 8, found & 0xFF


cdef void to_guest(Known* known, uint8_t* frame, Segment* segment) noexcept nogil:
    """As `Connection.note_inbound` and `to_guest`."""
    cdef uint32_t at = _stamp_at(frame, segment)
    cdef uint32_t shown = be32(frame + at + 4) if at else 0
    cdef uint32_t echo_add = 0
    if shown:
        if not known.has_echo or distance(shown, known.echo) > 0:
            known.echo, known.has_echo = shown, True
        echo_add = known.value_add
        if known.has_advance and distance(shown, known.first_shown) >= 0:
            echo_add -= known.advance
    _rewrite(frame, segment, known.seq_add, echo_add)
