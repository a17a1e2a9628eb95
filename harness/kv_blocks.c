/* SPDX-License-Identifier: Apache-2.0
 *
 * See kv_blocks.h. A block is f16 d, in q4_1 and q5_1 f16 m, in q5_0 and q5_1 32 fifth bits, codes.
 */
#include "kv_blocks.h"

#include <math.h>
#include <string.h>

#include "dataset.h"

bool harness_is_block(amla_dtype type) {
  int32_t bytes;
  return amla_dtype_block(type, &bytes) == HARNESS_BLOCK;
}

static const float nonlinear[] = {-127, -104, -83, -65, -49, -35, -22, -10,
                                  1,    13,   25,  38,  53,  69,  89,  113};

/* ---- Codes and what they stand for ---- */

static int n_codes(amla_dtype type) {
  switch (type) {
  case AMLA_Q5_0:
  case AMLA_Q5_1: return 32;
  case AMLA_Q8_0: return 256;
  default: return 16;
  }
}

/* What d is multiplied by. */
static float multiple(amla_dtype type, int code) {
  switch (type) {
  case AMLA_Q8_0: return (float)(int8_t)code;
  case AMLA_Q4_0: return (float)(code - 8);
  case AMLA_Q5_0: return (float)(code - 16);
  case AMLA_IQ4_NL: return nonlinear[code];
  default: return (float)code;
  }
}

static bool has_m(amla_dtype type) { return type == AMLA_Q4_1 || type == AMLA_Q5_1; }

static float half_at(const unsigned char *block, int at) {
  uint16_t h;
  memcpy(&h, block + at, sizeof h);
  return harness_load(&h, AMLA_F16, 0);
}

static float value_of(amla_dtype type, const unsigned char *block, int code) {
  const float x = half_at(block, 0) * multiple(type, code);
  return has_m(type) ? x + half_at(block, 2) : x;
}

/* The last bytes of a block are codes. */
static unsigned char *codes_of(amla_dtype type, unsigned char *block) {
  int32_t bytes;
  amla_dtype_block(type, &bytes);
  return block + bytes - (type == AMLA_Q8_0 ? 32 : 16);
}

static int get_code(amla_dtype type, unsigned char *block, int j) {
  const unsigned char *codes = codes_of(type, block);
  if (type == AMLA_Q8_0)
    return codes[j];
  const int nibble = j < 16 ? codes[j] & 15 : codes[j - 16] >> 4;
  const int fifth = n_codes(type) == 32 && (codes[-4 + j / 8] & 1 << j % 8) != 0;
  return nibble + 16 * fifth;
}

static void set_code(amla_dtype type, unsigned char *block, int j, int code) {
  unsigned char *codes = codes_of(type, block);
  if (type == AMLA_Q8_0)
    codes[j] = (unsigned char)code;
  else
    codes[j % 16] |= (unsigned char)(code % 16 << (j < 16 ? 0 : 4));
  if (n_codes(type) == 32 && code >= 16)
    codes[-4 + j / 8] |= (unsigned char)(1 << j % 8);
}

/* ---- Elements ---- */

static unsigned char *block_at(const void *buffer, amla_dtype type, int64_t i) {
  return (unsigned char *)buffer + harness_bytes(type, i / HARNESS_BLOCK * HARNESS_BLOCK);
}

float harness_load_block(const void *buffer, amla_dtype type, int64_t i) {
  unsigned char *block = block_at(buffer, type, i);
  return value_of(type, block, get_code(type, block, (int)(i % HARNESS_BLOCK)));
}

/* Of q8_0, whose codes are in [-127, 127]. */
static int nearest_integer(float d, float value) {
  return d == 0 ? 0 : (int)fminf(fmaxf(nearbyintf(value / d), -127), 127);
}

/* Of 16 or 32 that are listed. */
static int nearest_listed(int n, const float *list, float value) {
  int best = 0;
  for (int code = 1; code < n; code++)
    if (fabsf(list[code] - value) < fabsf(list[best] - value))
      best = code;
  return best;
}

static void set_codes(amla_dtype type, unsigned char *block, const float *values) {
  float list[32];
  const int n = type == AMLA_Q8_0 ? 0 : n_codes(type);
  for (int code = 0; code < n; code++)
    list[code] = value_of(type, block, code);
  for (int j = 0; j < HARNESS_BLOCK; j++)
    set_code(type, block, j,
             n > 0 ? nearest_listed(n, list, values[j])
                   : nearest_integer(half_at(block, 0), values[j]));
}

/* The step for elements between low and high. */
static float step_for(amla_dtype type, float low, float high) {
  const float extreme = high > -low ? high : low;
  switch (type) {
  case AMLA_Q8_0: return fabsf(extreme) / 127;
  case AMLA_Q4_0: return extreme / -8;
  case AMLA_Q5_0: return extreme / -16;
  case AMLA_IQ4_NL: return extreme / -127;
  default: return (high - low) / (float)(n_codes(type) - 1);
  }
}

void harness_store_block(void *buffer, amla_dtype type, int64_t i, const float *values) {
  unsigned char *block = block_at(buffer, type, i);
  float low = values[0], high = values[0];
  uint16_t h;
  for (int j = 1; j < HARNESS_BLOCK; j++)
    low = fminf(low, values[j]), high = fmaxf(high, values[j]);
  memset(block, 0, (size_t)harness_bytes(type, HARNESS_BLOCK));
  harness_store(&h, AMLA_F16, 0, step_for(type, low, high));
  memcpy(block, &h, sizeof h);
  if (has_m(type)) {
    harness_store(&h, AMLA_F16, 0, low);
    memcpy(block + 2, &h, sizeof h);
  }
  set_codes(type, block, values);
}
