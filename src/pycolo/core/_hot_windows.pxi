# The table of `receive_windows` with the plain segments of both sides; included by _hot.pyx.

cdef enum:
    PARKED_OVERHEAD = 100  # as in `receive_windows`
    PARKED_MAX = 4096
    WINDOW_FIELD_MAX = 65535

cdef struct Parked:
    Parked* next
    Parked* before
    uint32_t ends
    uint32_t length
    uint8_t frame[0]

cdef struct Window:
    Window* chain
    Window* older
    Window* newer
    Window* waiting_before  # among those for which something waits
    Window* waiting_behind
    Parked* first  # by where they end
    Parked* last
    uint64_t hashed
    uint64_t loads
    uint32_t edge
    uint32_t parked
    uint8_t has_edge
    uint8_t scale
    uint8_t key_length
    uint8_t key[KEY_BYTES]


cdef class HotWindows:
    """As `receive_windows.Windows`. `seed` keeps clients from choosing ports that collide in the table."""

    cdef Window** _table
    cdef size_t _size
    cdef size_t _count
    cdef size_t _flows_max
    cdef uint64_t _seed
    cdef int64_t _parked_bytes
    cdef int64_t _parked_bytes_max
    cdef Window* _oldest
    cdef Window* _newest
    cdef Window* _waiting  # those for which something waits
    cdef uint64_t _loads
    cdef Buffer _out
    cdef Buffer _freed

    def __cinit__(self, size_t flows_max, int64_t parked_bytes_max, uint64_t seed):
        self._flows_max, self._parked_bytes_max, self._seed = flows_max, parked_bytes_max, seed
        self._size = 64
        while self._size < flows_max and self._size < 1 << 17:
            self._size *= 2
        self._table = <Window**>calloc(self._size, sizeof(Window*))
        if self._table == NULL:
            raise MemoryError

    def __dealloc__(self):
        while self._oldest != NULL:
            self._forget(self._oldest)
        free(self._table)
        free(self._out.data)
        free(self._freed.data)

    def __len__(self):
        return self._count

    # ---------------------------------------------------------------- the table

    cdef Window* _find(self, const uint8_t* key, uint32_t length) noexcept nogil:
        cdef uint64_t hashed = hash_of(key, length, self._seed)
        cdef Window* window = self._table[hashed & (self._size - 1)]
        while window != NULL:
            if window.hashed == hashed and window.key_length == length and memcmp(window.key, key, length) == 0:
                return window
            window = window.chain
        return NULL

    cdef Window* _by_key(self, bytes key):
        cdef const uint8_t* text = key
        cdef uint8_t[KEY_BYTES] padded  # as in the table: hashing takes four bytes at a time
        if len(key) > KEY_BYTES:
            return NULL
        memset(padded, 0, KEY_BYTES)
        memcpy(padded, text, len(key))
        return self._find(padded, <uint32_t>len(key))

    cdef void _take_first(self, Window* window) noexcept nogil:
        """The first of what waits is gone."""
        cdef Parked* parked = window.first
        window.first = parked.next
        window.parked -= 1
        self._parked_bytes -= parked.length + PARKED_OVERHEAD
        free(parked)
        if window.first != NULL:
            window.first.before = NULL
            return
        window.last = NULL
        if window.waiting_before != NULL:
            window.waiting_before.waiting_behind = window.waiting_behind
        else:
            self._waiting = window.waiting_behind
        if window.waiting_behind != NULL:
            window.waiting_behind.waiting_before = window.waiting_before

    cdef void _clear(self, Window* window) noexcept nogil:
        """All of it is gone."""
        while window.first != NULL:
            self._take_first(window)

    cdef void _forget(self, Window* window) noexcept nogil:
        cdef Window** place = &self._table[window.hashed & (self._size - 1)]
        while place[0] != window:
            place = &place[0].chain
        place[0] = window.chain
        if window.older != NULL:
            window.older.newer = window.newer
        else:
            self._oldest = window.newer
        if window.newer != NULL:
            window.newer.older = window.older
        else:
            self._newest = window.older
        self._count -= 1
        self._clear(window)
        free(window)

    cdef bint _is_beyond(self, Window* window, uint32_t ends) noexcept nogil:
        return window.has_edge and window.loads == self._loads and distance(ends, window.edge) > 0

    cdef bint _free_parked(self, Window* window) noexcept nogil:
        """What the SVM takes by now goes to `_freed`; False when there is no memory."""
        cdef Parked* parked
        while window.first != NULL:
            parked = window.first
            if self._is_beyond(window, parked.ends):
                break
            if not put(&self._freed, parked.frame, parked.length):
                return False
            self._take_first(window)
        return True

    def open(self, bytes key, uint8_t scale):
        cdef const uint8_t* text = key
        cdef Window* window
        self.drop(key)
        if len(key) > KEY_BYTES or not self._flows_max:
            return
        if self._count >= self._flows_max:
            self._drop(self._oldest)
        window = <Window*>calloc(1, sizeof(Window))
        if window == NULL:
            raise MemoryError
        window.key_length, window.scale = <uint8_t>len(key), scale
        memcpy(window.key, text, window.key_length)
        window.hashed = hash_of(window.key, window.key_length, self._seed)
        window.chain = self._table[window.hashed & (self._size - 1)]
        self._table[window.hashed & (self._size - 1)] = window
        window.older = self._newest
        if self._newest != NULL:
            self._newest.newer = window
        else:
            self._oldest = window
        self._newest = window
        self._count += 1

    def unscale(self, bytes key):
        cdef Window* window = self._by_key(key)
        if window != NULL:
            window.scale = 0

    cdef int _drop(self, Window* window) except -1:
        window.has_edge = False
        if not self._free_parked(window):
            raise MemoryError
        self._forget(window)
        return 0

    def drop(self, bytes key):
        cdef Window* window = self._by_key(key)
        if window != NULL:
            self._drop(window)

    def give_up(self):
        while self._oldest != NULL:
            self._drop(self._oldest)

    def loaded(self):
        while self._waiting != NULL:
            self._clear(self._waiting)
        self._freed.length = 0
        self._loads += 1

    def take_freed(self):
        return hand_over(&self._freed)

    def take_out(self):
        return hand_over(&self._out)

    # ---------------------------------------------------------------- one segment

    cdef bint _note(self, Window* window, uint32_t edge) noexcept nogil:
        if window.has_edge and window.loads == self._loads and distance(edge, window.edge) <= 0:
            return True
        window.edge, window.has_edge, window.loads = edge, True, self._loads
        return self._free_parked(window)

    def note(self, bytes key, uint32_t ack, uint32_t field, *, bint scaled):
        cdef Window* window = self._by_key(key)
        if window != NULL and not self._note(window, ack + (field << (window.scale if scaled else 0))):
            raise MemoryError

    cdef bint _takes(self, Window* window, uint32_t ends) noexcept nogil:
        if window == NULL or not self._is_beyond(window, ends):
            return True
        if distance(ends, window.edge) > <int32_t>(<uint32_t>WINDOW_FIELD_MAX << window.scale):
            return True
        return window.parked >= PARKED_MAX or self._parked_bytes >= self._parked_bytes_max

    cdef bint _park(self, Window* window, uint32_t ends, const uint8_t* frame, uint32_t length) noexcept nogil:
        cdef Parked* behind = window.last
        cdef Parked* parked = <Parked*>malloc(sizeof(Parked) + length)
        if parked == NULL:
            return False
        parked.ends, parked.length = ends, length
        memcpy(parked.frame, frame, length)
        if window.first == NULL:
            window.waiting_before, window.waiting_behind = NULL, self._waiting
            if self._waiting != NULL:
                self._waiting.waiting_before = window
            self._waiting = window
        while behind != NULL and distance(behind.ends, ends) > 0:
            behind = behind.before
        parked.before = behind
        if behind == NULL:
            parked.next = window.first
            window.first = parked
        else:
            parked.next = behind.next
            behind.next = parked
        if parked.next == NULL:
            window.last = parked
        else:
            parked.next.before = parked
        window.parked += 1
        self._parked_bytes += length + PARKED_OVERHEAD
        return True

    def admits(self, bytes key, uint32_t ends, bytes frame):
        cdef const uint8_t* text = frame
        cdef Window* window = self._by_key(key)
        if self._takes(window, ends):
            return True
        if not self._park(window, ends, text, <uint32_t>len(frame)):
            raise MemoryError
        return False

    def say(self, bytes frame):
        """This one is fed."""
        cdef const uint8_t* text = frame
        if not put(&self._out, text, <uint32_t>len(frame)):
            raise MemoryError

    # ---------------------------------------------------------------- many frames

    cdef Done _client(self, const uint8_t* frame, uint32_t length) noexcept nogil:
        cdef Segment segment
        cdef Window* window
        cdef uint32_t ends
        if not parse(frame, length, &segment, True):
            return SLOW
        window = self._find(segment.key, segment.key_length)
        ends = segment.seq + segment.end - segment.start
        if self._takes(window, ends):
            return HANDLED if put(&self._out, frame, length) else NO_MEMORY
        return HANDLED if self._park(window, ends, frame, length) else NO_MEMORY

    cdef Done _svm(self, const uint8_t* frame, uint32_t length) noexcept nogil:
        cdef Segment segment
        cdef Window* window
        if not parse(frame, length, &segment, False):
            return SLOW
        window = self._find(segment.key, segment.key_length)
        if window != NULL:
            if not self._note(window, segment.ack + (be16(frame + segment.at + 14) << window.scale)):
                return NO_MEMORY
        return HANDLED

    def run(self, bint inbound, const uint8_t[::1] packed, size_t at):
        """Frames from place `at` on, of clients or of the SVM, until one is not plain: (its place or the end, whether
        there is one).
        """
        cdef size_t size = packed.shape[0]
        cdef int64_t length
        cdef const uint8_t* frame
        cdef Done done = HANDLED
        with nogil:
            while at < size:
                length = length_of(&packed[0], at, size)
                if length < 0:
                    at = size
                    break
                frame = &packed[at] + PREFIX
                done = self._client(frame, <uint32_t>length) if inbound else self._svm(frame, <uint32_t>length)
                if done != HANDLED:
                    break
                at += PREFIX + <size_t>length
        if done == NO_MEMORY:
            raise MemoryError
        return at, done == SLOW
