/* SPDX-License-Identifier: Apache-2.0
 *
 * The encoder for AVX2.
 */
#include "encode_loops.h"

#include <immintrin.h>

static void narrow_f16(int32_t n, const float *x, uint16_t *h) {
  int32_t i = 0;
  for (; i + 8 <= n; i += 8)
    _mm_storeu_si128((void *)(h + i), _mm256_cvtps_ph(_mm256_loadu_ps(x + i), 0));
  for (; i < n; i++)
    h[i] = amla_f32_to_f16(x[i]);
}

/* As amla_f32_to_e4m3: GCC makes twice as many instructions of that. */
static inline __m256i codes_of(__m256 x) {
  const __m256 a = _mm256_andnot_ps(_mm256_set1_ps(-0.0f), x);
  const __m256 b = _mm256_min_ps(a, _mm256_set1_ps(AMLA_E4M3_MAX)); /* of NaN, too */
  const __m256i u = _mm256_castps_si256(b), sign = _mm256_set1_epi32(0x80);
  const __m256i sum = _mm256_castps_si256(_mm256_add_ps(b, _mm256_set1_ps(0x1p14f)));
  const __m256i tiny = _mm256_sub_epi32(sum, _mm256_set1_epi32(0x46800000));
  const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(u, 20), _mm256_set1_epi32(1));
  const __m256i up = _mm256_add_epi32(_mm256_add_epi32(u, _mm256_set1_epi32(0x7ffff)), odd);
  const __m256i normal = _mm256_sub_epi32(_mm256_srli_epi32(up, 20), _mm256_set1_epi32(120 << 3));
  const __m256i is_tiny = _mm256_cmpgt_epi32(_mm256_set1_epi32(0x3c800000), u);
  const __m256i is_nan = _mm256_castps_si256(_mm256_cmp_ps(x, x, _CMP_UNORD_Q));
  const __m256i nan = _mm256_and_si256(is_nan, _mm256_set1_epi32(0x7f));
  const __m256i code = _mm256_or_si256(_mm256_blendv_epi8(normal, tiny, is_tiny), nan);
  const __m256i signs = _mm256_and_si256(_mm256_srli_epi32(_mm256_castps_si256(x), 24), sign);
  return _mm256_or_si256(code, signs);
}

static inline __m256i codes_at(const float *x, __m256 scale) {
  return codes_of(_mm256_div_ps(_mm256_loadu_ps(x), scale));
}

static void narrow_e4m3(int32_t n, const float *x, float scale, uint8_t *to) {
  const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
  const __m256 s = _mm256_set1_ps(scale);
  int32_t i = 0;
  for (; i + 32 <= n; i += 32) {
    const __m256i low = _mm256_packus_epi32(codes_at(x + i, s), codes_at(x + i + 8, s));
    const __m256i high = _mm256_packus_epi32(codes_at(x + i + 16, s), codes_at(x + i + 24, s));
    const __m256i codes = _mm256_packus_epi16(low, high);
    _mm256_storeu_si256((void *)(to + i), _mm256_permutevar8x32_epi32(codes, order));
  }
  for (; i < n; i++)
    to[i] = (uint8_t)amla_f32_to_e4m3(x[i] / scale);
}

amla_encode_token amla_encode_token__avx2;

void amla_encode_token__avx2(const amla_encoding *e, const void *latent, const void *rope,
                             amla_encoded to) {
  encode_token(e, latent, rope, to);
}
