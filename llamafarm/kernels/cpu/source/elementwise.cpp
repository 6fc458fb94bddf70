// Norms, rotary positions and the gate, forward and gradient, each in one pass; the contracts are those of
// ../../elementwise.py. Everything is computed in fp32 and rounded once.
#include <cmath>

#include "vector.h"

namespace farm {

// Calls `whole(i)` for vectors from 0 up to `count`, and `part(i, rest)` for what does not fill one.
template <typename Whole, typename Part>
static inline void over_vectors(int64_t count, Whole whole, Part part) {
    int64_t i = 0;
    for (; i + LANES <= count; i += LANES) whole(i);
    if (i < count) part(i, count - i);
}

template <typename Number>
static void normalize(
    const Number* rows, const float* weight, Number* normed, float* inverses, int64_t num_rows, int64_t size,
    int64_t stride, float epsilon, int num_threads) {
#pragma omp parallel for num_threads(num_threads) schedule(static)
    for (int64_t row = 0; row < num_rows; row++) {
        const Number* from = rows + row * stride;
        Number* to = normed + row * size;
        Floats squares{};
        over_vectors(
            size,
            [&](int64_t i) {
                Floats x = load(from + i);
                squares += x * x;
            },
            [&](int64_t i, int64_t rest) {
                Floats x = load_some(from + i, rest);
                squares += x * x;
            });
        const float inverse = 1.0f / std::sqrt(sum(squares) / float(size) + epsilon);
        inverses[row] = inverse;
        over_vectors(
            size, [&](int64_t i) { store(to + i, load(from + i) * inverse * load(weight + i)); },
            [&](int64_t i, int64_t rest) {
                store_some(to + i, load_some(from + i, rest) * inverse * load_some(weight + i, rest), rest);
            });
    }
}

template <typename Number>
static void normalize_backward(
    const Number* d_normed, const Number* rows, const float* weight, const float* inverses, Number* d_rows,
    int64_t num_rows, int64_t size, int64_t d_stride, int64_t stride, int num_threads) {
#pragma omp parallel for num_threads(num_threads) schedule(static)
    for (int64_t row = 0; row < num_rows; row++) {
        const Number *outer = d_normed + row * d_stride, *from = rows + row * stride;
        Number* to = d_rows + row * size;
        const float inverse = inverses[row];
        Floats products{};
        over_vectors(
            size, [&](int64_t i) { products += load(outer + i) * load(weight + i) * load(from + i); },
            [&](int64_t i, int64_t rest) {
                products +=
                    load_some(outer + i, rest) * load_some(weight + i, rest) * load_some(from + i, rest);
            });
        const float along = sum(products) * inverse * inverse / float(size);
        over_vectors(
            size,
            [&](int64_t i) {
                store(to + i, (load(outer + i) * load(weight + i) - load(from + i) * along) * inverse);
            },
            [&](int64_t i, int64_t rest) {
                Floats scaled = load_some(outer + i, rest) * load_some(weight + i, rest);
                store_some(to + i, (scaled - load_some(from + i, rest) * along) * inverse, rest);
            });
    }
}

// Turns the first 2 * half elements of each head by the token's angles, `sign` -1 back; the rest is copied.
// Tables are (tokens, 2 * half) in the heads' numbers, of which the first half is read.
template <typename Number>
static void rotate(
    const Number* heads, const Number* cosine, const Number* sine, Number* rotated, int64_t num_tokens,
    int64_t num_heads, int64_t size, int64_t half, const int64_t* strides, float sign, int num_threads) {
    const int64_t token_stride = strides[0], head_stride = strides[1];
#pragma omp parallel for num_threads(num_threads) schedule(static)
    for (int64_t token = 0; token < num_tokens; token++) {
        const Number *by_cosine = cosine + token * strides[2], *by_sine = sine + token * strides[3];
        for (int64_t head = 0; head < num_heads; head++) {
            const Number* from = heads + token * token_stride + head * head_stride;
            Number* to = rotated + (token * num_heads + head) * size;
            over_vectors(
                half,
                [&](int64_t i) {
                    Floats first = load(from + i), second = load(from + half + i);
                    Floats along = load(by_cosine + i), across = sign * load(by_sine + i);
                    store(to + i, first * along - second * across);
                    store(to + half + i, second * along + first * across);
                },
                [&](int64_t i, int64_t rest) {
                    Floats first = load_some(from + i, rest), second = load_some(from + half + i, rest);
                    Floats along = load_some(by_cosine + i, rest);
                    Floats across = sign * load_some(by_sine + i, rest);
                    store_some(to + i, first * along - second * across, rest);
                    store_some(to + half + i, second * along + first * across, rest);
                });
            std::memcpy(to + 2 * half, from + 2 * half, (size - 2 * half) * sizeof(Number));
        }
    }
}

struct Silu {
    static inline void compute(Floats x, Floats& activated, Floats& slope) {
        Floats share = sigmoid(x);
        activated = x * share;
        slope = share * (1.0f + x * (1.0f - share));
    }
};

struct GeluTanh {
    static inline void compute(Floats x, Floats& activated, Floats& slope) {
        const float factor = 0.7978845608028654f;  // sqrt(2 / pi)
        Floats bent = hyperbolic_tangent(factor * (x + 0.044715f * x * x * x));
        activated = 0.5f * x * (1.0f + bent);
        slope = 0.5f * (1.0f + bent) + 0.5f * x * (1.0f - bent * bent) * factor * (1.0f + 0.134145f * x * x);
    }
};

struct Gelu {
    static inline void compute(Floats x, Floats& activated, Floats& slope) {
        Floats share;
        for (int lane = 0; lane < LANES; lane++)
            share[lane] = 0.5f * (1.0f + std::erf(x[lane] * 0.7071067811865476f));
        activated = x * share;
        slope = share + x * exponential(-0.5f * x * x) * 0.3989422804014327f;  // 1 / sqrt(2 pi)
    }
};

template <typename Number, typename Activation>
static void gate(
    const Number* gates, const Number* ups, Number* gated, int64_t num_tokens, int64_t width,
    int64_t gate_stride, int64_t up_stride, int num_threads) {
#pragma omp parallel for num_threads(num_threads) schedule(static)
    for (int64_t token = 0; token < num_tokens; token++) {
        const Number *x = gates + token * gate_stride, *up = ups + token * up_stride;
        Number* to = gated + token * width;
        Floats activated, slope;
        over_vectors(
            width,
            [&](int64_t i) {
                Activation::compute(load(x + i), activated, slope);
                store(to + i, activated * load(up + i));
            },
            [&](int64_t i, int64_t rest) {
                Activation::compute(load_some(x + i, rest), activated, slope);
                store_some(to + i, activated * load_some(up + i, rest), rest);
            });
    }
}

template <typename Number, typename Activation>
static void gate_backward(
    const Number* d_gated, const Number* gates, const Number* ups, Number* d_gates, Number* d_ups,
    int64_t num_tokens, int64_t width, int64_t d_stride, int64_t gate_stride, int64_t up_stride,
    int num_threads) {
#pragma omp parallel for num_threads(num_threads) schedule(static)
    for (int64_t token = 0; token < num_tokens; token++) {
        const Number *x = gates + token * gate_stride, *up = ups + token * up_stride;
        const Number* outer = d_gated + token * d_stride;
        Number *d_gate = d_gates + token * width, *d_up = d_ups + token * width;
        Floats activated, slope;
        over_vectors(
            width,
            [&](int64_t i) {
                Activation::compute(load(x + i), activated, slope);
                Floats gradient = load(outer + i);
                store(d_gate + i, gradient * load(up + i) * slope);
                store(d_up + i, gradient * activated);
            },
            [&](int64_t i, int64_t rest) {
                Activation::compute(load_some(x + i, rest), activated, slope);
                Floats gradient = load_some(outer + i, rest);
                store_some(d_gate + i, gradient * load_some(up + i, rest) * slope, rest);
                store_some(d_up + i, gradient * activated, rest);
            });
    }
}

}  // namespace farm

using farm::Bfloat;

extern "C" {

#define FOR_NUMBERS(Number, name) \
    void normalize_##name( \
        const Number* rows, const float* weight, Number* normed, float* inverses, int64_t num_rows, \
        int64_t size, int64_t stride, float epsilon, int num_threads) { \
        farm::normalize(rows, weight, normed, inverses, num_rows, size, stride, epsilon, num_threads); \
    } \
    void normalize_backward_##name( \
        const Number* d_normed, const Number* rows, const float* weight, const float* inverses, \
        Number* d_rows, int64_t num_rows, int64_t size, int64_t d_stride, int64_t stride, int num_threads) { \
        farm::normalize_backward( \
            d_normed, rows, weight, inverses, d_rows, num_rows, size, d_stride, stride, num_threads); \
    } \
    void rotate_##name( \
        const Number* heads, const Number* cosine, const Number* sine, Number* rotated, int64_t num_tokens, \
        int64_t num_heads, int64_t size, int64_t half, const int64_t* strides, float sign, \
        int num_threads) { \
        farm::rotate( \
            heads, cosine, sine, rotated, num_tokens, num_heads, size, half, strides, sign, num_threads); \
    }
FOR_NUMBERS(float, float)
FOR_NUMBERS(Bfloat, bfloat)

#define FOR_ACTIVATIONS(Number, name, Activation, kind) \
    void gate_##kind##_##name( \
        const Number* gates, const Number* ups, Number* gated, int64_t num_tokens, int64_t width, \
        int64_t gate_stride, int64_t up_stride, int num_threads) { \
        farm::gate<Number, farm::Activation>( \
            gates, ups, gated, num_tokens, width, gate_stride, up_stride, num_threads); \
    } \
    void gate_backward_##kind##_##name( \
        const Number* d_gated, const Number* gates, const Number* ups, Number* d_gates, Number* d_ups, \
        int64_t num_tokens, int64_t width, int64_t d_stride, int64_t gate_stride, int64_t up_stride, \
        int num_threads) { \
        farm::gate_backward<Number, farm::Activation>( \
            d_gated, gates, ups, d_gates, d_ups, num_tokens, width, d_stride, gate_stride, up_stride, \
            num_threads); \
    }
FOR_ACTIVATIONS(float, float, Silu, silu)
FOR_ACTIVATIONS(float, float, GeluTanh, gelu_tanh)
FOR_ACTIVATIONS(float, float, Gelu, gelu)
FOR_ACTIVATIONS(Bfloat, bfloat, Silu, silu)
FOR_ACTIVATIONS(Bfloat, bfloat, GeluTanh, gelu_tanh)
FOR_ACTIVATIONS(Bfloat, bfloat, Gelu, gelu)
}
