/* SPDX-License-Identifier: Apache-2.0
 *
 * The device of the CUDA backend where there is no GPU: host memory, and the kernels of src/cuda on
 * emulated threads. Built into a libamla_cuda of its own for the tests; never installed.
 * AMLA_EMULATED_DEVICE=9.0 (default), 8.0 or 8.6 says what it claims to be.
 * AMLA_EMULATED_FAULT=wrong:70, hang:70 or map:70 spoils every run over a cache of 70 keys: its
 * result, its end, or its tensor map.
 */
#include <chrono>
#include <thread>
#include <vector>

#include "src/cuda/decode_mma.cuh"
#include "src/cuda/decode_wgmma16.cuh"
#include "src/cuda/decode_wgmma2.cuh"
#include "src/cuda/decode_wgmma3.cuh"
#include "src/cuda/peak_mix.cuh"

#include "src/cuda/cuda_device.h"

using namespace amla_kernel;

extern "C" const char *amla_cuda_device_get(amla_cuda_device *d) {
  const char *text = getenv("AMLA_EMULATED_DEVICE");
  int major = 9, minor = 0;
  if (text && sscanf(text, "%d.%d", &major, &minor) != 2)
    return "AMLA_EMULATED_DEVICE must be a compute capability, 9.0";
  int shared_kib = 99;
  if (major == 9)
    shared_kib = 227;
  else if (major == 8 && minor == 0)
    shared_kib = 163;
  *d = {0, major, minor, 3, shared_kib * 1024, {}};
  snprintf(d->name, sizeof d->name, "EMULATED compute capability %d.%d", major, minor);
  return nullptr;
}

/* ---- Launches ---- */

static uint64_t launches; /* each has its own random order */

template <class S> static void launch_mma(const amla_cuda_work &w) {
  emulator::run_grid(w.grid, S::THREADS, S::SHARED_BYTES, ++launches,
                     [&] { decode_mma<S>(w.params); });
}

static tensor_map map_of(const amla_cuda_params &p) {
  const int64_t tokens = p.page_size > 0 ? p.page_size : p.sk;
  return {(const uint16_t *)p.kv,
          p.d_qk,
          tokens,
          p.n_pages,
          p.kv_stride_token * 2,
          p.kv_stride_page * 2,
          amla_cuda_box_tokens(p.page_size)};
}

template <class S> static void launch_wgmma(const amla_cuda_work &w) {
  tensor_map map;
  memcpy(&map, w.map, sizeof map);
  emulator::run_grid(
      w.grid, S::THREADS, S::SHARED_BYTES, ++launches, [&] { decode_wgmma<S>(w.params, &map); },
      S::CLUSTER);
}

template <class S> static void launch_wgmma16(const amla_cuda_work &w) {
  tensor_map map;
  memcpy(&map, w.map, sizeof map);
  emulator::run_grid(w.grid, S::THREADS, S::SHARED_BYTES, ++launches,
                     [&] { decode_wgmma16<S>(w.params, &map); });
}

template <bool F16, int D_QK> static void launch(const amla_cuda_work &w) {
  switch (w.kernel) {
  case AMLA_CUDA_MMA32: return launch_mma<mma_small<F16, D_QK>>(w);
  case AMLA_CUDA_MMA64: return launch_mma<mma_large<F16, D_QK>>(w);
  case AMLA_CUDA_WGMMA2: return launch_wgmma<wgmma2<F16, D_QK>>(w);
  case AMLA_CUDA_WGMMA3: return launch_wgmma<wgmma3<F16, D_QK>>(w);
  case AMLA_CUDA_WGMMA16: return launch_wgmma16<wgmma16<F16, D_QK>>(w);
  case AMLA_CUDA_WGMMA3C: return launch_wgmma<wgmma3c<F16, D_QK>>(w);
  }
}

static bool has_fault(const char *kind, int32_t sk) {
  const char *text = getenv("AMLA_EMULATED_FAULT");
  char wanted[32];
  snprintf(wanted, sizeof wanted, "%s:%d", kind, sk);
  return text && strcmp(text, wanted) == 0;
}

/* Its address stands for the one stream that there is, while it is captured. */
static std::vector<amla_cuda_work> capture;
static bool capturing;

static bool prepared[AMLA_CUDA_N_KERNELS][2][2]; /* [kernel][f16][d_qk is 576] */

extern "C" const char *amla_cuda_device_prepare(amla_cuda_kernel kernel, int32_t f16,
                                                int32_t d_qk) {
  if (capturing)
    return "a kernel is prepared while a stream is captured";
  prepared[kernel][f16 != 0][d_qk == 576] = true;
  return nullptr;
}

extern "C" int32_t amla_cuda_device_room(const amla_cuda_device *d, amla_cuda_kernel kernel,
                                         int32_t, int32_t) {
  return kernel == AMLA_CUDA_WGMMA3C ? 4 : d->multiprocessors; /* two clusters */
}

extern "C" int amla_cuda_device_map(amla_cuda_work *w) {
  if (has_fault("map", w->params.sk))
    return 0;
  const tensor_map map = map_of(w->params);
  static_assert(sizeof map <= sizeof w->map, "");
  memcpy(w->map, &map, sizeof map);
  return 1;
}

extern "C" const char *amla_cuda_device_run(const amla_cuda_work *w, void *stream) {
  if (stream != (capturing ? &capture : nullptr))
    return "work for another stream than the emulation's";
  if (capturing)
    return capture.push_back(*w), nullptr;
  if (!prepared[w->kernel][w->f16 != 0][w->params.d_qk == 576])
    return "the kernel is not prepared";
  while (has_fault("hang", w->params.sk))
    std::this_thread::sleep_for(std::chrono::seconds(1));
  memset(w->zero, 0, w->zero_bytes);
  if (w->f16)
    w->params.d_qk == 576 ? launch<true, 576>(*w) : launch<true, 512>(*w);
  else
    w->params.d_qk == 576 ? launch<false, 576>(*w) : launch<false, 512>(*w);
  if (w->params.lse && has_fault("wrong", w->params.sk))
    w->params.lse[0] += 1.0f;
  return nullptr;
}

/* ---- Tools ---- */

static const char *device_name() {
  static amla_cuda_device d;
  return amla_cuda_device_get(&d) ? "" : d.name;
}
static void *allocate(size_t bytes) { return aligned_alloc(256, (bytes + 255) / 256 * 256 + 256); }
static const char *copy(void *to, const void *from, size_t bytes) {
  return bytes > 0 ? memcpy(to, from, bytes) : nullptr, nullptr;
}
static const char *synchronise() { return nullptr; }
static const char *time_calls(int32_t n, size_t, const char *(*run)(void *, int32_t),
                              void *argument, double *seconds) {
  for (int32_t i = 0; i < n; i++) {
    const auto start = std::chrono::steady_clock::now();
    if (const char *why = run(argument, i))
      return why;
    seconds[2 * i] = seconds[2 * i + 1] =
        std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  }
  return nullptr;
}
static const char *replay(int32_t n, const char *(*enqueue)(void *, void *),
                          const char *(*before)(void *, int32_t), void *argument) {
  capture.clear();
  capturing = true;
  const char *why = enqueue(argument, &capture);
  capturing = false;
  for (int32_t i = 0; i < n && !why; i++) {
    why = before(argument, i);
    for (size_t j = 0; j < capture.size() && !why; j++)
      why = amla_cuda_device_run(&capture[j], nullptr);
  }
  return why;
}
/* No rate, but the mix must run to its end here too. */
template <class S> static void run_mix() {
  emulator::run_grid(1, S::THREADS, S::SHARED_BYTES, ++launches, [] {
    for (int32_t at = 16 * thread_id(); at < S::KV_FULL; at += 16 * S::THREADS)
      sts_vec4((uint32_t)at, vec4{0, 0, 0, 0});
    mix_tiles<S>(shared_base(), 7);
  });
}
static double matrix_rate(int32_t kind) {
  if (kind == AMLA_CUDA_RATE_MIX)
    run_mix<wgmma2<false, 576>>(), run_mix<wgmma3<false, 576>>();
  return 0;
}
static double no_copy_rate() { return 0; }

extern "C" __attribute__((visibility("default"))) const amla_cuda_tools *amla_cuda_tools_0() {
  static const amla_cuda_tools tools = {sizeof(amla_cuda_tools),
                                        1,
                                        device_name,
                                        allocate,
                                        free,
                                        copy,
                                        copy,
                                        synchronise,
                                        time_calls,
                                        matrix_rate,
                                        no_copy_rate,
                                        replay};
  return &tools;
}
