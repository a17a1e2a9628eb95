/* SPDX-License-Identifier: Apache-2.0
 *
 * The executable specification: what attention is (attention_f64.c) and how the three rescale modes
 * compute it (amla.c). One query row at a time, no layout, no threads, no speed. It carries its own
 * rounding and its own exponent shift on purpose: it is the oracle that the library is held
 * against. Depends on libc and libm only.
 */
#ifndef AMLA_SPEC_H
#define AMLA_SPEC_H

#include <stdint.h>

/* ---- The truth: fp64, two passes over the keys ---- */

/* What the truth also knows about a row, for error bounds that scale with the rounding points
 * (harness/truth.h). */
typedef struct spec_truth {
  double lse; /* natural log; -inf when no key is visible */
  /* max_j |scale| * sum_d |q_d k_jd| + |bias_j|: what the rounding of a score scales with */
  double score_abs;
} spec_truth;

/* out [d_v] = softmax(scale * q . kv^T + bias) kv[:, :d_v] over the first n_visible rows of kv
 * [n_visible][d_qk]; bias [n_visible] or NULL, a row whose bias is -inf is left out; out_abs [d_v]
 * (may be NULL) = the same sum over |v|; weights [n_visible] is work space. */
spec_truth spec_attention_f64(int32_t d_qk, int32_t d_v, int64_t n_visible, double scale,
                              const float *q, const float *kv, const float *bias, double *out,
                              double *out_abs, double *weights);

/* ---- The indexer of sparse attention: fp64 ---- */

/* sum_h weights[h] * max(0, q[h] . (scale * k)); q [heads][d], k [d]. *score_abs = the same sum
 * over absolute values of every product. */
double spec_index_score(int32_t heads, int32_t d, const float *q, const float *weights,
                        const float *k, double scale, double *score_abs);

/* positions [k] = the k best of scores [n] by rising position; returns how many: min(k, n). Of
 * equal scores the first ones, +inf before all, NaN after all. */
int32_t spec_index_topk(int32_t n, const double *scores, int32_t k, int32_t *positions);

/* ---- The algorithm: one row, block by block, every fp32 rounding explicit ---- */

typedef enum spec_mode { SPEC_FLASH, SPEC_AMLA, SPEC_LAZY } spec_mode;
/* What P is rounded to before PV. */
typedef enum spec_round {
  SPEC_P_F32,
  SPEC_P_BF16,
  SPEC_P_F16,
  SPEC_P_BF16X2 /* the sum of two bf16 */
} spec_round;

typedef struct spec_algo {
  spec_mode mode;
  spec_round p;
  /* amla: the published bare integer add, wrong on zeros and underflow; for study only */
  int unguarded;
  int uncompensated; /* amla with 16-bit P: eps = 0 */
  /* lazy with 16-bit P: divide O by the sum of the unrounded P; for study only */
  int divide_by_exact_sum;
  /* As the CPU's rows of bf16, in every mode: P is rounded to nearest even, O divided by the sum of
   * what it was rounded to, which is rescaled as O is; and amla keeps S16 = S32, c = 1, eps = 0 */
  int two_sums;
  /* P is multiplied by 2^-headroom before PV: no sum over 2^(headroom - 9) keys leaves fp32 */
  int headroom;
} spec_algo;

/* Running state of one row, beside its output o [d_v]. Start from SPEC_ROW_INIT and o of any
 * content. */
typedef struct spec_row {
  float m; /* reference: flash, amla: running max of S; lazy: the integer e, in log2 units */
  float l; /* sum of the unrounded P */
  float l_rounded;   /* lazy, two_sums: sum of the rounded P */
  float n, s32, s16; /* amla: exponent n (an integer), S32 and S16 */
  int started;       /* has seen a key */
  int64_t rescales;  /* blocks in which o was changed before PV */
  float max;         /* largest score; lazy: in log2 units */
} spec_row;

#define SPEC_ROW_INIT {0.0f, 0.0f, 0.0f, 0.0f, 1.0f, 1.0f, 0, 0, -__builtin_inff()}

/* One KV block of n visible tokens (none: no effect): kv [n][d_qk] f32, q [d_qk] f32, bias [n] f32
 * added to the scaled scores or NULL; p [n] is work space. */
void spec_block(const spec_algo *algo, spec_row *row, int32_t d_qk, int32_t d_v, float scale,
                const float *q, const float *kv, const float *bias, int32_t n, float *p, float *o);

/* Normalises o in place and returns the natural-log LSE; a row without keys becomes 0 and -inf. */
float spec_finish(const spec_algo *algo, const spec_row *row, int32_t d_v, float *o);

/* The guarded integer add: x * 2^(N / 2^23) for N a multiple of 2^23, exact, subnormals to signed
 * zero (DESIGN.md). */
float spec_add(float x, int64_t n);
/* spec_add(x, clamp(k, -512, 512) * 2^23) */
float spec_shift(float x, double k);
/* To the nearest; ties to even, or away from zero when away. */
float spec_round_p(spec_round to, int away, float x);

#endif
