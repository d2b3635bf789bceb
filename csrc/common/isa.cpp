#include "isa.h"

#include <atomic>
#include <cstdlib>
#include <stdexcept>

namespace dakd {
namespace {

Isa best() {
#if defined(__x86_64__)
  __builtin_cpu_init();
  const bool has_avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  if (has_avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl"))
    return Isa::avx512;
  if (has_avx2) return Isa::avx2;
#endif
  return Isa::portable;
}

Isa parse(const std::string& name) {
  const Isa found = best();
  if (name == "best" || name.empty()) return found;
  const Isa wanted = name == "portable" ? Isa::portable : name == "avx2" ? Isa::avx2 : Isa::avx512;
  if (name != "portable" && name != "avx2" && name != "avx512")
    throw std::runtime_error("DAKD_CPU_ISA is '" + name + "'; expected one of best, portable, avx2, avx512");
  if (wanted > found) throw std::runtime_error("this processor has no " + name + "; set DAKD_CPU_ISA to best");
  return wanted;
}

// -1 until first asked: a wrong environment variable must fail in a call, not while the library loads.
std::atomic<int> chosen{-1};

}  // namespace

Isa isa() {
  int value = chosen.load(std::memory_order_relaxed);
  if (value < 0) {
    const char* named = std::getenv("DAKD_CPU_ISA");
    value = static_cast<int>(parse(named == nullptr ? "best" : named));
    chosen.store(value, std::memory_order_relaxed);
  }
  return static_cast<Isa>(value);
}

std::string isa_name() {
  const Isa now = isa();
  return now == Isa::avx512 ? "avx512" : now == Isa::avx2 ? "avx2" : "portable";
}

void set_isa(std::string name) { chosen.store(static_cast<int>(parse(name)), std::memory_order_relaxed); }

}  // namespace dakd
