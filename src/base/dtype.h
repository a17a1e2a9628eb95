/* SPDX-License-Identifier: Apache-2.0
 *
 * The one list of element types, and their sizes in memory. Whatever differs by type elsewhere is
 * sized by AMLA_N_DTYPES or made from AMLA_DTYPES. Quantised types come in blocks, so a size
 * belongs to a number of elements.
 */
#ifndef AMLA_BASE_DTYPE_H
#define AMLA_BASE_DTYPE_H

#include <amla/amla.h>

enum { AMLA_BLOCK_ELEMS = 32 }; /* of ggml's blocks: blocks.h */

/* Records with an fp8 latent part and 64 bf16 behind it. Source: FlashMLA's caches */
enum {
  AMLA_FP8_ROPE = 64,         /* elements */
  AMLA_FP8_656_BYTES = 656,   /* of a token: latent part, scales, rope part */
  AMLA_FP8_656_LATENT = 512,  /* elements, and bytes */
  AMLA_FP8_656_GROUP = 128,   /* elements of one f32 scale */
  AMLA_FP8_656_ROPE_AT = 528, /* byte */
  AMLA_FP8_584_BYTES = 576,   /* of a token without its scales */
  AMLA_FP8_584_SCALES = 8,    /* bytes of a token in the page's footer, one of them unused */
  AMLA_FP8_584_LATENT = 448,
  AMLA_FP8_584_GROUP = 64
};

/* X(id, name, elements per block, bytes per block, alignment in bytes), by rising id. Offsets and
 * sizes are multiples of a block. Strides of records count bytes, so that an element of theirs is
 * one; amla_row_elems says how many a row has. */
#define AMLA_DTYPES(X)                                                                             \
  X(AMLA_F32, "f32", 1, 4, 4)                                                                      \
  X(AMLA_BF16, "bf16", 1, 2, 2)                                                                    \
  X(AMLA_F16, "f16", 1, 2, 2)                                                                      \
  X(AMLA_Q8_0, "q8_0", AMLA_BLOCK_ELEMS, 34, 2)                                                    \
  X(AMLA_FP8_656, "fp8_656", 1, 1, 1)                                                              \
  X(AMLA_FP8_584, "fp8_584", 1, 1, 1)                                                              \
  X(AMLA_FP8_E4M3, "fp8_e4m3", 1, 1, 1)                                                            \
  X(AMLA_Q4_0, "q4_0", AMLA_BLOCK_ELEMS, 18, 2)                                                    \
  X(AMLA_Q4_1, "q4_1", AMLA_BLOCK_ELEMS, 20, 2)                                                    \
  X(AMLA_Q5_0, "q5_0", AMLA_BLOCK_ELEMS, 22, 2)                                                    \
  X(AMLA_Q5_1, "q5_1", AMLA_BLOCK_ELEMS, 24, 2)                                                    \
  X(AMLA_IQ4_NL, "iq4_nl", AMLA_BLOCK_ELEMS, 18, 2)

#define AMLA_COUNT_DTYPE(id, name, elems, bytes, align) +1
enum {
  AMLA_N_DTYPES = 0 AMLA_DTYPES(AMLA_COUNT_DTYPE),
  AMLA_N_FLOAT_DTYPES = AMLA_F16 + 1 /* q and out may be of these; the rest is for kv only */
};
#undef AMLA_COUNT_DTYPE

static inline int32_t amla_block_elems(amla_dtype type) {
#define AMLA_CASE(id, name, elems, bytes, align)                                                   \
  case id: return elems;
  switch (type) { AMLA_DTYPES(AMLA_CASE) }
#undef AMLA_CASE
  return 1;
}

/* Bytes of n elements, n a multiple of the block. */
static inline int64_t amla_elems_bytes(amla_dtype type, int64_t n) {
#define AMLA_CASE(id, name, elems, bytes, align)                                                   \
  case id: return n / (elems) * (bytes);
  switch (type) { AMLA_DTYPES(AMLA_CASE) }
#undef AMLA_CASE
  return 0;
}

/* Elements that a row of d, without what lies apart, takes up in the unit of strides. */
static inline int64_t amla_row_elems(amla_dtype type, int32_t d) {
  if (type == AMLA_FP8_656)
    return AMLA_FP8_656_BYTES;
  return type == AMLA_FP8_584 ? AMLA_FP8_584_BYTES : d;
}

/* Bytes from the start of a page of so many tokens to the scales of token `slot`. */
static inline int64_t amla_fp8_584_scales_at(int64_t page_size, int64_t slot) {
  return page_size * AMLA_FP8_584_BYTES + slot * AMLA_FP8_584_SCALES;
}

/* Alignment in bytes. */
static inline size_t amla_dtype_align(amla_dtype type) {
#define AMLA_CASE(id, name, elems, bytes, align)                                                   \
  case id: return align;
  switch (type) { AMLA_DTYPES(AMLA_CASE) }
#undef AMLA_CASE
  return 1;
}

#endif
