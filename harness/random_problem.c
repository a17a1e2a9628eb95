/* SPDX-License-Identifier: Apache-2.0
 *
 * Random problem strings. One draw a statement: C does not say in which order arguments are
 * evaluated.
 */
#include "random_problem.h"

#include <amla/amla.h>
#include <math.h>
#include <stdbool.h>
#include <stdio.h>

#include "dataset.h"

enum { N_FLOAT_TYPES = AMLA_F16 + 1 };
#define PICK(state, list) list[below(state, (int)(sizeof(list) / sizeof *(list)))]

static const double budget = 1.5e7; /* elements of q k^T times d_qk */

/* In [0, n). */
static int below(uint64_t *state, int n) { return (int)(harness_random(state) % (uint64_t)n); }

int harness_random_size(uint64_t *state, int most) {
  return (int)exp(harness_random_uniform(state) * log(most + 0.99));
}

/* Of q, out and kv. */
static const char *float_type(uint64_t *state) {
  return amla_dtype_name((amla_dtype)below(state, N_FLOAT_TYPES));
}

/* Records have dimensions of their own. */
static void fit_record(amla_dtype type, int *d_qk, int *d_v) {
  if (type != AMLA_FP8_656 && type != AMLA_FP8_584)
    return;
  *d_qk = type == AMLA_FP8_656 ? 576 : 512;
  *d_v = 512;
}

/* A type for kv only, if whole blocks fit into d_qk. Its elements per block in *elems, else 1. */
static const char *kv_type(uint64_t *state, int *d_qk, int *d_v, int32_t *elems) {
  int n = N_FLOAT_TYPES;
  int32_t bytes;
  while (amla_dtype_name((amla_dtype)n) != NULL)
    n++;
  const bool other = below(state, 3) == 0;
  const amla_dtype type = (amla_dtype)(N_FLOAT_TYPES + below(state, n - N_FLOAT_TYPES));
  *elems = amla_dtype_block(type, &bytes);
  if (other && *d_qk % *elems == 0) {
    fit_record(type, d_qk, d_v);
    return amla_dtype_name(type);
  }
  *elems = 1;
  return float_type(state);
}

void harness_random_problem(uint64_t *state, char text[HARNESS_RANDOM_PROBLEM]) {
  static const char *const dists[] = {"normal:1",    "uniform:2",  "rising",      "outlier",
                                      "onehot",      "peaked",     "zerov",       "masked",
                                      "normal:0.01", "normal:30",  "uniform:0.5", "uniform:8",
                                      "rising:1000", "outlier:20", "peaked:3"};
  static const char *const lens[] = {"fixed", "uniform", "ragged"};
  static const char *const bases[] = {"e", "2"};
  static const double scales[] = {0.1352, 0.0416667, 1.0, -0.2, 1e-6, 7.5};
  const bool tuned = below(state, 3) == 0;
  const int any_qk = harness_random_size(state, 700), any_v = below(state, any_qk);
  int d_qk = tuned ? 576 : any_qk;
  int d_v = tuned ? 512 : 1 + any_v;
  const int s_q = harness_random_size(state, 8), h = harness_random_size(state, 140);
  const int b = below(state, 5);
  int32_t elems;
  const char *q = float_type(state), *out = float_type(state);
  const char *kv = kv_type(state, &d_qk, &d_v, &elems);
  const double most = budget / ((double)h * s_q * d_qk * fmax(b, 1));
  const int sk = harness_random_size(state, (int)fmin(fmax(most, 2), 3000));
  const int any_page = harness_random_size(state, 200);
  const int page = below(state, 3) == 0 ? 0 : any_page;
  const int any_pad = elems > 1 ? elems : below(state, 20);
  const int pad = below(state, 3) == 0 ? any_pad : 0;
  const int causal = below(state, 2), sinks = below(state, 4) == 0;
  const int mask = below(state, 4) == 0;
  const double scale = PICK(state, scales);
  const char *lse = PICK(state, bases), *dist = PICK(state, dists), *len = PICK(state, lens);
  snprintf(text, HARNESS_RANDOM_PROBLEM,
           "b=%d,sq=%d,h=%d,sk=%d,dqk=%d,dv=%d,page=%d,q=%s,kv=%s,out=%s,causal=%d,scale=%g,lse=%s,"
           "sinks=%d,mask=%d,pad=%d,dist=%s,len=%s,seed=%d",
           b, s_q, h, sk, d_qk, d_v, page, q, kv, out, causal, scale, lse, sinks, mask, pad, dist,
           len, below(state, 1000));
}
