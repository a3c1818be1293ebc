/* Neighbourhood operators on channels-last maps (B, H, W, C), compiled once for each REAL type.
 *
 * The primitives are the derivatives of  sum_{i,o,c} multiplier[o,c] a[i,g(c),o] x[i,c] v[i+o,c]
 * by x, v, a and multiplier. Offset o = kh*K + kw reads pixel (h + (kh - K/2)*d, w + (kw - K/2)*d)
 * for dilation d, zero outside the map; K may be even: then there is one offset more before the
 * pixel than after it. Group g owns the contiguous channels g*C/G ... (g+1)*C/G - 1.
 *
 * Rows of the maps are copied into small zero-bordered buffers that stay in the cache: whole
 * vectors of channels for each pixel, so that inner loops have neither borders nor ragged ends.
 * Every public function returns 0, or 1 when memory ran out. Results depend on the number of
 * threads only through the order of the sums in `neighborhood_multiplier_grad`.
 */

#ifndef MIXER_SEARCH_NEIGHBORHOOD_H
#define MIXER_SEARCH_NEIGHBORHOOD_H

#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#ifdef __AVX512F__
#define VECTOR_BYTES 64
#elif defined(__AVX__)
#define VECTOR_BYTES 32
#else
#define VECTOR_BYTES 16
#endif
#define LANES ((ptrdiff_t)(VECTOR_BYTES / sizeof(REAL)))

typedef REAL vec __attribute__((vector_size(VECTOR_BYTES), may_alias));
typedef REAL unaligned_vec
    __attribute__((vector_size(VECTOR_BYTES), aligned(sizeof(REAL)), may_alias));
/* INDEX is the integer type as wide as REAL. */
typedef INDEX lane_index __attribute__((vector_size(VECTOR_BYTES), may_alias));

#define INLINE static inline __attribute__((always_inline))

/* REALs of a cache line. */
#define LINE ((ptrdiff_t)(64 / sizeof(REAL)))
/* Load once what is used several times: compilers would rather load it again for each use. */
#if defined(__x86_64__)
#define IN_REGISTER(value) __asm__("" : "+x"(value))
#else
#define IN_REGISTER(value) ((void)0)
#endif

/* Where the filter of a channel comes from. */
enum source { NONE, BROADCAST, EXPAND };

typedef struct {
    ptrdiff_t batch, height, width, channels, groups, kernel, dilation;
    ptrdiff_t border; /* zero pixels on either side of a row: K/2 * dilation */
    ptrdiff_t slots;  /* rows of the map that the taps of one row span: (K - 1) * dilation + 1 */
    /* REALs of a pixel in a buffer: an odd number of vectors, so that pixels differ in cache set. */
    ptrdiff_t pitch;
    ptrdiff_t row; /* REALs of a zero-bordered row: (width + 2 * border) * pitch */
    enum source source;
    const ptrdiff_t *offsets; /* where each vector of channels begins in a pixel's filters */
    const lane_index *lanes;  /* EXPAND: group of each lane, counted from the vector's first */
} problem;

/* The last `slots` rows of a map with zero borders; row r lives in slot r % slots. */
typedef struct {
    REAL *rows;
    ptrdiff_t *tags;
} ring;

/* Zeroed memory for `count` items as wide as REAL, aligned to vectors; NULL when there is none. */
static inline void *allocate(ptrdiff_t count)
{
    void *memory = NULL;
    size_t bytes = (size_t)count * sizeof(REAL) + 1;
    if (posix_memalign(&memory, 64, bytes))
        return NULL;
    return memset(memory, 0, bytes);
}

static inline ptrdiff_t round_up(ptrdiff_t count) { return (count + LANES - 1) / LANES * LANES; }

static inline int open_ring(ring *r, ptrdiff_t slots, ptrdiff_t reals)
{
    r->rows = allocate(slots * reals);
    r->tags = malloc((size_t)slots * sizeof(ptrdiff_t));
    for (ptrdiff_t slot = 0; r->tags && slot < slots; slot++)
        r->tags[slot] = -1;
    return !r->rows || !r->tags;
}

static inline void close_ring(ring *r)
{
    free(r->rows);
    free(r->tags);
}

/* Small problems run on fewer threads: waking one costs as much as some 10^5 operations. */
static inline int useful_threads(const problem *p, int threads)
{
    double work = (double)p->batch * p->height * p->width * p->channels * p->kernel * p->kernel;
    double useful = work / (1 << 18);
    return useful < 1 ? 1 : useful < threads ? (int)useful : threads;
}

/* Fill in a problem; its tables are the caller's to `forget`, also when memory ran out (1). */
static inline int describe(problem *p, ptrdiff_t batch, ptrdiff_t height, ptrdiff_t width,
                           ptrdiff_t channels, ptrdiff_t groups, ptrdiff_t kernel,
                           ptrdiff_t dilation, int has_filters)
{
    ptrdiff_t vectors = round_up(channels) / LANES, depth = channels / groups;
    ptrdiff_t pitch = (vectors | 1) * LANES;
    ptrdiff_t *offsets = malloc((size_t)vectors * sizeof(ptrdiff_t));
    lane_index *lanes = allocate(vectors * LANES);
    *p = (problem){.batch = batch, .height = height, .width = width, .channels = channels,
                   .groups = groups, .kernel = kernel, .dilation = dilation, .pitch = pitch,
                   .border = kernel / 2 * dilation, .slots = (kernel - 1) * dilation + 1,
                   .row = (width + 2 * (kernel / 2) * dilation) * pitch};
    p->source = !has_filters ? NONE : depth % LANES == 0 ? BROADCAST : EXPAND;
    p->offsets = offsets;
    p->lanes = lanes;
    if (!offsets || !lanes)
        return 1;
    for (ptrdiff_t vector = 0; vector < vectors; vector++) {
        ptrdiff_t first = vector * LANES / depth;
        offsets[vector] = p->source == BROADCAST ? first * p->kernel : first;
        for (ptrdiff_t lane = 0; lane < LANES; lane++) {
            ptrdiff_t group = (vector * LANES + lane) / depth;
            lanes[vector][lane] = (INDEX)((group < p->groups ? group : p->groups - 1) - first);
        }
    }
    return 0;
}

static inline void forget(problem *p)
{
    free((void *)p->offsets);
    free((void *)p->lanes);
}

static inline void copy_pixels(const problem *p, REAL *to, ptrdiff_t to_pitch, const REAL *from,
                               ptrdiff_t from_pitch)
{
    for (ptrdiff_t w = 0; w < p->width; w++)
        memcpy(to + w * to_pitch, from + w * from_pitch, (size_t)p->channels * sizeof(REAL));
}

/* Row h of an image with its zero border, copied into the ring unless it is there. */
static inline const REAL *bordered_row(const problem *p, ring *r, const REAL *map,
                                       ptrdiff_t image, ptrdiff_t h)
{
    ptrdiff_t slot = h % p->slots, tag = image * p->height + h;
    REAL *row = r->rows + slot * p->row;
    if (r->tags[slot] != tag) {
        r->tags[slot] = tag;
        copy_pixels(p, row + p->border * p->pitch, p->pitch,
                    map + tag * p->width * p->channels, p->channels);
    }
    return row;
}

/* The K filters of one tap row for every pixel of a map row, behind a border of zero pixels:
 * (W, G, K) for BROADCAST, (W, K, G) for EXPAND. */
INLINE void copy_filters(const problem *p, REAL *to, const REAL *filters, ptrdiff_t map_row,
                         ptrdiff_t kh, const ptrdiff_t kernel)
{
    ptrdiff_t taps = kernel * kernel, groups = p->groups;
    const REAL *from = filters + map_row * p->width * groups * taps + kh * kernel;
    to += p->border * groups * kernel;
    ptrdiff_t group_step = p->source == BROADCAST ? kernel : 1;
    ptrdiff_t tap_step = p->source == BROADCAST ? 1 : groups;
    for (ptrdiff_t w = 0; w < p->width; w++, from += groups * taps, to += groups * kernel)
        for (ptrdiff_t g = 0; g < groups; g++)
            for (ptrdiff_t kw = 0; kw < kernel; kw++)
                to[g * group_step + kw * tap_step] = from[g * taps + kw];
}

/* Multiply channels by their filters: `filters` is a tap's first one, `offset` the vector's. */
INLINE vec filtered(vec x, const enum source source, const REAL *filters, ptrdiff_t offset,
                    lane_index lanes)
{
    if (source == BROADCAST)
        return x * filters[offset];
    if (source == EXPAND) {
        vec found = *(const unaligned_vec *)(filters + offset);
#ifdef __clang__
        vec spread;
        for (ptrdiff_t lane = 0; lane < LANES; lane++)
            spread[lane] = found[lanes[lane]];
        return x * spread;
#else
        return x * __builtin_shuffle(found, lanes);
#endif
    }
    return x;
}

/* Whether vectors that overlap are cut out of two aligned ones: loading each would cross a cache
 * line every time. It needs neighbours one apart, and no more of them than there are lanes. */
#if defined(__AVX512F__) && !defined(__clang__)
#define CAN_SHIFT 1
/* Lanes n to n + LANES - 1 of two vectors in a row. */
INLINE vec shifted(vec low, vec high, const ptrdiff_t n)
{
    lane_index order;
    for (ptrdiff_t lane = 0; lane < LANES; lane++)
        order[lane] = (INDEX)(n + lane);
    return __builtin_shuffle(low, high, order);
}
#else
#define CAN_SHIFT 0
INLINE vec shifted(vec low, vec high, const ptrdiff_t n)
{
    (void)high;
    return n ? (vec){0} : low;
}
#endif

/* Call with the kernel size as a constant where it is a common one. */
#define FOR_KERNEL(size, call) \
    switch (size) {            \
    case 3: call(3); break;    \
    case 5: call(5); break;    \
    case 7: call(7); break;    \
    default: call(size);       \
    }
/* The same; other sizes go tap by tap. */
#define FOR_KERNEL_OR_ONE(size, call) \
    switch (size) {                   \
    case 3: call(3); break;           \
    case 5: call(5); break;           \
    case 7: call(7); break;           \
    default: call(1);                 \
    }

#endif
