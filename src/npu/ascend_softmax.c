/* SPDX-License-Identifier: Apache-2.0
 *
 * The three softmax steps, in the order and with the roundings of spec/amla.c (arXiv 2509.25224,
 * Algorithm 2, for flash and amla). RNA = round half away from zero. A score that is not there is
 * the most negative number, and its P is set to 0. See ascend_softmax.h.
 */
#include "ascend_softmax.h"

#include <float.h>
#include <math.h>

static const float log2e = 1.44269504088896340736f, ln2 = 0.69314718055994530942f;

static void hide(ascend_vec chunk, const ascend_sight *sight, float value) {
  for (int32_t i = 0; i < sight->runs; i++)
    ascend_fill_from(chunk + sight->row[i] * ASCEND_WIDTH, sight->keys[i],
                     sight->row[i + 1] - sight->row[i], value);
}

/* poison = 0, or NaN where a score is not finite; max = row maximum. */
static void look(const ascend_chunk_state *c, ascend_vec s, const ascend_sight *sight,
                 ascend_vec poison, ascend_vec max, int32_t rows) {
  hide(s, sight, 0.0f);
  ascend_row_poison(poison, s, c->work, rows);
  hide(s, sight, ASCEND_NONE);
  ascend_row_max(max, s, c->work, rows);
}

/* s = exp(s - reference), sum = its row sums + poison. */
static void exponentials(const ascend_chunk_state *c, ascend_vec s, const ascend_sight *sight,
                         NPU_UB const float *reference, NPU_UB const float *poison, ascend_vec sum,
                         int32_t rows) {
  ascend_spread(c->spread, reference);
  ascend_sub_rows(s, c->spread, rows);
  npu_exp_f32(s, s, ascend_chunk(rows));
  hide(s, sight, 0.0f);
  ascend_row_sum(sum, s, c->work, rows);
  npu_add_f32(sum, sum, poison, ascend_per_row(rows));
}

/* ---- P: 16 bits, rows of 512, or NZ where the cube reads it from L1 ---- */

enum { RNE, RNA };

static void cast_p(const ascend_chunk_state *c, NPU_UB npu_bf16 *p, NPU_UB const float *s,
                   npu_vec v, int32_t rounding) {
  if (c->f16)
    npu_cast_f32_f16_rne(p, s, v);
  else if (rounding == RNE)
    npu_cast_f32_bf16_rne(p, s, v);
  else
    npu_cast_f32_bf16_rna(p, s, v);
}

static void write_p(const ascend_chunk_state *c, NPU_UB npu_bf16 *p, NPU_UB const float *s,
                    int32_t rows, int32_t rounding) {
  npu_vec v = npu_vec_rows(rows, NPU_MASK_ALL, 1, ASCEND_ROW_BLOCKS, 0);
  v.dst_block = rows; /* the next column of 16 */
  for (int32_t g = 0; c->p_nz && g < ASCEND_GROUPS; g++)
    cast_p(c, p + g * NPU_LANES * rows, s + g * NPU_LANES, v, rounding);
  if (!c->p_nz)
    cast_p(c, p, s, npu_vec_rows(rows * ASCEND_GROUPS, NPU_MASK_ALL, 4, 8, 0), rounding);
}

static void widen_p(const ascend_chunk_state *c, ascend_vec s, NPU_UB const npu_bf16 *p,
                    npu_vec v) {
  if (c->f16)
    npu_cast_f16_f32(s, p, v);
  else
    npu_cast_bf16_f32(s, p, v);
}

static void read_p(const ascend_chunk_state *c, ascend_vec s, NPU_UB const npu_bf16 *p,
                   int32_t rows) {
  npu_vec v = npu_vec_rows(rows, NPU_MASK_ALL, ASCEND_ROW_BLOCKS, 1, 0);
  v.src0_block = rows;
  for (int32_t g = 0; c->p_nz && g < ASCEND_GROUPS; g++)
    widen_p(c, s + g * NPU_LANES, p + g * NPU_LANES * rows, v);
  if (!c->p_nz)
    widen_p(c, s, p, npu_vec_rows(rows * ASCEND_GROUPS, NPU_MASK_ALL, 8, 4, 0));
}

/* s is destroyed if P takes on V's scales. */
static void round_p(const ascend_chunk_state *c, NPU_UB npu_bf16 *p, ascend_vec s, int32_t rows) {
  if (c->scales)
    ascend_mul_columns(s, c->scales, rows);
  write_p(c, p, s, rows, RNE);
}

/* ---- A chunk ---- */

/* m = max(m, row maximum); s = exp(s - m), summed. */
static void weights(const ascend_chunk_state *c, ascend_vec s, const ascend_sight *sight,
                    int32_t rows) {
  ascend_vec poison = c->temp[0], max = c->temp[1], m = c->stat[ASCEND_M];
  look(c, s, sight, poison, max, rows);
  npu_max_f32(m, m, max, ascend_per_row(rows));
  exponentials(c, s, sight, m, poison, c->sum, rows);
}

static void chunk_flash(const ascend_chunk_state *c, ascend_vec s, NPU_UB npu_bf16 *p,
                        const ascend_sight *sight, int32_t rows) {
  weights(c, s, sight, rows);
  round_p(c, p, s, rows);
}

/* n, S32 and S16 from m. */
static void exponent(const ascend_chunk_state *c, int32_t rows) {
  const npu_vec v = ascend_per_row(rows);
  ascend_vec q = c->temp[3], n = c->next, s32 = c->s32;
  npu_div_f32(q, c->stat[ASCEND_M], c->ln2, v);
  npu_muls_f32(n, q, -1.0f, v);
  npu_round_f32_rna(n, n, v);
  npu_add_f32(s32, q, n, v); /* S32 = exp(ln2 (m / ln2 + n)) */
  npu_muls_f32(s32, s32, ln2, v);
  npu_exp_f32(s32, s32, v);
  npu_cast_f32_bf16_rna(c->temp16, s32, v);
  npu_cast_bf16_f32(c->stat[ASCEND_S16], c->temp16, v);
}

static void chunk_amla(const ascend_chunk_state *c, ascend_vec s, NPU_UB npu_bf16 *p,
                       const ascend_sight *sight, int32_t rows) {
  weights(c, s, sight, rows);
  exponent(c, rows);
  ascend_spread(c->spread, c->stat[ASCEND_S16]);
  ascend_mul_rows(s, s, c->spread, rows);
  hide(s, sight, 0.0f); /* S16 of a row without keys is NaN */
  write_p(c, p, s, rows, RNA);
}

/* The next e = ceil(max) where max > e + 8, both in log2 units. f16 has few exponents below 1:
 * there P may grow from 2^7 to 2^15, so that small weights do not vanish. */
static void next_reference(const ascend_chunk_state *c, ascend_vec max, int32_t rows) {
  const npu_vec v = ascend_per_row(rows);
  ascend_vec e = c->stat[ASCEND_M], e_new = c->next, t = c->temp[5];
  npu_muls_f32(max, max, log2e, v);
  npu_round_f32_rna(e_new, max, v); /* ceil: one more where rounding went down */
  npu_cmp_f32(c->bits, max, e_new, NPU_CMP_GT, v);
  npu_sels_f32(t, c->bits, c->one, 0.0f, v);
  npu_add_f32(e_new, e_new, t, v);
  if (c->f16)
    npu_adds_f32(e_new, e_new, -7.0f, v);
  npu_adds_f32(t, e, c->f16 ? 15.0f : 8.0f, v);
  npu_cmp_f32(c->bits, max, t, NPU_CMP_GT, v);
  npu_sel_f32(e_new, c->bits, e_new, e, v);
}

static void chunk_lazy(const ascend_chunk_state *c, ascend_vec s, NPU_UB npu_bf16 *p,
                       const ascend_sight *sight, int32_t rows) {
  ascend_vec poison = c->temp[0], max = c->temp[1], reference = c->temp[7];
  look(c, s, sight, poison, max, rows);
  next_reference(c, max, rows);
  npu_muls_f32(reference, c->next, ln2, ascend_per_row(rows));
  exponentials(c, s, sight, reference, poison, c->sum, rows);
  round_p(c, p, s, rows);
  if (c->scales) { /* the rounded P is V's scale times what would be summed */
    npu_adds_f32(c->sum_out, c->sum, 0.0f, ascend_per_row(rows));
    return;
  }
  read_p(c, s, p, rows);
  ascend_row_sum(c->sum_out, s, c->work, rows);
  npu_add_f32(c->sum_out, c->sum_out, poison, ascend_per_row(rows));
}

void ascend_softmax_chunk(ascend_mode mode, const ascend_chunk_state *c, ascend_vec s,
                          NPU_UB npu_bf16 *p, const ascend_sight *sight, int32_t rows) {
  switch (mode) {
  case ASCEND_FLASH: chunk_flash(c, s, p, sight, rows); break;
  case ASCEND_AMLA: chunk_amla(c, s, p, sight, rows); break;
  default: chunk_lazy(c, s, p, sight, rows);
  }
}

/* ---- All rows, before and after the chunks ---- */

/* l = factor * l + sum */
static void accumulate(ascend_vec l, NPU_UB const float *factor, NPU_UB const float *sum,
                       npu_vec v) {
  npu_mul_f32(l, factor, l, v);
  npu_add_f32(l, l, sum, v);
}

/* factor = exp(m_old - m); l follows. */
static void end_weights(const ascend_chunk_state *c, ascend_vec factor, npu_vec v) {
  npu_sub_f32(factor, c->m_old, c->stat[ASCEND_M], v);
  npu_exp_f32(factor, factor, v);
  accumulate(c->stat[ASCEND_L], factor, c->sum, v);
}

/* c and N. N = 2^23 (max(n - n_old, least) + eps + 1e-6), eps = 1.5 (c_old / c - 1), in integers
 * but for the last rounding, so that it is what exact arithmetic gives. */
static void end_exponent(const ascend_chunk_state *c, float least, npu_vec v) {
  ascend_vec n = c->stat[ASCEND_N], c_old = c->stat[ASCEND_C], s32 = c->s32;
  ascend_vec q = c->wide[1], whole = c->wide[2], k = c->wide[3];
  NPU_UB int32_t *add = c->add, *k_int = (NPU_UB int32_t *)k;
  npu_sub_f32(k, c->next, n, v);
  npu_adds_f32(n, c->next, 0.0f, v);
  npu_maxs_f32(k, k, least, v);
  npu_cast_f32_s32_rna(k_int, k, v);
  npu_shl_s32(k_int, k_int, 23, v);

  npu_div_f32(s32, s32, c->stat[ASCEND_S16], v); /* c */
  npu_div_f32(q, c_old, s32, v);
  npu_adds_f32(c_old, s32, 0.0f, v);
  npu_adds_f32(q, q, -1.0f, v);
  npu_muls_f32(q, q, 1.5f, v);
  npu_muls_f32(q, q, 8388608.0f, v);
  npu_round_f32_rna(whole, q, v);
  npu_sub_f32(q, q, whole, v);
  npu_adds_f32(q, q, 8.388608f, v); /* 2^23 * 1e-6 */
  npu_round_f32_rna(q, q, v);
  npu_add_f32(q, q, whole, v);
  npu_cast_f32_s32_rna(add, q, v);
  npu_add_s32(add, add, k_int, v);
}

/* e moves; add, moved and factor (the exact power of two) follow, and both sums. */
static void end_lazy(const ascend_chunk_state *c, npu_vec v) {
  ascend_vec e = c->stat[ASCEND_M], factor = c->wide[0], k = c->wide[1], zero = c->wide[2];
  NPU_UB int32_t *bits = (NPU_UB int32_t *)factor;
  npu_sub_f32(k, e, c->next, v); /* <= 0 */
  npu_adds_f32(e, c->next, 0.0f, v);
  npu_maxs_f32(k, k, -256.0f, v); /* takes any finite number to 0, and k * 2^23 stays an int32 */
  npu_muls_f32(c->moved, k, -1.0f, v);
  npu_cast_f32_s32_rna(c->add, k, v);
  npu_adds_s32(bits, c->add, 127, v);
  npu_shl_s32(c->add, c->add, 23, v);
  npu_dup_s32((NPU_UB int32_t *)zero, 0, v);
  npu_max_s32(bits, bits, (NPU_UB int32_t *)zero, v);
  npu_shl_s32(bits, bits, 23, v); /* 2^k, or 0 below 2^-126 */
  accumulate(c->stat[ASCEND_L], factor, c->sum, v);
  accumulate(c->stat[ASCEND_L_OUT], factor, c->sum_out, v);
}

void ascend_softmax_begin(const ascend_chunk_state *c, int32_t rows) {
  npu_adds_f32(c->m_old, c->stat[ASCEND_M], 0.0f, ascend_all_rows(rows));
}

void ascend_softmax_end(ascend_mode mode, const ascend_chunk_state *c, float least, int32_t rows) {
  const npu_vec v = ascend_all_rows(rows);
  if (mode == ASCEND_LAZY) {
    end_lazy(c, v);
    return;
  }
  end_weights(c, mode == ASCEND_FLASH ? c->factor : c->wide[0], v);
  if (mode == ASCEND_AMLA)
    end_exponent(c, least, v);
}

/* ---- The end of an item ---- */

void ascend_divisor(const ascend_chunk_state *c, ascend_mode mode, ascend_vec divisor,
                    ascend_vec lse, int32_t rows) {
  const npu_vec v = ascend_per_row(rows);
  NPU_UB const float *l = c->stat[ASCEND_L];
  npu_ln_f32(lse, l, v);
  npu_muls_f32(divisor, c->stat[ASCEND_M], mode == ASCEND_LAZY ? ln2 : 1.0f, v);
  npu_add_f32(lse, divisor, lse, v);
  if (mode == ASCEND_AMLA)
    npu_mul_f32(divisor, l, c->stat[ASCEND_S16], v);
  else
    npu_adds_f32(divisor, mode == ASCEND_LAZY ? c->stat[ASCEND_L_OUT] : l, 0.0f, v);
  npu_cmps_f32(c->bits, l, 0.0f, NPU_CMP_NE, v);
  npu_sels_f32(divisor, c->bits, divisor, 1.0f, v);
}

/* z = bits of |x| + add, y = bits of x + add; returns, in work, which x are finite. */
static NPU_UB uint8_t *add_to_bits(const ascend_chunk_state *c, ascend_vec y, NPU_UB const float *x,
                                   ascend_vec z, int32_t rows) {
  NPU_UB uint8_t *finite = (NPU_UB uint8_t *)c->work;
  NPU_UB const int32_t *x_bits = (NPU_UB const int32_t *)x,
                       *add = (NPU_UB const int32_t *)c->spread;
  NPU_UB int32_t *y_bits = (NPU_UB int32_t *)y, *z_bits = (NPU_UB int32_t *)z;
  ascend_spread(c->spread, (NPU_UB const float *)c->add);
  npu_abs_f32(z, x, ascend_chunk(rows));
  npu_cmps_f32(finite, z, INFINITY, NPU_CMP_LT, ascend_chunk(rows));
  for (int32_t g = 0; g < ASCEND_GROUPS; g++) {
    npu_add_s32(z_bits + g * NPU_LANES, z_bits + g * NPU_LANES, add, ascend_by_row(rows));
    npu_add_s32(y_bits + g * NPU_LANES, x_bits + g * NPU_LANES, add, ascend_by_row(rows));
  }
  return finite;
}

/* A bit per element of 8 rows. */
enum { CHUNK_BITS_BYTES = 8 * ASCEND_CHUNK_ROWS / 2 * ASCEND_GROUPS };

void ascend_guarded_shift(const ascend_chunk_state *c, ascend_vec y, NPU_UB const float *x,
                          ascend_vec z, int32_t rows) {
  NPU_UB uint8_t *finite = add_to_bits(c, y, x, z, rows), *normal = finite + CHUNK_BITS_BYTES;
  const npu_vec all = ascend_chunk(rows);
  npu_cmps_f32(normal, z, FLT_MIN, NPU_CMP_GE,
               all); /* as integers: not below 2^23; what wrapped compares as negative or NaN */
  npu_muls_f32(z, x, 0.0f, all); /* zero of x's sign */
  npu_sel_f32(y, normal, y, z, all);
  npu_sel_f32(y, finite, y, x, all);
}

void ascend_guarded_add(const ascend_chunk_state *c, ascend_vec y, NPU_UB const float *x,
                        ascend_vec z, int32_t rows) {
  NPU_UB uint8_t *finite = add_to_bits(c, y, x, z, rows);
  NPU_UB uint8_t *tiny = finite + CHUNK_BITS_BYTES, *bits = tiny + CHUNK_BITS_BYTES;
  NPU_UB int32_t *z_bits = (NPU_UB int32_t *)z, *zero = (NPU_UB int32_t *)c->spread;
  const npu_vec all = ascend_chunk(rows);
  npu_dup_s32(zero, 0, npu_vec_rows(1, NPU_MASK_ALL, 8, 8, 8));
  /* What wrapped becomes 0; what is NaN after that is past the bits of inf. */
  for (int32_t g = 0; g < ASCEND_GROUPS; g++)
    npu_max_s32(z_bits + g * NPU_LANES, z_bits + g * NPU_LANES, zero, ascend_by_row(rows));
  npu_cmps_f32(tiny, z, FLT_MIN, NPU_CMP_LT, all);
  npu_cmps_f32(bits, z, INFINITY, NPU_CMP_LT, all);
  npu_muls_f32(z, x, INFINITY, all);
  npu_sel_f32(y, bits, y, z, all);

  npu_abs_f32(z, x, all); /* x itself may be tiny, and add positive */
  npu_cmps_f32(bits, z, FLT_MIN, NPU_CMP_LT, all);
  npu_or_s32((NPU_UB int32_t *)tiny, (NPU_UB int32_t *)tiny, (NPU_UB int32_t *)bits,
             npu_vec_rows(CHUNK_BITS_BYTES / 256, NPU_MASK_ALL, 8, 8, 8));
  npu_muls_f32(z, x, 0.0f, all);
  npu_sel_f32(y, tiny, z, y, all);
  npu_sel_f32(y, finite, y, x, all);
}

void ascend_clamp(const ascend_chunk_state *c, ascend_vec x, ascend_vec work, float limit,
                  int32_t rows) {
  npu_abs_f32(work, x, ascend_chunk(rows));
  npu_cmps_f32((NPU_UB uint8_t *)c->work, work, limit, NPU_CMP_LE, ascend_chunk(rows));
  npu_sels_f32(x, (NPU_UB const uint8_t *)c->work, x, 0.0f, ascend_chunk(rows));
}
