// The loss of logits and its gradient, row by row; the contract is that of ../../loss.py.
#include <cmath>
#include <limits>

#include "vector.h"

namespace farm {

// Logits as they count, scaled and bounded, and the slope of both.
struct Bound {
    float scale, softcap;  // softcap 0: none

    inline Floats logits(Floats raw) const {
        Floats x = raw * scale;
        return softcap == 0 ? x : softcap * hyperbolic_tangent(x / softcap);
    }
    inline Floats slope(Floats bounded) const {
        if (softcap == 0) return all(scale);
        Floats bent = bounded / softcap;
        return scale * (1.0f - bent * bent);
    }
};

template <typename Number>
static void loss_and_gradient(
    Number* logits, const int64_t* targets, float* losses, int64_t num_rows, int64_t width, int64_t stride,
    float scale, float softcap, int num_threads) {
    const Bound bound{scale, softcap};
    const float minus_infinity = -std::numeric_limits<float>::infinity();
#pragma omp parallel for num_threads(num_threads) schedule(static)
    for (int64_t row = 0; row < num_rows; row++) {
        Number* mine = logits + row * stride;
        const int64_t whole = width / LANES * LANES, rest = width - whole;
        const Ints is_there = places() < int32_t(rest);
        auto last = [&]() { return bound.logits(load_some(mine + whole, rest)); };
        Floats most = all(minus_infinity);
        for (int64_t i = 0; i < whole; i += LANES) most = larger(most, bound.logits(load(mine + i)));
        if (rest) most = larger(most, is_there ? last() : all(minus_infinity));
        const float peak = largest(most);
        Floats sums{};
        for (int64_t i = 0; i < whole; i += LANES) sums += exponential(bound.logits(load(mine + i)) - peak);
        if (rest) sums += is_there ? exponential(last() - peak) : Floats{};
        // Differences to the largest logit: sums with it would round at its size.
        const float total = sum(sums), share = 1.0f / total;
        const Floats chosen = bound.logits(all(one(mine + targets[row])));
        losses[row] = std::log(total) - (chosen[0] - peak);
        auto chance = [&](Floats bounded) { return exponential(bounded - peak) * share; };
        auto gradient = [&](Floats bounded) { return chance(bounded) * bound.slope(bounded); };
        for (int64_t i = 0; i < whole; i += LANES) store(mine + i, gradient(bound.logits(load(mine + i))));
        if (rest) store_some(mine + whole, gradient(last()), rest);
        const Floats of_chosen = (chance(chosen) - 1.0f) * bound.slope(chosen);
        put(mine + targets[row], of_chosen[0]);
    }
}

}  // namespace farm

extern "C" {

void loss_and_gradient_float(
    float* logits, const int64_t* targets, float* losses, int64_t num_rows, int64_t width, int64_t stride,
    float scale, float softcap, int num_threads) {
    farm::loss_and_gradient(logits, targets, losses, num_rows, width, stride, scale, softcap, num_threads);
}

void loss_and_gradient_bfloat(
    farm::Bfloat* logits, const int64_t* targets, float* losses, int64_t num_rows, int64_t width,
    int64_t stride, float scale, float softcap, int num_threads) {
    farm::loss_and_gradient(logits, targets, losses, num_rows, width, stride, scale, softcap, num_threads);
}
}
