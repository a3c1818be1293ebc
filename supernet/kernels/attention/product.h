/* Products of small matrices, in blocks whose sums stay in registers. */

#ifndef MIXER_SEARCH_PRODUCT_H
#define MIXER_SEARCH_PRODUCT_H

#include "../neighborhood.h"

/* A product of matrices whose `factors` lie anywhere: rows and columns apart by two steps. */
typedef struct {
    const REAL *factors, *operand;
    REAL *result;
    ptrdiff_t row_step, column_step, operand_pitch, result_pitch, depth;
} product;

/* result[i, w] (+)= sum over k of factors[i, k] * operand[k, w], `rows` x `vectors` of it. */
INLINE void multiply_block(const product *p, ptrdiff_t row, ptrdiff_t w, int adds,
                           const ptrdiff_t vectors, const ptrdiff_t rows)
{
    REAL *result = p->result + row * p->result_pitch + w;
    const REAL *factors = p->factors + row * p->row_step;
    vec total[9][2], mine[2];
#pragma GCC unroll 9
    for (ptrdiff_t i = 0; i < rows; i++)
#pragma GCC unroll 2
        for (ptrdiff_t n = 0; n < vectors; n++) {
            total[i][n] = (vec){0};
            if (adds)
                total[i][n] = *(unaligned_vec *)(result + i * p->result_pitch + n * LANES);
        }
    for (ptrdiff_t k = 0; k < p->depth; k++) {
#pragma GCC unroll 2
        for (ptrdiff_t n = 0; n < vectors; n++) {
            mine[n] = *(const unaligned_vec *)(p->operand + k * p->operand_pitch + w + n * LANES);
            IN_REGISTER(mine[n]);
        }
#pragma GCC unroll 9
        for (ptrdiff_t i = 0; i < rows; i++)
#pragma GCC unroll 2
            for (ptrdiff_t n = 0; n < vectors; n++)
                total[i][n] += factors[i * p->row_step + k * p->column_step] * mine[n];
    }
#pragma GCC unroll 9
    for (ptrdiff_t i = 0; i < rows; i++)
#pragma GCC unroll 2
        for (ptrdiff_t n = 0; n < vectors; n++)
            *(unaligned_vec *)(result + i * p->result_pitch + n * LANES) = total[i][n];
}

/* All rows of one or two vectors, eight sums at a time or, at the end, what is left. */
INLINE void multiply_strip(const product *p, ptrdiff_t rows, ptrdiff_t w, int adds,
                           const ptrdiff_t vectors)
{
    const ptrdiff_t most = 8 / vectors;
    ptrdiff_t row = 0;
    for (; rows - row > most + 1; row += most)
        multiply_block(p, row, w, adds, vectors, most);
    switch (rows - row) {
    case 9: multiply_block(p, row, w, adds, vectors, vectors == 1 ? 9 : 1); break;
    case 8: multiply_block(p, row, w, adds, vectors, vectors == 1 ? 8 : 1); break;
    case 7: multiply_block(p, row, w, adds, vectors, vectors == 1 ? 7 : 1); break;
    case 6: multiply_block(p, row, w, adds, vectors, vectors == 1 ? 6 : 1); break;
    case 5: multiply_block(p, row, w, adds, vectors, 5); break;
    case 4: multiply_block(p, row, w, adds, vectors, 4); break;
    case 3: multiply_block(p, row, w, adds, vectors, 3); break;
    case 2: multiply_block(p, row, w, adds, vectors, 2); break;
    case 1: multiply_block(p, row, w, adds, vectors, 1); break;
    }
}

/* All `rows` and so many whole vectors. */
static void multiply(const product *p, ptrdiff_t rows, ptrdiff_t width, int adds)
{
    ptrdiff_t w = 0;
    for (; w + LANES < width; w += 2 * LANES)
        multiply_strip(p, rows, w, adds, 2);
    if (w < width)
        multiply_strip(p, rows, w, adds, 1);
}

#endif
