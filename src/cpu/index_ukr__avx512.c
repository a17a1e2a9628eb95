/* SPDX-License-Identifier: Apache-2.0
 *
 * The indexer's kernels in AVX-512F (beside AVX2, FMA and F16C).
 */
#include "index_ukr.h"

#include <immintrin.h>

static void load_bf16(int32_t n, const void *src, float *dst) {
  for (int32_t i = 0; i < n; i += 32)
#pragma GCC unroll 2
    for (int32_t c = i; c < i + 32; c += 16) {
      const __m256i x = _mm256_loadu_si256((const void *)((const uint16_t *)src + c));
      const __m512i y = _mm512_slli_epi32(_mm512_cvtepu16_epi32(x), 16);
      _mm512_store_ps(dst + c, _mm512_castsi512_ps(y));
    }
}

/* As in index_ukr__avx2.c. */
static inline __m256i widen_e4m3(const void *src) {
  const __m256i value = _mm256_set1_epi16(0x3f80),
                sign_and_value = _mm256_set1_epi16((short)0xbf80);
  const __m256i h = _mm256_slli_epi16(_mm256_cvtepi8_epi16(_mm_loadu_si128(src)), 7);
  const __m256i nan = _mm256_cmpeq_epi16(_mm256_and_si256(h, value), value);
  return _mm256_or_si256(_mm256_and_si256(h, sign_and_value), nan);
}

static void load_e4m3(int32_t n, const void *src, float *dst) {
  for (int32_t i = 0; i < n; i += 32)
#pragma GCC unroll 2
    for (int32_t c = i; c < i + 32; c += 16) {
      const __m512 x = _mm512_cvtph_ps(widen_e4m3((const char *)src + c));
      _mm512_store_ps(dst + c, _mm512_mul_ps(x, _mm512_set1_ps(256.0f)));
    }
}

/* max keeps its second operand if that is NaN. */
static inline __m512 add_weighed(__m512 sum, const float *s, __m512 w, const float *scale) {
  __m512 x = _mm512_load_ps(s);
  if (scale)
    x = _mm512_mul_ps(x, _mm512_set1_ps(*scale));
  return _mm512_fmadd_ps(w, _mm512_max_ps(_mm512_setzero_ps(), x), sum);
}

/* 16 rows of a panel of `rows`. */
static inline __attribute__((always_inline)) void weigh_16(int32_t n, int32_t rows, const float *s,
                                                           const float *w, const float *scales,
                                                           float *sums) {
  const __m512 weights = _mm512_loadu_ps(w);
  for (int32_t j = 0; j < n; j++, s += rows, sums += AMLA_INDEX_LANES) {
    const __m512 sum = _mm512_loadu_ps(sums);
    _mm512_storeu_ps(sums, add_weighed(sum, s, weights, scales ? scales + j : NULL));
  }
}

/* Panels have 32 or 16 rows. */
static void weigh(int32_t n, int32_t rows, const float *s, const float *w, const float *scales,
                  float *sums) {
  for (int32_t r = 0; r < rows; r += AMLA_INDEX_LANES)
    if (scales)
      weigh_16(n, rows, s + r, w + r, scales, sums);
    else
      weigh_16(n, rows, s + r, w + r, NULL, sums);
}

static void add_lanes(int32_t n, const float *sums, float *scores) {
  for (int32_t j = 0; j < n; j++, sums += AMLA_INDEX_LANES) {
    const __m256 x = _mm256_add_ps(_mm256_loadu_ps(sums), _mm256_loadu_ps(sums + 8));
    const __m128 y = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    const __m128 z = _mm_add_ps(y, _mm_movehl_ps(y, y));
    _mm_store_ss(scores + j, _mm_add_ss(z, _mm_movehdup_ps(z)));
  }
}

static int32_t count_above(int32_t n, const int32_t *keys, int32_t bound) {
  const __m512i b = _mm512_set1_epi32(bound), one = _mm512_set1_epi32(1);
  __m512i counts = _mm512_setzero_si512();
  int32_t i = 0, count = 0;
  for (; i + 16 <= n; i += 16) {
    const __m512i x = _mm512_loadu_si512(keys + i);
    counts = _mm512_mask_add_epi32(counts, _mm512_cmpgt_epi32_mask(x, b), counts, one);
  }
  for (; i < n; i++)
    count += keys[i] > bound;
  return count + _mm512_reduce_add_epi32(counts);
}

extern const amla_index_ukr amla_index_ukr__avx512;
const amla_index_ukr amla_index_ukr__avx512 = {AMLA_ISA_AVX512, load_bf16, load_e4m3,
                                               weigh,           add_lanes, count_above};
