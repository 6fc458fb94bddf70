// The gradient of attention within documents; the contract is that of ../attention.py.
//
// For a panel of keys and a block of queries: the scores again, and the five products they take part in while
// they are in the cache.
#include "attention.h"

namespace farm {

// What the backward pass of a query head needs of a document's queries.
template <typename Number>
struct Gradients {
    Heads<const Number> query, key, value, output, d_output;
    const float* log_sums;  // (H, T)
    int64_t num_tokens;
    Heads<Number> d_query, d_key, d_value;
    float* of_prefix;  // (documents, K, 2, tokens of the prefix, D)
};

// Where a block of queries meets a panel of keys: weights and gradients of scores, in the forms that the
// products read. `weights` and `turned` have cells of rows along the sum, (rows / pair, columns);
// `d_scores` is (rows, columns).
template <typename Number>
static void score_gradients(
    const Settings& settings, int64_t rows, int64_t place, int64_t first_key, int64_t columns,
    const float* scores, const float* d_weights, const float* log_sums, const float* deltas,
    uint32_t* weights, uint32_t* turned, Number* d_scores) {
    constexpr int pair = Cell<Number>::pair;
    const float scale = settings.scale, softcap = settings.softcap;
    for (int64_t start = 0; start < rows; start += pair)
        for (int64_t j = 0; j < columns; j += LANES) {
            Floats weight[2] = {}, gradient[2] = {};
            for (int64_t i = 0; i < pair && start + i < rows; i++) {
                const int64_t row = start + i;
                Seen seen(settings, place + row);
                const int64_t first = seen.first - first_key, end = seen.end - first_key;
                if (j >= end || j + LANES <= first) continue;
                Floats x = load(scores + row * columns + j) * scale, slope = all(scale);
                if (softcap != 0) {
                    Floats bent = hyperbolic_tangent(x / softcap);
                    x = softcap * bent;
                    slope *= 1.0f - bent * bent;
                }
                weight[i] = exponential(x - log_sums[row]);
                if (j < first || j + LANES > end) {
                    Ints at = places() + int32_t(j);
                    weight[i] = ((at >= int32_t(first)) & (at < int32_t(end))) ? weight[i] : Floats{};
                }
                gradient[i] = weight[i] * (load(d_weights + row * columns + j) - deltas[row]) * slope;
            }
            const int64_t at = start / pair * columns + j;
            if constexpr (pair == 1) {
                store(reinterpret_cast<float*>(weights) + at, weight[0]);
                store(reinterpret_cast<float*>(turned) + at, gradient[0]);
                store(d_scores + start * columns + j, gradient[0]);
            } else {
                Halves low = to_halves(gradient[0]), high = to_halves(gradient[1]);
                Words cells = __builtin_convertvector(low, Words) | __builtin_convertvector(high, Words) << 16;
                std::memcpy(turned + at, &cells, sizeof cells);
                std::memcpy(d_scores + start * columns + j, &low, sizeof low);
                std::memcpy(d_scores + (start + 1) * columns + j, &high, sizeof high);
                cells = __builtin_convertvector(to_halves(weight[0]), Words) |
                        __builtin_convertvector(to_halves(weight[1]), Words) << 16;
                std::memcpy(weights + at, &cells, sizeof cells);
            }
        }
}

template <typename Number>
static void attend_backward(const Settings& settings, const Task& task, const Gradients<Number>& of) {
    constexpr int pair = Cell<Number>::pair;
    const int64_t size = settings.size, group = settings.group();
    Keys<Number> keys(settings, task.document);
    Keys<Number> queries = keys;  // the document's own tokens, without the prefix
    queries.prefix = 0;
    queries.padded = up_to(keys.own, LANES);
    const int64_t cells = keys.padded * size / pair, own_cells = queries.padded * size / pair;
    auto packed = Workspace::take<uint32_t>(0, 3 * cells);
    uint32_t *keys_across = packed, *values_across = packed + cells, *keys_along = packed + 2 * cells;
    keys.pack_across(of.key, task.key_head, size, keys_across);
    keys.pack_across(of.value, task.key_head, size, values_across);
    keys.pack_along(of.key, task.key_head, size, keys_along);
    auto queries_along = Workspace::take<uint32_t>(1, group * own_cells);
    auto outer_along = Workspace::take<uint32_t>(2, group * own_cells);
    auto d_queries = Workspace::take<float>(3, group * keys.own * size);
    std::memset(d_queries, 0, group * keys.own * size * sizeof(float));
    auto deltas = Workspace::take<float>(4, group * keys.own);
    for (int64_t g = 0; g < group; g++) {
        const int64_t head = task.key_head * group + g;
        queries.pack_along(of.query, head, size, queries_along + g * own_cells);
        queries.pack_along(of.d_output, head, size, outer_along + g * own_cells);
        for (int64_t row = 0; row < keys.own; row++) {
            const Number* output = of.output.of(keys.first_token + row, head);
            const Number* d_output = of.d_output.of(keys.first_token + row, head);
            Floats along{};
            for (int64_t d = 0; d < size; d += LANES) along += load(output + d) * load(d_output + d);
            deltas[g * keys.own + row] = sum(along);
        }
    }
    auto scores = Workspace::take<float>(5, 2 * QUERIES * PANEL);
    float* d_weights = scores + QUERIES * PANEL;
    auto met = Workspace::take<uint32_t>(6, 3 * QUERIES * PANEL);
    uint32_t *weights = met, *turned = met + QUERIES * PANEL;
    auto d_scores = reinterpret_cast<Number*>(met + 2 * QUERIES * PANEL);
    auto sums = Workspace::take<float>(7, 2 * PANEL * size);
    float *d_keys = sums, *d_values = sums + PANEL * size;
    for (int64_t first_key = 0; first_key < keys.count(); first_key += PANEL) {
        const int64_t panel = std::min(PANEL, keys.padded - first_key);
        const int64_t end_key = std::min(first_key + PANEL, keys.count());
        std::memset(sums, 0, 2 * PANEL * size * sizeof(float));
        for (int64_t g = 0; g < group; g++) {
            const int64_t head = task.key_head * group + g;
            int64_t start = std::max<int64_t>(first_key - keys.prefix, 0) / QUERIES * QUERIES;
            for (; start < keys.own; start += QUERIES) {
                const int64_t rows = std::min(QUERIES, keys.own - start), place = keys.prefix + start;
                if (Seen(settings, place).first >= end_key) break;
                // What comes after the block's last query is not met.
                const int64_t columns = std::min(panel, up_to(place + rows - first_key, LANES));
                const int64_t token = keys.first_token + start, steps = (rows + pair - 1) / pair;
                Left asked{
                    reinterpret_cast<const uint32_t*>(of.query.of(token, head)), of.query.token / pair, 1};
                multiply<Number>(
                    rows, columns, size / pair, asked, keys_across + first_key, keys.padded, scores, columns,
                    false);
                Left outer{
                    reinterpret_cast<const uint32_t*>(of.d_output.of(token, head)), of.d_output.token / pair,
                    1};
                multiply<Number>(
                    rows, columns, size / pair, outer, values_across + first_key, keys.padded, d_weights,
                    columns, false);
                score_gradients(
                    settings, rows, place, first_key, columns, scores, d_weights,
                    of.log_sums + head * of.num_tokens + token, deltas + g * keys.own + start, weights, turned,
                    d_scores);
                const int64_t along = g * own_cells + start / pair * size;
                multiply<Number>(
                    columns, size, steps, {weights, 1, columns}, outer_along + along, size, d_values, size,
                    true);
                multiply<Number>(
                    columns, size, steps, {turned, 1, columns}, queries_along + along, size, d_keys, size,
                    true);
                multiply<Number>(
                    rows, size, columns / pair,
                    {reinterpret_cast<const uint32_t*>(d_scores), columns / pair, 1},
                    keys_along + first_key / pair * size, size, d_queries + (g * keys.own + start) * size, size,
                    true);
            }
        }
        for (int64_t key = first_key; key < end_key; key++) {
            const float *of_key = d_keys + (key - first_key) * size, *of_value = of_key + PANEL * size;
            if (settings.has_prefix && (key < keys.prefix || task.document == 0)) {
                const int64_t before = settings.length(0);
                float* to = of.of_prefix +
                            (task.document * settings.num_key_heads + task.key_head) * 2 * before * size;
                std::memcpy(to + key * size, of_key, size * sizeof(float));
                std::memcpy(to + (before + key) * size, of_value, size * sizeof(float));
                continue;
            }
            Number* d_key = of.d_key.of(keys.token(key), task.key_head);
            Number* d_value = of.d_value.of(keys.token(key), task.key_head);
            for (int64_t d = 0; d < size; d += LANES) {
                store(d_key + d, load(of_key + d));
                store(d_value + d, load(of_value + d));
            }
        }
    }
    for (int64_t g = 0; g < group; g++)
        for (int64_t row = 0; row < keys.own; row++) {
            Number* to = of.d_query.of(keys.first_token + row, task.key_head * group + g);
            const float* from = d_queries + (g * keys.own + row) * size;
            for (int64_t d = 0; d < size; d += LANES) store(to + d, load(from + d));
        }
}

// The gradient of a prefix's keys and values is the sum of what all documents make of it, in their order.
template <typename Number>
static void add_up_prefix(const Settings& settings, const Gradients<Number>& of) {
    const int64_t before = settings.length(0), size = settings.size, heads = settings.num_key_heads;
#pragma omp parallel for num_threads(int(settings.num_threads)) schedule(static)
    for (int64_t token = 0; token < before; token++)
        for (int64_t head = 0; head < heads; head++)
            for (int64_t kind = 0; kind < 2; kind++) {
                auto& gradient = kind ? of.d_value : of.d_key;
                for (int64_t d = 0; d < size; d += LANES) {
                    Floats total{};
                    for (int64_t document = 0; document < settings.num_documents; document++)
                        total += load(
                            of.of_prefix +
                            (((document * heads + head) * 2 + kind) * before + token) * size + d);
                    store(gradient.of(token, head) + d, total);
                }
            }
}

template <typename Number>
static void attend_all_backward(
    const Settings& settings, const void* const* read, void* const* written, const int64_t* strides,
    const float* log_sums, float* of_prefix) {
    auto head_of = [&](int which) {
        return Heads<const Number>{
            static_cast<const Number*>(read[which]), strides[2 * which], strides[2 * which + 1]};
    };
    auto gradient_of = [&](int which) {
        return Heads<Number>{
            static_cast<Number*>(written[which]), strides[10 + 2 * which], strides[11 + 2 * which]};
    };
    Gradients<Number> of{
        head_of(0),     head_of(1), head_of(2), head_of(3), head_of(4), log_sums, settings.starts[settings.num_documents],
        gradient_of(0), gradient_of(1), gradient_of(2), of_prefix};
    auto tasks = tasks_of(settings);
#pragma omp parallel for num_threads(int(settings.num_threads)) schedule(dynamic, 1)
    for (size_t i = 0; i < tasks.size(); i++) attend_backward<Number>(settings, tasks[i], of);
    if (settings.has_prefix) add_up_prefix(settings, of);
}

}  // namespace farm

extern "C" {

void attend_backward_float(
    const farm::Settings* settings, const void* const* read, void* const* written, const int64_t* strides,
    const float* log_sums, float* of_prefix) {
    farm::attend_all_backward<float>(*settings, read, written, strides, log_sums, of_prefix);
}

#if defined(__AVX512BF16__)
void attend_backward_bfloat(
    const farm::Settings* settings, const void* const* read, void* const* written, const int64_t* strides,
    const float* log_sums, float* of_prefix) {
    farm::attend_all_backward<farm::Bfloat>(*settings, read, written, strides, log_sums, of_prefix);
}
#endif
}
