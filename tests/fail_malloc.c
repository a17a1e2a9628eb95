/* SPDX-License-Identifier: Apache-2.0
 *
 * Preloaded into a program: its allocation number AMLA_FAIL_AT fails, all others do not.
 * With 0 none fails, and the last line on standard error says how many there were.
 */
#include <errno.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>

/* glibc's own, under their other names */
void *__libc_malloc(size_t bytes);
void *__libc_calloc(size_t n, size_t bytes);
void *__libc_realloc(void *memory, size_t bytes);

#define EXPORTED __attribute__((visibility("default")))
EXPORTED void *malloc(size_t bytes);
EXPORTED void *calloc(size_t n, size_t bytes);
EXPORTED void *realloc(void *memory, size_t bytes);

static atomic_long allocations;

static long fail_at(void) {
  const char *text = getenv("AMLA_FAIL_AT");
  return text ? atol(text) : -1;
}

static int fails(void) {
  if (atomic_fetch_add(&allocations, 1) + 1 != fail_at())
    return 0;
  errno = ENOMEM;
  return 1;
}

void *malloc(size_t bytes) { return fails() ? NULL : __libc_malloc(bytes); }
void *calloc(size_t n, size_t bytes) { return fails() ? NULL : __libc_calloc(n, bytes); }
void *realloc(void *memory, size_t bytes) { return fails() ? NULL : __libc_realloc(memory, bytes); }

__attribute__((destructor)) static void report(void) {
  if (fail_at() == 0)
    fprintf(stderr, "%ld\n", atomic_load(&allocations));
}
