/* SPDX-License-Identifier: Apache-2.0
 *
 * Timing in many short rounds. A round times every job, then the FMA peak of the same threads and instruction set,
 * then, if wanted, the read bandwidth: neighbours on a shared machine disturb all of them alike, and the best round of
 * each is what the machine can do. The median and the spread (distance between the quartiles over the median) stand
 * beside it.
 */
#ifndef AMLA_CLI_MEASURE_H
#define AMLA_CLI_MEASURE_H

#include <stdbool.h>

#include "cli_job.h"
#include "cli_progress.h"

enum { CLI_MAX_JOBS = 3 }; /* measured together: the rescale modes */

typedef struct cli_series {
  double best, median, spread; /* spread relative to the median */
} cli_series;

typedef struct cli_timing {
  int rounds;
  cli_series seconds[CLI_MAX_JOBS]; /* of one run of each job; best = least */
  cli_series peak;                  /* FLOP/s */
  cli_series bandwidth;             /* bytes/s; 0 when not measured */
} cli_timing;

/* Twice the last-level cache, within reason: what a bandwidth measurement reads. */
size_t cli_stream_bytes(void);

/* jobs [n]: n >= 1, same threads and instruction set. At least one round, then until so many seconds are over. */
cli_timing cli_measure(const cli_job *jobs, int n, double seconds, bool bandwidth, cli_progress *progress);

#endif
