/* SPDX-License-Identifier: Apache-2.0
 *
 * The AMX-BF16 row in portable C: the same roundings in the same order, one row of q and one
 * element at a time. Splits and their merges too.
 */
#include <float.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "src/base/float16.h"
#include "src/cpu/exp2_poly.h"
#include "src/cpu/rescale.h"
#include "src/cpu/schedule.h"

enum { DEPTH = 32, TOKENS = 128, MAX_PARTS = 3 };

/* What one row of q sees. */
typedef struct model_row {
  int32_t d, d_v, length, visible, rescale, p_form, n_parts;
  float scale;
  const float *q;       /* [d] */
  const uint16_t *kv;   /* [length][d] bf16 */
  const uint16_t *mask; /* [length] f16, or NULL */
  float *o;             /* [d_v] results, not yet divided */
  float *sums;          /* [4] ref, l, l_rounded; what P was multiplied by beside the mode's */
} model_row;

typedef struct partial {
  float ref, l, l_rounded;
  float *o;
} partial;

/* ---- Instructions ---- */

/* Subnormals are zeros, on the way in and on the way out. */
static float flush(float x) { return fabsf(x) < 0x1p-126f ? copysignf(0.0f, x) : x; }
static float widen(uint16_t h) { return flush(amla_bf16_to_f32(h)); }
static float multiply_add(float a, float b, float c) { return flush(fmaf(a, b, flush(c))); }
static float add(float a, float b) { return flush(flush(a) + flush(b)); }
static uint16_t narrow(float x) { return amla_f32_to_bf16(flush(x)); }

/* tdpbf16ps: of n <= 32 products even and odd ones apart, their sum to c. */
static float dot_32(int32_t n, const uint16_t *a, const uint16_t *b, int64_t b_step, float c) {
  float sum[2] = {0.0f, 0.0f};
  for (int32_t k = 0; k < n; k++)
    sum[k % 2] = multiply_add(widen(a[k]), widen(b[k * b_step]), sum[k % 2]);
  return add(c, add(sum[0], sum[1]));
}

/* vdpbf16ps with ones: the odd one of a pair first. */
static float add_pair(float c, uint16_t first, uint16_t second) {
  return multiply_add(widen(first), 1.0f, multiply_add(widen(second), 1.0f, c));
}

/* ---- One tile ---- */

static float exp2_of(float t, float base, float room) {
  static const float c[] = {AMLA_EXP2_C5, AMLA_EXP2_C4, AMLA_EXP2_C3,
                            AMLA_EXP2_C2, AMLA_EXP2_C1, 1.0f};
  const float x = t - base, n = (x + AMLA_ROUND_MAGIC) - AMLA_ROUND_MAGIC, f = x - n;
  float y = room * AMLA_EXP2_C6;
  for (int i = 0; i < 6; i++)
    y = fmaf(y, f, room * c[i]);
  return fmaf(t, 0.0f, x >= AMLA_EXP2_MIN ? ldexpf(y, (int)n) : 0.0f);
}

/* t of the keys [begin, begin + n). */
static void score(const model_row *r, const uint16_t *parts, float factor, int32_t begin, int32_t n,
                  float *t) {
  for (int32_t j = 0; j < n; j++) {
    float s = 0.0f;
    for (int32_t d = 0; d < r->d; d += DEPTH)
      for (int32_t part = 0; part < r->n_parts; part++)
        s = dot_32(r->d - d < DEPTH ? r->d - d : DEPTH, r->kv + (int64_t)(begin + j) * r->d + d,
                   parts + part * r->d + d, 1, s);
    t[j] = s * factor;
    if (!r->mask)
      continue;
    const uint16_t bias = r->mask[begin + j];
    t[j] = bias == 0xfc00 ? -FLT_MAX : t[j] + amla_f16_to_f32(bias) * 1.44269504f;
  }
}

/* O of n tokens' P from `begin` on. */
static void add_values(const model_row *r, int32_t begin, int32_t n, const float *p,
                       const uint16_t *hi, const uint16_t *lo, int first, float *o) {
  const uint16_t *v = r->kv + (int64_t)begin * r->d;
  for (int32_t c = 0; c < r->d_v; c++) {
    float acc = first ? 0.0f : o[c], sum = 0.0f;
    if (r->p_form == AMLA_P_F32) {
      for (int32_t j = 0; j < n; j++)
        sum = fmaf(p[j], amla_bf16_to_f32(v[(int64_t)j * r->d + c]), sum);
      o[c] = first ? sum : o[c] + sum;
      continue;
    }
    for (int32_t j = 0; j < n; j += DEPTH) {
      const int32_t m = n - j < DEPTH ? n - j : DEPTH;
      if (r->p_form == AMLA_P_BF16X2)
        acc = dot_32(m, lo + j, v + (int64_t)j * r->d + c, r->d, acc);
      acc = dot_32(m, hi + j, v + (int64_t)j * r->d + c, r->d, acc);
    }
    o[c] = acc;
  }
}

static void move_reference(const model_row *r, partial *a, float max, int first) {
  const amla_rescale mode = (amla_rescale)r->rescale;
  const amla_rescale_step step = amla_rescale_update(mode, a->ref, max);
  a->ref = step.ref;
  a->l *= step.l_factor;
  a->l_rounded *= step.factor;
  const int moved = mode == AMLA_RESCALE_FLASH || step.shift != 0;
  for (int32_t c = 0; !first && moved && c < r->d_v; c++)
    a->o[c] =
        mode == AMLA_RESCALE_FLASH ? a->o[c] * step.factor : amla_expshift(a->o[c], step.shift);
}

static void add_tile(const model_row *r, const uint16_t *parts, float factor, int32_t begin,
                     int32_t n, int first, partial *a) {
  const amla_rescale mode = (amla_rescale)r->rescale;
  const float room = ldexpf(1.0f, -amla_headroom(mode, r->length));
  float t[TOKENS], p[TOKENS] = {0}, max = -INFINITY, sum = 0.0f, rounded = 0.0f;
  uint16_t hi[TOKENS] = {0}, lo[TOKENS] = {0};
  score(r, parts, factor, begin, n, t);
  const int32_t seen = r->visible - begin < n ? r->visible - begin : n;
  for (int32_t j = 0; j < seen; j++)
    max = t[j] > max ? t[j] : max;
  move_reference(r, a, r->mask && max == -FLT_MAX ? -INFINITY : max, first);
  float base = mode == AMLA_RESCALE_AMLA ? -amla_paper_n(a->ref) : a->ref;
  if (a->ref == -INFINITY)
    base = 0.0f;
  for (int32_t j = 0; j < seen; j++) {
    p[j] = exp2_of(t[j], base, room);
    sum += p[j];
    hi[j] = narrow(p[j]);
    lo[j] = narrow(p[j] - amla_bf16_to_f32(hi[j]));
  }
  for (int32_t j = 0; j < TOKENS; j += 2) {
    if (r->p_form == AMLA_P_BF16X2)
      rounded = add_pair(rounded, lo[j], lo[j + 1]);
    rounded = add_pair(rounded, hi[j], hi[j + 1]);
  }
  a->l += sum * (1.0f / room / amla_rescale_p(mode, a->ref));
  a->l_rounded += rounded;
  add_values(r, begin, n, p, hi, lo, first, a->o);
}

/* ---- Splits ---- */

/* The parts of q, least first, and what is left of the scale. */
static float split_q(const model_row *r, uint16_t *parts) {
  int exponent;
  const double mantissa = frexp((double)r->scale * 1.4426950408889634, &exponent);
  const float of_q = copysignf(ldexpf(1.0f, exponent - 1), r->scale);
  for (int32_t i = 0; i < r->d; i++) {
    float x = r->q[i] * of_q;
    for (int32_t part = r->n_parts - 1; part >= 0; part--) {
      parts[part * r->d + i] = narrow(x);
      x -= amla_bf16_to_f32(parts[part * r->d + i]);
    }
  }
  return 2.0f * fabsf((float)mantissa);
}

static float merge_factor(float factor, float ref) { return ref == -INFINITY ? -0.0f : factor; }

static void merge(const model_row *r, partial *a, const partial *b) {
  const amla_rescale mode = (amla_rescale)r->rescale;
  const float ref = a->ref > b->ref ? a->ref : b->ref;
  const amla_rescale_step of_a = amla_rescale_to(mode, a->ref, ref);
  const amla_rescale_step of_b = amla_rescale_to(mode, b->ref, ref);
  const float f = ref == -INFINITY ? 0.0f : merge_factor(of_a.factor, a->ref);
  const float g = merge_factor(of_b.factor, b->ref);
  for (int32_t c = 0; c < r->d_v; c++)
    a->o[c] = fmaf(g, b->o[c], f * a->o[c]);
  a->ref = ref;
  a->l = of_a.l_factor * a->l + of_b.l_factor * b->l;
  a->l_rounded = of_a.factor * a->l_rounded + of_b.factor * b->l_rounded;
}

static int64_t tree_left(int64_t n) {
  int64_t left = 1;
  while (left * 2 < n)
    left *= 2;
  return left;
}

/* The tree over n splits from `cuts` on: split i has the keys [cuts[i], cuts[i + 1]). */
static partial add_splits(const model_row *r, const uint16_t *parts, float factor,
                          const int32_t *cuts, int64_t n) {
  partial a;
  if (n > 1) {
    const int64_t left = tree_left(n);
    a = add_splits(r, parts, factor, cuts, left);
    partial b = add_splits(r, parts, factor, cuts + left, n - left);
    merge(r, &a, &b);
    free(b.o);
    return a;
  }
  a = (partial){-INFINITY, 0.0f, 0.0f, calloc((size_t)r->d_v, sizeof(float))};
  for (int32_t j = cuts[0]; j < cuts[1]; j += TOKENS)
    add_tile(r, parts, factor, j, cuts[1] - j < TOKENS ? cuts[1] - j : TOKENS, j == cuts[0], &a);
  return a;
}

/* One row's O, not yet divided, and its sums. */
void amx_model_row(const model_row *r, const int32_t *cuts, int64_t n_splits);
void amx_model_row(const model_row *r, const int32_t *cuts, int64_t n_splits) {
  uint16_t *parts = calloc((size_t)(MAX_PARTS * r->d), sizeof *parts);
  const float factor = split_q(r, parts);
  const partial a = add_splits(r, parts, factor, cuts, n_splits);
  memcpy(r->o, a.o, (size_t)r->d_v * sizeof *r->o);
  r->sums[0] = a.ref;
  r->sums[1] = a.l;
  r->sums[2] = a.l_rounded;
  r->sums[3] = ldexpf(1.0f, -amla_headroom((amla_rescale)r->rescale, r->length)) *
               amla_rescale_p((amla_rescale)r->rescale, a.ref);
  free(a.o);
  free(parts);
}
