/* SPDX-License-Identifier: Apache-2.0
 *
 * The CPU backend around the loop: each thread takes an equal share of the line of all splits,
 * merges what it can of the fixed binary tree as it goes, and leaves the rest; then all threads
 * finish the groups that were shared, each its own slice of rows. A node of the tree has the same
 * children whoever computes it, hence the same bits.
 */
#include <assert.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../base/arena.h"
#include "../float_environment.h"
#include "../forked.h"
#include "../refuse.h"
#include "../rows.h"
#include "cpu_shard.h"
#include "l2_cache.h"
#include "parallel.h"

/* What a thread leaves of one group: partial results that cover its leaves from left to right. */
typedef struct pending {
  amla_group group;
  amla_partial *nodes;
  int32_t n_nodes;
} pending;

typedef struct thread_state {
  amla_worker worker;
  pending left[2]; /* of its first and of its last group, where other threads have the rest */
  int32_t n_left;
  int64_t n_splits, n_slots, n_slots_used; /* of its share */
} thread_state;

/* ---- Scratch ---- */

/* Rows of q or kv whose parts lie apart are joined in a buffer. */
static int64_t joined_bytes(const amla_problem *p) {
  const int64_t q = p->q_d_rope > 0 ? amla_elems_bytes(p->q_type, p->d_qk) : 0;
  const int64_t kv = p->kv_d_rope > 0 ? amla_elems_bytes(p->kv_type, p->d_qk) : 0;
  return (q > kv ? q : kv) * AMLA_MAX_LISTED;
}

/* What the loop of decode.c works in. */
static void carve_tiles(const amla_cpu_plan *cpu, int32_t d_qk, amla_arena *arena, amla_worker *w) {
  const amla_ukernels *u = cpu->ukernels;
  const amla_layout *l = &cpu->layout;
  const size_t elem_bytes = (size_t)amla_elems_bytes(u->tile_type, 1);
  w->qt = amla_arena_take(arena, l->rows_padded, (size_t)amla_ukr_qt_bytes(u, d_qk));
  w->tiles[0] = w->tiles[1] = amla_arena_take(arena, u->tile_tokens * l->ld, elem_bytes);
  if (u->wide.ahead)
    w->tiles[1] = amla_arena_take(arena, u->tile_tokens * l->ld, elem_bytes);
  w->s = amla_arena_take(arena, (int64_t)u->tile_tokens * l->rows_padded, sizeof *w->s);
}

/* A worker's buffers; NULL while it only counts. They begin on a page of their own, so that their
 * thread is the first to touch them, and its node of memory has them: but for the first page where
 * the row has a loop, and a state, of its own. */
static amla_worker carve_worker(const amla_plan *plan, amla_arena *arena) {
  const amla_cpu_plan *cpu = plan->state;
  const amla_ukernels *u = cpu->ukernels;
  amla_worker w = {.plan = plan, .cpu = cpu};
  amla_arena_turn_page(arena);
  if (u->own)
    w.own = u->own->carve(plan, cpu, arena);
  else
    carve_tiles(cpu, plan->problem.d_qk, arena, &w);
  w.joined = amla_arena_take(arena, joined_bytes(&plan->problem), 1);
  return w;
}

static amla_partial carve_partial(const amla_cpu_plan *cpu, amla_arena *arena) {
  const amla_ukernels *u = cpu->ukernels;
  const amla_layout *l = &cpu->layout;
  amla_partial a = {0};
  a.o = amla_arena_take(arena, (int64_t)l->n_col_tiles * l->rows_padded * u->pv_cols, sizeof *a.o);
  a.ref = amla_arena_take(arena, l->rows_padded, sizeof *a.ref);
  a.l = a.l_rounded = amla_arena_take(arena, l->rows_padded, sizeof *a.l);
  if (u->p_type != AMLA_F32)
    a.l_rounded = amla_arena_take(arena, l->rows_padded, sizeof *a.l);
  a.max = amla_arena_take(arena, l->rows_padded, sizeof *a.max);
  return a;
}

/* How many ends of so many shares lie within trees: of a single one that where it is at work. Of a
 * shard's groups, which are parts of trees, either end does. */
static int64_t count_ends(int32_t shares, int sharded) {
  const int64_t ends = shares == 1 ? 1 : 2 * (int64_t)shares;
  return sharded ? 2 * ends : ends;
}

/* What every thread needs, and partial results for all of them together. */
static size_t count_scratch(const amla_plan *plan, int sharded) {
  const amla_cpu_plan *cpu = plan->state;
  const amla_schedule *s = &cpu->schedule;
  const int32_t threads = plan->options.threads;
  const int64_t slots = amla_count_slots(s, s->max_leaves, count_ends(threads, sharded));
  amla_arena common = amla_arena_create(NULL), worker = common, partial = common;
  amla_arena_take(&common, threads, sizeof(thread_state));
  amla_arena_take(&common, slots, sizeof(amla_partial));
  carve_worker(plan, &worker);
  carve_partial(cpu, &partial);
  return AMLA_ARENA_ALIGN + common.used_bytes + worker.used_bytes * (size_t)threads +
         partial.used_bytes * (size_t)slots;
}

static amla_status prepare(amla_plan *plan, amla_detail *detail) {
  const amla_problem *p = &plan->problem;
  int64_t l2_bytes;
  TRY(amla_l2_from_environment(&l2_bytes, detail));
  amla_cpu_plan *cpu = malloc(sizeof *cpu);
  amla_watch_forks();
  if (!cpu)
    return amla_refuse(detail, AMLA_OUT_OF_MEMORY, "plan: no memory for %zu bytes", sizeof *cpu);
  cpu->ukernels = amla_ukernels_choose(p, &plan->options);
  cpu->schedule = amla_schedule_create(p, &plan->options, cpu->ukernels->tile_tokens,
                                       cpu->ukernels->grain_tokens, cpu->ukernels->split_tiles);
  cpu->layout = amla_layout_create(p, cpu->ukernels, cpu->schedule.block_rows);
  cpu->l2_bytes = l2_bytes;
  cpu->row = amla_row_format_of(p);
  plan->options.isa = cpu->ukernels->isa;
  plan->state = cpu;
  plan->scratch_bytes = count_scratch(plan, 0);
  return AMLA_OK;
}

static void release(amla_plan *plan) { free(plan->state); }

/* ---- The tree ---- */

/* Whether the two nodes on top of a stack of n are siblings: of equal size and the left one at an
 * even place, or the right one cut short by the end of the leaves. */
static int are_siblings(const amla_worker *w, const amla_partial *stack, int32_t n) {
  if (n < 2)
    return 0;
  const amla_partial *a = &stack[n - 2], *b = &stack[n - 1];
  const int whole = b->n == a->n || (b->n < a->n && b->first + b->n == w->group.n_splits);
  return whole && a->first % (2 * a->n) == 0;
}

typedef struct cursor {
  const thread_state *threads;
  int32_t thread, n_threads, left, node;
} cursor;

/* The next node of the group, from left to right over the threads. */
static amla_partial *next_node(cursor *c) {
  const pending *p = &c->threads[c->thread].left[c->left];
  amla_partial *node = &p->nodes[c->node++];
  if (c->node == p->n_nodes) {
    c->node = c->left = 0;
    do
      c->thread++;
    while (c->thread < c->n_threads && c->threads[c->thread].n_left == 0);
  }
  return node;
}

/* The tree node over n leaves from `first`: either it exists, or its two children do. Only rows
 * [begin, end) are merged. */
static amla_partial *collect(const amla_worker *w, cursor *c, int64_t first, int64_t n,
                             int32_t begin, int32_t end) {
  const pending *p = &c->threads[c->thread].left[c->left];
  if (p->nodes[c->node].first == first && p->nodes[c->node].n == n)
    return next_node(c);
  const int64_t left = amla_tree_left(n);
  amla_partial *a = collect(w, c, first, left, begin, end),
               *b = collect(w, c, first + left, n - left, begin, end);
  amla_partial_merge(w, a, b, begin, end);
  return a;
}

/* What becomes of the group's rows [begin, end) of a node: results, if it is all there is, or a
 * shard's records. */
static void end_node(const amla_worker *w, const amla_group *g, const amla_partial *node,
                     int32_t entry, int32_t begin, int32_t end) {
  if (w->scopes->shard)
    amla_shard_export(w, g, node, g->entry + entry, begin, end);
  else
    amla_partial_store(w, g, node, begin, end);
}

/* Collects and ends, from left to right, the largest nodes under that of n leaves from `first` of
 * which the group has all. Returns how many they were. */
static int32_t end_nodes(const amla_worker *w, cursor *c, const amla_group *g, int64_t first,
                         int64_t n, int32_t entry, int32_t begin, int32_t end) {
  if (g->to <= first || first + n <= g->from)
    return 0;
  if (g->from <= first && first + n <= g->to) {
    end_node(w, g, collect(w, c, first, n, begin, end), entry, begin, end);
    return 1;
  }
  const int64_t left = amla_tree_left(n);
  const int32_t done = end_nodes(w, c, g, first, left, entry, begin, end);
  return done + end_nodes(w, c, g, first + left, n - left, entry + done, begin, end);
}

/* ---- A thread's share ---- */

/* Splits [from, to) of the group: computed, merged as far as the tree allows, stored if that is all
 * of it, else left over. Returns 0 if the run is to end. */
static int run_splits(thread_state *t, const amla_group *g, int64_t from, int64_t to) {
  amla_worker *w = &t->worker;
  amla_partial *stack = w->slots + t->n_slots_used;
  int32_t n = 0;
  amla_worker_begin_group(w, g);
  const int32_t limit = amla_split_begin(g, to);
  int32_t begin = amla_split_begin(g, from), end;
  for (int64_t i = from; i < to; i++, begin = end) {
    assert(t->n_slots_used + n < t->n_slots);
    amla_partial *leaf = &stack[n++];
    leaf->first = i;
    leaf->n = 1;
    int32_t n_merges = 0;
    for (; are_siblings(w, stack, n) && n_merges < AMLA_MAX_MERGES; n_merges++, n--)
      stack[n - 2].n += stack[n - 1].n;
    const int more = are_siblings(w, stack, n);
    const int whole = !w->scopes->shard && !more && stack[0].n == g->n_splits;
    end = amla_split_end(g, i, begin);
    if (!amla_worker_accumulate(w, begin, end, limit, leaf, n_merges, whole))
      return 0;
    if (whole)
      return 1;
    for (; more && are_siblings(w, stack, n); n--) {
      amla_partial_merge(w, &stack[n - 2], &stack[n - 1], 0, g->row_end - g->row_begin);
      stack[n - 2].n += stack[n - 1].n;
    }
  }
  if (from == g->from && to == g->to) {
    for (int32_t i = 0; i < n; i++)
      end_node(w, g, &stack[i], i, 0, g->row_end - g->row_begin);
  } else {
    t->left[t->n_left++] = (pending){*g, stack, n};
    t->n_slots_used += n;
  }
  return 1;
}

typedef struct job {
  const amla_plan *plan;
  thread_state *threads;
  int32_t n;
  double total;
  int64_t auto_tokens;
  atomic_int ended; /* cancelled */
} job;

/* Where share i ends on the line of all splits. */
static double share_end(const job *j, int32_t i) {
  return i + 1 < j->n ? j->total * (i + 1) / j->n : INFINITY;
}

/* Share i of the line of all splits. */
static void run_share(const job *j, int32_t i) {
  thread_state *t = &j->threads[i];
  const amla_schedule *schedule = &t->worker.cpu->schedule;
  const amla_scopes *scopes = t->worker.scopes;
  const double begin = i > 0 ? share_end(j, i - 1) : 0.0, end = share_end(j, i);
  double start = 0.0;
  for (int32_t sequence = 0; sequence < scopes->problem[0].b; sequence++) {
    const int32_t n_groups = amla_group_count(schedule, scopes, sequence);
    for (int32_t block = 0; block < n_groups; block++) {
      if (start >= end)
        return;
      const amla_group g = amla_group_get(schedule, scopes, sequence, block, j->auto_tokens);
      const int64_t from = amla_splits_before(&g, start, begin),
                    to = amla_splits_before(&g, start, end);
      if (from < to && !run_splits(t, &g, from, to))
        return;
      start += g.split_cost * (double)(g.to - g.from);
    }
  }
}

/* Slice i of n of the rows of every group that threads share. */
static void finish_shared(thread_state *threads, int32_t i, int32_t n) {
  amla_worker *w = &threads[i].worker;
  for (int32_t thread = 0; thread < n; thread++)
    for (int32_t left = 0; left < threads[thread].n_left; left++) {
      const pending *p = &threads[thread].left[left];
      if (p->nodes[0].first != p->group.from)
        continue; /* the group began on an earlier thread */
      const int32_t rows = p->group.row_end - p->group.row_begin;
      const int32_t begin = (int32_t)((int64_t)rows * i / n),
                    end = (int32_t)((int64_t)rows * (i + 1) / n);
      if (begin == end)
        continue;
      cursor c = {threads, thread, n, left, 0};
      end_nodes(w, &c, &p->group, 0, p->group.n_splits, 0, begin, end);
    }
}

/* ---- Two parallel steps: every share, then the groups that shares have in common ---- */

static void share_task(void *argument, int32_t i) {
  job *j = argument;
  const fenv_t threads_own = amla_enter_environment();
  j->threads[i].worker.ended = &j->ended;
  j->threads[i].worker.threads_own = &threads_own;
  run_share(j, i);
  amla_leave_environment(&threads_own);
}

static void finish_task(void *argument, int32_t i) {
  const job *j = argument;
  const fenv_t threads_own = amla_enter_environment();
  finish_shared(j->threads, i, j->n);
  amla_leave_environment(&threads_own);
}

/* How many splits each share has. */
static void count_splits(const job *j, const amla_schedule *schedule, const amla_scopes *scopes) {
  double start = 0.0;
  int32_t i = 0;
  for (int32_t sequence = 0; sequence < scopes->problem[0].b; sequence++)
    for (int32_t block = 0, n = amla_group_count(schedule, scopes, sequence); block < n; block++) {
      const amla_group g = amla_group_get(schedule, scopes, sequence, block, j->auto_tokens);
      for (int64_t from = g.from, to; from < g.to; from = to) {
        to = amla_splits_before(&g, start, share_end(j, i));
        j->threads[i].n_splits += to - from;
        i += to < g.to;
      }
      start += g.split_cost * (double)(g.to - g.from);
    }
}

/* A thread's memory. */
static void carve_thread(const job *j, int32_t i, const amla_scopes *scopes, amla_partial *slots,
                         amla_arena *arena) {
  thread_state *t = &j->threads[i];
  amla_worker *w = &t->worker;
  *w = carve_worker(j->plan, arena);
  w->scopes = scopes;
  w->tensors = scopes->tensors;
  w->slots = slots;
  for (int64_t slot = 0; slot < t->n_slots; slot++) {
    slots[slot] = carve_partial(w->cpu, arena);
    if (!w->tensors->max_logits)
      slots[slot].max = NULL;
  }
}

/* On how many threads, and their parts of the scratch. */
static job share_out(const amla_plan *plan, const amla_scopes *scopes, void *scratch) {
  const amla_problem *p = &plan->problem;
  const amla_options *o = &plan->options;
  const amla_schedule *s = &((const amla_cpu_plan *)plan->state)->schedule;
  amla_arena arena = amla_arena_create(scratch);
  job j = {.plan = plan, .threads = amla_arena_take(&arena, o->threads, sizeof(thread_state))};
  j.auto_tokens = amla_auto_split_tokens(s, scopes, o->threads);
  j.total = amla_total_cost(s, scopes, j.auto_tokens);
  j.n = amla_useful_threads(o, j.total * 2.0 * (p->d_qk + p->d_v));
  memset(j.threads, 0, (size_t)j.n * sizeof *j.threads);
  count_splits(&j, s, scopes);
  const int64_t ends = count_ends(j.n, scopes->shard != NULL) / j.n;
  int64_t n_slots = 0;
  for (int32_t i = 0; i < j.n; i++) {
    thread_state *t = &j.threads[i];
    t->n_slots = amla_count_slots(s, t->n_splits, ends);
    n_slots += t->n_slots;
  }
  amla_partial *slots = amla_arena_take(&arena, n_slots, sizeof *slots);
  for (int32_t i = 0; i < j.n; slots += j.threads[i++].n_slots)
    carve_thread(&j, i, scopes, slots, &arena);
  return j;
}

/* The caller's floating-point environment is its own wherever `parallel` runs: a jump or an
 * exception out of it must not leave ours. */
static amla_status run_scopes(const amla_plan *plan, const amla_scopes *scopes, void *scratch,
                              amla_detail *detail) {
  const amla_options *o = &plan->options;
  const fenv_t callers = amla_enter_environment();
  job j = share_out(plan, scopes, scratch);
  amla_leave_environment(&callers);
  if (j.n == 1)
    share_task(&j, 0);
  else
    amla_run_parallel(o, j.n, share_task, &j);
  if (j.ended)
    return amla_refuse_cancelled(detail);
  int32_t n_left = 0;
  for (int32_t i = 0; i < j.n; i++)
    n_left += j.threads[i].n_left;
  if (n_left > 0)
    amla_run_parallel(o, j.n, finish_task, &j);
  return AMLA_OK;
}

static amla_status run(const amla_plan *plan, const amla_tensors *tensors, void *scratch,
                       amla_detail *detail) {
  const amla_scopes scopes = amla_scopes_create(&plan->problem, tensors);
  return plan->problem.b > 0 ? run_scopes(plan, &scopes, scratch, detail) : AMLA_OK;
}

static size_t shard_scratch(const amla_plan *plan) {
  const size_t of_run = count_scratch(plan, 1), of_finish = amla_shard_finish_bytes(plan);
  return of_run > of_finish ? of_run : of_finish;
}

static amla_status run_shard(const amla_plan *plan, const amla_scopes *scopes, void *scratch,
                             amla_detail *detail) {
  amla_shard_clear(plan, scopes);
  return run_scopes(plan, scopes, scratch, detail);
}

/* Of a problem in bf16. */
static const char *isa(amla_isa cap) {
  const amla_problem p = AMLA_PROBLEM_INIT;
  amla_options o = AMLA_OPTIONS_INIT;
  o.isa = cap;
  return amla_isa_name(amla_ukernels_choose(&p, &o)->isa);
}

static const amla_ukr_panel *first_panel(const amla_cpu_plan *cpu) {
  const amla_ukernels *u = cpu->ukernels;
  return cpu->schedule.block_rows > u->narrow.rows ? &u->wide : &u->narrow;
}

/* Of fixed splits, and of the problem's longest line. */
static int64_t longest_split(const amla_plan *plan) {
  const amla_cpu_plan *cpu = plan->state;
  return amla_split_tokens(&cpu->schedule, amla_longest_line(&plan->problem), 0);
}

static void query(const amla_plan *plan, amla_plan_info *info) {
  const amla_cpu_plan *cpu = plan->state;
  const amla_ukernels *u = cpu->ukernels;
  const amla_ukr_panel *panel = first_panel(cpu);
  const int is_auto = cpu->schedule.split_tokens == AMLA_SPLIT_AUTO;
  const int64_t split = is_auto ? AMLA_SPLIT_AUTO : longest_split(plan);
  info->isa = u->isa;
  info->p_type = u->p_type;
  info->p_form = amla_ukernels_p_form(u);
  info->key_type = u->tile_type;
  const int32_t parts = amla_q_parts(&plan->problem, &plan->options);
  if (u->tile_type != AMLA_F32 && parts > 1)
    info->q_form = parts == 2 ? AMLA_Q_BF16X2 : AMLA_Q_BF16X3;
  info->threads = amla_is_alone(&plan->options) ? 1 : plan->options.threads;
  info->block_rows = cpu->schedule.block_rows;
  info->tile_tokens = u->tile_tokens;
  info->split_tokens = split;
  info->l2_bytes = cpu->l2_bytes > 0 ? cpu->l2_bytes : amla_l2_of_system();
  snprintf(info->kernel, sizeof info->kernel, "qk %dx%d, pv %dx%d", panel->tokens, panel->rows,
           u->pv_rows, u->pv_cols);
}

static int describe(const amla_plan *plan, char *text, size_t capacity_bytes) {
  const amla_cpu_plan *cpu = plan->state;
  const amla_ukernels *u = cpu->ukernels;
  const amla_schedule *s = &cpu->schedule;
  const amla_ukr_panel *panel = first_panel(cpu);
  char split[24] = "auto", threads[32], form[16] = "";
  const int32_t n = plan->options.threads;
  snprintf(threads, sizeof threads, "%d thread%s", n, n == 1 ? "" : "s");
  if (s->split_tokens != AMLA_SPLIT_AUTO)
    snprintf(split, sizeof split, "%lld", (long long)longest_split(plan));
  if (u->tile_type != AMLA_F32) /* elsewhere P is f32 */
    snprintf(form, sizeof form, " p=%s", amla_p_form_name(amla_ukernels_p_form(u)));
  return snprintf(text, capacity_bytes,
                  "cpu %s %s%s, %d rows x %d tokens, qk %dx%d, pv %dx%d, split %s of %d, %s",
                  amla_isa_name(u->isa), amla_rescale_name(plan->options.rescale), form,
                  s->block_rows, u->tile_tokens, panel->tokens, panel->rows, u->pv_rows, u->pv_cols,
                  split, amla_longest_line(&plan->problem),
                  amla_is_alone(&plan->options) ? "one thread: forked" : threads);
}

static const char *absent(void) { return NULL; }

static const amla_shard_ops shards = {.scratch_bytes = shard_scratch,
                                      .split_tokens = longest_split,
                                      .measure = amla_shard_measure,
                                      .run = run_shard,
                                      .finish = amla_shard_finish_rows};

const amla_backend_ops amla_backend_cpu = {.plan_bytes = sizeof(amla_plan),
                                           .id = AMLA_BACKEND_CPU,
                                           .name = "cpu",
                                           .own_environment = 1,
                                           .absent = absent,
                                           .isa = isa,
                                           .prepare = prepare,
                                           .release = release,
                                           .query = query,
                                           .describe = describe,
                                           .run = run,
                                           .shards = &shards};
