/* SPDX-License-Identifier: Apache-2.0
 *
 * The command line that the programs of this folder share.
 */
#ifndef AMLA_BENCH_OPTIONS_H
#define AMLA_BENCH_OPTIONS_H

#include <stdbool.h>

typedef struct bench_options {
  double seconds;   /* for each case */
  int threads;      /* what "all" means */
  const char *only; /* "" = every case */
} bench_options;

/* A flag of one program, with its line of help. */
typedef struct bench_flag {
  const char *name, *help;
  bool *given;
} bench_flag;

/* Sets the program up and reads --for, --threads, --only and its flags, whose list ends with {0}.
 * seconds: where --for is not given. --help and usage errors end the program. only_in: "problem or
 * group". */
bench_options bench_read_options(int argc, char **argv, double seconds, const char *only_in,
                                 const bench_flag *flags);

#endif
