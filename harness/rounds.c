/* SPDX-License-Identifier: Apache-2.0
 *
 * Rounds and their statistics.
 */
#include "rounds.h"

#include <assert.h>
#include <math.h>
#include <stdlib.h>

#include "roofline.h"

enum { PEAK = HARNESS_MAX_CONTESTANTS, BANDWIDTH, N_SERIES }; /* the contestants come first */
static const double slice_seconds = 0.005; /* about what a scheduler gives undisturbed */

/* ---- Statistics ---- */

static int ascending(const void *a, const void *b) {
  const double x = *(const double *)a, y = *(const double *)b;
  return (x > y) - (x < y);
}

harness_series harness_summarise(double *values, int n, bool least_is_best) {
  qsort(values, (size_t)n, sizeof *values, ascending);
  const double median = 0.5 * (values[(n - 1) / 2] + values[n / 2]);
  const double quartiles = values[3 * (n - 1) / 4] - values[(n - 1) / 4];
  const double best = least_is_best ? values[0] : values[n - 1];
  return (harness_series){best, median, median > 0 ? quartiles / median : 0};
}

/* ---- One slice ---- */

static double time_runs(const harness_contestant *c, int repetitions) {
  const double start = harness_seconds();
  for (int i = 0; i < repetitions; i++)
    c->run(c->context);
  return (harness_seconds() - start) / repetitions;
}

static int calibrate(const harness_contestant *c) {
  for (int repetitions = 1;; repetitions *= 2) {
    const double seconds = time_runs(c, repetitions);
    if (repetitions >= 1 << 20)
      return repetitions;
    if (seconds * repetitions >= slice_seconds / 4)
      return 1 + (int)(slice_seconds / seconds);
  }
}

/* ---- One round ---- */

typedef struct round_values {
  double of[N_SERIES];
} round_values;

/* A peak's slice lasts as long as the shortest contestant's. The clock rises for moments: the best
 * of shorter slices would be such a moment for the one and an average for the other. */
static double peak_seconds(const round_values *r, const harness_contestant *c, int n) {
  double shortest = INFINITY;
  for (int i = 0; i < n; i++)
    if (r->of[i] * c[i].repetitions < shortest) /* fmin in a loop fails GCC 12 for aarch64 */
      shortest = r->of[i] * c[i].repetitions;
  return n > 0 ? fmax(shortest, slice_seconds) : slice_seconds;
}

/* Who comes first changes from round to round: nobody always follows the same neighbour's cache. */
static round_values run_round(const harness_rounds *rounds, const harness_contestant *c, int n,
                              harness_stream *stream) {
  round_values r = {{0}};
  for (int i = 0; i < n; i++) {
    const int at = (i + rounds->n) % n;
    if (rounds->warm)
      c[at].run(c[at].context);
    r.of[at] = time_runs(&c[at], c[at].repetitions);
  }
  r.of[PEAK] = harness_peak_flops(rounds->isa, rounds->threads, peak_seconds(&r, c, n));
  if (stream != NULL)
    r.of[BANDWIDTH] = harness_stream_read(stream, slice_seconds);
  return r;
}

/* ---- All of them ---- */

/* Room for another round; false when out of memory. */
static bool grow(round_values **list, int n, int *capacity) {
  if (n < *capacity)
    return true;
  const int wanted = *capacity ? 2 * *capacity : 64;
  round_values *grown = realloc(*list, (size_t)wanted * sizeof *grown);
  if (grown == NULL)
    return false;
  *list = grown;
  *capacity = wanted;
  return true;
}

static harness_series summarise(const round_values *list, int n, int series, double *values) {
  for (int i = 0; i < n; i++)
    values[i] = list[i].of[series];
  return harness_summarise(values, n, series < HARNESS_MAX_CONTESTANTS);
}

static bool summarise_all(harness_rounds *r, const round_values *list, harness_contestant *c,
                          int n) {
  double *values = malloc((size_t)r->n * sizeof *values);
  if (values == NULL)
    return false;
  for (int i = 0; i < n; i++)
    c[i].seconds = summarise(list, r->n, i, values);
  r->peak = summarise(list, r->n, PEAK, values);
  r->bandwidth = summarise(list, r->n, BANDWIDTH, values);
  free(values);
  return true;
}

bool harness_measure(harness_rounds *r, harness_contestant *c, int n) {
  harness_stream *stream = r->with_reads ? harness_stream_create(r->threads) : NULL;
  round_values *list = NULL;
  int capacity = 0;
  bool ok = true;
  assert(n <= HARNESS_MAX_CONTESTANTS && r->least >= 1);
  for (int i = 0; i < n; i++)
    c[i].repetitions = calibrate(&c[i]);

  const double start = harness_seconds();
  r->n = 0;
  for (double elapsed = 0; r->n < r->least || elapsed < r->seconds;
       elapsed = harness_seconds() - start) {
    ok = grow(&list, r->n, &capacity);
    if (!ok)
      break;
    list[r->n] = run_round(r, c, n, stream);
    r->n++;
    if (r->progress != NULL)
      r->progress(r->context, elapsed / r->seconds);
  }
  ok = ok && summarise_all(r, list, c, n);
  harness_stream_free(stream);
  free(list);
  return ok;
}
