/* SPDX-License-Identifier: Apache-2.0
 *
 * A plain tiled GEMM, C = A B, row-major, all n x n: what the timing model is held against. The
 * vendor's published examples have its tile (128 x 256 x 64 in L0), its double buffers in L1 and
 * L0, 16-bit inputs and f32 sums. How they share tiles among the cores is not published: a fixed
 * grid of cores is our reading.
 */
#ifndef NPU_GEMM_H
#define NPU_GEMM_H

#include "npu_isa.h"

#ifdef __cplusplus
extern "C" {
#endif

enum { NPU_GEMM_M = 128, NPU_GEMM_N = 256, NPU_GEMM_K = 64, NPU_GEMM_L1_K = 256 };

typedef struct npu_gemm {
  int32_t n;              /* a multiple of 256, and of both grids' tiles for equal shares */
  int32_t grid_m, grid_n; /* cores: grid_m x grid_n, each with its rectangle of tiles */
  NPU_GM const npu_bf16 *a, *b;
  NPU_GM float *c;
} npu_gemm;

/* What every AIC runs. args: npu_gemm. The AIVs have nothing to do. */
void npu_gemm_cube(const void *args);

#ifdef __cplusplus
}
#endif
#endif
