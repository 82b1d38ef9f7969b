# naive_bpe.awk: the first merges of a text, found by the definition: count all pairs, merge the
# most frequent one everywhere, and count again. It is the oracle for tokenizer.c.
#
#     LC_ALL=C awk -v merges=300 -f notes/lab/naive_bpe.awk TEXT
#
# The text may hold letters, single spaces and line ends only: then a pre-token is a word with the
# space before it, or a line end. Prints a merge per line, its two tokens in byte symbols.

BEGIN { # bytes have ids in the order of their symbols: the printable ones come first
    for (unprintable = 0; unprintable < 2; unprintable++)
        for (b = 1; b < 256; b++)
            if (unprintable != (b > 32 && b < 127 || b > 160 && b != 173)) {
                cp = unprintable ? 257 + others++ : b # byte 0, which no text here has, is 256
                byte = sprintf("%c", b)
                symbol[byte] = byte
                if (cp > 127) symbol[byte] = sprintf("%c%c", 192 + int(cp / 64), 128 + cp % 64)
                id[byte] = n_ids++
            }
}

function symbols(token,    i, s) {
    for (i = 1; i <= length(token); i++) s = s symbol[substr(token, i, 1)]
    return s
}

{
    n = split($0, part, " ")
    for (i = 1; i <= n; i++) count[(i > 1 ? " " : "") part[i]]++
}

END {
    for (w in count) # a word is a list of tokens with "\n" around each
        for (i = 1; i <= length(w); i++) word[w] = word[w] "\n" substr(w, i, 1)
    for (m = 0; m < merges; m++) {
        split("", pairs)
        for (w in word) {
            n = split(word[w], token, "\n") # token[1] is empty
            for (i = 2; i < n; i++) pairs[token[i] "\n" token[i + 1]] += count[w]
        }
        best = ""
        for (pair in pairs) {
            split(pair, t, "\n")
            if (best == "" || pairs[pair] > most || pairs[pair] == most && \
                (id[t[1]] < id[left] || t[1] == left && id[t[2]] < id[right])) {
                best = pair; most = pairs[pair]; left = t[1]; right = t[2]
            }
        }
        if (best == "") break
        print symbols(left) " " symbols(right)
        if (!(left right in id)) id[left right] = n_ids++
        for (w in word) {
            n = split(word[w], token, "\n")
            word[w] = ""
            for (i = 2; i <= n; i++)
                if (i < n && token[i] == left && token[i + 1] == right)
                    word[w] = word[w] "\n" left token[++i]
                else word[w] = word[w] "\n" token[i]
        }
    }
}
