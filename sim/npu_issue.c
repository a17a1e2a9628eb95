/* SPDX-License-Identifier: Apache-2.0
 *
 * The calls of npu_isa.h that append an instruction: each makes its record. Events, flags and
 * barriers are in npu_flags.c, reads of the scalar unit in npu_scalar.c.
 */
#include "npu_core.h"

static npu_instr make(npu_opcode op, void *dst, const void *src0, const void *src1) {
  npu_instr i = {0};
  i.op = (uint8_t)op, i.dst = dst, i.src0 = src0, i.src1 = src1;
  return i;
}

static void issue_sizes(npu_opcode op, void *dst, const void *src0, const void *src1, int32_t n0,
                        int32_t n1, int32_t n2, int32_t n3) {
  npu_instr i = make(op, dst, src0, src1);
  i.n[0] = n0, i.n[1] = n1, i.n[2] = n2, i.n[3] = n3;
  npu_issue(&i);
}

static void issue_vector(npu_opcode op, void *dst, const void *src0, const void *src1, npu_vec v) {
  npu_instr i = make(op, dst, src0, src1);
  i.v = v;
  npu_issue(&i);
}

static void issue_scalar_f(npu_opcode op, void *dst, const void *src, float scalar, npu_vec v) {
  npu_instr i = make(op, dst, src, NULL);
  i.v = v, i.scalar.f = scalar;
  npu_issue(&i);
}

static void issue_scalar_i(npu_opcode op, void *dst, const void *src, int32_t scalar, npu_vec v) {
  npu_instr i = make(op, dst, src, NULL);
  i.v = v, i.scalar.i = scalar;
  npu_issue(&i);
}

/* ---- Calls of a form, one per row of the table ---- */

#define CALL_TWO(id, name, type)                                                                   \
  void npu_##name(NPU_UB type *dst, NPU_UB const type *src0, NPU_UB const type *src1, npu_vec v) { \
    issue_vector(OP_##id, dst, src0, src1, v);                                                     \
  }
#define CALL_ONE(id, name, to, from)                                                               \
  void npu_##name(NPU_UB to *dst, NPU_UB const from *src, npu_vec v) {                             \
    issue_vector(OP_##id, dst, src, NULL, v);                                                      \
  }
#define CALL_SCALAR(id, name, type, member)                                                        \
  void npu_##name(NPU_UB type *dst, NPU_UB const type *src, type scalar, npu_vec v) {              \
    issue_scalar_##member(OP_##id, dst, src, scalar, v);                                           \
  }
#define CALL_FILL(id, name, type, member)                                                          \
  void npu_##name(NPU_UB type *dst, type scalar, npu_vec v) {                                      \
    issue_scalar_##member(OP_##id, dst, NULL, scalar, v);                                          \
  }
#define CALL_BURSTS(id, name, to, from)                                                            \
  void npu_##name(to *dst, from const *src, int32_t n_bursts, int32_t burst_bytes,                 \
                  int32_t dst_stride_bytes, int32_t src_stride_bytes) {                            \
    issue_sizes(OP_##id, dst, src, NULL, n_bursts, burst_bytes, dst_stride_bytes,                  \
                src_stride_bytes);                                                                 \
  }
#define CALL_LOAD(id, name, type)                                                                  \
  void npu_##name(type *dst, NPU_L1 const type *src, int32_t mn, int32_t k, int32_t src_rows) {    \
    issue_sizes(OP_##id, dst, src, NULL, mn, k, src_rows, 0);                                      \
  }
#define CALL_DRAIN(id, name, type)                                                                 \
  void npu_##name(NPU_GM type *dst, NPU_L0C const float *src, int32_t m, int32_t n,                \
                  int32_t dst_stride, int32_t src_rows) {                                          \
    issue_sizes(OP_##id, dst, src, NULL, m, n, dst_stride, src_rows);                              \
  }
#define CALL_MULTIPLY(id, name, type)                                                              \
  void npu_##name(NPU_L0C float *c, NPU_L0A const type *a, NPU_L0B const type *b, int32_t m,       \
                  int32_t n, int32_t k, int32_t accumulate) {                                      \
    issue_sizes(OP_##id, c, a, b, m, n, k, accumulate);                                            \
  }
#define CALL_OWN(id, name, none)
#define NPU_OP(id, name, pipe, core, cost, family, semantics, form, ...)                           \
  CALL_##form(id, name, __VA_ARGS__)
#include "npu_ops.def"
#undef NPU_OP

/* ---- Calls of their own form ---- */

void npu_copy_gm_l1_nd2nz_bf16(NPU_L1 npu_bf16 *dst, NPU_GM const npu_bf16 *src, int32_t rows,
                               int32_t cols, int32_t src_stride, int32_t dst_rows) {
  issue_sizes(OP_ND2NZ, dst, src, NULL, rows, cols, src_stride, dst_rows);
}

void npu_fill_l1_bf16(NPU_L1 npu_bf16 *dst, npu_bf16 value, int32_t n_bursts, int32_t burst_bytes,
                      int32_t dst_stride_bytes) {
  npu_instr i = make(OP_FILL_L1, dst, NULL, NULL);
  i.n[0] = n_bursts, i.n[1] = burst_bytes, i.n[2] = dst_stride_bytes, i.scalar.i = value;
  npu_issue(&i);
}

void npu_cmp_f32(NPU_UB uint8_t *dst, NPU_UB const float *src0, NPU_UB const float *src1,
                 npu_cmp op, npu_vec v) {
  npu_instr i = make(OP_CMP_F32, dst, src0, src1);
  i.v = v, i.n[0] = (int32_t)op;
  npu_issue(&i);
}

void npu_cmps_f32(NPU_UB uint8_t *dst, NPU_UB const float *src, float scalar, npu_cmp op,
                  npu_vec v) {
  npu_instr i = make(OP_CMPS_F32, dst, src, NULL);
  i.v = v, i.n[0] = (int32_t)op, i.scalar.f = scalar;
  npu_issue(&i);
}

void npu_sel_f32(NPU_UB float *dst, NPU_UB const uint8_t *bits, NPU_UB const float *src0,
                 NPU_UB const float *src1, npu_vec v) {
  npu_instr i = make(OP_SEL_F32, dst, src0, src1);
  i.v = v, i.bits = bits;
  npu_issue(&i);
}

void npu_sels_f32(NPU_UB float *dst, NPU_UB const uint8_t *bits, NPU_UB const float *src0,
                  float scalar, npu_vec v) {
  npu_instr i = make(OP_SELS_F32, dst, src0, NULL);
  i.v = v, i.bits = bits, i.scalar.f = scalar;
  npu_issue(&i);
}
