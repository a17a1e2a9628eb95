/* SPDX-License-Identifier: Apache-2.0
 *
 * What a caller's floating-point environment and process may be: rounding modes and traps reach no
 * result and are left as they were, also where a callback never returns; a forked child computes,
 * and gets the same bits.
 */
#define _GNU_SOURCE /* feenableexcept */
#include "test_run.h"

#include <errno.h>
#include <fenv.h>
#include <omp.h>
#include <sched.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "src/cpu/l2_cache.h"
#include "src/default_threads.h"

/* Threads share its splits. */
static const char *const shared_out = "b=1,h=128,sk=3000,dqk=64,dv=48,page=16";

static void expect_same_bits(const harness_dataset *a, const harness_dataset *b, const char *what) {
  for (int64_t row = 0; row < n_rows(a); row++)
    if (!same_row(a, row, b, row))
      fail_msg("%s: row %lld has other bits", what, (long long)row);
}

/* ---- The L2 of a thread ---- */

/* Writes folder/cache/index2/NAME, or 0 to remove it. */
static void put_cache_file(const char *folder, const char *name, const char *text) {
  char path[256];
  snprintf(path, sizeof path, "%s/cache/index2/%s", folder, name);
  remove(path);
  if (text == NULL)
    return;
  FILE *file = fopen(path, "w");
  assert_non_null(file);
  fputs(text, file);
  fclose(file);
}

/* One CPU's folder, as Linux has it. */
static void an_l2_is_shared_by_its_cpus(void **state) {
  (void)state;
  static const struct {
    const char *level, *type, *size, *list;
    int64_t bytes;
  } rows[] = {{"2\n", "Unified\n", "512K\n", "0\n", 512 << 10},
              {"2\n", "Unified\n", "512K\n", "0,64\n", 256 << 10},
              {"2\n", "Data\n", "2M\n", "4-7\n", 512 << 10},
              {"2\n", "Unified\n", "786432\n", "0-1,8\n", 256 << 10},
              {"2\n", "Unified\n", "512K\n", NULL, 512 << 10},
              {"2\n", "Unified\n", NULL, "0\n", 0},
              {"2\n", "Instruction\n", "512K\n", "0\n", 0},
              {"3\n", "Unified\n", "32M\n", "0-7\n", 0},
              {NULL, NULL, NULL, NULL, 0}};
  const char *base = getenv("TMPDIR");
  char folder[192], path[256];
  snprintf(folder, sizeof folder, "%s/amla_l2_XXXXXX", base != NULL ? base : P_tmpdir);
  assert_non_null(mkdtemp(folder));
  snprintf(path, sizeof path, "%s/cache", folder);
  assert_int_equal(mkdir(path, 0700), 0);
  snprintf(path, sizeof path, "%s/cache/index2", folder);
  assert_int_equal(mkdir(path, 0700), 0);
  for (int i = 0; i < LENGTH(rows); i++) {
    put_cache_file(folder, "level", rows[i].level);
    put_cache_file(folder, "type", rows[i].type);
    put_cache_file(folder, "size", rows[i].size);
    put_cache_file(folder, "shared_cpu_list", rows[i].list);
    assert_int_equal(amla_l2_of_cpu(folder), rows[i].bytes);
  }
  assert_int_equal(rmdir(path), 0);
  snprintf(path, sizeof path, "%s/cache", folder);
  assert_int_equal(rmdir(path), 0);
  assert_int_equal(rmdir(folder), 0);
}

static void the_environment_overrides_the_l2(void **state) {
  (void)state;
  amla_plan_info info = AMLA_PLAN_INFO_INIT;
  setenv("AMLA_L2_BYTES", "345678", 1);
  fixture f = fixture_create("b=1,h=4,sk=20,dqk=24,dv=16", NULL);
  unsetenv("AMLA_L2_BYTES");
  assert_int_equal(amla_plan_query(f.plan, &info, NULL), AMLA_OK);
  assert_int_equal(info.l2_bytes, 345678);
  fixture_free(&f);
  f = fixture_create("b=1,h=4,sk=20,dqk=24,dv=16", NULL);
  assert_int_equal(amla_plan_query(f.plan, &info, NULL), AMLA_OK);
  assert_int_equal(info.l2_bytes, amla_l2_of_system());
  fixture_free(&f);
}

/* ---- How many threads by default ---- */

/* A tree of files such as Linux has: "NAME=CONTENT", in rising order of folders. */
static void put_file(const char *root, const char *name_and_content) {
  char path[1024];
  const char *content = strchr(name_and_content, '=') + 1;
  snprintf(path, sizeof path, "%s%.*s", root, (int)(content - 1 - name_and_content),
           name_and_content);
  for (char *at = path + strlen(root) + 1; (at = strchr(at, '/')) != NULL; *at++ = '/') {
    *at = '\0';
    assert_true(mkdir(path, 0700) == 0 || errno == EEXIST);
  }
  FILE *file = fopen(path, "w");
  assert_non_null(file);
  fprintf(file, "%s\n", content);
  assert_int_equal(fclose(file), 0);
}

#define CPU(n, list) "/sys/devices/system/cpu/cpu" #n "/topology/thread_siblings_list=" list
#define IN_GROUP(line) "/proc/self/cgroup=" line
#define V2(folder, max) "/sys/fs/cgroup" folder "/cpu.max=" max
#define V1(folder, quota, period)                                                                  \
  "/sys/fs/cgroup/cpu" folder "/cpu.cfs_quota_us=" quota,                                          \
      "/sys/fs/cgroup/cpu" folder "/cpu.cfs_period_us=" period
#define FOUR_CORES                                                                                 \
  CPU(0, "0-1"), CPU(1, "0-1"), CPU(2, "2,6"), CPU(6, "2,6"), CPU(3, "3"), CPU(4, "4")

/* CPUs 0 to 6 of which the lowest bits are allowed. */
static void a_default_is_what_the_system_leaves(void **state) {
  (void)state;
  static const struct {
    uint64_t allowed;
    int threads;
    const char *files[16];
  } rows[] = {
      {0x0f, 4, {NULL}},       /* nothing is said */
      {0x0f, 3, {FOUR_CORES}}, /* CPUs 0 and 1 are one core */
      {0x5f, 4, {FOUR_CORES}}, /* and so are 2 and 6 */
      {0x42, 2, {FOUR_CORES}}, /* a core whose first CPU is not allowed */
      {0x02, 1, {FOUR_CORES}}, /* pinned */
      {0xff, 3, {IN_GROUP("0::/a/b"), V2("/a/b", "300000 100000")}},
      {0xff, 2, {IN_GROUP("0::/a/b"), V2("/a/b", "300000 100000"), V2("/a", "250000 100000")}},
      {0xff, 5, {IN_GROUP("0::/a/b"), V2("/a/b", "max 100000"), V2("", "500000 100000")}},
      {0xff, 1, {IN_GROUP("0::/"), V2("", "50000 100000")}},
      {0xff, 8, {IN_GROUP("0::/"), V2("", "max 100000")}},
      {0xff, 8, {IN_GROUP("0::/"), V2("", "")}},
      {0xff, 3, {IN_GROUP("5:memory:/m\n4:cpuacct,cpu:/d/c\n0::/"), V1("/d/c", "30000", "10000")}},
      {0xff, 6, {IN_GROUP("4:cpu,cpuacct:/host/path"), V1("", "600000", "100000")}},
      {0xff, 8, {IN_GROUP("4:cpu:/"), V1("", "-1", "100000")}},
      {0xff, 8, {IN_GROUP("4:cpuset:/"), V1("", "100000", "100000")}}, /* another controller */
      {0xff, 8, {IN_GROUP("no colons"), V2("", "100000 100000")}},
      {0x07, 2, {FOUR_CORES, IN_GROUP("0::/"), V2("", "900000 100000")}},
  };
  for (int i = 0; i < LENGTH(rows); i++) {
    const char *base = getenv("TMPDIR");
    char root[192], command[256];
    const amla_cpu_set allowed = {{rows[i].allowed}};
    snprintf(root, sizeof root, "%s/amla_root_XXXXXX", base != NULL ? base : P_tmpdir);
    assert_non_null(mkdtemp(root));
    for (int f = 0; rows[i].files[f] != NULL; f++)
      put_file(root, rows[i].files[f]);
    const int threads = amla_cores_left(root, &allowed);
    snprintf(command, sizeof command, "rm -r '%s'", root);
    assert_int_equal(system(command), 0);
    if (threads != rows[i].threads)
      fail_msg("row %d: %d threads instead of %d", i, threads, rows[i].threads);
  }
}

static int32_t threads_of_a_plan(void) {
  amla_plan_info info = AMLA_PLAN_INFO_INIT;
  fixture f = fixture_create("b=1,h=4,sk=20,dqk=24,dv=16", NULL);
  assert_int_equal(amla_plan_query(f.plan, &info, NULL), AMLA_OK);
  fixture_free(&f);
  return info.threads;
}

/* The thread that makes the plan may run on one CPU only; variables go before that. */
static void plans_follow_affinity_and_variables(void **state) {
  (void)state;
  cpu_set_t before, one;
  int first = 0;
  unsetenv("OMP_NUM_THREADS");
  assert_int_equal(sched_getaffinity(0, sizeof before, &before), 0);
  while (!CPU_ISSET(first, &before))
    first++;
  CPU_ZERO(&one);
  CPU_SET(first, &one);
  assert_int_equal(sched_setaffinity(0, sizeof one, &one), 0);
  assert_int_equal(threads_of_a_plan(), 1);
  setenv("OMP_NUM_THREADS", "7", 1);
  assert_int_equal(threads_of_a_plan(), omp_get_max_threads()); /* OpenMP has read it before */
  setenv("AMLA_NUM_THREADS", "5", 1);
  assert_int_equal(threads_of_a_plan(), 5);
  unsetenv("AMLA_NUM_THREADS");
  unsetenv("OMP_NUM_THREADS");
  assert_int_equal(sched_setaffinity(0, sizeof before, &before), 0);
  assert_in_range(threads_of_a_plan(), 1, omp_get_max_threads());
}

/* ---- Forks ---- */

/* Of a process with one thread: it may form a team of its own. */
static void a_child_of_one_thread_has_its_threads(void **state) {
  (void)state;
  if (TEST_SANITIZED || TEST_EMULATED) /* the emulator has threads of its own */
    skip();
  const amla_options options =
      make_options(AMLA_BACKEND_CPU, AMLA_RESCALE_LAZY, AMLA_ISA_AUTO, 2, 0);
  harness_case c;
  amla_plan *plan = NULL;
  char error[256], text[256];
  int status = -1;
  assert_int_equal(harness_parse_problem(shared_out, &c, error, sizeof error), 0);
  assert_int_equal(amla_plan_create(&plan, &c.problem, &options, NULL), AMLA_OK);
  const pid_t child = fork();
  assert_true(child >= 0);
  if (child == 0) {
    alarm(60);
    amla_plan_describe(plan, text, sizeof text);
    fixture f = fixture_create(shared_out, &options);
    _exit(fixture_run(&f) == AMLA_OK && strstr(text, ", 2 threads") != NULL ? 0 : 1);
  }
  assert_int_equal(waitpid(child, &status, 0), child);
  assert_int_equal(status, 0);
  amla_plan_destroy(plan);
}

static bool says(const amla_plan *plan, const char *words) {
  char text[256];
  amla_plan_describe(plan, text, sizeof text);
  return strstr(text, words) != NULL;
}

/* Runs it in a forked child and compares with `want`: 0, or what went wrong. A child that
 * hangs is killed. */
static int run_in_child(fixture *f, const harness_dataset *want, const char *words) {
  int status = -1;
  const pid_t child = fork();
  assert_true(child >= 0);
  if (child == 0) {
    alarm(60);
    harness_reset_outputs(&f->data);
    if (fixture_run(f) != AMLA_OK)
      _exit(1);
    for (int64_t row = 0; row < n_rows(want); row++)
      if (!same_row(want, row, &f->data, row))
        _exit(2);
    _exit(says(f->plan, words) ? 0 : 3);
  }
  assert_int_equal(waitpid(child, &status, 0), child);
  return status;
}

static int32_t pool_calls;

static void run_in_order(void *context, int32_t n, void (*task)(void *argument, int32_t i),
                         void *argument) {
  ++*(int32_t *)context;
  for (int32_t i = 0; i < n; i++)
    task(argument, i);
}

static void a_forked_child_computes(void **state) {
  (void)state;
  if (TEST_SANITIZED)
    skip(); /* ThreadSanitizer follows no fork of a process with threads */
  const amla_options options =
      make_options(AMLA_BACKEND_CPU, AMLA_RESCALE_LAZY, AMLA_ISA_AUTO, 2, 0);
  amla_options pooled = options, single = options;
  pooled.parallel = run_in_order;
  pooled.parallel_context = &pool_calls;
  single.threads = 1;
  fixture alone = fixture_create(shared_out, &single), team = fixture_create(shared_out, &options),
          pool = fixture_create(shared_out, &pooled);
  assert_int_equal(fixture_run(&alone), AMLA_OK);
  assert_int_equal(fixture_run(&team), AMLA_OK);
  assert_true(says(team.plan, ", 2 threads"));
  assert_int_equal(run_in_child(&team, &alone.data, ", one thread: forked"), 0);
  assert_int_equal(run_in_child(&pool, &alone.data, ", 2 threads"), 0);
  assert_int_equal(run_in_child(&alone, &alone.data, ", 1 thread"), 0);
  assert_true(says(team.plan, ", 2 threads"));
  assert_int_equal(pool_calls, 0); /* the child's are the child's */
  fixture_free(&alone);
  fixture_free(&team);
  fixture_free(&pool);
}

/* ---- Rounding modes ---- */

static void check_rounding_mode(const amla_options *base) {
  const char *problem = "b=1,h=17,sk=700,dqk=24,dv=16";
  harness_dataset nearest, upward;
  generate(&nearest, problem);
  generate(&upward, problem);
  run(&nearest, problem, base);
  assert_int_equal(fesetround(FE_UPWARD), 0);
  run(&upward, problem, base);
  assert_int_equal(fegetround(), FE_UPWARD);
  assert_int_equal(fesetround(FE_TONEAREST), 0);
  expect_same_bits(&nearest, &upward, describe_options(base));
  harness_free(&nearest);
  harness_free(&upward);
}

static void the_callers_rounding_mode_does_not_change_a_bit(void **state) {
  (void)state;
  for_each_engine(check_rounding_mode);
}

/* A pool whose threads round upward: in both steps, and they still do behind each task. */
static void run_upward(void *context, int32_t n, void (*task)(void *argument, int32_t i),
                       void *argument) {
  const int callers = fegetround();
  fesetround(FE_UPWARD);
  for (int32_t i = 0; i < n; i++) {
    task(argument, i);
    assert_int_equal(fegetround(), FE_UPWARD);
  }
  fesetround(callers);
  ++*(int32_t *)context;
}

static void check_pool(const amla_options *base) {
  if (base->backend != AMLA_BACKEND_CPU)
    return;
  harness_dataset ours, theirs;
  amla_options options = *base;
  int32_t calls = 0;
  generate(&ours, shared_out);
  generate(&theirs, shared_out);
  run(&ours, shared_out, base);
  options.threads = 3; /* so that groups are shared, and there is a second step */
  options.parallel = run_upward;
  options.parallel_context = &calls;
  run(&theirs, shared_out, &options);
  assert_int_equal(calls, 2);
  expect_same_bits(&ours, &theirs, describe_options(&options));
  harness_free(&ours);
  harness_free(&theirs);
}

static void a_pools_rounding_mode_does_not_change_a_bit(void **state) {
  (void)state;
  for_each_engine(check_pool);
}

static void merge_has_one_rounding_mode(void **state) {
  (void)state;
  static const int modes[] = {FE_TONEAREST, FE_UPWARD, FE_DOWNWARD, FE_TOWARDZERO};
  float o[3 * 5], lse_parts[3], out[LENGTH(modes)][5], lse[LENGTH(modes)];
  uint64_t seed = 5;
  for (int i = 0; i < LENGTH(o); i++)
    o[i] = random_normal(&seed);
  for (int i = 0; i < 3; i++)
    lse_parts[i] = random_normal(&seed);
  for (int m = 0; m < LENGTH(modes); m++) {
    fesetround(modes[m]);
    const amla_status status =
        amla_merge(3, 1, 5, AMLA_LSE_NATURAL, o, sizeof o, lse_parts, sizeof lse_parts, out[m],
                   sizeof out[m], &lse[m], sizeof lse[m], NULL);
    const int after = fegetround();
    fesetround(FE_TONEAREST);
    assert_int_equal(status, AMLA_OK);
    assert_int_equal(after, modes[m]);
    assert_memory_equal(out[m], out[0], sizeof out[0]);
    assert_memory_equal(&lse[m], &lse[0], sizeof lse[0]);
  }
}

/* ---- Traps ---- */

/* Every function that computes, with every exception trapped: a signal ends this test. */
static void check_traps(const amla_options *base) {
  static const float scales[] = {3e38f, 0.1f, -0.1f, NAN, 1e-45f};
  harness_dataset d;
  amla_plan *plans[LENGTH(scales)] = {NULL}, *plan = NULL;
  amla_status statuses[LENGTH(scales)], created, ran, merged;
  const float o[2] = {1, 3}, parts[2] = {0.1f, -100.0f};
  float out, lse;
  char text[256];
  generate(&d, "b=2,sq=2,h=20,sk=700,dqk=24,dv=16,dist=rising,sinks=1,len=ragged");
  void *scratch = malloc(1 << 24);
  assert_non_null(scratch);
  const float scale = d.problem.scale;

  feenableexcept(FE_ALL_EXCEPT);
  for (int i = 0; i < LENGTH(scales); i++) {
    d.problem.scale = scales[i];
    statuses[i] = amla_plan_create(&plans[i], &d.problem, base, NULL);
  }
  d.problem.scale = scale;
  created = amla_plan_create(&plan, &d.problem, base, NULL);
  ran = amla_plan_run(plan, &d.tensors, scratch, 1 << 24, NULL);
  amla_plan_describe(plan, text, sizeof text);
  merged = amla_merge(2, 1, 1, AMLA_LSE_NATURAL, o, sizeof o, parts, sizeof parts, &out, sizeof out,
                      &lse, sizeof lse, NULL);
  const int trapped = fegetexcept();
  fedisableexcept(FE_ALL_EXCEPT);

  assert_int_equal(trapped, FE_ALL_EXCEPT);
  for (int i = 0; i < LENGTH(scales); i++)
    assert_int_equal(statuses[i], i % 3 == 0 ? AMLA_INVALID_ARGUMENT : AMLA_OK);
  assert_true(created == AMLA_OK && ran == AMLA_OK && merged == AMLA_OK);
  for (int i = 0; i < LENGTH(scales); i++)
    amla_plan_destroy(plans[i]);
  amla_plan_destroy(plan);
  free(scratch);
  harness_free(&d);
}

/* One token into a cache of fp8_e4m3, on two threads where that is worth while. */
static amla_status write_token(float kv_scale, const float *latent, char *kv) {
  static const int64_t slot = 0;
  amla_cache_write_args a = AMLA_CACHE_WRITE_ARGS_INIT;
  amla_options o = AMLA_OPTIONS_INIT;
  a.d_latent = 4, a.d_rope = 0, a.page_size = a.n_pages = a.n_tokens = 1, a.kv_scale = kv_scale;
  a.type = AMLA_F32, a.kv_type = AMLA_FP8_E4M3;
  a.latent = latent, a.latent_bytes = 16, a.kv = kv, a.kv_bytes = 4;
  a.slot_mapping = &slot, a.slot_mapping_bytes = sizeof slot;
  o.threads = 2;
  return amla_cache_write(&a, &o, NULL);
}

static void writing_a_cache_springs_no_trap(void **state) {
  static const float scales[] = {NAN, -1.0f, 0.0f, 0.1f, 1e-45f};
  const float latent[4] = {0.1f, INFINITY, NAN, 1e-45f};
  amla_status statuses[LENGTH(scales)];
  char kv[4];
  (void)state;
  if (feenableexcept(0) < 0 || feenableexcept(FE_DIVBYZERO) < 0)
    skip(); /* not on this machine */
  feenableexcept(FE_ALL_EXCEPT);
  for (int i = 0; i < LENGTH(scales); i++)
    statuses[i] = write_token(scales[i], latent, kv);
  const int trapped = fegetexcept();
  fedisableexcept(FE_ALL_EXCEPT);
  assert_int_equal(trapped, FE_ALL_EXCEPT);
  for (int i = 0; i < LENGTH(scales); i++)
    assert_int_equal(statuses[i], i < 2 ? AMLA_INVALID_ARGUMENT : AMLA_OK);
}

#if defined(__x86_64__)
/* A scale below 2^-126 is a number, whether or not the caller's arithmetic takes it as 0. */
static void flush_bits_do_not_change_a_scale(void **state) {
  enum { FLUSH_TO_ZERO = 0x8000, DENORMALS_ARE_ZERO = 0x40 };
  const float latent[4] = {0.1f, 1e-38f, 1e-40f, -1e-39f};
  char want[4], got[4];
  (void)state;
  assert_int_equal(write_token(1e-40f, latent, want), AMLA_OK);
  const unsigned callers = __builtin_ia32_stmxcsr();
  __builtin_ia32_ldmxcsr(callers | FLUSH_TO_ZERO | DENORMALS_ARE_ZERO);
  const amla_status status = write_token(1e-40f, latent, got);
  __builtin_ia32_ldmxcsr(callers);
  assert_int_equal(status, AMLA_OK);
  assert_memory_equal(got, want, sizeof want);
}
#endif

static void nothing_springs_a_trap(void **state) {
  (void)state;
  if (feenableexcept(0) < 0 || feenableexcept(FE_DIVBYZERO) < 0)
    skip(); /* not on this machine */
  fedisableexcept(FE_ALL_EXCEPT);
  for_each_engine(check_traps);
}

/* ---- A callback that never returns ---- */

static jmp_buf way_out;

/* Leaves in call number *context, counted down. */
static void run_away(void *context, int32_t n, void (*task)(void *argument, int32_t i),
                     void *argument) {
  if (--*(int32_t *)context == 0)
    longjmp(way_out, 1);
  for (int32_t i = 0; i < n; i++)
    task(argument, i);
}

static void check_jump(const amla_options *base) {
  if (base->backend != AMLA_BACKEND_CPU)
    return;
  static fixture f;
  static int32_t countdown;
  amla_options options = *base;
  harness_dataset want;
  options.threads = 3;
  options.parallel = run_away;
  options.parallel_context = &countdown;
  f = fixture_create(shared_out, &options);
  for (volatile int call = 1; call <= 2; call++) {
    countdown = call;
    fesetround(FE_DOWNWARD);
    if (setjmp(way_out) == 0)
      fixture_run(&f);
    const int after = fegetround();
    fesetround(FE_TONEAREST);
    assert_int_equal(countdown, 0);
    assert_int_equal(after, FE_DOWNWARD);
  }
  countdown = -1; /* and the plan is as good as before */
  assert_int_equal(fixture_run(&f), AMLA_OK);
  generate(&want, shared_out);
  run(&want, shared_out, base);
  expect_same_bits(&want, &f.data, describe_options(&options));
  harness_free(&want);
  fixture_free(&f);
}

static void a_jump_out_of_parallel_leaves_the_environment(void **state) {
  (void)state;
  for_each_engine(check_jump);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(a_child_of_one_thread_has_its_threads), /* before any team forms */
      cmocka_unit_test(a_forked_child_computes),
      cmocka_unit_test(an_l2_is_shared_by_its_cpus),
      cmocka_unit_test(the_environment_overrides_the_l2),
      cmocka_unit_test(a_default_is_what_the_system_leaves),
      cmocka_unit_test(plans_follow_affinity_and_variables),
      cmocka_unit_test(the_callers_rounding_mode_does_not_change_a_bit),
      cmocka_unit_test(a_pools_rounding_mode_does_not_change_a_bit),
      cmocka_unit_test(merge_has_one_rounding_mode),
      cmocka_unit_test(nothing_springs_a_trap),
      cmocka_unit_test(writing_a_cache_springs_no_trap),
#if defined(__x86_64__)
      cmocka_unit_test(flush_bits_do_not_change_a_scale),
#endif
      cmocka_unit_test(a_jump_out_of_parallel_leaves_the_environment),
  };
  return cmocka_run_group_tests_name("environment", tests, NULL, NULL);
}
