// test.c - compares what you have written on the whiteboard with minimind.c.
//
//     notes/lab/whiteboard/run.sh dpo            builds and runs it; see README.md
//
// A task is a list of aspects. Each looks at one thing that often goes wrong, with inputs that show
// this thing alone where that is possible: equal keys for the mask, one token for the heads. An
// aspect prints one line, ok or FAILED; after FAILED follow what differs, by how much, and where to
// look. Exit status 1 if an aspect failed.

#define WITH_TRAINER // tokenizer.c then has the training of a vocabulary
#define main minimind_main
#include "../../../minimind.c"
#undef main
#include "whiteboard.h"

// =================================================================================================
// Aspects, arrays and comparisons
// =================================================================================================

static const char *aspect, *hint; // the present aspect, and where to look if it fails
static bool aspect_failed, nothing_done;
static int n_ok, n_failed;

// Arrays are parts of this memory. Between two arrays are GUARD elements with the value NAN. A
// function that reads outside of an array therefore computes NAN; check_guards() finds one that
// writes there.
enum { MEMORY = 1 << 17, GUARD = 1000, ARRAYS = 32 };
static float memory[MEMORY];
static size_t memory_used, n_arrays;
static struct { const char *name; float *at; size_t n; } known[ARRAYS];

static const float unwritten = 98765; // what outputs and work space hold at the start

// One detail of a failure.
__attribute__((format(printf, 1, 2))) static void fail(const char *format, ...) {
    va_list args;
    if (!aspect_failed) printf("FAILED  %s\n", aspect);
    aspect_failed = true;
    printf("        ");
    va_start(args, format);
    vprintf(format, args);
    va_end(args);
    printf("\n");
}

// The index of the first element that is not NAN any more; n if there is none.
static size_t first_written(const float *guard, size_t n) {
    size_t i = 0;
    while (i < n && isnan(guard[i])) i++;
    return i;
}

// Half of the numbers between two arrays belong to each of them.
static void check_guards(void) {
    size_t half = GUARD / 2;
    for (size_t i = 0; i < n_arrays; i++) {
        size_t before = first_written(known[i].at - half, half);
        size_t behind = first_written(known[i].at + known[i].n, half);
        if (before < half)
            fail("%s: something was written before its beginning", known[i].name);
        if (behind < half)
            fail("%s: something was written behind its end", known[i].name);
    }
}

static void end_aspect(void) {
    if (!aspect) return;
    check_guards();
    if (!aspect_failed) printf("ok      %s\n", aspect);
    else if (!nothing_done) printf("        Look here: %s\n", hint);
    if (aspect_failed) n_failed++;
    else n_ok++;
    aspect = NULL;
}

static void begin(const char *name, const char *where_to_look) {
    end_aspect();
    aspect = name;
    hint = where_to_look;
    aspect_failed = nothing_done = false;
    memory_used = GUARD;
    n_arrays = 0;
    for (size_t i = 0; i < MEMORY; i++) memory[i] = NAN;
}

// An array (n) with the same number everywhere.
static float *constant(const char *name, size_t n, float value) {
    float *x = memory + memory_used;
    memory_used += n + GUARD;
    if (memory_used > MEMORY || n_arrays == ARRAYS) die("%s: no room", name);
    known[n_arrays].name = name;
    known[n_arrays].at = x;
    known[n_arrays++].n = n;
    for (size_t i = 0; i < n; i++) x[i] = value;
    return x;
}

static float *output(const char *name, size_t n) { return constant(name, n, unwritten); }

// An array (n) of random numbers with mean 0 and this standard deviation.
static float *random_array(const char *name, size_t n, double deviation) {
    static uint64_t stream;
    float *x = constant(name, n, 0);
    stream++;
    for (size_t i = 0; i < n; i++) x[i] = deviation * gaussian(splitmix64(stream), i);
    return x;
}

static float *copy_of(const char *name, const float *from, size_t n) {
    float *x = constant(name, n, 0);
    memcpy(x, from, n * sizeof *x);
    return x;
}

static float *from_ints(const char *name, const int *from, size_t n) {
    float *x = constant(name, n, 0);
    for (size_t i = 0; i < n; i++) x[i] = from[i];
    return x;
}

// Appends the index of element i of an array with these sizes: [1][0][2]
static void append_index(Text *text, size_t i, const size_t *size) {
    size_t rest = 1;
    for (size_t d = 1; size[0] && size[d]; d++) rest *= size[d];
    for (; *size; size++) {
        text_printf(text, "[%zu]", i / rest);
        i %= rest;
        rest /= size[1] ? size[1] : 1;
    }
}

// Is got the same multiple of want everywhere? Returns the factor, or NAN.
static double common_factor(const float *got, const float *want, size_t n, double largest) {
    double got_want = 0, want_want = 0;
    for (size_t i = 0; i < n; i++) {
        got_want += (double)got[i] * want[i];
        want_want += (double)want[i] * want[i];
    }
    double factor = got_want / want_want;
    for (size_t i = 0; i < n; i++)
        if (!(fabs(got[i] - factor * want[i]) <= 1e-3 * fabs(factor) * largest)) return NAN;
    return n > 1 ? factor : NAN;
}

// Compares an array with that of the book. size: its sizes, and then 0. All numbers have to agree
// to four digits of the largest.
static void compare(const char *name, const float *got, const float *want, const size_t *size) {
    size_t n = 1, n_wrong = 0, first = 0, n_unwritten = 0, n_added = 0;
    double largest = 0;
    Text index = {0}; // of the first wrong number
    for (size_t d = 0; size[d]; d++) n *= size[d];
    for (size_t i = 0; i < n; i++) largest = fmax(largest, fabs(want[i]));
    for (size_t i = 0; i < n; i++) {
        bool right = fabs(got[i] - want[i]) <= 1e-4 * largest + 1e-5; // false for NAN
        if (right) continue;
        if (n_wrong++ == 0) first = i;
        n_unwritten += got[i] == unwritten;
        n_added += got[i] != unwritten && fabs(got[i] - want[i] - unwritten) < 1;
    }
    if (n_wrong == 0) return;

    text_add(&index, "");
    append_index(&index, first, size);
    if (n_unwritten == n) {
        fail("%s: nothing was written", name);
        nothing_done = true;
    } else if (n_unwritten > 0) {
        fail("%s: %zu of %zu numbers were not written, %s%s first", name, n_unwritten, n, name,
             index.s);
    } else if (n_added == n_wrong) {
        fail("%s: what was there before is still in it; it has to be overwritten", name);
    } else {
        fail("%s%s is %g, but should be %g", name, index.s, got[first], want[first]);
        if (n > 1) fail("(%zu of %zu numbers are wrong)", n_wrong, n);
        double factor = common_factor(got, want, n, largest);
        if (!isfinite(got[first]))
            fail("(a number became too large, or 0 / 0, or was read from outside of an array)");
        else if (factor == 0 && largest > 0) nothing_done = true;
        else if (fabs(got[first]) > 1000 && largest < 1000)
            fail("(memory that was never written holds %g; was it read?)", unwritten);
        else if (isfinite(factor)) fail("(all of %s is %g times what it should be)", name, factor);
    }
    free(index.s);
}

static void compare_number(const char *name, double got, double want) {
    float got_float = got, want_float = want;
    compare(name, &got_float, &want_float, (size_t[]){0});
}

// =================================================================================================
// 1. Attention
// =================================================================================================

typedef struct { size_t T, past, H, KV, D; } Heads; // written as {T, past, H, KV, D} below

// The T tokens come in calls of at most `piece`. With key_size 0 all keys are equal.
static void try_attention(Heads s, size_t piece, double key_size, const char *name,
                          const char *where_to_look) {
    begin(name, where_to_look);
    size_t all = s.past + s.T, q_row = s.H * s.D, kv_row = s.KV * s.D;
    float *q = random_array("q", s.T * q_row, 1), *k = random_array("k", all * kv_row, key_size);
    float *v = random_array("v", all * kv_row, 1), *scores = output("scores", all);
    float *k_cache = output("k_cache", all * kv_row), *v_cache = output("v_cache", all * kv_row);
    float *out = output("out", s.T * q_row), *want = output("want", s.T * q_row);
    float *lse = output("lse", s.T * s.H);
    memcpy(k_cache, k, s.past * kv_row * sizeof *k);
    memcpy(v_cache, v, s.past * kv_row * sizeof *v);
    attention_forward(want, lse, q, k, v, 1, s.T, s.past, s.H, s.KV, s.D);

    for (size_t t = 0; t < s.T; t += piece) {
        size_t n = min_size(piece, s.T - t), at = s.past + t;
        my_attention(out + t * q_row, k_cache, v_cache, scores, q + t * q_row, k + at * kv_row,
                     v + at * kv_row, n, at, s.H, s.KV, s.D);
    }
    compare("k_cache", k_cache, k, (size_t[]){all, s.KV, s.D, 0});
    compare("v_cache", v_cache, v, (size_t[]){all, s.KV, s.D, 0});
    compare("out", out, want, (size_t[]){s.T, s.H, s.D, 0});
}

static void test_attention(void) {
    try_attention((Heads){1, 0, 1, 1, 3}, 1, 1, "one token, one head",
                  "it sees itself only, so out is v.");
    try_attention((Heads){5, 0, 1, 1, 3}, 5, 0, "the causal mask",
                  "all keys are equal here, so out[t] is the mean of v[0] .. v[t].");
    try_attention((Heads){5, 0, 1, 1, 7}, 5, 1, "the scores",
                  "the mask is the same as before, so it is q . k / sqrt(D) or the softmax.");
    try_attention((Heads){4, 0, 1, 1, 5}, 4, 200, "large scores",
                  "e^100 is too large for a float. Subtract the largest score first.");
    try_attention((Heads){1, 0, 6, 2, 3}, 1, 1, "which head reads which",
                  "one token, so out of head h is v of head h / (H / KV).");
    try_attention((Heads){5, 0, 6, 3, 5}, 5, 1, "several tokens and heads",
                  "from key to key it is KV * D numbers, from query to query H * D.");
    try_attention((Heads){3, 4, 1, 1, 3}, 3, 0, "a cache, all keys equal",
                  "new token t is at position past + t. Where does its key go, and how many keys "
                  "does it see?");
    try_attention((Heads){1, 6, 4, 2, 5}, 1, 1, "a cache and one new token",
                  "all keys and values are those of the cache, the new ones behind the old.");
    try_attention((Heads){9, 0, 6, 3, 5}, 1, 1, "token by token through the cache",
                  "the same tokens at once and one by one have to give the same.");
    try_attention((Heads){11, 2, 6, 2, 7}, 4, 1, "in pieces through the cache",
                  "past grows by the number of new tokens.");
}

// =================================================================================================
// 2. The gradient of attention
// =================================================================================================

enum { DQ = 1, DK = 2, DV = 4 };
enum Keys { RANDOM_KEYS, EQUAL_KEYS, FIRST_QUERY_ONLY };

// Compares those of the three gradients that are in `which`.
static void try_attention_backward(Heads s, int which, enum Keys keys, const char *name,
                                   const char *where_to_look) {
    begin(name, where_to_look);
    size_t n_q = s.T * s.H * s.D, n_kv = s.T * s.KV * s.D;
    float *q = random_array("q", n_q, 1), *k = random_array("k", n_kv, 1);
    float *v = random_array("v", n_kv, 1), *dout = random_array("dout", n_q, 1);
    float *p = output("p", s.T), *dp = output("dp", s.T), *dq = output("dq", n_q);
    float *dk = output("dk", n_kv), *dv = output("dv", n_kv);
    float *out = output("out", n_q), *lse = output("lse", s.T * s.H);
    float *want_dq = output("want", n_q), *want_dk = output("want", n_kv);
    float *want_dv = output("want", n_kv);
    for (size_t i = 0; keys == EQUAL_KEYS && i < n_kv; i++) k[i] = k[i % s.D];
    for (size_t i = s.D * s.H; keys == FIRST_QUERY_ONLY && i < n_q; i++) dout[i] = 0;
    attention_forward(out, lse, q, k, v, 1, s.T, 0, s.H, s.KV, s.D);
    attention_backward(want_dq, want_dk, want_dv, dout, out, lse, q, k, v, 1, s.T, s.H, s.KV, s.D);

    my_attention_backward(dq, dk, dv, p, dp, dout, q, k, v, s.T, s.H, s.KV, s.D);
    if (which & DV) compare("dv", dv, want_dv, (size_t[]){s.T, s.KV, s.D, 0});
    if (which & DQ) compare("dq", dq, want_dq, (size_t[]){s.T, s.H, s.D, 0});
    if (which & DK) compare("dk", dk, want_dk, (size_t[]){s.T, s.KV, s.D, 0});
}

static void test_attention_backward(void) {
    try_attention_backward((Heads){1, 0, 1, 1, 3}, DQ | DK | DV, RANDOM_KEYS,
                           "one token: dv is dout, dq and dk are 0",
                           "its p is 1 whatever the score is.");
    try_attention_backward((Heads){4, 0, 1, 1, 3}, DK | DV, FIRST_QUERY_ONLY,
                           "the mask: loss from query 0 only",
                           "query 0 sees key 0 only, so dk and dv of the other keys are 0.");
    try_attention_backward((Heads){5, 0, 1, 1, 7}, DV, RANDOM_KEYS, "dv of one head",
                           "dv_j is the sum of p[j] dout over all queries t >= j. Is p the "
                           "softmax of q . k / sqrt(D)?");
    try_attention_backward((Heads){5, 0, 1, 1, 3}, DQ, EQUAL_KEYS, "equal keys: dq is 0",
                           "ds adds up to 0 over j, because ds[j] = p[j] (dp[j] - sum_i p[i] "
                           "dp[i]).");
    try_attention_backward((Heads){5, 0, 1, 1, 7}, DQ, RANDOM_KEYS, "dq of one head",
                           "dq = sum_j ds[j] k_j / sqrt(D).");
    try_attention_backward((Heads){5, 0, 1, 1, 7}, DK, RANDOM_KEYS, "dk of one head",
                           "dk_j = sum of ds[j] q / sqrt(D) over all queries t >= j.");
    try_attention_backward((Heads){5, 0, 3, 3, 5}, DQ | DK | DV, RANDOM_KEYS,
                           "as many key heads as query heads",
                           "the strides: H * D for q, KV * D for k.");
    try_attention_backward((Heads){1, 0, 6, 2, 3}, DV, RANDOM_KEYS,
                           "grouped queries, one token: dv",
                           "dv is the sum of dout over the query heads of its group.");
    try_attention_backward((Heads){6, 0, 6, 2, 5}, DQ | DK | DV, RANDOM_KEYS, "grouped queries",
                           "dk and dv are sums over the group; dq is not.");
}

// =================================================================================================
// 3. Softmax and cross-entropy
// =================================================================================================

static void try_softmax(double middle, double spread, const char *name, const char *where_to_look) {
    enum { WIDTH = 7 };
    begin(name, where_to_look);
    float *x = random_array("x", WIDTH, spread), *p = output("p", WIDTH);
    float *want = output("want", WIDTH);
    for (size_t i = 0; i < WIDTH; i++) x[i] += middle;
    softmax_forward(want, x, 1, WIDTH);
    my_softmax(p, x, WIDTH);
    compare("p", p, want, (size_t[]){WIDTH, 0});
}

static void try_softmax_backward(void) {
    enum { WIDTH = 9 };
    begin("softmax backward",
          "dx[j] = p[j] (dp[j] - sum_i p[i] dp[i]), and the sum is the same for all j.");
    float *x = random_array("x", WIDTH, 1), *dp = random_array("dp", WIDTH, 1);
    float *p = output("p", WIDTH), *dx = output("dx", WIDTH), *want = output("want", WIDTH);
    softmax_forward(p, x, 1, WIDTH);
    softmax_backward(want, dp, p, 1, WIDTH);
    my_softmax_backward(dx, dp, p, WIDTH);
    compare("dx", dx, want, (size_t[]){WIDTH, 0});
}

// Of n rows every third one does not count, if `ignore`.
static void try_cross_entropy(size_t n, double middle, double spread, bool ignore, bool gradient,
                              const char *name, const char *where_to_look) {
    enum { V = 11, MOST = 8 };
    begin(name, where_to_look);
    int target[MOST], counted[MOST] = {0};
    float *logits = random_array("logits", n * V, spread), *dlogits = output("dlogits", n * V);
    float *want = constant("want", n * V, 0), *rows = output("rows", n * V);
    float *logp = output("logp", n), *lse = output("lse", n), *dlogp = output("dlogp", n);
    Batch batch = {.n_targets = 0};
    for (size_t i = 0; i < n * V; i++) logits[i] += middle;
    for (size_t i = 0; i < n; i++) {
        target[i] = ignore && i % 3 == 1 ? -1 : (int)(7 * i + 2) % V;
        if (target[i] < 0) continue;
        memcpy(rows + batch.n_targets * V, logits + i * V, V * sizeof *rows);
        counted[batch.n_targets++] = target[i];
    }

    size_t count = batch.n_targets;
    logp_forward(logp, lse, rows, counted, count, V);
    double want_loss = next_token_loss(dlogp, logp, count, &batch, NULL, NULL);
    logp_backward(rows, dlogp, lse, rows, counted, count, V);
    for (size_t i = 0, row = 0; i < n; i++)
        if (target[i] >= 0) memcpy(want + i * V, rows + row++ * V, V * sizeof *rows);

    float loss = my_cross_entropy(dlogits, logits, target, n, V);
    if (gradient) compare("dlogits", dlogits, want, (size_t[]){n, V, 0});
    else compare_number("the loss", loss, want_loss);
}

static void test_cross_entropy(void) {
    try_softmax(0, 1, "softmax",
                "e^x[i] divided by the sum of all e^x[j].");
    try_softmax(1000, 1, "softmax of numbers around 1000",
                "e^1000 is too large for a float; subtract the largest x.");
    try_softmax(-20000, 1, "softmax of numbers around -20000",
                "the search for the largest x begins with x[0], not with 0 or -10000.");
    try_softmax_backward();
    try_cross_entropy(1, 0, 1, false, false, "loss of one row",
                      "log(sum of e^x) - x[target].");
    try_cross_entropy(1, 0, 1, false, true, "gradient of one row",
                      "softmax - onehot: 1 is subtracted at the target.");
    try_cross_entropy(5, 0, 1, false, false, "loss of several rows",
                      "the mean over the rows.");
    try_cross_entropy(5, 0, 1, false, true, "gradient of several rows",
                      "the loss is a mean, so its gradient is divided by the same count.");
    try_cross_entropy(7, 0, 1, true, false, "loss, some rows do not count",
                      "target -1 adds nothing; the divisor is the number of rows that count.");
    try_cross_entropy(7, 0, 1, true, true, "gradient, some rows do not count",
                      "dlogits of a row with target -1 is 0; the divisor is the number of rows "
                      "that count.");
    try_cross_entropy(5, 0, 100, false, false, "loss, logits up to some 100",
                      "subtract the largest logit; and not log(p), which may be log(0), but "
                      "x[target] - log_sum_exp.");
    try_cross_entropy(5, -150, 1, false, false, "loss, all logits around -150",
                      "subtract the largest logit; it is negative.");
    try_cross_entropy(5, 150, 1, false, true, "gradient, all logits around 150",
                      "subtract the largest logit here too.");
}

// =================================================================================================
// 4. RMSNorm
// =================================================================================================

static void try_rmsnorm(size_t n, size_t C, double size, double eps, const char *name,
                        const char *where_to_look) {
    begin(name, where_to_look);
    float *x = random_array("x", n * C, size), *w = random_array("w", C, 1);
    float *y = output("y", n * C), *rstd = output("rstd", n);
    float *want = output("want", n * C), *want_rstd = output("want", n);
    rmsnorm_forward(want, want_rstd, x, w, n, C, eps);
    my_rmsnorm(y, rstd, x, w, n, C, eps);
    compare("y", y, want, (size_t[]){n, C, 0});
    compare("rstd", rstd, want_rstd, (size_t[]){n, 0});
}

// Compares dx or dw, which hold random numbers of size `before` at the start. With `direct`, dy is
// such that the sum over j of dy[j] w[j] x[j] is 0.
static void try_rmsnorm_backward(size_t n, size_t C, double before, bool direct, bool compare_dx,
                                 const char *name, const char *where_to_look) {
    begin(name, where_to_look);
    float *x = random_array("x", n * C, 1), *w = random_array("w", C, 1);
    float *dy = random_array("dy", n * C, 1), *y = output("y", n * C), *rstd = output("rstd", n);
    float *dx = random_array("dx", n * C, before), *want_dx = copy_of("want", dx, n * C);
    float *dw = random_array("dw", C, before), *want_dw = copy_of("want", dw, C);
    for (size_t i = 0; direct && i < n; i++) {
        double sum = 0;
        for (size_t c = 1; c < C; c++) sum += dy[i * C + c] * w[c] * x[i * C + c];
        dy[i * C] = -sum / (w[0] * x[i * C]);
    }
    rmsnorm_forward(y, rstd, x, w, n, C, 0.1f);
    rmsnorm_backward(want_dx, want_dw, dy, x, w, rstd, n, C);

    my_rmsnorm_backward(dx, dw, dy, x, w, rstd, n, C);
    if (compare_dx) compare("dx", dx, want_dx, (size_t[]){n, C, 0});
    else compare("dw", dw, want_dw, (size_t[]){C, 0});
}

static void test_rmsnorm(void) {
    try_rmsnorm(1, 7, 1, 0, "forward, one row",
                "y[c] = w[c] x[c] / sqrt(mean(x^2) + eps).");
    try_rmsnorm(4, 5, 1, 1e-6, "forward, several rows",
                "every row has its own r.");
    try_rmsnorm(3, 5, 0.1, 0.02, "forward, eps is not small",
                "eps is added to the mean, under the root.");
    try_rmsnorm(2, 3, 0, 0.01, "forward, x is 0",
                "eps under the root keeps r finite.");
    try_rmsnorm_backward(1, 7, 0, true, true, "dx, the direct path alone",
                         "the sum over j of dy[j] w[j] x[j] is 0 here, so dx[c] = dy[c] w[c] r.");
    try_rmsnorm_backward(1, 7, 0, false, true, "dx, both paths",
                         "the path through r: -r^3 x[c] / C * (sum over j of dy[j] w[j] x[j]).");
    try_rmsnorm_backward(4, 5, 0, false, true, "dx, several rows",
                         "r and the sum belong to one row.");
    try_rmsnorm_backward(1, 7, 0, false, false, "dw of one row",
                         "dw[c] = dy[c] x[c] r.");
    try_rmsnorm_backward(4, 5, 0, false, false, "dw of several rows",
                         "dw is the sum over all rows.");
    try_rmsnorm_backward(3, 5, 1, false, true, "dx is added to what is there",
                         "use +=.");
    try_rmsnorm_backward(3, 5, 1, false, false, "dw is added to what is there",
                         "use +=.");
}

// =================================================================================================
// 5. RoPE
// =================================================================================================

// The book's rotation of x (T, heads, D), the first token at position `past`.
static void book_rope(float *x, size_t T, size_t heads, size_t D, size_t past, float theta,
                      float direction) {
    Config config = {.head_dim = (long)D, .rope_theta = theta};
    float *cosine = constant("cosine", T * D / 2, 0), *sine = constant("sine", T * D / 2, 0);
    for (size_t t = 0; t < T; t++)
        for (size_t i = 0; i < D / 2; i++) {
            double angle = (past + t) * rope_frequency(&config, i);
            cosine[t * (D / 2) + i] = cos(angle);
            sine[t * (D / 2) + i] = sin(angle);
        }
    rope(x, cosine, sine, direction, 1, T, heads, D);
}

// With one_plane, only component 0 of each head is not 0.
static void try_rope(size_t T, size_t heads, size_t D, size_t past, float direction, bool one_plane,
                     const char *name, const char *where_to_look) {
    begin(name, where_to_look);
    size_t n = T * heads * D;
    float *x = random_array("x", n, 1), *want = output("want", n);
    for (size_t i = 0; i < n && one_plane; i++) x[i] = i % D == 0;
    memcpy(want, x, n * sizeof *x);
    book_rope(want, T, heads, D, past, 10000, direction);
    my_rope(x, T, heads, D, past, 10000, direction);
    compare("x", x, want, (size_t[]){T, heads, D, 0});
}

static void test_rope(void) {
    try_rope(1, 3, 6, 0, 1, false, "position 0 rotates nothing",
             "the angle is 0.");
    try_rope(1, 1, 8, 1, 1, true, "the pairs",
             "x is (1, 0, 0, ...), so component 0 becomes cos(1) and component D / 2 becomes "
             "sin(1).");
    try_rope(1, 1, 2, 1, 1, false, "one plane, both components",
             "is x[i] still the old one when x[i + D/2] is computed?");
    try_rope(1, 1, 10, 1, 1, false, "the angles of all planes",
             "plane i turns by position * theta^(-2i / D).");
    try_rope(1, 1, 6, 7, 1, false, "a position further on",
             "the position of the first token is past.");
    try_rope(5, 3, 6, 2, 1, false, "several tokens and heads",
             "all heads of a token have the same position, past + t.");
    try_rope(4, 3, 10, 3, -1, false, "backward",
             "direction -1 rotates by -angle: the sine changes its sign, the cosine does not.");
}

// =================================================================================================
// 6. Top-p
// =================================================================================================

static void try_distribution(double spread, double temperature, size_t k, double p,
                             const char *name, const char *where_to_look) {
    enum { V = 23 };
    begin(name, where_to_look);
    int order[200] = {0}; // longer than needed: then a k above V gives a wrong result, no crash
    float *logits = random_array("logits", V, spread), *probs = output("probs", V);
    float *want = output("want", V);
    Sampling s = {.temperature = temperature, .top_k = (long)k, .top_p = p,
                  .repetition_penalty = 1};
    sampling_distribution(want, logits, V, NULL, 0, &s);
    my_distribution(probs, order, logits, V, temperature, k, p);
    compare("probs", probs, want, (size_t[]){V, 0});
}

static void try_draw(const float *probs, size_t V, const float *u, size_t n, const char *name,
                     const char *where_to_look) {
    int got[16], want[16];
    begin(name, where_to_look);
    for (size_t i = 0; i < n; i++) {
        want[i] = sample_token(probs, V, u[i]);
        got[i] = my_draw(probs, V, u[i]);
        if (got[i] != want[i])
            fail("u = %g: token %d was drawn, but should be %d", u[i], got[i], want[i]);
    }
}

static void test_top_p(void) {
    try_distribution(1, 1, 0, 1, "softmax alone",
                     "k = 0 and p = 1 mean no limit.");
    try_distribution(100, 1, 0, 1, "large logits",
                     "e^100 is too large for a float; subtract the largest logit.");
    try_distribution(1, 0.5, 0, 1, "temperature",
                     "logits / temperature, before the softmax.");
    try_distribution(1, 0, 0, 1, "temperature 0",
                     "the largest logit gets 1, all others 0.");
    try_distribution(1, 1, 5, 1, "top-k",
                     "the k largest are left, and add up to 1.");
    try_distribution(1, 1, 100, 1, "k larger than V",
                     "then there is no limit.");
    try_distribution(1, 1, 0, 0.7, "top-p",
                     "the token that crosses p stays; the later ones are dropped. Divide by the "
                     "sum of the rest.");
    try_distribution(3, 1, 0, 0.01, "top-p below the largest probability",
                     "the most probable token always stays.");
    try_distribution(2, 3, 0, 0.6, "temperature and top-p",
                     "p is measured on the probabilities at this temperature.");
    try_distribution(1, 1, 8, 0.6, "top-k and top-p",
                     "p is measured on the probabilities of the k that are left: their sum is 1.");
    try_distribution(2, 0.8, 9, 0.8, "all three",
                     "temperature, top-k, softmax, top-p, divide.");

    const float probs[] = {0, 0.25f, 0, 0.5f, 0.25f, 0}, u[] = {0, 0.125f, 0.5f, 0.875f, 0.9999f};
    const float short_probs[] = {0.25f, 0.5f, 0.125f, 0};
    try_draw(probs, 6, u + 1, 3, "draw",
             "token v owns an interval of length probs[v]; the intervals follow each other.");
    try_draw(probs, 6, u, 5, "draw at the ends",
             "u = 0 is the first token with a probability above 0.");
    try_draw(short_probs, 4, u + 4, 1, "draw, the sum is less than 1",
             "rounding errors: return the last token with a probability above 0.");
}

// =================================================================================================
// 7. Byte-pair encoding
// =================================================================================================

// Trains the book's tokenizer with the words of a text, separated by spaces. Its ids of letters are
// in the order of the letters, as the bytes are; merge number m makes the token first + m.
static Tokenizer *book_train(const char *text, int n_merges) {
    Trainer *trainer = trainer_new(false);
    for (size_t n; *text; text += n + (text[n] == ' ')) {
        n = strcspn(text, " ");
        trainer_add(trainer, text, n);
    }
    return trainer_finish(trainer, N_ADDED + 256 + n_merges);
}

// An id of the book's tokenizer as an id of the whiteboard.
static int whiteboard_id(const Tokenizer *tok, int id) {
    return id >= N_ADDED + 256 ? id - N_ADDED : (unsigned char)tok->token[id].s[0];
}

// The letters of a token, or its id in parentheses if there is no such token.
static const char *shown(const Tokenizer *tok, int id) {
    static char text[4][64];
    static int turn;
    char *s = text[turn++ % 4];
    int book_id = id >= 256 ? id + N_ADDED : tok->byte_id[id & 255];
    if (id < 0 || book_id >= tok->vocab_size) snprintf(s, sizeof text[0], "(%d)", id);
    else snprintf(s, sizeof text[0], "%.*s", (int)tok->token[book_id].len, tok->token[book_id].s);
    return s;
}

enum { MOST_MERGES = 60, MOST_IDS = 2000 };

// Fills the book's merges of a text; returns how many there are.
static int book_merges(const Tokenizer *tok, Merge *merge) {
    int n = tok->vocab_size - N_ADDED - 256;
    for (size_t i = 0; i < tok->rank.n_slots; i++) {
        MapSlot slot = tok->rank.slot[i];
        if (!slot.key) continue;
        merge[slot.value] = (Merge){whiteboard_id(tok, pair_left(slot.key)),
                                    whiteboard_id(tok, pair_right(slot.key))};
    }
    return n;
}

static void try_bpe_train(const char *text, int n_merges, const char *name,
                          const char *where_to_look) {
    begin(name, where_to_look);
    Merge merge[MOST_MERGES], want[MOST_MERGES];
    int ids[MOST_IDS], n = 0;
    for (const char *s = text; *s; s++) ids[n++] = *s == ' ' ? -1 : *s;
    ids[n++] = -1;
    Tokenizer *tok = book_train(text, n_merges);
    int n_want = book_merges(tok, want);
    for (int m = 0; m < MOST_MERGES; m++) merge[m] = (Merge){-7, -7};

    int n_got = my_bpe_train(merge, n_merges, ids, n);
    for (int m = 0; m < n_want && m < n_got && !aspect_failed; m++)
        if (merge[m].left != want[m].left || merge[m].right != want[m].right)
            fail("merge number %d is %s + %s, but should be %s + %s", m, shown(tok, merge[m].left),
                 shown(tok, merge[m].right), shown(tok, want[m].left), shown(tok, want[m].right));
    if (n_got != n_want) fail("it returns %d merges, but there are %d", n_got, n_want);
    tokenizer_free(tok);
}

static void try_bpe_encode(const char *text, int n_merges, const char *word, const char *name,
                           const char *where_to_look) {
    begin(name, where_to_look);
    Merge merge[MOST_MERGES];
    Tokenizer *tok = book_train(text, n_merges);
    int ids[MOST_IDS], n_got, n = (int)strlen(word), n_learned = book_merges(tok, merge);
    Ids want = {0};
    Text got_text = {0}, want_text = {0};
    text_add(&got_text, "");
    for (int i = 0; i < n; i++) ids[i] = word[i];
    encode_word(tok, word, (size_t)n, &want);

    n_got = my_bpe_encode(ids, n, merge, n_learned);
    bool same = n_got == (int)want.n;
    for (int i = 0; i < (int)want.n; i++) {
        int id = whiteboard_id(tok, want.id[i]);
        same = same && ids[i] == id;
        text_printf(&want_text, " %s", shown(tok, id));
    }
    for (int i = 0; i < n_got && i < n; i++) text_printf(&got_text, " %s", shown(tok, ids[i]));
    if (!same) fail("%s becomes%s, but should become%s", word, got_text.s, want_text.s);
    free(got_text.s);
    free(want_text.s);
    free(want.id);
    tokenizer_free(tok);
}

static void test_bpe(void) {
    const char *low = "low low lower newest newest newest wider wider lowest";
    char random[1500];
    for (int i = 0; i < (int)sizeof random - 1; i++) {
        uint64_t x = splitmix64(i + 1);
        random[i] = x % 7 ? "aaabbcde"[x / 7 % 8] : ' ';
    }
    random[0] = 'a';
    random[sizeof random - 1] = 0;

    try_bpe_train("bab bab ab", 1, "one merge",
                  "the pair that occurs most often.");
    try_bpe_train("ba ba ba bc", 2, "the ends of words",
                  "a pair with -1 in it does not count.");
    try_bpe_train("zy xw xv", 3, "ties",
                  "equal counts: the smaller left id wins, then the smaller right id.");
    try_bpe_train("ab abc abc abc abcd abcd", 2, "merges of merges",
                  "a new token is a neighbour like any other.");
    try_bpe_train("ab ab", 5, "no pair is left",
                  "stop, and return the number of merges so far.");
    try_bpe_train("aaaaa aaa ab ab ab ab", 4, "pairs that overlap",
                  "aaa has the pair aa twice, and becomes aa + a.");
    try_bpe_train(low, 12, "a small text",
                  "the most frequent pair, ties, the ends of words.");
    try_bpe_train(random, 40, "a random text",
                  "the same, on a longer text.");
    try_bpe_encode(low, 12, "lowest", "encode a word of the text",
                   "replay the merges.");
    try_bpe_encode(low, 12, "slowlyest", "encode a new word",
                   "a pair that was never learned stays apart.");
    try_bpe_encode("aa aa", 1, "aaaaa", "encode pairs that overlap",
                   "from left to right: aaa becomes aa + a.");
    try_bpe_encode("bc bc bc ab ab", 2, "abc", "rank before place",
                   "bc was learned first, so it is merged first, though ab comes before it in "
                   "the word.");
    try_bpe_encode("ab ab ab ab bcx bcx bcx", 3, "abcx", "rank before length",
                   "bcx is a longer token, but ab was learned before its parts.");
    try_bpe_encode(random, 40, "abaabbacadaaabcaaeabb", "a random word",
                   "the pair with the lowest rank first, always.");
}

// =================================================================================================
// 8. AdamW
// =================================================================================================

typedef struct { long steps; double decay, gradient, lr; } AdamWCase;

// Several steps with random gradients of about this size.
static void try_adamw(AdamWCase c, const char *name, const char *where_to_look) {
    enum { SIZE = 9 };
    begin(name, where_to_look);
    float *w = random_array("w", SIZE, 1), *want_w = copy_of("want", w, SIZE);
    float *m = constant("m", SIZE, 0), *want_m = constant("want", SIZE, 0);
    float *v = constant("v", SIZE, 0), *want_v = constant("want", SIZE, 0);
    float *g = constant("g", SIZE, 0), *g_copy = constant("g", SIZE, 0);
    AdamW o = {.lr = c.lr, .beta1 = 0.9, .beta2 = 0.95, .eps = 1e-6, .weight_decay = c.decay};
    for (long step = 1; step <= c.steps; step++) {
        for (size_t i = 0; i < SIZE; i++)
            g[i] = g_copy[i] = c.gradient * gaussian(fnv1a64("g") + step, i);
        o.step = step;
        adamw_update(want_w, g_copy, want_m, want_v, SIZE, &o, c.decay, 1);
        my_adamw(w, m, v, g, SIZE, step, c.lr, 0.9f, 0.95f, 1e-6f, c.decay);
    }
    compare("m", m, want_m, (size_t[]){SIZE, 0});
    compare("v", v, want_v, (size_t[]){SIZE, 0});
    compare("w", w, want_w, (size_t[]){SIZE, 0});
}

static void test_adamw(void) {
    try_adamw((AdamWCase){1, 0, 1, 0.1}, "the first step",
              "corrected, m is g and v is g^2; so w moves by -lr * sign(g).");
    try_adamw((AdamWCase){5, 0, 1, 0.1}, "five steps",
              "m and v are kept uncorrected; step t divides by 1 - beta^t.");
    try_adamw((AdamWCase){3, 0, 1e-4, 0.1}, "tiny gradients",
              "eps is added to sqrt(v), not to v.");
    try_adamw((AdamWCase){2, 0, 1e-6, 0.1}, "gradients of about eps",
              "eps is added after the correction of v.");
    try_adamw((AdamWCase){1, 0.5, 0, 0.1}, "no gradient, weight decay",
              "w shrinks by lr * decay * w; m and v stay 0.");
    try_adamw((AdamWCase){5, 0.5, 1, 0.1}, "weight decay and gradients",
              "the decay takes the old w, times lr, and has no part in m and v.");
}

// =================================================================================================
// 9. The router
// =================================================================================================

enum Look { FORWARD, BACKWARD };

static void try_router(size_t N, size_t E, size_t K, bool renormalise, enum Look look,
                       const char *name, const char *where_to_look) {
    enum { MOST = 64 };
    begin(name, where_to_look);
    int choice[MOST], want_choice[MOST];
    float *scores = random_array("scores", N * E, 1), *prob = output("prob", N * E);
    float *mix = output("mix", N * K), *want_prob = output("want", N * E);
    float *want_mix = output("want", N * K), *dmix = random_array("dmix", N * K, 1);
    float *dprob = constant("dprob", N * E, 0), *want = output("want", N * E);
    float *dscores = output("dscores", N * E);
    softmax_forward(want_prob, scores, N, E);
    router_forward(want_mix, want_choice, want_prob, N, E, K, renormalise);
    router_backward(dprob, dmix, want_mix, want_choice, want_prob, N, E, K, renormalise);
    softmax_backward(want, dprob, want_prob, N, E);

    if (look == BACKWARD) {
        my_router_backward(dscores, dmix, want_prob, want_choice, want_mix, N, E, K, renormalise);
        compare("dscores", dscores, want, (size_t[]){N, E, 0});
        return;
    }
    for (size_t i = 0; i < N * K; i++) choice[i] = -7; // no expert: not written yet
    my_router(prob, choice, mix, scores, N, E, K, renormalise);
    compare("prob", prob, want_prob, (size_t[]){N, E, 0});
    compare("choice", from_ints("choice", choice, N * K),
            from_ints("want", want_choice, N * K), (size_t[]){N, K, 0});
    compare("mix", mix, want_mix, (size_t[]){N, K, 0});
}

static void test_router(void) {
    try_router(4, 5, 1, false, FORWARD, "forward, K = 1",
               "prob is a softmax over all E experts; mix is the largest of them.");
    try_router(4, 7, 3, false, FORWARD, "forward, K = 3",
               "the largest first, no expert twice; mix is their prob.");
    try_router(4, 7, 3, true, FORWARD, "forward, K = 3, renormalised",
               "mix of a token adds up to 1.");
    try_router(3, 4, 4, false, FORWARD, "forward, K = E",
               "all experts, sorted.");
    try_router(4, 5, 1, false, BACKWARD, "backward, K = 1",
               "mix = p of the chosen expert. All E scores have a part in it, through the "
               "softmax.");
    try_router(4, 7, 3, false, BACKWARD, "backward, K = 3",
               "dprob is dmix for chosen experts, 0 for the others; then the softmax.");
    try_router(4, 7, 3, true, BACKWARD, "backward, K = 3, renormalised",
               "mix_j = p_j / s, and s depends on every chosen p_k.");
    try_router(4, 5, 1, true, BACKWARD, "backward, K = 1, renormalised: 0",
               "mix is p / p = 1, so nothing changes it.");
    try_router(3, 4, 4, true, BACKWARD, "backward, K = E, renormalised",
               "s is 1 here, but its derivative is not 0.");
}

// =================================================================================================
// 10. DPO
// =================================================================================================

enum Margin { AT_REFERENCE, SMALL, FAR_ABOVE, FAR_BELOW };

// Row r has 2 + r % T tokens of the T.
static void try_dpo(size_t pairs, float beta, enum Margin margin, bool gradient, const char *name,
                    const char *where_to_look) {
    enum { T = 5, MOST_ROWS = 8 };
    begin(name, where_to_look);
    size_t rows = 2 * pairs, n = 0;
    int length[MOST_ROWS];
    double ref_sum[MOST_ROWS];
    float *logp = constant("logp", rows * T, 77), *dlogp = output("dlogp", rows * T);
    float *noise = random_array("noise", rows * T, 1), *ref = constant("ref_sum", rows, 0);
    float *real = output("real", rows * T), *dreal = output("dreal", rows * T);
    float *want = constant("want", rows * T, 0);
    Batch batch = batch_new(rows, T);
    for (size_t r = 0; r < rows; r++) {
        length[r] = (int)(2 + r % (T - 1));
        for (int t = 0; t < length[r]; t++) {
            logp[r * T + t] = -1 - fabsf(noise[r * T + t]);
            ref[r] += logp[r * T + t];
            batch.at[n] = (int)(r * T + t);
            real[n++] = logp[r * T + t];
        }
        double far = r % 2 ? -1000 : 1000;
        if (margin == SMALL) ref[r] += 1.5f * gaussian(fnv1a64("ref_sum"), r);
        if (margin == FAR_ABOVE) ref[r] -= far;
        if (margin == FAR_BELOW) ref[r] += far;
        ref_sum[r] = ref[r];
    }
    Figures unused = {0};
    Preferences preferences = {.beta = beta, .ref_sum = ref_sum};
    double want_loss = dpo_loss(dreal, real, n, &batch, &preferences, &unused);
    for (size_t i = 0; i < n; i++) want[batch.at[i]] = dreal[i];

    float loss = my_dpo(dlogp, logp, length, ref, pairs, T, beta);
    if (gradient) compare("dlogp", dlogp, want, (size_t[]){rows, T, 0});
    else compare_number("the loss", loss, want_loss);
    batch_free(&batch);
}

static void test_dpo(void) {
    try_dpo(1, 0.1f, AT_REFERENCE, false, "loss where the model is the reference",
            "the margin is 0, so it is log 2 = 0.693. Reference subtracted? Padding left out?");
    try_dpo(1, 0.1f, AT_REFERENCE, true, "gradient where the model is the reference",
            "-beta / 2 for each chosen token, +beta / 2 for each rejected one.");
    try_dpo(1, 0.5f, SMALL, false, "loss of a pair",
            "sums over tokens, not means; chosen minus rejected; times beta.");
    try_dpo(1, 0.5f, SMALL, true, "gradient of a pair",
            "the factor is sigmoid(-margin), which is small where the margin is large.");
    try_dpo(4, 0.3f, SMALL, false, "loss of several pairs",
            "the mean over the pairs.");
    try_dpo(4, 0.3f, SMALL, true, "gradient of several pairs",
            "divided by the number of pairs; each pair has a margin of its own.");
    try_dpo(2, 1, FAR_ABOVE, false, "loss, margin +2000",
            "nearly 0. e^2000 overflows.");
    try_dpo(2, 1, FAR_BELOW, false, "loss, margin -2000",
            "2000, and not infinite: log(1 + e^-|m|) - min(m, 0).");
    try_dpo(2, 1, FAR_BELOW, true, "gradient, margin -2000",
            "beta / pairs, with the signs as before.");
}

// =================================================================================================
// The table of the tasks
// =================================================================================================

static const struct { const char *name; void (*test)(void); } task[] = {
    {"attention", test_attention}, {"attention_backward", test_attention_backward},
    {"cross_entropy", test_cross_entropy}, {"rmsnorm", test_rmsnorm}, {"rope", test_rope},
    {"top_p", test_top_p}, {"bpe", test_bpe}, {"adamw", test_adamw}, {"router", test_router},
    {"dpo", test_dpo},
};

int main(int argc, char **argv) {
    program = "whiteboard";
    op = &plain;
    setvbuf(stdout, NULL, _IOLBF, 0); // if the program crashes, the lines before it are out
    size_t n_tasks = sizeof task / sizeof *task, i = 0;
    while (argc == 2 && i < n_tasks && strcmp(task[i].name, argv[1])) i++;
    if (argc != 2 || i == n_tasks) die("the one argument is the name of a task");

    task[i].test();
    end_aspect();
    printf("%d ok, %d failed\n", n_ok, n_failed);
    if (n_failed > 1) printf("Begin with the first failure; the others may have the same cause.\n");
    return n_failed > 0;
}
