/* SPDX-License-Identifier: Apache-2.0
 *
 * Sizes of the element types in memory. Quantised types come in blocks, so a size belongs to a number of elements.
 */
#ifndef AMLA_BASE_DTYPE_H
#define AMLA_BASE_DTYPE_H

#include <amla/amla.h>

enum { AMLA_Q8_0_ELEMS = 32, AMLA_Q8_0_BYTES = 34 }; /* one block: f16 scale, 32 int8. Source: ggml's block_q8_0 */

/* Elements that only exist together; offsets and sizes are multiples of it. */
static inline int32_t amla_block_elems(amla_dtype type) { return type == AMLA_Q8_0 ? AMLA_Q8_0_ELEMS : 1; }

/* Bytes of n elements, n a multiple of the block. */
static inline int64_t amla_elems_bytes(amla_dtype type, int64_t n) {
  return type == AMLA_F32 ? n * 4 : type == AMLA_Q8_0 ? n / AMLA_Q8_0_ELEMS * AMLA_Q8_0_BYTES : n * 2;
}

/* Alignment in bytes. */
static inline size_t amla_dtype_align(amla_dtype type) { return type == AMLA_F32 ? 4 : 2; }

#endif
