// The instruction set that vector code runs with, chosen once at run time.
//
// Every csrc/<op>/*_vec.cpp is compiled once per instruction set, with DAKD_ISA naming both the flags and the namespace:
// dakd::portable, dakd::avx2, dakd::avx512. Host code calls DAKD_CALL(function, arguments...).
#pragma once

#include <string>

namespace dakd {

enum class Isa { portable, avx2, avx512 };

// The best instruction set of this processor, or the one that the environment variable DAKD_CPU_ISA or set_isa names.
Isa isa();
std::string isa_name();
// name: "portable", "avx2", "avx512" or "best"; throws for one that this processor or this build does not have.
void set_isa(std::string name);

}  // namespace dakd

// DAKD_DECLARE(signature) declares a function in each namespace of vector code.
// DAKD_CALL(function, arguments...) calls the one of the chosen instruction set.
#if defined(__x86_64__)
#define DAKD_DECLARE(...)             \
  namespace portable { __VA_ARGS__; } \
  namespace avx2 { __VA_ARGS__; }     \
  namespace avx512 { __VA_ARGS__; }
#define DAKD_CALL(function, ...)                                               \
  (::dakd::isa() == ::dakd::Isa::avx512 ? ::dakd::avx512::function(__VA_ARGS__) \
   : ::dakd::isa() == ::dakd::Isa::avx2 ? ::dakd::avx2::function(__VA_ARGS__)   \
                                        : ::dakd::portable::function(__VA_ARGS__))
#else
#define DAKD_DECLARE(...) \
  namespace portable { __VA_ARGS__; }
#define DAKD_CALL(function, ...) (::dakd::portable::function(__VA_ARGS__))
#endif
