// Whiteboard 10, dpo: the loss of DPO and its gradient (15 minutes)
//
// QUESTION. "A pair is a prompt with two answers, one that people chose and one that they
// rejected. You get the log-probability of each token of the answers under the model, and of each
// whole answer under the reference model. Return the DPO loss, the mean over the pairs, and fill
// dlogp = d loss / d logp for each token. A larger beta keeps the model closer to the reference."
//
// SHAPES:
//     logp, dlogp         (2 * pairs, T)   row 2j: chosen answer of pair j, row 2j + 1: rejected
//     length              (2 * pairs)      row r has length[r] tokens; the rest is padding
//     ref_sum             (2 * pairs)      log-probability of the answer under the reference
// logp holds garbage in the padding. dlogp is overwritten, and 0 in the padding.
//
// GRADED: the formula, from memory; sums or means over tokens; the signs; the gradient; margins of
// +1000 and -1000. You should be able to derive the loss from the KL-regularised reward.
//
// TEST: notes/lab/whiteboard/run.sh dpo
// HINTS: at the end of this file.

#include "whiteboard.h"

float my_dpo(float *dlogp, const float *logp, const int *length, const float *ref_sum, size_t pairs,
             size_t T, float beta) {
    // Your code.
    return 0;
}























// HINTS. Read one, and try again.
//
// 1. margin = beta ((chosen - chosen_ref) - (rejected - rejected_ref)), where each is the
//    log-probability of a whole answer: the sum over its tokens.
//
// 2. The loss of a pair is -log sigmoid(margin) = log(1 + e^-margin).
//
// 3. e^1000 overflows. -log sigmoid(m) = log(1 + e^-|m|) - min(m, 0).
//
// 4. The derivative of the loss of a pair by its margin is -sigmoid(-margin) = -1 / (1 + e^margin).
//    Each token of the chosen answer changes the margin by +beta, of the rejected one by -beta.
