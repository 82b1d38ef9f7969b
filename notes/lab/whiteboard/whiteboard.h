// whiteboard.h - the functions of the ten tasks. Your file includes it, and test.c calls them.
//
// The letters are those of minimind.c: T tokens, H query heads, KV key/value heads, D numbers in a
// head, C the hidden size, V the vocabulary, N tokens, E experts, K experts per token. Arrays are
// row-major; a shape lists the slowest index first. dx means d loss / d x.

#ifndef WHITEBOARD_H
#define WHITEBOARD_H

#include <math.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

// A skeleton does not use its parameters yet. That needs no warning.
#pragma GCC diagnostic ignored "-Wunused-parameter"

// 1. attention.c
void my_attention(float *out, float *k_cache, float *v_cache, float *scores, const float *q,
                  const float *k, const float *v, size_t T, size_t past, size_t H, size_t KV,
                  size_t D);

// 2. attention_backward.c
void my_attention_backward(float *dq, float *dk, float *dv, float *p, float *dp, const float *dout,
                           const float *q, const float *k, const float *v, size_t T, size_t H,
                           size_t KV, size_t D);

// 3. cross_entropy.c
void my_softmax(float *p, const float *x, size_t n);
void my_softmax_backward(float *dx, const float *dp, const float *p, size_t n);
float my_cross_entropy(float *dlogits, const float *logits, const int *target, size_t n, size_t V);

// 4. rmsnorm.c
void my_rmsnorm(float *y, float *rstd, const float *x, const float *w, size_t n, size_t C,
                float eps);
void my_rmsnorm_backward(float *dx, float *dw, const float *dy, const float *x, const float *w,
                         const float *rstd, size_t n, size_t C);

// 5. rope.c
void my_rope(float *x, size_t T, size_t heads, size_t D, size_t past, float theta,
             float direction);

// 6. top_p.c
void my_distribution(float *probs, int *order, const float *logits, size_t V, float temperature,
                     size_t k, float p);
int my_draw(const float *probs, size_t V, float u);

// 7. bpe.c
typedef struct { int left, right; } Merge; // merge number m makes the token 256 + m of the two
int my_bpe_train(Merge *merge, int n_merges, int *ids, int n);
int my_bpe_encode(int *ids, int n, const Merge *merge, int n_merges);

// 8. adamw.c
void my_adamw(float *w, float *m, float *v, const float *g, size_t n, long step, float lr,
              float beta1, float beta2, float eps, float decay);

// 9. router.c
void my_router(float *prob, int *choice, float *mix, const float *scores, size_t N, size_t E,
               size_t K, bool renormalise);
void my_router_backward(float *dscores, const float *dmix, const float *prob, const int *choice,
                        const float *mix, size_t N, size_t E, size_t K, bool renormalise);

// 10. dpo.c
float my_dpo(float *dlogp, const float *logp, const int *length, const float *ref_sum, size_t pairs,
             size_t T, float beta);

#endif
