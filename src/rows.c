/* SPDX-License-Identifier: Apache-2.0
 *
 * See rows.h.
 */
#include "rows.h"

#include <math.h>
#include <string.h>

/* ---- Visibility ---- */

int32_t amla_seen_end(const amla_problem *p, const amla_tensors *t, int32_t sequence, int32_t first,
                      int32_t last) {
  int32_t end = 0;
  for (int32_t query = first; query <= last; query++) {
    const uint16_t *mask = amla_mask_row(p, t, sequence, query);
    int32_t n = amla_visible(p, t, sequence, query);
    while (mask && n > end && mask[n - 1] == AMLA_MASK_HIDDEN)
      n--;
    if (n > end)
      end = n;
  }
  return end;
}

/* ---- Results ---- */

static const double log2e = 1.4426950408889634, ln2 = 0.6931471805599453;

/* log2(2^a + 2^b) */
static double log2_add(double a, double b) {
  const double max = a > b ? a : b;
  const double min = a > b ? b : a;
  return max + log1p(exp2(min - max)) * log2e;
}

/* Place of a row in lse and max_logits. */
static int64_t row_index(const amla_problem *p, const amla_tensors *t, int32_t sequence,
                         int32_t query, int32_t head) {
  if (t->q_indptr)
    return amla_query_index(p, t, sequence, query) * p->h_q + head;
  return ((int64_t)sequence * p->h_q + head) * p->s_q + query;
}

amla_row_end amla_end_row(const amla_problem *p, const amla_options *options, const amla_tensors *t,
                          int32_t sequence, int32_t query, int32_t head, amla_row_sums sums) {
  const int64_t at = row_index(p, t, sequence, query, head);
  const int64_t row =
      amla_query_offset(p, t, sequence, query, p->out_stride_batch, p->out_stride_query);
  char *out = (char *)t->out + amla_elems_bytes(p->out_type, row + head * p->out_stride_head);
  const int empty = sums.lse2 == -INFINITY;
  double lse2 = sums.lse2, share = 1.0;
  if (t->sinks && !empty) {
    const double sink2 = (double)t->sinks[head] * log2e;
    share = 1.0 / (1.0 + exp2(sink2 - lse2));
    if (options->lse_sink == AMLA_LSE_WITH_SINK)
      lse2 = log2_add(lse2, sink2);
  }
  if (t->lse)
    t->lse[at] = (float)(options->lse_base == AMLA_LSE_BASE2 ? lse2 : lse2 * ln2);
  if (t->max_logits)
    t->max_logits[at] = (float)(sums.max2 * ln2);
  if (empty) {
    memset(out, 0, (size_t)amla_elems_bytes(p->out_type, p->d_v));
    return (amla_row_end){NULL, 0.0f};
  }
  return (amla_row_end){out, (float)(share / sums.divisor)};
}
