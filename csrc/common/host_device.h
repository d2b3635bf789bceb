// For code that the CPU and the GPU share: DAKD_HD stands before a function, DAKD_UNROLL before a loop whose number of
// turns is known and whose arrays are to become registers.
#pragma once

#if defined(__CUDACC__)
#define DAKD_HD __host__ __device__ __forceinline__
#define DAKD_UNROLL _Pragma("unroll")
#else
#define DAKD_HD inline __attribute__((always_inline))
// GCC unrolls such loops by itself at -O3.
#define DAKD_UNROLL
#endif
