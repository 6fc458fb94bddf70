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
                Words cells =
                    __builtin_convertvector(low, Words) | __builtin_convertvector(high, Words) << 16;
                std::memcpy(turned + at, &cells, sizeof cells);
                std::memcpy(d_scores + start * columns + j, &low, sizeof low);
                std::memcpy(d_scores + (start + 1) * columns + j, &high, sizeof high);
                cells = __builtin_convertvector(to_halves(weight[0]), Words) |
                        __builtin_convertvector(to_halves(weight[1]), Words) << 16;
                std::memcpy(weights + at, &cells, sizeof cells);
            }
        }
}

// A task's tensors as the products read them, and what is summed up over its panels.
template <typename Number>
struct Packed {
    static constexpr int64_t pair = Cell<Number>::pair;
    Keys<Number> keys, queries;  // `queries` are the document's own tokens, without the prefix
    int64_t own_cells;           // of the queries of a head
    uint32_t *keys_across, *values_across, *keys_along, *queries_along, *outer_along;
    float *d_queries, *deltas;  // of each query head: (own, D), and the sums of output times its gradient

    Packed(const Settings& settings, const Task& task, const Gradients<Number>& of)
        : keys(settings, task.document), queries(keys) {
        const int64_t size = settings.size, group = settings.group();
        queries.prefix = 0;
        queries.padded = up_to(keys.own, LANES);
        own_cells = queries.padded * size / pair;
        const int64_t cells = keys.padded * size / pair;
        keys_across = Workspace::take<uint32_t>(0, 3 * cells);
        values_across = keys_across + cells;
        keys_along = keys_across + 2 * cells;
        keys.pack_across(of.key, task.key_head, size, keys_across);
        keys.pack_across(of.value, task.key_head, size, values_across);
        keys.pack_along(of.key, task.key_head, size, keys_along);
        queries_along = Workspace::take<uint32_t>(1, group * own_cells);
        outer_along = Workspace::take<uint32_t>(2, group * own_cells);
        d_queries = Workspace::take<float>(3, group * keys.own * size);
        std::fill(d_queries, d_queries + group * keys.own * size, 0.0f);
        deltas = Workspace::take<float>(4, group * keys.own);
        for (int64_t g = 0; g < group; g++) pack_queries(of, task.key_head * group + g, g, size);
    }

    void pack_queries(const Gradients<Number>& of, int64_t head, int64_t g, int64_t size) {
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
};

// Rows of heads from a token on, as a left factor.
template <typename Number>
static Left rows_of(Heads<const Number> heads, int64_t token, int64_t head) {
    return {reinterpret_cast<const uint32_t*>(heads.of(token, head)), heads.token / Cell<Number>::pair, 1};
}

// Adds what a block of queries, from `start` on, of the group's head `g` and a panel of keys make of each
// other: to `d_keys`, `d_values` (PANEL, D), and to the packed gradient of the queries.
template <typename Number>
static void meet(
    const Settings& settings, const Task& task, const Gradients<Number>& of, const Packed<Number>& packed,
    int64_t g, int64_t start, int64_t first_key, float* d_keys, float* d_values) {
    constexpr int pair = Cell<Number>::pair;
    const Keys<Number>& keys = packed.keys;
    const int64_t size = settings.size, head = task.key_head * settings.group() + g;
    const int64_t rows = std::min(QUERIES, keys.own - start), place = keys.prefix + start;
    const int64_t token = keys.first_token + start, steps = (rows + pair - 1) / pair;
    // What comes after the block's last query is not met.
    const int64_t columns = std::min(
        std::min(PANEL, keys.padded - first_key), up_to(place + rows - first_key, LANES));
    auto scores = Workspace::take<float>(5, 2 * QUERIES * PANEL);
    auto met = Workspace::take<uint32_t>(6, 3 * QUERIES * PANEL);
    float* d_weights = scores + QUERIES * PANEL;
    uint32_t *weights = met, *turned = met + QUERIES * PANEL;
    auto d_scores = reinterpret_cast<Number*>(met + 2 * QUERIES * PANEL);
    multiply<Number>(
        rows, columns, size / pair, rows_of(of.query, token, head), packed.keys_across + first_key,
        keys.padded, scores, columns, false);
    multiply<Number>(
        rows, columns, size / pair, rows_of(of.d_output, token, head), packed.values_across + first_key,
        keys.padded, d_weights, columns, false);
    score_gradients(
        settings, rows, place, first_key, columns, scores, d_weights,
        of.log_sums + head * of.num_tokens + token, packed.deltas + g * keys.own + start, weights, turned,
        d_scores);
    const int64_t along = g * packed.own_cells + start / pair * size;
    multiply<Number>(
        columns, size, steps, {weights, 1, columns}, packed.outer_along + along, size, d_values, size, true);
    multiply<Number>(
        columns, size, steps, {turned, 1, columns}, packed.queries_along + along, size, d_keys, size, true);
    multiply<Number>(
        rows, size, columns / pair, {reinterpret_cast<const uint32_t*>(d_scores), columns / pair, 1},
        packed.keys_along + first_key / pair * size, size,
        packed.d_queries + (g * keys.own + start) * size, size, true);
}

// Writes what a panel's keys and values got: those of a prefix to where all documents' are added up.
template <typename Number>
static void write_keys(
    const Settings& settings, const Task& task, const Gradients<Number>& of, const Keys<Number>& keys,
    int64_t first_key, int64_t end_key, const float* d_keys, const float* d_values) {
    const int64_t size = settings.size;
    for (int64_t key = first_key; key < end_key; key++, d_keys += size, d_values += size) {
        if (settings.has_prefix && (key < keys.prefix || task.document == 0)) {
            const int64_t before = settings.length(0);
            float* to = of.of_prefix +
                        (task.document * settings.num_key_heads + task.key_head) * 2 * before * size;
            std::copy(d_keys, d_keys + size, to + key * size);
            std::copy(d_values, d_values + size, to + (before + key) * size);
            continue;
        }
        Number* d_key = of.d_key.of(keys.token(key), task.key_head);
        Number* d_value = of.d_value.of(keys.token(key), task.key_head);
        for (int64_t d = 0; d < size; d += LANES) {
            store(d_key + d, load(d_keys + d));
            store(d_value + d, load(d_values + d));
        }
    }
}

template <typename Number>
static void attend_backward(const Settings& settings, const Task& task, const Gradients<Number>& of) {
    const int64_t size = settings.size, group = settings.group();
    const Packed<Number> packed(settings, task, of);
    const Keys<Number>& keys = packed.keys;
    auto sums = Workspace::take<float>(7, 2 * PANEL * size);
    for (int64_t first_key = 0; first_key < keys.count(); first_key += PANEL) {
        const int64_t end_key = std::min(first_key + PANEL, keys.count());
        std::fill(sums, sums + 2 * PANEL * size, 0.0f);
        for (int64_t g = 0; g < group; g++) {
            int64_t start = std::max<int64_t>(first_key - keys.prefix, 0) / QUERIES * QUERIES;
            for (; start < keys.own; start += QUERIES) {
                if (Seen(settings, keys.prefix + start).first >= end_key) break;
                meet(settings, task, of, packed, g, start, first_key, sums, sums + PANEL * size);
            }
        }
        write_keys(settings, task, of, keys, first_key, end_key, sums, sums + PANEL * size);
    }
    for (int64_t g = 0; g < group; g++)
        for (int64_t row = 0; row < keys.own; row++) {
            Number* to = of.d_query.of(keys.first_token + row, task.key_head * group + g);
            const float* from = packed.d_queries + (g * keys.own + row) * size;
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
        head_of(0),     head_of(1),     head_of(2),
        head_of(3),     head_of(4),     log_sums,
        settings.starts[settings.num_documents],
        gradient_of(0), gradient_of(1), gradient_of(2),
        of_prefix};
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
