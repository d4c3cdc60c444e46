/* Weighted sums of few rows of a matrix, and products with few rows: everything that a sparse code
   does besides its selection.

       bags:  out[b] = sum over entries e of bag b of weight[e] rows[row[e]]
       inner: out[e] = left[b] . rows[row[e]]

   A matrix hardly fits the second-level cache, a band of its columns does: the bands are worked
   off one after the other, so that of the hundreds of megabytes of rows that the entries name
   nearly all come from there. Matrices are bfloat16 or float32; sums are float32. */

#include <stdint.h>

#ifdef __AVX512BF16__
#include <immintrin.h>
#endif

#include "scores.h"

/* Columns that one vector of bfloat16 holds, and columns of a band at most. */
enum { LANE = 32, BAND = 192 };

static inline int64_t at_most(int64_t a, int64_t b) { return a < b ? a : b; }

#define ELEMENT float
#define NAME(f) f##_f32
#define WIDEN(x) (x)
#include "bags.inc"
#undef ELEMENT
#undef NAME
#undef WIDEN

#ifndef __AVX512BF16__
#define ELEMENT uint16_t
#define NAME(f) f##_bf16
#define WIDEN(x) widened(x)
#include "bags.inc"
#else
#include "bags_bf16.inc"
#endif
