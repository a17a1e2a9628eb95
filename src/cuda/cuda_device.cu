/* SPDX-License-Identifier: Apache-2.0
 *
 * The device of the CUDA backend: the CUDA runtime, linked statically, so that this object loads
 * where there is no driver and says so. The driver's one function that is needed, for tensor maps,
 * is asked of the runtime by name.
 */
#include "cuda_device.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <mutex>

#include <amla/amla_cuda.h>

#include "cuda_launch.h"

/* ---- Words of errors ---- */

static const char *words(cudaError_t error) {
  static thread_local char text[200];
  if (error == cudaSuccess)
    return nullptr;
  snprintf(text, sizeof text, "%s: %s", cudaGetErrorName(error), cudaGetErrorString(error));
  cudaGetLastError(); /* not the next call's */
  return text;
}

#define TRY(call)                                                                                  \
  do {                                                                                             \
    const cudaError_t error_ = (call);                                                             \
    if (error_ != cudaSuccess)                                                                     \
      return error_;                                                                               \
  } while (0)

/* ---- What it is ---- */

static cudaError_t describe(amla_cuda_device *d) {
  enum { MAX_DEVICES = 64 };
  static amla_cuda_device known[MAX_DEVICES];
  static bool is_known[MAX_DEVICES];
  static std::mutex lock;
  int ordinal;
  TRY(cudaGetDevice(&ordinal));
  std::lock_guard<std::mutex> hold(lock);
  if (ordinal < MAX_DEVICES && is_known[ordinal])
    return *d = known[ordinal], cudaSuccess;
  cudaDeviceProp properties;
  TRY(cudaGetDeviceProperties(&properties, ordinal));
  memset(d, 0, sizeof *d);
  d->ordinal = ordinal, d->major = properties.major, d->minor = properties.minor;
  d->multiprocessors = properties.multiProcessorCount;
  d->shared_bytes = (int32_t)properties.sharedMemPerBlockOptin;
  snprintf(d->name, sizeof d->name, "%s", properties.name);
  if (ordinal < MAX_DEVICES)
    known[ordinal] = *d, is_known[ordinal] = true;
  return cudaSuccess;
}

extern "C" const char *amla_cuda_device_get(amla_cuda_device *d) {
  const cudaError_t error = describe(d);
  int driver = 0;
  if (error == cudaErrorInsufficientDriver && cudaDriverGetVersion(&driver) == cudaSuccess &&
      driver == 0)
    return "no NVIDIA driver is installed";
  return words(error);
}

/* ---- One run ---- */

typedef CUresult (*encode_tiled)(CUtensorMap *, CUtensorMapDataType, cuuint32_t, void *,
                                 const cuuint64_t *, const cuuint64_t *, const cuuint32_t *,
                                 const cuuint32_t *, CUtensorMapInterleave, CUtensorMapSwizzle,
                                 CUtensorMapL2promotion, CUtensorMapFloatOOBfill);

static encode_tiled find_encode_tiled() {
  void *function = nullptr;
  cudaDriverEntryPointQueryResult result = cudaDriverEntryPointSymbolNotFound;
#if CUDART_VERSION >= 12050
  const cudaError_t error = cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function,
                                                             12000, cudaEnableDefault, &result);
#else
  const cudaError_t error =
      cudaGetDriverEntryPoint("cuTensorMapEncodeTiled", &function, cudaEnableDefault, &result);
#endif
  return error == cudaSuccess && result == cudaDriverEntryPointSuccess ? (encode_tiled)function
                                                                       : nullptr;
}

static encode_tiled encoder() {
  static const encode_tiled encode = find_encode_tiled();
  return encode;
}

/* The cache as [pages][tokens][d_qk] in boxes of 64 elements x box tokens, with the 128-byte
 * swizzle and zeros outside. */
extern "C" int amla_cuda_device_map(amla_cuda_work *w) {
  const amla_cuda_params *p = &w->params;
  const cuuint64_t extents[] = {(cuuint64_t)p->d_qk,
                                (cuuint64_t)(p->page_size > 0 ? p->page_size : p->sk),
                                (cuuint64_t)p->n_pages};
  const cuuint64_t strides[] = {(cuuint64_t)p->kv_stride_token * 2,
                                (cuuint64_t)p->kv_stride_page * 2};
  const cuuint32_t box[] = {64, (cuuint32_t)amla_cuda_box_tokens(p->page_size), 1},
                   steps[] = {1, 1, 1};
  const CUtensorMapDataType type =
      w->f16 ? CU_TENSOR_MAP_DATA_TYPE_FLOAT16 : CU_TENSOR_MAP_DATA_TYPE_BFLOAT16;
  CUtensorMap map;
  static_assert(sizeof w->map == sizeof map, "");
  if (!encoder() || encoder()(&map, type, 3, (void *)p->kv, extents, strides, box, steps,
                              CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
                              CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
                              CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE) != CUDA_SUCCESS)
    return 0;
  memcpy(w->map, &map, sizeof map);
  return 1;
}

extern "C" const char *amla_cuda_device_prepare(amla_cuda_kernel kernel, int32_t f16,
                                                int32_t d_qk) {
  if (!amla_cuda_is_wgmma(kernel))
    return words(amla_cuda_prepare_mma(kernel == AMLA_CUDA_MMA64 ? 64 : 32, f16, d_qk));
  encoder();
  return words(amla_cuda_prepare_wgmma(kernel, f16, d_qk));
}

extern "C" int32_t amla_cuda_device_room(const amla_cuda_device *d, amla_cuda_kernel kernel,
                                         int32_t f16, int32_t d_qk) {
  int clusters;
  if (kernel != AMLA_CUDA_WGMMA3C)
    return d->multiprocessors;
  return words(amla_cuda_count_clusters(f16, d_qk, &clusters)) ? 0 : 2 * clusters;
}

/* While a benchmark times the kernel alone. */
static thread_local cudaEvent_t kernel_begin, kernel_end;

static cudaError_t launch(const amla_cuda_work *w, cudaStream_t stream) {
  CUtensorMap map;
  if (!amla_cuda_is_wgmma(w->kernel))
    return amla_cuda_launch_mma(&w->params, w->f16, w->grid, stream);
  memcpy(&map, w->map, sizeof map);
  return amla_cuda_launch_wgmma(&w->params, &map, w->kernel, w->f16, w->grid, stream);
}

static cudaError_t run(const amla_cuda_work *w, cudaStream_t stream) {
  TRY(cudaMemsetAsync(w->zero, 0, w->zero_bytes, stream));
  if (kernel_begin)
    TRY(cudaEventRecord(kernel_begin, stream));
  TRY(launch(w, stream));
  if (kernel_end)
    TRY(cudaEventRecord(kernel_end, stream));
  return cudaSuccess;
}

extern "C" const char *amla_cuda_device_run(const amla_cuda_work *w, void *stream) {
  return words(run(w, (cudaStream_t)stream));
}

/* ---- Tools ---- */

static const char *device_name() {
  static thread_local amla_cuda_device d;
  return amla_cuda_device_get(&d) ? "" : d.name;
}

static void *allocate(size_t bytes) {
  void *at = nullptr;
  if (words(cudaMalloc(&at, bytes > 0 ? bytes : 1)))
    return nullptr;
  return at;
}
static void release(void *device) { words(cudaFree(device)); }
static const char *upload(void *device, const void *host, size_t bytes) {
  return words(cudaMemcpy(device, host, bytes, cudaMemcpyHostToDevice));
}
static const char *download(void *host, const void *device, size_t bytes) {
  return words(cudaMemcpy(host, device, bytes, cudaMemcpyDeviceToHost));
}
static const char *synchronise() { return words(cudaDeviceSynchronize()); }

struct event_set {
  cudaEvent_t at[4] = {}; /* start, kernel, its end, end */
  ~event_set() {
    for (cudaEvent_t e : at)
      if (e)
        cudaEventDestroy(e);
  }
};

static cudaError_t elapsed(cudaEvent_t a, cudaEvent_t b, double *seconds) {
  float ms;
  TRY(cudaEventElapsedTime(&ms, a, b));
  *seconds = (double)ms * 1e-3;
  return cudaSuccess;
}

/* One call: L2 emptied, then timed. A refusal of run's is kept in *why. */
typedef const char *(*enqueue)(void *argument, int32_t i);
static cudaError_t time_call(event_set *e, void *cold, size_t cold_bytes, int32_t i, enqueue call,
                             void *argument, double *whole, double *kernel, const char **why) {
  if (cold_bytes > 0)
    TRY(cudaMemsetAsync(cold, i, cold_bytes, nullptr));
  TRY(cudaEventRecord(e->at[0], nullptr));
  kernel_begin = e->at[1], kernel_end = e->at[2];
  *why = call(argument, i);
  kernel_begin = kernel_end = nullptr;
  if (*why)
    return cudaSuccess;
  TRY(cudaEventRecord(e->at[3], nullptr));
  TRY(cudaEventSynchronize(e->at[3]));
  TRY(elapsed(e->at[0], e->at[3], whole));
  return elapsed(e->at[1], e->at[2], kernel);
}

static const char *time_calls(int32_t n, size_t cold_bytes, enqueue call, void *argument,
                              double *seconds) {
  void *cold = nullptr;
  event_set e;
  const char *why = nullptr;
  cudaError_t error = cold_bytes > 0 ? cudaMalloc(&cold, cold_bytes) : cudaSuccess;
  for (int i = 0; i < 4 && error == cudaSuccess; i++)
    error = cudaEventCreate(&e.at[i]);
  for (int32_t i = 0; i < n && error == cudaSuccess && !why; i++)
    error = time_call(&e, cold, cold_bytes, i, call, argument, &seconds[2 * i], &seconds[2 * i + 1],
                      &why);
  cudaFree(cold);
  return error != cudaSuccess ? words(error) : why;
}

/* A stream and what has been captured from it. */
struct captured {
  cudaStream_t stream = nullptr;
  cudaGraph_t graph = nullptr;
  cudaGraphExec_t exec = nullptr;
  ~captured() {
    if (exec)
      cudaGraphExecDestroy(exec);
    if (graph)
      cudaGraphDestroy(graph);
    if (stream)
      cudaStreamDestroy(stream);
  }
};

typedef const char *(*enqueue_on)(void *argument, void *stream);
static cudaError_t capture(captured *c, enqueue_on call, void *argument, const char **why) {
  TRY(cudaStreamCreateWithFlags(&c->stream, cudaStreamNonBlocking));
  TRY(cudaStreamBeginCapture(c->stream, cudaStreamCaptureModeGlobal));
  *why = call(argument, c->stream);
  TRY(cudaStreamEndCapture(c->stream, &c->graph));
  return *why ? cudaSuccess : cudaGraphInstantiateWithFlags(&c->exec, c->graph, 0);
}

static const char *replay(int32_t n, enqueue_on call, enqueue before, void *argument) {
  captured c;
  const char *why = nullptr;
  cudaError_t error = capture(&c, call, argument, &why);
  for (int32_t i = 0; i < n && error == cudaSuccess && !why; i++) {
    why = before(argument, i);
    if (!why)
      error = cudaGraphLaunch(c.exec, c.stream);
    if (!why && error == cudaSuccess)
      error = cudaStreamSynchronize(c.stream);
  }
  return error != cudaSuccess && !why ? words(error) : why;
}

/* Best of a few launches, in amounts per second. */
template <class Launch> static double best_rate(Launch launch) {
  event_set e;
  double best = 0, amount = 0, seconds;
  for (int i = 0; i < 4; i++)
    if (cudaEventCreate(&e.at[i]) != cudaSuccess)
      return 0;
  for (int i = 0; i < 6; i++) {
    cudaEventRecord(e.at[0], nullptr);
    const cudaError_t error = launch(&amount);
    cudaEventRecord(e.at[1], nullptr);
    if (error != cudaSuccess || cudaEventSynchronize(e.at[1]) != cudaSuccess ||
        elapsed(e.at[0], e.at[1], &seconds) != cudaSuccess)
      return cudaGetLastError(), 0;
    if (i > 0 && amount / seconds > best)
      best = amount / seconds; /* the first one loads the kernel */
  }
  return best;
}

static double matrix_rate(int32_t kind) {
  static cudaError_t (*const launches[])(int32_t, float *, double *) = {
      amla_cuda_launch_peak_wgmma, amla_cuda_launch_peak_mma, amla_cuda_launch_peak_mix};
  amla_cuda_device d;
  float *sink = nullptr;
  if (kind < 0 || kind >= (int32_t)(sizeof launches / sizeof *launches) ||
      describe(&d) != cudaSuccess || (kind != AMLA_CUDA_RATE_MMA && d.major != 9) ||
      cudaMalloc((void **)&sink, (size_t)d.multiprocessors * 1024 * sizeof *sink) != cudaSuccess)
    return 0;
  const double rate =
      best_rate([&](double *flops) { return launches[kind](d.multiprocessors, sink, flops); });
  cudaFree(sink);
  return rate;
}

static double copy_rate() {
  const size_t bytes = (size_t)1 << 30;
  char *both = nullptr;
  if (cudaMalloc((void **)&both, 2 * bytes) != cudaSuccess)
    return cudaGetLastError(), 0;
  const double rate = best_rate([&](double *moved) {
    *moved = 2.0 * (double)bytes;
    return cudaMemcpyAsync(both + bytes, both, bytes, cudaMemcpyDeviceToDevice, nullptr);
  });
  cudaFree(both);
  return rate;
}

extern "C" __attribute__((visibility("default"))) const amla_cuda_tools *amla_cuda_tools_0() {
  static const amla_cuda_tools tools = {sizeof(amla_cuda_tools),
                                        0,
                                        device_name,
                                        allocate,
                                        release,
                                        upload,
                                        download,
                                        synchronise,
                                        time_calls,
                                        matrix_rate,
                                        copy_rate,
                                        replay};
  return &tools;
}
