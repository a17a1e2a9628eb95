/* SPDX-License-Identifier: Apache-2.0
 *
 * Rounds.
 */
#define _GNU_SOURCE 1 /* cache and memory sizes from sysconf */
#include "cli_measure.h"

#include <math.h>
#include <stdlib.h>
#include <unistd.h>

#include "cli_report.h"
#include "harness/roofline.h"

enum { PEAK = CLI_MAX_JOBS, BANDWIDTH, N_SERIES }; /* series of values; the jobs come first */
static const double slice_seconds =
    0.005; /* of a job or a limit in one round: about what a scheduler gives undisturbed */

/* ---- Statistics -------------------------------------------------------------------------------------------------- */

static int ascending(const void *a, const void *b) {
  const double x = *(const double *)a, y = *(const double *)b;
  return (x > y) - (x < y);
}

typedef struct round_values {
  double value[N_SERIES];
} round_values;

static cli_series summarise(const round_values *rounds, int n, int series, bool least_is_best) {
  double *values = cli_allocate((size_t)n, sizeof *values);
  for (int i = 0; i < n; i++) values[i] = rounds[i].value[series];
  qsort(values, (size_t)n, sizeof *values, ascending);
  const double median = 0.5 * (values[(n - 1) / 2] + values[n / 2]);
  const cli_series summary = {.best = least_is_best ? values[0] : values[n - 1],
                              .median = median,
                              .spread = median > 0 ? (values[3 * (n - 1) / 4] - values[(n - 1) / 4]) / median : 0};
  free(values);
  return summary;
}

/* ---- One round --------------------------------------------------------------------------------------------------- */

static double time_job(const cli_job *job, int repetitions) {
  const double start = harness_seconds();
  for (int i = 0; i < repetitions; i++) /* it ran before: it cannot be refused now */
    (void)amla_plan_run(job->plan, &job->data->tensors, job->scratch, job->scratch_bytes, NULL);
  return (harness_seconds() - start) / repetitions;
}

/* So many runs that they last a round. */
static int calibrate(const cli_job *job) {
  int repetitions = 1;
  for (; repetitions < 1 << 20; repetitions *= 2) {
    const double seconds = time_job(job, repetitions) * repetitions;
    if (seconds >= slice_seconds / 4) return 1 + (int)(slice_seconds / (seconds / repetitions));
  }
  return repetitions;
}

size_t cli_stream_bytes(void) {
  const double cache = (double)sysconf(_SC_LEVEL3_CACHE_SIZE);
  const double memory = (double)sysconf(_SC_PHYS_PAGES) * (double)sysconf(_SC_PAGESIZE);
  double bytes = 2 * cache;
  if (bytes < 64e6) bytes = 64e6;
  if (bytes > memory / 8) bytes = memory / 8;
  return (size_t)(bytes < 1e9 ? bytes : 1e9);
}

static round_values run_round(const cli_job *jobs, int n, const int *repetitions, harness_stream *stream) {
  round_values r = {{0}};
  for (int j = 0; j < n; j++) r.value[j] = time_job(&jobs[j], repetitions[j]);
  double shortest = r.value[0] * repetitions[0]; /* the clock rises for moments: the peak's rounds last as long as the jobs' */
  for (int j = 1; j < n; j++) shortest = fmin(shortest, r.value[j] * repetitions[j]);
  r.value[PEAK] =
      harness_peak_flops(cli_job_isa(jobs), jobs->threads, fmax(shortest, slice_seconds));
  if (stream != NULL) r.value[BANDWIDTH] = harness_stream_read(stream, slice_seconds);
  return r;
}

cli_timing cli_measure(const cli_job *jobs, int n, double seconds, bool bandwidth, cli_progress *progress) {
  harness_stream *stream = bandwidth ? harness_stream_create(cli_stream_bytes(), jobs->threads) : NULL;
  round_values *rounds = NULL;
  cli_timing timing = {0};
  int repetitions[CLI_MAX_JOBS], capacity = 0;
  for (int j = 0; j < n; j++) repetitions[j] = calibrate(&jobs[j]);

  const double start = harness_seconds();
  for (double elapsed = 0; timing.rounds == 0 || elapsed < seconds; elapsed = harness_seconds() - start) {
    if (timing.rounds == capacity) rounds = cli_grow(rounds, &capacity, sizeof *rounds);
    rounds[timing.rounds++] = run_round(jobs, n, repetitions, stream);
    cli_progress_update(progress, elapsed / seconds);
  }
  for (int j = 0; j < n; j++) timing.seconds[j] = summarise(rounds, timing.rounds, j, true);
  timing.peak = summarise(rounds, timing.rounds, PEAK, false);
  timing.bandwidth = summarise(rounds, timing.rounds, BANDWIDTH, false);
  harness_stream_free(stream);
  free(rounds);
  return timing;
}
