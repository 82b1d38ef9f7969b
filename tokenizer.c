// tokenizer.c: how text becomes the numbers that a language model reads, and text again.
//
//     cc -O3 -march=native tokenizer.c -o tokenizer && ./tokenizer help
//
// A program of its own; minimind.c also #includes it, as its text layer. Only libc is needed.
//
// A model knows a fixed list of tokens, its vocabulary. Were they letters, texts would be long;
// were they words, the list would never end. Byte-pair encoding (BPE) lets data decide what is in
// between. Start from the 256 bytes, with which any text can be written. Count which two
// neighbours stand together most often, make one token of them, and repeat:
//
//     "low low lower"           l o w , _ l o w , _ l o w e r      _ is the space; it opens a word
//     l + o (3 times)           lo w , _ lo w , _ lo w e r         o + w too: ties go by id
//     lo + w (3 times)          low , _ low , _ low e r
//     _ + low (2 times)         low , _low , _low e r              and so on, up to N tokens
//
// The list of merges, in order, is all that is learned. Encoding replays it: of all pairs in a
// word, the one that was learned first is merged first. With MiniMind's tokenizer:
//
//     text          I'm 好。
//     pre-tokens    I , 'm , ␣好 , 。          cut by one pattern; no token crosses a cut
//     bytes         49 , 27 6D , 20 E5 A5 BD , E3 80 82
//     symbols       I , 'm , Ġå¥½ , ãĢĤ       each byte as a printable character, as JSON can
//                                             hold no bytes: Chinese looks garbled in a vocabulary
//     merges        I , 'm , Ġ å¥½ , ãĢĤ      (␣好 was never learned as one token)
//     ids           76 , 1422 , 256 658 , 302
//
// Everything is done exactly as Hugging Face's `tokenizers` does it. An error ends the program with
// one line that says what is wrong and where. Contents: helpers, UTF-8, JSON, records, tables,
// pre-tokens, encoding, decoding, chat, files, training, the command line.

#ifndef _DEFAULT_SOURCE
#define _DEFAULT_SOURCE // POSIX, under -std=c11 too
#endif
#include <ctype.h>
#include <errno.h>
#include <limits.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

// ------------------------------------------------------------------------------------------------
// Helpers. What C leaves out: a way to give up, memory that is there or the program ends, strings
// that grow, files that are read and written whole.

static const char *program = "tokenizer"; // every message begins with it
static const char *unfinished;             // a file that nobody should find if the program ends now

// Prints "program: message" on stderr and exits with status 1.
__attribute__((format(printf, 1, 2))) static _Noreturn void die(const char *fmt, ...) {
    va_list args;
    va_start(args, fmt);
    fflush(stdout); // what was found so far comes before the reason why there is no more
    fprintf(stderr, "%s: ", program);
    vfprintf(stderr, fmt, args);
    fputc('\n', stderr);
    if (unfinished) remove(unfinished);
    exit(1);
}

// n * size bytes, all zero; never NULL.
static void *xcalloc(size_t n, size_t size) {
    void *p = n <= SIZE_MAX / size ? calloc(n ? n : 1, size) : NULL;
    if (!p) die("out of memory: %zu x %zu bytes were asked for", n, size);
    return p;
}

// Makes p, which may be NULL, n * size bytes long; never NULL.
static void *xrealloc(void *p, size_t n, size_t size) {
    p = n <= SIZE_MAX / size ? realloc(p, n ? n * size : 1) : NULL;
    if (!p) die("out of memory: %zu x %zu bytes were asked for", n, size);
    return p;
}

// Makes room for `need` elements. Doubling keeps the cost of an appended element constant.
static inline void *grow(void *p, size_t *cap, size_t need, size_t size) {
    if (need <= *cap) return p;
    *cap = need < 2 * *cap ? 2 * *cap : need < 16 ? 16 : need;
    return xrealloc(p, *cap, size);
}

typedef struct { char *s; size_t len, cap; } Text; // a string that grows; NUL after the last byte
typedef struct { int *id; size_t n, cap; } Ids;    // a list of numbers that grows

static void text_append(Text *t, const char *s, size_t n) {
    t->s = grow(t->s, &t->cap, t->len + n + 1, 1);
    if (n) memcpy(t->s + t->len, s, n);
    t->s[t->len += n] = '\0';
}

static void text_vprintf(Text *t, const char *fmt, va_list args) {
    va_list again;
    va_copy(again, args);
    size_t n = (size_t)vsnprintf(NULL, 0, fmt, again);
    va_end(again);
    t->s = grow(t->s, &t->cap, t->len + n + 1, 1);
    vsnprintf(t->s + t->len, n + 1, fmt, args);
    t->len += n;
}

__attribute__((format(printf, 2, 3))) static void text_printf(Text *t, const char *fmt, ...) {
    va_list args;
    va_start(args, fmt);
    text_vprintf(t, fmt, args);
    va_end(args);
}

// A new string made as printf would print it. The caller frees it.
__attribute__((format(printf, 1, 2))) static char *format(const char *fmt, ...) {
    Text t = {0};
    va_list args;
    va_start(args, fmt);
    text_vprintf(&t, fmt, args);
    va_end(args);
    return t.s;
}

static inline void ids_push(Ids *ids, int id) {
    ids->id = grow(ids->id, &ids->cap, ids->n + 1, sizeof *ids->id);
    ids->id[ids->n++] = id;
}

// fopen, or the end.
static FILE *open_file(const char *path, const char *mode) {
    FILE *f = fopen(path, mode);
    if (!f) die("%s: %s", path, strerror(errno));
    return f;
}

// A whole file with a NUL behind it, which *len does not count. The caller frees it.
static char *read_file(const char *path, size_t *len) {
    FILE *f = open_file(path, "rb");
    Text t = {0};
    char block[1 << 14];
    for (size_t n; (n = fread(block, 1, sizeof block, f)) > 0;) text_append(&t, block, n);
    if (ferror(f)) die("%s: %s", path, strerror(errno));
    fclose(f);
    text_append(&t, "", 0);
    return *len = t.len, t.s;
}

// Makes a directory and those above it. It may be there already.
static void make_dir(const char *path) {
    Text t = {0};
    struct stat st;
    int error = 0;
    for (size_t i = 0, n = strlen(path); i < n; i++) {
        text_append(&t, path + i, 1);
        bool whole = i + 1 == n || path[i + 1] == '/';
        if (whole && mkdir(t.s, 0777) && errno != EEXIST && !error)
            error = errno; // the first reason
    }
    if (stat(path, &st) || !S_ISDIR(st.st_mode))
        die("%s: no directory: %s", path, strerror(error ? error : ENOTDIR));
    free(t.s);
}

// A file dir/name that is being written. It takes its name, and the place of an old one, only when
// it is complete, so that neither a crash of the program nor a full disk costs the file that was
// there.
typedef struct { FILE *f; char *path, *tmp; } NewFile;

static NewFile new_file(const char *dir, const char *name) {
    char *path = format("%s/%s", dir, name), *tmp = format("%s.%ld.tmp", path, (long)getpid());
    make_dir(dir);
    unfinished = tmp;
    return (NewFile){open_file(tmp, "wb"), path, tmp};
}

static void new_file_done(NewFile *n) {
    int error = fflush(n->f) || ferror(n->f) ? errno : 0;
    if (ferror(n->f) && !error) error = EIO; // a write failed before, and its reason is gone
    if (fclose(n->f) && !error) error = errno;
    if (!error && rename(n->tmp, n->path)) error = errno;
    if (error) die("%s: cannot be written: %s", n->path, strerror(error));
    unfinished = NULL;
    free(n->path);
    free(n->tmp);
}

static void write_file(const char *dir, const char *name, const Text *t) {
    NewFile n = new_file(dir, name);
    fwrite(t->s, 1, t->len, n.f);
    new_file_done(&n);
}

// Seconds on a clock that only goes forward.
static double seconds(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

// ------------------------------------------------------------------------------------------------
// Options. One table says which options a program has, which of its commands know them and which
// values they may have. It drives reading, checking and help. minimind.c keeps the configuration
// of a model in such a table too.

typedef struct { // a member of a struct that has a name outside the program
    const char *name;
    const char *tag; // of an option: the letters of the commands that know it, capital where they
                     // need it; *: all know it
    char kind;       // i: long, f: double, s: const char *
    size_t offset;   // in its struct
    double least, most, initial; // of a number: range and default
    const char *meaning;
} Field;

typedef struct { // a table of options, and the struct that their values go to
    const Field *field;
    size_t n;
    char letter;  // of the command; 0: the tags say something else, and all options are known
    void *base;
    Text *given;  // gets " name=value" for each option that is given; or NULL
} OptionSet;

// Stores a number in the struct at `base`, without checking it.
static void field_put(void *base, const Field *f, double value) {
    char *at = (char *)base + f->offset;
    if (f->kind == 'i') *(long *)at = (long)value;
    if (f->kind == 'f') *(double *)at = value;
}

// Checks a number and stores it; otherwise exits and says what is allowed. `where` names the option
// or the file that the value comes from.
static void field_set(void *base, const Field *f, double value, const char *where) {
    bool whole = f->kind == 'i';
    if (!(value >= f->least && value <= f->most) || (whole && value != (double)(long)value))
        die("%s: %s is %g; allowed is %s from %.9g to %.9g", where, f->name, value,
            whole ? "a whole number" : "a number", f->least, f->most);
    field_put(base, f, value);
}

static void put_defaults(void *base, const Field *table, size_t n) {
    for (size_t i = 0; i < n; i++) field_put(base, &table[i], table[i].initial);
}

// The field called `name`, or NULL. '-' counts as '_', as in the option --hidden-size.
static const Field *field_find(const Field *table, size_t n, const char *name) {
    for (const Field *f = table; f < table + n; f++) {
        size_t i = 0;
        while (name[i] && (name[i] == f->name[i] || (name[i] == '-' && f->name[i] == '_'))) i++;
        if (!name[i] && !f->name[i]) return f;
    }
    return NULL;
}

// Does the command with this letter know the option?
static bool knows(char letter, const Field *option) {
    const char letters[] = {letter, (char)toupper(letter), '*', 0};
    return !letter || strpbrk(option->tag, letters);
}

// Stores the text of a value; exits if it is not allowed. `option` is its name with the dashes.
static void field_read(void *base, const Field *f, const char *text, const char *option) {
    char where[100], *end;
    double number = strtod(text, &end);
    snprintf(where, sizeof where, "%s %s", option, text);
    if (f->kind == 's') *(const char **)((char *)base + f->offset) = text;
    else field_set(base, f, *text && !*end ? number : strtod("nan", NULL), where);
}

// Reads "--name value" pairs up to the NULL at the end of argv, each into the first of the sets
// that knows it. Other words, and all after "--", go to rest, which ends with NULL and has room for
// all; if it is NULL they are an error.
static void parse_options(char **argv, const OptionSet *set, size_t n_sets, char **rest) {
    for (size_t s = 0; s < n_sets; s++) put_defaults(set[s].base, set[s].field, set[s].n);
    while (*argv) {
        char *option = *argv;
        const Field *f = NULL;
        if (rest && !strcmp(option, "--")) {
            while (*++argv) *rest++ = *argv;
            break;
        }
        if (rest && strncmp(option, "--", 2)) {
            *rest++ = *argv++;
            continue;
        }

        if (strncmp(option, "--", 2)) die("%s: options look like --name value", option);
        if (!argv[1]) die("%s: its value is missing", option);
        for (const OptionSet *s = set; s < set + n_sets && !f; s++) {
            f = field_find(s->field, s->n, option + 2);
            if (f && !knows(s->letter, f)) f = NULL;
            if (f) field_read(s->base, f, argv[1], option);
            if (f && s->given) text_printf(s->given, " %s=%s", f->name, argv[1]);
        }
        if (!f) die("%s: this command has no such option; see help", option);
        argv += 2;
    }
    if (rest) *rest = NULL;

    for (const OptionSet *s = set; s < set + n_sets; s++)
        for (const Field *f = s->field; s->letter && f < s->field + s->n; f++)
            if (f->kind == 's' && strchr(f->tag, toupper(s->letter)) &&
                !*(char **)((char *)s->base + f->offset))
                die("--%s is missing: %s", f->name, f->meaning);
}

// ------------------------------------------------------------------------------------------------
// UTF-8. A code point takes 1 to 4 bytes: the first one tells how many, the others are 10xxxxxx.
// Not every sequence is legal, and text that was cut or is none has to be noticed.

enum { INVALID = -1, CUT_SHORT = -2 };

// Reads the code point at s, where n > 0 bytes are, into *cp; returns how many bytes it takes.
// INVALID: these bytes are not UTF-8; one replacement character U+FFFD should stand for them (for
// the longest beginning of something legal, as Unicode and Rust have it). CUT_SHORT: the text ends
// within a code point that is legal so far.
static inline size_t utf8_read(const char *s, size_t n, int *cp) {
    const unsigned char *u = (const unsigned char *)s;
    int c = u[0];
    if (c < 0x80) return *cp = c, 1;
    size_t len = c < 0xC2 || c > 0xF4 ? 1 : c < 0xE0 ? 2 : c < 0xF0 ? 3 : 4;
    c &= 0x7F >> len;
    for (size_t i = 1; i < len; i++) {
        if (i == n) return *cp = CUT_SHORT, i;
        if (u[i] >> 6 != 2) return *cp = INVALID, i;
        c = c << 6 | (u[i] & 0x3F);
        // Two bytes show what is written too long, half of a UTF-16 pair (U+D800 to U+DFFF), or
        // beyond U+10FFFF.
        if (i == 1 && len == 3 && (c < 0x20 || c >> 5 == 0x1B)) return *cp = INVALID, i;
        if (i == 1 && len == 4 && (c < 0x10 || c > 0x10F)) return *cp = INVALID, i;
    }
    return *cp = len == 1 ? INVALID : c, len;
}

// Writes a code point to out, which has room for 4 bytes; returns how many it takes.
static size_t utf8_write(char *out, int cp) {
    size_t len = cp < 0x80 ? 1 : cp < 0x800 ? 2 : cp < 0x10000 ? 3 : 4;
    for (size_t i = len - 1; i > 0; i--, cp >>= 6) out[i] = (char)(0x80 | (cp & 0x3F));
    out[0] = (char)(len == 1 ? cp : (0xF00 >> len & 0xFF) | cp);
    return len;
}

// Appends the len bytes of a code point that was read, or U+FFFD if it could not be.
static void append_character(Text *out, int cp, const char *s, size_t len) {
    text_append(out, cp < 0 ? "\xEF\xBF\xBD" : s, cp < 0 ? 3 : len);
}

// ------------------------------------------------------------------------------------------------
// JSON. One reader for tokenizers, training data, model configurations, tensor headers: recursive
// descent over RFC 8259 that makes a tree of nodes. It is fast because it allocates once: every
// node but the root follows a bracket or a comma, so counting these gives room enough for all.
// Behind the nodes goes a copy of the text, where strings are decoded in place: none gets longer.

typedef struct Json {
    enum JsonType {
        JSON_NULL, JSON_FALSE, JSON_TRUE, JSON_NUMBER, JSON_STRING, JSON_ARRAY, JSON_OBJECT
    } type;
    const char *key;            // in an object: the name of this member
    const char *s; size_t len;  // string: decoded, NUL-terminated; number: as it is written
    double number;
    struct Json *child, *next;  // array, object: the first element; of an element: the one after it
} Json;

static const char *const json_names[] = { // in the order of Json.type
    "null", "false", "true", "a number", "a string", "a list", "an object"};

typedef struct { char *at, *end; Json *unused; const char *error; int depth; } JsonParser;

enum { JSON_MAX_DEPTH = 256 };  // recursion needs stack, and must not be driven to exhaust it

static bool json_value(JsonParser *p, Json *j);

static bool json_fail(JsonParser *p, const char *why) {
    p->error = p->at == p->end ? "the text ends too early" : why;
    return false;
}

static void json_space(JsonParser *p) {
    while (*p->at == ' ' || *p->at == '\n' || *p->at == '\t' || *p->at == '\r') p->at++;
}

// The code unit of the escape \uXXXX at s, or -1.
static int json_unit(const char *s) {
    if (s[0] != '\\' || s[1] != 'u' || strspn(s + 2, "0123456789abcdefABCDEF") < 4) return -1;
    return (int)strtol((char[]){s[2], s[3], s[4], s[5], '\0'}, NULL, 16);
}

// Decodes the string at p->at.
static bool json_string(JsonParser *p, const char **s, size_t *len) {
    if (*p->at != '"') return json_fail(p, "a string was expected");
    char *out = ++p->at;
    *s = out;
    while (*p->at != '"') {
        if ((unsigned char)*p->at < 0x20) return json_fail(p, "control character in a string");
        if (*p->at != '\\') { *out++ = *p->at++; continue; }
        const char *code = "\"\\/bfnrt", *which = p->at[1] ? strchr(code, p->at[1]) : NULL;
        int unit = json_unit(p->at), low = -1;
        if (!which && unit < 0) return json_fail(p, "bad escape in a string");
        if (which) { *out++ = "\"\\/\b\f\n\r\t"[which - code], p->at += 2; continue; }
        p->at += 6;
        // Beyond U+FFFF stands a pair of escapes, 10 bits in each. Half a pair means nothing.
        if (unit >> 10 == 0xD800 >> 10) low = json_unit(p->at);
        if (low >> 10 == 0xDC00 >> 10) {
            unit = 0x10000 + ((unit & 0x3FF) << 10) + (low & 0x3FF);
            p->at += 6;
        } else if (unit >> 11 == 0xD800 >> 11) unit = 0xFFFD;
        out += utf8_write(out, unit);
    }
    p->at++;
    *out = '\0';
    *len = (size_t)(out - *s);
    return true;
}

static bool json_number(JsonParser *p, Json *j) {
    const char *digits = "0123456789";
    *j = (Json){.type = JSON_NUMBER, .key = j->key, .s = p->at};
    if (*p->at == '-') p->at++;
    size_t n = *p->at == '0' ? 1 : strspn(p->at, digits); // no leading zeros
    p->at += n;
    if (n > 0 && *p->at == '.') p->at += 1 + (n = strspn(p->at + 1, digits));
    if (n > 0 && (*p->at == 'e' || *p->at == 'E')) {
        p->at += p->at[1] == '+' || p->at[1] == '-' ? 2 : 1;
        p->at += n = strspn(p->at, digits);
    }
    j->len = (size_t)(p->at - j->s);
    j->number = strtod(j->s, NULL);
    return n > 0 || json_fail(p, "no value");
}

// The elements of an array or the members of an object.
static bool json_children(JsonParser *p, Json *j) {
    char close = *p->at++ == '{' ? '}' : ']';
    Json **tail = &j->child;
    j->type = close == '}' ? JSON_OBJECT : JSON_ARRAY;
    if (++p->depth > JSON_MAX_DEPTH) return json_fail(p, "brackets are nested too deeply");
    json_space(p);
    while (*p->at != close) {
        if (j->child && *p->at != ',') return json_fail(p, "a comma was expected");
        if (j->child) p->at++, json_space(p);
        Json *item = *tail = p->unused++;
        *item = (Json){.next = NULL};
        tail = &item->next;
        if (close == '}') {
            if (!json_string(p, &item->key, &item->len)) return false;
            json_space(p);
            if (*p->at != ':') return json_fail(p, "a colon was expected");
            p->at++;
        }
        if (!json_value(p, item)) return false;
    }
    p->at++;
    p->depth--;
    return true;
}

// A value, with the white space on both sides of it.
static bool json_value(JsonParser *p, Json *j) {
    bool ok = false;
    json_space(p);
    if (*p->at == '{' || *p->at == '[') ok = json_children(p, j);
    else if (*p->at == '"') j->type = JSON_STRING, ok = json_string(p, &j->s, &j->len);
    else if (strchr("nft", *p->at) && *p->at) {
        j->type = *p->at == 'n' ? JSON_NULL : *p->at == 'f' ? JSON_FALSE : JSON_TRUE;
        size_t n = strlen(json_names[j->type]);
        ok = !strncmp(p->at, json_names[j->type], n) || json_fail(p, "no value");
        p->at += ok ? n : 0;
    } else ok = json_number(p, j);
    if (ok) json_space(p);
    return ok;
}

// Parses len bytes that hold one JSON value and nothing else. If they do not: NULL, *error says why
// and *error_at is the offset of the byte where it was noticed.
static Json *json_parse(const char *text, size_t len, const char **error, size_t *error_at) {
    size_t n_nodes = 1;
    for (size_t i = 0; i < len; i++) n_nodes += text[i] == ',' || text[i] == '[' || text[i] == '{';
    Json *root = xrealloc(NULL, n_nodes * sizeof *root + len + 1, 1);
    char *copy = (char *)(root + n_nodes);
    JsonParser p = {copy, copy + len, root + 1, NULL, 0};
    *root = (Json){.next = NULL};
    if (len) memcpy(copy, text, len);
    copy[len] = '\0'; // is legal nowhere, so every loop ends here
    if (json_value(&p, root) && p.at == p.end) return root;
    *error = p.error ? p.error : "something follows the value";
    *error_at = (size_t)(p.at - copy);
    free(root);
    return NULL;
}

// Frees a root, and all that is below it.
static void json_free(Json *root) { free(root); }

// The same for the text of a file: it is JSON, or the program ends.
static Json *json_parse_file(const char *path, const char *text, size_t len) {
    const char *error;
    size_t at;
    Json *j = json_parse(text, len, &error, &at);
    if (!j) die("%s: not JSON: %s at byte %zu", path, error, at);
    return j;
}

// The member of an object, or NULL. Of equal keys the last one counts, as in Python.
static Json *json_get(const Json *object, const char *key) {
    Json *found = NULL, *j = object && object->type == JSON_OBJECT ? object->child : NULL;
    for (; j; j = j->next) if (!strcmp(j->key, key)) found = j;
    return found;
}

// The string that is a member of an object, or NULL.
static const char *json_text(const Json *object, const char *key) {
    const Json *j = json_get(object, key);
    return j && j->type == JSON_STRING ? j->s : NULL;
}

// Appends a string in quotes. What is not UTF-8 becomes U+FFFD: JSON has no way to say it.
static void json_write_string(Text *out, const char *s, size_t n) {
    const char *plain = "\"\\\n\r\t\b\f", *code = "\"\\nrtbf";
    text_append(out, "\"", 1);
    for (size_t i = 0, len; i < n; i += len) {
        int cp;
        len = utf8_read(s + i, n - i, &cp);
        const char *which = cp > 0 && cp < 128 ? strchr(plain, cp) : NULL;
        if (which) text_printf(out, "\\%c", code[which - plain]);
        else if (cp >= 0 && cp < 0x20) text_printf(out, "\\u%04x", (unsigned)cp);
        else append_character(out, cp, s + i, len);
    }
    text_append(out, "\"", 1);
}

// ------------------------------------------------------------------------------------------------
// Records. Training data is a list of files, larger than memory: JSONL (each line is a record, an
// object) or plain text. The first line that is not blank decides: a brace, JSONL.

typedef struct {
    const char *files;          // names still to be opened, with commas between them
    char path[FILENAME_MAX];    // of the file that is being read, as messages name it
    FILE *file;
    char *line;                 // with its newline
    size_t len, cap, number;    // bytes of the line; room for it; which line it is, from 1
    enum { UNDECIDED, PLAIN, JSONL } kind;
    Json *json;                 // JSONL: the record, until the next one is read
    size_t block;               // 0: a record of plain text is a line; else lines of so many bytes
    bool begins, ends;          // plain text: the record is the first, the last one of its file
} Reader;

// Copies the next name of a list of files to path and moves *list behind it; false at the end.
static bool next_file(const char **list, char path[FILENAME_MAX]) {
    *list += **list == ',';
    size_t n = strcspn(*list, ",");
    if (n == 0) return false;
    snprintf(path, FILENAME_MAX, "%.*s", (int)n, *list);
    *list += n;
    return true;
}

static void reader_close(Reader *r) {
    json_free(r->json);
    free(r->line);
    if (r->file && r->file != stdin) fclose(r->file);
}

// Opens the next file of the list; "-" is the standard input. False if there is none.
static bool reader_open_next(Reader *r) {
    if (!next_file(&r->files, r->path)) return false;
    if (r->file && r->file != stdin) fclose(r->file);
    r->file = strcmp(r->path, "-") ? open_file(r->path, "rb") : stdin;
    if (r->file == stdin) strcpy(r->path, "standard input");
    r->kind = UNDECIDED;
    r->number = 0;
    return true;
}

static Reader reader_open(const char *files) {
    Reader r = {.files = files};
    if (!reader_open_next(&r)) die("the name of a file is missing");
    return r;
}

// Reads a line; false at the end of the last file.
static bool reader_line(Reader *r) {
    ssize_t n = getline(&r->line, &r->cap, r->file);
    if (n < 0 && !feof(r->file)) die("%s: %s", r->path, strerror(errno));
    if (n < 0) return reader_open_next(r) && reader_line(r);
    r->len = (size_t)n;
    r->number++;
    return true;
}

// Appends lines to the one that was read, until there are r->block bytes or the file ends.
static void reader_block(Reader *r) {
    char *line = NULL;
    size_t cap = 0;
    ssize_t n = 0;
    while (r->len < r->block && (n = getline(&line, &cap, r->file)) > 0) {
        r->line = grow(r->line, &r->cap, r->len + (size_t)n + 1, 1);
        memcpy(r->line + r->len, line, (size_t)n + 1);
        r->len += (size_t)n;
        r->number++;
    }
    int next = getc(r->file);
    if (ferror(r->file)) die("%s: %s", r->path, strerror(errno));
    r->ends = next == EOF;
    ungetc(next, r->file);
    free(line);
}

// Reads a record; false at the end of the last file. Blank lines of JSONL are passed over, and
// those before the first text in plain text too.
static bool reader_next(Reader *r) {
    while (reader_line(r)) {
        if (r->number == 1 && !strncmp(r->line, "\xEF\xBB\xBF", 3)) // Windows' mark of UTF-8
            memmove(r->line, r->line + 3, (r->len -= 3) + 1);
        size_t blank = strspn(r->line, " \t\r\n"), at;
        r->begins = r->kind == UNDECIDED;
        if (r->begins && blank < r->len) r->kind = r->line[blank] == '{' ? JSONL : PLAIN;
        if (r->kind == PLAIN && r->block) reader_block(r);
        if (r->kind == PLAIN) return true;
        if (r->kind != JSONL || blank == r->len) continue;
        const char *error;
        json_free(r->json);
        r->json = json_parse(r->line, r->len, &error, &at);
        if (!r->json) die("%s:%zu: not JSON: %s at byte %zu", r->path, r->number, error, at);
        if (r->json->type != JSON_OBJECT) die("%s:%zu: no JSON object", r->path, r->number);
        return true;
    }
    return false;
}

#if !defined MINIMIND || defined WITH_TRAINER // minimind.c trains no vocabulary
typedef void UseText(void *context, const char *s, size_t n);

// Calls use(context, s, n) for each text in the record: a plain line; "text"; in every message of
// "conversations", "chosen" and "rejected", "reasoning_content" and "content". Dies if it has none.
static void reader_texts(const Reader *r, UseText *use, void *context) {
    static const char *const lists[] = {"conversations", "chosen", "rejected"};
    static const char *const words[] = {"reasoning_content", "content"};
    const Json *text = json_get(r->json, "text");
    bool known = text || r->kind == PLAIN;
    if (r->kind == PLAIN) use(context, r->line, r->len);
    if (text && text->type != JSON_STRING) die("%s:%zu: \"text\" is no string", r->path, r->number);
    if (text) use(context, text->s, text->len);
    for (int i = 0; i < 3; i++) {
        const Json *list = json_get(r->json, lists[i]);
        if (!list) continue;
        known = true;
        if (list->type != JSON_ARRAY)
            die("%s:%zu: \"%s\" is no list", r->path, r->number, lists[i]);
        for (const Json *m = list->child; m; m = m->next)
            for (int k = 0; k < 2; k++) {
                const Json *said = json_get(m, words[k]);
                if (said && said->type == JSON_STRING) use(context, said->s, said->len);
            }
    }
    if (!known)
        die("%s:%zu: the record has neither \"text\" nor \"conversations\" nor \"chosen\" and "
            "\"rejected\"", r->path, r->number);
}
#endif

// ------------------------------------------------------------------------------------------------
// Tables that encoder and trainer share: a hash table, a dictionary made of it, and a heap.

// Map keeps a number (>= 0) for a key that is not 0. A key sits in the first free slot from the one
// that its hash names; at most half of the slots are taken, so a search is short.
typedef struct { uint64_t key; int value; } MapSlot;
typedef struct { MapSlot *slot; size_t n, n_slots; } Map;

// The slot of a key, or the free one where it would go. The map must not be empty.
static inline MapSlot *map_slot(const Map *m, uint64_t key) {
    size_t i = (key * 0x9E3779B97F4A7C15 >> 32) & (m->n_slots - 1); // those bits are well mixed
    while (m->slot[i].key && m->slot[i].key != key) i = (i + 1) & (m->n_slots - 1);
    return &m->slot[i];
}

// Where the number of a key is kept. A new key gets -1.
static inline int *map_value(Map *m, uint64_t key) {
    if (2 * m->n >= m->n_slots) {
        Map old = *m;
        m->n_slots = old.n_slots ? 2 * old.n_slots : 1024;
        m->slot = xcalloc(m->n_slots, sizeof *m->slot);
        for (size_t k = 0; k < old.n_slots; k++)
            if (old.slot[k].key) *map_slot(m, old.slot[k].key) = old.slot[k];
        free(old.slot);
    }
    MapSlot *slot = map_slot(m, key);
    if (!slot->key) *slot = (MapSlot){key, -1}, m->n++;
    return &slot->value;
}

// The key of a pair of token ids. + 1, since key 0 means a free slot. Comparing keys compares the
// left ids, then the right: that is the rule for ties.
static inline uint64_t make_pair(int left, int right) {
    return ((uint64_t)left + 1) << 32 | (uint64_t)right;
}
static inline int pair_left(uint64_t pair) { return (int)(pair >> 32) - 1; }
static inline int pair_right(uint64_t pair) { return (int)(pair & 0xFFFFFFFF); }

static const uint64_t HASH_START = 0xCBF29CE484222325;

static uint64_t hash_bytes(uint64_t h, const char *s, size_t n) { // FNV-1a
    for (size_t i = 0; i < n; i++) h = (h ^ (unsigned char)s[i]) * 0x100000001B3;
    return h;
}

// Dict numbers strings in the order in which they first come: 0, 1, 2, ...
typedef struct { size_t at, len; } DictKey; // where in Dict.bytes
typedef struct { Text bytes; DictKey *key; size_t cap; int n; Map number; } Dict;

// The number of a string. If it is new: with `add` the next number, without -1. The map knows
// hashes, not strings: if another string has this hash, the next odd number is tried. Odd, since
// key 0 means a free slot.
static int dict_number(Dict *d, const char *s, size_t n, bool add) {
    int *number;
    for (uint64_t h = hash_bytes(HASH_START, s, n) | 1;; h += 2) {
        number = map_value(&d->number, h);
        if (*number < 0) break;
        DictKey k = d->key[*number];
        if (k.len == n && !memcmp(d->bytes.s + k.at, s, n)) return *number;
    }
    if (!add) return -1;
    d->key = grow(d->key, &d->cap, (size_t)d->n + 1, sizeof *d->key);
    d->key[d->n] = (DictKey){d->bytes.len, n};
    text_append(&d->bytes, s, n);
    return *number = d->n++;
}

static const char *dict_string(const Dict *d, int number, size_t *len) {
    *len = d->key[number].len;
    return d->bytes.s + d->key[number].at;
}

static void dict_free(Dict *d) {
    free(d->bytes.s);
    free(d->key);
    free(d->number.slot);
}

// A binary heap: out comes the item with the smallest (first, second).
typedef struct { uint64_t first, second; } HeapItem;
typedef struct { HeapItem *item; size_t n, cap; } Heap; // below item i: 2i + 1 and 2i + 2

static inline bool heap_before(HeapItem a, HeapItem b) {
    return a.first != b.first ? a.first < b.first : a.second < b.second;
}

static void heap_push(Heap *h, HeapItem x) {
    h->item = grow(h->item, &h->cap, h->n + 1, sizeof *h->item);
    size_t i = h->n++;
    for (; i > 0 && heap_before(x, h->item[(i - 1) / 2]); i = (i - 1) / 2)
        h->item[i] = h->item[(i - 1) / 2];
    h->item[i] = x;
}

static bool heap_pop(Heap *h, HeapItem *top) {
    if (h->n == 0) return false;
    *top = h->item[0];
    HeapItem x = h->item[--h->n]; // the last item moves in where there is a gap
    size_t i = 0;
    for (size_t child; (child = 2 * i + 1) < h->n; i = child) {
        if (child + 1 < h->n && heap_before(h->item[child + 1], h->item[child])) child++;
        if (!heap_before(h->item[child], x)) break;
        h->item[i] = h->item[child];
    }
    h->item[i] = x;
    return true;
}

// ------------------------------------------------------------------------------------------------
// Pre-tokens. Text is cut into words first, so that no token joins the end of one word to the
// beginning of the next. This is GPT-2's pattern; the first alternative that fits is taken:
//
//     's|'t|'re|'ve|'m|'ll|'d | ?\p{L}+ | ?\p{N}+ | ?[^\s\p{L}\p{N}]+ | \s+(?!\S) | \s+
//     English endings          letters   numbers    anything else        white space
//
// A space goes with the word after it. \p{L} and \p{N} are the letters and numbers of all scripts;
// in Chinese, written without spaces, a "word" is as long as a clause.

enum { OTHER, LETTER, NUMBER, SPACE, DIGIT_17, N_CLASSES };

// The classes in Unicode 16.0, as lengths: so many code points outside, so many inside, and so on
// from U+0000. Lengths are in base 26, a = 0, z = 25; the last digit is the small letter. Letters
// begin with "CnBagBa": Cn = 2 * 26 + 13 = 65 outside, Ba = 26 inside (A to Z), g = 6 outside, Ba =
// 26 inside (a to z). DIGIT_17 are the numbers new in Unicode 17.0: of Hugging Face's two steps,
// Digits knows them, the pattern does not.
static const char *const class_lengths[N_CLASSES] = {
    [LETTER] =
    "CnBagBaBvbkbebfxbBfbRqemofhbbbEzfbccebbgbbdbbbubDfbFjiGkbBmcbgBpCtBbeeBtBrBjcbDvbbpchckdcbqb"
    "bBeBdDllbyBhjcebfwebjbdbxzhlfybgrBqCgCcdbsbhkpqeicccwbhbbdedbqbncbdockbigeccwbhbcbcbcBfebbtd"
    "qjbdbwbhbcbfdbsbpcxblicccwbhbcbfdbBecbdpbrbbgddbedcbbbcdcdddmwbCaibdbxbqdbBadcbccBebeibdbxbk"
    "bfdbBfcbcpcrjbdbBpcbqbfdidygfsdybjbbchCgBwbcmhCgcbbbfbybbbkbcjbcfbbveBgbClibBkBbfElBrubqgeed"
    "bdchdenmbrBmbbfbcBrbMvbechbbbecBpbecBhbechbbbecpbCfbecCpBlqqDicgdXwcrbBafCxgihsntosonbdpCaBj"
    "bebCpDlhfcBibbfCskBfBxBecflBseBaCcxjCbDebDpBvriCcBenckBsBaBkBpdkBkclfBrcdBpebgbcdbfHkCmKscgc"
    "BmcgcibbbbbbbBfcCbbhbbddbhdecgenfdbhEmbnbqnDxbebckbbdfgbbbbbbeblceffebCacDZfIvgedcmBmbbfbcCe"
    "hbqxjhbhbhbhbhbhbhbhDcbSbcBqffceDigdbDmbefBrbDqrBgBwqTsJToCmBGUfCpBucKjdqkcuBvqBfcCsBxjcDzcC"
    "pccbbbivqbdbebxBdCaoByCkgdbbclBckxzBdhBvBcbqfbkkfbBpxdbiuxdbdBybbdccfcbbbydclhdmgcgcgjhbhbBr"
    "bogElBdQNsmxeBxMNcOccEcBmhmffbbkbnbfbbbcbcbEeBhNzsCmcCcBomEmfbFfBkBagBalDldgcgcgcdBjmbBabtbc"
    "bpcoBiEtOzBddBxBvBgnubigBmkBecBkeiBwGcsBkeBkeBoiCamlbpbhbcblbpbhbcdCamLzjwkiygbBqbjCrgcbbBsb"
    "cdbcxkxjBfCntbckwkBaCsCegcCmbpebdbBdBqBddBdBjibBcBbCckwktnsEgCvCdBznBznBkBmBcjxJqBqgcqdChBdk"
    "biwBqsBuvBbxmCbCfccbnBtBgzBaBkBdbcbiBjdbmBwoevbbbBjsbztcClhbbbebpbkhBvBmicccwbhbcbfdbsbmfBek"
    "bbcbbBmbbzbbbBsCbseudBeBwucbbHcBvBpeBkBwubChBrnbCtBbBlhHdBsEmCmBficbcibcbypbbbDqicBnqbbbBcbk"
    "BohbvblButbsCvHrBhBfjbBlrbBxBeEihbcbBmvbzgbcbBgobMptpbbnbBiEubDbBJmIwHoDXkDtpBPgrgzFXrfWlKDd"
    "BeCPuVxhBfrDbrBesBwqeBfvftQqBtIdCmEyCxfbConCmcbbBcJCaiBVqBpkNFrebhbcbLfpbBddcboeiPgDKuEdfndj"
    "hkIWkDhbCtbccbcccebmbbbhbCnbecibhbBcbebfbbdhbNcczbzbBfbzbBfbzbBfbzbBfbzbiCSyBfggKbCkFqBtkhqb"
    "MjBesBsSqBcIuBecbTbhbebcbpbHpChCqhbBUiebBbbcbbcbbkbebbbbgbebbbbbbdbcbbcbbbbbbbbbbcbbcebhbebe"
    "bbbkbrfdbfbrGOaCLFcBgGDugIocINqoLBlpXyDQwUwCFyHHzfGFg",
    [NUMBER] =
    "BwkEqcfbcdCDlkFekHqkPwkEokegEekEokEokcgEgnElkihDzkEahhtEfkDskEokCsuKikCskBBruBHxdJfkgkwkLokE"
    "ylGjkgkHakDikFekgkBOgbdggkHqBzcfBByCiDawYgBeCBhbBDxbzjodNfeFikBeibpBgkBnpBRSakHgkMigFykBmkHq"
    "kwkDikPqkBFMckSzBtmCfrcNdBbBkeBdbibFefHukBKgizhBnjCxfwgGeccqcBuCmjCacBedCxfEaiyiBphMsgBwkgkK"
    "sBfGckBqeEihFeBeEykCikFokhuJrkNekEokOkkDykguCymQetDpkZmkDiBdItkCskQgkDyvBPbEhXAfkDMckDikFekb"
    "hUgkKcxBJSzkCEwumuEezBQrByDNckQgkTikJnkBBojEykBElChbdbeCyBtbpBLanEDfk",
    [SPACE] =
    "jfsbDwbBabIHjbDPnlBdcfbBvbFXwb",
    [DIGIT_17] =
    "EEGukBFBud",
};
static unsigned char char_class[0x110000];

// Every byte has a printable symbol: its Latin-1 character if that is printable, otherwise one from
// U+0100 on, such as "Ġ" for the space and "Ċ" for the newline. Tokenizer files are written so.
enum { N_SYMBOLS = 256 + 68 };
static char symbol[256][3];     // byte -> its symbol in UTF-8
static int byte_of[N_SYMBOLS];  // code point of a symbol -> its byte; -1: it is no symbol

static void init_tables(void) {
    for (int class = 1; class < N_CLASSES; class++) {
        int at = 0, length = 0, inside = 0;
        for (const char *c = class_lengths[class]; *c; c++) {
            length = length * 26 + (*c | 32) - 'a'; // bit 32 makes letters small
            if (!(*c & 32)) continue;
            if (inside) memset(char_class + at, class, (size_t)length);
            at += length;
            length = 0;
            inside = !inside;
        }
    }
    memset(byte_of, -1, sizeof byte_of);
    for (int b = 0, next = 256; b < 256; b++) {
        bool printable = (b > 32 && b < 127) || (b > 160 && b != 173);
        int cp = printable ? b : next++;
        utf8_write(symbol[b], cp);
        byte_of[cp] = b;
    }
}

// The class and the length of the character at s. What is not UTF-8 counts as OTHER and stays as it
// is: there is a token for every byte.
static inline int class_at(const char *s, size_t n, bool single_digits, size_t *len) {
    int cp;
    *len = utf8_read(s, n, &cp);
    int class = cp < 0 ? OTHER : char_class[cp];
    return class != DIGIT_17 ? class : single_digits ? NUMBER : OTHER;
}

// The length of the first pre-token of n > 0 bytes. With single_digits the text is first cut on
// both sides of every number character: each is a pre-token, and what is before it ends there.
static size_t pretoken(const char *s, size_t n, bool single_digits) {
    if (s[0] == '\'' && n > 1) {
        if (s[1] == 's' || s[1] == 't' || s[1] == 'm' || s[1] == 'd') return 2;
        if (n > 2 && (!memcmp(s, "'re", 3) || !memcmp(s, "'ve", 3) || !memcmp(s, "'ll", 3)))
            return 3;
    }
    size_t i = s[0] == ' ' && n > 1, len, last = 0; // i: behind the optional space
    int class = class_at(s + i, n - i, single_digits, &len);
    if (class == NUMBER && single_digits) return i ? i : len;
    if (class != SPACE) { // one of \p{L}+, \p{N}+, [^\s\p{L}\p{N}]+: on while the class is the same
        do i += len; while (i < n && class_at(s + i, n - i, single_digits, &len) == class);
        return i;
    }
    for (i = 0; i < n; last = i, i += len)
        if ((class = class_at(s + i, n - i, single_digits, &len)) != SPACE) break;
    // \s+(?!\S) must not be followed by a word, so it leaves out the last white space character: if
    // that is a space, the word takes it. With only one to begin with, \s+ takes it after all.
    bool word_follows = i < n && !(class == NUMBER && single_digits);
    return word_follows && last > 0 ? last : i;
}

// ------------------------------------------------------------------------------------------------
// Encoding. A new word is split into bytes and the merges are replayed, looking up only pairs that
// stand in it; words come again and again, so the ids of short ones are remembered.

enum { SHORT_WORD = 64, CACHED_WORDS = 1 << 16 };

typedef struct { const char *s; size_t len; } Token; // its bytes

typedef struct Tokenizer {
    int vocab_size;
    Token *token;               // (vocab_size)
    int bos, eos, pad;          // ids, or -1
    bool single_digits;
    uint64_t fingerprint;       // of both files, to name what was made with this tokenizer
    Text json, config;          // the text of both files
    Dict spelling;              // the tokens as tokenizer.json writes them; the numbers are the ids
    char *bytes;                // where Token.s points; of an added token, into `spelling`
    int byte_id[256];
    Map rank;                   // pair of ids -> number of its merge; the lowest goes first
    Ids merged;                 // number of a merge -> the id it makes
    Ids added;                  // looked for in a text before all else, like "<|im_end|>"
    bool begins_added[256];     // does one begin with this byte?
    Dict cache;                 // short words; of word number w,
    Ids cached, cached_at;      // cached.id[cached_at.id[w]] is how many ids it has; these follow
} Tokenizer;

static const unsigned NO_MERGE = UINT_MAX; // as a rank: after all others

static inline unsigned merge_rank(const Tokenizer *t, int left, int right) {
    if (t->rank.n == 0) return NO_MERGE;
    const MapSlot *slot = map_slot(&t->rank, make_pair(left, right));
    return slot->key ? (unsigned)slot->value : NO_MERGE;
}

// Told of a merge: the n ids of a word, of which those at `at` and at + 1 will be merged.
typedef void OnMerge(const Tokenizer *t, const int *id, size_t n, size_t at, unsigned rank);

// Merges n <= SHORT_WORD ids in place, always the pair of lowest rank, of equals the leftmost.
// Returns how many ids are left. on_merge may be NULL.
static size_t merge_short(const Tokenizer *t, int *id, size_t n, OnMerge *on_merge) {
    unsigned rank[SHORT_WORD]; // of the pair id[i], id[i + 1]
    for (size_t i = 0; i + 1 < n; i++) rank[i] = merge_rank(t, id[i], id[i + 1]);
    while (n > 1) {
        size_t best = 0;
        unsigned lowest = rank[0];
        for (size_t i = 1; i + 1 < n; i++) if (rank[i] < lowest) lowest = rank[best = i];
        if (lowest == NO_MERGE) break;
        if (on_merge) on_merge(t, id, n, best, rank[best]);
        id[best] = t->merged.id[rank[best]];
        n--;
        for (size_t i = best + 1; i < n; i++) id[i] = id[i + 1], rank[i - 1] = rank[i];
        if (best > 0) rank[best - 1] = merge_rank(t, id[best - 1], id[best]);
        if (best + 1 < n) rank[best] = merge_rank(t, id[best], id[best + 1]);
    }
    return n;
}

typedef struct { int id; size_t prev, next; } Link; // id -1: merged into the one before

// Puts the pair that begins at i into the heap, if it can be merged.
static void push_merge(const Tokenizer *t, Heap *heap, const Link *link, size_t i, size_t n) {
    size_t next = link[i].next;
    unsigned rank = next < n ? merge_rank(t, link[i].id, link[next].id) : NO_MERGE;
    if (rank != NO_MERGE) heap_push(heap, (HeapItem){rank, i});
}

// The same for words of any length, as a linked list. Searching for the best pair each time would
// take n * n steps; a heap hands it out in log n. Pairs that are gone are noticed when they come
// out: nothing follows at that place, or what does has another rank.
static size_t merge_long(const Tokenizer *t, int *id, size_t n) {
    Heap heap = {0};
    Link *link = xrealloc(NULL, n, sizeof *link);
    size_t left = 0;
    for (size_t i = 0; i < n; i++) link[i] = (Link){id[i], i - 1, i + 1};
    for (size_t i = 0; i < n; i++) push_merge(t, &heap, link, i, n);
    for (HeapItem top; heap_pop(&heap, &top);) {
        size_t i = top.second, next = link[i].next;
        if (link[i].id < 0 || next >= n) continue;
        if (merge_rank(t, link[i].id, link[next].id) != top.first) continue;
        link[i] = (Link){t->merged.id[top.first], link[i].prev, link[next].next};
        link[next].id = -1;
        if (link[i].next < n) link[link[i].next].prev = i;
        if (i > 0) push_merge(t, &heap, link, link[i].prev, n);
        push_merge(t, &heap, link, i, n);
    }
    for (size_t i = 0; i < n; i = link[i].next) id[left++] = link[i].id;
    free(heap.item);
    free(link);
    return left;
}

// Appends the ids of a pre-token: those it had last time, or else the merges decide.
static void encode_word(Tokenizer *t, const char *s, size_t n, Ids *out) {
    out->id = grow(out->id, &out->cap, out->n + n, sizeof *out->id);
    int *id = out->id + out->n, known = t->cache.n;
    int word = n <= SHORT_WORD ? dict_number(&t->cache, s, n, true) : -1;
    if (word >= 0 && word < known) {
        const int *cached = t->cached.id + t->cached_at.id[word];
        for (int i = 0; i < cached[0]; i++) id[i] = cached[1 + i];
        out->n += (size_t)cached[0];
        return;
    }
    for (size_t i = 0; i < n; i++) id[i] = t->byte_id[(unsigned char)s[i]];
    n = word >= 0 ? merge_short(t, id, n, NULL) : merge_long(t, id, n);
    out->n += n;
    if (word < 0) return;
    ids_push(&t->cached_at, (int)t->cached.n);
    ids_push(&t->cached, (int)n);
    for (size_t i = 0; i < n; i++) ids_push(&t->cached, id[i]);
    if (t->cache.n == CACHED_WORDS) { // full. Forget everything: frequent words are soon back
        dict_free(&t->cache);
        t->cache = (Dict){.n = 0};
        t->cached.n = t->cached_at.n = 0;
    }
}

static void encode_words(Tokenizer *t, const char *s, size_t n, Ids *out) {
    for (size_t i = 0, len; i < n; i += len) {
        len = pretoken(s + i, n - i, t->single_digits);
        encode_word(t, s + i, len, out);
    }
}

// Appends the ids of a text. With parse_special, added tokens in it are recognised, the longest
// that fits. Without, they are text like any other: what a user types must not end the user's
// turn. The cache changes, so that each thread needs a tokenizer of its own.
static void tokenizer_encode(Tokenizer *t, const char *s, size_t n, bool parse_special, Ids *out) {
    size_t done = 0;
    for (size_t i = 0; parse_special && i < n; i++) {
        if (!t->begins_added[(unsigned char)s[i]]) continue;
        int id = -1;
        for (size_t k = 0, longest = 0; k < t->added.n; k++) {
            const Token *a = &t->token[t->added.id[k]];
            if (a->len <= longest || a->len > n - i || memcmp(a->s, s + i, a->len)) continue;
            id = t->added.id[k], longest = a->len;
        }
        if (id < 0) continue;
        encode_words(t, s + done, i - done, out);
        ids_push(out, id);
        done = i + t->token[id].len;
        i = done - 1;
    }
    encode_words(t, s + done, n - done, out);
}

// ------------------------------------------------------------------------------------------------
// Decoding. Tokens are bytes, and one may end within a character. What is shown has to be UTF-8 at
// every moment, so the beginning of a character is held back until the rest has come.

typedef struct { char held[4]; size_t n; } Utf8Stream;

// Appends the text of a token, id < vocab_size. What is not UTF-8 comes out as U+FFFD.
static void decode_token(const Tokenizer *t, int id, Utf8Stream *u, Text *out) {
    for (size_t i = 0; i < t->token[id].len; i++) {
        u->held[u->n++] = t->token[id].s[i];
        while (u->n > 0) { // a second time if this byte breaks off what is before it
            int cp;
            size_t len = utf8_read(u->held, u->n, &cp);
            if (cp == CUT_SHORT) break;
            append_character(out, cp, u->held, len);
            memmove(u->held, u->held + len, u->n -= len);
        }
    }
}

// To be called after the last token: what is held back will never be complete.
static void decode_end(Utf8Stream *u, Text *out) {
    if (u->n > 0) append_character(out, CUT_SHORT, NULL, 0);
    u->n = 0;
}

#ifndef MINIMIND
// Appends text as it can be shown: control characters and parts of characters as escapes.
static void write_visible(Text *out, const char *s, size_t n) {
    for (size_t i = 0, len; i < n; i += len) {
        int cp;
        len = utf8_read(s + i, n - i, &cp);
        bool control = cp >= 0 && (cp < 32 || (cp > 126 && cp < 160));
        if (cp == '\n') text_append(out, "\\n", 2);
        else if (control) text_printf(out, "\\u%04X", (unsigned)cp);
        else if (cp >= 0) text_append(out, s + i, len);
        else for (size_t k = i; k < i + len; k++) text_printf(out, "\\x%02X", (unsigned char)s[k]);
    }
}
#endif

// ------------------------------------------------------------------------------------------------
// Chat. A conversation becomes one text by the template that MiniMind's models are trained with:
//
//     <|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\nHi<|im_end|>\n
//                                                           [trained                       ]
//
// Between <think> and </think> stands the assistant's reasoning, if any. While the text is made, it
// is noted which of it a model shall learn to say: in every turn of the assistant all that follows
// the line with its name, up to and with the <|im_end|> that closes it.

typedef struct { Text text; Ids cut; } Chat; // text[cut[0]..cut[1]], [cut[2]..cut[3]], ...: trained

static void chat_add(Chat *c, const char *s) { text_append(&c->text, s, strlen(s)); }

// A value as the template's `tojson`, Python's json.dumps, writes it, but that numbers stay as they
// were written.
static void json_write(Text *out, const Json *j) {
    bool object = j->type == JSON_OBJECT;
    if (j->type < JSON_NUMBER) text_printf(out, "%s", json_names[j->type]);
    else if (j->type == JSON_NUMBER) text_append(out, j->s, j->len);
    else if (j->type == JSON_STRING) json_write_string(out, j->s, j->len);
    else {
        text_append(out, object ? "{" : "[", 1);
        for (const Json *e = j->child; e; e = e->next) {
            if (object) json_write_string(out, e->key, strlen(e->key)), text_append(out, ": ", 2);
            json_write(out, e);
            if (e->next) text_append(out, ", ", 2);
        }
        text_append(out, object ? "}" : "]", 1);
    }
}

// Appends s to end without the newlines around it, or only without those before it.
static void add_stripped(Text *out, const char *s, const char *end, bool both) {
    while (s < end && *s == '\n') s++;
    while (both && s < end && end[-1] == '\n') end--;
    text_append(out, s, (size_t)(end - s));
}

static const char *last_in(const char *s, const char *end, const char *what) {
    const char *found = NULL;
    for (const char *p = s; (p = strstr(p, what)) && p < end; p++) found = p;
    return found;
}

// The calls of tools behind what the assistant says: a list, or its text as JSON. Returns what is
// wrong, or NULL.
static const char *render_calls(Chat *c, const Json *calls, bool said) {
    Json *parsed = NULL;
    const char *error;
    size_t at;
    if (calls && calls->type == JSON_STRING && calls->len) {
        calls = parsed = json_parse(calls->s, calls->len, &error, &at);
        if (!parsed) return "the text of \"tool_calls\" is not JSON";
    }
    for (const Json *e = calls && calls->type == JSON_ARRAY ? calls->child : NULL; e; e = e->next) {
        const Json *call = json_get(e, "function") ? json_get(e, "function") : e;
        const Json *arguments = json_get(call, "arguments");
        if (said || e != calls->child) chat_add(c, "\n");
        chat_add(c, "<tool_call>\n{\"name\": \"");
        chat_add(c, json_text(call, "name") ? json_text(call, "name") : "");
        chat_add(c, "\", \"arguments\": ");
        if (arguments && arguments->type == JSON_STRING) chat_add(c, arguments->s);
        else if (arguments) json_write(&c->text, arguments);
        chat_add(c, "}\n</tool_call>");
    }
    json_free(parsed);
    return NULL;
}

// Returns what is wrong, or NULL.
static const char *render_assistant(Chat *c, const Json *m) {
    const char *s = json_text(m, "content") ? json_text(m, "content") : "", *end = s + strlen(s);
    const char *why = json_text(m, "reasoning_content"), *why_end = why ? why + strlen(why) : NULL;
    const char *close = strstr(s, "</think>");
    if (!why && close) { // the reasoning stands in the content
        const char *open = last_in(s, close, "<think>");
        why = open ? open + strlen("<think>") : s, why_end = close;
        s = last_in(s, end, "</think>") + strlen("</think>");
        while (*s == '\n') s++;
    }
    chat_add(c, "<|im_start|>assistant\n");
    ids_push(&c->cut, (int)c->text.len);
    chat_add(c, "<think>\n");
    if (why) add_stripped(&c->text, why, why_end, true);
    chat_add(c, "\n</think>\n\n");
    add_stripped(&c->text, s, end, false);
    const char *error = render_calls(c, json_get(m, "tool_calls"), s < end);
    chat_add(c, "<|im_end|>");
    ids_push(&c->cut, (int)c->text.len);
    chat_add(c, "\n");
    return error;
}

static void render_tools(Chat *c, const Json *tools) {
    chat_add(c, "# Tools\n\nYou may call one or more functions to assist with the user query.\n\n"
             "You are provided with function signatures within <tools></tools> XML tags:\n<tools>");
    for (const Json *e = tools->child; e; e = e->next) {
        chat_add(c, "\n");
        json_write(&c->text, e);
    }
    chat_add(c, "\n</tools>\n\nFor each function call, return a json object with function name and "
             "arguments within <tool_call></tool_call> XML tags:\n<tool_call>\n{\"name\": "
             "<function-name>, \"arguments\": <args-json-object>}\n</tool_call>");
}

static bool role_is(const Json *m, const char *role) {
    const char *is = json_text(m, "role");
    return is && !strcmp(is, role);
}

// Appends a list of messages; tools is a list or NULL. With `prompt` the assistant's turn is opened
// at the end, with `think` in the middle of its thoughts. Returns what is wrong, or NULL.
static const char *chat_render(Chat *c, const Json *messages, const Json *tools, bool prompt,
                               bool think) {
    if (!messages || messages->type != JSON_ARRAY) return "there is no list of messages";
    if (!messages->child) return "the list of messages is empty";
    const Json *m = messages->child, *before = NULL;
    const char *error = NULL;
    if (tools && tools->type == JSON_ARRAY && tools->child) {
        chat_add(c, "<|im_start|>system\n");
        if (role_is(m, "system") && json_text(m, "content"))
            chat_add(c, json_text(m, "content")), chat_add(c, "\n\n");
        render_tools(c, tools);
        chat_add(c, "<|im_end|>\n");
        if (role_is(m, "system")) m = m->next;
    }
    for (; m && !error; before = m, m = m->next) {
        const char *content = json_text(m, "content") ? json_text(m, "content") : "";
        if (role_is(m, "assistant")) error = render_assistant(c, m);
        else if (role_is(m, "tool")) { // answers that follow each other share a turn of the user
            if (!before || !role_is(before, "tool")) chat_add(c, "<|im_start|>user");
            text_printf(&c->text, "\n<tool_response>\n%s\n</tool_response>", content);
            if (!m->next || !role_is(m->next, "tool")) chat_add(c, "<|im_end|>\n");
        } else if (role_is(m, "system") || role_is(m, "user"))
            text_printf(&c->text, "<|im_start|>%s\n%s<|im_end|>\n", json_text(m, "role"), content);
        else error = "a message's role is none of system user assistant tool";
    }
    if (prompt) chat_add(c, "<|im_start|>assistant\n<think>\n");
    if (prompt && !think) chat_add(c, "\n</think>\n\n");
    return error;
}

// Is there a NUL in a string of this value? Rendering takes strings as C does: they end there.
static bool holds_nul(const Json *j) {
    bool found = j->type == JSON_STRING && strlen(j->s) < j->len;
    for (const Json *e = j->child; e && !found; e = e->next) found = holds_nul(e);
    return found;
}

// The same for a record with these messages, whose tools may stand in it or, as in MiniMind's data,
// in a system message, there as the text of JSON.
static const char *chat_record(Chat *c, const Json *record, const Json *messages, bool prompt,
                               bool think) {
    const Json *tools = json_get(record, "tools"), *list = messages;
    const char *error = NULL;
    Json *parsed = NULL;
    size_t at;
    c->text.len = c->cut.n = 0;
    for (const Json *m = list && list->type == JSON_ARRAY ? list->child : NULL; m; m = m->next) {
        const Json *own = role_is(m, "system") ? json_get(m, "tools") : NULL;
        if (own && (own->child || (own->type == JSON_STRING && own->len))) tools = own; // not empty
        if (holds_nul(m)) return "a message holds a NUL character";
    }
    if (tools && tools->type == JSON_STRING && tools->len)
        tools = parsed = json_parse(tools->s, tools->len, &error, &at);
    if (!error) error = chat_render(c, messages, tools, prompt, think);
    json_free(parsed);
    return error;
}

// A mark on an id. Bit 30, not 31: an id that carries it stays positive, for -1 means none.
enum { TRAINED = 1 << 30 };

// Appends the ids of a rendered conversation; those to be trained carry the mark. The borders in
// c->cut divide the text into pieces 0, 1, 2, ...: 1, 3, 5 lie inside a trained stretch. Cutting
// there changes no id, since an added token stands at each border.
static void chat_encode(Tokenizer *t, const Chat *c, Ids *out) {
    for (size_t i = 0, at = 0; i <= c->cut.n; i++) {
        size_t end = i < c->cut.n ? (size_t)c->cut.id[i] : c->text.len, first = out->n;
        tokenizer_encode(t, c->text.s + at, end - at, true, out);
        for (size_t k = first; i % 2 == 1 && k < out->n; k++) out->id[k] |= TRAINED;
        at = end;
    }
}

// Appends the ids of a record's list of messages, up to where the assistant begins to speak (with
// `think`: to think) if `prompt`; else the whole, with the marks. Returns what is wrong, or NULL.
static const char *encode_chat(Tokenizer *tok, const Json *record, const Json *messages,
                               bool prompt, bool think, Ids *out) {
    Chat chat = {{0}, {0}};
    const char *error = chat_record(&chat, record, messages, prompt, think);
    if (!error && prompt) tokenizer_encode(tok, chat.text.s, chat.text.len, true, out);
    else if (!error) chat_encode(tok, &chat, out);
    free(chat.text.s);
    free(chat.cut.id);
    return error;
}

// ------------------------------------------------------------------------------------------------
// Files. tokenizer.json is Hugging Face's format: "model" has "vocab" (spelling -> id) and
// "merges"; "added_tokens" may repeat tokens of the vocabulary or add to it. A setting that would
// change the ids and is not implemented is refused: ids that are almost right are wrong.

// Dies unless object[key] is a or b (which may be NULL). An absent value counts as "null", an
// object as its "type". `where` is what the message puts before the key.
static void require(const char *path, const char *where, const Json *object, const char *key,
                    const char *a, const char *b) {
    const Json *j = json_get(object, key);
    const char *type = json_text(j, "type"), *is = type ? type : json_names[j ? j->type : 0];
    char number[32];
    if (j && j->type == JSON_STRING) is = j->s;
    if (j && j->type == JSON_NUMBER) snprintf(number, sizeof number, "%g", j->number), is = number;
    if (strcmp(is, a) && (!b || strcmp(is, b)))
        die("%s: \"%s%s\" is \"%s\": only \"%s\" is implemented", path, where, key, is, a);
}

static void load_settings(Tokenizer *t, const char *path, const Json *root, const Json *model) {
    require(path, "", root, "normalizer", "null", NULL);
    require(path, "", root, "truncation", "null", NULL);
    require(path, "", root, "padding", "null", NULL);
    require(path, "", root, "post_processor", "null", "ByteLevel"); // neither adds tokens
    require(path, "", root, "decoder", "ByteLevel", NULL);
    require(path, "model.", model, "type", "BPE", NULL);
    require(path, "model.", model, "dropout", "null", "0");
    require(path, "model.", model, "continuing_subword_prefix", "null", "");
    require(path, "model.", model, "end_of_word_suffix", "null", "");
    require(path, "model.", model, "byte_fallback", "false", "null");
    require(path, "model.", model, "ignore_merges", "false", "null");
    require(path, "", root, "pre_tokenizer", "ByteLevel", "Sequence");
    const Json *step = json_get(root, "pre_tokenizer"), *steps = json_get(step, "pretokenizers");
    t->single_digits = steps != NULL;
    if (steps) { // the one sequence that is known: Digits, ByteLevel
        step = steps->child;
        require(path, "pre_tokenizer.0.", step, "type", "Digits", NULL);
        require(path, "pre_tokenizer.0.", step, "individual_digits", "true", NULL);
        step = step->next;
        require(path, "pre_tokenizer.2.", step ? step->next : NULL, "type", "null", NULL);
    }
    require(path, "pre_tokenizer.", step, "type", "ByteLevel", NULL);
    require(path, "pre_tokenizer.", step, "add_prefix_space", "false", "null");
    require(path, "pre_tokenizer.", step, "use_regex", "true", "null");
}

// The first element of object[key], which has to be of this type.
static const Json *load_list(const char *path, const Json *object, const char *key, int type) {
    const Json *j = json_get(object, key);
    if (!j || (int)j->type != type) die("%s: \"%s\" is missing or of the wrong type", path, key);
    return j->child;
}

// Collects the tokens: their ids must be 0, 1, 2, ... and each must be there once.
static void load_vocab(Tokenizer *t, const char *path, const Json *vocab, const Json *added) {
    size_t bound = 0, n = 0; // no id can be higher than there are entries
    for (const Json *j = vocab; j; j = j->next) bound++;
    for (const Json *j = added; j; j = j->next) bound++;
    const char **name = xcalloc(bound, sizeof *name);
    for (int list = 0; list < 2; list++)
        for (const Json *j = list ? added : vocab; j; j = j->next) {
            const Json *id = list ? json_get(j, "id") : j;
            const char *s = list ? json_text(j, "content") : j->key;
            if (list && (!s || !*s)) die("%s: an added token has no \"content\"", path);
            double x = id && id->type == JSON_NUMBER ? id->number : -1;
            if (!(x >= 0 && x < (double)bound && x == (double)(size_t)x))
                die("%s: the id of token \"%s\" is no whole number below %zu", path, s, bound);
            const char **at = &name[(size_t)x];
            if (*at && strcmp(*at, s))
                die("%s: id %.0f is there twice: \"%s\", \"%s\"", path, x, *at, s);
            *at = s;
        }
    while (n < bound && name[n]) n++;
    for (size_t i = n; i < bound; i++)
        if (name[i]) die("%s: no token has id %zu, but \"%s\" has %zu", path, n, name[i], i);
    t->vocab_size = (int)n;
    for (int id = 0, other; id < t->vocab_size; id++)
        if ((other = dict_number(&t->spelling, name[id], strlen(name[id]), true)) != id)
            die("%s: token \"%s\" has two ids, %d and %d", path, name[id], other, id);
    free(name);
}

// Turns spellings into bytes, and finds the token of every single byte. An added token is spelled
// as it is, and Token.s points there: from here on no spelling may be added, for that moves them.
static void load_bytes(Tokenizer *t, const char *path, const Json *added) {
    static const char *const off[] = {"single_word", "lstrip", "rstrip", "normalized"};
    t->token = xcalloc((size_t)t->vocab_size + 1, sizeof *t->token);
    for (const Json *j = added; j; j = j->next) {
        for (int i = 0; i < 4; i++) require(path, "added_tokens[].", j, off[i], "false", "null");
        int id = (int)json_get(j, "id")->number;
        t->token[id].s = dict_string(&t->spelling, id, &t->token[id].len);
        t->begins_added[(unsigned char)*t->token[id].s] = true;
        ids_push(&t->added, id);
    }
    char *out = t->bytes = xcalloc(t->spelling.bytes.len, 1);
    for (int id = 0; id < t->vocab_size; id++) {
        Token *token = &t->token[id];
        if (token->s) continue;
        size_t n, len;
        const char *s = dict_string(&t->spelling, id, &n);
        token->s = out;
        for (size_t i = 0; i < n; i += len) {
            int cp;
            len = utf8_read(s + i, n - i, &cp);
            int byte = cp >= 0 && cp < N_SYMBOLS ? byte_of[cp] : -1;
            if (byte < 0)
                die("%s: token %d, \"%.*s\", is not in byte symbols", path, id, (int)n, s);
            *out++ = (char)byte;
        }
        token->len = (size_t)(out - token->s);
    }
    for (int b = 0; b < 256; b++) {
        t->byte_id[b] = dict_number(&t->spelling, symbol[b], strlen(symbol[b]), false);
        if (t->byte_id[b] < 0) die("%s: no token for byte 0x%02X, \"%s\"", path, b, symbol[b]);
    }
}

// Enters the merges, each written as ["a", "b"] or "a b".
static void load_merges(Tokenizer *t, const char *path, const Json *merges) {
    Text both = {0};
    for (const Json *m = merges; m; m = m->next) {
        int number = (int)t->merged.n;
        const char *space = m->type == JSON_STRING ? strchr(m->s, ' ') : NULL;
        const Json *a = m->child, *b = a ? a->next : NULL;
        if (!space && (!b || b->next || a->type != JSON_STRING || b->type != JSON_STRING))
            die("%s: merge %d is neither [\"a\", \"b\"] nor \"a b\"", path, number);
        both.len = 0;
        text_append(&both, space ? m->s : a->s, space ? (size_t)(space - m->s) : a->len);
        size_t cut = both.len;
        text_append(&both, space ? space + 1 : b->s, space ? m->len - cut - 1 : b->len);
        int left = dict_number(&t->spelling, both.s, cut, false);
        int right = dict_number(&t->spelling, both.s + cut, both.len - cut, false);
        int made = dict_number(&t->spelling, both.s, both.len, false);
        if (left < 0 || right < 0 || made < 0)
            die("%s: merge %d, \"%.*s\" + \"%s\": the %s is no token", path, number, (int)cut,
                both.s, both.s + cut, left < 0 ? "first" : right < 0 ? "second" : "result");
        int *rank = map_value(&t->rank, make_pair(left, right));
        if (*rank >= 0) die("%s: merge %d is merge %d again", path, number, *rank);
        *rank = number;
        ids_push(&t->merged, made);
    }
    free(both.s);
}

// Sets t->bos, eos and pad: as the configuration says, else by MiniMind's names. Writes a
// configuration if there is none.
static void load_config(Tokenizer *t, const char *path) {
    static const char *const keys[] = {"bos_token", "eos_token", "pad_token"};
    static const char *const names[] = {"<|im_start|>", "<|im_end|>", "<|endoftext|>"};
    int *role[] = {&t->bos, &t->eos, &t->pad};
    Json *config = t->config.len ? json_parse_file(path, t->config.s, t->config.len) : NULL;
    if (!config) text_printf(&t->config, "{\n  \"tokenizer_class\": \"PreTrainedTokenizerFast\"");
    for (int i = 0; i < 3; i++) {
        const Json *j = json_get(config, keys[i]); // a string, or an object with "content"
        const char *said = j && j->type == JSON_STRING ? j->s : json_text(j, "content");
        const char *name = said ? said : names[i];
        *role[i] = dict_number(&t->spelling, name, strlen(name), false);
        if (j && !said && j->type != JSON_NULL) die("%s: \"%s\" is no string", path, keys[i]);
        if (said && *role[i] < 0) die("%s: \"%s\" is \"%s\", no token", path, keys[i], said);
        if (j && !said) *role[i] = -1;
        if (!config && *role[i] >= 0) text_printf(&t->config, ",\n  \"%s\": \"%s\"", keys[i], name);
    }
    if (!config) text_printf(&t->config, ",\n  \"clean_up_tokenization_spaces\": false\n}\n");
    json_free(config);
}

// A tokenizer from the text of its two files, which it keeps: saving is writing them. config may be
// empty. The paths are for messages.
static Tokenizer *tokenizer_parse(const char *path, Text json, const char *config_path,
                                  Text config) {
    Tokenizer *t = xcalloc(1, sizeof *t);
    Json *root = json_parse_file(path, json.s, json.len);
    const Json *model = json_get(root, "model");
    const Json *added = load_list(path, root, "added_tokens", JSON_ARRAY);
    *t = (Tokenizer){.json = json, .config = config};
    init_tables();
    load_settings(t, path, root, model);
    load_vocab(t, path, load_list(path, model, "vocab", JSON_OBJECT), added);
    load_bytes(t, path, added);
    load_merges(t, path, load_list(path, model, "merges", JSON_ARRAY));
    load_config(t, config_path);
    json_free(root);
    t->fingerprint = hash_bytes(HASH_START, t->json.s, t->json.len);
    t->fingerprint = hash_bytes(t->fingerprint, t->config.s, t->config.len);
    return t;
}

// Loads a folder with tokenizer.json and perhaps tokenizer_config.json, or the file tokenizer.json.
static Tokenizer *tokenizer_load(const char *path) {
    struct stat st;
    bool folder = stat(path, &st) == 0 && S_ISDIR(st.st_mode);
    char *name = format("%s%s", path, folder ? "/tokenizer.json" : "");
    char *config_name = format("%s/tokenizer_config.json", path);
    Text json = {0}, config = {0};
    json.s = read_file(name, &json.len);
    if (folder && access(config_name, F_OK) == 0) config.s = read_file(config_name, &config.len);
    Tokenizer *t = tokenizer_parse(name, json, config_name, config);
    free(name);
    free(config_name);
    return t;
}

// Writes both files into a folder, which is made if need be.
static void tokenizer_save(const Tokenizer *t, const char *folder) {
    write_file(folder, "tokenizer.json", &t->json);
    write_file(folder, "tokenizer_config.json", &t->config);
}

static void tokenizer_free(Tokenizer *t) {
    void *owned[] = {t->token, t->json.s, t->config.s, t->bytes, t->rank.slot, t->merged.id,
                     t->added.id, t->cached.id, t->cached_at.id, t};
    dict_free(&t->spelling);
    dict_free(&t->cache);
    for (size_t i = 0; i < sizeof owned / sizeof *owned; i++) free(owned[i]);
}

// ------------------------------------------------------------------------------------------------
// Training. First the words of all texts are counted; the rest works on different words. Then,
// until the vocabulary is full: take the pair with the highest count (of equals the one with the
// smaller first id, then second id), make it a token, and put that in its place in every word.
//
// Counting anew after each merge would take days. But a merge changes only the pairs beside the
// places where it happens: counts are corrected there, each pair has a list of the words it is in,
// and a heap hands out the best pair. A pair arises at once in all its places, when the younger of
// its two tokens is made. From then on its count only falls, as other merges take its tokens away.
// The heap is not told; a pair that comes out with an old count goes back with the present one.
//
// As in Hugging Face's trainer, "aaa" counts as two pairs (a, a), though only one can be merged.

#if !defined MINIMIND || defined WITH_TRAINER

typedef struct { int64_t count; int *id; size_t n; } Word; // how often it came; its n ids
typedef struct { uint64_t pair; int64_t count; Ids words; } PairCount; // words: those that have it

typedef struct Trainer {
    bool single_digits;
    Dict words;
    Word *word; size_t word_cap;            // (words.n)
    int *ids;                               // of all words, where Word.id points
    Map index;                              // pair -> number in `pairs`
    PairCount *pairs; size_t n_pairs, pairs_cap;
    Heap heap;                              // first: ~count, so that the highest count comes first
} Trainer;

// MiniMind's added tokens, with the ids 0 to 35; the first 21 are special.
enum { N_ADDED = 36, N_SPECIAL = 21 };
static const char *const added_tokens[N_ADDED] = {
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|object_ref_start|>", "<|object_ref_end|>",
    "<|box_start|>", "<|box_end|>", "<|quad_start|>", "<|quad_end|>", "<|vision_start|>",
    "<|vision_end|>", "<|vision_pad|>", "<|image_pad|>", "<|video_pad|>", "<|audio_start|>",
    "<|audio_end|>", "<|audio_pad|>", "<tts_pad>", "<tts_text_bos>", "<tts_text_eod>",
    "<tts_text_bos_single>", "<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>",
    "<think>", "</think>", "<|buffer1|>", "<|buffer2|>", "<|buffer3|>", "<|buffer4|>",
    "<|buffer5|>", "<|buffer6|>", "<|buffer7|>", "<|buffer8|>", "<|buffer9|>"};

static Trainer *trainer_new(bool single_digits) {
    Trainer *tr = xcalloc(1, sizeof *tr);
    init_tables();
    tr->single_digits = single_digits;
    return tr;
}

// Counts the words of a document.
static void trainer_add(Trainer *tr, const char *s, size_t n) {
    for (size_t i = 0, len; i < n; i += len) {
        len = pretoken(s + i, n - i, tr->single_digits);
        int known = tr->words.n, word = dict_number(&tr->words, s + i, len, true);
        tr->word = grow(tr->word, &tr->word_cap, (size_t)word + 1, sizeof *tr->word);
        if (word == known) tr->word[word] = (Word){0, NULL, len};
        tr->word[word].count++;
    }
}

static void count_text(void *trainer, const char *s, size_t n) { trainer_add(trainer, s, n); }

// A pair appears (1) or disappears (-1) in a word, and counts as often as the word came.
static void change_count(Trainer *tr, int left, int right, int word, int sign) {
    uint64_t pair = make_pair(left, right);
    int *index = map_value(&tr->index, pair);
    if (*index < 0) {
        *index = (int)tr->n_pairs++;
        tr->pairs = grow(tr->pairs, &tr->pairs_cap, tr->n_pairs, sizeof *tr->pairs);
        tr->pairs[*index] = (PairCount){.pair = pair};
    }
    PairCount *p = &tr->pairs[*index];
    p->count += sign * tr->word[word].count;
    bool noted = p->words.n > 0 && p->words.id[p->words.n - 1] == word;
    if (sign > 0 && !noted) ids_push(&p->words, word);
}

// The pairs from number `first` on are new: puts them into the heap.
static void push_pairs(Trainer *tr, size_t first) {
    for (size_t i = first; i < tr->n_pairs; i++)
        heap_push(&tr->heap, (HeapItem){~(uint64_t)tr->pairs[i].count, tr->pairs[i].pair});
}

// Writes every word as single bytes and counts the pairs.
static void split_words(Trainer *tr, const int *byte_id) {
    int *id = tr->ids = xcalloc(tr->words.bytes.len, sizeof *id);
    for (size_t i = 0; i < tr->words.bytes.len; i++)
        id[i] = byte_id[(unsigned char)tr->words.bytes.s[i]];
    for (int w = 0; w < tr->words.n; id += tr->word[w++].n) {
        tr->word[w].id = id;
        for (size_t i = 0; i + 1 < tr->word[w].n; i++) change_count(tr, id[i], id[i + 1], w, 1);
    }
    push_pairs(tr, 0);
}

// Puts `made` for left, right wherever they stand in a word, from its beginning on. In x l r y the
// pairs (x, l) and (r, y) disappear, (x, made) and (made, y) appear. (l, r) itself has left the
// heap; nobody reads its count again.
static void merge_in_word(Trainer *tr, int word, int left, int right, int made) {
    int *id = tr->word[word].id;
    size_t n = tr->word[word].n, out = 0; // out <= i: the word shrinks where it is
    for (size_t i = 0; i < n; id[out++] = id[i++]) {
        if (id[i] != left || i + 1 == n || id[i + 1] != right) continue;
        if (out > 0) {
            change_count(tr, id[out - 1], left, word, -1);
            change_count(tr, id[out - 1], made, word, 1);
        }
        id[++i] = made; // the loop copies it to its place
        if (i + 1 == n) continue;
        change_count(tr, right, id[i + 1], word, -1);
        change_count(tr, made, id[i + 1], word, 1);
    }
    tr->word[word].n = out;
}

// Adds the tokens that the text yields to `tokens`, up to vocab_size. Returns the merges, as many
// as there are new tokens. No string is made twice: no merge has crossed its ends, so inside it the
// same merges happened in the same order everywhere.
static uint64_t *find_merges(Trainer *tr, Dict *tokens, int vocab_size) {
    int first = tokens->n;
    uint64_t *merge = xcalloc((size_t)(vocab_size - first), sizeof *merge);
    Text both = {0};
    for (HeapItem top; tokens->n < vocab_size && heap_pop(&tr->heap, &top);) {
        const PairCount p = tr->pairs[*map_value(&tr->index, top.second)];
        if (p.count == 0) continue;
        if (~top.first != (uint64_t)p.count) { // has fallen in the meantime
            heap_push(&tr->heap, (HeapItem){~(uint64_t)p.count, p.pair});
            continue;
        }
        int left = pair_left(p.pair), right = pair_right(p.pair);
        size_t len, n_pairs = tr->n_pairs;
        both.len = 0;
        const char *s = dict_string(tokens, left, &len);
        text_append(&both, s, len);
        s = dict_string(tokens, right, &len);
        text_append(&both, s, len);
        merge[tokens->n - first] = p.pair;
        int made = dict_number(tokens, both.s, both.len, true);
        for (size_t k = 0; k < p.words.n; k++) {
            // Words lie scattered in memory: asking for them ahead of time hides the wait.
            if (k + 8 < p.words.n) __builtin_prefetch(tr->word[p.words.id[k + 8]].id);
            merge_in_word(tr, p.words.id[k], left, right, made);
        }
        push_pairs(tr, n_pairs);
    }
    free(both.s);
    return merge;
}

// Appends a token in symbols, as a JSON string between `before` and `after`.
static void write_token(Text *out, const char *before, const Dict *tokens, int id,
                        const char *after) {
    size_t len;
    const char *s = dict_string(tokens, id, &len);
    text_printf(out, "%s\"", before);
    for (size_t i = 0; i < len; i++) {
        const char *c = symbol[(unsigned char)s[i]];
        if (*c == '"' || *c == '\\') text_append(out, "\\", 1);
        text_append(out, c, strlen(c));
    }
    text_printf(out, "\"%s", after);
}

// Appends the text of tokenizer.json. There is one merge for each token after the single bytes.
static void write_tokenizer(Text *out, const Dict *tokens, const uint64_t *merge, bool digits) {
    const char *byte_level = "{\"type\": \"ByteLevel\", \"add_prefix_space\": false, "
                             "\"trim_offsets\": true, \"use_regex\": true}";
    const char *sequence = "{\"type\": \"Sequence\", \"pretokenizers\": [{\"type\": \"Digits\", "
                           "\"individual_digits\": true}, ";
    text_printf(out, "{\n\"version\": \"1.0\",\n\"truncation\": null,\n\"padding\": null,\n"
                "\"normalizer\": null,\n\"post_processor\": null,\n\"decoder\": %s,\n"
                "\"pre_tokenizer\": %s%s%s,\n\"added_tokens\": [", byte_level,
                digits ? sequence : "", byte_level, digits ? "]}" : "");
    for (int id = 0; id < N_ADDED; id++)
        text_printf(out, "%s\n{\"id\": %d, \"content\": \"%s\", \"special\": %s, \"single_word\": "
                    "false, \"lstrip\": false, \"rstrip\": false, \"normalized\": false}",
                    id ? "," : "", id, added_tokens[id], id < N_SPECIAL ? "true" : "false");
    text_printf(out, "],\n\"model\": {\"type\": \"BPE\", \"dropout\": null, \"unk_token\": null, "
                "\"continuing_subword_prefix\": null, \"end_of_word_suffix\": null, \"fuse_unk\": "
                "false, \"byte_fallback\": false, \"ignore_merges\": false,\n\"vocab\": {");
    for (int id = 0; id < tokens->n; id++) {
        write_token(out, id ? ",\n" : "\n", tokens, id, ": ");
        text_printf(out, "%d", id);
    }
    text_printf(out, "},\n\"merges\": [");
    for (int i = 0; i < tokens->n - N_ADDED - 256; i++) {
        write_token(out, i ? ",\n[" : "\n[", tokens, pair_left(merge[i]), ", ");
        write_token(out, "", tokens, pair_right(merge[i]), "]");
    }
    text_printf(out, "]}}\n");
}

// Ends the training: makes the tokenizer and frees the trainer. vocab_size is at least N_ADDED +
// 256; the vocabulary stays smaller than it if the text has no more pairs. A tokenizer is born as
// the file that it will be saved as.
static Tokenizer *trainer_finish(Trainer *tr, int vocab_size) {
    Dict tokens = {0}; // an added token's text, or the bytes of a token -> id
    Text json = {0};
    int byte_id[256];
    for (int i = 0; i < N_ADDED; i++)
        dict_number(&tokens, added_tokens[i], strlen(added_tokens[i]), true);
    // Hugging Face numbers the bytes by their symbols. Ties go by id: another order, other merges.
    for (int cp = 0; cp < N_SYMBOLS; cp++)
        if (byte_of[cp] >= 0)
            byte_id[byte_of[cp]] = dict_number(&tokens, &(char){(char)byte_of[cp]}, 1, true);
    split_words(tr, byte_id);
    uint64_t *merge = find_merges(tr, &tokens, vocab_size);
    write_tokenizer(&json, &tokens, merge, tr->single_digits);
    for (size_t i = 0; i < tr->n_pairs; i++) free(tr->pairs[i].words.id);
    void *owned[] = {tr->word, tr->ids, tr->index.slot, tr->pairs, tr->heap.item, merge};
    for (size_t i = 0; i < sizeof owned / sizeof *owned; i++) free(owned[i]);
    dict_free(&tr->words);
    dict_free(&tokens);
    free(tr);
    return tokenizer_parse("trained tokenizer", json, "its configuration", (Text){0});
}
#endif

// ------------------------------------------------------------------------------------------------
// The command line. Results go to stdout, so that commands can be piped; messages go to stderr.

#ifndef MINIMIND

typedef struct {
    const char *tokenizer, *out;
    long vocab, single_digits, color, chat;
    char **arg;    // (n_args) what is not an option: files, or the text
    size_t n_args;
} Options;

// t train, e encode, d decode, c chat, s show
static const Field option_table[] = {
#define AT(name) offsetof(Options, name)
    {"tokenizer", "EDCS", 's', AT(tokenizer), 0, 0, 0, "a folder, or its tokenizer.json"},
    {"out", "T", 's', AT(out), 0, 0, 0, "folder for the tokenizer"},
    {"vocab", "t", 'i', AT(vocab), N_ADDED + 256, 1 << 24, 0, "tokens to learn"},
    {"single-digits", "t", 'i', AT(single_digits), 0, 1, 0, "1: no token has two digits"},
    {"color", "s", 'i', AT(color), 0, 1, 0, "1: colours, also where the output is no terminal"},
    {"chat", "s", 'i', AT(chat), 0, 1, 0, "1: show conversations, from files"},
#undef AT
};
enum { OPTIONS = sizeof option_table / sizeof *option_table };

typedef struct {
    const char *name;
    char letter;                                            // in the table of options
    void (*run)(const Options *);                           // NULL: convert(), as with --chat, by
    bool (*next)(Reader *);                                 // what reads a thing and
    void (*append)(Tokenizer *, const Reader *, Text *out); // what writes the line made of it
    const char *usage, *what;
} Command;

static void cmd_train(const Options *o) {
    double start = seconds();
    if (!o->vocab || !o->n_args) die("train needs --vocab N, --out DIR and a FILE");
    Trainer *tr = trainer_new(o->single_digits == 1);
    for (size_t i = 0; i < o->n_args; i++) {
        Reader r = reader_open(o->arg[i]);
        while (reader_next(&r)) reader_texts(&r, count_text, tr);
        if (r.kind == UNDECIDED) die("%s: there is no text in it", r.path);
        reader_close(&r);
    }
    Tokenizer *t = trainer_finish(tr, (int)o->vocab);
    tokenizer_save(t, o->out);
    fprintf(stderr, "%d tokens, %zu of them merges, in %.2f s; saved in %s\n", t->vocab_size,
            t->merged.n, seconds() - start, o->out);
    if (t->vocab_size < o->vocab)
        fprintf(stderr, "that is all: the text has no pairs left for %ld tokens\n", o->vocab);
    tokenizer_free(t);
}

// Appends the ids of a record's text.
static void encode_record(Tokenizer *t, const Reader *r, Text *out) {
    Ids ids = {0};
    const Json *text = json_get(r->json, "text");
    if (r->kind == JSONL && (!text || text->type != JSON_STRING))
        die("%s:%zu: there is no string \"text\"", r->path, r->number);
    tokenizer_encode(t, text ? text->s : r->line, text ? text->len : r->len, true, &ids);
    for (size_t i = 0; i < ids.n; i++) { // printf would take more time than encoding did
        char digits[16], *end = digits + sizeof digits, *d = end;
        do *--d = (char)('0' + ids.id[i] % 10); while (ids.id[i] /= 10);
        if (i > 0) *--d = ' ';
        text_append(out, d, (size_t)(end - d));
    }
    free(ids.id);
}

// Appends the text of a line of ids, as a JSON string.
static void decode_line(Tokenizer *t, const Reader *r, Text *out) {
    Utf8Stream stream = {0};
    Text text = {0};
    const char *white = " \t\r\n";
    char *end;
    for (const char *s = r->line; *(s += strspn(s, white)); s = end) {
        long id = strtol(s, &end, 10);
        if (end == s || !strchr(white, *end) || id < 0 || id >= t->vocab_size)
            die("%s:%zu: \"%.*s\" is no id from 0 to %d", r->path, r->number,
                (int)strcspn(s, white), s, t->vocab_size - 1);
        decode_token(t, (int)id, &stream, &text);
    }
    decode_end(&stream, &text);
    json_write_string(out, text.s, text.len);
    free(text.s);
}

// Makes of each thing that is read one line of the result. No file: the standard input.
static void convert(const Command *c, const Options *o) {
    Tokenizer *t = tokenizer_load(o->tokenizer);
    Text line = {0};
    for (size_t i = 0; i == 0 || i < o->n_args; i++) {
        Reader r = reader_open(o->n_args ? o->arg[i] : "-");
        while (c->next(&r)) {
            line.len = 0;
            c->append(t, &r, &line);
            text_append(&line, "\n", 1);
            fwrite(line.s, 1, line.len, stdout);
        }
        reader_close(&r);
    }
    free(line.s);
    tokenizer_free(t);
}

// The messages of a record, under the name that it has for them.
static const Json *messages_of(const Json *record) {
    const Json *list = json_get(record, "messages");
    return list ? list : json_get(record, "conversations");
}

static bool json_is_true(const Json *record, const char *key) {
    const Json *j = json_get(record, key);
    return j && j->type == JSON_TRUE;
}

// Appends a record's conversation as the template renders it, as a JSON string.
static void render_record(Tokenizer *t, const Reader *r, Text *out) {
    Chat c = {{0}, {0}};
    (void)t;
    const char *error = chat_record(&c, r->json, messages_of(r->json),
                                    json_is_true(r->json, "add_generation_prompt"),
                                    json_is_true(r->json, "open_thinking"));
    if (error) die("%s:%zu: %s", r->path, r->number, error);
    json_write_string(out, c.text.s, c.text.len);
    free(c.text.s);
    free(c.cut.id);
}

// Prints tokens in changing colours, or with bars between them: their text, or their ids.
static void print_tokens(const Tokenizer *t, const Ids *ids, bool color, bool as_ids) {
    for (size_t i = 0; i < ids->n; i++) {
        Text piece = {0};
        if (as_ids) text_printf(&piece, "%d", ids->id[i]);
        else write_visible(&piece, t->token[ids->id[i]].s, t->token[ids->id[i]].len);
        if (color) printf("\x1B[30;4%zum%s\x1B[0m%s", 1 + i % 6, piece.s, as_ids ? " " : "");
        else printf("%s%s", i ? "|" : "", piece.s);
        free(piece.s);
    }
    printf("\n");
}

// Prints tokens in symbols with spaces before them, but for the one at `joined`.
static void print_symbols(const Tokenizer *t, const int *id, size_t n, size_t joined) {
    for (size_t i = 0, len; i < n; i++) {
        const char *s = dict_string(&t->spelling, id[i], &len);
        printf("%s%.*s", i == joined ? "" : " ", (int)len, s);
    }
}

// An OnMerge: the word as it will be, and what the new token says.
static void print_merge(const Tokenizer *t, const int *id, size_t n, size_t at, unsigned rank) {
    const Token *made = &t->token[t->merged.id[rank]];
    Text says = {0};
    write_visible(&says, made->s, made->len);
    printf("\n  merge %5u ", rank);
    print_symbols(t, id, n, at + 1);
    printf("    makes %d, \"%s\"", t->merged.id[rank], says.s);
    free(says.s);
}

// The way of one word: bytes, symbols, merge by merge, ids.
static void print_word(const Tokenizer *t, const char *s, size_t n) {
    int id[SHORT_WORD];
    Text word = {0};
    write_visible(&word, s, n);
    printf("\n\"%s\" step by step\n  bytes      ", word.s);
    free(word.s);
    for (size_t i = 0; i < n; i++) {
        printf(" %02X", (unsigned char)s[i]);
        id[i] = t->byte_id[(unsigned char)s[i]];
    }
    printf("\n  symbols    ");
    print_symbols(t, id, n, n);
    n = merge_short(t, id, n, print_merge);
    printf("\n  ids        ");
    for (size_t i = 0; i < n; i++) printf(" %d", id[i]);
    printf("\n");
}

// Appends what a token says, filled up to 24 columns; a Chinese character takes two of them.
static void append_column(const Tokenizer *t, int id, Text *out) {
    size_t i = out->len, width = 0, len;
    write_visible(out, t->token[id].s, t->token[id].len);
    for (int cp; i < out->len; i += len) {
        len = utf8_read(out->s + i, out->len - i, &cp);
        width += cp < 0x1100 ? 1 : 2;
    }
    text_printf(out, "%*s ", width < 24 ? (int)(24 - width) : 0, "");
}

// Appends a conversation with what is trained in green, then each position: what is read there,
// whether its target counts, and the target, which is the next token.
static void show_record(Tokenizer *t, const Reader *r, Text *out) {
    Ids ids = {0};
    const char *error = encode_chat(t, r->json, messages_of(r->json), false, false, &ids);
    if (error) die("%s:%zu: %s", r->path, r->number, error);
    for (size_t i = 0; i < ids.n; i++) {
        const Token *token = &t->token[ids.id[i] & ~TRAINED];
        text_printf(out, "\x1B[%sm", ids.id[i] & TRAINED ? "32" : "90");
        text_append(out, token->s, token->len);
    }
    text_printf(out, "\x1B[0m\n%-8s %-24s %-6s target\n", "id", "token", "mask");
    for (size_t i = 0; i + 1 < ids.n; i++) {
        int id = ids.id[i] & ~TRAINED, target = ids.id[i + 1] & ~TRAINED;
        bool trained = ids.id[i + 1] != target;
        text_printf(out, "%-8d ", id);
        append_column(t, id, out);
        text_printf(out, "%-6d ", trained);
        if (trained) write_visible(out, t->token[target].s, t->token[target].len);
        text_append(out, trained ? "\n" : "-\n", trained ? 1 : 2);
    }
    free(ids.id);
}

static void cmd_show(const Options *o) {
    if (o->n_args != 1 || !*o->arg[0]) die("show needs one TEXT, in quotes if it has spaces");
    Tokenizer *t = tokenizer_load(o->tokenizer);
    const char *text = o->arg[0], *word = NULL;
    size_t n = strlen(text), word_len = 0;
    bool color = o->color || isatty(STDOUT_FILENO), foreign = false;
    Ids ids = {0};
    tokenizer_encode(t, text, n, true, &ids);
    print_tokens(t, &ids, color, false);
    print_tokens(t, &ids, color, true);
    printf("%zu bytes / %zu tokens = %.2f bytes per token\n", n, ids.n, (double)n / (double)ids.n);
    // One word is told in full: the first that is not plain ASCII, else the longest.
    for (size_t i = 0, len; i < n && !foreign; i += len) {
        len = pretoken(text + i, n - i, t->single_digits);
        for (size_t k = i; k < i + len && len <= SHORT_WORD; k++) foreign |= (text[k] & 0x80) != 0;
        if (foreign || (len <= SHORT_WORD && len > word_len)) word = text + i, word_len = len;
    }
    if (word) print_word(t, word, word_len);
    free(ids.id);
    tokenizer_free(t);
}

static const Command commands[] = {
    {"train", 't', cmd_train, NULL, NULL,
     "--vocab N --out DIR [--single-digits 1] FILE...", "learn N tokens"},
    {"encode", 'e', NULL, reader_next, encode_record,
     "--tokenizer PATH [FILE...]", "{\"text\": ...} lines -> lines of ids"},
    {"decode", 'd', NULL, reader_line, decode_line,
     "--tokenizer PATH [FILE...]", "lines of ids -> JSON strings"},
    {"chat", 'c', NULL, reader_next, render_record,
     "--tokenizer PATH [FILE...]", "conversations -> the texts a model reads"},
    {"show", 's', cmd_show, reader_next, show_record,
     "--tokenizer PATH [--color 1] TEXT | --chat 1 [FILE...]",
     "how a text is cut; which tokens train"},
};

int main(int argc, char **argv) {
    const Command *c = commands, *end = commands + sizeof commands / sizeof *commands;
    Options o = {.arg = xcalloc((size_t)argc + 1, sizeof *o.arg)};
    bool help = argc < 2 || !strcmp(argv[1], "help") || !strcmp(argv[1], "--help");
    if (help) {
        printf("Byte-level BPE. PATH is a folder with tokenizer.json in it, or that file.\n\n");
        for (; c < end; c++) printf("  tokenizer %-6s %-50s %s\n", c->name, c->usage, c->what);
    } else {
        while (c < end && strcmp(c->name, argv[1])) c++;
        if (c == end) die("unknown command \"%s\"; see: tokenizer help", argv[1]);
        parse_options(argv + 2, &(OptionSet){option_table, OPTIONS, c->letter, &o, NULL}, 1, o.arg);
        while (o.arg[o.n_args]) o.n_args++;
        if (c->run && !o.chat) c->run(&o);
        else convert(c, &o);
    }
    free(o.arg);
    if (fflush(stdout) || ferror(stdout)) die("cannot write the result: %s", strerror(errno));
    return argc < 2;
}
#endif
