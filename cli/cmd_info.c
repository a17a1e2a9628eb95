/* SPDX-License-Identifier: Apache-2.0
 *
 * amla info: what this machine is, what the library makes of it, and the limits measured now.
 */
#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cli_commands.h"
#include "cli_job.h"
#include "cli_measure.h"
#include "cli_options.h"
#include "cli_report.h"
#include "harness/machine.h"

static const char doc[] = "Prints CPU features, the instruction set in use, the backends, and the "
                          "measured FMA peak and read bandwidth.\v"
                          "Examples:\n"
                          "  amla info\n"
                          "  AMLA_ISA=avx2 amla info --json";

static const struct argp_child children[] = {
    {&cli_machine_argp, 0, NULL, 0}, {&cli_json_argp, 0, NULL, 0}, {0}};

static error_t parse(int key, char *text, struct argp_state *state) {
  switch (key) {
  case ARGP_KEY_INIT: state->child_inputs[0] = state->child_inputs[1] = state->input; return 0;
  case ARGP_KEY_ARG: argp_error(state, "extra argument '%s'", text); return 0;
  default: return ARGP_ERR_UNKNOWN;
  }
}

/* ---- What the system says ---- */

typedef struct cpu_description {
  char model[128];
  char features[256]; /* those that matter here */
} cpu_description;

static void pick_features(const char *flags, char *features, size_t bytes) {
  static const char *const wanted[] = {"avx2",        "fma",         "f16c",     "avx512f",
                                       "avx512_bf16", "avx512_fp16", "amx_tile", "amx_bf16",
                                       "asimd",       "sve"};
  char padded[4096], word[32];
  snprintf(padded, sizeof padded, " %s ", flags);
  for (size_t i = 0; i < sizeof wanted / sizeof *wanted; i++) {
    snprintf(word, sizeof word, " %s ", wanted[i]);
    if (strstr(padded, word) == NULL)
      continue;
    snprintf(features + strlen(features), bytes - strlen(features), "%s%s", *features ? " " : "",
             wanted[i]);
  }
}

static cpu_description describe_cpu(void) {
  cpu_description cpu = {"unknown", ""};
  harness_line line;
  const char *model = harness_cpu_line("model name", &line);
  if (model != NULL)
    snprintf(cpu.model, sizeof cpu.model, "%.*s", (int)sizeof cpu.model - 1, model);
  const char *flags = harness_cpu_line("flags", &line);
  if (flags == NULL)
    flags = harness_cpu_line("Features", &line); /* Arm's word */
  if (flags != NULL)
    pick_features(flags, cpu.features, sizeof cpu.features);
  return cpu;
}

/* ---- What is measured ---- */

typedef struct limits {
  double peak, bandwidth; /* FLOP/s, bytes/s */
} limits;

static limits measure(amla_isa isa, int threads) {
  harness_rounds r = {.isa = isa, .threads = threads, .least = 40, .with_reads = true};
  cli_measure_rounds(&r, NULL, 0);
  return (limits){r.peak.best, r.bandwidth.best};
}

/* L2 of a thread in bytes, as a plan of backend cpu says it; 0: unknown. False when refused. */
static bool ask_l2(int64_t *bytes, amla_detail *detail) {
  amla_problem p = AMLA_PROBLEM_INIT;
  amla_options o = AMLA_OPTIONS_INIT;
  amla_plan_info info = AMLA_PLAN_INFO_INIT;
  amla_plan *plan;
  p.scale = 1.0f;
  o.backend = AMLA_BACKEND_CPU;
  const bool done = amla_plan_create(&plan, &p, &o, detail) == AMLA_OK &&
                    amla_plan_query(plan, &info, detail) == AMLA_OK;
  amla_plan_destroy(plan);
  *bytes = info.l2_bytes;
  return done;
}

/* ---- Report ---- */

enum { MAX_BACKENDS = 8 };
typedef struct facts {
  cpu_description cpu;
  amla_isa isa;
  int threads;
  limits one, all;
  int64_t l2_bytes;
  int n_backends; /* AUTO included, which is none */
  amla_backend_info backends[MAX_BACKENDS];
} facts;

static void print_text(const facts *f) {
  const char *cap = getenv("AMLA_ISA");
  printf("library    amla %s\n", amla_version());
  printf("cpu        %s\nfeatures   %s\n", f->cpu.model, f->cpu.features);
  printf("isa        %s", amla_isa_name(f->isa));
  if (cap && *cap)
    printf(" (AMLA_ISA=%s)", cap);
  putchar('\n');
  for (int i = AMLA_ISA_C; amla_isa_name((amla_isa)i); i++)
    if (amla_isa_missing((amla_isa)i))
      printf("no %-8s for want of %s\n", amla_isa_name((amla_isa)i), amla_isa_missing((amla_isa)i));
  for (int b = AMLA_BACKEND_REF; b < f->n_backends; b++)
    printf("backend    %-5s %s%s\n", f->backends[b].name,
           f->backends[b].available ? "available" : "absent: ", f->backends[b].reason);
  if (f->l2_bytes > 0)
    printf("l2         %lld KiB a thread\n", (long long)(f->l2_bytes / 1024));
  else
    printf("l2         unknown\n");
  printf("fma peak   %.1f GFLOP/s on 1 thread, %.1f on %d (%s)\n", f->one.peak / 1e9,
         f->all.peak / 1e9, f->threads, amla_isa_name(f->isa));
  printf("memory     %.1f GB/s read on 1 thread, %.1f on %d\n", f->one.bandwidth / 1e9,
         f->all.bandwidth / 1e9, f->threads);
  printf("balance    %.0f FLOP/byte on %d thread%s: problems below are bound by memory\n",
         f->all.peak / f->all.bandwidth, f->threads, f->threads == 1 ? "" : "s");
}

static json_t *backends_json(const facts *f) {
  json_t *list = json_array();
  for (int b = AMLA_BACKEND_REF; b < f->n_backends; b++)
    json_array_append_new(list, cli_json_pack("{s:s, s:b, s:s, s:s}", "name", f->backends[b].name,
                                              "available", f->backends[b].available, "isa",
                                              f->backends[b].isa, "reason", f->backends[b].reason));
  return list;
}

/* By instruction set that does not run, what it lacks. */
static json_t *missing_json(void) {
  json_t *missing = json_object();
  for (int i = AMLA_ISA_C; amla_isa_name((amla_isa)i); i++)
    if (amla_isa_missing((amla_isa)i))
      json_object_set_new(missing, amla_isa_name((amla_isa)i),
                          json_string(amla_isa_missing((amla_isa)i)));
  return missing;
}

static void print_json(const facts *f) {
  cli_print_json(cli_json_pack(
      "{s:s, s:o, s:s, s:s, s:o, s:i, s:I, s:o, s:f, s:f, s:f, s:f}", "version", amla_version(),
      "cpu", cli_json_text(f->cpu.model), "features", f->cpu.features, "isa", amla_isa_name(f->isa),
      "isas_missing", missing_json(), "threads", f->threads, "l2_bytes", (json_int_t)f->l2_bytes,
      "backends", backends_json(f), "peak_gflops_1_thread", f->one.peak / 1e9, "peak_gflops",
      f->all.peak / 1e9, "read_bytes_per_second_1_thread", f->one.bandwidth,
      "read_bytes_per_second", f->all.bandwidth));
}

cli_exit cmd_info(int argc, char **argv) {
  cli_options options = CLI_OPTIONS_INIT;
  facts f = {.cpu = describe_cpu()};
  amla_detail detail;
  cli_parse(NULL, doc, NULL, parse, children, argc, argv, &options);
  if (!cli_machine(argv[0], &options, &f.isa, &f.threads))
    return CLI_ERROR;
  bool done = ask_l2(&f.l2_bytes, &detail);
  f.n_backends = AMLA_BACKEND_REF;
  for (int b; done && amla_backend_name((amla_backend)(b = f.n_backends)) != NULL; f.n_backends++) {
    assert(b < MAX_BACKENDS);
    f.backends[b] = (amla_backend_info)AMLA_BACKEND_INFO_INIT;
    done = amla_backend_query((amla_backend)b, &f.backends[b], &detail) == AMLA_OK;
  }
  if (!done) {
    cli_error(argv[0], "%s", detail.text);
    return CLI_ERROR;
  }
  f.one = measure(f.isa, 1);
  f.all = f.threads == 1 ? f.one : measure(f.isa, f.threads);
  (options.json ? print_json : print_text)(&f);
  return CLI_OK;
}
