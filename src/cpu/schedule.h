/* SPDX-License-Identifier: Apache-2.0
 *
 * How work is cut: pure arithmetic, no data but lengths and lists. A sequence's rows (query-major:
 * row = query * h_q + head) form blocks, of one query each where queries have lines of keys of
 * their own; a (sequence, block) is a group; a group's keys form splits; splits merge in a fixed
 * binary tree. Where the cuts lie depends on the problem and the sequence's own length only, so the
 * bits of a result depend on nothing else. Free are how many rows form a block (rows do not mix:
 * 128, or fewer when there are more threads than splits) and which thread computes which split:
 * equal shares of cost over the line of all splits.
 */
#ifndef AMLA_SCHEDULE_H
#define AMLA_SCHEDULE_H

#include "../keys.h"

/* Q^T, O, P and two KV tiles of 128 rows x 576 take 1.06 MB. */
enum { AMLA_MAX_BLOCK_ROWS = 128 };

typedef struct amla_schedule {
  int32_t lines;      /* 1: queries have lines of their own, and blocks are of one query */
  int32_t rows;       /* that blocks are cut from: h_q with lines, else s_q * h_q */
  int32_t block_rows; /* rows per block; the last block may have fewer */
  int32_t n_blocks;   /* of those rows; of a sequence with fewer queries there are fewer */
  int32_t tile_tokens;
  int32_t grain_tokens; /* splits begin at multiples of it */
  int32_t split_tiles;  /* least tiles of a split by length */
  int64_t split_tokens; /* option: > 0 fixed, a multiple of tile_tokens; or AMLA_SPLIT_BY_LENGTH,
                           AMLA_SPLIT_AUTO */
  int64_t max_splits;   /* of a group, at most */
  int64_t max_leaves;   /* splits of all groups of a run, at most */
} amla_schedule;

typedef struct amla_group {
  int32_t sequence, row_begin, row_end; /* rows of the sequence, half-open */
  int32_t visible; /* no row sees a key from here on: its splits cover [0, visible) */
  int32_t length;  /* of its line of keys; with fixed splits those count that a mask hides */
  amla_line line;
  int32_t grain_tokens;
  int64_t split_tokens; /* of fixed splits, else 0 */
  int64_t n_first;      /* fixed splits of the first scope; the second begins one of its own */
  int64_t n_cuts;       /* splits of the line: where they lie depends on its length alone */
  int64_t n_splits;     /* those that begin below visible; >= 1, also when visible is 0 */
  int64_t from, to;     /* the splits to be computed: all, but those of a shard */
  int32_t entry;        /* of a shard: records of its rows that come before those of these splits */
  double split_cost;    /* mean, in row-tokens */
} amla_group;

amla_schedule amla_schedule_create(const amla_problem *problem, const amla_options *options,
                                   int32_t tile_tokens, int32_t grain_tokens, int32_t split_tiles);

/* Most tokens per split of a line of that length: a multiple of tile_tokens. auto_tokens as below.
 */
int64_t amla_split_tokens(const amla_schedule *s, int32_t length, int64_t auto_tokens);

/* Those of a shard are twice as many where there are two scopes: a shard has a run of splits of
 * either. Those without rows or splits of the shard have from = to. */
int32_t amla_group_count(const amla_schedule *s, const amla_scopes *scopes, int32_t sequence);

/* Group `block` of `sequence`. auto_tokens is used when the option is AMLA_SPLIT_AUTO. */
amla_group amla_group_get(const amla_schedule *s, const amla_scopes *scopes, int32_t sequence,
                          int32_t block, int64_t auto_tokens);

/* First key of split i. Splits are as equal as can be, so that equal numbers of them are equal
 * work; fixed ones begin at multiples of split_tokens, which a growing sequence does not move. */
int32_t amla_split_begin(const amla_group *g, int64_t i);

/* End of split i, which begins at key `begin`: cheap where a mask is to be counted. */
int32_t amla_split_end(const amla_group *g, int64_t i, int32_t begin);

/* Split length for AMLA_SPLIT_AUTO: an equal share of all tokens per thread. Not batch-invariant.
 */
int64_t amla_auto_split_tokens(const amla_schedule *s, const amla_scopes *scopes, int32_t threads);

/* Sum of the costs of all groups. */
double amla_total_cost(const amla_schedule *s, const amla_scopes *scopes, int64_t auto_tokens);

/* Splits [from, result) of the group lie before `share` on the line of all splits, where the group
 * starts at `start`. */
int64_t amla_splits_before(const amla_group *g, double start, double share);

/* Most partial results that are held at a time by shares of so many splits in all, however these
 * are shared out. `ends` of the shares lie within trees: 2 of each, but 1 if there is one share;
 * twice as many in a shard, whose groups begin and end within trees themselves. */
int64_t amla_count_slots(const amla_schedule *s, int64_t splits, int64_t ends);

/* Merge tree over n leaves: the left child of a node of n leaves has amla_tree_left(n), the largest
 * power of two below n. */
int64_t amla_tree_left(int64_t n);

/* ---- Shards ---- */

/* The group of one row of a query, counted in its sequence. */
amla_group amla_row_group(const amla_schedule *s, const amla_scopes *scopes, int32_t sequence,
                          int32_t row);

/* Leaves to the group the shard's splits of one of its scopes, 0 or 1. */
void amla_group_take(amla_group *g, const amla_shard *shard, int32_t scope);

/* Records that a shard has of each of the group's rows. */
int32_t amla_group_entries(amla_group g, const amla_shard *shard);

#endif
