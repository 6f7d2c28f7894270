# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""Comparing guest pages, compiled; `page_compare` says what it does.

Guarantees: no page is copied, a page is read up to its first difference, and the GIL is released meanwhile.
"""

from cpython.bytearray cimport PyByteArray_AS_STRING
from libc.stdint cimport uint8_t, uint32_t
from libc.string cimport memcmp


def marks(const uint8_t[:, ::1] left, const uint8_t[:, ::1] right, const uint32_t[::1] indices):
    """As `page_compare.marks_twin`."""
    cdef size_t count = indices.shape[0]
    cdef size_t page_bytes = left.shape[1]
    cdef size_t page_count = min(left.shape[0], right.shape[0])
    cdef size_t at
    cdef bint fits = left.shape[1] == right.shape[1]
    cdef bytearray marks = bytearray(count)
    cdef uint8_t* out = <uint8_t*>PyByteArray_AS_STRING(marks)
    with nogil:
        for at in range(count):
            if not fits or indices[at] >= page_count:
                fits = False
                break
            out[at] = memcmp(&left[indices[at], 0], &right[indices[at], 0], page_bytes) != 0
    if not fits:
        raise IndexError("a page to compare is not there")
    return marks
