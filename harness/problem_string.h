/* SPDX-License-Identifier: Apache-2.0
 *
 * One problem string everywhere: program, tests, fuzzers, benchmarks and failure messages.
 *
 *     b=4,sq=2,h=128,sk=4096,page=64,q=bf16,kv=bf16,causal=1,scale=0.1352,dist=normal:1,len=uniform
 *
 * harness_describe_key has every key, its values and meaning; `amla help problem` prints them with
 * the defaults. docs/sparse.md explains those that say which keys of a cache a query sees.
 */
#ifndef AMLA_HARNESS_PROBLEM_STRING_H
#define AMLA_HARNESS_PROBLEM_STRING_H

#include <stdbool.h>

#include <amla/amla.h>

typedef enum harness_dist {
  HARNESS_NORMAL,  /* normal:S    q and kv from N(0, S) */
  HARNESS_UNIFORM, /* uniform:A   q and kv from U(-A, A) */
  HARNESS_RISING,  /* rising:R    logits rise by about R log2 units in all (default 200): a new
                      maximum in every block */
  HARNESS_OUTLIER, /* outlier:R   one late token scores about R log2 units above the rest (default
                      60) */
  HARNESS_ONEHOT,  /* onehot      one key per row takes all weight: O is that V row */
  HARNESS_PEAKED,  /* peaked:S    q from N(0, S), kv from N(0, 1), S default 10: few keys carry the
                      weight */
  HARNESS_ZEROV, /* zerov       some V columns are zero at first and not later, some always (+0 and
                    -0) */
  HARNESS_MASKED /* masked      lengths 0 to s_q, unless len is a list: under causality some rows or
                    all see no key */
} harness_dist;

typedef enum harness_len {
  HARNESS_LEN_FIXED,
  HARNESS_LEN_UNIFORM,
  HARNESS_LEN_RAGGED,
  HARNESS_LEN_LIST
} harness_len;

enum { HARNESS_MAX_LEN_LIST = 256 };

/* What topk_length is given for. */
typedef enum harness_topklen {
  HARNESS_TOPKLEN_NONE,
  HARNESS_TOPKLEN_SEQUENCE,
  HARNESS_TOPKLEN_QUERY
} harness_topklen;

typedef struct harness_case {
  amla_problem problem; /* strides and max_pages filled in; n_pages includes spare, unused pages */
  amla_options options; /* what the string says of how; the rest default */
  harness_dist dist;
  double dist_width; /* S, A or R above */
  harness_len len;
  int32_t len_list[HARNESS_MAX_LEN_LIST]; /* b entries when len is LIST */
  int32_t sinks, mask, pad;
  harness_topklen topklen;
  int32_t invalid, visible, ragged, csr;
  uint64_t seed;
} harness_case;

/* Returns 0, or -1 with "sk=-3: must be >= 1" in error. Unknown keys, repeated keys, bad numbers,
 * trailing text and impossible values are refused by name. "" and "default" are the defaults. */
int harness_parse_problem(const char *text, harness_case *out, char *error, size_t error_bytes);

typedef struct harness_problem_key {
  const char *name, *meaning;
  char values[128]; /* "slot, position"; "": a number */
} harness_problem_key;

/* Key i; false past the last. */
bool harness_describe_key(int i, harness_problem_key *out);

/* Puts what problem strings and files can say of how, in `said`, into options made elsewhere. */
void harness_take_options(amla_options *to, const amla_options *said);

/* The canonical string with every key; parses back to the same case. Returns its length, as
 * snprintf. */
int harness_format_problem(const harness_case *c, char *text, size_t text_bytes);

size_t harness_dtype_bytes(amla_dtype type);       /* of an element of f32, bf16, f16; else 0 */
int64_t harness_bytes(amla_dtype type, int64_t n); /* of n elements, in whole blocks */

#endif
