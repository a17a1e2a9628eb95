/* SPDX-License-Identifier: Apache-2.0
 *
 * The algorithm on one page: online softmax over KV blocks in three rescale modes. The steps of
 * spec_block are those of every backend, in the same order: scores, reference, P, rescale O, PV.
 * Formulas: arXiv 2509.25224, Algorithm 2, for flash and amla; DESIGN.md for lazy, for the guard
 * and for what differs from the paper.
 */
#include "spec.h"

#include <math.h>
#include <string.h>

static const float log2e = 1.44269504088896340736f, ln2 = 0.69314718055994530942f;

static uint32_t bits(float x) {
  uint32_t u;
  memcpy(&u, &x, 4);
  return u;
}
static float from_bits(uint32_t u) {
  float x;
  memcpy(&x, &u, 4);
  return x;
}
static float rna(float x) { return roundf(x); } /* round half away from zero */

float spec_add(float x, int64_t n) {
  uint32_t sign = bits(x) & 0x80000000u, a = bits(x) & 0x7fffffffu;
  if (a >= 0x7f800000u)
    return x; /* inf, NaN */
  int64_t r = (int64_t)a + n;
  if (a < 0x00800000u || r < 0x00800000)
    return from_bits(sign); /* zero, subnormal, underflow */
  if (r >= 0x7f800000)
    return from_bits(sign | 0x7f800000u); /* overflow */
  return from_bits(sign | (uint32_t)r);
}

float spec_shift(float x, double k) {
  return spec_add(x, (int64_t)(fmin(fmax(k, -512.0), 512.0) * 8388608.0));
}

/* The published add: right for normal x with a normal result, and only then. */
static float unguarded_add(float x, int64_t n) { return from_bits(bits(x) + (uint32_t)n); }

float spec_round_p(spec_round to, int away, float x) {
  if (to == SPEC_P_F32 || !isfinite(x) || x == 0.0f)
    return x;
  if (to == SPEC_P_BF16X2) {
    const float high = spec_round_p(SPEC_P_BF16, away, x);
    return high + spec_round_p(SPEC_P_BF16, away, x - high); /* exact */
  }
  const int mantissa = to == SPEC_P_BF16 ? 8 : 11;
  const int min_exp = to == SPEC_P_BF16 ? -125 : -13;
  int e;
  frexpf(x, &e); /* |x| in [2^(e-1), 2^e) */
  double ulp = ldexp(1.0, (e > min_exp ? e : min_exp) - mantissa), y = (double)x / ulp;
  y = (away ? round(y) : nearbyint(y)) * ulp;
  return to == SPEC_P_F16 && fabs(y) >= 65520.0 ? copysignf(INFINITY, x) : (float)y;
}

/* What P is multiplied by before PV, and so O's divisor too. */
static float p_factor(const spec_algo *algo, const spec_row *row) {
  return ldexpf(algo->mode == SPEC_AMLA ? row->s16 : 1.0f, -algo->headroom);
}

static float dot(int32_t n, const float *a, const float *b) { /* fp32, sixteen partial sums */
  float s[16] = {0};
  for (int32_t d = 0; d + 16 <= n; d += 16)
    for (int32_t i = 0; i < 16; i++)
      s[i] += a[d + i] * b[d + i];
  for (int32_t d = n / 16 * 16; d < n; d++)
    s[0] += a[d] * b[d];
  for (int32_t w = 8; w > 0; w /= 2)
    for (int32_t i = 0; i < w; i++)
      s[i] += s[i + w];
  return s[0];
}

enum { COLUMNS = 64 };

/* O += P V, the block's sum first: one chain over all keys would pile up their roundings. */
static void add_values(int32_t d_qk, int32_t d_v, const float *kv, int32_t n, const float *p,
                       float *o) {
  for (int32_t begin = 0; begin < d_v; begin += COLUMNS) {
    const int32_t columns = d_v - begin < COLUMNS ? d_v - begin : COLUMNS;
    float pv[COLUMNS] = {0};
    for (int32_t j = 0; j < n; j++)
      for (int32_t d = 0; d < columns; d++)
        pv[d] += p[j] * kv[(int64_t)j * d_qk + begin + d];
    for (int32_t d = 0; d < columns; d++)
      o[begin + d] += pv[d];
  }
}

void spec_block(const spec_algo *algo, spec_row *row, int32_t d_qk, int32_t d_v, float scale,
                const float *q, const float *kv, const float *bias, int32_t n, float *p, float *o) {
  const spec_row old = *row;
  const int first = !old.started, exact_s16 = algo->p == SPEC_P_F32 || algo->two_sums;
  float max = -INFINITY, sum = 0.0f, sum_rounded = 0.0f, factor = 1.0f;
  int64_t add = 0;
  if (n <= 0)
    return;
  row->started = 1;
  if (first)
    memset(o, 0, (size_t)d_v * sizeof *o);

  /* 1. Scores, in p; lazy works in log2 units. */
  for (int32_t j = 0; j < n; j++) {
    p[j] = dot(d_qk, q, kv + (int64_t)j * d_qk) * (algo->mode == SPEC_LAZY ? scale * log2e : scale);
    if (bias)
      p[j] += bias[j] * (algo->mode == SPEC_LAZY ? log2e : 1.0f);
    if (p[j] > max)
      max = p[j];
  }

  if (max > row->max)
    row->max = max;

  /* 2. The reference, and what it does to O and l. */
  if (algo->mode == SPEC_LAZY) {
    const float headroom = algo->p == SPEC_P_F16 ? 7.0f : 0.0f;
    const float tau = algo->p == SPEC_P_F16 ? 15.0f : 8.0f;
    if (first || max > old.m + tau)
      row->m = ceilf(max) - headroom;
    factor = first ? 1.0f : exp2f(old.m - row->m);
    add = first ? 0 : (int64_t)fmaxf(old.m - row->m, -512.0f) * 8388608;
  } else {
    row->m = first ? max : fmaxf(old.m, max);
    factor = first ? 1.0f : expf(old.m - row->m);
  }
  if (algo->mode == SPEC_AMLA) {
    row->n = rna(-row->m / ln2);
    row->s32 = expf(ln2 * (row->m / ln2 + row->n));
    /* Exact: c = 1 and eps = 0. */
    row->s16 = exact_s16 ? row->s32 : spec_round_p(algo->p, 1, row->s32);
    float c_old = old.s32 / old.s16, c = row->s32 / row->s16, k = row->n - old.n;
    float eps = algo->uncompensated ? 0.0f : 1.5f * (c_old / c - 1.0f);
    if (exact_s16)
      add = first ? 0 : (int64_t)fmaxf(k, -512.0f) * 8388608;
    else if (!first && isfinite(eps))
      add = (int64_t)round(8388608.0 * ((double)fmaxf(k, -30.0f) + (double)eps + 1e-6));
  }

  /* 3. P, its sums, and its rounding to the type of the matrix unit. A score that is not finite
   * poisons the row. */
  for (int32_t j = 0; j < n; j++) {
    float x = (algo->mode == SPEC_LAZY ? exp2f(p[j] - row->m) : expf(p[j] - row->m)) + 0.0f * p[j];
    sum += x;
    const int away = algo->mode == SPEC_AMLA && !algo->two_sums;
    p[j] = spec_round_p(algo->p, away, x * p_factor(algo, row));
    sum_rounded += p[j];
  }
  row->l = factor * old.l + sum;
  const int shifted = algo->mode == SPEC_AMLA && algo->two_sums; /* as O */
  row->l_rounded = (shifted ? spec_add(old.l_rounded, add) : factor * old.l_rounded) + sum_rounded;

  /* 4. Rescale O: a multiplication, or an addition to its bits. */
  if (!first && (algo->mode != SPEC_LAZY || add != 0)) {
    row->rescales++;
    for (int32_t d = 0; d < d_v; d++)
      if (algo->mode == SPEC_FLASH)
        o[d] *= factor;
      else
        o[d] = algo->unguarded ? unguarded_add(o[d], add) : spec_add(o[d], add);
  }

  /* 5. O += P V. */
  add_values(d_qk, d_v, kv, n, p, o);
}

float spec_finish(const spec_algo *algo, const spec_row *row, int32_t d_v, float *o) {
  const int two_sums = algo->two_sums || (algo->mode == SPEC_LAZY && !algo->divide_by_exact_sum);
  const float divisor = two_sums ? row->l_rounded : row->l * p_factor(algo, row);
  for (int32_t d = 0; d < d_v; d++)
    o[d] = row->started ? o[d] / divisor : 0.0f;
  if (!row->started)
    return -INFINITY;
  return algo->mode == SPEC_LAZY ? ln2 * (row->m + log2f(row->l)) : row->m + logf(row->l);
}
