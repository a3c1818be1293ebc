/* Outlook aggregation (Yuan et al. 2021): a token t of a coarser grid says what each of the K x K
 * pixels around it, its outputs o, gets of each of them, its values u:
 *
 *   y[s*t + o - K/2, c] = sum over t, u of weights[t, h(c), o, u] * v[s*t + u - K/2, c]
 *
 * for stride s; zero outside the map. The aggregation writes row after row of pixels, gathered from
 * the tokens that reach it; its derivative by the weights goes row by row of tokens. Both vectorise
 * over the channels of a head, in buffers where heads are whole vectors behind borders of zeros.
 * Results do not depend on the number of threads.
 */

#include "../neighborhood.h"
#include "../transpose.h"

typedef struct {
    ptrdiff_t batch, height, width, channels, heads, kernel, stride;
    ptrdiff_t depth;         /* channels of a head */
    ptrdiff_t rows, columns; /* of tokens */
    ptrdiff_t before;        /* pixels from the first that a token reaches to its own: K/2 */
    ptrdiff_t pairs;         /* weights of a token and head: K^4 */
} outlook;

static outlook describe_outlook(ptrdiff_t batch, ptrdiff_t height, ptrdiff_t width,
                                ptrdiff_t channels, ptrdiff_t heads, ptrdiff_t kernel,
                                ptrdiff_t stride)
{
    return (outlook){.batch = batch, .height = height, .width = width, .channels = channels,
                     .heads = heads, .kernel = kernel, .stride = stride,
                     .depth = channels / heads, .rows = (height + stride - 1) / stride,
                     .columns = (width + stride - 1) / stride, .before = kernel / 2,
                     .pairs = kernel * kernel * kernel * kernel};
}

static int outlook_threads(const outlook *p, int threads)
{
    problem size = {.batch = p->batch, .height = p->rows, .width = p->columns,
                    .channels = p->channels, .kernel = p->kernel * p->kernel};
    return useful_threads(&size, threads);
}

static inline ptrdiff_t smaller(ptrdiff_t a, ptrdiff_t b) { return a < b ? a : b; }
static inline ptrdiff_t larger(ptrdiff_t a, ptrdiff_t b) { return a > b ? a : b; }

/* How a row of pixels lies in a buffer: heads of whole vectors, borders of zeros. */
typedef struct {
    ptrdiff_t head, pixel, row; /* REALs from one to the next */
    ptrdiff_t slots;            /* rows of values that make one row of outputs */
} layout;

static layout row_layout(const outlook *p)
{
    ptrdiff_t head = round_up(p->depth), vectors = p->heads * head / LANES;
    ptrdiff_t reached = (p->columns - 1) * p->stride + p->kernel;
    return (layout){.head = head, .pixel = (vectors | 1) * LANES,
                    .row = larger(reached, p->before + p->width) * (vectors | 1) * LANES,
                    .slots = smaller(2 * p->kernel - 1, p->height)};
}

/* A row of a map -> a row of a buffer, or back: pixels and heads lie differently. */
static void copy_heads(const outlook *p, REAL *to, ptrdiff_t to_head, ptrdiff_t to_pixel,
                       const REAL *from, ptrdiff_t from_head, ptrdiff_t from_pixel)
{
    ptrdiff_t heads = p->heads, depth = p->depth;
    if (to_head == from_head) {
        heads = 1;
        depth = p->channels;
    }
    for (ptrdiff_t w = 0; w < p->width; w++)
        for (ptrdiff_t head = 0; head < heads; head++)
            memcpy(to + w * to_pixel + head * to_head, from + w * from_pixel + head * from_head,
                   (size_t)depth * sizeof(REAL));
}

/* The rows of values around a row of tokens, `low` to `high` - 1 of K of them in the map. */
typedef struct {
    const REAL **rows;
    ptrdiff_t low, high;
} surroundings;

/* sums[ow] += sum over u of weights[ow, u] * values[u] for `count` outputs of a token (constant)
 * and as many `vectors` of channels; `place` is where the token's first pixel lies in a row. */
INLINE void add_outputs(REAL *sums, const surroundings *values, ptrdiff_t place, ptrdiff_t pixel,
                        const REAL *weights, const int transposed, const ptrdiff_t kernel,
                        const ptrdiff_t count, const ptrdiff_t vectors)
{
    const ptrdiff_t output_step = transposed ? 1 : kernel * kernel;
    const ptrdiff_t value_step = transposed ? kernel * kernel : 1;
    vec total[7][2], mine[2];
#pragma GCC unroll 7
    for (ptrdiff_t i = 0; i < count; i++)
#pragma GCC unroll 2
        for (ptrdiff_t n = 0; n < vectors; n++)
            total[i][n] = *(vec *)(sums + i * pixel + n * LANES);
    for (ptrdiff_t kh = values->low; kh < values->high; kh++) {
        const REAL *value = values->rows[kh] + place;
#pragma GCC unroll 7
        for (ptrdiff_t kw = 0; kw < kernel; kw++) {
            const REAL *weight = weights + (kh * kernel + kw) * value_step;
#pragma GCC unroll 2
            for (ptrdiff_t n = 0; n < vectors; n++) {
                mine[n] = *(const vec *)(value + kw * pixel + n * LANES);
                IN_REGISTER(mine[n]);
            }
#pragma GCC unroll 7
            for (ptrdiff_t i = 0; i < count; i++)
#pragma GCC unroll 2
                for (ptrdiff_t n = 0; n < vectors; n++)
                    total[i][n] += weight[i * output_step] * mine[n];
        }
    }
#pragma GCC unroll 7
    for (ptrdiff_t i = 0; i < count; i++)
#pragma GCC unroll 2
        for (ptrdiff_t n = 0; n < vectors; n++)
            *(vec *)(sums + i * pixel + n * LANES) = total[i][n];
}

/* All heads of a token: a row of its outputs, `count` of them (a constant) at a time. */
INLINE void add_token(const outlook *p, const layout *l, REAL *sums, const surroundings *values,
                      ptrdiff_t place, const REAL *weights, const int transposed,
                      const ptrdiff_t count)
{
    const ptrdiff_t kernel = count == 1 ? p->kernel : count;
    const ptrdiff_t output_step = transposed ? 1 : kernel * kernel;
    for (ptrdiff_t head = 0; head < p->heads; head++, weights += p->pairs)
        for (ptrdiff_t first = 0; first < kernel; first += count) {
            REAL *sum = sums + place + first * l->pixel + head * l->head;
            const REAL *weight = weights + first * output_step;
            ptrdiff_t from = place + head * l->head, c = 0;
            /* Seven outputs of two vectors would not fit into sixteen registers. */
            for (; count < 7 && c + LANES < l->head; c += 2 * LANES)
                add_outputs(sum + c, values, from + c, l->pixel, weight, transposed, kernel, count,
                            2);
            for (; c < l->head; c += LANES)
                add_outputs(sum + c, values, from + c, l->pixel, weight, transposed, kernel, count,
                            1);
        }
}

/* All tokens of a row: their row `kh` of outputs. */
INLINE void add_tokens(const outlook *p, const layout *l, REAL *sums, const surroundings *values,
                       const REAL *weights, ptrdiff_t kh, int transposed, const ptrdiff_t count)
{
    const ptrdiff_t kernel = count == 1 ? p->kernel : count;
    weights += kh * kernel * (transposed ? 1 : kernel * kernel);
    for (ptrdiff_t column = 0; column < p->columns; column++) {
        ptrdiff_t place = column * p->stride * l->pixel;
        if (transposed)
            add_token(p, l, sums, values, place, weights, 1, count);
        else
            add_token(p, l, sums, values, place, weights, 0, count);
        weights += p->heads * p->pairs;
    }
}

/* Find the rows of values around a row of tokens; those outside the map are left out. */
static void surround(const outlook *p, const layout *l, surroundings *found, ring *r,
                     const REAL *values, ptrdiff_t image, ptrdiff_t top)
{
    found->low = larger(0, -top);
    found->high = smaller(p->kernel, p->height - top);
    for (ptrdiff_t kh = found->low; kh < found->high; kh++) {
        ptrdiff_t slot = (top + kh) % l->slots, tag = image * p->height + top + kh;
        REAL *row = r->rows + slot * l->row;
        if (r->tags[slot] != tag)
            copy_heads(p, row + p->before * l->pixel, l->head, l->pixel,
                       values + tag * p->width * p->channels, p->depth, p->channels);
        r->tags[slot] = tag;
        found->rows[kh] = row;
    }
}

/* Rows `first` to `end` - 1 of all images, with buffers of this thread's own. */
static int aggregate_outlook(const outlook *p, REAL *result, const REAL *weights,
                             const REAL *values, int transposed, ptrdiff_t first, ptrdiff_t end)
{
    layout l = row_layout(p);
    surroundings around = {.rows = malloc((size_t)p->kernel * sizeof(REAL *))};
    ring source;
    int failed = open_ring(&source, l.slots, l.row);
    REAL *sums = allocate(l.row);
    failed |= !sums || !around.rows;
    for (ptrdiff_t row = first; row < end && !failed; row++) {
        ptrdiff_t image = row / p->height, below = row % p->height + p->before;
        memset(sums, 0, (size_t)l.row * sizeof(REAL));
        ptrdiff_t token = larger(0, (below - p->kernel + p->stride) / p->stride);
        for (; token < p->rows && token * p->stride <= below; token++) {
            ptrdiff_t top = token * p->stride - p->before, kh = below - token * p->stride;
            const REAL *weight =
                weights + (image * p->rows + token) * p->columns * p->heads * p->pairs;
            surround(p, &l, &around, &source, values, image, top);
#define CALL(size) add_tokens(p, &l, sums, &around, weight, kh, transposed, size)
            FOR_KERNEL_OR_ONE(p->kernel, CALL)
#undef CALL
        }
        copy_heads(p, result + row * p->width * p->channels, p->depth, p->channels,
                   sums + p->before * l.pixel, l.head, l.pixel);
    }
    free(around.rows);
    free(sums);
    close_ring(&source);
    return failed;
}

/* y[s*t + o] = sum over t and u of weights[t, o, u] * v[s*t + u]; transposed, of weights[t, u, o].
 * The weights are (B, tokens, N, K*K, K*K), the maps (B, H, W, C). */
int outlook_aggregate(REAL *result, const REAL *weights, const REAL *values, int transposed,
                      ptrdiff_t batch, ptrdiff_t height, ptrdiff_t width, ptrdiff_t channels,
                      ptrdiff_t heads, ptrdiff_t kernel, ptrdiff_t stride, int threads)
{
    outlook p = describe_outlook(batch, height, width, channels, heads, kernel, stride);
    int failed = 0;
    threads = outlook_threads(&p, threads);
#pragma omp parallel for num_threads(threads) schedule(static, 1) reduction(| : failed)
    for (int thread = 0; thread < threads; thread++)
        failed |= aggregate_outlook(&p, result, weights, values, transposed,
                                    batch * height * thread / threads,
                                    batch * height * (thread + 1) / threads);
    return failed;
}

/* Where the even or the odd lanes of two vectors lie, inside of their parts; and whole parts. */
#define LANES_OF_TWO(odd) \
    (lane / PART * PART + lane % PART * 2 % PART + lane % PART * 2 / PART * LANES + (odd))
#define PARTS_OF_TWO(odd) ((lane / PART * 2 + (odd)) * PART + lane % PART)

/* Lane i is the sum of the lanes of vector i, of LANES vectors: neighbours are added until one lane
 * of each is left. */
INLINE vec lane_sums(const vec *from)
{
    vec a[LANES], even, odd;
#pragma GCC unroll 16
    for (ptrdiff_t i = 0; i < LANES; i++)
        a[i] = from[i];
#pragma GCC unroll 4
    for (ptrdiff_t step = 1; step < LANES; step *= 2)
#pragma GCC unroll 8
        for (ptrdiff_t i = 0; i < LANES / step / 2; i++) {
            if (step < PART) {
                SHUFFLE(a[2 * i], a[2 * i + 1], LANES_OF_TWO(0), even)
                SHUFFLE(a[2 * i], a[2 * i + 1], LANES_OF_TWO(1), odd)
            } else {
                SHUFFLE(a[2 * i], a[2 * i + 1], PARTS_OF_TWO(0), even)
                SHUFFLE(a[2 * i], a[2 * i + 1], PARTS_OF_TWO(1), odd)
            }
            a[i] = even + odd;
        }
    return a[0];
}

/* sums[i, j] = x[i] * values[j], lane by lane, for `outputs` x `count` pairs of pixels (both
 * constant) of one head. */
INLINE void multiply_pixels(const layout *l, vec *sums, ptrdiff_t taps, const REAL *x,
                            const REAL *values, const ptrdiff_t outputs, const ptrdiff_t count)
{
    vec total[3][7], theirs[7];
#pragma GCC unroll 3
    for (ptrdiff_t i = 0; i < outputs; i++)
#pragma GCC unroll 7
        for (ptrdiff_t j = 0; j < count; j++)
            total[i][j] = (vec){0};
    for (ptrdiff_t c = 0; c < l->head; c += LANES) {
#pragma GCC unroll 7
        for (ptrdiff_t j = 0; j < count; j++) {
            theirs[j] = *(const vec *)(values + j * l->pixel + c);
            if (outputs > 1)
                IN_REGISTER(theirs[j]);
        }
#pragma GCC unroll 3
        for (ptrdiff_t i = 0; i < outputs; i++) {
            vec mine = *(const vec *)(x + i * l->pixel + c);
#pragma GCC unroll 7
            for (ptrdiff_t j = 0; j < count; j++)
                total[i][j] += mine * theirs[j];
        }
    }
#pragma GCC unroll 3
    for (ptrdiff_t i = 0; i < outputs; i++)
#pragma GCC unroll 7
        for (ptrdiff_t j = 0; j < count; j++)
            sums[i * taps + j] = total[i][j];
}

/* A row of a token's outputs in one head times all of its values: K of them times K*K. */
INLINE void multiply_row(const outlook *p, const layout *l, REAL *result, vec *sums,
                         const REAL *x, const surroundings *values, ptrdiff_t place,
                         const ptrdiff_t count)
{
    /* Nine or ten sums stay in registers. */
    const ptrdiff_t outputs = count == 3 ? 3 : count == 5 ? 2 : 1;
    const ptrdiff_t kernel = count == 1 ? p->kernel : count, taps = kernel * kernel;
    for (ptrdiff_t kh = values->low; kh < values->high; kh++)
        for (ptrdiff_t first = 0; first < kernel; first += count) {
            const REAL *theirs = values->rows[kh] + place + first * l->pixel;
            vec *sum = sums + kh * kernel + first;
            ptrdiff_t i = 0;
            for (; i + outputs <= kernel; i += outputs)
                multiply_pixels(l, sum + i * taps, taps, x + i * l->pixel, theirs, outputs, count);
            if (i < kernel)
                multiply_pixels(l, sum + i * taps, taps, x + i * l->pixel, theirs, 1, count);
        }
    for (ptrdiff_t i = 0; i < kernel * taps; i += LANES) {
        vec found = lane_sums(sums + i);
        if (i + LANES <= kernel * taps)
            *(unaligned_vec *)(result + i) = found;
        else
            memcpy(result + i, &found, (size_t)(kernel * taps - i) * sizeof(REAL));
    }
}

/* All tokens of a row. The sums of rows outside the map are zero, and stay so. */
INLINE void multiply_tokens(const outlook *p, const layout *l, REAL *result, vec *sums,
                            const surroundings *x, const surroundings *values,
                            const ptrdiff_t count)
{
    ptrdiff_t size = p->pairs / p->kernel;
    for (ptrdiff_t column = 0; column < p->columns; column++)
        for (ptrdiff_t head = 0; head < p->heads; head++)
            for (ptrdiff_t kh = 0; kh < p->kernel; kh++, result += size) {
                ptrdiff_t place = column * p->stride * l->pixel + head * l->head;
                if (kh < x->low || kh >= x->high)
                    memset(result, 0, (size_t)size * sizeof(REAL));
                else
                    multiply_row(p, l, result, sums, x->rows[kh] + place, values, place, count);
            }
}

/* Rows `first` to `end` - 1 of the tokens of all images, with buffers of this thread's own. */
static int multiply_outlook(const outlook *p, REAL *result, const REAL *x, const REAL *values,
                            ptrdiff_t first, ptrdiff_t end)
{
    layout l = row_layout(p);
    ptrdiff_t sums_size = (p->pairs / p->kernel + LANES) * LANES;
    surroundings mine = {.rows = malloc((size_t)p->kernel * sizeof(REAL *))};
    surroundings theirs = {.rows = malloc((size_t)p->kernel * sizeof(REAL *))};
    ring rings[2];
    int failed = open_ring(&rings[0], l.slots, l.row);
    failed |= open_ring(&rings[1], l.slots, l.row);
    vec *sums = allocate(sums_size);
    failed |= !sums || !mine.rows || !theirs.rows;
    for (ptrdiff_t row = first; row < end && !failed; row++) {
        ptrdiff_t image = row / p->rows, top = row % p->rows * p->stride - p->before;
        REAL *to = result + row * p->columns * p->heads * p->pairs;
        surround(p, &l, &mine, &rings[0], x, image, top);
        surround(p, &l, &theirs, &rings[1], values, image, top);
        memset(sums, 0, (size_t)sums_size * sizeof(REAL));
#define CALL(size) multiply_tokens(p, &l, to, sums, &mine, &theirs, size)
        FOR_KERNEL_OR_ONE(p->kernel, CALL)
#undef CALL
    }
    free(mine.rows);
    free(theirs.rows);
    free(sums);
    close_ring(&rings[0]);
    close_ring(&rings[1]);
    return failed;
}

/* result[t, o, u] = sum over the channels of each head of x[s*t + o] * values[s*t + u]. */
int outlook_products(REAL *result, const REAL *x, const REAL *values, ptrdiff_t batch,
                     ptrdiff_t height, ptrdiff_t width, ptrdiff_t channels, ptrdiff_t heads,
                     ptrdiff_t kernel, ptrdiff_t stride, int threads)
{
    outlook p = describe_outlook(batch, height, width, channels, heads, kernel, stride);
    int failed = 0;
    threads = outlook_threads(&p, threads);
#pragma omp parallel for num_threads(threads) schedule(static, 1) reduction(| : failed)
    for (int thread = 0; thread < threads; thread++)
        failed |= multiply_outlook(&p, result, x, values, batch * p.rows * thread / threads,
                                   batch * p.rows * (thread + 1) / threads);
    return failed;
}
