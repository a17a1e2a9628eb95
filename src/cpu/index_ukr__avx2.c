/* SPDX-License-Identifier: Apache-2.0
 *
 * The indexer's kernels in AVX2 + FMA + F16C.
 */
#include "index_ukr.h"

#include <immintrin.h>

/* By a load that fills both halves and a shuffle that puts each element under zeros. */
static void load_bf16(int32_t n, const void *src, float *dst) {
  const __m256i high = _mm256_setr_epi8(-1, -1, 0, 1, -1, -1, 2, 3, -1, -1, 4, 5, -1, -1, 6, 7, -1,
                                        -1, 8, 9, -1, -1, 10, 11, -1, -1, 12, 13, -1, -1, 14, 15);
  for (int32_t i = 0; i < n; i += 32)
#pragma GCC unroll 4
    for (int32_t c = i; c < i + 32; c += 8) {
      const __m128i x = _mm_loadu_si128((const void *)((const uint16_t *)src + c));
      const __m256i y = _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(x), high);
      _mm256_store_ps(dst + c, _mm256_castsi256_ps(y));
    }
}

/* 16 bytes as f16 whose exponent field is 8 too small, which the conversion to f32 takes in
 * subnormals too; NaN becomes all ones. */
static inline __m256i widen_e4m3(const void *src) {
  const __m256i value = _mm256_set1_epi16(0x3f80),
                sign_and_value = _mm256_set1_epi16((short)0xbf80);
  const __m256i h = _mm256_slli_epi16(_mm256_cvtepi8_epi16(_mm_loadu_si128(src)), 7);
  const __m256i nan = _mm256_cmpeq_epi16(_mm256_and_si256(h, value), value);
  return _mm256_or_si256(_mm256_and_si256(h, sign_and_value), nan);
}

static void load_e4m3(int32_t n, const void *src, float *dst) {
  const __m256 bias = _mm256_set1_ps(256.0f);
  for (int32_t i = 0; i < n; i += 32)
#pragma GCC unroll 2
    for (int32_t c = i; c < i + 32; c += 16) {
      const __m256i y = widen_e4m3((const char *)src + c);
      const __m256 low = _mm256_cvtph_ps(_mm256_castsi256_si128(y)),
                   high = _mm256_cvtph_ps(_mm256_extracti128_si256(y, 1));
      _mm256_store_ps(dst + c, _mm256_mul_ps(low, bias));
      _mm256_store_ps(dst + c + 8, _mm256_mul_ps(high, bias));
    }
}

/* max keeps its second operand if that is NaN. */
static inline __m256 add_weighed(__m256 sum, const float *s, __m256 w, const float *scale) {
  __m256 x = _mm256_load_ps(s);
  if (scale)
    x = _mm256_mul_ps(x, _mm256_broadcast_ss(scale));
  return _mm256_fmadd_ps(w, _mm256_max_ps(_mm256_setzero_ps(), x), sum);
}

/* 8 rows of a panel of `rows`. */
static inline __attribute__((always_inline)) void
weigh_8(int32_t n, int32_t rows, const float *s, const float *w, const float *scales, float *sums) {
  const __m256 weights = _mm256_loadu_ps(w);
  for (int32_t j = 0; j < n; j++, s += rows, sums += AMLA_INDEX_LANES) {
    const __m256 sum = _mm256_loadu_ps(sums);
    _mm256_storeu_ps(sums, add_weighed(sum, s, weights, scales ? scales + j : NULL));
  }
}

static void weigh(int32_t n, int32_t rows, const float *s, const float *w, const float *scales,
                  float *sums) {
  for (int32_t r = 0; r < rows; r += 8) {
    float *to = sums + r % AMLA_INDEX_LANES;
    if (scales)
      weigh_8(n, rows, s + r, w + r, scales, to);
    else
      weigh_8(n, rows, s + r, w + r, NULL, to);
  }
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
  const __m256i b = _mm256_set1_epi32(bound);
  __m256i counts = _mm256_setzero_si256(); /* less than none */
  int32_t i = 0, lanes[8], count = 0;
  for (; i + 8 <= n; i += 8) {
    const __m256i x = _mm256_loadu_si256((const void *)(keys + i));
    counts = _mm256_add_epi32(counts, _mm256_cmpgt_epi32(x, b));
  }
  _mm256_storeu_si256((void *)lanes, counts);
  for (; i < n; i++)
    count += keys[i] > bound;
  for (int l = 0; l < 8; l++)
    count -= lanes[l];
  return count;
}

extern const amla_index_ukr amla_index_ukr__avx2;
const amla_index_ukr amla_index_ukr__avx2 = {AMLA_ISA_AVX2, load_bf16, load_e4m3,
                                             weigh,         add_lanes, count_above};
