/* SPDX-License-Identifier: Apache-2.0
 *
 * Shards: what amla_shard_query, amla_shard_run and amla_shard_finish refuse. The work is the
 * backend's (backend.h).
 */
#include "checks.h"
#include "key_check.h"
#include "keys.h"
#include "plan.h"
#include "problem.h"

static amla_status check_paged(const char *prefix, const amla_problem *p, amla_detail *detail) {
  if (amla_has_slots(p))
    UNSUPPORTED("index_kind=slot: shards need lists of positions, %stopk=%d", prefix, p->topk);
  if (p->page_size == 0 && p->sk > 0)
    INVALID("%spage_size=0: must be >= 1 for shards", prefix);
  return AMLA_OK;
}

static amla_status check_plan(const amla_plan *plan, amla_detail *detail) {
  if (!plan)
    INVALID("plan=NULL: must be a plan");
  if (!plan->backend->shards)
    UNSUPPORTED("backend=%s: shards are of cpu", plan->backend->name);
  if (plan->options.split_tokens < 1)
    INVALID("split_tokens=%d: must be >= 1 for shards", plan->options.split_tokens);
  TRY(check_paged("", &plan->problem, detail));
  const amla_problem second = amla_second_problem(&plan->problem);
  return amla_has_second_scope(&plan->problem) ? check_paged("extra_", &second, detail) : AMLA_OK;
}

/* ---- Ranges ---- */

static amla_status check_bound(const char *name, const int32_t *at, int32_t i, int32_t length,
                               int64_t tokens, amla_detail *detail) {
  if (at[i] < 0)
    INVALID("%s[%d]=%d: must be >= 0", name, i, at[i]);
  if (at[i] < length && at[i] % tokens != 0)
    INVALID("%s[%d]=%d: must be a multiple of split_tokens=%lld, or >= %d, the sequence's length",
            name, i, at[i], (long long)tokens, length);
  return AMLA_OK;
}

/* The shard's part of one scope. Lengths have been checked. */
static amla_status check_range_of(const char *const names[2], const amla_problem *p,
                                  const amla_tensors *t, const amla_row_range *rows,
                                  amla_key_range range, int64_t tokens, amla_detail *detail) {
  for (int32_t i = 0; i < p->b; i++) {
    const int32_t length = amla_seqlen(p, t, i);
    if (!amla_has_rows(p, t, i, 0, amla_query_count(p, t, i), rows))
      continue;
    TRY(check_bound(names[0], range.begin, i, length, tokens, detail));
    TRY(check_bound(names[1], range.end, i, length, tokens, detail));
  }
  return AMLA_OK;
}

static const char *const range_names[2][2] = {{"begin", "end"}, {"extra_begin", "extra_end"}};

/* A shard's arrays of bounds. */
typedef struct bounds {
  extent at[4];
  int n;
} bounds;

static bounds bounds_of(const amla_problem *p, const amla_shard *s) {
  const int64_t bytes = (int64_t)p->b * 4;
  return (bounds){{{"begin", s->begin, s->begin_bytes, bytes, 4},
                   {"end", s->end, s->end_bytes, bytes, 4},
                   {"extra_begin", s->extra_begin, s->extra_begin_bytes, bytes, 4},
                   {"extra_end", s->extra_end, s->extra_end_bytes, bytes, 4}},
                  amla_has_second_scope(p) ? 4 : 2};
}

static amla_status check_bounds(const amla_plan *plan, const amla_shard *s, amla_detail *detail) {
  const bounds all = bounds_of(&plan->problem, s);
  if (all.n == 2 && (s->extra_begin || s->extra_end))
    INVALID("extra_begin=%p, extra_end=%p: must be NULL without a second scope",
            (const void *)s->extra_begin, (const void *)s->extra_end);
  for (int i = 0; i < all.n; i++)
    TRY(check_buffer(&all.at[i], detail));
  return AMLA_OK;
}

static amla_status check_ranges(const amla_plan *plan, const amla_scopes *scopes,
                                const amla_row_range *rows, const amla_shard *s,
                                amla_detail *detail) {
  const amla_key_range ranges[2] = {{s->begin, s->end}, {s->extra_begin, s->extra_end}};
  const int64_t tokens = plan->backend->shards->split_tokens(plan);
  for (int i = 0; i < scopes->n; i++)
    TRY(check_range_of(range_names[i], &scopes->problem[i], &scopes->tensors[i], rows, ranges[i],
                       tokens, detail));
  return AMLA_OK;
}

/* A split of a list ends before the first entry beyond it, so that others' keys might be in it. */
static amla_status check_ascent(const char *prefix, const amla_problem *p, const amla_tensors *t,
                                int32_t sequence, int32_t query, int64_t tokens,
                                amla_detail *detail) {
  const int32_t *entries = amla_list(p, t, sequence, query);
  int64_t begin = 0; /* of the split of the entry before */
  for (int32_t i = 0, n = amla_list_length(p, t, sequence, query); i < n; i++) {
    if (entries[i] >= 0 && entries[i] < begin)
      INVALID("%sindices of query %lld: entry %d, %d, is in a split before that of an entry before "
              "it; shards need lists that ascend",
              prefix, (long long)amla_query_index(p, t, sequence, query), i, entries[i]);
    if (entries[i] >= begin + tokens)
      begin = entries[i] / tokens * tokens;
  }
  return AMLA_OK;
}

static amla_status check_lists(const amla_scopes *scopes, const amla_row_range *rows,
                               int64_t tokens, amla_detail *detail) {
  for (int i = 0; i < scopes->n; i++) {
    const amla_problem *p = &scopes->problem[i];
    const amla_tensors *t = &scopes->tensors[i];
    for (int32_t sequence = 0; p->topk > 0 && sequence < p->b; sequence++)
      for (int32_t q = 0; q < amla_query_count(p, t, sequence); q++)
        if (amla_has_rows(p, t, sequence, q, 1, rows))
          TRY(check_ascent(i ? "extra_" : "", p, t, sequence, q, tokens, detail));
  }
  return AMLA_OK;
}

/* ---- Rows ---- */

enum { ROW_GRAIN = 32 }; /* a wide panel: rows of a block are computed in such groups */

/* May a run of rows begin or end at this one? Panels are counted from `unit` rows each. */
static amla_status check_row(const char *name, int64_t row, int64_t all, int64_t from, int64_t unit,
                             amla_detail *detail) {
  TRY(check_range(name, row, 0, all, detail));
  if ((row - from) % unit % ROW_GRAIN != 0 && row != all)
    INVALID("%s=%lld: must be a multiple of %d rows from the first row of its sequence or query",
            name, (long long)row, ROW_GRAIN);
  return AMLA_OK;
}

/* First row of the sequence that a row is of. */
static int64_t first_row(const amla_problem *p, const amla_tensors *t, int64_t row) {
  int32_t i = 0;
  if (p->b == 0)
    return 0;
  while (i + 1 < p->b && amla_query_index(p, t, i + 1, 0) * p->h_q <= row)
    i++;
  return amla_query_index(p, t, i, 0) * p->h_q;
}

static int64_t count_rows(const amla_problem *p, const amla_tensors *t) {
  return amla_query_index(p, t, p->b, 0) * p->h_q;
}

static amla_status fill_rows(const amla_plan *plan, const amla_tensors *t, amla_shard *s,
                             amla_detail *detail) {
  const amla_problem *p = &plan->problem;
  const int64_t all = count_rows(p, t);
  const int64_t unit = amla_has_lines(p) ? p->h_q : all + 1;
  if (s->row_begin == 0 && s->row_end == 0)
    s->row_end = all;
  if (s->row_begin > s->row_end)
    INVALID("row_begin=%lld: must be <= row_end=%lld", (long long)s->row_begin,
            (long long)s->row_end);
  const int64_t from[2] = {first_row(p, t, s->row_begin), first_row(p, t, s->row_end)};
  TRY(check_row("row_begin", s->row_begin, all, from[0], unit, detail));
  return check_row("row_end", s->row_end, all, from[1], unit, detail);
}

static amla_status fill_heads(const amla_plan *plan, amla_shard *s, amla_detail *detail) {
  const int32_t h_q = plan->problem.h_q;
  if (s->head_begin == 0 && s->head_end == 0)
    s->head_end = h_q;
  TRY(check_range("head_begin", s->head_begin, 0, h_q, detail));
  return check_range("head_end", s->head_end, s->head_begin, h_q, detail);
}

/* Runs of few rows each look at what those need. NULL: all rows. */
static const amla_row_range *rows_of(const amla_problem *p, const amla_tensors *t,
                                     const amla_shard *s, amla_row_range *rows) {
  *rows = (amla_row_range){s->row_begin, s->row_end};
  return s->row_begin == 0 && s->row_end == count_rows(p, t) ? NULL : rows;
}

static extent records_of(const amla_shard *s, int64_t rows, int32_t floats) {
  int64_t bytes;
  if (__builtin_mul_overflow(rows * floats * 4, (int64_t)s->n_entries, &bytes))
    bytes = -1;
  return (extent){"records", s->records, s->records_bytes, bytes, 4};
}

/* What a run writes lies apart from all that it reads. */
static amla_status check_own_records(const amla_plan *plan, const amla_tensors *t,
                                     const amla_shard *s, const amla_shard_info *info,
                                     amla_detail *detail) {
  const extent records = records_of(s, info->n_rows, info->record_floats);
  const bounds all = bounds_of(&plan->problem, s);
  TRY(check_buffer(&records, detail));
  for (int i = 0; i < all.n; i++)
    TRY(check_overlap(&records, &all.at[i], detail));
  return amla_tensors_check_apart(AMLA_USE_SHARD, &plan->problem, t, &records, 1, detail);
}

static amla_status check_scratch(const amla_plan *plan, const void *scratch, size_t bytes,
                                 amla_detail *detail) {
  const size_t needed = plan->backend->shards->scratch_bytes(plan);
  if (bytes < needed)
    INVALID("scratch_bytes=%zu: must be >= %zu", bytes, needed);
  if (!scratch)
    INVALID("scratch=NULL: must point to %zu bytes", needed);
  return AMLA_OK;
}

/* ---- Run ---- */

/* Everything but records and scratch; the shard's copy gets its rows and heads, info is filled. */
static amla_status measure(const amla_plan *plan, const amla_tensors *tensors,
                           const amla_shard *shard, amla_shard *s, amla_tensors *t,
                           amla_shard_info *info, amla_detail *detail) {
  TRY(check_plan(plan, detail));
  TRY(copy_struct("shard", shard, s, sizeof *s, sizeof *s, detail));
  TRY(check_bounds(plan, s, detail));
  const amla_key_range used[2] = {{s->begin, s->end}, {s->extra_begin, s->extra_end}};
  for (int32_t i = 0; i < plan->problem.b; i++) /* the check of pages counts on it */
    for (int scope = 0; scope < (s->extra_begin ? 2 : 1); scope++)
      if (used[scope].begin[i] < 0)
        INVALID("%s[%d]=%d: must be >= 0", range_names[scope][0], i, used[scope].begin[i]);
  TRY(amla_tensors_check_for(AMLA_USE_SHARD, &plan->problem, tensors, t, detail));
  s->head_begin = s->head_end = 0;
  TRY(fill_heads(plan, s, detail));
  TRY(fill_rows(plan, t, s, detail));
  amla_row_range some;
  const amla_row_range *rows = rows_of(&plan->problem, t, s, &some);
  TRY(amla_keys_check(&plan->problem, t, used, rows, detail));
  amla_scopes scopes = amla_scopes_create(&plan->problem, t);
  scopes.shard = s;
  TRY(check_ranges(plan, &scopes, rows, s, detail));
  TRY(check_lists(&scopes, rows, plan->backend->shards->split_tokens(plan), detail));
  plan->backend->shards->measure(plan, &scopes, info);
  info->n_rows = s->row_end - s->row_begin;
  info->records_bytes =
      (size_t)info->n_rows * (size_t)info->n_entries * (size_t)info->record_floats * sizeof(float);
  s->n_entries = info->n_entries;
  return AMLA_OK;
}

size_t amla_shard_scratch_bytes(const amla_plan *plan) {
  return check_plan(plan, NULL) == AMLA_OK ? plan->backend->shards->scratch_bytes(plan) : 0;
}

amla_status amla_shard_query(const amla_plan *plan, const amla_tensors *tensors,
                             const amla_shard *shard, amla_shard_info *info, amla_detail *detail) {
  amla_shard s;
  amla_tensors t;
  amla_shard_info full = AMLA_SHARD_INFO_INIT;
  if (!info)
    INVALID("info=NULL: must point to a struct");
  if (info->struct_bytes < sizeof full)
    INVALID("info.struct_bytes=%u: must be >= %zu, use its INIT macro", info->struct_bytes,
            sizeof full);
  TRY(measure(plan, tensors, shard, &s, &t, &full, detail));
  full.struct_bytes = info->struct_bytes;
  memcpy(info, &full, sizeof full);
  return amla_accept(detail);
}

amla_status amla_shard_run(const amla_plan *plan, const amla_tensors *tensors,
                           const amla_shard *shard, void *scratch, size_t scratch_bytes,
                           amla_detail *detail) {
  amla_shard s;
  amla_tensors t;
  amla_shard_info info = AMLA_SHARD_INFO_INIT;
  TRY(measure(plan, tensors, shard, &s, &t, &info, detail));
  if (plan->problem.b > 0)
    TRY(check_own_records(plan, &t, &s, &info, detail));
  TRY(check_scratch(plan, scratch, scratch_bytes, detail));
  amla_scopes scopes = amla_scopes_create(&plan->problem, &t);
  scopes.shard = &s;
  if (plan->problem.b > 0)
    TRY(plan->backend->shards->run(plan, &scopes, scratch, detail));
  return amla_accept(detail);
}

/* ---- Finish ---- */

/* Shards follow one another and cover the sequence. */
static amla_status check_cover(int scope, const amla_problem *p, const amla_tensors *t,
                               const amla_row_range *rows, int32_t n_shards,
                               const amla_shard *shards, amla_detail *detail) {
  for (int32_t i = 0; i < p->b; i++) {
    const int32_t length = amla_seqlen(p, t, i);
    int32_t at = 0;
    if (!amla_has_rows(p, t, i, 0, amla_query_count(p, t, i), rows))
      continue;
    for (int32_t k = 0; k < n_shards; k++) {
      const amla_shard *s = amla_shard_at(shards, k);
      const int32_t begin = (scope ? s->extra_begin : s->begin)[i];
      const int32_t end = (scope ? s->extra_end : s->end)[i];
      const int32_t stop = end < length ? end : length;
      if (begin >= stop)
        continue;
      if (begin != at)
        INVALID("shards[%d].%s[%d]=%d: must be %d, where the shards before it end", k,
                range_names[scope][0], i, begin, at);
      at = stop;
    }
    if (at != length)
      INVALID("shards: those of sequence %d have %s=%d at last, must reach its length %d", i,
              range_names[scope][1], at, length);
  }
  return AMLA_OK;
}

/* What a finish reads of a shard lies apart from what it writes. */
static amla_status check_read(const amla_plan *plan, const amla_tensors *t, const amla_shard *s,
                              const extent *records, amla_detail *detail) {
  const bounds all = bounds_of(&plan->problem, s);
  TRY(check_buffer(records, detail));
  if (plan->problem.b == 0)
    return AMLA_OK;
  TRY(amla_tensors_check_apart(AMLA_USE_RECORDS, &plan->problem, t, records, 1, detail));
  return amla_tensors_check_apart(AMLA_USE_RECORDS, &plan->problem, t, all.at, all.n, detail);
}

/* `rows` has the rows and heads, `some` the rows unless they are all. */
static amla_status check_one(const amla_plan *plan, const amla_scopes *scopes,
                             const amla_shard *rows, const amla_row_range *some,
                             const amla_shard *shard, amla_detail *detail) {
  amla_shard s;
  amla_shard_info info = AMLA_SHARD_INFO_INIT;
  TRY(copy_struct("shards", shard, &s, sizeof s, sizeof s, detail));
  TRY(check_bounds(plan, &s, detail));
  TRY(check_ranges(plan, scopes, some, &s, detail));
  s.row_begin = rows->row_begin, s.row_end = rows->row_end;
  amla_scopes of_shard = *scopes;
  of_shard.shard = &s;
  plan->backend->shards->measure(plan, &of_shard, &info);
  TRY(check_range("n_entries", s.n_entries, info.n_entries, INT32_MAX, detail));
  const int64_t n_rows = amla_rows_before(&plan->problem, rows, rows->row_end) -
                         amla_rows_before(&plan->problem, rows, rows->row_begin);
  const extent records = records_of(&s, n_rows, info.record_floats);
  return check_read(plan, scopes->tensors, &s, &records, detail);
}

static amla_status check_shards(const amla_plan *plan, const amla_scopes *scopes,
                                const amla_shard *rows, const amla_row_range *some,
                                int32_t n_shards, const amla_shard *shards, amla_detail *detail) {
  for (int32_t k = 0; k < n_shards; k++)
    TRY(check_one(plan, scopes, rows, some, amla_shard_at(shards, k), detail));
  for (int i = 0; i < scopes->n; i++)
    TRY(check_cover(i, &scopes->problem[i], &scopes->tensors[i], some, n_shards, shards, detail));
  return AMLA_OK;
}

amla_status amla_shard_check_outputs(const amla_plan *plan, const amla_tensors *tensors,
                                     amla_detail *detail) {
  amla_tensors t;
  TRY(check_plan(plan, detail));
  TRY(amla_tensors_check_for(AMLA_USE_RECORDS, &plan->problem, tensors, &t, detail));
  TRY(amla_keys_check(&plan->problem, &t, NULL, NULL, detail));
  return amla_accept(detail);
}

amla_status amla_shard_finish(const amla_plan *plan, const amla_tensors *tensors, int32_t n_shards,
                              const amla_shard *shards, void *scratch, size_t scratch_bytes,
                              amla_detail *detail) {
  amla_tensors t;
  amla_shard rows;
  TRY(check_plan(plan, detail));
  TRY(check_range("n_shards", n_shards, 1, AMLA_MAX_SHARDS, detail));
  TRY(copy_struct("shards", shards, &rows, sizeof rows, sizeof rows, detail));
  TRY(amla_tensors_check_for(AMLA_USE_RECORDS, &plan->problem, tensors, &t, detail));
  t.mask = NULL; /* it moves no split */
  TRY(fill_heads(plan, &rows, detail));
  TRY(fill_rows(plan, &t, &rows, detail));
  amla_row_range range;
  const amla_row_range *some = rows_of(&plan->problem, &t, &rows, &range);
  TRY(amla_keys_check(&plan->problem, &t, NULL, some, detail));
  amla_scopes scopes = amla_scopes_create(&plan->problem, &t);
  TRY(check_lists(&scopes, some, plan->backend->shards->split_tokens(plan), detail));
  TRY(check_shards(plan, &scopes, &rows, some, n_shards, shards, detail));
  TRY(check_scratch(plan, scratch, scratch_bytes, detail));
  scopes.shard = &rows;
  if (plan->problem.b > 0)
    plan->backend->shards->finish(plan, &scopes, n_shards, shards, scratch);
  return amla_accept(detail);
}
