/* SPDX-License-Identifier: Apache-2.0
 *
 * What the library asks of libc, libm and OpenMP, for a machine without an operating system: enough
 * to run plans of backend cpu. Nothing is printed or freed; every instruction set runs.
 */
#include <fenv.h>
#include <math.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "src/backend.h"
#include "src/base/isa.h"
#include "src/cpu/l2_cache.h"
#include "src/default_threads.h"
#include "src/environment.h"
#include "src/forked.h"
#include "src/load_backend.h"

/* ---- Memory and text ---- */

void *memcpy(void *restrict to, const void *restrict from, size_t n) {
  for (size_t i = 0; i < n; i++)
    ((char *)to)[i] = ((const char *)from)[i];
  return to;
}

void *memset(void *to, int value, size_t n) {
  for (size_t i = 0; i < n; i++)
    ((char *)to)[i] = (char)value;
  return to;
}

size_t strlen(const char *s) {
  size_t n = 0;
  while (s[n])
    n++;
  return n;
}

int strcmp(const char *a, const char *b) {
  while (*a && *a == *b)
    a++, b++;
  return (unsigned char)*a - (unsigned char)*b;
}

char *strncpy(char *restrict to, const char *restrict from, size_t n) {
  size_t i = 0;
  for (; i < n && from[i]; i++)
    to[i] = from[i];
  memset(to + i, 0, n - i);
  return to;
}

/* The oldest of some fifty plans makes room. */
void *malloc(size_t bytes) {
  static _Alignas(64) char heap[1 << 16];
  static size_t used;
  if (bytes > sizeof heap - used)
    used = 0;
  char *at = heap + used;
  used += (bytes + 63) / 64 * 64;
  return at;
}

void free(void *at) { (void)at; }

char *getenv(const char *name) {
  (void)name;
  return NULL;
}

long strtol(const char *restrict text, char **restrict end, int base) {
  (void)base;
  *end = (char *)(uintptr_t)text;
  return 0;
}

/* Messages are their formats. */
int vsnprintf(char *restrict to, size_t n, const char *restrict format, va_list arguments) {
  (void)arguments;
  if (n > 0) {
    strncpy(to, format, n - 1);
    to[n - 1] = '\0';
  }
  return (int)strlen(format);
}

int snprintf(char *restrict to, size_t n, const char *restrict format, ...) {
  va_list arguments;
  va_start(arguments, format);
  const int length = vsnprintf(to, n, format, arguments);
  va_end(arguments);
  return length;
}

/* ---- Arithmetic ---- */

int fegetenv(fenv_t *environment) {
  memset(environment, 0, sizeof *environment);
  return 0;
}

int fesetenv(const fenv_t *environment) {
  (void)environment;
  return 0;
}

double ldexp(double x, int n) {
  for (; n > 1000; n -= 1000)
    x *= 0x1p1000;
  for (; n < -1000; n += 1000)
    x *= 0x1p-1000;
  const uint64_t bits = (uint64_t)(1023 + n) << 52;
  double power;
  memcpy(&power, &bits, sizeof power);
  return x * power;
}

float ldexpf(float x, int n) { return (float)ldexp((double)x, n); }

/* Of a normal number. */
double frexp(double x, int *exponent) {
  uint64_t bits;
  __builtin_memcpy(&bits, &x, sizeof bits);
  *exponent = (int)(bits >> 52 & 0x7ff) - 1022;
  return ldexp(x, -*exponent);
}

static double nearest(double x) { return (double)(int64_t)(x < 0.0 ? x - 0.5 : x + 0.5); }

float roundf(float x) { return x > -0x1p23f && x < 0x1p23f ? (float)nearest((double)x) : x; }

/* Within some 1e-16. */
double exp2(double x) {
  if (!(x < 2000.0))
    return x;
  if (x < -2000.0)
    return 0.0;
  const double n = nearest(x), f = (x - n) * 0.6931471805599453;
  double y = 1.0;
#pragma GCC unroll 14
  for (int i = 14; i > 0; i--)
    y = 1.0 + y * f * (1.0 / i); /* constants: divisions would cost more than a libm does */
  return ldexp(y, (int)n);
}

float exp2f(float x) { return (float)exp2((double)x); }

double log2(double x) {
  int exponent;
  if (x == 0.0)
    return -(double)INFINITY;
  if (x < 0.0)
    return (double)NAN;
  if (isnan(x) || isinf(x))
    return x;
  const double m = frexp(x, &exponent), z = (m - 0.75) / (m + 0.75);
  double sum = 0.0;
#pragma GCC unroll 21
  for (int i = 41; i > 0; i -= 2)
    sum = 1.0 / i + sum * z * z;
  return exponent + (2.0 * z * sum - 0.2876820724517809) / 0.6931471805599453;
}

/* ---- Threads, processes, backends ---- */

int32_t amla_default_threads(void) { return 1; }
void amla_watch_forks(void) {}
int amla_forked(void) { return 0; }

const char *amla_isa_missing(amla_isa isa) {
  (void)isa;
  return NULL;
}
int amla_isa_runs(amla_isa isa) { return !amla_isa_missing(isa); }
int amla_isa_gains(amla_isa isa) { return !amla_isa_missing(isa); }
int amla_isa_is_native(amla_isa isa) { return isa <= AMLA_ISA_AMXBF16; }

amla_status amla_environment_number(const char *name, int64_t most, int64_t *value,
                                    amla_detail *detail) {
  (void)name, (void)most, (void)detail;
  *value = 0;
  return AMLA_OK;
}

amla_status amla_l2_from_environment(int64_t *bytes, amla_detail *detail) {
  return amla_environment_number("", 0, bytes, detail);
}

int64_t amla_l2_of_system(void) { return 0; }

const amla_backend_ops amla_backend_ref = {.id = AMLA_BACKEND_REF};

const amla_backend_ops *amla_backend_load(amla_backend id, const char **reason) {
  (void)id;
  *reason = "";
  return NULL;
}

double log(double x) { return log2(x) * 0.6931471805599453; }
double log1p(double x) { return log(1.0 + x); }
double exp(double x) { return exp2(x * 1.4426950408889634); }
float expf(float x) { return (float)exp((double)x); }
float logf(float x) { return (float)log((double)x); }
