/* SPDX-License-Identifier: Apache-2.0
 *
 * The functions of src/cuda/cuda_machine.cuh as plain C++ on emulated threads (cuda_emulator.hpp).
 * Products accumulate in f32 in ascending order; tensor cores round otherwise, so bits differ from
 * a GPU's and bounds do not.
 */
#ifndef AMLA_CUDA_MACHINE_EMULATED_HPP
#define AMLA_CUDA_MACHINE_EMULATED_HPP

#include <cmath>

#include "cuda_emulator.hpp"
#include "src/base/float16.h"
#include "src/cuda/cuda_params.h"

#define AMLA_DEVICE inline

namespace machine {

using emulator::current;

struct vec4 {
  uint32_t x, y, z, w;
};

inline int32_t thread_id() { return current->thread; }
inline int32_t thread_id_again() { return current->thread; }
inline uint32_t shared_base() { return 0; }

/* ---- Shared memory ---- */

inline float lds_f32(uint32_t at) {
  float x;
  memcpy(&x, emulator::shared_at(at, 4), 4);
  return x;
}
inline uint32_t lds_u32(uint32_t at) {
  uint32_t x;
  memcpy(&x, emulator::shared_at(at, 4), 4);
  return x;
}
inline void lds_f32x4(uint32_t at, float *x) { memcpy(x, emulator::shared_at(at, 16), 16); }
inline void write_shared(uint32_t at, const void *from, uint32_t bytes) {
  memcpy(emulator::shared_at(at, bytes), from, bytes);
  emulator::mark_unfenced(at, bytes);
}
inline void sts_f32(uint32_t at, float x) { write_shared(at, &x, 4); }
inline void sts_u32(uint32_t at, uint32_t x) { write_shared(at, &x, 4); }
inline void sts_f32x2(uint32_t at, float x, float y) {
  const float both[] = {x, y};
  write_shared(at, both, 8);
}
inline void sts_u32x2(uint32_t at, uint32_t x, uint32_t y) {
  const uint32_t both[] = {x, y};
  write_shared(at, both, 8);
}
inline void sts_vec4(uint32_t at, vec4 v) { write_shared(at, &v, 16); }

/* ---- Threads together ---- */

inline bool sync_or_at(emulator::named_barrier &b, int32_t threads, bool x) {
  const uint32_t generation = b.generation;
  b.any = b.any || x;
  if (++b.arrived < (uint32_t)threads) {
    emulator::wait_while(&b.generation, generation);
  } else {
    b.result[generation & 1] = b.any;
    b.any = false;
    b.arrived = 0;
    b.generation++;
  }
  return b.result[generation & 1];
}
inline bool sync_or(int32_t barrier, int32_t threads, bool x) {
  return sync_or_at(current->home->barriers[barrier], threads, x);
}
inline void sync_cluster() {
  sync_or_at(*current->home->of_cluster, 2 * (int32_t)current->home->fibers.size(), false);
}
inline int32_t cluster_rank() { return current->home->index & 1; }
inline int32_t block_index() { return current->home->index; }
inline void sync_block() { sync_or(0, (int32_t)current->home->fibers.size(), false); }
inline bool sync_block_or(bool x) { return sync_or(0, (int32_t)current->home->fibers.size(), x); }
inline void sync_named(int32_t barrier, int32_t threads) { sync_or(barrier, threads, false); }

struct exchange {
  uint32_t in, all[32];
};
inline const exchange exchange_words(const char *operation, uint32_t x) {
  exchange e = {x, {}};
  emulator::collective<exchange>(operation, e, [](exchange **lanes) {
    for (int i = 0; i < 32; i++)
      for (int j = 0; j < 32; j++)
        lanes[i]->all[j] = lanes[j]->in;
  });
  return e;
}
inline void sync_warp() { exchange_words("syncwarp", 0); }
inline float shuffle_xor(float x, int32_t mask) {
  return amla_f32_from_bits(
      exchange_words("shfl.bfly", amla_f32_bits(x)).all[(thread_id() & 31) ^ mask]);
}
inline int32_t shuffle_up(int32_t x, int32_t by) {
  const exchange e = exchange_words("shfl.up", (uint32_t)x);
  const int32_t lane = thread_id() & 31;
  return (int32_t)e.all[lane >= by ? lane - by : lane];
}
inline int32_t shuffle(int32_t x, int32_t lane) {
  return (int32_t)exchange_words("shfl.idx", (uint32_t)x).all[lane & 31];
}
inline uint32_t vote(bool x) {
  const exchange e = exchange_words("vote", x);
  uint32_t bits = 0;
  for (int i = 0; i < 32; i++)
    bits |= e.all[i] << i;
  return bits;
}

/* ---- Global memory ---- */

inline uint32_t atomic_add(uint32_t *at, uint32_t x) {
  const uint32_t before = *at;
  *at += x;
  return before;
}
inline void atomic_or(uint32_t *at, uint32_t x) { *at |= x; }
inline void fence_device() {}
inline uint32_t load_acquire(const uint32_t *at) { return *at; }
inline void store_release(uint32_t *at, uint32_t x) { *at = x; }
inline void pause_while(const uint32_t *at, uint32_t value) { emulator::wait_while(at, value); }
inline vec4 load_global(const void *at) {
  vec4 v;
  if ((uintptr_t)at % 16)
    emulator::fail("16 bytes of global memory at %p: misaligned", at);
  memcpy(&v, at, 16);
  return v;
}

inline void load_f32x4(const float *at, float *x) {
  if ((uintptr_t)at % 16)
    emulator::fail("four floats at %p: misaligned", (const void *)at);
  memcpy(x, at, 16);
}
inline void store_f32x2(float *at, float x, float y) {
  if ((uintptr_t)at % 8)
    emulator::fail("two floats to %p: misaligned", (void *)at);
  at[0] = x, at[1] = y;
}

/* ---- cp.async ---- */

inline void copy_async16(uint32_t to, const void *from, int32_t bytes) {
  if ((uintptr_t)from % 16)
    emulator::fail("cp.async from %p: misaligned", from);
  unsigned char *at = emulator::shared_at(to, 16);
  auto copy = [at, from, bytes] {
    memset(at, 0, 16);
    if (bytes > 0)
      memcpy(at, from, (size_t)bytes);
  };
  if (emulator::random_bits() & 1)
    copy();
  else
    current->copies.push_back(copy);
}
inline void copy_async4(uint32_t to, const void *from) {
  unsigned char *at = emulator::shared_at(to, 4);
  auto copy = [at, from] { memcpy(at, from, 4); };
  if (emulator::random_bits() & 1)
    copy();
  else
    current->copies.push_back(copy);
}
inline void copy_async_commit() {
  current->copy_groups.push_back(std::move(current->copies));
  current->copies.clear();
}
template <int N> void copy_async_wait() {
  while (current->copy_groups.size() > N) {
    for (auto &copy : current->copy_groups.front())
      copy();
    current->copy_groups.pop_front();
  }
}

/* ---- Warp matrices ---- */

template <bool F16> float widen(uint32_t half) {
  return F16 ? amla_f16_to_f32((uint16_t)half) : amla_bf16_to_f32((uint16_t)half);
}

struct matrices {
  uint32_t at;
  uint32_t *r;
};
inline void ldmatrix_lanes(matrices **lanes, bool transposed) {
  for (int m = 0; m < 4; m++) {
    uint16_t x[8][8];
    for (int row = 0; row < 8; row++)
      memcpy(x[row], emulator::shared_at(lanes[8 * m + row]->at, 16), 16);
    for (int lane = 0; lane < 32; lane++) {
      const int a = lane / 4, b = 2 * (lane % 4);
      lanes[lane]->r[m] = transposed ? x[b][a] | (uint32_t)x[b + 1][a] << 16
                                     : x[a][b] | (uint32_t)x[a][b + 1] << 16;
    }
  }
}
inline void ldmatrix(uint32_t (&r)[4], uint32_t at) {
  matrices m = {at, r};
  emulator::collective<matrices>("ldmatrix", m,
                                 [](matrices **lanes) { ldmatrix_lanes(lanes, false); });
}
inline void ldmatrix_trans(uint32_t (&r)[4], uint32_t at) {
  matrices m = {at, r};
  emulator::collective<matrices>("ldmatrix.trans", m,
                                 [](matrices **lanes) { ldmatrix_lanes(lanes, true); });
}
struct stored_matrices {
  uint32_t at;
  const uint32_t *r;
};
inline void stmatrix(uint32_t at, const uint32_t (&r)[4]) {
  stored_matrices m = {at, r};
  emulator::mark_unfenced(at, 16);
  emulator::collective<stored_matrices>("stmatrix", m, [](stored_matrices **lanes) {
    for (int i = 0; i < 4; i++)
      for (int row = 0; row < 8; row++) {
        uint32_t x[4];
        for (int c = 0; c < 4; c++)
          x[c] = lanes[4 * row + c]->r[i];
        memcpy(emulator::shared_at(lanes[8 * i + row]->at, 16), x, 16);
      }
  });
}

inline void stmatrix_trans(uint32_t at, const uint32_t (&r)[4]) {
  stored_matrices m = {at, r};
  emulator::mark_unfenced(at, 16);
  emulator::collective<stored_matrices>("stmatrix.trans", m, [](stored_matrices **lanes) {
    for (int i = 0; i < 4; i++)
      for (int row = 0; row < 8; row++) {
        uint16_t x[8];
        for (int c = 0; c < 8; c++)
          x[c] = (uint16_t)(lanes[4 * c + row / 2]->r[i] >> 16 * (row % 2));
        memcpy(emulator::shared_at(lanes[8 * i + row]->at, 16), x, 16);
      }
  });
}

/* A 16 x 16 operand from the registers of a warp: rows lane / 4 and + 8, columns 2 (lane % 4) and
 * + 8. */
template <bool F16> void gather_a(float (&a)[16][16], int lane, const uint32_t *r) {
  for (int i = 0; i < 4; i++) {
    const int row = lane / 4 + 8 * (i & 1), column = 2 * (lane % 4) + 8 * (i >> 1);
    a[row][column] = widen<F16>(r[i] & 0xffff);
    a[row][column + 1] = widen<F16>(r[i] >> 16);
  }
}
struct mma_arguments {
  float *c;
  const uint32_t *a;
  uint32_t b0, b1;
};
template <bool F16> void mma(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  mma_arguments m = {c, a, b0, b1};
  emulator::collective<mma_arguments>("mma", m, [](mma_arguments **lanes) {
    float x[16][16], y[16][8], z[16][8];
    for (int lane = 0; lane < 32; lane++) {
      gather_a<F16>(x, lane, lanes[lane]->a);
      const int k = 2 * (lane % 4), n = lane / 4;
      y[k][n] = widen<F16>(lanes[lane]->b0 & 0xffff),
      y[k + 1][n] = widen<F16>(lanes[lane]->b0 >> 16);
      y[k + 8][n] = widen<F16>(lanes[lane]->b1 & 0xffff),
            y[k + 9][n] = widen<F16>(lanes[lane]->b1 >> 16);
      for (int i = 0; i < 4; i++)
        z[lane / 4 + 8 * (i >> 1)][2 * (lane % 4) + (i & 1)] = lanes[lane]->c[i];
    }
    for (int r = 0; r < 16; r++)
      for (int k = 0; k < 16; k++)
        for (int n = 0; n < 8; n++)
          z[r][n] += x[r][k] * y[k][n];
    for (int lane = 0; lane < 32; lane++)
      for (int i = 0; i < 4; i++)
        lanes[lane]->c[i] = z[lane / 4 + 8 * (i >> 1)][2 * (lane % 4) + (i & 1)];
  });
}

/* ---- Arithmetic ---- */

inline float exp2_approx(float x) {
  const float y = exp2f(x);
  return y < 0x1p-126f ? 0.0f : y;
}
template <bool F16> uint32_t pack(float low, float high) {
  return F16 ? amla_f32_to_f16(low) | (uint32_t)amla_f32_to_f16(high) << 16
             : amla_f32_to_bf16(low) | (uint32_t)amla_f32_to_bf16(high) << 16;
}
template <bool F16> float unpack_low(uint32_t r) { return widen<F16>(r & 0xffff); }
template <bool F16> float unpack_high(uint32_t r) { return widen<F16>(r >> 16); }

/* ---- mbarrier and TMA ---- */

inline int32_t warpgroup_id() { return current->thread >> 7; }

inline emulator::mbarrier &mbarrier_of(emulator::block &b, uint32_t at) {
  auto found = b.mbarriers.find(at);
  if (found == b.mbarriers.end())
    emulator::fail("no mbarrier at %u", at);
  return found->second;
}
inline emulator::mbarrier &mbarrier_at(uint32_t at) { return mbarrier_of(*current->home, at); }
inline void mbarrier_init(uint32_t at, uint32_t arrivals) {
  emulator::shared_at(at, 8);
  emulator::mbarrier b;
  b.expected = b.pending = arrivals;
  current->home->mbarriers[at] = b;
}
inline void mbarrier_init_fence() {}
inline void mbarrier_arrive_at(emulator::mbarrier &b, uint32_t at) {
  if (b.pending == 0)
    emulator::fail("too many arrivals at the mbarrier at %u", at);
  b.pending--;
  emulator::complete_phase_if_done(b);
}
inline void mbarrier_arrive(uint32_t at) { mbarrier_arrive_at(mbarrier_at(at), at); }
inline void mbarrier_arrive_peer(uint32_t at) {
  if (current->home->peer->alive == 0)
    emulator::fail("an arrival at a thread block that has ended");
  mbarrier_arrive_at(mbarrier_of(*current->home->peer, at), at);
}
inline void mbarrier_expect(uint32_t at, uint32_t bytes) {
  mbarrier_at(at).bytes += bytes;
  mbarrier_arrive(at);
}
inline void mbarrier_wait(uint32_t at, uint32_t parity) {
  emulator::mbarrier &b = mbarrier_at(at);
  while ((b.phases & 1) == parity)
    emulator::wait_while(&b.phases, b.phases);
}

/* A tensor of 16-bit elements with three axes, its boxes of 64 x box_tokens x 1, and zeros outside.
 */
struct tensor_map {
  const uint16_t *base;
  int64_t columns, tokens, pages; /* extents */
  int64_t token_stride_bytes, page_stride_bytes;
  int32_t box_tokens;
};
inline void tma_load_into(emulator::block &home, uint32_t to, const tensor_map *map,
                          uint32_t barrier, int32_t column, int32_t token, int32_t page) {
  const uint32_t box_bytes = (uint32_t)map->box_tokens * 128;
  if (to % 1024 != 0)
    emulator::fail("TMA to %u: not a multiple of 1024", to);
  emulator::shared_at(to, 16);
  emulator::shared_at(to + box_bytes - 16, 16);
  unsigned char *shared = home.shared.data();
  uint8_t *unfenced = home.unfenced.data();
  emulator::mbarrier *b = &mbarrier_of(home, barrier);
  const tensor_map m = *map;
  auto load = [=] {
    for (int32_t t = 0; t < m.box_tokens; t++)
      for (int32_t c = 0; c < 64; c++) {
        const bool inside = column + c >= 0 && column + c < m.columns && token + t >= 0 &&
                            token + t < m.tokens && page >= 0 && page < m.pages;
        uint16_t x = 0;
        if (inside)
          memcpy(&x,
                 (const char *)m.base + page * m.page_stride_bytes +
                     (token + t) * m.token_stride_bytes + 2 * (column + c),
                 2);
        memcpy(shared + amla_cuda_swizzle_address(to + (uint32_t)t * 128 + (uint32_t)c * 2), &x, 2);
      }
    memset(unfenced + to / 16, 0, box_bytes / 16);
    b->bytes -= box_bytes;
    emulator::complete_phase_if_done(*b);
  };
  if (emulator::random_bits() & 1)
    load();
  else
    home.loads.push_back({load, emulator::random_delay()});
}
inline void tma_load(uint32_t to, const tensor_map *map, uint32_t barrier, int32_t column,
                     int32_t token, int32_t page) {
  tma_load_into(*current->home, to, map, barrier, column, token, page);
}
inline void tma_load_both(uint32_t to, const tensor_map *map, uint32_t barrier, int32_t column,
                          int32_t token, int32_t page) {
  if (current->home->peer->alive == 0)
    emulator::fail("a load into a thread block that has ended");
  tma_load_into(*current->home, to, map, barrier, column, token, page);
  tma_load_into(*current->home->peer, to, map, barrier, column, token, page);
}
inline void bulk_store(void *to, uint32_t from, uint32_t bytes) {
  if ((uintptr_t)to % 16 || from % 16 || bytes % 16 || bytes == 0)
    emulator::fail("a bulk store of %u bytes from %u to %p", bytes, from, to);
  const unsigned char *at = emulator::shared_at(from, 16);
  emulator::shared_at(from + bytes - 16, 16);
  emulator::check_fenced(from, bytes);
  emulator::fiber *f = current;
  f->stores++;
  current->home->loads.push_back({[to, at, bytes, f] {
                                    memcpy(to, at, bytes);
                                    f->stores--;
                                  },
                                  emulator::random_delay()});
}
inline void bulk_wait_read() {
  while (current->stores > 0)
    emulator::wait_while(&current->stores, current->stores);
}
inline void fence_async_shared() {
  for (uint32_t i : current->unfenced)
    current->home->unfenced[i] = 0;
  current->unfenced.clear();
}
template <int N> void registers_up() {}
template <int N> void registers_down() {}

/* ---- wgmma: each warp computes its 16 of the 64 rows ---- */

inline uint64_t matrix_descriptor(uint32_t at, uint32_t leading, uint32_t stride) {
  if (at % 16 || leading % 16 || stride % 16 || at >= 1u << 18)
    emulator::fail("a matrix at %u, %u, %u", at, leading, stride);
  return (uint64_t)(at >> 4) | (uint64_t)(leading >> 4) << 16 | (uint64_t)(stride >> 4) << 32 |
         UINT64_C(1) << 62;
}

inline uint64_t plain_descriptor(uint32_t at, uint32_t leading, uint32_t stride) {
  return matrix_descriptor(at, leading, stride) & ~(UINT64_C(3) << 62);
}

/* Element (m or n, k) of an operand with the 128-byte swizzle, or K-major without. */
template <bool F16> float operand(uint64_t descriptor, bool k_major, uint32_t mn, uint32_t k) {
  const uint32_t at = (uint32_t)(descriptor & 0x3fff) << 4,
                 leading = (uint32_t)(descriptor >> 16 & 0x3fff) << 4,
                 stride = (uint32_t)(descriptor >> 32 & 0x3fff) << 4;
  const uint32_t linear = k_major
                              ? at + mn / 8 * stride + mn % 8 * 128 + k * 2
                              : at + mn / 64 * leading + k / 8 * stride + k % 8 * 128 + mn % 64 * 2;
  const bool plain = descriptor >> 62 == 0;
  if (plain && !k_major)
    emulator::fail("MN-major without swizzle");
  const uint32_t address = plain ? at + k / 8 * leading + mn / 8 * stride + mn % 8 * 16 + k % 8 * 2
                                 : amla_cuda_swizzle_address(linear);
  uint16_t x;
  emulator::check_fenced(address & ~15u, 16);
  memcpy(&x, emulator::shared_at(address, 2), 2);
  return widen<F16>(x);
}

struct wgmma_arguments {
  float *d;
  const uint32_t *a_registers; /* or NULL */
  uint64_t a, b;
  int32_t accumulate, n;
  bool a_k_major = true;
};

template <bool F16>
void wgmma_execute(const std::vector<wgmma_arguments> &lanes, int32_t warp_in_group,
                   bool b_k_major) {
  const int32_t n = lanes[0].n;
  float a[16][16];
  std::vector<float> b((size_t)n * 16), d((size_t)n * 16);
  for (int lane = 0; lane < 32 && lanes[0].a_registers; lane++)
    gather_a<F16>(a, lane, lanes[(size_t)lane].a_registers);
  for (uint32_t k = 0; k < 16; k++) {
    for (uint32_t r = 0; r < 16 && !lanes[0].a_registers; r++)
      a[r][k] = operand<F16>(lanes[0].a, lanes[0].a_k_major, (uint32_t)warp_in_group * 16 + r, k);
    for (int32_t c = 0; c < n; c++)
      b[k * (size_t)n + (size_t)c] = operand<F16>(lanes[0].b, b_k_major, (uint32_t)c, k);
  }
  for (int lane = 0; lane < 32; lane++)
    for (int pair = 0; pair < n / 4; pair++)
      for (int i = 0; i < 2; i++)
        d[(size_t)(amla_cuda_fragment_row(lane, pair) * n + amla_cuda_fragment_column(lane, pair) +
                   i)] = lanes[0].accumulate ? lanes[(size_t)lane].d[2 * pair + i] : 0.0f;
  for (int r = 0; r < 16; r++)
    for (int k = 0; k < 16; k++)
      for (int32_t c = 0; c < n; c++)
        d[(size_t)(r * n + c)] += a[r][k] * b[(size_t)(k * n + c)];
  for (int lane = 0; lane < 32; lane++)
    for (int pair = 0; pair < n / 4; pair++)
      for (int i = 0; i < 2; i++)
        lanes[(size_t)lane].d[2 * pair + i] =
            d[(size_t)(amla_cuda_fragment_row(lane, pair) * n +
                       amla_cuda_fragment_column(lane, pair) + i)];
}

template <bool F16, bool B_K_MAJOR> void wgmma_issue(wgmma_arguments m) {
  emulator::collective<wgmma_arguments>("wgmma", m, [](wgmma_arguments **lanes) {
    std::vector<wgmma_arguments> copy;
    for (int i = 0; i < 32; i++)
      copy.push_back(*lanes[i]);
    const int32_t warp_in_group = current->thread >> 5 & 3;
    current->mates->products.push_back(
        [copy, warp_in_group] { wgmma_execute<F16>(copy, warp_in_group, B_K_MAJOR); });
  });
}
template <bool F16> void wgmma_scores(float (&d)[32], uint64_t a, uint64_t b, int32_t accumulate) {
  wgmma_issue<F16, true>({d, nullptr, a, b, accumulate, 64});
}
template <bool F16>
void wgmma_scores_reg(float (&d)[32], const uint32_t *a, uint64_t b, int32_t accumulate) {
  wgmma_issue<F16, true>({d, a, 0, b, accumulate, 64});
}
template <bool F16> void wgmma_output(float (&d)[128], uint64_t a, uint64_t b) {
  wgmma_issue<F16, false>({d, nullptr, a, b, 1, 256});
}

template <bool F16> void wgmma_keys(float (&d)[8], uint64_t a, uint64_t b, int32_t accumulate) {
  wgmma_issue<F16, true>({d, nullptr, a, b, accumulate, 16});
}
template <bool F16> void wgmma_columns(float (&d)[8], uint64_t a, uint64_t b) {
  wgmma_issue<F16, true>({d, nullptr, a, b, 1, 16, false});
}

struct nothing {};
template <int N> void wgmma_wait() {
  nothing none;
  emulator::collective<nothing>("wgmma.wait", none, [](nothing **) {
    emulator::warp &w = *current->mates;
    while (w.product_groups.size() > N) {
      for (auto &product : w.product_groups.front())
        product();
      w.product_groups.pop_front();
    }
  });
}
inline void wgmma_fence() { exchange_words("wgmma.fence", 0); }
inline void wgmma_commit() { /* at once, now and then: a reader of shared memory that is overwritten
                                too early would not notice otherwise */
  nothing none;
  emulator::collective<nothing>("wgmma.commit", none, [](nothing **) {
    emulator::warp &w = *current->mates;
    w.product_groups.push_back(std::move(w.products));
    w.products.clear();
    if (emulator::random_bits() & 1)
      for (; !w.product_groups.empty(); w.product_groups.pop_front())
        for (auto &product : w.product_groups.front())
          product();
  });
}
template <int N> void pin(float (&)[N]) {}

} // namespace machine
#endif
