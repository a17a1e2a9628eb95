/* SPDX-License-Identifier: Apache-2.0
 *
 * The three rescale modes, row by row, in log2 units (t = S * log2 e): what a row's reference is,
 * what a new maximum does to it, how two partial results meet, and what the end divides by. The
 * formulas of spec/amla.c with f32 P: S16 = S32, c = 1, eps = 0, no 1e-6.
 *
 *     mode    reference        P           O holds               a new maximum multiplies O by
 *     lazy    integer e        2^(t-e)     sum 2^(t-e) v         2^(e-e'), an exponent shift, only
 *                                                                when max t > e + 8
 *     amla    max m            2^(t-m)     sum 2^(t+n) v         2^(n'-n), an exponent shift;
 *                                                                n = round(-m); P' = P * 2^(m+n)
 *     flash   max m            2^(t-m)     sum 2^(t-m) v         2^(m-m'), a multiplication
 *
 * A reference of -inf means: no key seen yet. O is also multiplied by 2^-headroom throughout.
 */
#ifndef AMLA_CPU_RESCALE_H
#define AMLA_CPU_RESCALE_H

#include <amla/amla.h>
#include <math.h>

#include "../base/expshift.h"
#include "../base/headroom.h"

/* What happens to one row's O and l when its reference moves. */
typedef struct amla_rescale_step {
  float ref;    /* the new reference */
  float factor; /* of O */
  float l_factor;
  int32_t shift; /* lazy, amla: factor = 2^shift */
} amla_rescale_step;

static inline float amla_paper_n(float m) { return roundf(-m); }

/* From reference ref to the reference `to` of the mode; ref = -inf: O and l are 0, and stay so. */
static inline amla_rescale_step amla_rescale_to(amla_rescale mode, float ref, float to) {
  amla_rescale_step s = {to, 1.0f, 1.0f, 0};
  if (ref == -INFINITY || ref == to)
    return s;
  s.shift =
      amla_clamp_shift(mode == AMLA_RESCALE_AMLA ? amla_paper_n(to) - amla_paper_n(ref) : ref - to);
  s.l_factor = exp2f(ref - to);
  s.factor = mode == AMLA_RESCALE_AMLA ? exp2f((float)s.shift) : s.l_factor;
  return s;
}

/* By how much a score may exceed the reference. */
static inline float amla_rescale_tau(amla_rescale mode) {
  return mode == AMLA_RESCALE_LAZY ? (float)AMLA_LAZY_TAU : 0.0f;
}

/* After a tile whose largest score is max (-inf: none visible). Merging goes to the larger
 * reference instead: tau is spent once. */
static inline amla_rescale_step amla_rescale_update(amla_rescale mode, float ref, float max) {
  const float tau = amla_rescale_tau(mode);
  if (!(max > ref + tau))
    return amla_rescale_to(mode, ref, ref);
  return amla_rescale_to(mode, ref, mode == AMLA_RESCALE_LAZY ? ceilf(max) : max);
}

/* The references of n rows after a tile, and what that asks of each row; nearly always nothing, and
 * then no branch a row. Returns whether O of any row is to be shifted. */
static inline int amla_rescale_rows(amla_rescale mode, int32_t n, float *ref, const float *max,
                                    amla_rescale_step *steps) {
  const float tau = amla_rescale_tau(mode);
  int any = 0, shifted = 0;
  for (int32_t r = 0; r < n; r++)
    any |= max[r] > ref[r] + tau;
  for (int32_t r = 0; r < n; r++) {
    steps[r] = any ? amla_rescale_update(mode, ref[r], max[r])
                   : (amla_rescale_step){ref[r], 1.0f, 1.0f, 0};
    shifted |= steps[r].shift != 0;
    ref[r] = steps[r].ref;
  }
  return shifted;
}

/* What P is multiplied by before PV, but for the headroom (base/headroom.h). */
static inline float amla_rescale_p(amla_rescale mode, float ref) {
  return mode == AMLA_RESCALE_AMLA && isfinite(ref) ? exp2f(ref + amla_paper_n(ref)) : 1.0f;
}

#endif
