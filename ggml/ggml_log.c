/* SPDX-License-Identifier: Apache-2.0
 *
 * Lines on stderr. See ggml_log.h.
 */
#include "ggml_log.h"

#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

bool ggml_log_wanted(void) {
  const char *text = getenv("AMLA_LOG");
  return text != NULL && *text != '\0' && strcmp(text, "0") != 0;
}

void ggml_log(const char *format, ...) {
  char line[512];
  va_list arguments;
  va_start(arguments, format);
  vsnprintf(line, sizeof line, format, arguments);
  va_end(arguments);
  fprintf(stderr, "amla: %s\n", line); /* in one piece */
}

void ggml_log_left(const char *reason) {
  enum { MAX = 32 };
  static _Atomic(const char *) said[MAX];
  if (!ggml_log_wanted()) return;
  for (int i = 0; i < MAX; i++) {
    const char *expected = NULL;
    if (atomic_compare_exchange_strong(&said[i], &expected, reason)) {
      ggml_log("attention left to the CPU: %s", reason);
      return;
    }
    if (expected == reason) return;
  }
}
