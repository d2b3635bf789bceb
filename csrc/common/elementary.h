// The elementary functions of vec_math.h and the conversions of lanes.h and numbers.h, element by element: for tests.
#pragma once

#include <cstdint>

#include "isa.h"
#include "numbers.h"

namespace dakd {

// cast converts through lanes, cast_one by one through numbers.h; the others are the functions of vec_math.h.
enum class Elementary {
  cast, cast_one, exp, exp2, exp2_bounded, exp2_of_negative, exp_of_negative, log1p_of_unit, sigmoid, softplus
};

#define DAKD_DECLARE_ELEMENTARY(From, To) \
  DAKD_DECLARE(void elementary(Elementary function, const From* from, To* to, int64_t count))
#define DAKD_DECLARE_ELEMENTARY_FROM(From)  \
  DAKD_DECLARE_ELEMENTARY(From, float)      \
  DAKD_DECLARE_ELEMENTARY(From, BFloat16)   \
  DAKD_DECLARE_ELEMENTARY(From, Float16)
DAKD_DECLARE_ELEMENTARY_FROM(float)
DAKD_DECLARE_ELEMENTARY_FROM(BFloat16)
DAKD_DECLARE_ELEMENTARY_FROM(Float16)
DAKD_DECLARE_ELEMENTARY(double, double)
#undef DAKD_DECLARE_ELEMENTARY_FROM
#undef DAKD_DECLARE_ELEMENTARY

}  // namespace dakd
