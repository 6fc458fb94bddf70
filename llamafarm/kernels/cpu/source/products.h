// Small matrix products out of the caches, for attention.
//
// The right factor is packed: its rows in steps of `Pair` (two for bf16, whose product instruction takes two
// at once, one for fp32), a step of all columns side by side as 32-bit cells. The left factor is read cell by
// cell, wherever its rows lie.
#pragma once

#include "vector.h"

namespace farm {

template <typename Number>
struct Cell;

// One fp32 number, or two bf16 numbers that follow each other along the sum.
template <>
struct Cell<float> {
    static constexpr int pair = 1;
    static inline Floats multiply_add(Floats sum, uint32_t left, Floats right) {
        float x;
        std::memcpy(&x, &left, sizeof x);
        return sum + x * right;
    }
};

#if defined(__AVX512BF16__)
template <>
struct Cell<Bfloat> {
    static constexpr int pair = 2;
    static inline Floats multiply_add(Floats sum, uint32_t left, Floats right) {
        __m512i many = _mm512_set1_epi32(int(left));
        __m512 result = _mm512_dpbf16_ps(
            reinterpret_cast<__m512&>(sum), reinterpret_cast<__m512bh&>(many),
            reinterpret_cast<__m512bh&>(right));
        return reinterpret_cast<Floats&>(result);
    }
};
#endif

// Rows and vectors of columns whose sums are in registers at once.
constexpr int TILE_ROWS = 6;
constexpr int TILE_VECTORS = LANES == 8 ? 2 : 4;
constexpr int64_t PANEL_COLUMNS = TILE_VECTORS * LANES;

// The left factor: a cell at row i and step k is at cells[i * row + k * step].
struct Left {
    const uint32_t* cells;
    int64_t row, step;
};

template <typename Number, int ROWS, int VECTORS>
inline void multiply_tile(
    Left left, const uint32_t* right, int64_t right_step, int64_t steps, float* sums, int64_t sums_row,
    bool adds) {
    Floats total[ROWS][VECTORS];
    for (int i = 0; i < ROWS; i++)
        for (int j = 0; j < VECTORS; j++)
            total[i][j] = adds ? load(sums + i * sums_row + j * LANES) : Floats{};
    const uint32_t* row[ROWS];
    for (int i = 0; i < ROWS; i++) row[i] = left.cells + i * left.row;
    for (int64_t k = 0; k < steps; k++) {
        Floats b[VECTORS];
        for (int j = 0; j < VECTORS; j++) b[j] = load(reinterpret_cast<const float*>(right) + j * LANES);
        right += right_step;
        for (int i = 0; i < ROWS; i++) {
            uint32_t a = *row[i];
            row[i] += left.step;
            for (int j = 0; j < VECTORS; j++) total[i][j] = Cell<Number>::multiply_add(total[i][j], a, b[j]);
        }
    }
    for (int i = 0; i < ROWS; i++)
        for (int j = 0; j < VECTORS; j++) store(sums + i * sums_row + j * LANES, total[i][j]);
}

template <typename Number, int VECTORS>
inline void multiply_rows(
    int64_t rows, Left left, const uint32_t* right, int64_t right_step, int64_t steps, float* sums,
    int64_t sums_row, bool adds) {
    int64_t i = 0;
    for (; i + TILE_ROWS <= rows; i += TILE_ROWS) {
        multiply_tile<Number, TILE_ROWS, VECTORS>(
            {left.cells + i * left.row, left.row, left.step}, right, right_step, steps, sums + i * sums_row,
            sums_row, adds);
    }
    Left rest{left.cells + i * left.row, left.row, left.step};
    float* last = sums + i * sums_row;
    switch (rows - i) {
#define REST(ROWS) \
    case ROWS: \
        multiply_tile<Number, ROWS, VECTORS>(rest, right, right_step, steps, last, sums_row, adds); \
        break;
        REST(5)
        REST(4)
        REST(3)
        REST(2)
        REST(1)
#undef REST
    }
}

// sums (rows, columns) = left (rows, steps) times right (steps, columns), added to them if it `adds`.
// `columns` is a multiple of LANES.
template <typename Number>
inline void multiply(
    int64_t rows, int64_t columns, int64_t steps, Left left, const uint32_t* right, int64_t right_step,
    float* sums, int64_t sums_row, bool adds) {
    int64_t j = 0;
    for (; j + TILE_VECTORS * LANES <= columns; j += TILE_VECTORS * LANES)
        multiply_rows<Number, TILE_VECTORS>(
            rows, left, right + j, right_step, steps, sums + j, sums_row, adds);
    for (; j < columns; j += LANES)
        multiply_rows<Number, 1>(rows, left, right + j, right_step, steps, sums + j, sums_row, adds);
}

#if defined(__clang__)
#define CHOOSE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define CHOOSE(a, b, ...) __builtin_shuffle(a, b, Words{__VA_ARGS__})
#endif

// The lower or the upper halves of two vectors, element by element in turn.
inline Words zip_lower(Words a, Words b) {
#if LANES == 16
    return CHOOSE(a, b, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
#elif LANES == 8
    return CHOOSE(a, b, 0, 8, 1, 9, 2, 10, 3, 11);
#else
    return CHOOSE(a, b, 0, 4, 1, 5);
#endif
}

inline Words zip_upper(Words a, Words b) {
#if LANES == 16
    return CHOOSE(a, b, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
#elif LANES == 8
    return CHOOSE(a, b, 4, 12, 5, 13, 6, 14, 7, 15);
#else
    return CHOOSE(a, b, 2, 6, 3, 7);
#endif
}

// cells (steps, columns) = rows (columns, steps) turned: the packed right factor of a product whose columns
// are `rows`. Other columns stay as they are.
inline void pack_turned(
    const uint32_t* rows, int64_t rows_row, int64_t columns, int64_t steps, uint32_t* cells,
    int64_t cells_row) {
    for (int64_t column = 0; column < columns; column += LANES) {
        const int64_t there = columns - column < LANES ? columns - column : LANES;
        int64_t step = 0;
        for (; there == LANES && step + LANES <= steps; step += LANES) {
            Words block[LANES], turned[LANES];
            for (int i = 0; i < LANES; i++)
                std::memcpy(&block[i], rows + (column + i) * rows_row + step, sizeof block[i]);
            // As often as LANES has factors of two: the first half in turn with the second.
            for (int size = LANES; size > 1; size /= 2) {
                for (int i = 0; i < LANES / 2; i++) {
                    turned[2 * i] = zip_lower(block[i], block[i + LANES / 2]);
                    turned[2 * i + 1] = zip_upper(block[i], block[i + LANES / 2]);
                }
                std::memcpy(block, turned, sizeof block);
            }
            for (int i = 0; i < LANES; i++)
                std::memcpy(cells + (step + i) * cells_row + column, &block[i], sizeof block[i]);
        }
        for (; step < steps; step++)
            for (int64_t i = 0; i < there; i++)
                cells[step * cells_row + column + i] = rows[(column + i) * rows_row + step];
    }
}

// cells (columns,) of two rows that follow each other along the sum (of the first alone where a cell has one
// number), zeros up to `padded`; a row that is null counts as zeros.
template <typename Number>
inline void pack_rows(
    const Number* first, const Number* second, int64_t columns, int64_t padded, uint32_t* cells) {
    if constexpr (Cell<Number>::pair == 1) {
        if (first) std::memcpy(cells, first, columns * sizeof(Number));
        else std::memset(cells, 0, columns * sizeof(Number));
    } else {
        int64_t i = 0;
        for (; i + LANES <= columns; i += LANES) {
            Halves low{}, high{};
            if (first) std::memcpy(&low, first + i, sizeof low);
            if (second) std::memcpy(&high, second + i, sizeof high);
            Words both = __builtin_convertvector(low, Words) | __builtin_convertvector(high, Words) << 16;
            std::memcpy(cells + i, &both, sizeof both);
        }
        for (; i < columns; i++)
            cells[i] = (first ? first[i].bits : 0) | uint32_t(second ? second[i].bits : 0) << 16;
    }
    for (int64_t i = columns; i < padded; i++) cells[i] = 0;
}

}  // namespace farm
