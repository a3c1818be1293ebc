/* Gradients of a depth-wise convolution: of its input, its filters and its bias in one pass.
 *
 * Both gradients of a pixel read the same neighbours of the output's gradient g:
 *     values_grad[i] = sum_o m[o] g[i - o],   multiplier_grad[o] += values[i] g[i - o].
 * Rows are copied as strips of one vector of channels, those of g once and with zero borders: reads
 * of the maps are sequential and all taps are at constant distances. The taps' sums of a strip stay
 * in registers along a row.
 */

#include "../strips.h"

typedef struct {
    problem shape;
    const REAL *grad, *values, *multiplier;
    int per_image;
} convolution;

/* The rows of one strip that a group of taps reads, and what they are multiplied with. */
typedef struct {
    const REAL *rows[3]; /* of g, at the pixel that the first tap of pixel 0 reads */
    const REAL *values;
    REAL *values_grad;
} strip;

/* `count` pixels from w on, `rows` x `taps` taps; sums of the pixels go on unless `is_first`. */
INLINE void grad_pixels(const strip *s, ptrdiff_t w, const REAL *factors, vec *totals,
                        const ptrdiff_t step, const ptrdiff_t rows, const ptrdiff_t taps,
                        const ptrdiff_t count, int is_first)
{
    vec mine[4], sums[4];
#pragma GCC unroll 4
    for (ptrdiff_t n = 0; n < count; n++) {
        mine[n] = *(const vec *)(s->values + (w + n) * LANES);
        sums[n] = (vec){0};
        if (!is_first)
            sums[n] = *(const vec *)(s->values_grad + (w + n) * LANES);
    }
#pragma GCC unroll 3
    for (ptrdiff_t row = 0; row < rows; row++)
#pragma GCC unroll 7
        for (ptrdiff_t kw = 0; kw < taps; kw++) {
            vec factor = *(const vec *)(factors + (row * taps + kw) * LANES);
#pragma GCC unroll 4
            for (ptrdiff_t n = 0; n < count; n++) {
                vec there = *(const vec *)(s->rows[row] + (w + n) * LANES - kw * step);
                if (rows > 1) /* else neighbouring pixels' loads are joined, and spilled */
                    IN_REGISTER(there);
                totals[row * taps + kw] += mine[n] * there;
                sums[n] += factor * there;
            }
        }
#pragma GCC unroll 4
    for (ptrdiff_t n = 0; n < count; n++)
        *(vec *)(s->values_grad + (w + n) * LANES) = sums[n];
}

/* A row of a strip: as many pixels at a time as registers hold. */
INLINE void grad_strip(const strip *s, ptrdiff_t width, const REAL *factors, REAL *totals,
                       const ptrdiff_t step, const ptrdiff_t rows, const ptrdiff_t taps,
                       int is_first)
{
    const ptrdiff_t count = rows * taps > 7 ? 1 : rows * taps > 5 ? 2 : 4;
    vec held[9];
#pragma GCC unroll 9
    for (ptrdiff_t tap = 0; tap < rows * taps; tap++)
        held[tap] = *(vec *)(totals + tap * LANES);
    ptrdiff_t w = 0;
    for (; w + count <= width; w += count)
        grad_pixels(s, w, factors, held, step, rows, taps, count, is_first);
    for (; w < width; w++)
        grad_pixels(s, w, factors, held, step, rows, taps, 1, is_first);
#pragma GCC unroll 9
    for (ptrdiff_t tap = 0; tap < rows * taps; tap++)
        *(vec *)(totals + tap * LANES) = held[tap];
}

/* The row of g that row h of the map meets at each kh, for one strip; `nothing` outside the map. */
INLINE void grad_row(const problem *p, strip s, const REAL *const *found, const REAL *factors,
                     REAL *totals, const ptrdiff_t rows, const ptrdiff_t taps)
{
    for (ptrdiff_t kh = 0; kh < p->kernel; kh += rows)
        for (ptrdiff_t kw = 0; kw < p->kernel; kw += taps) {
            ptrdiff_t tap = (kh * p->kernel + kw) * LANES;
            for (ptrdiff_t row = 0; row < rows; row++)
                s.rows[row] = found[kh + row] + (2 * p->border - kw * p->dilation) * LANES;
            if (p->dilation == 1)
                grad_strip(&s, p->width, factors + tap, totals + tap, LANES, rows, taps, !tap);
            else
                grad_strip(&s, p->width, factors + tap, totals + tap, p->dilation * LANES, rows,
                           taps, !tap);
        }
}

/* (K*K, C) -> strips (vectors, K*K, LANES), or back with the sums of several threads. */
static void split_taps(const problem *p, REAL *strips, const REAL *multiplier)
{
    ptrdiff_t taps = p->kernel * p->kernel;
    for (ptrdiff_t tap = 0; tap < taps; tap++)
        for (ptrdiff_t c = 0; c < p->channels; c++)
            strips[(c / LANES * taps + tap) * LANES + c % LANES] =
                multiplier[tap * p->channels + c];
}

static void join_taps(const problem *p, REAL *result, const REAL *strips, ptrdiff_t taps,
                      ptrdiff_t parts, ptrdiff_t part_size)
{
    for (ptrdiff_t tap = 0; tap < taps; tap++)
        for (ptrdiff_t c = 0; c < p->channels; c++) {
            REAL sum = 0;
            for (ptrdiff_t part = 0; part < parts; part++)
                sum += strips[part * part_size + (c / LANES * taps + tap) * LANES + c % LANES];
            result[tap * p->channels + c] = sum;
        }
}

/* Rows `first` to `end` - 1 of all images; `totals` and `bias_totals` are added to. */
static int grad_rows(const convolution *job, REAL *values_grad, REAL *totals, REAL *bias_totals,
                     ptrdiff_t first, ptrdiff_t end)
{
    const problem *p = &job->shape;
    ptrdiff_t taps = p->kernel * p->kernel, vectors = round_up(p->channels) / LANES;
    ptrdiff_t bordered = strip_pitch(p->width + 2 * p->border), wide = strip_pitch(p->width);
    ptrdiff_t row_size = p->width * p->channels;
    ring source;
    int failed = open_ring(&source, p->slots, vectors * bordered * LANES);
    REAL *nothing = allocate(bordered * LANES), *factors = allocate(vectors * taps * LANES);
    REAL *mine = allocate(2 * vectors * wide * LANES);
    REAL *result = mine + vectors * wide * LANES;
    const REAL **found = malloc((size_t)p->kernel * sizeof(REAL *));
    ptrdiff_t held = -1; /* the image whose multiplier `factors` holds */
    failed |= !nothing || !factors || !mine || !found;
    for (ptrdiff_t row = first; row < end && !failed; row++) {
        ptrdiff_t image = row / p->height, h = row % p->height, wanted = job->per_image ? image : 0;
        if (held != wanted)
            split_taps(p, factors, job->multiplier + wanted * taps * p->channels);
        held = wanted;
        for (ptrdiff_t kh = 0; kh < p->kernel; kh++) {
            ptrdiff_t other = h - kh * p->dilation + p->border;
            ptrdiff_t slot = other % p->slots, tag = image * p->height + other;
            if (other < 0 || other >= p->height || source.tags[slot] == tag)
                continue;
            split_pixels(p, source.rows + (slot * vectors * bordered + p->border) * LANES, bordered,
                         job->grad + tag * row_size);
            source.tags[slot] = tag;
        }
        split_pixels(p, mine, wide, job->values + row * row_size);
        for (ptrdiff_t vector = 0; vector < vectors; vector++) {
            for (ptrdiff_t kh = 0; kh < p->kernel; kh++) {
                ptrdiff_t other = h - kh * p->dilation + p->border;
                int inside = other >= 0 && other < p->height;
                ptrdiff_t place = other % p->slots * vectors + vector;
                found[kh] = inside ? source.rows + place * bordered * LANES : nothing;
            }
            strip s = {.values = mine + vector * wide * LANES,
                       .values_grad = result + vector * wide * LANES};
            REAL *factor = factors + vector * taps * LANES, *total = totals + vector * taps * LANES;
            switch (p->kernel) {
            case 3: grad_row(p, s, found, factor, total, 3, 3); break;
            case 5: grad_row(p, s, found, factor, total, 1, 5); break;
            case 7: grad_row(p, s, found, factor, total, 1, 7); break;
            default: grad_row(p, s, found, factor, total, 1, 1);
            }
            ptrdiff_t place = h % p->slots * vectors + vector;
            const REAL *centre = source.rows + (place * bordered + p->border) * LANES;
            *(vec *)(bias_totals + vector * LANES) += sum_strip(centre, p->width);
        }
        join_pixels(p, values_grad + row * row_size, result, wide);
    }
    free(nothing);
    free(factors);
    free(mine);
    free(found);
    close_ring(&source);
    return failed;
}

/* Gradients of y[i] = bias + sum_o multiplier[o] * values[i + o] from `grad`, that of y:
 * values_grad (B,H,W,C), multiplier_grad like the multiplier (K*K,C), or (B,K*K,C) with
 * `per_image`, and bias_grad (C). */
int neighborhood_depthwise_grad(REAL *values_grad, REAL *multiplier_grad, REAL *bias_grad,
                                const REAL *grad, const REAL *values, const REAL *multiplier,
                                int per_image, ptrdiff_t batch, ptrdiff_t height, ptrdiff_t width,
                                ptrdiff_t channels, ptrdiff_t kernel, ptrdiff_t dilation,
                                int threads)
{
    convolution job = {.grad = grad, .values = values, .multiplier = multiplier,
                       .per_image = per_image};
    problem *p = &job.shape;
    int failed = describe(p, batch, height, width, channels, 1, kernel, dilation, 0);
    ptrdiff_t size = kernel * kernel * round_up(channels), taps = kernel * kernel;
    threads = useful_threads(p, threads);
    if (per_image && threads > batch)
        threads = batch ? (int)batch : 1;
    ptrdiff_t parts = per_image ? batch : threads;
    REAL *partial = allocate(threads * size), *bias = allocate(threads * round_up(channels));
    failed |= !partial || !bias;
    if (!failed) {
#pragma omp parallel for num_threads(threads) schedule(static, 1) reduction(| : failed)
        for (int thread = 0; thread < threads; thread++)
            for (ptrdiff_t part = parts * thread / threads; part < parts * (thread + 1) / threads;
                 part++) {
                REAL *totals = partial + thread * size;
                memset(totals, 0, (size_t)size * sizeof(REAL));
                failed |= grad_rows(&job, values_grad, totals, bias + thread * round_up(channels),
                                    batch * height * part / parts,
                                    batch * height * (part + 1) / parts);
                if (per_image)
                    join_taps(p, multiplier_grad + part * taps * channels, totals, taps, 1, 0);
            }
        if (!per_image)
            join_taps(p, multiplier_grad, partial, taps, threads, size);
        join_taps(p, bias_grad, bias, 1, threads, round_up(channels));
    }
    free(partial);
    free(bias);
    forget(p);
    return failed;
}
