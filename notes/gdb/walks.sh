#!/bin/sh
# walks.sh - runs the walks in gdb and compares what they print with their transcripts.
#
#     notes/gdb/walks.sh              all walks
#     notes/gdb/walks.sh 1 rope       some, by number or name
#     notes/gdb/walks.sh --write      writes the transcripts, notes/gdb/walk_*.txt, again
#
# Words have to be equal, and whole numbers too. Numbers with a decimal point may differ by 0.001 or
# by a thousandth, whichever is more: compilers round differently. Exit status 1 if a walk differs;
# the lines that do are shown. Without gdb nothing is compared, and a line says so.

export LC_ALL=C
cd "$(dirname "$0")/../.." || exit 1

write=
if [ "$1" = --write ]; then
    write=yes
    shift
fi
command -v gdb >/dev/null || { echo "left out: gdb is not installed"; exit 0; }
notes/gdb/prepare.sh || exit 1

# gdb's own settings from outside: no start-up files, no downloads, a shell that knows 2>/dev/null.
export DEBUGINFOD_URLS= SHELL=/bin/sh
new=out/tiny/walk.txt
errors=out/tiny/walk.err

# compare WANT GOT: prints the lines that differ. Exit status 1 if there are any.
compare() {
    awk -v want="$1" '
        # Splits a line into number[1 .. n] and, as the result, the text with # for each number.
        function split_line(line, number,    words, n) {
            words = ""
            n = 0
            while (match(line, /-?[0-9]+(\.[0-9]+)?(e[-+]?[0-9]+)?/)) {
                number[++n] = substr(line, RSTART, RLENGTH)
                words = words substr(line, 1, RSTART - 1) "#"
                line = substr(line, RSTART + RLENGTH)
            }
            number[0] = n
            words = words line
            gsub(/ +/, " ", words)
            return words
        }
        function equal(x, y,    tolerance, difference) {
            if (x !~ /[.e]/ && y !~ /[.e]/) return x == y
            tolerance = 0.001 * (x < 0 ? -x : x)
            if (tolerance < 0.001) tolerance = 0.001
            difference = x - y
            return (difference < 0 ? -difference : difference) <= tolerance * 1.0001
        }
        function same(a, b,    x, y, i) {
            if (split_line(a, x) != split_line(b, y)) return 0
            for (i = 1; i <= x[0]; i++) if (!equal(x[i], y[i])) return 0
            return 1
        }
        {
            if ((getline line <want) <= 0) line = "(end)"
            if (same(line, $0)) next
            bad++
            if (bad <= 10) printf "line %d\n  - %s\n  + %s\n", NR, line, $0
        }
        END {
            while ((getline line <want) > 0) if (++bad <= 10) printf "missing\n  - %s\n", line
            if (bad > 10) printf "%d lines differ\n", bad
            exit (bad > 0)
        }' "$2"
}

# is_named SCRIPT NAME...: true if there is no name, or one is the walk's number or name.
is_named() {
    walk=${1#notes/gdb/walk_}
    walk=${walk%.gdb}
    shift
    [ $# -gt 0 ] || return 0
    for name in "$@"; do
        case $name in "$walk" | "${walk%%_*}" | "${walk#*_}") return 0 ;; esac
    done
    return 1
}

status=0 n_walks=0
for script in notes/gdb/walk_*.gdb; do
    is_named "$script" "$@" || continue
    n_walks=$((n_walks + 1))
    want=${script%.gdb}.txt
    gdb -nx -q -batch -x "$script" ./minimind-debug </dev/null >$new 2>$errors
    if [ "$write" ]; then
        cp $new "$want"
        echo "written: $want ($(wc -l <"$want" | tr -d ' ') lines)"
    elif differences=$(compare "$want" $new); then
        echo "ok      $walk"
    else
        echo "DIFFERS $walk: - is $want, + what it prints now"
        echo "$differences"
        sed 's/^/gdb: /' $errors
        status=1
    fi
done
[ $n_walks -gt 0 ] || { echo "walks.sh: no walk is called $*" >&2; exit 1; }
exit $status
