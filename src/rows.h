/* SPDX-License-Identifier: Apache-2.0
 *
 * Where a token, a query row and a mask row lie in memory, what a query sees, and how a row of
 * results ends. For problems and tensors that have been checked (problem.h).
 */
#ifndef AMLA_ROWS_H
#define AMLA_ROWS_H

#include "base/dtype.h"
#include "base/store.h"

static inline int32_t amla_seqlen(const amla_problem *p, const amla_tensors *t, int32_t sequence) {
  return t->seqlens_k ? t->seqlens_k[sequence] : p->sk;
}

/* Keys that query `query` of a sequence of that length sees: [0, result). */
static inline int32_t amla_visible(const amla_problem *p, int32_t length, int32_t query) {
  if (!p->causal)
    return length;
  const int64_t n = (int64_t)length - p->s_q + query + 1;
  return n > 0 ? (int32_t)n : 0;
}

/* Where the parts of a token's row lie. */
typedef struct amla_token_ref {
  const void *row;    /* its first element */
  const void *rope;   /* its last kv_d_rope elements, if they lie apart; else NULL */
  const void *scales; /* its scales, if its type has them apart; else NULL */
} amla_token_ref;

/* Token `slot` of page `page`; contiguous: of sequence `page`. */
static inline amla_token_ref amla_slot_at(const amla_problem *p, const amla_tensors *t,
                                          int64_t page, int64_t slot) {
  const int64_t at = page * p->kv_stride_page + slot * p->kv_stride_token;
  return (amla_token_ref){(const char *)t->kv + amla_elems_bytes(p->kv_type, at), NULL, NULL};
}

/* Where token j of a sequence lies, and how many tokens from it on lie on the same page. */
typedef struct amla_place {
  int64_t page;
  int32_t slot, n;
} amla_place;

static inline amla_place amla_place_of(const amla_problem *p, const amla_tensors *t,
                                       int32_t sequence, int32_t j) {
  if (p->page_size == 0)
    return (amla_place){sequence, j, p->sk - j};
  const int32_t page = t->block_table[(int64_t)sequence * p->max_pages + j / p->page_size];
  const int32_t slot = j % p->page_size;
  return (amla_place){page, slot, p->page_size - slot};
}

/* Token j of a sequence. */
static inline amla_token_ref amla_token_at(const amla_problem *p, const amla_tensors *t,
                                           int32_t sequence, int32_t j) {
  const amla_place at = amla_place_of(p, t, sequence, j);
  return amla_slot_at(p, t, at.page, at.slot);
}

/* The mask's row for a query: [sk] f16; NULL without a mask. */
static inline const uint16_t *amla_mask_row(const amla_problem *p, const amla_tensors *t,
                                            int32_t sequence, int32_t query) {
  return t->mask ? (const uint16_t *)t->mask + sequence * p->mask_stride_batch +
                       query * p->mask_stride_query
                 : NULL;
}

enum { AMLA_MASK_HIDDEN = 0xfc00 }; /* -inf */

/* One past the last key that any of the queries [first, last] of the sequence sees, mask included.
 */
int32_t amla_seen_end(const amla_problem *p, const amla_tensors *t, int32_t sequence, int32_t first,
                      int32_t last);

/* Address of query row (sequence, query, head). */
static inline const void *amla_q_row(const amla_problem *p, const amla_tensors *t, int32_t sequence,
                                     int32_t query, int32_t head) {
  const int64_t i =
      sequence * p->q_stride_batch + query * p->q_stride_query + head * p->q_stride_head;
  return (const char *)t->q + amla_elems_bytes(p->q_type, i);
}

/* Ends a row of results: writes its LSE; the factor is the sink's share over `divisor`. lse2 is in
 * log2 units. */
amla_row_end amla_end_row(const amla_problem *p, const amla_options *options, const amla_tensors *t,
                          int32_t sequence, int32_t query, int32_t head, double divisor,
                          double lse2);

#endif
