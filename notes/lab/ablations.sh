#!/bin/sh
# ablations.sh - what breaks without it? Each part of the model is taken out once, and measured.
#
#     notes/lab/ablations.sh                 the list
#     notes/lab/ablations.sh no-rope         one, or several
#     notes/lab/ablations.sh all             all of them, about half an hour on one core
#
# An ablation changes lines of minimind.c (with sed, in a copy) or options, and then trains: the
# base and the changed program see the same data, in the same order, from the same first weights.
# Printed are the same figures of both. Everything is kept in out/ablations; remove that folder, or
# a part of it, to have it made again.
#
# Small models are used, so that an ablation takes a minute: the tiny world with 3000 texts, and a
# model of 64 numbers a token in 2 blocks. What is shown by them is the direction, not the size, of
# an effect in a large model.

set -e
export LC_ALL=C
export OMP_WAIT_POLICY=passive
cd "$(dirname "$0")/../.."
dir=out/ablations
world=$dir/world
mkdir -p $dir out/lab

# ---- how an ablation is made --------------------------------------------------------------------

build() { # build NAME [SED_SCRIPT]: the program $dir/NAME/minimind, from a changed copy
    [ -x "$dir/$1/minimind" ] && return
    mkdir -p "$dir/$1"
    cp tokenizer.c "$dir/$1"
    sed "$2" minimind.c >"$dir/$1/minimind.c"
    if [ "$2" ] && cmp -s minimind.c "$dir/$1/minimind.c"; then
        echo "ablations.sh: $1: the change does not apply any more" >&2
        exit 1
    fi
    ${CC:-cc} -O3 -march=native -o "$dir/$1/minimind" "$dir/$1/minimind.c" -lm
}

data() { # the world and its tokenizer
    [ -d $world ] && return
    build base
    ${CC:-cc} -O3 -o $dir/make_world notes/lab/world.c -lm
    ${CC:-cc} -O3 -o $dir/tokenizer tokenizer.c
    $dir/make_world --documents 3000 --seed 1 --out $world
    $dir/tokenizer train --vocab 1000 --single-digits 1 --out $dir/tok $world/pretrain.jsonl \
        2>/dev/null
}

dense="--hidden-size 64 --num-hidden-layers 2 --num-attention-heads 4 --num-key-value-heads 2
    --intermediate-size 192 --use-moe 0"
moe="--hidden-size 64 --num-hidden-layers 2 --num-attention-heads 4 --num-key-value-heads 2
    --moe-intermediate-size 96 --num-experts 4"

# run NAME WHO COMMAND OPTION...: trains with the program of WHO into $dir/NAME/WHO, silently.
run() {
    name=$1 who=$2 command=$3
    shift 3
    to=$dir/$name/$who
    [ -s "$to/model.safetensors" ] && return
    $dir/$who/minimind $command --out "$to" --threads 1 "$@" 2>"$dir/$name/$who.log"
}

pretrain() { # pretrain NAME WHO OPTION...: 600 steps
    name=$1 who=$2
    shift 2
    run $name $who pretrain --data $world/pretrain.jsonl --held-out $world/pretrain_held_out.jsonl \
        --tokenizer $dir/tok --steps 600 --batch 8 --seq 128 --lr 3e-3 --warmup 20 --beta2 0.99 \
        --seed 1 "$@"
}

# column FILE NAME: the last value in that column of a train.csv.
column() {
    awk -F, -v name="$2" 'NR == 1 {for (i = 1; i <= NF; i++) if ($i == name) c = i}
        $c != "" {last = $c} END {print last}' "$1/train.csv"
}

report() { printf '%-22s %-34s %s\n' "$1" "$2" "$3"; } # report WHO FIGURE VALUE

# bits NAME WHO: bits per byte of held-out texts, measured by the same program that trained.
bits() {
    value=$($dir/$2/minimind eval --model $dir/$1/$2 --data $world/pretrain_held_out.jsonl \
        --threads 1 | awk '/^bits per byte/ {print $4}')
    report $2 "held-out bits per byte" $value
}

# compare NAME: base and ablation, pretrained in the same way.
compare() {
    name=$1
    shift
    for who in base $name; do
        pretrain $name $who $dense "$@"
        report $who "training loss, last step" "$(column $dir/$name/$who loss)"
        bits $name $who
    done
}

# ---- the ablations ------------------------------------------------------------------------------

list="no-rope no-scale"

# Attention without positions: a token knows which tokens came before it, not in which order.
no_rope() {
    build no-rope 's/double frequency = rope_frequency(c, i);/double frequency = 0;/'
    compare no-rope
}

# Scores are not divided by sqrt(D).
no_scale() {
    build no-scale 's|float scale = 1.0f / sqrtf(D)|float scale = 1.0f|'
    compare no-scale --qk-norm 0
}

# ---- the command line ---------------------------------------------------------------------------

if [ $# -eq 0 ]; then
    echo "ablations: $list"
    exit 0
fi
[ "$1" != all ] || set -- $list
build base
data
for name in "$@"; do
    case " $list " in
    *" $name "*) ;;
    *) echo "ablations.sh: there is no ablation $name; there are: $list" >&2; exit 1 ;;
    esac
    printf '\n%s\n' "$name"
    mkdir -p $dir/$name
    $(echo $name | tr - _)
done
