/* Rows times the weights of a linear layer: bfloat16 in memory, float32 in arithmetic. */
#include <omp.h>

#include "numbers.h"

/* Outputs that are computed together: their weights for one input are 64 bytes. */
#define TILE 32
/* Inputs that are gone through at a time, so that they and their weights stay in the nearest cache. */
#define DEPTH 256
/* Rows whose sums fit into registers. */
#define BLOCK 12
/* Inputs, in float32, that stay in the second cache while all weights pass by. */
#define PANEL 196608
/* What threads take at a time is this part of what each would have to do. */
#define SHARE 8

/* Add to `sums[rows][TILE]` what `inputs[rows][DEPTH]` make of `depth` inputs' weights; `pace` 256ths of an input's
   weights are asked for in advance with each, from `next` on. `chains`: sums that do not wait for each other, as those
   of one row would. */
INLINE void multiply(
    const int rows, const int chains, const float *inputs, const uint16_t *weights, const uint16_t *next, int pace,
    int depth, float *sums)
{
    lanes low[2][BLOCK], high[2][BLOCK];
    int place = 0;
#pragma GCC unroll 12
    for (int row = 0; row < rows; row++) {
        low[0][row] = *(const lanes_at *)(sums + row * TILE);
        high[0][row] = *(const lanes_at *)(sums + row * TILE + LANES);
        low[1][row] = high[1][row] = (lanes){0};
    }
    for (; place + chains <= depth; place += chains) {
#pragma GCC unroll 2
        for (int chain = 0; chain < chains; chain++) {
            const uint16_t *here = weights + (place + chain) * TILE;
            __builtin_prefetch(next + ((place + chain) * pace >> 8) * TILE);
            bits both = *(const bits_at *)here;
            lanes even = (lanes)(both << 16), odd = (lanes)(both & 0xffff0000u);
#pragma GCC unroll 12
            for (int row = 0; row < rows; row++) {
                float input = inputs[row * DEPTH + place + chain];
                low[chain][row] += even * input;
                high[chain][row] += odd * input;
            }
        }
    }
    for (; place < depth; place++) {
        bits both = *(const bits_at *)(weights + place * TILE);
#pragma GCC unroll 12
        for (int row = 0; row < rows; row++) {
            low[0][row] += (lanes)(both << 16) * inputs[row * DEPTH + place];
            high[0][row] += (lanes)(both & 0xffff0000u) * inputs[row * DEPTH + place];
        }
    }
#pragma GCC unroll 12
    for (int row = 0; row < rows; row++) {
        *(lanes_at *)(sums + row * TILE) = chains > 1 ? low[0][row] + low[1][row] : low[0][row];
        *(lanes_at *)(sums + row * TILE + LANES) = chains > 1 ? high[0][row] + high[1][row] : high[0][row];
    }
}

static void multiply_rows(
    int rows, const float *inputs, const uint16_t *weights, const uint16_t *next, int pace, int depth, float *sums)
{
#define CASE(count, chains) \
    case count: multiply(count, chains, inputs, weights, next, pace, depth, sums); break;
    switch (rows) {
        CASE(1, 2) CASE(2, 2) CASE(3, 2) CASE(4, 2) CASE(5, 1) CASE(6, 1)
        CASE(7, 1) CASE(8, 1) CASE(9, 1) CASE(10, 1) CASE(11, 1) CASE(12, 1)
    }
#undef CASE
}

static void finish(
    const float *sums, const float *bias, uint16_t *outputs, int64_t rows, int64_t first, int64_t width)
{
    int64_t count = width - first < TILE ? width - first : TILE;
    float added[TILE] = {0};
    for (int64_t place = 0; bias && place < count; place++)
        added[place] = bias[first + place];
    for (int64_t row = 0; row < rows; row++) {
        const float *own = sums + row * TILE;
        uint16_t *to = outputs + row * width + first;
        if (count == TILE)
            for (int half = 0; half < TILE; half += LANES)
                write_lanes(to, half, read_lanes(own, half, 1) + read_lanes(added, half, 1), 0);
        else
            for (int64_t place = 0; place < count; place++)
                to[place] = narrowed(own[place] + added[place]);
    }
}

/* In float32, and the inputs that are gone through together beside each other: `[depth / DEPTH, rows, DEPTH]`. */
static const float *widen(const uint16_t *inputs, int64_t rows, int64_t depth)
{
    int64_t steps = (depth + DEPTH - 1) / DEPTH;
    float *wide = room_for(INPUTS, steps * rows * DEPTH);
#pragma omp parallel for if (rows > BLOCK)
    for (int64_t row = 0; row < rows; row++)
        for (int64_t step = 0; step < steps; step++) {
            const uint16_t *from = inputs + row * depth + step * DEPTH;
            float *to = wide + (step * rows + row) * DEPTH;
            int64_t left = depth - step * DEPTH, count = left < DEPTH ? left : DEPTH;
            for (int64_t place = 0; place < count; place++)
                to[place] = widened(from[place]);
        }
    return wide;
}

static void multiply_panel(
    const uint16_t *inputs, const uint16_t *weights, const float *bias, uint16_t *outputs,
    int64_t rows, int64_t depth, int64_t width)
{
    int64_t steps = (depth + DEPTH - 1) / DEPTH, blocks = (rows + BLOCK - 1) / BLOCK;
    int64_t tiles = (width + TILE - 1) / TILE, taken = tiles / (omp_get_max_threads() * SHARE) + 1;
    int pace = (int)((256 + blocks - 1) / blocks);
    const float *wide = widen(inputs, rows, depth);
#pragma omp parallel for schedule(dynamic, taken)
    for (int64_t tile = 0; tile < tiles; tile++) {
        float *sums = room_for(SUMS, rows * TILE);
        for (int64_t place = 0; place < rows * TILE; place++)
            sums[place] = 0.0f;
        for (int64_t step = 0; step < steps; step++) {
            int64_t left = depth - step * DEPTH, count = left < DEPTH ? left : DEPTH;
            const uint16_t *own = weights + (tile * depth + step * DEPTH) * TILE, *next = own + count * TILE;
            for (int64_t block = 0; block < blocks; block++) {
                int64_t first = rows * block / blocks, end = rows * (block + 1) / blocks;
                multiply_rows(
                    (int)(end - first), wide + (step * rows + first) * DEPTH, own,
                    next + block * DEPTH / blocks * TILE, pace, (int)count, sums + first * TILE);
            }
        }
        finish(sums, bias, outputs, rows, tile * TILE, width);
    }
}

/* `inputs` are `[rows, depth]` and `outputs` `[rows, width]`; `weights` `[width / 32, depth, 16, 2]`, rounded up, hold of
   each 32 outputs the first 16 in the even places; `bias` `[width]` or nothing. */
void baton_product(
    const uint16_t *inputs, const uint16_t *weights, const float *bias, uint16_t *outputs,
    int64_t rows, int64_t depth, int64_t width)
{
    int64_t most = depth * BLOCK < PANEL ? PANEL / depth : BLOCK, panels = (rows + most - 1) / most;
    for (int64_t panel = 0; panel < panels; panel++) {
        int64_t first = rows * panel / panels, end = rows * (panel + 1) / panels;
        multiply_panel(inputs + first * depth, weights, bias, outputs + first * width, end - first, depth, width);
    }
}
