/* SPDX-License-Identifier: Apache-2.0
 *
 * One split of one group: the unit of work of the CPU backend. decode.c has the loop; cpu_backend.c
 * shares out splits and merges partial results.
 */
#ifndef AMLA_CPU_DECODE_H
#define AMLA_CPU_DECODE_H

#include "../base/arena.h"
#include "../cancel.h"
#include "../plan.h"
#include "schedule.h"
#include "ukernels.h"

/* A narrow panel has at least 8 rows. */
enum { AMLA_MAX_PANELS = AMLA_MAX_BLOCK_ROWS / 8, AMLA_MAX_MERGES = 4 };

/* Keys listed at a time: a tile, and those of the next one that are fetched or converted ahead. */
enum {
  AMLA_MAX_AHEAD = 3 * AMLA_UKR_MAX_QK_TOKENS,
  AMLA_MAX_LISTED = AMLA_UKR_MAX_TILE_TOKENS + AMLA_MAX_AHEAD
};

/* Sizes of a worker's buffers, from the problem and the micro-kernels alone. */
typedef struct amla_layout {
  int32_t rows_padded; /* rows of a full block, padded to whole panels */
  int32_t n_col_tiles; /* d_v in tiles of pv_cols */
  int64_t ld; /* elements per token of the tile: d_qk and the column tiles fit, an odd number
                 of cache lines */
} amla_layout;

/* What the backend makes of a problem and options when a plan is created. */
typedef struct amla_cpu_plan {
  const amla_ukernels *ukernels;
  amla_schedule schedule;
  amla_layout layout;
  int64_t l2_bytes;    /* AMLA_L2_BYTES; 0: not given */
  amla_row_format row; /* of kv */
} amla_cpu_plan;

/* Rows of a block in panels of SIMD lanes. */
typedef struct amla_panel {
  const amla_ukr_panel *kernels;
  int32_t row; /* first row in the block */
  void *qt;    /* its Q^T; of a row with a loop of its own NULL */
} amla_panel;

/* A normalisable partial result over some keys: O, reference and sum of P per row.
 * O is tiled: o [n_col_tiles][rows_padded][pv_cols]. */
typedef struct amla_partial {
  float *o;
  float *ref, *l;   /* [rows_padded] */
  float *l_rounded; /* [rows_padded] sum of P as pv sees it, which O is divided by; l itself where P
                       is f32 */
  float *max;       /* [rows_padded] largest score, in log2 units; NULL unless asked for */
  int64_t first, n; /* leaves of the merge tree that it covers */
} amla_partial;

typedef struct amla_worker {
  const amla_plan *plan;
  const amla_cpu_plan *cpu;
  const amla_scopes *scopes;
  const amla_tensors *tensors; /* those of the first scope: q and results */
  atomic_int *ended;           /* the run's: it is cancelled */
  const fenv_t *threads_own;   /* floating-point environment, where cancel is asked */
  void *qt; /* panels of what their pack makes: scale * log2(e) * q, transposed, padding rows 0 */
  void *tiles[2]; /* [tile_tokens][ld] of tile_type: the key tile at hand, the same rows as K and V,
                     and the next one; one and the same unless panels work ahead */
  void *joined;   /* [AMLA_MAX_LISTED][d_qk] of kv_type or q_type: rows whose rope part lies apart,
                     made whole; NULL: there are none */
  float *s;       /* panels of [tile_tokens][panel rows]: scores, then weights of p_type */
  amla_partial *slots; /* as many as the share needs */
  void *own;           /* of a row with a loop of its own, which has none of the four above */

  /* The group at hand */
  amla_group group;
  amla_line line;
  amla_cursor cursor, mask_cursor;             /* at the last key of the last tile */
  int32_t positions[AMLA_UKR_MAX_TILE_TOKENS]; /* of the tile's keys, if the line is masked */
  amla_panel panels[AMLA_MAX_PANELS];
  int32_t n_panels;
  int32_t visible_end[AMLA_MAX_BLOCK_ROWS]; /* per row: it sees keys [0, visible_end); padding rows
                                               as the last one */
  int32_t n_pv_rows; /* rows rounded up to PV tiles; pv_end may take some padding rows more */
  int32_t staged;    /* tiles[0] has the first score tile's keys from this one on; -1: none */
} amla_worker;

/* A row's own loop, where decode.c's cannot say its schedule. The partial results are the same, and
 * so is what the functions below do to them. */
typedef struct amla_own_loop {
  /* The worker's `own` from the arena; NULL while it only counts. */
  void *(*carve)(const amla_plan *plan, const amla_cpu_plan *cpu, amla_arena *arena);
  void (*begin_group)(amla_worker *w); /* with all but panels and Q^T ready */
  int (*accumulate)(amla_worker *w, int32_t begin, int32_t end, int32_t limit, amla_partial *acc,
                    int32_t n_merges, int whole);
} amla_own_loop;

amla_layout amla_layout_create(const amla_problem *p, const amla_ukernels *u, int32_t block_rows);

/* Builds panels and Q^T for a group. */
void amla_worker_begin_group(amla_worker *w, const amla_group *group);

/* Is the run to end? Asked before each key tile. */
static inline int amla_worker_ends(const amla_worker *w) {
  return amla_is_cancelled(&w->plan->options, w->ended, w->threads_own);
}

/* Starts `acc` from nothing and accumulates keys [begin, end) of the group into it. Keys up to
 * `limit` will be asked for next. Then merges it into the n_merges <= AMLA_MAX_MERGES partial
 * results before it: acc[-1] += acc[0], acc[-2] += acc[-1], ... If `whole`, the last of these is
 * the group's result, and is written. Returns 0 if the run is to end: they then hold anything. */
int amla_worker_accumulate(amla_worker *w, int32_t begin, int32_t end, int32_t limit,
                           amla_partial *acc, int32_t n_merges, int whole);

/* a += b for rows [row_begin, row_end) of the block: brings both to the larger reference and adds.
 */
void amla_partial_merge(const amla_worker *w, amla_partial *a, const amla_partial *b,
                        int32_t row_begin, int32_t row_end);

/* Writes rows [row_begin, row_end) of the group's result. */
void amla_partial_store(const amla_worker *w, const amla_group *group, const amla_partial *a,
                        int32_t row_begin, int32_t row_end);

/* ---- Steps that loops of rows with a schedule of their own share with decode.c ---- */

/* A row of kv or q, made whole in place i of `joined` if its rope part lies apart. */
const void *amla_whole_kv_row(const amla_worker *w, amla_token_ref from, int32_t i);
const void *amla_whole_q_row(const amla_worker *w, int32_t query, int32_t head, int32_t i);

/* The largest scores of rows [row, row + n), if they are asked for. */
void amla_raise_max(amla_partial *acc, int32_t row, int32_t n, const float *max);

/* Keys that stand beside each other: from `begin` of the line on, or at these positions. */
typedef struct amla_run {
  int32_t begin, n;
  const int32_t *positions; /* [n], rising; NULL: the line is not masked */
} amla_run;

/* How many of them each row of the panel sees but for the mask: the first ones. */
void amla_visible_keys(const amla_worker *w, const amla_panel *panel, amla_run keys,
                       int32_t *visible);

/* What the mask has of them for a query: [n]; in place, or in `room`. */
const uint16_t *amla_mask_of(const amla_worker *w, int32_t query, amla_run keys, uint16_t *room);

/* The score of a key that the mask hides: below the domain, so that P = 0 whatever the reference.
 */
static const float amla_hidden_score = -0x1.fffffep127f; /* -FLT_MAX */

/* Rows whose maximum is that of hidden keys have it no more. */
void amla_forgive(const amla_worker *w, const amla_panel *panel, amla_run keys,
                  const int32_t *visible, float *s, float *max);

/* What the group's P, and so its O, is multiplied by beside what the mode asks for. */
float amla_headroom_factor(const amla_worker *w, const amla_group *group);

/* What a merge a += b multiplies the rows of either side's O by. */
typedef struct amla_merge_step {
  float *a;
  float of_a[AMLA_MAX_BLOCK_ROWS], of_b[AMLA_MAX_BLOCK_ROWS];
} amla_merge_step;

/* Brings references and sums of rows [row_begin, row_end) of a to those of a + b. */
amla_merge_step amla_merge_sums(const amla_worker *w, amla_partial *a, const amla_partial *b,
                                int32_t row_begin, int32_t row_end);

/* Ends rows [row_begin, row_end) of the group, whose result is a. */
void amla_end_rows(const amla_worker *w, const amla_group *group, const amla_partial *a,
                   int32_t row_begin, int32_t row_end, amla_row_end *ends);

/* The first `rows` rows of an output tile, in column tile c, as `type`. */
void amla_store_tile(const amla_worker *w, amla_dtype type, const float *o, int32_t rows, int32_t c,
                     const amla_row_end *ends);

/* No row saw any key. */
void amla_end_empty(const amla_worker *w, amla_partial *acc, int32_t n_merges, int whole);

#endif
