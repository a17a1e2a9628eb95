/* SPDX-License-Identifier: Apache-2.0
 *
 * The road to silicon: sim/npu_isa.h's calls by way of the vendor's C API. Include it before the
 * kernel's files, compiled as C++:
 *
 *     c++ -include src/npu/asc_adapter.h -x c++ -c src/npu/ascend_cube.c ...
 *
 * A SKETCH, untested on silicon: nobody has built it with the vendor's compiler or run it. With a
 * CANN toolkit (__NPU_ARCH__ is defined) it includes the toolkit's own header; without, our
 * prototypes, so that CI compiles the kernel and this file and neither rots. What is known to be
 * missing is listed at the end of docs/ascend.md.
 */
#ifndef ASC_ADAPTER_H
#define ASC_ADAPTER_H

#ifdef __NPU_ARCH__
#include <c_api/asc_simd.h>
#else
#include "asc_prototypes.h"
#endif

#define NPU_GM __gm__
#define NPU_L1 __cbuf__
#define NPU_L0A __ca__
#define NPU_L0B __cb__
#define NPU_L0C __cc__
#define NPU_UB __ubuf__
#define NPU_NO_SITES
#include "../../sim/npu_isa.h"

/* ---- Who and where ---- */

inline int32_t npu_block_index(void) { return (int32_t)asc_get_block_idx(); }
inline int32_t npu_block_count(void) { return (int32_t)asc_get_block_num(); }
inline int32_t npu_subcore(void) { return (int32_t)asc_get_sub_block_id(); }
inline NPU_L1 void *npu_l1(uint32_t offset_bytes) { return (NPU_L1 void *)(uintptr_t)offset_bytes; }
inline NPU_L0A void *npu_l0a(uint32_t offset_bytes) {
  return (NPU_L0A void *)(uintptr_t)offset_bytes;
}
inline NPU_L0B void *npu_l0b(uint32_t offset_bytes) {
  return (NPU_L0B void *)(uintptr_t)offset_bytes;
}
inline NPU_L0C void *npu_l0c(uint32_t offset_bytes) {
  return (NPU_L0C void *)(uintptr_t)offset_bytes;
}
inline NPU_UB void *npu_ub(uint32_t offset_bytes) { return (NPU_UB void *)(uintptr_t)offset_bytes; }
/* On silicon a mode of the copy says which of the two vector cores it is for. */
inline NPU_UB void *npu_ub_of(int32_t subcore, uint32_t offset_bytes) {
  return (void)subcore, npu_ub(offset_bytes);
}

/* ---- Synchronisation ---- */

/* The vendor wants pipes as constants, so each pair that the kernel uses has its line. */

#define ASC_EACH_PAIR(call)                                                                        \
  if (from == NPU_PIPE_MTE2 && to == NPU_PIPE_MTE1)                                                \
    call(PIPE_MTE2, PIPE_MTE1, event);                                                             \
  if (from == NPU_PIPE_MTE1 && to == NPU_PIPE_MTE2)                                                \
    call(PIPE_MTE1, PIPE_MTE2, event);                                                             \
  if (from == NPU_PIPE_MTE1 && to == NPU_PIPE_M)                                                   \
    call(PIPE_MTE1, PIPE_M, event);                                                                \
  if (from == NPU_PIPE_M && to == NPU_PIPE_MTE1)                                                   \
    call(PIPE_M, PIPE_MTE1, event);                                                                \
  if (from == NPU_PIPE_M && to == NPU_PIPE_FIX)                                                    \
    call(PIPE_M, PIPE_FIX, event);                                                                 \
  if (from == NPU_PIPE_FIX && to == NPU_PIPE_M)                                                    \
    call(PIPE_FIX, PIPE_M, event);                                                                 \
  if (from == NPU_PIPE_MTE2 && to == NPU_PIPE_V)                                                   \
    call(PIPE_MTE2, PIPE_V, event);                                                                \
  if (from == NPU_PIPE_V && to == NPU_PIPE_MTE2)                                                   \
    call(PIPE_V, PIPE_MTE2, event);                                                                \
  if (from == NPU_PIPE_V && to == NPU_PIPE_MTE3)                                                   \
    call(PIPE_V, PIPE_MTE3, event);                                                                \
  if (from == NPU_PIPE_MTE3 && to == NPU_PIPE_V)                                                   \
    call(PIPE_MTE3, PIPE_V, event);                                                                \
  if (from == NPU_PIPE_MTE3 && to == NPU_PIPE_MTE2)                                                \
    call(PIPE_MTE3, PIPE_MTE2, event);                                                             \
  if (from == NPU_PIPE_V && to == NPU_PIPE_S)                                                      \
    call(PIPE_V, PIPE_S, event);
inline void npu_notify(npu_pipe from, npu_pipe to, int32_t id) {
  const event_t event = (event_t)id;
  ASC_EACH_PAIR(asc_sync_notify)
}
/* On silicon a mode of mmad and of the copy out of L0C; the flag alone is right, and slower. */
inline void npu_notify_unit(npu_pipe from, npu_pipe to, int32_t id) { npu_notify(from, to, id); }
inline void npu_wait(npu_pipe from, npu_pipe to, int32_t id) {
  const event_t event = (event_t)id;
  ASC_EACH_PAIR(asc_sync_wait)
}
#undef ASC_EACH_PAIR
#define ASC_EACH_PIPE(call, argument)                                                              \
  if (pipe == NPU_PIPE_FIX)                                                                        \
    call(PIPE_FIX argument);                                                                       \
  if (pipe == NPU_PIPE_MTE1)                                                                       \
    call(PIPE_MTE1 argument);                                                                      \
  if (pipe == NPU_PIPE_MTE2)                                                                       \
    call(PIPE_MTE2 argument);                                                                      \
  if (pipe == NPU_PIPE_MTE3)                                                                       \
    call(PIPE_MTE3 argument);                                                                      \
  if (pipe == NPU_PIPE_M)                                                                          \
    call(PIPE_M argument);                                                                         \
  if (pipe == NPU_PIPE_V)                                                                          \
    call(PIPE_V argument);                                                                         \
  if (pipe == NPU_PIPE_ALL)                                                                        \
    call(PIPE_ALL argument);
#define ASC_FLAG , flag
inline void npu_barrier(npu_pipe pipe) { ASC_EACH_PIPE(asc_sync_pipe, ) }
inline void npu_cross_set(npu_pipe pipe, int32_t flag) {
  ASC_EACH_PIPE(asc_sync_block_arrive, ASC_FLAG)
}
inline void npu_cross_wait(npu_pipe pipe, int32_t flag) {
  ASC_EACH_PIPE(asc_sync_block_wait, ASC_FLAG)
}
inline void npu_barrier_all(void) { asc_sync_all(); }
#undef ASC_EACH_PIPE
#undef ASC_FLAG

/* ---- Scalar reads ---- */

inline int32_t npu_read_ub_s32(NPU_UB const int32_t *src, int32_t assumed) {
  return (void)assumed, *src;
}
inline float npu_read_ub_f32(NPU_UB const float *src, float assumed) { return (void)assumed, *src; }
inline int32_t npu_read_gm_s32(NPU_GM const int32_t *src) { return *src; }

/* ---- Cube core ---- */

inline void npu_copy_gm_l1(NPU_L1 void *dst, NPU_GM const void *src, int32_t n_bursts,
                           int32_t burst_bytes, int32_t dst_stride_bytes,
                           int32_t src_stride_bytes) {
  asc_copy_gm2l1(dst, (__gm__ void *)src, (uint16_t)n_bursts, (uint16_t)(burst_bytes / 32),
                 (uint16_t)((src_stride_bytes - burst_bytes) / 32),
                 (uint16_t)((dst_stride_bytes - burst_bytes) / 32));
}
inline void npu_copy_gm_l1_nd2nz_bf16(NPU_L1 npu_bf16 *dst, NPU_GM const npu_bf16 *src,
                                      int32_t rows, int32_t cols, int32_t src_stride,
                                      int32_t dst_rows) {
  asc_copy_gm2l1_nd2nz(dst, (__gm__ void *)src, (uint16_t)rows, (uint16_t)cols,
                       (uint32_t)src_stride, (uint16_t)dst_rows);
}
inline void npu_fill_l1_bf16(NPU_L1 npu_bf16 *dst, npu_bf16 value, int32_t n_bursts,
                             int32_t burst_bytes, int32_t dst_stride_bytes) {
  asc_fill_l1(dst, value, (uint16_t)n_bursts, (uint16_t)(burst_bytes / 32),
              (uint16_t)((dst_stride_bytes - burst_bytes) / 32));
}
inline void npu_load_l0a_bf16(NPU_L0A npu_bf16 *dst, NPU_L1 const npu_bf16 *src, int32_t m,
                              int32_t k, int32_t src_rows) {
  asc_copy_l12l0a((__ca__ bfloat16_t *)dst, (__cbuf__ bfloat16_t *)src, (uint16_t)m, (uint16_t)k,
                  (uint16_t)src_rows, false);
}
inline void npu_load_l0a_t_bf16(NPU_L0A npu_bf16 *dst, NPU_L1 const npu_bf16 *src, int32_t m,
                                int32_t k, int32_t src_rows) {
  asc_copy_l12l0a((__ca__ bfloat16_t *)dst, (__cbuf__ bfloat16_t *)src, (uint16_t)m, (uint16_t)k,
                  (uint16_t)src_rows, true);
}
inline void npu_load_l0b_bf16(NPU_L0B npu_bf16 *dst, NPU_L1 const npu_bf16 *src, int32_t n,
                              int32_t k, int32_t src_rows) {
  asc_copy_l12l0b((__cb__ bfloat16_t *)dst, (__cbuf__ bfloat16_t *)src, (uint16_t)n, (uint16_t)k,
                  (uint16_t)src_rows, false);
}
inline void npu_load_l0b_t_bf16(NPU_L0B npu_bf16 *dst, NPU_L1 const npu_bf16 *src, int32_t n,
                                int32_t k, int32_t src_rows) {
  asc_copy_l12l0b((__cb__ bfloat16_t *)dst, (__cbuf__ bfloat16_t *)src, (uint16_t)n, (uint16_t)k,
                  (uint16_t)src_rows, true);
}
inline void npu_mmad_bf16(NPU_L0C float *c, NPU_L0A const npu_bf16 *a, NPU_L0B const npu_bf16 *b,
                          int32_t m, int32_t n, int32_t k, int32_t accumulate) {
  asc_mmad(c, (__ca__ bfloat16_t *)a, (__cb__ bfloat16_t *)b, (uint16_t)m, (uint16_t)k, (uint16_t)n,
           !accumulate);
}
inline void npu_mmad_f16(NPU_L0C float *c, NPU_L0A const npu_f16 *a, NPU_L0B const npu_f16 *b,
                         int32_t m, int32_t n, int32_t k, int32_t accumulate) {
  asc_mmad(c, (__ca__ half *)a, (__cb__ half *)b, (uint16_t)m, (uint16_t)k, (uint16_t)n,
           !accumulate);
}
inline void npu_copy_l0c_gm_f32(NPU_GM float *dst, NPU_L0C const float *src, int32_t m, int32_t n,
                                int32_t dst_stride, int32_t src_rows) {
  asc_copy_l0c2gm(dst, (__cc__ float *)src, (uint16_t)n, (uint16_t)m, (uint32_t)dst_stride,
                  (uint16_t)src_rows);
}
inline void npu_copy_l0c_gm_add_f32(NPU_GM float *dst, NPU_L0C const float *src, int32_t m,
                                    int32_t n, int32_t dst_stride, int32_t src_rows) {
  asc_set_atomic_add_float();
  npu_copy_l0c_gm_f32(dst, src, m, n, dst_stride, src_rows);
  asc_set_atomic_none();
}
inline void npu_copy_l0c_gm_bf16(NPU_GM npu_bf16 *dst, NPU_L0C const float *src, int32_t m,
                                 int32_t n, int32_t dst_stride, int32_t src_rows) {
  asc_copy_l0c2gm((__gm__ bfloat16_t *)dst, (__cc__ float *)src, (uint16_t)n, (uint16_t)m,
                  (uint32_t)dst_stride, (uint16_t)src_rows);
}
inline void npu_copy_l0c_ub_f32(NPU_UB float *dst, NPU_L0C const float *src, int32_t m, int32_t n,
                                int32_t dst_stride, int32_t src_rows) {
  asc_copy_l0c2ub(dst, (__cc__ float *)src, (uint16_t)n, (uint16_t)m, (uint32_t)dst_stride,
                  (uint16_t)src_rows);
}

/* ---- Vector core: moves ---- */

inline void npu_copy_ub_l1(NPU_L1 void *dst, NPU_UB const void *src, int32_t n_bursts,
                           int32_t burst_bytes, int32_t dst_stride_bytes,
                           int32_t src_stride_bytes) {
  asc_copy_ub2l1(dst, (__ubuf__ void *)src, (uint16_t)n_bursts, (uint16_t)(burst_bytes / 32),
                 (uint16_t)((src_stride_bytes - burst_bytes) / 32),
                 (uint16_t)((dst_stride_bytes - burst_bytes) / 32));
}

inline void npu_copy_gm_ub(NPU_UB void *dst, NPU_GM const void *src, int32_t n_bursts,
                           int32_t burst_bytes, int32_t dst_stride_bytes,
                           int32_t src_stride_bytes) {
  asc_copy_gm2ub_align(dst, (__gm__ void *)src, (uint16_t)n_bursts, (uint32_t)burst_bytes,
                       (uint32_t)(dst_stride_bytes - burst_bytes),
                       (uint32_t)(src_stride_bytes - burst_bytes));
}
inline void npu_copy_ub_gm(NPU_GM void *dst, NPU_UB const void *src, int32_t n_bursts,
                           int32_t burst_bytes, int32_t dst_stride_bytes,
                           int32_t src_stride_bytes) {
  asc_copy_ub2gm_align(dst, (__ubuf__ void *)src, (uint16_t)n_bursts, (uint32_t)burst_bytes,
                       (uint32_t)(dst_stride_bytes - burst_bytes),
                       (uint32_t)(src_stride_bytes - burst_bytes));
}
inline void npu_copy_ub_gm_add_f32(NPU_GM float *dst, NPU_UB const float *src, int32_t n_bursts,
                                   int32_t burst_bytes, int32_t dst_stride_bytes,
                                   int32_t src_stride_bytes) {
  asc_set_atomic_add_float();
  npu_copy_ub_gm(dst, src, n_bursts, burst_bytes, dst_stride_bytes, src_stride_bytes);
  asc_set_atomic_none();
}
inline void npu_copy_ub_gm_add_s32(NPU_GM int32_t *dst, NPU_UB const int32_t *src, int32_t n_bursts,
                                   int32_t burst_bytes, int32_t dst_stride_bytes,
                                   int32_t src_stride_bytes) {
  asc_set_atomic_add_int();
  npu_copy_ub_gm(dst, src, n_bursts, burst_bytes, dst_stride_bytes, src_stride_bytes);
  asc_set_atomic_none();
}

/* ---- Vector core: arithmetic ---- */

/* The unit needs a barrier between dependent instructions, which pipe order gives in the
   simulator. */

inline void asc_adapter_begin(const npu_vec *v) {
  asc_sync_pipe(PIPE_V);
  if (v->count > 0)
    asc_set_mask_count(), asc_set_vector_mask(0, (uint64_t)v->count);
  else
    asc_set_mask_norm(), asc_set_vector_mask(0, v->mask);
}

#define ASC_TWO(ours, theirs, type, cast)                                                          \
  inline void ours(NPU_UB type *dst, NPU_UB const type *src0, NPU_UB const type *src1,             \
                   npu_vec v) {                                                                    \
    asc_adapter_begin(&v);                                                                         \
    theirs((__ubuf__ cast *)dst, (__ubuf__ cast *)src0, (__ubuf__ cast *)src1, (uint8_t)v.repeats, \
           (uint8_t)v.dst_block, (uint8_t)v.src0_block, (uint8_t)v.src1_block,                     \
           (uint8_t)v.dst_repeat, (uint8_t)v.src0_repeat, (uint8_t)v.src1_repeat);                 \
  }
#define ASC_BY_SCALAR(ours, theirs, type, scalar_type)                                             \
  inline void ours(NPU_UB type *dst, NPU_UB const type *src, scalar_type scalar, npu_vec v) {      \
    asc_adapter_begin(&v);                                                                         \
    theirs(dst, (__ubuf__ type *)src, scalar, (uint8_t)v.repeats, (uint16_t)v.dst_block,           \
           (uint16_t)v.src0_block, (uint8_t)v.dst_repeat, (uint8_t)v.src0_repeat);                 \
  }
#define ASC_ONE(ours, theirs, to, to_cast, from, from_cast)                                        \
  inline void ours(NPU_UB to *dst, NPU_UB const from *src, npu_vec v) {                            \
    asc_adapter_begin(&v);                                                                         \
    theirs((__ubuf__ to_cast *)dst, (__ubuf__ from_cast *)src, (uint8_t)v.repeats,                 \
           (uint16_t)v.dst_block, (uint16_t)v.src0_block, (uint8_t)v.dst_repeat,                   \
           (uint8_t)v.src0_repeat);                                                                \
  }
ASC_TWO(npu_add_f32, asc_add, float, float)
ASC_TWO(npu_sub_f32, asc_sub, float, float)
ASC_TWO(npu_mul_f32, asc_mul, float, float)
ASC_TWO(npu_div_f32, asc_div, float, float)
ASC_TWO(npu_max_f32, asc_max, float, float)
ASC_TWO(npu_min_f32, asc_min, float, float)
ASC_TWO(npu_add_s32, asc_add, int32_t, int32_t)
ASC_TWO(npu_max_s32, asc_max, int32_t, int32_t)
ASC_TWO(npu_min_s32, asc_min, int32_t, int32_t)
ASC_TWO(npu_and_s32, asc_and, int32_t,
        int16_t) /* bits: twice as many lanes on silicon, see docs/ascend.md */
ASC_TWO(npu_or_s32, asc_or, int32_t, int16_t)
ASC_BY_SCALAR(npu_adds_f32, asc_add_scalar, float, float)
ASC_BY_SCALAR(npu_muls_f32, asc_mul_scalar, float, float)
ASC_BY_SCALAR(npu_maxs_f32, asc_max_scalar, float, float)
ASC_BY_SCALAR(npu_mins_f32, asc_min_scalar, float, float)
ASC_BY_SCALAR(npu_adds_s32, asc_add_scalar, int32_t, int32_t)
ASC_BY_SCALAR(npu_shl_s32, asc_shiftleft, int32_t, int32_t)
ASC_BY_SCALAR(npu_shr_s32, asc_shiftright, int32_t, int32_t)
ASC_ONE(npu_exp_f32, asc_exp, float, float, float, float)
ASC_ONE(npu_ln_f32, asc_log, float, float, float, float)
ASC_ONE(npu_abs_f32, asc_abs, float, float, float, float)
ASC_ONE(npu_cast_f32_bf16_rna, asc_float2bfloat16_rna, npu_bf16, bfloat16_t, float, float)
ASC_ONE(npu_cast_f32_bf16_rne, asc_float2bfloat16_rne, npu_bf16, bfloat16_t, float, float)
ASC_ONE(npu_cast_f32_f16_rne, asc_float2half_rne, npu_f16, half, float, float)
ASC_ONE(npu_cast_s8_f16, asc_int82half, npu_f16, half, int8_t, int8_t)
ASC_ONE(npu_cast_f16_f32, asc_half2float, float, float, npu_f16, half)
ASC_ONE(npu_cast_bf16_f32, asc_bfloat162float, float, float, npu_bf16, bfloat16_t)
ASC_ONE(npu_cast_f32_s32_rna, asc_float2int32_rna, int32_t, int32_t, float, float)
ASC_ONE(npu_cast_s32_f32, asc_int322float, float, float, int32_t, int32_t)
ASC_ONE(npu_round_f32_rna, asc_float2float_rna, float, float, float, float)
#undef ASC_TWO
#undef ASC_BY_SCALAR
#undef ASC_ONE

inline void npu_dup_f32(NPU_UB float *dst, float scalar, npu_vec v) {
  asc_adapter_begin(&v);
  asc_duplicate(dst, scalar, (uint8_t)v.repeats, (uint16_t)v.dst_block, (uint8_t)v.dst_repeat);
}
inline void npu_dup_s32(NPU_UB int32_t *dst, int32_t scalar, npu_vec v) {
  asc_adapter_begin(&v);
  asc_duplicate(dst, scalar, (uint8_t)v.repeats, (uint16_t)v.dst_block, (uint8_t)v.dst_repeat);
}
inline void npu_block_max_f32(NPU_UB float *dst, NPU_UB const float *src, npu_vec v) {
  asc_adapter_begin(&v);
  asc_datablock_reduce_max(dst, (__ubuf__ float *)src, (uint8_t)v.repeats, (uint16_t)v.dst_repeat,
                           (uint16_t)v.src0_block, (uint16_t)v.src0_repeat);
}
inline void npu_block_sum_f32(NPU_UB float *dst, NPU_UB const float *src, npu_vec v) {
  asc_adapter_begin(&v);
  asc_datablock_reduce_sum(dst, (__ubuf__ float *)src, (uint8_t)v.repeats, (uint16_t)v.dst_repeat,
                           (uint16_t)v.src0_block, (uint16_t)v.src0_repeat);
}
inline void npu_brcb_f32(NPU_UB float *dst, NPU_UB const float *src, npu_vec v) {
  asc_sync_pipe(PIPE_V);
  asc_brcb((__ubuf__ uint32_t *)dst, (__ubuf__ uint32_t *)src, (uint16_t)v.dst_block,
           (uint16_t)v.dst_repeat, (uint8_t)v.repeats);
}
inline void npu_cmp_f32(NPU_UB uint8_t *dst, NPU_UB const float *src0, NPU_UB const float *src1,
                        npu_cmp op, npu_vec v) {
  asc_adapter_begin(&v);
#define ASC_CMP(name)                                                                              \
  name((__ubuf__ float *)(void *)dst, (__ubuf__ float *)src0, (__ubuf__ float *)src1,              \
       (uint8_t)v.repeats, (uint8_t)v.dst_block, (uint8_t)v.src0_block, (uint8_t)v.src1_block,     \
       (uint8_t)v.dst_repeat, (uint8_t)v.src0_repeat, (uint8_t)v.src1_repeat)
  if (op == NPU_CMP_LT)
    ASC_CMP(asc_lt);
  if (op == NPU_CMP_LE)
    ASC_CMP(asc_le);
  if (op == NPU_CMP_GT)
    ASC_CMP(asc_gt);
  if (op == NPU_CMP_GE)
    ASC_CMP(asc_ge);
  if (op == NPU_CMP_EQ)
    ASC_CMP(asc_eq);
  if (op == NPU_CMP_NE)
    ASC_CMP(asc_ne);
#undef ASC_CMP
}
inline void npu_cmps_f32(NPU_UB uint8_t *dst, NPU_UB const float *src, float scalar, npu_cmp op,
                         npu_vec v) {
  asc_adapter_begin(&v);
#define ASC_CMP(name)                                                                              \
  name((__ubuf__ float *)(void *)dst, (__ubuf__ float *)src, scalar, (uint8_t)v.repeats,           \
       (uint16_t)v.dst_block, (uint16_t)v.src0_block, (uint8_t)v.dst_repeat,                       \
       (uint8_t)v.src0_repeat)
  if (op == NPU_CMP_LT)
    ASC_CMP(asc_lt_scalar);
  if (op == NPU_CMP_LE)
    ASC_CMP(asc_le_scalar);
  if (op == NPU_CMP_GT)
    ASC_CMP(asc_gt_scalar);
  if (op == NPU_CMP_GE)
    ASC_CMP(asc_ge_scalar);
  if (op == NPU_CMP_EQ)
    ASC_CMP(asc_eq_scalar);
  if (op == NPU_CMP_NE)
    ASC_CMP(asc_ne_scalar);
#undef ASC_CMP
}
inline void npu_sel_f32(NPU_UB float *dst, NPU_UB const uint8_t *bits, NPU_UB const float *src0,
                        NPU_UB const float *src1, npu_vec v) {
  asc_adapter_begin(&v);
  asc_set_cmp_mask((__ubuf__ void *)bits);
  asc_select(dst, (__ubuf__ float *)src0, (__ubuf__ float *)src1, (uint8_t)v.repeats,
             (uint8_t)v.dst_block, (uint8_t)v.src0_block, (uint8_t)v.src1_block,
             (uint8_t)v.dst_repeat, (uint8_t)v.src0_repeat, (uint8_t)v.src1_repeat);
}
inline void npu_sels_f32(NPU_UB float *dst, NPU_UB const uint8_t *bits, NPU_UB const float *src0,
                         float scalar, npu_vec v) {
  asc_adapter_begin(&v);
  asc_set_cmp_mask((__ubuf__ void *)bits);
  asc_select_scalar(dst, (__ubuf__ float *)src0, scalar, (uint8_t)v.repeats, (uint16_t)v.dst_block,
                    (uint16_t)v.src0_block, (uint8_t)v.dst_repeat, (uint8_t)v.src0_repeat);
}

#endif
