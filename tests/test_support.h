/* SPDX-License-Identifier: Apache-2.0
 *
 * What every test shares: cmocka, the long run, guard bytes around a buffer, bit patterns of f32,
 * hostile numbers. What it takes to run a plan is in test_run.h.
 */
#ifndef AMLA_TEST_SUPPORT_H
#define AMLA_TEST_SUPPORT_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <math.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "harness/dataset.h"

#if defined(__has_feature)
#define TEST_HAS_FEATURE(x) __has_feature(x)
#else
#define TEST_HAS_FEATURE(x) 0
#endif
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__) ||                               \
    TEST_HAS_FEATURE(address_sanitizer) || TEST_HAS_FEATURE(thread_sanitizer)
#define TEST_SANITIZED 1 /* malloc belongs to the sanitizer */
#else
#define TEST_SANITIZED 0
#endif
#if defined(AMLA_EMULATED) /* tools/aarch64.cmake: ten times slower */
#define TEST_EMULATED 1
#else
#define TEST_EMULATED 0
#endif
#define TEST_SLOW (TEST_SANITIZED || TEST_EMULATED) /* fewer inputs */

#define LENGTH(array) ((int)(sizeof(array) / sizeof *(array)))

/* AMLA_LONG=1: every input instead of a sample. */
static inline bool long_run(void) {
  const char *set = getenv("AMLA_LONG");
  return set != NULL && strcmp(set, "1") == 0;
}

/* ---- Bits ---- */

static inline uint32_t to_bits(float x) {
  uint32_t u;
  memcpy(&u, &x, sizeof u);
  return u;
}
static inline float of_bits(uint32_t u) {
  float x;
  memcpy(&x, &u, sizeof x);
  return x;
}

/* The same number: the same bits, or two NaN. */
static inline bool same_number(float a, float b) {
  return to_bits(a) == to_bits(b) || (isnan(a) && isnan(b));
}

/* ---- Random numbers ---- */

/* In [0, n). */
static inline int random_below(uint64_t *state, int n) {
  return (int)(harness_random(state) % (uint64_t)n);
}

static inline float random_normal(uint64_t *state) { return (float)harness_random_normal(state); }

/* A finite number of any kind: normal deviates, +-0, subnormals, both ends of the exponent range.
 */
static inline float random_hostile(uint64_t *state) {
  const float sign = harness_random(state) & 1 ? 1.0f : -1.0f;
  switch (harness_random(state) % 8) {
  case 0: return sign * 0.0f;
  case 1: return sign * 0x1p-149f * (float)(1 + random_below(state, 1 << 23)); /* subnormal */
  case 2: return sign * 0x1p-126f;
  case 3: return sign * 0x1.fffffep127f;
  case 4: return sign * ldexpf(1.0f, random_below(state, 254) - 126);
  default: return random_normal(state);
  }
}

/* ---- Guarded buffers ---- */

enum { GUARD_BYTES = 128, GUARD_PATTERN = 0xA5 };

typedef struct guarded {
  unsigned char *block; /* guard, data, guard */
  size_t bytes;         /* of the data */
  size_t offset;        /* of the data in the block */
} guarded;

/* Data of that size, `skew` bytes behind a 64-byte boundary, filled with the guard pattern. */
static inline guarded guarded_create(size_t bytes, size_t skew) {
  guarded g = {NULL, bytes, GUARD_BYTES + skew};
  const size_t whole = (g.offset + bytes + GUARD_BYTES + 63) / 64 * 64;
  g.block = aligned_alloc(64, whole);
  assert_non_null(g.block);
  memset(g.block, GUARD_PATTERN, whole);
  return g;
}

static inline void *guarded_data(const guarded *g) { return g->block + g->offset; }

/* How many bytes outside the data have changed. */
static inline int guarded_damage(const guarded *g) {
  int damage = 0;
  for (size_t i = 0; i < g->offset; i++)
    damage += g->block[i] != GUARD_PATTERN;
  for (size_t i = 0; i < GUARD_BYTES; i++)
    damage += g->block[g->offset + g->bytes + i] != GUARD_PATTERN;
  return damage;
}

static inline void guarded_free(guarded *g) {
  free(g->block);
  g->block = NULL;
}

/* Which column of d stands in column i of a row that a micro-kernel table has `split`. */
static inline int32_t split_column(int32_t d, int32_t i) {
  return i / 32 * 32 + 32 <= d ? i / 32 * 32 + i % 16 * 2 + i % 32 / 16 : i;
}

/* f32 buffers as the micro-kernels want them: 64-byte aligned. */
static inline float *alloc_floats(int64_t count) {
  float *x = aligned_alloc(64, ((size_t)count * sizeof *x + 64) / 64 * 64);
  assert_non_null(x);
  return x;
}

/* Tests that hold for pure patterns of bytes. */
static inline bool all_bytes_are(const void *data, size_t bytes, unsigned char value) {
  const unsigned char *at = data;
  for (size_t i = 0; i < bytes; i++)
    if (at[i] != value)
      return false;
  return true;
}

#endif
