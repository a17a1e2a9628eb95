/* SPDX-License-Identifier: Apache-2.0
 *
 * Adapter from a plan to the executable specification: gathers a query row and blocks of KV rows as
 * f32 and lets spec/amla.c do the rest. One thread, one row at a time. Always built, always right,
 * slow.
 */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "../../spec/spec.h"
#include "../base/arena.h"
#include "../base/headroom.h"
#include "../base/load.h"
#include "../cancel.h"
#include "../plan.h"
#include "../keys.h"

enum { BLOCK_TOKENS = 128 };

typedef struct buffers {
  float *q, *kv, *bias, *p, *o;
} buffers;

static buffers carve(const amla_problem *p, amla_arena *arena) {
  buffers b;
  b.q = amla_arena_take(arena, p->d_qk, sizeof(float));
  b.kv = amla_arena_take(arena, (int64_t)BLOCK_TOKENS * p->d_qk, sizeof(float));
  b.bias = amla_arena_take(arena, BLOCK_TOKENS, sizeof(float));
  b.p = amla_arena_take(arena, BLOCK_TOKENS, sizeof(float));
  b.o = amla_arena_take(arena, p->d_v, sizeof(float));
  return b;
}

static amla_status prepare(amla_plan *plan, amla_detail *detail) {
  (void)detail;
  amla_arena arena = amla_arena_create(NULL);
  carve(&plan->problem, &arena);
  plan->scratch_bytes = AMLA_ARENA_ALIGN + arena.used_bytes;
  return AMLA_OK;
}

static spec_algo algo(amla_rescale mode, int32_t length) {
  /* by amla_rescale */
  static const spec_mode modes[] = {SPEC_LAZY, SPEC_LAZY, SPEC_AMLA, SPEC_FLASH};
  const int headroom = amla_headroom(mode, length);
  return (spec_algo){.mode = modes[mode], .p = SPEC_P_F32, .headroom = headroom};
}

static void load_q(const amla_problem *p, const amla_tensors *t, int32_t sequence, int32_t query,
                   int32_t head, float *dst) {
  const int32_t d = amla_q_elems(p);
  for (int32_t i = 0; i < p->k_begin; i++) /* times what is no key */
    *dst++ = 0.0f;
  amla_load_row(p->q_type, d, amla_q_row(p, t, sequence, query, head), dst);
  if (p->q_d_rope > 0)
    amla_load_row(p->q_type, p->q_d_rope, amla_q_rope(p, t, sequence, query, head), dst + d);
}

/* A key's row, whose rope part may lie apart. */
static void load_key(const amla_problem *p, amla_token_ref from, float *dst) {
  amla_row_format f = amla_row_format_of(p);
  if (p->kv_d_rope > 0) {
    const amla_row_format rope = {p->kv_type, p->kv_d_rope, 0, f.scale, f.rope_scale};
    f.d = f.d_latent;
    amla_load_kv_row(&rope, from.rope, NULL, dst + f.d);
  }
  amla_load_kv_row(&f, from.row, from.scales, dst);
}

/* The next block of keys from *j on that the mask leaves: their rows and what is added to their
 * scores. Returns how many. */
static int32_t gather(const amla_line *line, int32_t visible, const uint16_t *mask,
                      const buffers *b, int32_t *j, amla_cursor *cursor) {
  const amla_problem *p = line->segments[0].problem;
  int32_t n = 0;
  for (; *j < visible && n < BLOCK_TOKENS; ++*j) {
    if (mask && mask[*j] == AMLA_MASK_HIDDEN)
      continue;
    amla_token_ref from;
    amla_line_locate(line, *j, 1, cursor, &from);
    load_key(p, from, b->kv + (int64_t)n * p->d_qk);
    b->bias[n++] = mask ? amla_f16_to_f32(mask[*j]) : 0.0f;
  }
  return n;
}

/* What asking for the end of a run takes. */
typedef struct ending {
  fenv_t callers;
  atomic_int ended;
} ending;

/* Returns 0 if the run is to end. */
static int run_row(const amla_plan *plan, const amla_scopes *scopes, const buffers *b, ending *e,
                   int32_t sequence, int32_t query, int32_t head) {
  const amla_problem *p = &plan->problem;
  const amla_tensors *t = scopes->tensors;
  const amla_line line = amla_line_create(scopes, sequence, query);
  const int32_t visible = amla_has_lines(p) ? line.n : amla_visible(p, t, sequence, query);
  const spec_algo a = algo(plan->options.rescale, line.n);
  const uint16_t *mask = amla_mask_row(p, t, sequence, query);
  amla_cursor cursor = AMLA_CURSOR_INIT;
  spec_row row = SPEC_ROW_INIT;
  load_q(p, t, sequence, query, head, b->q);
  for (int32_t j = 0; j < visible;) {
    if (amla_is_cancelled(&plan->options, &e->ended, &e->callers))
      return 0;
    const int32_t n = gather(&line, visible, mask, b, &j, &cursor);
    spec_block(&a, &row, p->d_qk, p->d_v, p->scale, b->q, b->kv, b->bias, n, b->p, b->o);
  }
  const double log2e = 1.4426950408889634;
  const double lse2 = (double)spec_finish(&a, &row, p->d_v, b->o) * log2e;
  const double max2 = (double)row.max * (a.mode == SPEC_LAZY ? 1.0 : log2e);
  const amla_row_end end =
      amla_end_row(p, &plan->options, t, sequence, query, head, (amla_row_sums){1.0, lse2, max2});
  if (end.out)
    amla_store_row(p->out_type, p->d_v, b->o, end.factor, end.out);
  return 1;
}

static amla_status run(const amla_plan *plan, const amla_tensors *tensors, void *scratch,
                       amla_detail *detail) {
  const amla_problem *p = &plan->problem;
  amla_arena arena = amla_arena_create(scratch);
  const buffers b = carve(p, &arena);
  const amla_scopes scopes = amla_scopes_create(p, tensors);
  ending e = {amla_enter_environment(), 0};
  int goes_on = 1;
  for (int32_t i = 0; goes_on && i < p->b; i++)
    for (int32_t query = 0; goes_on && query < amla_query_count(p, tensors, i); query++)
      for (int32_t head = 0; goes_on && head < p->h_q; head++)
        goes_on = run_row(plan, &scopes, &b, &e, i, query, head);
  amla_leave_environment(&e.callers);
  return goes_on ? AMLA_OK : amla_refuse_cancelled(detail);
}

static const char *isa(amla_isa cap) {
  (void)cap;
  return "";
}

static void query(const amla_plan *plan, amla_plan_info *info) {
  info->threads = info->block_rows = 1;
  info->tile_tokens = BLOCK_TOKENS;
  info->split_tokens = amla_longest_line(&plan->problem);
  info->p_form = AMLA_P_F32;
}

static int describe(const amla_plan *plan, char *text, size_t capacity_bytes) {
  return snprintf(text, capacity_bytes, "ref %s, blocks of %d tokens, 1 thread",
                  amla_rescale_name(plan->options.rescale), BLOCK_TOKENS);
}

static const char *absent(void) { return NULL; }

const amla_backend_ops amla_backend_ref = {.plan_bytes = sizeof(amla_plan),
                                           .id = AMLA_BACKEND_REF,
                                           .name = "ref",
                                           .own_environment = 1,
                                           .absent = absent,
                                           .isa = isa,
                                           .prepare = prepare,
                                           .query = query,
                                           .describe = describe,
                                           .run = run};
