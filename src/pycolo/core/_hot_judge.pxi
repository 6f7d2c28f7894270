# What the PVM's segments are by the SVM's stream; included by _hot.pyx.

cdef Verdict judge_payload(Flow* flow, uint32_t seq, const uint8_t* payload, uint32_t length) noexcept nogil:
    cdef int32_t below, at
    cdef int64_t low, high
    if flow.has_acked:
        below = distance(flow.acked, seq)
        if below > 0:
            if <uint32_t>below >= length:
                return RELEASE
            seq, payload, length = seq + below, payload + below, length - below
    at = distance(seq + flow.delta, flow.base)
    if at >= 0 and <int64_t>at + length <= flow.stream_length:
        return RELEASE if stream_has(flow, at, payload, length) else DIVERGED
    low = -<int64_t>at if at < 0 else 0
    high = <int64_t>flow.stream_length - at
    if high > length:
        high = length
    if high > low and not stream_has(flow, <uint32_t>(at + low), payload + low, <uint32_t>(high - low)):
        return DIVERGED
    return WAIT


cdef Verdict judge(Flow* flow, uint32_t seq, uint32_t ack, const uint8_t* payload, uint32_t length) noexcept nogil:
    cdef Verdict verdict
    if length:
        verdict = judge_payload(flow, seq, payload, length)
        if verdict != RELEASE:
            return verdict
    return RELEASE if distance(flow.svm_ack, ack) >= 0 else WAIT
