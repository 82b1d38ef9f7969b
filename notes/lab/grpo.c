// grpo.c - GRPO and CISPO: the model learns from answers of its own. A stage of training that is
// added to the book from outside.
//
//     mkdir -p out/lab && cc -O3 -march=native -o out/lab/grpo notes/lab/grpo.c -lm
//     out/lab/grpo --model out/think --data out/world/grpo.jsonl --think 1        (or: help)
//
// THE IDEA. SFT shows the model an answer, DPO shows it two. Here it sees only the question. It
// draws a group of G answers (G here is not H / KV), and a rule checks each of them. The tokens of
// answers that did better than their group become more probable, those of worse answers less
// probable. No teacher is needed, only questions whose answers are easy to check, such as sums.
//
// THE FORMULAS. The reward r of an answer is 1 if it is right, plus 0.25 if it has good form; its
// advantage is A = (r - mean) / deviation, both over its group. For one token of the answer, logp
// is its log-probability in the model now, old_logp in the model that drew the answer, and ref_logp
// in the reference, which is the model before the first step:
//
//     ratio = e^(logp - old_logp)
//     GRPO    cost = -min(ratio A, clamp(ratio, 1 - epsilon, 1 + epsilon) A)
//     CISPO   cost = -min(ratio, epsilon_high) A logp,   where min(...) counts as a constant
//     both    kl   = e^d - d - 1   with   d = ref_logp - logp
//
//     loss = mean over the answers of (mean over the tokens of an answer of (cost + beta kl))
//
// This is a function of logp, so it is an objective like those of chapter 4. train() in chapter 7
// does not know this stage; it calls the functions of grpo_stage, at the end of this file:
//
//     fill_answers           every --updates steps makes a new batch:
//         draw_answers           G answers to each of the next questions, all at once
//         score_answers          rewards, then advantages
//         make_batch             prompts and answers as rows of ids; the answers are the targets
//         store_logp             old_logp and ref_logp of each target
//     drawn_loss             logp -> loss and dlogp, through policy_loss
//     measure_answers        now and then: how many held-out questions are answered right

// Another instrument may include this file and have renamed its own main.
#pragma push_macro("main")
#undef main
#define main minimind_main
#include "../../minimind.c"
#undef main
#pragma pop_macro("main")

// ---- the losses ---------------------------------------------------------------------------------

// Why this learns. If the model gives the answer y with probability p(y), its expected reward is
// sum_y p(y) r(y). Since dp = p d(log p), the derivative of that is
//
//     sum_y p(y) r(y) d(log p(y)):   the mean of r d(log p) over answers that the model draws.
//
// Drawing some answers estimates it. The p(y) add up to 1, so the mean of d(log p) is 0, and a
// constant can be subtracted from r: with the mean reward of the question, the gradient is much
// less noisy. That leaves, up to a scale, the advantage A. log p(y) is the sum of logp over the
// tokens of y, so each token gets dlogp = -A, with a minus because a loss is minimised. Both losses
// give this while ratio = 1; they differ in later updates on the same answers.

typedef struct {
    double beta;                // how strongly the reference holds the model back
    double epsilon;             // GRPO: how far the ratio may move away from 1
    double epsilon_high;        // CISPO: the largest ratio that counts
    bool cispo;                 // or else GRPO
    float *old_logp, *ref_logp; // (rows, T) each, valid where there is a target
    double *advantage;          // (rows)
    int *n_row_targets;         // (rows) targets of each row
} Policy;

// GRPO (Shao et al. 2024) takes the clipped cost of PPO. The derivative of the ratio by logp is the
// ratio itself, so
//
//     dlogp = -ratio A,   or 0 where the clamped product is the smaller one.
//
// That is where the ratio has left the clamp in the direction of A: above 1 + epsilon for A > 0,
// below 1 - epsilon for A < 0. So one batch cannot move a token arbitrarily far.
static double grpo_token(double logp, double old_logp, double advantage, const Policy *p,
                         double *dlogp, bool *clipped) {
    double ratio = exp(logp - old_logp);
    double clamped = fmin(fmax(ratio, 1 - p->epsilon), 1 + p->epsilon);
    *clipped = clamped * advantage < ratio * advantage;
    *dlogp = *clipped ? 0 : -ratio * advantage;
    return -fmin(ratio * advantage, clamped * advantage);
}

// CISPO (MiniMax-M1, 2025) limits the weight of a token instead of setting its gradient to 0, so
// that every token goes on learning. The weight is a constant by definition, not differentiated:
//
//     cost = -weight logp,   weight = min(ratio, epsilon_high) A,   dlogp = -weight
static double cispo_token(double logp, double old_logp, double advantage, const Policy *p,
                          double *dlogp, bool *clipped) {
    double ratio = exp(logp - old_logp);
    double weight = fmin(ratio, p->epsilon_high) * advantage;
    *clipped = ratio > p->epsilon_high;
    *dlogp = -weight;
    return -weight * logp;
}

// The distance from the reference, estimated from one drawn token (Schulman's k3). With p and ref
// the two probabilities of the token, e^d = ref / p. Tokens are drawn with probability p, so the
// mean of e^d is sum p (ref / p) = 1, and the mean of kl = e^d - d - 1 is that of -d = logp -
// ref_logp, the KL divergence. But kl is never negative, and less noisy than -d. Its derivative by
// logp is 1 - e^d.
static double kl_of(double logp, double ref_logp) {
    return exp(ref_logp - logp) - (ref_logp - logp) - 1;
}

// The objective; `own` is a const Policy. The mean over the tokens of a row is taken first, so that
// a long answer does not count more than a short one.
static double policy_loss(float *dlogp, const float *logp, size_t n, const Batch *b,
                          const void *own, Figures *more) {
    const Policy *p = own;
    double loss = 0;
    for (size_t i = 0; i < n; i++) {
        size_t at = b->at[i], row = at / b->T;
        double share = 1.0 / b->rows / p->n_row_targets[row];
        double ref_logp = p->ref_logp[at], kl = kl_of(logp[i], ref_logp);
        double dcost;
        bool clipped;
        double cost = (p->cispo ? cispo_token : grpo_token)(
            logp[i], p->old_logp[at], p->advantage[row], p, &dcost, &clipped);

        loss += share * (cost + p->beta * kl);
        dlogp[i] = share * (dcost + p->beta * (1 - exp(ref_logp - logp[i])));
        add_figure(more, "kl", kl / b->n_targets, NAN);
        add_figure(more, "clipped", (double)clipped / b->n_targets, NAN);
    }
    return loss;
}

// The log-probability of each target of a batch under `model`, in passes of at most pass_rows rows,
// into (rows, T). Places without a target stay as they are.
static void store_logp(const Model *model, Acts *a, const Batch *b, size_t pass_rows, float *into) {
    for (size_t row = 0; row < b->rows; row += pass_rows) {
        logp_of(model, a, b, row, min_size(pass_rows, b->rows - row));
        for (int i = 0; i < a->n_out; i++) into[b->at[i]] = a->logp[i];
    }
}

// ---- rewards and advantages ---------------------------------------------------------------------

// 1 for a right answer and 0.25 for good form: an end token and, if it had to think, thoughts that
// are closed once. Form alone earns a little, so that a model which solves nothing yet can begin.
static double answer_reward(const Answer *x, bool think, bool *right) {
    const char *close = think ? strstr(x->text.s, "</think>") : x->text.s;
    bool form = x->done && close && !(think && strstr(close + 1, "</think>"));
    *right = form && answer_is(answer_text(x, think), &x->accepted);
    return *right + 0.25 * form;
}

// Replaces the rewards of a group, reward (G), by its advantages. If all answers of a group are
// equally good, it has nothing to teach: all advantages are 0, and 1e-4 prevents 0 / 0.
static void group_advantages(double *reward, size_t G) {
    double mean = 0, variance = 0;
    for (size_t g = 0; g < G; g++) mean += reward[g] / G;
    for (size_t g = 0; g < G; g++) variance += pow(reward[g] - mean, 2) / G;
    for (size_t g = 0; g < G; g++) reward[g] = (reward[g] - mean) / (sqrt(variance) + 1e-4);
}

// ---- drawing answers ----------------------------------------------------------------------------

typedef struct { // what the stage needs beyond the book's Run
    Policy policy;
    const char *loss;              // these five are options, as are three fields of policy
    long G, updates, think;
    double temperature;
    Tasks tasks, held;             // questions to train on, and to measure on
    Model *reference;              // the model before the first step; --beta 0: NULL
    Acts *drawing;                 // has a KV cache with a slot for each row of the batch
    uint64_t n_asked, n_fills;     // questions asked, and calls of fill_answers(), so far
    double reward, solved, length; // means over the answers in the batch
} Grpo;

// The question of a turn, where turns are counted from 0. Each epoch visits all n questions once,
// in strides of a prime number from a random start.
static const Answer *task_of(const Tasks *t, uint64_t turn, long seed) {
    uint64_t n = t->n, stride = n % 7919 ? 7919 : 1;
    uint64_t stream = splitmix64(seed + 77) + turn / n;
    return &t->answer[(splitmix64(stream) + turn * stride) % n];
}

// Draws G answers to each of the next questions into answer (rows). Rows of a group are neighbours,
// so complete() prefills their prompt once. top-k and top-p are off, because the derivation needs
// answers from the model's own distribution. At a temperature other than 1 it holds only
// approximately.
static void draw_answers(Run *run, Grpo *grpo, Answer *answer) {
    long seed = run->o->sampling.seed;
    for (size_t row = 0; row < run->rows; row++) {
        const Answer *task = task_of(&grpo->tasks, grpo->n_asked + row / grpo->G, seed);
        answer[row].accepted = task->accepted;
        for (size_t i = 0; i < task->ids.n; i++) ids_push(&answer[row].ids, task->ids.id[i]);
    }

    Sampling sampling = {.temperature = grpo->temperature, .top_p = 1, .repetition_penalty = 1,
                         .max_new_tokens = run->o->sampling.max_new_tokens,
                         .seed = (long)(splitmix64(seed) + grpo->n_asked * grpo->G)};
    complete(run->model, grpo->drawing, run->tok, answer, run->rows, &sampling, false);
    grpo->n_asked += run->rows / grpo->G;
}

// Fills in the advantages of answer (rows), and what is reported of the drawing.
static void score_answers(const Run *run, Grpo *grpo, const Answer *answer) {
    double *advantage = grpo->policy.advantage; // (rows) at first the rewards
    size_t rows = run->rows;
    grpo->reward = grpo->solved = grpo->length = 0;
    for (size_t row = 0; row < rows; row++) {
        bool right;
        advantage[row] = answer_reward(&answer[row], grpo->think, &right);
        grpo->reward += advantage[row] / rows;
        grpo->solved += (double)right / rows;
        grpo->length += (double)(answer[row].ids.n - answer[row].prompt) / rows;
    }
    for (size_t row = 0; row < rows; row += grpo->G) group_advantages(advantage + row, grpo->G);
}

// The rows of the batch: a prompt and its answer, padded to the longest. The targets are the tokens
// of the answer with its end token.
static void make_batch(Run *run, Grpo *grpo, Answer *answer) {
    Batch *b = &run->batch;
    b->rows = run->rows;
    b->T = 1;
    b->n_targets = 0;
    for (size_t row = 0; row < b->rows; row++) b->T = max_size(b->T, answer[row].ids.n - 1);

    for (size_t row = 0; row < b->rows; row++) {
        const Answer *x = &answer[row];
        for (size_t i = x->prompt; i < x->ids.n; i++) x->ids.id[i] |= TRAINED;
        grpo->policy.n_row_targets[row] =
            batch_set_row(b, row, x->ids.id, x->ids.n - 1);
    }
}

// A new batch every --updates steps. In the first of these all ratios are 1, because the model is
// still the one that drew.
static void fill_answers(Run *run) {
    Grpo *grpo = run->own;
    const Policy *p = &grpo->policy;
    const Batch *b = &run->batch;
    bool again = grpo->n_fills % grpo->updates; // the same batch
    grpo->n_fills++;
    if (again) return;

    Answer *answer = xcalloc(run->rows, sizeof *answer); // (rows)
    draw_answers(run, grpo, answer);
    score_answers(run, grpo, answer);
    make_batch(run, grpo, answer);
    for (size_t row = 0; row < run->rows; row++) {
        free(answer[row].ids.id);
        free(answer[row].text.s);
    }
    free(answer);

    store_logp(run->model, run->acts, b, run->pass_rows, p->old_logp);
    if (grpo->reference) store_logp(grpo->reference, run->acts, b, run->pass_rows, p->ref_logp);
    else memcpy(p->ref_logp, p->old_logp, b->rows * b->T * sizeof(float));
}

// ---- the stage ----------------------------------------------------------------------------------

// Takes the last fiftieth of the questions, at least one, out of t.
static Tasks hold_out(Tasks *t) {
    Tasks held = {.n = min_size(t->n / HOLD_OUT_EVERY + 1, t->n - 1), .longest = t->longest};
    if (!held.n) die("--data: one question is too few, since one is held out; add --held-out FILE");
    held.answer = xcalloc(held.n, sizeof *held.answer);
    t->n -= held.n;
    memcpy(held.answer, t->answer + t->n, held.n * sizeof *held.answer);
    return held;
}

// Reads the questions. A step takes batch * accumulate of them, with G rows each.
static void prepare_answers(Run *run) {
    const Options *o = run->o;
    Grpo *grpo = run->own;
    size_t context = run->model->config.max_position_embeddings;
    if (o->seq) die("--seq %ld: prompts and --max-new-tokens decide the length here", o->seq);
    if (o->task && !o->eval_data)
        die("--task %s: --eval-data is missing: a file to measure on", o->task);
    grpo->policy.cispo = one_of("loss", grpo->loss, "grpo cispo") == 1;

    grpo->tasks = tasks_load(o->data, run->tok, grpo->think, 0);
    grpo->held = o->held_out ? tasks_load(o->held_out, run->tok, grpo->think, 0)
                             : hold_out(&grpo->tasks);
    size_t longest = max_size(grpo->tasks.longest, grpo->held.longest);
    if (longest >= context)
        die("--data: the longest prompt has %zu tokens, the context %zu", longest, context);

    run->T = min_size(context, grpo->tasks.longest + o->sampling.max_new_tokens);
    run->pass_rows = o->batch * grpo->G;
    run->rows = run->pass_rows * o->accumulate;
    size_t questions = o->batch * o->accumulate; // per batch
    size_t batches = (grpo->tasks.n + questions - 1) / questions;
    run->total = o->steps ? o->steps : o->epochs * (long)batches * grpo->updates;
}

// The reference is a copy of the model. DPO needs no second model, since it can compute its
// reference's sums before the first step; here the answers are not known then.
static void begin_answers(Run *run) {
    Grpo *grpo = run->own;
    Policy *p = &grpo->policy;
    const Model *model = run->model;
    size_t rows = max_size(run->rows, grpo->tasks.longest), n_params = model->n_params;
    double MB = 1e6 / sizeof(float);
    fprintf(stderr, "%.0f MB for the reference, %.0f MB to draw %zu answers at a time\n",
            p->beta > 0 ? n_params / MB : 0,
            acts_size(model, INFERENCE, rows, run->rows, run->T) / MB, run->rows);

    grpo->drawing = acts_new(model, INFERENCE, rows, run->rows, run->T);
    p->old_logp = xcalloc(run->rows * run->T, sizeof *p->old_logp);
    p->ref_logp = xcalloc(run->rows * run->T, sizeof *p->ref_logp);
    p->advantage = xcalloc(run->rows, sizeof *p->advantage);
    p->n_row_targets = xcalloc(run->rows, sizeof *p->n_row_targets);
    if (p->beta == 0) return;
    grpo->reference = model_new(model->config);
    model_allocate(grpo->reference, false, 32);
    memcpy(grpo->reference->params, model->params, n_params * sizeof(float));
}

// policy_loss with a report of the drawing. The report is of a step, but an objective is called
// once per pass: each pass adds a part, in proportion to its targets.
static double drawn_loss(float *dlogp, const float *logp, size_t n, const Batch *b, const void *own,
                         Figures *more) {
    const Grpo *grpo = own;
    double share = (double)n / b->n_targets;
    add_figure(more, "reward", share * grpo->reward, NAN);
    add_figure(more, "solved", share * grpo->solved, NAN);
    add_figure(more, "length", share * grpo->length, NAN);
    return policy_loss(dlogp, logp, n, b, &grpo->policy, more);
}

// The share of held-out questions that are answered right at temperature 0.
static Figures measure_answers(Run *run) {
    Grpo *grpo = run->own;
    return evaluate_tasks(run->model, run->tok, run->o, &grpo->held, grpo->think);
}

static void end_answers(Run *run) {
    Grpo *grpo = run->own;
    const Policy *p = &grpo->policy;
    free(p->old_logp);
    free(p->ref_logp);
    free(p->advantage);
    free(p->n_row_targets);
    tasks_free(&grpo->tasks);
    tasks_free(&grpo->held);
    acts_free(grpo->drawing);
    if (grpo->reference) model_free(grpo->reference);
}

static const Stage grpo_stage = {
    "grpo", "draws answers to questions and learns from those that turn out right", 1e-4, DOCUMENT,
    prepare_answers, begin_answers, fill_answers, drawn_loss, measure_answers, end_answers};

// ---- the command --------------------------------------------------------------------------------

// The options of this stage, beside those of sft (letter s).
static const Field grpo_options[] = {
#define AT(field) offsetof(Grpo, field)
    {"loss", "s", 's', AT(loss), 0, 0, 0, "grpo or cispo"},
    {"num-generations", "s", 'i', AT(G), 2, 4096, 8, "answers to each question"},
    {"updates", "s", 'i', AT(updates), 1, 100, 1, "optimiser steps on the same answers"},
    {"epsilon", "s", 'f', AT(policy.epsilon), 0, 1, 0.2, "grpo: the ratio's room around 1"},
    {"epsilon-high", "s", 'f', AT(policy.epsilon_high), 1, 100, 5, "cispo: the ratio's limit"},
    {"beta", "s", 'f', AT(policy.beta), 0, 100, 0.1, "how much the reference holds the model back"},
    {"think", "s", 'i', AT(think), 0, 1, 0, "1: the answer begins with thoughts"},
    {"temperature", "s", 'f', AT(temperature), 0, 100, 0.85, "of the answers that are drawn"},
#undef AT
};
enum { GRPO_OPTIONS = sizeof grpo_options / sizeof *grpo_options };

int main(int argc, char **argv) {
    program = "grpo";
    if (argc < 2 || !strcmp(argv[1], "help") || !strcmp(argv[1], "--help")) {
        printf("usage: grpo --model DIR --data F [--option value]...\n\n"
               "The options of minimind sft except --seq, and\n");
        for (int i = 0; i < GRPO_OPTIONS; i++)
            printf("    --%-20s %s\n", grpo_options[i].name, grpo_options[i].meaning);
        return 0;
    }
    Options options = {0};
    Grpo grpo = {.loss = "grpo"};
    read_options(argv + 1, 's', &options,
                 (OptionSet){grpo_options, GRPO_OPTIONS, 's', &grpo, NULL}, NULL);
    if (!options.model) die("--model is missing: a checkpoint folder");
    if (!options.data) die("--data is missing: a JSONL file with questions");
    run_stage(&grpo_stage, &options, &grpo);
    return 0;
}
