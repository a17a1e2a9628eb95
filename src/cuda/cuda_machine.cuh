/* SPDX-License-Identifier: Apache-2.0
 *
 * The instructions that the kernels are written in, one function each: PTX here. The same names in
 * plain C++ are in tests/cuda_emulated/cuda_machine_emulated.hpp, which runs every thread of a grid
 * on the CPU: so the kernels are tested where there is no GPU. Addresses of shared memory are
 * 32-bit offsets, as PTX has them. Names and meanings: PTX ISA 8.x.
 */
#ifndef AMLA_CUDA_MACHINE_CUH
#define AMLA_CUDA_MACHINE_CUH

#ifndef __CUDACC__
#include "cuda_machine_emulated.hpp"
#else

#include <cuda.h>
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <stdint.h>

#define AMLA_DEVICE __device__ __forceinline__

namespace machine {

enum : uint32_t { ALL_LANES = 0xffffffffu };

struct vec4 {
  uint32_t x, y, z, w;
};

/* ---- Where am I ---- */

AMLA_DEVICE int32_t thread_id() { return (int32_t)threadIdx.x; }
AMLA_DEVICE int32_t
thread_id_again() { /* what is computed from it is not kept in registers across a loop */
  int32_t t;
  asm volatile("mov.u32 %0, %%tid.x;" : "=r"(t));
  return t;
}

AMLA_DEVICE int32_t block_index() { return (int32_t)blockIdx.x; }

AMLA_DEVICE uint32_t shared_base() {
  extern __shared__ __align__(1024) unsigned char dynamic_shared[];
  return (uint32_t)__cvta_generic_to_shared(dynamic_shared);
}

/* ---- Shared memory ---- */

AMLA_DEVICE float lds_f32(uint32_t at) {
  float x;
  asm volatile("ld.shared.f32 %0, [%1];" : "=f"(x) : "r"(at) : "memory");
  return x;
}
AMLA_DEVICE void sts_f32(uint32_t at, float x) {
  asm volatile("st.shared.f32 [%0], %1;" ::"r"(at), "f"(x) : "memory");
}
AMLA_DEVICE uint32_t lds_u32(uint32_t at) {
  uint32_t x;
  asm volatile("ld.shared.u32 %0, [%1];" : "=r"(x) : "r"(at) : "memory");
  return x;
}
AMLA_DEVICE void sts_u32(uint32_t at, uint32_t x) {
  asm volatile("st.shared.u32 [%0], %1;" ::"r"(at), "r"(x) : "memory");
}
AMLA_DEVICE void lds_f32x4(uint32_t at, float *x) {
  asm volatile("ld.shared.v4.f32 {%0, %1, %2, %3}, [%4];"
               : "=f"(x[0]), "=f"(x[1]), "=f"(x[2]), "=f"(x[3])
               : "r"(at)
               : "memory");
}
AMLA_DEVICE void sts_f32x2(uint32_t at, float x, float y) {
  asm volatile("st.shared.v2.f32 [%0], {%1, %2};" ::"r"(at), "f"(x), "f"(y) : "memory");
}
AMLA_DEVICE void sts_u32x2(uint32_t at, uint32_t x, uint32_t y) {
  asm volatile("st.shared.v2.u32 [%0], {%1, %2};" ::"r"(at), "r"(x), "r"(y) : "memory");
}
AMLA_DEVICE void sts_vec4(uint32_t at, vec4 v) {
  asm volatile("st.shared.v4.u32 [%0], {%1, %2, %3, %4};" ::"r"(at), "r"(v.x), "r"(v.y), "r"(v.z),
               "r"(v.w)
               : "memory");
}

/* ---- Threads together ---- */

AMLA_DEVICE void sync_block() { __syncthreads(); }
AMLA_DEVICE bool sync_block_or(bool x) { return __syncthreads_or(x) != 0; }
AMLA_DEVICE void sync_named(int32_t barrier, int32_t threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(barrier), "r"(threads) : "memory");
}
AMLA_DEVICE void sync_warp() { __syncwarp(); }
AMLA_DEVICE float shuffle_xor(float x, int32_t mask) { return __shfl_xor_sync(ALL_LANES, x, mask); }
AMLA_DEVICE int32_t shuffle_up(int32_t x, int32_t by) { return __shfl_up_sync(ALL_LANES, x, by); }
AMLA_DEVICE int32_t shuffle(int32_t x, int32_t lane) { return __shfl_sync(ALL_LANES, x, lane); }
AMLA_DEVICE uint32_t vote(bool x) { return __ballot_sync(ALL_LANES, x); }

/* ---- Global memory between thread blocks ---- */

AMLA_DEVICE uint32_t atomic_add(uint32_t *at, uint32_t x) { return atomicAdd(at, x); }
AMLA_DEVICE void atomic_or(uint32_t *at, uint32_t x) { atomicOr(at, x); }
AMLA_DEVICE void fence_device() { __threadfence(); }
AMLA_DEVICE uint32_t load_acquire(const uint32_t *at) {
  uint32_t x;
  asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(x) : "l"(at) : "memory");
  return x;
}
AMLA_DEVICE void store_release(uint32_t *at, uint32_t x) {
  asm volatile("st.release.gpu.global.u32 [%0], %1;" ::"l"(at), "r"(x) : "memory");
}
AMLA_DEVICE void pause_while(const uint32_t *, uint32_t) {
  __nanosleep(64);
} /* somebody else will change that word */
AMLA_DEVICE vec4 load_global(const void *at) { /* 16 bytes that nobody writes */
  vec4 v;
  asm volatile("ld.global.nc.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "l"(at));
  return v;
}

/* 16 bytes that other thread blocks have written. */
AMLA_DEVICE void load_f32x4(const float *at, float *x) {
  asm volatile("ld.global.v4.f32 {%0, %1, %2, %3}, [%4];"
               : "=f"(x[0]), "=f"(x[1]), "=f"(x[2]), "=f"(x[3])
               : "l"(at)
               : "memory");
}
AMLA_DEVICE void store_f32x2(float *at, float x, float y) {
  asm volatile("st.global.v2.f32 [%0], {%1, %2};" ::"l"(at), "f"(x), "f"(y) : "memory");
}

/* ---- cp.async: bytes beyond `bytes` (0 or 16) are zero ---- */

AMLA_DEVICE void copy_async16(uint32_t to, const void *from, int32_t bytes) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(bytes)
               : "memory");
}
AMLA_DEVICE void copy_async4(uint32_t to, const void *from) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4;" ::"r"(to), "l"(from) : "memory");
}
AMLA_DEVICE void copy_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int N> AMLA_DEVICE void copy_async_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
}

/* ---- Warp matrices ---- */

AMLA_DEVICE void ldmatrix(uint32_t (&r)[4], uint32_t at) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(at)
               : "memory");
}
AMLA_DEVICE void ldmatrix_trans(uint32_t (&r)[4], uint32_t at) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(at)
               : "memory");
}
AMLA_DEVICE void stmatrix(uint32_t at, const uint32_t (&r)[4]) {
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
  asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(at),
               "r"(r[0]), "r"(r[1]), "r"(r[2]), "r"(r[3])
               : "memory");
#endif
}
AMLA_DEVICE void stmatrix_trans(uint32_t at, const uint32_t (&r)[4]) {
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
  asm volatile("stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(at),
               "r"(r[0]), "r"(r[1]), "r"(r[2]), "r"(r[3])
               : "memory");
#endif
}
/* c[16][8] += a[16][16] b[16][8]. */
template <bool F16>
AMLA_DEVICE void mma(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  if constexpr (F16)
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, "
                 "%7}, {%8, %9}, {%0, %1, %2, %3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  else
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, "
                 "%6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

/* ---- Arithmetic ---- */

AMLA_DEVICE float exp2_approx(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

template <bool F16> AMLA_DEVICE uint32_t pack(float low, float high) { /* to nearest even */
  uint32_t r;
  if constexpr (F16)
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(high), "f"(low));
  else
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(high), "f"(low));
  return r;
}
template <bool F16> AMLA_DEVICE float unpack_low(uint32_t r) {
  if constexpr (F16)
    return __half2float(__ushort_as_half((unsigned short)r));
  else
    return __uint_as_float(r << 16);
}
template <bool F16> AMLA_DEVICE float unpack_high(uint32_t r) {
  if constexpr (F16)
    return __half2float(__ushort_as_half((unsigned short)(r >> 16)));
  else
    return __uint_as_float(r & 0xffff0000u);
}

/* ---- sm_90a: mbarrier, TMA, wgmma ---- */

typedef CUtensorMap tensor_map;

AMLA_DEVICE int32_t warpgroup_id() {
  return __shfl_sync(ALL_LANES, (int32_t)threadIdx.x >> 7, 0);
} /* known to be uniform */

#if !defined(__CUDA_ARCH__) || defined(__CUDA_ARCH_FEAT_SM90_ALL)
AMLA_DEVICE void mbarrier_init(uint32_t at, uint32_t arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(at), "r"(arrivals) : "memory");
}
AMLA_DEVICE void mbarrier_init_fence() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}
AMLA_DEVICE void mbarrier_arrive(uint32_t at) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(at) : "memory");
}
AMLA_DEVICE void mbarrier_expect(uint32_t at, uint32_t bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(at), "r"(bytes)
               : "memory");
}
#ifdef AMLA_CUDA_WATCHDOG /* a wait of more cycles ends the kernel with an error; no words, as a   \
                             call would change the schedule (C7510) */
AMLA_DEVICE bool mbarrier_try(uint32_t at, uint32_t parity) {
  uint32_t done;
  asm volatile("{\n.reg .pred p;\nmbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\n"
               "selp.u32 %0, 1, 0, p;\n}"
               : "=r"(done)
               : "r"(at), "r"(parity)
               : "memory");
  return done != 0;
}
AMLA_DEVICE void mbarrier_wait(uint32_t at, uint32_t parity) {
  const long long begin = clock64();
  while (!mbarrier_try(at, parity))
    if (clock64() - begin > (long long)AMLA_CUDA_WATCHDOG)
      __trap();
}
#else
/* Until the phase of that parity has completed. */
AMLA_DEVICE void mbarrier_wait(uint32_t at, uint32_t parity) {
  asm volatile("{\n.reg .pred done;\nWAIT_%=:\nmbarrier.try_wait.parity.shared::cta.b64 done, "
               "[%0], %1;\n@done bra DONE_%=;\nbra WAIT_%=;\nDONE_%=:\n}" ::"r"(at),
               "r"(parity)
               : "memory");
}
#endif
AMLA_DEVICE void tma_load(uint32_t to, const tensor_map *map, uint32_t barrier, int32_t column,
                          int32_t token, int32_t page) {
  asm volatile("cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], "
               "[%1, {%3, %4, %5}], [%2];" ::"r"(to),
               "l"(map), "r"(barrier), "r"(column), "r"(token), "r"(page)
               : "memory");
}
/* Bytes from shared to global memory, both at multiples of 16. A thread waits until its own have
 * been read, and may then write there again. */
AMLA_DEVICE void bulk_store(void *to, uint32_t from, uint32_t bytes) {
  asm volatile("cp.async.bulk.global.shared::cta.bulk_group [%0], [%1], %2;" ::"l"(to), "r"(from),
               "r"(bytes)
               : "memory");
}
AMLA_DEVICE void bulk_wait_read() {
  asm volatile("cp.async.bulk.commit_group;\ncp.async.bulk.wait_group.read 0;" ::: "memory");
}
/* A cluster of two thread blocks. Addresses of the other one are this one's. */
AMLA_DEVICE int32_t cluster_rank() {
  int32_t rank;
  asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return rank;
}
AMLA_DEVICE void sync_cluster() {
  asm volatile("barrier.cluster.arrive.aligned;\nbarrier.cluster.wait.aligned;" ::: "memory");
}
AMLA_DEVICE void mbarrier_arrive_peer(uint32_t at) {
  asm volatile("{\n.reg .b32 there;\nmapa.shared::cluster.u32 there, %0, %1;\n"
               "mbarrier.arrive.shared::cluster.b64 _, [there];\n}" ::"r"(at),
               "r"(cluster_rank() ^ 1)
               : "memory");
}
AMLA_DEVICE void tma_load_both(uint32_t to, const tensor_map *map, uint32_t barrier, int32_t column,
                               int32_t token, int32_t page) {
  asm volatile("cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes"
               ".multicast::cluster [%0], [%1, {%3, %4, %5}], [%2], %6;" ::"r"(to),
               "l"(map), "r"(barrier), "r"(column), "r"(token), "r"(page), "h"((uint16_t)3)
               : "memory");
}
AMLA_DEVICE void fence_async_shared() {
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}
template <int N> AMLA_DEVICE void registers_up() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(N));
}
template <int N> AMLA_DEVICE void registers_down() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(N));
}

AMLA_DEVICE void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
AMLA_DEVICE void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
template <int N> AMLA_DEVICE void wgmma_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(N) : "memory");
}
template <int N>
AMLA_DEVICE void
pin(float (&r)[N]) { /* the compiler must not move these across an asynchronous product */
#pragma unroll
  for (int i = 0; i < N; i++)
    asm volatile("" : "+f"(r[i])::"memory");
}
#include "wgmma_forms.cuh"
#endif

} // namespace machine
#endif
#endif
