/* SPDX-License-Identifier: Apache-2.0
 *
 * The attention operation of an unmodified, prebuilt ggml: its own CPU backend against the plug-in,
 * in one process, in turns. Every result is checked before it is timed: against f64, and against
 * ggml's bound for backends.
 *
 *     bench_ggml [--quick] [--prompts | --apart] [--for SECONDS] [--threads N] LIBGGML_AMLA_SO
 *                FOLDER_OF_LIBGGML
 *
 * --prompts: prompts only, and beside them the library alone (bench_prompts.h). --apart: only where
 * V lies apart from K, which has no target.
 *
 * Exit codes: 0 measured, whatever the verdicts; 1 error; 2 usage; 3 a result is not right.
 */
#define _GNU_SOURCE 1
#include <getopt.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include <amla/amla.h>

#include "bench_prompts.h"
#include "ggml/ggml_session.h"

typedef struct arguments {
  double seconds; /* per case */
  int threads;    /* "all" */
  bool quick, prompts, apart;
  const char *plugin, *folder;
} arguments;

typedef struct contestant {
  const char *name;
  void *backend;
  double seconds, error; /* best run; relative error against f64 */
} contestant;

/* What the plug-in promises with an instruction set, as a factor over ggml's own time: a prompt; a
 * decode step of fewer than 1024 keys, of fewer than 4096, of more with few heads, and with 128.
 * The FMA peak allows 8 times ggml's f16 step with AVX-512, and 3.9 with AVX2 (EPYC Milan). */
typedef struct promise {
  const char *isa;
  double prompt, brief, medium, few_heads, many_heads;
} promise;

static const promise promises[] = {
    {"avx512", 3.0, 1.0, 5.0, 6.0, 7.0}, {"avx2", 2.0, 1.0, 3.0, 3.0, 3.0}, {"c", 0, 0, 0, 0, 0}};
enum { N_PROMISES = sizeof promises / sizeof *promises };

/* 0 = none. */
static double target(const promise *p, const ggml_case *c) {
  if (c->cache & CACHE_APART)
    return 0;
  if (c->tokens > 1)
    return p->prompt;
  if (c->kv < 1024)
    return p->brief;
  if (c->kv < 4096)
    return p->medium;
  return c->heads >= 128 ? p->many_heads : p->few_heads;
}

/* Of the instruction set that the plug-in uses: it asks the same library in the same environment.
 */
static const promise *find_promise(void) {
  amla_backend_info info = AMLA_BACKEND_INFO_INIT;
  amla_detail why;
  if (amla_backend_query(AMLA_BACKEND_CPU, &info, &why) != AMLA_OK) {
    fprintf(stderr, "bench: %s\n", why.text);
    exit(1);
  }
  int i = 0;
  while (i < N_PROMISES - 1 && strcmp(promises[i].isa, info.isa) != 0)
    i++;
  return &promises[i];
}

static double visible_flops(const ggml_case *c) {
  const double keys =
      c->mask == MASK_CAUSAL ? (double)c->kv - ((double)c->tokens - 1.0) / 2.0 : (double)c->kv;
  return 2.0 * (double)(c->heads * c->tokens * c->streams * (c->d_k + 512)) * keys;
}

static double now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static void check(ggml_session *s, ggml_job *job, contestant *list) {
  const int64_t n = 512 * job->c.heads * job->c.tokens * job->c.streams;
  float *truth = malloc((size_t)n * sizeof *truth), *cpu = malloc((size_t)n * sizeof *cpu);
  char text[160];
  ggml_job_truth(s, job, n * job->c.kv / 1000000 + 1, truth);
  if (!ggml_job_taken(s, job))
    fprintf(stderr, "bench: %s: refused\n", ggml_case_text(&job->c, text)), exit(3);
  for (int i = 0; i < 2; i++) {
    if (!ggml_job_run(s, job, list[i].backend))
      fprintf(stderr, "bench: %s: %s failed\n", ggml_case_text(&job->c, text), list[i].name),
          exit(1);
    list[i].error = sqrt(ggml_nmse(truth, job->op->data, n));
    if (i == 0)
      memcpy(cpu, job->op->data, (size_t)n * sizeof *cpu);
  }
  const double nmse = ggml_nmse(cpu, job->op->data, n);
  if (!(nmse <= 5e-4) || !(list[0].error < 0.03) || !(list[1].error < 1e-4)) {
    fprintf(stderr, "bench: %s: wrong result: NMSE %.1e, relative errors %.1e and %.1e\n",
            ggml_case_text(&job->c, text), nmse, list[0].error, list[1].error);
    exit(3);
  }
  free(cpu);
  free(truth);
}

/* In turns; a slice is one run, or as many as fit into 2 ms. */
static void measure(ggml_session *s, ggml_job *job, contestant *list, double seconds) {
  const double end = now() + seconds;
  list[0].seconds = list[1].seconds = INFINITY;
  for (int round = 0; round < 3 || now() < end; round++)
    for (int i = 0; i < 2; i++) {
      const double slice_end = now() + 2e-3;
      do {
        const double start = now();
        ggml_job_run(s, job, list[i].backend);
        const double took = now() - start;
        if (took < list[i].seconds)
          list[i].seconds = took;
      } while (now() < slice_end);
    }
}

/* Returns whether the target is met. */
static bool run_case(ggml_session *s, const promise *p, const ggml_case *c, int threads,
                     const arguments *a) {
  contestant list[] = {{"ggml", s->cpu, 0, 0}, {"amla", s->amla, 0, 0}};
  ggml_job job;
  ggml_session_threads(s, threads);
  ggml_job_create(s, c, 1, &job);
  check(s, &job, list);
  measure(s, &job, list, a->seconds);
  const double ratio = list[0].seconds / list[1].seconds, flops = visible_flops(c);
  const double promised = target(p, c);
  const bool met = promised > 0 && ratio >= promised;
  const char *word = met ? "ok" : "miss";
  if (promised == 0)
    word = "none";
  printf("%6lld %5lld %6lld %-4s %2d   %10.3f %10.3f   %6.1f %6.1f   %5.1fx  %3.0fx %-4s   %.0e "
         "%.0e%s\n",
         (long long)c->tokens, (long long)c->heads, (long long)c->kv, ggml_type_text(c->type),
         threads, list[0].seconds * 1e3, list[1].seconds * 1e3, flops / list[0].seconds * 1e-9,
         flops / list[1].seconds * 1e-9, ratio, promised, word, list[0].error, list[1].error,
         c->cache & CACHE_APART ? "  V apart" : "");
  fflush(stdout);
  ggml_job_free(s, &job);
  return met;
}

static int count_thread_counts(const arguments *a) { return a->threads > 1 ? 2 : 1; }

static void run_apart(ggml_session *s, const arguments *a) {
  static const struct shape {
    int64_t heads, kv, tokens;
  } shapes[] = {{128, 4096, 1}, {16, 4096, 1}, {16, 512, 512}};
  for (int t = 0; t < count_thread_counts(a); t++)
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++) {
      const struct shape *h = &shapes[i];
      run_case(s, find_promise(),
               &(ggml_case){576, h->heads, h->kv, h->tokens, 1, GGML_ABI_F16, MASK_CAUSAL, false,
                            false, true, CACHE_APART, 0},
               t ? a->threads : 1, a);
    }
}

static void print_header(void) {
  printf("targets of %s, the instruction set of amla\n", find_promise()->isa);
  printf("tokens heads   n_kv K    threads  ggml ms    amla ms   ggml & amla GFLOP/s  ratio target "
         "      rel. error of each\n");
}

static void run_targets(ggml_session *s, const arguments *a) {
  static const int32_t types[] = {GGML_ABI_F16, GGML_ABI_BF16, GGML_ABI_Q8_0};
  static const int64_t heads[] = {128, 16}, decode_kv[] = {256, 1024, 4096, 16384},
                       prefill_kv[] = {512, 2048};
  const promise *p = find_promise();
  int met = 0, n = 0;
  for (int t = 0; t < count_thread_counts(a); t++)
    for (int type = 0; type < 3; type++)
      for (int h = 0; h < 2; h++) {
        const int threads = t ? a->threads : 1;
        for (int k = 0; k < (a->quick ? 3 : 4); k++, n++)
          met += run_case(s, p,
                          &(ggml_case){576, heads[h], decode_kv[k], 1, 1, types[type], MASK_CAUSAL,
                                       false, false, true, false, 0},
                          threads, a);
        for (int k = 0; k < (a->quick || h == 0 ? 1 : 2); k++, n++)
          met += run_case(s, p,
                          &(ggml_case){576, heads[h], prefill_kv[k], 512, 1, types[type],
                                       MASK_CAUSAL, false, false, true, false, 0},
                          threads, a);
      }
  printf("%d of %d targets met\n", met, n);
}

static int run_all(ggml_session *s, const arguments *a) {
  print_header();
  run_apart(s, a);
  if (!a->apart)
    run_targets(s, a);
  return fflush(stdout) == 0 && !ferror(stdout) ? 0 : 1;
}

static arguments parse(int argc, char **argv) {
  static const struct option options[] = {
      {"quick", no_argument, NULL, 'q'},         {"prompts", no_argument, NULL, 'p'},
      {"apart", no_argument, NULL, 'a'},         {"for", required_argument, NULL, 'f'},
      {"threads", required_argument, NULL, 't'}, {0}};
  arguments a = {.seconds = 0.0, .threads = (int)sysconf(_SC_NPROCESSORS_ONLN)};
  bool usage = false;
  for (int c; (c = getopt_long(argc, argv, "", options, NULL)) != -1;) {
    if (c == 'q')
      a.quick = true;
    else if (c == 'p')
      a.prompts = true;
    else if (c == 'a')
      a.apart = true;
    else if (c == 'f')
      a.seconds = atof(optarg), usage |= !(a.seconds > 0.0);
    else if (c == 't')
      a.threads = atoi(optarg), usage |= a.threads < 1;
    else
      usage = true;
  }
  if (usage || (a.prompts && a.apart) || argc - optind != 2) {
    fprintf(stderr,
            "usage: bench_ggml [--quick] [--prompts | --apart] [--for SECONDS] [--threads N] "
            "LIBGGML_AMLA_SO FOLDER_OF_LIBGGML\n");
    exit(2);
  }
  if (a.seconds == 0.0)
    a.seconds = a.quick ? 0.3 : 2.0;
  a.plugin = argv[optind];
  a.folder = argv[optind + 1];
  return a;
}

int main(int argc, char **argv) {
  const arguments a = parse(argc, argv);
  ggml_session s;
  if (!ggml_session_open(&s, a.folder, a.plugin))
    return 1;
  printf("ggml %s, its CPU backend on %s against %s\n", s.ggml_version(),
         s.ggml_backend_dev_description(s.cpu_device),
         s.ggml_backend_dev_description(s.amla_device));
  const int status = a.prompts ? bench_prompts(&s, a.threads, a.seconds) : run_all(&s, &a);
  ggml_session_close(&s);
  return status;
}
