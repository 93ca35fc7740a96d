// AMX for processors that lack it: preloaded into a process, it executes what raises SIGILL.
//
// Only the instructions of kernels/cpu/amx.h and their nearest relatives, and only as Intel's Software
// Developer's Manual, volume 2, defines them: what would be a fault there ends the process here, with a
// message. Every thread has its own tiles. `amx_products` counts the tile products of the process.
// The system's permission to use tiles is granted, or refused where AMX_EMULATOR_REFUSES is set.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <ucontext.h>
#include <unistd.h>

enum { kTiles = 8, kRows = 16, kRowBytes = 64 };
enum { kRequestPermission = 0x1023, kTileData = 18 };

typedef struct {
  uint8_t palette, start_row, reserved[14];
  uint16_t row_bytes[16];
  uint8_t rows[16];
} Shapes;
_Static_assert(sizeof(Shapes) == 64, "the operand of ldtilecfg");

static __thread Shapes shapes;  // palette 0: not configured
static __thread uint8_t tiles[kTiles][kRows][kRowBytes];
static uint64_t products;

uint64_t amx_products(void) { return __atomic_load_n(&products, __ATOMIC_SEQ_CST); }

static _Noreturn void fault(const char* why) {
  static const char kPrefix[] = "amx emulator: ";
  if (write(2, kPrefix, sizeof(kPrefix) - 1) < 0 || write(2, why, strlen(why)) < 0 || write(2, "\n", 1) < 0) _exit(98);
  _exit(99);
}

static void check(int holds, const char* why) {
  if (!holds) fault(why);
}

// A VEX instruction of the map 0F 38, taken apart.
typedef struct {
  int prefix;  // 0 none, 1 66, 2 F3, 3 F2
  int opcode, mod, reg, rm, vvvv;
  uint64_t base, index;  // the index scaled
  int64_t displacement;
  int has_sib, length;
} Instruction;

static const int kRegisters[16] = {REG_RAX, REG_RCX, REG_RDX, REG_RBX, REG_RSP, REG_RBP, REG_RSI, REG_RDI,
                                   REG_R8,  REG_R9,  REG_R10, REG_R11, REG_R12, REG_R13, REG_R14, REG_R15};

static uint64_t value(const ucontext_t* context, int number) { return (uint64_t)context->uc_mcontext.gregs[kRegisters[number]]; }

static void decode_memory(const ucontext_t* context, const uint8_t* code, Instruction* it, int x, int b) {
  int base = it->rm | b << 3, no_base = 0;
  if (it->rm == 4) {
    const uint8_t sib = code[it->length++];
    const int index = (sib >> 3 & 7) | x << 3;
    it->has_sib = 1;
    base = (sib & 7) | b << 3;
    it->index = index == 4 ? 0 : value(context, index) << (sib >> 6);
    no_base = (sib & 7) == 5 && it->mod == 0;
  }
  const int relative = it->mod == 0 && it->rm == 5;
  if (it->mod == 1) it->displacement = (int8_t)code[it->length++];
  if (it->mod == 2 || no_base || relative) {
    int32_t displacement;
    memcpy(&displacement, code + it->length, 4);
    it->displacement = displacement;
    it->length += 4;
  }
  it->base = relative ? (uint64_t)(uintptr_t)(code + it->length) : no_base ? 0 : value(context, base);
}

static int decode(const ucontext_t* context, Instruction* it) {
  const uint8_t* code = (const uint8_t*)(uintptr_t)context->uc_mcontext.gregs[REG_RIP];
  memset(it, 0, sizeof(*it));
  if (code[0] != 0xc4 || (code[1] & 0x1f) != 2) return 0;
  const int r = ~code[1] >> 7 & 1, x = ~code[1] >> 6 & 1, b = ~code[1] >> 5 & 1, w = code[2] >> 7, l = code[2] >> 2 & 1;
  it->opcode = code[3];
  if (it->opcode != 0x49 && it->opcode != 0x4b && it->opcode != 0x5e) return 0;
  check(w == 0 && l == 0, "VEX.W and VEX.L must be 0");
  it->prefix = code[2] & 3;
  it->vvvv = ~(code[2] >> 3) & 15;
  it->mod = code[4] >> 6;
  it->reg = (code[4] >> 3 & 7) | r << 3;
  it->rm = code[4] & 7;
  it->length = 5;
  if (it->mod != 3) decode_memory(context, code, it, x, b);
  else it->rm |= b << 3;
  return 1;
}

static void load_shapes(const Shapes* from) {
  static const uint8_t kZeros[14];
  memset(tiles, 0, sizeof(tiles));
  memset(&shapes, 0, sizeof(shapes));
  if (from->palette == 0) return;
  check(from->palette == 1, "ldtilecfg: no such palette");
  check(memcmp(from->reserved, kZeros, sizeof(kZeros)) == 0, "ldtilecfg: reserved bytes are not zero");
  check(from->start_row == 0, "ldtilecfg: a start row is for interrupted instructions");
  for (int t = 0; t < 16; ++t) {
    if (t >= kTiles) check(from->rows[t] == 0 && from->row_bytes[t] == 0, "ldtilecfg: there are 8 tiles");
    check(from->rows[t] <= kRows, "ldtilecfg: more than 16 rows");
    check(from->row_bytes[t] <= kRowBytes, "ldtilecfg: more than 64 bytes in a row");
    check((from->rows[t] == 0) == (from->row_bytes[t] == 0), "ldtilecfg: rows without bytes or bytes without rows");
  }
  shapes = *from;
}

static void check_tile(int tile) {
  check(shapes.palette == 1, "tiles are not configured");
  check(tile < kTiles, "there are 8 tiles");
  check(shapes.rows[tile] != 0, "the tile has no shape");
}

static void load_tile(int tile, const uint8_t* from, uint64_t stride) {
  check_tile(tile);
  memset(tiles[tile], 0, sizeof(tiles[tile]));
  for (int row = 0; row < shapes.rows[tile]; ++row) memcpy(tiles[tile][row], from + stride * (uint64_t)row, shapes.row_bytes[tile]);
}

static void store_tile(int tile, uint8_t* to, uint64_t stride) {
  check_tile(tile);
  for (int row = 0; row < shapes.rows[tile]; ++row) memcpy(to + stride * (uint64_t)row, tiles[tile][row], shapes.row_bytes[tile]);
}

static int32_t byte_of(uint8_t byte, int is_signed) { return is_signed ? (int8_t)byte : byte; }

static void multiply(int sum, int a, int b, int a_signed, int b_signed) {
  check_tile(sum), check_tile(a), check_tile(b);
  check(sum != a && sum != b && a != b, "tdpb: a tile is used twice");
  check(shapes.row_bytes[sum] % 4 == 0 && shapes.row_bytes[a] % 4 == 0 && shapes.row_bytes[b] % 4 == 0, "tdpb: rows are not whole words");
  check(shapes.rows[sum] == shapes.rows[a], "tdpb: sum and first factor differ in rows");
  check(shapes.row_bytes[sum] == shapes.row_bytes[b], "tdpb: sum and second factor differ in bytes of a row");
  check(shapes.row_bytes[a] == 4 * shapes.rows[b], "tdpb: depths differ");
  for (int m = 0; m < shapes.rows[sum]; ++m) {
    uint32_t row[kRowBytes / 4];  // sums wrap around
    memcpy(row, tiles[sum][m], sizeof(row));
    for (int k = 0; k < shapes.rows[b]; ++k)
      for (int n = 0; n < shapes.row_bytes[sum] / 4; ++n)
        for (int i = 0; i < 4; ++i) row[n] += (uint32_t)(byte_of(tiles[a][m][4 * k + i], a_signed) * byte_of(tiles[b][k][4 * n + i], b_signed));
    memcpy(tiles[sum][m], row, sizeof(row));
  }
  for (int m = shapes.rows[sum]; m < kRows; ++m) memset(tiles[sum][m], 0, kRowBytes);
  __atomic_fetch_add(&products, 1, __ATOMIC_SEQ_CST);
}

// 0 if it is none of ours.
static int execute(const Instruction* it) {
  uint8_t* memory = (uint8_t*)(uintptr_t)(it->base + it->index + (uint64_t)it->displacement);
  uint8_t* rows = (uint8_t*)(uintptr_t)(it->base + (uint64_t)it->displacement);  // the index is the stride
  const int registers = it->mod == 3;
  if (it->opcode == 0x5e) {
    if (!registers) return 0;
    multiply(it->reg, it->rm, it->vvvv, it->prefix >= 2, it->prefix & 1);  // tdpbuud, usd, sud, ssd
    return 1;
  }
  check(it->vvvv == 0, "VEX.vvvv must be 1111b");
  if (it->opcode == 0x4b) {
    if (registers || !it->has_sib || it->prefix == 0) return 0;
    if (it->prefix == 2) store_tile(it->reg, rows, it->index);
    else load_tile(it->reg, rows, it->index);
    return 1;
  }
  if (!registers && it->prefix == 0 && it->reg == 0) load_shapes((const Shapes*)memory);
  else if (registers && it->prefix == 0 && it->reg == 0 && it->rm == 0) memset(&shapes, 0, sizeof(shapes)), memset(tiles, 0, sizeof(tiles));
  else if (registers && it->prefix == 3 && it->rm == 0) check_tile(it->reg), memset(tiles[it->reg], 0, sizeof(tiles[0]));
  else return 0;
  return 1;
}

static void on_illegal_instruction(int signal_number, siginfo_t* info, void* machine) {
  (void)info;
  ucontext_t* context = machine;
  Instruction instruction;
  if (decode(context, &instruction) && execute(&instruction)) context->uc_mcontext.gregs[REG_RIP] += instruction.length;
  else signal(signal_number, SIG_DFL);  // the instruction runs again and ends the process
}

static long (*next_syscall)(long, ...);

long syscall(long number, ...) {
  long a[6];
  va_list arguments;
  va_start(arguments, number);
  for (int i = 0; i < 6; ++i) a[i] = va_arg(arguments, long);
  va_end(arguments);
  const int is_request = number == SYS_arch_prctl && a[0] == kRequestPermission && a[1] == kTileData;
  if (is_request && getenv("AMX_EMULATOR_REFUSES") != NULL) {
    errno = EOPNOTSUPP;
    return -1;
  }
  if (next_syscall == NULL) *(void**)&next_syscall = dlsym(RTLD_NEXT, "syscall");
  const long result = next_syscall(number, a[0], a[1], a[2], a[3], a[4], a[5]);
  return is_request ? 0 : result;
}

__attribute__((constructor)) static void install(void) {
  struct sigaction action;
  memset(&action, 0, sizeof(action));
  action.sa_sigaction = on_illegal_instruction;
  action.sa_flags = SA_SIGINFO;
  sigaction(SIGILL, &action, NULL);
}
