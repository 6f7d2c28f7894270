# The SVM's stream, what the PVM's segments are by it, and where those go that leave; included by _hot.pyx.

cdef bint _stream_append(Flow* flow, const uint8_t* payload, uint32_t length) noexcept nogil:
    cdef uint32_t room
    cdef uint8_t* larger
    if flow.stream_start + flow.stream_length + length > flow.stream_room:
        if flow.stream_start and (flow.stream_start >= flow.stream_length or flow.stream_length == 0):
            memmove(flow.stream, flow.stream + flow.stream_start, flow.stream_length)
            flow.stream_start = 0
        if flow.stream_start + flow.stream_length + length > flow.stream_room:
            room = 2 * (flow.stream_start + flow.stream_length + length)
            larger = <uint8_t*>realloc(flow.stream, room)
            if larger == NULL:
                return False
            flow.stream, flow.stream_room = larger, room
    memcpy(flow.stream + flow.stream_start + flow.stream_length, payload, length)
    flow.stream_length += length
    return True


cdef Verdict judge_payload(Flow* flow, uint32_t seq, const uint8_t* payload, uint32_t length) noexcept nogil:
    cdef int32_t below, at
    cdef int64_t low, high
    cdef const uint8_t* main = flow.stream + flow.stream_start
    if flow.has_acked:
        below = distance(flow.acked, seq)
        if below > 0:
            if <uint32_t>below >= length:
                return RELEASE
            seq, payload, length = seq + below, payload + below, length - below
    at = distance(seq + flow.delta, flow.base)
    if at >= 0 and <int64_t>at + length <= flow.stream_length:
        return RELEASE if memcmp(main + at, payload, length) == 0 else DIVERGED
    low = -<int64_t>at if at < 0 else 0
    high = <int64_t>flow.stream_length - at
    if high > length:
        high = length
    if high > low and memcmp(main + at + low, payload + low, <size_t>(high - low)) != 0:
        return DIVERGED
    return WAIT


cdef Verdict judge(Flow* flow, uint32_t seq, uint32_t ack, const uint8_t* payload, uint32_t length) noexcept nogil:
    cdef Verdict verdict
    if length:
        verdict = judge_payload(flow, seq, payload, length)
        if verdict != RELEASE:
            return verdict
    return RELEASE if distance(flow.svm_ack, ack) >= 0 else WAIT


cdef bint put(Buffer* out, const uint8_t* frame, uint32_t length) noexcept nogil:
    """Append a frame to a packed buffer."""
    cdef size_t needed = out.length + PREFIX + length
    cdef uint8_t* larger
    cdef uint8_t* place
    if needed > out.room:
        larger = <uint8_t*>realloc(out.data, 2 * needed)
        if larger == NULL:
            return False
        out.data, out.room = larger, 2 * needed
    place = out.data + out.length
    place[0], place[1], place[2], place[3] = length >> 24, length >> 16 & 0xFF, length >> 8 & 0xFF, length & 0xFF
    memcpy(place + PREFIX, frame, length)
    out.length = needed
    return True
