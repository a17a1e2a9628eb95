/* SPDX-License-Identifier: Apache-2.0
 *
 * The ggml that has loaded the plug-in: its functions, and where it looks for what in the objects
 * it is handed.
 */
#ifndef AMLA_GGML_HOST_H
#define AMLA_GGML_HOST_H

#include "ggml_abi.h"

#define GGML_HOST_MEMBER(result, name, arguments) result(*name) arguments;

typedef struct ggml_host {
  char version[32];
  int32_t api_version;      /* what it wants to read in a registry */
  int32_t flash_attn_op;    /* the id of FLASH_ATTN_EXT */
  int32_t indexer_op;       /* the id of LIGHTNING_INDEXER, or -1: not there, or not to be taken */
  int32_t cast_op;          /* the id of ggml_cast's operation, or -1: not as expected */
  bool flags_say_compute;   /* nodes to be computed carry GGML_ABI_FLAG_COMPUTE */
  int32_t graph_compute_at; /* word of a backend object */
  int32_t device_at;        /* word of a backend object; the context follows */
  GGML_ABI_FUNCTIONS(GGML_HOST_MEMBER)
} ggml_host;

/* Words of the objects; the same in all known versions, and proved. A backend has its name at 1 and
 * its destructor at 2. */
enum { GGML_REG_WORDS = 6, GGML_DEVICE_WORDS = 17, GGML_BACKEND_MAX_WORDS = 32 };

/* Binds the ggml that contains the address `caller`, or, if that is unknown, the one that the whole
 * program sees. Returns NULL if all is well, else why not. Once bound, another ggml is refused. */
const char *ggml_host_bind(ggml_host *host, const void *caller);

#endif
