/* SPDX-License-Identifier: Apache-2.0
 *
 * See interleave.h. A rank's tokens before a position are as many as its tokens' positions in its
 * own cache say, so one count maps lengths, bounds and entries.
 */
#include "interleave.h"

#include "scope.h"

int32_t amla_mpi_own_tokens(int32_t interleave_tokens, int32_t position, int32_t rank,
                            int32_t ranks) {
  const int64_t n = interleave_tokens, round = n * ranks;
  int64_t rest = position % round - rank * n;
  rest = rest < 0 ? 0 : rest;
  return (int32_t)(position / round * n + (rest < n ? rest : n));
}

static int32_t own(const amla_interleaving *x, int32_t position) {
  return amla_mpi_own_tokens(x->tokens, position, x->rank, x->ranks);
}

static int is_own(const amla_interleaving *x, int32_t position) {
  return position / x->tokens % x->ranks == x->rank;
}

/* ---- Problem ---- */

/* The first rank has the most. */
static int32_t most_tokens(const amla_interleaving *x, int32_t length) {
  return amla_mpi_own_tokens(x->tokens, length, 0, x->ranks);
}

/* Windows of the whole sequence are of more or fewer own tokens, so that they become lists. */
amla_problem amla_interleave_problem(const amla_interleaving *x) {
  amla_problem p = x->whole;
  p.sk = most_tokens(x, p.sk), p.extra_sk = most_tokens(x, p.extra_sk);
  if (p.window > 0) {
    p.topk = most_tokens(x, p.window < x->whole.sk ? p.window : x->whole.sk);
    p.index_kind = AMLA_INDEX_POSITION;
  }
  p.causal = 0, p.window = 0;
  p.topk_length_per_query = p.topk > 0 || p.extra_topk > 0;
  p.indices_stride_batch = p.indices_stride_query = 0;
  p.extra_indices_stride_batch = p.extra_indices_stride_query = 0;
  p.out_type = AMLA_F32;
  p.out_stride_batch = p.out_stride_query = p.out_stride_head = 0;
  return p;
}

size_t amla_interleave_words(const amla_interleaving *x) {
  const amla_problem p = amla_interleave_problem(x);
  const size_t b = (size_t)p.b, queries = b * (size_t)p.s_q;
  return 2 * b + queries * (4 + (size_t)p.topk + (size_t)p.extra_topk);
}

/* ---- Tensors ---- */

/* One scope of the whole problem, and then of the rank's own. */
typedef struct scope {
  amla_scope whole;
  int32_t own_topk;
  int32_t *own_seqlens, *own_visible, *own_indices, *own_lengths;
} scope;

/* The query, `at` among all, sees whole tokens [0, visible), but for those before a window. */
static int32_t visible_to(const amla_scope *s, int32_t sequence, int32_t query, int64_t at) {
  const int32_t length = amla_length_of(s, sequence);
  const int32_t causal = length - amla_queries_of(s, sequence) + query + 1;
  if (s->visible)
    return s->visible[at];
  if (!s->causal)
    return length;
  return causal > 0 ? causal : 0;
}

static void list_window(const amla_interleaving *x, scope *s, int32_t visible, int64_t at) {
  const int32_t window = s->whole.window;
  const int32_t first = own(x, visible > window ? visible - window : 0);
  const int32_t n = own(x, visible) - first;
  s->own_lengths[at] = n;
  for (int32_t i = 0; i < n; i++)
    s->own_indices[at * s->own_topk + i] = first + i;
}

static void list_entries(const amla_interleaving *x, scope *s, int32_t sequence, int32_t query,
                         int64_t at) {
  int32_t n, n_own = 0;
  const int32_t *entries = amla_list_of(&s->whole, sequence, query, &n);
  for (int32_t i = 0; i < n; i++)
    if (entries[i] >= 0 && is_own(x, entries[i]))
      s->own_indices[at * s->own_topk + n_own++] = own(x, entries[i]);
  s->own_lengths[at] = n_own;
}

static void map_scope(const amla_interleaving *x, scope *s) {
  const amla_scope *w = &s->whole;
  for (int32_t i = 0; i < x->whole.b; i++) {
    s->own_seqlens[i] = own(x, amla_length_of(w, i));
    for (int32_t q = 0; q < amla_queries_of(w, i); q++) {
      const int64_t at = amla_queries_before(w, i) + q;
      if (w->topk > 0)
        list_entries(x, s, i, q, at);
      else if (w->window > 0)
        list_window(x, s, visible_to(w, i, q, at), at);
      else
        s->own_visible[at] = own(x, visible_to(w, i, q, at));
    }
  }
}

/* Takes the scope's arrays from the words at *next. */
static void carve(const amla_interleaving *x, scope *s, int32_t **next) {
  const size_t b = (size_t)x->whole.b, queries = b * (size_t)x->whole.s_q;
  s->own_seqlens = *next, *next += b;
  s->own_visible = *next, *next += queries;
  s->own_lengths = *next, *next += queries;
  s->own_indices = *next, *next += queries * (size_t)s->own_topk;
}

amla_tensors amla_interleave_tensors(const amla_interleaving *x, const amla_tensors *t) {
  const amla_problem *p = &x->whole, mine = amla_interleave_problem(x);
  const size_t b = (size_t)p->b * 4, queries = b * (size_t)p->s_q;
  int32_t *next = x->words;
  scope s = {.whole = amla_first_scope(p, t), .own_topk = mine.topk};
  scope e = {.whole = amla_second_scope(p, t), .own_topk = mine.extra_topk};
  amla_tensors o = *t;
  carve(x, &s, &next), carve(x, &e, &next);
  map_scope(x, &s);
  o.seqlens_k = s.own_seqlens, o.seqlens_k_bytes = b;
  o.visible_k = mine.topk > 0 ? NULL : s.own_visible, o.visible_k_bytes = queries;
  o.indices = mine.topk > 0 ? s.own_indices : NULL;
  o.indices_bytes = queries * (size_t)mine.topk;
  o.topk_length = mine.topk > 0 ? s.own_lengths : NULL, o.topk_length_bytes = queries;
  o.sinks = NULL;
  if (p->extra_sk == 0 && p->extra_topk == 0)
    return o;
  map_scope(x, &e);
  o.extra_seqlens_k = e.own_seqlens, o.extra_seqlens_k_bytes = b;
  o.extra_visible_k = mine.extra_topk > 0 ? NULL : e.own_visible, o.extra_visible_k_bytes = queries;
  o.extra_indices = mine.extra_topk > 0 ? e.own_indices : NULL;
  o.extra_indices_bytes = queries * (size_t)mine.extra_topk;
  o.extra_topk_length = mine.extra_topk > 0 ? e.own_lengths : NULL;
  o.extra_topk_length_bytes = queries;
  return o;
}
