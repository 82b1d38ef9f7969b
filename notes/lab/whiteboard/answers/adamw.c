// A model answer for adamw.c. In the book: adamw_update().

#include "whiteboard.h"

void my_adamw(float *w, float *m, float *v, const float *g, size_t n, long step, float lr,
              float beta1, float beta2, float eps, float decay) {
    float m_sum = 1 - powf(beta1, step); // what the weights of the running mean add up to
    float v_sum = 1 - powf(beta2, step);

    for (size_t i = 0; i < n; i++) {
        m[i] = beta1 * m[i] + (1 - beta1) * g[i];
        v[i] = beta2 * v[i] + (1 - beta2) * g[i] * g[i];
        float m_mean = m[i] / m_sum;
        float v_mean = v[i] / v_sum;
        w[i] -= lr * decay * w[i];
        w[i] -= lr * m_mean / (sqrtf(v_mean) + eps);
    }
}

// Say while you write:
//   - m and v begin as 0, so their means are too small at first; dividing by 1 - beta^step corrects
//     that. The first step is then -lr * sign(g).
//   - AdamW decays w itself. In Adam with L2 the decay is part of g, and sqrt(v) divides it:
//     weights with large gradients would decay less.
//   - Matrices decay; norms and biases usually do not.
//   - Memory: w, g, m, v are 16 bytes per parameter in float.
