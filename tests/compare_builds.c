/* SPDX-License-Identifier: Apache-2.0
 *
 * Compares two builds of the library bit for bit: the same random problems through both, by the
 * specification and by the CPU backend under every instruction set that runs here, in all rescale
 * modes. For changes that may change no bit.
 *
 *     compare_builds OLD/libamla.so NEW/libamla.so [PROBLEMS [SEED]]
 *
 * --spoil before the arguments flips a bit of each result of NEW, to show that it would be seen.
 * Exit status: 0 all the same, 1 something is not, 2 usage.
 */
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "harness/dataset.h"
#include "harness/names.h"
#include "harness/random_problem.h"

typedef struct build {
  amla_status (*create)(amla_plan **, const amla_problem *, const amla_options *, amla_detail *);
  amla_status (*run)(const amla_plan *, const amla_tensors *, void *, size_t, amla_detail *);
  size_t (*scratch_bytes)(const amla_plan *);
  void (*destroy)(amla_plan *);
} build;

/* What a build made of a problem. */
typedef struct result {
  amla_status status;
  amla_detail detail;
  void *out, *lse;
} result;

static const int split_options[] = {AMLA_SPLIT_BY_LENGTH, AMLA_SPLIT_AUTO, 1, 200};

enum { MAX_ENGINES = 16, MOST_SHOWN = 20 };
static int n_same[MAX_ENGINES], n_different[MAX_ENGINES]; /* by instruction set; 0: ref */
static int all_different, all_refused;

static const char *engine_name(int e) { return e == 0 ? "ref" : amla_isa_name((amla_isa)e); }
static int is_engine(int e) { return e < MAX_ENGINES && amla_isa_name((amla_isa)e) != NULL; }

__attribute__((noreturn)) static void stop(const char *what, const char *why) {
  fprintf(stderr, "compare_builds: %s: %s\n", what, why);
  exit(2);
}

static void find(void *library, const char *name, void *function) {
  void *at = dlsym(library, name);
  if (at == NULL)
    stop(name, dlerror());
  memcpy(function, &at, sizeof at);
}

/* RTLD_LOCAL: each library finds its own functions. */
static build load(const char *path) {
  build b;
  void *library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
  if (library == NULL)
    stop(path, dlerror());
  find(library, "amla_plan_create", &b.create);
  find(library, "amla_plan_run", &b.run);
  find(library, "amla_plan_scratch_bytes", &b.scratch_bytes);
  find(library, "amla_plan_destroy", &b.destroy);
  return b;
}

static void *copy(const void *from, size_t bytes) {
  void *to = malloc(bytes + 1);
  if (to == NULL)
    stop("copy", "out of memory");
  return memcpy(to, from, bytes);
}

static result run_on(const build *b, harness_dataset *data, const amla_options *options) {
  result r = {0};
  amla_plan *plan;
  harness_reset_outputs(data);
  r.status = b->create(&plan, &data->problem, options, &r.detail);
  if (r.status == AMLA_OK) {
    const size_t bytes = b->scratch_bytes(plan);
    void *scratch = malloc(bytes + 1);
    r.status = b->run(plan, &data->tensors, scratch, bytes, &r.detail);
    free(scratch);
    b->destroy(plan);
  }
  r.out = copy(data->out, data->tensors.out_bytes);
  r.lse = copy(data->lse, data->tensors.lse_bytes);
  return r;
}

static void compare(const build builds[2], harness_dataset *data, const amla_options *options,
                    const char *problem, int spoil) {
  result old = run_on(&builds[0], data, options), new = run_on(&builds[1], data, options);
  if (spoil && data->tensors.out_bytes > 0)
    *(unsigned char *)new.out ^= 1;
  const int same =
      old.status == new.status &&memcmp(old.out, new.out, data->tensors.out_bytes) == 0 &&
      memcmp(old.lse, new.lse, data->tensors.lse_bytes) == 0;
  const int e = options->backend == AMLA_BACKEND_REF ? 0 : (int)options->isa;
  n_same[e] += same;
  n_different[e] += !same;
  all_refused += same && old.status != AMLA_OK;
  all_different += !same;
  if (!same && all_different <= MOST_SHOWN)
    printf("'%s' %s %s threads=%d split_tokens=%d: %s\n", problem, engine_name(e),
           amla_rescale_name(options->rescale), options->threads, options->split_tokens,
           old.status == new.status ? "other bits" : "another status");
  free(old.out), free(old.lse), free(new.out), free(new.lse);
}

/* Does that instruction set run here, and no lesser one in its place? */
static int is_run(amla_isa isa) {
  amla_plan *plan;
  amla_plan_info info = AMLA_PLAN_INFO_INIT;
  amla_problem p = AMLA_PROBLEM_INIT;
  amla_options o = AMLA_OPTIONS_INIT;
  p.scale = 1.0f, p.h_q = 1, p.sk = 1;
  o.backend = AMLA_BACKEND_CPU, o.isa = isa, o.threads = 1;
  if (amla_plan_create(&plan, &p, &o, NULL) != AMLA_OK)
    return 0;
  amla_plan_query(plan, &info, NULL);
  amla_plan_destroy(plan);
  return info.isa == isa;
}

static void compare_all(const build builds[2], const char *problem, uint64_t *seed, int spoil) {
  harness_case c;
  harness_dataset data;
  char error[256];
  if (harness_parse_problem(problem, &c, error, sizeof error) != 0 ||
      harness_generate(&c, &data, error, sizeof error) != 0)
    stop(problem, error);
  amla_options o = AMLA_OPTIONS_INIT;
  harness_take_options(&o, &c.options);
  o.threads = harness_random_size(seed, 41);
  o.split_tokens = split_options[harness_random(seed) % 4];
  for (int e = 0; is_engine(e); e++) {
    o.backend = e == 0 ? AMLA_BACKEND_REF : AMLA_BACKEND_CPU;
    o.isa = (amla_isa)e;
    if (e > 0 && !is_run(o.isa))
      continue;
    for (int mode = AMLA_RESCALE_LAZY; amla_rescale_name((amla_rescale)mode) != NULL; mode++) {
      o.rescale = (amla_rescale)mode;
      compare(builds, &data, &o, problem, spoil);
    }
  }
  harness_free(&data);
}

int main(int argc, char **argv) {
  const int spoil = argc > 1 && strcmp(argv[1], "--spoil") == 0;
  char **at = argv + 1 + spoil;
  if (argc - spoil < 3)
    stop("usage", "compare_builds [--spoil] OLD/libamla.so NEW/libamla.so [PROBLEMS [SEED]]");
  const build builds[2] = {load(at[0]), load(at[1])};
  const long n = at[2] ? strtol(at[2], NULL, 10) : 2000;
  uint64_t seed = at[2] && at[3] ? strtoull(at[3], NULL, 10) : 1;
  for (long i = 0; i < n; i++) {
    char problem[HARNESS_RANDOM_PROBLEM];
    harness_random_problem(&seed, problem);
    compare_all(builds, problem, &seed, spoil);
  }
  printf("%ld problems in all rescale modes; refused by both: %d results\n", n, all_refused);
  for (int e = 0; is_engine(e); e++)
    printf("%-7s %6d the same, %d different\n", engine_name(e), n_same[e], n_different[e]);
  return all_different > 0 || n_same[0] == 0;
}
