/* SPDX-License-Identifier: Apache-2.0
 *
 * The Hopper kernels of one type with waits that end in an error (AMLA_CUDA_WATCHDOG). Compiled for
 * tests/test_cuda_build.sh, which compares them with those of kernel_wgmma.cu; linked nowhere.
 */
#ifndef AMLA_CUDA_WATCHDOG
#define AMLA_CUDA_WATCHDOG 4000000000
#endif
#include "decode_wgmma2.cuh"
#include "decode_wgmma3.cuh"

using namespace amla_kernel;

template <class S>
__global__ void __launch_bounds__(S::THREADS, 1)
    amla_watchdog_wgmma(const __grid_constant__ amla_cuda_params p,
                        const __grid_constant__ CUtensorMap kv) {
  decode_wgmma<S>(p, &kv);
}

#define AMLA_INSTANTIATE(S)                                                                        \
  template __global__ void amla_watchdog_wgmma<S<false, 576>>(                                     \
      const __grid_constant__ amla_cuda_params, const __grid_constant__ CUtensorMap)
AMLA_INSTANTIATE(wgmma2);
AMLA_INSTANTIATE(wgmma3);
