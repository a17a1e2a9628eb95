/* SPDX-License-Identifier: Apache-2.0
 *
 * amla_merge_parts against long double, against the arithmetic of amla_merge written down once
 * more, bit by bit, and against itself; and what it refuses.
 */
#include "test_support.h"

#include <fenv.h>
#include <limits.h>

#include "src/base/float16.h"

enum { PARTS = 5, ROWS = 12, D = 24, HEADS = 3 };

/* Parts with rows of random LSE; about one in four is empty, and its O holds NaN. */
typedef struct parts {
  float o[PARTS * ROWS * D], lse[PARTS * ROWS], sinks[HEADS];
  float out[ROWS * D], out_lse[ROWS];
} parts;

static void make_parts(parts *p, uint64_t *seed, float spread) {
  for (int i = 0; i < PARTS * ROWS; i++) {
    const bool empty = random_below(seed, 4) == 0;
    p->lse[i] = empty ? -INFINITY : spread * random_normal(seed);
    for (int d = 0; d < D; d++)
      p->o[i * D + d] = empty ? NAN : random_normal(seed);
  }
  for (int p_ = 0; p_ < PARTS; p_++)
    p->lse[p_ * ROWS] = -INFINITY; /* row 0 has no keys at all */
  for (int h = 0; h < HEADS; h++)
    p->sinks[h] = random_normal(seed);
  memset(p->out, GUARD_PATTERN, sizeof p->out);
  memset(p->out_lse, GUARD_PATTERN, sizeof p->out_lse);
}

static amla_merge_args packed_args(parts *p) {
  amla_merge_args a = AMLA_MERGE_ARGS_INIT;
  a.n_parts = PARTS, a.n_rows = ROWS, a.d_v = D;
  a.o = p->o, a.o_bytes = sizeof p->o, a.lse_parts = p->lse, a.lse_parts_bytes = sizeof p->lse;
  a.out = p->out, a.out_bytes = sizeof p->out, a.lse = p->out_lse, a.lse_bytes = sizeof p->out_lse;
  return a;
}

static void give_sinks(amla_merge_args *a, const parts *p, int32_t head_rows) {
  a->sinks = p->sinks, a->sinks_bytes = sizeof p->sinks, a->n_heads = HEADS;
  a->head_rows = head_rows;
}

static void merge(const amla_merge_args *a) {
  amla_detail detail;
  if (amla_merge_parts(a, &detail) != AMLA_OK)
    fail_msg("%s", detail.text);
  assert_string_equal(detail.text, "");
}

/* ---- Against long double ---- */

typedef struct expected {
  long double lse, out[D]; /* lse without the sink */
} expected;

static expected expect_row(const parts *p, int row, int base2, const float *sink) {
  const long double unit = base2 ? logl(2.0L) : 1.0L;
  expected e = {-INFINITY, {0}};
  long double sum = 0;
  for (int k = 0; k < PARTS; k++) {
    const float l = p->lse[k * ROWS + row];
    if (l == -INFINITY)
      continue;
    const long double weight = expl((long double)l * unit);
    sum += weight;
    for (int d = 0; d < D; d++)
      e.out[d] += weight * (long double)p->o[(k * ROWS + row) * D + d];
  }
  if (sum == 0)
    return e;
  e.lse = logl(sum) / unit;
  for (int d = 0; d < D; d++)
    e.out[d] /= sum + (sink ? expl((long double)*sink) : 0);
  return e;
}

static long double with_sink(long double lse, float sink, int base2) {
  const long double unit = base2 ? logl(2.0L) : 1.0L;
  return logl(expl(lse * unit) + expl((long double)sink)) / unit;
}

static float load_out(const void *out, amla_dtype type, int i) {
  const uint16_t *h = out;
  switch (type) {
  case AMLA_BF16: return amla_bf16_to_f32(h[i]);
  case AMLA_F16: return amla_f16_to_f32(h[i]);
  default: return ((const float *)out)[i];
  }
}

static void check_case(parts *p, amla_merge_args *a) {
  static const double ulps[] = {4e-6, 0x1p-8, 0x1p-11}; /* of f32, bf16, f16 */
  merge(a);
  for (int row = 0; row < ROWS; row++) {
    const float *sink = a->sinks ? &a->sinks[row / a->head_rows % HEADS] : NULL;
    const expected e = expect_row(p, row, a->base == AMLA_LSE_BASE2, sink);
    const long double lse =
        a->lse_sink ? with_sink(e.lse, *sink, a->base == AMLA_LSE_BASE2) : e.lse;
    const float got = p->out_lse[row];
    if (isinf(lse) ? (long double)got != lse : !(fabsl(got - lse) <= 4e-7L * fmaxl(1, fabsl(lse))))
      fail_msg("row %d: LSE %g, want %Lg (sinks %d, lse_sink %d, base %d)", row, (double)got, lse,
               a->sinks != NULL, a->lse_sink, (int)a->base);
    for (int d = 0; d < D; d++) {
      const float x = load_out(a->out, a->out_type, row * D + d);
      const long double tolerance = 4e-6L + ulps[a->out_type] * fabsl(e.out[d]);
      if (!(fabsl((long double)x - e.out[d]) <= tolerance))
        fail_msg("row %d: O[%d] %g, want %Lg (type %d)", row, d, (double)x, e.out[d], a->out_type);
    }
  }
}

static void matches_long_double(void **state) {
  (void)state;
  uint64_t seed = 3;
  for (int t = 0; t < 400; t++) {
    parts p;
    make_parts(&p, &seed, t % 3 ? 3.0f : 60.0f);
    amla_merge_args a = packed_args(&p);
    a.base = (amla_lse_base)(t & 1);
    a.out_type = (amla_dtype)(t % 3);
    if (t & 2)
      give_sinks(&a, &p, 1 + t % 4);
    a.lse_sink = a.sinks && t & 4;
    check_case(&p, &a);
  }
}

/* ---- Against amla_merge ---- */

/* The arithmetic that amla_merge has had from the beginning: its bits are promised. */
static void merge_as_ever(const parts *p, int row, int base2, float *out, float *lse) {
  double max = -INFINITY, sum = 0.0;
  for (int k = 0; k < PARTS; k++)
    if (isnan(p->lse[k * ROWS + row]) || (double)p->lse[k * ROWS + row] > max)
      max = (double)p->lse[k * ROWS + row];
  for (int k = 0; k < PARTS; k++) {
    const double x = (double)p->lse[k * ROWS + row] - max;
    if (max != -INFINITY)
      sum += base2 ? exp2(x) : exp(x);
  }
  *lse = -INFINITY;
  if (max != -INFINITY)
    *lse = (float)(max + (base2 ? log2(sum) : log(sum)));
  for (int d = 0; d < D; d++)
    out[d] = 0.0f;
  for (int k = 0; k < PARTS; k++) {
    const double x = (double)p->lse[k * ROWS + row] - max;
    if (p->lse[k * ROWS + row] == -INFINITY)
      continue;
    const float weight = (float)((base2 ? exp2(x) : exp(x)) / sum);
    for (int d = 0; d < D; d++)
      out[d] = weight * p->o[(k * ROWS + row) * D + d] + out[d];
  }
}

static bool same_numbers(const float *a, const float *b, int n) {
  for (int i = 0; i < n; i++)
    if (!same_number(a[i], b[i]))
      return false;
  return true;
}

static void has_the_bits_of_amla_merge(void **state) {
  (void)state;
  uint64_t seed = 4;
  for (int t = 0; t < 300; t++) {
    parts p;
    float want[ROWS * D], want_lse[ROWS], plain[ROWS * D], plain_lse[ROWS];
    make_parts(&p, &seed, t % 2 ? 2.0f : 200.0f);
    if (t % 5 == 0)
      p.lse[random_below(&seed, PARTS * ROWS)] = t % 2 ? NAN : INFINITY;
    const amla_lse_base base = (amla_lse_base)(t / 2 % 2);
    amla_merge_args a = packed_args(&p);
    a.base = base;
    merge(&a);
    for (int row = 0; row < ROWS; row++)
      merge_as_ever(&p, row, base == AMLA_LSE_BASE2, want + row * D, want_lse + row);
    assert_true(same_numbers(p.out, want, ROWS * D) && same_numbers(p.out_lse, want_lse, ROWS));
    assert_int_equal(amla_merge(PARTS, ROWS, D, base, p.o, sizeof p.o, p.lse, sizeof p.lse, plain,
                                sizeof plain, plain_lse, sizeof plain_lse, NULL),
                     AMLA_OK);
    assert_memory_equal(plain, p.out, sizeof plain);
    assert_memory_equal(plain_lse, p.out_lse, sizeof plain_lse);
  }
}

/* ---- Properties ---- */

/* Rows outside, parts inside; gaps of NaN that nobody may touch or read. */
static void strides_change_no_bit(void **state) {
  (void)state;
  enum { GAP = 3, ROW = PARTS * (D + GAP), LSE_ROW = 2 * PARTS, OUT_ROW = D + GAP };
  uint64_t seed = 5;
  parts p;
  float o[ROWS * ROW], lse[ROWS * LSE_ROW], out[ROWS * OUT_ROW], out_lse[ROWS * 2];
  make_parts(&p, &seed, 2.0f);
  amla_merge_args a = packed_args(&p);
  merge(&a);
  for (int i = 0; i < LENGTH(o); i++)
    o[i] = NAN;
  for (int i = 0; i < LENGTH(lse); i++)
    lse[i] = NAN;
  for (int k = 0; k < PARTS; k++)
    for (int row = 0; row < ROWS; row++) {
      memcpy(o + row * ROW + k * (D + GAP), p.o + (k * ROWS + row) * D, D * sizeof *o);
      lse[row * LSE_ROW + 2 * k] = p.lse[k * ROWS + row];
    }
  memset(out, GUARD_PATTERN, sizeof out);
  memset(out_lse, GUARD_PATTERN, sizeof out_lse);
  a.o = o, a.o_bytes = sizeof o - GAP * sizeof *o;
  a.o_stride_part = D + GAP, a.o_stride_row = ROW;
  a.lse_parts = lse, a.lse_parts_bytes = sizeof lse - sizeof *lse;
  a.lse_parts_stride_part = 2, a.lse_parts_stride_row = LSE_ROW;
  a.out = out, a.out_bytes = sizeof out - GAP * sizeof *out, a.out_stride_row = OUT_ROW;
  a.lse = out_lse, a.lse_bytes = sizeof out_lse - sizeof *lse, a.lse_stride_row = 2;
  merge(&a);
  for (int row = 0; row < ROWS; row++) {
    assert_memory_equal(out + row * OUT_ROW, p.out + row * D, D * sizeof *out);
    assert_true(all_bytes_are(out + row * OUT_ROW + D, GAP * sizeof *out, GUARD_PATTERN));
    assert_true(to_bits(out_lse[2 * row]) == to_bits(p.out_lse[row]));
    assert_true(all_bytes_are(out_lse + 2 * row + 1, sizeof *out_lse, GUARD_PATTERN));
  }
}

static void one_part_is_a_copy(void **state) {
  (void)state;
  uint64_t seed = 6;
  parts p;
  make_parts(&p, &seed, 2.0f);
  amla_merge_args a = packed_args(&p);
  a.n_parts = 1;
  merge(&a);
  for (int row = 0; row < ROWS; row++) {
    const float l = p.lse[row];
    assert_true(to_bits(p.out_lse[row]) == to_bits(l));
    if (l == -INFINITY)
      assert_true(all_bytes_are(p.out + row * D, D * sizeof *p.out, 0));
    else
      assert_memory_equal(p.out + row * D, p.o + row * D, D * sizeof *p.out);
  }
}

/* The place of an empty part, and what its O holds, is no part of the bits; the order of the others
 * is, within rounding. */
static void empty_parts_are_not_there(void **state) {
  (void)state;
  uint64_t seed = 7;
  parts p, q;
  make_parts(&p, &seed, 2.0f);
  q = p;
  for (int row = 0; row < ROWS; row++) {
    int n = 0;
    for (int k = 0; k < PARTS; k++) {
      if (p.lse[k * ROWS + row] == -INFINITY)
        continue;
      memcpy(q.o + (n * ROWS + row) * D, p.o + (k * ROWS + row) * D, D * sizeof *q.o);
      q.lse[n++ * ROWS + row] = p.lse[k * ROWS + row];
    }
    for (; n < PARTS; n++)
      q.lse[n * ROWS + row] = -INFINITY;
  }
  amla_merge_args a = packed_args(&p), b = packed_args(&q);
  merge(&a);
  merge(&b);
  assert_memory_equal(p.out, q.out, sizeof p.out);
  assert_memory_equal(p.out_lse, q.out_lse, sizeof p.out_lse);
}

/* Either mark of an empty part gives the same rows, and each marks the empty row its own way. */
static void both_marks_mean_the_same(void **state) {
  (void)state;
  uint64_t seed = 8;
  parts p, q;
  make_parts(&p, &seed, 2.0f);
  q = p;
  for (int i = 0; i < PARTS * ROWS; i++)
    if (q.lse[i] == -INFINITY && i % 3)
      q.lse[i] = INFINITY;
  amla_merge_args a = packed_args(&p), b = packed_args(&q);
  b.empty = AMLA_EMPTY_PLUS_INF;
  merge(&a);
  merge(&b);
  assert_memory_equal(p.out, q.out, sizeof p.out);
  assert_true(p.out_lse[0] == -INFINITY && q.out_lse[0] == INFINITY);
  assert_memory_equal(p.out_lse + 1, q.out_lse + 1, sizeof p.out_lse - sizeof *p.out_lse);
  b.empty = AMLA_EMPTY_MINUS_INF; /* then +inf is no mark */
  merge(&b);
  int poisoned = 0;
  for (int row = 0; row < ROWS; row++)
    poisoned += isnan(q.out_lse[row]) && isnan(q.out[row * D]);
  assert_true(poisoned > 0);
}

/* A 16-bit out is the f32 one, rounded. */
static void types_are_rounded_once(void **state) {
  (void)state;
  uint64_t seed = 9;
  parts p;
  uint16_t half[ROWS * D];
  make_parts(&p, &seed, 2.0f);
  amla_merge_args a = packed_args(&p);
  give_sinks(&a, &p, 2);
  merge(&a);
  for (int type = AMLA_BF16; type <= AMLA_F16; type++) {
    a.out = half, a.out_bytes = sizeof half, a.out_type = (amla_dtype)type;
    merge(&a);
    for (int i = 0; i < ROWS * D; i++)
      assert_int_equal(half[i],
                       type == AMLA_BF16 ? amla_f32_to_bf16(p.out[i]) : amla_f32_to_f16(p.out[i]));
  }
}

/* A sink is one part more whose value is 0. */
static void a_sink_is_a_part_without_value(void **state) {
  (void)state;
  uint64_t seed = 10;
  parts p;
  make_parts(&p, &seed, 2.0f);
  float o[(PARTS + 1) * ROWS * D] = {0}, lse[(PARTS + 1) * ROWS];
  memcpy(o, p.o, sizeof p.o);
  memcpy(lse, p.lse, sizeof p.lse);
  for (int row = 0; row < ROWS; row++)
    lse[PARTS * ROWS + row] = p.sinks[row / 4 % HEADS];
  amla_merge_args a = packed_args(&p);
  give_sinks(&a, &p, 4);
  a.lse_sink = 1;
  merge(&a);
  parts q = p;
  amla_merge_args b = packed_args(&q);
  b.n_parts = PARTS + 1;
  b.o = o, b.o_bytes = sizeof o, b.lse_parts = lse, b.lse_parts_bytes = sizeof lse;
  merge(&b);
  for (int i = 0; i < ROWS * D; i++)
    assert_true(fabsf(p.out[i] - q.out[i]) <= 1e-6f * fmaxf(1.0f, fabsf(q.out[i])));
  for (int row = 0; row < ROWS; row++)
    assert_true(fabsf(p.out_lse[row] - q.out_lse[row]) <= 1e-6f);
}

static void extreme_sinks(void **state) {
  (void)state;
  uint64_t seed = 11;
  parts p, q;
  make_parts(&p, &seed, 2.0f);
  q = p;
  amla_merge_args a = packed_args(&p), b = packed_args(&q);
  merge(&a);
  give_sinks(&b, &q, 4);
  b.lse_sink = 1;
  q.sinks[0] = q.sinks[1] = q.sinks[2] = -INFINITY; /* no effect */
  merge(&b);
  assert_memory_equal(p.out, q.out, sizeof p.out);
  for (int row = 0; row < ROWS; row++)
    assert_true(p.out_lse[row] == q.out_lse[row]);
  q.sinks[0] = INFINITY, q.sinks[1] = NAN, q.sinks[2] = 1e30f; /* 0, NaN, 0 */
  merge(&b);
  for (int row = 0; row < ROWS; row++) {
    const int head = row / 4 % HEADS;
    const bool empty = p.out_lse[row] == -INFINITY;
    for (int d = 0; d < D; d++)
      assert_true(head == 1 && !empty ? isnan(q.out[row * D + d]) : q.out[row * D + d] == 0);
    assert_true(same_number(q.out_lse[row], q.sinks[head]));
  }
}

/* A part whose LSE is NaN shows in the row's LSE whatever the sink: an infinite one would let a
 * later merge leave the row out. */
static void a_nan_lse_outlives_the_sink(void **state) {
  (void)state;
  static const float sinks[] = {-INFINITY, 0.0f, INFINITY};
  for (int t = 0; t < LENGTH(sinks); t++) {
    const float o = 1.0f, l = NAN;
    float out = 0, lse = 0;
    amla_merge_args a = AMLA_MERGE_ARGS_INIT;
    a.n_rows = a.d_v = a.n_heads = a.lse_sink = 1;
    a.o = &o, a.lse_parts = &l, a.sinks = &sinks[t], a.out = &out, a.lse = &lse;
    a.o_bytes = a.lse_parts_bytes = a.sinks_bytes = a.out_bytes = a.lse_bytes = sizeof(float);
    merge(&a);
    assert_true(isnan(lse) && (isnan(out) || sinks[t] == INFINITY));
  }
}

/* Columns go through tiles of 512: more of them than that, in place, and by halves. */
static void wide_rows_and_in_place(void **state) {
  (void)state;
  enum { WIDE = 1100, N = 3, LEFT = 700 };
  uint64_t seed = 12;
  float *o = alloc_floats(N * WIDE), out[WIDE], halves[WIDE];
  float lse[N] = {0.5f, -INFINITY, -0.25f}, out_lse;
  for (int i = 0; i < N * WIDE; i++)
    o[i] = random_normal(&seed);
  amla_merge_args a = AMLA_MERGE_ARGS_INIT;
  a.n_parts = N, a.n_rows = 1, a.d_v = WIDE;
  a.o = o, a.o_bytes = N * WIDE * sizeof *o, a.lse_parts = lse, a.lse_parts_bytes = sizeof lse;
  a.out = out, a.out_bytes = sizeof out;
  merge(&a); /* lse may be NULL */
  a.lse = &out_lse, a.lse_bytes = sizeof out_lse;
  a.o_stride_part = WIDE;
  for (int part = 0; part < 2; part++) {
    amla_merge_args half = a;
    half.d_v = part ? WIDE - LEFT : LEFT;
    half.o += part * LEFT, half.o_bytes -= (size_t)(part * LEFT) * sizeof *o;
    half.out = halves + part * LEFT, half.out_bytes = (size_t)half.d_v * sizeof *o;
    merge(&half);
  }
  assert_memory_equal(halves, out, sizeof out);
  a.out = o, a.out_bytes = WIDE * sizeof *o, a.lse = lse, a.lse_bytes = sizeof *lse;
  merge(&a);
  assert_memory_equal(o, out, sizeof out);
  assert_true(to_bits(lse[0]) == to_bits(out_lse));
  free(o);
}

/* Between interleaved parts of rows, into the first. */
static void in_place_between_other_parts(void **state) {
  (void)state;
  uint64_t seed = 13;
  parts p, q;
  make_parts(&p, &seed, 2.0f);
  q = p;
  amla_merge_args a = packed_args(&p), b = packed_args(&q);
  a.o_stride_part = D, a.o_stride_row = PARTS * D;
  a.lse_parts_stride_part = 1, a.lse_parts_stride_row = PARTS;
  merge(&a);
  b.o_stride_part = D, b.o_stride_row = b.out_stride_row = PARTS * D;
  b.lse_parts_stride_part = 1, b.lse_parts_stride_row = b.lse_stride_row = PARTS;
  b.out = q.o, b.out_bytes = sizeof q.o, b.lse = q.lse, b.lse_bytes = sizeof q.lse;
  merge(&b);
  for (int row = 0; row < ROWS; row++) {
    assert_true(same_numbers(q.o + row * PARTS * D, p.out + row * D, D));
    assert_true(same_number(q.lse[row * PARTS], p.out_lse[row]));
    assert_true(
        same_numbers(q.o + (row * PARTS + 1) * D, p.o + (row * PARTS + 1) * D, (PARTS - 1) * D));
  }
}

static void caller_environment_is_left_alone(void **state) {
  (void)state;
  uint64_t seed = 14;
  parts p;
  float want[ROWS * D];
  make_parts(&p, &seed, 2.0f);
  amla_merge_args a = packed_args(&p);
  give_sinks(&a, &p, 1);
  merge(&a);
  memcpy(want, p.out, sizeof want);
  fesetround(FE_UPWARD);
  const amla_status status = amla_merge_parts(&a, NULL);
  const int mode = fegetround();
  fesetround(FE_TONEAREST);
  assert_true(status == AMLA_OK && mode == FE_UPWARD);
  assert_memory_equal(want, p.out, sizeof want);
}

/* ---- Refusals ---- */

#define BAD(change, ...)                                                                           \
  do {                                                                                             \
    static const char *const words[] = {__VA_ARGS__, NULL};                                        \
    amla_merge_args a = good;                                                                      \
    change;                                                                                        \
    expect_refused(#change, &a, &p, words);                                                        \
  } while (0)

static void expect_refused(const char *what, const amla_merge_args *a, const parts *p,
                           const char *const *words) {
  amla_detail d;
  const amla_status status = amla_merge_parts(a, &d);
  if (status != AMLA_INVALID_ARGUMENT)
    fail_msg("%s: %s ('%s')", what, amla_status_name(status), d.text);
  for (int i = 0; words[i]; i++)
    if (strstr(d.text, words[i]) == NULL)
      fail_msg("%s: '%s' does not contain '%s'", what, d.text, words[i]);
  assert_true(all_bytes_are(p->out, sizeof p->out, GUARD_PATTERN) &&
              all_bytes_are(p->out_lse, sizeof p->out_lse, GUARD_PATTERN));
  assert_int_equal(amla_merge_parts(a, NULL), status);
}

static void bad_fields_are_refused(void **state) {
  (void)state;
  uint64_t seed = 15;
  parts p;
  make_parts(&p, &seed, 2.0f);
  amla_merge_args good = packed_args(&p);
  give_sinks(&good, &p, 1);
  BAD(a.struct_bytes = 0, "args.struct_bytes=0", "INIT macro");
  BAD(a.struct_bytes--, "args.struct_bytes=", "sizeof the struct");
  BAD(a.n_parts = 0, "n_parts=0", ">= 1");
  BAD(a.n_rows = -1, "n_rows=-1", ">= 0");
  BAD(a.d_v = 0, "d_v=0", ">= 1");
  BAD(a.base = (amla_lse_base)2, "base=2", "natural");
  BAD(a.empty = (amla_empty_lse)2, "empty=2", "+inf");
  BAD(a.out_type = AMLA_Q8_0, "out_type=3", "<= 2");
  BAD(a.n_heads = 0, "n_heads=0", ">= 1");
  BAD(a.n_heads = -1, "n_heads=-1", ">= 1");
  BAD(a.head_rows = -1, "head_rows=-1", ">= 0");
  BAD(a.lse_sink = 2, "lse_sink=2", "<= 1");
  BAD((a.lse_sink = 1, a.sinks = NULL), "lse_sink=1", "needs sinks");
  BAD(a.n_rows = INT64_MAX, "n_rows=9223372036854775807", "product overflows");
  BAD(a.o_stride_part = -1, "o_stride_part=-1", ">= 0");
  BAD(a.o_stride_row = -1, "o_stride_row=-1", ">= 0");
  BAD(a.lse_parts_stride_part = -1, "lse_parts_stride_part=-1", ">= 0");
  BAD(a.lse_parts_stride_row = -2, "lse_parts_stride_row=-2", ">= 0");
  BAD(a.out_stride_row = -1, "out_stride_row=-1", ">= 0");
  BAD(a.lse_stride_row = -1, "lse_stride_row=-1", ">= 0");
  BAD(a.o_stride_part = INT64_MAX, "o: its size in bytes overflows");
  BAD(a.o_stride_row = INT64_MAX, "o_stride_part", "overflows");
  BAD(a.lse_parts_stride_part = INT64_MAX / 4, "lse_parts: its size in bytes overflows");
  BAD(a.out_stride_row = INT64_MAX, "out: its size in bytes overflows");
  BAD(a.lse_stride_row = INT64_MAX, "lse: its size in bytes overflows");
  BAD(a.out_stride_row = D - 1, "out_stride_row=23", "rows of out would overlap", ">= 24");
}

static void bad_memory_is_refused(void **state) {
  (void)state;
  uint64_t seed = 16;
  parts p;
  make_parts(&p, &seed, 2.0f);
  amla_merge_args good = packed_args(&p);
  give_sinks(&good, &p, 1);
  BAD(a.o = NULL, "o=NULL", "5760 bytes");
  BAD(a.lse_parts = NULL, "lse_parts=NULL", "240 bytes");
  BAD(a.out = NULL, "out=NULL", "1152 bytes");
  BAD(a.o_bytes--, "o_bytes=5759", ">= 5760");
  BAD(a.o_stride_part = ROWS * D + 1, "o_bytes=5760", ">= 5776");
  BAD(a.lse_parts_bytes--, "lse_parts_bytes=239", ">= 240");
  BAD(a.sinks_bytes--, "sinks_bytes=11", ">= 12");
  BAD(a.out_bytes--, "out_bytes=1151", ">= 1152");
  BAD((a.out_type = AMLA_F16, a.out_bytes = 575), "out_bytes=575", ">= 576");
  BAD(a.lse_bytes--, "lse_bytes=47", ">= 48");
  BAD(a.o = (const float *)(const void *)((const char *)p.o + 2), "o=", "aligned to 4");
  BAD(a.out = (char *)p.out + 2, "out=", "aligned to 4");
  BAD((a.out = (char *)p.out + 1, a.out_type = AMLA_BF16), "out=", "aligned to 2");
  BAD(a.out = p.o + ROWS * D, "out=", "must not overlap o");
  BAD((a.out = p.o, a.out_type = AMLA_BF16), "out=", "must not overlap o");
  BAD((a.out = p.o, a.out_bytes = sizeof p.o, a.out_stride_row = D + 1),
      "out=", "must not overlap o");
  BAD((a.out = p.o, a.o_stride_part = D), "o_stride_", "rows of o would overlap");
  BAD(a.lse = p.lse + 1, "lse=", "must not overlap lse_parts");
  BAD((a.lse = p.lse, a.lse_bytes = sizeof p.lse, a.lse_stride_row = 2),
      "lse=", "must not overlap lse_parts");
  BAD((a.lse = p.lse, a.lse_parts_stride_part = 1), "lse_parts_stride_", "would overlap");
  BAD((a.lse = p.o), "lse=", "must not overlap o");
  BAD((a.out = p.lse, a.n_rows = 2, a.out_bytes = sizeof p.lse),
      "out=", "must not overlap lse_parts");
  BAD((a.lse = p.sinks, a.n_rows = 2, a.lse_bytes = sizeof p.sinks),
      "lse=", "must not overlap sinks");
  BAD((a.out = p.sinks, a.d_v = 1, a.n_rows = 3, a.out_bytes = sizeof p.sinks),
      "out=", "must not overlap sinks");
  BAD((a.lse = p.out + 5), "out=", "must not overlap lse");
  amla_merge_args none = AMLA_MERGE_ARGS_INIT; /* no rows: nothing to point to */
  assert_int_equal(amla_merge_parts(&none, NULL), AMLA_OK);
  assert_int_equal(amla_merge_parts(NULL, NULL), AMLA_INVALID_ARGUMENT);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(matches_long_double),
      cmocka_unit_test(has_the_bits_of_amla_merge),
      cmocka_unit_test(strides_change_no_bit),
      cmocka_unit_test(one_part_is_a_copy),
      cmocka_unit_test(empty_parts_are_not_there),
      cmocka_unit_test(both_marks_mean_the_same),
      cmocka_unit_test(types_are_rounded_once),
      cmocka_unit_test(a_sink_is_a_part_without_value),
      cmocka_unit_test(extreme_sinks),
      cmocka_unit_test(a_nan_lse_outlives_the_sink),
      cmocka_unit_test(wide_rows_and_in_place),
      cmocka_unit_test(in_place_between_other_parts),
      cmocka_unit_test(caller_environment_is_left_alone),
      cmocka_unit_test(bad_fields_are_refused),
      cmocka_unit_test(bad_memory_is_refused),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
