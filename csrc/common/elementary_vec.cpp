#include "elementary.h"

#include "vec_math.h"

namespace dakd {
namespace DAKD_ISA {
namespace {

template <typename From, typename To, typename Function>
void map(const From* from, To* to, int64_t count, const Function& function) {
  for (int64_t i = 0; i < count; i += kLanes) store(to + i, function(load(from + i, count - i)), count - i);
}

template <typename From, typename To>
void apply(Elementary function, const From* from, To* to, int64_t count) {
  using V = Lanes<From>;
  switch (function) {
    case Elementary::cast: return map(from, to, count, [](V x) { return x; });
    case Elementary::exp: return map(from, to, count, [](V x) { return exp(x); });
    case Elementary::exp2: return map(from, to, count, [](V x) { return exp2(x); });
    case Elementary::exp2_bounded: return map(from, to, count, [](V x) { return exp2<true>(x); });
    case Elementary::exp2_of_negative: return map(from, to, count, [](V x) { return exp2_of_negative(x); });
    case Elementary::exp_of_negative: return map(from, to, count, [](V x) { return exp_of_negative(x); });
    case Elementary::log1p_of_unit: return map(from, to, count, [](V x) { return log1p_of_unit(x); });
    case Elementary::sigmoid: return map(from, to, count, [](V x) { return sigmoid(x); });
    case Elementary::softplus: return map(from, to, count, [](V x) { return softplus(x); });
    case Elementary::cast_one:
      for (int64_t i = 0; i < count; ++i) write(to + i, read(from[i]));
  }
}

}  // namespace

#define DAKD_DEFINE_ELEMENTARY(From, To)                                               \
  void elementary(Elementary function, const From* from, To* to, int64_t count) {     \
    apply(function, from, to, count);                                                  \
  }
#define DAKD_DEFINE_ELEMENTARY_FROM(From)  \
  DAKD_DEFINE_ELEMENTARY(From, float)      \
  DAKD_DEFINE_ELEMENTARY(From, BFloat16)   \
  DAKD_DEFINE_ELEMENTARY(From, Float16)
DAKD_DEFINE_ELEMENTARY_FROM(float)
DAKD_DEFINE_ELEMENTARY_FROM(BFloat16)
DAKD_DEFINE_ELEMENTARY_FROM(Float16)
DAKD_DEFINE_ELEMENTARY(double, double)
#undef DAKD_DEFINE_ELEMENTARY_FROM
#undef DAKD_DEFINE_ELEMENTARY

}  // namespace DAKD_ISA
}  // namespace dakd
