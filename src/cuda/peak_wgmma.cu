/* SPDX-License-Identifier: Apache-2.0
 *
 * What wgmma reaches: products and nothing else, from random numbers in shared memory.
 * amla_cuda_launch_peak_wgmma is the limit that the benchmark names, amla_cuda_launch_peak_mix what
 * the default schedule's own mix reaches. `main` (AMLA_PEAK_MAIN) prints rates by shape, by the
 * place of A, and of both schedules' mix.
 */
#include <stdio.h>

#include "cuda_launch.h"
#include "decode_wgmma2.cuh"
#include "decode_wgmma3.cuh"
#include "peak_mix.cuh"

using namespace amla_kernel;

enum { ROUNDS = 400, PIECE = 8192, KV = 9 * PIECE, SHARED = 27 * PIECE };

/* bf16 of either sign and about 1/4 to 1: power as with real data */
AMLA_DEVICE void fill_shared(uint32_t shared, uint32_t bytes) {
  for (uint32_t i = threadIdx.x; i < bytes / 4; i += blockDim.x) {
    uint32_t h = i * 2654435761u ^ blockIdx.x;
    h ^= h >> 15;
    h *= 2246822519u;
    h ^= h >> 13;
    sts_u32(shared + 4 * i, (h & 0x807f807fu) | 0x3e803e80u);
  }
  fence_async_shared();
  __syncthreads();
}

/* One tile of scores: nine pieces, `in_registers` of them with A from registers. */
template <int IN_REGISTERS>
AMLA_DEVICE void multiply_scores(float (&s)[32], const uint32_t (&a)[4], uint32_t shared) {
  pin(s);
  wgmma_fence();
#pragma unroll
  for (int i = 0; i < 36; i++) {
    const uint64_t b = matrix_descriptor(shared + KV + (i >> 2) * PIECE + (i & 3) * 32, 16, 1024);
    if (i / 4 < IN_REGISTERS)
      wgmma_scores_reg<false>(s, a, b, 1);
    else
      wgmma_scores<false>(s, matrix_descriptor(shared + (i >> 2) * PIECE + (i & 3) * 32, 16, 1024),
                          b, 1);
  }
  wgmma_commit();
  wgmma_wait<0>();
  pin(s);
}

/* One tile of PV: one half of O. */
AMLA_DEVICE void multiply_values(float (&o)[128], uint32_t shared, int half) {
  pin(o);
  wgmma_fence();
#pragma unroll
  for (int k = 0; k < 4; k++) {
    const uint64_t v = matrix_descriptor(shared + KV + half * 4 * PIECE + k * 2048, PIECE, 1024);
    wgmma_output<false>(o, matrix_descriptor(shared + k * 32, 16, 1024), v);
  }
  wgmma_commit();
  wgmma_wait<0>();
  pin(o);
}

template <int N> AMLA_DEVICE void leave(float *sink, const float (&x)[N]) {
  sink[blockIdx.x * blockDim.x + threadIdx.x] = sum_of(x);
}

template <int IN_REGISTERS> AMLA_DEVICE void score_rounds(float *sink, uint32_t shared) {
  float s[32] = {};
  uint32_t a[4];
  for (int i = 0; i < 4; i++)
    a[i] = 0x3f803f00u ^ (threadIdx.x * 0x00010003u & 0x007f007fu) ^ (uint32_t)i << 31;
#pragma unroll 1
  for (int round = 0; round < ROUNDS; round++)
    multiply_scores<IN_REGISTERS>(s, a, shared);
  leave(sink, s);
}

AMLA_DEVICE void value_rounds(float *sink, uint32_t shared, int half) {
  float o[128] = {};
#pragma unroll 1
  for (int round = 0; round < ROUNDS; round++)
    multiply_values(o, shared, half);
  leave(sink, o);
}

/* By two warpgroups. KIND -1: PV; 0 to 9: scores with so many pieces of Q in registers. */
template <int KIND> __global__ void __launch_bounds__(256, 1) amla_peak_wgmma(float *sink) {
  const uint32_t shared = shared_base();
  fill_shared(shared, SHARED);
  if constexpr (KIND < 0)
    value_rounds(sink, shared, warpgroup_id());
  else
    score_rounds<KIND>(sink, shared);
}

/* sink[0]: cycles of one key tile. */
template <class S> __global__ void __launch_bounds__(S::THREADS, 1) amla_peak_mix(float *sink) {
  const uint32_t shared = shared_base();
  fill_shared(shared, S::KV_FULL);
  const long long begin = clock64();
  const float sum = mix_tiles<S>(shared, ROUNDS);
  const float cycles = (float)(clock64() - begin) / ROUNDS;
  sink[blockIdx.x * blockDim.x + threadIdx.x] = threadIdx.x == 0 ? cycles : sum;
}

static cudaError_t launch_kernel(void (*kernel)(float *), int32_t grid, unsigned threads,
                                 int shared_bytes, float *sink) {
  const cudaError_t error =
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared_bytes);
  if (error != cudaSuccess)
    return error;
  kernel<<<grid, threads, (size_t)shared_bytes>>>(sink);
  return cudaGetLastError();
}
template <int KIND> static cudaError_t launch(int32_t grid, float *sink, double *flops) {
  *flops = 2.0 * 2.0 * 64 * 64 * (KIND < 0 ? 256 : 576) * ROUNDS * grid;
  return launch_kernel(amla_peak_wgmma<KIND>, grid, 256, SHARED, sink);
}
template <class S> static cudaError_t launch_mix(int32_t grid, float *sink, double *flops) {
  *flops = mix_flops_of_tile<S>() * ROUNDS * grid;
  return launch_kernel(amla_peak_mix<S>, grid, S::THREADS, S::SHARED_BYTES, sink);
}

#ifndef AMLA_PEAK_MAIN
cudaError_t amla_cuda_launch_peak_wgmma(int32_t grid, float *sink, double *flops) {
  return launch<-1>(grid, sink, flops);
}
cudaError_t amla_cuda_launch_peak_mix(int32_t grid, float *sink, double *flops) {
  return launch_mix<wgmma3<false, 576>>(grid, sink, flops);
}
#else
typedef cudaError_t (*launcher)(int32_t, float *, double *);

static void measure(const char *name, launcher run, int32_t grid, float *sink, bool mix) {
  cudaEvent_t begin, end;
  double flops = 0, best = 0;
  float ms = 0;
  cudaEventCreate(&begin);
  cudaEventCreate(&end);
  for (int i = 0; i < 12; i++) {
    cudaEventRecord(begin);
    const cudaError_t error = run(grid, sink, &flops);
    cudaEventRecord(end);
    if (error != cudaSuccess || cudaEventSynchronize(end) != cudaSuccess) {
      printf("%-48s %s\n", name, cudaGetErrorString(cudaGetLastError()));
      return;
    }
    cudaEventElapsedTime(&ms, begin, end);
    if (i > 1 && flops / ms > best)
      best = flops / ms;
  }
  float cycles = 0;
  cudaMemcpy(&cycles, sink, sizeof cycles, cudaMemcpyDeviceToHost);
  printf("%-48s %8.1f TFLOP/s", name, best * 1e-9);
  if (mix)
    printf(", %.0f cycles a key tile of 2176", cycles);
  printf("\n");
}

int main() {
  int sms = 0;
  float *sink;
  cudaDeviceGetAttribute(&sms, cudaDevAttrMultiProcessorCount, 0);
  if (sms == 0 || cudaMalloc(&sink, (size_t)sms * 384 * sizeof *sink) != cudaSuccess)
    return printf("no device\n"), 1;
  measure("PV only, m64n256, two warpgroups", launch<-1>, sms, sink, false);
  measure("scores only, two warpgroups, A in shared memory", launch<0>, sms, sink, false);
  measure("scores only, two warpgroups, A in registers", launch<9>, sms, sink, false);
  measure("the mix of wgmma3", launch_mix<wgmma3<false, 576>>, sms, sink, true);
  measure("the mix of wgmma2", launch_mix<wgmma2<false, 576>>, sms, sink, true);
  return 0;
}
#endif
