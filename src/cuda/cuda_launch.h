/* SPDX-License-Identifier: Apache-2.0
 *
 * The launches of the two families of kernels, for cuda_device.cu. CUDA only.
 */
#ifndef AMLA_CUDA_LAUNCH_H
#define AMLA_CUDA_LAUNCH_H

#include <cuda.h>
#include <cuda_runtime.h>

#include "cuda_device.h"

/* Each family first prepares a kernel, once per device and before a stream is captured. */

/* Any GPU since Ampere. block_rows 64 or 32 chooses the shape. */
cudaError_t amla_cuda_prepare_mma(int32_t block_rows, int32_t f16, int32_t d_qk);
cudaError_t amla_cuda_launch_mma(const amla_cuda_params *p, int32_t f16, int32_t grid,
                                 cudaStream_t stream);

/* Hopper: kv is the map of the cache in boxes of 64 elements x min(page, 64) tokens. block_rows is
 * 64, tile_tokens 64. */
cudaError_t amla_cuda_prepare_wgmma(amla_cuda_kernel kernel, int32_t f16, int32_t d_qk);
cudaError_t amla_cuda_launch_wgmma(const amla_cuda_params *p, const CUtensorMap *kv,
                                   amla_cuda_kernel kernel, int32_t f16, int32_t grid,
                                   cudaStream_t stream);
/* Clusters of WGMMA3C that run at once. */
cudaError_t amla_cuda_count_clusters(int32_t f16, int32_t d_qk, int *n);

/* Kernels that do nothing but multiply, for the limits of a benchmark: FLOP of one launch of `grid`
 * thread blocks. */
cudaError_t amla_cuda_launch_peak_mma(int32_t grid, float *sink, double *flops);
cudaError_t amla_cuda_launch_peak_wgmma(int32_t grid, float *sink, double *flops);
cudaError_t amla_cuda_launch_peak_mix(int32_t grid, float *sink, double *flops); /* of wgmma3 */

#endif
