/* AdamW on a block of a parameter of which some elements are used, in one pass over memory.
 *
 * Every element has its own count of steps n, and AdamW's formulas hold with it. Where `mask` is 1:
 *     n += 1,  m += (1 - beta1)(g - m),  v = beta2 v + (1 - beta2) g^2,
 *     p = (1 - lr weight_decay) p - lr rises[n] m / (sqrt(v) spreads[n] + eps)
 * where rises[n] = 1 / (1 - beta1^n) and spreads[n] = 1 / sqrt(1 - beta2^n) are tables, whose last
 * entry holds for all later steps. Where it is 0 nothing is read or written.
 *
 * A part is a row of PART integers: six addresses (p, g, m, v, mask, n), the sizes of the block, then
 * the strides of p, g, m, v, mask and n, those of the last two 0 along axes that they do not have.
 * Counts are of the type float, whatever REAL is.
 */

#include "../neighborhood.h"

#include <math.h>
#include <stdint.h>

enum { AXES = 6, OPERANDS = 6, MASK = 4, COUNT = 5, PART = OPERANDS + AXES * (1 + OPERANDS) };

typedef struct {
    REAL lr, mean_share, square_share, eps, kept; /* kept: of a weight, beside its decay */
    const REAL *rises, *spreads;
    int64_t rise_last, spread_last;
} rule;

typedef struct {
    int64_t axes, size[AXES], stride[AXES][OPERANDS]; /* the outermost axis first */
} block;

int adamw_axes(void) { return AXES; }

/* Read a block and join neighbouring axes along which the operands from `first` on go on evenly. */
static block read_block(const int64_t *part, const int first)
{
    block b = {.axes = 0};
    const int64_t *size = part + OPERANDS, *stride = size + AXES;
    for (int axis = 0; axis < AXES; axis++) {
        /* Where all are shared along an axis, the first is all there is. */
        int moves = 0, joins = b.axes > 0;
        for (int o = first; o < OPERANDS; o++) {
            moves |= stride[o * AXES + axis] != 0;
            joins = joins && b.stride[b.axes - 1][o] == size[axis] * stride[o * AXES + axis];
        }
        if (size[axis] == 1 || !moves)
            continue;
        if (!joins)
            b.size[b.axes++] = 1;
        b.size[b.axes - 1] *= size[axis];
        for (int o = first; o < OPERANDS; o++)
            b.stride[b.axes - 1][o] = stride[o * AXES + axis];
    }
    if (b.axes == 0) /* one element */
        b = (block){.axes = 1, .size = {1}};
    return b;
}

/* Step to the next row (the last axis) of a block; 0 after the last one. */
static int next_row(const block *b, int64_t *place, int64_t *offset)
{
    for (int64_t axis = b->axes - 2; axis >= 0; axis--) {
        for (int o = 0; o < OPERANDS; o++)
            offset[o] += b->stride[axis][o];
        if (++place[axis] < b->size[axis])
            return 1;
        for (int o = 0; o < OPERANDS; o++)
            offset[o] -= b->size[axis] * b->stride[axis][o];
        place[axis] = 0;
    }
    return 0;
}

#define ROOT(x) _Generic((x), float: sqrtf, double: sqrt)(x)

INLINE void update(REAL *p, REAL g, REAL *m, REAL *v, REAL rise, REAL spread, const rule *r)
{
    const REAL mean = *m + r->mean_share * (g - *m);
    const REAL square = *v + r->square_share * (g * g - *v);
    *m = mean;
    *v = square;
    *p = r->kept * *p - r->lr * rise * mean / (ROOT(square) * spread + r->eps);
}

INLINE int64_t entry(float n, int64_t last) { return n < (float)last ? (int64_t)n : last; }

/* Elements that share their mask and count; `even` ones lie side by side. */
INLINE void update_alike(int64_t count, REAL *restrict p, const REAL *restrict g,
                         REAL *restrict m, REAL *restrict v, const int64_t *by, float n,
                         const rule *r, const int even)
{
    const REAL rise = r->rises[entry(n, r->rise_last)];
    const REAL spread = r->spreads[entry(n, r->spread_last)];
    for (int64_t i = 0; i < count; i++) {
        if (even)
            update(p + i, g[i], m + i, v + i, rise, spread, r);
        else
            update(p + i * by[0], g[i * by[1]], m + i * by[2], v + i * by[3], rise, spread, r);
    }
}

static void update_row(const block *b, REAL *p, const REAL *g, REAL *m, REAL *v, const REAL *mask,
                       const float *n, const rule *r)
{
    const int64_t count = b->size[b->axes - 1], *by = b->stride[b->axes - 1];
    const int even = by[0] == 1 && by[1] == 1 && by[2] == 1 && by[3] == 1;
    /* Runs of one mask and count: where both are the row's, the whole row. */
    for (int64_t i = 0, end; i < count; i = end) {
        const REAL used = mask[i * by[MASK]];
        const float steps = n[i * by[COUNT]];
        end = by[MASK] || by[COUNT] ? i + 1 : count;
        while (end < count && mask[end * by[MASK]] == used && n[end * by[COUNT]] == steps)
            end++;
        if (used == 0)
            continue;
        if (even)
            update_alike(end - i, p + i, g + i, m + i, v + i, by, steps, r, 1);
        else
            update_alike(end - i, p + i * by[0], g + i * by[1], m + i * by[2], v + i * by[3], by,
                         steps, r, 0);
    }
}

static void update_block(const block *b, REAL *const *operands, const rule *r)
{
    int64_t place[AXES] = {0}, offset[OPERANDS] = {0};
    do
        update_row(b, operands[0] + offset[0], operands[1] + offset[1], operands[2] + offset[2],
                   operands[3] + offset[3], operands[MASK] + offset[MASK],
                   (const float *)operands[COUNT] + offset[COUNT], r);
    while (next_row(b, place, offset));
}

/* Count a step for what is used: every count once, however many elements share it. */
static void count_steps(const block *b, const REAL *mask, float *n)
{
    const int64_t size = b->size[b->axes - 1], *by = b->stride[b->axes - 1];
    int64_t place[AXES] = {0}, offset[OPERANDS] = {0};
    do {
        const REAL *used = mask + offset[MASK];
        float *steps = n + offset[COUNT];
        for (int64_t i = 0; i < size; i++)
            steps[i * by[COUNT]] += (float)used[i * by[MASK]];
    } while (next_row(b, place, offset));
}

/* All parts of a step; each is one thread's. */
int adamw_update(const int64_t *parts, const REAL *rises, const REAL *spreads, ptrdiff_t count,
                 ptrdiff_t num_rises, ptrdiff_t num_spreads, double lr, double beta1, double beta2,
                 double eps, double weight_decay, int threads)
{
    const rule r = {.lr = (REAL)lr,
                    .mean_share = (REAL)(1 - beta1),
                    .square_share = (REAL)(1 - beta2),
                    .eps = (REAL)eps,
                    .kept = (REAL)(1 - lr * weight_decay),
                    .rises = rises,
                    .spreads = spreads,
                    .rise_last = num_rises - 1,
                    .spread_last = num_spreads - 1};
#pragma omp parallel for schedule(dynamic) num_threads(threads)
    for (ptrdiff_t index = 0; index < count; index++) {
        const int64_t *part = parts + index * PART;
        REAL *operands[OPERANDS];
        for (int o = 0; o < OPERANDS; o++)
            operands[o] = (REAL *)(uintptr_t)part[o];
        const block counts = read_block(part, MASK), elements = read_block(part, 0);
        count_steps(&counts, operands[MASK], (float *)operands[COUNT]);
        update_block(&elements, operands, &r);
    }
    return 0;
}
