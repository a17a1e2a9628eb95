/* SPDX-License-Identifier: Apache-2.0
 *
 * A bump allocator over the caller's scratch. With a NULL base it only counts, so that the same
 * carving code gives both the size and the pointers. Everything is 64-byte aligned; a base of any
 * alignment works, for AMLA_ARENA_ALIGN bytes more.
 */
#ifndef AMLA_BASE_ARENA_H
#define AMLA_BASE_ARENA_H

#include <stddef.h>
#include <stdint.h>

_Static_assert(sizeof(size_t) >= 8, "sizes of scratch are bounded for 64-bit hosts only");

enum { AMLA_ARENA_ALIGN = 64, AMLA_ARENA_PAGE = 4096 };

typedef struct amla_arena {
  char *base; /* aligned, or NULL to count */
  size_t used_bytes;
} amla_arena;

static inline amla_arena amla_arena_create(void *scratch) {
  const uintptr_t at = (uintptr_t)scratch;
  amla_arena a = {scratch ? (char *)scratch +
                                (AMLA_ARENA_ALIGN - at % AMLA_ARENA_ALIGN) % AMLA_ARENA_ALIGN
                          : NULL,
                  0};
  return a;
}

/* What follows begins with a page of its own: the memory of another thread. */
static inline void amla_arena_turn_page(amla_arena *a) {
  const uintptr_t at = (uintptr_t)a->base + a->used_bytes;
  const size_t padding = (AMLA_ARENA_PAGE - at % AMLA_ARENA_PAGE) % AMLA_ARENA_PAGE;
  a->used_bytes += a->base ? padding : AMLA_ARENA_PAGE - AMLA_ARENA_ALIGN;
}

/* n elements of elem_bytes; NULL when counting. Sizes are bounded by the plan's limits: products
 * do not overflow. */
static inline void *amla_arena_take(amla_arena *a, int64_t n, size_t elem_bytes) {
  void *p = a->base ? a->base + a->used_bytes : NULL;
  a->used_bytes +=
      ((size_t)n * elem_bytes + AMLA_ARENA_ALIGN - 1) / AMLA_ARENA_ALIGN * AMLA_ARENA_ALIGN;
  return p;
}

#endif
