/* SPDX-License-Identifier: Apache-2.0
 *
 * See npu_gemm.h. Two slots of L1, each a step of 256 in depth, and two of L0, each a step of 64.
 * One accumulator fills L0C: FIX drains it behind the last product by unit flags.
 */
#include "npu_gemm.h"

enum { M = NPU_GEMM_M, N = NPU_GEMM_N, K = NPU_GEMM_K, L1_K = NPU_GEMM_L1_K };
enum { A_BYTES = M * L1_K * 2, B_BYTES = N * L1_K * 2 }; /* of one slot in L1 */

typedef struct slots {
  int32_t l1, l0; /* which of two is next */
} slots;

static NPU_L1 npu_bf16 *l1_a(const slots *s) {
  return NPU_L1_AT(npu_bf16, (uint32_t)(s->l1 * (A_BYTES + B_BYTES)));
}

static void load_slot(const npu_gemm *g, const slots *s, int32_t row, int32_t col, int32_t k) {
  NPU_L1 npu_bf16 *a = l1_a(s);
  npu_wait(NPU_PIPE_MTE1, NPU_PIPE_MTE2, s->l1);
  npu_copy_gm_l1_nd2nz_bf16(a, g->a + (int64_t)row * g->n + k, M, L1_K, g->n, M);
  npu_copy_gm_l1_nd2nz_bf16(a + A_BYTES / 2, g->b + (int64_t)k * g->n + col, L1_K, N, g->n, L1_K);
  npu_notify(NPU_PIPE_MTE2, NPU_PIPE_MTE1, s->l1);
}

static void multiply_slot(slots *s, int first) {
  NPU_L1 const npu_bf16 *a = l1_a(s), *b = a + A_BYTES / 2;
  npu_wait(NPU_PIPE_MTE2, NPU_PIPE_MTE1, s->l1);
  for (int32_t k = 0; k < L1_K; k += K, s->l0 ^= 1) {
    NPU_L0A npu_bf16 *a0 = NPU_L0A_AT(npu_bf16, (uint32_t)(s->l0 * M * K * 2));
    NPU_L0B npu_bf16 *b0 = NPU_L0B_AT(npu_bf16, (uint32_t)(s->l0 * N * K * 2));
    npu_wait(NPU_PIPE_M, NPU_PIPE_MTE1, s->l0);
    npu_load_l0a_bf16(a0, a + k * M, M, K, M);
    npu_load_l0b_t_bf16(b0, b + k * 16, N, K, L1_K);
    npu_notify(NPU_PIPE_MTE1, NPU_PIPE_M, s->l0);
    npu_wait(NPU_PIPE_MTE1, NPU_PIPE_M, s->l0);
    npu_mmad_bf16(NPU_L0C_AT(float, 0), a0, b0, M, N, K, !first || k > 0);
    npu_notify(NPU_PIPE_M, NPU_PIPE_MTE1, s->l0);
  }
  npu_notify(NPU_PIPE_MTE1, NPU_PIPE_MTE2, s->l1);
}

static void compute_tile(const npu_gemm *g, slots *s, int32_t row, int32_t col) {
  npu_wait(NPU_PIPE_FIX, NPU_PIPE_M, 0);
  for (int32_t k = 0; k < g->n; k += L1_K, s->l1 ^= 1) {
    load_slot(g, s, row, col, k);
    multiply_slot(s, k == 0);
  }
  npu_notify_unit(NPU_PIPE_M, NPU_PIPE_FIX, 0);
  npu_wait(NPU_PIPE_M, NPU_PIPE_FIX, 0);
  npu_copy_l0c_gm_f32(g->c + (int64_t)row * g->n + col, NPU_L0C_AT(float, 0), M, N, g->n, M);
  npu_notify_unit(NPU_PIPE_FIX, NPU_PIPE_M, 0);
}

void npu_gemm_cube(const void *args) {
  const npu_gemm *g = (const npu_gemm *)args;
  const int32_t rows = g->n / M, cols = g->n / N;
  const int32_t i = npu_block_index() / g->grid_n, j = npu_block_index() % g->grid_n;
  slots s = {0, 0};
  for (int32_t e = 0; e < 2; e++) { /* all slots are free */
    npu_notify(NPU_PIPE_MTE1, NPU_PIPE_MTE2, e);
    npu_notify(NPU_PIPE_M, NPU_PIPE_MTE1, e);
  }
  npu_notify(NPU_PIPE_FIX, NPU_PIPE_M, 0);
  for (int32_t row = i * rows / g->grid_m; row < (i + 1) * rows / g->grid_m; row++)
    for (int32_t col = j * cols / g->grid_n; col < (j + 1) * cols / g->grid_n; col++)
      compute_tile(g, &s, row * M, col * N);
  for (int32_t e = 0; e < 2; e++) {
    npu_wait(NPU_PIPE_MTE1, NPU_PIPE_MTE2, e);
    npu_wait(NPU_PIPE_M, NPU_PIPE_MTE1, e);
  }
  npu_wait(NPU_PIPE_FIX, NPU_PIPE_M, 0);
}
