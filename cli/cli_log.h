/* SPDX-License-Identifier: Apache-2.0
 *
 * What AMLA_LOG=1 says on stderr: a line for each plan, one when the program ends.
 * docs/performance.md has their form. Without it nothing is counted.
 */
#ifndef AMLA_CLI_LOG_H
#define AMLA_CLI_LOG_H

#include <amla/amla.h>
#include <stdbool.h>

bool cli_log_wanted(void);
void cli_log_plan(const amla_problem *problem, const char *description);
void cli_log_run(double tokens, double flops, double seconds); /* 0: not timed */
void cli_log_refused(void);

#endif
