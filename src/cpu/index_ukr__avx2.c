/* SPDX-License-Identifier: Apache-2.0
 *
 * The indexer's kernels in AVX2 + FMA + F16C.
 */
#include "index_ukr.h"

#include <immintrin.h>

/* As f16 with its exponent field 8 too small, which the conversion to f32 takes in subnormals too;
 * NaN becomes all ones. */
static void load_e4m3(int32_t n, const void *src, float *dst) {
  const __m256i sign_and_value = _mm256_set1_epi16((short)0xbf80),
                value = _mm256_set1_epi16(0x3f80);
  const __m256 bias = _mm256_set1_ps(256.0f);
  for (int32_t i = 0; i < n; i += 16) {
    const __m128i x = _mm_loadu_si128((const void *)((const char *)src + i));
    const __m256i h = _mm256_slli_epi16(_mm256_cvtepi8_epi16(x), 7);
    const __m256i nan = _mm256_cmpeq_epi16(_mm256_and_si256(h, value), value);
    const __m256i y = _mm256_or_si256(_mm256_and_si256(h, sign_and_value), nan);
    const __m256 low = _mm256_cvtph_ps(_mm256_castsi256_si128(y)),
                 high = _mm256_cvtph_ps(_mm256_extracti128_si256(y, 1));
    _mm256_store_ps(dst + i, _mm256_mul_ps(low, bias));
    _mm256_store_ps(dst + i + 8, _mm256_mul_ps(high, bias));
  }
}

/* max keeps its second operand if that is NaN. */
static inline __m256 add_weighed(__m256 sum, const float *s, const float *w, __m256 scale) {
  const __m256 x = _mm256_mul_ps(_mm256_load_ps(s), scale);
  return _mm256_fmadd_ps(_mm256_loadu_ps(w), _mm256_max_ps(_mm256_setzero_ps(), x), sum);
}

static void weigh(int32_t n, int32_t rows, const float *s, const float *w, const float *scale,
                  float *sum) {
  for (int32_t j = 0; j < n; j++, s += rows, sum += AMLA_INDEX_LANES) {
    const __m256 f = _mm256_set1_ps(scale ? scale[j] : 1.0f);
    for (int32_t r = 0; r < rows; r += 8) {
      float *to = sum + r % AMLA_INDEX_LANES;
      _mm256_storeu_ps(to, add_weighed(_mm256_loadu_ps(to), s + r, w + r, f));
    }
  }
}

extern const amla_index_ukr amla_index_ukr__avx2;
const amla_index_ukr amla_index_ukr__avx2 = {AMLA_ISA_AVX2, load_e4m3, weigh};
