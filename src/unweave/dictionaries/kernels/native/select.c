/* Which scores of a row are the largest, and which exceed a bound.

   A score is ranked by an integer key of its own width that orders as the number does (its bits,
   the magnitude's flipped where it is negative), so that bfloat16 and float32 are told apart by
   nothing but that width. The k-th largest key is found bit by bit, by counting. On a long row a
   bound comes first: the keys fall into groups, and the k-th largest of the groups' maxima cannot
   exceed the k-th largest key. Hardly more than k keys reach it, and only those are looked at. */

#include <stdint.h>
#include <string.h>

#ifdef __AVX512F__
#include <immintrin.h>
#endif

#include "scores.h"

/* Keys that are looked at together; and how many groups for each of the k: with four, some 36 of
   32 sought keys reach the bound. */
enum { BLOCK = 32, GROUPS_PER_K = 4 };

#define KEY int16_t
#define UKEY uint16_t
#define SCORE uint16_t
#define BITS 16
#define MOST INT16_MAX
#define NAME(f) f##_bf16
#define AS_FLOAT(s) widened(s)
#include "select.inc"
#undef KEY
#undef UKEY
#undef SCORE
#undef BITS
#undef MOST
#undef NAME
#undef AS_FLOAT

#define KEY int32_t
#define UKEY uint32_t
#define SCORE uint32_t
#define BITS 32
#define MOST INT32_MAX
#define NAME(f) f##_f32
#define AS_FLOAT(s) as_float(s)
#include "select.inc"
