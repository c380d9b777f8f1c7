from libc.stdint cimport uint8_t, uint32_t, uint64_t


cdef extern from "content.h" nogil:
    enum:
        CONTENT_END
        NEWLINES_NORMALIZE
        NEWLINES_REJECT
        NEWLINES_KEEP

    struct content:
        uint8_t state
        uint8_t newlines
        uint8_t bare_cr
        uint8_t bare_lf
        uint8_t long_line
        uint8_t too_big
        uint64_t size

    void content_begin(content *c, uint8_t newlines, uint64_t max_size, uint32_t max_line)
    size_t content_feed(content *c, const uint8_t *src, size_t n, uint8_t *dst, size_t room, int in_place,
                        size_t *stored)
