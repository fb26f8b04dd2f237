/* What a layer does to each number or row by itself, in one pass. */
#include "numbers.h"

/* Less than this is done before another thread wakes. */
#define WORTH 32768
#define BOTH(call, wide) do { if (wide) call(1); else call(0); } while (0)

INLINE void norm_row(const void *inputs, const float *weights, void *outputs, int64_t width, float epsilon, const int wide)
{
    float squares = 0.0f;
#pragma omp simd reduction(+ : squares)
    for (int64_t place = 0; place < width; place++) {
        float number = read_one(inputs, place, wide);
        squares += number * number;
    }
    float scale = 1.0f / sqrtf(squares / (float)width + epsilon);
#pragma omp simd
    for (int64_t place = 0; place < width; place++)
        write_one(outputs, place, read_one(inputs, place, wide) * scale * weights[place], wide);
}

/* Each of `rows` rows of `width` over the root of the mean of its squares, times `weights`. */
void baton_norm(
    const void *inputs, const float *weights, void *outputs, int64_t rows, int64_t width, float epsilon, int wide)
{
    int64_t size = wide ? 4 : 2;
#pragma omp parallel for if (rows * width > WORTH)
    for (int64_t row = 0; row < rows; row++) {
        const char *from = (const char *)inputs + row * width * size;
        char *to = (char *)outputs + row * width * size;
#define ROW(wide) norm_row(from, weights, to, width, epsilon, wide)
        BOTH(ROW, wide);
#undef ROW
    }
}

INLINE void gate_row(const void *inputs, void *outputs, int64_t width, const int smooth, const int wide)
{
#pragma omp simd
    for (int64_t place = 0; place < width; place++) {
        float gate = read_one(inputs, place, wide), up = read_one(inputs, width + place, wide);
        float power = smooth ? 1.5957691216f * gate * (1.0f + 0.044715f * gate * gate) : gate;
        write_one(outputs, place, gate / (1.0f + exponential(-power)) * up, wide);
    }
}

/* Of each row of `2 * width`: the first half's sigmoid units, or with `smooth` its Gaussian error units by tanh, times
   the second half. */
void baton_gate(const void *inputs, void *outputs, int64_t rows, int64_t width, int smooth, int wide)
{
    int64_t size = wide ? 4 : 2;
#pragma omp parallel for if (rows * width > WORTH)
    for (int64_t row = 0; row < rows; row++) {
        const char *from = (const char *)inputs + row * 2 * width * size;
        char *to = (char *)outputs + row * width * size;
#define ROW(wide) do { if (smooth) gate_row(from, to, width, 1, wide); else gate_row(from, to, width, 0, wide); } while (0)
        BOTH(ROW, wide);
#undef ROW
    }
}

INLINE void rotate_head(
    const void *inputs, const void *cosines, const void *sines, void *outputs, int64_t dim, const int wide)
{
    int64_t half = dim / 2;
#pragma omp simd
    for (int64_t place = 0; place < half; place++) {
        float one = read_one(inputs, place, wide), other = read_one(inputs, half + place, wide);
        float first = one * read_one(cosines, place, wide) - other * read_one(sines, place, wide);
        float second = other * read_one(cosines, half + place, wide) + one * read_one(sines, half + place, wide);
        write_one(outputs, place, first, wide);
        write_one(outputs, half + place, second, wide);
    }
}

/* Heads of `dim`, of tokens that are `stride` apart, turned by the angles `[tokens, dim]`; `[tokens, heads, dim]` comes
   out. */
void baton_rotate(
    const void *inputs, const void *cosines, const void *sines, void *outputs,
    int64_t tokens, int64_t heads, int64_t dim, int64_t stride, int wide)
{
    int64_t size = wide ? 4 : 2;
#pragma omp parallel for if (tokens * heads * dim > WORTH)
    for (int64_t token = 0; token < tokens; token++)
        for (int64_t head = 0; head < heads; head++) {
            const char *from = (const char *)inputs + (token * stride + head * dim) * size;
            const char *cosine = (const char *)cosines + token * dim * size;
            const char *sine = (const char *)sines + token * dim * size;
            char *to = (char *)outputs + (token * heads + head) * dim * size;
#define ROW(wide) rotate_head(from, cosine, sine, to, dim, wide)
            BOTH(ROW, wide);
#undef ROW
        }
}
