/* SPDX-License-Identifier: Apache-2.0
 *
 * Beside amla.h, for users of the CUDA backend: the status word that a run leaves in device memory,
 * and a few tools of the loadable object for programs that have no CUDA runtime of their own (this
 * project's tests and `amla bench`). Needs no CUDA header.
 */
#ifndef AMLA_AMLA_CUDA_H
#define AMLA_AMLA_CUDA_H

#include <amla/amla.h>

#ifdef __cplusplus
extern "C" {
#endif

/* amla_plan_run of backend cuda returns once its work is on the stream. What only the device can
 * see, it writes to the first four bytes of scratch (device memory, aligned to 4 bytes), set to 0
 * when the run starts: read them after synchronising. */
/* A length outside [0, sk] was clamped. */
#define AMLA_CUDA_STATUS_LENGTH 1u
/* A used page id outside [0, n_pages): rows of that sequence that could see it are NaN. */
#define AMLA_CUDA_STATUS_PAGE 2u

/* What amla_cuda_tools.matrix_rate multiplies with. */
#define AMLA_CUDA_RATE_WGMMA 0 /* wgmma, from shared memory */
#define AMLA_CUDA_RATE_MMA 1   /* mma.sync, from registers */
#define AMLA_CUDA_RATE_MIX 2   /* wgmma, as the default Hopper kernel's products are and wait */

/* Exported by libamla_cuda as AMLA_CUDA_TOOLS; find it with dlsym once amla_backend_query has
 * loaded the object. Every function that can fail returns NULL, or the driver's words. */
#define AMLA_CUDA_TOOLS "amla_cuda_tools_0"
typedef struct amla_cuda_tools {
  uint32_t struct_bytes;
  /* 1: kernels run on this CPU through an emulation of the instructions they use: slow, and no
   * figure of speed */
  int32_t emulated;
  const char *(*device_name)(void);
  /* device memory, aligned to 256 bytes; NULL when there is none */
  void *(*allocate)(size_t bytes);
  void (*release)(void *device);
  const char *(*upload)(void *device, const void *host, size_t bytes);
  const char *(*download)(void *host, const void *device, size_t bytes);
  const char *(*synchronise)(void);
  /* Seconds on the device of each of n calls run(argument, i), which enqueue a plan's run on the
   * default stream: seconds[2 i] from begin to end, seconds[2 i + 1] of the kernel alone. Before
   * each one, and not timed, `cold_bytes` of other memory are written, to empty L2. */
  const char *(*time)(int32_t n, size_t cold_bytes, const char *(*run)(void *argument, int32_t i),
                      void *argument, double *seconds);
  /* The limits, best of five: FLOP/s of a kernel that only multiplies bf16 matrices, and bytes/s of
   * a device copy, read plus written. 0 when not available here. */
  double (*matrix_rate)(int32_t kind);
  double (*copy_rate)(void);
  /* Captures what enqueue(argument, stream) puts on that stream into a graph. Launches the graph n
   * times, each to its end and after before(argument, i). */
  const char *(*replay)(int32_t n, const char *(*enqueue)(void *argument, void *stream),
                        const char *(*before)(void *argument, int32_t i), void *argument);
} amla_cuda_tools;
typedef const amla_cuda_tools *(*amla_cuda_tools_entry)(void);

#ifdef __cplusplus
}
#endif
#endif
