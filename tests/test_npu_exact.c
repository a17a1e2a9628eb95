/* SPDX-License-Identifier: Apache-2.0
 *
 * The Ascend kernel's `amla` against spec/amla.c (bf16 P, same tiles), guarded and as published.
 * On integer-valued inputs scores are exact in any order of summation; then m, n, S16, P' and N of
 * every row and tile are the specification's, bit for bit, and l and O differ by the order of
 * their sums only: by at most L_ULPS ulps of l, and O_ULPS * 2^-24 of |O| + sum p |v| / l (|O|,
 * because the published clamp of n's steps at -30 leaves 2^-30 of an old O; guarded, the kernel
 * does without it, so inputs are such that none is as large). The guarded add is spec_add, bit for
 * bit, on hostile numbers. Then the hazard: what the unguarded add in memory makes of a V column
 * that is zero or tiny at first, and what a final clamp, as one published kernel has it, makes of
 * that; all else is right there.
 */
#include "test_npu.h"

#include "spec/spec.h"
#include "src/base/float16.h"
#include "src/npu/ascend_ub.h"

enum { D_QK = 576, D_V = 512, BLOCK = 512, L_ULPS = 16, O_ULPS = 64 };
enum { PROBES = 5 }; /* m, n, S16, l and the bits of N */
static const spec_algo published = {.mode = SPEC_AMLA, .p = SPEC_P_BF16, .unguarded = 1},
                       mended = {.mode = SPEC_AMLA, .p = SPEC_P_BF16};
static const spec_algo *algo_of(int mode) { return mode == UNGUARDED_AMLA ? &published : &mended; }

typedef struct comparison {
  harness_dataset data; /* one query per sequence, one sequence */
  int32_t rows, tiles;
  float *probe;                 /* what the watch saw: [tiles][PROBES][256] */
  uint16_t *probe_p;            /* [tiles][256][BLOCK] */
  int32_t chunks[2], stores[2]; /* so far, of each AIV */
  float *q, *kv;                /* as f32: [rows][D_QK], [sk][D_QK] */
} comparison;

/* Small integers. Value column 0 is 1 in the first tile and 0 later, so that PV leaves O alone
 * there and N shows in its bits. */
static void make_integers(comparison *c) {
  uint64_t seed = 11;
  for (int32_t i = 0; i < c->rows * D_QK; i++)
    c->q[i] = (float)(random_below(&seed, 5) - 2);
  for (int64_t i = 0; i < (int64_t)c->data.problem.sk * D_QK; i++)
    if (i % D_QK)
      c->kv[i] = (float)(random_below(&seed, 5) - 2);
    else
      c->kv[i] = i / D_QK < BLOCK ? 1.0f : 0.0f;
  for (int32_t i = 0; i < c->rows * D_QK; i++)
    ((uint16_t *)c->data.q)[i] = amla_f32_to_bf16(c->q[i]);
  for (int64_t i = 0; i < (int64_t)c->data.problem.sk * D_QK; i++)
    ((uint16_t *)c->data.kv)[kv_token_offset(&c->data, 0, i / D_QK) + i % D_QK] =
        amla_f32_to_bf16(c->kv[i]);
}

static comparison prepare(const char *problem) {
  comparison c = {.chunks = {0}};
  generate(&c.data, problem);
  c.rows = c.data.problem.h_q, c.tiles = (c.data.problem.sk + BLOCK - 1) / BLOCK;
  c.probe = alloc_floats((int64_t)c.tiles * PROBES * ASCEND_BLOCK_ROWS);
  c.probe_p = malloc((size_t)c.tiles * ASCEND_BLOCK_ROWS * BLOCK * sizeof *c.probe_p);
  c.q = alloc_floats(c.rows * D_QK), c.kv = alloc_floats((int64_t)c.data.problem.sk * D_QK);
  assert_non_null(c.probe_p);
  make_integers(&c);
  return c;
}

/* ---- Watching V1: the kernel itself knows nothing of it ---- */

static int32_t my_rows(const comparison *c, int32_t sub) {
  const int32_t half = (c->rows + 15) / 16 * 8, begin = sub * half;
  return c->rows - begin < half ? c->rows - begin : half;
}
static int32_t my_begin(const comparison *c, int32_t sub) {
  return sub * ((c->rows + 15) / 16 * 8);
}

/* The numbers per row of a tile that V1 is through with. */
static void keep_rows(comparison *c, const npu_watched *w, int32_t tile) {
  const float *ub = w->ub;
  const int32_t add = (ASCEND_UB_ROWS + 5 * ASCEND_STAT_BYTES) / 4, stats = ASCEND_UB_STATS / 4;
  const int32_t from[PROBES] = {
      stats + ASCEND_M * ASCEND_HALF_ROWS, stats + ASCEND_N * ASCEND_HALF_ROWS,
      stats + ASCEND_S16 * ASCEND_HALF_ROWS, stats + ASCEND_L * ASCEND_HALF_ROWS, add};
  for (int32_t i = 0; i < PROBES; i++)
    memcpy(c->probe + ((int64_t)tile * PROBES + i) * ASCEND_BLOCK_ROWS + my_begin(c, w->subcore),
           ub + from[i], (size_t)my_rows(c, w->subcore) * 4);
}

static int is_in_slot(int64_t offset_bytes) {
  return (offset_bytes >= ASCEND_UB_IN && offset_bytes < ASCEND_UB_OUT) ||
         (offset_bytes >= ASCEND_UB_IN_1 && offset_bytes < ASCEND_UB_IN_1 + ASCEND_SLOT_BYTES);
}

static void watch_v1(void *context, const npu_watched *w) {
  comparison *c = context;
  if (w->subcore < 0 || my_rows(c, w->subcore) <= 0)
    return;
  const int32_t per_tile = (my_rows(c, w->subcore) + ASCEND_CHUNK_ROWS - 1) / ASCEND_CHUNK_ROWS;
  if (strcmp(w->name, "muls_f32") == 0 && w->scalar == c->data.problem.scale &&
      is_in_slot(w->offset_bytes)) { /* a chunk begins */
    const int32_t chunk = c->chunks[w->subcore]++;
    if (chunk > 0 && chunk % per_tile == 0)
      keep_rows(c, w, chunk / per_tile - 1);
  }
  if (strcmp(w->name, "ln_f32") == 0) /* the end of the only item */
    keep_rows(c, w, c->tiles - 1);
  if (strcmp(w->name, "copy_ub_gm") == 0 && w->piece && strcmp(w->piece, "P") == 0) {
    const int32_t store = c->stores[w->subcore]++, tile = store / per_tile,
                  r = store % per_tile * ASCEND_CHUNK_ROWS;
    const int32_t rows = ascend_min(ASCEND_CHUNK_ROWS, my_rows(c, w->subcore) - r);
    memcpy(c->probe_p + ((int64_t)tile * ASCEND_BLOCK_ROWS + my_begin(c, w->subcore) + r) * BLOCK,
           w->src, (size_t)rows * BLOCK * 2);
  }
}

static comparison run_watched(const char *problem, int mode, int schedule) {
  comparison c = prepare(problem);
  ascend_launch l = make_launch(&c.data, mode, schedule);
  l.split_tiles = c.tiles; /* one split */
  l.options.watch = watch_v1, l.options.watch_context = &c;
  const npu_report report = launch_on(&c.data, problem, &l, 1);
  expect_clean(&report, problem, &l);
  return c;
}

static void free_comparison(comparison *c) {
  harness_free(&c->data);
  free(c->probe), free(c->probe_p), free(c->q), free(c->kv);
}

static void expect_bits(const char *name, int32_t tile, int32_t row, float got, float want) {
  if (to_bits(got) != to_bits(want))
    fail_msg("%s of row %d in tile %d is %a, want %a", name, row, tile, (double)got, (double)want);
}

static void compare_block(const comparison *c, const spec_row *s, int32_t tile, int32_t r,
                          int32_t keys, const float *p, uint32_t n_bits) {
  const float *shown = c->probe + (int64_t)tile * PROBES * ASCEND_BLOCK_ROWS + r;
  const uint16_t *shown_p = c->probe_p + ((int64_t)tile * ASCEND_BLOCK_ROWS + r) * BLOCK;
  const float l = shown[3 * ASCEND_BLOCK_ROWS];
  const double ulps = fabs((double)l - (double)s->l) / ((double)s->l * 0x1p-23);
  expect_bits("m", tile, r, shown[0], s->m);
  expect_bits("n", tile, r, shown[1 * ASCEND_BLOCK_ROWS], s->n);
  expect_bits("S16", tile, r, shown[2 * ASCEND_BLOCK_ROWS], s->s16);
  for (int32_t j = 0; j < keys; j++)
    expect_bits("P'", tile, r, amla_bf16_to_f32(shown_p[j]), p[j]);
  if (tile > 0 && to_bits(shown[4 * ASCEND_BLOCK_ROWS]) != n_bits)
    fail_msg("N of row %d in tile %d is %d, want %d", r, tile,
             (int32_t)to_bits(shown[4 * ASCEND_BLOCK_ROWS]), (int32_t)n_bits);
  if (!(ulps <= L_ULPS))
    fail_msg("l of row %d in tile %d is %a, want %a: %g ulps", r, tile, (double)l, (double)s->l,
             ulps);
}

/* Returns in how many tiles n moved. */
static int compare_row(const comparison *c, const spec_algo *algo, const harness_truth *truth,
                       int32_t r) {
  spec_row s = SPEC_ROW_INIT;
  float p[BLOCK], o[D_V] = {0};
  int moves = 0;
  for (int32_t b = 0; b < c->tiles; b++) {
    const int32_t begin = b * BLOCK,
                  keys = c->data.problem.sk - begin < BLOCK ? c->data.problem.sk - begin : BLOCK;
    const uint32_t before = to_bits(o[0]);
    const float n = s.n;
    spec_block(algo, &s, D_QK, D_V, c->data.problem.scale, c->q + r * D_QK,
               c->kv + (int64_t)begin * D_QK, NULL, keys, p, o);
    if (b > 0 && !algo->unguarded && s.n - n < -30)
      fail_msg("n of row %d falls by %g in tile %d: too hard", r, (double)(n - s.n), b);
    compare_block(c, &s, b, r, keys, p, to_bits(o[0]) - before);
    moves += b > 0 && to_bits(s.n) != to_bits(n);
  }
  const float lse = spec_finish(algo, &s, D_V, o);
  if (!(fabs((double)lse_at(&c->data, r) - (double)lse) <= 0x1p-22 * fabs((double)lse)))
    fail_msg("LSE of row %d", r);
  for (int32_t d = 0; d < D_V; d++)
    if (!(fabs((double)out_at(&c->data, r, d) - (double)o[d]) <=
          O_ULPS * 0x1p-24 * (truth->out_abs[r * D_V + d] + fabs((double)o[d]))))
      fail_msg("O of row %d, column %d is %a, want %a", r, d, (double)out_at(&c->data, r, d),
               (double)o[d]);
  return moves;
}

static void check_exact(const char *problem, int mode, int schedule, int least_moves) {
  comparison c = run_watched(problem, mode, schedule);
  harness_truth truth;
  int moves = 0;
  compute_truth_of(&c.data, &truth);
  for (int32_t r = 0; r < c.rows; r++)
    moves += compare_row(&c, algo_of(mode), &truth, r);
  if (moves < least_moves)
    fail_msg("'%s': n moved only %d times: too easy", problem, moves);
  harness_truth_free(&truth);
  free_comparison(&c);
}

static void amla_equals_the_specification(void **state) {
  (void)state;
  check_exact("h=24,sk=2100,scale=0.1352", UNGUARDED_AMLA, SERIAL, 6);
  check_exact("h=128,sk=1100,scale=0.0416666666,page=96", UNGUARDED_AMLA, PRELOAD, 32);
  check_exact("h=40,sk=1536,scale=0.7,page=0", UNGUARDED_AMLA, BEST, 10);
  check_exact("h=24,sk=2100,scale=0.0952", ASCEND_AMLA, SERIAL, 6);
  check_exact("h=128,sk=1100,scale=0.0416666666,page=96", ASCEND_AMLA, PRELOAD, 32);
  check_exact("h=40,sk=1536,scale=0.21,page=0", ASCEND_AMLA, BEST, 10);
}

/* P S16 in the middle of two bf16 numbers, the smaller of them even. */
static bool has_tie(const comparison *c, float scale) {
  spec_row s = SPEC_ROW_INIT;
  float p[BLOCK], o[D_V];
  spec_block(&published, &s, D_QK, D_V, scale, c->q, c->kv, NULL, BLOCK, p, o);
  for (int32_t j = 0; j < BLOCK; j++) {
    float dot = 0;
    for (int32_t d = 0; d < D_QK; d++)
      dot += c->q[d] * c->kv[(int64_t)j * D_QK + d];
    if ((to_bits(expf(dot * scale - s.m) * s.s16) & 0x1ffff) == 0x8000)
      return true;
  }
  return false;
}

static void ties_of_p_round_away(void **state) {
  (void)state;
  comparison c = prepare("h=1,sk=512");
  char problem[80] = "";
  for (int i = 0; i < 4000 && problem[0] == 0; i++) {
    const float scale = 0.02f + 1e-5f * (float)i;
    if (has_tie(&c, scale))
      snprintf(problem, sizeof problem, "h=1,sk=512,scale=%.9g", (double)scale);
  }
  free_comparison(&c);
  if (problem[0] == 0)
    fail_msg("no tie found");
  check_exact(problem, ASCEND_AMLA, PRELOAD, 0);
}

/* Query 0 sees none of the last tile, which query 1 sees one key of: its bits are those of a run
 * without that tile. */
static void a_hidden_block_changes_no_bit(void **state) {
  (void)state;
  const char *one = "sq=1,h=5,sk=512,page=0", *two = "sq=2,h=5,sk=513,page=0";
  harness_dataset a, b;
  generate(&a, one), generate(&b, two);
  memcpy(b.kv, a.kv, a.tensors.kv_bytes);
  memcpy(b.q, a.q, a.tensors.q_bytes);
  for (int mode = 0; mode < MODES; mode++) {
    ascend_launch l = make_launch(&a, mode, BEST), m = make_launch(&b, mode, BEST);
    const npu_report x = launch_on(&a, one, &l, 1), y = launch_on(&b, two, &m, 1);
    expect_clean(&x, one, &l), expect_clean(&y, two, &m);
    for (int64_t row = 0; row < 5; row++)
      if (!same_row(&a, row, &b, row))
        fail_msg("%s: row %lld", describe_launch(&m), (long long)row);
  }
  harness_free(&a), harness_free(&b);
}

/* ---- The guarded add ---- */

enum { SHIFTED_ROWS = 8, SHIFTED = SHIFTED_ROWS * ASCEND_WIDTH };
typedef struct shift_args {
  float *x;   /* [SHIFTED], becomes y */
  int32_t *n; /* [16] */
  int may_grow;
} shift_args;

static void shift_kernel(const void *args) {
  const shift_args *a = args;
  ascend_vec x = NPU_UB_AT(float, 0), z = x + SHIFTED, y = z + SHIFTED;
  ascend_chunk_state c = {.add = NPU_UB_AT(int32_t, 3 * SHIFTED * 4)};
  c.spread = (ascend_vec)c.add + 16, c.work = c.spread + 128;
  if (npu_subcore())
    return;
  npu_copy_gm_ub(x, a->x, 1, SHIFTED * 4, SHIFTED * 4, SHIFTED * 4);
  npu_copy_gm_ub(c.add, a->n, 1, 64, 64, 64);
  npu_notify(NPU_PIPE_MTE2, NPU_PIPE_V, 0), npu_wait(NPU_PIPE_MTE2, NPU_PIPE_V, 0);
  (a->may_grow ? ascend_guarded_add : ascend_guarded_shift)(&c, y, x, z, SHIFTED_ROWS);
  npu_notify(NPU_PIPE_V, NPU_PIPE_MTE3, 0), npu_wait(NPU_PIPE_V, NPU_PIPE_MTE3, 0);
  npu_copy_ub_gm(a->x, y, 1, SHIFTED * 4, SHIFTED * 4, SHIFTED * 4);
}

static void check_shift(const int32_t *n, int may_grow, uint64_t seed) {
  static const uint32_t edges[] = {0,          1,          0x007fffff, 0x00800000,
                                   0x00800001, 0x0f000000, 0x0f7fffff, 0x7f7fffff,
                                   0x7f7e8000, 0x7f800000, 0x7fc00000};
  static float x[SHIFTED], y[SHIFTED];
  npu_chip *chip = npu_chip_create(npu_find_preset("910b2"), NPU_FUNCTIONAL);
  const npu_launch_options o = {.cores = 1};
  npu_report report;
  int32_t adds[16] = {0};
  assert_non_null(chip);
  memcpy(adds, n, SHIFTED_ROWS * sizeof *n);
  for (int i = 0; i < SHIFTED; i++) {
    const uint32_t random =
        (uint32_t)random_below(&seed, 1 << 16) << 16 | (uint32_t)random_below(&seed, 1 << 16);
    const uint32_t bits = i % 4 ? random : edges[random % LENGTH(edges)] | (random >> 31 << 31);
    memcpy(&x[i], &bits, 4);
  }
  memcpy(y, x, sizeof y);
  assert_int_equal(npu_gm_register(chip, y, sizeof y, "y", 1) |
                       npu_gm_register_const(chip, adds, sizeof adds, "n"),
                   0);
  npu_gm_written(chip, y);
  if (npu_launch(chip, NULL, shift_kernel, &(shift_args){y, adds, may_grow}, &o, &report))
    fail_msg("%s", report.message[0]);
  for (int i = 0; i < SHIFTED; i++) {
    const float want = spec_add(x[i], n[i / ASCEND_WIDTH]);
    if (to_bits(y[i]) != to_bits(want) && !(y[i] != y[i] && want != want))
      fail_msg("0x%08x + %d is %a, want %a", (unsigned)to_bits(x[i]), n[i / ASCEND_WIDTH],
               (double)y[i], (double)want);
  }
  npu_chip_destroy(chip);
}

static void the_guarded_add_is_the_specification_s(void **state) {
  (void)state;
  static const int32_t shifts[SHIFTED_ROWS] = {0,           -1,           -(1 << 23),   -(3 << 23),
                                               -(30 << 23), -(127 << 23), -(254 << 23), INT32_MIN};
  static const int32_t adds[SHIFTED_ROWS] = {
      0, 8, 98304, -98304, 1 << 23, -(30 << 23) + 98304, -(30 << 23) - 98304, -8};
  for (uint64_t seed = 1; seed <= 8; seed++)
    check_shift(shifts, 0, seed), check_shift(shifts, 1, seed), check_shift(adds, 1, seed);
}

/* ---- The hazard ---- */

typedef struct damage {
  int64_t wild,
      lost; /* elements that are not finite or beyond 1e10; that are 0 and should not be */
  int ok;
} damage;

static damage run_zerov(harness_dataset *data, const harness_truth *truth, const char *problem,
                        int mode, float clamp) {
  damage d = {0, 0, 0};
  ascend_launch l = make_launch(data, mode, PRELOAD);
  l.clamp = clamp;
  const npu_report report = launch_on(data, problem, &l, 1);
  expect_clean(&report, problem, &l);
  for (int64_t row = 0; row < n_rows(data); row++)
    for (int32_t c = 0; c < data->problem.d_v; c++) {
      const double got = (double)out_at(data, row, c),
                   want = truth->out[row * data->problem.d_v + c];
      d.wild += !(fabs(got) < 1e10);
      d.lost += got == 0 && fabs(want) > 1e-3;
    }
  d.ok = harness_compare_rounded_p(data, truth, AMLA_BF16).ok;
  return d;
}

static void zeros_break_the_unguarded_add_only(void **state) {
  (void)state;
  const char *problem = "h=16,sk=1500,dist=zerov";
  harness_dataset data;
  harness_truth truth;
  generate(&data, problem);
  compute_truth_of(&data, &truth);
  const damage bare = run_zerov(&data, &truth, problem, UNGUARDED_AMLA, 0.0f),
               clamped = run_zerov(&data, &truth, problem, UNGUARDED_AMLA, 1e10f);
  if (bare.wild == 0 || bare.ok)
    fail_msg("the unguarded add survived zeros: %lld wild", (long long)bare.wild);
  if (clamped.wild != 0 || clamped.lost == 0 || clamped.ok)
    fail_msg("clamped: %lld wild, %lld lost", (long long)clamped.wild, (long long)clamped.lost);
  if (bare.lost >= clamped.lost)
    fail_msg("the clamp should turn wild elements into lost ones");
  for (int mode = 0; mode < MODES; mode++)
    if (!run_zerov(&data, &truth, problem, mode, 0.0f).ok)
      fail_msg("%s on zeros", mode_name(mode));
  print_message("%s, unguarded amla: %lld of %lld elements wild; with the clamp %lld lost\n",
                problem, (long long)bare.wild, (long long)(n_rows(&data) * data.problem.d_v),
                (long long)clamped.lost);
  harness_truth_free(&truth);
  harness_free(&data);
}

int main(void) {
  const struct CMUnitTest tests[] = {cmocka_unit_test(amla_equals_the_specification),
                                     cmocka_unit_test(ties_of_p_round_away),
                                     cmocka_unit_test(a_hidden_block_changes_no_bit),
                                     cmocka_unit_test(the_guarded_add_is_the_specification_s),
                                     cmocka_unit_test(zeros_break_the_unguarded_add_only)};
  return cmocka_run_group_tests(tests, NULL, NULL);
}
