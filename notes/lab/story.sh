#!/bin/sh
# story.sh - the whole story of a tiny language model, as the commands that a user would type.
#
#     notes/lab/story.sh [--seed 1] [--documents 30000] [--threads N]
#
# It makes a tiny world and a tokenizer, then trains one model stage by stage: pretraining, SFT,
# DPO, thinking, GRPO. Each command is printed before it runs, so that you can run it again by hand
# with other options. After each stage the same held-out files measure the model, which also
# answers a few questions. The figures go to out/metrics.csv, and at the end into one table.
#
# Learning rates are high and batches are small because the story is short: some minutes on two
# cores. Commands and progress go to stderr, results to stdout. Ctrl-C ends the story; the stage
# that was running saves its checkpoint first.

set -e
trap 'exit 130' INT # a stage that is interrupted saves and exits with 0, so -e would not notice
export LC_ALL=C # awk then writes 0.5, never 0,5
cd "$(dirname "$0")/../.."

# ---- options ------------------------------------------------------------------------------------

die() {
    echo "story.sh: $1" >&2
    exit 1
}

seed=1
documents=30000
threads= # empty, or "--threads N"; used without quotes, so that it becomes two words or none
while [ $# -gt 0 ]; do
    [ $# -gt 1 ] || die "$1: allowed are --seed N, --documents N and --threads N"
    case $1 in
    --seed) seed=$2 ;;
    --documents) documents=$2 ;;
    --threads) threads="--threads $2" ;;
    *) die "$1: allowed are --seed N, --documents N and --threads N" ;;
    esac
    shift 2
done

# ---- helpers ------------------------------------------------------------------------------------

# Prints the command as one could type it, with quotes and line breaks where needed. Then runs it.
run() {
    line='$'
    for word in "$@"; do
        case $word in
        --*)
            if [ ${#line} -gt 78 ]; then
                printf '%s \\\n' "$line" >&2
                line='   '
            fi
            ;;
        *\'*) word="\"$word\"" ;;
        '' | *[!A-Za-z0-9_./,=-]*) word="'$word'" ;;
        esac
        line="$line $word"
    done
    printf '%s\n' "$line" >&2
    "$@"
}

# build PROGRAM SOURCE [INCLUDED]... compiles a program that is missing or older than its sources.
build() {
    program=$1
    shift
    if [ -x "$program" ] && [ -z "$(find "$@" -newer "$program")" ]; then return; fi
    run $cc $flags -o "$program" "$1" -lm
}

seconds() { echo $(($(date +%s) - start)); }

# begin STAGE TEXT: the line that says what the stage is for.
begin() {
    stage=$1
    printf '\n%s (%s seconds so far)\n' "$2" "$(seconds)" >&2
}

# evaluate [OPTION VALUE]... measures the checkpoint of this stage.
evaluate() {
    run ./minimind eval --model "out/$stage" "$@" $threads >out/eval.txt
    cat out/eval.txt
}

# figure NAME prints a figure of the last evaluation, a percentage as a share from 0 to 1.
figure() {
    found=$(sed -n "s/^$1  *\([^ ]*\).*/\1/p" out/eval.txt)
    [ "$found" ] || die "out/eval.txt has no figure called $1"
    case $1 in
    *%) found=$(awk "BEGIN { printf \"%.6f\", $found / 100 }") ;;
    esac
    echo "$found"
}

# record METRIC NAME [FLOOR_OR_TARGET] adds a figure of the last evaluation to out/metrics.csv. The
# targets are what this story has to reach for any seed; it prints them nowhere else.
record() {
    value=$(figure "$2")
    echo "$stage,$1,$value,$3" >>out/metrics.csv
}

# generate --ask QUESTION | --prompt TEXT [OPTION VALUE]... lets the model of this stage answer or
# continue, always with the likeliest token. Shows it on one line, with \n for line breaks.
generate() {
    run ./minimind generate --model "out/$stage" "$@" --temperature 0 --max-new-tokens 60 \
        $threads >out/answer.txt
    if [ "$1" = --ask ]; then printf '%s -> ' "$2"; fi
    awk '{ printf "%s%s", end_of_line, $0; end_of_line = "\\n" } END { print "" }' out/answer.txt
}

# What is done after each stage: measure the model on held-out data, and let it answer.
measure() {
    printf '\nafter %s\n' "$stage"
    evaluate --task ppl --data out/world/pretrain_held_out.jsonl
    floor=$(figure floor)
    record bits_per_byte 'bits per byte' "$floor"

    # Questions about the half of the world that SFT never asks about.
    evaluate --task qa --data out/world/sft_held_out.jsonl --max-new-tokens 40 --contains ' :)'
    record exact_match 'right, %' 0.88
    record preferred_manner 'contains, %' 0.95
    evaluate --task pref --data out/world/dpo_held_out.jsonl
    record preference_accuracy 'chosen preferred, %' 0.95

    # The same sums twice: answered at once, and after thinking.
    evaluate --task qa --data out/world/reason_held_out.jsonl --max-new-tokens 40
    record sums_at_once 'right, %'
    evaluate --task think --data out/world/reason_held_out.jsonl --max-new-tokens 60
    record sums_after_thinking 'right, %' 0.95

    # Second and third questions of a conversation, once a model has learned to answer.
    turns='2 3'
    case $stage in nothing | pretrain) turns= ;; esac
    for turn in $turns; do
        evaluate --task qa --data out/world/sft_held_out_turn_$turn.jsonl --max-new-tokens 40
        record exact_match_turn_$turn 'right, %'
        evaluate --task think --data out/world/reason_held_out_turn_$turn.jsonl --max-new-tokens 60
        record sums_turn_$turn 'right, %'
    done

    generate --ask "$first_question"
    generate --ask "$middle_question"
    generate --ask "$first_sum" --think 1
    generate --prompt 'One day'
    generate --prompt '有一天'
}

# question FILE LINE prints what the user asks in that line of a file of conversations.
question() { sed -n "$2"'s/.*"user", "content": "\([^"]*\)".*/\1/p' "$1"; }

# ---- 1. a world ---------------------------------------------------------------------------------

start=$(date +%s)
mkdir -p out/lab
cc=${CC:-cc}
flags=-O3
for flag in -march=native -fopenmp; do # not every compiler accepts them
    if echo 'int main(void) { return 0; }' | $cc $flag -x c -o out/lab/probe - 2>/dev/null; then
        flags="$flags $flag"
    fi
done
rm -f out/lab/probe
build ./minimind minimind.c tokenizer.c
build ./tokenizer tokenizer.c
build out/lab/world notes/lab/world.c minimind.c tokenizer.c
build out/lab/grpo notes/lab/grpo.c minimind.c tokenizer.c

begin nothing "1. A tiny world of people, animals and cities, and a tokenizer for its texts"
run out/lab/world --seed "$seed" --documents "$documents" --out out/world
# 2048 tokens are enough for every name to become one token.
run ./tokenizer train --vocab 2048 --single-digits 1 --out out/tokenizer \
    out/world/pretrain.jsonl out/world/keep.jsonl

held_out=out/world/sft_held_out.jsonl
first_question=$(question $held_out 1)
middle_question=$(question $held_out $(($(wc -l <$held_out) / 2 + 1)))
first_sum=$(question out/world/reason_held_out.jsonl 1)
echo stage,metric,value,floor_or_target >out/metrics.csv

# The stage "nothing" is the model before any training: one step with a learning rate of 0 leaves it
# as it was initialised.
run ./minimind pretrain --data out/world/pretrain.jsonl \
    --held-out out/world/pretrain_held_out.jsonl --tokenizer out/tokenizer --out out/nothing \
    --steps 1 --lr 0 --batch 8 --seq 128 --seed "$seed" $threads
measure

# ---- 2 to 7. the stages -------------------------------------------------------------------------

begin pretrain "2. Pretraining: it learns to predict the next token, and by that to know the world"
run ./minimind pretrain --data out/world/pretrain.jsonl \
    --held-out out/world/pretrain_held_out.jsonl --tokenizer out/tokenizer --out out/pretrain \
    --steps 2800 --lr 3e-3 --warmup 50 --batch 8 --seq 128 --beta2 0.99 --weight-decay 0.02 \
    --eval-every 700 --seed "$seed" $threads
measure

begin sft "3. SFT: it learns to answer questions on half of the world; the other half is the test"
# The high weight decay keeps it from memorising the answers to the questions that it is asked.
run ./minimind sft --model out/pretrain --data out/world/sft.jsonl,out/world/again.jsonl \
    --held-out out/world/sft_held_out.jsonl --out out/sft --epochs 2 --lr 1e-3 --warmup 20 \
    --batch 16 --seq 256 --beta2 0.99 --weight-decay 0.3 --seed "$seed" $threads
measure

begin dpo "4. DPO: it learns which of two manners of answering people prefer, the one with a smile"
# The steps are small and measured often: DPO that continues after its aim is reached costs
# knowledge. It stops when 98 % of some answers end in the preferred manner.
run ./minimind dpo --model out/sft --data out/world/dpo.jsonl \
    --held-out out/world/dpo_held_out.jsonl --out out/dpo --epochs 3 --lr 3e-5 --warmup 5 \
    --batch 8 --seq 256 --beta2 0.999 --weight-decay 0 --eval-every 2 --task qa \
    --eval-data out/world/keep.jsonl --rows 256 --contains ' :)' --max-new-tokens 60 \
    --until 0.98 --seed "$seed" $threads
measure

begin think "5. Thinking: SFT on sums that are worked digit by digit before they are answered"
# keep.jsonl holds more questions, all answered with a smile, and again.jsonl more texts as in
# pretraining: mixed into later stages, so that the model does not forget.
sums=out/world/reason.jsonl,out/world/keep.jsonl,out/world/again.jsonl
run ./minimind sft --model out/dpo --data $sums --held-out out/world/reason_held_out.jsonl \
    --out out/think --epochs 1 --lr 2e-3 --warmup 20 --batch 16 --seq 256 --beta2 0.99 \
    --weight-decay 0.1 --seed "$seed" $threads
measure

begin early "6. The same with fewer sums, stopped when 70 % are right: a start for GRPO"
sums=out/world/few.jsonl,out/world/keep.jsonl,out/world/again.jsonl
run ./minimind sft --model out/dpo --data $sums --held-out out/world/reason_held_out.jsonl \
    --out out/early --epochs 1 --lr 1e-3 --warmup 20 --batch 16 --seq 256 --beta2 0.99 \
    --weight-decay 0.1 --eval-every 4 --task think --eval-data out/world/grpo.jsonl --rows 128 \
    --max-new-tokens 60 --until 0.7 --seed "$seed" $threads
measure

begin grpo "7. GRPO: that model improves by trying: it answers, and learns from what was right"
run out/lab/grpo --model out/early --data out/world/grpo.jsonl \
    --held-out out/world/grpo_held_out.jsonl --out out/grpo --steps 150 --lr 3e-4 --warmup 5 \
    --batch 16 --num-generations 8 --beta2 0.99 --weight-decay 0 --beta 0.04 --temperature 1 \
    --think 1 --max-new-tokens 60 --eval-every 10 --task think \
    --eval-data out/world/grpo.jsonl --rows 256 --until 0.97 --seed "$seed" $threads
measure

# ---- the table ----------------------------------------------------------------------------------

# One column per stage and one row per metric, both in the order in which they were recorded.
awk -F, '
    NR == 1 { next } # the names of the columns
    !($1 in floor) { stage[++n_stages] = $1; floor[$1] = $4 } # the first metric is bits_per_byte
    !($2 in known) { metric[++n_metrics] = $2; known[$2] = 1 }
    { value[$1, $2] = $3 }
    END {
        printf "\n%-22s", ""
        for (s = 1; s <= n_stages; s++) printf "%11s", stage[s]
        for (m = 1; m <= n_metrics; m++) {
            printf "\n%-22s", metric[m]
            for (s = 1; s <= n_stages; s++) {
                x = value[stage[s], metric[m]]
                if (x == "") printf "%11s", "-"
                else if (m == 1) printf "%11.4f", x
                else printf "%10.1f%%", 100 * x
            }
        }
        printf "\n%-22s", "bits over the floor"
        for (s = 1; s <= n_stages; s++)
            printf "%10.1f%%", 100 * (value[stage[s], metric[1]] / floor[stage[s]] - 1)
        printf "\n"
    }' out/metrics.csv
echo "$(seconds) seconds" >&2
