/* SPDX-License-Identifier: Apache-2.0
 *
 * What many threads have to do, without having them: counted from the schedule alone, the same
 * numbers on every machine whose CPU has AVX2. Cost is what shares are made equal in: rows times
 * keys, and 32 keys more for each split. And what a prompt has to do whose tokens see lists of keys
 * of their own, by a mask: each row block the union of its tokens' lists.
 *
 *     count_shares            the tables of docs/results/many_threads.txt
 *
 * Exit status: 0; 77 without AVX2.
 */
#include <stdio.h>
#include <stdlib.h>

#include "harness/dataset.h"
#include "src/cpu/decode.h"
#include "src/cpu/parallel.h"

enum { N_COUNTS = 7, MAX_COUNT = 192, MOST_SEQUENCES = 128 };
static const int counts[N_COUNTS] = {8, 16, 32, 64, 96, 128, MAX_COUNT};

typedef struct shape {
  const char *name;
  int32_t b, s_q, h_q, sk;
  int ragged; /* sequence i of b has (i + 1) / b of the keys */
} shape;

static const shape shapes[] = {
    {"h=128, 1 x 131072", 1, 1, 128, 131072, 0},     {"h=128, 1 x 16384", 1, 1, 128, 16384, 0},
    {"h=128, 1 x 4096", 1, 1, 128, 4096, 0},         {"h=16, 1 x 131072", 1, 1, 16, 131072, 0},
    {"h=16, 1 x 16384", 1, 1, 16, 16384, 0},         {"h=128, 8 x 4096", 8, 1, 128, 4096, 0},
    {"h=128, 32, up to 8192", 32, 1, 128, 8192, 1},  {"h=16, 64 x 2048", 64, 1, 16, 2048, 0},
    {"h=128, sq=2, 4 x 32768", 4, 2, 128, 32768, 0}, {"h=128, 128 x 1024", 128, 1, 128, 1024, 0},
};
enum { N_SHAPES = sizeof shapes / sizeof *shapes };

typedef struct count {
  int32_t block_rows;
  double imbalance;                       /* largest share over the mean of all threads */
  double left_mb, partial_mb, scratch_mb; /* left: to the second step */
} count;

__attribute__((noreturn)) static void stop(const char *what) {
  fprintf(stderr, "count_shares: %s\n", what);
  exit(1);
}

/* Nodes of a tree of n leaves that cover leaves [from, to) and no others. */
static int64_t count_nodes(int64_t from, int64_t to, int64_t n) {
  if (from >= to)
    return 0;
  if (to - from == n)
    return 1;
  const int64_t left = amla_tree_left(n), in_left = to < left ? to : left;
  const int64_t in_right = from > left ? from - left : 0;
  return count_nodes(from, in_left, left) + count_nodes(in_right, to - left, n - left);
}

/* A run with lengths `lengths`, share by share. */
static void count_run(const amla_plan *plan, const int32_t *lengths, int64_t partial_bytes,
                      count *c) {
  const amla_cpu_plan *cpu = plan->state;
  const amla_schedule *s = &cpu->schedule;
  amla_tensors tensors = AMLA_TENSORS_INIT;
  tensors.seqlens_k = lengths;
  const amla_scopes scopes = amla_scopes_create(&plan->problem, &tensors);
  const double total = amla_total_cost(s, &scopes, 0);
  const double flops = total * 2.0 * (plan->problem.d_qk + plan->problem.d_v);
  const int32_t n = amla_useful_threads(&plan->options, flops);
  double cost[MAX_COUNT] = {0}, start = 0.0, largest = 0.0;
  for (int32_t sequence = 0; sequence < plan->problem.b; sequence++)
    for (int32_t block = 0; block < amla_group_count(s, &scopes, sequence); block++) {
      const amla_group g = amla_group_get(s, &scopes, sequence, block, 0);
      for (int32_t i = 0; i < n; i++) {
        const int64_t from = amla_splits_before(&g, start, total * i / n);
        const int64_t to =
            i + 1 < n ? amla_splits_before(&g, start, total * (i + 1) / n) : g.n_splits;
        cost[i] += g.split_cost * (double)(to - from);
        if (to - from < g.n_splits)
          c->left_mb += (double)(count_nodes(from, to, g.n_splits) * partial_bytes) / 1e6;
      }
      start += g.split_cost * (double)g.n_splits;
    }
  for (int32_t i = 0; i < n; i++)
    largest = cost[i] > largest ? cost[i] : largest;
  c->imbalance = largest / (total / plan->options.threads);
}

static count count_shape(const shape *of, int threads) {
  amla_problem p = AMLA_PROBLEM_INIT;
  amla_options o = AMLA_OPTIONS_INIT;
  amla_detail detail;
  amla_plan *plan;
  int32_t lengths[MOST_SEQUENCES];
  p.b = of->b, p.s_q = of->s_q, p.h_q = of->h_q, p.sk = of->sk, p.scale = 0.1f;
  o.isa = AMLA_ISA_AVX2, o.threads = threads, o.backend = AMLA_BACKEND_CPU;
  for (int32_t i = 0; i < of->b; i++)
    lengths[i] = of->ragged ? (int32_t)((int64_t)of->sk * (i + 1) / of->b) : of->sk;
  if (amla_plan_create(&plan, &p, &o, &detail) != AMLA_OK)
    stop(detail.text);
  const amla_cpu_plan *cpu = plan->state;
  if (plan->options.isa != AMLA_ISA_AVX2)
    exit(77);
  const amla_layout *l = &cpu->layout;
  const int64_t o_bytes = (int64_t)l->n_col_tiles * l->rows_padded * cpu->ukernels->pv_cols * 4;
  count c = {.block_rows = cpu->schedule.block_rows};
  count_run(plan, lengths, o_bytes, &c);
  const int64_t slots = amla_count_slots(&cpu->schedule, cpu->schedule.max_leaves, 2 * threads);
  c.partial_mb = (double)(slots * o_bytes) / 1e6;
  c.scratch_mb = (double)amla_plan_scratch_bytes(plan) / 1e6;
  amla_plan_destroy(plan);
  return c;
}

typedef struct column {
  const char *title, *format;
  double (*of)(const count *c);
} column;

static double rows_of(const count *c) { return c->block_rows; }
static double imbalance_of(const count *c) { return c->imbalance; }
static double left_of(const count *c) { return c->left_mb; }
static double partials_of(const count *c) { return c->partial_mb; }
static double scratch_of(const count *c) { return c->scratch_mb; }

static const column columns[] = {
    {"Largest share of the cost over the mean of all threads", "%8.2f", imbalance_of},
    {"Rows of a row block", "%8.0f", rows_of},
    {"Partial results that are merged in the second step, MB", "%8.1f", left_of},
    {"Partial results that scratch has room for, MB", "%8.1f", partials_of},
    {"Scratch, MB", "%8.1f", scratch_of},
};

/* ---- Prompts whose tokens have lists ---- */

enum { LIST_TOKENS = 512, LIST_KEYS = 32768, LISTED = 2048, HIDDEN = 0xfc00 };

/* [LIST_TOKENS][LIST_KEYS] f16: LISTED keys of each token are visible, any of them. */
static uint16_t *draw_lists(void) {
  uint16_t *mask = malloc(sizeof *mask * LIST_TOKENS * LIST_KEYS);
  uint64_t seed = 1;
  if (mask == NULL)
    stop("out of memory");
  for (int32_t token = 0; token < LIST_TOKENS; token++)
    for (int32_t key = 0, left = LISTED; key < LIST_KEYS; key++) {
      const int seen = harness_random_uniform(&seed) * (LIST_KEYS - key) < left;
      mask[token * LIST_KEYS + key] = seen ? 0 : HIDDEN;
      left -= seen;
    }
  return mask;
}

/* Keys of a row block, in the mean. */
static void count_lists(int32_t heads, const uint16_t *mask) {
  amla_problem p = AMLA_PROBLEM_INIT;
  amla_options o = AMLA_OPTIONS_INIT;
  amla_tensors tensors = AMLA_TENSORS_INIT;
  amla_detail detail;
  amla_plan *plan;
  p.s_q = LIST_TOKENS, p.h_q = heads, p.sk = LIST_KEYS, p.scale = 0.1f;
  o.isa = AMLA_ISA_AVX2, o.threads = 1, o.backend = AMLA_BACKEND_CPU;
  tensors.mask = mask;
  if (amla_plan_create(&plan, &p, &o, &detail) != AMLA_OK)
    stop(detail.text);
  const amla_schedule *s = &((const amla_cpu_plan *)plan->state)->schedule;
  const amla_scopes scopes = amla_scopes_create(&plan->problem, &tensors);
  const int32_t n = amla_group_count(s, &scopes, 0);
  double keys = 0.0;
  for (int32_t block = 0; block < n; block++)
    keys += (double)amla_group_get(s, &scopes, 0, block, 0).visible / n;
  printf("%-24d%8d%8.0f%8.2f%8.2f\n", heads, s->block_rows / heads, keys, keys / LISTED,
         LIST_KEYS / keys);
  amla_plan_destroy(plan);
}

static void print_lists(void) {
  uint16_t *mask = draw_lists();
  printf("\n%d tokens with lists of their own, %d random keys of %d\n%-24s%8s%8s%8s%8s\n",
         LIST_TOKENS, LISTED, LIST_KEYS, "heads", "tokens", "keys", "lists", "fewer");
  for (int32_t heads = 16; heads <= 128; heads *= 2)
    count_lists(heads, mask);
  puts("tokens: of a row block. keys: that it reads, in the mean. lists: as many as these. fewer: "
       "times, than all.");
  free(mask);
}

int main(void) {
  static count all[N_SHAPES][N_COUNTS];
  for (int i = 0; i < N_SHAPES; i++)
    for (int t = 0; t < N_COUNTS; t++)
      all[i][t] = count_shape(&shapes[i], counts[t]);
  puts("Counted, not measured: count_shares, instruction set avx2, bf16 KV, 576 and 512 columns.");
  for (size_t k = 0; k < sizeof columns / sizeof *columns; k++) {
    printf("\n%s\n%-24s", columns[k].title, "threads");
    for (int t = 0; t < N_COUNTS; t++)
      printf("%8d", counts[t]);
    for (int i = 0; i < N_SHAPES; i++) {
      printf("\n%-24s", shapes[i].name);
      for (int t = 0; t < N_COUNTS; t++)
        printf(columns[k].format, columns[k].of(&all[i][t]));
    }
    puts("");
  }
  print_lists();
  return 0;
}
