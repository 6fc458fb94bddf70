// A product with its left factor turned, long and narrow: the gradient of an adapter's half.
#include <algorithm>
#include <vector>

#include "products.h"
#include "workspace.h"

namespace farm {

// Steps whose packed panel stays in the second cache.
constexpr int64_t BLOCK_STEPS = 1024;

// out (left_columns, right_columns), in fp32 = left (tokens, left_columns) turned, times right (tokens,
// right_columns), times `factor`.
template <typename Number>
static void multiply_turned(
    const Number* left, int64_t left_row, int64_t left_columns, const Number* right, int64_t right_row,
    int64_t right_columns, int64_t tokens, float factor, float* out, int num_threads) {
    constexpr int64_t pair = Cell<Number>::pair;
    if (tokens == 0) {
        std::fill(out, out + left_columns * right_columns, 0.0f);
        return;
    }
    const int64_t steps = (tokens + pair - 1) / pair, block = std::min(steps, BLOCK_STEPS);
    std::vector<uint32_t> turned(steps * left_columns);
    for (int64_t step = 0; step < steps; step++) {
        const Number* from = left + step * pair * left_row;
        pack_rows<Number>(
            from, step * pair + 1 < tokens ? from + left_row : nullptr, left_columns, left_columns,
            turned.data() + step * left_columns);
    }
    const int64_t panels = (right_columns + PANEL_COLUMNS - 1) / PANEL_COLUMNS;
#pragma omp parallel for num_threads(num_threads) schedule(dynamic, 1)
    for (int64_t panel = 0; panel < panels; panel++) {
        auto cells = Workspace::take<uint32_t>(0, BLOCK_STEPS * PANEL_COLUMNS);
        auto sums = Workspace::take<float>(1, left_columns * PANEL_COLUMNS);
        const int64_t column = panel * PANEL_COLUMNS, there = std::min(PANEL_COLUMNS, right_columns - column);
        for (int64_t first = 0; first < steps; first += block) {
            const int64_t taken = std::min(block, steps - first);
            for (int64_t step = 0; step < taken; step++) {
                const int64_t token = (first + step) * pair;
                const Number* from = right + token * right_row + column;
                pack_rows<Number>(
                    from, token + 1 < tokens ? from + right_row : nullptr, there, PANEL_COLUMNS,
                    cells + step * PANEL_COLUMNS);
            }
            multiply_rows<Number, TILE_VECTORS>(
                left_columns, {turned.data() + first * left_columns, 1, left_columns}, cells, PANEL_COLUMNS,
                taken, sums, PANEL_COLUMNS, first > 0);
        }
        for (int64_t i = 0; i < left_columns; i++)
            for (int64_t j = 0; j < there; j++)
                out[i * right_columns + column + j] = sums[i * PANEL_COLUMNS + j] * factor;
    }
}

}  // namespace farm

extern "C" {

void product_turned_float(
    const float* left, int64_t left_row, int64_t left_columns, const float* right, int64_t right_row,
    int64_t right_columns, int64_t tokens, float factor, float* out, int num_threads) {
    farm::multiply_turned(
        left, left_row, left_columns, right, right_row, right_columns, tokens, factor, out, num_threads);
}

#if defined(__AVX512BF16__)
void product_turned_bfloat(
    const farm::Bfloat* left, int64_t left_row, int64_t left_columns, const farm::Bfloat* right,
    int64_t right_row, int64_t right_columns, int64_t tokens, float factor, float* out, int num_threads) {
    farm::multiply_turned(
        left, left_row, left_columns, right, right_row, right_columns, tokens, factor, out, num_threads);
}
#endif
}
