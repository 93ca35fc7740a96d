// Linux lets a process use tiles once it has asked: their registers make every thread's state 8 KiB larger.

#include "amx.h"

#if defined(ENGINE_AMX)

#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "c_interface.h"

// Only libraries that need something of the system have this function. Null, or what the system
// does not grant and why.
extern "C" __attribute__((visibility("default"))) const char* engine_prepare() {
  constexpr long kRequestPermission = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM and XFEATURE_XTILEDATA of asm/prctl.h
  if (syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0) return nullptr;
  engine::last_error() = std::string("AMX tiles: ") + std::strerror(errno);
  return engine::last_error().c_str();
}

#endif
