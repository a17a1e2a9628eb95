/* SPDX-License-Identifier: Apache-2.0
 *
 * What the rows of AVX-512 share: an output tile of 8 x 32, its begin and its end. Included behind
 * the intrinsics.
 */
#ifndef AMLA_CPU_UKR_AVX512_H
#define AMLA_CPU_UKR_AVX512_H

#include "ukernels.h"

enum { UKR_AVX512_PV_ROWS = 8 };

typedef __m512 output_tile[UKR_AVX512_PV_ROWS][2];

static inline __attribute__((always_inline)) void pv_begin(output_tile acc) {
#pragma GCC unroll 8
  for (int r = 0; r < UKR_AVX512_PV_ROWS; r++)
    acc[r][0] = acc[r][1] = _mm512_setzero_ps();
}

static inline __attribute__((always_inline)) void pv_end(output_tile acc, int is_first,
                                                         const float *o, int32_t n_merges,
                                                         const amla_ukr_merge *merges, float *out) {
  if (!is_first)
#pragma GCC unroll 16
    for (int i = 0; i < 2 * UKR_AVX512_PV_ROWS; i++)
      acc[i / 2][i % 2] = _mm512_add_ps(_mm512_load_ps(o + i * 16), acc[i / 2][i % 2]);
  for (const amla_ukr_merge *m = merges; m < merges + n_merges; m++)
#pragma GCC unroll 16
    for (int i = 0; i < 2 * UKR_AVX512_PV_ROWS; i++) {
      const __m512 a = _mm512_mul_ps(_mm512_set1_ps(m->of_a[i / 2]), _mm512_load_ps(m->a + i * 16));
      acc[i / 2][i % 2] = _mm512_fmadd_ps(_mm512_set1_ps(m->of_b[i / 2]), acc[i / 2][i % 2], a);
    }
#pragma GCC unroll 16
  for (int i = 0; i < 2 * UKR_AVX512_PV_ROWS; i++)
    _mm512_store_ps(out + i * 16, acc[i / 2][i % 2]);
}

#endif
