// Whiteboard 2, attention_backward: the gradient of causal attention (25 minutes)
//
// QUESTION. "Here is the forward pass of causal grouped-query attention. For query head h of token
// t, where head h reads key/value head h / (H / KV):
//
//     s[j] = q . k_j / sqrt(D)  for j <= t,    p = softmax(s),    out = sum_j p[j] v_j
//
// You get q, k, v and dout = d loss / d out. Write the backward pass. Nothing but q, k and v was
// kept, so compute p again. Derive it first, then write it."
//
// SHAPES, one sequence, no cache:
//     q, dout, dq         (T, H, D)
//     k, v, dk, dv        (T, KV, D)
//     p, dp               (T)              work space
// dq, dk and dv are overwritten; they hold garbage at the start.
//
// GRADED: the derivative of the softmax; the scale on dq and on dk; the mask; what is summed where,
// if several query heads share a key. You should be able to say how much memory it takes.
//
// TEST: notes/lab/whiteboard/run.sh attention_backward
// HINTS: at the end of this file.

#include "whiteboard.h"

void my_attention_backward(float *dq, float *dk, float *dv, float *p, float *dp, const float *dout,
                           const float *q, const float *k, const float *v, size_t T, size_t H,
                           size_t KV, size_t D) {
    // Your code.
}























// HINTS. Read one, and try again.
//
// 1. Set dq, dk and dv to 0, then add to them. The loops are those of the forward pass.
//
// 2. From out = sum_j p[j] v_j:     dp[j] = dout . v_j,    dv_j += p[j] dout.
//
// 3. The softmax: ds[j] = p[j] (dp[j] - sum_i p[i] dp[i]). The sum is one number per query.
//
// 4. From s[j] = q . k_j / sqrt(D):     dq += ds[j] k_j / sqrt(D),    dk_j += ds[j] q / sqrt(D).
//
// 5. All query heads of a group write to the same dk_j and dv_j. So do all queries t >= j.
