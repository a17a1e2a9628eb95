/* SPDX-License-Identifier: Apache-2.0
 *
 * Where a token, a query row, a list and a mask row lie in memory, and how a row of results ends.
 * For problems and tensors that have been checked (problem.h), of one scope (keys.h).
 */
#ifndef AMLA_ROWS_H
#define AMLA_ROWS_H

#include "base/dtype.h"
#include "base/load.h"
#include "base/store.h"

/* ---- Queries ---- */

static inline int32_t amla_query_count(const amla_problem *p, const amla_tensors *t,
                                       int32_t sequence) {
  return t->q_indptr ? t->q_indptr[sequence + 1] - t->q_indptr[sequence] : p->s_q;
}

/* Place of a query among those of all sequences. */
static inline int64_t amla_query_index(const amla_problem *p, const amla_tensors *t,
                                       int32_t sequence, int32_t query) {
  return query + (t->q_indptr ? t->q_indptr[sequence] : (int64_t)sequence * p->s_q);
}

/* Where what belongs to a query begins in a [b][s_q] tensor of these strides. */
static inline int64_t amla_query_offset(const amla_problem *p, const amla_tensors *t,
                                        int32_t sequence, int32_t query, int64_t stride_batch,
                                        int64_t stride_query) {
  if (t->q_indptr)
    return amla_query_index(p, t, sequence, query) * stride_query;
  return sequence * stride_batch + query * stride_query;
}

/* Address of query row (sequence, query, head). */
static inline const void *amla_q_row(const amla_problem *p, const amla_tensors *t, int32_t sequence,
                                     int32_t query, int32_t head) {
  const int64_t at = amla_query_offset(p, t, sequence, query, p->q_stride_batch, p->q_stride_query);
  return (const char *)t->q + amla_elems_bytes(p->q_type, at + head * p->q_stride_head);
}

/* Elements of a key, and of a row of q before those that may lie apart. */
static inline int32_t amla_key_elems(const amla_problem *p) {
  return p->d_qk - (int32_t)p->k_begin;
}
static inline int32_t amla_q_elems(const amla_problem *p) {
  return amla_key_elems(p) - p->q_d_rope;
}

/* Address of its last q_d_rope elements, if they lie apart. */
static inline const void *amla_q_rope(const amla_problem *p, const amla_tensors *t,
                                      int32_t sequence, int32_t query, int32_t head) {
  const int64_t at =
      amla_query_offset(p, t, sequence, query, p->q_rope_stride_batch, p->q_rope_stride_query);
  return (const char *)t->q_rope + amla_elems_bytes(p->q_type, at + head * p->q_rope_stride_head);
}

/* ---- What a query sees of a scope ---- */

static inline int32_t amla_seqlen(const amla_problem *p, const amla_tensors *t, int32_t sequence) {
  return t->seqlens_k ? t->seqlens_k[sequence] : p->sk;
}

/* A query of a dense scope sees keys [0, result), but for a window and the mask. */
static inline int32_t amla_visible(const amla_problem *p, const amla_tensors *t, int32_t sequence,
                                   int32_t query) {
  if (t->visible_k)
    return t->visible_k[amla_query_index(p, t, sequence, query)];
  const int32_t length = amla_seqlen(p, t, sequence);
  if (!p->causal)
    return length;
  const int64_t n = (int64_t)length - amla_query_count(p, t, sequence) + query + 1;
  return n > 0 ? (int32_t)n : 0;
}

/* A query's list, and how many of its entries count. */
static inline const int32_t *amla_list(const amla_problem *p, const amla_tensors *t,
                                       int32_t sequence, int32_t query) {
  return t->indices +
         amla_query_offset(p, t, sequence, query, p->indices_stride_batch, p->indices_stride_query);
}

static inline int32_t amla_list_length(const amla_problem *p, const amla_tensors *t,
                                       int32_t sequence, int32_t query) {
  if (!t->topk_length)
    return p->topk;
  if (!p->topk_length_per_query)
    return t->topk_length[sequence];
  return t->topk_length[amla_query_index(p, t, sequence, query)];
}

/* Do its lists name tokens by their place in the cache? Block table and lengths then mean nothing.
 */
static inline int amla_has_slots(const amla_problem *p) {
  return p->topk > 0 && p->index_kind == AMLA_INDEX_SLOT;
}

/* ---- Tokens ---- */

/* Where the parts of a token's row lie. */
typedef struct amla_token_ref {
  const void *row;    /* its first element */
  const void *rope;   /* its last kv_d_rope elements, if they lie apart; else NULL */
  const void *scales; /* its scales, if its type has them apart; else NULL */
} amla_token_ref;

/* Token `slot` of page `page`; contiguous: of sequence `page`. */
static inline amla_token_ref amla_slot_at(const amla_problem *p, const amla_tensors *t,
                                          int64_t page, int64_t slot) {
  const int64_t row = page * p->kv_stride_page + slot * p->kv_stride_token;
  amla_token_ref ref = {(const char *)t->kv + amla_elems_bytes(p->kv_type, row), NULL, NULL};
  if (p->kv_d_rope > 0) {
    const int64_t rope = page * p->kv_rope_stride_page + slot * p->kv_rope_stride_token;
    ref.rope = (const char *)t->kv_rope + amla_elems_bytes(p->kv_type, rope);
  }
  if (p->kv_type == AMLA_FP8_584)
    ref.scales = (const char *)t->kv + page * p->kv_stride_page +
                 amla_fp8_584_scales_at(p->page_size > 0 ? p->page_size : p->sk, slot);
  return ref;
}

/* How the rows of kv are read. */
static inline amla_row_format amla_row_format_of(const amla_problem *p) {
  int32_t d_rope = p->kv_d_rope > 0 ? p->kv_d_rope : p->d_qk - p->d_v;
  if (p->kv_type == AMLA_FP8_656 || p->kv_type == AMLA_FP8_584)
    d_rope = AMLA_FP8_ROPE;
  return (amla_row_format){p->kv_type, p->d_qk, p->d_qk - d_rope, p->kv_scale, p->kv_rope_scale};
}

/* Tokens of a page; contiguous: of a sequence. */
static inline int32_t amla_page_tokens(const amla_problem *p) {
  return p->page_size > 0 ? p->page_size : p->sk;
}

/* Do all tokens lie a token's stride apart, over the ends of pages too? Then a slot says where,
 * without a division. */
static inline int amla_pages_are_seamless(const amla_problem *p) {
  const int64_t tokens = amla_page_tokens(p);
  return p->kv_stride_page == tokens * p->kv_stride_token &&
         p->kv_rope_stride_page == tokens * p->kv_rope_stride_token;
}

/* A sequence's page ids: [max_pages], or [kv_indptr[sequence + 1] - kv_indptr[sequence]]. */
static inline const int32_t *amla_pages(const amla_problem *p, const amla_tensors *t,
                                        int32_t sequence) {
  return t->kv_indptr ? t->kv_indices + t->kv_indptr[sequence]
                      : t->block_table + (int64_t)sequence * p->max_pages;
}

/* Where a token is: tokens [slot, slot + n) of the page are the next ones. */
typedef struct amla_place {
  int64_t page, slot;
  int32_t n;
} amla_place;

/* Token j of a sequence. */
static inline amla_place amla_place_of(const amla_problem *p, const amla_tensors *t,
                                       int32_t sequence, int32_t j) {
  if (p->page_size == 0)
    return (amla_place){sequence, j, p->sk - j};
  const int32_t page = j / p->page_size, slot = j % p->page_size;
  return (amla_place){amla_pages(p, t, sequence)[page], slot, p->page_size - slot};
}

/* The token that a valid entry of a list of the sequence names. */
static inline amla_place amla_place_of_index(const amla_problem *p, const amla_tensors *t,
                                             int32_t sequence, int32_t index) {
  const int32_t tokens = amla_page_tokens(p);
  if (p->index_kind == AMLA_INDEX_POSITION)
    return amla_place_of(p, t, sequence, index);
  return (amla_place){index / tokens, index % tokens, 1};
}

/* ---- The mask ---- */

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

/* ---- Results ---- */

/* What a row of results ends with: its O is to be divided by `divisor`; LSE and the largest score
 * are in log2 units. */
typedef struct amla_row_sums {
  double divisor, lse2, max2;
} amla_row_sums;

/* Ends a row of results: writes its LSE and its largest score; the factor is the sink's share over
 * the divisor. */
amla_row_end amla_end_row(const amla_problem *p, const amla_options *options, const amla_tensors *t,
                          int32_t sequence, int32_t query, int32_t head, amla_row_sums sums);

#endif
