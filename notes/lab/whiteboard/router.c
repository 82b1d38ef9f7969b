// Whiteboard 9, router: the top-k router of a mixture of experts (20 minutes)
//
// QUESTION. "Write the router of a mixture of experts, forward and backward. For each token:
//
//     prob = softmax(scores), over all E experts
//     choice: the K experts with the largest prob, the largest first
//     mix: prob of the chosen ones; with `renormalise` divided by the sum of these K
//
// The output of the layer is the sum over k of mix[k] times the output of expert choice[k]. The
// rest of the backward pass gives you dmix = d loss / d mix. Compute dscores. The choice itself is
// a constant: a small change of the scores does not change it. And what happens at K = 1, with
// `renormalise` and without?"
//
// SHAPES:
//     scores, dscores, prob    (N, E)
//     choice, mix, dmix        (N, K)
// All outputs are overwritten; they hold garbage at the start.
//
// GRADED: no expert twice; softmax before top-k; the derivative of the renormalisation; which
// scores get a gradient; the answer about K = 1.
//
// TEST: notes/lab/whiteboard/run.sh router
// HINTS: at the end of this file.

#include "whiteboard.h"

void my_router(float *prob, int *choice, float *mix, const float *scores, size_t N, size_t E,
               size_t K, bool renormalise) {
    // Your code.
}

void my_router_backward(float *dscores, const float *dmix, const float *prob, const int *choice,
                        const float *mix, size_t N, size_t E, size_t K, bool renormalise) {
    // Your code.
}























// HINTS. Read one, and try again.
//
// 1. Backward in two steps: from dmix to dprob, then through the softmax to dscores.
//
// 2. dprob is 0 for every expert that was not chosen. Without `renormalise` it is dmix for the
//    others.
//
// 3. With `renormalise`: mix_j = p_j / s, where s is the sum over the chosen ones. The derivative
//    of mix_j by p_k is ((1 if j = k, else 0) - mix_j) / s. So
//    dp_k = (dmix_k - sum_j mix_j dmix_j) / s.
//
// 4. The softmax: dscores[e] = p[e] (dp[e] - sum_i p[i] dp[i]), for all E experts.
//
// 5. K = 1: put mix_1 = 1 into hint 3.
