/* SPDX-License-Identifier: Apache-2.0
 *
 * The truth of the indexer: scores in fp64, and the k best of them by counting who is better.
 */
#include "spec.h"

#include <math.h>

double spec_index_score(int32_t heads, int32_t d, const float *q, const float *weights,
                        const float *k, double scale, double *score_abs) {
  double score = 0.0;
  *score_abs = 0.0;
  for (int32_t h = 0; h < heads; h++) {
    double dot = 0.0, dot_abs = 0.0;
    for (int32_t i = 0; i < d; i++) {
      const double x = (double)q[h * d + i] * (double)k[i] * scale;
      dot += x;
      dot_abs += fabs(x);
    }
    score += (double)weights[h] * (dot < 0.0 ? 0.0 : dot); /* a NaN stays */
    *score_abs += fabs((double)weights[h]) * dot_abs;
  }
  return score;
}

/* NaN is worse than anything, and as good as another NaN. */
static int is_better(double a, double b) { return a > b || (isnan(b) && !isnan(a)); }

int32_t spec_index_topk(int32_t n, const double *scores, int32_t k, int32_t *positions) {
  int32_t chosen = 0;
  for (int32_t t = 0; t < n; t++) {
    int32_t rank = 0;
    for (int32_t other = 0; other < n; other++)
      rank += is_better(scores[other], scores[t]) ||
              (other < t && !is_better(scores[t], scores[other]));
    if (rank < k)
      positions[chosen++] = t;
  }
  return chosen;
}
