/* SPDX-License-Identifier: Apache-2.0
 *
 * What the AMX-BF16 row's loop (amx_loop.c) and its kernels (ukr__amxbf16.c) share. tdpbf16ps adds
 * a left tile [16][32] times a right tile [16 pairs][16] to a tile of f32 [16][16]; a pair is two
 * neighbours in the dimension that is summed over. A tile of bf16 is 1 KB, contiguous or, for a
 * left operand, 16 rows at equal distances.
 *
 *     product        left                 right                       made
 *     S^T = K Q^T    K: 16 tokens x 32    Q^T in pairs of columns     Q^T: once a row block
 *     O  += P V      P: 16 rows x 32      V in pairs of tokens        V: one unpack a vector
 *
 * Rows of Q are the lanes of scores and of P, so softmax has no horizontal step. The vector units
 * make P and V's pairs beside the products, which leave them idle.
 */
#ifndef AMLA_CPU_AMX_H
#define AMLA_CPU_AMX_H

#include "decode.h"

enum {
  AMLA_AMX_ROWS = 16,    /* of a tile */
  AMLA_AMX_DEPTH = 32,   /* columns or tokens that a product sums over */
  AMLA_AMX_TILE = 512,   /* elements of a tile of bf16 */
  AMLA_AMX_TOKENS = 128, /* of a key tile */
  AMLA_AMX_STEP = 4,     /* tokens of a step of a chore */
  AMLA_AMX_LINES = 18,   /* cache lines of a key of 576 columns */
  AMLA_AMX_COLS = 32,    /* of O's column tiles */
  AMLA_AMX_MAX_PARTS = 3 /* of q, in bf16 */
};

/* 16 keys: key i at base + i * stride_bytes, all 32-column steps of it readable. */
typedef struct amla_amx_keys {
  const char *base;
  int64_t stride_bytes;
} amla_amx_keys;

/* Keys to be fetched into L2 while others are computed with, and copied some time later: a helping
 * is one of either. */
typedef struct amla_amx_fetch {
  const struct amla_token_ref *token, *stop; /* the next one to be fetched */
  const struct amla_token_ref *from;         /* the next one to be copied, to `to`; NULL: none */
  char *to;
  int copying;             /* that is the next helping */
  int32_t bytes, to_bytes; /* of a key; of a copy as the key is, 0: `copy` makes it */
  int32_t due, rate;       /* helpings, in 2^-16: owed; more every tick */
  struct amla_amx_state *state;
  void (*copy)(struct amla_amx_state *, const struct amla_token_ref *);
  void (*follow)(struct amla_amx_fetch *); /* at `stop`: brings the next one, unless that is all */
} amla_amx_fetch;

/* P of panels of 16 rows, made in steps of AMLA_AMX_STEP tokens: short ones, because a step and the
 * products that hide it have to fit into the window of reordering. */
typedef struct amla_amx_chore {
  float *s;          /* [tokens][16] of the panel at hand; the next panel's after them */
  uint16_t *hi, *lo; /* the next tile [16 rows][32 tokens] of P; lo: of bf16x2 */
  float *p;          /* [tokens][16] of f32, the next panel's after them */
  amla_p_form form;
  int32_t at, tokens;   /* the next token; all of them, a multiple of AMLA_AMX_DEPTH */
  int32_t measured;     /* tokens whose maximum is taken; P follows that of all */
  int32_t n_loose;      /* tiles of P that are complete in `pairs` */
  int32_t row, row_end; /* the panel at hand; none is left if equal */
  int32_t due, rate;    /* steps, in 2^-16: owed; more every tick */
  int32_t all;          /* tokens that every row of the panel sees; up to a mask */
  int32_t visible[AMLA_AMX_ROWS];
  float factor; /* of s */
  int masked;   /* what is measured of s has it, and a mask, already */
  float max[AMLA_AMX_ROWS], base[AMLA_AMX_ROWS];
  float sum[AMLA_AMX_ROWS], sum_rounded[AMLA_AMX_ROWS]; /* of P, in f32 and as PV has it */
  float poly[7];                                        /* exp2_poly.h times 2^-headroom */
  uint32_t pairs[2][AMLA_AMX_ROWS][AMLA_AMX_ROWS];      /* hi, lo of 32 tokens: [pair][row] */
  void (*measure)(struct amla_amx_chore *); /* takes the maximum of AMLA_AMX_DEPTH tokens; of the
                                               last ones: and brings references to it */
  void (*end)(struct amla_amx_chore *);     /* of a panel */
  struct amla_amx_state *state;
} amla_amx_chore;

/* What every tick of four products, 64 cycles, takes along. */
typedef struct amla_amx_beside {
  amla_amx_chore *chore;
  amla_amx_fetch *fetch;
} amla_amx_beside;

/* Which of V's pairs are made beside a call's scores: pairs [first, last) of each 16, by fours. */
typedef struct amla_amx_pairs {
  uint16_t *v;      /* of the call's first 32 tokens: [column tile][2] tiles */
  int64_t step;     /* elements from one column tile to the next */
  uint32_t columns; /* multiple of AMLA_AMX_COLS */
  uint32_t first, last;
} amla_amx_pairs;

/* Packed q of a panel: part i at qt + i * part, [d / 32] tiles. Least parts first are summed. */
typedef struct amla_amx_q {
  const uint16_t *qt;
  int64_t part, panel; /* elements to the next part, to the next 16 rows */
  int32_t parts, d;    /* d: a multiple of AMLA_AMX_DEPTH */
} amla_amx_q;

/* P of 32 rows, or of 16: tiles [steps] of each 16 rows, `panel` elements apart. */
typedef struct amla_amx_p {
  const uint16_t *hi, *lo;
  int64_t panel;
  int32_t steps;
  amla_p_form form;
} amla_amx_p;

/* Tiles are a thread's state: configured before the kernels below, released after them. */
void amla_amx_configure(void);
void amla_amx_release(void);

/* Parts of factor * q of n <= 16 rows, factor a power of two; rows from n on, and columns from d
 * on, are 0. */
void amla_amx_pack_q(int32_t n, int32_t d, amla_dtype type, const void *const *q, float factor,
                     const amla_amx_q *to, uint16_t *qt);

/* s [groups of 32 tokens][32][16] = K Q^T. `steps` times 32 tokens x 32 rows, the second 16 rows'
 * at s1; an even number of times 32 tokens x 16 rows; once that. k has the tokens by 16. */
void amla_amx_scores_32x32(int32_t steps, const amla_amx_keys *k, const amla_amx_q *q, float *s,
                           float *s1, const amla_amx_pairs *v, const amla_amx_beside *beside);
void amla_amx_scores_64x16(int32_t steps, const amla_amx_keys *k, const amla_amx_q *q, float *s,
                           const amla_amx_pairs *v, const amla_amx_beside *beside);
void amla_amx_scores_32x16(const amla_amx_keys *k, const amla_amx_q *q, float *s,
                           const amla_amx_pairs *v, const amla_amx_beside *beside);

/* o [rows][32] += P V, or = P V if first: `groups` of 32 rows x n column tiles, o_step floats
 * apart; 16 rows x an even number of them; 16 rows x one. v [n][steps][2] tiles. */
void amla_amx_pv_32x32(const amla_amx_p *p, int32_t groups, int32_t n, const uint16_t *v, int first,
                       float *o, int64_t o_step, const amla_amx_beside *beside);
void amla_amx_pv_16x64(const amla_amx_p *p, int32_t n, const uint16_t *v, int first, float *o,
                       int64_t o_step, const amla_amx_beside *beside);
void amla_amx_pv_16x32(const amla_amx_p *p, const uint16_t *v, int first, float *o,
                       const amla_amx_beside *beside);

/* bias [n rounded up to 16] = mask [n] of f16, times log2 e. */
void amla_amx_biases(int32_t n, const uint16_t *mask, float *bias);

/* In the rows of the mask register `rows`: s [n][16] = s * factor + bias [n], or `hidden` where
 * that is -inf. */
void amla_amx_mask(int32_t n, float factor, const float *bias, uint32_t rows, float hidden,
                   float *s);

/* max [16] takes in s [AMLA_AMX_DEPTH][16]; NaN is passed over. */
void amla_amx_raise_max(const float *s, float *max);

/* v [32 columns] of f32 in O's order, of 32 columns of a key. */
void amla_amx_widen_v(int32_t n, const amla_amx_keys *k, int32_t columns, float *v, int64_t ldv);

/* Tiles of bf16 that P has for AMLA_AMX_DEPTH tokens. */
static inline int32_t amla_amx_p_tiles(amla_p_form form) {
  switch (form) {
  case AMLA_P_BF16: return 1;
  case AMLA_P_BF16X2: return 2;
  default: return 0;
  }
}

/* Steps of a panel: one for each AMLA_AMX_DEPTH tokens, then for each AMLA_AMX_STEP of them, and
 * for each tile of P. */
static inline int32_t amla_amx_steps(int32_t tokens, amla_p_form form) {
  return tokens / AMLA_AMX_DEPTH * (1 + amla_amx_p_tiles(form)) + tokens / AMLA_AMX_STEP;
}

/* The next step, if there is one. */
void amla_amx_step(amla_amx_chore *c);

extern const amla_own_loop amla_amx_loop;

#endif
