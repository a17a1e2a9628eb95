/* SPDX-License-Identifier: Apache-2.0
 *
 * FMA peak of AVX2 + FMA. Compiled with -mavx2 -mfma.
 */
#include "peak_fma.h"

#include <immintrin.h>

enum { LANES = 8, CHAINS = 12 };

double harness_peak_fma__avx2(int64_t iterations) {
  /* Volatile: unknown to the compiler. The chains stay near 1. */
  volatile float factor = 0.999999f, addend = 0.000001f;
  const __m256 a = _mm256_set1_ps(factor), b = _mm256_set1_ps(addend);
  __m256 x0 = b, x1 = b, x2 = b, x3 = b, x4 = b, x5 = b, x6 = b, x7 = b, x8 = b, x9 = b, x10 = b,
         x11 = b;
  for (int64_t i = 0; i < iterations; i++) {
    x0 = _mm256_fmadd_ps(x0, a, b);
    x1 = _mm256_fmadd_ps(x1, a, b);
    x2 = _mm256_fmadd_ps(x2, a, b);
    x3 = _mm256_fmadd_ps(x3, a, b);
    x4 = _mm256_fmadd_ps(x4, a, b);
    x5 = _mm256_fmadd_ps(x5, a, b);
    x6 = _mm256_fmadd_ps(x6, a, b);
    x7 = _mm256_fmadd_ps(x7, a, b);
    x8 = _mm256_fmadd_ps(x8, a, b);
    x9 = _mm256_fmadd_ps(x9, a, b);
    x10 = _mm256_fmadd_ps(x10, a, b);
    x11 = _mm256_fmadd_ps(x11, a, b);
    /* The compiler must not see that the chains are equal, nor drop one. */
    __asm__ volatile(""
                     : "+x"(x0), "+x"(x1), "+x"(x2), "+x"(x3), "+x"(x4), "+x"(x5), "+x"(x6),
                       "+x"(x7), "+x"(x8), "+x"(x9), "+x"(x10), "+x"(x11));
  }
  x0 = _mm256_add_ps(_mm256_add_ps(_mm256_add_ps(x0, x1), _mm256_add_ps(x2, x3)),
                     _mm256_add_ps(_mm256_add_ps(x4, x5), _mm256_add_ps(x6, x7)));
  x0 = _mm256_add_ps(x0, _mm256_add_ps(_mm256_add_ps(x8, x9), _mm256_add_ps(x10, x11)));
  volatile float sink = _mm256_cvtss_f32(x0);
  (void)sink;
  return 2.0 * LANES * CHAINS * (double)iterations;
}
