/* SPDX-License-Identifier: Apache-2.0
 *
 * The indexer's kernels in AVX-512F (beside AVX2, FMA and F16C).
 */
#include "index_ukr.h"

#include <immintrin.h>

/* As in index_ukr__avx2.c, 16 at a time. */
static void load_e4m3(int32_t n, const void *src, float *dst) {
  const __m256i sign_and_value = _mm256_set1_epi16((short)0xbf80),
                value = _mm256_set1_epi16(0x3f80);
  for (int32_t i = 0; i < n; i += 16) {
    const __m128i x = _mm_loadu_si128((const void *)((const char *)src + i));
    const __m256i h = _mm256_slli_epi16(_mm256_cvtepi8_epi16(x), 7);
    const __m256i nan = _mm256_cmpeq_epi16(_mm256_and_si256(h, value), value);
    const __m256i y = _mm256_or_si256(_mm256_and_si256(h, sign_and_value), nan);
    _mm512_store_ps(dst + i, _mm512_mul_ps(_mm512_cvtph_ps(y), _mm512_set1_ps(256.0f)));
  }
}

/* max keeps its second operand if that is NaN. Panels have 32 or 16 rows. */
static void weigh(int32_t n, int32_t rows, const float *s, const float *w, const float *scale,
                  float *sum) {
  for (int32_t j = 0; j < n; j++, s += rows, sum += AMLA_INDEX_LANES) {
    const __m512 f = _mm512_set1_ps(scale ? scale[j] : 1.0f);
    __m512 acc = _mm512_loadu_ps(sum);
    for (int32_t r = 0; r < rows; r += 16) {
      const __m512 x = _mm512_mul_ps(_mm512_load_ps(s + r), f);
      acc = _mm512_fmadd_ps(_mm512_loadu_ps(w + r), _mm512_max_ps(_mm512_setzero_ps(), x), acc);
    }
    _mm512_storeu_ps(sum, acc);
  }
}

extern const amla_index_ukr amla_index_ukr__avx512;
const amla_index_ukr amla_index_ukr__avx512 = {AMLA_ISA_AVX512, load_e4m3, weigh};
