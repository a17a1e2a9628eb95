/* SPDX-License-Identifier: Apache-2.0
 *
 * From a problem string to a checked result: generate, plan, run with guard bytes around the
 * scratch, compare. Whatever fails prints the problem string and the options on one line.
 */
#ifndef AMLA_TEST_RUN_H
#define AMLA_TEST_RUN_H

#include "test_support.h"

#include "harness/truth.h"
#include "src/base/isa.h"
#include "src/cpu/ukernels.h"

/* An options struct with what tests vary. */
static inline amla_options make_options(amla_backend backend, amla_rescale rescale, amla_isa isa,
                                        int32_t threads, int32_t split_tokens) {
  amla_options o = AMLA_OPTIONS_INIT;
  o.backend = backend;
  o.rescale = rescale;
  o.isa = isa;
  o.threads = threads;
  o.split_tokens = split_tokens;
  return o;
}

/* Can this CPU run the micro-kernels of that instruction set, and no lesser ones in their place? */
static inline bool can_run(amla_isa isa) { return amla_ukernels_select(isa)->isa == isa; }

/* What computes: the specification, and the CPU backend with each table of micro-kernels. */
typedef struct engine {
  amla_backend backend;
  amla_isa isa;
} engine;

enum { N_ENGINES = AMLA_N_ISAS }; /* AMLA_ISA_AUTO's place is the specification's */

static inline engine engine_at(int e) {
  return (engine){e == 0 ? AMLA_BACKEND_REF : AMLA_BACKEND_CPU, (amla_isa)e};
}

static const amla_rescale rescales[] = {AMLA_RESCALE_LAZY, AMLA_RESCALE_AMLA, AMLA_RESCALE_FLASH};

/* AMLA_TEST_ISA=neonbf16: the engine of this instruction set alone, where others have had theirs.
 */
static inline bool engine_is_wanted(int e) {
  const char *only = getenv("AMLA_TEST_ISA");
  return !only || (e > 0 && strcmp(only, amla_isa_name(engine_at(e).isa)) == 0);
}

static inline bool engine_runs_here(int e) {
  return engine_is_wanted(e) && (e == 0 || can_run(engine_at(e).isa));
}

static inline amla_options engine_options(int e, amla_rescale rescale, int32_t threads,
                                          int32_t split_tokens) {
  const engine x = engine_at(e);
  return make_options(x.backend, rescale, x.isa, threads, split_tokens);
}

/* Calls check with each engine and rescale mode that can run here, on two threads. */
static inline void for_each_engine(void (*check)(const amla_options *options)) {
  for (int e = 0; e < N_ENGINES; e++)
    for (int r = 0; r < LENGTH(rescales); r++) {
      const amla_options options = engine_options(e, rescales[r], 2, AMLA_SPLIT_BY_LENGTH);
      if (engine_runs_here(e))
        check(&options);
    }
}

/* For messages. */
static inline const char *describe_options(const amla_options *o) {
  static char text[160];
  snprintf(
      text, sizeof text,
      "backend=%s rescale=%s isa=%s threads=%d split_tokens=%d p_form=%s q_form=%s kv_round=%s",
      amla_backend_name(o->backend), amla_rescale_name(o->rescale), amla_isa_name(o->isa),
      o->threads, o->split_tokens, amla_p_form_name(o->p_form), amla_q_form_name(o->q_form),
      amla_kv_round_name(o->kv_round));
  return text;
}

/* ---- Data ---- */

static inline void generate(harness_dataset *data, const char *problem) {
  char error[256];
  harness_case c;
  if (harness_parse_problem(problem, &c, error, sizeof error) != 0)
    fail_msg("'%s': %s", problem, error);
  if (harness_generate(&c, data, error, sizeof error) != 0)
    fail_msg("'%s': %s", problem, error);
}

static inline int64_t n_rows(const harness_dataset *d) { return harness_rows(d); }

static inline int64_t out_row_offset(const amla_problem *p, int64_t row) {
  return harness_out_offset(p, row);
}
static inline int64_t lse_row_offset(const harness_dataset *d, int64_t row) {
  return harness_lse_offset(d, row);
}
static inline int64_t q_row_offset(const amla_problem *p, int64_t row) {
  return harness_q_offset(p, row);
}
static inline int64_t kv_token_offset(const harness_dataset *d, int32_t sequence, int64_t j) {
  return harness_token_offset(&d->problem, d->block_table, sequence, j);
}

static inline float out_at(const harness_dataset *d, int64_t row, int32_t column) {
  return harness_load(d->out, d->problem.out_type, out_row_offset(&d->problem, row) + column);
}
static inline float lse_at(const harness_dataset *d, int64_t row) {
  return d->lse[lse_row_offset(d, row)];
}

static inline bool row_is_finite(const harness_dataset *d, int64_t row) {
  for (int32_t c = 0; c < d->problem.d_v; c++)
    if (!isfinite(out_at(d, row, c)))
      return false;
  return isfinite(lse_at(d, row));
}

/* The same bits in O and LSE of a row of each; both of one type and width. */
static inline bool same_row(const harness_dataset *a, int64_t row_a, const harness_dataset *b,
                            int64_t row_b) {
  const size_t size = harness_dtype_bytes(a->problem.out_type);
  const char *x = (const char *)a->out + (size_t)out_row_offset(&a->problem, row_a) * size;
  const char *y = (const char *)b->out + (size_t)out_row_offset(&b->problem, row_b) * size;
  return memcmp(x, y, (size_t)a->problem.d_v * size) == 0 &&
         to_bits(lse_at(a, row_a)) == to_bits(lse_at(b, row_b));
}

/* Elements of out that belong to no row and do not hold the guard pattern any more. Destroys
 * nothing. */
static inline int64_t damaged_padding(const harness_dataset *d) {
  const size_t size = harness_dtype_bytes(d->problem.out_type);
  unsigned char *belongs = calloc(d->tensors.out_bytes + 1, 1);
  int64_t damaged = 0;
  assert_non_null(belongs);
  for (int64_t row = 0; row < n_rows(d); row++)
    memset(belongs + (size_t)out_row_offset(&d->problem, row) * size, 1,
           (size_t)d->problem.d_v * size);
  for (size_t i = 0; i < d->tensors.out_bytes; i++)
    damaged += !belongs[i] && ((unsigned char *)d->out)[i] != GUARD_PATTERN;
  free(belongs);
  return damaged;
}

/* ---- Runs ---- */

/* Plans and runs; the scratch is exactly as long as asked for, at an odd address, between guard
 * bytes, and all NaN. What the data say of options goes first. Returns the status;
 * detail may be NULL. */
static inline amla_status try_run(harness_dataset *data, const amla_options *options,
                                  amla_detail *detail) {
  amla_plan *plan = NULL;
  amla_options o = *options;
  harness_take_options(&o, &data->options);
  amla_status status = amla_plan_create(&plan, &data->problem, &o, detail);
  if (status != AMLA_OK)
    return status;
  guarded scratch = guarded_create(amla_plan_scratch_bytes(plan), 1);
  memset(guarded_data(&scratch), 0xff, scratch.bytes);
  status = amla_plan_run(plan, &data->tensors, guarded_data(&scratch), scratch.bytes, detail);
  const int damage = guarded_damage(&scratch);
  guarded_free(&scratch);
  amla_plan_destroy(plan);
  if (damage)
    fail_msg("%s: %d bytes written outside the scratch", describe_options(options), damage);
  return status;
}

/* Data, a plan of it and its scratch, for runs that are to be alike. */
typedef struct fixture {
  harness_dataset data;
  amla_plan *plan;
  size_t scratch_bytes;
  void *scratch;
} fixture;

static inline fixture fixture_create(const char *problem, const amla_options *options) {
  fixture f;
  generate(&f.data, problem);
  assert_int_equal(amla_plan_create(&f.plan, &f.data.problem, options, NULL), AMLA_OK);
  f.scratch_bytes = amla_plan_scratch_bytes(f.plan);
  f.scratch = malloc(f.scratch_bytes);
  assert_non_null(f.scratch);
  return f;
}

static inline amla_status fixture_run(fixture *f) {
  return amla_plan_run(f->plan, &f->data.tensors, f->scratch, f->scratch_bytes, NULL);
}

static inline void fixture_free(fixture *f) {
  amla_plan_destroy(f->plan);
  free(f->scratch);
  harness_free(&f->data);
}

/* A run that must succeed, into outputs that start as the guard pattern. */
static inline void run(harness_dataset *data, const char *problem, const amla_options *options) {
  amla_detail detail;
  harness_reset_outputs(data);
  const amla_status status = try_run(data, options, &detail);
  if (status != AMLA_OK)
    fail_msg("'%s' %s: %s: %s", problem, describe_options(options), amla_status_name(status),
             detail.text);
  if (damaged_padding(data))
    fail_msg("'%s' %s: elements between the rows of out were written", problem,
             describe_options(options));
}

static inline void compute_truth_of(const harness_dataset *data, harness_truth *truth) {
  if (harness_truth_compute(data, truth) != 0)
    fail_msg("truth: out of memory");
}

/* What a plan of these options says of itself. */
static inline amla_plan_info info_of(const harness_dataset *data, const amla_options *options) {
  amla_plan_info info = AMLA_PLAN_INFO_INIT;
  amla_plan *plan = NULL;
  assert_int_equal(amla_plan_create(&plan, &data->problem, options, NULL), AMLA_OK);
  assert_int_equal(amla_plan_query(plan, &info, NULL), AMLA_OK);
  amla_plan_destroy(plan);
  return info;
}

static inline void expect_within_bound(const harness_dataset *data, const harness_truth *truth,
                                       const char *problem, const amla_options *options) {
  const amla_plan_info info = info_of(data, options);
  const harness_error e = harness_compare_plan(data, truth, &info);
  if (!e.ok)
    fail_msg("'%s' %s: row %lld is %.3g times its bound away (relative %.3g, max %.3g, LSE %.3g)",
             problem, describe_options(options), (long long)e.worst_row, e.worst_of_bound,
             e.rel_error, e.max_abs_error, e.lse_max_abs_error);
}

/* All of the above for one problem and one set of options. */
static inline void check_problem(const char *problem, const amla_options *options) {
  harness_dataset data;
  harness_truth truth;
  generate(&data, problem);
  compute_truth_of(&data, &truth);
  run(&data, problem, options);
  expect_within_bound(&data, &truth, problem, options);
  harness_truth_free(&truth);
  harness_free(&data);
}

#endif
