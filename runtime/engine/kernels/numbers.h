/* Sixteen numbers at a time in float32, whatever the processor, and how they are read from and written to memory:
   `wide` says that memory holds float32, and bfloat16 otherwise. */
#pragma once
#include <math.h>
#include <stdint.h>
#include <stdlib.h>

#define INLINE static inline __attribute__((always_inline))
#define LANES 16

typedef float lanes __attribute__((vector_size(64)));
typedef int32_t ints __attribute__((vector_size(64)));
typedef uint32_t bits __attribute__((vector_size(64)));
typedef uint16_t shorts __attribute__((vector_size(32)));
/* The same wherever they lie. */
typedef float lanes_at __attribute__((vector_size(64), aligned(4), may_alias));
typedef uint32_t bits_at __attribute__((vector_size(64), aligned(4), may_alias));
typedef uint16_t shorts_at __attribute__((vector_size(32), aligned(2), may_alias));

INLINE float widened(uint16_t number)
{
    union { uint32_t bits; float number; } both = {(uint32_t)number << 16};
    return both.number;
}

/* To the nearest, and of two as near to the even one; what is no number stays none. */
INLINE uint16_t narrowed(float number)
{
    union { float number; uint32_t bits; } both = {number};
    uint32_t rounded = (both.bits + 0x7fff + ((both.bits >> 16) & 1)) >> 16;
    return number != number ? 0x7fc0 : (uint16_t)rounded;
}

INLINE float read_one(const void *memory, int64_t place, const int wide)
{
    return wide ? ((const float *)memory)[place] : widened(((const uint16_t *)memory)[place]);
}

INLINE void write_one(void *memory, int64_t place, float number, const int wide)
{
    if (wide)
        ((float *)memory)[place] = number;
    else
        ((uint16_t *)memory)[place] = narrowed(number);
}

INLINE lanes read_lanes(const void *memory, int64_t place, const int wide)
{
    if (wide)
        return *(const lanes_at *)((const float *)memory + place);
    shorts narrow = *(const shorts_at *)((const uint16_t *)memory + place);
    return (lanes)(__builtin_convertvector(narrow, bits) << 16);
}

INLINE void write_lanes(void *memory, int64_t place, lanes numbers, const int wide)
{
    if (wide) {
        *(lanes_at *)((float *)memory + place) = numbers;
        return;
    }
    bits raw = (bits)numbers, none = (bits)(numbers != numbers);
    bits rounded = (raw + 0x7fff + ((raw >> 16) & 1)) >> 16;
    *(shorts_at *)((uint16_t *)memory + place) = __builtin_convertvector((rounded & ~none) | (none & 0x7fc0), shorts);
}

INLINE float sum_of(lanes numbers)
{
    typedef float eight __attribute__((vector_size(32)));
    typedef float four __attribute__((vector_size(16)));
    union { lanes all; eight half[2]; } whole = {numbers};
    union { eight all; four half[2]; } parts = {whole.half[0] + whole.half[1]};
    four last = parts.half[0] + parts.half[1];
    return (last[0] + last[2]) + (last[1] + last[3]);
}

/* e to the power of a number from -87 to 88, to the last bit but one. */
INLINE float exponential(float power)
{
    power = power < -87.0f ? -87.0f : power > 88.0f ? 88.0f : power;
    float shifted = power * 1.44269504f + 12582912.0f, whole = shifted - 12582912.0f;
    float rest = power - whole * 0.693359375f + whole * 2.12194440e-4f;
    float series = 1.9875691500e-4f;
    series = series * rest + 1.3981999507e-3f;
    series = series * rest + 8.3334519073e-3f;
    series = series * rest + 4.1665795894e-2f;
    series = series * rest + 1.6666665459e-1f;
    series = series * rest + 5.0000001201e-1f;
    series = series * rest * rest + rest + 1.0f;
    union { int32_t bits; float number; } scale = {((int32_t)whole + 127) << 23};
    return series * scale.number;
}

/* At least `count` floats of this thread's own, which it keeps: fresh memory costs more than most of what is done with
   it. What `use` tells apart is there at the same time. */
enum use { INPUTS, SUMS, USES };

static inline float *room_for(enum use use, int64_t count)
{
    static _Thread_local float *kept[USES];
    static _Thread_local int64_t size[USES];
    if (count > size[use]) {
        free(kept[use]);
        kept[use] = aligned_alloc(64, (size_t)((count * 4 + 63) / 64 * 64));
        if (kept[use] == NULL)
            abort();
        size[use] = count;
    }
    return kept[use];
}
