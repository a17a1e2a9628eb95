/* SPDX-License-Identifier: Apache-2.0
 *
 * See key_check.h. Names of the second scope's fields begin with `prefix`.
 */
#include "key_check.h"

#include <stdio.h>

#include "keys.h"
#include "refuse.h"

/* A query, as messages index it: [sequence][query], or [query] of ragged ones. */
typedef struct query_name {
  char text[32];
} query_name;

static query_name name_query(const amla_problem *p, const amla_tensors *t, int32_t sequence,
                             int32_t query) {
  query_name name;
  if (t->q_indptr)
    snprintf(name.text, sizeof name.text, "[%lld]",
             (long long)amla_query_index(p, t, sequence, query));
  else
    snprintf(name.text, sizeof name.text, "[%d][%d]", sequence, query);
  return name;
}

/* ---- Index pointers ---- */

static amla_status check_indptr(const char *name, const int32_t *at, int32_t n, int32_t most,
                                const char *rule, amla_detail *detail) {
  if (!at)
    return AMLA_OK;
  if (at[0] != 0)
    INVALID("%s[0]=%d: must be 0", name, at[0]);
  for (int32_t i = 0; i < n; i++) {
    if (at[i + 1] < at[i])
      INVALID("%s[%d]=%d: must be >= %s[%d]=%d", name, i + 1, at[i + 1], name, i, at[i]);
    if (at[i + 1] - at[i] > most)
      INVALID("%s[%d]=%d: must be <= %s[%d] + %s=%d", name, i + 1, at[i + 1], name, i, rule, most);
  }
  return AMLA_OK;
}

amla_status amla_indptrs_check(const amla_problem *p, const amla_tensors *t, amla_detail *detail) {
  TRY(check_indptr("q_indptr", t->q_indptr, p->b, p->s_q, "s_q", detail));
  return check_indptr("kv_indptr", t->kv_indptr, p->b, INT32_MAX, "", detail);
}

/* ---- Lengths and pages ---- */

static amla_status check_page_ids(const char *prefix, const amla_problem *p, const amla_tensors *t,
                                  int32_t sequence, int32_t begin, int32_t end,
                                  amla_detail *detail) {
  const int32_t *ids = begin < end ? amla_pages(p, t, sequence) : NULL;
  for (int32_t j = begin; j < end; j++) {
    if (ids[j] >= 0 && ids[j] < p->n_pages)
      continue;
    if (t->kv_indptr)
      INVALID("kv_indices[%d]=%d: a used page id must be in [0, n_pages=%lld)",
              t->kv_indptr[sequence] + j, ids[j], (long long)p->n_pages);
    INVALID("%sblock_table[%d][%d]=%d: a used page id must be in [0, %sn_pages=%lld)", prefix,
            sequence, j, ids[j], prefix, (long long)p->n_pages);
  }
  return AMLA_OK;
}

static int32_t count_pages(const amla_problem *p, int32_t tokens) {
  return (int32_t)(((int64_t)tokens + p->page_size - 1) / p->page_size);
}

static amla_status check_length(const char *prefix, const amla_problem *p, const amla_tensors *t,
                                const amla_key_range *range, int32_t sequence,
                                amla_detail *detail) {
  const int32_t n = amla_seqlen(p, t, sequence);
  if (n < 0 || n > p->sk)
    INVALID("%sseqlens_k[%d]=%d: must be in [0, %ssk=%d]", prefix, sequence, n, prefix, p->sk);
  if (p->page_size == 0)
    return AMLA_OK;
  const int32_t used = count_pages(p, n);
  if (t->kv_indptr && t->kv_indptr[sequence + 1] - t->kv_indptr[sequence] < used)
    INVALID("kv_indptr[%d]=%d: must be >= kv_indptr[%d] + %d, to hold %d tokens in pages of %d",
            sequence + 1, t->kv_indptr[sequence + 1], sequence, used, n, p->page_size);
  if (!range)
    return AMLA_OK;
  const int32_t begin = range->begin ? range->begin[sequence] : 0;
  const int32_t end = range->end && range->end[sequence] < n ? range->end[sequence] : n;
  if (begin >= end)
    return AMLA_OK;
  return check_page_ids(prefix, p, t, sequence, begin / p->page_size, count_pages(p, end), detail);
}

static amla_status check_visible(const char *prefix, const amla_problem *p, const amla_tensors *t,
                                 int32_t sequence, int32_t query, amla_detail *detail) {
  if (!t->visible_k)
    return AMLA_OK;
  const int32_t length = amla_seqlen(p, t, sequence), n = amla_visible(p, t, sequence, query);
  if (n < 0 || n > length)
    INVALID("%svisible_k%s=%d: must be in [0, %d], the length of sequence %d", prefix,
            name_query(p, t, sequence, query).text, n, length, sequence);
  return AMLA_OK;
}

/* ---- Lists ---- */

/* Is any of them beyond `last`? Without an early end, for vectors. */
static int any_beyond(const int32_t *entries, int32_t n, int32_t last) {
  int32_t beyond = 0;
  for (int32_t i = 0; i < n; i++)
    beyond |= entries[i] > last;
  return beyond;
}

static amla_status check_entries(const char *prefix, const amla_problem *p, const amla_tensors *t,
                                 int32_t sequence, int32_t query, int32_t n, amla_detail *detail) {
  const int slots = amla_has_slots(p);
  const int64_t pages = p->page_size > 0 ? p->n_pages : p->b;
  if (slots && pages > INT32_MAX)
    return AMLA_OK; /* every entry is one */
  const int64_t tokens = slots ? pages * amla_page_tokens(p) : amla_seqlen(p, t, sequence);
  const int32_t *entries = amla_list(p, t, sequence, query);
  if (tokens > INT32_MAX || !any_beyond(entries, n, (int32_t)tokens - 1))
    return AMLA_OK;
  int32_t i = 0;
  while (entries[i] < 0 || entries[i] < tokens)
    i++;
  const query_name at = name_query(p, t, sequence, query);
  if (slots)
    INVALID("%sindices%s[%d]=%d: the cache has %lld slots", prefix, at.text, i, entries[i],
            (long long)tokens);
  INVALID("%sindices%s[%d]=%d: sequence %d has %lld tokens", prefix, at.text, i, entries[i],
          sequence, (long long)tokens);
}

static amla_status check_list(const char *prefix, const amla_problem *p, const amla_tensors *t,
                              int32_t sequence, int32_t query, amla_detail *detail) {
  const int32_t n = amla_list_length(p, t, sequence, query);
  char at[32];
  snprintf(at, sizeof at, "[%d]", sequence);
  if (n < 0 || n > p->topk)
    INVALID("%stopk_length%s=%d: must be in [0, %stopk=%d]", prefix,
            p->topk_length_per_query ? name_query(p, t, sequence, query).text : at, n, prefix,
            p->topk);
  return check_entries(prefix, p, t, sequence, query, n, detail);
}

static amla_status check_sequence(const char *prefix, const amla_problem *p, const amla_tensors *t,
                                  const amla_key_range *range, const amla_row_range *rows,
                                  int32_t sequence, amla_detail *detail) {
  if (!amla_has_slots(p))
    TRY(check_length(prefix, p, t, range, sequence, detail));
  for (int32_t query = 0; query < amla_query_count(p, t, sequence); query++) {
    TRY(check_visible(prefix, p, t, sequence, query, detail));
    if (p->topk > 0 && amla_has_rows(p, t, sequence, query, 1, rows))
      TRY(check_list(prefix, p, t, sequence, query, detail));
  }
  return AMLA_OK;
}

static amla_status check_scope(const char *prefix, const amla_problem *p, const amla_tensors *t,
                               const amla_key_range *range, const amla_row_range *rows,
                               amla_detail *detail) {
  for (int32_t i = 0; i < p->b; i++)
    if (amla_has_rows(p, t, i, 0, amla_query_count(p, t, i), rows))
      TRY(check_sequence(prefix, p, t, range, rows, i, detail));
  return AMLA_OK;
}

amla_status amla_keys_check(const amla_problem *p, const amla_tensors *t,
                            const amla_key_range *used, const amla_row_range *rows,
                            amla_detail *detail) {
  TRY(check_scope("", p, t, used, rows, detail));
  if (!amla_has_second_scope(p))
    return AMLA_OK;
  const amla_problem second = amla_second_problem(p);
  const amla_tensors tensors = amla_second_tensors(t);
  return check_scope("extra_", &second, &tensors, used ? used + 1 : NULL, rows, detail);
}
