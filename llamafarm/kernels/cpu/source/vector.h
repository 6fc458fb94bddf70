// Vectors of floats as wide as the processor's, and the 16-bit numbers that are read into them.
//
// GCC's and Clang's vector extension, so that one source serves AVX-512, AVX2 and NEON. Only the products
// of 16-bit numbers (products.h) name instructions.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__AVX512F__)
#define LANES 16
#elif defined(__AVX__)
#define LANES 8
#else
#define LANES 4
#endif

#if defined(__AVX512F__) || defined(__AVX512BF16__)
#include <immintrin.h>
#endif

namespace farm {

typedef float Floats __attribute__((vector_size(4 * LANES)));
typedef int32_t Ints __attribute__((vector_size(4 * LANES)));
typedef uint32_t Words __attribute__((vector_size(4 * LANES)));
typedef uint16_t Halves __attribute__((vector_size(2 * LANES)));

// The upper half of a float: bf16.
struct Bfloat {
    uint16_t bits;
};

inline Floats all(float x) { return x - Floats{}; }

inline Floats load(const float* from) {
    Floats x;
    std::memcpy(&x, from, sizeof x);
    return x;
}

inline Floats load(const Bfloat* from) {
    Halves x;
    std::memcpy(&x, from, sizeof x);
    Words wide = __builtin_convertvector(x, Words) << 16;
    return reinterpret_cast<Floats&>(wide);
}

// Rounded to the nearest, ties to even; what is not a number stays so.
inline Halves to_halves(Floats x) {
#if defined(__AVX512BF16__)
    __m256bh rounded = _mm512_cvtneps_pbh(reinterpret_cast<__m512&>(x));
    return reinterpret_cast<Halves&>(rounded);
#else
    Words bits = reinterpret_cast<Words&>(x);
    Words rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    Ints is_different = x != x;
    Words is_nan = reinterpret_cast<Words&>(is_different);
    rounded = (is_nan & 0x7fc0) | (~is_nan & rounded);
    return __builtin_convertvector(rounded, Halves);
#endif
}

inline void store(float* to, Floats x) { std::memcpy(to, &x, sizeof x); }

inline void store(Bfloat* to, Floats x) {
    Halves rounded = to_halves(x);
    std::memcpy(to, &rounded, sizeof rounded);
}

inline float one(const float* from) { return *from; }

inline float one(const Bfloat* from) {
    uint32_t bits = uint32_t(from->bits) << 16;
    float x;
    std::memcpy(&x, &bits, sizeof x);
    return x;
}

inline void put(float* to, float x) { *to = x; }
inline void put(Bfloat* to, float x) { to->bits = to_halves(all(x))[0]; }

// The first `count` elements, zeros after them.
template <typename Number>
inline Floats load_some(const Number* from, int64_t count) {
    Number there[LANES] = {};
    std::memcpy(there, from, count * sizeof(Number));
    return load(there);
}

template <typename Number>
inline void store_some(Number* to, Floats x, int64_t count) {
    Number there[LANES];
    store(there, x);
    std::memcpy(to, there, count * sizeof(Number));
}

inline Floats larger(Floats a, Floats b) { return a > b ? a : b; }
inline Floats smaller(Floats a, Floats b) { return a < b ? a : b; }

inline float sum(Floats x) {
    float total = 0;
    for (int lane = 0; lane < LANES; lane++) total += x[lane];
    return total;
}

inline float largest(Floats x) {
    float found = x[0];
    for (int lane = 1; lane < LANES; lane++) found = x[lane] > found ? x[lane] : found;
    return found;
}

// The numbers 0, 1, 2, …: the place of each lane.
inline Ints places() {
    Ints x;
    for (int lane = 0; lane < LANES; lane++) x[lane] = lane;
    return x;
}

// e to the x within 2 units in the last place; below -87 as at -87, which is 1.6e-38. What is not a number
// stays so: a run that diverges has to show it.
inline Floats exponential(Floats exact) {
    Floats x = smaller(larger(exact, all(-87.0f)), all(88.0f));
    // x = count * ln 2 + rest: adding and taking away 1.5 * 2^23 rounds to a whole number.
    const float magic = 12582912.0f;
    Floats shifted = x * 1.44269504088896f + magic;
    Floats count = shifted - magic;
    Floats rest = x - count * 0.693145751953125f - count * 1.42860682030941723e-6f;
    // Taylor's series to the sixth power: |rest| is at most 0.35.
    Floats power = all(1.0f / 720);
    power = power * rest + 1.0f / 120;
    power = power * rest + 1.0f / 24;
    power = power * rest + 1.0f / 6;
    power = power * rest + 0.5f;
    power = power * rest + 1.0f;
    power = power * rest + 1.0f;
    Ints exponent = reinterpret_cast<Ints&>(shifted) << 23;
    Ints bits = reinterpret_cast<Ints&>(power) + exponent;
    return exact == exact ? reinterpret_cast<Floats&>(bits) : exact;
}

inline Floats sigmoid(Floats x) { return 1.0f / (1.0f + exponential(-x)); }

inline Floats hyperbolic_tangent(Floats x) { return 2.0f * sigmoid(2.0f * x) - 1.0f; }

}  // namespace farm
