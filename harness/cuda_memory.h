/* SPDX-License-Identifier: Apache-2.0
 *
 * A dataset on the CUDA device, through the tools of the loadable backend (amla/amla_cuda.h): for
 * tests and benchmarks, which have no CUDA runtime of their own.
 */
#ifndef AMLA_HARNESS_CUDA_MEMORY_H
#define AMLA_HARNESS_CUDA_MEMORY_H

#include <amla/amla_cuda.h>

#include "dataset.h"

/* The tools of the backend that is loaded; NULL with a reason when there is none. */
const amla_cuda_tools *harness_cuda_tools(char *reason, size_t reason_bytes);

typedef struct harness_device_data {
  const amla_cuda_tools *tools;
  amla_problem problem; /* the dataset's, in device memory */
  amla_tensors tensors; /* device pointers */
  void *buffers[8];     /* q, kv, block table, lengths, sinks, mask, out, lse */
} harness_device_data;

/* Copies every tensor, outputs included. False with a reason; then nothing is left allocated. */
bool harness_device_upload(harness_device_data *device, const amla_cuda_tools *tools,
                           const harness_dataset *data, char *reason, size_t reason_bytes);

/* Waits, then copies out and lse back into data. NULL, or the driver's words. */
const char *harness_device_download(const harness_device_data *device, harness_dataset *data);

void harness_device_free(harness_device_data *device);

#endif
