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

typedef enum ggml_log_operation {
  GGML_LOG_ATTENTION,
  GGML_LOG_INDEXER,
  GGML_LOG_N_OPERATIONS
} ggml_log_operation;

/* Counts a reason, which is a literal, and logs it the first time. */
void ggml_log_left(ggml_log_operation operation, const char *reason);

/* A status of ggml_abi.h, and why: a line if it is a failure. */
void ggml_log_status(ggml_log_operation operation, int status, const char *why);

/* A line for a plan, and what the line at the end counts. Nothing unless wanted. */
void ggml_log_plan(const amla_problem *problem, const amla_plan *plan);
int64_t ggml_log_nanoseconds(void); /* a clock; 0 unless wanted */
void ggml_log_run(int64_t tokens, double flops, int64_t began_nanoseconds);
void ggml_log_total(void); /* the line, if there was a plan or a refusal, of attention both */

/* The one of attention counted most often; NULL if there was none. */
const char *ggml_log_commonest_reason(void);

#endif
