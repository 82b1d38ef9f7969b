// A model answer for cross_entropy.c. In the book: softmax_forward(), softmax_backward(),
// logp_forward(), next_token_loss() and logp_backward(), which divide the work differently.

#include "whiteboard.h"

void my_softmax(float *p, const float *x, size_t n) {
    float max = x[0], sum = 0;
    for (size_t i = 1; i < n; i++) max = fmaxf(max, x[i]);
    for (size_t i = 0; i < n; i++) {
        p[i] = expf(x[i] - max);
        sum += p[i];
    }
    for (size_t i = 0; i < n; i++) p[i] /= sum;
}

// The derivative of p[i] by x[j] is p[i] ((i = j) - p[j]). Summed over i, times dp[i]:
void my_softmax_backward(float *dx, const float *dp, const float *p, size_t n) {
    float dot = 0;
    for (size_t i = 0; i < n; i++) dot += p[i] * dp[i];
    for (size_t j = 0; j < n; j++) dx[j] = p[j] * (dp[j] - dot);
}

float my_cross_entropy(float *dlogits, const float *logits, const int *target, size_t n, size_t V) {
    float loss = 0;
    size_t count = 0; // targets that are trained
    for (size_t i = 0; i < n; i++) count += target[i] >= 0;

    for (size_t i = 0; i < n; i++) {
        const float *x = logits + i * V; // (V)
        float *dx = dlogits + i * V;     // (V)
        if (target[i] < 0) {
            memset(dx, 0, V * sizeof *dx);
            continue;
        }
        float max = x[0], sum = 0;
        for (size_t v = 1; v < V; v++) max = fmaxf(max, x[v]);
        for (size_t v = 0; v < V; v++) sum += expf(x[v] - max);
        float log_sum_exp = max + logf(sum);

        loss += (log_sum_exp - x[target[i]]) / count;
        for (size_t v = 0; v < V; v++) dx[v] = expf(x[v] - log_sum_exp) / count;
        dx[target[i]] -= 1.0f / count;
    }
    return loss;
}

// Say while you write:
//   - Subtracting the maximum changes no p: e^-max is a factor of the numerator and of the sum.
//   - log(softmax) in two steps is log(0) for a very improbable target; x - log_sum_exp is not.
//   - (softmax - onehot) / count adds up to 0 over each row: shifting all logits changes nothing.
//   - With small random weights the loss is about ln V at first: 8.764 for V = 6400.
