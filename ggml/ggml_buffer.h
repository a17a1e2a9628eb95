/* SPDX-License-Identifier: Apache-2.0
 *
 * Memory that a backend object keeps from one operation to the next, as large as any asked for.
 */
#ifndef AMLA_GGML_BUFFER_H
#define AMLA_GGML_BUFFER_H

#include <stdbool.h>
#include <stdlib.h>

typedef struct ggml_buffer {
  void *data;
  size_t bytes;
} ggml_buffer;

/* What it held is lost where it grows. False: there is no memory, and it holds nothing. */
static inline bool ggml_buffer_reserve(ggml_buffer *b, size_t bytes) {
  if (bytes <= b->bytes)
    return true;
  free(b->data);
  b->data = malloc(bytes);
  b->bytes = b->data != NULL ? bytes : 0;
  return b->data != NULL;
}

static inline void ggml_buffer_free(ggml_buffer *b) { free(b->data); }

#endif
