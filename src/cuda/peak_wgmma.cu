/* SPDX-License-Identifier: Apache-2.0
 *
 * What wgmma reaches: the products of the Hopper kernel and nothing else, from random numbers in
 * shared memory. amla_cuda_launch_peak_wgmma is the limit that the benchmark names; `main`
 * (AMLA_PEAK_MAIN) is the micro-benchmark that decides where Q should be: rates by shape, by the
 * place of A, and of the kernel's own mix with 0 to 5 pieces of Q in registers.
 */
#include <stdio.h>

#include "cuda_launch.h"
#include "cuda_machine.cuh"

using namespace machine;

enum { ROUNDS = 400, PIECE = 8192, KV = 9 * PIECE, SHARED = 27 * PIECE };

AMLA_DEVICE void
fill_shared(uint32_t shared) { /* bf16 of either sign and about 1/4 to 1: power as with real data */
  for (uint32_t i = threadIdx.x; i < SHARED / 4; i += blockDim.x) {
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
  float sum = 0;
  for (int i = 0; i < N; i++)
    sum += x[i];
  sink[blockIdx.x * blockDim.x + threadIdx.x] = sum;
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

/* KIND -1: two warpgroups of PV only; 0 to 9: the kernel's mix with so many pieces of Q in
 * registers; 10, 19: scores only by two warpgroups, none or all of Q. */
template <int KIND>
__global__ void __launch_bounds__(KIND < 0 || KIND >= 10 ? 256 : 384, 1)
    amla_peak_wgmma(float *sink) {
  const uint32_t shared = shared_base();
  fill_shared(shared);
  const int warpgroup = warpgroup_id();
  if constexpr (KIND < 0)
    value_rounds(sink, shared, warpgroup);
  else if constexpr (KIND >= 10)
    score_rounds<KIND - 10>(sink, shared);
  else if (warpgroup == 2) {
    registers_up<184>();
    score_rounds<KIND>(sink, shared);
  } else {
    registers_down<160>();
    value_rounds(sink, shared, warpgroup);
  }
}

template <int KIND> static cudaError_t launch(int32_t grid, float *sink, double *flops) {
  const double scores = 2.0 * 64 * 64 * 576, values = 2.0 * 64 * 64 * 256;
  double of_round = scores + 2 * values;
  if (KIND < 0)
    of_round = 2 * values;
  else if (KIND >= 10)
    of_round = 2 * scores;
  *flops = of_round * ROUNDS * grid;
  const cudaError_t error = cudaFuncSetAttribute(
      amla_peak_wgmma<KIND>, cudaFuncAttributeMaxDynamicSharedMemorySize, SHARED);
  if (error != cudaSuccess)
    return error;
  const unsigned threads = KIND < 0 || KIND >= 10 ? 256 : 384;
  amla_peak_wgmma<KIND><<<grid, threads, SHARED>>>(sink);
  return cudaGetLastError();
}

#ifndef AMLA_PEAK_MAIN
cudaError_t amla_cuda_launch_peak_wgmma(int32_t grid, float *sink, double *flops) {
  return launch<-1>(grid, sink, flops);
}
#else
typedef cudaError_t (*launcher)(int32_t, float *, double *);

static void measure(const char *name, launcher run, int32_t grid, float *sink) {
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
      printf("%-44s %s\n", name, cudaGetErrorString(cudaGetLastError()));
      return;
    }
    cudaEventElapsedTime(&ms, begin, end);
    if (i > 1 && flops / ms > best)
      best = flops / ms;
  }
  printf("%-44s %8.1f TFLOP/s\n", name, best * 1e-9);
}

int main() {
  int sms = 0;
  float *sink;
  cudaDeviceGetAttribute(&sms, cudaDevAttrMultiProcessorCount, 0);
  if (sms == 0 || cudaMalloc(&sink, (size_t)sms * 384 * sizeof *sink) != cudaSuccess)
    return printf("no device\n"), 1;
  measure("PV only, m64n256, two warpgroups", launch<-1>, sms, sink);
  measure("scores only, two warpgroups, A in shared memory", launch<10>, sms, sink);
  measure("scores only, two warpgroups, A in registers", launch<19>, sms, sink);
  measure("the kernel's mix, Q all in shared memory", launch<0>, sms, sink);
  measure("the kernel's mix, 2 of 9 pieces in registers", launch<2>, sms, sink);
  measure("the kernel's mix, 4 of 9 pieces in registers", launch<4>, sms, sink);
  measure("the kernel's mix, 5 of 9 pieces in registers", launch<5>, sms, sink);
  return 0;
}
#endif
