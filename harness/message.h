/* SPDX-License-Identifier: Apache-2.0
 *
 * How harness functions refuse: one line into the caller's buffer, and -1. And overflow-checked
 * products for sizes.
 */
#ifndef AMLA_HARNESS_MESSAGE_H
#define AMLA_HARNESS_MESSAGE_H

#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

typedef struct message {
  char *text; /* [bytes], may be NULL when bytes is 0 */
  size_t bytes;
} message;

/* Control characters, which names from a file may hold, do not reach a terminal. */
__attribute__((format(printf, 2, 3))) static inline int refuse(message to, const char *format,
                                                               ...) {
  va_list arguments;
  va_start(arguments, format);
  vsnprintf(to.text, to.bytes, format, arguments);
  va_end(arguments);
  for (size_t i = 0; i < to.bytes && to.text[i] != '\0'; i++)
    if ((unsigned char)to.text[i] < ' ' || to.text[i] == 127)
      to.text[i] = '?';
  return -1;
}

/* *x = *x * y + z for non-negative numbers; false, and *x unspecified, when that leaves int64. */
static inline bool multiply_add(int64_t *x, int64_t y, int64_t z) {
  return !__builtin_mul_overflow(*x, y, x) && !__builtin_add_overflow(*x, z, x);
}

#endif
