/* SPDX-License-Identifier: Apache-2.0
 *
 * AVX-512F micro-kernels. Register budget of 32 zmm: scores 12 tokens x 32 rows = 24 accumulators +
 * 2 of Q^T + broadcasts; output 8 rows x 32 columns = 16 accumulators + 2 of V + broadcasts. Loads
 * per FMA: (12 + 2) / 24 and (8 + 2) / 16, below the two load ports' limit of 1. For few heads,
 * scores of 12 tokens x 16 rows x 2 columns at a time: the same loads per FMA.
 */
#include "ukernels.h"

#include <assert.h>
#include <immintrin.h>
#include <string.h>

#include "exp2_poly.h"
#include "ukr_avx512.h"
#include "ukr_blocks.h"
#include "ukr_fp8.h"

typedef double float_pair __attribute__((may_alias, aligned(4)));

enum {
  QK_TOKENS = 12,
  PV_ROWS = UKR_AVX512_PV_ROWS,
  PV_COLS = 32,
  TILE_TOKENS = 96,
  PAIRS = 32,
  FETCH_COLUMNS = 128,
  UNROLL = 8
};

/* ---- Rows of kv ---- */

static inline __m512 f16_at(const void *at) {
  uint16_t h;
  memcpy(&h, at, sizeof h);
  return _mm512_set1_ps(_cvtsh_ss(h));
}

/* Half a block. */
static inline __m512 load_16_of_block(amla_dtype type, const void *src, int32_t i) {
  const char *block = block_of(type, src, i);
  const __m128i codes = block_codes(type, 16, block, i % AMLA_BLOCK_ELEMS);
  const __m512 x = _mm512_mul_ps(f16_at(block), _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(codes)));
  return amla_block_format_of(type).has_m ? _mm512_add_ps(x, f16_at(block + 2)) : x;
}

static inline __m512 load_16_e4m3(const void *codes, __m512 scale) {
  const __m256i x = _mm256_cvtepi8_epi16(_mm_loadu_si128(codes)); /* the sign is there twice */
  const __m256i h = _mm256_and_si256(_mm256_slli_epi16(x, 7), _mm256_set1_epi16((short)0xbf80));
  return _mm512_mul_ps(_mm512_cvtph_ps(h), scale);
}

/* 16 elements of a KV or q row as f32, i a multiple of 16. */
static inline __m512 load_16(amla_dtype type, const void *src, int32_t i) {
  if (amla_is_block(type))
    return load_16_of_block(type, src, i);
  if (type == AMLA_F32)
    return _mm512_loadu_ps((const float *)src + i);
  const __m256i h = _mm256_loadu_si256((const __m256i *)((const uint16_t *)src + i));
  return type == AMLA_BF16 ? _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(h), 16))
                           : _mm512_cvtph_ps(h);
}

/* The last n < 16 elements of a row. */
static inline void load_tail(amla_dtype type, const void *src, int32_t i, int32_t n, float *dst) {
  float tail[16] = {0}; /* of either width */
  if (type == AMLA_F32)
    for (int32_t t = 0; t < n; t++)
      tail[t] = ((const float *)src)[i + t];
  else
    memcpy(tail, (const uint16_t *)src + i, (size_t)n * sizeof(uint16_t));
  _mm512_mask_storeu_ps(dst + i, (__mmask16)((1u << n) - 1u), load_16(type, tail, 0));
}

/* Which types are even_odd is in the table at the end. */
static inline __attribute__((always_inline)) void load_32(amla_dtype type, const void *src,
                                                          int32_t i, float *dst) {
  if (type == AMLA_BF16) {
    const __m512i pairs = _mm512_loadu_si512((const uint16_t *)src + i);
    _mm512_store_si512(dst + i, _mm512_slli_epi32(pairs, 16));
    _mm512_store_si512(dst + i + PAIRS / 2,
                       _mm512_and_si512(pairs, _mm512_set1_epi32((int)0xffff0000)));
  } else {
    _mm512_store_ps(dst + i, load_16(type, src, i));
    _mm512_store_ps(dst + i + 16, load_16(type, src, i + 16));
  }
}

static inline int is_rope(amla_dtype type, int32_t i) {
  return is_record(type) && i >= rope_begin(type);
}

/* Elements i to i + 31 of a row, i a multiple of 32; of e4m3 they have one scale. `rope`: they are
 * the bf16 of a record. seen may be NULL. */
static inline __attribute__((always_inline)) void
load_line(const amla_row_format *f, amla_dtype type, int rope, const void *row, const void *scales,
          int32_t i, float *dst, seen_of_rows *seen) {
  const char *at = (const char *)row + i;
  if (!is_fp8(type)) {
    load_32(type, row, i, dst);
  } else if (rope) {
    const char *bf16 = (const char *)row + rope_byte(type);
    _mm512_store_ps(dst + i, load_16(AMLA_BF16, bf16, i - rope_begin(type)));
    _mm512_store_ps(dst + i + 16, load_16(AMLA_BF16, bf16, i + 16 - rope_begin(type)));
  } else {
    const __m512 scale = _mm512_set1_ps(scale_x256(f, type, row, scales, i));
    if (seen)
      see_codes(seen, at);
    _mm512_store_ps(dst + i, load_16_e4m3(at, scale));
    _mm512_store_ps(dst + i + 16, load_16_e4m3(at + 16, scale));
  }
}

/* Does a line of fp8 have one scale? */
static inline int has_lines(const amla_row_format *f) {
  return !is_fp8(f->type) || f->d_latent % 32 == 0;
}

static inline void load_row(amla_dtype type, const amla_row_format *f, const void *row,
                            const void *scales, float *dst) {
  const int32_t n = f->d;
  seen_of_rows seen = {_mm256_setzero_si256(), is_fp8(type) && (n % 32 != 0 || !has_lines(f))};
  int32_t i = 0;
  if (is_fp8(type))
    see_scales(&seen, f, type, row, scales);
  for (; i + 32 <= n && !seen.wide; i += 32)
    load_line(f, type, is_rope(type, i), row, scales, i, dst, &seen);
  if (is_fp8(type)) {
    if (is_wild(&seen))
      amla_load_kv_row(f, row, scales, dst);
    return;
  }
  if (n - i >= 16)
    _mm512_store_ps(dst + i, load_16(type, row, i)), i += 16;
  if (i < n)
    load_tail(type, row, i, n - i, dst);
}

static void load(const amla_row_format *f, const void *row, const void *scales, void *dst) {
#define CASE(id, ...)                                                                              \
  case id: load_row(id, f, row, scales, dst); return;
  switch (f->type) { AMLA_DTYPES(CASE) }
#undef CASE
}

/* base/float16.h on 16 lanes. */
static inline __m256i narrow_16(amla_dtype type, __m512 x) {
  if (type == AMLA_F16)
    return _mm512_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  const __m512i u = _mm512_castps_si512(x), high = _mm512_srli_epi32(u, 16),
                odd = _mm512_and_si512(high, _mm512_set1_epi32(1));
  const __m512i rounded =
      _mm512_srli_epi32(_mm512_add_epi32(u, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff))), 16);
  const __mmask16 nan = _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q);
  return _mm512_cvtepi32_epi16(_mm512_mask_or_epi32(rounded, nan, high, _mm512_set1_epi32(0x40)));
}

/* n <= 16 elements. */
static inline void store_16(amla_dtype type, int32_t n, __m512 x, void *out) {
  const __mmask16 some = n >= 16 ? 0xffff : (__mmask16)((1u << n) - 1u);
  uint16_t half[16];
  if (type == AMLA_F32) {
    _mm512_mask_storeu_ps(out, some, x);
    return;
  }
  _mm256_storeu_si256(n >= 16 ? out : (void *)half, narrow_16(type, x));
  if (n < 16)
    memcpy(out, half, (size_t)n * sizeof *half);
}

static inline __attribute__((always_inline)) void
store_rows_of(amla_dtype type, int32_t rows, int32_t cols, const float *o, int even_odd,
              const amla_row_end *ends, int32_t d) {
  const __m512i low = _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
  const __m512i high = _mm512_add_epi32(low, _mm512_set1_epi32(8));
  for (int32_t r = 0; r < rows; r++, o += PV_COLS) {
    if (!ends[r].out)
      continue;
    char *out = (char *)ends[r].out + amla_elems_bytes(type, d);
    const __m512 factor = _mm512_set1_ps(ends[r].factor);
    __m512 x = _mm512_mul_ps(_mm512_load_ps(o), factor);
    __m512 y = _mm512_mul_ps(_mm512_load_ps(o + 16), factor);
    if (even_odd) {
      const __m512 even = x;
      x = _mm512_permutex2var_ps(even, low, y);
      y = _mm512_permutex2var_ps(even, high, y);
    }
    store_16(type, cols, x, out);
    if (cols > 16)
      store_16(type, cols - 16, y, out + amla_elems_bytes(type, 16));
  }
}

static void store(amla_dtype type, int32_t rows, int32_t cols, const float *o, int even_odd,
                  const amla_row_end *ends, int32_t d) {
  switch (type) {
  case AMLA_BF16: store_rows_of(AMLA_BF16, rows, cols, o, even_odd, ends, d); return;
  case AMLA_F16: store_rows_of(AMLA_F16, rows, cols, o, even_odd, ends, d); return;
  default: store_rows_of(AMLA_F32, rows, cols, o, even_odd, ends, d);
  }
}

/* 16 x 16 transpose in four rounds of pair-wise merges: of elements, pairs, quarters, halves. */
static inline void transpose_16x16(__m512 x[16]) {
  __m512 y[16];
#pragma GCC unroll 8
  for (int i = 0; i < 16; i += 2) {
    y[i] = _mm512_unpacklo_ps(x[i], x[i + 1]);
    y[i + 1] = _mm512_unpackhi_ps(x[i], x[i + 1]);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 16; i += 4)
#pragma GCC unroll 2
    for (int k = 0; k < 2; k++) {
      const __m512d a = _mm512_castps_pd(y[i + k]), b = _mm512_castps_pd(y[i + k + 2]);
      x[i + 2 * k] = _mm512_castpd_ps(_mm512_unpacklo_pd(a, b));
      x[i + 2 * k + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(a, b));
    }
#pragma GCC unroll 4
  for (int i = 0; i < 4; i++) { /* x[4g + i]: rows 4g..4g+3 of columns i, 4 + i, 8 + i, 12 + i */
    const __m512 low = _mm512_shuffle_f32x4(x[i], x[4 + i], 0x88),
                 high = _mm512_shuffle_f32x4(x[i], x[4 + i], 0xdd);
    const __m512 low2 = _mm512_shuffle_f32x4(x[8 + i], x[12 + i], 0x88),
                 high2 = _mm512_shuffle_f32x4(x[8 + i], x[12 + i], 0xdd);
    y[i] = _mm512_shuffle_f32x4(low, low2, 0x88);
    y[4 + i] = _mm512_shuffle_f32x4(high, high2, 0x88);
    y[8 + i] = _mm512_shuffle_f32x4(low, low2, 0xdd);
    y[12 + i] = _mm512_shuffle_f32x4(high, high2, 0xdd);
  }
#pragma GCC unroll 16
  for (int i = 0; i < 16; i++)
    x[i] = y[i];
}

/* Columns `at` and at + 1 of 16 rows, in a panel of `rows`: side by side where depth is 2. */
static inline __attribute__((always_inline)) void put_columns(float *qt, int rows, int32_t at,
                                                              __m512 a, __m512 b) {
  const __m512i low = _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
  const __m512i high = _mm512_add_epi32(low, _mm512_set1_epi32(8));
  _mm512_store_ps(qt + at * rows, rows == 32 ? a : _mm512_permutex2var_ps(a, low, b));
  _mm512_store_ps(qt + (at + 1) * rows, rows == 32 ? b : _mm512_permutex2var_ps(a, high, b));
}

/* bf16 of the lower or the upper half of each lane, as f32. */
static inline __m512 upper_half(__m512 pair, int upper) {
  const __m512i x = _mm512_castps_si512(pair);
  return _mm512_castsi512_ps(upper ? _mm512_and_si512(x, _mm512_set1_epi32((int)0xffff0000))
                                   : _mm512_slli_epi32(x, 16));
}

/* Columns i to i + 31 of 16 rows of bf16, transposed two at a time. */
static inline void pack_pairs(int32_t i, const void *const *q, __m512 factor, int even_odd,
                              int rows, float *qt) {
  __m512 x[16];
#pragma GCC unroll 16
  for (int r = 0; r < 16; r++) {
    x[r] = _mm512_loadu_ps((const uint16_t *)q[r] + i);
    _mm_prefetch((const char *)q[r] + 2 * i + 128, _MM_HINT_T0);
  }
  transpose_16x16(x);
#pragma GCC unroll 8
  for (int c = 0; c < 16; c += 2) { /* columns 2c, 2c + 1, 2c + 2, 2c + 3 */
    const __m512 even0 = _mm512_mul_ps(upper_half(x[c], 0), factor),
                 odd0 = _mm512_mul_ps(upper_half(x[c], 1), factor);
    const __m512 even1 = _mm512_mul_ps(upper_half(x[c + 1], 0), factor),
                 odd1 = _mm512_mul_ps(upper_half(x[c + 1], 1), factor);
    put_columns(qt, rows, even_odd ? i + c : i + 2 * c, even0, even_odd ? even1 : odd0);
    put_columns(qt, rows, even_odd ? i + PAIRS / 2 + c : i + 2 * c + 2, even_odd ? odd0 : even1,
                odd1);
  }
}

/* Columns i to i + 15 of n <= 16 rows of any type, fewer at the end. */
static inline void pack_columns(int32_t n, int32_t i, int32_t d, amla_dtype type,
                                const void *const *q, __m512 factor, int even_odd, int rows,
                                float *qt) {
  float tail[16];
  __m512 x[16];
  for (int r = 0; r < 16; r++) {
    x[r] = _mm512_setzero_ps();
    if (r < n && d - i >= 16)
      x[r] = load_16(type, q[r], i);
    else if (r < n) {
      load_tail(type, (const char *)q[r] + amla_elems_bytes(type, i), 0, d - i, tail);
      x[r] = _mm512_maskz_loadu_ps((__mmask16)((1u << (d - i)) - 1u), tail);
    }
    x[r] = _mm512_mul_ps(x[r], factor);
  }
  transpose_16x16(x);
  const int apart = even_odd && i / PAIRS * PAIRS + PAIRS <= d;
  for (int c = 0; apart && c < 16; c += 4) {
    put_columns(qt, rows, i - i % PAIRS / 2 + c / 2, x[c], x[c + 2]);
    put_columns(qt, rows, i - i % PAIRS / 2 + PAIRS / 2 + c / 2, x[c + 1], x[c + 3]);
  }
  int c = 0;
  for (; !apart && c < 16 && c + 2 <= d - i; c += 2)
    put_columns(qt, rows, i + c, x[c], x[c + 1]);
  if (!apart && c < d - i && c < 16)
    _mm512_store_ps(qt + (i + c) * rows, x[c]);
}

static inline void pack_lanes(int32_t n, int32_t d, amla_dtype type, const void *const *q,
                              float factor, int even_odd, int rows, float *qt) {
  const __m512 f = _mm512_set1_ps(factor);
  int32_t i = 0;
  for (; type == AMLA_BF16 && n >= 16 && i + 32 <= d; i += 32)
    pack_pairs(i, q, f, even_odd, rows, qt);
  for (; i < d; i += 16)
    pack_columns(n, i, d, type, q, f, even_odd, rows, qt);
}

static void pack_32(int32_t n, int32_t d, amla_dtype type, const void *const *q, float factor,
                    int even_odd, void *qt) {
  pack_lanes(n, d, type, q, factor, even_odd, 32, qt);
  pack_lanes(n - 16, d, type, q + 16, factor, even_odd, 32, (float *)qt + 16);
}

static void pack_16(int32_t n, int32_t d, amla_dtype type, const void *const *q, float factor,
                    int even_odd, void *qt) {
  pack_lanes(n, d, type, q, factor, even_odd, 16, qt);
}

/* ---- Scores ---- */

/* Depth 1: lanes are 32 rows. Depth 2: lanes are 16 rows x 2 columns, so that there too a
   broadcast, of 64 bits, feeds two FMAs. */

typedef __m512 score_tile[QK_TOKENS][2];

/* The next `depth` columns from d on. Three K rows a pointer, through two index registers. */
static inline __attribute__((always_inline)) void qk_step(score_tile acc, int tokens, int depth,
                                                          const float *const rows[QK_TOKENS / 3],
                                                          int64_t ldk, int32_t d, const float *q) {
  const __m512 q0 = _mm512_load_ps(q), q1 = _mm512_load_ps(q + 16);
#pragma GCC unroll 12
  for (int i = 0; i < tokens; i++) {
    const float *k = rows[i / 3] + i % 3 * ldk + d;
    const __m512 x = depth == 1
                         ? _mm512_set1_ps(*k)
                         : _mm512_castpd_ps(_mm512_set1_pd(*(const float_pair *)(const void *)k));
    acc[i][0] = _mm512_fmadd_ps(x, q0, acc[i][0]);
    acc[i][1] = _mm512_fmadd_ps(x, q1, acc[i][1]);
  }
}

static inline __attribute__((always_inline)) void qk_begin(score_tile acc, int tokens,
                                                           const float *k, int64_t ldk,
                                                           const float *rows[QK_TOKENS / 3]) {
#pragma GCC unroll 4
  for (int i = 0; 3 * i < tokens; i++)
    rows[i] = k + 3 * i * ldk;
#pragma GCC unroll 12
  for (int i = 0; i < tokens; i++)
    acc[i][0] = acc[i][1] = _mm512_setzero_ps();
}

/* Columns from d on, and what the lanes' columns add up to. */
static inline __attribute__((always_inline)) void qk_end(score_tile acc, int tokens, int depth,
                                                         const float *const rows[QK_TOKENS / 3],
                                                         int32_t d_qk, int32_t d, int64_t ldk,
                                                         const float *qt, float *s) {
  const __m512i even = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
  const __m512i odd = _mm512_or_si512(even, _mm512_set1_epi32(1));
#pragma GCC unroll 2
  for (; d + depth <= d_qk; d += depth)
    qk_step(acc, tokens, depth, rows, ldk, d, qt + d * (32 / depth));
#pragma GCC unroll 12
  for (int i = 0; i < tokens; i++) {
    if (depth == 1) {
      _mm512_store_ps(s + i * 32, acc[i][0]);
      _mm512_store_ps(s + i * 32 + 16, acc[i][1]);
    } else {
      __m512 sum = _mm512_add_ps(_mm512_permutex2var_ps(acc[i][0], even, acc[i][1]),
                                 _mm512_permutex2var_ps(acc[i][0], odd, acc[i][1]));
      if (d < d_qk)
        sum = _mm512_fmadd_ps(_mm512_set1_ps(rows[i / 3][i % 3 * ldk + d]),
                              _mm512_load_ps(qt + d * 16), sum);
      _mm512_store_ps(s + i * 16, sum);
    }
  }
}

static inline __attribute__((always_inline)) void qk_tile(int tokens, int depth, int32_t d_qk,
                                                          const float *k, int64_t ldk,
                                                          const float *qt, float *s) {
  const float *rows[QK_TOKENS / 3];
  score_tile acc;
  qk_begin(acc, tokens, k, ldk, rows);
  qk_end(acc, tokens, depth, rows, d_qk, 0, ldk, qt, s);
}

/* Fetches what a row has in column d, d a multiple of 32. */
static inline __attribute__((always_inline)) void
fetch_line(amla_dtype type, int32_t d, const amla_ukr_move *move, const int hint_t0) {
  const char *at = (const char *)move->row + amla_elems_bytes(type, d);
  if (is_rope(type, d))
    at = (const char *)move->row + rope_byte(type) + 2 * (d - rope_begin(type));
  if (type == AMLA_FP8_584 && d == 0)
    _mm_prefetch((const char *)move->scales, _MM_HINT_T0);
  if (hint_t0) {
    _mm_prefetch(at, _MM_HINT_T0);
    if (type == AMLA_F32)
      _mm_prefetch(at + 64, _MM_HINT_T0);
  } else {
    _mm_prefetch(at, _MM_HINT_T1);
    if (type == AMLA_F32)
      _mm_prefetch(at + 64, _MM_HINT_T1);
  }
}

static void load_rows(const amla_ukr_stage *stage) {
  for (const amla_ukr_move *m = stage->moves; m < stage->moves + stage->n_rows; m++)
    load(stage->format, m->row, m->scales, m->to);
}

static inline void see_row(seen_of_rows *seen, const amla_row_format *f, amla_dtype type,
                           const amla_ukr_move *move) {
  const int32_t end = is_record(type) ? rope_begin(type) : f->d;
  see_scales(seen, f, type, move->row, move->scales);
  for (int32_t i = 0; i < end; i += 32)
    see_codes(seen, (const char *)move->row + i);
}

/* The stage of a wide panel, a line of 32 elements every so many columns: straight-line code, for a
 * loop around a conversion costs more than the conversion hides. */
static inline __attribute__((always_inline)) void qk_staging(amla_dtype type, int every,
                                                             int32_t d_qk, const float *k,
                                                             int64_t ldk, const float *qt, float *s,
                                                             const amla_ukr_stage *stage) {
  const amla_ukr_move *move = stage->moves;
  const float *rows[QK_TOKENS / 3], *q = qt;
  seen_of_rows seen = {_mm256_setzero_si256(), 0};
  score_tile acc;
  int32_t d = 0, column = 0;
  qk_begin(acc, QK_TOKENS, k, ldk, rows);
  for (int32_t lines = stage->n_rows * (d_qk / 32); lines > 0; lines--) {
    fetch_line(type, column, move + QK_TOKENS, 0);
    if (is_rope(type, column))
      load_line(stage->format, type, 1, move->row, move->scales, column, move->to, NULL);
    else
      load_line(stage->format, type, 0, move->row, move->scales, column, move->to, NULL);
    column += 32;
    if (column == d_qk)
      column = 0, move++;
#pragma GCC unroll 8
    for (int t = 0; t < every; t++)
      qk_step(acc, QK_TOKENS, 1, rows, ldk, d + t, q + t * 32);
    d += every;
    q += every * 32;
  }
  qk_end(acc, QK_TOKENS, 1, rows, d_qk, d, ldk, qt, s);
  for (const amla_ukr_move *m = stage->moves; is_fp8(type) && m < move; m++)
    see_row(&seen, stage->format, type, m);
  if (is_fp8(type) && is_wild(&seen))
    load_rows(stage);
}

/* Converts columns [next, end) of 12 rows of their own, and multiplies those 32 columns before
 * them, three rows to 8 columns. With so few FMAs to a row, cache lines that go through L1 once
 * instead of twice are worth the bother; those that come later are fetched into it. */
static inline __attribute__((always_inline)) void
stage_lines(score_tile acc, amla_dtype type, int rope, int32_t next, int32_t end,
            const amla_row_format *f, const float *const rows[QK_TOKENS / 3], float *k, int64_t ldk,
            const float *qt, const amla_ukr_move *moves, seen_of_rows *seen) {
  const int32_t fetched = is_fp8(type) ? 2 * FETCH_COLUMNS : FETCH_COLUMNS;
  int32_t d = next - 32;
  for (; next < end; next += 32) {
    const int32_t ahead = next + fetched, at = ahead < f->d ? ahead : ahead - f->d;
    const amla_ukr_move *fetch = ahead < f->d ? moves : moves + QK_TOKENS;
    for (int i = 0; i < QK_TOKENS; i += 3) {
#pragma GCC unroll 3
      for (int t = 0; t < 3; t++) {
        fetch_line(type, at, fetch + i + t, 1);
        load_line(f, type, rope, moves[i + t].row, moves[i + t].scales, next, k + (i + t) * ldk,
                  seen);
      }
#pragma GCC unroll 4
      for (int t = 0; t < 4; t++, d += 2)
        qk_step(acc, QK_TOKENS, 2, rows, ldk, d, qt + d * 16);
    }
  }
}

/* The stage of a narrow panel. Returns whether a row was wild. */
static inline __attribute__((always_inline)) int
qk_staging_own(amla_dtype type, const amla_row_format *f, float *k, int64_t ldk, const float *qt,
               float *s, const amla_ukr_move *moves) {
  const float *rows[QK_TOKENS / 3];
  const int32_t latent = is_record(type) ? rope_begin(type) : f->d;
  seen_of_rows seen = {_mm256_setzero_si256(), 0};
  score_tile acc;
  qk_begin(acc, QK_TOKENS, k, ldk, rows);
  for (int i = 0; i < QK_TOKENS; i++) {
    if (is_fp8(type))
      see_scales(&seen, f, type, moves[i].row, moves[i].scales);
    load_line(f, type, 0, moves[i].row, moves[i].scales, 0, k + i * ldk, &seen);
  }
  stage_lines(acc, type, 0, 32, latent, f, rows, k, ldk, qt, moves, &seen);
  if (is_record(type))
    stage_lines(acc, type, 1, latent, f->d, f, rows, k, ldk, qt, moves, &seen);
  qk_end(acc, QK_TOKENS, 2, rows, f->d, f->d - 32, ldk, qt, s);
  return is_fp8(type) && is_wild(&seen);
}

static inline __attribute__((always_inline)) void qk_tokens(int depth, int32_t n, int32_t d_qk,
                                                            const float *k, int64_t ldk,
                                                            const float *qt, float *s) {
  if (n > 8)
    qk_tile(12, depth, d_qk, k, ldk, qt, s);
  else if (n > 4)
    qk_tile(8, depth, d_qk, k, ldk, qt, s);
  else
    qk_tile(4, depth, d_qk, k, ldk, qt, s);
}

/* A stage of n_rows takes n_rows / 32 lines a column: one every 32 / n_rows columns. One function
 * for each distance and type: clang takes many minutes, with sanitizers, for all of them in one. */
typedef void qk_staged(int32_t d_qk, const float *k, int64_t ldk, const float *qt, float *s,
                       const amla_ukr_stage *stage);
#define QK_EVERY(every, id)                                                                        \
  static void qk_every_##every##_##id(int32_t d_qk, const float *k, int64_t ldk, const float *qt,  \
                                      float *s, const amla_ukr_stage *stage) {                     \
    qk_staging(id, every, d_qk, k, ldk, qt, s, stage);                                             \
  }
#define QK_EVERY_8(id, ...) QK_EVERY(8, id)
#define QK_EVERY_4(id, ...) QK_EVERY(4, id)
#define QK_EVERY_2(id, ...) QK_EVERY(2, id)
AMLA_DTYPES(QK_EVERY_8)
AMLA_DTYPES(QK_EVERY_4)
AMLA_DTYPES(QK_EVERY_2)

static qk_staged *staged_kernel(amla_dtype type, int32_t n_rows) {
#define EVERY(id, ...) [id] = {qk_every_8_##id, qk_every_4_##id, qk_every_2_##id},
  static qk_staged *const kernels[][3] = {AMLA_DTYPES(EVERY)};
#undef EVERY
  assert(n_rows <= 16);
  return kernels[type][n_rows <= 4 ? 0 : n_rows <= 8 ? 1 : 2];
}

static void qk_12x32(int32_t n, int32_t d_qk, const void *k, int64_t ldk, const void *qt, float *s,
                     const amla_ukr_stage *stage) {
  if (stage->n_rows > 0 && n == QK_TOKENS && d_qk % 32 == 0 && has_lines(stage->format)) {
    staged_kernel(stage->format->type, stage->n_rows)(d_qk, k, ldk, qt, s, stage);
    return;
  }
  load_rows(stage);
  qk_tokens(1, n, d_qk, k, ldk, qt, s);
}

/* One function a type too: in one for all, the loop has 16 instructions more in 32 columns. */
typedef int qk_own(const amla_row_format *f, const float *qt, int64_t ldk, float *s,
                   const amla_ukr_move *moves);
#define QK_OWN(id, ...)                                                                            \
  static int qk_own_##id(const amla_row_format *f, const float *qt, int64_t ldk, float *s,         \
                         const amla_ukr_move *moves) {                                             \
    return qk_staging_own(id, f, moves->to, ldk, qt, s, moves);                                    \
  }
AMLA_DTYPES(QK_OWN)
#undef QK_OWN

static void qk_12x16(int32_t n, int32_t d_qk, const void *k, int64_t ldk, const void *qt, float *s,
                     const amla_ukr_stage *stage) {
  if (stage->n_rows == QK_TOKENS && d_qk % 32 == 0 && has_lines(stage->format)) {
#define OWN(id, ...) [id] = qk_own_##id,
    static qk_own *const own[] = {AMLA_DTYPES(OWN)};
#undef OWN
    const int wild = own[stage->format->type](stage->format, qt, ldk, s, stage->moves);
    if (!wild)
      return;
  }
  load_rows(stage);
  qk_tokens(2, n, d_qk, k, ldk, qt, s);
}

/* 16 rows of a panel of `rows`. Tokens UNROLL at a time: independent chains, longer than the
 * latency of an addition. */
static inline void max_lanes(int32_t n, const float *s, int rows, const int32_t *visible,
                             float *max) {
  const __m512i vis = _mm512_loadu_si512(visible);
  const int32_t all = _mm512_cmplt_epi32_mask(vis, _mm512_set1_epi32(n)) ? 0 : n / UNROLL * UNROLL;
  __m512 m[UNROLL];
#pragma GCC unroll 8
  for (int i = 0; i < UNROLL; i++)
    m[i] = _mm512_set1_ps(-__builtin_inff());
  int32_t j = 0;
  for (; j < all; j += UNROLL)
#pragma GCC unroll 8
    for (int i = 0; i < UNROLL; i++)
      m[i] = _mm512_max_ps(_mm512_load_ps(s + (j + i) * rows), m[i]); /* m[i] where s is NaN */
  for (; j < n; j++) {
    const __mmask16 seen = _mm512_cmplt_epi32_mask(_mm512_set1_epi32(j), vis);
    m[0] = _mm512_mask_max_ps(m[0], seen, _mm512_load_ps(s + j * rows), m[0]);
  }
#pragma GCC unroll 8
  for (int i = 1; i < UNROLL; i++)
    m[0] = _mm512_max_ps(m[i], m[0]);
  _mm512_storeu_ps(max, m[0]);
}

static void max_32(int32_t n, const float *s, const int32_t *visible, float *max) {
  max_lanes(n, s, 32, visible, max);
  max_lanes(n, s + 16, 32, visible + 16, max + 16);
}

static void max_16(int32_t n, const float *s, const int32_t *visible, float *max) {
  max_lanes(n, s, 16, visible, max);
}

/* P of `count` tokens, 16 rows, in steps that are independent over tokens: exp2_poly.h has the
 * polynomial. */
static inline __attribute__((always_inline)) void exp_tokens(int count, float *s, int rows,
                                                             __m512 ref, __m512 mul,
                                                             const __mmask16 *seen, __m512 *sum) {
  static const float c[] = {AMLA_EXP2_C5, AMLA_EXP2_C4, AMLA_EXP2_C3,
                            AMLA_EXP2_C2, AMLA_EXP2_C1, 1.0f};
  __m512 x[UNROLL], n[UNROLL], y[UNROLL];
  __mmask16 nonzero[UNROLL];
#pragma GCC unroll 8
  for (int i = 0; i < count; i++) {
    x[i] = _mm512_sub_ps(_mm512_load_ps(s + i * rows), ref);
    _mm_prefetch((const char *)(s + (TILE_TOKENS + i) * rows), _MM_HINT_T0); /* the next panel's */
  }
#pragma GCC unroll 8
  for (int i = 0; i < count; i++) {
    nonzero[i] = _mm512_cmp_ps_mask(x[i], _mm512_set1_ps(AMLA_EXP2_MIN), _CMP_GE_OQ);
    n[i] = _mm512_roundscale_ps(x[i], _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  }
#pragma GCC unroll 8
  for (int i = 0; i < count; i++)
    x[i] = _mm512_sub_ps(x[i], n[i]);
#pragma GCC unroll 8
  for (int i = 0; i < count; i++)
    y[i] = _mm512_set1_ps(AMLA_EXP2_C6);
#pragma GCC unroll 6
  for (int k = 0; k < 6; k++)
#pragma GCC unroll 8
    for (int i = 0; i < count; i++)
      y[i] = _mm512_fmadd_ps(y[i], x[i], _mm512_set1_ps(c[k]));
#pragma GCC unroll 8
  for (int i = 0; i < count; i++)
    y[i] = _mm512_maskz_scalef_ps(nonzero[i], y[i], n[i]);
#pragma GCC unroll 8
  for (int i = 0; i < count; i++)
    y[i] = _mm512_maskz_fmadd_ps(seen[i], _mm512_load_ps(s + i * rows), _mm512_setzero_ps(), y[i]);
#pragma GCC unroll 8
  for (int i = 0; i < count; i++) {
    *sum = _mm512_add_ps(*sum, y[i]);
    _mm512_store_ps(s + i * rows, _mm512_mul_ps(y[i], mul));
  }
}

static inline __m512 exp_whole(int32_t n, float *s, int rows, __m512 ref, __m512 mul, __m512 sum) {
  static const __mmask16 seen[UNROLL] = {0xffff, 0xffff, 0xffff, 0xffff,
                                         0xffff, 0xffff, 0xffff, 0xffff};
  for (int32_t j = 0; j < n; j += UNROLL)
    exp_tokens(UNROLL, s + j * rows, rows, ref, mul, seen, &sum);
  return sum;
}

static inline void exp_lanes(int32_t n, float *s, int rows, const float *ref, const float *mul,
                             const int32_t *visible, float *sum) {
  const __m512i vis = _mm512_loadu_si512(visible);
  const int32_t all = _mm512_cmplt_epi32_mask(vis, _mm512_set1_epi32(n)) ? 0 : n / UNROLL * UNROLL;
  const __m512 e = _mm512_loadu_ps(ref), m = _mm512_loadu_ps(mul);
  __m512 l = exp_whole(all, s, rows, e, m, _mm512_setzero_ps());
  for (int32_t j = all; j < n; j++) {
    const __mmask16 seen = _mm512_cmplt_epi32_mask(_mm512_set1_epi32(j), vis);
    exp_tokens(1, s + j * rows, rows, e, m, &seen, &l);
  }
  _mm512_storeu_ps(sum, l);
}

static void exp_32(int32_t n, float *s, const float *ref, const float *mul, const int32_t *visible,
                   float *sum) {
  exp_lanes(n, s, 32, ref, mul, visible, sum);
  exp_lanes(n, s + 16, 32, ref + 16, mul + 16, visible + 16, sum + 16);
}

static void exp_16(int32_t n, float *s, const float *ref, const float *mul, const int32_t *visible,
                   float *sum) {
  exp_lanes(n, s, 16, ref, mul, visible, sum);
}

/* One token of an output tile. */
static inline __attribute__((always_inline)) void pv_step(__m512 acc[PV_ROWS][2], const float *p,
                                                          const float *v) {
  const __m512 v0 = _mm512_load_ps(v), v1 = _mm512_load_ps(v + 16);
#pragma GCC unroll 8
  for (int r = 0; r < PV_ROWS; r++) {
    const __m512 x = _mm512_set1_ps(p[r]);
    acc[r][0] = _mm512_fmadd_ps(x, v0, acc[r][0]);
    acc[r][1] = _mm512_fmadd_ps(x, v1, acc[r][1]);
  }
}

static void pv_8x32(int32_t n, const void *weights, int64_t ldp, const void *values, int64_t ldv,
                    int first, const float *o, int32_t n_merges, const amla_ukr_merge *merges,
                    float *out) {
  const float *p = weights, *v = values;
  output_tile acc;
  int32_t j = 0;
  pv_begin(acc);
  for (; j + 12 <= n; j += 12)
#pragma GCC unroll 12
    for (int t = 0; t < 12; t++, p += ldp, v += ldv)
      pv_step(acc, p, v);
  for (; j < n; j++, p += ldp, v += ldv)
    pv_step(acc, p, v);
  pv_end(acc, first, o, n_merges, merges, out);
}

#include "ukr_cold.h"

const amla_ukernels amla_ukernels__avx512 = {
    .isa = AMLA_ISA_AVX512,
    .tile_type = AMLA_F32,
    .p_type = AMLA_F32,
    .tile_tokens = TILE_TOKENS,
    .pv_rows = PV_ROWS,
    .pv_cols = PV_COLS,
    .wide = {32, QK_TOKENS, 1, 1, pack_32, qk_12x32, max_32, exp_32},
    .narrow = {16, QK_TOKENS, 2, 0, pack_16, qk_12x16, max_16, exp_16},
    .even_odd = {[AMLA_BF16] = 1},
    .load = load,
    .store = store,
    .pv = pv_8x32,
    .scale = scale_rows,
    .shift = shift_rows,
    .merge = merge_rows,
};
