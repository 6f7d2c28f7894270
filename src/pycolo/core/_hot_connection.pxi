# What the secondary knows of one connection, and what is on its way there: the state of `connection.Connection` in C;
# included by _hot_secondary.pxi.

cimport cython

cdef enum:
    SENT_MAX = 4096  # as in `connection`
    SENT_ROOM_IDLE = 64  # more than that is given back when nothing is on its way

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
