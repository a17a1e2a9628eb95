/* SPDX-License-Identifier: Apache-2.0
 *
 * The device of the CUDA backend where there is no GPU: host memory, and the kernels of src/cuda on emulated threads. Built into a
 * libamla_cuda of its own for the tests; never installed. AMLA_EMULATED_DEVICE=9.0 (default), 8.0 or 8.6 says what it claims to be.
 */
#include <chrono>

#include "src/cuda/decode_mma.cuh"
#include "src/cuda/decode_wgmma2.cuh"
#include "src/cuda/decode_wgmma3.cuh"

#include "src/cuda/cuda_device.h"

using namespace amla_kernel;

extern "C" const char *amla_cuda_device_get(amla_cuda_device *d) {
  const char *text = getenv("AMLA_EMULATED_DEVICE");
  int major = 9, minor = 0;
  if (text && sscanf(text, "%d.%d", &major, &minor) != 2) return "AMLA_EMULATED_DEVICE must be a compute capability, 9.0";
  *d = {0, major, minor, 3, major == 9 ? 227 * 1024 : major == 8 && minor == 0 ? 163 * 1024 : 99 * 1024, {}};
  snprintf(d->name, sizeof d->name, "EMULATED compute capability %d.%d", major, minor);
  return nullptr;
}

/* ---- Launches ---- */

static uint64_t launches; /* each has its own random order */

template <class S> static void launch_mma(const amla_cuda_work &w) {
  emulator::run_grid(w.grid, S::THREADS, S::SHARED_BYTES, ++launches, [&] { decode_mma<S>(w.params); });
}

static tensor_map map_of(const amla_cuda_params &p) {
  const int64_t tokens = p.page_size > 0 ? p.page_size : p.sk;
  return {(const uint16_t *)p.kv, p.d_qk, tokens, p.n_pages, p.kv_stride_token * 2, p.kv_stride_page * 2, amla_cuda_box_tokens(p.page_size)};
}

template <class S> static void launch_wgmma(const amla_cuda_work &w) {
  const tensor_map map = map_of(w.params);
  emulator::run_grid(w.grid, S::THREADS, S::SHARED_BYTES, ++launches, [&] { decode_wgmma<S>(w.params, &map); });
}

template <bool F16, int D_QK> static void launch(const amla_cuda_work &w) {
  switch (w.kernel) {
    case AMLA_CUDA_MMA32: return launch_mma<mma_small<F16, D_QK>>(w);
    case AMLA_CUDA_MMA64: return launch_mma<mma_large<F16, D_QK>>(w);
    case AMLA_CUDA_WGMMA2: return launch_wgmma<wgmma2<F16, D_QK>>(w);
    case AMLA_CUDA_WGMMA3: return launch_wgmma<wgmma3<F16, D_QK>>(w);
  }
}

extern "C" const char *amla_cuda_device_run(const amla_cuda_work *w, void *stream) {
  if (stream) return "the emulation has no streams";
  memset(w->zero, 0, w->zero_bytes);
  if (w->f16) w->params.d_qk == 576 ? launch<true, 576>(*w) : launch<true, 512>(*w);
  else w->params.d_qk == 576 ? launch<false, 576>(*w) : launch<false, 512>(*w);
  return nullptr;
}

/* ---- Tools ---- */

static const char *device_name() {
  static amla_cuda_device d;
  return amla_cuda_device_get(&d) ? "" : d.name;
}
static void *allocate(size_t bytes) { return aligned_alloc(256, (bytes + 255) / 256 * 256 + 256); }
static const char *copy(void *to, const void *from, size_t bytes) { return bytes > 0 ? memcpy(to, from, bytes) : nullptr, nullptr; }
static const char *synchronise() { return nullptr; }
static const char *time_calls(int32_t n, size_t, const char *(*run)(void *, int32_t), void *argument, double *seconds) {
  for (int32_t i = 0; i < n; i++) {
    const auto start = std::chrono::steady_clock::now();
    if (const char *why = run(argument, i)) return why;
    seconds[2 * i] = seconds[2 * i + 1] = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  }
  return nullptr;
}
static double no_matrix_rate(int32_t) { return 0; }
static double no_copy_rate() { return 0; }

extern "C" __attribute__((visibility("default"))) const amla_cuda_tools *amla_cuda_tools_0() {
  static const amla_cuda_tools tools = {sizeof(amla_cuda_tools), 1, device_name, allocate, free, copy, copy, synchronise, time_calls, no_matrix_rate, no_copy_rate};
  return &tools;
}
