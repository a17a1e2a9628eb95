/* SPDX-License-Identifier: Apache-2.0
 *
 * Detection: the CPU has the instructions, the system saves the registers, and where they are large
 * it has given permission. The compiler's built-in test of AVX2 and AVX-512 includes the system's
 * part (XGETBV), which F16C and BF16 share. Features that not every compiler's built-in knows are
 * asked of CPUID.
 */
#if defined(__linux__)
#define _DEFAULT_SOURCE 1 /* syscall */
#include <sys/syscall.h>
#include <unistd.h>
#endif

#include "isa.h"

#include <stdatomic.h>
#include <stddef.h>

#if defined(__x86_64__)
#include <cpuid.h>

typedef struct registers {
  unsigned eax, ebx, ecx, edx;
} registers;

static registers cpuid(unsigned leaf, unsigned part) {
  registers r = {0, 0, 0, 0};
  __get_cpuid_count(leaf, part, &r.eax, &r.ebx, &r.ecx, &r.edx);
  return r;
}

static int has(unsigned word, int bit) { return word >> bit & 1; }

/* Intel's manual, volume 1, chapter 13: does XCR0 say that the system saves tile registers? */
static int saves_tiles(void) {
  const unsigned tiles = 3u << 17; /* XTILECFG, XTILEDATA */
  unsigned low, high;
  if (!has(cpuid(1, 0).ecx, 27)) /* OSXSAVE */
    return 0;
  __asm__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return (low & tiles) == tiles;
}

/* Linux gives 8 KB of tile registers only to processes that ask. Asking again changes nothing. */
static int may_use_tiles(void) {
#if defined(__linux__)
  enum { ARCH_REQ_XCOMP_PERM = 0x1023, XTILEDATA = 18 };
  return syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XTILEDATA) == 0;
#else
  return 0;
#endif
}

static const char *missing_avx2(void) {
  if (!__builtin_cpu_supports("avx2"))
    return "avx2";
  if (!__builtin_cpu_supports("fma"))
    return "fma";
  return has(cpuid(1, 0).ecx, 29) ? NULL : "f16c";
}

static const char *missing_avx512(void) {
  const char *missing = missing_avx2();
  if (missing)
    return missing;
  return __builtin_cpu_supports("avx512f") ? NULL : "avx512f";
}

static const char *missing_avx512bf16(void) {
  const char *missing = missing_avx512();
  if (missing)
    return missing;
  if (!__builtin_cpu_supports("avx512bw"))
    return "avx512bw";
  if (!__builtin_cpu_supports("avx512vl"))
    return "avx512vl";
  return has(cpuid(7, 1).eax, 5) ? NULL : "avx512_bf16";
}

static const char *missing_amxbf16(void) {
  const char *missing = missing_avx512bf16();
  if (missing)
    return missing;
  if (!has(cpuid(7, 0).edx, 24))
    return "amx_tile";
  if (!has(cpuid(7, 0).edx, 22))
    return "amx_bf16";
  if (!saves_tiles())
    return "tile registers that the system saves (XCR0)";
  return may_use_tiles() ? NULL : "the system's permission for tile registers (arch_prctl)";
}

static const char *missing(amla_isa isa) {
  switch ((int)isa) {
  case AMLA_ISA_AVX2: return missing_avx2();
  case AMLA_ISA_AVX512: return missing_avx512();
  case AMLA_ISA_AVX512BF16: return missing_avx512bf16();
  case AMLA_ISA_AMXBF16: return missing_amxbf16();
  }
  return NULL;
}

enum { HERE = AMLA_X86_64 };
#elif defined(__aarch64__)
#if defined(__linux__)
#include <sys/auxv.h>

static int has_bf16(void) { return getauxval(AT_HWCAP2) >> 14 & 1; } /* HWCAP2_BF16 */
#else
static int has_bf16(void) { return 0; } /* nobody to ask */
#endif

static const char *missing(amla_isa isa) {
  return isa == AMLA_ISA_NEONBF16 && !has_bf16() ? "bf16" : NULL;
}

enum { HERE = AMLA_AARCH64 };
#else
static const char *missing(amla_isa isa) {
  (void)isa;
  return NULL;
}

enum { HERE = AMLA_ANY_ARCHITECTURE };
#endif

static amla_architecture architecture_of(amla_isa isa) {
#define CASE(id, name, architecture)                                                               \
  case id: return architecture;
  switch (isa) {
    AMLA_ISAS(CASE)
  case AMLA_ISA_AUTO: break;
  }
#undef CASE
  return AMLA_ANY_ARCHITECTURE;
}

int amla_isa_is_native(amla_isa isa) {
  const int architecture = architecture_of(isa);
  return architecture == AMLA_ANY_ARCHITECTURE || architecture == HERE;
}

/* Asked once: CPUID takes a virtual machine 12 us. */
static const char *missing_here(amla_isa isa) {
  static _Atomic(const char *) answers[AMLA_N_ISAS]; /* NULL: not yet */
  static const char nothing[] = "";
  const char *answer = atomic_load(&answers[isa]);
  if (!answer) {
    const char *found = missing(isa);
    answer = found ? found : nothing;
    atomic_store(&answers[isa], answer);
  }
  return answer == nothing ? NULL : answer;
}

const char *amla_isa_missing(amla_isa isa) {
  static const char *const names[] = {
      [AMLA_ANY_ARCHITECTURE] = "", [AMLA_X86_64] = "x86-64", [AMLA_AARCH64] = "aarch64"};
  if ((int)isa < 0 || (int)isa >= AMLA_N_ISAS)
    return "no such instruction set";
  return amla_isa_is_native(isa) ? missing_here(isa) : names[architecture_of(isa)];
}

int amla_isa_runs(amla_isa isa) { return !amla_isa_missing(isa); }

/* Intel's vdpbf16ps makes 32 products a cycle, as many as its two ports of FMAs. AMD's makes twice
 * as many as theirs. */
int amla_isa_gains(amla_isa isa) {
#if defined(__x86_64__)
  return isa != AMLA_ISA_AVX512BF16 || !__builtin_cpu_is("intel");
#else
  (void)isa;
  return 1;
#endif
}
