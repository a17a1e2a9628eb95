/* SPDX-License-Identifier: Apache-2.0
 *
 * Plans as contestants.
 */
#include "cli_measure.h"

#include <stdlib.h>

#include "cli_commands.h"
#include "cli_report.h"

static void run_job(void *context) { /* it ran before: it cannot be refused now */
  (void)cli_job_run(context, NULL);
}

void cli_measure_rounds(harness_rounds *rounds, harness_contestant *contestants, int n) {
  if (harness_measure(rounds, contestants, n))
    return;
  cli_error("amla", "out of memory");
  exit(CLI_ERROR);
}

cli_timing cli_measure(cli_job *jobs, int n, double seconds, bool bandwidth,
                       cli_progress *progress) {
  harness_contestant list[CLI_MAX_JOBS];
  harness_rounds r = {.isa = cli_job_isa(jobs),
                      .threads = jobs->threads,
                      .least = 1,
                      .seconds = seconds,
                      .with_reads = bandwidth,
                      .progress = cli_progress_update,
                      .context = progress};
  for (int j = 0; j < n; j++)
    list[j] = (harness_contestant){.run = run_job, .context = &jobs[j]};
  cli_measure_rounds(&r, list, n);
  cli_timing timing = {.rounds = r.n, .peak = r.peak, .bandwidth = r.bandwidth};
  for (int j = 0; j < n; j++)
    timing.seconds[j] = list[j].seconds;
  return timing;
}
