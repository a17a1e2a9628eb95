/* SPDX-License-Identifier: Apache-2.0
 *
 * Plans timed side by side in the rounds of harness/rounds.h, beside the machine's limits.
 */
#ifndef AMLA_CLI_MEASURE_H
#define AMLA_CLI_MEASURE_H

#include "cli_job.h"
#include "cli_progress.h"
#include "harness/rounds.h"

enum { CLI_MAX_JOBS = 3 }; /* measured together: the rescale modes */

typedef struct cli_timing {
  int rounds;
  harness_series seconds[CLI_MAX_JOBS]; /* of one run of each job; best = least */
  harness_series peak;                  /* FLOP/s */
  harness_series bandwidth;             /* bytes/s; 0 when not measured */
} cli_timing;

/* jobs [n]: n >= 1, same threads and instruction set. At least one round, then until so many
 * seconds are over. */
cli_timing cli_measure(cli_job *jobs, int n, double seconds, bool bandwidth,
                       cli_progress *progress);

/* harness_measure; ends the program when out of memory. */
void cli_measure_rounds(harness_rounds *rounds, harness_contestant *contestants, int n);

#endif
