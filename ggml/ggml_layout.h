/* SPDX-License-Identifier: Apache-2.0
 *
 * Types and strides of ggml's tensors, in the library's words.
 */
#ifndef AMLA_GGML_LAYOUT_H
#define AMLA_GGML_LAYOUT_H

#include <amla/amla.h>

#include "ggml_abi.h"

typedef struct ggml_known_type { /* one that both know */
  int32_t ggml;
  amla_dtype amla;
} ggml_known_type;

/* NULL: it is not known. The other functions are of tensors of a type that is. */
const ggml_known_type *ggml_find_type(int32_t type);

int64_t ggml_row_bytes(const ggml_abi_tensor *t);

/* Rows are contiguous, and strides count whole blocks. */
bool ggml_strides_are_whole(const ggml_abi_tensor *t);

/* A stride, in elements. An axis of one needs none, and what ggml leaves there may be anything: the
 * second function has 0. */
int64_t ggml_stride_elems(const ggml_abi_tensor *t, int axis);
int64_t ggml_stride(const ggml_abi_tensor *t, int axis);

/* Where element i of an axis begins, of a stream. */
void *ggml_at(const ggml_abi_tensor *t, int axis, int64_t i, int64_t stream);

/* Bytes from the first to one past the last element that [ne0][ne1][ne2][ne3] of the tensor touch.
 */
size_t ggml_span_bytes(const ggml_abi_tensor *t, int64_t ne0_bytes, int64_t ne1, int64_t ne2,
                       int64_t ne3);

#endif
