/* SPDX-License-Identifier: Apache-2.0
 *
 * Native half of emulate.py:
 *
 * 1. two entry points of glibc 2.38 that the bochscpu wheel wants and older ones lack;
 * 2. the hooks that bochscpu calls for every instruction and exception;
 * 3. Intel AMX: the wheel's Bochs has none, so its instructions raise #UD, and the exception hook
 *    executes them as the operation sections of Intel's manual say and resumes after them;
 * 4. a repair of VCVTNE2PS2BF16.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <immintrin.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- 1. glibc 2.38 ----------------------------------------------------- */

unsigned long long __isoc23_strtoull(const char *s, char **end, int base) {
  return strtoull(s, end, base);
}

int __isoc23_sscanf(const char *s, const char *format, ...) {
  va_list args;
  va_start(args, format);
  int n = vsscanf(s, format, args);
  va_end(args);
  return n;
}

/* ---- 2. the machine and its hooks -------------------------------------- */

enum status { RUNNING, RETURNED, FAULTED, OUT_OF_BUDGET };
enum { PAGE_READ = 1, PAGE_WRITE = 2 };
enum { VECTOR_UD = 6, VECTOR_GP = 13, VECTOR_PF = 14 };

struct tile {
  uint16_t rows, bytes; /* as configured; 0, 0: unused */
  _Alignas(64) uint8_t data[16][64];
};

/* Mirrored field by field (up to `amx`) by emulate.py. */
struct machine {
  void *cpu;       /* bochscpu handle */
  uint8_t *memory; /* host address of guest address `base` */
  uint64_t base, size;
  const uint8_t *pages; /* PAGE_* of each 4 KiB page of the memory */
  uint64_t budget;
  uint64_t emulate_amx;
  /* results */
  uint64_t status, instructions, amx_instructions;
  uint64_t rip; /* of the instruction now executed, or that faulted */
  uint64_t vector, error, address;
  /* private */
  uint64_t palette;
  struct tile tiles[8];
};

static struct {
  uint64_t (*get_pc)(uint32_t);
  uint64_t (*get_reg64)(uint32_t, uint32_t);
  uint64_t (*get_cr2)(uint32_t);
  void (*set_rip)(void *, uint64_t);
  void (*stop)(void *);
  void (*get_zmm)(uint32_t, uint32_t, void *);
  void (*set_zmm)(uint32_t, uint32_t, const void *);
} bochs;

size_t machine_size(void) { return sizeof(struct machine); }

/* Look up what the hooks call; `library` is a dlopen handle of the wheel. */
int machine_bind(void *library) {
  bochs.get_pc = dlsym(library, "cpu_get_pc");
  bochs.get_reg64 = dlsym(library, "cpu_get_reg64");
  bochs.get_cr2 = dlsym(library, "cpu_get_cr2");
  bochs.set_rip = dlsym(library, "bochscpu_cpu_set_rip");
  bochs.stop = dlsym(library, "bochscpu_cpu_stop");
  bochs.get_zmm = dlsym(library, "cpu_get_zmm");
  bochs.set_zmm = dlsym(library, "cpu_set_zmm");
  return bochs.get_zmm && bochs.set_zmm && bochs.get_pc && bochs.get_reg64 && bochs.get_cr2 &&
         bochs.set_rip && bochs.stop;
}

static void finish(struct machine *m, enum status status) {
  m->status = status;
  bochs.stop(m->cpu);
}

/* Addresses, less `base`, of the instructions executed below base + size. */
static struct {
  uint32_t *at;
  uint64_t capacity, base, size, count;
} trace;

/* Start anew, or stop with at = NULL; returns how many the trace before had. */
uint64_t machine_trace(uint32_t *at, uint64_t capacity, uint64_t base, uint64_t size) {
  uint64_t count = trace.count;
  trace.at = at;
  trace.capacity = at ? capacity : 0;
  trace.base = base;
  trace.size = size;
  trace.count = 0;
  return count;
}

static void record(uint64_t rip) {
  uint64_t at = rip - trace.base;
  if (at >= trace.size || trace.count >= trace.capacity)
    return;
  if (trace.count && trace.at[trace.count - 1] == at)
    return; /* Bochs calls again before one instruction in some thousand */
  trace.at[trace.count++] = at;
}

static uint8_t *guest(struct machine *m, uint64_t address, uint64_t n, int access);
static void repair_conversion(struct machine *m, uint32_t id);

void hook_before(void *context, uint32_t id, void *instruction) {
  struct machine *m = context;
  (void)instruction;
  m->rip = bochs.get_pc(id);
  record(m->rip);
  repair_conversion(m, id);
  if (++m->instructions > m->budget)
    finish(m, OUT_OF_BUDGET);
}

void hook_halt(void *context, uint32_t id) {
  (void)id;
  finish(context, RETURNED);
}

static int amx_execute(struct machine *m, uint32_t id);

void hook_exception(void *context, uint32_t id, uint32_t vector, uint32_t error) {
  struct machine *m = context;
  if (vector == VECTOR_UD && m->emulate_amx) {
    int length = amx_execute(m, id);
    if (length > 0) {
      m->amx_instructions++;
      bochs.set_rip(m->cpu, m->rip + length);
      return;
    }
    if (length < 0)
      vector = -length, error = 0;
  }
  m->vector = vector;
  m->error = error;
  if (vector == VECTOR_PF && m->address == 0)
    m->address = bochs.get_cr2(id);
  finish(m, FAULTED);
}

/* ---- 3. AMX ------------------------------------------------------------ */

/* Host pointer to `n` bytes at a guest address, or NULL if not accessible. */
static uint8_t *guest(struct machine *m, uint64_t address, uint64_t n, int access) {
  uint64_t at = address - m->base;
  if (at < m->size && n <= m->size - at) {
    uint64_t page = at >> 12;
    while (page <= (at + n - 1) >> 12 && (m->pages[page] & access) == access)
      page++;
    if (page > (at + n - 1) >> 12)
      return m->memory + at;
    address = m->base + (page << 12);
  }
  m->address = address;
  return NULL;
}

static int configure(struct machine *m, const uint8_t *config) {
  if (config[0] == 0) {
    m->palette = 0;
    memset(m->tiles, 0, sizeof m->tiles);
    return 1;
  }
  /* Bytes 2-15, 32-47 and 56-63 are reserved; a non-zero start_row only
   * follows an interrupted load, which cannot happen here. */
  int reserved = config[1];
  for (int i = 0; i < 64; i++)
    if ((i >= 2 && i < 16) || (i >= 32 && i < 48) || i >= 56)
      reserved |= config[i];
  if (config[0] != 1 || reserved)
    return 0;
  struct tile tiles[8] = {0};
  for (int t = 0; t < 8; t++) {
    memcpy(&tiles[t].bytes, config + 16 + 2 * t, 2);
    tiles[t].rows = config[48 + t];
    if (tiles[t].bytes > 64 || tiles[t].rows > 16 || !tiles[t].bytes != !tiles[t].rows)
      return 0;
  }
  memcpy(m->tiles, tiles, sizeof tiles);
  m->palette = 1;
  return 1;
}

static void store_config(const struct machine *m, uint8_t *config) {
  memset(config, 0, 64);
  config[0] = m->palette;
  for (int t = 0; t < 8; t++) {
    memcpy(config + 16 + 2 * t, &m->tiles[t].bytes, 2);
    config[48 + t] = m->tiles[t].rows;
  }
}

/* Can dst += a * b be done?  a is m x k, b is k x n, dst is m x n dwords. */
static int shapes_fit(const struct machine *m, int dst, int a, int b) {
  const struct tile *t = m->tiles;
  return dst != a && dst != b && a != b && t[dst].rows && t[a].rows && t[b].rows &&
         !((t[dst].bytes | t[a].bytes | t[b].bytes) & 3) && t[dst].rows == t[a].rows &&
         t[dst].bytes == t[b].bytes && t[a].bytes / 4 == t[b].rows;
}

static void clear_outside(struct tile *t) {
  for (int r = 0; r < 16; r++)
    if (r >= t->rows)
      memset(t->data[r], 0, 64);
    else
      memset(t->data[r] + t->bytes, 0, 64 - t->bytes);
}

static float half(const struct tile *t, int row, int i, int is_bf16) {
  uint16_t bits;
  memcpy(&bits, t->data[row] + 2 * i, 2);
  uint32_t wide = (uint32_t)bits << 16;
  if (!is_bf16) {
    /* fp16: subnormals are not flushed, they become normal in fp32 */
    uint32_t sign = wide & 0x80000000, exponent = bits >> 10 & 31, m = bits & 0x3ff;
    if (exponent == 31)
      wide = sign | 0x7f800000 | m << 13 | (m ? 0x400000 : 0);
    else if (exponent)
      wide = sign | (exponent + 112) << 23 | m << 13;
    else {
      float f = (float)m * 0x1p-24f;
      memcpy(&wide, &f, 4);
      wide |= sign;
    }
  }
  float f;
  memcpy(&f, &wide, 4);
  return f;
}

/* TDPBF16PS, TDPFP16PS.  Even and odd elements are summed apart, by FMA in
 * order of k; their sum is added to the destination last.  Round to nearest
 * even, denormals flushed in and out, MXCSR not consulted. */
static void dot_halves(struct machine *m, int dst, int a, int b, int is_bf16) {
  unsigned saved = _mm_getcsr();
  _mm_setcsr(0x9fc0); /* all masked, RNE, FTZ, DAZ */
  struct tile *c = &m->tiles[dst];
  const struct tile *x = &m->tiles[a], *y = &m->tiles[b];
  float left[2][16], right[16][2][16]; /* [k], [k][n]; even and odd apart */
  for (int k = 0; k < y->rows; k++)
    for (int n = 0; n < 16; n++)
      for (int odd = 0; odd < 2; odd++)
        right[k][odd][n] = half(y, k, 2 * n + odd, is_bf16);
  for (int i = 0; i < c->rows; i++) {
    for (int k = 0; k < y->rows; k++)
      for (int odd = 0; odd < 2; odd++)
        left[odd][k] = half(x, i, 2 * k + odd, is_bf16);
    for (int n = 0; n < c->bytes / 4; n += 4) {
      __m128 even = _mm_setzero_ps(), odd = even;
      for (int k = 0; k < y->rows; k++) {
        even = _mm_fmadd_ps(_mm_set1_ps(left[0][k]), _mm_loadu_ps(&right[k][0][n]), even);
        odd = _mm_fmadd_ps(_mm_set1_ps(left[1][k]), _mm_loadu_ps(&right[k][1][n]), odd);
      }
      float *to = (float *)c->data[i] + n; /* columns past the last are cleared below */
      _mm_storeu_ps(to, _mm_add_ps(_mm_loadu_ps(to), _mm_add_ps(even, odd)));
    }
  }
  _mm_setcsr(saved);
  clear_outside(c);
}

static int32_t byte_of(uint8_t value, int is_signed) { return is_signed ? (int8_t)value : value; }

/* TDPBSSD, TDPBSUD, TDPBUSD, TDPBUUD: no saturation. */
static void dot_bytes(struct machine *m, int dst, int a, int b, int a_signed, int b_signed) {
  struct tile *c = &m->tiles[dst];
  const struct tile *x = &m->tiles[a], *y = &m->tiles[b];
  for (int i = 0; i < c->rows; i++)
    for (int n = 0; n < c->bytes / 4; n++) {
      uint32_t sum;
      memcpy(&sum, c->data[i] + 4 * n, 4);
      for (int k = 0; k < y->rows; k++)
        for (int j = 0; j < 4; j++)
          sum +=
              byte_of(x->data[i][4 * k + j], a_signed) * byte_of(y->data[k][4 * n + j], b_signed);
      memcpy(c->data[i] + 4 * n, &sum, 4);
    }
  clear_outside(c);
}

/* ---- 4. VCVTNE2PS2BF16 ------------------------------------------------- */

static uint16_t nearest_bf16(uint32_t x) {
  if ((x & 0x7fffffff) > 0x7f800000)
    return x >> 16 | 0x40;
  if ((x & 0x7f800000) == 0)
    x &= 0x80000000;
  return (x + 0x7fff + (x >> 16 & 1)) >> 16;
}

static int32_t displacement_32(const uint8_t *at) {
  int32_t x;
  memcpy(&x, at, 4);
  return x;
}

/* The source in memory of the EVEX instruction at `code`; NULL if it cannot be read. */
static const uint8_t *evex_source(struct machine *m, uint32_t id, const uint8_t *code) {
  const int modrm = code[5], mod = modrm >> 6;
  const uint32_t b3 = !(code[1] & 0x20) * 8u, x3 = !(code[1] & 0x40) * 8u;
  const uint8_t *at = code + 6;
  uint32_t base = modrm & 7;
  uint64_t address = 0;
  if (base == 4) {
    const uint32_t index = (*at >> 3 & 7) | x3;
    if (index != 4)
      address = bochs.get_reg64(id, index) << (*at >> 6);
    base = *at++ & 7;
  }
  int32_t displacement = 0;
  if (mod == 1) {
    displacement = (int8_t)*at++ * 64;
  } else if (mod == 2 || base == 5) {
    displacement = displacement_32(at);
    at += 4;
  }
  if (mod != 0 || base != 5)
    address += bochs.get_reg64(id, base | b3);
  else if ((modrm & 7) == 5)
    address += m->rip + (uint64_t)(at - code);
  const uint8_t *source = guest(m, address + (uint64_t)(int64_t)displacement, 64, PAGE_READ);
  m->address = 0;
  return source;
}

/* The wheel's Bochs reads the first source past its end, so the upper half of the result is wrong.
 * What is right is computed before the instruction and written before the next one: of 512 bits
 * without a mask; others are refused. */
static void repair_conversion(struct machine *m, uint32_t id) {
  static struct {
    uint32_t reg;
    uint64_t rip; /* of the instruction; 0: none */
    _Alignas(64) uint16_t value[32];
  } repair;
  if (repair.rip == m->rip)
    return; /* Bochs calls again before one instruction in some thousand */
  if (repair.rip) {
    bochs.set_zmm(id, repair.reg, repair.value);
    repair.rip = 0;
  }
  const uint8_t *code = guest(m, m->rip, 6, PAGE_READ);
  m->address = 0;
  if (!code) /* at the end of a page: too short for it, or nothing follows */
    return;
  if (code[0] != 0x62 || (code[1] & 7) != 2 || (code[2] & 0x87) != 7 || code[4] != 0x72)
    return;
  if ((code[3] & 0xf7) != 0x40) { /* {z} L'L b aaa */
    m->vector = VECTOR_UD;
    finish(m, FAULTED);
    return;
  }
  const uint32_t modrm = code[5], r3 = !(code[1] & 0x80) * 8u;
  const uint32_t x3 = !(code[1] & 0x40) * 8u, b3 = !(code[1] & 0x20) * 8u;
  uint32_t a[16], b[16];
  bochs.get_zmm(id, (~code[2] >> 3 & 15) | !(code[3] & 8) << 4, a);
  if (modrm >= 0xc0) {
    bochs.get_zmm(id, (modrm & 7) | b3 | x3 << 1, b);
  } else {
    const uint8_t *source = evex_source(m, id, code);
    if (!source)
      return; /* faults by itself */
    memcpy(b, source, 64);
  }
  for (int i = 0; i < 16; i++) {
    repair.value[i] = nearest_bf16(b[i]);
    repair.value[16 + i] = nearest_bf16(a[i]);
  }
  repair.reg = (modrm >> 3 & 7) | r3 | !(code[1] & 0x10) << 4;
  repair.rip = m->rip;
}

/* ---- 5. Decoding AMX ---- */

/* An AMX instruction: C4 RXBmmmmm WvvvvLpp opcode modrm [sib] [displacement]. */
typedef struct instruction {
  int opcode, prefix; /* prefix: none 66 F3 F2 */
  int is_register, has_sib, reg, rm, vvvv, length;
  uint64_t address, stride;
} instruction;

/* The bytes from m->rip on that can be read; how many. */
static int fetch(struct machine *m, uint8_t code[16]) {
  int have = 0;
  for (; have < 16; have++) {
    const uint8_t *p = guest(m, m->rip + (uint64_t)have, 1, PAGE_READ);
    if (!p)
      break;
    code[have] = *p;
  }
  m->address = 0;
  return have;
}

/* The memory operand of `i`, whose length is that before SIB and displacement. */
static void decode_address(struct machine *m, uint32_t id, const uint8_t *code, instruction *i) {
  const uint64_t b = code[1] & 0x20 ? 0 : 8, x = code[1] & 0x40 ? 0 : 8;
  const int mod = code[4] >> 6;
  int base = i->rm;
  if (i->rm == 4) {
    const int sib = code[i->length++], index = (sib >> 3 & 7) | (int)x;
    i->has_sib = 1;
    base = sib & 7;
    if (index != 4)
      i->stride = bochs.get_reg64(id, (uint32_t)index) << (sib >> 6);
  }
  if (mod == 0 && base == 5) { /* from rip without SIB */
    const int32_t displacement = displacement_32(code + i->length);
    i->length += 4;
    i->address = i->has_sib ? 0 : m->rip + (uint64_t)i->length;
    i->address += (uint64_t)(int64_t)displacement;
    return;
  }
  i->address = bochs.get_reg64(id, (uint32_t)base | (uint32_t)b);
  if (mod == 1)
    i->address += (uint64_t)(int64_t)(int8_t)code[i->length++];
  if (mod == 2) {
    i->address += (uint64_t)(int64_t)displacement_32(code + i->length);
    i->length += 4;
  }
}

/* The instruction at m->rip; length 0 if it is none of AMX's. */
static instruction decode(struct machine *m, uint32_t id) {
  uint8_t code[16] = {0};
  const int have = fetch(m, code);
  instruction i = {0};
  if (have < 5 || code[0] != 0xc4 || (code[1] & 31) != 2 || (code[2] & 0x84))
    return i; /* not map 0F38, W0, 128 bits */
  i.opcode = code[3];
  if (i.opcode != 0x49 && i.opcode != 0x4b && i.opcode != 0x5c && i.opcode != 0x5e)
    return i;
  i.prefix = code[2] & 3;
  i.is_register = code[4] >= 0xc0;
  i.reg = code[4] >> 3 & 7;
  i.rm = code[4] & 7;
  i.vvvv = ~code[2] >> 3 & 15;
  i.length = 5;
  if (!i.is_register)
    decode_address(m, id, code, &i);
  if (i.length > have)
    i.length = 0;
  return i;
}

/* Each of these returns 0, or the vector of the exception that it raises. */

/* TILERELEASE, TILEZERO. */
static int run_register(struct machine *m, const instruction *i) {
  if (i->prefix == 0 && i->reg == 0 && i->rm == 0) {
    m->palette = 0;
    memset(m->tiles, 0, sizeof m->tiles);
    return 0;
  }
  if (i->prefix != 3 || i->rm != 0 || !m->tiles[i->reg].rows)
    return VECTOR_UD;
  memset(m->tiles[i->reg].data, 0, sizeof m->tiles[i->reg].data);
  return 0;
}

/* LDTILECFG, STTILECFG: here SIB is plain addressing. */
static int run_config(struct machine *m, const instruction *i) {
  if (i->reg != 0 || i->prefix > 1)
    return VECTOR_UD;
  uint8_t *p = guest(m, i->address + i->stride, 64, i->prefix ? PAGE_WRITE : PAGE_READ);
  if (!p)
    return VECTOR_PF;
  if (i->prefix)
    store_config(m, p);
  else if (!configure(m, p))
    return VECTOR_GP;
  return 0;
}

/* TILELOADDT1 (66), TILELOADD (F2), TILESTORED (F3). */
static int run_move(struct machine *m, const instruction *i) {
  struct tile *t = &m->tiles[i->reg];
  const int is_store = i->prefix == 2;
  uint64_t address = i->address;
  if (!i->has_sib || i->vvvv != 0 || !i->prefix || !t->rows || (t->bytes & 3))
    return VECTOR_UD;
  for (int r = 0; r < t->rows; r++, address += i->stride) {
    uint8_t *p = guest(m, address, t->bytes, is_store ? PAGE_WRITE : PAGE_READ);
    if (!p)
      return VECTOR_PF;
    if (is_store)
      memcpy(p, t->data[r], t->bytes);
    else
      memcpy(t->data[r], p, t->bytes);
  }
  if (!is_store)
    clear_outside(t);
  return 0;
}

/* 5C: TDPBF16PS (F3), TDPFP16PS (F2).  5E: bytes, UU (none), US (66), SU (F3), SS (F2). */
static int run_product(struct machine *m, const instruction *i) {
  if (i->vvvv > 7 || !shapes_fit(m, i->reg, i->rm, i->vvvv))
    return VECTOR_UD;
  if (i->opcode == 0x5e)
    dot_bytes(m, i->reg, i->rm, i->vvvv, i->prefix >= 2, i->prefix & 1);
  else if (i->prefix >= 2)
    dot_halves(m, i->reg, i->rm, i->vvvv, i->prefix == 2);
  else
    return VECTOR_UD;
  return 0;
}

/* Executes the AMX instruction at m->rip. Its length, or 0 if it is none, or minus the vector of
 * the exception that it raises. */
static int amx_execute(struct machine *m, uint32_t id) {
  const instruction i = decode(m, id);
  int vector = VECTOR_UD;
  if (i.length == 0)
    return 0;
  if (i.opcode == 0x49 && i.vvvv == 0 && i.is_register)
    vector = run_register(m, &i);
  else if (i.opcode == 0x49 && i.vvvv == 0)
    vector = run_config(m, &i);
  else if (i.opcode == 0x4b && !i.is_register)
    vector = run_move(m, &i);
  else if (i.opcode >= 0x5c && i.is_register)
    vector = run_product(m, &i);
  return vector ? -vector : i.length;
}
