# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""What has changed in pages, compiled; `page_changes` says what each function does.

Guarantees: no page is copied but into what remembers it, equal stretches are found at the speed of memory, nothing
outside of the arrays is read or written whatever they hold, as long as no two of them overlap, and the GIL is released
meanwhile.
"""

from libc.stdint cimport int32_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memcmp, memcpy, memset

import numpy as np

cdef extern from *:
    int popcount "__builtin_popcountll"(unsigned long long) noexcept nogil

cdef enum:
    PAGE_BYTES = 4096
    PAGE_WORDS = 512
    MASK_BYTES = 64
    STRETCHES = 8  # of a page; in equal ones no word is looked at
    STRETCH_BYTES = 512
    STRETCH_MASK_BYTES = 8
    WORDS_MAX = 504  # page_changes.WORDS_MAX
    NEW = 0  # page_changes.Kind
    SAME = 1
    FEW = 2
    MANY = 3


def filled(const uint64_t[:, ::1] pages):
    """As `page_changes.filled_twin`."""
    cdef size_t count = pages.shape[0]
    cdef size_t words = pages.shape[1]
    cdef size_t at, word
    marks = np.zeros(count, np.bool_)
    cdef uint8_t[::1] out = marks.view(np.uint8)
    with nogil:
        for at in range(count):
            for word in range(words):
                if pages[at, word]:
                    out[at] = 1
                    break
    return marks


cdef size_t _look(const uint64_t* now, const uint64_t* before, uint8_t* mask) noexcept nogil:
    """Writes the mask (64 bytes) of the words that differ, and returns how many those are."""
    cdef size_t stretch, byte, bit, word, count = 0
    cdef uint8_t bits
    for stretch in range(STRETCHES):
        word = stretch * PAGE_WORDS // STRETCHES
        if memcmp(now + word, before + word, STRETCH_BYTES) == 0:
            memset(mask + stretch * STRETCH_MASK_BYTES, 0, STRETCH_MASK_BYTES)
            continue
        for byte in range(stretch * STRETCH_MASK_BYTES, (stretch + 1) * STRETCH_MASK_BYTES):
            bits = 0
            for bit in range(8):
                word = byte * 8 + bit
                bits = <uint8_t>((bits << 1) | (now[word] != before[word]))
                count += now[word] != before[word]
            mask[byte] = bits
    return count


cdef size_t _take(const uint64_t* now, uint64_t* before, const uint8_t* mask, uint64_t* words) noexcept nogil:
    """Brings `before` up to date and writes the words that `mask` names; returns how many."""
    cdef size_t byte, bit, word, count = 0
    for byte in range(MASK_BYTES):
        if mask[byte]:
            for bit in range(8):
                if mask[byte] & (0x80 >> bit):
                    word = byte * 8 + bit
                    before[word] = now[word]
                    words[count] = now[word]
                    count += 1
    return count


def sift(const uint64_t[:, ::1] contents, uint64_t[:, ::1] remembered, const int32_t[::1] places):
    """As `page_changes.sift_twin`."""
    cdef size_t count = places.shape[0]
    cdef size_t at, differ, few = 0, total = 0
    cdef int32_t place, room = <int32_t>remembered.shape[0]
    if contents.shape[0] != places.shape[0] or contents.shape[1] != PAGE_WORDS or remembered.shape[1] != PAGE_WORDS:
        raise ValueError("pages and places don't fit together")
    kinds = np.zeros(count, np.uint8)
    masks = np.empty((count, MASK_BYTES), np.uint8)
    cdef uint8_t[::1] kind = kinds
    cdef uint8_t[:, ::1] mask = masks
    with nogil:
        for at in range(count):
            place = places[at]
            if place < 0 or place >= room:
                continue
            differ = _look(&contents[at, 0], &remembered[place, 0], &mask[few, 0])
            if differ == 0:
                kind[at] = SAME
            elif differ <= WORDS_MAX:
                kind[at] = FEW
                few += 1
                total += differ
            else:
                kind[at] = MANY
                memcpy(&remembered[place, 0], &contents[at, 0], PAGE_BYTES)
    words = np.empty(total, np.uint64)
    if total:
        _gather(contents, remembered, places, kind, mask, words)
    return kinds, masks[:few], words


cdef _gather(
    const uint64_t[:, ::1] contents,
    uint64_t[:, ::1] remembered,
    const int32_t[::1] places,
    const uint8_t[::1] kind,
    const uint8_t[:, ::1] mask,
    uint64_t[::1] words,
):
    """The words of the pages that have few, which are the ones that were counted before."""
    cdef size_t at, few = 0, taken = 0
    with nogil:
        for at in range(<size_t>places.shape[0]):
            if kind[at] == FEW:
                taken += _take(&contents[at, 0], &remembered[places[at], 0], &mask[few, 0], &words[taken])
                few += 1


def apply(
    uint64_t[:, ::1] image, const uint32_t[::1] indices, const uint8_t[:, ::1] masks, const uint64_t[::1] words
):
    """As `page_changes.apply_twin`."""
    cdef size_t count = indices.shape[0]
    cdef size_t at, byte, bit, marked = 0, taken = 0
    cdef uint64_t bits[8]
    cdef bint there = True
    cdef uint64_t* page
    if masks.shape[0] != indices.shape[0] or masks.shape[1] != MASK_BYTES or image.shape[1] != PAGE_WORDS:
        raise ValueError("pages and masks don't fit together")
    with nogil:
        for at in range(count):
            there = there and indices[at] < <size_t>image.shape[0]
            memcpy(bits, &masks[at, 0], MASK_BYTES)
            for byte in range(8):
                marked += popcount(bits[byte])
    if not there:
        raise IndexError("a page to change is not there")
    if marked != <size_t>words.shape[0]:
        raise ValueError(f"{words.shape[0]} words can't go to {marked} places")
    with nogil:
        for at in range(count):
            page = &image[indices[at], 0]
            for byte in range(MASK_BYTES):
                if masks[at, byte]:
                    for bit in range(8):
                        if masks[at, byte] & (0x80 >> bit):
                            page[byte * 8 + bit] = words[taken]
                            taken += 1
