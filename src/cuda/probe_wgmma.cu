/* SPDX-License-Identifier: Apache-2.0
 *
 * amla_probe: the first seconds on a Hopper GPU. Every instruction of cuda_machine.cuh that the
 * wgmma kernels lean on, alone, against plain arithmetic on the host, with the layouts of
 * cuda_params.h; then the clock counts that decide the schedule. If a kernel is wrong, this says
 * which instruction was misread. One line per check: "ok NAME" or "FAIL NAME ..."; exit status 1
 * if one fails. Needs nothing but a driver.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <vector>

#include "cuda_machine.cuh"
#include "cuda_params.h"

using namespace machine;

enum { PIECE = 8192 };
static int failures;

static void die(const char *where, cudaError_t e) {
  printf("FAIL %s: %s\n", where, cudaGetErrorString(e));
  exit(1); /* the context is gone */
}
static void finish(const char *name) {
  cudaError_t e = cudaGetLastError();
  if (e == cudaSuccess)
    e = cudaDeviceSynchronize();
  if (e != cudaSuccess)
    die(name, e);
  fflush(stdout);
}
static void report(const char *name, long wrong, long first, double got, double want) {
  if (wrong == 0)
    printf("ok   %s\n", name);
  else
    printf("FAIL %s: %ld wrong, the first at %ld: %g, not %g\n", name, wrong, first, got, want),
        failures++;
  fflush(stdout);
}
static uint16_t bf16(float x) {
  uint32_t u;
  memcpy(&u, &x, 4);
  return (uint16_t)(u >> 16);
} /* small integers only */
static float small_integer(uint32_t i) {
  return (float)((int32_t)((i * 2654435761u) >> 29) - 3);
} /* -3 .. 4: products are exact */

/* ---- Products: image of shared memory in, accumulators out ---- */

template <int KIND>
__global__ void __launch_bounds__(128, 1)
    product(const uint32_t *image, uint32_t bytes, float *out, uint32_t leading, uint32_t stride,
            uint32_t *base) {
  const uint32_t shared = shared_base(), t = threadIdx.x;
  for (uint32_t i = t; i < bytes / 4; i += 128)
    sts_u32(shared + 4 * i, image[i]);
  fence_async_shared();
  __syncthreads();
  if (t == 0)
    *base = shared;
  if constexpr (KIND < 2 || KIND == 3) { /* s[64][64] = a[64][64] b[64][64]^T; a at 0, b at PIECE */
    float s[32];
    uint32_t q[16];
    for (int i = 0; i < 32; i++)
      s[i] = 1000.0f; /* must be overwritten by the first product */
    for (int k = 0; k < 4; k++) {
      uint32_t part[4];
      ldmatrix(part, shared + amla_cuda_swizzle(16 * (t >> 5) + (t & 15),
                                                (uint32_t)k * 2 + (t >> 4 & 1), 128));
      for (int j = 0; j < 4; j++)
        q[4 * k + j] = part[j];
    }
    pin(s);
    wgmma_fence();
#pragma unroll
    for (int k = 0; k < 4; k++) {
      const uint64_t b = matrix_descriptor(shared + PIECE + 32 * k, 16, 1024);
      if (KIND == 3)
        wgmma_scores<false>(s, plain_descriptor(shared + 2048 * k, 128, 256), b, k != 0);
      else if (KIND == 0)
        wgmma_scores<false>(s, matrix_descriptor(shared + 32 * k, 16, 1024), b, k != 0);
      else
        wgmma_scores_reg<false>(s, q + 4 * k, b, k != 0);
    }
    wgmma_commit();
    wgmma_wait<0>();
    pin(s);
    for (int i = 0; i < 32; i++)
      out[t * 32 + i] = s[i];
  } else { /* o[64][256] = p[64][64] v[64][256]; p at 0, v at PIECE in four pieces */
    float o[128];
    for (int i = 0; i < 128; i++)
      o[i] = 0.0f;
    pin(o);
    wgmma_fence();
#pragma unroll
    for (int k = 0; k < 4; k++)
      wgmma_output<false>(o, matrix_descriptor(shared + 32 * k, 16, 1024),
                          matrix_descriptor(shared + PIECE + 2048 * k, leading, stride));
    wgmma_commit();
    wgmma_wait<0>();
    pin(o);
    for (int i = 0; i < 128; i++)
      out[t * 128 + i] = o[i];
  }
}

template <int KIND>
static long run_product(const char *name, uint32_t leading, uint32_t stride, bool quiet) {
  const bool scores = KIND != 2;
  const int n = scores ? 64 : 256, pieces = 1 + n / 64, per = n / 2;
  std::vector<uint16_t> image(pieces * PIECE / 2);
  std::vector<float> a(64 * 64), b((size_t)64 * n), got(128 * per);
  for (int r = 0; r < 64; r++)
    for (int k = 0; k < 64; k++) {
      const uint32_t at = KIND == 3 ? k / 16 * 2048 + r / 8 * 256 + k / 8 % 2 * 128 + r % 8 * 16
                                    : amla_cuda_swizzle(r, k / 8, 128);
      image[at / 2 + k % 8] = bf16(a[r * 64 + k] = small_integer(r * 64 + k));
    }
  for (int i = 0; i < 64 * n; i++)
    b[i] = small_integer(777 + i);
  if (scores) /* b[key][k] */
    for (int r = 0; r < 64; r++)
      for (int k = 0; k < 64; k++)
        image[(PIECE + amla_cuda_swizzle(r, k / 8, 128)) / 2 + k % 8] = bf16(b[r * 64 + k]);
  else /* v[token][column] */
    for (int token = 0; token < 64; token++)
      for (int c = 0; c < n; c++)
        image[(PIECE * (1 + c / 64) + amla_cuda_swizzle(token, c % 64 / 8, 128)) / 2 + c % 8] =
            bf16(b[token * n + c]);
  uint32_t *dimage, *dbase, base = 0;
  float *dout;
  cudaMalloc(&dimage, image.size() * 2);
  cudaMalloc(&dout, got.size() * 4);
  cudaMalloc(&dbase, 4);
  cudaMemcpy(dimage, image.data(), image.size() * 2, cudaMemcpyHostToDevice);
  cudaFuncSetAttribute(product<KIND>, cudaFuncAttributeMaxDynamicSharedMemorySize, pieces * PIECE);
  product<KIND><<<1, 128, pieces * PIECE>>>(dimage, (uint32_t)(pieces * PIECE), dout, leading,
                                            stride, dbase);
  finish(name);
  cudaMemcpy(got.data(), dout, got.size() * 4, cudaMemcpyDeviceToHost);
  cudaMemcpy(&base, dbase, 4, cudaMemcpyDeviceToHost);
  cudaFree(dimage), cudaFree(dout), cudaFree(dbase);
  long wrong = 0, first = -1;
  float x = 0, y = 0;
  for (int t = 0; t < 128; t++)
    for (int i = 0; i < per; i++) {
      const int row = 16 * (t / 32) + amla_cuda_fragment_row(t % 32, i / 2),
                column = amla_cuda_fragment_column(t % 32, i / 2) + i % 2;
      float want = 0;
      for (int k = 0; k < 64; k++)
        want += a[row * 64 + k] * (scores ? b[column * 64 + k] : b[k * n + column]);
      if (got[t * per + i] != want && wrong++ == 0)
        first = t * per + i, x = got[t * per + i], y = want;
    }
  if (!quiet)
    report(name, wrong, first, x, y);
  if (!quiet && base % 1024 != 0)
    printf("FAIL dynamic shared memory begins at %u, no multiple of 1024\n", base), failures++;
  return wrong;
}

/* d[64][16] = a[64][64] b[16][64]^T, a K-major or (COLUMNS) M-major at 0, b at PIECE. */
template <bool COLUMNS>
__global__ void __launch_bounds__(128, 1) product16(const uint32_t *image, float *out) {
  const uint32_t shared = shared_base(), t = threadIdx.x;
  for (uint32_t i = t; i < (PIECE + 2048) / 4; i += 128)
    sts_u32(shared + 4 * i, image[i]);
  fence_async_shared();
  __syncthreads();
  float d[8] = {};
  pin(d);
  wgmma_fence();
#pragma unroll
  for (int k = 0; k < 4; k++) {
    const uint64_t b = matrix_descriptor(shared + PIECE + 32 * k, 16, 1024);
    if (COLUMNS)
      wgmma_columns<false>(d, matrix_descriptor(shared + 2048 * k, PIECE, 1024), b);
    else
      wgmma_keys<false>(d, matrix_descriptor(shared + 32 * k, 16, 1024), b, k != 0);
  }
  wgmma_commit();
  wgmma_wait<0>();
  pin(d);
  for (int i = 0; i < 8; i++)
    out[t * 8 + i] = d[i];
}

template <bool COLUMNS> static void check_product16(const char *name) {
  std::vector<uint16_t> image((PIECE + 2048) / 2);
  std::vector<float> a(64 * 64), b(16 * 64), got(128 * 8);
  for (int m = 0; m < 64; m++)
    for (int k = 0; k < 64; k++) {
      const int row = COLUMNS ? k : m, column = COLUMNS ? m : k;
      a[m * 64 + k] = small_integer(m * 64 + k);
      image[amla_cuda_swizzle(row, column / 8, 128) / 2 + column % 8] = bf16(a[m * 64 + k]);
    }
  for (int n = 0; n < 16; n++)
    for (int k = 0; k < 64; k++) {
      b[n * 64 + k] = small_integer(777 + n * 64 + k);
      image[(PIECE + amla_cuda_swizzle(n, k / 8, 128)) / 2 + k % 8] = bf16(b[n * 64 + k]);
    }
  uint32_t *dimage;
  float *dout;
  cudaMalloc(&dimage, image.size() * 2), cudaMalloc(&dout, got.size() * 4);
  cudaMemcpy(dimage, image.data(), image.size() * 2, cudaMemcpyHostToDevice);
  product16<COLUMNS><<<1, 128, PIECE + 2048>>>(dimage, dout);
  finish(name);
  cudaMemcpy(got.data(), dout, got.size() * 4, cudaMemcpyDeviceToHost);
  cudaFree(dimage), cudaFree(dout);
  long wrong = 0, first = -1;
  float x = 0, y = 0;
  for (int i = 0; i < 128 * 8; i++) {
    const int m = 16 * (i / 256) + amla_cuda_fragment_row(i / 8 % 32, i % 8 / 2),
              n = amla_cuda_fragment_column(i / 8 % 32, i % 8 / 2) + i % 2;
    float want = 0;
    for (int k = 0; k < 64; k++)
      want += a[m * 64 + k] * b[n * 64 + k];
    if (got[i] != want && wrong++ == 0)
      first = i, x = got[i], y = want;
  }
  report(name, wrong, first, x, y);
}

/* ---- mma.sync, ldmatrix.trans, stmatrix, bulk stores ---- */

/* x[16][16] to out with each 8 x 8 transposed. */
__global__ void transpose_and_store(const uint16_t *x, uint16_t *out) {
  const uint32_t shared = shared_base(), lane = threadIdx.x;
  const uint32_t at = shared + 32 * (lane & 15) + 16 * (lane >> 4);
  vec4 v;
  uint32_t a[4];
  memcpy(&v, x + 8 * lane, 16), sts_vec4(shared + 16 * lane, v);
  __syncwarp();
  ldmatrix(a, at);
  __syncwarp();
  stmatrix_trans(at, a);
  fence_async_shared();
  __syncwarp();
  if (lane == 0) {
    bulk_store(out, shared, 512);
    bulk_wait_read();
  }
}

static void check_transpose_and_store() {
  std::vector<uint16_t> x(256), got(256);
  uint16_t *dx, *dout;
  for (int i = 0; i < 256; i++)
    x[i] = (uint16_t)i;
  cudaMalloc(&dx, 512), cudaMalloc(&dout, 512);
  cudaMemcpy(dx, x.data(), 512, cudaMemcpyHostToDevice);
  transpose_and_store<<<1, 32, 512>>>(dx, dout);
  finish("stmatrix.trans, bulk store");
  cudaMemcpy(got.data(), dout, 512, cudaMemcpyDeviceToHost);
  cudaFree(dx), cudaFree(dout);
  long wrong = 0;
  for (int i = 0; i < 256; i++) {
    const int row = i / 16, column = i % 16;
    wrong += got[i] != (row / 8 * 8 + column % 8) * 16 + column / 8 * 8 + row % 8;
  }
  report("stmatrix.trans, bulk store", wrong, 0, 0, 0);
}

/* q[16][16], v[16 tokens][16 columns]. */
__global__ void warp_instructions(const uint16_t *q, const uint16_t *v, float *o,
                                  uint16_t *stored) {
  const uint32_t shared = shared_base(), lane = threadIdx.x;
  for (uint32_t i = lane; i < 32; i += 32) {
    vec4 x;
    memcpy(&x, q + 8 * i, 16), sts_vec4(shared + 16 * i, x);
    memcpy(&x, v + 8 * i, 16), sts_vec4(shared + 512 + 16 * i, x);
  }
  __syncwarp();
  uint32_t a[4], b[4];
  float c[2][4] = {};
  ldmatrix(a, shared + 32 * (lane & 15) + 16 * (lane >> 4));
  ldmatrix_trans(b, shared + 512 + 32 * (lane & 15) + 16 * (lane >> 4));
  mma<false>(c[0], a, b[0], b[1]);
  mma<false>(c[1], a, b[2], b[3]);
  for (int n = 0; n < 2; n++)
    for (int i = 0; i < 4; i++)
      o[(lane / 4 + 8 * (i >> 1)) * 16 + 8 * n + 2 * (lane % 4) + (i & 1)] = c[n][i];
  stmatrix(shared + 1024 + 32 * (lane & 15) + 16 * (lane >> 4), a); /* a again */
  __syncwarp();
  for (uint32_t i = lane; i < 128; i += 32) {
    const uint32_t x = lds_u32(shared + 1024 + 4 * i);
    memcpy(stored + 2 * i, &x, 4);
  }
}

static void check_warp_instructions() {
  std::vector<uint16_t> q(256), v(256), stored(256);
  std::vector<float> o(256);
  for (int i = 0; i < 256; i++)
    q[i] = bf16(small_integer(i)), v[i] = bf16(small_integer(i + 999));
  uint16_t *dq, *dv, *ds;
  float *dout;
  cudaMalloc(&dq, 512), cudaMalloc(&dv, 512), cudaMalloc(&ds, 512), cudaMalloc(&dout, 1024);
  cudaMemcpy(dq, q.data(), 512, cudaMemcpyHostToDevice),
      cudaMemcpy(dv, v.data(), 512, cudaMemcpyHostToDevice);
  warp_instructions<<<1, 32, 2048>>>(dq, dv, dout, ds);
  finish("mma.sync");
  cudaMemcpy(o.data(), dout, 1024, cudaMemcpyDeviceToHost),
      cudaMemcpy(stored.data(), ds, 512, cudaMemcpyDeviceToHost);
  long wrong = 0, first = -1, bad = 0;
  float x = 0, y = 0;
  for (int r = 0; r < 16; r++)
    for (int c = 0; c < 16; c++) {
      float want = 0;
      for (int k = 0; k < 16; k++)
        want += small_integer(r * 16 + k) * small_integer(k * 16 + c + 999);
      if (o[r * 16 + c] != want && wrong++ == 0)
        first = r * 16 + c, x = o[r * 16 + c], y = want;
    }
  for (int i = 0; i < 256; i++)
    bad += stored[i] != q[i];
  report("mma.sync m16n8k16, ldmatrix, ldmatrix.trans", wrong, first, x, y);
  report("stmatrix undoes ldmatrix", bad, 0, 0, 0);
}

/* ---- TMA and mbarrier ---- */

typedef CUresult (*encode_tiled)(CUtensorMap *, CUtensorMapDataType, cuuint32_t, void *,
                                 const cuuint64_t *, const cuuint64_t *, const cuuint32_t *,
                                 const cuuint32_t *, CUtensorMapInterleave, CUtensorMapSwizzle,
                                 CUtensorMapL2promotion, CUtensorMapFloatOOBfill);
static bool make_map(CUtensorMap *map, void *kv, uint64_t columns, uint64_t tokens, uint64_t pages,
                     uint64_t token_bytes, uint64_t page_bytes, uint32_t box_tokens) {
  void *f = nullptr;
  cudaDriverEntryPointQueryResult r;
  if (cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &f, 12000, cudaEnableDefault,
                                       &r) != cudaSuccess ||
      !f)
    return printf("FAIL cuTensorMapEncodeTiled is not there\n"), failures++, false;
  const cuuint64_t extents[] = {columns, tokens, pages}, strides[] = {token_bytes, page_bytes};
  const cuuint32_t box[] = {64, box_tokens, 1}, steps[] = {1, 1, 1};
  const CUresult e =
      ((encode_tiled)f)(map, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, 3, kv, extents, strides, box, steps,
                        CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
                        CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  if (e != CUDA_SUCCESS)
    printf("FAIL cuTensorMapEncodeTiled: %d for page stride %llu, token stride %llu, %u tokens a "
           "box\n",
           (int)e, (unsigned long long)page_bytes, (unsigned long long)token_bytes, box_tokens),
        failures++;
  return e == CUDA_SUCCESS;
}

__global__ void __launch_bounds__(128, 1)
    load_boxes(const __grid_constant__ CUtensorMap map, uint32_t *out, int box, int column,
               int token, const int *pages) {
  const uint32_t shared = shared_base(), barrier = shared + PIECE;
  if (threadIdx.x == 0) {
    mbarrier_init(barrier, 1);
    mbarrier_init_fence();
  }
  for (uint32_t i = threadIdx.x; i < PIECE / 4; i += 128)
    sts_u32(shared + 4 * i, 0x7fc07fc0u);
  fence_async_shared();
  __syncthreads();
  if (threadIdx.x == 0) {
    mbarrier_expect(barrier, 64 * 128);
    for (int i = 0; i < 64 / box; i++)
      tma_load(shared + (uint32_t)(i * box) * 128, &map, barrier, column, token, pages[i]);
  }
  mbarrier_wait(barrier, 0);
  for (uint32_t i = threadIdx.x; i < PIECE / 4; i += 128)
    out[i] = lds_u32(shared + 4 * i);
}

static void check_tma(int box, int tokens, uint64_t token_elements, uint64_t page_pad) {
  const int n_pages = 5;
  const uint64_t page = tokens * token_elements + page_pad;
  std::vector<uint16_t> kv(n_pages * page), got(PIECE / 2);
  for (size_t i = 0; i < kv.size(); i++)
    kv[i] = (uint16_t)(i * 40503u >> 3 & 0x3fff);
  void *dkv, *dout;
  int *dpages, pages[] = {3, -1, 0, 2};
  CUtensorMap map;
  char name[100];
  snprintf(name, sizeof name,
           "TMA, boxes of %d tokens of %d, token stride %d, page pad %d; page -1", box, tokens,
           (int)token_elements, (int)page_pad);
  cudaMalloc(&dkv, kv.size() * 2), cudaMalloc(&dout, PIECE),
      cudaMalloc((void **)&dpages, sizeof pages);
  cudaMemcpy(dkv, kv.data(), kv.size() * 2, cudaMemcpyHostToDevice),
      cudaMemcpy(dpages, pages, sizeof pages, cudaMemcpyHostToDevice);
  if (!make_map(&map, dkv, 576, tokens, n_pages, token_elements * 2, page * 2, box))
    return;
  load_boxes<<<1, 128, PIECE + 64>>>(map, (uint32_t *)dout, box, 512, 0, dpages);
  finish(name);
  cudaMemcpy(got.data(), dout, PIECE, cudaMemcpyDeviceToHost);
  long wrong = 0, first = -1;
  float x = 0, y = 0;
  for (int t = 0; t < 64; t++)
    for (int c = 0; c < 64; c++) {
      const int at = t % box, p = pages[t / box];
      const uint16_t want =
                         p < 0 || at >= tokens ? 0 : kv[p * page + at * token_elements + 512 + c],
                     have = got[amla_cuda_swizzle(t, c / 8, 128) / 2 + c % 8];
      if (have != want && wrong++ == 0)
        first = t * 64 + c, x = have, y = want;
    }
  report(name, wrong, first, x, y);
  cudaFree(dkv), cudaFree(dout), cudaFree(dpages);
}

/* ---- Registers: the kernel's own pool ---- */

__global__ void __launch_bounds__(384, 1) pool(int *out) {
  const int w = warpgroup_id();
  if (w == 2)
    registers_up<184>();
  else
    registers_down<160>();
  out[threadIdx.x] = w;
}

/* ---- Clocks that decide the schedule ---- */

AMLA_DEVICE uint32_t now() {
  uint32_t x;
  asm volatile("mov.u32 %0, %%clock;" : "=r"(x)::"memory");
  return x;
}

/* Mode bit 0: warpgroup 2 issues one tile of scores; bit 1: warpgroups 0 and 1 issue one tile of
 * PV, `delay` cycles later. ONCE: the scores are one group, not nine. out[0], out[1]: cycles until
 * PV is done, out[2]: the scores, out[3]: until they are issued. */
template <bool ONCE>
__global__ void __launch_bounds__(384, 1) race(uint32_t *out, int mode, uint32_t delay) {
  const uint32_t shared = shared_base();
  const int w = warpgroup_id();
  for (uint32_t i = threadIdx.x; i < 19 * PIECE / 4; i += 384)
    sts_u32(shared + 4 * i, 0x3e803f00u ^ (i * 2654435761u & 0x807f807fu));
  fence_async_shared();
  if (w == 2) {
    registers_up<184>();
    float s[32];
    for (int round = 0; round < 2; round++) {
      for (int i = 0; i < 32; i++)
        s[i] = 0;
      __syncthreads();
      const uint32_t start = now();
      uint32_t early = 0;
      if (mode & 1) {
        pin(s);
        wgmma_fence();
#pragma unroll
        for (int i = 0; i < 9; i++) {
#pragma unroll
          for (int k = 0; k < 4; k++)
            wgmma_scores<false>(s, matrix_descriptor(shared + i * PIECE + 32 * k, 16, 1024),
                                matrix_descriptor(shared + (9 + i) * PIECE + 32 * k, 16, 1024), 1);
          if (!ONCE)
            wgmma_commit();
        }
        if (ONCE)
          wgmma_commit();
        early = now() - start; /* issued */
        wgmma_wait<0>();
        pin(s);
      }
      const uint32_t done = now() - start;
      float sum = 0;
      for (int i = 0; i < 32; i++)
        sum += s[i];
      if (threadIdx.x == 256)
        out[2] = done, out[3] = early, out[8] = __float_as_uint(sum);
    }
  } else {
    registers_down<160>();
    float o[128];
    for (int round = 0; round < 2; round++) {
      for (int i = 0; i < 128; i++)
        o[i] = 0;
      __syncthreads();
      const uint32_t start = now();
      if (mode & 2) {
        while (now() - start < delay) {}
        pin(o);
        wgmma_fence();
#pragma unroll
        for (int k = 0; k < 4; k++)
          wgmma_output<false>(
              o, matrix_descriptor(shared + 32 * k, 16, 1024),
              matrix_descriptor(shared + (9 + 4 * w) * PIECE + 2048 * k, PIECE, 1024));
        wgmma_commit();
        wgmma_wait<0>();
        pin(o);
      }
      const uint32_t done = now() - start;
      float sum = 0;
      for (int i = 0; i < 128; i++)
        sum += o[i];
      if (threadIdx.x % 128 == 0)
        out[w] = done, out[6 + w] = __float_as_uint(sum);
    }
  }
}

static void time_race() {
  uint32_t *d, h[9];
  cudaMalloc(&d, sizeof h);
  cudaFuncSetAttribute(race<true>, cudaFuncAttributeMaxDynamicSharedMemorySize, 19 * PIECE);
  printf("clock tensor cores, cycles till done: one tile of scores (36 x m64n64k16, A in shared "
         "memory), PV of two warpgroups (2 x 4 x m64n256k16)\n");
  const struct {
    int mode;
    uint32_t delay;
    const char *what;
  } runs[] = {{1, 0, "scores alone"},
              {2, 0, "PV alone"},
              {3, 0, "both at once"},
              {3, 300, "PV 300 later"},
              {3, 800, "PV 800 later"}};
  for (auto &r : runs) {
    race<true><<<1, 384, 19 * PIECE>>>(d, r.mode, r.delay);
    finish("race");
    cudaMemcpy(h, d, sizeof h, cudaMemcpyDeviceToHost);
    printf("clock   %-14s scores %5u (issued after %u), PV %5u and %5u\n", r.what, h[2], h[3], h[0],
           h[1]);
  }
  cudaFree(d);
}

/* `rounds` tiles of 72 KB by TMA, `depth` in flight, pages at random in `n_pages` of 64 tokens. */
__global__ void __launch_bounds__(128, 1)
    stream(const __grid_constant__ CUtensorMap map, uint32_t *cycles, int rounds, int depth,
           int n_pages, int share) {
  const uint32_t shared = shared_base(), barriers = shared + 2 * 9 * PIECE;
  if (threadIdx.x == 0) {
    mbarrier_init(barriers, 1), mbarrier_init(barriers + 8, 1);
    mbarrier_init_fence();
    uint32_t page = (blockIdx.x / share) * 2654435761u;
    auto ask = [&](int i) {
      const uint32_t at = barriers + 8 * (i & 1);
      page = page * 1664525u + 1013904223u;
      mbarrier_expect(at, 9 * PIECE);
      for (int k = 0; k < 9; k++)
        tma_load(shared + ((i & 1) * 9 + k) * PIECE, &map, at, 64 * k, 0,
                 (int)((uint64_t)page * n_pages >> 32));
    };
    const uint32_t start = now();
    for (int i = 0; i < depth; i++)
      ask(i);
    for (int i = 0; i < rounds; i++) {
      mbarrier_wait(barriers + 8 * (i & 1), i >> 1 & 1);
      if (i + depth < rounds)
        ask(i + depth);
    }
    cycles[blockIdx.x] = now() - start;
  }
}

static void time_tma() {
  int sms = 0;
  cudaDeviceGetAttribute(&sms, cudaDevAttrMultiProcessorCount, 0);
  void *kv;
  uint32_t *d;
  const int many = 20000, few = 200, rounds = 200; /* 1.5 GB; 15 MB: in L2 */
  CUtensorMap map;
  cudaMalloc(&kv, (size_t)many * 64 * 1152), cudaMalloc(&d, 4 * sms);
  cudaMemset(kv, 0x3c, (size_t)many * 64 * 1152);
  if (!make_map(&map, kv, 576, 64, many, 1152, 64 * 1152, 64))
    return;
  cudaFuncSetAttribute(stream, cudaFuncAttributeMaxDynamicSharedMemorySize, 2 * 9 * PIECE + 64);
  const struct {
    int grid, depth, pages, share;
    const char *what;
  } runs[] = {{1, 1, few, 1, "one SM, L2, one tile at a time"},
              {1, 2, few, 1, "one SM, L2, two in flight"},
              {sms, 1, few, 1, "all SMs, L2, one tile at a time"},
              {sms, 2, few, 1, "all SMs, L2, two in flight"},
              {sms, 2, few, 2, "all SMs, L2, two in flight, pairs read the same"},
              {sms, 2, many, 1, "all SMs, HBM, two in flight"},
              {sms, 2, many, 2, "all SMs, HBM, two in flight, pairs read the same"}};
  for (auto &r : runs) {
    std::vector<uint32_t> h(sms);
    for (int i = 0; i < 2; i++)
      stream<<<r.grid, 128, 2 * 9 * PIECE + 64>>>(map, d, rounds, r.depth, r.pages, r.share);
    finish("stream");
    cudaMemcpy(h.data(), d, 4 * sms, cudaMemcpyDeviceToHost);
    uint32_t most = 0;
    for (int i = 0; i < r.grid; i++)
      most = h[i] > most ? h[i] : most;
    printf("clock   TMA %-48s %6.0f cycles per tile of 73,728 bytes: %5.1f B/cycle and SM\n",
           r.what, (double)most / rounds, 73728.0 * rounds / most);
  }
  cudaFree(kv), cudaFree(d);
}

int main() {
  cudaDeviceProp p;
  const cudaError_t e = cudaGetDeviceProperties(&p, 0);
  if (e != cudaSuccess)
    die("device", e);
  printf("device %s, %d multiprocessors, %zu bytes of shared memory a block\n", p.name,
         p.multiProcessorCount, p.sharedMemPerBlockOptin);
  run_product<0>("wgmma scores: a, b in shared memory, K-major, 128-byte swizzle", 16, 1024, false);
  run_product<1>("wgmma scores: a in registers by ldmatrix", 16, 1024, false);
  run_product<3>("wgmma scores: a without swizzle, leading 128, stride 256", 0, 0, false);
  if (run_product<2>("wgmma output: b MN-major, leading 8192, stride 1024", 8192, 1024, false) != 0)
    for (uint32_t l : {16u, 128u, 1024u, 2048u, 8192u})
      for (uint32_t s : {16u, 128u, 1024u, 2048u, 8192u})
        printf("     leading %u, stride %u: %ld wrong\n", l, s, run_product<2>("", l, s, true));
  check_product16<false>("wgmma of 16 rows: a K-major");
  check_product16<true>("wgmma of 16 rows: a M-major, stride 1024");
  check_warp_instructions();
  check_transpose_and_store();
  for (int box : {16, 32, 64})
    check_tma(box, box, 576, 0);
  check_tma(64, 20, 576, 0); /* fewer tokens than the box */
  check_tma(64, 64, 584,
            8); /* padded rows and pages: the page stride is no multiple of the token stride */
  int *d;
  cudaMalloc(&d, 384 * 4);
  pool<<<1, 384>>>(d);
  finish("setmaxnreg 160, 160, 184");
  report("setmaxnreg 160, 160, 184 of 384 x 168", 0, 0, 0, 0);
  time_race();
  time_tma();
  printf("%s: %d failures\n", failures ? "FAIL" : "ok", failures);
  return failures != 0;
}
