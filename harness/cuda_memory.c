/* SPDX-License-Identifier: Apache-2.0
 *
 * See cuda_memory.h.
 */
#include "cuda_memory.h"

#include <dlfcn.h>
#include <stdio.h>
#include <string.h>

const amla_cuda_tools *harness_cuda_tools(char *reason, size_t reason_bytes) {
  amla_backend_info info = AMLA_BACKEND_INFO_INIT;
  amla_detail why;
  char name[64];
  /* loads the object */
  const bool answered = amla_backend_query(AMLA_BACKEND_CUDA, &info, &why) == AMLA_OK;
  if (!answered || !info.available) {
    snprintf(reason, reason_bytes, "%s", answered ? info.reason : why.text);
    return NULL;
  }
  snprintf(name, sizeof name, "libamla_cuda.so.%d", AMLA_VERSION_MAJOR);
  void *handle = dlopen(name, RTLD_NOW | RTLD_NOLOAD); /* the one that is loaded, by its soname */
  union {
    void *object;
    amla_cuda_tools_entry function;
  } entry = {.object = handle ? dlsym(handle, AMLA_CUDA_TOOLS) : NULL};
  const amla_cuda_tools *tools = entry.object ? entry.function() : NULL;
  if (tools && tools->struct_bytes == sizeof *tools)
    return tools;
  snprintf(reason, reason_bytes, "%s has no %s of this version", name, AMLA_CUDA_TOOLS);
  return NULL;
}

typedef struct tensor {
  const void **pointer; /* in the device's tensors */
  size_t bytes;
} tensor;

bool harness_device_upload(harness_device_data *device, const amla_cuda_tools *tools,
                           const harness_dataset *data, char *reason, size_t reason_bytes) {
  *device =
      (harness_device_data){.tools = tools, .problem = data->problem, .tensors = data->tensors};
  device->problem.memory = AMLA_MEMORY_DEVICE;
  amla_tensors *t = &device->tensors;
  const tensor tensors[] = {{&t->q, t->q_bytes},
                            {&t->kv, t->kv_bytes},
                            {(const void **)&t->block_table, t->block_table_bytes},
                            {(const void **)&t->seqlens_k, t->seqlens_k_bytes},
                            {(const void **)&t->sinks, t->sinks_bytes},
                            {&t->mask, t->mask_bytes},
                            {(const void **)&t->out, t->out_bytes},
                            {(const void **)&t->lse, t->lse_bytes}};
  for (size_t i = 0; i < sizeof tensors / sizeof *tensors; i++) {
    if (*tensors[i].pointer == NULL)
      continue;
    device->buffers[i] = tools->allocate(tensors[i].bytes);
    const char *why = device->buffers[i]
                          ? tools->upload(device->buffers[i], *tensors[i].pointer, tensors[i].bytes)
                          : "out of device memory";
    if (why) {
      snprintf(reason, reason_bytes, "%s", why);
      harness_device_free(device);
      return false;
    }
    *tensors[i].pointer = device->buffers[i];
  }
  return true;
}

const char *harness_device_download(const harness_device_data *device, harness_dataset *data) {
  const char *why = device->tools->synchronise();
  if (!why && data->tensors.out)
    why = device->tools->download(data->out, device->tensors.out, data->tensors.out_bytes);
  if (!why && data->tensors.lse)
    why = device->tools->download(data->lse, device->tensors.lse, data->tensors.lse_bytes);
  return why;
}

void harness_device_free(harness_device_data *device) {
  for (size_t i = 0; i < sizeof device->buffers / sizeof *device->buffers; i++)
    device->tools->release(device->buffers[i]);
  memset(device->buffers, 0, sizeof device->buffers);
}
