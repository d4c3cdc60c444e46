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

/* Columns of a band at most. */
enum { BAND = 192 };

/* Rows whose errors are summed up in one go, whoever works on which. */
enum { ROWS_SUMMED = 256 };

typedef float Sixteen __attribute__((vector_size(64)));

static inline int64_t at_most(int64_t a, int64_t b) { return a < b ? a : b; }

/* Adds the bias to a band of y; the scaled distances; their squares' sum. */
#define MISSED(NAME, ELEMENT, NARROW)                                                              \
    static inline float NAME(missed)(float *y, const float *bias, const float *target,             \
                                     int64_t columns, float scale, ELEMENT *error, float *sums) {  \
        float lane[BAND] = {0}, sum = 0;                                                           \
        for (int i = 0; i < columns; i++) {                                                        \
            y[i] += bias[i];                                                                       \
            const float distance = y[i] - target[i];                                               \
            error[i] = NARROW(scale * distance);                                                   \
            sums[i] += scale * distance;                                                           \
            lane[i] = distance * distance;                                                         \
        }                                                                                          \
        for (int i = 0; i < BAND; i += 16)                                                         \
            for (int j = 0; i && j < 16; j++) lane[j] += lane[i + j];                              \
        for (int j = 0; j < 16; j++) sum += lane[j];                                               \
        return sum;                                                                                \
    }

#define AS_IS(x) (x)

#define F32(f) f##_f32
#define BF16(f) f##_bf16
MISSED(F32, float, AS_IS)
MISSED(BF16, uint16_t, narrowed)

#define ELEMENT uint16_t
#define NAME(f) f##_bf16
#define WIDEN(x) widened(x)
#ifdef __AVX512BF16__
#include "bags_bf16.inc"
#else
#define Band int64_t
#define band_of(columns) (columns)
#include "bags_any.inc"
#endif
#include "bags.inc"
#undef ELEMENT
#undef NAME
#undef WIDEN
#undef INLINE

#ifdef __AVX512BF16__
#define Band int64_t
#define band_of(columns) (columns)
#endif
#define ELEMENT float
#define NAME(f) f##_f32
#define WIDEN(x) (x)
#include "bags_any.inc"
#include "bags.inc"
