/* SPDX-License-Identifier: Apache-2.0
 *
 * Measures the two limits of a machine: arithmetic (peak_fma__*.c, one row per instruction set) and
 * memory reads. A round ends for all threads at the same deadline; each looks at the clock after a
 * chunk of work that takes microseconds.
 */
#define _GNU_SOURCE 1 /* cache and memory sizes from sysconf */
#include "roofline.h"

#include <omp.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "peak_fma.h"

double harness_seconds(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

/* ---- Arithmetic ---- */

typedef double (*peak_loop)(int64_t iterations);

static const struct {
  amla_isa isa;
  peak_loop loop;
} loops[] = {
    {AMLA_ISA_C, harness_peak_fma__c},
#if defined(__x86_64__)
    {AMLA_ISA_AVX2, harness_peak_fma__avx2},
    {AMLA_ISA_AVX512, harness_peak_fma__avx512},
    {AMLA_ISA_AVX512BF16, harness_peak_fma__avx512bf16},
    {AMLA_ISA_AMXBF16, harness_peak_fma__amxbf16},
#elif defined(__aarch64__)
    {AMLA_ISA_NEON, harness_peak_fma__neon},
    {AMLA_ISA_NEONBF16, harness_peak_fma__neonbf16},
#endif
};

static peak_loop loop_for(amla_isa isa) {
  for (size_t i = 0; i < sizeof loops / sizeof *loops; i++)
    if (loops[i].isa == isa)
      return loops[i].loop;
  return harness_peak_fma__c;
}

double harness_peak_flops(amla_isa isa, int threads, double seconds) {
  enum { CHUNK = 2000 }; /* iterations: about 5 microseconds */
  const peak_loop loop = loop_for(isa);
  double rate = 0;
#pragma omp parallel num_threads(threads) reduction(+ : rate)
  {
    double work = 0, now;
    loop(CHUNK); /* wakes the vector units */
#pragma omp barrier
    const double start = harness_seconds();
    do {
      work += loop(CHUNK);
      now = harness_seconds();
    } while (now < start + seconds);
    rate += work / (now - start);
  }
  return rate;
}

/* ---- Memory ---- */

typedef uint64_t vector __attribute__((vector_size(32), may_alias));
enum { CHUNK_BYTES = 1 << 16, LANES = 4 /* vectors read per step */ };

struct harness_stream {
  unsigned char *buffer; /* chunks * CHUNK_BYTES, page-aligned */
  int64_t chunks;
  int threads;
  int64_t *next; /* [threads] chunks each thread has read of its part: a round goes on where the
                    last one ended */
};

/* Thread i of n owns chunks [begin(i), begin(i + 1)). */
static int64_t begin_of(const harness_stream *s, int thread) {
  return s->chunks * thread / s->threads;
}

static size_t stream_bytes(void) {
  const double cache = (double)sysconf(_SC_LEVEL3_CACHE_SIZE);
  const double memory = (double)sysconf(_SC_PHYS_PAGES) * (double)sysconf(_SC_PAGESIZE);
  double bytes = 2 * cache;
  if (bytes < 64e6)
    bytes = 64e6;
  if (bytes > memory / 8)
    bytes = memory / 8;
  return (size_t)(bytes < 1e9 ? bytes : 1e9);
}

harness_stream *harness_stream_create(int threads) {
  void *buffer = NULL;
  harness_stream *s = malloc(sizeof *s);
  const size_t per_thread = stream_bytes() / CHUNK_BYTES / (size_t)threads + 1;
  int64_t *next = calloc((size_t)threads, sizeof *next);
  if (s == NULL || next == NULL ||
      posix_memalign(&buffer, 4096, per_thread * (size_t)threads * CHUNK_BYTES) != 0) {
    free(next);
    free(s);
    return NULL;
  }
  *s = (harness_stream){buffer, (int64_t)per_thread * threads, threads, next};
#pragma omp parallel for num_threads(threads)                                                      \
    schedule(static, 1) /* first touch by the thread that will read */
  for (int i = 0; i < threads; i++)
    for (int64_t c = begin_of(s, i); c < begin_of(s, i + 1); c++)
      memset(s->buffer + c * CHUNK_BYTES, 1, CHUNK_BYTES);
  return s;
}

static uint64_t read_chunk(const unsigned char *chunk) {
  const vector *v = (const vector *)(const void *)chunk;
  vector sum[LANES] = {0};
  for (size_t i = 0; i < CHUNK_BYTES / sizeof *v; i += LANES)
    for (size_t l = 0; l < LANES; l++)
      sum[l] ^= v[i + l];
  return (sum[0] ^ sum[1] ^ sum[2] ^ sum[3])[0];
}

double harness_stream_read(harness_stream *s, double seconds) {
  double rate = 0;
#pragma omp parallel num_threads(s->threads) reduction(+ : rate)
  {
    const int thread = omp_get_thread_num();
    const int64_t begin = begin_of(s, thread), n = begin_of(s, thread + 1) - begin,
                  first = s->next[thread];
    volatile uint64_t sink = 0;
    int64_t chunks = 0;
    double now;
#pragma omp barrier
    const double start = harness_seconds();
    do {
      sink ^= read_chunk(s->buffer + (begin + (first + chunks) % n) * CHUNK_BYTES);
      chunks++;
      now = harness_seconds();
    } while (now < start + seconds);
    s->next[thread] = (first + chunks) % n;
    (void)sink;
    rate += (double)chunks * CHUNK_BYTES / (now - start);
  }
  return rate;
}

void harness_stream_free(harness_stream *s) {
  if (s != NULL)
    free(s->buffer), free(s->next);
  free(s);
}
