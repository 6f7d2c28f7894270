# Where frames go that leave: packed, in memory that is handed over without a copy; included by _hot.pyx.

from cpython.buffer cimport PyBuffer_FillInfo

cdef enum:
    SPARE_MAX = 4
    SPARE_BYTES_MAX = 1 << 20  # a larger one is not kept

cdef Buffer _spare[SPARE_MAX]
cdef int _spares = 0


cdef class PackedBuffer:
    """A packed batch; its memory is used again once nobody refers to it."""

    cdef Buffer _buffer

    def __getbuffer__(self, Py_buffer* view, int flags):
        PyBuffer_FillInfo(view, self, self._buffer.data, <Py_ssize_t>self._buffer.length, 1, flags)

    def __dealloc__(self):
        global _spares
        if self._buffer.data == NULL:
            return
        if _spares < SPARE_MAX and self._buffer.room <= SPARE_BYTES_MAX:
            self._buffer.length = 0
            _spare[_spares] = self._buffer
            _spares += 1
        else:
            free(self._buffer.data)


cdef object hand_over(Buffer* out):
    """What is in `out` as a memoryview; `out` is empty then."""
    global _spares
    cdef PackedBuffer packed
    if not out.length:
        return b""
    packed = PackedBuffer.__new__(PackedBuffer)
    packed._buffer = out[0]
    memset(out, 0, sizeof(Buffer))
    if _spares:
        _spares -= 1
        out[0] = _spare[_spares]
    return memoryview(packed)


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
    put32(place, length)
    memcpy(place + PREFIX, frame, length)
    out.length = needed
    return True


def measure(const uint8_t[::1] packed, size_t at, int64_t frames_max):
    """As `packed.measure_in_python`."""
    cdef size_t size = packed.shape[0]
    cdef int64_t count = 0
    cdef int64_t length
    with nogil:
        while count < frames_max:
            length = length_of(&packed[0], at, size) if size else -1
            if length < 0:
                break
            at += PREFIX + <size_t>length
            count += 1
    return at, count
