/* SPDX-License-Identifier: Apache-2.0
 *
 * What compilers call without being asked, for code that runs where there is no libc.
 */
#include <stddef.h>

void *memcpy(void *restrict to, const void *restrict from, size_t n);
void *memset(void *to, int byte, size_t n);

void *memcpy(void *restrict to, const void *restrict from, size_t n) {
  volatile char *t = to; /* or the compiler would see memcpy in it */
  for (size_t i = 0; i < n; i++)
    t[i] = ((const char *)from)[i];
  return to;
}

void *memset(void *to, int byte, size_t n) {
  volatile char *t = to;
  for (size_t i = 0; i < n; i++)
    t[i] = (char)byte;
  return to;
}
