// Whiteboard 3, cross_entropy: softmax and cross-entropy, forward and backward (15 minutes)
//
// QUESTION. "Write three functions.
//
//   - my_softmax: p[i] = e^x[i] / sum_j e^x[j].
//   - my_softmax_backward: from dp = d loss / d p, and p, to dx = d loss / d x.
//   - my_cross_entropy: each of n rows of logits predicts a token. The loss is the mean of
//     -log softmax(row)[target] over the rows that count. A row whose target is -1 does not count:
//     it is padding, or part of a prompt. At least one row counts. Return the loss, and fill
//     dlogits = d loss / d logits."
//
// SHAPES:
//     p, x, dp, dx        (n)
//     logits, dlogits     (n, V)
//     target              (n)              -1, or 0 .. V - 1
// All outputs are overwritten; they hold garbage at the start.
//
// GRADED: no overflow and no log(0), whatever the logits are; the divisor of the mean; rows that do
// not count; the gradient without a V x V matrix.
//
// TEST: notes/lab/whiteboard/run.sh cross_entropy
// HINTS: at the end of this file.

#include "whiteboard.h"

void my_softmax(float *p, const float *x, size_t n) {
    // Your code.
}

void my_softmax_backward(float *dx, const float *dp, const float *p, size_t n) {
    // Your code.
}

float my_cross_entropy(float *dlogits, const float *logits, const int *target, size_t n, size_t V) {
    // Your code.
    return 0;
}























// HINTS. Read one, and try again.
//
// 1. Subtract the largest x of the row from every x. Begin the search for it with x[0], not with 0.
//
// 2. The derivative of p[i] by x[j] is p[i] ((1 if i = j, else 0) - p[j]). Multiply by dp[i] and
//    sum over i. What remains inside is one sum that is the same for every j.
//
// 3. log softmax(x)[t] = x[t] - L,  where  L = log sum_j e^x[j] = max + log sum_j e^(x[j] - max).
//
// 4. Count the rows that count before you begin: each loss and each gradient is divided by that.
//
// 5. The derivative of  L - x[t]  by x[v] is  softmax(x)[v] - (1 if v = t, else 0).
