/* How far rows lie from their targets, and the gradient of that, in one pass.

   out = scale (y - target): with scale = 2 / rows it is what the mean over rows of |y - target|^2
   has as its gradient; the sum of squares is returned. */

#include <stdint.h>

void misfit(const float *y, const float *target, int64_t width, int64_t first, int64_t last,
            float scale, float *out, double *square) {
    for (int64_t row = first; row < last; row++) {
        const float *a = y + row * width, *b = target + row * width;
        float *to = out + row * width, lane[64] = {0}, sum = 0;
        const int64_t whole = width / 64 * 64;
        for (int64_t i = 0; i < whole; i += 64)
            for (int j = 0; j < 64; j++) {
                const float missed = a[i + j] - b[i + j];
                lane[j] += missed * missed;
                to[i + j] = scale * missed;
            }
        for (int64_t i = whole; i < width; i++) {
            const float missed = a[i] - b[i];
            sum += missed * missed;
            to[i] = scale * missed;
        }
        for (int j = 0; j < 64; j++) sum += lane[j];
        square[row] = sum;
    }
}
