/* SPDX-License-Identifier: Apache-2.0
 *
 * The Hopper kernels in both schedules, and their launch. Compiled for sm_90a only.
 */
#include "cuda_launch.h"
#include "decode_wgmma2.cuh"
#include "decode_wgmma3.cuh"

using namespace amla_kernel;

template <class S>
__global__ void __launch_bounds__(S::THREADS, 1)
    amla_decode_wgmma(const __grid_constant__ amla_cuda_params p,
                      const __grid_constant__ CUtensorMap kv) {
  decode_wgmma<S>(p, &kv);
}

struct entry {
  void (*kernel)(amla_cuda_params, CUtensorMap);
  int32_t threads, shared_bytes;
};

template <class S> static entry entry_of() {
  return {amla_decode_wgmma<S>, S::THREADS, S::SHARED_BYTES};
}
template <template <bool, int> class S> static entry entry_of_type(int32_t f16, int32_t d_qk) {
  if (f16)
    return d_qk == 576 ? entry_of<S<true, 576>>() : entry_of<S<true, 512>>();
  return d_qk == 576 ? entry_of<S<false, 576>>() : entry_of<S<false, 512>>();
}
static entry find(int32_t stages, int32_t f16, int32_t d_qk) {
  return stages == 3 ? entry_of_type<wgmma3>(f16, d_qk) : entry_of_type<wgmma2>(f16, d_qk);
}

cudaError_t amla_cuda_prepare_wgmma(int32_t stages, int32_t f16, int32_t d_qk) {
  const entry e = find(stages, f16, d_qk);
  return cudaFuncSetAttribute(e.kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                              e.shared_bytes);
}

cudaError_t amla_cuda_launch_wgmma(const amla_cuda_params *p, const CUtensorMap *kv, int32_t stages,
                                   int32_t f16, int32_t grid, cudaStream_t stream) {
  const entry e = find(stages, f16, p->d_qk);
  e.kernel<<<grid, e.threads, (size_t)e.shared_bytes, stream>>>(*p, *kv);
  return cudaGetLastError();
}
