#!/bin/sh
# Every test, one line each, and "N passed, N failed" at the end; exit status 1 if any failed.
#
#     make test      or      ./tests.sh
#
# It needs a C compiler and POSIX tools. What gcc, clang, gdb, valgrind or the folder ../shared
# (other people's data, not part of this repository) would add is left out where they are missing,
# and that is said. Everything is built and written in a temporary folder.

root=$(cd "$(dirname "$0")" && pwd)
shared=$root/../shared
tmp=$(mktemp -d) || exit 1
trap 'rm -rf "$tmp"' EXIT
trap 'exit 1' INT TERM
cd "$tmp" && mkdir lab || exit 1
PATH=$tmp:$PATH
export ASAN_OPTIONS=detect_leaks=0
export OMP_WAIT_POLICY=passive # waiting threads leave their cores to other programs
passed=0 failed=0

group() { printf '\n%s\n' "$1"; }
left_out() { echo "left out: $1"; }
have() { command -v "$1" >/dev/null 2>&1; }

# check NAME COMMAND...: the command succeeds. What it printed is shown only if it did not.
check() {
    name=$1
    shift
    if "$@" >log 2>&1; then
        passed=$((passed + 1))
        echo "  ok      $name"
    else
        failed=$((failed + 1))
        echo "  FAILED  $name"
        tail -5 log | sed 's/^/          /'
    fi
}

# refuses NAME TEXT COMMAND...: exit status 1, and the last line on stderr is the one message of the
# program, "minimind: ..." or "tokenizer: ...", and contains TEXT.
refuses() {
    name=$1 text=$2
    shift 2
    "$@" >out.txt 2>err.txt
    echo "exit status $?" >>out.txt
    check "$name" sh -c 'cat err.txt; tail -1 out.txt; grep -q "exit status 1$" out.txt &&
        test $(grep -cE "^(minimind|tokenizer): " err.txt) -eq 1 &&
        tail -1 err.txt | grep -qF -- "$1"' sh "$text"
}

# says NAME EXPECTED COMMAND...: succeeds and prints exactly that.
says() {
    name=$1
    printf '%s\n' "$2" >expected.txt
    shift 2
    "$@" >got.txt 2>log
    check "$name" sh -c "test $? -eq 0 && diff expected.txt got.txt"
}

build() { # build PROGRAM SOURCE COMPILER OPTION...
    program=$1 source=$2
    shift 2
    "$@" -o "$tmp/$program" "$root/$source" -lm
}

group "Building"
strict='-std=c11 -Wall -Wextra -Wpedantic -Wshadow -Werror'
for cc in gcc clang; do
    have $cc || { left_out "$cc is not installed"; continue; }
    check "$cc: tokenizer.c without a warning" build tokenizer-$cc tokenizer.c $cc $strict -O3
    check "$cc: minimind.c without a warning" build minimind-$cc minimind.c $cc $strict -O3
    for lab in check bench grpo world choice; do
        check "$cc: notes/lab/$lab.c without a warning" \
            build lab/$lab-$cc notes/lab/$lab.c $cc $strict -O3
    done
done
trivial='int main(void) {return 0;}'
openmp=$(echo "$trivial" | cc -fopenmp -x c - -o probe 2>/dev/null && echo -fopenmp)
[ "$openmp" ] || left_out "this compiler has no OpenMP: all cores"
double=$(sed -n 's/^DOUBLE = //p' "$root/Makefile")
sanitize='-O1 -g -fsanitize=address,undefined -fno-sanitize-recover=all'
check "the one command" build minimind-one minimind.c cc -O3 -march=native
check "with OpenMP" build minimind minimind.c cc -O3 -march=native $openmp
for lab in check grpo world choice; do
    check "notes/lab/$lab.c" build lab/$lab notes/lab/$lab.c cc -O3 -march=native $openmp
done
check "check in double precision" build lab/check-double notes/lab/check.c cc -O3 -march=native \
    $openmp $double
check "for the debugger" build minimind-debug minimind.c cc -O0 -g3
check "tokenizer" build tokenizer tokenizer.c cc -O3 -march=native
if echo "$trivial" | cc -x c - $sanitize -o probe 2>/dev/null; then
    check "with sanitizers of addresses and undefined behaviour" \
        build minimind-san minimind.c cc $sanitize
    check "check, the same" build lab/check-san notes/lab/check.c cc $sanitize
    check "grpo, the same" build lab/grpo-san notes/lab/grpo.c cc $sanitize
else
    left_out "this compiler has no sanitizers"
    cp minimind-debug minimind-san && cp lab/check lab/check-san && cp lab/grpo lab/grpo-san
fi
check "no line has more than 100 columns" env LC_ALL=C sh -c "$(cat <<'AWK'
awk '{gsub(/[\200-\277]/, "")} length > 100 {print FILENAME ": " FNR; bad = 1} END {exit bad}' "$@"
AWK
)" sh "$root"/minimind.c "$root"/tokenizer.c "$root"/tests.sh "$root"/notes/lab/*

group "Tokenizer"
printf 'low low lower\n' >low.txt
printf '{"text": "low low"}\n{"conversations": [{"role": "user", "content": "lower"}]}\n' >low.jsonl
train() { tokenizer train --vocab "$1" --out "$2" "$3"; }
check "train" train 297 low low.txt
says "decode" "low lower<|im_end|>" sh -c \
    'echo 293 296 2 | tokenizer decode --tokenizer low | tr -d \"'
says "encode" "293 296 2" sh -c \
    'echo "{\"text\": \"low lower<|im_end|>\"}" | tokenizer encode --tokenizer low'
says "a text comes back, whatever is in it" '"你😀 x\n"' sh -c \
    'printf "%s\n" "{\"text\": \"\\u4f60\\ud83d\\ude00 x\\n\"}" | tokenizer encode --tokenizer low |
     tokenizer decode --tokenizer low'
cat >mixed.txt <<'END'
春眠不觉晓，处处闻啼鸟。夜来风雨声，花落知多少。
床前明月光，疑是地上霜。举头望明月，低头思故乡。
白日依山尽，黄河入海流。欲穷千里目，更上一层楼。I'm sure they'll say it's 3 o'clock.
The quick brown fox  jumps over   the lazy dog; 12345 times, isn't it?	Tab.
END
lab/world --documents 300 --seed 1 --out texts
# What Hugging Face's BpeTrainer and encoder (tokenizers 0.23) make of the same texts, as checksums.
check "mixed text" tokenizer train --vocab 1000 --out mixed mixed.txt texts/pretrain.jsonl
says "the merges that Hugging Face finds" "2970658878 11557" sh -c \
    "sed -n '/\"merges\"/,\$p' mixed/tokenizer.json | cksum"
says "the ids that Hugging Face finds" "422745682 59415" sh -c \
    'tokenizer encode --tokenizer mixed mixed.txt texts/pretrain.jsonl | cksum'
check "fewer merges than asked for" train 5000 few low.txt
check "JSONL with conversations" train 300 talk low.jsonl
refuses "a vocabulary smaller than bytes and special tokens" "vocab" train 10 bad low.txt
: >empty.txt
refuses "an empty file" "empty.txt" train 300 bad empty.txt
refuses "a file that is not there" "nowhere.txt" train 300 bad nowhere.txt
echo '{"foo": 1}' >foo.jsonl
refuses "a record without text" "foo.jsonl" train 300 bad foo.jsonl
refuses "an unknown option" "--foo" tokenizer encode --foo x
refuses "an id that is no token" '"297" is no id' sh -c \
    'echo 297 | tokenizer decode --tokenizer low'
head -c 3000 low/tokenizer.json >cut.json
refuses "a tokenizer cut off" "cut.json" tokenizer show --tokenizer cut.json x
sed 's/"BPE"/"WordPiece"/' low/tokenizer.json >piece.json
refuses "another kind of tokenizer" "piece.json" tokenizer show --tokenizer piece.json x
check "show" sh -c 'tokenizer show --tokenizer low "low lower" | grep -q 293'
if [ -d "$shared/golden/tokenizer" ]; then
    ids() { tokenizer encode --tokenizer "$shared/data/minimind_tokenizer.json" <"$1"; }
    for f in golden/tokenizer/encode.jsonl data/tokenizer_vectors.jsonl; do
        sed 's/.*"ids": *\[\([^]]*\)\].*/\1/; s/,/ /g; s/  */ /g' "$shared/$f" >want.txt
        ids "$shared/$f" >got.txt 2>log
        check "ids of ../shared/$f" cmp want.txt got.txt
    done
    merges() { # the merges of a tokenizer.json, one a line as "a b"
        sed -n '/"merges"/,$p' "$1" |
            sed '1d; s/^\["//; s/"\][],}]*$//; s/", "/ /; s/\\\(["\\]\)/\1/g'
    }
    for lang in en zh; do
        train 2292 out_$lang "$shared/golden/tokenizer/train_$lang.txt" 2>log
        merges out_$lang/tokenizer.json >got.txt
        check "merges of ../shared/golden/tokenizer/train_$lang.txt" \
            cmp "$shared/golden/tokenizer/merges_train_$lang.txt" got.txt
    done
    tokenizer train --vocab 6400 --out out_all "$shared/data/pretrain_en.jsonl" \
        "$shared/data/pretrain_zh.jsonl" 2>log
    merges out_all/tokenizer.json >got.txt
    check "all 6,108 merges of ../shared/data" cmp "$shared/data/tokenizer_train_merges.txt" got.txt
else
    left_out "../shared/golden/tokenizer: other people's vectors"
fi

group "Gradients and pairs"
all_ok() { "$@" >check.txt 2>&1; status=$?; grep -v '^ok' check.txt; return $status; }
check "every variant, float" all_ok lab/check
check "every variant, one thread" all_ok lab/check --threads 1
check "the definitions themselves, float" all_ok lab/check --plain 1
check "every variant, double: differences to 1e-6" \
    all_ok lab/check-double --threads 1
check "the definitions, double" all_ok lab/check-double --plain 1
for cc in gcc clang; do
    [ -x lab/check-$cc ] || continue
    check "every variant, $cc -O3 without -march and OpenMP" all_ok lab/check-$cc
done
check "every variant, sanitized" all_ok lab/check-san

group "Golden numbers"
for f in "$root"/notes/golden/*.txt; do
    check "$(basename "$f" .txt)" all_ok lab/check "$f"
    check "$(basename "$f" .txt), by the definitions" all_ok lab/check --plain 1 "$f"
done
if [ -d "$shared/golden" ]; then # LoRA and distillation are not here yet
    for f in "$shared"/golden/*.txt; do
        case $f in *lora* | *distill*) continue ;; esac
        check "../shared/golden/$(basename "$f")" all_ok lab/check "$f"
    done
fi
golden=$root/notes/golden/c_moe_top2.txt
lab/check --threads 1 "$golden" >one.txt
lab/check "$golden" >many.txt
check "the same digits with one thread and with all" cmp one.txt many.txt
{ cat "$golden"; printf 'surprise\t1\n'; } >unknown.txt
check "an unknown key is reported" sh -c \
    '! lab/check unknown.txt >log2 && grep -q surprise log2'
sed 's/^loss_ce\t[0-9.]*/loss_ce\t1.0/' "$golden" >wrong.txt
check "a wrong number is found" sh -c \
    '! lab/check wrong.txt >log2 && grep -q "FAILED loss_ce" log2'
echo '# nothing' >nothing.txt
check "a file without a record is reported" sh -c '! lab/check nothing.txt'

group "The tiny world"
check "write one" lab/world --out world --documents 3000 --seed 3
check "once more" lab/world --out again --documents 3000 --seed 3
check "the same seed gives the same texts" cmp world/pretrain.jsonl again/pretrain.jsonl
lab/world --out other --documents 3000 --seed 4 2>log
check "another seed gives others" sh -c '! cmp -s world/pretrain.jsonl other/pretrain.jsonl'
check "no held-out text is trained on" sh -c \
    'sort -u world/pretrain.jsonl >a.txt; sort -u world/pretrain_held_out.jsonl >b.txt
     test -s b.txt && test -z "$(comm -12 a.txt b.txt)"'
tokenizer train --vocab 1000 --out tok world/pretrain.jsonl 2>log

group "Training"
pretrain() { # pretrain OUT OPTION...
    out=$1
    shift
    minimind pretrain --data world/pretrain.jsonl --held-out world/pretrain_held_out.jsonl \
        --tokenizer tok --seq 64 --lr 5e-3 --warmup 10 --beta2 0.99 --out "$out" "$@"
}
small='--hidden-size 64 --num-hidden-layers 2'
check "one thread" pretrain one --steps 20 --threads 1 $small
check "two threads" pretrain two --steps 20 --threads 2 $small
check "the same weights, bit for bit" cmp one/model.safetensors two/model.safetensors
check "--plain 1 trains by the definitions" pretrain plain5 --steps 5 --plain 1 --seq 32 \
    $small
check "the same as fast code" pretrain fast5 --steps 5 --seq 32 $small
check "the same loss to six digits" sh -c 'paste -d, plain5/train.csv fast5/train.csv |
    awk -F, "NR > 1 {d = \$2 - \$11; if (d * d > 4e-12) bad = 1} END {exit bad || NR != 6}"'
check "activations computed again" pretrain again1 --steps 20 --recompute 1 $small
check "the same weights once more" cmp one/model.safetensors again1/model.safetensors
dense="$small --use-moe 0"
check "one batch of 6" pretrain big --steps 20 --batch 6 $dense
check "the same in two passes of 3" pretrain parts --steps 20 --batch 3 --accumulate 2 $dense
check "the same loss" sh -c 'paste -d, big/train.csv parts/train.csv |
    awk -F, "NR > 1 {d = \$2 - \$11; if (d * d > 1e-8) bad = 1} END {exit bad || NR != 21}"'
check "it learns: 400 steps" pretrain model --steps 400 --seq 128
check "held-out bits per byte below three times the floor" sh -c \
    'minimind eval --model model --data world/pretrain_held_out.jsonl >eval.txt && cat eval.txt &&
     awk "/^bits per byte/ {b = \$4} /^floor/ {f = \$2} END {exit !(b > f && b < 3 * f)}" eval.txt'
check "going on from a checkpoint" minimind pretrain --model model --data world/pretrain.jsonl \
    --steps 2 --out more --lr 1e-4 --seq 64
check "starts where it stopped" awk -F, 'NR == 2 {exit !($2 < 3)}' more/train.csv
check "plain text" minimind pretrain --data "mixed.txt,$root/minimind.c" --tokenizer tok --steps 2 \
    --out plain $small
cp -r model sick
{ # the last number, one of the final norm's, becomes the largest there is
    head -c $(($(wc -c <model/model.safetensors) - 4)) model/model.safetensors
    printf '\377\377\177\177'
} >sick/model.safetensors
refuses "a loss that is not finite" "first bad tensor: model.embed_tokens.weight" \
    minimind pretrain --model sick --data world/pretrain.jsonl --steps 5 --out bad
check "sanitized" minimind-san pretrain --data world/pretrain.jsonl --tokenizer tok --steps 3 \
    --out san $small

group "Chat template and mask"
chats='{"messages": [{"role": "user", "content": "1+1?"}, {"role": "assistant", "content": "2"}]}'
printf '%s\n' "$chats" >chat.jsonl
user='<|im_start|>user\n1+1?<|im_end|>\n'
says "a conversation" \
    "\"$user<|im_start|>assistant\\n<think>\\n\\n</think>\\n\\n2<|im_end|>\\n\"" \
    tokenizer chat --tokenizer low chat.jsonl
says "trained: from <think> to <|im_end|>, and nothing else" \
    "<think>|\n|\n|</think>|\n|\n|2|<|im_end|>|" sh -c \
    'tokenizer show --tokenizer low --chat 1 chat.jsonl |
     awk "/^[0-9]/ && \$3 == 1 {printf \"%s|\", \$4} END {print \"\"}"'
echo '{"messages": [{"role": "wizard", "content": "x"}]}' >wizard.jsonl
refuses "an unknown role" "wizard.jsonl:1" tokenizer chat --tokenizer low wizard.jsonl
echo '{"messages": [{"role": "assistant", "content": "", "tool_calls": "[{"}]}' >calls.jsonl
refuses "tool calls that are no JSON" "calls.jsonl:1" tokenizer chat --tokenizer low calls.jsonl
if [ -d "$shared/golden/tokenizer" ]; then
    sed 's/.*"rendered"://; s/}$//' "$shared/golden/tokenizer/chat.jsonl" >want.txt
    tokenizer chat --tokenizer low "$shared/golden/tokenizer/chat.jsonl" >got.txt 2>log
    check "every line of ../shared/golden/tokenizer/chat.jsonl" cmp want.txt got.txt
fi

group "From parrot to assistant"
stage() { # stage NAME MODEL OUT OPTION...
    name=$1 from=$2 out=$3
    shift 3
    program=minimind
    [ "$name" != grpo ] || program=lab/grpo
    [ "$name" != grpo ] || name=
    $program $name --model "$from" --out "$out" "$@" \
        --held-out "world/${file:-${name:-grpo}}_held_out.jsonl"
}
check "sft" stage sft model sft --data world/sft.jsonl,world/again.jsonl --epochs 3 --lr 2e-3
check "bits per byte of held-out answers fall below 0.6" \
    awk -F, 'END {exit !($9 < 0.6 && $9 > 0)}' sft/train.csv
check "dpo" stage dpo sft dpo --data world/dpo.jsonl --lr 1e-4
check "the loss of its first step is log 2" awk -F, 'NR == 2 {exit !($2 > 0.6931 && $2 < 0.6932)}' \
    dpo/train.csv
check "every held-out pair has a positive margin" awk -F, 'END {exit $NF < 0.95}' dpo/train.csv
file=reason
check "thinking" stage sft dpo think --data world/reason.jsonl --steps 60 --lr 2e-3
file=
check "grpo" stage grpo think grpo --data world/grpo.jsonl --think 1 --steps 3 --batch 2 \
    --num-generations 4 --max-new-tokens 40 --updates 2
check "cispo" stage grpo think cispo --data world/grpo.jsonl --think 1 --steps 2 --batch 2 \
    --num-generations 4 --max-new-tokens 40 --loss cispo
stage grpo think grpo1 --data world/grpo.jsonl --think 1 --steps 3 --batch 2 --num-generations 4 \
    --max-new-tokens 40 --updates 2 --threads 1 2>log
check "grpo: the same bits with one thread" cmp grpo/model.safetensors grpo1/model.safetensors
for task in qa:sft think:reason pref:dpo; do
    check "eval --task ${task%:*}" minimind eval --model think --task "${task%:*}" \
        --data "world/${task#*:}_held_out.jsonl"
done
echo '{"question": "How?", "choices": ["so", "not so at all"], "answer": 1}' >mc.jsonl
says "multiple choice" "questions 1" sh -c \
    'lab/choice --model sft --data mc.jsonl | awk "NR == 1 {print \$1, \$2}"'
echo '{"conversations": [{"role": "user", "content": "1+1=?"},
    {"role": "assistant", "content": ""}], "gt": [2, "two"]}' | tr -d '\n' >gt.jsonl
says "eval writes the answers down and counts those that contain a text" "contains, 100" sh -c \
    'minimind eval --model sft --task qa --data gt.jsonl --contains "" --answers answers.jsonl |
     awk "/^contains/ {print \$1, \$3}" && grep -q "\"answer\"" answers.jsonl'
check "a stage that stops when a figure is reached" sh -c \
    'minimind sft --model model --data world/sft.jsonl --steps 50 --eval-every 2 --task qa \
     --eval-data world/keep.jsonl --rows 8 --until 0 --out until 2>/dev/null &&
     [ $(wc -l <until/train.csv) -eq 3 ]'
says "answers to check with may be numbers, files several" "questions 2" sh -c \
    'minimind eval --model sft --task qa --data gt.jsonl,gt.jsonl | awk "NR == 1 {print \$1, \$2}"'
check "chat, piped" sh -c 'printf "Hello\n/think\n/stats\nWho?\n/quit\nno\n" |
    minimind chat --model sft --max-new-tokens 20 2>err.txt | grep -q . &&
    grep -q "1 turns" err.txt'
for bad in '{"conversations": []}' '{"text": 5}' \
    '{"conversations": [{"role": "elf", "content": "x"}]}'; do
    printf '%s\n' "$bad" >bad.jsonl
    refuses "sft on $bad" "bad.jsonl:1" minimind sft --model model --data bad.jsonl
done
echo '{"chosen": [{"role": "user", "content": "x"}]}' >half.jsonl
refuses "a pair with one side" "half.jsonl" minimind dpo --model sft --data half.jsonl
echo '{"conversations": [{"role": "user", "content": "x"}]}' >silent.jsonl
refuses "nothing to train" "nothing to train" minimind sft --model model --data silent.jsonl
cat silent.jsonl world/sft.jsonl >mixed.jsonl
check "a conversation without an assistant is counted" sh -c \
    'minimind sft --model model --data mixed.jsonl --steps 1 --out tmp 2>&1 |
     grep -q "^1 records had nothing to train and were skipped, first line 1"'
check "rows longer than the context are counted" sh -c \
    'minimind sft --model model --data world/sft.jsonl --seq 32 --steps 1 --out tmp 2>&1 |
     grep -q "rows were longer than 32 tokens and cut"'
refuses "an answer cut off by the context" "nothing to train" \
    minimind sft --model model --data world/sft.jsonl --seq 3
head -3 world/sft.jsonl >three.jsonl
minimind sft --model model --data three.jsonl --steps 1 --out tmp 2>log
for f in out/cache/*.ids; do # the first id of each
    printf '\377\377\377\377' | dd of="$f" bs=1 conv=notrunc 2>log
done
refuses "a damaged token cache" "is damaged" \
    minimind sft --model model --data three.jsonl --steps 1 --out tmp
rm -r out/cache
minimind sft --model model --data three.jsonl --steps 1 --out tmp 2>log
for f in out/cache/*.documents; do # its first document claims 2^40 tokens
    printf '\000\000\000\000\000\001' | dd of="$f" bs=1 seek=8 conv=notrunc 2>log
done
refuses "a document in the cache that does not fit a row" "is damaged" \
    minimind sft --model model --data three.jsonl --steps 1 --out tmp
rm -r out/cache
if [ -d "$shared/data" ]; then
    real="$shared/data"
    for f in sft reason reason_fields minimind_lora_identity minimind_r1_mix_1024; do
        check "sft on ../shared/data/$f.jsonl" minimind sft --data "$real/$f.jsonl" --steps 1 \
            --tokenizer "$real/minimind_tokenizer.json" --seq 64 --out tmp --hidden-size 32
    done
    check "dpo on ../shared/data/dpo.jsonl" minimind dpo --model tmp --data "$real/dpo.jsonl" \
        --steps 1 --seq 64 --batch 2 --out tmp2
    check "grpo on ../shared/data/grpo_math.jsonl" lab/grpo --model tmp --steps 1 --batch 1 \
        --data "$real/grpo_math.jsonl" --num-generations 2 --max-new-tokens 8 --out tmp2
    check "choice on ../shared/data/mc_zh.jsonl" lab/choice --model tmp \
        --data "$real/mc_zh.jsonl"
fi

group "Generation and evaluation"
generate() { minimind generate --model model --max-new-tokens 40 --prompt "$@"; }
generate "This is" --seed 5 >a.txt 2>log
generate "This is" --seed 5 --threads 1 >b.txt 2>log
check "the same seed gives the same text" cmp a.txt b.txt
generate "This is" --seed 6 >b.txt 2>log
check "another seed another" sh -c '! cmp -s a.txt b.txt'
check "greedy" generate "One day" --temperature 0
check "Chinese comes out as UTF-8" sh -c \
    'minimind generate --model model --prompt "你" --temperature 3 --top-k 0 --top-p 1 2>/dev/null |
     iconv -f UTF-8 -t UTF-8'
long=$(awk 'BEGIN {for (i = 0; i < 600; i++) printf "a b "}')
refuses "a prompt longer than the context" "the context" \
    minimind generate --model model --prompt "$long"
check "a full context is said" sh -c \
    'minimind pretrain --data world/pretrain.jsonl --tokenizer tok --steps 1 --seq 16 --out tight \
     --max-position-embeddings 16 --hidden-size 32 &&
     minimind generate --model tight --prompt "One" --temperature 50 --top-k 0 --top-p 1 2>&1 |
     grep -q "context of 16 tokens is full"'
check "sanitized" minimind-san generate --model model --prompt "One day" --max-new-tokens 10
check "eval tells n and the standard error" sh -c \
    'grep -q "^documents  *230" eval.txt && grep -q "+-" eval.txt'

group "Presets"
count() { minimind info --preset "$1" | awk '/^parameters/ {print $2}'; }
says "minimind3 has 63,912,192 parameters" 63912192 count minimind3
says "minimind3-moe has 198,416,640" 198416640 count minimind3-moe
for p in tiny minimind2-small minimind2 minimind2-moe; do check "$p" minimind info --preset $p; done

group "Wrong input"
refuses "unknown command" "no command" minimind dance
refuses "unknown option" "--colour" minimind pretrain --colour red
refuses "missing value" "--steps" minimind pretrain --steps
refuses "not a number" "--lr fast" minimind pretrain --lr fast
refuses "out of range" "--batch 0" minimind pretrain --batch 0
refuses "unknown preset" "known are" minimind info --preset huge
refuses "sizes that do not fit" "heads" minimind info --hidden-size 100 --num-attention-heads 3
refuses "no data" "--data" minimind pretrain
refuses "--plain with packed weights" "f32" minimind generate --model model --weights int8 --plain 1
refuses "a switch that is neither 0 nor 1" "--plain 2" minimind pretrain --plain 2
check "no command: a short help" sh -c 'minimind | grep -q "^usage"'
refuses "empty data" "empty.txt" minimind pretrain --data empty.txt --tokenizer tok
refuses "data that is not there" "nowhere.jsonl" \
    minimind pretrain --data nowhere.jsonl --tokenizer tok
refuses "a record without text" "foo.jsonl:1" minimind pretrain --data foo.jsonl --tokenizer tok
refuses "no model" "nowhere" minimind generate --model nowhere --prompt x
damaged() { # damaged NAME TEXT FILE COMMAND: the model with FILE passed through COMMAND is refused
    rm -rf hurt && cp -r model hurt
    sh -c "$4" <"model/$3" >"hurt/$3"
    refuses "$1" "$2" minimind generate --model hurt --prompt x
}
damaged "weights cut off" "model.safetensors" model.safetensors 'head -c 200000'
damaged "weights of four bytes" "model.safetensors" model.safetensors 'head -c 4'
damaged "a header that is not JSON" "model.safetensors" model.safetensors "sed '1s/{/[/'"
damaged "another size in config.json" "config.json makes it" config.json 'sed s/192/200/'
damaged "a weight that is not a number" "not finite" model.safetensors \
    'head -c $(($(wc -c <model/model.safetensors) - 4)) && printf "\000\000\300\177"'
damaged "bytes that belong to no tensor" "leave gaps" model.safetensors 'cat && echo 123'
damaged "config.json that is not JSON" "config.json" config.json 'head -c 100'
damaged "an impossible config.json" "config.json" config.json 'sed "/hidden_size/s/[0-9][0-9]*/-3/"'
damaged "another activation function" "hidden_act" config.json 'sed s/silu/gelu/'
damaged "weights that may not be tied" "tie_word_embeddings" config.json 'sed /tie_word/d'
damaged "tokenizer cut off" "tokenizer.json" tokenizer.json 'head -c 5000'
refuses "a full disk" "cannot be written" sh -c 'minimind help >/dev/full'

group "Debugger and valgrind"
if have gdb; then
    check "gdb stops in a layer and prints its numbers" sh -c \
        'gdb -batch -ex "break router_forward" -ex run -ex "print K" -ex "print prob[0]@4" \
         --args ./minimind-debug pretrain --data world/pretrain.jsonl --tokenizer tok --steps 1 \
         --out g 2>&1 | grep -q "= 2$"'
else
    left_out "gdb is not installed"
fi
if have valgrind; then
    build minimind-plain minimind.c cc -O1 -g 2>/dev/null
    memcheck() { valgrind -q --error-exitcode=3 "$@"; }
    check "valgrind: training" memcheck ./minimind-plain pretrain --data low.txt,"$root/README.md" \
        --tokenizer tok --steps 1 --batch 1 --seq 16 --out v --hidden-size 32 --num-hidden-layers 1
    check "valgrind: generating" memcheck ./minimind-plain generate --model v --prompt "a" \
        --max-new-tokens 5
else
    left_out "valgrind is not installed"
fi

printf '\n%d passed, %d failed\n' $passed $failed
[ $failed -eq 0 ]
