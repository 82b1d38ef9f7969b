# Walk 5: the loss mask, and DPO's margin.
#
#     gdb -q -batch -x notes/gdb/walk_5_mask_dpo.gdb ./minimind-debug
#
# First SFT on one conversation (user: "Bob?", assistant: "He lives in Paris. :)"), then DPO on one
# pair: the same answer with and without the smile.
#
# What to look at, and why:
# - An id that is to be learned comes with bit 30 set (TRAINED). shift_labels() moves it one place
#   to the left, into target; everywhere else target is -1. So the mask is no array of its own.
# - The first trained target is at the "\n" that ends <|im_start|>assistant\n, the last one is
#   <|im_end|>: the model has to learn to stop.
# - dpo_loss() sees sums of log-probabilities only. At step 1 both are those of the reference, the
#   margin is 0 and the loss log 2 = 0.6931, whatever the model.
# - dlogp is the same for all tokens of an answer: -slope for the chosen, +slope for the rejected.
#   So the tokens that both answers share pull in opposite directions.
# - After one step the margin is not 0 any more, sigmoid(-margin) is below 0.5, and the slope is
#   smaller: pairs that are already ordered right count less.

source notes/gdb/minimind.gdb

# ---- the mask -----------------------------------------------------------------------------------

set args sft --model out/tiny/model --data out/tiny/chat.jsonl --steps 1 --batch 1 --lr 0 \
  --plain 1 --out out/tiny/walk 2>/dev/null
quietly "tbreak shift_labels"
quietly "run"
where_am_i
printf "\non the way in: ids[19] = %d, ids[20] = %d = TRAINED + %d\n", ids[19], ids[20], \
  ids[20] - TRAINED
quietly "finish"
loss_mask 0 14 b->T
quietly "finish"
printf "%ld of the %ld positions of the row are trained\n", b->n_targets, b->T
quietly "kill"

# ---- DPO ----------------------------------------------------------------------------------------

# pair: the numbers of dpo_loss, when it begins, by its formulas; then lets it run and compares.
define pair
  set $p = (Preferences *)own
  set $c = 0.0
  set $r = 0.0
  set $last = n - 1
  set $i = 0
  while $i < n
    if b->at[$i] < b->T
      set $c = $c + logp[$i]
    else
      set $r = $r + logp[$i]
    end
    set $i = $i + 1
  end
  set $margin = $p->beta * (($c - $p->ref_sum[0]) - ($r - $p->ref_sum[1]))
  printf "chosen    c     = %9.4f   c - c_ref = %8.4f\n", $c, $c - $p->ref_sum[0]
  printf "rejected  r     = %9.4f   r - r_ref = %8.4f\n", $r, $r - $p->ref_sum[1]
  printf "margin = %.1f * difference = %.4f\n", $p->beta, $margin
  _exp $margin
  set $slope = $p->beta / (1 + $_e)
  printf "sigmoid(-margin) = %.4f, slope = ", $slope / $p->beta
  printf "%.1f * that = %.4f\n", $p->beta, $slope
  set $first = dlogp
  set $more = more
  quietly "finish"
  printf "program: loss %.4f, %s %.4f, ", $, $more->figure[0].name, $more->figure[0].value
  printf "dlogp %.4f (chosen) and %.4f (rejected)\n", $first[0], $first[$last]
end

set args dpo --model out/tiny/model --data out/tiny/pair.jsonl --steps 2 --batch 1 --lr 1e-3 \
  --plain 1 --out out/tiny/walk 2>/dev/null
quietly "break dpo_loss"
quietly "run"
printf "\n"
where_am_i
printf "%ld targets: of the chosen answer, then of the rejected one\n", n
pair
quietly "continue"
printf "\n"
where_am_i
pair
quietly "kill"
