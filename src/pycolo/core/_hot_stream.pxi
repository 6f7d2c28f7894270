# The SVM's stream of a connection, in blocks that its segments fill one after the other; included by _hot.pyx.

cdef Block* _block_at(Flow* flow, uint32_t at, uint32_t* within) noexcept nogil:
    """The block with the stream's byte number `at`, which is there; from the one that was asked for last on."""
    cdef Block* block = flow.first_block
    cdef uint32_t place = flow.stream_start + at
    cdef uint32_t passed = 0
    if flow.cursor != NULL and place >= flow.cursor_place:
        block, passed = flow.cursor, flow.cursor_place
    while place - passed >= BLOCK_BYTES:
        block = block.next
        passed += BLOCK_BYTES
    flow.cursor, flow.cursor_place = block, passed
    within[0] = place - passed
    return block


cdef bint stream_append(Pool* pool, Flow* flow, const uint8_t* payload, uint32_t length) noexcept nogil:
    """False when there is no memory."""
    cdef Block* block
    cdef uint32_t part
    flow.stream_length += length
    while length:
        if flow.last_block == NULL or flow.stream_end == BLOCK_BYTES:
            block = <Block*>take_block(pool, sizeof(Block))
            if block == NULL:
                return False
            block.next = NULL
            if flow.last_block == NULL:
                flow.first_block = block
            else:
                flow.last_block.next = block
            flow.last_block = block
            flow.stream_end = 0
        part = BLOCK_BYTES - flow.stream_end
        if part > length:
            part = length
        memcpy(flow.last_block.data + flow.stream_end, payload, part)
        flow.stream_end += part
        payload += part
        length -= part
    return True


cdef bint stream_has(Flow* flow, uint32_t at, const uint8_t* payload, uint32_t length) noexcept nogil:
    """Whether these bytes stand at byte number `at`; all of that is there."""
    cdef Block* block
    cdef uint32_t within, part
    if not length:
        return True
    block = _block_at(flow, at, &within)
    while True:
        part = BLOCK_BYTES - within
        if part >= length:
            return memcmp(block.data + within, payload, length) == 0
        if memcmp(block.data + within, payload, part) != 0:
            return False
        payload += part
        length -= part
        block = block.next
        within = 0


cdef void stream_copy(Flow* flow, uint8_t* to) noexcept nogil:
    """All of it."""
    cdef Block* block = flow.first_block
    cdef uint32_t within = flow.stream_start
    cdef uint32_t left = flow.stream_length
    cdef uint32_t part
    while left:
        part = BLOCK_BYTES - within
        if part > left:
            part = left
        memcpy(to, block.data + within, part)
        to += part
        left -= part
        block = block.next
        within = 0


cdef void stream_trim(Pool* pool, Flow* flow, uint32_t surplus) noexcept nogil:
    """Forget so many bytes at the beginning."""
    cdef Block* block
    flow.stream_length -= surplus
    if not flow.stream_length:
        stream_clear(pool, flow)
        return
    flow.stream_start += surplus
    while flow.stream_start >= BLOCK_BYTES:
        block = flow.first_block
        flow.first_block = block.next
        give_block(pool, block, sizeof(Block))
        flow.stream_start -= BLOCK_BYTES
        if flow.cursor == block:
            flow.cursor = NULL
        elif flow.cursor != NULL:
            flow.cursor_place -= BLOCK_BYTES


cdef void stream_cut(Pool* pool, Flow* flow, uint32_t length) noexcept nogil:
    """Forget all but so many bytes at the beginning."""
    cdef Block* block
    cdef Block* more
    cdef uint32_t within
    if not length:
        stream_clear(pool, flow)
        return
    block = _block_at(flow, length - 1, &within)
    more = block.next
    block.next = NULL
    flow.last_block, flow.stream_end, flow.stream_length = block, within + 1, length
    while more != NULL:
        block = more
        more = block.next
        give_block(pool, block, sizeof(Block))


cdef void stream_clear(Pool* pool, Flow* flow) noexcept nogil:
    """Forget all of it."""
    cdef Block* block
    while flow.first_block != NULL:
        block = flow.first_block
        flow.first_block = block.next
        give_block(pool, block, sizeof(Block))
    flow.last_block = flow.cursor = NULL
    flow.stream_start = flow.stream_end = flow.stream_length = 0
