/* SPDX-License-Identifier: Apache-2.0
 *
 * amla doctor: would llama.cpp use the plug-in libggml-amla.so, and if not, why? It does what llama.cpp does when it starts: loads
 * the ggml at hand with its backends and then the plug-in. Only public functions of ggml, looked up by name.
 */
#define _GNU_SOURCE 1 /* argp, dlfcn */
#include <dirent.h>
#include <dlfcn.h>
#include <libgen.h>
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "cli_commands.h"
#include "cli_options.h"
#include "cli_report.h"

typedef struct arguments {
  cli_options options;
  const char *where, *plugin;
} arguments;

static const char doc[] =
    "Tells whether llama.cpp would compute the attention of MLA models with AMLA, and if not, why. WHERE is the folder of its libggml "
    "libraries, or a program or library that lies there.\v"
    "Examples:\n"
    "  amla doctor ~/llama.cpp/build/bin\n"
    "  amla doctor --plugin ./libggml-amla.so node_modules/@node-llama-cpp/linux-x64/bins/linux-x64";

enum { KEY_PLUGIN = 'p' };

static const struct argp_option options[] = {
    {"plugin", KEY_PLUGIN, "FILE", 0, "libggml-amla.so (default: GGML_BACKEND_PATH, or where amla was built or installed)", 0}, {0}};
static const struct argp_child children[] = {{&cli_json_argp, 0, NULL, 0}, {0}};

static error_t parse(int key, char *text, struct argp_state *state) {
  arguments *a = state->input;
  switch (key) {
  case ARGP_KEY_INIT: state->child_inputs[0] = &a->options; return 0;
  case KEY_PLUGIN: a->plugin = text; return 0;
  case ARGP_KEY_ARG:
    if (a->where != NULL) argp_error(state, "extra argument '%s'", text);
    a->where = text;
    return 0;
  case ARGP_KEY_END:
    if (a->where == NULL) argp_error(state, "WHERE is missing: the folder of llama.cpp's libggml libraries");
    return 0;
  default: return ARGP_ERR_UNKNOWN;
  }
}

/* ---- Findings ----------------------------------------------------------------------------------------------------- */

typedef enum severity { FINE, ADVICE, PROBLEM } severity;

typedef struct findings {
  json_t *list;
  bool problem;
} findings;

__attribute__((format(printf, 3, 4))) static void find(findings *f, severity s, const char *format, ...) {
  static const char *const names[] = {"ok", "advice", "problem"};
  char text[PATH_MAX + 512];
  va_list values;
  va_start(values, format);
  vsnprintf(text, sizeof text, format, values);
  va_end(values);
  json_array_append_new(f->list, cli_json_pack("{s:s, s:o}", "kind", names[s], "text", cli_json_text(text)));
  f->problem |= s == PROBLEM;
}

/* ---- Files -------------------------------------------------------------------------------------------------------- */

static bool is_folder(const char *path) {
  struct stat s;
  return stat(path, &s) == 0 && S_ISDIR(s.st_mode);
}

/* The first entry that begins so; "" if none. */
static void entry_of(const char *folder, const char *prefix, char path[PATH_MAX]) {
  DIR *dir = opendir(folder);
  path[0] = '\0';
  for (const struct dirent *e = dir ? readdir(dir) : NULL; e != NULL && path[0] == '\0'; e = readdir(dir))
    if (strncmp(e->d_name, prefix, strlen(prefix)) == 0 && strstr(e->d_name, ".a") == NULL && snprintf(path, PATH_MAX, "%s/%s", folder, e->d_name) >= PATH_MAX) path[0] = '\0';
  if (dir != NULL) closedir(dir);
}

static void find_plugin(const char *given, char path[PATH_MAX]) {
  static const char *const places[] = {"ggml", ".", "../lib", "../lib/x86_64-linux-gnu", "../lib64"};
  char self[PATH_MAX] = "", place[PATH_MAX + 64];
  const char *variable = getenv("GGML_BACKEND_PATH");
  if (given == NULL && variable != NULL && *variable != '\0') given = variable;
  if (given != NULL) {
    if (realpath(given, path) == NULL) snprintf(path, PATH_MAX, "%s", given);
    return;
  }
  if (readlink("/proc/self/exe", self, sizeof self - 1) < 0) self[0] = '\0';
  const char *folder = dirname(self);
  for (size_t i = 0; i < sizeof places / sizeof *places; i++) {
    snprintf(place, sizeof place, "%s/%s/libggml-amla.so", folder, places[i]);
    if (realpath(place, path) != NULL) return;
  }
  snprintf(path, PATH_MAX, "libggml-amla.so");
}

/* ---- ggml --------------------------------------------------------------------------------------------------------- */

typedef struct ggml_functions {
  const char *(*ggml_version)(void);
  void (*ggml_log_set)(void (*callback)(int level, const char *text, void *data), void *data);
  void (*ggml_backend_load_all_from_path)(const char *folder);
  void *(*ggml_backend_load)(const char *path);
  size_t (*ggml_backend_dev_count)(void);
  void *(*ggml_backend_dev_get)(size_t index);
  const char *(*ggml_backend_dev_name)(void *device);
  const char *(*ggml_backend_dev_description)(void *device);
  int (*ggml_backend_dev_type)(void *device);
} ggml_functions;

static const char *look_up(void *library, ggml_functions *g) {
  const struct {
    const char *name;
    void *function;
  } wanted[] = {{"ggml_version", &g->ggml_version},
                {"ggml_log_set", &g->ggml_log_set},
                {"ggml_backend_load_all_from_path", &g->ggml_backend_load_all_from_path},
                {"ggml_backend_load", &g->ggml_backend_load},
                {"ggml_backend_dev_count", &g->ggml_backend_dev_count},
                {"ggml_backend_dev_get", &g->ggml_backend_dev_get},
                {"ggml_backend_dev_name", &g->ggml_backend_dev_name},
                {"ggml_backend_dev_description", &g->ggml_backend_dev_description},
                {"ggml_backend_dev_type", &g->ggml_backend_dev_type}};
  for (size_t i = 0; i < sizeof wanted / sizeof *wanted; i++) {
    void *address = dlsym(library, wanted[i].name);
    if (address == NULL) return wanted[i].name;
    memcpy(wanted[i].function, &address, sizeof address);
  }
  return NULL;
}

static void say_nothing(int level, const char *text, void *data) { (void)level, (void)text, (void)data; }

static bool open_ggml(findings *f, const char *folder, ggml_functions *g) {
  char path[PATH_MAX];
  entry_of(folder, "libggml.", path);
  if (path[0] == '\0') {
    find(f, PROBLEM, "%s has no libggml.*: a static build, which cannot take plug-ins (build with BUILD_SHARED_LIBS=ON), or another folder", folder);
    return false;
  }
  void *library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
  const char *missing = library ? look_up(library, g) : NULL;
  if (library == NULL) find(f, PROBLEM, "cannot load it: %s", dlerror());
  else if (missing != NULL) find(f, PROBLEM, "%s has no %s: older than autumn 2025, and not supported", path, missing);
  else find(f, FINE, "ggml %s in %s", g->ggml_version(), path);
  return library != NULL && missing == NULL;
}

enum { CPU = 0, GPU = 1, IGPU = 2 }; /* ggml's kinds of device */

static void judge_devices(findings *f, const ggml_functions *g) {
  bool has_cpu = false;
  for (size_t i = 0; i < g->ggml_backend_dev_count(); i++) {
    void *device = g->ggml_backend_dev_get(i);
    const int type = g->ggml_backend_dev_type(device);
    has_cpu |= type == CPU;
    find(f, type == GPU || type == IGPU ? ADVICE : FINE, "device %s: %s%s", g->ggml_backend_dev_name(device), g->ggml_backend_dev_description(device),
         type == GPU || type == IGPU ? ". Layers on a GPU keep their attention there: -ngl 0, or --device none, leaves them to the CPU and AMLA" : "");
  }
  if (!has_cpu) find(f, PROBLEM, "no CPU backend in this folder: AMLA computes on its threads and in its memory");
}

/* That llama.cpp kept V beside K, and AMLA wants it inside. */
static bool is_of_2025(const char *version) {
  int minor = 0, patch = 0;
  return sscanf(version, "0.%d.%d", &minor, &patch) == 2 && (minor < 9 || (minor == 9 && patch < 5));
}

static void judge(findings *f, const arguments *a, const char *folder) {
  ggml_functions g;
  char plugin[PATH_MAX];
  const char *variable = getenv("GGML_BACKEND_PATH");
  find_plugin(a->plugin, plugin);
  if (!open_ggml(f, folder, &g)) return;
  if (access(plugin, R_OK) != 0) {
    find(f, PROBLEM, "%s: no such file; name it with --plugin", plugin);
    return;
  }
  g.ggml_log_set(say_nothing, NULL);
  unsetenv("GGML_BACKEND_PATH"); /* once is enough */
  g.ggml_backend_load_all_from_path(folder);
  if (g.ggml_backend_load(plugin) == NULL) {
    find(f, PROBLEM, "ggml did not take %s; a line on stderr says why", plugin);
    return;
  }
  find(f, FINE, "it takes %s", plugin);
  if (is_of_2025(g.ggml_version())) find(f, PROBLEM, "it loads, but llama.cpp before 2026 caches V beside K: its attention stays with the CPU");
  judge_devices(f, &g);
  if (variable == NULL) find(f, ADVICE, "programs find it through the environment: export GGML_BACKEND_PATH=%s", plugin);
  find(f, ADVICE, "flash attention must be on (-fa on): `auto' sees a second device and switches it off");
  find(f, ADVICE, "models: MLA with 512 + 64 columns (DeepSeek-V2, V3, R1, Kimi-K2, GLM-4.7-Flash) converted since 2025, cache f16, bf16 or q8_0. "
                  "AMLA_LOG=1 makes the plug-in say what it takes and why not");
}

/* ---- The command -------------------------------------------------------------------------------------------------- */

static void print_text(const findings *f) {
  size_t i;
  json_t *finding;
  json_array_foreach(f->list, i, finding)
    printf("%-8s %s\n", json_string_value(json_object_get(finding, "kind")), json_string_value(json_object_get(finding, "text")));
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
  judge(&f, &a, is_folder(where) ? where : dirname(where));
  if (a.options.json) cli_print_json(cli_json_pack("{s:b, s:O}", "ok", !f.problem, "findings", f.list));
  else print_text(&f);
  json_decref(f.list);
  if (f.problem) cli_error(argv[0], "llama.cpp would not use AMLA here");
  return f.problem ? CLI_ERROR : CLI_OK;
}
