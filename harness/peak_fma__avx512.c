/* SPDX-License-Identifier: Apache-2.0
 *
 * FMA peak of AVX-512F. Compiled with -mavx512f.
 */
#include "peak_fma.h"

#include <immintrin.h>

enum { LANES = 16, CHAINS = 12 };

double harness_peak_fma__avx512(int64_t iterations) {
  /* Volatile: unknown to the compiler. The chains stay near 1. */
  volatile float factor = 0.999999f, addend = 0.000001f;
  const __m512 a = _mm512_set1_ps(factor), b = _mm512_set1_ps(addend);
  __m512 x0 = b, x1 = b, x2 = b, x3 = b, x4 = b, x5 = b, x6 = b, x7 = b, x8 = b, x9 = b, x10 = b,
         x11 = b;
  for (int64_t i = 0; i < iterations; i++) {
    x0 = _mm512_fmadd_ps(x0, a, b);
    x1 = _mm512_fmadd_ps(x1, a, b);
    x2 = _mm512_fmadd_ps(x2, a, b);
    x3 = _mm512_fmadd_ps(x3, a, b);
    x4 = _mm512_fmadd_ps(x4, a, b);
    x5 = _mm512_fmadd_ps(x5, a, b);
    x6 = _mm512_fmadd_ps(x6, a, b);
    x7 = _mm512_fmadd_ps(x7, a, b);
    x8 = _mm512_fmadd_ps(x8, a, b);
    x9 = _mm512_fmadd_ps(x9, a, b);
    x10 = _mm512_fmadd_ps(x10, a, b);
    x11 = _mm512_fmadd_ps(x11, a, b);
    /* The compiler must not see that the chains are equal, nor drop one. */
    __asm__ volatile(""
                     : "+v"(x0), "+v"(x1), "+v"(x2), "+v"(x3), "+v"(x4), "+v"(x5), "+v"(x6),
                       "+v"(x7), "+v"(x8), "+v"(x9), "+v"(x10), "+v"(x11));
  }
  x0 = _mm512_add_ps(_mm512_add_ps(_mm512_add_ps(x0, x1), _mm512_add_ps(x2, x3)),
                     _mm512_add_ps(_mm512_add_ps(x4, x5), _mm512_add_ps(x6, x7)));
  x0 = _mm512_add_ps(x0, _mm512_add_ps(_mm512_add_ps(x8, x9), _mm512_add_ps(x10, x11)));
  volatile float sink = _mm512_cvtss_f32(x0);
  (void)sink;
  return 2.0 * LANES * CHAINS * (double)iterations;
}
