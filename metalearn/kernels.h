/* What kernels share: numbers of type REAL, float or double, and an exponential written out so that compilers
   vectorise it without a vector library. */

#include <math.h>
#include <stdint.h>

#define DOUBLE_float 0
#define DOUBLE_double 1
#define JOINED(a, b) a##b
#define IS_DOUBLE(real) JOINED(DOUBLE_, real)

#if IS_DOUBLE(REAL)
#define FABS fabs
#define SQRT sqrt
typedef union { double real; uint64_t bits; } pun;
#define MAGIC 6755399441055744.0
#define SHIFT 52
#define BIAS ((uint64_t)1023 << 52)
#define LOWEST (-700.0)
#define LOG2_HIGH 6.93147180369123816490e-01
#define LOG2_LOW 1.90821492927058770002e-10
#else
#define FABS fabsf
#define SQRT sqrtf
typedef union { float real; uint32_t bits; } pun;
#define MAGIC 12582912.0f
#define SHIFT 23
#define BIAS ((uint32_t)127 << 23)
#define LOWEST (-87.0f)
#define LOG2_HIGH 6.93359375e-01f
#define LOG2_LOW -2.12194440e-4f
#endif
#define C(x) ((REAL)(x))

/* 2^n by its bits and r, at most log(2)/2 in size, such that x = n log(2) + r, for LOWEST <= x <= 0. */
static inline REAL power_and_rest(REAL x, REAL *rest) {
    pun z, power;
    z.real = x * C(1.44269504088896340736) + MAGIC;
    REAL n = z.real - MAGIC;
    *rest = x - n * LOG2_HIGH - n * LOG2_LOW;
    power.bits = (z.bits << SHIFT) + BIAS;
    return power.real;
}

/* (exp(r) - 1) / r by its Taylor series. */
static inline REAL series(REAL r) {
#if IS_DOUBLE(REAL)
    REAL p = C(1.0 / 6227020800.0);
    p = p * r + C(1.0 / 479001600.0);
    p = p * r + C(1.0 / 39916800.0);
    p = p * r + C(1.0 / 3628800.0);
    p = p * r + C(1.0 / 362880.0);
    p = p * r + C(1.0 / 40320.0);
    p = p * r + C(1.0 / 5040.0);
#else
    REAL p = C(1.0 / 5040.0);
#endif
    p = p * r + C(1.0 / 720.0);
    p = p * r + C(1.0 / 120.0);
    p = p * r + C(1.0 / 24.0);
    p = p * r + C(1.0 / 6.0);
    p = p * r + C(0.5);
    return p * r + C(1.0);
}

/* exp(x) for x <= 0. */
static inline REAL exponential(REAL x) {
    REAL r, power = power_and_rest(x < LOWEST ? LOWEST : x, &r);
    return (series(r) * r + C(1.0)) * power;
}
