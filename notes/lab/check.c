// check.c - is the mathematics of minimind.c right?
//
//     mkdir -p out/lab && cc -O3 -march=native -o out/lab/check notes/lab/check.c -lm
//
//     out/lab/check                      all built-in checks, a few seconds
//     out/lab/check notes/golden         the golden files of a folder; single files work too
//     out/lab/check --plain 1            the same with the definitions of chapter 2 in use
//
// A wrong gradient does not crash. The model still learns, only less, and the reason is hard to
// see. So each result of the book is compared with the same number, computed in another way:
//
//   1. Gradients    A gradient is the slope of the loss. We move each weight a little up and down
//                   and look at the loss; the backward pass must have found the same slope.
//   2. Objectives   The same for DPO, GRPO and CISPO.
//   3. Pairs        Chapter 11 replaces definitions of chapters 2 and 5 by faster functions. Each
//                   must compute what its definition computes.
//   4. Decoding     Token by token through the KV cache, or all tokens in one pass; one sequence
//                   alone, or 64 together: the logits must be the same.
//   5. Packing      Weights in 16 and 8 bits differ from the original by their rounding only.
//   6. Training     A step in several passes, AdamW, the order of the data, random numbers.
//   7. Files        What is saved is what is loaded, in every number format; other programs'
//                   configurations.
//   8. Answers      Which answers count as right, what GRPO rewards, errors of means.
//   9. Golden       Losses, gradients and weights that PyTorch has computed in double precision
//                   from the same weights. notes/golden/README.md describes these files.
//
// Each line of the output is one comparison: ok or FAILED, what was compared, the largest error,
// and the largest error that is allowed. The last line counts them; exit status 1 if any failed.
//
// A float has 7 digits. The difference of two nearly equal losses keeps about 3 of them, so section
// 1 has to allow 3 %. With 16 digits it allows one part in a million. The same source compiled for
// double is therefore the sharper test (one line; the Makefile has it as check-double):
//
//     cc -O3 -march=native -Dfloat=double -Dexpf=exp -Dsqrtf=sqrt -Dlogf=log -Dfmaxf=fmax
//        -Dfabsf=fabs -o out/lab/check-double notes/lab/check.c -lm

// grpo.c has two more objectives, and includes the book.
#define main grpo_main
#include "grpo.c"
#undef main
#include <float.h>

enum { PRECISE = sizeof(float) == 8 }; // compiled for double

static struct { long stop; } own_options;
static const Field check_options[] = {
    {"stop", "*", 'i', 0, 0, 1, 0, "1: end at the first failure"}};

static int n_passed, n_failed;

// One line of the output.
__attribute__((format(printf, 3, 4)))
static void check_error(double error, double limit, const char *what, ...) {
    char name[200];
    va_list args;
    va_start(args, what);
    vsnprintf(name, sizeof name, what, args);
    va_end(args);

    bool ok = error <= limit; // false if the error is NaN
    if (ok) n_passed++;
    else n_failed++;
    printf("%-6s %-64s error %8.2e  limit %8.2e\n", ok ? "ok" : "FAILED", name, error, limit);
    if (!ok && own_options.stop) exit(1);
}

// The larger of two errors; NaN if one is NaN, while fmax() would drop it.
static double larger_error(double a, double b) { return isnan(a) || b <= a ? a : b; }

// The largest difference of n pairs of numbers.
static double largest_difference(const float *got, const float *want, size_t n) {
    double worst = 0;
    for (size_t i = 0; i < n; i++) worst = larger_error(worst, fabs((double)got[i] - want[i]));
    return worst;
}

static void **borrowed; // (n_borrowed)
static size_t n_borrowed, borrowed_cap;

// Memory that lasts until release(). Most arrays here are small, and needed for one check only.
static void *borrow(size_t n, size_t size) {
    borrowed = grow(borrowed, &borrowed_cap, n_borrowed + 1, sizeof *borrowed);
    borrowed[n_borrowed] = xcalloc(n, size);
    return borrowed[n_borrowed++];
}

static void release(void) {
    while (n_borrowed > 0) free(borrowed[--n_borrowed]);
}

// =================================================================================================
// 1. Gradients against finite differences
//
// Every variant of the model, so small that each single weight can be moved. The code that runs is
// that of a large model.
// =================================================================================================

typedef struct {
    const char *name, *fields; // fields: what differs from the configuration in small_model()
    bool padded;               // rows of different lengths
} Variant;

static const Variant check_variant[] = {
    {"dense", "", false},
    {"dense without q/k norm", "qk_norm=0 num_key_value_heads=4", false},
    {"YaRN", "yarn=1 yarn_original_max=4 yarn_factor=4 yarn_beta_fast=2 yarn_beta_slow=0.25 "
             "rope_theta=100 yarn_attention_factor=1.1", false},
    {"odd sizes", "vocab_size=11 hidden_size=9 num_attention_heads=3 num_key_value_heads=1 "
                  "head_dim=6 intermediate_size=5", false},
    {"top-1 raw", "use_moe=1 router_aux_loss_coef=0", false},
    {"top-1 renormalised", "use_moe=1 norm_topk_prob=1 router_aux_loss_coef=0", false},
    {"top-1 renormalised, batch balance",
     "use_moe=1 norm_topk_prob=1 router_aux_loss_coef=0.5", false},
    {"top-2, batch balance", "use_moe=1 num_experts_per_tok=2 router_aux_loss_coef=0.3", false},
    {"top-2 of 6 raw, sequence balance",
     "use_moe=1 num_experts=6 num_experts_per_tok=2 seq_aux=1 norm_topk_prob=0 "
     "router_aux_loss_coef=0.3", false},
    {"top-2 and 2 shared, sequence balance",
     "use_moe=1 num_experts_per_tok=2 n_shared_experts=2 seq_aux=1 router_aux_loss_coef=0.3",
     false},
    {"padding, batch balance", "use_moe=1 num_experts_per_tok=2 router_aux_loss_coef=0.3", true},
    {"padding, sequence balance",
     "use_moe=1 num_experts_per_tok=2 seq_aux=1 router_aux_loss_coef=0.3", true},
};
enum { VARIANTS = sizeof check_variant / sizeof *check_variant };

static Config small_config(const Variant *v, const char *more) {
    Config c = config_preset("minimind3");
    config_parse(&c, "vocab_size=13 hidden_size=8 num_hidden_layers=2 num_attention_heads=4 "
                 "num_key_value_heads=2 head_dim=4 intermediate_size=7 rope_theta=100", v->name);
    config_parse(&c, v->fields, v->name);
    config_parse(&c, more, v->name);
    config_complete(&c, v->name);
    return c;
}

// A model of a variant, with `more` fields set. Its weights are far larger than at the start of
// training, so that every nonlinearity has an effect.
static Model *small_model(const Variant *v, const char *more) {
    Model *model = model_new(small_config(v, more));
    model_allocate(model, true, 32);
    double spread = sqrt(1.28 / model->C); // 0.4 for C = 8
    for (Tensor *t = model->tensor; t < model->tensor + model->n_tensors; t++)
        for (size_t i = 0; i < tensor_size(t); i++)
            t->weight[i] = (is_matrix(t) ? 0 : 1) + spread * gaussian(fnv1a64(t->name), i);
    return model;
}

typedef struct { // a loss, and all that it depends on
    Model *model;
    Acts *acts;
    Batch batch;
    Objective *objective;
    const void *own; // what the objective needs beyond the batch
} Trial;

enum { ROWS = 4, ROW_TOKENS = 7, ALL_TOKENS = ROWS * ROW_TOKENS };

// Predicting the next token, with random ids. A quarter of the tokens are no targets.
static Trial trial_new(const Variant *v) {
    Trial trial = {.model = small_model(v, ""), .batch = batch_new(ROWS, ROW_TOKENS),
                   .objective = next_token_loss};
    trial.acts = acts_new(trial.model, TRAINING, ALL_TOKENS, 0, 0);
    Batch *b = &trial.batch;
    size_t V = trial.model->V;
    b->rows = ROWS;
    b->T = ROW_TOKENS;

    for (int i = 0; i < ALL_TOKENS; i++) {
        int row = i / ROW_TOKENS;
        b->length[row] = v->padded ? ROW_TOKENS - 2 * row : ROW_TOKENS; // 7, 5, 3, 1
        bool trained = i % ROW_TOKENS < b->length[row] && splitmix64(i + 100) % 4;
        b->ids[i] = (int)(splitmix64(i) % V);
        b->target[i] = trained ? (int)(splitmix64(i + 200) % V) : -1;
        b->n_targets += trained;
    }
    return trial;
}

static void trial_free(Trial *trial) {
    batch_free(&trial->batch);
    acts_free(trial->acts);
    model_free(trial->model);
}

// The loss with the weights as they are now.
static double loss_now(const Trial *trial) {
    Acts *a = trial->acts;
    const Batch *b = &trial->batch;
    Figures unused = {0};
    logp_of(trial->model, a, b, 0, b->rows);
    return trial->objective(a->dlogp, a->logp, a->n_out, b, trial->own, &unused) + a->aux_loss;
}

// THE HEART OF THIS PROGRAM. The derivative of the loss by a weight w is the limit of
//
//     (loss(w + step) - loss(w - step)) / (2 step)      for a small step.
//
// This needs nothing but the forward pass, so it is independent of every line of backward code. The
// step can be too large: the quotient differs from the derivative by a multiple of step^2. And it
// can be too small: the rounding errors of the two losses are divided by it. The best step is about
// the cube root of the precision of a number, 2e-3 for float and 1e-5 for double.
//
// The error is relative to the largest gradient of the tensor. (If a step changed the choice of a
// router, the loss would jump and the quotient would be wrong. With these weights none does.)
static void check_tensor(const Trial *trial, Tensor *t, const char *name, bool expect_zero) {
    double step = PRECISE ? 1e-5 : 2e-3;
    double worst = 0;   // difference between the quotient and the gradient
    double largest = 0; // gradient
    for (size_t i = 0; i < tensor_size(t); i++) {
        float w = t->weight[i];
        t->weight[i] = w + step;
        double loss_above = loss_now(trial);
        t->weight[i] = w - step;
        double loss_below = loss_now(trial);
        t->weight[i] = w;

        double slope = (loss_above - loss_below) / (2 * step);
        worst = larger_error(worst, fabs(slope - t->grad[i]));
        largest = larger_error(largest, fabs(t->grad[i]));
    }

    if (expect_zero) check_error(largest, 0, "%s: %s is 0", name, t->name);
    else check_error(worst / (largest + 1e-12), PRECISE ? 1e-6 : 3e-2, "%s: %s", name, t->name);
}

// One backward pass, and then every weight of every tensor in the table.
static void check_gradients(const Trial *trial, const char *name) {
    Model *model = trial->model;
    memset(model->grads, 0, model->n_params * sizeof *model->grads);
    loss_now(trial);
    model_backward(model, trial->acts);

    // A renormalised router with K = 1 learns from the balance loss only; see router_backward().
    bool silent_router = model->K == 1 && model->config.norm_topk_prob &&
                         model->config.router_aux_loss_coef == 0;
    for (Tensor *t = model->tensor; t < model->tensor + model->n_tensors; t++)
        check_tensor(trial, t, name, silent_router && strstr(t->name, "mlp.gate.weight"));
}

// Padding must have no part in the loss. If it had, it would have a part in the gradient too, and
// finite differences would agree. So each row is also run alone, with its padding and without.
static void check_padding(const Trial *trial, const char *name) {
    double worst = 0;
    for (int row = 0; row < ROWS; row++) {
        Trial alone = *trial;
        alone.batch.rows = 1;
        alone.batch.ids += row * ROW_TOKENS;
        alone.batch.target += row * ROW_TOKENS;
        alone.batch.length += row;
        double padded = loss_now(&alone);
        alone.batch.T = alone.batch.length[0];
        worst = larger_error(worst, fabs(loss_now(&alone) / padded - 1));
    }
    check_error(worst, PRECISE ? 1e-12 : 1e-6, "%s: the loss ignores padding", name);
}

// =================================================================================================
// 2. Objectives
//
// An objective is a function of logp alone, but its gradient is checked through the whole model:
// this also checks b->at, which maps the targets of a pass to the rows of the batch.
// =================================================================================================

// DPO, GRPO and CISPO, with random numbers for what they need beyond the batch.
static void check_objectives(bool moe) {
    const char *fields = "use_moe=1 num_experts_per_tok=2 router_aux_loss_coef=0.3";
    Trial trial = trial_new(&(Variant){"objectives", moe ? fields : "", false});
    double ref_sum[ROWS], advantage[ROWS];
    float old_logp[ALL_TOKENS], long_ago[ALL_TOKENS], ref_logp[ALL_TOKENS];
    int n_row_targets[ROWS] = {0};
    for (int i = 0; i < ALL_TOKENS; i++) {
        old_logp[i] = -3 + gaussian(5, i);
        long_ago[i] = -99 + gaussian(5, i);
        ref_logp[i] = -3 + gaussian(6, i);
        ref_sum[i / ROW_TOKENS] = -12 + gaussian(7, i);
        advantage[i / ROW_TOKENS] = gaussian(8, i);
        n_row_targets[i / ROW_TOKENS] += trial.batch.target[i] >= 0;
    }

    trial.objective = dpo_loss;
    trial.own = &(Preferences){.beta = 0.3, .ref_sum = ref_sum};
    check_gradients(&trial, moe ? "DPO, MoE" : "DPO");

    Policy policy = {.beta = 0.3, .epsilon = 0.2, .epsilon_high = 5, .old_logp = old_logp,
                   .ref_logp = ref_logp, .advantage = advantage, .n_row_targets = n_row_targets};
    trial.objective = policy_loss;
    trial.own = &policy;
    check_gradients(&trial, moe ? "GRPO, MoE" : "GRPO");

    // CISPO's gradient treats the ratio of probabilities as a constant, but a finite difference
    // changes it. With an old logp of about -99 all ratios are far above epsilon_high, and what is
    // clipped there is constant.
    policy.cispo = true;
    policy.old_logp = long_ago;
    check_gradients(&trial, moe ? "CISPO, MoE" : "CISPO");
    trial_free(&trial);
}

// DPO with margins of +-1000, where e^margin overflows: the loss is 0 and 1000, its slope 0 and
// beta.
static void check_margins(void) {
    for (int sign = -1; sign <= 1; sign += 2) {
        float logp[2] = {0, 0}, dlogp[2];
        double beta = 0.1, ref_sum[2] = {-sign * 1000 / beta, 0};
        Batch b = {.rows = 2, .T = 1, .at = (int[]){0, 1}, .n_targets = 2};
        Figures unused = {0};
        Preferences own = {.beta = beta, .ref_sum = ref_sum};
        double loss = dpo_loss(dlogp, logp, 2, &b, &own, &unused);

        double slope = sign > 0 ? 0 : beta;
        double error = fabs(loss - (sign > 0 ? 0 : 1000)) / 1000;
        error = larger_error(error, fabs(dlogp[0] + slope) + fabs(dlogp[1] - slope));
        check_error(error, 1e-6, "DPO, margin %d", sign * 1000);
    }
}

// =================================================================================================
// 3. Pairs: the definitions against the same, faster
//
// Every function of the table `fast` against its definition in the table `plain`. A function is
// called twice, once from each table, on the same random numbers. Then all arrays of the two calls
// are compared: the results, and also the inputs, which must not have changed.
//
// Each function is called for a list of cases. Their sizes are chosen to find what a fast version
// may get wrong: what remains after whole vectors, panels and tiles; row counts on both sides of a
// threshold above which another algorithm or several threads take over. Results hold random numbers
// before the call, which shows whether a function overwrites or accumulates.
// =================================================================================================

typedef struct { // the arrays of one call
    float *array[10];
    size_t size[10]; // numbers to compare; 0: an array of ints
    int n;
} Arrays;

// n random numbers from -scale to scale, as the next array of a call. They depend only on how many
// arrays the call already has, so both calls get the same ones.
static float *scaled_numbers(Arrays *a, size_t n, double scale) {
    float *x = borrow(n, sizeof *x);
    uint64_t stream = splitmix64(a->n);
    for (size_t i = 0; i < n; i++) x[i] = scale * (2 * uniform(stream, i) - 1);
    a->size[a->n] = n;
    a->array[a->n++] = x;
    return x;
}

static float *numbers(Arrays *a, size_t n) { return scaled_numbers(a, n, 1); }

// n random whole numbers from 0 to limit - 1.
static int *whole_numbers(Arrays *a, size_t n, size_t limit) {
    int *x = (int *)numbers(a, n);
    a->size[a->n - 1] = 0;
    for (size_t i = 0; i < n; i++) x[i] = (int)(splitmix64(i) % limit);
    return x;
}

// The largest difference in an array, relative to its largest number. (Numbers that should cancel
// out, like dq of a query that sees one key, have no size of their own: hence at least 0.1.)
static double arrays_error(const Arrays *want, const Arrays *got) {
    double worst = 0;
    for (int k = 0; k < want->n; k++) {
        const float *x = want->array[k]; // (n)
        size_t n = want->size[k];
        double largest = 0.1;
        for (size_t i = 0; i < n; i++) largest = fmax(largest, fabs(x[i]));
        worst = larger_error(worst, largest_difference(got->array[k], x, n) / largest);
    }
    return worst;
}

// ---- the cases ----------------------------------------------------------------------------------

typedef struct { // the sizes of case i; a kind of function uses some of them
    size_t i, n, in, out, C;
    size_t B, T, past, H, KV, D;
} Case;

// Three sizes of a matrix product: 1; no multiple of any block; more than a block of M, N or K; and
// row counts around THIN. Each comes in all three rotations, with and without `add`.
static Case linear_case(size_t i) {
    static const size_t size[][3] = {
        {1, 1, 1}, {3, 50, 7}, {7, 33, 300}, {8, 64, 1}, {13, 17, 19}, {97, 70, 513},
        {47, 48, 1601}, {49, 1000, 40}, {THIN - 1, 65, 33}, {THIN, 64, 32}, {THIN + 1, 63, 31}};
    const size_t *s = size[i / 6]; // (3)
    return (Case){.i = i, .n = s[i % 3], .out = s[(i + 1) % 3], .in = s[(i + 2) % 3]};
}
enum { linear_cases = 11 * 6 };

// n rows of C numbers. Loops use several threads above 100 rows or 10000 numbers; C includes whole
// vectors and what remains after them.
static Case row_case(size_t i) {
    static const size_t rows[] = {1, 5, 16, 100, 101, 260}, width[] = {2, 7, 16, 64, 97, 130};
    return (Case){.i = i, .n = rows[i % 6], .C = width[i / 6]};
}
enum { row_cases = 36 };

// Groups of 1, 2, 3 and 5 query heads; fewer and more queries than a tile has; an empty cache, and
// one that is longer than a tile.
static Case attention_case(size_t i) {
    static const size_t group[] = {1, 2, 3, 5}, queries[] = {1, 5, 64, TILE + 3};
    static const size_t past[] = {0, 1, 7, TILE + 2}, width[] = {2, 6, 8, 20};
    size_t KV = 1 + i / 8 % 2;
    return (Case){.i = i, .B = 1 + i % 3, .T = queries[i / 4 % 4], .past = past[i / 16],
                  .H = KV * group[i % 4], .KV = KV, .D = width[i / 2 % 4]};
}
enum { attention_cases = 64 };

// n numbers without a shape, among them one less and one more than a piece of sum_of_squares().
static Case flat_case(size_t i) {
    static const size_t size[] = {1, 7, 64, 4095, 4096, 4097, 10001, 30000};
    return (Case){.i = i, .n = size[i / 2]};
}
enum { flat_cases = 16 };

// ---- one call of each function -----------------------------------------------------------------

// From table `o`, with the sizes of case c, on new arrays in a. Where the model lets a result be
// written over an input, every second case does so too.

static void call_linear_forward(const Ops *o, Case c, Arrays *a) {
    float *y = numbers(a, c.n * c.out), *x = numbers(a, c.n * c.in), *w = numbers(a, c.out * c.in);
    o->linear_forward(y, x, w, c.n, c.in, c.out, c.i % 2);
}

static void call_linear_backward(const Ops *o, Case c, Arrays *a) {
    float *dx = numbers(a, c.n * c.in), *dw = numbers(a, c.out * c.in);
    float *dy = numbers(a, c.n * c.out), *x = numbers(a, c.n * c.in);
    float *w = numbers(a, c.out * c.in);
    o->linear_backward(dx, dw, dy, x, w, c.n, c.in, c.out, c.i % 2);
}

static void call_rmsnorm_forward(const Ops *o, Case c, Arrays *a) {
    float *y = numbers(a, c.n * c.C), *rstd = numbers(a, c.n);
    float *x = numbers(a, c.n * c.C), *w = numbers(a, c.C);
    o->rmsnorm_forward(y, rstd, x, w, c.n, c.C, 1e-5);
}

static void call_rmsnorm_backward(const Ops *o, Case c, Arrays *a) {
    float *y = numbers(a, c.n * c.C), *rstd = numbers(a, c.n);
    float *x = numbers(a, c.n * c.C), *w = numbers(a, c.C);
    float *dx = numbers(a, c.n * c.C), *dw = numbers(a, c.C), *dy = numbers(a, c.n * c.C);
    plain.rmsnorm_forward(y, rstd, x, w, c.n, c.C, 1e-5);
    o->rmsnorm_backward(dx, dw, dy, x, w, rstd, c.n, c.C);
}

static void call_rope(const Ops *o, Case c, Arrays *a) {
    float *x = numbers(a, c.B * c.T * c.H * c.D);
    float *cosine = numbers(a, c.T * c.D / 2), *sine = numbers(a, c.T * c.D / 2);
    o->rope(x, cosine, sine, c.i / 16 % 2 ? 1 : -1, c.B, c.T, c.H, c.D);
}

static void call_attention_forward(const Ops *o, Case c, Arrays *a) {
    size_t heads = c.B * c.T * c.H, keys = c.B * (c.past + c.T) * c.KV;
    double scale = c.past + c.T > 1 ? 2 : 50; // of a single key even e^-500 becomes p = 1
    float *out = numbers(a, heads * c.D), *lse = numbers(a, heads);
    float *q = scaled_numbers(a, heads * c.D, scale), *k = scaled_numbers(a, keys * c.D, scale);
    float *v = numbers(a, keys * c.D);
    o->attention_forward(out, lse, q, k, v, c.B, c.T, c.past, c.H, c.KV, c.D);
}

static void call_attention_backward(const Ops *o, Case c, Arrays *a) {
    size_t heads = c.B * c.T * c.H, keys = c.B * c.T * c.KV; // in training there is no past
    float *q = scaled_numbers(a, heads * c.D, 2), *k = scaled_numbers(a, keys * c.D, 2);
    float *v = numbers(a, keys * c.D), *dq = numbers(a, heads * c.D);
    float *dk = numbers(a, keys * c.D), *dv = numbers(a, keys * c.D);
    float *dout = numbers(a, heads * c.D), *out = numbers(a, heads * c.D), *lse = numbers(a, heads);
    plain.attention_forward(out, lse, q, k, v, c.B, c.T, 0, c.H, c.KV, c.D);
    o->attention_backward(dq, dk, dv, dout, out, lse, q, k, v, c.B, c.T, c.H, c.KV, c.D);
}

static void call_swiglu_forward(const Ops *o, Case c, Arrays *a) {
    float *gate = scaled_numbers(a, c.n, c.i % 2 ? 3 : 200); // e^200 is infinite in float
    float *h = numbers(a, c.n), *up = numbers(a, c.n);
    o->swiglu_forward(h, gate, up, c.n);
}

static void call_swiglu_backward(const Ops *o, Case c, Arrays *a) {
    float *gate = scaled_numbers(a, c.n, c.i % 2 ? 3 : 200), *up = numbers(a, c.n);
    float *dgate = numbers(a, c.n), *dh = numbers(a, c.n);
    float *dup = c.i / 2 % 2 ? dh : numbers(a, c.n);
    o->swiglu_backward(dgate, dup, dh, gate, up, c.n);
}

// Rows of logits. In half of the cases all are `below` 0 by so much that e^x is 0: only a function
// that subtracts the true maximum of a row can work with them. (A logp is a small difference of two
// large numbers. In float its digits would be lost at -20000, so there it is called with 200.)
static float *logits_numbers(Arrays *a, Case c, double scale, double below) {
    float *x = scaled_numbers(a, c.n * c.C, scale);
    for (size_t i = 0; i < c.n * c.C && c.i >= row_cases / 2; i++) x[i] -= below;
    return x;
}

static void call_softmax_forward(const Ops *o, Case c, Arrays *a) {
    float *x = logits_numbers(a, c, 30, 20000);
    float *p = c.i / 6 % 2 ? x : numbers(a, c.n * c.C);
    o->softmax_forward(p, x, c.n, c.C);
}

// 1, 2 or 3 copies of each of n tokens, in permuted rows (1009 is prime, and more than all copies).
// Without weights, combine_forward() is the backward pass of gather_forward().
static void call_combine_forward(const Ops *o, Case c, Arrays *a) {
    size_t K = 1 + c.i / 6 % 3, copies = c.n * K;
    float *out = numbers(a, c.n * c.C), *y = numbers(a, copies * c.C);
    float *weight = c.i < row_cases / 2 ? numbers(a, copies) : NULL;
    int *row = whole_numbers(a, copies, 1);
    for (size_t i = 0; i < copies; i++) row[i] = (int)(i * 1009 % copies);
    o->combine_forward(out, y, weight, row, c.n, K, c.C);
}

static void call_combine_backward(const Ops *o, Case c, Arrays *a) {
    size_t K = 1 + c.i / 6 % 3, copies = c.n * K;
    float *dy = numbers(a, copies * c.C), *dweight = numbers(a, copies);
    float *dout = numbers(a, c.n * c.C), *y = numbers(a, copies * c.C);
    float *weight = numbers(a, copies);
    int *row = whole_numbers(a, copies, 1);
    for (size_t i = 0; i < copies; i++) row[i] = (int)(i * 1009 % copies);
    o->combine_backward(dy, dweight, dout, y, weight, row, c.n, K, c.C);
}

static void call_logp_forward(const Ops *o, Case c, Arrays *a) {
    float *logp = numbers(a, c.n), *lse = numbers(a, c.n);
    float *logits = logits_numbers(a, c, 10, PRECISE ? 20000 : 200);
    o->logp_forward(logp, lse, logits, whole_numbers(a, c.n, c.C), c.n, c.C);
}

static void call_logp_backward(const Ops *o, Case c, Arrays *a) {
    float *logits = logits_numbers(a, c, 10, 0);
    float *lse = numbers(a, c.n), *logp = numbers(a, c.n), *dlogp = numbers(a, c.n);
    float *dlogits = c.i / 6 % 2 ? logits : numbers(a, c.n * c.C);
    int *target = whole_numbers(a, c.n, c.C);
    plain.logp_forward(logp, lse, logits, target, c.n, c.C);
    o->logp_backward(dlogits, dlogp, lse, logits, target, c.n, c.C);
}

static void call_sum_of_squares(const Ops *o, Case c, Arrays *a) {
    float *sum = numbers(a, 1);
    *sum = o->sum_of_squares(numbers(a, c.n), c.n);
}

static void call_adamw_update(const Ops *o, Case c, Arrays *a) {
    AdamW adamw = {1e-2, 0.9, 0.95, 1e-8, 0.1, 1, c.i % 2 ? 1 : 1000};
    float *w = numbers(a, c.n), *g = numbers(a, c.n), *m = numbers(a, c.n), *v = numbers(a, c.n);
    for (size_t i = 0; i < c.n; i++) v[i] *= v[i]; // a mean of squares
    for (size_t i = 0; i < c.n; i += 5) g[i] = m[i] = v[i] = 0; // of an expert without tokens
    o->adamw_update(w, g, m, v, c.n, &adamw, c.i / 2 % 2 ? adamw.weight_decay : 0, 0.5);
}

// ---- all pairs ----------------------------------------------------------------------------------

static const struct {
    const char *name;
    void (*call)(const Ops *o, Case c, Arrays *a);
    Case (*case_at)(size_t i);
    size_t cases;
} pair_checks[] = {
#define PAIR(function, kind) {#function, call_##function, kind##_case, kind##_cases}
    PAIR(linear_forward, linear), PAIR(linear_backward, linear),
    PAIR(rmsnorm_forward, row), PAIR(rmsnorm_backward, row),
    PAIR(rope, attention), PAIR(attention_forward, attention), PAIR(attention_backward, attention),
    PAIR(swiglu_forward, flat), PAIR(swiglu_backward, flat),
    PAIR(softmax_forward, row),
    PAIR(combine_forward, row), PAIR(combine_backward, row),
    PAIR(logp_forward, row), PAIR(logp_backward, row),
    PAIR(sum_of_squares, flat), PAIR(adamw_update, flat),
#undef PAIR
};
enum { PAIR_CHECKS = sizeof pair_checks / sizeof *pair_checks };

// A new function of struct Ops does not compile until it has a line above. The last three members
// are for packed weights, have no definition, and are checked in section 5.
_Static_assert(PAIR_CHECKS + 3 == sizeof(Ops) / sizeof(void (*)(void)),
               "pair_checks[] lacks a function of struct Ops");

// One line for each pair: the largest error of all its cases.
static void check_pairs(void) {
    for (int p = 0; p < PAIR_CHECKS; p++) {
        double worst = 0;
        for (size_t i = 0; i < pair_checks[p].cases; i++) {
            Arrays want = {.n = 0}, got = {.n = 0};
            pair_checks[p].call(&plain, pair_checks[p].case_at(i), &want);
            pair_checks[p].call(&fast, pair_checks[p].case_at(i), &got);
            worst = larger_error(worst, arrays_error(&want, &got));
            release();
        }
        check_error(worst, PRECISE ? 1e-13 : 5e-6, "%s, fast and plain", pair_checks[p].name);
    }
}

// fast_exp and fast_sqrt have no definition in the book: they replace functions of libm, over the
// whole range of a float.
static void check_exponentials(void) {
    double worst = 0;
    for (double x = -87; x < 88; x += 0.0137)
        worst = larger_error(worst, fabs(fast_exp((float)x) / exp((float)x) - 1));
    check_error(worst, 2e-7, "e^x against libm");

    // At these ends the results are 0, denormal or infinite.
    static const float edge[] = {-INFINITY, -200, -104, -100, -90, 0, 88, 89, 200, INFINITY};
    worst = isnan(fast_exp(NAN)) ? 0 : INFINITY;
    for (size_t i = 0; i < sizeof edge / sizeof *edge; i++) {
        float got = fast_exp(edge[i]), want = expf(edge[i]);
        if (got != want) worst = larger_error(worst, fabs(got - want) / (want + FLT_MIN));
    }
    check_error(worst, 3e-7, "e^x at the ends of its range, and of NaN");

    worst = fast_sqrt(0);
    for (double x = 1e-37; x < 1e37; x *= 1.0137)
        worst = larger_error(worst, fabs(fast_sqrt((float)x) / sqrt((float)x) - 1));
    check_error(worst, 3e-7, "square root against libm");
}

// =================================================================================================
// 4. Decoding
//
// A chat computes the same logits as training, but in other portions: a prompt in passes, then
// token by token, with k and v of the past from the cache, and many sequences at once.
// =================================================================================================

// Wide enough that the order of additions in a product can differ. (With 8 numbers it cannot.)
static const char *const wide = "hidden_size=72 head_dim=18 intermediate_size=100";

// The KV cache against the full forward pass, which sees all tokens at once. Two sequences of
// different lengths share each step. Their slots are exchanged, and the longer prompt needs two
// passes.
static void check_decoding(const Variant *v) {
    enum { T = 9, PASS_ROWS = 3 };
    Model *model = small_model(v, wide);
    Acts *full = acts_new(model, TRAINING, 2 * T, 0, 0);
    Acts *cached = acts_new(model, INFERENCE, PASS_ROWS, 2, T);
    int ids[2 * T], target[2 * T] = {0};    // (2, T); every row has a target and so gets logits
    int length[2] = {T, T}, at[2 * T];
    Batch batch = {.rows = 2, .T = T, .ids = ids, .target = target, .length = length, .at = at};
    int slot[2] = {1, 0}, past[2] = {4, 2}; // past: at first the lengths of the prompts
    double worst = 0;
    for (int i = 0; i < 2 * T; i++) ids[i] = (int)(splitmix64(i) % model->V);
    logp_of(model, full, &batch, 0, 2);
    for (int b = 0; b < 2; b++) prefill(model, cached, ids + b * T, past[b], 0, slot[b]);

    while (past[1] < T) {
        int first = past[0] == T; // 1: sequence 0 is complete, sequence 1 goes on alone
        int next[2] = {ids[first ? 0 : past[0]], ids[T + past[1]]};
        extend(model, cached, next + first, 2 - first, 1, past + first, slot + first);
        for (int b = first; b < 2; b++) {
            const float *want = full->logits + (b * T + past[b]) * model->V; // (V)
            const float *got = cached->logits + (b - first) * model->V;      // (V)
            worst = larger_error(worst, largest_difference(got, want, model->V));
            past[b]++;
        }
    }
    check_error(worst, 1e-5, "%s: logits token by token", v->name);
    acts_free(full);
    acts_free(cached);
    model_free(model);
}

enum { TOGETHER = 64 }; // sequences that eval and GRPO decode at once

// The largest difference between the logits of a step that all sequences take together and those
// of each sequence alone. The step feeds the last token of each answer; the cache has the others.
static double together_error(const Model *model, Acts *a, const Answer *answer) {
    size_t V = model->V;
    int next[TOGETHER], past[TOGETHER], slot[TOGETHER];
    float *together = borrow(TOGETHER * V, sizeof *together); // (TOGETHER, V)
    double worst = 0;
    for (int i = 0; i < TOGETHER; i++) {
        past[i] = (int)answer[i].ids.n - 1;
        next[i] = answer[i].ids.id[past[i]];
        slot[i] = i;
    }
    extend(model, a, next, TOGETHER, 1, past, slot);
    memcpy(together, a->logits, TOGETHER * V * sizeof *together);

    for (size_t i = 0; i < TOGETHER; i++) {
        extend(model, a, &next[i], 1, 1, &past[i], &slot[i]);
        worst = larger_error(worst, largest_difference(a->logits, together + i * V, V));
    }
    release();
    return worst;
}

// 1 if a drawn token of the answer is not the most probable one under the full forward pass, where
// no cache can be wrong.
static int greedy_error(const Model *model, const Answer *answer) {
    size_t T = answer->ids.n, V = model->V;
    Acts *full = acts_new(model, TRAINING, T, 0, 0);
    Batch b = {.rows = 1, .T = T, .ids = answer->ids.id, .target = answer->ids.id,
               .length = &(int){(int)T}, .at = borrow(T, sizeof(int))};
    int wrong = 0;
    logp_of(model, full, &b, 0, 1);
    for (size_t t = answer->prompt; t < T; t++) {
        const float *logits = full->logits + (t - 1) * V; // (V)
        float best = logits[0];
        for (size_t v = 1; v < V; v++) best = fmaxf(best, logits[v]);
        wrong |= logits[answer->ids.id[t]] < best - 1e-4;
    }
    acts_free(full);
    release();
    return wrong;
}

// At temperature 1 each answer draws from random numbers of its own: neighbours with equal prompts
// say different things, and the same call again says the same.
static void check_random_drawing(const Model *model, Acts *a, const Tokenizer *tok, Answer *answer,
                                 const char *name) {
    Sampling random = {.temperature = 1, .top_p = 1, .repetition_penalty = 1,
                       .max_new_tokens = 6, .seed = 3};
    int *first = borrow(TOGETHER * 6, sizeof *first); // (TOGETHER, 6)
    int equal = 0, changed = 0;
    for (int again = 0; again < 2; again++) {
        complete(model, a, tok, answer, TOGETHER, &random, false);
        for (int i = 0; i < TOGETHER; i++) {
            const int *drawn = answer[i].ids.id + answer[i].prompt; // (6)
            if (again) changed += memcmp(first + i * 6, drawn, 6 * sizeof *drawn) != 0;
            memcpy(first + i * 6, drawn, 6 * sizeof *drawn);
            if (i % 2) equal += !memcmp(first + (i - 1) * 6, drawn, 6 * sizeof *drawn);
        }
    }
    check_error(changed, 0, "%s: the same seed draws the same", name);
    check_error(equal, 6, "%s: equal prompts get different answers", name); // of 2 * 32 pairs
    release();
}

// Greedy answers that are drawn together are the same as those drawn alone, and those of the full
// forward pass. Prompts have 3 to 5 tokens. Each occurs twice: complete() copies the cache of the
// first to the second.
static void check_drawing(const Variant *v) {
    enum { LONGEST_PROMPT = 5, NEW_TOKENS = 6 };
    Model *model = small_model(v, wide);
    Acts *a = acts_new(model, INFERENCE, TOGETHER, TOGETHER, LONGEST_PROMPT + NEW_TOKENS);
    Token *empty = xcalloc(model->V, sizeof *empty); // (V) tokens without text
    Tokenizer tok; // of which decoding uses the size, the end tokens (none) and the texts
    memset(&tok, -1, sizeof tok);
    tok.vocab_size = (int)model->V;
    tok.token = empty;
    Sampling greedy = {.top_p = 1, .repetition_penalty = 1, .max_new_tokens = NEW_TOKENS};
    Answer answer[TOGETHER];
    memset(answer, 0, sizeof answer);
    for (int i = 0; i < TOGETHER; i++)
        for (int t = 0; t < LONGEST_PROMPT - i / 2 % 3; t++)
            ids_push(&answer[i].ids, (int)(splitmix64(i / 2 * 100 + t) % model->V));
    complete(model, a, &tok, answer, TOGETHER, &greedy, false);
    double error = together_error(model, a, answer);

    int wrong = 0, not_greedy = 0, wrong_length = 0;
    for (int i = 0; i < TOGETHER; i++) {
        const Ids *ids = &answer[i].ids;
        Answer alone = {.done = false};
        for (size_t t = 0; t < answer[i].prompt; t++) ids_push(&alone.ids, ids->id[t]);
        complete(model, a, &tok, &alone, 1, &greedy, false);
        wrong += alone.ids.n != ids->n || memcmp(alone.ids.id, ids->id, ids->n * sizeof *ids->id);
        not_greedy += greedy_error(model, &alone);
        wrong_length += alone.ids.n != alone.prompt + NEW_TOKENS;
        free(alone.ids.id);
        free(alone.text.s);
    }
    check_error(wrong, 0, "%s: %d answers drawn together", v->name, TOGETHER);
    check_error(error, 1e-5, "%s: logits of %d together", v->name, TOGETHER);
    check_error(not_greedy, 0, "%s: each token is the best of the full pass", v->name);
    check_error(wrong_length, 0, "%s: as many tokens as asked for", v->name);
    check_random_drawing(model, a, &tok, answer, v->name);
    for (int i = 0; i < TOGETHER; i++) {
        free(answer[i].ids.id);
        free(answer[i].text.s);
    }
    free(empty);
    acts_free(a);
    model_free(model);
}

// =================================================================================================
// 5. Packed weights
//
// bf16 keeps 8 significant bits, so rounding changes a number by at most 1/256 of itself. int8 has
// 127 steps up to the largest number of a block; rounding moves a number by at most half a step,
// 1/254 of the largest.
// =================================================================================================

// What the rounding of x[i] is relative to: the largest number of its block, or with bf16 itself.
static float largest_in_block(const float *x, size_t i, int bits) {
    size_t size = bits == 8 ? INT8_BLOCK : 1, first = i / size * size;
    float most = 0;
    for (size_t k = first; k < first + size; k++) most = fmaxf(most, fabsf(x[k]));
    return most;
}

// Weights that were packed and unpacked differ by no more than their rounding. The product with
// packed weights equals the product with the unpacked ones. One row, a few rows and more than THIN
// rows take different ways through packed_linear().
static void check_packing(int bits) {
    enum { OUT = 101, IN = 3 * INT8_BLOCK, MOST_ROWS = THIN + 2 };
    static const size_t row_count[] = {1, 3, MOST_ROWS};
    const char *kind = bits == 16 ? "bf16" : "int8";
    Model model = {.tensor = &(Tensor){.rows = OUT, .cols = IN, .std = 1}, .n_tensors = 1};
    Arrays a = {.n = 0};
    float *w = scaled_numbers(&a, OUT * IN, 1.7), *back = numbers(&a, OUT * IN);
    float *x = scaled_numbers(&a, MOST_ROWS * IN, 1.7);
    float *want = numbers(&a, MOST_ROWS * OUT), *got = numbers(&a, MOST_ROWS * OUT);
    double rounding = 0, product = 0;
    model_allocate(&model, false, bits);
    fast.pack_tensor(model.tensor, w);
    for (size_t o = 0; o < OUT; o++) fast.unpack_row(back + o * IN, model.tensor, o);
    for (size_t i = 0; i < OUT * IN; i++)
        rounding = larger_error(rounding, fabs(back[i] - w[i]) / largest_in_block(w, i, bits));
    check_error(rounding, bits == 16 ? 1.0 / 256 : 1.0 / 253, "%s weights", kind);

    for (int i = 0; i < 6; i++) {
        size_t n = row_count[i / 2];
        memcpy(got, want, n * OUT * sizeof *got); // odd i: the product is added to these
        plain.linear_forward(want, x, back, n, IN, OUT, i % 2);
        fast.packed_linear(got, x, model.tensor, n, i % 2);
        product = larger_error(product, largest_difference(got, want, n * OUT));
    }
    check_error(product, 1e-4, "a product with %s", kind);
    free(model.params);
    release();
}

// =================================================================================================
// 6. Training
//
// What a training step does with the gradients, and which rows it gets.
// =================================================================================================

// A step in several passes, the last one smaller, has the loss and the gradients of one pass. (With
// a balance loss over the batch it has not: that is computed per pass.)
static void check_passes(const Variant *v, Objective *objective, const void *own) {
    Trial trial = trial_new(v);
    Model *model = trial.model;
    float *whole = borrow(model->n_params, sizeof *whole); // (n_params) of one pass
    double loss = 0, worst = 0, largest = 0;
    for (size_t pass_rows = ROWS; pass_rows > 0; pass_rows--) {
        if (own && pass_rows % 2) continue; // pairs are not divided
        memset(model->grads, 0, model->n_params * sizeof *model->grads);
        Report r = accumulate_gradients(model, trial.acts, &trial.batch, pass_rows, objective, own);
        if (pass_rows == ROWS) {
            loss = r.loss + r.aux_loss;
            memcpy(whole, model->grads, model->n_params * sizeof *whole);
            for (size_t i = 0; i < model->n_params; i++) largest = fmax(largest, fabs(whole[i]));
        }
        worst = larger_error(worst, fabs(r.loss + r.aux_loss - loss) / loss);
        worst = larger_error(worst, largest_difference(model->grads, whole, model->n_params) /
                                    largest);
    }
    check_error(worst, PRECISE ? 1e-12 : 1e-5, "%s%s: a step in several passes",
                own ? "DPO, " : "", v->name);
    trial_free(&trial);
    release();
}

// One step of AdamW, computed by hand for all weights. Only matrices decay.
static double step_error(Trial *trial, const AdamW *o, double gradient) {
    Model *model = trial->model;
    size_t n = model->n_params;
    double norm = gradient * sqrt(n), worst = 0;
    double shrink = o->clip > 0 && norm > o->clip ? o->clip / (norm + 1e-6) : 1;
    float *before = borrow(n, sizeof *before);
    memcpy(before, model->params, n * sizeof *before);
    for (size_t i = 0; i < n; i++) {
        model->grads[i] = i % 2 ? gradient : -gradient;
        model->moment1[i] = 0.01;
        model->moment2[i] = 0.0004;
    }
    adamw_step(model, o, norm);

    for (const Tensor *t = model->tensor; t < model->tensor + model->n_tensors; t++)
        for (size_t i = t->offset; i < t->offset + tensor_size(t); i++) {
            double g = shrink * (i % 2 ? gradient : -gradient);
            double m = o->beta1 * 0.01 + (1 - o->beta1) * g;
            double v = o->beta2 * 0.0004 + (1 - o->beta2) * g * g;
            double w = before[i] * (1 - o->lr * (is_matrix(t) ? o->weight_decay : 0)) -
                       o->lr * m / (1 - pow(o->beta1, o->step)) /
                       (sqrt(v / (1 - pow(o->beta2, o->step))) + o->eps);
            worst = larger_error(worst, fabs(model->params[i] - w));
            worst = larger_error(worst, fabs(model->moment1[i] - m));
            worst = larger_error(worst, fabs(model->moment2[i] - v));
            worst = larger_error(worst, fabs(model->grads[i])); // cleared
        }
    release();
    return worst;
}

static void check_optimizer(void) {
    static const struct { const char *name; double clip, gradient; long step; } cases[] = {
        {"AdamW, first step", 0, 0.02, 1}, {"AdamW, step 10", 0, 0.02, 10},
        {"AdamW, clipped", 0.1, 0.5, 3}, {"AdamW, below the limit", 100, 0.02, 3}};
    Trial trial = trial_new(&check_variant[0]);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        AdamW o = {0.01, 0.9, 0.95, 1e-8, 0.3, cases[i].clip, cases[i].step};
        check_error(step_error(&trial, &o, cases[i].gradient), 2e-6, "%s", cases[i].name);
    }
    trial_free(&trial);

    // Warm-up rises in a line; the cosine ends at a tenth and has its middle half-way.
    double error = fabs(schedule(2, 5, 1000, 10) / schedule(2, 5, 1000, 0) - 0.5);
    error = fmax(error, fabs(schedule(2, 10, 1000, 10) - schedule(2, 10, 1000, 0)));
    error = fmax(error, fabs(schedule(2, 500, 1000, 10) - 1.1));
    error = fmax(error, fabs(schedule(2, 1000, 1000, 10) - 0.2));
    check_error(error, 1e-12, "the schedule of the learning rate");
}

// The weights at the start: random matrices of the right spread, norms of 1, other numbers for each
// tensor and seed.
static void check_start(void) {
    Config c = config_preset("tiny");
    config_complete(&c, "tiny");
    Model *model = model_new(c), *other = model_new(c);
    model_allocate(model, false, 32);
    model_allocate(other, false, 32);
    model_init(model, 1);
    model_init(other, 2);
    double spread = 0, norms = 0;
    int equal = 0;
    for (int i = 0; i < model->n_tensors; i++) {
        const Tensor *t = &model->tensor[i];
        size_t n = tensor_size(t);
        for (size_t k = 0; k < n && !is_matrix(t); k++) norms = fmax(norms, fabs(t->weight[k] - 1));
        if (!is_matrix(t)) continue;
        bool adds = strstr(t->name, "o_proj") || strstr(t->name, "down_proj");
        double want = 0.02 / (adds ? sqrt(2 * model->L) : 1);
        double got = sqrt(sum_of_squares(t->weight, n) / n);
        spread = larger_error(spread, fabs(got / want - 1) * sqrt(2 * n)); // in standard errors
        equal += !memcmp(t->weight, other->tensor[i].weight, n * sizeof(float));
        if (i > 0 && tensor_size(t - 1) == n)
            equal += !memcmp(t->weight, t[-1].weight, n * sizeof(float));
    }
    check_error(spread, 5, "standard deviations at the start, in their errors");
    check_error(norms, 0, "norms at the start");
    check_error(equal, 0, "every tensor and every seed has other numbers");
    model_free(model);
    model_free(other);
}

enum { DATA_IDS = 331, DATA_ROWS = 46 };

// Made-up tokens: id i is i + 1, so a row tells where it comes from. Documents of 3 to 9 ids.
static Data made_up_data(enum Unit unit, uint64_t seed) {
    int *id = borrow(DATA_IDS, sizeof *id);
    Document *document = borrow(DATA_ROWS, sizeof *document);
    size_t to = 0;
    for (int i = 0; i < DATA_IDS; i++) id[i] = (i + 1) | TRAINED;
    for (int d = 0; d < DATA_ROWS; d++) {
        document[d] = (Document){.from = to, .to = to + 3 + splitmix64(d) % 7};
        to = document[d].to;
    }
    return (Data){.train = {id, document, DATA_IDS, DATA_ROWS, DATA_ROWS}, .unit = unit, .T = 9,
                  .seed = splitmix64(seed)};
}

// The rows of an epoch: writes the first id of each row into first (DATA_ROWS), and returns how
// many there are, or 0 if a row is wrong: its targets are not the ids that follow, its end is
// missing, or a step has another size than it should. Adds the padding.
static size_t epoch_rows(Data *d, size_t units_per_step, int *first, size_t *padding) {
    size_t rows_per_unit = d->unit == PAIR ? 2 : 1, n = 0;
    Batch b = batch_new(units_per_step * rows_per_unit, d->T);
    do {
        data_fill(d, &b, units_per_step);
        size_t left = d->n_units - (d->next - b.rows / rows_per_unit);
        bool right = b.rows == min_size(left, units_per_step) * rows_per_unit;
        size_t n_targets = 0;
        for (size_t r = 0; r < b.rows && right; r++) {
            const int *ids = b.ids + r * b.T, *target = b.target + r * b.T; // (T) each
            size_t length = b.length[r], expected = d->T;
            for (size_t i = 0; i < d->train.n; i++)
                if (d->unit != WINDOW && (int)d->train.document[i].from + 1 == ids[0])
                    expected = d->train.document[i].to - d->train.document[i].from - 1;
            for (size_t t = 0; t < b.T; t++) {
                int id = t < length ? ids[0] + (int)t : 0, next = t < length ? id + 1 : -1;
                right &= ids[t] == id && target[t] == next;
            }
            right &= length == expected;
            n_targets += length;
            *padding += b.T - length;
            first[n++] = ids[0];
        }
        if (!right || n_targets != b.n_targets) n = d->n_units = d->next = 0;
    } while (d->next < d->n_units);
    batch_free(&b);
    return n;
}

static int by_number(const void *a, const void *b) { return *(const int *)a - *(const int *)b; }

// Three epochs. In each, every unit is visited once, in an order that is neither that of the file
// nor that of another epoch or seed; the last step takes what is left.
static void check_epochs(enum Unit unit, const char *name) {
    enum { EPOCHS = 3, PER_STEP = 4 };
    int first[EPOCHS + 1][DATA_ROWS], sorted[DATA_ROWS], wrong = 0, ordered = 0;
    size_t n[EPOCHS + 1], padding = 0;
    Data data = made_up_data(unit, 1), other = made_up_data(unit, 2);
    for (int e = 0; e <= EPOCHS; e++)
        n[e] = epoch_rows(e < EPOCHS ? &data : &other, PER_STEP, first[e], &padding);

    for (int e = 0; e <= EPOCHS; e++) {
        size_t bytes = n[e] * sizeof(int);
        memcpy(sorted, first[e], bytes);
        qsort(sorted, n[e], sizeof *sorted, by_number);
        ordered += !memcmp(sorted, first[e], bytes);
        for (int k = 0; k < e; k++) ordered += !memcmp(first[k], first[e], bytes);

        if (unit == WINDOW) { // windows follow each other, from a start that is another each time
            wrong += n[e] != (DATA_IDS - sorted[0]) / data.T || sorted[0] > (int)data.T;
            for (size_t i = 1; i < n[e]; i++) wrong += sorted[i] != sorted[i - 1] + (int)data.T;
            for (int k = 0; k < e; k++) ordered += n[e] == n[k] && first[k][0] == first[e][0];
            continue;
        }
        wrong += n[e] != DATA_ROWS;
        for (size_t i = 0; i < n[e]; i++)
            wrong += sorted[i] != (int)data.train.document[i].from + 1;
        for (size_t i = 0; unit == PAIR && i + 1 < n[e]; i += 2) { // chosen, then rejected
            size_t d = 0;
            while (d + 1 < DATA_ROWS && (int)data.train.document[d].from + 1 != first[e][i]) d++;
            wrong += d % 2 || first[e][i + 1] != (int)data.train.document[d + 1].from + 1;
        }
    }
    check_error(wrong, 0, "%s: each once in an epoch", name);
    check_error(ordered, 0, "%s: shuffled, and each time differently", name);
    if (unit == DOCUMENT)
        check_error((double)padding / (EPOCHS + 1) / DATA_IDS, 0.12, "%s: share of padding", name);
    free(data.order);
    free(other.order);
    release();
}

// The distribution of the next token by its definition in chapter 8, without any order of work.
static void expected_distribution(double *want, const float *logits, int V, const int *history,
                                  int n, const Sampling *s) {
    double *x = borrow(V, sizeof *x), sum = 0, rest = 0;
    for (int v = 0; v < V; v++) {
        bool seen = false;
        for (int i = 0; i < n; i++) seen |= history[i] == v;
        double penalty = seen ? s->repetition_penalty : 1;
        x[v] = logits[v] / s->temperature;
        x[v] = x[v] > 0 ? x[v] / penalty : x[v] * penalty;
    }
    for (int v = 0; v < V; v++) {
        int larger = 0;
        for (int u = 0; u < V; u++) larger += x[u] > x[v];
        want[v] = s->top_k && larger >= s->top_k ? 0 : exp(x[v]);
        sum += want[v];
    }
    double *kept = borrow(V, sizeof *kept);
    for (int v = 0; v < V; v++) {
        double before = 0; // of the tokens that are more probable
        for (int u = 0; u < V; u++)
            if (x[u] > x[v] || (x[u] == x[v] && u < v)) before += want[u] / sum;
        kept[v] = before > s->top_p + 1e-6 ? 0 : want[v];
        rest += kept[v];
    }
    for (int v = 0; v < V; v++) want[v] = kept[v] / rest;
}

// Logits in steps of a half have many ties; the history has tokens twice, and negative logits.
static void check_distributions(void) {
    enum { N = 40, HISTORY = 12 };
    static const Sampling cases[] = {
        {1, 1, 1, 0, 1, 1}, {0.7, 1, 1.3, 0, 1, 1}, {1.5, 1, 1, 5, 1, 1}, {1, 1, 1, 1, 1, 1},
        {1, 0.83, 1, 0, 1, 1}, {0.8, 0.71, 1.2, 9, 1, 1}, {2, 0.33, 0.7, 20, 1, 1},
        {1, 1, 1, 100, 1, 1}, {1, 1e-9, 1, 0, 1, 1}};
    double worst = 0;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        float logits[N], probs[N];
        int history[HISTORY];
        double *want = borrow(N, sizeof *want);
        for (int v = 0; v < N; v++) logits[v] = 0.5 * floor(4 * gaussian(i, v));
        for (int k = 0; k < HISTORY; k++) history[k] = (int)(splitmix64(k / 2 + i) % N);
        expected_distribution(want, logits, N, history, HISTORY, &cases[i]);
        sampling_distribution(probs, logits, N, history, HISTORY, &cases[i]);
        for (int v = 0; v < N; v++) worst = larger_error(worst, fabs(probs[v] - want[v]));
    }
    check_error(worst, 1e-6, "distributions by the definition");
    release();
}

// Which token a random number draws: the one whose interval contains it.
static void check_intervals(void) {
    enum { N = 50 };
    float logits[N], probs[N];
    Sampling s = {.temperature = 1, .top_p = 0.9, .top_k = 30, .repetition_penalty = 1};
    int wrong = 0;
    for (int i = 0; i < N; i++) logits[i] = 2 * gaussian(1, i);
    sampling_distribution(probs, logits, N, NULL, 0, &s);
    double sum = 0;
    for (int v = 0; v < N; v++) {
        if (probs[v] > 0) wrong += sample_token(probs, N, sum + 0.5 * probs[v]) != v;
        sum += probs[v];
    }
    wrong += probs[sample_token(probs, N, 1)] == 0; // rounding can leave a rest
    check_error(wrong, 0, "a random number and the token that it draws");
    check_error(fabs(sum - 1), 1e-6, "sum of the probabilities");
}

// =================================================================================================
// 7. Files
// =================================================================================================

static char folder[] = "/tmp/minimind-check-XXXXXX";

static void write_text(const char *name, const char *s) {
    write_file(folder, name, &(Text){(char *)s, strlen(s), 0});
}

// The number of fields in which two configurations differ.
static int config_difference(const Config *a, const Config *b) {
    int n = 0;
    for (const Field *f = config_field; f < config_field + CONFIG_FIELDS; f++) {
        bool unused = is_yarn_field(f) && !a->yarn && !b->yarn;
        n += !unused && field_get(a, f) != field_get(b, f);
    }
    return n;
}

// What is saved is what is loaded: a configuration, and every bit of the weights.
static void check_round_trip(const Variant *v) {
    Tokenizer tok = {.bos = 1, .eos = 2, .pad = -1};
    Model *model = small_model(v, "");
    config_save(&model->config, &tok, folder);
    weights_save(model, folder);
    Config c = config_load(folder);
    Model *back = model_new(c);
    model_allocate(back, false, 32);
    weights_load(back, folder);
    int wrong = config_difference(&model->config, &c) + (back->n_params != model->n_params);
    wrong += memcmp(back->params, model->params, model->n_params * sizeof(float)) != 0;
    check_error(wrong, 0, "%s: saved and loaded", v->name);
    model_free(model);
    model_free(back);
}

// The bits of a number that the format can hold exactly.
static uint64_t encode_float(double x, int exponent_bits, int mantissa_bits) {
    int exponent;
    double fraction = frexp(fabs(x), &exponent); // 0.5 .. 1, or 0
    if (x == 0) return 0;
    uint64_t top = (uint64_t)(exponent - 1 + (1 << (exponent_bits - 1)) - 1);
    uint64_t mantissa = (uint64_t)ldexp(2 * fraction - 1, mantissa_bits);
    return (uint64_t)(x < 0) << (exponent_bits + mantissa_bits) | top << mantissa_bits | mantissa;
}

// Weights in another number format, with the tensors in another order than that of the table.
static void check_format(const char *dtype, int bytes, int exponent_bits, int mantissa_bits) {
    Model *model = small_model(&check_variant[0], ""), *back = model_new(model->config);
    Text head = {0}, body = {0};
    model_allocate(back, false, 32);
    for (size_t i = 0; i < model->n_params; i++)
        model->params[i] = ((int)(splitmix64(i) % 257) - 128) / 64.0;

    text_printf(&head, "{");
    for (int i = model->n_tensors - 1; i >= 0; i--) {
        const Tensor *t = &model->tensor[i];
        text_printf(&head, "%s\"%s\": {\"dtype\": \"%s\", \"shape\": [", head.len > 1 ? ", " : "",
                    t->name, dtype);
        if (is_matrix(t)) text_printf(&head, "%zu, ", t->rows);
        text_printf(&head, "%zu], \"data_offsets\": [%zu, %zu]}", t->cols, body.len,
                    body.len + tensor_size(t) * bytes);
        for (size_t k = 0; k < tensor_size(t); k++) {
            uint64_t bits = encode_float(t->weight[k], exponent_bits, mantissa_bits);
            text_append(&body, (const char *)&bits, bytes);
        }
    }
    text_printf(&head, "}");
    uint64_t length = head.len;
    Text file = {0};
    text_append(&file, (const char *)&length, sizeof length);
    text_append(&file, head.s, head.len);
    text_append(&file, body.s, body.len);
    write_file(folder, "model.safetensors", &file);
    weights_load(back, folder);
    check_error(largest_difference(back->params, model->params, model->n_params), 0,
                "weights in %s", dtype);
    free(head.s);
    free(body.s);
    free(file.s);
    model_free(model);
    model_free(back);
}

// Numbers that are not ordinary: denormal, infinite, no number; and all 2^16 of bf16.
static void check_number_formats(void) {
    static const struct { uint64_t bits; double value; } half[] = {
        {0x0000, 0}, {0x0001, 0x1p-24}, {0x03FF, 0x3FFp-24}, {0x0400, 0x1p-14}, {0x3C00, 1},
        {0xC000, -2}, {0x3555, 0x555p-12}, {0x7BFF, 65504}, {0x7C00, INFINITY},
        {0xFC00, -INFINITY}};
    double worst = 0;
    for (size_t i = 0; i < sizeof half / sizeof *half; i++) {
        float got = decode_float(half[i].bits, 5, 10);
        if (got != (float)half[i].value) worst = 1;
    }
    if (!isnan(decode_float(0x7E00, 5, 10))) worst = 1;
    check_error(worst, 0, "16 bits, IEEE");

    worst = 0;
    for (uint32_t bits = 0; bits < 0x10000; bits++) {
        uint32_t whole = bits << 16;
        float got = decode_float(bits, 8, 7);
        __typeof__(1.0f) want;
        memcpy(&want, &whole, sizeof whole);
        if (got != want && !(isnan(got) && isnan(want))) worst = 1;
    }
    check_error(worst, 0, "16 bits, the upper half of a float");
}

// config.json as other programs write it, and what has to be read from it.
static const struct { const char *name, *json, *fields; } config_case[] = {
    {"Qwen3",
     "\"model_type\": \"qwen3\", \"hidden_size\": 64, \"num_hidden_layers\": 3, "
     "\"num_attention_heads\": 4, \"num_key_value_heads\": 2, \"head_dim\": 32, "
     "\"vocab_size\": 99, \"intermediate_size\": 96, \"max_position_embeddings\": 128, "
     "\"rms_norm_eps\": 1e-5, "
     "\"rope_theta\": 5000, \"tie_word_embeddings\": true, \"hidden_act\": \"silu\", "
     "\"attention_bias\": false, \"rope_scaling\": null, \"use_sliding_window\": false",
     "hidden_size=64 num_hidden_layers=3 num_attention_heads=4 num_key_value_heads=2 head_dim=32 "
     "vocab_size=99 intermediate_size=96 max_position_embeddings=128 rms_norm_eps=1e-5 "
     "rope_theta=5000 norm_topk_prob=0"},
    {"Qwen3 with defaults",
     "\"model_type\": \"qwen3\", \"hidden_size\": 64, \"num_attention_heads\": 4, "
     "\"intermediate_size\": 96, \"tie_word_embeddings\": true",
     "hidden_size=64 num_attention_heads=4 num_key_value_heads=4 intermediate_size=96 "
     "rope_theta=1e4 norm_topk_prob=0"},
    {"Llama",
     "\"model_type\": \"llama\", \"hidden_size\": 64, \"num_attention_heads\": 4, "
     "\"num_key_value_heads\": 1, \"intermediate_size\": 96, \"tie_word_embeddings\": true",
     "hidden_size=64 num_attention_heads=4 num_key_value_heads=1 intermediate_size=96 qk_norm=0 "
     "rope_theta=1e4 norm_topk_prob=0"},
    {"Qwen3-MoE",
     "\"model_type\": \"qwen3_moe\", \"hidden_size\": 64, \"num_attention_heads\": 4, "
     "\"num_experts\": 8, \"num_experts_per_tok\": 3, \"moe_intermediate_size\": 48, "
     "\"norm_topk_prob\": true, \"intermediate_size\": 96, \"tie_word_embeddings\": true, "
     "\"router_aux_loss_coef\": 0.01",
     "hidden_size=64 num_attention_heads=4 num_key_value_heads=4 num_experts=8 use_moe=1 "
     "num_experts_per_tok=3 moe_intermediate_size=48 norm_topk_prob=1 intermediate_size=96 "
     "router_aux_loss_coef=0.01 rope_theta=1e4"},
    {"MiniMind-3",
     "\"model_type\": \"minimind\", \"hidden_size\": 64, \"num_attention_heads\": 4, "
     "\"num_key_value_heads\": 2, \"use_moe\": true, \"num_local_experts\": 6",
     "hidden_size=64 num_attention_heads=4 num_key_value_heads=2 use_moe=1 num_experts=6 "
     "norm_topk_prob=1"},
    {"MiniMind2, MoE",
     "\"hidden_size\": 64, \"num_attention_heads\": 4, \"num_key_value_heads\": 2, "
     "\"use_moe\": true, \"n_routed_experts\": 6, \"num_experts_per_tok\": 2, "
     "\"n_shared_experts\": 1, \"scoring_func\": \"softmax\", \"aux_loss_alpha\": 0.2, "
     "\"norm_topk_prob\": true",
     "hidden_size=64 num_attention_heads=4 num_key_value_heads=2 use_moe=1 num_experts=6 "
     "num_experts_per_tok=2 n_shared_experts=1 router_aux_loss_coef=0.2 seq_aux=1 qk_norm=0 "
     "norm_topk_prob=1"},
    {"YaRN in rope_scaling",
     "\"hidden_size\": 64, \"num_attention_heads\": 4, \"max_position_embeddings\": 256, "
     "\"rope_scaling\": {\"type\": \"yarn\", \"factor\": 4, \"beta_fast\": 16, \"beta_slow\": 2, "
     "\"original_max_position_embeddings\": 64, \"attention_factor\": 1.25}",
     "hidden_size=64 num_attention_heads=4 max_position_embeddings=256 yarn=1 yarn_factor=4 "
     "yarn_beta_fast=16 yarn_beta_slow=2 yarn_original_max=64 yarn_attention_factor=1.25 "
     "norm_topk_prob=1"},
    {"YaRN in rope_parameters",
     "\"model_type\": \"qwen3\", \"hidden_size\": 64, \"num_attention_heads\": 4, "
     "\"tie_word_embeddings\": true, \"max_position_embeddings\": 256, \"rope_parameters\": "
     "{\"rope_type\": \"yarn\", \"rope_theta\": 777, \"factor\": 4, "
     "\"original_max_position_embeddings\": 64}",
     "hidden_size=64 num_attention_heads=4 num_key_value_heads=4 max_position_embeddings=256 "
     "rope_theta=777 yarn=1 yarn_factor=4 yarn_original_max=64 yarn_attention_factor=-1 "
     "norm_topk_prob=0"},
};
enum { CONFIG_CASES = sizeof config_case / sizeof *config_case };

static void check_configs(void) {
    for (int i = 0; i < CONFIG_CASES; i++) {
        char *json = format("{%s}", config_case[i].json);
        write_text("config.json", json);
        Config got = config_load(folder), want = config_preset("minimind3");
        config_parse(&want, "vocab_size=1024", "case");
        config_parse(&want, config_case[i].fields, "case");
        config_complete(&want, "case");
        if (!strstr(json, "vocab_size")) got.vocab_size = want.vocab_size; // set by the tokenizer
        check_error(config_difference(&got, &want), 0, "config.json of %s", config_case[i].name);
        free(json);
    }
}

static void check_files(void) {
    if (!mkdtemp(folder)) die("%s: cannot be made", folder);
    for (const Variant *v = check_variant; v < check_variant + VARIANTS; v++) check_round_trip(v);
    check_configs();
    Config c = small_config(&check_variant[0], "");
    config_save(&c, &(Tokenizer){.bos = -1, .eos = -1, .pad = -1}, folder);
    check_format("F64", 8, 11, 52);
    check_format("F32", 4, 8, 23);
    check_format("BF16", 2, 8, 7);
    check_format("F16", 2, 5, 10);
    check_number_formats();

    static const char *const made[] = {
        "config.json", "generation_config.json", "model.safetensors"};
    for (int i = 0; i < 3; i++) {
        char *path = format("%s/%s", folder, made[i]);
        remove(path);
        free(path);
    }
    if (rmdir(folder)) die("%s: holds files that the checks did not make", folder);
}

// =================================================================================================
// 8. Answers
// =================================================================================================

// Whether an answer counts as right, where "7", "a b" and "1234.5" are accepted.
static void check_right_answers(void) {
    static const struct { const char *said; bool right; } cases[] = {
        {"7", true}, {" 7\n", true}, {"7.", true}, {"$7", true}, {"a b", true}, {"a b.\n", true},
        {"1,234.5", true}, {"$1,234.5", true}, {"", false}, {".", false}, {"77", false},
        {"7 7", false}, {"a", false}, {"b", false}, {"ab", false}, {"A b", false}, {"7a b", false},
        {"7\x1E" "a b", false}, {"12345", false}, {"1234,5", false}};
    Text accepted = {0};
    int wrong = 0;
    add_accepted(&accepted, "7", 1);
    add_accepted(&accepted, " a b. ", 6);
    add_accepted(&accepted, "$1,234.5", 8);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        if (!strchr(cases[i].said, '\x1E'))
            wrong += answer_is(cases[i].said, &accepted) != cases[i].right;
    check_error(wrong, 0, "answers that count as right");
    free(accepted.s);
}

// GRPO's rewards, and the advantages in a group.
static void check_rewards(void) {
    static const struct { const char *text; bool done, think; double reward; } cases[] = {
        {"7", true, false, 1.25}, {"7", false, false, 0}, {"8", true, false, 0.25},
        {"so</think>7", true, true, 1.25}, {"7", true, true, 0}, {"so</think>8", true, true, 0.25},
        {"a</think>b</think>7", true, true, 0}, {"so</think>\n\n7", true, true, 1.25}};
    Text accepted = {0};
    double worst = 0;
    add_accepted(&accepted, "7", 1);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        Answer x = {.done = cases[i].done, .accepted = accepted,
                    .text = {(char *)cases[i].text, strlen(cases[i].text), 0}};
        bool right;
        double reward = answer_reward(&x, cases[i].think, &right);
        worst = larger_error(worst, fabs(reward - cases[i].reward));
        worst = larger_error(worst, right != (reward > 1));
    }
    free(accepted.s);
    check_error(worst, 0, "GRPO's rewards");

    double group[4] = {1, 0, 0, 1}, same[3] = {0.25, 0.25, 0.25};
    group_advantages(group, 4);
    group_advantages(same, 3);
    worst = fabs(group[0] - 1 / (1 + 2e-4)) + fabs(group[1] + 1 / (1 + 2e-4));
    worst += fabs(group[0] - group[3]) + fabs(same[0]) + fabs(same[2]);
    check_error(worst, 1e-12, "GRPO's advantages");
}

// Means and their standard errors.
static void check_means(void) {
    Figures f = {0};
    double x[3] = {1, 2, 3}, y[3] = {1, 1, 2};
    double ratio = add_ratio(&f, "ratio", x, y, 3, 10); // residuals -0.5, 0.5, 0
    double share = add_share(&f, "share", 3, 4);
    double worst = fabs(ratio - 15) + fabs(share - 0.75);
    worst += fabs(f.figure[0].value - 15) + fabs(f.figure[0].error - 10 * sqrt(0.75) / 4);
    worst += fabs(f.figure[1].value - 75) + fabs(f.figure[1].error - 25);
    check_error(worst, 1e-12, "means and their errors");
}

// =================================================================================================
// 9. Golden files
// =================================================================================================

#include "golden.c" // reads the files, computes their numbers and compares them

// =================================================================================================
// All checks, and the command line
// =================================================================================================

static void check_everything(void) {
    for (const Variant *v = check_variant; v < check_variant + VARIANTS; v++) {
        Trial trial = trial_new(v);
        check_gradients(&trial, v->name);
        if (v->padded) check_padding(&trial, v->name);
        trial_free(&trial);
    }
    check_objectives(false);
    check_objectives(true);
    check_margins();

    check_pairs();
    check_exponentials();

    for (const Variant *v = check_variant; v < check_variant + VARIANTS; v++) {
        check_decoding(v);
        check_drawing(v);
    }

    double ref_sum[ROWS] = {-12, -11, -13, -10};
    check_passes(&check_variant[0], next_token_loss, NULL);
    check_passes(&check_variant[8], next_token_loss, NULL);  // sequence balance
    check_passes(&check_variant[11], next_token_loss, NULL); // the same with padding
    check_passes(&check_variant[0], dpo_loss, &(Preferences){.beta = 0.3, .ref_sum = ref_sum});
    check_optimizer();
    check_start();
    check_epochs(WINDOW, "windows");
    check_epochs(DOCUMENT, "documents");
    check_epochs(PAIR, "pairs");
    check_distributions();
    check_intervals();

    check_files();
    check_right_answers();
    check_rewards();
    check_means();
    if (PRECISE) return; // the book packs floats of 32 bits only
    check_packing(16);
    check_packing(8);
}

int main(int argc, char **argv) {
    program = "check";
    if (argc > 1 && (!strcmp(argv[1], "help") || !strcmp(argv[1], "--help"))) {
        printf("usage: check [--plain 1] [--threads N] [--stop 1] [FILE or FOLDER]...\n");
        return 0;
    }
    Options options = {0};
    char **files = xcalloc((size_t)argc + 1, sizeof *files); // ends with NULL
    read_options(argv + 1, '*', &options, (OptionSet){check_options, 1, '*', &own_options, NULL},
                 files);
    for (char **file = files; *file; file++) check_path(*file);
    if (!*files) check_everything();
    free(files);
    printf("%d passed, %d failed\n", n_passed, n_failed);
    return n_failed > 0;
}
