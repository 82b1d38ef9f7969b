// A model answer for rope.c. In the book: rope_frequency() and rope(), which reads cos and sin from
// tables, because they are the same for all heads, layers and sequences.

#include "whiteboard.h"

void my_rope(float *x, size_t T, size_t heads, size_t D, size_t past, float theta,
             float direction) {
    for (size_t t = 0; t < T; t++)
        for (size_t i = 0; i < D / 2; i++) {
            float frequency = powf(theta, -2.0f * i / D);
            float angle = direction * (past + t) * frequency;
            float cosine = cosf(angle), sine = sinf(angle);

            for (size_t h = 0; h < heads; h++) {
                float *a = x + (t * heads + h) * D + i; // the two components of plane i
                float *b = a + D / 2;
                float x_a = *a, x_b = *b;
                *a = x_a * cosine - x_b * sine;
                *b = x_b * cosine + x_a * sine;
            }
        }
}

// Say while you write:
//   - R(s)^T R(t) = R(t - s): the score of q at s and k at t depends only on t - s.
//   - The transpose of a rotation is the rotation back, so the backward pass is the same function.
//   - q and k are rotated, v is not: positions may decide where to look, not what is read there.
//   - Keys go into the cache already rotated; a new token starts at position past.
//   - Wrong pairs (i, i + 1) still depend on t - s only: training from the beginning works, loading
//     weights that were trained with the other pairs does not.
