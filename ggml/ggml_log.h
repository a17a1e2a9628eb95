/* SPDX-License-Identifier: Apache-2.0
 *
 * What the plug-in says, on stderr. Always: a refusal to load. Unless the environment variable
 * AMLA_LOG is 0: that it was of no use. The rest if AMLA_LOG is set, and not to 0:
 * docs/performance.md has its lines. The environment is read once.
 */
#ifndef AMLA_GGML_LOG_H
#define AMLA_GGML_LOG_H

#include <amla/amla.h>
#include <stdbool.h>

bool ggml_log_wanted(void);   /* all of it */
bool ggml_log_unwanted(void); /* refusals to load only */

__attribute__((format(printf, 1, 2))) void ggml_log(const char *format, ...);

/* Counts a reason, which is a literal, and logs it the first time. */
void ggml_log_left(const char *reason);

/* A line for a plan, and what the line at the end counts. Nothing unless wanted. */
void ggml_log_plan(const amla_problem *problem, const amla_plan *plan);
int64_t ggml_log_nanoseconds(void); /* a clock; 0 unless wanted */
void ggml_log_run(int64_t tokens, double flops, int64_t began_nanoseconds);
void ggml_log_total(void); /* the line, if there was a plan or a refusal */

/* The one counted most often; NULL if there was none. */
const char *ggml_log_commonest_reason(void);

#endif
