// minimind.c - a language model in one C file: every layer, gradient and stage of training.
//
// MiniMind (https://github.com/jingyaogong/minimind) is a small Chinese-English language model that
// people train in order to learn how a modern one works. In PyTorch the part worth understanding
// happens inside a library. Here it happens on the page: the forward pass, the backward pass, the
// optimiser and the sampler are loops that you can read, and step through in a debugger.
//
//     cc -O3 -march=native -o minimind minimind.c -lm      (add -fopenmp to use all cores)
//     ./minimind help
//
// It refuses to be a framework: no graph, no autograd, no library except libc and libm. A layer is
// a function; its gradient is the function right below it.
//
// THE MODEL. A decoder-only transformer of the Llama / Qwen3 family. With the sizes of the preset
// minimind3 (C = 768, H = 8, KV = 4, D = 96, F = 2432, V = 6400, L = 8), one block computes
//
//     x (T, 768) --+--> RMSNorm --> q (T, 8, 96), k and v (T, 4, 96) --> norm and rotate q and k
//                  |    --> causal attention (query heads 2j and 2j + 1 read key/value head j)
//                  |    --> o_proj (T, 768) --+
//                  +--------------------------+--> x_mid --+--> RMSNorm --> y
//                       --> down(silu(gate(y)) * up(y)), inner width 2432 --+
//                                                          +----------------+--> x of next block
//
// Before the first block comes the embedding (V, C); after the last block an RMSNorm and the same
// embedding again, used as the output matrix ("tied" weights). The line along which x passes
// unchanged, with each half of a block adding to it, is the residual stream: x_mid = x +
// attention(norm(x)), next x = x_mid + ffn(norm(x_mid)). In a mixture of experts (MoE) the matrices
// gate, up and down exist E times, and a router sends every token to K of the E experts.
//
// THE LETTERS, used everywhere, in shapes as well as in names:
//
//     B  sequences in a batch     H   query heads             F  inner width of a feed-forward
//     T  tokens in a sequence     KV  key/value heads         E  routed experts
//     N  tokens, B * T            G   H / KV, a group         K  experts per token
//     C  hidden size              D   head_dim                S  shared experts (see all tokens)
//                                 L   layers                  V  vocabulary size
//
// THE CONVENTIONS, stated once:
//   - Arrays are row-major; a shape in a comment lists the slowest index first.
//   - A weight is (out, in), as in PyTorch: y = x W^T.
//   - dx means d loss / d x. Weight gradients are accumulated (+=); the optimiser step clears them.
//     Every other gradient says at its function whether it is accumulated or overwritten.
//   - RoPE rotates component i together with component i + D/2 ("half-split", as in Hugging Face's
//     Llama; Meta's original weights are interleaved).
//   - Labels are shifted in exactly one place: shift_labels() sets target[t] = ids[t + 1].
//   - The forward pass ends in logp, the log-probability of each target. An objective is a function
//     of logp alone: it returns the loss and fills dlogp, where the backward pass starts.
//   - The same seed gives the same bits on the same machine, for any number of threads: every
//     output has one owner, and no sum depends on how the work was split.
//
// ONE TRAINING STEP, from main() to a gradient and back into the weights:
//
//     main -> run_stage -> train
//         stage->fill                                rows of token ids and targets
//         accumulate_gradients                       for each part of the batch:
//             logp_of                                forward: ids -> logp
//                 model_forward                      embedding, L times block_forward, final norm
//                     attention_block_forward        norm, project, attend
//                     ffn_block_forward              norm, route, experts
//                 head_forward, logp_forward         logits, then logp of each target
//             objective                              logp -> loss and dlogp
//             model_backward                         dlogp -> the gradient of every weight
//         adamw_step                                 clip, and update the weights
//         measure, checkpoint_save                   now and then
//
// THE CONTENTS. Search for "// ====" to walk through the chapters:
//
//      1. this page                      7. Training: the stages and the loop
//      2. The layers, by definition      8. Talking to it: KV cache and sampling
//      3. The model                      9. Files: a checkpoint is a folder
//      4. Objectives                    10. Measuring it
//      5. The optimiser                 11. The same, faster
//      6. Data                          12. Commands
//
// Chapters 2 to 5 are the mathematics. Chapter 11 computes the same layers several times as fast
// and is what runs by default; `--plain 1` runs the definitions of chapter 2 instead, slowly, for a
// debugger. tokenizer.c is the text layer: byte-pair encoding, the chat template, JSON, and small
// helpers (die, xcalloc, Text, ...), each introduced here where it is first used. notes/lab/ holds
// the instruments that check and measure this file.

#define MINIMIND // tokenizer.c then leaves out its main() and commands
#include "tokenizer.c"
#include <inttypes.h>
#include <math.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#ifdef _OPENMP
#include <omp.h>
#endif

// A compiler without OpenMP ignores the "#pragma omp" lines and need not warn about each.
#pragma GCC diagnostic ignored "-Wunknown-pragmas"

// =================================================================================================
// 2. The layers, by definition
//
// Each layer as one would write it on a whiteboard: pointers, sizes and plain loops. A forward pass
// has its backward pass right below it, and the comment between the two derives the second from the
// first. A backward pass receives dy = d loss / d y and needs two things: the gradient of the
// layer's input, which the layer before it needs, and the gradient of its weights. It may
// use what the forward pass has kept; what is not kept is computed again.
// =================================================================================================

// ---- the linear layer ---------------------------------------------------------------------------

// y (n, out) = x (n, in) w^T with w (out, in); y += x w^T if `add`.
static void linear_forward(float *y, const float *x, const float *w, size_t n, size_t in,
                           size_t out, bool add) {
    for (size_t i = 0; i < n; i++)
        for (size_t o = 0; o < out; o++) {
            float sum = add ? y[i * out + o] : 0;
            for (size_t c = 0; c < in; c++) sum += x[i * in + c] * w[o * in + c];
            y[i * out + o] = sum;
        }
}

// The forward line is   y[i][o] = sum_c x[i][c] w[o][c].   The loss depends on x[i][c] through
// every y[i][o], and on w[o][c] through every row i. The chain rule sums over both:
//
//     dx[i][c] = sum_o dy[i][o] w[o][c]      that is  dx = dy w
//     dw[o][c] = sum_i dy[i][o] x[i][c]      that is  dw = dy^T x
//
// The shapes leave no choice: from dy (n, out) and w (out, in) only dy w has the shape of x, and
// from dy and x only dy^T x has that of w. dw is accumulated; so is dx if `add`, else overwritten.
static void linear_backward(float *dx, float *dw, const float *dy, const float *x, const float *w,
                            size_t n, size_t in, size_t out, bool add) {
    for (size_t i = 0; i < n; i++) {
        if (!add) memset(dx + i * in, 0, in * sizeof *dx);
        for (size_t o = 0; o < out; o++) {
            float d = dy[i * out + o];
            for (size_t c = 0; c < in; c++) {
                dx[i * in + c] += d * w[o * in + c];
                dw[o * in + c] += d * x[i * in + c];
            }
        }
    }
}

// ---- the embedding ------------------------------------------------------------------------------

// Row i of `to` (n, C) is row index[i] of `from`. With from = the embedding (V, C) and index = the
// token ids this is the embedding layer; the experts and the output layer select rows in this way.
static void gather_rows(float *to, const float *from, const int *index, size_t n, size_t C) {
    for (size_t i = 0; i < n; i++) memcpy(to + i * C, from + index[i] * C, C * sizeof *to);
}

// A row's gradient is the sum over all places to which it was copied: where a token occurs twice,
// its row of the embedding gets both gradients. dfrom is accumulated.
static void gather_rows_backward(float *dfrom, const float *dto, const int *index, size_t n,
                                 size_t C) {
    for (size_t i = 0; i < n; i++)
        for (size_t c = 0; c < C; c++) dfrom[index[i] * C + c] += dto[i * C + c];
}

// ---- RMSNorm (Zhang and Sennrich 2019) ----------------------------------------------------------

// y[c] = w[c] x[c] r  with  r = 1 / sqrt(mean(x^2) + eps), for each row of x (n, C); w (C). Keeps r
// in rstd (n), the reciprocal of a kind of standard deviation.
static void rmsnorm_forward(float *y, float *rstd, const float *x, const float *w, size_t n,
                            size_t C, float eps) {
    for (size_t i = 0; i < n; i++) {
        const float *x_i = x + i * C; // (C)
        float sum = 0;
        for (size_t c = 0; c < C; c++) sum += x_i[c] * x_i[c];
        float r = 1.0f / sqrtf(sum / C + eps);

        for (size_t c = 0; c < C; c++) y[i * C + c] = w[c] * (x_i[c] * r);
        rstd[i] = r;
    }
}

// The forward line is   y[j] = w[j] x[j] r,   and r depends on every x[c] of the row:
//
//     u = mean(x^2) + eps,   du/dx[c] = 2 x[c] / C
//     r = u^(-1/2),          dr/du = -1/2 u^(-3/2) = -1/2 r^3,   so   dr/dx[c] = -r^3 x[c] / C
//
// x[c] enters y[c] directly, and every y[j] through r. With delta_jc = 1 if j = c, else 0:
//
//     dx[c] = sum_j dy[j] * (derivative of y[j] by x[c])
//           = sum_j dy[j] w[j] (delta_jc r + x[j] dr/dx[c])
//           = r w[c] dy[c]  -  r^3 x[c] / C * sum_j dy[j] w[j] x[j]
//     dw[c] = sum over the rows of dy[c] x[c] r
//
// The sum over j is the same for all c. dx (n, C) is accumulated, because in a block it is the
// gradient of the residual stream, to which other paths add as well; dw (C) is accumulated too.
static void rmsnorm_backward(float *dx, float *dw, const float *dy, const float *x, const float *w,
                             const float *rstd, size_t n, size_t C) {
    for (size_t i = 0; i < n; i++) {
        const float *x_i = x + i * C;   // (C)
        const float *dy_i = dy + i * C; // (C)
        float r = rstd[i], sum = 0;
        for (size_t j = 0; j < C; j++) sum += dy_i[j] * w[j] * x_i[j];
        float shared = r * r * r / C * sum;

        for (size_t c = 0; c < C; c++) {
            dx[i * C + c] += r * w[c] * dy_i[c] - shared * x_i[c];
            dw[c] += dy_i[c] * x_i[c] * r;
        }
    }
}

// ---- rotary positions (RoPE, Su et al. 2021) ----------------------------------------------------

// Attention (next section) compares a query, a row of D numbers, with a key of the same size by
// their dot product, which does not depend on where the two tokens are. So RoPE first rotates every
// query and every key by an angle proportional to the position of its token. Such a row of D
// numbers is called a head. It has D/2 planes; plane i holds the components i and i + D/2. At
// position t it turns by a = t * frequency[i], where frequency[i] = theta^(-2i/D) comes from
// rope_frequency() in chapter 3:
//
//     ( y[i]       )   ( cos a  -sin a ) ( x[i]       )
//     ( y[i + D/2] ) = ( sin a   cos a ) ( x[i + D/2] )
//
// Rotate q at position s and k at position t, in a plane of frequency f. Since R(a)^T = R(-a) and
// R(a) R(b) = R(a + b),
//
//     (R(s f) q) . (R(t f) k) = q^T R(s f)^T R(t f) k = q^T R((t - s) f) k
//
// The score depends on the two positions only through their difference.
//
// The backward pass: y = R x gives dx = R^T dy, and the transpose of a rotation turns back by the
// same angle, that is, with the sign of the sine changed. So both directions are one function:
// direction = 1 rotates x, direction = -1 turns a gradient back. (With YaRN, chapter 3, cos and sin
// carry a factor s: y = s R x and dx = s R^T dy, which is the same code.)
//
// Rotates x (B, T, heads, D) in place. cosine and sine (T, D/2) hold cos a and sin a of each plane;
// their row 0 belongs to the position of the first token.
static void rope(float *x, const float *cosine, const float *sine, float direction, size_t B,
                 size_t T, size_t heads, size_t D) {
    for (size_t row = 0; row < B * T * heads; row++) {
        size_t t = row / heads % T;                // row = (b T + t) heads + head
        const float *cos_t = cosine + t * (D / 2); // (D/2)
        const float *sin_t = sine + t * (D / 2);   // (D/2)
        float *x_row = x + row * D;                // (D)

        for (size_t i = 0, j = D / 2; i < D / 2; i++, j++) {
            float x_i = x_row[i], x_j = x_row[j], sin_a = direction * sin_t[i];
            x_row[i] = x_i * cos_t[i] - x_j * sin_a;
            x_row[j] = x_j * cos_t[i] + x_i * sin_a;
        }
    }
}

// ---- softmax ------------------------------------------------------------------------------------

// log sum_j e^x[j] of x (n), computed as max + log sum_j e^(x[j] - max), where no exponent is
// positive: nothing overflows, whatever the size of x.
static float log_sum_exp(const float *x, size_t n) {
    float max = x[0], sum = 0;
    for (size_t j = 1; j < n; j++) max = fmaxf(max, x[j]);
    for (size_t j = 0; j < n; j++) sum += expf(x[j] - max);
    return max + logf(sum);
}

// p[j] = e^x[j] / sum_i e^x[i], for each row of x (n, width). Subtracting the row's maximum from
// all x changes no p: it cancels. (Attention and logp_backward compute e^(x[j] - lse), because they
// keep only lse; that loses a few digits where |x| is large.)
static void softmax_forward(float *p, const float *x, size_t n, size_t width) {
    for (size_t i = 0; i < n; i++) {
        const float *x_i = x + i * width; // (width)
        float *p_i = p + i * width;       // (width)
        float max = x_i[0], sum = 0;
        for (size_t j = 1; j < width; j++) max = fmaxf(max, x_i[j]);
        for (size_t j = 0; j < width; j++) {
            p_i[j] = expf(x_i[j] - max);
            sum += p_i[j];
        }
        for (size_t j = 0; j < width; j++) p_i[j] /= sum;
    }
}

// With Z = sum_j e^x[j], the forward line is  p[i] = e^x[i] / Z,  and the derivative of Z by x[j]
// is e^x[j]. By the quotient rule, with delta_ij = 1 if i = j, else 0, the derivative of p[i] by
// x[j] is
//
//     (delta_ij e^x[i] Z - e^x[i] e^x[j]) / Z^2 = p[i] (delta_ij - p[j])
//
// The loss depends on x[j] through every p[i]. The sum over i of dp[i] p[i] (delta_ij - p[j]) is
//
//     dx[j] = p[j] (dp[j] - sum_i p[i] dp[i])
//
// dx (n, width) is overwritten.
static void softmax_backward(float *dx, const float *dp, const float *p, size_t n, size_t width) {
    for (size_t i = 0; i < n; i++) {
        const float *p_i = p + i * width;   // (width)
        const float *dp_i = dp + i * width; // (width)
        float sum = 0;
        for (size_t j = 0; j < width; j++) sum += p_i[j] * dp_i[j];
        for (size_t j = 0; j < width; j++) dx[i * width + j] = p_i[j] * (dp_i[j] - sum);
    }
}

// ---- causal grouped-query attention -------------------------------------------------------------

// One query row q (D) against the n keys that it may see. Key j is at k + j * stride, its value at
// v + j * stride, D floats each:
//
//     s[j] = q . k_j / sqrt(D),    p = softmax(s[0 .. n-1]),    out = sum_j p[j] v_j
//
// Why 1 / sqrt(D): if the components of q and k are independent with mean 0 and variance 1, q . k
// is a sum of D products of variance 1, so its variance is D. Divided by sqrt(D), the scores have
// variance 1. Without it one p[j] would be nearly 1 and the others nearly 0. Then every gradient
// ds[j] below would be nearly 0, and the model would learn almost nothing.
//
// For the backward pass one number per row is kept, lse = log sum_j e^s[j]. It suffices:
// p[j] = e^(s[j] - lse). scores (n) is work space.
static void attention_row_forward(float *out, float *lse, float *scores, const float *q,
                                  const float *k, const float *v, size_t n, size_t stride,
                                  size_t D) {
    float scale = 1.0f / sqrtf(D);
    for (size_t j = 0; j < n; j++) {
        float dot_product = 0;
        for (size_t d = 0; d < D; d++) dot_product += q[d] * k[j * stride + d];
        scores[j] = dot_product * scale;
    }
    *lse = log_sum_exp(scores, n);

    for (size_t d = 0; d < D; d++) out[d] = 0;
    for (size_t j = 0; j < n; j++) {
        float p = expf(scores[j] - *lse);
        for (size_t d = 0; d < D; d++) out[d] += p * v[j * stride + d];
    }
}

// The gradient of one row, given dout (D). From  out = sum_j p[j] v_j:
//
//     dp[j] = dout . v_j                        dv_j += p[j] dout
//
// The softmax, as in softmax_backward:  ds[j] = p[j] (dp[j] - sum_i p[i] dp[i]),  where
//
//     sum_i p[i] dp[i] = sum_i p[i] (dout . v_i) = dout . (sum_i p[i] v_i) = dout . out
//
// is one dot product per row. From  s[j] = q . k_j / sqrt(D):
//
//     dq += ds[j] k_j / sqrt(D)                 dk_j += ds[j] q / sqrt(D)
//
// dq (D) is overwritten; dk_j and dv_j, laid out as k and v, are accumulated.
static void attention_row_backward(float *dq, float *dk, float *dv, const float *dout,
                                   const float *out, float lse, const float *q, const float *k,
                                   const float *v, size_t n, size_t stride, size_t D) {
    float scale = 1.0f / sqrtf(D), dout_out = 0;
    for (size_t d = 0; d < D; d++) dout_out += dout[d] * out[d];
    for (size_t d = 0; d < D; d++) dq[d] = 0;

    for (size_t j = 0; j < n; j++) {
        const float *k_j = k + j * stride; // (D)
        const float *v_j = v + j * stride; // (D)
        float dot_product = 0, dp = 0;
        for (size_t d = 0; d < D; d++) {
            dot_product += q[d] * k_j[d];
            dp += dout[d] * v_j[d];
        }
        float p = expf(dot_product * scale - lse);
        float ds = p * (dp - dout_out);
        float ds_scaled = ds * scale; // for both dq and dk

        for (size_t d = 0; d < D; d++) {
            dv[j * stride + d] += p * dout[d];
            dk[j * stride + d] += ds_scaled * q[d];
            dq[d] += ds_scaled * k_j[d];
        }
    }
}

// All rows. q and out (B, T, H, D); k and v (B, past + T, KV, D); keeps lse (B, T, H). Before the T
// keys that belong to these T queries there may be `past` ones of earlier calls: the KV cache of
// chapter 8. In training past = 0.
//
//     key        0 1 2 3          query head      0 1 | 2 3 | 4 5 | 6 7     H = 8, KV = 4, G = 2
//     query 0    x                key/value head   0  |  1  |  2  |  3
//           1    x x
//           2    x x x
//           3    x x x x
//
// The causal mask is the loop bound: query t sees the keys 0 .. past + t. Adding -infinity to the
// other scores would do the same, since e^-infinity = 0, but takes twice the work. Grouped queries
// (GQA, Ainslie et al. 2023): H query heads share KV key/value heads, so the cache is G times
// smaller. Query head h reads key/value head h / G.
static void attention_forward(float *out, float *lse, const float *q, const float *k,
                              const float *v, size_t B, size_t T, size_t past, size_t H, size_t KV,
                              size_t D) {
    size_t G = H / KV;
    float *scores = xcalloc(past + T, sizeof *scores); // calloc that exits on failure

    for (size_t b = 0; b < B; b++)
        for (size_t t = 0; t < T; t++)
            for (size_t h = 0; h < H; h++) {
                size_t query = (b * T + t) * H + h;
                size_t key0 = (b * (past + T) * KV + h / G) * D; // the first key of this head
                attention_row_forward(out + query * D, lse + query, scores, q + query * D,
                                      k + key0, v + key0, past + t + 1, KV * D, D);
            }
    free(scores);
}

// The G query heads of a group read the same key, so dk and dv are sums over the G heads that share
// them, as well as over all later queries. dq, dk and dv have the shapes of q, k and v and are
// overwritten. Training only: past = 0.
static void attention_backward(float *dq, float *dk, float *dv, const float *dout, const float *out,
                               const float *lse, const float *q, const float *k, const float *v,
                               size_t B, size_t T, size_t H, size_t KV, size_t D) {
    size_t G = H / KV;
    memset(dk, 0, B * T * KV * D * sizeof *dk);
    memset(dv, 0, B * T * KV * D * sizeof *dv);

    for (size_t b = 0; b < B; b++)
        for (size_t t = 0; t < T; t++)
            for (size_t h = 0; h < H; h++) {
                size_t query = (b * T + t) * H + h, key0 = (b * T * KV + h / G) * D;
                attention_row_backward(dq + query * D, dk + key0, dv + key0, dout + query * D,
                                       out + query * D, lse[query], q + query * D, k + key0,
                                       v + key0, t + 1, KV * D, D);
            }
}

// ---- SwiGLU (Shazeer 2020) ----------------------------------------------------------------------

// h = silu(gate) * up,  silu(g) = g sigma(g),  sigma(g) = 1 / (1 + e^-g); n elements each.
static void swiglu_forward(float *h, const float *gate, const float *up, size_t n) {
    for (size_t i = 0; i < n; i++) {
        float silu = gate[i] / (1.0f + expf(-gate[i]));
        h[i] = silu * up[i];
    }
}

// The forward line is   h = g sigma(g) u.   From  sigma' = sigma (1 - sigma):
//
//     dg = dh u (sigma + g sigma (1 - sigma)) = dh u sigma (1 + g (1 - sigma))
//     du = dh g sigma
//
// dgate and dup are overwritten; dup may be dh, which is then no longer needed.
static void swiglu_backward(float *dgate, float *dup, const float *dh, const float *gate,
                            const float *up, size_t n) {
    for (size_t i = 0; i < n; i++) {
        float d = dh[i], g = gate[i], sigma = 1.0f / (1.0f + expf(-g));
        dgate[i] = d * up[i] * sigma * (1.0f + g * (1.0f - sigma));
        dup[i] = d * g * sigma;
    }
}

// ---- the router of a mixture of experts ---------------------------------------------------------

// Each token goes to the K experts with the highest probability. From prob (N, E), a softmax of the
// router's scores, to choice (N, K), the chosen experts, most probable first, and mix (N, K), the
// factors of their outputs: the probability itself, or, with `renormalise`, the probability divided
// by the sum of the K chosen ones.
static void router_forward(float *mix, int *choice, const float *prob, size_t N, size_t E,
                           size_t K, bool renormalise) {
    for (size_t n = 0; n < N; n++) {
        const float *p = prob + n * E; // (E)
        float sum = 0;

        for (size_t k = 0; k < K; k++) {
            int best = -1;
            for (int e = 0; e < (int)E; e++) {
                bool taken = false;
                for (size_t j = 0; j < k; j++) taken |= choice[n * K + j] == e;
                if (!taken && (best < 0 || p[e] > p[best])) best = e;
            }
            choice[n * K + k] = best;
            mix[n * K + k] = p[best];
            sum += p[best];
        }
        if (renormalise)
            for (size_t k = 0; k < K; k++) mix[n * K + k] /= sum;
    }
}

// From dmix (N, K) to dprob (N, E), which is accumulated. Which experts are in the top K is a
// constant for the gradient: a small change of the scores does not change the choice. The router
// learns through the factors of the chosen experts alone.
//
//   raw:           mix_k = p_k,  so  dp_k = dmix_k
//   renormalised:  mix_k = p_k / s  with  s = sum_j p_j over the chosen experts. The derivative of
//                  mix_j by p_k is (delta_jk - mix_j) / s, and so
//                  dp_k = (dmix_k - sum_j mix_j dmix_j) / s.
//
// For K = 1 the renormalised factor is always 1, and the last line is (dmix - 1 * dmix) / s:
// exactly zero. Such a router learns from the balance loss only (MiniMind's issue 858).
static void router_backward(float *dprob, const float *dmix, const float *mix, const int *choice,
                            const float *prob, size_t N, size_t E, size_t K, bool renormalise) {
    for (size_t n = 0; n < N; n++) {
        float s = renormalise ? 0 : 1, shared = 0; // shared: sum_j mix_j dmix_j
        for (size_t i = n * K; renormalise && i < (n + 1) * K; i++) {
            s += prob[n * E + choice[i]];
            shared += mix[i] * dmix[i];
        }
        for (size_t i = n * K; i < (n + 1) * K; i++)
            dprob[n * E + choice[i]] += (dmix[i] - shared) / s;
    }
}

// The loss that keeps the experts equally busy (Switch Transformer, Fedus et al. 2021). Over the n
// real tokens of B sequences, count_e tokens chose expert e, and mean_e is the mean of their p_e:
//
//     loss = scale / n * sum_e count_e mean_e
//
// With count_e = n K / E and mean_e = 1 / E for all e it is scale * K / E; an expert that is both
// often chosen and probable makes it larger. Counting has no gradient, so count_e is a constant:
//
//     dp_e = scale / n * count_e / n       for each token
//
// which pushes the probability of a busy expert down harder. Example: E = 2, K = 1, n = 4, and all
// tokens choose expert 0 with p = 0.75: loss = scale / 4 * (4 * 0.75 + 0 * 0.25) = 0.75 scale,
// where balanced experts give 0.5 scale; dp_0 = scale / 4 and dp_1 = 0, so that descent lowers p_0.
//
// prob (B T, E), choice (B T, K), length (B): sequence b has length[b] real tokens in its T rows;
// the rest is padding. Returns the loss; accumulates count_e (E) and dprob (B T, E), if not NULL.
static double balance_loss(int *count_e, float *dprob, const float *prob, const int *choice,
                           const int *length, size_t B, size_t T, size_t E, size_t K,
                           double scale) {
    size_t n = 0;
    for (size_t b = 0; b < B; b++) n += length[b];
    if (n == 0) return 0;
    float per_token = scale / n;
    double loss = 0;

    for (size_t e = 0; e < E; e++) {
        size_t count = 0;
        double sum = 0;
        for (size_t b = 0; b < B; b++)
            for (size_t row = b * T; row < b * T + length[b]; row++) {
                sum += prob[row * E + e];
                for (size_t k = 0; k < K; k++) count += choice[row * K + k] == (int)e;
            }
        loss += per_token * count * (sum / n);
        if (count_e) count_e[e] += (int)count;

        for (size_t b = 0; dprob && b < B; b++)
            for (size_t row = b * T; row < b * T + length[b]; row++)
                dprob[row * E + e] += per_token * count / n;
    }
    return loss;
}

// ---- from tokens to experts and back ------------------------------------------------------------

// Sorts the N * K copies of tokens by expert, so that the work of an expert is one linear layer on
// neighbouring rows. No token is dropped, and an expert may get none. Four tokens, three experts,
// K = 1, as an example (a counting sort, which keeps the tokens in order):
//
//     token     0   1   2   3        choice = {2, 0, 2, 0}
//     row       2   0   3   1        row[n K + k]: where copy k of token n is
//
//     row       0   1   2   3        first = {0, 2, 2, 4}: expert e has rows first[e] ..
//     expert    0   0   2   2        first[e + 1] - 1; expert 1 has none
//     token     1   3   0   2        token[row]: whose copy it is
//
// choice, row and token (N K), first (E + 1).
static void sort_by_expert(int *first, int *row, int *token, const int *choice, size_t N, size_t E,
                           size_t K) {
    memset(first, 0, (E + 1) * sizeof *first);
    for (size_t i = 0; i < N * K; i++) first[choice[i]]++;
    for (size_t e = 1; e <= E; e++) first[e] += first[e - 1]; // now the end of each expert's rows

    for (size_t left = N * K; left > 0; left--) { // each end moves down to its beginning
        size_t i = left - 1;
        first[choice[i]]--;
        row[i] = first[choice[i]];
        token[row[i]] = (int)(i / K);
    }
}

// out[n] += sum_k mix[n][k] y[row[n][k]]: the outputs y (N K, C) of the experts, each times its
// factor, are added to out (N, C). With mix NULL all factors are 1: that is the backward pass of
// copying, where a token's gradient is the sum over its K copies.
static void combine_forward(float *out, const float *y, const float *mix, const int *row,
                            size_t N, size_t K, size_t C) {
    for (size_t i = 0; i < N * K; i++) {
        float factor = mix ? mix[i] : 1;
        for (size_t c = 0; c < C; c++) out[i / K * C + c] += factor * y[row[i] * C + c];
    }
}

// For copy i of token n the forward line is   out[n] += mix_i y_i,   and so
//
//     dy_i = mix_i dout[n]        dmix_i = dout[n] . y_i
//
// dmix_i is the only signal from the loss of the tokens to the router: negative if a larger factor
// for this expert would lower the loss. dy (N K, C) and dmix (N, K) are overwritten.
static void combine_backward(float *dy, float *dmix, const float *dout, const float *y,
                             const float *mix, const int *row, size_t N, size_t K, size_t C) {
    for (size_t i = 0; i < N * K; i++) {
        const float *dout_n = dout + i / K * C; // (C)
        float sum = 0;
        for (size_t c = 0; c < C; c++) {
            sum += dout_n[c] * y[row[i] * C + c];
            dy[row[i] * C + c] = mix[i] * dout_n[c];
        }
        dmix[i] = sum;
    }
}

// ---- the log-probability of the target ----------------------------------------------------------

// The logits of a token are V scores, one per entry of the vocabulary; softmax makes probabilities
// of them. logp[i] = log softmax(logits[i])[target[i]] = logits[i][target[i]] - lse[i], where lse
// is the log_sum_exp of the row. logits (n, V), target (n); keeps lse (n).
static void logp_forward(float *logp, float *lse, const float *logits, const int *target, size_t n,
                         size_t V) {
    for (size_t i = 0; i < n; i++) {
        lse[i] = log_sum_exp(logits + i * V, V);
        logp[i] = logits[i * V + target[i]] - lse[i];
    }
}

// The forward line is   logp = logits[target] - log sum_v e^logits[v].   Its derivative by
// logits[v] is (1 if v is the target, else 0) - softmax[v], and so
//
//     dlogits[v] = dlogp * ((v is target) - e^(logits[v] - lse))
//
// With dlogp = -1 / n this is the well-known  (softmax - onehot) / n  of cross-entropy. Example: a
// vocabulary of three, softmax (0.7, 0.2, 0.1), target 1, dlogp = -1: dlogits = (0.7, -0.8, 0.1).
// dlogits (n, V) is overwritten; it may be logits, which are then no longer needed.
static void logp_backward(float *dlogits, const float *dlogp, const float *lse, const float *logits,
                          const int *target, size_t n, size_t V) {
    for (size_t i = 0; i < n; i++) {
        for (size_t v = 0; v < V; v++)
            dlogits[i * V + v] = -dlogp[i] * expf(logits[i * V + v] - lse[i]);
        dlogits[i * V + target[i]] += dlogp[i];
    }
}

// ---- one switch ---------------------------------------------------------------------------------

// Chapter 11 has a faster version of each function in this table, with the same arguments. The
// model calls them through `op`, which points to one of two tables: `fast` by default, or, with
// --plain 1, `plain`: the definitions of chapters 2 and 5.
struct AdamW;
struct Tensor;
typedef struct { // __typeof__(f) *f: a pointer to a function of the type of f above
    __typeof__(linear_forward) *linear_forward;
    __typeof__(linear_backward) *linear_backward;
    __typeof__(rmsnorm_forward) *rmsnorm_forward;
    __typeof__(rmsnorm_backward) *rmsnorm_backward;
    __typeof__(rope) *rope;
    __typeof__(attention_forward) *attention_forward;
    __typeof__(attention_backward) *attention_backward;
    __typeof__(swiglu_forward) *swiglu_forward;
    __typeof__(swiglu_backward) *swiglu_backward;
    __typeof__(softmax_forward) *softmax_forward;
    __typeof__(combine_forward) *combine_forward;
    __typeof__(combine_backward) *combine_backward;
    __typeof__(logp_forward) *logp_forward;
    __typeof__(logp_backward) *logp_backward;
    // of chapter 5:
    double (*sum_of_squares)(const float *x, size_t n);
    void (*adamw_update)(float *w, float *g, float *m, float *v, size_t n, const struct AdamW *o,
                         double decay, double factor);
    // weights in 16 or 8 bits, of chapter 11; they have no other definition:
    void (*packed_linear)(float *y, const float *x, const struct Tensor *w, size_t n, bool add);
    void (*unpack_row)(float *to, const struct Tensor *w, size_t row); // to (cols)
    void (*pack_tensor)(struct Tensor *t, const float *x);             // x (rows, cols)
} Ops;

static const Ops plain, fast; // filled at the ends of chapters 5 and 11
static const Ops *op = &fast;

// =================================================================================================
// 3. The model
//
// A configuration, ONE table of parameters, and the activations, the arrays that the forward pass
// fills and the backward pass reads. The table is all that allocation, initialisation, files,
// AdamW, the gradient check and `info` know about the model: a new tensor is one field of Layer and
// one line in add_layer(). Dense and MoE are the same code. A dense feed-forward is one expert that
// every token visits, like the shared experts of MiniMind2; without routed experts there is no
// router.
// =================================================================================================

// `#pragma omp parallel for num_threads(n_threads)` shares the iterations of the next loop out
// among threads; collapse(3) treats three nested loops as one list; schedule(dynamic) gives the
// next iteration to whichever thread is free.
static int n_threads = 1; // set by --threads

static size_t min_size(size_t a, size_t b) { return a < b ? a : b; }
static size_t max_size(size_t a, size_t b) { return a > b ? a : b; }
static size_t round_up(size_t n, size_t unit) { return (n + unit - 1) / unit * unit; }

typedef struct {
    long vocab_size, hidden_size, num_hidden_layers, num_attention_heads, num_key_value_heads;
    long head_dim, intermediate_size, max_position_embeddings, qk_norm;
    long use_moe, num_experts, num_experts_per_tok, n_shared_experts, moe_intermediate_size;
    long norm_topk_prob, seq_aux, yarn, yarn_original_max;
    double rms_norm_eps, rope_theta, router_aux_loss_coef;
    double yarn_factor, yarn_beta_fast, yarn_beta_slow, yarn_attention_factor;
} Config;

// From tokenizer.c: die() prints a message and exits with status 1; field_set() checks a value and
// stores it; put_defaults() stores the defaults of a table; hash_bytes(), which begins with
// HASH_START, is the hash FNV-1a.

// The fields of a configuration, in a table (see "Options" in tokenizer.c) that drives reading,
// checking, writing and help. A line is FIELD(name, kind, tag), smallest, largest, default,
// help. Kind 'i' is a whole number, 'f' a real one. The value -1 means that config_complete()
// computes it. The tag is the name in MiniMind2's files or, for YaRN, inside "rope_scaling".
static const Field config_field[] = {
#define FIELD(name, kind, tag) #name, tag, kind, offsetof(Config, name)
    {FIELD(vocab_size, 'i', ""), 2, 1 << 24, 1024, "V; set by the tokenizer"},
    {FIELD(hidden_size, 'i', ""), 1, 1 << 16, 768, "C"},
    {FIELD(num_hidden_layers, 'i', ""), 1, 1000, 8, "L"},
    {FIELD(num_attention_heads, 'i', ""), 1, 1024, 8, "H"},
    {FIELD(num_key_value_heads, 'i', ""), -1, 1024, 4, "KV, divides H; -1: H"},
    {FIELD(head_dim, 'i', ""), -1, 4096, -1, "D, even; default C / H"},
    {FIELD(intermediate_size, 'i', ""), -1, 1 << 20, -1, "F; default pi C, up to the next 64"},
    {FIELD(max_position_embeddings, 'i', ""), 1, 1 << 24, 32768, "the longest context"},
    {FIELD(rms_norm_eps, 'f', ""), 0, 1, 1e-6, "added to the mean square"},
    {FIELD(rope_theta, 'f', ""), 1, 1e12, 1e6, "base of the rotation frequencies"},
    {FIELD(qk_norm, 'i', ""), 0, 1, 1, "normalise q and k (MiniMind-3, Qwen3)"},
    {FIELD(use_moe, 'i', ""), 0, 1, 0, "mixture of experts"},
    {FIELD(num_experts, 'i', "n_routed_experts"), 0, 4096, 4, "E"},
    {FIELD(num_experts_per_tok, 'i', ""), 0, 4096, 1, "K, at most E"},
    {FIELD(n_shared_experts, 'i', ""), 0, 1024, 0, "experts that see every token (MiniMind2)"},
    {FIELD(moe_intermediate_size, 'i', ""), -1, 1 << 20, -1, "F of an expert; default F"},
    {FIELD(norm_topk_prob, 'i', ""), -1, 1, -1, "weights sum to 1; default: if K > 1"},
    {FIELD(router_aux_loss_coef, 'f', "aux_loss_alpha"), 0, 1e3, 5e-4, "of the balance loss"},
    {FIELD(seq_aux, 'i', ""), 0, 1, 0, "balance within each sequence (MiniMind2)"},
    {FIELD(yarn, 'i', ""), 0, 1, 0, "stretch RoPE to longer contexts"},
    {FIELD(yarn_factor, 'f', "factor"), 1, 1e6, 16, "how many times longer"},
    {FIELD(yarn_original_max, 'i', "original_max_position_embeddings"), 0, 1 << 24, 2048,
     "context before stretching"},
    {FIELD(yarn_beta_fast, 'f', "beta_fast"), 0, 1e6, 32, "planes turning more often are left"},
    {FIELD(yarn_beta_slow, 'f', "beta_slow"), 0, 1e6, 1, "planes turning less are stretched"},
    {FIELD(yarn_attention_factor, 'f', "attention_factor"), -1, 100, 1,
     "scales cos and sin; -1: 1 + 0.1 ln factor"},
#undef FIELD
};
enum { CONFIG_FIELDS = sizeof config_field / sizeof *config_field };

typedef struct { const char *name, *fields; } Preset;

static const Preset presets[] = {
    {"tiny", "hidden_size=128 num_hidden_layers=4 num_attention_heads=4 num_key_value_heads=2 "
             "intermediate_size=384 max_position_embeddings=512 rope_theta=10000 "
             "use_moe=1 num_experts=4 num_experts_per_tok=2 moe_intermediate_size=192"},
    {"minimind3", "vocab_size=6400"},
    {"minimind3-moe", "vocab_size=6400 use_moe=1"},
    {"minimind2-small", "vocab_size=6400 hidden_size=512 num_key_value_heads=2 qk_norm=0 "
                        "intermediate_size=1408 rms_norm_eps=1e-5"},
    {"minimind2", "vocab_size=6400 num_hidden_layers=16 num_key_value_heads=2 qk_norm=0 "
                  "intermediate_size=2048 rms_norm_eps=1e-5"},
    {"minimind2-moe", "vocab_size=6400 hidden_size=640 num_key_value_heads=2 qk_norm=0 "
                      "intermediate_size=1728 rms_norm_eps=1e-5 use_moe=1 num_experts=4 "
                      "num_experts_per_tok=2 n_shared_experts=1 seq_aux=1 "
                      "router_aux_loss_coef=0.01"},
};
enum { PRESETS = sizeof presets / sizeof *presets };

// Sets fields from "name=value name=value ...".
static void config_parse(Config *c, const char *fields, const char *where) {
    char name[64];
    double value;
    for (int n; sscanf(fields, " %63[^=]=%lf%n", name, &value, &n) == 2; fields += n) {
        const Field *f = field_find(config_field, CONFIG_FIELDS, name);
        if (!f) die("%s: no field is called %s", where, name);
        field_set(c, f, value, where);
    }
    if (fields[strspn(fields, " ")]) die("%s: \"%s\" is not name=value", where, fields);
}

static Config config_preset(const char *name) {
    Config c;
    put_defaults(&c, config_field, CONFIG_FIELDS);
    const Preset *p = presets;
    while (p < presets + PRESETS && strcmp(p->name, name)) p++;
    if (p == presets + PRESETS)
        die("--preset %s: known are tiny minimind3 minimind3-moe minimind2-small minimind2 "
            "minimind2-moe", name);
    config_parse(&c, p->fields, name);
    return c;
}

// Fills in defaults; exits if the sizes are inconsistent.
static void config_complete(Config *c, const char *where) {
    long C = c->hidden_size, H = c->num_attention_heads;
    if (c->head_dim < 0 && C % H)
        die("%s: hidden_size %ld is no multiple of %ld heads", where, C, H);
    if (c->head_dim < 0) c->head_dim = C / H;
    if (c->head_dim < 2 || c->head_dim % 2)
        die("%s: head_dim is %ld; RoPE needs an even number", where, c->head_dim);

    if (c->num_key_value_heads < 0) c->num_key_value_heads = H;
    if (c->num_key_value_heads == 0 || H % c->num_key_value_heads)
        die("%s: %ld heads cannot share %ld key/value heads", where, H, c->num_key_value_heads);

    if (c->intermediate_size < 1) c->intermediate_size = (long)round_up((size_t)ceil(C * M_PI), 64);
    if (c->moe_intermediate_size < 1) c->moe_intermediate_size = c->intermediate_size;
    if (c->use_moe && (c->num_experts_per_tok > c->num_experts || c->num_experts_per_tok < 1))
        die("%s: num_experts_per_tok is %ld; allowed is 1 to num_experts, %ld", where,
            c->num_experts_per_tok, c->num_experts);
    // At K = 1 a renormalised weight teaches the router nothing: see router_backward.
    if (c->norm_topk_prob < 0) c->norm_topk_prob = c->num_experts_per_tok > 1;

    if (c->yarn && c->yarn_original_max < 1) die("%s: yarn needs yarn_original_max", where);
    if (c->yarn_attention_factor < 0) c->yarn_attention_factor = 0.1 * log(c->yarn_factor) + 1;
}

// ---- the table of parameters --------------------------------------------------------------------

typedef struct Tensor { // a parameter of the model
    char name[100];          // as in MiniMind's and Qwen3's files
    size_t rows, cols;       // (out, in); a norm is (1, width)
    size_t offset;           // index of its first element among all parameters of the model
    float std;               // initial standard deviation; 0: all ones
    bool decay;              // weight decay: matrices yes, norms no
    float *weight;           // (rows, cols); NULL if packed
    float *grad;             // (rows, cols); NULL in inference, and so are the next two
    float *moment1, *moment2; // (rows, cols) AdamW's means of the gradient and of its square
    int bits;                // 32: `weight` is in use; 16 or 8: `packed`, see chapter 11
    uint32_t *packed;        // (rows, cols * bits / 32) words of 2 or 4 weights
    float *scale;            // (rows, cols / 64) 8 bits only: one per 64 weights, times 2^-24
} Tensor;

static size_t tensor_size(const Tensor *t) { return t->rows * t->cols; }
static bool is_matrix(const Tensor *t) { return t->std > 0; } // else a norm

typedef struct { Tensor *gate, *up, *down; } Expert; // (F, C), (F, C), (C, F)

typedef struct {
    Tensor *attn_norm;       // (C)
    Tensor *q, *k, *v, *o;   // (H D, C), (KV D, C), (KV D, C), (C, H D)
    Tensor *q_norm, *k_norm; // (D) each, or NULL
    Tensor *ffn_norm;        // (C)
    Tensor *router;          // (E, C), or NULL
    Expert *expert;          // (E + S) routed ones, then shared ones
} Layer;

typedef struct {
    Config config;
    size_t C, H, KV, D, F, V, L, E, K, S;    // the letters of the title page
    Tensor *tensor;                          // the table: (n_tensors)
    int n_tensors;
    size_t n_params;
    float *params, *grads, *moment1, *moment2; // (n_params) each; packed params take less
    Tensor *embed, *norm;                      // (V, C), (C)
    Layer *layer;                              // (L)
} Model;

static Tensor *add_tensor(Model *model, size_t rows, size_t cols, float std, const char *prefix,
                          const char *name) {
    Tensor *t = &model->tensor[model->n_tensors++];
    *t = (Tensor){.rows = rows, .cols = cols, .offset = model->n_params, .std = std,
                  .decay = std > 0};
    snprintf(t->name, sizeof t->name, "%s%s.weight", prefix, name);
    model->n_params += rows * cols;
    return t;
}

enum { LAYER_TENSORS = 9 }; // of add_layer(), without the experts

// Matrices start as random numbers from a normal distribution, mean 0, standard deviation 0.02.
// Each of the L blocks adds two terms to the residual stream, the outputs of o and of down. These
// two start smaller by sqrt(2 L), so that the stream's variance does not grow with depth (GPT-2).
static void add_layer(Model *model, Layer *layer, int l) {
    size_t C = model->C, HD = model->H * model->D, KVD = model->KV * model->D;
    float std = 0.02f, out_std = 0.02f / sqrtf(2 * model->L);
    int E = (int)model->E;
    char prefix[40]; // of all names
    snprintf(prefix, sizeof prefix, "model.layers.%d.", l);

    layer->attn_norm = add_tensor(model, 1, C, 0, prefix, "input_layernorm");
    layer->q = add_tensor(model, HD, C, std, prefix, "self_attn.q_proj");
    layer->k = add_tensor(model, KVD, C, std, prefix, "self_attn.k_proj");
    layer->v = add_tensor(model, KVD, C, std, prefix, "self_attn.v_proj");
    layer->o = add_tensor(model, C, HD, out_std, prefix, "self_attn.o_proj");
    if (model->config.qk_norm) {
        layer->q_norm = add_tensor(model, 1, model->D, 0, prefix, "self_attn.q_norm");
        layer->k_norm = add_tensor(model, 1, model->D, 0, prefix, "self_attn.k_norm");
    }
    layer->ffn_norm = add_tensor(model, 1, C, 0, prefix, "post_attention_layernorm");
    // In the files "mlp.gate" is the router; "gate_proj" is the gate of SwiGLU.
    if (E) layer->router = add_tensor(model, model->E, C, std, prefix, "mlp.gate");

    layer->expert = xcalloc(model->E + model->S, sizeof *layer->expert);
    for (int e = 0; e < E + (int)model->S; e++) {
        char mlp[80];
        if (!E) snprintf(mlp, sizeof mlp, "%smlp.", prefix);
        else if (e < E) snprintf(mlp, sizeof mlp, "%smlp.experts.%d.", prefix, e);
        else snprintf(mlp, sizeof mlp, "%smlp.shared_experts.%d.", prefix, e - E);
        Expert *expert = &layer->expert[e];
        expert->gate = add_tensor(model, model->F, C, std, mlp, "gate_proj");
        expert->up = add_tensor(model, model->F, C, std, mlp, "up_proj");
        expert->down = add_tensor(model, C, model->F, out_std, mlp, "down_proj");
    }
}

// Builds the table for a complete configuration; allocates no weights yet.
static Model *model_new(Config c) {
    Model *model = xcalloc(1, sizeof *model);
    // Dense: E = K = 0 and S = 1. The feed-forward is one expert that every token visits.
    *model = (Model){
        .config = c, .C = c.hidden_size, .H = c.num_attention_heads, .KV = c.num_key_value_heads,
        .D = c.head_dim, .V = c.vocab_size, .L = c.num_hidden_layers,
        .E = c.use_moe ? c.num_experts : 0, .K = c.use_moe ? c.num_experts_per_tok : 0,
        .S = c.use_moe ? c.n_shared_experts : 1,
        .F = c.use_moe ? c.moe_intermediate_size : c.intermediate_size};

    size_t most_tensors = 2 + model->L * (LAYER_TENSORS + 3 * (model->E + model->S));
    model->tensor = xcalloc(most_tensors, sizeof *model->tensor);
    model->layer = xcalloc(model->L, sizeof *model->layer);

    model->embed = add_tensor(model, model->V, model->C, 0.02f, "model.", "embed_tokens");
    for (int l = 0; l < (int)model->L; l++) add_layer(model, &model->layer[l], l);
    model->norm = add_tensor(model, 1, model->C, 0, "model.", "norm");
    return model;
}

// n floats, all zero; release with free(). They begin at a cache line, 64 bytes: a vector load that
// crosses two lines takes two accesses.
static float *new_floats(size_t n) {
    float *x = n < SIZE_MAX / 16 ? aligned_alloc(64, round_up(n * sizeof *x + 1, 64)) : NULL;
    if (!x) die("out of memory: %zu numbers were asked for", n);
    return memset(x, 0, n * sizeof *x);
}

enum { INT8_BLOCK = 64 }; // int8 weights: this many neighbours in a row share a scale

// Norms, and matrices whose width is no multiple of 64, are always stored as floats.
static int kept_bits(const Tensor *t, int bits) {
    return !is_matrix(t) || t->cols % INT8_BLOCK ? 32 : bits;
}

static size_t tensor_bytes(const Tensor *t, int bits) {
    size_t n = tensor_size(t), kept = kept_bits(t, bits);
    size_t bytes = n * kept * sizeof(float) / 32;
    if (kept == 8) bytes += n / INT8_BLOCK * sizeof *t->scale;
    return bits == 32 ? bytes : round_up(bytes, 64);
}

static size_t weight_bytes(const Model *model, int bits) {
    size_t sum = 0;
    for (int i = 0; i < model->n_tensors; i++) sum += tensor_bytes(&model->tensor[i], bits);
    return sum;
}

// Allocates the weights in 32, 16 or 8 bits, and for training the gradients and AdamW's moments:
// one block each. Exits if there is not enough memory.
static void model_allocate(Model *model, bool training, int bits) {
    model->params = new_floats(weight_bytes(model, bits) / sizeof(float));
    float **array[] = {&model->grads, &model->moment1, &model->moment2};
    for (int i = 0; i < 3 && training; i++) *array[i] = new_floats(model->n_params);

    char *at = (char *)model->params;
    for (Tensor *t = model->tensor; t < model->tensor + model->n_tensors; t++) {
        t->bits = kept_bits(t, bits);
        if (t->bits == 32) t->weight = (float *)at;
        else t->packed = (uint32_t *)at;
        if (t->bits == 8) t->scale = (float *)(at + tensor_size(t));
        at += tensor_bytes(t, bits);
        if (!training) continue;
        t->grad = model->grads + t->offset;
        t->moment1 = model->moment1 + t->offset;
        t->moment2 = model->moment2 + t->offset;
    }
}

static void model_free(Model *model) {
    for (size_t l = 0; l < model->L; l++) free(model->layer[l].expert);
    free(model->params);
    free(model->grads);
    free(model->moment1);
    free(model->moment2);
    free(model->tensor);
    free(model->layer);
    free(model);
}

// Random numbers are a function of (stream, index), without a state to carry along. Each tensor has
// its own stream: the hashes of its name (FNV-1a) and of the seed (splitmix64), added.
static uint64_t splitmix64(uint64_t x) {
    x += 0x9E3779B97F4A7C15u;
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9u;
    x = (x ^ (x >> 27)) * 0x94D049BB133111EBu;
    return x ^ (x >> 31);
}

static uint64_t fnv1a64(const char *s) { return hash_bytes(HASH_START, s, strlen(s)); }

static double uniform(uint64_t stream, uint64_t i) { // [0, 1)
    return (double)(splitmix64(stream + i) >> 11) * 0x1p-53;
}

static double gaussian(uint64_t stream, uint64_t i) { // N(0, 1), Box-Muller
    double radius = sqrt(-2 * log(1 - uniform(stream, 2 * i)));
    return radius * cos(2 * M_PI * uniform(stream, 2 * i + 1));
}

// Puts x, n groups of `width` numbers, in random order: Fisher and Yates.
static void shuffle(size_t *x, size_t n, size_t width, uint64_t stream) {
    for (size_t i = n; i > 1; i--) {
        size_t j = uniform(stream, i) * i;
        for (size_t k = 0; k < width; k++) {
            size_t last = x[(i - 1) * width + k];
            x[(i - 1) * width + k] = x[j * width + k];
            x[j * width + k] = last;
        }
    }
}

static void model_init(Model *model, uint64_t seed) {
    for (Tensor *t = model->tensor; t < model->tensor + model->n_tensors; t++) {
        uint64_t stream = fnv1a64(t->name) + splitmix64(seed);
        #pragma omp parallel for num_threads(n_threads)
        for (size_t i = 0; i < tensor_size(t); i++)
            t->weight[i] = is_matrix(t) ? t->std * (float)gaussian(stream, i) : 1.0f;
    }
}

// Parameters used per token: K of the E routed experts, and all others.
static size_t active_params(const Model *model) {
    return model->n_params - 3 * model->C * model->F * (model->E - model->K) * model->L;
}

// Forward only. A multiplication and an addition per active weight (the embedding counts as output
// matrix); attention adds two products with the T / 2 positions that a token sees on average. The
// backward pass takes twice as many.
static double flops_per_token(const Model *model, size_t T) {
    return 2.0 * active_params(model) + 2.0 * model->L * model->H * model->D * T;
}

// ---- activations --------------------------------------------------------------------------------

typedef struct { // how one layer routes its N tokens; see chapter 2
    float *prob;            // (N, E)
    float *mix, *dmix;      // (N, K) the factor of each chosen expert's output, and its gradient
    int *choice;            // (N, K) the experts of each token
    int *row;               // (N, K) row of token n's copy k in `gathered`
    int *token;             // (N K) token of each row of `gathered`
    int *first;             // (E + S + 1) expert e has rows first[e] .. first[e + 1] - 1
    int *count;             // (E) real tokens that chose each expert, to report its load
} Routing;

typedef struct { // what the forward pass of one layer keeps for its backward pass
    float *x;                 // (N, C) input: the residual stream
    float *norm1, *rstd1;     // (N, C), (N)
    float *q_raw, *k_raw;     // (N, H, D), (N, KV, D) as projected
    float *q_rstd, *k_rstd;   // (N H), (N KV) rstd of the norms of q and k
    float *q;                 // (N, H, D) normalised and rotated
    float *k, *v;             // (N, KV, D), or the KV cache (n_slots, room, KV, D); k normalised
                              // and rotated
    float *att, *lse;         // (N, H, D), (N, H)
    float *x_mid;             // (N, C) the residual stream after attention
    float *norm2, *rstd2;     // (N, C), (N)
    Routing route;
    float *gathered;          // (N K, C) norm2's rows, sorted by expert
    float *gate, *up;         // (N K + S N, F), rows of the routed experts first
    float *expert_out;        // (N K, C)
} LayerActs;

enum Mode {
    INFERENCE, // no gradients; all layers share one set of activations
    TRAINING,  // every layer keeps its activations
    RECOMPUTE, // training, but a layer keeps only its input x; the rest is computed again
};

typedef struct {
    enum Mode mode;
    size_t max_rows;         // most tokens in one pass
    size_t n_slots;          // KV cache: a slot holds k and v of one sequence. In INFERENCE also
                             // the most tokens that get logits in one pass
    size_t room;             // KV cache: positions per slot; 0: no cache
    size_t B, T, N;          // of the call in progress; in decoding T = 1
    const int *ids;          // (N) its tokens
    const int *length;       // (B) real tokens per sequence, or NULL: no balance loss
    const int *past, *slot;  // (B) with a KV cache: positions already in it; which slot
    float aux_share;         // sequences of this pass / sequences of the optimiser step
    double aux_loss;         // balance loss of all layers
    float *cosine, *sine;    // (P, D / 2), P = room with a KV cache, else max_rows
    LayerActs *layer;        // (L + 1); of the last one only x is used
    float *final_norm, *final_rstd; // (N, C), (N)
    int n_out;                      // rows that need logits
    int *out_row, *target;          // (n_out) which rows, and their targets
    float *out_norm;                // (n_out, C) these rows of final_norm
    float *logits, *lse;            // (n_out, V), (n_out) log_sum_exp of the logits
    float *logp, *dlogp;            // (n_out)
    // Work space that all layers share:
    float *v_raw;                   // (N, KV, D) as projected; used with a KV cache
    float *score;                   // (N, E) the router's scores
    float *h;                       // (N K + S N, F) silu(gate) * up
    // Gradients, named after what they belong to; training only:
    float *dx;                      // (N, C) of the residual stream
    float *dnorm;                   // (N, C) of final_norm, then of norm2 and norm1 of each layer
    float *dout_norm;               // (n_out, C)
    float *datt, *dq, *dq_raw;      // (N, H, D) each
    float *dk, *dv, *dk_raw;        // (N, KV, D) each
    float *dh, *dgate;              // (N K + S N, F) each
    float *dexpert_out, *dgathered; // (N K, C) each
    float *dprob, *dscore;          // (N, E) each
    float *memory;                  // the one allocation,
    size_t size;                    // and its size in floats
} Acts;

// Hands out the next n floats of the block; before it is allocated it only counts them. An int has
// the size of a float, so arrays of ints come from the same block.
static void *take(Acts *a, size_t n) {
    float *p = a->memory ? a->memory + a->size : NULL;
    a->size += round_up(n, 16);
    return p;
}

// An array of the layout: where its pointer is kept, and its size in floats.
typedef struct { float **at; size_t n; } Array;

static void take_all(Acts *a, const Array *array, size_t n_arrays) {
    for (size_t i = 0; i < n_arrays; i++) *array[i].at = take(a, array[i].n);
}

static void layout_layer(const Model *model, Acts *a, LayerActs *act) {
    size_t N = a->max_rows, NC = N * model->C, HD = model->H * model->D, KVD = model->KV * model->D;
    size_t NK = N * model->K, expert_rows = NK + N * model->S;
    Routing *r = &act->route;
    const Array array[] = {
        {&act->norm1, NC}, {&act->rstd1, N}, {&act->q_raw, N * HD}, {&act->k_raw, N * KVD},
        {&act->q_rstd, N * model->H}, {&act->k_rstd, N * model->KV}, {&act->q, N * HD},
        {&act->att, N * HD}, {&act->lse, N * model->H}, {&act->x_mid, NC}, {&act->norm2, NC},
        {&act->rstd2, N}, {&act->gate, expert_rows * model->F}, {&act->up, expert_rows * model->F},
        {&r->prob, N * model->E}, {&r->mix, NK}, {&r->dmix, NK},
        {&act->gathered, NK * model->C}, {&act->expert_out, NK * model->C}};
    take_all(a, array, sizeof array / sizeof *array);
    r->first = take(a, model->E + model->S + 1);
    r->choice = take(a, NK);
    r->row = take(a, NK);
    r->token = take(a, NK);
}

// Everything that a pass over max_rows rows needs, in one block; called twice, first to count and
// then to place. In training every layer keeps its own activations. With RECOMPUTE a layer keeps
// only its input x; the rest is computed again when its backward pass needs it, in memory that all
// layers share: up to a third more work for a fraction of the memory. In inference all layers share
// x too, and there are no gradients; only k and v are kept per layer, if room > 0: the KV cache.
static void layout(const Model *model, Acts *a) {
    bool cached = a->room > 0, has_gradients = a->mode != INFERENCE;
    size_t N = a->max_rows, NC = N * model->C, HD = model->H * model->D, KVD = model->KV * model->D;
    size_t NK = N * model->K, wide = (NK + N * model->S) * model->F, E = model->E;
    size_t angles = (cached ? a->room : N) * model->D / 2;
    size_t kv_rows = cached ? a->n_slots * a->room : N;

    a->size = 0;
    for (size_t l = 0; l <= model->L; l++) {
        LayerActs *act = &a->layer[l];
        bool owner = l == 0 || a->mode == TRAINING, last = l == model->L;
        if (!owner) *act = a->layer[0];
        if (owner || has_gradients) act->x = take(a, NC);
        if (owner && !last) layout_layer(model, a, act);
        if ((owner || cached) && !last) {
            act->k = take(a, kv_rows * KVD);
            act->v = take(a, kv_rows * KVD);
        }

        act->route.count = take(a, E); // of every layer, also where they share the rest
    }

    const Array array[] = {
        {&a->cosine, angles}, {&a->sine, angles}, {&a->final_norm, NC}, {&a->final_rstd, N},
        {&a->out_norm, NC}, {&a->logits, (has_gradients ? N : a->n_slots) * model->V}, {&a->lse, N},
        {&a->logp, N}, {&a->dlogp, N}, {&a->v_raw, N * KVD}, {&a->score, N * E}, {&a->h, wide}};
    const Array gradient[] = {
        {&a->dx, NC}, {&a->dnorm, NC}, {&a->dout_norm, NC}, {&a->datt, N * HD}, {&a->dq, N * HD},
        {&a->dq_raw, N * HD}, {&a->dk, N * KVD}, {&a->dv, N * KVD}, {&a->dk_raw, N * KVD},
        {&a->dh, wide}, {&a->dgate, wide}, {&a->dexpert_out, NK * model->C},
        {&a->dgathered, NK * model->C}, {&a->dprob, N * E}, {&a->dscore, N * E}};
    a->out_row = take(a, N);
    a->target = take(a, N);
    take_all(a, array, sizeof array / sizeof *array);
    if (has_gradients) take_all(a, gradient, sizeof gradient / sizeof *gradient);
}

// The angle by which plane i turns from one position to the next: theta^(-2i/D). YaRN (Peng et al.
// 2023) leaves planes alone that turn more than beta_fast times within the original context, slows
// planes that turn less than beta_slow times by `factor`, and interpolates linearly in between.
static double rope_frequency(const Config *c, size_t i) {
    double D = c->head_dim, original = c->yarn_original_max;
    double log_theta = log(c->rope_theta), frequency = exp(-log_theta * 2 * i / D);
    if (!c->yarn || c->max_position_embeddings <= original) return frequency;

    // plane D log(original / (2 pi n)) / (2 log theta) turns n times within the original context
    double low = floor(D * log(original / (2 * M_PI * c->yarn_beta_fast)) / (2 * log_theta));
    double high = ceil(D * log(original / (2 * M_PI * c->yarn_beta_slow)) / (2 * log_theta));
    low = fmax(low, 0);
    high = fmin(high, D / 2 - 1);
    double ramp = fmin(fmax((i - low) / fmax(high - low, 0.001), 0), 1);
    return frequency * (1 - ramp + ramp / c->yarn_factor);
}

// cos and sin of each plane's angle at positions 0 .. n - 1: (n, D / 2) each.
static void rope_tables(const Config *c, float *cosine, float *sine, size_t n) {
    size_t D2 = c->head_dim / 2;
    double scale = c->yarn ? c->yarn_attention_factor : 1;
    for (size_t i = 0; i < D2; i++) {
        double frequency = rope_frequency(c, i);
        for (size_t t = 0; t < n; t++) { // the angle in double: a float loses digits as t grows
            cosine[t * D2 + i] = scale * cos(t * frequency);
            sine[t * D2 + i] = scale * sin(t * frequency);
        }
    }
}

// Activations without memory: `size` says how many floats they would need.
static Acts *acts_plan(const Model *model, enum Mode mode, size_t N, size_t slots, size_t room) {
    Acts *a = xcalloc(1, sizeof *a);
    *a = (Acts){.mode = mode, .max_rows = N, .n_slots = slots, .room = room,
                .aux_share = 1, .layer = xcalloc(model->L + 1, sizeof *a->layer)};
    layout(model, a);
    return a;
}

// Activations for passes of up to N tokens. In training slots and room are 0. In inference there is
// a KV cache of so many slots, sequences, with `room` positions each; with room 0 there is none.
static Acts *acts_new(const Model *model, enum Mode mode, size_t N, size_t slots, size_t room) {
    Acts *a = acts_plan(model, mode, N, slots, room);
    a->memory = new_floats(a->size);
    layout(model, a);
    rope_tables(&model->config, a->cosine, a->sine, room ? room : N);
    return a;
}

static void acts_free(Acts *a) {
    free(a->memory);
    free(a->layer);
    free(a);
}

// ---- one block ----------------------------------------------------------------------------------

// y (n, out) = x (n, in) w^T; y += with `add`.
static void project(float *y, const float *x, const Tensor *w, size_t n, bool add) {
    if (n == 0) return; // an expert that no token chose
    if (w->weight) op->linear_forward(y, x, w->weight, n, w->cols, w->rows, add);
    else op->packed_linear(y, x, w, n, add);
}

// dy (n, out), x (n, in). dx (n, in) is overwritten, or += with `add`; w's gradient accumulates.
static void project_backward(float *dx, const float *dy, const float *x, const Tensor *w, size_t n,
                             bool add) {
    if (n == 0) return;
    op->linear_backward(dx, w->grad, dy, x, w->weight, n, w->cols, w->rows, add);
}

// y (n, width) = RMSNorm of x, or a copy of x if `norm` is NULL. y may be x. Keeps rstd (n).
static void normalise(const Model *model, float *y, float *rstd, const float *x,
                      const Tensor *norm, size_t n, size_t width) {
    float eps = model->config.rms_norm_eps;
    if (norm) op->rmsnorm_forward(y, rstd, x, norm->weight, n, width, eps);
    else if (y != x) memcpy(y, x, n * width * sizeof *y);
}

// Accumulates dx (n, width) and the gradient of the weights. Without weights y = x, so dx += dy.
static void normalise_backward(float *dx, const float *dy, const float *x, const float *rstd,
                               const Tensor *norm, size_t n, size_t width) {
    if (norm) op->rmsnorm_backward(dx, norm->grad, dy, x, norm->weight, rstd, n, width);
    else for (size_t i = 0; i < n * width; i++) dx[i] += dy[i];
}

// Rotation and attention for the sequences b .. b + B - 1, which all have the same past. With a KV
// cache their k and v move into their slots first.
static void attend(const Model *model, Acts *a, int l, size_t b, size_t B) {
    LayerActs *act = &a->layer[l];
    size_t T = a->T, H = model->H, KV = model->KV, D = model->D;
    size_t row = b * T; // of the first token of sequence b in q, k_raw, v_raw and att
    size_t past = a->room ? (size_t)a->past[b] : 0;
    size_t kv_row = a->room ? a->slot[b] * a->room : row; // of its position 0 in act->k and act->v
    float *q = act->q + row * H * D;                      // (B, T, H, D)
    float *k = act->k + (kv_row + past) * KV * D;         // (B, T, KV, D) the new ones
    float *v = act->v + (kv_row + past) * KV * D;         // (B, T, KV, D)
    const float *cosine = a->cosine + past * (D / 2);     // (T, D / 2)
    const float *sine = a->sine + past * (D / 2);         // (T, D / 2)

    if (a->room) {
        memcpy(k, act->k_raw + row * KV * D, B * T * KV * D * sizeof *k);
        memcpy(v, a->v_raw + row * KV * D, B * T * KV * D * sizeof *v);
    }
    op->rope(q, cosine, sine, 1, B, T, H, D);
    op->rope(k, cosine, sine, 1, B, T, KV, D);

    op->attention_forward(act->att + row * H * D, act->lse + row * H, q, act->k + kv_row * KV * D,
                          act->v + kv_row * KV * D, B, T, past, H, KV, D);
}

// x_mid = x + o_proj(attention(norm1(x)))
static void attention_block_forward(const Model *model, Acts *a, int l) {
    const Layer *layer = &model->layer[l];
    LayerActs *act = &a->layer[l];
    size_t N = a->N, C = model->C, H = model->H, KV = model->KV, D = model->D;
    float *k = a->room ? act->k_raw : act->k; // (N, KV, D) attend() moves it into the cache
    float *v = a->room ? a->v_raw : act->v;   // (N, KV, D) it has no norm and is not rotated

    normalise(model, act->norm1, act->rstd1, act->x, layer->attn_norm, N, C);
    project(act->q_raw, act->norm1, layer->q, N, false);
    project(act->k_raw, act->norm1, layer->k, N, false);
    project(v, act->norm1, layer->v, N, false);
    normalise(model, act->q, act->q_rstd, act->q_raw, layer->q_norm, N * H, D);
    normalise(model, k, act->k_rstd, act->k_raw, layer->k_norm, N * KV, D);

    // In training all sequences begin at position 0, together. In a KV cache each has its own past.
    if (a->room && a->B > 1) {
        #pragma omp parallel for num_threads(n_threads) schedule(dynamic)
        for (size_t b = 0; b < a->B; b++) attend(model, a, l, b, 1);
    } else {
        attend(model, a, l, 0, a->B);
    }

    memcpy(act->x_mid, act->x, N * C * sizeof(float));
    project(act->x_mid, act->att, layer->o, N, true);
}

// a->dx comes in as the gradient of x_mid and goes out as that of x: the residual path passes it on
// unchanged, the path through attention adds to it. The forward steps, from the last to the first.
static void attention_block_backward(const Model *model, Acts *a, int l) {
    const Layer *layer = &model->layer[l];
    LayerActs *act = &a->layer[l];
    size_t N = a->N, H = model->H, KV = model->KV, D = model->D;

    project_backward(a->datt, a->dx, act->att, layer->o, N, false);
    op->attention_backward(a->dq, a->dk, a->dv, a->datt, act->att, act->lse, act->q, act->k, act->v,
                           a->B, a->T, H, KV, D);

    op->rope(a->dq, a->cosine, a->sine, -1, a->B, a->T, H, D);
    op->rope(a->dk, a->cosine, a->sine, -1, a->B, a->T, KV, D);
    memset(a->dq_raw, 0, N * H * D * sizeof(float));
    memset(a->dk_raw, 0, N * KV * D * sizeof(float));
    normalise_backward(a->dq_raw, a->dq, act->q_raw, act->q_rstd, layer->q_norm, N * H, D);
    normalise_backward(a->dk_raw, a->dk, act->k_raw, act->k_rstd, layer->k_norm, N * KV, D);

    project_backward(a->dnorm, a->dv, act->norm1, layer->v, N, false);
    project_backward(a->dnorm, a->dq_raw, act->norm1, layer->q, N, true);
    project_backward(a->dnorm, a->dk_raw, act->norm1, layer->k, N, true);
    normalise_backward(a->dx, a->dnorm, act->x, act->rstd1, layer->attn_norm, N, model->C);
}

// The balance loss of one layer in one pass, see balance_loss: over all B sequences together, with
// scale = coefficient * E, or, in MiniMind2 (seq_aux), the mean over the sequences, with scale =
// coefficient * E / K. aux_share weights the pass. Accumulates count (E), dprob (N, E) if not NULL.
static double layer_balance(const Model *model, const Acts *a, const Routing *r, int *count,
                            float *dprob) {
    size_t B = a->B, T = a->T, E = model->E, K = model->K;
    size_t group = model->config.seq_aux ? 1 : B; // sequences together
    double scale = model->config.router_aux_loss_coef * a->aux_share * E, loss = 0;
    if (model->config.seq_aux) scale = scale / K / B;
    if (!a->length) return 0; // no balance loss is needed
    for (size_t b = 0; b < B; b += group)
        loss += balance_loss(count, dprob ? dprob + b * T * E : NULL, r->prob + b * T * E,
                             r->choice + b * T * K, a->length + b, group, T, E, K, scale);
    return loss;
}

// Sends each token to its K experts: fills act->route and act->gathered. first continues with the
// shared experts, whose rows are all N tokens: so in gate, up and h expert e has the rows first[e]
// .. first[e + 1] - 1, whatever its kind.
static void route_tokens(const Model *model, Acts *a, int l) {
    LayerActs *act = &a->layer[l];
    Routing *r = &act->route;
    size_t N = a->N, E = model->E, K = model->K;

    r->first[0] = 0;
    if (E) {
        project(a->score, act->norm2, model->layer[l].router, N, false);
        op->softmax_forward(r->prob, a->score, N, E);
        router_forward(r->mix, r->choice, r->prob, N, E, K, model->config.norm_topk_prob);
        memset(r->count, 0, E * sizeof *r->count);
        a->aux_loss += layer_balance(model, a, r, r->count, NULL);
        sort_by_expert(r->first, r->row, r->token, r->choice, N, E, K);
        gather_rows(act->gathered, act->norm2, r->token, N * K, model->C);
    }
    for (size_t e = E; e < E + model->S; e++) r->first[e + 1] = r->first[e] + (int)N;
}

// x_out = x_mid + sum over experts of factor * down(silu(gate(norm2)) * up(norm2)). Shared experts
// have the factor 1.
static void ffn_block_forward(const Model *model, Acts *a, int l) {
    const Layer *layer = &model->layer[l];
    LayerActs *act = &a->layer[l];
    float *x_out = a->layer[l + 1].x; // (N, C)
    size_t N = a->N, C = model->C, F = model->F;

    normalise(model, act->norm2, act->rstd2, act->x_mid, layer->ffn_norm, N, C);
    memcpy(x_out, act->x_mid, N * C * sizeof(float));
    route_tokens(model, a, l);

    for (size_t e = 0; e < model->E + model->S; e++) {
        const Expert *expert = &layer->expert[e];
        bool routed = e < model->E;
        size_t at = act->route.first[e];         // its first row
        size_t n = act->route.first[e + 1] - at; // and how many it has
        const float *in = routed ? act->gathered + at * C : act->norm2;    // (n, C)
        float *gate = act->gate + at * F;                                  // (n, F)
        float *up = act->up + at * F;                                      // (n, F)
        float *h = a->h + at * F;                                          // (n, F)
        project(gate, in, expert->gate, n, false);
        project(up, in, expert->up, n, false);
        op->swiglu_forward(h, gate, up, n * F);

        if (routed) project(act->expert_out + at * C, h, expert->down, n, false);
        else project(x_out, h, expert->down, n, true);
    }

    if (model->E)
        op->combine_forward(x_out, act->expert_out, act->route.mix, act->route.row, N, model->K, C);
}

// The router's gradient: dmix, filled by combine_backward, and the balance loss give dprob;
// softmax_backward gives dscore; project_backward gives the gradient of the router's matrix, and
// adds that of norm2 to a->dnorm.
static void route_backward(const Model *model, Acts *a, int l) {
    LayerActs *act = &a->layer[l];
    Routing *r = &act->route;
    size_t N = a->N, E = model->E, K = model->K;

    memset(a->dprob, 0, N * E * sizeof(float));
    layer_balance(model, a, r, NULL, a->dprob);
    router_backward(a->dprob, r->dmix, r->mix, r->choice, r->prob, N, E, K,
                    model->config.norm_topk_prob);
    softmax_backward(a->dscore, a->dprob, r->prob, N, E);
    project_backward(a->dnorm, a->dscore, act->norm2, model->layer[l].router, N, true);
}

// a->dx comes in as the gradient of x_out and goes out as that of x_mid.
static void ffn_block_backward(const Model *model, Acts *a, int l) {
    const Layer *layer = &model->layer[l];
    LayerActs *act = &a->layer[l];
    size_t N = a->N, C = model->C, F = model->F;

    memset(a->dnorm, 0, N * C * sizeof(float));
    if (model->E)
        op->combine_backward(a->dexpert_out, act->route.dmix, a->dx, act->expert_out,
                             act->route.mix, act->route.row, N, model->K, C);

    for (size_t e = 0; e < model->E + model->S; e++) {
        const Expert *expert = &layer->expert[e];
        bool routed = e < model->E;
        size_t at = act->route.first[e];         // its first row
        size_t n = act->route.first[e + 1] - at; // and how many it has
        const float *in = routed ? act->gathered + at * C : act->norm2;    // (n, C)
        float *din = routed ? a->dgathered + at * C : a->dnorm;            // (n, C)
        const float *dout = routed ? a->dexpert_out + at * C : a->dx;      // (n, C)
        const float *gate = act->gate + at * F;                            // (n, F)
        const float *up = act->up + at * F;                                // (n, F)
        float *h = a->h + at * F;                                          // (n, F)
        float *dh = a->dh + at * F;                                        // (n, F)
        float *dgate = a->dgate + at * F;                                  // (n, F)
        float *dup = dh; // dh is read for the last time when dup is written over it

        op->swiglu_forward(h, gate, up, n * F); // h was not kept
        project_backward(dh, dout, h, expert->down, n, false);
        op->swiglu_backward(dgate, dup, dh, gate, up, n * F);
        project_backward(din, dgate, in, expert->gate, n, !routed);
        project_backward(din, dup, in, expert->up, n, true);
    }

    if (model->E) {
        // The gradient of gather_rows(), as a sum per token: each output row has one owner.
        op->combine_forward(a->dnorm, a->dgathered, NULL, act->route.row, N, model->K, C);
        route_backward(model, a, l);
    }
    normalise_backward(a->dx, a->dnorm, act->x_mid, act->rstd2, layer->ffn_norm, N, C);
}

static void block_forward(const Model *model, Acts *a, int l) {
    attention_block_forward(model, a, l);
    ffn_block_forward(model, a, l);
}

// ---- the whole model ----------------------------------------------------------------------------

// Runs ids (B, T) through all blocks, to a->final_norm (N, C). With a KV cache, row t of sequence b
// is position past[b] + t of slot[b], and attends to what the cache holds before it; otherwise past
// and slot are NULL. length (B): see Acts; NULL where no balance loss is needed.
static void model_forward(const Model *model, Acts *a, const int *ids, const int *length, size_t B,
                          size_t T, const int *past, const int *slot) {
    a->ids = ids;
    a->length = length;
    a->past = past;
    a->slot = slot;
    a->B = B;
    a->T = T;
    a->N = B * T;
    a->aux_loss = 0;

    float *x = a->layer[0].x; // (N, C)
    if (model->embed->weight) gather_rows(x, model->embed->weight, ids, a->N, model->C);
    else for (size_t n = 0; n < a->N; n++) op->unpack_row(x + n * model->C, model->embed, ids[n]);

    for (int l = 0; l < (int)model->L; l++) block_forward(model, a, l);

    const float *x_out = a->layer[model->L].x; // (N, C)
    normalise(model, a->final_norm, a->final_rstd, x_out, model->norm, a->N, model->C);
}

// Logits for the rows a->out_row[0 .. n_out - 1] only: a row without a target costs nothing here,
// and decoding needs the last position alone. The output matrix is the embedding.
static void head_forward(const Model *model, Acts *a) {
    gather_rows(a->out_norm, a->final_norm, a->out_row, a->n_out, model->C);
    project(a->logits, a->out_norm, model->embed, a->n_out, false);
}

typedef struct { // the sequences of one optimiser step, one per row
    size_t rows, T;    // sequences, and the tokens of the longest; shorter ones are padded
    int *ids, *target; // (rows, T); target -1: nothing to learn here
    int *length;       // (rows) real tokens; the rest of a row is padding
    size_t n_targets;  // in the whole step
    int *at;           // (n) target i of the current pass is target[at[i]]; at[i] / T is its row
} Batch;

// The forward pass up to logp, for training and for measuring: rows row .. row + rows - 1 of a
// batch. A position whose target is -1 does not count: a->logp[i], i < n_out, belongs to the target
// at position a->out_row[i] of this pass, which is position b->at[i] of the whole batch.
static void logp_of(const Model *model, Acts *a, const Batch *b, size_t row, size_t rows) {
    size_t from = row * b->T;
    const int *target = b->target + from; // (rows, T)
    model_forward(model, a, b->ids + from, b->length + row, rows, b->T, NULL, NULL);

    a->n_out = 0;
    for (size_t n = 0; n < rows * b->T; n++) {
        if (target[n] < 0) continue;
        a->out_row[a->n_out] = (int)n;
        a->target[a->n_out] = target[n];
        b->at[a->n_out] = (int)(from + n);
        a->n_out++;
    }

    head_forward(model, a);
    op->logp_forward(a->logp, a->lse, a->logits, a->target, a->n_out, model->V);
}

// The one backward pass: from a->dlogp to the gradients of all parameters, which it accumulates.
// The embedding gets two contributions, as output matrix first and as input at the end.
static void model_backward(const Model *model, Acts *a) {
    size_t C = model->C;
    float *dlogits = a->logits; // (n_out, V) written over the logits
    op->logp_backward(dlogits, a->dlogp, a->lse, a->logits, a->target, a->n_out, model->V);
    project_backward(a->dout_norm, dlogits, a->out_norm, model->embed, a->n_out, false);

    memset(a->dnorm, 0, a->N * C * sizeof(float));
    gather_rows_backward(a->dnorm, a->dout_norm, a->out_row, a->n_out, C);
    memset(a->dx, 0, a->N * C * sizeof(float));
    normalise_backward(a->dx, a->dnorm, a->layer[model->L].x, a->final_rstd, model->norm, a->N, C);

    double aux_loss = a->aux_loss; // restored below: block_forward() would add it a second time
    for (int l = (int)model->L - 1; l >= 0; l--) {
        // Block L - 1 need not run again: its activations are still in the shared memory.
        if (a->mode == RECOMPUTE && l + 1 < (int)model->L) block_forward(model, a, l);
        ffn_block_backward(model, a, l);
        attention_block_backward(model, a, l);
    }
    a->aux_loss = aux_loss;
    gather_rows_backward(model->embed->grad, a->dx, a->ids, a->N, C);
}

// =================================================================================================
// 4. Objectives
//
// An objective is a function of logp, the log-probabilities of the targets, and of nothing else in
// the model. It returns its loss and fills dlogp = d loss / d logp; model_backward() does the rest.
//
// An optimiser step may take its rows in several passes, so that a large step takes no more memory
// than a small one. An objective sees the n targets of one pass, where target i is element b->at[i]
// of the step's (rows, T) tokens. It divides by the targets (or pairs) of the whole step, never by
// those of its pass: then losses and gradients of the passes add up to those of one big pass.
// =================================================================================================

// ids (n + 1) gives in (T) and target (T): in[t] = ids[t], target[t] = ids[t + 1]. An id that is to
// be learned carries the bit TRAINED (see tokenizer.c); any other target is -1. Positions t >= n
// are padding: id 0, target -1. Returns the number of targets. Labels are shifted only here.
static size_t shift_labels(int *in, int *target, const int *ids, size_t n, size_t T) {
    size_t n_targets = 0;
    for (size_t t = 0; t < T; t++) {
        int next = t < n ? ids[t + 1] : 0;
        in[t] = t < n ? ids[t] & ~TRAINED : 0;
        target[t] = next & TRAINED ? next & ~TRAINED : -1;
        n_targets += target[t] >= 0;
    }
    return n_targets;
}

// Writes n + 1 ids into row r of the batch, padded to b->T. Returns the number of its targets.
static size_t batch_set_row(Batch *b, size_t r, const int *ids, size_t n) {
    size_t n_targets = shift_labels(b->ids + r * b->T, b->target + r * b->T, ids, n, b->T);
    b->length[r] = (int)n;
    b->n_targets += n_targets;
    return n_targets;
}

typedef struct Figures Figures; // numbers to report, by name; see below

// Reads logp (n), overwrites dlogp (n), returns the loss. `own` is what this objective needs beyond
// the batch, or NULL; `more` gets further figures to report.
typedef double Objective(float *dlogp, const float *logp, size_t n, const Batch *b, const void *own,
                         Figures *more);

// Predicting the next token: pretraining, and supervised fine-tuning (SFT), where only the
// assistant's tokens are targets:
//
//     loss = -sum of logp / n_targets,   dlogp = -1 / n_targets
static double next_token_loss(float *dlogp, const float *logp, size_t n, const Batch *b,
                              const void *own, Figures *more) {
    (void)own; // unused
    (void)more;
    double loss = 0;
    for (size_t i = 0; i < n; i++) {
        loss -= logp[i] / b->n_targets;
        dlogp[i] = -1.0f / b->n_targets;
    }
    return loss;
}

// Numbers to report, by name: of one optimiser step, or the result of a measurement.
struct Figures {
    struct {
        const char *name;
        double value, error; // standard error, or NAN
    } figure[12];
    int n;
    double watched; // of a measurement: what --until compares; NAN: there was nothing to measure
    bool less_is_better;
};

// Adds to the figure called `name`, which begins at 0.
static void add_figure(Figures *f, const char *name, double value, double error) {
    int i = 0;
    while (i < f->n && strcmp(f->figure[i].name, name)) i++;
    if (i == f->n) f->n++;
    f->figure[i].name = name;
    f->figure[i].value += value;
    f->figure[i].error = error;
}

typedef struct {
    double beta;     // larger: the model stays closer to the reference
    double *ref_sum; // (rows) the reference's log-probability of all targets of a row
    // -log-probability (in nats: the natural log) of every training and every held-out document
    // under the reference, computed once; chapter 7 copies those of a step into ref_sum.
    double *train_nats, *held_nats; // (documents) each
} Preferences;

// Direct preference optimisation (Rafailov et al. 2023). Pair j is an answer that was chosen, row
// 2j, and one that was rejected, row 2j + 1. Let c and r be the sums of their log-probabilities
// under the model, and c_ref and r_ref those under the reference: the model before the first step.
//
//     margin = beta ((c - c_ref) - (r - r_ref)),   loss = mean over pairs of -log sigmoid(margin)
//
// At step 0 every margin is 0 and the loss is log 2 = 0.693. With m = margin the loss of a pair is
// log(1 + e^-m), whose derivative is -e^-m / (1 + e^-m) = -1 / (1 + e^m) = -sigmoid(-m), and m
// changes with each token of the chosen answer by +beta, of the rejected one by -beta:
//
//     dlogp = -/+ beta sigmoid(-margin) / pairs   on each token of the chosen / rejected answer
//
// -log sigmoid(m) = log(1 + e^-|m|) - min(m, 0), which cannot overflow. A pass holds whole pairs.
static double dpo_loss(float *dlogp, const float *logp, size_t n, const Batch *b, const void *own,
                       Figures *more) {
    const Preferences *p = own;
    double pairs = b->rows / 2.0, loss = 0;
    for (size_t i = 0, end; i < n; i = end) {
        size_t pair = b->at[i] / b->T / 2;
        double sum[2] = {0}; // chosen, rejected
        for (end = i; end < n && b->at[end] / b->T / 2 == pair; end++)
            sum[b->at[end] / b->T % 2] += logp[end];

        double reward_chosen = p->beta * (sum[0] - p->ref_sum[2 * pair]);
        double reward_rejected = p->beta * (sum[1] - p->ref_sum[2 * pair + 1]);
        double margin = reward_chosen - reward_rejected;
        double slope = p->beta / (1 + exp(margin)) / pairs;
        loss -= (fmin(margin, 0) - log1p(exp(-fabs(margin)))) / pairs;
        for (size_t k = i; k < end; k++) dlogp[k] = b->at[k] / b->T % 2 ? slope : -slope;

        add_figure(more, "margin", margin / pairs, NAN);
        add_figure(more, "accuracy", (margin > 0) / pairs, NAN);
        add_figure(more, "logp_chosen", sum[0] / pairs, NAN);
        add_figure(more, "logp_rejected", sum[1] / pairs, NAN);
    }
    return loss;
}

// =================================================================================================
// 5. The optimiser
//
// One step: the norm of all gradients together, the learning rate of the schedule, and AdamW on
// each tensor.
// =================================================================================================

typedef struct AdamW {
    // beta1, beta2: how much of m and of v is kept at each step (b1, b2 in the formula below)
    double lr, beta1, beta2, eps, weight_decay;
    double clip; // largest gradient norm; 0: no limit
    long step;   // t in the formula; 1 for the first step
} AdamW;

// Cosine from `base` down to a tenth of it, MiniMind's schedule: large steps first, small ones at
// the end. Warm-up multiplies it by step / warmup while the moment estimates are still noisy.
static double schedule(double base, long step, long total, long warmup) {
    double rise = step < warmup ? (double)step / warmup : 1;
    return rise * base * (0.1 + 0.45 * (1 + cos(M_PI * step / total)));
}

static double sum_of_squares(const float *x, size_t n) {
    double sum = 0;
    for (size_t i = 0; i < n; i++) sum += (double)x[i] * x[i];
    return sum;
}

// AdamW (Loshchilov and Hutter 2019), with step number t = 1, 2, ...:
//
//     w -= lr decay w;   m = b1 m + (1 - b1) g;   v = b2 v + (1 - b2) g^2
//     w -= lr (m / (1 - b1^t)) / (sqrt(v / (1 - b2^t)) + eps)
//
// m and v are running means of g and g^2 that begin as 0. After t steps m = (1 - b1) sum_i b1^(t-i)
// g_i, i = 1 .. t. These coefficients add up to 1 - b1^t, not to 1; dividing by that makes m a true
// mean. At t = 1 the corrected m is g and the corrected v is g^2, so the first step has size lr and
// the direction -sign(g). Later the quotient is about +1 or -1 where the gradient always has the
// same sign, whatever its size, and near 0 where the sign keeps flipping. Weight decay is
// "decoupled": it acts on w itself and not through g, where v would scale it.
//
// All gradients are multiplied by `factor` first. w, g, m, v (n); clears g.
static void adamw_update(float *w, float *g, float *m, float *v, size_t n, const AdamW *o,
                         double decay, double factor) {
    float b1 = o->beta1, b2 = o->beta2, eps = o->eps, shrink = factor;
    float rate = o->lr / (1 - pow(o->beta1, o->step)); // lr, with the correction of m
    float v_correction = 1 / (1 - pow(o->beta2, o->step));
    float keep = 1 - o->lr * decay; // what weight decay leaves of w

    for (size_t i = 0; i < n; i++) {
        float clipped = g[i] * shrink;
        m[i] = b1 * m[i] + (1 - b1) * clipped;
        v[i] = b2 * v[i] + (1 - b2) * clipped * clipped;
        w[i] = w[i] * keep - rate * m[i] / (sqrtf(v[i] * v_correction) + eps);
        g[i] = 0;
    }
}

// One step for all tensors. If the norm of the gradients is above the limit, all are scaled down to
// it: one unusual batch cannot change the weights too much. (1e-6 as in PyTorch.)
static void adamw_step(Model *model, const AdamW *o, double norm) {
    double factor = o->clip > 0 ? fmin(1, o->clip / (norm + 1e-6)) : 1;
    for (Tensor *t = model->tensor; t < model->tensor + model->n_tensors; t++)
        op->adamw_update(t->weight, t->grad, t->moment1, t->moment2, tensor_size(t), o,
                         t->decay ? o->weight_decay : 0, factor);
}

// The definitions; see "one switch" in chapter 2.
static const Ops plain = {
    linear_forward, linear_backward, rmsnorm_forward, rmsnorm_backward, rope, attention_forward,
    attention_backward, swiglu_forward, swiglu_backward, softmax_forward, combine_forward,
    combine_backward, logp_forward, logp_backward, sum_of_squares, adamw_update, NULL, NULL, NULL,
};

// =================================================================================================
// 6. Data
//
// Training reads token ids, not text. A list of files is tokenised once, into out/cache/HASH.ids,
// where HASH is computed from the data, the tokenizer and the settings of the rows: if one of them
// changes, a new file is made. (A change of this program is not noticed: raise CACHE_VERSION, or
// delete out/cache.) The file is mapped into memory, so that data larger than the memory
// works too. Beside it, HASH.ids.documents says where each document is.
//
//     pretrain   {"text"}, or plain text:  <|im_start|> text <|im_end|>  one after the other, cut
//                into windows of T tokens anywhere; a window may hold several documents
//     sft        {"conversations"}: one row each, of which only the assistant's words are trained
//     dpo        {"chosen", "rejected"}: two rows each
//
// pretrain and sft accept both kinds of record, also mixed: old data in the mix reduces forgetting.
// Without a file to measure on, every 50th document (of plain text: every 50th block of 4 KB) is
// held out: measured on, never trained on. An id that is trained carries the mark TRAINED, which
// tokenizer.c's chat chapter sets.
// =================================================================================================

enum { HOLD_OUT_EVERY = 50, TEXT_BLOCK = 4096, CACHE_VERSION = 6 };

// A unit of training: a window of the stream of ids, one document, or two documents as a pair. The
// values of DOCUMENT and PAIR are also used as numbers: the documents (and rows) of one unit.
enum Unit { WINDOW, DOCUMENT = 1, PAIR = 2 };

typedef struct {
    size_t from, to; // its ids
    double bytes;    // of its text; for a conversation, of its trained tokens, as they are spelled
    double floor;    // -log2 p of its text, if the data gives it ("bits"); else NAN
} Document;

typedef struct { // tokenised files, mapped from the cache
    const int *id;            // (n_ids)
    const Document *document; // (n_mapped) the first n are used
    size_t n_ids, n, n_mapped;
} Tokens;

// Which documents of the files are taken: all, all but every 50th, or every 50th.
enum Part { ALL, TRAIN_PART, HELD_PART };

typedef struct { // tokenising in progress
    Tokenizer *tok;
    enum Unit unit;
    enum Part part;
    size_t T;            // most targets of a row
    Ids ids;             // not yet in the file (Ids: a list of ints that grows)
    Document *document;  // (n) all so far
    size_t n, cap, n_ids; // n_ids: in the file
    size_t n_cut, n_skipped, first_skipped; // rows cut to T targets; records without a target, and
                                            // the line of the first
    size_t n_marked, first_marked; // records in which a user's text spells a turn mark
} Builder;

// Makes a document of the ids since the last one. A row that is too long is cut. `bytes` is the
// size of its text; if it is 0, or the row was cut, the bytes of the trained tokens are counted
// instead. Returns false if there are none: nothing to train.
static bool end_document(Builder *b, double bytes, double floor) {
    Ids *ids = &b->ids;
    size_t from = b->n ? b->document[b->n - 1].to - b->n_ids : 0;
    if (b->unit != WINDOW && ids->n - from > b->T + 1) {
        ids->n = from + b->T + 1;
        b->n_cut++;
        bytes = 0;
        floor = NAN;
    }
    bool count = bytes == 0;
    for (size_t i = from + 1; count && i < ids->n; i++)
        if (ids->id[i] & TRAINED) bytes += b->tok->token[ids->id[i] & ~TRAINED].len;

    b->document = grow(b->document, &b->cap, b->n + 1, sizeof *b->document);
    b->document[b->n++] = (Document){b->n_ids + from, b->n_ids + ids->n, bytes, floor};
    return bytes > 0;
}

// Adds a text, or a block of a plain-text file. The start token is added only if the block begins
// the file, the end token only if it ends the file.
static bool add_text(Builder *b, const char *s, size_t n, bool begins, bool ends, double floor) {
    Ids *ids = &b->ids;
    size_t from = ids->n;
    if (begins && b->tok->bos >= 0) ids_push(ids, b->tok->bos);
    tokenizer_encode(b->tok, s, n, true, ids);
    if (ends && b->tok->eos >= 0) ids_push(ids, b->tok->eos);
    for (size_t i = from; i < ids->n; i++) ids->id[i] |= TRAINED;
    return end_document(b, n, floor);
}

// From tokenizer.c: a Reader holds one record of a data file, `json`, or for plain text `line` with
// `len` bytes; `path` and `number` (the line) are for messages. json_get() returns a member or
// NULL. encode_chat(tok, record, messages, prompt, think, special, out) appends the ids of a
// conversation; `prompt`: up to where the assistant begins to speak (`think`: to think); `special`:
// special tokens spelled in messages are tokens, not text. Returns NULL, or what is wrong.

// Adds the list of messages `key` of a record.
static bool add_chat(Builder *b, const Reader *r, const char *key) {
    const Json *messages = json_get(r->json, key);
    const char *error = encode_chat(b->tok, r->json, messages, false, false, true, &b->ids);
    if (error) die("%s:%zu: \"%s\": %s", r->path, r->number, key, error);
    return end_document(b, 0, NAN);
}

// False if the record has nothing to train.
static bool add_record(Builder *b, const Reader *r) {
    const Json *text = json_get(r->json, "text");
    const Json *bits = json_get(r->json, "bits"); // the floor, where the source knows it
    bool known = bits && bits->type == JSON_NUMBER;
    if (b->unit == PAIR) return add_chat(b, r, "chosen") && add_chat(b, r, "rejected");
    if (!text || text->type != JSON_STRING) return add_chat(b, r, "conversations");
    return add_text(b, text->s, text->len, true, true, known ? bits->number : NAN);
}

// Does a message of this record that is not the assistant's spell the begin or the end of a turn?
static bool spells_turn_mark(const Json *record) {
    for (int i = 0; i < MESSAGE_LISTS; i++) { // "conversations", "chosen", ...
        const Json *list = json_get(record, message_lists[i]);
        for (const Json *m = list ? list->child : NULL; m; m = m->next) {
            const char *s = json_text(m, "content");
            if (!s || role_is(m, "assistant")) continue;
            if (strstr(s, "<|im_start|>") || strstr(s, "<|im_end|>")) return true;
        }
    }
    return false;
}

// Adds the documents of the files in a list. Their ids go to the cache at once: memory stays small.
static void add_files(Builder *b, const char *list, FILE *cache) {
    Reader r = reader_open(list); // reads JSONL records, or plain text in blocks
    r.block = TEXT_BLOCK;
    for (size_t i = 0; reader_next(&r); i++) { // i: documents so far, taken or not
        bool held = i % HOLD_OUT_EVERY == HOLD_OUT_EVERY - 1;
        bool taken = b->part == ALL || held == (b->part == HELD_PART);
        bool alone = b->part == HELD_PART; // a held-out block of a plain text has no neighbours
        size_t n_before = b->n;

        if (r.kind == PLAIN && b->unit != WINDOW)
            die("%s: is no JSONL, as this stage needs", r.path);
        if (taken && r.kind == PLAIN)
            add_text(b, r.line, r.len, r.begins || alone, r.ends || alone, NAN);
        if (taken && r.kind == JSONL && spells_turn_mark(r.json) && !b->n_marked++)
            b->first_marked = r.number;
        if (taken && r.kind == JSONL && !add_record(b, &r)) {
            b->n = n_before; // undo: without one side, a pair loses the other side too
            b->ids.n = 0;
            if (!b->n_skipped++) b->first_skipped = r.number;
        }
        if (b->ids.n) fwrite(b->ids.id, sizeof(int), b->ids.n, cache);
        b->n_ids += b->ids.n;
        b->ids.n = 0;
    }
    reader_close(&r);
}

// Maps a file into memory: its pages are read when they are used. NULL if it is empty.
static const void *map_file(const char *path, size_t *size) {
    FILE *f = open_file(path, "rb");
    struct stat st;
    if (fstat(fileno(f), &st) || !S_ISREG(st.st_mode)) die("%s: is not a regular file", path);
    *size = (size_t)st.st_size;
    void *map = *size ? mmap(NULL, *size, PROT_READ, MAP_PRIVATE, fileno(f), 0) : NULL;
    if (map == MAP_FAILED) die("%s: cannot be mapped into memory", path);
    fclose(f);
    return map;
}

// A hash of the contents of every file in a list.
static uint64_t hash_files(uint64_t hash, const char *list) {
    char path[FILENAME_MAX];
    while (next_file(&list, path)) {
        size_t size;
        const char *text = map_file(path, &size);
        // splitmix64 marks the end of each file: one file must not hash like its two halves.
        hash = splitmix64(hash_bytes(hash, text, size) + 1);
        munmap((void *)text, size);
    }
    return hash;
}

static void build_cache(Builder *b, const char *list, const char *ids_path,
                        const char *documents_path) {
    make_dir("out/cache");
    NewFile file = new_file(".", ids_path); // takes this name only when it is complete
    double start = seconds();
    add_files(b, list, file.f);
    new_file_done(&file);
    Text table = {b->n ? (char *)b->document : "", b->n * sizeof(Document), 0};
    write_file(".", documents_path, &table);

    fprintf(stderr, "%zu tokens in %zu documents: tokenised into %s (%.1f s)\n", b->n_ids,
            b->n, ids_path, seconds() - start);
    if (b->n_cut) fprintf(stderr, "%zu rows were longer than %zu tokens and cut\n", b->n_cut, b->T);
    if (b->n_skipped)
        fprintf(stderr, "%zu records had nothing to train and were skipped, first line %zu\n",
                b->n_skipped, b->first_skipped);
    if (b->n_marked)
        fprintf(stderr, "%zu records have text, not the assistant's, that spells <|im_start|> or "
                "<|im_end|> and becomes that token, first line %zu\n", b->n_marked,
                b->first_marked);
    free(b->ids.id);
    free(b->document);
}

// Opens those documents of a list of files (names with commas) that belong to `part`; tokenises the
// files first if the cache does not have them. T: most targets of a row. most: use only the first
// `most` documents, or pairs if unit is PAIR; 0: all.
static Tokens tokens_open(const char *list, enum Part part, Tokenizer *tok, enum Unit unit,
                          size_t T, size_t most) {
    size_t cut = unit == WINDOW ? 0 : T; // rows are cut to this many targets; 0: they are not
    uint64_t key[] = {CACHE_VERSION, tok->fingerprint, unit, part, cut}; // what the rows depend on
    uint64_t hash = hash_bytes(HASH_START, (const char *)key, sizeof key);
    char ids_path[64], documents_path[80];
    snprintf(ids_path, sizeof ids_path, "out/cache/%016" PRIx64 ".ids", hash_files(hash, list));
    snprintf(documents_path, sizeof documents_path, "%s.documents", ids_path);
    Builder b = {.tok = tok, .unit = unit, .part = part, .T = T};
    if (access(documents_path, R_OK)) build_cache(&b, list, ids_path, documents_path);

    Tokens t;
    t.id = map_file(ids_path, &t.n_ids); // sizes in bytes, divided below
    t.document = map_file(documents_path, &t.n_mapped);
    t.n_ids /= sizeof *t.id;
    t.n_mapped /= sizeof *t.document;
    if (unit == PAIR) most *= 2; // documents
    t.n = most ? min_size(t.n_mapped, most) : t.n_mapped;

    bool damaged = false;
    for (size_t i = 0; i < t.n_ids; i++)
        damaged |= t.id[i] < 0 || (t.id[i] & ~TRAINED) >= tok->vocab_size;
    for (const Document *d = t.document; d < t.document + t.n_mapped; d++)
        damaged |= d->from > d->to || d->to > t.n_ids || (cut && d->to - d->from - 1 > cut);
    if (damaged) die("%s: is damaged: delete out/cache", ids_path);
    return t;
}

static void tokens_close(Tokens *t) {
    munmap((void *)t->id, t->n_ids * sizeof *t->id);
    munmap((void *)t->document, t->n_mapped * sizeof *t->document);
}

// ---- from tokens to batches ---------------------------------------------------------------------

typedef struct {
    Tokens train, held; // held: what is measured on
    enum Unit unit;
    size_t T;                     // most targets of a row
    size_t n_units, next, *order; // (n_units) this epoch's units in random order
    size_t epoch;                 // number of the epoch that starts next
    uint64_t seed;
} Data;

// Where the first window of an epoch starts. Each epoch cuts the stream elsewhere, so that no token
// is always the first of its window, with nothing before it to predict it from.
static size_t epoch_phase(const Data *d, size_t epoch) {
    return splitmix64(d->seed + epoch) % min_size(d->train.n_ids - d->T, d->T);
}

static size_t epoch_units(const Data *d, size_t epoch) {
    if (d->unit != WINDOW) return d->train.n / d->unit;
    return d->train.n_ids > d->T ? (d->train.n_ids - 1 - epoch_phase(d, epoch)) / d->T : 0;
}

static int by_size(const void *a, const void *b) {
    size_t x = *(const size_t *)a, y = *(const size_t *)b;
    return (x > y) - (x < y);
}

// Starts an epoch: a new random order of the units. The rows of a step are padded to the longest of
// them, so rows of similar length go together: within pools of 64 steps the units are sorted by
// length, and then the steps are shuffled.
static void start_epoch(Data *d, size_t units_per_step) {
    enum { SHIFT = 40 }; // to sort by length and unit: length << 40 | unit, in one number
    size_t n = epoch_units(d, d->epoch), pool = 64 * units_per_step;
    size_t *order = d->order = xrealloc(d->order, n, sizeof *order); // (n)
    // An epoch draws fewer numbers than there are ids, so no two epochs share any.
    uint64_t stream = splitmix64(d->seed ^ 0x0DE4) + d->epoch * (d->train.n_ids + d->held.n_ids);
    for (size_t i = 0; i < n; i++) order[i] = i;
    shuffle(order, n, 1, stream);

    if (d->unit != WINDOW) {
        for (size_t i = 0; i < n; i++) {
            const Document *first = &d->train.document[order[i] * d->unit];
            order[i] |= (first[d->unit - 1].to - first->from) << SHIFT;
        }
        for (size_t i = 0; i < n; i += pool)
            qsort(order + i, min_size(pool, n - i), sizeof *order, by_size);
        for (size_t i = 0; i < n; i++) order[i] &= ((size_t)1 << SHIFT) - 1;
        // The last step, which may be smaller, stays last.
        shuffle(order, (n - 1) / units_per_step, units_per_step, stream + n);
    }
    d->n_units = n;
    d->next = 0;
    d->epoch++;
}

// The ids of row r of the step that begins at unit d->next: from .. to - 1 of the result.
static Document row_of(const Data *d, size_t r) {
    if (d->unit == WINDOW) {
        size_t from = epoch_phase(d, d->epoch - 1) + d->order[d->next + r] * d->T;
        return (Document){.from = from, .to = from + d->T + 1};
    }
    size_t unit = d->order[d->next + r / d->unit];
    return d->train.document[unit * d->unit + r % d->unit];
}

// Fills b with the rows of the next optimiser step: the next `units` units, fewer at the end of an
// epoch. All rows are padded to the longest.
static void data_fill(Data *d, Batch *b, size_t units) {
    if (d->next == d->n_units) start_epoch(d, units);
    size_t n = min_size(units, d->n_units - d->next);
    b->rows = d->unit == PAIR ? 2 * n : n;
    b->T = 1;
    b->n_targets = 0;
    for (size_t r = 0; r < b->rows; r++) {
        Document row = row_of(d, r);
        b->T = max_size(b->T, row.to - row.from - 1);
    }

    for (size_t r = 0; r < b->rows; r++) {
        Document row = row_of(d, r);
        batch_set_row(b, r, d->train.id + row.from, row.to - row.from - 1);
    }
    d->next += n;
}

// =================================================================================================
// 7. Training: the stages and the loop
//
// A stage is a way to fill a batch, an objective, and a measurement. The loop knows no more about
// it; notes/lab/grpo.c adds a stage from outside. The loop:
//
//     fill the batch -> in passes: forward, objective, backward -> gradient norm -> AdamW
//     and now and then: measure on held-out data, save a checkpoint
// =================================================================================================

typedef struct { // how the next token is drawn, see chapter 8
    double temperature, top_p, repetition_penalty;
    long top_k, max_new_tokens, seed;
} Sampling;

typedef struct { // the options of a command; option_table in chapter 12 says what each means
    const char *data, *held_out, *tokenizer, *preset, *model, *out, *weights;
    const char *task, *eval_data, *contains, *answers, *prompt, *ask;
    long steps, epochs, batch, seq, warmup, accumulate, threads, eval_every, rows;
    long recompute, think, plain;
    double lr, beta2, weight_decay, clip, beta, until;
    Sampling sampling;
    Text fields; // of the configuration, that were given as options: "name=value name=value ..."
} Options;

// Chapters 9 and 10.
static void checkpoint_save(const Model *model, const Tokenizer *tok, const char *dir);
static Figures evaluate(const Model *model, Tokenizer *tok, const Options *o);
static Figures evaluate_text(const Model *model, Acts *a, const Tokens *data, size_t context);
static Figures evaluate_pairs(const Model *model, Acts *a, const Tokens *data, size_t context,
                              const double *ref_nats);

typedef struct Stage Stage;

typedef struct { // a stage in progress
    const Stage *stage;
    const Options *o;
    Tokenizer *tok;
    Model *model;
    Acts *acts;
    Batch batch;
    size_t rows, pass_rows, T; // most rows of a step, and of one pass; most targets of a row
    long total;                // steps
    Data data;                 // not used by a stage that makes its own rows
    void *own;                 // what the stage needs beyond that
} Run;

struct Stage {
    const char *name;
    const char *aim;           // printed when it begins
    double lr;                 // default highest learning rate
    enum Unit unit;            // what the data is cut into
    void (*prepare)(Run *);    // opens the data: sets rows, pass_rows, T and total
    void (*begin)(Run *);      // called once when the model is there; or NULL
    void (*fill)(Run *);       // the next step's rows into the batch
    Objective *objective;      // is given run->own
    Figures (*measure)(Run *); // unless --task says what to measure
    void (*end)(Run *);        // frees run->own; or NULL
};

static Batch batch_new(size_t rows, size_t T) {
    int *ids = xcalloc(3 * rows * T + rows, sizeof *ids); // all four arrays
    return (Batch){.rows = rows, .T = T, .ids = ids, .target = ids + rows * T,
                   .at = ids + 2 * rows * T, .length = ids + 3 * rows * T};
}

static void batch_free(Batch *b) { free(b->ids); }

// ---- the log-probability of whole documents -----------------------------------------------------

// A part of a document that fits the context: n inputs id[from ..] and n targets id[from + 1 ..].
typedef struct { size_t document, from, n; } Piece;

// Runs piece (B), padded to T. Adds -logp of each target to nats[document] and 1 to
// tokens[document]; nats and tokens (documents), tokens may be NULL.
static void score_pieces(const Model *model, Acts *a, const Tokens *data, const Piece *piece,
                         size_t B, size_t T, double *nats, double *tokens) {
    Batch batch = batch_new(B, T); // padded to the longest piece, T
    for (size_t b = 0; b < B; b++) batch_set_row(&batch, b, data->id + piece[b].from, piece[b].n);
    logp_of(model, a, &batch, 0, B);
    for (int i = 0; i < a->n_out; i++) {
        size_t document = piece[a->out_row[i] / T].document;
        nats[document] -= a->logp[i];
        if (tokens) tokens[document]++;
    }
    batch_free(&batch);
}

// Adds up -logp over the targets of each of n documents, into nats (n) and, if not NULL, tokens
// (n), which begin as 0. A document longer than the context is cut into pieces that do not see each
// other. Pieces are batched in their order, as many as `a` has rows for.
static void score_documents(const Model *model, Acts *a, const Tokens *data, size_t context,
                            double *nats, double *tokens) {
    enum { MOST = 256 };
    Piece piece[MOST];
    size_t B = 0, T = 0; // pieces so far; the longest of them
    for (size_t d = 0; d < data->n; d++) {
        const Document *x = &data->document[d];
        for (size_t from = x->from, n; from + 1 < x->to; from += n) {
            n = min_size(min_size(context, a->max_rows), x->to - 1 - from);
            if (B == MOST || (B + 1) * max_size(T, n) > a->max_rows) {
                score_pieces(model, a, data, piece, B, T, nats, tokens);
                B = 0;
                T = 0;
            }
            piece[B++] = (Piece){d, from, n};
            T = max_size(T, n);
        }
    }
    if (B) score_pieces(model, a, data, piece, B, T, nats, tokens);
}

// ---- the stages ---------------------------------------------------------------------------------

// Opens the data as rows of at most --seq tokens and counts the steps: --steps, or as many as
// --epochs passes over the data take.
static void prepare_data(Run *run) {
    const Options *o = run->o;
    Data *d = &run->data;
    enum Unit unit = run->stage->unit;
    size_t context = run->model->config.max_position_embeddings;
    size_t rows_per_unit = unit == PAIR ? 2 : 1;
    size_t T = min_size(context, unit == WINDOW ? 256 : 512);
    if (o->seq) T = o->seq;
    if (T > context) die("--seq %zu: max_position_embeddings allows %zu", T, context);

    d->train = tokens_open(o->data, o->held_out ? ALL : TRAIN_PART, run->tok, unit, T, 0);
    d->held = tokens_open(o->held_out ? o->held_out : o->data, o->held_out ? ALL : HELD_PART,
                          run->tok, unit, T, o->rows);
    d->T = T;
    d->unit = unit;
    d->seed = splitmix64(o->sampling.seed);

    if (!d->train.n_ids || !epoch_units(d, 0))
        die("%s: nothing to train: %zu tokens are less than one window of --seq %zu and its "
            "target, or no row has a target", o->data, d->train.n_ids, T);

    run->T = T;
    run->pass_rows = o->batch * rows_per_unit;
    run->rows = run->pass_rows * o->accumulate;
    run->total = o->steps;
    size_t units = o->batch * o->accumulate; // per step
    for (long e = 0; e < o->epochs && !o->steps; e++)
        run->total += (epoch_units(d, e) + units - 1) / units;
}

static void fill_from_data(Run *run) {
    data_fill(&run->data, &run->batch, run->o->batch * run->o->accumulate);
}

static Figures measure_text(Run *run) {
    return evaluate_text(run->model, run->acts, &run->data.held, run->T);
}

static const Stage pretrain_stage = {
    "pretrain", "reads texts and learns to predict the next token", 2e-3, WINDOW, prepare_data,
    NULL, fill_from_data, next_token_loss, measure_text, NULL};

static const Stage sft_stage = {
    "sft", "reads conversations and learns to say what the assistant says", 5e-4, DOCUMENT,
    prepare_data, NULL, fill_from_data, next_token_loss, measure_text, NULL};

// DPO's reference is the model before its first step: computed now, so no second model is kept.
static void begin_preferences(Run *run) {
    const Data *d = &run->data;
    Preferences *p = xcalloc(1, sizeof *p + (run->rows + d->train.n + d->held.n) * sizeof(double));
    p->beta = run->o->beta;
    p->ref_sum = (double *)(p + 1); // the three arrays follow the struct
    p->train_nats = p->ref_sum + run->rows;
    p->held_nats = p->train_nats + d->train.n;
    score_documents(run->model, run->acts, &d->train, d->T, p->train_nats, NULL);
    score_documents(run->model, run->acts, &d->held, d->T, p->held_nats, NULL);
    run->own = p;
    fprintf(stderr, "%zu pairs. At the first step the model is its own reference, so every margin "
            "is 0 and the loss is -log sigmoid(0) = log 2 = 0.693\n", d->train.n / 2);
}

static void fill_preferences(Run *run) {
    Preferences *p = run->own;
    fill_from_data(run);
    // data.next is now past this step, whose pairs are the last rows / 2 before it.
    const size_t *pair = run->data.order + run->data.next - run->batch.rows / 2; // (rows / 2)
    for (size_t r = 0; r < run->batch.rows; r++)
        p->ref_sum[r] = -p->train_nats[pair[r / 2] * 2 + r % 2];
}

static Figures measure_preferences(Run *run) {
    const Preferences *p = run->own;
    return evaluate_pairs(run->model, run->acts, &run->data.held, run->T, p->held_nats);
}

static void end_preferences(Run *run) { free(run->own); }

static const Stage dpo_stage = {
    "dpo", "reads pairs of answers and learns which of the two is preferred", 5e-5, PAIR,
    prepare_data, begin_preferences, fill_preferences, dpo_loss, measure_preferences,
    end_preferences};

// ---- one step -----------------------------------------------------------------------------------

typedef struct { // what is reported of one optimiser step
    double loss, aux_loss, grad_norm, lr, tokens_per_second;
    double load_least, load_most; // share of the tokens that chose the least and the most used
                                  // expert of any layer; the mean is K / E
    Figures more;                 // from the objective
} Report;

// The gradients of one optimiser step: its rows in passes of at most pass_rows. Nothing is divided
// by the number of passes, since each objective divides by the targets (or pairs) of the whole
// step; so a smaller last pass, or a smaller last step of an epoch, is weighted right. (One
// exception: the balance loss over a batch is not a sum over rows. It is computed per pass and
// weighted by the share of the pass.)
static Report accumulate_gradients(Model *model, Acts *a, const Batch *b, size_t pass_rows,
                                   Objective *objective, const void *own) {
    Report r = {.load_least = 1};
    size_t *count = xcalloc(model->L * model->E, sizeof *count); // (L, E) tokens of each expert
    size_t tokens = 0;                                           // without padding
    for (size_t row = 0; row < b->rows; row++) tokens += b->length[row];

    for (size_t row = 0; row < b->rows; row += pass_rows) {
        size_t rows = min_size(pass_rows, b->rows - row);
        a->aux_share = (float)rows / b->rows;
        logp_of(model, a, b, row, rows);
        r.loss += objective(a->dlogp, a->logp, a->n_out, b, own, &r.more);
        r.aux_loss += a->aux_loss;
        model_backward(model, a);
        for (size_t i = 0; i < model->L * model->E; i++)
            count[i] += a->layer[i / model->E].route.count[i % model->E];
    }

    for (size_t i = 0; i < model->L * model->E; i++) {
        double share = (double)count[i] / tokens;
        r.load_least = fmin(r.load_least, share);
        r.load_most = fmax(r.load_most, share);
    }
    free(count);
    r.grad_norm = sqrt(op->sum_of_squares(model->grads, model->n_params)); // of all tensors
    return r;
}

// ---- the loop -----------------------------------------------------------------------------------

static volatile sig_atomic_t interrupted;

static void on_interrupt(int sig) { // a second Ctrl-C ends the program at once
    interrupted = 1;
    signal(sig, SIG_DFL);
}

// Names the first tensor with a weight or a gradient that is not finite.
static const char *first_bad_tensor(const Model *model) {
    for (const Tensor *t = model->tensor; t < model->tensor + model->n_tensors; t++)
        for (size_t i = 0; i < tensor_size(t); i++)
            if (!isfinite(t->weight[i]) || !isfinite(t->grad[i])) return t->name;
    return "no weight or gradient: the logits";
}

// One line per step. In a terminal it replaces the line before, unless that was printed with keep,
// and is cut to the width of the terminal, so that it stays one line.
static void print_progress(const Run *run, long step, const Report *r, int time_left, bool keep) {
    Text line = {0};
    text_printf(&line, "%s %ld/%ld  loss %.4f  %d:%02d left  %.0f tokens/s", run->stage->name, step,
                run->total, r->loss, time_left / 60, time_left % 60, r->tokens_per_second);
    for (int i = 0; i < r->more.n; i++)
        text_printf(&line, "  %s %.3g", r->more.figure[i].name, r->more.figure[i].value);
    text_printf(&line, "  lr %.2e  norm %.2f", r->lr, r->grad_norm);
    if (run->model->E)
        text_printf(&line, "  load %.0f-%.0f%%", 100 * r->load_least, 100 * r->load_most);

    bool terminal = isatty(STDERR_FILENO);
    struct winsize window = {.ws_col = 0};
    if (terminal) ioctl(STDERR_FILENO, TIOCGWINSZ, &window);
    if (window.ws_col && !keep) line.len = min_size(line.len, window.ws_col - 1);
    fprintf(stderr, "%s%.*s%s", terminal ? "\r\033[K" : "", (int)line.len, line.s,
            !terminal || keep ? "\n" : "");
    free(line.s);
}

// One row of train.csv; before the first, the names of the columns.
static void write_csv(FILE *csv, const Run *run, long step, const Report *r, double measured) {
    if (step == 1) {
        fprintf(csv, "step,loss,aux_loss,lr,grad_norm,tokens_per_second,load_least,load_most");
        for (int i = 0; i < r->more.n; i++) fprintf(csv, ",%s", r->more.figure[i].name);
        fprintf(csv, ",held_out\n");
    }
    fprintf(csv, "%ld,%.6f,%.6f,%.4g,%.4f,%.0f,", step, r->loss, r->aux_loss, r->lr, r->grad_norm,
            r->tokens_per_second);
    fprintf(csv, run->model->E ? "%.3f,%.3f" : ",", r->load_least, r->load_most);
    for (int i = 0; i < r->more.n; i++) fprintf(csv, ",%.6g", r->more.figure[i].value);
    fprintf(csv, isfinite(measured) ? ",%.6f\n" : ",\n", measured);
    fflush(csv);
}

// Measures what --task, or the stage, says, and prints it.
static Figures measure(Run *run) {
    const Options *o = run->o;
    Figures e = o->task ? evaluate(run->model, run->tok, o) : run->stage->measure(run);
    fprintf(stderr, "measured:");
    for (int i = 0; i < e.n; i++) fprintf(stderr, "  %s %.6g", e.figure[i].name, e.figure[i].value);
    fprintf(stderr, e.n ? "\n" : "  nothing is held out\n");
    return e;
}

// Trains for run->total steps, or until the measured figure reaches --until. Writes into --out a
// row of train.csv per step, and a checkpoint at each measurement and at the end. Ctrl-C ends it
// after the current step, with everything saved. Exits if a loss or a gradient is not finite.
static void train(Run *run) {
    const Options *o = run->o;
    const Stage *stage = run->stage;
    char *path = format("%s/train.csv", o->out);
    make_dir(o->out);
    FILE *csv = open_file(path, "w");
    long eval_every = o->eval_every ? o->eval_every : (run->total + 9) / 10;
    double highest_lr = isnan(o->lr) ? stage->lr : o->lr, start = seconds();
    double shown = start, tokens = 0;
    bool stop = false;
    interrupted = 0;
    signal(SIGINT, on_interrupt);

    for (long step = 1; step <= run->total && !stop; step++) {
        stage->fill(run);
        Report r = accumulate_gradients(run->model, run->acts, &run->batch, run->pass_rows,
                                        stage->objective, run->own);
        if (!isfinite(r.loss + r.grad_norm))
            die("step %ld: the loss is %g and the gradient norm %g; first bad tensor: %s", step,
                r.loss, r.grad_norm, first_bad_tensor(run->model));

        r.lr = schedule(highest_lr, step, run->total, o->warmup);
        AdamW adamw = {r.lr, 0.9, o->beta2, 1e-8, o->weight_decay, o->clip, step};
        adamw_step(run->model, &adamw, r.grad_norm);

        tokens += run->batch.rows * run->batch.T; // with padding
        double now = seconds(), measured = NAN;
        r.tokens_per_second = tokens / (now - start);
        stop = interrupted; // read once per step, so that the last one measures and saves
        bool measure_now = stop || step == run->total || step % eval_every == 0;
        if (measure_now || step == 1 || now - shown > (isatty(STDERR_FILENO) ? 0.2 : 5)) {
            print_progress(run, step, &r, (run->total - step) * (now - start) / step, measure_now);
            shown = now;
        }
        if (measure_now) {
            Figures e = measure(run);
            checkpoint_save(run->model, run->tok, o->out);
            measured = e.watched;
            stop |= e.less_is_better ? e.watched <= o->until : e.watched >= o->until;
            start += seconds() - now; // measuring does not count
        }
        write_csv(csv, run, step, &r, measured);
    }
    signal(SIGINT, SIG_DFL);
    if (ferror(csv) || fclose(csv)) die("%s: cannot be written", path);
    free(path);
}

// =================================================================================================
// 8. Talking to it
//
// A model gives each token a probability to come next. Talking is a loop: draw a token, append it,
// run the model again. Attention needs k and v of all earlier tokens, in every layer. The KV cache
// keeps them, so that a new token costs one row of work. q is not kept: only the query of the new
// token is needed. The rows of a prompt go through the model together, as matrix products
// (prefill). Then each step runs one row per sequence (decoding). Most of its time is spent reading
// the weights; sequences that are decoded together share that reading.
// =================================================================================================

// A token that may be drawn; value is its logit, later its probability.
typedef struct { float value; int id; } Candidate;

static int by_logit(const void *a, const void *b) { // largest first, ties by id
    const Candidate *x = a;
    const Candidate *y = b;
    if (x->value != y->value) return x->value > y->value ? -1 : 1;
    return x->id - y->id;
}

// From logits (V) and history (n), the tokens so far, to probs (V), the distribution of the next
// token. The order is MiniMind's:
//
//     temperature         divides all logits; 0: only the largest logit is kept
//     repetition penalty  once per distinct token of history: a positive logit is divided by it,
//                         any other is multiplied
//     top-k               keeps the k largest logits, and those equal to the k-th
//     softmax             over the kept ones
//     top-p               drops a token if the more probable ones hold more than p together; the
//                         rest is divided by its sum
static void sampling_distribution(float *probs, const float *logits, size_t V, const int *history,
                                  size_t n, const Sampling *s) {
    bool greedy = s->temperature < 1e-20; // dividing by it would overflow
    double temperature = greedy ? 1 : s->temperature, penalty = s->repetition_penalty;
    size_t k = s->top_k ? min_size(s->top_k, V) : V, n_kept = 0;
    if (greedy) k = 1;
    Candidate *kept = xcalloc(V, sizeof *kept); // (V) the first n_kept are in use
    float *scaled = probs; // (V) scaled logits; the probabilities come at the end
    for (size_t v = 0; v < V; v++) scaled[v] = logits[v] / temperature;
    for (size_t i = 0; i < n; i++) {
        float x = logits[history[i]] / temperature; // a token is penalised once
        scaled[history[i]] = x * (x > 0 ? 1 / penalty : penalty);
    }

    for (size_t v = 0; v < V; v++) { // keep the k largest so far, in order unless k = V
        if (n_kept == k && !(scaled[v] > kept[k - 1].value)) continue;
        size_t j = n_kept < k ? n_kept++ : k - 1;
        for (; k < V && j > 0 && kept[j - 1].value < scaled[v]; j--) kept[j] = kept[j - 1];
        kept[j] = (Candidate){scaled[v], (int)v};
    }
    for (size_t v = kept[k - 1].id + 1; v < V && !greedy; v++) // those before it are kept
        if (scaled[v] == kept[k - 1].value) kept[n_kept++] = (Candidate){scaled[v], (int)v};
    if (k == V && s->top_p < 1) qsort(kept, V, sizeof *kept, by_logit);

    for (size_t i = 0; i < n_kept; i++) probs[i] = kept[i].value;
    op->softmax_forward(probs, probs, 1, n_kept);
    for (size_t i = 0; i < n_kept; i++) kept[i].value = probs[i];
    size_t end = 0;
    float sum = 0; // of the candidates 0 .. end - 1
    for (; end < n_kept && (s->top_p >= 1 || sum <= s->top_p); end++) sum += kept[end].value;

    memset(probs, 0, V * sizeof *probs);
    for (size_t i = 0; i < end; i++) probs[kept[i].id] = kept[i].value / sum;
    free(kept);
}

// Token v owns an interval of length probs[v] in [0, 1). Returns the one whose interval contains u.
static int sample_token(const float *probs, size_t V, double u) {
    int last = 0;
    for (size_t v = 0; v < V && u >= 0; v++) {
        if (probs[v] > 0) last = (int)v;
        u -= probs[v];
    }
    return last; // rounding may leave a little of u: then the last possible token
}

// ---- the KV cache -------------------------------------------------------------------------------

// Copies the first n positions of one slot to another: their prompts are the same.
static void copy_slot(const Model *model, Acts *a, size_t from, size_t to, size_t n) {
    size_t position_size = model->KV * model->D, slot_size = a->room * position_size; // floats
    size_t bytes = n * position_size * sizeof(float);
    for (size_t l = 0; l < model->L; l++) {
        LayerActs *act = &a->layer[l];
        memcpy(act->k + to * slot_size, act->k + from * slot_size, bytes);
        memcpy(act->v + to * slot_size, act->v + from * slot_size, bytes);
    }
}

// T more tokens for each of B sequences: ids (B, T) at positions past[b] + t of slot[b]. Leaves in
// a->logits (B, V) the logits after the last token of each. T = 1 is a step of decoding.
static void extend(const Model *model, Acts *a, const int *ids, size_t B, size_t T, const int *past,
                   const int *slot) {
    model_forward(model, a, ids, NULL, B, T, past, slot);
    a->n_out = (int)B;
    for (size_t b = 0; b < B; b++) a->out_row[b] = (int)(b * T + T - 1);
    head_forward(model, a);
}

// Feeds ids (n) of one sequence, in a slot from position `past` on, in passes of at most max_rows
// tokens; leaves the logits after the last one in a->logits.
static void prefill(const Model *model, Acts *a, const int *ids, size_t n, int past, int slot) {
    for (size_t i = 0; i < n; i += a->max_rows) {
        int at = past + (int)i;
        extend(model, a, ids + i, 1, min_size(a->max_rows, n - i), &at, &slot);
    }
}

typedef struct {
    Ids ids;         // the prompt, and then the tokens that were drawn
    size_t prompt;   // tokens of the prompt
    bool done;       // the end token was drawn
    bool dim;        // its thoughts are being shown, dimmed, in a terminal
    Text text;       // the drawn tokens as text, without the end token
    Utf8Stream utf8; // holds back the first bytes of a character until the last has come
    Text accepted;   // the accepted answers to a test question: see chapter 10
} Answer;

static void answer_free(Answer *x) {
    free(x->ids.id);
    free(x->text.s);
    free(x->accepted.s);
}

static void end_dim(Answer *x) {
    if (x->dim) fputs("\033[0m", stdout);
    x->dim = false;
}

// Draws the next token of answer number i from its logits (V). A model may have more rows than its
// tokenizer has tokens; those are never drawn.
static void draw_token(Answer *x, const float *logits, const Tokenizer *tok, const Sampling *s,
                       size_t i, bool aloud) {
    size_t V = tok->vocab_size, shown = x->text.len;
    float *probs = xcalloc(V, sizeof *probs); // (V)
    sampling_distribution(probs, logits, V, x->ids.id, x->ids.n, s);
    int id = sample_token(probs, V, uniform(splitmix64(s->seed + i), x->ids.n));
    free(probs);

    ids_push(&x->ids, id);
    x->done = id == tok->eos || id == tok->turn_end;
    text_append(&x->text, "", 0); // no longer NULL
    if (!x->done) decode_token(tok, id, &x->utf8, &x->text);
    if (!aloud) return;
    fwrite(x->text.s + shown, 1, x->text.len - shown, stdout);
    if (x->dim && strstr(x->text.s + shown, "</think>")) end_dim(x);
    fflush(stdout);
}

// Continues answer (n), in slots 0 .. n - 1 of the cache, until each has drawn the end token, or
// max_new_tokens, or fills the cache. Neighbours with equal prompts share one prefill; then all
// that are not done share every pass over the weights. Each draws from random numbers of its own. A
// text does not depend on what is drawn beside it, except where two tokens are equally probable to
// 6 digits: products of fewer than THIN = 12 rows and of more rows add in different orders (with
// packed weights, also 1 row and several), which moves logits by about 3e-7. With `aloud` the text
// is printed as it is drawn, and Ctrl-C ends it; without, Ctrl-C has no effect here, because a
// measurement must not be cut short.
static void complete(const Model *model, Acts *a, const Tokenizer *tok, Answer *answer, size_t n,
                     const Sampling *s, bool aloud) {
    int *past = xcalloc(3 * n, sizeof *past); // (n)
    int *slot = past + n;                     // (n)
    int *next = slot + n;                     // (n) the tokens drawn last
    for (size_t i = 0; i < n; i++) {
        Answer *x = &answer[i], *previous = i > 0 ? x - 1 : NULL;
        if (x->prompt) x->ids.n = x->prompt; // it was answered before
        x->prompt = x->ids.n;
        x->text.len = 0;
        x->utf8.n = 0;
        x->done = false;
        if (previous && previous->prompt == x->prompt &&
            !memcmp(previous->ids.id, x->ids.id, x->prompt * sizeof(int)))
            copy_slot(model, a, i - 1, i, x->prompt); // a->logits are still those of this prompt
        else prefill(model, a, x->ids.id, x->prompt, 0, (int)i);

        draw_token(x, a->logits, tok, s, i, aloud);
    }

    while (true) {
        size_t B = 0; // sequences that go on
        for (size_t i = 0; i < n; i++) {
            const Answer *x = &answer[i];
            size_t end = min_size(a->room, x->prompt + s->max_new_tokens);
            if (x->done || x->ids.n >= end || (aloud && interrupted)) continue;
            past[B] = (int)x->ids.n - 1;
            next[B] = x->ids.id[past[B]];
            slot[B] = (int)i;
            B++;
        }
        if (B == 0) break;
        extend(model, a, next, B, 1, past, slot);
        for (size_t b = 0; b < B; b++)
            draw_token(&answer[slot[b]], a->logits + b * model->V, tok, s, slot[b], aloud);
    }
    free(past);
}

// ---- prompts and answers as text ----------------------------------------------------------------

// Appends "key": "text" and then `end`.
static void add_json(Text *t, const char *key, const char *text, const char *end) {
    text_printf(t, "\"%s\": ", key);
    json_write_string(t, text, strlen(text));
    text_printf(t, "%s", end);
}

// Appends a message as the JSON that training reads, after those in t. thoughts may be NULL.
static void add_message(Text *t, const char *role, const char *thoughts, const char *content) {
    bool follows = t->len && t->s[t->len - 1] == '}';
    text_printf(t, follows ? ", {" : "{");
    add_json(t, "role", role, ", ");
    if (thoughts) add_json(t, "reasoning_content", thoughts, ", ");
    add_json(t, "content", content, "}");
}

// Appends the ids of such messages, up to where the assistant begins to speak, or to think. What
// they say stays text: a typed "<|im_end|>" does not end the turn.
static void encode_messages(Tokenizer *tok, const Text *messages, bool think, Ids *out) {
    char *list = format("[%s]", messages->s);
    Json *json = json_parse_file("chat", list, strlen(list));
    encode_chat(tok, NULL, json, true, think, false, out);
    free(json);
    free(list);
}

// The part of an answer after its thoughts; "" if it had to think and did not close them.
static const char *answer_text(const Answer *x, bool think) {
    const char *close = think ? strstr(x->text.s, "</think>") : NULL;
    if (close) return close + strlen("</think>");
    return think ? "" : x->text.s;
}

// Continues a prompt, printing to stdout; returns the number of tokens made. With `think` it begins
// with thoughts, which a terminal shows dimmed.
static size_t answer_aloud(const Model *model, const Tokenizer *tok, Answer *x, const Sampling *s,
                           bool think) {
    size_t context = model->config.max_position_embeddings, prompt = x->ids.n;
    if (!prompt) die("the prompt is empty and the tokenizer has no start token");
    if (prompt >= context) die("the prompt has %zu tokens, the context %zu", prompt, context);
    size_t room = min_size(context, prompt + s->max_new_tokens);
    Acts *a = acts_new(model, INFERENCE, min_size(prompt, 512), 1, room);
    x->dim = think && isatty(STDOUT_FILENO) && !getenv("NO_COLOR");
    if (x->dim) fputs("\033[2m", stdout);
    complete(model, a, tok, x, 1, s, true);
    end_dim(x);
    acts_free(a);

    size_t shown = x->text.len;
    decode_end(&x->utf8, &x->text);
    puts(x->text.s + shown); // the rest, and a newline
    fflush(stdout);
    if (x->ids.n == context && !x->done)
        fprintf(stderr, "%s: the context of %zu tokens is full\n", program, context);
    return x->ids.n - prompt;
}

// =================================================================================================
// 9. Files: a checkpoint is a folder
//
// config.json, model.safetensors, the tokenizer's two files and generation_config.json, with the
// names that MiniMind, Qwen3 and other programs use. Every file is written under a temporary name
// and renamed when it is complete: new_file() and new_file_done() of tokenizer.c do that, and a
// full disk or a crash leaves the old file as it was.
// =================================================================================================

// Each model_type of config.json: its class in transformers, and the defaults of missing fields
// where they differ from the preset minimind3.
enum Family { MINIMIND_TYPE, LLAMA, QWEN3, QWEN3_MOE, FAMILIES };
#define LIBRARY "rope_theta=1e4 num_key_value_heads=-1 yarn_original_max=0 yarn_attention_factor=-1"
static const struct { const char *type, *class, *fields; } family[] = {
    {"minimind", "MiniMind", "norm_topk_prob=1"},
    {"llama", "Llama", "qk_norm=0 norm_topk_prob=0 " LIBRARY},
    {"qwen3", "Qwen3", "norm_topk_prob=0 " LIBRARY},
    {"qwen3_moe", "Qwen3Moe", "use_moe=1 norm_topk_prob=0 " LIBRARY}};
#undef LIBRARY

static bool is_yarn_field(const Field *f) { return !strncmp(f->name, "yarn_", 5); }

// The ids of the special tokens, as both files below name them.
static void append_token_ids(Text *t, const Tokenizer *tok) {
    const char *const name[] = {"bos", "eos", "pad"};
    int end = tok->turn_end >= 0 ? tok->turn_end : tok->eos; // where generation stops
    int id[] = {tok->bos, end, tok->pad};
    for (int i = 0; i < 3; i++) {
        text_printf(t, "  \"%s_token_id\": ", name[i]);
        text_printf(t, id[i] < 0 ? "null,\n" : "%d,\n", id[i]);
    }
}

static double field_get(const void *base, const Field *f) {
    const char *at = (const char *)base + f->offset;
    return f->kind == 'i' ? (double)*(const long *)at : *(const double *)at;
}

// Writes config.json and generation_config.json. A model that another library can compute gets that
// library's model_type: dense ones are Llama, or Qwen3 with q/k norm; a MoE with q/k norm and
// without shared experts is Qwen3-MoE; the rest is MiniMind's own.
static void config_save(const Config *c, const Tokenizer *tok, const char *dir) {
    Text t = {0}, yarn = {0};
    enum Family type = c->qk_norm ? QWEN3 : LLAMA;
    if (c->use_moe) type = c->qk_norm && !c->n_shared_experts ? QWEN3_MOE : MINIMIND_TYPE;
    text_printf(&t, "{\n  \"model_type\": \"%s\",\n  \"architectures\": [\"%sForCausalLM\"],\n"
                "  \"torch_dtype\": \"float32\",\n  \"hidden_act\": \"silu\",\n"
                "  \"attention_bias\": false,\n  \"tie_word_embeddings\": true,\n",
                family[type].type, family[type].class);
    append_token_ids(&t, tok);
    for (const Field *f = config_field; f < config_field + CONFIG_FIELDS; f++) {
        bool is_switch = f->kind == 'i' && f->most == 1;
        double value = field_get(c, f);
        if (is_yarn_field(f)) text_printf(&yarn, ", \"%s\": %.17g", f->tag, value);
        else if (!strcmp(f->name, "yarn")) text_printf(&yarn, "{\"rope_type\": \"yarn\"");
        else if (is_switch) text_printf(&t, "  \"%s\": %s,\n", f->name, value ? "true" : "false");
        else text_printf(&t, "  \"%s\": %.17g,\n", f->name, value);
    }
    text_printf(&yarn, "}");
    text_printf(&t, "  \"rope_scaling\": %s\n}\n", c->yarn ? yarn.s : "null");
    write_file(dir, "config.json", &t);

    t.len = 0;
    text_printf(&t, "{\n");
    append_token_ids(&t, tok);
    text_printf(&t, "  \"do_sample\": true,\n  \"temperature\": 0.85,\n  \"top_p\": 0.85,\n"
                "  \"top_k\": 50\n}\n");
    write_file(dir, "generation_config.json", &t);
    free(t.s);
    free(yarn.s);
}

// A field's value in object j, by its own name or its alias; a null counts as missing.
static void read_field(Config *c, const Field *f, const Json *j, const char *path) {
    const Json *v = json_get(j, f->name);
    if (!v) v = json_get(j, f->tag);
    if (!v || v->type == JSON_NULL) return;
    if (v->type > JSON_NUMBER) die("%s: %s is not a number", path, f->name); // or true or false
    field_set(c, f, v->type == JSON_TRUE ? 1 : v->number, path);
}

// The values of fields that this config.json does not have. require(path, object, key, allowed)
// exits unless object[key] is one of the words `allowed`; a missing key counts as null.
static Config family_defaults(const Json *j, const char *path) {
    Config c = config_preset("minimind3");
    const char *type = json_text(j, "model_type");
    enum Family f = MINIMIND_TYPE; // of a file without a type
    while (type && f < FAMILIES && strcmp(type, family[f].type)) f++;
    if (f == FAMILIES)
        die("%s: model_type %s; known are minimind llama qwen3 qwen3_moe", path, type);
    // Where it is missing, other libraries take it as false.
    require(path, j, "tie_word_embeddings", f == MINIMIND_TYPE ? "true null" : "true");

    config_parse(&c, family[f].fields, path);
    if (json_get(j, "num_experts")) c.use_moe = 1;
    if (json_get(j, "n_routed_experts")) config_parse(&c, "qk_norm=0 seq_aux=1 use_moe=1", path);
    const Json *experts = json_get(j, "num_local_experts"); // a newer name
    if (experts && experts->type == JSON_NUMBER)
        field_set(&c, field_find(config_field, CONFIG_FIELDS, "num_experts"), experts->number,
                  path);
    return c;
}

// Reads config.json of MiniMind, MiniMind2, Qwen3, Qwen3-MoE or Llama from a checkpoint folder.
// Exits, and names the key, if the file asks for something that this program does not compute.
static Config config_load(const char *dir) {
    char *path = format("%s/config.json", dir);
    size_t len;
    char *text = read_file(path, &len);
    Json *j = json_parse_file(path, text, len);
    if (!json_get(j, "hidden_size")) die("%s: hidden_size is missing", path);
    Config c = family_defaults(j, path);

    // rope_theta and the fields of YaRN may be in an object of their own.
    const Json *rope = json_get(j, "rope_parameters"); // of transformers 5
    if (!rope) rope = json_get(j, "rope_scaling");
    if (rope && rope->type != JSON_OBJECT && rope->type != JSON_NULL)
        die("%s: rope_scaling is %s; allowed is an object or null", path, json_names[rope->type]);
    for (const Field *f = config_field; f < config_field + CONFIG_FIELDS; f++) {
        if (!is_yarn_field(f)) read_field(&c, f, j, path);
        read_field(&c, f, rope, path);
    }
    const char *kind = json_text(rope, "rope_type");
    if (!kind) kind = json_text(rope, "type");
    c.yarn = kind && !strcmp(kind, "yarn");
    if (kind && !c.yarn && strcmp(kind, "default"))
        die("%s: RoPE of type %s; known are default and yarn", path, kind);

    require(path, j, "hidden_act", "silu null"); // or missing
    require(path, j, "attention_bias", "false null");
    require(path, j, "use_sliding_window", "false null");
    require(path, j, "scoring_func", "softmax null");
    require(path, j, "partial_rotary_factor", "null");
    config_complete(&c, path);
    free(j);
    free(text);
    free(path);
    return c;
}

// ---- weights ------------------------------------------------------------------------------------

static const char *const own_dtype = sizeof(float) == 8 ? "F64" : "F32";

// safetensors: the length of the header in eight bytes; the header, JSON {name: {dtype, shape,
// data_offsets}}; the numbers. All have their lowest byte first, as in the memory of x86 and ARM.
static void weights_save(const Model *model, const char *dir) {
    Text head = {0};
    text_printf(&head, "{\"__metadata__\":{\"format\":\"pt\"}");
    for (const Tensor *t = model->tensor; t < model->tensor + model->n_tensors; t++) {
        size_t from = t->offset * sizeof(float);
        text_printf(&head, ",\"%s\":{\"dtype\":\"%s\",\"shape\":[", t->name, own_dtype);
        if (is_matrix(t)) text_printf(&head, "%zu,", t->rows); // a norm has one dimension
        text_printf(&head, "%zu],\"data_offsets\":[%zu,%zu]}", t->cols, from,
                    from + tensor_size(t) * sizeof(float));
    }
    text_printf(&head, "}");
    while (head.len % 8) text_append(&head, " ", 1);

    uint64_t size = head.len;
    NewFile file = new_file(dir, "model.safetensors");
    fwrite(&size, sizeof size, 1, file.f);
    fwrite(head.s, 1, head.len, file.f);
    fwrite(model->params, sizeof(float), model->n_params, file.f);
    new_file_done(&file);
    free(head.s);
}

// The value of an IEEE 754 number with this many bits of exponent and mantissa.
static float decode_float(uint64_t bits, int exponent_bits, int mantissa_bits) {
    uint64_t mantissa = bits & ((UINT64_C(1) << mantissa_bits) - 1);
    int top = (1 << exponent_bits) - 1, exponent = (int)(bits >> mantissa_bits & top);
    double sign = bits >> (exponent_bits + mantissa_bits) & 1 ? -1 : 1;
    double fraction = ldexp((double)mantissa, -mantissa_bits);
    if (exponent == top) return mantissa ? NAN : sign * INFINITY;
    return sign * ldexp(exponent ? 1 + fraction : 2 * fraction, exponent - top / 2);
}

typedef struct { // model.safetensors, mapped into memory
    const char *path;
    Json *header;
    const char *numbers; // (size) bytes
    size_t size;
    size_t used;         // bytes of the tensors read so far
} Weights;

// Reads one tensor of the table, which has to be in the file with its shape, into x (rows, cols).
static void read_tensor(float *x, const Tensor *t, Weights *w) {
    static const struct {
        const char *name;
        int bytes, exponent, mantissa;
    } dtypes[] = {{"F64", 8, 11, 52}, {"F32", 4, 8, 23}, {"BF16", 2, 8, 7}, {"F16", 2, 5, 10}};
    Json *entry = json_get(w->header, t->name);
    const Json *shape = json_get(entry, "shape"), *range = json_get(entry, "data_offsets");
    const char *dtype = json_text(entry, "dtype");
    size_t n = tensor_size(t);
    if (!entry) die("%s: %s is missing, which config.json asks for", w->path, t->name);

    double size = 1, cols = 0;
    for (const Json *d = shape ? shape->child : NULL; d; d = d->next) {
        cols = d->number;
        size *= cols;
    }
    if (cols != t->cols || size != n)
        die("%s: %s is (%g, %g), but config.json makes it (%zu, %zu)", w->path, t->name,
            size / cols, cols, t->rows, t->cols);

    int i = 0;
    while (i < 4 && !(dtype && !strcmp(dtypes[i].name, dtype))) i++;
    if (i == 4) die("%s: the dtype of %s is none of F64 F32 BF16 F16", w->path, t->name);

    size_t width = dtypes[i].bytes;
    const Json *from = range ? range->child : NULL, *to = from ? from->next : NULL;
    if (!to || !(from->number >= 0 && from->number == floor(from->number) &&
                 to->number == from->number + n * width && to->number <= w->size))
        die("%s: %s is not %zu bytes inside the file, which is cut off or damaged", w->path,
            t->name, n * width);

    const char *raw = w->numbers + (size_t)from->number; // (n width)
    bool own = !strcmp(dtype, own_dtype);
    if (own) memcpy(x, raw, n * width);
    for (size_t k = 0; k < n; k++) {
        uint64_t bits = 0;
        if (!own) memcpy(&bits, raw + k * width, width);
        if (!own) x[k] = decode_float(bits, dtypes[i].exponent, dtypes[i].mantissa);
        if (!isfinite(x[k])) die("%s: %s holds a number that is not finite", w->path, t->name);
    }
    w->used += n * width;
    entry->type = JSON_NULL; // read; check_entries() looks for entries that were not
}

// Exits if the file holds more than the tensors of the table, or some of them twice. lm_head.weight
// is allowed: it is the tied embedding again.
static void check_entries(const Weights *w) {
    for (const Json *e = w->header->child; e; e = e->next)
        if (e->type != JSON_NULL && strcmp(e->key, "__metadata__") &&
            strcmp(e->key, "lm_head.weight"))
            die("%s: holds %s twice, or the model of config.json does not have it", w->path,
                e->key);
    if (!json_get(w->header, "lm_head.weight") && w->used != w->size)
        die("%s: tensors overlap or leave gaps: it is damaged", w->path);
}

// Loads the weights of an allocated model from a checkpoint folder, in any of four number formats,
// and packs them if the model keeps fewer bits. Exits if a tensor is missing, has another shape, is
// outside the file or holds a number that is not finite.
static void weights_load(Model *model, const char *dir) {
    char *path = format("%s/model.safetensors", dir);
    size_t size;
    uint64_t len = 0; // of the header
    const char *file = map_file(path, &size); // (size)
    if (size >= 8) memcpy(&len, file, 8);
    if (len < 2 || len > size - 8)
        die("%s: is not a safetensors file or is cut off (%zu bytes)", path, size);

    Weights w = {path, json_parse_file(path, file + 8, len), file + 8 + len, size - 8 - len, 0};
    float *floats = NULL; // a tensor before it is packed
    for (Tensor *t = model->tensor; t < model->tensor + model->n_tensors; t++) {
        if (!t->weight) floats = xrealloc(floats, tensor_size(t), sizeof *floats);
        read_tensor(t->weight ? t->weight : floats, t, &w);
        if (!t->weight) op->pack_tensor(t, floats);
    }
    check_entries(&w);
    free(w.header);
    munmap((void *)file, size);
    free(floats);
    free(path);
}

// Writes everything that another program needs to run the model into the folder `dir`.
static void checkpoint_save(const Model *model, const Tokenizer *tok, const char *dir) {
    tokenizer_save(tok, dir);
    config_save(&model->config, tok, dir);
    weights_save(model, dir);
}

// =================================================================================================
// 10. Measuring it
//
// Loss is per token and depends on the tokenizer. Bits per byte divides by the bytes of the text
// instead, so that models with different vocabularies can be compared. Questions are answered
// greedily and compared with the accepted answers. Every mean comes with its standard error.
// =================================================================================================

// Adds sum(x) / sum(y) times `scale`. The standard error treats documents as independent samples
// (the tokens of one document are not): document i contributes the residual x[i] - ratio y[i].
static double add_ratio(Figures *e, const char *name, const double *x, const double *y, size_t n,
                        double scale) {
    double sum_x = 0, sum_y = 0, squares = 0;
    for (size_t i = 0; i < n; i++) {
        sum_x += x[i];
        sum_y += y[i];
    }
    double value = sum_x / sum_y;
    for (size_t i = 0; i < n; i++) squares += pow(x[i] - value * y[i], 2);
    double error = n > 1 ? sqrt(squares * n / (n - 1)) / sum_y : NAN;
    add_figure(e, name, value * scale, error * scale);
    return value * scale;
}

// Adds right / n as a percentage, with the standard error of a share, sqrt(p (1 - p) / (n - 1)).
// Returns the share itself, from 0 to 1: what --until is compared with.
static double add_share(Figures *e, const char *name, size_t right, size_t n) {
    double p = (double)right / n;
    add_figure(e, name, 100 * p, n > 1 ? 100 * sqrt(p * (1 - p) / (n - 1)) : NAN);
    return p;
}

// ---- loss, perplexity, bits per byte ------------------------------------------------------------

// Over the documents of `data`: loss per token, perplexity e^loss, bits per byte and, where the
// source knows it, the floor that no model can go below.
static Figures evaluate_text(const Model *model, Acts *a, const Tokens *data, size_t context) {
    Figures e = {.watched = NAN, .less_is_better = true};
    size_t n = data->n;
    if (!n) return e;
    double *nats = xcalloc(3 * n, sizeof *nats); // (n)
    double *tokens = nats + n;                   // (n)
    double *bytes = tokens + n;                  // (n)
    double all_bytes = 0, floor = 0;

    score_documents(model, a, data, context, nats, tokens);
    for (size_t i = 0; i < n; i++) {
        bytes[i] = data->document[i].bytes;
        all_bytes += bytes[i];
        floor += data->document[i].floor;
        add_figure(&e, "documents", 1, NAN);
        add_figure(&e, "tokens", tokens[i], NAN);
        add_figure(&e, "bytes", bytes[i], NAN);
    }

    double loss = add_ratio(&e, "loss", nats, tokens, n, 1);
    add_figure(&e, "perplexity", exp(loss), exp(loss) * e.figure[e.n - 1].error);
    e.watched = add_ratio(&e, "bits per byte", nats, bytes, n, 1 / M_LN2);
    if (isfinite(floor)) add_figure(&e, "floor", floor / all_bytes, NAN);
    free(nats);
    return e;
}

// ---- preferences --------------------------------------------------------------------------------

// The share of pairs whose chosen answer the model prefers by a larger margin than the reference
// does. ref_nats (n): -logp of each document under the reference; NULL: margin 0.
static Figures evaluate_pairs(const Model *model, Acts *a, const Tokens *data, size_t context,
                              const double *ref_nats) {
    Figures e = {.watched = NAN};
    if (!data->n) return e;
    double *nats = xcalloc(data->n, sizeof *nats); // (n): chosen, rejected, chosen, rejected, ...
    size_t right = 0;
    score_documents(model, a, data, context, nats, NULL);
    for (size_t i = 0; i < data->n; i += 2) {
        double ref = ref_nats ? ref_nats[i + 1] - ref_nats[i] : 0;
        right += nats[i + 1] - nats[i] > ref;
    }
    add_figure(&e, "pairs", data->n / 2, NAN);
    e.watched = add_share(&e, "chosen preferred, %", right, data->n / 2);
    free(nats);
    return e;
}

// ---- questions with an answer that can be checked -----------------------------------------------

typedef struct {
    Answer *answer;         // (n) at first the prompts, up to where the assistant begins to speak
    size_t n, cap, longest; // longest prompt, in tokens
} Tasks;

enum { OR = '\x1E' }; // separates accepted answers: a and b are stored as OR a OR b OR

// Appends an answer without white space around it, a final full stop, and "$" or "," in a number.
static void add_accepted(Text *t, const char *s, size_t n) {
    while (n && strchr(" \t\r\n", s[n - 1])) n--;
    if (n && s[n - 1] == '.') n--;
    if (!t->len) text_append(t, &(char){OR}, 1);
    for (size_t i = strspn(s, " \t\r\n"); i < n; i++) {
        bool before = i > 0 && s[i - 1] >= '0' && s[i - 1] <= '9';
        bool after = i + 1 < n && s[i + 1] >= '0' && s[i + 1] <= '9';
        if (!(s[i] == '$' && after) && !(s[i] == ',' && before && after)) text_append(t, s + i, 1);
    }
    text_append(t, &(char){OR}, 1);
}

// True if the text equals an accepted answer after normalisation: `said` becomes OR text OR, which
// strstr() finds only if a whole answer is equal.
static bool answer_is(const char *text, const Text *accepted) {
    Text said = {0};
    add_accepted(&said, text, strlen(text));
    bool right = strstr(accepted->s, said.s);
    free(said.s);
    return right;
}

// The accepted answers of a record: "gt", a value or a list, or else what the last turn says.
static Text accepted_answers(const Json *record, const Json *last) {
    Text t = {0};
    const Json *gt = json_get(record, "gt");
    const char *said = json_text(last, "content");
    const char *close = said ? strstr(said, "</think>") : NULL;
    if (close) said = close + strlen("</think>");
    if (!gt && said) add_accepted(&t, said, strlen(said));
    bool several = gt && gt->type == JSON_ARRAY;
    for (const Json *e = several ? gt->child : gt; e; e = several ? e->next : NULL)
        if (e->s) add_accepted(&t, e->s, e->len); // a string, or a number as written
    return t;
}

// Adds the question of {"conversations": [..., {"role": "assistant", "content": answer}]}. The last
// turn is cut off. Accepted are the answers in "gt" if the record has it, else that last turn.
static void add_task(Tasks *t, const Reader *r, Tokenizer *tok, bool think) {
    const Json *messages = json_get(r->json, "conversations");
    Json *last = messages && messages->type == JSON_ARRAY ? messages->child : NULL, *before = NULL;
    for (; last && last->next; last = last->next) before = last;
    if (!before || !role_is(last, "assistant"))
        die("%s:%zu: \"conversations\" has to end with a question and an assistant's turn", r->path,
            r->number);
    Answer x = {.accepted = accepted_answers(r->json, last)};
    if (!x.accepted.s) die("%s:%zu: there is no answer to check with", r->path, r->number);

    before->next = NULL; // the last turn is not shown
    const char *error = encode_chat(tok, r->json, messages, true, think, true, &x.ids);
    if (error) die("%s:%zu: %s", r->path, r->number, error);
    t->answer = grow(t->answer, &t->cap, t->n + 1, sizeof x);
    t->answer[t->n++] = x;
    t->longest = max_size(t->longest, x.ids.n);
}

// Reads the questions of the files in a list, at most `rows` (0: all).
static Tasks tasks_load(const char *list, Tokenizer *tok, bool think, size_t rows) {
    Tasks t = {0};
    Reader r = reader_open(list);
    while ((!rows || t.n < rows) && reader_next(&r)) add_task(&t, &r, tok, think);
    reader_close(&r);
    if (!t.n) die("%s: contains no question", list);
    return t;
}

static void tasks_free(Tasks *t) {
    for (size_t i = 0; i < t->n; i++) answer_free(&t->answer[i]);
    free(t->answer);
}

// Lets the model answer all tasks greedily, many at once.
static void answer_tasks(const Model *model, Tokenizer *tok, Tasks *t, size_t max_new_tokens) {
    enum { AT_ONCE = 64 };
    size_t context = model->config.max_position_embeddings;
    if (t->longest >= context)
        die("a question has %zu tokens, the context %zu", t->longest, context);
    size_t room = min_size(context, t->longest + max_new_tokens);
    Acts *a = acts_new(model, INFERENCE, max_size(t->longest, AT_ONCE), AT_ONCE, room);
    Sampling greedy = {.top_p = 1, .repetition_penalty = 1, .max_new_tokens = max_new_tokens};
    for (size_t i = 0; i < t->n; i += AT_ONCE)
        complete(model, a, tok, t->answer + i, min_size(AT_ONCE, t->n - i), &greedy, false);
    acts_free(a);
}

// --answers: one JSON object per question.
static void write_answer(FILE *f, const Tokenizer *tok, const Answer *x, const char *said,
                         bool right) {
    Text question = {0}, line = {0};
    Utf8Stream utf8 = {{0}, 0};
    for (size_t k = 0; k < x->prompt; k++) decode_token(tok, x->ids.id[k], &utf8, &question);
    add_json(&line, "prompt", question.s, ", ");
    add_json(&line, "answer", said, ", ");
    fprintf(f, "{%s\"right\": %s}\n", line.s, right ? "true" : "false");
    free(question.s);
    free(line.s);
}

// Counts right answers and, with --contains, answers that contain that text. The second share is
// watched if it exists, else the first.
static Figures evaluate_tasks(const Model *model, Tokenizer *tok, const Options *o, Tasks *t,
                              bool think) {
    Figures e = {0};
    FILE *f = o->answers ? open_file(o->answers, "w") : NULL;
    size_t n_right = 0, n_contain = 0;
    answer_tasks(model, tok, t, o->sampling.max_new_tokens);
    for (size_t i = 0; i < t->n; i++) {
        const Answer *x = &t->answer[i];
        const char *said = answer_text(x, think);
        bool right = answer_is(said, &x->accepted);
        n_right += right;
        n_contain += o->contains && strstr(said, o->contains);
        if (f) write_answer(f, tok, x, said, right);
    }

    add_figure(&e, "questions", t->n, NAN);
    e.watched = add_share(&e, "right, %", n_right, t->n);
    if (o->contains) e.watched = add_share(&e, "contains, %", n_contain, t->n);
    if (f && (ferror(f) || fclose(f))) die("%s: cannot be written", o->answers);
    return e;
}

// ---- one measurement ----------------------------------------------------------------------------

// The index of an option's value among the words, which spaces separate; exits if it is none.
static int one_of(const char *option, const char *value, const char *words) {
    const char *word = words;
    for (int i = 0; *word; i++) {
        size_t len = strcspn(word, " ");
        if (strlen(value) == len && !strncmp(word, value, len)) return i;
        word += len + (word[len] == ' ');
    }
    die("--%s %s: allowed is one of %s", option, value, words);
}

// Measures --task on the files of --eval-data, or of --data.
static Figures evaluate(const Model *model, Tokenizer *tok, const Options *o) {
    const char *task = o->task ? o->task : "ppl", *files = o->eval_data ? o->eval_data : o->data;
    enum { PPL, PREF, QA, THINK } which = one_of("task", task, "ppl pref qa think");
    if (which >= QA) {
        Tasks tasks = tasks_load(files, tok, which == THINK, o->rows);
        Figures answered = evaluate_tasks(model, tok, o, &tasks, which == THINK);
        tasks_free(&tasks);
        return answered;
    }

    bool pairs = which == PREF;
    size_t context = min_size(model->config.max_position_embeddings, 2048);
    Acts *a = acts_new(model, INFERENCE, context, context, 0);
    Tokens data = tokens_open(files, ALL, tok, pairs ? PAIR : WINDOW, context, o->rows);
    Figures e = pairs ? evaluate_pairs(model, a, &data, context, NULL)
                      : evaluate_text(model, a, &data, context);
    tokens_close(&data);
    acts_free(a);
    return e;
}

// =================================================================================================
// 11. The same, faster
//
// What runs by default. A function marked "Replaces f" computes what f computes, with the arguments
// of f; notes/lab/check.c compares the two. The model calls it through the table at the end of this
// chapter (fast_exp and fast_sqrt are called directly). The table also has the functions for
// weights in 16 and 8 bits, which chapter 3 allocates. All others are helpers.
//
// Three things make the difference. The matrix product keeps a block of its result in registers.
// Loops are written so that a compiler turns them into vector code. And rows are shared out among
// threads: each output still has one owner and each sum one order, so the bits do not depend on
// the number of threads.
// =================================================================================================

// A vector register of the machine. GCC and clang know such types: +, - and * act on all elements
// at once, and a float times a vector multiplies every element. AVX-512 has 32 registers of 16
// floats, AVX 16 registers of 8; elsewhere (plain -O3, ARM) a register has 4 floats.
#if defined __AVX512F__
enum { VECTOR = 64, MR = 12 };
#elif defined __AVX__
enum { VECTOR = 32, MR = 6 };
#else
enum { VECTOR = 16, MR = 4 };
#endif
typedef float Lanes __attribute__((vector_size(VECTOR)));
enum { LANES = VECTOR / sizeof(float) };

static inline Lanes load(const float *x) { // from any address
    Lanes v;
    memcpy(&v, x, sizeof v);
    return v;
}

// The sum of all lanes, 16 bytes at a time: in one long chain each addition waits for the last one.
static inline float sum_lanes(Lanes v) {
    typedef float Part __attribute__((vector_size(16)));
    Part part[sizeof v / sizeof(Part)], sum = {0};
    float x[4] = {0};
    memcpy(part, &v, sizeof v);
    for (size_t i = 0; i < sizeof v / sizeof sum; i++) sum += part[i];
    memcpy(x, &sum, sizeof sum);
    return x[0] + x[1] + (x[2] + x[3]);
}

// Work space of the calling thread: at least n floats, uninitialised, valid until the thread calls
// scratch() again. gemm() never calls it.
static float *scratch(size_t n) {
    static _Thread_local float *memory;
    static _Thread_local size_t size;
    if (n > size) {
        free(memory);
        size = round_up(n, 1024);
        memory = new_floats(size);
    }
    return memory;
}

// ---- the matrix product -------------------------------------------------------------------------

// A training step spends half (preset tiny) to nine tenths (minimind3) of its time on three
// products, all of one linear layer with x (n, in), w (out, in), y (n, out):
//
//     forward          y  (n, out)  = x    (n, in)   * w^T (in, out)
//     input gradient   dx (n, in)   = dy   (n, out)  * w   (out, in)
//     weight gradient  dw (out, in) = dy^T (out, n)  * x   (n, in)
//
// They differ only in which operand is read transposed. So there is one product, c = a b, whose
// operands are views: a pointer and two strides. In this section c (M, N) = a (M, K) b (K, N).
//
// The three loops of linear_forward() wait for memory: each multiplication loads two numbers. The
// remedy is to keep an MR x NR block of c in registers and to walk along k, where MR + NR loads
// feed MR * NR multiplications (Goto, "Anatomy of High-Performance Matrix Multiplication", 2008):
//
//                    b  NR columns
//                       +----+
//                       |    | k runs down        A panel is MR rows of a, or NR columns of b, over
//            a          |    |                    at most KC values of k. Panels are copied first,
//         k runs right  +----+                    so that the kernel reads memory in order;
//      MR +-----------+ +----+                    contiguous rows of a need no copy.
//         |           | |acc | MR x NR
//         +-----------+ +----+
//
// A block of b, KC x NC numbers (1.5 MiB), is copied once and used for all rows of a. The rows of a
// are taken MC at a time, KC numbers of each (384 KiB). Both fit into the L2 or L3 cache.
//
// MR x NR must fill the vector registers without overflowing them, with room for the operands:
// 12 x 32 numbers for AVX-512, 6 x 16 for AVX.
enum { NR = 2 * LANES };
enum { MC = 96, KC = 1024, NC = 384 }; // whole panels fit into these blocks
enum { THIN = 12 };                    // with fewer rows than this, packing does not pay

// A matrix to be read: element (i, j) is at[i * row_step + j * col_step].
typedef struct { const float *at; size_t row_step, col_step; } View;

// x, stored in rows of `width` numbers: as it is, or with rows and columns exchanged, so that
// view_transposed(dy, out) is dy^T (out, n).
static View view(const float *x, size_t width) { return (View){x, width, 1}; }
static View view_transposed(const float *x, size_t width) { return (View){x, 1, width}; }
static View view_from(View v, size_t i, size_t j) { // without its first i rows and j columns
    return (View){v.at + i * v.row_step + j * v.col_step, v.row_step, v.col_step};
}

// The dot product of a (n) and b (n). Each lane adds up its own part of the sum. A compiler may not
// reorder additions by itself (that needs -ffast-math), so the order is written out here.
static float dot(const float *a, const float *b, size_t n) {
    Lanes acc[2] = {{0}};
    size_t whole = n / NR * NR;
    for (size_t i = 0; i < whole; i += NR) {
        acc[0] += load(a + i) * load(b + i);
        acc[1] += load(a + i + LANES) * load(b + i + LANES);
    }
    float sum = sum_lanes(acc[0] + acc[1]);
    for (size_t i = whole; i < n; i++) sum += a[i] * b[i];
    return sum;
}

// y[r * ldy] += a_r . b for r = 0 .. 3, where a_r (n) begins at a + r * lda; b (n). Each load of b
// serves four rows. (lda, ldy, ldc: the distance between rows in floats, named as in BLAS.)
static void dot4(float *y, size_t ldy, const float *a, size_t lda, const float *b, size_t n) {
    Lanes acc[4][2] = {{{0}}};
    size_t whole = n / NR * NR;
    for (size_t i = 0; i < whole; i += NR) {
        Lanes b0 = load(b + i);
        Lanes b1 = load(b + i + LANES);
        for (size_t r = 0; r < 4; r++) {
            acc[r][0] += load(a + r * lda + i) * b0;
            acc[r][1] += load(a + r * lda + i + LANES) * b1;
        }
    }
    for (size_t r = 0; r < 4; r++) {
        y[r * ldy] += sum_lanes(acc[r][0] + acc[r][1]);
        for (size_t i = whole; i < n; i++) y[r * ldy] += a[r * lda + i] * b[i];
    }
}

// Copies `rows` x K numbers of v into panels of R rows, each stored (K, R). A last narrow panel is
// filled up with zeros, so that the inner loop has a constant width. Every call has a constant R,
// for which a compiler unrolls the loop over i.
static inline void copy_panels(float *to, View v, size_t rows, size_t K, const size_t R) {
    for (size_t i0 = 0; i0 < rows; i0 += R, to += R * K) {
        size_t n = min_size(R, rows - i0);
        const float *from = v.at + i0 * v.row_step;
        if (n < R) memset(to, 0, R * K * sizeof *to);

        for (size_t k = 0; k < K; k++, from += v.col_step) {
            if (v.row_step == 1 && n == R)
                for (size_t i = 0; i < R; i++) to[k * R + i] = from[i];
            else
                for (size_t i = 0; i < n; i++) to[k * R + i] = from[i * v.row_step];
        }
    }
}

// c (n) = row (n); += with `add`.
static inline void store_row(float *c, const float *row, size_t n, bool add) {
    for (size_t j = 0; j < n; j++) c[j] = add ? c[j] + row[j] : row[j];
}

// The kernel of gemm_blocked(): c (rows, cols), its rows ldc apart, = a (MR, K) times the panel b
// (K, NR); += with `add`. All MR x NR numbers are computed; those that exist are stored.
static void multiply_panels(float *c, size_t ldc, size_t rows, size_t cols, View a, const float *b,
                            size_t K, bool add) {
    Lanes acc[MR][2] = {{{0}}}; // (MR, NR): NR is 2 LANES
    for (size_t k = 0; k < K; k++) {
        const Lanes *b_row = (const Lanes *)(b + k * NR); // (2) NR numbers of the panel
        for (size_t i = 0; i < MR; i++)
            for (size_t j = 0; j < 2; j++)
                acc[i][j] += a.at[i * a.row_step + k * a.col_step] * b_row[j];
    }

    float block[MR][NR];
    memcpy(block, acc, sizeof acc);
    for (size_t i = 0; i < rows; i++, c += ldc) {
        if (cols == NR) store_row(c, block[i], NR, add); // a constant count: vector code
        else store_row(c, block[i], cols, add);
    }
}

// c (M, N), rows ldc apart: c = a b, or c += a b with `add`. One thread. Contiguous rows of a are
// read in place; only transposed ones, and an incomplete last panel, need packing.
static void gemm_blocked(size_t M, size_t N, size_t K, View a, View b, float *c, size_t ldc,
                         bool add) {
    // panels (kc, MR) of a and (kc, NR) of b
    static _Thread_local _Alignas(64) float panels_a[MC * KC], panels_b[KC * NC];
    for (size_t j0 = 0; j0 < N; j0 += NC)
        for (size_t k0 = 0; k0 < K; k0 += KC) {
            size_t nc = min_size(NC, N - j0), kc = min_size(KC, K - k0);
            View b_block = view_from(b, k0, j0);
            // A panel of NR columns of b is one of NR rows of b^T: the strides are exchanged.
            View b_transposed = {b_block.at, b_block.col_step, b_block.row_step};
            copy_panels(panels_b, b_transposed, nc, kc, NR);

            for (size_t i0 = 0; i0 < M; i0 += MC) {
                size_t mc = min_size(MC, M - i0);
                size_t in_place = a.col_step == 1 ? mc / MR * MR : 0;
                copy_panels(panels_a, view_from(a, i0 + in_place, k0), mc - in_place, kc, MR);

                for (size_t j = 0; j < nc; j += NR)
                    for (size_t i = 0; i < mc; i += MR) {
                        View a_panel = i < in_place ? view_from(a, i0 + i, k0) :
                                    (View){panels_a + (i - in_place) * kc, 1, MR};
                        multiply_panels(c + (i0 + i) * ldc + j0 + j, ldc, min_size(MR, mc - i),
                                        min_size(NR, nc - j), a_panel, panels_b + j * kc, kc,
                                        add || k0 > 0);
                    }
            }
        }
}

// The same for a few rows of a, as in decoding: packing b would cost more than the product itself,
// so b is read in place, and comes from memory once.
static void gemm_thin(size_t M, size_t N, size_t K, View a, View b, float *c, size_t ldc,
                      bool add) {
    if (!add)
        for (size_t i = 0; i < M; i++) memset(c + i * ldc, 0, N * sizeof *c);

    if (b.row_step == 1 && a.col_step == 1) {
        for (size_t j = 0; j < N; j++) {
            size_t fours = M / 4 * 4;
            for (size_t i = 0; i < fours; i += 4)
                dot4(c + i * ldc + j, ldc, a.at + i * a.row_step, a.row_step,
                     b.at + j * b.col_step, K);
            for (size_t i = fours; i < M; i++)
                c[i * ldc + j] += dot(a.at + i * a.row_step, b.at + j * b.col_step, K);
        }
        return;
    }
    for (size_t k = 0; k < K; k++) // row i of c += a(i, k) times row k of b
        for (size_t i = 0; i < M; i++) {
            float factor = a.at[i * a.row_step + k * a.col_step];
            for (size_t j = 0; j < N; j++)
                c[i * ldc + j] += factor * b.at[k * b.row_step + j * b.col_step];
        }
}

// General matrix multiply, one thread: c = a b, or += with `add`; c's rows are ldc floats apart.
static void gemm(size_t M, size_t N, size_t K, View a, View b, float *c, size_t ldc, bool add) {
    if (M < THIN) gemm_thin(M, N, K, a, b, c, ldc, add);
    else gemm_blocked(M, N, K, a, b, c, ldc, add);
}

// gemm() with all threads; c (M, N) is contiguous. c is cut into grid_rows x grid_cols blocks, one
// per thread. A thread reads M / grid_rows rows of a and N / grid_cols columns of b; the chosen
// grid has the smallest sum of the two, and a product with M < THIN is cut into columns only. The
// sum of an element runs over k in the same order wherever the cuts are. Thin or blocked is decided
// by the whole product, never by a block of it, since the two round differently.
static void matmul(size_t M, size_t N, size_t K, View a, View b, float *c, bool add) {
    size_t threads = n_threads, grid_rows = 1;
    bool thin = M < THIN;
    for (size_t r = 2; !thin && r <= threads; r++)
        if (threads % r == 0 && M / r + N * r / threads < M / grid_rows + N * grid_rows / threads)
            grid_rows = r;
    size_t grid_cols = threads / grid_rows, m_block = round_up((M + grid_rows - 1) / grid_rows, MR);
    size_t n_block = round_up((N + grid_cols - 1) / grid_cols, NR);

    #pragma omp parallel for num_threads(n_threads) if (M * N * K > 100000)
    for (size_t part = 0; part < grid_rows * grid_cols; part++) {
        size_t i = part / grid_cols * m_block, j = part % grid_cols * n_block;
        if (i >= M || j >= N) continue;
        size_t m_part = min_size(m_block, M - i), n_part = min_size(n_block, N - j);
        View a_part = view_from(a, i, 0), b_part = view_from(b, 0, j);
        if (thin) gemm_thin(m_part, n_part, K, a_part, b_part, c + i * N + j, N, add);
        else gemm_blocked(m_part, n_part, K, a_part, b_part, c + i * N + j, N, add);
    }
}

// Replaces linear_forward.
static void fast_linear_forward(float *y, const float *x, const float *w, size_t n, size_t in,
                                size_t out, bool add) {
    matmul(n, out, in, view(x, in), view_transposed(w, in), y, add);
}

// Replaces linear_backward.
static void fast_linear_backward(float *dx, float *dw, const float *dy, const float *x,
                                 const float *w, size_t n, size_t in, size_t out, bool add) {
    matmul(out, in, n, view_transposed(dy, out), view(x, in), dw, true);
    matmul(n, in, out, view(dy, out), view(w, in), dx, add);
}

// ---- exponentials -------------------------------------------------------------------------------

// A float's bits as an integer, and back. Floats >= 0 compare as their bits do.
static inline int32_t bits_of(float x) {
    int32_t i;
    memcpy(&i, &x, sizeof i);
    return i;
}

static inline float float_of(int32_t bits) {
    float x = 0;
    memcpy(&x, &bits, sizeof bits);
    return x;
}

// Replaces expf: e^x to float accuracy in a form that compilers turn into vector code.
//
//     e^x = 2^n e^r  with  n = round(x / ln 2), so |r| <= ln 2 / 2,  e^r by its series to r^7 / 7!
//
// r = x - n ln 2 takes two subtractions: n * 0.693359375 is exact, the second is the small rest of
// n ln 2, so r keeps its digits. 2^n is applied in two steps because n runs from -150 to 150, past
// the range of a float's exponent: so a result becomes denormal, 0 or infinite by itself.
static inline float fast_exp(float x) {
    if (sizeof(float) == 8) return expf(x); // `make check-double` makes float double and expf exp
    int32_t bits = bits_of(x);
    int32_t abs_bits = bits & 0x7FFFFFFF; // the bits of |x|
    int32_t limit = bits_of(104.0f);
    // x, within -104 .. 104
    float y = float_of((abs_bits < limit ? abs_bits : limit) | (bits ^ abs_bits));

    float shifted = y * 1.44269504f + 12582912.0f; // 1.5 * 2^23: there floats are whole numbers
    float n = shifted - 12582912.0f, r = y - n * 0.693359375f + n * 2.12194440e-4f;
    float p = 1.0f / 24 + r * (1.0f / 120 + r * (1.0f / 720 + r * (1.0f / 5040)));
    p = 1.0f + r * (1.0f + r * (0.5f + r * (1.0f / 6 + r * p))); // e^r

    int32_t whole = bits_of(shifted) - bits_of(12582912.0f); // n as an integer
    int32_t half = whole >> 1;
    p = p * float_of((half + 127) << 23) * float_of((whole - half + 127) << 23); // times 2^n
    int32_t nan = (0x7F800000 - abs_bits) >> 31; // all ones if x is not a number, else 0
    return float_of((bits & nan) | (bits_of(p) & ~nan));
}

// Replaces sqrtf, which may have to set errno, so that compilers do not vectorise it. sqrt(x) for x
// >= 0 to float accuracy: halving the exponent with a minus sign gives a first guess at 1 /
// sqrt(x), good to 4 %, and each step of Newton's method squares the error.
static inline float fast_sqrt(float x) {
    if (sizeof(float) == 8) return sqrtf(x);
    float y = float_of(0x5F375A86 - (bits_of(x) >> 1)); // of 0 it is large, and 0 * y is 0
    for (int step = 0; step < 3; step++) y = y * (1.5f - 0.5f * x * y * y);
    return x * y;
}

// The maximum of x (n), lane by lane.
static float row_max(const float *x, size_t n) {
    float lane[LANES], max = x[0];
    size_t whole = n / LANES * LANES;
    for (size_t j = 0; j < LANES; j++) lane[j] = x[0];
    for (size_t i = 0; i < whole; i += LANES)
        for (size_t j = 0; j < LANES; j++) lane[j] = x[i + j] > lane[j] ? x[i + j] : lane[j];
    for (size_t i = whole; i < n; i++) max = x[i] > max ? x[i] : max;
    for (size_t j = 0; j < LANES; j++) max = lane[j] > max ? lane[j] : max;
    return max;
}

// y = e^(x - shift), both (n); returns the sum. y may be x.
static float row_exp(float *y, const float *x, size_t n, float shift) {
    float lane[LANES] = {0}, sum = 0;
    size_t whole = n / LANES * LANES;
    for (size_t i = 0; i < whole; i += LANES)
        for (size_t j = 0; j < LANES; j++) {
            y[i + j] = fast_exp(x[i + j] - shift);
            lane[j] += y[i + j];
        }
    for (size_t i = whole; i < n; i++) {
        y[i] = fast_exp(x[i] - shift);
        sum += y[i];
    }
    return sum + sum_lanes(load(lane));
}

// Replaces softmax_forward.
static void fast_softmax_forward(float *p, const float *x, size_t n, size_t width) {
    #pragma omp parallel for num_threads(n_threads) if (n > 100)
    for (size_t i = 0; i < n; i++) {
        float *p_i = p + i * width; // (width)
        float sum = row_exp(p_i, x + i * width, width, row_max(x + i * width, width));
        for (size_t j = 0; j < width; j++) p_i[j] /= sum;
    }
}

// Replaces logp_forward.
static void fast_logp_forward(float *logp, float *lse, const float *logits, const int *target,
                              size_t n, size_t V) {
    #pragma omp parallel for num_threads(n_threads)
    for (size_t i = 0; i < n; i++) {
        const float *row = logits + i * V; // (V)
        float max = row_max(row, V);
        lse[i] = max + logf(row_exp(scratch(V), row, V, max)); // only the sum is used
        logp[i] = row[target[i]] - lse[i];
    }
}

// Replaces logp_backward.
static void fast_logp_backward(float *dlogits, const float *dlogp, const float *lse,
                               const float *logits, const int *target, size_t n, size_t V) {
    #pragma omp parallel for num_threads(n_threads)
    for (size_t i = 0; i < n; i++) {
        const float *from = logits + i * V; // (V)
        float *to = dlogits + i * V;        // (V)
        for (size_t v = 0; v < V; v++) to[v] = -dlogp[i] * fast_exp(from[v] - lse[i]);
        to[target[i]] += dlogp[i];
    }
}

// Replaces swiglu_forward.
static void fast_swiglu_forward(float *h, const float *gate, const float *up, size_t n) {
    #pragma omp parallel for num_threads(n_threads) if (n > 10000)
    for (size_t i = 0; i < n; i++) h[i] = gate[i] / (1.0f + fast_exp(-gate[i])) * up[i];
}

// Replaces swiglu_backward.
static void fast_swiglu_backward(float *dgate, float *dup, const float *dh, const float *gate,
                                 const float *up, size_t n) {
    #pragma omp parallel for num_threads(n_threads) if (n > 10000)
    for (size_t i = 0; i < n; i++) {
        float d = dh[i], g = gate[i], sigma = 1.0f / (1.0f + fast_exp(-g));
        dgate[i] = d * up[i] * sigma * (1.0f + g * (1.0f - sigma));
        dup[i] = d * g * sigma;
    }
}

// ---- attention in tiles -------------------------------------------------------------------------

// The scores of many query rows against many keys are a matrix product. A tile takes TILE / G
// consecutive queries of one sequence and the G query heads of one key/value head: TILE rows.
//
//     q (B, T, H, D)  is  (B, T, KV, G, D), since H = KV * G
//
//            kv = 0 .. KV - 1
//       0    +----+----+----+      One sequence: queries downwards, key/value heads to the right.
//            |    |    |    |      The tile: queries t0 .. t0 + n - 1, and the G query heads that
//       t0   +----+----+----+      read key/value head kv.
//            |    |tile|    |        its queries (n, G, D) = (n G, D)
//       t0+n +----+----+----+        its keys    0 .. past + t0 + n - 1 of head kv: (keys, D)
//            |    |    |    |        its scores  (n G, keys)
//       T    +----+----+----+
//
// The G heads that share a key/value head are rows of the same matrix, so its keys are loaded once
// for all of them. Row r of the scores belongs to query t0 + r / G. It sees the keys 0 .. past + t0
// + r / G; its probabilities for later keys are set to 0. The (T, T) matrix never exists: a tile's
// part of it lives in the cache of one core. (FlashAttention, Dao et al. 2022, also cuts the keys
// into blocks, which needs a running maximum; here a tile has all keys.)
enum { TILE = 128 };

static size_t tile_queries(size_t G) { return max_size(TILE / G, 1); }

// Copies n rows of `width` floats that are `from_stride` apart to where they are `to_stride` apart.
static void copy_rows(float *to, size_t to_stride, const float *from, size_t from_stride, size_t n,
                      size_t width) {
    for (size_t i = 0; i < n; i++)
        memcpy(to + i * to_stride, from + i * from_stride, width * sizeof *to);
}

// One tile of attention_forward: queries t0 .. t0 + n - 1. All pointers start at the tile's
// sequence and at the first head of its group; strides are those of the whole arrays: out, q (T, H,
// D), lse (T, H), k, v (past + T, KV, D).
static void tile_forward(float *out, float *lse, const float *q, const float *k, const float *v,
                         size_t t0, size_t n, size_t past, size_t H, size_t KV, size_t D) {
    size_t G = H / KV, rows = n * G;
    size_t keys = past + t0 + n;               // those that the last query sees
    float scale = 1.0f / sqrtf(D);
    float *p = scratch(rows * (keys + 2 * D)); // (rows, keys) scores, then probabilities
    float *q_rows = p + rows * keys;           // (rows, D)
    float *out_rows = q_rows + rows * D;       // (rows, D)

    copy_rows(q_rows, G * D, q + t0 * H * D, H * D, n, G * D);
    gemm(rows, keys, D, view(q_rows, D), view_transposed(k, KV * D), p, keys, false);

    for (size_t r = 0; r < rows; r++) {
        float *p_r = p + r * keys; // (keys)
        size_t n_visible = past + t0 + r / G + 1;
        for (size_t j = 0; j < n_visible; j++) p_r[j] *= scale;
        float max = row_max(p_r, n_visible);
        float sum = row_exp(p_r, p_r, n_visible, max);
        for (size_t j = 0; j < n_visible; j++) p_r[j] /= sum;
        memset(p_r + n_visible, 0, (keys - n_visible) * sizeof *p_r); // the product takes all keys
        lse[(t0 + r / G) * H + r % G] = max + logf(sum);
    }

    gemm(rows, D, keys, view(p, keys), view(v, KV * D), out_rows, D, false);
    copy_rows(out + t0 * H * D, H * D, out_rows, G * D, n, G * D);
}

// Replaces attention_forward.
static void fast_attention_forward(float *out, float *lse, const float *q, const float *k,
                                   const float *v, size_t B, size_t T, size_t past, size_t H,
                                   size_t KV, size_t D) {
    size_t G = H / KV, tiles = (T + tile_queries(G) - 1) / tile_queries(G);
    #pragma omp parallel for collapse(3) schedule(dynamic) num_threads(n_threads)
    for (size_t b = 0; b < B; b++)
        for (size_t kv = 0; kv < KV; kv++)
            for (size_t i = 0; i < tiles; i++) {
                size_t t0 = (tiles - 1 - i) * tile_queries(G); // the longest first
                size_t row = b * T * H + kv * G, key0 = (b * (past + T) * KV + kv) * D;
                tile_forward(out + row * D, lse + row, q + row * D, k + key0, v + key0, t0,
                             min_size(tile_queries(G), T - t0), past, H, KV, D);
            }
}

// One tile of attention_backward; pointers as in tile_forward. Overwrites dq; accumulates dk, dv.
static void tile_backward(float *dq, float *dk, float *dv, const float *dout, const float *out,
                          const float *lse, const float *q, const float *k, const float *v,
                          size_t t0, size_t n, size_t H, size_t KV, size_t D) {
    size_t G = H / KV, rows = n * G, keys = t0 + n;
    size_t stride = KV * D; // from one key to the next
    float scale = 1.0f / sqrtf(D);
    float *p = scratch(rows * (2 * keys + 3 * D)); // (rows, keys) scores, then probabilities
    float *ds = p + rows * keys;                   // (rows, keys) dp, then ds / sqrt(D)
    float *q_rows = ds + rows * keys;              // (rows, D)
    float *dout_rows = q_rows + rows * D;          // (rows, D)
    float *dq_rows = dout_rows + rows * D;         // (rows, D)

    copy_rows(q_rows, G * D, q + t0 * H * D, H * D, n, G * D);
    copy_rows(dout_rows, G * D, dout + t0 * H * D, H * D, n, G * D);
    gemm(rows, keys, D, view(q_rows, D), view_transposed(k, stride), p, keys, false);
    gemm(rows, keys, D, view(dout_rows, D), view_transposed(v, stride), ds, keys, false);

    for (size_t r = 0; r < rows; r++) {
        float *p_r = p + r * keys;   // (keys)
        float *ds_r = ds + r * keys; // (keys)
        size_t head = (t0 + r / G) * H + r % G; // of out and lse
        float dout_out = dot(dout_rows + r * D, out + head * D, D);
        size_t n_visible = t0 + r / G + 1;
        for (size_t j = 0; j < n_visible; j++) {
            p_r[j] = fast_exp(p_r[j] * scale - lse[head]);
            ds_r[j] = p_r[j] * (ds_r[j] - dout_out) * scale;
        }
        memset(p_r + n_visible, 0, (keys - n_visible) * sizeof *p_r);
        memset(ds_r + n_visible, 0, (keys - n_visible) * sizeof *ds_r);
    }

    gemm(keys, D, rows, view_transposed(p, keys), view(dout_rows, D), dv, stride, true);
    gemm(rows, D, keys, view(ds, keys), view(k, stride), dq_rows, D, false);
    gemm(keys, D, rows, view_transposed(ds, keys), view(q_rows, D), dk, stride, true);
    copy_rows(dq + t0 * H * D, H * D, dq_rows, G * D, n, G * D);
}

// Replaces attention_backward. A thread owns a key/value head of a sequence: dk and dv accumulate
// over all of its query rows, tile after tile.
static void fast_attention_backward(float *dq, float *dk, float *dv, const float *dout,
                                    const float *out, const float *lse, const float *q,
                                    const float *k, const float *v, size_t B, size_t T, size_t H,
                                    size_t KV, size_t D) {
    size_t G = H / KV;
    #pragma omp parallel for collapse(2) schedule(dynamic) num_threads(n_threads)
    for (size_t b = 0; b < B; b++)
        for (size_t kv = 0; kv < KV; kv++) {
            size_t row = b * T * H + kv * G, key0 = (b * T * KV + kv) * D;
            for (size_t t = 0; t < T; t++) {
                memset(dk + key0 + t * KV * D, 0, D * sizeof *dk);
                memset(dv + key0 + t * KV * D, 0, D * sizeof *dv);
            }
            for (size_t t0 = 0; t0 < T; t0 += tile_queries(G))
                tile_backward(dq + row * D, dk + key0, dv + key0, dout + row * D, out + row * D,
                              lse + row, q + row * D, k + key0, v + key0, t0,
                              min_size(tile_queries(G), T - t0), H, KV, D);
        }
}

// ---- rows shared out among threads --------------------------------------------------------------

// Replaces rmsnorm_forward.
static void fast_rmsnorm_forward(float *y, float *rstd, const float *x, const float *w, size_t n,
                                 size_t C, float eps) {
    #pragma omp parallel for num_threads(n_threads) if (n * C > 10000)
    for (size_t i = 0; i < n; i++) {
        const float *x_i = x + i * C; // (C)
        float r = 1.0f / sqrtf(dot(x_i, x_i, C) / C + eps);
        for (size_t c = 0; c < C; c++) y[i * C + c] = w[c] * (x_i[c] * r);
        rstd[i] = r;
    }
}

// Replaces rmsnorm_backward. The sum of dw over the rows is cut into a fixed number of pieces, so
// that its order does not depend on the number of threads.
static void fast_rmsnorm_backward(float *dx, float *dw, const float *dy, const float *x,
                                  const float *w, const float *rstd, size_t n, size_t C) {
    enum { PIECES = 16 };
    float *dw_piece = scratch(PIECES * C); // (PIECES, C)
    memset(dw_piece, 0, PIECES * C * sizeof *dw_piece);

    #pragma omp parallel for num_threads(n_threads) if (n * C > 10000)
    for (size_t p = 0; p < PIECES; p++)
        for (size_t i = n * p / PIECES; i < n * (p + 1) / PIECES; i++) {
            const float *x_i = x + i * C;   // (C)
            const float *dy_i = dy + i * C; // (C)
            float *dx_i = dx + i * C;       // (C)
            float *dw_p = dw_piece + p * C; // (C)
            Lanes acc = {0};
            float r = rstd[i], sum = 0;
            size_t whole = C / LANES * LANES;
            for (size_t c = 0; c < whole; c += LANES)
                acc += load(dy_i + c) * load(w + c) * load(x_i + c);
            for (size_t c = whole; c < C; c++) sum += dy_i[c] * w[c] * x_i[c];
            float shared = r * r * r / C * (sum + sum_lanes(acc));

            for (size_t c = 0; c < C; c++) {
                dx_i[c] += r * w[c] * dy_i[c] - shared * x_i[c];
                dw_p[c] += dy_i[c] * x_i[c] * r;
            }
        }
    for (size_t p = 0; p < PIECES; p++)
        for (size_t c = 0; c < C; c++) dw[c] += dw_piece[p * C + c];
}

// Replaces rope: the definition, one token per iteration.
static void fast_rope(float *x, const float *cosine, const float *sine, float direction, size_t B,
                      size_t T, size_t heads, size_t D) {
    if (B * T == 1) {
        rope(x, cosine, sine, direction, B, T, heads, D);
        return;
    }
    #pragma omp parallel for num_threads(n_threads) if (B * T > 8)
    for (size_t row = 0; row < B * T; row++) {
        size_t at = row % T * (D / 2);
        rope(x + row * heads * D, cosine + at, sine + at, direction, 1, 1, heads, D);
    }
}

// Replaces combine_forward: the definition, one token per iteration.
static void fast_combine_forward(float *out, const float *y, const float *mix, const int *row,
                                 size_t N, size_t K, size_t C) {
    #pragma omp parallel for num_threads(n_threads) if (N > 100)
    for (size_t n = 0; n < N; n++)
        combine_forward(out + n * C, y, mix ? mix + n * K : NULL, row + n * K, 1, K, C);
}

// Replaces combine_backward.
static void fast_combine_backward(float *dy, float *dmix, const float *dout, const float *y,
                                  const float *mix, const int *row, size_t N, size_t K,
                                  size_t C) {
    #pragma omp parallel for num_threads(n_threads) if (N > 100)
    for (size_t i = 0; i < N * K; i++) {
        const float *dout_n = dout + i / K * C; // (C)
        float *dy_i = dy + row[i] * C;          // (C)
        dmix[i] = dot(dout_n, y + row[i] * C, C);
        for (size_t c = 0; c < C; c++) dy_i[c] = mix[i] * dout_n[c];
    }
}

// Replaces sum_of_squares, in pieces of fixed size, whose sums are added in double.
static double fast_sum_of_squares(const float *x, size_t n) {
    enum { PIECE = 1 << 12 };
    size_t pieces = (n + PIECE - 1) / PIECE;
    double *sum = xcalloc(pieces, sizeof *sum); // (pieces)
    double all = 0;
    #pragma omp parallel for num_threads(n_threads)
    for (size_t p = 0; p < pieces; p++)
        sum[p] = dot(x + p * PIECE, x + p * PIECE, min_size(PIECE, n - p * PIECE));
    for (size_t p = 0; p < pieces; p++) all += sum[p];
    free(sum);
    return all;
}

// Replaces adamw_update.
static void fast_adamw_update(float *w, float *g, float *m, float *v, size_t n, const AdamW *o,
                              double decay, double factor) {
    float b1 = o->beta1, b2 = o->beta2, eps = o->eps, shrink = factor;
    float rate = o->lr / (1 - pow(o->beta1, o->step));
    float v_correction = 1 / (1 - pow(o->beta2, o->step)), keep = 1 - o->lr * decay;
    #pragma omp parallel for num_threads(n_threads) if (n > 10000)
    for (size_t i = 0; i < n; i++) {
        float clipped = g[i] * shrink;
        m[i] = b1 * m[i] + (1 - b1) * clipped;
        v[i] = b2 * v[i] + (1 - b2) * clipped * clipped;
        w[i] = w[i] * keep - rate * m[i] / (fast_sqrt(v[i] * v_correction) + eps);
        g[i] = 0;
    }
}

// ---- weights in 16 or 8 bits --------------------------------------------------------------------

// Decoding waits for memory, so fewer bytes are more tokens per second. A row is cut into groups
// that fill LANES words of 32 bits. Word i of a group holds the numbers i, LANES + i, 2 LANES + i,
// ... So shifting all words by the same amount gives LANES neighbouring numbers, one per lane.
//
//   bf16: a weight is the upper half of a float.
//   int8: a weight is a stored integer q (-128 .. 127) times the scale of its block. The word,
//     shifted left until q is its top byte and read as a signed integer, is 2^24 (q + f). f is what
//     the lower bytes add, 0 <= f < 1. Clearing f would take another instruction; instead
//     pack_tensor() chooses q so that q + f is nearest to weight / scale:
//
//         weight / scale   50.2     -3.7     127       8.9      from the lowest byte up
//         f below it        0       0.195    0.985    0.496
//         q, stored        50       -4       126        8
//         q + f            50      -3.805   126.985   8.496     at most 0.5 off
//
//     t->scale[b] holds the scale of block b times 2^-24, which cancels the factor 2^24.
static const char *const kept_as[] = {"f32", "bf16", "int8"}; // in 32, 16, 8 bits
typedef uint32_t Words __attribute__((vector_size(LANES * sizeof(uint32_t))));
typedef int32_t Integers __attribute__((vector_size(LANES * sizeof(int32_t))));

// Number k of each word, times 2^24 if it is int8. Every call has constant bits.
static inline Lanes unpack(Words v, int k, const int bits) {
    if (bits == 8) return __builtin_convertvector((Integers)(v << (24 - 8 * k)), Lanes);
    Words half = k ? v & 0xFFFF0000 : v << 16;
    Lanes x = {0};
    memcpy(&x, &half, sizeof half);
    return x;
}

// The dot product of row `row` of packed w (rows, cols) and x (cols). If `to` (cols) is not NULL:
// writes the row there as floats instead; x may then be NULL, and the result is 0.
static inline float packed_row(const Tensor *w, size_t row, const float *x, float *to,
                               const int bits) {
    const int per_word = 32 / bits;
    const uint32_t *word = w->packed + row * w->cols / per_word; // (cols / per_word)
    Lanes acc = {0};
    for (size_t i = 0; i < w->cols; i += per_word * LANES, word += LANES) {
        float scale = bits == 8 ? w->scale[(row * w->cols + i) / INT8_BLOCK] : 1;
        Lanes sum = {0};
        Words v;
        memcpy(&v, word, sizeof v);
        for (int k = 0; k < per_word; k++) {
            Lanes number = unpack(v, k, bits);
            if (!to) sum += load(x + i + k * LANES) * number;
            number *= scale;
            if (to) memcpy(to + i + k * LANES, &number, sizeof number);
        }
        acc += scale * sum;
    }
    return sum_lanes(acc);
}

// Calls packed_row() with a constant for `bits`, so that the compiler makes a fast version of each.
static inline float packed_dot(const Tensor *w, size_t row, const float *x, float *to) {
    return w->bits == 16 ? packed_row(w, row, x, to, 16) : packed_row(w, row, x, to, 8);
}

// Writes row `row` of packed w (rows, cols) as floats.
static void unpack_row(float *to, const Tensor *w, size_t row) { packed_dot(w, row, NULL, to); }

// linear_forward for packed weights. One row of x is multiplied as the weights are unpacked. For
// several, a few rows of weights at a time are written out as floats, which stay in the cache.
static void packed_linear(float *y, const float *x, const Tensor *w, size_t n, bool add) {
    size_t in = w->cols, out = w->rows, stripe = n < THIN ? 4 : 96;
    #pragma omp parallel for num_threads(n_threads)
    for (size_t o = 0; o < out; o += stripe) {
        size_t rows = min_size(stripe, out - o);
        if (n > 1) {
            float *floats = scratch(stripe * in); // (stripe, in)
            for (size_t r = 0; r < rows; r++) unpack_row(floats + r * in, w, o + r);
            gemm(n, rows, in, view(x, in), view_transposed(floats, in), y + o, out, add);
            continue;
        }
        for (size_t r = o; r < o + rows; r++)
            y[r] = (add ? y[r] : 0) + packed_dot(w, r, x, NULL);
    }
}

// A float without its lower 16 bits, rounded to the nearest, ties to the even one.
static uint32_t bf16_of(float x) {
    uint32_t bits = (uint32_t)bits_of(x);
    return (bits + 0x7FFF + (bits >> 16 & 1)) >> 16;
}

// The integer for which integer + below, the fraction under it in the word, is nearest to
// x / (2^24 scale). scale is t->scale[b], which contains the factor 2^-24.
static uint32_t int8_of(float x, float scale, double below) {
    return scale > 0 ? (uint32_t)lrint(x / scale * 0x1p-24 - below) & 0xFF : 0;
}

// Stores floats x (rows, cols) as t keeps them. The lowest number of a word is stored first,
// because f of the numbers above it depends on it. The scale of an int8 block is its largest |x|
// divided by 127, and no error exceeds half the scale.
static void pack_tensor(Tensor *t, const float *x) {
    size_t n = tensor_size(t);
    for (size_t b = 0; t->bits == 8 && b < n / INT8_BLOCK; b++) {
        float most = 0;
        for (size_t i = 0; i < INT8_BLOCK; i++) most = fmaxf(most, fabsf(x[b * INT8_BLOCK + i]));
        t->scale[b] = most / 127 * 0x1p-24f;
    }

    size_t group = LANES * 32 / t->bits;
    for (size_t i = 0; i < n; i++) {
        int place = (int)(i % group / LANES * t->bits); // its lowest bit in the word
        uint32_t *word = &t->packed[i / group * LANES + i % LANES];
        if (place == 0) *word = 0;
        uint32_t number = t->bits == 16 ? bf16_of(x[i])
                          : int8_of(x[i], t->scale[i / INT8_BLOCK], ldexp(*word, -place));
        *word |= number << place;
    }
}

// ---- the table ----------------------------------------------------------------------------------

static const Ops fast = {
    fast_linear_forward, fast_linear_backward, fast_rmsnorm_forward, fast_rmsnorm_backward,
    fast_rope, fast_attention_forward, fast_attention_backward, fast_swiglu_forward,
    fast_swiglu_backward, fast_softmax_forward, fast_combine_forward, fast_combine_backward,
    fast_logp_forward, fast_logp_backward, fast_sum_of_squares, fast_adamw_update, packed_linear,
    unpack_row, pack_tensor,
};

// =================================================================================================
// 12. Commands
//
// One table says which options there are, which commands know them and which values they may have.
// =================================================================================================

// The tag of an option holds the letters of the commands that know it; *: all know it; a capital
// letter: that command needs it. p pretrain, s sft, d dpo (the stages of training), w generate
// (write), c chat, e eval, i info. Default NAN: --lr is that of the stage, --until never stops.
static const Field option_table[] = {
#define AT(field) offsetof(Options, field)
#define TEXT(field) 's', AT(field), 0, 0, 0
    {"data", "PSDEi", TEXT(data), "JSONL or plain text; several with commas"},
    {"held-out", "psd", TEXT(held_out), "measure on this file, not on every 50th document"},
    {"tokenizer", "psi", TEXT(tokenizer), "folder or tokenizer.json"},
    {"preset", "psi", TEXT(preset), "sizes to start from, see help"},
    {"model", "psDWCEi", TEXT(model), "checkpoint folder to start from"},
    {"out", "psd", TEXT(out), "folder for what the command makes"},
    {"steps", "psd", 'i', AT(steps), 0, 1e9, 0, "optimiser steps; 0: as many as --epochs take"},
    {"epochs", "psd", 'i', AT(epochs), 1, 1e6, 1, "passes over the data"},
    {"batch", "psdi", 'i', AT(batch), 1, 1e6, 8, "sequences (pairs) in memory at a time"},
    {"seq", "psdi", 'i', AT(seq), 1, 1 << 24, 0, "tokens in a sequence, at most"},
    {"lr", "psd", 'f', AT(lr), 0, 10, NAN, "highest learning rate; each stage has its own"},
    {"warmup", "psd", 'i', AT(warmup), 0, 1e9, 0, "steps in which the rate rises to it"},
    {"accumulate", "psd", 'i', AT(accumulate), 1, 1e6, 1, "batches for one optimiser step"},
    {"beta2", "psd", 'f', AT(beta2), 0, 0.999999, 0.95, "AdamW's memory of squared gradients"},
    {"weight-decay", "psd", 'f', AT(weight_decay), 0, 10, 0.1, "of matrices; norms never decay"},
    {"clip", "psd", 'f', AT(clip), 0, 1e9, 1, "largest gradient norm; 0: no limit"},
    {"recompute", "psd", 'i', AT(recompute), 0, 1, 0, "1: less memory, up to a third more work"},
    {"beta", "d", 'f', AT(beta), 0, 100, 0.1, "how much the reference holds the model back"},
    {"eval-every", "psd", 'i', AT(eval_every), 0, 1e9, 0, "steps per measurement; 0: total / 10"},
    {"task", "psde", TEXT(task), "what to measure: ppl, qa, think or pref"},
    {"eval-data", "psd", TEXT(eval_data), "measure --task on this file"},
    {"rows", "psde", 'i', AT(rows), 0, 1e9, 0, "measure on so many rows at most; 0: all"},
    {"contains", "psde", TEXT(contains), "count the answers that contain this text"},
    {"answers", "e", TEXT(answers), "write the answers to this file, as JSONL"},
    {"until", "psd", 'f', AT(until), -1e9, 1e9, NAN, "stop when the measured figure reaches this"},
    {"weights", "wce", TEXT(weights), "keep them as f32 (the default), bf16 or int8"},
    {"prompt", "w", TEXT(prompt), "text to continue"},
    {"ask", "w", TEXT(ask), "question to answer, in the form of a chat"},
    {"think", "wc", 'i', AT(think), 0, 1, 0, "1: the answer begins with thoughts"},
    {"seed", "psdwc", 'i', AT(sampling.seed), 0, 1e15, 1, "the same seed gives the same bits"},
    {"threads", "*", 'i', AT(threads), 1, 1024, 0, "default: all cores"},
    {"plain", "*", 'i', AT(plain), 0, 1, 0, "1: run the definitions of chapter 2, slowly"},
#undef AT
#define AT(field) offsetof(Options, sampling.field)
    {"max-new-tokens", "psdwce", 'i', AT(max_new_tokens), 1, 1 << 24, 256, "longest answer"},
    {"temperature", "wc", 'f', AT(temperature), 0, 100, 0.85, "0: always the most probable token"},
    {"top-k", "wc", 'i', AT(top_k), 0, 1e9, 50, "draw from the k most probable; 0: all"},
    {"top-p", "wc", 'f', AT(top_p), 0, 1, 0.85, "draw from the most probable that hold p together"},
    {"repetition-penalty", "wc", 'f', AT(repetition_penalty), 0.01, 100, 1, "1: none"},
#undef AT
#undef TEXT
};
enum { OPTIONS = sizeof option_table / sizeof *option_table };

// Reads the options of the command with this letter into o. An instrument adds a set of its own,
// extra; letter '*' accepts only the options that all commands know. Words that are no option go to
// rest: see parse_options() of tokenizer.c.
static void read_options(char **argv, char letter, Options *o, OptionSet extra, char **rest) {
    bool sized = strchr("psi", letter); // the fields of the configuration are options too
    size_t first = letter != 'i';       // info alone may set vocab_size, row 0 of the table
    Config checked; // only to check the values; options_config() sets them from o->fields
    OptionSet sets[] = {
        extra,
        {option_table, OPTIONS, letter, o, NULL},
        {config_field + first, sized ? CONFIG_FIELDS - first : 0, 0, &checked, &o->fields}};
    parse_options(argv, sets, sizeof sets / sizeof *sets, rest);

    // --plain and --threads: which functions run, and with how many threads.
    int most = 1;
#ifdef _OPENMP
    most = o->threads ? (int)o->threads : omp_get_max_threads();
#endif
    if (o->threads > most)
        die("--threads %ld: this build has one; compile with -fopenmp", o->threads);
    n_threads = o->plain ? 1 : most;
    op = o->plain ? &plain : &fast;
}

// The configuration that the options ask for: a preset or a checkpoint's, then single fields.
static Config options_config(const Options *o, const Tokenizer *tok) {
    if (o->model && o->preset) die("--preset %s: --model has sizes of its own", o->preset);
    const char *preset = o->preset ? o->preset : "tiny";
    Config c = o->model ? config_load(o->model) : config_preset(preset);
    if (o->fields.s) config_parse(&c, o->fields.s, "option");
    if (tok && o->model && c.vocab_size < tok->vocab_size)
        die("%s: the tokenizer has %d tokens, the model only %ld", o->model, tok->vocab_size,
            c.vocab_size);
    if (tok && !o->model) c.vocab_size = tok->vocab_size;
    config_complete(&c, o->model ? o->model : "the configuration");
    return c;
}

// Loads --model for inference, with its weights in the format of --weights.
static Model *load_model(const Options *o, const Tokenizer *tok) {
    Model *model = model_new(options_config(o, tok));
    const char *kinds = sizeof(float) == 4 ? "f32 bf16 int8" : "f32";
    int bits = 32 >> one_of("weights", o->weights ? o->weights : "f32", kinds);
    if (o->plain && bits < 32) die("--plain 1: the definitions know f32 weights only");
    model_allocate(model, false, bits);
    weights_load(model, o->model);
    return model;
}

// The number of floats that these activations would need; they are not allocated.
static size_t acts_size(const Model *model, enum Mode mode, size_t N, size_t slots, size_t room) {
    Acts *a = acts_plan(model, mode, N, slots, room);
    size_t size = a->size;
    acts_free(a);
    return size;
}

// ---- training -----------------------------------------------------------------------------------

// One stage of training, from its options to its checkpoint. `own` is passed on in run->own.
static void run_stage(const Stage *stage, const Options *given, void *own) {
    Options o = *given;
    Run run = {.stage = stage, .o = &o, .own = own};
    char *default_out = format("out/%s", stage->name);
    if (!o.out) o.out = default_out;
    if (!o.tokenizer && !o.model) die("--tokenizer or --model is missing: a folder");
    if (o.task && !o.eval_data) die("--task %s: --eval-data is missing: a file", o.task);
    run.tok = tokenizer_load(o.tokenizer ? o.tokenizer : o.model);
    tokenizer_warn(run.tok);
    run.model = model_new(options_config(&o, run.tok));
    stage->prepare(&run);

    enum Mode mode = o.recompute ? RECOMPUTE : TRAINING;
    size_t rows = run.pass_rows * run.T;
    double MB = 1e6 / sizeof(float);
    fprintf(stderr, "%s: %s\n%zu parameters; %.0f MB for weights, gradients and AdamW, %.0f MB for "
            "activations\n", stage->name, stage->aim, run.model->n_params,
            4 * run.model->n_params / MB, acts_size(run.model, mode, rows, 0, 0) / MB);
    model_allocate(run.model, true, 32);
    if (o.model) weights_load(run.model, o.model);
    else model_init(run.model, o.sampling.seed);
    if (!o.model) fprintf(stderr, "guessing has the loss ln V = %.4f\n", log(run.model->V));
    run.acts = acts_new(run.model, mode, rows, 0, 0);
    run.batch = batch_new(run.rows, run.T);
    if (stage->begin) stage->begin(&run);

    train(&run);

    if (stage->end) stage->end(&run);
    tokens_close(&run.data.train);
    tokens_close(&run.data.held);
    free(run.data.order);
    batch_free(&run.batch);
    acts_free(run.acts);
    model_free(run.model);
    tokenizer_free(run.tok);
    free(default_out);
}

// ---- talking ------------------------------------------------------------------------------------

// Continues --prompt, or answers --ask, and prints to stdout. The speed goes to stderr.
static void cmd_generate(const Options *o, Model *model, Tokenizer *tok) {
    if (o->ask && o->prompt) die("generate: --ask and --prompt exclude each other");
    Answer x = {.done = false};
    double start = seconds();
    if (o->ask) {
        Text question = {0};
        add_message(&question, "user", NULL, o->ask);
        encode_messages(tok, &question, o->think, &x.ids);
        free(question.s);
    } else {
        const char *prompt = o->prompt ? o->prompt : "";
        if (tok->bos >= 0) ids_push(&x.ids, tok->bos);
        tokenizer_encode(tok, prompt, strlen(prompt), true, &x.ids);
        fputs(prompt, stdout);
    }

    size_t n = answer_aloud(model, tok, &x, &o->sampling, o->ask && o->think);
    fprintf(stderr, "%zu tokens, %.1f a second\n", n, n / (seconds() - start));
    answer_free(&x);
}

typedef struct { // a conversation in the terminal
    Options o;
    Tokenizer *tok;
    Model *model;
    Text messages;
    size_t system_len; // of messages: the length of the system's message
    size_t tokens, turns;
    double spent; // seconds
} Conversation;

// A line that begins with '/'.
static void chat_command(Conversation *c, const char *line) {
    if (!strcmp(line, "/reset")) {
        c->messages.len = c->system_len;
    } else if (!strcmp(line, "/think")) {
        c->o.think = !c->o.think;
        fprintf(stderr, "thinking is %s\n", c->o.think ? "on" : "off");
    } else if (!strcmp(line, "/system") || !strncmp(line, "/system ", 8)) {
        c->messages.len = 0;
        if (strlen(line) > 8) add_message(&c->messages, "system", NULL, line + 8);
        c->system_len = c->messages.len;
    } else if (!strcmp(line, "/stats")) {
        fprintf(stderr, "%zu turns, %zu tokens, %.1f a second\n", c->turns, c->tokens,
                c->spent > 0 ? c->tokens / c->spent : 0);
    } else {
        fprintf(stderr, "%s: no such command\n", line);
    }
}

// Answers a line. The conversation so far is encoded again for each turn, so that /think and
// /system take effect at once; an answer joins it with its thoughts, as in training data.
static void chat_turn(Conversation *c, const char *line) {
    size_t before = c->messages.len, context = c->model->config.max_position_embeddings;
    Answer x = {.done = false};
    add_message(&c->messages, "user", NULL, line);
    encode_messages(c->tok, &c->messages, c->o.think, &x.ids);
    if (x.ids.n >= context) {
        fprintf(stderr, "the context of %zu tokens is full; /reset begins again\n", context);
        c->messages.len = before;
    } else {
        interrupted = 0;
        signal(SIGINT, on_interrupt);
        double start = seconds();
        c->tokens += answer_aloud(c->model, c->tok, &x, &c->o.sampling, c->o.think);
        c->spent += seconds() - start;
        c->turns++;
        add_message(&c->messages, "assistant", NULL, x.text.s);
    }
    answer_free(&x);
    c->o.sampling.seed++;
}

// Reads lines from stdin until the end or /quit. Ctrl-C ends an answer.
static void cmd_chat(const Options *o, Model *model, Tokenizer *tok) {
    Conversation c = {.o = *o, .model = model, .tok = tok};
    char *line = NULL;
    size_t cap = 0;
    fprintf(stderr, "/think  /system TEXT  /reset  /stats  /quit\n");
    while (true) {
        fputs("> ", stderr);
        if (getline(&line, &cap, stdin) < 0) break;
        line[strcspn(line, "\r\n")] = 0;
        if (!strcmp(line, "/quit")) break;
        if (*line == '/') chat_command(&c, line);
        else if (*line) chat_turn(&c, line);
    }
    free(c.messages.s);
    free(line);
}

// ---- measuring ----------------------------------------------------------------------------------

// Prints one figure per line, with its standard error where it is a mean.
static void print_figures(const Figures *f) {
    for (int i = 0; i < f->n; i++) {
        printf("%-22s %.6g", f->figure[i].name, f->figure[i].value);
        if (isfinite(f->figure[i].error)) printf(" +- %.2g", f->figure[i].error);
        printf("\n");
    }
}

static void cmd_eval(const Options *o, Model *model, Tokenizer *tok) {
    Figures e = evaluate(model, tok, o);
    print_figures(&e);
}

// How long one pass over the files of --data would take, if training ran at the speed of a matrix
// product of this model's sizes. Large models come near that; tiny ones reach about half of it.
static void print_duration(const Options *o, const Model *model, Tokenizer *tok, size_t T) {
    Tokens data = tokens_open(o->data, ALL, tok, WINDOW, T, 0);
    size_t N = 512, C = model->C, F = model->F;
    float *x = new_floats(N * C + F * C + N * F); // (N, C)
    float *w = x + N * C;                         // (F, C)
    float *y = w + F * C;                         // (N, F)
    double start = seconds(), fastest = INFINITY; // of many: another program may disturb one
    while (seconds() - start < 0.5) {
        double before = seconds();
        op->linear_forward(y, x, w, N, C, F, false);
        fastest = fmin(fastest, seconds() - before);
    }

    double rate = 2.0 * N * C * F / fastest / (3 * flops_per_token(model, T));
    printf("%-34s %zu = %.3g per parameter\n", "tokens in the data", data.n_ids,
           (double)data.n_ids / model->n_params);
    printf("%-34s %.2f days = %zu tokens / %.0f a second, at most, on %d threads\n",
           "one pass over it", data.n_ids / rate / 86400, data.n_ids, rate, n_threads);
    tokens_close(&data);
    free(x);
}

// Sizes, parameters, memory and work of a preset or a checkpoint, without allocating any of it.
static void cmd_info(const Options *o) {
    const char *from = o->tokenizer || !o->data ? o->tokenizer : o->model;
    Tokenizer *tok = from ? tokenizer_load(from) : NULL;
    if (o->data && !tok) die("info --data: --tokenizer or --model is missing: a folder");
    Model *model = model_new(options_config(o, tok));
    size_t T = min_size(model->config.max_position_embeddings, o->seq ? o->seq : 512);
    for (const Tensor *t = model->tensor; t < model->tensor + model->n_tensors; t++)
        printf("%-52s (%zu, %zu) %12zu  %s%s\n", t->name, t->rows, t->cols, tensor_size(t),
               is_matrix(t) ? "normal" : "ones", t->decay ? ", decays" : "");

    double flops = flops_per_token(model, T);
    printf("\n%-34s %zu (the embedding, which is also the output matrix, counted once)\n",
           "parameters", model->n_params);
    printf("%-34s %zu\n", "active for one token", active_params(model));
    printf("%-34s %.4g forward, %.4g in training (T = %zu)\n", "floating-point operations a token",
           flops, 3 * flops, T);
    printf("%-34s %zu bytes a token\n", "KV cache",
           2 * model->L * model->KV * model->D * sizeof(float));

    double MB = 1e6 / sizeof(float), params_mb = model->n_params / MB;
    double acts_mb = acts_size(model, TRAINING, o->batch * T, 0, 0) / MB;
    printf("%-34s %.1f MB = 4 x %.1f (weights, gradients, AdamW) + %.1f (activations, %ld x %zu)\n",
           "memory to train", 4 * params_mb + acts_mb, params_mb, acts_mb, o->batch, T);
    printf("%-34s %.1f MB\n", "the same with --recompute 1",
           4 * params_mb + acts_size(model, RECOMPUTE, o->batch * T, 0, 0) / MB);
    acts_mb = acts_size(model, INFERENCE, min_size(T, 512), 1, T) / MB;
    for (int i = 0; i < 3; i++) {
        double weights = weight_bytes(model, 32 >> i) * 1e-6;
        printf("%-34s %.1f MB = %.1f (weights, %s) + %.1f (KV cache and activations, %zu "
               "positions)\n", "memory to generate", weights + acts_mb, weights, kept_as[i],
               acts_mb, T);
    }
    if (o->data) print_duration(o, model, tok, T);
    model_free(model);
    if (tok) tokenizer_free(tok);
}

// ---- the table of contents ----------------------------------------------------------------------

typedef struct {
    const char *name;
    char letter; // in the table of options
    const char *meaning;
    const Stage *stage;                                          // a stage of training, or
    void (*use)(const Options *o, Model *model, Tokenizer *tok); // to be done with --model, or
    void (*run)(const Options *o);                               // anything else
} Command;

static const Command commands[] = {
    {"pretrain", 'p', "learn to predict text: --data F --tokenizer T", .stage = &pretrain_stage},
    {"sft", 's', "learn to answer from conversations: --model DIR --data F", .stage = &sft_stage},
    {"dpo", 'd', "learn which answers are preferred: --model DIR --data F", .stage = &dpo_stage},
    {"generate", 'w', "continue --prompt, or answer --ask: --model DIR", .use = cmd_generate},
    {"chat", 'c', "talk to it: --model DIR", .use = cmd_chat},
    {"eval", 'e', "measure it on held-out data: --model DIR --data F [--task T]", .use = cmd_eval},
    {"info", 'i', "sizes, memory and work of a preset or checkpoint", .run = cmd_info},
};
enum { COMMANDS = sizeof commands / sizeof *commands };

static const char figures_help[] =
    "    loss              mean of -ln(probability of the right next token): lower is better;\n"
    "                      guessing among V tokens gives ln V, a perfect model 0\n"
    "    bits per byte     the same per byte of text: vocabularies can be compared\n"
    "    lr, norm          learning rate; length of the gradient before --clip shortens it\n"
    "    load              share of the tokens that the least and the most used expert gets\n"
    "    margin, accuracy  dpo: by how much, and how often, the chosen answer is preferred\n"
    "    +-                standard error: the true mean is within twice that in 19 of 20 cases\n";

// The commands; if `all`, with every option once. `help COMMAND` says which a command knows.
static void print_help(bool all) {
    printf("usage: minimind COMMAND [--option value]...\n\n");
    for (const Command *c = commands; c < commands + COMMANDS; c++)
        printf("    %-10s %s\n", c->name, c->meaning);
    printf("    help       all options; help COMMAND: those of one command\n");
    if (!all) return;

    printf("\noptions:\n");
    print_options(option_table, OPTIONS, 0);
    printf("\nfields of the configuration, options of pretrain, sft and info:\n");
    print_options(config_field, CONFIG_FIELDS, 0);
    printf("\npresets:");
    for (const Preset *p = presets; p < presets + PRESETS; p++) printf(" %s", p->name);
    printf("\n\nwhat the figures mean:\n%s", figures_help);
}

// The command of this name; exits if there is none. suggest() keeps the nearest name.
static const Command *find_command(const char *name) {
    const char *nearest = NULL;
    for (const Command *c = commands; c < commands + COMMANDS; c++) {
        if (!strcmp(c->name, name)) return c;
        suggest(name, c->name, &nearest);
    }
    if (nearest) die("there is no command %s; did you mean %s?", name, nearest);
    die("there is no command %s; see minimind help", name);
}

static void print_command_help(const char *name) {
    const Command *c = find_command(name);
    printf("%s: %s\n\n", c->name, c->meaning);
    print_options(option_table, OPTIONS, c->letter);
    if (!strchr("psi", c->letter)) return;
    printf("\nfields of the configuration:\n");
    print_options(config_field, CONFIG_FIELDS, 0);
}

static void run_command(const Command *c, const Options *o) {
    if (c->stage) run_stage(c->stage, o, NULL);
    if (c->run) c->run(o);
    if (!c->use) return;
    Tokenizer *tok = tokenizer_load(o->model);
    Model *model = load_model(o, tok);
    c->use(o, model, tok);
    model_free(model);
    tokenizer_free(tok);
}

int main(int argc, char **argv) {
    program = "minimind";
    const char *name = argc > 1 ? argv[1] : "", *next = argc > 2 ? argv[2] : "";
    bool help = !strcmp(name, "help") || !strcmp(name, "--help");
    if (!strcmp(name, "--version")) {
        printf("minimind %s\n", version);
    } else if (help && *next) {
        print_command_help(next);
    } else if (help || !*name) {
        print_help(help);
    } else if (!strcmp(next, "--help")) {
        print_command_help(name);
    } else {
        const Command *c = find_command(name);
        Options o = {0};
        read_options(argv + 2, c->letter, &o, (OptionSet){0}, NULL);
        run_command(c, &o);
        free(o.fields.s);
    }
    if (fflush(stdout) || ferror(stdout)) die("standard output cannot be written");
    return 0;
}
