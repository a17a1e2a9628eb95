/* SPDX-License-Identifier: Apache-2.0
 *
 * Writing problems and results as safetensors. A file appears complete under its name or not at
 * all: it is written beside it and renamed. Strides are packed away on the way out.
 */
#define _GNU_SOURCE 1 /* asprintf */
#include "safetensors.h"

#include <assert.h>
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "kv_rows.h"
#include "message.h"
#include "scopes.h"

/* ---- The output file ---- */

typedef struct output {
  FILE *file;
  char *target;    /* the path behind symbolic links; owned */
  char *temporary; /* NULL: a device or pipe, written in place; owned */
} output;

static char *beside(const char *path) {
  char *name;
  return asprintf(&name, "%s.XXXXXX", path) < 0 ? NULL : name;
}

/* The path behind symbolic links, or as it is when nothing is there yet. */
static char *resolve(const char *path) {
  char *resolved = realpath(path, NULL);
  return resolved == NULL && errno == ENOENT ? strdup(path) : resolved;
}

static FILE *open_temporary(output *o) {
  const mode_t mask = umask(0);
  umask(mask);
  o->temporary = beside(o->target);
  const int descriptor = o->temporary ? mkstemp(o->temporary) : -1;
  if (descriptor < 0) {
    free(o->temporary);
    o->temporary = NULL;
    return NULL;
  }
  FILE *file = fchmod(descriptor, 0666 & ~mask) == 0 ? fdopen(descriptor, "wb") : NULL;
  if (file == NULL)
    close(descriptor);
  return file;
}

static bool open_output(const char *path, output *o) {
  struct stat about;
  /* A device, a pipe; a directory fails by itself. */
  const bool in_place = stat(path, &about) == 0 && !S_ISREG(about.st_mode);
  *o = (output){.target = in_place ? strdup(path) : resolve(path)};
  if (o->target != NULL)
    o->file = in_place ? fopen(path, "wb") : open_temporary(o);
  return o->file != NULL;
}

/* Finishes the file when all went well so far, else removes it. errno says what went wrong first.
 */
static bool close_output(output *o, bool ok) {
  int reason = ok ? 0 : errno;
  if (o->file != NULL) {
    if (fflush(o->file) != 0 || (o->temporary != NULL && fsync(fileno(o->file)) != 0))
      ok = false;
    if (!ok && reason == 0)
      reason = errno;
    if (fclose(o->file) != 0 && ok)
      ok = false, reason = errno;
  }
  if (ok && o->temporary != NULL && rename(o->temporary, o->target) != 0)
    ok = false, reason = errno;
  if (!ok && o->temporary != NULL)
    unlink(o->temporary);
  free(o->temporary);
  free(o->target);
  errno = reason;
  return ok;
}

/* ---- Tensors to write ---- */

/* An element's type as files call it. */
typedef struct element {
  const char *dtype;
  size_t bytes;
} element;

static const element i32 = {"I32", 4}, u8 = {"U8", 1};

static element element_of(amla_dtype type) {
  static const char *const names[] = {"F32", "BF16", "F16"}; /* by amla_dtype */
  const size_t bytes = harness_dtype_bytes(type);
  return bytes > 0 ? (element){names[type], bytes} : u8;
}

/* [n0][n1][n2] rows of n elements each, with strides in elements. */
typedef struct source {
  const char *name;
  element type;
  const void *elements;
  int32_t n_dims; /* of the tensor: the last n_dims of n0, n1, n2, n */
  int64_t n[4], stride[3];
} source;

enum { MAX_SOURCES = 16 };
typedef struct source_list {
  source list[MAX_SOURCES];
  size_t n;
} source_list;

static int64_t total_bytes(const source *s) {
  return s->n[0] * s->n[1] * s->n[2] * s->n[3] * (int64_t)s->type.bytes;
}

static void add(source_list *l, source s) {
  if (s.elements != NULL)
    l->list[l->n++] = s;
}

static source packed(const char *name, element type, const void *elements, int32_t n_dims,
                     int64_t a, int64_t b, int64_t c, int64_t d) {
  return (source){name, type, elements, n_dims, {a, b, c, d}, {b * c * d, c * d, d}};
}

/* Large elements first: every tensor is aligned to its element. */
static void sort_by_size(source_list *l) {
  source_list sorted = {.n = 0};
  for (size_t bytes = 4; bytes >= 1; bytes /= 2)
    for (size_t i = 0; i < l->n; i++)
      if (l->list[i].type.bytes == bytes)
        sorted.list[sorted.n++] = l->list[i];
  *l = sorted;
}

/* ---- Header and data ---- */

/* Its JSON, in memory of its own so that no allocation can fail: longest are 16 tensors of 170
 * characters and the metadata. */
typedef struct header {
  size_t length;
  char text[4096];
} header;

__attribute__((format(printf, 2, 3))) static void append(header *h, const char *format, ...) {
  va_list arguments;
  va_start(arguments, format);
  const size_t room = sizeof h->text - h->length;
  h->length += (size_t)vsnprintf(h->text + h->length, room, format, arguments);
  va_end(arguments);
  assert(h->length < sizeof h->text);
}

static void describe(header *h, const source *s, int64_t begin) {
  append(h, ",\"%s\":{\"dtype\":\"%s\",\"shape\":[", s->name, s->type.dtype);
  const int32_t first = 4 - s->n_dims;
  for (int32_t i = first; i < 4; i++)
    append(h, "%s%" PRId64, i > first ? "," : "", s->n[i]);
  append(h, "],\"data_offsets\":[%" PRId64 ",%" PRId64 "]}", begin, begin + total_bytes(s));
}

/* Padded with spaces so that data start at a multiple of 8. */
static header make_header(const source_list *l, const char *metadata) {
  header h = {.length = 0};
  int64_t at = 0;
  append(&h, "{\"__metadata__\":{%s}", metadata);
  for (size_t i = 0; i < l->n; i++) {
    describe(&h, &l->list[i], at);
    at += total_bytes(&l->list[i]);
  }
  append(&h, "}");
  append(&h, "%*s", (int)((8 - h.length % 8) % 8), "");
  return h;
}

static bool write_header(FILE *file, const header *h) {
  unsigned char length[8];
  for (int i = 0; i < 8; i++)
    length[i] = (unsigned char)((uint64_t)h->length >> 8 * i);
  return fwrite(length, 1, 8, file) == 8 && fwrite(h->text, 1, h->length, file) == h->length;
}

static bool write_rows(FILE *file, const source *s) {
  const size_t size = s->type.bytes, n = (size_t)s->n[3];
  for (int64_t i = 0; i < s->n[0]; i++)
    for (int64_t j = 0; j < s->n[1]; j++)
      for (int64_t k = 0; k < s->n[2]; k++) {
        const int64_t at = i * s->stride[0] + j * s->stride[1] + k * s->stride[2];
        if (fwrite((const char *)s->elements + at * (int64_t)size, size, n, file) != n)
          return false;
      }
  return true;
}

static int write_file(const char *path, source_list *l, const char *metadata, message error) {
  output o;
  sort_by_size(l);
  const header h = make_header(l, metadata);
  bool ok = open_output(path, &o) && write_header(o.file, &h);
  for (size_t i = 0; ok && i < l->n; i++)
    ok = write_rows(o.file, &l->list[i]);
  ok = close_output(&o, ok);
  return ok ? 0 : refuse(error, "%s: cannot write: %s", path, strerror(errno));
}

/* ---- Interface ---- */

static source words(const char *name, const int32_t *at, int32_t n_dims, int64_t b, int64_t c,
                    int64_t d) {
  return packed(name, i32, at, n_dims, 1, b, c, d);
}

/* Types that files have no name for are bytes, and so are the units of their strides. A page of
 * fp8_584 is cut into equal parts, wherever its scales are. */
static void add_cache(source_list *l, const char *name, const void *kv, const amla_problem *p) {
  const int64_t outer = p->page_size ? p->n_pages : p->b;
  const int64_t tokens = p->page_size ? p->page_size : p->sk;
  const element type = element_of(p->kv_type);
  const int64_t unit = (int64_t)type.bytes, row = harness_token_bytes(p->kv_type, p->d_qk);
  const int64_t token =
      p->kv_type == AMLA_FP8_584 ? row : harness_bytes(p->kv_type, p->kv_stride_token);
  const int64_t page = harness_bytes(p->kv_type, p->kv_stride_page);
  source s = packed(name, type, kv, 3, 1, outer, tokens, row / unit);
  memcpy(s.stride, (int64_t[]){0, page / unit, token / unit}, sizeof s.stride);
  add(l, s);
}

static void add_lists(source_list *l, const char *name, const int32_t *lists,
                      const amla_problem *p) {
  source s = words(name, lists, 3, p->b, p->s_q, p->topk);
  memcpy(s.stride, (int64_t[]){0, p->indices_stride_batch, p->indices_stride_query},
         sizeof s.stride);
  add(l, s);
}

static void add_list_lengths(source_list *l, const char *name, const int32_t *lengths,
                             const amla_problem *p) {
  if (p->topk_length_per_query)
    add(l, words(name, lengths, 2, 1, p->b, p->s_q));
  else
    add(l, words(name, lengths, 1, 1, 1, p->b));
}

static void add_scopes(source_list *l, const amla_problem *p, const amla_tensors *t) {
  const amla_problem second = harness_second_problem(p);
  add(l, words("block_table", t->block_table, 2, 1, p->b, p->max_pages));
  add(l, words("seqlens_k", t->seqlens_k, 1, 1, 1, p->b));
  add(l, words("visible_k", t->visible_k, 2, 1, p->b, p->s_q));
  add_lists(l, "indices", t->indices, p);
  add_list_lengths(l, "topk_length", t->topk_length, p);
  add(l, words("extra_block_table", t->extra_block_table, 2, 1, p->b, second.max_pages));
  add(l, words("extra_seqlens_k", t->extra_seqlens_k, 1, 1, 1, p->b));
  add(l, words("extra_visible_k", t->extra_visible_k, 2, 1, p->b, p->s_q));
  add_lists(l, "extra_indices", t->extra_indices, &second);
  add_list_lengths(l, "extra_topk_length", t->extra_topk_length, p);
  add_cache(l, "kv_cache", t->kv, p);
  add_cache(l, "extra_kv_cache", t->extra_kv, &second);
}

/* The members of that JSON object. */
typedef struct metadata {
  char text[320];
} metadata;

static metadata metadata_of(const harness_dataset *data) {
  const amla_problem *p = &data->problem;
  const double scale = data->scale_exact != 0 ? data->scale_exact : (double)p->scale;
  metadata m;
  int n =
      snprintf(m.text, sizeof m.text,
               "\"scale\":\"%.17g\",\"causal\":\"%d\",\"d_v\":\"%d\",\"window\":\"%d\","
               "\"index\":\"%s\",\"kv\":\"%s\",\"source\":\"amla gen\"",
               scale, p->causal != 0, p->d_v, p->window,
               p->index_kind == AMLA_INDEX_SLOT ? "slot" : "position", amla_dtype_name(p->kv_type));
  if (p->kv_type == AMLA_FP8_E4M3)
    n += snprintf(m.text + n, sizeof m.text - (size_t)n,
                  ",\"kv_scale\":\"%.9g\",\"kv_rope_scale\":\"%.9g\"", (double)p->kv_scale,
                  (double)p->kv_rope_scale);
  assert((size_t)n < sizeof m.text);
  return m;
}

/* What files do not hold, by its key of a problem string. */
static int refuse_unheld(const char *path, const harness_dataset *data, message error) {
  const amla_problem *p = &data->problem;
  const struct {
    const char *key;
    int32_t value;
  } unheld[] = {{"mask", data->mask != NULL},
                {"ragged", data->q_indptr != NULL},
                {"csr", data->kv_indptr != NULL},
                {"qrope", p->q_d_rope},
                {"kvrope", p->kv_d_rope}};
  for (size_t i = 0; i < sizeof unheld / sizeof *unheld; i++)
    if (unheld[i].value != 0)
      return refuse(error, "%s: %s=%d: files hold none", path, unheld[i].key, unheld[i].value);
  return 0;
}

int harness_write_problem(const char *path, const harness_dataset *data, char *error,
                          size_t error_bytes) {
  const amla_problem *p = &data->problem;
  source_list l = {.n = 0};
  if (refuse_unheld(path, data, (message){error, error_bytes}) != 0)
    return -1;
  source q = packed("q", element_of(p->q_type), data->q, 4, p->b, p->s_q, p->h_q, p->d_qk);
  memcpy(q.stride, (int64_t[]){p->q_stride_batch, p->q_stride_query, p->q_stride_head},
         sizeof q.stride);
  add_scopes(&l, p, &data->tensors);
  const element f32 = element_of(AMLA_F32);
  add(&l, packed("sinks", f32, data->sinks, 1, 1, 1, 1, p->h_q));
  add(&l, packed("out_ref", f32, data->out_ref, 4, p->b, p->s_q, p->h_q, p->d_v));
  add(&l, packed("lse_ref", f32, data->lse_ref, 3, 1, p->b, p->h_q, p->s_q));
  add(&l, q);
  const metadata m = metadata_of(data);
  return write_file(path, &l, m.text, (message){error, error_bytes});
}

int harness_write_result(const char *path, const harness_dataset *data, char *error,
                         size_t error_bytes) {
  const amla_problem *p = &data->problem;
  source_list l = {.n = 0};
  const bool ragged = data->q_indptr != NULL;
  const int64_t b = ragged ? 1 : p->b;
  const int64_t queries = ragged ? harness_rows(data) / p->h_q : p->s_q;
  source out =
      packed("out", element_of(p->out_type), data->out, ragged ? 3 : 4, b, queries, p->h_q, p->d_v);
  memcpy(out.stride, (int64_t[]){p->out_stride_batch, p->out_stride_query, p->out_stride_head},
         sizeof out.stride);
  add(&l, out);
  if (ragged)
    add(&l, packed("lse", element_of(AMLA_F32), data->lse, 2, 1, 1, queries, p->h_q));
  else
    add(&l, packed("lse", element_of(AMLA_F32), data->lse, 3, 1, p->b, p->h_q, p->s_q));
  const bool base2 = data->options.lse_base == AMLA_LSE_BASE2;
  const char *members = base2 ? "\"lse_base\":\"2\"" : "\"lse_base\":\"e\"";
  return write_file(path, &l, members, (message){error, error_bytes});
}
