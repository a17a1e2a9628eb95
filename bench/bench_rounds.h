/* SPDX-License-Identifier: Apache-2.0
 *
 * Interleaved timing. A round runs every contestant for a slice of some milliseconds and measures the FMA peak of the
 * same threads and instruction set; the best slice of each is what it can do on this machine, the median and the spread
 * say how quiet the machine was.
 */
#ifndef AMLA_BENCH_ROUNDS_H
#define AMLA_BENCH_ROUNDS_H

#include "harness/truth.h"

typedef struct bench_series {
  double best, median, spread; /* spread: distance between the quartiles over the median */
} bench_series;

typedef struct bench_contestant {
  char name[32]; /* "lazy", "OpenBLAS blocked" */
  void (*run)(void *context);
  void *context;
  double flops;         /* useful work of one run */
  harness_error error;  /* against fp64 */
  bench_series seconds; /* of one run; best = least. Filled in by bench_rounds */
  int repetitions;      /* runs in one slice */
} bench_contestant;

typedef struct bench_peak {
  amla_isa isa;
  int threads;
  bench_series flops; /* FLOP/s. Filled in by bench_rounds */
} bench_peak;

/* At least three rounds, then until so many seconds are over. warm: a slice begins with a run that does not count and
 * brings back what the others have driven out of the caches. Returns the number of rounds. */
int bench_rounds(bench_contestant *list, int n, bench_peak *peak, bool warm, double seconds);

#endif
