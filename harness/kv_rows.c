/* SPDX-License-Identifier: Apache-2.0
 *
 * Elements of fp8 caches, written apart from src on purpose. See kv_rows.h.
 */
#include "kv_rows.h"

#include <math.h>
#include <string.h>

#include "dataset.h"

/* Of a record: where its parts lie, in bytes. */
enum { ROPE = 64, LATENT_656 = 512, ROPE_AT_656 = 528 };
enum { LATENT_584 = 448, TOKEN_584 = 576, SCALES_584 = 8 };

/* ---- e4m3fn ---- */

static float e4m3_to_float(unsigned code) {
  const int exponent = (int)(code >> 3 & 15), mantissa = (int)(code & 7);
  const float sign = code & 128 ? -1.0f : 1.0f;
  if (exponent == 15 && mantissa == 7)
    return copysignf(NAN, sign);
  return sign * (exponent == 0 ? ldexpf((float)mantissa, -9)
                               : ldexpf((float)(8 + mantissa), exponent - 10));
}

static unsigned char float_to_e4m3(float x) {
  const unsigned sign = signbit(x) ? 128 : 0;
  const float a = fminf(fabsf(x), 448.0f);
  if (isnan(x))
    return (unsigned char)(sign | 127);
  if (a < 0x1p-6f)
    return (unsigned char)(sign | (unsigned)nearbyintf(a * 512)); /* 8 is the least normal one */
  const int exponent = ilogbf(a);
  const unsigned mantissa = (unsigned)nearbyintf(ldexpf(a, 3 - exponent)); /* 8 to 16 */
  return (unsigned char)(sign | ((unsigned)(exponent + 6) * 8 + mantissa));
}

/* ---- Rows ---- */

bool harness_is_fp8(amla_dtype type) {
  return type == AMLA_FP8_656 || type == AMLA_FP8_584 || type == AMLA_FP8_E4M3;
}

int64_t harness_row_elems(amla_dtype type, int32_t d) {
  if (type == AMLA_FP8_656)
    return 656;
  return type == AMLA_FP8_584 ? TOKEN_584 : d;
}

int64_t harness_token_bytes(amla_dtype type, int32_t d) {
  return harness_bytes(type, harness_row_elems(type, d)) + (type == AMLA_FP8_584 ? SCALES_584 : 0);
}

int32_t harness_record_d_qk(amla_dtype type) {
  switch (type) {
  case AMLA_FP8_656: return LATENT_656 + ROPE;
  case AMLA_FP8_584: return LATENT_584 + ROPE;
  default: return 0;
  }
}

static int64_t tokens_of_page(const amla_problem *p) { return p->page_size ? p->page_size : p->sk; }

int64_t harness_page_elems(const amla_problem *p) {
  const int64_t token = p->kv_stride_token ? p->kv_stride_token
                                           : harness_row_elems(p->kv_type, p->d_qk - p->kv_d_rope);
  const int64_t n = tokens_of_page(p);
  return p->kv_type == AMLA_FP8_584 ? (n * 584 + 575) / 576 * 576 : n * token;
}

/* Where the 8 bytes of scales lie of the token whose row is at byte `at`. */
static int64_t scales_584(const amla_problem *p, int64_t at) {
  const int64_t page = p->kv_stride_page ? p->kv_stride_page : harness_page_elems(p);
  return at / page * page + tokens_of_page(p) * TOKEN_584 + at % page / TOKEN_584 * 8;
}

static int32_t d_latent(const amla_problem *p) {
  switch (p->kv_type) {
  case AMLA_FP8_656: return LATENT_656;
  case AMLA_FP8_584: return LATENT_584;
  default: return p->kv_d_rope > 0 ? p->d_qk - p->kv_d_rope : p->d_v;
  }
}

float harness_load_kv(const amla_problem *p, const void *kv, int64_t at, int32_t d) {
  const unsigned char *row = (const unsigned char *)kv + at;
  const int32_t rope = d - d_latent(p);
  float scale = rope < 0 ? p->kv_scale : p->kv_rope_scale;
  uint16_t h;
  if (!harness_is_fp8(p->kv_type))
    return harness_load(kv, p->kv_type, at + d);
  if (p->kv_type == AMLA_FP8_E4M3)
    return e4m3_to_float(row[d]) * (scale != 0 ? scale : 1.0f);
  if (rope >= 0) {
    memcpy(&h, row + (p->kv_type == AMLA_FP8_656 ? ROPE_AT_656 : LATENT_584) + 2 * rope, sizeof h);
    return harness_load(&h, AMLA_BF16, 0);
  }
  if (p->kv_type == AMLA_FP8_656) {
    memcpy(&scale, row + LATENT_656 + d / 128 * 4, sizeof scale);
  } else {
    const int e = ((const unsigned char *)kv)[scales_584(p, at) + d / 64];
    scale = e == 255 ? NAN : ldexpf(1.0f, e - 127);
  }
  return e4m3_to_float(row[d]) * scale;
}

/* n elements and their scale: what takes the largest to 448; in fp8_584 the power of two above. */
static float store_group(int32_t n, const float *values, int power_of_2, unsigned char *codes) {
  float scale = 0;
  int exponent;
  for (int32_t i = 0; i < n; i++)
    scale = fmaxf(scale, fabsf(values[i]) / 448);
  if (scale == 0)
    scale = 1;
  if (power_of_2 && frexpf(scale, &exponent) != 0.5f)
    scale = ldexpf(1.0f, exponent);
  for (int32_t i = 0; i < n; i++)
    codes[i] = float_to_e4m3(values[i] / scale);
  return scale;
}

int32_t harness_group_elems(amla_dtype type) {
  if (!harness_is_fp8(type))
    return 32;
  return type == AMLA_FP8_656 ? 128 : 64;
}

void harness_store_fp8(const amla_problem *p, void *kv, int64_t at, int32_t d, int32_t n,
                       const float *values) {
  unsigned char *bytes = kv, *row = bytes + at;
  const int is_656 = p->kv_type == AMLA_FP8_656;
  const int32_t latent = d_latent(p), rope_at = is_656 ? ROPE_AT_656 : LATENT_584;
  for (int32_t i = 0; p->kv_type == AMLA_FP8_E4M3 && i < n; i++)
    row[d + i] = float_to_e4m3(values[i] / (d + i < latent ? p->kv_scale : p->kv_rope_scale));
  if (p->kv_type == AMLA_FP8_E4M3)
    return;
  for (int32_t i = 0; d >= latent && i < n; i++) {
    uint16_t h;
    harness_store(&h, AMLA_BF16, 0, values[i]);
    memcpy(row + rope_at + 2 * (d - latent + i), &h, sizeof h);
  }
  if (d >= latent)
    return;
  const float scale = store_group(n, values, !is_656, row + d);
  if (is_656)
    memcpy(row + LATENT_656 + d / 128 * 4, &scale, sizeof scale);
  else
    bytes[scales_584(p, at) + d / 64] = (unsigned char)(ilogbf(scale) + 127);
}
