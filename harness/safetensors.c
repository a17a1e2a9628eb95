/* SPDX-License-Identifier: Apache-2.0
 *
 * Reading problems from safetensors bytes. The input is hostile until proven otherwise: first the
 * whole header is checked by the rules of the format, whatever the tensors are called
 * (read_header), then the tensors that make a problem are taken by name, type and shape
 * (take_problem). Writing is in safetensors_write.c.
 */
#define _DEFAULT_SOURCE 1 /* the size of memory */
#include "safetensors.h"

#include <errno.h>
#include <inttypes.h>
#include <jansson.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "kv_rows.h"
#include "message.h"
#include "names.h"
#include "scopes.h"

enum { MAX_DIMS = 8, SHOWN = 80 /* characters of a name or value in a message */ };
static const uint64_t max_header_bytes = 100000000; /* as the format's own library */

/* ---- The format ---- */

typedef struct tensor {
  const char *name; /* belongs to the JSON */
  const char *dtype;
  int32_t n_dims;
  int64_t dims[MAX_DIMS];
  int64_t begin, end; /* bytes, into data */
} tensor;

typedef struct file_view {
  const char *name; /* in messages */
  const unsigned char *data;
  int64_t data_bytes;
  json_t *header;
  const json_t *metadata; /* NULL = none */
  tensor *tensors;        /* sorted by begin once checked */
  size_t n_tensors;
  message error;
} file_view;

typedef struct dtype_row {
  const char *name;
  int64_t bytes;
} dtype_row;

static const dtype_row dtypes[] = {{"BOOL", 1},    {"U8", 1},  {"I8", 1},  {"F8_E4M3", 1},
                                   {"F8_E5M2", 1}, {"I16", 2}, {"U16", 2}, {"F16", 2},
                                   {"BF16", 2},    {"I32", 4}, {"U32", 4}, {"F32", 4},
                                   {"I64", 8},     {"U64", 8}, {"F64", 8}};

static int64_t bytes_of_dtype(const char *name) {
  for (size_t i = 0; i < sizeof dtypes / sizeof *dtypes; i++)
    if (strcmp(name, dtypes[i].name) == 0)
      return dtypes[i].bytes;
  return 0;
}

/* A JSON value as it stands in the file, cut short. */
static const char *show(const json_t *value, char text[SHOWN]) {
  char *dump = value ? json_dumps(value, JSON_ENCODE_ANY | JSON_COMPACT | JSON_ENSURE_ASCII) : NULL;
  snprintf(text, SHOWN, "%s", dump ? dump : "(missing)");
  free(dump);
  return text;
}

static int refuse_tensor(const file_view *f, const char *name, const char *field,
                         const json_t *value, const char *rule) {
  char text[SHOWN];
  return refuse(f->error, "%s: tensor '%.*s': %s %s: %s", f->name, SHOWN, name, field,
                show(value, text), rule);
}

static int read_shape(const file_view *f, const json_t *shape, tensor *t) {
  if (!json_is_array(shape))
    return refuse_tensor(f, t->name, "shape", shape, "must be an array");
  if (json_array_size(shape) > MAX_DIMS)
    return refuse_tensor(f, t->name, "shape", shape, "more than 8 dimensions");
  t->n_dims = (int32_t)json_array_size(shape);
  for (int32_t i = 0; i < t->n_dims; i++) {
    const json_t *dim = json_array_get(shape, (size_t)i);
    if (!json_is_integer(dim) || json_integer_value(dim) < 0)
      return refuse_tensor(f, t->name, "shape", shape, "dimensions must be integers >= 0");
    t->dims[i] = json_integer_value(dim);
  }
  return 0;
}

static int read_offsets(const file_view *f, const json_t *offsets, tensor *t) {
  const json_t *begin = json_array_get(offsets, 0), *end = json_array_get(offsets, 1);
  if (!json_is_array(offsets) || json_array_size(offsets) != 2 || !json_is_integer(begin) ||
      !json_is_integer(end))
    return refuse_tensor(f, t->name, "data_offsets", offsets, "must be two integers");
  t->begin = json_integer_value(begin);
  t->end = json_integer_value(end);
  if (t->begin < 0 || t->end < t->begin || t->end > f->data_bytes) {
    char rule[96];
    snprintf(rule, sizeof rule, "must be 0 <= begin <= end <= %" PRId64 ", the bytes of data",
             f->data_bytes);
    return refuse_tensor(f, t->name, "data_offsets", offsets, rule);
  }
  return 0;
}

static int read_tensor(const file_view *f, const char *name, const json_t *entry, tensor *t) {
  const json_t *dtype = json_object_get(entry, "dtype"), *shape = json_object_get(entry, "shape");
  const json_t *offsets = json_object_get(entry, "data_offsets");
  t->name = name;
  if (!json_is_object(entry))
    return refuse_tensor(f, name, "entry", entry, "must be an object");
  t->dtype = json_string_value(dtype);
  int64_t bytes = t->dtype ? bytes_of_dtype(t->dtype) : 0;
  if (bytes == 0)
    return refuse_tensor(f, name, "dtype", dtype, "must be a type of the format, such as \"BF16\"");
  if (read_shape(f, shape, t) != 0 || read_offsets(f, offsets, t) != 0)
    return -1;
  for (int32_t i = 0; i < t->n_dims; i++)
    if (!multiply_add(&bytes, t->dims[i], 0))
      return refuse_tensor(f, name, "shape", shape, "the product leaves int64");
  if (bytes != t->end - t->begin) {
    char rule[96];
    snprintf(rule, sizeof rule, "needs %" PRId64 " bytes of %s, the offsets hold %" PRId64, bytes,
             t->dtype, t->end - t->begin);
    return refuse_tensor(f, name, "shape", shape, rule);
  }
  return 0;
}

static int by_begin(const void *a, const void *b) {
  const tensor *x = a, *y = b;
  if (x->begin != y->begin)
    return x->begin < y->begin ? -1 : 1;
  return (x->end > y->end) - (x->end < y->end);
}

/* The format: tensors tile the data, without holes and without overlap. */
static int check_tiling(file_view *f) {
  int64_t at = 0;
  if (f->n_tensors > 0)
    qsort(f->tensors, f->n_tensors, sizeof *f->tensors, by_begin);
  for (size_t i = 0; i < f->n_tensors; i++) {
    const tensor *t = &f->tensors[i];
    if (t->begin < at)
      return refuse(f->error,
                    "%s: tensor '%.*s': data_offsets [%" PRId64 ", %" PRId64
                    "] overlap those of '%.*s'",
                    f->name, SHOWN, t->name, t->begin, t->end, SHOWN, f->tensors[i - 1].name);
    if (t->begin > at)
      break;
    at = t->end;
  }
  if (at == f->data_bytes)
    return 0;
  return refuse(f->error, "%s: data: byte %" PRId64 " of %" PRId64 " belongs to no tensor", f->name,
                at, f->data_bytes);
}

static int read_metadata(file_view *f, const json_t *metadata) {
  const char *key;
  json_t *value;
  char text[SHOWN];
  if (!json_is_object(metadata))
    return refuse(f->error, "%s: __metadata__ %s: must be an object", f->name,
                  show(metadata, text));
  json_object_foreach((json_t *)(uintptr_t)metadata, key, value) {
    if (!json_is_string(value))
      return refuse(f->error, "%s: metadata '%.*s': %s: must be a string", f->name, SHOWN, key,
                    show(value, text));
  }
  f->metadata = metadata;
  return 0;
}

static int read_entries(file_view *f) {
  const char *key;
  json_t *value;
  f->tensors = calloc(json_object_size(f->header) + 1, sizeof *f->tensors);
  if (f->tensors == NULL)
    return refuse(f->error, "%s: out of memory", f->name);
  json_object_foreach(f->header, key, value) {
    if (strcmp(key, "__metadata__") == 0) {
      if (read_metadata(f, value) != 0)
        return -1;
    } else if (read_tensor(f, key, value, &f->tensors[f->n_tensors++]) != 0) {
      return -1;
    }
  }
  return check_tiling(f);
}

static uint64_t header_length(const unsigned char bytes[8]) {
  uint64_t length = 0;
  for (int i = 0; i < 8; i++)
    length |= (uint64_t)bytes[i] << 8 * i;
  return length;
}

static int read_header(file_view *f, const unsigned char *bytes, size_t n_bytes) {
  json_error_t json_error;
  if (n_bytes < 8)
    return refuse(f->error, "%s: %zu bytes: a safetensors file has at least 8", f->name, n_bytes);
  const uint64_t length = header_length(bytes);
  if (length > max_header_bytes)
    return refuse(f->error, "%s: header length %" PRIu64 ": must be <= %" PRIu64, f->name, length,
                  max_header_bytes);
  if (length > n_bytes - 8)
    return refuse(f->error, "%s: header length %" PRIu64 ": must be <= %zu, the bytes that follow",
                  f->name, length, n_bytes - 8);
  f->data = bytes + 8 + length;
  f->data_bytes = (int64_t)(n_bytes - 8 - length);
  f->header =
      json_loadb((const char *)bytes + 8, (size_t)length, JSON_REJECT_DUPLICATES, &json_error);
  if (f->header == NULL)
    return refuse(
        f->error, "%s: header: JSON at byte %d: %.*s", f->name, json_error.position, SHOWN,
        *json_error.text ? json_error.text : "out of memory"); /* jansson is silent then */
  if (!json_is_object(f->header))
    return refuse(f->error, "%s: header: must be a JSON object", f->name);
  return read_entries(f);
}

/* ---- The problem ---- */

enum { FLOATS, F32_ONLY, I32_ONLY, BF16_ONLY, F16_ONLY, BYTES, CACHE };

/* What a tensor of a problem must be. dims: the size required, ANY with a minimum of 1, or
 * ANY_OR_0. */
enum { ANY = -1, ANY_OR_0 = -2 };
typedef struct expected {
  const char *name;
  int type; /* F32_ONLY ... */
  int32_t n_dims;
  int64_t dims[4];
} expected;

static const tensor *find(const file_view *f, const char *name) {
  for (size_t i = 0; i < f->n_tensors; i++)
    if (strcmp(f->tensors[i].name, name) == 0)
      return &f->tensors[i];
  return NULL;
}

static const char *show_shape(const tensor *t, char text[SHOWN]) {
  size_t used = 0;
  text[used++] = '[';
  for (int32_t i = 0; i < t->n_dims && used < SHOWN; i++)
    used += (size_t)snprintf(text + used, SHOWN - used, i ? ", %" PRId64 : "%" PRId64, t->dims[i]);
  if (used < SHOWN)
    snprintf(text + used, SHOWN - used, "]");
  return text;
}

/* What a tensor of that type must be. */
static int rule_of(amla_dtype type) {
  static const int rules[] = {F32_ONLY, BF16_ONLY, F16_ONLY}; /* by amla_dtype */
  return harness_dtype_bytes(type) > 0 ? rules[type] : BYTES;
}

/* The amla_dtype of that name, -1 if there is none. */
static int type_of(const tensor *t) {
  static const char *const names[] = {"F32", "BF16", "F16"}; /* by amla_dtype */
  for (int i = 0; i <= AMLA_F16; i++)
    if (strcmp(t->dtype, names[i]) == 0)
      return i;
  return -1;
}

static int check_type(const file_view *f, const tensor *t, int type) {
  static const char *const rules[] = {"F32, BF16 or F16",
                                      "F32",
                                      "I32",
                                      "BF16",
                                      "F16",
                                      "U8",
                                      "F32, BF16, F16, or U8 with metadata 'kv'"};
  if (type == FLOATS || type == CACHE ? type_of(t) >= 0 : strcmp(t->dtype, rules[type]) == 0)
    return 0;
  return refuse(f->error, "%s: tensor '%s': dtype %s: must be %s", f->name, t->name, t->dtype,
                rules[type]);
}

static int check_tensor(const file_view *f, const tensor *t, const expected *e) {
  char shape[SHOWN];
  if (check_type(f, t, e->type) != 0)
    return -1;
  if (t->n_dims != e->n_dims)
    return refuse(f->error, "%s: tensor '%s': shape %s must have %d dimensions", f->name, t->name,
                  show_shape(t, shape), e->n_dims);
  for (int32_t i = 0; i < e->n_dims; i++) {
    const int64_t dim = t->dims[i], want = e->dims[i];
    if (want >= 0 && dim != want)
      return refuse(f->error, "%s: tensor '%s': shape %s: dimension %d must be %" PRId64, f->name,
                    t->name, show_shape(t, shape), i, want);
    if (dim > INT32_MAX || (want == ANY && dim < 1))
      return refuse(f->error, "%s: tensor '%s': shape %s: dimension %d must be in [%d, 2^31)",
                    f->name, t->name, show_shape(t, shape), i, want == ANY);
  }
  return 0;
}

/* *t = the tensor, checked; NULL when it is optional and missing. */
static int take(const file_view *f, const expected *e, bool optional, const tensor **t) {
  *t = find(f, e->name);
  if (*t != NULL)
    return check_tensor(f, *t, e);
  return optional ? 0 : refuse(f->error, "%s: tensor '%s': missing", f->name, e->name);
}

/* A copy in a buffer of its own: aligned, and of exactly its size. */
static int copy(const file_view *f, const tensor *t, void *buffer) {
  void **to = buffer;
  if (t == NULL)
    return 0;
  *to = harness_allocate(t->end - t->begin, 1);
  if (*to == NULL)
    return refuse(f->error, "%s: tensor '%s': out of memory", f->name, t->name);
  memcpy(*to, f->data + t->begin, (size_t)(t->end - t->begin));
  return 0;
}

/* ---- Metadata: strings that hold numbers ---- */

/* NULL: not there. */
static const char *metadata_text(const file_view *f, const char *key) {
  return f->metadata ? json_string_value(json_object_get(f->metadata, key)) : NULL;
}

static int metadata_number(const file_view *f, const char *key, const char *fallback,
                           const char *rule, double min, double max, double *value) {
  const char *text = metadata_text(f, key);
  char *end;
  if (text == NULL)
    text = fallback;
  if (text == NULL)
    return refuse(f->error, "%s: metadata '%s': missing", f->name, key);
  *value = strtod(text, &end);
  /* No blanks, hexadecimals, infinities. */
  const bool plain = strspn(text, "0123456789+-.eE") == strlen(text);
  if (!plain || end == text || *end != '\0' || !(*value >= min && *value <= max))
    return refuse(f->error, "%s: metadata '%s': \"%.*s\": must be %s", f->name, key, SHOWN, text,
                  rule);
  return 0;
}

static int metadata_integer(const file_view *f, const char *key, const char *fallback, int32_t min,
                            int32_t max, int32_t *value) {
  char rule[64];
  double number = 0;
  snprintf(rule, sizeof rule, "an integer in [%d, %d]", min, max);
  if (metadata_number(f, key, fallback, rule, min, max, &number) != 0)
    return -1;
  *value = (int32_t)number;
  if ((double)*value == number)
    return 0;
  return refuse(f->error, "%s: metadata '%s': %g: must be %s", f->name, key, number, rule);
}

static int take_index_kind(const file_view *f, amla_problem *p) {
  const char *text = metadata_text(f, "index");
  p->index_kind = AMLA_INDEX_SLOT;
  if (text == NULL || strcmp(text, "slot") == 0)
    return 0;
  p->index_kind = AMLA_INDEX_POSITION;
  if (strcmp(text, "position") == 0)
    return 0;
  return refuse(f->error, "%s: metadata 'index': \"%.*s\": must be slot or position", f->name,
                SHOWN, text);
}

/* Of both caches: what metadata say, or else the first one's dtype. */
static int take_kv_type(const file_view *f, amla_problem *p) {
  const char *text = metadata_text(f, "kv");
  const tensor *kv = find(f, "kv_cache");
  if (text == NULL && kv != NULL && check_type(f, kv, CACHE) != 0)
    return -1;
  if (text == NULL) {
    p->kv_type = kv != NULL ? (amla_dtype)type_of(kv) : AMLA_F32;
    return 0;
  }
  const int type = harness_find_name(harness_dtypes, text);
  if (type < 0)
    return refuse(f->error, "%s: metadata 'kv': \"%.*s\": must be %s", f->name, SHOWN, text,
                  harness_list_names(harness_dtypes, " or ").text);
  p->kv_type = (amla_dtype)type;
  return 0;
}

/* What a cache of that type makes of d_qk and d_v; and its scales, whose range is the library's. */
static int take_kv_dims(const file_view *f, amla_problem *p) {
  const double limit = 3.4028234663852886e38; /* FLT_MAX */
  const int32_t d_qk = harness_record_d_qk(p->kv_type);
  int32_t bytes;
  const int32_t elems = amla_dtype_block(p->kv_type, &bytes);
  double latent = 0, rope = 0;
  if (p->d_qk % elems != 0 || (d_qk > 0 && (p->d_qk != d_qk || p->d_v != 512)))
    return refuse(f->error, "%s: metadata 'kv': %s: does not go with d_qk=%d and d_v=%d", f->name,
                  amla_dtype_name(p->kv_type), p->d_qk, p->d_v);
  if (metadata_number(f, "kv_scale", "0", "finite in f32", -limit, limit, &latent) != 0 ||
      metadata_number(f, "kv_rope_scale", "0", "finite in f32", -limit, limit, &rope) != 0)
    return -1;
  p->kv_scale = (float)latent, p->kv_rope_scale = (float)rope;
  return 0;
}

static int take_metadata(const file_view *f, harness_dataset *data) {
  const char *rule = "a number, finite in f32 and not 0";
  amla_problem *p = &data->problem;
  const double limit = 3.4028234663852886e38; /* FLT_MAX */
  if (metadata_number(f, "scale", NULL, rule, -limit, limit, &data->scale_exact) != 0)
    return -1;
  p->scale = (float)data->scale_exact;
  if (p->scale == 0.0f)
    return refuse(f->error, "%s: metadata 'scale': %g: must be %s", f->name, data->scale_exact,
                  rule);
  if (metadata_integer(f, "causal", "0", 0, 1, &p->causal) != 0 ||
      metadata_integer(f, "window", "0", 0, INT32_MAX, &p->window) != 0 ||
      take_index_kind(f, p) != 0 || take_kv_type(f, p) != 0)
    return -1;
  return metadata_integer(f, "d_v", NULL, 1, p->d_qk, &p->d_v) != 0 ? -1 : take_kv_dims(f, p);
}

/* ---- Tensors ---- */

static int take_q(const file_view *f, harness_dataset *data) {
  const expected e = {"q", FLOATS, 4, {ANY_OR_0, ANY, ANY, ANY}};
  const tensor *q;
  amla_problem *p = &data->problem;
  if (take(f, &e, false, &q) != 0)
    return -1;
  p->b = (int32_t)q->dims[0];
  p->s_q = (int32_t)q->dims[1];
  p->h_q = (int32_t)q->dims[2];
  p->d_qk = (int32_t)q->dims[3];
  p->q_type = (amla_dtype)type_of(q);
  return copy(f, q, &data->q);
}

/* ---- Scopes: of the second one every name begins with extra_ ---- */

typedef struct scope_names {
  const char *kv, *table, *lengths, *visible, *indices, *topk_length;
} scope_names;

static const scope_names first_names = {"kv_cache",  "block_table", "seqlens_k",
                                        "visible_k", "indices",     "topk_length"};
static const scope_names second_names = {"extra_kv_cache",  "extra_block_table",
                                         "extra_seqlens_k", "extra_visible_k",
                                         "extra_indices",   "extra_topk_length"};

/* The lists, if there are any. */
static int take_lists(const file_view *f, const scope_names *names, harness_dataset *x) {
  amla_problem *p = &x->problem;
  const expected e = {names->indices, I32_ONLY, 3, {p->b, p->s_q, ANY}};
  const tensor *list, *length = find(f, names->topk_length);
  const int per_query = length != NULL && length->n_dims == 2;
  const expected length_expected = {
      names->topk_length, I32_ONLY, per_query ? 2 : 1, {p->b, p->s_q}};
  if (take(f, &e, true, &list) != 0 || copy(f, list, &x->indices) != 0)
    return -1;
  if (list == NULL)
    return 0;
  p->topk = (int32_t)list->dims[2];
  p->indices_stride_query = p->topk;
  p->indices_stride_batch = (int64_t)p->s_q * p->topk;
  p->topk_length_per_query = per_query;
  if (take(f, &length_expected, true, &length) != 0)
    return -1;
  return copy(f, length, &x->topk_length);
}

/* The cache, the block table, and *capacity = the tokens a sequence has room for. Lists of slots
 * see nothing but pages. */
static int take_kv(const file_view *f, const scope_names *names, harness_dataset *x,
                   int64_t *capacity) {
  amla_problem *p = &x->problem;
  const bool slots = harness_has_slots(p), paged = slots || find(f, names->table) != NULL;
  const size_t element = harness_dtype_bytes(p->kv_type);
  const int64_t unit = element > 0 ? (int64_t)element : 1; /* bytes */
  const int64_t token = harness_token_bytes(p->kv_type, p->d_qk);
  const expected kv_expected = {
      names->kv, rule_of(p->kv_type), 3, {paged ? ANY_OR_0 : p->b, ANY, token / unit}};
  const expected table_expected = {names->table, I32_ONLY, 2, {p->b, ANY}};
  const tensor *kv, *table = NULL;
  if (take(f, &kv_expected, false, &kv) != 0 ||
      (!slots && take(f, &table_expected, true, &table) != 0))
    return -1;
  p->kv_stride_token = harness_row_elems(p->kv_type, p->d_qk);
  p->kv_stride_page = kv->dims[1] * p->kv_stride_token; /* both < 2^31 */
  if (p->kv_type == AMLA_FP8_584)                       /* the footer too */
    p->kv_stride_page = kv->dims[1] * token;
  *capacity = kv->dims[1];
  if (paged) {
    p->n_pages = kv->dims[0];
    p->page_size = (int32_t)kv->dims[1];
    p->max_pages = table != NULL ? (int32_t)table->dims[1] : 0;
    *capacity *= p->max_pages;
  }
  return copy(f, kv, &x->kv) != 0 ? -1 : copy(f, table, &x->block_table);
}

/* sk = the longest length when all fit. Otherwise the capacity: amla_plan_run then refuses the
 * length by name. */
static int take_lengths(const file_view *f, const scope_names *names, harness_dataset *x,
                        int64_t capacity) {
  amla_problem *p = &x->problem;
  const expected e = {names->lengths, I32_ONLY, 1, {p->b}};
  const expected visible_expected = {names->visible, I32_ONLY, 2, {p->b, p->s_q}};
  const tensor *lengths, *visible = NULL;
  int32_t longest = 1;
  if (take(f, &e, false, &lengths) != 0 || copy(f, lengths, &x->seqlens_k) != 0)
    return -1;
  if (p->topk == 0 && take(f, &visible_expected, true, &visible) != 0)
    return -1;
  if (copy(f, visible, &x->visible_k) != 0)
    return -1;
  p->sk = capacity < INT32_MAX ? (int32_t)capacity : INT32_MAX;
  if (p->kv_type == AMLA_FP8_584 && p->page_size == 0)
    return 0; /* a sequence is a page, and sk says where its footer is */
  for (int32_t s = 0; s < p->b; s++) {
    if (x->seqlens_k[s] < 0 || x->seqlens_k[s] > p->sk)
      return 0;
    if (x->seqlens_k[s] > longest)
      longest = x->seqlens_k[s];
  }
  p->sk = longest;
  return 0;
}

static int take_scope(const file_view *f, const scope_names *names, harness_dataset *x) {
  int64_t capacity;
  if (take_lists(f, names, x) != 0 || take_kv(f, names, x, &capacity) != 0)
    return -1;
  if (!harness_has_slots(&x->problem))
    return take_lengths(f, names, x, capacity);
  const int64_t slots = x->problem.n_pages * x->problem.page_size; /* no length is read */
  x->problem.sk = slots < INT32_MAX ? (int32_t)slots : INT32_MAX;
  return 0;
}

/* As the first scope of a problem of its own. */
static int take_second_scope(const file_view *f, harness_dataset *data) {
  amla_problem *p = &data->problem;
  harness_dataset x = {.problem = harness_second_problem(p)};
  const int status = take_scope(f, &second_names, &x);
  data->extra_kv = x.kv, data->extra_indices = x.indices, data->extra_topk_length = x.topk_length;
  data->extra_block_table = x.block_table, data->extra_seqlens_k = x.seqlens_k;
  data->extra_visible_k = x.visible_k;
  if (status != 0)
    return -1;
  if (data->topk_length && x.topk_length &&
      x.problem.topk_length_per_query != p->topk_length_per_query)
    return refuse(f->error, "%s: tensor 'extra_topk_length': must have topk_length's dimensions",
                  f->name);
  p->topk_length_per_query |= x.topk_length && x.problem.topk_length_per_query;
  p->extra_sk = x.problem.sk, p->extra_topk = x.problem.topk;
  p->extra_page_size = x.problem.page_size, p->extra_max_pages = x.problem.max_pages;
  p->extra_n_pages = x.problem.n_pages;
  p->extra_kv_stride_page = x.problem.kv_stride_page;
  p->extra_kv_stride_token = x.problem.kv_stride_token;
  p->extra_indices_stride_batch = x.problem.indices_stride_batch;
  p->extra_indices_stride_query = x.problem.indices_stride_query;
  return 0;
}

static int take_optional(const file_view *f, harness_dataset *data) {
  const amla_problem *p = &data->problem;
  const expected out_expected = {"out_ref", F32_ONLY, 4, {p->b, p->s_q, p->h_q, p->d_v}};
  const expected lse_expected = {"lse_ref", F32_ONLY, 3, {p->b, p->h_q, p->s_q}};
  const expected sinks_expected = {"sinks", F32_ONLY, 1, {p->h_q}};
  const tensor *out, *lse, *sinks;
  if (take(f, &out_expected, true, &out) != 0 || copy(f, out, &data->out_ref) != 0)
    return -1;
  if (take(f, &lse_expected, true, &lse) != 0 || copy(f, lse, &data->lse_ref) != 0)
    return -1;
  return take(f, &sinks_expected, true, &sinks) != 0 ? -1 : copy(f, sinks, &data->sinks);
}

static bool fill_strides(amla_problem *p) {
  p->q_stride_head = p->d_qk;
  p->q_stride_query = (int64_t)p->h_q * p->d_qk; /* < 2^62 */
  p->q_stride_batch = p->q_stride_query;
  p->out_stride_head = p->d_v;
  p->out_stride_query = (int64_t)p->h_q * p->d_v;
  p->out_stride_batch = p->out_stride_query;
  return multiply_add(&p->q_stride_batch, p->s_q, 0) &&
         multiply_add(&p->out_stride_batch, p->s_q, 0);
}

static int take_problem(const file_view *f, harness_dataset *data) {
  data->problem = (amla_problem)AMLA_PROBLEM_INIT;
  data->problem.out_type = AMLA_F32;
  data->options = (amla_options)AMLA_OPTIONS_INIT;
  if (take_q(f, data) != 0 || take_metadata(f, data) != 0 || take_scope(f, &first_names, data) != 0)
    return -1;
  if (find(f, second_names.kv) != NULL && take_second_scope(f, data) != 0)
    return -1;
  if (take_optional(f, data) != 0)
    return -1;
  if (!fill_strides(&data->problem))
    return refuse(f->error, "%s: tensor 'q': a stride leaves int64", f->name);
  return harness_attach(data) ? 0 : refuse(f->error, "%s: out of memory", f->name);
}

/* ---- Interface ---- */

int harness_parse_safetensors(const char *name, const void *bytes, size_t n_bytes,
                              harness_dataset *data, char *error_text, size_t error_bytes) {
  file_view f = {.name = name, .error = {error_text, error_bytes}};
  *data = (harness_dataset){0};
  int status = read_header(&f, bytes, n_bytes);
  if (status == 0)
    status = take_problem(&f, data);
  if (status != 0)
    harness_free(data);
  json_decref(f.header);
  free(f.tensors);
  return status;
}

/* ---- Files and pipes ---- */

typedef struct buffer {
  unsigned char *bytes;
  size_t n_bytes;
} buffer;

/* The tensors are copied out of it: what is read stands in memory twice. */
static uint64_t most_bytes(void) {
  return (uint64_t)sysconf(_SC_PHYS_PAGES) * (uint64_t)sysconf(_SC_PAGESIZE) / 2;
}

/* Reads on, until the buffer has so many bytes or the file ends. */
static int read_up_to(FILE *file, uint64_t n_bytes, buffer *b, const char *path, message error) {
  if (n_bytes > most_bytes())
    return refuse(error,
                  "%s: %" PRIu64 " bytes: must be <= %" PRIu64 ", half of this machine's memory",
                  path, n_bytes, most_bytes());
  unsigned char *larger = realloc(b->bytes, (size_t)n_bytes);
  if (larger == NULL)
    return refuse(error, "%s: out of memory for %" PRIu64 " bytes", path, n_bytes);
  b->bytes = larger;
  b->n_bytes += fread(b->bytes + b->n_bytes, 1, (size_t)n_bytes - b->n_bytes, file);
  return ferror(file) ? refuse(error, "%s: cannot read: %s", path, strerror(errno)) : 0;
}

/* The bytes of data that a header speaks of; 0 when it says nothing sensible: refused later. */
static uint64_t announced_bytes(const unsigned char *header, size_t n_bytes) {
  json_t *json = json_loadb((const char *)header, n_bytes, 0, NULL), *entry;
  const char *name;
  json_int_t most = 0;
  json_object_foreach(json, name, entry) {
    const json_t *offsets = json_object_get(entry, "data_offsets");
    const json_int_t end = json_integer_value(json_array_get(offsets, 1));
    if (end > most)
      most = end;
  }
  json_decref(json);
  return (uint64_t)most;
}

/* A pipe may not end: no more is read than its header speaks of, and one byte, which is too many.
 */
static int read_pipe(FILE *file, buffer *b, const char *path, message error) {
  if (read_up_to(file, 8, b, path, error) != 0)
    return -1;
  const uint64_t length = b->n_bytes == 8 ? header_length(b->bytes) : 0;
  if (length == 0 || length > max_header_bytes)
    return 0;
  if (read_up_to(file, 8 + length, b, path, error) != 0)
    return -1;
  if (b->n_bytes < 8 + length)
    return 0;
  const uint64_t data = announced_bytes(b->bytes + 8, (size_t)length);
  return read_up_to(file, 8 + length + data + 1, b, path, error);
}

static int read_file(FILE *file, buffer *b, const char *path, message error) {
  struct stat about;
  if (fstat(fileno(file), &about) != 0 || (!S_ISREG(about.st_mode) && !S_ISFIFO(about.st_mode)))
    return refuse(error, "%s: must be a file or a pipe, not a directory or a device", path);
  if (S_ISFIFO(about.st_mode))
    return read_pipe(file, b, path, error);
  return read_up_to(file, (uint64_t)about.st_size + 1, b, path, error); /* one more, lest it be 0 */
}

int harness_read_problem(const char *path, harness_dataset *data, char *error_text,
                         size_t error_bytes) {
  const message error = {error_text, error_bytes};
  buffer b = {NULL, 0};
  *data = (harness_dataset){0};
  FILE *file = fopen(path, "rb");
  if (file == NULL)
    return refuse(error, "%s: cannot open: %s", path, strerror(errno));
  int status = read_file(file, &b, path, error);
  fclose(file);
  if (status == 0)
    status = harness_parse_safetensors(path, b.bytes, b.n_bytes, data, error_text, error_bytes);
  free(b.bytes);
  return status;
}
