/* SPDX-License-Identifier: Apache-2.0
 *
 * The speed of the CPU backend against the machine's FMA peak and against peers, case by case, each
 * figure beside its target. Every contestant's result is compared with fp64 before it is timed; all
 * of them take turns in short rounds.
 *
 *     bench_cpu [--quick] [--for SECONDS] [--threads N] [--only TEXT] [--cold] [--json]
 */
#define _GNU_SOURCE 1 /* setenv */
#include <omp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "bench_cases.h"
#include "bench_job.h"
#include "bench_options.h"
#include "bench_report.h"
#include "harness/machine.h"
#include "peer.h"

typedef struct arguments {
  double seconds; /* per case */
  int threads;    /* all of them */
  bool quick, cold, json;
  const char *only;
} arguments;

/* ---- One case ---- */

typedef struct contest {
  const bench_case *row;
  harness_dataset *data, *reference_data;
  bench_job *jobs[BENCH_MODES + 1]; /* the last one runs the reference problem */
  peer *peers[PEER_MAX_LIBRARIES * PEER_FORMS];
  int n_peers;
  bench_result *result;
} contest;

/* Adds a contestant after it has run once and was found right, as a plan with that info; returns
 * its place. */
static int enter(contest *c, const char *problem, harness_dataset *data, const char *name,
                 const amla_plan_info *info, void (*run)(void *), void *context) {
  bench_contestant *x = &c->result->list[c->result->n];
  *x = (bench_contestant){.flops = harness_flops(data)};
  c->result->timed[c->result->n] = (harness_contestant){.run = run, .context = context};
  snprintf(x->name, sizeof x->name, "%s", name);
  harness_reset_outputs(data);
  run(context);
  x->error = harness_compare_plan(data, bench_truth(problem, data), info);
  if (x->error.ok)
    return c->result->n++;
  fprintf(stderr, "bench: %s: %s: wrong result: relative error %.2e, %.2g of the bound\n", problem,
          name, x->error.rel_error, x->error.worst_of_bound);
  exit(3);
}

static void enter_ours(contest *c) {
  for (int m = 0; m < BENCH_MODES; m++) {
    const amla_rescale mode = (amla_rescale)(AMLA_RESCALE_LAZY + m);
    c->jobs[m] = bench_job_create(c->data, c->row->isa, mode, c->result->rounds.threads);
    enter(c, c->row->problem, c->data, amla_rescale_name(mode), &c->jobs[m]->info, bench_job_run,
          c->jobs[m]);
  }
  c->result->rounds.isa = c->jobs[0]->info.isa;
}

static void enter_reference(contest *c) {
  const char *problem = c->row->reference;
  if (problem == NULL)
    return;
  c->reference_data = bench_load(problem);
  c->jobs[BENCH_MODES] = bench_job_create(c->reference_data, c->row->isa, AMLA_RESCALE_LAZY,
                                          c->result->rounds.threads);
  bench_job *job = c->jobs[BENCH_MODES];
  c->result->reference =
      enter(c, problem, c->reference_data, "reference", &job->info, bench_job_run, job);
}

static void enter_peer(contest *c, int library, peer_form form) {
  const peer_library *l = peer_libraries[library];
  char name[sizeof c->result->list->name];
  snprintf(name, sizeof name, "%s %s", l->name, peer_form_names[form]);
  const harness_rounds *r = &c->result->rounds;
  l->prepare(r->threads);
  peer *p = c->peers[c->n_peers++] = peer_create(l, form, c->data, r->isa, r->threads);
  static const amla_plan_info info = AMLA_PLAN_INFO_INIT; /* f32 */
  c->result->peers[library][form] = enter(c, c->row->problem, c->data, name, &info, peer_run, p);
}

static void enter_peers(contest *c) {
  for (int l = 0; peer_libraries[l] != NULL; l++) {
    if (bench_has_target(c->row->fused))
      enter_peer(c, l, PEER_UNFUSED), enter_peer(c, l, PEER_BLOCKED);
    if (bench_has_target(c->row->bare))
      enter_peer(c, l, PEER_BARE);
  }
}

static void close_contest(contest *c) {
  for (int j = 0; j <= BENCH_MODES; j++)
    bench_job_destroy(c->jobs[j]);
  for (int i = 0; i < c->n_peers; i++)
    peer_destroy(c->peers[i]);
  bench_unload(c->data);
  bench_unload(c->reference_data);
}

static void run_case(const bench_case *row, const arguments *a, bench_result *result) {
  contest c = {.row = row, .result = result, .data = bench_load(row->problem)};
  result->row = row;
  result->rounds = (harness_rounds){.least = 3, .seconds = a->seconds, .warm = !a->cold};
  result->rounds.threads = row->threads == BENCH_ALL_THREADS ? a->threads : row->threads;
  (void)bench_truth(row->problem, c.data); /* on all threads, before a peer sets their number */
  enter_ours(&c);
  enter_reference(&c);
  enter_peers(&c);
  if (!harness_measure(&result->rounds, result->timed, result->n))
    abort();
  close_contest(&c);
  omp_set_num_threads(a->threads);
}

/* ---- Surroundings ---- */

/* OpenBLAS 0.3.21 takes a virtualised CPU that it does not know by number for an old one. It reads
 * its environment before main, so the program starts itself again. */
static void name_the_cpu_to_openblas(char **argv) {
#if defined(__x86_64__)
  if (__builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
      getenv("OPENBLAS_CORETYPE") == NULL) {
    setenv("OPENBLAS_CORETYPE", "SKYLAKEX", 1);
    execv("/proc/self/exe", argv);
  }
#endif
  (void)argv;
}

/* What tells a processor apart; a virtual machine's model name alone may not. */
static void print_cpu(FILE *to) {
  static const char *const wanted[] = {"cpu family", "model", "model name", "cache size"};
  harness_line line;
  for (size_t i = 0; i < sizeof wanted / sizeof *wanted; i++)
    if (harness_cpu_line(wanted[i], &line) != NULL)
      fprintf(to, "CPU      %s\n", line.text);
}

#if defined(__clang__)
static const char compiler[] = ""; /* __VERSION__ says it */
#else
static const char compiler[] = "GCC";
#endif

static void print_surroundings(FILE *to, const arguments *a) {
  char text[160];
  amla_backend_info cpu = AMLA_BACKEND_INFO_INIT;
  amla_detail why;
  const char *core = getenv("OPENBLAS_CORETYPE");
  if (amla_backend_query(AMLA_BACKEND_CPU, &cpu, &why) != AMLA_OK) {
    fprintf(stderr, "bench: %s\n", why.text);
    exit(1);
  }
  print_cpu(to);
  fprintf(to, "isa      %s, whose targets are meant\n", cpu.isa);
  fprintf(to, "threads  %d\ncompiler %s %s\nlibrary  amla %s\n", a->threads, compiler, __VERSION__,
          amla_version());
  for (int l = 0; peer_libraries[l] != NULL; l++) {
    peer_libraries[l]->describe(text, sizeof text);
    fprintf(to, "peer     %s: %s\n", peer_libraries[l]->name, text);
  }
  if (core != NULL)
    fprintf(to, "         OPENBLAS_CORETYPE=%s, which is not left to its detection\n", core);
  fprintf(to,
          "memory   huge pages asked for: scratch, KV cache and all peers' buffers alike\n"
          "time     %g s a case, caches %s\n\n",
          a->seconds, a->cold ? "as the others left them" : "warm");
}

/* ---- Arguments ---- */

static arguments parse(int argc, char **argv) {
  arguments a = {0};
  const bench_flag flags[] = {
      {"quick", "fewer cases, 1.5 s each", &a.quick},
      {"cold", "no run before each slice that brings the caches back", &a.cold},
      {"json", "everything, as JSON", &a.json},
      {0}};
  const bench_options o = bench_read_options(argc, argv, 0, "problem or group", flags);
  a.seconds = o.seconds, a.threads = o.threads, a.only = o.only;
  if (a.seconds == 0)
    a.seconds = a.quick ? 1.5 : 8;
  return a;
}

static bool wanted(const bench_case *row, const arguments *a) {
  if (a->quick && !row->quick)
    return false;
  return strstr(row->problem, a->only) != NULL || strstr(row->group, a->only) != NULL;
}

static int count_wanted(const arguments *a) {
  int n = 0;
  for (int i = 0; i < bench_n_cases; i++)
    n += wanted(&bench_cases[i], a);
  return n;
}

int main(int argc, char **argv) {
  const arguments a = parse(argc, argv);
  name_the_cpu_to_openblas(argv);
  bench_result *results = calloc((size_t)bench_n_cases, sizeof *results);
  int n = 0;
  if (results == NULL)
    return 1;
  if (count_wanted(&a) == 0) {
    fprintf(stderr, "bench: --only=%s: no case contains it%s\n", a.only,
            a.quick ? ", of those of --quick" : "");
    return 2;
  }
  omp_set_num_threads(a.threads);
  print_surroundings(a.json ? stderr : stdout, &a);
  for (int i = 0; i < bench_n_cases; i++) {
    if (!wanted(&bench_cases[i], &a))
      continue;
    fprintf(stderr, "[%d/%d] %s, %s\n", i + 1, bench_n_cases, bench_cases[i].group,
            bench_cases[i].problem);
    run_case(&bench_cases[i], &a, &results[n++]);
  }
  bench_mark_disturbed(results, n);
  (a.json ? bench_print_json : bench_print_tables)(results, n);
  free(results);
  return 0;
}
