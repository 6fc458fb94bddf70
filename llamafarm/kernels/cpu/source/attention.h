// What forward and backward of attention share: how heads lie, tasks, a document's keys packed.
//
// A task is one document and one key head, with all query heads that share it. Names: C keys that a document
// meets (those of a prefix first), D head size.
#pragma once

#include <algorithm>
#include <vector>

#include "products.h"
#include "workspace.h"

namespace farm {

template <typename Number>
struct Heads {
    Number* at;
    int64_t token, head;  // strides
    Number* of(int64_t token_index, int64_t head_index) const {
        return at + token_index * token + head_index * head;
    }
};

struct Settings {
    int64_t num_heads, num_key_heads, size;  // H, K, D
    int64_t num_documents;
    const int64_t* starts;  // one more than documents
    int64_t has_prefix;
    float scale;
    int64_t window;  // tokens that a token sees, itself included; 0 for all before it
    float softcap;   // 0 for none
    int64_t num_threads;

    int64_t group() const { return num_heads / num_key_heads; }
    int64_t length(int64_t document) const { return starts[document + 1] - starts[document]; }
    int64_t prefix(int64_t document) const { return has_prefix && document ? length(0) : 0; }
};

struct Task {
    int64_t document, key_head;
    double cost;
};

// The largest first, so that threads end together.
inline std::vector<Task> tasks_of(const Settings& settings) {
    std::vector<Task> tasks;
    for (int64_t document = 0; document < settings.num_documents; document++) {
        double own = double(settings.length(document)), before = double(settings.prefix(document));
        for (int64_t head = 0; head < settings.num_key_heads; head++)
            tasks.push_back({document, head, own * (before + own / 2)});
    }
    std::stable_sort(tasks.begin(), tasks.end(), [](auto& a, auto& b) { return a.cost > b.cost; });
    return tasks;
}

// One document, one key head: where its keys are, the prefix's first.
template <typename Number>
struct Keys {
    int64_t first_token, own, prefix, padded;

    Keys(const Settings& settings, int64_t document)
        : first_token(settings.starts[document]),
          own(settings.length(document)),
          prefix(settings.prefix(document)),
          padded(up_to(own + prefix, LANES)) {}

    int64_t count() const { return own + prefix; }
    int64_t token(int64_t key) const { return key < prefix ? key : first_token + key - prefix; }

    // Cells (D / pair, C): the keys side by side.
    void pack_across(Heads<const Number> heads, int64_t head, int64_t size, uint32_t* cells) const {
        const int64_t steps = size / Cell<Number>::pair, stride = heads.token / Cell<Number>::pair;
        auto rows_of = [&](int64_t key) {
            return reinterpret_cast<const uint32_t*>(heads.of(token(key), head));
        };
        if (prefix) pack_turned(rows_of(0), stride, prefix, steps, cells, padded);
        if (own) pack_turned(rows_of(prefix), stride, own, steps, cells + prefix, padded);
        for (int64_t step = 0; step < steps; step++)
            std::fill(cells + step * padded + count(), cells + (step + 1) * padded, 0);
    }

    // Cells (C / pair, D): the keys along the sum.
    void pack_along(Heads<const Number> heads, int64_t head, int64_t size, uint32_t* cells) const {
        auto row_of = [&](int64_t key) { return key < count() ? heads.of(token(key), head) : nullptr; };
        for (int64_t key = 0; key < padded; key += Cell<Number>::pair, cells += size)
            pack_rows<Number>(row_of(key), row_of(key + 1), size, size, cells);
    }
};

// Which keys a query sees: [first, end).
struct Seen {
    int64_t first, end;
    Seen(const Settings& settings, int64_t place)
        : first(settings.window ? std::max<int64_t>(place - settings.window + 1, 0) : 0), end(place + 1) {}
};

// Calls `inside(j)` for whole vectors of [first, end) and `edge(j, mask)` for those partly in it; j is a
// multiple of LANES. `outside(j)` has the others of [0, columns).
template <typename Inside, typename Edge, typename Outside>
inline void over_columns(
    int64_t first, int64_t end, int64_t columns, Inside inside, Edge edge, Outside outside) {
    for (int64_t j = 0; j < columns; j += LANES) {
        if (j >= first && j + LANES <= end) inside(j);
        else if (j >= end || j + LANES <= first) outside(j);
        else edge(j, (places() + int32_t(j) >= int32_t(first)) & (places() + int32_t(j) < int32_t(end)));
    }
}

constexpr int64_t QUERIES = 4 * TILE_ROWS;
constexpr int64_t PANEL = 64;

}  // namespace farm
