/* SPDX-License-Identifier: Apache-2.0
 *
 * Problems as safetensors files (u64 header length, JSON, data).
 *
 *   q            [b, s_q, h_q, d_qk]          F32, BF16 or F16
 *   kv_cache     [pages, page_size, d_qk]     F32, BF16 or F16; without block_table [b, sk, d_qk].
 *                [pages, page_size, bytes]    U8: any other type, named in the metadata. Bytes of a
 *                                             token: 656, 584, d_qk, or ggml's blocks. A page of
 *                                             584 has its footer where amla.h says
 *   block_table  [b, max_pages]               I32, optional
 *   seqlens_k    [b]                          I32
 *   sinks        [h_q]                        F32, optional
 *   indices      [b, s_q, topk]               I32, optional: lists. Of slots (metadata) neither
 *                                             block_table nor seqlens_k is needed
 *   topk_length  [b] or [b, s_q]              I32, optional
 *   visible_k    [b, s_q]                     I32, optional
 *   extra_kv_cache, extra_block_table, extra_seqlens_k, extra_visible_k, extra_indices,
 *   extra_topk_length                         the same of a second scope, optional
 *   out_ref      [b, s_q, h_q, d_v]           F32, optional: the fp64 result, rounded
 *   lse_ref      [b, h_q, s_q]                F32, optional: the same, natural log
 *   metadata     scale, d_v; causal (0 or 1, default 0), window (default 0), index (slot or
 *                position, default slot); kv (a type's name, default what kv_cache is), of
 *                fp8_e4m3 kv_scale and kv_rope_scale
 *
 * Every number of the header is checked before it is used: lengths, offsets (inside the file, no
 * overlap, no holes), shape x type = bytes, unknown types, duplicate names. Other tensors are
 * checked the same and ignored.
 */
#ifndef AMLA_HARNESS_SAFETENSORS_H
#define AMLA_HARNESS_SAFETENSORS_H

#include "dataset.h"

/* Reads a problem. The result's sk is max_pages * page_size, bounded by what the seqlens use; lse
 * natural; out f32. Returns 0, or -1 with "FILE: tensor 'q': shape [1, 2] must have 4 dimensions"
 * in error. */
int harness_read_problem(const char *path, harness_dataset *data, char *error, size_t error_bytes);

/* The same from memory; what the fuzzer calls. name stands in messages. */
int harness_parse_safetensors(const char *name, const void *bytes, size_t n_bytes,
                              harness_dataset *data, char *error, size_t error_bytes);

/* Writes a problem, out_ref and lse_ref when present, through a temporary file renamed at the end:
 * a failed write leaves no file and an existing one untouched. */
int harness_write_problem(const char *path, const harness_dataset *data, char *error,
                          size_t error_bytes);

/* Writes out [b, s_q, h_q, d_v] and lse [b, h_q, s_q] f32; of ragged queries [total, h_q, d_v] and
 * [total, h_q]. */
int harness_write_result(const char *path, const harness_dataset *data, char *error,
                         size_t error_bytes);

#endif
