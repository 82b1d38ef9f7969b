# Walk 3: the router chooses.
#
#     gdb -q -batch -x notes/gdb/walk_3_router.gdb ./minimind-debug
#
# The text is "She lives in Berlin.", eleven tokens. Layer 0; E = 4 experts, K = 2 per token.
#
# What to look at, and why:
# - A score per expert, by a linear layer; a softmax makes probabilities of them; the K largest are
#   chosen. The two factors mix[k] are their probabilities divided by the sum of the two, because
#   norm_topk_prob is 1.
# - Different tokens go to different experts. Nobody tells the router which expert is for what.
# - Sorting: the N K = 22 copies of tokens in the order of the experts. The rows of an expert are
#   neighbours, so its work is one matrix product. No token is dropped.
# - At the end each token gets the outputs of its two experts back, each times its factor. Follow
#   token 7 through its two rows.

source notes/gdb/minimind.gdb
set args sft --model out/tiny/model --data out/tiny/sentence.jsonl --steps 1 --batch 1 --lr 0 \
  --plain 1 --out out/tiny/walk 2>/dev/null

quietly "tbreak router_forward"
quietly "run"
where_am_i
set $score = $a->score + 7 * E
set $prob = prob + 7 * E

printf "\ntoken 7: score, probability computed here, and by the program\n"
set $sum = 0.0
set $e = 0
while $e < E
  _exp $score[$e]
  set $sum = $sum + $_e
  set $e = $e + 1
end
set $e = 0
while $e < E
  _exp $score[$e]
  printf "expert %d  %9.4f %9.4f %9.4f\n", $e, $score[$e], $_e / $sum, $prob[$e]
  set $e = $e + 1
end

# ---- the choice ---------------------------------------------------------------------------------

quietly "finish"
printf "\n"
routing
set $choice = r->choice + 7 * 2
set $first_prob = $prob[$choice[0]]
set $second_prob = $prob[$choice[1]]
printf "token 7: %.4f / (%.4f + %.4f) = %.4f is the factor of expert %d\n", $first_prob, \
  $first_prob, $second_prob, $first_prob / ($first_prob + $second_prob), $choice[0]

# ---- the sort -----------------------------------------------------------------------------------

quietly "tbreak sort_by_expert"
quietly "continue"
quietly "finish"
printf "\n"
experts
set $row0 = r->row[7 * 2]
set $row1 = r->row[7 * 2 + 1]
printf "the copies of token 7 are rows %d and %d of gathered\n", $row0, $row1

# ---- and back -----------------------------------------------------------------------------------

quietly "tbreak combine_forward"
quietly "continue"
set $mix = mix + 7 * 2
printf "\nthe outputs of its experts, the first of C = 32 numbers:\n"
row y+$row0*C C
row y+$row1*C C
set $out = out + 7 * C
set $before = $a->datt
copy $before $out 8
printf "x_mid + %.4f * the first + %.4f * the second, computed here, and x_out by the program:\n", \
  $mix[0], $mix[1]
set $c = 0
while $c < 8
  printf " %8.4f", $before[$c] + $mix[0] * y[$row0 * C + $c] + $mix[1] * y[$row1 * C + $c]
  set $c = $c + 1
end
printf "\n"
quietly "finish"
row $out 32
quietly "kill"
