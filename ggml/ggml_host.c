/* SPDX-License-Identifier: Apache-2.0
 *
 * Finds the ggml that loads the plug-in and proves that it is one we know how to talk to. Three
 * gates, each of which ends in one line of text and never in a crash: its version is in the tried
 * range; tensors that it makes have the layout of ggml_abi.h; and when it is handed an object made
 * of traps, each of its functions falls into the expected one. The last matters because a backend's
 * graph_compute moved from word 11 to word 13 within one and the same version number.
 */
#define _GNU_SOURCE 1 /* dladdr */
#include "ggml_host.h"

#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define COUNT(array) (sizeof(array) / sizeof *(array))

static char reason[256]; /* of a refusal; written while a plug-in is being loaded, which ggml does
                            one at a time */

/* ---- Symbols ---- */

/* Hosts may load ggml RTLD_LOCAL, so no global name is of use. But the caller is a piece of that
 * ggml, and a look-up through its handle also searches what it depends on. */
static void *open_library(const void *caller) {
  Dl_info info;
  void *library = NULL;
  if (caller != NULL && dladdr(caller, &info) != 0 && info.dli_fname != NULL)
    library = dlopen(info.dli_fname, RTLD_LAZY | RTLD_NOLOAD);
  return library != NULL ? library
                         : dlopen(NULL, RTLD_LAZY); /* ggml linked into the program itself */
}

static bool find(void *library, const char *name, void *function) {
  void *address = dlsym(library, name);
  memcpy(function, &address, sizeof address);
  return address != NULL;
}

static const char *find_all(void *library, ggml_host *host) {
  const char *missing = NULL;
#define FIND(result, name, arguments)                                                              \
  if (missing == NULL && !find(library, #name, &host->name))                                       \
    missing = #name;
  GGML_ABI_FUNCTIONS(FIND)
#undef FIND
  return missing;
}

/* ---- Version ---- */

/* Of 0.x: the range in which layouts were looked at. */
enum { OLDEST_MINOR = 9, OLDEST_PATCH = 4, NEWEST_MINOR = 27 };

static bool version_is_known(const char *text) {
  int major, minor, patch;
  if (sscanf(text, "%d.%d.%d", &major, &minor, &patch) != 3 || major != 0)
    return false;
  return minor <= NEWEST_MINOR &&
         (minor > OLDEST_MINOR || (minor == OLDEST_MINOR && patch >= OLDEST_PATCH));
}

/* The number in the CPU's own registry, of which it is the first word. If no CPU backend is loaded
 * yet, by the version: 0.26 brought 3. */
static int32_t find_api_version(const ggml_host *host) {
  void *cpu = host->ggml_backend_dev_by_type(GGML_ABI_CPU);
  int32_t found = 0;
  if (cpu != NULL) {
    memcpy(&found, host->ggml_backend_dev_backend_reg(cpu), sizeof found);
    return found;
  }
  int minor = NEWEST_MINOR;
  sscanf(host->version, "%*d.%d", &minor);
  return minor < 26 ? 2 : 3;
}

static bool any_version_is_wanted(void) {
  const char *text = getenv("AMLA_GGML_ANY_VERSION");
  return text != NULL && strcmp(text, "1") == 0;
}

/* ---- Tensors ---- */

/* A flash attention made by ggml itself must be, member by member, what we read in it. */
static const char *prove_tensors(ggml_host *h) {
  /* 64: old ggml wants masks padded so. */
  enum { D_K = 576, D_V = 512, KEYS = 7, TOKENS = 64, HEADS = 5, STREAMS = 2 };
  const char *wrong = NULL;
  /* Without the elements. */
  void *context = h->ggml_init((ggml_abi_init_params){1 << 16, NULL, true});
  if (context == NULL)
    return "ggml_init";
  ggml_abi_tensor *q = h->ggml_new_tensor_4d(context, GGML_ABI_F32, D_K, TOKENS, HEADS, STREAMS),
                  *k = h->ggml_new_tensor_4d(context, GGML_ABI_Q8_0, D_K, 2 * KEYS, 1, STREAMS),
                  *mask = h->ggml_new_tensor_4d(context, GGML_ABI_F16, KEYS, TOKENS, 1, STREAMS),
                  *sinks = h->ggml_new_tensor_4d(context, GGML_ABI_F32, HEADS, 1, 1, 1);
  const size_t row = D_K / GGML_ABI_Q8_0_ELEMS * GGML_ABI_Q8_0_BYTES, stream = 2 * KEYS * row;
  ggml_abi_tensor *view =
                      h->ggml_view_4d(context, k, D_K, KEYS, 1, STREAMS, row, stream, stream, row),
                  *v =
                      h->ggml_view_4d(context, view, D_V, KEYS, 1, STREAMS, row, stream, stream, 0);
  ggml_abi_tensor *op = h->ggml_flash_attn_ext(context, q, view, v, mask, 0.25f, 0.5f, 0.75f);
  h->ggml_flash_attn_ext_add_sinks(op, sinks);
  void *graph = h->ggml_new_graph_custom(context, 64, false);
  h->ggml_build_forward_expand(graph, op);
  float params[3];
  memcpy(params, op->op_params, sizeof params);
  q->data = params;

  if (k->type != GGML_ABI_Q8_0 || op->type != GGML_ABI_F32)
    wrong = "type";
  else if (op->ne[0] != D_V || op->ne[1] != HEADS || op->ne[2] != TOKENS || op->ne[3] != STREAMS)
    wrong = "ne";
  else if (view->nb[0] != GGML_ABI_Q8_0_BYTES || view->nb[1] != row || view->nb[2] != stream ||
           view->nb[3] != stream)
    wrong = "nb";
  else if (strcmp(h->ggml_op_name(op->op), "FLASH_ATTN_EXT") != 0)
    wrong = "op";
  else if (params[0] != 0.25f || params[1] != 0.5f || params[2] != 0.75f)
    wrong = "op_params";
  else if (op->src[0] != q || op->src[1] != view || op->src[2] != v || op->src[3] != mask ||
           op->src[4] != sinks)
    wrong = "src";
  else if (v->view_src != k || v->view_offs != row || view->view_offs != row)
    wrong = "view_src";
  else if (h->ggml_get_data(q) != params || op->data != NULL)
    wrong = "data";
  else if (h->ggml_graph_n_nodes(graph) < 1 ||
           h->ggml_graph_node(graph, h->ggml_graph_n_nodes(graph) - 1) != op)
    wrong = "graph";
  h->flash_attn_op = op->op;
  h->flags_say_compute = (op->flags & GGML_ABI_FLAG_COMPUTE) != 0;
  h->ggml_free(context);
  return wrong;
}

/* A cast is a copy of its source into itself. Only attention on casts depends on it. */
static int32_t find_cast_op(ggml_host *h) {
  void *context = h->ggml_init((ggml_abi_init_params){1 << 12, NULL, true});
  if (context == NULL)
    return -1;
  ggml_abi_tensor *x = h->ggml_new_tensor_4d(context, GGML_ABI_F32, 32, 1, 1, 1);
  const ggml_abi_tensor *cast = h->ggml_cast(context, x, GGML_ABI_F16);
  const bool is_as_expected = strcmp(h->ggml_op_name(cast->op), "CPY") == 0 && cast->src[0] == x &&
                              cast->src[1] == cast && cast->type == GGML_ABI_F16;
  const int32_t op = is_as_expected ? cast->op : -1;
  h->ggml_free(context);
  return op;
}

/* llama.cpp before ggml 0.25 gives the operation up if another device than the layer's has it, and
 * its scores then fill gigabytes. */
enum { INDEXER_MINOR = 25 };

static int32_t find_indexer_op(void *library, ggml_host *h) {
  enum { D = 32, HEADS = 3, TOKENS = 2, KEYS = 5 };
  ggml_abi_tensor *(*make)(void *context, ggml_abi_tensor *q, ggml_abi_tensor *k,
                           ggml_abi_tensor *weights, ggml_abi_tensor *mask);
  int minor = 0;
  sscanf(h->version, "%*d.%d", &minor);
  if (minor < INDEXER_MINOR || !find(library, "ggml_lightning_indexer", &make))
    return -1;
  void *context = h->ggml_init((ggml_abi_init_params){1 << 13, NULL, true});
  if (context == NULL)
    return -1;
  ggml_abi_tensor *q = h->ggml_new_tensor_4d(context, GGML_ABI_F32, D, HEADS, TOKENS, 1),
                  *k = h->ggml_new_tensor_4d(context, GGML_ABI_F16, D, 1, KEYS, 1),
                  *w = h->ggml_new_tensor_4d(context, GGML_ABI_F32, HEADS, TOKENS, 1, 1),
                  *mask = h->ggml_new_tensor_4d(context, GGML_ABI_F16, KEYS, TOKENS, 1, 1);
  const ggml_abi_tensor *op = make(context, q, k, w, mask);
  const bool is_as_expected = strcmp(h->ggml_op_name(op->op), "LIGHTNING_INDEXER") == 0 &&
                              op->type == GGML_ABI_F32 && op->ne[0] == KEYS &&
                              op->ne[1] == TOKENS && op->src[0] == q && op->src[1] == k &&
                              op->src[2] == w && op->src[3] == mask && op->src[4] == NULL;
  const int32_t id = is_as_expected ? op->op : -1;
  h->ggml_free(context);
  return id;
}

/* ---- Objects ---- */

/* Trap i stands in word i of an object and says that it was called. */
static int trapped;
/* clang-format off */
#define TRAPS(F) F(0) F(1) F(2) F(3) F(4) F(5) F(6) F(7) F(8) F(9) F(10) F(11) F(12) F(13) F(14) \
  F(15) F(16) F(17) F(18) F(19) F(20) F(21) F(22) F(23)
/* clang-format on */
#define DEFINE_TRAP(i)                                                                             \
  static void *trap_##i(void) {                                                                    \
    trapped = i;                                                                                   \
    return NULL;                                                                                   \
  }
TRAPS(DEFINE_TRAP)
#define NAME_TRAP(i) trap_##i,
static void *(*const traps[])(void) = {TRAPS(NAME_TRAP)};

/* What ggml's public function `name` reaches in an object of traps: the word it calls, or the word
 * that it returns. */
static int word_reached(void *library, const char *name, bool calls) {
  void *words[GGML_BACKEND_MAX_WORDS] = {NULL};
  uint64_t room[64] = {0}; /* where properties and sizes may be written */
  void *(*function)(void *, void *, void *, void *);
  memcpy(words, traps, sizeof traps);
  if (!find(library, name, &function))
    return -1;
  trapped = -1;
  void *result = function(words, room, room, NULL);
  if (calls)
    return trapped;
  for (size_t i = 0; i < COUNT(words); i++)
    if (result != NULL && result == words[i])
      return (int)i;
  return -1;
}

static const char *prove_objects(void *library, ggml_host *host) {
  static const struct {
    const char *name;
    int word;
    bool calls;
  } known[] = {
      {"ggml_backend_reg_name", 1, true},
      {"ggml_backend_reg_dev_count", 2, true},
      {"ggml_backend_reg_get_proc_address", 4, true},
      {"ggml_backend_dev_name", 0, true},
      {"ggml_backend_dev_description", 1, true},
      {"ggml_backend_dev_memory", 2, true},
      {"ggml_backend_dev_type", 3, true},
      {"ggml_backend_dev_get_props", 4, true},
      {"ggml_backend_dev_init", 5, true},
      {"ggml_backend_dev_buffer_type", 6, true},
      {"ggml_backend_dev_host_buffer_type", 7, true},
      {"ggml_backend_dev_buffer_from_host_ptr", 8, true},
      {"ggml_backend_dev_supports_op", 9, true},
      {"ggml_backend_dev_supports_buft", 10, true},
      {"ggml_backend_dev_offload_op", 11, true},
      {"ggml_backend_dev_backend_reg", 15, false},
      {"ggml_backend_name", 1, true},
      {"ggml_backend_free", 2, true},
  };
  for (size_t i = 0; i < COUNT(known); i++)
    if (word_reached(library, known[i].name, known[i].calls) != known[i].word)
      return known[i].name;
  host->graph_compute_at = word_reached(library, "ggml_backend_graph_compute_async", true);
  host->device_at = word_reached(library, "ggml_backend_get_device", false);
  if (host->graph_compute_at < 3)
    return "ggml_backend_graph_compute_async";
  if (host->device_at <= host->graph_compute_at)
    return "ggml_backend_get_device";
  return NULL;
}

/* ---- All together ---- */

static const char *refuse(const char *text, const char *detail) {
  snprintf(reason, sizeof reason, text, detail);
  return reason;
}

const char *ggml_host_bind(ggml_host *host, const void *caller) {
  static void *bound;
  const char *(*version)(void), *wrong;
  void *library = open_library(caller);
  if (library == NULL || !find(library, "ggml_version", &version))
    return refuse(
        "the program that loads it shows no %s (ggml linked statically, or older than autumn 2025)",
        "ggml_version()");
  if (bound == library)
    return NULL;
  if (bound != NULL)
    return refuse("%s", "it already serves another ggml in this program");
  snprintf(host->version, sizeof host->version, "%s", version());
  if (!version_is_known(host->version) && !any_version_is_wanted())
    return refuse("ggml %s is not one it was tried with (0.9.4 to 0.27); AMLA_GGML_ANY_VERSION=1 "
                  "tries all the same",
                  host->version);
  if ((wrong = find_all(library, host)) != NULL)
    return refuse("this ggml has no function %s", wrong);
  if ((wrong = prove_tensors(host)) != NULL)
    return refuse("this ggml lays out its tensors otherwise (%s)", wrong);
  if ((wrong = prove_objects(library, host)) != NULL)
    return refuse("this ggml lays out its backends otherwise (%s)", wrong);
  host->cast_op = find_cast_op(host);
  host->indexer_op = find_indexer_op(library, host);
  host->api_version = find_api_version(host);
  if (host->api_version < GGML_ABI_OLDEST_API || host->api_version > GGML_ABI_NEWEST_API)
    return refuse("ggml %s has another backend interface than 2 and 3", host->version);
  bound = library;
  return NULL;
}
