// bench.c - how fast the book is, and how much of that speed is the machine's.
//
//     mkdir -p out/lab && cc -O3 -march=native -o out/lab/bench notes/lab/bench.c -lm
//     out/lab/bench --preset tiny            (add -fopenmp above to use all cores)
//
// A number of tokens per second says little by itself. So each figure is printed with the limit
// that the machine sets to it:
//
//   - Training is arithmetic. Its limit is the kernel: the innermost loop of the matrix product,
//     multiply_panels(), on data that stays in the first-level cache. (Products may come out above
//     100 % of it, because the clock of the machine changes.)
//   - Decoding one sequence reads each active weight once per token. Its limit is the speed at
//     which memory can be read. Weights in bf16 and int8 have fewer bytes; sequences that are
//     decoded together share them. If the weights fit into the cache, the limit is another one.
//
// First come the kernel and the products of a linear layer, in GFLOP/s. Then, for each preset:
//
//     tiny, tokens/s
//         norms, RoPE 4%, q k v o 13%, attention 24%, ...     the parts of a training step
//         train 12226 (4 x 256; 44% of the kernel)            B x T; its arithmetic per second
//         f32  prefill 33497   decode 6886 (41% of ...)   8 at once 14291
//         bf16 ...
//
// A small model stays below the limits: its matrices are too narrow for the kernel, and much of its
// time goes into other layers. At the end come the speed of the tokenizer in MB/s, and what longer
// sequences, more experts and fewer threads do to the speed of training. A machine that is busy
// with other things gives lower figures: run it more than once and take the best.
//
// HOW. The book has no timers. The model calls its layers through the table `op`; here `op` is a
// table whose functions call those of the book and add up the time that they take.
//
// --plain 1 measures the definitions of chapter 2 instead; with --preset tiny that takes seconds,
// with a large one many minutes. The kernel and its products are printed for comparison; the
// definitions do not use them.

#define WITH_TRAINER // tokenizer.c: include what trains a tokenizer; not all of that is used here
#pragma GCC diagnostic ignored "-Wunused-function"
#define main minimind_main
#include "../../minimind.c"
#undef main

// A compiler leaves out a computation whose result is not used; what is only timed is stored here.
static volatile double sink;

// ---- the machine --------------------------------------------------------------------------------

// GFLOP/s of the kernel alone: every thread multiplies panels that stay in its first-level cache.
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

            // A volatile pointer may change between two calls, so each call has to be made.
            const float *volatile panel = b;
            for (int i = 0; i < TIMES; i++)
                multiply_panels(c, NR, MR, NR, view(a, K), panel, K, true);
            sum += dot(c, c, MR * NR);
        }
        sink = sum;

        // Each call makes MR * NR * K multiplications and as many additions.
        best = fmax(best, 2e-9 * MR * NR * K * TIMES * n_threads / (seconds() - start));
    }
    return best;
}

// Bytes per second at which all threads together read x (n); each reads a part of its own.
static double memory_speed(const float *x, size_t n) {
    double best = 0;
    for (int repeat = 0; repeat < 10; repeat++) {
        double start = seconds(), sum = 0;
        #pragma omp parallel for num_threads(n_threads) reduction(+ : sum)
        for (int t = 0; t < n_threads; t++) {
            const Words *from = (const Words *)x + n / LANES * t / n_threads;
            Words all[4] = {{0}}; // four registers, so that no load waits for the one before
            for (size_t i = 0; i + 4 <= n / LANES / n_threads; i += 4)
                for (size_t j = 0; j < 4; j++) all[j] ^= from[i + j];
            all[0] ^= all[1] ^ all[2] ^ all[3];
            for (size_t j = 0; j < LANES; j++) sum += all[0][j];
        }
        sink = sum;
        best = fmax(best, sizeof(float) * (double)n / (seconds() - start));
    }
    return best;
}

// GFLOP/s of the three products of a linear layer (out, in) on n rows: y = x w^T, dx = dy w and
// dw = dy^T x, see "the matrix product" in chapter 11. Here y serves as dy, x as dx and w as dw.
static void bench_products(size_t n, size_t in, size_t out, double peak) {
    float *x = xcalloc(n * in, sizeof *x);   // (n, in)
    float *w = xcalloc(in * out, sizeof *w); // (out, in)
    float *y = xcalloc(n * out, sizeof *y);  // (n, out)
    printf("%5zu x %4zu -> %4zu ", n, in, out);
    for (int product = 0; product < 3; product++) {
        double best = INFINITY;
        for (int repeat = 0; repeat < 8; repeat++) {
            double start = seconds();
            if (product == 0) matmul(n, out, in, view(x, in), view_transposed(w, in), y, false);
            if (product == 1) matmul(n, in, out, view(y, out), view(w, in), x, false);
            if (product == 2) matmul(out, in, n, view_transposed(y, out), view(x, in), w, true);
            best = fmin(best, seconds() - start);
        }
        double rate = 2e-9 * n * in * out / best;
        printf("  %s %6.1f (%3.0f%%)", ((const char *[]){"y", "dx", "dw"})[product], rate,
               100 * rate / peak);
    }
    printf("\n");
    free(x);
    free(w);
    free(y);
}

// ---- a table that measures ----------------------------------------------------------------------

enum TimedPart { NORMS, PROJECTIONS, ATTENTION, ROUTING, FEED_FORWARD, HEAD, OPTIMISER, PARTS };
static const char *const part_name[PARTS] = {
    "norms, RoPE", "q k v o", "attention", "routing", "feed-forward", "head", "optimiser"};
static double part_time[PARTS]; // seconds
static const Ops *timed;        // the table that is measured, `fast` or `plain`
static const Model *timed_model;

// Linear layers occur in several parts of the model; the weight tells which part it is.
static enum TimedPart part_of(const float *weight) {
    const Tensor *t = timed_model->tensor;
    while (t->weight != weight) t++;
    if (t == timed_model->embed) return HEAD;
    if (strstr(t->name, "self_attn")) return PROJECTIONS;
    return strstr(t->name, "mlp.gate.weight") ? ROUTING : FEED_FORWARD;
}

// Defines timed_NAME, with the parameters of NAME: it calls NAME in the table `timed` and adds the
// time to a part. C has no way to wrap a function without writing down its parameters; chapter 2
// says what they mean. The clock is read twice per call, which takes about 0.1 microseconds.
#define TIMED(part, name, parameters, arguments)   \
    static void timed_##name parameters {          \
        double start = seconds();                  \
        timed->name arguments;                     \
        part_time[part] += seconds() - start;      \
    }
typedef const float *In; // an array that is read
typedef float *Out;      // one that is written or accumulated
typedef const int *Ints;
typedef size_t Size;

TIMED(part_of(w), linear_forward, (Out y, In x, In w, Size n, Size in, Size out, bool add),
      (y, x, w, n, in, out, add))
TIMED(part_of(w), linear_backward, (Out dx, Out dw, In dy, In x, In w, Size n, Size in, Size out,
      bool add), (dx, dw, dy, x, w, n, in, out, add))
TIMED(NORMS, rmsnorm_forward, (Out y, Out rstd, In x, In w, Size n, Size C, float eps),
      (y, rstd, x, w, n, C, eps))
TIMED(NORMS, rmsnorm_backward, (Out dx, Out dw, In dy, In x, In w, In rstd, Size n, Size C),
      (dx, dw, dy, x, w, rstd, n, C))
TIMED(NORMS, rope, (Out x, In cosine, In sine, float sign, Size B, Size T, Size heads, Size D),
      (x, cosine, sine, sign, B, T, heads, D))
TIMED(ATTENTION, attention_forward, (Out out, Out lse, In q, In k, In v, Size B, Size T, Size past,
      Size H, Size KV, Size D), (out, lse, q, k, v, B, T, past, H, KV, D))
TIMED(ATTENTION, attention_backward, (Out dq, Out dk, Out dv, In dout, In out, In lse, In q, In k,
      In v, Size B, Size T, Size H, Size KV, Size D),
      (dq, dk, dv, dout, out, lse, q, k, v, B, T, H, KV, D))
TIMED(FEED_FORWARD, swiglu_forward, (Out h, In gate, In up, Size n), (h, gate, up, n))
TIMED(FEED_FORWARD, swiglu_backward, (Out dgate, Out dup, In dh, In gate, In up, Size n),
      (dgate, dup, dh, gate, up, n))
TIMED(ROUTING, softmax_forward, (Out p, In x, Size n, Size width), (p, x, n, width))
TIMED(ROUTING, combine_forward, (Out out, In y, In weight, Ints row, Size N, Size K, Size C),
      (out, y, weight, row, N, K, C))
TIMED(ROUTING, combine_backward, (Out dy, Out dweight, In dout, In y, In weight, Ints row, Size N,
      Size K, Size C), (dy, dweight, dout, y, weight, row, N, K, C))
TIMED(HEAD, logp_forward, (Out logp, Out lse, In logits, Ints target, Size n, Size V),
      (logp, lse, logits, target, n, V))
TIMED(HEAD, logp_backward, (Out dlogits, In dlogp, In lse, In logits, Ints target, Size n, Size V),
      (dlogits, dlogp, lse, logits, target, n, V))
TIMED(OPTIMISER, adamw_update, (Out w, Out g, Out m, Out v, Size n, const AdamW *o, double decay,
      double factor), (w, g, m, v, n, o, decay, factor))

static double timed_sum_of_squares(In x, Size n) { // the only one with a result
    double start = seconds(), sum = timed->sum_of_squares(x, n);
    part_time[OPTIMISER] += seconds() - start;
    return sum;
}

// For training, so the functions for packed weights are missing.
static const Ops timers = {
#define TIMER(name) .name = timed_##name
    TIMER(linear_forward), TIMER(linear_backward), TIMER(rmsnorm_forward), TIMER(rmsnorm_backward),
    TIMER(rope), TIMER(attention_forward), TIMER(attention_backward), TIMER(swiglu_forward),
    TIMER(swiglu_backward), TIMER(softmax_forward), TIMER(combine_forward),
    TIMER(combine_backward), TIMER(logp_forward), TIMER(logp_backward), TIMER(sum_of_squares),
    TIMER(adamw_update),
#undef TIMER
};

// ---- training -----------------------------------------------------------------------------------

// B sequences of T random tokens. What they say does not matter: the time of a step depends on the
// sizes alone, if the experts are about equally busy, as they are in a new model.
static Batch random_batch(size_t B, size_t T, size_t V) {
    Batch batch = batch_new(B, T);
    batch.rows = B;
    batch.T = T;
    batch.n_targets = B * T;
    for (size_t b = 0; b < B; b++) batch.length[b] = (int)T;
    for (size_t i = 0; i < B * T; i++) {
        batch.ids[i] = (int)(splitmix64(i) % V);
        batch.target[i] = (int)(splitmix64(i + 1) % V);
    }
    return batch;
}

// Shares of the time of all steps, `took`. The rest does not go through the table: the embedding,
// the choice of experts, copies, the objective.
static void print_parts(double took) {
    double rest = took;
    for (int p = 0; p < PARTS; p++) {
        printf("%s%s %.0f%%", p ? ", " : "    ", part_name[p], 100 * part_time[p] / took);
        rest -= part_time[p];
    }
    printf(", the rest %.0f%%\n", 100 * rest / took);
}

// Trains a new model on B x T tokens for 1.5 seconds; returns tokens/s. With `parts` it prints
// where the time went. The first two steps do not count: in them the system hands out the memory,
// page by page.
static double bench_training(Config config, size_t B, size_t T, bool parts) {
    Model *model = model_new(config);
    model_allocate(model, true, 32);
    model_init(model, 1);
    Acts *a = acts_new(model, TRAINING, B * T, 0, 0);
    Batch batch = random_batch(B, T, model->V);
    timed = op;
    timed_model = model;
    if (parts) op = &timers;

    long step = 0, warm_up = timed == &plain ? 0 : 2;
    double start = 0, took = 0;
    while (step <= warm_up || took < 1.5) {
        if (step == warm_up) {
            memset(part_time, 0, sizeof part_time);
            start = seconds();
        }
        step++;
        Report r = accumulate_gradients(model, a, &batch, B, next_token_loss, NULL);
        AdamW adamw = {1e-4, 0.9, 0.95, 1e-8, 0.1, 1, step};
        adamw_step(model, &adamw, r.grad_norm);
        if (step > warm_up) took = seconds() - start;
    }
    op = timed;
    if (parts) print_parts(took);
    batch_free(&batch);
    acts_free(a);
    model_free(model);
    return (step - warm_up) * (double)(B * T) / took;
}

// ---- inference ----------------------------------------------------------------------------------

// Tokens/s of a prompt of 512 tokens (the second of two) go to *prefill_rate. Then decodes 256
// tokens for each of B sequences together, from their first tokens on; returns tokens/s.
static double bench_decoding(const Model *model, size_t B, double *prefill_rate) {
    enum { PROMPT = 512, NEW = 256, MOST = 8 };
    Acts *a = acts_new(model, INFERENCE, PROMPT, B, PROMPT);
    int ids[PROMPT], past[MOST] = {0}, slot[MOST];
    for (size_t i = 0; i < PROMPT; i++) ids[i] = (int)(splitmix64(i) % model->V);
    for (size_t b = 0; b < B; b++) slot[b] = (int)b;

    prefill(model, a, ids, PROMPT, 0, 0);
    double start = seconds();
    prefill(model, a, ids, PROMPT, 0, 0);
    *prefill_rate = PROMPT / (seconds() - start);

    // The same tokens in each step: drawing new ones is not measured.
    start = seconds();
    for (int n = 0; n < NEW; n++) {
        extend(model, a, ids, B, 1, past, slot);
        for (size_t b = 0; b < B; b++) past[b]++;
    }
    double rate = NEW * B / (seconds() - start);
    acts_free(a);
    return rate;
}

// A model with random weights, kept in so many bits. (Not model_init(): it needs float weights.)
static Model *random_model(Config config, int bits) {
    Model *model = model_new(config);
    float *x = NULL; // (rows, cols) of one tensor
    model_allocate(model, false, bits);
    for (Tensor *t = model->tensor; t < model->tensor + model->n_tensors; t++) {
        x = xrealloc(x, tensor_size(t), sizeof *x);
        for (size_t i = 0; i < tensor_size(t); i++)
            x[i] = 0.02f * (float)(2 * uniform(t->offset, i) - 1);
        if (t->weight) memcpy(t->weight, x, tensor_size(t) * sizeof *x);
        else pack_tensor(t, x);
    }
    free(x);
    return model;
}

// The share of memory speed: what decoding reads per token, the active weights and a KV cache of
// 128 positions on average, against the speed at which the float weights are read. It falls with
// fewer bits, because unpacking takes time too.
static void bench_inference(Config config) {
    double memory = 0;
    for (int i = 0; i < (op == &plain ? 1 : 3); i++) { // the definitions know float weights only
        Model *model = random_model(config, 32 >> i);
        double prefill_rate, one = bench_decoding(model, 1, &prefill_rate);
        double active = (double)active_params(model) / model->n_params;
        double cache = 2.0 * model->L * model->KV * model->D * sizeof(float) * 128;
        double bytes = weight_bytes(model, 32 >> i) * active + cache;
        if (i == 0) memory = memory_speed(model->params, model->n_params);
        double eight = bench_decoding(model, 8, &prefill_rate);
        printf("    %-4s prefill %6.0f   decode %5.0f (%3.0f%% of the %.1f GB/s that memory gives)"
               "   8 at once %5.0f\n", kept_as[i], prefill_rate, one, 100 * one * bytes / memory,
               memory * 1e-9, eight);
        model_free(model);
    }
}

static void bench_preset(const char *name, double peak) {
    Config config = config_preset(name);
    config_complete(&config, name);
    printf("\n%s, tokens/s\n", name);
    double rate = bench_training(config, 4, 256, true);

    // The backward pass takes twice the operations of the forward pass.
    Model *model = model_new(config); // without memory, to count them
    printf("    train %.0f (4 x 256; %.0f%% of the kernel)\n", rate,
           100e-9 * 3 * flops_per_token(model, 256) * rate / peak);
    model_free(model);
    bench_inference(config);
}

// ---- the tokenizer ------------------------------------------------------------------------------

// A number from 0 to n - 1, where r has a probability of about 1 / (r + 1): Zipf's law, which the
// words of a language follow.
static size_t zipf(size_t n, uint64_t stream, uint64_t i) {
    return (size_t)pow(n + 1, uniform(stream, i)) - 1;
}

// Appends at least n bytes: sentences of ten made-up words, English and Chinese in turn. They mean
// nothing, but words, letters and characters are as frequent as in a language, on which the work of
// a tokenizer depends: it counts each different word once, and remembers the words it has encoded.
static void make_up_text(Text *text, size_t n) {
    enum { WORDS = 20000, CHARACTERS = 3000, FIRST = 0x4E00 }; // the first Chinese character
    uint64_t drawn = 0;
    for (bool chinese = false; text->len < n; chinese = !chinese) {
        for (int word = 0; word < 10; word++) {
            uint64_t stream = splitmix64(zipf(WORDS, 1, drawn++)); // same word, same letters
            size_t letters = chinese ? 1 + stream % 3 : 2 + stream % 8;
            if (!chinese) text_append(text, " ", 1);
            for (size_t i = 0; i < letters; i++) {
                char letter[4];
                int cp = chinese ? FIRST + (int)zipf(CHARACTERS, stream, i)
                                 : "etaoinshrdlucmfwypvbgkjqxz"[zipf(26, stream, i)];
                text_append(text, letter, utf8_write(letter, cp));
            }
        }
        text_printf(text, chinese ? "。" : ".");
    }
}

// Training a tokenizer of 6400 tokens, as many as MiniMind's, and encoding the same text with it.
// Both in MB/s on one thread.
static void bench_tokenizer(void) {
    Text text = {0};
    Ids ids = {0};
    make_up_text(&text, 5000000);
    double start = seconds();
    Trainer *trainer = trainer_new(true);
    trainer_add(trainer, text.s, text.len);
    Tokenizer *tok = trainer_finish(trainer, 6400);
    double trained = seconds();
    tokenizer_encode(tok, text.s, text.len, true, &ids);
    double encoded = seconds(), MB = text.len * 1e-6;
    printf("\ntokenizer, MB/s on one core: train %.1f, encode %.1f (%.1f MB, %d tokens)\n",
           MB / (trained - start), MB / (encoded - trained), MB, tok->vocab_size);
    tokenizer_free(tok);
    free(text.s);
    free(ids.id);
}

// ---- scaling ------------------------------------------------------------------------------------

// The cost of one size, all else equal: tokens/s for its values from, 2 from, ... to. The size is a
// field of the configuration, or, if `field` is NULL, T. What to expect:
//
//   - Per token, all layers cost the same for every T, except attention: a token sees T / 2 others
//     on average. Speed drops where attention outgrows the rest.
//   - More experts do not add arithmetic, since a token visits one of them. But each gets fewer
//     rows, and products of few rows are slower; and the optimiser has more weights to update.
//   - Twice the threads are at best twice as fast; some loops are too short to be shared.
static void bench_scaling(const char *what, const char *fields, const char *field, int from,
                          int to) {
    printf("%-32s", what);
    for (int value = from; value <= to; value *= 2) {
        Config config = config_preset("tiny");
        config_parse(&config, fields, "bench");
        if (field)
            field_set(&config, field_find(config_field, CONFIG_FIELDS, field), value, "bench");
        config_complete(&config, "bench");
        size_t T = field ? 256 : (size_t)value;
        printf("  %d: %.0f", value, bench_training(config, 4096 / T, T, false));
        fflush(stdout);
    }
    printf("\n");
}

static void bench_all_scaling(void) {
    int all = n_threads;
    printf("\nscaling: training the tiny model, 4096 tokens a step, tokens/s\n");
    bench_scaling("tokens in a sequence (dense)", "use_moe=0 max_position_embeddings=4096", NULL,
                  128, 4096);
    bench_scaling("experts, one a token", "num_experts_per_tok=1 moe_intermediate_size=384",
                  "num_experts", 1, 16);
    for (n_threads = 1; n_threads <= all; n_threads *= 2) {
        char what[40];
        snprintf(what, sizeof what, "threads: %d", n_threads);
        bench_scaling(what, "", NULL, 256, 256);
    }
    n_threads = all;
}

// ---- the command --------------------------------------------------------------------------------

typedef struct {
    const char *preset;
} BenchOptions;

static const Field bench_options[] = {
    {"preset", "", 's', offsetof(BenchOptions, preset), 0, 0, 0, "measure this one; default: all"},
};

int main(int argc, char **argv) {
    program = "bench";
    if (argc > 1 && (!strcmp(argv[1], "help") || !strcmp(argv[1], "--help"))) {
        printf("usage: bench [--preset NAME] [--threads N] [--plain 1]\n");
        return 0;
    }
    Options o = {0};
    BenchOptions own = {NULL};
    read_options(argv + 1, '*', &o, (OptionSet){bench_options, 1, 0, &own, NULL}, NULL);
    if (own.preset) config_preset(own.preset); // exits if there is none of that name

    static const size_t shape[][2] = { // in, out: those of the preset minimind3
        {768, 768}, {768, 384}, {768, 2432}, {2432, 768}, {768, 6400}};
    double peak = peak_gflops();
    printf("%d thread%s: the kernel computes %.1f GFLOP/s\n\n", n_threads,
           n_threads > 1 ? "s" : "", peak);
    printf("matrix products in GFLOP/s (share of the kernel)\n");
    for (int i = 0; i < 5; i++) bench_products(1024, shape[i][0], shape[i][1], peak);

    for (const Preset *p = presets; p < presets + PRESETS; p++)
        if (!own.preset || !strcmp(own.preset, p->name)) bench_preset(p->name, peak);
    bench_tokenizer();
    if (!o.plain) bench_all_scaling(); // the definitions would take many minutes
    if (fflush(stdout) || ferror(stdout)) die("standard output cannot be written");
    return 0;
}
