/* From pixels of channels to planes of pixels and back, by perfect shuffles of vectors. */

#ifndef MIXER_SEARCH_TRANSPOSE_H
#define MIXER_SEARCH_TRANSPOSE_H

#include "neighborhood.h"

#ifdef __clang__
#define INTERLEAVE(a, b, from, result)                           \
    for (ptrdiff_t lane = 0; lane < LANES / 2; lane++) {         \
        (result)[2 * lane] = (a)[(from) + lane];                 \
        (result)[2 * lane + 1] = (b)[(from) + lane];             \
    }
#else
#define INTERLEAVE(a, b, from, result)                           \
    {                                                            \
        lane_index order;                                        \
        for (ptrdiff_t lane = 0; lane < LANES; lane++)           \
            order[lane] = (INDEX)((from) + lane / 2 + lane % 2 * LANES); \
        (result) = __builtin_shuffle((a), (b), order);           \
    }
#endif

/* Transpose up to LANES x LANES REALs by perfect shuffles. Rows from `rows` on read as
 * zero; `stored` REALs of each result are written. */
static void transpose_block(const REAL *from, ptrdiff_t from_pitch, ptrdiff_t rows,
                            ptrdiff_t columns, REAL *to, ptrdiff_t to_pitch, ptrdiff_t stored)
{
    vec a[LANES], b[LANES];
#pragma GCC unroll 16
    for (ptrdiff_t row = 0; row < LANES; row++) {
        a[row] = (vec){0};
        if (row < rows && columns >= LANES)
            a[row] = *(const unaligned_vec *)(from + row * from_pitch);
        else if (row < rows)
            memcpy(&a[row], from + row * from_pitch, (size_t)columns * sizeof(REAL));
    }
#pragma GCC unroll 4
    for (ptrdiff_t stage = 1; stage < LANES; stage *= 2) {
#pragma GCC unroll 8
        for (ptrdiff_t row = 0; row < LANES / 2; row++) {
            INTERLEAVE(a[row], a[row + LANES / 2], 0, b[2 * row])
            INTERLEAVE(a[row], a[row + LANES / 2], LANES / 2, b[2 * row + 1])
        }
#pragma GCC unroll 16
        for (ptrdiff_t row = 0; row < LANES; row++)
            a[row] = b[row];
    }
#pragma GCC unroll 16
    for (ptrdiff_t row = 0; row < LANES; row++) {
        if (row < columns && stored >= LANES)
            *(unaligned_vec *)(to + row * to_pitch) = a[row];
        else if (row < columns)
            memcpy(to + row * to_pitch, &a[row], (size_t)stored * sizeof(REAL));
    }
}

/* (rows, columns) -> (columns, rows). With `padded`, `to` has room for whole vectors. */
static void transpose(const REAL *from, ptrdiff_t from_pitch, ptrdiff_t rows, ptrdiff_t columns,
                      REAL *to, ptrdiff_t to_pitch, int padded)
{
    for (ptrdiff_t row = 0; row < rows; row += LANES)
        for (ptrdiff_t column = 0; column < columns; column += LANES)
            transpose_block(from + row * from_pitch + column, from_pitch, rows - row,
                            columns - column, to + column * to_pitch + row, to_pitch,
                            padded ? LANES : rows - row);
}

#endif
