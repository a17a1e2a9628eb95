/* SPDX-License-Identifier: Apache-2.0
 *
 * The truth: softmax attention in fp64, written as the textbook has it. Every other implementation
 * is compared with this.
 */
#include "spec.h"

#include <math.h>

/* Eight partial sums: lets a compiler use vectors without reordering anything behind our back. */
static double dot(int32_t n, const float *a, const float *b, double *sum_abs) {
  double s[8] = {0}, t[8] = {0};
  for (int32_t d = 0; d + 8 <= n; d += 8)
    for (int32_t i = 0; i < 8; i++) {
      double x = (double)a[d + i] * (double)b[d + i];
      s[i] += x;
      t[i] += fabs(x);
    }
  for (int32_t d = n / 8 * 8; d < n; d++) {
    double x = (double)a[d] * (double)b[d];
    s[0] += x;
    t[0] += fabs(x);
  }
  *sum_abs = ((t[0] + t[1]) + (t[2] + t[3])) + ((t[4] + t[5]) + (t[6] + t[7]));
  return ((s[0] + s[1]) + (s[2] + s[3])) + ((s[4] + s[5]) + (s[6] + s[7]));
}

static int hidden(const float *bias, int64_t j) { return bias && bias[j] == -INFINITY; }

spec_truth spec_attention_f64(int32_t d_qk, int32_t d_v, int64_t n_visible, double scale,
                              const float *q, const float *kv, const float *bias, double *out,
                              double *out_abs, double *weights) {
  spec_truth truth = {-INFINITY, 0.0};
  double max = -INFINITY, sum = 0.0;
  int64_t n_seen = 0;

  for (int64_t j = 0; j < n_visible; j++) {
    double score_abs;
    weights[j] = -INFINITY;
    if (hidden(bias, j))
      continue;
    weights[j] = scale * dot(d_qk, q, kv + j * d_qk, &score_abs) + (bias ? (double)bias[j] : 0.0);
    if (!(weights[j] <= max))
      max = weights[j]; /* a NaN score becomes the maximum and so poisons the row */
    truth.score_abs =
        fmax(truth.score_abs, fabs(scale) * score_abs + (bias ? fabs((double)bias[j]) : 0.0));
    n_seen++;
  }
  for (int64_t j = 0; j < n_visible; j++) {
    if (hidden(bias, j))
      continue;
    weights[j] = exp(weights[j] - max);
    sum += weights[j];
  }
  for (int32_t d = 0; d < d_v; d++)
    out[d] = 0.0;
  for (int32_t d = 0; out_abs && d < d_v; d++)
    out_abs[d] = 0.0;
  if (n_seen == 0)
    return truth;

  for (int64_t j = 0; j < n_visible; j++) {
    if (hidden(bias, j))
      continue;
    double w = weights[j] / sum;
    const float *v = kv + j * d_qk;
    for (int32_t d = 0; d < d_v; d++)
      out[d] += w * (double)v[d];
    if (out_abs)
      for (int32_t d = 0; d < d_v; d++)
        out_abs[d] += w * fabs((double)v[d]);
  }
  truth.lse = max + log(sum);
  return truth;
}
