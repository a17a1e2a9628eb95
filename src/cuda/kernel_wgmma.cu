/* SPDX-License-Identifier: Apache-2.0
 *
 * The Hopper kernels in both schedules, and their launch. Compiled for sm_90a only.
 */
#include "cuda_launch.h"
#include "decode_wgmma2.cuh"
#include "decode_wgmma3.cuh"

using namespace amla_kernel;

template <class S> __global__ void __launch_bounds__(S::THREADS, 1)
amla_decode_wgmma(const __grid_constant__ amla_cuda_params p, const __grid_constant__ CUtensorMap kv) {
  decode_wgmma<S>(p, &kv);
}

template <class S> static cudaError_t launch(const amla_cuda_params *p, const CUtensorMap *kv, int32_t grid, cudaStream_t stream) {
  const cudaError_t error = cudaFuncSetAttribute(amla_decode_wgmma<S>, cudaFuncAttributeMaxDynamicSharedMemorySize, S::SHARED_BYTES);
  if (error != cudaSuccess) return error;
  amla_decode_wgmma<S><<<grid, S::THREADS, S::SHARED_BYTES, stream>>>(*p, *kv);
  return cudaGetLastError();
}

template <template <bool, int> class S>
static cudaError_t launch_type(const amla_cuda_params *p, const CUtensorMap *kv, int32_t f16,
                               int32_t grid, cudaStream_t stream) {
  if (f16)
    return p->d_qk == 576 ? launch<S<true, 576>>(p, kv, grid, stream)
                          : launch<S<true, 512>>(p, kv, grid, stream);
  return p->d_qk == 576 ? launch<S<false, 576>>(p, kv, grid, stream)
                        : launch<S<false, 512>>(p, kv, grid, stream);
}

cudaError_t amla_cuda_launch_wgmma2(const amla_cuda_params *p, const CUtensorMap *kv, int32_t f16,
                                    int32_t grid, cudaStream_t stream) {
  return launch_type<wgmma2>(p, kv, f16, grid, stream);
}
cudaError_t amla_cuda_launch_wgmma3(const amla_cuda_params *p, const CUtensorMap *kv, int32_t f16,
                                    int32_t grid, cudaStream_t stream) {
  return launch_type<wgmma3>(p, kv, f16, grid, stream);
}
