/* The entries of a code in the order of their latents, rows ascending within one: a counting sort,
   one pass to count and one to place. */

#include <stdint.h>
#include <string.h>

/* `bounds` [latents + 1] tells where each latent's entries begin and the last one's end. */
void by_latent(const int64_t *latent, const int64_t *offset, int64_t rows, int64_t latents,
               int64_t *next, int64_t *order, int64_t *row, int64_t *bounds) {
    memset(bounds, 0, (latents + 1) * sizeof *bounds);
    for (int64_t e = 0; e < offset[rows]; e++) bounds[latent[e] + 1]++;
    for (int64_t i = 0; i < latents; i++) bounds[i + 1] += bounds[i];
    memcpy(next, bounds, latents * sizeof *next);
    for (int64_t r = 0; r < rows; r++)
        for (int64_t e = offset[r]; e < offset[r + 1]; e++) {
            const int64_t place = next[latent[e]]++;
            order[place] = e;
            row[place] = r;
        }
}

/* Sum of each latent's weights. */
void totals(const float *weight, const int64_t *order, const int64_t *bounds, int64_t latents,
            float *out) {
    for (int64_t i = 0; i < latents; i++) {
        float sum = 0;
        for (int64_t e = bounds[i]; e < bounds[i + 1]; e++) sum += weight[order[e]];
        out[i] = sum;
    }
}
