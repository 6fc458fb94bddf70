// Products of a step's linear layers: several terms in one sum.
//
// out (rows, columns) = sum over terms of left (rows, count) times right (count, columns), and a bias, and
// what is added. A term's right factor lies as a weight does in the forward pass (a row for each column of
// the output) or as in the backward pass (a row for each place of the sum). It is packed panel by panel for
// some hundred rows at once, which costs a fiftieth of the product.
#include <algorithm>
#include <vector>

#include "products.h"
#include "workspace.h"

namespace farm {

template <typename Number>
struct Term {
    const Number* left;
    int64_t left_row;
    const Number* right;
    int64_t right_row;
    int64_t count;
    int64_t is_along;  // a row for each place of the sum
};

template <typename Number>
struct Product {
    int64_t rows, columns, num_terms;
    const Term<Number>* terms;
    const Number* bias;   // (columns,) or null
    const Number* added;  // (rows, columns) or null
    int64_t added_row;
    Number* out;
    int64_t out_row;
    int64_t num_threads;
};

// Steps whose packed panel stays in the second cache beside the rows that it meets.
constexpr int64_t BLOCK_STEPS = 1024;
constexpr int64_t MOST_ROWS = 88 * TILE_ROWS;
constexpr int64_t LEAST_ROWS = 8 * TILE_ROWS;

// Part of a term's sum.
struct Segment {
    int64_t term, first, steps;
};

// The terms cut into blocks of at most BLOCK_STEPS steps.
template <typename Number>
static std::vector<std::vector<Segment>> blocks_of(const Product<Number>& product) {
    std::vector<std::vector<Segment>> blocks(1);
    int64_t room = BLOCK_STEPS;
    for (int64_t term = 0; term < product.num_terms; term++) {
        const int64_t steps = product.terms[term].count / Cell<Number>::pair;
        for (int64_t first = 0; first < steps;) {
            if (room == 0) {
                blocks.emplace_back();
                room = BLOCK_STEPS;
            }
            const int64_t taken = std::min(room, steps - first);
            blocks.back().push_back({term, first, taken});
            first += taken;
            room -= taken;
        }
    }
    return blocks;
}

// Packs columns [column, column + PANEL_COLUMNS) of a segment; zeros beyond the last column.
template <typename Number>
static void pack(const Product<Number>& product, const Segment& segment, int64_t column, uint32_t* cells) {
    constexpr int64_t pair = Cell<Number>::pair;
    const Term<Number>& term = product.terms[segment.term];
    const int64_t there = std::min(PANEL_COLUMNS, product.columns - column);
    if (!term.is_along) {
        if (there < PANEL_COLUMNS) std::memset(cells, 0, segment.steps * PANEL_COLUMNS * sizeof *cells);
        const Number* from = term.right + column * term.right_row + segment.first * pair;
        pack_turned(
            reinterpret_cast<const uint32_t*>(from), term.right_row / pair, there, segment.steps, cells,
            PANEL_COLUMNS);
        return;
    }
    for (int64_t step = 0; step < segment.steps; step++) {
        const Number* from = term.right + (segment.first + step) * pair * term.right_row + column;
        pack_rows<Number>(from, from + term.right_row, there, PANEL_COLUMNS, cells + step * PANEL_COLUMNS);
    }
}

template <typename Number>
static inline Floats read(const Number* from, int64_t count) {
    return count >= LANES ? load(from) : load_some(from, count);
}

template <typename Number>
static inline void write(Number* to, Floats x, int64_t count) {
    if (count >= LANES) store(to, x);
    else store_some(to, x, count);
}

// Writes sums (rows, columns), which lie `sums_row` apart, to the output at `row` and `column`, with what is
// added.
template <typename Number>
static inline void finish(
    const Product<Number>& product, const float* sums, int64_t sums_row, int64_t row, int64_t rows,
    int64_t column, int64_t columns) {
    for (int64_t i = row; i < row + rows; i++, sums += sums_row)
        for (int64_t j = 0; j < columns; j += LANES) {
            const int64_t at = column + j, count = columns - j;
            Floats total = load(sums + j);
            if (product.bias) total += read(product.bias + at, count);
            if (product.added) total += read(product.added + i * product.added_row + at, count);
            write(product.out + i * product.out_row + at, total, count);
        }
}

// Rows that are one task with a panel: so many that packing is little, and tasks for all threads alike.
static int64_t choose_rows(int64_t rows, int64_t panels, int64_t threads) {
    int64_t best = rows;
    double least = 1e300;
    const int64_t fewest = (rows + MOST_ROWS - 1) / MOST_ROWS;
    for (int64_t chunks = fewest; chunks <= fewest + 4 * threads; chunks++) {
        const int64_t each = up_to((rows + chunks - 1) / chunks, TILE_ROWS);
        if (chunks > fewest && each < LEAST_ROWS) break;
        const int64_t turns = ((rows + each - 1) / each * panels + threads - 1) / threads;
        // In rows of a panel; packing one costs as much as 6 of them.
        const double cost = double(turns) * double(each + 6);
        if (cost < least) {
            least = cost;
            best = each;
        }
    }
    return best;
}

template <typename Number>
static void multiply_task(
    const Product<Number>& product, const std::vector<std::vector<Segment>>& blocks, int64_t first_row,
    int64_t rows, int64_t column) {
    constexpr int64_t pair = Cell<Number>::pair;
    auto cells = Workspace::take<uint32_t>(0, BLOCK_STEPS * PANEL_COLUMNS);
    auto sums = Workspace::take<float>(1, (blocks.size() > 1 ? rows : TILE_ROWS) * PANEL_COLUMNS);
    const int64_t there = std::min(PANEL_COLUMNS, product.columns - column);
    const bool is_narrow = there <= LANES;
    for (size_t block = 0; block < blocks.size(); block++) {
        uint32_t* packed = cells;
        for (const Segment& segment : blocks[block]) {
            pack(product, segment, column, packed);
            packed += segment.steps * PANEL_COLUMNS;
        }
        for (int64_t i = 0; i < rows; i += TILE_ROWS) {
            const int64_t tile = std::min<int64_t>(TILE_ROWS, rows - i);
            float* of_tile = blocks.size() > 1 ? sums + i * PANEL_COLUMNS : sums;
            bool adds = block > 0;
            const uint32_t* right = cells;
            for (const Segment& segment : blocks[block]) {
                const Term<Number>& term = product.terms[segment.term];
                const Number* left = term.left + (first_row + i) * term.left_row + segment.first * pair;
                const Left cells_of{reinterpret_cast<const uint32_t*>(left), term.left_row / pair, 1};
                (is_narrow ? multiply_rows<Number, 1> : multiply_rows<Number, TILE_VECTORS>)(
                    tile, cells_of, right, PANEL_COLUMNS, segment.steps, of_tile, PANEL_COLUMNS, adds);
                right += segment.steps * PANEL_COLUMNS;
                adds = true;
            }
            if (block + 1 == blocks.size())
                finish(product, of_tile, PANEL_COLUMNS, first_row + i, tile, column, there);
        }
    }
}

// multiply_rows for as many vectors of columns as there are.
template <typename Number>
static inline void multiply_columns(
    int64_t vectors, int64_t rows, Left left, const uint32_t* right, int64_t right_step, int64_t steps,
    float* sums, int64_t sums_row) {
    while (vectors >= TILE_VECTORS) {
        multiply_rows<Number, TILE_VECTORS>(rows, left, right, right_step, steps, sums, sums_row, true);
        right += PANEL_COLUMNS, sums += PANEL_COLUMNS, vectors -= TILE_VECTORS;
    }
    while (vectors >= 2) {
        multiply_rows<Number, 2>(rows, left, right, right_step, steps, sums, sums_row, true);
        right += 2 * LANES, sums += 2 * LANES, vectors -= 2;
    }
    if (vectors) multiply_rows<Number, 1>(rows, left, right, right_step, steps, sums, sums_row, true);
}

// A sum so deep that the left factor falls out of the caches before the next panel: all of it goes by once,
// in slices, and a thread's part of the columns is summed up meanwhile. That of the head's backward pass.
template <typename Number>
static void multiply_deep(const Product<Number>& product) {
    constexpr int64_t pair = Cell<Number>::pair, most = 128;
    const Term<Number>& term = product.terms[0];
    const int64_t steps = term.count / pair, vectors = (product.columns + LANES - 1) / LANES;
    const int64_t parts = std::min(vectors, product.num_threads);
#pragma omp parallel for num_threads(int(product.num_threads)) schedule(static, 1)
    for (int64_t part = 0; part < parts; part++) {
        const int64_t first = vectors * part / parts * LANES, end = vectors * (part + 1) / parts * LANES;
        const int64_t width = end - first, there = std::min(end, product.columns) - first;
        auto cells = Workspace::take<uint32_t>(0, most * width);
        auto sums = Workspace::take<float>(1, product.rows * width);
        std::fill(sums, sums + product.rows * width, 0.0f);
        for (int64_t step = 0; step < steps; step += most) {
            const int64_t taken = std::min(most, steps - step);
            for (int64_t i = 0; i < taken; i++) {
                const Number* from = term.right + (step + i) * pair * term.right_row + first;
                pack_rows<Number>(from, from + term.right_row, there, width, cells + i * width);
            }
            const auto left = reinterpret_cast<const uint32_t*>(term.left + step * pair);
            multiply_columns<Number>(
                width / LANES, product.rows, {left, term.left_row / pair, 1}, cells, width, taken, sums,
                width);
        }
        finish(product, sums, width, 0, product.rows, first, there);
    }
}

template <typename Number>
static void multiply_all(const Product<Number>& product) {
    if (product.rows == 0 || product.columns == 0) return;
    const auto blocks = blocks_of(product);
    const int64_t panels = (product.columns + PANEL_COLUMNS - 1) / PANEL_COLUMNS;
    const int64_t each = choose_rows(product.rows, panels, product.num_threads);
    const int64_t chunks = (product.rows + each - 1) / each;
#pragma omp parallel for num_threads(int(product.num_threads)) schedule(dynamic, 1)
    for (int64_t task = 0; task < chunks * panels; task++) {
        const int64_t first = task % chunks * each;
        multiply_task(
            product, blocks, first, std::min(each, product.rows - first),
            task / chunks * PANEL_COLUMNS);
    }
}

}  // namespace farm

extern "C" {

void product_float(const farm::Product<float>* product) { farm::multiply_all(*product); }

void product_deep_float(const farm::Product<float>* product) { farm::multiply_deep(*product); }

#if defined(__AVX512BF16__)
void product_deep_bfloat(const farm::Product<farm::Bfloat>* product) { farm::multiply_deep(*product); }
#endif
}
