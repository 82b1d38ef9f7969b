# wrong.sh - the usual wrong answers to the ten tasks. run.sh --all reads this list: each is made
# from the model answer by replacing one text by another, and has to fail its test.
#
# wrong TASK "what is wrong" 'text of the answer' 'text instead' [another pair of texts]

# ---- 1. attention -------------------------------------------------------------------------------

wrong attention "no 1 / sqrt(D)" 'dot / sqrtf(D)' 'dot'
wrong attention "divided by D, not by its root" 'dot / sqrtf(D)' 'dot / D'
wrong attention "mask off by one: not the token itself" 'n = past + t + 1;' 'n = past + t;'
wrong attention "mask off by one: the next token too" 'n = past + t + 1;' \
    'n = past + (t + 1 < T ? t + 2 : T);'
wrong attention "no mask" 'n = past + t + 1;' 'n = past + T;'
wrong attention "the mask forgets the cache" 'n = past + t + 1;' 'n = t + 1;'
wrong attention "keys walked with the stride of the queries" 'keys[j * stride + d]' \
    'keys[j * H * D + d]'
wrong attention "values walked with stride D" 'values[j * stride + d]' 'values[j * D + d]'
wrong attention "query heads interleaved over the key heads" 'head = h / G;' 'head = h % KV;'
wrong attention "softmax without the maximum" 'expf(scores[j] - max)' 'expf(scores[j])'
wrong attention "maximum begins with 0" 'max = -INFINITY' 'max = 0'
wrong attention "softmax not divided by its sum" 'scores[j] / sum *' 'scores[j] *'
wrong attention "the cache is written from its beginning" 'memcpy(k_cache + past * stride' \
    'memcpy(k_cache'
wrong attention "cache position off by one" 'memcpy(v_cache + past * stride' \
    'memcpy(v_cache + (past + 1) * stride'
wrong attention "the new keys are not cached" 'T * stride * sizeof *k' '0 * stride * sizeof *k'

# ---- 2. attention_backward ----------------------------------------------------------------------

wrong attention_backward "softmax backward without the row sum" 'p[j] * (dp[j] - p_dp)' \
    'p[j] * dp[j]'
wrong attention_backward "the row sum adds dp, not p dp" 'p_dp += p[j] * dp[j];' 'p_dp += dp[j];'
wrong attention_backward "the factor p in ds forgotten" 'p[j] * (dp[j] - p_dp)' '(dp[j] - p_dp)'
wrong attention_backward "scale missing on dq" 'ds * scale * k[' 'ds * k['
wrong attention_backward "scale missing on dk" 'ds * scale * q[' 'ds * q['
wrong attention_backward "scale missing when p is computed again" 'p[j] *= scale;' ';'
wrong attention_backward "dk not summed over the group" 'dk[key0 + j * stride + d] +=' \
    'if (h % (H / KV) == 0) dk[key0 + j * stride + d] +='
wrong attention_backward "dv not summed over the group" 'dv[key0 + j * stride + d] +=' \
    'if (h % (H / KV) == 0) dv[key0 + j * stride + d] +='
wrong attention_backward "dk overwritten by each query" 'dk[key0 + j * stride + d] +=' \
    'dk[key0 + j * stride + d] ='
wrong attention_backward "dv overwritten by each query" 'dv[key0 + j * stride + d] +=' \
    'dv[key0 + j * stride + d] ='
wrong attention_backward "dk shared out to the wrong head" 'key0 = h / (H / KV) * D;' \
    'key0 = h % KV * D;'
wrong attention_backward "no mask" 'n = t + 1;' 'n = T;'
wrong attention_backward "dk and dv are not set to 0 first" \
    'memset(dk, 0, T * stride * sizeof *dk);' ''
wrong attention_backward "dv with dp instead of p" 'p[j] * dout[query + d];' \
    'dp[j] * dout[query + d];'

# ---- 3. cross_entropy ---------------------------------------------------------------------------

wrong cross_entropy "softmax without the maximum" 'p[i] = expf(x[i] - max);' 'p[i] = expf(x[i]);'
wrong cross_entropy "softmax: maximum begins with 0" 'for (size_t i = 1; i < n; i++) max' \
    'max = 0; for (size_t i = 0; i < n; i++) max'
wrong cross_entropy "loss: maximum begins with 0" 'for (size_t v = 1; v < V; v++) max' \
    'max = 0; for (size_t v = 0; v < V; v++) max'
wrong cross_entropy "softmax: maximum begins with -10000" 'for (size_t i = 1; i < n; i++) max' \
    'max = -10000; for (size_t i = 0; i < n; i++) max'
wrong cross_entropy "softmax backward without the sum" 'p[j] * (dp[j] - dot)' 'p[j] * dp[j]'
wrong cross_entropy "softmax backward with p (1 - p) alone" 'p[j] * (dp[j] - dot)' \
    'p[j] * (1 - p[j]) * dp[j]'
wrong cross_entropy "loss: divided by all rows" '- x[target[i]]) / count' '- x[target[i]]) / n'
wrong cross_entropy "loss: the sum, not the mean" '- x[target[i]]) / count' '- x[target[i]])'
wrong cross_entropy "gradient: divided by all rows" 'log_sum_exp) / count' 'log_sum_exp) / n' \
    '1.0f / count' '1.0f / n'
wrong cross_entropy "gradient: not divided" 'log_sum_exp) / count' 'log_sum_exp)' '1.0f / count' \
    '1.0f'
wrong cross_entropy "gradient: onehot forgotten" 'dx[target[i]] -= 1.0f / count;' ''
wrong cross_entropy "gradient: onehot - softmax" 'dx[v] = expf(x[v] - log_sum_exp)' \
    'dx[v] = -expf(x[v] - log_sum_exp)' 'dx[target[i]] -=' 'dx[target[i]] +='
wrong cross_entropy "log of a softmax that may be 0" '(log_sum_exp - x[target[i]]) / count' \
    '-logf(expf(x[target[i]] - log_sum_exp)) / count'
wrong cross_entropy "log of the sum without the maximum" 'sum += expf(x[v] - max);' \
    'sum += expf(x[v]);' 'max + logf(sum)' 'logf(sum)'
wrong cross_entropy "rows that do not count keep their garbage" 'memset(dx, 0, V * sizeof *dx);' ''
wrong cross_entropy "target -1 taken for token 0" 'if (target[i] < 0) {' 'if (false) {' \
    '- x[target[i]])' '- x[target[i] < 0 ? 0 : target[i]])' 'dx[target[i]] -=' \
    'dx[target[i] < 0 ? 0 : target[i]] -='

# ---- 4. rmsnorm ---------------------------------------------------------------------------------

wrong rmsnorm "eps outside of the root" '1 / sqrtf(squares / C + eps)' \
    '1 / (sqrtf(squares / C) + eps)'
wrong rmsnorm "sum of squares, not the mean" '1 / sqrtf(squares / C + eps)' \
    '1 / sqrtf(squares + eps)'
wrong rmsnorm "the sum goes on over the rows" 'float squares = 0;' 'static float squares;'
wrong rmsnorm "w forgotten in the forward pass" 'w[c] * x[i * C + c] * rstd[i]' \
    'x[i * C + c] * rstd[i]'
wrong rmsnorm "dx: the path through r forgotten" 'w[c] * r - through_r' 'w[c] * r'
wrong rmsnorm "dx: the path through r not divided by C" 'r * r * r / C * dot' 'r * r * r * dot'
wrong rmsnorm "dx: r squared" 'r * r * r / C * dot' 'r * r / C * dot'
wrong rmsnorm "dx: the path through r added" 'w[c] * r - through_r' 'w[c] * r + through_r'
wrong rmsnorm "dx: w missing in the sum" 'dot += dy_i[j] * w[j] * x_i[j]' 'dot += dy_i[j] * x_i[j]'
wrong rmsnorm "dx: w missing in the direct path" 'dy_i[c] * w[c] * r - ' 'dy_i[c] * r - '
wrong rmsnorm "dx overwritten" 'dx[i * C + c] +=' 'dx[i * C + c] ='
wrong rmsnorm "dw: the last row only" 'dw[c] +=' 'dw[c] ='
wrong rmsnorm "dw: r forgotten" 'dw[c] += dy_i[c] * x_i[c] * r;' 'dw[c] += dy_i[c] * x_i[c];'

# ---- 5. rope ------------------------------------------------------------------------------------

wrong rope "interleaved pairs (i, i + 1)" '(t * heads + h) * D + i;' \
    '(t * heads + h) * D + 2 * i;' 'b = a + D / 2;' 'b = a + 1;'
wrong rope "backward not turned back" 'angle = direction * (past + t)' 'angle = 1.0f * (past + t)'
wrong rope "backward: the whole result negated" 'cosine = cosf(angle)' \
    'cosine = direction * cosf(angle)'
wrong rope "position off by one" '(past + t) * frequency' '(past + t + 1) * frequency'
wrong rope "position of the first token ignored" '(past + t) * frequency' 't * frequency'
wrong rope "position counts heads" '(past + t) * frequency;' 'past * frequency;' \
    'float *b = a + D / 2;' 'float *b = a + D / 2;
                angle = direction * (past + t * heads + h) * frequency;
                cosine = cosf(angle), sine = sinf(angle);'
wrong rope "frequency: i / D without the 2" '-2.0f * i / D' '-1.0f * i / D'
wrong rope "frequency: whole-number division" '-2.0f * i / D' '-2.0f * (i / D)'
wrong rope "frequency: theta^(+2i / D)" '-2.0f * i / D' '2.0f * i / D'
wrong rope "the new x[i] used for x[i + D/2]" 'x_b * cosine + x_a * sine' 'x_b * cosine + *a * sine'
wrong rope "turns the other way" 'x_a * cosine - x_b * sine' 'x_a * cosine + x_b * sine' \
    'x_b * cosine + x_a * sine' 'x_b * cosine - x_a * sine'

# ---- 6. top_p -----------------------------------------------------------------------------------

wrong top_p "cut before the token that crosses p" 'if (p < 1 && kept > p) probs' \
    'if (p < 1 && kept + probs[order[i]] > p) probs'
wrong top_p "that, but the first token always stays" 'if (p < 1 && kept > p) probs' \
    'if (p < 1 && i > 0 && kept + probs[order[i]] > p) probs'
wrong top_p "not divided by the sum at the end" 'probs[v] /= kept;' 'probs[v] /= 1;'
wrong top_p "filter before temperature" '(logits[order[i]] - max) / temperature' \
    '(logits[order[i]] - max)' 'for (size_t v = 0; v < V; v++) probs[v] /= kept;' \
    'for (size_t v = 0; v < V; v++) probs[v] = powf(probs[v] / kept, 1 / temperature);
    kept = 0;
    for (size_t v = 0; v < V; v++) kept += probs[v];
    for (size_t v = 0; v < V; v++) probs[v] /= kept;'
wrong top_p "multiplied by the temperature" 'max) / temperature' 'max) * temperature'
wrong top_p "temperature 0 divides by 0" 'if (temperature == 0) {' 'if (false) {'
wrong top_p "temperature on the probabilities" '(logits[order[i]] - max) / temperature' \
    'logits[order[i]] - max' 'sum += probs[order[i]];' \
    'probs[order[i]] /= temperature; sum += probs[order[i]];'
wrong top_p "softmax without the maximum" '(logits[order[i]] - max) / temperature' \
    'logits[order[i]] / temperature'
wrong top_p "top-p over all tokens, top-k afterwards" \
    'size_t n = k > 0 && k < V ? k : V;' 'size_t n = V;' 'if (p < 1 && kept > p) probs' \
    'if ((p < 1 && kept > p) || (k > 0 && i >= k)) probs'
wrong top_p "top-k larger than V" 'k > 0 && k < V ? k : V' 'k > 0 ? k : V'
wrong top_p "k = 0 taken for no token" 'k > 0 && k < V ? k : V' 'k < V ? k : V'
wrong top_p "sorted upwards" 'logits[order[j - 1]] < logits[v]' 'logits[order[j - 1]] > logits[v]'
wrong top_p "draw: a token of probability 0" 'if (probs[v] == 0) continue;' '' 'if (u < probs[v])' \
    'if (u <= probs[v])'
wrong top_p "draw: u is not made smaller" 'u -= probs[v];' ''
wrong top_p "draw: V if u is left over" 'if (u < probs[v]) break;' \
    'if (u < probs[v]) return (int)v;' 'return last;' 'return (int)V;'

# ---- 7. bpe -------------------------------------------------------------------------------------

wrong bpe "overlapping pairs are both replaced" 'if (found) i++;' \
    'if (found && !(i + 2 < n && ids[i + 2] == pair.right && pair.left == pair.right)) i++;'
wrong bpe "the right one stays" 'if (found) i++;' ''
wrong bpe "overlapping pairs are counted once" 'int count = 0;' 'int count = 0, last = -2;' \
    'count += ids[j] == pair.left && ids[j + 1] == pair.right;' \
    'if (j > last + 1 && ids[j] == pair.left && ids[j + 1] == pair.right) last = j, count++;'
wrong bpe "ties: the first in the text" 'count > most || (count == most && smaller)' 'count > most'
wrong bpe "ties: the last in the text" 'count > most || (count == most && smaller)' \
    'count >= most'
wrong bpe "ties: the larger ids" 'count == most && smaller' 'count == most && !smaller'
wrong bpe "ties: the left id only" '(pair.left == best.left && pair.right < best.right)' 'false'
wrong bpe "pairs across the ends of words" 'if (pair.left < 0 || pair.right < 0) continue;' ''
wrong bpe "merges go on when no pair is left" 'if (most == 0) return m;' ''
wrong bpe "counted once, not after each merge" 'n = replace(ids, n, best, 256 + m);' \
    'for (int i = 0; i + 1 < n; i++)
            if (ids[i] == best.left && ids[i + 1] == best.right) ids[i] = -1;'
wrong bpe "new tokens begin at 255" 'n = replace(ids, n, best, 256 + m);' \
    'n = replace(ids, n, best, 255 + m);'
wrong bpe "encode: from left to right, whatever the rank" 'for (int m = 0; m < lowest; m++)' \
    'for (int m = 0; m < n_merges && lowest == n_merges; m++)'
wrong bpe "encode: the last merge first" 'for (int m = 0; m < lowest; m++)' \
    'for (int m = lowest == n_merges ? 0 : lowest; m < n_merges; m++)'
wrong bpe "encode: one merge only" 'n = replace(ids, n, merge[lowest], 256 + lowest);' \
    'return replace(ids, n, merge[lowest], 256 + lowest);'
wrong bpe "encode: the longest token that fits" '#include "whiteboard.h"' \
    '#include "whiteboard.h"

static int spell(int *to, int id, const Merge *merge) {
    if (id < 256) *to = id;
    if (id < 256) return 1;
    int n = spell(to, merge[id - 256].left, merge);
    return n + spell(to + n, merge[id - 256].right, merge);
}' '    while (true) {' \
    '    int out = 0;
    for (int i = 0, longest; i < n; i += longest) {
        int made = ids[i], letters[100];
        longest = 1;
        for (int m = 0; m < n_merges; m++) {
            int size = spell(letters, 256 + m, merge);
            if (size <= longest || i + size > n) continue;
            if (memcmp(letters, ids + i, (size_t)size * sizeof *ids)) continue;
            longest = size;
            made = 256 + m;
        }
        ids[out++] = made;
    }
    return out;
    while (true) {'

# ---- 8. adamw -----------------------------------------------------------------------------------

wrong adamw "decay through the gradient (L2)" 'm[i] = beta1 * m[i] + (1 - beta1) * g[i];' \
    'float l2 = g[i] + decay * w[i];
        m[i] = beta1 * m[i] + (1 - beta1) * l2;' '(1 - beta2) * g[i] * g[i];' \
    '(1 - beta2) * l2 * l2;' 'w[i] -= lr * decay * w[i];' ''
wrong adamw "no bias correction" 'float m_sum = 1 - powf(beta1, step);' 'float m_sum = 1;' \
    'float v_sum = 1 - powf(beta2, step);' 'float v_sum = 1;'
wrong adamw "no bias correction of v" 'float v_sum = 1 - powf(beta2, step);' 'float v_sum = 1;'
wrong adamw "the corrected mean is stored" 'float m_mean = m[i] / m_sum;' \
    'float m_mean = m[i] /= m_sum;'
wrong adamw "step counts from 0" 'powf(beta1, step)' 'powf(beta1, step - 1)'
wrong adamw "eps inside of the root" 'sqrtf(v_mean) + eps' 'sqrtf(v_mean + eps)'
wrong adamw "eps before the correction" 'float v_mean = v[i] / v_sum;' \
    'float v_mean = sqrtf(v[i]) + eps;' 'sqrtf(v_mean) + eps' 'v_mean / sqrtf(v_sum)'
wrong adamw "the root before the correction" 'sqrtf(v_mean) + eps' 'sqrtf(v[i]) / v_sum + eps'
wrong adamw "no root" 'sqrtf(v_mean) + eps' 'v_mean + eps'
wrong adamw "decay not times lr" 'lr * decay * w[i]' 'decay * w[i]'
wrong adamw "decay of the new w" 'w[i] -= lr * decay * w[i];' '' \
    'w[i] -= lr * m_mean / (sqrtf(v_mean) + eps);' \
    'w[i] -= lr * m_mean / (sqrtf(v_mean) + eps);
        w[i] -= lr * decay * w[i];'
wrong adamw "v without the square" '(1 - beta2) * g[i] * g[i];' '(1 - beta2) * fabsf(g[i]);'
wrong adamw "beta1 and beta2 exchanged" 'beta1 * m[i] + (1 - beta1) * g[i]' \
    'beta2 * m[i] + (1 - beta2) * g[i]'

# ---- 9. router ----------------------------------------------------------------------------------

wrong router "softmax after top-k" 'sum += p[e];' 'sum += p[e]; // of all' \
    'mix[n * K + k] = p[best];' 'mix[n * K + k] = p[best] * sum;' \
    'for (size_t k = 0; renormalise && k < K; k++) mix[n * K + k] /= chosen_sum;' \
    'for (size_t k = 0; k < K; k++) mix[n * K + k] /= chosen_sum * sum;'
wrong router "an expert is chosen twice" 'if (!taken && (best < 0' 'if ((best < 0'
wrong router "the experts with the smallest prob" 'p[e] > p[best]' 'p[e] < p[best]'
wrong router "not renormalised" 'mix[n * K + k] /= chosen_sum;' ';'
wrong router "always renormalised" 'for (size_t k = 0; renormalise && k < K; k++)' \
    'for (size_t k = 0; k < K; k++)'
wrong router "softmax over all tokens" 'float max = s[0], sum = 0, chosen_sum = 0;' \
    'static float sum; float max = s[0], chosen_sum = 0;'
wrong router "experts that are not chosen get a dprob" 'ds[e] = 0; // an expert' \
    'ds[e] = dmix[n * K]; // an expert'
wrong router "scores that are not chosen get no gradient" 'ds[e] = p[e] * (ds[e] - p_dp);' \
    'ds[e] = ds[e] == 0 ? 0 : p[e] * (ds[e] - p_dp);'
wrong router "renormalisation not differentiated" \
    'renormalise ? (dmix[i] - mix_dmix) / chosen_sum : dmix[i]' 'dmix[i]'
wrong router "its sum taken for a constant" '(dmix[i] - mix_dmix) / chosen_sum' \
    'dmix[i] / chosen_sum'
wrong router "its sum forgotten as divisor" '(dmix[i] - mix_dmix) / chosen_sum' \
    '(dmix[i] - mix_dmix)'
wrong router "softmax backward forgotten" 'ds[e] = p[e] * (ds[e] - p_dp);' ';'
wrong router "softmax backward without the sum" 'p[e] * (ds[e] - p_dp)' 'p[e] * ds[e]'

# ---- 10. dpo ------------------------------------------------------------------------------------

wrong dpo "mean over the tokens, not their sum" 'gain[side] = sum - ref_sum[row];' \
    'gain[side] = (sum - ref_sum[row]) / length[row];'
wrong dpo "no reference" 'gain[side] = sum - ref_sum[row];' 'gain[side] = sum;'
wrong dpo "one reference for both answers" 'sum - ref_sum[row]' 'sum - ref_sum[2 * j]'
wrong dpo "rejected gets the sign of chosen" 'side == 0 ? 1 : -1' '1'
wrong dpo "both signs wrong" 'side == 0 ? 1 : -1' 'side == 0 ? -1 : 1'
wrong dpo "sigmoid of +margin" '(1 + expf(margin))' '(1 + expf(-margin))'
wrong dpo "rejected minus chosen" 'beta * (gain[0] - gain[1])' 'beta * (gain[1] - gain[0])'
wrong dpo "beta missing in the margin" 'beta * (gain[0] - gain[1])' '(gain[0] - gain[1])'
wrong dpo "beta missing in the gradient" '-beta / (1 + expf(margin))' '-1 / (1 + expf(margin))'
wrong dpo "the sum over the pairs, not the mean" 'fminf(margin, 0)) / pairs;' 'fminf(margin, 0));' \
    '(1 + expf(margin)) / pairs' '(1 + expf(margin))'
wrong dpo "gradient divided by the tokens too" '(1 + expf(margin)) / pairs' \
    '(1 + expf(margin)) / pairs / T'
wrong dpo "overflow at large margins" 'log1pf(expf(-fabsf(margin))) - fminf(margin, 0)' \
    'logf(1 + expf(-margin))'
wrong dpo "log of a sigmoid that is 0" 'log1pf(expf(-fabsf(margin))) - fminf(margin, 0)' \
    '-logf(1 / (1 + expf(-margin)))'
wrong dpo "padding is part of the sum" 't < length[row]; t++' 't < (int)T; t++'
wrong dpo "padding gets a gradient" 'real ? sign * slope : 0' 'sign * slope'
