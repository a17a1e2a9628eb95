/* SPDX-License-Identifier: Apache-2.0
 *
 * Problem files: what is written reads back bit for bit; truncated, lying and hostile files are
 * refused with tensor, value and rule; paths that cannot be read or written are refused, and a
 * failed write leaves nothing behind.
 */
#include "test_run.h"

#include <dirent.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include "harness/kv_rows.h"
#include "harness/safetensors.h"

enum { ERROR_BYTES = 512 };

/* ---- A scratch folder ---- */

static char folder[512];

static int make_folder(void **state) {
  (void)state;
  const char *base = getenv("TMPDIR");
  snprintf(folder, sizeof folder, "%s/amla_safetensors_XXXXXX", base ? base : "/tmp");
  return mkdtemp(folder) == NULL ? -1 : 0;
}

/* Counts the files in the folder, and removes them if told to. */
static int list_folder(bool remove_them) {
  int count = 0;
  DIR *directory = opendir(folder);
  assert_non_null(directory);
  for (struct dirent *entry; (entry = readdir(directory)) != NULL;) {
    char path[1024];
    if (strcmp(entry->d_name, ".") == 0 || strcmp(entry->d_name, "..") == 0)
      continue;
    snprintf(path, sizeof path, "%s/%s", folder, entry->d_name);
    count++;
    if (remove_them && remove(path) != 0)
      fail_msg("cannot remove %s", path);
  }
  closedir(directory);
  return count;
}

static int remove_folder(void **state) {
  (void)state;
  list_folder(true);
  return rmdir(folder);
}

static const char *in_folder(const char *name) {
  static char path[2][1024];
  static int turn;
  turn = !turn;
  snprintf(path[turn], sizeof path[turn], "%s/%s", folder, name);
  return path[turn];
}

static void put_file(const char *path, const void *bytes, size_t n_bytes) {
  FILE *file = fopen(path, "wb");
  assert_non_null(file);
  assert_int_equal(fwrite(bytes, 1, n_bytes, file), n_bytes);
  assert_int_equal(fclose(file), 0);
}

static unsigned char *get_file(const char *path, size_t *n_bytes) {
  FILE *file = fopen(path, "rb");
  assert_non_null(file);
  assert_int_equal(fseek(file, 0, SEEK_END), 0);
  *n_bytes = (size_t)ftell(file);
  rewind(file);
  unsigned char *bytes = malloc(*n_bytes + 1);
  assert_non_null(bytes);
  assert_int_equal(fread(bytes, 1, *n_bytes, file), *n_bytes);
  bytes[*n_bytes] = 0;
  fclose(file);
  return bytes;
}

/* ---- Round trip ---- */

static void expect_same_bytes(const void *a, const void *b, size_t bytes, const char *what) {
  if ((a == NULL) != (b == NULL))
    fail_msg("%s: there in one only", what);
  if (a != NULL && memcmp(a, b, bytes) != 0)
    fail_msg("%s: other bytes", what);
}

/* Of one scope; a page with a footer as a whole. */
static void expect_same_cache(const harness_dataset *a, const harness_dataset *b) {
  const amla_problem *p = &a->problem, *f = &b->problem;
  const int64_t pages = p->page_size ? p->n_pages : p->b;
  const int64_t tokens = p->page_size ? p->page_size : p->sk;
  const int64_t token_bytes = harness_token_bytes(p->kv_type, p->d_qk);
  const bool whole = p->kv_type == AMLA_FP8_584;
  for (int64_t page = 0; page < pages; page++)
    for (int64_t j = 0; j < (whole ? 1 : tokens); j++) {
      const int64_t at[] = {page * p->kv_stride_page + j * p->kv_stride_token,
                            page * f->kv_stride_page + j * f->kv_stride_token};
      expect_same_bytes((char *)a->kv + harness_bytes(p->kv_type, at[0]),
                        (char *)b->kv + harness_bytes(p->kv_type, at[1]),
                        (size_t)(token_bytes * (whole ? tokens : 1)), "kv_cache");
    }
}

/* A file has packed strides: compares row by row. */
static void expect_same_problem(const harness_dataset *a, const harness_dataset *b) {
  const amla_problem *p = &a->problem, *f = &b->problem;
  const size_t q = harness_dtype_bytes(p->q_type);
  assert_true(p->b == f->b && p->s_q == f->s_q && p->h_q == f->h_q && p->d_qk == f->d_qk &&
              p->d_v == f->d_v && p->page_size == f->page_size);
  assert_true(p->n_pages == f->n_pages && p->max_pages == f->max_pages && p->q_type == f->q_type &&
              p->kv_type == f->kv_type);
  assert_true(p->causal == f->causal && to_bits(p->scale) == to_bits(f->scale));
  assert_true(to_bits(p->kv_scale) == to_bits(f->kv_scale) &&
              to_bits(p->kv_rope_scale) == to_bits(f->kv_rope_scale));
  expect_same_bytes(a->seqlens_k, b->seqlens_k, (size_t)p->b * sizeof(int32_t), "seqlens_k");
  expect_same_bytes(a->block_table, b->block_table, a->tensors.block_table_bytes, "block_table");
  expect_same_bytes(a->sinks, b->sinks, (size_t)p->h_q * sizeof(float), "sinks");
  expect_same_bytes(a->out_ref, b->out_ref, (size_t)(n_rows(a) * p->d_v) * sizeof(float),
                    "out_ref");
  expect_same_bytes(a->lse_ref, b->lse_ref, (size_t)n_rows(a) * sizeof(float), "lse_ref");
  for (int64_t row = 0; row < n_rows(a); row++)
    expect_same_bytes((char *)a->q + (size_t)q_row_offset(p, row) * q,
                      (char *)b->q + (size_t)q_row_offset(f, row) * q, (size_t)p->d_qk * q, "q");
  expect_same_cache(a, b);
}

/* The file's problem gives the bits that the original gives. */
static void expect_same_result(harness_dataset *a, harness_dataset *b) {
  const amla_options options =
      make_options(AMLA_BACKEND_CPU, AMLA_RESCALE_LAZY, AMLA_ISA_AUTO, 1, 0);
  run(a, "the original", &options);
  run(b, "the file", &options);
  for (int64_t row = 0; row < n_rows(a); row++)
    if (!same_row(a, row, b, row))
      fail_msg("row %d of the file's problem has other bits", (int)row);
}

static void problems_round_trip(void **state) {
  (void)state;
  static const char *const problems[] = {
      "b=3,sq=2,h=4,sk=50,dqk=12,dv=8,page=16,len=50/0/7,q=f32,kv=f32",
      "b=3,sq=2,h=4,sk=50,dqk=12,dv=8,page=16,len=50/0/7,q=bf16,kv=f16,pad=3",
      "b=2,sq=1,h=3,sk=50,dqk=7,dv=7,page=0,q=f16,kv=bf16,sinks=1,causal=0",
      "b=2,sq=1,h=3,sk=50,dqk=7,dv=5,page=0,len=50/3,q=f32,kv=f16,pad=1,scale=-0.3333333",
      "b=1,h=1,sk=1,dqk=1,dv=1,page=1,sinks=1,q=f16,kv=f16,scale=1e-30",
      "b=2,h=3,sk=50,dqk=64,dv=32,page=8,len=50/7,kv=q8_0,pad=32",
      "b=2,h=3,sk=50,page=16,len=50/7,kv=fp8_656,pad=5",
      "b=2,h=3,sk=50,page=0,len=20/7,kv=fp8_656",
      "b=2,h=3,sk=50,dqk=512,page=7,len=50/9,kv=fp8_584,pad=1",
      "b=2,h=3,sk=50,dqk=512,page=0,len=20/7,kv=fp8_584,pad=3",
      "b=2,h=3,sk=50,dqk=13,dv=8,page=3,len=50/7,kv=fp8_e4m3,pad=3",
      "b=0,h=2,sk=8,dqk=4,dv=4,page=4"};
  for (int i = 0; i < LENGTH(problems); i++)
    for (int refs = 0; refs < 2; refs++) {
      char error[ERROR_BYTES] = "";
      harness_dataset a, b;
      harness_truth truth;
      const char *path = in_folder("problem.safetensors");
      generate(&a, problems[i]);
      compute_truth_of(&a, &truth);
      if (refs)
        assert_int_equal(harness_set_refs(&a, &truth), 0);
      if (harness_write_problem(path, &a, error, sizeof error) != 0)
        fail_msg("'%s': %s", problems[i], error);
      if (harness_read_problem(path, &b, error, sizeof error) != 0)
        fail_msg("'%s': %s", problems[i], error);
      expect_same_problem(&a, &b);
      expect_same_result(&a, &b);
      harness_truth_free(&truth);
      harness_free(&a);
      harness_free(&b);
      assert_int_equal(list_folder(true), 1); /* no temporary file is left */
    }
}

/* Lists, windows and second scopes: the bits from the file are those from memory, and its truth is
 * the truth. */
static void sparse_problems_round_trip(void **state) {
  (void)state;
  static const char *const problems[] = {"topk=30",
                                         "topk=30,page=0,topklen=sequence,invalid=20",
                                         "topk=30,index=position,topklen=query,q=f32",
                                         "topk=9,scope2=topk:70/sk:33/page:3,topklen=query,sinks=1",
                                         "topk=9,scope2=sk:33/page:0",
                                         "window=11,scope2=topk:7/sk:33/page:5,topklen=sequence",
                                         "scope2=sk:33/page:5",
                                         "visible=1,window=20",
                                         "visible=1,page=0,scope2=sk:9"};
  static const char *const caches[] = {"dqk=12,dv=8,pad=1",       "dqk=12,dv=8,kv=f16,pad=2",
                                       "kv=fp8_656,pad=3",        "dqk=512,kv=fp8_584,pad=16",
                                       "dqk=12,dv=8,kv=fp8_e4m3", "dqk=64,dv=40,kv=q8_0,pad=32"};
  for (int i = 0; i < LENGTH(problems) * LENGTH(caches); i++) {
    char problem[256], error[ERROR_BYTES] = "";
    harness_dataset a, b;
    harness_truth truth;
    const char *path = in_folder("problem.safetensors");
    snprintf(problem, sizeof problem, "b=3,sq=2,h=4,sk=50,len=50/0/7,%s,%s",
             problems[i / LENGTH(caches)], caches[i % LENGTH(caches)]);
    generate(&a, problem);
    compute_truth_of(&a, &truth);
    assert_int_equal(harness_set_refs(&a, &truth), 0);
    if (harness_write_problem(path, &a, error, sizeof error) != 0 ||
        harness_read_problem(path, &b, error, sizeof error) != 0)
      fail_msg("'%s': %s", problem, error);
    expect_same_result(&a, &b);
    harness_truth_free(&truth);
    compute_truth_of(&b, &truth);
    if (!harness_check_refs(&b, &truth).ok || harness_flops(&a) != harness_flops(&b))
      fail_msg("'%s': other keys are seen in the file", problem);
    harness_truth_free(&truth);
    harness_free(&a);
    harness_free(&b);
  }
  list_folder(true);
}

static void what_files_do_not_hold_is_refused_by_name(void **state) {
  (void)state;
  static const char *const rows[][2] = {{"mask=1", "mask=1: files hold none"},
                                        {"ragged=1", "ragged=1: files hold none"},
                                        {"csr=1", "csr=1: files hold none"},
                                        {"qrope=8", "qrope=8: files hold none"},
                                        {"kvrope=32", "kvrope=32: files hold none"}};
  for (int i = 0; i < LENGTH(rows); i++) {
    char problem[128], error[ERROR_BYTES] = "";
    harness_dataset d;
    snprintf(problem, sizeof problem, "h=1,sk=9,dqk=64,dv=8,%s", rows[i][0]);
    generate(&d, problem);
    assert_int_equal(harness_write_problem(in_folder("none"), &d, error, sizeof error), -1);
    if (strstr(error, rows[i][1]) == NULL)
      fail_msg("'%s': '%s' does not contain '%s'", problem, error, rows[i][1]);
    harness_free(&d);
  }
  assert_int_equal(list_folder(true), 0);
}

/* [begin, end) of a tensor in the data of a file. */
static const unsigned char *find_tensor(const unsigned char *bytes, const char *name,
                                        const char *entry_start, size_t *n_bytes) {
  char key[64];
  long begin, end;
  uint64_t header = 0;
  for (int i = 7; i >= 0; i--)
    header = header << 8 | bytes[i];
  snprintf(key, sizeof key, "\"%s\":{%s", name, entry_start);
  const char *entry = strstr((const char *)bytes + 8, key);
  if (entry == NULL)
    fail_msg("no %s in %s", key, bytes + 8);
  const char *offsets = strstr(entry, "\"data_offsets\":[");
  assert_non_null(offsets);
  assert_int_equal(sscanf(offsets, "\"data_offsets\":[%ld,%ld]", &begin, &end), 2);
  *n_bytes = (size_t)(end - begin);
  return bytes + 8 + header + begin;
}

static void results_are_written(void **state) {
  (void)state;
  char error[ERROR_BYTES];
  harness_dataset d;
  size_t file_bytes, bytes;
  const amla_options options =
      make_options(AMLA_BACKEND_REF, AMLA_RESCALE_FLASH, AMLA_ISA_AUTO, 1, 0);
  generate(&d, "b=2,sq=2,h=3,sk=20,dqk=8,dv=6,out=bf16,pad=1,len=20/0");
  run(&d, "a result", &options);
  assert_int_equal(harness_write_result(in_folder("out"), &d, error, sizeof error), 0);
  unsigned char *file = get_file(in_folder("out"), &file_bytes);
  const unsigned char *lse =
      find_tensor(file, "lse", "\"dtype\":\"F32\",\"shape\":[2,3,2]", &bytes);
  assert_int_equal(bytes, 12 * sizeof(float));
  assert_memory_equal(lse, d.lse, bytes);
  const unsigned char *out =
      find_tensor(file, "out", "\"dtype\":\"BF16\",\"shape\":[2,2,3,6]", &bytes);
  assert_int_equal(bytes, 12 * 6 * 2);
  for (int64_t row = 0; row < 12; row++)
    assert_memory_equal(out + row * 12, (char *)d.out + out_row_offset(&d.problem, row) * 2, 12);
  assert_int_equal((uintptr_t)(out - file) % 2, 0);
  free(file);
  harness_free(&d);
  list_folder(true);
}

/* ---- Files built byte by byte ---- */

static const char good_header[] =
    "{\"__metadata__\":{\"scale\":\"0.5\",\"causal\":\"1\",\"d_v\":\"2\"},"
    "\"q\":{\"dtype\":\"BF16\",\"shape\":[1,1,2,4],\"data_offsets\":[0,16]},"
    "\"kv_cache\":{\"dtype\":\"BF16\",\"shape\":[3,2,4],\"data_offsets\":[16,64]},"
    "\"block_table\":{\"dtype\":\"I32\",\"shape\":[1,2],\"data_offsets\":[64,72]},"
    "\"seqlens_k\":{\"dtype\":\"I32\",\"shape\":[1],\"data_offsets\":[72,76]}}";
enum { GOOD_DATA = 76, MAX_FILE = 1 << 20 };

typedef struct image {
  unsigned char bytes[MAX_FILE];
  size_t n_bytes;
} image;

/* A cache of bytes: two pages of two tokens. */
static const char byte_header[] =
    "{\"__metadata__\":{\"scale\":\"0.5\",\"d_v\":\"512\",\"kv\":\"fp8_656\"},"
    "\"anything\":{\"dtype\":\"U8\",\"shape\":[64],\"data_offsets\":[0,64]},"
    "\"block_table\":{\"dtype\":\"I32\",\"shape\":[1,2],\"data_offsets\":[64,72]},"
    "\"seqlens_k\":{\"dtype\":\"I32\",\"shape\":[1],\"data_offsets\":[72,76]},"
    "\"q\":{\"dtype\":\"BF16\",\"shape\":[1,1,1,576],\"data_offsets\":[76,1228]},"
    "\"kv_cache\":{\"dtype\":\"U8\",\"shape\":[3,2,656],\"data_offsets\":[1228,5164]}}";
enum { BYTE_DATA = 5164 };

static void store_u64(unsigned char *at, uint64_t x) {
  for (int i = 0; i < 8; i++)
    at[i] = (unsigned char)(x >> 8 * i);
}

/* Header text and data_bytes of data: bf16 ones, page ids 2 and 0, length 3. */
static void build(image *f, const char *header, size_t data_bytes) {
  static const unsigned char ids_and_length[] = {2, 0, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0};
  const size_t n = strlen(header);
  assert_true(8 + n + data_bytes <= MAX_FILE);
  store_u64(f->bytes, n);
  memcpy(f->bytes + 8, header, n);
  for (size_t i = 0; i < data_bytes; i++)
    f->bytes[8 + n + i] = i % 2 ? 0x3f : 0x80;
  if (data_bytes >= GOOD_DATA)
    memcpy(f->bytes + 8 + n + 64, ids_and_length, sizeof ids_and_length);
  f->n_bytes = 8 + n + data_bytes;
}

/* Parses a copy of exactly that size, so that a sanitizer sees an overrun. */
static int parse(const image *f, harness_dataset *d, char *error) {
  unsigned char *copy = malloc(f->n_bytes ? f->n_bytes : 1);
  assert_non_null(copy);
  memcpy(copy, f->bytes, f->n_bytes);
  snprintf(error, ERROR_BYTES, "nothing said");
  const int status = harness_parse_safetensors("FILE", copy, f->n_bytes, d, error, ERROR_BYTES);
  free(copy);
  return status;
}

static void expect_refused(const image *f, const char *what, const char *const *words) {
  char error[ERROR_BYTES];
  harness_dataset d;
  if (parse(f, &d, error) == 0)
    fail_msg("accepted: %s", what);
  if (strstr(error, "FILE: ") == NULL)
    fail_msg("%s: '%s' does not name the file", what, error);
  for (int i = 0; i < 3 && words[i]; i++)
    if (strstr(error, words[i]) == NULL)
      fail_msg("%s: '%s' does not contain '%s'", what, error, words[i]);
  assert_true(all_bytes_are(&d, sizeof d, 0)); /* nothing is left to free */
}

static image file; /* too large for a stack */

static void the_good_file_is_good(void **state) {
  (void)state;
  char error[ERROR_BYTES];
  harness_dataset d;
  build(&file, good_header, GOOD_DATA);
  if (parse(&file, &d, error) != 0)
    fail_msg("%s", error);
  assert_true(d.problem.b == 1 && d.problem.h_q == 2 && d.problem.d_qk == 4 && d.problem.d_v == 2 &&
              d.problem.page_size == 2);
  assert_true(d.problem.n_pages == 3 && d.problem.max_pages == 2 && d.problem.causal == 1 &&
              to_bits(d.problem.scale) == to_bits(0.5f));
  assert_true(d.block_table[0] == 2 && d.block_table[1] == 0 && d.seqlens_k[0] == 3 &&
              d.problem.sk == 3);
  assert_true(to_bits(harness_load(d.q, d.problem.q_type, 7)) == to_bits(1.0f));
  assert_int_equal(try_run(&d, &(amla_options)AMLA_OPTIONS_INIT, NULL), AMLA_OK);
  assert_float_equal(d.lse[0], 2.0f + logf(3.0f), 1e-6);
  harness_free(&d);
}

/* The good header with one piece of text replaced. */
typedef struct lie {
  const char *find, *replace, *words[3];
} lie;

#define Q "\"q\":{\"dtype\":\"BF16\",\"shape\":[1,1,2,4],\"data_offsets\":[0,16]}"
static const lie lies[] = {
    /* types */
    {"\"q\":{\"dtype\":\"BF16\"",
     "\"q\":{\"dtype\":\"F4\"",
     {"tensor 'q'", "dtype \"F4\"", "must be a type of the format"}},
    {"\"q\":{\"dtype\":\"BF16\"", "\"q\":{\"dtype\":16", {"tensor 'q'", "dtype 16"}},
    {"\"q\":{\"dtype\":\"BF16\",", "\"q\":{", {"tensor 'q'", "dtype (missing)"}},
    {"\"q\":{\"dtype\":\"BF16\"",
     "\"q\":{\"dtype\":\"I16\"",
     {"tensor 'q'", "dtype I16", "F32, BF16 or F16"}},
    {"\"block_table\":{\"dtype\":\"I32\"",
     "\"block_table\":{\"dtype\":\"F32\"",
     {"tensor 'block_table'", "dtype F32", "must be I32"}},
    {"\"seqlens_k\":{\"dtype\":\"I32\"",
     "\"seqlens_k\":{\"dtype\":\"U32\"",
     {"tensor 'seqlens_k'", "dtype U32", "must be I32"}},
    {"\"q\":{\"dtype\":\"BF16\"",
     "\"q\":{\"dtype\":\"F32\"",
     {"tensor 'q'", "needs 32 bytes of F32", "hold 16"}},
    /* shapes */
    {"[1,1,2,4]", "[1,2,4]", {"tensor 'q'", "[1, 2, 4]", "4 dimensions"}},
    {"[1,1,2,4]", "[1,1,2,5]", {"tensor 'q'", "[1,1,2,5]", "needs 20 bytes"}},
    {"[1,1,2,4]", "[1,1,1,8]", {"tensor 'kv_cache'", "[3, 2, 4]", "must be 8"}},
    {"[1,1,2,4]", "[2,1,1,4]", {"tensor 'block_table'", "[1, 2]", "must be 2"}},
    {"[1,1,2,4]", "[-1,1,2,4]", {"tensor 'q'", "[-1,1,2,4]", "integers >= 0"}},
    {"[1,1,2,4]", "[1,1,2,4.0]", {"tensor 'q'", "integers >= 0"}},
    {"[1,1,2,4]", "[1,1,2,\"4\"]", {"tensor 'q'", "integers >= 0"}},
    {"[1,1,2,4]", "8", {"tensor 'q'", "shape 8", "must be an array"}},
    {"\"shape\":[1,1,2,4],", "", {"tensor 'q'", "shape (missing)"}},
    {"[1,1,2,4]", "[1,1,1,1,1,1,1,2,4]", {"tensor 'q'", "more than 8 dimensions"}},
    {"[1,1,2,4]", "[9223372036854775807,9223372036854775807,2,4]", {"tensor 'q'", "leaves int64"}},
    {"[1,1,2,4]",
     "[4294967296,4294967296,4294967296,4294967296]",
     {"tensor 'q'", "leaves int64"}}, /* 0 modulo 2^64 */
    {"[1,1,2,4]", "[18446744073709551615,1,2,4]", {"header", "JSON"}},
    {"[1],\"data_offsets\":[72,76]",
     "[],\"data_offsets\":[72,76]",
     {"tensor 'seqlens_k'", "1 dimension"}},
    /* offsets */
    {"[0,16]", "[0,17]", {"tensor 'q'", "needs 16 bytes", "hold 17"}},
    {"[72,76]", "[72,77]", {"tensor 'seqlens_k'", "[72,77]", "<= 76"}},
    {"[72,76]", "[72,9223372036854775807]", {"tensor 'seqlens_k'", "<= 76"}},
    {"[0,16]", "[16,0]", {"tensor 'q'", "[16,0]", "begin <= end"}},
    {"[0,16]", "[-16,0]", {"tensor 'q'", "[-16,0]", "0 <= begin"}},
    {"[0,16]", "[0]", {"tensor 'q'", "must be two integers"}},
    {"[0,16]", "[0,16,32]", {"tensor 'q'", "must be two integers"}},
    {"[0,16]", "[0.0,16.0]", {"tensor 'q'", "must be two integers"}},
    {"[0,16]", "\"0,16\"", {"tensor 'q'", "must be two integers"}},
    {"[0,16]", "[16,32]", {"data", "byte 0 of 76 belongs to no tensor"}},
    {"[16,64]", "[8,56]", {"tensor 'kv_cache'", "overlap", "'q'"}},
    {Q ",", "", {"byte 0 of 76 belongs to no tensor"}},
    {",\"seqlens_k\":{\"dtype\":\"I32\",\"shape\":[1],\"data_offsets\":[72,76]}",
     "",
     {"byte 72 of 76 belongs to no tensor"}},
    /* names and entries */
    {"\"kv_cache\":{", "\"q\":{", {"header", "JSON", "duplicate"}},
    {"\"q\":{", "\"queries\":{", {"tensor 'q'", "missing"}},
    {"\"kv_cache\":{", "\"kv\":{", {"tensor 'kv_cache'", "missing"}},
    {"\"seqlens_k\":{", "\"lengths\":{", {"tensor 'seqlens_k'", "missing"}},
    {Q, "\"q\":[1]", {"tensor 'q'", "must be an object"}},
    {Q, "\"q\":null", {"tensor 'q'", "must be an object"}},
    {"\"seqlens_k\":{", "\"out_ref\":{", {"tensor 'seqlens_k'", "missing"}},
    /* metadata */
    {"\"scale\":\"0.5\",", "", {"metadata 'scale'", "missing"}},
    {"\"scale\":\"0.5\"", "\"scale\":\"0\"", {"metadata 'scale'", "finite", "not 0"}},
    {"\"scale\":\"0.5\"", "\"scale\":\"nan\"", {"metadata 'scale'", "\"nan\""}},
    {"\"scale\":\"0.5\"", "\"scale\":\"inf\"", {"metadata 'scale'", "\"inf\""}},
    {"\"scale\":\"0.5\"", "\"scale\":\"1e-60\"", {"metadata 'scale'", "not 0"}},
    {"\"scale\":\"0.5\"", "\"scale\":\"0.5x\"", {"metadata 'scale'", "\"0.5x\""}},
    {"\"scale\":\"0.5\"", "\"scale\":\"\"", {"metadata 'scale'", "\"\""}},
    {"\"scale\":\"0.5\"", "\"scale\":0.5", {"metadata 'scale'", "0.5", "must be a string"}},
    {"\"causal\":\"1\"", "\"causal\":\"2\"", {"metadata 'causal'", "\"2\"", "[0, 1]"}},
    {"\"causal\":\"1\"", "\"causal\":\"0.5\"", {"metadata 'causal'", "0.5", "integer"}},
    {",\"d_v\":\"2\"", "", {"metadata 'd_v'", "missing"}},
    {"\"d_v\":\"2\"", "\"d_v\":\"5\"", {"metadata 'd_v'", "\"5\"", "[1, 4]"}},
    {"\"d_v\":\"2\"", "\"d_v\":\"0\"", {"metadata 'd_v'", "\"0\"", "[1, 4]"}},
    {"\"d_v\":\"2\"", "\"d_v\":\"1.5\"", {"metadata 'd_v'", "1.5", "integer"}},
    {"{\"scale\":\"0.5\",\"causal\":\"1\",\"d_v\":\"2\"}",
     "[]",
     {"__metadata__", "must be an object"}},
    {"\"__metadata__\":{\"scale\":\"0.5\",\"causal\":\"1\",\"d_v\":\"2\"},",
     "",
     {"metadata 'scale'", "missing"}},
};

static void build_lie(image *f, const char *good, size_t data_bytes, const lie *l) {
  char header[2048];
  const char *at = strstr(good, l->find);
  if (at == NULL)
    fail_msg("the good header has no %s", l->find);
  snprintf(header, sizeof header, "%.*s%s%s", (int)(at - good), good, l->replace,
           at + strlen(l->find));
  build(f, header, data_bytes);
}

static void lying_headers_are_refused(void **state) {
  (void)state;
  for (int i = 0; i < LENGTH(lies); i++) {
    build_lie(&file, good_header, GOOD_DATA, &lies[i]);
    expect_refused(&file, lies[i].replace, lies[i].words);
  }
}

#define KV "\"kv\":\"fp8_656\""
static const lie byte_lies[] = {
    {KV, "\"kv\":\"fp8_655\"", {"metadata 'kv'", "\"fp8_655\"", "fp8_656, fp8_584"}},
    {KV, "\"kv\":\"\"", {"metadata 'kv'", "\"\"", "must be f32"}},
    {KV, "\"kv\":656", {"metadata 'kv'", "656", "must be a string"}},
    {KV, "\"kv\":\"fp8_584\"", {"metadata 'kv'", "fp8_584", "d_qk=576 and d_v=512"}},
    {KV, "\"kv\":\"fp8_e4m3\"", {"tensor 'kv_cache'", "[3, 2, 656]", "must be 576"}},
    {KV, "\"kv\":\"q8_0\"", {"tensor 'kv_cache'", "[3, 2, 656]", "must be 612"}},
    {KV, "\"kv\":\"bf16\"", {"tensor 'kv_cache'", "dtype U8", "must be BF16"}},
    {"," KV, "", {"tensor 'kv_cache'", "dtype U8", "or U8 with metadata 'kv'"}},
    {KV, KV ",\"kv_scale\":\"inf\"", {"metadata 'kv_scale'", "\"inf\"", "finite"}},
    {KV, KV ",\"kv_rope_scale\":\"1e39\"", {"metadata 'kv_rope_scale'", "\"1e39\""}},
    {"\"d_v\":\"512\"", "\"d_v\":\"511\"", {"metadata 'kv'", "fp8_656", "d_v=511"}},
    {"[1,1,1,576]", "[1,1,2,288]", {"metadata 'd_v'", "\"512\"", "[1, 288]"}},
    {"\"U8\",\"shape\":[3", "\"I8\",\"shape\":[3", {"'kv_cache'", "I8", "must be U8"}},
    {"[3,2,656]", "[6,656]", {"tensor 'kv_cache'", "[6, 656]", "3 dimensions"}},
    {"[3,2,656]", "[2,3,655]", {"tensor 'kv_cache'", "needs 3930 bytes"}},
    {"[3,2,656]", "[3,1,1312]", {"tensor 'kv_cache'", "[3, 1, 1312]", "must be 656"}},
};

static void lies_about_bytes_are_refused(void **state) {
  (void)state;
  char error[ERROR_BYTES];
  harness_dataset d;
  amla_detail detail;
  build(&file, byte_header, BYTE_DATA);
  if (parse(&file, &d, error) != 0)
    fail_msg("%s", error);
  assert_true(d.problem.kv_type == AMLA_FP8_656 && d.problem.n_pages == 3);
  assert_int_equal(try_run(&d, &(amla_options)AMLA_OPTIONS_INIT, NULL), AMLA_OK);
  harness_free(&d);
  for (int i = 0; i < LENGTH(byte_lies); i++) {
    build_lie(&file, byte_header, BYTE_DATA, &byte_lies[i]);
    expect_refused(&file, byte_lies[i].replace, byte_lies[i].words);
  }
  const lie scale = {KV, KV ",\"kv_scale\":\"-2\"", {NULL}}; /* for the library to refuse */
  build_lie(&file, byte_header, BYTE_DATA, &scale);
  if (parse(&file, &d, error) != 0)
    fail_msg("%s", error);
  assert_int_equal(try_run(&d, &(amla_options)AMLA_OPTIONS_INIT, &detail), AMLA_INVALID_ARGUMENT);
  assert_non_null(strstr(detail.text, "kv_scale=-2"));
  harness_free(&d);
}

/* Optional tensors are checked as strictly as the others: each appended behind the good data. */
static void bad_optional_tensors_are_refused(void **state) {
  (void)state;
  static const struct {
    const char *entry;
    size_t bytes;
    const char *words[3];
  } rows[] = {
      {"\"sinks\":{\"dtype\":\"F32\",\"shape\":[3],\"data_offsets\":[76,88]}",
       12,
       {"tensor 'sinks'", "[3]", "must be 2"}},
      {"\"sinks\":{\"dtype\":\"BF16\",\"shape\":[2],\"data_offsets\":[76,80]}",
       4,
       {"tensor 'sinks'", "BF16", "must be F32"}},
      {"\"out_ref\":{\"dtype\":\"F32\",\"shape\":[1,1,2,3],\"data_offsets\":[76,100]}",
       24,
       {"tensor 'out_ref'", "[1, 1, 2, 3]", "must be 2"}},
      {"\"out_ref\":{\"dtype\":\"F32\",\"shape\":[1,2,2],\"data_offsets\":[76,92]}",
       16,
       {"tensor 'out_ref'", "[1, 2, 2]", "4 dimensions"}},
      {"\"out_ref\":{\"dtype\":\"F64\",\"shape\":[1,1,2,2],\"data_offsets\":[76,108]}",
       32,
       {"tensor 'out_ref'", "F64", "must be F32"}},
      {"\"lse_ref\":{\"dtype\":\"F32\",\"shape\":[1,1,2],\"data_offsets\":[76,84]}",
       8,
       {"tensor 'lse_ref'", "[1, 1, 2]", "must be 2"}},
      {"\"indices\":{\"dtype\":\"I32\",\"shape\":[1,2,3],\"data_offsets\":[76,100]}",
       24,
       {"tensor 'indices'", "[1, 2, 3]", "dimension 1 must be 1"}},
      {"\"indices\":{\"dtype\":\"I32\",\"shape\":[1,1,0],\"data_offsets\":[76,76]}",
       0,
       {"tensor 'indices'", "[1, 1, 0]", "dimension 2 must be in [1"}},
      {"\"indices\":{\"dtype\":\"I32\",\"shape\":[1,1,2],\"data_offsets\":[76,84]},"
       "\"topk_length\":{\"dtype\":\"I32\",\"shape\":[1,1,1],\"data_offsets\":[84,88]}",
       12,
       {"tensor 'topk_length'", "[1, 1, 1]", "must have 1 dimensions"}},
      {"\"visible_k\":{\"dtype\":\"I32\",\"shape\":[2],\"data_offsets\":[76,84]}",
       8,
       {"tensor 'visible_k'", "[2]", "must have 2 dimensions"}},
      {"\"extra_kv_cache\":{\"dtype\":\"BF16\",\"shape\":[1,2,3],\"data_offsets\":[76,88]}",
       12,
       {"tensor 'extra_kv_cache'", "[1, 2, 3]", "dimension 2 must be 4"}},
      {"\"extra_kv_cache\":{\"dtype\":\"BF16\",\"shape\":[1,2,4],\"data_offsets\":[76,92]}",
       16,
       {"tensor 'extra_seqlens_k'", "missing"}},
      {"\"extra_kv_cache\":{\"dtype\":\"F32\",\"shape\":[1,2,4],\"data_offsets\":[76,108]},"
       "\"extra_seqlens_k\":{\"dtype\":\"I32\",\"shape\":[1],\"data_offsets\":[108,112]}",
       36,
       {"tensor 'extra_kv_cache'", "dtype F32", "must be BF16"}},
      {"\"anything\":{\"dtype\":\"F32\",\"shape\":[5],\"data_offsets\":[76,84]}",
       8,
       {"tensor 'anything'", "needs 20 bytes"}},
  };
  for (int i = 0; i < LENGTH(rows); i++) {
    char header[2048];
    snprintf(header, sizeof header, "%.*s,%s}", (int)strlen(good_header) - 1, good_header,
             rows[i].entry);
    build(&file, header, GOOD_DATA + rows[i].bytes);
    expect_refused(&file, rows[i].entry, rows[i].words);
  }
}

/* Headers that are no header. */
static void hostile_headers_are_refused(void **state) {
  (void)state;
  static const char *const headers[] = {"",
                                        " ",
                                        "{",
                                        "}",
                                        "[]",
                                        "3",
                                        "null",
                                        "\"q\"",
                                        "{\"q\":}",
                                        "{'q':1}",
                                        "{\"q\":1}{}",
                                        "{\"\\u0000\":1}",
                                        "{\"q\":\"\xff\xfe\"}",
                                        "{\"__metadata__\":3}"};
  static char deep[200001];
  for (int i = 0; i < LENGTH(headers); i++) {
    build(&file, headers[i], 0);
    expect_refused(&file, headers[i], (const char *const[3]){NULL});
  }
  memset(deep, '[', sizeof deep - 1); /* must not recurse without limit */
  build(&file, deep, 0);
  expect_refused(&file, "deep nesting", (const char *const[3]){"header"});
}

static void lying_header_lengths_are_refused(void **state) {
  (void)state;
  const uint64_t right = strlen(good_header);
  const uint64_t wrong[] = {
      0,         1,         right - 1,  right + 1,  right + GOOD_DATA, right + GOOD_DATA + 1,
      100000001, INT64_MAX, 1ULL << 63, UINT64_MAX, UINT64_MAX - 7};
  for (int i = 0; i < LENGTH(wrong); i++) {
    char what[64];
    build(&file, good_header, GOOD_DATA);
    store_u64(file.bytes, wrong[i]);
    snprintf(what, sizeof what, "header length %llu of %llu", (unsigned long long)wrong[i],
             (unsigned long long)right);
    const char *words[3] = {NULL};
    if (wrong[i] > right + GOOD_DATA)
      words[0] = "header length", words[1] = "must be <=";
    expect_refused(&file, what, words);
  }
}

static void every_truncation_is_refused(void **state) {
  (void)state;
  build(&file, good_header, GOOD_DATA);
  const size_t whole = file.n_bytes;
  for (file.n_bytes = 0; file.n_bytes < whole; file.n_bytes++)
    expect_refused(&file, "truncated", (const char *const[3]){NULL});
  file.n_bytes = whole + 1; /* and a byte too many */
  expect_refused(&file, "a byte too many",
                 (const char *const[3]){"byte 76 of 77 belongs to no tensor"});
}

/* Any byte of the header replaced: refused with a reason, or a problem that plan and run cope with.
 */
static int change_bytes(const char *header, size_t data_bytes) {
  static const unsigned char values[] = {0, '"', '0', '9', '-', '[', '{', ',', 0xff};
  int accepted = 0;
  build(&file, header, data_bytes);
  for (size_t at = 0; at < 8 + strlen(header); at++)
    for (int i = 0; i < LENGTH(values); i++) {
      char error[ERROR_BYTES];
      harness_dataset d;
      const unsigned char right = file.bytes[at];
      file.bytes[at] = values[i];
      if (parse(&file, &d, error) == 0) {
        accepted++;
        try_run(&d, &(amla_options)AMLA_OPTIONS_INIT, NULL);
        harness_free(&d);
      } else {
        assert_non_null(strstr(error, "FILE: "));
      }
      file.bytes[at] = right;
    }
  return accepted;
}

static void no_changed_byte_crashes(void **state) {
  (void)state;
  assert_true(change_bytes(good_header, GOOD_DATA) > 0); /* digits of the scale, for one */
  assert_true(change_bytes(byte_header, BYTE_DATA) > 0);
}

/* Lengths and page ids are data: the reader takes them, amla_plan_run refuses them by name. */
static void bad_lengths_and_page_ids_are_refused_by_run(void **state) {
  (void)state;
  static const struct {
    size_t offset;
    int32_t value;
    const char *words;
  } rows[] = {{72, -1, "seqlens_k[0]=-1"},
              {72, 5, "seqlens_k[0]=5"},
              {72, INT32_MAX, "seqlens_k[0]=2147483647"},
              {64, 3, "block_table[0][0]=3"},
              {68, -9, "block_table[0][1]=-9"}};
  for (int i = 0; i < LENGTH(rows); i++) {
    char error[ERROR_BYTES];
    harness_dataset d;
    amla_detail detail;
    build(&file, good_header, GOOD_DATA);
    memcpy(file.bytes + 8 + strlen(good_header) + rows[i].offset, &rows[i].value, 4);
    if (parse(&file, &d, error) != 0)
      fail_msg("%s: %s", rows[i].words, error);
    assert_int_equal(try_run(&d, &(amla_options)AMLA_OPTIONS_INIT, &detail), AMLA_INVALID_ARGUMENT);
    if (strstr(detail.text, rows[i].words) == NULL)
      fail_msg("'%s' does not contain '%s'", detail.text, rows[i].words);
    assert_true(all_bytes_are(d.out, d.tensors.out_bytes, GUARD_PATTERN));
    harness_free(&d);
  }
}

/* ---- Paths ---- */

static void unreadable_paths_are_refused(void **state) {
  (void)state;
  put_file(in_folder("empty"), "", 0);
  const struct {
    const char *path, *words[2];
  } rows[] = {{"nonexistent.safetensors", {"nonexistent.safetensors", "No such file"}},
              {"a/b/c", {"a/b/c: cannot open"}},
              {folder, {folder, "not a directory"}},
              {in_folder("empty"), {"empty", "0 bytes"}},
              {"", {"cannot open"}}};
  for (int i = 0; i < LENGTH(rows); i++) {
    char error[ERROR_BYTES] = "";
    harness_dataset d;
    assert_int_equal(harness_read_problem(rows[i].path, &d, error, sizeof error), -1);
    for (int w = 0; w < 2 && rows[i].words[w]; w++)
      if (strstr(error, rows[i].words[w]) == NULL)
        fail_msg("'%s': '%s' does not contain '%s'", rows[i].path, error, rows[i].words[w]);
    assert_true(all_bytes_are(&d, sizeof d, 0));
  }
  list_folder(true);
}

typedef int writer(const char *path, const harness_dataset *data, char *error, size_t error_bytes);
static writer *const writers[] = {harness_write_problem, harness_write_result};

static void unwritable_paths_are_refused(void **state) {
  (void)state;
  harness_dataset d;
  generate(&d, "b=2,h=30,sk=100,dqk=64,dv=48");
  const char *const paths[] = {"/dev/full", folder, in_folder("no/such/folder"), ""};
  for (int i = 0; i < LENGTH(paths); i++)
    for (int w = 0; w < LENGTH(writers); w++) {
      char error[ERROR_BYTES] = "";
      if (writers[w](paths[i], &d, error, sizeof error) != -1)
        fail_msg("'%s' could be written", paths[i]);
      if (strstr(error, "cannot write: ") == NULL || strstr(error, paths[i]) != error)
        fail_msg("'%s': '%s'", paths[i], error);
      assert_int_equal(list_folder(false), 0);
    }
  harness_free(&d);
}

/* A disk that fills up, played by a limit on the file size: no file, no temporary file, an existing
 * file untouched. */
static void a_failed_write_leaves_nothing_behind(void **state) {
  (void)state;
  harness_dataset d;
  struct rlimit before;
  generate(&d, "b=2,h=30,sk=100,dqk=64,dv=48");
  put_file(in_folder("existing"), "precious", 8);
  assert_int_equal(getrlimit(RLIMIT_FSIZE, &before), 0);
  for (rlim_t limit = 0; limit < 10000; limit += 1111)
    for (int w = 0; w < 2 * LENGTH(writers); w++) {
      char error[ERROR_BYTES] = "";
      const char *path = in_folder(w % 2 ? "existing" : "new");
      const struct rlimit low = {limit, before.rlim_max};
      assert_int_equal(setrlimit(RLIMIT_FSIZE, &low), 0);
      const int status = writers[w / 2](path, &d, error, sizeof error);
      assert_int_equal(setrlimit(RLIMIT_FSIZE, &before), 0);
      if (status != -1)
        fail_msg("%s was written with a limit of %d bytes", path, (int)limit);
      assert_non_null(strstr(error, "cannot write: "));
      assert_int_equal(list_folder(false), 1);
    }
  size_t n_bytes;
  unsigned char *bytes = get_file(in_folder("existing"), &n_bytes);
  assert_true(n_bytes == 8 && memcmp(bytes, "precious", 8) == 0);
  free(bytes);
  harness_free(&d);
  list_folder(true);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(problems_round_trip),
      cmocka_unit_test(sparse_problems_round_trip),
      cmocka_unit_test(what_files_do_not_hold_is_refused_by_name),
      cmocka_unit_test(results_are_written),
      cmocka_unit_test(the_good_file_is_good),
      cmocka_unit_test(lying_headers_are_refused),
      cmocka_unit_test(lies_about_bytes_are_refused),
      cmocka_unit_test(bad_optional_tensors_are_refused),
      cmocka_unit_test(hostile_headers_are_refused),
      cmocka_unit_test(lying_header_lengths_are_refused),
      cmocka_unit_test(every_truncation_is_refused),
      cmocka_unit_test(no_changed_byte_crashes),
      cmocka_unit_test(bad_lengths_and_page_ids_are_refused_by_run),
      cmocka_unit_test(unreadable_paths_are_refused),
      cmocka_unit_test(unwritable_paths_are_refused),
      cmocka_unit_test(a_failed_write_leaves_nothing_behind),
  };
  signal(SIGXFSZ, SIG_IGN); /* a file over the limit is an error of write, not the end */
  return cmocka_run_group_tests_name("safetensors", tests, make_folder, remove_folder);
}
