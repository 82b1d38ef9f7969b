# Walk 2: RoPE turns a vector.
#
#     gdb -q -batch -x notes/gdb/walk_2_rope.gdb ./minimind-debug
#
# The query of token 7, "er", in "She lives in Berlin.", head 0 of layer 0; then a gradient.
#
# What to look at, and why:
# - A head of D = 8 numbers is four planes; plane i holds the components i and i + 4. Each plane
#   turns by its own angle, position times frequency: plane 0 by 7 radians, plane 3 by 0.007.
# - A rotation changes no length: the norm before and after is the same.
# - Cosine and sine of the angle by which a plane has really turned can be computed from its two
#   numbers before and after. They are those of the tables.
# - The last table is what RoPE is for. A score changes when the distance between the two tokens
#   changes, and does not change when both move by 100.
# - In the backward pass the same function runs with direction = -1: the sines change their sign,
#   and the gradient turns back.

source notes/gdb/minimind.gdb
set args sft --model out/tiny/model --data out/tiny/sentence.jsonl --steps 1 --batch 1 --lr 0 \
  --plain 1 --out out/tiny/walk 2>/dev/null

# turned: for each plane, the angle t f, and the cosine and sine of the angle between its two
# numbers in $before and in $after.
define turned
  printf "plane   frequency f   angle %d f      cos      sin   |  turned: cos      sin\n", $pos
  set $i = 0
  while $i < 4
    set $f = rope_frequency(&$m->config, $i)
    set $r2 = $before[$i] * $before[$i] + $before[$i + 4] * $before[$i + 4]
    set $dot = $before[$i] * $after[$i] + $before[$i + 4] * $after[$i + 4]
    set $cross = $before[$i] * $after[$i + 4] - $before[$i + 4] * $after[$i]
    printf "%5d %13.4f %11.4f %8.4f %8.4f   | %12.4f %8.4f\n", $i, $f, $pos * $f, \
      $cosine[$pos * 4 + $i], $sine[$pos * 4 + $i], $dot / $r2, $cross / $r2
    set $i = $i + 1
  end
end

# ---- forward ------------------------------------------------------------------------------------

quietly "tbreak rope if direction > 0"
quietly "run"
where_am_i
set $cosine = cosine
set $sine = sine
set $pos = 7
set $after = x + $pos * heads * D
set $before = $a->h
copy $before $after D
quietly "finish"

printf "\nq of token 7, head 0, before and after:\n"
row $before 8
row $after 8
printf "\n"
turned

# ---- what it is for -----------------------------------------------------------------------------

# score_at POSITION_OF_Q POSITION_OF_K: rotates copies of that query and of one key, not yet
# rotated, to any two positions, and prints their product.
define score_at
  copy $q $before 8
  copy $k $key 8
  call rope($q, $cosine + $arg0 * 4, $sine + $arg0 * 4, 1, 1, 1, 1, 8)
  call rope($k, $cosine + $arg1 * 4, $sine + $arg1 * 4, 1, 1, 1, 1, 8)
  set $dot = 0.0
  set $i = 0
  while $i < 8
    set $dot = $dot + $q[$i] * $k[$i]
    set $i = $i + 1
  end
  printf "query at %3d, key at %3d, distance %d", $arg0, $arg1, $arg0 - $arg1
  printf ":  q . k = %8.4f\n", $dot
end

printf "\nthe same query with the key of token 6, at other positions:\n"
set $key = $a->layer[0].k + 6 * $m->KV * 8
set $q = $before + 8
set $k = $before + 16
score_at 7 6
score_at 107 106
score_at 7 5
score_at 107 105
score_at 7 0

# ---- backward -----------------------------------------------------------------------------------

quietly "tbreak rope if direction < 0"
quietly "continue"
printf "\n"
where_am_i
set $after = x + $pos * heads * D
copy $before $after D
quietly "finish"
printf "\nd loss / d q of token 7, head 0, times 1000, before and after:\n"
row $before 8 1000
row $after 8 1000
printf "\n"
turned
quietly "kill"
