/* SPDX-License-Identifier: Apache-2.0
 *
 * Which keys a query sees, in which order, and where they lie: of lists, windows, two scopes and
 * ragged queries, as amla.h says. Written apart from src on purpose.
 */
#ifndef AMLA_HARNESS_SCOPES_H
#define AMLA_HARNESS_SCOPES_H

#include <amla/amla.h>
#include <stdbool.h>

/* The second scope, seen as the first one of a problem of its own. */
bool harness_has_second_scope(const amla_problem *problem);
amla_problem harness_second_problem(const amla_problem *problem);
amla_tensors harness_second_tensors(const amla_tensors *tensors);

/* The rope parts of kv, where they lie apart, as the rows of a cache of their own. */
amla_problem harness_rope_problem(const amla_problem *problem);

/* Has every query keys of its own? Otherwise the queries of a sequence see the beginning of the
 * same keys. */
bool harness_has_lines(const amla_problem *problem);

/* Are the entries of the first scope's lists places in the cache? */
bool harness_has_slots(const amla_problem *problem);

/* Most keys that a query can see. */
int64_t harness_most_keys(const amla_problem *problem);

/* How often a list names a key of its scope, on average and in the scope that has more of it; 1 at
 * least. */
int64_t harness_repeats(const amla_problem *problem);

/* Queries of a sequence, their place among all, and how many there are. */
int32_t harness_query_count(const amla_problem *problem, const amla_tensors *tensors,
                            int32_t sequence);
int64_t harness_query_index(const amla_problem *problem, const amla_tensors *tensors,
                            int32_t sequence, int32_t query);
int64_t harness_all_queries(const amla_problem *problem, const amla_tensors *tensors);

/* A query's sequence, and its place there. */
typedef struct harness_query {
  int32_t sequence, query;
} harness_query;
harness_query harness_query_at(const amla_problem *problem, const amla_tensors *tensors,
                               int64_t index);

typedef struct harness_key {
  int scope;           /* 0 or 1 */
  int64_t at, rope_at; /* element offsets of its row in kv and kv_rope */
} harness_key;

/* Keys of a query where there are lines, else of all queries of its sequence. keys
 * [harness_most_keys]; NULL: counted only. -1: a length, an entry or a used page id is out of
 * range. */
int64_t harness_list_keys(const amla_problem *problem, const amla_tensors *tensors,
                          harness_query query, harness_key *keys);

#endif
