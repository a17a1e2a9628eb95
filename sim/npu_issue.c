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

static void issue_scalar_f32(npu_opcode op, void *dst, const void *src, float scalar, npu_vec v) {
  npu_instr i = make(op, dst, src, NULL);
  i.v = v, i.scalar.f = scalar;
  npu_issue(&i);
}

static void issue_scalar_s32(npu_opcode op, void *dst, const void *src, int32_t scalar, npu_vec v) {
  npu_instr i = make(op, dst, src, NULL);
  i.v = v, i.scalar.i = scalar;
  npu_issue(&i);
}

/* ---- AIC ---- */

void npu_copy_gm_l1(NPU_L1 void *dst, NPU_GM const void *src, int32_t n_bursts, int32_t burst_bytes,
                    int32_t dst_stride_bytes, int32_t src_stride_bytes) {
  issue_sizes(OP_COPY_GM_L1, dst, src, NULL, n_bursts, burst_bytes, dst_stride_bytes,
              src_stride_bytes);
}

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

void npu_load_l0a_bf16(NPU_L0A npu_bf16 *dst, NPU_L1 const npu_bf16 *src, int32_t m, int32_t k,
                       int32_t src_rows) {
  issue_sizes(OP_LOAD_L0A, dst, src, NULL, m, k, src_rows, 0);
}

void npu_load_l0a_t_bf16(NPU_L0A npu_bf16 *dst, NPU_L1 const npu_bf16 *src, int32_t m, int32_t k,
                         int32_t src_rows) {
  issue_sizes(OP_LOAD_L0A_T, dst, src, NULL, m, k, src_rows, 0);
}

void npu_load_l0b_bf16(NPU_L0B npu_bf16 *dst, NPU_L1 const npu_bf16 *src, int32_t n, int32_t k,
                       int32_t src_rows) {
  issue_sizes(OP_LOAD_L0B, dst, src, NULL, n, k, src_rows, 0);
}

void npu_load_l0b_t_bf16(NPU_L0B npu_bf16 *dst, NPU_L1 const npu_bf16 *src, int32_t n, int32_t k,
                         int32_t src_rows) {
  issue_sizes(OP_LOAD_L0B_T, dst, src, NULL, n, k, src_rows, 0);
}

void npu_mmad_bf16(NPU_L0C float *c, NPU_L0A const npu_bf16 *a, NPU_L0B const npu_bf16 *b,
                   int32_t m, int32_t n, int32_t k, int32_t accumulate) {
  issue_sizes(OP_MMAD, c, a, b, m, n, k, accumulate);
}

void npu_copy_l0c_gm_f32(NPU_GM float *dst, NPU_L0C const float *src, int32_t m, int32_t n,
                         int32_t dst_stride, int32_t src_rows) {
  issue_sizes(OP_FIX_F32, dst, src, NULL, m, n, dst_stride, src_rows);
}

void npu_copy_l0c_gm_add_f32(NPU_GM float *dst, NPU_L0C const float *src, int32_t m, int32_t n,
                             int32_t dst_stride, int32_t src_rows) {
  issue_sizes(OP_FIX_ADD_F32, dst, src, NULL, m, n, dst_stride, src_rows);
}

void npu_copy_l0c_gm_bf16(NPU_GM npu_bf16 *dst, NPU_L0C const float *src, int32_t m, int32_t n,
                          int32_t dst_stride, int32_t src_rows) {
  issue_sizes(OP_FIX_BF16, dst, src, NULL, m, n, dst_stride, src_rows);
}

/* ---- AIV: copies ---- */

void npu_copy_gm_ub(NPU_UB void *dst, NPU_GM const void *src, int32_t n_bursts, int32_t burst_bytes,
                    int32_t dst_stride_bytes, int32_t src_stride_bytes) {
  issue_sizes(OP_COPY_GM_UB, dst, src, NULL, n_bursts, burst_bytes, dst_stride_bytes,
              src_stride_bytes);
}

void npu_copy_ub_gm(NPU_GM void *dst, NPU_UB const void *src, int32_t n_bursts, int32_t burst_bytes,
                    int32_t dst_stride_bytes, int32_t src_stride_bytes) {
  issue_sizes(OP_COPY_UB_GM, dst, src, NULL, n_bursts, burst_bytes, dst_stride_bytes,
              src_stride_bytes);
}

void npu_copy_ub_gm_add_f32(NPU_GM float *dst, NPU_UB const float *src, int32_t n_bursts,
                            int32_t burst_bytes, int32_t dst_stride_bytes,
                            int32_t src_stride_bytes) {
  issue_sizes(OP_COPY_UB_GM_ADD_F32, dst, src, NULL, n_bursts, burst_bytes, dst_stride_bytes,
              src_stride_bytes);
}

void npu_copy_ub_gm_add_s32(NPU_GM int32_t *dst, NPU_UB const int32_t *src, int32_t n_bursts,
                            int32_t burst_bytes, int32_t dst_stride_bytes,
                            int32_t src_stride_bytes) {
  issue_sizes(OP_COPY_UB_GM_ADD_S32, dst, src, NULL, n_bursts, burst_bytes, dst_stride_bytes,
              src_stride_bytes);
}

/* ---- AIV: vector ---- */

void npu_add_f32(NPU_UB float *dst, NPU_UB const float *src0, NPU_UB const float *src1, npu_vec v) {
  issue_vector(OP_ADD_F32, dst, src0, src1, v);
}

void npu_sub_f32(NPU_UB float *dst, NPU_UB const float *src0, NPU_UB const float *src1, npu_vec v) {
  issue_vector(OP_SUB_F32, dst, src0, src1, v);
}

void npu_mul_f32(NPU_UB float *dst, NPU_UB const float *src0, NPU_UB const float *src1, npu_vec v) {
  issue_vector(OP_MUL_F32, dst, src0, src1, v);
}

void npu_div_f32(NPU_UB float *dst, NPU_UB const float *src0, NPU_UB const float *src1, npu_vec v) {
  issue_vector(OP_DIV_F32, dst, src0, src1, v);
}

void npu_max_f32(NPU_UB float *dst, NPU_UB const float *src0, NPU_UB const float *src1, npu_vec v) {
  issue_vector(OP_MAX_F32, dst, src0, src1, v);
}

void npu_min_f32(NPU_UB float *dst, NPU_UB const float *src0, NPU_UB const float *src1, npu_vec v) {
  issue_vector(OP_MIN_F32, dst, src0, src1, v);
}

void npu_adds_f32(NPU_UB float *dst, NPU_UB const float *src, float scalar, npu_vec v) {
  issue_scalar_f32(OP_ADDS_F32, dst, src, scalar, v);
}

void npu_muls_f32(NPU_UB float *dst, NPU_UB const float *src, float scalar, npu_vec v) {
  issue_scalar_f32(OP_MULS_F32, dst, src, scalar, v);
}

void npu_maxs_f32(NPU_UB float *dst, NPU_UB const float *src, float scalar, npu_vec v) {
  issue_scalar_f32(OP_MAXS_F32, dst, src, scalar, v);
}

void npu_mins_f32(NPU_UB float *dst, NPU_UB const float *src, float scalar, npu_vec v) {
  issue_scalar_f32(OP_MINS_F32, dst, src, scalar, v);
}

void npu_exp_f32(NPU_UB float *dst, NPU_UB const float *src, npu_vec v) {
  issue_vector(OP_EXP_F32, dst, src, NULL, v);
}

void npu_ln_f32(NPU_UB float *dst, NPU_UB const float *src, npu_vec v) {
  issue_vector(OP_LN_F32, dst, src, NULL, v);
}

void npu_abs_f32(NPU_UB float *dst, NPU_UB const float *src, npu_vec v) {
  issue_vector(OP_ABS_F32, dst, src, NULL, v);
}

void npu_dup_f32(NPU_UB float *dst, float scalar, npu_vec v) {
  issue_scalar_f32(OP_DUP_F32, dst, NULL, scalar, v);
}

void npu_add_s32(NPU_UB int32_t *dst, NPU_UB const int32_t *src0, NPU_UB const int32_t *src1,
                 npu_vec v) {
  issue_vector(OP_ADD_S32, dst, src0, src1, v);
}

void npu_max_s32(NPU_UB int32_t *dst, NPU_UB const int32_t *src0, NPU_UB const int32_t *src1,
                 npu_vec v) {
  issue_vector(OP_MAX_S32, dst, src0, src1, v);
}

void npu_min_s32(NPU_UB int32_t *dst, NPU_UB const int32_t *src0, NPU_UB const int32_t *src1,
                 npu_vec v) {
  issue_vector(OP_MIN_S32, dst, src0, src1, v);
}

void npu_and_s32(NPU_UB int32_t *dst, NPU_UB const int32_t *src0, NPU_UB const int32_t *src1,
                 npu_vec v) {
  issue_vector(OP_AND_S32, dst, src0, src1, v);
}

void npu_or_s32(NPU_UB int32_t *dst, NPU_UB const int32_t *src0, NPU_UB const int32_t *src1,
                npu_vec v) {
  issue_vector(OP_OR_S32, dst, src0, src1, v);
}

void npu_adds_s32(NPU_UB int32_t *dst, NPU_UB const int32_t *src, int32_t scalar, npu_vec v) {
  issue_scalar_s32(OP_ADDS_S32, dst, src, scalar, v);
}

void npu_shl_s32(NPU_UB int32_t *dst, NPU_UB const int32_t *src, int32_t shift, npu_vec v) {
  issue_scalar_s32(OP_SHL_S32, dst, src, shift, v);
}

void npu_shr_s32(NPU_UB int32_t *dst, NPU_UB const int32_t *src, int32_t shift, npu_vec v) {
  issue_scalar_s32(OP_SHR_S32, dst, src, shift, v);
}

void npu_dup_s32(NPU_UB int32_t *dst, int32_t scalar, npu_vec v) {
  issue_scalar_s32(OP_DUP_S32, dst, NULL, scalar, v);
}

void npu_cast_f32_bf16_rna(NPU_UB npu_bf16 *dst, NPU_UB const float *src, npu_vec v) {
  issue_vector(OP_CAST_F32_BF16_RNA, dst, src, NULL, v);
}

void npu_cast_f32_bf16_rne(NPU_UB npu_bf16 *dst, NPU_UB const float *src, npu_vec v) {
  issue_vector(OP_CAST_F32_BF16_RNE, dst, src, NULL, v);
}

void npu_cast_bf16_f32(NPU_UB float *dst, NPU_UB const npu_bf16 *src, npu_vec v) {
  issue_vector(OP_CAST_BF16_F32, dst, src, NULL, v);
}

void npu_cast_f32_s32_rna(NPU_UB int32_t *dst, NPU_UB const float *src, npu_vec v) {
  issue_vector(OP_CAST_F32_S32_RNA, dst, src, NULL, v);
}

void npu_cast_s32_f32(NPU_UB float *dst, NPU_UB const int32_t *src, npu_vec v) {
  issue_vector(OP_CAST_S32_F32, dst, src, NULL, v);
}

void npu_round_f32_rna(NPU_UB float *dst, NPU_UB const float *src, npu_vec v) {
  issue_vector(OP_ROUND_F32_RNA, dst, src, NULL, v);
}

void npu_block_max_f32(NPU_UB float *dst, NPU_UB const float *src, npu_vec v) {
  issue_vector(OP_BLOCK_MAX_F32, dst, src, NULL, v);
}

void npu_block_sum_f32(NPU_UB float *dst, NPU_UB const float *src, npu_vec v) {
  issue_vector(OP_BLOCK_SUM_F32, dst, src, NULL, v);
}

void npu_brcb_f32(NPU_UB float *dst, NPU_UB const float *src, npu_vec v) {
  issue_vector(OP_BRCB_F32, dst, src, NULL, v);
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
