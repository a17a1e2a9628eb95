/* SPDX-License-Identifier: Apache-2.0
 *
 * The one list of element types, and their sizes in memory. Whatever differs by type elsewhere is
 * sized by AMLA_N_DTYPES or made from AMLA_DTYPES. Quantised types come in blocks, so a size
 * belongs to a number of elements.
 */
#ifndef AMLA_BASE_DTYPE_H
#define AMLA_BASE_DTYPE_H

#include <amla/amla.h>

/* f16 scale, 32 int8. Source: ggml's block_q8_0. */
enum { AMLA_Q8_0_ELEMS = 32, AMLA_Q8_0_BYTES = 34 };

/* X(id, name, elements per block, bytes per block, alignment in bytes), by rising id. Offsets and
 * sizes are multiples of a block. */
#define AMLA_DTYPES(X)                                                                             \
  X(AMLA_F32, "f32", 1, 4, 4)                                                                      \
  X(AMLA_BF16, "bf16", 1, 2, 2)                                                                    \
  X(AMLA_F16, "f16", 1, 2, 2)                                                                      \
  X(AMLA_Q8_0, "q8_0", AMLA_Q8_0_ELEMS, AMLA_Q8_0_BYTES, 2)

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

/* Alignment in bytes. */
static inline size_t amla_dtype_align(amla_dtype type) {
#define AMLA_CASE(id, name, elems, bytes, align)                                                   \
  case id: return align;
  switch (type) { AMLA_DTYPES(AMLA_CASE) }
#undef AMLA_CASE
  return 1;
}

#endif
