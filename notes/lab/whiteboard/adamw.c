// Whiteboard 8, adamw: one step of AdamW (10 minutes)
//
// QUESTION. "Write one step of AdamW for n weights, with bias correction and with decoupled weight
// decay. m and v are the running means of g and of g^2, and begin as 0. step is 1 for the first
// call. The decay acts on the old w, that is, before the rest of the step."
//
// SHAPES:
//     w, m, v             (n)              changed in place
//     g                   (n)              the gradient, not changed
//
// GRADED: both bias corrections; eps in the right place; the decay acts on w, not through g. You
// should be able to say what the first step is, and how many bytes training takes per parameter.
//
// TEST: notes/lab/whiteboard/run.sh adamw
// HINTS: at the end of this file.

#include "whiteboard.h"

void my_adamw(float *w, float *m, float *v, const float *g, size_t n, long step, float lr,
              float beta1, float beta2, float eps, float decay) {
    // Your code.
}























// HINTS. Read one, and try again.
//
// 1. A running mean: m = beta1 m + (1 - beta1) g, and the same with beta2 and g^2 for v.
//
// 2. After `step` steps the weights of the mean add up to 1 - beta^step. Divide by that, into new
//    variables; m and v themselves stay uncorrected for the next step.
//
// 3. First w -= lr * decay * w, then w -= lr * m_corrected / (sqrt(v_corrected) + eps).
