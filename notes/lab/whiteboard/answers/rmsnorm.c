// A model answer for rmsnorm.c. In the book: rmsnorm_forward() and rmsnorm_backward().

#include "whiteboard.h"

void my_rmsnorm(float *y, float *rstd, const float *x, const float *w, size_t n, size_t C,
                float eps) {
    for (size_t i = 0; i < n; i++) {
        float squares = 0;
        for (size_t c = 0; c < C; c++) squares += x[i * C + c] * x[i * C + c];
        rstd[i] = 1 / sqrtf(squares / C + eps);
        for (size_t c = 0; c < C; c++) y[i * C + c] = w[c] * x[i * C + c] * rstd[i];
    }
}

// With u = mean(x^2) + eps and r = u^(-1/2), the derivative of u by x[c] is 2 x[c] / C, that of r
// by u is -1/2 r^3, and so that of r by x[c] is -r^3 x[c] / C. x[c] acts on y[c] directly, and
// through r on every y[j]:
//
//     dx[c] = dy[c] w[c] r  -  r^3 x[c] / C * sum_j dy[j] w[j] x[j]
//     dw[c] = sum over the rows of dy[c] x[c] r
void my_rmsnorm_backward(float *dx, float *dw, const float *dy, const float *x, const float *w,
                         const float *rstd, size_t n, size_t C) {
    for (size_t i = 0; i < n; i++) {
        const float *x_i = x + i * C;   // (C)
        const float *dy_i = dy + i * C; // (C)
        float r = rstd[i], dot = 0;
        for (size_t j = 0; j < C; j++) dot += dy_i[j] * w[j] * x_i[j];

        for (size_t c = 0; c < C; c++) {
            float through_r = r * r * r / C * dot * x_i[c];
            dx[i * C + c] += dy_i[c] * w[c] * r - through_r;
            dw[c] += dy_i[c] * x_i[c] * r;
        }
    }
}

// Say while you write:
//   - LayerNorm also subtracts the mean and adds a bias: one more reduction, one more parameter.
//   - Making x longer does not change y, if eps is 0; so dx . x = 0. That is a check by hand.
//   - dx is accumulated because x also goes round the norm, along the residual stream.
//   - Only r is kept: one number per row.
