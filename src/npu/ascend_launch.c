/* SPDX-License-Identifier: Apache-2.0
 *
 * Places tensors, work list and workspace in the chip's global memory, and launches. See
 * ascend_launch.h.
 */
#include "ascend_launch.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "../base/float16.h"
#include "../refuse.h"

amla_status ascend_check(const amla_problem *p, amla_rescale rescale, amla_detail *detail) {
  if (p->q_type != AMLA_BF16 && p->q_type != AMLA_F16)
    UNSUPPORTED("q_type=%s: backend npu needs bf16 or f16, the types of its cube",
                amla_dtype_name(p->q_type));
  if (p->kv_type != p->q_type)
    UNSUPPORTED("kv_type=%s: backend npu needs q's, %s", amla_dtype_name(p->kv_type),
                amla_dtype_name(p->q_type));
  if (p->kv_type == AMLA_F16 && rescale == AMLA_RESCALE_AMLA)
    UNSUPPORTED("rescale=amla: backend npu has it for bf16, whose P it compensates, not for f16");
  if (p->out_type == AMLA_F16)
    UNSUPPORTED("out_type=f16: backend npu writes f32 or bf16");
  if (p->d_qk > ASCEND_MAX_QK)
    UNSUPPORTED("d_qk=%d: backend npu needs <= %d, its L1 blocks", p->d_qk, ASCEND_MAX_QK);
  if (p->d_v > ASCEND_MAX_V)
    UNSUPPORTED("d_v=%d: backend npu needs <= %d, its L1 blocks", p->d_v, ASCEND_MAX_V);
  const struct {
    const char *name;
    int64_t value;
  } strides[] = {{"q_stride_head", p->q_stride_head},
                 {"kv_stride_token", p->kv_stride_token},
                 {"out_stride_head", p->out_stride_head}};
  for (size_t i = 0; i < sizeof strides / sizeof *strides; i++)
    if (strides[i].value > INT32_MAX / 4)
      UNSUPPORTED("%s=%lld: backend npu needs <= %d, its copies count in int32", strides[i].name,
                  (long long)strides[i].value, INT32_MAX / 4);
  return AMLA_OK;
}

ascend_mode ascend_mode_of(amla_rescale rescale) {
  switch (rescale) {
  case AMLA_RESCALE_FLASH: return ASCEND_FLASH;
  case AMLA_RESCALE_AMLA: return ASCEND_AMLA;
  default: return ASCEND_LAZY;
  }
}

int32_t ascend_block_rows(const amla_problem *p) {
  return ascend_min(ASCEND_BLOCK_ROWS, p->s_q * p->h_q);
}

ascend_launch ascend_launch_of(const amla_problem *problem, const amla_options *options) {
  ascend_launch l;
  memset(&l, 0, sizeof l);
  l.tiling = ascend_tiling_best(ascend_block_rows(problem), 0);
  l.mode = ascend_mode_of(options->rescale);
  l.split_tiles = options->split_tokens == AMLA_SPLIT_AUTO
                      ? 0
                      : ascend_split_tiles(options->split_tokens, l.tiling.tile_keys);
  l.lse_base2 = options->lse_base == AMLA_LSE_BASE2;
  l.assume_bumps = 1;
  return l;
}

/* ---- Global memory ---- */

typedef struct memory {
  npu_chip *chip;
  amla_detail *detail;
  amla_status status; /* the first failure stays */
} memory;

/* A piece of the chip's own, for kernels to write, or with the contents of `from` if that is given;
 * NULL for 0 bytes. */
static void *place(memory *m, const char *name, int64_t bytes, const void *from) {
  if (m->status != AMLA_OK || bytes == 0)
    return NULL;
  void *at = npu_gm_alloc(m->chip, (size_t)bytes, name);
  if (!at)
    m->status =
        amla_refuse(m->detail, AMLA_OUT_OF_MEMORY,
                    "%s: no memory for %lld bytes of the simulated NPU", name, (long long)bytes);
  if (at && from)
    memcpy(at, from, (size_t)bytes), npu_gm_written(m->chip, at);
  return at;
}

/* The caller's memory in place, or, timing only (NULL), address space of that size. */
static const void *lend(memory *m, const char *name, const void *at, int64_t bytes) {
  if (!at || bytes == 0) {
    const void *own = place(m, name, bytes, NULL);
    if (own)
      npu_gm_written(m->chip, own);
    return own;
  }
  if (m->status == AMLA_OK && npu_gm_register_const(m->chip, at, (size_t)bytes, name) != 0)
    m->status =
        amla_refuse(m->detail, AMLA_UNSUPPORTED,
                    "%s=%p: backend npu needs memory that no other tensor overlaps", name, at);
  return at;
}
static void *lend_output(memory *m, const char *name, void *at, int64_t bytes) {
  if (!at || bytes == 0)
    return place(m, name, bytes, NULL);
  if (m->status == AMLA_OK && npu_gm_register(m->chip, at, (size_t)bytes, name, 1) != 0)
    m->status =
        amla_refuse(m->detail, AMLA_UNSUPPORTED,
                    "%s=%p: backend npu needs memory that no other tensor overlaps", name, at);
  return at;
}

/* Bytes from the first to the last element of rows of `run` elements. */
static int64_t extent(int64_t n0, int64_t stride0, int64_t n1, int64_t stride1, int64_t n2,
                      int64_t stride2, int64_t run, int64_t elem_bytes) {
  if (n0 < 1 || n1 < 1 || n2 < 1)
    return 0;
  return ((n0 - 1) * stride0 + (n1 - 1) * stride1 + (n2 - 1) * stride2 + run) * elem_bytes;
}

/* ---- The caller's tensors, as they lie or repacked ---- */

enum { ELEM_BYTES = 2 }; /* of q and kv */

static void place_packed(memory *m, const amla_problem *p, const amla_tensors *t, ascend_job *j) {
  const int paged = p->page_size > 0;
  const int64_t pages = paged ? p->n_pages : p->b;
  const int64_t tokens = paged ? p->page_size : p->sk;
  const int64_t q_bytes = extent(p->b, p->q_stride_batch, p->s_q, p->q_stride_query, p->h_q,
                                 p->q_stride_head, p->d_qk, ELEM_BYTES);
  const int64_t kv_bytes =
      extent(pages, p->kv_stride_page, tokens, p->kv_stride_token, 1, 0, p->d_qk, ELEM_BYTES);
  j->q = lend(m, "q", t->q, q_bytes);
  j->kv = lend(m, "kv", t->kv, kv_bytes);
}

/* [rows][width] of `from`, rows `stride` apart, as rows or as columns of 16. */
static void repack(npu_bf16 *to, const npu_bf16 *from, int64_t rows, int64_t stride, int32_t width,
                   int32_t nz) {
  for (int64_t r = 0; r < rows; r++)
    for (int32_t c = 0; c < width; c++)
      to[nz ? (c / 16 * rows + r) * 16 + c % 16 : r * width + c] = from[r * stride + c];
}

/* Columns [begin, begin + width) of all pages, in a tensor of their own. */
static const npu_bf16 *repack_kv(memory *m, const char *name, const amla_problem *p,
                                 const npu_bf16 *kv, int32_t begin, int32_t width, int32_t nz) {
  const int64_t pages = p->page_size > 0 ? p->n_pages : p->b;
  const int64_t tokens = p->page_size > 0 ? p->page_size : p->sk;
  npu_bf16 *to = place(m, name, pages * tokens * width * ELEM_BYTES, NULL);
  for (int64_t page = 0; to && kv && page < pages; page++)
    repack(to + page * tokens * width, kv + page * p->kv_stride_page + begin, tokens,
           p->kv_stride_token, width, nz);
  if (to)
    npu_gm_written(m->chip, to);
  return to;
}

static const npu_bf16 *repack_q(memory *m, const char *name, const amla_problem *p,
                                const npu_bf16 *q, int32_t begin, int32_t width) {
  const int64_t queries = (int64_t)p->b * p->s_q;
  npu_bf16 *to = place(m, name, queries * p->h_q * width * ELEM_BYTES, NULL);
  for (int64_t i = 0; to && q && i < queries; i++)
    repack(to + i * p->h_q * width,
           q + i / p->s_q * p->q_stride_batch + i % p->s_q * p->q_stride_query + begin, p->h_q,
           p->q_stride_head, width, 0);
  if (to)
    npu_gm_written(m->chip, to);
  return to;
}

static void place_repacked(memory *m, const amla_problem *p, const amla_tensors *t,
                           const ascend_layout *layout, ascend_job *j) {
  const int32_t rope = layout->d_rope, latent = p->d_qk - rope;
  const int32_t tokens = p->page_size > 0 ? p->page_size : p->sk;
  j->d_latent = latent, j->kv_nz = layout->nz;
  j->q = repack_q(m, "q", p, t->q, 0, latent);
  j->kv = repack_kv(m, "kv", p, t->kv, 0, latent, layout->nz);
  if (rope > 0) {
    j->q_rope = repack_q(m, "q_rope", p, t->q, latent, rope);
    j->kv_rope = repack_kv(m, "kv_rope", p, t->kv, latent, rope, layout->nz);
  }
  j->q_stride_head = latent, j->q_rope_stride_head = rope;
  j->q_stride_query = (int64_t)p->h_q * latent, j->q_rope_stride_query = (int64_t)p->h_q * rope;
  j->q_stride_batch = p->s_q * j->q_stride_query;
  j->q_rope_stride_batch = p->s_q * j->q_rope_stride_query;
  j->kv_stride_token = latent, j->kv_rope_stride_token = rope;
  j->kv_stride_page = (int64_t)tokens * latent, j->kv_rope_stride_page = (int64_t)tokens * rope;
}

/* A token's elements as integers of at most 127 times a power of two: exact if they are such. */
static float quantise(int8_t *to, const uint16_t *from, int32_t n) {
  float most = 0;
  for (int32_t i = 0; i < n; i++)
    most = fmaxf(most, fabsf(amla_f16_to_f32(from[i])));
  const float scale = most > 0 ? exp2f(ceilf(log2f(most / 127))) : 1;
  for (int32_t i = 0; i < n; i++)
    to[i] = (int8_t)lrintf(amla_f16_to_f32(from[i]) / scale);
  return scale;
}

static void place_int8(memory *m, const amla_problem *p, const amla_tensors *t, ascend_job *j) {
  const int64_t pages = p->page_size > 0 ? p->n_pages : p->b;
  const int64_t tokens = p->page_size > 0 ? p->page_size : p->sk;
  int8_t *kv8 = place(m, "kv8", pages * tokens * p->d_qk, NULL);
  float *scales = place(m, "kv_scales", pages * tokens * (int64_t)sizeof(float), NULL);
  for (int64_t i = 0; kv8 && scales && t->kv && i < pages * tokens; i++)
    scales[i] = quantise(kv8 + i * p->d_qk,
                         (const uint16_t *)t->kv + i / tokens * p->kv_stride_page +
                             i % tokens * p->kv_stride_token,
                         p->d_qk);
  if (kv8 && scales)
    npu_gm_written(m->chip, kv8), npu_gm_written(m->chip, scales);
  j->kv8 = kv8, j->kv_scales = scales;
}

static void place_tensors(memory *m, const amla_problem *p, const amla_tensors *t,
                          const ascend_layout *layout, ascend_job *j) {
  const int paged = p->page_size > 0, with_data = t->q != NULL;
  const int64_t out_bytes = extent(p->b, p->out_stride_batch, p->s_q, p->out_stride_query, p->h_q,
                                   p->out_stride_head, p->d_v, p->out_type == AMLA_BF16 ? 2 : 4);
  if (layout->nz || layout->d_rope > 0)
    place_repacked(m, p, t, layout, j);
  else
    place_packed(m, p, t, j);
  if (layout->int8)
    place_int8(m, p, t, j);
  if (paged)
    j->block_table = lend(m, "block_table", t->block_table, (int64_t)p->b * p->max_pages * 4);
  if (t->sinks)
    j->sinks = lend(m, "sinks", t->sinks, (int64_t)p->h_q * 4);
  j->out = lend_output(m, "out", t->out, out_bytes);
  if (!with_data || t->lse)
    j->lse = lend_output(m, "lse", t->lse, (int64_t)p->b * p->s_q * p->h_q * 4);
}

/* Timing only: pages in order, as many as sequences need. */
static void invent_block_table(const amla_problem *p, int32_t *table) {
  for (int64_t i = 0; i < (int64_t)p->b * p->max_pages; i++)
    table[i] = (int32_t)(i % (p->n_pages > 0 ? p->n_pages : 1));
}

static void place_work(memory *m, const ascend_work *w, int32_t cores, const ascend_tiling *t,
                       ascend_job *j) {
  const int64_t row_block = (int64_t)ASCEND_BLOCK_ROWS * ASCEND_TILE_KEYS,
                ring = (int64_t)cores * (t->lag + 1) * row_block;
  j->items = place(m, "items", w->n_items * (int64_t)sizeof *w->items, w->items);
  j->core_items =
      place(m, "core_items", (cores + 1) * (int64_t)sizeof *w->core_items, w->core_items);
  j->merges = place(m, "merges", w->n_merges * (int64_t)sizeof *w->merges, w->merges);
  j->n_merges = w->n_merges;
  j->s = t->in_core ? NULL : place(m, "S", ring * 4, NULL);
  j->p = t->in_core ? NULL : place(m, "P", ring * 2, NULL);
  j->o = place(m, "O", ring * 4, NULL);
  j->o_flash = j->mode == ASCEND_FLASH ? place(m, "O_flash", cores * row_block * 4, NULL) : NULL;
  if (j->kv8)
    j->kv_work =
        place(m, "KV", (int64_t)cores * ascend_kv_slots(j) * ASCEND_TILE_KEYS * j->d_qk * 2, NULL);
  j->split_o = place(m, "split_O", w->n_splits * row_block * 4, NULL);
  j->split_lse = place(m, "split_LSE", w->n_splits * (int64_t)ASCEND_BLOCK_ROWS * 4, NULL);
}

static void describe_job(const amla_problem *p, const ascend_launch *l, ascend_job *j) {
  j->mode = l->mode, j->tiling = l->tiling;
  j->s_q = p->s_q, j->h_q = p->h_q, j->d_qk = p->d_qk, j->d_v = p->d_v, j->causal = p->causal;
  j->scale = p->scale;
  j->q_stride_batch = p->q_stride_batch, j->q_stride_query = p->q_stride_query,
  j->q_stride_head = (int32_t)p->q_stride_head;
  j->kv_stride_page = p->kv_stride_page, j->kv_stride_token = (int32_t)p->kv_stride_token;
  j->out_stride_batch = p->out_stride_batch, j->out_stride_query = p->out_stride_query,
  j->out_stride_head = (int32_t)p->out_stride_head;
  j->d_latent = p->d_qk, j->f16 = p->kv_type == AMLA_F16;
  j->page_size = p->page_size > 0 ? p->page_size : p->sk, j->max_pages = p->max_pages;
  j->out_is_bf16 = p->out_type == AMLA_BF16, j->lse_base2 = l->lse_base2;
  j->unguarded = l->unguarded, j->clamp = l->clamp, j->assume_bumps = l->assume_bumps;
}

/* ---- Launch ---- */

static amla_status launch_work(npu_chip *chip, npu_mode mode, const amla_problem *p,
                               const amla_tensors *t, const ascend_launch *l, const ascend_work *w,
                               int32_t cores, npu_report *report, amla_detail *detail) {
  memory m = {chip, detail, AMLA_OK};
  ascend_job j;
  memset(&j, 0, sizeof j);
  describe_job(p, l, &j);
  npu_gm_forget_all(chip);
  place_tensors(&m, p, t, &l->layout, &j);
  if (m.status == AMLA_OK && mode == NPU_TIMING_ONLY && j.block_table && !t->block_table) {
    union {
      const int32_t *lent;
      int32_t *own;
    } table = {j.block_table}; /* place() made it */
    invent_block_table(p, table.own);
  }
  place_work(&m, w, cores, &l->tiling, &j);
  if (m.status == AMLA_OK &&
      npu_launch(chip, ascend_cube, ascend_vector, &j, &l->options, report) < 0)
    m.status =
        amla_refuse(detail, AMLA_BACKEND_FAILED, "simulated NPU: %.200s", report->message[0]);
  npu_gm_forget_all(chip);
  return m.status;
}

static amla_status check_layout(const ascend_layout *l, const amla_problem *p,
                                amla_detail *detail) {
  if (l->d_rope < 0 || l->d_rope >= p->d_qk)
    INVALID("d_rope=%d: must be in 0..%d", l->d_rope, p->d_qk - 1);
  if ((l->nz || l->d_rope > 0) && (p->d_qk % 16 || l->d_rope % 16))
    INVALID("d_rope=%d: in this layout it and d_qk=%d must be multiples of 16", l->d_rope, p->d_qk);
  if (l->int8 && (p->kv_type != AMLA_F16 || p->d_qk % 64 || l->nz || l->d_rope > 0))
    INVALID("kv_int8=1: needs q and kv of f16, packed rows and d_qk=%d a multiple of 64", p->d_qk);
  return AMLA_OK;
}

static amla_status check_in_core(const ascend_launch *l, const npu_preset *preset,
                                 amla_detail *detail) {
  if (l->tiling.in_core && !preset->core_paths)
    INVALID("schedule=in-core: chip %s has no path from L0C to UB", preset->name);
  if (l->tiling.in_core && l->layout.int8)
    INVALID("kv_int8=1: schedule in-core does not have it");
  return AMLA_OK;
}

amla_status ascend_launch_run(npu_chip *chip, const npu_preset *preset, npu_mode mode,
                              const amla_problem *p, const amla_tensors *t, const ascend_launch *l,
                              npu_report *report, amla_detail *detail) {
  const int32_t cores =
      l->options.cores > 0 ? l->options.cores : preset->dies * preset->cores_per_die;
  ascend_shape shape = {p->b,
                        p->s_q,
                        p->h_q,
                        p->causal,
                        cores,
                        l->tiling.tile_keys,
                        ascend_most_rows(&l->tiling),
                        l->split_tiles,
                        t->seqlens_k};
  ascend_work work;
  int32_t *all_sk = NULL;
  const char *wrong = ascend_tiling_error(&l->tiling);
  if (wrong)
    INVALID("tiling: %s", wrong);
  TRY(check_layout(&l->layout, p, detail));
  TRY(check_in_core(l, preset, detail));
  if (!t->seqlens_k) {
    shape.seqlens_k = all_sk = malloc((size_t)p->b * sizeof *all_sk + 1);
    for (int32_t i = 0; all_sk && i < p->b; i++)
      all_sk[i] = p->sk;
  }
  if (!shape.seqlens_k || ascend_work_create(&shape, &work) != 0) {
    free(all_sk);
    return amla_refuse(detail, AMLA_OUT_OF_MEMORY,
                       "npu: no memory for the work list of %d sequences", p->b);
  }
  const amla_status status = launch_work(chip, mode, p, t, l, &work, cores, report, detail);
  ascend_work_free(&work);
  free(all_sk);
  return status;
}
