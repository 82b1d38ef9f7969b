// A model answer for router.c. In the book: softmax_forward(), router_forward(), router_backward()
// and softmax_backward().

#include "whiteboard.h"

void my_router(float *prob, int *choice, float *mix, const float *scores, size_t N, size_t E,
               size_t K, bool renormalise) {
    for (size_t n = 0; n < N; n++) {
        const float *s = scores + n * E; // (E)
        float *p = prob + n * E;         // (E)
        float max = s[0], sum = 0, chosen_sum = 0;
        for (size_t e = 1; e < E; e++) max = fmaxf(max, s[e]);
        for (size_t e = 0; e < E; e++) {
            p[e] = expf(s[e] - max);
            sum += p[e];
        }
        for (size_t e = 0; e < E; e++) p[e] /= sum;

        for (size_t k = 0; k < K; k++) {
            int best = -1;
            for (int e = 0; e < (int)E; e++) {
                bool taken = false;
                for (size_t j = 0; j < k; j++) taken = taken || choice[n * K + j] == e;
                if (!taken && (best < 0 || p[e] > p[best])) best = e;
            }
            choice[n * K + k] = best;
            mix[n * K + k] = p[best];
            chosen_sum += p[best];
        }
        for (size_t k = 0; renormalise && k < K; k++) mix[n * K + k] /= chosen_sum;
    }
}

void my_router_backward(float *dscores, const float *dmix, const float *prob, const int *choice,
                        const float *mix, size_t N, size_t E, size_t K, bool renormalise) {
    for (size_t n = 0; n < N; n++) {
        const float *p = prob + n * E; // (E)
        float *ds = dscores + n * E;   // (E) dp first
        float chosen_sum = 0, mix_dmix = 0, p_dp = 0;
        for (size_t i = n * K; i < (n + 1) * K; i++) {
            chosen_sum += p[choice[i]];
            mix_dmix += mix[i] * dmix[i];
        }
        for (size_t e = 0; e < E; e++) ds[e] = 0; // an expert that is not chosen has dp = 0
        for (size_t i = n * K; i < (n + 1) * K; i++)
            ds[choice[i]] = renormalise ? (dmix[i] - mix_dmix) / chosen_sum : dmix[i];

        for (size_t e = 0; e < E; e++) p_dp += p[e] * ds[e];
        for (size_t e = 0; e < E; e++) ds[e] = p[e] * (ds[e] - p_dp); // softmax
    }
}

// K = 1 with renormalisation: mix is p / p = 1 whatever the scores are, so dscores is 0 and the
// router learns nothing from the loss of the tokens, only from a balance loss. Without it mix = p,
// and all E scores of the token get a gradient, because the softmax connects them.
