/* SPDX-License-Identifier: Apache-2.0
 *
 * One scope of tensors as the caller of amla_mpi_run has them, whose strides may be 0: where its
 * lists are, and how much of its arrays is read. Other clients of amla.h leave that to the library.
 */
#ifndef AMLA_MPI_SCOPE_H
#define AMLA_MPI_SCOPE_H

#include <amla/amla.h>

typedef struct amla_scope {
  const amla_problem *problem;
  const int32_t *q_indptr;
  int32_t sk, topk, window, causal;
  int64_t stride_batch, stride_query; /* of indices */
  const int32_t *seqlens, *visible, *indices, *lengths;
} amla_scope;

static inline amla_scope amla_first_scope(const amla_problem *p, const amla_tensors *t) {
  return (amla_scope){p,
                      t->q_indptr,
                      p->sk,
                      p->topk,
                      p->window,
                      p->causal,
                      p->indices_stride_batch,
                      p->indices_stride_query,
                      t->seqlens_k,
                      t->visible_k,
                      t->indices,
                      t->topk_length};
}

static inline amla_scope amla_second_scope(const amla_problem *p, const amla_tensors *t) {
  return (amla_scope){p,
                      t->q_indptr,
                      p->extra_sk,
                      p->extra_topk,
                      0,
                      0,
                      p->extra_indices_stride_batch,
                      p->extra_indices_stride_query,
                      t->extra_seqlens_k,
                      t->extra_visible_k,
                      t->extra_indices,
                      t->extra_topk_length};
}

/* Queries of all sequences before this one. */
static inline int64_t amla_queries_before(const amla_scope *s, int32_t sequence) {
  return s->q_indptr ? s->q_indptr[sequence] : (int64_t)sequence * s->problem->s_q;
}

static inline int32_t amla_queries_of(const amla_scope *s, int32_t sequence) {
  return (int32_t)(amla_queries_before(s, sequence + 1) - amla_queries_before(s, sequence));
}

static inline int32_t amla_length_of(const amla_scope *s, int32_t sequence) {
  return s->seqlens ? s->seqlens[sequence] : s->sk;
}

/* The list of a query, and how many of its entries count. */
static inline const int32_t *amla_list_of(const amla_scope *s, int32_t sequence, int32_t query,
                                          int32_t *n) {
  const int64_t at = amla_queries_before(s, sequence) + query;
  const int64_t of_query = s->stride_query ? s->stride_query : s->topk;
  const int64_t of_batch = s->stride_batch ? s->stride_batch : of_query * s->problem->s_q;
  *n = s->topk;
  if (s->lengths)
    *n = s->lengths[s->problem->topk_length_per_query ? at : sequence];
  return s->indices + (s->q_indptr ? at * of_query : sequence * of_batch + query * of_query);
}

#endif
