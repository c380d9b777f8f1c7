from libc.stdint cimport uint8_t


cdef extern from "scan.h" nogil:
    size_t scan_strict(const uint8_t *p, size_t n)
    size_t scan_dots(const uint8_t *p, size_t n)
    size_t scan_strict_scalar(const uint8_t *p, size_t n)
    size_t scan_dots_scalar(const uint8_t *p, size_t n)
    const char *scan_init()
