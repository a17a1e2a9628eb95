/* SPDX-License-Identifier: Apache-2.0
 *
 * /proc/cpuinfo.
 */
#include "machine.h"

#include <stdio.h>
#include <string.h>

/* The value of a line "key<blanks>: value", NULL for another key. */
static const char *value_of(const char *line, const char *key) {
  const size_t length = strlen(key);
  if (strncmp(line, key, length) != 0)
    return NULL;
  const char *colon = line + length + strspn(line + length, " \t");
  if (*colon != ':')
    return NULL;
  return colon[1] == ' ' ? colon + 2 : colon + 1;
}

const char *harness_cpu_line(const char *key, harness_line *line) {
  const char *value = NULL;
  FILE *file = fopen("/proc/cpuinfo", "r");
  if (file == NULL)
    return NULL;
  while (value == NULL && fgets(line->text, sizeof line->text, file) != NULL) {
    line->text[strcspn(line->text, "\n")] = '\0';
    value = value_of(line->text, key);
  }
  fclose(file);
  return value;
}
