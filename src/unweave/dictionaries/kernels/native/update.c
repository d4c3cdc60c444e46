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
   along the row, which is then left out. Where `which` is not null, the gradient holds only the rows
   of the weights that it names, here and below. */
void squares(const float *weight, const float *gradient, const int64_t *which, int64_t width,
             int64_t first, int64_t last, int unit, float *along, double *square) {
    for (int64_t row = first; row < last; row++) {
        const float *w = weight + (which ? which[row] : row) * width, *g = gradient + row * width;
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

/* ratio + ratio^2 + ... + ratio^terms */
static float geometric(float ratio, int32_t terms) {
    const float gap = 1 - ratio;
    if (fabsf(gap) < 1e-4f) return terms; /* where the quotient would be of rounding errors */
    return ratio * (1 - powf(ratio, terms)) / gap;
}

/* `along` is null where rows are not kept at unit norm; `factor` clips the gradient; `correction`
   is one minus beta to the number of steps; `rounded`, if not null, gets the new weights in
   bfloat16, since the next step begins with those.

   Where `seen` is not null, it tells in which step a row was last here. With `missed` 1 its moments
   first fade by the steps that it missed since; with 2 the row also goes the way on which they
   would have carried it, a geometric series in beta1 / sqrt(beta2). */
void adam(float *weight, const float *gradient, float *mean, float *spread, const int64_t *which,
          int64_t width, int64_t first, int64_t last, const float *along, int32_t *seen,
          int32_t now, int missed, const Step *step, uint16_t *rounded) {
    const float rate = step->rate / step->correction1, root = 1 / sqrtf(step->correction2);
    const float new1 = 1 - step->beta1, new2 = 1 - step->beta2;
    const float eps = step->eps, factor = step->factor;
    for (int64_t row = first; row < last; row++) {
        const int64_t at = which ? which[row] : row;
        float *w = weight + at * width, *m = mean + at * width, *v = spread + at * width;
        const float *g = gradient + row * width;
        const float lengthening = along ? along[row] : 0;
        float keep1 = step->beta1, keep2 = step->beta2;
        const int32_t steps = seen ? now - seen[at] : 1;
        if (missed && steps > 1) {
            if (missed == 2) {
                const float way = rate * geometric(keep1 / sqrtf(keep2), steps - 1);
                for (int64_t i = 0; i < width; i++) w[i] -= way * m[i] / (sqrtf(v[i]) * root + eps);
            }
            keep1 = powf(keep1, steps);
            keep2 = powf(keep2, steps);
        }
        if (seen) seen[at] = now;
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
            for (int64_t i = 0; i < width; i++) rounded[at * width + i] = narrowed(w[i]);
    }
}
