#!/bin/sh
# run.sh - tests what you have written on the whiteboard.
#
#     notes/lab/whiteboard/run.sh              lists the ten tasks
#     notes/lab/whiteboard/run.sh dpo          tests notes/lab/whiteboard/dpo.c
#     notes/lab/whiteboard/run.sh dpo my.c     tests another file, a copy of it
#     notes/lab/whiteboard/run.sh --all        tests the tests
#
# --all: every skeleton has to fail its test, every answer has to pass, and every wrong answer of
# wrong.sh has to fail. It prints one line for each; exit status 1 if one is not as it should be.
#
# CC is the compiler, cc by default. Everything is built in a temporary folder.

here=$(cd "$(dirname "$0")" && pwd)
strict='-std=c11 -Wall -Wextra -Wpedantic -Wshadow -Werror'
tasks="attention attention_backward cross_entropy rmsnorm rope top_p bpe adamw router dpo"
limit=$(command -v timeout >/dev/null && echo "timeout 10")
CC=${CC:-cc}

# compile FILE OBJECT FLAG...: a file of the reader.
compile() {
    file=$1 object=$2
    shift 2
    $CC -O1 -g -Wall -Wextra -I "$here" "$@" -c "$file" -o "$object"
}

# prepare FLAG...: the test, and the answers to all tasks. A program is the test, the file of the
# reader, and the answers to the other nine tasks, which are not called.
prepare() {
    tmp=$(mktemp -d) || exit 1
    trap 'rm -rf "$tmp"' EXIT
    trap 'exit 1' INT TERM
    export tmp
    (cd "$tmp" && $CC -O1 -I "$here" -c "$here"/answers/*.c) &&
        $CC -O0 "$@" -c "$here/test.c" -o "$tmp/test.object" || exit 1
}

# link TASK OBJECT PROGRAM FLAG...
link() {
    task=$1 object=$2 linked=$3
    shift 3
    $CC "$@" -o "$linked" "$tmp/test.object" "$object" \
        $(for other in $tasks; do [ "$other" = "$task" ] || echo "$tmp/$other.o"; done) -lm
}

# ---- one task -----------------------------------------------------------------------------------

list() {
    for task in $tasks; do sed -n '1s/^.. Whiteboard \([0-9]*\), \([a-z_]*\): /\1 \2 /p' \
        "$here/$task.c"; done | while read -r number task what; do
        printf '%2s  %-19s %s\n' "$number" "$task" "$what"
    done
}

# After a crash: the same with the compiler's address sanitizer, which knows the line.
find_crash() {
    echo "FAILED  the program crashed: an index outside of its array?"
    sanitize=-fsanitize=address
    compile "$1" "$tmp/mine.object" $sanitize 2>"$tmp/log" &&
        link "$task" "$tmp/mine.object" "$tmp/whiteboard" $sanitize 2>"$tmp/log" || return
    $limit "$tmp/whiteboard" "$task" 2>&1 | sed -n 's/^ *#[0-9]* 0x[0-9a-f]* in my_/        my_/p' |
        head -1
}

run_one() {
    task=$1 file=${2:-$here/$1.c}
    compile "$file" "$tmp/mine.object" || return
    link "$task" "$tmp/mine.object" "$tmp/whiteboard" || return
    $limit "$tmp/whiteboard" "$task"
    status=$?
    [ $status -ne 124 ] || echo "FAILED  the program did not end within 10 seconds"
    [ $status -le 127 ] || find_crash "$file"
    return $status
}

# ---- all of them --------------------------------------------------------------------------------

# Replaces the text in $old by that in $new; exits with 1 unless it occurs exactly once.
substitute() {
    awk 'BEGIN {old = ENVIRON["old"]; new = ENVIRON["new"]}
        {
            line = ""
            while ((at = index($0, old)) > 0) {
                line = line substr($0, 1, at - 1) new
                $0 = substr($0, at + length(old))
                n++
            }
            print line $0
        }
        END {exit n != 1}'
}

number=100
new_case() { # new_case KIND TASK NAME: a folder for it, $case
    number=$((number + 1))
    case=$tmp/case/$number
    mkdir -p "$case"
    echo "$1" >"$case/kind"
    echo "$2" >"$case/task"
    echo "$3" >"$case/name"
}

# wrong TASK NAME OLD NEW [OLD NEW]...: an answer with these texts replaced.
wrong() {
    new_case wrong "$1" "$2"
    cp "$here/answers/$1.c" "$case/source.c"
    shift 2
    while [ $# -gt 0 ]; do
        old=$1 new=$2
        export old new
        substitute <"$case/source.c" >"$case/changed" || touch "$case/unfit"
        mv "$case/changed" "$case/source.c"
        shift 2
    done
}

try() { # try FOLDER: one case
    cd "$1" || exit 1
    read -r kind <kind
    read -r task <task
    flags=$strict
    [ "$kind" != wrong ] || flags=-w
    if [ -e unfit ]; then verdict="DOES NOT APPLY: a text has to occur exactly once"
    elif ! compile source.c mine.object $flags 2>log || ! link "$task" mine.object mine 2>log; then
        verdict="DOES NOT COMPILE: $(grep -m 1 error log)"
    else
        $limit ./mine "$task" >log 2>&1
        status=$?
        verdict=$(sed -n 's/^FAILED  //p' log | head -1)
        case $status:$kind in
        0:answer) verdict=green; touch good ;;
        1:skeleton | 1:wrong) verdict="red: $verdict"; touch good ;;
        *) verdict="exit status $status: $verdict" ;;
        esac
    fi
    good=FAILED
    [ ! -e good ] || good=ok
    printf '%-7s %-9s %-19s %-55s %s\n' $good "$kind" "$task" "$(cat name)" "$verdict" | tee line
}

run_all() {
    started=$(date +%s)
    for task in $tasks; do
        new_case skeleton "$task" ""
        cp "$here/$task.c" "$case/source.c"
        new_case answer "$task" ""
        cp "$here/answers/$task.c" "$case/source.c"
    done
    . "$here/wrong.sh"
    ls "$tmp/case" | sed "s|^|$tmp/case/|" | xargs -n 1 -P 2 sh "$here/run.sh" --try
    total=$(ls "$tmp/case" | wc -l | tr -d ' ')
    good=$(ls "$tmp"/case/*/good | wc -l | tr -d ' ')
    printf '%s of %s as they should be (%s seconds)\n' "$good" "$total" \
        $(($(date +%s) - started))
    cat "$tmp"/case/*/line | grep -v '^ok'
    [ "$good" -eq "$total" ]
}

case $1 in
'') list ;;
--try) try "$2" ;;
--all) prepare $strict && run_all ;;
*)
    case " $tasks " in
    *" $1 "*) prepare -w && run_one "$@" ;;
    *) echo "run.sh: there is no task $1; tasks: $tasks" >&2; exit 2 ;;
    esac ;;
esac
