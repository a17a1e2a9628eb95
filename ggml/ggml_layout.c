/* SPDX-License-Identifier: Apache-2.0
 *
 * See ggml_layout.h.
 */
#include "ggml_layout.h"

const ggml_known_type *ggml_find_type(int32_t type) {
  static const ggml_known_type types[] = {
      {GGML_ABI_F32, AMLA_F32},   {GGML_ABI_F16, AMLA_F16},   {GGML_ABI_BF16, AMLA_BF16},
      {GGML_ABI_Q8_0, AMLA_Q8_0}, {GGML_ABI_Q4_0, AMLA_Q4_0}, {GGML_ABI_Q4_1, AMLA_Q4_1},
      {GGML_ABI_Q5_0, AMLA_Q5_0}, {GGML_ABI_Q5_1, AMLA_Q5_1}, {GGML_ABI_IQ4_NL, AMLA_IQ4_NL}};
  for (size_t i = 0; i < sizeof types / sizeof *types; i++)
    if (types[i].ggml == type)
      return &types[i];
  return NULL;
}

/* Elements and bytes of the type's block, which are those of an element mostly. */
typedef struct block {
  int32_t elems, bytes;
} block;

static block block_of(const ggml_abi_tensor *t) {
  block b;
  b.elems = amla_dtype_block(ggml_find_type(t->type)->amla, &b.bytes);
  return b;
}

int64_t ggml_row_bytes(const ggml_abi_tensor *t) {
  const block b = block_of(t);
  return t->ne[0] / b.elems * b.bytes;
}

/* Of a tensor of a type that is known. */
bool ggml_strides_are_whole(const ggml_abi_tensor *t) {
  const size_t bytes = (size_t)block_of(t).bytes;
  for (int i = 1; i < 4; i++)
    if (t->nb[i] % bytes != 0 || (t->nb[i] == 0 && t->ne[i] > 1))
      return false; /* to the library 0 means packed */
  return t->nb[0] == bytes;
}

/* A stride of ggml, in elements. */
int64_t ggml_stride_elems(const ggml_abi_tensor *t, int axis) {
  const block b = block_of(t);
  return (int64_t)t->nb[axis] / b.bytes * b.elems;
}

void *ggml_at(const ggml_abi_tensor *t, int axis, int64_t i, int64_t stream) {
  return (char *)t->data + (size_t)i * t->nb[axis] + (size_t)stream * t->nb[3];
}

/* Bytes from the first to one past the last element that [ne0][ne1][ne2][ne3] of this tensor touch.
 */
size_t ggml_span_bytes(const ggml_abi_tensor *t, int64_t ne0_bytes, int64_t ne1, int64_t ne2,
                       int64_t ne3) {
  return (size_t)ne0_bytes + (size_t)(ne1 - 1) * t->nb[1] + (size_t)(ne2 - 1) * t->nb[2] +
         (size_t)(ne3 - 1) * t->nb[3];
}

/* An axis of one needs no stride, and what ggml leaves there may be anything. */
int64_t ggml_stride(const ggml_abi_tensor *t, int axis) {
  return t->ne[axis] > 1 ? ggml_stride_elems(t, axis) : 0;
}
