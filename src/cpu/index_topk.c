/* SPDX-License-Identifier: Apache-2.0
 *
 * The indexer on threads: all tiles of all queries form a line, of which each thread takes an equal
 * share. A query that lies in one share is finished there; one that several shares have in common
 * leaves a list in each, and the thread where it begins puts these together. The k best of a query
 * are the same however it is cut, as no two keys rank alike.
 */
#include "index_topk.h"

#include <math.h>

#include "../float_environment.h"
#include "index_list.h"
#include "index_scores.h"
#include "parallel.h"

/* What a thread leaves of its first and its last query, where other threads have the rest. */
typedef struct left_over {
  int64_t query; /* of all: sequence * s_q + query */
  int begins;    /* is this where the query begins */
} left_over;

typedef struct thread_state {
  amla_index_scorer scorer;
  amla_index_list lists[2];
  left_over left[2]; /* their lists are lists[0] and lists[1] */
  int32_t n_left;
} thread_state;

typedef struct job {
  const amla_index_args *args;
  thread_state *threads;
  int32_t n;
  int64_t n_tiles; /* of all queries together */
} job;

static int32_t min(int32_t a, int32_t b) { return a < b ? a : b; }

/* ---- Scratch ---- */

static amla_index_list take_list(const amla_index_args *a, const amla_index_ukr *ukr,
                                 amla_arena *arena) {
  const int64_t k = min(a->topk, a->sk);
  const int64_t full = 2 * k < a->sk ? 2 * k : a->sk;
  amla_index_list list = {.ukr = ukr, .k = (int32_t)k, .capacity = full + AMLA_INDEX_BATCH};
  list.keys = amla_arena_take(arena, list.capacity, sizeof *list.keys);
  list.positions = amla_arena_take(arena, list.capacity, sizeof *list.positions);
  return list;
}

static thread_state take_thread(const amla_index_args *a, const amla_options *o,
                                amla_arena *arena) {
  thread_state t = {.scorer = amla_index_scorer_create(a, o->isa, arena)};
  t.lists[0] = take_list(a, t.scorer.ukr, arena);
  t.lists[1] = take_list(a, t.scorer.ukr, arena);
  return t;
}

size_t amla_index_run_scratch_bytes(const amla_index_args *a, const amla_options *o) {
  amla_arena common = amla_arena_create(NULL), of_thread = amla_arena_create(NULL);
  amla_arena_take(&common, o->threads, sizeof(thread_state));
  take_thread(a, o, &of_thread);
  return AMLA_ARENA_ALIGN + common.used_bytes + of_thread.used_bytes * (size_t)o->threads;
}

/* ---- Queries ---- */

int32_t amla_index_visible(const amla_index_args *a, int32_t sequence, int32_t query) {
  const int32_t length = a->seqlens_k ? a->seqlens_k[sequence] : a->sk;
  if (a->visible_k)
    return a->visible_k[(int64_t)sequence * a->s_q + query];
  const int64_t n = a->causal ? (int64_t)length - a->s_q + query + 1 : length;
  return n > 0 ? (int32_t)n : 0;
}

static int32_t visible_of(const amla_index_args *a, int64_t query) {
  return amla_index_visible(a, (int32_t)(query / a->s_q), (int32_t)(query % a->s_q));
}

/* Where every key is listed, their order does not matter. */
static int needs_scores(const amla_index_args *a, int32_t n_visible) {
  return n_visible > 0 && (a->scores || n_visible > a->topk);
}

/* A query without scores counts as one tile: somebody has to write its list. */
static int64_t n_tiles_of(const amla_index_args *a, int32_t tile_tokens, int64_t query) {
  const int32_t n = visible_of(a, query);
  return needs_scores(a, n) ? ((int64_t)n + tile_tokens - 1) / tile_tokens : 1;
}

/* ---- Results ---- */

static int32_t index_of(const amla_index_args *a, int32_t sequence, int32_t position) {
  return a->index_kind == AMLA_INDEX_POSITION ? position
                                              : (int32_t)amla_index_slot(a, sequence, position);
}

/* positions [n] by rising position; NULL = 0, 1, ... */
static void write_indices(const amla_index_args *a, int64_t query, int32_t n,
                          const int32_t *positions) {
  int32_t *to = a->indices + query * a->topk;
  const int32_t sequence = (int32_t)(query / a->s_q);
  for (int32_t i = 0; i < n; i++)
    to[i] = index_of(a, sequence, positions ? positions[i] : i);
  for (int32_t i = n; i < a->topk; i++)
    to[i] = -1;
}

static void finish_query(const amla_index_args *a, int64_t query, amla_index_list *list) {
  if (a->topk == 0)
    return;
  amla_index_list_finish(list);
  write_indices(a, query, list->n, list->positions);
}

/* ---- A thread's share ---- */

/* Keys [first, end) of the query into the list, their scores where the caller wants them. */
static void score_keys(const thread_state *t, int64_t query, int32_t first, int32_t end,
                       amla_index_list *list) {
  const amla_index_args *a = t->scorer.args;
  float scores[AMLA_INDEX_BATCH];
  for (int32_t j = first, n; j < end; j += n) {
    n = min(t->scorer.tile_tokens, end - j);
    amla_index_scorer_run(&t->scorer, j, n, scores);
    if (a->scores)
      memcpy(a->scores + query * a->sk + j, scores, (size_t)n * sizeof *scores);
    if (a->topk > 0)
      amla_index_list_push(list, n, scores, j);
  }
}

static void hide_scores(const amla_index_args *a, int64_t query, int32_t n_visible) {
  for (int32_t j = n_visible; a->scores && j < a->sk; j++)
    a->scores[query * a->sk + j] = -INFINITY;
}

/* Tiles [from, to) of the query's n_tiles. */
static void run_query(thread_state *t, int64_t query, int64_t from, int64_t to, int64_t n_tiles) {
  const amla_index_args *a = t->scorer.args;
  const int32_t n = visible_of(a, query), tile = t->scorer.tile_tokens;
  amla_index_list *list = &t->lists[t->n_left];
  if (to == n_tiles)
    hide_scores(a, query, n);
  if (!needs_scores(a, n)) {
    if (a->topk > 0)
      write_indices(a, query, n, NULL);
    return;
  }
  amla_index_list_clear(list);
  amla_index_scorer_begin(&t->scorer, (int32_t)(query / a->s_q), (int32_t)(query % a->s_q));
  score_keys(t, query, (int32_t)(from * tile), to == n_tiles ? n : (int32_t)(to * tile), list);
  if (from == 0 && to == n_tiles)
    finish_query(a, query, list);
  else
    t->left[t->n_left++] = (left_over){query, from == 0};
}

static int64_t share_begin(const job *j, int32_t i) {
  return j->n_tiles / j->n * i + j->n_tiles % j->n * i / j->n;
}

static void run_share(const job *j, int32_t i) {
  const amla_index_args *a = j->args;
  const int64_t n_queries = (int64_t)a->b * a->s_q;
  thread_state *t = &j->threads[i];
  int64_t begin = share_begin(j, i), end = share_begin(j, i + 1);
  for (int64_t query = 0; query < n_queries && end > 0; query++) {
    const int64_t n = n_tiles_of(a, t->scorer.tile_tokens, query);
    const int64_t first = begin > 0 ? begin : 0, last = end;
    if (begin < n)
      run_query(t, query, first, last < n ? last : n, n);
    begin -= n, end -= n;
  }
}

/* Queries that begin in this share and end in another. */
static void finish_shared(const job *j, int32_t i) {
  thread_state *t = &j->threads[i];
  for (int32_t l = 0; l < t->n_left; l++) {
    if (!t->left[l].begins)
      continue;
    for (int32_t k = i + 1; k < j->n; k++)
      if (j->threads[k].n_left > 0 && j->threads[k].left[0].query == t->left[l].query)
        amla_index_list_append(&t->lists[l], &j->threads[k].lists[0]);
    finish_query(j->args, t->left[l].query, &t->lists[l]);
  }
}

/* ---- Two parallel steps ---- */

static void share_task(void *argument, int32_t i) {
  const fenv_t threads_own = amla_enter_environment();
  run_share(argument, i);
  amla_leave_environment(&threads_own);
}

static void finish_task(void *argument, int32_t i) { finish_shared(argument, i); }

static job share_out(const amla_index_args *a, const amla_options *o, void *scratch) {
  amla_arena arena = amla_arena_create(scratch);
  job j = {.args = a, .threads = amla_arena_take(&arena, o->threads, sizeof *j.threads)};
  j.threads[0] = take_thread(a, o, &arena);
  const int32_t tile = j.threads[0].scorer.tile_tokens;
  for (int64_t query = 0; query < (int64_t)a->b * a->s_q; query++)
    j.n_tiles += n_tiles_of(a, tile, query);
  j.n = amla_useful_threads(o, 2.0 * a->heads * a->d * tile * (double)j.n_tiles);
  for (int32_t i = 1; i < j.n; i++)
    j.threads[i] = take_thread(a, o, &arena);
  return j;
}

void amla_index_run(const amla_index_args *a, const amla_options *o, void *scratch) {
  const fenv_t callers = amla_enter_environment();
  job j = share_out(a, o, scratch);
  amla_leave_environment(&callers);
  if (j.n == 1) {
    share_task(&j, 0);
    return;
  }
  amla_run_parallel(o, j.n, share_task, &j);
  int32_t n_shared = 0, last = 0;
  for (int32_t i = 0; i < j.n; i++)
    for (int32_t l = 0; l < j.threads[i].n_left; l++)
      if (j.threads[i].left[l].begins)
        n_shared++, last = i;
  if (n_shared > 1)
    amla_run_parallel(o, j.n, finish_task, &j);
  else if (n_shared == 1)
    finish_shared(&j, last);
}
