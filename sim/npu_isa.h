/* SPDX-License-Identifier: Apache-2.0
 *
 * The instruction set of the simulated NPU, as C calls: what a kernel may say. The machine is
 * modelled on the public documents of the Ascend 910B (one AI core = one cube core AIC + two vector
 * cores AIV that share nothing but global memory); names and calling conventions are our own.
 * Common subset of C11 and C++. The host's side (create a chip, launch, report) is npu_run.h.
 *
 * How a kernel runs. A kernel is two C functions, one for every AIC and one for every AIV; each
 * core runs its function once. The C code is the core's scalar unit (pipe S): it runs ahead and
 * appends instructions to the queues of the core's other pipes, 32 deep, and stalls only at a full
 * queue or at a wait, barrier or read of its own. A pipe takes its instructions in order; pipes
 * know nothing of each other: whatever one pipe must not do before another has finished is said
 * with notify and wait. Nothing is ordered by time.
 *
 *     AIC:  S   MTE2 (GM -> L1)   MTE1 (L1 -> L0A, L0B)   M (cube)     FIX (L0C -> GM)
 *     AIV:  S   MTE2 (GM -> UB)   V (vector)              MTE3 (UB -> GM)
 *
 * Memory orders: two accesses to a byte, one of them a write, must be ordered by pipe order, by
 * notify and wait, by a cross-core flag or by a barrier; the simulator reports every pair that is
 * not (a race). Atomic adds of s32 commute and need no order among themselves; those of f32 do,
 * because order decides bits.
 *
 * Layouts. bf16 is a uint16_t. ND is row-major. NZ (L1: bf16, L0C: f32) cuts a matrix [rows][cols]
 * into columns of 16: element (r, c) lies at (c / 16 * H + r) * 16 + c % 16, where H, a multiple of
 * 16, is the height of the NZ matrix that it belongs to. So a tile that starts at row r and column
 * c (a multiple of 16) of an NZ matrix is an NZ matrix itself, at pointer base + (c / 16 * H + r) *
 * 16, of the same H. L0A and L0B hold one tile in 16 x 16 fractals: A by rows of fractals, each
 * row-major; B by rows (k) of fractals, each column-major. A kernel only needs their sizes:
 * ceil16(m) * ceil16(k) and ceil16(k) * ceil16(n) elements.
 *
 * Checks, all before an instruction has any effect: operands inside their buffer, 32-byte alignment
 * of local addresses (L0A, L0B: 512, L0C: 64), sizes and strides in the ranges given below. */
#ifndef NPU_ISA_H
#define NPU_ISA_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* ---- Address spaces: empty here, qualifiers of the vendor's compiler on silicon ---- */

#ifndef NPU_GM
#define NPU_GM  /* global memory: HBM behind the L2 cache */
#define NPU_L1  /* AIC, 512 KB */
#define NPU_L0A /* AIC, 64 KB */
#define NPU_L0B /* AIC, 64 KB */
#define NPU_L0C /* AIC, 128 KB */
#define NPU_UB  /* AIV, 192 KB */
#endif

typedef uint16_t npu_bf16;
typedef uint16_t npu_f16; /* moves and loads of bf16 are also those of f16 */

enum {
  NPU_L1_BYTES = 512 * 1024,
  NPU_L0A_BYTES = 64 * 1024,
  NPU_L0B_BYTES = 64 * 1024,
  NPU_L0C_BYTES = 128 * 1024, /* 950: NPU_L0C_BYTES_950 */
  NPU_UB_BYTES = 192 * 1024,  /* 950: NPU_UB_BYTES_950 */
  NPU_L0C_BYTES_950 = 256 * 1024,
  NPU_UB_BYTES_950 = 248 * 1024,
  NPU_BLOCK_BYTES = 32,  /* unit of local strides */
  NPU_LANES = 64,        /* 32-bit lanes of a vector repeat: 256 bytes, 8 blocks */
  NPU_MAX_REPEATS = 255, /* of one vector instruction; strides too are 0..255 blocks */
  NPU_EVENTS = 8,        /* ids per ordered pair of pipes in a core */
  NPU_FLAGS = 16,        /* cross-core flag ids per core */
  NPU_FLAG_MAX = 15,     /* unwaited sets a cross-core flag can count */
  NPU_QUEUE_DEPTH = 32
};

typedef enum npu_pipe {
  NPU_PIPE_S,
  NPU_PIPE_MTE1,
  NPU_PIPE_MTE2,
  NPU_PIPE_MTE3,
  NPU_PIPE_M,
  NPU_PIPE_FIX,
  NPU_PIPE_V,
  NPU_PIPES,
  NPU_PIPE_ALL = NPU_PIPES
} npu_pipe;

/* ---- Who and where am I (free) ---- */

int32_t npu_block_index(
    void); /* AI core, 0 .. npu_block_count() - 1: the same for an AIC and its two AIVs */
int32_t npu_block_count(void); /* AI cores of the launch */
int32_t npu_subcore(void);     /* 0 or 1: which AIV of its AI core; 0 on an AIC */

/* Local buffers, from byte offset 0 of this core's own: (float *)NPU_UB_AT(float, 1024). An AIV has
 * no L1 of its own: there npu_l1 is its AIC's. */
NPU_L1 void *npu_l1(uint32_t offset_bytes);
NPU_L0A void *npu_l0a(uint32_t offset_bytes);
NPU_L0B void *npu_l0b(uint32_t offset_bytes);
NPU_L0C void *npu_l0c(uint32_t offset_bytes);
NPU_UB void *npu_ub(uint32_t offset_bytes);
NPU_UB void *npu_ub_of(int32_t subcore, uint32_t offset_bytes); /* for an AIC: of its AIV */
#define NPU_L1_AT(type, offset_bytes) ((NPU_L1 type *)npu_l1(offset_bytes))
#define NPU_L0A_AT(type, offset_bytes) ((NPU_L0A type *)npu_l0a(offset_bytes))
#define NPU_L0B_AT(type, offset_bytes) ((NPU_L0B type *)npu_l0b(offset_bytes))
#define NPU_L0C_AT(type, offset_bytes) ((NPU_L0C type *)npu_l0c(offset_bytes))
#define NPU_UB_AT(type, offset_bytes) ((NPU_UB type *)npu_ub(offset_bytes))

/* ---- Synchronisation ---- */

/* Event id (0..7) of the ordered pair (from, to) of this core. notify sits in the queue of `from`
 * and sets the event when everything before it there has finished; wait sits in the queue of `to`,
 * holds it until the event is set, and clears it. Setting an event that is set is an error
 * (overflow), and so is leaving one set at the end. to = S: the C code itself waits. from = S is at
 * once. */
void npu_notify(npu_pipe from, npu_pipe to, int32_t event);
void npu_wait(npu_pipe from, npu_pipe to, int32_t event);

/* A unit flag: notify between M and FIX for an accumulator that one fills and the other drains 16 x
 * 16 elements after 16 x 16. The event is set when the instruction before it starts, and what
 * follows the wait may run beside that instruction, but ends no earlier than it. Memory is ordered
 * as by notify. (On silicon it is a mode of mmad and of the copy out of L0C.) */
void npu_notify_unit(npu_pipe from, npu_pipe to, int32_t event);

/* Sits in the pipe's queue: later instructions of the pipe start after earlier ones finished (pipe
 * order alone already orders memory). NPU_PIPE_ALL: every pipe drains before any goes on, the C
 * code included. */
void npu_barrier(npu_pipe pipe);

/* Flag id (0..15) between an AIC and its two AIVs; counts up to 15 unwaited sets. Set by the AIC:
 * counts up in both AIVs. Set by an AIV: the AIC's flag counts up once both AIVs have set it. set
 * sits in the queue of `pipe` and takes effect after everything before it there has finished; wait
 * sits in the queue of `pipe`, holds it until this core's count is positive, and takes one off. The
 * two directions of an id are separate. */
void npu_cross_set(npu_pipe pipe, int32_t flag);
void npu_cross_wait(npu_pipe pipe, int32_t flag);

/* All cores of the launch, AIC and AIV: every pipe of every core drains, then all go on. */
void npu_barrier_all(void);

/* ---- Scalar unit: reads that the C code waits for ---- */

/* What V or MTE2 wrote must be waited for first (npu_wait(..., NPU_PIPE_S, id)). Aligned to 4
 * bytes. In timing-only mode no data exists: the answer is `assumed`. */
int32_t npu_read_ub_s32(NPU_UB const int32_t *src, int32_t assumed);
float npu_read_ub_f32(NPU_UB const float *src, float assumed);

/* For control data such as lengths and block tables; in both modes the number that stands in
 * memory. */
int32_t npu_read_gm_s32(NPU_GM const int32_t *src);

/* ---- AIC: MTE2, GM -> L1 ---- */

/* n_bursts runs of burst_bytes (a multiple of 32); strides from start to start, >= burst_bytes,
 * dst's a multiple of 32, of no meaning for one run. */
void npu_copy_gm_l1(NPU_L1 void *dst, NPU_GM const void *src, int32_t n_bursts, int32_t burst_bytes,
                    int32_t dst_stride_bytes, int32_t src_stride_bytes);

/* src ND [rows][cols], rows src_stride elements apart (>= cols) -> dst NZ of height dst_rows (a
 * multiple of 16, >= rows). A last column of 16 that is not full is filled with 0; rows beyond
 * `rows` are left alone. rows 1..16384, cols 1..65535. */
void npu_copy_gm_l1_nd2nz_bf16(NPU_L1 npu_bf16 *dst, NPU_GM const npu_bf16 *src, int32_t rows,
                               int32_t cols, int32_t src_stride, int32_t dst_rows);

/* n_bursts runs of burst_bytes (a multiple of 32), dst_stride_bytes apart, all = value. */
void npu_fill_l1_bf16(NPU_L1 npu_bf16 *dst, npu_bf16 value, int32_t n_bursts, int32_t burst_bytes,
                      int32_t dst_stride_bytes);

/* ---- AIC: MTE1, L1 -> L0A, L0B ---- */

/* One tile of an NZ matrix of height src_rows. Sizes are rounded up to 16, and that much of src is
 * read. Plain: L0A takes A as [m][k], L0B takes B as [n][k] (B transposed: keys). _t: the tile lies
 * transposed, [k][m] and [k][n] (values). */
void npu_load_l0a_bf16(NPU_L0A npu_bf16 *dst, NPU_L1 const npu_bf16 *src, int32_t m, int32_t k,
                       int32_t src_rows);
void npu_load_l0a_t_bf16(NPU_L0A npu_bf16 *dst, NPU_L1 const npu_bf16 *src, int32_t m, int32_t k,
                         int32_t src_rows);
void npu_load_l0b_bf16(NPU_L0B npu_bf16 *dst, NPU_L1 const npu_bf16 *src, int32_t n, int32_t k,
                       int32_t src_rows);
void npu_load_l0b_t_bf16(NPU_L0B npu_bf16 *dst, NPU_L1 const npu_bf16 *src, int32_t n, int32_t k,
                         int32_t src_rows);

/* ---- AIC: M, the cube ---- */

/* C[m][n] = (accumulate ? C : 0) + A[m][k] B[k][n], m, n, k 1..4095. f32: each element adds its
 * products, which are exact, one by one in ascending k, rounding to nearest even. Only the first k
 * of the tile's ceil16(k) take part; C is NZ of height ceil16(m) and only its m x n elements are
 * written. */
void npu_mmad_bf16(NPU_L0C float *c, NPU_L0A const npu_bf16 *a, NPU_L0B const npu_bf16 *b,
                   int32_t m, int32_t n, int32_t k, int32_t accumulate);

void npu_mmad_f16(NPU_L0C float *c, NPU_L0A const npu_f16 *a, NPU_L0B const npu_f16 *b, int32_t m,
                  int32_t n, int32_t k, int32_t accumulate);

/* ---- AIC: FIX, L0C -> GM ---- */

/* src NZ of height src_rows -> dst ND [m][n], rows dst_stride elements apart (>= n). add: each
 * element of dst, as f32, is atomically replaced by itself + the new one. bf16: rounded to nearest
 * even. */
void npu_copy_l0c_gm_f32(NPU_GM float *dst, NPU_L0C const float *src, int32_t m, int32_t n,
                         int32_t dst_stride, int32_t src_rows);
void npu_copy_l0c_gm_add_f32(NPU_GM float *dst, NPU_L0C const float *src, int32_t m, int32_t n,
                             int32_t dst_stride, int32_t src_rows);
void npu_copy_l0c_gm_bf16(NPU_GM npu_bf16 *dst, NPU_L0C const float *src, int32_t m, int32_t n,
                          int32_t dst_stride, int32_t src_rows);

/* ---- Within an AI core, on a chip that has the paths (950) ---- */

/* AIC, FIX: as copy_l0c_gm_f32, to UB of one of its AIVs (npu_ub_of), where rows are dst_stride
 * elements apart, a multiple of 8. */
void npu_copy_l0c_ub_f32(NPU_UB float *dst, NPU_L0C const float *src, int32_t m, int32_t n,
                         int32_t dst_stride, int32_t src_rows);

/* AIV, MTE3: as copy_gm_l1, from UB to L1 of its AIC (npu_l1); strides are multiples of 32. */
void npu_copy_ub_l1(NPU_L1 void *dst, NPU_UB const void *src, int32_t n_bursts, int32_t burst_bytes,
                    int32_t dst_stride_bytes, int32_t src_stride_bytes);

/* ---- AIV: MTE2, GM -> UB, and MTE3, UB -> GM ---- */

/* n_bursts (1..4095) runs of burst_bytes (any; adds: a multiple of 4); strides from start to start,
 * >= burst_bytes, UB's a multiple of 32, of no meaning for one run. GM may lie anywhere (adds:
 * aligned to 4). Only burst_bytes are written, no padding. add: dst as f32, or as int32 with
 * wrap-around, is atomically replaced by itself + the new number. */
void npu_copy_gm_ub(NPU_UB void *dst, NPU_GM const void *src, int32_t n_bursts, int32_t burst_bytes,
                    int32_t dst_stride_bytes, int32_t src_stride_bytes);
void npu_copy_ub_gm(NPU_GM void *dst, NPU_UB const void *src, int32_t n_bursts, int32_t burst_bytes,
                    int32_t dst_stride_bytes, int32_t src_stride_bytes);
void npu_copy_ub_gm_add_f32(NPU_GM float *dst, NPU_UB const float *src, int32_t n_bursts,
                            int32_t burst_bytes, int32_t dst_stride_bytes,
                            int32_t src_stride_bytes);
void npu_copy_ub_gm_add_s32(NPU_GM int32_t *dst, NPU_UB const int32_t *src, int32_t n_bursts,
                            int32_t burst_bytes, int32_t dst_stride_bytes,
                            int32_t src_stride_bytes);

/* ---- AIV: V, the vector unit ---- */

/* Which elements a vector instruction visits. A repeat is 64 lanes; lane i of 4-byte elements lies
 * in block i / 8 of its operand, of 2-byte elements in block i / 16. Blocks of a repeat are *_block
 * blocks apart (1 = contiguous, 0 = one block for all lanes), repeats *_repeat blocks apart. Only
 * lanes whose bit is set in mask are written. count > 0 (counted mode, costs extra cycles): the
 * first count lanes in all are visited, repeats and mask are ignored. */
typedef struct npu_vec {
  uint64_t mask;
  int32_t repeats;                              /* 1..255 */
  int32_t count;                                /* 0, or 1..255 * 64 */
  int32_t dst_block, src0_block, src1_block;    /* 0..255 blocks of 32 bytes; dst's >= 1 */
  int32_t dst_repeat, src0_repeat, src1_repeat; /* 0..255 */
} npu_vec;

/* Repeats of 64 lanes, each operand *_repeat blocks apart: 8 = contiguous f32, 4 = contiguous bf16,
 * 64 = next row of 512 f32. */
static inline npu_vec npu_vec_rows(int32_t repeats, uint64_t mask, int32_t dst_repeat,
                                   int32_t src0_repeat, int32_t src1_repeat) {
  npu_vec v;
  v.mask = mask, v.repeats = repeats, v.count = 0;
  v.dst_block = 1, v.src0_block = 1, v.src1_block = 1;
  v.dst_repeat = dst_repeat, v.src0_repeat = src0_repeat, v.src1_repeat = src1_repeat;
  return v;
}

/* The same, with one block of src1 (8 lanes, as brcb makes them) for all 64 lanes of a repeat. */
static inline npu_vec npu_vec_rows_by_block(int32_t repeats, uint64_t mask, int32_t dst_repeat,
                                            int32_t src0_repeat, int32_t src1_repeat) {
  npu_vec v = npu_vec_rows(repeats, mask, dst_repeat, src0_repeat, src1_repeat);
  v.src1_block = 0;
  return v;
}

/* The first count elements, contiguous, all operands of 4 bytes. */
static inline npu_vec npu_vec_count(int32_t count) {
  npu_vec v = npu_vec_rows(1, 0, 8, 8, 8);
  v.count = count;
  return v;
}

#define NPU_MASK_ALL (~(uint64_t)0)

/* Arithmetic is IEEE f32, nearest even, subnormals kept. max and min: if either is NaN, NaN. dst
 * may be a source of the same shape. */
void npu_add_f32(NPU_UB float *dst, NPU_UB const float *src0, NPU_UB const float *src1, npu_vec v);
void npu_sub_f32(NPU_UB float *dst, NPU_UB const float *src0, NPU_UB const float *src1,
                 npu_vec v); /* src0 - src1 */
void npu_mul_f32(NPU_UB float *dst, NPU_UB const float *src0, NPU_UB const float *src1, npu_vec v);
void npu_div_f32(NPU_UB float *dst, NPU_UB const float *src0, NPU_UB const float *src1,
                 npu_vec v); /* src0 / src1 */
void npu_max_f32(NPU_UB float *dst, NPU_UB const float *src0, NPU_UB const float *src1, npu_vec v);
void npu_min_f32(NPU_UB float *dst, NPU_UB const float *src0, NPU_UB const float *src1, npu_vec v);
void npu_adds_f32(NPU_UB float *dst, NPU_UB const float *src, float scalar, npu_vec v);
void npu_muls_f32(NPU_UB float *dst, NPU_UB const float *src, float scalar, npu_vec v);
void npu_maxs_f32(NPU_UB float *dst, NPU_UB const float *src, float scalar, npu_vec v);
void npu_mins_f32(NPU_UB float *dst, NPU_UB const float *src, float scalar, npu_vec v);
void npu_exp_f32(NPU_UB float *dst, NPU_UB const float *src, npu_vec v); /* libm's expf */
void npu_ln_f32(NPU_UB float *dst, NPU_UB const float *src, npu_vec v);  /* libm's logf */
void npu_abs_f32(NPU_UB float *dst, NPU_UB const float *src, npu_vec v);
void npu_dup_f32(NPU_UB float *dst, float scalar, npu_vec v);

/* Bits and integers; adds, subtractions and products wrap. shl, shr: shift 0..31; shr is
 * arithmetic. */
void npu_add_s32(NPU_UB int32_t *dst, NPU_UB const int32_t *src0, NPU_UB const int32_t *src1,
                 npu_vec v);
void npu_max_s32(NPU_UB int32_t *dst, NPU_UB const int32_t *src0, NPU_UB const int32_t *src1,
                 npu_vec v);
void npu_min_s32(NPU_UB int32_t *dst, NPU_UB const int32_t *src0, NPU_UB const int32_t *src1,
                 npu_vec v);
void npu_and_s32(NPU_UB int32_t *dst, NPU_UB const int32_t *src0, NPU_UB const int32_t *src1,
                 npu_vec v);
void npu_or_s32(NPU_UB int32_t *dst, NPU_UB const int32_t *src0, NPU_UB const int32_t *src1,
                npu_vec v);
void npu_adds_s32(NPU_UB int32_t *dst, NPU_UB const int32_t *src, int32_t scalar, npu_vec v);
void npu_shl_s32(NPU_UB int32_t *dst, NPU_UB const int32_t *src, int32_t shift, npu_vec v);
void npu_shr_s32(NPU_UB int32_t *dst, NPU_UB const int32_t *src, int32_t shift, npu_vec v);
void npu_dup_s32(NPU_UB int32_t *dst, int32_t scalar, npu_vec v);

/* Casts. RNA: round to nearest, halves away from zero; RNE: halves to even. To int32: saturates,
 * NaN gives 0. f32 -> bf16: beyond range gives inf, NaN stays NaN. 2-byte operands: a contiguous
 * repeat is 4 blocks. */
void npu_cast_f32_bf16_rna(NPU_UB npu_bf16 *dst, NPU_UB const float *src, npu_vec v);
void npu_cast_f32_bf16_rne(NPU_UB npu_bf16 *dst, NPU_UB const float *src, npu_vec v);
void npu_cast_bf16_f32(NPU_UB float *dst, NPU_UB const npu_bf16 *src, npu_vec v);
void npu_cast_f32_f16_rne(NPU_UB npu_f16 *dst, NPU_UB const float *src, npu_vec v);
void npu_cast_f16_f32(NPU_UB float *dst, NPU_UB const npu_f16 *src, npu_vec v);
/* 1-byte operand: a contiguous repeat is 2 blocks. */
void npu_cast_s8_f16(NPU_UB npu_f16 *dst, NPU_UB const int8_t *src, npu_vec v);
void npu_cast_f32_s32_rna(NPU_UB int32_t *dst, NPU_UB const float *src, npu_vec v);
void npu_cast_s32_f32(NPU_UB float *dst, NPU_UB const int32_t *src, npu_vec v); /* RNE */
void npu_round_f32_rna(NPU_UB float *dst, NPU_UB const float *src,
                       npu_vec v); /* to an integer, as f32 */

/* Block reduce: repeat r writes 8 contiguous results, one per block of src, at dst + r * dst_repeat
 * blocks (dst_repeat 1 = contiguous). Lanes whose mask bit is clear do not take part; a block
 * without any gives -inf (max) or 0 (sum). Sums: ((0+1)+(2+3))+((4+5)+(6+7)). */
void npu_block_max_f32(NPU_UB float *dst, NPU_UB const float *src, npu_vec v);
void npu_block_sum_f32(NPU_UB float *dst, NPU_UB const float *src, npu_vec v);

/* Broadcast-8: repeat r reads 8 contiguous elements at src + 8 r and fills one block of dst with
 * each; blocks dst_block, repeats dst_repeat blocks apart (1, 8 = contiguous). Only repeats,
 * dst_block and dst_repeat of v count. */
void npu_brcb_f32(NPU_UB float *dst, NPU_UB const float *src, npu_vec v);

/* Compare: bit i of the 8 bytes at dst + 8 r is src0 OP src1 in lane i of repeat r; masked-off
 * lanes give 0. False if either is NaN, except NE. Select: lane i of repeat r is src0 where bit i
 * of the 8 bytes at bits + 8 r is set, else src1 (or the scalar). */
typedef enum npu_cmp {
  NPU_CMP_LT,
  NPU_CMP_LE,
  NPU_CMP_GT,
  NPU_CMP_GE,
  NPU_CMP_EQ,
  NPU_CMP_NE
} npu_cmp;
void npu_cmp_f32(NPU_UB uint8_t *dst, NPU_UB const float *src0, NPU_UB const float *src1,
                 npu_cmp op, npu_vec v);
void npu_cmps_f32(NPU_UB uint8_t *dst, NPU_UB const float *src, float scalar, npu_cmp op,
                  npu_vec v);
void npu_sel_f32(NPU_UB float *dst, NPU_UB const uint8_t *bits, NPU_UB const float *src0,
                 NPU_UB const float *src1, npu_vec v);
void npu_sels_f32(NPU_UB float *dst, NPU_UB const uint8_t *bits, NPU_UB const float *src0,
                  float scalar, npu_vec v);

#ifdef __cplusplus
}
#endif

#ifndef NPU_NO_SITES
#include "npu_sites.h" /* lets reports name the kernel's file and line */
#endif
#endif
