// tokenizer.c - how text becomes the numbers that a language model reads, and text again.
//
//     cc -O3 -march=native tokenizer.c -o tokenizer && ./tokenizer help
//
// A program of its own; minimind.c also #includes it, as its text layer. It needs libc only.
//
// A model knows a fixed list of tokens, its vocabulary. With letters as tokens texts would be long;
// with words the list would never be complete. Byte-pair encoding (BPE) lets data choose something
// in between. Start from the 256 bytes, which can write any text. Count which two neighbours occur
// together most often, make one token of them, and repeat:
//
//     "low low lower"           l o w , _ l o w , _ l o w e r      _ is the space before a word
//     l + o (3 times)           lo w , _ lo w , _ lo w e r         o + w too: the smaller ids win
//     lo + w (3 times)          low , _ low , _ low e r
//     _ + low (2 times)         low , _low , _low e r              and so on, up to N tokens
//
// The list of merges, in order, is all that is learned. Encoding replays it: of all pairs in a
// word, the one that was learned first is merged first. With MiniMind's tokenizer:
//
//     text          I'm 好。
//     pre-tokens    I , 'm , ␣好 , 。          cut by one pattern; no token crosses a cut
//     bytes         49 , 27 6D , 20 E5 A5 BD , E3 80 82
//     symbols       I , 'm , Ġå¥½ , ãĢĤ       each byte as a printable character, because JSON
//                                             cannot hold bytes: Chinese in a vocabulary is garbled
//     merges        I , 'm , Ġ å¥½ , ãĢĤ      (␣好 was never learned as one token)
//     ids           76 , 1422 , 256 658 , 302
//
// The ids are those of Hugging Face's `tokenizers` library; what would change them and is not
// implemented is refused. An error ends the program with one line: what is wrong, and where.
//
// THE CONTENTS. Search for "// ====" to walk through the chapters:
//
//     1. this page        5. Encoding        9. Files
//     2. Helpers          6. Decoding       10. Chat
//     3. Pre-tokens       7. JSON           11. Options
//     4. Training         8. Records        12. Commands, and the Unicode classes

#ifndef _DEFAULT_SOURCE
#define _DEFAULT_SOURCE // POSIX, also under -std=c11
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

#if !defined MINIMIND || defined WITH_TRAINER
#define TRAINER // minimind.c trains no vocabulary
#endif

// =================================================================================================
// 2. Helpers: an error that ends the program, checked allocation, strings and lists that grow
// =================================================================================================

static const char version[] = "1.0";
static const char *program = "tokenizer"; // every message begins with it
static const char *unfinished;            // a temporary file, removed if the program fails

// Prints "program: message" on stderr and exits with status 1.
__attribute__((format(printf, 1, 2))) static _Noreturn void die(const char *fmt, ...) {
    va_list args;
    va_start(args, fmt);
    fflush(stdout); // print pending results first
    fprintf(stderr, "%s: ", program);
    vfprintf(stderr, fmt, args);
    fputc('\n', stderr);
    if (unfinished) remove(unfinished);
    exit(1);
}

// Makes p, which may be NULL, n * size bytes long. Never returns NULL.
static void *xrealloc(void *p, size_t n, size_t size) {
    if (n == 0) n = 1; // realloc(p, 0) may free p
    p = n <= SIZE_MAX / size ? realloc(p, n * size) : NULL;
    if (!p) die("out of memory: %zu x %zu bytes were requested", n, size);
    return p;
}

// n * size bytes, all zero. Never returns NULL.
static void *xcalloc(size_t n, size_t size) {
    void *p = calloc(n ? n : 1, size);
    if (!p) die("out of memory: %zu x %zu bytes were requested", n, size);
    return p;
}

// Makes room for `need` elements. Doubling makes appending an element cheap on average.
static inline void *grow(void *p, size_t *cap, size_t need, size_t size) {
    if (need <= *cap) return p;
    size_t doubled = *cap ? 2 * *cap : 16;
    *cap = need > doubled ? need : doubled;
    return xrealloc(p, *cap, size);
}

typedef struct { char *s; size_t len, cap; } Text; // a string that grows; NUL after the last byte
typedef struct { int *id; size_t n, cap; } Ids;    // a list of numbers that grows
typedef struct { const char *s; size_t len; } Token; // its bytes, as they are decoded

static void text_append(Text *t, const char *s, size_t n) {
    t->s = grow(t->s, &t->cap, t->len + n + 1, 1);
    if (n) memcpy(t->s + t->len, s, n);
    t->len += n;
    t->s[t->len] = '\0';
}

static void text_add(Text *t, const char *s) { text_append(t, s, strlen(s)); }

static void text_vprintf(Text *t, const char *fmt, va_list args) {
    va_list copy;
    va_copy(copy, args);
    size_t n = (size_t)vsnprintf(NULL, 0, fmt, copy);
    va_end(copy);
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

// A new string, made as printf would print it. The caller frees it.
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

// =================================================================================================
// 3. Pre-tokens
//
// Text is cut into words first, so that no token joins the end of one word to the beginning of the
// next. This is GPT-2's pattern. Its alternatives are tried from top to bottom; the first one that
// fits is taken:
//
//     's 't 're 've 'm 'll 'd    English endings
//     [ ]?\p{L}+                 letters, with at most one space before them
//     [ ]?\p{N}+                 numbers, the same
//     [ ]?[^\s\p{L}\p{N}]+       anything else but white space, the same
//     \s+(?!\S)                  white space, but not its last character if a word follows
//     \s+                        one white space character before a word
//
// \p{L} is a letter, \p{N} a number, of any script; \s is white space, \S anything else; ? means at
// most one, + one or more; (?!x) means that x must not follow.
//
// In Chinese, written without spaces, a "word" is as long as a clause. With --single-digits the
// text is first cut on both sides of every number character.
// =================================================================================================

// ---- UTF-8 --------------------------------------------------------------------------------------

// A code point takes 1 to 4 bytes: the first tells how many, the others are 10xxxxxx. Not every
// sequence of bytes is legal, and a text may have been cut within a character.
enum { INVALID = -1, CUT_SHORT = -2 };

// Reads the code point at s, of n > 0 bytes, into *cp; returns how many bytes it takes. INVALID:
// these bytes are not UTF-8; they are replaced by one U+FFFD (as Unicode recommends, for the
// longest beginning of a legal sequence). CUT_SHORT: the text ends within a legal sequence.
static inline size_t utf8_read(const char *s, size_t n, int *cp) {
    const unsigned char *u = (const unsigned char *)s;
    int c = u[0];
    *cp = c;
    if (c < 0x80) return 1;

    *cp = INVALID;
    if (c < 0xC2 || c > 0xF4) return 1;
    size_t len = 2 + (c >= 0xE0) + (c >= 0xF0);
    c &= 0x7F >> len;
    for (size_t i = 1; i < len; i++) {
        if (i == n) {
            *cp = CUT_SHORT;
            return i;
        }
        if (u[i] >> 6 != 2) return i;
        c = c << 6 | (u[i] & 0x3F);
        // Two bytes show a code point that has a shorter form, that is half of a surrogate pair
        // (U+D800 to U+DFFF, see chapter 7), or that is beyond U+10FFFF.
        if (i == 1 && len == 3 && (c < 0x20 || c >> 5 == 0x1B)) return i;
        if (i == 1 && len == 4 && (c < 0x10 || c > 0x10F)) return i;
    }
    *cp = c;
    return len;
}

// Writes a code point to out, which has room for 4 bytes; returns how many it takes.
static size_t utf8_write(char *out, int cp) {
    size_t len = 1 + (cp >= 0x80) + (cp >= 0x800) + (cp >= 0x10000);
    for (size_t i = len - 1; i > 0; i--) {
        out[i] = (char)(0x80 | (cp & 0x3F));
        cp >>= 6;
    }
    out[0] = (char)(len == 1 ? cp : (0xF00 >> len & 0xFF) | cp);
    return len;
}

// Appends the len bytes of a code point that was read, or U+FFFD if it could not be read.
static void append_character(Text *out, int cp, const char *s, size_t len) {
    if (cp < 0) text_add(out, "\xEF\xBF\xBD");
    else text_append(out, s, len);
}

// ---- classes of characters, and symbols for bytes -----------------------------------------------

enum { OTHER, LETTER, NUMBER, SPACE, NEW_DIGIT, N_CLASSES };
static const char *const class_lengths[N_CLASSES]; // the tables are at the end of this file
static unsigned char char_class[0x110000];

// GPT-2's bytes_to_unicode: every byte has a printable symbol, so that a vocabulary can be written
// as text. It is the byte's Latin-1 character if that is printable, else one from U+0100 on: "Ġ"
// for the space, "Ċ" for the newline. A Chinese character, three bytes, becomes three such symbols.
enum { N_SYMBOLS = 256 + 68 }; // 68 bytes are not printable in Latin-1: U+0100 to U+0143
static char symbol[256][3];    // byte -> its symbol in UTF-8
static int byte_of[N_SYMBOLS]; // code point of a symbol -> its byte; -1: it is no symbol

static void init_tables(void) {
    for (int class = 1; class < N_CLASSES; class++) {
        int at = 0, length = 0, inside = 0;
        for (const char *c = class_lengths[class]; *c; c++) {
            length = length * 26 + tolower(*c) - 'a';
            if (isupper(*c)) continue; // the last digit is the small letter
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

// The class and the length of the character at s. Bytes that are not UTF-8 count as OTHER and stay
// as they are: there is a token for every byte.
static inline int class_at(const char *s, size_t n, bool single_digits, size_t *len) {
    int cp;
    *len = utf8_read(s, n, &cp);
    int class = cp < 0 ? OTHER : char_class[cp];
    if (class != NEW_DIGIT) return class;
    return single_digits ? NUMBER : OTHER;
}

// ---- the pattern --------------------------------------------------------------------------------

// Where the run of characters of this class that contains s[i - 1] ends.
static inline size_t run_end(const char *s, size_t i, size_t n, bool single_digits, int class) {
    size_t len;
    while (i < n && class_at(s + i, n - i, single_digits, &len) == class) i += len;
    return i;
}

// The length of an English ending at s, or 0.
static inline size_t ending(const char *s, size_t n) {
    if (n < 2 || s[0] != '\'') return 0;
    if (strchr("stmd", s[1]) && s[1]) return 2;
    bool long_one = n > 2 && (!memcmp(s, "'re", 3) || !memcmp(s, "'ve", 3) || !memcmp(s, "'ll", 3));
    return long_one ? 3 : 0;
}

// The length of the pre-token of white space at s. If a word follows, the last white space
// character is left out: if it is a space, it belongs to the word. A single one is a pre-token.
// (With single_digits a number does not count as a word: the text is cut before it.)
static size_t space_length(const char *s, size_t n, bool single_digits) {
    size_t len, i = run_end(s, 0, n, single_digits, SPACE), last = i - 1;
    while ((s[last] & 0xC0) == 0x80) last--; // to the first byte of the last character
    int class = i < n ? class_at(s + i, n - i, single_digits, &len) : SPACE;
    bool word_follows = i < n && !(class == NUMBER && single_digits);
    return word_follows && last > 0 ? last : i;
}

// The length of the first pre-token of n > 0 bytes.
static size_t pretoken(const char *s, size_t n, bool single_digits) {
    size_t len, i = ending(s, n);
    if (i) return i;

    i = s[0] == ' ' && n > 1; // behind the optional space
    int class = class_at(s + i, n - i, single_digits, &len);
    if (class == NUMBER && single_digits) return i ? i : len;
    if (class == SPACE) return space_length(s, n, single_digits);
    return run_end(s, i + len, n, single_digits, class);
}

// =================================================================================================
// 4. Training
//
// The texts are cut into words, and the trainer counts how often each word occurs; after that it
// works on different words only. What it has to compute takes four lines:
//
//     while the vocabulary is not full:
//         count every pair of neighbouring tokens in every word, times the count of the word
//         pair = the one with the highest count; of equal counts the one with the smaller ids
//         pair becomes a token; it replaces the pair in every word
//
// Counting everything again for each merge is slow: 38 s for the 6,108 merges of 12 MB of text. The
// same merges take 0.4 s if only counts that change are corrected, because a merge changes only the
// pairs beside the places where it happens:
//
//     merge l + o in the word "_low", which occurs 5 times
//
//         _     l     o     w          pairs  _+l  l+o  o+w
//          \     \   /     /
//         _       lo      w            pairs  _+lo  lo+w
//
//     _+l and o+w: count - 5           _+lo and lo+w: count + 5           l+o: leaves the heap
//
// So each pair has a list of the words in which it occurs, and a heap finds the best pair. A pair
// appears at once in all its places, when the younger of its two tokens is made; from then on its
// count only falls, as other merges use its tokens. A count in the heap may therefore be too high:
// it is compared with the present count when it comes to the top, and corrected only then ("lazy
// deletion" from the heap).
//
// tokenizer train --verbose 1 prints what happens. On texts in English and Chinese:
//
//          1     56047 times  [<EF>][<BC>] -> [<EFBC>] 292       two bytes of a full-width sign
//          2     50922 times  [ ][t] -> [ t] 293
//          3     41501 times  [h][e] -> [he] 294
//          4     37080 times  [<EFBC>][<8C>] -> [，] 295          the Chinese comma
//
// As in Hugging Face's trainer, "aaa" counts as two pairs (a, a), though only one can be merged.
// =================================================================================================

// ---- tables, which encoding uses too ------------------------------------------------------------

// Map is a hash table: it keeps a number >= 0 for each key, where key 0 means a free slot. A hash
// selects the slot of a key. If another key is there already, the next slots are tried until one is
// free ("open addressing"; the other way is a list in each slot). At most half of the slots are
// used, so such a walk is short, and a key that is missing is noticed at the first free slot.
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
    if (!slot->key) {
        *slot = (MapSlot){key, -1};
        m->n++;
    }
    return &slot->value;
}

// The key of a pair of token ids; + 1, since key 0 means a free slot. Comparing two keys compares
// the left ids first, then the right ones: this decides between equal counts.
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

// Dict numbers strings in the order in which they first occur: 0, 1, 2, ...
typedef struct { size_t at, len; } DictKey; // where in Dict.bytes
typedef struct { Text bytes; DictKey *key; size_t cap; int n; Map number; } Dict;

// The number of a string. If it is new: with `add` the next number, without it -1. The map's keys
// are hashes; if another string has the same hash, the next odd number is tried (odd, because key 0
// means a free slot).
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
    *number = d->n++;
    return *number;
}

static Token dict_string(const Dict *d, int number) {
    return (Token){d->bytes.s + d->key[number].at, d->key[number].len};
}

static void dict_free(Dict *d) {
    free(d->bytes.s);
    free(d->key);
    free(d->number.slot);
    *d = (Dict){.n = 0};
}

// A binary heap: item[0] is the one with the smallest (first, second). It is a tree in an array:
// below item i are the items 2i + 1 and 2i + 2, and no item is larger than one below it. A new item
// rises from the end, and the last item sinks from the top, along one path of the tree, in log n
// steps.
typedef struct { uint64_t first, second; } HeapItem;
typedef struct { HeapItem *item; size_t n, cap; } Heap;

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

// Removes item[0] of a heap that is not empty, and returns it.
static HeapItem heap_pop(Heap *h) {
    HeapItem top = h->item[0], x = h->item[--h->n]; // the last item moves to where there is a gap
    size_t i = 0;
    for (size_t child = 1; child < h->n; child = 2 * i + 1) {
        if (child + 1 < h->n && heap_before(h->item[child + 1], h->item[child])) child++;
        if (!heap_before(h->item[child], x)) break;
        h->item[i] = h->item[child];
        i = child;
    }
    h->item[i] = x;
    return top;
}

// ---- counting words and pairs -------------------------------------------------------------------

typedef struct Tokenizer Tokenizer;

#ifdef TRAINER
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

typedef struct { int64_t count; int *id; size_t n; } Word; // how often it occurs; its n ids
typedef struct { uint64_t pair; int64_t count; Ids words; } PairCount; // words: where it occurs

typedef struct {
    bool single_digits, verbose;
    Dict words;
    Word *word;               // (words.n)
    size_t word_cap;
    int *ids;                 // of all words, where Word.id points
    Map index;                // pair -> number in `pairs`
    PairCount *pairs;         // (n_pairs)
    size_t n_pairs, pairs_cap;
    Heap heap;                // first: ~count, so that the highest count comes first; second: pair
    Dict tokens;              // the bytes of a token, or an added token's text -> its id
} Trainer;

// How to train: trainer_new(), trainer_add() for each document, trainer_finish().
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

// A pair appears (sign 1) or disappears (-1) in a word: its count changes by the word's count.
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
    bool listed = p->words.n > 0 && p->words.id[p->words.n - 1] == word;
    if (sign > 0 && !listed) ids_push(&p->words, word);
}

// Puts the pairs from number `first` on into the heap. They are new: their counts are final until
// the next merge.
static void push_pairs(Trainer *tr, size_t first) {
    for (size_t i = first; i < tr->n_pairs; i++)
        heap_push(&tr->heap, (HeapItem){~(uint64_t)tr->pairs[i].count, tr->pairs[i].pair});
}

// Writes every word as the ids of its bytes and counts the pairs.
static void split_words(Trainer *tr, const int *byte_id) {
    int *id = tr->ids = xcalloc(tr->words.bytes.len, sizeof *id);
    for (size_t i = 0; i < tr->words.bytes.len; i++)
        id[i] = byte_id[(unsigned char)tr->words.bytes.s[i]];
    for (int w = 0; w < tr->words.n; w++) {
        tr->word[w].id = id;
        for (size_t i = 0; i + 1 < tr->word[w].n; i++) change_count(tr, id[i], id[i + 1], w, 1);
        id += tr->word[w].n;
    }
    push_pairs(tr, 0);
}

// ---- merging ------------------------------------------------------------------------------------

// Corrects the top of the heap until its count is the present one. Returns that pair, or NULL if
// none is left. Other items may still be too high, never too low: so the top is the best of all.
static const PairCount *best_pair(Trainer *tr) {
    while (tr->heap.n > 0) {
        HeapItem top = tr->heap.item[0];
        const PairCount *p = &tr->pairs[*map_value(&tr->index, top.second)];
        uint64_t present = ~(uint64_t)p->count;
        if (p->count > 0 && top.first == present) return p;
        heap_pop(&tr->heap);
        if (p->count > 0) heap_push(&tr->heap, (HeapItem){present, p->pair});
    }
    return NULL;
}

// Replaces left, right by `made` wherever they occur in a word, from its beginning on. In x l r y
// the pairs (x, l) and (r, y) disappear; (x, made) and (made, y) appear. (l, r) itself has left the
// heap, and its count is never read again.
static void merge_in_word(Trainer *tr, int word, int left, int right, int made) {
    int *id = tr->word[word].id;
    size_t n = tr->word[word].n, out = 0; // out <= i: the word shrinks in place
    for (size_t i = 0; i < n; i++) {
        bool found = id[i] == left && i + 1 < n && id[i + 1] == right;
        if (found) {
            if (out > 0) {
                change_count(tr, id[out - 1], left, word, -1);
                change_count(tr, id[out - 1], made, word, 1);
            }
            i++;
            if (i + 1 < n) {
                change_count(tr, right, id[i + 1], word, -1);
                change_count(tr, made, id[i + 1], word, 1);
            }
        }
        id[out++] = found ? made : id[i];
    }
    tr->word[word].n = out;
}

// Appends text as it can be shown: control characters as escapes, parts of characters in hex.
static void append_visible(Text *out, Token t) {
    for (size_t i = 0, len; i < t.len; i += len) {
        int cp;
        len = utf8_read(t.s + i, t.len - i, &cp);
        if (cp == '\n') text_add(out, "\\n");
        else if (cp >= 0 && (cp < 32 || (cp > 126 && cp < 160))) text_printf(out, "\\u%04X", cp);
        else if (cp >= 0) text_append(out, t.s + i, len);
        else {
            text_add(out, "<");
            for (size_t k = i; k < i + len; k++) text_printf(out, "%02X", (unsigned char)t.s[k]);
            text_add(out, ">");
        }
    }
}

static void append_bracketed(Text *out, Token t) {
    text_add(out, "[");
    append_visible(out, t);
    text_add(out, "]");
}

// Prints a merge: its number, how often its pair occurs, the pair, the new token, and whether
// another pair occurs as often.
static void print_new_merge(Trainer *tr, const PairCount *p, int made) {
    const PairCount *next = best_pair(tr);
    Text line = {0};
    append_bracketed(&line, dict_string(&tr->tokens, pair_left(p->pair)));
    append_bracketed(&line, dict_string(&tr->tokens, pair_right(p->pair)));
    text_add(&line, " -> ");
    append_bracketed(&line, dict_string(&tr->tokens, made));
    printf("%6d %9lld times  %s %d%s\n", made - N_ADDED - 256 + 1, (long long)p->count, line.s,
           made, next && next->count == p->count ? "  (a tie)" : "");
    free(line.s);
}

// Finds merges until there are vocab_size tokens; returns them, one for each new token. No string
// is made twice: no merge crosses the ends of a token's occurrence, so inside it the same merges
// happen in the same order everywhere.
static uint64_t *find_merges(Trainer *tr, int vocab_size) {
    Dict *tokens = &tr->tokens;
    int first = tokens->n;
    uint64_t *merge = xcalloc((size_t)(vocab_size - first), sizeof *merge);
    Text both = {0};
    while (tokens->n < vocab_size && best_pair(tr)) {
        const PairCount p = *best_pair(tr); // a copy, because tr->pairs moves when it grows
        int left = pair_left(p.pair), right = pair_right(p.pair);
        heap_pop(&tr->heap);

        size_t n_pairs = tr->n_pairs;
        Token a = dict_string(tokens, left), b = dict_string(tokens, right);
        both.len = 0;
        text_append(&both, a.s, a.len);
        text_append(&both, b.s, b.len);
        merge[tokens->n - first] = p.pair;
        int made = dict_number(tokens, both.s, both.len, true);
        if (tr->verbose) print_new_merge(tr, &p, made);

        for (size_t k = 0; k < p.words.n; k++) {
            // Words are scattered in memory: fetching them ahead of time hides the wait.
            if (k + 8 < p.words.n) __builtin_prefetch(tr->word[p.words.id[k + 8]].id);
            merge_in_word(tr, p.words.id[k], left, right, made);
        }
        push_pairs(tr, n_pairs);
    }
    free(both.s);
    return merge;
}

// ---- the result, as the text of tokenizer.json --------------------------------------------------

// Appends a token in symbols, as a JSON string.
static void write_symbols(Text *out, const Dict *tokens, int id) {
    Token t = dict_string(tokens, id);
    text_add(out, "\"");
    for (size_t i = 0; i < t.len; i++) {
        const char *c = symbol[(unsigned char)t.s[i]];
        if (*c == '"' || *c == '\\') text_add(out, "\\");
        text_add(out, c);
    }
    text_add(out, "\"");
}

// There is one merge for each token after the single bytes.
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
        text_add(out, id ? ",\n" : "\n");
        write_symbols(out, tokens, id);
        text_printf(out, ": %d", id);
    }
    text_add(out, "},\n\"merges\": [");
    for (int i = 0; i < tokens->n - N_ADDED - 256; i++) {
        text_add(out, i ? ",\n[" : "\n[");
        write_symbols(out, tokens, pair_left(merge[i]));
        text_add(out, ", ");
        write_symbols(out, tokens, pair_right(merge[i]));
        text_add(out, "]");
    }
    text_add(out, "]}}\n");
}

static Tokenizer *tokenizer_parse(const char *path, Text json, const char *config_path,
                                  Text config, Text chat_template);

// Ends the training: makes the tokenizer and frees the trainer. vocab_size is at least N_ADDED +
// 256; the vocabulary stays smaller if the text has no more pairs. Training writes the text of
// tokenizer.json and then loads it, so that there is one way to make a tokenizer.
static Tokenizer *trainer_finish(Trainer *tr, int vocab_size) {
    Text json = {0};
    int byte_id[256];
    for (int i = 0; i < N_ADDED; i++)
        dict_number(&tr->tokens, added_tokens[i], strlen(added_tokens[i]), true);
    // Hugging Face numbers the bytes in the order of their symbols. The order matters: the ids
    // decide between pairs of equal count.
    for (int cp = 0; cp < N_SYMBOLS; cp++)
        if (byte_of[cp] >= 0)
            byte_id[byte_of[cp]] = dict_number(&tr->tokens, &(char){(char)byte_of[cp]}, 1, true);
    split_words(tr, byte_id);
    uint64_t *merge = find_merges(tr, vocab_size);
    write_tokenizer(&json, &tr->tokens, merge, tr->single_digits);

    for (size_t i = 0; i < tr->n_pairs; i++) free(tr->pairs[i].words.id);
    void *owned[] = {tr->word, tr->ids, tr->index.slot, tr->pairs, tr->heap.item, merge};
    for (size_t i = 0; i < sizeof owned / sizeof *owned; i++) free(owned[i]);
    dict_free(&tr->words);
    dict_free(&tr->tokens);
    free(tr);
    return tokenizer_parse("trained tokenizer", json, "its configuration", (Text){0}, (Text){0});
}
#endif

// =================================================================================================
// 5. Encoding
//
// Added tokens such as <|im_end|> are found first; the text between them is cut into words. A word
// is split into bytes, and the merges are replayed in the order in which they were learned, looking
// up only pairs that occur in the word. That is not the same as taking the longest token that fits:
// with MiniMind's tokenizer "actions" is a|ctions, although "action" is a token, because the merges
// that lead to "ctions" were learned earlier. A model was trained on the cuts that the merges make;
// the longest token would give it other ids for the same text.
//
// The same words occur again and again; the ids of short ones are kept in a cache.
// =================================================================================================

enum { SHORT_WORD = 64, CACHED_WORDS = 1 << 16 };
enum { JSON_FILE, CONFIG_FILE, TEMPLATE_FILE, N_FILES };

enum { PASSES = 2 };

struct Tokenizer {
    int vocab_size;
    Token *token;               // (vocab_size)
    int bos, eos, pad;          // ids, or -1
    int turn_end;               // the id of <|im_end|>, which ends a turn of a conversation, or -1
    bool single_digits;
    uint64_t fingerprint;       // of the files that decide the ids
    Text file[N_FILES];         // the text of its files
    bool template_unknown;      // the chat template is not the one of chapter 10
    Dict spelling;              // the tokens as in the file, in symbols; their numbers are the ids
    char *bytes;                // where Token.s points
    int byte_id[256];
    Map rank;                   // pair of ids -> number of its merge; the lowest goes first
    Ids merged;                 // number of a merge -> the id it makes
    Ids added[PASSES];          // found in a text before anything else; in the last pass those that
                                // the file marks "normalized"
    bool begins_added[PASSES][256];  // does an added token of this pass begin with this byte?
    Dict cache;                 // short words that were encoded
    Ids cached, cached_end;     // their ids, one word after the other; where those of a word end
};

// ---- one word -----------------------------------------------------------------------------------

static const unsigned NO_MERGE = UINT_MAX; // as a rank: after all others

static inline unsigned merge_rank(const Tokenizer *t, int left, int right) {
    if (t->rank.n == 0) return NO_MERGE;
    const MapSlot *slot = map_slot(&t->rank, make_pair(left, right));
    return slot->key ? (unsigned)slot->value : NO_MERGE;
}

// Called for a merge: ids id (n) of a word after it; the new token is the one at `at`.
typedef void OnMerge(const Tokenizer *t, const int *id, size_t n, size_t at, unsigned rank);

// Merges n <= SHORT_WORD ids in place: always the pair of lowest rank, of equal ranks the leftmost.
// Returns how many ids are left. on_merge may be NULL.
static size_t merge_short(const Tokenizer *t, int *id, size_t n, OnMerge *on_merge) {
    unsigned rank[SHORT_WORD]; // of the pair id[i], id[i + 1]
    for (size_t i = 0; i + 1 < n; i++) rank[i] = merge_rank(t, id[i], id[i + 1]);
    while (n > 1) {
        size_t best = 0;
        for (size_t i = 1; i + 1 < n; i++)
            if (rank[i] < rank[best]) best = i;
        unsigned lowest = rank[best];
        if (lowest == NO_MERGE) break;

        id[best] = t->merged.id[lowest];
        n--;
        memmove(id + best + 1, id + best + 2, (n - best - 1) * sizeof *id);
        memmove(rank + best, rank + best + 1, (n - best - 1) * sizeof *rank);
        if (best > 0) rank[best - 1] = merge_rank(t, id[best - 1], id[best]);
        if (best + 1 < n) rank[best] = merge_rank(t, id[best], id[best + 1]);
        if (on_merge) on_merge(t, id, n, best, lowest);
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
// take n * n steps; a heap finds it in log n. A heap item is stale if its left token was merged
// away (id -1), if nothing follows it, or if the pair there now has another rank. A rank belongs
// to one pair only, so an equal rank means that the pair is unchanged.
static size_t merge_long(const Tokenizer *t, int *id, size_t n) {
    Heap heap = {0};
    Link *link = xrealloc(NULL, n, sizeof *link);
    size_t left = 0;
    for (size_t i = 0; i < n; i++) link[i] = (Link){id[i], i - 1, i + 1};
    for (size_t i = 0; i < n; i++) push_merge(t, &heap, link, i, n);
    while (heap.n > 0) {
        HeapItem top = heap_pop(&heap);
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

// Appends the ids of a word, from the cache if they are there.
static void encode_word(Tokenizer *t, const char *s, size_t n, Ids *out) {
    out->id = grow(out->id, &out->cap, out->n + n, sizeof *out->id);
    int *id = out->id + out->n, known = t->cache.n;
    int word = n <= SHORT_WORD ? dict_number(&t->cache, s, n, true) : known;
    if (word < known) {
        int from = word > 0 ? t->cached_end.id[word - 1] : 0;
        for (int i = from; i < t->cached_end.id[word]; i++) out->id[out->n++] = t->cached.id[i];
        return;
    }

    for (size_t i = 0; i < n; i++) id[i] = t->byte_id[(unsigned char)s[i]];
    size_t n_ids = n <= SHORT_WORD ? merge_short(t, id, n, NULL) : merge_long(t, id, n);
    out->n += n_ids;
    if (n > SHORT_WORD) return;
    for (size_t i = 0; i < n_ids; i++) ids_push(&t->cached, id[i]);
    ids_push(&t->cached_end, (int)t->cached.n);
    if (t->cache.n == CACHED_WORDS) { // full: forget everything; frequent words are soon back
        dict_free(&t->cache);
        t->cached.n = t->cached_end.n = 0;
    }
}

// ---- a text -------------------------------------------------------------------------------------

// Is position i in one of these ranges (from, to, from, to, ...)?
static bool in_ranges(const Ids *range, size_t i) {
    for (size_t k = 0; range && k < range->n; k += 2)
        if (i >= (size_t)range->id[k] && i < (size_t)range->id[k + 1]) return true;
    return false;
}

// The longest added token of this pass at s, of n bytes, and its length; or -1.
static int added_at(const Tokenizer *t, const char *s, size_t n, int pass, size_t *length) {
    int found = -1;
    *length = 0;
    for (size_t k = 0; k < t->added[pass].n; k++) {
        Token spelling = dict_string(&t->spelling, t->added[pass].id[k]);
        if (spelling.len <= *length || spelling.len > n || memcmp(spelling.s, s, spelling.len))
            continue;
        *length = spelling.len;
        found = t->added[pass].id[k];
    }
    return found;
}

// Appends the ids of s[from] to s[to - 1]. Added tokens that begin in one of the ranges `as_text`
// are text; it may be NULL. What is between the added tokens of one pass goes to the next pass.
static void encode_pass(Tokenizer *t, const char *s, size_t from, size_t to, int pass,
                        const Ids *as_text, Ids *out) {
    size_t len;
    if (pass == PASSES) {
        for (; from < to; from += len) {
            len = pretoken(s + from, to - from, t->single_digits);
            encode_word(t, s + from, len, out);
        }
        return;
    }
    for (size_t i = from; i < to && t->added[pass].n > 0; i++) { // up to `from` the text is done
        if (!t->begins_added[pass][(unsigned char)s[i]] || in_ranges(as_text, i)) continue;
        int id = added_at(t, s + i, to - i, pass, &len);
        if (id < 0) continue;
        encode_pass(t, s, from, i, pass + 1, as_text, out);
        ids_push(out, id);
        from = i + len;
        i = from - 1; // the loop adds 1
    }
    encode_pass(t, s, from, to, pass + 1, as_text, out);
}

// Appends the ids of a text. Without `special`, added tokens in it are text like any other. The
// cache changes, so that each thread needs a tokenizer of its own.
static void tokenizer_encode(Tokenizer *t, const char *s, size_t n, bool special, Ids *out) {
    encode_pass(t, s, 0, n, special ? 0 : PASSES, NULL, out);
}

// =================================================================================================
// 6. Decoding
//
// Tokens are bytes, and one may end within a character. What is shown has to be UTF-8 at every
// moment, so the beginning of a character is held back until its last byte has come.
// =================================================================================================

typedef struct { char held[4]; size_t n; } Utf8Stream;

// Appends the text of a token, id < vocab_size. What is not UTF-8 becomes U+FFFD.
static void decode_token(const Tokenizer *t, int id, Utf8Stream *u, Text *out) {
    for (size_t i = 0; i < t->token[id].len; i++) {
        u->held[u->n++] = t->token[id].s[i];
        while (u->n > 0) { // a second time if this byte does not continue those before it
            int cp;
            size_t len = utf8_read(u->held, u->n, &cp);
            if (cp == CUT_SHORT) break;
            append_character(out, cp, u->held, len);
            u->n -= len;
            memmove(u->held, u->held + len, u->n);
        }
    }
}

// Call this after the last token: what is held back will never be complete.
static void decode_end(Utf8Stream *u, Text *out) {
    if (u->n > 0) append_character(out, CUT_SHORT, NULL, 0);
    u->n = 0;
}

// =================================================================================================
// 7. JSON
//
// One parser for tokenizers, training data, model configurations and tensor headers: recursive
// descent over RFC 8259, which makes a tree of nodes. It is fast because it allocates once: every
// node but the root follows a bracket or a comma, so counting these tells how many nodes there are
// at most. Behind the nodes is a copy of the text, where strings are decoded in place, because no
// string gets longer.
//
//     {"a": [1, "x"]}       root: object, child ---> "a": array, child ---> 1 --next--> "x"
// =================================================================================================

typedef struct Json {
    enum JsonType {
        JSON_NULL, JSON_FALSE, JSON_TRUE, JSON_NUMBER, JSON_STRING, JSON_ARRAY, JSON_OBJECT
    } type;
    const char *key;            // in an object: the name of this member
    const char *s;              // string: decoded, with a NUL behind it; number: as it is written
    size_t len;
    double number;
    struct Json *child, *next;  // array, object: the first element; of an element: the next one
} Json;

static const char *const json_names[] = { // in the order of Json.type
    "null", "false", "true", "a number", "a string", "a list", "an object"};

typedef struct { char *at, *end; Json *unused; const char *error; int depth; } JsonParser;

enum { JSON_MAX_DEPTH = 256 };  // recursion uses stack; no input may exhaust it

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

// Decodes the escape at p->at to *out, which it moves. A code point beyond U+FFFF is written as a
// surrogate pair, two escapes with 10 bits in each; half a pair means nothing.
static bool json_escape(JsonParser *p, char **out) {
    const char *code = "\"\\/bfnrt", *which = p->at[1] ? strchr(code, p->at[1]) : NULL;
    int unit = json_unit(p->at), low = -1;
    if (which) {
        *(*out)++ = "\"\\/\b\f\n\r\t"[which - code];
        p->at += 2;
        return true;
    }
    if (unit < 0) return json_fail(p, "bad escape in a string");
    p->at += 6;
    if (unit >> 10 == 0xD800 >> 10) low = json_unit(p->at);
    if (low >> 10 == 0xDC00 >> 10) {
        unit = 0x10000 + ((unit & 0x3FF) << 10) + (low & 0x3FF);
        p->at += 6;
    } else if (unit >> 11 == 0xD800 >> 11) {
        unit = 0xFFFD;
    }
    *out += utf8_write(*out, unit);
    return true;
}

// Decodes the string at p->at.
static bool json_string(JsonParser *p, const char **s, size_t *len) {
    if (*p->at != '"') return json_fail(p, "a string was expected");
    char *out = ++p->at;
    *s = out;
    while (*p->at != '"') {
        if ((unsigned char)*p->at < 0x20) return json_fail(p, "control character in a string");
        if (*p->at != '\\') *out++ = *p->at++;
        else if (!json_escape(p, &out)) return false;
    }
    p->at++;
    *out = '\0';
    *len = (size_t)(out - *s);
    return true;
}

static bool json_number(JsonParser *p, Json *j) {
    const char *digits = "0123456789";
    j->s = p->at;
    if (*p->at == '-') p->at++;
    size_t n = *p->at == '0' ? 1 : strspn(p->at, digits); // no zeros before other digits
    p->at += n;
    if (n > 0 && *p->at == '.') {
        n = strspn(p->at + 1, digits);
        p->at += 1 + n;
    }
    if (n > 0 && (*p->at == 'e' || *p->at == 'E')) {
        p->at += p->at[1] == '+' || p->at[1] == '-' ? 2 : 1;
        n = strspn(p->at, digits);
        p->at += n;
    }
    if (n == 0) return json_fail(p, "no value");
    j->type = JSON_NUMBER;
    j->len = (size_t)(p->at - j->s);
    j->number = strtod(j->s, NULL);
    return true;
}

// The elements of an array or the members of an object.
static bool json_children(JsonParser *p, Json *j) {
    char close = *p->at++ == '{' ? '}' : ']';
    Json **tail = &j->child;
    j->type = close == '}' ? JSON_OBJECT : JSON_ARRAY;
    if (++p->depth > JSON_MAX_DEPTH) return json_fail(p, "brackets are nested too deeply");
    json_space(p);
    while (*p->at != close) {
        if (j->child) {
            if (*p->at != ',') return json_fail(p, "a comma was expected");
            p->at++;
            json_space(p);
        }
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

// null, false or true.
static bool json_word(JsonParser *p, Json *j) {
    for (enum JsonType type = JSON_NULL; type <= JSON_TRUE; type++) {
        size_t n = strlen(json_names[type]);
        if (strncmp(p->at, json_names[type], n)) continue;
        j->type = type;
        p->at += n;
        return true;
    }
    return json_fail(p, "no value");
}

// A value, with the white space on both sides of it.
static bool json_value(JsonParser *p, Json *j) {
    bool ok;
    json_space(p);
    if (*p->at == '{' || *p->at == '[') ok = json_children(p, j);
    else if (*p->at == '"') {
        j->type = JSON_STRING;
        ok = json_string(p, &j->s, &j->len);
    } else if (islower((unsigned char)*p->at)) ok = json_word(p, j);
    else ok = json_number(p, j);
    if (ok) json_space(p);
    return ok;
}

// Parses len bytes that hold one JSON value and nothing else. If they do not: NULL, *error says
// why, and *error_at is the offset of the byte where it was noticed. The caller frees the root with
// free(), and with it everything below.
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

// The same for the text of a file; exits if it is not JSON.
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
    for (; j; j = j->next)
        if (!strcmp(j->key, key)) found = j;
    return found;
}

// The string that is a member of an object, or NULL.
static const char *json_text(const Json *object, const char *key) {
    const Json *j = json_get(object, key);
    return j && j->type == JSON_STRING ? j->s : NULL;
}

static bool json_is_true(const Json *object, const char *key) {
    const Json *j = json_get(object, key);
    return j && j->type == JSON_TRUE;
}

// Appends a string in quotes. What is not UTF-8 becomes U+FFFD: JSON cannot express it.
static void json_write_string(Text *out, const char *s, size_t n) {
    const char *plain = "\"\\\n\r\t\b\f", *code = "\"\\nrtbf";
    text_add(out, "\"");
    for (size_t i = 0, len; i < n; i += len) {
        int cp;
        len = utf8_read(s + i, n - i, &cp);
        const char *which = cp > 0 && cp < 128 ? strchr(plain, cp) : NULL;
        if (which) text_printf(out, "\\%c", code[which - plain]);
        else if (cp >= 0 && cp < 0x20) text_printf(out, "\\u%04x", (unsigned)cp);
        else append_character(out, cp, s + i, len);
    }
    text_add(out, "\"");
}

// Appends a value as the template's `tojson`, Python's json.dumps, writes it, except that numbers
// stay as they were written.
static void json_write(Text *out, const Json *j) {
    bool object = j->type == JSON_OBJECT;
    if (j->type < JSON_NUMBER) text_add(out, json_names[j->type]);
    else if (j->type == JSON_NUMBER) text_append(out, j->s, j->len);
    else if (j->type == JSON_STRING) json_write_string(out, j->s, j->len);
    else {
        text_add(out, object ? "{" : "[");
        for (const Json *e = j->child; e; e = e->next) {
            if (object) {
                json_write_string(out, e->key, strlen(e->key));
                text_add(out, ": ");
            }
            json_write(out, e);
            if (e->next) text_add(out, ", ");
        }
        text_add(out, object ? "}" : "]");
    }
}

// =================================================================================================
// 8. Records
//
// Training data is a list of files, larger than memory: JSONL (each line is a record, an object) or
// plain text. The first line that is not blank decides: if it begins with a brace, JSONL. These
// are MiniMind's records:
//
//     {"text": "..."}
//     {"conversations": [{"role": "user", "content": "..."}, {"role": "assistant", ...}, ...]}
//     {"chosen": [messages], "rejected": [messages]}
// =================================================================================================

static FILE *open_file(const char *path, const char *mode) { // exits on failure
    FILE *f = fopen(path, mode);
    if (!f) die("%s: %s", path, strerror(errno));
    return f;
}

typedef struct {
    const char *files;          // names that are still to be opened, with commas between them
    char path[FILENAME_MAX];    // of the file that is being read, for messages
    FILE *file;
    char *line;                 // with its newline
    size_t len, cap, number;    // bytes of the line; room for it; its number, from 1
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
    free(r->json);
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
    while (r->len < r->block) {
        ssize_t n = getline(&line, &cap, r->file);
        if (n <= 0) break;
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

// Reads a record; false at the end of the last file. Blank lines of JSONL are skipped, and in plain
// text those before the first text.
static bool reader_next(Reader *r) {
    while (reader_line(r)) {
        if (r->number == 1 && !strncmp(r->line, "\xEF\xBB\xBF", 3)) { // a byte order mark
            r->len -= 3;
            memmove(r->line, r->line + 3, r->len + 1);
        }
        size_t blank = strspn(r->line, " \t\r\n"), at;
        r->begins = r->kind == UNDECIDED;
        if (r->begins && blank < r->len) r->kind = r->line[blank] == '{' ? JSONL : PLAIN;
        if (r->kind == PLAIN && r->block) reader_block(r);
        if (r->kind == PLAIN) return true;
        if (r->kind != JSONL || blank == r->len) continue;

        const char *error;
        free(r->json);
        r->json = json_parse(r->line, r->len, &error, &at);
        if (!r->json) die("%s:%zu: not JSON: %s at byte %zu", r->path, r->number, error, at);
        if (r->json->type != JSON_OBJECT) die("%s:%zu: not a JSON object", r->path, r->number);
        return true;
    }
    return false;
}

// Where a record may have a list of messages.
static const char *const message_lists[] = {"conversations", "messages", "chosen", "rejected"};
enum { MESSAGE_LISTS = sizeof message_lists / sizeof *message_lists };

#ifdef TRAINER
typedef void UseText(void *context, const char *s, size_t n); // what to do with a text

static void use_member(const Json *object, const char *key, UseText *use, void *context) {
    const Json *text = json_get(object, key);
    if (text && text->type == JSON_STRING) use(context, text->s, text->len);
}

// Calls use(context, s, n) for each text in the record: a plain line; "text"; "reasoning_content"
// and "content" of every message. Exits if it has none of them.
static inline void reader_texts(const Reader *r, UseText *use, void *context) {
    if (r->kind == PLAIN) {
        use(context, r->line, r->len);
        return;
    }
    const Json *text = json_get(r->json, "text");
    bool known = text;
    if (text && text->type != JSON_STRING)
        die("%s:%zu: \"text\" is not a string", r->path, r->number);
    use_member(r->json, "text", use, context);
    for (int i = 0; i < MESSAGE_LISTS; i++) {
        const Json *list = json_get(r->json, message_lists[i]);
        if (!list) continue;
        known = true;
        if (list->type != JSON_ARRAY)
            die("%s:%zu: \"%s\" is not a list", r->path, r->number, message_lists[i]);
        for (const Json *m = list->child; m; m = m->next) {
            use_member(m, "reasoning_content", use, context);
            use_member(m, "content", use, context);
        }
    }
    if (!known)
        die("%s:%zu: the record has neither \"text\" nor \"conversations\" nor \"chosen\" and "
            "\"rejected\"", r->path, r->number);
}
#endif

// =================================================================================================
// 9. Files
//
// tokenizer.json is Hugging Face's format. What matters in it:
//
//     {"pre_tokenizer": {"type": "ByteLevel", ...},          how a text is cut into words
//      "added_tokens": [{"id": 0, "content": "<|endoftext|>", ...}, ...],
//      "model": {"type": "BPE",
//                "vocab": {"<|endoftext|>": 0, ..., "!": 36, ..., "Ġt": 292, ...},
//                "merges": [["Ġ", "t"], ...]}}               in the order of learning
//
// "added_tokens" may repeat tokens of the vocabulary or add to it. A setting that would change the
// ids and is not implemented is refused: ids that are almost right are wrong.
//
// Beside it may be tokenizer_config.json, which names the special tokens, and the chat template for
// other programs: as "chat_template" in the configuration, or as the file chat_template.jinja.
// =================================================================================================

// ---- reading and writing whole files ------------------------------------------------------------

// The bytes of a file with a NUL behind them, which *len does not count. The caller frees them.
static char *read_file(const char *path, size_t *len) {
    FILE *f = open_file(path, "rb");
    Text t = {0};
    char block[1 << 14];
    while (!feof(f)) {
        size_t n = fread(block, 1, sizeof block, f);
        if (ferror(f)) die("%s: %s", path, strerror(errno));
        text_append(&t, block, n);
    }
    fclose(f);
    *len = t.len;
    return t.s;
}

// Makes a folder and those above it, if they are missing.
static void make_dir(const char *path) {
    char *part = format("%s", path);
    for (size_t i = 1; i <= strlen(path); i++) {
        if (path[i] && path[i] != '/') continue;
        part[i] = '\0';
        if (access(part, F_OK) && mkdir(part, 0777) && errno != EEXIST)
            die("%s: cannot be made: %s", part, strerror(errno));
        part[i] = path[i];
    }
    free(part);
}

// A file dir/name that is being written. It takes its name, and replaces an older file, only when
// it is complete: neither a crash nor a full disk destroys what was there.
typedef struct { FILE *f; char *path, *tmp; } NewFile;

static NewFile new_file(const char *dir, const char *name) {
    char *path = format("%s/%s", dir, name), *tmp = format("%s.%ld.tmp", path, (long)getpid());
    make_dir(dir);
    unfinished = tmp;
    return (NewFile){open_file(tmp, "wb"), path, tmp};
}

static void new_file_done(NewFile *n) {
    int error = fflush(n->f) || ferror(n->f) ? errno : 0;
    if (ferror(n->f) && !error) error = EIO; // an earlier write failed, and its reason is lost
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

// ---- settings -----------------------------------------------------------------------------------

// The value at a path such as "pre_tokenizer.pretokenizers.0.type", or NULL.
static const Json *json_at(const Json *j, const char *path) {
    while (j && *path) {
        size_t n = strcspn(path, ".");
        if (j->type == JSON_ARRAY) {
            int i = atoi(path);
            j = j->child;
            while (j && i-- > 0) j = j->next;
        } else {
            char *key = format("%.*s", (int)n, path);
            j = json_get(j, key);
            free(key);
        }
        path += n + (path[n] == '.');
    }
    return j;
}

// What each setting may be. Pre-tokenizer: ByteLevel with GPT-2's pattern, or Digits before it.
#define STEPS "pre_tokenizer.pretokenizers"
enum { ALONE = 1, AFTER_DIGITS = 2, EITHER = ALONE | AFTER_DIGITS }; // bits
static const struct { int where; const char *path, *allowed; } settings[] = {
    {EITHER, "normalizer", "null"},
    {EITHER, "truncation", "null"},
    {EITHER, "padding", "null"},
    {EITHER, "post_processor", "null ByteLevel TemplateProcessing"},
    {EITHER, "decoder", "ByteLevel"},
    {EITHER, "model.type", "BPE"},
    {EITHER, "model.dropout", "null 0"},
    {EITHER, "model.continuing_subword_prefix", "null"},
    {EITHER, "model.end_of_word_suffix", "null"},
    {EITHER, "model.byte_fallback", "false null"},
    {EITHER, "model.ignore_merges", "false null"},
    {ALONE, "pre_tokenizer", "ByteLevel"},
    {ALONE, "pre_tokenizer.add_prefix_space", "false null"},
    {ALONE, "pre_tokenizer.use_regex", "true null"},
    {AFTER_DIGITS, STEPS ".0", "Digits"},
    {AFTER_DIGITS, STEPS ".0.individual_digits", "true"},
    {AFTER_DIGITS, STEPS ".1", "ByteLevel"},
    {AFTER_DIGITS, STEPS ".1.add_prefix_space", "false null"},
    {AFTER_DIGITS, STEPS ".1.use_regex", "true null"},
    {AFTER_DIGITS, STEPS ".2", "null"},
};

// Exits unless the value at `path` in an object of this file is one of the words `allowed`. A
// missing value and an empty text count as null, an object as its "type".
static void require(const char *file, const Json *object, const char *path, const char *allowed) {
    const Json *j = json_at(object, path);
    const char *is = json_names[j ? j->type : JSON_NULL], *word = allowed;
    char number[32];
    if (j && j->type == JSON_NUMBER) {
        snprintf(number, sizeof number, "%g", j->number);
        is = number;
    }
    if (j && j->type == JSON_STRING) is = j->len ? j->s : "null";
    if (json_text(j, "type")) is = json_text(j, "type");
    while (*word) {
        size_t n = strcspn(word, " ");
        if (strlen(is) == n && !strncmp(word, is, n)) return;
        word += n + (word[n] == ' ');
    }
    die("%s: \"%s\" is \"%s\"; implemented: %s", file, path, is, allowed);
}

static void load_settings(Tokenizer *t, const char *file, const Json *root) {
    t->single_digits = json_at(root, STEPS);
    for (size_t i = 0; i < sizeof settings / sizeof *settings; i++)
        if (settings[i].where & (t->single_digits ? AFTER_DIGITS : ALONE))
            require(file, root, settings[i].path, settings[i].allowed);

    // Of the post-processors, those are accepted that add no token.
    const Json *single = json_at(root, "post_processor.single");
    if (single && (!single->child || single->child->next || !json_get(single->child, "Sequence")))
        die("%s: \"post_processor\" adds tokens; implemented: null, or one that adds none", file);
}

// ---- tokens and merges --------------------------------------------------------------------------

// The first element of the list or object at `path`; NULL if it is empty. Exits if there is none.
static const Json *load_list(const char *file, const Json *root, const char *path, int type) {
    const Json *j = json_at(root, path);
    if (!j || (int)j->type != type) die("%s: \"%s\" is missing or of the wrong type", file, path);
    return j->child;
}

// Notes the name of an id < bound; exits if the id has another name already.
static void load_name(const char *file, const char **name, size_t bound, const char *s,
                      const Json *id) {
    double x = id && id->type == JSON_NUMBER ? id->number : -1;
    if (!(x >= 0 && x < (double)bound && x == (double)(size_t)x))
        die("%s: token \"%s\": its id is not a whole number below %zu", file, s, bound);
    const char **at = &name[(size_t)x];
    if (*at && strcmp(*at, s)) die("%s: id %.0f is given twice: \"%s\", \"%s\"", file, x, *at, s);
    *at = s;
}

// Collects the tokens: their ids must be 0, 1, 2, ..., and no two tokens may be equal.
static void load_vocab(Tokenizer *t, const char *file, const Json *vocab, const Json *added) {
    size_t bound = 0, n = 0; // no id can be higher than there are entries
    for (const Json *j = vocab; j; j = j->next) bound++;
    for (const Json *j = added; j; j = j->next) bound++;
    const char **name = xcalloc(bound, sizeof *name);
    for (const Json *j = vocab; j; j = j->next) load_name(file, name, bound, j->key, j);
    for (const Json *j = added; j; j = j->next) {
        const char *s = json_text(j, "content");
        if (!s || !*s) die("%s: an added token has no \"content\"", file);
        load_name(file, name, bound, s, json_get(j, "id"));
    }

    while (n < bound && name[n]) n++;
    for (size_t i = n; i < bound; i++)
        if (name[i]) die("%s: no token has id %zu, but \"%s\" has %zu", file, n, name[i], i);
    t->vocab_size = (int)n;
    for (int id = 0; id < t->vocab_size; id++) {
        int other = dict_number(&t->spelling, name[id], strlen(name[id]), true);
        if (other != id) die("%s: token \"%s\" has two ids, %d and %d", file, name[id], other, id);
    }
    free(name);
}

// Enters the added tokens, which encode_pass() finds in a text as they are spelled.
static void load_added(Tokenizer *t, const char *file, const Json *added) {
    for (const Json *j = added; j; j = j->next) {
        require(file, j, "single_word", "false null");
        require(file, j, "lstrip", "false null");
        require(file, j, "rstrip", "false null");
        require(file, j, "normalized", "false null true");
        int pass = json_is_true(j, "normalized");
        t->begins_added[pass][(unsigned char)*json_text(j, "content")] = true;
        ids_push(&t->added[pass], (int)json_get(j, "id")->number);
    }
}

static bool is_added(const Tokenizer *t, int id) {
    for (int pass = 0; pass < PASSES; pass++)
        for (size_t k = 0; k < t->added[pass].n; k++)
            if (t->added[pass].id[k] == id) return true;
    return false;
}

// Turns spellings into bytes, and finds the token of every single byte. An added token that is not
// in symbols is written as it is.
static void load_bytes(Tokenizer *t, const char *file) {
    char *out = t->bytes = xcalloc(t->spelling.bytes.len, 1);
    t->token = xcalloc((size_t)t->vocab_size + 1, sizeof *t->token);
    for (int id = 0; id < t->vocab_size; id++) {
        size_t len, n_bytes = 0;
        Token name = dict_string(&t->spelling, id);
        bool symbols = true;
        for (size_t i = 0; i < name.len && symbols; i += len) {
            int cp;
            len = utf8_read(name.s + i, name.len - i, &cp);
            symbols = cp >= 0 && cp < N_SYMBOLS && byte_of[cp] >= 0;
            if (symbols) out[n_bytes++] = (char)byte_of[cp];
        }
        if (!symbols && !is_added(t, id))
            die("%s: token %d, \"%.*s\", is not in byte symbols", file, id, (int)name.len, name.s);
        if (!symbols) memcpy(out, name.s, name.len);
        t->token[id] = (Token){out, symbols ? n_bytes : name.len};
        out += t->token[id].len;
    }
    for (int b = 0; b < 256; b++) {
        t->byte_id[b] = dict_number(&t->spelling, symbol[b], strlen(symbol[b]), false);
        if (t->byte_id[b] < 0) die("%s: no token for byte 0x%02X, \"%s\"", file, b, symbol[b]);
    }
}

// Enters the merges, each written as ["a", "b"] or "a b".
static void load_merges(Tokenizer *t, const char *file, const Json *merges) {
    Text both = {0};
    for (const Json *m = merges; m; m = m->next) {
        int number = (int)t->merged.n;
        const Json *a = m->child, *b = a ? a->next : NULL;
        const char *space = m->type == JSON_STRING ? strchr(m->s, ' ') : NULL;
        if (!space && (!b || b->next || a->type != JSON_STRING || b->type != JSON_STRING))
            die("%s: merge %d is neither [\"a\", \"b\"] nor \"a b\"", file, number);
        size_t cut = space ? (size_t)(space - m->s) : a->len;
        both.len = 0;
        text_append(&both, space ? m->s : a->s, cut);
        text_add(&both, space ? space + 1 : b->s);

        int left = dict_number(&t->spelling, both.s, cut, false);
        int right = dict_number(&t->spelling, both.s + cut, both.len - cut, false);
        int made = dict_number(&t->spelling, both.s, both.len, false);
        if (left < 0 || right < 0 || made < 0)
            die("%s: merge %d, \"%.*s\" + \"%s\": one of them or the result is not a token", file,
                number, (int)cut, both.s, both.s + cut);
        int *rank = map_value(&t->rank, make_pair(left, right));
        if (*rank >= 0) die("%s: merge %d repeats merge %d", file, number, *rank);
        *rank = number;
        ids_push(&t->merged, made);
    }
    free(both.s);
}

// ---- the configuration --------------------------------------------------------------------------

#define TURN_END "<|im_end|>"
static const char *const chat_template; // chapter 10
static const uint64_t MINIMIND_TEMPLATE = 0xA42856D092C2689B; // the hash of MiniMind's own template

// Sets the ids of the special tokens: as the configuration says, else by MiniMind's names. Writes a
// configuration, with our chat template, if there is none.
static void load_config(Tokenizer *t, const char *path) {
    const char *const key[] = {"bos_token", "eos_token", "pad_token"};
    const char *const default_name[] = {"<|im_start|>", TURN_END, "<|endoftext|>"};
    int *const role[] = {&t->bos, &t->eos, &t->pad};
    Text *text = &t->file[CONFIG_FILE];
    Json *config = text->len ? json_parse_file(path, text->s, text->len) : NULL;
    if (!config) text_add(text, "{\n  \"tokenizer_class\": \"PreTrainedTokenizerFast\"");
    for (int i = 0; i < 3; i++) {
        const Json *j = json_get(config, key[i]); // a string, or an object with "content"
        const char *given = j && j->type == JSON_STRING ? j->s : json_text(j, "content");
        const char *name = given ? given : default_name[i];
        *role[i] = dict_number(&t->spelling, name, strlen(name), false);
        if (j && !given && j->type != JSON_NULL) die("%s: \"%s\" is not a string", path, key[i]);
        if (given && *role[i] < 0) die("%s: \"%s\" is \"%s\", not a token", path, key[i], given);
        if (j && !given) *role[i] = -1;
        if (!config && *role[i] >= 0) text_printf(text, ",\n  \"%s\": \"%s\"", key[i], name);
    }
    t->turn_end = dict_number(&t->spelling, TURN_END, strlen(TURN_END), false);

    const char *own = t->file[TEMPLATE_FILE].s, *found = json_text(config, "chat_template");
    if (own) found = own;
    bool any = found || json_get(config, "chat_template"); // it may also be a list of templates
    t->template_unknown = any && (!found || (strcmp(found, chat_template) &&
                          hash_bytes(HASH_START, found, strlen(found)) != MINIMIND_TEMPLATE));
    if (!config) {
        text_add(text, ",\n  \"clean_up_tokenization_spaces\": false,\n  \"chat_template\": ");
        json_write_string(text, chat_template, strlen(chat_template));
        text_add(text, "\n}\n");
    }
    free(config);
}

// Says on stderr what a model trained with this tokenizer would do unexpectedly.
static void tokenizer_warn(const Tokenizer *t) {
    if (t->turn_end < 0)
        fprintf(stderr, "%s: the tokenizer has no token %s, which ends each turn of a "
                "conversation\n", program, TURN_END);
    else if (t->eos != t->turn_end)
        fprintf(stderr, "%s: eos_token is not %s, which ends each turn of a conversation; an "
                "answer ends at either\n", program, TURN_END);
    if (t->template_unknown)
        fprintf(stderr, "%s: the tokenizer's chat template is not MiniMind's; conversations are "
                "written by MiniMind's all the same\n", program);
}

// ---- the tokenizer ------------------------------------------------------------------------------

// A tokenizer from the text of its files, which it keeps: saving writes them. Only `json` must not
// be empty. The paths are for messages.
static Tokenizer *tokenizer_parse(const char *path, Text json, const char *config_path, Text config,
                                  Text template) {
    Tokenizer *t = xcalloc(1, sizeof *t);
    Json *root = json_parse_file(path, json.s, json.len);
    const Json *added = load_list(path, root, "added_tokens", JSON_ARRAY);
    *t = (Tokenizer){.file = {json, config, template}};
    init_tables();
    load_settings(t, path, root);
    load_vocab(t, path, load_list(path, root, "model.vocab", JSON_OBJECT), added);
    load_added(t, path, added);
    load_bytes(t, path);
    load_merges(t, path, load_list(path, root, "model.merges", JSON_ARRAY));
    load_config(t, config_path);
    free(root);
    t->fingerprint = hash_bytes(HASH_START, t->file[0].s, t->file[0].len);
    t->fingerprint = hash_bytes(t->fingerprint, t->file[1].s, t->file[1].len);
    return t;
}

static const char *const file_names[] = {
    "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"};

// Loads a folder with these files, or the file tokenizer.json alone.
static Tokenizer *tokenizer_load(const char *path) {
    struct stat st;
    bool folder = stat(path, &st) == 0 && S_ISDIR(st.st_mode);
    char *name[N_FILES];
    Text text[N_FILES] = {{0}};
    for (int i = 0; i < N_FILES; i++) {
        name[i] = folder ? format("%s/%s", path, file_names[i]) : format("%s", path);
        if (i == 0 || (folder && access(name[i], F_OK) == 0))
            text[i].s = read_file(name[i], &text[i].len);
    }
    Tokenizer *t = tokenizer_parse(name[0], text[0], name[1], text[1], text[2]);
    for (int i = 0; i < N_FILES; i++) free(name[i]);
    return t;
}

// Writes the files into a folder, which is made if it is missing.
static void tokenizer_save(const Tokenizer *t, const char *folder) {
    for (int i = 0; i < N_FILES; i++)
        if (t->file[i].s) write_file(folder, file_names[i], &t->file[i]);
}

static void tokenizer_free(Tokenizer *t) {
    void *owned[] = {t->token, t->bytes, t->rank.slot, t->merged.id, t->added[0].id, t->added[1].id,
                     t->cached.id, t->cached_end.id, t->file[0].s, t->file[1].s, t->file[2].s, t};
    dict_free(&t->spelling);
    dict_free(&t->cache);
    for (size_t i = 0; i < sizeof owned / sizeof *owned; i++) free(owned[i]);
}

// =================================================================================================
// 10. Chat
//
// A conversation becomes one text by the template that MiniMind's models are trained with:
//
//     <|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\nHi<|im_end|>\n
//                                                           [trained                            ]
//
// Between <think> and </think> is the assistant's reasoning, if there is any. The renderer notes
// three things:
//
//   - What is trained: in each turn of the assistant everything after the line with its name, and
//     the <|im_end|>. An empty think block is trained too, so that a model whose turn was opened
//     with "<think>\n" learns to close it at once where no reasoning is needed.
//   - Where an answer begins: after an empty think block, or after "<think>\n" if there are
//     thoughts. In use, prompt and answer are encoded separately, so no token crosses this place.
//     A text for training is therefore cut there before it is encoded.
//   - Which of the text comes from messages. What a person types stays text: "<|im_end|>" in it
//     does not end a turn. In data files it does, as in Hugging Face's library, because published
//     data spells special tokens.
// =================================================================================================

typedef struct {
    Text text;
    Ids cut;           // three offsets for each turn of the assistant: where training begins, where
                       // the answer begins, where training ends
    Ids said;          // from, to, from, to, ...: what comes from messages
    const char *error; // what is wrong with the conversation, or NULL
} Chat;

static void chat_free(Chat *c) {
    free(c->text.s);
    free(c->cut.id);
    free(c->said.id);
}

static void chat_add(Chat *c, const char *s) { text_add(&c->text, s); }

// Appends text of a message, which a person may have typed.
static void chat_say(Chat *c, const char *s, const char *end) {
    ids_push(&c->said, (int)c->text.len);
    text_append(&c->text, s, (size_t)(end - s));
    ids_push(&c->said, (int)c->text.len);
}

static void chat_cut(Chat *c) { ids_push(&c->cut, (int)c->text.len); }

// The string that is a member of an object, or "".
static const char *text_or_empty(const Json *object, const char *key) {
    const char *s = json_text(object, key);
    return s ? s : "";
}

static bool role_is(const Json *m, const char *role) {
    return !strcmp(text_or_empty(m, "role"), role);
}

// The first element of a list, which may also be given as the text of JSON: MiniMind's data does so
// for tools and their calls. *parsed is to be freed.
static const Json *first_of(Chat *c, const Json *list, Json **parsed) {
    size_t at;
    const char *error;
    if (list && list->type == JSON_STRING && list->len) {
        list = *parsed = json_parse(list->s, list->len, &error, &at);
        if (!list) c->error = "the text of \"tools\" or \"tool_calls\" is not JSON";
    }
    return list && list->type == JSON_ARRAY ? list->child : NULL;
}

// The calls of tools, behind what the assistant says.
static void render_calls(Chat *c, const Json *calls, bool answered) {
    Json *parsed = NULL;
    const Json *first = first_of(c, calls, &parsed);
    for (const Json *e = first; e; e = e->next) {
        const Json *call = json_get(e, "function") ? json_get(e, "function") : e;
        const Json *arguments = json_get(call, "arguments");
        text_printf(&c->text, "%s<tool_call>\n{\"name\": \"%s\", \"arguments\": ",
                    answered || e != first ? "\n" : "", text_or_empty(call, "name"));
        if (arguments && arguments->type == JSON_STRING) chat_add(c, arguments->s);
        else if (arguments) json_write(&c->text, arguments);
        chat_add(c, "}\n</tool_call>");
    }
    free(parsed);
}

static const char *last_in(const char *s, const char *end, const char *what) {
    const char *found = NULL;
    for (const char *p = strstr(s, what); p && p < end; p = strstr(p + 1, what)) found = p;
    return found;
}

// A turn of the assistant: <think>, thoughts, </think>, content, calls of tools.
static void render_assistant(Chat *c, const Json *m) {
    const char *s = text_or_empty(m, "content"), *end = s + strlen(s);
    const char *why = text_or_empty(m, "reasoning_content"), *why_end = why + strlen(why);
    const char *close = strstr(s, "</think>");
    if (!json_text(m, "reasoning_content") && close) { // the thoughts are in the content
        const char *open = last_in(s, close, "<think>");
        why = open ? open + strlen("<think>") : s;
        why_end = close;
        s = last_in(s, end, "</think>") + strlen("</think>");
        s += strspn(s, "\n");
    }
    bool answered = s < end;
    while (why < why_end && *why == '\n') why++;
    while (why < why_end && why_end[-1] == '\n') why_end--;
    s += strspn(s, "\n");

    chat_add(c, "<|im_start|>assistant\n");
    chat_cut(c);
    chat_add(c, "<think>\n");
    if (why < why_end) chat_cut(c);
    chat_say(c, why, why_end);
    chat_add(c, "\n</think>\n\n");
    if (why == why_end) chat_cut(c);
    chat_say(c, s, end);
    render_calls(c, json_get(m, "tool_calls"), answered);
    chat_add(c, TURN_END);
    chat_cut(c);
    chat_add(c, "\n");
}

// ---- the system's turn that describes tools, and the template for other programs ----------------

#define TOOLS_BEFORE \
    "# Tools\n\nYou may call one or more functions to assist with the user query.\n\n" \
    "You are provided with function signatures within <tools></tools> XML tags:\n<tools>"
#define TOOLS_AFTER \
    "</tools>\n\nFor each function call, return a json object with function name and arguments " \
    "within <tool_call></tool_call> XML tags:\n<tool_call>\n{\"name\": <function-name>, " \
    "\"arguments\": <args-json-object>}\n</tool_call>"

static void render_tools(Chat *c, const Json *tool, const Json *system) {
    chat_add(c, "<|im_start|>system\n");
    const char *content = json_text(system, "content");
    if (content) {
        chat_say(c, content, content + strlen(content));
        chat_add(c, "\n\n");
    }
    chat_add(c, TOOLS_BEFORE);
    for (const Json *e = tool; e; e = e->next) {
        chat_add(c, "\n");
        json_write(&c->text, e);
    }
    chat_add(c, "\n" TOOLS_AFTER TURN_END "\n");
}

// What this chapter does, in Jinja, as Hugging Face's library reads it from tokenizer_config.json.
#define NEWLINE "{{ '\\n' }}"
static const char *const chat_template =
    "{%- if tools -%}<|im_start|>system" NEWLINE "{%- if messages[0].role == 'system' %}"
    "{{ messages[0].content + '\\n\\n' }}{% endif %}" TOOLS_BEFORE "{% for tool in tools %}" NEWLINE
    "{{ tool | tojson }}{% endfor %}" NEWLINE TOOLS_AFTER TURN_END NEWLINE "{%- endif -%}\n"
    "{%- for m in messages -%}\n"
    "{%- set content = m.content if m.content is string else '' -%}\n"
    "{%- if m.role == 'user' or (m.role == 'system' and not (tools and loop.first)) -%}"
    "<|im_start|>{{ m.role + '\\n' + content }}" TURN_END NEWLINE
    "{%- elif m.role == 'assistant' -%}\n"
    "{%- set thoughts = m.reasoning_content if m.reasoning_content is string else '' -%}\n"
    "{%- if m.reasoning_content is not string and '</think>' in content -%}\n"
    "{%- set thoughts = content.split('</think>')[0].split('<think>')[-1] -%}\n"
    "{%- set content = content.split('</think>')[-1].lstrip('\\n') -%}\n"
    "{%- endif -%}"
    "<|im_start|>assistant{{ '\\n<think>\\n' + thoughts.strip('\\n') + '\\n</think>\\n\\n' }}"
    "{{- content.lstrip('\\n') }}"
    "{%- for item in m.tool_calls or [] -%}\n"
    "{%- if content or not loop.first %}" NEWLINE "{% endif -%}\n"
    "{%- set call = item.function or item -%}"
    "{{ '<tool_call>\\n{\"name\": \"' ~ call.name ~ '\", \"arguments\": ' }}"
    "{{- call.arguments if call.arguments is string else call.arguments | tojson }}"
    "{{- '}\\n</tool_call>' }}{%- endfor -%}" TURN_END NEWLINE
    "{%- elif m.role == 'tool' -%}\n"
    "{%- if loop.first or messages[loop.index0 - 1].role != 'tool' -%}<|im_start|>user{%- endif -%}"
    "{{ '\\n<tool_response>\\n' + content + '\\n</tool_response>' }}"
    "{%- if loop.last or messages[loop.index0 + 1].role != 'tool' -%}" TURN_END NEWLINE
    "{%- endif -%}{%- endif -%}{%- endfor -%}\n"
    "{%- if add_generation_prompt -%}<|im_start|>assistant{{ '\\n<think>\\n' }}"
    "{%- if not (open_thinking is defined and open_thinking) -%}{{ '\\n</think>\\n\\n' }}"
    "{%- endif -%}{%- endif -%}\n";

// ---- a conversation -----------------------------------------------------------------------------

// Appends a message that is not the assistant's. Answers of tools that follow each other share a
// turn of the user.
static void render_message(Chat *c, const Json *m, const Json *before) {
    const char *role = text_or_empty(m, "role"), *content = text_or_empty(m, "content");
    bool tool = role_is(m, "tool");
    if (!tool || !role_is(before, "tool")) {
        chat_add(c, "<|im_start|>");
        chat_add(c, tool ? "user" : role);
    }
    chat_add(c, tool ? "\n<tool_response>\n" : "\n");
    chat_say(c, content, content + strlen(content));
    if (tool) chat_add(c, "\n</tool_response>");
    if (!tool || !role_is(m->next, "tool")) chat_add(c, TURN_END "\n");
}

// Is there a NUL in a string of this value? Rendering takes strings as C does: they end there.
static bool holds_nul(const Json *j) {
    bool found = j->type == JSON_STRING && strlen(j->s) < j->len;
    for (const Json *e = j->child; e && !found; e = e->next) found = holds_nul(e);
    return found;
}

// Renders a list of messages. Tools are in the record or, in MiniMind's data, in a system message.
// With `prompt` the assistant's turn is opened at the end, with `think` in the middle of
// its thoughts. If something is wrong, c->error says what.
static void chat_render(Chat *c, const Json *record, const Json *messages, bool prompt,
                        bool think) {
    Json *parsed = NULL;
    const Json *tools = json_get(record, "tools"), *before = NULL;
    if (!messages || messages->type != JSON_ARRAY) c->error = "there is no list of messages";
    else if (!messages->child) c->error = "the list of messages is empty";
    if (c->error) return;

    for (const Json *m = messages->child; m; m = m->next) {
        const Json *own = role_is(m, "system") ? json_get(m, "tools") : NULL;
        if (own && (own->child || (own->type == JSON_STRING && own->len))) tools = own; // not empty
        if (holds_nul(m)) c->error = "a message holds a NUL character";
    }
    const Json *tool = first_of(c, tools, &parsed), *m = messages->child;
    bool system = role_is(m, "system");
    if (tool) render_tools(c, tool, system ? m : NULL);
    if (tool && system) m = m->next;
    free(parsed);

    for (; m && !c->error; m = m->next) {
        bool known = role_is(m, "system") || role_is(m, "user") || role_is(m, "tool");
        if (role_is(m, "assistant")) render_assistant(c, m);
        else if (known) render_message(c, m, before);
        else c->error = "a message's role is not one of system, user, assistant, tool";
        before = m;
    }
    if (prompt) chat_add(c, "<|im_start|>assistant\n<think>\n");
    if (prompt && !think) chat_add(c, "\n</think>\n\n");
}

// A mark on an id. Bit 30, not 31: an id with the mark stays positive, and -1 means none.
enum { TRAINED = 1 << 30 };

// Appends the ids of a record's list of messages, up to where the assistant begins to speak (with
// `think`: to think) if `prompt`; else of all, and those to be trained carry the mark. With
// `special`, added tokens spelled in messages are tokens, else text. Returns what is wrong, or
// NULL.
static const char *encode_chat(Tokenizer *tok, const Json *record, const Json *messages,
                               bool prompt, bool think, bool special, Ids *out) {
    Chat c = {.error = NULL};
    chat_render(&c, record, messages, prompt, think);
    chat_cut(&c); // the end
    // The cuts divide the text into pieces. Piece 3k is not trained; 3k + 1, from <think> to where
    // the answer begins, and 3k + 2, the answer with its <|im_end|>, are.
    for (size_t i = 0, from = 0; i < c.cut.n && !c.error; i++) {
        size_t to = (size_t)c.cut.id[i], first = out->n;
        encode_pass(tok, c.text.s, from, to, 0, special ? NULL : &c.said, out);
        for (size_t k = first; i % 3 > 0 && !prompt && k < out->n; k++) out->id[k] |= TRAINED;
        from = to;
    }
    chat_free(&c);
    return c.error;
}

// =================================================================================================
// 11. Options
//
// One table says which options a program has, which of its commands know them and which values they
// may have. It drives reading, checking and help, here and in minimind.c, which also keeps the
// configuration of a model in such a table.
// =================================================================================================

typedef struct { // a member of a struct that has a name outside the program
    const char *name;
    const char *tag; // of an option: the letters of the commands that know it, capital where they
                     // require it; *: all know it
    char kind;       // i: long, f: double, s: const char *
    size_t offset;   // in its struct
    double least, most, initial; // of a number: range and default; no default if out of range
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

// '-' counts as '_', as in the option --hidden-size.
static bool same_letter(char a, char b) { return a == b || (a == '-' && b == '_'); }

// How many letters lie between the part in which a and b begin alike and that in which they end
// alike. One letter changed, added or removed makes 1; two exchanged make 2.
static size_t difference(const char *a, const char *b) {
    size_t n = strlen(a), m = strlen(b), begin = 0, end = 0;
    while (begin < n && begin < m && same_letter(a[begin], b[begin])) begin++;
    n -= begin;
    m -= begin;
    while (end < n && end < m && same_letter(a[begin + n - end - 1], b[begin + m - end - 1])) end++;
    return (n > m ? n : m) - end;
}

// Keeps in *best the name that differs least from a word, in at most two letters.
static void suggest(const char *word, const char *name, const char **best) {
    size_t limit = *best ? difference(word, *best) : 3;
    if (difference(word, name) < limit) *best = name;
}

// The field called `name`, or NULL.
static const Field *field_find(const Field *table, size_t n, const char *name) {
    for (const Field *f = table; f < table + n; f++) {
        size_t i = 0;
        while (name[i] && same_letter(name[i], f->name[i])) i++;
        if (!name[i] && !f->name[i]) return f;
    }
    return NULL;
}

// Does the command with this letter know the option?
static bool knows(char letter, const Field *option) {
    const char letters[] = {letter, (char)toupper(letter), '*', 0};
    return !letter || strpbrk(option->tag, letters);
}

static bool requires(char letter, const Field *option) {
    return letter && option->kind == 's' && strchr(option->tag, toupper(letter));
}

// An option's name as it is typed, without the dashes before it. The caller frees it.
static char *option_name(const char *field) {
    char *name = format("%s", field);
    for (char *c = name; *c; c++)
        if (*c == '_') *c = '-';
    return name;
}

// Prints the options that the command with this letter knows, with range and default, in at most
// 100 columns.
static void print_options(const Field *table, size_t n, char letter) {
    enum { COLUMN = 32, WIDTH = 100 };
    for (const Field *f = table; f < table + n; f++) {
        if (!knows(letter, f)) continue;
        Text t = {0};
        char *name = option_name(f->name);
        text_printf(&t, "    --%-*s %s", COLUMN - 7, name, f->meaning);
        if (requires(letter, f)) text_add(&t, " (required)");
        bool is_switch = f->kind == 'i' && f->least == 0 && f->most == 1;
        if (is_switch) text_add(&t, " (1 or 0");
        else if (f->kind != 's') text_printf(&t, " (%.9g to %.9g", f->least, f->most);
        if (f->kind != 's' && f->initial >= f->least && f->initial <= f->most)
            text_printf(&t, "; default %.9g", f->initial);
        if (f->kind != 's') text_add(&t, ")");

        char *line = t.s;
        while (strlen(line) > WIDTH) { // cut at the last space that fits
            char *cut = line + WIDTH;
            while (*cut != ' ') cut--;
            printf("%.*s\n", (int)(cut - line), line);
            line = cut + 1 - COLUMN;
            memset(line, ' ', COLUMN);
        }
        puts(line);
        free(name);
        free(t.s);
    }
}

// Stores the text of a value; exits if it is not allowed. `option` is its name with the dashes.
static void field_read(void *base, const Field *f, const char *text, const char *option) {
    char where[100], *end;
    double number = strtod(text, &end);
    snprintf(where, sizeof where, "%s %s", option, text);
    if (f->kind == 's') *(const char **)((char *)base + f->offset) = text;
    else field_set(base, f, *text && !*end ? number : strtod("nan", NULL), where);
}

// Exits because no set knows the option, and says which one may be meant.
static _Noreturn void unknown_option(const char *option, const OptionSet *set, size_t n_sets) {
    const char *best = NULL;
    for (const OptionSet *s = set; s < set + n_sets; s++)
        for (const Field *f = s->field; f < s->field + s->n; f++)
            if (knows(s->letter, f)) suggest(option + 2, f->name, &best);
    if (!best) die("%s: this command has no such option; see help", option);
    die("%s: no such option; did you mean --%s?", option, option_name(best));
}

// Reads one option, argv[0], with its value, argv[1], into the first of the sets that knows it.
static void parse_option(char **argv, const OptionSet *set, size_t n_sets) {
    const char *option = argv[0];
    if (strncmp(option, "--", 2)) die("%s: options look like --name value", option);
    for (const OptionSet *s = set; s < set + n_sets; s++) {
        const Field *f = field_find(s->field, s->n, option + 2);
        if (!f || !knows(s->letter, f)) continue;
        if (!argv[1]) die("%s: its value is missing", option);
        field_read(s->base, f, argv[1], option);
        if (s->given) text_printf(s->given, " %s=%s", f->name, argv[1]);
        return;
    }
    unknown_option(option, set, n_sets);
}

// Reads "--name value" pairs up to the NULL at the end of argv. Other words, and all after "--", go
// to rest, which ends with NULL and has room for all; if it is NULL they are an error.
static void parse_options(char **argv, const OptionSet *set, size_t n_sets, char **rest) {
    bool options = true;
    for (size_t s = 0; s < n_sets; s++) put_defaults(set[s].base, set[s].field, set[s].n);
    while (*argv) {
        if (rest && options && !strcmp(*argv, "--")) {
            options = false;
            argv++;
        } else if (rest && (!options || strncmp(*argv, "--", 2))) {
            *rest++ = *argv++;
        } else {
            parse_option(argv, set, n_sets);
            argv += 2;
        }
    }
    if (rest) *rest = NULL;

    for (const OptionSet *s = set; s < set + n_sets; s++)
        for (const Field *f = s->field; f < s->field + s->n; f++)
            if (requires(s->letter, f) && !*(char **)((char *)s->base + f->offset))
                die("--%s is missing: %s", f->name, f->meaning);
}

// Seconds on a clock that never goes back.
static double seconds(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

// =================================================================================================
// 12. Commands. Results go to stdout, so that commands can be piped; messages go to stderr.
// =================================================================================================

#ifndef MINIMIND

#define OUT "out/tokenizer" // where a tokenizer is, unless an option says otherwise

typedef struct {
    const char *tokenizer, *and, *out;
    long vocab, single_digits, verbose, special, color, chat;
    char **arg;    // (n_args) what is not an option: files, or the text
    size_t n_args;
} Options;

// t train, e encode, d decode, c chat, s show, v vocab, m stats (measure)
static const Field option_table[] = {
#define AT(name) offsetof(Options, name)
    {"tokenizer", "edcsvm", 's', AT(tokenizer), 0, 0, 0,
     "a folder, or its tokenizer.json; default " OUT},
    {"and", "m", 's', AT(and), 0, 0, 0, "a second tokenizer, to compare"},
    {"out", "t", 's', AT(out), 0, 0, 0, "folder for the tokenizer; default " OUT},
    {"vocab", "t", 'i', AT(vocab), N_ADDED + 256, 1 << 24, 6400, "tokens to learn"},
    {"single-digits", "t", 'i', AT(single_digits), 0, 1, 0, "1: no token has two digits"},
    {"verbose", "t", 'i', AT(verbose), 0, 1, 0, "1: print each merge"},
    {"special", "es", 'i', AT(special), 0, 1, 1, "0: special tokens in a text are text"},
    {"color", "s", 'i', AT(color), 0, 1, -1, "colours; default: 1 in a terminal without NO_COLOR"},
    {"chat", "s", 'i', AT(chat), 0, 1, 0, "1: show conversations, from files"},
#undef AT
};
enum { OPTIONS = sizeof option_table / sizeof *option_table };

typedef struct {
    const char *name;
    char letter;                     // in the table of options
    const char *usage, *meaning;
    void (*run)(const Options *);    // NULL: convert(), as with --chat, by
    bool (*next)(Reader *);          // what reads a record, and
    void (*append)(Tokenizer *, const Options *, const Reader *, Text *); // makes a line of it
} Command;

static Tokenizer *open_tokenizer(const Options *o) {
    if (!o->tokenizer && access(OUT "/tokenizer.json", F_OK))
        die("there is no tokenizer in " OUT "; train one with \"tokenizer train FILE...\", or name "
            "one with --tokenizer PATH");
    return tokenizer_load(o->tokenizer ? o->tokenizer : OUT);
}

// ---- train --------------------------------------------------------------------------------------

static void count_text(void *trainer, const char *s, size_t n) { trainer_add(trainer, s, n); }

static void cmd_train(const Options *o) {
    double start = seconds();
    const char *out = o->out ? o->out : OUT;
    if (!o->n_args) die("train: the name of a FILE is missing");
    Trainer *tr = trainer_new(o->single_digits);
    tr->verbose = o->verbose;
    for (size_t i = 0; i < o->n_args; i++) {
        Reader r = reader_open(o->arg[i]);
        while (reader_next(&r)) reader_texts(&r, count_text, tr);
        if (r.kind == UNDECIDED) die("%s: contains no text", r.path);
        reader_close(&r);
    }
    Tokenizer *t = trainer_finish(tr, (int)o->vocab);
    tokenizer_save(t, out);
    fprintf(stderr, "%d tokens, %zu of them merges, in %.2f s; saved in %s\n", t->vocab_size,
            t->merged.n, seconds() - start, out);
    if (t->vocab_size < o->vocab)
        fprintf(stderr, "stopped early: the text has no pairs left for %ld tokens\n", o->vocab);
    tokenizer_free(t);
}

// ---- encode, decode, chat -----------------------------------------------------------------------

// Appends the ids of a record's text.
static void encode_record(Tokenizer *t, const Options *o, const Reader *r, Text *out) {
    Ids ids = {0};
    const Json *text = json_get(r->json, "text");
    if (r->kind == JSONL && (!text || text->type != JSON_STRING))
        die("%s:%zu: there is no string \"text\"", r->path, r->number);
    tokenizer_encode(t, text ? text->s : r->line, text ? text->len : r->len, o->special, &ids);
    for (size_t i = 0; i < ids.n; i++) { // printf would take longer than encoding
        char digits[16], *end = digits + sizeof digits, *d = end;
        int rest = ids.id[i];
        do {
            *--d = (char)('0' + rest % 10);
            rest /= 10;
        } while (rest > 0);
        if (i > 0) *--d = ' ';
        text_append(out, d, (size_t)(end - d));
    }
    free(ids.id);
}

// Appends the text of a line of ids, as a JSON string.
static void decode_line(Tokenizer *t, const Options *o, const Reader *r, Text *out) {
    (void)o;
    Utf8Stream stream = {0};
    Text text = {0};
    const char *white = " \t\r\n", *s = r->line + strspn(r->line, white);
    while (*s) {
        char *end;
        long id = strtol(s, &end, 10);
        if (end == s || !strchr(white, *end) || id < 0 || id >= t->vocab_size)
            die("%s:%zu: \"%.*s\" is not an id from 0 to %d", r->path, r->number,
                (int)strcspn(s, white), s, t->vocab_size - 1);
        decode_token(t, (int)id, &stream, &text);
        s = end + strspn(end, white);
    }
    decode_end(&stream, &text);
    json_write_string(out, text.s, text.len);
    free(text.s);
}

// The messages of a record, under the name that it has for them.
static const Json *messages_of(const Json *record) {
    const Json *list = json_get(record, "messages");
    return list ? list : json_get(record, "conversations");
}

// Appends a record's conversation as the template renders it, as a JSON string.
static void render_record(Tokenizer *t, const Options *o, const Reader *r, Text *out) {
    (void)t;
    (void)o;
    Chat c = {.error = NULL};
    chat_render(&c, r->json, messages_of(r->json), json_is_true(r->json, "add_generation_prompt"),
                json_is_true(r->json, "open_thinking"));
    if (c.error) die("%s:%zu: %s", r->path, r->number, c.error);
    json_write_string(out, c.text.s, c.text.len);
    chat_free(&c);
}

// Prints one line for each record. Without a file it reads the standard input.
static void convert(const Command *c, const Options *o) {
    Tokenizer *t = open_tokenizer(o);
    Text line = {0};
    if (o->chat || c->append == render_record) tokenizer_warn(t);
    for (size_t i = 0; i == 0 || i < o->n_args; i++) {
        Reader r = reader_open(o->n_args ? o->arg[i] : "-");
        while (c->next(&r)) {
            line.len = 0;
            c->append(t, o, &r, &line);
            text_add(&line, "\n");
            fwrite(line.s, 1, line.len, stdout);
        }
        reader_close(&r);
    }
    free(line.s);
    tokenizer_free(t);
}

// ---- show ---------------------------------------------------------------------------------------

// tokenizer show "人工" prints the tokens, their ids, and then how each word is encoded. The token
// that a merge has just made is in brackets; parts of characters are in hex:
//
//     人工
//     2072
//     6 bytes / 1 tokens = 6.00 bytes per token
//
//     "人工": E4 BA BA E5 B7 A5
//         merge    12 makes   303   [<E4BA>]|<BA>|<E5>|<B7>|<A5>
//         merge   136 makes   427   <E4BA>|<BA>|[<E5B7>]|<A5>
//         merge   156 makes   447   [人]|<E5B7>|<A5>
//         merge   342 makes   633   人|[工]
//         merge  1781 makes  2072   [人工]

static bool use_color(const Options *o) {
    const char *no_color = getenv("NO_COLOR");
    if (o->color >= 0) return o->color;
    return isatty(STDOUT_FILENO) && !(no_color && *no_color);
}

// Prints tokens in changing colours, or with bars between them: their text, or their ids.
static void print_tokens(const Tokenizer *t, const Ids *ids, bool color, bool as_ids) {
    for (size_t i = 0; i < ids->n; i++) {
        Text piece = {0};
        if (as_ids) text_printf(&piece, "%d", ids->id[i]);
        else append_visible(&piece, t->token[ids->id[i]]);
        if (color) printf("\x1B[30;4%zum%s\x1B[0m%s", 1 + i % 6, piece.s, as_ids ? " " : "");
        else printf("%s%s", i ? "|" : "", piece.s);
        free(piece.s);
    }
    printf("\n");
}

// An OnMerge: the word with the new token in brackets, of a long word only the tokens beside it.
static void print_merge(const Tokenizer *t, const int *id, size_t n, size_t at, unsigned rank) {
    enum { BESIDE = 6 };
    size_t from = at > BESIDE ? at - BESIDE : 0, to = at + 1 + BESIDE;
    Text line = {0};
    if (from > 0) text_add(&line, "...|");
    for (size_t i = from; i < n && i < to; i++) {
        if (i > from) text_add(&line, "|");
        if (i == at) append_bracketed(&line, t->token[id[i]]);
        else append_visible(&line, t->token[id[i]]);
    }
    printf("    merge %5u makes %5d   %s%s\n", rank + 1, id[at], line.s, to < n ? "|..." : "");
    free(line.s);
}

// How one word is encoded: its bytes, and merge by merge what they become.
static void print_word(Tokenizer *t, const char *s, size_t n) {
    enum { SHOWN = 24 };
    int id[SHORT_WORD];
    Text word = {0};
    append_visible(&word, (Token){s, n});
    printf("\n\"%s\":", word.s);
    free(word.s);
    for (size_t i = 0; i < n && i < SHOWN; i++) printf(" %02X", (unsigned char)s[i]);
    printf(n > SHOWN ? " ...\n" : "\n");
    if (n > SHORT_WORD) {
        printf("    longer than %d bytes: not shown\n", SHORT_WORD);
        return;
    }
    for (size_t i = 0; i < n; i++) id[i] = t->byte_id[(unsigned char)s[i]];
    merge_short(t, id, n, print_merge);
}

static void cmd_show(const Options *o) {
    if (o->n_args != 1 || !*o->arg[0]) die("show needs one TEXT, in quotes if it has spaces");
    Tokenizer *t = open_tokenizer(o);
    const char *s = o->arg[0];
    size_t n = strlen(s), shown = 0;
    Ids ids = {0};
    tokenizer_encode(t, s, n, o->special, &ids);
    print_tokens(t, &ids, use_color(o), false);
    print_tokens(t, &ids, use_color(o), true);
    printf("%zu bytes / %zu tokens = %.2f bytes per token\n", n, ids.n, (double)n / (double)ids.n);

    for (size_t i = 0, len; i <= n; i++) { // the words before an added token or the end, then it
        int id = -1;
        for (int pass = 0; o->special && id < 0 && pass < PASSES; pass++)
            id = added_at(t, s + i, n - i, pass, &len);
        if (id < 0 && i < n) continue;
        for (size_t word; shown < i; shown += word) {
            word = pretoken(s + shown, i - shown, t->single_digits);
            print_word(t, s + shown, word);
        }
        if (id < 0) break;
        printf("\n\"%.*s\": an added token, id %d\n", (int)len, s + i, id);
        shown = i + len;
        i = shown - 1; // the loop adds 1
    }
    free(ids.id);
    tokenizer_free(t);
}

// Appends what a token says, filled up to 24 columns; a Chinese character takes two of them.
static void append_column(const Tokenizer *t, int id, Text *out) {
    size_t i = out->len, width = 0, len;
    append_visible(out, t->token[id]);
    for (int cp; i < out->len; i += len) {
        len = utf8_read(out->s + i, out->len - i, &cp);
        width += cp < 0x1100 ? 1 : 2;
    }
    text_printf(out, "%*s ", width < 24 ? (int)(24 - width) : 0, "");
}

// Appends a conversation's text: what is trained in green, or without colours in brackets.
static void append_runs(const Tokenizer *t, const Ids *ids, bool color, Text *out) {
    Utf8Stream stream = {0};
    bool was_trained = false;
    for (size_t i = 0; i <= ids->n; i++) { // the last round closes the last run
        bool trained = i < ids->n && ids->id[i] & TRAINED;
        if (trained != was_trained) {
            decode_end(&stream, out);
            if (color) text_add(out, trained ? "\x1B[32m" : "\x1B[0m");
            else text_add(out, trained ? "[" : "]");
        }
        was_trained = trained;
        if (i < ids->n) decode_token(t, ids->id[i] & ~TRAINED, &stream, out);
    }
    decode_end(&stream, out);
}

// Appends a conversation, and then each position: what is read there, whether its target counts,
// and the target, which is the next token.
static void show_record(Tokenizer *t, const Options *o, const Reader *r, Text *out) {
    Ids ids = {0};
    const char *error = encode_chat(t, r->json, messages_of(r->json), false, false, true, &ids);
    if (error) die("%s:%zu: %s", r->path, r->number, error);
    append_runs(t, &ids, use_color(o), out);
    text_printf(out, "\n%-8s %-24s %-6s target\n", "id", "token", "mask");
    for (size_t i = 0; i + 1 < ids.n; i++) {
        int id = ids.id[i] & ~TRAINED, target = ids.id[i + 1] & ~TRAINED;
        bool trained = ids.id[i + 1] != target;
        text_printf(out, "%-8d ", id);
        append_column(t, id, out);
        text_printf(out, "%-6d ", trained);
        if (trained) append_visible(out, t->token[target]);
        text_add(out, trained ? "\n" : "-\n");
    }
    free(ids.id);
}

// ---- vocab and stats ----------------------------------------------------------------------------

// Prints every token, as minbpe does: [token] id, or with the merge that makes it:
//
//     [人][工] -> [人工] 2072
static void cmd_vocab(const Options *o) {
    Tokenizer *t = open_tokenizer(o);
    uint64_t *made_of = xcalloc((size_t)t->vocab_size, sizeof *made_of); // 0: not made by a merge
    for (size_t i = 0; i < t->rank.n_slots; i++) {
        MapSlot slot = t->rank.slot[i];
        if (slot.key) made_of[t->merged.id[slot.value]] = slot.key;
    }
    for (int id = 0; id < t->vocab_size; id++) {
        Text line = {0};
        if (made_of[id]) {
            append_bracketed(&line, t->token[pair_left(made_of[id])]);
            append_bracketed(&line, t->token[pair_right(made_of[id])]);
            text_add(&line, " -> ");
        }
        append_bracketed(&line, t->token[id]);
        printf("%s %d\n", line.s, id);
        free(line.s);
    }
    free(made_of);
    tokenizer_free(t);
}

enum Script {
    LATIN, CYRILLIC, ARABIC, INDIC, KANA, CHINESE, KOREAN, OTHERS, NUMBERS, SIGNS, SCRIPTS
};
static const char *const script_name[SCRIPTS] = {
    "Latin letters", "Greek, Cyrillic", "Hebrew, Arabic", "India, Southeast Asia", "Japanese kana",
    "Chinese", "Korean", "other letters", "numbers", "signs and white space"};
static const struct { int from; enum Script script; } script_from[] = { // by code point
    {0, LATIN}, {0x370, CYRILLIC}, {0x530, OTHERS}, {0x590, ARABIC}, {0x900, INDIC},
    {0x10A0, OTHERS}, {0x1E00, LATIN}, {0x1F00, CYRILLIC}, {0x2000, OTHERS}, {0x3040, KANA},
    {0x3100, CHINESE}, {0xA000, OTHERS}, {0xAC00, KOREAN}, {0xD800, OTHERS}, {0x20000, CHINESE},
    {0x33480, OTHERS}};

// The script of a word: that of its first letter.
static enum Script script_of(const char *s, size_t n) {
    enum Script script = SIGNS;
    for (size_t i = 0, len; i < n; i += len) {
        int cp;
        len = utf8_read(s + i, n - i, &cp);
        if (cp >= 0 && char_class[cp] == NUMBER) script = NUMBERS;
        if (cp < 0 || char_class[cp] != LETTER) continue;
        for (size_t k = 0; k < sizeof script_from / sizeof *script_from; k++)
            if (cp >= script_from[k].from) script = script_from[k].script;
        return script;
    }
    return script;
}

typedef struct { size_t bytes[2], tokens[2]; } Count; // with the first and the second tokenizer
typedef struct { Tokenizer *tok[2]; Count file, all, script[SCRIPTS]; } Stats;

static void add_count(Count *c, int which, size_t bytes, size_t tokens) {
    c->bytes[which] += bytes;
    c->tokens[which] += tokens;
}

// A UseText: encodes the words one by one, with each tokenizer, as the two may cut differently.
static void measure_text(void *context, const char *s, size_t n) {
    Stats *stats = context;
    for (int which = 0; which < 2 && stats->tok[which]; which++) {
        Tokenizer *t = stats->tok[which];
        Ids ids = {0};
        for (size_t i = 0, len; i < n; i += len) {
            len = pretoken(s + i, n - i, t->single_digits);
            ids.n = 0;
            encode_word(t, s + i, len, &ids);
            add_count(&stats->script[script_of(s + i, len)], which, len, ids.n);
            add_count(&stats->file, which, len, ids.n);
            add_count(&stats->all, which, len, ids.n);
        }
        free(ids.id);
    }
}

static void print_count(const char *name, const Count *c) {
    if (!c->bytes[0]) return;
    printf("%-40s %12zu %12.3f", name, c->bytes[0], (double)c->bytes[0] / (double)c->tokens[0]);
    if (c->tokens[1]) printf(" %12.3f", (double)c->bytes[1] / (double)c->tokens[1]);
    printf("\n");
}

// More bytes per token mean fewer tokens for the same text. A tokenizer that has seen little
// Chinese cuts a Chinese character, three bytes, into two or three tokens; an English word is often
// one token. Special tokens are not looked for. A word counts for the script of its first letter.
static void cmd_stats(const Options *o) {
    Stats stats = {.tok = {open_tokenizer(o), o->and ? tokenizer_load(o->and) : NULL}};
    if (!o->n_args) die("stats: the name of a FILE is missing");
    printf("%-40s %12s  bytes per token%s\n", "", "bytes", o->and ? ": --tokenizer, --and" : "");
    for (size_t i = 0; i < o->n_args; i++) {
        Reader r = reader_open(o->arg[i]);
        stats.file = (Count){{0}, {0}};
        while (reader_next(&r)) reader_texts(&r, measure_text, &stats);
        print_count(o->arg[i], &stats.file);
        reader_close(&r);
    }
    for (int k = 0; k < SCRIPTS; k++) print_count(script_name[k], &stats.script[k]);
    print_count("all", &stats.all);
    for (int which = 0; which < 2; which++)
        if (stats.tok[which]) tokenizer_free(stats.tok[which]);
}

// ---- the table of commands ----------------------------------------------------------------------

static const Command commands[] = {
    {"train", 't', "[--vocab N] [--out DIR] FILE...", "learn N tokens", .run = cmd_train},
    {"encode", 'e', "[FILE...]", "{\"text\": ...} lines -> lines of ids", NULL, reader_next,
     encode_record},
    {"decode", 'd', "[FILE...]", "lines of ids -> JSON strings", NULL, reader_line, decode_line},
    {"chat", 'c', "[FILE...]", "conversations -> the texts that a model reads", NULL, reader_next,
     render_record},
    {"show", 's', "TEXT | --chat 1 [FILE...]", "how a text is cut; which tokens are trained",
     cmd_show, reader_next, show_record},
    {"vocab", 'v', "", "every token, with the merge that makes it", .run = cmd_vocab},
    {"stats", 'm', "[--and PATH] FILE...", "bytes per token, by file and by script",
     .run = cmd_stats},
};
enum { COMMANDS = sizeof commands / sizeof *commands };

// The command of this name; exits if there is none.
static const Command *find_command(const char *name) {
    const char *best = NULL;
    for (const Command *c = commands; c < commands + COMMANDS; c++) {
        if (!strcmp(c->name, name)) return c;
        suggest(name, c->name, &best);
    }
    if (best) die("there is no command %s; did you mean %s?", name, best);
    die("there is no command %s; see tokenizer help", name);
}

// Help for one command, or without one a list of all.
static void print_help(const char *name) {
    const Command *only = name ? find_command(name) : NULL;
    if (!only) printf("Byte-level BPE: text to tokens, and back.\n\n");
    for (const Command *c = commands; c < commands + COMMANDS; c++)
        if (!only || c == only)
            printf("    tokenizer %-6s %-34s %s\n", c->name, c->usage, c->meaning);
    if (only) print_options(option_table, OPTIONS, only->letter);
    else printf("\nThe options of a command: tokenizer help COMMAND. A switch takes 1 or 0.\n");
}

int main(int argc, char **argv) {
    const char *name = argc > 1 ? argv[1] : "help", *next = argc > 2 ? argv[2] : NULL;
    Options o = {.arg = xcalloc((size_t)argc + 1, sizeof *o.arg)};
    if (!strcmp(name, "--version")) printf("tokenizer %s\n", version);
    else if (!strcmp(name, "help") || !strcmp(name, "--help")) print_help(next);
    else if (next && !strcmp(next, "--help")) print_help(name);
    else {
        const Command *c = find_command(name);
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

// ---- the Unicode classes ------------------------------------------------------------------------

// The classes in Unicode 16.0, as lengths: so many code points outside, so many inside, and so on
// from U+0000. A length is a number in base 26, a = 0, z = 25, whose last digit is the small
// letter. Letters begin with "CnBagBa": Cn = 2 * 26 + 13 = 65 outside, Ba = 26 inside (A to Z), g =
// 6 outside, Ba = 26 inside (a to z). NEW_DIGIT are 13 numbers new in Unicode 17.0: Hugging Face's
// step Digits knows them, the pattern does not.
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
    [NEW_DIGIT] =
    "EEGukBFBud",
};
