/* SPDX-License-Identifier: Apache-2.0
 *
 * The indexer's kernels in portable C, and the choice among them.
 */
#include "index_ukr.h"

#include "../base/float16.h"
#include "../base/float8.h"

static void load_bf16(int32_t n, const void *src, float *dst) {
  for (int32_t i = 0; i < n; i++)
    dst[i] = amla_bf16_to_f32(((const uint16_t *)src)[i]);
}

static void load_e4m3(int32_t n, const void *src, float *dst) {
  for (int32_t i = 0; i < n; i++)
    dst[i] = amla_e4m3_to_f32(((const uint8_t *)src)[i]);
}

static void weigh(int32_t n, int32_t rows, const float *s, const float *w, const float *scales,
                  float *sums) {
  for (int32_t j = 0; j < n; j++, s += rows, sums += AMLA_INDEX_LANES)
    for (int32_t r = 0; r < rows; r += 8)
      for (int32_t i = 0; i < 8; i++) {
        const float x = s[r + i] * (scales ? scales[j] : 1.0f);
        sums[r % AMLA_INDEX_LANES + i] += w[r + i] * (x < 0.0f ? 0.0f : x);
      }
}

static void add_lanes(int32_t n, const float *sums, float *scores) {
  for (int32_t j = 0; j < n; j++, sums += AMLA_INDEX_LANES) {
    float x[AMLA_INDEX_LANES / 2];
    for (int i = 0; i < 8; i++)
      x[i] = sums[i] + sums[8 + i];
    for (int half = 4; half > 0; half /= 2)
      for (int i = 0; i < half; i++)
        x[i] += x[half + i];
    scores[j] = x[0];
  }
}

static int32_t count_above(int32_t n, const int32_t *keys, int32_t bound) {
  int32_t count = 0;
  for (int32_t i = 0; i < n; i++)
    count += keys[i] > bound;
  return count;
}

static const amla_index_ukr index_ukr__c = {AMLA_ISA_C, load_bf16, load_e4m3,
                                            weigh,      add_lanes, count_above};

extern const amla_index_ukr amla_index_ukr__avx2, amla_index_ukr__avx512;

const amla_index_ukr *amla_index_ukr_for(amla_isa isa) {
#if defined(__x86_64__)
  static const amla_index_ukr *const all[] = {&amla_index_ukr__avx2, &amla_index_ukr__avx512};
  for (int i = 0; i < 2; i++)
    if (all[i]->isa == isa)
      return all[i];
#endif
  (void)isa;
  return &index_ukr__c;
}
