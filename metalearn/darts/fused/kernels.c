/* Passes over all edges that leave one state of a mixed cell.

   REAL is float or double. Images lie [batch height width channel], those of edges one edge after the other;
   channels are a multiple of LANES. Sums are kept by image or by thread and added up by the caller, so that the
   same number of threads gives the same bits. */

#include <stdlib.h>
#include <string.h>
#ifdef _OPENMP
#include <omp.h>
#endif

enum { BYTES = 32, LANES = BYTES / sizeof(REAL), MOST_TAPS = 64 };
typedef REAL vector __attribute__((vector_size(BYTES), aligned(sizeof(REAL)), may_alias));
#define AT(pointer) (*(vector *)(pointer))
#define SEEN(pointer) (*(const vector *)(pointer))
#define INLINE static inline __attribute__((always_inline))
#define UNROLLED _Pragma("GCC unroll 16")

typedef struct {
    long batch, edges, height, width, channels; /* height and width of the input */
    long kernel, stride, dilation;
    long shared; /* one input for all edges */
    long threads;
} Shape;

typedef struct {
    const REAL *const *edge; /* gradient of each edge's output */
    const long *step;        /* from pixel to pixel */
} Gradient;

typedef struct {
    const REAL *slope, *tilt, *offset; /* [edge channel]: slope * gradient + tilt * y + offset */
} Line;

/* a, or 0 where b is not above 0 */
INLINE vector where_positive(vector a, vector b) {
    __typeof__(b <= b) dead = b <= (vector){0};
    return (vector)((__typeof__(dead))a & ~dead);
}

INLINE void taps_block(int block, REAL *out, long out_step, const REAL *const *source, long source_step,
                       const REAL *const *weight, int taps) {
    vector sum[8];
    UNROLLED for (int i = 0; i < block; i++) sum[i] = (vector){0};
    for (int tap = 0; tap < taps; tap++) {
        vector w = SEEN(weight[tap]);
        UNROLLED for (int i = 0; i < block; i++) sum[i] += w * SEEN(source[tap] + i * source_step);
    }
    UNROLLED for (int i = 0; i < block; i++) AT(out + i * out_step) = sum[i];
}

/* out[x] = sum over taps of weight[tap] * source[tap][x], for a row of pixels */
static void taps_row(REAL *out, long out_step, const REAL *const *source, long source_step,
                     const REAL *const *weight, int taps, long width, long channels) {
    const REAL *from[MOST_TAPS], *by[MOST_TAPS];
    for (long c = 0; c < channels; c += LANES) {
        for (int tap = 0; tap < taps; tap++) from[tap] = source[tap] + c, by[tap] = weight[tap] + c;
        long x = 0;
        for (; x < width;) {
            int block = width - x >= 8 ? 8 : width - x >= 4 ? 4 : 1;
            REAL *to = out + c + x * out_step;
            if (block == 8) taps_block(8, to, out_step, from, source_step, by, taps);
            else if (block == 4) taps_block(4, to, out_step, from, source_step, by, taps);
            else taps_block(1, to, out_step, from, source_step, by, taps);
            x += block;
            for (int tap = 0; tap < taps; tap++) from[tap] += block * source_step;
        }
    }
}

INLINE void product_block(int rows, int vectors, long depth, const REAL *a, long a_row, long a_depth,
                          const REAL *b, long b_depth, REAL *out, long out_row, int add) {
    vector sum[8][2];
    UNROLLED for (int i = 0; i < rows; i++)
        UNROLLED for (int j = 0; j < vectors; j++)
            sum[i][j] = add ? SEEN(out + i * out_row + j * LANES) : (vector){0};
    for (long k = 0; k < depth; k++) {
        vector right[2];
        UNROLLED for (int j = 0; j < vectors; j++) right[j] = SEEN(b + k * b_depth + j * LANES);
        UNROLLED for (int i = 0; i < rows; i++) {
            REAL left = a[i * a_row + k * a_depth];
            UNROLLED for (int j = 0; j < vectors; j++) sum[i][j] += left * right[j];
        }
    }
    UNROLLED for (int i = 0; i < rows; i++)
        UNROLLED for (int j = 0; j < vectors; j++) AT(out + i * out_row + j * LANES) = sum[i][j];
}

/* out [rows columns] = a [rows depth] b [depth columns], or added to what is there */
static void product(long rows, long depth, long columns, const REAL *a, long a_row, long a_depth, const REAL *b,
                    REAL *out, int add) {
    long j = 0;
    for (; columns - j >= 2 * LANES; j += 2 * LANES) {
        long i = 0;
        for (; rows - i >= 4; i += 4)
            product_block(4, 2, depth, a + i * a_row, a_row, a_depth, b + j, columns, out + i * columns + j,
                          columns, add);
        for (; i < rows; i++)
            product_block(1, 2, depth, a + i * a_row, a_row, a_depth, b + j, columns, out + i * columns + j,
                          columns, add);
    }
    for (; j < columns; j += LANES) {
        long i = 0;
        for (; rows - i >= 8; i += 8)
            product_block(8, 1, depth, a + i * a_row, a_row, a_depth, b + j, columns, out + i * columns + j,
                          columns, add);
        for (; i < rows; i++)
            product_block(1, 1, depth, a + i * a_row, a_row, a_depth, b + j, columns, out + i * columns + j,
                          columns, add);
    }
}

/* What one thread works in; images with a border of zeros have it all around. */
typedef struct {
    long border, wide, tall, out_height, out_width, pixels;
    REAL *input;     /* rectified, with border */
    REAL *gradient;  /* of the depthwise output, with border */
    REAL *depthwise; /* its output */
    REAL *by_output; /* gradient of the layer's output */
    REAL *by_input;
    void *memory;
} Room;

static int enter(Room *room, const Shape *s, int backward) {
    long border = s->dilation * (s->kernel / 2), channels = s->channels;
    room->border = border;
    room->tall = s->height + 2 * border, room->wide = s->width + 2 * border;
    room->out_height = (s->height - 1) / s->stride + 1, room->out_width = (s->width - 1) / s->stride + 1;
    room->pixels = room->out_height * room->out_width;
    long input = room->tall * room->wide * channels, output = room->pixels * channels;
    long gradient = (room->out_height + 2 * border) * (room->out_width + 2 * border) * channels;
    long whole = s->height * s->width * channels;
    long total = input + output + (backward ? gradient + output + whole : 0);
    REAL *next = room->memory = calloc(total, sizeof(REAL));
    if (!next) return 0;
    room->input = next, next += input;
    room->depthwise = next, next += output;
    if (!backward) return 1;
    room->gradient = next, next += gradient;
    room->by_output = next, next += output;
    room->by_input = next;
    return 1;
}

/* relu(scale * x + shift) inside the border; no scale means 1 and 0 */
static void rectify(const Room *room, const Shape *s, const REAL *x, const REAL *scale, const REAL *shift) {
    long channels = s->channels;
    for (long row = 0; row < s->height; row++) {
        const REAL *from = x + row * s->width * channels;
        REAL *to = room->input + ((row + room->border) * room->wide + room->border) * channels;
        for (long i = 0; i < s->width; i++, from += channels, to += channels)
            for (long c = 0; c < channels; c += LANES) {
                vector value = SEEN(from + c);
                if (scale) value = value * SEEN(scale + c) + SEEN(shift + c);
                AT(to + c) = where_positive(value, value);
            }
    }
}

static void depthwise(const Room *room, const Shape *s, const REAL *weight) {
    const REAL *source[MOST_TAPS], *by[MOST_TAPS];
    long channels = s->channels, kernel = s->kernel;
    for (long row = 0; row < room->out_height; row++) {
        for (long tap = 0; tap < kernel * kernel; tap++) {
            long y = row * s->stride + tap / kernel * s->dilation, x = tap % kernel * s->dilation;
            source[tap] = room->input + (y * room->wide + x) * channels;
            by[tap] = weight + tap * channels;
        }
        taps_row(room->depthwise + row * room->out_width * channels, channels, source, s->stride * channels, by,
                 (int)(kernel * kernel), room->out_width, channels);
    }
}

/* mean over pixels, and the sum of squares about it */
static void moments_of(const REAL *y, long pixels, long channels, REAL *mean, REAL *squares) {
    for (long c = 0; c < channels; c += LANES) {
        vector sum = {0}, other = {0};
        for (long p = 0; p + 1 < pixels; p += 2)
            sum += SEEN(y + p * channels + c), other += SEEN(y + (p + 1) * channels + c);
        if (pixels % 2) sum += SEEN(y + (pixels - 1) * channels + c);
        vector middle = (sum + other) / (REAL)pixels;
        sum = other = (vector){0};
        for (long p = 0; p + 1 < pixels; p += 2) {
            vector a = SEEN(y + p * channels + c) - middle, b = SEEN(y + (p + 1) * channels + c) - middle;
            sum += a * a, other += b * b;
        }
        if (pixels % 2) {
            vector a = SEEN(y + (pixels - 1) * channels + c) - middle;
            sum += a * a;
        }
        AT(mean + c) = middle, AT(squares + c) = sum + other;
    }
}

#define SHARE_IMAGES(s)                                                                                        \
    long share = ((s)->batch + (s)->threads - 1) / (s)->threads, first = share * thread, last = first + share; \
    if (last > (s)->batch) last = (s)->batch;

#define EACH_THREAD(s) \
    _Pragma("omp parallel for schedule(static, 1) num_threads((int)(s)->threads) if ((s)->threads > 1)") \
    for (long thread = 0; thread < (s)->threads; thread++)

/* y = pointwise(depthwise(relu(scale x + shift))); mean, squares [batch edge channel] of y in each image.
   depthwise [edge tap channel], pointwise [edge input output] */
int layer_forward(const Shape *s, const REAL *x, const REAL *scale, const REAL *shift, const REAL *dw,
                  const REAL *pw, REAL *y, REAL *mean, REAL *squares) {
    int failed = 0;
    EACH_THREAD(s) {
        Room room;
        SHARE_IMAGES(s)
        if (!enter(&room, s, 0)) {
            failed = 1;
            continue;
        }
        long channels = s->channels, taps = s->kernel * s->kernel, whole = s->height * s->width * channels;
        for (long n = first; n < last; n++)
            for (long e = 0; e < s->edges; e++) {
                if (!s->shared)
                    rectify(&room, s, x + (e * s->batch + n) * whole, scale + e * channels, shift + e * channels);
                else if (e == 0)
                    rectify(&room, s, x + n * whole, NULL, NULL);
                REAL *out = y + (e * s->batch + n) * room.pixels * channels;
                long place = (n * s->edges + e) * channels;
                depthwise(&room, s, dw + e * taps * channels);
                product(room.pixels, channels, channels, room.depthwise, channels, 1, pw + e * channels * channels,
                        out, 0);
                moments_of(out, room.pixels, channels, mean + place, squares + place);
            }
        free(room.memory);
    }
    return failed;
}

/* slope * gradient + tilt * y + offset of one image */
static void bend(const Room *room, const REAL *grad, long step, const REAL *y, Line line, long place,
                 long channels) {
    for (long p = 0; p < room->pixels; p++)
        for (long c = 0; c < channels; c += LANES)
            AT(room->by_output + p * channels + c) = SEEN(line.slope + place + c) * SEEN(grad + p * step + c) +
                                                     SEEN(line.tilt + place + c) * SEEN(y + p * channels + c) +
                                                     SEEN(line.offset + place + c);
}

/* by_output times the pointwise weights, [output input], laid inside the border of `gradient` */
static void back_through_pointwise(const Room *room, const REAL *pw, long channels) {
    long wide = room->out_width + 2 * room->border;
    for (long row = 0; row < room->out_height; row++)
        product(room->out_width, channels, channels, room->by_output + row * room->out_width * channels, channels,
                1, pw, room->gradient + ((row + room->border) * wide + room->border) * channels, 0);
}

/* Where (from + border - k * dilation) / stride is whole, it is the output that tap k reads `from` for. */
INLINE int reads(const Room *room, const Shape *s, long from, long k, long *output) {
    long at = from + room->border - k * s->dilation;
    if (at % s->stride) return 0;
    *output = at / s->stride + room->border;
    return 1;
}

static void back_through_depthwise(const Room *room, const Shape *s, const REAL *weight) {
    const REAL *source[MOST_TAPS], *by[MOST_TAPS];
    long channels = s->channels, kernel = s->kernel, wide = room->out_width + 2 * room->border;
    for (long row = 0; row < s->height; row++)
        for (long column = 0; column < s->stride; column++) {
            int taps = 0;
            for (long ky = 0; ky < kernel; ky++)
                for (long kx = 0; kx < kernel; kx++) {
                    long y, x;
                    if (!reads(room, s, row, ky, &y) || !reads(room, s, column, kx, &x)) continue;
                    source[taps] = room->gradient + (y * wide + x) * channels;
                    by[taps++] = weight + (ky * kernel + kx) * channels;
                }
            taps_row(room->by_input + (row * s->width + column) * channels, s->stride * channels, source, channels,
                     by, taps, (s->width - column + s->stride - 1) / s->stride, channels);
        }
}

/* Adds to [tap channel] the products of gradients and the inputs that `rows` rows of taps see. */
INLINE void tap_products(int rows, int kernel, const Room *room, const Shape *s, long top, REAL *out) {
    long channels = s->channels, wide = room->out_width + 2 * room->border;
    for (long c = 0; c < channels; c += LANES) {
        vector sum[15];
        UNROLLED for (int tap = 0; tap < rows * kernel; tap++)
            sum[tap] = SEEN(out + (top * kernel + tap) * channels + c);
        for (long row = 0; row < room->out_height; row++) {
            const REAL *grad = room->gradient + ((row + room->border) * wide + room->border) * channels + c;
            const REAL *seen = room->input + (row * s->stride + top * s->dilation) * room->wide * channels + c;
            for (long x = 0; x < room->out_width; x++, grad += channels, seen += s->stride * channels) {
                vector g = SEEN(grad);
                UNROLLED for (int ky = 0; ky < rows; ky++)
                    UNROLLED for (int kx = 0; kx < kernel; kx++)
                        sum[ky * kernel + kx] +=
                            g * SEEN(seen + (ky * room->wide + kx) * s->dilation * channels);
            }
        }
        UNROLLED for (int tap = 0; tap < rows * kernel; tap++)
            AT(out + (top * kernel + tap) * channels + c) = sum[tap];
    }
}

static void by_depthwise_weight(const Room *room, const Shape *s, REAL *out) {
    if (s->kernel == 3) tap_products(3, 3, room, s, 0, out);
    else {
        tap_products(3, 5, room, s, 0, out);
        tap_products(2, 5, room, s, 3, out);
    }
}

/* Adds the masked gradient of a shared input. */
static void add_rectified(const Room *room, const Shape *s, REAL *out) {
    long channels = s->channels;
    for (long row = 0; row < s->height; row++) {
        const REAL *seen = room->input + ((row + room->border) * room->wide + room->border) * channels;
        const REAL *from = room->by_input + row * s->width * channels;
        REAL *to = out + row * s->width * channels;
        for (long i = 0; i < s->width * channels; i += LANES)
            AT(to + i) += where_positive(SEEN(from + i), SEEN(seen + i));
    }
}

/* The masked gradient of an edge's own input, its sum, and its sum of products with x - centre. */
static void keep_rectified(const Room *room, const Shape *s, const REAL *x, const REAL *centre, REAL *out,
                           REAL *sum, REAL *along) {
    long channels = s->channels;
    for (long c = 0; c < channels; c += LANES) {
        vector total = {0}, slant = {0}, middle = SEEN(centre + c);
        for (long row = 0; row < s->height; row++) {
            const REAL *seen = room->input + ((row + room->border) * room->wide + room->border) * channels + c;
            long place = row * s->width * channels + c;
            for (long i = 0; i < s->width; i++, place += channels, seen += channels) {
                vector g = where_positive(SEEN(room->by_input + place), SEEN(seen));
                AT(out + place) = g;
                total += g, slant += g * (SEEN(x + place) - middle);
            }
        }
        AT(sum + c) = total, AT(along + c) = slant;
    }
}

/* The gradients of a layer; what is bent is the gradient of its normalised output.
   A shared input's is added to by_x; an edge's own is written, with its sums [batch edge channel].
   by_dw [thread edge tap channel] and by_pw [thread edge output input] are added to, unless they are NULL. */
int layer_backward(const Shape *s, const REAL *const *grads, const long *steps, const REAL *y, const REAL *slope,
                   const REAL *tilt, const REAL *offset, const REAL *x, const REAL *scale, const REAL *shift,
                   const REAL *centre, const REAL *dw, const REAL *pw, REAL *by_x, REAL *sum, REAL *along,
                   REAL *by_dw, REAL *by_pw) {
    int failed = 0;
    Line line = {slope, tilt, offset};
    EACH_THREAD(s) {
        Room room;
        SHARE_IMAGES(s)
        if (!enter(&room, s, 1)) {
            failed = 1;
            continue;
        }
        long channels = s->channels, taps = s->kernel * s->kernel, whole = s->height * s->width * channels;
        for (long n = first; n < last; n++)
            for (long e = 0; e < s->edges; e++) {
                long place = e * channels, image = e * s->batch + n, mine = thread * s->edges + e;
                if (!s->shared) rectify(&room, s, x + image * whole, scale + place, shift + place);
                else if (e == 0) rectify(&room, s, x + n * whole, NULL, NULL);
                bend(&room, grads[e] + n * room.pixels * steps[e], steps[e], y + image * room.pixels * channels,
                     line, place, channels);
                back_through_pointwise(&room, pw + place * channels, channels);
                if (by_pw) {
                    depthwise(&room, s, dw + place * taps);
                    product(channels, room.pixels, channels, room.by_output, 1, channels, room.depthwise,
                            by_pw + mine * channels * channels, 1);
                    by_depthwise_weight(&room, s, by_dw + mine * taps * channels);
                }
                back_through_depthwise(&room, s, dw + place * taps);
                if (s->shared) add_rectified(&room, s, by_x + n * whole);
                else {
                    long own = (n * s->edges + e) * channels;
                    keep_rectified(&room, s, x + image * whole, centre + place, by_x + image * whole, sum + own,
                                   along + own);
                }
            }
        free(room.memory);
    }
    return failed;
}

/* mean and squares [batch edge channel] of x [edge batch height width channel] in each image */
void moments(const Shape *s, const REAL *x, REAL *mean, REAL *squares) {
    EACH_THREAD(s) {
        SHARE_IMAGES(s)
        long pixels = s->height * s->width, channels = s->channels;
        for (long n = first; n < last; n++)
            for (long e = 0; e < s->edges; e++) {
                long place = (n * s->edges + e) * channels;
                moments_of(x + (e * s->batch + n) * pixels * channels, pixels, channels, mean + place,
                           squares + place);
            }
    }
}

/* out[edge] = offset + sum over terms of scale [term edge channel] * term; a term is one for all edges
   (`own` 0) or has an image for each */
void mix(const Shape *s, long terms, const REAL *const *term, const long *own, const REAL *scale,
         const REAL *offset, REAL *const *out) {
    EACH_THREAD(s) {
        SHARE_IMAGES(s)
        long size = s->height * s->width * s->channels, channels = s->channels;
        for (long n = first; n < last; n++)
            for (long e = 0; e < s->edges; e++)
                for (long c = 0; c < channels; c += LANES) {
                    const REAL *from[16];
                    vector by[16], start = SEEN(offset + e * channels + c);
                    for (long t = 0; t < terms; t++) {
                        from[t] = term[t] + (own[t] * e * s->batch + n) * size + c;
                        by[t] = SEEN(scale + (t * s->edges + e) * channels + c);
                    }
                    REAL *to = out[e] + n * size + c;
                    for (long p = 0; p < size; p += channels) {
                        vector value = start;
                        for (long t = 0; t < terms; t++) value += by[t] * SEEN(from[t] + p);
                        AT(to + p) = value;
                    }
                }
    }
}

static void along_of(const REAL *grad, long step, const REAL *y, const REAL *centre, long pixels, long channels,
                     REAL *out) {
    for (long c = 0; c < channels; c += LANES) {
        vector middle = SEEN(centre + c), sum = {0}, other = {0};
        long p = 0;
        for (; p + 1 < pixels; p += 2) {
            sum += SEEN(grad + p * step + c) * (SEEN(y + p * channels + c) - middle);
            other += SEEN(grad + (p + 1) * step + c) * (SEEN(y + (p + 1) * channels + c) - middle);
        }
        if (p < pixels) sum += SEEN(grad + p * step + c) * (SEEN(y + p * channels + c) - middle);
        AT(out + c) = sum + other;
    }
}

static void sum_of(const REAL *grad, long step, long pixels, long channels, REAL *out) {
    for (long c = 0; c < channels; c += LANES) {
        vector sum = {0};
        for (long p = 0; p < pixels; p++) sum += SEEN(grad + p * step + c);
        AT(out + c) = sum;
    }
}

/* sum [batch edge channel] of the gradients, and along [term batch edge channel]: of gradient * (term - centre),
   centre [term edge channel] */
void project(const Shape *s, const REAL *const *grads, const long *steps, long terms, const REAL *const *term,
             const long *own, const REAL *centre, REAL *sum, REAL *along) {
    EACH_THREAD(s) {
        SHARE_IMAGES(s)
        long pixels = s->height * s->width, channels = s->channels, size = pixels * channels;
        for (long n = first; n < last; n++)
            for (long e = 0; e < s->edges; e++) {
                const REAL *grad = grads[e] + n * pixels * steps[e];
                long place = (n * s->edges + e) * channels, all = s->batch * s->edges * channels;
                sum_of(grad, steps[e], pixels, channels, sum + place);
                for (long t = 0; t < terms; t++)
                    along_of(grad, steps[e], term[t] + (own[t] * e * s->batch + n) * size,
                             centre + (t * s->edges + e) * channels, pixels, channels, along + t * all + place);
            }
    }
}

/* The gradient of a term that is one for all edges: tilt * term + offset + sum of slope [edge channel] * gradient.
   tilt and offset are [channel]. */
void gather(const Shape *s, const REAL *const *grads, const long *steps, const REAL *slope, const REAL *term,
            const REAL *tilt, const REAL *offset, REAL *out) {
    EACH_THREAD(s) {
        SHARE_IMAGES(s)
        long pixels = s->height * s->width, channels = s->channels;
        for (long n = first; n < last; n++)
            for (long c = 0; c < channels; c += LANES) {
                vector slant = SEEN(tilt + c), start = SEEN(offset + c);
                for (long p = n * pixels; p < (n + 1) * pixels; p++) {
                    vector value = start + slant * SEEN(term + p * channels + c);
                    for (long e = 0; e < s->edges; e++)
                        value += SEEN(slope + e * channels + c) * SEEN(grads[e] + p * steps[e] + c);
                    AT(out + p * channels + c) = value;
                }
            }
    }
}
