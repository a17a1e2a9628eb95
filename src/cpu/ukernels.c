/* SPDX-License-Identifier: Apache-2.0
 *
 * All dispatch of the CPU backend: start from portable C, climb the ISA ladder, stop at the first
 * missing step or the cap. And what every row of the table must keep.
 */
#include "ukernels.h"

#include <assert.h>
#include <stddef.h>

#include "../base/isa.h"

extern const amla_ukernels amla_ukernels__avx2, amla_ukernels__avx512;

const amla_ukernels *const amla_ukernels_all[] = {
    &amla_ukernels__c,
#if defined(__x86_64__)
    &amla_ukernels__avx2,
    &amla_ukernels__avx512,
#endif
    NULL,
};

const amla_ukernels *amla_ukernels_select(amla_isa cap) {
  const amla_ukernels *best = amla_ukernels_all[0];
  for (int i = 1; amla_ukernels_all[i] && amla_isa_runs(amla_ukernels_all[i]->isa); i++)
    if (cap == AMLA_ISA_AUTO || amla_ukernels_all[i]->isa <= cap)
      best = amla_ukernels_all[i];
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
  if (p->depth < 1 || p->ahead < 0 || p->ahead > 1)
    return "depth >= 1, ahead is 0 or 1";
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

const char *amla_ukernels_flaw(const amla_ukernels *u) {
  if (u->tile_tokens < 1 || u->tile_tokens > AMLA_UKR_MAX_TILE_TOKENS)
    return "a tile has 1..AMLA_UKR_MAX_TILE_TOKENS tokens";
  if (u->pv_rows < 1 || u->pv_cols < 8 || u->pv_cols % 8)
    return "pv_cols is a multiple of 8";
  if (u->wide.rows < u->narrow.rows)
    return "wide is not narrower than narrow";
  if (u->narrow.rows < 8)
    return "a panel has 8 rows or more: AMLA_MAX_PANELS counts on it";
  if (u->narrow.tokens % u->wide.tokens)
    return "a wide panel's tokens divide a narrow one's";
  if (!u->load || !u->store || !u->pv || !u->scale || !u->shift || !u->merge)
    return "a row has all its kernels";
  const char *flaw = panel_flaw(u, &u->wide);
  if (!flaw)
    flaw = panel_flaw(u, &u->narrow);
  return flaw ? flaw : pv_end_flaw(u);
}
