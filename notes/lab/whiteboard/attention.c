// Whiteboard 1, attention: causal grouped-query attention with a KV cache (20 minutes)
//
// QUESTION. "Write the forward pass of causal attention as a chat program needs it. T new tokens
// come in with their queries, keys and values. The cache holds the keys and values of `past`
// earlier tokens. Append the new keys and values to the cache. Then compute the output of every new
// token. There are H query heads, but only KV key/value heads: neighbouring query heads share one."
//
// SHAPES, one sequence:
//     q, out              (T, H, D)
//     k, v                (T, KV, D)
//     k_cache, v_cache    (room, KV, D)    positions 0 .. past - 1 are filled; room >= past + T
//     scores              (past + T)       work space
//
// GRADED: the scale of the scores; the mask, also with a cache; a softmax that cannot overflow; the
// right head and the right stride for keys and values; where the new keys go. Speed is not.
//
// TEST: notes/lab/whiteboard/run.sh attention
// HINTS: at the end of this file.

#include "whiteboard.h"

void my_attention(float *out, float *k_cache, float *v_cache, float *scores, const float *q,
                  const float *k, const float *v, size_t T, size_t past, size_t H, size_t KV,
                  size_t D) {
    // Your code.
}























// HINTS. Read one, and try again.
//
// 1. First copy k and v behind the `past` positions of the cache. From then on read the cache only.
//
// 2. Three loops around the work: over the new tokens t, over the query heads h, and inside over
//    the keys j that query t sees. The last of these keys is that of token t itself.
//
// 3. The position of new token t in the sequence is past + t. So it sees past + t + 1 keys.
//
// 4. From one key to the next key of the same head it is KV * D numbers; from one query to the next
//    query of the same head H * D. Query head h reads key/value head h / (H / KV).
//
// 5. softmax: e^(s - max) / sum of e^(s - max), where max is the largest of the scores s.
