# Memory for connections, held frames and streams: blocks of a few sizes that are used again; included by _hot.pyx.
#
# The allocator of the C library gives the top of its heap back and takes it again with every batch, and each new page
# costs more than copying what it holds. Here slabs of 64 KiB have blocks of one size each; they are cut from regions
# that ask for huge pages, and an empty slab serves any size. Regions are given back with the pool.

cdef extern from "<sys/mman.h>" nogil:
    int madvise(void* start, size_t length, int advice)
    int MADV_HUGEPAGE

cdef extern from "<stdlib.h>" nogil:
    void* aligned_alloc(size_t alignment, size_t size)

cdef enum:
    REGION_BYTES = 1 << 21
    SLAB_BYTES = 1 << 16
    SLAB_HEADER_BYTES = 64
    SIZES = 6

# No powers of two: blocks that lie so far apart would meet in few lines of the processor's caches.
cdef uint32_t BLOCK_SIZES[SIZES]
BLOCK_SIZES[:] = [192, 320, 704, 1088, 1728, 4416]

cdef struct Slab:
    Slab* next
    Slab* before
    void* free  # blocks given back, each with the address of the next
    uint32_t used
    uint32_t fresh  # where the part begins that was never used
    uint32_t size

cdef struct Region:
    Region* next
    void* start

cdef struct Pool:
    Slab* open[SIZES]  # slabs of each size that have room
    Slab* empty
    Region* regions


cdef inline int _size_class(size_t size) noexcept nogil:
    cdef int which = 0
    while which < SIZES and BLOCK_SIZES[which] < size:
        which += 1
    return which


cdef bint _pool_more(Pool* pool) noexcept nogil:
    """Take another region."""
    cdef Region* region = <Region*>malloc(sizeof(Region))
    cdef uint8_t* start
    cdef Slab* slab
    cdef size_t at = REGION_BYTES
    if region == NULL:
        return False
    start = <uint8_t*>aligned_alloc(REGION_BYTES, REGION_BYTES)
    if start == NULL:
        free(region)
        return False
    madvise(start, REGION_BYTES, MADV_HUGEPAGE)  # advice: without huge pages it works as well
    region.start, region.next = start, pool.regions
    pool.regions = region
    while at:
        at -= SLAB_BYTES
        slab = <Slab*>(start + at)
        slab.next = pool.empty
        pool.empty = slab
    return True


cdef void* take_block(Pool* pool, size_t size) noexcept nogil:
    """NULL when there is no memory."""
    cdef int which = _size_class(size)
    cdef Slab* slab
    cdef void* block
    if which == SIZES:
        return malloc(size)
    slab = pool.open[which]
    if slab == NULL:
        if pool.empty == NULL and not _pool_more(pool):
            return NULL
        slab = pool.empty
        pool.empty = slab.next
        slab.size, slab.used, slab.fresh, slab.free = BLOCK_SIZES[which], 0, SLAB_HEADER_BYTES, NULL
        slab.next = slab.before = NULL
        pool.open[which] = slab
    if slab.free != NULL:
        block = slab.free
        slab.free = (<void**>block)[0]
    else:
        block = <uint8_t*>slab + slab.fresh
        slab.fresh += slab.size
    slab.used += 1
    if slab.free == NULL and slab.fresh + slab.size > SLAB_BYTES:
        pool.open[which] = slab.next
        if slab.next != NULL:
            slab.next.before = NULL
    return block


cdef void give_block(Pool* pool, void* block, size_t size) noexcept nogil:
    """`size` as it was asked for."""
    cdef int which = _size_class(size)
    cdef Slab* slab
    cdef bint was_full
    if which == SIZES:
        free(block)
        return
    slab = <Slab*>(<size_t>block & ~<size_t>(SLAB_BYTES - 1))
    was_full = slab.free == NULL and slab.fresh + slab.size > SLAB_BYTES
    (<void**>block)[0] = slab.free
    slab.free = block
    slab.used -= 1
    if was_full:
        slab.next, slab.before = pool.open[which], NULL
        if slab.next != NULL:
            slab.next.before = slab
        pool.open[which] = slab
    elif not slab.used and (slab.next != NULL or slab.before != NULL):  # the last one of its size stays
        if slab.before != NULL:
            slab.before.next = slab.next
        else:
            pool.open[which] = slab.next
        if slab.next != NULL:
            slab.next.before = slab.before
        slab.next = pool.empty
        pool.empty = slab


cdef void give_pool(Pool* pool) noexcept nogil:
    """All of it, once no block is used any more."""
    cdef Region* region
    while pool.regions != NULL:
        region = pool.regions
        pool.regions = region.next
        free(region.start)
        free(region)
