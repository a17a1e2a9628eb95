/* SPDX-License-Identifier: Apache-2.0
 *
 * The body of every encoder: amla.h says what amla_cache_write makes of an element. Included by one
 * file per instruction set, for which the compiler vectorises these loops. No selection below
 * branches: what is not selected is computed too. That file has what it narrows by itself.
 */
#ifndef AMLA_CPU_ENCODE_LOOPS_H
#define AMLA_CPU_ENCODE_LOOPS_H

#include "../base/dtype.h"
#include "../base/float8.h"
#include "../base/load.h"
#include "encode_rows.h"

/* h [n] = x [n]; codes [n] of x / scale, n <= GROUP. */
static void narrow_f16(int32_t n, const float *x, uint16_t *h);
static void narrow_e4m3(int32_t n, const float *x, float scale, uint8_t *codes);

enum { GROUP = 128 }; /* most elements at a time: those of one scale of fp8_656 */

/* x [n] as f32, n <= GROUP. */
static inline void widen(amla_dtype type, int32_t n, const void *x, int32_t i, float *to) {
  amla_load_row(type, n, (const char *)x + amla_elems_bytes(type, i), to);
}

enum { INFINITE = 0x7f800000 }; /* bits of infinity, below those of NaN */

/* The largest magnitude: bits of floats are ordered as they are. */
static inline int32_t largest_bits(int32_t n, const float *x) {
  int32_t largest = 0;
  for (int32_t i = 0; i < n; i++) {
    const int32_t a = (int32_t)(amla_f32_bits(x[i]) & 0x7fffffffu);
    largest = a > largest ? a : largest;
  }
  return largest;
}

/* The largest magnitude among the finite elements. */
static inline float largest_finite(int32_t n, const float *x) {
  int32_t largest = largest_bits(n, x);
  if (largest < INFINITE)
    return amla_f32_from_bits((uint32_t)largest);
  largest = 0;
  for (int32_t i = 0; i < n; i++) {
    int32_t a = (int32_t)(amla_f32_bits(x[i]) & 0x7fffffffu);
    a = a < INFINITE ? a : 0;
    largest = a > largest ? a : largest;
  }
  return amla_f32_from_bits((uint32_t)largest);
}

static inline float group_scale(int32_t n, const float *x, int32_t any_scale) {
  const float scale = largest_finite(n, x) / AMLA_E4M3_MAX, least = 1e-4f;
  const float at_least = scale > least ? scale : least;
  return any_scale ? at_least : amla_power_of_2_above(at_least);
}

static inline void put(void *to, const void *from, size_t bytes) { memcpy(to, from, bytes); }

static inline void encode_656(const amla_encoding *e, const void *latent, char *row) {
  float x[GROUP];
  for (int32_t i = 0; i < AMLA_FP8_656_LATENT; i += AMLA_FP8_656_GROUP) {
    widen(e->from, AMLA_FP8_656_GROUP, latent, i, x);
    const float scale = group_scale(AMLA_FP8_656_GROUP, x, e->any_scale);
    narrow_e4m3(AMLA_FP8_656_GROUP, x, scale, (uint8_t *)row + i);
    put(row + AMLA_FP8_656_LATENT + i / AMLA_FP8_656_GROUP * 4, &scale, sizeof scale);
  }
}

static inline void encode_584(const amla_encoding *e, const void *latent, char *row,
                              uint8_t *scales) {
  float x[GROUP];
  for (int32_t i = 0; i < AMLA_FP8_584_LATENT; i += AMLA_FP8_584_GROUP) {
    widen(e->from, AMLA_FP8_584_GROUP, latent, i, x);
    const float scale = group_scale(AMLA_FP8_584_GROUP, x, 0);
    narrow_e4m3(AMLA_FP8_584_GROUP, x, scale, (uint8_t *)row + i);
    *scales++ = amla_power_of_2_to_e8m0(scale);
  }
  *scales = 0; /* the pad */
}

/* Blocks of 32. Adding 1.5 * 2^23 rounds to an integer. */
static inline void encode_q8_0(int32_t n, const float *x, char *to) {
  for (int32_t i = 0; i < n; i += AMLA_Q8_0_ELEMS, x += AMLA_Q8_0_ELEMS, to += AMLA_Q8_0_BYTES) {
    const int32_t bits = largest_bits(AMLA_Q8_0_ELEMS, x);
    const float largest = amla_f32_from_bits((uint32_t)bits);
    uint16_t d = amla_f32_to_f16(largest / 127.0f);
    const float factor = d == 0 ? 0.0f : 127.0f / largest;
    const int finite = bits < INFINITE && d < 0x7c00;
    d = finite ? d : 0x7e00; /* NaN */
    put(to, &d, sizeof d);
    for (int j = 0; j < AMLA_Q8_0_ELEMS; j++) {
      const float rounded = (finite ? x[j] * factor : 0.0f) + 0x1.8p23f;
      to[2 + j] = (char)(int8_t)(amla_f32_bits(rounded) & 0xffu);
    }
  }
}

/* n <= GROUP elements of a type without groups of its own; `to` is where they go. */
static inline void encode_some(amla_dtype type, int32_t n, const float *x, float scale, void *to) {
  uint16_t *h = (uint16_t *)to;
  switch (type) {
  case AMLA_BF16:
    for (int32_t i = 0; i < n; i++)
      h[i] = amla_f32_to_bf16(x[i]);
    return;
  case AMLA_F16: narrow_f16(n, x, h); return;
  case AMLA_Q8_0: encode_q8_0(n, x, to); return;
  case AMLA_FP8_E4M3: narrow_e4m3(n, x, scale, to); return;
  default: memcpy(to, x, (size_t)n * sizeof *x);
  }
}

/* x [n] of type `from`; the same type keeps its bits. */
static inline void encode_plain(amla_dtype from, amla_dtype type, int32_t n, const void *x,
                                float scale, char *to) {
  float group[GROUP];
  if (from == type) {
    memcpy(to, x, (size_t)amla_elems_bytes(type, n));
    return;
  }
  for (int32_t i = 0; i < n; i += GROUP) {
    const int32_t some = n - i < GROUP ? n - i : GROUP;
    widen(from, some, x, i, group);
    encode_some(type, some, group, scale, to + amla_elems_bytes(type, i));
  }
}

/* The bf16 of a record, of any alignment. */
static inline void encode_fp8_rope(amla_dtype from, const void *rope, void *to) {
  uint16_t h[AMLA_FP8_ROPE];
  encode_plain(from, AMLA_BF16, AMLA_FP8_ROPE, rope, 1.0f, (char *)h);
  put(to, h, sizeof h);
}

static void encode_token(const amla_encoding *e, const void *latent, const void *rope,
                         amla_encoded to) {
  if (e->to == AMLA_FP8_656) {
    encode_656(e, latent, to.row);
    encode_fp8_rope(e->from, rope, to.rope);
  } else if (e->to == AMLA_FP8_584) {
    encode_584(e, latent, to.row, to.scales);
    encode_fp8_rope(e->from, rope, to.rope);
  } else {
    encode_plain(e->from, e->to, e->d_latent, latent, e->scale, to.row);
    if (e->d_rope > 0) /* else rope is NULL, which memcpy may not have */
      encode_plain(e->from, e->to, e->d_rope, rope, e->rope_scale, to.rope);
  }
}

#endif
