#!/bin/sh
# prepare.sh - what gdb and the quick examples of the notes need: programs, and a very small model.
#
#     notes/gdb/prepare.sh
#
# It makes what is missing or older than its sources; a second run does nothing. Each command is
# printed before it runs, on stderr.
#
#     minimind, tokenizer, out/lab/world    as `make` builds them (world with -O1: compiles fast)
#     minimind-debug                        nothing optimised away, one thread, as in `make debug`
#     out/tiny/world                        the tiny world of world.c, with 400 texts
#     out/tiny/tokenizer                    512 tokens
#     out/tiny/model                        59,840 parameters: 2 layers, 32 wide, 4 experts
#     out/tiny/sentence.jsonl, chat.jsonl, pair.jsonl    what the walks read: one record each
#
# WHY DOUBLE PRECISION. Every reader should see the same four digits in the walks. Compilers round
# floats differently in the 7th digit. Now and then that sends a token to another expert, and from
# there on two runs of the training drift apart: after these 400 steps, weights that gcc -O2 and
# gcc -O3 -march=native have trained in float differ by up to 0.6. So the training runs with
# `double` in place of `float` (as in `make check-double`), where they differ by about 1e-10. The
# programs read these weights as floats.

set -e
trap 'exit 130' INT # training that is interrupted saves and exits with 0, so -e would not notice
export LC_ALL=C
cd "$(dirname "$0")/../.."
mkdir -p out/lab out/tiny
cc=${CC:-cc}

run() {
    printf '$ %s\n' "$*" >&2
    "$@"
}

# older FILE SOURCE...: true if the file is missing or older than one of its sources.
older() {
    file=$1
    shift
    [ ! -e "$file" ] || [ "$(find "$@" -newer "$file")" ]
}

# build PROGRAM FLAGS SOURCE [INCLUDED]... compiles a program that is missing or old.
build() {
    program=$1 program_flags=$2
    shift 2
    ! older "$program" "$@" || run $cc $program_flags -o "$program" "$1" -lm
}

# accepted FLAG prints the flag if the compiler accepts it.
accepted() {
    if echo 'int main(void) { return 0; }' | $cc $1 -x c -o out/tiny/probe - 2>/dev/null; then
        echo $1
    fi
    rm -f out/tiny/probe
}

# ---- programs -----------------------------------------------------------------------------------

book='minimind.c tokenizer.c'
native= openmp=
if older minimind $book || older tokenizer tokenizer.c || older minimind-debug $book ||
    older out/lab/world notes/lab/world.c $book || older out/tiny/minimind-double $book; then
    native=$(accepted -march=native)
    openmp=$(accepted -fopenmp)
fi
build minimind "-O3 $native $openmp" $book & # the slowest of them, beside all the others
minimind_build=$!
build tokenizer "-O3 $native" tokenizer.c
build out/lab/world "-O1 $native $openmp" notes/lab/world.c $book
build minimind-debug "-O0 -g3" $book
double='-Dfloat=double -Dexpf=exp -Dsqrtf=sqrt -Dlogf=log -Dfmaxf=fmax -Dfabsf=fabs'
build out/tiny/minimind-double "-O1 $native $double" $book

# ---- the world, the tokenizer and the model -----------------------------------------------------

# The last command of a step writes the file by which the step is dated, model.safetensors last.
world=out/tiny/world
if older $world/pretrain.jsonl out/lab/world notes/gdb/prepare.sh; then
    run out/lab/world --seed 1 --documents 400 --out $world
fi
if older out/tiny/tokenizer/tokenizer.json $world/pretrain.jsonl tokenizer; then
    run ./tokenizer train --vocab 512 --single-digits 1 --out out/tiny/tokenizer \
        $world/pretrain.jsonl $world/keep.jsonl
fi

# Some of the data is conversations, so that the tokens of the chat template are not new to sft and
# dpo. The checkpoint takes its place when it is complete.
if older out/tiny/model/model.safetensors out/tiny/tokenizer/tokenizer.json \
    out/tiny/minimind-double; then
    rm -rf out/tiny/new
    run out/tiny/minimind-double pretrain --tokenizer out/tiny/tokenizer --out out/tiny/new \
        --data $world/pretrain.jsonl,$world/sft.jsonl,$world/keep.jsonl \
        --held-out $world/pretrain_held_out.jsonl --rows 50 \
        --hidden-size 32 --num-hidden-layers 2 --num-attention-heads 4 --num-key-value-heads 2 \
        --num-experts 4 --num-experts-per-tok 2 --moe-intermediate-size 48 \
        --max-position-embeddings 256 \
        --steps 400 --batch 8 --seq 32 --lr 1e-2 --warmup 10 --beta2 0.99 --eval-every 400
    rm -rf out/tiny/model
    mv out/tiny/new out/tiny/model
fi

# ---- what the walks read ------------------------------------------------------------------------

# put FILE TEXT writes the file unless it says this already.
put() {
    [ -f "$1" ] && [ "$(cat "$1")" = "$2" ] || printf '%s\n' "$2" >"$1"
}
user='{"role": "user", "content": "Bob?"}'
chosen='{"role": "assistant", "content": "He lives in Paris. :)"}'
rejected='{"role": "assistant", "content": "He lives in Paris."}'
put out/tiny/sentence.jsonl '{"text": "She lives in Berlin."}'
put out/tiny/chat.jsonl "{\"conversations\": [$user, $chosen]}"
put out/tiny/pair.jsonl "{\"chosen\": [$user, $chosen], \"rejected\": [$user, $rejected]}"
wait $minimind_build
