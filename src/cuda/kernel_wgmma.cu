/* SPDX-License-Identifier: Apache-2.0
 *
 * The Hopper kernels in all schedules, and their launch. Compiled for sm_90a only.
 */
#include "cuda_launch.h"
#include "decode_wgmma16.cuh"
#include "decode_wgmma2.cuh"
#include "decode_wgmma3.cuh"

using namespace amla_kernel;

template <class S>
__global__ void __launch_bounds__(S::THREADS, 1)
    amla_decode_wgmma(const __grid_constant__ amla_cuda_params p,
                      const __grid_constant__ CUtensorMap kv) {
  decode_wgmma<S>(p, &kv);
}

template <class S>
__global__ void __launch_bounds__(S::THREADS, 1)
    amla_decode_wgmma16(const __grid_constant__ amla_cuda_params p,
                        const __grid_constant__ CUtensorMap kv) {
  decode_wgmma16<S>(p, &kv);
}

struct entry {
  void (*kernel)(amla_cuda_params, CUtensorMap);
  int32_t threads, shared_bytes;
  unsigned cluster;
};

template <class S> static entry entry_of() {
  return {amla_decode_wgmma<S>, S::THREADS, S::SHARED_BYTES, S::CLUSTER};
}
template <class S> static entry entry_of16() {
  return {amla_decode_wgmma16<S>, S::THREADS, S::SHARED_BYTES, 1};
}
static entry entry_of_type16(int32_t f16, int32_t d_qk) {
  if (f16)
    return d_qk == 576 ? entry_of16<wgmma16<true, 576>>() : entry_of16<wgmma16<true, 512>>();
  return d_qk == 576 ? entry_of16<wgmma16<false, 576>>() : entry_of16<wgmma16<false, 512>>();
}
template <template <bool, int> class S> static entry entry_of_type(int32_t f16, int32_t d_qk) {
  if (f16)
    return d_qk == 576 ? entry_of<S<true, 576>>() : entry_of<S<true, 512>>();
  return d_qk == 576 ? entry_of<S<false, 576>>() : entry_of<S<false, 512>>();
}
static entry find(amla_cuda_kernel kernel, int32_t f16, int32_t d_qk) {
  if (kernel == AMLA_CUDA_WGMMA3C)
    return entry_of_type<wgmma3c>(f16, d_qk);
  if (kernel == AMLA_CUDA_WGMMA16)
    return entry_of_type16(f16, d_qk);
  return kernel == AMLA_CUDA_WGMMA3 ? entry_of_type<wgmma3>(f16, d_qk)
                                    : entry_of_type<wgmma2>(f16, d_qk);
}

/* `cluster` must live as long as what is returned. */
static cudaLaunchConfig_t config_of(const entry &e, int32_t grid, cudaStream_t stream,
                                    cudaLaunchAttribute *cluster) {
  cudaLaunchConfig_t c = {};
  c.gridDim = dim3((unsigned)grid), c.blockDim = dim3((unsigned)e.threads);
  c.dynamicSmemBytes = (size_t)e.shared_bytes, c.stream = stream;
  cluster->id = cudaLaunchAttributeClusterDimension;
  cluster->val.clusterDim.x = e.cluster;
  cluster->val.clusterDim.y = cluster->val.clusterDim.z = 1;
  c.attrs = cluster, c.numAttrs = e.cluster > 1;
  return c;
}

cudaError_t amla_cuda_prepare_wgmma(amla_cuda_kernel kernel, int32_t f16, int32_t d_qk) {
  const entry e = find(kernel, f16, d_qk);
  return cudaFuncSetAttribute(e.kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                              e.shared_bytes);
}

cudaError_t amla_cuda_count_clusters(int32_t f16, int32_t d_qk, int *n) {
  const entry e = find(AMLA_CUDA_WGMMA3C, f16, d_qk);
  cudaLaunchAttribute cluster;
  const cudaLaunchConfig_t c = config_of(e, 2, nullptr, &cluster);
  return cudaOccupancyMaxActiveClusters(n, e.kernel, &c);
}

cudaError_t amla_cuda_launch_wgmma(const amla_cuda_params *p, const CUtensorMap *kv,
                                   amla_cuda_kernel kernel, int32_t f16, int32_t grid,
                                   cudaStream_t stream) {
  const entry e = find(kernel, f16, p->d_qk);
  cudaLaunchAttribute cluster;
  const cudaLaunchConfig_t c = config_of(e, grid, stream, &cluster);
  return cudaLaunchKernelEx(&c, e.kernel, *p, *kv);
}
