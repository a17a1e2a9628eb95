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
  const int32_t length = amla_seqlen(p, t, sequence);
  if (!t->mask)
    return amla_visible(p, length, last);
  int32_t end = 0;
  for (int32_t query = first; query <= last; query++) {
    const uint16_t *mask = amla_mask_row(p, t, sequence, query);
    int32_t n = amla_visible(p, length, query);
    while (n > end && mask[n - 1] == AMLA_MASK_HIDDEN)
      n--;
    if (n > end)
      end = n;
  }
  return end;
}

/* ---- Results ---- */

amla_row_end amla_end_row(const amla_problem *p, const amla_options *options, const amla_tensors *t,
                          int32_t sequence, int32_t query, int32_t head, double divisor,
                          double lse2) {
  const double log2e = 1.4426950408889634, ln2 = 0.6931471805599453;
  const int empty = lse2 == -INFINITY;
  const double sink =
      t->sinks && !empty ? 1.0 / (1.0 + exp2((double)t->sinks[head] * log2e - lse2)) : 1.0;
  const int64_t at =
      sequence * p->out_stride_batch + query * p->out_stride_query + head * p->out_stride_head;
  char *out = (char *)t->out + amla_elems_bytes(p->out_type, at);
  if (empty)
    memset(out, 0, (size_t)amla_elems_bytes(p->out_type, p->d_v));
  if (t->lse)
    t->lse[((int64_t)sequence * p->h_q + head) * p->s_q + query] =
        (float)(options->lse_base == AMLA_LSE_BASE2 ? lse2 : lse2 * ln2);
  if (empty)
    return (amla_row_end){NULL, 0.0f};
  return (amla_row_end){out, (float)(sink / divisor)};
}
