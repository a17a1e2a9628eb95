/* SPDX-License-Identifier: Apache-2.0
 *
 * What a block of rows of a step over ranks takes on one core of this machine, for charge.c: calls
 * of amla_shard_run over shards of several lengths, and of amla_shard_finish over several numbers
 * of shards. Prints JSON. The law of each is the line through its first and last point; the points
 * between them show how good it is.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "harness/dataset.h"
#include "harness/roofline.h"

enum { HEADS = 128, ROWS = 64, MOST_SHARDS = 256, ROUNDS = 10 };

typedef struct bench {
  harness_dataset data;
  amla_plan *plan;
  amla_plan_info info;
  amla_shard_info shape;
  int32_t begin[MOST_SHARDS], end[MOST_SHARDS];
  amla_shard shards[MOST_SHARDS];
  void *scratch;
  size_t scratch_bytes;
} bench;

typedef struct point {
  int32_t n; /* tokens of a shard, or shards */
  double work, seconds;
} point;

static void demand(int well, const char *why) {
  if (!well)
    fprintf(stderr, "step_rates: %s\n", why), exit(1);
}

static void plan(bench *b, int32_t split_tokens) {
  amla_detail why = {""};
  amla_options options = AMLA_OPTIONS_INIT;
  options.threads = 1, options.split_tokens = split_tokens;
  amla_plan_destroy(b->plan);
  demand(amla_plan_create(&b->plan, &b->data.problem, &options, &why) == AMLA_OK, why.text);
  b->info = (amla_plan_info)AMLA_PLAN_INFO_INIT;
  amla_plan_query(b->plan, &b->info, NULL);
  free(b->scratch);
  b->scratch_bytes = amla_shard_scratch_bytes(b->plan);
  b->scratch = malloc(b->scratch_bytes);
  demand(b->scratch != NULL, "no memory");
}

/* Shard k of n has `tokens` tokens. */
static void cut(bench *b, int32_t n, int32_t tokens) {
  b->data.seqlens_k[0] = n * tokens;
  for (int32_t k = 0; k < n; k++) {
    amla_shard *s = &b->shards[k];
    float *records = s->records;
    b->begin[k] = k * tokens, b->end[k] = (k + 1) * tokens;
    *s = (amla_shard)AMLA_SHARD_INIT;
    s->begin = &b->begin[k], s->end = &b->end[k];
    s->begin_bytes = s->end_bytes = sizeof(int32_t);
    s->row_end = ROWS;
    s->records = records;
    amla_detail why = {""};
    b->shape = (amla_shard_info)AMLA_SHARD_INFO_INIT;
    demand(amla_shard_query(b->plan, &b->data.tensors, s, &b->shape, &why) == AMLA_OK, why.text);
    s->records_bytes = b->shape.records_bytes, s->n_entries = b->shape.n_entries;
    s->records = realloc(records, s->records_bytes);
    demand(s->records != NULL, "no memory");
  }
}

/* As amla_mpi_run does it. */
static void run(bench *b, const amla_shard *s) {
  amla_detail why = {""};
  amla_shard_query(b->plan, &b->data.tensors, s, &b->shape, &why);
  demand(amla_shard_run(b->plan, &b->data.tensors, s, b->scratch, b->scratch_bytes, &why) ==
             AMLA_OK,
         why.text);
}

static void finish(bench *b, int32_t n) {
  amla_detail why = {""};
  demand(amla_shard_finish(b->plan, &b->data.tensors, n, b->shards, b->scratch, b->scratch_bytes,
                           &why) == AMLA_OK,
         why.text);
}

/* Best of some rounds. */
static point time_run(bench *b, int32_t tokens) {
  point p = {tokens, 0.0, 1e30};
  cut(b, 1, tokens);
  for (int i = 0; i < ROUNDS; i++) {
    const double before = harness_seconds();
    run(b, &b->shards[0]);
    const double seconds = harness_seconds() - before;
    p.seconds = seconds < p.seconds ? seconds : p.seconds;
  }
  p.work = (double)b->shape.n_row_keys;
  return p;
}

static point time_finish(bench *b, int32_t n, int32_t tokens) {
  const int32_t heads = HEADS > n ? HEADS / n : 1;
  point p = {n, 0.0, 1e30};
  cut(b, n, tokens);
  for (int32_t k = 0; k < n; k++) {
    amla_shard *s = &b->shards[k];
    run(b, s);
    s->head_begin = 0, s->head_end = heads;
    s->records_bytes = s->records_bytes / ROWS * (size_t)heads;
    p.work += (double)s->records_bytes;
  }
  for (int i = 0; i < 20 * ROUNDS; i++) {
    const double before = harness_seconds();
    finish(b, n);
    const double seconds = harness_seconds() - before;
    p.seconds = seconds < p.seconds ? seconds : p.seconds;
  }
  return p;
}

static void print_points(const char *name, const point *p, int n) {
  printf(", \"%s\": [", name);
  for (int i = 0; i < n; i++)
    printf("%s[%d, %.0f, %.9f]", i ? ", " : "", p[i].n, p[i].work, p[i].seconds);
  printf("]");
}

int main(void) {
  enum { RUNS = 5, FINISHES = 5 };
  static const int32_t tiles[RUNS] = {1, 4, 16, 64, 344};
  static const int32_t shards[FINISHES] = {2, 8, 32, 128, 256};
  static bench b;
  harness_case c;
  char error[256];
  demand(harness_parse_problem("h=128,sk=33024,page=96", &c, error, sizeof error) == 0 &&
             harness_generate(&c, &b.data, error, sizeof error) == 0,
         error);
  plan(&b, 1);
  const int32_t tile = b.info.tile_tokens;
  point runs[RUNS], finishes[FINISHES];
  for (int i = 0; i < FINISHES; i++)
    finishes[i] = time_finish(&b, shards[i], tile);
  plan(&b, 43 * tile);
  for (int i = 0; i < RUNS; i++)
    runs[i] = time_run(&b, tiles[i] * tile);
  printf("{\"isa\": \"%s\", \"tile_tokens\": %d", amla_isa_name(b.info.isa), tile);
  print_points("run", runs, RUNS);
  print_points("finish", finishes, FINISHES);
  printf("}\n");
  return 0;
}
