#!/bin/sh
# notes.sh - do the notes still say what is true?
#
#     notes/lab/notes.sh names         functions, options, files and faults in `backticks` exist
#     notes/lab/notes.sh links         so do the targets of [links](...)
#     notes/lab/notes.sh headings      both languages have headings of the same levels, in order
#     notes/lab/notes.sh code          each line of a ```c block is in the sources
#     notes/lab/notes.sh run quick     quoted commands print what the notes say; slow, or all
#
# A quoted command is a ```console block below the line <!-- run: quick TOLERANCE --> (or slow). Its
# lines that begin with "$ " are commands; what follows them is the output. Numbers may differ by
# TOLERANCE times their size, or by TOLERANCE if they are below 1; the rest must be equal.
# Exit status 1 if something is wrong; each problem is one line.

export LC_ALL=C
cd "$(dirname "$0")/../.." || exit 1
tmp=$(mktemp -d) || exit 1
trap 'rm -rf "$tmp"' EXIT
trap 'exit 1' INT TERM

pages() { find -L notes README.md -name '*.md' ! -path 'notes/golden/*' | sort; }
sources="minimind.c tokenizer.c $(echo notes/lab/*.c)"

problem() {
    printf '%s\n' "$*"
    echo x >>"$tmp/problems"
}

# ---- names --------------------------------------------------------------------------------------

# Everything between single backticks outside of blocks, one per line.
quoted() {
    awk '/^ *```/ {block = !block; next} !block' "$1" | grep -oE '`[^`]+`' | tr -d '`' | sort -u
}

# Is this word of a page the name of something that exists?
exists() {
    case $1 in
    *.*'()') ;; # of another library
    *'()')
        grep -qwF -- "${1%??}" $sources notes/gdb/*.gdb notes/lab/whiteboard/* ;;
    --*)
        option=$(echo "${1#--}" | sed 's/[ =].*//')
        grep -qE -- "(\"|\()$(echo "$option" | sed 's/[-_]/[-_]/g')[\",]|--$option" $sources \
            notes/lab/*.sh notes/gdb/*.sh tests.sh ;;
    notes/* | tests.sh | Makefile | *.c | *.sh | *.md)
        [ -e "${1%% *}" ] || [ -e "notes/${1%% *}" ] || [ -e "notes/lab/${1%% *}" ] ||
            [ -e "notes/gdb/${1%% *}" ] || [ -e "notes/lab/whiteboard/${1%% *}" ] ;;
    esac
}

names() {
    for page in $(pages); do
        quoted "$page" >"$tmp/names"
        while IFS= read -r name; do
            exists "$name" || problem "$page: there is no $name"
        done <"$tmp/names"
    done
}

# ---- links and headings -------------------------------------------------------------------------

links() {
    for page in $(pages); do
        awk '/^ *```/ {block = !block; next} !block' "$page" | grep -oE '\]\([^)#]+' |
            sed 's/^](//' >"$tmp/links"
        while IFS= read -r link; do
            case $link in
            http*) ;;
            *) [ -e "$(dirname "$page")/$link" ] || problem "$page: there is no $link" ;;
            esac
        done <"$tmp/links"
    done
}

levels() { awk '/^ *```/ {block = !block} !block && /^#+ / {print $1}' "$1"; }

headings() {
    for twin in notes/zh/*.md; do
        page=notes/${twin#notes/zh/}
        case $twin in
        */about.md) page=README.md ;;
        */gdb.md) page=notes/gdb/README.md ;;
        */whiteboard.md) page=notes/lab/whiteboard/README.md ;;
        esac
        levels "$page" >"$tmp/a" && levels "$twin" >"$tmp/b"
        cmp -s "$tmp/a" "$tmp/b" || problem "$twin: its headings are not those of $page"
    done
    for page in notes/*.md; do
        [ -e "notes/zh/${page#notes/}" ] || problem "$page: has no twin in notes/zh"
    done
}

# ---- code ---------------------------------------------------------------------------------------

code() {
    cat $sources | sed 's/^ *//; s/ *$//' | sort -u >"$tmp/sources"
    for page in $(pages); do
        awk '/^ *```c$/ {block = 1; next} /^ *```/ {block = 0} block' "$page" |
            sed 's/^ *//; s/ *$//' | grep -v -e '^$' -e '^\.\.\.$' -e '^// \.\.\.$' |
            sort -u >"$tmp/lines"
        comm -23 "$tmp/lines" "$tmp/sources" >"$tmp/missing"
        while IFS= read -r line; do
            problem "$page: this line is in no source: $line"
        done <"$tmp/missing"
    done
}

# ---- quoted commands ----------------------------------------------------------------------------

# Cuts the runnable blocks of a page out: files N.commands and N.expected in $tmp/blocks.
cut_blocks() { # cut_blocks PAGE quick|slow|all
    rm -rf "$tmp/blocks" && mkdir "$tmp/blocks"
    awk -v kind="$2" -v dir="$tmp/blocks" '
        /^ *<!-- run: / {wanted = kind == "all" || $3 == kind; tolerance = $4; next}
        /^ *```console/ && wanted {
            block = 1
            n++
            print tolerance >(dir "/" n ".tolerance")
            next
        }
        /^ *```/ {block = 0; wanted = 0}
        block && (/^\$ / || more) {
            line = $0
            if (!more) line = substr(line, 3)
            more = line ~ /\\$/
            print line >(dir "/" n ".commands")
            next
        }
        block {print >(dir "/" n ".expected")}
        {if (!block && !/^ *$/) wanted = 0}' "$1"
}

# Compares two files: words equal, numbers within the tolerance. Prints the first difference.
compare() { # compare EXPECTED GOT TOLERANCE
    awk -v got="$2" -v tolerance="$3" '
        function close_to(a, b) {
            size = b < 0 ? -b : b
            far = a - b < 0 ? b - a : a - b
            return far <= tolerance * (size > 1 ? size : 1)
        }
        function same(a, b,    number, x, y) {
            number = "[-+]?[0-9]+([.][0-9]+)?(e[-+]?[0-9]+)?"
            gsub(/ +/, " ", a)
            gsub(/ +/, " ", b)
            while (match(a, number)) {
                before = substr(a, 1, RSTART - 1)
                x = substr(a, RSTART, RLENGTH)
                a = substr(a, RSTART + RLENGTH)
                if (!match(b, number) || substr(b, 1, RSTART - 1) != before) return 0
                y = substr(b, RSTART, RLENGTH)
                b = substr(b, RSTART + RLENGTH)
                if (!close_to(x + 0, y + 0)) return 0
            }
            return a == b
        }
        {
            if ((getline line <got) <= 0) line = "(nothing more)"
            if (!same($0, line)) {
                print "expected: " $0
                print "     got: " line
                exit bad = 1
            }
        }
        END {
            if (!bad && (getline line <got) > 0) {
                print "expected: (nothing more)"
                print "     got: " line
                bad = 1
            }
            exit bad
        }' "$1"
}

run() {
    for page in $(pages); do
        cut_blocks "$page" "$1"
        for commands in "$tmp"/blocks/*.commands; do
            [ -e "$commands" ] || continue
            block=${commands%.commands}
            touch "$block.expected"
            sh "$commands" >"$block.got" 2>"$block.err"
            if compare "$block.expected" "$block.got" "$(cat "$block.tolerance")" >"$tmp/diff"; then
                printf 'ok %s: %s\n' "$page" "$(head -1 "$commands")"
            else
                problem "$page: $(head -1 "$commands")"
                cat "$tmp/diff"
                tail -1 "$block.err"
            fi
        done
    done
}

case $1 in
names | links | headings | code) $1 ;;
run) run "${2:-quick}" ;;
*) sed -n '2,/^$/s/^# \{0,1\}//p' "$0"; exit 1 ;;
esac
[ ! -e "$tmp/problems" ]
