/* SPDX-License-Identifier: Apache-2.0
 *
 * See scopes.h.
 */
#include "scopes.h"

#include <stddef.h>

#include "truth.h"

/* ---- Scopes ---- */

bool harness_has_second_scope(const amla_problem *p) { return p->extra_sk > 0 || p->extra_topk; }

amla_problem harness_second_problem(const amla_problem *problem) {
  amla_problem p = *problem;
  p.sk = problem->extra_sk, p.topk = problem->extra_topk;
  p.page_size = problem->extra_page_size, p.max_pages = problem->extra_max_pages;
  p.n_pages = problem->extra_n_pages;
  p.kv_stride_page = problem->extra_kv_stride_page;
  p.kv_stride_token = problem->extra_kv_stride_token;
  p.indices_stride_batch = problem->extra_indices_stride_batch;
  p.indices_stride_query = problem->extra_indices_stride_query;
  p.causal = p.window = p.kv_d_rope = p.extra_sk = p.extra_topk = 0;
  return p;
}

amla_tensors harness_second_tensors(const amla_tensors *tensors) {
  amla_tensors t = *tensors;
  t.kv = tensors->extra_kv;
  t.block_table = tensors->extra_block_table;
  t.seqlens_k = tensors->extra_seqlens_k;
  t.visible_k = tensors->extra_visible_k;
  t.indices = tensors->extra_indices;
  t.topk_length = tensors->extra_topk_length;
  t.kv_indptr = t.kv_indices = NULL;
  return t;
}

amla_problem harness_rope_problem(const amla_problem *problem) {
  amla_problem p = *problem;
  p.d_qk = problem->kv_d_rope;
  p.d_v = p.kv_d_rope = 0; /* the scale of all is that of the rope part */
  p.kv_stride_page = problem->kv_rope_stride_page;
  p.kv_stride_token = problem->kv_rope_stride_token;
  return p;
}

bool harness_has_lines(const amla_problem *p) {
  return p->topk > 0 || p->window > 0 || harness_has_second_scope(p);
}

bool harness_has_slots(const amla_problem *p) {
  return p->topk > 0 && p->index_kind == AMLA_INDEX_SLOT;
}

int64_t harness_most_keys(const amla_problem *p) {
  const int64_t first = p->topk > 0 ? p->topk : p->sk;
  return first + (p->extra_topk > 0 ? p->extra_topk : p->extra_sk);
}

static int64_t repeats(int64_t topk, int64_t sk) {
  return topk > sk ? (topk + sk - 1) / (sk > 0 ? sk : 1) : 1;
}

int64_t harness_repeats(const amla_problem *p) {
  const int64_t first = repeats(p->topk, p->sk), second = repeats(p->extra_topk, p->extra_sk);
  return first > second ? first : second;
}

/* ---- Queries ---- */

int32_t harness_query_count(const amla_problem *p, const amla_tensors *t, int32_t sequence) {
  return t->q_indptr ? t->q_indptr[sequence + 1] - t->q_indptr[sequence] : p->s_q;
}

int64_t harness_query_index(const amla_problem *p, const amla_tensors *t, int32_t sequence,
                            int32_t query) {
  const int64_t first = t->q_indptr ? t->q_indptr[sequence] : (int64_t)sequence * p->s_q;
  return first + query;
}

int64_t harness_all_queries(const amla_problem *p, const amla_tensors *t) {
  return harness_query_index(p, t, p->b, 0);
}

harness_query harness_query_at(const amla_problem *p, const amla_tensors *t, int64_t index) {
  harness_query at = {(int32_t)(index / p->s_q), (int32_t)(index % p->s_q)};
  if (t->q_indptr == NULL)
    return at;
  at.sequence = 0;
  while (t->q_indptr[at.sequence + 1] <= index)
    at.sequence++;
  at.query = (int32_t)(index - t->q_indptr[at.sequence]);
  return at;
}

/* ---- Places ---- */

/* Keys as they are found: counted, and listed if somebody wants them. */
typedef struct key_list {
  harness_key *keys;
  int64_t n;
  int scope;
} key_list;

/* Token j of a sequence whose page ids are `pages`; contiguous: NULL. */
static bool add_token(const amla_problem *p, const int32_t *pages, int32_t sequence, int64_t j,
                      key_list *l) {
  const amla_problem rope = harness_rope_problem(p);
  const int32_t row = pages ? 0 : sequence;
  const harness_key key = {l->scope, harness_token_offset(p, pages, row, j),
                           p->kv_d_rope > 0 ? harness_token_offset(&rope, pages, row, j) : 0};
  if (key.at < 0)
    return false;
  if (l->keys != NULL)
    l->keys[l->n] = key;
  l->n++;
  return true;
}

static int64_t length_of(const amla_problem *p, const amla_tensors *t, int32_t sequence) {
  return t->seqlens_k ? t->seqlens_k[sequence] : p->sk;
}

static const int32_t *pages_of(const amla_problem *p, const amla_tensors *t, int32_t sequence) {
  if (p->page_size == 0)
    return NULL;
  if (t->kv_indptr)
    return t->kv_indices + t->kv_indptr[sequence];
  const int64_t needed = ((int64_t)p->sk + p->page_size - 1) / p->page_size;
  return t->block_table + sequence * (p->max_pages ? p->max_pages : needed);
}

static bool add_slot(const amla_problem *p, int32_t slot, key_list *l) {
  const int32_t tokens = p->page_size ? p->page_size : p->sk;
  const int64_t pages = p->page_size ? p->n_pages : p->b;
  if (slot >= pages * tokens)
    return false;
  const int32_t page = slot / tokens;
  return add_token(p, p->page_size ? &page : NULL, page, slot % tokens, l);
}

static bool add_list(const amla_problem *p, const amla_tensors *t, harness_query q, key_list *l) {
  const int64_t index = harness_query_index(p, t, q.sequence, q.query);
  const int64_t by_query = p->indices_stride_query ? p->indices_stride_query : p->topk;
  const int64_t by_batch = p->indices_stride_batch ? p->indices_stride_batch : p->s_q * by_query;
  const int32_t *list =
      t->indices + (t->q_indptr ? index * by_query : q.sequence * by_batch + q.query * by_query);
  int32_t n = p->topk;
  if (t->topk_length)
    n = t->topk_length[p->topk_length_per_query ? index : q.sequence];
  bool ok = n >= 0 && n <= p->topk;
  for (int32_t i = 0; ok && i < n; i++) {
    if (list[i] < 0)
      continue;
    if (p->index_kind == AMLA_INDEX_SLOT)
      ok = add_slot(p, list[i], l);
    else
      ok = list[i] < length_of(p, t, q.sequence) &&
           add_token(p, pages_of(p, t, q.sequence), q.sequence, list[i], l);
  }
  return ok;
}

/* Of all queries of the sequence; or of one, its window. */
static bool add_dense(const amla_problem *p, const amla_tensors *t, harness_query q, bool one,
                      key_list *l) {
  const int64_t length = length_of(p, t, q.sequence);
  const int64_t end = one ? harness_visible(p, t, q.sequence, q.query) : length;
  bool ok = length >= 0 && length <= p->sk && end <= length;
  for (int64_t j = p->window > 0 && end > p->window ? end - p->window : 0; ok && j < end; j++)
    ok = add_token(p, pages_of(p, t, q.sequence), q.sequence, j, l);
  return ok;
}

int64_t harness_list_keys(const amla_problem *p, const amla_tensors *t, harness_query query,
                          harness_key *keys) {
  const amla_problem problem[] = {*p, harness_second_problem(p)};
  const amla_tensors tensors[] = {*t, harness_second_tensors(t)};
  const int n = harness_has_second_scope(p) ? 2 : 1;
  key_list l = {.keys = keys};
  bool ok = true;
  for (; ok && l.scope < n; l.scope++) {
    const amla_problem *scope = &problem[l.scope];
    ok = scope->topk > 0 ? add_list(scope, &tensors[l.scope], query, &l)
                         : add_dense(scope, &tensors[l.scope], query, harness_has_lines(p), &l);
  }
  return ok ? l.n : -1;
}
