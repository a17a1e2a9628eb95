/* SPDX-License-Identifier: Apache-2.0
 *
 * The speed of the indexer: its scores against the FMA peak of the same threads, and what choosing
 * costs beside them. Each problem is compared with fp64 before it is timed; scores alone, lists,
 * and the peak take turns in short rounds.
 *
 *     bench_index [--for SECONDS] [--threads N] [--only TEXT]
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "bench_memory.h"
#include "bench_options.h"
#include "harness/index_data.h"
#include "harness/rounds.h"

enum { ALL_THREADS = 0 };

/* ---- Cases ---- */

typedef struct index_case {
  const char *name;
  int32_t heads, sk;
  amla_index_keys keys;
  int threads;
  double of_peak; /* target for scores; 0 = none */
} index_case;

static const index_case cases[] = {
    {"64 heads, 32K, bf16", 64, 32768, AMLA_INDEX_KEYS_BF16, 1, 0.80},
    {"64 heads, 32K, bf16", 64, 32768, AMLA_INDEX_KEYS_BF16, ALL_THREADS, 0.80},
    {"64 heads, 128K, bf16", 64, 131072, AMLA_INDEX_KEYS_BF16, 1, 0.80},
    {"64 heads, 128K, bf16", 64, 131072, AMLA_INDEX_KEYS_BF16, ALL_THREADS, 0.80},
    {"64 heads, 32K, fp8", 64, 32768, AMLA_INDEX_KEYS_FP8_PAGE, 1, 0.80},
    {"64 heads, 128K, fp8", 64, 131072, AMLA_INDEX_KEYS_FP8_PAGE, 1, 0.80},
    {"64 heads, 128K, fp8", 64, 131072, AMLA_INDEX_KEYS_FP8_PAGE, ALL_THREADS, 0.80},
    {"32 heads, 32K, fp8", 32, 32768, AMLA_INDEX_KEYS_FP8_PAGE, 1, 0},
};
static const double selection_target = 0.03; /* of the scores' time */

/* ---- A contestant: lists without scores, or scores alone ---- */

typedef struct index_job {
  amla_index_args args;
  amla_options options;
  void *scratch;
  size_t scratch_bytes;
} index_job;

static void give_up(const char *name, const char *why) {
  fprintf(stderr, "bench: %s: %s\n", name, why);
  exit(1);
}

static index_job create_job(const char *name, const amla_index_args *args, int threads) {
  index_job j = {*args, AMLA_OPTIONS_INIT, NULL, 0};
  amla_detail why;
  j.options.threads = threads;
  if (amla_index_scratch_bytes(&j.args, &j.options, &j.scratch_bytes, &why) != AMLA_OK)
    give_up(name, why.text);
  j.scratch = bench_huge_allocate(j.scratch_bytes);
  return j;
}

static void run_job(void *context) {
  index_job *j = context;
  amla_detail why;
  if (amla_index_topk(&j->args, &j->options, j->scratch, j->scratch_bytes, &why) != AMLA_OK)
    give_up("run", why.text);
}

static void verify(const index_case *row, const harness_index_data *data, int threads) {
  index_job j = create_job(row->name, &data->args, threads);
  run_job(&j);
  free(j.scratch);
  const char *flaw = harness_index_flaw(data, 0, 0);
  if (flaw == NULL)
    return;
  fprintf(stderr, "bench: %s: wrong result: %s\n", row->name, flaw);
  exit(3);
}

/* ---- One case ---- */

static amla_isa measured_isa(void) {
  amla_backend_info cpu = AMLA_BACKEND_INFO_INIT;
  amla_detail why;
  if (amla_backend_query(AMLA_BACKEND_CPU, &cpu, &why) != AMLA_OK)
    give_up("cpu", why.text);
  int isa = AMLA_ISA_C;
  while (strcmp(amla_isa_name((amla_isa)isa), cpu.isa) != 0)
    isa++;
  return (amla_isa)isa;
}

static const char *verdict(double of_peak, double selection, double target) {
  if (target == 0)
    return "";
  return of_peak >= target && selection <= selection_target ? "ok" : "miss";
}

static void run_case(const index_case *row, double seconds, int all_threads) {
  const int threads = row->threads == ALL_THREADS ? all_threads : row->threads;
  harness_index_data data;
  amla_index_args shape = AMLA_INDEX_ARGS_INIT;
  shape.heads = row->heads, shape.sk = row->sk, shape.keys = row->keys, shape.page_size = 64;
  shape.index_kind = AMLA_INDEX_POSITION;
  if (!harness_index_create(&data, &shape, 1, false))
    give_up(row->name, "out of memory");
  verify(row, &data, threads);

  amla_index_args lists = data.args, scores = data.args;
  lists.scores = NULL, scores.topk = 0;
  index_job jobs[] = {create_job(row->name, &scores, threads),
                      create_job(row->name, &lists, threads)};
  harness_contestant c[] = {{.run = run_job, .context = &jobs[0]},
                            {.run = run_job, .context = &jobs[1]}};
  harness_rounds rounds = {.isa = measured_isa(), .threads = threads, .least = 3, .warm = true};
  rounds.seconds = seconds;
  if (!harness_measure(&rounds, c, 2))
    give_up(row->name, "out of memory");
  const double flops = 2.0 * row->heads * shape.d * row->sk;
  const double time = c[0].seconds.best, of_peak = flops / time / rounds.peak.best;
  const double selection = c[1].seconds.best / time - 1.0;
  printf("%-22s %7d %9.3f %8.1f %8.3f %8.3f %9.1f%% %7.0f%%  %s\n", row->name, threads, 1e3 * time,
         1e-9 * flops / time, of_peak, flops / c[0].seconds.median / rounds.peak.median,
         100 * selection, 100 * rounds.peak.spread, verdict(of_peak, selection, row->of_peak));
  fflush(stdout);
  free(jobs[0].scratch), free(jobs[1].scratch);
  harness_index_free(&data);
}

int main(int argc, char **argv) {
  static const bench_flag none[] = {{0}};
  const bench_options o = bench_read_options(argc, argv, 8, "name", none);
  printf("isa %s, top 2048, targets: scores 0.80 of the FMA peak, selection %.0f %% of their time\n"
         "%-22s %7s %9s %8s %8s %8s %10s %8s\n",
         amla_isa_name(measured_isa()), 100 * selection_target, "case", "threads", "scores ms",
         "GFLOP/s", "of peak", "median", "selection", "unrest");
  for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
    if (strstr(cases[i].name, o.only) != NULL)
      run_case(&cases[i], o.seconds, o.threads);
  return 0;
}
