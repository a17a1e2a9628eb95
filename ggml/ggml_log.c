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

static bool is_0(const char *text) { return strcmp(text, "0") == 0; }

bool ggml_log_wanted(void) {
  const char *text = getenv("AMLA_LOG");
  return text != NULL && *text != '\0' && !is_0(text);
}

bool ggml_log_unwanted(void) {
  const char *text = getenv("AMLA_LOG");
  return text != NULL && is_0(text);
}

void ggml_log(const char *format, ...) {
  char line[512];
  va_list arguments;
  va_start(arguments, format);
  vsnprintf(line, sizeof line, format, arguments);
  va_end(arguments);
  fprintf(stderr, "amla: %s\n", line); /* in one piece */
}

enum { MAX_REASONS = 32 };
static struct {
  _Atomic(const char *) reason; /* NULL: free */
  atomic_int times;
} left[MAX_REASONS];

void ggml_log_left(const char *reason) {
  for (int i = 0; i < MAX_REASONS; i++) {
    const char *found = NULL;
    const bool is_new = atomic_compare_exchange_strong(&left[i].reason, &found, reason);
    if (!is_new && found != reason)
      continue;
    atomic_fetch_add(&left[i].times, 1);
    if (is_new && ggml_log_wanted())
      ggml_log("attention left to the CPU: %s", reason);
    return;
  }
}

const char *ggml_log_commonest_reason(void) {
  int most = 0;
  for (int i = 1; i < MAX_REASONS; i++)
    if (atomic_load(&left[i].times) > atomic_load(&left[most].times))
      most = i;
  return atomic_load(&left[most].reason);
}
