/* SPDX-License-Identifier: Apache-2.0
 *
 * Stage and load of the AVX-512 row and of portable C's, and the indexer's kernels of both, as
 * functions of plain arguments (test_avx512_fp8.py): one file that the emulator and this machine
 * can run.
 */
#include "src/cpu/index_ukr.h"
#include "src/cpu/ukernels.h"

#define EXPORT __attribute__((visibility("default")))

extern const amla_ukernels amla_ukernels__avx512;

static const amla_ukernels *row_of(amla_isa isa) {
  return isa == AMLA_ISA_C ? &amla_ukernels__c : &amla_ukernels__avx512;
}

EXPORT void load_kv(amla_isa isa, const amla_row_format *format, const void *row,
                    const void *scales, float *dst) {
  row_of(isa)->load(format, row, scales, dst);
}

/* Rows at equal distances, and their scales, to [n_rows][ld] at `to`. */
EXPORT void stage_kv(int narrow, int32_t n, const amla_row_format *format, int32_t n_rows,
                     const char *rows, int64_t row_bytes, const char *scales, int64_t scales_bytes,
                     float *to, const float *k, int64_t ld, const float *qt, float *s) {
  const amla_ukernels *u = &amla_ukernels__avx512;
  const amla_ukr_panel *panel = narrow ? &u->narrow : &u->wide;
  amla_ukr_move moves[2 * AMLA_UKR_MAX_QK_TOKENS];
  for (int32_t i = 0; i < 2 * panel->tokens && n_rows > 0; i++) {
    const int32_t at = i % n_rows;
    moves[i] = (amla_ukr_move){rows + at * row_bytes, scales + at * scales_bytes, to + at * ld};
  }
  const amla_ukr_stage stage = {format, n_rows, moves};
  panel->qk(n, format->d, k, ld, qt, s, &stage);
}

EXPORT void index_load_bf16(amla_isa isa, int32_t n, const void *src, float *dst) {
  amla_index_ukr_for(isa)->load_bf16(n, src, dst);
}

EXPORT void index_load_e4m3(amla_isa isa, int32_t n, const void *src, float *dst) {
  amla_index_ukr_for(isa)->load_e4m3(n, src, dst);
}

EXPORT void index_weigh(amla_isa isa, int32_t n, int32_t rows, const float *s, const float *w,
                        const float *scales, float *sums) {
  amla_index_ukr_for(isa)->weigh(n, rows, s, w, scales, sums);
}

EXPORT void index_add_lanes(amla_isa isa, int32_t n, const float *sums, float *scores) {
  amla_index_ukr_for(isa)->add_lanes(n, sums, scores);
}

EXPORT void index_count_above(amla_isa isa, int32_t n, const int32_t *keys, int32_t bound,
                              int32_t *count) {
  *count = amla_index_ukr_for(isa)->count_above(n, keys, bound);
}
