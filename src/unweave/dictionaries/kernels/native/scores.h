/* Numbers as bits: bfloat16 is the upper half of a float32. */

#ifndef UNWEAVE_SCORES_H
#define UNWEAVE_SCORES_H

#include <stdint.h>
#include <string.h>

static inline float as_float(uint32_t bits) {
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

static inline float widened(uint16_t bits) { return as_float((uint32_t)bits << 16); }

static inline uint32_t as_bits(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

/* To the nearest bfloat16, ties to even. */
static inline uint16_t narrowed(float value) {
    uint32_t bits = as_bits(value);
    return (uint16_t)((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

#endif
