/* Rows of a map as strips, one for each vector of channels: (vectors, pixels, LANES).
 *
 * Maps are read in sequence, once; then all taps of a channel vector are at constant distances.
 */

#ifndef MIXER_SEARCH_STRIPS_H
#define MIXER_SEARCH_STRIPS_H

#include "neighborhood.h"

/* Vectors from strip to strip, at least so many: an odd number of cache lines, so that strips differ
 * in cache set. */
static inline ptrdiff_t strip_pitch(ptrdiff_t vectors)
{
    return (((vectors * VECTOR_BYTES + 63) / 64) | 1) * 64 / VECTOR_BYTES;
}

/* (W, C) -> strips (vectors, `wide`, LANES); what is beyond C stays as it is. */
static inline void split_pixels(const problem *p, REAL *strips, ptrdiff_t wide, const REAL *map)
{
    ptrdiff_t whole = p->channels / LANES * LANES;
    for (ptrdiff_t w = 0; w < p->width; w++, map += p->channels) {
        REAL *to = strips + w * LANES;
        for (ptrdiff_t c = 0; c < whole; c += LANES, to += wide * LANES)
            *(vec *)to = *(const unaligned_vec *)(map + c);
        if (whole < p->channels)
            memcpy(to, map + whole, (size_t)(p->channels - whole) * sizeof(REAL));
    }
}

/* The way back. */
static inline void join_pixels(const problem *p, REAL *map, const REAL *strips, ptrdiff_t wide)
{
    ptrdiff_t whole = p->channels / LANES * LANES;
    for (ptrdiff_t w = 0; w < p->width; w++, map += p->channels) {
        const REAL *from = strips + w * LANES;
        for (ptrdiff_t c = 0; c < whole; c += LANES, from += wide * LANES)
            *(unaligned_vec *)(map + c) = *(const vec *)from;
        if (whole < p->channels)
            memcpy(map + whole, from, (size_t)(p->channels - whole) * sizeof(REAL));
    }
}

/* Sum the pixels of a strip, on four chains of additions. */
INLINE vec sum_strip(const REAL *pixels, ptrdiff_t width)
{
    vec sums[4] = {{0}, {0}, {0}, {0}};
    ptrdiff_t w = 0;
    for (; w + 4 <= width; w += 4)
        for (ptrdiff_t n = 0; n < 4; n++)
            sums[n] += *(const vec *)(pixels + (w + n) * LANES);
    for (; w < width; w++)
        sums[0] += *(const vec *)(pixels + w * LANES);
    return (sums[0] + sums[1]) + (sums[2] + sums[3]);
}

#endif
