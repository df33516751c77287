/* Pointwise parts of LSTM cells for one step in time, forward and backward, row by row.

   Gates are [batch 4 units] in the order i, g, f, o; arrays are contiguous unless a length of rows is given. Gains and
   shifts of the gates are [4 units], those of the cell state [units]; NULL where there is no layer normalisation, as
   the mask of recurrent dropout is where there is none. REAL is float or double. */

#pragma GCC optimize("no-math-errno", "no-trapping-math") /* lets square roots and choices be vectorised */

#include "kernels.h"

#define EPSILON ((REAL)1e-3) /* as EPSILON in recurrent.py */

#define INLINE static inline __attribute__((always_inline))
#define STATISTICS 6 /* of a row: 1/deviation of the four gates, then mean and 1/deviation of the cell state */

INLINE REAL sigmoid(REAL x) {
    REAL e = exponential(-FABS(x));
    return (x < 0 ? e : 1) / (1 + e);
}

INLINE REAL tangent(REAL x) {
    REAL e = exponential(-2 * FABS(x));
    return (x < 0 ? e - 1 : 1 - e) / (1 + e);
}

/* Mean and 1/deviation of a row; the variance is biased. */
INLINE void moments(const REAL *x, REAL *mean, REAL *inverse, long units) {
    REAL sum = 0, squares = 0;
#pragma omp simd reduction(+ : sum)
    for (long j = 0; j < units; j++) sum += x[j];
    const REAL middle = sum / units;
#pragma omp simd reduction(+ : squares)
    for (long j = 0; j < units; j++) squares += (x[j] - middle) * (x[j] - middle);
    *mean = middle;
    *inverse = 1 / SQRT(squares / units + EPSILON);
}

INLINE void forward_row(REAL *restrict gates, const REAL *restrict before, REAL *restrict after, REAL *restrict hidden,
                        const REAL *restrict mask, const REAL *restrict gain, const REAL *restrict shift,
                        const REAL *restrict cell_gain, const REAL *restrict cell_shift, REAL *restrict statistics,
                        long units, const int normed, const int masked) {
    REAL *restrict wrote = gates, *restrict candidate = gates + units, *restrict kept = gates + 2 * units,
                   *restrict read = gates + 3 * units;
    if (normed)
        for (long k = 0; k < 4; k++) {
            REAL mean, inverse, *restrict x = gates + k * units;
            moments(x, &mean, &inverse, units);
            for (long j = 0; j < units; j++) x[j] = (x[j] - mean) * inverse;
            statistics[k] = inverse;
        }
    for (long j = 0; j < units; j++) {
        REAL i = wrote[j], g = candidate[j], f = kept[j], o = read[j];
        if (normed) {
            i = i * gain[j] + shift[j];
            g = g * gain[units + j] + shift[units + j];
            f = f * gain[2 * units + j] + shift[2 * units + j];
            o = o * gain[3 * units + j] + shift[3 * units + j];
        }
        i = sigmoid(i), g = tangent(g), f = sigmoid(f), o = sigmoid(o);
        REAL cell = f * before[j] + i * (masked ? g * mask[j] : g);
        after[j] = cell;
        hidden[j] = normed ? o : o * tangent(cell);
        if (!normed) wrote[j] = i, candidate[j] = g, kept[j] = f, read[j] = o;
    }
    if (!normed) return;
    REAL mean, inverse;
    moments(after, &mean, &inverse, units);
    statistics[4] = mean, statistics[5] = inverse;
    for (long j = 0; j < units; j++) hidden[j] *= tangent((after[j] - mean) * inverse * cell_gain[j] + cell_shift[j]);
}

/* New cell state and output. Leaves in `gates` what comes after their functions or, with layer normalisation, what is
   normalised before gain and shift. */
void cell_forward(REAL *gates, const REAL *before, REAL *after, REAL *hidden, const REAL *mask, const REAL *gain,
                  const REAL *shift, const REAL *cell_gain, const REAL *cell_shift, REAL *statistics, long batch,
                  long units) {
    for (long b = 0; b < batch; b++) {
        const long at = b * units;
        const REAL *dropped = mask ? mask + at : 0;
#define ROW(normed, masked)                                                                                         \
    forward_row(gates + 4 * at, before + at, after + at, hidden + at, dropped, gain, shift, cell_gain, cell_shift, \
                statistics + b * STATISTICS, units, normed, masked)
        if (gain && mask) ROW(1, 1);
        else if (gain) ROW(1, 0);
        else if (mask) ROW(0, 1);
        else ROW(0, 0);
#undef ROW
    }
}

/* Through a normalisation: from the gradient `grad` by its outcome after gain and shift to that by its input, in
   `out`, which may be `x`, what is normalised. Adds the gradients by gain and shift. */
INLINE void normalise_back(const REAL *grad, const REAL *x, REAL *out, const REAL *gain, REAL *grad_gain,
                           REAL *grad_shift, REAL inverse, long units) {
    REAL mean = 0, along = 0;
#pragma omp simd reduction(+ : mean, along)
    for (long j = 0; j < units; j++) {
        REAL direct = grad[j] * gain[j];
        mean += direct;
        along += direct * x[j];
        grad_gain[j] += grad[j] * x[j];
        grad_shift[j] += grad[j];
    }
    mean /= units, along /= units;
#pragma omp simd
    for (long j = 0; j < units; j++) out[j] = inverse * (grad[j] * gain[j] - mean - x[j] * along);
}

/* `work` [6 units]: the gates after their functions, then their gradients; the normalised cell state; its gradient. */
INLINE void backward_row(const REAL *gates, const REAL *restrict before, const REAL *restrict after,
                         const REAL *restrict mask, const REAL *restrict gain, const REAL *restrict shift,
                         const REAL *restrict cell_gain, const REAL *restrict cell_shift,
                         const REAL *restrict statistics, const REAL *restrict grad_hidden, REAL *restrict grad_cell,
                         REAL *out, REAL *restrict grad_norms, REAL *restrict work, long units, const int normed,
                         const int masked) {
    REAL *restrict i = work, *restrict g = work + units, *restrict f = work + 2 * units, *restrict o = work + 3 * units,
                   *restrict seen = work + 4 * units, *restrict slope = work + 5 * units;
#pragma omp simd
    for (long j = 0; j < units; j++) {
        if (normed) {
            i[j] = sigmoid(gates[j] * gain[j] + shift[j]);
            g[j] = tangent(gates[units + j] * gain[units + j] + shift[units + j]);
            f[j] = sigmoid(gates[2 * units + j] * gain[2 * units + j] + shift[2 * units + j]);
            o[j] = sigmoid(gates[3 * units + j] * gain[3 * units + j] + shift[3 * units + j]);
            seen[j] = (after[j] - statistics[4]) * statistics[5];
        } else {
            i[j] = gates[j], g[j] = gates[units + j], f[j] = gates[2 * units + j], o[j] = gates[3 * units + j];
        }
        REAL shown = tangent(normed ? seen[j] * cell_gain[j] + cell_shift[j] : after[j]);
        slope[j] = grad_hidden[j] * o[j] * (1 - shown * shown);
        o[j] = grad_hidden[j] * shown * o[j] * (1 - o[j]);
    }
    if (normed)
        normalise_back(slope, seen, slope, cell_gain, grad_norms + 8 * units, grad_norms + 9 * units, statistics[5],
                       units);
#pragma omp simd
    for (long j = 0; j < units; j++) {
        REAL grad = grad_cell[j] + slope[j];
        REAL write = i[j], value = g[j], keep = f[j], dropped = masked ? mask[j] : 1;
        grad_cell[j] = grad * keep;
        i[j] = grad * value * dropped * write * (1 - write);
        g[j] = grad * write * dropped * (1 - value * value);
        f[j] = grad * before[j] * keep * (1 - keep);
    }
    for (long k = 0; k < 4; k++) {
        const REAL *grad = work + k * units;
        REAL *to = out + k * units;
        if (normed)
            normalise_back(grad, gates + k * units, to, gain + k * units, grad_norms + k * units,
                           grad_norms + (4 + k) * units, statistics[k], units);
        else
            for (long j = 0; j < units; j++) to[j] = grad[j];
    }
}

/* From the gradients by output and new cell state: that by the gates before normalisation, to `out`, whose rows are
   `row` long and which may be `gates`; that by the old cell state, in place of the new one's. Those by gains and
   shifts of the gates, then of the cell state are added to `grad_norms` [10 units]. */
void cell_backward(const REAL *gates, const REAL *before, const REAL *after, const REAL *mask, const REAL *gain,
                   const REAL *shift, const REAL *cell_gain, const REAL *cell_shift, const REAL *statistics,
                   const REAL *grad_hidden, REAL *grad_cell, REAL *out, REAL *grad_norms, REAL *work, long batch,
                   long units, long row) {
    for (long b = 0; b < batch; b++) {
        const long at = b * units;
        const REAL *dropped = mask ? mask + at : 0;
#define ROW(normed, masked)                                                                                           \
    backward_row(gates + 4 * at, before + at, after + at, dropped, gain, shift, cell_gain, cell_shift,               \
                 statistics + b * STATISTICS, grad_hidden + at, grad_cell + at, out + b * row, grad_norms, work, units, \
                 normed, masked)
        if (gain && mask) ROW(1, 1);
        else if (gain) ROW(1, 0);
        else if (mask) ROW(0, 1);
        else ROW(0, 0);
#undef ROW
    }
}

/* gates = d_h * recurrent + d_x * inputs + made bias + bias; `made` is [3 4 batch units], the three parts in this
   order; rows of `recurrent` are `row` long. */
void mix_forward(REAL *gates, const REAL *recurrent, const REAL *inputs, const REAL *made, const REAL *bias,
                 long batch, long units, long row) {
    const long part = 4 * batch * units;
    for (long b = 0; b < batch; b++)
        for (long k = 0; k < 4; k++) {
            const REAL *restrict d_h = made + (k * batch + b) * units, *restrict d_x = d_h + part,
                                 *restrict d_b = d_x + part, *restrict constant = bias + k * units;
            const REAL *restrict h = recurrent + b * row + k * units, *restrict x = inputs + (b * 4 + k) * units;
            REAL *restrict out = gates + (b * 4 + k) * units;
            for (long j = 0; j < units; j++) out[j] = d_b[j] + constant[j] + d_h[j] * h[j] + d_x[j] * x[j];
        }
}

/* In place: `gates`, the gradient by the gates, becomes that by `inputs`; `recurrent` and `made` become gradients by
   themselves. That by `bias` is added to `grad_bias`. */
void mix_backward(REAL *gates, REAL *recurrent, const REAL *inputs, REAL *made, REAL *grad_bias, long batch,
                  long units, long row) {
    const long part = 4 * batch * units;
    for (long b = 0; b < batch; b++)
        for (long k = 0; k < 4; k++) {
            REAL *restrict d_h = made + (k * batch + b) * units, *restrict d_x = d_h + part, *restrict d_b = d_x + part,
                           *restrict total = grad_bias + k * units;
            REAL *restrict h = recurrent + b * row + k * units, *restrict grads = gates + (b * 4 + k) * units;
            const REAL *restrict x = inputs + (b * 4 + k) * units;
#pragma omp simd
            for (long j = 0; j < units; j++) {
                REAL grad = grads[j], by_hidden = grad * d_h[j];
                grads[j] = grad * d_x[j];
                d_h[j] = grad * h[j];
                h[j] = by_hidden;
                d_x[j] = grad * x[j];
                d_b[j] = grad;
                total[j] += grad;
            }
        }
}
