/* Hadamard logits before their activation: a grouped convolution of the product of queries and keys.
 *
 *     y[i, c] = bias[c] + sum over o, j of weight[o, c, j] * (q * k)[i + o, first(c) + j]
 *
 * where the group of channel c begins at first(c) and has `width` channels, a power of two that
 * divides a vector. Rotation r pairs channel c with channel (c + r) mod `width` of its group: a
 * grouped convolution is `width` depth-wise ones, one of each rotation, and a rotation commutes with
 * the sum over taps. So sums are made in the order of what is read and rotated once, at the end.
 *
 * Products are made row by row in strips (strips.h) and never stored as a map; the gradients read
 * the rows of the output's gradient g in the same way:
 *     product_grad[i] = sum_o weight[o] g[i - o],   weight_grad[o] += product[i] g[i - o].
 */

#include "../strips.h"

typedef struct {
    problem shape;
    const REAL *queries, *keys, *weight, *bias, *grad;
    ptrdiff_t q_pitch, k_pitch, width;
    REAL *result, *q_grad, *k_grad;
} hadamard;

/* The widest group. */
int neighborhood_hadamard_widest(void) { return (int)LANES; }

/* Lane c becomes lane (c + by) mod `width` of its group. */
INLINE vec rotated(vec x, const ptrdiff_t width, const ptrdiff_t by)
{
    if (by % width == 0)
        return x;
#ifdef __clang__
    vec result;
    for (ptrdiff_t lane = 0; lane < LANES; lane++)
        result[lane] = x[lane / width * width + (lane + by) % width];
    return result;
#else
    lane_index order;
#pragma GCC unroll 16
    for (ptrdiff_t lane = 0; lane < LANES; lane++)
        order[lane] = (INDEX)(lane / width * width + (lane + by) % width);
    return __builtin_shuffle(x, order);
#endif
}

/* `count` pixels from w on: all taps of all rotations; `step` REALs from tap to tap. */
INLINE void sum_pixels(const REAL *const *rows, const REAL *factors, REAL *to, vec start,
                       ptrdiff_t w, const ptrdiff_t kernel, const ptrdiff_t step,
                       const ptrdiff_t width, const ptrdiff_t count, const int backward)
{
    vec sums[16];
#pragma GCC unroll 16
    for (ptrdiff_t n = 0; n < count * width; n++)
        sums[n] = (vec){0};
    for (ptrdiff_t kh = 0; kh < kernel; kh++) {
        const REAL *row = rows[kh] + w * LANES;
#pragma GCC unroll 7
        for (ptrdiff_t kw = 0; kw < kernel; kw++, factors += width * LANES) {
            vec x[8];
#pragma GCC unroll 8
            for (ptrdiff_t n = 0; n < count; n++) {
                x[n] = *(const vec *)(row + n * LANES + kw * step);
                IN_REGISTER(x[n]);
            }
#pragma GCC unroll 16
            for (ptrdiff_t r = 0; r < width; r++) {
                vec factor = *(const vec *)(factors + r * LANES);
#pragma GCC unroll 8
                for (ptrdiff_t n = 0; n < count; n++)
                    sums[n * width + r] += factor * x[n];
            }
        }
    }
#pragma GCC unroll 8
    for (ptrdiff_t n = 0; n < count; n++) {
        vec total = start;
#pragma GCC unroll 16
        for (ptrdiff_t r = 0; r < width; r++)
            total += rotated(sums[n * width + r], width, backward ? width - r : r);
        *(vec *)(to + (w + n) * LANES) = total;
    }
}

/* A row of a strip, as many pixels at a time as registers hold sums. */
INLINE void sum_row(const problem *p, const REAL *const *rows, const REAL *factors, REAL *to,
                    vec start, const ptrdiff_t kernel, const ptrdiff_t width, const int backward)
{
    const ptrdiff_t count = width == 1 ? 6 : width == 2 ? 4 : width == 4 ? 2 : 1;
    ptrdiff_t step = (backward ? -p->dilation : p->dilation) * LANES, w = 0;
    if (p->dilation == 1)
        step = backward ? -LANES : LANES;
    for (; w + count <= p->width; w += count)
        sum_pixels(rows, factors, to, start, w, kernel, step, width, count, backward);
    for (; w < p->width; w++)
        sum_pixels(rows, factors, to, start, w, kernel, step, width, 1, backward);
}

/* totals (taps, width, LANES) += mine, rotated, times the neighbours that a row of taps reads. */
INLINE void add_row(const problem *p, const REAL *mine, const REAL *row, REAL *totals,
                    const ptrdiff_t taps, const ptrdiff_t width, const ptrdiff_t together)
{
    ptrdiff_t step = p->dilation == 1 ? LANES : p->dilation * LANES;
#pragma GCC unroll 16
    for (ptrdiff_t first = 0; first < width; first += together) {
        vec held[16];
#pragma GCC unroll 16
        for (ptrdiff_t n = 0; n < taps * together; n++)
            held[n] = *(vec *)(totals + (n / together * width + first + n % together) * LANES);
        for (ptrdiff_t w = 0; w < p->width; w++) {
            vec x = *(const vec *)(mine + w * LANES), turned[4];
#pragma GCC unroll 4
            for (ptrdiff_t r = 0; r < together; r++)
                turned[r] = rotated(x, width, first + r);
#pragma GCC unroll 7
            for (ptrdiff_t kw = 0; kw < taps; kw++) {
                vec there = *(const vec *)(row + w * LANES - kw * step);
#pragma GCC unroll 4
                for (ptrdiff_t r = 0; r < together; r++)
                    held[kw * together + r] += turned[r] * there;
            }
        }
#pragma GCC unroll 16
        for (ptrdiff_t n = 0; n < taps * together; n++)
            *(vec *)(totals + (n / together * width + first + n % together) * LANES) = held[n];
    }
}

#define FOR_WIDTH(width, call) \
    switch (width) {           \
    case 1: call(1); break;    \
    case 2: call(2); break;    \
    case 4: call(4); break;    \
    case 8: call(8); break;    \
    default: call(16);         \
    }

static void sum_strip_row(const problem *p, const REAL *const *rows, const REAL *factors, REAL *to,
                          vec start, ptrdiff_t width, int backward)
{
#define KERNEL(size) \
    if (backward)    \
        sum_row(p, rows, factors, to, start, size, WIDTH, 1); \
    else             \
        sum_row(p, rows, factors, to, start, size, WIDTH, 0)
#define CALL(wide)                   \
    {                                \
        const ptrdiff_t WIDTH = wide; \
        FOR_KERNEL(p->kernel, KERNEL) \
    }
    FOR_WIDTH(width, CALL)
#undef CALL
#undef KERNEL
}

static void add_strip_row(const problem *p, const REAL *mine, const REAL *row, REAL *totals,
                          ptrdiff_t width)
{
    ptrdiff_t step = p->dilation * LANES;
#define CALL(wide)                                                                        \
    switch (p->kernel) {                                                                  \
    case 3: add_row(p, mine, row, totals, 3, wide, wide < 4 ? wide : 4); break;           \
    case 5: add_row(p, mine, row, totals, 5, wide, wide < 2 ? wide : 2); break;           \
    case 7: add_row(p, mine, row, totals, 7, wide, 1); break;                             \
    default:                                                                              \
        for (ptrdiff_t kw = 0; kw < p->kernel; kw++)                                      \
            add_row(p, mine, row - kw * step, totals + kw * (wide) * LANES, 1, wide,      \
                    wide < 4 ? wide : 4);                                                 \
    }
    FOR_WIDTH(width, CALL)
#undef CALL
}

/* (K*K, C, width) -> strips (vectors, K*K, width, LANES) by rotation: for the gradients in the order
 * of the outputs, else in that of the inputs. */
static void split_weight(const hadamard *job, REAL *strips, int backward)
{
    const problem *p = &job->shape;
    ptrdiff_t taps = p->kernel * p->kernel, width = job->width;
    for (ptrdiff_t tap = 0; tap < taps; tap++)
        for (ptrdiff_t c = 0; c < p->channels; c++)
            for (ptrdiff_t r = 0; r < width; r++) {
                ptrdiff_t other = (c + r) % width, lane = c % LANES;
                if (!backward)
                    lane += other - c % width;
                strips[((c / LANES * taps + tap) * width + r) * LANES + lane] =
                    job->weight[(tap * p->channels + c) * width + other];
            }
}

/* Strips of the product of a row's queries and keys. */
static void split_product(const hadamard *job, REAL *strips, ptrdiff_t wide, ptrdiff_t map_row)
{
    const problem *p = &job->shape;
    const REAL *q = job->queries + map_row * p->width * job->q_pitch;
    const REAL *k = job->keys + map_row * p->width * job->k_pitch;
    ptrdiff_t whole = p->channels / LANES * LANES;
    for (ptrdiff_t w = 0; w < p->width; w++, q += job->q_pitch, k += job->k_pitch) {
        REAL *to = strips + w * LANES;
        for (ptrdiff_t c = 0; c < whole; c += LANES, to += wide * LANES)
            *(vec *)to = *(const unaligned_vec *)(q + c) * *(const unaligned_vec *)(k + c);
        for (ptrdiff_t c = whole; c < p->channels; c++)
            to[c - whole] = q[c] * k[c];
    }
}

/* From strips of the product's gradient to those of queries and keys. */
static void join_product(const hadamard *job, const REAL *strips, ptrdiff_t wide, ptrdiff_t map_row)
{
    const problem *p = &job->shape;
    const REAL *q = job->queries + map_row * p->width * job->q_pitch;
    const REAL *k = job->keys + map_row * p->width * job->k_pitch;
    REAL *q_grad = job->q_grad + map_row * p->width * p->channels;
    REAL *k_grad = job->k_grad + map_row * p->width * p->channels;
    ptrdiff_t whole = p->channels / LANES * LANES;
    for (ptrdiff_t w = 0; w < p->width; w++) {
        const REAL *from = strips + w * LANES;
        for (ptrdiff_t c = 0; c < whole; c += LANES, from += wide * LANES) {
            vec found = *(const vec *)from;
            *(unaligned_vec *)(q_grad + c) = found * *(const unaligned_vec *)(k + c);
            *(unaligned_vec *)(k_grad + c) = found * *(const unaligned_vec *)(q + c);
        }
        for (ptrdiff_t c = whole; c < p->channels; c++) {
            q_grad[c] = from[c - whole] * k[c];
            k_grad[c] = from[c - whole] * q[c];
        }
        q += job->q_pitch;
        k += job->k_pitch;
        q_grad += p->channels;
        k_grad += p->channels;
    }
}

/* Rows `first` to `end` - 1 of all images; with `totals` the gradients, which those of the weights
 * and the bias are added to. */
static int hadamard_rows(const hadamard *job, REAL *totals, REAL *bias_totals, ptrdiff_t first,
                         ptrdiff_t end)
{
    const problem *p = &job->shape;
    const int backward = totals != NULL;
    ptrdiff_t vectors = round_up(p->channels) / LANES, row_size = p->width * p->channels;
    ptrdiff_t bordered = strip_pitch(p->width + 2 * p->border), wide = strip_pitch(p->width);
    ptrdiff_t weights = p->kernel * p->kernel * job->width * LANES; /* of a vector */
    ring source;
    int failed = open_ring(&source, p->slots, vectors * bordered * LANES);
    REAL *nothing = allocate(bordered * LANES), *factors = allocate(vectors * weights);
    REAL *mine = allocate(vectors * wide * LANES), *sums = allocate(vectors * wide * LANES);
    REAL *bias = allocate(vectors * LANES);
    const REAL **found = malloc((size_t)p->kernel * sizeof(REAL *));
    failed |= !nothing || !factors || !mine || !sums || !bias || !found;
    if (!failed) {
        split_weight(job, factors, backward);
        if (!backward && job->bias)
            memcpy(bias, job->bias, (size_t)p->channels * sizeof(REAL));
    }
    for (ptrdiff_t row = first; row < end && !failed; row++) {
        ptrdiff_t image = row / p->height, h = row % p->height;
        for (ptrdiff_t kh = 0; kh < p->kernel; kh++) {
            ptrdiff_t down = kh * p->dilation - p->border, other = backward ? h - down : h + down;
            ptrdiff_t slot = other % p->slots, tag = image * p->height + other;
            if (other < 0 || other >= p->height || source.tags[slot] == tag)
                continue;
            REAL *to = source.rows + (slot * vectors * bordered + p->border) * LANES;
            if (backward)
                split_pixels(p, to, bordered, job->grad + tag * row_size);
            else
                split_product(job, to, bordered, tag);
            source.tags[slot] = tag;
        }
        if (backward)
            split_product(job, mine, wide, row);
        for (ptrdiff_t vector = 0; vector < vectors; vector++) {
            for (ptrdiff_t kh = 0; kh < p->kernel; kh++) {
                ptrdiff_t down = kh * p->dilation - p->border;
                ptrdiff_t other = backward ? h - down : h + down;
                ptrdiff_t place = other % p->slots * vectors + vector;
                int inside = other >= 0 && other < p->height;
                found[kh] = inside ? source.rows + place * bordered * LANES : nothing;
                found[kh] += backward ? 2 * p->border * LANES : 0;
            }
            sum_strip_row(p, found, factors + vector * weights, sums + vector * wide * LANES,
                          *(const vec *)(bias + vector * LANES), job->width, backward);
            if (!backward)
                continue;
            for (ptrdiff_t kh = 0; kh < p->kernel; kh++) {
                ptrdiff_t other = h - kh * p->dilation + p->border;
                if (other >= 0 && other < p->height)
                    add_strip_row(p, mine + vector * wide * LANES, found[kh],
                                  totals + vector * weights + kh * p->kernel * job->width * LANES,
                                  job->width);
            }
            ptrdiff_t place = h % p->slots * vectors + vector;
            const REAL *centre = source.rows + (place * bordered + p->border) * LANES;
            *(vec *)(bias_totals + vector * LANES) += sum_strip(centre, p->width);
        }
        if (backward)
            join_product(job, sums, wide, row);
        else
            join_pixels(p, job->result + row * row_size, sums, wide);
    }
    free(nothing);
    free(factors);
    free(mine);
    free(sums);
    free(bias);
    free(found);
    close_ring(&source);
    return failed;
}

/* y (B,H,W,C) from queries and keys (B,H,W,C), whose pixels are q_pitch and k_pitch REALs apart,
 * weight (K*K,C,width) and bias (C) or NULL. */
int neighborhood_hadamard(REAL *result, const REAL *queries, const REAL *keys, const REAL *weight,
                          const REAL *bias, ptrdiff_t q_pitch, ptrdiff_t k_pitch, ptrdiff_t width,
                          ptrdiff_t batch, ptrdiff_t height, ptrdiff_t columns, ptrdiff_t channels,
                          ptrdiff_t kernel, ptrdiff_t dilation, int threads)
{
    hadamard job = {.queries = queries, .keys = keys, .weight = weight, .bias = bias,
                    .q_pitch = q_pitch, .k_pitch = k_pitch, .width = width, .result = result};
    int failed = describe(&job.shape, batch, height, columns, channels, 1, kernel, dilation, 0);
    if (!failed) {
        threads = useful_threads(&job.shape, threads);
#pragma omp parallel for num_threads(threads) schedule(static, 1) reduction(| : failed)
        for (int thread = 0; thread < threads; thread++)
            failed |= hadamard_rows(&job, NULL, NULL, batch * height * thread / threads,
                                    batch * height * (thread + 1) / threads);
    }
    forget(&job.shape);
    return failed;
}

/* The gradients of queries, keys, weight and bias from that of y. */
int neighborhood_hadamard_grad(REAL *q_grad, REAL *k_grad, REAL *weight_grad, REAL *bias_grad,
                               const REAL *grad, const REAL *queries, const REAL *keys,
                               const REAL *weight, ptrdiff_t q_pitch, ptrdiff_t k_pitch,
                               ptrdiff_t width, ptrdiff_t batch, ptrdiff_t height,
                               ptrdiff_t columns, ptrdiff_t channels, ptrdiff_t kernel,
                               ptrdiff_t dilation, int threads)
{
    hadamard job = {.queries = queries, .keys = keys, .weight = weight, .grad = grad,
                    .q_pitch = q_pitch, .k_pitch = k_pitch, .width = width, .q_grad = q_grad,
                    .k_grad = k_grad};
    problem *p = &job.shape;
    int failed = describe(p, batch, height, columns, channels, 1, kernel, dilation, 0);
    ptrdiff_t taps = kernel * kernel, lanes = round_up(channels), size = taps * width * lanes;
    threads = useful_threads(p, threads);
    REAL *partial = allocate(threads * size), *bias = allocate(threads * lanes);
    failed |= !partial || !bias;
    if (!failed) {
#pragma omp parallel for num_threads(threads) schedule(static, 1) reduction(| : failed)
        for (int thread = 0; thread < threads; thread++)
            failed |= hadamard_rows(&job, partial + thread * size, bias + thread * lanes,
                                    batch * height * thread / threads,
                                    batch * height * (thread + 1) / threads);
        for (ptrdiff_t c = 0; c < channels; c++) {
            for (ptrdiff_t tap = 0; tap < taps; tap++)
                for (ptrdiff_t r = 0; r < width; r++) {
                    REAL sum = 0;
                    ptrdiff_t place = ((c / LANES * taps + tap) * width + r) * LANES + c % LANES;
                    for (int thread = 0; thread < threads; thread++)
                        sum += partial[thread * size + place];
                    weight_grad[(tap * channels + c) * width + (c + r) % width] = sum;
                }
            bias_grad[c] = 0;
            for (int thread = 0; thread < threads; thread++)
                bias_grad[c] += bias[thread * lanes + c];
        }
    }
    free(partial);
    free(bias);
    forget(p);
    return failed;
}
