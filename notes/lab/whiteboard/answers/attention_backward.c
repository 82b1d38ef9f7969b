// A model answer for attention_backward.c. In the book: attention_backward() and
// attention_row_backward(), which keeps log-sum-exp and the output instead of computing them again.

#include "whiteboard.h"

void my_attention_backward(float *dq, float *dk, float *dv, float *p, float *dp, const float *dout,
                           const float *q, const float *k, const float *v, size_t T, size_t H,
                           size_t KV, size_t D) {
    size_t stride = KV * D;
    float scale = 1 / sqrtf(D);
    memset(dq, 0, T * H * D * sizeof *dq);
    memset(dk, 0, T * stride * sizeof *dk);
    memset(dv, 0, T * stride * sizeof *dv);

    for (size_t t = 0; t < T; t++)
        for (size_t h = 0; h < H; h++) {
            size_t query = (t * H + h) * D;  // where q, dq and dout of this head begin
            size_t key0 = h / (H / KV) * D;  // where key 0 begins; key j is j * stride further
            size_t n = t + 1;                // the keys that query t sees
            float max = -INFINITY, sum = 0, p_dp = 0;

            for (size_t j = 0; j < n; j++) { // forward again: p = softmax(q . k / sqrt(D))
                p[j] = 0;
                for (size_t d = 0; d < D; d++) p[j] += q[query + d] * k[key0 + j * stride + d];
                p[j] *= scale;
                max = fmaxf(max, p[j]);
            }
            for (size_t j = 0; j < n; j++) sum += expf(p[j] - max);
            for (size_t j = 0; j < n; j++) p[j] = expf(p[j] - max) / sum;

            for (size_t j = 0; j < n; j++) { // out = sum_j p[j] v_j
                dp[j] = 0;
                for (size_t d = 0; d < D; d++) {
                    dp[j] += dout[query + d] * v[key0 + j * stride + d];
                    dv[key0 + j * stride + d] += p[j] * dout[query + d];
                }
                p_dp += p[j] * dp[j];
            }
            for (size_t j = 0; j < n; j++) { // softmax, and then s = q . k_j / sqrt(D)
                float ds = p[j] * (dp[j] - p_dp);
                for (size_t d = 0; d < D; d++) {
                    dq[query + d] += ds * scale * k[key0 + j * stride + d];
                    dk[key0 + j * stride + d] += ds * scale * q[query + d];
                }
            }
        }
}

// Say while you write:
//   - dv_j and dk_j are sums: over all later queries, and over the query heads of the group.
//   - sum_j p[j] dp[j] = dout . out, one dot product if the output was kept (FlashAttention).
//   - P is T x T per head; with log-sum-exp kept, nothing of that size has to be stored.
