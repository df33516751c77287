/* Small products for many rows at once: numbers of a block of rows, or coordinates, lie side by side [BLOCK], weights
   are spread over whole vectors of them. */

#include "kernels.h"

#include <stdlib.h>
#include <string.h>

#ifdef __AVX512F__
#define WIDTH 64 /* bytes of a vector */
#define TILE 4   /* vectors of rows that products hold in registers, SOME sums each */
#else
#define WIDTH 32
#define TILE 2
#endif
#define LANES ((long)(WIDTH / sizeof(REAL)))
#define BLOCK (4 * LANES)
#define SOME 4 /* sums that products make at once */
#define INLINE static inline __attribute__((always_inline))
typedef REAL vec __attribute__((vector_size(WIDTH)));

INLINE long upto(long number, long multiple) { return (number + multiple - 1) / multiple * multiple; }

static REAL *room(long numbers) {
    void *memory = 0;
    long bytes = upto(numbers * (long)sizeof(REAL) + 1, 64);
    if (posix_memalign(&memory, 64, bytes)) abort(); /* a few hundred kilobytes */
    return memset(memory, 0, bytes);
}

/* out[j] = bias[j] + sum over k of weight[k][j] x[k], all rows of a block; `bias` may be NULL. */
static __attribute__((unused)) void product(REAL *out, const REAL *x, const REAL *packed, const REAL *bias, long rows, long columns) {
    for (long j = 0; j < columns; j += SOME, packed += SOME * rows)
        for (long b = 0; b < BLOCK; b += TILE * LANES) {
            vec sums[SOME][TILE];
            for (long i = 0; i < SOME; i++)
                for (long v = 0; v < TILE; v++) sums[i][v] = (vec){0} + (bias ? bias[j + i] : 0);
            for (long k = 0; k < rows; k++) {
                const vec *here = (const vec *)(x + k * BLOCK + b);
                const REAL *w = packed + SOME * k;
#pragma GCC unroll 4
                for (long i = 0; i < SOME; i++)
#pragma GCC unroll 4
                    for (long v = 0; v < TILE; v++) sums[i][v] += here[v] * w[i];
            }
            for (long i = 0; i < SOME; i++)
                for (long v = 0; v < TILE; v++) *(vec *)(out + (j + i) * BLOCK + b + v * LANES) = sums[i][v];
        }
}
