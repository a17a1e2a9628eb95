/* SPDX-License-Identifier: Apache-2.0
 *
 * Multiply-add peak of portable code: 16-byte vectors, on x86-64 SSE2 multiply and add.
 */
#include "peak_fma.h"

typedef float vector __attribute__((vector_size(16)));

static inline vector broadcast(float x) { return (vector){x, x, x, x}; }

/* The compiler must not see that the chains are equal, nor drop one. */
#if defined(__x86_64__)
#define HIDE(x) __asm__ volatile("" : "+x"(x))
#elif defined(__aarch64__)
#define HIDE(x) __asm__ volatile("" : "+w"(x))
#else
#define HIDE(x) (void)(x)
#endif

enum { LANES = 4, CHAINS = 12 };

double harness_peak_fma__c(int64_t iterations) {
  /* Volatile: unknown to the compiler. The chains stay near 1. */
  volatile float factor = 0.999999f, addend = 0.000001f;
  const vector a = broadcast(factor), b = broadcast(addend);
  vector x0 = b, x1 = b, x2 = b, x3 = b, x4 = b, x5 = b, x6 = b, x7 = b, x8 = b, x9 = b, x10 = b,
         x11 = b;
  for (int64_t i = 0; i < iterations; i++) {
    x0 = x0 * a + b;
    x1 = x1 * a + b;
    x2 = x2 * a + b;
    x3 = x3 * a + b;
    x4 = x4 * a + b;
    x5 = x5 * a + b;
    x6 = x6 * a + b;
    x7 = x7 * a + b;
    x8 = x8 * a + b;
    x9 = x9 * a + b;
    x10 = x10 * a + b;
    x11 = x11 * a + b;
    HIDE(x0);
    HIDE(x1);
    HIDE(x2);
    HIDE(x3);
    HIDE(x4);
    HIDE(x5);
    HIDE(x6);
    HIDE(x7);
    HIDE(x8);
    HIDE(x9);
    HIDE(x10);
    HIDE(x11);
  }
  const vector sum = x0 + x1 + x2 + x3 + x4 + x5 + x6 + x7 + x8 + x9 + x10 + x11;
  volatile float sink = sum[0];
  (void)sink;
  return 2.0 * LANES * CHAINS * (double)iterations;
}
