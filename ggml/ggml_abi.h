/* SPDX-License-Identifier: Apache-2.0
 *
 * What of ggml's interface the plug-in uses: our own declarations, so that no version of ggml is
 * needed to build it and none is linked. The functions are public and are looked up by name in the
 * ggml that loads the plug-in. The struct layouts are those of ggml 0.9.4 to 0.27.0; none of them
 * is trusted before ggml_host.c has proved it on the ggml at hand. An object that the plug-in makes
 * for ggml (registry, device, backend) is an array of words, since where its members lie is found
 * out at run time.
 */
#ifndef AMLA_GGML_ABI_H
#define AMLA_GGML_ABI_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Of the registry object; 3 changed buffer types, which we have none of. */
enum { GGML_ABI_OLDEST_API = 2, GGML_ABI_NEWEST_API = 3 };
/* Tensor types, as in GGUF files. */
enum {
  GGML_ABI_F32 = 0,
  GGML_ABI_F16 = 1,
  GGML_ABI_Q4_0 = 2,
  GGML_ABI_Q4_1 = 3,
  GGML_ABI_Q5_0 = 6,
  GGML_ABI_Q5_1 = 7,
  GGML_ABI_Q8_0 = 8,
  GGML_ABI_IQ4_NL = 20,
  GGML_ABI_BF16 = 30
};
/* Of a graph. */
enum {
  GGML_ABI_SUCCESS = 0,
  GGML_ABI_ABORTED = 1,
  GGML_ABI_FAILED = -1,
  GGML_ABI_ALLOC_FAILED = -2
};
/* Kinds of device. */
enum { GGML_ABI_CPU = 0, GGML_ABI_GPU = 1, GGML_ABI_IGPU = 2, GGML_ABI_ACCEL = 3 };
enum { GGML_ABI_FLAG_COMPUTE = 16 };                         /* of a tensor */
enum { GGML_ABI_Q8_0_ELEMS = 32, GGML_ABI_Q8_0_BYTES = 34 }; /* a block: f16 scale, 32 int8 */

typedef struct ggml_abi_tensor {
  int32_t type;
  void *buffer;
  int64_t ne[4]; /* elements */
  size_t nb[4];  /* strides in bytes; nb[0] of a block type is that of a block */
  int32_t op;
  int32_t op_params[16];
  int32_t flags;
  struct ggml_abi_tensor *src[10];
  struct ggml_abi_tensor *view_src; /* never itself a view */
  size_t view_offs;
  void *data;
  char name[64];
  void *extra;
  char padding[8];
} ggml_abi_tensor;

typedef struct ggml_abi_init_params {
  size_t mem_size;
  void *mem_buffer;
  bool no_alloc;
} ggml_abi_init_params;

typedef struct ggml_abi_props { /* zeroed by ggml before the device fills it; later versions append
                                   capabilities */
  const char *name, *description;
  size_t memory_free, memory_total;
  int32_t type;
  const char *device_id;
  bool async, host_buffer, buffer_from_host_ptr, events;
} ggml_abi_props;

typedef struct ggml_abi_pool_params { /* of a thread pool; filled by ggml_threadpool_params_init */
  bool cpumask[512];
  int32_t n_threads;
  int32_t priority;
  uint32_t poll; /* 0: idle threads sleep; 50, the default: they spin for about 0.1 s first */
  bool strict_cpu, paused;
} ggml_abi_pool_params;

typedef struct ggml_abi_feature {
  const char *name, *value; /* both NULL at the end of the list */
} ggml_abi_feature;

typedef void (*ggml_abi_custom)(ggml_abi_tensor *dst, int ith, int nth, void *argument);

/* F(result, name, arguments). Objects of ggml are void * here. */
#define GGML_ABI_FUNCTIONS(F)                                                                      \
  F(const char *, ggml_op_name, (int32_t op))                                                      \
  F(void *, ggml_init, (ggml_abi_init_params params))                                              \
  F(void, ggml_free, (void *context))                                                              \
  F(ggml_abi_tensor *, ggml_new_tensor_4d,                                                         \
    (void *context, int32_t type, int64_t ne0, int64_t ne1, int64_t ne2, int64_t ne3))             \
  F(ggml_abi_tensor *, ggml_view_4d,                                                               \
    (void *context, ggml_abi_tensor *of, int64_t ne0, int64_t ne1, int64_t ne2, int64_t ne3,       \
     size_t nb1, size_t nb2, size_t nb3, size_t offset))                                           \
  F(ggml_abi_tensor *, ggml_cast, (void *context, ggml_abi_tensor *tensor, int32_t type))          \
  F(ggml_abi_tensor *, ggml_flash_attn_ext,                                                        \
    (void *context, ggml_abi_tensor *q, ggml_abi_tensor *k, ggml_abi_tensor *v,                    \
     ggml_abi_tensor *mask, float scale, float max_bias, float softcap))                           \
  F(void, ggml_flash_attn_ext_add_sinks, (ggml_abi_tensor * op, ggml_abi_tensor * sinks))          \
  F(ggml_abi_tensor *, ggml_custom_4d,                                                             \
    (void *context, int32_t type, int64_t ne0, int64_t ne1, int64_t ne2, int64_t ne3,              \
     ggml_abi_tensor **args, int n_args, ggml_abi_custom function, int n_tasks, void *argument))   \
  F(void *, ggml_get_data, (const ggml_abi_tensor *tensor))                                        \
  F(size_t, ggml_nbytes, (const ggml_abi_tensor *tensor))                                          \
  F(void *, ggml_new_graph_custom, (void *context, size_t size, bool grads))                       \
  F(void, ggml_build_forward_expand, (void *graph, ggml_abi_tensor *tensor))                       \
  F(int, ggml_graph_n_nodes, (void *graph))                                                        \
  F(ggml_abi_tensor *, ggml_graph_node, (void *graph, int i))                                      \
  F(void, ggml_threadpool_params_init, (ggml_abi_pool_params * params, int n_threads))             \
  F(void *, ggml_backend_cpu_buffer_type, (void))                                                  \
  F(void *, ggml_backend_cpu_buffer_from_ptr, (void *data, size_t bytes))                          \
  F(bool, ggml_backend_buft_is_host, (void *buffer_type))                                          \
  F(void *, ggml_backend_dev_by_type, (int32_t type))                                              \
  F(void *, ggml_backend_dev_init, (void *device, const char *params))                             \
  F(void *, ggml_backend_dev_backend_reg, (void *device))                                          \
  F(void *, ggml_backend_reg_get_proc_address, (void *registry, const char *name))                 \
  F(void *, ggml_backend_get_device, (void *backend))                                              \
  F(int, ggml_backend_graph_compute, (void *backend, void *graph))                                 \
  F(void, ggml_backend_free, (void *backend))

#endif
