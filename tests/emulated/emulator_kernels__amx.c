/* SPDX-License-Identifier: Apache-2.0
 *
 * What test_emulator.py runs in the emulator.
 */
#include <immintrin.h>
#include <stdint.h>

#define AVX2 __attribute__((target("avx2,fma")))
#define AVX512 __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512bf16")))
#define AMX __attribute__((target("amx-tile,amx-bf16,amx-int8,avx512f")))

/* 1. AVX2 */

AVX2 void avx2_saxpy(const float *x, float *y, int64_t n, float a) {
  __m256 va = _mm256_set1_ps(a);
  int64_t i = 0;
  for (; i + 8 <= n; i += 8)
    _mm256_storeu_ps(y + i, _mm256_fmadd_ps(va, _mm256_loadu_ps(x + i), _mm256_loadu_ps(y + i)));
  for (; i < n; i++)
    y[i] = __builtin_fmaf(a, x[i], y[i]);
}

int64_t count_down(int64_t n) {
  while (n > 0) {
    n--;
    __asm__ volatile("" : "+r"(n));
  }
  return n;
}

/* 2. AVX-512F, with a masked tail */

AVX512 void avx512_saxpy(const float *x, float *y, int64_t n, float a) {
  __m512 va = _mm512_set1_ps(a);
  for (int64_t i = 0; i < n; i += 16) {
    __mmask16 m = n - i >= 16 ? 0xffff : (1u << (n - i)) - 1;
    _mm512_mask_storeu_ps(
        y + i, m,
        _mm512_fmadd_ps(va, _mm512_maskz_loadu_ps(m, x + i), _mm512_maskz_loadu_ps(m, y + i)));
  }
}

AVX512 void avx512_permute(const int32_t *index, const int32_t *x, int32_t *y) {
  _mm512_storeu_si512(y,
                      _mm512_permutexvar_epi32(_mm512_loadu_si512(index), _mm512_loadu_si512(x)));
}

/* 3. AVX512-BF16 */

AVX512 void bf16_dot(const void *a, const void *b, float *c) {
  _mm512_storeu_ps(c, _mm512_dpbf16_ps(_mm512_loadu_ps(c), (__m512bh)_mm512_loadu_si512(a),
                                       (__m512bh)_mm512_loadu_si512(b)));
}

AVX512 void bf16_round(const float *x, void *y) {
  _mm256_storeu_si256(y, (__m256i)_mm512_cvtneps_pbh(_mm512_loadu_ps(x)));
}

AVX512 void bf16_round_two(const float *x, const float *y, void *both) {
  _mm512_storeu_si512(both, (__m512i)_mm512_cvtne2ps_pbh(_mm512_loadu_ps(y), _mm512_loadu_ps(x)));
}

/* 4. AMX-BF16.  The configuration is the caller's: any shape can be tried. */

AMX void amx_bf16(const void *config, const void *a, const void *b, float *c, int64_t stride_a,
                  int64_t stride_b, int64_t stride_c) {
  _tile_loadconfig(config);
  _tile_loadd(0, c, stride_c);
  _tile_loadd(1, a, stride_a);
  _tile_stream_loadd(2, b, stride_b);
  _tile_dpbf16ps(0, 1, 2);
  _tile_stored(0, c, stride_c);
  _tile_release();
}

/* C (32 x 32 floats) += A (32 x k bf16) * B (k/2 rows of 32 pairs): 2 x 2 tiles. */
AMX void amx_bf16_32x32(const void *config, const uint16_t *a, const uint16_t *b, float *c,
                        int64_t k) {
  _tile_loadconfig(config);
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  for (int64_t i = 0; i < k; i += 32) {
    _tile_loadd(4, a + i, 2 * k);
    _tile_loadd(5, a + 16 * k + i, 2 * k);
    _tile_loadd(6, b + 32 * i, 128);
    _tile_loadd(7, b + 32 * i + 32, 128);
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(1, 4, 7);
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
  }
  _tile_stored(0, c, 128);
  _tile_stored(1, c + 16, 128);
  _tile_stored(2, c + 16 * 32, 128);
  _tile_stored(3, c + 16 * 32 + 16, 128);
  _tile_release();
}

AMX void amx_config_roundtrip(const void *in, void *out) {
  _tile_loadconfig(in);
  _tile_storeconfig(out);
  _tile_release();
}

/* Forms of addresses, through tile 7: base, index, scale, displacement */

#define AMX_ADDRESS(name, base, index, scale, displacement)                                        \
  void amx_address_##name(const void *config, const char *from, int64_t stride, char *to) {        \
    register const char *b __asm__(base) = from - (displacement);                                  \
    register int64_t i __asm__(index) = stride / (scale);                                          \
    __asm__ volatile("ldtilecfg (%0)\n\ttileloadd " #displacement "(%1,%2," #scale                 \
                     "), %%tmm7\n\ttilestored %%tmm7, (%3,%4)\n\ttilerelease" ::"r"(config),       \
                     "r"(b), "r"(i), "r"(to), "r"((int64_t)64)                                     \
                     : "memory");                                                                  \
  }
AMX_ADDRESS(plain, "r12", "r13", 1, 0)
AMX_ADDRESS(scaled, "r13", "r12", 2, 0)
AMX_ADDRESS(displaced_8, "r13", "rax", 4, -128)
AMX_ADDRESS(displaced_32, "r10", "r14", 8, 4096)

void amx_address_rip_relative(const void *unused, const char *from, int64_t stride, char *to) {
  static _Alignas(64) const uint8_t config[64] = {1, [30] = 64, [55] = 16};
  (void)unused;
  __asm__ volatile(
      "ldtilecfg %0\n\ttileloadd (%1,%2), %%tmm7\n\ttilestored %%tmm7, (%3,%4)\n\ttilerelease" ::
          "m"(config),
      "r"(from), "r"(stride), "r"(to), "r"((int64_t)64)
      : "memory");
}

/* 5. Bytes: AMX-INT8 in its four signs, and AVX512-VNNI */

#define AMX_BYTES(name, product)                                                                   \
  AMX void name(const void *config, const void *a, const void *b, int32_t *c) {                    \
    _tile_loadconfig(config);                                                                      \
    _tile_loadd(0, c, 64);                                                                         \
    _tile_loadd(1, a, 64);                                                                         \
    _tile_loadd(2, b, 64);                                                                         \
    product(0, 1, 2);                                                                              \
    _tile_stored(0, c, 64);                                                                        \
    _tile_release();                                                                               \
  }
AMX_BYTES(amx_int8_ss, _tile_dpbssd)
AMX_BYTES(amx_int8_su, _tile_dpbsud)
AMX_BYTES(amx_int8_us, _tile_dpbusd)
AMX_BYTES(amx_int8_uu, _tile_dpbuud)

AVX512 void vnni_dot(const void *a, const void *b, int32_t *c) {
  _mm512_storeu_si512(
      c, _mm512_dpbusd_epi32(_mm512_loadu_si512(c), _mm512_loadu_si512(a), _mm512_loadu_si512(b)));
}

AVX512 void vnni_dot_saturating(const void *a, const void *b, int32_t *c) {
  _mm512_storeu_si512(
      c, _mm512_dpbusds_epi32(_mm512_loadu_si512(c), _mm512_loadu_si512(a), _mm512_loadu_si512(b)));
}

/* 6. Mistakes that have to be noticed */

AVX512 void read_past_end(const float *x, float *y, int64_t n) {
  _mm512_storeu_ps(y, _mm512_loadu_ps(x + n - 15));
}

int64_t nine(int64_t a, int64_t b, int64_t c, int64_t d, int64_t e, int64_t f, int64_t g, int64_t h,
             int64_t i) {
  return a + 2 * b + 3 * c + 4 * d + 5 * e + 6 * f + 7 * g + 8 * h + 9 * i;
}

float subtract_flushing(float a, float b) /* with FTZ and DAZ set */
{
  unsigned saved = _mm_getcsr();
  _mm_setcsr(saved | 0x8040);
  volatile float x = a, y = b;
  x = x - y;
  _mm_setcsr(saved);
  return x;
}
