/* SPDX-License-Identifier: Apache-2.0
 *
 * libggml-amla.so: a ggml backend with one device of type ACCEL, which takes over the attention of
 * MLA models and leaves the rest to the CPU backend, whose memory it shares. Here are the three
 * objects that ggml asks for: registry, device, backend. They are arrays of words (ggml_host.h):
 * functions, then what the object belongs to, then its context.
 */
#include <amla/amla.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "ggml_attention.h"
#include "ggml_host.h"
#include "ggml_indexer.h"
#include "ggml_log.h"
#include "ggml_runner.h"

typedef void (*any_function)(void);

typedef union word {
  any_function function;
  const void *pointer;
  int number;
} word;

static ggml_host host;
static word registry[GGML_REG_WORDS], device[GGML_DEVICE_WORDS];
static char description[96];
static _Atomic int64_t n_done; /* operations, by all backends */
static struct {                /* what ggml has asked about, computed or not */
  atomic_bool work, ours,
      softmax; /* anything but views; attention that we take; attention in pieces */
} asked;

#define FUNCTION(f) ((word){.function = (any_function)(f)})
#define POINTER(p) ((word){.pointer = (p)})

/* ---- Backend ---- */

typedef struct backend {
  word words[GGML_BACKEND_MAX_WORDS]; /* first: ggml's handle is its address */
  ggml_attention attention;
  ggml_indexer indexer;
  ggml_runner runner;
  int32_t threads;
  int64_t n_done, n_indexed; /* operations: attention, indexers */
} backend;

enum { DEFAULT_THREADS = 4 }; /* ggml's own, until it says otherwise */

static const char *backend_name(void *self) {
  (void)self;
  return "AMLA";
}

static void backend_free(void *self) {
  backend *b = self;
  if (b->n_done > 0 && ggml_log_wanted())
    ggml_log("%lld attention operations done", (long long)b->n_done);
  if (b->n_indexed > 0 && ggml_log_wanted())
    ggml_log("%lld indexer operations done", (long long)b->n_indexed);
  ggml_attention_free(&b->attention);
  ggml_indexer_free(&b->indexer);
  ggml_runner_free(&b->runner);
  free(b);
}

static bool is_indexer(const ggml_abi_tensor *node) { return node->op == host.indexer_op; }

static bool to_be_computed(const ggml_abi_tensor *node) {
  return (node->op == host.flash_attn_op || is_indexer(node)) &&
         (!host.flags_say_compute || (node->flags & GGML_ABI_FLAG_COMPUTE) != 0);
}

typedef struct operation {
  backend *backend;
  const ggml_abi_tensor *node;
  int32_t threads;
  int status;
} operation;

static void run_operation(void *argument) {
  operation *o = argument;
  backend *b = o->backend;
  if (is_indexer(o->node))
    o->status = ggml_indexer_run(&b->indexer, &b->attention, o->node, o->threads,
                                 ggml_runner_parallel, &b->runner);
  else
    o->status =
        ggml_attention_run(&b->attention, o->node, o->threads, ggml_runner_parallel, &b->runner);
}

static int compute_node(backend *b, const ggml_abi_tensor *node) {
  const bool small = is_indexer(node) ? ggml_indexer_is_small(node) : ggml_attention_is_small(node);
  operation o = {b, node, small ? 1 : b->threads, GGML_ABI_FAILED};
  if (o.threads > 1)
    ggml_runner_run(&b->runner, run_operation, &o);
  else
    run_operation(&o);
  return o.status;
}

static int backend_compute(void *self, void *graph) {
  backend *b = self;
  const int n = host.ggml_graph_n_nodes(graph);
  for (int i = 0; i < n; i++) {
    const ggml_abi_tensor *node = host.ggml_graph_node(graph, i);
    if (!to_be_computed(node))
      continue; /* views need no work */
    const int status = compute_node(b, node);
    if (status != GGML_ABI_SUCCESS)
      return status;
    if (is_indexer(node)) {
      b->n_indexed++;
      continue;
    }
    b->n_done++;
    atomic_fetch_add(&n_done, 1);
  }
  return GGML_ABI_SUCCESS;
}

static void backend_set_n_threads(void *self, int threads) {
  backend *b = self;
  b->threads = threads < 1 ? 1 : threads;
  ggml_runner_set_threads(&b->runner, b->threads);
}

static void backend_set_abort(void *self, bool (*callback)(void *data), void *data) {
  backend *b = self;
  b->attention.abort = callback;
  b->attention.abort_data = data;
}

static void *backend_create(void *self, const char *params) {
  static const uint8_t guid[16] = {0x61, 0x6d, 0x6c, 0x61, 0x9c, 0x1d, 0x4e, 0x0b,
                                   0x8a, 0x55, 0x2d, 0x30, 0x77, 0xe4, 0x12, 0xb6};
  backend *b = calloc(1, sizeof *b);
  (void)params;
  if (b == NULL)
    return NULL;
  if (!ggml_runner_create(&b->runner, &host)) {
    ggml_log("cannot start: this ggml has no CPU backend loaded");
    backend_free(b);
    return NULL;
  }
  b->attention.cast_op = host.cast_op;
  b->words[0] = POINTER(guid);
  b->words[1] = FUNCTION(backend_name);
  b->words[2] = FUNCTION(backend_free);
  b->words[host.graph_compute_at] = FUNCTION(backend_compute);
  b->words[host.device_at] = POINTER(self);
  backend_set_n_threads(b, DEFAULT_THREADS);
  return b;
}

/* ---- Device ---- */

static const char *device_name(void *self) {
  (void)self;
  return "AMLA";
}

static const char *device_description(void *self) {
  (void)self;
  return description;
}

static void device_memory(void *self, size_t *free_bytes, size_t *total_bytes) {
  (void)self;
  *free_bytes = *total_bytes = 0; /* none of its own */
}

static int device_type(void *self) {
  (void)self;
  return GGML_ABI_ACCEL;
}

static void device_props(void *self, ggml_abi_props *props) {
  props->name = device_name(self);
  props->description = description;
  props->type = GGML_ABI_ACCEL;
  props->buffer_from_host_ptr = true;
}

static void *device_buffer_type(void *self) {
  (void)self;
  return host.ggml_backend_cpu_buffer_type();
}

static void *device_buffer_from_host_ptr(void *self, void *data, size_t bytes,
                                         size_t max_tensor_bytes) {
  (void)self, (void)max_tensor_bytes;
  return host.ggml_backend_cpu_buffer_from_ptr(data, bytes);
}

static bool needs_no_work(const ggml_abi_tensor *op) {
  static const char *const names[] = {"NONE", "RESHAPE", "VIEW", "PERMUTE", "TRANSPOSE"};
  for (size_t i = 0; i < sizeof names / sizeof *names; i++)
    if (strcmp(host.ggml_op_name(op->op), names[i]) == 0)
      return true;
  return false;
}

static bool supports_attention(const ggml_abi_tensor *op) {
  const char *refusal = ggml_attention_refusal(op, host.cast_op);
  if (refusal != NULL)
    ggml_log_left(GGML_LOG_ATTENTION, refusal);
  else
    asked.ours = true;
  return refusal == NULL;
}

static bool supports_indexer(const ggml_abi_tensor *op) {
  const char *refusal = ggml_indexer_refusal(op);
  if (refusal != NULL)
    ggml_log_left(GGML_LOG_INDEXER, refusal);
  return refusal == NULL;
}

/* Softmax under a mask is attention; without one it is a router of experts, or sampling. */
static bool is_attention_in_pieces(const ggml_abi_tensor *op) {
  return strcmp(host.ggml_op_name(op->op), "SOFT_MAX") == 0 && op->src[1] != NULL;
}

static bool device_supports_op(void *self, const ggml_abi_tensor *op) {
  (void)self;
  if (needs_no_work(op))
    return true;
  asked.work = true;
  if (op->op == host.flash_attn_op)
    return supports_attention(op);
  if (is_indexer(op))
    return supports_indexer(op);
  if (is_attention_in_pieces(op))
    asked.softmax = true;
  return false;
}

static bool device_supports_buffer_type(void *self, void *buffer_type) {
  (void)self;
  return host.ggml_backend_buft_is_host(buffer_type);
}

/* ---- Registry ---- */

static const char *registry_name(void *self) {
  (void)self;
  return "AMLA";
}

static size_t registry_device_count(void *self) {
  (void)self;
  return 1;
}

static void *registry_device(void *self, size_t index) {
  (void)self, (void)index;
  return device;
}

static int64_t registry_n_done(void) { return n_done; }

static const ggml_abi_feature *
registry_features(void *self) { /* llama.cpp prints them in its system info */
  static const ggml_abi_feature features[] = {{"MLA", "1"}, {NULL, NULL}};
  (void)self;
  return features;
}

static any_function registry_proc(void *self, const char *name) {
  (void)self;
  if (strcmp(name, "ggml_backend_set_n_threads") == 0)
    return (any_function)backend_set_n_threads;
  if (strcmp(name, "ggml_backend_set_abort_callback") == 0)
    return (any_function)backend_set_abort;
  if (strcmp(name, "ggml_backend_get_features") == 0)
    return (any_function)registry_features;
  if (strcmp(name, "amla_ggml_n_done") == 0)
    return (any_function)registry_n_done;
  return NULL;
}

static void fill_objects(void) {
  const word device_words[] = {FUNCTION(device_name),
                               FUNCTION(device_description),
                               FUNCTION(device_memory),
                               FUNCTION(device_type),
                               FUNCTION(device_props),
                               FUNCTION(backend_create),
                               FUNCTION(device_buffer_type),
                               POINTER(NULL),
                               FUNCTION(device_buffer_from_host_ptr),
                               FUNCTION(device_supports_op),
                               FUNCTION(device_supports_buffer_type)};
  const word registry_words[] = {{.pointer = NULL},
                                 FUNCTION(registry_name),
                                 FUNCTION(registry_device_count),
                                 FUNCTION(registry_device),
                                 FUNCTION(registry_proc)};
  memcpy(device, device_words, sizeof device_words);
  device[GGML_DEVICE_WORDS - 2] = POINTER(registry);
  memcpy(registry, registry_words, sizeof registry_words);
  registry[0].number = host.api_version;
}

/* ---- Of no use ---- */

/* Why nothing was computed here; NULL if no model was computed at all, as far as can be seen. */
static const char *why_nothing(void) {
  const char *refusal = ggml_log_commonest_reason();
  if (asked.ours && asked.softmax)
    return "flash attention was off; -fa on or LLAMA_ARG_FLASH_ATTN=on turns it on, `auto' turns "
           "it off";
  if (asked.ours)
    return NULL;
  if (refusal != NULL)
    return refusal;
  if (asked.softmax)
    return "flash attention was off; -fa on or LLAMA_ARG_FLASH_ATTN=on turns it on";
  if (!asked.work)
    return NULL;
  return "no attention was offered: layers on a GPU keep theirs, and some models have none";
}

/* When the program ends, or lets go of the plug-in. */
__attribute__((destructor)) static void say_at_end(void) {
  const char *why = n_done == 0 && !ggml_log_unwanted() ? why_nothing() : NULL;
  if (why != NULL)
    ggml_log("0 attention operations done: %s (AMLA_LOG=0 silences this line)", why);
  ggml_log_total();
}

/* ---- Start ---- */

static char refusal_text[512];

/* Why ggml_backend_init() returned NULL; "" if it did not. For amla doctor. */
__attribute__((visibility("default"))) const char *amla_ggml_refusal(void);
const char *amla_ggml_refusal(void) { return refusal_text; }

static void *refuse(const char *why) {
  snprintf(refusal_text, sizeof refusal_text, "%s", why);
  ggml_log("not used: %s", why);
  return NULL;
}

/* The one function that ggml looks up by name. NULL: not to be used, and a line on stderr has said
 * why. */
__attribute__((visibility("default"))) void *ggml_backend_init(void);

void *ggml_backend_init(void) {
  const char *refusal = ggml_host_bind(&host, __builtin_return_address(0));
  amla_backend_info cpu = AMLA_BACKEND_INFO_INIT;
  if (refusal != NULL)
    return refuse(refusal);
  amla_detail why;
  if (amla_backend_query(AMLA_BACKEND_CPU, &cpu, &why) != AMLA_OK)
    return refuse(why.text); /* the environment asks for what does not exist */
  snprintf(description, sizeof description, "AMLA %s, attention of MLA models (%s)", amla_version(),
           cpu.isa);
  fill_objects();
  if (ggml_log_wanted())
    ggml_log("%s, in ggml %s", description, host.version);
  return registry;
}
