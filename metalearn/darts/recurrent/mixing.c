/* One node of the recurrent supernet, forward and backward, in one pass over its edges.

   Arrays are contiguous. `states` is [node batch units], `product` [edge batch 2 units], gate and candidate before
   their functions; `shares` [edge 5] by none, tanh, relu, sigmoid, identity. REAL is float or double. */

#pragma GCC optimize("no-math-errno", "no-trapping-math") /* lets square roots and choices be vectorised */

#include "kernels.h"

#define EPSILON ((REAL)1e-5)

/* Zero mean and unit variance over the batch, in place; mean and biased variance to `statistics` [2 units]. */
static void normalise(REAL *restrict y, REAL *restrict masked, const REAL *restrict mask, REAL *restrict statistics,
                      long batch, long units) {
    REAL *restrict mean = statistics, *restrict variance = statistics + units;
    for (long j = 0; j < units; j++) mean[j] = variance[j] = 0;
    for (long b = 0; b < batch; b++)
        for (long j = 0; j < units; j++) mean[j] += y[b * units + j];
    for (long j = 0; j < units; j++) mean[j] /= batch;
    for (long b = 0; b < batch; b++)
        for (long j = 0; j < units; j++) {
            REAL centred = y[b * units + j] - mean[j];
            variance[j] += centred * centred;
        }
    for (long j = 0; j < units; j++) variance[j] /= batch;
    for (long b = 0; b < batch; b++)
        for (long j = 0; j < units; j++) {
            REAL inverse = 1 / SQRT(variance[j] + EPSILON);
            REAL value = (y[b * units + j] - mean[j]) * inverse;
            y[b * units + j] = value;
            masked[b * units + j] = value * mask[b * units + j];
        }
}

/* `grad` of a normalised state `y`, turned into that of what was normalised; `work` [2 units]. */
static void normalise_back(REAL *restrict grad, const REAL *restrict y, const REAL *restrict variance,
                           REAL *restrict work, long batch, long units) {
    REAL *restrict mean = work, *restrict along = work + units;
    for (long j = 0; j < units; j++) mean[j] = along[j] = 0;
    for (long b = 0; b < batch; b++)
        for (long j = 0; j < units; j++) {
            mean[j] += grad[b * units + j];
            along[j] += grad[b * units + j] * y[b * units + j];
        }
    for (long b = 0; b < batch; b++)
        for (long j = 0; j < units; j++) {
            REAL inverse = 1 / SQRT(variance[j] + EPSILON);
            long k = b * units + j;
            grad[k] = inverse * (grad[k] - mean[j] / batch - y[k] * (along[j] / batch));
        }
}

/* Node 0 from `hidden`; leaves the gate and the tanh of the candidate in `product` [batch 2 units]. */
void first_forward(REAL *product, const REAL *hidden, REAL *states, REAL *masked, const REAL *mask, REAL *statistics,
                   long batch, long units) {
    for (long b = 0; b < batch; b++) {
        REAL *restrict gates = product + b * 2 * units, *restrict candidates = gates + units;
        const REAL *restrict h = hidden + b * units;
        REAL *restrict out = states + b * units;
        for (long j = 0; j < units; j++) {
            REAL g = gates[j], a = candidates[j];
            REAL y = exponential(-FABS(g)), x = exponential(-2 * FABS(a));
            REAL r = 1 / ((1 + x) * (1 + y));
            REAL gate = (g < 0 ? y : 1) * (1 + x) * r, value = (a < 0 ? x - 1 : 1 - x) * (1 + y) * r;
            gates[j] = gate;
            candidates[j] = value;
            out[j] = h[j] + gate * (value - h[j]);
        }
    }
    normalise(states, masked, mask, statistics, batch, units);
}

/* From grads[0] the gradient by `product`, in its place, and by `hidden` without the product's share. */
void first_backward(REAL *product, const REAL *hidden, const REAL *states, const REAL *statistics, REAL *grads,
                    REAL *grad_hidden, REAL *work, long batch, long units) {
    normalise_back(grads, states, statistics + units, work, batch, units);
    for (long b = 0; b < batch; b++) {
        REAL *restrict gates = product + b * 2 * units, *restrict candidates = gates + units;
        const REAL *restrict h = hidden + b * units, *restrict d = grads + b * units;
        REAL *restrict out = grad_hidden + b * units;
        for (long j = 0; j < units; j++) {
            REAL gate = gates[j], value = candidates[j];
            out[j] = d[j] * (1 - gate);
            gates[j] = d[j] * (value - h[j]) * gate * (1 - gate);
            candidates[j] = d[j] * gate * (1 - value * value);
        }
    }
}

/* Node number `edges`; leaves the gates after their function in `product`. */
void node_forward(REAL *product, const REAL *shares, REAL *states, REAL *masked, const REAL *mask, REAL *statistics,
                  long edges, long batch, long units) {
    REAL *node = states + edges * batch * units;
    for (long k = 0; k < batch * units; k++) node[k] = 0;
    for (long e = 0; e < edges; e++) {
        const REAL *p = shares + e * 5;
        const REAL p1 = p[1], p2 = p[2], p3 = p[3], p4 = p[4], all = p1 + p2 + p3 + p4;
        for (long b = 0; b < batch; b++) {
            REAL *restrict gates = product + (e * batch + b) * 2 * units;
            const REAL *restrict candidates = gates + units;
            const REAL *restrict s = states + (e * batch + b) * units;
            REAL *restrict out = node + b * units;
            for (long j = 0; j < units; j++) {
                REAL g = gates[j], a = candidates[j];
                REAL y = exponential(-FABS(g)), x = exponential(-FABS(a)), xx = x * x;
                REAL r = 1 / ((1 + x) * (1 + xx) * (1 + y));
                REAL gate = (g < 0 ? y : 1) * (1 + x) * (1 + xx) * r;
                REAL sigmoid = (a < 0 ? x : 1) * (1 + xx) * (1 + y) * r;
                REAL tangent = (a < 0 ? xx - 1 : 1 - xx) * (1 + x) * (1 + y) * r;
                REAL mixed = p1 * tangent + p2 * (a < 0 ? 0 : a) + p3 * sigmoid + p4 * a;
                REAL kept = all * s[j];
                gates[j] = gate;
                out[j] += kept + gate * (mixed - kept);
            }
        }
    }
    normalise(node, masked + edges * batch * units, mask, statistics, batch, units);
}

/* From grads[edges] the gradients by `product`, in its place, by earlier states, added to `grads` without the
   product's share, and by `shares`, added to `grad_shares`. */
void node_backward(REAL *product, const REAL *shares, const REAL *states, const REAL *statistics, REAL *grads,
                   double *grad_shares, REAL *work, long edges, long batch, long units) {
    REAL *node = grads + edges * batch * units;
    normalise_back(node, states + edges * batch * units, statistics + units, work, batch, units);
    for (long e = 0; e < edges; e++) {
        const REAL *p = shares + e * 5;
        const REAL p1 = p[1], p2 = p[2], p3 = p[3], p4 = p[4], all = p1 + p2 + p3 + p4;
        double total1 = 0, total2 = 0, total3 = 0, total4 = 0;
        for (long b = 0; b < batch; b++) {
            REAL *restrict gates = product + (e * batch + b) * 2 * units;
            REAL *restrict candidates = gates + units;
            const REAL *restrict s = states + (e * batch + b) * units, *restrict d = node + b * units;
            REAL *restrict out = grads + (e * batch + b) * units;
            REAL sum0 = 0, sum1 = 0, sum2 = 0, sum3 = 0, sum4 = 0;
#pragma omp simd reduction(+ : sum0, sum1, sum2, sum3, sum4)
            for (long j = 0; j < units; j++) {
                REAL gate = gates[j], a = candidates[j];
                REAL x = exponential(-FABS(a)), xx = x * x;
                REAL r = 1 / ((1 + x) * (1 + xx));
                REAL sigmoid = (a < 0 ? x : 1) * (1 + xx) * r;
                REAL tangent = (a < 0 ? xx - 1 : 1 - xx) * (1 + x) * r;
                REAL positive = a < 0 ? 0 : a;
                REAL mixed = p1 * tangent + p2 * positive + p3 * sigmoid + p4 * a;
                REAL opened = d[j] * gate, closed = d[j] - opened;
                out[j] += all * closed;
                sum0 += closed * s[j];
                sum1 += opened * tangent;
                sum2 += opened * positive;
                sum3 += opened * sigmoid;
                sum4 += opened * a;
                gates[j] = (mixed - all * s[j]) * opened * (1 - gate);
                candidates[j] = opened * (p1 * (1 - tangent * tangent) + (a > 0 ? p2 : 0) +
                                          p3 * sigmoid * (1 - sigmoid) + p4);
            }
            total1 += sum0 + sum1;
            total2 += sum0 + sum2;
            total3 += sum0 + sum3;
            total4 += sum0 + sum4;
        }
        double *g = grad_shares + e * 5;
        g[1] += total1;
        g[2] += total2;
        g[3] += total3;
        g[4] += total4;
    }
}
