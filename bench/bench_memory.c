/* SPDX-License-Identifier: Apache-2.0
 *
 * Huge pages are asked for, not demanded: where the kernel refuses, everybody runs on small ones.
 */
#define _GNU_SOURCE 1 /* madvise */
#include "bench_memory.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

enum { HUGE_PAGE_BYTES = 2 << 20 };

void *bench_huge_allocate(size_t bytes) {
  const size_t whole_pages = (bytes / HUGE_PAGE_BYTES + 1) * HUGE_PAGE_BYTES;
  void *buffer = NULL;
  if (posix_memalign(&buffer, HUGE_PAGE_BYTES, whole_pages) != 0) {
    fprintf(stderr, "bench: out of memory (%zu bytes)\n", bytes);
    exit(1);
  }
  (void)madvise(buffer, whole_pages, MADV_HUGEPAGE);
  return memset(buffer, 0, whole_pages);
}
