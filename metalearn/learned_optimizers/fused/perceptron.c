/* One step of the perceptron rule without a graph (learned_optimizers/mlp.py), in two passes over the coordinates:
   moments and the sizes of their features; then the perceptron on features of size 1, and the step.

   Coordinates of a problem are those of its tensors, one after the other; a tensor is taken in chunks, so that what
   is summed, and in which order, does not depend on threads. REAL is float or double. */

#pragma GCC optimize("no-math-errno", "no-trapping-math") /* lets roots be vectorised */

#include "blocks.h"

#define CHUNK (64 * BLOCK)

typedef struct {
    long problems, coordinates, tensors, decays, layers; /* layers: maps, the last to direction and magnitude */
    double square_decay, epsilon, step, magnitude;
} Shape;

/* All arrays [problems, (decays,) coordinates] but `sizes` [tensors], `decays`, `widths` [layers + 1], features first,
   and `weights`, of each map a weight [inputs, outputs] and a bias, the first one's bias [problems, outputs]. */
typedef struct {
    const long *sizes, *widths;
    const double *decays;
    const REAL *const *weights;
    const REAL *grad, *theta, *momenta, *square;
    REAL *theta_after, *momenta_after, *square_after;
} Step;

/* A part of one tensor of one problem. */
typedef struct {
    long problem, tensor, from, count; /* from: among the problem's coordinates */
} Chunk;

static Chunk *cut(const Shape *shape, const Step *step, long *many) {
    *many = 0;
    for (long k = 0; k < shape->tensors; k++) *many += upto(step->sizes[k], CHUNK) / CHUNK * shape->problems;
    Chunk *chunks = malloc((*many + 1) * sizeof(Chunk)), *next = chunks;
    for (long p = 0; p < shape->problems; p++)
        for (long k = 0, from = 0; k < shape->tensors; from += step->sizes[k++])
            for (long at = 0; at < step->sizes[k]; at += CHUNK) {
                const long left = step->sizes[k] - at;
                *next++ = (Chunk){p, k, from + at, left < CHUNK ? left : CHUNK};
            }
    return chunks;
}

INLINE REAL root_of(REAL x) { return x <= 0 ? 0 : SQRT(x); }

/* Rows of features [features, BLOCK]: gradient, parameter, root, its inverse, momenta, momenta times the inverse;
   zeros beyond `count`. */
INLINE void look(REAL *restrict x, const REAL *restrict grad, const REAL *restrict theta,
                 const REAL *restrict momenta, const REAL *restrict square, const Shape *shape, long count) {
    const REAL epsilon = shape->epsilon;
    const long decays = shape->decays;
    if (count < BLOCK) memset(x, 0, (4 + 2 * decays) * BLOCK * sizeof(REAL));
    REAL *restrict roots = x + 2 * BLOCK, *restrict inverses = x + 3 * BLOCK;
    for (long i = 0; i < count; i++) {
        const REAL root = root_of(square[i]);
        x[i] = grad[i], x[BLOCK + i] = theta[i], roots[i] = root, inverses[i] = 1 / (root + epsilon);
    }
    for (long d = 0; d < decays; d++) {
        REAL *restrict plain = x + (4 + d) * BLOCK, *restrict scaled = plain + decays * BLOCK;
        const REAL *restrict momentum = momenta + d * shape->coordinates;
        for (long i = 0; i < count; i++) plain[i] = momentum[i], scaled[i] = momentum[i] * inverses[i];
    }
}

/* The new moments of a chunk, and sums over it of its features' squares. */
static void measure(const Shape *shape, const Step *step, const Chunk *chunk, double *squares, REAL *x) {
    const long decays = shape->decays, size = shape->coordinates, features = 4 + 2 * decays;
    const REAL decay = shape->square_decay, rest = 1 - shape->square_decay;
    REAL *lanes = x + features * BLOCK;
    memset(lanes, 0, features * LANES * sizeof(REAL));
    for (long done = 0; done < chunk->count; done += BLOCK) {
        const long count = chunk->count - done < BLOCK ? chunk->count - done : BLOCK;
        const long at = chunk->problem * size + chunk->from + done, ats = at + chunk->problem * (decays - 1) * size;
        const REAL *restrict grad = step->grad + at, *restrict square = step->square + at;
        REAL *restrict new_square = step->square_after + at;
        for (long i = 0; i < count; i++) new_square[i] = decay * square[i] + rest * grad[i] * grad[i];
        for (long d = 0; d < decays; d++) {
            const REAL *restrict old = step->momenta + ats + d * size;
            REAL *restrict new = step->momenta_after + ats + d * size;
            const REAL keep = step->decays[d];
            for (long i = 0; i < count; i++) new[i] = grad[i] + keep * (old[i] - grad[i]);
        }
        look(x, grad, step->theta + at, step->momenta_after + ats, new_square, shape, count);
        for (long f = 0; f < features; f++)
            for (long b = 0; b < BLOCK; b += LANES) {
                const vec here = *(const vec *)(x + f * BLOCK + b);
                *(vec *)(lanes + f * LANES) += here * here;
            }
    }
    for (long f = 0; f < features; f++) {
        squares[f] = 0;
        for (long i = 0; i < LANES; i++) squares[f] += lanes[f * LANES + i];
    }
}

/* The first map's weight with the inverse sizes of the features in it, and the others, as `product` reads them. */
static void pack(const Shape *shape, const Step *step, long problem, const double *inverse, REAL **maps) {
    for (long l = 0; l < shape->layers; l++) {
        const long inputs = step->widths[l], outputs = step->widths[l + 1];
        const REAL *weight = step->weights[2 * l], *bias = step->weights[2 * l + 1] + (l ? 0 : problem * outputs);
        REAL *packed = maps[2 * l];
        for (long k = 0; k < inputs; k++)
            for (long j = 0; j < outputs; j++)
                packed[(j / SOME * inputs + k) * SOME + j % SOME] = weight[k * outputs + j] * (l ? 1 : inverse[k]);
        for (long j = 0; j < outputs; j++) maps[2 * l + 1][j] = bias[j];
    }
}

/* exp(x), of what it is within the exponents of normal numbers. */
INLINE REAL growth(REAL x) {
    x = x < LOWEST ? LOWEST : x > -LOWEST ? -LOWEST : x;
    REAL r, power = power_and_rest(x, &r);
    return (series(r) * r + 1) * power;
}

/* The step of a chunk. `x` and `y` are rooms for a layer's inputs and outputs. */
static void move(const Shape *shape, const Step *step, const Chunk *chunk, REAL *const *maps, REAL *x, REAL *y) {
    const long decays = shape->decays, size = shape->coordinates;
    const REAL length = shape->step, magnitude = shape->magnitude;
    for (long done = 0; done < chunk->count; done += BLOCK) {
        const long count = chunk->count - done < BLOCK ? chunk->count - done : BLOCK;
        const long at = chunk->problem * size + chunk->from + done, ats = at + chunk->problem * (decays - 1) * size;
        look(x, step->grad + at, step->theta + at, step->momenta_after + ats, step->square_after + at, shape, count);
        REAL *in = x, *out = y;
        for (long l = 0; l < shape->layers; l++) {
            product(out, in, maps[2 * l], maps[2 * l + 1], step->widths[l], step->widths[l + 1]);
            if (l + 1 < shape->layers)
                for (long i = 0; i < step->widths[l + 1] * BLOCK; i++) out[i] = out[i] < 0 ? 0 : out[i];
            REAL *other = in;
            in = out, out = other;
        }
        const REAL *restrict theta = step->theta + at;
        REAL *restrict after = step->theta_after + at;
        for (long i = 0; i < count; i++)
            after[i] = theta[i] - length * in[i] * growth(magnitude * in[BLOCK + i]);
    }
}

/* 1/root of the mean squares of each tensor's features, [problems, tensors, features]; 0 of those that are all 0. */
static double *inverse_sizes(const Shape *shape, const Step *step, const Chunk *chunks, long many,
                             const double *squares, long features) {
    double *sizes = calloc(shape->problems * shape->tensors * features + 1, sizeof(double));
    for (long c = 0; c < many; c++) {
        double *to = sizes + (chunks[c].problem * shape->tensors + chunks[c].tensor) * features;
        for (long f = 0; f < features; f++) to[f] += squares[c * features + f];
    }
    for (long k = 0; k < shape->problems * shape->tensors; k++)
        for (long f = 0; f < features; f++) {
            double mean = sizes[k * features + f] / step->sizes[k % shape->tensors];
            sizes[k * features + f] = mean <= 0 ? 0 : 1 / sqrt(mean);
        }
    return sizes;
}

/* Rooms for a thread: maps, and two for a block's layers. */
static REAL **rooms(const Shape *shape, const Step *step, REAL **x, REAL **y) {
    long most = 0;
    REAL **maps = malloc(2 * shape->layers * sizeof(REAL *));
    for (long l = 0; l <= shape->layers; l++) most = step->widths[l] > most ? step->widths[l] : most;
    for (long l = 0; l < shape->layers; l++) {
        maps[2 * l] = room(step->widths[l] * upto(step->widths[l + 1], SOME));
        maps[2 * l + 1] = room(upto(step->widths[l + 1], SOME));
    }
    *x = room(upto(most, SOME) * 2 * BLOCK), *y = room(upto(most, SOME) * BLOCK);
    return maps;
}

void perceptron_step(const Shape *shape, const Step *step, long threads) {
    const long features = 4 + 2 * shape->decays;
    long many;
    Chunk *chunks = cut(shape, step, &many);
    double *squares = malloc((many * features + 1) * sizeof(double)), *sizes = 0;
#pragma omp parallel num_threads(threads)
    {
        REAL *x, *y, **maps = rooms(shape, step, &x, &y);
        long packed = -1;
#pragma omp for schedule(static)
        for (long c = 0; c < many; c++) measure(shape, step, chunks + c, squares + c * features, x);
#pragma omp single
        sizes = inverse_sizes(shape, step, chunks, many, squares, features);
#pragma omp for schedule(static)
        for (long c = 0; c < many; c++) {
            const long tensor = chunks[c].problem * shape->tensors + chunks[c].tensor;
            if (tensor != packed) pack(shape, step, chunks[c].problem, sizes + tensor * features, maps);
            packed = tensor;
            move(shape, step, chunks + c, maps, x, y);
        }
        for (long l = 0; l < 2 * shape->layers; l++) free(maps[l]);
        free(maps), free(x), free(y);
    }
    free(chunks), free(squares), free(sizes);
}
