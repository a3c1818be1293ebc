/* From pixels of channels to planes of pixels and back, by perfect shuffles of vectors. */

#ifndef MIXER_SEARCH_TRANSPOSE_H
#define MIXER_SEARCH_TRANSPOSE_H

#include "neighborhood.h"

/* REALs that shuffles move at no cost within a vector: 16 bytes. */
#define PART ((ptrdiff_t)(16 / sizeof(REAL)))

/* result[lane] = lane number `source` of a and, from LANES on, of b. */
#ifdef __clang__
#define SHUFFLE(a, b, source, result)                            \
    for (ptrdiff_t lane = 0; lane < LANES; lane++)               \
        (result)[lane] = (source) < LANES ? (a)[(source) % LANES] : (b)[(source) % LANES];
#else
#define SHUFFLE(a, b, source, result)                            \
    {                                                            \
        lane_index order;                                        \
        for (ptrdiff_t lane = 0; lane < LANES; lane++)           \
            order[lane] = (INDEX)(source);                       \
        (result) = __builtin_shuffle((a), (b), order);           \
    }
#endif
/* Where lanes come from when the halves of the parts of two vectors, or the parts themselves, are
 * interleaved. */
#define IN_PARTS(first) (lane / PART * PART + (first) + lane % PART / 2 + lane % 2 * LANES)
#define OF_PARTS(first) \
    (((first) + lane / PART / 2) * PART + lane % PART + lane / PART % 2 * LANES)

/* Transpose up to LANES x LANES REALs by perfect shuffles, first PART x PART inside of vectors, then
 * whole parts. Rows from `rows` on read as zero; `columns` results of `stored` REALs are written,
 * or with `is_whole` of LANES, from as many. */
INLINE void transpose_block(const REAL *from, ptrdiff_t from_pitch, ptrdiff_t rows,
                            ptrdiff_t columns, REAL *to, ptrdiff_t to_pitch, ptrdiff_t stored,
                            const int is_whole)
{
    vec a[LANES], b[LANES];
#pragma GCC unroll 16
    for (ptrdiff_t row = 0; row < LANES; row++) {
        a[row] = (vec){0};
        if (row < rows && is_whole)
            a[row] = *(const unaligned_vec *)(from + row * from_pitch);
        else if (row < rows)
            memcpy(&a[row], from + row * from_pitch,
                   (size_t)(columns < LANES ? columns : LANES) * sizeof(REAL));
    }
#pragma GCC unroll 4
    for (ptrdiff_t stage = 1; stage < PART; stage *= 2) {
#pragma GCC unroll 8
        for (ptrdiff_t pair = 0; pair < LANES / 2; pair++) {
            ptrdiff_t row = pair / (PART / 2) * PART + pair % (PART / 2);
            SHUFFLE(a[row], a[row + PART / 2], IN_PARTS(0), b[2 * pair])
            SHUFFLE(a[row], a[row + PART / 2], IN_PARTS(PART / 2), b[2 * pair + 1])
        }
#pragma GCC unroll 16
        for (ptrdiff_t row = 0; row < LANES; row++)
            a[row] = b[row];
    }
#pragma GCC unroll 4
    for (ptrdiff_t stage = PART; stage < LANES; stage *= 2) {
#pragma GCC unroll 8
        for (ptrdiff_t pair = 0; pair < LANES / 2; pair++) {
            ptrdiff_t to_row = pair / PART * 2 * PART + pair % PART;
            SHUFFLE(a[pair], a[pair + LANES / 2], OF_PARTS(0), b[to_row])
            SHUFFLE(a[pair], a[pair + LANES / 2], OF_PARTS(LANES / PART / 2), b[to_row + PART])
        }
#pragma GCC unroll 16
        for (ptrdiff_t row = 0; row < LANES; row++)
            a[row] = b[row];
    }
#pragma GCC unroll 16
    for (ptrdiff_t row = 0; row < LANES; row++) {
        if (row < columns && is_whole)
            *(unaligned_vec *)(to + row * to_pitch) = a[row];
        else if (row < columns)
            memcpy(to + row * to_pitch, &a[row],
                   (size_t)(stored < LANES ? stored : LANES) * sizeof(REAL));
    }
}

/* (rows, columns) -> (columns, rows), where one side has room for whole vectors: with `is_padded`
 * the result, else what is read. */
static void transpose(const REAL *from, ptrdiff_t from_pitch, ptrdiff_t rows, ptrdiff_t columns,
                      REAL *to, ptrdiff_t to_pitch, int is_padded)
{
    for (ptrdiff_t row = 0; row < rows; row += LANES)
        for (ptrdiff_t column = 0; column < columns; column += LANES) {
            const REAL *source = from + row * from_pitch + column;
            REAL *target = to + column * to_pitch + row;
            ptrdiff_t high = rows - row, wide = columns - column;
            if (is_padded ? wide >= LANES : high >= LANES)
                transpose_block(source, from_pitch, high, wide, target, to_pitch, LANES, 1);
            else
                transpose_block(source, from_pitch, high, wide, target, to_pitch,
                                is_padded ? LANES : high, 0);
        }
}

#endif
