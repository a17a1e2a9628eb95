/* SPDX-License-Identifier: Apache-2.0
 *
 * Every vector instruction of the simulated NPU against plain C: random strides, masks and counts
 * on a whole UB image of hostile numbers, and the whole image compared, so that stray writes show.
 * The plain side computes an operand's address from its definition in npu_isa.h, lane by lane, and
 * rounds through fp64.
 */
#include "test_sim_support.h"

#include "src/base/float16.h"

enum {
  UB = NPU_UB_BYTES,
  THIRD = UB / 3,
  IN0 = THIRD,
  IN1 = 2 * THIRD,
  BITS = 2 * THIRD + 48 * 1024,
  ROUNDS = 60
};

typedef struct image {
  unsigned char byte[UB];
} image;

typedef struct call { /* one instruction, with everything it might take */
  npu_vec v;
  float f;
  int32_t n;
  npu_cmp op;
} call;

static float *ub_f32(uint32_t at) { return NPU_UB_AT(float, at); }
static int32_t *ub_s32(uint32_t at) { return NPU_UB_AT(int32_t, at); }
static npu_bf16 *ub_bf16(uint32_t at) { return NPU_UB_AT(npu_bf16, at); }
static uint8_t *ub_u8(uint32_t at) { return NPU_UB_AT(uint8_t, at); }

/* ---- What each lane should become ---- */

static int32_t as_s32(float x) { return (int32_t)to_bits(x); }
static float as_f32(int64_t x) { return of_bits((uint32_t)x); }
static float most(float a, float b) {
  if (isnan(a) || isnan(b))
    return NAN;
  return a > b ? a : b;
}
static float least(float a, float b) {
  if (isnan(a) || isnan(b))
    return NAN;
  return a < b ? a : b;
}

/* To 8 significant bits (fewer for subnormals), through fp64. */
static uint16_t to_bf16(float x, bool away) {
  int e;
  if (isnan(x))
    return 0x7fff;
  if (isinf(x) || x == 0)
    return (uint16_t)(to_bits(x) >> 16);
  frexp(x, &e);
  const double ulp = ldexp(1.0, (e > -125 ? e : -125) - 8), y = (double)x / ulp, down = floor(y),
               rest = y - down;
  const bool up = rest > 0.5 || (rest == 0.5 && (away ? y > 0 : fmod(down, 2.0) != 0));
  const double rounded = (up ? down + 1 : down) * ulp;
  if (fabs(rounded) >= 0x1p128)
    return x < 0 ? 0xff80 : 0x7f80;
  return (uint16_t)(to_bits(copysignf((float)rounded, x)) >> 16);
}

static float rna(float x) {
  return isfinite(x) ? copysignf((float)floor(fabs((double)x) + 0.5), x) : x;
}

static float want_add(float a, float b, const call *c) {
  (void)c;
  return a + b;
}
static float want_sub(float a, float b, const call *c) {
  (void)c;
  return a - b;
}
static float want_mul(float a, float b, const call *c) {
  (void)c;
  return (float)((double)a * b);
}
static float want_div(float a, float b, const call *c) {
  (void)c;
  return a / b;
}
static float want_max(float a, float b, const call *c) {
  (void)c;
  return most(a, b);
}
static float want_min(float a, float b, const call *c) {
  (void)c;
  return least(a, b);
}
static float want_adds(float a, float b, const call *c) {
  (void)b;
  return a + c->f;
}
static float want_muls(float a, float b, const call *c) {
  (void)b;
  return (float)((double)a * c->f);
}
static float want_maxs(float a, float b, const call *c) {
  (void)b;
  return most(a, c->f);
}
static float want_mins(float a, float b, const call *c) {
  (void)b;
  return least(a, c->f);
}
static float want_exp(float a, float b, const call *c) {
  (void)b, (void)c;
  return expf(a);
}
static float want_ln(float a, float b, const call *c) {
  (void)b, (void)c;
  return logf(a);
}
static float want_abs(float a, float b, const call *c) {
  (void)b, (void)c;
  return of_bits(to_bits(a) & 0x7fffffff);
}
static float want_dup_f(float a, float b, const call *c) {
  (void)a, (void)b;
  return c->f;
}
static float want_add_s(float a, float b, const call *c) {
  (void)c;
  return as_f32((int64_t)as_s32(a) + as_s32(b));
}
static float want_max_s(float a, float b, const call *c) {
  (void)c;
  return as_s32(a) > as_s32(b) ? a : b;
}
static float want_min_s(float a, float b, const call *c) {
  (void)c;
  return as_s32(a) < as_s32(b) ? a : b;
}
static float want_and(float a, float b, const call *c) {
  (void)c;
  return of_bits(to_bits(a) & to_bits(b));
}
static float want_or(float a, float b, const call *c) {
  (void)c;
  return of_bits(to_bits(a) | to_bits(b));
}
static float want_adds_s(float a, float b, const call *c) {
  (void)b;
  return as_f32((int64_t)as_s32(a) + c->n);
}
static float want_shl(float a, float b, const call *c) {
  (void)b;
  return as_f32((int64_t)to_bits(a) * (1ll << c->n % 32));
}
static float want_shr(float a, float b, const call *c) {
  (void)b;
  return as_f32((int64_t)floor(as_s32(a) / ldexp(1, c->n % 32)));
}
static float want_dup_s(float a, float b, const call *c) {
  (void)a, (void)b;
  return as_f32(c->n);
}
static float want_rna(float a, float b, const call *c) {
  (void)b, (void)c;
  return rna(a);
}
static float want_to_s(float a, float b, const call *c) {
  (void)b, (void)c;
  return isnan(a) ? 0 : as_f32((int64_t)fmin(fmax(rna(a), -0x1p31), 0x1p31 - 1));
}
static float want_from_s(float a, float b, const call *c) {
  (void)b, (void)c;
  return (float)(double)as_s32(a);
}

/* ---- The instructions ---- */

static void do_add(const call *c) { npu_add_f32(ub_f32(0), ub_f32(IN0), ub_f32(IN1), c->v); }
static void do_sub(const call *c) { npu_sub_f32(ub_f32(0), ub_f32(IN0), ub_f32(IN1), c->v); }
static void do_mul(const call *c) { npu_mul_f32(ub_f32(0), ub_f32(IN0), ub_f32(IN1), c->v); }
static void do_div(const call *c) { npu_div_f32(ub_f32(0), ub_f32(IN0), ub_f32(IN1), c->v); }
static void do_max(const call *c) { npu_max_f32(ub_f32(0), ub_f32(IN0), ub_f32(IN1), c->v); }
static void do_min(const call *c) { npu_min_f32(ub_f32(0), ub_f32(IN0), ub_f32(IN1), c->v); }
static void do_adds(const call *c) { npu_adds_f32(ub_f32(0), ub_f32(IN0), c->f, c->v); }
static void do_muls(const call *c) { npu_muls_f32(ub_f32(0), ub_f32(IN0), c->f, c->v); }
static void do_maxs(const call *c) { npu_maxs_f32(ub_f32(0), ub_f32(IN0), c->f, c->v); }
static void do_mins(const call *c) { npu_mins_f32(ub_f32(0), ub_f32(IN0), c->f, c->v); }
static void do_exp(const call *c) { npu_exp_f32(ub_f32(0), ub_f32(IN0), c->v); }
static void do_ln(const call *c) { npu_ln_f32(ub_f32(0), ub_f32(IN0), c->v); }
static void do_abs(const call *c) { npu_abs_f32(ub_f32(0), ub_f32(IN0), c->v); }
static void do_dup_f(const call *c) { npu_dup_f32(ub_f32(0), c->f, c->v); }
static void do_add_s(const call *c) { npu_add_s32(ub_s32(0), ub_s32(IN0), ub_s32(IN1), c->v); }
static void do_max_s(const call *c) { npu_max_s32(ub_s32(0), ub_s32(IN0), ub_s32(IN1), c->v); }
static void do_min_s(const call *c) { npu_min_s32(ub_s32(0), ub_s32(IN0), ub_s32(IN1), c->v); }
static void do_and(const call *c) { npu_and_s32(ub_s32(0), ub_s32(IN0), ub_s32(IN1), c->v); }
static void do_or(const call *c) { npu_or_s32(ub_s32(0), ub_s32(IN0), ub_s32(IN1), c->v); }
static void do_adds_s(const call *c) { npu_adds_s32(ub_s32(0), ub_s32(IN0), c->n, c->v); }
static void do_shl(const call *c) { npu_shl_s32(ub_s32(0), ub_s32(IN0), c->n % 32, c->v); }
static void do_shr(const call *c) { npu_shr_s32(ub_s32(0), ub_s32(IN0), c->n % 32, c->v); }
static void do_dup_s(const call *c) { npu_dup_s32(ub_s32(0), c->n, c->v); }
static void do_rna(const call *c) { npu_round_f32_rna(ub_f32(0), ub_f32(IN0), c->v); }
static void do_to_s(const call *c) { npu_cast_f32_s32_rna(ub_s32(0), ub_f32(IN0), c->v); }
static void do_from_s(const call *c) { npu_cast_s32_f32(ub_f32(0), ub_s32(IN0), c->v); }
static void do_to_bf16_rna(const call *c) { npu_cast_f32_bf16_rna(ub_bf16(0), ub_f32(IN0), c->v); }
static void do_to_bf16_rne(const call *c) { npu_cast_f32_bf16_rne(ub_bf16(0), ub_f32(IN0), c->v); }
static void do_from_bf16(const call *c) { npu_cast_bf16_f32(ub_f32(0), ub_bf16(IN0), c->v); }
static void do_to_f16(const call *c) { npu_cast_f32_f16_rne(ub_bf16(0), ub_f32(IN0), c->v); }
static void do_from_f16(const call *c) { npu_cast_f16_f32(ub_f32(0), ub_bf16(IN0), c->v); }
static void do_block_max(const call *c) { npu_block_max_f32(ub_f32(0), ub_f32(IN0), c->v); }
static void do_block_sum(const call *c) { npu_block_sum_f32(ub_f32(0), ub_f32(IN0), c->v); }
static void do_brcb(const call *c) { npu_brcb_f32(ub_f32(0), ub_f32(IN0), c->v); }
static void do_cmp(const call *c) { npu_cmp_f32(ub_u8(0), ub_f32(IN0), ub_f32(IN1), c->op, c->v); }
static void do_cmps(const call *c) { npu_cmps_f32(ub_u8(0), ub_f32(IN0), c->f, c->op, c->v); }
static void do_sel(const call *c) {
  npu_sel_f32(ub_f32(0), ub_u8(BITS), ub_f32(IN0), ub_f32(IN1), c->v);
}
static void do_sels(const call *c) {
  npu_sels_f32(ub_f32(0), ub_u8(BITS), ub_f32(IN0), c->f, c->v);
}

/* ---- Plain C on the image ---- */

static float get_f32(const image *u, size_t at) {
  float x;
  memcpy(&x, u->byte + at, 4);
  return x;
}
static void put_f32(image *u, size_t at, float x) { memcpy(u->byte + at, &x, 4); }

/* Byte offset of lane i of repeat r in an operand that starts at `at`. */
static size_t lane_at(size_t at, int r, int i, int bytes, int block, int repeat) {
  return at + (size_t)(r * repeat + i * bytes / 32 * block) * 32 + (size_t)(i * bytes % 32);
}

static int repeats_of(const call *c) { return c->v.count ? (c->v.count + 63) / 64 : c->v.repeats; }
static bool is_active(const call *c, int r, int i) {
  return c->v.count ? r * 64 + i < c->v.count : c->v.mask >> i & 1;
}

typedef float lane_fn(float a, float b, const call *c);

typedef struct instruction {
  const char *name;
  void (*run)(const call *c);
  lane_fn *want; /* NULL: `plain` does it */
  void (*plain)(const call *c, image *u);
} instruction;

static void plain_lanes(const call *c, lane_fn *want, image *u) {
  for (int r = 0; r < repeats_of(c); r++)
    for (int i = 0; i < 64; i++) {
      if (!is_active(c, r, i))
        continue;
      const float a = get_f32(u, lane_at(IN0, r, i, 4, c->v.src0_block, c->v.src0_repeat));
      const float b = get_f32(u, lane_at(IN1, r, i, 4, c->v.src1_block, c->v.src1_repeat));
      put_f32(u, lane_at(0, r, i, 4, c->v.dst_block, c->v.dst_repeat), want(a, b, c));
    }
}

static uint16_t to_bf16_rna(float x) { return to_bf16(x, true); }
static uint16_t to_bf16_rne(float x) { return to_bf16(x, false); }
static float from_bf16(uint16_t h) { return of_bits((uint32_t)h << 16); }

static void plain_to_16(const call *c, image *u, uint16_t (*round)(float)) {
  for (int r = 0; r < repeats_of(c); r++)
    for (int i = 0; i < 64; i++) {
      if (!is_active(c, r, i))
        continue;
      const uint16_t h =
          round(get_f32(u, lane_at(IN0, r, i, 4, c->v.src0_block, c->v.src0_repeat)));
      memcpy(u->byte + lane_at(0, r, i, 2, c->v.dst_block, c->v.dst_repeat), &h, 2);
    }
}
static void plain_to_bf16_rna(const call *c, image *u) { plain_to_16(c, u, to_bf16_rna); }
static void plain_to_bf16_rne(const call *c, image *u) { plain_to_16(c, u, to_bf16_rne); }
static void plain_to_f16(const call *c, image *u) { plain_to_16(c, u, amla_f32_to_f16); }

static void plain_from_16(const call *c, image *u, float (*widen)(uint16_t)) {
  for (int r = 0; r < repeats_of(c); r++)
    for (int i = 0; i < 64; i++) {
      if (!is_active(c, r, i))
        continue;
      uint16_t h;
      memcpy(&h, u->byte + lane_at(IN0, r, i, 2, c->v.src0_block, c->v.src0_repeat), 2);
      put_f32(u, lane_at(0, r, i, 4, c->v.dst_block, c->v.dst_repeat), widen(h));
    }
}
static void plain_from_bf16(const call *c, image *u) { plain_from_16(c, u, from_bf16); }
static void plain_from_f16(const call *c, image *u) { plain_from_16(c, u, amla_f16_to_f32); }

static void plain_reduce(const call *c, image *u, bool sum) {
  for (int r = 0; r < repeats_of(c); r++)
    for (int b = 0; b < 8; b++) {
      float x[8];
      for (int i = 0; i < 8; i++) {
        const size_t at = lane_at(IN0, r, 8 * b + i, 4, c->v.src0_block, c->v.src0_repeat);
        x[i] = sum ? 0.0f : -INFINITY;
        if (is_active(c, r, 8 * b + i))
          x[i] = get_f32(u, at);
      }
      for (int step = 1; step < 8; step *= 2) /* neighbours, then pairs, then fours */
        for (int i = 0; i < 8; i += 2 * step)
          x[i] = sum ? x[i] + x[i + step] : most(x[i], x[i + step]);
      put_f32(u, (size_t)(r * c->v.dst_repeat * 32 + 4 * b), x[0]);
    }
}
static void plain_block_max(const call *c, image *u) { plain_reduce(c, u, false); }
static void plain_block_sum(const call *c, image *u) { plain_reduce(c, u, true); }

static void plain_brcb(const call *c, image *u) {
  for (int r = 0; r < repeats_of(c); r++)
    for (int i = 0; i < 64; i++)
      put_f32(u, lane_at(0, r, i, 4, c->v.dst_block, c->v.dst_repeat),
              get_f32(u, IN0 + (size_t)(8 * r + i / 8) * 4));
}

static bool holds(float a, float b, npu_cmp op) {
  const bool known = !isnan(a) && !isnan(b);
  switch (op) {
  case NPU_CMP_LT: return known && a - b < 0;
  case NPU_CMP_LE: return known && !(a > b);
  case NPU_CMP_GT: return known && b < a;
  case NPU_CMP_GE: return known && !(a < b);
  case NPU_CMP_EQ: return known && !(a < b) && !(a > b);
  default: return !known || a < b || a > b;
  }
}

static void plain_compare(const call *c, image *u, bool scalar) {
  for (int r = 0; r < repeats_of(c); r++)
    for (int i = 0; i < 64; i++) {
      const float a = get_f32(u, lane_at(IN0, r, i, 4, c->v.src0_block, c->v.src0_repeat));
      const float b =
          scalar ? c->f : get_f32(u, lane_at(IN1, r, i, 4, c->v.src1_block, c->v.src1_repeat));
      unsigned char *byte = &u->byte[8 * r + i / 8];
      *byte = (unsigned char)((*byte & ~(1 << i % 8)) | (is_active(c, r, i) && holds(a, b, c->op))
                                                            << i % 8);
    }
}
static void plain_cmp(const call *c, image *u) { plain_compare(c, u, false); }
static void plain_cmps(const call *c, image *u) { plain_compare(c, u, true); }

static void plain_select(const call *c, image *u, bool scalar) {
  for (int r = 0; r < repeats_of(c); r++)
    for (int i = 0; i < 64; i++) {
      if (!is_active(c, r, i))
        continue;
      const float a = get_f32(u, lane_at(IN0, r, i, 4, c->v.src0_block, c->v.src0_repeat));
      const float b =
          scalar ? c->f : get_f32(u, lane_at(IN1, r, i, 4, c->v.src1_block, c->v.src1_repeat));
      const bool bit = u->byte[BITS + 8 * r + i / 8] >> i % 8 & 1;
      put_f32(u, lane_at(0, r, i, 4, c->v.dst_block, c->v.dst_repeat), bit ? a : b);
    }
}
static void plain_sel(const call *c, image *u) { plain_select(c, u, false); }
static void plain_sels(const call *c, image *u) { plain_select(c, u, true); }

static const instruction instructions[] = {
    {"add_f32", do_add, want_add, NULL},
    {"sub_f32", do_sub, want_sub, NULL},
    {"mul_f32", do_mul, want_mul, NULL},
    {"div_f32", do_div, want_div, NULL},
    {"max_f32", do_max, want_max, NULL},
    {"min_f32", do_min, want_min, NULL},
    {"adds_f32", do_adds, want_adds, NULL},
    {"muls_f32", do_muls, want_muls, NULL},
    {"maxs_f32", do_maxs, want_maxs, NULL},
    {"mins_f32", do_mins, want_mins, NULL},
    {"exp_f32", do_exp, want_exp, NULL},
    {"ln_f32", do_ln, want_ln, NULL},
    {"abs_f32", do_abs, want_abs, NULL},
    {"dup_f32", do_dup_f, want_dup_f, NULL},
    {"add_s32", do_add_s, want_add_s, NULL},
    {"max_s32", do_max_s, want_max_s, NULL},
    {"min_s32", do_min_s, want_min_s, NULL},
    {"and_s32", do_and, want_and, NULL},
    {"or_s32", do_or, want_or, NULL},
    {"adds_s32", do_adds_s, want_adds_s, NULL},
    {"shl_s32", do_shl, want_shl, NULL},
    {"shr_s32", do_shr, want_shr, NULL},
    {"dup_s32", do_dup_s, want_dup_s, NULL},
    {"round_f32_rna", do_rna, want_rna, NULL},
    {"cast_f32_s32_rna", do_to_s, want_to_s, NULL},
    {"cast_s32_f32", do_from_s, want_from_s, NULL},
    {"cast_f32_bf16_rna", do_to_bf16_rna, NULL, plain_to_bf16_rna},
    {"cast_f32_bf16_rne", do_to_bf16_rne, NULL, plain_to_bf16_rne},
    {"cast_bf16_f32", do_from_bf16, NULL, plain_from_bf16},
    {"cast_f32_f16_rne", do_to_f16, NULL, plain_to_f16},
    {"cast_f16_f32", do_from_f16, NULL, plain_from_f16},
    {"block_max_f32", do_block_max, NULL, plain_block_max},
    {"block_sum_f32", do_block_sum, NULL, plain_block_sum},
    {"brcb_f32", do_brcb, NULL, plain_brcb},
    {"cmp_f32", do_cmp, NULL, plain_cmp},
    {"cmps_f32", do_cmps, NULL, plain_cmps},
    {"sel_f32", do_sel, NULL, plain_sel},
    {"sels_f32", do_sels, NULL, plain_sels},
};

/* ---- Running ---- */

typedef struct job {
  const instruction *what;
  call c;
  const image *in;
  image *out;
} job;

static void one_instruction(const void *args) {
  const job *j = args;
  if (npu_subcore())
    return;
  npu_copy_gm_ub(NPU_UB_AT(void, 0), j->in, 1, UB, UB, UB);
  sync_pipes(NPU_PIPE_MTE2, NPU_PIPE_V);
  j->what->run(&j->c);
  sync_pipes(NPU_PIPE_V, NPU_PIPE_MTE3);
  npu_copy_ub_gm(j->out, NPU_UB_AT(void, 0), 1, UB, UB, UB);
}

static float random_number(uint64_t *seed) {
  static const float halves[] = {0.5f,           -0.5f,   1.5f,     2.5f,  -2.5f, 8388607.5f,
                                 0x1.fffffep30f, 0x1p31f, -0x1p31f, 1e30f, 88.0f, -100.0f};
  static const uint32_t nans[] = {0x7fc00000, 0x7f800001, 0x7fffffff, 0xffffffff};
  switch (random_below(seed, 24)) {
  case 0: return of_bits(nans[random_below(seed, LENGTH(nans))]);
  case 1: return INFINITY;
  case 2: return -INFINITY;
  case 3:
  case 4: return halves[random_below(seed, LENGTH(halves))];
  case 5:
    return of_bits((uint32_t)harness_random(seed) &
                   0xffff8000u); /* halfway between two bf16, often */
  case 6: return 100.0f * random_normal(seed);
  default: return random_hostile(seed);
  }
}

static void fill_image(image *u, uint64_t *seed) {
  for (size_t at = 0; at < UB; at += 4)
    put_f32(u, at, random_number(seed));
  for (size_t at = IN0 + 4; at < IN1; at += 64)
    put_f32(u, at + THIRD, get_f32(u, at)); /* some equal pairs */
}

static call random_call(uint64_t *seed) {
  static const uint64_t masks[] = {NPU_MASK_ALL, 1, 0xff, 0x8000000000000000u, 0xfffffffffffffff0u};
  call c = {0};
  c.v = npu_vec_rows(1 + random_below(seed, 12), NPU_MASK_ALL, random_below(seed, 40),
                     random_below(seed, 40), random_below(seed, 40));
  c.v.mask =
      random_below(seed, 2) ? masks[random_below(seed, LENGTH(masks))] : harness_random(seed);
  c.v.dst_block = 1 + random_below(seed, 3), c.v.src0_block = random_below(seed, 4);
  c.v.src1_block = random_below(seed, 2);
  if (random_below(seed, 3) == 0)
    c.v = npu_vec_count(1 + random_below(seed, 12 * 64));
  c.f = random_number(seed);
  c.n = (int32_t)harness_random(seed) & 0x7fffffff;
  c.op = (npu_cmp)random_below(seed, 6);
  return c;
}

/* Same bytes, but any NaN for a NaN where f32 or bf16 stand. */
static bool same_word(const image *a, const image *b, size_t at, bool bf16) {
  if (!memcmp(a->byte + at, b->byte + at, 4))
    return true;
  if (!bf16)
    return same_number(get_f32(a, at), get_f32(b, at));
  for (size_t half = at; half < at + 4; half += 2) {
    uint16_t x, y;
    memcpy(&x, a->byte + half, 2), memcpy(&y, b->byte + half, 2);
    if (x != y && !(isnan(of_bits((uint32_t)x << 16)) && isnan(of_bits((uint32_t)y << 16))))
      return false;
  }
  return true;
}

static void compare_images(const instruction *what, const call *c, int round, const image *got,
                           const image *want) {
  const bool bf16 = strstr(what->name, "_bf16_r") != NULL;
  for (size_t at = 0; at < UB; at += 4)
    if (!same_word(got, want, at, bf16))
      fail_msg("%s, round %d: byte %zu is 0x%08x, want 0x%08x (repeats %d, count %d, mask 0x%llx, "
               "blocks %d %d %d, "
               "repeats %d %d %d)",
               what->name, round, at, to_bits(get_f32(got, at)), to_bits(get_f32(want, at)),
               c->v.repeats, c->v.count, (unsigned long long)c->v.mask, c->v.dst_block,
               c->v.src0_block, c->v.src1_block, c->v.dst_repeat, c->v.src0_repeat,
               c->v.src1_repeat);
}

static void vector_instructions_match_plain_c(void **state) {
  (void)state;
  npu_chip *chip = make_chip("910b2", NPU_FUNCTIONAL);
  image *in = make_gm(chip, sizeof *in, "in"), *out = make_gm(chip, sizeof *out, "out"),
        *want = malloc(sizeof *want);
  assert_non_null(want);
  uint64_t seed = 4;
  npu_launch_options o = {0};
  o.cores = 1, o.check_races = -1;
  for (int n = 0; n < LENGTH(instructions); n++)
    for (int round = 0; round < (long_run() ? 100 * ROUNDS : ROUNDS); round++) {
      job j = {&instructions[n], random_call(&seed), in, out};
      npu_report report;
      if (round % 20 == 0)
        fill_image(in, &seed);
      *want = *in;
      if (j.what->want)
        plain_lanes(&j.c, j.what->want, want);
      else
        j.what->plain(&j.c, want);
      expect_clean(j.what->name, npu_launch(chip, NULL, one_instruction, &j, &o, &report), &report);
      compare_images(j.what, &j.c, round, out, want);
    }
  free(want);
  npu_chip_destroy(chip);
}

/* ---- Copies of the AIV ---- */

typedef struct copy_job {
  const image *in;
  char *out;
  int32_t n, bytes, ub_stride, gm_stride, add; /* add: 0 no, 1 f32, 2 s32 */
} copy_job;

static void copy_in_and_out(const void *args) {
  const copy_job *j = args;
  if (npu_subcore())
    return;
  npu_copy_gm_ub(NPU_UB_AT(void, 64), j->in->byte + 4, j->n, j->bytes, j->ub_stride, j->gm_stride);
  sync_pipes(NPU_PIPE_MTE2, NPU_PIPE_MTE3);
  void *out = j->out + 8;
  if (j->add == 0)
    npu_copy_ub_gm(out, ub_f32(64), j->n, j->bytes, j->gm_stride, j->ub_stride);
  if (j->add == 1)
    npu_copy_ub_gm_add_f32(out, ub_f32(64), j->n, j->bytes, j->gm_stride, j->ub_stride);
  if (j->add == 2)
    npu_copy_ub_gm_add_s32(out, ub_s32(64), j->n, j->bytes, j->gm_stride, j->ub_stride);
}

static void copies_and_atomic_adds_match_plain_c(void **state) {
  (void)state;
  npu_chip *chip = make_chip("910b2", NPU_FUNCTIONAL);
  image *in = make_gm(chip, sizeof *in, "in"), *out = make_gm(chip, sizeof *out, "out"),
        *want = malloc(sizeof *want);
  assert_non_null(want);
  uint64_t seed = 5;
  for (int round = 0; round < 200; round++) {
    copy_job j = {
        in, (char *)out, 1 + random_below(&seed, 40), 4 * (1 + random_below(&seed, 200)), 0,
        0,  round % 3};
    if (j.add == 0)
      j.bytes -= random_below(&seed, 4); /* any number of bytes */
    j.ub_stride = (j.bytes + 31) / 32 * 32 + 32 * random_below(&seed, 3);
    j.gm_stride = (j.bytes + 3) / 4 * 4 + 4 * random_below(&seed, 9);
    fill_image(in, &seed), fill_image(out, &seed);
    *want = *out;
    for (int r = 0; r < j.n; r++)
      for (int b = 0; b < j.bytes; b += j.add ? 4 : 1) {
        const size_t from = (size_t)(4 + r * j.gm_stride + b),
                     to = (size_t)(8 + r * j.gm_stride + b);
        if (j.add == 0)
          want->byte[to] = in->byte[from];
        if (j.add == 1)
          put_f32(want, to, get_f32(want, to) + get_f32(in, from));
        if (j.add == 2)
          put_f32(want, to, as_f32((int64_t)as_s32(get_f32(want, to)) + as_s32(get_f32(in, from))));
      }
    npu_report report;
    expect_clean("copy", launch_one(chip, NULL, copy_in_and_out, &j, &report), &report);
    for (size_t at = 0; at < UB; at += 4)
      if (j.add == 1 ? !same_word(out, want, at, false)
                     : memcmp(out->byte + at, want->byte + at, 4) != 0)
        fail_msg("round %d, add %d: byte %zu is 0x%08x, want 0x%08x", round, j.add, at,
                 to_bits(get_f32(out, at)), to_bits(get_f32(want, at)));
  }
  free(want);
  npu_chip_destroy(chip);
}

/* ---- The scalar unit reads ---- */

typedef struct read_job {
  const int32_t *gm;
  int32_t got[3];
} read_job;

static void read_scalars(const void *args) {
  read_job *j = (read_job *)(uintptr_t)args;
  if (npu_subcore())
    return;
  j->got[0] = npu_read_gm_s32(j->gm + 3);
  npu_dup_s32(ub_s32(0), 77, npu_vec_count(8));
  npu_adds_s32(ub_s32(0), ub_s32(0), j->got[0], npu_vec_count(8));
  sync_pipes(NPU_PIPE_V, NPU_PIPE_S);
  j->got[1] = npu_read_ub_s32(ub_s32(4), -5);
  j->got[2] = as_s32(npu_read_ub_f32(ub_f32(8), 2.5f));
}

static void scalar_reads_see_data_or_assume(void **state) {
  (void)state;
  static const npu_mode modes[] = {NPU_FUNCTIONAL, NPU_TIMING_ONLY};
  for (int m = 0; m < 2; m++) {
    static int32_t data[4] = {0, 0, 0, 1000};
    npu_chip *chip = make_chip("910b2", modes[m]);
    assert_int_equal(npu_gm_register_const(chip, data, sizeof data, "data"), 0);
    read_job j = {data, {0, 0, 0}};
    npu_report report;
    expect_clean("reads", launch_one(chip, NULL, read_scalars, &j, &report), &report);
    assert_int_equal(j.got[0], 1000);
    assert_int_equal(j.got[1], modes[m] == NPU_FUNCTIONAL ? 1077 : -5);
    assert_int_equal(j.got[2], modes[m] == NPU_FUNCTIONAL ? 1077 : as_s32(2.5f));
    npu_chip_destroy(chip);
  }
}

/* ---- Memory nobody has written ---- */

static void copy_untouched(const void *args) {
  if (npu_subcore() == 0)
    npu_copy_ub_gm((char *)(uintptr_t)args + 4096, ub_f32(1024), 1, 4096, 4096, 4096);
}

static void memory_starts_as_nan(void **state) {
  (void)state;
  npu_chip *chip = make_chip("910b2", NPU_FUNCTIONAL);
  float *gm = make_gm(chip, 8192, "gm");
  assert_true(isnan(gm[0]) && isnan(gm[2047]));
  memset(gm, 0, 8192);
  npu_report report;
  const npu_launch_options o = {.cores = 1, .check_written = -1};
  expect_clean("untouched", npu_launch(chip, NULL, copy_untouched, gm, &o, &report), &report);
  assert_true(gm[1023] == 0 && isnan(gm[1024]) && isnan(gm[2047]));
  npu_chip_destroy(chip);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(vector_instructions_match_plain_c),
      cmocka_unit_test(copies_and_atomic_adds_match_plain_c),
      cmocka_unit_test(memory_starts_as_nan),
      cmocka_unit_test(scalar_reads_see_data_or_assume),
  };
  return cmocka_run_group_tests_name("sim_vector", tests, NULL, NULL);
}
