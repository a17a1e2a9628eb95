/* SPDX-License-Identifier: Apache-2.0
 *
 * Adapter from a plan to the executable specification: gathers a query row and blocks of KV rows as f32 and lets
 * spec/amla.c do the rest. One thread, one row at a time. Always built, always right, slow.
 */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "../../spec/spec.h"
#include "../base/arena.h"
#include "../base/float16.h"
#include "../plan.h"
#include "../problem.h"

enum { BLOCK_TOKENS = 128 };

typedef struct buffers {
  float *q, *kv, *p, *o;
} buffers;

static buffers carve(const amla_problem *p, amla_arena *arena) {
  buffers b;
  b.q = amla_arena_take(arena, p->d_qk, sizeof(float));
  b.kv = amla_arena_take(arena, (int64_t)BLOCK_TOKENS * p->d_qk, sizeof(float));
  b.p = amla_arena_take(arena, BLOCK_TOKENS, sizeof(float));
  b.o = amla_arena_take(arena, p->d_v, sizeof(float));
  return b;
}

static void prepare(amla_plan *plan) {
  amla_arena arena = amla_arena_create(NULL);
  carve(&plan->problem, &arena);
  plan->scratch_bytes = AMLA_ARENA_ALIGN + arena.used_bytes;
}

static void load_row(amla_dtype type, int32_t n, const void *src, float *dst) {
  const uint16_t *h = src;
  if (type == AMLA_F32) memcpy(dst, src, (size_t)n * sizeof *dst);
  for (int32_t i = 0; type != AMLA_F32 && i < n; i++) dst[i] = type == AMLA_BF16 ? amla_bf16_to_f32(h[i]) : amla_f16_to_f32(h[i]);
}

static spec_algo algo(amla_rescale mode) {
  spec_algo a = {mode == AMLA_RESCALE_FLASH ? SPEC_FLASH : mode == AMLA_RESCALE_AMLA ? SPEC_AMLA : SPEC_LAZY, SPEC_P_F32, 0, 0, 0};
  return a;
}

static void run_row(const amla_plan *plan, const amla_tensors *t, const buffers *b, int32_t sequence, int32_t query, int32_t head) {
  const amla_problem *p = &plan->problem;
  const spec_algo a = algo(plan->options.rescale);
  const int32_t visible = amla_visible(p, amla_seqlen(p, t, sequence), query);
  spec_row row = SPEC_ROW_INIT;
  load_row(p->q_type, p->d_qk, amla_q_row(p, t, sequence, query, head), b->q);
  for (int32_t j = 0, n; j < visible; j += n) {
    n = visible - j < BLOCK_TOKENS ? visible - j : BLOCK_TOKENS;
    for (int32_t i = 0; i < n; i++) load_row(p->kv_type, p->d_qk, amla_token(p, t, sequence, j + i), b->kv + (int64_t)i * p->d_qk);
    spec_block(&a, &row, p->d_qk, p->d_v, p->scale, b->q, b->kv, n, b->p, b->o);
  }
  const double lse = (double)spec_finish(&a, &row, p->d_v, b->o);
  amla_store_row(p, &plan->options, t, sequence, query, head, b->o, p->d_v, 0, 1.0, lse * 1.4426950408889634);
}

static void run(const amla_plan *plan, const amla_tensors *tensors, void *scratch) {
  const amla_problem *p = &plan->problem;
  amla_arena arena = amla_arena_create(scratch);
  const buffers b = carve(p, &arena);
  for (int32_t i = 0; i < p->b; i++)
    for (int32_t query = 0; query < p->s_q; query++)
      for (int32_t head = 0; head < p->h_q; head++) run_row(plan, tensors, &b, i, query, head);
}

static const char *isa(amla_isa cap) {
  (void)cap;
  return "";
}

static int describe(const amla_plan *plan, char *text, size_t capacity_bytes) {
  static const char *const modes[] = {"", "lazy", "amla", "flash"};
  return snprintf(text, capacity_bytes, "ref %s, blocks of %d tokens, 1 thread", modes[plan->options.rescale], BLOCK_TOKENS);
}

const amla_backend_ops amla_backend_ref = {AMLA_BACKEND_REF, "ref", NULL, isa, prepare, describe, run};
