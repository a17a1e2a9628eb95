/* SPDX-License-Identifier: Apache-2.0
 *
 * Our own declarations of the vendor calls that asc_adapter.h uses, so that the kernel compiles as
 * C++ against them without a toolkit (tests/test_npu_silicon.sh). Written from public descriptions
 * of the C API; no vendor text. Names marked [listed] stand in the public list of functions;
 * [guess] follows their pattern. Argument orders are to be checked against the toolkit's
 * documentation before the first build on silicon.
 */
#ifndef ASC_PROTOTYPES_H
#define ASC_PROTOTYPES_H

#include <stdint.h>

#define __aicore__
#define __gm__
#define __cbuf__
#define __ca__
#define __cb__
#define __cc__
#define __ubuf__
struct bfloat16_t {
  uint16_t bits;
};
struct half {
  uint16_t bits;
};
enum pipe_t { PIPE_S, PIPE_MTE1, PIPE_MTE2, PIPE_MTE3, PIPE_M, PIPE_FIX, PIPE_V, PIPE_ALL };
typedef int32_t event_t;

/* Who and where; synchronisation. */
int64_t asc_get_block_idx();                                 /* [listed] */
int64_t asc_get_block_num();                                 /* [guess] */
int64_t asc_get_sub_block_id();                              /* [listed] */
void asc_sync_notify(pipe_t pipe, pipe_t tpipe, event_t id); /* [listed]; pipes must be constants */
void asc_sync_wait(pipe_t pipe, pipe_t tpipe, event_t id);   /* [listed] */
void asc_sync_pipe(pipe_t pipe);                             /* [listed] */
void asc_sync_block_arrive(pipe_t pipe, int64_t flag_id);    /* [listed]; 16 ids, at most 15 sets */
void asc_sync_block_wait(pipe_t pipe, int64_t flag_id);      /* [listed] */
void asc_sync_all();                                         /* [guess] */

/* Moves. Strides of the aligned copies count bytes of the gap between bursts. */
void asc_copy_gm2l1(__cbuf__ void *dst, __gm__ void *src, uint16_t bursts, uint16_t burst_blocks,
                    uint16_t src_gap, uint16_t dst_gap); /* [listed] */
void asc_copy_gm2l1_nd2nz(__cbuf__ void *dst, __gm__ void *src, uint16_t rows, uint16_t cols,
                          uint32_t src_stride, uint16_t dst_rows); /* [guess] */
void asc_fill_l1(__cbuf__ void *dst, uint16_t value, uint16_t bursts, uint16_t burst_blocks,
                 uint16_t gap); /* [listed] */
void asc_copy_l12l0a(__ca__ bfloat16_t *dst, __cbuf__ bfloat16_t *src, uint16_t m, uint16_t k,
                     uint16_t src_rows, bool transpose); /* [guess] */
void asc_copy_l12l0b(__cb__ bfloat16_t *dst, __cbuf__ bfloat16_t *src, uint16_t n, uint16_t k,
                     uint16_t src_rows, bool transpose); /* [guess] */
void asc_mmad(__cc__ float *c, __ca__ bfloat16_t *a, __cb__ bfloat16_t *b, uint16_t m, uint16_t k,
              uint16_t n, bool init); /* [listed] */
void asc_mmad(__cc__ float *c, __ca__ half *a, __cb__ half *b, uint16_t m, uint16_t k, uint16_t n,
              bool init); /* [listed] */
void asc_copy_l0c2gm(__gm__ float *dst, __cc__ float *src, uint16_t n, uint16_t m,
                     uint32_t dst_stride, uint16_t src_rows); /* [listed] */
void asc_copy_l0c2gm(__gm__ bfloat16_t *dst, __cc__ float *src, uint16_t n, uint16_t m,
                     uint32_t dst_stride, uint16_t src_rows); /* [listed] */
void asc_copy_l0c2ub(__ubuf__ float *dst, __cc__ float *src, uint16_t n, uint16_t m,
                     uint32_t dst_stride, uint16_t src_rows); /* [guess], 950 */
void asc_copy_ub2l1(__cbuf__ void *dst, __ubuf__ void *src, uint16_t bursts, uint16_t burst_blocks,
                    uint16_t src_gap, uint16_t dst_gap); /* [guess], 950 */
void asc_copy_gm2ub_align(__ubuf__ void *dst, __gm__ void *src, uint16_t bursts,
                          uint32_t burst_bytes, uint32_t dst_gap, uint32_t src_gap); /* [listed] */
void asc_copy_ub2gm_align(__gm__ void *dst, __ubuf__ void *src, uint16_t bursts,
                          uint32_t burst_bytes, uint32_t dst_gap, uint32_t src_gap); /* [listed] */
void asc_set_atomic_none();                                                          /* [guess] */
void asc_set_atomic_add_float();                                                     /* [guess] */
void asc_set_atomic_add_int();                                                       /* [guess] */

/* Vector. Normal mode: mask and repeats; counted mode: a number of elements. */
void asc_set_mask_norm();                              /* [listed] */
void asc_set_mask_count();                             /* [listed] */
void asc_set_vector_mask(uint64_t high, uint64_t low); /* [listed] */
#define ASC_TWO_SOURCES(name, type)                                                                \
  void name(__ubuf__ type *dst, __ubuf__ type *src0, __ubuf__ type *src1, uint8_t repeat,          \
            uint8_t dst_block, uint8_t src0_block, uint8_t src1_block, uint8_t dst_repeat,         \
            uint8_t src0_repeat, uint8_t src1_repeat);
#define ASC_SCALAR(name, type)                                                                     \
  void name(__ubuf__ type *dst, __ubuf__ type *src, type scalar, uint8_t repeat,                   \
            uint16_t dst_block, uint16_t src_block, uint8_t dst_repeat, uint8_t src_repeat);
#define ASC_ONE_SOURCE(name, to, from)                                                             \
  void name(__ubuf__ to *dst, __ubuf__ from *src, uint8_t repeat, uint16_t dst_block,              \
            uint16_t src_block, uint8_t dst_repeat, uint8_t src_repeat);
ASC_TWO_SOURCES(asc_add, float)
ASC_TWO_SOURCES(asc_sub, float)
ASC_TWO_SOURCES(asc_mul, float)
ASC_TWO_SOURCES(asc_div, float) /* [listed] */
ASC_TWO_SOURCES(asc_max, float)
ASC_TWO_SOURCES(asc_min, float)
ASC_TWO_SOURCES(asc_add, int32_t)
ASC_TWO_SOURCES(asc_max, int32_t)
ASC_TWO_SOURCES(asc_min, int32_t)
ASC_TWO_SOURCES(asc_and, int16_t)
ASC_TWO_SOURCES(asc_or, int16_t)
ASC_TWO_SOURCES(asc_lt, float)
ASC_TWO_SOURCES(asc_le, float)
ASC_TWO_SOURCES(asc_gt, float)
ASC_TWO_SOURCES(asc_ge, float) /* [listed] */
ASC_TWO_SOURCES(asc_eq, float)
ASC_TWO_SOURCES(asc_ne, float)
ASC_TWO_SOURCES(asc_select, float)
ASC_SCALAR(asc_add_scalar, float)
ASC_SCALAR(asc_mul_scalar, float)
ASC_SCALAR(asc_max_scalar, float)
ASC_SCALAR(asc_min_scalar, float) /* [listed] */
ASC_SCALAR(asc_add_scalar, int32_t)
ASC_SCALAR(asc_shiftleft, int32_t)
ASC_SCALAR(asc_shiftright, int32_t) /* shifts [guess] */
ASC_SCALAR(asc_lt_scalar, float)
ASC_SCALAR(asc_le_scalar, float)
ASC_SCALAR(asc_gt_scalar, float)
ASC_SCALAR(asc_ge_scalar, float) /* [listed] */
ASC_SCALAR(asc_eq_scalar, float)
ASC_SCALAR(asc_ne_scalar, float)
ASC_SCALAR(asc_select_scalar, float) /* last [guess] */
ASC_ONE_SOURCE(asc_exp, float, float)
ASC_ONE_SOURCE(asc_log, float, float)
ASC_ONE_SOURCE(asc_abs, float, float) /* [listed] */
ASC_ONE_SOURCE(asc_float2bfloat16_rna, bfloat16_t, float)
ASC_ONE_SOURCE(asc_float2bfloat16_rne, bfloat16_t, float) /* [listed] but for suffixes */
ASC_ONE_SOURCE(asc_float2half_rne, half, float)           /* [guess] */
ASC_ONE_SOURCE(asc_int82half, half, int8_t)               /* [guess] */
ASC_ONE_SOURCE(asc_half2float, float, half)               /* [guess] */
ASC_ONE_SOURCE(asc_bfloat162float, float, bfloat16_t)
ASC_ONE_SOURCE(asc_float2int32_rna, int32_t, float)
ASC_ONE_SOURCE(asc_int322float, float, int32_t)
ASC_ONE_SOURCE(asc_float2float_rna, float, float)
#undef ASC_TWO_SOURCES
#undef ASC_SCALAR
#undef ASC_ONE_SOURCE
void asc_duplicate(__ubuf__ float *dst, float value, uint8_t repeat, uint16_t dst_block,
                   uint8_t dst_repeat); /* [listed] */
void asc_duplicate(__ubuf__ int32_t *dst, int32_t value, uint8_t repeat, uint16_t dst_block,
                   uint8_t dst_repeat); /* [listed] */
void asc_datablock_reduce_max(__ubuf__ float *dst, __ubuf__ float *src, uint8_t repeat,
                              uint16_t dst_repeat, uint16_t src_block,
                              uint16_t src_repeat); /* [listed] */
void asc_datablock_reduce_sum(__ubuf__ float *dst, __ubuf__ float *src, uint8_t repeat,
                              uint16_t dst_repeat, uint16_t src_block,
                              uint16_t src_repeat); /* [listed] */
void asc_brcb(__ubuf__ uint32_t *dst, __ubuf__ uint32_t *src, uint16_t dst_block,
              uint16_t dst_repeat, uint8_t repeat); /* [listed] */
void asc_set_cmp_mask(__ubuf__ void *src);          /* [listed] */

#endif
