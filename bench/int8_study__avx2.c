/* SPDX-License-Identifier: Apache-2.0
 *
 * A study, not a part of the library: would int8 scores over q8_0 keys pay with AVX2? Two loops of
 * pmaddubsw, 3 keys x 16 rows, checked against plain integers, beside the f32 loop of 6 keys x 16
 * rows, all in L1 or L2 as they would be; and the error of the output on captured steps when q is
 * rounded to int8 per 32 columns, or P too. VNNI is counted only. docs/cpu-kernel.md has what it
 * said.
 *
 *     int8_study FILE...      captured steps, safetensors
 *
 * Exit status: 0; 1 a file or a loop is wrong.
 */
#include <immintrin.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "harness/dataset.h"
#include "harness/roofline.h"
#include "harness/safetensors.h"

enum { D = 576, D_V = 512, BLOCK = 32, BLOCKS = D / BLOCK, ROWS = 16, KEYS = 6, ROUNDS = 400 };

__attribute__((noreturn)) static void stop(const char *what) {
  fprintf(stderr, "int8_study: %s\n", what);
  exit(1);
}

/* ---- Loops ---- */

typedef struct operands {
  _Alignas(32) float q[D][ROWS], k[KEYS][D];
  _Alignas(32) int8_t q8[D / 4][ROWS][4]; /* four columns of a row side by side */
  _Alignas(32) int8_t k8[KEYS][D];
  _Alignas(32) uint8_t k_abs[KEYS][D];
  _Alignas(32) float q_scale[BLOCKS][ROWS], k_scale[KEYS][BLOCKS];
  int32_t k_sum64[KEYS][BLOCKS]; /* -64 times the sum of the block */
  _Alignas(32) float s[KEYS][ROWS];
} operands;

static void loop_f32(operands *x) {
  __m256 s[KEYS][2];
  for (int j = 0; j < KEYS; j++)
    s[j][0] = s[j][1] = _mm256_setzero_ps();
  for (int d = 0; d < D; d++) {
    const __m256 q0 = _mm256_load_ps(x->q[d]), q1 = _mm256_load_ps(x->q[d] + 8);
    for (int j = 0; j < KEYS; j++) {
      const __m256 k = _mm256_broadcast_ss(&x->k[j][d]);
      s[j][0] = _mm256_fmadd_ps(k, q0, s[j][0]);
      s[j][1] = _mm256_fmadd_ps(k, q1, s[j][1]);
    }
  }
  for (int j = 0; j < KEYS; j++) {
    _mm256_store_ps(x->s[j], s[j][0]);
    _mm256_store_ps(x->s[j] + 8, s[j][1]);
  }
}

static inline __m256i load_4(const void *at) {
  int32_t word;
  memcpy(&word, at, sizeof word);
  return _mm256_set1_epi32(word);
}

/* Keys [first, first + 3). 7 bits: q + 64 is unsigned and keys are signed. 8 bits: |key| is
 * unsigned and q takes the key's sign. Neither saturates: 2 * 127 * 127 < 2^15. */
static inline __attribute__((always_inline)) void three_keys(operands *x, int first, int bits) {
  const __m256i ones = _mm256_set1_epi16(1);
  __m256 s[3][2];
  for (int j = 0; j < 3; j++)
    s[j][0] = s[j][1] = _mm256_setzero_ps();
  for (int b = 0; b < BLOCKS; b++) {
    __m256i sum[3][2];
    for (int j = 0; j < 3; j++)
      sum[j][0] = sum[j][1] = _mm256_set1_epi32(bits == 7 ? x->k_sum64[first + j][b] : 0);
    for (int g = b * BLOCK / 4; g < (b + 1) * BLOCK / 4; g++)
      for (int j = 0; j < 3; j++) {
        const __m256i k = load_4(x->k8[first + j] + 4 * g);
        for (int i = 0; i < 2; i++) {
          const __m256i q = _mm256_load_si256((const __m256i *)x->q8[g][8 * i]);
          const __m256i pairs = bits == 7
                                    ? _mm256_maddubs_epi16(q, k)
                                    : _mm256_maddubs_epi16(load_4(x->k_abs[first + j] + 4 * g),
                                                           _mm256_sign_epi8(q, k));
          sum[j][i] = _mm256_add_epi32(sum[j][i], _mm256_madd_epi16(pairs, ones));
        }
      }
    for (int j = 0; j < 3; j++)
      for (int i = 0; i < 2; i++) {
        const __m256 q_scale = _mm256_load_ps(x->q_scale[b] + 8 * i);
        const __m256 scale = _mm256_mul_ps(q_scale, _mm256_broadcast_ss(&x->k_scale[first + j][b]));
        s[j][i] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(sum[j][i]), scale, s[j][i]);
      }
  }
  for (int j = 0; j < 3; j++)
    for (int i = 0; i < 2; i++)
      _mm256_store_ps(x->s[first + j] + 8 * i, s[j][i]);
}

static void loop_7(operands *x) {
  three_keys(x, 0, 7);
  three_keys(x, 3, 7);
}

static void loop_8(operands *x) {
  three_keys(x, 0, 8);
  three_keys(x, 3, 8);
}

/* Operands whose q has so many bits; the score of key j and row r is then exact in fp64. */
static void fill(operands *x, int bits) {
  unsigned seed = 1;
  const int most = bits == 7 ? 63 : 127;
  memset(x, 0, sizeof *x);
  for (int j = 0; j < KEYS; j++)
    for (int d = 0; d < D; d++) {
      seed = seed * 1664525 + 1013904223;
      const int k = (int)(seed >> 24) % 255 - 127;
      x->k8[j][d] = (int8_t)k;
      x->k_abs[j][d] = (uint8_t)abs(k);
      x->k_scale[j][d / BLOCK] = 0.5f;
      x->k_sum64[j][d / BLOCK] -= 64 * k;
      x->k[j][d] = 0.5f * (float)k;
    }
  for (int d = 0; d < D; d++)
    for (int r = 0; r < ROWS; r++) {
      seed = seed * 1664525 + 1013904223;
      const int q = (int)(seed >> 24) % (2 * most + 1) - most;
      x->q8[d / 4][r][d % 4] = (int8_t)(bits == 7 ? q + 64 : q);
      x->q_scale[d / BLOCK][r] = 0.25f;
      x->q[d][r] = 0.25f * (float)q;
    }
}

static void check(operands *x, void (*loop)(operands *), int bits) {
  loop(x);
  for (int j = 0; j < KEYS; j++)
    for (int r = 0; r < ROWS; r++) {
      double want = 0.0, size = 0.0;
      for (int d = 0; d < D; d++) {
        want += (double)x->k[j][d] * (double)x->q[d][r];
        size += fabs((double)x->k[j][d] * (double)x->q[d][r]);
      }
      if (fabs((double)x->s[j][r] - want) > 1e-5 * size)
        stop(bits == 7 ? "the loop of 7 bits is wrong" : "a loop of 8 bits is wrong");
    }
}

typedef struct timed {
  const char *name;
  void (*loop)(operands *);
  int bits;
  double best; /* seconds of 200 calls */
} timed;

static void time_loops(void) {
  static operands x;
  timed loops[] = {{"f32, 6 x 16, FMA", loop_f32, 8, 1e9},
                   {"int8 of 8 bits, 3 x 16, psignb and pmaddubsw", loop_8, 8, 1e9},
                   {"int8 of 7 bits, 3 x 16, pmaddubsw", loop_7, 7, 1e9}};
  for (int i = 0; i < ROUNDS * 3; i++) {
    timed *t = &loops[i % 3];
    fill(&x, t->bits);
    check(&x, t->loop, t->bits);
    const double start = harness_seconds();
    for (int call = 0; call < 200; call++)
      t->loop(&x);
    const double seconds = harness_seconds() - start;
    t->best = seconds < t->best ? seconds : t->best;
  }
  puts("Counted: vector operations for 8 rows x 32 columns, 256 products\n"
       "  f32      32 FMA                                                          32\n"
       "  8 bits   8 psignb, 8 pmaddubsw, 8 pmaddwd, 8 paddd, cvt, mul, FMA         35\n"
       "  7 bits   8 pmaddubsw, 8 pmaddwd, 8 paddd, cvt, mul, FMA                   27\n"
       "  VNNI     8 vpdpbusd, of q + 128 with its sums of 32 bits, cvt, mul, FMA   11\n"
       "Timed: best of interleaved rounds, one thread");
  for (int i = 0; i < 3; i++) {
    const double share = 0.53, factor = loops[0].best / loops[i].best;
    printf("  %-46s %6.1f G products/s, %.2fx; whole run at most %.2fx\n", loops[i].name,
           200.0 * D * ROWS * KEYS / loops[i].best * 1e-9, factor,
           1.0 / (1.0 - share + share / factor));
  }
}

/* ---- Errors ---- */

/* Blocks of 32 rounded to integers up to `most`, times a scale. */
static void round_row(double *x, int most) {
  for (int b = 0; b < BLOCKS; b++, x += BLOCK) {
    double largest = 0.0;
    for (int d = 0; d < BLOCK; d++)
      largest = fmax(largest, fabs(x[d]));
    const double scale = largest > 0.0 ? largest / most : 1.0;
    for (int d = 0; d < BLOCK; d++)
      x[d] = nearbyint(x[d] / scale) * scale;
  }
}

/* In fp64: out [D_V] of a row over n keys. P is rounded to p_most-ths of its largest, 0: is not. */
static void attend(const double *q, const double *kv, int n, double scale, int p_most, double *p,
                   double *out) {
  double largest = -INFINITY, sum = 0.0;
  for (int j = 0; j < n; j++) {
    p[j] = 0.0;
    for (int d = 0; d < D; d++)
      p[j] += q[d] * kv[j * D + d];
    largest = fmax(largest, p[j] *= scale);
  }
  memset(out, 0, D_V * sizeof *out);
  for (int j = 0; j < n; j++) {
    p[j] = exp(p[j] - largest);
    if (p_most > 0)
      p[j] = nearbyint(p[j] * p_most) / p_most;
    sum += p[j];
  }
  for (int j = 0; j < n; j++)
    for (int d = 0; d < D_V; d++)
      out[d] += p[j] / sum * kv[j * D + d];
}

static const struct {
  const char *name;
  int q_most, p_most;
} roundings[] = {{"q to 8 bits", 127, 0}, {"q to 7 bits", 63, 0}, {"q and P to 8 bits", 127, 255}};
enum { N_ROUNDINGS = sizeof roundings / sizeof *roundings };

static void print_errors(const char *path) {
  harness_dataset data;
  char error[256];
  if (harness_read_problem(path, &data, error, sizeof error) != 0)
    stop(error);
  const amla_problem *p = &data.problem;
  const int n = data.seqlens_k ? data.seqlens_k[0] : p->sk;
  if (p->d_qk != D || p->d_v != D_V)
    stop("wants 576 and 512 columns");
  if (p->kv_type > AMLA_F16 || p->topk > 0 || p->b != 1)
    stop("wants one sequence without lists, its cache in f32, bf16 or f16");
  double *kv = malloc((size_t)n * D * sizeof *kv), *weights = malloc((size_t)n * sizeof *weights);
  double q[D], rounded[D], exact[D_V], out[D_V], worst[N_ROUNDINGS] = {0};
  double square[N_ROUNDINGS] = {0}, size = 0.0;
  if (!kv || !weights)
    stop("out of memory");
  for (int j = 0; j < n; j++) {
    const int64_t at = harness_token_offset(p, data.block_table, 0, j);
    for (int d = 0; d < D; d++)
      kv[j * D + d] = (double)harness_load(data.kv, p->kv_type, at + d);
    round_row(kv + j * D, 127); /* the cache is q8_0 */
  }
  for (int row = 0; row < p->s_q * p->h_q; row++) {
    for (int d = 0; d < D; d++)
      q[d] = (double)harness_load(data.q, p->q_type, harness_q_offset(p, row) + d);
    attend(q, kv, n, (double)p->scale, 0, weights, exact);
    double norm = 0.0;
    for (int d = 0; d < D_V; d++)
      norm += exact[d] * exact[d];
    size += norm;
    for (int i = 0; i < N_ROUNDINGS; i++) {
      double off = 0.0;
      memcpy(rounded, q, sizeof q);
      round_row(rounded, roundings[i].q_most);
      attend(rounded, kv, n, (double)p->scale, roundings[i].p_most, weights, out);
      for (int d = 0; d < D_V; d++)
        off += (out[d] - exact[d]) * (out[d] - exact[d]);
      square[i] += off;
      worst[i] = fmax(worst[i], sqrt(off / norm));
    }
  }
  const char *slash = strrchr(path, '/');
  for (int i = 0; i < N_ROUNDINGS; i++)
    printf("  %-42s %d keys, %-17s %.1e, worst row %.1e\n", slash ? slash + 1 : path, n,
           roundings[i].name, sqrt(square[i] / size), worst[i]);
  free(kv);
  free(weights);
  harness_free(&data);
}

int main(int argc, char **argv) {
  time_loops();
  puts("Relative error of the output on captured steps, the cache in q8_0, all else exact; 8 "
       "bits\n"
       "are what ggml rounds q to for such a cache");
  for (int i = 1; i < argc; i++)
    print_errors(argv[i]);
  return 0;
}
