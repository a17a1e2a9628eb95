/* SPDX-License-Identifier: Apache-2.0
 *
 * What the backend needs of a device: what it is, and to run one kernel. cuda_device.cu is the CUDA
 * runtime's; the tests have another, which runs the same kernels in an emulation on the CPU. Plain
 * C, no CUDA headers.
 */
#ifndef AMLA_CUDA_DEVICE_H
#define AMLA_CUDA_DEVICE_H

#include <stddef.h>

#include "cuda_params.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef enum amla_cuda_kernel {
  AMLA_CUDA_MMA32 = 0,   /* 32 rows x 16 keys: 99 KB of shared memory, any GPU since Ampere */
  AMLA_CUDA_MMA64 = 1,   /* 64 rows x 32 keys: 163 KB */
  AMLA_CUDA_WGMMA2 = 2,  /* 64 rows x 64 keys, two tiles deep: Hopper */
  AMLA_CUDA_WGMMA3 = 3,  /* the same three tiles deep; the better one by the model */
  AMLA_CUDA_WGMMA3C = 4, /* the same by clusters of two thread blocks, which share keys */
  AMLA_CUDA_WGMMA16 = 5  /* at most 16 rows; the same cuts */
} amla_cuda_kernel;
enum { AMLA_CUDA_N_KERNELS = 6 };

static inline int amla_cuda_is_wgmma(amla_cuda_kernel k) { return k >= AMLA_CUDA_WGMMA2; }

typedef struct amla_cuda_device {
  int32_t ordinal, major, minor; /* compute capability */
  int32_t multiprocessors;
  int32_t shared_bytes; /* most that one thread block can have */
  char name[64];
} amla_cuda_device;

/* The current device. NULL, or why there is none. */
const char *amla_cuda_device_get(amla_cuda_device *device);

typedef struct amla_cuda_work {
  amla_cuda_params params;
  amla_cuda_kernel kernel;
  int32_t f16, grid;
  void *zero; /* bytes of scratch to clear first */
  size_t zero_bytes;
  uint64_t map[16]; /* the device's: a CUtensorMap */
} amla_cuda_work;

/* Does for one kind of work on the current device what must not happen while a stream is captured,
 * such as loading the kernel. NULL, or the driver's words. */
const char *amla_cuda_device_prepare(amla_cuda_kernel kernel, int32_t f16, int32_t d_qk);

/* Thread blocks of a prepared kernel that run at once. */
int32_t amla_cuda_device_room(const amla_cuda_device *device, amla_cuda_kernel kernel, int32_t f16,
                              int32_t d_qk);

/* Makes the map of the cache that a wgmma kernel reads through. 0: the driver has none for this. */
int amla_cuda_device_map(amla_cuda_work *work);

/* Enqueues work that has been prepared, and mapped if it is wgmma. NULL, or the driver's words. */
const char *amla_cuda_device_run(const amla_cuda_work *work, void *stream);

#ifdef __cplusplus
}
#endif
#endif
