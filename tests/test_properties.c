/* SPDX-License-Identifier: Apache-2.0
 *
 * What must hold whatever the numbers are, in every backend, instruction set and rescale mode: how
 * keys are split, paged or grouped in a batch does not matter; known transformations of the input
 * have known effects; extremes are exact; a number that is not finite stays where amla_plan_run
 * says. Bit-equality over threads is in test_threads.c.
 */
#include "test_run.h"
#include "harness/kv_rows.h"

#include "src/cpu/rescale.h"

#define AT(options, ...)                                                                           \
  do {                                                                                             \
    char what_[400];                                                                               \
    snprintf(what_, sizeof what_, __VA_ARGS__);                                                    \
    fail_msg("%s: %s", describe_options(options), what_);                                          \
  } while (0)

static void expect_same_rows(const harness_dataset *a, int64_t row_a, const harness_dataset *b,
                             int64_t row_b, int64_t count, const char *what,
                             const amla_options *options) {
  for (int64_t r = 0; r < count; r++)
    if (!same_row(a, row_a + r, b, row_b + r))
      AT(options, "%s: row %lld has other bits", what, (long long)(row_a + r));
}

static void expect_near(double got, double want, double tolerance, const char *what, int64_t row,
                        const amla_options *options) {
  if (!(fabs(got - want) <= tolerance))
    AT(options, "%s: row %lld: %.9g, want %.9g", what, (long long)row, got, want);
}

/* ---- How the keys are cut ---- */

static void check_splits(const amla_options *base) {
  static const int32_t splits[] = {
      AMLA_SPLIT_BY_LENGTH, AMLA_SPLIT_AUTO, 1, 96, 97, 500, 100000, INT32_MAX};
  const char *problem = "b=3,sq=2,h=5,sk=1300,dqk=80,dv=72,page=16,len=1300/97/640,dist=peaked:6";
  harness_dataset data;
  harness_truth truth;
  generate(&data, problem);
  compute_truth_of(&data, &truth);
  for (int i = 0; i < LENGTH(splits); i++) {
    amla_options options = *base;
    options.split_tokens = splits[i];
    run(&data, problem, &options);
    expect_within_bound(&data, &truth, problem, &options);
  }
  harness_truth_free(&truth);
  harness_free(&data);
}

static void splits_agree_within_the_bound(void **state) {
  (void)state;
  for_each_engine(check_splits);
}

/* The generator gives token j of a sequence the same values whatever the pages. */
static void check_page_sizes(const amla_options *options) {
  static const char *const pages[] = {"0", "1", "3", "64", "128", "1000"};
  harness_dataset first;
  for (int i = 0; i < LENGTH(pages); i++) {
    char problem[160];
    harness_dataset data;
    snprintf(problem, sizeof problem, "b=3,sq=2,h=9,sk=500,dqk=40,dv=33,len=ragged,page=%s",
             pages[i]);
    generate(&data, problem);
    run(&data, problem, options);
    if (i == 0) {
      first = data;
      continue;
    }
    expect_same_rows(&first, 0, &data, 0, n_rows(&data), problem, options);
    harness_free(&data);
  }
  harness_free(&first);
}

static void page_size_does_not_change_a_bit(void **state) {
  (void)state;
  for_each_engine(check_page_sizes);
}

/* The mask of a dataset without one, every key visible; value(i, j, length) is added to the scores
 * of query i and key j. */
static void add_mask(harness_dataset *d,
                     float (*value)(const amla_problem *p, int32_t i, int32_t j, int32_t length)) {
  amla_problem *p = &d->problem;
  p->mask_stride_query = p->sk;
  p->mask_stride_batch = (int64_t)p->s_q * p->sk;
  d->mask = malloc((size_t)(p->b * p->mask_stride_batch) * sizeof(uint16_t));
  assert_non_null(d->mask);
  for (int32_t s = 0; s < p->b; s++)
    for (int32_t i = 0; i < p->s_q; i++)
      for (int32_t j = 0; j < p->sk; j++)
        harness_store(d->mask, AMLA_F16, s * p->mask_stride_batch + (int64_t)i * p->sk + j,
                      value(p, i, j, d->seqlens_k[s]));
  d->tensors.mask = d->mask;
  d->tensors.mask_bytes = (size_t)(p->b * p->mask_stride_batch) * sizeof(uint16_t);
}

static float mask_nothing(const amla_problem *p, int32_t i, int32_t j, int32_t length) {
  (void)p, (void)i, (void)length;
  return j % 2 ? 0.0f : -0.0f;
}
static float mask_future(const amla_problem *p, int32_t i, int32_t j, int32_t length) {
  return j < length - p->s_q + i + 1 ? 0.0f : -INFINITY;
}
static float mask_everything(const amla_problem *p, int32_t i, int32_t j, int32_t length) {
  (void)p, (void)i, (void)j, (void)length;
  return -INFINITY;
}
static float mask_only_one(const amla_problem *p, int32_t i, int32_t j, int32_t length) {
  const int32_t n = length ? length : 1;
  return j == (i * 131 + p->sk) % n ? 1.5f : -INFINITY;
}

/* A mask of zeros changes nothing, and one that hides the future is causality. */
static void check_equal_masks(const amla_options *options) {
  static const char *const shape = "b=3,sq=3,h=20,sk=700,dqk=48,dv=32,len=700/0/2";
  static const struct {
    int with, without;
    float (*value)(const amla_problem *, int32_t, int32_t, int32_t);
  } rows[] = {{0, 0, mask_nothing}, {1, 1, mask_nothing}, {0, 1, mask_future}, {1, 1, mask_future}};
  for (int i = 0; i < LENGTH(rows); i++) {
    char problem[128];
    harness_dataset a, b;
    snprintf(problem, sizeof problem, "%s,causal=%d", shape, rows[i].with);
    generate(&a, problem);
    add_mask(&a, rows[i].value);
    run(&a, problem, options);
    snprintf(problem, sizeof problem, "%s,causal=%d", shape, rows[i].without);
    generate(&b, problem);
    run(&b, problem, options);
    if (options->backend != AMLA_BACKEND_REF || rows[i].value == mask_nothing)
      expect_same_rows(&b, 0, &a, 0, n_rows(&a), problem, options);
    harness_free(&a);
    harness_free(&b);
  }
}

static void equal_masks_have_the_same_bits(void **state) {
  (void)state;
  for_each_engine(check_equal_masks);
}

/* All hidden: 0 and -inf, whatever the keys hold. All but one hidden: that key's value and its
 * score. */
static void check_extreme_masks(const amla_options *options) {
  const char *problem = "b=2,sq=4,h=9,sk=500,dqk=40,dv=24,causal=0,len=500/311";
  harness_dataset d;
  harness_truth truth;
  generate(&d, problem);
  add_mask(&d, mask_everything);
  run(&d, problem, options);
  for (int64_t row = 0; row < n_rows(&d); row++)
    assert_true(((float *)d.lse)[row] == -INFINITY);
  for (size_t i = 0; i < d.tensors.out_bytes / sizeof(float); i++)
    assert_true(((float *)d.out)[i] == 0.0f);
  free(d.mask);
  add_mask(&d, mask_only_one);
  compute_truth_of(&d, &truth);
  run(&d, problem, options);
  expect_within_bound(&d, &truth, "one key left", options);
  harness_truth_free(&truth);
  harness_free(&d);
}

static float mask_seventh(const amla_problem *p, int32_t i, int32_t j, int32_t length) {
  (void)p, (void)i, (void)length;
  return j == 7 ? -INFINITY : 0.0f;
}
static float mask_nan(const amla_problem *p, int32_t i, int32_t j, int32_t length) {
  (void)p, (void)i, (void)length;
  return j == 7 ? -INFINITY : NAN;
}

/* A mask hides keys, not what is wrong with the others: NaN in q, in the only key left, in the mask
 * itself. */
static void check_masked_poison(const amla_options *options) {
  static const struct {
    float (*value)(const amla_problem *, int32_t, int32_t, int32_t);
    int in_q, in_kv;
  } rows[] = {{mask_seventh, 1, 0}, {mask_only_one, 0, 1}, {mask_nan, 0, 0}};
  for (int i = 0; i < LENGTH(rows); i++) {
    harness_dataset d;
    generate(&d, "b=1,h=20,sk=50,dqk=40,dv=24,causal=0,page=0,q=f32,kv=f32");
    add_mask(&d, rows[i].value);
    if (rows[i].in_q)
      ((float *)d.q)[3 * 40] = NAN; /* head 3 */
    for (int32_t j = 0; rows[i].in_kv && j < 50 * 40; j += 40)
      ((float *)d.kv)[j] = INFINITY;
    run(&d, "masked poison", options);
    for (int64_t row = 0; row < n_rows(&d); row++) {
      const bool poisoned = !rows[i].in_q || row == 3;
      if (isnan(((float *)d.lse)[row]) != poisoned && isfinite(((float *)d.lse)[row]) == poisoned)
        fail_msg("masked poison %d %s: row %lld has LSE %g", i, describe_options(options),
                 (long long)row, (double)((float *)d.lse)[row]);
    }
    harness_free(&d);
  }
}

static void masks_do_not_hide_poison(void **state) {
  (void)state;
  for_each_engine(check_masked_poison);
}

/* An f32 twin of a dataset: the same problem, the values of its keys. */
static harness_dataset f32_twin(const harness_dataset *d, const char *problem) {
  harness_dataset plain;
  char text[160];
  snprintf(text, sizeof text, "%s,kv=f32", problem);
  generate(&plain, text);
  for (int32_t s = 0; s < d->problem.b; s++)
    for (int64_t j = 0; j < d->seqlens_k[s]; j++)
      for (int32_t i = 0; i < d->problem.d_qk; i++)
        ((float *)plain.kv)[kv_token_offset(&plain, s, j) + i] =
            harness_load_kv(&d->problem, d->kv, kv_token_offset(d, s, j), i);
  return plain;
}

/* Quantised keys are what they stand for: the same bits as f32 keys of those values. Where rows of
 * bf16 read fp8_584, which it holds, they read those by kv_round. */
static void check_quantised(const amla_options *options) {
  static const char *const pages[] = {"0", "1", "64"};
  static const char *const kinds[] = {"dqk=96,dv=70,kv=q8_0",   "dqk=576,kv=fp8_656",
                                      "dqk=512,kv=fp8_584",     "dqk=576,kv=fp8_e4m3",
                                      "dqk=96,dv=70,kv=q4_0",   "dqk=96,dv=70,kv=q4_1",
                                      "dqk=96,dv=70,kv=q5_0",   "dqk=96,dv=70,kv=q5_1",
                                      "dqk=96,dv=70,kv=iq4_nl", "dqk=100,dv=70,kv=fp8_e4m3"};
  for (int i = 0; i < LENGTH(pages) * LENGTH(kinds); i++) {
    const char *kind = kinds[i / LENGTH(pages)];
    char problem[160], plain_problem[160];
    snprintf(problem, sizeof problem, "b=2,h=17,sk=300,page=%s,pad=32,len=300/97,%s",
             pages[i % LENGTH(pages)], kind);
    snprintf(plain_problem, sizeof plain_problem, "b=2,h=17,sk=300,page=%s,pad=32,len=300/97,%.*s",
             pages[i % LENGTH(pages)], (int)(strstr(kind, ",kv=") - kind), kind);
    harness_dataset quantised;
    generate(&quantised, problem);
    harness_dataset plain = f32_twin(&quantised, plain_problem);
    amla_options of_plain = *options;
    if (quantised.problem.kv_type == AMLA_FP8_584)
      of_plain.kv_round = AMLA_KV_BF16;
    run(&quantised, problem, options);
    run(&plain, problem, &of_plain);
    expect_same_rows(&plain, 0, &quantised, 0, n_rows(&plain), problem, options);
    harness_free(&quantised);
    harness_free(&plain);
  }
}

static void quantised_keys_are_their_values(void **state) {
  (void)state;
  for_each_engine(check_quantised);
}

/* Three keys in 13, the last one among them. */
static float mask_scattered(const amla_problem *p, int32_t i, int32_t j, int32_t length) {
  (void)p, (void)i;
  return j + 1 < length && j * 7919LL % 13 > 2 ? -INFINITY : 0.0f;
}

/* The list of what the mask leaves, in place of the mask. Returns its entries, to be freed. */
static int32_t *list_for_mask(harness_dataset *d) {
  amla_problem *p = &d->problem;
  int32_t *indices = malloc((size_t)p->b * (size_t)p->sk * sizeof *indices);
  assert_non_null(indices);
  for (int32_t s = 0; s < p->b; s++)
    for (int32_t j = 0, n = 0; j < p->sk; j++) {
      int32_t *list = indices + s * p->sk;
      list[j] = -1;
      if (j < d->seqlens_k[s] && mask_scattered(p, 0, j, d->seqlens_k[s]) == 0.0f)
        list[n++] = j;
    }
  p->topk = p->sk, p->index_kind = AMLA_INDEX_POSITION;
  p->mask_stride_batch = p->mask_stride_query = 0;
  d->tensors.mask = NULL, d->tensors.mask_bytes = 0;
  d->tensors.indices = indices;
  d->tensors.indices_bytes = (size_t)p->b * (size_t)p->sk * sizeof *indices;
  return indices;
}

/* Keys that a mask hides are no keys: the bits are those of a list of the others. */
static void check_scattered_masks(const amla_options *options) {
  static const char *const problems[] = {
      "b=2,sq=1,h=20,sk=1500,causal=0,dqk=40,dv=24,len=1500/517",
      "b=2,sq=1,h=3,sk=1500,causal=0,dqk=40,dv=24,page=16,len=900/64"};
  for (int i = 0; i < LENGTH(problems); i++) {
    harness_dataset masked, listed;
    generate(&masked, problems[i]);
    generate(&listed, problems[i]);
    add_mask(&masked, mask_scattered);
    int32_t *indices = list_for_mask(&listed);
    run(&masked, problems[i], options);
    run(&listed, problems[i], options);
    expect_same_rows(&listed, 0, &masked, 0, n_rows(&listed), problems[i], options);
    free(indices);
    harness_free(&masked);
    harness_free(&listed);
  }
}

static void masks_are_lists_of_keys(void **state) {
  (void)state;
  for_each_engine(check_scattered_masks);
}

/* What a scale of the cache may be is data: the rows that see its token are what an f32 cache of
 * those values makes them, NaN or not, and other sequences know nothing of it. */
static void check_stored_scales(const amla_options *options) {
  static const float scales[] = {NAN, INFINITY, 0.0f, -1.5f, 0x1p122f, 0x1p-140f};
  const char *plain_problem = "b=2,h=17,sk=130,dqk=576,len=130/40";
  for (int i = 0; i < LENGTH(scales) + 1; i++) {
    harness_dataset d;
    generate(&d, "b=2,h=17,sk=130,dqk=576,len=130/40,kv=fp8_656");
    unsigned char *row = (unsigned char *)d.kv + kv_token_offset(&d, 0, 77);
    if (i < LENGTH(scales))
      memcpy(row + 516, &scales[i], sizeof scales[i]); /* of elements 128 to 255 */
    else
      row[200] = 0xff; /* NaN */
    harness_dataset plain = f32_twin(&d, plain_problem);
    run(&d, "stored scales", options);
    run(&plain, "stored scales", options);
    const int64_t n = n_rows(&d) / 2;
    const bool must_be_nan = i < 2 || i == LENGTH(scales);
    expect_same_rows(&plain, n, &d, n, n, "another sequence's scales", options);
    for (int64_t r = 0; r < n; r++)
      if ((must_be_nan && !isnan(lse_at(&d, r))) || !same_number(lse_at(&d, r), lse_at(&plain, r)))
        fail_msg("scale %d: LSE of row %d is %g, of an f32 cache %g", i, (int)r,
                 (double)lse_at(&d, r), (double)lse_at(&plain, r));
    if (!isnan(lse_at(&d, 0)))
      expect_same_rows(&plain, 0, &d, 0, n, "a stored scale", options);
    harness_free(&d);
    harness_free(&plain);
  }
}

static void stored_scales_are_data(void **state) {
  (void)state;
  for_each_engine(check_stored_scales);
}

static void extreme_masks_are_exact(void **state) {
  (void)state;
  for_each_engine(check_extreme_masks);
}

/* Moves every page p to where pages[p] says, and tells the block table. */
static void permute_pages(harness_dataset *d, uint64_t seed) {
  const amla_problem *p = &d->problem;
  const size_t page_bytes = (size_t)p->kv_stride_page * harness_dtype_bytes(p->kv_type);
  char *moved = malloc(page_bytes * (size_t)p->n_pages);
  int32_t *pages = malloc((size_t)p->n_pages * sizeof *pages);
  assert_true(moved != NULL && pages != NULL);
  for (int32_t i = 0; i < p->n_pages; i++)
    pages[i] = i;
  for (int32_t i = (int32_t)p->n_pages - 1; i > 0; i--) {
    const int32_t other = random_below(&seed, i + 1), swap = pages[i];
    pages[i] = pages[other];
    pages[other] = swap;
  }
  for (int32_t i = 0; i < p->n_pages; i++)
    memcpy(moved + (size_t)pages[i] * page_bytes, (char *)d->kv + (size_t)i * page_bytes,
           page_bytes);
  memcpy(d->kv, moved, d->tensors.kv_bytes);
  for (int64_t i = 0; i < (int64_t)p->b * p->max_pages; i++)
    if (d->block_table[i] < p->n_pages)
      d->block_table[i] = pages[d->block_table[i]];
  free(moved);
  free(pages);
}

static void check_page_permutation(const amla_options *options) {
  const char *problem = "b=4,sq=1,h=17,sk=400,dqk=48,dv=32,page=16,len=ragged";
  harness_dataset a, b;
  generate(&a, problem);
  generate(&b, problem);
  permute_pages(&b, 5);
  assert_memory_not_equal(a.block_table, b.block_table, a.tensors.block_table_bytes);
  run(&a, problem, options);
  run(&b, problem, options);
  expect_same_rows(&a, 0, &b, 0, n_rows(&a), "pages permuted", options);
  harness_free(&a);
  harness_free(&b);
}

static void page_order_does_not_change_a_bit(void **state) {
  (void)state;
  for_each_engine(check_page_permutation);
}

/* Sequences of one problem that read the same page (a shared prefix). */
static void check_shared_pages(const amla_options *options) {
  const char *problem = "b=2,h=4,sk=200,dqk=24,dv=16,page=32,len=200/200,causal=0";
  harness_dataset d;
  generate(&d, problem);
  memcpy(d.block_table + d.problem.max_pages, d.block_table,
         (size_t)d.problem.max_pages * sizeof(int32_t));
  memcpy((char *)d.q + d.tensors.q_bytes / 2, d.q, d.tensors.q_bytes / 2);
  run(&d, problem, options);
  expect_same_rows(&d, 0, &d, 4, 4, "the same pages and queries twice", options);
  harness_free(&d);
}

static void pages_may_be_shared(void **state) {
  (void)state;
  for_each_engine(check_shared_pages);
}

/* ---- Batch company ---- */

/* A batch made of sequences of another one, in any order, any number of times. The KV cache stays
 * shared. */
static harness_dataset compose(const harness_dataset *from, int32_t n, const int32_t *which,
                               int32_t sk) {
  harness_dataset d = {.problem = from->problem, .options = from->options};
  const size_t q_row =
      (size_t)from->problem.q_stride_batch * harness_dtype_bytes(from->problem.q_type);
  const int64_t pages = from->problem.max_pages;
  d.problem.b = n;
  d.problem.sk = sk;
  d.q = harness_allocate(n, q_row);
  d.seqlens_k = harness_allocate(n, sizeof(int32_t));
  d.block_table = harness_allocate(n * pages, sizeof(int32_t));
  assert_true(d.q != NULL && d.seqlens_k != NULL && d.block_table != NULL);
  for (int32_t i = 0; i < n; i++) {
    memcpy((char *)d.q + (size_t)i * q_row, (const char *)from->q + (size_t)which[i] * q_row,
           q_row);
    memcpy(d.block_table + i * pages, from->block_table + which[i] * pages,
           (size_t)pages * sizeof(int32_t));
    d.seqlens_k[i] = from->seqlens_k[which[i]];
  }
  assert_true(harness_attach(&d));
  d.tensors.kv = from->kv;
  d.tensors.kv_bytes = from->tensors.kv_bytes;
  return d;
}

static void check_company(const harness_dataset *all, int32_t n, const int32_t *which, int32_t sk,
                          const amla_options *options) {
  const int64_t rows = (int64_t)all->problem.s_q * all->problem.h_q;
  harness_dataset d = compose(all, n, which, sk);
  run(&d, "some of a batch", options);
  for (int32_t i = 0; i < n; i++)
    expect_same_rows(all, which[i] * rows, &d, i * rows, rows, "a sequence in other company",
                     options);
  harness_free(&d);
}

static void check_batch(const amla_options *options) {
  static const int32_t reversed[] = {5, 4, 3, 2, 1, 0}, repeated[] = {2, 2, 5, 0, 2, 1, 2, 2, 3};
  const char *problem = "b=6,sq=2,h=70,sk=3000,dqk=24,dv=16,page=16,len=3000/0/1333/97/1/2048";
  harness_dataset all;
  generate(&all, problem);
  run(&all, problem, options);
  for (int32_t i = 0; i < 6; i++) { /* alone, also where the maximum length is its own */
    const int32_t own = all.seqlens_k[i] > 0 ? all.seqlens_k[i] : 1;
    check_company(&all, 1, &i, 3000, options);
    check_company(&all, 1, &i, own, options);
  }
  check_company(&all, LENGTH(reversed), reversed, 3000, options);
  check_company(&all, LENGTH(repeated), repeated, 3000, options);
  harness_free(&all);
}

static void batch_company_does_not_change_a_bit(void **state) {
  (void)state;
  for_each_engine(check_batch);
}

/* ---- Known effects ---- */

/* Rope dimension: behind the value, so that it moves scores only. These problems have one more key
 * dimension than values. */
static void set_q(harness_dataset *d, int32_t dim, float value) {
  for (int64_t row = 0; row < n_rows(d); row++)
    harness_store(d->q, d->problem.q_type, q_row_offset(&d->problem, row) + dim, value);
}
static void set_kv(harness_dataset *d, int32_t dim, float value) {
  for (int32_t s = 0; s < d->problem.b; s++)
    for (int64_t j = 0; j < d->seqlens_k[s]; j++)
      harness_store(d->kv, d->problem.kv_type, kv_token_offset(d, s, j) + dim, value);
}

static void check_added_constant(const amla_options *options) {
  const char *problem = "b=2,sq=2,h=11,sk=500,dqk=33,dv=32,scale=0.25,len=500/77";
  harness_dataset a, b;
  generate(&a, problem);
  generate(&b, problem);
  set_kv(&a, 32, 1.0f), set_kv(&b, 32, 1.0f);
  set_q(&a, 32, 0.0f), set_q(&b, 32, -64.0f); /* every logit falls by 16 */
  run(&a, problem, options);
  run(&b, problem, options);
  for (int64_t row = 0; row < n_rows(&a); row++) {
    expect_near((double)lse_at(&b, row), (double)lse_at(&a, row) - 16.0, 1e-5,
                "LSE after -16 on all logits", row, options);
    for (int32_t c = 0; c < 32; c++)
      expect_near((double)out_at(&b, row, c), (double)out_at(&a, row, c), 4e-5,
                  "O after -16 on all logits", row, options);
  }
  harness_free(&a);
  harness_free(&b);
}

static void a_constant_added_to_logits_moves_lse_only(void **state) {
  (void)state;
  for_each_engine(check_added_constant);
}

/* With q = 0 on the value's dimensions the value does not reach the scores: O scales exactly, LSE
 * keeps its bits. */
static void check_scaled_value(const amla_options *options) {
  static const int powers[] = {-60, -1, 1, 7, 100};
  const char *problem =
      "b=2,sq=1,h=6,sk=400,dqk=40,dv=32,q=f32,kv=f32,len=400/33,dist=rising:60,scale=0.3";
  for (int i = 0; i < LENGTH(powers); i++) {
    harness_dataset a, b;
    generate(&a, problem);
    generate(&b, problem);
    for (int32_t c = 0; c < 32; c++)
      set_q(&a, c, 0.0f), set_q(&b, c, 0.0f);
    for (int32_t s = 0; s < 2; s++)
      for (int64_t j = 0; j < b.seqlens_k[s]; j++)
        for (int32_t c = 0; c < 32; c++)
          ((float *)b.kv)[kv_token_offset(&b, s, j) + c] *= ldexpf(1.0f, powers[i]);
    run(&a, problem, options);
    run(&b, problem, options);
    for (int64_t row = 0; row < n_rows(&a); row++) {
      if (to_bits(lse_at(&a, row)) != to_bits(lse_at(&b, row)))
        AT(options, "V * 2^%d changes LSE", powers[i]);
      for (int32_t c = 0; c < 32; c++)
        if (to_bits(out_at(&b, row, c)) != to_bits(ldexpf(out_at(&a, row, c), powers[i])))
          AT(options, "V * 2^%d: O is %a, want %a * 2^%d", powers[i], (double)out_at(&b, row, c),
             (double)out_at(&a, row, c), powers[i]);
    }
    harness_free(&a);
    harness_free(&b);
  }
}

static void a_power_of_two_on_v_comes_out_exactly(void **state) {
  (void)state;
  for_each_engine(check_scaled_value);
}

/* The visible key with the largest score, in fp64. */
static int64_t best_key(const harness_dataset *d, int64_t row, double *score) {
  const amla_problem *p = &d->problem;
  const int32_t s = (int32_t)(row / p->h_q / p->s_q), query = (int32_t)(row / p->h_q % p->s_q);
  int64_t best = -1;
  for (int64_t j = 0; j < harness_visible(p, &d->tensors, s, query); j++) {
    double sum = 0;
    for (int32_t c = 0; c < p->d_qk; c++)
      sum += (double)harness_load(d->q, p->q_type, q_row_offset(p, row) + c) *
             (double)harness_load(d->kv, p->kv_type, kv_token_offset(d, s, j) + c);
    if (best < 0 || sum * (double)p->scale > *score)
      best = j, *score = sum * (double)p->scale;
  }
  return best;
}

static void check_one_hot(const amla_options *options) {
  const char *problem = "b=3,sq=2,h=4,sk=300,dqk=72,dv=64,len=300/2/120,dist=onehot";
  harness_dataset d;
  generate(&d, problem);
  run(&d, problem, options);
  for (int64_t row = 0; row < n_rows(&d); row++) {
    double score = 0;
    const int64_t j = best_key(&d, row, &score);
    expect_near((double)lse_at(&d, row), score, 1e-5 * fabs(score), "LSE of one key", row, options);
    for (int32_t c = 0; c < 64; c++) {
      const double v = (double)harness_load(d.kv, d.problem.kv_type,
                                            kv_token_offset(&d, (int32_t)(row / 8), j) + c);
      expect_near((double)out_at(&d, row, c), v, 1e-6 * fabs(v), "O of one key", row, options);
    }
  }
  harness_free(&d);
}

static void one_hot_attention_returns_the_value(void **state) {
  (void)state;
  for_each_engine(check_one_hot);
}

static void check_doubled_keys(const amla_options *options) {
  const char *once = "b=1,h=13,sk=331,dqk=40,dv=24,page=0,causal=0",
             *twice = "b=1,h=13,sk=662,dqk=40,dv=24,page=0,causal=0";
  harness_dataset a, b;
  generate(&a, once);
  generate(&b, twice);
  memcpy(b.kv, a.kv, a.tensors.kv_bytes);
  memcpy((char *)b.kv + a.tensors.kv_bytes, a.kv, a.tensors.kv_bytes);
  run(&a, once, options);
  run(&b, twice, options);
  for (int64_t row = 0; row < n_rows(&a); row++) {
    expect_near((double)lse_at(&b, row), (double)lse_at(&a, row) + log(2), 2e-6,
                "LSE of doubled keys", row, options);
    for (int32_t c = 0; c < 24; c++)
      expect_near((double)out_at(&b, row, c), (double)out_at(&a, row, c), 2e-6, "O of doubled keys",
                  row, options);
  }
  harness_free(&a);
  harness_free(&b);
}

static void doubled_keys_add_ln_2_to_lse(void **state) {
  (void)state;
  for_each_engine(check_doubled_keys);
}

/* A sink s takes exp(s) of the weight and leaves LSE alone. */
static void check_sinks(const amla_options *options) {
  const char *with = "b=2,sq=2,h=9,sk=150,dqk=40,dv=24,len=150/1,sinks=1",
             *without = "b=2,sq=2,h=9,sk=150,dqk=40,dv=24,len=150/1";
  harness_dataset a, b;
  generate(&a, without);
  generate(&b, with);
  b.sinks[0] = -INFINITY; /* no sink at all */
  run(&a, without, options);
  run(&b, with, options);
  for (int64_t row = 0; row < n_rows(&a); row++) {
    if (to_bits(lse_at(&a, row)) != to_bits(lse_at(&b, row)))
      AT(options, "a sink changes LSE in row %lld", (long long)row);
    const double factor = lse_at(&a, row) == -INFINITY
                              ? 1
                              : 1 / (1 + exp((double)b.sinks[row % 9] - (double)lse_at(&a, row)));
    for (int32_t c = 0; c < 24; c++)
      expect_near((double)out_at(&b, row, c), factor * (double)out_at(&a, row, c),
                  2e-6 * fabs((double)out_at(&a, row, c)), "sink", row, options);
  }
  harness_free(&a);
  harness_free(&b);
}

static void sinks_scale_o_and_leave_lse(void **state) {
  (void)state;
  for_each_engine(check_sinks);
}

/* One key takes all and its score is summed from equal products, so that roundings pile up: O is
 * exact. LSE is wrong by more than the dot product's part of its bound, and a sink hands that on to
 * out. */
static void check_sink_under_lse_error(const amla_options *options) {
  const char *problem = "b=1,h=8,sk=1,dqk=576,dv=1,q=f32,kv=f32,page=0,causal=0,scale=1,sinks=1";
  harness_dataset d;
  harness_truth truth;
  generate(&d, problem);
  for (int32_t i = 0; i < 576; i++)
    ((float *)d.kv)[i] = 0.7f;
  for (int32_t h = 0; h < d.problem.h_q; h++) {
    const float x = 1.0f + 0.0123f * (float)h;
    for (int32_t i = 0; i < 576; i++)
      ((float *)d.q)[h * 576 + i] = x;
    d.sinks[h] = 0.7f * 576 * x + 3.0f;
  }
  compute_truth_of(&d, &truth);
  run(&d, problem, options);
  expect_within_bound(&d, &truth, problem, options);
  harness_truth_free(&truth);
  harness_free(&d);
}

static void an_lse_error_reaches_out_through_the_sink(void **state) {
  (void)state;
  for_each_engine(check_sink_under_lse_error);
}

static void check_lse_base(const amla_options *options) {
  harness_dataset a, b;
  generate(&a, "b=2,h=9,sk=150,dqk=40,dv=24,len=150/0,lse=e");
  generate(&b, "b=2,h=9,sk=150,dqk=40,dv=24,len=150/0,lse=2");
  run(&a, "lse=e", options);
  run(&b, "lse=2", options);
  assert_memory_equal(a.out, b.out, a.tensors.out_bytes);
  for (int64_t row = 0; row < n_rows(&a); row++) {
    if (row >= 9)
      assert_true(lse_at(&a, row) == -INFINITY && lse_at(&b, row) == -INFINITY);
    else
      expect_near((double)lse_at(&b, row) * log(2), (double)lse_at(&a, row), 2e-6, "LSE base 2",
                  row, options);
  }
  harness_free(&a);
  harness_free(&b);
}

static void lse_base_2_is_lse_over_ln_2(void **state) {
  (void)state;
  for_each_engine(check_lse_base);
}

/* ---- Extremes ---- */

static void check_hard_distributions(const amla_options *options) {
  static const char *const problems[] = {
      "b=1,h=20,sk=1500,dqk=72,dv=64,dist=rising",
      "b=1,h=20,sk=1500,dqk=72,dv=64,dist=rising:5000",
      "b=2,h=20,sk=1500,dqk=72,dv=64,dist=outlier:300,len=1500/97",
      "b=1,h=3,sk=700,dqk=72,dv=64,dist=zerov,kv=f16,out=f16",
      "b=1,h=8,sk=1024,dqk=72,dv=64,dist=uniform:0.001",
      "b=1,h=8,sk=1024,dqk=72,dv=64,dist=peaked:40"};
  for (int i = 0; i < LENGTH(problems); i++)
    check_problem(problems[i], options);
}

static void hard_distributions_are_within_the_bound(void **state) {
  (void)state;
  for_each_engine(check_hard_distributions);
}

static void check_masked(const amla_options *options) {
  static const char *const outs[] = {"f32", "bf16", "f16"};
  for (int i = 0; i < LENGTH(outs); i++) {
    char problem[160];
    harness_dataset d;
    snprintf(problem, sizeof problem, "b=6,sq=5,h=7,sk=64,dqk=40,dv=24,dist=masked,sinks=1,out=%s",
             outs[i]);
    generate(&d, problem);
    run(&d, problem, options);
    int64_t empty = 0;
    for (int64_t row = 0; row < n_rows(&d); row++) {
      const bool sees_none =
          harness_visible(&d.problem, &d.tensors, (int32_t)(row / 35), (int32_t)(row / 7 % 5)) == 0;
      empty += sees_none;
      if (sees_none != (lse_at(&d, row) == -INFINITY))
        AT(options, "row %lld: LSE is %g", (long long)row, (double)lse_at(&d, row));
      for (int32_t c = 0; sees_none && c < 24; c++)
        if (to_bits(out_at(&d, row, c)) != 0)
          AT(options, "row %lld without keys: O is %g", (long long)row, (double)out_at(&d, row, c));
    }
    assert_true(empty > 0 && empty < n_rows(&d));
    harness_free(&d);
  }
}

static void rows_without_keys_are_zero_and_minus_inf(void **state) {
  (void)state;
  for_each_engine(check_masked);
}

/* Columns of zeros stay exactly zero while O is rescaled; columns zero at first (the hazard) are
 * right. */
static void check_zero_columns(const amla_options *options) {
  const char *problem = "b=1,h=9,sk=800,dqk=72,dv=64,dist=zerov";
  harness_dataset d;
  generate(&d, problem);
  run(&d, problem, options);
  for (int64_t row = 0; row < n_rows(&d); row++)
    for (int32_t c = 0; c < 64; c++) {
      const float x = out_at(&d, row, c);
      if (c % 8 < 2 ? x != 0.0f : x == 0.0f)
        AT(options, "row %lld column %d is %g", (long long)row, c, (double)x);
    }
  harness_free(&d);
  check_problem(problem, options);
}

static void zero_columns_stay_zero(void **state) {
  (void)state;
  for_each_engine(check_zero_columns);
}

/* q of +0 and -0: every key weighs the same. */
static void check_zero_queries(const amla_options *options) {
  const char *problem = "b=1,h=2,sk=300,dqk=24,dv=16,causal=0";
  harness_dataset d;
  generate(&d, problem);
  for (int32_t c = 0; c < 24; c++)
    set_q(&d, c, c % 2 ? 0.0f : -0.0f);
  run(&d, problem, options);
  for (int64_t row = 0; row < 2; row++) {
    expect_near((double)lse_at(&d, row), log(300), 1e-6, "LSE of equal keys", row, options);
    for (int32_t c = 0; c < 16; c++) {
      double mean = 0;
      for (int64_t j = 0; j < 300; j++)
        mean += (double)harness_load(d.kv, d.problem.kv_type, kv_token_offset(&d, 0, j) + c) / 300;
      expect_near((double)out_at(&d, row, c), mean, 1e-6, "mean of equal keys", row, options);
    }
  }
  for (int32_t c = 0; c < 24; c++)
    set_kv(&d, c, c % 2 ? 0.0f : -0.0f); /* and keys of +0 and -0 */
  run(&d, problem, options);
  for (int64_t row = 0; row < 2; row++)
    for (int32_t c = 0; c < 16; c++)
      expect_near((double)out_at(&d, row, c), 0, 0, "zero keys", row, options);
  harness_free(&d);
}

static void signed_zeros_are_zeros(void **state) {
  (void)state;
  for_each_engine(check_zero_queries);
}

/* Subnormal numbers of each type: f16's are ordinary in f32 and count in full. */
static void check_subnormals(const amla_options *options) {
  static const struct {
    const char *type;
    int exponent;
  } kinds[] = {{"f16", -24}, {"bf16", -133}, {"f32", -149}};
  for (int k = 0; k < LENGTH(kinds); k++) {
    char problem[160];
    harness_dataset d;
    harness_truth truth;
    uint64_t seed = 4;
    snprintf(problem, sizeof problem, "b=1,h=5,sk=200,dqk=24,dv=16,q=f32,kv=%s", kinds[k].type);
    generate(&d, problem);
    for (int64_t j = 0; j < 200; j++)
      for (int32_t c = 0; c < 24; c++)
        harness_store(d.kv, d.problem.kv_type, kv_token_offset(&d, 0, j) + c,
                      ldexpf((float)(random_below(&seed, 200) - 100), kinds[k].exponent));
    compute_truth_of(&d, &truth);
    run(&d, problem, options);
    expect_within_bound(&d, &truth, problem, options);
    if (k == 0) /* the bound's absolute part does not hide an f16 subnormal: 1e-6 of 2^-24 is far
                   above 2^-120 */
      for (int32_t c = 0; c < 16; c++)
        expect_near((double)out_at(&d, 0, c), truth.out[c], 1e-6 * truth.out_abs[c],
                    "f16 subnormals", 0, options);
    harness_truth_free(&truth);
    harness_free(&d);
  }
}

static void subnormal_numbers_are_handled(void **state) {
  (void)state;
  for_each_engine(check_subnormals);
}

/* Scores near 2^110, values near 2^100: the last key takes all, exactly. */
static void check_huge(const amla_options *options) {
  const char *problem = "b=1,h=3,sk=250,dqk=17,dv=16,q=f32,kv=f32,causal=0,scale=1";
  harness_dataset d;
  generate(&d, problem);
  for (int32_t c = 0; c < 16; c++)
    set_q(&d, c, 0.0f);
  set_q(&d, 16, 0x1p50f);
  for (int64_t j = 0; j < 250; j++) {
    float *row = (float *)d.kv + kv_token_offset(&d, 0, j);
    for (int32_t c = 0; c < 16; c++)
      row[c] *= 0x1p100f;
    row[16] = 0x1p52f * (float)(j + 1);
  }
  run(&d, problem, options);
  for (int64_t row = 0; row < 3; row++) {
    expect_near((double)lse_at(&d, row), 0x1p102 * 250, 0x1p102 * 250 * 2e-7, "LSE of huge scores",
                row, options);
    for (int32_t c = 0; c < 16; c++) {
      const double v = (double)((float *)d.kv)[kv_token_offset(&d, 0, 249) + c];
      expect_near((double)out_at(&d, row, c), v, 1e-6 * fabs(v), "O of huge scores", row, options);
    }
  }
  harness_free(&d);
}

static void huge_numbers_are_handled(void **state) {
  (void)state;
  for_each_engine(check_huge);
}

/* ---- Values at the top of f32: every finite V has its right result, in every mode
 * ------------------------------------ */

/* Keys of d_qk = 2, d_v = 1 whose score is k[1], in natural units; the result must be within the
 * bound, and all of it judged. */
static void expect_right(const char *what, int32_t n, const float *kv,
                         const amla_options *options) {
  static const char *const shape = "b=1,h=1,dqk=2,dv=1,q=f32,kv=f32,page=0,causal=0,scale=1";
  char problem[128];
  harness_dataset d;
  harness_truth truth;
  snprintf(problem, sizeof problem, "%s,sk=%d", shape, n);
  generate(&d, problem);
  set_q(&d, 0, 0.0f);
  set_q(&d, 1, 1.0f);
  memcpy(d.kv, kv, (size_t)n * 2 * sizeof *kv);
  compute_truth_of(&d, &truth);
  run(&d, problem, options);
  expect_within_bound(&d, &truth, what, options);
  assert_true(harness_compare(&d, &truth).unjudged == 0);
  if (isfinite(truth.out[0]) && fabs(truth.out[0]) < 3.4e38 && !isfinite(out_at(&d, 0, 0)))
    AT(options, "%s: O is %g, want %g", what, (double)out_at(&d, 0, 0), truth.out[0]);
  harness_truth_free(&truth);
  harness_free(&d);
}

/* A score just below tau above the reference: lazy lets P grow to 2^tau there. */
static void check_one_large_value(const amla_options *options) {
  float kv[200 * 2] = {0};
  kv[150 * 2] = 3e36f;
  kv[150 * 2 + 1] = 5.4f;
  expect_right("3e36 at 5.4", 200, kv, options);
}

static void one_large_value_is_right(void **state) {
  (void)state;
  for_each_engine(check_one_large_value);
}

/* 2e38 twice; then signs that alternate by key, by tile and by split, at equal scores, at scores
 * that fall, and at scores that rise so fast that each key takes all: inf, inf - inf and inf * 0 in
 * turn, where a sum leaves f32. */
static void check_largest_values(const amla_options *base) {
  enum { N = 700 };
  static const float slopes[] = {0.0f, -0.02f, 0.011f, 1.5f};
  static const int32_t splits[] = {AMLA_SPLIT_BY_LENGTH, 1};
  float kv[N * 2] = {2e38f, 0, 2e38f, 0};
  expect_right("2e38 twice", 2, kv, base);
  for (int t = 0; t < 4 * LENGTH(slopes) * LENGTH(splits); t++) {
    const int32_t same = (int32_t[]){N, 1, 96, 192}[t % 4]; /* keys of one sign */
    amla_options options = *base;
    options.split_tokens = splits[t / 4 / LENGTH(slopes)];
    for (int32_t j = 0; j < N; j++) {
      kv[2 * j] = j / same % 2 ? -0x1.cp127f : 0x1.cp127f; /* few bits: no rounding piles up */
      kv[2 * j + 1] = slopes[t / 4 % LENGTH(slopes)] * (float)j;
    }
    char what[64];
    snprintf(what, sizeof what, "3e38, %d of a sign, slope %g", same, (double)kv[3]);
    expect_right(what, N, kv, &options);
  }
}

static void the_largest_values_are_right(void **state) {
  (void)state;
  for_each_engine(check_largest_values);
}

/* ---- Numbers that are not finite ---- */

static const float poisons[] = {NAN, INFINITY, -INFINITY};
static const char *const poison_problem =
    "b=3,sq=3,h=6,sk=260,dqk=40,dv=24,page=16,len=260/100/200,causal=1";

static void check_poisoned_query(const amla_options *options) {
  harness_dataset clean, d;
  generate(&clean, poison_problem);
  run(&clean, poison_problem, options);
  for (int t = 0; t < 9; t++) {
    const int64_t hit = (t * 17) % n_rows(&clean);
    generate(&d, poison_problem);
    harness_store(d.q, d.problem.q_type, q_row_offset(&d.problem, hit) + (t * 7) % 40,
                  poisons[t % 3]);
    run(&d, poison_problem, options);
    for (int64_t row = 0; row < n_rows(&d); row++) {
      if (row != hit)
        expect_same_rows(&clean, row, &d, row, 1, "poison in another query", options);
      for (int32_t c = 0; row == hit && c < 24; c++)
        if (isfinite(out_at(&d, row, c)) || isfinite(lse_at(&d, row)))
          AT(options, "q has %g in row %lld, O has %g", (double)poisons[t % 3], (long long)row,
             (double)out_at(&d, row, c));
    }
    harness_free(&d);
  }
  harness_free(&clean);
}

static void poison_in_a_query_stays_in_its_row(void **state) {
  (void)state;
  for_each_engine(check_poisoned_query);
}

/* Token `hit` of sequence 1: rows that see it are not finite; other sequences keep their bits. */
static void check_poisoned_key(const amla_options *options) {
  /* Of 100: the last two are hidden from some queries. */
  static const int64_t tokens[] = {0, 50, 97, 98, 99};
  harness_dataset clean, d;
  generate(&clean, poison_problem);
  run(&clean, poison_problem, options);
  for (int t = 0; t < LENGTH(tokens) * 3; t++) {
    const int64_t hit = tokens[t / 3];
    generate(&d, poison_problem);
    harness_store(d.kv, d.problem.kv_type, kv_token_offset(&d, 1, hit) + (t * 11) % 40,
                  poisons[t % 3]);
    run(&d, poison_problem, options);
    for (int64_t row = 0; row < n_rows(&d); row++) {
      const int32_t sequence = (int32_t)(row / 18), query = (int32_t)(row / 6 % 3);
      if (sequence != 1)
        expect_same_rows(&clean, row, &d, row, 1, "poison in another sequence", options);
      else if (hit < harness_visible(&d.problem, &d.tensors, 1, query))
        for (int32_t c = 0; c < 24; c++)
          if (isfinite(out_at(&d, row, c)))
            AT(options, "token %lld has %g, query %d sees it, O has %g", (long long)hit,
               (double)poisons[t % 3], query, (double)out_at(&d, row, c));
    }
    harness_free(&d);
  }
  harness_free(&clean);
}

static void poison_in_a_key_stays_in_its_sequence(void **state) {
  (void)state;
  for_each_engine(check_poisoned_key);
}

/* All that lies outside the lengths, as NaN (the generator's) and as zeros. */
static void check_unused(const amla_options *options) {
  harness_dataset nan, zero;
  generate(&nan, poison_problem);
  generate(&zero, poison_problem);
  memset(zero.kv, 0, zero.tensors.kv_bytes);
  for (int32_t s = 0; s < 3; s++)
    for (int64_t j = 0; j < nan.seqlens_k[s]; j++) {
      const size_t at = (size_t)kv_token_offset(&nan, s, j) * 2;
      memcpy((char *)zero.kv + at, (char *)nan.kv + at, 40 * 2);
    }
  for (int64_t i = 0; i < 3LL * nan.problem.max_pages; i++)
    if (nan.block_table[i] == 2147480000)
      zero.block_table[i] = -5;
  assert_memory_not_equal(nan.kv, zero.kv, nan.tensors.kv_bytes);
  assert_memory_not_equal(nan.block_table, zero.block_table, nan.tensors.block_table_bytes);
  run(&nan, poison_problem, options);
  run(&zero, poison_problem, options);
  expect_same_rows(&nan, 0, &zero, 0, n_rows(&nan), "unused slots", options);
  for (int64_t row = 0; row < n_rows(&nan); row++)
    if (!row_is_finite(&nan, row))
      AT(options, "row %lld is not finite", (long long)row);
  harness_free(&nan);
  harness_free(&zero);
}

static void unused_slots_and_entries_are_never_read(void **state) {
  (void)state;
  for_each_engine(check_unused);
}

/* A score beyond f32 counts as infinite: its row is NaN, the others keep their bits. */
static void check_overflowing_score(const amla_options *options) {
  const char *problem = "b=1,sq=1,h=4,sk=130,dqk=24,dv=16,q=f32,kv=f32,scale=1";
  harness_dataset clean, d;
  for (int sign = -1; sign <= 1; sign += 2) {
    generate(&clean, problem);
    set_kv(&clean, 20, 0x1p100f);
    set_q(&clean, 20, 0.0f);
    generate(&d, problem);
    set_kv(&d, 20, 0x1p100f);
    set_q(&d, 20, 0.0f);
    ((float *)d.q)[q_row_offset(&d.problem, 2) + 20] = (float)sign * 0x1p100f;
    run(&clean, problem, options);
    run(&d, problem, options);
    for (int64_t row = 0; row < 4; row++) {
      if (row != 2)
        expect_same_rows(&clean, row, &d, row, 1, "another row's score overflows", options);
      else if (!isnan(out_at(&d, row, 3)))
        AT(options, "a score of %s2^200 gives %g", sign < 0 ? "-" : "", (double)out_at(&d, row, 3));
    }
    harness_free(&clean);
    harness_free(&d);
  }
}

static void a_score_beyond_f32_gives_a_nan_row(void **state) {
  (void)state;
  for_each_engine(check_overflowing_score);
}

/* Scores end at FLT_MAX / log2(e) = 2.36e38, in either sign. */
static void check_largest_scores(const amla_options *options) {
  static const float scores[] = {2.35e38f, -2.35e38f, 2.37e38f, -2.37e38f, 3.4e38f, -3.4e38f};
  for (int t = 0; t < 2 * LENGTH(scores); t++) {
    const float score = scores[t / 2], kv[4] = {7, score, 9, t % 2 ? 1.0f : score};
    const char *problem = "b=1,h=1,sk=2,dqk=2,dv=1,q=f32,kv=f32,page=0,causal=0,scale=1";
    harness_dataset d;
    generate(&d, problem);
    set_q(&d, 0, 0.0f);
    set_q(&d, 1, 1.0f);
    memcpy(d.kv, kv, sizeof kv);
    run(&d, problem, options);
    const float o = out_at(&d, 0, 0), larger = score > 1.0f ? 7.0f : 9.0f;
    const float right = t % 2 == 0 ? 8.0f : larger;
    const bool inside = fabsf(score) < 2.36e38f, may = options->backend == AMLA_BACKEND_REF;
    if (inside ? o != right : !(isnan(o) || (may && o == right)))
      AT(options, "a score of %g gives %g", (double)score, (double)o);
    harness_free(&d);
  }
}

static void scores_end_where_log2_units_leave_f32(void **state) {
  (void)state;
  for_each_engine(check_largest_scores);
}

/* Where the mask hides all keys but some whose score, in log2 units, is the lowest number of f32:
 * no marker of hidden ones may stand for it. Key 400 is in a later tile, and takes all where it is
 * visible. */
static void check_lowest_score(const amla_options *options) {
  const char *problem = "b=1,sq=3,h=9,sk=500,dqk=2,dv=1,q=f32,kv=f32,page=0,causal=0,mask=1,"
                        "scale=0.6931471805599453";
  harness_dataset d;
  generate(&d, problem);
  set_q(&d, 0, 0.0f);
  set_q(&d, 1, 1.0f);
  for (int32_t j = 0; j < 500; j++) {
    float *key = (float *)d.kv + kv_token_offset(&d, 0, j);
    key[0] = (float)j;
    key[1] = j == 400 ? 1.0f : -0x1.fffffep127f;
  }
  for (int32_t i = 0; i < 3 * 500; i++)
    d.mask[i] = 0xfc00; /* -inf */
  d.mask[5] = d.mask[500 + 5] = d.mask[500 + 7] = d.mask[1000 + 5] = d.mask[1000 + 400] = 0;
  run(&d, problem, options);
  for (int64_t row = 0; row < 27; row++) {
    static const float want[] = {5, 6, 400};
    const double lse = row < 18 ? -0x1.fffffep127 * 0.6931471805599453 : 0.6931471805599453;
    const float o = out_at(&d, row, 0);
    if (o != want[row / 9])
      AT(options, "row %d is %g", (int)row, (double)o);
    expect_near((double)lse_at(&d, row), lse, fabs(lse) * 1e-6, "lowest score", row, options);
  }
  harness_free(&d);
}

static void the_lowest_score_is_not_hidden(void **state) {
  (void)state;
  for_each_engine(check_lowest_score);
}

/* ---- amla_merge ---- */

/* Tokens [begin, end) of a contiguous problem of one sequence and query, as a problem of its own.
 */
static void run_part(harness_dataset *d, int32_t begin, int32_t end, float *out, float *lse,
                     const amla_options *options) {
  harness_dataset part = *d;
  const int32_t n = end - begin;
  part.problem.sk = n > 0 ? n : 1;
  part.tensors.kv = (const char *)d->kv + (size_t)begin * (size_t)d->problem.kv_stride_token *
                                              harness_dtype_bytes(d->problem.kv_type);
  part.tensors.kv_bytes -= (size_t)((const char *)part.tensors.kv - (const char *)d->kv);
  part.tensors.seqlens_k = &n;
  part.tensors.out = out;
  part.tensors.out_bytes = (size_t)(d->problem.h_q * d->problem.d_v) * sizeof *out;
  part.tensors.lse = lse;
  amla_detail detail;
  if (try_run(&part, options, &detail) != AMLA_OK)
    AT(options, "part [%d, %d): %s", begin, end, detail.text);
}

enum { MERGE_ROWS = 12, MERGE_D = 24 };

static void check_merge_of_runs(const amla_options *options) {
  /* An empty part at the start and in the middle. */
  static const int32_t cuts[] = {0, 0, 201, 202, 202, 700};
  enum { PARTS = LENGTH(cuts) - 1 };
  for (int base = 0; base < 2; base++) {
    char problem[160];
    harness_dataset d;
    harness_truth truth;
    float o[PARTS * MERGE_ROWS * MERGE_D], lse[PARTS * MERGE_ROWS];
    snprintf(problem, sizeof problem,
             "b=1,h=12,sk=700,dqk=40,dv=24,page=0,causal=0,dist=rising:50,lse=%s",
             base ? "2" : "e");
    generate(&d, problem);
    compute_truth_of(&d, &truth);
    for (int p = 0; p < PARTS; p++)
      run_part(&d, cuts[p], cuts[p + 1], o + p * MERGE_ROWS * MERGE_D, lse + p * MERGE_ROWS,
               options);
    amla_detail detail;
    const amla_status status =
        amla_merge(PARTS, MERGE_ROWS, MERGE_D, (amla_lse_base)base, o, sizeof o, lse, sizeof lse,
                   d.out, d.tensors.out_bytes, d.lse, d.tensors.lse_bytes, &detail);
    if (status != AMLA_OK)
      AT(options, "amla_merge: %s", detail.text);
    expect_within_bound(&d, &truth, "merged parts", options);
    float first_o[MERGE_ROWS * MERGE_D], first_lse[MERGE_ROWS]; /* in place: into the first part */
    memcpy(first_o, d.out, sizeof first_o);
    memcpy(first_lse, d.lse, sizeof first_lse);
    assert_int_equal(amla_merge(PARTS, MERGE_ROWS, MERGE_D, (amla_lse_base)base, o, sizeof o, lse,
                                sizeof lse, o, sizeof first_o, lse, sizeof first_lse, NULL),
                     AMLA_OK);
    assert_memory_equal(o, first_o, sizeof first_o);
    assert_memory_equal(lse, first_lse, sizeof first_lse);
    harness_truth_free(&truth);
    harness_free(&d);
  }
}

static void merged_parts_are_the_whole(void **state) {
  (void)state;
  for_each_engine(check_merge_of_runs);
}

/* One row of d_v = 2 against long double; parts at -inf hold NaN. */
static void merge_matches_long_double(void **state) {
  (void)state;
  uint64_t seed = 8;
  for (int t = 0; t < 5000; t++) {
    const int parts = 1 + random_below(&seed, 9), base2 = random_below(&seed, 2);
    const double spread = t % 3 ? 3 : 300;
    const double center = t % 2 ? 0 : 1e4;
    float o[9 * 2], l[9], out[2], lse;
    long double sum = 0, want[2] = {0, 0};
    int live = 0;
    for (int p = 0; p < parts; p++) {
      const bool dead = random_below(&seed, 4) == 0;
      l[p] = dead ? -INFINITY : (float)(center + spread * harness_random_normal(&seed));
      for (int c = 0; c < 2; c++)
        o[2 * p + c] = dead ? NAN : random_normal(&seed);
      live += !dead;
      if (dead)
        continue;
      const long double x = (long double)l[p] - (long double)center;
      const long double weight = base2 ? exp2l(x) : expl(x);
      sum += weight;
      for (int c = 0; c < 2; c++)
        want[c] += weight * (long double)o[2 * p + c];
    }
    assert_int_equal(amla_merge(parts, 1, 2, (amla_lse_base)base2, o, sizeof o, l, sizeof l, out,
                                sizeof out, &lse, sizeof lse, NULL),
                     AMLA_OK);
    if (live == 0) {
      assert_true(lse == -INFINITY && to_bits(out[0]) == 0 && to_bits(out[1]) == 0);
      continue;
    }
    const long double want_lse = (long double)center + (base2 ? log2l(sum) : logl(sum));
    if (!(fabsl((long double)lse - want_lse) <= 2e-7L * fmaxl(1, fabsl(want_lse))))
      fail_msg("merge %d: LSE %g, want %Lg", t, (double)lse, want_lse);
    for (int c = 0; c < 2; c++)
      if (!(fabsl((long double)out[c] - want[c] / sum) <= 4e-6L))
        fail_msg("merge %d: O %g, want %Lg", t, (double)out[c], want[c] / sum);
  }
}

static void merge_passes_poison_on(void **state) {
  (void)state;
  const float o[2] = {1, 2}, bad_o[2] = {1, NAN}, l[2] = {0, 0}, bad_l[2] = {0, NAN};
  float out, lse;
  assert_int_equal(amla_merge(2, 1, 1, AMLA_LSE_NATURAL, bad_o, sizeof o, l, sizeof l, &out,
                              sizeof out, &lse, sizeof lse, NULL),
                   AMLA_OK);
  assert_true(isnan(out));
  assert_int_equal(amla_merge(2, 1, 1, AMLA_LSE_NATURAL, o, sizeof o, bad_l, sizeof l, &out,
                              sizeof out, &lse, sizeof lse, NULL),
                   AMLA_OK);
  assert_true(isnan(out) && isnan(lse));
  assert_int_equal(amla_merge(2, 1, 1, AMLA_LSE_NATURAL, o, sizeof o, l, sizeof l, &out, sizeof out,
                              NULL, 0, NULL),
                   AMLA_OK); /* lse may be NULL */
  assert_float_equal(out, 1.5, 0);
}

/* A part whose LSE is NaN poisons the row, wherever it stands, and shows it: -inf would let a later
 * merge leave it out. */
static void merge_keeps_a_nan_lse(void **state) {
  (void)state;
  static const float others[] = {-INFINITY, 0.0f, INFINITY};
  for (int t = 0; t < 2 * LENGTH(others); t++) {
    const float o[2] = {1, 2};
    float l[2] = {others[t / 2], others[t / 2]}, out = 0, lse = 0;
    l[t % 2] = NAN;
    assert_int_equal(amla_merge(2, 1, 1, AMLA_LSE_NATURAL, o, sizeof o, l, sizeof l, &out,
                                sizeof out, &lse, sizeof lse, NULL),
                     AMLA_OK);
    assert_true(isnan(out) && isnan(lse));
  }
}

/* References that rise by just under tau per level of the merge tree, under large values: no merge
 * may scale a partial result up, or O leaves f32 at its top although |V| s_k 2^8 does not. One
 * head, q = 1 in a single dimension: the score of key j is k_j, in log2 units. */
static void merging_does_not_overflow(const amla_options *base) {
  enum { SPLITS = 64, D = 2 };
  const int32_t tile = base->backend == AMLA_BACKEND_CPU
                           ? amla_ukernels_select(base->isa)->tile_tokens
                           : 64,
                n = SPLITS * tile;
  float *kv = malloc((size_t)n * D * sizeof *kv), q[D] = {0, 1}, out = 0;
  for (int32_t j = 0; j < n; j++) {
    kv[j * D] = 0x1p90f;
    kv[j * D + 1] = 7.5f * (float)__builtin_popcount((unsigned)(j / tile));
  }
  amla_problem p = AMLA_PROBLEM_INIT;
  p.h_q = 1, p.sk = n, p.d_qk = D, p.d_v = 1, p.q_type = p.kv_type = p.out_type = AMLA_F32,
  p.scale = 0.6931471805599453f;
  amla_options options = *base;
  options.split_tokens = tile;
  amla_plan *plan = NULL;
  amla_detail detail;
  if (amla_plan_create(&plan, &p, &options, &detail) != AMLA_OK)
    AT(base, "%s", detail.text);
  amla_tensors t = AMLA_TENSORS_INIT;
  t.q = q, t.q_bytes = sizeof q, t.kv = kv, t.kv_bytes = (size_t)n * D * sizeof *kv, t.out = &out,
  t.out_bytes = sizeof out;
  void *scratch = malloc(amla_plan_scratch_bytes(plan));
  if (amla_plan_run(plan, &t, scratch, amla_plan_scratch_bytes(plan), &detail) != AMLA_OK)
    AT(base, "%s", detail.text);
  if (!(fabsf(out / 0x1p90f - 1.0f) < 1e-4f))
    AT(base, "rising references: O / V = %a", (double)(out / 0x1p90f));
  amla_plan_destroy(plan);
  free(scratch);
  free(kv);
}

/* Lazy's reference moves when a score exceeds it by more than 8, and then to the next integer; it
 * starts at one. */
static void lazy_moves_at_8(void **state) {
  (void)state;
  static const struct {
    float ref, max, want;
  } rows[] = {{-INFINITY, 3.25f, 4}, {4, 12, 4},  {4, 12.001f, 13}, {-5, 3, -5},
              {-5, 3.5f, 4},         {4, -99, 4}, {4, -INFINITY, 4}};
  for (int i = 0; i < LENGTH(rows); i++) {
    float ref = rows[i].ref;
    amla_rescale_step step;
    const int shifted = amla_rescale_rows(AMLA_RESCALE_LAZY, 1, &ref, &rows[i].max, &step);
    const bool moves = rows[i].want != rows[i].ref && isfinite(rows[i].ref);
    const int shift = moves ? (int)(rows[i].ref - rows[i].want) : 0;
    if (ref != rows[i].want || shifted != moves || step.shift != shift)
      fail_msg("reference %g, score %g: %g", (double)rows[i].ref, (double)rows[i].max, (double)ref);
  }
}

/* A row that underflows to -0 and then, in a later split, sees nothing, beside one that does:
 * merging keeps the sign. */
static void check_negative_zero(const amla_options *base) {
  const char *problem = "b=1,sq=2,h=3,sk=576,dqk=3,dv=1,q=f32,kv=f32,page=0,causal=0,mask=1";
  const bool cpu = base->backend == AMLA_BACKEND_CPU;
  int32_t length = cpu ? amla_ukernels_select(base->isa)->tile_tokens : 64; /* divides 576 */
  harness_dataset d, alone;
  generate(&d, problem);
  set_q(&d, 0, 0.0f);
  set_kv(&d, 0, -0x1p-149f);
  for (int32_t j = 0; j < 576; j++) {
    /* Query 0 sees the first split, and no key of a later one. */
    d.mask[j] = j < length ? 0 : 0xfc00;
    d.mask[576 + j] = 0;
  }
  amla_options options = *base;
  options.split_tokens = length;
  run(&d, problem, &options);
  alone = d;
  alone.problem.sk = length;
  float out[6], lse[6];
  alone.tensors.seqlens_k = &length;
  alone.out = alone.tensors.out = out;
  alone.lse = alone.tensors.lse = lse;
  amla_detail detail;
  if (try_run(&alone, &options, &detail) != AMLA_OK)
    AT(base, "%s", detail.text);
  /* 0 - tiny is -0 */
  const bool fused = cpu && base->isa != AMLA_ISA_C;
  for (int64_t row = 0; row < 3; row++) {
    expect_same_rows(&alone, row, &d, row, 1, "a split without keys", base);
    const float o = out_at(&d, row, 0);
    if (fused && to_bits(o) != to_bits(-0.0f))
      AT(base, "O is %a", (double)o);
  }
  harness_free(&d);
}

static void merging_keeps_negative_zeros(void **state) {
  (void)state;
  for_each_engine(check_negative_zero);
}

static void large_values_survive_merging(void **state) {
  (void)state;
  for_each_engine(merging_does_not_overflow);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(splits_agree_within_the_bound),
      cmocka_unit_test(page_size_does_not_change_a_bit),
      cmocka_unit_test(equal_masks_have_the_same_bits),
      cmocka_unit_test(extreme_masks_are_exact),
      cmocka_unit_test(quantised_keys_are_their_values),
      cmocka_unit_test(stored_scales_are_data),
      cmocka_unit_test(masks_do_not_hide_poison),
      cmocka_unit_test(masks_are_lists_of_keys),
      cmocka_unit_test(page_order_does_not_change_a_bit),
      cmocka_unit_test(pages_may_be_shared),
      cmocka_unit_test(batch_company_does_not_change_a_bit),
      cmocka_unit_test(a_constant_added_to_logits_moves_lse_only),
      cmocka_unit_test(a_power_of_two_on_v_comes_out_exactly),
      cmocka_unit_test(one_hot_attention_returns_the_value),
      cmocka_unit_test(doubled_keys_add_ln_2_to_lse),
      cmocka_unit_test(sinks_scale_o_and_leave_lse),
      cmocka_unit_test(an_lse_error_reaches_out_through_the_sink),
      cmocka_unit_test(lse_base_2_is_lse_over_ln_2),
      cmocka_unit_test(hard_distributions_are_within_the_bound),
      cmocka_unit_test(rows_without_keys_are_zero_and_minus_inf),
      cmocka_unit_test(zero_columns_stay_zero),
      cmocka_unit_test(signed_zeros_are_zeros),
      cmocka_unit_test(subnormal_numbers_are_handled),
      cmocka_unit_test(huge_numbers_are_handled),
      cmocka_unit_test(one_large_value_is_right),
      cmocka_unit_test(the_largest_values_are_right),
      cmocka_unit_test(poison_in_a_query_stays_in_its_row),
      cmocka_unit_test(poison_in_a_key_stays_in_its_sequence),
      cmocka_unit_test(unused_slots_and_entries_are_never_read),
      cmocka_unit_test(a_score_beyond_f32_gives_a_nan_row),
      cmocka_unit_test(scores_end_where_log2_units_leave_f32),
      cmocka_unit_test(the_lowest_score_is_not_hidden),
      cmocka_unit_test(merged_parts_are_the_whole),
      cmocka_unit_test(merge_matches_long_double),
      cmocka_unit_test(merge_passes_poison_on),
      cmocka_unit_test(merge_keeps_a_nan_lse),
      cmocka_unit_test(lazy_moves_at_8),
      cmocka_unit_test(merging_keeps_negative_zeros),
      cmocka_unit_test(large_values_survive_merging),
  };
  return cmocka_run_group_tests_name("properties", tests, NULL, NULL);
}
