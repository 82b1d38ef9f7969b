// minimind.c - a language model in one C file: every layer, every gradient, every stage.
//
// MiniMind (https://github.com/jingyaogong/minimind) is a small Chinese-English language model that
// people train to learn how a modern one works. In PyTorch the part worth understanding happens
// inside a library. Here nothing does: this file computes the forward pass, the backward pass, the
// optimiser and the sampling with loops you can read and step through in a debugger.
//
//     cc -O3 -march=native -o minimind minimind.c -lm      (add -fopenmp to use all cores)
//     ./minimind                                           makes a tiny world and learns it
//
// It refuses to be a framework: no graph, no autograd, no library but libc and libm. A layer is a
// function; its gradient is the function right below it.
//
// THE MODEL. A decoder-only transformer of the Llama / Qwen3 family. With the sizes of the preset
// minimind3 (C = 768, H = 8, KV = 4, D = 96, F = 2432, V = 6400, L = 8), one block computes
//
//     x (T, 768) --+--> RMSNorm --> q (T, 8, 96), k and v (T, 4, 96) --> norm and rotate q and k
//                  |    --> causal attention (query heads 2j and 2j + 1 read key/value head j)
//                  |    --> o_proj (T, 768) --+
//                  +--------------------------+--> x_mid --+--> RMSNorm
//                       --> down(silu(gate(x)) * up(x)), inner width 2432 --+
//                                                          +----------------+--> x of next block
//
// Before the first block stands the embedding (V, C), after the last one an RMSNorm and the same
// embedding again, read as the output matrix ("tied"). In a mixture of experts (MoE) gate, up and
// down exist E times, and a router sends every token to K of them.
//
// THE LETTERS, used everywhere, in shapes as well as in names:
//
//     B  sequences in a batch     H   query heads             F  inner width of a feed-forward
//     T  tokens in a sequence     KV  key/value heads         E  routed experts
//     N  rows, B * T              G   H / KV                  K  experts a token
//     C  hidden size              D   head_dim                S  experts every token visits
//                                 L   layers                  V  vocabulary size
//
// THE CONVENTIONS, stated once:
//   - Arrays are row-major; a shape in a comment lists the slowest index first.
//   - A weight is (out, in), as in PyTorch: y = x W^T.
//   - dx means d loss / d x. Weight gradients are added to (+=): what zeroes them is the optimiser
//     step. Every other gradient says at its function whether it is added or overwritten.
//   - RoPE turns component i together with component i + D/2 ("half split", as in Hugging Face's
//     Llama; Meta's own weights are interleaved).
//   - Labels are shifted in exactly one place: shift() sets target[t] = ids[t + 1].
//   - The forward pass ends in logp, the log-probability of each target, one number for each row
//     that has one. An objective is a function of logp alone; it returns the loss and fills dlogp,
//     where the backward pass starts.
//   - The same seed gives the same bits on the same machine, whatever the number of threads: every
//     output has one owner, and no sum depends on how the work was split.
//
// In the chapter on the matrix product M, N and K are the sizes of a product instead.
//
// THE CONTENTS. Search for "// ====" to walk through the chapters; main() at the end lists the
// commands. tokenizer.c holds the text layer: helpers, JSON, byte-pair encoding.

#define MINIMIND
#include "tokenizer.c"
#include <float.h>
#include <inttypes.h>
#include <math.h>
#include <signal.h>
#include <stddef.h>
#include <sys/mman.h>
#include <time.h>
#ifdef _OPENMP
#include <omp.h>
#endif

// A compiler without OpenMP need not mention that it skips the "#pragma omp" lines.
#pragma GCC diagnostic ignored "-Wunknown-pragmas"

static int n_threads = 1; // every parallel loop says num_threads(n_threads); set by --threads

// Where the time goes: lap(PART) adds what has passed since the last lap to that part. For bench.
enum Part { NORMS, PROJECTIONS, ATTENTION, ROUTING, EXPERTS, HEAD, OPTIMISER, PARTS };
static double lap_time[PARTS], last_lap;

static void lap(enum Part part) {
    double now = seconds();
    lap_time[part] += now - last_lap, last_lap = now;
}

static size_t min_size(size_t a, size_t b) { return a < b ? a : b; }
static double worse(double a, double b) { return b <= a ? a : b; } // unlike fmax, keeps a NaN
static size_t round_up(size_t n, size_t unit) { return (n + unit - 1) / unit * unit; }

// =================================================================================================
// The matrix product
//
// A language model spends nine tenths of its time on three products, all of one layer y = x w^T
// with x (n, in), w (out, in), y (n, out):
//
//     forward          y  (n, out)  = x    (n, in)   * w^T (in, out)
//     input gradient   dx (n, in)   = dy   (n, out)  * w   (out, in)
//     weight gradient  dw (out, in) = dy^T (out, n)  * x   (n, in)
//
// They differ only in which operand is read transposed. So there is one product, c = a b, and its
// operands are views: a pointer and two strides. The definition is the triple loop of
// matmul_definition(), but that waits for memory: each multiplication loads two numbers. The remedy
// is to keep an MR x NR block of c in registers and to walk along k, where MR + NR loads feed
// MR * NR multiplications (the method of Goto and van de Geijn, "Anatomy of High-Performance Matrix
// Multiplication", 2008):
//
//                    b  NR columns                 The panels are copied ("packed") first so that
//                       +----+                     the loop reads them straight through. (Rows of
//                       |    | k runs down         a that are contiguous are that already.)
//            a          |    |                     A block of b, KC x NC, is packed once and used
//         k runs right  +----+                     for all rows of a; of a, MC rows of KC numbers
//      MR +-----------+ +----+                     meet it at a time. Both stay in the second-level
//         |           | |acc | MR x NR             cache meanwhile.
//         +-----------+ +----+
// =================================================================================================

// MR x NR must fill the vector registers without overflowing them, with room for the operands:
// AVX has 16 registers of 8 floats for 6 x 16 numbers, AVX-512 32 of 16 floats for 12 x 32.
// Elsewhere (plain -O3, ARM) a register has 4 floats. Lanes is such a register; + and * act on all
// its floats.
#if defined __AVX512F__
enum { VECTOR = 64, MR = 12 };
#elif defined __AVX__
enum { VECTOR = 32, MR = 6 };
#else
enum { VECTOR = 16, MR = 4 };
#endif
typedef float Lanes __attribute__((vector_size(VECTOR)));
enum { LANES = VECTOR / sizeof(float), NR = 2 * LANES };
enum { MC = 96, KC = 1024, NC = 384 }; // of the blocks; whole panels fit into them
enum { THIN = 12 };                   // with fewer rows than this, packing does not pay

// A matrix to be read: element (i, j) stands at at[i * row + j * col].
typedef struct {
    const float *at;
    size_t row, col;
} View;

// Of x, stored in rows of `width` numbers: as it is, or with rows and columns exchanged, so that
// transposed(dy, out) is dy^T (out, n).
static View plain(const float *x, size_t width) { return (View){x, width, 1}; }
static View transposed(const float *x, size_t width) { return (View){x, 1, width}; }
static View flip(View v) { return (View){v.at, v.col, v.row}; }
static View part(View v, size_t i, size_t j) {
    return (View){v.at + i * v.row + j * v.col, v.row, v.col};
}

// c (M, N) = a (M, K) b (K, N), or += with add. `check` holds what follows against this.
static void matmul_definition(size_t M, size_t N, size_t K, View a, View b, float *c, bool add) {
    for (size_t i = 0; i < M; i++)
        for (size_t j = 0; j < N; j++) {
            double sum = add ? c[i * N + j] : 0;
            for (size_t k = 0; k < K; k++)
                sum += (double)a.at[i * a.row + k * a.col] * b.at[k * b.row + j * b.col];
            c[i * N + j] = sum;
        }
}

// n floats, all zero, from the beginning of a cache line on: a vector that lies across two lines
// is loaded in two steps. *block is what free() wants.
static float *new_floats(size_t n, void **block) {
    *block = xcalloc(n + 64 / sizeof(float), sizeof(float));
    return (float *)round_up((uintptr_t)*block, 64);
}

static inline Lanes load(const float *x) { // from any address
    Lanes v;
    memcpy(&v, x, sizeof v);
    return v;
}

// The sum of all lanes, 16 bytes at a time: in a chain of additions each waits for the last.
static inline float total(Lanes v) {
    typedef float Quarter __attribute__((vector_size(16)));
    Quarter part[sizeof v / sizeof(Quarter)], sum = {0};
    float x[4] = {0};
    memcpy(part, &v, sizeof v);
    for (size_t i = 0; i < sizeof v / sizeof sum; i++) sum += part[i];
    memcpy(x, &sum, sizeof sum);
    return x[0] + x[1] + (x[2] + x[3]);
}

// Every lane adds up its own part of the sum: a compiler may not reorder additions by itself (that
// would take -ffast-math), so the order that suits vector registers is written down.
static float dot(const float *a, const float *b, size_t n) {
    Lanes acc[2] = {{0}};
    size_t i = 0;
    for (; i + NR <= n; i += NR) {
        acc[0] += load(a + i) * load(b + i);
        acc[1] += load(a + i + LANES) * load(b + i + LANES);
    }
    float sum = total(acc[0] + acc[1]);
    for (; i < n; i++) sum += a[i] * b[i];
    return sum;
}

// y[0], y[ldy], ... += a b for four rows of a, lda apart: four times the work for each load of b.
static void dot4(float *y, size_t ldy, const float *a, size_t lda, const float *b, size_t n) {
    Lanes acc[4][2] = {{{0}}};
    size_t i = 0;
    for (; i + NR <= n; i += NR) {
        Lanes b0 = load(b + i), b1 = load(b + i + LANES);
        for (size_t r = 0; r < 4; r++) {
            acc[r][0] += load(a + r * lda + i) * b0;
            acc[r][1] += load(a + r * lda + i + LANES) * b1;
        }
    }
    for (size_t r = 0; r < 4; r++) {
        y[r * ldy] += total(acc[r][0] + acc[r][1]);
        for (size_t k = i; k < n; k++) y[r * ldy] += a[r * lda + k] * b[k];
    }
}

// Copies rows x K of v into panels of R rows, each stored (K, R); a last narrow panel is filled up
// with zeros, so that the inner loop never has to ask how wide it is. Every call has a constant R,
// for which a compiler unrolls the loop over i.
static inline void pack(float *to, View v, size_t rows, size_t K, const size_t R) {
    for (size_t i0 = 0; i0 < rows; i0 += R, to += R * K) {
        size_t n = min_size(R, rows - i0);
        const float *from = v.at + i0 * v.row;
        if (n < R) memset(to, 0, R * K * sizeof *to);
        for (size_t k = 0; k < K; k++, from += v.col)
            if (v.row == 1 && n == R) for (size_t i = 0; i < R; i++) to[k * R + i] = from[i];
            else for (size_t i = 0; i < n; i++) to[k * R + i] = from[i * v.row];
    }
}

// The whole arithmetic: c (rows, cols), its rows ldc apart, = a (MR, K) times the panel b (K, NR),
// or += with add. All MR x NR numbers are computed; the rows <= MR and cols <= NR that exist are
// stored.
static void multiply_panels(float *c, size_t ldc, size_t rows, size_t cols, View a, const float *b,
                            size_t K, bool add) {
    Lanes acc[MR][2] = {{{0}}};
    for (size_t k = 0; k < K; k++) {
        const Lanes *row = (const Lanes *)(b + k * NR);
        for (size_t i = 0; i < MR; i++)
            for (size_t j = 0; j < 2; j++) acc[i][j] += a.at[i * a.row + k * a.col] * row[j];
    }
    float block[MR][NR];
    memcpy(block, acc, sizeof acc);
    for (size_t i = 0; i < rows; i++, c += ldc)
        if (!add) memcpy(c, block[i], cols * sizeof *c);
        else if (cols == NR) for (size_t j = 0; j < NR; j++) c[j] += block[i][j]; // a fixed count
        else for (size_t j = 0; j < cols; j++) c[j] += block[i][j];
}

// c (M, N), rows ldc apart: c = a b, or c += a b with add. One thread. Rows of a that are
// contiguous are read where they stand; only transposed ones, and an incomplete last panel, need
// packing.
static void gemm_blocked(size_t M, size_t N, size_t K, View a, View b, float *c, size_t ldc,
                         bool add) {
    static _Thread_local _Alignas(64) float packed_a[MC * KC], packed_b[KC * NC];
    for (size_t j0 = 0; j0 < N; j0 += NC)
        for (size_t k0 = 0; k0 < K; k0 += KC) {
            size_t nc = min_size(NC, N - j0), kc = min_size(KC, K - k0);
            pack(packed_b, flip(part(b, k0, j0)), nc, kc, NR); // its panels are cut from columns
            for (size_t i0 = 0; i0 < M; i0 += MC) {
                size_t mc = min_size(MC, M - i0), in_place = a.col == 1 ? mc / MR * MR : 0;
                pack(packed_a, part(a, i0 + in_place, k0), mc - in_place, kc, MR);
                for (size_t j = 0; j < nc; j += NR)
                    for (size_t i = 0; i < mc; i += MR) {
                        View rows = i < in_place ? part(a, i0 + i, k0) :
                                    (View){packed_a + (i - in_place) * kc, 1, MR};
                        multiply_panels(c + (i0 + i) * ldc + j0 + j, ldc, min_size(MR, mc - i),
                                        min_size(NR, nc - j), rows, packed_b + j * kc, kc,
                                        add || k0 > 0);
                    }
            }
        }
}

// The same for a few rows of a, as when one token is decoded: packing b would cost more than the
// product itself, so b is read where it stands, and comes from memory once.
static void gemm_thin(size_t M, size_t N, size_t K, View a, View b, float *c, size_t ldc,
                      bool add) {
    if (!add)
        for (size_t i = 0; i < M; i++) memset(c + i * ldc, 0, N * sizeof *c);
    if (b.row == 1 && a.col == 1)
        for (size_t j = 0; j < N; j++) {
            size_t i = 0;
            for (; i + 4 <= M; i += 4)
                dot4(c + i * ldc + j, ldc, a.at + i * a.row, a.row, b.at + j * b.col, K);
            for (; i < M; i++) c[i * ldc + j] += dot(a.at + i * a.row, b.at + j * b.col, K);
        }
    else
        for (size_t k = 0; k < K; k++)
            for (size_t i = 0; i < M; i++) {
                float s = a.at[i * a.row + k * a.col];
                for (size_t j = 0; j < N; j++) c[i * ldc + j] += s * b.at[k * b.row + j * b.col];
            }
}

static void gemm(size_t M, size_t N, size_t K, View a, View b, float *c, size_t ldc, bool add) {
    (M < THIN ? gemm_thin : gemm_blocked)(M, N, K, a, b, c, ldc, add);
}

// The same with all threads: c is cut into a grid of one block a thread, as square as it gets. An
// element's sum runs over k in the same order wherever the cuts are, so its bits do not change.
static void matmul(size_t M, size_t N, size_t K, View a, View b, float *c, bool add) {
    size_t rows = 1;
    for (size_t r = 2; M >= THIN && r <= (size_t)n_threads; r++)
        if (n_threads % r == 0 && M / r + N * r / n_threads < M / rows + N * rows / n_threads)
            rows = r;
    size_t cols = n_threads / rows;
    size_t m = round_up((M + rows - 1) / rows, MR), n = round_up((N + cols - 1) / cols, NR);
    #pragma omp parallel for num_threads(n_threads) if (M * N * K > 100000)
    for (size_t p = 0; p < rows * cols; p++) {
        size_t i = p / cols * m, j = p % cols * n;
        if (i >= M || j >= N) continue;
        // thin or blocked is decided by M, never by a part of it: the two round differently
        (M < THIN ? gemm_thin : gemm_blocked)(min_size(m, M - i), min_size(n, N - j), K,
                                              part(a, i, 0), part(b, 0, j), c + i * N + j, N, add);
    }
}

// =================================================================================================
// Layers
//
// Each forward pass has its backward pass right below it, and the comment between them derives the
// second from the first. What a backward pass needs beyond its inputs, the forward pass keeps, if
// computing it again would cost more than the memory is worth.
// =================================================================================================

// Work space of the calling thread: at least n floats, undefined at first, good until the thread
// calls scratch() again. Products never do.
static float *scratch(size_t n) {
    static _Thread_local float *memory;
    static _Thread_local void *block;
    static _Thread_local size_t size;
    if (n > size) free(block), memory = new_floats(size = round_up(n, 1024), &block);
    return memory;
}

// A float's bits as an integer, and back. Comparing bits needs no branch, so it vectorises.
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

// e^x to float accuracy in a form that compilers turn into vector code, which a call of expf is
// not:
//     e^x = 2^n e^r  with  n = round(x / ln 2), so |r| <= ln 2 / 2,  e^r by its series to r^7 / 7!
// ln 2 is subtracted in two parts, the first exact in few bits, so that r keeps its digits. 2^n is
// applied in two steps because n runs from -150 to 150, past the range of one float's exponent:
// that is how results become denormal, 0 or infinite by themselves.
static inline float fast_exp(float x) {
    if (sizeof(float) == 8) return expf(x); // a build with -Dfloat=double wants all its digits
    int32_t bits = bits_of(x), size = bits & 0x7FFFFFFF, limit = bits_of(104.0f); // size: of |x|
    float y = float_of((size < limit ? size : limit) | (bits ^ size)); // x, at most 104 from 0
    float shifted = y * 1.44269504f + 12582912.0f; // 1.5 * 2^23: no bits are left for a fraction
    float n = shifted - 12582912.0f, r = y - n * 0.693359375f + n * 2.12194440e-4f;
    float p = 1.0f / 5040;
    p = p * r + 1.0f / 720;
    p = p * r + 1.0f / 120;
    p = p * r + 1.0f / 24;
    p = p * r + 1.0f / 6;
    p = p * r + 0.5f;
    p = p * r + 1.0f;
    p = p * r + 1.0f;
    int32_t whole = bits_of(shifted) - bits_of(12582912.0f), half = whole >> 1; // n, in binary
    p = p * float_of((half + 127) << 23) * float_of((whole - half + 127) << 23); // times 2^n
    int32_t nan = (0x7F800000 - size) >> 31; // all ones if x is not a number, else 0
    return float_of((bits & nan) | (bits_of(p) & ~nan));
}

// sqrt(x) for x >= 0 to float accuracy: a call of sqrtf may have to set errno, which forbids vector
// code too. Half the exponent with a minus sign is a first guess at 1 / sqrt(x), good to 4 %, and
// each step of Newton's method squares the error.
static inline float fast_sqrt(float x) {
    if (sizeof(float) == 8) return sqrt(x);
    float y = float_of(0x5F375A86 - (bits_of(x) >> 1)); // of 0 it is large, and 0 * y is 0
    for (int step = 0; step < 3; step++) y = y * (1.5f - 0.5f * x * y * y);
    return x * y;
}

static float row_max(const float *x, size_t n) {
    float lane[LANES], max = x[0];
    size_t i = 0;
    for (size_t j = 0; j < LANES; j++) lane[j] = x[0];
    for (; i + LANES <= n; i += LANES)
        for (size_t j = 0; j < LANES; j++) lane[j] = x[i + j] > lane[j] ? x[i + j] : lane[j];
    for (; i < n; i++) max = x[i] > max ? x[i] : max;
    for (size_t j = 0; j < LANES; j++) max = lane[j] > max ? lane[j] : max;
    return max;
}

// y = e^(x - shift), returns the sum. y may be x.
static float row_exp(float *y, const float *x, size_t n, float shift) {
    float lane[LANES] = {0}, sum = 0;
    size_t i = 0;
    for (; i + LANES <= n; i += LANES)
        for (size_t j = 0; j < LANES; j++) lane[j] += y[i + j] = fast_exp(x[i + j] - shift);
    for (; i < n; i++) sum += y[i] = fast_exp(x[i] - shift);
    return sum + total(load(lane));
}

// y = softmax(x): subtracting the maximum changes nothing but keeps e^x in range. y may be x.
static void softmax_row(float *y, const float *x, size_t n) {
    float sum = row_exp(y, x, n, row_max(x, n));
    for (size_t i = 0; i < n; i++) y[i] /= sum;
}

// ---- the linear layer ---------------------------------------------------------------------------

typedef struct { // a parameter of the model
    char name[80];        // as in MiniMind's and Qwen3's files
    size_t rows, cols;    // (out, in); a norm is (1, width)
    size_t offset;        // in the arrays of all gradients and means, and of weights not packed
    float std;            // initial standard deviation; 0: filled with ones
    bool decay;           // weight decay: matrices yes, norms no
    float *w, *g, *m, *v; // weights, gradients, AdamW's two means; NULL until allocated
    int bits;             // of a weight: 32, then it stands in w, or 16 or 8, then in word
    uint32_t *word;       // packed weights, 2 or 4 in a word
    float *scale;         // of int8 weights, one for each BLOCK: (rows, cols / BLOCK)
} Tensor;

static size_t tensor_size(const Tensor *t) { return t->rows * t->cols; }

// Of weights that are kept in fewer bits, see the end of this chapter: a row times x, and a row
// as floats.
static float packed_dot(const Tensor *w, size_t row, const float *x);
static void tensor_row(float *to, const Tensor *w, size_t row);

// y (n, out) = x (n, in) w^T; y += with add. For several rows, weights kept in fewer bits are
// written out as floats, a few rows at a time, which never leave the cache.
static void linear_forward(float *y, const float *x, const Tensor *w, size_t n, bool add) {
    size_t in = w->cols, out = w->rows, stripe = n < THIN ? 4 : 96;
    if (n == 0) return; // an expert that nobody chose
    if (w->w) {
        matmul(n, out, in, plain(x, in), transposed(w->w, in), y, add);
        return;
    }
    #pragma omp parallel for num_threads(n_threads)
    for (size_t o = 0; o < out; o += stripe) {
        size_t rows = min_size(stripe, out - o);
        if (n == 1) {
            for (size_t r = o; r < o + rows; r++)
                y[r] = (add ? y[r] : 0) + packed_dot(w, r, x);
            continue;
        }
        float *floats = scratch(stripe * in);
        for (size_t r = 0; r < rows; r++) tensor_row(floats + r * in, w, o + r);
        gemm(n, rows, in, plain(x, in), transposed(floats, in), y + o, out, add);
    }
}

// y = x w^T, so dx = dy w and dw = dy^T x:
//     y[n][o] = sum_i x[n][i] w[o][i]   gives   dx[n][i] = sum_o dy[n][o] w[o][i]
//                                       and     dw[o][i] = sum_n dy[n][o] x[n][i]
// dw (out, in) is added to; dx (n, in) is overwritten, or added to with add. It is computed last,
// so that dx may be x.
static void linear_backward(float *dx, const float *dy, const float *x, const Tensor *w, size_t n,
                            bool add) {
    size_t in = w->cols, out = w->rows;
    matmul(out, in, n, transposed(dy, out), plain(x, in), w->g, true);
    matmul(n, in, out, plain(dy, out), plain(w->w, in), dx, add);
}

// ---- embedding ----------------------------------------------------------------------------------

// x (N, C): row n is the row ids[n] of embed (V, C).
static void embedding_forward(float *x, const int *ids, const Tensor *embed, size_t N) {
    for (size_t n = 0; n < N; n++) tensor_row(x + n * embed->cols, embed, ids[n]);
}

// x[n] = embed[ids[n]], so dembed[v] += the sum of dx[n] over all n with ids[n] = v. The same token
// stands in many rows: a thread owns columns, not rows, and no two ever add to the same number.
static void embedding_backward(float *dembed, const int *ids, const float *dx, size_t N, size_t C) {
    enum { STRIPE = 64 };
    #pragma omp parallel for num_threads(n_threads)
    for (size_t c0 = 0; c0 < C; c0 += STRIPE)
        for (size_t n = 0; n < N; n++)
            for (size_t c = c0; c < min_size(c0 + STRIPE, C); c++)
                dembed[ids[n] * C + c] += dx[n * C + c];
}

// ---- RMSNorm (Zhang and Sennrich 2019) ----------------------------------------------------------

// y[c] = w[c] x[c] rstd  with  rstd = 1 / sqrt(mean(x^2) + eps), for each row of x (n, C). Keeps
// rstd (n).
static void rmsnorm_forward(float *y, float *rstd, const float *x, const float *w, size_t n,
                            size_t C, float eps) {
    #pragma omp parallel for num_threads(n_threads) if (n * C > 10000)
    for (size_t i = 0; i < n; i++) {
        const float *x_i = x + i * C;
        float r = 1.0f / sqrtf(dot(x_i, x_i, C) / C + eps);
        for (size_t c = 0; c < C; c++) y[i * C + c] = w[c] * (x_i[c] * r);
        rstd[i] = r;
    }
}

// y[c] = w[c] x[c] r. The x of one row meet twice: as themselves and inside r. With
//     r = (mean(x^2) + eps)^(-1/2)   it is   dr/dx[c] = -r^3 x[c] / C
// and so
//     dx[c] = r w[c] dy[c]  -  r^3 x[c] / C * sum_j dy[j] w[j] x[j]
//     dw[c] = sum over rows of dy[c] x[c] r
// dx (n, C) is added to: in a block it is the residual stream's gradient. dw (C) is added to; its
// sum over rows is cut into a fixed number of pieces, so that it does not depend on n_threads.
static void rmsnorm_backward(float *dx, float *dw, const float *dy, const float *x, const float *w,
                             const float *rstd, size_t n, size_t C) {
    enum { PIECES = 16 };
    float *dw_piece = scratch(PIECES * C); // (PIECES, C)
    memset(dw_piece, 0, PIECES * C * sizeof *dw_piece);
    #pragma omp parallel for num_threads(n_threads) if (n * C > 10000)
    for (size_t p = 0; p < PIECES; p++)
        for (size_t i = n * p / PIECES; i < n * (p + 1) / PIECES; i++) {
            const float *x_i = x + i * C, *dy_i = dy + i * C;
            float *dx_i = dx + i * C, *dw_p = dw_piece + p * C;
            Lanes acc = {0};
            float r = rstd[i], sum = 0;
            size_t c = 0;
            for (; c + LANES <= C; c += LANES) acc += load(dy_i + c) * load(w + c) * load(x_i + c);
            for (; c < C; c++) sum += dy_i[c] * w[c] * x_i[c];
            float shared = r * r * r / C * (sum + total(acc));
            for (c = 0; c < C; c++) {
                dx_i[c] += r * w[c] * dy_i[c] - shared * x_i[c];
                dw_p[c] += dy_i[c] * x_i[c] * r;
            }
        }
    for (size_t p = 0; p < PIECES; p++)
        for (size_t c = 0; c < C; c++) dw[c] += dw_piece[p * C + c];
}

// ---- rotary positions (RoPE, Su et al. 2021) and the split into heads ---------------------------

// One of q, k, v leaves its projection as rows of heads, (B, T, KV * G, D): G = H / KV for q, 1 for
// k and v. Attention wants everything of one key/value head together: (slots, KV, room, G, D),
// where slots = B and room = T in training. In a KV cache there is more room than T, sequence b
// lies in slot[b], and its first new token stands at time start[b].
typedef struct {
    size_t B, T, KV, G, D, room;
    const int *slot, *start; // (B), or NULL: sequence b in slot b, from time 0
    const float *cos, *sin;  // (positions, D / 2) to rotate by, or NULL: v is not rotated
} Heads;

static size_t heads_at(const Heads *h, size_t b, size_t t, size_t kv, size_t g) {
    size_t slot = h->slot ? (size_t)h->slot[b] : b;
    return (((slot * h->KV + kv) * h->room + t) * h->G + g) * h->D;
}

static int first_position(const int *start, size_t b) { return start ? start[b] : 0; }

// y = rotated x: each pair (x[i], x[i + D/2]) is turned by the angle position * frequency[i]. After
// it q . k depends on the two positions only through their difference. direction = -1 turns back.
static void rotate(float *y, const float *x, const float *cos, const float *sin, size_t D,
                   float direction) {
    for (size_t i = 0, j = D / 2; i < D / 2; i++, j++) {
        float x_i = x[i], x_j = x[j], s = direction * sin[i];
        y[i] = x_i * cos[i] - x_j * s;
        y[j] = x_j * cos[i] + x_i * s;
    }
}

// out (slots, KV, room, G, D) = in (B, T, KV, G, D), rotated by the position. In a cache, k and v
// continue at start[b]; q, which has no slot, is rotated by its position but stored from 0.
static void heads_forward(float *out, const float *in, const Heads *h) {
    #pragma omp parallel for collapse(2) num_threads(n_threads) if (h->B * h->T > 8)
    for (size_t b = 0; b < h->B; b++)
        for (size_t t = 0; t < h->T; t++) {
            size_t position = first_position(h->start, b) + t;
            for (size_t kv = 0; kv < h->KV; kv++)
                for (size_t g = 0; g < h->G; g++) {
                    const float *x = in + (((b * h->T + t) * h->KV + kv) * h->G + g) * h->D;
                    float *y = out + heads_at(h, b, h->slot ? position : t, kv, g);
                    size_t row = position * (h->D / 2);
                    if (h->cos) rotate(y, x, h->cos + row, h->sin + row, h->D, 1);
                    else memcpy(y, x, h->D * sizeof *y);
                }
        }
}

// A rotation's inverse is its transpose: the gradient is turned back by the same angle. (YaRN's
// attention factor, a part of cos and sin, stays: it is a scale.) din (B, T, KV, G, D) is
// overwritten. Training only: no cache.
static void heads_backward(float *din, const float *dout, const Heads *h) {
    #pragma omp parallel for collapse(2) num_threads(n_threads)
    for (size_t b = 0; b < h->B; b++)
        for (size_t t = 0; t < h->T; t++)
            for (size_t kv = 0; kv < h->KV; kv++)
                for (size_t g = 0; g < h->G; g++) {
                    const float *dy = dout + heads_at(h, b, t, kv, g);
                    float *dx = din + (((b * h->T + t) * h->KV + kv) * h->G + g) * h->D;
                    size_t row = t * (h->D / 2);
                    if (h->cos) rotate(dx, dy, h->cos + row, h->sin + row, h->D, -1);
                    else memcpy(dx, dy, h->D * sizeof *dx);
                }
}

// ---- causal grouped-query attention -------------------------------------------------------------

// For each query row r = (t, g) of one key/value head, with n = position(t) + 1 visible keys:
//
//     s[j] = q_r . k_j / sqrt(D),   p = softmax(s[0 .. n-1]),   out_r = sum_j p[j] v_j
//
// The G heads that share a key/value head are rows of the same matrix, so its keys are loaded once
// for all of them. Rows are taken in tiles of about TILE; only keys up to the last position of the
// tile are looked at. Of the (T, T) scores only one number a row outlives its tile, the log-sum-exp
//     lse_r = log sum_j e^s[j]   from which   p[j] = e^(s[j] - lse_r)   comes back in one step.
enum { TILE = 128 };

typedef struct { // what one turn of the loop works on
    size_t b, kv, t0, queries, rows, keys; // rows = queries * G; the keys that the last one sees
} Tile;

static size_t tile_step(const Heads *q) { return TILE / q->G > 0 ? TILE / q->G : 1; }

static size_t attention_tiles(const Heads *q) {
    return (q->T + tile_step(q) - 1) / tile_step(q);
}

static Tile attention_tile(const Heads *q, size_t b, size_t kv, size_t i) {
    size_t t0 = i * tile_step(q), n = min_size(tile_step(q), q->T - t0);
    return (Tile){b, kv, t0, n, n * q->G, first_position(q->start, b) + t0 + n};
}

// Row r of a tile is query t0 + r / G; it sees the keys from 0 up to its own position.
static size_t visible_keys(const Heads *q, Tile x, size_t r) {
    return x.keys - x.queries + 1 + r / q->G;
}

// Where row r of a tile stands in (B, T, H, D), the layout outside of attention.
static size_t bthd_at(const Heads *q, Tile x, size_t r) {
    size_t t = x.t0 + r / q->G, head = x.kv * q->G + r % q->G;
    return ((x.b * q->T + t) * q->KV * q->G + head) * q->D;
}

// q (B, KV, T, G, D) and k, v (slots, KV, room, D) -> out (B, T, H, D); keeps lse (B, KV, T, G).
// hq and hk describe the layouts of q and of k and v.
static void attention_forward(float *out, float *lse, const float *q, const float *k,
                              const float *v, const Heads *hq, const Heads *hk) {
    size_t D = hq->D, tiles = attention_tiles(hq);
    float scale = 1.0f / sqrtf(D);
    #pragma omp parallel for collapse(3) schedule(dynamic) num_threads(n_threads)
    for (size_t b = 0; b < hq->B; b++)
        for (size_t kv = 0; kv < hq->KV; kv++)
            for (size_t i = 0; i < tiles; i++) {
                Tile x = attention_tile(hq, b, kv, tiles - 1 - i); // the longest first
                size_t at = heads_at(hq, b, x.t0, kv, 0);
                const float *q_tile = q + at; // (rows, D)
                const float *k_head = k + heads_at(hk, b, 0, kv, 0); // (keys, D)
                const float *v_head = v + heads_at(hk, b, 0, kv, 0);
                float *s = scratch(x.rows * (x.keys + D)), *o = s + x.rows * x.keys;
                gemm(x.rows, x.keys, D, plain(q_tile, D), transposed(k_head, D), s, x.keys, false);
                for (size_t r = 0; r < x.rows; r++) {
                    float *p = s + r * x.keys;
                    size_t n = visible_keys(hq, x, r);
                    for (size_t j = 0; j < n; j++) p[j] *= scale;
                    float max = row_max(p, n), sum = row_exp(p, p, n, max);
                    for (size_t j = 0; j < n; j++) p[j] /= sum;
                    memset(p + n, 0, (x.keys - n) * sizeof *p); // the product takes all keys
                    lse[at / D + r] = max + logf(sum);
                }
                gemm(x.rows, D, x.keys, plain(s, x.keys), plain(v_head, D), o, D, false);
                for (size_t r = 0; r < x.rows; r++)
                    memcpy(out + bthd_at(hq, x, r), o + r * D, D * sizeof *o);
            }
}

// One row backwards, with out = sum_j p[j] v_j and dout given (d_o and o in the code):
//     dp[j] = dout . v_j                       dv_j += p[j] dout
// The softmax: the derivative of p[i] by s[j] is p[i] ((1 if i = j, else 0) - p[j]). Times dp[i],
// summed over i:
//     ds[j] = p[j] (dp[j] - sum_i p[i] dp[i]),  whose sum is  sum_i p[i] (dout . v_i) = dout . out,
// one dot product a row where a double loop over i and j seemed to be needed.
//     s[j] = scale q . k_j  gives  dq = scale sum_j ds[j] k_j  and  dk_j += scale ds[j] q
// where the code multiplies ds, which holds dp at first, by scale at once.
// dq, dk, dv have the layouts of q, k, v and are overwritten. A thread owns a key/value head of a
// sequence: dk and dv collect from all of its query rows, tile after tile.
static void attention_backward(float *dq, float *dk, float *dv, const float *dout, const float *out,
                               const float *lse, const float *q, const float *k, const float *v,
                               const Heads *hq, const Heads *hk) {
    size_t D = hq->D, T = hq->T;
    float scale = 1.0f / sqrtf(D);
    #pragma omp parallel for collapse(2) schedule(dynamic) num_threads(n_threads)
    for (size_t b = 0; b < hq->B; b++)
        for (size_t kv = 0; kv < hq->KV; kv++) {
            size_t head = heads_at(hk, b, 0, kv, 0);
            const float *k_head = k + head, *v_head = v + head;
            float *dk_head = dk + head, *dv_head = dv + head; // (T, D) each
            memset(dk_head, 0, T * D * sizeof *dk);
            memset(dv_head, 0, T * D * sizeof *dv);
            for (size_t i = 0; i < attention_tiles(hq); i++) {
                Tile x = attention_tile(hq, b, kv, i);
                size_t at = heads_at(hq, b, x.t0, kv, 0), scores = x.rows * x.keys;
                const float *q_tile = q + at;
                float *p = scratch(2 * scores + 2 * x.rows * D), *ds = p + scores;
                float *o = ds + scores, *d_o = o + x.rows * D;
                for (size_t r = 0; r < x.rows; r++) {
                    memcpy(o + r * D, out + bthd_at(hq, x, r), D * sizeof *o);
                    memcpy(d_o + r * D, dout + bthd_at(hq, x, r), D * sizeof *o);
                }
                gemm(x.rows, x.keys, D, plain(q_tile, D), transposed(k_head, D), p, x.keys, false);
                gemm(x.rows, x.keys, D, plain(d_o, D), transposed(v_head, D), ds, x.keys, false);
                for (size_t r = 0; r < x.rows; r++) {
                    float *p_r = p + r * x.keys, *ds_r = ds + r * x.keys;
                    float do_o = dot(d_o + r * D, o + r * D, D);
                    size_t n = visible_keys(hq, x, r);
                    for (size_t j = 0; j < n; j++) {
                        p_r[j] = fast_exp(p_r[j] * scale - lse[at / D + r]);
                        ds_r[j] = p_r[j] * (ds_r[j] - do_o) * scale;
                    }
                    memset(p_r + n, 0, (x.keys - n) * sizeof *p);
                    memset(ds_r + n, 0, (x.keys - n) * sizeof *ds);
                }
                gemm(x.keys, D, x.rows, transposed(p, x.keys), plain(d_o, D), dv_head, D, true);
                gemm(x.rows, D, x.keys, plain(ds, x.keys), plain(k_head, D), dq + at, D, false);
                gemm(x.keys, D, x.rows, transposed(ds, x.keys), plain(q_tile, D), dk_head, D, true);
            }
        }
}

// ---- SwiGLU (Shazeer 2020) ----------------------------------------------------------------------

// h = silu(gate) * up,  silu(g) = g sigma(g),  sigma(g) = 1 / (1 + e^-g); all of n elements.
static void swiglu_forward(float *h, const float *gate, const float *up, size_t n) {
    #pragma omp parallel for num_threads(n_threads) if (n > 10000)
    for (size_t i = 0; i < n; i++) h[i] = gate[i] / (1.0f + fast_exp(-gate[i])) * up[i];
}

// h = g sigma(g) u. From sigma' = sigma (1 - sigma):
//     dg = dh u (sigma + g sigma (1 - sigma)),   du = dh g sigma
// dgate is overwritten, dh replaced by dup.
static void swiglu_backward(float *dgate, float *dh, const float *gate, const float *up, size_t n) {
    #pragma omp parallel for num_threads(n_threads) if (n > 10000)
    for (size_t i = 0; i < n; i++) {
        float d = dh[i], g = gate[i], sigma = 1.0f / (1.0f + fast_exp(-g));
        dgate[i] = d * up[i] * sigma * (1.0f + g * (1.0f - sigma));
        dh[i] = d * g * sigma;
    }
}

// ---- the router of a mixture of experts ---------------------------------------------------------

typedef struct { // how one layer routes its N tokens
    size_t N, E, K;
    bool renormalise;  // divide the K kept probabilities by their sum
    size_t group;      // tokens over which the load is balanced: a sequence or the batch
    float balance;     // what n_e P_e of one group adds to the loss, see router_balance()
    float *prob;       // (N, E) softmax of the router's scores
    float *weight;     // (N, K) weights of the chosen experts
    float *dweight;    // (N, K) their gradients, filled by the experts' backward pass
    int *choice;       // (N, K) chosen experts, most probable first
    int *row;          // (N, K) where that copy of the token lies among the experts' rows
    int *token;        // (N * K) the token of a row
    int *first;        // (E + 1) the rows of expert e: first[e] .. first[e + 1] - 1
} Routing;

// Chooses for every token the K experts of the highest probability, and sorts the N * K copies of
// tokens by expert, so that each expert's work is one matrix product on neighbouring rows. No token
// is dropped, and an expert may get none. x (N, C), w (E, C).
static void router_forward(Routing *r, const float *x, const Tensor *w) {
    linear_forward(r->prob, x, w, r->N, false);
    #pragma omp parallel for num_threads(n_threads) if (r->N > 100)
    for (size_t n = 0; n < r->N; n++) {
        float *p = r->prob + n * r->E, *weight = r->weight + n * r->K, sum = 0;
        int *choice = r->choice + n * r->K;
        softmax_row(p, p, r->E);
        for (size_t k = 0; k < r->K; k++) {
            int best = -1;
            for (int e = 0; e < (int)r->E; e++) {
                bool taken = false;
                for (size_t j = 0; j < k; j++) taken |= choice[j] == e;
                if (!taken && (best < 0 || p[e] > p[best])) best = e;
            }
            choice[k] = best;
            sum += weight[k] = p[best];
        }
        if (r->renormalise)
            for (size_t k = 0; k < r->K; k++) weight[k] /= sum;
    }
    // A counting sort: first[e] becomes the end of expert e's rows; filling them from the last
    // token to the first then moves it down to their beginning, and tokens stay in order.
    memset(r->first, 0, (r->E + 1) * sizeof *r->first);
    for (size_t i = 0; i < r->N * r->K; i++) r->first[r->choice[i]]++;
    for (size_t e = 1; e <= r->E; e++) r->first[e] += r->first[e - 1];
    for (size_t i = r->N * r->K; i-- > 0;) {
        r->row[i] = --r->first[r->choice[i]];
        r->token[r->row[i]] = i / r->K;
    }
}

// The loss that keeps experts equally busy (Switch Transformer, Fedus et al. 2021). Over a group of
// tokens, n_e counts those that chose expert e (a constant for the gradient: counting has none) and
// P_e is the mean of p_e:   loss = balance * sum_e n_e P_e,  hence  dp_e = balance n_e / group:
// the busier an expert, the harder its probability is pushed down, which evens the load.
// Returns the loss; adds to dprob (N, E) unless that is NULL.
static double router_balance(const Routing *r, float *dprob) {
    double loss = 0;
    for (size_t n0 = 0; n0 < r->N; n0 += r->group)
        for (size_t e = 0; e < r->E; e++) {
            size_t count = 0;
            double sum = 0;
            for (size_t n = n0; n < n0 + r->group; n++) {
                sum += r->prob[n * r->E + e];
                for (size_t k = 0; k < r->K; k++) count += r->choice[n * r->K + k] == (int)e;
            }
            loss += r->balance * count * (sum / r->group);
            for (size_t n = n0; dprob && n < n0 + r->group; n++)
                dprob[n * r->E + e] += r->balance * count / r->group;
        }
    return loss;
}

// Given dweight, the gradients of the K weights of each token, back to the router.
//   raw:           weight_k = p_k, so dp_k = dweight_k
//   renormalised:  weight_k = p_k / s with s = sum_j p_j. The derivative of weight_j by p_k is
//                  ((1 if j = k, else 0) - weight_j) / s, and so
//                  dp_k = (dweight_k - sum_j weight_j dweight_j) / s.  For K = 1 that is
//                  (dweight - 1 dweight) / s, exactly nothing: only the balance loss teaches it.
// This is added to what the balance loss leaves in dp. Then the softmax, as in attention:
//     dscore_e = p_e (dp_e - sum_i p_i dp_i)
// dx (N, C) and w's gradient are added to; dscore (N, E) is work space.
static void router_backward(float *dx, float *dscore, const Routing *r, const float *x,
                            const Tensor *w) {
    memset(dscore, 0, r->N * r->E * sizeof *dscore);
    router_balance(r, dscore);
    for (size_t n = 0; n < r->N; n++) {
        const float *p = r->prob + n * r->E, *weight = r->weight + n * r->K;
        const float *dweight = r->dweight + n * r->K;
        const int *choice = r->choice + n * r->K;
        float *dp = dscore + n * r->E, s = 1, mean = 0, sum = 0;
        if (r->renormalise) {
            s = 0;
            for (size_t k = 0; k < r->K; k++) s += p[choice[k]], mean += weight[k] * dweight[k];
        }
        for (size_t k = 0; k < r->K; k++) dp[choice[k]] += (dweight[k] - mean) / s;
        for (size_t e = 0; e < r->E; e++) sum += p[e] * dp[e];
        for (size_t e = 0; e < r->E; e++) dp[e] = p[e] * (dp[e] - sum);
    }
    linear_backward(dx, dscore, x, w, r->N, true);
}

// ---- the log-probability of the target ----------------------------------------------------------

// logp[n] = log softmax(logits[n])[target[n]] = logits[n][target[n]] - lse[n]. logits (n, V); keeps
// lse (n).
static void logp_forward(float *logp, float *lse, const float *logits, const int *target, size_t n,
                         size_t V) {
    #pragma omp parallel for num_threads(n_threads)
    for (size_t i = 0; i < n; i++) {
        const float *row = logits + i * V;
        float max = row_max(row, V);
        lse[i] = max + logf(row_exp(scratch(V), row, V, max));
        logp[i] = row[target[i]] - lse[i];
    }
}

// logp = logits[target] - log sum_v e^logits[v], whose derivative is (v is target) - softmax[v]:
//     dlogits[v] = dlogp * ((v is target) - e^(logits[v] - lse))
// written over the logits, which nobody needs any more.
static void logp_backward(float *logits, const float *dlogp, const float *lse, const int *target,
                          size_t n, size_t V) {
    #pragma omp parallel for num_threads(n_threads)
    for (size_t i = 0; i < n; i++) {
        float *row = logits + i * V;
        for (size_t v = 0; v < V; v++) row[v] = -dlogp[i] * fast_exp(row[v] - lse[i]);
        row[target[i]] += dlogp[i];
    }
}

// ---- weights in 16 or 8 bits --------------------------------------------------------------------

// Decoding waits for memory, so fewer bytes are more tokens. A row is cut into groups that fill
// LANES words, and a word does not hold neighbours but numbers i, LANES + i, 2 LANES + i ... of its
// group: one shift turns all words of a group into floats, each in its own lane.
//   bf16: a number is the upper half of a float.
//   int8: a whole number from -127 to 127, times the scale of its block. A shift to the left brings
//     it to the top byte, and the word, read as an integer, is 2^24 (number + f), where the
//     fraction f, 0 <= f < 1, is what lies below it. To mask f out would take another instruction;
//     instead tensor_pack() chooses the whole number so that number + f comes nearest.
enum { BLOCK = 64 };
static const char *const kept_as[] = {"f32", "bf16", "int8"}; // in 32, 16, 8 bits
typedef uint32_t Words __attribute__((vector_size(LANES * sizeof(uint32_t))));
typedef int32_t Wholes __attribute__((vector_size(LANES * sizeof(int32_t))));

// Norms and odd widths stay floats.
static int kept_bits(const Tensor *t, int bits) {
    return t->std == 0 || t->cols % BLOCK ? 32 : bits;
}

static size_t tensor_bytes(const Tensor *t, int bits) {
    size_t n = tensor_size(t), kept = kept_bits(t, bits);
    size_t bytes = n * kept * sizeof(float) / 32 + (kept == 8 ? n / BLOCK * sizeof *t->scale : 0);
    return bits == 32 ? bytes : round_up(bytes, 64);
}

// Number k of each word, times 2^24 if it is int8. Every call has constant bits.
static inline Lanes unpack(Words v, int k, const int bits) {
    if (bits == 8) return __builtin_convertvector((Wholes)(v << (24 - 8 * k)), Lanes);
    Words half = k ? v & 0xFFFF0000 : v << 16;
    Lanes x = {0};
    memcpy(&x, &half, sizeof half);
    return x;
}

// The product of a packed row and x (cols); or, if `to` is not NULL, the row itself, as floats.
static inline float packed_row(const Tensor *w, size_t row, const float *x, float *to,
                               const int bits) {
    const int numbers = 32 / bits;
    const uint32_t *word = w->word + row * w->cols / numbers;
    Lanes acc = {0};
    for (size_t i = 0; i < w->cols; i += numbers * LANES, word += LANES) {
        float scale = bits == 8 ? w->scale[(row * w->cols + i) / BLOCK] : 1;
        Lanes sum = {0};
        Words v;
        memcpy(&v, word, sizeof v);
        for (int k = 0; k < numbers; k++) {
            Lanes number = unpack(v, k, bits);
            if (!to) sum += load(x + i + k * LANES) * number;
            else number *= scale, memcpy(to + i + k * LANES, &number, sizeof number);
        }
        acc += scale * sum;
    }
    return total(acc);
}

static float packed_dot(const Tensor *w, size_t row, const float *x) {
    return w->bits == 16 ? packed_row(w, row, x, NULL, 16) : packed_row(w, row, x, NULL, 8);
}

// Writes row `row` of w as floats, whatever it is kept as.
static void tensor_row(float *to, const Tensor *w, size_t row) {
    if (w->bits == 32) memcpy(to, w->w + row * w->cols, w->cols * sizeof *to);
    else if (w->bits == 16) packed_row(w, row, NULL, to, 16);
    else packed_row(w, row, NULL, to, 8);
}

// A float without its lower 16 bits, rounded to the nearest, ties to the even one.
static uint32_t bf16_of(float x) {
    uint32_t bits = (uint32_t)bits_of(x);
    return (bits + 0x7FFF + (bits >> 16 & 1)) >> 16;
}

// The whole number that comes nearest to x / scale together with the fraction below it.
static uint32_t int8_of(float x, float scale, double below) {
    return scale > 0 ? (uint32_t)lrint(x / scale * 0x1p-24 - below) & 0xFF : 0;
}

// Stores floats x (rows, cols) as t keeps them. In a word the lowest number comes first, for it is
// the fraction that those above have to reckon with. Of a block of int8 the largest number becomes
// 127, and nobody's error exceeds 1/254 of it.
static void tensor_pack(Tensor *t, const float *x) {
    size_t n = tensor_size(t), group = LANES * 32 / t->bits;
    if (t->bits == 32) {
        memcpy(t->w, x, n * sizeof *x);
        return;
    }
    for (size_t b = 0; t->bits == 8 && b < n / BLOCK; b++) {
        float most = 0;
        for (size_t i = 0; i < BLOCK; i++) most = fmaxf(most, fabsf(x[b * BLOCK + i]));
        t->scale[b] = most / 127 * 0x1p-24f;
    }
    for (size_t i = 0; i < n; i++) {
        int place = (int)(i % group / LANES * t->bits); // of its lowest bit; 0 for the first
        uint32_t *word = &t->word[i / group * LANES + i % LANES];
        if (place == 0) *word = 0;
        *word |= (t->bits == 16 ? bf16_of(x[i]) : int8_of(x[i], t->scale[i / BLOCK],
                                                          ldexp(*word, -place))) << place;
    }
}

// =================================================================================================
// The model
//
// A configuration, ONE table of parameters, one set of activations. The table is all that
// allocation, initialisation, files, AdamW, the gradient check and `info` know about the model: a
// new tensor is one new line in model_new(). Dense and MoE are the same code. A dense feed-forward
// is an expert that every token visits, like the shared experts of MiniMind2; with no routed
// experts there is no router.
// =================================================================================================

typedef struct {
    int vocab_size, hidden_size, num_hidden_layers, num_attention_heads, num_key_value_heads;
    int head_dim, intermediate_size, max_position_embeddings, qk_norm;
    int use_moe, num_experts, num_experts_per_tok, n_shared_experts, moe_intermediate_size;
    int norm_topk_prob, seq_aux, yarn, yarn_original_max;
    double rms_norm_eps, rope_theta, router_aux_loss_coef;
    double yarn_factor, yarn_beta_fast, yarn_beta_slow, yarn_attention_factor;
} Config;

// One row a field drives config.json, the options of the command line and the golden files. -1 is
// "not said": config_complete() derives it. `alias` is the name in MiniMind2's files or, for YaRN,
// the name inside config.json's "rope_scaling".
static const struct Field {
    const char *name;
    bool real; // double, else int
    size_t offset;
    double least, most, preset;
    const char *alias, *meaning;
} config_field[] = {
#define FIELD(name, real) #name, real, offsetof(Config, name)
    {FIELD(vocab_size, false), 2, 1 << 24, 1024, "", "V, tokens; the tokenizer decides it"},
    {FIELD(hidden_size, false), 1, 1 << 16, 768, "", "C"},
    {FIELD(num_hidden_layers, false), 1, 1000, 8, "", "L"},
    {FIELD(num_attention_heads, false), 1, 1024, 8, "", "H"},
    {FIELD(num_key_value_heads, false), 1, 1024, 4, "", "KV, divides H"},
    {FIELD(head_dim, false), -1, 4096, -1, "", "D, even; C / H when not said"},
    {FIELD(intermediate_size, false), -1, 1 << 20, -1, "", "F; pi C to the next 64 when not said"},
    {FIELD(max_position_embeddings, false), 1, 1 << 24, 32768, "", "the longest context"},
    {FIELD(rms_norm_eps, true), 0, 1, 1e-6, "", "added to the mean square"},
    {FIELD(rope_theta, true), 1, 1e12, 1e6, "", "base of the rotation frequencies"},
    {FIELD(qk_norm, false), 0, 1, 1, "", "normalise q and k (MiniMind-3, Qwen3)"},
    {FIELD(use_moe, false), 0, 1, 0, "", "mixture of experts"},
    {FIELD(num_experts, false), 0, 4096, 4, "n_routed_experts", "E"},
    {FIELD(num_experts_per_tok, false), 0, 4096, 1, "", "K, at most E"},
    {FIELD(n_shared_experts, false), 0, 1024, 0, "", "experts that see every token (MiniMind2)"},
    {FIELD(moe_intermediate_size, false), -1, 1 << 20, -1, "", "F of an expert; F when not said"},
    {FIELD(norm_topk_prob, false), -1, 1, -1, "", "weights sum to 1; K > 1 when not said"},
    {FIELD(router_aux_loss_coef, true), 0, 1e3, 5e-4, "aux_loss_alpha", "of the balance loss"},
    {FIELD(seq_aux, false), 0, 1, 0, "", "balance within sequences (MiniMind2)"},
    {FIELD(yarn, false), 0, 1, 0, "", "stretch RoPE to longer contexts"},
    {FIELD(yarn_factor, true), 1, 1e6, 16, "factor", "how many times longer"},
    {FIELD(yarn_original_max, false), 0, 1 << 24, 2048, "original_max_position_embeddings",
     "context before stretching"},
    {FIELD(yarn_beta_fast, true), 0, 1e6, 32, "beta_fast", "turns above which nothing changes"},
    {FIELD(yarn_beta_slow, true), 0, 1e6, 1, "beta_slow", "turns below which all is stretched"},
    {FIELD(yarn_attention_factor, true), 0, 100, 1, "attention_factor", "scales cos and sin"},
#undef FIELD
};
enum { CONFIG_FIELDS = sizeof config_field / sizeof *config_field };

static double config_get(const Config *c, const struct Field *f) {
    const char *at = (const char *)c + f->offset;
    return f->real ? *(const double *)at : *(const int *)at;
}

// Stores a value or dies with what is allowed; `where` names the option or the file.
static void config_set(Config *c, const struct Field *f, double value, const char *where) {
    char *at = (char *)c + f->offset;
    if (!(value >= f->least && value <= f->most) || (!f->real && value != floor(value)))
        die("%s: %s is %g; allowed is %s from %g to %g", where, f->name, value,
            f->real ? "a number" : "a whole number", f->least, f->most);
    if (f->real) *(double *)at = value;
    else *(int *)at = (int)value;
}

// The field called name (or alias, if aliases), or NULL; '-' counts as '_', as in --hidden-size.
static const struct Field *config_find(const char *name, bool aliases) {
    for (const struct Field *f = config_field; f < config_field + CONFIG_FIELDS; f++) {
        size_t i = 0;
        while (name[i] && (name[i] == f->name[i] || (name[i] == '-' && f->name[i] == '_'))) i++;
        if (!name[i] && !f->name[i]) return f;
        if (aliases && !strcmp(name, f->alias)) return f;
    }
    return NULL;
}

static const struct Preset {
    const char *name, *fields;
} presets[] = {
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
        const struct Field *f = config_find(name, false);
        if (!f) die("%s: no field is called %s", where, name);
        config_set(c, f, value, where);
    }
}

static Config config_preset(const char *name) {
    Config c;
    Text known = {0};
    for (int i = 0; i < CONFIG_FIELDS; i++)
        config_set(&c, &config_field[i], config_field[i].preset, "default");
    for (int i = 0; i < PRESETS; i++) {
        text_printf(&known, " %s", presets[i].name);
        if (strcmp(presets[i].name, name)) continue;
        config_parse(&c, presets[i].fields, name);
        free(known.s);
        return c;
    }
    die("--preset %s: known are%s", name, known.s);
}

// Derives what was not said and refuses what does not fit together.
static void config_complete(Config *c, const char *where) {
    int C = c->hidden_size, H = c->num_attention_heads;
    if (c->head_dim < 0 && C % H)
        die("%s: hidden_size %d is no multiple of %d heads", where, C, H);
    if (c->head_dim < 0) c->head_dim = C / H;
    if (c->head_dim < 2 || c->head_dim % 2)
        die("%s: head_dim is %d; RoPE needs an even number", where, c->head_dim);
    if (H % c->num_key_value_heads)
        die("%s: %d heads cannot share %d key/value heads", where, H, c->num_key_value_heads);
    if (c->intermediate_size < 1) c->intermediate_size = (int)round_up((size_t)ceil(C * M_PI), 64);
    if (c->moe_intermediate_size < 1) c->moe_intermediate_size = c->intermediate_size;
    if (c->use_moe && (c->num_experts_per_tok > c->num_experts || c->num_experts_per_tok < 1))
        die("%s: num_experts_per_tok is %d; allowed is 1 to num_experts, %d", where,
            c->num_experts_per_tok, c->num_experts);
    // At K = 1 a renormalised weight is always 1 and tells the router nothing: see router_backward.
    if (c->norm_topk_prob < 0) c->norm_topk_prob = c->num_experts_per_tok > 1;
    if (c->yarn && c->yarn_original_max < 1) die("%s: yarn needs yarn_original_max", where);
}

// ---- the table of parameters --------------------------------------------------------------------

typedef struct {
    Tensor *gate, *up, *down; // (F, C), (F, C), (C, F)
} Expert;

typedef struct {
    Tensor *attn_norm, *q, *k, *v, *o, *q_norm, *k_norm, *ffn_norm;
    Tensor *router; // (E, C), or NULL
    Expert *expert; // E routed ones, then S that see every token
} Layer;

typedef struct {
    Config c;
    size_t C, H, KV, G, D, F, V, L, E, K, S; // the letters; S experts see every token
    Tensor *tensor; // the table
    int n_tensors;
    size_t n_params;
    float *params, *grads, *adam_m, *adam_v; // (n_params) each; packed params take less
    void *block[4];         // the memory of these four
    Tensor *embed, *norm;
    Layer *layer; // (L)
} Model;

__attribute__((format(printf, 5, 6)))
static Tensor *add_tensor(Model *m, size_t rows, size_t cols, float std, const char *name, ...) {
    Tensor *t = &m->tensor[m->n_tensors++];
    va_list args;
    va_start(args, name);
    vsnprintf(t->name, sizeof t->name, name, args);
    va_end(args);
    t->rows = rows, t->cols = cols, t->offset = m->n_params;
    t->std = std, t->decay = std > 0;
    m->n_params += rows * cols;
    return t;
}

// Builds the table; allocates no weights. Matrices start as N(0, 0.02); those that write into the
// residual stream are smaller by sqrt(2 L), so that its variance does not grow with depth (GPT-2).
static Model *model_new(Config c) {
    Model *m = xcalloc(1, sizeof *m);
    m->c = c;
    m->C = c.hidden_size, m->H = c.num_attention_heads, m->KV = c.num_key_value_heads;
    m->G = m->H / m->KV, m->D = c.head_dim, m->V = c.vocab_size, m->L = c.num_hidden_layers;
    m->E = c.use_moe ? c.num_experts : 0, m->K = c.use_moe ? c.num_experts_per_tok : 0;
    m->S = c.use_moe ? c.n_shared_experts : 1;
    m->F = c.use_moe ? c.moe_intermediate_size : c.intermediate_size;
    m->tensor = xcalloc(2 + m->L * (9 + 3 * (m->E + m->S)), sizeof *m->tensor);
    m->layer = xcalloc(m->L, sizeof *m->layer);
    size_t C = m->C, HD = m->H * m->D, KVD = m->KV * m->D;
    float std = 0.02f, out_std = 0.02f / sqrtf(2 * m->L);
    m->embed = add_tensor(m, m->V, C, std, "model.embed_tokens.weight");
    for (int l = 0; l < (int)m->L; l++) {
        Layer *w = &m->layer[l];
        char at[40];
        snprintf(at, sizeof at, "model.layers.%d.", l);
        w->attn_norm = add_tensor(m, 1, C, 0, "%sinput_layernorm.weight", at);
        w->q = add_tensor(m, HD, C, std, "%sself_attn.q_proj.weight", at);
        w->k = add_tensor(m, KVD, C, std, "%sself_attn.k_proj.weight", at);
        w->v = add_tensor(m, KVD, C, std, "%sself_attn.v_proj.weight", at);
        w->o = add_tensor(m, C, HD, out_std, "%sself_attn.o_proj.weight", at);
        if (c.qk_norm) w->q_norm = add_tensor(m, 1, m->D, 0, "%sself_attn.q_norm.weight", at);
        if (c.qk_norm) w->k_norm = add_tensor(m, 1, m->D, 0, "%sself_attn.k_norm.weight", at);
        w->ffn_norm = add_tensor(m, 1, C, 0, "%spost_attention_layernorm.weight", at);
        if (m->E) w->router = add_tensor(m, m->E, C, std, "%smlp.gate.weight", at);
        w->expert = xcalloc(m->E + m->S, sizeof *w->expert);
        for (int e = 0; e < (int)(m->E + m->S); e++) {
            char mlp[80];
            bool shared = e >= (int)m->E;
            if (!m->E) snprintf(mlp, sizeof mlp, "%smlp", at);
            else snprintf(mlp, sizeof mlp, "%smlp.%s.%d", at, shared ? "shared_experts" : "experts",
                          shared ? e - (int)m->E : e);
            w->expert[e].gate = add_tensor(m, m->F, C, std, "%s.gate_proj.weight", mlp);
            w->expert[e].up = add_tensor(m, m->F, C, std, "%s.up_proj.weight", mlp);
            w->expert[e].down = add_tensor(m, C, m->F, out_std, "%s.down_proj.weight", mlp);
        }
    }
    m->norm = add_tensor(m, 1, C, 0, "model.norm.weight");
    return m;
}

static size_t weight_bytes(const Model *m, int bits) {
    size_t sum = 0;
    for (int i = 0; i < m->n_tensors; i++) sum += tensor_bytes(&m->tensor[i], bits);
    return sum;
}

// Takes the memory: weights, and for training gradients and AdamW's state, one block each.
static void model_allocate(Model *m, bool training, int bits) {
    m->params = new_floats(weight_bytes(m, bits) / sizeof(float), &m->block[0]);
    if (training) {
        m->grads = new_floats(m->n_params, &m->block[1]);
        m->adam_m = new_floats(m->n_params, &m->block[2]);
        m->adam_v = new_floats(m->n_params, &m->block[3]);
    }
    char *at = (char *)m->params;
    for (Tensor *t = m->tensor; t < m->tensor + m->n_tensors; t++) {
        t->bits = kept_bits(t, bits);
        t->w = t->bits == 32 ? (float *)at : NULL;
        t->word = t->bits == 32 ? NULL : (uint32_t *)at;
        t->scale = t->bits == 8 ? (float *)(at + tensor_size(t)) : NULL;
        at += tensor_bytes(t, bits);
        if (!training) continue;
        t->g = m->grads + t->offset, t->m = m->adam_m + t->offset, t->v = m->adam_v + t->offset;
    }
}

static void model_free(Model *m) {
    for (size_t l = 0; l < m->L; l++) free(m->layer[l].expert);
    for (int i = 0; i < 4; i++) free(m->block[i]);
    free(m->tensor), free(m->layer), free(m);
}

// Random numbers are a function of (stream, index): nothing to carry along, and every tensor draws
// from a stream of its own name. splitmix64 and FNV-1a, as in notes/golden/README.md.
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

static double normal(uint64_t stream, uint64_t i) { // N(0, 1), Box-Muller
    return sqrt(-2 * log(1 - uniform(stream, 2 * i))) * cos(2 * M_PI * uniform(stream, 2 * i + 1));
}

static void model_init(Model *m, uint64_t seed) {
    for (Tensor *t = m->tensor; t < m->tensor + m->n_tensors; t++) {
        uint64_t stream = fnv1a64(t->name) + splitmix64(seed);
        #pragma omp parallel for num_threads(n_threads)
        for (size_t i = 0; i < tensor_size(t); i++)
            t->w[i] = t->std > 0 ? t->std * (float)normal(stream, i) : 1.0f;
    }
}

// Parameters that one token meets: of the routed experts, K.
static size_t active_params(const Model *m) {
    size_t routed = 0;
    for (const Tensor *t = m->tensor; t < m->tensor + m->n_tensors; t++)
        if (strstr(t->name, "mlp.experts.")) routed += tensor_size(t);
    return m->n_params - (m->E ? routed / m->E * (m->E - m->K) : 0);
}

// Forward only. Every active weight is multiplied once, the embedding as output matrix; attention
// adds two products with the T / 2 positions that a token sees on average. Backward is twice that.
static double flops_per_token(const Model *m, size_t T) {
    return 2.0 * active_params(m) + 2.0 * m->L * m->H * m->D * T;
}

// ---- activations --------------------------------------------------------------------------------

typedef struct { // what the forward pass of one layer keeps for its backward pass
    float *x;                            // (N, C) input: the residual stream
    float *norm1, *rstd1;                // (N, C), (N)
    float *q_raw, *k_raw;                // (N, H D), (N, KV D) before norm and rotation
    float *q_rstd, *k_rstd;              // (N H), (N KV)
    float *q, *k, *v;                    // (B, KV, T, G, D), and twice (slots, KV, room, D)
    float *lse, *att;                    // (B, KV, T, G), (B, T, H, D)
    float *x_mid;                        // (N, C) after attention
    float *norm2, *rstd2;                // (N, C), (N)
    Routing route;                       // see there
    float *gathered;                     // (N K, C) norm2's rows, sorted by expert
    float *gate, *up;                    // (N K + S N, F), rows of the routed experts first
    float *expert_out;                   // (N K, C)
} LayerActs;

typedef struct {
    size_t B, T, N;         // of the call at hand; memory is there for max_rows rows
    size_t max_rows, room;  // room: positions a sequence has in the KV cache; 0: no cache, only T
    size_t n_slots;         // sequences in the KV cache; in inference, rows that may get logits
    enum Mode { INFERENCE, TRAINING, RECOMPUTE } mode;
    const int *ids;         // (N) tokens of the call at hand
    const int *start, *slot; // (B) see Heads
    float aux_share;        // the share of this call's rows in those of the optimiser step
    double aux_loss;
    LayerActs *layer;       // (L + 1); of the last one only x is used
    float *cos, *sin;       // (positions, D / 2)
    float *final_norm, *final_rstd;  // (N, C), (N)
    int n_out, *out_row, *target;    // the rows that need logits, and their targets
    float *out_norm;        // (n_out, C) final_norm's rows
    float *logits, *lse;    // (n_out, V), (n_out)
    float *logp, *dlogp;    // (n_out)
    float *qkv, *h;         // work space of both directions: (N, H D), (N K + S N, F)
    float *dx, *dnorm, *datt, *dq, *dk, *dv; // the gradients of x, norm1 and 2, att, q, k, v
    float *dh, *drows, *dgathered, *dscore;  // (N K + S N, F), twice (N K, C), (N, E)
    float *memory;          // the one allocation
    void *block;            // what free() wants of it
    size_t size;            // in floats
} Acts;

// Hands out the next n floats of a block, or only counts them while the block is not there yet.
static float *take(Acts *a, size_t n) {
    float *p = a->memory ? a->memory + a->size : NULL;
    a->size += round_up(n, 16);
    return p;
}

static int *take_ints(Acts *a, size_t n) { return (int *)take(a, n); }

static void layout_layer(const Model *m, Acts *a, LayerActs *s) {
    size_t N = a->max_rows, HD = m->H * m->D, KVD = m->KV * m->D, rows = N * (m->K + m->S);
    s->norm1 = take(a, N * m->C), s->rstd1 = take(a, N);
    s->q_raw = take(a, N * HD), s->k_raw = take(a, N * KVD);
    s->q_rstd = take(a, N * m->H), s->k_rstd = take(a, N * m->KV);
    s->q = take(a, N * HD);
    s->lse = take(a, N * m->H), s->att = take(a, N * HD);
    s->x_mid = take(a, N * m->C);
    s->norm2 = take(a, N * m->C), s->rstd2 = take(a, N);
    s->gate = take(a, rows * m->F), s->up = take(a, rows * m->F);
    if (!m->E) return;
    Routing *r = &s->route;
    r->prob = take(a, N * m->E), r->weight = take(a, N * m->K), r->dweight = take(a, N * m->K);
    r->choice = take_ints(a, N * m->K), r->row = take_ints(a, N * m->K);
    r->token = take_ints(a, N * m->K);
    s->gathered = take(a, N * m->K * m->C), s->expert_out = take(a, N * m->K * m->C);
}

// Everything that a pass over max_rows rows needs, in one block; called twice, once to count. In
// training every layer keeps its own. With RECOMPUTE a layer keeps its input x alone, and what else
// its backward pass needs is computed again when that gets there, in memory that all layers share:
// up to a third more work for a fraction of the memory. In inference not even x is kept. What stays
// then is k and v of every layer, and with room for a whole context that is the KV cache.
static void layout(const Model *m, Acts *a) {
    size_t N = a->max_rows, C = m->C, HD = m->H * m->D, KVD = m->KV * m->D, D2 = m->D / 2;
    size_t rows = N * (m->K + m->S), positions = a->room ? a->room : N;
    a->size = 0;
    a->cos = take(a, positions * D2), a->sin = take(a, positions * D2);
    for (size_t l = 0; l <= m->L; l++) {
        LayerActs *s = &a->layer[l];
        size_t kv_rows = a->room ? a->n_slots * a->room : N;
        bool own = l == 0 || a->mode == TRAINING, keeps_kv = own || a->room;
        if (!own) *s = a->layer[0];
        if (own || a->mode != INFERENCE) s->x = take(a, N * C);
        if (own && l < m->L) layout_layer(m, a, s);
        if (keeps_kv && l < m->L) s->k = take(a, kv_rows * KVD), s->v = take(a, kv_rows * KVD);
        s->route.first = take_ints(a, m->E + 1); // of every layer, to report its experts' load
    }
    a->final_norm = take(a, N * C), a->final_rstd = take(a, N);
    a->out_row = take_ints(a, N), a->target = take_ints(a, N);
    a->out_norm = take(a, N * C);
    size_t n_logits = a->mode == INFERENCE ? a->n_slots : N; // inference: one row a sequence
    a->logits = take(a, n_logits * m->V), a->lse = take(a, N);
    a->logp = take(a, N), a->dlogp = take(a, N);
    a->qkv = take(a, N * HD), a->h = take(a, rows * m->F);
    if (a->mode == INFERENCE) return;
    a->dx = take(a, N * C), a->dnorm = take(a, N * C);
    a->datt = take(a, N * HD), a->dq = take(a, N * HD);
    a->dk = take(a, N * KVD), a->dv = take(a, N * KVD);
    a->dh = take(a, rows * m->F);
    a->drows = take(a, N * m->K * C), a->dgathered = take(a, N * m->K * C);
    a->dscore = take(a, N * m->E);
}

// The angle by which plane i turns from one position to the next: theta^(-2i/D). YaRN (Peng et al.
// 2023) lets planes alone that turn more than beta_fast times within the original context, slows
// those that turn less than beta_slow times by `factor`, and goes linearly from one to the other.
static double rope_frequency(const Config *c, size_t i) {
    double D = c->head_dim, original = c->yarn_original_max, log_theta = log(c->rope_theta);
    double frequency = exp(-log_theta * 2 * i / D);
    if (!c->yarn || c->max_position_embeddings <= original) return frequency;
    double low = floor(D * log(original / (2 * M_PI * c->yarn_beta_fast)) / (2 * log_theta));
    double high = ceil(D * log(original / (2 * M_PI * c->yarn_beta_slow)) / (2 * log_theta));
    low = fmax(low, 0), high = fmin(high, D / 2 - 1);
    double ramp = fmin(fmax((i - low) / fmax(high - low, 0.001), 0), 1);
    return frequency * (1 - ramp + ramp / c->yarn_factor);
}

// cos and sin of each plane's angle at positions 0 .. n - 1: (n, D / 2).
static void rope_tables(const Config *c, float *cosines, float *sines, size_t n) {
    size_t D2 = c->head_dim / 2;
    double scale = c->yarn ? c->yarn_attention_factor : 1;
    for (size_t i = 0; i < D2; i++) {
        double frequency = rope_frequency(c, i);
        for (size_t t = 0; t < n; t++) { // the angle in double: a float loses digits as t grows
            cosines[t * D2 + i] = scale * cos(t * frequency);
            sines[t * D2 + i] = scale * sin(t * frequency);
        }
    }
}

// Activations for passes of up to max_rows rows. In training n_slots and room are 0; in inference
// there is a KV cache of n_slots sequences with room positions each, or with room 0 none.
static Acts *acts_new(const Model *m, enum Mode mode, size_t max_rows, size_t n_slots,
                      size_t room) {
    Acts *a = xcalloc(1, sizeof *a);
    a->mode = mode, a->max_rows = max_rows, a->n_slots = n_slots, a->room = room;
    a->layer = xcalloc(m->L + 1, sizeof *a->layer);
    layout(m, a);
    a->memory = new_floats(a->size, &a->block);
    layout(m, a);
    a->aux_share = 1;
    rope_tables(&m->c, a->cos, a->sin, room ? room : max_rows);
    return a;
}

static void acts_free(Acts *a) { free(a->block), free(a->layer), free(a); }

// ---- one block ----------------------------------------------------------------------------------

static Heads heads_of(const Model *m, const Acts *a, char which) { // 'q', 'k' or 'v'
    bool q = which == 'q';
    return (Heads){a->B, a->T, m->KV, q ? m->G : 1, m->D, q || !a->room ? a->T : a->room,
                   q ? NULL : a->slot, a->start, which == 'v' ? NULL : a->cos, a->sin};
}

// x_mid = x + o_proj(attention(norm1(x)))
static void attention_block_forward(const Model *m, Acts *a, int l) {
    const Layer *w = &m->layer[l];
    LayerActs *s = &a->layer[l];
    size_t N = a->N, C = m->C;
    Heads hq = heads_of(m, a, 'q'), hk = heads_of(m, a, 'k'), hv = heads_of(m, a, 'v');
    float eps = m->c.rms_norm_eps;
    rmsnorm_forward(s->norm1, s->rstd1, s->x, w->attn_norm->w, N, C, eps);
    lap(NORMS);
    linear_forward(s->q_raw, s->norm1, w->q, N, false);
    linear_forward(s->k_raw, s->norm1, w->k, N, false);
    linear_forward(a->qkv, s->norm1, w->v, N, false);
    lap(PROJECTIONS);
    heads_forward(s->v, a->qkv, &hv);
    const float *q = s->q_raw, *k = s->k_raw;
    if (w->q_norm) { // each head is a row of its own
        rmsnorm_forward(a->qkv, s->q_rstd, s->q_raw, w->q_norm->w, N * m->H, m->D, eps);
        q = a->qkv;
    }
    heads_forward(s->q, q, &hq);
    if (w->k_norm) {
        rmsnorm_forward(a->qkv, s->k_rstd, s->k_raw, w->k_norm->w, N * m->KV, m->D, eps);
        k = a->qkv;
    }
    heads_forward(s->k, k, &hk);
    lap(NORMS);
    attention_forward(s->att, s->lse, s->q, s->k, s->v, &hq, &hk);
    lap(ATTENTION);
    memcpy(s->x_mid, s->x, N * C * sizeof(float));
    linear_forward(s->x_mid, s->att, w->o, N, true);
    lap(PROJECTIONS);
}

// Replaces dx (n, D), the gradient of n normalised heads, by that of the heads before it; work is
// (n, D) too.
static void head_norm_backward(float *dx, float *work, const Tensor *norm, const float *x,
                               const float *rstd, size_t n, size_t D) {
    memcpy(work, dx, n * D * sizeof *dx);
    memset(dx, 0, n * D * sizeof *dx);
    rmsnorm_backward(dx, norm->g, work, x, norm->w, rstd, n, D);
}

// a->dx comes in as the gradient of x_mid and goes out as that of x: the residual path passes it on
// as it is, the other path adds to it.
static void attention_block_backward(const Model *m, Acts *a, int l) {
    const Layer *w = &m->layer[l];
    LayerActs *s = &a->layer[l];
    size_t N = a->N;
    Heads hq = heads_of(m, a, 'q'), hk = heads_of(m, a, 'k'), hv = heads_of(m, a, 'v');
    linear_backward(a->datt, a->dx, s->att, w->o, N, false);
    lap(PROJECTIONS);
    attention_backward(a->dq, a->dk, a->dv, a->datt, s->att, s->lse, s->q, s->k, s->v, &hq, &hk);
    lap(ATTENTION);
    heads_backward(a->qkv, a->dv, &hv);
    lap(NORMS);
    linear_backward(a->dnorm, a->qkv, s->norm1, w->v, N, false);
    lap(PROJECTIONS);
    heads_backward(a->qkv, a->dq, &hq);
    if (w->q_norm)
        head_norm_backward(a->qkv, a->dq, w->q_norm, s->q_raw, s->q_rstd, N * m->H, m->D);
    lap(NORMS);
    linear_backward(a->dnorm, a->qkv, s->norm1, w->q, N, true);
    lap(PROJECTIONS);
    heads_backward(a->qkv, a->dk, &hk);
    if (w->k_norm)
        head_norm_backward(a->qkv, a->dk, w->k_norm, s->k_raw, s->k_rstd, N * m->KV, m->D);
    lap(NORMS);
    linear_backward(a->dnorm, a->qkv, s->norm1, w->k, N, true);
    lap(PROJECTIONS);
    rmsnorm_backward(a->dx, w->attn_norm->g, a->dnorm, s->x, w->attn_norm->w, s->rstd1, N, m->C);
    lap(NORMS);
}

typedef struct { // the rows that one expert works on
    const float *x;  // (n, C) its inputs
    size_t at, n;    // rows at .. at + n - 1 of gate, up and h
} ExpertRows;

// Routed experts read their stretch of the gathered rows; a shared one reads all of norm2, and its
// own rows come after all the routed ones.
static ExpertRows expert_rows(const Model *m, const Acts *a, const LayerActs *s, size_t e) {
    if (e >= m->E) return (ExpertRows){s->norm2, a->N * (m->K + e - m->E), a->N};
    size_t at = s->route.first[e];
    return (ExpertRows){s->gathered + at * m->C, at, s->route.first[e + 1] - at};
}

// x_out = x_mid + sum over the experts of weight * down(silu(gate(norm2)) * up(norm2)), where the
// weight of an expert that sees every token is 1.
static void ffn_block_forward(const Model *m, Acts *a, int l) {
    const Layer *w = &m->layer[l];
    LayerActs *s = &a->layer[l];
    Routing *r = &s->route;
    size_t N = a->N, C = m->C, F = m->F;
    float *x_out = a->layer[l + 1].x;
    rmsnorm_forward(s->norm2, s->rstd2, s->x_mid, w->ffn_norm->w, N, C, m->c.rms_norm_eps);
    memcpy(x_out, s->x_mid, N * C * sizeof(float));
    lap(NORMS);
    if (m->E) {
        double coef = m->c.router_aux_loss_coef * a->aux_share;
        r->N = N, r->E = m->E, r->K = m->K, r->renormalise = m->c.norm_topk_prob;
        r->group = m->c.seq_aux ? a->T : N;
        r->balance = m->c.seq_aux ? coef * m->E / (a->T * m->K) / a->B : coef * m->E / N;
        router_forward(r, s->norm2, w->router);
        a->aux_loss += router_balance(r, NULL);
        #pragma omp parallel for num_threads(n_threads) if (N > 100)
        for (size_t i = 0; i < N * m->K; i++)
            memcpy(s->gathered + i * C, s->norm2 + r->token[i] * C, C * sizeof(float));
    }
    lap(ROUTING);
    for (size_t e = 0; e < m->E + m->S; e++) {
        ExpertRows own = expert_rows(m, a, s, e);
        float *gate = s->gate + own.at * F, *up = s->up + own.at * F, *h = a->h + own.at * F;
        linear_forward(gate, own.x, w->expert[e].gate, own.n, false);
        linear_forward(up, own.x, w->expert[e].up, own.n, false);
        swiglu_forward(h, gate, up, own.n * F);
        float *y = e < m->E ? s->expert_out + own.at * C : x_out;
        linear_forward(y, h, w->expert[e].down, own.n, e >= m->E);
    }
    lap(EXPERTS);
    #pragma omp parallel for num_threads(n_threads) if (N > 100)
    for (size_t n = 0; n < N; n++)
        for (size_t k = 0; k < m->K; k++) {
            const float *y = s->expert_out + r->row[n * m->K + k] * C;
            for (size_t c = 0; c < C; c++) x_out[n * C + c] += r->weight[n * m->K + k] * y[c];
        }
    lap(ROUTING);
}

// a->dx comes in as the gradient of x_out and goes out as that of x_mid. For the copy of token n in
// row i:  x_out[n] += weight_i y_i   gives   dy_i = weight_i dx[n],   dweight_i = dx[n] . y_i
static void ffn_block_backward(const Model *m, Acts *a, int l) {
    const Layer *w = &m->layer[l];
    LayerActs *s = &a->layer[l];
    Routing *r = &s->route;
    size_t N = a->N, C = m->C, F = m->F;
    memset(a->dnorm, 0, N * C * sizeof(float));
    #pragma omp parallel for num_threads(n_threads) if (N > 100)
    for (size_t i = 0; i < N * m->K; i++) {
        const float *dx = a->dx + i / m->K * C;
        float *dy = a->drows + r->row[i] * C;
        r->dweight[i] = dot(dx, s->expert_out + r->row[i] * C, C);
        for (size_t c = 0; c < C; c++) dy[c] = r->weight[i] * dx[c];
    }
    lap(ROUTING);
    for (size_t e = 0; e < m->E + m->S; e++) {
        ExpertRows own = expert_rows(m, a, s, e);
        const Expert *p = &w->expert[e];
        bool routed = e < m->E;
        const float *dy = routed ? a->drows + own.at * C : a->dx;
        float *dx = routed ? a->dgathered + own.at * C : a->dnorm;
        const float *gate = s->gate + own.at * F, *up = s->up + own.at * F;
        float *h = a->h + own.at * F, *dh = a->dh + own.at * F;
        swiglu_forward(h, gate, up, own.n * F); // it was not kept
        linear_backward(dh, dy, h, p->down, own.n, false);
        float *dgate = h, *dup = dh; // h has done its work, and dh becomes dup
        swiglu_backward(dgate, dh, gate, up, own.n * F);
        linear_backward(dx, dgate, own.x, p->gate, own.n, !routed);
        linear_backward(dx, dup, own.x, p->up, own.n, true);
    }
    lap(EXPERTS);
    #pragma omp parallel for num_threads(n_threads) if (N > 100)
    for (size_t n = 0; n < N; n++)
        for (size_t k = 0; k < m->K; k++) {
            const float *dx = a->dgathered + r->row[n * m->K + k] * C;
            for (size_t c = 0; c < C; c++) a->dnorm[n * C + c] += dx[c];
        }
    if (m->E) router_backward(a->dnorm, a->dscore, r, s->norm2, w->router);
    lap(ROUTING);
    rmsnorm_backward(a->dx, w->ffn_norm->g, a->dnorm, s->x_mid, w->ffn_norm->w, s->rstd2, N, C);
    lap(NORMS);
}

static void block_forward(const Model *m, Acts *a, int l) {
    attention_block_forward(m, a, l);
    ffn_block_forward(m, a, l);
}

// ---- the whole model ----------------------------------------------------------------------------

// Runs ids (B, T) through all blocks, to a->final_norm (N, C). In training start and slot are NULL;
// with a KV cache row t of sequence b is position start[b] + t of slot[b], and what stands before
// it in the cache is attended to.
static void model_forward(const Model *m, Acts *a, const int *ids, size_t B, size_t T,
                          const int *start, const int *slot) {
    a->B = B, a->T = T, a->N = B * T, a->ids = ids, a->start = start, a->slot = slot;
    a->aux_loss = 0;
    embedding_forward(a->layer[0].x, ids, m->embed, a->N);
    for (int l = 0; l < (int)m->L; l++) block_forward(m, a, l);
    rmsnorm_forward(a->final_norm, a->final_rstd, a->layer[m->L].x, m->norm->w, a->N, m->C,
                    m->c.rms_norm_eps);
    lap(NORMS);
}

// Logits for the rows a->out_row[0 .. n_out - 1] only: a row without a target costs nothing here,
// and decoding wants the last position alone. The output matrix is the embedding.
static void head_forward(const Model *m, Acts *a) {
    for (int i = 0; i < a->n_out; i++)
        memcpy(a->out_norm + i * m->C, a->final_norm + a->out_row[i] * m->C, m->C * sizeof(float));
    linear_forward(a->logits, a->out_norm, m->embed, a->n_out, false);
    lap(HEAD);
}

// The training forward. Only rows of ids (B, T) whose target is not -1 count: a->logp[i], i <
// n_out, is the log-probability of the target of row a->out_row[i].
static void logp_of(const Model *m, Acts *a, const int *ids, const int *target, size_t B,
                    size_t T) {
    model_forward(m, a, ids, B, T, NULL, NULL);
    a->n_out = 0;
    for (size_t n = 0; n < B * T; n++)
        if (target[n] >= 0) a->out_row[a->n_out] = n, a->target[a->n_out++] = target[n];
    head_forward(m, a);
    logp_forward(a->logp, a->lse, a->logits, a->target, a->n_out, m->V);
}

// The one backward pass: from a->dlogp to the gradients of all parameters, which it adds to. The
// embedding gets both of its shares, as output matrix first and as input at the end.
static void model_backward(const Model *m, Acts *a) {
    size_t C = m->C;
    logp_backward(a->logits, a->dlogp, a->lse, a->target, a->n_out, m->V);
    float *dout = a->out_norm; // (n_out, C)
    linear_backward(dout, a->logits, a->out_norm, m->embed, a->n_out, false);
    lap(HEAD);
    memset(a->dnorm, 0, a->N * C * sizeof(float));
    for (int i = 0; i < a->n_out; i++)
        memcpy(a->dnorm + a->out_row[i] * C, dout + i * C, C * sizeof(float));
    memset(a->dx, 0, a->N * C * sizeof(float));
    rmsnorm_backward(a->dx, m->norm->g, a->dnorm, a->layer[m->L].x, m->norm->w, a->final_rstd, a->N,
                     C);
    lap(NORMS);
    double aux_loss = a->aux_loss;
    for (int l = (int)m->L - 1; l >= 0; l--) {
        // what the last block of the forward pass left in the shared memory is still there
        if (a->mode == RECOMPUTE && l + 1 < (int)m->L) block_forward(m, a, l);
        ffn_block_backward(m, a, l);
        attention_block_backward(m, a, l);
    }
    a->aux_loss = aux_loss; // which the blocks that ran again have counted again
    embedding_backward(m->embed->g, a->ids, a->dx, a->N, C);
    lap(NORMS);
}

// =================================================================================================
// Objectives
//
// An objective is a function of logp, the log-probabilities of the targets, and of nothing else in
// the model. It returns its loss and fills dlogp = d loss / d logp; model_backward() does the rest.
// All of them stand here, side by side. What they have in common: a step of the optimiser may take
// its rows in several passes. An objective sees the n targets of one pass, target i in place
// b->at[i] of the step's (rows, T), and weighs them so that the sum over the passes is that of one
// big pass.
// =================================================================================================

typedef struct { // what a command was told; option_table says what each of them means
    const char *data, *held_out, *tokenizer, *preset, *model, *out, *prompt, *weights, *loss, *task;
    long steps, epochs, batch, seq, warmup, accumulate, seed, threads, eval_every, max_new_tokens;
    long top_k, documents, recompute, num_generations, updates, think;
    double lr, beta2, weight_decay, clip, temperature, top_p, repetition_penalty;
    double beta, epsilon, epsilon_high;
    Config set;                 // fields of the configuration that were given as options,
    bool is_set[CONFIG_FIELDS]; // and which ones those are
} Options;

enum { STATS = 5 }; // numbers that a stage reports beside its loss

typedef struct { // the rows of one optimiser step
    size_t rows, T;              // T: the longest row
    int *ids, *target;           // (rows, T); target -1: nothing to learn here
    int *at;                     // of the pass at hand: where its targets stand in (rows, T)
    size_t n_targets;            // in the whole step
    size_t *length;              // (rows) targets of each row
    double *ref_sum;             // (rows) DPO: the reference's log-probability of all its targets
    double *advantage;           // (rows) GRPO: how much better than its group
    float *old_logp, *ref_logp; // (rows, T) GRPO: of each target when it was drawn; the reference's
    double stat[STATS];          // what filling the step has to report
} Batch;

typedef double Objective(float *dlogp, const float *logp, size_t n, const Batch *b,
                         const Options *o, double stat[STATS]);

// Predicting the next token (pretraining, and SFT, where only the assistant's tokens are targets):
//     loss = -sum of logp / n_targets,   dlogp = -1 / n_targets
// where the targets of the whole optimiser step are counted, not those of this pass.
static double next_token_loss(float *dlogp, const float *logp, size_t n, const Batch *b,
                              const Options *o, double stat[STATS]) {
    double loss = 0;
    (void)o, (void)stat;
    for (size_t i = 0; i < n; i++) {
        loss -= logp[i] / b->n_targets;
        dlogp[i] = -1.0f / b->n_targets;
    }
    return loss;
}

// Direct preference optimisation (Rafailov et al. 2023). Rows 2p and 2p + 1 hold an answer that was
// chosen and one that was rejected. With the sums of their log-probabilities c and r, and those of
// a frozen reference, which is the model itself before the first step:
//     margin = beta ((c - c_ref) - (r - r_ref)),   loss = mean over pairs of -log sigmoid(margin)
// At step 0 every margin is 0 and the loss log 2 = 0.693. Since (log sigmoid)' (m) = sigmoid(-m),
//     dlogp = -/+ beta sigmoid(-margin) / pairs   on each token of the chosen / rejected answer.
// log sigmoid(m) is computed as min(m, 0) - log(1 + e^-|m|), which no margin can overflow. A pass
// holds whole pairs. stat: margin, accuracy, sums of the chosen and of the rejected answers.
static double dpo_loss(float *dlogp, const float *logp, size_t n, const Batch *b, const Options *o,
                       double stat[STATS]) {
    double loss = 0, pairs = b->rows / 2.0;
    const int *at = b->at;
    for (size_t i = 0, end; i < n; i = end) {
        size_t pair = at[i] / b->T / 2;
        double sum[2] = {0};
        for (end = i; end < n && at[end] / b->T / 2 == pair; end++)
            sum[at[end] / b->T % 2] += logp[end];
        double chosen = o->beta * (sum[0] - b->ref_sum[2 * pair]);
        double rejected = o->beta * (sum[1] - b->ref_sum[2 * pair + 1]);
        double margin = chosen - rejected, slope = o->beta / (1 + exp(margin)) / pairs;
        loss -= (fmin(margin, 0) - log1p(exp(-fabs(margin)))) / pairs;
        for (size_t k = i; k < end; k++) dlogp[k] = at[k] / b->T % 2 ? slope : -slope;
        stat[0] += margin / pairs, stat[1] += (margin > 0) / pairs;
        stat[2] += sum[0] / pairs, stat[3] += sum[1] / pairs;
    }
    return loss;
}

// Group relative policy optimisation (Shao et al. 2024) learns from its own answers. Several to
// each prompt form a group; A, an answer's advantage, is how far its reward lies above the group's
// mean, in standard deviations. With the ratio = e^(logp - old_logp) of its probabilities now and
// when it was drawn, a token of an answer costs
//     -min(ratio A, clamp(ratio, 1 - epsilon, 1 + epsilon) A)
// Once the ratio has passed the clamp in the direction of A, the minimum is constant: there is no
// gradient, and one batch cannot push a token arbitrarily far. ratio' = ratio, so
//     dlogp = -ratio A, or 0 where the clamped product is the smaller one.
static double grpo_token(double logp, double old, double A, const Options *o, double *dlogp,
                         bool *clipped) {
    double ratio = exp(logp - old);
    double clamped = fmin(fmax(ratio, 1 - o->epsilon), 1 + o->epsilon);
    *clipped = clamped * A < ratio * A;
    *dlogp = *clipped ? 0 : -ratio * A;
    return -fmin(ratio * A, clamped * A);
}

// CISPO (MiniMax-M1, 2025) clips the weight of a token's gradient instead of the gradient:
//     -min(ratio, epsilon_high) A logp,  the factor before logp being a constant
// so every token goes on learning.
static double cispo_token(double logp, double old, double A, const Options *o, double *dlogp,
                          bool *clipped) {
    double ratio = exp(logp - old), weight = fmin(ratio, o->epsilon_high) * A;
    *clipped = ratio > o->epsilon_high;
    *dlogp = -weight;
    return -weight * logp;
}

// How far the model has gone from the reference, by one drawn token, in a form that is never
// negative (Schulman's k3): with d = ref_logp - logp,  kl = e^d - d - 1,  kl' = 1 - e^d.
static double kl_of(double logp, double ref) { return exp(ref - logp) - (ref - logp) - 1; }

// GRPO and CISPO add beta kl to the cost of a token, and take the mean over the tokens of a row,
// and then over the rows. stat: three of the drawing (see fill_answers), kl, share clipped.
static double policy_loss(float *dlogp, const float *logp, size_t n, const Batch *b,
                          const Options *o, double stat[STATS]) {
    double loss = 0;
    bool cispo = !strcmp(o->loss, "cispo");
    for (size_t i = 0; i < n; i++) {
        size_t at = b->at[i], row = at / b->T;
        double share = 1.0 / b->rows / b->length[row], ref = b->ref_logp[at], d;
        double kl = kl_of(logp[i], ref);
        bool clipped;
        double cost = (cispo ? cispo_token : grpo_token)(logp[i], b->old_logp[at],
                                                         b->advantage[row], o, &d, &clipped);
        loss += share * (cost + o->beta * kl);
        dlogp[i] = share * (d + o->beta * (1 - exp(ref - logp[i])));
        stat[3] += kl / b->n_targets, stat[4] += (double)clipped / b->n_targets;
    }
    return loss;
}

// =================================================================================================
// The optimiser
//
// One step: the norm of all gradients, the rate that the schedule gives, and AdamW on each tensor.
// =================================================================================================

typedef struct {
    double lr, beta1, beta2, eps, weight_decay, clip; // of this step
    long step;                                        // 1 for the first
} AdamW;

// Cosine from base to a tenth of it, MiniMind's schedule: large steps while everything is wrong,
// small ones to settle. Warm-up multiplies it by step / warmup, while AdamW's means know little.
static double schedule(double base, long step, long total, long warmup) {
    double rise = step < warmup ? (double)step / warmup : 1;
    return rise * base * (0.1 + 0.45 * (1 + cos(M_PI * step / total)));
}

// The l2 norm of all gradients together, in pieces of fixed size, whose sums are added in double.
static double gradient_norm(const Model *m) {
    enum { PIECE = 1 << 12 };
    size_t pieces = (m->n_params + PIECE - 1) / PIECE;
    double *sum = xcalloc(pieces, sizeof *sum), total = 0;
    #pragma omp parallel for num_threads(n_threads)
    for (size_t p = 0; p < pieces; p++) {
        const float *g = m->grads + p * PIECE;
        sum[p] = dot(g, g, min_size(PIECE, m->n_params - p * PIECE));
    }
    for (size_t p = 0; p < pieces; p++) total += sum[p];
    free(sum);
    return sqrt(total);
}

// AdamW (Loshchilov and Hutter 2019), after scaling all gradients by min(1, clip / (norm + 1e-6)):
//     w -= lr decay w;   m = b1 m + (1 - b1) g;   v = b2 v + (1 - b2) g^2
//     w -= lr (m / (1 - b1^t)) / (sqrt(v / (1 - b2^t)) + eps)
// m and v begin as 0, which the divisions make up for. The quotient is about 1 where the gradient
// always points the same way, whatever its size, and near 0 where it only trembles. Clears the
// gradients on the way.
static void adamw_step(Model *m, const AdamW *o, double norm) {
    float scale = o->clip > 0 ? fmin(1, o->clip / (norm + 1e-6)) : 1;
    float b1 = o->beta1, b2 = o->beta2, eps = o->eps;
    float rate = o->lr / (1 - pow(o->beta1, o->step)), root = 1 / (1 - pow(o->beta2, o->step));
    for (Tensor *t = m->tensor; t < m->tensor + m->n_tensors; t++) {
        float keep = 1 - o->lr * (t->decay ? o->weight_decay : 0);
        size_t n = tensor_size(t);
        #pragma omp parallel for num_threads(n_threads) if (n > 10000)
        for (size_t i = 0; i < n; i++) {
            float g = t->g[i] * scale;
            t->m[i] = b1 * t->m[i] + (1 - b1) * g;
            t->v[i] = b2 * t->v[i] + (1 - b2) * g * g;
            t->w[i] = t->w[i] * keep - rate * t->m[i] / (fast_sqrt(t->v[i] * root) + eps);
            t->g[i] = 0;
        }
    }
}

// =================================================================================================
// Files: a checkpoint is a folder
//
// config.json, model.safetensors, the tokenizer's two files and generation_config.json, with the
// names that MiniMind, Qwen3 and other programs use. Every file is written beside its place and
// moved there when it is complete.
// =================================================================================================

// The model_type of config.json, and the class that computes it in other libraries.
static const char *const types[] = {"minimind", "llama", "qwen3", "qwen3_moe"};
static const char *const classes[] = {"MiniMind", "Llama", "Qwen3", "Qwen3Moe"};

static void config_save(const Config *c, const Tokenizer *tok, const char *dir) {
    Text t = {0}, ids = {0};
    for (int i = 0; i < 3; i++) {
        int id = ((const int[]){tok->bos, tok->eos, tok->pad})[i];
        text_printf(&ids, "  \"%s_token_id\": ", ((const char *[]){"bos", "eos", "pad"})[i]);
        text_printf(&ids, id < 0 ? "null,\n" : "%d,\n", id);
    }
    // dense: Llama, or Qwen3 with q/k norm. MoE: Qwen3's with q/k norm and without shared experts.
    int type = !c->use_moe ? 1 + c->qk_norm : c->qk_norm && !c->n_shared_experts ? 3 : 0;
    text_printf(&t, "{\n  \"model_type\": \"%s\",\n  \"architectures\": [\"%sForCausalLM\"],\n"
                "  \"torch_dtype\": \"float32\",\n  \"hidden_act\": \"silu\",\n"
                "  \"attention_bias\": false,\n  \"tie_word_embeddings\": true,\n"
                "%s", types[type], classes[type], ids.s);
    for (const struct Field *f = config_field; f < config_field + CONFIG_FIELDS; f++) {
        bool flag = !f->real && f->most == 1;
        if (!strncmp(f->name, "yarn", 4)) continue;
        if (flag) text_printf(&t, "  \"%s\": %s,\n", f->name, config_get(c, f) ? "true" : "false");
        else text_printf(&t, "  \"%s\": %.17g,\n", f->name, config_get(c, f));
    }
    text_printf(&t, "  \"rope_scaling\": ");
    if (!c->yarn) text_printf(&t, "null");
    for (const struct Field *f = config_field; c->yarn && f < config_field + CONFIG_FIELDS; f++)
        if (!strcmp(f->name, "yarn")) text_printf(&t, "{\"rope_type\": \"yarn\"");
        else if (!strncmp(f->name, "yarn", 4))
            text_printf(&t, ", \"%s\": %.17g", f->alias, config_get(c, f));
    text_printf(&t, "%s\n}\n", c->yarn ? "}" : "");
    write_file(dir, "config.json", &t);
    t.len = 0;
    text_printf(&t, "{\n%s  \"do_sample\": true,\n  \"temperature\": 0.85,\n  \"top_p\": 0.85,\n"
                "  \"top_k\": 50\n}\n", ids.s);
    write_file(dir, "generation_config.json", &t);
    free(t.s), free(ids.s);
}

// A field's value in object j, by its own name or its alias; a null counts as not there.
static void read_field(Config *c, const struct Field *f, const Json *j, const char *path) {
    const Json *v = json_get(j, f->name);
    if (!v && *f->alias) v = json_get(j, f->alias);
    if (!v || v->type == JSON_NULL) return;
    double value = v->type == JSON_TRUE ? 1 : v->type == JSON_FALSE ? 0 : v->number;
    if (v->type != JSON_NUMBER && v->type != JSON_TRUE && v->type != JSON_FALSE)
        die("%s: %s is not a number", path, f->name);
    config_set(c, f, value, path);
}

// Dies unless j[key] is absent, null or `known`: a setting that is not implemented is not ignored.
static void only(const Json *j, const char *key, const char *known, const char *path) {
    const Json *v = json_get(j, key);
    if (!v || v->type == JSON_NULL) return;
    const char *is = v->type == JSON_STRING ? v->s : v->type == JSON_TRUE ? "true" :
                     v->type == JSON_FALSE ? "false" : "something else";
    if (strcmp(is, known)) die("%s: %s is %s; only %s is known here", path, key, is, known);
}

// Reads config.json of MiniMind, MiniMind2, Qwen3, Qwen3-MoE or Llama.
static Config config_load(const char *dir) {
    char *path = format("%s/config.json", dir);
    size_t len;
    char *text = read_file(path, &len);
    Json *j = json_parse_file(path, text, len);
    if (!json_get(j, "hidden_size")) die("%s: says no hidden_size", path);
    Config c = config_preset("minimind3");
    const char *type = json_text(j, "model_type");
    int family = 0; // a file that does not say is MiniMind's
    while (type && family < 4 && strcmp(type, types[family])) family++;
    if (family == 4)
        die("%s: model_type %s; known are minimind llama qwen3 qwen3_moe", path, type);
    if (family > 0 && !json_get(j, "tie_word_embeddings")) // there, what is not said is false
        die("%s: tie_word_embeddings is missing; only true is known here", path);
    bool minimind2 = json_get(j, "n_routed_experts");
    c.qk_norm = family != 1 && !minimind2;
    c.norm_topk_prob = !family; // when a file does not say
    c.seq_aux = minimind2;
    c.use_moe = family == 3 || json_get(j, "num_experts") || minimind2; // unless it says, below
    if (family > 0) c.rope_theta = 1e4, c.num_key_value_heads = 0; // theirs when not said
    const Json *experts = json_get(j, "num_local_experts"); // a newer name
    if (experts && experts->type == JSON_NUMBER)
        config_set(&c, config_find("num_experts", false), experts->number, path);
    // transformers 5 keeps what belongs to RoPE in an object of its own
    const Json *rope = json_get(j, "rope_parameters") ? json_get(j, "rope_parameters")
                                                      : json_get(j, "rope_scaling");
    if (rope && rope->type != JSON_OBJECT && rope->type != JSON_NULL)
        die("%s: rope_scaling is no object", path);
    const char *kind = json_text(rope, "rope_type") ? json_text(rope, "rope_type")
                                                    : json_text(rope, "type");
    if (kind && strcmp(kind, "default") && strcmp(kind, "yarn"))
        die("%s: RoPE of type %s; known are default and yarn", path, kind);
    bool yarn = kind && !strcmp(kind, "yarn");
    if (yarn && family > 0) // what other libraries do with a file that does not say
        c.yarn_original_max = 0, c.yarn_attention_factor = NAN;
    for (const struct Field *f = config_field; f < config_field + CONFIG_FIELDS; f++) {
        bool of_yarn = !strncmp(f->name, "yarn_", 5);
        if (!of_yarn && strcmp(f->name, "yarn")) read_field(&c, f, j, path);
        if ((of_yarn && yarn) || !strcmp(f->name, "rope_theta")) read_field(&c, f, rope, path);
    }
    c.yarn = yarn;
    if (isnan(c.yarn_attention_factor)) c.yarn_attention_factor = 0.1 * log(c.yarn_factor) + 1;
    if (!c.num_key_value_heads) c.num_key_value_heads = c.num_attention_heads;
    only(j, "hidden_act", "silu", path);
    only(j, "tie_word_embeddings", "true", path);
    only(j, "attention_bias", "false", path);
    only(j, "use_sliding_window", "false", path);
    only(j, "scoring_func", "softmax", path);
    if (json_get(j, "partial_rotary_factor"))
        die("%s: partial_rotary_factor is unknown here", path);
    json_free(j);
    config_complete(&c, path);
    free(text), free(path);
    return c;
}

static const char *const own_dtype = sizeof(float) == 8 ? "F64" : "F32";

// safetensors: the length of the header in eight bytes, the lowest first; the header, JSON {name:
// {dtype, shape, data_offsets}}; the numbers. Streamed to disk, not copied in memory.
static void weights_save(const Model *m, const char *dir) {
    Text head = {0};
    text_printf(&head, "{\"__metadata__\":{\"format\":\"pt\"}");
    for (const Tensor *t = m->tensor; t < m->tensor + m->n_tensors; t++) {
        size_t from = t->offset * sizeof(float), to = from + t->rows * t->cols * sizeof(float);
        text_printf(&head, ",\"%s\":{\"dtype\":\"%s\",\"shape\":[", t->name, own_dtype);
        if (t->std > 0) text_printf(&head, "%zu,", t->rows); // a norm has one dimension
        text_printf(&head, "%zu],\"data_offsets\":[%zu,%zu]}", t->cols, from, to);
    }
    text_printf(&head, "}");
    while (head.len % 8) text_append(&head, " ", 1);
    unsigned char size[8];
    for (int i = 0; i < 8; i++) size[i] = (uint64_t)head.len >> 8 * i;
    NewFile file = new_file(dir, "model.safetensors");
    fwrite(size, 1, 8, file.f);
    fwrite(head.s, 1, head.len, file.f);
    fwrite(m->params, sizeof(float), m->n_params, file.f);
    new_file_done(&file);
    free(head.s);
}

// Numbers of other widths: sign, exponent and mantissa out of the bits, as IEEE 754 has them.
static float decode_float(uint64_t bits, int exponent_bits, int mantissa_bits) {
    uint64_t mantissa = bits & ((UINT64_C(1) << mantissa_bits) - 1);
    int top = (1 << exponent_bits) - 1, exponent = (int)(bits >> mantissa_bits & top);
    double sign = bits >> (exponent_bits + mantissa_bits) & 1 ? -1 : 1;
    if (exponent == top) return mantissa ? NAN : sign * INFINITY;
    double value = exponent ? 1 + ldexp((double)mantissa, -mantissa_bits)
                            : 2 * ldexp((double)mantissa, -mantissa_bits);
    return sign * ldexp(value, exponent - top / 2);
}

// Fills x, the numbers of tensor t, from bytes [start + from, start + to) of f, of type dtype.
static void read_tensor(float *x, const Tensor *t, FILE *f, const char *dtype, size_t start,
                        size_t from, size_t to, const char *path) {
    static const struct { const char *name; int bytes, exponent, mantissa; } formats[] = {
        {"F64", 8, 11, 52}, {"F32", 4, 8, 23}, {"BF16", 2, 8, 7}, {"F16", 2, 5, 10}};
    size_t n = tensor_size(t), i = 0;
    while (i < 4 && strcmp(formats[i].name, dtype)) i++;
    if (i == 4) die("%s: %s has dtype %s; known are F64 F32 BF16 F16", path, t->name, dtype);
    if (to - from != n * formats[i].bytes)
        die("%s: %s takes %zu bytes, not %zu", path, t->name, n * formats[i].bytes, to - from);
    if (fseeko(f, (off_t)(start + from), SEEK_SET)) die("%s: cannot seek", path);
    if (!strcmp(dtype, own_dtype)) {
        if (fread(x, sizeof(float), n, f) != n) die("%s: ends within %s", path, t->name);
        return;
    }
    unsigned char *b = xcalloc(n, formats[i].bytes);
    if (fread(b, formats[i].bytes, n, f) != n) die("%s: ends within %s", path, t->name);
    for (size_t j = 0; j < n; j++) {
        uint64_t bits = 0;
        for (int k = 0; k < formats[i].bytes; k++)
            bits |= (uint64_t)b[j * formats[i].bytes + k] << 8 * k;
        x[j] = decode_float(bits, formats[i].exponent, formats[i].mantissa);
    }
    free(b);
}

// Loads the weights of an allocated model. Every tensor of the table must be there with its shape;
// a tensor that is not in the table is refused, except lm_head.weight, the tied embedding again.
static void weights_load(Model *m, const char *dir) {
    char *path = format("%s/model.safetensors", dir);
    unsigned char size[8];
    uint64_t len = 0;
    FILE *f = open_file(path, "rb");
    if (fseeko(f, 0, SEEK_END)) die("%s: cannot seek", path);
    uint64_t file_size = (uint64_t)ftello(f);
    rewind(f);
    if (fread(size, 1, 8, f) == 8)
        for (int i = 0; i < 8; i++) len |= (uint64_t)size[i] << 8 * i;
    if (len < 2 || len > file_size - 8)
        die("%s: is not a safetensors file or is cut off (%" PRIu64 " bytes)", path, file_size);
    char *head = xcalloc(len + 1, 1);
    if (fread(head, 1, len, f) != len) die("%s: cannot be read", path);
    Json *j = json_parse_file(path, head, len);
    float *whole = NULL; // a tensor before it is packed
    double bytes = 0;
    for (Tensor *t = m->tensor; t < m->tensor + m->n_tensors; t++) {
        const Json *e = json_get(j, t->name), *shape = json_get(e, "shape");
        const Json *range = json_get(e, "data_offsets"), *from = range ? range->child : NULL;
        const Json *to = from ? from->next : NULL, *last = shape ? shape->child : NULL;
        const char *dtype = json_text(e, "dtype");
        bool matrix = t->std > 0;
        double rows = matrix && last ? last->number : 1;
        if (matrix && last) last = last->next;
        if (!e) die("%s: %s is missing, which config.json asks for", path, t->name);
        if (!dtype || !to || to->next || !last || last->next)
            die("%s: the header's entry for %s is damaged", path, t->name);
        if (rows != t->rows || last->number != t->cols)
            die("%s: %s is (%g, %g), but config.json makes it (%zu, %zu)", path, t->name, rows,
                last->number, t->rows, t->cols);
        if (!(from->number >= 0 && from->number == floor(from->number) &&
              to->number >= from->number && to->number <= file_size - 8 - len))
            die("%s: %s lies outside the file, which is cut off or damaged", path, t->name);
        if (!t->w) whole = xrealloc(whole, tensor_size(t), sizeof *whole);
        float *x = t->w ? t->w : whole;
        read_tensor(x, t, f, dtype, 8 + len, from->number, to->number, path);
        for (size_t i = 0; i < tensor_size(t); i++)
            if (!isfinite(x[i])) die("%s: %s holds a number that is not finite", path, t->name);
        if (!t->w) tensor_pack(t, whole);
        bytes += to->number - from->number;
    }
    free(whole);
    int tied = json_get(j, "lm_head.weight") != NULL, notes = json_get(j, "__metadata__") != NULL;
    int entries = 0;
    for (const Json *e = j->child; e; e = e->next, entries++) {
        const Tensor *t = m->tensor;
        while (t < m->tensor + m->n_tensors && strcmp(t->name, e->key)) t++;
        if (t == m->tensor + m->n_tensors && strcmp(e->key, "__metadata__") &&
            strcmp(e->key, "lm_head.weight"))
            die("%s: holds %s, which the model of config.json does not have", path, e->key);
    }
    if (entries != m->n_tensors + tied + notes || (!tied && bytes != file_size - 8 - len))
        die("%s: tensors overlap, are there twice or leave gaps: it is damaged", path);
    fclose(f);
    json_free(j);
    free(head), free(path);
}

static void checkpoint_save(const Model *m, const Tokenizer *tok, const char *dir) {
    tokenizer_save(tok, dir);
    config_save(&m->c, tok, dir);
    weights_save(m, dir);
}

// =================================================================================================
// Data
//
// Training reads tokens, not text. The data is tokenised once into out/cache/HASH.ids, where HASH
// covers the data, the tokenizer, the stage and what is held out: a change of any makes another
// file. It is mapped into memory, so that gigabytes of data take little of it. Every 50th document
// (of plain text: every 50th stretch of 4 KB) is held out of the training and measured on.
//
//     pretrain   {"text"}, or plain text:  <|im_start|> text <|im_end|>  one after the other, cut
//                into windows of T tokens anywhere, which may hold several documents
//     sft        {"conversations"}: a row each, of which the assistant's words are trained; texts
//                may stand between them, to be remembered
//     dpo        {"chosen", "rejected"}: two rows each
//
// A token that is trained carries the mark TRAINED, the same as in the tokenizer's chat chapter.
// =================================================================================================

enum { HOLD_OUT_EVERY = 50, TEXT_BLOCK = 4096, CACHE_VERSION = 3 };

typedef struct {
    uint64_t magic, n_ids, n_train, n_documents; // of ids: in all, in the training part
    uint64_t n_cut, n_skipped, first_skipped; // rows longer than the context, or without a target
} CacheHead;

typedef struct {
    size_t from, to; // its ids
    double bytes;    // of its text, in a conversation of all that is trained
    double floor;    // bits that no model can save, or NAN where nobody knows
} Document;

typedef struct {
    CacheHead *head;        // the mapped file; see build_cache
    Document *document;     // training part first
    int *id;
    size_t size, n_train;   // of the file in bytes; documents of the training part
    int vocab_size;
    size_t unit;            // 0: windows of the stream are rows; 1: documents are; 2: and pairs
    size_t T, n_units, next, *order; // the units of this epoch in random order
    size_t phase, epoch;    // window w starts at token phase + w T
    uint64_t seed;
} Data;

typedef struct { // what tokenising adds to
    Tokenizer *tok;
    size_t unit, T;
    CacheHead head;
    Ids ids[2];             // of the training part, as far as not yet in the file; held out
    Document *document[2];
    size_t n[2], cap[2], seen;
    FILE *out;              // where the ids of the training part go
    Chat chat;
} Builder;

// A document is complete: its ids stand at the end of part p, from place `from` on.
static void end_document(Builder *b, int p, size_t from, double bytes, double floor) {
    size_t before = p ? 0 : b->head.n_train; // ids that have gone to the file
    b->document[p] = grow(b->document[p], &b->cap[p], b->n[p] + 1, sizeof **b->document);
    b->document[p][b->n[p]++] = (Document){before + from, before + b->ids[p].n, bytes, floor};
}

// A record is complete, and was not taken back: its ids of the training part go to the file.
static void write_ids(Builder *b) {
    if (b->ids[0].n) fwrite(b->ids[0].id, sizeof(int), b->ids[0].n, b->out);
    b->head.n_train += b->ids[0].n, b->ids[0].n = 0;
}

// Tokenises a text, or one stretch of a plain text; every token is trained. A stretch that is held
// out is a document of its own.
static void add_text(Builder *b, const char *s, size_t n, bool begins, bool ends, int p,
                     double floor) {
    Ids *ids = &b->ids[p];
    size_t from = ids->n;
    if (b->tok->bos >= 0 && (begins || p)) ids_push(ids, b->tok->bos);
    tokenizer_encode(b->tok, s, n, true, ids);
    if (b->tok->eos >= 0 && (ends || p)) ids_push(ids, b->tok->eos);
    if (b->unit && ids->n == from) return; // a row needs a token
    if (b->unit && ids->n - from > b->T + 1) {
        ids->n = from + b->T + 1, b->head.n_cut++, n = 0, floor = NAN;
        for (size_t i = from + 1; i < ids->n; i++) n += b->tok->token[ids->id[i]].len;
    }
    for (size_t i = from; i < ids->n; i++) ids->id[i] |= TRAINED;
    end_document(b, p, from, n, floor);
}

// Tokenises a list of messages. False if it has no target within the context: then nothing is
// added.
static bool add_chat(Builder *b, const Reader *r, const char *key, int p) {
    Ids *ids = &b->ids[p];
    size_t from = ids->n, bytes = 0;
    const char *error = chat_record(&b->chat, r->json, json_get(r->json, key), false, false);
    if (error) die("%s:%zu: \"%s\": %s", r->path, r->number, key, error);
    chat_encode(b->tok, &b->chat, ids);
    if (ids->n - from > b->T + 1) ids->n = from + b->T + 1, b->head.n_cut++;
    for (size_t i = from + 1; i < ids->n; i++)
        if (ids->id[i] & TRAINED) bytes += b->tok->token[ids->id[i] & ~TRAINED].len;
    if (bytes) end_document(b, p, from, bytes, NAN);
    else ids->n = from;
    return bytes > 0;
}

static void add_record(Builder *b, const Reader *r, int p) {
    const Json *text = json_get(r->json, "text"), *bits = json_get(r->json, "bits");
    size_t documents = b->n[p], ids = b->ids[p].n;
    bool ok = true;
    if (text && text->type == JSON_STRING && b->unit < 2)
        add_text(b, text->s, text->len, true, true, p,
                 bits && bits->type == JSON_NUMBER ? bits->number : NAN);
    else if (b->unit == 0)
        die("%s:%zu: a pretraining record needs a string called \"text\"", r->path, r->number);
    else if (b->unit == 1) ok = add_chat(b, r, "conversations", p);
    else ok = add_chat(b, r, "chosen", p) && add_chat(b, r, "rejected", p);
    if (ok) return;
    b->n[p] = documents, b->ids[p].n = ids; // a pair goes with either of its sides
    if (!b->head.n_skipped++) b->head.first_skipped = r->number;
}

// All documents of the files in a list with commas; hold_out: 0 none, 1 every 50th, 2 all.
static void add_files(Builder *b, const char *list, int hold_out) {
    char *names = format("%s", list);
    for (char *path = strtok(names, ","); path; path = strtok(NULL, ",")) {
        Reader r = reader_open(path);
        Text block = {0};
        bool first = true;
        while (reader_next(&r)) {
            int p = hold_out == 2 || (hold_out && b->seen % HOLD_OUT_EVERY == HOLD_OUT_EVERY - 1);
            if (r.json) add_record(b, &r, p), b->seen++;
            else if (b->unit) die("%s: is no JSONL, as this stage needs", path);
            else if (block.len >= TEXT_BLOCK) { // only now: the last stretch has to know it ends
                add_text(b, block.s, block.len, first, false, p, NAN);
                block.len = 0, first = false, b->seen++;
            }
            if (!r.json) text_append(&block, r.line, r.len);
            write_ids(b);
        }
        if (block.len) add_text(b, block.s, block.len, first, true, hold_out == 2, NAN), b->seen++;
        write_ids(b);
        free(block.s);
        reader_close(&r);
    }
    free(names);
}

// A hash of the contents of every file in a list.
static uint64_t hash_files(uint64_t h, const char *list) {
    char *names = format("%s", list);
    for (char *path = strtok(names, ","); path; path = strtok(NULL, ",")) {
        FILE *f = open_file(path, "rb");
        uint64_t block[512];
        struct stat st;
        size_t n;
        if (fstat(fileno(f), &st) || !S_ISREG(st.st_mode))
            die("%s: data has to be a regular file, which is read twice", path);
        h = splitmix64(h + 1); // one file, or the same in two, are different data
        while (memset(block, 0, sizeof block), (n = fread(block, 1, sizeof block, f)) > 0) {
            for (size_t i = 0; i < 512; i++) h = splitmix64(h ^ block[i]);
            h = splitmix64(h ^ n);
        }
        if (ferror(f)) die("%s: cannot be read", path);
        fclose(f);
    }
    free(names);
    return h;
}

// The file is laid out as: head, ids of the training part, held-out ids, zeros up to a multiple of
// sizeof(Document), documents of both parts.
static void build_cache(Builder *b, const char *train, const char *held_out, const char *name) {
    NewFile file = new_file("out/cache", name);
    double start = seconds();
    fprintf(stderr, "tokenising %s into out/cache/%s\n", train ? train : held_out, name);
    b->out = file.f;
    fwrite(&b->head, sizeof b->head, 1, file.f);
    if (train) add_files(b, train, held_out ? 0 : 1);
    if (held_out) add_files(b, held_out, 2);
    b->head.n_ids = b->head.n_train + b->ids[1].n, b->head.n_documents = b->n[0] + b->n[1];
    if (b->ids[1].n) fwrite(b->ids[1].id, sizeof(int), b->ids[1].n, file.f);
    for (size_t i = 0; i < b->n[1]; i++) {
        b->document[1][i].from += b->head.n_train;
        b->document[1][i].to += b->head.n_train;
    }
    while (ftello(file.f) % sizeof(Document)) fputc(0, file.f);
    for (int p = 0; p < 2; p++)
        if (b->n[p]) fwrite(b->document[p], sizeof(Document), b->n[p], file.f);
    if (fseeko(file.f, 0, SEEK_SET)) // rewind() would forget an error
        die("out/cache/%s: cannot seek", name);
    fwrite(&b->head, sizeof b->head, 1, file.f);
    if (!b->head.n_ids) die("%s: there is nothing to train on", train ? train : held_out);
    new_file_done(&file);
    fprintf(stderr, "%" PRIu64 " tokens to train on, %zu held out in %zu documents (%.1f s)\n",
            b->head.n_train, b->ids[1].n, b->n[1], seconds() - start);
    for (int p = 0; p < 2; p++) free(b->ids[p].id), free(b->document[p]);
    free(b->chat.text.s), free(b->chat.cut.id);
}

// Opens data as tokens in units of this kind and rows of at most T targets, tokenising it if that
// was not done before. train or held_out may be NULL.
static Data *data_open(const char *train, const char *held_out, Tokenizer *tok, size_t unit,
                       size_t T, uint64_t seed) {
    Data *d = xcalloc(1, sizeof *d);
    uint64_t hash = splitmix64(tok->fingerprint ^ splitmix64(CACHE_VERSION * 8 + unit));
    if (unit) hash = splitmix64(hash + T);
    if (train) hash = hash_files(hash, train);
    if (held_out) hash = hash_files(splitmix64(hash), held_out);
    char *path = format("out/cache/%016" PRIx64 ".ids", hash), *name = strrchr(path, '/') + 1;
    Builder b = {.tok = tok, .unit = unit, .T = T, .head = {.magic = hash}};
    if (access(path, R_OK)) build_cache(&b, train, held_out, name);
    FILE *f = open_file(path, "rb");
    struct stat st;
    bool good = !fstat(fileno(f), &st) && (size_t)st.st_size > sizeof *d->head;
    if (good) {
        d->size = st.st_size;
        d->head = mmap(NULL, d->size, PROT_READ, MAP_PRIVATE, fileno(f), 0);
        good = d->head != MAP_FAILED && d->head->magic == hash;
    }
    fclose(f);
    CacheHead *h = d->head;
    size_t ids_end = good ? round_up(sizeof *h + h->n_ids * sizeof(int), sizeof(Document)) : 0;
    if (!good || h->n_ids > d->size || h->n_train > h->n_ids || h->n_documents > d->size ||
        d->size != ids_end + h->n_documents * sizeof(Document))
        die("%s: is damaged; delete it", path);
    d->id = (int *)(h + 1), d->document = (Document *)((char *)h + ids_end);
    for (size_t i = 0; i < h->n_documents; i++) {
        const Document *x = &d->document[i];
        if (x->from > x->to || x->to > h->n_ids) die("%s: is damaged; delete it", path);
        d->n_train += x->to <= h->n_train;
    }
    if (h->n_cut)
        fprintf(stderr, "%" PRIu64 " rows were longer than %zu tokens and cut\n", h->n_cut, T);
    if (h->n_skipped)
        fprintf(stderr,
                "%" PRIu64 " records had nothing to train and were skipped, first line %" PRIu64
                "\n",
                h->n_skipped, h->first_skipped);
    d->T = T, d->unit = unit, d->seed = splitmix64(seed), d->vocab_size = tok->vocab_size;
    free(path);
    return d;
}

static void data_close(Data *d) {
    munmap(d->head, d->size);
    free(d->order), free(d);
}

// Where the first window of an epoch starts: each epoch cuts the stream elsewhere, so that no token
// is always the first of its window, with nothing before it to predict it from.
static size_t epoch_phase(const Data *d, size_t epoch) {
    return splitmix64(d->seed + epoch) % min_size(d->head->n_train - d->T, d->T);
}

static size_t epoch_units(const Data *d, size_t epoch) {
    if (d->unit) return d->n_train / d->unit;
    return d->head->n_train > d->T ? (d->head->n_train - 1 - epoch_phase(d, epoch)) / d->T : 0;
}

// Puts x (n) in random order: Fisher and Yates.
static void shuffle(size_t *x, size_t n, uint64_t stream) {
    for (size_t i = n; i > 1; i--) {
        size_t j = uniform(stream, i) * i, last = x[i - 1];
        x[i - 1] = x[j], x[j] = last;
    }
}

typedef struct { size_t length, unit; } Sized;

static int by_length(const void *a, const void *b) {
    const Sized *x = a, *y = b;
    return x->length != y->length ? (x->length < y->length ? -1 : 1) : x->unit < y->unit ? -1 : 1;
}

// A new epoch. Rows of one step should be alike in length, for they are padded to the longest:
// pools of many steps are sorted by length, and then the steps are put in random order.
static void data_shuffle(Data *d, size_t units_a_step) {
    size_t n = d->n_units = epoch_units(d, d->epoch), steps = (n + units_a_step - 1) / units_a_step;
    size_t *step = xcalloc(steps, sizeof *step), pool = 64 * units_a_step;
    size_t *order = d->order = xrealloc(d->order, n, sizeof *order);
    Sized *sized = xcalloc(n, sizeof *sized);
    uint64_t stream = splitmix64(d->seed ^ 0x0DE4) + d->epoch * d->head->n_ids;
    for (size_t i = 0; i < n; i++) order[i] = i;
    for (size_t i = 0; i < steps; i++) step[i] = i;
    shuffle(order, n, stream);
    for (size_t i = 0; i < n; i++) {
        const Document *x = &d->document[order[i] * d->unit];
        sized[i] = (Sized){d->unit ? x[d->unit - 1].to - x->from : 0, order[i]};
    }
    for (size_t i = 0; d->unit && i < n; i += pool)
        qsort(sized + i, min_size(pool, n - i), sizeof *sized, by_length);
    if (d->unit && steps) shuffle(step, steps - 1, stream + n); // the last one may be smaller
    for (size_t i = 0, at = 0; i < steps; i++)
        for (size_t k = step[i] * units_a_step; k < min_size(n, (step[i] + 1) * units_a_step); k++)
            order[at++] = sized[k].unit;
    d->phase = d->unit ? 0 : epoch_phase(d, d->epoch), d->next = 0, d->epoch++;
    free(step), free(sized);
}

// From n + 1 tokens the n that are read and, for each, the one that should come next, or -1 if that
// is not trained; filled up to T. This is the one place where labels are shifted. Returns the
// number of targets.
static size_t shift(int *in, int *target, const int *ids, size_t n, size_t T, int vocab_size) {
    size_t targets = 0;
    for (size_t t = 0; t < T; t++) {
        int next = t < n ? ids[t + 1] : 0, id = t < n ? ids[t] & ~TRAINED : 0;
        if (id < 0 || id >= vocab_size || next < 0 || (next & ~TRAINED) >= vocab_size)
            die("the token cache is damaged: delete out/cache");
        in[t] = id, target[t] = next & TRAINED ? next & ~TRAINED : -1;
        targets += target[t] >= 0;
    }
    return targets;
}

// The rows of the next optimiser step: `units` of them, fewer at the end of an epoch. A unit is a
// window of the stream, or a document, or a pair of documents, padded to the longest in the step.
static void data_fill(Data *d, Batch *b, size_t units) {
    if (!d->order || d->next == d->n_units) data_shuffle(d, units);
    size_t n = min_size(units, d->n_units - d->next), each = d->unit ? d->unit : 1;
    const size_t *order = d->order + d->next;
    b->rows = n * each, b->T = d->unit ? 1 : d->T, b->n_targets = 0;
    for (size_t r = 0; d->unit && r < b->rows; r++) {
        const Document *x = &d->document[order[r / each] * each + r % each];
        if (x->to - x->from > b->T + 1) b->T = x->to - x->from - 1;
    }
    for (size_t r = 0; r < b->rows; r++) {
        const Document *x = &d->document[d->unit ? order[r / each] * each + r % each : 0];
        size_t from = d->unit ? x->from : d->phase + order[r] * d->T;
        size_t len = d->unit ? x->to - x->from - 1 : d->T;
        b->length[r] = shift(b->ids + r * b->T, b->target + r * b->T, d->id + from, len, b->T,
                             d->vocab_size);
        b->n_targets += b->length[r];
    }
    d->next += n;
}

// =================================================================================================
// Measuring it: evaluation
//
// Loss is per token and depends on the tokenizer. Bits per byte divides by the bytes of the text
// instead, and so compares models of any vocabulary. Both are measured document by document, from
// the first token on; a text longer than the context is cut, and every piece starts afresh.
// =================================================================================================

// Adds up -logp over the targets of each of n documents, into nats and, if not NULL, tokens (n).
// Pieces are batched as they come, padded to the longest in a batch.
static void score_documents(const Model *m, Acts *a, const int *ids, const Document *doc, size_t n,
                            size_t context, double *nats, double *tokens) {
    enum { MOST = 256 };
    size_t cap = a->max_rows;
    size_t d = 0, at = n ? doc[0].from : 0; // the document at hand, its next token
    int *in = xcalloc(cap, sizeof *in), *target = xcalloc(cap, sizeof *target);
    struct { size_t document, at, len; } piece[MOST];
    context = min_size(context, cap);
    for (size_t i = 0; i < n; i++) nats[i] = 0;
    for (size_t i = 0; tokens && i < n; i++) tokens[i] = 0;
    while (d < n) {
        size_t B = 0, T = 0;
        while (d < n && B < MOST) { // as many pieces as fit
            if (at + 1 >= doc[d].to) { // no token left that has a target
                at = ++d < n ? doc[d].from : 0;
                continue;
            }
            size_t len = min_size(context, doc[d].to - 1 - at), longest = len > T ? len : T;
            if ((B + 1) * longest > cap) break;
            piece[B].document = d, piece[B].at = at, piece[B++].len = len;
            T = longest, at += len;
        }
        if (!B) continue; // what was left had no target: d == n ends the loop
        for (size_t b = 0; b < B; b++)
            shift(in + b * T, target + b * T, ids + piece[b].at, piece[b].len, T, (int)m->V);
        logp_of(m, a, in, target, B, T);
        for (int i = 0; i < a->n_out; i++) {
            size_t owner = piece[a->out_row[i] / T].document;
            nats[owner] -= a->logp[i];
            if (tokens) tokens[owner]++;
        }
    }
    free(in), free(target);
}

// The sum of x over the sum of y (NULL: of ones), and its standard error. Documents are independent
// of each other, tokens are not: so the n documents are the samples, and one deviates by x - r y.
typedef struct {
    double value, error;
} Ratio;

static Ratio ratio(const double *x, const double *y, size_t n) {
    double sum_x = 0, sum_y = 0, residual = 0;
    for (size_t i = 0; i < n; i++) sum_x += x[i], sum_y += y ? y[i] : 1;
    double r = sum_x / sum_y;
    for (size_t i = 0; i < n; i++) residual += pow(x[i] - r * (y ? y[i] : 1), 2);
    return (Ratio){r, n > 1 ? sqrt(residual * n / (n - 1)) / sum_y : NAN};
}

typedef struct {
    size_t n;
    double tokens, bytes, floor; // floor: bits per byte
    Ratio loss, bits;            // per token, per byte
} Score;

static Score score(const Model *m, Acts *a, const int *ids, const Document *doc, size_t n,
                   size_t context) {
    Score s = {.n = n};
    double *nats = xcalloc(3 * n, sizeof *nats), *tokens = nats + n, *bytes = tokens + n;
    score_documents(m, a, ids, doc, n, context, nats, tokens);
    for (size_t i = 0; i < n; i++)
        bytes[i] = doc[i].bytes, s.tokens += tokens[i], s.bytes += bytes[i],
        s.floor += doc[i].floor;
    s.floor /= s.bytes;
    s.loss = ratio(nats, tokens, n), s.bits = ratio(nats, bytes, n);
    s.bits.value /= M_LN2, s.bits.error /= M_LN2;
    free(nats);
    return s;
}

// =================================================================================================
// Training: one loop for every stage
//
// A stage is a way to fill a batch, an objective, and a measurement; the loop knows no more of it:
//
//     fill the batch -> in passes: forward, objective, backward -> gradient norm -> AdamW
//     and now and then: measure on held-out data, save the checkpoint
// =================================================================================================

typedef struct Run Run;

typedef struct {
    const char *name;
    Objective *objective;
    size_t unit;                  // see Data; 0 too where fill needs no data
    double lr;                    // highest rate, when not said
    void (*open)(Run *);          // what the stage needs before its first step, or NULL
    void (*fill)(Run *);          // the next step's rows into the batch
    double (*measure)(Run *);     // prints a line about held-out data, returns the figure in it
    const char *stat[STATS];      // names of what the objective and fill report; NULL: no more
} Stage;

struct Run {
    const Stage *stage;
    const Options *o;
    Tokenizer *tok;
    Model *m, *ref;               // ref: GRPO's reference, or NULL
    Acts *a, *gen;                // of training; of drawing answers
    Data *d;
    Batch b;
    size_t rows;                  // of a step, at most
    double *ref_nats;             // DPO: of each document, minus the reference's log-probability
    struct Tasks *tasks, *held;   // GRPO: the prompts
    size_t next_task, updates;    // the next prompt; steps left on the answers at hand
    bool (*enough)(Run *);        // asked after each measurement: stop here?
};

static volatile sig_atomic_t interrupted;
static void on_interrupt(int sig) { // the second Ctrl-C ends the program at once
    interrupted = 1;
    signal(sig, SIG_DFL);
}

// Names the first tensor whose weights, or else whose gradients, hold a number that is not finite.
static const char *first_bad_tensor(const Model *m) {
    for (int gradients = 0; gradients < 2; gradients++)
        for (const Tensor *t = m->tensor; t < m->tensor + m->n_tensors; t++)
            for (size_t i = 0; i < tensor_size(t); i++)
                if (!isfinite((gradients ? t->g : t->w)[i])) return t->name;
    return "no weight or gradient: the logits";
}

static Batch batch_new(size_t rows, size_t T) {
    return (Batch){.ids = xcalloc(rows * T, sizeof(int)),
                   .target = xcalloc(rows * T, sizeof(int)),
                   .at = xcalloc(rows * T, sizeof(int)),
                   .length = xcalloc(rows, sizeof(size_t)),
                   .ref_sum = xcalloc(rows, sizeof(double)),
                   .advantage = xcalloc(rows, sizeof(double)),
                   .old_logp = xcalloc(rows * T, sizeof(float)),
                   .ref_logp = xcalloc(rows * T, sizeof(float))};
}

static void batch_free(Batch *b) {
    void *owned[] = {b->ids, b->target, b->at, b->length, b->ref_sum, b->advantage, b->old_logp,
                     b->ref_logp};
    for (size_t i = 0; i < sizeof owned / sizeof *owned; i++) free(owned[i]);
}

typedef struct {
    double loss, aux, norm, stat[STATS];
    double load_least, load_most; // share of the tokens that the idlest and busiest expert got
} StepReport;

// The logp of rows row .. row + rows - 1 of a batch, and b->at.
static void batch_logp(const Model *m, Acts *a, const Batch *b, size_t row, size_t rows) {
    size_t from = row * b->T;
    logp_of(m, a, b->ids + from, b->target + from, rows, b->T);
    for (int i = 0; i < a->n_out; i++) b->at[i] = (int)(from + a->out_row[i]);
}

// Gradients of one optimiser step: its rows in passes of at most `batch`, so that a large step
// takes no more memory than a small one. Nothing is divided by the number of passes: each objective
// divides by the targets (or rows, or pairs) of the whole step, so the passes' gradients simply add
// up to those of one big pass, also when the last pass, or the last step of an epoch, is smaller.
// (The batch balance loss alone is not a sum over rows: it is balanced within each pass and
// weighted by the pass's share.)
static StepReport train_pass(Model *m, Acts *a, const Batch *b, size_t batch, Objective *objective,
                             const Options *o) {
    StepReport r = {.load_least = 1};
    size_t *count = xcalloc(m->L * m->E + 1, sizeof *count);
    memcpy(r.stat, b->stat, sizeof r.stat);
    for (size_t row = 0; row < b->rows; row += batch) {
        size_t rows = min_size(batch, b->rows - row);
        a->aux_share = (float)rows / b->rows;
        batch_logp(m, a, b, row, rows);
        r.loss += objective(a->dlogp, a->logp, a->n_out, b, o, r.stat);
        r.aux += a->aux_loss;
        model_backward(m, a);
        for (size_t l = 0; l < m->L; l++)
            for (size_t e = 0; e < m->E; e++)
                count[l * m->E + e] += a->layer[l].route.first[e + 1] - a->layer[l].route.first[e];
    }
    for (size_t i = 0; i < m->L * m->E; i++) {
        double share = (double)count[i] / (b->rows * b->T * m->K);
        r.load_least = fmin(r.load_least, share), r.load_most = fmax(r.load_most, share);
    }
    free(count);
    r.norm = gradient_norm(m);
    return r;
}

// One line about a step: in a terminal each overwrites the one before, unless `keep` says no.
static void print_progress(const Run *run, size_t step, size_t total, const StepReport *r,
                           double lr, double rate, double left, bool keep) {
    bool terminal = isatty(2);
    fprintf(stderr, "%s%s %zu/%zu  loss %.4f  lr %.2e  norm %.2f", terminal ? "\r\033[K" : "",
            run->stage->name, step, total, r->loss, lr, r->norm);
    for (int i = 0; i < STATS && run->stage->stat[i]; i++)
        fprintf(stderr, "  %s %.3g", run->stage->stat[i], r->stat[i]);
    fprintf(stderr, "  %.0f tokens/s  %d:%02d left", rate, (int)left / 60, (int)left % 60);
    if (run->m->E) fprintf(stderr, "  load %.0f-%.0f%%", 100 * r->load_least, 100 * r->load_most);
    if (!terminal || keep) fprintf(stderr, "\n");
}

static void write_csv(FILE *csv, const Run *run, size_t step, const StepReport *r, double lr,
                      double rate, double measured) {
    fprintf(csv, "%zu,%.6f,%.6f,%.4g,%.4f,%.0f,", step, r->loss, r->aux, lr, r->norm, rate);
    if (run->m->E) fprintf(csv, "%.3f,%.3f", r->load_least, r->load_most);
    else fprintf(csv, ",");
    for (int i = 0; i < STATS && run->stage->stat[i]; i++) fprintf(csv, ",%.6g", r->stat[i]);
    if (isfinite(measured)) fprintf(csv, ",%.6f\n", measured);
    else fprintf(csv, ",\n");
}

// The loop. Leaves a checkpoint and train.csv in --out, now and then and at the end; Ctrl-C ends it
// after the step at hand, with everything saved.
static void train(Run *run, size_t total) {
    const Options *o = run->o;
    const Stage *stage = run->stage;
    char *path = format("%s/train.csv", o->out);
    make_dir(o->out);
    FILE *csv = open_file(path, "w");
    fprintf(csv, "step,loss,aux_loss,lr,grad_norm,tokens_per_second,load_least,load_most");
    for (int i = 0; i < STATS && stage->stat[i]; i++) fprintf(csv, ",%s", stage->stat[i]);
    fprintf(csv, ",held_out\n");
    long eval_every = o->eval_every ? o->eval_every : (long)(total + 9) / 10;
    double start = seconds(), shown = start, tokens = 0, paused = 0;
    double base = isnan(o->lr) ? stage->lr : o->lr;
    bool stop = false;
    interrupted = 0;
    signal(SIGINT, on_interrupt);
    for (size_t step = 1; step <= total && !stop; step++) {
        stage->fill(run);
        StepReport r = train_pass(run->m, run->a, &run->b, run->rows / o->accumulate,
                                  stage->objective, o);
        AdamW opt = {schedule(base, step, total, o->warmup), 0.9, o->beta2, 1e-8, o->weight_decay,
                     o->clip, step};
        if (!isfinite(r.loss + r.norm))
            die("step %zu: the loss is %g and the gradient norm %g; first bad tensor: %s", step,
                r.loss, r.norm, first_bad_tensor(run->m));
        adamw_step(run->m, &opt, r.norm);
        tokens += run->b.rows * run->b.T;
        double now = seconds(), rate = tokens / (now - start - paused), measured = NAN;
        stop = interrupted; // asked once a step, so that the last one measures and saves
        bool measure = step % eval_every == 0 || step == total || stop;
        if (now - shown > (isatty(2) ? 0.2 : 5) || measure || step == 1) {
            double left = (total - step) * (now - start - paused) / step;
            print_progress(run, step, total, &r, opt.lr, rate, left, measure);
            shown = now;
        }
        if (measure) {
            measured = stage->measure(run);
            checkpoint_save(run->m, run->tok, o->out);
            if (run->enough && run->enough(run)) stop = true;
            paused += seconds() - now;
        }
        write_csv(csv, run, step, &r, opt.lr, rate, measured);
        fflush(csv);
    }
    signal(SIGINT, SIG_DFL);
    bool bad = ferror(csv);
    if (fclose(csv) || bad) die("%s: cannot be written", path);
    free(path);
}

static void fill_from_data(Run *run) {
    size_t units = run->rows / (run->d->unit ? run->d->unit : 1);
    data_fill(run->d, &run->b, units);
}

static size_t n_held(const Run *run) { return run->d->head->n_documents - run->d->n_train; }

// Bits per byte of the held-out documents.
static double measure_text(Run *run) {
    if (!n_held(run)) return NAN;
    Score s = score(run->m, run->a, run->d->id, run->d->document + run->d->n_train, n_held(run),
                    run->d->T);
    fprintf(stderr, "held out: loss %.4f, %.4f bits per byte", s.loss.value, s.bits.value);
    if (isfinite(s.floor))
        fprintf(stderr, "; the floor is %.4f (%.3f times it)", s.floor, s.bits.value / s.floor);
    fprintf(stderr, "\n");
    return s.bits.value;
}

static void open_pretraining(Run *run) {
    fprintf(stderr, "a model that knows nothing has the loss ln V = %.4f\n", log(run->m->V));
}

// ---- DPO ----------------------------------------------------------------------------------------

// The reference is the model before its first step: its sums are computed now, once, and no second
// model is kept.
static void open_preferences(Run *run) {
    size_t n = run->d->head->n_documents;
    run->ref_nats = xcalloc(n, sizeof *run->ref_nats);
    score_documents(run->m, run->a, run->d->id, run->d->document, n, run->d->T, run->ref_nats,
                    NULL);
    fprintf(stderr,
            "%zu pairs. At the first step the model is its own reference, so every margin is 0 "
            "and the loss is -log sigmoid(0) = log 2 = 0.693\n",
            run->d->n_train / 2);
}

static void fill_preferences(Run *run) {
    fill_from_data(run);
    const size_t *pair = run->d->order + run->d->next - run->b.rows / 2;
    for (size_t r = 0; r < run->b.rows; r++)
        run->b.ref_sum[r] = -run->ref_nats[pair[r / 2] * 2 + r % 2];
}

// The share of n pairs in which the model prefers the chosen answer by more than the reference did
// (ref_nats NULL: at all).
static Ratio preference_accuracy(const Model *m, Acts *a, const int *ids, const Document *doc,
                                 size_t n, size_t context, const double *ref_nats) {
    double *nats = xcalloc(3 * n, sizeof *nats), *right = nats + 2 * n;
    score_documents(m, a, ids, doc, 2 * n, context, nats, NULL);
    for (size_t i = 0; i < n; i++) {
        double ref = ref_nats ? ref_nats[2 * i + 1] - ref_nats[2 * i] : 0;
        right[i] = nats[2 * i + 1] - nats[2 * i] > ref;
    }
    Ratio r = ratio(right, NULL, n);
    free(nats);
    return r;
}

static double measure_preferences(Run *run) {
    size_t first = run->d->n_train;
    if (!n_held(run)) return NAN;
    Ratio r = preference_accuracy(run->m, run->a, run->d->id, run->d->document + first,
                                  n_held(run) / 2, run->d->T, run->ref_nats + first);
    fprintf(stderr, "held out: %.1f%% of %zu pairs have a positive margin\n", 100 * r.value,
            n_held(run) / 2);
    return r.value;
}

// =================================================================================================
// Talking to it
//
// A model says how probable each token is to come next; talking is drawing one, appending it, and
// asking again. What attention wants of the tokens before, k and v of every layer, stays in the KV
// cache, so that a new token costs one row of work and not all rows again. A prompt's rows go
// through the model together, as matrix products (prefill). After that come steps of one row a
// sequence (decoding), whose time goes into reading the weights: sequences that are decoded
// together share it.
// =================================================================================================

typedef struct {
    float logit;
    int id;
} Candidate;

static int by_logit(const void *a, const void *b) { // largest first, ties by id
    const Candidate *x = a, *y = b;
    return x->logit > y->logit ? -1 : x->logit < y->logit ? 1 : x->id - y->id;
}

// The k-th largest of x (n), 1 <= k <= n, by keeping the k largest so far in order.
static float kth_largest(const float *x, size_t n, size_t k) {
    float *best = scratch(k);
    size_t kept = 0;
    for (size_t i = 0; i < n; i++) {
        if (kept == k && !(x[i] > best[k - 1])) continue;
        size_t j = kept < k ? kept++ : k - 1;
        for (; j > 0 && best[j - 1] < x[i]; j--) best[j] = best[j - 1];
        best[j] = x[i];
    }
    return best[k - 1];
}

// Turns logits (V) into the distribution that the next token is drawn from, in MiniMind's order:
// temperature; repetition penalty on each distinct token of the history (a positive logit is
// divided by it, any other multiplied); top-k keeps what is not below the k-th largest; top-p drops
// a token when the more probable ones already hold more than p together; softmax over what is left.
static void sampling_distribution(float *logits, size_t V, const int *history, size_t n,
                                  const Options *o) {
    bool greedy = o->temperature < 1e-20; // below, dividing would overflow
    for (size_t v = 0; v < V && !greedy; v++) logits[v] /= o->temperature;
    bool *seen = xcalloc(V, sizeof *seen);
    for (size_t i = 0; i < n; i++) {
        float *x = &logits[history[i]];
        double factor = *x > 0 ? 1 / o->repetition_penalty : o->repetition_penalty;
        if (!seen[history[i]]) *x *= factor;
        seen[history[i]] = true;
    }
    free(seen);
    size_t k = greedy ? 1 : o->top_k;
    float least = k > 0 && k < V ? kth_largest(logits, V, k) : -INFINITY;
    Candidate *kept = xcalloc(V, sizeof *kept);
    size_t n_kept = 0;
    for (size_t v = 0; v < V; v++)
        if (logits[v] >= least) kept[n_kept++] = (Candidate){logits[v], (int)v};
    if (o->top_p < 1 || greedy) qsort(kept, n_kept, sizeof *kept, by_logit);
    if (greedy) n_kept = 1;
    float *probs = xcalloc(V, sizeof *probs), before = 0; // before: what the ones kept so far hold
    for (size_t i = 0; i < n_kept; i++) probs[i] = kept[i].logit;
    softmax_row(probs, probs, n_kept);
    memset(logits, 0, V * sizeof *logits);
    size_t end = 0;
    while (end < n_kept && (end == 0 || o->top_p >= 1 || before <= o->top_p)) before += probs[end++];
    for (size_t i = 0; i < end; i++) logits[kept[i].id] = probs[i] / before;
    free(probs);
    free(kept);
}

// The token in whose stretch of [0, 1) u lies, when tokens take stretches of their probabilities.
static int draw(const float *p, size_t V, double u) {
    int last = 0;
    for (size_t v = 0; v < V; v++) {
        if (p[v] <= 0) continue;
        last = (int)v;
        if ((u -= p[v]) < 0) break;
    }
    return last; // rounding may leave a little of u: then the last possible token
}

// Copies what the cache holds of the first n positions of one slot to another.
static void copy_slot(const Model *m, Acts *a, int from, int to, size_t n) {
    size_t slot = m->KV * a->room * m->D;
    for (size_t l = 0; l < m->L; l++)
        for (size_t kv = 0; kv < m->KV; kv++) {
            size_t head = kv * a->room * m->D, bytes = n * m->D * sizeof(float);
            memcpy(a->layer[l].k + to * slot + head, a->layer[l].k + from * slot + head, bytes);
            memcpy(a->layer[l].v + to * slot + head, a->layer[l].v + from * slot + head, bytes);
        }
}

// Feeds n tokens of one sequence, in a slot from position start on, in passes of at most max_rows
// rows; the logits after the last one are in a->logits.
static void prefill(const Model *m, Acts *a, const int *ids, size_t n, int start, int slot) {
    for (size_t i = 0; i < n; i += a->max_rows) {
        size_t rows = min_size(a->max_rows, n - i);
        int at = start + (int)i;
        model_forward(m, a, ids + i, 1, rows, &at, &slot);
        a->n_out = 1, a->out_row[0] = (int)rows - 1;
    }
    head_forward(m, a);
}

typedef struct {
    Ids ids;        // the prompt, and then what was drawn
    size_t prompt;  // tokens of the prompt
    bool done;      // the end token was drawn
} Answer;

typedef struct { // an answer that is printed while it is drawn
    Utf8Stream utf8;
    Text text;
} Speaker;

static void speak(Speaker *s, const Tokenizer *tok, int id) { // id -1: that was all
    s->text.len = 0;
    if (id < 0) decode_end(&s->utf8, &s->text), text_append(&s->text, "\n", 1);
    else if (id != tok->eos) decode_token(tok, id, &s->utf8, &s->text);
    if (s->text.len) fwrite(s->text.s, 1, s->text.len, stdout), fflush(stdout);
}

// Continues n sequences, in slots 0 .. n - 1 of the cache, until each has drawn the end token or
// --max-new-tokens or fills the cache. All that are not done share every pass over the weights.
// Neighbours with equal prompts share one prefill. Each draws from random numbers of its own, so
// that its text does not depend on the others. A model may have more rows than its tokenizer has
// tokens; those are never drawn. With `aloud` the first sequence is printed as it is drawn, and
// Ctrl-C ends it; without, Ctrl-C does nothing here, for it must not cut a measurement short.
static void complete(const Model *m, Acts *a, const Tokenizer *tok, Answer *answer, size_t n,
                     const Options *o, Speaker *aloud) {
    int *start = xcalloc(3 * n, sizeof *start), *slot = start + n, *next = slot + n;
    float *logits = xcalloc(n * m->V, sizeof *logits);
    for (size_t i = 0; i < n; i++) {
        Answer *x = &answer[i], *left = i ? x - 1 : NULL;
        x->prompt = x->ids.n;
        bool same = left && left->prompt == x->prompt &&
                    !memcmp(left->ids.id, x->ids.id, x->prompt * sizeof(int));
        if (same) copy_slot(m, a, (int)i - 1, (int)i, x->prompt);
        else prefill(m, a, x->ids.id, x->prompt, 0, (int)i);
        memcpy(logits + i * m->V, same ? logits + (i - 1) * m->V : a->logits,
               m->V * sizeof *logits);
    }
    for (;;) {
        size_t B = 0; // sequences that go on: each draws from its logits, then all take a step
        for (size_t i = 0; i < n; i++) {
            Answer *x = &answer[i];
            size_t made = x->ids.n - x->prompt;
            size_t most = o->max_new_tokens;
            if (x->done || made >= most || x->ids.n >= a->room || (aloud && interrupted)) continue;
            float *row = logits + i * m->V;
            sampling_distribution(row, tok->vocab_size, x->ids.id, x->ids.n, o);
            int id = draw(row, tok->vocab_size, uniform(splitmix64(o->seed + i), x->ids.n));
            ids_push(&x->ids, id);
            x->done = id == tok->eos;
            if (aloud && i == 0) speak(aloud, tok, id);
            if (x->done || x->ids.n >= a->room || made + 1 >= most) continue;
            next[B] = id, start[B] = (int)x->ids.n - 1, slot[B++] = (int)i;
        }
        if (!B) break;
        model_forward(m, a, next, B, 1, start, slot);
        a->n_out = (int)B;
        for (size_t b = 0; b < B; b++) a->out_row[b] = (int)b;
        head_forward(m, a);
        for (size_t b = 0; b < B; b++)
            memcpy(logits + slot[b] * m->V, a->logits + b * m->V, m->V * sizeof *logits);
    }
    free(start), free(logits);
}

// Appends a message as the JSON that training reads, behind those that are there. thoughts may be
// NULL.
static void add_message(Text *t, const char *role, const char *thoughts, const char *content) {
    text_printf(t, "%s{\"role\": \"%s\", ", t->len && t->s[t->len - 1] == '}' ? ", " : "", role);
    if (thoughts) {
        text_printf(t, "\"reasoning_content\": ");
        json_write_string(t, thoughts, strlen(thoughts));
        text_append(t, ", ", 2);
    }
    text_printf(t, "\"content\": ");
    json_write_string(t, content, strlen(content));
    text_append(t, "}", 1);
}

// Appends the ids of such messages, up to the place where the assistant begins to speak or think.
static void encode_messages(Tokenizer *tok, const Text *said, bool think, Ids *out) {
    Chat chat = {{0}, {0}};
    char *list = format("[%s]", said->s);
    Json *messages = json_parse_file("chat", list, strlen(list));
    chat_render(&chat, messages, NULL, true, think);
    tokenizer_encode(tok, chat.text.s, chat.text.len, true, out);
    json_free(messages), free(list), free(chat.text.s), free(chat.cut.id);
}

// Continues a prompt, streaming to stdout; returns the number of tokens made.
static size_t answer_aloud(const Model *m, Tokenizer *tok, Answer *x, const Options *o) {
    size_t context = m->c.max_position_embeddings, prompt = x->ids.n;
    if (!prompt) die("the prompt is empty and the tokenizer has no start token");
    if (prompt >= context) die("the prompt has %zu tokens, the context %zu", prompt, context);
    size_t room = min_size(context, prompt + o->max_new_tokens);
    Acts *a = acts_new(m, INFERENCE, min_size(prompt, 512), 1, room);
    Speaker s = {{{0}, 0}, {0}};
    complete(m, a, tok, x, 1, o, &s);
    speak(&s, tok, -1);
    if (x->ids.n == context && !x->done)
        fprintf(stderr, "%s: the context of %zu tokens is full\n", program, context);
    free(s.text.s), acts_free(a);
    return x->ids.n - prompt;
}

// ---- questions with an answer that can be checked -----------------------------------------------

typedef struct {
    Ids prompt;   // up to the place where the assistant begins to speak
    char *answer; // what it should say, several with OR between them
} Task;

typedef struct Tasks {
    size_t n, cap, longest; // longest: prompt, in tokens
    Task *task;
} Tasks;

static Ids ids_copy(const Ids *from) {
    Ids to = {xcalloc(from->n, sizeof *to.id), from->n, from->n};
    if (from->n) memcpy(to.id, from->id, from->n * sizeof *to.id);
    return to;
}

enum { OR = '\x1E' }; // between answers of which any will do

static void add_answer(Text *t, const char *s, size_t n) {
    if (t->len) text_append(t, &(char){OR}, 1);
    text_append(t, s, n);
}

// n bytes of an answer without what does not count: white space at its ends, a last full stop, "$"
// before and "," within a number.
static char *answer_core(const char *s, size_t n) {
    Text t = {0};
    while (n && strchr(" \t\r\n", s[n - 1])) n--;
    while (n && strchr(" \t\r\n", *s)) s++, n--;
    if (n && s[n - 1] == '.') n--;
    text_append(&t, "", 0);
    for (size_t i = 0; i < n; i++) {
        bool before = i > 0 && s[i - 1] >= '0' && s[i - 1] <= '9';
        bool after = i + 1 < n && s[i + 1] >= '0' && s[i + 1] <= '9';
        if (!(s[i] == '$' && after) && !(s[i] == ',' && before && after)) text_append(&t, s + i, 1);
    }
    return t.s;
}

// Reads {"conversations": [..., {"role": "assistant", "content": answer}], "gt": [answer...]?}. The
// last turn is what has to be answered; without "gt" its content is the answer.
static Tasks *tasks_load(const char *list, Tokenizer *tok, bool think) {
    Tasks *t = xcalloc(1, sizeof *t);
    Chat chat = {{0}, {0}};
    char *names = format("%s", list);
    for (char *path = strtok(names, ","); path; path = strtok(NULL, ",")) {
        Reader r = reader_open(path);
        while (reader_next(&r)) {
            Json *messages = json_get(r.json, "conversations"), *last = NULL, *before = NULL;
            const Json *gt = json_get(r.json, "gt");
            Json *m = messages && messages->type == JSON_ARRAY ? messages->child : NULL;
            for (; m; m = m->next) before = last, last = m;
            if (!last || !before || !role_is(last, "assistant"))
                die("%s:%zu: \"conversations\" has to end with a question and an assistant's turn",
                    path, r.number);
            Text answer = {0};
            bool several = gt && gt->type == JSON_ARRAY;
            const char *said = json_text(last, "content");
            const char *close = said ? strstr(said, "</think>") : NULL;
            if (close) said = close + strlen("</think>");
            if (!gt && said) add_answer(&answer, said, strlen(said));
            for (const Json *e = several ? gt->child : gt; e; e = several ? e->next : NULL)
                if (e->s) add_answer(&answer, e->s, e->len); // a string, or a number as it stands
            if (!answer.len) die("%s:%zu: there is no answer to check with", path, r.number);
            before->next = NULL; // the last turn is not shown
            const char *error = chat_record(&chat, r.json, messages, true, think);
            if (error) die("%s:%zu: %s", path, r.number, error);
            Ids prompt = {0};
            tokenizer_encode(tok, chat.text.s, chat.text.len, true, &prompt);
            t->task = grow(t->task, &t->cap, t->n + 1, sizeof *t->task);
            t->task[t->n++] = (Task){prompt, answer.s};
            if (prompt.n > t->longest) t->longest = prompt.n;
        }
        reader_close(&r);
    }
    if (!t->n) die("%s: there is no question in it", list);
    free(names), free(chat.text.s), free(chat.cut.id);
    return t;
}

// Takes a fiftieth of the tasks, the last ones, out of t: they are measured on, not trained on.
static Tasks *tasks_split(Tasks *t) {
    Tasks *held = xcalloc(1, sizeof *held);
    size_t n = t->n / HOLD_OUT_EVERY + 1, left = t->n - min_size(n, t->n - 1);
    held->n = t->n - left, held->longest = t->longest, t->n = left;
    if (!held->n) die("one question is too few: one is held out");
    held->task = xcalloc(held->n, sizeof *held->task);
    memcpy(held->task, t->task + left, held->n * sizeof *held->task);
    return held;
}

static void tasks_free(Tasks *t) {
    for (size_t i = 0; i < t->n; i++) free(t->task[i].prompt.id), free(t->task[i].answer);
    free(t->task), free(t);
}

// What was drawn, as text; *form is whether it was brought to its end, and with thoughts closed
// once.
static char *answer_text(const Tokenizer *tok, const Answer *x, bool think, bool *form) {
    Text t = {0};
    Utf8Stream utf8 = {{0}, 0};
    text_append(&t, "", 0);
    for (size_t i = x->prompt; i < x->ids.n; i++)
        if (x->ids.id[i] != tok->eos) decode_token(tok, x->ids.id[i], &utf8, &t);
    decode_end(&utf8, &t);
    char *close = think ? strstr(t.s, "</think>") : t.s;
    *form = x->done && close && !(think && strstr(close + 1, "</think>"));
    if (!close) t.s[0] = 0; // it never came to an answer
    else if (think) close += strlen("</think>"), memmove(t.s, close, strlen(close) + 1);
    return t.s;
}

// Does a text say one of the answers, but for what does not count?
static bool answer_is(const char *text, const char *answers) {
    char *said = answer_core(text, strlen(text));
    bool right = false;
    for (const char *a = answers, *end; !right && a; a = *end ? end + 1 : NULL) {
        end = strchr(a, OR) ? strchr(a, OR) : a + strlen(a);
        char *want = answer_core(a, end - a);
        right = !strcmp(said, want);
        free(want);
    }
    free(said);
    return right;
}

// Lets the model answer all tasks greedily, many at once: the share it gets right. said_all (n), if
// not NULL, gets the answers, which the caller frees.
static Ratio solve(const Model *m, Tokenizer *tok, const Tasks *t, bool think, size_t new_tokens,
                   char **said_all) {
    enum { AT_ONCE = 64 };
    size_t room = min_size(m->c.max_position_embeddings, t->longest + new_tokens);
    Acts *a = acts_new(m, INFERENCE, t->longest > AT_ONCE ? t->longest : AT_ONCE, AT_ONCE, room);
    Options o = {.top_p = 1, .repetition_penalty = 1, .max_new_tokens = new_tokens};
    double *right = xcalloc(t->n, sizeof *right);
    for (size_t i = 0; i < t->n; i += AT_ONCE) {
        Answer x[AT_ONCE] = {{{0}, 0, false}};
        size_t n = min_size(AT_ONCE, t->n - i);
        for (size_t k = 0; k < n; k++) x[k].ids = ids_copy(&t->task[i + k].prompt);
        complete(m, a, tok, x, n, &o, NULL);
        for (size_t k = 0; k < n; k++) {
            bool form;
            char *said = answer_text(tok, &x[k], think, &form);
            right[i + k] = answer_is(said, t->task[i + k].answer);
            if (said_all) said_all[i + k] = said;
            else free(said);
            free(x[k].ids.id);
        }
    }
    Ratio r = ratio(right, NULL, t->n);
    free(right), acts_free(a);
    return r;
}

// ---- GRPO ---------------------------------------------------------------------------------------

// Rewards, in the order in which they matter: a right answer 1, one in good form 0.25.
static double reward(const Tokenizer *tok, const Answer *x, const char *answers, bool think,
                     bool *right) {
    bool form;
    char *said = answer_text(tok, x, think, &form);
    *right = form && answer_is(said, answers);
    free(said);
    return *right + 0.25 * form;
}

// The log-probability of each target of a batch under a model, in passes of at most `pass` rows,
// into (rows, T).
static void store_logp(const Model *m, Acts *a, const Batch *b, size_t pass, float *into) {
    for (size_t row = 0; row < b->rows; row += pass) {
        batch_logp(m, a, b, row, min_size(pass, b->rows - row));
        for (int i = 0; i < a->n_out; i++) into[b->at[i]] = a->logp[i];
    }
}

// Replaces the rewards of a group of G by its advantages: (reward - mean) / (deviation + 1e-4).
static void group_advantages(double *reward, size_t G) {
    double mean = 0, variance = 0;
    for (size_t g = 0; g < G; g++) mean += reward[g] / G;
    for (size_t g = 0; g < G; g++) variance += pow(reward[g] - mean, 2) / G;
    for (size_t g = 0; g < G; g++) reward[g] = (reward[g] - mean) / (sqrt(variance) + 1e-4);
}

// Draws answers to the next prompts and makes them the batch, for --updates steps: in the first
// every ratio is 1, since the model is still the one that drew. Rows of a group are neighbours.
static void fill_answers(Run *run) {
    const Options *o = run->o;
    Batch *b = &run->b;
    size_t G = o->num_generations;
    if (run->updates) {
        run->updates--;
        return;
    }
    run->updates = o->updates - 1;
    Answer *x = xcalloc(run->rows, sizeof *x);
    size_t *task = xcalloc(run->rows, sizeof *task);
    b->rows = run->rows, b->T = 1, b->n_targets = 0;
    memset(b->stat, 0, sizeof b->stat);
    for (size_t r = 0; r < b->rows; r++) {
        // prompts in strides of a prime, from another start each time round
        uint64_t turn = run->next_task + r / G, n = run->tasks->n, stride = n % 7919 ? 7919 : 1;
        uint64_t stream = splitmix64(o->seed + 77) + turn / n;
        task[r] = (splitmix64(stream) + turn * stride) % n;
        x[r].ids = ids_copy(&run->tasks->task[task[r]].prompt);
    }
    Options how = {.temperature = o->temperature, .top_p = 1, .repetition_penalty = 1,
                   .max_new_tokens = o->max_new_tokens,
                   .seed = splitmix64(o->seed) + run->next_task * G};
    complete(run->m, run->gen, run->tok, x, b->rows, &how, NULL);
    run->next_task += b->rows / G;
    for (size_t r = 0; r < b->rows; r++) {
        bool right;
        const char *answer = run->tasks->task[task[r]].answer;
        b->advantage[r] = reward(run->tok, &x[r], answer, o->think, &right);
        if (x[r].ids.n - 1 > b->T) b->T = x[r].ids.n - 1;
        b->stat[0] += b->advantage[r] / b->rows, b->stat[1] += (double)right / b->rows;
        b->stat[2] += (double)(x[r].ids.n - x[r].prompt) / b->rows;
    }
    for (size_t r = 0; r < b->rows; r += G) group_advantages(b->advantage + r, G);
    for (size_t r = 0; r < b->rows; r++) {
        for (size_t i = x[r].prompt; i < x[r].ids.n; i++) x[r].ids.id[i] |= TRAINED;
        b->length[r] = shift(b->ids + r * b->T, b->target + r * b->T, x[r].ids.id, x[r].ids.n - 1,
                             b->T, run->tok->vocab_size);
        b->n_targets += b->length[r];
        free(x[r].ids.id);
    }
    size_t pass = run->rows / o->accumulate;
    store_logp(run->m, run->a, b, pass, b->old_logp);
    if (run->ref) store_logp(run->ref, run->a, b, pass, b->ref_logp);
    else memcpy(b->ref_logp, b->old_logp, b->rows * b->T * sizeof(float));
    free(x), free(task);
}

// A copy of the model before the first step is the reference, unless --beta 0 asks for none.
static void open_answers(Run *run) {
    size_t room = min_size(run->m->c.max_position_embeddings,
                           run->tasks->longest + run->o->max_new_tokens);
    size_t rows = run->rows > run->tasks->longest ? run->rows : run->tasks->longest;
    run->gen = acts_new(run->m, INFERENCE, rows, run->rows, room);
    if (run->o->beta == 0) return;
    run->ref = model_new(run->m->c);
    model_allocate(run->ref, false, 32);
    memcpy(run->ref->params, run->m->params, run->m->n_params * sizeof(float));
}

static double measure_answers(Run *run) {
    Ratio r = solve(run->m, run->tok, run->held, run->o->think, run->o->max_new_tokens, NULL);
    fprintf(stderr, "held out: %.1f%% of %zu questions solved\n", 100 * r.value, run->held->n);
    return r.value;
}

// ---- the stages ---------------------------------------------------------------------------------

enum { PRETRAIN, SFT, DPO, GRPO };
static const Stage stages[] = {
    {"pretrain", next_token_loss, 0, 2e-3, open_pretraining, fill_from_data, measure_text, {NULL}},
    {"sft", next_token_loss, 1, 5e-4, NULL, fill_from_data, measure_text, {NULL}},
    {"dpo", dpo_loss, 2, 5e-5, open_preferences, fill_preferences, measure_preferences,
     {"margin", "accuracy", "logp_chosen", "logp_rejected"}},
    {"grpo", policy_loss, 0, 1e-4, open_answers, fill_answers, measure_answers,
     {"reward", "solved", "length", "kl", "clipped"}},
};

// =================================================================================================
// Measuring it: check
//
// Two independent witnesses that the mathematics above is right. Finite differences ask the forward
// pass for its own slope and compare it with what the backward pass claims. The golden files hold
// numbers that another implementation, in another language, computed from the same formulas.
// =================================================================================================

typedef struct {
    int passed, failed;
} Tally;

// One line a quantity: what, the error, the limit. A NaN is never within a limit.
static bool report(Tally *tally, const char *what, double error, double limit) {
    bool ok = error <= limit;
    if (ok) tally->passed++;
    else tally->failed++;
    printf("%-6s %-64s error %8.2e  limit %8.2e\n", ok ? "ok" : "FAILED", what, error, limit);
    return ok;
}

static const char *const check_variant[][2] = {
    {"dense", ""},
    {"dense without q/k norm", "qk_norm=0 num_key_value_heads=4"},
    {"YaRN", "yarn=1 yarn_original_max=4 yarn_factor=4 yarn_beta_fast=2 yarn_beta_slow=0.25 "
             "rope_theta=100 yarn_attention_factor=1.1"},
    {"odd sizes", "vocab_size=11 hidden_size=9 num_attention_heads=3 num_key_value_heads=1 "
                  "head_dim=6 intermediate_size=5"},
    {"top-1 raw", "use_moe=1 router_aux_loss_coef=0"},
    {"top-1 renormalised", "use_moe=1 norm_topk_prob=1 router_aux_loss_coef=0"},
    {"top-1 renormalised, batch balance", "use_moe=1 norm_topk_prob=1 router_aux_loss_coef=0.5"},
    {"top-2, batch balance", "use_moe=1 num_experts_per_tok=2 router_aux_loss_coef=0.3"},
    {"top-2 of 6 raw, sequence balance", "use_moe=1 num_experts=6 num_experts_per_tok=2 seq_aux=1 "
                                         "norm_topk_prob=0 router_aux_loss_coef=0.3"},
    {"top-2 and 2 shared, sequence balance", "use_moe=1 num_experts_per_tok=2 n_shared_experts=2 "
                                             "seq_aux=1 router_aux_loss_coef=0.3"},
};

static double loss_now(const Model *m, Acts *a, const Batch *b, Objective *f, const Options *o) {
    double stat[STATS] = {0};
    batch_logp(m, a, b, 0, b->rows);
    return f(a->dlogp, a->logp, a->n_out, b, o, stat) + a->aux_loss;
}

// A small model of the variant `fields`, with weights far larger than at the start of a training,
// so that every nonlinearity is at work.
static Model *check_model(const char *name, const char *fields) {
    Config c = config_preset("minimind3");
    config_parse(&c, "vocab_size=13 hidden_size=8 num_hidden_layers=2 num_attention_heads=4 "
                     "num_key_value_heads=2 head_dim=4 intermediate_size=7 rope_theta=100", name);
    config_parse(&c, fields, name);
    config_complete(&c, name);
    Model *m = model_new(c);
    model_allocate(m, true, 32);
    for (Tensor *t = m->tensor; t < m->tensor + m->n_tensors; t++)
        for (size_t i = 0; i < tensor_size(t); i++)
            t->w[i] = (t->decay ? 0 : 1) + 0.4 * normal(fnv1a64(t->name), i);
    return m;
}

// (f(w + h) - f(w - h)) / 2h for every single parameter against its gradient. The error is relative
// to the largest gradient in the tensor. (A step that changes a router's choice would spoil the
// quotient; with these seeds none does.) In float the loss has seven digits and the quotient few;
// in double (cc -Dfloat=double ...) it agrees to 1e-6.
static void check_gradients(Tally *tally, const char *name, const char *fields, Objective *f,
                            const char *loss) {
    enum { B = 4, T = 7 };
    bool precise = sizeof(float) == 8;
    Model *m = check_model(name, fields);
    Batch b = batch_new(B, T);
    Options o = {.loss = loss, .beta = 0.3, .epsilon = 0.2, .epsilon_high = 5};
    b.rows = B, b.T = T;
    for (int i = 0; i < B * T; i++) {
        b.ids[i] = (int)(splitmix64(i) % m->V);
        b.target[i] = splitmix64(i + 100) % 4 ? (int)(splitmix64(i + 200) % m->V) : -1;
        b.n_targets += b.target[i] >= 0, b.length[i / T] += b.target[i] >= 0;
        // CISPO's gradient takes the ratio for a constant. A difference does not, unless the ratio
        // is one: -99 puts all of them beyond epsilon_high.
        b.old_logp[i] = (!strcmp(loss, "cispo") ? -99 : -3) + normal(5, i);
        b.ref_logp[i] = -3 + normal(6, i);
        b.ref_sum[i / T] = -12 + normal(7, i), b.advantage[i / T] = normal(8, i);
    }
    Acts *a = acts_new(m, TRAINING, B * T, 0, 0);
    loss_now(m, a, &b, f, &o);
    model_backward(m, a);
    for (Tensor *t = m->tensor; t < m->tensor + m->n_tensors; t++) {
        double worst = 0, largest = 0, h = precise ? 1e-5 : 2e-3;
        for (size_t i = 0; i < tensor_size(t); i++) {
            float w = t->w[i];
            t->w[i] = w + h;
            double up = loss_now(m, a, &b, f, &o);
            t->w[i] = w - h;
            double down = loss_now(m, a, &b, f, &o);
            t->w[i] = w;
            worst = worse(worst, fabs((up - down) / (2 * h) - t->g[i]));
            largest = worse(largest, fabs(t->g[i]));
        }
        bool silent = t->cols == m->C && t->rows == m->E && m->c.norm_topk_prob && m->K == 1 &&
                      m->c.router_aux_loss_coef == 0; // the router must get exactly nothing
        char what[160];
        snprintf(what, sizeof what, "%s: %s%s", name, t->name, silent ? " is 0" : "");
        if (silent) report(tally, what, largest, 0);
        else report(tally, what, worst / (largest + 1e-12), precise ? 1e-6 : 3e-2);
    }
    batch_free(&b), acts_free(a), model_free(m);
}

// Margins of +-1000, where e^margin overflows: the loss is 0 and 1000, its slope 0 and beta.
static void check_margins(Tally *tally) {
    Options o = {.beta = 0.1};
    for (int sign = -1; sign <= 1; sign += 2) {
        float logp[2] = {0, 0}, dlogp[2];
        double ref[2] = {-sign * 1000 / o.beta, 0}, stat[STATS] = {0};
        Batch b = {.rows = 2, .T = 1, .at = (int[]){0, 1}, .ref_sum = ref, .n_targets = 2};
        double loss = dpo_loss(dlogp, logp, 2, &b, &o, stat);
        double want = sign > 0 ? 0 : 1000, slope = sign > 0 ? 0 : o.beta;
        double error = fabs(dlogp[0] + slope) + fabs(dlogp[1] - slope);
        report(tally, sign > 0 ? "DPO, margin 1000" : "DPO, margin -1000",
               worse(fabs(loss - want) / 1000, error), 1e-6);
    }
}

// Decoding through the KV cache against the full forward pass, which sees all tokens at once. Two
// sequences of different lengths share each step, in slots that are not in their order.
static void check_decoding(Tally *tally, const char *name, const char *fields) {
    enum { T = 9 };
    Model *m = check_model(name, fields);
    Acts *full = acts_new(m, TRAINING, 2 * T, 0, 0), *a = acts_new(m, INFERENCE, T, 2, T);
    int ids[2 * T], target[2 * T] = {0}, slot[2] = {1, 0}, done[2] = {4, 2};
    double worst = 0;
    for (int i = 0; i < 2 * T; i++) ids[i] = (int)(splitmix64(i) % m->V);
    logp_of(m, full, ids, target, 2, T);
    for (int b = 0; b < 2; b++) // the prompts
        model_forward(m, a, ids + b * T, 1, done[b], &(int){0}, &slot[b]);
    for (int first = 0; done[1] < T; done[0]++, done[1]++) {
        if (done[0] == T) first = 1; // sequence 0 is complete, sequence 1 goes on alone
        int next[2] = {ids[min_size(done[0], T - 1)], ids[T + done[1]]};
        model_forward(m, a, next + first, 2 - first, 1, done + first, slot + first);
        a->n_out = 2 - first, a->out_row[0] = 0, a->out_row[1] = 1;
        head_forward(m, a);
        for (int b = first; b < 2; b++)
            for (size_t v = 0; v < m->V; v++) {
                double want = full->logits[(b * T + done[b]) * m->V + v];
                worst = worse(worst, fabs(a->logits[(b - first) * m->V + v] - want));
            }
    }
    char what[160];
    snprintf(what, sizeof what, "%s: logits token by token", name);
    report(tally, what, worst, 1e-5);
    acts_free(full), acts_free(a), model_free(m);
}

// Greedy answers that are drawn together are those that each would be alone: three prompts, of
// which the second is the first once more, whose part of the cache is copied.
static void check_drawing(Tally *tally, const char *name, const char *fields) {
    enum { PROMPT = 5, NEW = 6 };
    Model *m = check_model(name, fields);
    Acts *a = acts_new(m, INFERENCE, PROMPT, 3, PROMPT + NEW);
    Tokenizer tok = {.vocab_size = (int)m->V, .eos = -1};
    Options o = {.top_p = 1, .repetition_penalty = 1, .max_new_tokens = NEW};
    Answer x[6] = {{{0}, 0, false}}; // together, and then alone
    for (int i = 0; i < 6; i++)
        for (int t = 0; t < PROMPT; t++)
            ids_push(&x[i].ids, (int)(splitmix64(i % 3 / 2 * 100 + t) % m->V));
    complete(m, a, &tok, x, 3, &o, NULL);
    int wrong = 0;
    for (int i = 0; i < 3; i++) {
        complete(m, a, &tok, &x[3 + i], 1, &o, NULL);
        wrong += memcmp(x[i].ids.id, x[3 + i].ids.id, (PROMPT + NEW) * sizeof(int)) != 0;
    }
    char what[160];
    snprintf(what, sizeof what, "%s: answers drawn together", name);
    report(tally, what, wrong, 0);
    for (int i = 0; i < 6; i++) free(x[i].ids.id);
    acts_free(a), model_free(m);
}

// The shortcuts everything rests on: the blocked product against its definition, for sizes that
// leave every kind of remainder and both ways of reading each operand; fast_exp and fast_sqrt
// against libm.
static void check_kernels(Tally *tally) {
    static const size_t size[][3] = {{1, 1, 1}, {3, 50, 7}, {7, 33, 300}, {8, 64, 1}, {13, 17, 19},
                                     {97, 70, 513}, {47, 48, 1601}, {49, 1000, 40}};
    bool precise = sizeof(float) == 8;
    double worst = 0, worst_exp = 0;
    for (size_t i = 0; i < sizeof size / sizeof *size * 8; i++) {
        size_t M = size[i / 8][0], N = size[i / 8][1], K = size[i / 8][2];
        float *a = xcalloc(M * K, sizeof *a), *b = xcalloc(K * N, sizeof *b);
        float *c = xcalloc(M * N, sizeof *c), *want = xcalloc(M * N, sizeof *want);
        View va = i & 1 ? transposed(a, M) : plain(a, K);
        View vb = i & 2 ? transposed(b, K) : plain(b, N);
        for (size_t k = 0; k < M * K; k++) a[k] = normal(1, k);
        for (size_t k = 0; k < K * N; k++) b[k] = normal(2, k);
        for (size_t k = 0; k < M * N; k++) c[k] = want[k] = 1;
        matmul(M, N, K, va, vb, c, i & 4);
        matmul_definition(M, N, K, va, vb, want, i & 4);
        for (size_t k = 0; k < M * N; k++) worst = worse(worst, fabs(want[k] - c[k]) / sqrt(K));
        free(a), free(b), free(c), free(want);
    }
    report(tally, "matmul against three loops", worst, precise ? 1e-13 : 1e-5);
    for (double x = -87; x < 88; x += 0.0137)
        worst_exp = worse(worst_exp, fabs(fast_exp((float)x) / exp((float)x) - 1));
    report(tally, "e^x against libm", worst_exp, 2e-7);
    static const float edge[] = {-INFINITY, -200, -104, -100, -90, 0, 88, 89, 200, INFINITY};
    double worst_edge = isnan(fast_exp(NAN)) ? 0 : INFINITY; // 0, denormal numbers, infinity
    for (size_t i = 0; i < sizeof edge / sizeof *edge; i++) {
        float y = fast_exp(edge[i]), want = expf(edge[i]);
        if (y != want) worst_edge = worse(worst_edge, fabs(y - want) / (want + FLT_MIN));
    }
    report(tally, "e^x at the ends of its range, and of NaN", worst_edge, 3e-7);
    double worst_root = fast_sqrt(0);
    for (double x = 1e-37; x < 1e37; x *= 1.0137)
        worst_root = worse(worst_root, fabs(fast_sqrt((float)x) / sqrt((float)x) - 1));
    report(tally, "square root against libm", worst_root, 3e-7);
}

// Weights in fewer bits: what comes back differs by no more than their rounding, and a product with
// them is the product with what comes back.
static void check_packing(Tally *tally) {
    enum { OUT = 9, IN = 3 * BLOCK, N = 3 };
    for (int bits = 16; bits >= 8 && sizeof(float) == 4; bits /= 2) {
        Model m = {.tensor = &(Tensor){.rows = OUT, .cols = IN, .std = 1}, .n_tensors = 1};
        float w[OUT * IN], back[OUT * IN], x[N * IN], want[N * OUT] = {0}, got[N * OUT];
        double rounding = 0, product = 0;
        for (size_t i = 0; i < OUT * IN; i++) w[i] = normal(3, i);
        for (size_t i = 0; i < N * IN; i++) x[i] = normal(4, i);
        model_allocate(&m, false, bits);
        tensor_pack(m.tensor, w);
        for (size_t o = 0; o < OUT; o++) tensor_row(back + o * IN, m.tensor, o);
        for (size_t i = 0; i < OUT * IN; i++) {
            float most = fabsf(w[i]);
            for (size_t k = i / BLOCK * BLOCK; bits == 8 && k < i / BLOCK * BLOCK + BLOCK; k++)
                most = fmaxf(most, fabsf(w[k]));
            rounding = worse(rounding, fabs(back[i] - w[i]) / most);
        }
        report(tally, bits == 16 ? "bf16 weights" : "int8 weights", rounding,
               bits == 16 ? 1.0 / 256 : 1.0 / 253);
        matmul(N, OUT, IN, plain(x, IN), transposed(back, IN), want, false);
        for (size_t n = 1; n <= N; n += 2) { // one row has code of its own
            linear_forward(got, x, m.tensor, n, false);
            for (size_t i = 0; i < n * OUT; i++) product = worse(product, fabs(got[i] - want[i]));
        }
        report(tally, bits == 16 ? "a product with bf16" : "a product with int8", product, 1e-4);
        free(m.block[0]);
    }
}

// ---- golden files -------------------------------------------------------------------------------

typedef struct {
    char **field;
    int n;
    bool used;
} Record;

typedef struct {
    const char *path;
    char *text;
    Record *record;
    int n;
    Tally *tally;
} Golden;

static Golden golden_read(const char *path, Tally *tally) {
    Golden g = {.path = path, .tally = tally, .text = read_file(path, &(size_t){0})};
    for (char *line = g.text, *next; line && *line; line = next) {
        if ((next = strchr(line, '\n'))) *next++ = 0;
        if (*line == '#' || !*line) continue;
        g.record = xrealloc(g.record, g.n + 1, sizeof *g.record);
        Record *r = &g.record[g.n];
        *r = (Record){0};
        for (char *s = strtok(line, "\t \r"); s; s = strtok(NULL, "\t \r")) {
            r->field = xrealloc(r->field, r->n + 1, sizeof *r->field);
            r->field[r->n++] = s;
        }
        g.n += r->n > 0;
    }
    return g;
}

// The record after `after` (NULL: from the start) whose first fields are key and, if not NULL, id.
static Record *golden_next(Golden *g, Record *after, const char *key, const char *id) {
    for (Record *r = after ? after + 1 : g->record; r < g->record + g->n; r++)
        if (!strcmp(r->field[0], key) && (!id || (r->n > 1 && !strcmp(r->field[1], id)))) {
            r->used = true;
            return r;
        }
    return NULL;
}

static double golden_number(const Golden *g, const Record *r, int i) {
    char *end = "";
    double value = i >= 0 && i < r->n ? strtod(r->field[i], &end) : 0;
    if (i < 0 || i >= r->n || end == r->field[i] || *end)
        die("%s: field %d of a %s record is not a number", g->path, i, r->field[0]);
    return value;
}

// The value of a key that stands once, or dies.
static const char *golden_string(Golden *g, const char *key) {
    Record *r = golden_next(g, NULL, key, NULL);
    if (!r || r->n < 2) die("%s: key %s is missing", g->path, key);
    return r->field[1];
}

static double golden_value(Golden *g, const char *key) {
    golden_string(g, key);
    return golden_number(g, golden_next(g, NULL, key, NULL), 1);
}

// Compares numbers with the fields of r from `first` on: the largest error, relative to `scale`
// (0: to each number itself), against the limit.
static void golden_compare(Golden *g, const Record *r, int first, const double *got, int n,
                           double scale, double limit) {
    double worst = r->n - first >= n ? 0 : INFINITY;
    char what[200] = "";
    for (int i = 0; i < first && strlen(what) < 100; i++)
        snprintf(what + strlen(what), 80, "%s%s", i ? " " : "", r->field[i]);
    for (int i = 0; i < n && first + i < r->n; i++) {
        double want = golden_number(g, r, first + i), error = fabs(got[i] - want);
        worst = worse(worst, error / (scale > 0 ? scale : fabs(want) > 0 ? fabs(want) : 1));
    }
    report(g->tally, what, worst, limit);
}

// The same for the record of a key, and id if that is not NULL. A file that has none of it is not
// checked for it.
static void golden_check(Golden *g, const char *key, const char *id, const double *got, size_t n,
                         double scale, double limit) {
    Record *r = golden_next(g, NULL, key, id);
    if (r) golden_compare(g, r, id ? 2 : 1, got, (int)n, scale, limit);
}

static float signed_unit(uint64_t h, uint64_t i) {
    float u = (float)(splitmix64(h + i) >> 40) * 0x1p-24f;
    return 2.0f * u - 1.0f;
}

// Of n numbers: l2, probe, the first four; see section 2 of notes/golden/README.md.
static void digest(double v[6], const char *name, const float *x, size_t n) {
    char probe[120];
    snprintf(probe, sizeof probe, "%s#probe", name);
    uint64_t h = fnv1a64(probe);
    for (size_t i = 0; i < 6; i++) v[i] = 0;
    for (size_t i = 0; i < n; i++) {
        v[0] += (double)x[i] * x[i];
        v[1] += (double)x[i] * signed_unit(h, i);
        if (i < 4) v[2 + i] = x[i];
    }
    v[0] = sqrt(v[0]);
}

static void golden_weights(Model *m, const char *tag) {
    for (Tensor *t = m->tensor; t < m->tensor + m->n_tensors; t++) {
        char name[160];
        snprintf(name, sizeof name, "%s%s", t->name, strcmp(tag, "-") ? tag : "");
        uint64_t h = fnv1a64(name);
        for (size_t i = 0; i < tensor_size(t); i++) t->w[i] = signed_unit(h, i) * 0.1f;
        // 1 is added in a loop of its own: a fused multiply-add would round once instead of twice
        for (size_t i = 0; i < t->rows * t->cols && t->std == 0; i++) t->w[i] += 1;
    }
}

static Config golden_config(Golden *g) {
    Config c = config_preset("minimind3");
    for (Record *r = g->record; r < g->record + g->n; r++) {
        const struct Field *f = config_find(r->field[0], false);
        if (f && r->n > 1) config_set(&c, f, golden_number(g, r, 1), g->path), r->used = true;
    }
    c.router_aux_loss_coef = golden_value(g, "aux_coef");
    c.seq_aux = !strcmp(golden_string(g, "aux_kind"), "seq");
    golden_next(g, NULL, "data_tag", NULL); // says where the ids come from
    config_complete(&c, g->path);
    return c;
}

// Reads a matrix of whole numbers: one record a row, the row's number second.
static int *golden_ints(Golden *g, const char *key, size_t rows, size_t cols, int least, int most) {
    int *x = xcalloc(rows * cols, sizeof *x);
    Record *r = NULL;
    for (size_t i = 0; i < rows * cols; i++) {
        if (i % cols == 0) r = golden_next(g, r, key, NULL);
        double value = r ? golden_number(g, r, (int)(i % cols) + 2) : NAN;
        if (!(value >= least && value <= most))
            die("%s: %s: row %zu, column %zu is %g, not from %d to %d", g->path, key, i / cols,
                i % cols, value, least, most);
        x[i] = (int)value;
    }
    return x;
}

// One digest record a tensor: "param" for its weights, "grad" for its gradients, "param_stepN" for
// its weights after N steps.
static void golden_tensors(Golden *g, const Model *m, const char *key) {
    bool gradients = !strcmp(key, "grad"), exact = !strcmp(key, "param");
    for (Record *r = NULL; (r = golden_next(g, r, key, NULL));) {
        Tensor *t = m->tensor;
        while (t < m->tensor + m->n_tensors && (r->n < 2 || strcmp(t->name, r->field[1]))) t++;
        if (t == m->tensor + m->n_tensors) {
            report(g->tally, r->n < 2 ? key : r->field[1], INFINITY, 0);
            continue;
        }
        double v[6], scale = fabs(golden_number(g, r, r->n > 6 ? r->n - 6 : -1)), limit = 4e-5;
        digest(v, t->name, gradients ? t->g : t->w, tensor_size(t));
        if (gradients) limit = t->rows == m->E && t->cols == m->C && m->K == 1 ? 5e-4 : 1e-4;
        if (!exact) golden_compare(g, r, 3, v, 6, scale, limit);
        else { // exact numbers, of which l2 and probe are sums
            golden_compare(g, r, 4, v, 2, scale, 1e-6);
            golden_compare(g, r, 6, v + 2, 4, 1, 1e-7);
        }
    }
}

// An activation of (B, T) rows: its l2 and the first four numbers of its last row. `minus` is
// subtracted if not NULL: what a block adds to the residual stream is not stored on its own.
static void golden_act(Golden *g, const char *name, const float *x, const float *minus, size_t n,
                       size_t last) {
    Record *r = golden_next(g, NULL, "act", name);
    if (!r) return;
    double v[5] = {0};
    for (size_t i = 0; i < n; i++) v[0] += pow(x[i] - (minus ? minus[i] : 0), 2);
    v[0] = sqrt(v[0]);
    for (size_t i = 0; i < 4; i++) v[1 + i] = x[last + i] - (minus ? minus[last + i] : 0);
    golden_compare(g, r, 2, v, 1, fabs(v[0]) + 1e-30, 1e-5);
    golden_compare(g, r, 3, v + 1, 4, 1, 2e-5);
}

static void golden_acts(Golden *g, const Model *m, const Acts *a) {
    size_t n = a->N * m->C, row = n - m->C;
    golden_act(g, "embed", a->layer[0].x, NULL, n, row);
    for (size_t l = 0; l < m->L; l++) {
        const LayerActs *s = &a->layer[l];
        Heads hq = heads_of(m, a, 'q'), hk = heads_of(m, a, 'k');
        struct { const char *name; const float *x, *minus; size_t n, last; } act[] = {
            {"attn_norm", s->norm1, NULL, n, row},
            {"q_rot", s->q, NULL, a->N * m->H * m->D, heads_at(&hq, a->B - 1, a->T - 1, 0, 0)},
            {"k_rot", s->k, NULL, a->N * m->KV * m->D, heads_at(&hk, a->B - 1, a->T - 1, 0, 0)},
            {"attn_out", s->x_mid, s->x, n, row},
            {"mlp_norm", s->norm2, NULL, n, row},
            {"mlp_out", a->layer[l + 1].x, s->x_mid, n, row},
            {"out", a->layer[l + 1].x, NULL, n, row}};
        for (size_t i = 0; i < sizeof act / sizeof *act; i++) {
            char name[40];
            snprintf(name, sizeof name, "layer%zu.%s", l, act[i].name);
            golden_act(g, name, act[i].x, act[i].minus, act[i].n, act[i].last);
        }
    }
    golden_act(g, "final_norm", a->final_norm, NULL, n, row);
}

// How the router decided, layer by layer; returns the smallest gap between the last expert taken
// and the next one.
static double golden_router(Golden *g, const Model *m, const Acts *a, bool compare) {
    double gap = INFINITY;
    for (size_t l = 0; l < m->L && m->E; l++) {
        const Routing *r = &a->layer[l].route;
        char id[24];
        double *count = xcalloc(3 * m->E + a->T * m->K, sizeof *count);
        double *mean = count + m->E, *last = mean + m->E, *choice = last + m->E;
        for (size_t n = 0; n < a->N; n++) {
            float next = 0;
            for (size_t e = 0; e < m->E; e++) {
                bool taken = false;
                for (size_t k = 0; k < m->K; k++) taken |= r->choice[n * m->K + k] == (int)e;
                count[e] += taken;
                last[e] = r->prob[n * m->E + e];
                mean[e] += r->prob[n * m->E + e] / (double)a->N;
                if (!taken) next = fmaxf(next, r->prob[n * m->E + e]);
            }
            gap = fmin(gap, r->prob[n * m->E + r->choice[(n + 1) * m->K - 1]] - next);
        }
        snprintf(id, sizeof id, "%zu", l);
        for (size_t i = 0; i < a->T * m->K; i++) choice[i] = r->choice[(a->N - a->T) * m->K + i];
        if (compare) {
            golden_check(g, "router_counts", id, count, m->E, 1, 0);
            golden_check(g, "router_mean_prob", id, mean, m->E, 1, 2e-5);
            golden_check(g, "router_choice", id, choice, a->T * m->K, 1, 0);
            golden_check(g, "router_prob_last", id, last, m->E, 1, 2e-5);
        }
        free(count);
    }
    return gap;
}

// Greedy generation through the KV cache, with all matrices but the embedding scaled up so that a
// small random model does not repeat itself. Makes the weights anew at the end.
static void golden_generation(Golden *g, Model *m) {
    enum { PROMPT = 5, NEW = 16 };
    double scale = golden_value(g, "gen_matrix_scale"), best[NEW], tokens[NEW], gap = INFINITY;
    golden_string(g, "gen_prompt"); // or die
    Record *r = golden_next(g, NULL, "gen_prompt", NULL);
    int ids[PROMPT + NEW];
    for (int i = 0; i < PROMPT; i++) ids[i] = (int)golden_number(g, r, 1 + i);
    for (Tensor *t = m->tensor; t < m->tensor + m->n_tensors; t++)
        for (size_t i = 0; t->decay && t != m->embed && i < tensor_size(t); i++)
            t->w[i] *= scale;
    Acts *a = acts_new(m, INFERENCE, PROMPT, 1, PROMPT + NEW);
    for (int n = 0; n < NEW; n++) {
        if (n == 0) prefill(m, a, ids, PROMPT, 0, 0);
        else prefill(m, a, ids + PROMPT + n - 1, 1, PROMPT + n - 1, 0);
        int top = 0;
        double second = -INFINITY;
        for (int v = 1; v < (int)m->V; v++)
            if (a->logits[v] > a->logits[top]) second = a->logits[top], top = v;
            else second = fmax(second, a->logits[v]);
        best[n] = a->logits[top], tokens[n] = ids[PROMPT + n] = top;
        gap = fmin(gap, best[n] - second);
    }
    acts_free(a);
    golden_weights(m, golden_string(g, "weight_tag"));
    golden_check(g, "gen_tokens", NULL, tokens, NEW, 1, 0);
    golden_check(g, "gen_best_logit", NULL, best, NEW, 0, 1e-4);
    golden_check(g, "gen_min_logit_gap", NULL, &gap, 1, 1, 1e-4);
}

static void golden_scalar(Golden *g, const char *key, double got, double scale, double limit) {
    golden_check(g, key, NULL, &got, 1, scale, limit);
}

// A model of the file's configuration with the weights of a tag.
static Model *golden_model(Golden *g, const char *tag_key) {
    Model *m = model_new(golden_config(g));
    model_allocate(m, true, 32);
    golden_weights(m, golden_string(g, tag_key));
    return m;
}

// A language-model case: one batch forward and backward, generation, ten optimiser steps.
static void golden_language_model(Golden *g) {
    Model *m = golden_model(g, "weight_tag");
    size_t B = golden_value(g, "batch"), T = golden_value(g, "seq"), N = B * T;
    int *ids = golden_ints(g, "input_ids", B, T, 0, (int)m->V - 1);
    int *labels = golden_ints(g, "labels", B, T, -100, (int)m->V - 1);
    int *target = xcalloc(N, sizeof *target);
    Batch batch = {.rows = B, .T = T, .ids = ids, .target = target};
    for (size_t n = 0; n < N; n++) {
        target[n] = n % T < T - 1 && labels[n + 1] >= 0 ? labels[n + 1] : -1;
        batch.n_targets += target[n] >= 0;
    }
    golden_tensors(g, m, "param");
    Acts *a = acts_new(m, TRAINING, N, 0, 0);
    golden_scalar(g, "n_targets", batch.n_targets, 1, 0);
    double gap = INFINITY;
    for (int step = 0; step <= 10; step++) {
        char id[8], key[20];
        snprintf(id, sizeof id, "%d", step), snprintf(key, sizeof key, "param_step%d", step);
        if (step == 0) { // all rows have a target first, so that all get logits
            logp_of(m, a, ids, ids, B, T);
            double all[6];
            digest(all, "logits", a->logits, N * m->V);
            Record *r = golden_next(g, NULL, "logits_digest", NULL);
            if (r) golden_compare(g, r, 1, all, 2, all[0], 1e-5);
            if (r) golden_compare(g, r, 3, all + 2, 4, 1, 2e-5);
            for (r = NULL; (r = golden_next(g, r, "logit", NULL));) {
                size_t n = golden_number(g, r, 1) * T + golden_number(g, r, 2);
                double v = golden_number(g, r, 3), logit = n < N && v < m->V ? 0 : NAN;
                if (logit == 0) logit = a->logits[n * m->V + (size_t)v];
                golden_compare(g, r, 4, &logit, 1, 1, 2e-5);
            }
        }
        logp_of(m, a, ids, target, B, T);
        double ce = next_token_loss(a->dlogp, a->logp, a->n_out, &batch, NULL, NULL);
        double aux = a->aux_loss;
        double router_gap = golden_router(g, m, a, step == 0);
        gap = fmin(gap, router_gap);
        if (step == 0) {
            golden_acts(g, m, a);
            golden_scalar(g, "router_min_gap", router_gap, 1, 2e-5);
            golden_scalar(g, "loss_ce", ce, 0, 1e-5);
            golden_scalar(g, "loss_aux", aux, 0, 1e-5);
            golden_scalar(g, "loss_total", ce + aux, 0, 1e-5);
        } else golden_tensors(g, m, key);
        model_backward(m, a);
        double v[4] = {ce + aux, ce, aux, gradient_norm(m)};
        golden_check(g, "step", id, v, 4, 0, 2e-5);
        if (step == 0) {
            golden_tensors(g, m, "grad");
            golden_scalar(g, "grad_norm", v[3], 0, 1e-4);
            golden_generation(g, m);
            // the reference decays norms too
            for (Tensor *t = m->tensor; t < m->tensor + m->n_tensors; t++) t->decay = true;
        }
        AdamW o = {1e-3, 0.9, 0.999, 1e-8, 0.01, 1.0, step + 1};
        adamw_step(m, &o, v[3]);
    }
    golden_scalar(g, "router_min_gap_all_steps", gap, 1, 2e-5);
    acts_free(a), model_free(m);
    free(ids), free(labels), free(target);
}

// One backward pass from an objective, and what both kinds of case say about its end.
static void golden_objective(Golden *g, Model *m, Acts *a, Batch *b, Objective *objective,
                             const Options *o, const char *loss_key, double gap) {
    StepReport r = train_pass(m, a, b, b->rows, objective, o);
    golden_scalar(g, "router_min_gap", fmin(gap, golden_router(g, m, a, false)), 1, 2e-5);
    golden_scalar(g, loss_key, r.loss, 0, 1e-5);
    golden_scalar(g, "loss_aux", r.aux, r.aux ? 0 : 1, 1e-5);
    golden_scalar(g, "loss_total", r.loss + r.aux, 0, 1e-5);
    golden_tensors(g, m, "param");
    golden_tensors(g, m, "grad");
    golden_scalar(g, "grad_norm", r.norm, 0, 1e-4);
}

// The rows of the file are all chosen answers and then all rejected ones; here pairs stand
// together.
static void golden_preferences(Golden *g) {
    size_t n = golden_value(g, "batch"), T = golden_value(g, "seq"), rows = 2 * n, T1 = T - 1;
    Model *m = golden_model(g, "weight_tag"), *ref = golden_model(g, "ref_weight_tag");
    Acts *a = acts_new(m, TRAINING, rows * T1, 0, 0);
    int *ids = golden_ints(g, "ids", rows, T, 0, m->c.vocab_size - 1);
    int *mask = golden_ints(g, "mask", rows, T, 0, 1);
    Batch b = batch_new(rows, T1);
    Options o = {.beta = golden_value(g, "beta")};
    double *sum = xcalloc(7 * rows, sizeof *sum), *ref_sum = sum + rows;
    double *implicit = ref_sum + rows, *margin = implicit + rows, right = 0;
    b.rows = rows, b.T = T1;
    for (size_t i = 0; i < rows * T; i++) ids[i] |= mask[i] ? TRAINED : 0;
    for (size_t r = 0; r < rows; r++) {
        size_t at = (r % n * 2 + r / n) * T1;
        b.n_targets += shift(b.ids + at, b.target + at, ids + r * T, T1, T1, m->c.vocab_size);
    }
    store_logp(m, a, &b, rows, b.old_logp), store_logp(ref, a, &b, rows, b.ref_logp);
    double gap = golden_router(g, m, a, false); // of the reference, which came last
    for (size_t r = 0; r < rows; r++) {
        size_t row = r % n * 2 + r / n;
        for (size_t t = row * T1; t < (row + 1) * T1; t++) // 0 where there is no target
            sum[r] += b.old_logp[t], ref_sum[r] += b.ref_logp[t];
        b.ref_sum[row] = ref_sum[r], implicit[r] = o.beta * (sum[r] - ref_sum[r]);
    }
    for (size_t i = 0; i < n; i++)
        margin[i] = implicit[i] - implicit[n + i], right += (margin[i] > 0) / (double)n;
    golden_check(g, "policy_logp_sum", NULL, sum, rows, 0, 1e-5);
    golden_check(g, "ref_logp_sum", NULL, ref_sum, rows, 0, 1e-5);
    golden_check(g, "implicit_reward", NULL, implicit, rows, 1, 1e-5);
    golden_check(g, "margin", NULL, margin, n, 1, 1e-5);
    golden_scalar(g, "accuracy", right, 1, 1e-5);
    golden_objective(g, m, a, &b, dpo_loss, &o, "loss_dpo", gap);
    free(ids), free(mask), free(sum);
    batch_free(&b), acts_free(a), model_free(m), model_free(ref);
}

// Rows of prompt_len tokens and an answer, which ends behind its first `eos`. Of each answer token
// the file says whether it counts, its logp, the reference's, their kl, and what it costs.
static void golden_policy(Golden *g) {
    static const char *const key[] = {"completion_mask", "logp", "ref_logp", "kl",
                                      "per_token_loss"};
    size_t G = golden_value(g, "num_generations"), rows = golden_value(g, "batch") * G;
    size_t T = golden_value(g, "seq"), first = golden_value(g, "prompt_len") - 1, n = T - first - 1;
    Model *m = golden_model(g, "weight_tag"), *ref = golden_model(g, "ref_weight_tag");
    Acts *a = acts_new(m, TRAINING, rows * T, 0, 0);
    int *ids = golden_ints(g, "ids", rows, T, 0, m->c.vocab_size - 1), eos = golden_value(g, "eos");
    Batch b = batch_new(rows, T);
    Options o = {.beta = golden_value(g, "beta"), .epsilon = golden_value(g, "epsilon"),
                 .epsilon_high = golden_value(g, "epsilon_high"),
                 .loss = golden_string(g, "loss_type")};
    double *v = xcalloc(5 * n, sizeof *v), kl_sum = 0;
    float *logp = xcalloc(rows * T, sizeof *logp);
    b.rows = rows, b.T = T;
    Record *r = NULL;
    for (size_t i = 0; i < rows && (r = golden_next(g, r, "old_logp", NULL)); i++)
        for (size_t t = 0; t < n; t++)
            b.old_logp[i * T + first + t] = golden_number(g, r, 2 + (int)t);
    for (size_t i = 0; i < rows * T; i++) { // first all answer tokens are targets, to get a logp
        b.ids[i] = ids[i];
        b.target[i] = i % T >= first && i % T < T - 1 ? ids[i + 1] : -1;
    }
    store_logp(m, a, &b, rows, logp), store_logp(ref, a, &b, rows, b.ref_logp);
    double gap = golden_router(g, m, a, false); // of the reference, which came last
    r = golden_next(g, NULL, "rewards", NULL);
    for (size_t i = 0; r && i < rows; i++) b.advantage[i] = golden_number(g, r, 1 + (int)i);
    for (size_t i = 0; i < rows; i += G) group_advantages(b.advantage + i, G);
    golden_check(g, "advantage", NULL, b.advantage, rows, 1, 1e-5);
    for (size_t i = 0; i < rows; i++) {
        bool ended = false, clipped;
        char id[24];
        for (size_t t = 0, k = i * T + first; t < n; t++, k++) {
            double kl = kl_of(logp[k], b.ref_logp[k]), d;
            double cost = (strcmp(o.loss, "grpo") ? cispo_token : grpo_token)(
                logp[k], b.old_logp[k], b.advantage[i], &o, &d, &clipped);
            v[t] = !ended, v[n + t] = logp[k], v[2 * n + t] = b.ref_logp[k], v[3 * n + t] = kl;
            v[4 * n + t] = cost + o.beta * kl;
            if (ended) b.target[k] = -1;
            else b.length[i]++, b.n_targets++, kl_sum += kl;
            ended |= ids[k + 1] == eos;
        }
        snprintf(id, sizeof id, "%zu", i);
        for (int q = 0; q < 5; q++) golden_check(g, key[q], id, v + q * n, n, 1, q ? 2e-5 : 0);
    }
    golden_scalar(g, "mean_kl", kl_sum / b.n_targets, 0, 2e-5);
    golden_objective(g, m, a, &b, policy_loss, &o, "loss_policy", gap);
    free(ids), free(v), free(logp);
    batch_free(&b), acts_free(a), model_free(m), model_free(ref);
}

static void golden_rope(Golden *g) {
    for (Record *t = NULL; (t = golden_next(g, t, "table", NULL));) {
        Config c = config_preset("minimind3");
        const char *fields[] = {"head_dim", "rope_theta", "max_position_embeddings", "yarn",
                                "yarn_factor", "yarn_original_max", "yarn_beta_fast",
                                "yarn_beta_slow", "yarn_attention_factor"};
        for (int i = 0; i < 9; i++)
            config_set(&c, config_find(fields[i], false), golden_number(g, t, 2 + i), g->path);
        size_t D2 = c.head_dim / 2, n = c.max_position_embeddings;
        float *cosines = xcalloc(n * D2, sizeof *cosines), *sines = xcalloc(n * D2, sizeof *sines);
        rope_tables(&c, cosines, sines, n);
        for (Record *r = NULL; (r = golden_next(g, r, "freq", t->field[1]));) {
            double frequency = rope_frequency(&c, golden_number(g, r, 2));
            golden_compare(g, r, 3, &frequency, 1, 0, 1e-6);
        }
        for (Record *r = NULL; (r = golden_next(g, r, "cos_sin", t->field[1]));) {
            size_t p = golden_number(g, r, 2), i = golden_number(g, r, 3), at = p * D2 + i;
            double v[2] = {NAN, NAN};
            if (p < n && i < D2) v[0] = cosines[at], v[1] = sines[at];
            golden_compare(g, r, 4, v, 2, 1, 1e-6);
        }
        free(cosines), free(sines);
    }
}

static void golden_lr(Golden *g) {
    for (Record *r = NULL; (r = golden_next(g, r, "lr", NULL));) {
        double base = golden_number(g, r, 3);
        double lr = schedule(base, golden_number(g, r, 1), golden_number(g, r, 2), 0);
        golden_compare(g, r, 4, &lr, 1, base, 1e-8);
    }
}

static void golden_sampling(Golden *g) {
    for (Record *r = NULL; (r = golden_next(g, r, "sampling_logits", NULL));) {
        const char *id = r->n > 1 ? r->field[1] : "";
        Record *past = golden_next(g, NULL, "sampling_history", id);
        Record *set = golden_next(g, NULL, "sampling_setting", id);
        Record *want = golden_next(g, NULL, "sampling_prob", id);
        if (!past || !set || !want || r->n < 3 || past->n < 2)
            die("%s: sampling case %s is not complete", g->path, id);
        size_t V = r->n - 2, n = past->n - 2;
        float *p = xcalloc(V, sizeof *p);
        int *history = xcalloc(n + 1, sizeof *history);
        double *got = xcalloc(V, sizeof *got);
        for (size_t v = 0; v < V; v++) p[v] = golden_number(g, r, 2 + v);
        for (size_t i = 0; i < n; i++) history[i] = (int)golden_number(g, past, 2 + i);
        for (size_t i = 0; i < n; i++)
            if (history[i] < 0 || history[i] >= (int)V) die("%s: %s: no token", g->path, id);
        Options o = {.temperature = golden_number(g, set, 2), .top_p = golden_number(g, set, 5),
                     .repetition_penalty = golden_number(g, set, 3),
                     .top_k = (long)golden_number(g, set, 4)};
        sampling_distribution(p, V, history, n, &o);
        for (size_t v = 0; v < V; v++) got[v] = p[v];
        golden_compare(g, want, 2, got, (int)V, 1, 1e-6);
        free(p), free(history), free(got);
    }
}

// A golden file says by its keys what kind of case it is. What nobody asked for was not checked,
// and that is a failure too: a key or a file that this program does not know.
static void check_golden(const char *path, Tally *tally) {
    Golden g = golden_read(path, tally);
    printf("%s\n", path);
    if (golden_next(&g, NULL, "loss_dpo", NULL)) golden_preferences(&g);
    else if (golden_next(&g, NULL, "num_generations", NULL)) golden_policy(&g);
    else if (golden_next(&g, NULL, "alpha", NULL) || golden_next(&g, NULL, "lora_rank", NULL))
        ; // distillation and LoRA are not here yet: all their keys stay unknown
    else if (golden_next(&g, NULL, "input_ids", NULL)) golden_language_model(&g);
    else if (golden_next(&g, NULL, "table", NULL)) golden_rope(&g);
    else if (golden_next(&g, NULL, "lr", NULL)) golden_lr(&g);
    else if (golden_next(&g, NULL, "sampling_logits", NULL)) golden_sampling(&g);
    const char *last = "";
    for (Record *r = g.record; r < g.record + g.n; r++) {
        if (r->used || !strcmp(r->field[0], last)) continue;
        printf("UNKNOWN key %s: nothing checks it\n", last = r->field[0]);
        tally->failed++;
    }
    if (!g.n) printf("UNKNOWN %s holds no record\n", path), tally->failed++;
    for (int i = 0; i < g.n; i++) free(g.record[i].field);
    free(g.record), free(g.text);
}

// =================================================================================================
// The tiny world
//
// Something to learn when there is no data at hand: people, animals and cities with a few
// properties each, told in many wordings, small stories and worked sums, in English and Chinese. A
// seed decides what is true in the world (who lives where). A text is made by a grammar that draws
// at random, each draw among n equal possibilities, so its probability is known: the product of all
// 1/n. Minus its log2 is the number of bits that even somebody who knows the world and the grammar
// by heart must be told. No model can beat it in the mean; a report prints it as the floor.
//
// Beside the texts there are questions. Those for training ask about one half of all things, those
// that are held out about the other half, of which a model has read but was never asked: what it
// answers there it knows from reading, and only the form of an answer from being asked. Sums that
// are held out never occur in training, in no wording and no file.
// =================================================================================================

typedef const char *const Both[2]; // the same in English and in Chinese

typedef struct {
    uint64_t world, seed, drawn; // the next number is uniform(seed, drawn)
    int zh;
    double bits;           // -log2 of the probability of the text so far
    Text var[128];         // what $x stands for, where it is no list
    Text text;
} World;

// A template: [a|b|c] draws one alternative, which may hold further ones; $x draws an item of list
// x, or inserts variable x, a template again.
static const struct List { char name; Both items; } lists[] = {
    {'N', {"Anna|Adam|Bella|Bob|Clara|Carl|Diana|David|Emma|Eric|Fiona|Frank|Grace|George|Helen|"
           "Henry|Iris|Ivan|Julia|Jack|Kate|Kevin|Lily|Leo|Mary|Mark|Nora|Nick|Olga|Oscar|Paula|"
           "Peter|Rosa|Robert|Sarah|Simon|Tina|Tom|Vera|Victor",
           "小红|小明|秀英|建国|丽丽|大伟|春梅|志强|小芳|国庆|玉兰|文杰|"
           "雪梅|海涛|桂花|永强|小燕|天宇|美玲|立新|月娥|俊峰|佳佳|浩然|"
           "婷婷|志远|素珍|德华|小兰|长江|金凤|少华|文静|铁柱|翠花|阿强|"
           "思思|子轩|巧云|老王"}},
    {'C', {"Paris|London|Rome|Berlin|Madrid|Vienna|Athens|Lima|Oslo|Cairo|Tokyo|Delhi|Quito|Dublin|"
           "Prague|Lisbon",
           "巴黎|伦敦|罗马|柏林|马德里|维也纳|雅典|利马|奥斯陆|开罗|东京|"
           "德里|基多|都柏林|布拉格|里斯本"}},
    {'a', {"cat|dog|fox|bear|rabbit|duck|horse|cow|wolf|sheep|mouse|goat|owl|frog|pig|deer",
           "猫|狗|狐狸|熊|兔子|鸭子|马|牛|狼|绵羊|老鼠|山羊|猫头鹰|青蛙|猪|"
           "鹿"}},
    {'J', {"teacher|doctor|nurse|cook|farmer|singer|painter|writer|driver|pilot|baker|dancer|"
           "lawyer|judge|sailor|tailor",
           "老师|医生|护士|厨师|农民|歌手|画家|作家|司机|飞行员|面包师|"
           "舞蹈家|律师|法官|水手|裁缝"}},
    {'F', {"rice|noodles|soup|bread|fish|cheese|eggs|cake|apples|pears|grapes|tofu|beans|corn|"
           "honey|salad",
           "米饭|面条|热汤|面包|鱼|奶酪|鸡蛋|蛋糕|苹果|梨子|葡萄|豆腐|"
           "豆子|玉米|蜂蜜|沙拉"}},
    {'l', {"forest|valley|desert|field|garden|swamp|cave|village",
           "森林|山谷|沙漠|田野|花园|沼泽|山洞|村庄"}},
    {'k', {"red|white|black|brown|grey|yellow|green|blue",
           "红色|白色|黑色|棕色|灰色|黄色|绿色|蓝色"}},
    {'W', {"river|sea|lake|canal", "河|海|湖|运河"}},
    {'G', {"bridges|towers|parks|markets|museums|boats|trains|music",
           "桥|高塔|公园|集市|博物馆|船|火车|音乐"}},
    {'K', {"hot|cold|rainy|windy|sunny|foggy|snowy|mild",
           "炎热|寒冷|多雨|多风|晴朗|多雾|多雪|温和"}},
    {'x', {"hat|book|cup|lamp|chair|bag|mirror|ball|kite|clock|drum|bell|box|ring|basket|candle",
           "帽子|本子|杯子|台灯|椅子|袋子|镜子|皮球|风筝|闹钟|小鼓|铃铛|"
           "箱子|戒指|篮子|蜡烛"}},
    {'w', {"Yesterday|Last night|This morning|On Sunday", "昨天|昨晚|今天早上|星期天"}},
    {'z', {"small|big|young|shy", "小小的|大大的|年轻的|害羞的"}},
};

static const struct List *list_of(char name) {
    for (size_t i = 0; i < sizeof lists / sizeof *lists; i++)
        if (lists[i].name == name) return &lists[i];
    return NULL;
}

// Alternative i of a list up to `end` (NULL: all), between *from and *to; returns how many there
// are.
static size_t alternative(const char *list, const char *end, size_t i, const char **from,
                          const char **to) {
    size_t n = 0;
    int depth = 0;
    const char *at = *from = *to = list;
    for (const char *s = list;; s++) {
        bool over = end ? s == end : !*s;
        if (!over) depth += (*s == '[') - (*s == ']');
        if (!over && (*s != '|' || depth)) continue;
        if (n++ == i) *from = at, *to = s;
        if (over) return n;
        at = s + 1;
    }
}

static size_t pick(World *w, size_t n) {
    w->bits += log2(n);
    return uniform(w->seed, w->drawn++) * n;
}

static void tell(World *w, const char *t, const char *end);

static void tell_one_of(World *w, const char *list, const char *end) {
    const char *from, *to;
    size_t n = alternative(list, end, 0, &from, &to);
    alternative(list, end, pick(w, n), &from, &to);
    tell(w, from, to);
}

// Appends a template, up to `end` if that is not NULL.
static void tell(World *w, const char *t, const char *end) {
    while (end ? t < end : *t) {
        if (*t == '[') {
            const char *close = t + 1;
            for (int depth = 1; depth; close++) depth += (*close == '[') - (*close == ']');
            tell_one_of(w, t + 1, close - 1);
            t = close;
        } else if (*t == '$') {
            const struct List *list = list_of(t[1]);
            if (list) tell_one_of(w, list->items[w->zh], NULL);
            else tell(w, w->var[(int)t[1]].s, NULL);
            t += 2;
        } else text_append(&w->text, t++, 1);
    }
}

static void set(World *w, char name, const char *from, const char *to) {
    Text *t = &w->var[(int)name];
    t->len = 0;
    text_append(t, from, to ? (size_t)(to - from) : strlen(from));
}

// Every thing of a kind has three properties; each has a list of values, six wordings and four
// questions. In a wording $S, $s, $o and $H are pronouns: the thing as subject, as object, as
// owner; $v is the value, $n the name. Every wording has a pronoun: whether the name replaces it is
// a draw, and one that left no trace would make the floor too high. The first wording is how a
// question is answered: in words of the texts and with a pronoun. The form of the answer decides
// whether knowledge is found: a model that has to begin with a name it was never asked about says
// another one, and so does not find the rest.
static const struct Kind {
    char names;     // a list
    size_t step;    // 2: each language has its half of it, for facts are drawn in each anew, and a
                    // fox should not contradict its 狐狸; names of people are no translations
    Both opening;
    Both event;     // something that happened
    struct Property {
        char values;
        Both wordings, questions;
    } property[3];
} kinds[] = {
    {'N', 1,
     {"This is $n.|Do you know $n?|Let me tell you about $n.|My friend is called $n.|Who is $n?|"
      "What about $n?|Tell me about $n.|Where is $n?",
      "这是$n。|你认识$n吗？|我来说说$n。|我的朋友叫$n。|谁是$n？|"
      "$n怎么样？|告诉我$n的事。|$n在哪里？"},
     {"$w $s [bought|found|lost|sold|painted|washed|hid|broke] a $k $x.",
      "$w$s[买了|找到|弄丢了|卖掉|画了|洗了|藏起|打破了]一个$k的$x。"},
     {{'C', {"$S lives in $v.|$H home is in $v.|$S has a house in $v.|You can find $o in $v.|"
             "Every evening $s goes home to $v.|$v is where $s lives.",
             "$S住在$v。|$S的家在$v。|$S在$v有一座房子。|你可以在$v找到$s。|"
             "每天晚上$s回到$v的家。|$v是$s居住的城市。"},
       {"Where does $n live?|Which city does $n live in?|Where is the home of $n?|"
        "Tell me where $n lives.",
        "$n住在哪里？|$n住在哪个城市？|"
        "$n的家在哪里？|告诉我$n住在哪里。"}},
      {'J', {"$S works as a $v.|$S is a $v.|$S has been a $v for years.|$H job is to be a $v.|"
             "Every day $s works hard as a $v.|Everyone knows that $s is a $v.",
             "$S是一名$v。|$S的工作是$v。|$S当$v很多年了。|"
             "每天$s都做$v的工作。|大家都知道$s是$v。|$S靠当$v挣钱。"},
       {"What does $n work as?|What is the job of $n?|What does $n do for a living?|"
        "Tell me the job of $n.",
        "$n是做什么的？|$n的工作是什么？|"
        "$n靠什么挣钱？|告诉我$n的工作。"}},
      {'F', {"$S likes to eat $v.|$H favourite food is $v.|$S eats $v every day.|"
             "For dinner $s always has $v.|$S loves $v more than anything.|"
             "Nothing makes $o happier than $v.",
             "$S喜欢吃$v。|$S最爱的食物是$v。|$S每天都吃$v。|"
             "晚饭$s总是吃$v。|没有什么比$v更让$s开心。|$S从小就爱吃$v。"},
       {"What does $n like to eat?|What is the favourite food of $n?|What does $n eat?|"
        "Tell me what $n likes to eat.",
        "$n喜欢吃什么？|$n最爱的食物是什么？|"
        "$n每天吃什么？|告诉我$n喜欢吃什么。"}}}},
    {'a', 2,
     {"Look at the $n.|What do we know about the $n?|Here comes the $n.|I like the $n.",
      "看看$n。|我们来认识$n。|看，$n来了。|我喜欢$n。"},
     {"$w $s [saw|chased|followed|heard|met|woke|helped|lost] a $k $a.",
      "$w$s[看见|追赶|跟着|听见|遇到|吵醒|帮助|丢下]一只$k的$a。"},
     {{'l', {"$S lives in the $v.|$H home is the $v.|$S sleeps in the $v.|"
             "You can find $o in the $v.|At night $s goes back to the $v.|"
             "The $v is where $s lives.",
             "$S住在$v里。|$S的家是$v。|$S在$v里睡觉。|你可以在$v里找到$s。|"
             "夜里$s回到$v。|$v是$s生活的地方。"},
       {"Where does the $n live?|Where is the home of the $n?|Where does the $n sleep?|"
        "Tell me where the $n lives.",
        "$n住在哪里？|$n的家在哪里？|"
        "$n在哪里睡觉？|告诉我$n住在哪里。"}},
      {'k', {"$S is $v.|$H colour is $v.|$S has a $v back.|You know $o by the colour $v.|"
             "From head to tail $s is $v.|$H coat looks $v.",
             "$S是$v的。|$S的颜色是$v。|$S的背是$v的。|看到$v就认得$s。|"
             "从头到尾$s都是$v。|$S的毛皮看起来是$v。"},
       {"What colour is the $n?|What is the colour of the $n?|Which colour does the $n have?|"
        "Tell me the colour of the $n.",
        "$n是什么颜色的？|$n的颜色是什么？|"
        "$n的背是什么颜色？|告诉我$n的颜色。"}},
      {'F', {"$S likes to eat $v.|$H favourite food is $v.|$S eats $v every day.|"
             "In the morning $s looks for $v.|$S would do anything for $v.|Give $o some $v.",
             "$S喜欢吃$v。|$S最爱的食物是$v。|$S每天都吃$v。|早上$s去找$v。|"
             "为了$v$s什么都肯做。|给$s一些$v吧。"},
       {"What does the $n like to eat?|What is the favourite food of the $n?|"
        "What does the $n eat?|Tell me what the $n likes to eat.",
        "$n喜欢吃什么？|$n最爱的食物是什么？|$n每天吃什么？|"
        "告诉我$n喜欢吃什么。"}}}},
    {'C', 2,
     {"Welcome to $n.|Have you been to $n?|This book is about $n.|We are going to $n.",
      "欢迎来到$n。|你去过$n吗？|这本书讲的是$n。|我们要去$n。"},
     {"$w a $z $k $a was seen near $o.", "$w有一只$z$k的$a来到$s旁边。"},
     {{'W', {"$S lies by the $v.|$H houses stand near the $v.|$S was built at the $v.|"
             "You see the $v from $o.|In summer all of $o meets at the $v.|A $v is close to $o.",
             "$S在$v边。|$S的房子靠近$v。|$S建在$v旁。|从$s看得到$v。|"
             "夏天$s的人都去$v边。|$v就在$s旁边。"},
       {"Which water does $n lie by?|What water is close to $n?|Where was $n built?|"
        "Tell me which water is near $n.",
        "$n在什么水边？|$n靠近什么？|"
        "$n建在哪里？|告诉我$n旁边是什么水。"}},
      {'G', {"$S is known for its $v.|$H pride is its $v.|$S has the best $v.|"
             "People come to $o for the $v.|In old songs $s is praised for its $v.|"
             "You will love the $v of $o.",
             "$S以$v闻名。|$S的骄傲是$v。|$S有最好的$v。|人们为了$v来到$s。|"
             "老歌里唱着$s的$v。|你会爱上$s的$v。"},
       {"What is $n known for?|What is the pride of $n?|Why do people come to $n?|"
        "Tell me what $n is known for.",
        "$n以什么闻名？|$n的骄傲是什么？|"
        "人们为什么来$n？|告诉我$n以什么闻名。"}},
      {'K', {"$S is a $v place.|$H weather is $v.|$S has $v days all year.|"
             "The wind brings $v days to $o.|Even in spring $s is $v.|"
             "They say that $s is always $v.",
             "$S是个$v的地方。|$S的天气$v。|$S全年都很$v。|"
             "风给$s带来$v的日子。|就算春天$s也很$v。|人们说$s总是很$v。"},
       {"How is the weather in $n?|What kind of place is $n?|What are the days like in $n?|"
        "Tell me about the weather in $n.",
        "$n的天气怎么样？|$n是个什么样的地方？|"
        "$n全年怎么样？|告诉我$n的天气。"}}}},
};
enum { KINDS = sizeof kinds / sizeof *kinds };

// How many things of a kind this language tells of; all but people are told of in one only.
static size_t things(const struct Kind *kind, int zh) {
    const char *from, *to;
    return alternative(list_of(kind->names)->items[zh], NULL, 0, &from, &to) / kind->step;
}

// Sets the name and the pronouns to those of thing i: people are a woman and a man by turns. With
// by_name it is called by its name where pronouns would stand.
static void set_thing(World *w, size_t k, size_t i, bool by_name) {
    static const char *const pronoun[2][3][4] = {
        {{"She", "she", "her", "Her"}, {"He", "he", "him", "His"}, {"It", "it", "it", "Its"}},
        {{"她", "她", "她", "她"}, {"他", "他", "他", "他"}, {"它", "它", "它", "它"}}};
    const struct Kind *kind = &kinds[k];
    const char *from, *to;
    size_t item = kind->step * i + (kind->step - 1) * w->zh;
    alternative(list_of(kind->names)->items[w->zh], NULL, item, &from, &to);
    set(w, 'n', from, to);
    for (int p = 0; p < 4; p++) set(w, "SsoH"[p], pronoun[w->zh][k ? 2 : i % 2][p], NULL);
    for (int p = 0; p < 4 && by_name; p++) {
        const char *article = w->zh || k != 1 ? "" : p == 0 || p == 3 ? "The " : "the ";
        char *name = format("%s%s%s", article, w->var['n'].s, p == 3 && !w->zh ? "'s" : "");
        set(w, "SsoH"[p], name, NULL);
        free(name);
    }
}

// Sets $v to the value that property p of the thing has in this world.
static void set_fact(World *w, size_t k, size_t i, size_t p) {
    const char *from, *to, *values = list_of(kinds[k].property[p].values)->items[w->zh];
    uint64_t stream = splitmix64(w->world ^ 0xFAC7) + k * 1000 + p * 100 + w->zh * 10;
    size_t n = alternative(values, NULL, 0, &from, &to);
    alternative(values, NULL, splitmix64(stream + splitmix64(i)) % n, &from, &to);
    set(w, 'v', from, to);
}

// Names a thing, tells its three properties in any order (turn and swap give each of the six once),
// by name or of "her", "him" or "it", and some news.
static void tell_thing(World *w, size_t k) {
    const struct Kind *kind = &kinds[k];
    size_t i = pick(w, things(kind, w->zh)), turn = pick(w, 3), swap = pick(w, 2);
    set_thing(w, k, i, false);
    tell_one_of(w, kind->opening[w->zh], NULL);
    for (size_t p = 0; p < 4; p++) {
        size_t which = (turn + (swap ? 3 - p : p)) % 3;
        set_thing(w, k, i, (p == 1 || p == 2) && pick(w, 2)); // the first tells "she" from "he"
        set_fact(w, k, i, which);
        if (!w->zh) text_append(&w->text, " ", 1);
        if (p < 3) tell_one_of(w, kind->property[which].wordings[w->zh], NULL);
        else tell(w, kind->event[w->zh], NULL);
    }
}

// A story: somebody meets an animal in need, and what helps depends on the need.
static void tell_story(World *w) {
    static Both needs[4] = {{"hungry", "饿了"}, {"tired", "累了"},
                            {"sad", "很难过"}, {"lost", "迷路了"}};
    static Both helps[4] = {{"gave it some $F", "给它一些$F"},
                            {"let it sleep in a warm bed", "让它在温暖的床上睡觉"},
                            {"told it a funny story", "给它讲了一个好笑的故事"},
                            {"showed it the way to the $h", "带它走回$h"}};
    static Both story = {
        "[One day|One morning|Last week|In the spring|Long ago|After the rain] $n "
        "[went|walked|ran|rode] to the $h with a $k $x "
        "[to play|to rest|to pick flowers|all alone]. "
        "[There|On the way|Near a tree|Behind a stone] $s [saw|met|found|heard] a $z $c $b. "
        "The $b was $d. So $n $e. "
        "[The $b was happy again.|\"Thank you,\" said the $b.|The $b jumped for joy.|"
        "The $b smiled.] "
        "[From that day on they were friends.|Then they [sang|danced|laughed|played] together.|"
        "In the evening $s went home.|The next day $s came back.]",
        "[有一天|一天早上|上个星期|春天里|很久以前|雨停以后]，"
        "$n带着$k的$x[去|走到|跑到|骑车到]$h[玩|休息|采花|散步]。"
        "[在那里|在路上|在树边|在石头后面]，"
        "$s[看见|遇到|发现|听见]一只$z$c的$b。$b$d。于是$n$e。"
        "[$b又高兴了。|“谢谢你。”$b说。|$b高兴得跳起来。|$b笑了。]"
        "[从那天起他们成了朋友。|然后他们一起[唱歌|跳舞|大笑|玩耍]。|"
        "晚上$s回家了。|第二天$s又来了。]"};
    size_t start = w->text.len, need;
    set_thing(w, 0, pick(w, things(&kinds[0], w->zh)), false);
    for (int i = 0; i < 3; i++) { // drawn once for the story: where, of what colour, which animal
        tell_one_of(w, list_of("lka"[i])->items[w->zh], NULL);
        set(w, "hcb"[i], w->text.s + start, w->text.s + w->text.len);
        w->text.len = start;
    }
    need = pick(w, 4);
    set(w, 'd', needs[need][w->zh], NULL), set(w, 'e', helps[need][w->zh], NULL);
    tell(w, story[w->zh], NULL);
}

// The work of a sum, from the right, a line for each digit; a carry is added where there is one:
//     304+578:   4+8=12   0+7+1=8   3+5=8
static void work_sum(Text *t, int a, int b) {
    for (int x = a, y = b, carry = 0; x || y; x /= 10, y /= 10) {
        int sum = x % 10 + y % 10 + carry;
        text_printf(t, carry ? "%d+%d+1=%d\n" : "%d+%d=%d\n", x % 10, y % 10, sum);
        carry = sum > 9;
    }
}

// Is a text or a sum (its numbers count, not its wording) in the held-out part? One in ten is.
static bool held_out_text(const char *s) { return splitmix64(fnv1a64(s)) % 10 == 0; }
static bool held_out_sum(int a, int b) { // and b + a with it
    return splitmix64(a < b ? a * 1000 + b : b * 1000 + a) % 10 == 0;
}

// Text i of a world, into w->text and w->bits. The draws are repeated until the text is of the part
// that is asked for: a reader cannot know the hash, so the floor counts its probability among all.
static void world_text(World *w, uint64_t i, bool held_out) {
    static Both sum = {"[Add|Work out|What is|Find] ", "[计算|求|算一算|请算]"};
    bool held;
    int a = 0, b = 0;
    w->seed = splitmix64(w->world) + splitmix64(2 * i + held_out), w->drawn = 0;
    do {
        w->text.len = 0, w->bits = 0;
        size_t what = pick(w, 10); // several numbers mean the same: its probability is their share
        w->zh = (int)pick(w, 2);
        w->bits -= log2(what < 4 ? 4 : what < 6 ? 1 : 2);
        if (what < 6) tell_thing(w, what < 4 ? 0 : what - 3);
        else if (what < 8) tell_story(w);
        else {
            a = 100 + (int)pick(w, 900), b = 100 + (int)pick(w, 900);
            tell(w, sum[w->zh], NULL);
            text_printf(&w->text, "%d+%d:\n", a, b);
            work_sum(&w->text, a, b);
            text_printf(&w->text, "=%d", a + b);
        }
        held = what < 8 ? held_out_text(w->text.s) : held_out_sum(a, b);
    } while (held != held_out);
}

// ---- questions ----------------------------------------------------------------------------------

// Appends "key": [the question of a user, the answer of an assistant].
static void add_turns(Text *line, const char *key, const char *question, const char *thoughts,
                      const char *answer) {
    text_printf(line, "%s\"%s\": [", line->len > 1 ? ", " : "", key);
    add_message(line, "user", NULL, question);
    add_message(line, "assistant", thoughts, answer);
    text_append(line, "]", 1);
}

// Question number q about fact number f of a part, into w->text; its answer into w->var['A'].
// Returns false where there are no more facts. Every other pair of things belongs to the held-out
// part: pairs, for women and men take turns. f counts down to the fact.
static bool world_question(World *w, size_t f, size_t q, bool held_out) {
    const char *from, *to;
    for (w->zh = 0; w->zh < 2; w->zh++)
        for (size_t k = 0; k < KINDS; k++)
            for (size_t i = 0, n = things(&kinds[k], w->zh); i < n; i++)
                for (size_t p = 0; p < 3; p++) {
                    if ((i / 2 % 2 == 1) != held_out || f--) continue;
                    const struct Property *property = &kinds[k].property[p];
                    set_thing(w, k, i, false), set_fact(w, k, i, p);
                    w->text.len = 0;
                    alternative(property->wordings[w->zh], NULL, 0, &from, &to);
                    tell(w, from, to);
                    set(w, 'A', w->text.s, NULL);
                    w->text.len = 0;
                    alternative(property->questions[w->zh], NULL, q, &from, &to);
                    tell(w, from, to);
                    return true;
                }
    return false;
}

// Two manners of answering: with a smile behind the answer, or without. In sft.jsonl questions
// of even number get the first, those of odd number the second. dpo.jsonl prefers the first, and
// asks what got the second so far: to push on where nothing has to change costs knowledge.
// keep.jsonl, for later stages, has only the first.
static const char manner[] = " :)";

enum { SFT_FILE, KEEP_FILE, DPO_FILE, REASON_FILE, GRPO_FILE, QUESTION_FILES };
static const char *const question_file[] = {"sft", "keep", "dpo", "reason", "grpo"};

// One question and its answer, as one or, for preferences, two lists of messages.
static void write_fact(const World *w, Text *line, int kind, bool first, bool held_out) {
    const char *answer = w->var['A'].s;
    char *friendly = format("%s%s", answer, manner);
    add_turns(line, kind == DPO_FILE ? "chosen" : "conversations", w->text.s, NULL,
              first ? friendly : answer);
    if (kind == DPO_FILE) add_turns(line, "rejected", w->text.s, NULL, answer);
    else if (held_out) text_printf(line, ", \"gt\": [\"%s\", \"%s\"]", answer, friendly);
    free(friendly);
}

static void write_sum(Text *line, int kind, int a, int b) {
    char *question = format("%d+%d=?", a, b), *answer = format("%d", a + b);
    bool worked = kind == REASON_FILE;
    Text work = {0};
    work_sum(&work, a, b);
    work.s[work.len - 1] = 0; // without the last newline
    add_turns(line, "conversations", question, worked ? work.s : NULL, worked ? answer : "");
    if (!worked) text_printf(line, ", \"gt\": [\"%s\"]", answer);
    free(question), free(answer), free(work.s);
}

// n records; of held-out facts every one in its four questions, others are drawn at random.
static void write_questions(World *w, NewFile *file, int kind, bool held_out, size_t n) {
    uint64_t stream = splitmix64(w->world + 1000 * kind + held_out), at = 0;
    size_t facts = 0;
    while (kind < REASON_FILE && world_question(w, facts, 0, held_out)) facts++;
    if (facts && held_out) n = 4 * facts;
    for (size_t i = 0; i < n; i++) {
        Text line = {0};
        text_append(&line, "{", 1);
        if (facts) {
            size_t f = held_out ? i / 4 : uniform(stream, 2 * i) * facts;
            size_t q = held_out ? i % 4 : uniform(stream, 2 * i + 1) * 4;
            if (kind == DPO_FILE && !held_out) q |= 1;
            world_question(w, f, q, held_out);
            write_fact(w, &line, kind, kind != SFT_FILE || q % 2 == 0, held_out);
        } else {
            int a, b;
            do
                a = 100 + (int)(uniform(stream, at++) * 900),
                b = 100 + (int)(uniform(stream, at++) * 900);
            while (held_out_sum(a, b) != held_out);
            write_sum(&line, kind, a, b);
        }
        text_append(&line, "}\n", 2);
        fwrite(line.s, 1, line.len, file->f);
        free(line.s);
    }
}

// Writes a world into a folder: pretrain, again (more of the same, to be mixed into later stages
// lest it be forgotten), sft, keep, dpo, reason and grpo, and what is held out of each.
static void write_world(const char *dir, uint64_t seed, size_t documents) {
    World w = {.world = seed};
    static const char *const name[] = {"pretrain.jsonl", "pretrain_held_out.jsonl", "again.jsonl"};
    size_t n[] = {documents, documents / 100 + 200, documents / 20}, first[] = {0, 0, documents};
    for (int f = 0; f < 3; f++) {
        Text line = {0};
        NewFile file = new_file(dir, name[f]);
        for (size_t i = 0; i < n[f]; i++) {
            world_text(&w, first[f] + i, f == 1);
            line.len = 0;
            text_printf(&line, "{\"text\": ");
            json_write_string(&line, w.text.s, w.text.len);
            text_printf(&line, ", \"bits\": %.4f}\n", w.bits);
            fwrite(line.s, 1, line.len, file.f);
        }
        new_file_done(&file);
        free(line.s);
    }
    static const size_t share[QUESTION_FILES] = {10, 15, 60, 5, 5}; // documents for one question
    for (int kind = 0; kind < QUESTION_FILES; kind++)
        for (int held_out = 0; held_out < 2; held_out++) {
            char *path = format("%s%s.jsonl", question_file[kind], held_out ? "_held_out" : "");
            NewFile file = new_file(dir, path);
            write_questions(&w, &file, kind, held_out, held_out ? 200 : documents / share[kind]);
            new_file_done(&file);
            free(path);
        }
    for (int i = 0; i < 128; i++) free(w.var[i].s);
    free(w.text.s);
}

// =================================================================================================
// Measuring it: bench
//
// How fast the program is, and what of that is the machine: every product is set beside the fastest
// that the kernel runs at all, and decoding, which reads each active weight once a token, beside
// the speed at which memory can be read.
// =================================================================================================

// What is computed only to be timed ends up here, or a compiler would do without computing it.
static volatile double sink;

// GFLOP/s of the kernel alone, all threads on panels that stay in their first-level cache.
static double peak_gflops(void) {
    enum { TIMES = 30000, K = 128 };
    double best = 0;
    for (int repeat = 0; repeat < 5; repeat++) {
        double start = seconds(), sum = 0;
        #pragma omp parallel for num_threads(n_threads) reduction(+ : sum)
        for (int t = 0; t < n_threads; t++) {
            _Alignas(64) float a[MR * K], b[K * NR], c[MR * NR] = {0};
            for (size_t i = 0; i < MR * K; i++) a[i] = i % 3;
            for (size_t i = 0; i < K * NR; i++) b[i] = i % 5;
            const float *volatile panel = b; // for all that a compiler knows, another one each time
            for (int i = 0; i < TIMES; i++)
                multiply_panels(c, NR, MR, NR, plain(a, K), panel, K, true);
            sum += dot(c, c, MR * NR);
        }
        sink = sum;
        best = fmax(best, 2e-9 * MR * NR * K * TIMES * n_threads / (seconds() - start));
    }
    return best;
}

// Bytes a second at which all threads together read the n words at x, each a stretch of them.
static double memory_speed(const float *x, size_t n) {
    double best = 0;
    for (int repeat = 0; repeat < 10; repeat++) {
        double start = seconds(), sum = 0;
        #pragma omp parallel for num_threads(n_threads) reduction(+ : sum)
        for (int t = 0; t < n_threads; t++) {
            const Words *from = (const Words *)x + n / LANES * t / n_threads;
            Words all[4] = {{0}};
            for (size_t i = 0; i + 4 <= n / LANES / n_threads; i += 4)
                for (size_t j = 0; j < 4; j++) all[j] ^= from[i + j];
            all[0] ^= all[1] ^ all[2] ^ all[3];
            for (size_t j = 0; j < LANES; j++) sum += all[0][j];
        }
        sink = sum;
        best = fmax(best, sizeof(uint32_t) * (double)n / (seconds() - start));
    }
    return best;
}

// The three products of a layer (out, in) on n rows, in GFLOP/s.
static void bench_products(size_t n, size_t in, size_t out, double peak) {
    float *x = xcalloc(n * in, sizeof *x), *w = xcalloc(in * out, sizeof *w);
    float *y = xcalloc(n * out, sizeof *y);
    printf("%5zu x %4zu -> %4zu ", n, in, out);
    for (int kind = 0; kind < 3; kind++) {
        double best = INFINITY;
        for (int repeat = 0; repeat < 8; repeat++) {
            double start = seconds();
            if (kind == 0) matmul(n, out, in, plain(x, in), transposed(w, in), y, false);
            if (kind == 1) matmul(n, in, out, plain(y, out), plain(w, in), x, false);
            if (kind == 2) matmul(out, in, n, transposed(y, out), plain(x, in), w, true);
            best = fmin(best, seconds() - start);
        }
        double rate = 2e-9 * n * in * out / best;
        printf("  %s %6.1f (%3.0f%%)", ((const char *[]){"y", "dx", "dw"})[kind], rate,
               100 * rate / peak);
    }
    printf("\n");
    free(x), free(w), free(y);
}

// Trains a new model on B x T random tokens for 1.5 seconds; tokens/s. With `parts` it prints
// where the time went.
static double bench_training(Config c, size_t B, size_t T, bool parts) {
    static const char *const name[PARTS] = {
        "norms, RoPE, embedding", "q k v o", "attention", "routing", "feed-forward", "head",
        "optimiser"};
    Model *m = model_new(c);
    model_allocate(m, true, 32);
    model_init(m, 1);
    Acts *a = acts_new(m, TRAINING, B * T, 0, 0);
    Options o = {0};
    Batch b = batch_new(B, T);
    b.rows = B, b.T = T, b.n_targets = B * T;
    for (size_t i = 0; i < B * T; i++) b.ids[i] = splitmix64(i) % m->V;
    for (size_t i = 0; i < B * T; i++) b.target[i] = splitmix64(i + 1) % m->V;
    double start = 0, took = 0; // seconds
    int steps = 0;
    for (int step = 1; step < 3 || took < 1.5; step++) { // the first two wake memory and clock
        if (step == 3) memset(lap_time, 0, sizeof lap_time), start = last_lap = seconds();
        StepReport r = train_pass(m, a, &b, B, next_token_loss, &o);
        AdamW opt = {1e-4, 0.9, 0.95, 1e-8, 0.1, 1, step};
        adamw_step(m, &opt, r.norm);
        lap(OPTIMISER);
        if (step > 2) steps++, took = seconds() - start;
    }
    for (int p = 0; parts && p < PARTS; p++)
        printf("%s%s %.0f%%", p ? ", " : "    ", name[p], 100 * lap_time[p] / took);
    if (parts) printf("\n");
    batch_free(&b), acts_free(a), model_free(m);
    return steps * (double)(B * T) / took;
}

// Decodes B sequences together, each of 256 tokens from its first one on; tokens/s. Before that the
// speed of a prompt of 512 tokens is measured, into *prefill_rate.
static double bench_decoding(const Model *m, size_t B, double *prefill_rate) {
    enum { PROMPT = 512, NEW = 256 };
    Acts *a = acts_new(m, INFERENCE, PROMPT, B, PROMPT);
    int ids[PROMPT], start[64], slot[64], n = 0;
    for (size_t i = 0; i < PROMPT; i++) ids[i] = splitmix64(i) % m->V;
    for (size_t b = 0; b < B; b++) start[b] = 0, slot[b] = b;
    prefill(m, a, ids, PROMPT, 0, 0);
    double began = seconds();
    prefill(m, a, ids, PROMPT, 0, 0);
    *prefill_rate = PROMPT / (seconds() - began);
    for (began = seconds(); n < NEW; n++) {
        model_forward(m, a, ids, B, 1, start, slot);
        a->n_out = B;
        for (size_t b = 0; b < B; b++) a->out_row[b] = b, start[b]++;
        head_forward(m, a);
    }
    double rate = n * B / (seconds() - began);
    acts_free(a);
    return rate;
}

// The share of memory speed: what decoding reads, the active weights and the KV cache of 128 tokens
// in the mean, against the speed at which the float weights can be read at all.
static void bench_inference(const Config *c) {
    double memory = 0;
    for (int i = 0, bits = 32; i < 3; i++, bits /= 2) {
        Model *m = model_new(*c);
        model_allocate(m, false, bits);
        float *x = NULL;
        for (Tensor *t = m->tensor; t < m->tensor + m->n_tensors; t++) {
            x = xrealloc(x, t->rows * t->cols, sizeof *x);
            for (size_t k = 0; k < tensor_size(t); k++) x[k] = 0.02f * signed_unit(t->offset, k);
            tensor_pack(t, x);
        }
        free(x);
        double prefill_rate, one = bench_decoding(m, 1, &prefill_rate);
        double read = (double)weight_bytes(m, bits) * active_params(m) / m->n_params +
                      2.0 * m->L * m->KV * m->D * sizeof(float) * 128;
        if (bits == 32) memory = memory_speed(m->params, m->n_params);
        double eight = bench_decoding(m, 8, &prefill_rate);
        printf("    %-4s prefill %6.0f   decode %5.0f (%3.0f%% of the %.1f GB/s that memory gives)"
               "   8 at once %5.0f\n", kept_as[i], prefill_rate, one, 100 * one * read / memory,
               memory * 1e-9, eight);
        model_free(m);
    }
}

// Training and encoding on texts of the tiny world, in MB/s on one thread.
static void bench_tokenizer(void) {
    World w = {.world = 1};
    Text all = {0};
    Ids ids = {0};
    for (int i = 0; i < 40000; i++) {
        world_text(&w, i, false);
        text_append(&all, w.text.s, w.text.len);
    }
    double start = seconds();
    Trainer *trainer = trainer_new(true);
    trainer_add(trainer, all.s, all.len);
    Tokenizer *tok = trainer_finish(trainer, 6400);
    double trained = seconds();
    tokenizer_encode(tok, all.s, all.len, true, &ids);
    printf("\ntokenizer, MB/s on one core: train %.0f, encode %.0f (%.1f MB, %d tokens)\n",
           all.len * 1e-6 / (trained - start), all.len * 1e-6 / (seconds() - trained),
           all.len * 1e-6, tok->vocab_size);
    tokenizer_free(tok);
    for (int i = 0; i < 128; i++) free(w.var[i].s);
    free(all.s), free(ids.id), free(w.text.s);
}

// The cost of one size, all else equal: tokens/s for each of its values. Without a field it is T.
static void bench_scaling(const char *what, const char *fields, const char *field, int from,
                          int to) {
    printf("%-32s", what);
    for (int v = from; v <= to; v *= 2) {
        Config c = config_preset("tiny");
        config_parse(&c, fields, "bench");
        if (*field) config_set(&c, config_find(field, false), v, "bench");
        config_complete(&c, "bench");
        size_t T = *field ? 256 : v;
        printf("  %d: %.0f", v, bench_training(c, 4096 / T, T, false));
        fflush(stdout);
    }
    printf("\n");
}

static void cmd_bench(const Options *o) {
    if (o->preset) config_preset(o->preset); // dies if there is none of that name
    double peak = peak_gflops();
    printf("%d thread%s: the kernel computes %.1f GFLOP/s\n\n", n_threads,
           n_threads > 1 ? "s" : "", peak);
    printf("matrix products in GFLOP/s (share of the kernel)\n");
    static const size_t shape[][2] = {
        {768, 768}, {768, 384}, {768, 2432}, {2432, 768}, {768, 6400}};
    for (int i = 0; i < 5; i++) bench_products(1024, shape[i][0], shape[i][1], peak);
    for (const struct Preset *p = presets; p < presets + PRESETS; p++) {
        if (o->preset && strcmp(o->preset, p->name)) continue;
        Config c = config_preset(p->name);
        config_complete(&c, p->name);
        printf("\n%s, tokens/s\n", p->name);
        double rate = bench_training(c, 4, 256, true);
        Model *m = model_new(c);
        printf("    train %.0f (4 x 256; %.0f%% of the kernel)\n", rate,
               100e-9 * 3 * flops_per_token(m, 256) * rate / peak);
        model_free(m);
        bench_inference(&c);
    }
    bench_tokenizer();
    printf("\nscaling: training the tiny model, 4096 tokens a step, tokens/s\n");
    bench_scaling("tokens in a sequence (dense)", "use_moe=0 max_position_embeddings=4096", "", 128,
                  4096);
    bench_scaling("experts, one a token", "num_experts_per_tok=1 moe_intermediate_size=384",
                  "num_experts", 1, 16);
    int all = n_threads;
    for (n_threads = 1; n_threads <= all; n_threads *= 2) {
        char what[40];
        snprintf(what, sizeof what, "threads: %d", n_threads);
        bench_scaling(what, "", "", 256, 256);
    }
    n_threads = all;
}

// =================================================================================================
// The commands
//
// One table says which options there are, which commands know them and what they may be.
// =================================================================================================

// The letters of the commands, as in their table: p pretrain, s sft, d dpo, g grpo are the stages
// of training; w generate (write), c chat, e eval, i info, b bench, t (tiny) world, r run.
static const struct Option {
    const char *name, *commands; // the letters of the commands that know it
    char kind;                   // s text, i whole number, f number
    size_t offset;
    double least, most, preset;  // NAN: not said; of a text, see default_options()
    const char *meaning;
} option_table[] = {
#define AT(field) offsetof(Options, field)
#define STAGES "psdg"
    {"data", STAGES "e", 's', AT(data), 0, 0, 0, "JSONL or plain text; several with commas"},
    {"held-out", STAGES, 's', AT(held_out), 0, 0, 0,
     "measure on this file, not on every 50th document"},
    {"tokenizer", STAGES "i", 's', AT(tokenizer), 0, 0, 0, "folder or tokenizer.json"},
    {"preset", STAGES "ib", 's', AT(preset), 0, 0, 0, "sizes to start from, see help"},
    {"model", STAGES "wcei", 's', AT(model), 0, 0, 0, "checkpoint folder to start from"},
    {"out", STAGES "t", 's', AT(out), 0, 0, 0, "folder for what the command makes"},
    {"steps", STAGES, 'i', AT(steps), 0, 1e9, 0, "optimiser steps; 0: as many as --epochs take"},
    {"epochs", STAGES, 'i', AT(epochs), 1, 1e6, 1, "passes over the data"},
    {"batch", STAGES "i", 'i', AT(batch), 1, 1e6, 8,
     "sequences (pairs, prompts) in memory at a time"},
    {"seq", "psdi", 'i', AT(seq), 1, 1 << 24, 0, "tokens in a sequence, at most"},
    {"lr", STAGES, 'f', AT(lr), 0, 10, NAN, "highest learning rate; each stage has its own"},
    {"warmup", STAGES, 'i', AT(warmup), 0, 1e9, 0, "steps in which the rate rises to it"},
    {"accumulate", STAGES, 'i', AT(accumulate), 1, 1e6, 1, "batches for one optimiser step"},
    {"beta2", STAGES, 'f', AT(beta2), 0, 0.999999, 0.95, "AdamW's memory of squared gradients"},
    {"weight-decay", STAGES, 'f', AT(weight_decay), 0, 10, 0.1, "of matrices; norms never decay"},
    {"clip", STAGES, 'f', AT(clip), 0, 1e9, 1, "longest gradient; 0: any"},
    {"eval-every", STAGES, 'i', AT(eval_every), 0, 1e9, 0,
     "steps between measurements; 0: a tenth of all"},
    {"recompute", STAGES, 'i', AT(recompute), 0, 1, 0, "1: less memory, up to a third more work"},
    {"beta", "dg", 'f', AT(beta), 0, 100, 0.1, "how much the reference holds the model back"},
    {"loss", "g", 's', AT(loss), 0, 0, 0, "grpo or cispo"},
    {"num-generations", "g", 'i', AT(num_generations), 2, 4096, 8, "answers to each prompt"},
    {"updates", "g", 'i', AT(updates), 1, 100, 1, "optimiser steps on the same answers"},
    {"epsilon", "g", 'f', AT(epsilon), 0, 1, 0.2, "grpo: the ratio's room around 1"},
    {"epsilon-high", "g", 'f', AT(epsilon_high), 1, 100, 5, "cispo: the ratio's limit"},
    {"think", "gwc", 'i', AT(think), 0, 1, 0, "1: the answer begins with thoughts"},
    {"seed", STAGES "rwct", 'i', AT(seed), 0, 1e15, 1, "the same seed gives the same bits"},
    {"threads", STAGES "rwceitb", 'i', AT(threads), 1, 1024, 0, "all cores when not said"},
    {"weights", "wce", 's', AT(weights), 0, 0, 0, "keep them as f32, bf16 or int8"},
    {"task", "e", 's', AT(task), 0, 0, 0, "ppl, qa, think, pref or choice"},
    {"prompt", "w", 's', AT(prompt), 0, 0, 0, "text to continue"},
    {"max-new-tokens", "gwce", 'i', AT(max_new_tokens), 1, 1 << 24, 256, "longest answer"},
    {"temperature", "gwc", 'f', AT(temperature), 0, 100, 0.85, "0: always the most probable token"},
    {"top-k", "wc", 'i', AT(top_k), 0, 1e9, 50, "draw from the k most probable; 0: from all"},
    {"top-p", "wc", 'f', AT(top_p), 0, 1, 0.85, "draw from the most probable that hold p together"},
    {"repetition-penalty", "wc", 'f', AT(repetition_penalty), 0.01, 100, 1, "1: none"},
    {"documents", "t", 'i', AT(documents), 1, 1e9, 30000, "texts in the training part"},
#undef AT
};
enum { OPTIONS = sizeof option_table / sizeof *option_table };

static void option_set(Options *o, const struct Option *p, const char *text, double number) {
    char *at = (char *)o + p->offset;
    if (p->kind == 's') *(const char **)at = text;
    else if (p->kind == 'i') *(long *)at = (long)number;
    else *(double *)at = number;
}

static Options default_options(void) {
    Options o = {0};
    for (const struct Option *p = option_table; p < option_table + OPTIONS; p++)
        option_set(&o, p, NULL, p->preset);
    o.loss = "grpo", o.weights = "f32", o.task = "ppl", o.prompt = "";
    return o;
}

static double parse_number(const char *name, const char *s, double least, double most, bool whole) {
    char *end;
    double value = strtod(s, &end);
    if (!*s || *end || !(value >= least && value <= most) || (whole && value != floor(value)))
        die("--%s %s: allowed is %s from %.15g to %.15g", name, s,
            whole ? "a whole number" : "a number", least, most);
    return value;
}

// Reads "--name value" pairs behind a command; `letter` is the command's. Dies with what is
// allowed.
static void parse_options(Options *o, int argc, char **argv, char letter) {
    bool sized = strchr(STAGES "i", letter);
    for (int i = 0; i < argc; i += 2) {
        const char *name = argv[i] + 2;
        if (strncmp(argv[i], "--", 2)) die("%s: options look like --name value", argv[i]);
        const struct Option *p = option_table, *end = p + OPTIONS;
        while (p < end && (strcmp(p->name, name) || !strchr(p->commands, letter))) p++;
        const struct Field *f = sized ? config_find(name, false) : NULL;
        if (p == end && !f) die("--%s: this command has no such option; see minimind help", name);
        if (p == end && !strcmp(f->name, "vocab_size") && letter != 'i')
            die("--%s: the tokenizer decides it", name);
        if (i + 1 >= argc) die("--%s: its value is missing", name);
        const char *value = argv[i + 1];
        if (p == end) {
            config_set(&o->set, f, parse_number(name, value, f->least, f->most, !f->real), name);
            o->is_set[f - config_field] = true;
        } else {
            bool text = p->kind == 's', whole = p->kind == 'i';
            option_set(o, p, value, text ? 0 : parse_number(name, value, p->least, p->most, whole));
        }
    }
    if (o->threads) n_threads = (int)o->threads;
}

// Which of the words, separated by spaces, an option's value is, from 0 on; dies if it is none.
static int one_of(const char *option, const char *value, const char *words) {
    size_t n = strlen(value);
    int i = 0;
    for (const char *w = words; *w; w += strcspn(w, " "), w += *w == ' ', i++)
        if (!strncmp(w, value, n) && n == strcspn(w, " ")) return i;
    die("--%s %s: allowed is one of %s", option, value, words);
}

// The configuration that the options ask for: a preset or a checkpoint's, then single fields.
static Config options_config(const Options *o, const Tokenizer *tok) {
    if (o->model && o->preset) die("--preset %s: --model has sizes of its own", o->preset);
    Config c = o->model ? config_load(o->model) : config_preset(o->preset ? o->preset : "tiny");
    for (int i = 0; i < CONFIG_FIELDS; i++)
        if (o->is_set[i])
            config_set(&c, &config_field[i], config_get(&o->set, &config_field[i]), "option");
    if (tok) {
        if (o->model && c.vocab_size < tok->vocab_size)
            die("%s: the tokenizer has %d tokens, the model only %d", o->model, tok->vocab_size,
                c.vocab_size);
        if (!o->model) c.vocab_size = tok->vocab_size;
    }
    config_complete(&c, o->model ? o->model : "the configuration");
    return c;
}

// A model to talk to or to measure, from --model, its weights kept as --weights says.
static Model *load_model(const Options *o, const Tokenizer *tok) {
    Model *m = model_new(options_config(o, tok));
    int bits = 32 >> one_of("weights", o->weights, sizeof(float) == 4 ? "f32 bf16 int8" : "f32");
    model_allocate(m, false, bits);
    weights_load(m, o->model);
    return m;
}

// What activations of this kind would take, in floats, without taking it.
static size_t acts_size(const Model *m, enum Mode mode, size_t rows, size_t slots, size_t room) {
    Acts a = {.mode = mode, .max_rows = rows, .n_slots = slots, .room = room};
    a.layer = xcalloc(m->L + 1, sizeof *a.layer);
    layout(m, &a);
    free(a.layer);
    return a.size;
}

static void cmd_info(const Options *o) {
    Tokenizer *tok = o->tokenizer ? tokenizer_load(o->tokenizer) : NULL;
    Config c = options_config(o, tok);
    Model *m = model_new(c);
    size_t T = o->seq ? (size_t)o->seq : min_size(c.max_position_embeddings, 512);
    size_t rows = o->batch * T;
    size_t active = active_params(m);
    for (const Tensor *t = m->tensor; t < m->tensor + m->n_tensors; t++) {
        printf("%-52s (%zu, %zu) %12zu  %s%s\n", t->name, t->rows, t->cols, tensor_size(t),
               t->std > 0 ? "normal" : "ones", t->decay ? ", decays" : "");
    }
    double flops = flops_per_token(m, T), MB = 1e6 / sizeof(float);
    size_t room = min_size(c.max_position_embeddings, T);
    printf("\n%-34s %zu (the embedding, which is also the output matrix, counted once)\n",
           "parameters", m->n_params);
    printf("%-34s %zu\n", "active for one token", active);
    printf("%-34s %.4g forward, %.4g in training (T = %zu)\n", "floating-point operations a token",
           flops, 3 * flops, T);
    printf("%-34s %zu bytes a token\n", "KV cache", 2 * m->L * m->KV * m->D * sizeof(float));
    size_t train = 4 * m->n_params + acts_size(m, TRAINING, rows, 0, 0);
    printf("%-34s %.1f MB = 4 x %.1f (weights, gradients, AdamW) + %.1f (activations, %ld x %zu)\n",
           "memory to train", train / MB, m->n_params / MB, (train - 4 * m->n_params) / MB,
           o->batch, T);
    printf("%-34s %.1f MB\n", "the same with --recompute 1",
           (4 * m->n_params + acts_size(m, RECOMPUTE, rows, 0, 0)) / MB);
    double infer = acts_size(m, INFERENCE, min_size(room, 512), 1, room) / MB;
    for (int i = 0, bits = 32; i < 3; i++, bits /= 2) {
        double weights = weight_bytes(m, bits) * 1e-6;
        printf("%-34s %.1f MB = %.1f (weights, %s) + %.1f (KV cache and activations, %zu "
               "positions)\n", "memory to generate", weights + infer, weights,
               kept_as[i], infer, room);
    }
}

// One stage of training, from its options to its checkpoint.
static void run_stage(const Stage *stage, Options o, bool (*enough)(Run *)) {
    Run run = {.stage = stage, .o = &o, .enough = enough};
    bool policy = stage->objective == policy_loss;
    const char *or_text = stage->unit || policy ? "" : " or text";
    if (!o.data) die("%s: --data is missing: a JSONL file%s", stage->name, or_text);
    if (!o.out) o.out = format("out/%s", stage->name);
    if (!o.tokenizer && !o.model)
        die("%s: --tokenizer is missing: a folder or a file", stage->name);
    if (!o.model && (policy || stage->unit == 2)) die("%s: --model is missing", stage->name);
    one_of("loss", o.loss, "grpo cispo");
    run.tok = tokenizer_load(o.tokenizer ? o.tokenizer : o.model);
    Config c = options_config(&o, run.tok);
    size_t context = c.max_position_embeddings;
    size_t each = policy ? o.num_generations : stage->unit == 2 ? 2 : 1; // rows of a prompt, a pair
    if (policy) {
        run.tasks = tasks_load(o.data, run.tok, o.think);
        run.held = o.held_out ? tasks_load(o.held_out, run.tok, o.think) : tasks_split(run.tasks);
        o.seq = min_size(context, run.tasks->longest + o.max_new_tokens);
        if (run.tasks->longest >= context || run.held->longest >= context)
            die("%s: a prompt is longer than the context of %zu tokens", o.data, context);
    }
    if (!o.seq) o.seq = min_size(context, stage->unit ? 512 : 256);
    if ((size_t)o.seq > context)
        die("--seq %ld: max_position_embeddings allows %zu", o.seq, context);
    run.m = model_new(c);
    run.rows = o.batch * o.accumulate * each;
    enum Mode mode = o.recompute ? RECOMPUTE : TRAINING;
    size_t pass = o.batch * each * o.seq;
    double MB = 1e6 / sizeof(float);
    fprintf(stderr, "%zu parameters; %.0f MB for weights, gradients and AdamW, %.0f MB for "
            "activations\n", run.m->n_params, 4 * run.m->n_params / MB,
            acts_size(run.m, mode, pass, 0, 0) / MB);
    if (!policy) run.d = data_open(o.data, o.held_out, run.tok, stage->unit, o.seq, o.seed);
    size_t total = o.steps, units = o.batch * o.accumulate;
    for (long e = 0; e < o.epochs && !o.steps; e++) {
        size_t n = policy ? run.tasks->n : epoch_units(run.d, e);
        total += (n + units - 1) / units * (policy ? o.updates : 1);
    }
    if (!total || (!policy && !epoch_units(run.d, 0)))
        die("%s: %" PRIu64
            " tokens are fewer than one window of --seq %ld and its target, or have no "
            "row to train",
            o.data, policy ? 0 : run.d->head->n_train, o.seq);
    model_allocate(run.m, true, 32);
    if (o.model) weights_load(run.m, o.model);
    else model_init(run.m, o.seed);
    run.a = acts_new(run.m, mode, pass, 0, 0);
    run.b = batch_new(run.rows, o.seq);
    if (stage->open) stage->open(&run);
    train(&run, total);
    if (run.d) data_close(run.d);
    if (run.tasks) tasks_free(run.tasks), tasks_free(run.held);
    if (run.ref) model_free(run.ref);
    if (run.gen) acts_free(run.gen);
    free(run.ref_nats), batch_free(&run.b), acts_free(run.a), model_free(run.m);
    tokenizer_free(run.tok);
}

static void cmd_pretrain(const Options *o) { run_stage(&stages[PRETRAIN], *o, NULL); }
static void cmd_sft(const Options *o) { run_stage(&stages[SFT], *o, NULL); }
static void cmd_dpo(const Options *o) { run_stage(&stages[DPO], *o, NULL); }
static void cmd_grpo(const Options *o) { run_stage(&stages[GRPO], *o, NULL); }

// With --think the prompt is a question, and the answer is opened in the middle of its thoughts.
static void cmd_generate(const Options *o) {
    if (!o->model) die("generate: --model is missing: a checkpoint folder");
    Tokenizer *tok = tokenizer_load(o->model);
    Model *m = load_model(o, tok);
    Answer x = {{0}, 0, false};
    double start = seconds();
    if (o->think) {
        Text question = {0};
        add_message(&question, "user", NULL, o->prompt);
        encode_messages(tok, &question, true, &x.ids);
        free(question.s);
    } else {
        if (tok->bos >= 0) ids_push(&x.ids, tok->bos);
        tokenizer_encode(tok, o->prompt, strlen(o->prompt), true, &x.ids);
        fputs(o->prompt, stdout);
    }
    size_t n = answer_aloud(m, tok, &x, o);
    fprintf(stderr, "%zu tokens, %.1f a second\n", n, n / (seconds() - start));
    free(x.ids.id), model_free(m), tokenizer_free(tok);
}

// A conversation in the terminal.
static void cmd_chat(const Options *given) {
    Options o = *given;
    if (!o.model) die("chat: --model is missing: a checkpoint folder");
    Tokenizer *tok = tokenizer_load(o.model);
    Model *m = load_model(&o, tok);
    Text said = {0};
    char *line = NULL;
    size_t first = 0, cap = 0, tokens = 0, turns = 0; // first: the length of the system's message
    ssize_t n;
    double spent = 0;
    fprintf(stderr, "/think  /system TEXT  /reset  /stats  /quit\n");
    signal(SIGINT, on_interrupt);
    while (fputs("> ", stderr), (n = getline(&line, &cap, stdin)) >= 0) {
        while (n > 0 && (line[n - 1] == '\n' || line[n - 1] == '\r')) line[--n] = 0;
        if (!n) continue;
        if (!strcmp(line, "/quit")) break;
        if (!strcmp(line, "/think")) {
            o.think = !o.think;
            fprintf(stderr, "thinking is %s\n", o.think ? "on" : "off");
        } else if (!strcmp(line, "/reset")) said.len = first;
        else if (!strncmp(line, "/system", 7)) {
            said.len = 0;
            if (n > 8) add_message(&said, "system", NULL, line + 8);
            first = said.len;
        } else if (!strcmp(line, "/stats"))
            fprintf(stderr, "%zu turns, %zu tokens, %.1f a second\n", turns, tokens,
                    spent > 0 ? tokens / spent : 0);
        else if (*line == '/') fprintf(stderr, "%s: no such command\n", line);
        if (*line == '/') continue;
        size_t before = said.len, context = m->c.max_position_embeddings;
        Answer x = {{0}, 0, false};
        add_message(&said, "user", NULL, line);
        encode_messages(tok, &said, o.think, &x.ids);
        if (x.ids.n >= context) {
            fprintf(stderr, "the context of %zu tokens is full; /reset begins anew\n", context);
            said.len = before;
        } else {
            interrupted = 0;
            signal(SIGINT, on_interrupt);
            double start = seconds();
            tokens += answer_aloud(m, tok, &x, &o), spent += seconds() - start, turns++;
            bool form;
            char *text = answer_text(tok, &x, o.think, &form);
            add_message(&said, "assistant", NULL, text);
            free(text);
        }
        free(x.ids.id);
        o.seed++;
    }
    free(said.s), free(line), model_free(m), tokenizer_free(tok);
}

static void print_ratio(const char *what, Ratio r, double scale) {
    printf("%-22s %.6g +- %.2g\n", what, r.value * scale, r.error * scale);
}

static void eval_text(const Options *o, Tokenizer *tok, const Model *m, Acts *a, size_t context) {
    // the first file's records tell what all of them are
    char *first = format("%.*s", (int)strcspn(o->data, ","), o->data);
    Reader r = reader_open(first);
    bool chat = reader_next(&r) && r.json && !json_get(r.json, "text");
    reader_close(&r), free(first);
    Data *d = data_open(NULL, o->data, tok, chat, context, 0);
    Score s = score(m, a, d->id, d->document, d->head->n_documents, context);
    printf("documents              %zu\ntokens                 %.0f\n", s.n, s.tokens);
    printf("bytes                  %.0f\n", s.bytes);
    print_ratio("loss", s.loss, 1);
    double perplexity = exp(s.loss.value);
    print_ratio("perplexity", (Ratio){perplexity, perplexity * s.loss.error}, 1);
    if (s.bytes > 0) print_ratio("bits per byte", s.bits, 1);
    if (isfinite(s.floor)) printf("floor                  %.6g\n", s.floor);
    data_close(d);
}

// Adds a document for each choice of {"question", "choices", "answer"}: the question, and the
// choice as what the assistant says.
static void add_choices(Builder *b, const Reader *r, Ids *answer) {
    const Json *choices = json_get(r->json, "choices"), *right = json_get(r->json, "answer");
    const char *question = json_text(r->json, "question");
    size_t first = b->n[1];
    Ids *ids = &b->ids[1];
    Text said = {0};
    if (!question || !choices || choices->type != JSON_ARRAY || !right ||
        right->type != JSON_NUMBER)
        die("%s:%zu: needs \"question\", \"choices\" and \"answer\"", r->path, r->number);
    add_message(&said, "user", NULL, question);
    for (const Json *c = choices->child; c; c = c->next) {
        size_t from = ids->n;
        if (c->type != JSON_STRING) die("%s:%zu: a choice is no string", r->path, r->number);
        encode_messages(b->tok, &said, false, ids);
        size_t begin = ids->n;
        tokenizer_encode(b->tok, c->s, c->len, true, ids);
        for (size_t i = begin; i < ids->n; i++) ids->id[i] |= TRAINED;
        if (ids->n - from > b->T + 1) { // of a question that is too long, the end counts
            memmove(ids->id + from, ids->id + ids->n - b->T - 1, (b->T + 1) * sizeof(int));
            ids->n = from + b->T + 1;
        }
        end_document(b, 1, from, c->len, NAN);
    }
    if (!(right->number >= 0 && right->number < b->n[1] - first))
        die("%s:%zu: \"answer\" is not the number of a choice", r->path, r->number);
    ids_push(answer, (int)right->number);
    free(said.s);
}

// The most probable choice is the model's answer; length-normalised, the one with the highest
// log-probability a byte.
static void eval_choice(const Options *o, Tokenizer *tok, const Model *m, Acts *a, size_t context) {
    Builder b = {.tok = tok, .unit = 1, .T = context};
    Ids first = {0}, answer = {0}; // each question's first document, and which choice is right
    char *names = format("%s", o->data);
    for (char *path = strtok(names, ","); path; path = strtok(NULL, ",")) {
        Reader r = reader_open(path);
        while (reader_next(&r)) ids_push(&first, (int)b.n[1]), add_choices(&b, &r, &answer);
        reader_close(&r);
    }
    free(names);
    if (!first.n) die("%s: there is no question in it", o->data);
    ids_push(&first, (int)b.n[1]);
    double *nats = xcalloc(b.n[1] + 2 * answer.n, sizeof *nats), *plain_right = nats + b.n[1];
    double *normal_right = plain_right + answer.n, guess = 0;
    score_documents(m, a, b.ids[1].id, b.document[1], b.n[1], context, nats, NULL);
    for (size_t q = 0; q < answer.n; q++) {
        int best = first.id[q], normal = best;
        for (int c = best; c < first.id[q + 1]; c++) {
            if (nats[c] < nats[best]) best = c;
            if (nats[c] / b.document[1][c].bytes < nats[normal] / b.document[1][normal].bytes)
                normal = c;
        }
        plain_right[q] = best - first.id[q] == answer.id[q];
        normal_right[q] = normal - first.id[q] == answer.id[q];
        guess += 1.0 / (first.id[q + 1] - first.id[q]) / answer.n;
    }
    printf("questions              %zu\n", answer.n);
    print_ratio("right, %", ratio(plain_right, NULL, answer.n), 100);
    print_ratio("length-normalised, %", ratio(normal_right, NULL, answer.n), 100);
    printf("by guessing, %%         %.6g\n", 100 * guess);
    free(nats), free(first.id), free(answer.id), free(b.ids[1].id), free(b.document[1]);
}

static void cmd_eval(const Options *o) {
    if (!o->model || !o->data) die("eval: --model DIR and --data FILE are needed");
    enum { PPL, QA, THINK, PREF, CHOICE } task;
    task = one_of("task", o->task, "ppl qa think pref choice");
    Tokenizer *tok = tokenizer_load(o->model);
    Model *m = load_model(o, tok);
    size_t context = min_size(m->c.max_position_embeddings, 2048);
    Acts *a = task == QA || task == THINK ? NULL : acts_new(m, INFERENCE, context, context, 0);
    if (task == PPL) eval_text(o, tok, m, a, context);
    if (task == CHOICE) eval_choice(o, tok, m, a, context);
    if (task == QA || task == THINK) {
        Tasks *t = tasks_load(o->data, tok, task == THINK);
        if (t->longest >= (size_t)m->c.max_position_embeddings)
            die("%s: a question is longer than the context", o->data);
        printf("questions              %zu\n", t->n);
        print_ratio("right, %", solve(m, tok, t, task == THINK, o->max_new_tokens, NULL), 100);
        tasks_free(t);
    }
    if (task == PREF) {
        Data *d = data_open(NULL, o->data, tok, 2, context, 0);
        size_t n = d->head->n_documents / 2;
        printf("pairs                  %zu\n", n);
        print_ratio("chosen preferred, %",
                    preference_accuracy(m, a, d->id, d->document, n, context, NULL), 100);
        data_close(d);
    }
    if (a) acts_free(a);
    model_free(m), tokenizer_free(tok);
}

static void cmd_world(const Options *o) {
    write_world(o->out ? o->out : "out/world", o->seed, o->documents);
}

// ---- the whole story ----------------------------------------------------------------------------

// A tokenizer trained on the texts and the answers of the world.
static Tokenizer *train_tokenizer(int vocab_size) {
    static const char *const path[] = {"out/world/pretrain.jsonl", "out/world/keep.jsonl"};
    Trainer *trainer = trainer_new(true);
    for (int i = 0; i < 2; i++) {
        Reader r = reader_open(path[i]);
        while (reader_next(&r)) reader_texts(&r, count_text, trainer);
        reader_close(&r);
    }
    return trainer_finish(trainer, vocab_size);
}

// The measurements of the story: the same ones on the same held-out data after every stage.
enum Metric { BITS, EXACT, FRIENDLY, PREFERRED, AT_ONCE_RIGHT, THOUGHT_RIGHT, METRICS };
static const struct { const char *name, *target; } metrics[METRICS] = {
    {"bits_per_byte", NULL}, {"exact_match", "0.88"}, {"preferred_manner", "0.95"},
    {"preference_accuracy", "0.95"}, {"sums_at_once", ""}, {"sums_after_thinking", "0.95"}};

typedef struct {
    const char *stage;
    double value[METRICS], floor; // floor: of the bits per byte
} Milestone;

// Shows, behind `shown`, how the model goes on greedily from a prompt.
static void show(const Model *m, Tokenizer *tok, const char *shown, const Ids *prompt, bool think) {
    Text t = {0};
    char *said, *no_answer = "";
    Task task = {*prompt, no_answer};
    solve(m, tok, &(Tasks){1, 1, prompt->n, &task}, think, 60, &said);
    text_append(&t, "", 0), write_visible(&t, said, strlen(said));
    printf("    %s%s\n", shown, t.s);
    fflush(stdout);
    free(t.s), free(said);
}

// The same three questions, two of held-out facts and a held-out sum, and two beginnings of texts.
static void show_answers(const Model *m, Tokenizer *tok, const Tasks *facts, const Tasks *sums) {
    const Ids *ask[] = {&facts->task[0].prompt, &facts->task[facts->n / 2].prompt,
                        &sums->task[0].prompt};
    for (int k = 0; k < 3; k++) {
        Text t = {0};
        Utf8Stream utf8 = {{0}, 0};
        for (size_t i = 0; i < ask[k]->n; i++) decode_token(tok, ask[k]->id[i], &utf8, &t);
        char *question = strstr(t.s, "user\n") + strlen("user\n");
        strcpy(strstr(question, "<|im_end|>"), " -> "); // the rest of the template need not be seen
        show(m, tok, question, ask[k], k == 2);
        free(t.s);
    }
    for (int k = 0; k < 2; k++) {
        const char *beginning = k ? "有一天" : "One day";
        Ids ids = {0};
        ids_push(&ids, tok->bos);
        tokenizer_encode(tok, beginning, strlen(beginning), true, &ids);
        show(m, tok, beginning, &ids, false);
        free(ids.id);
    }
}

// The share of n answers that have the preferred manner; frees them.
static double friendly(char **said, size_t n) {
    double sum = 0;
    for (size_t i = 0; i < n; i++) sum += strstr(said[i], manner) != NULL, free(said[i]);
    return sum / n;
}

// Runs a stage, measures what it leaves in o.out and shows some answers.
static Milestone milestone(const Stage *stage, Options o, bool (*enough)(Run *)) {
    Milestone s = {.stage = strrchr(o.out, '/') + 1};
    run_stage(stage, o, enough);
    o.model = o.out;
    Tokenizer *tok = tokenizer_load(o.model);
    Model *m = load_model(&o, tok);
    size_t context = m->c.max_position_embeddings;
    Acts *a = acts_new(m, INFERENCE, 2048, 2048, 0);
    Data *text = data_open(NULL, "out/world/pretrain_held_out.jsonl", tok, 0, context, 0);
    Score held = score(m, a, text->id, text->document, text->head->n_documents, context);
    Data *pairs = data_open(NULL, "out/world/dpo_held_out.jsonl", tok, 2, context, 0);
    Tasks *facts = tasks_load("out/world/sft_held_out.jsonl", tok, false);
    Tasks *sums = tasks_load("out/world/reason_held_out.jsonl", tok, false);
    Tasks *thoughts = tasks_load("out/world/reason_held_out.jsonl", tok, true);
    char **said = xcalloc(facts->n, sizeof *said);
    s.value[BITS] = held.bits.value, s.floor = held.floor;
    s.value[EXACT] = solve(m, tok, facts, false, 40, said).value;
    s.value[FRIENDLY] = friendly(said, facts->n);
    s.value[PREFERRED] = preference_accuracy(m, a, pairs->id, pairs->document,
                                             pairs->head->n_documents / 2, context, NULL).value;
    s.value[AT_ONCE_RIGHT] = solve(m, tok, sums, false, 40, NULL).value;
    s.value[THOUGHT_RIGHT] = solve(m, tok, thoughts, true, 60, NULL).value;
    printf("\nafter %s\n", s.stage);
    show_answers(m, tok, facts, thoughts);
    free(said), tasks_free(facts), tasks_free(sums), tasks_free(thoughts);
    data_close(text), data_close(pairs), acts_free(a), model_free(m), tokenizer_free(tok);
    return s;
}

// The share of some questions of the training part that are answered in the preferred manner, or
// without `manners` of its sums that are right after thinking.
static double answered(const Run *run, bool manners) {
    enum { SOME = 256 };
    const char *path = manners ? "out/world/keep.jsonl" : "out/world/grpo.jsonl";
    Tasks *t = tasks_load(path, run->tok, !manners), some = *t;
    char *said[SOME];
    some.n = min_size(t->n, SOME);
    double right = solve(run->m, run->tok, &some, !manners, 60, said).value;
    double kind = friendly(said, some.n), share = manners ? kind : right;
    tasks_free(t);
    fprintf(stderr, "%.0f%% of some answers are %s\n", 100 * share, manners ? "friendly" : "right");
    return share;
}

// DPO and GRPO, which cost some of what is known, stop as soon as they have done what they are for;
// and a stage of thinking stops early, to leave GRPO something to do.
static bool friendly_enough(Run *run) { return answered(run, true) >= 0.98; }
static bool right_enough(Run *run) { return answered(run, false) >= 0.97; }
static bool mostly_right(Run *run) { return answered(run, false) >= 0.6; }

static void print_story(const Milestone *s, int n) {
    NewFile csv = new_file("out", "metrics.csv");
    fprintf(csv.f, "stage,metric,value,floor_or_target\n");
    printf("\n%-22s", "");
    for (int i = 0; i < n; i++) printf("%11s", s[i].stage);
    printf("\n");
    for (int k = 0; k < METRICS; k++) {
        printf("%-22s", metrics[k].name);
        for (int i = 0; i < n; i++) {
            fprintf(csv.f, "%s,%s,%.6f,", s[i].stage, metrics[k].name, s[i].value[k]);
            if (k == BITS) printf("%11.4f", s[i].value[k]), fprintf(csv.f, "%.6f\n", s[i].floor);
            else printf("%10.1f%%", 100 * s[i].value[k]), fprintf(csv.f, "%s\n", metrics[k].target);
        }
        printf("\n");
    }
    printf("%-22s", "bits over the floor");
    for (int i = 0; i < n; i++) printf("%10.1f%%", 100 * (s[i].value[BITS] / s[i].floor - 1));
    printf("\n");
    new_file_done(&csv);
}

// The whole story on the tiny world: a text, a vocabulary, and one model from knowing nothing to
// thinking before it answers, measured after every stage. Rates are high and batches small because
// the run is short. What a stage does not set stays as the one before had it; Ctrl-C ends a stage.
static void cmd_run(const Options *given) {
    double start = seconds();
    Milestone s[7];
    Options o = *given;
    fprintf(stderr, "1. A world (seed %ld) in out/world, and a tokenizer learned from its texts\n",
            o.seed);
    write_world("out/world", o.seed, o.documents);
    Tokenizer *tok = train_tokenizer(2048); // large enough for every name to be one token
    tokenizer_save(tok, "out/tokenizer");
    tokenizer_free(tok);
    o.tokenizer = "out/tokenizer", o.beta2 = 0.99, o.weight_decay = 0.05;
    o.batch = 8, o.seq = 128, o.steps = 1, o.lr = 0, o.out = "out/nothing";
    o.data = "out/world/pretrain.jsonl", o.held_out = "out/world/pretrain_held_out.jsonl";
    s[0] = milestone(&stages[PRETRAIN], o, NULL);

    fprintf(stderr, "\n2. Pretraining: to predict the next token, and so to know the world\n");
    o.steps = 3400, o.lr = 3e-3, o.warmup = 50, o.eval_every = 850, o.out = "out/pretrain";
    s[1] = milestone(&stages[PRETRAIN], o, NULL);
    fprintf(stderr, "%.0f seconds so far\n", seconds() - start);

    fprintf(stderr, "\n3. SFT: to answer. Half of all things are asked about, the other half is "
            "the test\n");
    o.model = o.out, o.tokenizer = NULL, o.out = "out/sft", o.eval_every = 0;
    o.data = "out/world/sft.jsonl,out/world/again.jsonl";
    o.held_out = "out/world/sft_held_out.jsonl";
    o.steps = 0, o.epochs = 4, o.batch = 16, o.lr = 2e-3, o.warmup = 20;
    o.weight_decay = 0.3; // against learning by heart what the one half is asked
    s[2] = milestone(&stages[SFT], o, NULL);

    fprintf(stderr, "\n4. DPO: which of two manners of answering is preferred\n");
    o.model = o.out, o.out = "out/dpo";
    o.data = "out/world/dpo.jsonl", o.held_out = "out/world/dpo_held_out.jsonl";
    // small steps, often looked at: what DPO does beyond its aim costs knowledge
    o.epochs = 3, o.batch = 8, o.lr = 5e-5, o.warmup = 5, o.beta2 = 0.999;
    o.weight_decay = 0, o.eval_every = 2;
    s[3] = milestone(&stages[DPO], o, friendly_enough);

    fprintf(stderr, "\n5. Thinking: SFT on sums that are worked before they are answered\n");
    o.model = o.out, o.out = "out/think";
    o.data = "out/world/reason.jsonl,out/world/keep.jsonl,out/world/again.jsonl";
    o.held_out = "out/world/reason_held_out.jsonl";
    o.epochs = 1, o.batch = 16, o.lr = 2e-3, o.warmup = 20, o.beta2 = 0.99;
    o.weight_decay = 0.1, o.eval_every = 0;
    s[4] = milestone(&stages[SFT], o, NULL);

    fprintf(stderr, "\n6. The same, stopped early, when three in five sums are right\n");
    o.out = "out/early", o.lr = 1e-3, o.eval_every = 2;
    s[5] = milestone(&stages[SFT], o, mostly_right);

    fprintf(stderr, "\n7. GRPO: that model learns from its own answers, which are checked\n");
    o.model = o.out, o.out = "out/grpo", o.think = 1, o.eval_every = 10, o.temperature = 1;
    o.data = "out/world/grpo.jsonl", o.held_out = "out/world/grpo_held_out.jsonl";
    o.steps = 150, o.batch = 16, o.num_generations = 8, o.lr = 3e-4, o.max_new_tokens = 60;
    o.beta = 0.02, o.weight_decay = 0, o.warmup = 5;
    s[6] = milestone(&stages[GRPO], o, right_enough);
    print_story(s, 7);
    fprintf(stderr, "%.0f seconds\n", seconds() - start);
}

static void cmd_help(const Options *o);

static const struct Command {
    const char *name;
    char letter; // in the table of options
    void (*run)(const Options *o);
    const char *meaning;
} commands[] = {
    {"run", 'r', cmd_run, "the whole story on the tiny world (also without a command)"},
    {"world", 't', cmd_world, "write the texts of a tiny world as JSONL"},
    {"pretrain", 'p', cmd_pretrain, "learn to predict text: --data F --tokenizer T [--out DIR]"},
    {"sft", 's', cmd_sft, "learn to answer from conversations: --model DIR --data F"},
    {"dpo", 'd', cmd_dpo, "learn which answers are preferred: --model DIR --data F"},
    {"grpo", 'g', cmd_grpo, "learn from answers of its own that are checked: --model DIR --data F"},
    {"generate", 'w', cmd_generate, "continue a prompt: --model DIR --prompt TEXT"},
    {"chat", 'c', cmd_chat, "talk to it: --model DIR"},
    {"eval", 'e', cmd_eval, "measure it on held-out data: --model DIR --data F [--task T]"},
    {"info", 'i', cmd_info, "tensors, parameters, memory and work of a preset or checkpoint"},
    {"bench", 'b', cmd_bench, "how fast it is, and what of that is the machine"},
    {"check", 'k', NULL, "gradients against finite differences, or golden FILE..."},
    {"help", 'h', cmd_help, "this page"},
};
enum { COMMANDS = sizeof commands / sizeof *commands };

static void cmd_help(const Options *o) {
    (void)o;
    printf("usage: minimind [COMMAND [--option value]...]\n\n");
    for (const struct Command *c = commands; c < commands + COMMANDS; c++) {
        printf("%-10s %s\n", c->name, c->meaning);
        for (const struct Option *p = option_table; p < option_table + OPTIONS; p++)
            if (strchr(p->commands, c->letter)) printf("    --%-20s %s\n", p->name, p->meaning);
    }
    printf("\nfields of the configuration, options of the stages of training and info:\n");
    for (const struct Field *f = config_field; f < config_field + CONFIG_FIELDS; f++)
        printf("    --%-22s %s\n", f->name, f->meaning);
    printf("\npresets:\n");
    for (const struct Preset *p = presets; p < presets + PRESETS; p++)
        printf("    %-16s %s\n", p->name, p->fields);
}

// check FILE... compares golden files; without one, the gradients of every variant.
static int cmd_check(int n, char **files) {
    Tally tally = {0};
    for (int i = 0; i < n; i++) check_golden(files[i], &tally);
    if (n == 0) check_kernels(&tally), check_packing(&tally), check_margins(&tally);
    for (size_t i = 0; n == 0 && i < sizeof check_variant / sizeof *check_variant; i++) {
        check_decoding(&tally, check_variant[i][0], check_variant[i][1]);
        check_drawing(&tally, check_variant[i][0], check_variant[i][1]);
        check_gradients(&tally, check_variant[i][0], check_variant[i][1], next_token_loss, "");
    }
    const char *const top2 = "use_moe=1 num_experts_per_tok=2 router_aux_loss_coef=0.3";
    for (int moe = 0; n == 0 && moe < 2; moe++) {
        check_gradients(&tally, moe ? "DPO, MoE" : "DPO", moe ? top2 : "", dpo_loss, "");
        check_gradients(&tally, moe ? "GRPO, MoE" : "GRPO", moe ? top2 : "", policy_loss, "grpo");
        check_gradients(&tally, moe ? "CISPO, MoE" : "CISPO", moe ? top2 : "", policy_loss,
                        "cispo");
    }
    printf("%d passed, %d failed\n", tally.passed, tally.failed);
    return tally.failed > 0;
}

int main(int argc, char **argv) {
    program = "minimind";
#ifdef _OPENMP
    n_threads = omp_get_max_threads();
#endif
    Options o = default_options();
    bool named = argc > 1 && strncmp(argv[1], "--", 2);
    const char *name = named ? argv[1] : "run";
    if (argc > 1 && (!strcmp(argv[1], "--help") || !strcmp(argv[1], "-h"))) name = "help", argc = 1;
    argc -= 1 + named, argv += 1 + named;
    int status = 0;
    for (const struct Command *c = commands; c < commands + COMMANDS; c++) {
        if (strcmp(c->name, name)) continue;
        if (!c->run) status = cmd_check(argc, argv);
        else parse_options(&o, argc, argv, c->letter), c->run(&o);
        if (fflush(stdout) || ferror(stdout)) die("standard output cannot be written");
        return status;
    }
    die("there is no command %s; see minimind help", name);
}
