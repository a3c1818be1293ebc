/* Neighbourhood attention in one pass: logits, normalisation and aggregation of one row at a time.
 *
 *   s[i, o] = scale * (product * q_i.k_{i+o} + q_i.qr_o + k_{i+o}.rk_o) + bias_o,  a = norm_o(s)
 *   y_i = sum_o a[i, o] v_{i+o}
 *
 * One unit of work is one head of one image, walked row by row on channel planes: a row's weights
 * for all K*K taps live in the cache and nowhere else. The backward pass computes them again and
 * keeps those of the (K - 1) * dilation + 1 rows that reach a pixel, so that gradients of keys and
 * values are gathered, never scattered. Rows outside the map are zero keys and values.
 */

#include <math.h>

#include "product.h"
#include "../transpose.h"

enum norm { SOFTMAX, FILTER_NORM, IDENTITY };

typedef struct {
    ptrdiff_t batch, height, width, channels, heads, kernel, dilation;
    ptrdiff_t depth, taps, border, slots, wide, bordered;
    ptrdiff_t q_pitch, k_pitch, v_pitch; /* REALs from pixel to pixel of the maps */
    ptrdiff_t result_pitch;              /* the same of y, or of dq, dk and dv */
    const REAL *q, *k, *v, *qr, *rk, *bias, *grad; /* NULL where a term is not there */
    REAL *y, *dq, *dk, *dv;
    REAL scale;
    int product, norm;
} attention;

/* The memory of one thread. Planes of weights are (K*K, wide), rows of maps (depth, bordered). */
typedef struct {
    ring q, k, v, grad;
    REAL *planes, *grads;          /* weights and gradients of the logits of one row */
    REAL *kept, *kept_grads;       /* the same of `slots` rows, behind zero borders */
    REAL *spread, *mean;           /* filter normalisation: 1 / (std + eps) and std of each pixel */
    REAL *row;                     /* one row of results */
    REAL *answers;                 /* of one row of keys to a tap row of their table, bordered */
    REAL *qr, *rk;                 /* this head's part of the tables, (K*K, depth) */
    REAL *dqr, *drk, *dbias;       /* this thread's sums: (K*K, C) twice, (K*K, heads, LANES) */
} workspace;

/* Kernels up to this size hold the weights of a tap row in registers. */
#define HELD_TAPS 7

INLINE vec where(lane_index mask, vec yes, vec no)
{
    return (vec)((mask & (lane_index)yes) | (~mask & (lane_index)no));
}

/* e^x for x <= 0, within rounding; NaN stays NaN. */
INLINE vec exponential(vec x)
{
    static const double inverse_factorials[] = {
        1.0, 1.0, 1.0 / 2, 1.0 / 6, 1.0 / 24, 1.0 / 120, 1.0 / 720, 1.0 / 5040, 1.0 / 40320,
        1.0 / 362880, 1.0 / 3628800, 1.0 / 39916800, 1.0 / 479001600, 1.0 / 6227020800};
    const int is_float = sizeof(REAL) == 4, degree = is_float ? 7 : 13;
    const vec low = (vec){0} + (REAL)(is_float ? -87 : -708);
    /* Adding 1.5 * 2^mantissa rounds to an integer, which then stands in the lowest bits. */
    const vec magic = (vec){0} + (REAL)(is_float ? 0x1.8p23 : 0x1.8p52);
    x = where(x < low, low, x);
    vec shifted = x * (REAL)1.4426950408889634 + magic, n = shifted - magic;
    vec r = x - n * (REAL)0x1.62e4p-1 - n * (REAL)1.4286068203094173e-06;
    vec sum = (vec){0} + (REAL)inverse_factorials[degree];
#pragma GCC unroll 13
    for (int i = degree - 1; i >= 0; i--)
        sum = sum * r + (REAL)inverse_factorials[i];
    lane_index exponent = (lane_index)shifted - (lane_index)magic + (INDEX)(is_float ? 127 : 1023);
    return sum * (vec)(exponent << (INDEX)(is_float ? 23 : 52));
}

/* A row of one head of a map as zero-bordered channel planes, from the ring where it is there. */
static const REAL *planar_row(const attention *a, ring *r, const REAL *map, ptrdiff_t pitch,
                              ptrdiff_t unit, ptrdiff_t h)
{
    ptrdiff_t slot = h % a->slots, tag = unit * a->height + h;
    REAL *row = r->rows + slot * a->depth * a->bordered;
    if (r->tags[slot] != tag) {
        r->tags[slot] = tag;
        ptrdiff_t pixel = (unit / a->heads * a->height + h) * a->width;
        const REAL *from = map + pixel * pitch + unit % a->heads * a->depth;
        transpose(from, pitch, a->width, a->depth, row + a->border, a->bordered, 1);
        /* A head's channels lie apart from pixel to pixel: the processor does not foresee them. */
        from += a->width * pitch;
        for (ptrdiff_t w = 0; w < a->width && h + 1 < a->height; w++, from += pitch)
            for (ptrdiff_t c = 0; c < a->depth; c += LINE)
                __builtin_prefetch(from + c);
    }
    return row;
}

/* plane[kw, w] += sum over c of x[c, w] * y[c, w + kw * dilation] for `count` taps (a constant). */
INLINE void correlate(const attention *a, REAL *plane, const REAL *x, const REAL *y,
                      const int shift, const ptrdiff_t count)
{
    for (ptrdiff_t w = 0; w < a->wide; w += LANES) {
        vec total[7];
#pragma GCC unroll 7
        for (ptrdiff_t kw = 0; kw < count; kw++)
            total[kw] = *(vec *)(plane + kw * a->wide + w);
        for (ptrdiff_t c = 0; c < a->depth; c++) {
            vec mine = *(const unaligned_vec *)(x + c * a->bordered + a->border + w);
            const REAL *theirs = y + c * a->bordered + w;
            vec low = {0}, high = {0};
            if (shift) {
                low = *(const vec *)theirs;
                high = *(const vec *)(theirs + LANES);
            }
#pragma GCC unroll 7
            for (ptrdiff_t kw = 0; kw < count; kw++)
                total[kw] += mine * (shift ? shifted(low, high, kw)
                                           : (vec)*(const unaligned_vec *)(theirs + kw * a->dilation));
        }
#pragma GCC unroll 7
        for (ptrdiff_t kw = 0; kw < count; kw++)
            *(vec *)(plane + kw * a->wide + w) = total[kw];
    }
}

/* sums[c, w] += sum over kw of plane[kw, w] * y[c, w + kw * dilation], with so many REALs from plane
 * to plane; backwards, the first tap reads last. */
INLINE void gather(const attention *a, REAL *sums, const REAL *plane, ptrdiff_t pitch,
                   const REAL *y, const int backwards, const int shift, const ptrdiff_t kernel)
{
    const int is_held = kernel <= HELD_TAPS; /* weights in registers */
    ptrdiff_t start = backwards ? 2 * a->border : 0;
    ptrdiff_t step = backwards ? -a->dilation : a->dilation;
    for (ptrdiff_t w = 0; w < a->wide; w += LANES) {
        vec weights[HELD_TAPS];
#pragma GCC unroll 7
        for (ptrdiff_t kw = 0; is_held && kw < kernel; kw++)
            weights[kw] = *(const unaligned_vec *)(plane + kw * pitch + w);
        for (ptrdiff_t c = 0; c < a->depth; c++) {
            vec total = *(vec *)(sums + c * a->wide + w), low = {0}, high = {0};
            const REAL *theirs = y + c * a->bordered + w;
            if (shift) {
                low = *(const vec *)theirs;
                high = *(const vec *)(theirs + LANES);
            }
#pragma GCC unroll 7
            for (ptrdiff_t kw = 0; kw < kernel; kw++) {
                vec weight = is_held ? weights[kw]
                                     : (vec)*(const unaligned_vec *)(plane + kw * pitch + w);
                total += weight * (shift ? shifted(low, high, backwards ? kernel - 1 - kw : kw)
                                         : (vec)*(const unaligned_vec *)(theirs + start + kw * step));
            }
            *(vec *)(sums + c * a->wide + w) = total;
        }
    }
}

/* result[o, w] = sum over c of table[o, c] * x[c, w], for `taps` taps. */
static void respond(const attention *a, REAL *result, ptrdiff_t pitch, const REAL *x,
                    const REAL *table, ptrdiff_t taps)
{
    product p = {.factors = table, .row_step = a->depth, .column_step = 1, .depth = a->depth,
                 .operand = x, .operand_pitch = a->bordered,
                 .result = result, .result_pitch = pitch};
    multiply(&p, taps, a->wide, 0);
}

/* sums[c, w] += sum over o of table[o, c] * planes[o, w], for `taps` taps. */
static void spread(const attention *a, REAL *sums, const REAL *planes, ptrdiff_t pitch,
                   const REAL *table, ptrdiff_t taps)
{
    product p = {.factors = table, .row_step = 1, .column_step = a->depth, .depth = taps,
                 .operand = planes, .operand_pitch = pitch,
                 .result = sums, .result_pitch = a->wide};
    multiply(&p, a->depth, a->wide, 1);
}

/* table[o, c] += sum over w of planes[o, w] * map[w, c], for `taps` taps. */
static void add_table(const attention *a, REAL *table, const REAL *planes, ptrdiff_t planes_pitch,
                      const REAL *map, ptrdiff_t pitch, ptrdiff_t taps)
{
    product p = {.factors = planes, .row_step = planes_pitch, .column_step = 1, .depth = a->width,
                 .operand = map, .operand_pitch = pitch,
                 .result = table, .result_pitch = a->channels};
    ptrdiff_t whole = a->depth / LANES * LANES;
    multiply(&p, taps, whole, 1);
    for (ptrdiff_t c = whole; c < a->depth; c++)
        for (ptrdiff_t o = 0; o < taps; o++)
            for (ptrdiff_t w = 0; w < a->width; w++)
                table[o * a->channels + c] += planes[o * planes_pitch + w] * map[w * pitch + c];
}

/* One tap row of what keys answer to their table: plane[kw, w] += sum over c of
 * table[kw, c] * y[c, w + kw * dilation]. */
static void add_key_terms(const attention *a, workspace *m, REAL *plane, const REAL *y,
                          const REAL *table)
{
    respond(a, m->answers + a->border, a->bordered, y + a->border, table, a->kernel);
    for (ptrdiff_t kw = 0; kw < a->kernel; kw++)
        for (ptrdiff_t w = 0; w < a->wide; w += LANES)
            *(vec *)(plane + kw * a->wide + w) += (vec)*(const unaligned_vec *)(
                m->answers + kw * (a->bordered + a->dilation) + w);
}

/* One tap row of products of queries x and keys y. */
INLINE void add_products(const attention *a, REAL *plane, const REAL *x, const REAL *y,
                         const ptrdiff_t count)
{
    for (ptrdiff_t first = 0; first < a->kernel; first += count) {
        REAL *to = plane + first * a->wide;
        if (CAN_SHIFT && count > 1 && a->dilation == 1)
            correlate(a, to, x, y + first, 1, count);
        else
            correlate(a, to, x, y + first * a->dilation, 0, count);
    }
}

/* One tap row of sums over neighbours; `kernel` is a constant where it is 3, 5 or 7. */
INLINE void add_sums(const attention *a, REAL *sums, const REAL *plane, ptrdiff_t pitch,
                     const REAL *y, const int backwards, const int shift, const ptrdiff_t kernel)
{
    if (shift && CAN_SHIFT && a->dilation == 1)
        gather(a, sums, plane, pitch, y, backwards, 1, kernel);
    else
        gather(a, sums, plane, pitch, y, backwards, 0, kernel);
}

/* Call with the kernel size, and whether vectors may be shifted. */
#define FOR_KERNEL_AND_SHIFT(size, call) \
    switch (size) {                      \
    case 3: call(1, 3); break;           \
    case 5: call(1, 5); break;           \
    case 7: call(1, 7); break;           \
    default: call(0, size);              \
    }

static void normalise(const attention *a, workspace *m, ptrdiff_t head)
{
    ptrdiff_t degrees = a->taps > 1 ? a->taps - 1 : 1;
    REAL gain = (REAL)sqrt(2.0 / (double)a->taps);
    for (ptrdiff_t w = 0; w < a->wide; w += LANES) {
        REAL *plane = m->planes + w;
        vec highest = (vec){0} - (REAL)INFINITY, sum = {0}, squares = {0};
        for (ptrdiff_t o = 0; o < a->taps; o++) {
            vec s = *(vec *)(plane + o * a->wide) * a->scale;
            if (a->bias)
                s += a->bias[o * a->heads + head];
            *(vec *)(plane + o * a->wide) = s;
            highest = where(s < highest, highest, s);
            sum += s;
        }
        if (a->norm == SOFTMAX) {
            sum = (vec){0};
            for (ptrdiff_t o = 0; o < a->taps; o++) {
                vec e = exponential(*(vec *)(plane + o * a->wide) - highest);
                *(vec *)(plane + o * a->wide) = e;
                sum += e;
            }
            sum = 1 / sum;
            for (ptrdiff_t o = 0; o < a->taps; o++)
                *(vec *)(plane + o * a->wide) *= sum;
        } else if (a->norm == FILTER_NORM) {
            vec mean = sum / (REAL)a->taps, std, factor;
            for (ptrdiff_t o = 0; o < a->taps; o++) {
                vec u = *(vec *)(plane + o * a->wide) - mean;
                *(vec *)(plane + o * a->wide) = u;
                squares += u * u;
            }
            for (ptrdiff_t lane = 0; lane < LANES; lane++)
                std[lane] = (REAL)sqrt((double)squares[lane] / (double)degrees);
            factor = gain / (std + (REAL)1e-10);
            for (ptrdiff_t o = 0; o < a->taps; o++)
                *(vec *)(plane + o * a->wide) *= factor;
            *(vec *)(m->spread + w) = factor;
            *(vec *)(m->mean + w) = std;
        }
    }
}

/* Gradients of the weights -> gradients of the scaled logits, zero in lanes outside the map. */
static void normalise_grads(const attention *a, workspace *m, ptrdiff_t head)
{
    ptrdiff_t degrees = a->taps > 1 ? a->taps - 1 : 1;
    REAL gain = (REAL)sqrt(2.0 / (double)a->taps);
    for (ptrdiff_t w = 0; w < a->wide; w += LANES) {
        REAL *plane = m->planes + w, *grads = m->grads + w;
        vec dot = {0}, sum = {0}, zero = {0}, factor = zero + 1, inside;
        for (ptrdiff_t lane = 0; lane < LANES; lane++)
            inside[lane] = w + lane < a->width;
        for (ptrdiff_t o = 0; o < a->taps; o++) {
            vec g = *(vec *)(grads + o * a->wide);
            dot += g * *(vec *)(plane + o * a->wide);
            sum += g;
        }
        if (a->norm == FILTER_NORM) {
            vec std = *(vec *)(m->mean + w);
            factor = *(vec *)(m->spread + w);
            sum /= (REAL)a->taps;
            dot /= gain * (REAL)degrees * std;
            dot = where(std == zero, zero, dot);
        }
        for (ptrdiff_t o = 0; o < a->taps; o++) {
            vec g = *(vec *)(grads + o * a->wide), weight = *(vec *)(plane + o * a->wide);
            if (a->norm == SOFTMAX)
                g = weight * (g - dot);
            else if (a->norm == FILTER_NORM)
                g = factor * (g - sum) - weight * dot;
            g = where(inside == zero, zero, g);
            if (a->bias)
                *(vec *)(m->dbias + (o * a->heads + head) * LANES) += g;
            *(vec *)(grads + o * a->wide) = g * a->scale;
        }
    }
}

/* The weights of row h of a unit, in m->planes. */
static void weigh(const attention *a, workspace *m, ptrdiff_t unit, ptrdiff_t h)
{
    const REAL *x = a->q ? planar_row(a, &m->q, a->q, a->q_pitch, unit, h) : NULL;
    if (a->qr)
        respond(a, m->planes, a->wide, x + a->border, m->qr, a->taps);
    else
        memset(m->planes, 0, (size_t)(a->taps * a->wide) * sizeof(REAL));
    for (ptrdiff_t kh = 0; kh < a->kernel && a->k; kh++) {
        ptrdiff_t other = h + kh * a->dilation - a->border, row = kh * a->kernel;
        if (other < 0 || other >= a->height)
            continue;
        const REAL *y = planar_row(a, &m->k, a->k, a->k_pitch, unit, other);
        REAL *plane = m->planes + row * a->wide;
        if (a->rk)
            add_key_terms(a, m, plane, y, m->rk + row * a->depth);
#define CALL(size) add_products(a, plane, x, y, size)
        if (a->product)
            FOR_KERNEL_OR_ONE(a->kernel, CALL)
#undef CALL
    }
    normalise(a, m, unit % a->heads);
}

/* Write a row of planes (depth, wide) to one head of a map. */
static void leave(const attention *a, const REAL *planes, REAL *map, ptrdiff_t unit, ptrdiff_t h)
{
    ptrdiff_t pixel = (unit / a->heads * a->height + h) * a->width;
    transpose(planes, a->wide, a->depth, a->width,
              map + pixel * a->result_pitch + unit % a->heads * a->depth, a->result_pitch, 0);
}

static void clear_row(const attention *a, workspace *m)
{
    memset(m->row, 0, (size_t)(a->depth * a->wide) * sizeof(REAL));
}

/* A head's part of a table, close together. */
static void copy_table(const attention *a, REAL *to, const REAL *table, ptrdiff_t head)
{
    for (ptrdiff_t o = 0; table && o < a->taps; o++)
        memcpy(to + o * a->depth, table + o * a->channels + head * a->depth,
               (size_t)a->depth * sizeof(REAL));
}

static void attend(const attention *a, workspace *m, ptrdiff_t unit)
{
    for (ptrdiff_t h = 0; h < a->height; h++) {
        weigh(a, m, unit, h);
        clear_row(a, m);
        for (ptrdiff_t kh = 0; kh < a->kernel; kh++) {
            ptrdiff_t other = h + kh * a->dilation - a->border;
            if (other < 0 || other >= a->height)
                continue;
            const REAL *y = planar_row(a, &m->v, a->v, a->v_pitch, unit, other);
            const REAL *plane = m->planes + kh * a->kernel * a->wide;
#define CALL(shift, size) add_sums(a, m->row, plane, a->wide, y, 0, shift, size)
            FOR_KERNEL_AND_SHIFT(a->kernel, CALL)
#undef CALL
        }
        leave(a, m->row, a->y, unit, h);
    }
}

/* Keep a row of planes behind zero borders, (K*K, bordered). */
static void keep_planes(const attention *a, REAL *to, const REAL *planes)
{
    vec inside, zero = {0};
    ptrdiff_t last = a->wide - LANES;
    for (ptrdiff_t lane = 0; lane < LANES; lane++)
        inside[lane] = last + lane < a->width;
    for (ptrdiff_t o = 0; o < a->taps; o++, to += a->bordered, planes += a->wide) {
        for (ptrdiff_t w = 0; w < a->wide; w += LANES) {
            vec value = *(const vec *)(planes + w);
            if (w == last)
                value = where(inside == zero, zero, value);
            *(unaligned_vec *)(to + a->border + w) = value;
        }
    }
}

/* The gradients of the logits of row h, and from them those of its queries and of q's table. */
static void weigh_grads(const attention *a, workspace *m, ptrdiff_t unit, ptrdiff_t h)
{
    ptrdiff_t channel = unit % a->heads * a->depth, pixel = unit / a->heads * a->height + h;
    const REAL *mine = planar_row(a, &m->grad, a->grad, a->channels, unit, h);
    weigh(a, m, unit, h);
    memset(m->grads, 0, (size_t)(a->taps * a->wide) * sizeof(REAL));
    for (ptrdiff_t kh = 0; kh < a->kernel; kh++) {
        ptrdiff_t other = h + kh * a->dilation - a->border;
        if (other < 0 || other >= a->height)
            continue;
        const REAL *y = planar_row(a, &m->v, a->v, a->v_pitch, unit, other);
        REAL *plane = m->grads + kh * a->kernel * a->wide;
#define CALL(size) add_products(a, plane, mine, y, size)
        FOR_KERNEL_OR_ONE(a->kernel, CALL)
#undef CALL
    }
    normalise_grads(a, m, unit % a->heads);
    if (!a->q)
        return;
    clear_row(a, m);
    for (ptrdiff_t kh = 0; kh < a->kernel && a->product; kh++) {
        ptrdiff_t other = h + kh * a->dilation - a->border;
        if (other < 0 || other >= a->height)
            continue;
        const REAL *y = planar_row(a, &m->k, a->k, a->k_pitch, unit, other);
        const REAL *plane = m->grads + kh * a->kernel * a->wide;
#define CALL(shift, size) add_sums(a, m->row, plane, a->wide, y, 0, shift, size)
        FOR_KERNEL_AND_SHIFT(a->kernel, CALL)
#undef CALL
    }
    if (a->qr)
        spread(a, m->row, m->grads, a->wide, m->qr, a->taps);
    leave(a, m->row, a->dq, unit, h);
    if (a->qr)
        add_table(a, m->dqr + channel, m->grads, a->wide,
                  a->q + pixel * a->width * a->q_pitch + channel, a->q_pitch, a->taps);
}

/* The gradients of the keys and values of row j, and of k's table, from all rows that read it. */
static void collect_grads(const attention *a, workspace *m, ptrdiff_t unit, ptrdiff_t j)
{
    ptrdiff_t channel = unit % a->heads * a->depth, size = a->taps * a->bordered;
    ptrdiff_t pitch = a->bordered - a->dilation; /* each tap from the pixel that it reads */
    ptrdiff_t pixel = unit / a->heads * a->height + j;
    for (int is_key = 0; is_key < (a->k ? 2 : 1); is_key++) {
        clear_row(a, m);
        for (ptrdiff_t kh = 0; kh < a->kernel; kh++) {
            ptrdiff_t i = j - kh * a->dilation + a->border, row = kh * a->kernel;
            if (i < 0 || i >= a->height)
                continue;
            const REAL *planes = is_key ? m->kept_grads : m->kept;
            planes += i % a->slots * size + row * a->bordered + 2 * a->border;
            if (is_key && a->rk) {
                spread(a, m->row, planes, pitch, m->rk + row * a->depth, a->kernel);
                add_table(a, m->drk + row * a->channels + channel, planes, pitch,
                          a->k + pixel * a->width * a->k_pitch + channel, a->k_pitch, a->kernel);
            }
            if (is_key && !a->product)
                continue;
            const REAL *y = is_key ? planar_row(a, &m->q, a->q, a->q_pitch, unit, i)
                                   : planar_row(a, &m->grad, a->grad, a->channels, unit, i);
#define CALL(shift, size) add_sums(a, m->row, planes, pitch, y, 1, shift, size)
            FOR_KERNEL_AND_SHIFT(a->kernel, CALL)
#undef CALL
        }
        leave(a, m->row, is_key ? a->dk : a->dv, unit, j);
    }
}

static void attend_grads(const attention *a, workspace *m, ptrdiff_t unit)
{
    ptrdiff_t size = a->taps * a->bordered;
    for (ptrdiff_t h = 0; h < a->height + a->border; h++) {
        if (h < a->height) {
            weigh_grads(a, m, unit, h);
            keep_planes(a, m->kept + h % a->slots * size, m->planes);
            if (a->k)
                keep_planes(a, m->kept_grads + h % a->slots * size, m->grads);
        }
        if (h >= a->border)
            collect_grads(a, m, unit, h - a->border);
    }
}

static int open_workspace(const attention *a, workspace *m)
{
    ptrdiff_t rows = a->depth * a->bordered, planes = a->taps * a->wide;
    int grad = a->grad != NULL;
    *m = (workspace){0};
    int failed = open_ring(&m->q, a->slots, a->q ? rows : 0);
    failed |= open_ring(&m->k, a->slots, a->k ? rows : 0);
    failed |= open_ring(&m->v, a->slots, rows);
    failed |= open_ring(&m->grad, a->slots, grad ? rows : 0);
    m->planes = allocate(planes);
    m->grads = allocate(grad * planes);
    m->kept = allocate(grad * a->slots * a->taps * a->bordered);
    m->kept_grads = allocate(grad * (a->k != NULL) * a->slots * a->taps * a->bordered);
    m->spread = allocate(a->wide);
    m->mean = allocate(a->wide);
    m->row = allocate(a->depth * a->wide);
    m->answers = allocate((a->rk != NULL) * a->kernel * a->bordered);
    m->qr = allocate((a->qr != NULL) * a->taps * a->depth);
    m->rk = allocate((a->rk != NULL) * a->taps * a->depth);
    m->dqr = allocate(grad * (a->qr != NULL) * a->taps * a->channels);
    m->drk = allocate(grad * (a->rk != NULL) * a->taps * a->channels);
    m->dbias = allocate(grad * (a->bias != NULL) * a->taps * a->heads * LANES);
    return failed || !m->planes || !m->grads || !m->kept || !m->kept_grads || !m->spread ||
           !m->mean || !m->row || !m->answers || !m->qr || !m->rk || !m->dqr || !m->drk ||
           !m->dbias;
}

static void close_workspace(workspace *m)
{
    close_ring(&m->q);
    close_ring(&m->k);
    close_ring(&m->v);
    close_ring(&m->grad);
    REAL *all[] = {m->planes, m->grads, m->kept, m->kept_grads, m->spread, m->mean, m->row,
                   m->answers, m->qr, m->rk, m->dqr, m->drk, m->dbias};
    for (size_t i = 0; i < sizeof(all) / sizeof(*all); i++)
        free(all[i]);
}

static int run(attention *a, workspace *all, int threads)
{
    ptrdiff_t units = a->batch * a->heads;
    int failed = 0;
#pragma omp parallel for num_threads(threads) schedule(static, 1) reduction(| : failed)
    for (int thread = 0; thread < threads; thread++) {
        failed |= open_workspace(a, all + thread);
        for (ptrdiff_t unit = units * thread / threads;
             unit < units * (thread + 1) / threads && !failed; unit++) {
            copy_table(a, all[thread].qr, a->qr, unit % a->heads);
            copy_table(a, all[thread].rk, a->rk, unit % a->heads);
            if (a->grad)
                attend_grads(a, all + thread, unit);
            else
                attend(a, all + thread, unit);
        }
    }
    return failed;
}

static void derive(attention *a)
{
    a->depth = a->channels / a->heads;
    a->taps = a->kernel * a->kernel;
    a->border = a->kernel / 2 * a->dilation;
    a->slots = (a->kernel - 1) * a->dilation + 1;
    a->wide = round_up(a->width);
    a->bordered = a->wide + round_up(2 * a->border);
}

static int thread_count(const attention *a, int threads)
{
    problem p = {.batch = a->batch, .height = a->height, .width = a->width,
                 .channels = a->channels, .kernel = a->kernel};
    threads = useful_threads(&p, threads);
    ptrdiff_t units = a->batch * a->heads;
    return units < 1 ? 1 : units < threads ? (int)units : threads;
}

/* y of maps q, k, v (B,H,W,C), whose pixels may lie further apart than C, tables qr, rk (K*K,C) and bias (K*K,heads); all but v may be NULL. */
int neighborhood_attention(REAL *y, const REAL *q, const REAL *k, const REAL *v, const REAL *qr,
                           const REAL *rk, const REAL *bias, ptrdiff_t q_pitch, ptrdiff_t k_pitch,
                           ptrdiff_t v_pitch, double scale, int product, int norm,
                           ptrdiff_t batch, ptrdiff_t height, ptrdiff_t width, ptrdiff_t channels,
                           ptrdiff_t heads, ptrdiff_t kernel, ptrdiff_t dilation, int threads)
{
    attention a = {.batch = batch, .height = height, .width = width, .channels = channels,
                   .heads = heads, .kernel = kernel, .dilation = dilation, .q = q, .k = k, .v = v,
                   .qr = qr, .rk = rk, .bias = bias, .y = y, .scale = (REAL)scale,
                   .product = product, .norm = norm, .result_pitch = channels,
                   .q_pitch = q_pitch, .k_pitch = k_pitch, .v_pitch = v_pitch};
    derive(&a);
    threads = thread_count(&a, threads);
    workspace *all = calloc((size_t)threads, sizeof(workspace));
    int failed = all ? run(&a, all, threads) : 1;
    for (int thread = 0; all && thread < threads; thread++)
        close_workspace(all + thread);
    free(all);
    return failed;
}

/* result[i] = the sum over threads, in their order, of `parts` items of one of their tables. */
static void add_tables(REAL *result, workspace *all, int threads, ptrdiff_t size, ptrdiff_t parts,
                       size_t member)
{
    for (ptrdiff_t i = 0; result && i < size; i++) {
        REAL sum = 0;
        for (int thread = 0; thread < threads; thread++)
            for (ptrdiff_t part = 0; part < parts; part++)
                sum += (*(REAL **)((char *)(all + thread) + member))[i * parts + part];
        result[i] = sum;
    }
}

/* The gradients of `neighborhood_attention` for the gradient of y; results are NULL where their
 * operand is, and the pixels of dq, dk and dv are result_pitch REALs apart. */
int neighborhood_attention_grad(REAL *dq, REAL *dk, REAL *dv, REAL *dqr, REAL *drk, REAL *dbias,
                                const REAL *grad, const REAL *q, const REAL *k, const REAL *v,
                                const REAL *qr, const REAL *rk, const REAL *bias,
                                ptrdiff_t result_pitch, ptrdiff_t q_pitch, ptrdiff_t k_pitch,
                                ptrdiff_t v_pitch, double scale, int product, int norm,
                                ptrdiff_t batch, ptrdiff_t height, ptrdiff_t width,
                                ptrdiff_t channels, ptrdiff_t heads, ptrdiff_t kernel,
                                ptrdiff_t dilation, int threads)
{
    attention a = {.batch = batch, .height = height, .width = width, .channels = channels,
                   .heads = heads, .kernel = kernel, .dilation = dilation, .q = q, .k = k, .v = v,
                   .qr = qr, .rk = rk, .bias = bias, .grad = grad, .dq = dq, .dk = dk, .dv = dv,
                   .scale = (REAL)scale, .product = product, .norm = norm,
                   .result_pitch = result_pitch,
                   .q_pitch = q_pitch, .k_pitch = k_pitch, .v_pitch = v_pitch};
    derive(&a);
    threads = thread_count(&a, threads);
    workspace *all = calloc((size_t)threads, sizeof(workspace));
    int failed = all ? run(&a, all, threads) : 1;
    if (!failed) {
        add_tables(dqr, all, threads, a.taps * channels, 1, offsetof(workspace, dqr));
        add_tables(drk, all, threads, a.taps * channels, 1, offsetof(workspace, drk));
        add_tables(dbias, all, threads, a.taps * heads, LANES, offsetof(workspace, dbias));
    }
    for (int thread = 0; all && thread < threads; thread++)
        close_workspace(all + thread);
    free(all);
    return failed;
}
