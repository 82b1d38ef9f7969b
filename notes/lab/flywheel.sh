#!/bin/sh
# flywheel.sh - one turn of the data flywheel: a model learns from its own answers, after somebody
# has said which of them are good.
#
#     notes/lab/flywheel.sh [MODEL [QUESTIONS [SEED [SKIP]]]]     default: out/early 400 1 0
#
# It needs what `make run` has left in out. SKIP: so many questions are left out first; a second
# turn should have new ones.
#
# Users ask sums, and the model answers each of them four times. We play the user: we know whether
# an answer is right. Then the same answers are used in three ways, each from the same MODEL:
#
#     likes      DPO on pairs: of two answers to a question, the right one was liked
#     checks     SFT on the first right answer to each question (rejection sampling)
#     no-checks  SFT on the first answer to each of the same questions, right or wrong: the control
#
# If no-checks gained as much as checks, then the check would not be what helps. All are measured on
# held-out sums, before and after, and compared question by question; and on facts and on texts,
# which shows what the turn has cost. Rates and epochs were chosen on out/world/grpo_held_out.jsonl,
# which is not measured here. Everything is kept in out/flywheel; about two minutes on one core.

set -e
export LC_ALL=C
cd "$(dirname "$0")/../.."
model=${1:-out/early} n_questions=${2:-400} seed=${3:-1} skip=${4:-0}
dir=out/flywheel
rm -rf $dir
mkdir -p $dir

# ---- 1. users ask, the model answers ------------------------------------------------------------

# Lines "question right-answer" of the training questions that are one sum. No held-out sum is among
# them: world.c sees to that.
sum='{"role": "user", "content": "\([0-9+]*=?\)"}'
sed -n "s/^{\"conversations\": \[$sum, {\"role\": \"assistant\", \"content\": \"\"}\], \
\"gt\": \[\"\([0-9]*\)\"\]}$/\1 \2/p" out/world/grpo.jsonl |
    awk -v skip="$skip" -v n="$n_questions" '!seen[$1]++ && ++i > skip && i <= skip + n' \
        >$dir/questions

# Lines "question TAB right-answer TAB answer", the answer as the text of a JSON string. Temperature
# 1 and no top-k or top-p: answers have to differ, or there is nothing to choose from.
while read -r question right; do
    for i in 1 2 3 4; do
        seed=$((seed + 1))
        printf '%s\t%s\t' "$question" "$right"
        ./minimind generate --model "$model" --ask "$question" --think 1 --temperature 1 --top-k 0 \
            --top-p 1 --max-new-tokens 60 --seed $seed --threads 1 2>/dev/null </dev/null |
            sed 's/\\/\\\\/g; s/"/\\"/g' |
            awk '{printf "%s%s", newline, $0; newline = "\\n"} END {print ""}'
    done
done <$dir/questions >$dir/answers

# ---- 2. the answers become data -----------------------------------------------------------------

# The last line of an answer is what it says after its thoughts. Answers to a question are
# neighbours; at the end of each group its records are written.
awk -F '\t' -v dir=$dir '
    function messages(answer) {
        return "[{\"role\": \"user\", \"content\": \"" question "\"}, " \
            "{\"role\": \"assistant\", \"content\": \"" answer "\"}]"
    }
    function finish_group() {
        if (good != "") {
            print "{\"conversations\": " messages(good) "}" >(dir "/checks.jsonl")
            print "{\"conversations\": " messages(first) "}" >(dir "/no-checks.jsonl")
            n_checks++
        }
        if (good == "" || bad == "") return
        print "{\"chosen\": " messages(good) ", \"rejected\": " messages(bad) "}" \
            >(dir "/likes.jsonl")
        n_likes++
    }
    $1 != question {
        finish_group()
        question = $1
        first = $3
        good = bad = ""
    }
    {
        n_lines = split($3, line, /\\n/)
        right = line[n_lines] == $2
        n_right += right
        if (right && good == "") good = $3
        if (!right && bad == "") bad = $3
    }
    END {
        finish_group()
        printf "%d answers drawn, %.1f %% of them right: ", NR, 100 * n_right / NR
        printf "%d pairs, %d right answers\n", n_likes, n_checks
    }' $dir/answers

# ---- 3. training --------------------------------------------------------------------------------

# train COMMAND NAME OPTION...: three passes over the data of that name.
train() {
    command=$1 name=$2
    shift 2
    ./minimind $command --model "$model" --data $dir/$name.jsonl --out $dir/$name --seq 256 \
        --epochs 3 --warmup 5 --seed 1 --threads 1 "$@" 2>$dir/$name.log
}
train dpo likes --lr 3e-5 --batch 8 --beta2 0.999 --weight-decay 0
train sft checks --lr 3e-4 --batch 16 --beta2 0.99
train sft no-checks --lr 3e-4 --batch 16 --beta2 0.99

# ---- 4. measuring, before and after -------------------------------------------------------------

# tell NAME MODEL: a line of the table. `change` is paired: each held-out sum before and after, b
# better and w worse of n; its standard error is sqrt(b + w - (b - w)^2 / n) / n.
held_out=out/world/reason_held_out
sums=$held_out.jsonl,${held_out}_turn_2.jsonl,${held_out}_turn_3.jsonl
tell() {
    ./minimind eval --model "$2" --task think --data "$sums" --max-new-tokens 60 --threads 1 \
        --answers $dir/$1.said >$dir/$1.sums
    ./minimind eval --model "$2" --task qa --data out/world/sft_held_out.jsonl \
        --max-new-tokens 40 --threads 1 >$dir/$1.facts
    ./minimind eval --model "$2" --data out/world/pretrain_held_out.jsonl --threads 1 >$dir/$1.text
    change=$(paste -d '\n' $dir/before.said $dir/$1.said | awk '
        {right = /"right": true[}]$/}
        NR % 2 == 1 {before = right; next}
        {n++; b += right && !before; w += before && !right}
        END {printf "%+.1f +- %.1f", 100 * (b - w) / n, 100 * sqrt(b + w - (b - w)^2 / n) / n}')
    printf '%-10s %14s %14s %14s %18s\n' "$1" "$(sed -n 's/^right, %  *//p' $dir/$1.sums)" \
        "$change" "$(sed -n 's/^right, %  *//p' $dir/$1.facts)" \
        "$(sed -n 's/^bits per byte  *//p' $dir/$1.text)"
}
printf '%-10s %14s %14s %14s %18s\n' '' 'sums right, %' change 'facts right, %' 'bits per byte'
tell before "$model"
for name in likes checks no-checks; do tell $name $dir/$name; done
