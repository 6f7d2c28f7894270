# Plain segments of settled connections on the secondary, with the rules of `secondary` and `connection`; included by
# _hot.pyx. A connection's numbers are in one place, in C, and the Python rules work on the same: nothing goes to and fro.
# What is retained is here as well, whoever has kept it, so that the oldest of all goes first.

cimport cython

cdef enum:
    SENT_MAX = 4096  # as in `connection`
    SENT_ROOM_IDLE = 64  # more than that is given back when nothing is on its way
    CHECKSUM_AT = 16
    STAMP_BYTES = 10

cdef struct Kept:
    Kept* chain
    Kept* before  # among all that are kept, by age
    Kept* behind
    int64_t no
    uint32_t length
    uint8_t frame[0]

cdef struct Sent:
    int64_t no
    uint32_t end

cdef struct Known:
    Known* chain
    uint64_t hashed
    const uint8_t* key
    Sent* sent  # a ring
    uint32_t sent_first
    uint32_t sent_count
    uint32_t sent_room
    int64_t last_ack_no
    uint32_t syn_value
    uint32_t seq_add
    uint32_t value_add
    uint32_t echo
    uint32_t advance
    uint32_t first_shown
    uint8_t has_last_ack
    uint8_t has_syn_value
    uint8_t has_echo
    uint8_t has_advance
    uint8_t learning
    uint8_t existed
    uint8_t was_reset
    uint8_t is_linked
    uint8_t key_length


# ---------------------------------------------------------------- what has been sent and not acknowledged

cdef bint _sent_grow(Known* known) noexcept nogil:
    cdef uint32_t room = known.sent_room * 2 if known.sent_room else 8
    cdef uint32_t at
    cdef Sent* larger = <Sent*>malloc(room * sizeof(Sent))
    if larger == NULL:
        return False
    for at in range(known.sent_count):
        larger[at] = known.sent[(known.sent_first + at) & (known.sent_room - 1)]
    free(known.sent)
    known.sent, known.sent_first, known.sent_room = larger, 0, room
    return True


cdef bint sent_push(Known* known, int64_t no, uint32_t end) noexcept nogil:
    """As a deque of SENT_MAX: the oldest makes room."""
    cdef Sent* place
    if known.sent_count == known.sent_room:
        if known.sent_room == SENT_MAX:
            known.sent_first = (known.sent_first + 1) & (SENT_MAX - 1)
            known.sent_count -= 1
        elif not _sent_grow(known):
            return False
    place = &known.sent[(known.sent_first + known.sent_count) & (known.sent_room - 1)]
    place.no, place.end = no, end
    known.sent_count += 1
    return True


cdef bint sent_pop(Known* known, uint32_t ack, int64_t* no) noexcept nogil:
    """The next one of which the client has everything; whether there is one."""
    cdef Sent* place
    if known.sent_count == 0:
        return False
    place = &known.sent[known.sent_first]
    if distance(ack, place.end) < 0:
        return False
    no[0] = place.no
    known.sent_first = (known.sent_first + 1) & (known.sent_room - 1)
    known.sent_count -= 1
    if known.sent_count == 0 and known.sent_room > SENT_ROOM_IDLE:
        free(known.sent)
        known.sent, known.sent_first, known.sent_room = NULL, 0, 0
    return True


# ---------------------------------------------------------------- one frame

cdef bint _is_datagram(const uint8_t* frame, uint32_t length) noexcept nogil:
    """UDP over IPv4 or IPv6 without tags, options or extensions: nothing to translate, and to be retained."""
    if length < 54:
        return False
    if be16(frame + 12) == 0x0800:
        return (frame[14] == 0x45 and frame[23] == 17 and not frame[20] & 0x80
                and 20 <= be16(frame + 16) <= length - 14)
    return be16(frame + 12) == 0x86DD and frame[14] >> 4 == 6 and frame[20] == 17 and be16(frame + 18) <= length - 54


cdef inline void put32(uint8_t* place, uint32_t value) noexcept nogil:
    place[0], place[1], place[2], place[3] = value >> 24, value >> 16 & 0xFF, value >> 8 & 0xFF, value & 0xFF


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


# ---------------------------------------------------------------- the state of one connection

@cython.no_gc_clear
cdef class ConnectionState:
    """The attributes of `connection.Connection`; in the table from its beginning until `leave`."""

    cdef Known _known
    cdef HotConnections _table
    cdef bytes _key
    cdef public object isn
    cdef public object client_first
    cdef public bint guest_fin
    cdef public bint client_fin

    def __cinit__(self, HotConnections table, bytes key):
        self._table, self._key = table, key
        self._known.existed = True
        self._known.key, self._known.key_length = key, <uint8_t>min(len(key), 255)
        table._link(&self._known)

    def __dealloc__(self):
        if self._known.is_linked:
            self._table._unlink_known(&self._known)
        free(self._known.sent)

    def leave(self):
        """Nothing that comes is of this connection any more."""
        if self._known.is_linked:
            self._table._unlink_known(&self._known)

    def note_sent(self, nos, end):
        for no in nos:
            if not sent_push(&self._known, no, end):
                raise MemoryError

    def take_acknowledged(self, uint32_t ack):
        cdef int64_t no
        nos = []
        while sent_pop(&self._known, ack, &no):
            nos.append(no)
        return nos

    def sent_nos(self):
        cdef Known* known = &self._known
        return [known.sent[(known.sent_first + at) & (known.sent_room - 1)].no for at in range(known.sent_count)]

    @property
    def last_ack_no(self):
        return self._known.last_ack_no if self._known.has_last_ack else None

    @last_ack_no.setter
    def last_ack_no(self, no):
        self._known.last_ack_no, self._known.has_last_ack = no or 0, no is not None

    @property
    def syn_value(self):
        return self._known.syn_value if self._known.has_syn_value else None

    @syn_value.setter
    def syn_value(self, value):
        self._known.syn_value, self._known.has_syn_value = value or 0, value is not None

    @property
    def echo(self):
        return self._known.echo if self._known.has_echo else None

    @echo.setter
    def echo(self, value):
        self._known.echo, self._known.has_echo = value or 0, value is not None

    @property
    def advance(self):
        return self._known.advance if self._known.has_advance else None

    @advance.setter
    def advance(self, ticks):
        self._known.advance, self._known.has_advance = ticks or 0, ticks is not None

    @property
    def seq_add(self):
        return self._known.seq_add

    @seq_add.setter
    def seq_add(self, uint32_t added):
        self._known.seq_add = added

    @property
    def value_add(self):
        return self._known.value_add

    @value_add.setter
    def value_add(self, uint32_t added):
        self._known.value_add = added

    @property
    def first_shown(self):
        return self._known.first_shown

    @first_shown.setter
    def first_shown(self, uint32_t value):
        self._known.first_shown = value

    @property
    def learning(self):
        return <bint>self._known.learning

    @learning.setter
    def learning(self, bint value):
        self._known.learning = value

    @property
    def existed(self):
        return <bint>self._known.existed

    @existed.setter
    def existed(self, bint value):
        self._known.existed = value

    @property
    def reset(self):
        return <bint>self._known.was_reset

    @reset.setter
    def reset(self, bint value):
        self._known.was_reset = value


# ---------------------------------------------------------------- all connections of a card, and what is retained

cdef class HotConnections:
    """Finds connections while they live (`ConnectionState` owns them), and is a `retained.Retention`."""

    cdef Known** _table
    cdef size_t _size
    cdef size_t _count
    cdef uint64_t _seed
    cdef Kept** _kept
    cdef size_t _kept_size
    cdef Kept* _oldest
    cdef Kept* _newest
    cdef Buffer _out
    cdef int64_t _frames_max
    cdef int64_t _bytes_max
    cdef readonly int64_t kept_frames
    cdef readonly int64_t kept_bytes

    def __cinit__(self, uint64_t seed, int64_t frames_max, int64_t bytes_max):
        self._seed, self._frames_max, self._bytes_max = seed, frames_max, bytes_max
        self._size = self._kept_size = 1024
        self._table = <Known**>calloc(self._size, sizeof(Known*))
        self._kept = <Kept**>calloc(self._kept_size, sizeof(Kept*))
        if self._table == NULL or self._kept == NULL:
            raise MemoryError

    def __dealloc__(self):
        if self._kept != NULL:
            self.clear()
        free(self._table)
        free(self._kept)
        free(self._out.data)

    def __len__(self):
        return self._count

    # ---------------------------------------------------------------- the table

    cdef int _link(self, Known* known) except -1:
        if known.key_length != 12 and known.key_length != 36:
            return 0  # with VLAN tags, which `parse` does not look behind
        if self._count >= self._size:
            self._grow()
        known.hashed = hash_of(known.key, known.key_length, self._seed)
        known.chain = self._table[known.hashed & (self._size - 1)]
        self._table[known.hashed & (self._size - 1)] = known
        known.is_linked = True
        self._count += 1
        return 0

    cdef void _unlink_known(self, Known* known) noexcept nogil:
        cdef Known** place = &self._table[known.hashed & (self._size - 1)]
        while place[0] != known:
            place = &place[0].chain
        place[0] = known.chain
        known.is_linked = False
        self._count -= 1

    cdef int _grow(self) except -1:
        cdef size_t size = self._size * 2
        cdef size_t place
        cdef Known* known
        cdef Known** larger = <Known**>calloc(size, sizeof(Known*))
        if larger == NULL:
            raise MemoryError
        for place in range(self._size):
            while self._table[place] != NULL:
                known = self._table[place]
                self._table[place] = known.chain
                known.chain = larger[known.hashed & (size - 1)]
                larger[known.hashed & (size - 1)] = known
        free(self._table)
        self._table, self._size = larger, size
        return 0

    cdef Known* _find(self, Segment* segment) noexcept nogil:
        cdef uint64_t hashed = hash_of(segment.key, segment.key_length, self._seed)
        cdef Known* known = self._table[hashed & (self._size - 1)]
        while known != NULL:
            if known.hashed == hashed and known.key_length == segment.key_length:
                if memcmp(known.key, segment.key, segment.key_length) == 0:
                    return known
            known = known.chain
        return NULL

    # ---------------------------------------------------------------- what is retained

    cdef Kept** _kept_place(self, int64_t no) noexcept nogil:
        """Where the one with this number is pointed to from, or would be."""
        cdef uint64_t mixed = (<uint64_t>no ^ self._seed) * <uint64_t>0x9E3779B97F4A7C15
        cdef Kept** place = &self._kept[(mixed ^ (mixed >> 32)) & (self._kept_size - 1)]
        while place[0] != NULL and place[0].no != no:
            place = &place[0].chain
        return place

    cdef bint _kept_grow(self) noexcept nogil:
        cdef Kept** larger = <Kept**>calloc(2 * self._kept_size, sizeof(Kept*))
        cdef Kept** place
        cdef Kept* kept = self._oldest
        if larger == NULL:
            return False
        free(self._kept)
        self._kept = larger
        self._kept_size *= 2
        while kept != NULL:
            kept.chain = NULL
            place = self._kept_place(kept.no)
            place[0] = kept
            kept = kept.behind
        return True

    cdef void _free_kept(self, Kept** place) noexcept nogil:
        cdef Kept* kept = place[0]
        place[0] = kept.chain
        if kept.before != NULL:
            kept.before.behind = kept.behind
        else:
            self._oldest = kept.behind
        if kept.behind != NULL:
            kept.behind.before = kept.before
        else:
            self._newest = kept.before
        self.kept_frames -= 1
        self.kept_bytes -= kept.length
        free(kept)

    cdef void _drop(self, int64_t no) noexcept nogil:
        cdef Kept** place = self._kept_place(no)
        if place[0] != NULL:
            self._free_kept(place)

    cdef bint _keep(self, int64_t no, const uint8_t* frame, uint32_t length) noexcept nogil:
        """As `Retained.keep`."""
        cdef Kept* kept
        cdef Kept** place
        self._drop(no)
        if self.kept_frames >= <int64_t>self._kept_size and not self._kept_grow():
            return False
        kept = <Kept*>malloc(sizeof(Kept) + length)
        if kept == NULL:
            return False
        kept.chain, kept.before, kept.behind = NULL, self._newest, NULL
        kept.no, kept.length = no, length
        memcpy(kept.frame, frame, length)
        place = self._kept_place(no)
        place[0] = kept
        if self._newest != NULL:
            self._newest.behind = kept
        else:
            self._oldest = kept
        self._newest = kept
        self.kept_frames += 1
        self.kept_bytes += length
        while self._oldest != NULL and (self.kept_frames > self._frames_max or self.kept_bytes > self._bytes_max):
            self._free_kept(self._kept_place(self._oldest.no))
        return True

    def keep(self, int64_t no, bytes frame):
        cdef const uint8_t* text = frame
        if not self._keep(no, text, <uint32_t>len(frame)):
            raise MemoryError

    def drop(self, int64_t no):
        self._drop(no)

    def take(self):
        frames = []
        cdef Kept* kept = self._oldest
        while kept != NULL:
            frames.append((<char*>kept.frame)[:kept.length])
            kept = kept.behind
        self.clear()
        return frames

    cpdef clear(self):
        while self._oldest != NULL:
            self._free_kept(self._kept_place(self._oldest.no))

    # ---------------------------------------------------------------- one frame

    cdef Done _inbound(self, const uint8_t* frame, uint32_t length) noexcept nogil:
        """As `SecondaryDataplane._client_frame`."""
        cdef Segment segment
        cdef Known* known
        cdef size_t place = self._out.length + PREFIX
        cdef int64_t no
        if not parse(frame, length, &segment, True):
            if not _is_datagram(frame, length):
                return SLOW
            return HANDLED if put(&self._out, frame, length) else NO_MEMORY
        known = self._find(&segment)
        if known != NULL and (known.learning or known.has_syn_value):
            return SLOW
        if not put(&self._out, frame, length):
            return NO_MEMORY
        if known == NULL or not known.existed:
            return HANDLED
        to_guest(known, self._out.data + place, &segment)
        while sent_pop(known, segment.ack + known.seq_add, &no):
            self._drop(no)
        return HANDLED

    cdef Done _outbound(self, int64_t no, const uint8_t* frame, uint32_t length) noexcept nogil:
        """As `SecondaryDataplane._svm_frame`."""
        cdef Segment segment
        cdef Known* known
        cdef uint32_t payload
        if not parse(frame, length, &segment, False):
            if not _is_datagram(frame, length):
                return SLOW
            return HANDLED if self._keep(no, frame, length) else NO_MEMORY
        known = self._find(&segment)
        if known == NULL or known.learning:
            return SLOW
        if not self._keep(no, frame, length):
            return NO_MEMORY
        known.was_reset = False
        payload = segment.end - segment.start
        if payload:
            return HANDLED if sent_push(known, no, segment.seq + payload) else NO_MEMORY
        if known.has_last_ack:
            self._drop(known.last_ack_no)
        known.last_ack_no, known.has_last_ack = no, True
        return HANDLED

    # ---------------------------------------------------------------- many frames

    def inbound(self, const uint8_t[::1] packed, size_t at):
        """A client's frames from place `at` on, until one is for the Python rules: (its place or the end, whether it is
        there). What comes of the others, and of what is said in between, gives `take_out`.
        """
        cdef size_t size = packed.shape[0]
        cdef uint32_t length
        cdef Done done = HANDLED
        if at == 0:
            self._out.length = 0
        with nogil:
            while at + PREFIX <= size:
                length = be32(&packed[at])
                if length > FRAME_MAX or at + PREFIX + length > size:
                    at = size
                    break
                done = self._inbound(&packed[at] + PREFIX, length)
                if done != HANDLED:
                    break
                at += PREFIX + length
        if done == NO_MEMORY:
            raise MemoryError
        return at, done == SLOW

    def outbound(self, const uint8_t[::1] packed, size_t at, int64_t no):
        """As `inbound`, of the SVM's frames, the first of which has the number `no`: (place, its number, whether)."""
        cdef size_t size = packed.shape[0]
        cdef uint32_t length
        cdef Done done = HANDLED
        with nogil:
            while at + PREFIX <= size:
                length = be32(&packed[at])
                if length > FRAME_MAX or at + PREFIX + length > size:
                    at = size
                    break
                done = self._outbound(no, &packed[at] + PREFIX, length)
                if done != HANDLED:
                    break
                at += PREFIX + length
                no += 1
        if done == NO_MEMORY:
            raise MemoryError
        return at, no, done == SLOW

    def say(self, bytes frame):
        """Something else comes in between."""
        cdef const uint8_t* text = frame
        if not put(&self._out, text, <uint32_t>len(frame)):
            raise MemoryError

    def take_out(self):
        """What has come since `inbound` began at place 0, packed."""
        if not self._out.length:
            return b""
        taken = (<char*>self._out.data)[:self._out.length]
        self._out.length = 0
        return taken
