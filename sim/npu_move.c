/* SPDX-License-Identifier: Apache-2.0
 *
 * What the copying instructions do (MTE2, MTE3, FIX). Operands are inside their buffers when these
 * run.
 */
#include "npu_core.h"
#include "npu_float.h"

#include <string.h>

enum { N_BURSTS, BURST, DST_STRIDE, SRC_STRIDE };

static float load_f32(const void *p) {
  float x;
  memcpy(&x, p, 4);
  return x;
}
static uint32_t load_u32(const void *p) {
  uint32_t x;
  memcpy(&x, p, 4);
  return x;
}

void npu_do_copy(const npu_instr *i, void *dst, const void *a, const void *b, uint32_t lanes,
                 uint32_t bits) {
  (void)b, (void)lanes, (void)bits;
  for (int64_t r = 0; r < i->n[N_BURSTS]; r++)
    memcpy((char *)dst + r * i->n[DST_STRIDE], (const char *)a + r * i->n[SRC_STRIDE],
           (size_t)i->n[BURST]);
}

void npu_do_copy_add_f32(const npu_instr *i, void *dst, const void *a, const void *b,
                         uint32_t lanes, uint32_t bits) {
  (void)b, (void)lanes, (void)bits;
  for (int64_t r = 0; r < i->n[N_BURSTS]; r++)
    for (int64_t c = 0; c < i->n[BURST]; c += 4) {
      char *d = (char *)dst + r * i->n[DST_STRIDE] + c;
      const float sum = load_f32(d) + load_f32((const char *)a + r * i->n[SRC_STRIDE] + c);
      memcpy(d, &sum, 4);
    }
}

void npu_do_copy_add_s32(const npu_instr *i, void *dst, const void *a, const void *b,
                         uint32_t lanes, uint32_t bits) {
  (void)b, (void)lanes, (void)bits;
  for (int64_t r = 0; r < i->n[N_BURSTS]; r++)
    for (int64_t c = 0; c < i->n[BURST]; c += 4) {
      char *d = (char *)dst + r * i->n[DST_STRIDE] + c;
      const uint32_t sum = load_u32(d) + load_u32((const char *)a + r * i->n[SRC_STRIDE] +
                                                  c); /* on the bits, whatever they mean */
      memcpy(d, &sum, 4);
    }
}

void npu_do_fill(const npu_instr *i, void *dst, const void *a, const void *b, uint32_t lanes,
                 uint32_t bits) {
  (void)a, (void)b, (void)lanes, (void)bits;
  for (int64_t r = 0; r < i->n[N_BURSTS]; r++)
    for (int64_t c = 0; c < i->n[BURST] / 2; c++)
      ((npu_bf16 *)((char *)dst + r * i->n[DST_STRIDE]))[c] = (npu_bf16)i->scalar.i;
}

void npu_do_nd2nz(const npu_instr *i, void *dst, const void *a, const void *b, uint32_t lanes,
                  uint32_t bits) {
  (void)b, (void)lanes, (void)bits;
  const int64_t rows = i->n[0], cols = i->n[1], src_stride = i->n[2], dst_rows = i->n[3];
  for (int64_t c = 0; c < cols; c += 16) {
    const int64_t width = cols - c < 16 ? cols - c : 16;
    npu_bf16 *column = (npu_bf16 *)dst + c * dst_rows;
    for (int64_t r = 0; r < rows; r++) {
      memcpy(column + r * 16, (const npu_bf16 *)a + r * src_stride + c, (size_t)width * 2);
      memset(column + r * 16 + width, 0, (size_t)(16 - width) * 2);
    }
  }
}

/* ---- L0C -> GM: element (r, c) of NZ, to its place in ND ---- */

enum { M, N, DST_COLS, SRC_ROWS };

static float nz_at(const npu_instr *i, const float *src, int64_t r, int64_t c) {
  return src[(c / 16 * i->n[SRC_ROWS] + r) * 16 + c % 16];
}

void npu_do_fix_f32(const npu_instr *i, void *dst, const void *a, const void *b, uint32_t lanes,
                    uint32_t bits) {
  (void)b, (void)lanes, (void)bits;
  for (int64_t r = 0; r < i->n[M]; r++)
    for (int64_t c = 0; c < i->n[N]; c++)
      ((float *)dst)[r * i->n[DST_COLS] + c] = nz_at(i, a, r, c);
}

void npu_do_fix_add_f32(const npu_instr *i, void *dst, const void *a, const void *b, uint32_t lanes,
                        uint32_t bits) {
  (void)b, (void)lanes, (void)bits;
  for (int64_t r = 0; r < i->n[M]; r++)
    for (int64_t c = 0; c < i->n[N]; c++)
      ((float *)dst)[r * i->n[DST_COLS] + c] += nz_at(i, a, r, c);
}

void npu_do_fix_bf16(const npu_instr *i, void *dst, const void *a, const void *b, uint32_t lanes,
                     uint32_t bits) {
  (void)b, (void)lanes, (void)bits;
  for (int64_t r = 0; r < i->n[M]; r++)
    for (int64_t c = 0; c < i->n[N]; c++)
      ((npu_bf16 *)dst)[r * i->n[DST_COLS] + c] = npu_bf16_rne(nz_at(i, a, r, c));
}
