// A model answer for attention.c. In the book: attention_forward() and attention_row_forward().

#include "whiteboard.h"

void my_attention(float *out, float *k_cache, float *v_cache, float *scores, const float *q,
                  const float *k, const float *v, size_t T, size_t past, size_t H, size_t KV,
                  size_t D) {
    size_t G = H / KV;       // query heads that share a key/value head
    size_t stride = KV * D;  // numbers from one position of the cache to the next
    memcpy(k_cache + past * stride, k, T * stride * sizeof *k);
    memcpy(v_cache + past * stride, v, T * stride * sizeof *v);

    for (size_t t = 0; t < T; t++)
        for (size_t h = 0; h < H; h++) {
            size_t head = h / G;                            // the key/value head that h reads
            const float *query = q + (t * H + h) * D;       // (D)
            const float *keys = k_cache + head * D;         // key j is at keys + j * stride
            const float *values = v_cache + head * D;       // likewise
            float *result = out + (t * H + h) * D;          // (D)
            size_t n = past + t + 1;                        // the mask: query t sees n keys
            float max = -INFINITY, sum = 0;

            for (size_t j = 0; j < n; j++) {
                float dot = 0;
                for (size_t d = 0; d < D; d++) dot += query[d] * keys[j * stride + d];
                scores[j] = dot / sqrtf(D);
                max = fmaxf(max, scores[j]);
            }
            for (size_t j = 0; j < n; j++) {
                scores[j] = expf(scores[j] - max);
                sum += scores[j];
            }

            for (size_t d = 0; d < D; d++) result[d] = 0;
            for (size_t j = 0; j < n; j++)
                for (size_t d = 0; d < D; d++)
                    result[d] += scores[j] / sum * values[j * stride + d];
        }
}

// Say while you write:
//   - The variance of q . k is D if the components have variance 1; sqrt(D) brings it back to 1.
//   - The mask is the loop bound. Scores of -infinity would give the same numbers, at more work.
//   - Keys are cached after RoPE, values as they are; queries are needed once and not cached.
//   - The cache takes 2 * layers * KV * D numbers per token; GQA makes it G times smaller.
//   - Decoding n tokens costs O(n) per token with the cache, O(n^2) without.
