# start.gdb - what `make gdb` runs: a training step that stops in attention.
#
#     notes/gdb/prepare.sh && gdb -q -x notes/gdb/start.gdb ./minimind-debug
#
# The text is "She lives in Berlin."; the program stops in attention_row_forward() of layer 0 and
# head 0 at token 7, "er", with eight keys to look at.

source notes/gdb/minimind.gdb
set args sft --model out/tiny/model --data out/tiny/sentence.jsonl --steps 3 --batch 1 --lr 1e-3 \
  --plain 1 --out out/tiny/walk
tbreak attention_row_forward if n == 8
run
printf "\n"
where_am_i
printf "\n"
printf "Try:  row q D                      the query, one row of D numbers\n"
printf "      floats k n D stride          the keys that it may see\n"
printf "      next, until, finish, up      step, leave a loop or a function, look at the caller\n"
printf "      whose q                      which array this pointer leads into\n"
printf "      tensor $m \"layers.0.self_attn.q_proj\"\n"
printf "      tbreak ffn_block_forward     then continue, and: attention 0\n"
printf "      help user-defined            all commands; help floats explains one\n"
