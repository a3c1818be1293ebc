/* Products of pixels with their neighbours, computed on channel planes, and the skew of taps. */

#include "../neighborhood.h"
#include "../transpose.h"

/* result[kw, w] = sum over the channels of each group of multiplier * x[w] * y[w + kw * dilation];
 * planar rows x (C, wide) and y (C, wide + 2 * border in whole vectors), multiplier (K, C) of a tap
 * row. */
INLINE void correlate(const problem *p, REAL *result, const REAL *x, const REAL *y, ptrdiff_t wide,
                      const REAL *multiplier, const int has_multiplier, const ptrdiff_t first,
                      const ptrdiff_t count, const int shift)
{
    ptrdiff_t depth = p->channels / p->groups, taps = p->kernel * p->kernel;
    ptrdiff_t bordered = wide + round_up(2 * p->border), step = p->dilation;
    for (ptrdiff_t group = 0; group < p->groups; group++)
        for (ptrdiff_t w = 0; w < wide; w += LANES) {
            vec total[7];
#pragma GCC unroll 7
            for (ptrdiff_t kw = 0; kw < count; kw++)
                total[kw] = (vec){0};
            for (ptrdiff_t c = group * depth; c < (group + 1) * depth; c++) {
                vec mine = *(const vec *)(x + c * wide + w);
                const REAL *theirs = y + c * bordered + w + first * step;
                vec low = {0}, high = {0};
                if (shift) {
                    low = *(const vec *)theirs;
                    high = *(const vec *)(theirs + LANES);
                }
#pragma GCC unroll 7
                for (ptrdiff_t kw = 0; kw < count; kw++) {
                    vec factor = mine;
                    if (has_multiplier)
                        factor *= multiplier[(first + kw) * p->channels + c];
                    vec value = shift ? shifted(low, high, kw)
                                      : (vec)*(const unaligned_vec *)(theirs + kw * step);
                    total[kw] += factor * value;
                }
            }
#pragma GCC unroll 7
            for (ptrdiff_t kw = 0; kw < count; kw++)
                *(vec *)(result + (group * taps + first + kw) * wide + w) = total[kw];
        }
}

INLINE void correlate_row(const problem *p, REAL *result, const REAL *x, const REAL *y,
                          ptrdiff_t wide, const REAL *multiplier, const ptrdiff_t count)
{
    for (ptrdiff_t first = 0; first < p->kernel; first += count) {
        if (multiplier)
            correlate(p, result, x, y, wide, multiplier, 1, first, count, 0);
        else if (CAN_SHIFT && count > 1 && p->dilation == 1)
            correlate(p, result, x, y, wide, multiplier, 0, first, count, 1);
        else
            correlate(p, result, x, y, wide, multiplier, 0, first, count, 0);
    }
}

static int correlate_rows(const problem *p, REAL *result, const REAL *x, const REAL *y,
                          const REAL *multiplier, int per_image, ptrdiff_t first, ptrdiff_t end)
{
    ptrdiff_t taps = p->groups * p->kernel * p->kernel, factors = taps / p->groups * p->channels;
    ptrdiff_t wide = round_up(p->width), bordered = wide + round_up(2 * p->border);
    ptrdiff_t row_size = p->width * p->channels;
    ring source;
    int failed = open_ring(&source, p->slots, p->channels * bordered);
    REAL *mine = allocate(round_up(p->channels) * wide);
    REAL *planes = allocate(taps * wide);
    failed |= !mine || !planes;
    for (ptrdiff_t row = first; row < end && !failed; row++) {
        ptrdiff_t image = row / p->height, h = row % p->height;
        transpose(x + row * row_size, p->channels, p->width, p->channels, mine, wide, 1);
        for (ptrdiff_t kh = 0; kh < p->kernel; kh++) {
            ptrdiff_t other = h + kh * p->dilation - p->border;
            REAL *plane = planes + kh * p->kernel * wide;
            if (other < 0 || other >= p->height) {
                for (ptrdiff_t group = 0; group < p->groups; group++)
                    memset(plane + group * p->kernel * p->kernel * wide, 0,
                           (size_t)(p->kernel * wide) * sizeof(REAL));
                continue;
            }
            ptrdiff_t slot = other % p->slots, tag = image * p->height + other;
            REAL *neighbours = source.rows + slot * p->channels * bordered;
            if (source.tags[slot] != tag) {
                source.tags[slot] = tag;
                transpose(y + tag * row_size, p->channels, p->width, p->channels,
                          neighbours + p->border, bordered, 1);
            }
            const REAL *factor = multiplier ? multiplier + kh * p->kernel * p->channels : NULL;
            if (factor && per_image)
                factor += image * factors;
#define CALL(size) correlate_row(p, plane, mine, neighbours, wide, factor, size)
            FOR_KERNEL_OR_ONE(p->kernel, CALL)
#undef CALL
        }
        transpose(planes, wide, taps, p->width, result + row * p->width * taps, taps, 0);
    }
    free(mine);
    free(planes);
    close_ring(&source);
    return failed;
}

/* result[i, g, o] = sum over the channels c of group g of multiplier[o, c] * x[i, c] * y[i + o, c];
 * `multiplier` (K*K,C), or (B,K*K,C) with `per_image`, may be NULL. */
int neighborhood_logits(REAL *result, const REAL *x, const REAL *y, const REAL *multiplier,
                        int per_image, ptrdiff_t batch, ptrdiff_t height, ptrdiff_t width,
                        ptrdiff_t channels, ptrdiff_t groups, ptrdiff_t kernel, ptrdiff_t dilation,
                        int threads)
{
    problem p = {.batch = batch, .height = height, .width = width, .channels = channels,
                 .groups = groups, .kernel = kernel, .dilation = dilation,
                 .border = kernel / 2 * dilation, .slots = (kernel - 1) * dilation + 1};
    int failed = 0;
    threads = useful_threads(&p, threads);
#pragma omp parallel for num_threads(threads) schedule(static, 1) reduction(| : failed)
    for (int thread = 0; thread < threads; thread++)
        failed |= correlate_rows(&p, result, x, y, multiplier, per_image,
                                 batch * height * thread / threads,
                                 batch * height * (thread + 1) / threads);
    return failed;
}

/* result[i, g, o] = terms[i + o, g, o], or its transpose result[j, g, o] = terms[j - o, g, o]; zero
 * where that is outside the map. */
int neighborhood_skew(REAL *result, const REAL *terms, int transposed, ptrdiff_t batch,
                      ptrdiff_t height, ptrdiff_t width, ptrdiff_t groups, ptrdiff_t kernel,
                      ptrdiff_t dilation, int threads)
{
    problem p = {.batch = batch, .height = height, .width = width, .channels = groups,
                 .kernel = kernel};
    ptrdiff_t half = kernel / 2, taps = kernel * kernel, pixel = groups * taps;
    threads = useful_threads(&p, threads);
#pragma omp parallel for num_threads(threads) schedule(static)
    for (ptrdiff_t row = 0; row < batch * height; row++)
        for (ptrdiff_t i = 0; i < width * kernel; i++) {
            ptrdiff_t w = i / kernel, kh = i % kernel;
            ptrdiff_t dh = (transposed ? half - kh : kh - half) * dilation, h = row % height + dh;
            REAL *to = result + (row * width + w) * pixel + kh * kernel;
            const REAL *from = terms + ((row + dh) * width + w) * pixel + kh * kernel;
            for (ptrdiff_t kw = 0; kw < kernel; kw++) {
                ptrdiff_t dw = (transposed ? half - kw : kw - half) * dilation;
                int inside = h >= 0 && h < height && w + dw >= 0 && w + dw < width;
                for (ptrdiff_t g = 0; g < groups; g++)
                    to[g * taps + kw] = inside ? from[dw * pixel + g * taps + kw] : 0;
            }
        }
    return 0;
}
