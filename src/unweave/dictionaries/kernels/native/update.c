/* One step of Adam over the rows of a matrix, with all that a dictionary wants done to them.

   With unit rows, what a gradient would only lengthen a row by is left out of it, and the row is
   brought back to unit norm after the step (Bricken et al. 2023). A row is read from memory and
   written to it once, whatever is done to it in between. */

#include <math.h>
#include <stdint.h>

#include "scores.h"

static inline float dot(const float *a, const float *b, int64_t width) {
    float lane[64] = {0}, sum = 0;
    const int64_t whole = width / 64 * 64;
    for (int64_t i = 0; i < whole; i += 64)
        for (int j = 0; j < 64; j++) lane[j] += a[i + j] * b[i + j];
    for (int64_t i = whole; i < width; i++) sum += a[i] * b[i];
    for (int j = 0; j < 64; j++) sum += lane[j];
    return sum;
}

/* Each row's part in the gradient's squared norm; with unit rows also how far the gradient points
   along the row, which is then left out. */
void squares(const float *weight, const float *gradient, int64_t width, int64_t first, int64_t last,
             int unit, float *along, double *square) {
    for (int64_t row = first; row < last; row++) {
        const float *w = weight + row * width, *g = gradient + row * width;
        const float whole = dot(g, g, width);
        float left_out = 0;
        if (unit) {
            along[row] = dot(w, g, width);
            left_out = along[row] * along[row] * (2 - dot(w, w, width));
        }
        square[row] = (double)whole - left_out;
    }
}

typedef struct {
    float rate, beta1, beta2, eps, correction1, correction2, factor;
} Step;

/* `along` is null where rows are not kept at unit norm; `factor` clips the gradient; `correction`
   is one minus beta to the number of steps; `rounded`, if not null, gets the new weights in
   bfloat16, since the next step begins with those. */
void adam(float *weight, const float *gradient, float *mean, float *spread, int64_t width,
          int64_t first, int64_t last, const float *along, const Step *step, uint16_t *rounded) {
    const float rate = step->rate / step->correction1, root = 1 / sqrtf(step->correction2);
    const float keep1 = step->beta1, new1 = 1 - step->beta1, eps = step->eps;
    const float keep2 = step->beta2, new2 = 1 - step->beta2, factor = step->factor;
    for (int64_t row = first; row < last; row++) {
        float *w = weight + row * width, *m = mean + row * width, *v = spread + row * width;
        const float *g = gradient + row * width;
        const float lengthening = along ? along[row] : 0;
        for (int64_t i = 0; i < width; i++) {
            const float d = factor * (g[i] - lengthening * w[i]);
            const float m_now = keep1 * m[i] + new1 * d, v_now = keep2 * v[i] + new2 * d * d;
            m[i] = m_now;
            v[i] = v_now;
            w[i] -= rate * m_now / (sqrtf(v_now) * root + eps);
        }
        if (along) {
            const float length = sqrtf(dot(w, w, width));
            const float shorter = 1 / (length > 1e-12f ? length : 1e-12f);
            for (int64_t i = 0; i < width; i++) w[i] *= shorter;
        }
        if (rounded)
            for (int64_t i = 0; i < width; i++) rounded[row * width + i] = narrowed(w[i]);
    }
}
