// Causal attention within documents; the contract is that of ../attention.py.
//
// For a block of queries: the scores of all their keys, their softmax, and the product with the values.
#include <cmath>
#include <limits>

#include "attention.h"

namespace farm {

// Turns a row of products (columns) into weights, without dividing by their sum; returns the largest score
// and the sum.
template <typename Number>
static void softmax_row(
    float* scores, Number* weights, int64_t columns, int64_t first, int64_t end, const Settings& settings,
    float& peak, float& total) {
    const float minus_infinity = -std::numeric_limits<float>::infinity();
    Floats most = all(minus_infinity);
    auto score = [&](int64_t j) {
        Floats x = load(scores + j) * settings.scale;
        if (settings.softcap != 0) x = settings.softcap * hyperbolic_tangent(x / settings.softcap);
        return x;
    };
    auto keep = [&](int64_t j, Floats x) {
        store(scores + j, x);
        most = larger(most, x);
    };
    over_columns(
        first, end, columns, [&](int64_t j) { keep(j, score(j)); },
        [&](int64_t j, Ints is_seen) { keep(j, is_seen ? score(j) : all(minus_infinity)); },
        [](int64_t) {});
    peak = largest(most);
    Floats sums{};
    auto weigh = [&](int64_t j, Floats x) {
        sums += x;
        store(weights + j, x);
    };
    over_columns(
        first, end, columns, [&](int64_t j) { weigh(j, exponential(load(scores + j) - peak)); },
        [&](int64_t j, Ints is_seen) {
            weigh(j, is_seen ? exponential(load(scores + j) - peak) : Floats{});
        },
        [&](int64_t j) { store(weights + j, Floats{}); });
    total = sum(sums);
}

template <typename Number>
static void attend(
    const Settings& settings, const Task& task, Heads<const Number> query, Heads<const Number> key,
    Heads<const Number> value, Heads<Number> output, float* log_sums, int64_t num_tokens) {
    constexpr int pair = Cell<Number>::pair;
    const int64_t size = settings.size;
    Keys<Number> keys(settings, task.document);
    auto keys_across = Workspace::take<uint32_t>(0, keys.padded * size / pair);
    auto values_along = Workspace::take<uint32_t>(1, keys.padded * size / pair);
    keys.pack_across(key, task.key_head, size, keys_across);
    keys.pack_along(value, task.key_head, size, values_along);
    // Scores of a block stay in the cache: the longer the document, the fewer queries.
    const int64_t block = std::max<int64_t>(
        std::min<int64_t>(QUERIES, 65536 / keys.padded / TILE_ROWS * TILE_ROWS), TILE_ROWS);
    auto scores = Workspace::take<float>(2, block * keys.padded);
    auto weights = Workspace::take<Number>(3, block * keys.padded);
    auto sums = Workspace::take<float>(4, block * size);
    float totals[QUERIES];
    const int64_t first_head = task.key_head * settings.group();
    for (int64_t head = first_head; head < first_head + settings.group(); head++)
        for (int64_t start = 0; start < keys.own; start += block) {
            const int64_t rows = std::min(block, keys.own - start), place = keys.prefix + start;
            const int64_t first = Seen(settings, place).first / LANES * LANES;
            const int64_t columns = up_to(place + rows - first, LANES);
            const int64_t token = keys.first_token + start;
            Left queries{
                reinterpret_cast<const uint32_t*>(query.of(token, head)), query.token / pair, 1};
            multiply<Number>(
                rows, columns, size / pair, queries, keys_across + first, keys.padded, scores, columns,
                false);
            for (int64_t row = 0; row < rows; row++) {
                Seen seen(settings, place + row);
                float peak;
                softmax_row(
                    scores + row * columns, weights + row * columns, columns, seen.first - first,
                    seen.end - first, settings, peak, totals[row]);
                log_sums[head * num_tokens + token + row] = peak + std::log(totals[row]);
            }
            Left given{reinterpret_cast<const uint32_t*>(weights), columns / pair, 1};
            multiply<Number>(
                rows, size, columns / pair, given, values_along + first / pair * size, size, sums, size,
                false);
            for (int64_t row = 0; row < rows; row++) {
                Number* to = output.of(token + row, head);
                for (int64_t d = 0; d < size; d += LANES)
                    store(to + d, load(sums + row * size + d) / totals[row]);
            }
        }
}

template <typename Number>
static void attend_all(
    const Settings& settings, const void* query, const void* key, const void* value, void* output,
    const int64_t* strides, float* log_sums) {
    auto head_of = [&](const void* at, int which) {
        return Heads<const Number>{
            static_cast<const Number*>(at), strides[2 * which], strides[2 * which + 1]};
    };
    auto written = Heads<Number>{static_cast<Number*>(output), strides[6], strides[7]};
    auto tasks = tasks_of(settings);
#pragma omp parallel for num_threads(int(settings.num_threads)) schedule(dynamic, 1)
    for (size_t i = 0; i < tasks.size(); i++)
        attend<Number>(
            settings, tasks[i], head_of(query, 0), head_of(key, 1), head_of(value, 2), written, log_sums,
            settings.starts[settings.num_documents]);
}

}  // namespace farm

extern "C" {

void attend_float(
    const farm::Settings* settings, const void* query, const void* key, const void* value, void* output,
    const int64_t* strides, float* log_sums) {
    farm::attend_all<float>(*settings, query, key, value, output, strides, log_sums);
}

#if defined(__AVX512BF16__)
void attend_bfloat(
    const farm::Settings* settings, const void* query, const void* key, const void* value, void* output,
    const int64_t* strides, float* log_sums) {
    farm::attend_all<farm::Bfloat>(*settings, query, key, value, output, strides, log_sums);
}
#endif
}
