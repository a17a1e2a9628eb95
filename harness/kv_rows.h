/* SPDX-License-Identifier: Apache-2.0
 *
 * Rows of KV caches of every type, one element at a time. An element of a record, the unit of its
 * strides and offsets, is a byte.
 */
#ifndef HARNESS_KV_ROWS_H
#define HARNESS_KV_ROWS_H

#include <stdbool.h>

#include <amla/amla.h>

/* e4m3 with scales, a record or not: for harness_load_kv and harness_store_fp8 only. */
bool harness_is_fp8(amla_dtype type);

/* Elements of a row of d, and of a page of packed tokens. */
int64_t harness_row_elems(amla_dtype type, int32_t d);
int64_t harness_page_elems(const amla_problem *problem);

/* Bytes of a token of d, what its page's footer has of it included. */
int64_t harness_token_bytes(amla_dtype type, int32_t d);

/* What d_qk must be, and d_v 512, of a record; 0: the type has none. */
int32_t harness_record_d_qk(amla_dtype type);

/* Element d of the row at harness_token_offset, as f32: what the cache says, scale included. */
float harness_load_kv(const amla_problem *problem, const void *kv, int64_t at, int32_t d);

/* Elements that are stored together. */
enum { HARNESS_MAX_GROUP = 128 };
int32_t harness_group_elems(amla_dtype type);

/* Elements [d, d + n) of the row there, of an fp8 type: a group, or what is left of the row.
 * fp8_e4m3 by the problem's scales, which are not 0. */
void harness_store_fp8(const amla_problem *problem, void *kv, int64_t at, int32_t d, int32_t n,
                       const float *values);

#endif
