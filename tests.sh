#!/bin/sh
# Every test, one line each, and "N passed, N failed" at the end; exit status 1 if any failed.
#
#     ./tests.sh                  all groups, about five minutes on two cores
#     ./tests.sh train files      some groups; each builds the programs that it needs
#     ./tests.sh --stop train     ends at the first failure; compiles quickly, for slow programs
#
# The groups are listed below; tests.sh runs them in this order.
#
# Needed are a C compiler and POSIX tools. Tests that need gcc, clang, gdb, valgrind or the folder
# ../shared (other people's data, not part of this repository) are left out where they are missing,
# and a line says so. Everything is built and written in a temporary folder. notes/lab/faults.sh
# tests the tests: it puts faults into the sources, and each must turn its group red.

all_groups="build tokenizer template check golden world data train files talk options stages notes
    memory shared"
root=$(cd "$(dirname "$0")" && pwd)
shared=$root/../shared
export golden=$root/notes/golden/tokenizer # a tokenizer, texts and their ids; see its README.md
export fffd=$(printf '\357\277\275') # U+FFFD, for bytes that are not UTF-8
started=$(date +%s)
tmp=$(mktemp -d) || exit 1
trap 'rm -rf "$tmp"' EXIT
trap 'exit 1' INT TERM
cd "$tmp" && mkdir lab || exit 1
PATH=$tmp:$PATH
export ASAN_OPTIONS=detect_leaks=0
export OMP_WAIT_POLICY=passive # waiting threads leave their cores to other programs
passed=0 failed=0 stop=

# ---- how a test is written ----------------------------------------------------------------------

group() { printf '\n%s\n' "$1"; }
left_out() { echo "left out: $1"; }
have() { command -v "$1" >/dev/null 2>&1; }

finish() {
    printf '\n%d passed, %d failed (%d seconds)\n' $passed $failed $(($(date +%s) - started))
    [ $failed -eq 0 ]
    exit
}

# check NAME COMMAND...: the command succeeds. What it printed is shown only if it did not.
check() {
    test_name=$1
    shift
    if "$@" >log 2>&1; then
        passed=$((passed + 1))
        echo "  ok      $test_name"
    else
        failed=$((failed + 1))
        echo "  FAILED  $test_name"
        tail -5 log | cut -c 1-300 | sed 's/^/          /'
        [ -z "$stop" ] || finish
    fi
}

# refuses NAME TEXT COMMAND...: exit status 1, and the last line on stderr is the one message of the
# program, "minimind: ..." or "tokenizer: ...", and contains TEXT.
refuses() {
    refused=$1 text=$2
    shift 2
    "$@" >out.txt 2>err.txt
    echo "exit status $?" >>out.txt
    check "$refused" sh -c 'cat err.txt; tail -1 out.txt; grep -q "exit status 1$" out.txt &&
        test $(grep -cE "^(minimind|tokenizer|grpo): " err.txt) -eq 1 &&
        tail -1 err.txt | grep -qF -- "$1"' sh "$text"
}

# says NAME EXPECTED COMMAND...: succeeds and prints exactly that.
says() {
    said=$1
    printf '%s\n' "$2" >expected.txt
    shift 2
    "$@" >got.txt 2>err.txt
    echo "exit status $?" >>err.txt
    check "$said" sh -c 'cat err.txt && tail -1 err.txt | grep -q "exit status 0$" &&
        { test "$(cat expected.txt)" = "$(cat got.txt)" || { diff expected.txt got.txt; false; }; }'
}

# same NAME FILE FILE, differ NAME FILE FILE: what is in them.
same() { check "$1" cmp "$2" "$3"; }
differ() { check "$1" sh -c 'test -s "$1" && test -s "$2" && ! cmp -s "$1" "$2"' sh "$2" "$3"; }

# ended: the program $running ends within ten seconds, with exit status 0; else it is killed.
ended() {
    tries=0
    while kill -0 $running 2>/dev/null; do
        tries=$((tries + 1))
        if [ $tries -gt 100 ]; then kill -KILL $running; return 1; fi
        sleep 0.1
    done
    wait $running
}

# ---- building -----------------------------------------------------------------------------------

trivial='int main(void) {return 0;}'
probe() { echo "$trivial" | cc "$@" -x c - -o probe 2>/dev/null && ./probe; }
probe -march=native && native=-march=native || native=
probe -fopenmp && openmp=-fopenmp || openmp=
fast="-O3 $native $openmp"
double=$(sed -n 's/^DOUBLE = //p' "$root/Makefile")
sanitize='-O1 -g -fsanitize=address,undefined -fno-sanitize-recover=all'
probe $sanitize || sanitize=

compile() { # compile PROGRAM COMPILER FLAG...
    case $1 in
    lab/*) source=notes/lab/$(echo "${1#lab/}" | sed 's/-.*//').c ;;
    *) source=${1%%-*}.c ;;
    esac
    program=$1
    shift
    "$@" -o "$tmp/$program" "$root/$source" -lm
}

# need PROGRAM...: builds those that are not there yet. NAME-san has sanitizers, NAME-double double
# for float, NAME-debug no optimisation.
need() {
    for wanted in "$@"; do
        [ ! -x "$wanted" ] || continue
        case $wanted in
        *-san) flags=$sanitize ;;
        *-double) flags="$fast $double" ;;
        *-debug) flags='-O0 -g3' ;;
        tokenizer) flags="-O2 $native" ;;
        *) flags=$fast ;;
        esac
        compile "$wanted" cc $flags >log 2>&1 || check "build $wanted" cat log nothing
    done
}

group_build() {
    group "Building: no warning from any compiler"
    strict='-std=c11 -Wall -Wextra -Wpedantic -Wshadow -Werror -O2'
    sources="tokenizer minimind notes/lab/check notes/lab/bench notes/lab/grpo notes/lab/world
        notes/lab/choice"
    for cc in gcc clang; do
        have $cc || left_out "$cc is not installed"
        for source in $sources; do
            if have $cc; then echo "$cc $strict -o $cc-${source##*/} $root/$source.c -lm"; fi
        done
    done | tee commands | grep '^left out'
    grep -v '^left out' commands | xargs -P 2 -I '{}' sh -c '{} >"$(echo "{}" |
        sed "s/.*-o \([^ ]*\) .*/\1/").log" 2>&1'
    for log in *.log; do
        built=${log%.log}
        check "${built%%-*}: ${built#*-}.c" sh -c 'cat "$1.log"; test -x "$1"' sh "$built"
    done
    check "the one command" compile minimind-one cc -O3 $native
    check "no line has more than 100 columns" env LC_ALL=C sh -c "$(cat <<'AWK'
awk '{gsub(/[\200-\277]/, "")} length > 100 {print FILENAME ": " FNR; bad = 1} END {exit bad}' "$@"
AWK
)" sh $(find "$root"/*.c "$root/tests.sh" "$root/notes/lab" "$root/notes/gdb" -name '*.c' \
        -o -name '*.h' -o -name '*.sh' -o -name '*.awk' -o -name '*.gdb')
}

# ---- the tokenizer ------------------------------------------------------------------------------

train() { tokenizer train --vocab "$1" --out "$2" "$3"; }
encode() { tokenizer encode --tokenizer "$@"; }

merges() { # the merges of a tokenizer.json, one a line as "a b"
    sed -n '/"merges"/,$p' "$1" | sed '1d; s/^\["//; s/"\][],}]*$//; s/", "/ /
        s/\\\(["\\]\)/\1/g'
}

vector() { # vector KEY: a list of numbers in each line of encode.jsonl
    sed "s/.*\"$1\": \[\([^]]*\)\].*/\1/; s/,//g" "$golden/encode.jsonl"
}

# Texts made of random pieces: every order of letters, spaces, marks and scripts.
random_texts() {
    awk 'BEGIN {
        n = split("a b e s t th the in er ing 1 2 30 . , ! ( ) \" - # = 的 小 河 了 。 ， é ü я мо ا न " \
            "น 😀 ½ ٣ 3 <|im_end|> <think> </think> <|im 人 ha haha", piece, " ")
        split("'"'s|'ll|'re|'|  | |   |\t|\302\240|\343\200\200|\r|_| "'", more, "|")
        for (i = 1; i in more; i++) piece[++n] = more[i]
        for (line = 0; line < 3000; line++) {
            text = ""
            for (k = line % 60; k >= 0; k--) {
                x = (x + 12345) * 16807 % 2147483647
                text = text piece[1 + x % n]
            }
            print text
        }
    }'
}

# Every character before 1, a and !. The tokenizer classes.json has a merge for each byte with each
# of these three, so the ids show to which class the pattern counts the character.
all_characters() {
    LC_ALL=C awk 'BEGIN {
        for (cp = 1; cp < 262144; cp++) {
            if (cp == 10 || cp >= 55296 && cp < 57344) continue # a line end; surrogates
            c = sprintf("%c", 128 + cp % 64)
            if (cp < 128) c = sprintf("%c", cp)
            else if (cp < 2048) c = sprintf("%c", 192 + int(cp / 64)) c
            else if (cp < 65536)
                c = sprintf("%c%c", 224 + int(cp / 4096), 128 + int(cp / 64) % 64) c
            else c = sprintf("%c%c%c", 240 + int(cp / 262144), 128 + int(cp / 4096) % 64,
                             128 + int(cp / 64) % 64) c
            print c "a" c "1" c "!"
        }
    }'
}

naive_merges() { # naive_merges N TEXT OUTPUT
    LC_ALL=C awk -v merges="$1" -f "$root/notes/lab/naive_bpe.awk" "$2" >"$3" && [ -s "$3" ]
}

# bad_json NAME LINE: the line is refused with its number.
bad_json() {
    printf '{"text": "good"}\n\n%s\n' "$2" >bad.jsonl
    refuses "JSON: $1" "bad.jsonl:3" encode "$golden" bad.jsonl
}

# broken NAME TEXT SED...: the golden tokenizer, edited, is refused; the message contains TEXT.
broken() {
    sed "$3" "$golden/tokenizer.json" >broken.json
    differ "an edit of tokenizer.json" broken.json "$golden/tokenizer.json" >edited.txt
    grep -v '  ok' edited.txt
    refuses "$1" "$2" sh -c 'echo x | tokenizer encode --tokenizer broken.json'
}

group_tokenizer() {
    group "Tokenizer: the same ids and merges as Hugging Face's tokenizers"
    need tokenizer
    vector ids >want.txt
    encode "$golden" "$golden/encode.jsonl" >ids.txt 2>log
    same "ids of texts in many scripts" want.txt ids.txt
    sed 's/^{"text": \(.*\), "ids": .*/\1/' "$golden/encode.jsonl" >want.txt
    tokenizer decode --tokenizer "$golden" ids.txt >got.txt 2>log
    same "ids become the texts again" want.txt got.txt
    random_texts >random.txt
    encode "$golden" random.txt >random.ids 2>log
    says "ids of 3000 random texts" "205850320 434684" cksum_of random.ids
    all_characters >characters.txt
    encode "$golden/classes.json" characters.txt >characters.ids 2>log
    says "letters, numbers and spaces of Unicode" "2024444289 14003020" cksum_of characters.ids
    digits='{"type":"Digits","individual_digits":true}'
    steps='{"type":"Sequence","pretokenizers":['$digits
    sed 's/\("pre_tokenizer":\)\({[^}]*}\)/\1'"$steps"',\2]}/' "$golden/classes.json" >digits.json
    encode digits.json characters.txt >characters.ids 2>log
    says "the same with single digits" "4150894594 14008579" cksum_of characters.ids

    group "Tokenizer: training"
    check "train" train 1000 own "$golden/train.txt"
    merges own/tokenizer.json >got.txt
    same "the merges that Hugging Face finds" "$golden/merges.txt" got.txt
    vector ids >want.txt
    encode own "$golden/encode.jsonl" >got.txt 2>log
    same "the tokenizer that was trained gives the same ids" want.txt got.txt
    check "train with single digits" tokenizer train --vocab 600 --single-digits 1 --out digits \
        "$golden/train.txt"
    merges digits/tokenizer.json >got.txt
    same "the merges that Hugging Face finds with single digits" "$golden/merges_digits.txt" got.txt
    vector digits >want.txt
    encode digits "$golden/encode.jsonl" >got.txt 2>log
    same "ids with single digits" want.txt got.txt
    sed 's/[^a-zA-Z]\{1,\}/ /g; s/^ //; s/ $//' "$golden/train.txt" >words.txt
    awk 'BEGIN {for (i = 0; i < 400; i++) {
        word = ""
        for (k = i % 9; k >= 0; k--) {
            x = (x + 12345) * 16807 % 2147483647
            word = word substr("aaab", 1 + x % 4, 1 + x % 2)
        }
        printf "%s%s", word, i % 10 == 9 ? "\n" : " "
    }}' >ties.txt
    for text in words ties; do
        check "a naive trainer, in awk: $text" naive_merges 250 $text.txt want.txt
        train $((292 + $(wc -l <want.txt))) naive $text.txt 2>log
        merges naive/tokenizer.json >got.txt
        same "finds the same merges" want.txt got.txt
    done
    printf 'low low lower\n' >low.txt
    check "all merges that a text has" train 5000 few low.txt
    says "merges in order" "l o,lo w,Ġ low,e r,Ġlow er," sh -c '
        sed -n "/\"merges\"/,\$p" few/tokenizer.json | tr -d "[]{}\"\n" |
        sed "s/.*merges: //; s/, \([^,]*\)/ \1/g" | tr -s " " | sed "s/$/,/"'
    printf '{"text": "low low lower\\n"}\n' >1.jsonl
    printf '{"conversations": [{"role": "user", "content": "low low lower\\n"}]}\n' >2.jsonl
    printf '{"conversations": [{"role": "assistant", "content": "low",
        "reasoning_content": " low lower\\n"}]}\n' | tr -d '\n' >3.jsonl
    printf '{"chosen": [{"content": "low"}], "rejected": [{"content": " low lower\\n"}]}\n' >4.jsonl
    echo '{"messages": [{"role": "user", "content": "low low lower\\n"}]}' >5.jsonl
    for i in 1 2 3 4 5; do
        train 5000 from$i $i.jsonl 2>log
        same "JSONL, kind $i" few/tokenizer.json from$i/tokenizer.json
    done
    printf 'low low' >half1.txt
    printf ' lower\n' >half2.txt
    check "several files" tokenizer train --vocab 5000 --out from5 half1.txt half2.txt
    same "the same merges" few/tokenizer.json from5/tokenizer.json
    printf '\n{"text": "low low lower\\n"}\n\n' >blank.jsonl
    train 5000 from6 blank.jsonl 2>log
    same "blank lines in JSONL" few/tokenizer.json from6/tokenizer.json
    printf '\357\273\277low low lower\n' >mark.txt
    train 5000 from7 mark.txt 2>log
    same "a byte order mark is skipped" few/tokenizer.json from7/tokenizer.json

    group "Tokenizer: encoding and decoding"
    says "an empty word cache and a full one" "1000 of 1000" sh -c '
        awk "BEGIN {for (i = 0; i < 71000; i++) print \"w\" i % 70000 \"q the river\"}" >many.txt
        tokenizer encode --tokenizer "$1" many.txt >many.ids || exit 1
        head -1000 many.ids >first.ids && tail -1000 many.ids >last.ids
        echo "$(paste -d : first.ids last.ids | awk -F : "\$1 == \$2" | wc -l | tr -d " ") of 1000"
    ' sh "$golden"
    sed 's/<|buffer1|>/<tool/g' "$golden/tokenizer.json" >longest.json
    says "of two added tokens the longer one" "21 27 22" sh -c \
        'echo "{\"text\": \"<tool_call><tool</tool_call>\"}" |
         tokenizer encode --tokenizer longest.json'
    printf 'river\n' >river.txt
    printf '\357\273\277river\n' >mark.txt
    encode "$golden" river.txt >want.txt 2>log
    encode "$golden" mark.txt >got.txt 2>log
    same "a byte order mark is no text" want.txt got.txt
    says "bytes that are not UTF-8" \
        '"a\ufffdb\ufffd\ufffdc\ufffd\ufffd\ufffdd\ufffd|\ufffd\ufffde"' \
        sh -c 'printf "a\344\275b\300\200c\355\240\200d\360\237\230|\365\377e" |
            tokenizer encode --tokenizer "$1" | tokenizer decode --tokenizer "$1" |
            sed "s/$fffd/\\\\ufffd/g"' sh "$golden"
    says "half a character at the end" '"a?"' sh -c \
        'echo 100 196 | tokenizer decode --tokenizer "$golden" | sed "s/$fffd/?/g"'
    says "ids on several lines, and blank ones" '"a"|""|"bc"|' sh -c \
        'printf "100\n\n 101\t102 \r\n" | tokenizer decode --tokenizer "$golden" | tr "\n" "|"'
    refuses "an id that is no token" '1000' sh -c \
        'echo 5 1000 | tokenizer decode --tokenizer "$1"' sh "$golden"
    refuses "a negative id" '-1' sh -c 'echo -1 | tokenizer decode --tokenizer "$1"' sh "$golden"
    refuses "a word among the ids" 'x7' sh -c 'echo 3 x7 | tokenizer decode --tokenizer "$1"' sh \
        "$golden"
    says "--special 0: special tokens in a text are text" "2|63 127 108 112 98 881 127 65" \
        sh -c 'for special in 1 0; do
            echo "{\"text\": \"<|im_end|>\"}" | tokenizer encode --tokenizer "$1" --special $special
        done | paste -s -d "|" -' sh "$golden"
    check "show: the tokens, their ids and how a word is merged" sh -c \
        'tokenizer show --tokenizer "$1" "the river" >out.txt && grep -q "t|he| ri|ver" out.txt &&
         grep -q "119|295|672|428" out.txt && grep -q "merge  *381 makes  *672" out.txt' sh \
        "$golden"
    check "no colours in a pipe" sh -c \
        '! tokenizer show --tokenizer "$1" "the river" | grep -q "\[0m"' sh "$golden"
    check "vocab" sh -c \
        'tokenizer vocab --tokenizer "$golden" | grep -q "\[h\]\[e\] -> \[he\] 295"'
    says "stats" "$(wc -c <"$golden/train.txt" | tr -d ' ')" sh -c \
        'tokenizer stats --tokenizer "$1" "$1/train.txt" | grep -m 1 -o "\b6429\b"' sh "$golden"
    check "train --verbose 1 prints each merge" sh -c \
        'tokenizer train --vocab 294 --out v --verbose 1 low.txt | grep -c times | grep -qx 2'

    group "Tokenizer: JSON"
    says "escapes of the highest code points" "$(printf '"\356\200\200\364\217\277\277"')" sh -c \
        'printf "%s\n" "{\"text\": \"\\ue000\\udbff\\udfff\"}" |
         tokenizer encode --tokenizer "$golden" | tokenizer decode --tokenizer "$golden"'
    says "escapes" '"é😀/\b\f\n\r\t\"\\A"' sh -c \
        'printf "%s\n" "{\"text\": \"\\u00e9\\uD83D\\ude00\\/\\b\\f\\n\\r\\t\\\"\\\\\\u0041\"}" |
         tokenizer encode --tokenizer "$1" | tokenizer decode --tokenizer "$1"' sh "$golden"
    says "half a surrogate pair" '"?x?y??z"' sh -c \
        'printf "%s\n" "{\"text\": \"\\ud83dx\\ude00y\\ud83d\\ud83dz\"}" |
         tokenizer encode --tokenizer "$1" | tokenizer decode --tokenizer "$1" |
         sed "s/$fffd/?/g"' sh "$golden"
    says "other members, nesting, the last of equal keys" '"yes"' sh -c \
        'echo "{\"a\": [1, -2.5e+3, {\"b\": [[], {}, null, true, false]}], \"text\": \"no\",
         \"text\":\"yes\" , \"c\": 0}" | tr -d "\n" | tokenizer encode --tokenizer "$1" |
         tokenizer decode --tokenizer "$1"' sh "$golden"
    bad_json "cut off" '{"text": "a'
    bad_json "a comma too many" '{"text": "a",}'
    bad_json "no comma" '{"text": "a" "b": 1}'
    bad_json "no colon" '{"text" "a"}'
    bad_json "a leading zero" '{"text": "a", "b": 012}'
    bad_json "a number that ends in a dot" '{"text": "a", "b": 1.}'
    bad_json "a wrong word" '{"text": "a", "b": nul}'
    bad_json "a wrong escape" '{"text": "\x"}'
    bad_json "hexadecimal digits" '{"text": "\u12g4"}'
    bad_json "a tab in a string" '{"text": "a	b"}'
    bad_json "something after it" '{"text": "a"} x'
    bad_json "brackets that do not match" '{"text": "a", "b": [1}'
    bad_json "a number without digits" '{"text": "a", "b": -}'
    bad_json "no object" '["text"]'
    bad_json "no text" '{"foo": 1}'
    bad_json "a text that is a number" '{"text": 5}'
    open=$(printf '%0300d' 0 | tr 0 '[') close=$(printf '%0300d' 0 | tr 0 ']')
    bad_json "300 brackets" "{\"text\": \"a\", \"b\": $open$close}"

    group "Tokenizer: files"
    refuses "a vocabulary smaller than bytes and special tokens" "vocab" train 10 bad low.txt
    : >empty.txt
    refuses "an empty file" "empty.txt" train 300 bad empty.txt
    refuses "a file that is not there" "nowhere.txt" train 300 bad nowhere.txt
    refuses "no tokenizer there" "nowhere" sh -c 'echo x | tokenizer encode --tokenizer nowhere'
    refuses "an unknown option" "--foo" encode "$golden" --foo x
    refuses "an unknown command" "dance" tokenizer dance
    head -c 3000 "$golden/tokenizer.json" >cut.json
    refuses "a tokenizer cut off" "cut.json" sh -c 'echo x | tokenizer encode --tokenizer cut.json'
    broken "another kind of model" "model" 's/"BPE"/"WordPiece"/'
    broken "dropout" "dropout" 's/"dropout":null/"dropout":0.1/'
    broken "a prefix of words" "prefix" 's/"continuing_subword_prefix":null/'\
'"continuing_subword_prefix":"##"/'
    broken "another normalizer" "normalizer" \
        's/"normalizer":null/"normalizer":{"type":"Lowercase"}/'
    broken "another way to cut text" "pre_tokenizer" \
        's/"pre_tokenizer":{"type":"ByteLevel"/"pre_tokenizer":{"type":"Whitespace"/'
    broken "a space before the text" "add_prefix_space" \
        's/"add_prefix_space":false/"add_prefix_space":true/'
    broken "an id that two tokens have" "twice" 's/:401,/:400,/'
    broken "a token that has two ids" "two ids" 's/"<|box_end|>"/"<|box_start|>"/g'
    broken "an id too high" "" 's/:999}/:1999}/'
    broken "an id that is not whole" "" 's/:401,/:401.5,/'
    broken "a merge of unknown tokens" "merge" 's/"merges":\[/&["zq","qz"],/'
    broken "a merge twice" "merge" 's/"merges":\[\(\["[^]]*"\]\)/"merges":[\1,\1/'
    broken "a merge of three" "merge" 's/"merges":\[\[\("[^]]*"\)\]/"merges":[[\1,"a"]/'
    broken "no token for a byte" "byte" 's/"é":\([0-9]*\)/"éé":\1/'
    sed 's/\("merges":\)\[\(.*\)\]}}/\1\n\2/' "$golden/tokenizer.json" | sed '2{s/\["/"/g
        s/","/ /g; s/"\]/"/g; s/$/]}}/; s/^/[/;}' | tr -d '\n' >old.json
    vector ids >want.txt
    encode old.json "$golden/encode.jsonl" >got.txt 2>log
    same "merges in the old form \"a b\"" want.txt got.txt
    mkdir -p kept && train 400 kept low.txt 2>log
    ln kept/tokenizer.json old_link && cp old_link old_copy
    train 294 kept low.txt 2>log
    same "a file is replaced, not written over" old_link old_copy
    cp kept/tokenizer.json old_copy
    refuses "a disk that is full" "kept/tokenizer.json" sh -c \
        'trap "" XFSZ; ulimit -f 8; tokenizer train --vocab 1000 --out kept "$1"' sh \
        "$golden/train.txt"
    same "the old file stays" kept/tokenizer.json old_copy
    says "and nothing else" "tokenizer.json tokenizer_config.json " sh -c \
        'ls kept | grep -v jinja | tr "\n" " "'
    refuses "results that cannot be written" "" sh -c \
        'tokenizer encode --tokenizer "$1" "$1/encode.jsonl" >/dev/full' sh "$golden"
}

cksum_of() { cksum <"$1"; }

# ---- the chat template --------------------------------------------------------------------------

# The targets that train, one a line, as `show --chat 1` lists them.
trained_of() {
    tokenizer show --tokenizer "$golden" --chat 1 "$1" | awk '/^[0-9]/ && $3 == 1 {print $4}'
}

bad_chat() { # bad_chat NAME RECORD
    printf '%s\n' "$2" >bad_chat.jsonl
    refuses "$1" "bad_chat.jsonl:1" tokenizer chat --tokenizer "$golden" bad_chat.jsonl
}

group_template() {
    group "Chat template and mask"
    need tokenizer
    sed 's/.*"rendered": //; s/}$//' "$golden/chat.jsonl" >want.txt
    tokenizer chat --tokenizer "$golden" "$golden/chat.jsonl" >got.txt 2>log
    same "conversations as MiniMind's template renders them" want.txt got.txt
    echo '{"messages": [{"role": "user", "content": "1+1?"},
        {"role": "assistant", "content": "2"}]}' | tr -d '\n' >chat.jsonl
    says "trained: from <think> to <|im_end|>, and nothing else" \
        "<think>|\n|\n|</think>|\n|\n|2|<|im_end|>|" sh -c \
        'tokenizer show --tokenizer "$1" --chat 1 chat.jsonl |
         awk "/^[0-9]/ && \$3 == 1 {printf \"%s|\", \$4} END {print \"\"}"' sh "$golden"
    bad_chat "an unknown role" '{"messages": [{"role": "wizard", "content": "x"}]}'
    bad_chat "no role" '{"messages": [{"content": "x"}]}'
    bad_chat "no messages" '{"messages": []}'
    bad_chat "messages that are no list" '{"messages": "x"}'
    bad_chat "none at all" '{"text": "x"}'
    bad_chat "tool calls that are no JSON" \
        '{"messages": [{"role": "assistant", "content": "", "tool_calls": "[{"}]}'
    bad_chat "tools that are no JSON" \
        '{"messages": [{"role": "system", "content": "", "tools": "[{"}]}'
    bad_chat "a NUL in a message" '{"messages": [{"role": "user", "content": "a\u0000b"}]}'
}

# ---- the mathematics ----------------------------------------------------------------------------

all_ok() { # all_ok CHECK OPTION...: the lines that are not ok are shown
    "$@" ${stop:+--stop 1} >check.txt 2>&1
    status=$?
    grep -v '^ok' check.txt | head -5
    return $status
}

group_check() {
    group "Gradients, pairs, decoding, training, files: notes/lab/check.c"
    need lab/check-double
    check "everything, double: differences to 1e-6" all_ok lab/check-double --threads 1
    need lab/check
    check "everything, float, all threads" all_ok lab/check
    check "the definitions themselves, double" all_ok lab/check-double --plain 1
}

group_golden() {
    group "Golden numbers"
    need lab/check
    for file in "$root"/notes/golden/*.txt; do
        check "$(basename "$file" .txt)" all_ok lab/check --threads 1 "$file"
    done
    check "all of them by the definitions" all_ok lab/check --plain 1 "$root/notes/golden"
    moe=$root/notes/golden/c_moe_top2.txt
    lab/check --threads 1 "$moe" >one.txt
    lab/check "$moe" >many.txt
    same "the same digits with one thread and with all" one.txt many.txt
    { cat "$moe"; printf 'surprise\t1\n'; } >unknown.txt
    check "an unknown key is reported" sh -c \
        '! lab/check unknown.txt >log2 && grep -q surprise log2'
    sed 's/^loss_ce\t[0-9.]*/loss_ce\t1.0/' "$moe" >wrong.txt
    check "a wrong number is found" sh -c \
        '! lab/check wrong.txt >log2 && grep -q "FAILED loss_ce" log2'
    echo '# nothing' >nothing.txt
    check "a file without a record is reported" sh -c '! lab/check nothing.txt'
}

# ---- the tiny world -----------------------------------------------------------------------------

make_world() { # the files world/*.jsonl and their tokenizer, tok
    need lab/world tokenizer
    [ -d world ] || lab/world --out world --documents 3000 --seed 3 2>log
    [ -d tok ] || tokenizer train --vocab 1000 --out tok world/pretrain.jsonl 2>log
}

group_world() {
    group "The tiny world"
    make_world
    check "once more" lab/world --out again --documents 3000 --seed 3
    same "the same seed gives the same texts" world/pretrain.jsonl again/pretrain.jsonl
    lab/world --out other --documents 3000 --seed 4 2>log
    differ "another seed gives others" world/pretrain.jsonl other/pretrain.jsonl
    check "no held-out text is trained on" sh -c \
        'sort -u world/pretrain.jsonl >a.txt; sort -u world/pretrain_held_out.jsonl >b.txt
         test -s b.txt && test -z "$(comm -12 a.txt b.txt)"'
    check "no held-out sum is trained on, in any order or wording" sh -c \
        'sums() { cat "$@" | grep -oE "[0-9]+[+][0-9]+(=[?]|:)" | tr "+=?:" "    " |
             awk "{print (\$1 < \$2 ? \$1 \" \" \$2 : \$2 \" \" \$1)}" | sort -u; }
         cd world && sums pretrain.jsonl again.jsonl reason.jsonl few.jsonl grpo.jsonl >../a.txt
         sums reason_held_out.jsonl grpo_held_out.jsonl >../b.txt
         test -s ../b.txt && test -z "$(comm -12 ../a.txt ../b.txt)"'
    turns() { awk '{print gsub(/"role": "user"/, "")}' "$@" | sort -u | tr '\n' ' '; }
    says "conversations have one to four turns" "1 2 3 4 " turns world/sft.jsonl
    says "the third turn is measured in files of its own" "3 " turns \
        world/sft_held_out_turn_3.jsonl world/reason_held_out_turn_3.jsonl
}

# ---- data ---------------------------------------------------------------------------------------

small='--hidden-size 32 --num-hidden-layers 1 --max-position-embeddings 1000'
use_golden="--tokenizer $golden"

# The ids in files of the cache, on one line; "+" before those that are trained.
cached() {
    cat "$@" | od -An -v -t d4 | awk '{
        for (i = 1; i <= NF; i++) printf "%s ", $i < 1073741824 ? $i : "+" $i - 1073741824
    } END {print ""}'
}

tokenise() { # tokenise COMMAND FILE OPTION...: one step on the file, with nothing held out
    rm -rf out
    step=$1 file=$2
    shift 2
    minimind $step --data "$file" --held-out "$file" $use_golden --steps 1 --out tmp $small "$@"
}

caches() { ls out/cache/*.ids | wc -l | tr -d ' '; }

# sft with one step, whose options are given; then the number of files in the cache.
cache_after() {
    minimind sft $use_golden --steps 1 --out tmp $small "$@" && caches
}

documents() { # documents N: a text per line
    awk -v n="$1" 'BEGIN {for (i = 1; i <= n; i++) {
        a = i * 7919 % 900 + 100
        printf "{\"text\": \"the sum of %d and %d is %d\"}\n", a, i, a + i
    }}'
}

group_data() {
    group "Data: tokens, masks, the cache"
    need minimind
    grep -v add_generation_prompt "$golden/chat.jsonl" >chats.jsonl
    tr '\n' ' ' <"$golden/chat_ids.txt" >want.txt
    check "sft on conversations" tokenise sft chats.jsonl --seq 999
    says "their ids, and which of them train" "$(cat want.txt)" cached out/cache/*.ids
    vector ids | sed 's/^/1 /; s/$/ 2/; s/  */ /g; s/[0-9][0-9]*/+&/g' | tr '\n' ' ' >want.txt
    mkdir -p ends && sed 's/"vocab":{/&"ĊĊ":1000,/; s/"merges":\[/&["Ċ","Ċ"],/' \
        "$golden/tokenizer.json" >ends/tokenizer.json
    head -1 chats.jsonl >hello.jsonl
    check "a token for two line ends" minimind sft --data hello.jsonl --held-out hello.jsonl \
        --tokenizer ends --steps 1 --out tmp $small
    says "is used as in a prompt: the answer begins behind it" "+26 +1000 +" sh -c \
        'echo "$1" | grep -o "+26 +1000 +"' sh "$(cached "$(ls -t out/cache/*.ids | head -1)")"
    mkdir -p eos && cp "$golden"/tokenizer* eos && echo '{# mine #}' >eos/chat_template.jinja
    sed 's/<|im_end|>/<|endoftext|>/' "$golden/tokenizer_config.json" >eos/tokenizer_config.json
    minimind sft --data hello.jsonl --held-out hello.jsonl --tokenizer eos --steps 1 --out tmp \
        $small 2>warned.txt
    check "an end token that is not the template's is said" grep -q "eos_token" warned.txt
    check "so is a foreign chat template" grep -q "chat template" warned.txt
    same "which is kept" eos/chat_template.jinja tmp/chat_template.jinja
    check "pretraining on texts" tokenise pretrain "$golden/encode.jsonl" --seq 16
    says "their ids, all of which train" "$(cat want.txt)" cached out/cache/*.ids
    awk 'BEGIN {for (i = 1; i <= 100; i++) printf "{\"text\": \"%s\"}\n", i % 50 ? "a" : "z"}' \
        >hundred.jsonl
    check "a file of 100 documents" sh -c 'rm -rf out && minimind pretrain --data hundred.jsonl \
        $1 --steps 1 --seq 8 --out tmp $2' sh "$use_golden" "$small"
    says "two are held out" "+1 +125 +2 +1 +125 +2 " cached "$(ls -rS out/cache/*.ids | head -1)"
    says "and are not among the 98 others" "98" sh -c \
        'echo "$1" | tr " " "\n" | grep -cx +100' sh \
        "$(cached "$(ls -S out/cache/*.ids | head -1)")"
    check "they alone are measured" sh -c \
        'minimind pretrain --data hundred.jsonl $1 --steps 1 --seq 8 --out tmp $2 2>&1 |
         grep "^measured" | grep -q "documents 2 "' sh "$use_golden" "$small"
    documents 40 >a.jsonl
    documents 90 | tail -50 >b.jsonl
    cat a.jsonl b.jsonl >ab.jsonl
    tokenise pretrain ab.jsonl --seq 8 2>log
    cached out/cache/*.ids >want.txt
    tokenise pretrain a.jsonl,b.jsonl --seq 8 2>log
    cached out/cache/*.ids >got.txt
    same "a list of files is read as one" want.txt got.txt
    { printf '\357\273\277'; cat ab.jsonl; } >mark.jsonl
    tokenise pretrain mark.jsonl --seq 8 2>log
    cached out/cache/*.ids >got.txt
    same "a byte order mark is skipped" want.txt got.txt
    awk 'BEGIN {for (i = 1; i <= 3000; i++) print "line " i " of a long text"}' >plain.txt
    check "plain text" sh -c 'rm -rf out && minimind pretrain --data plain.txt $1 --steps 1 \
        --seq 64 --out plain $2' sh "$use_golden" "$small"
    says "is read without a rest: bytes" "$(wc -c <plain.txt | tr -d ' ')" sh -c \
        'minimind eval --model plain --data plain.txt | sed -n "s/^bytes  *//p"'

    group "Data: the cache has a file for everything that changes the ids"
    head -60 ab.jsonl >rows.jsonl
    rm -rf out
    says "rows, trained on and held out" 2 cache_after --data rows.jsonl
    says "again" 2 cache_after --data rows.jsonl
    sed 's/sum/mus/' rows.jsonl >other.jsonl
    cp -p rows.jsonl kept.jsonl
    cp other.jsonl rows.jsonl
    touch -r kept.jsonl rows.jsonl
    says "another text in a file of this name, size and time" 4 cache_after --data rows.jsonl
    column loss tmp/train.csv >got.txt
    rm -rf out && cache_after --data other.jsonl >log 2>&1
    column loss tmp/train.csv >want.txt
    same "trains as another file with that text" want.txt got.txt
    says "another length of rows" 4 cache_after --data other.jsonl --seq 7
    says "another stage" 6 sh -c 'minimind pretrain --data other.jsonl $1 --steps 1 --seq 7 \
        --out tmp $2 2>log && ls out/cache/*.ids | wc -l | tr -d " "' sh "$use_golden" "$small"
    mkdir -p tok2 && cp "$golden/tokenizer_config.json" tok2
    sed 's/buffer1/bufferA/g' "$golden/tokenizer.json" >tok2/tokenizer.json
    says "another tokenizer" 8 sh -c 'minimind sft --data other.jsonl --tokenizer tok2 --steps 1 \
        --out tmp $1 2>log && ls out/cache/*.ids | wc -l | tr -d " "' sh "$small"
    says "all rows" 9 cache_after --data other.jsonl --held-out other.jsonl
    for f in out/cache/*.ids; do # the first id of each
        printf '\377\377\377\377' | dd of="$f" bs=1 conv=notrunc 2>log
    done
    refuses "a damaged cache" "is damaged" cache_after --data other.jsonl
    rm -r out && cache_after --data other.jsonl >log 2>&1
    for f in out/cache/*.documents; do # its first document claims 2^40 tokens
        printf '\000\000\000\000\000\001' | dd of="$f" bs=1 seek=8 conv=notrunc 2>log
    done
    refuses "a document in the cache that does not fit a row" "is damaged" \
        cache_after --data other.jsonl
    rm -rf out
    refuses "a full disk" "cannot be written" sh -c 'trap "" XFSZ; ulimit -f 16
        minimind pretrain --data plain.txt $1 --steps 1 --seq 8 --out tmp $2' sh "$use_golden" \
        "$small"
    says "leaves nothing" 0 sh -c 'ls out/cache | wc -l | tr -d " "'

    group "Data: rows that are cut, skipped or refused"
    echo '{"conversations": [{"role": "user", "content": "x"}]}' >silent.jsonl
    refuses "nothing to train" "nothing to train" tokenise sft silent.jsonl
    cat silent.jsonl ab.jsonl >mixed.jsonl
    check "a conversation without an assistant is counted" sh -c \
        'minimind sft --data mixed.jsonl $1 --steps 1 --out tmp $2 2>&1 |
         grep -q "^1 records had nothing to train and were skipped, first line 1"' sh \
        "$use_golden" "$small"
    check "rows longer than the context are counted" sh -c \
        'minimind sft --data ab.jsonl $1 --seq 8 --steps 1 --out tmp $2 2>&1 |
         grep -q "^89 rows were longer than 8 tokens and cut"' sh "$use_golden" "$small"
    tokenise sft ab.jsonl --seq 8 2>log
    says "and have as many tokens as fit, with the last target" "$((90 * 9))" sh -c \
        'echo "$1" | wc -w | tr -d " "' sh "$(cached out/cache/*.ids)"
    for bad in '{"conversations": []}' '{"text": 5}' '{"foo": 1}' \
        '{"conversations": [{"role": "elf", "content": "x"}]}'; do
        printf '%s\n' "$bad" >bad.jsonl
        refuses "sft on $bad" "bad.jsonl:1" tokenise sft bad.jsonl
    done
    echo '{"chosen": [{"role": "user", "content": "x"}]}' >half.jsonl
    refuses "a pair with one side" "half.jsonl" minimind dpo --model plain --data half.jsonl
    : >empty.txt
    refuses "an empty file" "empty.txt" minimind pretrain --data empty.txt $use_golden
    refuses "a file that is not there" "nowhere.jsonl" tokenise pretrain nowhere.jsonl
    refuses "plain text for sft" "plain.txt" tokenise sft plain.txt
}

# ---- training -----------------------------------------------------------------------------------

pretrain() { # pretrain OUT OPTION...: six small steps
    into=$1
    shift
    minimind pretrain --data docs.jsonl $use_golden --steps 6 --seq 16 --batch 4 --lr 5e-3 \
        --out "$into" $small "$@"
}

# The losses in column 2 of two train.csv are the same in N rows, up to TOLERANCE.
same_losses() { # same_losses FILE FILE N TOLERANCE
    paste -d, "$1" "$2" | awk -F, -v n="$3" -v limit="$4" '
        NR == 1 {for (i = 3; i <= NF; i++) if ($i == "loss") second = i}
        NR > 1 {d = $2 - $second; if (d < 0) d = -d; if (!(d <= limit)) {bad = 1; print}}
        END {exit bad || NR != n + 1}'
}

column() { # column NAME FILE: of train.csv
    awk -F, -v name="$1" '
        NR == 1 {for (i = 1; i <= NF; i++) if ($i == name) c = i; next}
        {print $c}' "$2"
}

# Interrupts a training run once it has made ten steps. It has to end by itself, within 10 seconds.
interrupt() {
    rm -rf interrupted
    minimind pretrain --data docs.jsonl $use_golden --steps 1000000 --seq 16 --batch 4 \
        --eval-every 1000000 --out interrupted $small 2>err.txt &
    running=$!
    tries=0
    while [ "$(cat interrupted/train.csv 2>/dev/null | wc -l)" -lt 10 ] && [ $tries -lt 100 ]; do
        tries=$((tries + 1))
        sleep 0.1
    done
    kill -INT $running
    ended
}

group_train() {
    group "Training: the same bits, and the same sums"
    need minimind
    documents 60 >docs.jsonl
    dense='--use-moe 0'
    check "one thread" pretrain base --threads 1
    [ "$openmp" ] && check "two threads" pretrain two --threads 2 &&
        same "the same weights, bit for bit" base/model.safetensors two/model.safetensors
    pretrain deep --threads 1 --num-hidden-layers 3 2>log
    check "activations computed again" pretrain recompute --recompute 1 --threads 1 \
        --num-hidden-layers 3
    same "the same weights once more" deep/model.safetensors recompute/model.safetensors
    check "--plain 1 trains by the definitions" pretrain plain --plain 1
    check "the same loss to five digits" same_losses base/train.csv plain/train.csv 6 2e-5
    check "one pass of 6 rows" pretrain big --batch 6 $dense
    check "the same in passes of 3" pretrain parts --batch 3 --accumulate 2 $dense
    check "the same loss" same_losses big/train.csv parts/train.csv 6 1e-5
    check "passes of 4: the last has 2" pretrain parts --batch 4 --accumulate 2 $dense
    check "one pass of 8" pretrain big --batch 8 $dense
    check "the same loss as in one pass" same_losses big/train.csv parts/train.csv 6 1e-5
    head -5 docs.jsonl >five.jsonl
    for way in '--batch 3 --accumulate 2' '--batch 6'; do
        minimind sft --data five.jsonl --held-out docs.jsonl $use_golden --epochs 3 $way --lr 5e-3 \
            --out "five${way##* }" $small $dense 2>log
    done
    check "an incomplete last pass counts: 5 rows in passes of 3" \
        same_losses five2/train.csv five6/train.csv 3 1e-5

    group "Training: options"
    for option in '--lr 1e-3' '--beta2 0.5' '--weight-decay 9' '--clip 0.01' '--warmup 6' \
        '--batch 3' '--seq 12' '--accumulate 2' '--seed 2'; do
        pretrain changed $option 2>log
        column loss base/train.csv | tail -3 >want.txt
        column loss changed/train.csv | tail -3 >got.txt
        differ "$option has an effect" want.txt got.txt
    done
    for seed in 1 2; do
        minimind pretrain --model base --data docs.jsonl --steps 3 --seq 16 --batch 4 --lr 0 \
            --seed $seed --out order$seed 2>log
    done
    column loss order1/train.csv >want.txt
    column loss order2/train.csv >got.txt
    differ "--seed changes the order of the data" want.txt got.txt
    pretrain long --steps 30 --warmup 10 --lr 0.01 2>log
    check "the rate: a line for 10 steps, times the cosine to a tenth" sh -c \
        'awk -F, "NR > 1 {s = \$1; rise = s < 10 ? s / 10 : 1
            want = rise * 0.01 * (0.1 + 0.45 * (1 + cos(3.14159265358979 * s / 30)))
            if ((\$4 - want)^2 > 1e-12) bad = 1} END {exit bad || NR != 31}" long/train.csv'
    pretrain slow --lr 10 --warmup 1000000000 2>log
    pretrain still --lr 0 2>log
    check "is the one that the step takes" same_losses slow/train.csv still/train.csv 6 2e-3
    check "it learns" sh -c 'test "$1" = yes' sh "$(column loss long/train.csv |
        awk 'NR == 1 {first = $1} {last = $1} END {if (last < first - 1) print "yes"}')"
    minimind sft --data docs.jsonl $use_golden --epochs 2 --batch 4 --accumulate 2 --out epochs \
        $small 2>log
    says "two epochs of 59 rows, 8 in a step, have 16 steps" 16 sh -c \
        'tail -1 epochs/train.csv | cut -d, -f1'
    pretrain often --eval-every 2 2>log
    says "--eval-every 2 measures steps 2, 4 and 6" "2,4,6," sh -c \
        'awk -F, "NR > 1 && \$NF != \"\" {printf \"%s,\", \$1} END {print \"\"}" often/train.csv'
    pretrain until --eval-every 1 --until 1000 2>log
    says "--until ends at the first measurement that reaches it" 2 sh -c \
        'wc -l <until/train.csv | tr -d " "'
    says "what was measured last is what eval finds" "same" sh -c '
        sed "s/sum/difference/" docs.jsonl >held.jsonl
        minimind pretrain --data docs.jsonl --held-out held.jsonl $1 --steps 9 --seq 32 --out e $2 \
            2>log
        a=$(tail -1 e/train.csv | sed "s/.*,//")
        b=$(minimind eval --model e --data held.jsonl | awk "/^bits per byte/ {print \$4}")
        awk "BEGIN {d = $a - $b; print d * d < 1e-9 * $a * $a ? \"same\" : \"$a $b\"}"' sh \
        "$use_golden" "$small"

    group "Training: checkpoints"
    check "going on with the rate 0" minimind pretrain --model base --data docs.jsonl --seq 16 \
        --steps 2 --lr 0 --out again
    same "keeps every bit of the weights" base/model.safetensors again/model.safetensors
    same "and the configuration" base/config.json again/config.json
    ln base/model.safetensors link && cp link copy
    pretrain base 2>log --seed 3
    same "a checkpoint is replaced, not written over" link copy
    differ "by another" base/model.safetensors copy
    cp base/model.safetensors copy
    refuses "a full disk" "cannot be written" sh -c 'trap "" XFSZ; ulimit -f 64
        minimind pretrain --model base --data docs.jsonl --steps 1 --seq 16 --out base'
    same "leaves the old checkpoint" base/model.safetensors copy
    says "and no other file" 0 sh -c 'ls base | grep tmp | wc -l | tr -d " "'
    mkdir -p full && ln -sf /dev/full full/train.csv
    refuses "a train.csv that cannot be written" "train.csv" pretrain full
    check "Ctrl-C ends a run after its step" interrupt
    check "before it was complete" sh -c 'test $(wc -l <interrupted/train.csv) -lt 1000000'
    check "with everything measured and saved" sh -c \
        'tail -1 interrupted/train.csv | grep -q ",[0-9.]*$" && minimind info --model interrupted'
    cp -r base sick
    { # the last number, one of the final norm's, becomes the largest there is
        head -c $(($(wc -c <base/model.safetensors) - 4)) base/model.safetensors
        printf '\377\377\177\177'
    } >sick/model.safetensors
    refuses "a loss that is not finite" "first bad tensor: model.embed_tokens.weight" \
        minimind pretrain --model sick --data docs.jsonl --seq 16 --steps 5 --out bad
}

# ---- files --------------------------------------------------------------------------------------

make_model() { # a model of two layers, hardly trained
    need minimind
    documents 60 >docs.jsonl
    [ -d model ] || minimind pretrain --data docs.jsonl $use_golden --steps 3 --seq 16 --out model \
        --hidden-size 32 --num-hidden-layers 2 --max-position-embeddings 200 2>log
}

hurt_model() { # hurt_model FILE COMMAND: a copy of the model, with FILE passed through COMMAND
    rm -rf hurt && cp -r model hurt
    sh -c "$2" <"model/$1" >"hurt/$1"
}

load() { minimind generate --model "$1" --prompt x --max-new-tokens 3; }

damaged() { # damaged NAME TEXT FILE COMMAND: the model with FILE passed through COMMAND is refused
    hurt_model "$3" "$4"
    refuses "$1" "$2" load hurt
}

# The header of model.safetensors, edited, with its new length: 8 bytes, the lowest first.
edit_header() {
    length=$(od -An -t u4 -N 4 model/model.safetensors | tr -d ' ')
    rm -rf hurt && cp -r model hurt
    head -c $((8 + length)) model/model.safetensors | tail -c $length | sed "$1" | tr -d '\n' \
        >head.txt
    new=$(wc -c <head.txt)
    {
        printf "\\$(printf %o $((new % 256)))\\$(printf %o $((new / 256)))\\0\\0\\0\\0\\0\\0"
        cat head.txt
        tail -c +$((9 + length)) model/model.safetensors
    } >hurt/model.safetensors
}

bad_header() { # bad_header NAME TEXT SED
    edit_header "$3"
    refuses "$1" "$2" load hurt
}

group_files() {
    group "Files: a damaged checkpoint is refused"
    make_model
    edit_header ''
    check "the model itself is not" load hurt
    norm='"model.norm.weight":{'
    damaged "weights cut off" "is cut off" model.safetensors 'head -c 100000'
    damaged "weights of four bytes" "model.safetensors" model.safetensors 'head -c 4'
    damaged "a header that is not JSON" "model.safetensors" model.safetensors "sed '1s/{/[/'"
    damaged "a weight that is not a number" "not finite" model.safetensors \
        'head -c $(($(wc -c <model/model.safetensors) - 4)) && printf "\000\000\300\177"'
    damaged "bytes that belong to no tensor" "leave gaps" model.safetensors 'cat && echo 123'
    bad_header "a tensor twice" "model.norm.weight twice" \
        's/"model.norm.weight":{[^}]*}/&,&/'
    bad_header "a tensor that the model does not have" "extra" \
        's/"model.norm.weight":\({[^}]*}\)/&,"extra":\1/'
    bad_header "a tensor that is missing" "model.norm.weight is missing" "s/$norm/"'"x":{/'
    bad_header "another shape" "model.norm.weight" "s/\($norm.*shape\":\)\[32\]/\1[2,16]/"
    bad_header "another number format" "dtype" "s/\($norm\"dtype\":\)\"F32\"/\1\"I8\"/"
    bad_header "offsets that do not fit the shape" "model.norm.weight" \
        's/\("model.norm.weight":.*data_offsets":\[[0-9]*\),[0-9]*/\1,8/'
    bad_header "an offset that is negative" "model.norm.weight" \
        's/\("model.norm.weight":.*data_offsets":\)\[[0-9]*,[0-9]*/\1[-128,0/'
    head='"lm_head.weight":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}'
    edit_header 's/"model.norm.weight":{[^}]*}/&,'"$head/"
    check "lm_head.weight may be there, as it is tied" load hurt
    damaged "another size in config.json" "config.json makes it" config.json 'sed s/192/200/'
    damaged "config.json that is not JSON" "config.json" config.json 'head -c 100'
    damaged "an impossible config.json" "config.json" config.json \
        'sed "/hidden_size/s/[0-9][0-9]*/-3/"'
    damaged "another activation function" "hidden_act" config.json 'sed s/silu/gelu/'
    damaged "biases" "attention_bias" config.json 'sed "/attention_bias/s/false/true/"'
    damaged "weights that may not be tied" "tie_word_embeddings" config.json 'sed /tie_word/d'
    damaged "RoPE of another type" "RoPE" config.json \
        "sed '/rope_scaling/s/null/{\"rope_type\": \"llama3\"}/'"
    damaged "a model of another type" "gemma" config.json 'sed "/model_type/s/qwen3_moe/gemma/"'
    damaged "a size that is a text" "hidden_size" config.json 'sed "/hidden_size/s/32/\"32\"/"'
    damaged "tokenizer cut off" "tokenizer.json" tokenizer.json 'head -c 5000'
    damaged "an end token that is no token" "eos_token" tokenizer_config.json \
        'sed "s/<|im_end|>/x y/"'
    refuses "a folder that is not there" "nowhere" load nowhere
    says "config.json names the library's model" '"Qwen3MoeForCausalLM"' sh -c \
        'sed -n "s/.*architectures\": \[\(.*\)\].*/\1/p" model/config.json'
    says "generation_config.json has the special tokens" "1 2 0 " sh -c \
        'sed -n "s/.*token_id\": \([0-9]*\).*/\1/p" model/generation_config.json | tr "\n" " "'
    for kind in bf16 int8; do
        check "weights kept as $kind" minimind generate --model model --prompt x --weights $kind \
            --max-new-tokens 5
    done
    [ -w /dev/full ] || left_out "/dev/full: a disk that is full"
    refuses "a result that cannot be written" "cannot be written" sh -c 'minimind help >/dev/full'
    refuses "answers that cannot be written" "cannot be written" sh -c \
        'echo "{\"conversations\": [{\"role\": \"user\", \"content\": \"a\"},
            {\"role\": \"assistant\", \"content\": \"b\"}]}" | tr -d "\n" >qa.jsonl
         minimind eval --model model --task qa --data qa.jsonl --max-new-tokens 3 \
            --answers /dev/full'
}

# ---- talking ------------------------------------------------------------------------------------

# Eight short conversations, to be learned by heart. The second answer depends on the first turn, so
# a model that answers it right has read the whole conversation.
rote_data() {
    for word in river baker 小狗 sea; do
        echo '{"conversations": [{"role": "user", "content": "Say '$word'"},
            {"role": "assistant", "content": "'$word'"}, {"role": "user", "content": "Again"},
            {"role": "assistant", "content": "'$word'!"}]}'
        echo '{"conversations": [{"role": "system", "content": "Say it twice."},
            {"role": "user", "content": "Say '$word'"},
            {"role": "assistant", "content": "'$word' '$word'"}]}'
        echo '{"conversations": [{"role": "user", "content": "Think of '$word'"},
            {"role": "assistant", "content": "It is '$word'.",
             "reasoning_content": "a word"}]}'
    done | awk '{printf "%s", $0} /\]}$/ {print ""}'
}

talk() { # talk LINE...: the answers of a chat, always the likeliest tokens
    printf '%s\n' "$@" | minimind chat --model rote --temperature 0 --max-new-tokens 30 2>chat.err
}

generate() { minimind generate --model rote --max-new-tokens 20 --prompt "$@"; }

# Interrupts a chat while it answers. It has to be ready for the next line within 10 seconds.
interrupt_chat() {
    rm -f lines && mkfifo lines
    minimind chat --model endless --temperature 0 --max-new-tokens 900000 \
        <lines >out.txt 2>err.txt &
    running=$!
    exec 3>lines
    echo "Say" >&3
    sleep 1
    kill -INT $running
    printf '/stats\n/quit\n' >&3
    exec 3>&-
    ended && grep -q "1 turns" err.txt
}

group_talk() {
    group "Talking: a model that has learned twelve conversations by heart"
    need minimind
    rote_data >rote.jsonl
    check "learns them" minimind sft --data rote.jsonl --held-out rote.jsonl $use_golden \
        --steps 150 --batch 6 --seq 100 --lr 4e-3 --warmup 10 --clip 1 --weight-decay 0 --out rote \
        --hidden-size 64 --num-hidden-layers 2 --max-position-embeddings 200 --use-moe 0
    says "an answer, with its end" "river" talk "Say river"
    says "a second turn knows the first" "baker baker!" sh -c \
        'printf "Say baker\nAgain\n" | minimind chat --model rote --temperature 0 2>log |
         tr "\n" " " | sed "s/ $//"'
    check "answers join the conversation: 8 turns do not fit into 200 tokens" sh -c \
        'for i in 1 2 3 4 5 6 7 8; do echo "Say river"; done |
         minimind chat --model rote --temperature 0 2>&1 | grep -q "200 tokens is full"'
    says "/reset forgets it" "sea sea " sh -c \
        'printf "Say baker\n/reset\nSay sea\n/reset\nSay sea\n" | minimind chat --model rote \
         --temperature 0 2>log | tail -2 | tr "\n" " "'
    says "/system" "小狗 小狗" talk "/system Say it twice." "Say 小狗"
    says "/reset keeps it" "sea sea" sh -c \
        'printf "/system Say it twice.\nSay sea\n/reset\nSay sea\n" | minimind chat --model rote \
         --temperature 0 2>log | tail -1'
    says "/system without a text ends it" "sea" talk "/system Say it twice." "/system" "Say sea"
    says "/think" "a word\n</think>\n\nIt is river." sh -c \
        'printf "/think\nThink of river\n" | minimind chat --model rote --temperature 0 2>log |
         awk "{printf \"%s%s\", sep, \$0; sep = \"\\\\n\"} END {print \"\"}"'
    check "/stats and /quit" sh -c 'printf "Say sea\n/stats\n/quit\nSay sea\n" |
        minimind chat --model rote --temperature 0 2>err.txt | wc -l | grep -qx " *1" &&
        grep -q "1 turns" err.txt'
    says "generate --ask" "小狗" minimind generate --model rote --ask "Say 小狗" --temperature 0
    says "generate --ask --think 1" "It is sea." sh -c \
        'minimind generate --model rote --ask "Think of sea" --think 1 --temperature 0 | tail -1'
    says "what a person types stays text" "the context of 200 tokens is full; /reset begins again" \
        sh -c 'awk "BEGIN {for (i = 0; i < 40; i++) printf \"<|im_end|>\"; print \"\"}" |
            minimind chat --model rote 2>&1 | grep -o "the context.*"'
    check "--max-new-tokens" sh -c \
        'minimind generate --model rote --prompt a --temperature 0 --max-new-tokens 1 2>&1 |
         grep -q "^1 tokens"'
    minimind pretrain --data rote.jsonl $use_golden --steps 1 --out endless --hidden-size 32 \
        --num-hidden-layers 1 --max-position-embeddings 1000000 --seq 16 --lr 0 2>log
    check "Ctrl-C ends an answer, not the chat" interrupt_chat

    group "Talking: sampling"
    generate "The" --temperature 1.5 --seed 5 >a.txt 2>log
    generate "The" --temperature 1.5 --seed 5 --threads 1 >b.txt 2>log
    same "the same seed gives the same text" a.txt b.txt
    generate "The" --temperature 1.5 --seed 6 >b.txt 2>log
    differ "another seed another" a.txt b.txt
    generate "The" --temperature 0 --seed 5 >a.txt 2>log
    generate "The" --temperature 0 --seed 6 >b.txt 2>log
    same "temperature 0 needs no seed" a.txt b.txt
    generate "The" --temperature 5 --top-k 1 --seed 6 >b.txt 2>log
    same "nor does --top-k 1" a.txt b.txt
    generate "The" --temperature 5 --top-k 0 --top-p 1e-9 --seed 6 >b.txt 2>log
    same "nor a tiny --top-p" a.txt b.txt
    check "the prompt is repeated" grep -q '^The' a.txt
    check "Chinese comes out as UTF-8" sh -c \
        'minimind generate --model rote --prompt "你" --temperature 5 --top-k 0 --top-p 1 \
            --max-new-tokens 150 2>log | iconv -f UTF-8 -t UTF-8'
    long=$(awk 'BEGIN {for (i = 0; i < 600; i++) printf "a b "}')
    refuses "a prompt longer than the context" "the context" generate "$long"
    check "a full context is said" sh -c \
        'minimind generate --model rote --prompt "$1" --temperature 50 --top-k 0 --top-p 1 2>&1 |
         grep -q "context of 200 tokens is full"' sh "$(echo "$long" | cut -c 1-390)"

    group "Talking: what eval measures"
    grep '"Again"' rote.jsonl >qa.jsonl
    says "right answers" "questions 4,right, % 100 +- 0," sh -c \
        'minimind eval --model rote --task qa --data qa.jsonl | tr -s " " | tr "\n" ","'
    sed 's/river!/river?/' qa.jsonl >wrong.jsonl
    says "one of four is wrong: 75 %, error 25 %" "questions 4,right, % 75 +- 25," sh -c \
        'minimind eval --model rote --task qa --data wrong.jsonl | tr -s " " | tr "\n" ","'
    grep '"a word"' rote.jsonl >think.jsonl
    says "answers after thinking" "right, % 100 +- 0" sh -c \
        'minimind eval --model rote --task think --data think.jsonl | tail -1 | tr -s " "'
    sed 's/}$/, "gt": [7, "sea!"]}/' qa.jsonl >gt.jsonl
    says "accepted are the answers in gt" "right, % 25 +- 25" sh -c \
        'minimind eval --model rote --task qa --data gt.jsonl | tail -1 | tr -s " "'
    says "answers that contain a text" "contains, % 25 +- 25" sh -c \
        'minimind eval --model rote --task qa --data qa.jsonl --contains iver | tail -1 | tr -s " "'
    says "a number in gt" "right, % 100 +- 0" sh -c \
        'sed "s/baker/7/g; s/river/7/g; s/sea/7/g; s/小狗/7/g; s/7!/7/; s/}$/, \"gt\": 7}/" qa.jsonl \
            >seven.jsonl
         minimind sft --model rote --data seven.jsonl --held-out seven.jsonl --steps 40 --lr 4e-3 \
            --out seven 2>log
         minimind eval --model seven --task qa --data seven.jsonl | tail -1 | tr -s " "'
    says "a stage that stops when answers are right" 2 sh -c \
        'minimind sft --model rote --data rote.jsonl --held-out rote.jsonl --lr 0 --steps 5 \
            --eval-every 1 --task qa --eval-data qa.jsonl --until 1 --out until 2>log
         wc -l <until/train.csv | tr -d " "'
    says "--rows" "questions 3" sh -c \
        'minimind eval --model rote --task qa --data qa.jsonl,qa.jsonl --rows 3 | head -1 |
         tr -s " "'
    says "--answers" "1 3" sh -c \
        'minimind eval --model rote --task qa --data wrong.jsonl --answers a.jsonl >log &&
         echo $(grep -c "river!\", \"right\": false" a.jsonl) $(grep -c "\"right\": true" a.jsonl)'
    for a in river sea; do
        echo '{"chosen": [{"role": "user", "content": "Say '$a'"}, {"role": "assistant",
            "content": "'$a'"}], "rejected": [{"role": "user", "content": "Say '$a'"},
            {"role": "assistant", "content": "no"}]}'
    done | awk '{printf "%s", $0} /\]}$/ {print ""}' >pairs.jsonl
    sed 's/chosen/x/; s/rejected/chosen/; s/"x"/"rejected"/' pairs.jsonl >swapped.jsonl
    for file in pairs:100 swapped:0; do
        says "${file%:*}" "pairs 2,chosen preferred, % ${file#*:} +- 0," sh -c \
            'minimind eval --model rote --task pref --data "$1" | tr -s " " | tr "\n" ","' sh \
            "${file%:*}.jsonl"
    done
    minimind dpo --model rote --data pairs.jsonl --held-out pairs.jsonl --lr 0 --batch 1 \
        --epochs 3 --out still 2>log
    says "DPO that does not move: every loss is log 2" "0.69315" sh -c \
        'awk -F, "NR > 1 {printf \"%.5f\n\", \$2}" still/train.csv | sort -u'
    documents 30 | sed 's/}/, "bits": 8}/' >docs.jsonl
    says "the bytes of all texts; the floor, 8 bits in each" "30 $(documents 30 | awk '{
        n += length($0) - 12} END {printf "%d %.6g", n, 240 / n}')" sh -c \
        'minimind eval --model rote --data docs.jsonl | awk "
            /^(documents|bytes|floor)/ {printf \"%s%s\", sep, \$2; sep = \" \"} END {print \"\"}"'
    says "a model that knows nothing has the loss ln V = 6.9" "6.9" sh -c \
        'minimind eval --model endless --data docs.jsonl | awk "/^loss/ {printf \"%.1f\n\", \$2}"'
    head -15 docs.jsonl >docs1.jsonl
    tail -15 docs.jsonl >docs2.jsonl
    check "two halves have the loss of the whole, and perplexity and bits fit it" sh -c '
        for f in docs docs1 docs2; do minimind eval --model rote --data $f.jsonl | awk "
            /^tokens/ {n = \$2} /^bytes/ {b = \$2} /^loss/ {l = \$2} /^perplexity/ {p = \$2}
            /^bits/ {print n, l, n * l, p / exp(l), \$4 * b * log(2) / n / l}"
        done | awk "{print} {s[NR] = \$3; n[NR] = \$1; d = \$4 - 1; e = \$5 - 1
            bad += d * d > 1e-8 || e * e > 1e-8} END {d = s[2] + s[3] - s[1]
            exit bad || n[1] != n[2] + n[3] || d * d > 1e-8 * s[1] * s[1]}"'
}

# ---- options ------------------------------------------------------------------------------------

group_options() {
    group "Options and presets"
    need minimind tokenizer
    documents 10 >docs.jsonl
    count() { minimind info --preset "$1" | awk '/^parameters/ {print $2}'; }
    active() { minimind info --preset "$1" | awk '/^active/ {print $5}'; }
    says "minimind3 has 63,912,192 parameters" 63912192 count minimind3
    says "minimind3-moe has 198,416,640" 198416640 count minimind3-moe
    says "of which 63,936,768 are active" 63936768 active minimind3-moe
    says "minimind2 has 104,030,976" 104030976 count minimind2
    says "minimind2-small has 25,829,888" 25829888 count minimind2-small
    for preset in tiny minimind2-moe; do check "$preset" minimind info --preset $preset; done
    says "--hidden-size changes a preset" "(1024, 32)" sh -c \
        'minimind info --hidden-size 32 | sed -n "s/^model.embed[^(]*\(([^)]*)\).*/\1/p"'
    says "the cache of a token: 2 L KV D numbers" 24576 sh -c \
        'minimind info --preset minimind3 | awk "/^KV cache/ {print \$3}"'
    says "weights, gradients and moments: 4 times 255.6 MB" "4 x 255.6" sh -c \
        'minimind info --preset minimind3 | sed -n "s/^memory to train.*\(4 x [0-9.]*\).*/\1/p"'
    says "the tokens of a data file, and the days they take" \
        "$(($(encode "$golden" docs.jsonl | wc -w) + 20)) days" sh -c \
        'minimind info --hidden-size 64 --tokenizer "$1" --data docs.jsonl |
            awk "/^tokens in/ {printf \"%s \", \$5} /^one pass/ {print \$6}"' sh "$golden"
    refuses "data without a tokenizer" "tokenizer" minimind info --data docs.jsonl
    check "--version" sh -c 'minimind --version | grep -q "^minimind [0-9]"'
    check "help of a command" sh -c 'minimind help pretrain | grep -q -- "--warmup .*default 0"'
    check "the same" sh -c 'minimind pretrain --help >a.txt; minimind help pretrain | cmp - a.txt'
    check "a short help" sh -c 'minimind | grep -q "^usage"'
    check "a long one" sh -c 'minimind help | grep -q -- --repetition-penalty'
    refuses "unknown command" "dance" minimind dance
    refuses "unknown option" "--colour" minimind pretrain --colour red
    refuses "an option misspelt" "did you mean --steps?" minimind pretrain --stesp 3
    refuses "an option of another command" "--prompt" minimind pretrain --prompt x
    refuses "a missing value" "--steps" minimind pretrain --steps
    refuses "a word that is no option" "word" minimind info word
    refuses "not a number" "--lr fast" minimind pretrain --lr fast
    refuses "a number with more behind it" "--lr 1x" minimind pretrain --lr 1x
    refuses "no number at all" "--batch" minimind pretrain --batch ""
    refuses "not a whole number" "--batch 1.5" minimind pretrain --batch 1.5
    refuses "too small" "--batch 0" minimind pretrain --batch 0
    refuses "too large" "--top-p 1.5" minimind generate --top-p 1.5
    refuses "not a number: nan" "--lr nan" minimind pretrain --lr nan
    refuses "a switch that is neither 0 nor 1" "--plain 2" minimind pretrain --plain 2
    refuses "unknown preset" "known are" minimind info --preset huge
    refuses "heads that do not divide the width" "heads" \
        minimind info --hidden-size 100 --num-attention-heads 3
    refuses "an odd width of a head" "head_dim" minimind info --head-dim 7
    refuses "key heads that do not divide the heads" "heads" minimind info --num-key-value-heads 3
    refuses "more experts for a token than there are" "num_experts_per_tok" \
        minimind info --use-moe 1 --num-experts 2 --num-experts-per-tok 3
    refuses "no data" "--data" minimind pretrain
    refuses "no tokenizer" "--tokenizer" minimind pretrain --data docs.jsonl
    refuses "no model" "--model" minimind generate --prompt x
    refuses "rows longer than the context" "--seq 600" \
        minimind pretrain --data docs.jsonl $use_golden --seq 600
    refuses "a preset and a model" "--preset" minimind pretrain --data docs.jsonl --model x \
        $use_golden --preset tiny
    refuses "a task without data" "--eval-data" minimind pretrain --data docs.jsonl $use_golden \
        --task qa
    minimind pretrain --data docs.jsonl $use_golden --steps 1 --seq 16 --out model $small 2>log
    refuses "an unknown task" "--task dance" minimind eval --model model --data docs.jsonl \
        --task dance
    refuses "unknown weights" "--weights int4" minimind generate --model model --weights int4 \
        --prompt x
    refuses "--plain with packed weights" "f32" minimind generate --model model --weights int8 \
        --plain 1
    refuses "a prompt and a question" "exclude" minimind generate --model model --prompt x --ask y
}

# ---- all stages, on the tiny world --------------------------------------------------------------

stage() { # stage COMMAND MODEL OUT OPTION...
    command=$1 from=$2 to=$3
    shift 3
    program=minimind held=${held_file:-$command}
    if [ $command = grpo ]; then program=lab/grpo command=; fi
    $program $command --model "$from" --out "$to" "$@" --held-out "world/${held}_held_out.jsonl"
}

group_stages() {
    group "All stages: from parrot to assistant"
    make_world
    need minimind lab/grpo
    check "pretraining: 400 steps" minimind pretrain --data world/pretrain.jsonl --held-out \
        world/pretrain_held_out.jsonl --tokenizer tok --seq 128 --lr 5e-3 --warmup 10 --beta2 0.99 \
        --steps 400 --out parrot
    minimind eval --model parrot --data world/pretrain_held_out.jsonl >eval.txt
    check "held-out bits per byte below three times the floor" \
        awk '/^bits per byte/ {b = $4} /^floor/ {f = $2} END {exit !(b > f && b < 3 * f)}' eval.txt
    check "sft" stage sft parrot sft --data world/sft.jsonl,world/again.jsonl --epochs 3 --lr 2e-3
    check "bits per byte of held-out answers fall below 0.6" \
        awk -F, 'END {exit !($NF < 0.6 && $NF > 0)}' sft/train.csv
    check "dpo that does not move" stage dpo sft still --data world/dpo.jsonl --lr 0 --steps 5
    says "every loss is log 2: model and reference agree" "0.69315" sh -c \
        'awk -F, "NR > 1 {printf \"%.5f\n\", \$2}" still/train.csv | sort -u'
    check "dpo" stage dpo sft dpo --data world/dpo.jsonl --lr 1e-4
    check "nearly every held-out pair has a positive margin" awk -F, 'END {exit $NF < 0.95}' \
        dpo/train.csv
    held_file=reason
    check "thinking" stage sft dpo think --data world/reason.jsonl --steps 60 --lr 2e-3
    held_file=
    grpo='--data world/grpo.jsonl --think 1 --batch 2 --num-generations 4 --max-new-tokens 40'
    check "grpo" stage grpo think grpo $grpo --steps 4 --lr 1e-3
    check "its reference stays: the distance from it is 0 first, and never again" sh -c \
        'awk -F, "NR == 1 {for (i = 1; i <= NF; i++) if (\$i == \"kl\") c = i}
            NR == 2 {bad = \$c > 1e-6} NR > 2 {bad = bad || \$c < 1e-6} END {exit bad || NR != 5}" \
            grpo/train.csv'
    check "several updates for the same answers" stage grpo think updates $grpo --steps 4 \
        --updates 2
    says "have the same rewards" "2" sh -c 'awk -F, "NR == 1 {for (i = 1; i <= NF; i++)
            if (\$i == \"length\") c = i} NR > 1 {print \$c}" updates/train.csv | uniq | wc -l |
        tr -d " "'
    check "cispo" stage grpo think cispo $grpo --steps 2 --loss cispo
    stage grpo think grpo1 $grpo --steps 4 --lr 1e-3 --threads 1 2>log
    same "grpo: the same bits with one thread" grpo/model.safetensors grpo1/model.safetensors
    check "eval --task think" minimind eval --model think --task think --rows 50 \
        --data world/reason_held_out.jsonl
    need lab/choice
    echo '{"question": "How?", "choices": ["so", "not so at all"], "answer": 1}' >mc.jsonl
    says "multiple choice" "questions 1" sh -c \
        'lab/choice --model sft --data mc.jsonl | awk "NR == 1 {print \$1, \$2}"'
}

# ---- the notes ----------------------------------------------------------------------------------

# The folder book is what a reader has after make: sources, notes and programs; out/ is its own.
group_notes() {
    group "Notes: what they name exists, and commands print what they say"
    notes=notes/lab/notes.sh
    need minimind tokenizer lab/world lab/check lab/grpo
    mkdir -p book/out/lab
    for part in minimind.c tokenizer.c tests.sh Makefile README.md notes; do
        ln -sf "$root/$part" book
    done
    cp -p minimind tokenizer book
    cp -p lab/world lab/check lab/grpo book/out/lab
    check "functions, options, files and faults" book/$notes names
    check "links" book/$notes links
    check "both languages have the same headings" book/$notes headings
    check "quoted code is in the sources" book/$notes code
    if have gdb; then
        check "a small world and model" book/notes/gdb/prepare.sh
        check "five walks through the program" book/notes/gdb/walks.sh
        check "quick commands" book/$notes run quick
    else
        left_out "gdb is not installed: walks and quoted commands"
    fi
    check "whiteboard: answers are green, mistakes are red" book/notes/lab/whiteboard/run.sh --all
}

# ---- memory -------------------------------------------------------------------------------------

# Runs a tokenizer with sanitizers on input of which some is bad; only exits 0 and 1 are allowed.
survives() {
    "$@" >out.txt 2>err.txt
    status=$?
    cat err.txt
    [ $status -le 1 ] && ! grep -q -e Sanitizer -e 'runtime error' err.txt
}

group_memory() {
    group "Memory: sanitizers of addresses and undefined behaviour"
    if [ "$sanitize" ]; then
        need tokenizer-san minimind-san lab/check-san lab/grpo-san
        random_texts >random.txt
        LC_ALL=C awk 'BEGIN {for (i = 0; i < 40000; i++) {
            x = (x + 12345) * 16807 % 2147483647
            printf "%c", 1 + x % 255
        }}' >bytes.txt
        rote_data >rote.jsonl
        for input in "$golden/encode.jsonl" random.txt bytes.txt; do
            check "encode ${input##*/}" survives tokenizer-san encode --tokenizer "$golden" "$input"
            check "train on it" survives tokenizer-san train --vocab 600 --out san "$input"
        done
        tokenizer-san encode --tokenizer "$golden" random.txt >random.ids 2>log
        check "decode" survives tokenizer-san decode --tokenizer "$golden" random.ids
        check "chat" survives tokenizer-san chat --tokenizer "$golden" "$golden/chat.jsonl"
        check "show" survives tokenizer-san show --tokenizer "$golden" \
            "a 小河 <think> 12 $(printf '%0500d' 0)"
        check "show --chat 1" survives tokenizer-san show --tokenizer "$golden" --chat 1 \
            "$golden/chat.jsonl"
        check "a tokenizer cut off anywhere" sh -c 'for n in 1 10 100 1000 5000 9000 20000 25000; do
            head -c $n "$1/tokenizer.json" >cut.json
            echo x | tokenizer-san encode --tokenizer cut.json >out.txt 2>err.txt
            [ $? -eq 1 ] && ! grep Sanitizer err.txt || exit 1; done' sh "$golden"
        check "a record cut off anywhere" sh -c 'n=0
            line=$(tail -1 "$1/chat.jsonl"); while [ $n -lt 600 ]; do
            n=$((n + 7)); printf "%s" "$line" | head -c $n >cut.jsonl
            tokenizer-san chat --tokenizer "$1" cut.jsonl >out.txt 2>err.txt
            [ $? -le 1 ] && ! grep Sanitizer err.txt || exit 1; done' sh "$golden"
        documents 60 >docs.jsonl
        check "training" minimind-san pretrain --data docs.jsonl,random.txt $use_golden --steps 3 \
            --seq 16 --batch 2 --out san $small
        check "sft" minimind-san sft --model san --data rote.jsonl --steps 2 --batch 2 --out san2
        check "generating" minimind-san generate --model san --prompt "One day" --max-new-tokens 10
        check "int8" minimind-san generate --model san --prompt x --weights int8 --max-new-tokens 5
        check "eval" minimind-san eval --model san --data docs.jsonl
        sed 's/"Again"/"x"/' rote.jsonl >questions.jsonl
        check "grpo" lab/grpo-san --model san2 --data questions.jsonl --steps 1 --batch 1 \
            --num-generations 2 --max-new-tokens 8 --out san3
        check "the whole of check.c" all_ok lab/check-san
    else
        left_out "this compiler has no sanitizers"
    fi

    group "Memory: leaks, and what valgrind sees"
    printf 'int main(void) {return 0;}' >leak.c
    if [ "$sanitize" ] && ASAN_OPTIONS=detect_leaks=1 probe $sanitize; then
        export ASAN_OPTIONS=detect_leaks=1
        check "tokenizer train" tokenizer-san train --vocab 600 --out san random.txt
        check "tokenizer encode" tokenizer-san encode --tokenizer "$golden" "$golden/encode.jsonl"
        check "tokenizer chat" tokenizer-san chat --tokenizer "$golden" "$golden/chat.jsonl"
        check "training" minimind-san sft --model san --data rote.jsonl --steps 2 --batch 2 \
            --threads 1 --out san2
        check "generating" minimind-san generate --model san2 --ask "a" --max-new-tokens 5
        check "eval" minimind-san eval --model san2 --task qa --data rote.jsonl --max-new-tokens 4
        export ASAN_OPTIONS=detect_leaks=0
    else
        left_out "this compiler or system does not look for leaks"
    fi
    if have valgrind; then
        compile minimind-plain cc -O1 -g && compile tokenizer-plain cc -O1 -g
        memcheck() { valgrind -q --leak-check=full --error-exitcode=3 "$@"; }
        head -20 "$golden/encode.jsonl" >few.jsonl
        check "valgrind: encoding" memcheck tokenizer-plain encode --tokenizer "$golden" few.jsonl
        check "valgrind: training a vocabulary" memcheck tokenizer-plain train --vocab 320 \
            --out v few.jsonl
        minimind-plain pretrain --data few.jsonl $use_golden --steps 1 --batch 1 --seq 16 --out v \
            $small 2>log
        check "valgrind: training a model" memcheck minimind-plain pretrain --model v \
            --data few.jsonl --steps 1 --batch 1 --seq 16 --out v
        check "valgrind: generating" memcheck minimind-plain generate --model v --prompt "a" \
            --max-new-tokens 5
    else
        left_out "valgrind is not installed"
    fi

    group "Debugger"
    if have gdb; then
        need minimind-debug
        documents 60 >docs.jsonl
        check "gdb stops in a layer and prints its numbers" sh -c \
            'gdb -batch -ex "break router_forward" -ex run -ex "print K" -ex "print prob[0]@4" \
             --args ./minimind-debug pretrain --data docs.jsonl $1 --steps 1 --seq 8 \
             --out g 2>&1 | grep -q "= 2$"' sh "$use_golden"
    else
        left_out "gdb is not installed"
    fi
}

# ---- other people's data ------------------------------------------------------------------------

group_shared() {
    [ -d "$shared/golden/tokenizer" ] || { left_out "../shared: other people's data"; return; }
    group "../shared: other people's tokenizer, texts and conversations"
    need tokenizer minimind lab/grpo lab/choice
    theirs=$shared/data/minimind_tokenizer.json
    for file in golden/tokenizer/encode.jsonl data/tokenizer_vectors.jsonl; do
        sed 's/.*"ids": *\[\([^]]*\)\].*/\1/; s/,/ /g; s/  */ /g' "$shared/$file" >want.txt
        encode "$theirs" <"$shared/$file" >got.txt 2>log
        same "ids of $file" want.txt got.txt
    done
    for lang in en zh; do
        train 2292 out_$lang "$shared/golden/tokenizer/train_$lang.txt" 2>log
        merges out_$lang/tokenizer.json >got.txt
        same "merges of golden/tokenizer/train_$lang.txt" \
            "$shared/golden/tokenizer/merges_train_$lang.txt" got.txt
    done
    tokenizer train --vocab 6400 --out out_all "$shared/data/pretrain_en.jsonl" \
        "$shared/data/pretrain_zh.jsonl" 2>log
    merges out_all/tokenizer.json >got.txt
    same "all 6,108 merges of data" "$shared/data/tokenizer_train_merges.txt" got.txt
    sed 's/.*"rendered"://; s/}$//' "$shared/golden/tokenizer/chat.jsonl" >want.txt
    tokenizer chat --tokenizer "$theirs" "$shared/golden/tokenizer/chat.jsonl" >got.txt 2>log
    same "every line of golden/tokenizer/chat.jsonl" want.txt got.txt
    for file in sft reason reason_fields minimind_lora_identity minimind_r1_mix_1024; do
        check "sft on data/$file.jsonl" minimind sft --data "$shared/data/$file.jsonl" --steps 1 \
            --tokenizer "$theirs" --seq 64 --out tmp --hidden-size 32
    done
    check "dpo on data/dpo.jsonl" minimind dpo --model tmp --data "$shared/data/dpo.jsonl" \
        --steps 1 --seq 64 --batch 2 --out tmp2
    check "grpo on data/grpo_math.jsonl" lab/grpo --model tmp --steps 1 --batch 1 \
        --data "$shared/data/grpo_math.jsonl" --num-generations 2 --max-new-tokens 8 --out tmp2
    check "choice on data/mc_zh.jsonl" lab/choice --model tmp --data "$shared/data/mc_zh.jsonl"
}

# ---- the command line ---------------------------------------------------------------------------

if [ "$1" = --stop ]; then
    stop=yes fast="-O1 $native $openmp"
    shift
fi
for wanted in "$@"; do
    case " $(echo $all_groups) " in
    *" $wanted "*) ;;
    *) echo "tests.sh: there is no group $wanted; groups: $(echo $all_groups)" >&2; exit 2 ;;
    esac
done
[ "$openmp" ] || left_out "this compiler has no OpenMP: all cores"
for wanted in ${*:-$all_groups}; do group_$wanted; done
finish
