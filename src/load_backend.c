/* SPDX-License-Identifier: Apache-2.0
 *
 * Finding and loading cuda and npu. See load_backend.h.
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE /* dladdr */
#endif
#include "load_backend.h"

#include <dlfcn.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "plan.h"

typedef struct slot {
  const char *name;
  pthread_once_t once;
  void (*load)(void);
  const amla_backend_ops *ops;
  char reason[160];
} slot;

static void load_cuda(void);
static void load_npu(void);
static slot cuda = {"cuda", PTHREAD_ONCE_INIT, load_cuda, NULL, ""},
            npu = {"npu", PTHREAD_ONCE_INIT, load_npu, NULL, ""};

/* Folder of the file that holds this function, with its '/'; "" when unknown. */
static void own_folder(char *folder, size_t capacity_bytes) {
  Dl_info info;
  union {
    void (*function)(char *, size_t);
    void *object;
  } self = {.function = own_folder};
  folder[0] = '\0';
  if (dladdr(self.object, &info) == 0 || !info.dli_fname)
    return;
  const char *slash = strrchr(info.dli_fname, '/');
  const size_t n = slash ? (size_t)(slash - info.dli_fname) + 1 : 0;
  if (n == 0 || n >= capacity_bytes)
    return;
  memcpy(folder, info.dli_fname, n);
  folder[n] = '\0';
}

enum { MAX_PATH = 4096 };

static int make_path(char path[MAX_PATH], const char *folder, const char *name) {
  return snprintf(path, MAX_PATH, "%s%slibamla_%s.so.%d", folder,
                  folder[0] && folder[strlen(folder) - 1] != '/' ? "/" : "", name,
                  AMLA_VERSION_MAJOR) < MAX_PATH;
}

static void *open_in(const char *folder, const char *name) {
  char path[MAX_PATH];
  return make_path(path, folder, name) ? dlopen(path, RTLD_NOW | RTLD_LOCAL) : NULL;
}

static int is_in(const char *folder, const char *name) {
  char path[MAX_PATH];
  return make_path(path, folder, name) && access(path, F_OK) == 0;
}

static void *open_backend(const char *name) {
  char folder[MAX_PATH];
  const char *chosen = getenv("AMLA_BACKEND_DIR");
  if (chosen && *chosen)
    return open_in(chosen, name);
  own_folder(folder, sizeof folder);
  void *handle = folder[0] ? open_in(folder, name) : NULL;
  return handle || is_in(folder, name)
             ? handle
             : open_in("", name); /* one that is there and does not load says why */
}

static void load_slot(slot *s) {
  void *handle = open_backend(s->name);
  if (!handle) {
    const char *why = dlerror();
    snprintf(s->reason, sizeof s->reason, "%s", why ? why : "not found");
    return;
  }
  union {
    void *object;
    amla_backend_entry function;
  } entry = {.object = dlsym(handle, AMLA_BACKEND_ENTRY)};
  const amla_backend_ops *ops = entry.object ? entry.function(amla_version()) : NULL;
  if (!ops || ops->plan_bytes != sizeof(amla_plan))
    snprintf(s->reason, sizeof s->reason, "libamla_%s is of another build of this library",
             s->name);
  else
    s->ops = ops; /* never unloaded: plans point into it */
}

static void load_cuda(void) { load_slot(&cuda); }
static void load_npu(void) { load_slot(&npu); }

const amla_backend_ops *amla_backend_load(amla_backend id, const char **reason) {
  slot *s = id == AMLA_BACKEND_CUDA ? &cuda : &npu;
  pthread_once(&s->once, s->load);
  *reason = s->ops ? s->ops->absent() : s->reason;
  return *reason ? NULL : s->ops;
}
