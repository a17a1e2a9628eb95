/* SPDX-License-Identifier: Apache-2.0
 *
 * What the plug-in says, on stderr: a refusal to load always, the rest if the environment variable AMLA_LOG is set, and not to 0.
 */
#ifndef AMLA_GGML_LOG_H
#define AMLA_GGML_LOG_H

#include <stdbool.h>

bool ggml_log_wanted(void);

__attribute__((format(printf, 1, 2))) void ggml_log(const char *format, ...);

/* Like ggml_log("attention left to the CPU: ..."), once for each reason, which is a literal. */
void ggml_log_left(const char *reason);

#endif
