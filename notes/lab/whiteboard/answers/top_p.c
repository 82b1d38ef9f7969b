// A model answer for top_p.c. In the book: sampling_distribution() and sample_token().

#include "whiteboard.h"

void my_distribution(float *probs, int *order, const float *logits, size_t V, float temperature,
                     size_t k, float p) {
    for (size_t v = 0; v < V; v++) { // insertion sort: order[0] has the largest logit
        size_t j = v;
        for (; j > 0 && logits[order[j - 1]] < logits[v]; j--) order[j] = order[j - 1];
        order[j] = (int)v;
        probs[v] = 0;
    }
    size_t n = k > 0 && k < V ? k : V; // tokens that are left after top-k
    if (temperature == 0) {
        n = 1;
        temperature = 1;
    }

    float max = logits[order[0]], sum = 0; // softmax over the n tokens
    for (size_t i = 0; i < n; i++) {
        probs[order[i]] = expf((logits[order[i]] - max) / temperature);
        sum += probs[order[i]];
    }
    for (size_t i = 0; i < n; i++) probs[order[i]] /= sum;

    float kept = 0; // top-p: what the tokens before this one hold together
    for (size_t i = 0; i < n; i++) {
        if (p < 1 && kept > p) probs[order[i]] = 0;
        kept += probs[order[i]];
    }
    for (size_t v = 0; v < V; v++) probs[v] /= kept;
}

// Token v owns the next probs[v] of the interval [0, 1). Which one holds u?
int my_draw(const float *probs, size_t V, float u) {
    int last = 0; // rounding may leave a little of u: then the last token that is possible
    for (size_t v = 0; v < V; v++) {
        if (probs[v] == 0) continue;
        last = (int)v;
        if (u < probs[v]) break;
        u -= probs[v];
    }
    return last;
}

// Say while you write:
//   - The order matters: temperature changes which tokens top-p keeps; top-k it does not change.
//   - T -> 0 is greedy, T -> infinity is uniform over the tokens that are left.
//   - Sorting costs V log V per token. With top-k a heap of k, or one pass of selection, is enough.
//   - A full answer asks for a seed: the same seed gives the same text.
