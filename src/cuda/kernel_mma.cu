/* SPDX-License-Identifier: Apache-2.0
 *
 * The kernels of decode_mma.cuh, and their launch.
 */
#include "cuda_launch.h"
#include "decode_mma.cuh"

using namespace amla_kernel;

template <class S> __global__ void __launch_bounds__(S::THREADS, 1) amla_decode_mma(const __grid_constant__ amla_cuda_params p) { decode_mma<S>(p); }

template <class S> static cudaError_t launch(const amla_cuda_params *p, int32_t grid, cudaStream_t stream) {
  const cudaError_t error = cudaFuncSetAttribute(amla_decode_mma<S>, cudaFuncAttributeMaxDynamicSharedMemorySize, S::SHARED_BYTES);
  if (error != cudaSuccess) return error;
  amla_decode_mma<S><<<grid, S::THREADS, S::SHARED_BYTES, stream>>>(*p);
  return cudaGetLastError();
}

template <bool F16, int D_QK> static cudaError_t launch_size(const amla_cuda_params *p, int32_t grid, cudaStream_t stream) {
  if (p->block_rows == mma_large<F16, D_QK>::ROWS) return launch<mma_large<F16, D_QK>>(p, grid, stream);
  return launch<mma_small<F16, D_QK>>(p, grid, stream);
}

cudaError_t amla_cuda_launch_mma(const amla_cuda_params *p, int32_t f16, int32_t grid, cudaStream_t stream) {
  if (f16) return p->d_qk == 576 ? launch_size<true, 576>(p, grid, stream) : launch_size<true, 512>(p, grid, stream);
  return p->d_qk == 576 ? launch_size<false, 576>(p, grid, stream) : launch_size<false, 512>(p, grid, stream);
}
