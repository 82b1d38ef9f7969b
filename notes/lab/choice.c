// choice.c - which of several answers does the model think is right?
//
//     mkdir -p out/lab && cc -O3 -march=native -o out/lab/choice notes/lab/choice.c -lm
//
//     out/lab/choice --model out/sft --data mc.jsonl [--rows N] [--weights bf16]
//
// Tests such as MMLU, C-Eval and CMMLU ask questions with a few answers to choose from. A small
// model often cannot say "B", but it does give every answer a probability. So each choice is put
// into the assistant's mouth, and the one with the highest probability is what the model answers:
//
//     {"question": "...", "choices": ["...", "..."], "answer": 1}       answer counts from 0
//
// A long answer has a low probability only because it has many tokens. The second figure therefore
// divides -logp by the bytes of the answer, which no tokenizer changes.

#define main minimind_main
#include "../../minimind.c"
#undef main

// Makes a document of each choice of {"question", "choices", "answer"}: the question, and the
// choice as what the assistant says. The choice with the lowest -logp is the model's answer; if it
// is right, adds 1 to right[0], and to right[1] if the lowest -logp per byte is. Returns the number
// of choices.
static size_t answer_choices(const Model *model, Acts *a, Tokenizer *tok, const Reader *r,
                             size_t right[2]) {
    enum { MOST = 64 };
    Document document[MOST]; // (n)
    double nats[MOST] = {0}; // (n)
    size_t n = 0, best = 0, best_per_byte = 0;
    const Json *choices = json_get(r->json, "choices"), *answer = json_get(r->json, "answer");
    const char *question = json_text(r->json, "question");
    Text messages = {0};
    Ids ids = {0};
    if (!question || !choices || choices->type != JSON_ARRAY || !answer ||
        answer->type != JSON_NUMBER)
        die("%s:%zu: needs \"question\", \"choices\" and \"answer\"", r->path, r->number);

    add_message(&messages, "user", NULL, question);
    for (const Json *c = choices->child; c; c = c->next) {
        size_t from = ids.n;
        if (c->type != JSON_STRING || n == MOST)
            die("%s:%zu: choices have to be strings, at most %d", r->path, r->number, MOST);
        encode_messages(tok, &messages, false, &ids);
        size_t prompt = ids.n;
        tokenizer_encode(tok, c->s, c->len, true, &ids);
        for (size_t i = prompt; i < ids.n; i++) ids.id[i] |= TRAINED;
        // Of a row that is too long, keep the end: it has the choice.
        if (ids.n > from + a->max_rows + 1) from = ids.n - a->max_rows - 1;
        document[n++] = (Document){from, ids.n, c->len, NAN};
    }
    if (!(answer->number >= 0 && answer->number < n))
        die("%s:%zu: \"answer\" is not the number of a choice", r->path, r->number);

    Tokens rows = {.id = ids.id, .document = document, .n_ids = ids.n, .n = n};
    score_documents(model, a, &rows, a->max_rows, nats, NULL);
    for (size_t c = 1; c < n; c++) {
        double bytes = document[c].bytes, best_bytes = document[best_per_byte].bytes;
        if (nats[c] < nats[best]) best = c;
        if (nats[c] / bytes < nats[best_per_byte] / best_bytes) best_per_byte = c;
    }
    right[0] += best == answer->number;
    right[1] += best_per_byte == answer->number;
    free(messages.s);
    free(ids.id);
    return n;
}

// Multiple choice over the files in a list, at most `rows` questions (0: all).
static Figures evaluate_choices(const Model *model, Acts *a, Tokenizer *tok, const char *files,
                                size_t rows) {
    Figures e = {0};
    Reader r = reader_open(files);
    size_t n = 0, right[2] = {0};
    double guess = 0;
    for (; (!rows || n < rows) && reader_next(&r); n++)
        guess += 100.0 / answer_choices(model, a, tok, &r, right);
    reader_close(&r);
    if (!n) die("%s: contains no question", files);
    add_figure(&e, "questions", n, NAN);
    e.watched = add_share(&e, "right, %", right[0], n);
    add_share(&e, "length-normalised, %", right[1], n);
    add_figure(&e, "by guessing, %", guess / n, NAN);
    return e;
}

int main(int argc, char **argv) {
    program = "choice";
    if (argc < 2 || !strcmp(argv[1], "help") || !strcmp(argv[1], "--help")) {
        printf("usage: choice --model DIR --data F [--rows N] [--weights f32|bf16|int8]\n");
        return 0;
    }
    Options o = {0};
    read_options(argv + 1, 'e', &o, (OptionSet){0}, NULL); // of minimind eval
    Tokenizer *tok = tokenizer_load(o.model);
    Model *model = load_model(&o, tok);
    size_t context = min_size(model->config.max_position_embeddings, 2048);
    Acts *a = acts_new(model, INFERENCE, context, context, 0);
    Figures e = evaluate_choices(model, a, tok, o.data, o.rows);
    print_figures(&e);
    acts_free(a);
    model_free(model);
    tokenizer_free(tok);
    return 0;
}
