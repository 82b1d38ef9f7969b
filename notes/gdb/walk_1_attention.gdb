# Walk 1: one token through attention.
#
#     gdb -q -batch -x notes/gdb/walk_1_attention.gdb ./minimind-debug
#
# The text is "She lives in Berlin.", eleven tokens. Stop at token 7, "er", in head 1 of layer 0.
#
# What to look at, and why:
# - q is one row of D = 8 numbers. It is compared with n = 8 keys, those of the tokens 0 .. 7. The
#   causal mask is nothing but this n.
# - The key of token j is at k + j * stride, stride = KV * D: the keys of both key/value heads lie
#   side by side, and this head reads one of them.
# - scores[j] is computed here a second time, from the definition, and so is the output. Compare the
#   columns.
# - lse is the one number that is kept per row. p[j] = e^(scores[j] - lse) needs nothing else.
# - In the matrix, read a row from left to right: which earlier tokens does this token look at? This
#   head prefers the token just before (0.5 to 0.8 below "er", "l" and "in").

source notes/gdb/minimind.gdb
set args sft --model out/tiny/model --data out/tiny/sentence.jsonl --steps 1 --batch 1 --lr 0 \
  --plain 1 --out out/tiny/walk 2>/dev/null

# Rows are computed in the order token, head: after the first row with 8 keys comes head 1.
quietly "tbreak attention_row_forward if n == 8"
quietly "run"
quietly "tbreak attention_row_forward"
quietly "continue"
where_am_i

printf "\nq, after its norm and its rotation:\n"
row q D
printf "the n = %ld keys it may see, %ld numbers apart:\n", n, stride
floats k n D stride

# Now let the function do its work. Its arguments are kept, to look at what it has written.
set $q = q
set $k = k
set $v = v
set $n = n
set $stride = stride
set $scores = scores
set $lse = lse
set $out = out
quietly "finish"
printf "\n  j  token     q . k_j  / sqrt(D)  scores[j]       p[j]\n"
_sqrt D
set $sqrt_d = $_root
set $sum = 0.0
set $j = 0
while $j < $n
  set $dot = 0.0
  set $d = 0
  while $d < D
    set $dot = $dot + $q[$d] * $k[$j * $stride + $d]
    set $d = $d + 1
  end
  _exp $scores[$j]-*$lse
  set $sum = $sum + $_e
  printf "%3d  ", $j
  _token $a->ids[$j] 7
  printf "%9.4f  %9.4f  %9.4f  %9.4f\n", $dot, $dot / $sqrt_d, $scores[$j], $_e
  set $j = $j + 1
end
printf "lse = %.4f; the p[j] sum to %.4f\n", *$lse, $sum

printf "\nout = sum_j p[j] v_j, computed here and by the program:\n"
set $d = 0
while $d < D
  set $dot = 0.0
  set $j = 0
  while $j < $n
    _exp $scores[$j]-*$lse
    set $dot = $dot + $_e * $v[$j * $stride + $d]
    set $j = $j + 1
  end
  printf " %8.4f", $dot
  set $d = $d + 1
end
printf "\n"
row $out D

# The matrix needs lse of all rows: go on until attention_forward is done.
quietly "finish"
printf "\n"
attention 1
quietly "kill"
