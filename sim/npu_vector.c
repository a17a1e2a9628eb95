/* SPDX-License-Identifier: Apache-2.0
 *
 * What the vector instructions do, one line each, and how they walk their operands: by repeats of
 * 64 lanes, by blocks of 8.
 */
#include "npu_core.h"
#include "npu_float.h"

#include <math.h>

/* ---- Walking ---- */

/* Where 8 lanes of an operand start: block 0..7 of a repeat. */
static char *lanes_at(const void *base, uint8_t lanes, int32_t repeat, int32_t block,
                      int32_t block_stride, int32_t repeat_stride) {
  if (lanes == LANES_NONE)
    return NULL;
  char *start = (char *)(uintptr_t)base + (int64_t)repeat * repeat_stride * NPU_BLOCK_BYTES;
  switch (lanes) {
  case LANES_4: return start + (int64_t)block * block_stride * NPU_BLOCK_BYTES;
  case LANES_2:
    return start + (int64_t)(block / 2) * block_stride * NPU_BLOCK_BYTES + block % 2 * 16;
  case LANES_1:
    return start + (int64_t)(block / 4) * block_stride * NPU_BLOCK_BYTES + block % 4 * 8;
  case LANES_BLOCK: return start + block * 4;
  case LANES_BITS: return (char *)(uintptr_t)base + repeat * 8 + block;
  default: return NULL;
  }
}

static void apply_vector(const npu_instr *i, const npu_op *op) {
  const npu_family *f = op->family;
  const npu_vec *v = &i->v;
  const int32_t src0_repeat =
      f->src0 == LANES_BLOCK ? 1 : v->src0_repeat; /* broadcast-8 reads contiguously */
  for (int32_t r = 0; r < npu_repeats(v); r++) {
    const uint64_t mask = npu_lanes_of_repeat(v, r);
    for (int32_t block = 0; block < 8; block++)
      op->semantics(i, lanes_at(i->dst, f->dst, r, block, v->dst_block, v->dst_repeat),
                    lanes_at(i->src0, f->src0, r, block, v->src0_block, src0_repeat),
                    lanes_at(i->src1, f->src1, r, block, v->src1_block, v->src1_repeat),
                    (uint32_t)(mask >> 8 * block) & 0xff,
                    f->bits ? *(uint8_t *)lanes_at(i->bits, LANES_BITS, r, block, 1, 0) : 0);
  }
}

void npu_apply(const npu_instr *i) {
  const npu_op *op = &npu_ops[i->op];
  if (op->family->dst)
    apply_vector(i, op);
  else
    op->semantics(i, i->dst, i->src0, i->src1, 0, 0);
}

/* ---- Semantics ---- */

static float max_f32(float a, float b) {
  if (a != a)
    return a;
  return b != b || b >= a ? b : a;
}
static float min_f32(float a, float b) {
  if (a != a)
    return a;
  return b != b || b <= a ? b : a;
}

static int32_t rna_s32(float a) {
  if (a != a)
    return 0;
  const float r = roundf(a);
  if (r >= 2147483648.0f)
    return INT32_MAX;
  return r < -2147483648.0f ? INT32_MIN : (int32_t)r;
}

static bool compare(float a, float b, int32_t op) {
  switch ((npu_cmp)op) {
  case NPU_CMP_LT: return a < b;
  case NPU_CMP_LE: return a <= b;
  case NPU_CMP_GT: return a > b;
  case NPU_CMP_GE: return a >= b;
  case NPU_CMP_EQ: return a == b;
  case NPU_CMP_NE: return a != b;
  }
  return false;
}

/* One instruction: per active lane, with a and b the lane of the sources, f and n the scalar, bit
 * the lane's select bit. */
#define LANES(function, to, from, expression)                                                      \
  void function(const npu_instr *i, void *dst, const void *src0, const void *src1, uint32_t lanes, \
                uint32_t bits) {                                                                   \
    const float f = i->scalar.f;                                                                   \
    const int32_t n = i->scalar.i;                                                                 \
    static const from none[8];                                                                     \
    const from *as = src0 ? src0 : none, *bs = src1 ? src1 : none;                                 \
    for (int lane = 0; lane < 8; lane++) {                                                         \
      if (!(lanes >> lane & 1))                                                                    \
        continue;                                                                                  \
      const from a = as[lane], b = bs[lane];                                                       \
      const bool bit = bits >> lane & 1;                                                           \
      ((to *)dst)[lane] = expression;                                                              \
      (void)a, (void)b, (void)f, (void)n, (void)bit;                                               \
    }                                                                                              \
  }

LANES(npu_do_add_f32, float, float, a + b)
LANES(npu_do_sub_f32, float, float, a - b)
LANES(npu_do_mul_f32, float, float, a *b)
LANES(npu_do_div_f32, float, float, a / b)
LANES(npu_do_max_f32, float, float, max_f32(a, b))
LANES(npu_do_min_f32, float, float, min_f32(a, b))
LANES(npu_do_adds_f32, float, float, a + f)
LANES(npu_do_muls_f32, float, float, a *f)
LANES(npu_do_maxs_f32, float, float, max_f32(a, f))
LANES(npu_do_mins_f32, float, float, min_f32(a, f))
LANES(npu_do_exp_f32, float, float, expf(a))
LANES(npu_do_ln_f32, float, float, logf(a))
LANES(npu_do_abs_f32, float, float, fabsf(a))
LANES(npu_do_dup_f32, float, float, f)

LANES(npu_do_add_s32, uint32_t, uint32_t, a + b)
LANES(npu_do_max_s32, int32_t, int32_t, a > b ? a : b)
LANES(npu_do_min_s32, int32_t, int32_t, a < b ? a : b)
LANES(npu_do_and_s32, uint32_t, uint32_t, a &b)
LANES(npu_do_or_s32, uint32_t, uint32_t, a | b)
LANES(npu_do_adds_s32, uint32_t, uint32_t, a + (uint32_t)n)
LANES(npu_do_shl_s32, uint32_t, uint32_t, a << n)
LANES(npu_do_shr_s32, int32_t, int32_t, a >> n)
LANES(npu_do_dup_s32, int32_t, int32_t, n)

LANES(npu_do_cast_f32_bf16_rna, npu_bf16, float, npu_bf16_rna(a))
LANES(npu_do_cast_f32_bf16_rne, npu_bf16, float, npu_bf16_rne(a))
LANES(npu_do_cast_bf16_f32, float, npu_bf16, npu_bf16_f32(a))
LANES(npu_do_cast_f32_f16_rne, npu_f16, float, npu_f16_rne(a))
LANES(npu_do_cast_f16_f32, float, npu_f16, npu_f16_f32(a))
LANES(npu_do_cast_s8_f16, npu_f16, int8_t, npu_f16_rne((float)a))
LANES(npu_do_cast_f32_s32_rna, int32_t, float, rna_s32(a))
LANES(npu_do_cast_s32_f32, float, int32_t, (float)a)
LANES(npu_do_round_f32_rna, float, float, roundf(a))

LANES(npu_do_sel_f32, float, float, bit ? a : b)
LANES(npu_do_sels_f32, float, float, bit ? a : f)

/* ---- Semantics that are not lane by lane ---- */

void npu_do_block_max_f32(const npu_instr *i, void *dst, const void *a, const void *b,
                          uint32_t lanes, uint32_t bits) {
  (void)i, (void)b, (void)bits;
  float most = -INFINITY;
  for (int lane = 0; lane < 8; lane++)
    if (lanes >> lane & 1)
      most = max_f32(most, ((const float *)a)[lane]);
  *(float *)dst = most;
}

void npu_do_block_sum_f32(const npu_instr *i, void *dst, const void *a, const void *b,
                          uint32_t lanes, uint32_t bits) {
  (void)i, (void)b, (void)bits;
  float x[8];
  for (int lane = 0; lane < 8; lane++)
    x[lane] = lanes >> lane & 1 ? ((const float *)a)[lane] : 0.0f;
  *(float *)dst = ((x[0] + x[1]) + (x[2] + x[3])) + ((x[4] + x[5]) + (x[6] + x[7]));
}

void npu_do_brcb_f32(const npu_instr *i, void *dst, const void *a, const void *b, uint32_t lanes,
                     uint32_t bits) {
  (void)i, (void)b, (void)lanes, (void)bits;
  const float x = *(const float *)a;
  for (int lane = 0; lane < 8; lane++)
    ((float *)dst)[lane] = x;
}

static void compare_lanes(uint8_t *dst, const float *a, const float *b, int32_t step, int32_t op,
                          uint32_t lanes) {
  uint32_t result = 0;
  for (int lane = 0; lane < 8; lane++)
    if (lanes >> lane & 1)
      result |= (uint32_t)compare(a[lane], b[lane * step], op) << lane;
  *dst = (uint8_t)result;
}

void npu_do_cmp_f32(const npu_instr *i, void *dst, const void *a, const void *b, uint32_t lanes,
                    uint32_t bits) {
  (void)bits;
  compare_lanes(dst, a, b, 1, i->n[0], lanes);
}

void npu_do_cmps_f32(const npu_instr *i, void *dst, const void *a, const void *b, uint32_t lanes,
                     uint32_t bits) {
  (void)b, (void)bits;
  compare_lanes(dst, a, &i->scalar.f, 0, i->n[0], lanes);
}
