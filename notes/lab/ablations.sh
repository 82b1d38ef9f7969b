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

list="no-rope no-scale renormalised-top-1 no-balance experts-per-token no-shift prompts-trained
    no-end mean-of-means vocabulary"

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

# ---- chapter 3 ---------------------------------------------------------------------------------

# Ablations of chapter 3, mixture of experts.

# A program that also reports the router at each step: the length of its gradient, the mean
# probability of the chosen expert, and the share of tokens that the step sent to another expert.
# For 2 layers, 8 x 128 tokens and K = 1. It trains exactly as the base does.
router_watch() {
    build router-watch '/^    r.grad_norm = sqrt/i\
    double squares = 0, p = 0;\
    for (const Tensor *t = model->tensor; t < model->tensor + model->n_tensors; t++)\
        if (strstr(t->name, "mlp.gate.weight"))\
            squares += sum_of_squares(t->grad, tensor_size(t));\
    for (size_t i = 0; i < 2048; i++) {\
        const Routing *route = &a->layer[i / 1024].route;\
        size_t n = i % 1024;\
        p += route->prob[n * model->E + route->choice[n]] / 2048;\
    }\
    fprintf(stderr, "gradient %.3e\\nprobability %.4f\\n", sqrt(squares), p);
/^        adamw_step(run->model/i\
        int was[2][1024], moved = 0;\
        for (int l = 0; l < 2; l++)\
            memcpy(was[l], run->acts->layer[l].route.choice, sizeof was[l]);
/^        adamw_step(run->model/a\
        logp_of(run->model, run->acts, &run->batch, 0, run->batch.rows);\
        for (int i = 0; i < 2048; i++)\
            moved += was[i / 1024][i % 1024] != run->acts->layer[i / 1024].route.choice[i % 1024];\
        fprintf(stderr, "moved %.3f\\n", 100 * moved / 2048.0);'
}

# watched FILE NAME: the mean of what router_watch reported under that name in the last 100 steps.
watched() {
    sed -n "s/^$2 //p" "$1" | tail -n 100 | awk '{sum += $1} END {printf "%.3g\n", sum / NR}'
}

# load DIR: share of the tokens of the least and the most used expert, mean of the last 100 steps.
load() {
    tail -n 100 "$1/train.csv" | awk -F, '{least += $7; most += $8}
        END {printf "%.3f to %.3f\n", least / NR, most / NR}'
}

# routed NAME WHO TEXT OPTION...: pretrains a mixture of experts in $dir/NAME; its first figures.
routed() {
    name=$1 who=$2 text=$3
    shift 3
    mkdir -p $dir/$name
    pretrain $name $who $moe "$@"
    report "$text" "held-out bits per byte" "$(column $dir/$name/$who held_out)"
    report "$text" "load, least to most" "$(load $dir/$name/$who)"
}

# One expert per token. Its factor is its probability (raw), or 1 (renormalised), which gives the
# router no gradient. The dense model does the same work per token, with one expert instead of four.
renormalised_top_1() {
    router_watch
    pretrain renormalised-top-1 base $dense --intermediate-size 96
    report dense "held-out bits per byte" "$(column $dir/renormalised-top-1/base held_out)"

    for options in "raw 0 0.0005" "renormalised 1 0.0005" "and-no-balance 1 0"; do
        set -- $options
        routed renormalised-top-1/$1 router-watch $1 --num-experts-per-tok 1 \
            --norm-topk-prob $2 --router-aux-loss-coef $3
        log=$dir/renormalised-top-1/$1/router-watch.log
        report $1 "router's gradient" "$(watched $log gradient)"
        report $1 "probability of the chosen expert" "$(watched $log probability)"
        report $1 "tokens that change expert, %" "$(watched $log moved)"
    done
}

# The balance loss with three coefficients. Many narrow experts, so that one that nobody uses is
# missed; more layers and a higher rate than elsewhere.
no_balance() {
    for coefficient in 0 0.01 0.1; do
        routed no-balance/$coefficient base "coefficient $coefficient" --num-hidden-layers 4 \
            --num-experts 8 --moe-intermediate-size 32 --num-experts-per-tok 1 --lr 1e-2 \
            --router-aux-loss-coef $coefficient
    done
}

# How much do more experts per token help, and one that all tokens share? Dense models beside them:
# the one with 96 does the work of one expert, the one with 384 has the parameters of all four.
experts_per_token() {
    for width in 96 384; do
        mkdir -p $dir/experts-per-token/dense-$width
        pretrain experts-per-token/dense-$width base $dense --intermediate-size $width
        report "dense, F = $width" "held-out bits per byte" \
            "$(column $dir/experts-per-token/dense-$width/base held_out)"
    done
    for options in "1 0" "2 0" "4 0" "1 1"; do
        set -- $options
        routed experts-per-token/$1-$2 base "E = 4, K = $1, S = $2" --num-experts-per-tok $1 \
            --n-shared-experts $2
    done
}

# ---- chapter 4 ---------------------------------------------------------------------------------

# Ablations of chapter 4, losses and masks.

# The pretrained model, of the base program, that several ablations start from.
facts_model() {
    mkdir -p $dir/facts
    pretrain facts base $dense
}

# facts_sft NAME WHO FILE OPTION...: SFT of that model on conversations.
facts_sft() {
    name=$1 who=$2 files=$3
    shift 3
    run $name $who sft --model $dir/facts/base --data $files --held-out $world/sft_held_out.jsonl \
        --epochs 6 --lr 2e-3 --warmup 10 --beta2 0.99 --seed 1 "$@"
}

# eval_figure WHO TEXT FIGURE OPTION...: a figure that the base program measures, and masks.
eval_figure() {
    who=$1 text=$2 figure=$3
    shift 3
    value=$($dir/base/minimind eval --threads 1 "$@" | sed -n "s/^$figure  *//p")
    report "$who" "$text" "$value"
}

# Labels are not shifted: the target at a position is the token that the model has just read.
no_shift() {
    build no-shift 's/int next = t < n ? ids\[t + 1\] : 0;/int next = t < n ? ids[t] : 0;/'
    facts_model
    pretrain no-shift no-shift $dense
    for who in base no-shift; do
        model=$dir/facts/base
        [ $who = base ] || model=$dir/no-shift/no-shift
        report $who "training loss, last step" "$(column $model loss)"
        report $who "measured by itself, bits per byte" "$(column $model held_out)"
        eval_figure $who "measured by base, bits per byte" "bits per byte" --model $model \
            --data $world/pretrain_held_out.jsonl
    done
    report no-shift "writes" "$($dir/base/minimind generate --model $model --prompt "One day" \
        --temperature 0 --max-new-tokens 10 --threads 1 2>/dev/null)"
}

# The user's words are trained too. (The cache of ids does not know that the program has changed,
# so the changed one gets another CACHE_VERSION.)
prompts_trained() {
    build prompts-trained 's/CACHE_VERSION = /&100/
        s/return end_document(b, 0, NAN);/for (size_t i = 0; i < b->ids.n; i++)\
            b->ids.id[i] |= TRAINED;\
        &/'
    facts_model
    for who in base prompts-trained; do
        model=$dir/prompts-trained/$who
        facts_sft prompts-trained $who $world/sft.jsonl,$world/keep.jsonl
        eval_figure $who "asked in training: right, %" "right, %" --model $model \
            --data $world/sft.jsonl --task qa --max-new-tokens 40
        eval_figure $who "    its answers, bits per byte" "bits per byte" --model $model \
            --data $world/sft.jsonl
        eval_figure $who "never asked: right, %" "right, %" --model $model \
            --data $world/sft_held_out.jsonl --task qa --max-new-tokens 40
        eval_figure $who "    its answers, bits per byte" "bits per byte" --model $model \
            --data $world/sft_held_out.jsonl
    done
}

# The <|im_end|> that closes an answer is not trained.
no_end() {
    build no-end 's/CACHE_VERSION = /&200/
        s/return end_document(b, 0, NAN);/for (size_t i = 0; i < b->ids.n; i++)\
            if (b->ids.id[i] == (b->tok->turn_end | TRAINED)) b->ids.id[i] \&= ~TRAINED;\
        &/'
    facts_model
    for who in base no-end; do
        said=$dir/no-end/$who.jsonl
        facts_sft no-end $who $world/sft.jsonl,$world/keep.jsonl
        eval_figure $who "asked in training: right, %" "right, %" --model $dir/no-end/$who \
            --data $world/sft.jsonl --task qa --max-new-tokens 40 --answers $said
        report $who "bytes of an answer, mean" "$(sed 's/.*"answer": "\(.*\)", "right.*/\1/
            s/\\n/n/g' $said | awk '{n += length($0)} END {print n / NR}')"
    done
}

# Each pass divides by its own targets, and the means of the passes are averaged. The 16 rows of a
# step are taken in 1 and in 16 passes.
mean_of_means() {
    build mean-of-means 's/r.loss += objective(\(.*\));/double share = (double)b->n_targets \
            \/ a->n_out * rows \/ b->rows;\
        r.loss += share * objective(\1);\
        for (int i = 0; i < a->n_out; i++) a->dlogp[i] *= share;/'
    facts_model
    files=$world/sft.jsonl,$world/again.jsonl
    for who in base mean-of-means; do
        for passes in 1 16; do
            mkdir -p $dir/mean-of-means/$passes
            facts_sft mean-of-means/$passes $who $files --steps 1 --lr 0 \
                --batch $((16 / passes)) --accumulate $passes
            report $who "first step, passes: $passes" "$(awk -F, 'NR == 2 {
                print "loss " $2 ", gradient norm " $5}' $dir/mean-of-means/$passes/$who/train.csv)"
        done
        facts_sft mean-of-means $who $files --batch 1 --accumulate 16
        eval_figure $who "after SFT: answers, bits per byte" "bits per byte" \
            --model $dir/mean-of-means/$who --data $world/sft.jsonl
        eval_figure $who "           texts, bits per byte" "bits per byte" \
            --model $dir/mean-of-means/$who --data $world/again.jsonl
    done
}

# The same model with three vocabularies. Perplexity and bits per byte order them the other way
# round.
vocabulary() {
    for size in 400 1000 3000; do
        mkdir -p $dir/vocabulary/$size
        $dir/tokenizer train --vocab $size --single-digits 1 --out $dir/vocabulary/$size.tok \
            $world/pretrain.jsonl 2>/dev/null
        pretrain vocabulary/$size base $dense --tokenizer $dir/vocabulary/$size.tok
        for figure in tokens perplexity "bits per byte"; do
            eval_figure "V = $size" "$figure" "$figure" --model $dir/vocabulary/$size/base \
                --data $world/pretrain_held_out.jsonl
        done
    done
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
