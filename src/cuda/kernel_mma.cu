/* SPDX-License-Identifier: Apache-2.0
 *
 * The kernels of decode_mma.cuh, and their launch.
 */
#include "cuda_launch.h"
#include "decode_mma.cuh"

using namespace amla_kernel;

template <class S>
__global__ void __launch_bounds__(S::THREADS, 1)
    amla_decode_mma(const __grid_constant__ amla_cuda_params p) {
  decode_mma<S>(p);
}

struct entry {
  void (*kernel)(amla_cuda_params);
  int32_t threads, shared_bytes;
};

template <class S> static entry entry_of() {
  return {amla_decode_mma<S>, S::THREADS, S::SHARED_BYTES};
}
template <bool F16, int D_QK> static entry entry_of_size(int32_t block_rows) {
  if (block_rows == mma_large<F16, D_QK>::ROWS)
    return entry_of<mma_large<F16, D_QK>>();
  return entry_of<mma_small<F16, D_QK>>();
}
static entry find(int32_t rows, int32_t f16, int32_t d_qk) {
  if (f16)
    return d_qk == 576 ? entry_of_size<true, 576>(rows) : entry_of_size<true, 512>(rows);
  return d_qk == 576 ? entry_of_size<false, 576>(rows) : entry_of_size<false, 512>(rows);
}

cudaError_t amla_cuda_prepare_mma(int32_t block_rows, int32_t f16, int32_t d_qk) {
  const entry e = find(block_rows, f16, d_qk);
  return cudaFuncSetAttribute(e.kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                              e.shared_bytes);
}

cudaError_t amla_cuda_launch_mma(const amla_cuda_params *p, int32_t f16, int32_t grid,
                                 cudaStream_t stream) {
  const entry e = find(p->block_rows, f16, p->d_qk);
  e.kernel<<<grid, e.threads, (size_t)e.shared_bytes, stream>>>(*p);
  return cudaGetLastError();
}
