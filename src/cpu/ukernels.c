/* SPDX-License-Identifier: Apache-2.0
 *
 * All dispatch of the CPU backend: start from portable C, climb the ISA ladder, stop at the first
 * missing step or the cap. And what every row of the table must keep.
 */
#include "ukernels.h"

#include <assert.h>
#include <stddef.h>

#include "../base/isa.h"

extern const amla_ukernels amla_ukernels__avx2, amla_ukernels__avx512, amla_ukernels__avx512bf16,
    amla_ukernels__avx512bf16_p16, amla_ukernels__amxbf16_f32, amla_ukernels__amxbf16_bf16x2,
    amla_ukernels__amxbf16_bf16;
#ifdef AMLA_TEST_ROWS /* the contract of rows of bf16 in C, for tests */
extern const amla_ukernels amla_ukernels__model, amla_ukernels__model_p16;
#endif
extern const amla_ukernels amla_ukernels__neon, amla_ukernels__neonbf16[3][3];

const amla_ukernels *const amla_ukernels_all[] = {
    &amla_ukernels__c,
#ifdef AMLA_TEST_ROWS
    &amla_ukernels__model,
    &amla_ukernels__model_p16,
#endif
#if defined(__x86_64__)
    &amla_ukernels__avx2,
    &amla_ukernels__avx512,
    &amla_ukernels__avx512bf16,
    &amla_ukernels__avx512bf16_p16,
    &amla_ukernels__amxbf16_f32,
    &amla_ukernels__amxbf16_bf16x2,
    &amla_ukernels__amxbf16_bf16,
#elif defined(__aarch64__)
    &amla_ukernels__neon,
    &amla_ukernels__neonbf16[0][0], /* by parts of q and forms of P */
    &amla_ukernels__neonbf16[0][1],
    &amla_ukernels__neonbf16[0][2],
    &amla_ukernels__neonbf16[1][0],
    &amla_ukernels__neonbf16[1][1],
    &amla_ukernels__neonbf16[1][2],
    &amla_ukernels__neonbf16[2][0],
    &amla_ukernels__neonbf16[2][1],
    &amla_ukernels__neonbf16[2][2],
#endif
    NULL,
};

/* The ladder has a step i under the cap, and it holds. Steps above the cap are not asked: to ask
 * may be to ask the system for permission. */
static int is_step(int i, amla_isa cap) {
  const amla_ukernels *u = amla_ukernels_all[i];
  return u && (cap == AMLA_ISA_AUTO || u->isa <= cap) && amla_isa_runs(u->isa);
}

const amla_ukernels *amla_ukernels_select(amla_isa cap) {
  const amla_ukernels *best = amla_ukernels_all[0];
  for (int i = 1; is_step(i, cap); i++)
    best = amla_ukernels_all[i];
  assert(!amla_ukernels_flaw(best));
  return best;
}

amla_p_form amla_ukernels_p_form(const amla_ukernels *u) {
  return u->p_type == AMLA_F32 ? AMLA_P_F32 : u->p_form;
}

amla_p_form amla_p_form_allowed(const amla_problem *p, const amla_options *o) {
  if (o->p_form != AMLA_P_DEFAULT)
    return o->p_form;
  return p->out_type == AMLA_F32 ? AMLA_P_F32 : AMLA_P_BF16X2;
}

int32_t amla_q_parts(const amla_problem *p, const amla_options *o) {
  if (p->q_type == AMLA_BF16)
    return 1;
  return p->q_type == AMLA_F16 || o->q_form == AMLA_Q_BF16X2 ? 2 : 3;
}

/* Does bf16 hold the type's keys, or may they be rounded to it? Elements of fp8_584 have 4 bits. */
static int keys_are_bf16(const amla_problem *p, const amla_options *o) {
  return p->kv_type == AMLA_BF16 || p->kv_type == AMLA_FP8_584 || o->kv_round == AMLA_KV_BF16;
}

static int takes_q(const amla_ukernels *u, const amla_problem *p, const amla_options *o) {
  return u->q_in_parts || amla_ukr_q_parts(u) == amla_q_parts(p, o);
}

static int takes(const amla_ukernels *u, const amla_problem *p, const amla_options *o) {
  if (u->tile_type == AMLA_F32)
    return 1;
  return p->k_begin == 0 && keys_are_bf16(p, o) && takes_q(u, p, o) &&
         amla_ukernels_p_form(u) <= amla_p_form_allowed(p, o);
}

const amla_ukernels *amla_ukernels_choose(const amla_problem *p, const amla_options *o) {
  const amla_ukernels *best = amla_ukernels_all[0];
  for (int i = 1; is_step(i, o->isa); i++) {
    const amla_ukernels *u = amla_ukernels_all[i];
    const int wanted = u->isa == o->isa || amla_isa_gains(u->isa); /* named, or of use */
    if (wanted && takes(u, p, o))
      best = u;
  }
  assert(!amla_ukernels_flaw(best));
  return best;
}

static const char *panel_flaw(const amla_ukernels *u, const amla_ukr_panel *p) {
  if (p->rows < 1 || p->rows > AMLA_UKR_MAX_ROWS)
    return "a panel has 1..AMLA_UKR_MAX_ROWS rows";
  if (p->rows % u->pv_rows)
    return "pv_rows divides a panel's rows";
  if (p->rows % u->narrow.rows)
    return "a narrow panel's rows divide a wide one's";
  if (p->tokens < 1 || p->tokens > AMLA_UKR_MAX_QK_TOKENS)
    return "a score tile has 1..AMLA_UKR_MAX_QK_TOKENS tokens";
  if (u->tile_tokens % p->tokens)
    return "a panel's tokens divide tile_tokens";
  if (p->depth < 1 || p->depth > AMLA_UKR_MAX_DEPTH || p->ahead < 0 || p->ahead > 1)
    return "depth is in 1..AMLA_UKR_MAX_DEPTH, ahead is 0 or 1";
  if (!p->pack || !p->qk || !p->max || !p->exp)
    return "a panel has all its kernels";
  return NULL;
}

static const char *pv_end_flaw(const amla_ukernels *u) {
  const amla_ukr_pv_end *end = &u->pv_end;
  if (!end->pv)
    return NULL;
  if (end->rows < 1 || end->rows % u->pv_rows)
    return "pv_end's rows are a multiple of pv_rows";
  if (u->wide.rows % end->rows || u->narrow.rows % end->rows)
    return "pv_end's rows divide a panel's";
  if (end->cols < 8 || end->cols % 8 || end->cols >= u->pv_cols)
    return "pv_end's columns are a multiple of 8 below pv_cols";
  return NULL;
}

static const char *types_flaw(const amla_ukernels *u) {
  if (u->tile_type != AMLA_F32 && u->tile_type != AMLA_BF16)
    return "a tile is f32 or bf16";
  if (u->p_type != AMLA_F32 && (u->p_type != AMLA_BF16 || u->tile_type != AMLA_BF16))
    return "P is f32, or bf16 beside a tile of bf16";
  if ((u->p_form == AMLA_P_DEFAULT || u->p_form == AMLA_P_F32) != (u->p_type == AMLA_F32))
    return "p_form is bf16 or bf16x2 where p_type is bf16, and only there";
  if (!u->turn != !u->v_width || u->v_width > 2)
    return "v_width is 1 or 2 with turn, 0 without";
  if (u->p_type == AMLA_BF16 && u->tile_tokens % 2)
    return "tokens go in pairs where p_type is bf16";
  return NULL;
}

const char *amla_ukernels_flaw(const amla_ukernels *u) {
  if (u->tile_tokens < 1 || u->tile_tokens > AMLA_UKR_MAX_TILE_TOKENS)
    return "a tile has 1..AMLA_UKR_MAX_TILE_TOKENS tokens";
  if (u->pv_rows < 1 || u->pv_cols < 8 || u->pv_cols % 8)
    return "pv_cols is a multiple of 8";
  if (u->grain_tokens < 0 || (u->grain_tokens > 0 && u->tile_tokens % u->grain_tokens))
    return "grain_tokens divides tile_tokens";
  if (!u->store || !u->scale || !u->shift || !u->merge)
    return "a row stores, scales, shifts and merges";
  if (u->own)
    return u->narrow.rows % u->pv_rows ? "pv_rows divides a panel's rows" : NULL;
  if (u->wide.rows < u->narrow.rows)
    return "wide is not narrower than narrow";
  if (u->narrow.rows < 8)
    return "a panel has 8 rows or more: AMLA_MAX_PANELS counts on it";
  if (u->narrow.tokens % u->wide.tokens)
    return "a wide panel's tokens divide a narrow one's";
  if (!u->load || !u->pv)
    return "a row has all its kernels";
  const char *flaw = types_flaw(u);
  if (!flaw)
    flaw = panel_flaw(u, &u->wide);
  if (!flaw)
    flaw = panel_flaw(u, &u->narrow);
  return flaw ? flaw : pv_end_flaw(u);
}
