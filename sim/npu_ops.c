/* SPDX-License-Identifier: Apache-2.0
 *
 * The instruction table made whole: for each family of instructions its rules, its operands as byte
 * ranges, and its amount of work. What instructions do stands in npu_move.c, npu_cube.c and
 * npu_vector.c.
 */
#include "npu_core.h"

static int64_t ceil16(int64_t x) { return (x + 15) / 16 * 16; }

/* ---- Rules: field by field, the first that is broken is reported ---- */

static bool in(npu_core *core, const npu_instr *i, const char *field, int64_t value, int64_t least,
               int64_t most, const char *rule) {
  return (value >= least && value <= most) || npu_refuse(core, i, field, value, rule);
}

static bool multiple(npu_core *core, const npu_instr *i, const char *field, int64_t value,
                     int64_t of, const char *rule) {
  return value % of == 0 || npu_refuse(core, i, field, value, rule);
}

enum { N_BURSTS, BURST, DST_STRIDE, SRC_STRIDE }; /* n[] of copies */

/* Strides of a single burst mean nothing. */
static bool rules_strides(npu_core *core, const npu_instr *i) {
  return i->n[N_BURSTS] == 1 || (in(core, i, "dst_stride_bytes", i->n[DST_STRIDE], i->n[BURST],
                                    INT32_MAX, "at least burst_bytes") &&
                                 in(core, i, "src_stride_bytes", i->n[SRC_STRIDE], i->n[BURST],
                                    INT32_MAX, "at least burst_bytes"));
}

static bool rules_stride(npu_core *core, const npu_instr *i, const char *field, int32_t stride,
                         int32_t of, const char *rule) {
  return i->n[N_BURSTS] == 1 || multiple(core, i, field, stride, of, rule);
}

static bool rules_bursts(npu_core *core, const npu_instr *i) {
  return in(core, i, "n_bursts", i->n[N_BURSTS], 1, 4095, "1 to 4095") &&
         in(core, i, "burst_bytes", i->n[BURST], 1, 1 << 21, "1 to 2097152");
}

static bool rules_copy_in_l1(npu_core *core, const npu_instr *i) {
  return rules_bursts(core, i) &&
         multiple(core, i, "burst_bytes", i->n[BURST], 32, "a multiple of 32") &&
         rules_strides(core, i) &&
         rules_stride(core, i, "dst_stride_bytes", i->n[DST_STRIDE], 32, "a multiple of 32");
}

static bool rules_copy_in_ub(npu_core *core, const npu_instr *i) {
  return rules_bursts(core, i) && rules_strides(core, i) &&
         rules_stride(core, i, "dst_stride_bytes", i->n[DST_STRIDE], 32, "a multiple of 32");
}

static bool rules_copy_out(npu_core *core, const npu_instr *i) {
  return rules_bursts(core, i) && rules_strides(core, i) &&
         rules_stride(core, i, "src_stride_bytes", i->n[SRC_STRIDE], 32, "a multiple of 32");
}

static bool rules_copy_out_add(npu_core *core, const npu_instr *i) {
  return rules_copy_out(core, i) &&
         multiple(core, i, "burst_bytes", i->n[BURST], 4, "a multiple of 4") &&
         rules_stride(core, i, "dst_stride_bytes", i->n[DST_STRIDE], 4, "a multiple of 4");
}

static bool rules_fill(npu_core *core, const npu_instr *i) {
  return rules_bursts(core, i) &&
         multiple(core, i, "burst_bytes", i->n[BURST], 32, "a multiple of 32") &&
         (i->n[N_BURSTS] == 1 || in(core, i, "dst_stride_bytes", i->n[DST_STRIDE], i->n[BURST],
                                    INT32_MAX, "at least burst_bytes")) &&
         rules_stride(core, i, "dst_stride_bytes", i->n[DST_STRIDE], 32, "a multiple of 32");
}

enum { ROWS, COLS, ND_STRIDE, NZ_ROWS }; /* n[] of nd2nz */

static bool rules_nd2nz(npu_core *core, const npu_instr *i) {
  return in(core, i, "rows", i->n[ROWS], 1, 16384, "1 to 16384") &&
         in(core, i, "cols", i->n[COLS], 1, 65535, "1 to 65535") &&
         in(core, i, "src_stride", i->n[ND_STRIDE], i->n[COLS], 1 << 24, "cols to 16777216") &&
         in(core, i, "dst_rows", i->n[NZ_ROWS], i->n[ROWS], 16384, "rows to 16384") &&
         multiple(core, i, "dst_rows", i->n[NZ_ROWS], 16, "a multiple of 16");
}

enum { LOAD_MN, LOAD_K, LOAD_ROWS }; /* n[] of loads */

static bool rules_load(npu_core *core, const npu_instr *i, const char *side, int32_t height) {
  return in(core, i, side, i->n[LOAD_MN], 1, 4095, "1 to 4095") &&
         in(core, i, "k", i->n[LOAD_K], 1, 4095, "1 to 4095") &&
         in(core, i, "src_rows", i->n[LOAD_ROWS], ceil16(height), 16384,
            "at least the tile's rows, rounded up to 16") &&
         multiple(core, i, "src_rows", i->n[LOAD_ROWS], 16, "a multiple of 16");
}

static bool rules_load_a(npu_core *core, const npu_instr *i) {
  return rules_load(core, i, "m", i->n[LOAD_MN]);
}
static bool rules_load_b(npu_core *core, const npu_instr *i) {
  return rules_load(core, i, "n", i->n[LOAD_MN]);
}
static bool rules_load_a_t(npu_core *core, const npu_instr *i) {
  return rules_load(core, i, "m", i->n[LOAD_K]);
}
static bool rules_load_b_t(npu_core *core, const npu_instr *i) {
  return rules_load(core, i, "n", i->n[LOAD_K]);
}

enum { MMAD_M, MMAD_N, MMAD_K, MMAD_ACCUMULATE }; /* n[] of mmad */

static bool rules_mmad(npu_core *core, const npu_instr *i) {
  return in(core, i, "m", i->n[MMAD_M], 1, 4095, "1 to 4095") &&
         in(core, i, "n", i->n[MMAD_N], 1, 4095, "1 to 4095") &&
         in(core, i, "k", i->n[MMAD_K], 1, 4095, "1 to 4095");
}

enum { FIX_M, FIX_N, FIX_STRIDE, FIX_ROWS }; /* n[] of L0C -> GM */

static bool rules_fix(npu_core *core, const npu_instr *i) {
  return in(core, i, "m", i->n[FIX_M], 1, 4095, "1 to 4095") &&
         in(core, i, "n", i->n[FIX_N], 1, 4095, "1 to 4095") &&
         in(core, i, "dst_stride", i->n[FIX_STRIDE], i->n[FIX_N], 1 << 24, "n to 16777216") &&
         in(core, i, "src_rows", i->n[FIX_ROWS], i->n[FIX_M], 4096, "m to 4096") &&
         multiple(core, i, "src_rows", i->n[FIX_ROWS], 16, "a multiple of 16");
}

/* ---- The paths within an AI core ---- */

static bool rules_paths(npu_core *core, const npu_instr *i) {
  return core->chip->preset.core_paths ||
         npu_refuse(core, i, "core_paths", 0, "this chip has no path from L0C to UB or UB to L1");
}

static bool rules_fix_ub(npu_core *core, const npu_instr *i) {
  return rules_paths(core, i) && rules_fix(core, i) &&
         multiple(core, i, "dst_stride", i->n[FIX_STRIDE], 8, "a multiple of 8");
}

static bool rules_copy_ub_l1(npu_core *core, const npu_instr *i) {
  return rules_paths(core, i) && rules_copy_in_l1(core, i) &&
         rules_stride(core, i, "src_stride_bytes", i->n[SRC_STRIDE], 32, "a multiple of 32");
}

/* ---- Vectors ---- */

static bool rules_vector(npu_core *core, const npu_instr *i) {
  const npu_vec *v = &i->v;
  return (v->count
              ? in(core, i, "v.count", v->count, 1, NPU_MAX_REPEATS * NPU_LANES, "1 to 16320, or 0")
              : in(core, i, "v.repeats", v->repeats, 1, NPU_MAX_REPEATS, "1 to 255")) &&
         in(core, i, "v.dst_block", v->dst_block, 1, 255, "1 to 255") &&
         in(core, i, "v.src0_block", v->src0_block, 0, 255, "0 to 255") &&
         in(core, i, "v.src1_block", v->src1_block, 0, 255, "0 to 255") &&
         in(core, i, "v.dst_repeat", v->dst_repeat, 0, 255, "0 to 255") &&
         in(core, i, "v.src0_repeat", v->src0_repeat, 0, 255, "0 to 255") &&
         in(core, i, "v.src1_repeat", v->src1_repeat, 0, 255, "0 to 255");
}

static bool rules_shift(npu_core *core, const npu_instr *i) {
  return rules_vector(core, i) && in(core, i, "shift", i->scalar.i, 0, 31, "0 to 31");
}

static bool rules_cmp(npu_core *core, const npu_instr *i) {
  return rules_vector(core, i) &&
         in(core, i, "op", i->n[0], NPU_CMP_LT, NPU_CMP_NE, "NPU_CMP_LT to NPU_CMP_NE");
}

/* ---- Operands ---- */

static npu_range runs(npu_space space, npu_access access, const char *field, const void *base,
                      int32_t n, int64_t bytes, int64_t stride, int32_t align) {
  npu_range r = {
      space, access, field, (uintptr_t)base, 1, n, (int32_t)bytes, 0, stride, align, 0, 0,
      0,     0,      false};
  return r;
}

/* rows x cols elements of an NZ matrix of height h, as it lies: columns of 16. */
static npu_range nz(npu_space space, npu_access access, const char *field, const void *base,
                    int64_t rows, int64_t cols, int64_t h, int32_t element_bytes, int32_t align) {
  return runs(space, access, field, base, (int32_t)(ceil16(cols) / 16), rows * 16 * element_bytes,
              h * 16 * element_bytes, align);
}

static int32_t copy_ranges(const npu_instr *i, npu_range *out, npu_space dst, npu_space src,
                           npu_access access, int32_t gm_align) {
  out[0] = runs(dst, access, "dst", i->dst, i->n[N_BURSTS], i->n[BURST], i->n[DST_STRIDE],
                dst == SPACE_GM ? gm_align : 32);
  out[1] = runs(src, ACCESS_READ, "src", i->src0, i->n[N_BURSTS], i->n[BURST], i->n[SRC_STRIDE],
                src == SPACE_GM ? gm_align : 32);
  return 2;
}

static int32_t ranges_copy_in_l1(const npu_instr *i, npu_range *out) {
  return copy_ranges(i, out, SPACE_L1, SPACE_GM, ACCESS_WRITE, 1);
}
static int32_t ranges_copy_in_ub(const npu_instr *i, npu_range *out) {
  return copy_ranges(i, out, SPACE_UB, SPACE_GM, ACCESS_WRITE, 1);
}
static int32_t ranges_copy_out(const npu_instr *i, npu_range *out) {
  return copy_ranges(i, out, SPACE_GM, SPACE_UB, ACCESS_WRITE, 1);
}
static int32_t ranges_copy_ub_l1(const npu_instr *i, npu_range *out) {
  return copy_ranges(i, out, SPACE_L1, SPACE_UB, ACCESS_WRITE, 1);
}
static int32_t ranges_copy_out_add_f32(const npu_instr *i, npu_range *out) {
  return copy_ranges(i, out, SPACE_GM, SPACE_UB, ACCESS_ADD_F32, 4);
}
static int32_t ranges_copy_out_add_s32(const npu_instr *i, npu_range *out) {
  return copy_ranges(i, out, SPACE_GM, SPACE_UB, ACCESS_ADD_S32, 4);
}

static int32_t ranges_nd2nz(const npu_instr *i, npu_range *out) {
  out[0] = nz(SPACE_L1, ACCESS_WRITE, "dst", i->dst, i->n[ROWS], i->n[COLS], i->n[NZ_ROWS], 2, 32);
  out[1] = runs(SPACE_GM, ACCESS_READ, "src", i->src0, i->n[ROWS], (int64_t)i->n[COLS] * 2,
                (int64_t)i->n[ND_STRIDE] * 2, 2);
  return 2;
}

static int32_t ranges_fill(const npu_instr *i, npu_range *out) {
  out[0] = runs(SPACE_L1, ACCESS_WRITE, "dst", i->dst, i->n[N_BURSTS], i->n[BURST],
                i->n[DST_STRIDE], 32);
  return 1;
}

static int64_t load_bytes(const npu_instr *i) {
  return ceil16(i->n[LOAD_MN]) * ceil16(i->n[LOAD_K]) * 2;
}

static int32_t load_ranges(const npu_instr *i, npu_range *out, npu_space dst, int32_t rows,
                           int32_t cols) {
  out[0] = runs(dst, ACCESS_WRITE, "dst", i->dst, 1, load_bytes(i), 0, 512);
  out[1] = nz(SPACE_L1, ACCESS_READ, "src", i->src0, ceil16(rows), cols, i->n[LOAD_ROWS], 2, 32);
  out[1].used_bytes = rows * 32; /* the rest of a fractal is padding */
  return 2;
}

static int32_t ranges_load_l0a(const npu_instr *i, npu_range *out) {
  return load_ranges(i, out, SPACE_L0A, i->n[LOAD_MN], i->n[LOAD_K]);
}
static int32_t ranges_load_l0a_t(const npu_instr *i, npu_range *out) {
  return load_ranges(i, out, SPACE_L0A, i->n[LOAD_K], i->n[LOAD_MN]);
}
static int32_t ranges_load_l0b(const npu_instr *i, npu_range *out) {
  return load_ranges(i, out, SPACE_L0B, i->n[LOAD_MN], i->n[LOAD_K]);
}
static int32_t ranges_load_l0b_t(const npu_instr *i, npu_range *out) {
  return load_ranges(i, out, SPACE_L0B, i->n[LOAD_K], i->n[LOAD_MN]);
}

static int32_t ranges_mmad(const npu_instr *i, npu_range *out) {
  const int64_t m = i->n[MMAD_M], n = i->n[MMAD_N], k = i->n[MMAD_K];
  out[0] = nz(SPACE_L0C, ACCESS_WRITE, "c", i->dst, m, n, ceil16(m), 4, 64);
  out[0].reads_old = i->n[MMAD_ACCUMULATE] != 0;
  out[1] = runs(SPACE_L0A, ACCESS_READ, "a", i->src0, 1, ceil16(m) * ceil16(k) * 2, 0, 512);
  out[2] = runs(SPACE_L0B, ACCESS_READ, "b", i->src1, 1, ceil16(k) * ceil16(n) * 2, 0, 512);
  return 3;
}

static int32_t fix_ranges(const npu_instr *i, npu_range *out, npu_access access,
                          int32_t dst_bytes) {
  out[0] = runs(SPACE_GM, access, "dst", i->dst, i->n[FIX_M], (int64_t)i->n[FIX_N] * dst_bytes,
                (int64_t)i->n[FIX_STRIDE] * dst_bytes, dst_bytes);
  out[1] =
      nz(SPACE_L0C, ACCESS_READ, "src", i->src0, i->n[FIX_M], i->n[FIX_N], i->n[FIX_ROWS], 4, 64);
  return 2;
}

static int32_t ranges_fix_f32(const npu_instr *i, npu_range *out) {
  return fix_ranges(i, out, ACCESS_WRITE, 4);
}
static int32_t ranges_fix_add_f32(const npu_instr *i, npu_range *out) {
  return fix_ranges(i, out, ACCESS_ADD_F32, 4);
}
static int32_t ranges_fix_bf16(const npu_instr *i, npu_range *out) {
  return fix_ranges(i, out, ACCESS_WRITE, 2);
}

static int32_t ranges_fix_ub(const npu_instr *i, npu_range *out) {
  const int32_t n = fix_ranges(i, out, ACCESS_WRITE, 4);
  out[0].space = SPACE_UB, out[0].align = 32;
  return n;
}

int32_t npu_repeats(const npu_vec *v) {
  return v->count ? (v->count + NPU_LANES - 1) / NPU_LANES : v->repeats;
}

uint64_t npu_lanes_of_repeat(const npu_vec *v, int32_t repeat) {
  const int32_t left = v->count - repeat * NPU_LANES;
  if (!v->count)
    return v->mask;
  return left >= NPU_LANES ? NPU_MASK_ALL : ((uint64_t)1 << left) - 1;
}

static npu_range lanes_range(const npu_instr *i, npu_access access, const char *field,
                             const void *base, uint8_t lanes, int32_t block, int32_t repeat) {
  const int32_t repeats = npu_repeats(&i->v);
  npu_range r = {SPACE_UB,
                 access,
                 field,
                 (uintptr_t)base,
                 repeats,
                 NPU_LANES * lanes / 32,
                 32,
                 32 * repeat,
                 32 * block,
                 32,
                 lanes,
                 npu_lanes_of_repeat(&i->v, 0),
                 npu_lanes_of_repeat(&i->v, repeats - 1),
                 0,
                 false};
  if (lanes == LANES_BLOCK)
    r.inner = 1, r.lane_bytes = 0;
  if (lanes == LANES_BITS)
    r.inner = 1, r.lane_bytes = 0, r.run_bytes = 8, r.outer_stride = 8;
  if (lanes <= LANES_4 && block == 0)
    r.inner = 1, r.lane_bytes = 0; /* one block for all lanes */
  return r;
}

static int32_t ranges_vector(const npu_instr *i, npu_range *out) {
  const npu_family *f = npu_ops[i->op].family;
  const npu_vec *v = &i->v;
  int32_t n = 0;
  out[n++] = lanes_range(i, ACCESS_WRITE, "dst", i->dst, f->dst, v->dst_block, v->dst_repeat);
  if (f->src0)
    out[n++] = lanes_range(i, ACCESS_READ, f->src1 ? "src0" : "src", i->src0, f->src0,
                           v->src0_block, v->src0_repeat);
  if (f->src1)
    out[n++] = lanes_range(i, ACCESS_READ, "src1", i->src1, f->src1, v->src1_block, v->src1_repeat);
  if (f->bits)
    out[n++] = lanes_range(i, ACCESS_READ, "bits", i->bits, f->bits, 1, 0);
  return n;
}

static int32_t ranges_brcb(const npu_instr *i, npu_range *out) { /* all 64 lanes of every repeat */
  npu_instr whole = *i;
  whole.v.mask = NPU_MASK_ALL, whole.v.count = 0, whole.v.src0_repeat = 1;
  return ranges_vector(&whole, out);
}

/* ---- Work, in units of the cost row ---- */

static int64_t work_copy(const npu_instr *i) { return (int64_t)i->n[N_BURSTS] * i->n[BURST]; }
static int64_t work_nd2nz(const npu_instr *i) { return (int64_t)i->n[ROWS] * i->n[COLS] * 2; }
static int64_t work_mmad(const npu_instr *i) {
  return ceil16(i->n[MMAD_M]) / 16 * (ceil16(i->n[MMAD_N]) / 16) * (ceil16(i->n[MMAD_K]) / 16);
}
static int64_t work_fix(const npu_instr *i) {
  return (int64_t)i->n[FIX_M] * ceil16(i->n[FIX_N]) * 4;
}
static int64_t work_vector(const npu_instr *i) { return npu_repeats(&i->v); }

/* ---- The table ---- */

static const npu_family
    copy_in_l1 = {rules_copy_in_l1, ranges_copy_in_l1, work_copy, 0, 0, 0, 0},
    copy_in_ub = {rules_copy_in_ub, ranges_copy_in_ub, work_copy, 0, 0, 0, 0},
    copy_out = {rules_copy_out, ranges_copy_out, work_copy, 0, 0, 0, 0},
    copy_out_add_f32 = {rules_copy_out_add, ranges_copy_out_add_f32, work_copy, 0, 0, 0, 0},
    copy_out_add_s32 = {rules_copy_out_add, ranges_copy_out_add_s32, work_copy, 0, 0, 0, 0},
    copy_ub_l1 = {rules_copy_ub_l1, ranges_copy_ub_l1, work_copy, 0, 0, 0, 0},
    nd2nz = {rules_nd2nz, ranges_nd2nz, work_nd2nz, 0, 0, 0, 0},
    fill = {rules_fill, ranges_fill, work_copy, 0, 0, 0, 0},
    load_l0a = {rules_load_a, ranges_load_l0a, load_bytes, 0, 0, 0, 0},
    load_l0a_t = {rules_load_a_t, ranges_load_l0a_t, load_bytes, 0, 0, 0, 0},
    load_l0b = {rules_load_b, ranges_load_l0b, load_bytes, 0, 0, 0, 0},
    load_l0b_t = {rules_load_b_t, ranges_load_l0b_t, load_bytes, 0, 0, 0, 0},
    mmad = {rules_mmad, ranges_mmad, work_mmad, 0, 0, 0, 0},
    fix_f32 = {rules_fix, ranges_fix_f32, work_fix, 0, 0, 0, 0},
    fix_add_f32 = {rules_fix, ranges_fix_add_f32, work_fix, 0, 0, 0, 0},
    fix_ub = {rules_fix_ub, ranges_fix_ub, work_fix, 0, 0, 0, 0},
    fix_bf16 = {rules_fix, ranges_fix_bf16, work_fix, 0, 0, 0, 0},
    vector_two = {rules_vector, ranges_vector, work_vector, LANES_4, LANES_4, LANES_4, 0},
    vector_one = {rules_vector, ranges_vector, work_vector, LANES_4, LANES_4, 0, 0},
    vector_shift = {rules_shift, ranges_vector, work_vector, LANES_4, LANES_4, 0, 0},
    vector_none = {rules_vector, ranges_vector, work_vector, LANES_4, 0, 0, 0},
    vector_to_bf16 = {rules_vector, ranges_vector, work_vector, LANES_2, LANES_4, 0, 0},
    vector_from_bf16 = {rules_vector, ranges_vector, work_vector, LANES_4, LANES_2, 0, 0},
    vector_s8_to_16 = {rules_vector, ranges_vector, work_vector, LANES_2, LANES_1, 0, 0},
    vector_reduce = {rules_vector, ranges_vector, work_vector, LANES_BLOCK, LANES_4, 0, 0},
    vector_brcb = {rules_vector, ranges_brcb, work_vector, LANES_4, LANES_BLOCK, 0, 0},
    vector_cmp = {rules_cmp, ranges_vector, work_vector, LANES_BITS, LANES_4, LANES_4, 0},
    vector_cmps = {rules_cmp, ranges_vector, work_vector, LANES_BITS, LANES_4, 0, 0},
    vector_sel = {rules_vector, ranges_vector, work_vector, LANES_4, LANES_4, LANES_4, LANES_BITS},
    vector_sels = {rules_vector, ranges_vector, work_vector, LANES_4, LANES_4, 0, LANES_BITS};

enum { ON_AIC, ON_AIV };
const npu_op npu_ops[OPS] = {
#define NPU_OP(id, name, pipe, core, cost, family, semantics, ...)                                 \
  {#name, NPU_PIPE_##pipe, ON_##core, COST_##cost, &family, semantics},
#include "npu_ops.def"
#undef NPU_OP
    {"notify", NPU_PIPE_S, 0, COST_EVENT_HOP, NULL, NULL},
    {"notify_unit", NPU_PIPE_S, 0, COST_EVENT_HOP, NULL, NULL},
    {"wait", NPU_PIPE_S, 0, COST_EVENT_HOP, NULL, NULL},
    {"barrier", NPU_PIPE_S, 0, COST_EVENT_HOP, NULL, NULL},
    {"cross_set", NPU_PIPE_S, 0, COST_CROSS_HOP, NULL, NULL},
    {"cross_wait", NPU_PIPE_S, 0, COST_CROSS_HOP, NULL, NULL},
    {"read_ub", NPU_PIPE_S, 1, COST_S_READ_UB, NULL, NULL},
    {"read_gm", NPU_PIPE_S, 0, COST_S_READ_GM, NULL, NULL},
};

bool npu_check_instr(npu_core *core, const npu_instr *i) {
  const npu_op *op = &npu_ops[i->op];
  npu_range range[MAX_RANGES];
  if (op->on_aiv != (core->subcore >= 0))
    return npu_refuse(core, i, "core", core->subcore,
                      op->on_aiv ? "an instruction of the AIV" : "an instruction of the AIC");
  if (!op->family->rules(core, i))
    return false;
  const int32_t n = op->family->ranges(i, range);
  for (int32_t r = 0; r < n; r++)
    if (!npu_check_range(core, i, &range[r]))
      return false;
  return true;
}
