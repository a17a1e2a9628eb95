/* SPDX-License-Identifier: Apache-2.0
 *
 * amla_cache_write: every type into every type against an oracle written here (e4m3 by search in a
 * table that ml_dtypes made), whatever threads and instruction set; nothing but the slots is
 * touched; what is refused is refused before anything is written.
 */
#include "test_support.h"

#include "float8_table.h"
#include "harness/kv_blocks.h"
#include "harness/kv_rows.h"

enum { TOKENS = 150, PAGES = 5 };

/* ---- A cache and tokens for it ---- */

typedef struct work {
  amla_cache_write_args args;
  guarded kv, kv_rope;
  void *latent, *rope;
  int64_t slots[TOKENS];
} work;

static bool is_record(amla_dtype type) { return type == AMLA_FP8_656 || type == AMLA_FP8_584; }

/* The cache's problem, for harness_load_kv. */
static amla_problem problem_of(const work *w) {
  const amla_cache_write_args *a = &w->args;
  amla_problem p = AMLA_PROBLEM_INIT;
  p.kv_type = a->kv_type;
  p.page_size = a->page_size;
  p.d_qk = a->d_latent + a->d_rope;
  p.d_v = a->kv_type == AMLA_FP8_584 ? p.d_qk : a->d_latent;
  p.kv_stride_page = a->kv_stride_page, p.kv_stride_token = a->kv_stride_token;
  p.kv_scale = a->kv_scale, p.kv_rope_scale = a->kv_rope_scale;
  return p;
}

/* Elements of every size, some rows of zeros, of small ones and with NaN and infinities. */
static float draw(uint64_t *seed, int32_t token) {
  const float x = ldexpf(random_normal(seed), token % 40 - 20);
  switch (token % 16) {
  case 1: return 0.0f;
  case 2: return random_below(seed, 50) ? x : NAN;
  case 3: return random_below(seed, 50) ? x : -INFINITY;
  case 4: return random_hostile(seed) * 0x1p-30f; /* finite in f16 or not */
  default: return random_below(seed, 100) ? x : -0.0f;
  }
}

static void *draw_tokens(uint64_t *seed, amla_dtype type, int32_t n, int32_t d, int64_t stride) {
  void *x = malloc((size_t)harness_bytes(type, (n - 1) * stride + d) + 1);
  assert_non_null(x);
  for (int64_t i = 0; i < (n - 1) * stride + d; i++)
    harness_store(x, type, i, draw(seed, (int32_t)(i / stride)));
  return x;
}

/* Every slot at most twice, a third of them never. */
static void draw_slots(uint64_t *seed, work *w) {
  const int n_slots = (int)w->args.n_pages * w->args.page_size;
  for (int i = 0; i < TOKENS; i++)
    w->slots[i] = random_below(seed, 6) ? random_below(seed, n_slots * 2 / 3 + 1) : -1;
}

typedef struct widths {
  int32_t latent, rope;
} widths;

static widths usual_widths(amla_dtype to) { return (widths){to == AMLA_FP8_584 ? 448 : 512, 64}; }

/* Any that the type allows: loops leave rests then. */
static widths draw_widths(uint64_t *seed, amla_dtype to) {
  int32_t bytes;
  const int32_t block = amla_dtype_block(to, &bytes);
  if (is_record(to))
    return usual_widths(to);
  const int32_t latent = random_below(seed, 200 / block), rope = random_below(seed, 160 / block);
  return (widths){block * (1 + latent), block * (1 + rope)};
}

static work work_create(uint64_t *seed, amla_dtype from, amla_dtype to, int32_t page, bool apart,
                        widths width) {
  work w = {.args = AMLA_CACHE_WRITE_ARGS_INIT};
  amla_cache_write_args *a = &w.args;
  int32_t block_bytes;
  const int32_t d = width.latent, d_rope = width.rope;
  const int32_t block = amla_dtype_block(to, &block_bytes);
  a->d_latent = d, a->d_rope = d_rope, a->kv_d_rope = apart ? d_rope : 0;
  a->type = from, a->kv_type = to;
  a->page_size = page, a->n_pages = PAGES, a->n_tokens = TOKENS;
  a->any_scale = to == AMLA_FP8_656 && page == 1;
  if (to == AMLA_FP8_E4M3)
    a->kv_scale = 0.03f, a->kv_rope_scale = 2.0f;
  a->latent_stride = d + 3, a->rope_stride = d_rope + 6;
  const int32_t row = apart ? d : d + d_rope;
  if (to != AMLA_FP8_584)
    a->kv_stride_token = harness_row_elems(to, row) + block;
  a->kv_stride_page = to == AMLA_FP8_584 ? 584 * page + 7 : page * a->kv_stride_token + block;
  a->kv_rope_stride_token = d_rope + block, a->kv_rope_stride_page = page * (d_rope + block);
  w.latent = draw_tokens(seed, from, TOKENS, d, a->latent_stride);
  w.rope = draw_tokens(seed, from, TOKENS, d_rope, a->rope_stride);
  w.kv = guarded_create((size_t)harness_bytes(to, PAGES * a->kv_stride_page), 0);
  w.kv_rope = guarded_create((size_t)harness_bytes(to, PAGES * a->kv_rope_stride_page), 0);
  a->latent = w.latent, a->rope = w.rope;
  a->latent_bytes = (size_t)harness_bytes(from, (TOKENS - 1) * a->latent_stride + d);
  a->rope_bytes = (size_t)harness_bytes(from, (TOKENS - 1) * a->rope_stride + d_rope);
  a->kv = guarded_data(&w.kv), a->kv_bytes = w.kv.bytes;
  if (apart)
    a->kv_rope = guarded_data(&w.kv_rope), a->kv_rope_bytes = w.kv_rope.bytes;
  draw_slots(seed, &w);
  return w;
}

static void work_free(work *w) {
  assert_int_equal(guarded_damage(&w->kv) + guarded_damage(&w->kv_rope), 0);
  guarded_free(&w->kv);
  guarded_free(&w->kv_rope);
  free(w->latent);
  free(w->rope);
}

static void expect_written(work *w, int threads, amla_isa isa) {
  amla_options o = AMLA_OPTIONS_INIT;
  amla_detail detail;
  o.threads = threads, o.isa = isa;
  w->args.slot_mapping = w->slots, w->args.slot_mapping_bytes = sizeof w->slots;
  if (amla_cache_write(&w->args, &o, &detail) != AMLA_OK)
    fail_msg("%s", detail.text);
}

/* ---- The oracle ---- */

/* Nearest of the table, of two the even one. */
static float through_e4m3(float x) {
  const double a = fabs((double)x);
  int best = 0;
  if (isnan(x))
    return x;
  for (int code = 1; code < 127; code++) {
    const double nearer =
        fabs((double)of_bits(e4m3_bits[best]) - a) - fabs((double)of_bits(e4m3_bits[code]) - a);
    if (nearer > 0 || (nearer == 0 && code % 2 == 0))
      best = code;
  }
  return copysignf(a > 448 ? 448.0f : of_bits(e4m3_bits[best]), x);
}

/* The scale of a group. */
static float expected_scale(const float *x, int32_t n, bool any) {
  float largest = 0;
  int exponent;
  for (int32_t i = 0; i < n; i++)
    if (isfinite(x[i]))
      largest = fmaxf(largest, fabsf(x[i]));
  const float scale = fmaxf(largest / 448, 1e-4f);
  return any || frexpf(scale, &exponent) == 0.5f ? scale : ldexpf(1.0f, exponent);
}

static float through_plain(amla_dtype type, float x) {
  float bits = 0;
  harness_store(&bits, type, 0, x);
  return harness_load(&bits, type, 0);
}

/* Is `got` the element of a block of q8_0 with these elements? */
static bool is_q8_0(const float *block, int32_t i, float got) {
  const float most = 127;
  float largest = 0;
  for (int32_t j = 0; j < 32; j++)
    largest =
        isfinite(block[j]) && largest != INFINITY ? fmaxf(largest, fabsf(block[j])) : INFINITY;
  const float d = through_plain(AMLA_F16, largest / most);
  if (!isfinite(d))
    return isnan(got);
  const float step = fmaxf(d, largest / most);
  return fabsf(got - block[i]) <= 0.5001f * step + most * fabsf(d - largest / most);
}

/* Is it, of another kind of block? What the harness makes of the same elements is as near, and its
 * elements are of the same d and m. */
static bool is_quantised(amla_dtype type, const float *block, int32_t i, float got) {
  float low = block[0], high = block[0], values[32];
  unsigned char made[34];
  bool finite = true;
  for (int32_t j = 0; j < 32; j++) {
    finite = finite && isfinite(block[j]);
    low = fminf(low, block[j]), high = fmaxf(high, block[j]);
  }
  harness_store_block(made, type, 0, block);
  for (int32_t j = 0; j < 32; j++)
    values[j] = harness_load_block(made, type, j);
  const float mean = 0.5f * low + 0.5f * high;
  if (!finite || !isfinite(values[0]) || !isfinite(values[1]))
    return isnan(got);
  const float error = fabsf(got - block[i]), least = fabsf(values[i] - block[i]);
  return error <= least + 1e-6f * (fabsf(mean) + (high - low));
}

/* ---- Everything into everything ---- */

static void expect_part(const work *w, int token, bool rope, const float *x, const float *got) {
  const amla_dtype to = w->args.kv_type;
  const int32_t n = rope ? w->args.d_rope : w->args.d_latent;
  int32_t group = n;
  if (is_record(to))
    group = to == AMLA_FP8_656 ? 128 : 64;
  const amla_dtype plain = is_record(to) ? AMLA_BF16 : to;
  for (int32_t i = 0; i < n; i++) {
    float want = NAN;
    const float *block = x + i / 32 * 32;
    if (to == AMLA_Q8_0) {
      want = is_q8_0(block, i % 32, got[i]) ? got[i] : 12345.0f;
    } else if (harness_is_block(to)) {
      want = is_quantised(to, block, i % 32, got[i]) ? got[i] : 12345.0f;
    } else if (to == AMLA_FP8_E4M3) {
      const float scale = rope ? w->args.kv_rope_scale : w->args.kv_scale;
      want = through_e4m3(x[i] / scale) * scale;
    } else if (is_record(to) && !rope) {
      const float scale = expected_scale(x + i / group * group, group, w->args.any_scale);
      want = through_e4m3(x[i] / scale) * scale;
    } else {
      want = through_plain(plain, x[i]);
    }
    if (!same_number(got[i], want))
      fail_msg("%s to %s, widths %d and %d, page=%d apart=%d: token %d %s element %d (%a) is %a, "
               "want %a",
               amla_dtype_name(w->args.type), amla_dtype_name(to), w->args.d_latent, w->args.d_rope,
               w->args.page_size, w->args.kv_d_rope > 0, token, rope ? "rope" : "latent", i,
               (double)x[i], (double)got[i], (double)want);
  }
}

static void load_token(const work *w, int token, bool rope, float *x) {
  const amla_cache_write_args *a = &w->args;
  const int32_t n = rope ? a->d_rope : a->d_latent;
  const void *row = rope ? a->rope : a->latent;
  const int64_t stride = rope ? a->rope_stride : a->latent_stride;
  for (int32_t i = 0; i < n; i++)
    x[i] = harness_load(row, a->type, token * stride + i);
}

static void expect_slot(const work *w, int64_t slot, int token) {
  const amla_cache_write_args *a = &w->args;
  const amla_problem p = problem_of(w);
  const int64_t page = slot / a->page_size, k = slot % a->page_size;
  const int64_t token_elems = a->kv_type == AMLA_FP8_584 ? 576 : a->kv_stride_token;
  const int64_t at = page * a->kv_stride_page + k * token_elems;
  const int64_t rope_at = page * a->kv_rope_stride_page + k * a->kv_rope_stride_token;
  float x[512], got[512];
  load_token(w, token, false, x);
  for (int32_t i = 0; i < a->d_latent; i++)
    got[i] = harness_load_kv(&p, a->kv, at, i);
  expect_part(w, token, false, x, got);
  load_token(w, token, true, x);
  for (int32_t i = 0; i < a->d_rope; i++)
    got[i] = a->kv_d_rope > 0
                 ? harness_load_kv(&p, a->kv_rope, rope_at - a->d_latent, a->d_latent + i)
                 : harness_load_kv(&p, a->kv, at, a->d_latent + i);
  expect_part(w, token, true, x, got);
}

/* Clears the guard pattern's mark of `bytes` bytes, so that what is left must still have it. */
static void forget(char *touched, int64_t at, int64_t bytes) {
  memset(touched + at, 1, (size_t)bytes);
}

static void expect_untouched(const char *what, const guarded *g, const char *touched) {
  for (size_t i = 0; i < g->bytes; i++)
    if (!touched[i] && ((const unsigned char *)guarded_data(g))[i] != GUARD_PATTERN)
      fail_msg("%s: byte %zu is of no slot that is written, and has changed", what, i);
}

static void expect_all(const work *w) {
  const amla_cache_write_args *a = &w->args;
  const amla_dtype to = a->kv_type;
  char *kv = calloc(w->kv.bytes, 1), *rope = calloc(w->kv_rope.bytes, 1);
  assert_true(kv != NULL && rope != NULL);
  for (int64_t slot = 0; slot < a->n_pages * a->page_size; slot++) {
    const int64_t page = slot / a->page_size, k = slot % a->page_size;
    const int64_t token_elems = to == AMLA_FP8_584 ? 576 : a->kv_stride_token;
    const int64_t at = page * a->kv_stride_page + k * token_elems;
    const int64_t rope_at = page * a->kv_rope_stride_page + k * a->kv_rope_stride_token;
    int last = TOKENS - 1;
    while (last >= 0 && w->slots[last] != slot)
      last--;
    if (last < 0)
      continue;
    expect_slot(w, slot, last);
    forget(kv, harness_bytes(to, at),
           harness_bytes(to, harness_row_elems(to, a->d_latent + a->d_rope - a->kv_d_rope)));
    if (to == AMLA_FP8_584)
      forget(kv, page * a->kv_stride_page + a->page_size * 576 + k * 8, 8);
    if (a->kv_d_rope > 0)
      forget(rope, harness_bytes(to, rope_at), harness_bytes(to, a->d_rope));
  }
  expect_untouched("kv", &w->kv, kv);
  expect_untouched("kv_rope", &w->kv_rope, rope);
  free(kv);
  free(rope);
}

/* Other threads and instruction sets write the same bytes. */
static void expect_same_bytes(work *w) {
  static const amla_isa isas[] = {AMLA_ISA_C, AMLA_ISA_AUTO, AMLA_ISA_AVX2};
  char *kv = malloc(w->kv.bytes), *rope = malloc(w->kv_rope.bytes);
  assert_true(kv != NULL && rope != NULL);
  memcpy(kv, guarded_data(&w->kv), w->kv.bytes);
  memcpy(rope, guarded_data(&w->kv_rope), w->kv_rope.bytes);
  for (int i = 0; i < LENGTH(isas) && !amla_isa_missing(isas[i]); i++)
    for (int threads = 1; threads <= 3; threads += 2) {
      memset(guarded_data(&w->kv), GUARD_PATTERN, w->kv.bytes);
      memset(guarded_data(&w->kv_rope), GUARD_PATTERN, w->kv_rope.bytes);
      expect_written(w, threads, isas[i]);
      if (memcmp(kv, guarded_data(&w->kv), w->kv.bytes) != 0 ||
          memcmp(rope, guarded_data(&w->kv_rope), w->kv_rope.bytes) != 0)
        fail_msg("%s to %s: isa=%d threads=%d writes other bytes", amla_dtype_name(w->args.type),
                 amla_dtype_name(w->args.kv_type), (int)isas[i], threads);
    }
  free(kv);
  free(rope);
}

static void tokens_are_what_their_types_make_of_them(void **state) {
  static const int32_t pages[] = {1, 53, 64};
  uint64_t seed = 31;
  (void)state;
  for (int from = AMLA_F32; from <= AMLA_F16; from++)
    for (int to = AMLA_F32; amla_dtype_name((amla_dtype)to) != NULL; to++)
      for (int i = 0; i < 2 * LENGTH(pages); i++) {
        if (TEST_SLOW && (from + to + i) % 3 != 0)
          continue;
        const bool apart = i % 2 && !is_record((amla_dtype)to);
        const amla_dtype type = (amla_dtype)to;
        const widths width = i / 2 == 1 ? draw_widths(&seed, type) : usual_widths(type);
        work w = work_create(&seed, (amla_dtype)from, type, pages[i / 2], apart, width);
        expect_written(&w, 1, AMLA_ISA_C);
        expect_all(&w);
        expect_same_bytes(&w);
        work_free(&w);
      }
}

/* The bytes of one token, one by one: what a round trip through our own reader cannot tell. */
static void records_have_their_bytes_in_place(void **state) {
  float latent[512] = {0}, rope[64] = {0}, scale;
  unsigned char kv[2 * 656] = {0};
  const int64_t slot = 1;
  amla_cache_write_args a = AMLA_CACHE_WRITE_ARGS_INIT;
  (void)state;
  latent[0] = 448, latent[127] = -224, latent[128] = 449, latent[511] = 0x1p-13f, rope[63] = -2;
  a.type = AMLA_F32, a.page_size = 2, a.n_pages = 1, a.n_tokens = 1;
  a.latent = latent, a.latent_bytes = sizeof latent, a.rope = rope, a.rope_bytes = sizeof rope;
  a.slot_mapping = &slot, a.slot_mapping_bytes = sizeof slot, a.kv = kv, a.kv_bytes = sizeof kv;
  a.kv_type = AMLA_FP8_656;
  assert_int_equal(amla_cache_write(&a, NULL, NULL), AMLA_OK);
  const unsigned char *row = kv + 656;
  assert_int_equal(row[0], 0x7e); /* 448 */
  assert_int_equal(row[127], 0xf6);
  assert_int_equal(row[128], 0x76); /* 224.5 in steps of 16, times 2 */
  assert_int_equal(row[511], 0x38); /* 1 times 2^-13 */
  const float scales[] = {1, 2, 0x1p-13f, 0x1p-13f};
  for (int i = 0; i < 4; i++) {
    memcpy(&scale, row + 512 + 4 * i, sizeof scale);
    assert_true(scale == scales[i]);
  }
  assert_int_equal(row[528 + 126] | row[528 + 127] << 8, 0xc000);

  memset(kv, 0, sizeof kv);
  a.kv_type = AMLA_FP8_584, a.d_latent = 448, a.latent_bytes = 448 * 4;
  assert_int_equal(amla_cache_write(&a, NULL, NULL), AMLA_OK);
  row = kv + 576;
  assert_int_equal(row[0], 0x7e);
  assert_int_equal(row[128], 0x76);
  assert_int_equal(row[448 + 126] | row[448 + 127] << 8, 0xc000);
  static const unsigned char footer[8] = {127, 126, 128, 114, 114, 114, 114, 0};
  assert_memory_equal(kv + 2 * 576 + 8, footer, 8);
}

/* ---- Refusals ---- */

#define BAD(change, ...)                                                                           \
  do {                                                                                             \
    work w = good;                                                                                 \
    amla_cache_write_args *a = &w.args;                                                            \
    a->slot_mapping = w.slots, a->slot_mapping_bytes = sizeof w.slots;                             \
    change;                                                                                        \
    expect_refusal(#change, &w, __VA_ARGS__);                                                      \
  } while (0)

static void expect_refusal(const char *change, work *w, const char *text) {
  amla_detail detail;
  const amla_status status = amla_cache_write(&w->args, NULL, &detail);
  if (status != AMLA_INVALID_ARGUMENT || strstr(detail.text, text) == NULL)
    fail_msg("%s: status %d, '%s' does not contain '%s'", change, (int)status, detail.text, text);
  if (!all_bytes_are(guarded_data(&w->kv), w->kv.bytes, GUARD_PATTERN))
    fail_msg("%s: the cache has changed", change);
}

static void bad_arguments_are_refused(void **state) {
  uint64_t seed = 5;
  work good = work_create(&seed, AMLA_F32, AMLA_BF16, 16, true, usual_widths(AMLA_BF16));
  amla_detail detail;
  (void)state;
  for (int i = 0; i < TOKENS; i++)
    good.slots[i] = i % (16 * PAGES);
  assert_int_equal(amla_cache_write(NULL, NULL, &detail), AMLA_INVALID_ARGUMENT);
  BAD(a->struct_bytes = 8, "args.struct_bytes=8");
  BAD(a->d_latent = 0, "d_latent=0: must be >= 1");
  BAD(a->d_rope = -1, "d_rope=-1: must be >= 0");
  BAD(a->page_size = 0, "page_size=0: must be >= 1");
  BAD(a->n_pages = -1, "n_pages=-1: must be >= 0");
  BAD(a->n_pages = 1 << 28, "n_pages=268435456, page_size=16: their product must be <= 2147483647");
  BAD(a->n_tokens = -1, "n_tokens=-1: must be >= 0");
  BAD(a->type = AMLA_Q8_0, "type=3: must be <= 2");
  BAD(a->kv_type = (amla_dtype)77, "kv_type=77: must be <= ");
  BAD(a->any_scale = 1, "any_scale=1: must be 0 for kv_type=bf16");
  BAD((a->any_scale = 1, a->kv_type = AMLA_FP8_584), "any_scale=1: must be 0 for kv_type=fp8_584");
  BAD(a->kv_d_rope = 32, "kv_d_rope=32: must be 0 or d_rope=64");
  BAD(a->kv_scale = 3.0f, "kv_scale=3: must be 0 or 1 for kv_type=bf16");
  BAD((a->kv_type = AMLA_FP8_E4M3, a->kv_scale = -1.0f), "kv_scale=-1: must be positive");
  BAD((a->kv_type = AMLA_FP8_E4M3, a->kv_rope_scale = NAN), "kv_rope_scale=");
  BAD(a->kv_type = AMLA_FP8_656, "kv_d_rope=64: must be 0 for kv_type=fp8_656");
  BAD(a->kv_type = AMLA_FP8_584, "d_latent=512: must be 448 for kv_type=fp8_584");
  BAD((a->kv_type = AMLA_FP8_656, a->d_rope = a->kv_d_rope = 0), "d_rope=0: must be 64");
  BAD(a->kv_type = AMLA_Q8_0, "kv_stride_token=513: must be a multiple of 32");
  BAD(a->kv_stride_token = 511, "kv_stride_token=511: must be >= d_qk=512");
  BAD(a->kv_stride_page = 511, "kv_stride_page=511: rows of kv would overlap, must be >= 512");
  BAD(a->kv_rope_stride_token = 63, "kv_rope_stride_token=63: rows of kv_rope would overlap");
  BAD(a->latent_stride = -1, "latent_stride=-1: must be >= 0");
  BAD(a->latent = NULL, "latent=NULL: must point to");
  BAD(a->latent_bytes--, "latent_bytes=");
  BAD(a->rope_bytes--, "rope_bytes=");
  BAD(a->slot_mapping = NULL, "slot_mapping=NULL");
  BAD(a->slot_mapping_bytes--, "slot_mapping_bytes=1199: must be >= 1200");
  BAD(a->kv = (char *)a->kv + 1, "must be aligned to 2 bytes");
  BAD(a->kv_bytes = 100, "kv_bytes=100: must be >= ");
  BAD(a->kv_rope = NULL, "kv_rope=NULL");
  BAD(a->kv_rope = a->kv, "must not overlap");
  BAD((a->kv_d_rope = 0, a->kv_stride_token = a->kv_stride_page = 0),
      "must be NULL when kv_d_rope is 0");
  BAD(a->d_rope = a->kv_d_rope = 0, "must be NULL when d_rope is 0");
  BAD((a->latent = a->kv, a->latent_bytes = SIZE_MAX), "kv=");
  BAD(w.slots[149] = 80, "slot_mapping[149]=80: the cache has 80 slots, and -1 is none");
  BAD(w.slots[3] = -2, "slot_mapping[3]=-2: the cache has 80 slots");
  work_free(&good);
}

/* A row that is its latent part alone. */
static void rows_may_have_no_rope_part(void **state) {
  const float latent[4] = {1, 2, 3, 4};
  float kv[8] = {0};
  const int64_t slot = 1;
  amla_cache_write_args a = AMLA_CACHE_WRITE_ARGS_INIT;
  (void)state;
  a.d_latent = 4, a.d_rope = 0, a.page_size = 2, a.n_pages = 1, a.n_tokens = 1;
  a.type = a.kv_type = AMLA_F32;
  a.latent = latent, a.latent_bytes = sizeof latent, a.kv = kv, a.kv_bytes = sizeof kv;
  a.slot_mapping = &slot, a.slot_mapping_bytes = sizeof slot;
  assert_int_equal(amla_cache_write(&a, NULL, NULL), AMLA_OK);
  assert_memory_equal(kv + 4, latent, sizeof latent);
  assert_true(kv[0] == 0.0f && kv[3] == 0.0f);
}

/* Nothing to do is done without looking at pointers. */
static void no_tokens_are_no_work(void **state) {
  amla_cache_write_args a = AMLA_CACHE_WRITE_ARGS_INIT;
  (void)state;
  a.page_size = 64;
  assert_int_equal(amla_cache_write(&a, NULL, NULL), AMLA_OK);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(tokens_are_what_their_types_make_of_them),
      cmocka_unit_test(records_have_their_bytes_in_place),
      cmocka_unit_test(bad_arguments_are_refused),
      cmocka_unit_test(rows_may_have_no_rope_part),
      cmocka_unit_test(no_tokens_are_no_work),
  };
  return cmocka_run_group_tests_name("cache_write", tests, NULL, NULL);
}
