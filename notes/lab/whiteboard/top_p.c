// Whiteboard 6, top_p: sampling with temperature, top-k and top-p (15 minutes)
//
// QUESTION. "Write two functions. my_distribution makes the probabilities of the next token, in
// this order:
//
//   1. temperature: every logit is divided by it. 0 means greedy: the largest logit gets 1.
//   2. top-k: only the k largest logits are left. k = 0 means no limit.
//   3. softmax over those that are left.
//   4. top-p: a token is dropped if the more probable tokens hold more than p together. The token
//      with which the sum crosses p is therefore kept. p = 1 means no limit.
//   5. The rest is divided by its sum. A token that was dropped has probability 0.
//
// my_draw returns a token: u is a random number in [0, 1), and token v owns an interval of length
// probs[v]. It never returns a token of probability 0, and never V, whatever the rounding errors."
//
// SHAPES:
//     logits, probs       (V)              no two logits are equal
//     order               (V)              work space, for a sorted list of token ids
// probs is overwritten; it holds garbage at the start.
//
// GRADED: the order of the steps; a softmax that cannot overflow; the token at the edge of top-p;
// probabilities that add up to 1; the ends of the interval in my_draw. Any way to sort is fine.
//
// TEST: notes/lab/whiteboard/run.sh top_p
// HINTS: at the end of this file.

#include "whiteboard.h"

void my_distribution(float *probs, int *order, const float *logits, size_t V, float temperature,
                     size_t k, float p) {
    // Your code.
}

int my_draw(const float *probs, size_t V, float u) {
    // Your code.
    return 0;
}























// HINTS. Read one, and try again.
//
// 1. Sort the ids, not the logits: order[0] is the id of the largest logit. Insertion sort is
//    short.
//
// 2. After sorting, top-k is a smaller n, and the maximum for the softmax is logits[order[0]].
//
// 3. top-p: walk through the sorted tokens and carry the sum of those before the present one.
//    Compare first, add afterwards.
//
// 4. my_draw: subtract probs[v] from u until u is smaller than the next one. Remember the last
//    token with a probability above 0, for the case that u is left over.
