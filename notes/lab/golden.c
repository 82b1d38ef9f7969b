// golden.c - do the numbers agree with another implementation, in another language?
//
// A part of check.c, which includes this file and has the command line: out/lab/check notes/golden
//
// If both agree, they can only share an error of understanding. A file holds a configuration,
// inputs and results. It needs no weights, since these are random numbers that follow from the
// names of the tensors. Every record has to be used: a key that nothing checks counts as a failure.
//
// A matrix of weights is too large to be listed. The file has its l2 norm, its first four numbers,
// and its "probe", the sum of its numbers times random ones: that changes if two of them are
// exchanged, which the norm does not notice.

#include <glob.h>

// ---- a file -------------------------------------------------------------------------------------

typedef struct { // one line: a key, often a row number or a name, and numbers
    char **field; // (n)
    int n;
    bool used;
} Record;

typedef struct { // a file, and what is computed for it
    const char *path;
    char *text;     // of the whole file; the fields point into it
    Record *record; // (n)
    int n;
    Model *model, *reference; // reference: of DPO and GRPO, else NULL
    Acts *acts;
    Batch batch;
    double gap; // the smallest so far, see smallest_gap()
} Golden;

// Splits a file into records. Lines that begin with '#' are comments.
static Golden golden_read(const char *path) {
    Golden g = {.path = path, .text = read_file(path, &(size_t){0}), .gap = INFINITY};
    char *next;
    for (char *line = g.text; line && *line; line = next) {
        next = strchr(line, '\n');
        if (next) *next++ = 0;
        if (*line == '#') continue;

        Record r = {0};
        for (char *s = strtok(line, "\t \r"); s; s = strtok(NULL, "\t \r")) {
            r.field = xrealloc(r.field, r.n + 1, sizeof *r.field);
            r.field[r.n++] = s;
        }
        if (!r.n) continue;
        g.record = xrealloc(g.record, g.n + 1, sizeof *g.record);
        g.record[g.n++] = r;
    }
    return g;
}

static void golden_free(Golden *g) {
    for (int i = 0; i < g->n; i++) free(g->record[i].field);
    free(g->record);
    free(g->text);
    if (g->reference) model_free(g->reference);
    if (g->model) {
        acts_free(g->acts);
        batch_free(&g->batch);
        model_free(g->model);
    }
    release();
}

// The next record after `after` (NULL: from the start) with this key and, if not NULL, this second
// field; NULL if there is none.
static Record *golden_next(Golden *g, Record *after, const char *key, const char *second) {
    for (Record *r = after ? after + 1 : g->record; r < g->record + g->n; r++)
        if (!strcmp(r->field[0], key) && (!second || (r->n > 1 && !strcmp(r->field[1], second)))) {
            r->used = true;
            return r;
        }
    return NULL;
}

// The record of a key and, if not negative, a row number; NULL if there is none.
static Record *golden_row(Golden *g, const char *key, int row) {
    char number[12];
    snprintf(number, sizeof number, "%d", row);
    return golden_next(g, NULL, key, row < 0 ? NULL : number);
}

// Field i of a record; exits if either is missing.
static const char *golden_field(const Golden *g, const Record *r, size_t i) {
    if (!r || i >= (size_t)r->n)
        die("%s: field %zu of %s is missing", g->path, i, r ? r->field[0] : "a record");
    return r->field[i];
}

static double golden_number(const Golden *g, const Record *r, size_t i) {
    const char *field = golden_field(g, r, i);
    char *end;
    double value = strtod(field, &end);
    if (end == field || *end)
        die("%s: %s: field %zu is %s, not a number", g->path, r->field[0], i, field);
    return value;
}

// A whole number from least to most.
static int golden_int(const Golden *g, const Record *r, size_t i, int least, int most) {
    double value = golden_number(g, r, i);
    if (!(value >= least && value <= most) || value != floor(value))
        die("%s: %s: field %zu is %g; allowed is a whole number from %d to %d", g->path,
            r->field[0], i, value, least, most);
    return (int)value;
}

// The value of a key that the file must have.
static const char *golden_string(Golden *g, const char *key) {
    Record *r = golden_next(g, NULL, key, NULL);
    if (!r) die("%s: %s is missing", g->path, key);
    return golden_field(g, r, 1);
}

static double golden_value(Golden *g, const char *key) {
    golden_string(g, key); // exits if it is missing
    return golden_number(g, golden_next(g, NULL, key, NULL), 1);
}

// Compares n numbers with the fields of r from `first` on: the largest error, relative to `scale`
// (0: to each number itself), against the limit.
static void golden_compare(const Golden *g, const Record *r, int first, const double *got, size_t n,
                           double scale, double limit) {
    double worst = 0;
    char what[200] = "";
    for (int i = 0; i < first && strlen(what) < 100; i++)
        snprintf(what + strlen(what), 80, "%s%s", i ? " " : "", r->field[i]);

    for (size_t i = 0; i < n; i++) {
        double want = golden_number(g, r, first + i), unit = scale;
        if (scale == 0) unit = want != 0 ? fabs(want) : 1;
        worst = larger_error(worst, fabs(got[i] - want) / unit);
    }
    check_error(worst, limit, "%s", what);
}

// The same for a key and, if not negative, a row number. Not every file has every key.
static void golden_check(Golden *g, const char *key, int row, const double *got, size_t n,
                         double scale, double limit) {
    Record *r = golden_row(g, key, row);
    if (r) golden_compare(g, r, row < 0 ? 1 : 2, got, n, scale, limit);
}

// The same for a single number.
static void golden_scalar(Golden *g, const char *key, double got, double scale, double limit) {
    golden_check(g, key, -1, &got, 1, scale, limit);
}

// ---- models and batches -------------------------------------------------------------------------

// Most keys of the configuration are those of config.json, and are found in the table of fields.
static Config golden_config(Golden *g) {
    Config c = config_preset("minimind3");
    for (Record *r = g->record; r < g->record + g->n; r++) {
        const Field *f = field_find(config_field, CONFIG_FIELDS, r->field[0]);
        if (!f || r->n < 2) continue;
        field_set(&c, f, golden_number(g, r, 1), g->path);
        r->used = true;
    }
    c.router_aux_loss_coef = golden_value(g, "aux_coef");
    c.seq_aux = !strcmp(golden_string(g, "aux_kind"), "seq");
    golden_next(g, NULL, "data_tag", NULL); // says where the ids come from
    config_complete(&c, g->path);
    return c;
}

// A random number in [-1, 1) that is an exact float; section 2 of notes/golden/README.md.
static float signed_unit(uint64_t stream, uint64_t i) {
    float u = (float)(splitmix64(stream + i) >> 40) * 0x1p-24f;
    return 2.0f * u - 1.0f;
}

// The tag, "-" for none, is appended to all names: it makes other weights for another model.
static void golden_weights(Model *model, const char *tag) {
    for (Tensor *t = model->tensor; t < model->tensor + model->n_tensors; t++) {
        char name[160];
        snprintf(name, sizeof name, "%s%s", t->name, strcmp(tag, "-") ? tag : "");
        uint64_t stream = fnv1a64(name);
        for (size_t i = 0; i < tensor_size(t); i++) t->weight[i] = signed_unit(stream, i) * 0.1f;
        // In a loop of its own: a fused multiply-add would round once instead of twice.
        for (size_t i = 0; i < tensor_size(t) && !is_matrix(t); i++) t->weight[i] += 1;
    }
}

static Model *golden_model(Golden *g, const char *tag_key) {
    Model *model = model_new(golden_config(g));
    model_allocate(model, true, 32);
    golden_weights(model, golden_string(g, tag_key));
    return model;
}

// DPO's files have all chosen answers first and then all rejected ones; the book has them in pairs.
// The number in the file of row `row` of the batch.
static int file_row(Golden *g, size_t row, size_t rows) {
    bool pairs = golden_next(g, NULL, "loss_dpo", NULL);
    return (int)(pairs ? row % 2 * (rows / 2) + row / 2 : row);
}

// Reads a matrix of whole numbers, one record per row, into x (rows, cols).
static void golden_ints(Golden *g, int *x, const char *key, size_t rows, size_t cols, int least,
                        int most) {
    for (size_t i = 0; i < rows * cols; i++)
        x[i] = golden_int(g, golden_row(g, key, file_row(g, i / cols, rows)), i % cols + 2, least,
                          most);
}

// The model or models of the file, and a batch with `rows` rows of its ids, without targets yet.
static void golden_load(Golden *g, const char *ids_key, size_t rows) {
    size_t T = golden_value(g, "seq");
    g->model = golden_model(g, "weight_tag");
    if (golden_next(g, NULL, "ref_weight_tag", NULL))
        g->reference = golden_model(g, "ref_weight_tag");
    g->acts = acts_new(g->model, TRAINING, rows * T, 0, 0);
    g->batch = batch_new(rows, T);
    g->batch.rows = rows;
    g->batch.T = T;
    golden_ints(g, g->batch.ids, ids_key, rows, T, 0, (int)g->model->V - 1);
    for (size_t row = 0; row < rows; row++) g->batch.length[row] = (int)T;
}

// Position t of a row predicts the label of t + 1, unless that is negative. labels (rows, T).
static void set_targets(Batch *b, const int *labels) {
    b->n_targets = 0;
    for (size_t i = 0; i < b->rows * b->T; i++) {
        b->target[i] = i % b->T < b->T - 1 && labels[i + 1] >= 0 ? labels[i + 1] : -1;
        b->n_targets += b->target[i] >= 0;
    }
}

// ---- weights, gradients, activations ------------------------------------------------------------

// Six numbers that represent n: l2, probe, and the first four.
static void digest(double v[6], const char *name, const float *x, size_t n) {
    char probe[120];
    snprintf(probe, sizeof probe, "%s#probe", name);
    uint64_t stream = fnv1a64(probe);
    for (size_t i = 0; i < 6; i++) v[i] = 0;
    for (size_t i = 0; i < n; i++) {
        v[0] += (double)x[i] * x[i];
        v[1] += (double)x[i] * signed_unit(stream, i);
        if (i < 4) v[2 + i] = x[i];
    }
    v[0] = sqrt(v[0]);
}

// One digest record per tensor: its weights are in "param", its gradients in "grad", and its
// weights after N steps in "param_stepN".
static void golden_tensors(Golden *g, const char *key) {
    bool gradients = !strcmp(key, "grad"), exact = !strcmp(key, "param");
    for (Record *r = NULL; (r = golden_next(g, r, key, NULL));) {
        const Tensor *t = g->model->tensor, *end = t + g->model->n_tensors;
        while (t < end && strcmp(t->name, golden_field(g, r, 1))) t++;
        if (t == end) die("%s: %s: there is no tensor %s", g->path, key, r->field[1]);

        double v[6], limit = gradients ? 1e-4 : 4e-5;
        if (gradients && g->model->K == 1 && strstr(t->name, "mlp.gate.weight")) limit = 5e-4;
        digest(v, t->name, gradients ? t->grad : t->weight, tensor_size(t));
        if (!exact) golden_compare(g, r, 3, v, 6, fabs(golden_number(g, r, 3)), limit);
        if (!exact) continue;
        golden_compare(g, r, 4, v, 2, fabs(golden_number(g, r, 4)), 1e-6); // sums of exact numbers
        golden_compare(g, r, 6, v + 2, 4, 1, 1e-7);
    }
}

// An activation with rows of `width` numbers: its l2, and the first four of the last row. `minus`
// is subtracted if not NULL: what a block adds to the residual stream is not stored by itself.
static void golden_act(Golden *g, const char *layer, const char *what, const float *x,
                       const float *minus, size_t width) {
    char name[60];
    snprintf(name, sizeof name, "%s%s", layer, what);
    Record *r = golden_next(g, NULL, "act", name);
    if (!r) return;
    size_t n = g->acts->N * width, last = n - width;
    double v[5] = {0};
    for (size_t i = 0; i < n; i++) v[0] += pow(x[i] - (minus ? minus[i] : 0), 2);
    v[0] = sqrt(v[0]);
    for (size_t i = 0; i < 4; i++) v[1 + i] = x[last + i] - (minus ? minus[last + i] : 0);
    golden_compare(g, r, 2, v, 1, v[0] + 1e-30, 1e-5);
    golden_compare(g, r, 3, v + 1, 4, 1, 2e-5);
}

// All activations that the file knows, layer by layer.
static void golden_acts(Golden *g) {
    const Model *model = g->model;
    size_t C = model->C;
    golden_act(g, "", "embed", g->acts->layer[0].x, NULL, C);
    for (size_t l = 0; l < model->L; l++) {
        const LayerActs *act = &g->acts->layer[l];
        const float *x_out = g->acts->layer[l + 1].x; // (N, C)
        char layer[30];
        snprintf(layer, sizeof layer, "layer%zu.", l);
        golden_act(g, layer, "attn_norm", act->norm1, NULL, C);
        golden_act(g, layer, "q_rot", act->q, NULL, model->H * model->D);
        golden_act(g, layer, "k_rot", act->k, NULL, model->KV * model->D);
        golden_act(g, layer, "attn_out", act->x_mid, act->x, C);
        golden_act(g, layer, "mlp_norm", act->norm2, NULL, C);
        golden_act(g, layer, "mlp_out", x_out, act->x_mid, C);
        golden_act(g, layer, "out", x_out, NULL, C);
    }
    golden_act(g, "", "final_norm", g->acts->final_norm, NULL, C);
}

// The smallest distance, over all layers and tokens, between the last expert that is chosen and the
// first that is not. Near 0, rounding could change a choice.
static double smallest_gap(const Model *model, const Acts *a) {
    size_t E = model->E, K = model->K;
    double gap = INFINITY;
    for (size_t i = 0; i < model->L * a->N * E; i++) { // layer, token, expert
        const Routing *r = &a->layer[i / E / a->N].route;
        size_t n = i / E % a->N;
        bool skip = (int)(n % a->T) >= a->length[n / a->T]; // padding
        for (size_t k = 0; k < K; k++) skip |= r->choice[n * K + k] == (int)(i % E);
        if (skip) continue;
        double last_chosen = r->prob[n * E + r->choice[n * K + K - 1]];
        gap = fmin(gap, last_chosen - r->prob[n * E + i % E]);
    }
    return gap;
}

// How the router of each layer has decided.
static void golden_router(Golden *g) {
    const Acts *a = g->acts;
    size_t E = g->model->E, K = g->model->K, N = a->N;
    for (size_t l = 0; l < g->model->L && E; l++) {
        const Routing *r = &a->layer[l].route;
        double *count = borrow(E, sizeof(double));         // (E)
        double *mean = borrow(E, sizeof(double));          // (E)
        double *last = borrow(E, sizeof(double));          // (E) of the last token
        double *choice = borrow(a->T * K, sizeof(double)); // (T, K) of the last sequence
        for (size_t i = 0; i < N * K; i++) count[r->choice[i]]++;
        for (size_t i = 0; i < N * E; i++) mean[i % E] += r->prob[i] / (double)N;
        for (size_t e = 0; e < E; e++) last[e] = r->prob[(N - 1) * E + e];
        for (size_t i = 0; i < a->T * K; i++) choice[i] = r->choice[(N - a->T) * K + i];
        golden_check(g, "router_counts", (int)l, count, E, 1, 0);
        golden_check(g, "router_mean_prob", (int)l, mean, E, 1, 2e-5);
        golden_check(g, "router_choice", (int)l, choice, a->T * K, 1, 0);
        golden_check(g, "router_prob_last", (int)l, last, E, 1, 2e-5);
    }
}

// ---- language models ----------------------------------------------------------------------------

// Greedy generation through the KV cache, with all matrices but the embedding scaled up so that a
// small random model does not repeat itself. Restores the weights of the file.
static void golden_generation(Golden *g) {
    enum { PROMPT = 5, NEW = 16 };
    Model *model = g->model;
    double scale = golden_value(g, "gen_matrix_scale");
    double best[NEW], tokens[NEW], gap = INFINITY;
    int ids[PROMPT + NEW];
    Record *prompt = golden_next(g, NULL, "gen_prompt", NULL);
    for (int i = 0; i < PROMPT; i++) ids[i] = golden_int(g, prompt, 1 + i, 0, (int)model->V - 1);
    for (Tensor *t = model->tensor; t < model->tensor + model->n_tensors; t++)
        for (size_t i = 0; is_matrix(t) && t != model->embed && i < tensor_size(t); i++)
            t->weight[i] *= scale;

    Acts *a = acts_new(model, INFERENCE, PROMPT, 1, PROMPT + NEW);
    for (int n = 0; n < NEW; n++) {
        int fed = n ? PROMPT + n - 1 : 0; // tokens in the cache
        prefill(model, a, ids + fed, n ? 1 : PROMPT, fed, 0);
        int top = 0;
        double second = -INFINITY;
        for (int v = 1; v < (int)model->V; v++) {
            bool higher = a->logits[v] > a->logits[top];
            second = fmax(second, a->logits[higher ? top : v]);
            if (higher) top = v;
        }
        best[n] = a->logits[top];
        tokens[n] = ids[PROMPT + n] = top;
        gap = fmin(gap, best[n] - second);
    }
    acts_free(a);
    golden_weights(model, golden_string(g, "weight_tag"));
    golden_check(g, "gen_tokens", -1, tokens, NEW, 1, 0);
    golden_check(g, "gen_best_logit", -1, best, NEW, 0, 1e-4);
    golden_scalar(g, "gen_min_logit_gap", gap, 1, 1e-4);
}

// The logits of all rows; for this each row gets a target, its own id.
static void golden_logits(Golden *g) {
    const Batch *b = &g->batch;
    const float *logits = g->acts->logits; // (N, V)
    size_t V = g->model->V;
    Batch all = *b;
    all.target = b->ids;
    logp_of(g->model, g->acts, &all, 0, b->rows);
    double v[6];
    digest(v, "logits", logits, g->acts->N * V);
    Record *r = golden_next(g, NULL, "logits_digest", NULL);
    if (r) golden_compare(g, r, 1, v, 2, v[0], 1e-5);
    if (r) golden_compare(g, r, 3, v + 2, 4, 1, 2e-5);

    for (r = NULL; (r = golden_next(g, r, "logit", NULL));) {
        size_t row = golden_int(g, r, 1, 0, (int)b->rows - 1);
        size_t t = golden_int(g, r, 2, 0, (int)b->T - 1);
        double logit = logits[(row * b->T + t) * V + golden_int(g, r, 3, 0, (int)V - 1)];
        golden_compare(g, r, 4, &logit, 1, 1, 2e-5);
    }
}

// The loss of an objective, and the gradients that follow from it.
static Report golden_objective(Golden *g, Objective *objective, const void *own, const char *key) {
    Report r = accumulate_gradients(g->model, g->acts, &g->batch, g->batch.rows, objective, own);
    g->gap = fmin(g->gap, smallest_gap(g->model, g->acts));
    golden_scalar(g, "router_min_gap", g->gap, 1, 2e-5);
    golden_scalar(g, key, r.loss, 0, 1e-5);
    golden_scalar(g, "loss_aux", r.aux_loss, r.aux_loss ? 0 : 1, 1e-5);
    golden_scalar(g, "loss_total", r.loss + r.aux_loss, 0, 1e-5);
    golden_tensors(g, "param");
    golden_tensors(g, "grad");
    golden_scalar(g, "grad_norm", r.grad_norm, 0, 1e-4);
    return r;
}

// One batch forward and backward, generation, and ten optimiser steps.
static void golden_language_model(Golden *g) {
    golden_load(g, "input_ids", golden_value(g, "batch"));
    Batch *b = &g->batch;
    int *labels = borrow(b->rows * b->T, sizeof *labels); // (rows, T)
    golden_ints(g, labels, "labels", b->rows, b->T, -100, (int)g->model->V - 1);
    set_targets(b, labels);
    golden_scalar(g, "n_targets", b->n_targets, 1, 0);
    golden_generation(g);
    golden_logits(g);
    Report r = golden_objective(g, next_token_loss, NULL, "loss_ce");
    golden_acts(g);
    golden_router(g);

    // The reference decays norms too.
    for (int i = 0; i < g->model->n_tensors; i++) g->model->tensor[i].decay = true;
    for (int step = 0; step <= 10; step++) {
        if (step > 0) {
            char key[24];
            snprintf(key, sizeof key, "param_step%d", step);
            AdamW adamw = {1e-3, 0.9, 0.999, 1e-8, 0.01, 1.0, step};
            adamw_step(g->model, &adamw, r.grad_norm);
            golden_tensors(g, key);
            r = accumulate_gradients(g->model, g->acts, b, b->rows, next_token_loss, NULL);
            g->gap = fmin(g->gap, smallest_gap(g->model, g->acts));
        }
        double v[4] = {r.loss + r.aux_loss, r.loss, r.aux_loss, r.grad_norm};
        golden_check(g, "step", step, v, 4, 0, 2e-5);
    }
    golden_scalar(g, "router_min_gap_all_steps", g->gap, 1, 2e-5);
}

// ---- objectives ---------------------------------------------------------------------------------

// The log-probability of each target of the batch: (rows, T), 0 where there is no target.
static float *golden_logp(Golden *g, const Model *model) {
    const Batch *b = &g->batch;
    float *logp = borrow(b->rows * b->T, sizeof *logp);
    store_logp(model, g->acts, b, b->rows, logp);
    g->gap = fmin(g->gap, smallest_gap(model, g->acts));
    return logp;
}

// DPO: the sums of both models for each row, the margins of the pairs, and the loss.
static void golden_preferences(Golden *g) {
    size_t n = golden_value(g, "batch"), rows = 2 * n;
    golden_load(g, "ids", rows);
    Batch *b = &g->batch;
    size_t N = rows * b->T;
    int *labels = borrow(N, sizeof *labels); // (rows, T)
    golden_ints(g, labels, "mask", rows, b->T, 0, 1);
    for (size_t i = 0; i < N; i++) labels[i] = labels[i] ? b->ids[i] : -1;
    set_targets(b, labels);
    for (size_t row = 0; row < rows; row++) b->length[row]--; // the models read one token less

    const float *logp = golden_logp(g, g->model), *ref_logp = golden_logp(g, g->reference);
    double *own_sum = borrow(rows, sizeof(double)); // (rows) the reference's, as the batch has them
    double *sum = borrow(rows, sizeof(double));     // (rows) as the file has them, like all below
    double *ref_sum = borrow(rows, sizeof(double)); // (rows)
    double *implicit = borrow(rows, sizeof(double)), *margin = borrow(n, sizeof(double));
    double beta = golden_value(g, "beta"), right = 0;
    for (size_t i = 0; i < N; i++) {
        own_sum[i / b->T] += ref_logp[i];
        sum[file_row(g, i / b->T, rows)] += logp[i];
        ref_sum[file_row(g, i / b->T, rows)] += ref_logp[i];
    }
    for (size_t row = 0; row < rows; row++) implicit[row] = beta * (sum[row] - ref_sum[row]);
    for (size_t i = 0; i < n; i++) margin[i] = implicit[i] - implicit[n + i];
    for (size_t i = 0; i < n; i++) right += margin[i] > 0;
    golden_check(g, "policy_logp_sum", -1, sum, rows, 0, 1e-5);
    golden_check(g, "ref_logp_sum", -1, ref_sum, rows, 0, 1e-5);
    golden_check(g, "implicit_reward", -1, implicit, rows, 1, 1e-5);
    golden_check(g, "margin", -1, margin, n, 1, 1e-5);
    golden_scalar(g, "accuracy", right / n, 1, 1e-5);
    golden_objective(g, dpo_loss, &(Preferences){.beta = beta, .ref_sum = own_sum}, "loss_dpo");
}

// Compares the completion of one row, token by token; its first token is predicted at position
// `first`. It ends with its first `eos`: what follows is no target any more. Returns the sum of the
// kl of its targets.
static double golden_completion(Golden *g, Policy *p, const float *logp, size_t row, size_t first) {
    static const char *const key[] = {"completion_mask", "logp", "ref_logp", "kl",
                                      "per_token_loss"};
    Batch *b = &g->batch;
    size_t n = b->T - 1 - first;                  // tokens of the completion
    double *value = borrow(5 * n, sizeof *value); // (5, n)
    double kl_sum = 0;
    bool ended = false, clipped;
    for (size_t t = 0; t < n; t++) {
        size_t i = row * b->T + first + t;
        double dlogp, kl = kl_of(logp[i], p->ref_logp[i]);
        double cost = (p->cispo ? cispo_token : grpo_token)(
            logp[i], p->old_logp[i], p->advantage[row], p, &dlogp, &clipped);
        double of_token[] = {!ended, logp[i], p->ref_logp[i], kl, cost + p->beta * kl};
        for (int k = 0; k < 5; k++) value[k * n + t] = of_token[k];

        if (ended) b->target[i] = -1;
        else kl_sum += kl;
        p->n_row_targets[row] += !ended;
        ended |= b->ids[i + 1] == golden_value(g, "eos");
    }
    b->n_targets += p->n_row_targets[row];
    for (int k = 0; k < 5; k++)
        golden_check(g, key[k], (int)row, value + k * n, n, 1, k ? 2e-5 : 0);
    return kl_sum;
}

// GRPO and CISPO: the advantages, every token of every completion, and the loss.
static void golden_policy(Golden *g) {
    size_t G = golden_value(g, "num_generations"), rows = G * (size_t)golden_value(g, "batch");
    size_t first = (size_t)golden_value(g, "prompt_len") - 1;
    golden_load(g, "ids", rows);
    Batch *b = &g->batch;
    size_t T = b->T;
    Policy p = {.beta = golden_value(g, "beta"), .epsilon = golden_value(g, "epsilon"),
                .epsilon_high = golden_value(g, "epsilon_high"),
                .cispo = !strcmp(golden_string(g, "loss_type"), "cispo"),
                .old_logp = borrow(rows * T, sizeof(float)),
                .advantage = borrow(rows, sizeof(double)),
                .n_row_targets = borrow(rows, sizeof(int))};

    // At first every token of a completion is a target, so that each gets a logp.
    for (size_t i = 0; i < rows * T; i++) {
        bool completion = i % T >= first && i % T < T - 1;
        b->target[i] = completion ? b->ids[i + 1] : -1;
        const Record *r = golden_row(g, "old_logp", (int)(i / T));
        if (completion) p.old_logp[i] = golden_number(g, r, 2 + i % T - first);
    }
    const float *logp = golden_logp(g, g->model);
    p.ref_logp = golden_logp(g, g->reference);

    const Record *rewards = golden_next(g, NULL, "rewards", NULL);
    for (size_t row = 0; row < rows; row++) p.advantage[row] = golden_number(g, rewards, 1 + row);
    for (size_t row = 0; row < rows; row += G) group_advantages(p.advantage + row, G);
    golden_check(g, "advantage", -1, p.advantage, rows, 1, 1e-5);
    double kl_sum = 0;
    for (size_t row = 0; row < rows; row++) kl_sum += golden_completion(g, &p, logp, row, first);
    golden_scalar(g, "mean_kl", kl_sum / b->n_targets, 0, 2e-5);
    golden_objective(g, policy_loss, &p, "loss_policy");
}

// ---- tables -------------------------------------------------------------------------------------

// Tables of RoPE: each gives a configuration, and then some of its frequencies and angles.
static void golden_rope(Golden *g) {
    static const char *const fields[] = {
        "head_dim", "rope_theta", "max_position_embeddings", "yarn", "yarn_factor",
        "yarn_original_max", "yarn_beta_fast", "yarn_beta_slow", "yarn_attention_factor"};
    for (Record *t = NULL; (t = golden_next(g, t, "table", NULL));) {
        Config c = config_preset("minimind3");
        for (int i = 0; i < 9; i++)
            field_set(&c, field_find(config_field, CONFIG_FIELDS, fields[i]),
                      golden_number(g, t, 2 + i), g->path);
        int D2 = c.head_dim / 2, n = c.max_position_embeddings;
        float *cosine = borrow(n * D2, sizeof *cosine); // (n, D / 2)
        float *sine = borrow(n * D2, sizeof *sine);     // (n, D / 2)
        rope_tables(&c, cosine, sine, n);

        for (Record *r = NULL; (r = golden_next(g, r, "freq", t->field[1]));) {
            double frequency = rope_frequency(&c, golden_int(g, r, 2, 0, D2 - 1));
            golden_compare(g, r, 3, &frequency, 1, 0, 1e-6);
        }
        for (Record *r = NULL; (r = golden_next(g, r, "cos_sin", t->field[1]));) {
            int at = golden_int(g, r, 2, 0, n - 1) * D2 + golden_int(g, r, 3, 0, D2 - 1);
            double v[2] = {cosine[at], sine[at]};
            golden_compare(g, r, 4, v, 2, 1, 1e-6);
        }
    }
}

// The learning rate: step, total steps, base, result.
static void golden_schedule(Golden *g) {
    for (Record *r = NULL; (r = golden_next(g, r, "lr", NULL));) {
        double base = golden_number(g, r, 3);
        double lr = schedule(base, golden_number(g, r, 1), golden_number(g, r, 2), 0);
        golden_compare(g, r, 4, &lr, 1, base, 1e-8);
    }
}

// Logits, what was said before, and a setting; the result is the distribution to draw from.
static void golden_sampling(Golden *g) {
    for (Record *r = NULL; (r = golden_next(g, r, "sampling_logits", NULL));) {
        const char *id = golden_field(g, r, 1);
        const Record *tokens = golden_next(g, NULL, "sampling_history", id);
        const Record *setting = golden_next(g, NULL, "sampling_setting", id);
        const Record *want = golden_next(g, NULL, "sampling_prob", id);
        Sampling s = {.temperature = golden_number(g, setting, 2),
                      .repetition_penalty = golden_number(g, setting, 3),
                      .top_k = (long)golden_number(g, setting, 4),
                      .top_p = golden_number(g, setting, 5)};
        size_t V = r->n - 2, n = tokens ? tokens->n - 2 : 0;
        float *logits = borrow(V, sizeof *logits); // (V)
        float *probs = borrow(V, sizeof *probs);   // (V)
        double *got = borrow(V, sizeof *got);      // (V)
        int *history = borrow(n, sizeof *history); // (n)
        for (size_t v = 0; v < V; v++) logits[v] = golden_number(g, r, 2 + v);
        for (size_t i = 0; i < n; i++) history[i] = golden_int(g, tokens, 2 + i, 0, (int)V - 1);
        sampling_distribution(probs, logits, V, history, n, &s);
        for (size_t v = 0; v < V; v++) got[v] = probs[v];
        golden_compare(g, want, 2, got, V, 1, 1e-6);
    }
}

// ---- one file -----------------------------------------------------------------------------------

// The keys of a file show which kind of case it is. The book has neither LoRA nor distillation; all
// keys of such files are reported as unknown.
static void check_golden(const char *path) {
    Golden g = golden_read(path);
    printf("%s\n", path);
    bool foreign = golden_next(&g, NULL, "alpha", NULL) || golden_next(&g, NULL, "lora_rank", NULL);
    if (golden_next(&g, NULL, "loss_dpo", NULL)) golden_preferences(&g);
    else if (golden_next(&g, NULL, "num_generations", NULL)) golden_policy(&g);
    else if (golden_next(&g, NULL, "input_ids", NULL) && !foreign) golden_language_model(&g);
    else if (golden_next(&g, NULL, "table", NULL)) golden_rope(&g);
    else if (golden_next(&g, NULL, "lr", NULL)) golden_schedule(&g);
    else if (golden_next(&g, NULL, "sampling_logits", NULL)) golden_sampling(&g);

    const char *reported = "";
    for (Record *r = g.record; r < g.record + g.n; r++) {
        if (r->used || !strcmp(r->field[0], reported)) continue;
        reported = r->field[0];
        printf("UNKNOWN key %s: nothing checks it\n", reported);
        n_failed++;
    }
    if (!g.n) printf("UNKNOWN %s holds no record\n", path);
    n_failed += !g.n;
    golden_free(&g);
}

// A file, or all *.txt of a folder in the order of their names.
static void check_path(const char *path) {
    struct stat st;
    if (stat(path, &st) || !S_ISDIR(st.st_mode)) {
        check_golden(path);
        return;
    }
    char *pattern = format("%s/*.txt", path);
    glob_t found;
    if (glob(pattern, 0, NULL, &found)) die("%s: the folder has no .txt file", path);
    for (size_t i = 0; i < found.gl_pathc; i++) check_golden(found.gl_pathv[i]);
    globfree(&found);
    free(pattern);
}
