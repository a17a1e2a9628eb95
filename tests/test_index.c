/* SPDX-License-Identifier: Apache-2.0
 *
 * amla_index_topk: scores against fp64 with a bound, lists against the definition, properties, and
 * everything it refuses. A failure names its problem and options.
 */
#include "test_run.h"

#include <fenv.h>
#include <limits.h>

#include "harness/index_data.h"
#include "harness/kv_blocks.h"
#include "spec/spec.h"
#include "src/cpu/index_list.h"
#include "src/cpu/index_ukr.h"

static amla_index_args make_args(int32_t b, int32_t s_q, int32_t heads, int32_t d, int32_t sk,
                                 int32_t topk) {
  amla_index_args a = AMLA_INDEX_ARGS_INIT;
  a.b = b, a.s_q = s_q, a.heads = heads, a.d = d, a.sk = sk, a.topk = topk;
  return a;
}

static const char *describe(const amla_index_args *a, const amla_options *o) {
  static char text[320];
  snprintf(text, sizeof text,
           "b=%d s_q=%d heads=%d d=%d sk=%d topk=%d page_size=%d q_type=%d keys=%d index_kind=%d "
           "causal=%d visible_k=%d isa=%s threads=%d",
           a->b, a->s_q, a->heads, a->d, a->sk, a->topk, a->page_size, (int)a->q_type, (int)a->keys,
           (int)a->index_kind, a->causal, a->visible_k != NULL, amla_isa_name(o->isa), o->threads);
  return text;
}

#define FAIL(a, o, ...)                                                                            \
  do {                                                                                             \
    print_error("%s\n", describe(a, o));                                                           \
    fail_msg(__VA_ARGS__);                                                                         \
  } while (0)

static void create(harness_index_data *d, const amla_index_args *a, uint64_t seed, bool integers) {
  assert_true(harness_index_create(d, a, seed, integers));
}

static amla_options options_for(amla_isa isa, int32_t threads) {
  return make_options(AMLA_BACKEND_AUTO, AMLA_RESCALE_DEFAULT, isa, threads, 0);
}

/* The scratch is exactly as long as asked for, at an odd address, between guard bytes, all NaN. */
static amla_status try_index(const amla_index_args *a, const amla_options *o, amla_detail *detail) {
  size_t bytes;
  amla_status status = amla_index_scratch_bytes(a, o, &bytes, detail);
  if (status != AMLA_OK)
    return status;
  guarded scratch = guarded_create(bytes, 1);
  memset(guarded_data(&scratch), 0xff, bytes);
  status = amla_index_topk(a, o, guarded_data(&scratch), bytes, detail);
  const int damage = guarded_damage(&scratch);
  guarded_free(&scratch);
  if (damage)
    FAIL(a, o, "%d bytes written outside the scratch", damage);
  return status;
}

static void index_topk(const amla_index_args *a, const amla_options *o) {
  amla_detail detail;
  if (try_index(a, o, &detail) != AMLA_OK)
    FAIL(a, o, "%s", detail.text);
}

/* Calls check with every instruction set that runs here, on two threads. */
static void for_each_isa(void (*check)(const amla_options *options)) {
  for (int isa = AMLA_ISA_AUTO + 1; isa < AMLA_N_ISAS; isa++) {
    const amla_options o = options_for((amla_isa)isa, 2);
    if (can_run(o.isa))
      check(&o);
  }
}

/* ---- Against fp64 ---- */

static int32_t slot_of(const amla_index_args *a, int32_t sequence, int32_t j) {
  if (a->index_kind == AMLA_INDEX_POSITION)
    return j;
  if (a->page_size == 0)
    return sequence * a->sk + j;
  const int32_t columns = (a->sk + a->page_size - 1) / a->page_size;
  const int32_t width = a->max_pages > 0 ? a->max_pages : columns;
  return a->block_table[sequence * width + j / a->page_size] * a->page_size + j % a->page_size;
}

static void expect_list(const harness_index_data *d, const amla_options *o, int32_t sequence,
                        int32_t query, const int32_t *positions, int32_t n) {
  const amla_index_args *a = &d->args;
  const int32_t *got = d->indices + ((int64_t)sequence * a->s_q + query) * a->topk;
  for (int32_t i = 0; i < a->topk; i++) {
    const int32_t want = i < n ? slot_of(a, sequence, positions[i]) : -1;
    if (got[i] != want)
      FAIL(a, o, "indices[%d][%d][%d]=%d, want %d", sequence, query, i, got[i], want);
  }
}

/* Every score within its bound; the list is the exact choice by these scores; and by fp64 too if
 * `exact`, or wherever the bound leaves no doubt. */
static void check_query(const harness_index_data *d, const amla_options *o, int32_t sequence,
                        int32_t query, bool exact) {
  const amla_index_args *a = &d->args;
  const int32_t n = harness_index_visible(a, sequence, query);
  const float *scores = d->scores + ((int64_t)sequence * a->s_q + query) * a->sk;
  double *truth = calloc((size_t)n + 1, 8), *bounds = calloc((size_t)n + 1, 8),
         *got = calloc((size_t)n + 1, 8), widest = 0;
  int32_t *positions = calloc((size_t)a->topk + 1, 4), *by_truth = calloc((size_t)a->topk + 1, 4);
  assert_true(truth && bounds && got && positions && by_truth);
  harness_index_truth(d, sequence, query, truth, bounds);
  for (int32_t j = 0; j < n; j++) {
    got[j] = (double)scores[j];
    if (!(fabs(got[j] - truth[j]) <= (exact ? 0 : bounds[j])))
      FAIL(a, o, "score [%d][%d][%d] is %g, want %g, bound %g", sequence, query, j, got[j],
           truth[j], bounds[j]);
    widest = fmax(widest, bounds[j]);
  }
  for (int32_t j = n; j < a->sk; j++)
    if (scores[j] != -INFINITY)
      FAIL(a, o, "score [%d][%d][%d], which is not seen, is %g", sequence, query, j,
           (double)scores[j]);
  const int32_t chosen = spec_index_topk(n, got, a->topk, positions);
  expect_list(d, o, sequence, query, positions, chosen);
  assert_int_equal(spec_index_topk(n, truth, a->topk, by_truth), chosen);
  double worst_in = INFINITY, best_out = -INFINITY;
  for (int32_t j = 0, i = 0; j < n; j++) {
    const bool in = i < chosen && by_truth[i] == j;
    i += in;
    worst_in = in ? fmin(worst_in, truth[j]) : worst_in;
    best_out = in ? best_out : fmax(best_out, truth[j]);
  }
  if (exact || worst_in - best_out > 2 * widest)
    expect_list(d, o, sequence, query, by_truth, chosen);
  for (int32_t i = 0; i < chosen; i++)
    if (truth[positions[i]] < worst_in - 2 * widest)
      FAIL(a, o, "key %d, of score %g, is chosen; the %d-th best is %g", positions[i],
           truth[positions[i]], a->topk, worst_in);
  free(truth), free(bounds), free(got), free(positions), free(by_truth);
}

static void check_all(const amla_index_args *a, const amla_options *o, uint64_t seed,
                      bool integers) {
  harness_index_data d;
  create(&d, a, seed, integers);
  index_topk(&d.args, o);
  for (int32_t i = 0; i < a->b; i++)
    for (int32_t query = 0; query < a->s_q; query++)
      check_query(&d, o, i, query, integers);
  harness_index_free(&d);
}

static int32_t pick(uint64_t *seed, const int32_t *from, int n) {
  return from[random_below(seed, n)];
}

#define PICK(seed, ...)                                                                            \
  pick(seed, (const int32_t[]){__VA_ARGS__}, LENGTH(((const int32_t[]){__VA_ARGS__})))

enum { MAX_B = 3, MAX_S_Q = 3 };

/* A random problem; its lengths go where the last two arguments point. */
static amla_index_args random_args(uint64_t *seed, int32_t *lengths, int32_t *visible) {
  amla_index_args a =
      make_args(1 + random_below(seed, MAX_B), 1 + random_below(seed, MAX_S_Q),
                PICK(seed, 1, 3, 8, 9, 16, 20, 32, 40, 64), PICK(seed, 32, 96, 128),
                PICK(seed, 1, 23, 24, 25, 130, 311), PICK(seed, 1, 7, 64, 128, 400));
  a.page_size = PICK(seed, 0, 1, 2, 53, 64);
  a.keys = (amla_index_keys)random_below(seed, 3);
  a.q_type = (amla_dtype)PICK(seed, AMLA_F32, AMLA_BF16, AMLA_F16, AMLA_FP8_E4M3);
  a.index_kind = (amla_index_kind)random_below(seed, 2);
  if (random_below(seed, 2))
    a.q_stride_head = a.d + 8;
  if (random_below(seed, 2) && a.keys != AMLA_INDEX_KEYS_FP8_PAGE)
    a.k_stride_token = a.d + 36;
  if (a.page_size > 0 && random_below(seed, 2))
    a.max_pages = (a.sk + a.page_size - 1) / a.page_size + 2;
  for (int i = 0; i < a.b; i++)
    lengths[i] = random_below(seed, 4) ? random_below(seed, a.sk + 1) : a.sk;
  if (random_below(seed, 4))
    a.seqlens_k = lengths, a.seqlens_k_bytes = MAX_B * sizeof *lengths;
  for (int i = 0; i < a.b * a.s_q; i++)
    visible[i] = random_below(seed, (a.seqlens_k ? lengths[i / a.s_q] : a.sk) + 1);
  switch (random_below(seed, 3)) {
  case 0: a.causal = 1; break;
  case 1: a.visible_k = visible, a.visible_k_bytes = MAX_B * MAX_S_Q * sizeof *visible; break;
  default: break;
  }
  return a;
}

static void check_random(const amla_options *o) {
  int count = TEST_SLOW ? 50 : 150;
  uint64_t seed = 20;
  if (long_run())
    count = 3000;
  for (int t = 0; t < count; t++) {
    int32_t lengths[MAX_B], visible[MAX_B * MAX_S_Q];
    const amla_index_args a = random_args(&seed, lengths, visible);
    check_all(&a, o, (uint64_t)t, t % 2);
  }
}

static void matches_fp64(void **state) {
  (void)state;
  for_each_isa(check_random);
}

/* DeepSeek's shapes. Integers: thousands of ties at the threshold. */
static void check_real(const amla_options *o) {
  for (int keys = 0; keys < 3; keys++)
    for (int integers = 0; integers < 2; integers++) {
      amla_index_args a = make_args(1, 2, keys == 1 ? 32 : 64, 128, 2700, 2048);
      a.keys = (amla_index_keys)keys, a.page_size = 64, a.causal = 1;
      check_all(&a, o, 5, integers);
    }
}

static void real_shapes_match_fp64(void **state) {
  (void)state;
  for_each_isa(check_real);
}

/* What benchmarks ask finds what is wrong. */
static void the_harness_finds_flaws(void **state) {
  (void)state;
  const amla_options o = options_for(AMLA_ISA_AUTO, 1);
  amla_index_args a = make_args(1, 1, 8, 32, 100, 20);
  harness_index_data d;
  a.index_kind = AMLA_INDEX_POSITION;
  create(&d, &a, 16, false);
  index_topk(&d.args, &o);
  assert_null(harness_index_flaw(&d, 0, 0));
  const float score = d.scores[d.indices[4]];
  d.scores[d.indices[4]] = -1e6f;
  assert_string_equal(harness_index_flaw(&d, 0, 0), "a score is beyond its bound");
  d.scores[d.indices[4]] = score;
  const int32_t index = d.indices[4];
  d.indices[4] = d.indices[3];
  assert_string_equal(harness_index_flaw(&d, 0, 0), "the list is not so many positions that rise");
  d.indices[4] = index;
  int32_t gap = 0; /* a position between two listed ones goes in for the second */
  while (d.indices[gap] + 1 == d.indices[gap + 1])
    gap++;
  d.indices[gap + 1] = d.indices[gap] + 1;
  assert_string_equal(harness_index_flaw(&d, 0, 0), "a better key is not in the list");
  harness_index_free(&d);
}

/* ---- Threads, company, pools ---- */

/* A pool that runs tasks last to first. */
static void backwards(void *context, int32_t n, void (*task)(void *argument, int32_t i),
                      void *argument) {
  int32_t *calls = context;
  assert_true(n >= 2 && n <= calls[1] && ++calls[0] <= 2);
  for (int32_t i = n; i-- > 0;)
    task(argument, i);
}

static void expect_same(const harness_index_data *d, const amla_options *o, const int32_t *indices,
                        const float *scores, const char *what) {
  if (memcmp(d->indices, indices, d->args.indices_bytes) ||
      memcmp(d->scores, scores, d->args.scores_bytes))
    FAIL(&d->args, o, "other bits: %s", what);
}

static void check_threads(const amla_options *base) {
  static const int32_t lengths[] = {1700, 0, 24, 2500};
  amla_index_args a = make_args(4, 2, 64, 128, 2500, 100);
  a.page_size = 53, a.causal = 1, a.seqlens_k = lengths, a.seqlens_k_bytes = sizeof lengths;
  harness_index_data d;
  create(&d, &a, 6, false);
  amla_options o = *base;
  o.threads = 1;
  index_topk(&d.args, &o);
  int32_t *indices = malloc(d.args.indices_bytes);
  float *scores = malloc(d.args.scores_bytes);
  memcpy(indices, d.indices, d.args.indices_bytes);
  memcpy(scores, d.scores, d.args.scores_bytes);
  for (int t = 0; t < 12; t++) {
    static const int32_t threads[] = {2, 3, 4, 7, 16, 32};
    o.threads = threads[t / 2];
    int32_t calls[2] = {0, o.threads};
    o.parallel = t % 2 ? backwards : NULL;
    o.parallel_context = calls;
    memset(d.indices, 0x55, d.args.indices_bytes);
    memset(d.scores, 0x55, d.args.scores_bytes);
    index_topk(&d.args, &o);
    expect_same(&d, &o, indices, scores, o.parallel ? "pool" : "threads");
    assert_true(!o.parallel || calls[0] > 0);
  }
  o.parallel = NULL;
  for (int32_t i = 0; i < a.b; i++) { /* each sequence alone */
    const int64_t list = (int64_t)i * a.s_q * a.topk, row = (int64_t)i * a.s_q * a.sk;
    const int32_t columns = (a.sk + a.page_size - 1) / a.page_size;
    amla_index_args one = d.args;
    one.b = 1, one.seqlens_k += i, one.block_table += i * columns;
    one.weights += i * a.s_q * a.heads;
    one.q = (const uint16_t *)one.q + (int64_t)i * a.s_q * a.heads * a.d;
    one.q_bytes /= (size_t)a.b;
    one.indices += list, one.indices_bytes /= (size_t)a.b;
    one.scores += row, one.scores_bytes /= (size_t)a.b;
    memset(d.indices, 0x55, d.args.indices_bytes);
    memset(d.scores, 0x55, d.args.scores_bytes);
    index_topk(&one, &o);
    assert_memory_equal(d.indices + list, indices + list, one.indices_bytes);
    assert_memory_equal(d.scores + row, scores + row, one.scores_bytes);
  }
  free(indices), free(scores);
  harness_index_free(&d);
}

static void threads_and_company_change_no_bit(void **state) {
  (void)state;
  for_each_isa(check_threads);
}

/* More threads than any share has queries: lists of many parts, and ties across them. */
static void check_shared_ties(const amla_options *base) {
  amla_index_args a = make_args(1, 1, 64, 128, 4000, 1500);
  harness_index_data d;
  amla_options o = *base;
  create(&d, &a, 7, true);
  o.threads = 16;
  index_topk(&d.args, &o);
  check_query(&d, &o, 0, 0, true);
  for (int32_t j = 0; j < a.sk; j++) /* all alike: the first ones */
    memcpy((uint16_t *)d.k_stored + (int64_t)j * a.d, d.k_stored, (size_t)a.d * 2);
  index_topk(&d.args, &o);
  for (int32_t i = 0; i < a.topk; i++)
    assert_int_equal(d.indices[i], i);
  harness_index_free(&d);
}

static void ties_go_to_the_lower_position(void **state) {
  (void)state;
  for_each_isa(check_shared_ties);
}

/* ---- Numbers that are none ---- */

static void set_bf16_key(harness_index_data *d, int32_t j, float x) {
  uint16_t *row = (uint16_t *)d->k_stored + (int64_t)j * d->args.d;
  for (int32_t e = 0; e < d->args.d; e++)
    harness_store(row, AMLA_BF16, e, x);
}

/* Keys 3 and 9 are NaN, 5 is infinite; heads have positive q and weights, so its score is +inf, and
 * 7's, of which the negative is taken, 0. */
static void check_special(const amla_options *o) {
  static const int32_t heads[] = {1, 12, 20, 64}; /* behind the last one lie rows of padding */
  for (int h = 0; h < LENGTH(heads); h++) {
    amla_index_args a = make_args(1, 1, heads[h], 32, 40, 38);
    a.q_type = AMLA_F32, a.index_kind = AMLA_INDEX_POSITION;
    harness_index_data d;
    create(&d, &a, 8, false);
    for (int32_t i = 0; i < a.heads * a.d; i++)
      ((float *)d.q_stored)[i] = 1.0f + (float)(i % 3);
    for (int32_t i = 0; i < a.heads; i++)
      d.weights[i] = 0.5f + (float)(i % 2);
    set_bf16_key(&d, 3, NAN), set_bf16_key(&d, 9, NAN);
    set_bf16_key(&d, 5, INFINITY), set_bf16_key(&d, 7, -INFINITY);
    index_topk(&d.args, o);
    if (!isnan(d.scores[3]) || d.scores[5] != INFINITY || d.scores[7] != 0)
      FAIL(&a, o, "scores %g %g %g", (double)d.scores[3], (double)d.scores[5], (double)d.scores[7]);
    for (int32_t i = 0, j = 0; i < a.topk; i++, j++) {
      j += j == 3 || j == 9; /* all but these two */
      assert_int_equal(d.indices[i], j);
    }
    d.args.topk = 39, d.args.indices_bytes += 4;
    int32_t more[39];
    d.args.indices = more;
    index_topk(&d.args, o);
    assert_int_equal(more[3], 3); /* the first NaN before the second */
    assert_int_equal(more[8], 8);
    assert_int_equal(more[9], 10);
    d.args.topk = 1, d.args.indices_bytes = 4;
    index_topk(&d.args, o);
    assert_int_equal(more[0], 5);
    d.weights[0] = 0.0f; /* 0 * inf */
    index_topk(&d.args, o);
    assert_true(isnan(d.scores[5]));
    harness_index_free(&d);
  }
}

static void nan_ranks_last_and_infinity_first(void **state) {
  (void)state;
  for_each_isa(check_special);
}

/* What no query sees may hold anything: keys behind the length, pages and table entries. */
static void check_unseen(const amla_options *o) {
  int32_t length = 70;
  for (int keys = 0; keys < 3; keys++) {
    amla_index_args a = make_args(1, 1, 16, 64, 200, 20);
    a.keys = (amla_index_keys)keys, a.page_size = 32, a.seqlens_k = &length;
    a.seqlens_k_bytes = sizeof length;
    harness_index_data d;
    create(&d, &a, 9, false);
    index_topk(&d.args, o);
    int32_t want[20];
    float scores[70];
    memcpy(want, d.indices, sizeof want);
    memcpy(scores, d.scores, sizeof scores);
    uint64_t seed = 1;
    for (int32_t j = 70; j < 200; j++) { /* in their places: NaN, or any bytes */
      const int32_t page = d.block_table[j / 32], at = page * 32 + j % 32;
      if (keys == AMLA_INDEX_KEYS_BF16)
        set_bf16_key(&d, at, NAN);
      else if (keys == AMLA_INDEX_KEYS_FP8_TOKEN)
        memset((char *)d.k_stored + (int64_t)at * 68, (int)random_below(&seed, 256), 68);
      else
        memset((char *)d.k_stored + (int64_t)page * 32 * 68 + j % 32 * 64, 0x7f, 64);
    }
    for (int i = 3; i < 7; i++)
      d.block_table[i] = 2147480000;
    index_topk(&d.args, o);
    assert_memory_equal(want, d.indices, sizeof want);
    assert_memory_equal(scores, d.scores, sizeof scores);
    harness_index_free(&d);
  }
}

static void what_is_not_seen_may_hold_anything(void **state) {
  (void)state;
  for_each_isa(check_unseen);
}

/* ---- Formats and forms ---- */

/* Keys of every type have the scores of f32 keys of the same values, bit for bit. */
static void check_types(const amla_options *o) {
  enum { SK = 75, D = 96, HEADS = 21, STRIDE = 128 };
  static float f32[SK * STRIDE], want[2 * SK];
  static uint64_t room[SK * STRIDE / 2];
  amla_index_args a = make_args(1, 2, HEADS, D, SK, 30);
  harness_index_data d;
  int32_t lists[60];
  a.q_type = AMLA_F32;
  create(&d, &a, 12, false);
  for (int type = AMLA_F32; amla_dtype_name((amla_dtype)type); type++) {
    const bool is_block = harness_is_block((amla_dtype)type);
    if (type > AMLA_F16 && !is_block)
      continue;
    for (int i = 0; i < SK * STRIDE; i++)
      if (is_block && i % HARNESS_BLOCK == 0)
        harness_store_block(room, (amla_dtype)type, i, d.k + i % (SK * D - HARNESS_BLOCK));
      else if (!is_block)
        harness_store(room, (amla_dtype)type, i, d.k[i % (SK * D)]);
    for (int i = 0; i < SK * STRIDE; i++)
      f32[i] = harness_load(room, (amla_dtype)type, i);
    d.args.keys = AMLA_INDEX_KEYS_TYPED, d.args.k_stride_token = STRIDE;
    d.args.k_type = AMLA_F32, d.args.k = f32, d.args.k_bytes = sizeof f32;
    index_topk(&d.args, o);
    memcpy(want, d.scores, sizeof want), memcpy(lists, d.indices, sizeof lists);
    d.args.k_type = (amla_dtype)type, d.args.k = room, d.args.k_bytes = sizeof room;
    memset(d.scores, 0x55, sizeof want), memset(d.indices, 0x55, sizeof lists);
    index_topk(&d.args, o);
    expect_same(&d, o, lists, want, amla_dtype_name((amla_dtype)type));
  }
  harness_index_free(&d);
}

static void any_type_has_the_scores_of_f32(void **state) {
  (void)state;
  for_each_isa(check_types);
}

static void check_forms(const amla_options *o) {
  static const int32_t visible[] = {198, 199, 200};
  amla_index_args a = make_args(1, 3, 40, 96, 200, 50);
  harness_index_data d;
  a.page_size = 53, a.causal = 1, a.keys = AMLA_INDEX_KEYS_FP8_PAGE;
  create(&d, &a, 10, false);
  index_topk(&d.args, o);
  int32_t want[150], got[150];
  memcpy(want, d.indices, sizeof want);
  float *scores = malloc(d.args.scores_bytes);
  memcpy(scores, d.scores, d.args.scores_bytes);
  d.args.causal = 0, d.args.visible_k = visible, d.args.visible_k_bytes = sizeof visible;
  index_topk(&d.args, o); /* the same lengths, said otherwise */
  expect_same(&d, o, want, scores, "visible_k");

  unsigned char *records = malloc((size_t)(d.args.n_pages * 53 * 100)); /* the same keys */
  for (int64_t slot = 0; slot < d.args.n_pages * 53; slot++) {
    const unsigned char *page = (unsigned char *)d.k_stored + slot / 53 * 53 * 100;
    memcpy(records + slot * 100, page + slot % 53 * 96, 96);
    memcpy(records + slot * 100 + 96, page + 53 * 96 + slot % 53 * 4, 4);
  }
  d.args.keys = AMLA_INDEX_KEYS_FP8_TOKEN, d.args.k = records;
  index_topk(&d.args, o);
  expect_same(&d, o, want, scores, "records");

  d.args.scores = NULL; /* scores or not, and scores only */
  index_topk(&d.args, o);
  assert_memory_equal(d.indices, want, sizeof want);
  d.args.scores = d.scores, d.args.topk = 0, d.args.indices = NULL;
  memset(d.scores, 0x55, d.args.scores_bytes);
  index_topk(&d.args, o);
  assert_memory_equal(d.scores, scores, d.args.scores_bytes);

  d.args.topk = 50, d.args.indices = got, d.args.index_kind = AMLA_INDEX_POSITION;
  index_topk(&d.args, o);
  for (int i = 0; i < 150; i++)
    assert_int_equal(want[i], d.block_table[got[i] / 53] * 53 + got[i] % 53);
  free(records), free(scores);
  harness_index_free(&d);
}

static void forms_say_the_same(void **state) {
  (void)state;
  for_each_isa(check_forms);
}

/* bf16 q and its values in f32: the same bits. */
static void check_q_types(const amla_options *o) {
  amla_index_args a = make_args(2, 1, 12, 128, 90, 30);
  harness_index_data d;
  for (int type = AMLA_BF16; type <= AMLA_FP8_E4M3;
       type += type == AMLA_F16 ? AMLA_FP8_E4M3 - AMLA_F16 : 1) {
    a.q_type = (amla_dtype)type;
    create(&d, &a, 11, false);
    index_topk(&d.args, o);
    int32_t want[60];
    float scores[180];
    memcpy(want, d.indices, sizeof want);
    memcpy(scores, d.scores, sizeof scores);
    d.args.q = d.q, d.args.q_bytes = sizeof *d.q * 2 * 12 * 128, d.args.q_type = AMLA_F32;
    d.args.q_scales = NULL;
    index_topk(&d.args, o);
    expect_same(&d, o, want, scores, "q in f32");
    harness_index_free(&d);
  }
}

static void q_types_are_exact(void **state) {
  (void)state;
  for_each_isa(check_q_types);
}

/* ---- Few keys, or none ---- */

static void check_few(const amla_options *o) {
  static const int32_t lengths[] = {0, 5, 20, 21};
  amla_index_args a = make_args(4, 2, 8, 32, 30, 20);
  harness_index_data d;
  a.causal = 1, a.seqlens_k = lengths, a.seqlens_k_bytes = sizeof lengths;
  create(&d, &a, 12, false);
  index_topk(&d.args, o);
  for (int i = 0; i < 4; i++)
    for (int query = 0; query < 2; query++) {
      const int32_t n = lengths[i] - 1 + query > 0 ? lengths[i] - 1 + query : 0;
      for (int k = 0; n <= 20 && k < 20; k++)
        assert_int_equal(d.indices[(i * 2 + query) * 20 + k], k < n ? i * 30 + k : -1);
    }
  int32_t want[160]; /* also if scores are not wanted, and computed from 21 keys on */
  memcpy(want, d.indices, sizeof want);
  memset(d.indices, 0x55, sizeof want);
  d.args.scores = NULL;
  index_topk(&d.args, o);
  assert_memory_equal(want, d.indices, sizeof want);
  d.args.topk = INT32_MAX; /* no list is as long; nor is one wanted */
  d.args.b = 0;
  index_topk(&d.args, o);
  d.args.b = 4, d.args.topk = 20, d.args.sk = 0, d.args.k = NULL, d.args.seqlens_k = NULL;
  index_topk(&d.args, o);
  for (int i = 0; i < 160; i++)
    assert_int_equal(d.indices[i], -1);
  harness_index_free(&d);
}

static void few_keys_are_all_listed(void **state) {
  (void)state;
  for_each_isa(check_few);
}

static void scratch_depends_on_neither_batch_nor_length(void **state) {
  (void)state;
  const amla_options o = options_for(AMLA_ISA_AUTO, 4);
  amla_index_args a = make_args(1, 1, 64, 128, 1 << 17, 2048);
  size_t small, large;
  assert_int_equal(amla_index_scratch_bytes(&a, &o, &small, NULL), AMLA_OK);
  a.b = 500, a.s_q = 3, a.sk = 1 << 20;
  assert_int_equal(amla_index_scratch_bytes(&a, &o, &large, NULL), AMLA_OK);
  assert_int_equal(small, large);
  assert_true(small < 1000000);
}

/* A list of every key has room for a batch more behind the last one. */
static void scratch_has_room_for_the_longest_list(void **state) {
  (void)state;
  const amla_options o = options_for(AMLA_ISA_AUTO, 1);
  amla_index_args a = make_args(1, 1, 1, 32, INT32_MAX, INT32_MAX);
  size_t longest, shorter;
  assert_int_equal(amla_index_scratch_bytes(&a, &o, &longest, NULL), AMLA_OK);
  a.sk -= 64;
  assert_int_equal(amla_index_scratch_bytes(&a, &o, &shorter, NULL), AMLA_OK);
  assert_int_equal(longest - shorter, 2 * 2 * 64 * sizeof(int32_t)); /* lists, keys and positions */
}

/* ---- Environment ---- */

static void check_environment(const amla_options *o) {
  static const int modes[] = {FE_UPWARD, FE_DOWNWARD, FE_TOWARDZERO};
  amla_index_args a = make_args(1, 2, 64, 128, 1000, 100);
  harness_index_data d;
  create(&d, &a, 13, false);
  index_topk(&d.args, o);
  int32_t want[200];
  memcpy(want, d.indices, sizeof want);
  float *scores = malloc(d.args.scores_bytes);
  memcpy(scores, d.scores, d.args.scores_bytes);
  for (int m = 0; m < LENGTH(modes); m++) {
    fesetround(modes[m]);
    const amla_status status = try_index(&d.args, o, NULL);
    const int after = fegetround();
    fesetround(FE_TONEAREST);
    assert_true(status == AMLA_OK && after == modes[m]);
    expect_same(&d, o, want, scores, "rounding mode");
  }
  free(scores);
  harness_index_free(&d);
}

static void rounding_modes_change_no_bit(void **state) {
  (void)state;
  for_each_isa(check_environment);
}

/* ---- Kernels ---- */

static void check_e4m3(const amla_options *o) {
  const amla_index_ukr *u = amla_index_ukr_for(o->isa);
  uint8_t codes[256 + 16];
  float *got = alloc_floats(256);
  for (int skew = 0; skew < 16; skew += 5) {
    for (int i = 0; i < 256; i++)
      codes[skew + i] = (uint8_t)i;
    u->load_e4m3(256, codes + skew, got);
    for (int i = 0; i < 256; i++)
      if (!same_number(got[i], harness_e4m3((uint8_t)i)))
        fail_msg("isa=%s: e4m3 byte %d is %g", amla_isa_name(u->isa), i, (double)got[i]);
  }
  free(got);
}

static void every_fp8_byte_is_exact(void **state) {
  (void)state;
  for_each_isa(check_e4m3);
  assert_true(harness_e4m3(0x7e) == 448.0f && harness_e4m3(1) == 0x1p-9f);
  assert_true(harness_e4m3(0x38) == 1.0f && harness_e4m3(0xb8) == -1.0f);
}

/* A token's sum does not depend on its place; NaN and infinities go where they belong. */
static void check_weigh(const amla_options *o) {
  enum { N = 13, ROWS = 32, LANES = AMLA_INDEX_LANES };
  const amla_index_ukr *u = amla_index_ukr_for(o->isa);
  const amla_ukernels *kernels = amla_ukernels_select(o->isa);
  const int32_t shapes[] = {kernels->wide.rows, kernels->narrow.rows};
  uint64_t seed = 14;
  for (int t = 0; t < 200; t++) {
    const int32_t rows = shapes[t % 2], n = 1 + random_below(&seed, N);
    float *s = alloc_floats(N * ROWS), w[ROWS], scale[N], sum[N * LANES], alone[LANES];
    for (int i = 0; i < N * ROWS; i++)
      s[i] = random_below(&seed, 50) ? random_normal(&seed) : random_hostile(&seed);
    if (t % 5 == 0)
      s[random_below(&seed, n * rows)] = t % 2 ? NAN : INFINITY;
    for (int i = 0; i < ROWS; i++)
      w[i] = random_normal(&seed);
    for (int i = 0; i < N; i++)
      scale[i] = random_normal(&seed); /* negative ones too */
    for (int i = 0; i < N * LANES; i++)
      sum[i] = i < n * LANES ? 1.0f : 7.0f;
    const float *scales = t % 3 ? scale : NULL;
    u->weigh(n, rows, s, w, scales, sum);
    for (int j = 0; j < n; j++) {
      double want = LANES, got = 0, size = LANES;
      for (int r = 0; r < rows; r++) {
        const double x = (double)s[j * rows + r] * (scales ? (double)scale[j] : 1.0);
        want += (double)w[r] * (x < 0 ? 0 : x);
        size += fabs((double)w[r] * x);
      }
      for (int l = 0; l < LANES; l++)
        got += (double)sum[j * LANES + l];
      const bool overflows = size > 1e37;
      if (!overflows && !(isnan(want) ? isnan(got) : fabs(got - want) <= 1e-5 * size))
        fail_msg("isa=%s rows=%d: token %d sums to %g, want %g", amla_isa_name(u->isa), rows, j,
                 got, want);
      for (int l = 0; l < LANES; l++)
        alone[l] = 1.0f;
      float *row = alloc_floats(ROWS); /* aligned */
      memcpy(row, s + j * rows, (size_t)rows * sizeof *row);
      u->weigh(1, rows, row, w, scales ? scale + j : NULL, alone);
      free(row);
      for (int l = 0; l < LANES; l++)
        assert_true(same_number(alone[l], sum[j * LANES + l]));
    }
    for (int i = n * LANES; i < N * LANES; i++)
      assert_true(sum[i] == 7.0f);
    free(s);
  }
}

static void weighed_sums_are_right(void **state) {
  (void)state;
  for_each_isa(check_weigh);
}

/* ---- The list ---- */

typedef float sequence_fn(int i, uint64_t *seed);
static float rising(int i, uint64_t *seed) { return (void)seed, (float)i; }
static float falling(int i, uint64_t *seed) { return (void)seed, (float)-i; }
static float constant(int i, uint64_t *seed) { return (void)i, (void)seed, 2.0f; }
static float zeros(int i, uint64_t *seed) { return (void)seed, i % 3 ? 0.0f : -0.0f; }
static float few_values(int i, uint64_t *seed) { return (void)i, (float)random_below(seed, 4); }
static float any_normal(int i, uint64_t *seed) { return (void)i, random_normal(seed); }
static float hostile(int i, uint64_t *seed) {
  static const float special[] = {NAN, -NAN, INFINITY, -INFINITY, 0.0f, -0.0f};
  return i % 7 ? random_hostile(seed) : special[random_below(seed, LENGTH(special))];
}

static amla_index_list make_list(const amla_index_ukr *ukr, int32_t k, int32_t capacity) {
  amla_index_list list = {.ukr = ukr, .k = k, .capacity = capacity};
  list.keys = calloc((size_t)capacity, 4), list.positions = calloc((size_t)capacity, 4);
  assert_true(list.keys && list.positions);
  amla_index_list_clear(&list);
  return list;
}

static void check_sequence(const amla_index_ukr *ukr, sequence_fn *next, int n, int32_t k,
                           int32_t capacity, int parts) {
  uint64_t seed = (uint64_t)(n + k);
  float *scores = alloc_floats(n);
  double *wide = calloc((size_t)n, sizeof *wide);
  int32_t *want = calloc((size_t)k, sizeof *want);
  amla_index_list list = make_list(ukr, k, capacity), part = make_list(ukr, k, capacity);
  for (int i = 0; i < n; i++)
    wide[i] = (double)(scores[i] = next(i, &seed));
  for (int p = 0; p < parts; p++) {
    const int end = n * (p + 1) / parts;
    amla_index_list_clear(&part);
    for (int i = n * p / parts, m; i < end; i += m) {
      m = end - i < AMLA_INDEX_BATCH ? end - i : 1 + random_below(&seed, AMLA_INDEX_BATCH);
      amla_index_list_push(parts > 1 ? &part : &list, m, scores + i, i);
    }
    amla_index_list_append(&list, &part);
  }
  amla_index_list_finish(&list);
  const int32_t chosen = spec_index_topk(n, wide, k, want);
  assert_int_equal(list.n, chosen);
  for (int32_t i = 0; i < chosen; i++)
    if (list.positions[i] != want[i])
      fail_msg("n=%d k=%d capacity=%d parts=%d: entry %d is %d, want %d", n, k, capacity, parts, i,
               list.positions[i], want[i]);
  free(list.keys), free(list.positions), free(part.keys), free(part.positions);
  free(scores), free(wide), free(want);
}

static void check_lists(const amla_options *o) {
  static sequence_fn *const all[] = {rising,     falling,    constant, zeros,
                                     few_values, any_normal, hostile};
  static const int counts[] = {1, 63, 64, 65, 500, 2000}, ks[] = {1, 2, 63, 64, 100, 499, 2000};
  const amla_index_ukr *ukr = amla_index_ukr_for(o->isa);
  for (int s = 0; s < LENGTH(all); s++)
    for (int c = 0; c < LENGTH(counts); c++)
      for (int k = 0; k < LENGTH(ks); k++)
        for (int parts = 1; parts < 8; parts += 3) {
          check_sequence(ukr, all[s], counts[c], ks[k], ks[k] + AMLA_INDEX_BATCH, parts);
          check_sequence(ukr, all[s], counts[c], ks[k], 2 * ks[k] + AMLA_INDEX_BATCH, parts);
        }
}

static void lists_are_the_k_best(void **state) {
  (void)state;
  for_each_isa(check_lists);
}

/* ---- Refusals ---- */

static amla_index_args good;
static amla_options good_options;
static void *good_scratch;
static size_t good_scratch_bytes;

static void expect_refused(const char *what, const amla_index_args *a, const amla_options *o,
                           void *scratch, size_t bytes, amla_status want,
                           const char *const *words) {
  amla_detail d;
  const amla_status status = amla_index_topk(a, o, scratch, bytes, &d);
  if (status != want)
    fail_msg("%s: %s ('%s'), want %s", what, amla_status_name(status), d.text,
             amla_status_name(want));
  for (int i = 0; words[i]; i++)
    if (strstr(d.text, words[i]) == NULL)
      fail_msg("%s: '%s' does not contain '%s'", what, d.text, words[i]);
  assert_true(all_bytes_are(good.indices, good.indices_bytes, 0x55));
  assert_true(all_bytes_are(good.scores, good.scores_bytes, 0x55));
  assert_int_equal(amla_index_topk(a, o, scratch, bytes, NULL), want);
}

#define BAD_STATUS(change, status, ...)                                                            \
  do {                                                                                             \
    static const char *const words[] = {__VA_ARGS__, NULL};                                        \
    amla_index_args a = good;                                                                      \
    amla_options o = good_options;                                                                 \
    void *scratch = good_scratch;                                                                  \
    size_t scratch_bytes = good_scratch_bytes;                                                     \
    change;                                                                                        \
    expect_refused(#change, &a, &o, scratch, scratch_bytes, status, words);                        \
  } while (0)
#define BAD(change, ...) BAD_STATUS(change, AMLA_INVALID_ARGUMENT, __VA_ARGS__)

/* A paged problem of 2 sequences, 2 queries, 4 heads of 32, 100 keys in pages of 16. */
static void open_good(harness_index_data *d, amla_index_keys keys) {
  static const int32_t lengths[] = {100, 40};
  amla_index_args a = make_args(2, 2, 4, 32, 100, 10);
  a.page_size = 16, a.keys = keys, a.seqlens_k = lengths, a.seqlens_k_bytes = sizeof lengths;
  create(d, &a, 15, false);
  good = d->args;
  good_options = options_for(AMLA_ISA_AUTO, 1);
  assert_int_equal(amla_index_scratch_bytes(&good, &good_options, &good_scratch_bytes, NULL),
                   AMLA_OK);
  good_scratch = malloc(good_scratch_bytes);
}

static void close_good(harness_index_data *d) {
  free(good_scratch);
  harness_index_free(d);
}

static void bad_fields_are_refused(void **state) {
  (void)state;
  harness_index_data d;
  open_good(&d, AMLA_INDEX_KEYS_BF16);
  BAD(a.struct_bytes = 8, "args.struct_bytes=8", "INIT macro");
  BAD(a.struct_bytes = offsetof(amla_index_args, k_type) - 8, "args.struct_bytes=", "INIT macro");
  BAD(a.b = -1, "b=-1", ">= 0");
  BAD(a.s_q = 0, "s_q=0", ">= 1");
  BAD(a.heads = 0, "heads=0", ">= 1");
  BAD(a.heads = 65537, "heads=65537", "<= 65536");
  BAD(a.d = 0, "d=0", ">= 32");
  BAD(a.d = 48, "d=48", "multiple of 32");
  BAD(a.d = 65568, "d=65568", "<= 65536");
  BAD(a.sk = -1, "sk=-1", ">= 0");
  BAD(a.topk = -1, "topk=-1", ">= 0");
  BAD((a.topk = 0, a.scores = NULL), "topk=0", ">= 1", "scores");
  BAD(a.page_size = -1, "page_size=-1", ">= 0");
  BAD(a.max_pages = -1, "max_pages=-1", ">= 0");
  BAD(a.max_pages = 6, "max_pages=6", ">= 7", "sk=100");
  BAD(a.n_pages = -1, "n_pages=-1", ">= 0");
  BAD(a.page_size = 0, "n_pages=14", "must be 0", "contiguous");
  BAD((a.page_size = 0, a.n_pages = 0, a.max_pages = 7), "max_pages=7", "must be 0");
  BAD(a.q_type = AMLA_Q8_0, "q_type=3", "<= 2");
  BAD(a.q_type = (amla_dtype)7, "q_type=7", "<= 2");
  BAD(a.keys = (amla_index_keys)4, "keys=4", "<= 3");
  BAD(a.k_type = AMLA_F16, "k_type=f16", "unless keys is typed");
  BAD((a.keys = AMLA_INDEX_KEYS_TYPED, a.k_type = (amla_dtype)12), "k_type=12", "<= 11");
  BAD((a.keys = AMLA_INDEX_KEYS_TYPED, a.k_type = AMLA_Q8_0, a.k_stride_token = 40),
      "k_stride_token=40", "multiple of 32", "q8_0");
  BAD((a.keys = AMLA_INDEX_KEYS_TYPED, a.k_type = AMLA_Q4_0, a.k_stride_page = 1000),
      "k_stride_page=1000", "multiple of 32", "q4_0");
  BAD(a.index_kind = (amla_index_kind)2, "index_kind=2", "<= 1");
  BAD(a.causal = 2, "causal=2", "<= 1");
  BAD(a.n_pages = 1 << 28, "n_pages=268435456", "slots of 16", "int32");
  BAD((a.page_size = 0, a.n_pages = 0, a.sk = INT32_MAX), "b=2", "slots of 2147483647", "int32");
  BAD(a.q_stride_head = -1, "q_stride_head=-1", ">= 0");
  BAD(a.q_stride_query = -1, "q_stride_query=-1", ">= 0");
  BAD(a.q_stride_batch = -1, "q_stride_batch=-1", ">= 0");
  BAD(a.q_stride_batch = INT64_MAX, "q: its size", "overflows");
  BAD(a.q_stride_head = INT64_MAX, "q_stride_query", "overflows");
  BAD(a.k_stride_token = -1, "k_stride_token=-1", ">= 0");
  BAD(a.k_stride_token = 31, "k_stride_token=31", ">= 32");
  BAD(a.k_stride_page = -1, "k_stride_page=-1", ">= 0");
  BAD(a.k_stride_page = INT64_MAX, "k: its size", "overflows");
  BAD((a.k_stride_page = 1, a.k_stride_token = INT64_MAX / 2), "k: its size", "overflows");
  BAD((a.page_size = 1, a.n_pages = 200, a.max_pages = 100, a.k_stride_page = 32,
       a.k_stride_token = INT64_MAX),
      "k_stride_token=9223372036854775807", "overflows");
  BAD((a.s_q = 1 << 24, a.b = INT32_MAX, a.topk = INT32_MAX), "overflows");
  BAD((a.b = a.max_pages = INT32_MAX), "block_table: its size", "overflows");
  BAD((a.s_q = 1 << 24, a.b = 1 << 30, a.heads = 1 << 10, a.q_stride_head = 1, a.q_stride_query = 1,
       a.q_stride_batch = 1, a.topk = 0, a.sk = 0),
      "weights: its size", "overflows");
  BAD_STATUS(o.backend = AMLA_BACKEND_CUDA, AMLA_UNSUPPORTED, "backend=cuda", "cpu");
  BAD_STATUS(o.backend = AMLA_BACKEND_REF, AMLA_UNSUPPORTED, "backend=ref", "cpu");
  BAD(o.threads = -1, "threads=-1", ">= 0");
  BAD(o.isa = (amla_isa)99, "isa=99");
  size_t bytes = 77;
  amla_detail why;
  amla_index_args a = good;
  a.d = 33;
  assert_int_equal(amla_index_scratch_bytes(&a, NULL, &bytes, &why), AMLA_INVALID_ARGUMENT);
  assert_non_null(strstr(why.text, "d=33"));
  assert_true(bytes == 77);
  assert_int_equal(amla_index_scratch_bytes(&good, NULL, NULL, &why), AMLA_INVALID_ARGUMENT);
  assert_non_null(strstr(why.text, "scratch_bytes=NULL"));
  assert_int_equal(amla_index_topk(NULL, NULL, NULL, 0, &why), AMLA_INVALID_ARGUMENT);
  assert_non_null(strstr(why.text, "args=NULL"));
  close_good(&d);
}

static void bad_fp8_strides_are_refused(void **state) {
  (void)state;
  harness_index_data d;
  open_good(&d, AMLA_INDEX_KEYS_FP8_PAGE);
  BAD(a.k_stride_token = 36, "k_stride_token=36", "0 or d=32", "side by side");
  BAD(a.k_bytes--, "k_bytes=8063", ">= 8064");
  close_good(&d);
  open_good(&d, AMLA_INDEX_KEYS_FP8_TOKEN);
  BAD(a.k_stride_token = 35, "k_stride_token=35", ">= 36");
  BAD(a.k_stride_page = 577, "k_bytes=8064", ">= 8077");
  close_good(&d);
}

static void bad_memory_is_refused(void **state) {
  (void)state;
  static int32_t bad_length[] = {100, 101}, bad_visible[] = {100, 100, 41, 0};
  harness_index_data d;
  open_good(&d, AMLA_INDEX_KEYS_BF16);
  int32_t table[14];
  memcpy(table, d.block_table, sizeof table);
  table[9] = 14;
  BAD(a.q = NULL, "q=NULL", "1024 bytes");
  BAD(a.weights = NULL, "weights=NULL", "64 bytes");
  BAD(a.k = NULL, "k=NULL", "14336 bytes");
  BAD(a.block_table = NULL, "block_table=NULL", "56 bytes");
  BAD(a.indices = NULL, "indices=NULL", "160 bytes");
  BAD(a.q_bytes--, "q_bytes=1023", ">= 1024");
  BAD(a.weights_bytes--, "weights_bytes=63", ">= 64");
  BAD(a.k_bytes--, "k_bytes=14335", ">= 14336");
  BAD(a.block_table_bytes--, "block_table_bytes=55", ">= 56");
  BAD(a.seqlens_k_bytes--, "seqlens_k_bytes=7", ">= 8");
  BAD(a.indices_bytes--, "indices_bytes=159", ">= 160");
  BAD(a.scores_bytes--, "scores_bytes=1599", ">= 1600");
  BAD((a.visible_k = bad_visible, a.visible_k_bytes = 15), "visible_k_bytes=15", ">= 16");
  BAD((a.q_type = AMLA_FP8_E4M3, a.q_scales = d.weights, a.q_scales_bytes = 60),
      "q_scales_bytes=60", ">= 64");
  BAD(a.q_scales = d.weights, "q_scales=", "only fp8 q");
  BAD((a.visible_k = bad_visible, a.visible_k_bytes = 16, a.causal = 1),
      "visible_k=", "must be NULL when causal is 1");
  BAD((a.page_size = 0, a.n_pages = 0), "block_table=", "must be NULL", "contiguous");
  BAD(a.q = (const char *)a.q + 1, "q=", "aligned to 2");
  BAD(a.k = (const char *)a.k + 1, "k=", "aligned to 2");
  BAD(a.weights = (const float *)(const void *)((const char *)a.weights + 2),
      "weights=", "aligned to 4");
  BAD(a.indices = (int32_t *)(void *)((char *)a.indices + 2), "indices=", "aligned to 4");
  BAD(a.indices = (int32_t *)(void *)a.scores, "indices=", "must not overlap scores");
  BAD(a.indices = (int32_t *)d.q_stored, "indices=", "must not overlap q");
  BAD(a.scores = (float *)d.k_stored, "scores=", "must not overlap k");
  BAD((a.scores = NULL, a.indices = (int32_t *)(void *)d.k_stored),
      "indices=", "must not overlap k");
  BAD(a.seqlens_k = bad_length, "seqlens_k[1]=101", "[0, sk=100]");
  BAD((bad_length[1] = -1, a.seqlens_k = bad_length), "seqlens_k[1]=-1", "[0, sk=100]");
  BAD((a.visible_k = bad_visible, a.visible_k_bytes = 16), "visible_k[1][0]=41", "[0, 40]");
  BAD((bad_visible[1] = -1, a.visible_k = bad_visible, a.visible_k_bytes = 16),
      "visible_k[0][1]=-1", "[0, 100]");
  BAD(a.block_table = table, "block_table[1][2]=14", "n_pages=14");
  BAD((table[9] = -1, a.block_table = table), "block_table[1][2]=-1", "n_pages=14");
  BAD(scratch = NULL, "scratch=NULL", "must point to");
  BAD(scratch_bytes--, "scratch_bytes=", "amla_index_scratch_bytes");
  index_topk(&good, &good_options); /* and nothing was wrong with the rest */
  close_good(&d);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(matches_fp64),
      cmocka_unit_test(real_shapes_match_fp64),
      cmocka_unit_test(the_harness_finds_flaws),
      cmocka_unit_test(threads_and_company_change_no_bit),
      cmocka_unit_test(ties_go_to_the_lower_position),
      cmocka_unit_test(nan_ranks_last_and_infinity_first),
      cmocka_unit_test(what_is_not_seen_may_hold_anything),
      cmocka_unit_test(forms_say_the_same),
      cmocka_unit_test(any_type_has_the_scores_of_f32),
      cmocka_unit_test(q_types_are_exact),
      cmocka_unit_test(few_keys_are_all_listed),
      cmocka_unit_test(scratch_depends_on_neither_batch_nor_length),
      cmocka_unit_test(scratch_has_room_for_the_longest_list),
      cmocka_unit_test(rounding_modes_change_no_bit),
      cmocka_unit_test(every_fp8_byte_is_exact),
      cmocka_unit_test(weighed_sums_are_right),
      cmocka_unit_test(lists_are_the_k_best),
      cmocka_unit_test(bad_fields_are_refused),
      cmocka_unit_test(bad_fp8_strides_are_refused),
      cmocka_unit_test(bad_memory_is_refused),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
