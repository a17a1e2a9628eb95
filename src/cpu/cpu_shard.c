/* SPDX-License-Identifier: Apache-2.0
 *
 * See cpu_shard.h. The tree is that of cpu_backend.c, and so is what a merge does: a row is brought
 * into a block of one row, whose column tiles are contiguous.
 */
#include "cpu_shard.h"

#include <math.h>
#include <string.h>

#include "../base/arena.h"
#include "../float_environment.h"
#include "parallel.h"

/* ---- Records ---- */

static int has_rounded(const amla_plan *plan) {
  const amla_cpu_plan *cpu = plan->state;
  return cpu->ukernels->p_type != AMLA_F32;
}

/* O, reference and sum, and what the plan and max_logits add. */
static int32_t record_floats(const amla_plan *plan, const amla_tensors *tensors) {
  return plan->problem.d_v + 2 + has_rounded(plan) + (tensors->max_logits != NULL);
}

/* Record `entry` of a row, in the records of s. The scopes' shard says which rows and heads those
 * are of. */
static float *record_at(const amla_plan *plan, const amla_scopes *scopes, const amla_shard *s,
                        int64_t row, int32_t entry) {
  const amla_problem *p = &plan->problem;
  const amla_shard *rows = scopes->shard;
  const int64_t at = amla_rows_before(p, rows, row) - amla_rows_before(p, rows, rows->row_begin);
  return s->records + (at * s->n_entries + entry) * record_floats(plan, scopes->tensors);
}

static int64_t place_of_row(const amla_problem *p, const amla_tensors *t, int32_t sequence,
                            int32_t row) {
  return amla_query_index(p, t, sequence, 0) * p->h_q + row;
}

/* ---- What a shard leaves ---- */

typedef void visit_group(const amla_plan *plan, const amla_scopes *scopes, const amla_group *g,
                         void *argument);

static void for_each_group(const amla_plan *plan, const amla_scopes *scopes, visit_group *visit,
                           void *argument) {
  const amla_schedule *schedule = &((const amla_cpu_plan *)plan->state)->schedule;
  for (int32_t i = 0; i < plan->problem.b; i++)
    for (int32_t block = 0, n = amla_group_count(schedule, scopes, i); block < n; block++) {
      const amla_group g = amla_group_get(schedule, scopes, i, block, 0);
      if (g.row_begin < g.row_end)
        visit(plan, scopes, &g, argument);
    }
}

static void measure_group(const amla_plan *plan, const amla_scopes *scopes, const amla_group *g,
                          void *argument) {
  amla_shard_info *info = argument;
  const int32_t entries = amla_group_entries(*g, scopes->shard);
  const int64_t keys = amla_split_begin(g, g->to) - amla_split_begin(g, g->from);
  (void)plan;
  info->n_entries = entries > info->n_entries ? entries : info->n_entries;
  info->n_row_keys += keys * (g->row_end - g->row_begin);
}

void amla_shard_measure(const amla_plan *plan, const amla_scopes *scopes, amla_shard_info *info) {
  info->record_floats = record_floats(plan, scopes->tensors);
  for_each_group(plan, scopes, measure_group, info);
}

static void clear_group(const amla_plan *plan, const amla_scopes *scopes, const amla_group *g,
                        void *argument) {
  const amla_shard *s = scopes->shard;
  const amla_tensors *t = scopes->tensors;
  const int32_t d_v = plan->problem.d_v, floats = record_floats(plan, t);
  (void)argument;
  for (int32_t row = g->row_begin; row < g->row_end; row++)
    for (int32_t i = amla_group_entries(*g, s); i < s->n_entries; i++) {
      float *r = record_at(plan, scopes, s, place_of_row(&plan->problem, t, g->sequence, row), i);
      memset(r, 0, (size_t)floats * sizeof *r);
      r[d_v] = -INFINITY;
      if (t->max_logits)
        r[floats - 1] = -INFINITY;
    }
}

void amla_shard_clear(const amla_plan *plan, const amla_scopes *scopes) {
  for_each_group(plan, scopes, clear_group, NULL);
}

/* What follows O in a record. */
static void export_sums(const amla_partial *a, int32_t row, float *to) {
  *to++ = a->ref[row];
  *to++ = a->l[row];
  if (a->l_rounded != a->l)
    *to++ = a->l_rounded[row];
  if (a->max)
    *to++ = a->max[row];
}

void amla_shard_export(const amla_worker *w, const amla_group *g, const amla_partial *node,
                       int32_t entry, int32_t begin, int32_t end) {
  const amla_problem *p = &w->plan->problem;
  const int32_t step = w->cpu->ukernels->pv_rows, cols = w->cpu->ukernels->pv_cols;
  amla_row_end ends[AMLA_MAX_BLOCK_ROWS];
  for (int32_t r = begin; r < end; r++) {
    const int64_t row = place_of_row(p, w->tensors, g->sequence, g->row_begin + r);
    float *record = record_at(w->plan, w->scopes, w->scopes->shard, row, entry);
    ends[r] = (amla_row_end){record, 1.0f};
    export_sums(node, r, record + p->d_v);
  }
  for (int32_t r = begin; r < end; r += step)
    for (int32_t c = 0; c < w->cpu->layout.n_col_tiles; c++) {
      const float *o = node->o + ((int64_t)c * w->cpu->layout.rows_padded + r) * cols;
      const int32_t rows = end - r < step ? end - r : step;
      amla_store_tile(w, AMLA_F32, o, rows, c, ends + r);
    }
}

/* ---- Finishing ---- */

enum { MAX_LEVELS = 34 }; /* of a tree over 2^32 leaves, and one node to be added */

/* A thread's rows, one at a time. */
typedef struct finisher {
  amla_worker w;
  amla_cpu_plan one_row; /* the plan, for blocks of one row */
  int32_t n_shards;
  const amla_shard *shards;
  amla_partial nodes[MAX_LEVELS];
  float sums[MAX_LEVELS][4];
  float *places; /* [d_v] of a column in the plan's rows of O */
  int64_t row;   /* in [b][s_q][h_q] */
  /* The run of splits that has the next node, and its record. */
  amla_group g;
  int32_t scope, shard, entry;
} finisher;

static int64_t padded_row(const amla_cpu_plan *cpu) {
  return (int64_t)cpu->layout.n_col_tiles * cpu->ukernels->pv_cols;
}

/* Into f unless it only counts. */
static void carve_finisher(const amla_plan *plan, amla_arena *arena, finisher *f) {
  for (int32_t i = 0; i < MAX_LEVELS; i++) {
    float *o = amla_arena_take(arena, padded_row(plan->state), sizeof *o);
    if (f)
      f->nodes[i].o = o;
  }
  float *places = amla_arena_take(arena, padded_row(plan->state), sizeof *places);
  if (f)
    f->places = places;
}

static size_t finisher_bytes(const amla_plan *plan) {
  amla_arena arena = amla_arena_create(NULL);
  amla_arena_take(&arena, 1, sizeof(finisher));
  carve_finisher(plan, &arena, NULL);
  return arena.used_bytes;
}

size_t amla_shard_finish_bytes(const amla_plan *plan) {
  return AMLA_ARENA_ALIGN + finisher_bytes(plan) * (size_t)plan->options.threads;
}

/* Rows of micro-kernels may have O's columns in an order of their own, which store undoes. What
 * store makes of places says where each column's is. */
static void find_places(finisher *f) {
  const int32_t cols = f->w.cpu->ukernels->pv_cols, n = f->w.cpu->layout.n_col_tiles;
  float *o = f->nodes[0].o;
  const amla_row_end end = {f->places, 1.0f};
  for (int32_t i = 0; i < n * cols; i++)
    o[i] = (float)i;
  for (int32_t c = 0; c < n; c++)
    amla_store_tile(&f->w, AMLA_F32, o + c * cols, 1, c, &end);
}

static void prepare_finisher(finisher *f, const amla_plan *plan, const amla_scopes *scopes) {
  f->one_row = *(const amla_cpu_plan *)plan->state;
  f->one_row.layout.rows_padded = 1;
  f->w =
      (amla_worker){.plan = plan, .cpu = &f->one_row, .scopes = scopes, .tensors = scopes->tensors};
  for (int32_t i = 0; i < MAX_LEVELS; i++) {
    float *sums = f->sums[i];
    amla_partial *node = &f->nodes[i];
    node->ref = &sums[0], node->l = node->l_rounded = &sums[1], node->max = NULL;
    if (has_rounded(plan))
      node->l_rounded = &sums[2];
    if (scopes->tensors->max_logits)
      node->max = &sums[3];
  }
  find_places(f);
  for (int32_t i = 0; i < MAX_LEVELS; i++) /* padding stays so */
    memset(f->nodes[i].o, 0, (size_t)padded_row(plan->state) * sizeof(float));
}

/* The run of splits of the scope and shard at hand. */
static void take(finisher *f) {
  for (int32_t scope = 0; scope <= f->scope; scope++)
    amla_group_take(&f->g, amla_shard_at(f->shards, f->shard), scope);
  f->entry = f->g.entry;
}

/* From the run at hand to the one that has a leaf. Runs follow one another: those of the first
 * scope over the shards, then those of the second. */
static void seek_leaf(finisher *f, int64_t leaf) {
  while (leaf >= f->g.to) {
    const int last = f->shard + 1 == f->n_shards;
    f->scope += last;
    f->shard = last ? 0 : f->shard + 1;
    take(f);
  }
}

/* The next record, as a node. */
static void load_record(finisher *f, amla_partial *node) {
  const amla_plan *plan = f->w.plan;
  const int32_t d_v = plan->problem.d_v;
  const amla_shard *s = amla_shard_at(f->shards, f->shard);
  const float *record = record_at(plan, f->w.scopes, s, f->row, f->entry++);
  for (int32_t d = 0; d < d_v; d++)
    node->o[(int32_t)f->places[d]] = record[d];
  record += d_v;
  node->ref[0] = *record++;
  node->l[0] = *record++;
  if (node->l_rounded != node->l)
    node->l_rounded[0] = *record++;
  if (node->max)
    node->max[0] = *record;
}

/* The tree node over n leaves from `first`, in place `level` of the nodes: a record, or what two
 * children make. */
static void build(finisher *f, int64_t first, int64_t n, int32_t level) {
  amla_partial *a = &f->nodes[level];
  seek_leaf(f, first);
  if (first + n <= f->g.to) {
    load_record(f, a);
    return;
  }
  const int64_t left = amla_tree_left(n);
  build(f, first, left, level);
  build(f, first + left, n - left, level + 1);
  amla_partial_merge(&f->w, a, a + 1, 0, 1);
}

/* Row `row` of the query of group g, whose tree is the same. */
static void finish_row(finisher *f, const amla_group *g, int64_t row) {
  const int32_t h_q = f->w.plan->problem.h_q;
  f->row = row;
  f->g = *g;
  f->g.row_begin = g->row_begin / h_q * h_q + (int32_t)(row % h_q);
  f->g.row_end = f->g.row_begin + 1;
  f->scope = f->shard = 0;
  take(f);
  if (g->length == 0) { /* nobody has a record */
    f->nodes[0].ref[0] = -INFINITY;
    f->nodes[0].l[0] = f->nodes[0].l_rounded[0] = 0.0f;
    if (f->nodes[0].max)
      f->nodes[0].max[0] = -INFINITY;
  } else {
    build(f, 0, g->n_splits, 0);
  }
  amla_partial_store(&f->w, &f->g, &f->nodes[0], 0, 1);
}

/* The heads of one query, its rows from `before` on. */
static void finish_query(finisher *f, int32_t sequence, int32_t query, int64_t before,
                         int64_t begin, int64_t end) {
  const amla_problem *p = &f->w.plan->problem;
  const amla_shard *s = f->w.scopes->shard;
  if (before + p->h_q <= begin || end <= before)
    return;
  const amla_group g = amla_row_group(&f->w.cpu->schedule, f->w.scopes, sequence, query * p->h_q);
  for (int64_t row = before + s->head_begin; row < before + s->head_end; row++)
    if (row >= begin && row < end)
      finish_row(f, &g, row);
}

typedef struct finish_job {
  const amla_plan *plan;
  const amla_scopes *scopes;
  int32_t n, n_shards;
  const amla_shard *shards;
  char *scratch;
  size_t bytes; /* of a thread */
} finish_job;

/* Part i of n of the rows. */
static void finish_task(void *argument, int32_t i) {
  const finish_job *j = argument;
  const amla_problem *p = &j->plan->problem;
  const amla_shard *s = j->scopes->shard;
  const int64_t rows = s->row_end - s->row_begin;
  const int64_t begin = s->row_begin + rows * i / j->n;
  const int64_t end = s->row_begin + rows * (i + 1) / j->n;
  const fenv_t threads_own = amla_enter_environment();
  amla_arena arena = amla_arena_create(j->scratch);
  arena.used_bytes = j->bytes * (size_t)i;
  finisher *f = amla_arena_take(&arena, 1, sizeof *f);
  carve_finisher(j->plan, &arena, f);
  prepare_finisher(f, j->plan, j->scopes);
  f->n_shards = j->n_shards, f->shards = j->shards;
  int64_t before = 0;
  for (int32_t sequence = 0; sequence < p->b; sequence++)
    for (int32_t query = 0; query < amla_query_count(p, j->scopes->tensors, sequence);
         query++, before += p->h_q)
      finish_query(f, sequence, query, before, begin, end);
  amla_leave_environment(&threads_own);
}

void amla_shard_finish_rows(const amla_plan *plan, const amla_scopes *scopes, int32_t n_shards,
                            const amla_shard *shards, void *scratch) {
  const amla_options *o = &plan->options;
  const int64_t rows = scopes->shard->row_end - scopes->shard->row_begin;
  const double flops = (double)rows * n_shards * 8.0 * plan->problem.d_v;
  finish_job j = {plan,   scopes,  amla_useful_threads(o, flops), n_shards,
                  shards, scratch, finisher_bytes(plan)};
  if (j.n == 1)
    finish_task(&j, 0);
  else
    amla_run_parallel(o, j.n, finish_task, &j);
}
