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
  const int64_t block_bytes = amla_elems_bytes(AMLA_Q8_0, AMLA_BLOCK_ELEMS);
  for (int32_t i = 0; i < n; i += AMLA_BLOCK_ELEMS, x += AMLA_BLOCK_ELEMS, to += block_bytes) {
    const int32_t bits = largest_bits(AMLA_BLOCK_ELEMS, x);
    const float largest = amla_f32_from_bits((uint32_t)bits);
    uint16_t d = amla_f32_to_f16(largest / 127.0f);
    const float factor = d == 0 ? 0.0f : 127.0f / largest;
    const int finite = bits < INFINITE && d < 0x7c00;
    d = finite ? d : 0x7e00; /* NaN */
    put(to, &d, sizeof d);
    for (int j = 0; j < AMLA_BLOCK_ELEMS; j++) {
      const float rounded = (finite ? x[j] * factor : 0.0f) + 0x1.8p23f;
      to[2 + j] = (char)(int8_t)(amla_f32_bits(rounded) & 0xffu);
    }
  }
}

/* The code nearest to t = element / d or (element - m) / d. */
static inline int32_t nearest_code(amla_block_format f, float t) {
  static const float values[] = {AMLA_IQ4_NL_VALUES};
  const float most = (float)((1 << f.bits) - 1);
  int32_t code = 0;
  for (int i = 1; f.is_table && i < 16; i++)
    code += t >= 0.5f * (values[i - 1] + values[i]);
  float at = t + (float)f.zero;
  at = at > 0.0f ? at : 0.0f; /* NaN too */
  at = at < most ? at : most;
  return f.is_table ? code : (int32_t)(at + 0.5f);
}

/* Blocks with codes of 4 or 5 bits. Code 0 stands for the element of largest magnitude, or for the
 * least one. */
static inline void encode_block(amla_dtype type, const float *x, unsigned char *to) {
  const amla_block_format f = amla_block_format_of(type);
  unsigned char *codes = to + f.codes_at;
  float low = x[0], high = x[0], nothing = 0.0f;
  for (int j = 0; j < AMLA_BLOCK_ELEMS; j++) {
    low = x[j] < low ? x[j] : low;
    high = x[j] > high ? x[j] : high;
    nothing += 0.0f * x[j];
  }
  const float extreme = high > -low ? high : low, first = f.is_table ? 127.0f : (float)f.zero;
  const float step = f.has_m ? (high - low) / (float)((1 << f.bits) - 1) : extreme / -first;
  uint16_t d = amla_f32_to_f16(step), m = amla_f32_to_f16(low);
  const int fits = (d & 0x7fff) < 0x7c00 && (!f.has_m || (m & 0x7fff) < 0x7c00);
  d = nothing == 0.0f && fits ? d : 0x7e00; /* NaN */
  const float by = amla_f16_to_f32(d), from = f.has_m ? amla_f16_to_f32(m) : 0.0f;
  memset(to, 0, (size_t)amla_elems_bytes(type, AMLA_BLOCK_ELEMS));
  put(to, &d, sizeof d);
  if (f.has_m)
    put(to + 2, &m, sizeof m);
  for (int j = 0; j < AMLA_BLOCK_ELEMS; j++) {
    const int32_t code = nearest_code(f, by == 0.0f ? 0.0f : (x[j] - from) / by);
    codes[j % 16] |= (unsigned char)((code & 15) << j / 16 * 4);
    if (f.bits == 5)
      codes[j / 8 - 4] |= (unsigned char)(code >> 4 << j % 8);
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
  case AMLA_F32: memcpy(to, x, (size_t)n * sizeof *x); return;
  default:
    for (int32_t i = 0; i < n; i += AMLA_BLOCK_ELEMS)
      encode_block(type, x + i, (unsigned char *)to + amla_elems_bytes(type, i));
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
