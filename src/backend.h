/* SPDX-License-Identifier: Apache-2.0
 *
 * What a backend is to the rest of the library: a name, a reason when it is absent, and a few
 * functions. ref and cpu are built in; cuda and npu are shared objects of their own, so that the
 * core needs no driver and no simulator (load_backend.h).
 */
#ifndef AMLA_BACKEND_H
#define AMLA_BACKEND_H

#include <amla/amla.h>

struct amla_scopes; /* keys.h */

/* Of a plan with fixed splits. Every argument has been checked, and rows are filled in. */
typedef struct amla_shard_ops {
  size_t (*scratch_bytes)(const amla_plan *plan); /* of run and of finish */
  int64_t (*split_tokens)(const amla_plan *plan); /* that bounds are multiples of */
  /* n_entries and n_row_keys of a shard, and floats of a record. */
  void (*measure)(const amla_plan *plan, const struct amla_scopes *scopes, amla_shard_info *info);
  amla_status (*run)(const amla_plan *plan, const struct amla_scopes *scopes, void *scratch,
                     amla_detail *detail);
  /* scopes->shard has rows and heads. */
  void (*finish)(const amla_plan *plan, const struct amla_scopes *scopes, int32_t n_shards,
                 const amla_shard *shards, void *scratch);
} amla_shard_ops;

typedef struct amla_backend_ops {
  /* sizeof(amla_plan) where it was built: a loaded backend of another build is refused */
  size_t plan_bytes;
  amla_backend id;
  const char *name;
  int32_t device_memory; /* takes tensors in device memory, and only those */
  /* run calls back to the caller, so it enters the default floating-point environment itself */
  int32_t own_environment;
  const char *(*absent)(void);      /* why it cannot run on this machine; NULL when it can */
  const char *(*isa)(amla_isa cap); /* instruction set it would use; "" where that means nothing */
  /* fills the backend's part of the plan and scratch_bytes, or refuses */
  amla_status (*prepare)(amla_plan *plan, amla_detail *detail);
  void (*release)(amla_plan *plan); /* undoes prepare; NULL = nothing to undo */
  /* What the backend alone knows of a plan; the rest of info is filled in already. */
  void (*query)(const amla_plan *plan, amla_plan_info *info);
  int (*describe)(const amla_plan *plan, char *text, size_t capacity_bytes); /* as snprintf */
  /* In the default floating-point environment, but for own_environment. Every argument has been
   * checked, so ref and cpu cannot fail; others may refuse a tensor they do not take, before any
   * work. */
  amla_status (*run)(const amla_plan *plan, const amla_tensors *tensors, void *scratch,
                     amla_detail *detail);
  const amla_shard_ops *shards; /* NULL: it has none */
} amla_backend_ops;

extern const amla_backend_ops amla_backend_ref;
extern const amla_backend_ops amla_backend_cpu;

/* The one symbol of a loadable backend: its table, or NULL where the library that asks is of
 * another version. */
#define AMLA_BACKEND_ENTRY "amla_backend_entry_1"
typedef const amla_backend_ops *(*amla_backend_entry)(const char *library_version);

#endif
