/* SPDX-License-Identifier: Apache-2.0
 *
 * The three forms, over any library's sgemm. Unfused and bare are the blocked loop with one block
 * of all tokens. Scores are in log2 units: q carries scale * log2 e. Rows of S^T are padded to
 * whole vectors, so that odd head counts have no scalar tails.
 */
#include "peer.h"

#include <assert.h>
#include <math.h>
#include <omp.h>
#include <stdlib.h>
#include <string.h>

#include "harness/truth.h"
#include "bench_memory.h"
#include "peer_vector.h"

enum { BLOCK_TOKENS = 256, LANES = 16 };
static const float log2e = 1.44269504f, hidden = -1e30f; /* log2 units: 2^hidden is nothing */

const char *const peer_form_names[PEER_FORMS] = {"unfused", "blocked", "bare"};

struct peer {
  const peer_library *library;
  const peer_vector *vector;
  const harness_dataset *data;
  peer_form form;
  int threads, rows, columns; /* rows of one sequence, s_q * h_q; the same padded to LANES */
  int block;                  /* tokens */
  float *q;                   /* [rows][d_qk], bare: [b][rows][d_qk] */
  float *kv;                  /* [block][d_qk], bare: [b][sk][d_qk] */
  float *s;                   /* [block][columns] */
  float *max, *sum, *factor;  /* [columns]; factor also serves as the maximum before a block */
  float *parts;               /* [threads][columns] */
};

/* ---- Widening ---- */

static const uint16_t *token_of(const peer *x, int sequence, int64_t j) {
  const amla_problem *p = &x->data->problem;
  const int32_t *table = x->data->tensors.block_table;
  return (const uint16_t *)x->data->tensors.kv + harness_token_offset(p, table, sequence, j);
}

static void widen_kv(const peer *x, int sequence, int64_t first, int tokens, float *to) {
  const int d = x->data->problem.d_qk;
#pragma omp parallel for num_threads(x->threads) schedule(static)
  for (int t = 0; t < tokens; t++)
    x->vector->widen_bf16(d, token_of(x, sequence, first + t), to + (int64_t)t * d);
}

static void widen_q(const peer *x, int sequence, float *to) {
  const amla_problem *p = &x->data->problem;
  const int n = x->rows * p->d_qk;
  x->vector->widen_bf16(n, (const uint16_t *)x->data->tensors.q + (int64_t)sequence * n, to);
  x->vector->scale_row(n, p->scale * log2e, to);
}

/* ---- Softmax ---- */

/* Tokens of the block that a query must not see count as nothing. */
static void hide(const peer *x, int sequence, int64_t first, int tokens) {
  const amla_problem *p = &x->data->problem;
  for (int i = 0; i < p->s_q; i++) {
    const int64_t seen = harness_visible(p, &x->data->tensors, sequence, i) - first;
    for (int64_t t = seen > 0 ? seen : 0; t < tokens; t++)
      for (int h = 0; h < p->h_q; h++)
        x->s[t * x->columns + i * p->h_q + h] = hidden;
  }
}

static int begin_of(int tokens, int thread, int threads) {
  return (int)((int64_t)tokens * thread / threads);
}

/* S becomes P; max and sum go on from the blocks before; factor becomes 2^(old max - max). */
static void softmax(peer *x, int tokens) {
  memcpy(x->factor, x->max, (size_t)x->columns * sizeof *x->max);
#pragma omp parallel num_threads(x->threads)
  {
    const int me = omp_get_thread_num(), all = omp_get_num_threads(),
              first = begin_of(tokens, me, all);
    const int n = begin_of(tokens, me + 1, all) - first, columns = x->columns;
    float *part = x->parts + me * columns, *s = x->s + (int64_t)first * columns;
    memcpy(part, x->factor, (size_t)columns * sizeof *part);
    x->vector->max_columns(n, columns, s, part);
#pragma omp barrier
#pragma omp single
    x->vector->max_columns(all, columns, x->parts, x->max);
    memset(part, 0, (size_t)columns * sizeof *part);
    x->vector->exp2_columns(n, columns, s, x->max, part);
  }
  for (int r = 0; r < x->columns; r++)
    x->factor[r] -= x->max[r];
  x->vector->exp2_each(x->columns, x->factor);
  for (int r = 0; r < x->columns; r++)
    x->sum[r] *= x->factor[r];
  for (int i = 0; i < x->threads; i++)
    for (int r = 0; r < x->columns; r++)
      x->sum[r] += x->parts[i * x->columns + r];
}

static void rescale(const peer *x, float *out) { /* only rows whose maximum grew */
  const int d_v = x->data->problem.d_v;
#pragma omp parallel for num_threads(x->threads) schedule(static)
  for (int r = 0; r < x->rows; r++)
    if (x->factor[r] != 1.0f)
      x->vector->scale_row(d_v, x->factor[r], out + (int64_t)r * d_v);
}

/* ---- Loop ---- */

/* Tokens [first, first + tokens): kv [tokens][d_qk], q [rows][d_qk], out [rows][d_v]. */
static void attend_block(peer *x, int sequence, int64_t first, int tokens, const float *q,
                         const float *kv, float *out) {
  const int d_qk = x->data->problem.d_qk, d_v = x->data->problem.d_v;
  x->library->sgemm(false, true, tokens, x->rows, d_qk, kv, d_qk, q, d_qk, 0, x->s, x->columns);
  hide(x, sequence, first, tokens);
  softmax(x, tokens);
  if (first > 0)
    rescale(x, out);
  x->library->sgemm(true, false, x->rows, d_v, tokens, x->s, x->columns, kv, d_qk,
                    first > 0 ? 1 : 0, out, d_v);
}

static void finish(const peer *x, int sequence, float *out) {
  const amla_problem *p = &x->data->problem;
  float *lse = x->data->tensors.lse + (int64_t)sequence * x->rows;
#pragma omp parallel for num_threads(x->threads) schedule(static)
  for (int r = 0; r < x->rows; r++) {
    x->vector->scale_row(p->d_v, 1 / x->sum[r], out + (int64_t)r * p->d_v);
    lse[r % p->h_q * p->s_q + r / p->h_q] = (x->max[r] + log2f(x->sum[r])) / log2e;
  }
}

static void attend(peer *x, int sequence) {
  const amla_problem *p = &x->data->problem;
  const int64_t n = x->data->tensors.seqlens_k[sequence];
  const bool bare = x->form == PEER_BARE;
  float *q = x->q + (bare ? (int64_t)sequence * x->rows * p->d_qk : 0);
  float *kv = x->kv + (bare ? (int64_t)sequence * p->sk * p->d_qk : 0);
  float *out = (float *)x->data->tensors.out + (int64_t)sequence * x->rows * p->d_v;
  for (int r = 0; r < x->columns; r++)
    x->max[r] = hidden, x->sum[r] = 0;
  if (!bare)
    widen_q(x, sequence, q);
  for (int64_t first = 0; first < n; first += x->block) {
    const int tokens = (int)(n - first < x->block ? n - first : x->block);
    if (!bare)
      widen_kv(x, sequence, first, tokens, kv);
    attend_block(x, sequence, first, tokens, q, kv, out);
  }
  finish(x, sequence, out);
}

void peer_run(void *context) {
  peer *x = context;
  for (int i = 0; i < x->data->problem.b; i++)
    attend(x, i);
}

/* ---- Creation ---- */

static const peer_vector *const vectors[] = {
    &peer_vector__c,
#if defined(__x86_64__)
    &peer_vector__avx2,
    &peer_vector__avx512,
#endif
};

static const peer_vector *vector_for(amla_isa isa) {
  const peer_vector *best = &peer_vector__c;
  for (size_t i = 0; i < sizeof vectors / sizeof *vectors; i++)
    if (vectors[i]->isa <= isa)
      best = vectors[i];
  return best;
}

static float *allocate(int64_t n) { return bench_huge_allocate((size_t)n * sizeof(float)); }

static void widen_all(peer *x) { /* once, outside of the measured time */
  const amla_problem *p = &x->data->problem;
  for (int i = 0; i < p->b; i++) {
    widen_q(x, i, x->q + (int64_t)i * x->rows * p->d_qk);
    widen_kv(x, i, 0, x->data->tensors.seqlens_k[i], x->kv + (int64_t)i * p->sk * p->d_qk);
  }
}

peer *peer_create(const peer_library *library, peer_form form, const harness_dataset *data,
                  amla_isa isa, int threads) {
  const amla_problem *p = &data->problem;
  assert(p->kv_type == AMLA_BF16 && p->q_type == AMLA_BF16 && p->out_type == AMLA_F32 &&
         !data->sinks);
  peer *x = calloc(1, sizeof *x);
  if (x == NULL)
    abort();
  *x = (peer){.library = library,
              .vector = vector_for(isa),
              .data = data,
              .form = form,
              .threads = threads};
  const int64_t copies = form == PEER_BARE ? p->b : 1;
  x->rows = p->s_q * p->h_q;
  x->columns = (x->rows + LANES - 1) / LANES * LANES;
  x->block = form == PEER_BLOCKED && p->sk > BLOCK_TOKENS ? BLOCK_TOKENS : p->sk;
  x->q = allocate(copies * x->rows * p->d_qk);
  x->kv = allocate(copies * x->block * p->d_qk);
  x->s = allocate((int64_t)x->block * x->columns);
  x->max = allocate((3 + (int64_t)threads) * x->columns);
  x->sum = x->max + x->columns;
  x->factor = x->sum + x->columns;
  x->parts = x->factor + x->columns;
  if (form == PEER_BARE)
    widen_all(x);
  return x;
}

void peer_destroy(peer *x) {
  if (x == NULL)
    return;
  free(x->q);
  free(x->kv);
  free(x->s);
  free(x->max);
  free(x);
}
