/* SPDX-License-Identifier: Apache-2.0
 *
 * The shared command line.
 */
#define _GNU_SOURCE 1 /* getopt_long, program_invocation_short_name */
#include "bench_options.h"

#include <errno.h>
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>

#include <amla/amla.h>

#include "harness/program.h"

enum { MAX_FLAGS = 8, FIRST_FLAG = 256 }; /* above every character */

static void print_usage(FILE *to, const char *only_in, const bench_flag *flags) {
  fprintf(to, "Usage: %s [--for SECONDS] [--threads N] [--only TEXT]",
          program_invocation_short_name);
  for (const bench_flag *f = flags; f->name; f++)
    fprintf(to, " [--%s]", f->name);
  fprintf(to, "\n"
              "  --for SECONDS  time for each case: how long to look for quiet\n"
              "  --threads N    what \"all\" threads means (default: all)\n");
  fprintf(to, "  --only TEXT    cases whose %s contains TEXT\n", only_in);
  for (const bench_flag *f = flags; f->name; f++)
    fprintf(to, "  --%-12s %s\n", f->name, f->help);
}

/* 0 if it is none. */
static double parse_positive(const char *text) {
  char *end;
  const double value = strtod(text, &end);
  if (*end == '\0' && value > 0 && value < 1e6)
    return value;
  fprintf(stderr, "bench: '%s' is not a positive number\n", text);
  return 0;
}

static int parse_threads(const char *text) {
  const double value = parse_positive(text);
  if (value == (int)value)
    return (int)value;
  fprintf(stderr, "bench: --threads=%s: must be an integer >= 1\n", text);
  return 0;
}

/* The library's own, as `amla info` has it. It refuses where AMLA_NUM_THREADS is not a number. */
static int default_threads(void) {
  amla_problem any = AMLA_PROBLEM_INIT;
  amla_detail detail;
  amla_options options = AMLA_OPTIONS_INIT;
  amla_plan *plan;
  amla_plan_info info = AMLA_PLAN_INFO_INIT;
  any.h_q = any.sk = 1, any.scale = 1.0f;
  if (amla_plan_create(&plan, &any, &options, &detail) != AMLA_OK) {
    fprintf(stderr, "bench: %s\n", detail.text);
    exit(1);
  }
  amla_plan_query(plan, &info, NULL);
  amla_plan_destroy(plan);
  return info.threads;
}

static void list_options(struct option *options, const bench_flag *flags) {
  static const struct option common[] = {{"for", 1, NULL, 'f'},
                                         {"threads", 1, NULL, 't'},
                                         {"only", 1, NULL, 'o'},
                                         {"help", 0, NULL, 'h'}};
  for (size_t i = 0; i < sizeof common / sizeof *common; i++)
    *options++ = common[i];
  for (int i = 0; flags[i].name && i < MAX_FLAGS; i++)
    *options++ = (struct option){flags[i].name, 0, NULL, FIRST_FLAG + i};
  *options = (struct option){0};
}

bench_options bench_read_options(int argc, char **argv, double seconds, const char *only_in,
                                 const bench_flag *flags) {
  bench_options o = {seconds, 0, ""};
  struct option options[4 + MAX_FLAGS + 1];
  int key;
  bool ok = true;
  harness_program_setup("bench");
  list_options(options, flags);
  while ((key = getopt_long(argc, argv, "", options, NULL)) != -1) {
    switch (key) {
    case 'f': ok = (o.seconds = parse_positive(optarg)) > 0 && ok; break;
    case 't': ok = (o.threads = parse_threads(optarg)) > 0 && ok; break;
    case 'o': o.only = optarg; break;
    case 'h': print_usage(stdout, only_in, flags), exit(0);
    default:
      ok = ok && key >= FIRST_FLAG;
      if (key >= FIRST_FLAG)
        *flags[key - FIRST_FLAG].given = true;
    }
  }
  if (ok && optind == argc) {
    o.threads = o.threads > 0 ? o.threads : default_threads();
    return o;
  }
  print_usage(stderr, only_in, flags);
  exit(2);
}
