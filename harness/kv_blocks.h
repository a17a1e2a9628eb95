/* SPDX-License-Identifier: Apache-2.0
 *
 * ggml's blocks of 32 elements, written apart from src on purpose.
 */
#ifndef HARNESS_KV_BLOCKS_H
#define HARNESS_KV_BLOCKS_H

#include <stdbool.h>

#include <amla/amla.h>

enum { HARNESS_BLOCK = 32 };

bool harness_is_block(amla_dtype type);

/* Element i of a buffer. */
float harness_load_block(const void *buffer, amla_dtype type, int64_t i);

/* Elements [i, i + 32) of a buffer, from the extreme ones: each as near as the block can say it. */
void harness_store_block(void *buffer, amla_dtype type, int64_t i, const float *values);

#endif
