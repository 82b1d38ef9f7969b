# Walk 4: a gradient comes back through SwiGLU.
#
#     gdb -q -batch -x notes/gdb/walk_4_swiglu.gdb ./minimind-debug
#
# Layer 0, expert 0, which has the rows of six tokens (walk 3 shows which).
#
# What to look at, and why:
# - dh arrives from the matrix down. The forward line was h = silu(gate) * up: so h has two inputs,
#   and dh goes to both, as dgate and as dup.
# - dup = dh * silu(gate): where the gate is closed (silu near 0), up gets no gradient.
#   dgate = dh * up * silu'(gate).
# - Both formulas are computed here beside what the program has stored. dup is written over dh,
#   which is not needed any more; the numbers of dh are therefore copied first.
# - Then the matrices: the gradient of gate_proj is dgate^T x, a sum over the rows of this expert,
#   and that of its input is dgate W_gate + dup W_up.

source notes/gdb/minimind.gdb
set args sft --model out/tiny/model --data out/tiny/sentence.jsonl --steps 1 --batch 1 --lr 0 \
  --plain 1 --out out/tiny/walk 2>/dev/null

quietly "tbreak ffn_block_backward if l == 0"
quietly "run"
quietly "tbreak swiglu_backward"
quietly "continue"
where_am_i
set $n = n
set $gate = gate
set $up = up
set $dgate = dgate
set $dup = dup
set $dh_copy = $a->datt
copy $dh_copy dh 8

printf "\nn = %ld numbers, %ld rows of F = %ld; ", $n, $n / $m->F, $m->F
printf "the first eight of gate, up, and dh times 1000:\n"
row gate 8
row up 8
row $dh_copy 8 1000
quietly "finish"

printf "\n  i     gate    sigma     silu    silu'   |    dup here  program   "
printf "|  dgate here  program\n"
set $i = 0
while $i < 8
  set $g = $gate[$i]
  _exp -$g
  set $sigma = 1 / (1 + $_e)
  set $slope = $sigma * (1 + $g * (1 - $sigma))
  printf "%3d %8.4f %8.4f %8.4f %8.4f   |  %10.4f %8.4f   |  %10.4f %8.4f\n", $i, $g, $sigma, \
    $g * $sigma, $slope, 1000 * $dh_copy[$i] * $g * $sigma, 1000 * $dup[$i], \
    1000 * $dh_copy[$i] * $up[$i] * $slope, 1000 * $dgate[$i]
  set $i = $i + 1
end
printf "(dup and dgate are times 1000)\n"

# ---- the matrices -------------------------------------------------------------------------------

# This is ffn_block_backward. Two calls of project_backward follow, for gate_proj and up_proj.
set $rows = n
set $in = in
set $din = din
set $gate_proj = expert->gate
set $up_proj = expert->up
quietly "tbreak project_backward"
quietly "continue"
quietly "finish"
quietly "tbreak project_backward"
quietly "continue"
quietly "finish"
set $F = $m->F
set $C = $m->C
printf "\nd loss / d gate_proj, row 0, times 1000: "
printf "sum over %ld rows i of dgate[i][0] x[i][c]; here, program:\n", $rows
set $c = 0
while $c < 8
  set $sum = 0.0
  set $i = 0
  while $i < $rows
    set $sum = $sum + $dgate[$i * $F] * $in[$i * $C + $c]
    set $i = $i + 1
  end
  printf " %8.4f", 1000 * $sum
  set $c = $c + 1
end
printf "\n"
row $gate_proj->grad C 1000

printf "\nd loss / d x of the first row, times 1000: dgate W_gate + dup W_up; here, program:\n"
set $c = 0
while $c < 8
  set $sum = 0.0
  set $o = 0
  while $o < $F
    set $sum = $sum + $dgate[$o] * $gate_proj->weight[$o * $C + $c]
    set $sum = $sum + $dup[$o] * $up_proj->weight[$o * $C + $c]
    set $o = $o + 1
  end
  printf " %8.4f", 1000 * $sum
  set $c = $c + 1
end
printf "\n"
row $din C 1000
printf "\n"
tensor $m "layers.0.mlp.experts.0.gate_proj"
quietly "kill"
