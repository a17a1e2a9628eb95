/* SPDX-License-Identifier: Apache-2.0
 *
 * Finding libggml. See find_ggml.h.
 */
#define _GNU_SOURCE 1 /* memmem */
#include "find_ggml.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#define STATIC_BUILD "a static build, which cannot take plug-ins (build with BUILD_SHARED_LIBS=ON)"

__attribute__((format(printf, 2, 3))) static bool fail(ggml_place *place, const char *format, ...) {
  va_list values;
  va_start(values, format);
  vsnprintf(place->problem, sizeof place->problem, format, values);
  va_end(values);
  return false;
}

static const char *name_of(const char *path) {
  const char *slash = strrchr(path, '/');
  return slash != NULL ? slash + 1 : path;
}

static bool begins_with(const char *text, const char *prefix) {
  return strncmp(text, prefix, strlen(prefix)) == 0;
}

static bool ends_with(const char *text, const char *suffix) {
  const size_t n = strlen(text), m = strlen(suffix);
  return n >= m && strcmp(text + n - m, suffix) == 0;
}

static bool is_library_name(const char *name) {
  return ends_with(name, ".so") || strstr(name, ".so.") != NULL;
}

/* ---- Other programs ---- */

static void become(const char *const *arguments, const char *variable, bool errors, int output) {
  if (variable != NULL)
    setenv(variable, "1", true);
  dup2(output, STDOUT_FILENO);
  if (errors)
    dup2(output, STDERR_FILENO);
  execvp(arguments[0], (char *const *)(size_t)arguments);
  _exit(127);
}

int find_ggml_run(const char *const *arguments, const char *variable, bool errors, char *text,
                  size_t text_bytes) {
  int ends[2], status = -1;
  char rest[4096];
  size_t n = 0;
  text[0] = '\0';
  if (pipe(ends) != 0)
    return -1;
  const pid_t child = fork();
  if (child == 0)
    become(arguments, variable, errors, ends[1]);
  close(ends[1]);
  for (ssize_t got; child > 0; n += (size_t)got) {
    const size_t room = text_bytes - 1 - n;
    got = room > 0 ? read(ends[0], text + n, room) : read(ends[0], rest, sizeof rest);
    if (got <= 0)
      break;
    if (room == 0)
      got = 0;
  }
  close(ends[0]);
  text[n] = '\0';
  if (child < 0 || waitpid(child, &status, 0) != child)
    return -1;
  return WIFEXITED(status) && WEXITSTATUS(status) != 127 ? WEXITSTATUS(status) : -1;
}

/* ---- A file ---- */

/* The dynamic linker that runs this program. */
static bool find_linker(char path[PATH_MAX]) {
  char line[PATH_MAX + 256];
  bool found = false;
  FILE *maps = fopen("/proc/self/maps", "r");
  while (maps != NULL && !found && fgets(line, sizeof line, maps) != NULL) {
    const char *file = strchr(line, '/');
    if (file == NULL || !begins_with(name_of(file), "ld-"))
      continue;
    snprintf(path, PATH_MAX, "%.*s", (int)strcspn(file, "\n"), file);
    found = true;
  }
  if (maps != NULL)
    fclose(maps);
  return found;
}

/* A line of the linker's list: "libggml.so.0 => /usr/lib/libggml.so.0 (0x...)". The path is "" if
 * the line ends with "=> not found". */
static bool read_line(const char *line, char name[256], char path[PATH_MAX]) {
  if (sscanf(line, " %255s => %4095[^\n]", name, path) != 2)
    return false;
  char *address = strstr(path, " (0x");
  *(address != NULL ? address : path) = '\0';
  return true;
}

typedef enum answer { NO, YES, NOT_FOUND } answer;

static answer is_among_needed(const char *file, const char *list, ggml_place *place) {
  char name[256], path[PATH_MAX], lost[256] = "";
  for (const char *line = list; *line != '\0'; line += strcspn(line, "\n"), line += *line == '\n') {
    if (!read_line(line, name, path))
      continue;
    if (begins_with(name, "libggml.") && realpath(path, place->library) != NULL)
      return YES;
    if (path[0] == '\0' && lost[0] == '\0')
      memcpy(lost, name, sizeof lost);
  }
  if (lost[0] == '\0')
    return NO;
  fail(place, "%s needs %s, which the dynamic linker does not find (LD_LIBRARY_PATH?)", file, lost);
  return NOT_FOUND;
}

typedef struct image { /* of a file */
  void *data;
  size_t bytes; /* 0: there is none */
} image;

static image map_file(const char *path) {
  struct stat s;
  image m = {NULL, 0};
  const int file = open(path, O_RDONLY | O_CLOEXEC);
  if (file < 0)
    return m;
  if (fstat(file, &s) == 0 && S_ISREG(s.st_mode) && s.st_size > 0)
    m.bytes = (size_t)s.st_size;
  if (m.bytes > 0)
    m.data = mmap(NULL, m.bytes, PROT_READ, MAP_PRIVATE, file, 0);
  if (m.data == MAP_FAILED)
    m = (image){NULL, 0};
  close(file);
  return m;
}

static void unmap(image m) {
  if (m.bytes > 0)
    munmap(m.data, m.bytes);
}

static bool has_text(const char *path, const char *text) {
  const image m = map_file(path);
  const bool found = m.bytes > 0 && memmem(m.data, m.bytes, text, strlen(text)) != NULL;
  unmap(m);
  return found;
}

/* Wheels hold no links: there a library and its other name are two files. */
static bool are_copies(const char *path_a, const char *path_b) {
  const image a = map_file(path_a), b = map_file(path_b);
  const bool same = a.bytes > 0 && a.bytes == b.bytes && memcmp(a.data, b.data, a.bytes) == 0;
  unmap(a), unmap(b);
  return same;
}

static bool is_elf(const char *path) {
  const image m = map_file(path);
  const bool is = m.bytes > 4 && memcmp(m.data, "\177ELF", 4) == 0;
  unmap(m);
  return is;
}

static bool find_in_list(const char *path, const char *list, int code, ggml_place *place) {
  const answer needed = is_among_needed(path, list, place);
  if (needed != NO)
    return needed == YES;
  snprintf(place->library, sizeof place->library, "%s", path);
  if (is_library_name(name_of(path)) && has_text(path, "ggml_backend_load_all"))
    return true; /* inside */
  /* An operation of that fork alone. */
  if (has_text(path, "MOE_FUSED_UP_GATE"))
    return fail(place, "%s has its ggml inside: " FIND_GGML_IK, path);
  if (code == 0 || list[0] == '\0' || strstr(list, "statically") != NULL)
    return fail(place, "%s uses no shared libggml: " STATIC_BUILD ", or not a program of ggml's",
                path);
  return fail(place, "%s cannot be examined: %.*s", path, (int)strcspn(list, "\n"), list);
}

static bool find_of_file(const char *path, ggml_place *place) {
  static char list[1 << 16];
  char linker[PATH_MAX];
  if (access(path, R_OK) != 0)
    return fail(place, "%s cannot be read: %s", path, strerror(errno));
  if (!is_elf(path))
    return fail(place,
                "%s is neither a program nor a shared library (a script? name what it starts)",
                path);
  if (begins_with(name_of(path), "libggml.")) {
    snprintf(place->library, sizeof place->library, "%s", path);
    return true;
  }
  if (!find_linker(linker))
    return fail(place, "the dynamic linker is not to be found: name the libggml instead of %s",
                path);
  const char *const command[] = {linker, path, NULL};
  /* Lists; runs nothing of it. */
  const int code = find_ggml_run(command, "LD_TRACE_LOADED_OBJECTS", true, list, sizeof list);
  return find_in_list(path, list, code, place);
}

/* ---- A folder ---- */

typedef struct entries {
  struct dirent **list;
  int n;
} entries;

static void free_entries(entries *e) {
  for (int i = 0; i < e->n; i++)
    free(e->list[i]);
  free(e->list);
}

/* The first libggml by name; another one beside it, which is not the same file, is noted. */
static bool find_beside(const char *folder, const entries *e, ggml_place *place) {
  char path[2 * PATH_MAX], real[PATH_MAX], first[NAME_MAX + 1] = "";
  for (int i = 0; i < e->n; i++) {
    const char *name = e->list[i]->d_name;
    if (!begins_with(name, "libggml.") || ends_with(name, ".a"))
      continue;
    snprintf(path, sizeof path, "%s/%s", folder, name);
    if (realpath(path, real) == NULL)
      continue;
    if (first[0] == '\0') {
      snprintf(place->library, sizeof place->library, "%s", real);
      snprintf(first, sizeof first, "%s", name);
    } else if (place->note[0] == '\0' && !are_copies(place->library, real)) {
      snprintf(
          place->note, sizeof place->note,
          "%s holds another ggml too, %s; this is about %s. Name the file to ask about the other",
          folder, name, first);
    }
  }
  return first[0] != '\0';
}

/* The libggml of the first program or library that uses one. */
static bool find_through(const char *folder, const entries *e, ggml_place *place) {
  char path[2 * PATH_MAX];
  for (int i = 0; i < e->n; i++) {
    const char *name = e->list[i]->d_name;
    snprintf(path, sizeof path, "%s/%s", folder, name);
    const bool looks_so = begins_with(name, "llama") || begins_with(name, "libllama");
    if (!looks_so && !(is_library_name(name) && has_text(path, "ggml_backend_load_all")))
      continue;
    if (!find_of_file(path, place))
      continue;
    snprintf(place->note, sizeof place->note, "%s has no libggml; this is about the one of %s",
             folder, name);
    return true;
  }
  return false;
}

static bool find_in_folder(const char *folder, ggml_place *place) {
  entries e = {NULL, 0};
  e.n = scandir(folder, &e.list, NULL, alphasort);
  if (e.n < 0)
    return fail(place, "%s cannot be read: %s", folder, strerror(errno));
  const bool found = find_beside(folder, &e, place) || find_through(folder, &e, place);
  free_entries(&e);
  if (found || place->problem[0] != '\0')
    return found; /* what was wrong with the last one */
  return fail(place,
              "%s has no libggml.* and nothing that uses one: " STATIC_BUILD ", or another folder",
              folder);
}

bool find_ggml(const char *where, ggml_place *place) {
  struct stat s;
  *place = (ggml_place){.note = ""};
  const bool is_folder = stat(where, &s) == 0 && S_ISDIR(s.st_mode);
  snprintf(place->folder, sizeof place->folder, "%s", where);
  if (is_folder)
    return find_in_folder(where, place);
  place->folder[name_of(where) - where] = '\0';
  return find_of_file(where, place);
}
