/* SPDX-License-Identifier: Apache-2.0
 *
 * Plan and run. The input bytes choose a small problem and options, then up to three corruptions of
 * a field, a pointer, a capacity, a length or a page id. An honest problem must run and agree with
 * fp64; a corrupted one may run, or is refused with a reason and leaves every output byte as it
 * was. Pointers and capacities never claim more than there is: to lie about memory is the caller's
 * privilege, and nobody can check it.
 *
 * Problems are small and threads are one thread that takes their shares in turn, so that an
 * execution costs a millisecond.
 */
#include "fuzz.h"

#include <string.h>

#include "harness/kv_rows.h"
#include "harness/random_problem.h"
#include "harness/truth.h"

enum { GUARD = 0xA5, MAX_SCRATCH_BYTES = 64 << 20 };

typedef struct reader {
  const uint8_t *at, *end;
} reader;

static uint32_t take(reader *in, uint32_t n_values) {
  return in->at < in->end ? *in->at++ % n_values : 0;
}

static uint32_t take_u32(reader *in) {
  uint32_t value = 0;
  for (int i = 0; i < 4; i++)
    value = value << 8 | take(in, 256);
  return value;
}

/* A number at or near an edge, or any. */
static int64_t take_odd(reader *in) {
  static const int64_t edges[] = {0,         1,          -1,        2,         3,
                                  127,       128,        129,       4096,      INT32_MAX,
                                  INT32_MIN, 2147480000, 1LL << 40, INT64_MAX, INT64_MIN};
  enum { N_EDGES = sizeof edges / sizeof *edges };
  const uint32_t i = take(in, N_EDGES + 1);
  return i < N_EDGES ? edges[i] : (int64_t)(int32_t)take_u32(in);
}

/* The caller's pool: its one thread, from the last share to the first. */
static void run_in_reverse(void *context, int32_t n, void (*task)(void *argument, int32_t i),
                           void *argument) {
  (void)context;
  while (n > 0)
    task(argument, --n);
}

/* ---- The problem ---- */

static const char *take_type(reader *in) { /* f32, bf16, f16 */
  return amla_dtype_name((amla_dtype)take(in, AMLA_F16 + 1));
}

static int go_on(void *context) {
  (void)context;
  return 0;
}

static void set_callbacks(amla_options *options) {
  options->parallel = run_in_reverse;
  options->cancel = go_on;
}

typedef struct sizes {
  uint32_t h, sk, dqk, dv, pad;
} sizes;

/* What rows of the type must be; records are long, so there are few of them. */
static sizes fit(sizes s, amla_dtype kv, int32_t elems) {
  const uint32_t record = (uint32_t)harness_record_d_qk(kv), block = (uint32_t)elems;
  if (record > 0)
    return (sizes){1 + s.h % 3, 1 + s.sk % 50, record, 512, s.pad};
  if (block > 1)
    s.dqk = block * (1 + s.dqk % 2), s.dv = 1 + s.dv % s.dqk;
  s.pad *= block;
  return s;
}

static amla_dtype take_kv_type(reader *in) {
  uint32_t n = 0;
  while (amla_dtype_name((amla_dtype)n))
    n++;
  return (amla_dtype)take(in, n);
}

static void take_problem(reader *in, char text[HARNESS_RANDOM_PROBLEM], amla_options *options) {
  static const char *const dists[] = {"normal:1", "uniform:2", "rising", "outlier",
                                      "onehot",   "peaked",    "zerov",  "masked"};
  static const char *const lens[] = {"fixed", "uniform", "ragged"};
  static const int pages[] = {0, 1, 3, 16, 64, 128};
  const uint32_t b = take(in, 3), sq = 1 + take(in, 3), h = 1 + take(in, 20);
  const uint32_t sk = 1 + take(in, 200), dqk = 1 + take(in, 40), dv = 1 + take(in, dqk);
  /* One argument at a time: C does not say in which order arguments are evaluated. */
  const int page = pages[take(in, 6)];
  const char *q = take_type(in);
  const amla_dtype kv = take_kv_type(in);
  const char *out = take_type(in);
  const uint32_t lse = take(in, 2), sinks = take(in, 2), pad = take(in, 4);
  const char *dist = dists[take(in, 8)], *len = lens[take(in, 3)];
  const uint32_t seed = take(in, 256);
  uint64_t drawn = take_u32(in);
  char seen[HARNESS_RANDOM_SEEN];
  int32_t bytes;
  const int32_t elems = amla_dtype_block(kv, &bytes);
  const sizes s = fit((sizes){h, sk, dqk, dv, pad}, kv, elems);
  harness_random_seen(&drawn, (int)s.sk, page, (int)s.dqk, harness_record_d_qk(kv) ? 0 : elems,
                      seen);
  snprintf(text, HARNESS_RANDOM_PROBLEM,
           "b=%u,sq=%u,h=%u,sk=%u,dqk=%u,dv=%u,page=%d,q=%s,kv=%s,out=%s,scale=0.25,lse=%s,sinks=%"
           "u,pad=%u%s,dist=%s,len=%s,seed=%u",
           b, sq, s.h, s.sk, s.dqk, s.dv, page, q, amla_dtype_name(kv), out, lse ? "2" : "e", sinks,
           s.pad, seen, dist, len, seed);
  options->backend = (amla_backend)take(in, 3); /* auto, ref, cpu */
  options->rescale = (amla_rescale)take(in, 4);
  options->threads = (int32_t)take(in, 4);
  options->isa = (amla_isa)take(in, AMLA_ISA_AMXBF16 + 1);
  if (amla_isa_missing(options->isa)) /* of another architecture it would be refused */
    options->isa = AMLA_ISA_AUTO;
  options->split_tokens = (int32_t)take(in, 256) - 1;
  options->p_form = (amla_p_form)take(in, 4);
  options->q_form = (amla_q_form)take(in, 3);
  options->kv_round = (amla_kv_round)take(in, 2);
  set_callbacks(options);
}

/* ---- Corruptions ---- */

/* Overwrites one 4- or 8-byte field of a struct; struct_bytes, the first, only with what is
 * smaller. */
static void corrupt_struct(reader *in, void *object, size_t n_bytes) {
  const size_t offset = take(in, (uint32_t)n_bytes / 4) * 4;
  const int64_t wide = take_odd(in);
  const uint32_t narrow = offset == 0 ? (uint32_t)wide % (uint32_t)n_bytes : (uint32_t)wide;
  if (offset != 0 && offset % 8 == 0 && offset + 8 <= n_bytes && take(in, 2))
    memcpy((char *)object + offset, &wide, 8);
  else
    memcpy((char *)object + offset, &narrow, 4);
}

/* A missing, short or misaligned buffer; one that is missing already stays so. */
static void corrupt_buffer(reader *in, amla_tensors *t) {
#define BUFFER(name) {offsetof(amla_tensors, name), offsetof(amla_tensors, name##_bytes)}
  static const struct {
    size_t pointer, bytes;
  } buffers[] = {BUFFER(q),
                 BUFFER(kv),
                 BUFFER(block_table),
                 BUFFER(seqlens_k),
                 BUFFER(sinks),
                 BUFFER(out),
                 BUFFER(lse),
                 BUFFER(q_rope),
                 BUFFER(kv_rope),
                 BUFFER(mask),
                 BUFFER(indices),
                 BUFFER(topk_length),
                 BUFFER(visible_k),
                 BUFFER(q_indptr),
                 BUFFER(kv_indptr),
                 BUFFER(kv_indices),
                 BUFFER(extra_kv),
                 BUFFER(extra_block_table),
                 BUFFER(extra_seqlens_k),
                 BUFFER(extra_visible_k),
                 BUFFER(extra_indices),
                 BUFFER(extra_topk_length)};
  const uint32_t i = take(in, sizeof buffers / sizeof *buffers), how = take(in, 4);
  const char *pointer;
  size_t bytes;
  memcpy(&pointer, (char *)t + buffers[i].pointer, sizeof pointer);
  memcpy(&bytes, (char *)t + buffers[i].bytes, sizeof bytes);
  if (how == 0)
    pointer = NULL;
  if (how == 1 && bytes)
    bytes -= 1 + take(in, 256) % bytes;
  if (how == 2)
    bytes = 0;
  if (how == 3 && pointer && bytes) {
    pointer++;
    bytes--;
  }
  memcpy((char *)t + buffers[i].pointer, &pointer, sizeof pointer);
  memcpy((char *)t + buffers[i].bytes, &bytes, sizeof bytes);
}

static void corrupt_element(reader *in, int32_t *array, size_t n_bytes) {
  if (!array || n_bytes < 4)
    return;
  array[take_u32(in) % (n_bytes / 4)] = (int32_t)take_odd(in);
}

/* A tensor that others rule out, as often as not; it claims no more than there is. */
static void corrupt_absent(reader *in, amla_tensors *t) {
  switch (take(in, 7)) {
  case 0: t->q_rope = t->q, t->q_rope_bytes = t->q_bytes; break;
  case 1: t->kv_rope = t->kv, t->kv_rope_bytes = t->kv_bytes; break;
  case 2: t->mask = t->q, t->mask_bytes = t->q_bytes; break;
  case 3: t->stream = t->out; break;
  case 4: t->visible_k = t->seqlens_k, t->visible_k_bytes = t->seqlens_k_bytes; break;
  case 5: t->kv_indptr = t->seqlens_k, t->kv_indptr_bytes = t->seqlens_k_bytes; break;
  case 6: t->indices = t->block_table, t->indices_bytes = t->block_table_bytes; break;
  }
}

/* One number of those that say what is seen. */
static void corrupt_number(reader *in, harness_dataset *d) {
  const amla_tensors *t = &d->tensors;
  const struct {
    int32_t *at;
    size_t bytes;
  } arrays[] = {{d->block_table, t->block_table_bytes},
                {d->seqlens_k, t->seqlens_k_bytes},
                {d->indices, t->indices_bytes},
                {d->topk_length, t->topk_length_bytes},
                {d->visible_k, t->visible_k_bytes},
                {d->q_indptr, t->q_indptr_bytes},
                {d->kv_indptr, t->kv_indptr_bytes},
                {d->kv_indices, t->kv_indices_bytes},
                {d->extra_block_table, t->extra_block_table_bytes},
                {d->extra_seqlens_k, t->extra_seqlens_k_bytes},
                {d->extra_visible_k, t->extra_visible_k_bytes},
                {d->extra_indices, t->extra_indices_bytes},
                {d->extra_topk_length, t->extra_topk_length_bytes}};
  const uint32_t i = take(in, sizeof arrays / sizeof *arrays);
  corrupt_element(in, arrays[i].at, arrays[i].bytes);
}

static void corrupt(reader *in, amla_problem *problem, amla_options *options, amla_tensors *tensors,
                    harness_dataset *data) {
  switch (take(in, 7)) {
  case 0: corrupt_struct(in, problem, sizeof *problem); break;
  case 1:
    corrupt_struct(in, options, sizeof *options);
    set_callbacks(options); /* a pointer that points nowhere is a lie about memory */
    break;
  case 2: corrupt_buffer(in, tensors); break;
  case 3:
  case 4: corrupt_number(in, data); break;
  case 5: corrupt_absent(in, tensors); break;
  case 6: tensors->struct_bytes = (uint32_t)take_odd(in) % (uint32_t)sizeof *tensors; break;
  }
}

/* ---- Plan, run, check ---- */

/* One call of memcmp, as a loop would be traced byte by byte. */
static int untouched(const void *buffer, size_t n_bytes) {
  const uint8_t *bytes = buffer;
  return n_bytes == 0 || (bytes[0] == GUARD && memcmp(bytes, bytes + 1, n_bytes - 1) == 0);
}

static amla_status plan_and_run(reader *in, const amla_problem *problem,
                                const amla_options *options, const amla_tensors *tensors,
                                int *short_scratch, amla_detail *detail) {
  amla_plan *plan = (amla_plan *)(uintptr_t)1;
  amla_status status = amla_plan_create(&plan, problem, options, detail);
  *short_scratch = 0;
  if (status != AMLA_OK) {
    FUZZ_CHECK(!plan, "a plan beside a refusal");
    return status;
  }
  const size_t needed_bytes = amla_plan_scratch_bytes(plan);
  size_t scratch_bytes = needed_bytes < MAX_SCRATCH_BYTES ? needed_bytes : MAX_SCRATCH_BYTES;
  if (take(in, 8) == 7 && scratch_bytes)
    scratch_bytes--; /* too little, by one */
  *short_scratch = scratch_bytes < needed_bytes;
  char line[80];
  FUZZ_CHECK(amla_plan_describe(plan, line, sizeof line) > 0 && memchr(line, '\0', sizeof line),
             "describe");
  char *scratch = malloc(scratch_bytes + 1);
  FUZZ_CHECK(scratch, "%zu bytes", scratch_bytes);
  status = amla_plan_run(plan, tensors, scratch + 1, scratch_bytes, detail); /* of any alignment */
  FUZZ_CHECK(status != AMLA_OK || !*short_scratch, "ran with %zu of %zu bytes of scratch",
             scratch_bytes, needed_bytes);
  free(scratch);
  amla_plan_destroy(plan);
  return status;
}

static void check_untouched(const char *text, const amla_detail *detail,
                            const amla_tensors *tensors) {
  FUZZ_CHECK(*detail->text, "%s: refused without a reason", text);
  FUZZ_CHECK(untouched(tensors->out, tensors->out_bytes), "%s: refused (%s), out written", text,
             detail->text);
  FUZZ_CHECK(untouched(tensors->lse, tensors->lse_bytes), "%s: refused (%s), lse written", text,
             detail->text);
}

static void check_result(const char *text, const harness_dataset *data,
                         const amla_options *options) {
  harness_truth truth;
  amla_plan_info info = AMLA_PLAN_INFO_INIT;
  amla_plan *plan;
  FUZZ_CHECK(amla_plan_create(&plan, &data->problem, options, NULL) == AMLA_OK &&
                 amla_plan_query(plan, &info, NULL) == AMLA_OK,
             "%s: no second plan", text);
  amla_plan_destroy(plan);
  FUZZ_CHECK(harness_truth_compute(data, &truth) == 0, "%s: out of memory", text);
  const harness_error result = harness_compare_plan(data, &truth, &info);
  FUZZ_CHECK(result.ok, "%s: %g of the bound, row %lld", text, result.worst_of_bound,
             (long long)result.worst_row);
  harness_truth_free(&truth);
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t n_bytes) {
  reader in = {bytes, bytes + n_bytes};
  harness_case c;
  harness_dataset data;
  amla_options options = AMLA_OPTIONS_INIT;
  amla_detail detail;
  char text[HARNESS_RANDOM_PROBLEM], error[256];
  int short_scratch;

  take_problem(&in, text, &options);
  FUZZ_CHECK(harness_parse_problem(text, &c, error, sizeof error) == 0, "%s: %s", text, error);
  FUZZ_CHECK(harness_generate(&c, &data, error, sizeof error) == 0, "%s: %s", text, error);
  harness_take_options(&options, &data.options);
  amla_problem problem = data.problem;
  amla_tensors tensors = data.tensors;
  const uint32_t n_corruptions = take(&in, 4);
  for (uint32_t i = 0; i < n_corruptions; i++)
    corrupt(&in, &problem, &options, &tensors, &data);

  memset(&detail, GUARD, sizeof detail);
  const amla_status status =
      plan_and_run(&in, &problem, &options, &tensors, &short_scratch, &detail);
  FUZZ_CHECK(memchr(detail.text, '\0', sizeof detail.text), "%s: detail has no end", text);
  if (status != AMLA_OK)
    check_untouched(text, &detail, &data.tensors);
  else
    FUZZ_CHECK(!*detail.text, "%s: ok, but: %s", text, detail.text);
  if (n_corruptions == 0) {
    FUZZ_CHECK(status == AMLA_OK || short_scratch, "%s: refused: %s", text, detail.text);
    if (status == AMLA_OK)
      check_result(text, &data, &options);
  }
  harness_free(&data);
  return 0;
}
