/* SPDX-License-Identifier: Apache-2.0
 *
 * See seen_data.h. What does not count is hostile: entries of a list behind its length, and of a
 * page list behind a sequence's.
 */
#include "seen_data.h"

#include <stdlib.h>
#include <string.h>

#include "draw.h"
#include "scopes.h"
#include "truth.h"

static int32_t *allocate_words(int64_t n) {
  int32_t *words = n < 0 ? NULL : harness_allocate(n, sizeof(int32_t));
  for (int64_t i = 0; words != NULL && i < n; i++)
    words[i] = HARNESS_UNUSED_ENTRY;
  return words;
}

bool harness_draw_q_indptr(const harness_case *c, harness_dataset *data) {
  const amla_problem *p = &data->problem;
  int32_t *at = data->q_indptr = allocate_words((int64_t)p->b + 1);
  if (at == NULL)
    return false;
  at[0] = 0;
  for (int32_t i = 0; i < p->b; i++) {
    uint64_t state = seed_for(c->seed, STREAM_QUERIES, i, 0);
    const int32_t drawn = i == 0 ? p->s_q : 1 + (int32_t)random_below(&state, p->s_q);
    at[i + 1] = at[i] + (i % 3 == 1 ? 0 : drawn);
  }
  data->tensors.q_indptr = at;
  return true;
}

bool harness_draw_visible(const harness_case *c, harness_dataset *data) {
  const amla_problem *p = &data->problem;
  const amla_tensors *t = &data->tensors;
  data->visible_k = allocate_words(harness_all_queries(p, t));
  if (data->visible_k == NULL)
    return false;
  for (int32_t s = 0; s < p->b; s++)
    for (int32_t i = 0; i < harness_query_count(p, t, s); i++) {
      uint64_t state = seed_for(c->seed, STREAM_VISIBLE, s, i);
      const int32_t length = data->seqlens_k[s];
      const int32_t drawn = (int32_t)random_below(&state, (int64_t)length + 1);
      data->visible_k[harness_query_index(p, t, s, i)] = i == 0 ? length : drawn;
    }
  return true;
}

/* ---- Lists ---- */

/* What a list says for token j of a sequence. */
static int32_t entry_of(const harness_dataset *data, int32_t sequence, int32_t j) {
  const amla_problem *p = &data->problem;
  if (p->index_kind == AMLA_INDEX_POSITION)
    return j;
  if (p->page_size == 0)
    return sequence * p->sk + j;
  const int64_t row = (int64_t)sequence * p->max_pages;
  return data->block_table[row + j / p->page_size] * p->page_size + j % p->page_size;
}

static void draw_list(const harness_case *c, const harness_dataset *data, harness_query q,
                      int32_t n, int32_t *list, bool *seen) {
  uint64_t state = seed_for(c->seed, STREAM_LISTS, q.sequence, q.query);
  const int32_t length = data->seqlens_k[q.sequence];
  const bool none = length == 0 || (c->invalid == 100 && (q.sequence + q.query) % 2 == 0);
  for (int32_t i = 0; i < n; i++) {
    const bool out = c->invalid < 100 && random_below(&state, 100) < c->invalid;
    const uint64_t drawn = harness_random(&state);
    list[i] = drawn % 2 ? -1 : INT32_MIN;
    if (none || out)
      continue;
    const int32_t j = (int32_t)(drawn % (uint64_t)length);
    seen[(int64_t)q.sequence * data->problem.sk + j] = true;
    list[i] = entry_of(data, q.sequence, j);
  }
}

static bool draw_list_lengths(const harness_case *c, harness_dataset *data) {
  const amla_problem *p = &data->problem;
  const bool by_query = c->topklen == HARNESS_TOPKLEN_QUERY;
  const int64_t n = by_query ? harness_all_queries(p, &data->tensors) : p->b;
  data->topk_length = allocate_words(n);
  for (int64_t i = 0; data->topk_length != NULL && i < n; i++) {
    harness_query q = {(int32_t)i, 0};
    if (by_query)
      q = harness_query_at(p, &data->tensors, i);
    uint64_t state = seed_for(c->seed, STREAM_LIST_LENGTHS, q.sequence, q.query);
    const int32_t drawn = (int32_t)random_below(&state, (int64_t)p->topk + 1);
    data->topk_length[i] = i == 0 ? p->topk : drawn;
  }
  return data->topk_length != NULL;
}

static int32_t list_length(const harness_case *c, const harness_dataset *data, harness_query q,
                           int64_t index) {
  if (c->topklen == HARNESS_TOPKLEN_NONE)
    return data->problem.topk;
  return data->topk_length[c->topklen == HARNESS_TOPKLEN_QUERY ? index : q.sequence];
}

/* Of the list of query `index` of all. Strides may be 0: packed. */
static int64_t list_offset(const amla_problem *p, const amla_tensors *t, int64_t index) {
  const harness_query q = harness_query_at(p, t, index);
  const int64_t of_query = p->indices_stride_query ? p->indices_stride_query : p->topk;
  const int64_t of_batch = p->indices_stride_batch ? p->indices_stride_batch : p->s_q * of_query;
  return t->q_indptr ? index * of_query : q.sequence * of_batch + q.query * of_query;
}

bool harness_draw_lists(const harness_case *c, harness_dataset *data, bool *seen) {
  const amla_problem *p = &data->problem;
  const amla_tensors *t = &data->tensors;
  data->indices = allocate_words(p->b * p->indices_stride_batch);
  if (data->indices == NULL)
    return false;
  if (c->topklen != HARNESS_TOPKLEN_NONE && !draw_list_lengths(c, data))
    return false;
  for (int64_t i = 0; i < harness_all_queries(p, t); i++) {
    const harness_query q = harness_query_at(p, t, i);
    int32_t *list = data->indices + list_offset(p, t, i);
    draw_list(c, data, q, list_length(c, data, q, i), list, seen);
  }
  return true;
}

static int compare_entries(const void *a, const void *b) {
  const int32_t x = *(const int32_t *)a, y = *(const int32_t *)b;
  return (x > y) - (x < y);
}

static void sort_list(int32_t *list, int32_t n, int32_t *valid) {
  int32_t k = 0;
  for (int32_t i = 0; i < n; i++)
    if (list[i] >= 0)
      valid[k++] = list[i];
  qsort(valid, (size_t)k, sizeof *valid, compare_entries);
  for (int32_t i = n - 1; i >= 0; i--)
    if (list[i] >= 0)
      list[i] = valid[--k];
}

static bool sort_scope(const amla_problem *p, const amla_tensors *t, int32_t *lists) {
  const int64_t queries = lists ? harness_all_queries(p, t) : 0;
  int32_t *room = malloc((size_t)p->topk * sizeof *room + 1);
  for (int64_t i = 0; room != NULL && i < queries; i++)
    sort_list(lists + list_offset(p, t, i), p->topk, room);
  free(room);
  return room != NULL;
}

bool harness_sort_lists(harness_dataset *data) {
  const amla_problem second = harness_second_problem(&data->problem);
  return sort_scope(&data->problem, &data->tensors, data->indices) &&
         sort_scope(&second, &data->tensors, data->extra_indices);
}

/* ---- Dense scopes ---- */

void harness_mark_dense(const harness_dataset *data, bool *seen) {
  const amla_problem *p = &data->problem;
  amla_tensors t = data->tensors;
  t.seqlens_k = data->seqlens_k, t.visible_k = data->visible_k;
  for (int64_t i = 0; i < harness_all_queries(p, &t); i++) {
    const harness_query q = harness_query_at(p, &t, i);
    const int64_t end = harness_visible(p, &t, q.sequence, q.query);
    for (int64_t j = p->window > 0 && end > p->window ? end - p->window : 0; j < end; j++)
      seen[(int64_t)q.sequence * p->sk + j] = true;
  }
}

bool harness_make_page_lists(harness_dataset *data) {
  const amla_problem *p = &data->problem;
  data->kv_indptr = allocate_words((int64_t)p->b + 1);
  data->kv_indices = allocate_words(p->b * (int64_t)p->max_pages); /* with room for hostile ones */
  if (data->kv_indptr == NULL || data->kv_indices == NULL)
    return false;
  data->kv_indptr[0] = 0;
  for (int32_t s = 0; s < p->b; s++) {
    const int32_t length = data->seqlens_k[s];
    const int32_t used = length > 0 ? (length - 1) / p->page_size + 1 : 0;
    int32_t *to = data->kv_indices + data->kv_indptr[s];
    memcpy(to, data->block_table + (int64_t)s * p->max_pages, (size_t)used * sizeof *to);
    data->kv_indptr[s + 1] = data->kv_indptr[s] + used + s % 2;
  }
  return true;
}
