// Whiteboard 4, rmsnorm: RMSNorm forward and backward (15 minutes)
//
// QUESTION. "For each row x of C numbers, RMSNorm computes
//
//     y[c] = w[c] x[c] r,    r = 1 / sqrt(mean(x^2) + eps)
//
// Write the forward pass, which keeps r of each row. Then derive the backward pass and write it:
// from dy = d loss / d y to dx and dw."
//
// SHAPES:
//     x, y, dy, dx        (n, C)
//     w, dw               (C)
//     rstd                (n)              r of each row
// y and rstd are overwritten. dx and dw are accumulated: add to what is there.
//
// GRADED: where eps goes; both paths from x to the loss; the factors of the second one; that dw is
// a sum over rows; one pass over the row for the sum, not one for each c.
//
// TEST: notes/lab/whiteboard/run.sh rmsnorm
// HINTS: at the end of this file.

#include "whiteboard.h"

void my_rmsnorm(float *y, float *rstd, const float *x, const float *w, size_t n, size_t C,
                float eps) {
    // Your code.
}

void my_rmsnorm_backward(float *dx, float *dw, const float *dy, const float *x, const float *w,
                         const float *rstd, size_t n, size_t C) {
    // Your code.
}























// HINTS. Read one, and try again.
//
// 1. x[c] acts on y[c] directly, and through r on all C numbers of y.
//
// 2. Let u = mean(x^2) + eps. Then r = u^(-1/2), dr/du = -1/2 u^(-3/2) = -1/2 r^3, and
//    du/dx[c] = 2 x[c] / C. So dr/dx[c] = -r^3 x[c] / C.
//
// 3. dx[c] = dy[c] w[c] r + sum_j dy[j] w[j] x[j] dr/dx[c]. The sum over j is the same for all c.
