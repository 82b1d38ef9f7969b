// A model answer for bpe.c. In the book (tokenizer.c): find_merges() and merge_short().

#include "whiteboard.h"

// Replaces the pair by the token `made`, from left to right. Returns how many ids are left.
static int replace(int *ids, int n, Merge pair, int made) {
    int out = 0; // out <= i: the list shrinks in place
    for (int i = 0; i < n; i++) {
        bool found = i + 1 < n && ids[i] == pair.left && ids[i + 1] == pair.right;
        ids[out++] = found ? made : ids[i];
        if (found) i++; // the right one is used up
    }
    return out;
}

int my_bpe_train(Merge *merge, int n_merges, int *ids, int n) {
    for (int m = 0; m < n_merges; m++) {
        Merge best = {0, 0};
        int most = 0;
        for (int i = 0; i + 1 < n; i++) {
            Merge pair = {ids[i], ids[i + 1]};
            if (pair.left < 0 || pair.right < 0) continue; // the end of a word
            int count = 0;
            for (int j = 0; j + 1 < n; j++)
                count += ids[j] == pair.left && ids[j + 1] == pair.right;
            bool smaller = pair.left < best.left ||
                           (pair.left == best.left && pair.right < best.right);
            if (count > most || (count == most && smaller)) {
                most = count;
                best = pair;
            }
        }
        if (most == 0) return m;
        merge[m] = best;
        n = replace(ids, n, best, 256 + m);
    }
    return n_merges;
}

int my_bpe_encode(int *ids, int n, const Merge *merge, int n_merges) {
    while (true) {
        int lowest = n_merges; // the rank of the pair that was learned first
        for (int i = 0; i + 1 < n; i++)
            for (int m = 0; m < lowest; m++)
                if (merge[m].left == ids[i] && merge[m].right == ids[i + 1]) lowest = m;
        if (lowest == n_merges) return n;
        n = replace(ids, n, merge[lowest], 256 + lowest);
    }
}

// Say while you write:
//   - This costs O(n^2) per merge. A hash table of counts makes it O(n). Better: keep the counts,
//     change only those beside a merge, and find the largest with a heap. tokenizer.c does that.
//   - Encoding replays the merges by rank; the longest token that fits is not always the result.
//   - Byte-level: any text is a list of bytes, so no text is unknown.
