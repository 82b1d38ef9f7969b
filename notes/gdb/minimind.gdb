# minimind.gdb - commands for looking at a model while it runs.
#
#     gdb -q -x notes/gdb/minimind.gdb ./minimind-debug        (make debug, or notes/gdb/prepare.sh)
#
# `help user-defined` lists the commands, `help floats` explains one. They are written in gdb's own
# language and need gdb 10 or newer, nothing else. Most of them look at the selected frame and at
# the frames around it for the model, its activations and the layer, so that they work wherever the
# program has stopped inside a forward or backward pass.
#
# The program has to be running. Names that begin with _ are helpers and their variables.

set pagination off
set width 0
set print frame-arguments scalars

# ---- helpers ------------------------------------------------------------------------------------

# `frame apply 1 -s COMMAND` runs a command and ignores that it fails, here because the program is
# not inside a function or a name is unknown. `frame apply all` does so in every frame, from the
# innermost to the outermost; it is slower, and is used where the functions are not known.
define _find
  set $m = (Model *)0
  set $a = (Acts *)0
  set $l = -1
  set $tok = (Tokenizer *)0
  set $batch = (Batch *)0
  frame apply 1 -s -q _find_run
  frame apply 1 -s -q _find_batch
  frame apply 1 -s -q _find_layer block_forward
  frame apply 1 -s -q _find_layer ffn_block_backward
  frame apply 1 -s -q _find_layer attention_block_backward
  if $a == 0
    frame apply all -s -q set $m = $m == 0 && model->n_tensors > 0 ? (Model *)model : $m
    frame apply all -s -q set $a = $a == 0 && a->max_rows > 0 ? (Acts *)a : $a
    frame apply all -s -q set $tok = $tok == 0 && tok->vocab_size > 0 ? (Tokenizer *)tok : $tok
  end
end
document _find
(helper) Sets $m, $a, $l, $tok and $batch: see where_am_i.
end

define _find_run
  select-frame function run_stage
  set $m = run.model
  set $a = run.acts
  set $tok = run.tok
  set $batch = &run.batch
end
document _find_run
(helper) Part of _find.
end
define _find_batch
  select-frame function logp_of
  set $batch = (Batch *)b
end
document _find_batch
(helper) Part of _find.
end
define _find_layer
  if $l < 0
    select-frame function $arg0
    set $l = l
  end
end
document _find_layer
(helper) Part of _find.
end

# gdb has no functions of its own for these two. Those of libm take 6 ms per call from gdb.
define _exp
  # e^x = (e^(x / 1024))^1024: a short series, then ten squarings
  set $_x = ($arg0) / 1024.0
  set $_e = 1 + $_x * (1 + $_x / 2 * (1 + $_x / 3 * (1 + $_x / 4 * (1 + $_x / 5))))
  set $_e2 = $_e * $_e
  set $_e8 = $_e2 * $_e2 * $_e2 * $_e2
  set $_e32 = $_e8 * $_e8 * $_e8 * $_e8
  set $_e128 = $_e32 * $_e32 * $_e32 * $_e32
  set $_e512 = $_e128 * $_e128 * $_e128 * $_e128
  set $_e = $_e512 * $_e512
end
document _exp
(helper) _exp X: sets $_e to e^X, for -700 < X < 700.
end

define _sqrt
  # Newton's method: the mean of y and x / y comes closer to sqrt(x)
  set $_x = (double)($arg0)
  set $_root = $_x > 1 || $_x != $_x ? $_x : 1.0
  while $_root * $_root > $_x * 1.000000000001 && $_root > 1e-30
    set $_root = ($_root + $_x / $_root) / 2
  end
end
document _sqrt
(helper) _sqrt X: sets $_root to the square root of X, which is not negative.
end

define _token
  set $_s = $tok->token[$arg0].s
  set $_end = $_s + $tok->token[$arg0].len
  set $_left = $arg1
  printf "\""
  while $_s < $_end && ($_left > 0 || $arg1 == 0)
    if *$_s == '\n'
      printf "\\n"
      set $_left = $_left - 2
    else
      printf "%c", *$_s
      # The second and later bytes of a UTF-8 character take no room on the screen.
      set $_left = $_left - ((*$_s & 0xC0) != 0x80)
    end
    set $_s = $_s + 1
  end
  printf "\""
  while $_left > 0
    printf " "
    set $_left = $_left - 1
  end
end
document _token
(helper) _token ID WIDTH: prints the text of a token in quotes.
It is cut or padded to WIDTH characters; WIDTH 0: as long as it is. Needs $tok.
end

define _each
  if $argc > 1
    $arg0 $arg1
  end
  if $argc > 2
    $arg0 $arg2
  end
  if $argc > 3
    $arg0 $arg3
  end
  if $argc > 4
    $arg0 $arg4
  end
  if $argc > 5
    $arg0 $arg5
  end
  if $argc > 6
    $arg0 $arg6
  end
  if $argc > 7
    $arg0 $arg7
  end
end
document _each
(helper) _each COMMAND WORD...: runs COMMAND WORD for each of at most seven words.
end

define quietly
  set $_command = $arg0
  eval "pipe %s | cat >/dev/null", $_command
end
document quietly
quietly "COMMAND": runs a command of gdb without its messages.
The walks use it for breakpoints, `run`, `continue` and `finish`, whose messages hold addresses.
    quietly "tbreak rope if direction < 0"
end

# ---- arrays of floats ---------------------------------------------------------------------------

define row
  set $_at = ($arg0)
  set $_factor = 1.0
  if $argc > 2
    set $_factor = ($arg2)
  end
  set $_j = 0
  while $_j < ($arg1) && $_j < 8
    printf " %8.4f", $_at[$_j] * $_factor
    set $_j = $_j + 1
  end
  if $_j < ($arg1)
    printf " ..."
  end
  _sqrt sum_of_squares($_at,($arg1))
  printf "   norm %.4f\n", $_root * $_factor
end
document row
row X N [FACTOR]: the first eight of N numbers on one line, and the norm.
The norm is that of all N. Everything is shown times FACTOR: 1000 makes small gradients readable.
    row q D
end

define floats
  set $_at = ($arg0)
  set $_rows = (long)($arg1)
  set $_cols = (long)($arg2)
  set $_stride = $_cols
  if $argc > 3
    set $_stride = (long)($arg3)
  end
  set $_i = 0
  set $_squares = 0.0
  while $_i < $_rows
    if $_stride == $_cols
      # no gaps: all rows at once
      set $_squares = sum_of_squares($_at, $_rows * $_cols)
    else
      set $_squares = $_squares + sum_of_squares($_at + $_i * $_stride, $_cols)
    end
    if $_i < 4
      set $_j = 0
      while $_j < $_cols && $_j < 6
        printf " %8.4f", $_at[$_i * $_stride + $_j]
        set $_j = $_j + 1
      end
      if $_cols > 6
        printf " ..."
      end
      printf "\n"
    end
    set $_i = $_i + 1
    if $_i == 4 && $_stride == $_cols
      set $_i = $_rows
    end
  end
  if $_rows > 4
    printf "      ...\n"
  end
  _sqrt $_squares
  printf "  (%ld, %ld), norm %.4f\n", $_rows, $_cols, $_root
end
document floats
floats X ROWS COLS [STRIDE]: the corner of an array and its norm.
At most 4 x 6 numbers are shown; the norm, sqrt(sum of x^2), is that of all. STRIDE: how far apart
two rows are, if it is not COLS.
    floats act->q a->N model->H*model->D
    floats k n D stride
Arguments must not contain spaces. ("show", the obvious name, is a command of gdb itself.)
end

define copy
  set $_to = ($arg0)
  set $_from = ($arg1)
  set $_j = 0
  while $_j < ($arg2)
    set $_to[$_j] = $_from[$_j]
    set $_j = $_j + 1
  end
end
document copy
copy TO FROM N: copies N floats inside the program.
It keeps numbers that will be overwritten, to compare them with what comes later. TO must be memory
that the program does not need now: in attention for example $a->h, the work space of the
feed-forward, and in the feed-forward $a->datt.
end

# ---- the table of parameters --------------------------------------------------------------------

define _contains
  set $_s = (char *)$arg0
  set $_found = 0
  while *$_s && !$_found
    if *$_s == $_part[0]
      set $_i = 1
      while $_part[$_i] && $_s[$_i] == $_part[$_i]
        set $_i = $_i + 1
      end
      set $_found = $_part[$_i] == 0
    end
    set $_s = $_s + 1
  end
end
document _contains
(helper) _contains TEXT: sets $_found to whether TEXT contains $_part.
end

define tensors
  set $_model = (Model *)($arg0)
  set $_i = 0
  while $_i < $_model->n_tensors
    set $_t = &$_model->tensor[$_i]
    printf "%4d  (%ld, %ld)  %s\n", $_i, $_t->rows, $_t->cols, $_t->name
    set $_i = $_i + 1
  end
  printf "%ld parameters\n", $_model->n_params
end
document tensors
tensors M: the table of parameters: number, shape, name.
M is a Model *: `model` in most functions, or $m after where_am_i.
end

define tensor
  set $_model = (Model *)($arg0)
  set $_t = (Tensor *)0
  set $_n = 0
  set $_part = $arg1
  while $_n < $_model->n_tensors && $_t == 0
    _contains $_model->tensor[$_n].name
    if $_found
      set $_t = &$_model->tensor[$_n]
    end
    set $_n = $_n + 1
  end
  if $_t == 0
    printf "no tensor has %s in its name; tensors M lists them\n", $arg1
  else
    printf "%s  (%ld, %ld)\n", $_t->name, $_t->rows, $_t->cols
    if $_t->weight != 0
      floats $_t->weight $_t->rows $_t->cols
    end
    if $_t->grad != 0
      printf "gradient\n"
      floats $_t->grad $_t->rows $_t->cols
    end
  end
end
document tensor
tensor M "PART": a corner and the norm of a parameter and of its gradient.
It is the first tensor of the table whose name contains PART. M is a Model *: `model` in most
functions, or $m after where_am_i. Afterwards $_t is that Tensor *.
    tensor model "layers.0.self_attn.q_proj"
end

# ---- tokens and the loss mask -------------------------------------------------------------------

define tokens
  _find
  set $_n = 0
  set $_to = 0
  if $a != 0
    set $_to = $a->N < 40 ? $a->N : 40
  end
  while $_n < $_to
    printf "%4d  %5d  ", $_n, $a->ids[$_n]
    _token $a->ids[$_n] 0
    printf "\n"
    set $_n = $_n + 1
  end
end
document tokens
tokens: the first 40 tokens of the pass in progress.
Row n, id, text.
end

define loss_mask
  _find
  set $_n = 0
  set $_to = 0
  if $batch == 0
    printf "no batch here\n"
  else
    set $_to = $batch->T
    if $argc > 1
      set $_n = $arg1
      set $_to = $arg2
    end
    set $_n = $_n + ($arg0) * $batch->T
    set $_to = $_to + ($arg0) * $batch->T
  end
  printf "   t     id  token               target  trained\n"
  while $_n < $_to
    printf "%4d  %5d  ", $_n % $batch->T, $batch->ids[$_n]
    _token $batch->ids[$_n] 16
    if $batch->target[$_n] < 0
      printf "      -1  no\n"
    else
      printf "  %6d  ", $batch->target[$_n]
      _token $batch->target[$_n] 0
      printf "\n"
    end
    set $_n = $_n + 1
  end
end
document loss_mask
loss_mask R [FROM TO]: the tokens and targets of row R of the batch.
All, or FROM .. TO - 1: each id, its text, its target, and the text of the target if it is trained.
Padding is id 0 with target -1.
end

# ---- attention ----------------------------------------------------------------------------------

define attention
  _find
  if $a == 0 || $l < 0
    printf "no layer here: stop in attention_block_forward or in a function that it calls\n"
  else
    set $_h = (int)($arg0)
    set $_b = 0
    if $argc > 1
      set $_b = (int)($arg1)
    end
    if $_h < $m->H && $_b < $a->B
      _attention
    else
      printf "there are %ld heads and %ld sequences\n", $m->H, $a->B
    end
  end
end
document attention
attention HEAD [SEQUENCE]: the (T, T) matrix of a head's probabilities.
Row t, column j is the share of value j in the output of token t. Nothing in the program keeps this
matrix. It is computed here from q, k and lse, of the layer in which the program has stopped, after
attention_forward(): p[j] = e^(q . k_j / sqrt(D) - lse). A dot is a key that the causal mask hides.
At most 12 rows and columns are shown.
end

define _attention
  set $_act = &$a->layer[$l]
  set $_D = (int)$m->D
  set $_T = (int)$a->T
  set $_past = 0
  set $_slot = $_b * $_T
  if $a->room > 0
    set $_past = $a->past[$_b]
    set $_slot = $a->slot[$_b] * (int)$a->room
  end
  set $_kv = $_h / ((int)$m->H / (int)$m->KV)
  printf "layer %d, head %d, which reads key/value head %d: ", $l, $_h, $_kv
  printf "p of token t (row) for key j (column)\n"
  printf "            "
  set $_j = 0
  while $_j < $_past + $_T && $_j < 12
    printf "%7d", $_j
    set $_j = $_j + 1
  end
  printf "\n"
  set $_least = 1.0
  set $_most = 1.0
  _sqrt $_D
  set $_t = 0
  while $_t < $_T && $_t < 12
    set $_query = ($_b * $_T + $_t) * (int)$m->H + $_h
    set $_n = $_b * $_T + $_t
    printf "%3d ", $_t
    if $tok != 0
      _token $a->ids[$_n] 6
    else
      printf "        "
    end
    if $_act->lse[$_query] == 0
      printf "  not computed yet\n"
    else
      _attention_row
    end
    set $_t = $_t + 1
  end
  printf "sums of the rows: %.4f to %.4f", $_least, $_most
  if $_least < 0.99 || $_most > 1.01
    printf " (not 1: some are left from an earlier pass)"
  end
  printf "\n"
end
document _attention
(helper) The matrix of head $_h of sequence $_b.
end

define _attention_row
  set $_q = $_act->q + $_query * $_D
  set $_total = 0.0
  set $_j = 0
  while $_j <= $_past + $_t
    set $_k = $_act->k + (($_slot + $_j) * (int)$m->KV + $_kv) * $_D
    set $_dot = 0.0
    set $_d = 0
    while $_d < $_D
      set $_dot = $_dot + $_q[$_d] * $_k[$_d]
      set $_d = $_d + 1
    end
    _exp $_dot/$_root-$_act->lse[$_query]
    set $_total = $_total + $_e
    if $_j < 12
      printf "%7.4f", $_e
    end
    set $_j = $_j + 1
  end
  while $_j < $_past + $_T && $_j < 12
    printf "      ."
    set $_j = $_j + 1
  end
  printf "\n"
  if $_total < $_least
    set $_least = $_total
  end
  if $_total > $_most
    set $_most = $_total
  end
end
document _attention_row
(helper) Row $_t of that matrix, after its token.
end

# ---- mixture of experts -------------------------------------------------------------------------

define routing
  _find
  if $a == 0 || $l < 0 || $m->E == 0
    printf "no layer with a router here: stop in ffn_block_forward or in a function that it calls\n"
  else
    set $_r = &$a->layer[$l].route
    printf "layer %d: probability of each expert, chosen experts with their factors\n", $l
    set $_n = 0
    while $_n < $a->N && $_n < 12
      printf "%3d ", $_n
      if $tok != 0
        _token $a->ids[$_n] 6
      end
      set $_e = 0
      while $_e < $m->E && $_e < 8
        printf "%8.4f", $_r->prob[$_n * $m->E + $_e]
        set $_e = $_e + 1
      end
      printf "   "
      set $_k = 0
      while $_k < $m->K
        printf "  %d: %.4f", $_r->choice[$_n * $m->K + $_k], $_r->mix[$_n * $m->K + $_k]
        set $_k = $_k + 1
      end
      printf "\n"
      set $_n = $_n + 1
    end
  end
end
document routing
routing: the experts of the first 12 tokens.
Of the layer in which the program has stopped, after router_forward(): the probabilities of at most
eight experts, then each chosen expert and the factor of its output.
end

define experts
  _find
  set $_e = 0
  set $_to = 0
  if $a != 0 && $l >= 0
    set $_to = $m->E
    set $_r = &$a->layer[$l].route
  end
  while $_e < $_to
    printf "expert %d: rows %3d .. %3d, tokens", $_e, $_r->first[$_e], $_r->first[$_e + 1] - 1
    set $_i = $_r->first[$_e]
    while $_i < $_r->first[$_e + 1] && $_i < $_r->first[$_e] + 20
      printf " %d", $_r->token[$_i]
      set $_i = $_i + 1
    end
    if $_i < $_r->first[$_e + 1]
      printf " ..."
    end
    printf "\n"
    set $_e = $_e + 1
  end
end
document experts
experts: the rows of each routed expert and the tokens in them.
Of the layer in which the program has stopped, after sort_by_expert(). At most 20 tokens are shown
per expert.
end

# ---- where am I ---------------------------------------------------------------------------------

define where_am_i
  _find
  frame apply 1 -s -q _in_train
  frame apply 1 -s -q _in_pass
  frame apply 1 -s -q _in_half attention_block_forward "attention, forward"
  frame apply 1 -s -q _in_half attention_block_backward "attention, backward"
  frame apply 1 -s -q _in_half ffn_block_forward "feed-forward, forward"
  frame apply 1 -s -q _in_half ffn_block_backward "feed-forward, backward"
  frame apply 1 -s -q _in_query attention_forward
  frame apply 1 -s -q _in_query attention_backward
  frame apply 1 -s -q _in_expert ffn_block_forward
  frame apply 1 -s -q _in_expert ffn_block_backward
  frame apply 1 -s -q _in_project project
  frame apply 1 -s -q _in_project project_backward
  set $_known = 0
  _chapters
  if $_known == 0
    printf "function  not in the list of where_am_i; backtrace shows it\n"
  end
end
document where_am_i
where_am_i: stage, step, rows, layer, query, expert, tensor, function.
As far as the frames tell. Afterwards $m is the Model *, $a the Acts *, $l the layer, $tok the
Tokenizer * and $batch the Batch *; 0, and -1 for the layer, where there is none.
end

define _in_train
  select-frame function train
  printf "stage     %s, step %ld of %ld\n", run->stage->name, step, run->total
end
document _in_train
(helper) Part of where_am_i.
end
define _in_pass
  select-frame function accumulate_gradients
  printf "pass      rows %ld .. %ld of the batch's %ld\n", row, row + rows - 1, b->rows
end
document _in_pass
(helper) Part of where_am_i.
end
define _in_half
  select-frame function $arg0
  printf "layer     %d of %ld, %s\n", l, model->L, $arg1
end
document _in_half
(helper) Part of where_am_i.
end
define _in_query
  select-frame function $arg0
  printf "query     sequence %ld, token %ld, head %ld, which reads key/value head %ld\n", \
    b, t, h, h / G
end
document _in_query
(helper) Part of where_am_i.
end
define _in_expert
  select-frame function $arg0
  printf "expert    %ld, with %ld rows\n", e, n
end
document _in_expert
(helper) Part of where_am_i.
end
define _in_project
  select-frame function $arg0
  printf "tensor    %s (%ld, %ld)\n", w->name, w->rows, w->cols
end
document _in_project
(helper) Part of where_am_i.
end
define _chapter
  if $_known == 0
    frame apply 1 -s -q _chapter_if $arg0
  end
end
document _chapter
(helper) Part of where_am_i.
end
define _chapter_if
  select-frame function $arg0
  set $_known = 1
  printf "function  $arg0(), chapter %d\n", $_chapter
end
document _chapter_if
(helper) Part of where_am_i.
end

# The innermost function comes first.
define _chapters
  set $_chapter = 2
  _each _chapter log_sum_exp linear_forward linear_backward gather_rows gather_rows_backward
  _each _chapter rmsnorm_forward rmsnorm_backward rope softmax_forward softmax_backward
  _each _chapter attention_row_forward attention_row_backward attention_forward attention_backward
  _each _chapter swiglu_forward swiglu_backward router_forward router_backward balance_loss
  _each _chapter sort_by_expert combine_forward combine_backward logp_forward logp_backward
  set $_chapter = 3
  _each _chapter project project_backward normalise normalise_backward attend layer_balance
  _each _chapter route_tokens route_backward attention_block_forward attention_block_backward
  _each _chapter ffn_block_forward ffn_block_backward block_forward head_forward model_forward
  _each _chapter model_backward logp_of
  set $_chapter = 4
  _each _chapter shift_labels next_token_loss dpo_loss batch_set_row
  set $_chapter = 5
  _each _chapter adamw_update adamw_step
  set $_chapter = 6
  _each _chapter data_fill
  set $_chapter = 7
  _each _chapter score_documents accumulate_gradients train
  set $_chapter = 12
  _each _chapter run_stage
end
document _chapters
(helper) Part of where_am_i.
end

# ---- whose pointer is this ----------------------------------------------------------------------

define whose
  _find
  set $_p = (char *)($arg0)
  set $_best = (char *)0
  if $m != 0
    _whose_tensor $m->params "weight of"
  end
  if $m != 0 && $m->grads != 0
    _whose_tensor $m->grads "gradient of"
    _whose_tensor $m->moment1 "moment 1 of"
    _whose_tensor $m->moment2 "moment 2 of"
  end
  if $_best == 0 && $a != 0
    if $_p >= (char *)$a->memory && $_p < (char *)($a->memory + $a->size)
      _whose_array
    end
  end
  if $_best == 0
    printf "no parameter, gradient or activation\n"
  end
end
document whose
whose POINTER: which array a pointer leads into, and at which element.
A tensor of the model (its weight, gradient or a moment), or an array of activations (a->dx,
a->layer[0].q, ...). An int counts as an element too.
    whose x
end

define _whose_tensor
  set $_index = ($_p - (char *)$arg0) / (long)sizeof(float)
  if $_p >= (char *)$arg0 && $_index < $m->n_params
    set $_best = $_p
    set $_t = $m->tensor
    while $_t->offset + $_t->rows * $_t->cols <= $_index
      set $_t = $_t + 1
    end
    printf "element %ld of the %s %s (%ld, %ld)\n", $_index - $_t->offset, $arg1, $_t->name, \
      $_t->rows, $_t->cols
  end
end
document _whose_tensor
(helper) Part of whose.
end

# Activations have no table. They come from one block of memory, so the array that begins last at
# or before the pointer is the one.
define _whose_array
  set $_i = 0
  while $_i <= $m->L
    set $_act = &$a->layer[$_i]
    _begins_layer x
    if $_i < $m->L
      _each _begins_layer norm1 rstd1 q_raw k_raw q_rstd k_rstd q
      _each _begins_layer k v att lse x_mid norm2 rstd2
      _each _begins_layer route.prob route.mix route.dmix route.choice route.row route.token
      _each _begins_layer route.first route.count gathered gate up expert_out
    end
    set $_i = $_i + 1
  end
  _each _begins cosine sine final_norm final_rstd out_row target out_norm
  _each _begins logits lse logp dlogp v_raw score h
  if $a->mode != INFERENCE
    _each _begins dx dnorm dout_norm datt dq dq_raw dk
    _each _begins dv dk_raw dh dgate dexpert_out dgathered dprob
    _each _begins dscore
  end
  printf "element %ld of a->", ($_p - $_best) / (long)sizeof(float)
  if $_layer >= 0
    printf "layer[%d].", $_layer
  end
  printf "%s\n", $_name
end
document _whose_array
(helper) Part of whose.
end

define _begins_layer
  if (char *)$_act->$arg0 <= $_p && (char *)$_act->$arg0 > $_best
    set $_best = (char *)$_act->$arg0
    set $_layer = $_i
    set $_name = "$arg0"
  end
end
document _begins_layer
(helper) Part of whose.
end
define _begins
  if (char *)$a->$arg0 <= $_p && (char *)$a->$arg0 > $_best
    set $_best = (char *)$a->$arg0
    set $_layer = -1
    set $_name = "$arg0"
  end
end
document _begins
(helper) Part of whose.
end
