/* SPDX-License-Identifier: Apache-2.0
 *
 * What mma.sync alone reaches: eight warps per multiprocessor, each 16 independent accumulators,
 * operands in registers.
 */
#include "cuda_launch.h"
#include "cuda_machine.cuh"

using namespace machine;

enum { WARPS = 8, CHAINS = 16, ROUNDS = 20000 };

__global__ void __launch_bounds__(32 * WARPS, 1) amla_peak_mma(float *sink) {
  float c[CHAINS][4] = {};
  uint32_t a[4], b[2];
  for (int i = 0; i < 4; i++)
    a[i] = 0x3f803f00u ^ (threadIdx.x * 0x00010003u & 0x007f007fu) ^
           (uint32_t)i << 31; /* near 1, both signs: zeros draw less power */
  for (int i = 0; i < 2; i++)
    b[i] = 0x3e803f80u ^ (threadIdx.x * 0x00030001u & 0x007f007fu) ^ (uint32_t)i << 15;
#pragma unroll 1
  for (int round = 0; round < ROUNDS; round++)
#pragma unroll
    for (int i = 0; i < CHAINS; i++)
      mma<false>(c[i], a, b[0], b[1]);
  float sum = 0;
  for (int i = 0; i < CHAINS; i++)
    sum += c[i][0] + c[i][1] + c[i][2] + c[i][3];
  sink[blockIdx.x * blockDim.x + threadIdx.x] = sum;
}

cudaError_t amla_cuda_launch_peak_mma(int32_t grid, float *sink, double *flops) {
  *flops = 2.0 * 16 * 8 * 16 * CHAINS * (double)ROUNDS * WARPS * grid;
  amla_peak_mma<<<grid, 32 * WARPS>>>(sink);
  return cudaGetLastError();
}
