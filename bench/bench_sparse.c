/* SPDX-License-Identifier: Apache-2.0
 *
 * The speed of lists, second scopes and fp8 caches against dense attention over as many keys. Each
 * contestant is compared with fp64 before it is timed. Cold: each run takes other caches or another
 * list, so many that a row is long out of every cache when its turn comes again. Hot: the same one
 * every time. Both problems, cold and hot, take turns in short rounds.
 * Then what amla_cache_write takes to fill caches from bf16, beside memcpy of as many bytes.
 *
 *     bench_sparse [--for SECONDS] [--threads N] [--only TEXT]
 */
#define _GNU_SOURCE 1 /* _SC_LEVEL3_CACHE_SIZE */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "bench_job.h"
#include "bench_memory.h"
#include "bench_options.h"
#include "harness/kv_rows.h"
#include "harness/rounds.h"
#include "harness/scopes.h"

enum { ALL_THREADS = 0 };

/* ---- Cases ---- */

typedef struct sparse_case {
  const char *group, *problem, *reference;
  int threads;
  double target; /* time of the reference over the problem's; 0 = none */
} sparse_case;

#define LIST "sk=32768,page=64,topk=2048"
#define DENSE "sk=2048,page=0,causal=0"
#define V4 "dqk=512,sk=256,window=128"
#define V4_DENSE "dqk=512,page=0,causal=0"

static const char gather[] = "2048 of 32K tokens, bf16, of dense contiguous over 2048",
                  fp8[] = "fp8_656, of bf16", v4[] = "two scopes, fp8_584, of dense bf16";

static const sparse_case cases[] = {
    {gather, "h=128," LIST, "h=128," DENSE, 1, 0.95},
    {gather, "h=128," LIST, "h=128," DENSE, ALL_THREADS, 0.95},
    {gather, "h=64," LIST, "h=64," DENSE, 1, 0.93},
    {gather, "h=64," LIST, "h=64," DENSE, ALL_THREADS, 0.93},
    {gather, "h=16," LIST, "h=16," DENSE, 1, 0.85},
    {gather, "h=16," LIST, "h=16," DENSE, ALL_THREADS, 0.85},
    {fp8, "h=128,kv=fp8_656,sk=4096", "h=128,sk=4096", 1, 0.95},
    {fp8, "h=128,kv=fp8_656,sk=4096", "h=128,sk=4096", ALL_THREADS, 0.95},
    {fp8, "h=16,kv=fp8_656,sk=4096", "h=16,sk=4096", 1, 0.85},
    {fp8, "h=128,kv=fp8_656," LIST, "h=128," LIST, 1, 0.95},
    {fp8, "h=128,kv=fp8_656," LIST, "h=128," LIST, ALL_THREADS, 0.95},
    {fp8, "h=16,kv=fp8_656," LIST, "h=16," LIST, 1, 0.85},
    {v4, "h=64,kv=fp8_584,page=256," V4 ",scope2=topk:512/sk:32768/page:64",
     "h=64,sk=640," V4_DENSE, 1, 0.90},
    {v4, "h=64,kv=fp8_584,page=256," V4 ",scope2=topk:512/sk:32768/page:64",
     "h=64,sk=640," V4_DENSE, ALL_THREADS, 0.90},
    {v4, "h=64,kv=fp8_584,page=64," V4 ",scope2=topk:512/sk:32768/page:256",
     "h=64,sk=640," V4_DENSE, 1, 0.90},
    {v4, "h=128,kv=fp8_584,page=256," V4 ",scope2=topk:1024/sk:32768/page:64",
     "h=128,sk=1152," V4_DENSE, 1, 0.90},
    {v4, "h=128,kv=fp8_584,page=256," V4 ",scope2=topk:1024/sk:32768/page:64",
     "h=128,sk=1152," V4_DENSE, ALL_THREADS, 0.90},
    {"two scopes, bf16, of dense bf16", "h=64,page=256," V4 ",scope2=topk:512/sk:32768/page:64",
     "h=64,sk=640," V4_DENSE, 1, 0.90},
    {"two scopes, bf16, of dense bf16", "h=128,page=256," V4 ",scope2=topk:1024/sk:32768/page:64",
     "h=128,sk=1152," V4_DENSE, 1, 0.90},
};

static void give_up(const char *problem, const char *why) {
  fprintf(stderr, "bench: %s: %s\n", problem, why);
  exit(1);
}

static void *allocate(const char *problem, size_t bytes) {
  void *at = malloc(bytes);
  if (at == NULL)
    give_up(problem, "out of memory");
  return at;
}

/* ---- Turns: copies of a scope's cache, and lists that use each of its tokens once ---- */

typedef struct turns {
  int n_copies, n_lists; /* n_lists: per copy; 0: dense */
  size_t copy_bytes;
  char *copies;
  int32_t topk;
  int32_t *lists; /* [n_copies][n_lists][topk] slots */
} turns;

static size_t cache_bytes(void) {
  const long l3 = sysconf(_SC_LEVEL3_CACHE_SIZE);
  return l3 > 0 ? (size_t)l3 : (size_t)64 << 20;
}

/* Tokens in random order, in lists. */
static void draw_lists(const amla_problem *p, const int32_t *table, uint64_t *state, int32_t *slots,
                       int32_t n) {
  for (int32_t j = 0; j < p->sk; j++)
    slots[j] = table[j / p->page_size] * p->page_size + j % p->page_size;
  for (int32_t j = 0; j < n; j++) {
    const int32_t other = j + (int32_t)(harness_random(state) % (uint64_t)(p->sk - j));
    const int32_t slot = slots[j];
    slots[j] = slots[other], slots[other] = slot;
  }
}

/* kv: all of its tokens are there. run_bytes: of both scopes, what a run reads. */
static turns make_turns(const char *problem, const amla_problem *p, const void *kv, size_t kv_bytes,
                        const int32_t *table, double run_bytes) {
  const double away = 4.0 * (double)cache_bytes(); /* so much is read before a row comes again */
  turns t = {.copy_bytes = kv_bytes, .topk = p->topk};
  t.n_lists = p->topk > 0 ? p->sk / p->topk : 0;
  const double pass_bytes = run_bytes * (t.n_lists ? t.n_lists : 1);
  t.n_copies = 1 + (int)(away / pass_bytes);
  t.copies = bench_huge_allocate((size_t)t.n_copies * kv_bytes);
  for (int i = 0; i < t.n_copies; i++)
    memcpy(t.copies + (size_t)i * kv_bytes, kv, kv_bytes);
  if (t.n_lists == 0)
    return t;
  uint64_t state = 7;
  const int32_t n = t.n_lists * p->topk;
  int32_t *slots = allocate(problem, (size_t)p->sk * sizeof *slots);
  t.lists = allocate(problem, (size_t)t.n_copies * (size_t)n * sizeof *t.lists);
  for (int i = 0; i < t.n_copies; i++) {
    draw_lists(p, table, &state, slots, n);
    memcpy(t.lists + (size_t)i * (size_t)n, slots, (size_t)n * sizeof *slots);
  }
  free(slots);
  return t;
}

static const void *copy_of(const turns *t, int64_t turn) {
  return t->copies + (size_t)(turn % t->n_copies) * t->copy_bytes;
}
static const int32_t *list_of(const turns *t, int64_t turn) {
  const int64_t list = turn % t->n_copies * t->n_lists + turn / t->n_copies % t->n_lists;
  return t->lists + list * t->topk;
}

/* ---- A contestant ---- */

typedef struct sparse_job {
  harness_dataset *data;
  turns scopes[2];
  bench_job *job;
  int64_t turn;
  double flops, bytes;
} sparse_job;

static void set_turn(sparse_job *j) {
  amla_tensors *t = &j->data->tensors;
  t->kv = copy_of(&j->scopes[0], j->turn);
  if (j->scopes[0].n_lists)
    t->indices = list_of(&j->scopes[0], j->turn);
  if (j->scopes[1].n_copies)
    t->extra_kv = copy_of(&j->scopes[1], j->turn);
  if (j->scopes[1].n_lists)
    t->extra_indices = list_of(&j->scopes[1], j->turn);
}

static void run_cold(void *context) {
  sparse_job *j = context;
  j->turn++;
  set_turn(j);
  bench_job_run(j->job);
}

static void run_hot(void *context) {
  sparse_job *j = context;
  j->turn = 0;
  set_turn(j);
  bench_job_run(j->job);
}

/* The problem without its lists, so that its caches, alike in all else, have all tokens. */
static harness_dataset *load_whole(const char *problem) {
  harness_case c = bench_parse(problem);
  c.problem.topk = c.problem.extra_topk = 0;
  return bench_generate(&c, problem);
}

static void verify(const char *problem, sparse_job *j) {
  harness_truth truth;
  for (int i = 0; i < 2; i++) {
    harness_reset_outputs(j->data);
    run_cold(j);
    if (harness_truth_compute(j->data, &truth) != 0)
      give_up(problem, "out of memory for the truth");
    const harness_error e = harness_compare_plan(j->data, &truth, &j->job->info);
    harness_truth_free(&truth);
    if (e.ok)
      continue;
    fprintf(stderr, "bench: %s: wrong result: relative error %.2e, %.2g of the bound\n", problem,
            e.rel_error, e.worst_of_bound);
    exit(3);
  }
}

static sparse_job open_job(const char *problem, int threads) {
  sparse_job j = {.data = bench_load(problem)};
  harness_dataset *whole = load_whole(problem);
  const amla_problem *p = &j.data->problem, second = harness_second_problem(p);
  j.flops = harness_flops(j.data);
  j.bytes = harness_kv_bytes(j.data);
  j.scopes[0] = make_turns(problem, p, whole->tensors.kv, j.data->tensors.kv_bytes,
                           j.data->block_table, j.bytes);
  if (harness_has_second_scope(p))
    j.scopes[1] = make_turns(problem, &second, whole->extra_kv, j.data->tensors.extra_kv_bytes,
                             j.data->extra_block_table, j.bytes);
  bench_unload(whole);
  j.job = bench_job_create(j.data, AMLA_ISA_AUTO, AMLA_RESCALE_DEFAULT, threads);
  verify(problem, &j);
  return j;
}

static void close_job(sparse_job *j) {
  for (int i = 0; i < 2; i++) {
    free(j->scopes[i].copies);
    free(j->scopes[i].lists);
  }
  bench_job_destroy(j->job);
  bench_unload(j->data);
}

/* ---- One case ---- */

/* Are its types in this build? */
static bool has_types(const char *problem) {
  harness_case c;
  char error[256];
  if (harness_parse_problem(problem, &c, error, sizeof error) == 0)
    return true;
  if (strstr(error, "kv=") == NULL)
    give_up(problem, error);
  return false;
}

static const char *verdict(double figure, double target) {
  if (target == 0)
    return "";
  return figure >= target ? "ok" : "miss";
}

/* Time of the reference over the problem's, per useful operation. */
static double ratio(double seconds, const sparse_job *j, double reference_seconds,
                    const sparse_job *reference) {
  return reference_seconds / reference->flops / (seconds / j->flops);
}

static void run_case(const sparse_case *row, double seconds, int all_threads) {
  const int threads = row->threads == ALL_THREADS ? all_threads : row->threads;
  sparse_job j = open_job(row->problem, threads), r = open_job(row->reference, threads);
  /* Cold first, lest hot runs leave rows behind that a cold one counts on. */
  harness_contestant c[] = {{.run = run_cold, .context = &j},
                            {.run = run_cold, .context = &r},
                            {.run = run_hot, .context = &j},
                            {.run = run_hot, .context = &r}};
  harness_rounds rounds = {.isa = j.job->info.isa, .threads = threads, .least = 3, .warm = true};
  rounds.seconds = seconds;
  if (!harness_measure(&rounds, c, 4))
    give_up(row->problem, "out of memory");
  const double cold = ratio(c[0].seconds.best, &j, c[1].seconds.best, &r);
  printf("  %-84s %7d %8.1f %6.1f %6.3f %7.3f %7.3f %7.3f %6.2f %-4s %4.0f %%\n", row->problem,
         threads, 1e-9 * j.flops / c[0].seconds.best, 1e-9 * j.bytes / c[0].seconds.best,
         j.flops / c[0].seconds.best / rounds.peak.best,
         ratio(c[2].seconds.best, &j, c[3].seconds.best, &r),
         ratio(c[0].seconds.median, &j, c[1].seconds.median, &r), cold, row->target,
         verdict(cold, row->target), 100 * rounds.peak.spread);
  fflush(stdout);
  close_job(&j), close_job(&r);
}

/* ---- Writing ---- */

static const struct write_case {
  const char *text;
  amla_dtype type;
  int32_t d_latent, any_scale;
} writes[] = {
    {"write fp8_656", AMLA_FP8_656, 512, 0}, {"write fp8_656, any scale", AMLA_FP8_656, 512, 1},
    {"write fp8_584", AMLA_FP8_584, 448, 0}, {"write fp8_e4m3", AMLA_FP8_E4M3, 512, 0},
    {"write q8_0", AMLA_Q8_0, 512, 0},       {"write f16", AMLA_F16, 512, 0},
    {"write bf16", AMLA_BF16, 512, 0}};

enum { WRITTEN = 4096, WRITE_PAGE = 64, WRITE_SLOTS = 2 * WRITTEN, WRITE_ROPE = 64 };

typedef struct writing {
  amla_cache_write_args args;
  amla_options options;
  void *copy_from, *copy_to;
  size_t copied_bytes;
} writing;

static void write_tokens(void *context) {
  const writing *w = context;
  amla_detail why;
  if (amla_cache_write(&w->args, &w->options, &why) != AMLA_OK)
    give_up("cache_write", why.text);
}

static void copy_tokens(void *context) {
  const writing *w = context;
  memcpy(w->copy_to, w->copy_from, w->copied_bytes);
}

static amla_problem cache_of(const amla_cache_write_args *a) {
  amla_problem p = AMLA_PROBLEM_INIT;
  p.d_qk = a->d_latent + WRITE_ROPE, p.kv_type = a->kv_type, p.kv_scale = a->kv_scale;
  p.page_size = WRITE_PAGE, p.n_pages = a->n_pages, p.kv_rope_scale = a->kv_rope_scale;
  return p;
}

/* Relative, of all elements: e4m3 has 2.6 % of a normal distribution. */
static void verify_writing(const char *text, const writing *w) {
  const amla_cache_write_args *a = &w->args;
  const amla_problem p = cache_of(a);
  double error = 0, all = 0;
  write_tokens((void *)(uintptr_t)w);
  for (int64_t i = 0; i < WRITTEN; i++) {
    const int32_t page = (int32_t)(a->slot_mapping[i] / WRITE_PAGE);
    const int64_t at = harness_token_offset(&p, &page, 0, a->slot_mapping[i] % WRITE_PAGE);
    for (int32_t d = 0; d < a->d_latent; d++) {
      const double x = (double)harness_load(a->latent, AMLA_BF16, i * a->d_latent + d);
      const double y = (double)harness_load_kv(&p, a->kv, at, d);
      error += (y - x) * (y - x), all += x * x;
    }
  }
  if (!(error < 0.04 * 0.04 * all))
    give_up(text, "wrong result");
}

static uint16_t *draw_tokens(int64_t n) {
  uint16_t *to = bench_huge_allocate((size_t)n * sizeof *to);
  uint64_t state = 3;
  for (int64_t i = 0; i < n; i++)
    harness_store(to, AMLA_BF16, i, (float)harness_random_normal(&state));
  return to;
}

/* Tokens, and odd multiples of a number as slots: each of them once. */
static writing open_writing(const struct write_case *row, int threads) {
  writing w = {.args = AMLA_CACHE_WRITE_ARGS_INIT, .options = AMLA_OPTIONS_INIT};
  amla_cache_write_args *a = &w.args;
  const int32_t d = row->d_latent + WRITE_ROPE;
  const size_t token_bytes = (size_t)harness_token_bytes(row->type, d);
  int64_t *slots = bench_huge_allocate(WRITTEN * sizeof *slots);
  for (int64_t i = 0; i < WRITTEN; i++)
    slots[i] = i * 4051 % WRITE_SLOTS;
  a->d_latent = row->d_latent, a->d_rope = WRITE_ROPE, a->any_scale = row->any_scale;
  a->page_size = WRITE_PAGE, a->n_pages = WRITE_SLOTS / WRITE_PAGE, a->n_tokens = WRITTEN;
  a->type = AMLA_BF16, a->kv_type = row->type;
  a->kv_scale = a->kv_rope_scale = row->type == AMLA_FP8_E4M3 ? 0.0175f : 1.0f;
  a->latent = draw_tokens((int64_t)WRITTEN * a->d_latent);
  a->latent_bytes = (size_t)WRITTEN * (size_t)a->d_latent * 2;
  a->rope = draw_tokens(WRITTEN * WRITE_ROPE), a->rope_bytes = WRITTEN * WRITE_ROPE * 2;
  a->slot_mapping = slots, a->slot_mapping_bytes = WRITTEN * sizeof *slots;
  const amla_problem p = cache_of(a);
  a->kv_bytes = (size_t)(p.n_pages * harness_bytes(row->type, harness_page_elems(&p)));
  a->kv = bench_huge_allocate(a->kv_bytes);
  w.options.threads = threads;
  w.copied_bytes = WRITTEN * ((size_t)d * 2 + token_bytes) / 2;
  w.copy_from = bench_huge_allocate(w.copied_bytes);
  w.copy_to = bench_huge_allocate(w.copied_bytes);
  return w;
}

static void run_writing(const struct write_case *row, double seconds, int threads) {
  writing w = open_writing(row, threads);
  verify_writing(row->text, &w);
  harness_contestant c[] = {{.run = write_tokens, .context = &w},
                            {.run = copy_tokens, .context = &w}};
  harness_rounds rounds = {.threads = threads, .least = 3, .warm = true, .seconds = seconds};
  if (!harness_measure(&rounds, c, 2))
    give_up(row->text, "out of memory");
  const double bytes = 2.0 * (double)w.copied_bytes;
  printf("  %-84s %7d %8.2f %8.2f %8.0f\n", row->text, threads, 1e-9 * bytes / c[0].seconds.best,
         1e-9 * bytes / c[1].seconds.best, 1e9 * c[0].seconds.best / WRITTEN);
  fflush(stdout);
  free((void *)(uintptr_t)w.args.latent), free((void *)(uintptr_t)w.args.rope);
  free((void *)(uintptr_t)w.args.slot_mapping), free(w.args.kv);
  free(w.copy_from), free(w.copy_to);
}

static void run_writings(const char *only, double seconds, int all_threads) {
  bool first = true;
  for (size_t i = 0; i < sizeof writes / sizeof *writes; i++) {
    if (strstr(writes[i].text, only) == NULL)
      continue;
    if (first)
      printf("%-86s %7s %8s %8s %8s\n", "cache_write from bf16: read and written", "threads",
             "GB/s", "memcpy", "ns/token");
    first = false;
    run_writing(&writes[i], seconds, 1);
    if (all_threads > 1)
      run_writing(&writes[i], seconds, all_threads);
  }
}

static void run_cases(const char *only, double seconds, int threads) {
  const char *group = NULL;
  for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
    const sparse_case *row = &cases[i];
    if (strstr(row->problem, only) == NULL && strstr(row->group, only) == NULL)
      continue;
    if (group == NULL)
      printf("  %-84s %7s %8s %6s %6s %7s %7s %7s %6s %4s %6s\n", "problem", "threads", "GFLOP/s",
             "GB/s", "peak", "hot", "median", "figure", "target", "", "unrest");
    if (row->group != group)
      printf("%s\n", group = row->group);
    if (has_types(row->problem))
      run_case(row, seconds, threads);
    else
      printf("  %-84s: no such type in this build\n", row->problem);
  }
}

int main(int argc, char **argv) {
  static const bench_flag none[] = {{0}};
  const bench_options o = bench_read_options(argc, argv, 8, "problem or group", none);
  run_cases(o.only, o.seconds, o.threads);
  run_writings(o.only, o.seconds, o.threads);
  return 0;
}
