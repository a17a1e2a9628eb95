/* SPDX-License-Identifier: Apache-2.0
 *
 * Rounds and their statistics.
 */
#include "bench_rounds.h"

#include <assert.h>
#include <stdlib.h>

#include "harness/roofline.h"

enum { MIN_ROUNDS = 3, MAX_ROUNDS = 20000, MAX_SERIES = 16 };
static const double slice_seconds = 0.005; /* about what a scheduler gives undisturbed */

/* ---- Statistics -------------------------------------------------------------------------------------------------- */

static int ascending(const void *a, const void *b) {
  const double x = *(const double *)a, y = *(const double *)b;
  return (x > y) - (x < y);
}

static bench_series summarise(double *values, int n, bool least_is_best) { /* sorts them */
  qsort(values, (size_t)n, sizeof *values, ascending);
  const double median = 0.5 * (values[(n - 1) / 2] + values[n / 2]);
  return (bench_series){.best = least_is_best ? values[0] : values[n - 1],
                        .median = median,
                        .spread = (values[3 * (n - 1) / 4] - values[(n - 1) / 4]) / median};
}

/* ---- One slice --------------------------------------------------------------------------------------------------- */

static double time_runs(const bench_contestant *c, int repetitions) {
  const double start = harness_seconds();
  for (int i = 0; i < repetitions; i++) c->run(c->context);
  return (harness_seconds() - start) / repetitions;
}

static int calibrate(const bench_contestant *c) {
  for (int repetitions = 1;; repetitions *= 2) {
    const double seconds = time_runs(c, repetitions);
    if (seconds * repetitions >= slice_seconds / 4) return 1 + (int)(slice_seconds / seconds);
  }
}

/* A peak round lasts as long as the shortest contestant's: the clock rises for moments, and the best of shorter rounds would be
 * such a moment for the one and an average for the other. */
static double shortest_slice(double *const *values, const bench_contestant *list, int n, int round) {
  double shortest = values[0][round] * list[0].repetitions;
  for (int i = 1; i < n; i++)
    if (values[i][round] * list[i].repetitions < shortest) shortest = values[i][round] * list[i].repetitions;
  return shortest > slice_seconds ? shortest : slice_seconds;
}

/* Who comes first changes from round to round: nobody always follows the same neighbour's cache. */
static void run_round(const bench_contestant *list, int n, const bench_peak *peak, bool warm, int round,
                      double *const *values) {
  for (int i = 0; i < n; i++) {
    const int c = (i + round) % n;
    if (warm) list[c].run(list[c].context);
    values[c][round] = time_runs(&list[c], list[c].repetitions);
  }
  values[n][round] = harness_peak_flops(peak->isa, peak->threads, shortest_slice(values, list, n, round));
}

int bench_rounds(bench_contestant *list, int n, bench_peak *peak, bool warm, double seconds) {
  double *values[MAX_SERIES]; /* [n + 1][MAX_ROUNDS]; the peak comes last */
  int rounds = 0;
  assert(n < MAX_SERIES);
  for (int i = 0; i <= n; i++) values[i] = malloc(MAX_ROUNDS * sizeof *values[i]);
  for (int i = 0; i <= n; i++)
    if (values[i] == NULL) abort();
  for (int i = 0; i < n; i++) list[i].repetitions = calibrate(&list[i]);

  const double start = harness_seconds();
  while (rounds < MIN_ROUNDS || (rounds < MAX_ROUNDS && harness_seconds() - start < seconds))
    run_round(list, n, peak, warm, rounds++, values);
  for (int i = 0; i < n; i++) list[i].seconds = summarise(values[i], rounds, true);
  peak->flops = summarise(values[n], rounds, false);
  for (int i = 0; i <= n; i++) free(values[i]);
  return rounds;
}
