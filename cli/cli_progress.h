/* SPDX-License-Identifier: Apache-2.0
 *
 * A bar on standard error for jobs of more than a second; nothing unless that is a terminal.
 */
#ifndef AMLA_CLI_PROGRESS_H
#define AMLA_CLI_PROGRESS_H

#include <stdbool.h>

typedef struct cli_progress {
  const char *what;
  bool enabled, drawn;
  double started, last; /* seconds */
} cli_progress;

cli_progress cli_progress_begin(const char *what);
void cli_progress_update(void *progress, double fraction); /* a harness_progress */
void cli_progress_end(cli_progress *progress);             /* erases the bar */

#endif
