// What this library is and what this processor can run. Compiled without any instruction set, so that it runs
// everywhere; building.py defines FEWFIRE_HAS_<isa> for what was compiled in, and FEWFIRE_SOURCES.
#include <cstring>

#include "abi.h"

#if defined(__x86_64__)
#include <cpuid.h>
#endif

#define FEWFIRE_EXPORT extern "C" __attribute__((visibility("default")))

namespace {

#if defined(__x86_64__)

// __builtin_cpu_supports says no to what the operating system does not save. Not every compiler knows "f16c" there;
// its registers are those of avx2, so that the processor's own word is enough.
bool has_f16c() {
  unsigned a, b, c, d;
  return __get_cpuid(1, &a, &b, &c, &d) && (c & (1u << 29));
}

[[maybe_unused]] bool has_avx2() {
  __builtin_cpu_init();
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2") &&
         __builtin_cpu_supports("popcnt") && has_f16c();
}

[[maybe_unused]] bool has_avx512() {
  return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
}

#endif

}  // namespace

// 1 if this library has the instruction set and this processor, under this system, runs it.
FEWFIRE_EXPORT int fewfire_supports(const char* isa) {
  if (!isa) return 0;
#if defined(FEWFIRE_HAS_portable)
  if (!std::strcmp(isa, "portable")) return 1;
#endif
#if defined(__x86_64__) && defined(FEWFIRE_HAS_avx2)
  if (!std::strcmp(isa, "avx2")) return has_avx2();
#endif
#if defined(__x86_64__) && defined(FEWFIRE_HAS_avx512)
  if (!std::strcmp(isa, "avx512")) return has_avx512();
#endif
#if defined(__x86_64__) && defined(FEWFIRE_HAS_avx512vnni)
  if (!std::strcmp(isa, "avx512vnni")) return has_avx512() && __builtin_cpu_supports("avx512vnni");
#endif
  return 0;
}

FEWFIRE_EXPORT int fewfire_abi() { return FEWFIRE_ABI; }

// The sha256 of what the library was built from. building.py finds it in the file without loading it.
FEWFIRE_EXPORT const char* fewfire_sources() { return "fewfire-sources:" FEWFIRE_SOURCES; }
