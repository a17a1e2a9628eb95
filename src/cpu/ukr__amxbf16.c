/* SPDX-License-Identifier: Apache-2.0
 *
 * Kernels of the AMX-BF16 row (amx.h). Eight tile registers: four sums, two left, two right. Four
 * products take 64 cycles, their four loads 32, and four sums are what a latency of 52 asks for.
 * Vector work is dealt out between the products in small helpings: the window of reordering holds
 * about eight products' worth of instructions.
 *
 * Tile loads of gcc are asm without a memory operand: `fence` keeps stores before them.
 */
#include "amx.h"

#include <immintrin.h>
#include <string.h>

#include "exp2_poly.h"

#define INLINE static inline __attribute__((always_inline))

enum { ROWS = AMLA_AMX_ROWS, DEPTH = AMLA_AMX_DEPTH, TILE = AMLA_AMX_TILE, STEP = AMLA_AMX_STEP };
enum { PV_COLS = AMLA_AMX_COLS, LINE = 64, O_LINE = PV_COLS * 4 }; /* bytes */

INLINE void fence(void) { __asm__ volatile("" ::: "memory"); }

/* ---- Tile state ---- */

typedef struct __attribute__((aligned(64))) tile_config {
  uint8_t palette, start_row, reserved[14];
  uint16_t row_bytes[16];
  uint8_t rows[16];
} tile_config;

void amla_amx_configure(void) {
  static const tile_config config = {1,
                                     0,
                                     {0},
                                     {LINE, LINE, LINE, LINE, LINE, LINE, LINE, LINE},
                                     {ROWS, ROWS, ROWS, ROWS, ROWS, ROWS, ROWS, ROWS}};
  _tile_loadconfig(&config);
}

void amla_amx_release(void) { _tile_release(); }

/* ---- Conversions ---- */

/* 16 x 16 of 32 bits: rounds of merges of elements, of pairs, of quarters, of halves. */
INLINE void transpose(__m512i x[16]) {
  __m512i y[16];
#pragma GCC unroll 8
  for (int i = 0; i < 16; i += 2) {
    y[i] = _mm512_unpacklo_epi32(x[i], x[i + 1]);
    y[i + 1] = _mm512_unpackhi_epi32(x[i], x[i + 1]);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 16; i += 4) {
    x[i] = _mm512_unpacklo_epi64(y[i], y[i + 2]);
    x[i + 1] = _mm512_unpackhi_epi64(y[i], y[i + 2]);
    x[i + 2] = _mm512_unpacklo_epi64(y[i + 1], y[i + 3]);
    x[i + 3] = _mm512_unpackhi_epi64(y[i + 1], y[i + 3]);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; i++) {
    const __m512i low = _mm512_shuffle_i32x4(x[i], x[4 + i], 0x88);
    const __m512i high = _mm512_shuffle_i32x4(x[i], x[4 + i], 0xdd);
    const __m512i low2 = _mm512_shuffle_i32x4(x[8 + i], x[12 + i], 0x88);
    const __m512i high2 = _mm512_shuffle_i32x4(x[8 + i], x[12 + i], 0xdd);
    y[i] = _mm512_shuffle_i32x4(low, low2, 0x88);
    y[4 + i] = _mm512_shuffle_i32x4(high, high2, 0x88);
    y[8 + i] = _mm512_shuffle_i32x4(low, low2, 0xdd);
    y[12 + i] = _mm512_shuffle_i32x4(high, high2, 0xdd);
  }
#pragma GCC unroll 16
  for (int i = 0; i < 16; i++)
    x[i] = y[i];
}

INLINE __m512 low_half(__m512i bf16) { /* of each lane, as f32 */
  return _mm512_castsi512_ps(_mm512_slli_epi32(bf16, 16));
}
INLINE __m512 high_half(__m512i bf16) {
  return _mm512_castsi512_ps(_mm512_and_si512(bf16, _mm512_set1_epi32((int)0xffff0000)));
}

/* bf16 of two columns or tokens, side by side in each lane. */
INLINE __m512i round_pair(__m512 first, __m512 second) {
  static const uint16_t order[32]
      __attribute__((aligned(64))) = {0, 16, 1, 17, 2,  18, 3,  19, 4,  20, 5,  21, 6,  22, 7,  23,
                                      8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
  return _mm512_permutexvar_epi16(_mm512_load_si512(order),
                                  (__m512i)_mm512_cvtne2ps_pbh(second, first));
}

/* Those of 16 elements from i on that `some` names, others being 0; of q. */
INLINE __m512 load_floats(amla_dtype type, const void *x, int32_t i, __mmask16 some) {
  if (type == AMLA_F32)
    return _mm512_maskz_loadu_ps(some, (const float *)x + i);
  const __m256i h = _mm256_maskz_loadu_epi16(some, (const uint16_t *)x + i);
  return type == AMLA_BF16 ? _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(h), 16))
                           : _mm512_cvtph_ps(h);
}

/* To bf16, subnormal results kept, as the library's own rounding does: vcvtneps2bf16 makes them 0.
 */
INLINE __m256i narrow(__m512 x) {
  const __m512i u = _mm512_castps_si512(x);
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(u, 16), _mm512_set1_epi32(1));
  const __m512i up = _mm512_add_epi32(_mm512_add_epi32(u, _mm512_set1_epi32(0x7fff)), odd);
  const __m512i quiet = _mm512_or_si512(u, _mm512_set1_epi32(0x400000));
  const __mmask16 nan = _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q);
  const __m512i y = _mm512_mask_mov_epi32(up, nan, quiet);
  return _mm512_cvtepi32_epi16(_mm512_srli_epi32(y, 16));
}

/* The next part of two times 16 floats, which lose it. */
INLINE __m512i take_part(__m512 *a, __m512 *b) {
  const __m512i part = (__m512i)_mm512_cvtne2ps_pbh(*b, *a);
  const __m512i low = _mm512_cvtepu16_epi32(_mm512_castsi512_si256(part));
  const __m512i high = _mm512_cvtepu16_epi32(_mm512_extracti64x4_epi64(part, 1));
  *a = _mm512_sub_ps(*a, low_half(low));
  *b = _mm512_sub_ps(*b, low_half(high));
  return part;
}

/* Columns [at, at + DEPTH) of n rows, those past d being 0, by parts. */
INLINE void load_q(int32_t n, int32_t at, int32_t d, amla_dtype type, const void *const *q,
                   float factor, int32_t parts, __m512i x[AMLA_AMX_MAX_PARTS][ROWS]) {
  const int32_t left = d - at;
  const uint32_t some = left >= DEPTH ? ~0u : (1u << left) - 1u;
  const __m512 f = _mm512_set1_ps(factor);
  for (int32_t r = 0; r < n; r++) {
    if (type == AMLA_BF16 && parts == 1) {
      const __m512i pairs = _mm512_maskz_loadu_epi16(some, (const uint16_t *)q[r] + at);
      x[0][r] = round_pair(_mm512_mul_ps(f, low_half(pairs)), _mm512_mul_ps(f, high_half(pairs)));
      continue;
    }
    __m512 a = _mm512_mul_ps(f, load_floats(type, q[r], at, (__mmask16)some));
    __m512 b = _mm512_mul_ps(f, load_floats(type, q[r], at + 16, (__mmask16)(some >> 16)));
    for (int32_t part = parts - 1; part > 0; part--)
      x[part][r] = take_part(&a, &b);
    x[0][r] = (__m512i)_mm512_cvtne2ps_pbh(b, a);
  }
}

void amla_amx_pack_q(int32_t n, int32_t d, amla_dtype type, const void *const *q, float factor,
                     const amla_amx_q *to, uint16_t *qt) {
  for (int32_t at = 0; at < to->d; at += DEPTH, qt += TILE) {
    __m512i x[AMLA_AMX_MAX_PARTS][ROWS];
    if (n < ROWS)
      memset(x, 0, sizeof x);
    switch (type) {
    case AMLA_BF16: load_q(n, at, d, AMLA_BF16, q, factor, to->parts, x); break;
    case AMLA_F16: load_q(n, at, d, AMLA_F16, q, factor, to->parts, x); break;
    default: load_q(n, at, d, AMLA_F32, q, factor, to->parts, x);
    }
    for (int32_t part = 0; part < to->parts; part++) {
      transpose(x[part]);
      for (int c = 0; c < ROWS; c++)
        _mm512_store_si512(qt + part * to->part + c * 32, x[part][c]);
    }
  }
}

void amla_amx_widen_v(int32_t n, const amla_amx_keys *k, int32_t columns, float *v, int64_t ldv) {
  for (int32_t j = 0; j < n; j++, v += ldv) {
    const char *key = k[j / ROWS].base + j % ROWS * k[j / ROWS].stride_bytes;
    for (int32_t d = 0; d < columns; d += PV_COLS) {
      const __m512i x = _mm512_loadu_si512(key + 2 * d), zero = _mm512_setzero_si512();
      _mm512_store_si512(v + d, _mm512_unpacklo_epi16(zero, x));
      _mm512_store_si512(v + d + 16, _mm512_unpackhi_epi16(zero, x));
    }
  }
}

/* ---- P ---- */

void amla_amx_biases(int32_t n, const uint16_t *mask, float *bias) {
  for (int32_t j = 0; j < n; j += ROWS) {
    const __mmask16 some = (__mmask16)(n - j < ROWS ? (1u << (n - j)) - 1u : 0xffff);
    const __m512 x = _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(some, mask + j));
    _mm512_storeu_ps(bias + j, _mm512_mul_ps(x, _mm512_set1_ps(1.44269504f)));
  }
}

/* ROWS tokens that all rows see. */
INLINE void bias_tokens(float factor, const float *bias, float *s) {
  const __m512 f = _mm512_set1_ps(factor);
#pragma GCC unroll 16
  for (int i = 0; i < ROWS; i++) {
    const __m512 t = _mm512_mul_ps(_mm512_load_ps(s + i * ROWS), f);
    _mm512_store_ps(s + i * ROWS, _mm512_add_ps(t, _mm512_set1_ps(bias[i])));
  }
}

/* n tokens, of which `hides` has the hidden ones by bits. */
static __attribute__((noinline)) void mask_tokens(int32_t n, float factor, const float *bias,
                                                  __mmask16 rows, uint32_t hides, float hidden,
                                                  float *s) {
  for (int32_t i = 0; i < n; i++, hides >>= 1, s += ROWS) {
    const __m512 t = _mm512_load_ps(s), b = _mm512_set1_ps(bias[i]);
    const __m512 x = _mm512_mask_mul_ps(t, rows, t, _mm512_set1_ps(factor));
    const __m512 y = _mm512_mask_add_ps(x, rows, x, b);
    _mm512_store_ps(s, _mm512_mask_mov_ps(y, hides & 1 ? rows : 0, _mm512_set1_ps(hidden)));
  }
}

void amla_amx_mask(int32_t n, float factor, const float *bias, uint32_t rows, float hidden,
                   float *s) {
  const __m512 lowest = _mm512_set1_ps(-__builtin_inff());
  for (int32_t j = 0; j < n; j += ROWS, bias += ROWS, s += ROWS * ROWS) {
    const int32_t left = n - j < ROWS ? n - j : ROWS;
    const __mmask16 some = (__mmask16)((1u << left) - 1u);
    const __m512 x = _mm512_maskz_loadu_ps(some, bias);
    const __mmask16 hides = _mm512_mask_cmp_ps_mask(some, x, lowest, _CMP_EQ_OQ);
    if (left == ROWS && hides == 0 && rows == 0xffff)
      bias_tokens(factor, bias, s);
    else
      mask_tokens(left, factor, bias, (__mmask16)rows, hides, hidden, s);
  }
}

void amla_amx_raise_max(const float *s, float *max) {
  enum { CHAINS = 8 };
  __m512 m[CHAINS];
#pragma GCC unroll 8
  for (int i = 0; i < CHAINS; i++)
    m[i] = _mm512_set1_ps(-__builtin_inff());
#pragma GCC unroll 32
  for (int j = 0; j < DEPTH; j++) /* m where s is NaN */
    m[j % CHAINS] = _mm512_max_ps(_mm512_load_ps(s + j * ROWS), m[j % CHAINS]);
#pragma GCC unroll 8
  for (int i = 1; i < CHAINS; i++)
    m[0] = _mm512_max_ps(m[i], m[0]);
  _mm512_storeu_ps(max, _mm512_max_ps(_mm512_loadu_ps(max), m[0]));
}

/* P of STEP tokens from s on, of which row r sees those below visible[r], if some are hidden: STEP
 * independent chains. The last multiply-add makes P of a score that is not finite NaN. */
INLINE void exp_tokens(const amla_amx_chore *c, const float *s, int some_hidden, __m512 *y) {
  const __m512 magic = _mm512_set1_ps(AMLA_ROUND_MAGIC), least = _mm512_set1_ps(AMLA_EXP2_MIN);
  const __m512 factor = _mm512_set1_ps(c->factor), base = _mm512_loadu_ps(c->base);
  __m512 t[STEP], x[STEP], n[STEP];
  __mmask16 nonzero[STEP];
#pragma GCC unroll 8
  for (int i = 0; i < STEP; i++) {
    t[i] = _mm512_mul_ps(_mm512_load_ps(s + i * ROWS), factor);
    x[i] = _mm512_sub_ps(t[i], base);
    nonzero[i] = _mm512_cmp_ps_mask(x[i], least, _CMP_GE_OQ);
    n[i] = _mm512_add_ps(x[i], magic);
    x[i] = _mm512_sub_ps(x[i], _mm512_sub_ps(n[i], magic));
    y[i] = _mm512_set1_ps(c->poly[6]);
  }
#pragma GCC unroll 6
  for (int k = 5; k >= 0; k--)
#pragma GCC unroll 8
    for (int i = 0; i < STEP; i++)
      y[i] = _mm512_fmadd_ps(y[i], x[i], _mm512_set1_ps(c->poly[k]));
#pragma GCC unroll 8
  for (int i = 0; i < STEP; i++) {
    const __m512i power = _mm512_slli_epi32(_mm512_castps_si512(n[i]), 23);
    const __m512i p = _mm512_maskz_add_epi32(nonzero[i], _mm512_castps_si512(y[i]), power);
    y[i] = _mm512_fmadd_ps(t[i], _mm512_setzero_ps(), _mm512_castsi512_ps(p));
    if (some_hidden) {
      const __m512i at = _mm512_set1_epi32(c->at + i), visible = _mm512_loadu_si512(c->visible);
      y[i] = _mm512_maskz_mov_ps(_mm512_cmplt_epi32_mask(at, visible), y[i]);
    }
  }
}

/* Tokens c->at and on into pairs. */
INLINE void step_pairs(amla_amx_chore *c, const __m512 *y, int two) {
  const __m512i ones = _mm512_set1_epi32(0x3f803f80);
  __m512 sum = _mm512_loadu_ps(c->sum_rounded);
#pragma GCC unroll 4
  for (int i = 0; i < STEP / 2; i++) {
    const int32_t pair = c->at % DEPTH / 2 + i;
    const __m512i hi = round_pair(y[2 * i], y[2 * i + 1]);
    _mm512_storeu_si512(c->pairs[0][pair], hi);
    if (two) {
      const __m512i lo = round_pair(_mm512_sub_ps(y[2 * i], low_half(hi)),
                                    _mm512_sub_ps(y[2 * i + 1], high_half(hi)));
      _mm512_storeu_si512(c->pairs[1][pair], lo);
      sum = _mm512_dpbf16_ps(sum, (__m512bh)lo, (__m512bh)ones);
    }
    sum = _mm512_dpbf16_ps(sum, (__m512bh)hi, (__m512bh)ones);
  }
  _mm512_storeu_ps(c->sum_rounded, sum);
}

/* The pairs of 32 tokens, by rows. */
INLINE void store_p(uint32_t pairs[ROWS][ROWS], uint16_t *tile) {
  __m512i x[ROWS];
#pragma GCC unroll 16
  for (int i = 0; i < ROWS; i++)
    x[i] = _mm512_loadu_si512(pairs[i]);
  transpose(x);
#pragma GCC unroll 16
  for (int r = 0; r < ROWS; r++)
    _mm512_store_si512(tile + r * DEPTH, x[r]);
}

INLINE void step_of(amla_amx_chore *c, int some_hidden, amla_p_form form) {
  __m512 y[STEP], sum = _mm512_loadu_ps(c->sum);
  exp_tokens(c, c->s + c->at * ROWS, some_hidden, y);
#pragma GCC unroll 8
  for (int i = 0; i < STEP; i++) {
    sum = _mm512_add_ps(sum, y[i]);
    if (form == AMLA_P_F32)
      _mm512_store_ps(c->p + (c->at + i) * ROWS, y[i]);
  }
  _mm512_storeu_ps(c->sum, sum);
  if (form == AMLA_P_F32)
    return;
  step_pairs(c, y, form == AMLA_P_BF16X2);
  if ((c->at + STEP) % DEPTH == 0)
    c->n_loose = form == AMLA_P_BF16X2 ? 2 : 1;
}

static __attribute__((noinline)) void step_seldom(amla_amx_chore *c) {
  switch (c->form) {
  case AMLA_P_BF16: step_of(c, 1, AMLA_P_BF16); break;
  case AMLA_P_BF16X2: step_of(c, 1, AMLA_P_BF16X2); break;
  default: step_of(c, 1, AMLA_P_F32); break;
  }
}

/* One of the complete tiles of P goes to its place. */
static __attribute__((noinline)) void step_tile(amla_amx_chore *c) {
  uint16_t **to = c->n_loose == 2 ? &c->lo : &c->hi;
  store_p(c->pairs[--c->n_loose], *to);
  *to += TILE;
}

void __attribute__((noinline)) amla_amx_step(amla_amx_chore *c) {
  if (c->row >= c->row_end)
    return;
  if (c->measured < c->tokens) {
    c->measure(c);
    return;
  }
  if (c->n_loose > 0) {
    step_tile(c);
  } else {
    if (c->at + STEP > c->all)
      step_seldom(c);
    else if (c->form == AMLA_P_BF16)
      step_of(c, 0, AMLA_P_BF16);
    else if (c->form == AMLA_P_BF16X2)
      step_of(c, 0, AMLA_P_BF16X2);
    else
      step_of(c, 0, AMLA_P_F32);
    c->at += STEP;
  }
  if (c->at == c->tokens && c->n_loose == 0)
    c->end(c);
}

/* ---- Beside the products ---- */

enum { KEY = AMLA_AMX_LINES * LINE }; /* bytes of most keys */

static __attribute__((noinline)) void copy_key(amla_amx_fetch *f) {
  const char *row = f->from->row, *end = row + f->to_bytes;
  char *to = f->to;
  if (f->to_bytes == 0)
    f->copy(f->state, f->from);
  for (; end - row >= KEY; row += KEY, to += KEY)
#pragma GCC unroll 18
    for (int i = 0; i < KEY; i += LINE)
      _mm512_store_si512(to + i, _mm512_loadu_si512(row + i));
  for (; row < end; row += LINE, to += LINE)
    _mm512_store_si512(to, _mm512_loadu_si512(row));
  f->from++;
  f->to += f->to_bytes;
  f->copying = 0;
}

/* Helpings that are due. Copies are apart, as vectors cost their function a frame. */
static __attribute__((noinline)) void fetch_keys(amla_amx_fetch *f) {
  for (; f->due >= 1 << 16 && f->token < f->stop; f->due -= 1 << 16) {
    const char *row = f->token->row, *end = row + f->bytes;
    if (f->copying) {
      copy_key(f);
    } else {
      for (; end - row >= KEY; row += KEY)
#pragma GCC unroll 18
        for (int i = 0; i < KEY; i += LINE)
          _mm_prefetch(row + i, _MM_HINT_T1);
      for (; row < end; row += LINE)
        _mm_prefetch(row, _MM_HINT_T1);
      if (f->from) {
        f->copying = 1;
        continue;
      }
    }
    if (++f->token == f->stop)
      f->follow(f);
  }
}

INLINE void fetch_due(amla_amx_fetch *f) {
  f->due += f->rate;
  if (f->due >= 1 << 16)
    fetch_keys(f);
}

INLINE void step_due(amla_amx_chore *c) {
  c->due += c->rate;
  for (; c->due >= 1 << 16; c->due -= 1 << 16)
    amla_amx_step(c);
}

/* Four pairs of V. */
typedef struct pairs_of_8 {
  const char *at;
  int64_t stride;
  uint16_t *to;
} pairs_of_8;

/* The call's share of the pairs in 32 tokens; how many fours. */
INLINE int list_pairs(const amla_amx_keys *k, const amla_amx_pairs *v, uint16_t *to,
                      pairs_of_8 list[4]) {
  int n = 0;
  for (uint32_t i = v->first; i < v->last && n < 4; i += 4, n++) {
    const int64_t stride = k[i / 8].stride_bytes;
    list[n] = (pairs_of_8){k[i / 8].base + i % 8 * 2 * stride, stride, to + i * 32};
  }
  return n;
}

/* Those of 32 columns. */
INLINE void make_pairs(pairs_of_8 *p, int64_t step) {
  const int64_t stride = p->stride;
  const char *at = p->at;
#pragma GCC unroll 4
  for (int i = 0; i < 4; i++, at += 2 * stride) {
    const __m512i first = _mm512_loadu_si512(at), second = _mm512_loadu_si512(at + stride);
    _mm512_store_si512(p->to + i * 32, _mm512_unpacklo_epi16(first, second));
    _mm512_store_si512(p->to + TILE + i * 32, _mm512_unpackhi_epi16(first, second));
  }
  p->at += LINE;
  p->to += step;
}

/* ---- Scores ---- */

INLINE void zero_sums(void) {
  fence();
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
}

/* Tiles 4 and 5 times 6 and 7. */
INLINE void multiply_2x2(void) {
  _tile_dpbf16ps(0, 4, 6);
  _tile_dpbf16ps(1, 4, 7);
  _tile_dpbf16ps(2, 5, 6);
  _tile_dpbf16ps(3, 5, 7);
}

/* Operands of a 2 x 2 product are loaded right behind the product before, ahead of what is done
 * beside that: then all of these products are in the window of reordering together. */
void amla_amx_scores_32x32(int32_t steps, const amla_amx_keys *k, const amla_amx_q *q, float *s,
                           float *s1, const amla_amx_pairs *v, const amla_amx_beside *beside) {
  const uint16_t *end = q->qt + q->d * ROWS, *v_end = q->qt + v->columns * ROWS;
  const int64_t panel = q->panel;
  const int parts = q->parts;
  fence();
  _tile_loadd(4, k[0].base, k[0].stride_bytes);
  _tile_loadd(6, q->qt, LINE);
  _tile_loadd(7, q->qt + panel, LINE);
  _tile_loadd(5, k[1].base, k[1].stride_bytes);
  for (int32_t i = 0; i < steps; i++, s += TILE, s1 += TILE) {
    const char *k0 = k[0].base, *k1 = k[1].base;
    pairs_of_8 pairs[4];
    const int n_pairs = list_pairs(k, v, v->v + i * 2 * TILE, pairs);
    zero_sums();
    for (const uint16_t *qt = q->qt, *next; qt < end; qt = next) {
      for (int part = 1; part < parts; part++) {
        multiply_2x2();
        _tile_loadd(6, qt + part * q->part, LINE);
        _tile_loadd(7, qt + part * q->part + panel, LINE);
      }
      multiply_2x2();
      next = qt + TILE;
      k0 += LINE;
      k1 += LINE;
      const uint16_t *ahead = next;
      if (next == end && i + 1 < steps) { /* else what is not used */
        k += 2;
        k0 = k[0].base;
        k1 = k[1].base;
      }
      if (next == end)
        ahead = q->qt;
      if (next < end || i + 1 < steps) {
        _tile_loadd(4, k0, k[0].stride_bytes);
        _tile_loadd(6, ahead, LINE);
        _tile_loadd(7, ahead + panel, LINE);
        _tile_loadd(5, k1, k[1].stride_bytes);
      }
      for (int j = 0; j < n_pairs && qt < v_end; j++)
        make_pairs(&pairs[j], v->step);
      step_due(beside->chore);
      fetch_due(beside->fetch);
    }
    _tile_stored(0, s, LINE);
    _tile_stored(1, s1, LINE);
    _tile_stored(2, s + TILE / 2, LINE);
    _tile_stored(3, s1 + TILE / 2, LINE);
  }
}

/* Tile 6 of Q^T and the first two of keys. */
INLINE void load_64x16(const amla_amx_keys *k, int64_t at, const uint16_t *qt) {
  _tile_loadd(6, qt, LINE);
  _tile_loadd(4, k[0].base + at, k[0].stride_bytes);
  _tile_loadd(5, k[1].base + at, k[1].stride_bytes);
}

void amla_amx_scores_64x16(int32_t steps, const amla_amx_keys *k, const amla_amx_q *q, float *s,
                           const amla_amx_pairs *v, const amla_amx_beside *beside) {
  const uint16_t *end = q->qt + q->d * ROWS, *v_end = q->qt + v->columns * ROWS;
  fence();
  load_64x16(k, 0, q->qt);
  for (int32_t i = 0; i < steps; i += 2, s += 2 * TILE) {
    pairs_of_8 pairs[8];
    const int n_pairs = list_pairs(k, v, v->v + i * 2 * TILE, pairs);
    list_pairs(k + 2, v, v->v + (i + 1) * 2 * TILE, pairs + n_pairs);
    int64_t at = 0;
    zero_sums();
    for (const uint16_t *qt = q->qt, *next; qt < end; qt = next) {
      for (int part = 0; part < q->parts; part++) {
        if (part > 0)
          load_64x16(k, at, qt + part * q->part);
        _tile_dpbf16ps(0, 4, 6);
        _tile_dpbf16ps(1, 5, 6);
        _tile_loadd(7, k[2].base + at, k[2].stride_bytes);
        _tile_dpbf16ps(2, 7, 6);
        _tile_loadd(4, k[3].base + at, k[3].stride_bytes);
        _tile_dpbf16ps(3, 4, 6);
      }
      next = qt + TILE;
      at += LINE;
      if (next < end)
        load_64x16(k, at, next);
      else if (i + 2 < steps)
        load_64x16(k += 4, 0, q->qt);
      for (int j = 0; j < 2 * n_pairs && qt < v_end; j++)
        make_pairs(&pairs[j], v->step);
      step_due(beside->chore);
      fetch_due(beside->fetch);
    }
    _tile_stored(0, s, LINE);
    _tile_stored(1, s + TILE / 2, LINE);
    _tile_stored(2, s + TILE, LINE);
    _tile_stored(3, s + TILE + TILE / 2, LINE);
  }
}

/* Two sums wait for the latency of products. */
void amla_amx_scores_32x16(const amla_amx_keys *k, const amla_amx_q *q, float *s,
                           const amla_amx_pairs *v, const amla_amx_beside *beside) {
  const uint16_t *qt = q->qt, *end = qt + q->d * ROWS, *v_end = qt + v->columns * ROWS;
  pairs_of_8 pairs[4];
  const int n_pairs = list_pairs(k, v, v->v, pairs);
  fence();
  _tile_zero(0);
  _tile_zero(1);
  for (int64_t at = 0; qt < end; qt += TILE, at += LINE) {
    _tile_loadd(4, k[0].base + at, k[0].stride_bytes);
    _tile_loadd(5, k[1].base + at, k[1].stride_bytes);
    for (int part = 0; part < q->parts; part++) {
      _tile_loadd(6, qt + part * q->part, LINE);
      _tile_dpbf16ps(0, 4, 6);
      _tile_dpbf16ps(1, 5, 6);
    }
    for (int i = 0; i < n_pairs && qt < v_end; i++)
      make_pairs(&pairs[i], v->step);
    step_due(beside->chore);
  }
  _tile_stored(0, s, LINE);
  _tile_stored(1, s + TILE / 2, LINE);
}

/* ---- PV ---- */

INLINE void load_sums(int first, const float *o, const float *o1) {
  if (first) {
    zero_sums();
    return;
  }
  fence();
  _tile_loadd(0, o, O_LINE);
  _tile_loadd(1, o + 16, O_LINE);
  _tile_loadd(2, o1, O_LINE);
  _tile_loadd(3, o1 + 16, O_LINE);
}

INLINE void store_sums(float *o, float *o1) {
  _tile_stored(0, o, O_LINE);
  _tile_stored(1, o + 16, O_LINE);
  _tile_stored(2, o1, O_LINE);
  _tile_stored(3, o1 + 16, O_LINE);
}

/* Operands loaded ahead, as for the scores. */
INLINE void pv_32x32(const amla_amx_p *p, int two, int32_t groups, int32_t n, const uint16_t *v,
                     int first, float *o, int64_t o_step, const amla_amx_beside *beside) {
  const int64_t panel = p->panel, v_step = 2 * panel;
  const uint16_t *at = v, *hi = p->hi, *lo = p->lo, *from = two ? lo : hi;
  fence();
  _tile_loadd(6, at, LINE);
  _tile_loadd(7, at + TILE, LINE);
  _tile_loadd(4, from, LINE);
  _tile_loadd(5, from + panel, LINE);
  for (const uint16_t *v_end = v + n * v_step; v < v_end; o += o_step) {
    float *rows = o;
    for (int32_t g = groups; g > 0; g--, rows += 2 * ROWS * PV_COLS) {
      load_sums(first, rows, rows + ROWS * PV_COLS);
      for (int32_t i = p->steps; i > 0; i--) {
        multiply_2x2();
        if (two) {
          _tile_loadd(4, hi, LINE);
          _tile_loadd(5, hi + panel, LINE);
          multiply_2x2();
        }
        if (i == 1)
          store_sums(rows, rows + ROWS * PV_COLS);
        at += 2 * TILE;
        hi += TILE;
        lo += TILE;
        if (i == 1) { /* on to the next rows, or columns */
          at = v;
          hi += panel;
          lo += panel;
          if (g == 1) {
            at = v += v_step;
            hi = p->hi;
            lo = p->lo;
          }
        }
        if (v < v_end) {
          from = two ? lo : hi;
          _tile_loadd(6, at, LINE);
          _tile_loadd(7, at + TILE, LINE);
          _tile_loadd(4, from, LINE);
          _tile_loadd(5, from + panel, LINE);
        }
        if (i > 1) /* where sums are stored and loaded, the window is full */
          step_due(beside->chore);
        fetch_due(beside->fetch);
      }
    }
  }
}

void amla_amx_pv_32x32(const amla_amx_p *p, int32_t groups, int32_t n, const uint16_t *v, int first,
                       float *o, int64_t o_step, const amla_amx_beside *beside) {
  if (groups == 0)
    return;
  if (p->form == AMLA_P_BF16X2)
    pv_32x32(p, 1, groups, n, v, first, o, o_step, beside);
  else
    pv_32x32(p, 0, groups, n, v, first, o, o_step, beside);
}

/* P and the first two tiles of V. */
INLINE void load_16x64(const uint16_t *p, const uint16_t *v) {
  _tile_loadd(4, p, LINE);
  _tile_loadd(6, v, LINE);
  _tile_loadd(7, v + TILE, LINE);
}

/* A P tile times four of V. The other two are loaded here, for each of P's halves, so that a sum
 * rests for four products. */
INLINE void multiply_16x64(const uint16_t *v1) {
  _tile_dpbf16ps(0, 4, 6);
  _tile_dpbf16ps(1, 4, 7);
  _tile_loadd(5, v1, LINE);
  _tile_dpbf16ps(2, 4, 5);
  _tile_loadd(6, v1 + TILE, LINE);
  _tile_dpbf16ps(3, 4, 6);
}

void amla_amx_pv_16x64(const amla_amx_p *p, int32_t n, const uint16_t *v, int first, float *o,
                       int64_t o_step, const amla_amx_beside *beside) {
  const int two = p->form == AMLA_P_BF16X2;
  const int64_t v_step = 2 * p->panel;
  const uint16_t *from = two ? p->lo : p->hi;
  fence();
  load_16x64(from, v);
  for (; n > 0; n -= 2, v += 2 * v_step, o += 2 * o_step) {
    load_sums(first, o, o + o_step);
    for (int64_t at = 0, next; at < p->panel; at = next) {
      const uint16_t *v0 = v + 2 * at;
      if (two) {
        multiply_16x64(v0 + v_step);
        load_16x64(p->hi + at, v0);
      }
      multiply_16x64(v0 + v_step);
      next = at + TILE;
      if (next < p->panel)
        load_16x64(from + next, v + 2 * next);
      else if (n > 2)
        load_16x64(from, v + 2 * v_step);
      if (next < p->panel) /* where sums are stored and loaded, the window is full */
        step_due(beside->chore);
      fetch_due(beside->fetch);
    }
    store_sums(o, o + o_step);
  }
}

void amla_amx_pv_16x32(const amla_amx_p *p, const uint16_t *v, int first, float *o,
                       const amla_amx_beside *beside) {
  zero_sums();
  if (!first) {
    _tile_loadd(0, o, O_LINE);
    _tile_loadd(1, o + 16, O_LINE);
  }
  for (int32_t i = 0; i < p->steps; i++, v += 2 * TILE) {
    _tile_loadd(6, v, LINE);
    _tile_loadd(7, v + TILE, LINE);
    if (p->form == AMLA_P_BF16X2) {
      _tile_loadd(4, p->lo + i * TILE, LINE);
      _tile_dpbf16ps(0, 4, 6);
      _tile_dpbf16ps(1, 4, 7);
    }
    _tile_loadd(5, p->hi + i * TILE, LINE);
    _tile_dpbf16ps(0, 5, 6);
    _tile_dpbf16ps(1, 5, 7);
    step_due(beside->chore);
  }
  _tile_stored(0, o, O_LINE);
  _tile_stored(1, o + 16, O_LINE);
}

/* ---- The table's rows ---- */

/* Row r of O, of 32 columns as V's pairs are made: 4 columns of one vector, 4 of the other. */
INLINE void store_of(amla_dtype type, int32_t rows, int32_t cols, const float *o,
                     const amla_row_end *ends, int32_t d) {
  const __m512i low = _mm512_setr_epi64(0, 1, 8, 9, 2, 3, 10, 11);
  const __m512i high = _mm512_setr_epi64(4, 5, 12, 13, 6, 7, 14, 15);
  for (int32_t r = 0; r < rows; r++, o += PV_COLS) {
    if (!ends[r].out)
      continue;
    const __m512 factor = _mm512_set1_ps(ends[r].factor);
    const __m512d x = _mm512_castps_pd(_mm512_mul_ps(_mm512_load_ps(o), factor));
    const __m512d y = _mm512_castps_pd(_mm512_mul_ps(_mm512_load_ps(o + 16), factor));
    const __m512 a = _mm512_castpd_ps(_mm512_permutex2var_pd(x, low, y));
    const __m512 b = _mm512_castpd_ps(_mm512_permutex2var_pd(x, high, y));
    const uint32_t some = cols >= PV_COLS ? ~0u : (1u << cols) - 1u;
    char *out = (char *)ends[r].out + amla_elems_bytes(type, d);
    if (type == AMLA_F32) {
      _mm512_mask_storeu_ps(out, (__mmask16)some, a);
      _mm512_mask_storeu_ps(out + 64, (__mmask16)(some >> 16), b);
    } else if (type == AMLA_F16) {
      _mm256_mask_storeu_epi16(out, (__mmask16)some, _mm512_cvtps_ph(a, 0));
      _mm256_mask_storeu_epi16(out + 32, (__mmask16)(some >> 16), _mm512_cvtps_ph(b, 0));
    } else {
      _mm256_mask_storeu_epi16(out, (__mmask16)some, narrow(a));
      _mm256_mask_storeu_epi16(out + 32, (__mmask16)(some >> 16), narrow(b));
    }
  }
}

static void store(amla_dtype type, int32_t rows, int32_t cols, const float *o, int even_odd,
                  const amla_row_end *ends, int32_t d) {
  (void)even_odd;
  switch (type) {
  case AMLA_BF16: store_of(AMLA_BF16, rows, cols, o, ends, d); return;
  case AMLA_F16: store_of(AMLA_F16, rows, cols, o, ends, d); return;
  default: store_of(AMLA_F32, rows, cols, o, ends, d);
  }
}

#include "ukr_cold.h"

/* One row for each form of P, by falling exactness. */
#define ROW(name, type, form)                                                                      \
  const amla_ukernels amla_ukernels__amxbf16_##name = {                                            \
      .isa = AMLA_ISA_AMXBF16,                                                                     \
      .tile_type = AMLA_BF16,                                                                      \
      .p_type = type,                                                                              \
      .p_form = form,                                                                              \
      .q_in_parts = 1,                                                                             \
      .tile_tokens = AMLA_AMX_TOKENS,                                                              \
      .grain_tokens = DEPTH,                                                                       \
      .split_tiles = 8,                                                                            \
      .pv_rows = ROWS,                                                                             \
      .pv_cols = PV_COLS,                                                                          \
      .wide = {.rows = 2 * ROWS, .tokens = 2 * ROWS},                                              \
      .narrow = {.rows = ROWS, .tokens = 4 * ROWS},                                                \
      .store = store,                                                                              \
      .scale = scale_rows,                                                                         \
      .shift = shift_rows,                                                                         \
      .merge = merge_rows,                                                                         \
      .own = &amla_amx_loop,                                                                       \
  }
ROW(f32, AMLA_F32, AMLA_P_DEFAULT);
ROW(bf16x2, AMLA_BF16, AMLA_P_BF16X2);
ROW(bf16, AMLA_BF16, AMLA_P_BF16);
