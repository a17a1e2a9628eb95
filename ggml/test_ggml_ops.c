/* SPDX-License-Identifier: Apache-2.0
 *
 * The plug-in inside an unmodified, prebuilt ggml, operation by operation: the cases of ggml's own
 * backend test for 576/512 and 512/512, held against ggml's CPU backend with its own bound (NMSE
 * 5e-4), and against f64 with ours. And what the plug-in must leave alone.
 *
 *     test_ggml_ops LIBGGML_AMLA_SO FOLDER_OF_LIBGGML [GFLOP]       no case larger than so much
 */
#define _GNU_SOURCE 1 /* setenv, dup2 */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "ggml_session.h"

static ggml_session session;
static double largest_gflop = 25.0;

#define GGML_BOUND 5e-4 /* of ggml's own test */
#define OUR_BOUND 1e-12 /* relative error 1e-6 squared: f32 all the way, whatever K's type */

static void hold(const ggml_case *c, uint64_t seed) {
  ggml_session *s = &session;
  ggml_job job;
  char text[160];
  ggml_job_create(s, c, seed, &job);
  const int64_t n = ggml_case_d_v(c) * c->heads * c->tokens * c->streams, work = n * c->kv;
  float *cpu = malloc((size_t)n * sizeof *cpu), *truth = malloc((size_t)n * sizeof *truth);
  if (!ggml_job_taken(s, &job))
    fail_msg("%s: refused", ggml_case_text(c, text));
  if (!ggml_job_run(s, &job, s->cpu))
    fail_msg("%s: the CPU backend failed", ggml_case_text(c, text));
  memcpy(cpu, job.op->data, (size_t)n * sizeof *cpu);
  for (int64_t i = 0; i < n; i++)
    ((float *)job.op->data)[i] = NAN;

  const int64_t before = s->amla_n_done();
  if (!ggml_job_run(s, &job, s->amla))
    fail_msg("%s: failed", ggml_case_text(c, text));
  assert_int_equal(s->amla_n_done(), before + 1);
  const double to_cpu = ggml_nmse(cpu, job.op->data, n);
  if (!(to_cpu <= GGML_BOUND))
    fail_msg("%s: NMSE %g to ggml's CPU backend", ggml_case_text(c, text), to_cpu);
  ggml_job_truth(s, &job, work / 2000000 + 1, truth);
  const double to_truth = ggml_nmse(truth, job.op->data, n);
  if (!(to_truth <= OUR_BOUND))
    fail_msg("%s: NMSE %g to f64", ggml_case_text(c, text), to_truth);
  free(cpu);
  free(truth);
  ggml_job_free(s, &job);
}

/* heads x kv x batch x type, with masks, sinks and layouts in turn; the largest ones for f16 only.
 */
static void test_cases_of_ggml(void **state) {
  static const int64_t heads[] = {4, 16, 20, 128}, kv[] = {113, 512, 1024, 4096},
                       tokens[] = {1, 3, 32, 75};
  static const int32_t types[] = {GGML_ABI_F16, GGML_ABI_BF16, GGML_ABI_Q8_0};
  int n = 0;
  (void)state;
  for (int h = 0; h < 4; h++)
    for (int k = 0; k < 4; k++)
      for (int t = 0; t < 4; t++)
        for (int type = 0; type < 3; type++) {
          const double gflop = (double)(heads[h] * kv[k] * tokens[t]) * 2176e-9;
          if (gflop > (type == 0 ? largest_gflop : largest_gflop / 5.0))
            continue;
          const int turn = n + t + k + h; /* so that no axis goes in step with another */
          hold(&(ggml_case){576, heads[h], kv[k], tokens[t], 1, types[type],
                            turn % 3 == 0 ? MASK_NONE : MASK_RANDOM, false, turn % 4 < 2,
                            turn % 5 < 3, false, 0},
               (uint64_t)n);
          n++;
        }
  print_message("%d cases\n", n);
}

static void test_streams(void **state) {
  (void)state;
  for (int i = 0; i < 16; i++) {
    const int64_t d_k = i & 8 ? 512 : 576;
    static const int32_t types[] = {GGML_ABI_F16, GGML_ABI_BF16, GGML_ABI_Q8_0};
    const int64_t tokens = i & 2 ? 5 : 1;
    hold(&(ggml_case){d_k, 16, 300, tokens, 3, types[i % 3], MASK_RANDOM, i & 1, i & 4, i & 2,
                      false, 0},
         (uint64_t)i);
  }
}

static void test_512_and_f32(void **state) {
  (void)state;
  for (int i = 0; i < 12; i++) {
    static const int32_t types[] = {GGML_ABI_F16, GGML_ABI_BF16, GGML_ABI_Q8_0, GGML_ABI_F32};
    const int64_t kv = i & 4 ? 1 : 777;
    const int64_t tokens = i < 6 ? 1 : 9;
    hold(&(ggml_case){512, 20, kv, tokens, 1, types[i % 4], i & 1 ? MASK_CAUSAL : MASK_NONE, false,
                      i & 2, true, false, 0},
         (uint64_t)i);
  }
  hold(&(ggml_case){576, 16, 300, 2, 1, GGML_ABI_F32, MASK_RANDOM, false, true, false, false, 0},
       1);
}

static const int32_t blocks[] = {GGML_ABI_Q4_0, GGML_ABI_Q4_1,   GGML_ABI_Q5_0,
                                 GGML_ABI_Q5_1, GGML_ABI_IQ4_NL, GGML_ABI_Q8_0};
enum { N_BLOCKS = sizeof blocks / sizeof *blocks };

static void test_blocks(void **state) {
  (void)state;
  for (int i = 0; i < 4 * N_BLOCKS; i++) {
    const int64_t tokens = i < 2 * N_BLOCKS ? 1 : 6;
    hold(&(ggml_case){i % 5 ? 576 : 512, 16, 257, tokens, 1 + i % 2, blocks[i % N_BLOCKS],
                      i & 2 ? MASK_RANDOM : MASK_CAUSAL, false, i & 4, i & 1, false, 0},
         (uint64_t)i);
  }
}

/* One key, which every query sees with weight 1: the result is its value, bit for bit as ggml's own
 * functions read it, whatever bytes the cache holds. */
static void test_blocks_are_read_as_by_ggml(void **state) {
  ggml_session *s = &session;
  (void)state;
  for (int i = 0; i < N_BLOCKS; i++)
    for (uint64_t seed = 0; seed < 20; seed++) {
      const ggml_case c = {512, 1, 1, 1, 1, blocks[i], MASK_NONE, false, false, false, false, 0};
      ggml_job job;
      float want[512];
      ggml_job_create(s, &c, seed, &job);
      unsigned char *bytes = job.k->data;
      for (size_t at = 0; at < job.k->nb[1]; at++) {
        const size_t in_block = at % job.k->nb[0];
        if (in_block != 1 && in_block != 3) /* exponents of d and m stay what they were */
          bytes[at] = (unsigned char)(bytes[at] * 31 + 7 * at + 13 * seed);
      }
      memset(job.q->data, 0, 512 * sizeof(float));
      ggml_widen(s, blocks[i], job.k->data, 512, want);
      assert_true(ggml_job_run(s, &job, s->amla));
      for (int d = 0; d < 512; d++)
        if (((const float *)job.op->data)[d] != want[d])
          fail_msg("%s, seed %d: element %d is %a, ggml reads %a", ggml_type_text(blocks[i]),
                   (int)seed, d, (double)((const float *)job.op->data)[d], (double)want[d]);
      ggml_job_free(s, &job);
    }
}

/* A list of keys for each token, as a mask. */
static void test_sparse(void **state) {
  (void)state;
  for (int i = 0; i < 8; i++)
    hold(&(ggml_case){i & 4 ? 512 : 576, 16, 2000, i & 1 ? 11 : 1, 1 + (i & 2), GGML_ABI_F16,
                      MASK_SPARSE, false, i & 2, true, false, 0},
         (uint64_t)i);
  ggml_job job;
  ggml_job_create(
      &session,
      &(ggml_case){576, 16, 2000, 1, 1, GGML_ABI_F16, MASK_SPARSE, false, false, true, false, 0}, 1,
      &job);
  job.op->op_params[4] = 200; /* what ggml says of it */
  assert_true(ggml_job_taken(&session, &job));
  ggml_job_free(&session, &job);
}

/* Mistral-Small-4's shape, and more KV heads than one. */
static void test_shapes(void **state) {
  (void)state;
  for (int i = 0; i < 12; i++) {
    static const int32_t types[] = {GGML_ABI_F16, GGML_ABI_Q8_0, GGML_ABI_Q4_0};
    static const int64_t d_k[] = {320, 576, 512};
    const int64_t tokens = i & 1 ? 5 : 1;
    hold(&(ggml_case){d_k[i % 3], 12, 300, tokens, 1 + i % 2, types[i / 4], MASK_RANDOM, i & 4,
                      i & 2, i & 1, false, i % 3 == 0 && i < 6 ? 1 : 3},
         (uint64_t)i);
  }
}

/* K is V: one tensor as both, as DeepSeek-V4 has it. */
static void test_one_tensor_is_both(void **state) {
  (void)state;
  ggml_session *s = &session;
  const ggml_case c = {512, 16, 200, 3, 2, GGML_ABI_F16, MASK_RANDOM, false, true, true, false, 0};
  const int64_t n = 512 * c.heads * c.tokens * c.streams;
  float *truth = malloc((size_t)n * sizeof *truth);
  ggml_job job;
  ggml_job_create(s, &c, 3, &job);
  job.op->src[2] = job.op->src[1];
  assert_true(ggml_job_taken(s, &job));
  assert_true(ggml_job_run(s, &job, s->amla));
  ggml_job_truth(s, &job, 1, truth);
  const double to_truth = ggml_nmse(truth, job.op->data, n);
  if (!(to_truth <= OUR_BOUND))
    fail_msg("K = V: NMSE %g to f64", to_truth);
  free(truth);
  ggml_job_free(s, &job);
}

/* A cache of V beside that of K: Gemma-4's large heads, and MLA in llama.cpp before 2026. */
static void test_values_apart(void **state) {
  (void)state;
  for (int i = 0; i < 24; i++) {
    static const int32_t types[] = {GGML_ABI_F16, GGML_ABI_Q8_0, GGML_ABI_BF16, GGML_ABI_Q4_0};
    static const int64_t d_k[] = {512, 576, 320};
    const int64_t tokens = i & 1 ? 7 : 1, kv_heads = i % 3 == 0 ? 4 : 1;
    const bool is_f16 = types[i % 4] == GGML_ABI_F16;
    hold(&(ggml_case){d_k[i % 3], 12, i < 12 ? 300 : 1, tokens, 1 + i % 2, types[i % 4],
                      i % 5 ? MASK_RANDOM : MASK_CAUSAL, i & 4, i & 2, i & 8,
                      CACHE_APART | (is_f16 && i & 8 ? CACHE_CAST : 0), kv_heads},
         (uint64_t)i);
  }
}

/* Columns of K other than its first ones, which must not be taken for them. */
static void test_values_amid_keys(void **state) {
  (void)state;
  for (int cache = 0; cache <= CACHE_CAST; cache++) {
    const ggml_case c = {576,         16,    200,  3,    2,     GGML_ABI_F16,
                         MASK_RANDOM, false, true, true, cache, 0};
    const int64_t n = 512 * c.heads * c.tokens * c.streams;
    float *truth = malloc((size_t)n * sizeof *truth);
    ggml_job job;
    ggml_job_create(&session, &c, 3, &job);
    ggml_abi_tensor *v = cache ? job.op->src[2]->src[0] : job.op->src[2];
    v->view_offs += 32 * v->nb[0];
    v->data = (char *)v->data + 32 * v->nb[0];
    if (cache) /* which nobody but ggml computes */
      assert_true(ggml_job_run(&session, &job, session.cpu));
    assert_true(ggml_job_run(&session, &job, session.amla));
    ggml_job_truth(&session, &job, 1, truth);
    const double to_truth = ggml_nmse(truth, job.op->data, n);
    if (!(to_truth <= OUR_BOUND))
      fail_msg("cache %d: NMSE %g to f64", cache, to_truth);
    free(truth);
    ggml_job_free(&session, &job);
  }
}

/* Any two layouts of the cache, decode and prompt. */
static void test_casts_from_f32(void **state) {
  (void)state;
  for (int i = 0; i < 8; i++) {
    const bool sinks = i % 3 == 0, permuted = i & 2;
    const int64_t tokens = i & 1 ? 7 : 1;
    hold(&(ggml_case){576, 16, 300, tokens, i & 4 ? 3 : 1, GGML_ABI_F16, MASK_RANDOM, false, sinks,
                      permuted, true, 0},
         (uint64_t)i);
  }
}

/* One thread and several, in turn, on one backend: the same bits. */
static void test_threads(void **state) {
  static const int threads[] = {1, 3, 2, 1, 2};
  ggml_session *s = &session;
  const ggml_case c = {576,         128,   1500, 2,    1,     GGML_ABI_F16,
                       MASK_RANDOM, false, true, true, false, 0};
  const size_t bytes = (size_t)(512 * c.heads * c.tokens) * sizeof(float);
  float *first = malloc(bytes);
  ggml_job job;
  (void)state;
  ggml_job_create(s, &c, 5, &job);
  for (int i = 0; i < 5; i++) {
    ggml_session_threads(s, threads[i]);
    memset(job.op->data, 0xff, bytes);
    assert_true(ggml_job_run(s, &job, s->amla));
    if (i == 0)
      memcpy(first, job.op->data, bytes);
    assert_memory_equal(first, job.op->data, bytes);
  }
  free(first);
  ggml_job_free(s, &job);
}

/* ---- The indexer ---- */

typedef struct indexer {
  void *context, *graph;
  ggml_abi_tensor *op;
} indexer;

static indexer make_indexer(int32_t type, int64_t tokens, int64_t streams, int64_t masks) {
  enum { D = 128, HEADS = 32, KEYS = 300 };
  ggml_session *s = &session;
  uint64_t seed = 5;
  indexer x = {.context = s->ggml_init((ggml_abi_init_params){32 << 20, NULL, false})};
  ggml_abi_tensor *src[] = {
      s->ggml_new_tensor_4d(x.context, GGML_ABI_F32, D, HEADS, tokens, streams),
      s->ggml_new_tensor_4d(x.context, type, D, 1, KEYS, streams),
      s->ggml_new_tensor_4d(x.context, GGML_ABI_F32, HEADS, tokens, 1, streams),
      s->ggml_new_tensor_4d(x.context, GGML_ABI_F16, KEYS, tokens, 1, masks)};
  for (int i = 0; i < 3; i++)
    ggml_fill(s, src[i], &seed);
  ggml_fill_mask(s, src[3], &seed);
  x.op = s->ggml_lightning_indexer(x.context, src[0], src[1], src[2], src[3]);
  x.graph = s->ggml_new_graph_custom(x.context, 16, false);
  s->ggml_build_forward_expand(x.graph, x.op);
  return x;
}

static bool is_taken(const indexer *x) {
  return session.ggml_backend_dev_supports_op(session.amla_device, x->op);
}

/* The CPU backend's scores, and -inf where it has them. */
static void hold_indexer(int32_t type, int64_t tokens, int64_t streams, int64_t masks) {
  indexer x = make_indexer(type, tokens, streams, masks);
  const int64_t n = x.op->ne[0] * tokens * streams;
  float *cpu = malloc((size_t)n * sizeof *cpu), *got = x.op->data;
  assert_true(is_taken(&x));
  assert_int_equal(session.ggml_backend_graph_compute(session.cpu, x.graph), GGML_ABI_SUCCESS);
  memcpy(cpu, got, (size_t)n * sizeof *cpu);
  memset(got, 0x55, (size_t)n * sizeof *cpu);
  assert_int_equal(session.ggml_backend_graph_compute(session.amla, x.graph), GGML_ABI_SUCCESS);
  for (int64_t i = 0; i < n; i++) {
    if ((cpu[i] == -INFINITY) != (got[i] == -INFINITY))
      fail_msg("%s: score %d is %g, ggml has %g", ggml_type_text(type), (int)i, (double)got[i],
               (double)cpu[i]);
    if (cpu[i] == -INFINITY)
      cpu[i] = got[i] = 0.0f;
  }
  const double nmse = ggml_nmse(cpu, got, n);
  if (!(nmse <= OUR_BOUND))
    fail_msg("indexer, %s, %d tokens: NMSE %g", ggml_type_text(type), (int)tokens, nmse);
  free(cpu);
  session.ggml_free(x.context);
}

static bool has_indexer(void) {
  int minor = 0;
  sscanf(session.ggml_version(), "%*d.%d", &minor);
  return session.ggml_lightning_indexer != NULL && minor >= 25;
}

static void test_indexer(void **state) {
  (void)state;
  if (session.ggml_lightning_indexer == NULL)
    skip();
  if (!has_indexer()) { /* llama.cpp of that time would give the operation up */
    indexer x = make_indexer(GGML_ABI_F16, 1, 1, 1);
    assert_false(is_taken(&x));
    session.ggml_free(x.context);
    skip();
  }
  hold_indexer(GGML_ABI_F16, 1, 1, 1);
  hold_indexer(GGML_ABI_F16, 40, 2, 2);
  hold_indexer(GGML_ABI_F16, 450, 2, 1); /* slices: 203 tokens at a time */
  hold_indexer(GGML_ABI_BF16, 7, 2, 1);
  hold_indexer(GGML_ABI_F32, 1, 2, 1);
  for (int i = 0; i < N_BLOCKS; i++)
    hold_indexer(blocks[i], 3, 1, 1);
}

static void test_indexer_refusals(void **state) {
  (void)state;
  if (!has_indexer())
    skip();
#define REFUSED(damage)                                                                            \
  do {                                                                                             \
    indexer x = make_indexer(GGML_ABI_F16, 2, 2, 2);                                               \
    ggml_abi_tensor *op = x.op, *q = op->src[0], *k = op->src[1], *w = op->src[2],                 \
                    *mask = op->src[3];                                                            \
    (void)q, (void)k, (void)w, (void)mask;                                                         \
    assert_true(is_taken(&x));                                                                     \
    damage;                                                                                        \
    if (is_taken(&x))                                                                              \
      fail_msg("taken in spite of: " #damage);                                                     \
    session.ggml_free(x.context);                                                                  \
  } while (0)
  REFUSED(op->src[3] = NULL);
  REFUSED((q->ne[0] = k->ne[0] = 48)); /* no multiple of 32 */
  REFUSED(q->type = GGML_ABI_F16);
  REFUSED(q->nb[1] = 0); /* heads share q */
  REFUSED(k->type = 12); /* q4_K */
  REFUSED(k->nb[2] = 64);
  REFUSED(k->ne[1] = 2);
  REFUSED(w->nb[1] *= 2);
  REFUSED(w->ne[1] = 1);
  REFUSED(mask->type = GGML_ABI_F32);
  REFUSED(mask->ne[0] = 299);
  REFUSED(mask->ne[3] = 3);
  REFUSED(op->nb[1] *= 2);
#undef REFUSED
}

/* The plug-in's lines about an operation that it is asked about: [4096]. */
static const char *lines_of(const indexer *x, char *text) {
  FILE *file = tmpfile();
  const int kept = dup(STDERR_FILENO);
  assert_true(file != NULL && kept >= 0);
  fflush(stderr);
  dup2(fileno(file), STDERR_FILENO);
  assert_false(is_taken(x));
  fflush(stderr);
  dup2(kept, STDERR_FILENO);
  close(kept);
  rewind(file);
  text[fread(text, 1, 4095, file)] = '\0';
  fclose(file);
  return text;
}

/* A reason is logged once, as one of the indexer's. */
static void test_indexer_lines(void **state) {
  char text[4096];
  (void)state;
  if (!has_indexer())
    skip();
  indexer x = make_indexer(GGML_ABI_F16, 2, 2, 2);
  x.op->src[1]->type = 12; /* q4_K */
  assert_string_equal(lines_of(&x, text),
                      "amla: indexer left to the CPU: its keys are of a type that is not known, or "
                      "not contiguous\n");
  assert_string_equal(lines_of(&x, text), "");
  session.ggml_free(x.context);
}

/* ---- ggml's abort callback ---- */

typedef struct questions {
  int asked, end_at; /* 0: never */
} questions;

static bool is_enough(void *data) {
  questions *q = data;
  return ++q->asked == q->end_at;
}

static void set_abort(questions *q) {
  ggml_session *s = &session;
  void (*set)(void *backend, bool (*callback)(void *data), void *data);
  void *address = s->ggml_backend_reg_get_proc_address(
      s->ggml_backend_dev_backend_reg(s->amla_device), "ggml_backend_set_abort_callback");
  assert_non_null(address);
  memcpy(&set, &address, sizeof address);
  set(s->amla, q != NULL ? is_enough : NULL, q);
}

/* An indexer ends between two slices, and the next one is whole. */
static void test_indexer_abort(void **state) {
  (void)state;
  if (!has_indexer())
    skip();
  indexer x = make_indexer(GGML_ABI_F16, 450, 2, 1);
  questions q = {0, 0};
  ggml_session_threads(&session, 1);
  set_abort(&q);
  assert_int_equal(session.ggml_backend_graph_compute(session.amla, x.graph), GGML_ABI_SUCCESS);
  assert_int_equal(q.asked, 6);                 /* slices of 203 tokens */
  for (int end_at = 1; end_at <= 6; end_at++) { /* of both streams */
    q = (questions){0, end_at};
    assert_int_equal(session.ggml_backend_graph_compute(session.amla, x.graph), GGML_ABI_ABORTED);
    assert_int_equal(q.asked, end_at);
  }
  set_abort(NULL);
  ggml_session_threads(&session, 2);
  session.ggml_free(x.context);
  hold_indexer(GGML_ABI_F16, 450, 2, 1);
}

/* A prompt ends within a few key tiles, and the next one is whole. */
static void test_abort(void **state) {
  ggml_session *s = &session;
  const ggml_case c = {576,         16,    2000,  64,   1,     GGML_ABI_F16,
                       MASK_CAUSAL, false, false, true, false, 0};
  questions q = {0, 0};
  ggml_job job;
  (void)state;
  ggml_job_create(s, &c, 9, &job);
  set_abort(&q);
  for (int threads = 1; threads <= 2; threads++) {
    ggml_session_threads(s, threads);
    q = (questions){0, 0};
    assert_true(ggml_job_run(s, &job, s->amla));
    if (threads == 1) /* of two the other may have done it all */
      assert_true(q.asked > 100);
    q = (questions){0, 3};
    const int64_t before = s->amla_n_done();
    const int status = s->ggml_backend_graph_compute(s->amla, job.graph);
    if (threads == 1 || q.asked >= 3) {
      assert_int_equal(status, GGML_ABI_ABORTED);
      assert_int_equal(q.asked, 3);
      assert_int_equal(s->amla_n_done(), before);
    }
  }
  set_abort(NULL);
  assert_true(ggml_job_run(s, &job, s->amla));
  ggml_job_free(s, &job);
}

/* ---- What is left to the CPU ---- */

static ggml_job plain(int cache) {
  ggml_job job;
  ggml_job_create(
      &session,
      &(ggml_case){576, 16, 64, 2, 2, GGML_ABI_F16, MASK_RANDOM, false, false, false, cache, 0}, 1,
      &job);
  assert_true(ggml_job_taken(&session, &job));
  return job;
}

static void set_param(ggml_job *job, int i, float value) {
  memcpy(&job->op->op_params[i], &value, sizeof value);
}

/* Each line damages one thing of an operation that is taken. */
static void test_refusals(void **state) {
  (void)state;
#define REFUSED(...) REFUSED_OF(plain(0), __VA_ARGS__)
#define REFUSED_OF(made, ...)                                                                      \
  do {                                                                                             \
    ggml_job job = made;                                                                           \
    ggml_abi_tensor *op = job.op, *k = op->src[1], *v = op->src[2], *mask = op->src[3];            \
    (void)k, (void)v, (void)mask;                                                                  \
    __VA_ARGS__;                                                                                   \
    if (ggml_job_taken(&session, &job))                                                            \
      fail_msg("taken in spite of: " #__VA_ARGS__);                                                \
    ggml_job_free(&session, &job);                                                                 \
  } while (0)
  REFUSED(set_param(&job, 1, 8.0f));  /* ALiBi */
  REFUSED(set_param(&job, 2, 30.0f)); /* softcap */
  REFUSED(set_param(&job, 0, 0.0f));  /* scale */
  REFUSED(set_param(&job, 0, NAN));
  REFUSED(set_param(&job, 0, 3e38f));
  REFUSED(op->src[0]->nb[2] = 0); /* heads share q */
  REFUSED(op->op_params[5] = 1);  /* something newer */
  REFUSED(v->type = GGML_ABI_BF16);
  REFUSED_OF(plain(CACHE_APART), v->type = GGML_ABI_BF16);     /* as wide as K's */
  REFUSED_OF(plain(CACHE_APART), v->nb[0] = 64, v->nb[1] = 2); /* transposed */
  REFUSED_OF(plain(CACHE_APART), v->nb[1] = 64);               /* rows overlap */
  REFUSED_OF(plain(CACHE_APART), v->ne[1] = 63);
  REFUSED_OF(plain(CACHE_APART), v->ne[2] = 2);
  REFUSED_OF(plain(CACHE_APART), v->ne[3] = 1);
  REFUSED(v->ne[0] = 256);
  REFUSED(k->ne[0] = 320);
  REFUSED(k->ne[2] = 3, v->ne[2] = 3); /* 16 heads */
  REFUSED(k->ne[2] = 2);               /* V has one head */
  REFUSED(k->ne[3] = 1, v->ne[3] = 1); /* streams share K */
  REFUSED(k->type = v->type = 12);     /* q4_K */
  REFUSED(k->nb[1] = v->nb[1] = 577);  /* not whole elements */
  REFUSED(k->nb[1] = v->nb[1] = 64);   /* rows overlap */
  REFUSED(op->src[0]->type = GGML_ABI_F16);
  REFUSED(op->src[0]->nb[0] = 8);
  REFUSED(mask->type = GGML_ABI_F32);
  REFUSED(mask->ne[2] = 16);
  REFUSED(mask->ne[0] = 63);
  REFUSED(mask->ne[1] = 1);
  REFUSED(op->src[0] = NULL);
  REFUSED_OF(plain(CACHE_CAST), v->type = GGML_ABI_BF16);
#undef REFUSED
#undef REFUSED_OF
}

static void test_other_operations(void **state) {
  ggml_session *s = &session;
  void *x = s->ggml_init((ggml_abi_init_params){1 << 16, NULL, false});
  ggml_abi_tensor *t = s->ggml_new_tensor_4d(x, GGML_ABI_F32, 4, 4, 1, 1);
  (void)state;
  assert_true(s->ggml_backend_dev_supports_op(
      s->amla_device, s->ggml_view_4d(x, t, 2, 2, 1, 1, t->nb[1], t->nb[2], t->nb[3], 0)));
  assert_false(s->ggml_backend_dev_supports_op(
      s->amla_device, s->ggml_custom_4d(x, GGML_ABI_F32, 1, 1, 1, 1, NULL, 0, NULL, 1, NULL)));
  s->ggml_free(x);
}

int main(int argc, char **argv) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_cases_of_ggml),    cmocka_unit_test(test_streams),
      cmocka_unit_test(test_512_and_f32),      cmocka_unit_test(test_casts_from_f32),
      cmocka_unit_test(test_blocks),           cmocka_unit_test(test_blocks_are_read_as_by_ggml),
      cmocka_unit_test(test_shapes),           cmocka_unit_test(test_one_tensor_is_both),
      cmocka_unit_test(test_values_apart),     cmocka_unit_test(test_values_amid_keys),
      cmocka_unit_test(test_threads),          cmocka_unit_test(test_abort),
      cmocka_unit_test(test_sparse),           cmocka_unit_test(test_refusals),
      cmocka_unit_test(test_other_operations), cmocka_unit_test(test_indexer),
      cmocka_unit_test(test_indexer_lines),    cmocka_unit_test(test_indexer_refusals),
      cmocka_unit_test(test_indexer_abort),
  };
  if (argc == 4)
    largest_gflop = atof(argv[3]);
  if (argc < 3 || argc > 4 || !(largest_gflop > 0.0)) {
    fprintf(stderr, "usage: test_ggml_ops LIBGGML_AMLA_SO FOLDER_OF_LIBGGML [GFLOP]\n");
    return 2;
  }
  setenv("AMLA_LOG", "1", 1);
  if (!ggml_session_open(&session, argv[2], argv[1]))
    return 1;
  print_message("ggml %s, %s, %s\n", session.ggml_version(),
                session.ggml_backend_dev_description(session.cpu_device),
                session.ggml_backend_dev_description(session.amla_device));
  ggml_session_threads(&session, 2);
  const int failed = cmocka_run_group_tests_name("ggml_ops", tests, NULL, NULL);
  ggml_session_close(&session);
  return failed;
}
