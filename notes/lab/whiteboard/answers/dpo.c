// A model answer for dpo.c. In the book: dpo_loss().

#include "whiteboard.h"

float my_dpo(float *dlogp, const float *logp, const int *length, const float *ref_sum, size_t pairs,
             size_t T, float beta) {
    float loss = 0;
    for (size_t j = 0; j < pairs; j++) {
        float gain[2]; // how far the model has moved from the reference: chosen, rejected
        for (size_t side = 0; side < 2; side++) {
            size_t row = 2 * j + side;
            float sum = 0;
            for (int t = 0; t < length[row]; t++) sum += logp[row * T + t];
            gain[side] = sum - ref_sum[row];
        }
        float margin = beta * (gain[0] - gain[1]);
        loss += (log1pf(expf(-fabsf(margin))) - fminf(margin, 0)) / pairs; // -log sigmoid(margin)

        float slope = -beta / (1 + expf(margin)) / pairs; // -beta sigmoid(-margin) / pairs
        for (size_t side = 0; side < 2; side++)
            for (size_t t = 0; t < T; t++) {
                bool real = (int)t < length[2 * j + side];
                float sign = side == 0 ? 1 : -1;
                dlogp[(2 * j + side) * T + t] = real ? sign * slope : 0;
            }
    }
    return loss;
}

// Say while you write:
//   - It begins at log 2 = 0.693: the model is the reference, so every margin is 0.
//   - Sums, not means: log pi(y | x) of a whole answer is the sum over its tokens. A longer answer
//     can therefore move the margin more; that is DPO's bias towards length.
//   - sigmoid(-margin) is large where the model prefers the wrong answer, and goes to 0 afterwards.
//   - Only the difference counts: both log-probabilities may fall while the margin grows.
