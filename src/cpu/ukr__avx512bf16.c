/* SPDX-License-Identifier: Apache-2.0
 *
 * AVX512-BF16 micro-kernels. vdpbf16ps adds to each of 16 lanes the products of a pair of bf16, so
 * that keys are multiplied as they lie in the cache. Scores: 12 tokens x 32 rows, 24 sums, 2
 * vectors of Q^T, a pair of K broadcast; few rows: 12 tokens x 16 rows, two pairs of K broadcast.
 * PV: 8 rows x 32 columns, either f32 FMAs over V widened in registers, or pairs of tokens made
 * there. Loads per product: (12 + 2) / 24 and (8 + 2) / 16.
 *
 * Two table rows, by the form of P. bf16x2 has none: two products a pair of tokens are as many as
 * in f32, which is more exact. What works on f32 is AVX-512F's.
 */
#include "ukernels.h"

#include <assert.h>
#include <immintrin.h>

#include "ukr_avx512.h"

#define INLINE static inline __attribute__((always_inline))

enum {
  QK_TOKENS = 12,
  PV_ROWS = UKR_AVX512_PV_ROWS,
  PV_COLS = 32,
  TILE_TOKENS = 96,
  LINE = 32 /* elements */
};

extern const amla_ukernels amla_ukernels__avx512;

typedef int32_t one_pair __attribute__((may_alias, aligned(2)));
typedef double two_pairs __attribute__((may_alias, aligned(2)));

static int32_t at_most(int32_t a, int32_t b) { return a < b ? a : b; }

/* The first n of 32 elements. */
INLINE __mmask32 first(int32_t n) { return n >= LINE ? 0xffffffffu : (1u << n) - 1u; }

/* ---- Keys ---- */

static void copy_row(int32_t n, const uint16_t *src, uint16_t *dst) {
  const int32_t whole = n / LINE * LINE;
#pragma GCC unroll 6
  for (int32_t i = 0; i < whole; i += LINE)
    _mm512_storeu_si512(dst + i, _mm512_loadu_si512(src + i));
  if (whole < n)
    _mm512_mask_storeu_epi16(dst + whole, first(n - whole),
                             _mm512_maskz_loadu_epi16(first(n - whole), src + whole));
}

/* To nearest even, which changes nothing in fp8_584. */
static void round_row(const amla_row_format *f, const void *row, const void *scales,
                      uint16_t *dst) {
  enum { PART = AMLA_MAX_RECORD };
  _Static_assert(PART % LINE == 0, "parts are whole lines");
  _Alignas(64) float x[PART] = {0};
  assert(!amla_ukernels__avx512.even_odd[f->type]);
  for (int32_t i = 0; i < f->d; i += PART) {
    const int32_t end = at_most(PART, f->d - i);
    const amla_row_format part = amla_row_part(f, i, end);
    const char *from = (const char *)row + amla_elems_bytes(f->type, i);
    amla_ukernels__avx512.load(&part, from, scales, x);
    for (int32_t c = 0; c < end; c += LINE) {
      const __m512bh y = _mm512_cvtne2ps_pbh(_mm512_load_ps(x + c + 16), _mm512_load_ps(x + c));
      _mm512_mask_storeu_epi16(dst + i + c, first(end - c), (__m512i)y);
    }
  }
}

static void load(const amla_row_format *f, const void *row, const void *scales, void *dst) {
  if (f->type == AMLA_BF16)
    copy_row(f->d, row, dst);
  else
    round_row(f, row, scales, dst);
}

static void load_rows(const amla_ukr_stage *stage) {
  for (const amla_ukr_move *m = stage->moves; m < stage->moves + stage->n_rows; m++)
    load(stage->format, m->row, m->scales, m->to);
}

/* ---- Q^T ---- */

/* 16 x 16 of 32 bits: blocks of 8 x 8 that face each other swap places, then 4 x 4, 2 x 2, 1 x 1.
 */
INLINE void transpose(__m512i x[16]) {
  const __m512i lane = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
#pragma GCC unroll 4
  for (int size = 8; size > 0; size /= 2) {
    const __m512i step = _mm512_set1_epi32(size);
    const __mmask16 right = _mm512_test_epi32_mask(lane, step);
    const __m512i upper = _mm512_mask_add_epi32(lane, right, lane, _mm512_set1_epi32(16 - size));
    const __m512i lower =
        _mm512_mask_add_epi32(_mm512_add_epi32(lane, step), right, lane, _mm512_set1_epi32(16));
#pragma GCC unroll 16
    for (int i = 0; i < 16; i++)
      if (!(i & size)) {
        const __m512i a = x[i], b = x[i + size];
        x[i] = _mm512_permutex2var_epi32(a, upper, b);
        x[i + size] = _mm512_permutex2var_epi32(a, lower, b);
      }
  }
}

/* Lanes a0 b0 a1 b1 ... of the lower halves of a and b; +8: of the upper ones. */
INLINE __m512i zip(__m512i a, __m512i b, int half) {
  const __m512i low = _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
  return _mm512_permutex2var_epi32(a, _mm512_add_epi32(low, _mm512_set1_epi32(8 * half)), b);
}

/* 16 rows, of which n exist, in a panel of `rows`: pairs [d / 2][rows] (depth 2), or with two pairs
 * side by side (depth 4). */
INLINE void pack_lanes(int32_t n, int32_t d, const void *const *q, int rows, uint16_t *qt) {
  const int depth = rows == 32 ? 2 : 4;
  for (int32_t i = 0; i < d; i += LINE) {
    __m512i x[16];
#pragma GCC unroll 16
    for (int r = 0; r < 16; r++)
      x[r] = r < n ? _mm512_maskz_loadu_epi16(first(d - i), (const uint16_t *)q[r] + i)
                   : _mm512_setzero_si512();
    transpose(x);
    for (int c = 0; c < 16 && i + 2 * c < d; c += depth / 2) {
      uint16_t *to = qt + (i + 2 * c) * rows;
      _mm512_store_si512(to, depth == 2 ? x[c] : zip(x[c], x[c + 1], 0));
      if (depth == 4)
        _mm512_store_si512(to + 32, zip(x[c], x[c + 1], 1));
    }
  }
}

/* What stands behind the columns. */
INLINE float *factors(const uint16_t *qt, int32_t d, int rows) {
  const int depth = rows == 32 ? 2 : 4;
  return (float *)(uintptr_t)(qt + (d + depth - 1) / depth * depth * rows);
}

static void pack_32(int32_t n, int32_t d, amla_dtype type, const void *const *q, float factor,
                    int even_odd, void *qt) {
  (void)type, (void)even_odd;
  pack_lanes(at_most(n, 16), d, q, 32, qt);
  pack_lanes(n - 16, d, q + 16, 32, (uint16_t *)qt + 32);
  for (int r = 0; r < 32; r++)
    factors(qt, d, 32)[r] = factor;
}

static void pack_16(int32_t n, int32_t d, amla_dtype type, const void *const *q, float factor,
                    int even_odd, void *qt) {
  (void)type, (void)even_odd;
  pack_lanes(n, d, q, 16, qt);
  for (int r = 0; r < 16; r++)
    factors(qt, d, 16)[r] = factor;
}

/* ---- Scores ---- */

/* Wide: lanes are rows, two vectors of them. Narrow: lanes are 8 rows x 2 pairs, so that there too
 * a broadcast, of 64 bits, feeds two products. */
typedef __m512 score_tile[QK_TOKENS][2];

/* The next `depth` columns from d on. Three K rows a pointer, through two index registers. */
INLINE void qk_step(score_tile acc, int tokens, int depth, const uint16_t *const *rows, int64_t ldk,
                    int32_t d, const uint16_t *q) {
  const __m512bh q0 = (__m512bh)_mm512_load_si512(q), q1 = (__m512bh)_mm512_load_si512(q + 32);
#pragma GCC unroll 12
  for (int i = 0; i < tokens; i++) {
    const void *k = rows[i / 3] + i % 3 * ldk + d;
    const __m512i x = depth == 2 ? _mm512_set1_epi32(*(const one_pair *)k)
                                 : _mm512_castpd_si512(_mm512_set1_pd(*(const two_pairs *)k));
    acc[i][0] = _mm512_dpbf16_ps(acc[i][0], q0, (__m512bh)x);
    acc[i][1] = _mm512_dpbf16_ps(acc[i][1], q1, (__m512bh)x);
  }
}

INLINE void qk_begin(score_tile acc, int tokens, const uint16_t *k, int64_t ldk,
                     const uint16_t **rows) {
#pragma GCC unroll 4
  for (int i = 0; 3 * i < tokens; i++)
    rows[i] = k + 3 * i * ldk;
#pragma GCC unroll 12
  for (int i = 0; i < tokens; i++)
    acc[i][0] = acc[i][1] = _mm512_setzero_ps();
}

/* Columns from d on, what the lanes' pairs add up to, and the factor. */
INLINE void qk_end(score_tile acc, int tokens, int depth, const uint16_t *const *rows, int32_t d_qk,
                   int32_t d, int64_t ldk, const uint16_t *qt, float *s) {
  const __m512i even = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
  const __m512i odd = _mm512_or_si512(even, _mm512_set1_epi32(1));
  const int n_rows = 64 / depth;
  const __m512 factor = _mm512_load_ps(factors(qt, d_qk, n_rows));
#pragma GCC unroll 2
  for (; d < d_qk; d += depth)
    qk_step(acc, tokens, depth, rows, ldk, d, qt + d * n_rows);
#pragma GCC unroll 12
  for (int i = 0; i < tokens; i++) {
    if (depth == 2) {
      _mm512_store_ps(s + i * 32, _mm512_mul_ps(acc[i][0], factor));
      _mm512_store_ps(s + i * 32 + 16, _mm512_mul_ps(acc[i][1], factor));
    } else {
      const __m512 sum = _mm512_add_ps(_mm512_permutex2var_ps(acc[i][0], even, acc[i][1]),
                                       _mm512_permutex2var_ps(acc[i][0], odd, acc[i][1]));
      _mm512_store_ps(s + i * 16, _mm512_mul_ps(sum, factor));
    }
  }
}

INLINE void qk_tile(int tokens, int depth, int32_t d_qk, const uint16_t *k, int64_t ldk,
                    const uint16_t *qt, float *s) {
  const uint16_t *rows[QK_TOKENS / 3];
  score_tile acc;
  qk_begin(acc, tokens, k, ldk, rows);
  qk_end(acc, tokens, depth, rows, d_qk, 0, ldk, qt, s);
}

INLINE void qk_tokens(int depth, int32_t n, int32_t d_qk, const uint16_t *k, int64_t ldk,
                      const uint16_t *qt, float *s) {
  if (n > 8)
    qk_tile(12, depth, d_qk, k, ldk, qt, s);
  else if (n > 4)
    qk_tile(8, depth, d_qk, k, ldk, qt, s);
  else
    qk_tile(4, depth, d_qk, k, ldk, qt, s);
}

INLINE void copy_line(const uint16_t *from, uint16_t *to) {
  _mm512_store_si512(to, _mm512_loadu_si512(from));
}

/* The stage of a wide panel, a line every so many pairs of columns. */
INLINE void qk_staging(int every, int32_t d_qk, const uint16_t *k, int64_t ldk, const uint16_t *qt,
                       float *s, const amla_ukr_stage *stage) {
  const amla_ukr_move *move = stage->moves;
  const uint16_t *rows[QK_TOKENS / 3], *q = qt;
  score_tile acc;
  int32_t d = 0, column = 0;
  qk_begin(acc, QK_TOKENS, k, ldk, rows);
  for (int32_t lines = stage->n_rows * (d_qk / LINE); lines > 0; lines--) {
    _mm_prefetch((const char *)((const uint16_t *)move[QK_TOKENS].row + column), _MM_HINT_T1);
    copy_line((const uint16_t *)move->row + column, (uint16_t *)move->to + column);
    column += LINE;
    if (column == d_qk)
      column = 0, move++;
#pragma GCC unroll 4
    for (int t = 0; t < every; t++)
      qk_step(acc, QK_TOKENS, 2, rows, ldk, d + 2 * t, q + t * 64);
    d += 2 * every;
    q += every * 64;
  }
  qk_end(acc, QK_TOKENS, 2, rows, d_qk, d, ldk, qt, s);
}

/* n_rows rows are n_rows * d_qk / 32 lines in d_qk / 2 pairs of columns. */
static void qk_12x32(int32_t n, int32_t d_qk, const void *k, int64_t ldk, const void *qt, float *s,
                     const amla_ukr_stage *stage) {
  const int whole =
      stage->n_rows > 0 && n == QK_TOKENS && d_qk % LINE == 0 && stage->format->type == AMLA_BF16;
  if (!whole || stage->n_rows == 0) {
    load_rows(stage);
    qk_tokens(2, n, d_qk, k, ldk, qt, s);
  } else if (stage->n_rows <= 4) {
    qk_staging(4, d_qk, k, ldk, qt, s, stage);
  } else if (stage->n_rows <= 8) {
    qk_staging(2, d_qk, k, ldk, qt, s, stage);
  } else {
    qk_staging(1, d_qk, k, ldk, qt, s, stage);
  }
}

/* The stage of a narrow panel, 12 rows of its own: 32 columns are copied while those before them
 * are multiplied, three rows to 8 columns. The next 12 rows' are fetched. */
static void qk_staging_own(int32_t d_qk, uint16_t *k, int64_t ldk, const uint16_t *qt, float *s,
                           const amla_ukr_move *moves) {
  const uint16_t *rows[QK_TOKENS / 3];
  score_tile acc;
  int32_t d = 0;
  qk_begin(acc, QK_TOKENS, k, ldk, rows);
  for (int i = 0; i < QK_TOKENS; i++)
    copy_line(moves[i].row, k + i * ldk);
  for (int32_t next = LINE; next < d_qk; next += LINE)
    for (int i = 0; i < QK_TOKENS; i += 3) {
#pragma GCC unroll 3
      for (int t = i; t < i + 3; t++) {
        _mm_prefetch((const char *)((const uint16_t *)moves[QK_TOKENS + t].row + next),
                     _MM_HINT_T0);
        copy_line((const uint16_t *)moves[t].row + next, k + t * ldk + next);
      }
#pragma GCC unroll 2
      for (int t = 0; t < 2; t++, d += 4)
        qk_step(acc, QK_TOKENS, 4, rows, ldk, d, qt + d * 16);
    }
  qk_end(acc, QK_TOKENS, 4, rows, d_qk, d, ldk, qt, s);
}

static void qk_12x16(int32_t n, int32_t d_qk, const void *k, int64_t ldk, const void *qt, float *s,
                     const amla_ukr_stage *stage) {
  if (stage->n_rows == QK_TOKENS && d_qk % LINE == 0 && stage->format->type == AMLA_BF16) {
    qk_staging_own(d_qk, stage->moves->to, ldk, qt, s, stage->moves);
    return;
  }
  load_rows(stage);
  qk_tokens(4, n, d_qk, k, ldk, qt, s);
}

/* ---- P ---- */

static void max_32(int32_t n, const float *s, const int32_t *visible, float *max) {
  amla_ukernels__avx512.wide.max(n, s, visible, max);
}

static void max_16(int32_t n, const float *s, const int32_t *visible, float *max) {
  amla_ukernels__avx512.narrow.max(n, s, visible, max);
}

static void exp_32(int32_t n, float *s, const float *ref, const float *mul, const int32_t *visible,
                   float *sum) {
  amla_ukernels__avx512.wide.exp(n, s, ref, mul, visible, sum);
}

static void exp_16(int32_t n, float *s, const float *ref, const float *mul, const int32_t *visible,
                   float *sum) {
  amla_ukernels__avx512.narrow.exp(n, s, ref, mul, visible, sum);
}

/* bf16 of two tokens, side by side in each row's lane. */
INLINE __m512i round_pair(__m512 a, __m512 b) {
  const __m512i pairs = (__m512i)_mm512_cvtne2ps_pbh(b, a);
  const __m512i lane = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  const __m512i order = _mm512_or_si512(lane, _mm512_slli_epi32(lane, 16)); /* r, r */
  return _mm512_permutexvar_epi16(_mm512_or_si512(order, _mm512_set1_epi32(16 << 16)), pairs);
}

/* P in place, [n][rows] f32 to pairs; their sums go to sum [rows], the odd token of a pair first.
 */
INLINE void round_p(int32_t n, int rows, float *s, float *sum) {
  const __m512bh ones = (__m512bh)_mm512_set1_epi32(0x3f803f80);
  __m512 l[2] = {_mm512_setzero_ps(), _mm512_setzero_ps()};
  for (int32_t j = 0; j < n; j += 2)
#pragma GCC unroll 2
    for (int v = 0; v < rows / 16; v++) {
      const float *at = s + j * rows + v * 16;
      const __m512 b = j + 1 < n ? _mm512_load_ps(at + rows) : _mm512_setzero_ps();
      const __m512i pair = round_pair(_mm512_load_ps(at), b);
      _mm512_store_si512(s + j / 2 * rows + v * 16, pair);
      l[v] = _mm512_dpbf16_ps(l[v], (__m512bh)pair, ones);
    }
#pragma GCC unroll 2
  for (int v = 0; v < rows / 16; v++)
    _mm512_storeu_ps(sum + v * 16, l[v]);
}

static void exp_32_p16(int32_t n, float *s, const float *ref, const float *mul,
                       const int32_t *visible, float *sum) {
  exp_32(n, s, ref, mul, visible, sum);
  round_p(n, 32, s, sum + 32);
}

static void exp_16_p16(int32_t n, float *s, const float *ref, const float *mul,
                       const int32_t *visible, float *sum) {
  exp_16(n, s, ref, mul, visible, sum);
  round_p(n, 16, s, sum + 16);
}

/* ---- PV ---- */

/* P in f32: V widened, its even columns apart from its odd ones. */
INLINE void pv_step(output_tile acc, const float *p, const uint16_t *v) {
  const __m512i pairs = _mm512_load_si512(v);
  const __m512 even = _mm512_castsi512_ps(_mm512_slli_epi32(pairs, 16));
  const __m512 odd =
      _mm512_castsi512_ps(_mm512_and_si512(pairs, _mm512_set1_epi32((int)0xffff0000)));
#pragma GCC unroll 8
  for (int r = 0; r < PV_ROWS; r++) {
    const __m512 x = _mm512_set1_ps(p[r]);
    acc[r][0] = _mm512_fmadd_ps(x, even, acc[r][0]);
    acc[r][1] = _mm512_fmadd_ps(x, odd, acc[r][1]);
  }
}

static void pv_8x32(int32_t n, const void *weights, int64_t ldp, const void *values, int64_t ldv,
                    int is_first, const float *o, int32_t n_merges, const amla_ukr_merge *merges,
                    float *out) {
  const float *p = weights;
  const uint16_t *v = values;
  output_tile acc;
  int32_t j = 0;
  pv_begin(acc);
  for (; j + 4 <= n; j += 4)
#pragma GCC unroll 4
    for (int t = 0; t < 4; t++, p += ldp, v += ldv)
      pv_step(acc, p, v);
  for (; j < n; j++, p += ldp, v += ldv)
    pv_step(acc, p, v);
  pv_end(acc, is_first, o, n_merges, merges, out);
}

/* P in bf16: pairs of tokens, V's made by an unpack within 128 bits, which deals 32 columns out to
 * two vectors. */
INLINE void pv_pair(output_tile acc, const one_pair *p, const uint16_t *v, const uint16_t *v_next) {
  const __m512i a = _mm512_load_si512(v), b = _mm512_load_si512(v_next);
  const __m512bh v0 = (__m512bh)_mm512_unpacklo_epi16(a, b);
  const __m512bh v1 = (__m512bh)_mm512_unpackhi_epi16(a, b);
#pragma GCC unroll 8
  for (int r = 0; r < PV_ROWS; r++) {
    const __m512bh x = (__m512bh)_mm512_set1_epi32(p[r]);
    acc[r][0] = _mm512_dpbf16_ps(acc[r][0], v0, x);
    acc[r][1] = _mm512_dpbf16_ps(acc[r][1], v1, x);
  }
}

/* A last token without a neighbour is its own: that one's P is 0. */
static void pv_8x32_p16(int32_t n, const void *weights, int64_t ldp, const void *values,
                        int64_t ldv, int is_first, const float *o, int32_t n_merges,
                        const amla_ukr_merge *merges, float *out) {
  const one_pair *p = weights;
  const uint16_t *v = values;
  output_tile acc;
  int32_t j = 0;
  pv_begin(acc);
  for (; j + 8 <= n; j += 8)
#pragma GCC unroll 4
    for (int t = 0; t < 4; t++, p += ldp, v += 2 * ldv)
      pv_pair(acc, p, v, v + ldv);
  for (; j + 2 <= n; j += 2, p += ldp, v += 2 * ldv)
    pv_pair(acc, p, v, v + ldv);
  if (j < n)
    pv_pair(acc, p, v, v);
  pv_end(acc, is_first, o, n_merges, merges, out);
}

/* ---- O ---- */

#include "ukr_cold.h"

static void store(amla_dtype type, int32_t rows, int32_t cols, const float *o, int even_odd,
                  const amla_row_end *ends, int32_t d) {
  (void)even_odd;
  amla_ukernels__avx512.store(type, rows, cols, o, 1, ends, d);
}

static void store_p16(amla_dtype type, int32_t rows, int32_t cols, const float *o, int even_odd,
                      const amla_row_end *ends, int32_t d) {
  const __m512i low = _mm512_setr_epi32(0, 1, 2, 3, 16, 17, 18, 19, 4, 5, 6, 7, 20, 21, 22, 23);
  const __m512i high = _mm512_add_epi32(low, _mm512_set1_epi32(8));
  _Alignas(64) float x[PV_ROWS][PV_COLS];
  (void)even_odd;
  assert(rows <= PV_ROWS);
  for (int32_t r = 0; r < rows; r++, o += PV_COLS) {
    const __m512 a = _mm512_load_ps(o), b = _mm512_load_ps(o + 16);
    _mm512_store_ps(x[r], _mm512_permutex2var_ps(a, low, b));
    _mm512_store_ps(x[r] + 16, _mm512_permutex2var_ps(a, high, b));
  }
  amla_ukernels__avx512.store(type, rows, cols, x[0], 0, ends, d);
}

const amla_ukernels amla_ukernels__avx512bf16 = {
    .isa = AMLA_ISA_AVX512BF16,
    .tile_type = AMLA_BF16,
    .p_type = AMLA_F32,
    .tile_tokens = TILE_TOKENS,
    .pv_rows = PV_ROWS,
    .pv_cols = PV_COLS,
    .wide = {32, QK_TOKENS, 2, 1, pack_32, qk_12x32, max_32, exp_32},
    .narrow = {16, QK_TOKENS, 4, 0, pack_16, qk_12x16, max_16, exp_16},
    .load = load,
    .store = store,
    .pv = pv_8x32,
    .scale = scale_rows,
    .shift = shift_rows,
    .merge = merge_rows,
};

const amla_ukernels amla_ukernels__avx512bf16_p16 = {
    .isa = AMLA_ISA_AVX512BF16,
    .tile_type = AMLA_BF16,
    .p_type = AMLA_BF16,
    .p_form = AMLA_P_BF16,
    .tile_tokens = TILE_TOKENS,
    .pv_rows = PV_ROWS,
    .pv_cols = PV_COLS,
    .wide = {32, QK_TOKENS, 2, 1, pack_32, qk_12x32, max_32, exp_32_p16},
    .narrow = {16, QK_TOKENS, 4, 0, pack_16, qk_12x16, max_16, exp_16_p16},
    .load = load,
    .store = store_p16,
    .pv = pv_8x32_p16,
    .scale = scale_rows,
    .shift = shift_rows,
    .merge = merge_rows,
};
