/* SPDX-License-Identifier: Apache-2.0
 *
 * amla doctor: would llama.cpp use the plug-in libggml-amla.so, and if not, why? It does what
 * llama.cpp does when it starts: loads the ggml at hand (find_ggml.h) with its backends and then
 * the plug-in. Only public functions of ggml, looked up by name.
 */
#define _GNU_SOURCE 1 /* argp, dlfcn */
#include <dlfcn.h>
#include <errno.h>
#include <libgen.h>
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "cli_commands.h"
#include "cli_options.h"
#include "cli_report.h"
#include "find_ggml.h"
#include "harness/program.h"

typedef struct arguments {
  cli_options options;
  const char *where, *plugin;
} arguments;

static const char doc[] = "Tells whether llama.cpp would compute the attention of MLA models with "
                          "AMLA, and if not, why. WHERE is the folder of its libggml "
                          "libraries, or a program or library that uses them.\v"
                          "Examples:\n"
                          "  amla doctor ~/llama.cpp/build/bin\n"
                          "  amla doctor /usr/bin/llama-server\n"
                          "  amla doctor --plugin ./libggml-amla.so "
                          "node_modules/@node-llama-cpp/linux-x64/bins/linux-x64";

enum { KEY_PLUGIN = 'p' };

static const struct argp_option options[] = {
    {"plugin", KEY_PLUGIN, "FILE", 0,
     "libggml-amla.so (default: GGML_BACKEND_PATH, or where amla was built or installed)", 0},
    {0}};
static const struct argp_child children[] = {{&cli_json_argp, 0, NULL, 0}, {0}};

static error_t parse(int key, char *text, struct argp_state *state) {
  arguments *a = state->input;
  switch (key) {
  case ARGP_KEY_INIT: state->child_inputs[0] = &a->options; return 0;
  case KEY_PLUGIN: a->plugin = text; return 0;
  case ARGP_KEY_ARG:
    if (a->where != NULL)
      argp_error(state, "extra argument '%s'", text);
    a->where = text;
    return 0;
  case ARGP_KEY_END:
    if (a->where == NULL)
      argp_error(state,
                 "WHERE is missing: llama.cpp's program, or the folder of its libggml libraries");
    return 0;
  default: return ARGP_ERR_UNKNOWN;
  }
}

/* ---- Findings ---- */

typedef enum severity { FINE, ADVICE, PROBLEM } severity;

typedef struct findings {
  json_t *list;
  bool problem;
} findings;

__attribute__((format(printf, 3, 4))) static void find(findings *f, severity s, const char *format,
                                                       ...) {
  static const char *const names[] = {"ok", "advice", "problem"};
  char text[FIND_GGML_TEXT + 512];
  va_list values;
  va_start(values, format);
  vsnprintf(text, sizeof text, format, values);
  va_end(values);
  json_array_append_new(f->list,
                        cli_json_pack("{s:s, s:o}", "kind", names[s], "text", cli_json_text(text)));
  f->problem |= s == PROBLEM;
}

/* ---- Files ---- */

static void find_plugin(const char *given, char path[PATH_MAX]) {
  static const char *const places[] = {"ggml",
                                       ".",
                                       "../lib/amla",
                                       "../lib/x86_64-linux-gnu/amla",
                                       "../lib/aarch64-linux-gnu/amla",
                                       "../lib64/amla"};
  char folder[PATH_MAX], place[PATH_MAX + 64];
  const char *variable = getenv("GGML_BACKEND_PATH");
  if (given == NULL && variable != NULL && *variable != '\0')
    given = variable;
  if (given != NULL) {
    if (realpath(given, path) == NULL)
      snprintf(path, PATH_MAX, "%s", given);
    return;
  }
  const bool known = harness_program_folder(folder);
  for (size_t i = 0; known && i < sizeof places / sizeof *places; i++) {
    snprintf(place, sizeof place, "%s/%s/libggml-amla.so", folder, places[i]);
    if (realpath(place, path) != NULL)
      return;
  }
  snprintf(path, PATH_MAX, "libggml-amla.so");
}

/* ---- Facts: ggml is loaded, with its backends and then the plug-in, and asked ---- */

typedef struct ggml_functions {
  void *(*ggml_backend_load)(const char *path);
  void (*ggml_backend_load_all)(void);
  void (*ggml_backend_load_all_from_path)(const char *folder);
  size_t (*ggml_backend_dev_count)(void);
  void *(*ggml_backend_dev_get)(size_t index);
  const char *(*ggml_backend_dev_name)(void *device);
  const char *(*ggml_backend_dev_description)(void *device);
  int (*ggml_backend_dev_type)(void *device);
  void (*ggml_log_set)(void (*callback)(int level, const char *text, void *data), void *data);
  const char *(*ggml_version)(void);
} ggml_functions;

static const char *look_up(void *library, ggml_functions *g) {
  const struct {
    const char *name;
    void *function;
  } wanted[] = {{"ggml_backend_load", &g->ggml_backend_load},
                {"ggml_backend_load_all", &g->ggml_backend_load_all},
                {"ggml_backend_load_all_from_path", &g->ggml_backend_load_all_from_path},
                {"ggml_backend_dev_count", &g->ggml_backend_dev_count},
                {"ggml_backend_dev_get", &g->ggml_backend_dev_get},
                {"ggml_backend_dev_name", &g->ggml_backend_dev_name},
                {"ggml_backend_dev_description", &g->ggml_backend_dev_description},
                {"ggml_backend_dev_type", &g->ggml_backend_dev_type},
                {"ggml_log_set", &g->ggml_log_set},
                {"ggml_version", &g->ggml_version}};
  for (size_t i = 0; i < sizeof wanted / sizeof *wanted; i++) {
    void *address = dlsym(library, wanted[i].name);
    if (address == NULL)
      return wanted[i].name;
    memcpy(wanted[i].function, &address, sizeof address);
  }
  return NULL;
}

enum { CPU = 0, GPU = 1, IGPU = 2, LOG_ERROR = 4 }; /* ggml's numbers */

static char last_error[512]; /* that ggml logged */

static void keep_error(int level, const char *text, void *data) {
  (void)data;
  if (level == LOG_ERROR)
    snprintf(last_error, sizeof last_error, "%.*s", (int)strcspn(text, "\n"), text);
}

static bool has_cpu(const ggml_functions *g) {
  for (size_t i = 0; i < g->ggml_backend_dev_count(); i++)
    if (g->ggml_backend_dev_type(g->ggml_backend_dev_get(i)) == CPU)
      return true;
  return false;
}

/* Where ggml looks by itself; then where it would if the user's program ran, which is not this one.
 */
static void load_backends(const ggml_functions *g, const ggml_place *place) {
  char library[PATH_MAX];
  snprintf(library, sizeof library, "%s", place->library);
  if (!has_cpu(g))
    g->ggml_backend_load_all();
  if (!has_cpu(g))
    g->ggml_backend_load_all_from_path(place->folder);
  if (!has_cpu(g))
    g->ggml_backend_load_all_from_path(dirname(library));
}

/* Why did ggml not take it? The plug-in knows, unless it is none. */
static const char *why_refused(void *plugin) {
  const char *(*refusal)(void);
  void *address = dlsym(plugin, "amla_ggml_refusal");
  memcpy(&refusal, &address, sizeof address);
  if (address != NULL)
    return refusal();
  return last_error[0] != '\0' ? last_error : "it is not a backend of ggml";
}

static json_t *devices(const ggml_functions *g) {
  json_t *list = json_array();
  for (size_t i = 0; i < g->ggml_backend_dev_count(); i++) {
    void *device = g->ggml_backend_dev_get(i);
    json_array_append_new(list,
                          cli_json_pack("{s:i, s:s, s:s}", "type", g->ggml_backend_dev_type(device),
                                        "name", g->ggml_backend_dev_name(device), "description",
                                        g->ggml_backend_dev_description(device)));
  }
  return list;
}

/* {"error"}, {"missing", "fork"}, or {"version", "refusal", "devices"}; null is no refusal. */
static json_t *ask_here(const ggml_place *place, const char *plugin) {
  ggml_functions g;
  void *library = dlopen(place->library, RTLD_NOW | RTLD_LOCAL);
  if (library == NULL)
    return cli_json_pack("{s:o}", "error", cli_json_text(dlerror()));
  const char *missing = look_up(library, &g);
  if (missing != NULL)
    return cli_json_pack("{s:s, s:b}", "missing", missing, "fork",
                         dlsym(library, "ggml_moe_up_gate") != NULL);
  void *handle = dlopen(plugin, RTLD_NOW | RTLD_LOCAL);
  if (handle == NULL)
    return cli_json_pack("{s:s, s:o, s:[]}", "version", g.ggml_version(), "refusal",
                         cli_json_text(dlerror()), "devices");
  g.ggml_log_set(keep_error, NULL);
  unsetenv("GGML_BACKEND_PATH"); /* once is enough */
  load_backends(&g, place);
  last_error[0] = '\0';
  const char *refusal = g.ggml_backend_load(plugin) == NULL ? why_refused(handle) : NULL;
  return cli_json_pack("{s:s, s:o, s:o}", "version", g.ggml_version(), "refusal",
                       refusal != NULL ? cli_json_text(refusal) : json_null(), "devices",
                       devices(&g));
}

/* The same for a module of Python, which Python alone can load. The CPU backend is inside it. */
static const char ask_in_python[] =
    "import ctypes, json, os, sys\n"
    "os.environ.pop('GGML_BACKEND_PATH', None)\n"
    "def say(**facts): print(json.dumps(facts)), sys.exit(0)\n"
    "try: g = ctypes.CDLL(sys.argv[1])\n"
    "except OSError as e: say(error=str(e))\n"
    "names = 'load load_all dev_count dev_get dev_name dev_description dev_type'.split()\n"
    "for name in ['ggml_backend_' + n for n in names] + ['ggml_version']:\n"
    "  if not hasattr(g, name): say(missing=name, fork=hasattr(g, 'ggml_moe_up_gate'))\n"
    "def call(name, result, *arguments):\n"
    "  f = getattr(g, name)\n"
    "  f.restype = result\n"
    "  return f(*arguments)\n"
    "version, text, p = call('ggml_version', ctypes.c_char_p).decode(), ctypes.c_char_p, "
    "ctypes.c_void_p\n"
    "try: plugin = ctypes.CDLL(sys.argv[2])\n"
    "except OSError as e: say(version=version, refusal=str(e), devices=[])\n"
    "at = lambda i: p(call('ggml_backend_dev_get', p, ctypes.c_size_t(i)))\n"
    "count = lambda: range(call('ggml_backend_dev_count', ctypes.c_size_t))\n"
    "kind = lambda d: call('ggml_backend_dev_type', ctypes.c_int, d)\n"
    "if not any(kind(at(i)) == 0 for i in count()): call('ggml_backend_load_all', None)\n"
    "refusal = None\n"
    "if not call('ggml_backend_load', p, sys.argv[2].encode()):\n"
    "  why = getattr(plugin, 'amla_ggml_refusal', None)\n"
    "  if why: why.restype = text\n"
    "  refusal = why().decode() if why else 'it is not a backend of ggml'\n"
    "of = lambda what, d: call('ggml_backend_dev_' + what, text, d).decode()\n"
    "say(version=version, refusal=refusal,\n"
    "    devices=[dict(type=kind(at(i)), name=of('name', at(i)), description=of('description', "
    "at(i))) for i in count()])\n";

static json_t *ask_python(const ggml_place *place, const char *plugin, json_t *without) {
  static char text[1 << 16];
  const char *const command[] = {"python3", "-c", ask_in_python, place->library, plugin, NULL};
  const int code = find_ggml_run(command, NULL, false, text, sizeof text);
  const char *begin = strstr(text, "{\""); /* a ggml may have printed before it */
  json_t *facts =
      code == 0 && begin != NULL ? json_loads(begin, JSON_DISABLE_EOF_CHECK, NULL) : NULL;
  if (facts == NULL)
    return without;
  json_decref(without);
  return facts;
}

static json_t *ask(const ggml_place *place, const char *plugin) {
  json_t *facts = ask_here(place, plugin);
  const char *error = json_string_value(json_object_get(facts, "error"));
  const bool wants_python = error != NULL && (strstr(error, "undefined symbol: Py") != NULL ||
                                              strstr(error, "undefined symbol: _Py") != NULL);
  return wants_python ? ask_python(place, plugin, facts) : facts;
}

/* ---- Judgement ---- */

static const char *text_of(const json_t *object, const char *key) {
  const char *text = json_string_value(json_object_get(object, key));
  return text != NULL ? text : "";
}

static void judge_missing(findings *f, const char *library, const json_t *facts) {
  const char *missing = text_of(facts, "missing");
  const char *what = "older than autumn 2025, and not supported";
  if (strcmp(missing, "ggml_version") != 0)
    what = "it cannot load backends: older than 2025, or a fork of 2024 such as ik_llama.cpp";
  if (json_is_true(json_object_get(facts, "fork")))
    what = FIND_GGML_IK;
  find(f, PROBLEM, "%s has no %s: %s", library, missing, what);
}

static void judge_devices(findings *f, const json_t *list) {
  bool cpu = false;
  size_t i;
  const json_t *device;
  json_array_foreach(list, i, device) {
    const int type = (int)json_integer_value(json_object_get(device, "type"));
    const bool gpu = type == GPU || type == IGPU;
    cpu |= type == CPU;
    const char *advice = gpu ? ". Layers on a GPU keep their attention there: -ngl 0, or "
                               "--device none, leaves them to the CPU and AMLA"
                             : "";
    find(f, gpu ? ADVICE : FINE, "device %s: %s%s", text_of(device, "name"),
         text_of(device, "description"), advice);
  }
  if (!cpu)
    find(f, PROBLEM, "ggml finds no CPU backend: AMLA computes on its threads and in its memory");
}

static bool has_amla(const json_t *list) {
  size_t i;
  const json_t *device;
  json_array_foreach(list, i, device) if (strcmp(text_of(device, "name"), "AMLA") == 0) return true;
  return false;
}

static void judge_facts(findings *f, const ggml_place *place, const char *plugin,
                        const json_t *facts) {
  const char *variable = getenv("GGML_BACKEND_PATH"), *error = text_of(facts, "error"),
             *version = text_of(facts, "version");
  const json_t *list = json_object_get(facts, "devices"),
               *refusal = json_object_get(facts, "refusal");
  if (*error != '\0') {
    find(f, PROBLEM, "%s cannot be loaded: %s", place->library, error);
    return;
  }
  if (json_object_get(facts, "missing") != NULL) {
    judge_missing(f, place->library, facts);
    return;
  }
  find(f, FINE, "ggml %s in %s", version, place->library);
  if (json_is_string(refusal)) {
    find(f, PROBLEM, "ggml did not take %s: %s", plugin, json_string_value(refusal));
    return;
  }
  if (!has_amla(list)) {
    find(f, PROBLEM, "%s is a backend of ggml, but not AMLA", plugin);
    return;
  }
  find(f, FINE, "it takes %s", plugin);
  judge_devices(f, list);
  if (variable == NULL)
    find(f, ADVICE, "programs find it through the environment: export GGML_BACKEND_PATH=%s",
         plugin);
  find(f, ADVICE,
       "flash attention must be on (-fa on, or export LLAMA_ARG_FLASH_ATTN=on): `auto' sees a "
       "second device and switches it off, which "
       "is slower than without the plug-in");
  find(
      f, ADVICE,
      "models: MLA with 512 + 64 columns (DeepSeek-V2, V3, R1, Kimi-K2, GLM-4.7-Flash) or 256 + 64 "
      "(Mistral-Small-4) converted since 2025, cache of any type of llama.cpp. AMLA_LOG=1 makes "
      "the plug-in say what it takes and why not");
}

static void judge(findings *f, const arguments *a, const char *where) {
  static ggml_place place;
  char plugin[PATH_MAX];
  find_plugin(a->plugin, plugin);
  const bool found = find_ggml(where, &place);
  if (place.note[0] != '\0')
    find(f, ADVICE, "%s", place.note);
  if (!found) {
    find(f, PROBLEM, "%s", place.problem);
    return;
  }
  if (access(plugin, R_OK) != 0) {
    find(f, PROBLEM, "%s: %s; name it with --plugin", plugin, strerror(errno));
    return;
  }
  json_t *facts = ask(&place, plugin);
  judge_facts(f, &place, plugin, facts);
  json_decref(facts);
}

/* ---- The command ---- */

static void print_text(const findings *f) {
  size_t i;
  json_t *finding;
  json_array_foreach(f->list, i, finding)
      printf("%-8s %s\n", json_string_value(json_object_get(finding, "kind")),
             json_string_value(json_object_get(finding, "text")));
}

cli_exit cmd_doctor(int argc, char **argv) {
  arguments a = {.options = CLI_OPTIONS_INIT};
  char where[PATH_MAX];
  cli_parse("WHERE", doc, options, parse, children, argc, argv, &a);
  if (realpath(a.where, where) == NULL) {
    cli_error(argv[0], "%s: no such file or folder", a.where);
    return CLI_ERROR;
  }
  findings f = {json_array(), false};
  judge(&f, &a, where);
  if (a.options.json)
    cli_print_json(cli_json_pack("{s:b, s:O}", "ok", !f.problem, "findings", f.list));
  else
    print_text(&f);
  json_decref(f.list);
  if (f.problem)
    cli_error(argv[0], "llama.cpp would not use AMLA here");
  return f.problem ? CLI_ERROR : CLI_OK;
}
