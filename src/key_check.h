/* SPDX-License-Identifier: Apache-2.0
 *
 * The refusals of what tensors say about keys: lengths, page ids, lists. They read host memory, of
 * buffers whose pointers and capacities have been checked.
 */
#ifndef AMLA_KEY_CHECK_H
#define AMLA_KEY_CHECK_H

#include "rows.h"

/* q_indptr and kv_indptr, which other sizes come from. */
amla_status amla_indptrs_check(const amla_problem *p, const amla_tensors *t, amla_detail *detail);

/* Positions of each sequence whose pages are used: [begin[i], end[i]); NULL: all. */
typedef struct amla_key_range {
  const int32_t *begin, *end;
} amla_key_range;

/* Rows [begin, end) in the order [b][s_q][h_q]; NULL: all, and sequences without any. */
typedef struct amla_row_range {
  int64_t begin, end;
} amla_row_range;

/* Are any of them of n queries of the sequence? */
static inline int amla_has_rows(const amla_problem *p, const amla_tensors *t, int32_t sequence,
                                int32_t query, int32_t n, const amla_row_range *rows) {
  const int64_t first = amla_query_index(p, t, sequence, query) * p->h_q;
  return !rows || (first < rows->end && first + (int64_t)n * p->h_q > rows->begin);
}

/* Everything else, of both scopes: used [2], or NULL: no page is. Lengths and pages of sequences
 * that have some of the rows, lists of queries that have. */
amla_status amla_keys_check(const amla_problem *p, const amla_tensors *t,
                            const amla_key_range *used, const amla_row_range *rows,
                            amla_detail *detail);

#endif
