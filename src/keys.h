/* SPDX-License-Identifier: Apache-2.0
 *
 * Which keys a query sees, and in which order: one line of keys, first those of the first scope,
 * then those of the second. A dense scope gives the positions that are visible. A list gives its
 * valid entries, in their order: invalid ones are no keys, and neither are those that a mask hides
 * from all queries at hand. For problems and tensors that have been checked (problem.h).
 */
#ifndef AMLA_KEYS_H
#define AMLA_KEYS_H

#include "rows.h"

/* The caches of a run. The second scope is seen as the first one of a problem of its own. */
typedef struct amla_scopes {
  int32_t n; /* 1 or 2 */
  amla_problem problem[2];
  amla_tensors tensors[2];
  const amla_shard *shard; /* which keys and rows; NULL: all */
} amla_scopes;

static inline int amla_has_second_scope(const amla_problem *p) {
  return p->extra_sk > 0 || p->extra_topk > 0;
}

/* Of an array of structs of the caller's size. */
static inline const amla_shard *amla_shard_at(const amla_shard *shards, int32_t i) {
  return (const amla_shard *)(const void *)((const char *)shards +
                                            (size_t)i * shards->struct_bytes);
}

/* Rows before this one in the order [b][s_q][h_q], of which only the shard's heads count. */
static inline int64_t amla_rows_before(const amla_problem *p, const amla_shard *s, int64_t row) {
  const int64_t heads = s->head_end - s->head_begin, into = row % p->h_q - s->head_begin;
  const int64_t of_query = into < heads ? into : heads;
  return row / p->h_q * heads + (of_query > 0 ? of_query : 0);
}

amla_problem amla_second_problem(const amla_problem *p);
amla_tensors amla_second_tensors(const amla_tensors *t);
amla_scopes amla_scopes_create(const amla_problem *p, const amla_tensors *t);

/* Do the keys of a query depend on more than a length? Each query then has a line of its own, all
 * of which it sees. Otherwise a sequence has one, of which its queries see the beginning. */
static inline int amla_has_lines(const amla_problem *p) {
  return p->topk > 0 || p->window > 0 || amla_has_second_scope(p);
}

/* Most keys of a line. */
int32_t amla_longest_line(const amla_problem *p);

/* One scope's part of a line. */
typedef struct amla_segment {
  const amla_problem *problem;
  const amla_tensors *tensors;
  const int32_t *entries;          /* its list; NULL: dense */
  int32_t first;                   /* dense: position of its first key */
  int32_t begin, end;              /* keys of the line, half-open */
  int32_t gaps;                    /* between the list's valid entries are invalid ones */
  int32_t first_query, last_query; /* masked: a key is what one of these sees */
} amla_segment;

typedef struct amla_line {
  int32_t sequence, n; /* n keys */
  int32_t seen;        /* those that some query sees are the first ones */
  int32_t masked;      /* of the others some lay in between */
  amla_segment segments[2];
} amla_line;

/* `scopes` must outlive the line. */
amla_line amla_line_create(const amla_scopes *scopes, int32_t sequence, int32_t query);

/* The common line of queries [first, last], where queries have no lines of their own. */
amla_line amla_line_of_queries(const amla_scopes *scopes, int32_t sequence, int32_t first,
                               int32_t last);

/* Where a list or a mask was last read: the entry, or position, of a key. */
typedef struct amla_cursor {
  int32_t key, entry;
  uint64_t bits; /* masked: of the 64 positions around it those behind it that are keys */
} amla_cursor;

#define AMLA_CURSOR_INIT {-1, -1, 0}

/* Where keys [begin, begin + n) of the line lie: refs [n]. Cheap where the cursor's key is a little
 * before `begin`, or lists have no gaps. */
void amla_line_locate(const amla_line *line, int32_t begin, int32_t n, amla_cursor *cursor,
                      amla_token_ref *refs);

/* How many of the positions [begin, end) of a masked line are keys. */
int32_t amla_line_count(const amla_line *line, int64_t begin, int64_t end);

/* The positions of keys [begin, begin + n) of a masked line, rising; the cursor as above. */
void amla_line_positions(const amla_line *line, int32_t begin, int32_t n, amla_cursor *cursor,
                         int32_t *positions);

/* Where the keys at n of its positions lie: refs [n]. */
void amla_line_locate_at(const amla_line *line, int32_t n, const int32_t *positions,
                         amla_token_ref *refs);

#endif
