/* Sums over neighbours: aggregation, its transpose, depth-wise convolution and weight gradients. */

#include "../neighborhood.h"

/* A step from one tap to the next, in REALs, and the pixel where the first tap is read. */
typedef struct walk {
    ptrdiff_t value_step, filter_step;
    ptrdiff_t value_start, filter_start;
} walk;

/* sums[w] += sum over kw of multiplier * filter * value, for a whole row. */
INLINE void add_tap_row(const problem *p, REAL *sums, const REAL *values, const REAL *filters,
                        const REAL *multiplier, walk walk, const enum source source,
                        const int has_multiplier, const ptrdiff_t kernel)
{
    ptrdiff_t filter_pitch = p->groups * kernel;
    for (ptrdiff_t c = 0; c < p->channels; c += LANES) {
        const REAL *value = values + walk.value_start + c;
        const REAL *filter = filters + walk.filter_start;
        ptrdiff_t offset = p->offsets[c / LANES];
        lane_index lanes = p->lanes[c / LANES];
        for (ptrdiff_t w = 0; w < p->width; w++, value += p->pitch, filter += filter_pitch) {
            vec sum = *(vec *)(sums + w * p->pitch + c);
#pragma GCC unroll 7
            for (ptrdiff_t kw = 0; kw < kernel; kw++) {
                vec x = *(const vec *)(value + kw * walk.value_step);
                if (has_multiplier)
                    x *= *(const vec *)(multiplier + kw * p->pitch + c);
                sum += filtered(x, source, filter + kw * walk.filter_step, offset, lanes);
            }
            *(vec *)(sums + w * p->pitch + c) = sum;
        }
    }
}

/* Copy one row of filters and add one row of taps, specialised by kernel size and source. */
INLINE void tap_row(const problem *p, REAL *sums, const REAL *values, const REAL *filters,
                    ptrdiff_t filter_row, ptrdiff_t kh, REAL *copy, const REAL *multiplier,
                    walk walk, const ptrdiff_t kernel)
{
    if (filters)
        copy_filters(p, copy, filters, filter_row, kh, kernel);
    if (p->source == NONE)
        add_tap_row(p, sums, values, copy, multiplier, walk, NONE, 1, kernel);
    else if (p->source == BROADCAST && multiplier)
        add_tap_row(p, sums, values, copy, multiplier, walk, BROADCAST, 1, kernel);
    else if (p->source == BROADCAST)
        add_tap_row(p, sums, values, copy, multiplier, walk, BROADCAST, 0, kernel);
    else if (multiplier)
        add_tap_row(p, sums, values, copy, multiplier, walk, EXPAND, 1, kernel);
    else
        add_tap_row(p, sums, values, copy, multiplier, walk, EXPAND, 0, kernel);
}

typedef struct {
    problem shape;
    const REAL *filters, *values, *multiplier, *bias;
    int per_image, transposed;
} aggregation;

/* Rows `first` to `end` - 1 of all images, with buffers of this thread's own. */
static int aggregate_rows(const aggregation *job, REAL *result, ptrdiff_t first, ptrdiff_t end)
{
    const problem *p = &job->shape;
    ptrdiff_t step = p->dilation, tap_pitch = p->source == EXPAND ? p->groups : 1;
    ptrdiff_t pixel = p->groups * p->kernel, sums_size = p->width * p->pitch;
    ptrdiff_t taps = p->kernel * p->kernel;
    walk walk = {step * p->pitch, tap_pitch, 0, p->border * pixel};
    if (job->transposed)
        walk = (struct walk){-step * p->pitch, tap_pitch - step * pixel, 2 * p->border * p->pitch,
                             2 * p->border * pixel};
    ring source;
    int failed = open_ring(&source, p->slots, p->row);
    REAL *copy = allocate(p->source == NONE ? 0 : (p->width + 2 * p->border) * pixel + LANES);
    REAL *sums = allocate(sums_size);
    REAL *factors = allocate(job->multiplier ? taps * p->pitch : 0);
    ptrdiff_t held = -1; /* whose multiplier `factors` holds */
    failed |= !copy || !sums || !factors;
    for (ptrdiff_t row = first; row < end && !failed; row++) {
        ptrdiff_t image = row / p->height, h = row % p->height;
        ptrdiff_t wanted = job->per_image ? image : 0;
        for (ptrdiff_t tap = 0; job->multiplier && held != wanted && tap < taps; tap++)
            memcpy(factors + tap * p->pitch, job->multiplier + (wanted * taps + tap) * p->channels,
                   (size_t)p->channels * sizeof(REAL));
        held = wanted;
        memset(sums, 0, (size_t)sums_size * sizeof(REAL));
        for (ptrdiff_t w = 0; job->bias && w < p->width; w++)
            memcpy(sums + w * p->pitch, job->bias, (size_t)p->channels * sizeof(REAL));
        for (ptrdiff_t kh = 0; kh < p->kernel; kh++) {
            ptrdiff_t down = kh * step - p->border, other = job->transposed ? h - down : h + down;
            if (other < 0 || other >= p->height)
                continue;
            const REAL *neighbours = bordered_row(p, &source, job->values, image, other);
            const REAL *tap = job->multiplier ? factors + kh * p->kernel * p->pitch : NULL;
            ptrdiff_t filter_row = job->transposed ? image * p->height + other : row;
#define CALL(size) tap_row(p, sums, neighbours, job->filters, filter_row, kh, copy, tap, walk, size)
            FOR_KERNEL(p->kernel, CALL)
#undef CALL
        }
        copy_pixels(p, result + row * p->width * p->channels, p->channels, sums, p->pitch);
    }
    free(copy);
    free(sums);
    free(factors);
    close_ring(&source);
    return failed;
}

/* y[i] = bias + sum_o filter[i, o] * v[i + o]; transposed, sum_o filter[i - o, o] * v[i - o].
 * Either `filters` (B,H,W,G,K*K) or `multiplier` may be NULL, and so may `bias` (C). The multiplier
 * is (K*K,C), or (B,K*K,C) with `per_image`. */
int neighborhood_aggregate(REAL *result, const REAL *filters, const REAL *values,
                           const REAL *multiplier, const REAL *bias, int per_image, int transposed,
                           ptrdiff_t batch, ptrdiff_t height, ptrdiff_t width, ptrdiff_t channels,
                           ptrdiff_t groups, ptrdiff_t kernel, ptrdiff_t dilation, int threads)
{
    aggregation job = {.filters = filters, .values = values, .multiplier = multiplier,
                       .bias = bias, .per_image = per_image, .transposed = transposed};
    int failed = describe(&job.shape, batch, height, width, channels, groups, kernel, dilation,
                          filters != NULL);
    if (!failed) {
        threads = useful_threads(&job.shape, threads);
#pragma omp parallel for num_threads(threads) schedule(static, 1) reduction(| : failed)
        for (int thread = 0; thread < threads; thread++)
            failed |= aggregate_rows(&job, result, batch * height * thread / threads,
                                     batch * height * (thread + 1) / threads);
    }
    forget(&job.shape);
    return failed;
}

/* sums[kw] += sum over w of x[w] * filter[w, kw] * value[w + kw], for each channel. */
INLINE void add_products(const problem *p, REAL *sums, const REAL *x, const REAL *values,
                         const REAL *filters, const enum source source, const ptrdiff_t first,
                         const ptrdiff_t count)
{
    ptrdiff_t step = source == EXPAND ? p->groups : 1;
    for (ptrdiff_t c = 0; c < p->channels; c += LANES) {
        ptrdiff_t offset = p->offsets[c / LANES];
        lane_index lanes = p->lanes[c / LANES];
        const REAL *filter = filters + (p->border * p->groups * p->kernel + first * step);
        vec total[7];
#pragma GCC unroll 7
        for (ptrdiff_t kw = 0; kw < count; kw++)
            total[kw] = (vec){0};
        for (ptrdiff_t w = 0; w < p->width; w++, filter += p->groups * p->kernel) {
            vec mine = *(const vec *)(x + w * p->pitch + c);
#pragma GCC unroll 7
            for (ptrdiff_t kw = 0; kw < count; kw++) {
                ptrdiff_t pixel = w + (first + kw) * p->dilation;
                vec value = *(const vec *)(values + pixel * p->pitch + c);
                total[kw] += mine * filtered(value, source, filter + kw * step, offset, lanes);
            }
        }
#pragma GCC unroll 7
        for (ptrdiff_t kw = 0; kw < count; kw++)
            *(vec *)(sums + (first + kw) * p->pitch + c) += total[kw];
    }
}

/* All taps of a row, `count` of them (a constant) at a time. */
INLINE void product_row(const problem *p, REAL *sums, const REAL *x, const REAL *values,
                        const REAL *filters, ptrdiff_t map_row, ptrdiff_t kh, REAL *copy,
                        const ptrdiff_t count)
{
    if (filters)
        copy_filters(p, copy, filters, map_row, kh, count == 1 ? p->kernel : count);
    for (ptrdiff_t first = 0; first < p->kernel; first += count) {
        if (p->source == NONE)
            add_products(p, sums, x, values, copy, NONE, first, count);
        else if (p->source == BROADCAST)
            add_products(p, sums, x, values, copy, BROADCAST, first, count);
        else
            add_products(p, sums, x, values, copy, EXPAND, first, count);
    }
}

static int product_rows(const problem *p, REAL *sums, const REAL *filters, const REAL *x,
                        const REAL *values, ptrdiff_t first, ptrdiff_t end)
{
    ptrdiff_t pixels = p->width + 2 * p->border;
    ring source;
    int failed = open_ring(&source, p->slots, p->row);
    REAL *copy = allocate(filters ? pixels * p->groups * p->kernel + LANES : 0);
    REAL *mine = allocate(p->width * p->pitch);
    failed |= !copy || !mine;
    for (ptrdiff_t row = first; row < end && !failed; row++) {
        ptrdiff_t image = row / p->height, h = row % p->height;
        copy_pixels(p, mine, p->pitch, x + row * p->width * p->channels, p->channels);
        for (ptrdiff_t kh = 0; kh < p->kernel; kh++) {
            ptrdiff_t other = h + kh * p->dilation - p->border;
            if (other < 0 || other >= p->height)
                continue;
            const REAL *neighbours = bordered_row(p, &source, values, image, other);
            REAL *tap = sums + kh * p->kernel * p->pitch;
#define CALL(size) product_row(p, tap, mine, neighbours, filters, row, kh, copy, size)
            FOR_KERNEL_OR_ONE(p->kernel, CALL)
#undef CALL
        }
    }
    free(copy);
    free(mine);
    close_ring(&source);
    return failed;
}

/* (K*K, pitch) sums of one or more threads -> (K*K, C). */
static void add_partial(const problem *p, REAL *result, const REAL *partial, int threads)
{
    ptrdiff_t taps = p->kernel * p->kernel;
    for (ptrdiff_t tap = 0; tap < taps; tap++)
        for (ptrdiff_t c = 0; c < p->channels; c++) {
            REAL sum = 0;
            for (int thread = 0; thread < threads; thread++)
                sum += partial[(thread * taps + tap) * p->pitch + c];
            result[tap * p->channels + c] = sum;
        }
}

/* result[o, c] = sum_i x[i, c] * filters[i, g(c), o] * values[i + o, c]; `filters` may be NULL.
 * With `per_image` each image has its own sum: result (B, K*K, C). */
int neighborhood_multiplier_grad(REAL *result, const REAL *filters, const REAL *x,
                                 const REAL *values, int per_image, ptrdiff_t batch,
                                 ptrdiff_t height, ptrdiff_t width, ptrdiff_t channels,
                                 ptrdiff_t groups, ptrdiff_t kernel, ptrdiff_t dilation,
                                 int threads)
{
    problem p;
    int failed =
        describe(&p, batch, height, width, channels, groups, kernel, dilation, filters != NULL);
    ptrdiff_t size = kernel * kernel * p.pitch;
    threads = useful_threads(&p, threads);
    if (per_image && threads > batch)
        threads = batch ? (int)batch : 1;
    ptrdiff_t parts = per_image ? batch : threads;
    REAL *partial = allocate(threads * size);
    if (!failed && partial) {
#pragma omp parallel for num_threads(threads) schedule(static, 1) reduction(| : failed)
        for (int thread = 0; thread < threads; thread++)
            for (ptrdiff_t part = parts * thread / threads; part < parts * (thread + 1) / threads;
                 part++) {
                REAL *sums = partial + thread * size;
                memset(sums, 0, (size_t)size * sizeof(REAL));
                failed |= product_rows(&p, sums, filters, x, values, batch * height * part / parts,
                                       batch * height * (part + 1) / parts);
                if (per_image)
                    add_partial(&p, result + part * kernel * kernel * channels, sums, 1);
            }
        if (!per_image)
            add_partial(&p, result, partial, threads);
    } else
        failed = 1;
    free(partial);
    forget(&p);
    return failed;
}
