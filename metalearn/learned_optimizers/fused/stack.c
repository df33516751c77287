/* A stack of LSTM layers and a linear map to one number, for many coordinates: one step, and the way back through
   some steps.

   The coordinates are taken in blocks, within which a number of all coordinates is a row [BLOCK]: weights are spread
   over whole vectors of coordinates, and all that a block needs stays in the cache. A layer's weight is [inputs +
   hidden, 4 hidden], columns in the order input, forget, output gate, candidate. States are [coordinates, hidden], in
   lists h and c of layer 0, of layer 1, ... REAL is float or double. */

#pragma GCC optimize("no-math-errno", "no-trapping-math") /* lets choices be vectorised */

#include "blocks.h"

typedef REAL four __attribute__((vector_size(4 * sizeof(REAL)), aligned(sizeof(REAL))));
#if IS_DOUBLE(REAL)
typedef int64_t choice __attribute__((vector_size(32)));
#else
typedef int32_t choice __attribute__((vector_size(16)));
#endif

typedef struct {
    long inputs, layers, hidden, coordinates, steps;
    double forget_bias, p; /* p > 0: the only input is a gradient, and two features are made of it */
} Shape;

/* Weights laid out for `product`, forward and backward. */
typedef struct {
    REAL *forward, *back, *bias;
    long inputs, rows, wide; /* wide: rows rounded up to whole vectors */
} Layer;

INLINE REAL sigmoid(REAL x) {
    REAL e = exponential(-FABS(x));
    return (x < 0 ? e : 1) / (1 + e);
}

/* Exact for small x too: by exp(-2|x|) - 1. */
INLINE REAL tangent(REAL x) {
    REAL y = -2 * FABS(x), r, power = power_and_rest(y < LOWEST ? LOWEST : y, &r);
    REAL less = series(r) * r * power + (power - 1);
    return (x < 0 ? less : -less) / (2 + less);
}

/* log(x) for x > 0 that is normal, infinite or NaN: its exponent, and the series of artanh on the rest. */
INLINE REAL logarithm(REAL x) {
    pun z = {x};
#if IS_DOUBLE(REAL)
    const uint64_t half = 0x3fe6a09e667f3bcdu; /* sqrt(1/2) */
    int64_t n = (int64_t)(z.bits - half) >> 52;
    z.bits -= (uint64_t)n << 52;
    REAL s = (z.real - 1) / (z.real + 1), q = s * s, p = C(1.0 / 23);
    p = p * q + C(1.0 / 21), p = p * q + C(1.0 / 19), p = p * q + C(1.0 / 17), p = p * q + C(1.0 / 15);
    p = p * q + C(1.0 / 13), p = p * q + C(1.0 / 11);
#else
    const uint32_t half = 0x3f3504f3u;
    int32_t n = (int32_t)(z.bits - half) >> 23;
    z.bits -= (uint32_t)n << 23;
    REAL s = (z.real - 1) / (z.real + 1), q = s * s, p = C(1.0 / 11);
#endif
    p = p * q + C(1.0 / 9), p = p * q + C(1.0 / 7), p = p * q + C(1.0 / 5), p = p * q + C(1.0 / 3);
    REAL value = n * C(0.69314718055994530942) + 2 * (s + s * q * p);
    return x - x == 0 ? value : x;
}

/* to[c][r] = from[r][c]; rows of `to` and `from` lie `wide` and `long_` numbers apart. */
static void transpose(REAL *to, long wide, const REAL *from, long apart, long rows, long columns) {
    long r = 0;
    for (; r + 4 <= rows; r += 4) {
        long c = 0;
        for (; c + 4 <= columns; c += 4) {
            const REAL *at = from + r * apart + c;
            four a = *(const four *)at, b = *(const four *)(at + apart);
            four d = *(const four *)(at + 2 * apart), e = *(const four *)(at + 3 * apart);
            four ad = __builtin_shuffle(a, d, (choice){0, 4, 1, 5}), be = __builtin_shuffle(b, e, (choice){0, 4, 1, 5});
            four da = __builtin_shuffle(a, d, (choice){2, 6, 3, 7}), eb = __builtin_shuffle(b, e, (choice){2, 6, 3, 7});
            REAL *out = to + c * wide + r;
            *(four *)out = __builtin_shuffle(ad, be, (choice){0, 4, 1, 5});
            *(four *)(out + wide) = __builtin_shuffle(ad, be, (choice){2, 6, 3, 7});
            *(four *)(out + 2 * wide) = __builtin_shuffle(da, eb, (choice){0, 4, 1, 5});
            *(four *)(out + 3 * wide) = __builtin_shuffle(da, eb, (choice){2, 6, 3, 7});
        }
        for (; c < columns; c++)
            for (long i = r; i < r + 4; i++) to[c * wide + i] = from[i * apart + c];
    }
    for (; r < rows; r++)
        for (long c = 0; c < columns; c++) to[c * wide + r] = from[r * apart + c];
}

/* Rows [width, BLOCK] of `count` coordinates' numbers [count, width]; zeros for the rest of the block and for NULL. */
static void gather(REAL *to, const REAL *from, long width, long count) {
    if (!from || count < BLOCK) memset(to, 0, width * BLOCK * sizeof(REAL));
    if (from) transpose(to, BLOCK, from, width, count, width);
}

/* total[j][k] += sum over the block of grads[j] rows[.][k], for `many` j from `j` on. */
INLINE void outer(REAL *total, const REAL *rows, const REAL *grads, long j, long wide, const long many) {
    for (long k = 0; k < wide; k += LANES) {
        vec sums[8];
        for (long i = 0; i < many; i++) sums[i] = *(vec *)(total + (j + i) * wide + k);
        for (long b = 0; b < BLOCK; b++) {
            const vec here = *(const vec *)(rows + b * wide + k);
#pragma GCC unroll 8
            for (long i = 0; i < many; i++) sums[i] += here * grads[(j + i) * BLOCK + b];
        }
        for (long i = 0; i < many; i++) *(vec *)(total + (j + i) * wide + k) = sums[i];
    }
}

/* Gates after their functions in their place, the new cell state, its tanh and the output; `n` numbers each. */
static void activate(REAL *restrict gates, const REAL *restrict before, REAL *restrict after, REAL *restrict seen,
                     REAL *restrict output, long n) {
    REAL *restrict write = gates, *restrict keep = gates + n, *restrict show = gates + 2 * n,
                   *restrict candidate = gates + 3 * n;
    for (long j = 0; j < n; j++) {
        REAL i = sigmoid(write[j]), f = sigmoid(keep[j]), o = sigmoid(show[j]), g = tangent(candidate[j]);
        REAL cell = f * before[j] + i * g, t = tangent(cell);
        write[j] = i, keep[j] = f, show[j] = o, candidate[j] = g;
        after[j] = cell, seen[j] = t, output[j] = o * t;
    }
}

/* The gradients by the gates in their place, and that by the old cell state in place of the new one's. */
static void deactivate(REAL *restrict gates, const REAL *restrict before, const REAL *restrict seen,
                       const REAL *restrict grad_output, REAL *restrict grad_cell, long n) {
    REAL *restrict write = gates, *restrict keep = gates + n, *restrict show = gates + 2 * n,
                   *restrict candidate = gates + 3 * n;
    for (long j = 0; j < n; j++) {
        REAL i = write[j], f = keep[j], o = show[j], g = candidate[j], t = seen[j], grad = grad_output[j];
        REAL cell = grad_cell[j] + grad * o * (1 - t * t);
        show[j] = grad * t * o * (1 - o);
        write[j] = cell * g * i * (1 - i);
        keep[j] = cell * before[j] * f * (1 - f);
        candidate[j] = cell * i * (1 - g * g);
        grad_cell[j] = cell * f;
    }
}

/* The rows that the first layer sees of a block's gradients, or of its features [coordinates, inputs]. */
static void look(REAL *restrict x, const REAL *given, const Shape *shape, long count) {
    gather(x, given, shape->p > 0 ? 1 : shape->inputs, count);
    if (shape->p <= 0) return;
    const REAL low = exp(-shape->p), high = exp(shape->p), inverse = 1 / shape->p;
    for (long b = 0; b < BLOCK; b++) {
        REAL grad = x[b], size = FABS(grad), scaled = grad * high;
        x[b] = logarithm(size < low ? low : size) * inverse;
        x[BLOCK + b] = scaled > 1 ? 1 : scaled < -1 ? -1 : scaled;
    }
}

/* From the gradient by what the first layer saw, `dx`, to that by what was given. */
static void look_back(REAL *grads, const REAL *dx, const REAL *given, const Shape *shape, long count) {
    if (shape->p <= 0) return transpose(grads, shape->inputs, dx, BLOCK, shape->inputs, count);
    const REAL low = exp(-shape->p), high = exp(shape->p), inverse = 1 / shape->p;
    for (long b = 0; b < count; b++) {
        REAL grad = given[b], by_log = FABS(grad) < low ? 0 : dx[b] * inverse / grad;
        grads[b] = by_log + (FABS(grad * high) > 1 ? 0 : dx[BLOCK + b] * high);
    }
}

/* The weights of all layers, [rows, 4 hidden] and [4 hidden], in the order in which `product` reads them. */
static Layer *pack(const Shape *shape, const REAL *const *weights) {
    const long columns = 4 * shape->hidden;
    Layer *layers = malloc(shape->layers * sizeof(Layer));
    for (long l = 0; l < shape->layers; l++) {
        const REAL *weight = weights[2 * l], *bias = weights[2 * l + 1];
        const long inputs = l ? shape->hidden : shape->inputs, rows = inputs + shape->hidden;
        Layer to = {room(columns * rows), room(columns * upto(rows, SOME)), room(columns), inputs, rows, 0};
        to.wide = upto(rows, LANES);
        for (long k = 0; k < rows; k++)
            for (long j = 0; j < columns; j++) {
                to.forward[(j / SOME * rows + k) * SOME + j % SOME] = weight[k * columns + j];
                to.back[(k / SOME * columns + j) * SOME + k % SOME] = weight[k * columns + j];
            }
        for (long j = 0; j < columns; j++)
            to.bias[j] = bias[j] + (j / shape->hidden == 1 ? (REAL)shape->forget_bias : 0);
        layers[l] = to;
    }
    return layers;
}

static void unpack(Layer *layers, long count) {
    for (long l = 0; l < count; l++) free(layers[l].forward), free(layers[l].back), free(layers[l].bias);
    free(layers);
}

/* What a block leaves for its way back: of each step and layer what the layer saw, gates, new cell state and its tanh;
   of each step the output of the last layer. */
typedef struct {
    REAL *all, **x, **gates, **cells, **seen, **top; /* [step, layer], cells [step + 1, layer], top [step] */
} Trace;

static Trace trace(const Shape *shape, const Layer *layers, long steps) {
    const long many = steps * shape->layers, state = shape->hidden * BLOCK;
    long size = steps * state + (many + shape->layers) * state;
    for (long l = 0; l < shape->layers; l++) size += steps * (layers[l].rows * BLOCK + 5 * state);
    REAL **lists = malloc((4 * many + shape->layers + steps) * sizeof(REAL *)), *at = room(size);
    Trace made = {at, lists, lists + many, lists + 2 * many, lists + 3 * many + shape->layers,
                  lists + 4 * many + shape->layers};
    for (long l = 0; l < shape->layers; l++) made.cells[l] = at, at += state;
    for (long t = 0; t < steps; t++, at += state) {
        for (long l = 0, n = t * shape->layers; l < shape->layers; l++, n++) {
            made.x[n] = at, at += layers[l].rows * BLOCK;
            made.gates[n] = at, at += 4 * state;
            made.cells[n + shape->layers] = at, at += state;
            made.seen[n] = at, at += state;
        }
        made.top[t] = at;
    }
    return made;
}

static void forget(Trace *trace) { free(trace->all), free(trace->x); }

/* One step of a block whose layers' states are in place. The output of a layer goes to the one above and, if there is
   one, to the next step. */
static void step(const Shape *shape, const Layer *layers, Trace *trace, long t, int next) {
    const long many = shape->layers, size = shape->hidden * BLOCK;
    for (long l = 0, n = t * many; l < many; l++, n++) {
        REAL *output = l + 1 < many ? trace->x[n + 1] : trace->top[t];
        product(trace->gates[n], trace->x[n], layers[l].forward, layers[l].bias, layers[l].rows, 4 * shape->hidden);
        activate(trace->gates[n], trace->cells[n], trace->cells[n + many], trace->seen[n], output, size);
        if (next) memcpy(trace->x[n + many] + layers[l].inputs * BLOCK, output, size * sizeof(REAL));
    }
}

/* A block's states to where its first step finds them. */
static void enter(const Shape *shape, const Layer *layers, Trace *trace, const REAL *const *states, long from,
                  long count) {
    const long hidden = shape->hidden;
    for (long l = 0; l < shape->layers; l++) {
        gather(trace->x[l] + layers[l].inputs * BLOCK, states[2 * l] + from * hidden, hidden, count);
        gather(trace->cells[l], states[2 * l + 1] + from * hidden, hidden, count);
    }
}

/* One step of all coordinates: `output` [coordinates] and the states after it. `given` is the gradient, or features
   [coordinates, inputs]; `weights` has a weight and a bias for each layer and for the linear map. */
void stack_forward(const Shape *shape, const REAL *given, const REAL *const *weights, const REAL *const *before,
                   REAL *output, REAL *const *after, long threads) {
    const long hidden = shape->hidden, many = shape->layers, blocks = upto(shape->coordinates, BLOCK) / BLOCK;
    const REAL *linear = weights[2 * many], shift = weights[2 * many + 1][0];
    Layer *layers = pack(shape, weights);
#pragma omp parallel num_threads(threads)
    {
        Trace kept = trace(shape, layers, 1);
#pragma omp for schedule(static)
        for (long block = 0; block < blocks; block++) {
            const long from = block * BLOCK, left = shape->coordinates - from, count = left < BLOCK ? left : BLOCK;
            enter(shape, layers, &kept, before, from, count);
            look(kept.x[0], given + from * (shape->p > 0 ? 1 : shape->inputs), shape, count);
            step(shape, layers, &kept, 0, 0);
            for (long l = 0; l < many; l++) {
                const REAL *made = l + 1 < many ? kept.x[l + 1] : kept.top[0];
                transpose(after[2 * l] + from * hidden, hidden, made, BLOCK, hidden, count);
                transpose(after[2 * l + 1] + from * hidden, hidden, kept.cells[many + l], BLOCK, hidden, count);
            }
            for (long b = 0; b < count; b++) output[from + b] = shift;
            for (long j = 0; j < hidden; j++)
                for (long b = 0; b < count; b++) output[from + b] += linear[j] * kept.top[0][j * BLOCK + b];
        }
        forget(&kept);
    }
    unpack(layers, many);
}

/* What blocks on their way back add up: of each layer the gradients by weight, [4 hidden, wide], and by bias; those by
   the linear map. Beside them what a block needs on the way: gradients by states, by a layer's input, rows of it. */
typedef struct {
    REAL *all, **weights, **biases, *linear, **hidden, **cell, *dx, *rows;
} Sums;

static Sums sums(const Shape *shape, const Layer *layers) {
    const long many = shape->layers, columns = 4 * shape->hidden, state = shape->hidden * BLOCK;
    long size = upto(shape->hidden + 1, LANES), most = 0;
    for (long l = 0; l < many; l++) {
        size += columns * layers[l].wide + upto(columns, LANES) + 2 * state;
        most = layers[l].wide > most ? layers[l].wide : most;
    }
    REAL **lists = malloc(4 * many * sizeof(REAL *)), *at = room(size + 2 * most * BLOCK);
    Sums made = {at, lists, lists + many, 0, lists + 2 * many, lists + 3 * many, 0, 0};
    for (long l = 0; l < many; l++) {
        made.weights[l] = at, at += columns * layers[l].wide;
        made.biases[l] = at, at += upto(columns, LANES);
        made.hidden[l] = at, at += state;
        made.cell[l] = at, at += state;
    }
    made.linear = at, at += upto(shape->hidden + 1, LANES);
    made.dx = at, at += most * BLOCK;
    made.rows = at;
    return made;
}

/* Back through a layer at a step: its gates become their gradients, which `sums` takes up; gradients by the states
   before; that by what the layer saw is left in `dx`. */
static void layer_back(const Shape *shape, const Layer *layer, Trace *trace, Sums *sums, long t, long l) {
    const long n = t * shape->layers + l, columns = 4 * shape->hidden, size = shape->hidden * BLOCK;
    REAL *grads = trace->gates[n], *biases = sums->biases[l];
    deactivate(grads, trace->cells[n], trace->seen[n], sums->hidden[l], sums->cell[l], size);
    for (long j = 0; j < columns; j++) {
        REAL total = 0;
#pragma omp simd reduction(+ : total)
        for (long b = 0; b < BLOCK; b++) total += grads[j * BLOCK + b];
        biases[j] += total;
    }
    transpose(sums->rows, layer->wide, trace->x[n], BLOCK, layer->rows, BLOCK);
    long j = 0;
    for (; j + 8 <= columns; j += 8) outer(sums->weights[l], sums->rows, grads, j, layer->wide, 8);
    for (; j < columns; j += 4) outer(sums->weights[l], sums->rows, grads, j, layer->wide, 4);
    product(sums->dx, grads, layer->back, 0, columns, layer->rows);
    memcpy(sums->hidden[l], sums->dx + layer->inputs * BLOCK, size * sizeof(REAL));
}

/* What a way back is given and gives; all arrays of steps begin with the first step. NULL: zeros, or not wanted. */
typedef struct {
    const REAL *given;               /* [steps, coordinates(, inputs)] */
    const REAL *const *weights, *const *before;
    const REAL *grad_output;         /* [steps, coordinates] */
    const REAL *const *grad_after;   /* by the states after the last step */
    REAL *grad_given, *const *grad_before, *const *grad_weights;
} Way;

/* Back through the linear map at a step, from the gradients by its output. */
static void linear_back(const Shape *shape, const REAL *linear, const REAL *restrict grads, const REAL *restrict top,
                        Sums *sums) {
    for (long j = 0; j < shape->hidden; j++) {
        REAL *restrict by_top = sums->hidden[shape->layers - 1] + j * BLOCK, total = 0;
#pragma omp simd reduction(+ : total)
        for (long b = 0; b < BLOCK; b++) {
            by_top[b] += grads[b] * linear[j];
            total += grads[b] * top[j * BLOCK + b];
        }
        sums->linear[j] += total;
    }
    for (long b = 0; b < BLOCK; b++) sums->linear[shape->hidden] += grads[b];
}

/* One block: forward through all steps, then back. */
static void block_back(const Shape *shape, const Layer *layers, const Way *way, Trace *kept, Sums *sums, long from) {
    const long hidden = shape->hidden, many = shape->layers, steps = shape->steps;
    const long left = shape->coordinates - from, count = left < BLOCK ? left : BLOCK;
    const long seen = shape->p > 0 ? 1 : shape->inputs;
    REAL grads[BLOCK] __attribute__((aligned(64)));
    enter(shape, layers, kept, way->before, from, count);
    for (long t = 0; t < steps; t++) {
        look(kept->x[t * many], way->given + (t * shape->coordinates + from) * seen, shape, count);
        step(shape, layers, kept, t, t + 1 < steps);
    }
    for (long l = 0; l < many; l++) {
        const REAL *by_hidden = way->grad_after[2 * l], *by_cell = way->grad_after[2 * l + 1];
        gather(sums->hidden[l], by_hidden ? by_hidden + from * hidden : 0, hidden, count);
        gather(sums->cell[l], by_cell ? by_cell + from * hidden : 0, hidden, count);
    }
    for (long t = steps - 1; t >= 0; t--) {
        gather(grads, way->grad_output ? way->grad_output + t * shape->coordinates + from : 0, 1, count);
        linear_back(shape, way->weights[2 * many], grads, kept->top[t], sums);
        for (long l = many - 1; l >= 0; l--) {
            layer_back(shape, layers + l, kept, sums, t, l);
            if (l)
                for (long k = 0; k < hidden * BLOCK; k++) sums->hidden[l - 1][k] += sums->dx[k];
        }
        if (way->grad_given) {
            const long at = (t * shape->coordinates + from) * seen;
            look_back(way->grad_given + at, sums->dx, way->given + at, shape, count);
        }
    }
    for (long l = 0; way->grad_before && l < many; l++) {
        transpose(way->grad_before[2 * l] + from * hidden, hidden, sums->hidden[l], BLOCK, hidden, count);
        transpose(way->grad_before[2 * l + 1] + from * hidden, hidden, sums->cell[l], BLOCK, hidden, count);
    }
}

/* The sums of a part are added to the gradients by the weights, which lie as the weights do. */
static void collect(const Shape *shape, const Layer *layers, const Sums *sums, REAL *const *grads) {
    const long columns = 4 * shape->hidden;
    for (long l = 0; l < shape->layers; l++) {
        for (long k = 0; k < layers[l].rows; k++)
            for (long j = 0; j < columns; j++)
                grads[2 * l][k * columns + j] += sums->weights[l][j * layers[l].wide + k];
        for (long j = 0; j < columns; j++) grads[2 * l + 1][j] += sums->biases[l][j];
    }
    for (long j = 0; j < shape->hidden; j++) grads[2 * shape->layers][j] += sums->linear[j];
    grads[2 * shape->layers + 1][0] += sums->linear[shape->hidden];
}

/* Back through `steps` steps, which are run again from the states before the first. Gradients by weights are added to
   what is there, part by part in order: the bits depend on `parts` and not on the number of threads. */
void stack_backward(const Shape *shape, const Way *way, long parts, long threads) {
    const long blocks = upto(shape->coordinates, BLOCK) / BLOCK;
    Layer *layers = pack(shape, way->weights);
    Sums *found = malloc(parts * sizeof(Sums));
#pragma omp parallel for schedule(static) num_threads(threads)
    for (long part = 0; part < parts; part++) {
        Trace kept = trace(shape, layers, shape->steps);
        found[part] = sums(shape, layers);
        for (long block = part * blocks / parts; block < (part + 1) * blocks / parts; block++)
            block_back(shape, layers, way, &kept, &found[part], block * BLOCK);
        forget(&kept);
    }
    for (long part = 0; part < parts; part++) {
        collect(shape, layers, &found[part], way->grad_weights);
        free(found[part].all), free(found[part].weights);
    }
    free(found);
    unpack(layers, shape->layers);
}

/* Coordinates of a block. */
long stack_block(void) { return BLOCK; }
