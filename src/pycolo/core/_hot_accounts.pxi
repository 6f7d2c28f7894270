# The accounts of `overheard`; included by _hot.pyx.

cdef struct Account:
    Account* chain
    Account* before  # by when they were booked last
    Account* behind
    uint64_t hashed
    double since_ms
    int32_t count
    uint32_t length
    uint8_t* frame  # what it is as long as `count` is positive


cdef extern from *:
    """
    static inline uint64_t folded(uint64_t a, uint64_t b) {
        unsigned __int128 product = (unsigned __int128)a * b;
        return (uint64_t)product ^ (uint64_t)(product >> 64);
    }
    """
    uint64_t folded(uint64_t a, uint64_t b) nogil


cdef uint64_t hash_of_frame(const uint8_t* frame, uint32_t length, uint64_t seed) noexcept nogil:
    """Four words at a time, as each multiplication has to wait for the one before it; keyed by what each word is
    multiplied with, which nobody else knows.
    """
    cdef uint64_t secret = folded(seed ^ <uint64_t>0x9E3779B97F4A7C15, <uint64_t>0xBF58476D1CE4E5B9) | 1
    cdef uint64_t other = folded(seed ^ <uint64_t>0x94D049BB133111EB, <uint64_t>0x9E3779B97F4A7C15) | 1
    cdef uint64_t a = seed ^ length
    cdef uint64_t b = other
    cdef uint64_t c = ~seed
    cdef uint64_t d = secret
    cdef uint64_t[4] words
    cdef uint32_t at = 0
    while True:
        memset(words, 0, 32)
        memcpy(words, frame + at, 32 if at + 32 <= length else length - at)
        a, b = folded(a ^ words[0], secret), folded(b ^ words[1], other)
        c, d = folded(c ^ words[2], secret), folded(d ^ words[3], other)
        at += 32
        if at >= length:
            return folded(folded(folded(a ^ b, secret) ^ c, other) ^ d, secret)


cdef class HotAccounts:
    """As `overheard.Accounts`. `seed` is random, so that nobody knows which frames look alike."""

    cdef Account** _table
    cdef size_t _size
    cdef size_t _count
    cdef size_t _frames_max
    cdef double _age_ms_max
    cdef uint64_t _seed
    cdef Account* _oldest
    cdef Account* _newest

    def __cinit__(self, size_t frames_max, double age_ms_max, uint64_t seed):
        self._frames_max, self._age_ms_max, self._seed = frames_max, age_ms_max, seed
        self._size = 64
        while self._size < frames_max:
            self._size *= 2
        self._table = <Account**>calloc(self._size, sizeof(Account*))
        if self._table == NULL:
            raise MemoryError

    def __dealloc__(self):
        while self._oldest != NULL:
            self._close(self._oldest)
        free(self._table)

    def __len__(self):
        return self._count

    cdef void _unlink(self, Account* account) noexcept nogil:
        if account.before != NULL:
            account.before.behind = account.behind
        else:
            self._oldest = account.behind
        if account.behind != NULL:
            account.behind.before = account.before
        else:
            self._newest = account.before

    cdef void _link(self, Account* account) noexcept nogil:
        account.before, account.behind = self._newest, NULL
        if self._newest != NULL:
            self._newest.behind = account
        else:
            self._oldest = account
        self._newest = account

    cdef void _close(self, Account* account) noexcept nogil:
        cdef Account** place = &self._table[account.hashed & (self._size - 1)]
        while place[0] != account:
            place = &place[0].chain
        place[0] = account.chain
        self._unlink(account)
        self._count -= 1
        free(account.frame)
        free(account)

    cdef bint _book(self, const uint8_t* frame, uint32_t length, int32_t difference, double now_ms) noexcept nogil:
        cdef uint64_t hashed = hash_of_frame(frame, length, self._seed)
        cdef Account* account = self._table[hashed & (self._size - 1)]
        while account != NULL and (account.hashed != hashed or account.length != length):
            account = account.chain
        if account == NULL:
            account = <Account*>calloc(1, sizeof(Account))
            if account == NULL:
                return False
            account.hashed, account.length, account.since_ms = hashed, length, now_ms
            account.chain = self._table[hashed & (self._size - 1)]
            self._table[hashed & (self._size - 1)] = account
            self._count += 1
        else:
            self._unlink(account)
        self._link(account)
        account.count += difference
        if account.count == 0:
            self._close(account)
        elif account.count > 0 and account.frame == NULL:
            account.frame = <uint8_t*>malloc(length + 1)
            if account.frame == NULL:
                return False
            memcpy(account.frame, frame, length)
        return True

    cdef void _forget_old(self, double now_ms) noexcept nogil:
        while self._oldest != NULL:
            if self._count <= self._frames_max and now_ms - self._oldest.since_ms <= self._age_ms_max:
                break
            self._close(self._oldest)

    def book(self, const uint8_t[::1] packed, int32_t difference, double now_ms, bytes but_from):
        cdef const uint8_t* mac = but_from
        cdef bint some = len(but_from) == 6
        cdef size_t size = packed.shape[0]
        cdef size_t at = 0
        cdef int64_t length
        cdef const uint8_t* frame
        cdef bint fits = True
        with nogil:
            while fits and at < size:
                length = length_of(&packed[0], at, size)
                if length < 0:
                    break
                frame = &packed[at] + PREFIX
                if not some or length < 12 or memcmp(frame + 6, mac, 6) != 0:
                    fits = self._book(frame, <uint32_t>length, difference, now_ms)
                at += PREFIX + <size_t>length
            self._forget_old(now_ms)
        if not fits:
            raise MemoryError

    def missed(self, double now_ms):
        cdef Account* account
        frames = []
        self._forget_old(now_ms)
        account = self._oldest
        while account != NULL and <size_t>len(frames) < self._frames_max:
            if account.count > 0:
                count = min(account.count, self._frames_max - <size_t>len(frames))
                frames.extend([(<char*>account.frame)[:account.length]] * count)
            account = account.behind
        while self._oldest != NULL:
            self._close(self._oldest)
        return frames
