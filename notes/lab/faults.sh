#!/bin/sh
# faults.sh - does a mistake in the sources turn a test red?
#
#     notes/lab/faults.sh                  all faults, two at a time
#     notes/lab/faults.sh train files      those that these groups of tests.sh should catch
#     notes/lab/faults.sh "norms decay"    those with this in their name
#     notes/lab/faults.sh --apply          only whether they apply; nothing is compiled
#
# A test that has never failed proves nothing. Below is a list of mistakes that people make in such
# programs. Each is put into a copy of the project, in a temporary folder; there one group of
# tests.sh runs up to its first failure. Printed is the test that caught the fault, or SURVIVED.
# Exit status 1 if a fault survived, or no longer applies: its old text must occur exactly once.

root=$(cd "$(dirname "$0")/../.." && pwd)

# ---- one fault ----------------------------------------------------------------------------------

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

# Puts the fault that is described in the files of a folder into a copy, and runs its group.
try() {
    cd "$1" || exit 1
    group=$(cat group) source=$(cat source) name=$(cat name)
    old=$(cat old) new=$(cat new)
    export old new
    mkdir project && cp -r "$root"/*.c "$root"/tests.sh "$root"/Makefile "$root"/README.md \
        "$root"/notes project
    if substitute <"$root/$source" >"project/$source"; then
        [ -z "$apply_only" ] || echo "  FAILED  (not run)" >result
        limit=$(command -v timeout >/dev/null && echo "timeout 900")
        [ "$apply_only" ] || $limit project/tests.sh --stop $group >result 2>&1
        caught=$(sed -n '/^  FAILED  /{
            s///p
            n
            s/^ *FAILED \(.*\)  *error .*/: \1/p
            q
        }' result | tr -d '\n' | tr -s ' ')
        case $caught in build*) caught= ;; esac
        if [ "$caught" ]; then verdict="caught by: $caught"
        elif grep -q '^[0-9]* passed, 0 failed' result; then verdict=SURVIVED
        elif grep -q '^  FAILED  build' result; then verdict="DOES NOT COMPILE"
        else verdict="caught by: the tests did not end"; fi
    else
        verdict="DOES NOT APPLY: \"$old\" has to occur exactly once"
    fi
    rm -rf project
    printf '%-9s %-11s %-46s %s\n' "$group" "${source##*/}" "$name" "$verdict" | tee verdict
}

if [ "$1" = --try ]; then
    try "$2"
    exit 0
fi

# ---- the list -----------------------------------------------------------------------------------

tmp=$(mktemp -d) || exit 1
trap 'rm -rf "$tmp"' EXIT
trap 'exit 1' INT TERM
number=1000

fault() { # fault GROUP SOURCE NAME OLD NEW
    echo "$1 $3" | grep -qE "$wanted" || return 0
    number=$((number + 1))
    mkdir "$tmp/$number"
    for part in group source name old new; do
        printf '%s\n' "$1" >"$tmp/$number/$part"
        shift
    done
}

export apply_only=
if [ "$1" = --apply ]; then
    apply_only=yes
    shift
fi
wanted=$(IFS='|' && echo "$*") # an extended regular expression; empty: all

# minimind.c, chapter 2: the layers

fault check minimind.c "linear: dw overwritten" 'dw[o * in + c] += d * x[i * in + c];' \
    'dw[o * in + c] = d * x[i * in + c];'
fault check minimind.c "embedding: a token's gradient counts once" \
    'dfrom[index[i] * C + c] += dto' 'dfrom[index[i] * C + c] = dto'
fault check minimind.c "rmsnorm: r squared" 'float shared = r * r * r / C * sum;' \
    'float shared = r * r / C * sum;'
fault check minimind.c "rope does not turn back" 'sin_a = direction * sin_t[i];' \
    'sin_a = sin_t[i];'
fault golden minimind.c "rope turns the other way" 'x_row[i] = x_i * cos_t[i] - x_j * sin_a;' \
    'x_row[i] = x_i * cos_t[i] + x_j * sin_a;'
fault check minimind.c "softmax backward without the sum" 'p_i[j] * (dp_i[j] - sum)' \
    'p_i[j] * dp_i[j]'
fault check minimind.c "attention sees the future" 'k + key0, v + key0, past + t + 1, KV * D, D);' \
    'k + key0, v + key0, past + T, KV * D, D);'
fault check minimind.c "query heads mapped to the wrong key head" \
    'size_t key0 = (b * (past + T) * KV + h / G) * D;' \
    'size_t key0 = (b * (past + T) * KV + h % KV) * D;'
fault check minimind.c "attention scaled by 1 / D" 'float scale = 1.0f / sqrtf(D), dout_out = 0;' \
    'float scale = 1.0f / D, dout_out = 0;'
fault check minimind.c "router: renormalised twice" 'mix[n * K + k] /= sum;' \
    'mix[n * K + k] /= sum * sum;'
fault check minimind.c "router backward without the shared term" '(dmix[i] - shared) / s;' \
    'dmix[i] / s;'
fault check minimind.c "router chooses an expert twice" \
    'if (!taken && (best < 0 || p[e] > p[best])) best = e;' \
    'if (best < 0 || p[e] > p[best]) best = e;'
fault check minimind.c "balance loss counts padding" \
    'for (size_t row = b * T; row < b * T + length[b]; row++) {' \
    'for (size_t row = b * T; row < b * T + T; row++) {'
fault check minimind.c "balance loss: gradient not divided" \
    'dprob[row * E + e] += per_token * count / n;' 'dprob[row * E + e] += per_token * count;'
fault check minimind.c "experts: wrong token of a row" 'token[row[i]] = (int)(i / K);' \
    'token[row[i]] = (int)(i % N);'
fault check minimind.c "experts: factors ignored" 'float factor = mix ? mix[i] : 1;' \
    'float factor = 1;'

# chapter 3: the model

fault golden minimind.c "YaRN: ramp reversed" 'frequency * (1 - ramp + ramp / c->yarn_factor);' \
    'frequency * (ramp + (1 - ramp) / c->yarn_factor);'
fault golden minimind.c "YaRN: attention factor ignored" \
    'double scale = c->yarn ? c->yarn_attention_factor : 1;' 'double scale = 1;'
fault golden minimind.c "eps of the configuration ignored" \
    'float eps = model->config.rms_norm_eps;' 'float eps = 1e-6f;'
fault golden minimind.c "keys are not rotated" 'op->rope(k, cosine, sine, 1, B, T, KV, D);' \
    'op->rope(k, cosine, sine, 0, B, T, KV, D);'
fault check minimind.c "residual of the second half lost" \
    'memcpy(x_out, act->x_mid, N * C * sizeof(float));' 'memset(x_out, 0, N * C * sizeof(float));'
fault check minimind.c "tied embedding: input gradient lost" \
    'gather_rows_backward(model->embed->grad, a->dx, a->ids, a->N, C);' ';'
fault check minimind.c "all layers start alike" \
    'uint64_t stream = fnv1a64(t->name) + splitmix64(seed);' 'uint64_t stream = splitmix64(seed);'
fault check minimind.c "the seed is ignored" \
    'uint64_t stream = fnv1a64(t->name) + splitmix64(seed);' 'uint64_t stream = fnv1a64(t->name);'
fault check minimind.c "start: residual branches too large" \
    'out_std = 0.02f / sqrtf(2 * model->L);' 'out_std = 0.02f;'
fault check minimind.c "balance loss not shared out to passes" \
    'a->aux_share = (float)rows / b->rows;' 'a->aux_share = 1;'
fault train minimind.c "recompute: one layer forgotten" \
    'if (a->mode == RECOMPUTE && l + 1 < (int)model->L) block_forward' \
    'if (a->mode == RECOMPUTE && l + 2 < (int)model->L) block_forward'
fault options minimind.c "head_dim may be odd" 'if (c->head_dim < 2 || c->head_dim % 2)' \
    'if (c->head_dim < 2)'
fault options minimind.c "default width of the feed-forward" 'ceil(C * M_PI), 64)' 'C * 4, 64)'
fault options minimind.c "active parameters of one layer" '(model->E - model->K) * model->L;' \
    '(model->E - model->K);'
fault options minimind.c "preset with half the layers" 'vocab_size=6400 num_hidden_layers=16' \
    'vocab_size=6400 num_hidden_layers=8'

# chapter 4: objectives

fault check minimind.c "labels are not shifted" 'int next = t < n ? ids[t + 1] : 0;' \
    'int next = t < n ? ids[t] : 0;'
fault check minimind.c "loss divided by the targets of the pass" \
    'dlogp[i] = -1.0f / b->n_targets;' 'dlogp[i] = -1.0f / n;'
fault check minimind.c "DPO: chosen and rejected exchanged" '% 2 ? slope : -slope;' \
    '% 2 ? -slope : slope;'
fault check minimind.c "DPO: one reference for both" 'p->ref_sum[2 * pair + 1]);' \
    'p->ref_sum[2 * pair]);'
fault check minimind.c "DPO: overflow at large margins" 'log1p(exp(-fabs(margin)))' \
    'log1p(exp(-margin))'

# chapter 5: the optimiser

fault check minimind.c "schedule ends at 0" '(0.1 + 0.45 * (1 + cos' '(0.0 + 0.5 * (1 + cos'
fault check minimind.c "AdamW: no bias correction of v" \
    'float v_correction = 1 / (1 - pow(o->beta2, o->step)), keep' 'float v_correction = 1, keep'
fault check minimind.c "AdamW: decay grows with the gradient" \
    'w[i] = w[i] * keep - rate * m[i] / (fast_sqrt(v[i] * v_correction) + eps);' \
    'w[i] = w[i] - rate * (m[i] + decay * w[i]) / (fast_sqrt(v[i] * v_correction) + eps);'
fault check minimind.c "clip scales small gradients up" 'fmin(1, o->clip / (norm + 1e-6))' \
    'o->clip / (norm + 1e-6)'
fault check minimind.c "norms decay" 't->decay ? o->weight_decay : 0, factor);' \
    'o->weight_decay, factor);'

# chapter 6: data

fault data minimind.c "the cache name ignores the data" \
    '"out/cache/%016" PRIx64 ".ids", hash_files(hash, list));' \
    '"out/cache/%016" PRIx64 ".ids", hash);'
fault data minimind.c "the cache name ignores the tokenizer" \
    '{CACHE_VERSION, tok->fingerprint, unit, part, cut}' '{CACHE_VERSION, unit, part, cut}'
fault data minimind.c "the cache name ignores the length of rows" \
    'tok->fingerprint, unit, part, cut}' 'tok->fingerprint, unit, part}'
fault data minimind.c "held-out documents are trained on" \
    'o->held_out ? ALL : TRAIN_PART, run->tok' 'ALL, run->tok'
fault data minimind.c "other documents held out" '== HOLD_OUT_EVERY - 1;' '== 0;'
fault data minimind.c "no end token after a text" \
    'if (ends && b->tok->eos >= 0) ids_push(ids, b->tok->eos);' ''
fault data minimind.c "rows are cut one token short" 'ids->n = from + b->T + 1;' \
    'ids->n = from + b->T;'
fault data minimind.c "skipped rows leave their ids" 'b->n = n_before; // undo' '//'
fault data minimind.c "skipped rows are not counted" \
    'if (!b->n_skipped++) b->first_skipped = r.number;' ';'
fault data minimind.c "a damaged cache is used" 'if (damaged) die' 'if (false) die'
fault check minimind.c "nothing is shuffled" 'shuffle(order, n, 1, stream);' ';'
fault check minimind.c "every epoch has the same order" \
    '+ d->epoch * (d->train.n_ids + d->held.n_ids);' ';'
fault check minimind.c "the incomplete last step of an epoch is dropped" \
    'if (d->next == d->n_units) start_epoch' 'if (d->next + units > d->n_units) start_epoch'
fault check minimind.c "windows start at the same place" \
    'size_t from = epoch_phase(d, d->epoch - 1) + ' 'size_t from = '
fault check minimind.c "windows overlap by one" 'd->order[d->next + r] * d->T;' \
    'd->order[d->next + r] * (d->T - 1);'
fault check minimind.c "rejected before chosen" 'unit * d->unit + r % d->unit];' \
    'unit * d->unit + (d->unit - 1) - r % d->unit];'
fault check minimind.c "rows are not sorted by length" \
    'order[i] |= (first[d->unit - 1].to - first->from) << SHIFT;' '(void)first;'

# chapter 7: training

fault check minimind.c "the incomplete last micro-batch is dropped" \
    'for (size_t row = 0; row < b->rows; row += pass_rows) {' \
    'for (size_t row = 0; row + pass_rows <= b->rows; row += pass_rows) {'
fault train minimind.c "the schedule is ignored in the loop" 'AdamW adamw = {r.lr,' \
    'AdamW adamw = {highest_lr,'
fault train minimind.c "--warmup is ignored" 'schedule(highest_lr, step, run->total, o->warmup)' \
    'schedule(highest_lr, step, run->total, 0)'
fault train minimind.c "--clip is ignored" 'o->weight_decay, o->clip, step};' \
    'o->weight_decay, 1, step};'
fault train minimind.c "--beta2 is ignored" '{r.lr, 0.9, o->beta2,' '{r.lr, 0.9, 0.95,'
fault train minimind.c "Ctrl-C is ignored" 'stop = interrupted; //' 'stop = false; //'
fault train minimind.c "errors of train.csv ignored" 'if (ferror(csv) || fclose(csv)) die' \
    'if (fclose(csv) && false) die'
fault train minimind.c "steps of an epoch rounded down" '(epoch_units(d, e) + units - 1) / units' \
    'epoch_units(d, e) / units'
fault train minimind.c "--seed does not change the order of the data" \
    'd->seed = splitmix64(o->sampling.seed);' 'd->seed = 0;'
fault train minimind.c "no checkpoint" 'checkpoint_save(run->model, run->tok, o->out);' ''
fault train minimind.c "--until compares the wrong way" 'e.watched <= o->until' \
    'e.watched >= o->until'
fault train minimind.c "a loss that is not finite goes on" 'if (!isfinite(r.loss + r.grad_norm))' \
    'if (false)'
fault train minimind.c "measured on the training data" 'o->held_out ? o->held_out : o->data' \
    'o->data'
fault train minimind.c "a checkpoint is not loaded" \
    'if (o.model) weights_load(run.model, o.model);' \
    'if (false) weights_load(run.model, o.model);'
fault talk minimind.c "DPO: the reference of another pair" \
    'p->ref_sum[r] = -p->train_nats[pair[r / 2] * 2 + r % 2];' \
    'p->ref_sum[r] = -p->train_nats[r];'

# chapter 8: talking

fault check minimind.c "repetition penalty applied twice" \
    'float x = logits[history[i]] / temperature;' 'float x = scaled[history[i]];'
fault check minimind.c "repetition penalty makes negative logits likelier" \
    '(x > 0 ? 1 / penalty : penalty)' '(1 / penalty)'
fault check minimind.c "top-k drops ties" 'if (scaled[v] == kept[k - 1].value)' 'if (false)'
fault golden minimind.c "top-p keeps one token too few" \
    '(s->top_p >= 1 || sum <= s->top_p); end++' \
    '(s->top_p >= 1 || !end || sum + kept[end].value <= s->top_p); end++'
fault golden minimind.c "top-p does not sort" 'if (k == V && s->top_p < 1) qsort' \
    'if (false) qsort'
fault golden minimind.c "top-p: the rest is not divided by its sum" 'kept[i].value / sum;' \
    'kept[i].value;'
fault check minimind.c "KV position off by one in decoding" 'next[B] = x->ids.id[past[B]];' \
    'next[B] = x->ids.id[past[B]++];'
fault check minimind.c "cached tokens are rotated from 0" 'cosine = a->cosine + past * (D / 2);' \
    'cosine = a->cosine;'
fault check minimind.c "a prompt in passes: wrong position" 'int at = past + (int)i;' \
    'int at = past;'
fault check minimind.c "copied cache lacks a token" \
    'size_t bytes = n * position_size * sizeof(float);' \
    'size_t bytes = (n - 1) * position_size * sizeof(float);'
fault check minimind.c "slots exchanged" 'a->room ? a->slot[b] * a->room : row;' \
    'a->room ? b * a->room : row;'
fault check minimind.c "one token too many" 'min_size(a->room, x->prompt + s->max_new_tokens);' \
    'min_size(a->room, x->prompt + s->max_new_tokens + 1);'
fault check minimind.c "all answers draw the same numbers" 'splitmix64(s->seed + i)' \
    'splitmix64(s->seed)'
fault talk minimind.c "generation does not stop at the end token" \
    'x->done = id == tok->eos || id == tok->turn_end;' 'x->done = false;'
fault talk minimind.c "/reset forgets the system's message" 'c->messages.len = c->system_len;' \
    'c->messages.len = 0;'
fault talk minimind.c "/think has no effect" \
    'encode_messages(c->tok, &c->messages, c->o.think, &x.ids);' \
    'encode_messages(c->tok, &c->messages, false, &x.ids);'
fault talk minimind.c "the chat forgets its answers" \
    'add_message(&c->messages, "assistant", NULL, x.text.s);' ''
fault talk minimind.c "Ctrl-C does not end an answer" '(aloud && interrupted)' 'false'
fault talk minimind.c "half characters are printed" \
    'if (!x->done) decode_token(tok, id, &x->utf8, &x->text);' \
    'if (!x->done) text_append(&x->text, tok->token[id].s, tok->token[id].len);'

# chapter 9: files

fault files minimind.c "duplicate tensors are accepted" \
    'if (e->type != JSON_NULL && strcmp(e->key, "__metadata__") &&' \
    'if (false && strcmp(e->key, "__metadata__") &&'
fault files minimind.c "bytes of no tensor are accepted" '&& w->used != w->size)' '&& false)'
fault files minimind.c "weights that are not finite are loaded" 'if (!isfinite(x[k])) die' \
    'if (false) die'
fault files minimind.c "shapes are compared by size only" 'if (cols != t->cols || size != n)' \
    'if (size != n)'
fault files minimind.c "offsets are not checked against the file" 'to->number <= w->size))' \
    'true))'
fault check minimind.c "offsets are ignored" 'w->numbers + (size_t)from->number;' \
    'w->numbers + w->used;'
fault check minimind.c "denormal half numbers are halved" 'exponent ? 1 + fraction : 2 * fraction' \
    'exponent ? 1 + fraction : fraction'
fault check minimind.c "bf16 read as another format" '{"BF16", 2, 8, 7}' '{"BF16", 2, 7, 8}'
fault check minimind.c "config.json loses digits" '\"%s\": %.17g,\n", f->name, value);' \
    '\"%s\": %.3g,\n", f->name, value);'
fault check minimind.c "Llama with q/k norm" '{"llama", "Llama", "qk_norm=0 ' \
    '{"llama", "Llama", "'
fault check minimind.c "MiniMind2 balances over the batch" '"qk_norm=0 seq_aux=1 use_moe=1"' \
    '"qk_norm=0 use_moe=1"'
fault files minimind.c "biases are ignored" 'require(path, j, "attention_bias", "false null");' ''
fault files minimind.c "eos and pad exchanged" '{tok->bos, end, tok->pad};' \
    '{tok->bos, tok->pad, end};'
fault files minimind.c "write errors of answers ignored" 'if (f && (ferror(f) || fclose(f))) die' \
    'if (f && fclose(f) && false) die'
fault files minimind.c "write errors of standard output ignored" \
    'if (fflush(stdout) || ferror(stdout)) die("standard' 'if (false) die("standard'

# chapter 10: measuring

fault check minimind.c "a part of an answer counts as right" \
    'bool right = strstr(accepted->s, said.s);' 'bool right = strstr(accepted->s, text);'
fault check minimind.c "standard error too small" 'sqrt(squares * n / (n - 1)) / sum_y' \
    'sqrt(squares / n) / sum_y'
fault talk minimind.c "preferences reversed" 'right += nats[i + 1] - nats[i] > ref;' \
    'right += nats[i + 1] - nats[i] < ref;'
fault talk minimind.c "floor per document" 'floor / all_bytes' 'floor / n'
fault talk minimind.c "bits per byte in nats" 'nats, bytes, n, 1 / M_LN2);' 'nats, bytes, n, 1);'
fault talk minimind.c "long documents: only their last piece counts" \
    'nats[document] -= a->logp[i];' 'nats[document] = -a->logp[i];'
fault talk minimind.c "--rows is ignored" '(!rows || t.n < rows) && reader_next' 'reader_next'

# chapter 11: the same, faster

fault check minimind.c "fast linear backward overwrites dx" \
    'matmul(n, in, out, view(dy, out), view(w, in), dx, add);' \
    'matmul(n, in, out, view(dy, out), view(w, in), dx, false);'
fault check minimind.c "dot product without its rest" \
    'for (size_t i = whole; i < n; i++) y[r * ldy] += a[r * lda + i] * b[i];' ';'
fault check minimind.c "tiles: dk of the last tile only" 'view(q_rows, D), dk, stride, true);' \
    'view(q_rows, D), dk, stride, false);'
fault check minimind.c "tiles: the mask one key too wide" \
    'size_t n_visible = past + t0 + r / G + 1;' \
    'size_t n_visible = min_size(past + t0 + r / G + 2, keys);'
fault check minimind.c "softmax without its maximum" \
    'lse[i] = max + logf(row_exp(scratch(V), row, V, max));' \
    'lse[i] = logf(row_exp(scratch(V), row, V, 0)) + 0 * max;'
fault check minimind.c "e^x wrong for small x" 'bits_of(104.0f)' 'bits_of(80.0f)'
fault check minimind.c "int8: scale too coarse" 't->scale[b] = most / 127 * 0x1p-24f;' \
    't->scale[b] = most / 110 * 0x1p-24f;'
fault check minimind.c "bf16: cut instead of rounded" '(bits + 0x7FFF + (bits >> 16 & 1)) >> 16' \
    'bits >> 16'
fault check minimind.c "fast sqrt: one step of Newton" 'step < 3; step++' 'step < 1; step++'

# chapter 12: commands, and the instruments

fault options minimind.c "an option in the wrong range" \
    '{"top-p", "wc", '"'f'"', AT(top_p), 0, 1,' '{"top-p", "wc", '"'f'"', AT(top_p), 0, 2,'
fault options minimind.c "--plain computes with packed weights" 'if (o->plain && bits < 32) die' \
    'if (false) die'
fault options minimind.c "a preset overrides the model" 'if (o->model && o->preset) die' \
    'if (false) die'
fault golden notes/lab/grpo.c "KL gradient reversed" '(1 - exp(ref_logp - logp[i]))' \
    '(exp(ref_logp - logp[i]) - 1)'
fault golden notes/lab/grpo.c "CISPO without its limit" 'fmin(ratio, p->epsilon_high) * advantage' \
    'ratio * advantage'
fault check notes/lab/grpo.c "GRPO rewards bad form" '*right + 0.25 * form' '*right + 0.25'
fault check notes/lab/grpo.c "advantages divided by the variance" '(sqrt(variance) + 1e-4)' \
    '(variance + 1e-4)'
fault stages notes/lab/grpo.c "GRPO's reference is not kept" \
    'if (grpo->reference) store_logp(grpo->reference, run->acts' \
    'if (grpo->reference) store_logp(run->model, run->acts'
fault stages notes/lab/grpo.c "new answers for every update" 'n_fills % grpo->updates;' \
    'n_fills % 1;'

# tokenizer.c: helpers and pre-tokens

fault options tokenizer.c "errors end with status 0" 'exit(1);' 'exit(0);'
fault tokenizer tokenizer.c "UTF-8: overlong forms are accepted" \
    'if (c < 0xC2 || c > 0xF4) return 1;' 'if (c < 0xC0 || c > 0xF4) return 1;'
fault tokenizer tokenizer.c "UTF-8: surrogates are accepted" 'c >> 5 == 0x1B)) return i;' \
    'false)) return i;'
fault tokenizer tokenizer.c "byte symbols in the wrong order" \
    '(b > 32 && b < 127) || (b > 160 && b != 173)' '(b > 32 && b < 127) || b > 160'
fault tokenizer tokenizer.c "digits new in Unicode 17" 'return single_digits ? NUMBER : OTHER;' \
    'return NUMBER;'
fault tokenizer tokenizer.c "'ll is no ending" '|| !memcmp(s, "'"'ll"'", 3));' '|| false);'
fault tokenizer tokenizer.c "white space is taken whole before a word" \
    'return word_follows && last > 0 ? last : i;' 'return i;'
fault tokenizer tokenizer.c "--single-digits is ignored" \
    'if (class == NUMBER && single_digits) return i ? i : len;' ''
fault tokenizer tokenizer.c "a table of Unicode loses its end" \
    'if (inside) memset(char_class + at, class, (size_t)length);' \
    'if (inside && at < 0x20000) memset(char_class + at, class, (size_t)length);'

# training

fault tokenizer tokenizer.c "ties go by the right id first" \
    'return ((uint64_t)left + 1) << 32 | (uint64_t)right;' \
    'return ((uint64_t)left + 1) << 32 | (uint64_t)(0x7FFFFFFF - right);'
fault tokenizer tokenizer.c "a word counts once" 'tr->word[word].count++;' \
    'tr->word[word].count = 1;'
fault tokenizer tokenizer.c "pairs to the right of a merge" \
    'change_count(tr, made, id[i + 1], word, 1);' ''
fault tokenizer tokenizer.c "pairs that disappear keep their count" \
    'change_count(tr, id[out - 1], left, word, -1);' ''
fault tokenizer tokenizer.c "stale counts are believed" \
    'if (p->count > 0 && top.first == present) return p;' 'if (p->count > 0) return p;'
fault tokenizer tokenizer.c "new pairs do not enter the heap" 'push_pairs(tr, n_pairs);' ''
fault tokenizer tokenizer.c "quotes are not escaped in a vocabulary" \
    'if (*c == '"'\"' || *c == '\\\\'"') text_add(out, "\\");' ''
fault tokenizer tokenizer.c "single digits are not written down" 'digits ? sequence : ""' \
    '"" && sequence ? "" : ""'
fault tokenizer tokenizer.c "reasoning is not trained on" \
    'use_member(m, "reasoning_content", use, context);' ''

# encoding and decoding

fault tokenizer tokenizer.c "merges of words over 64 bytes do nothing" 'while (heap.n > 0) {' \
    'while (false && heap.n > 0) {'
fault tokenizer tokenizer.c "long words: the rank is not checked again" \
    'if (merge_rank(t, link[i].id, link[next].id) != top.first) continue;' ''
fault tokenizer tokenizer.c "the last pair is merged first" 'if (rank[i] < rank[best]) best = i;' \
    'if (rank[i] <= rank[best]) best = i;'
fault tokenizer tokenizer.c "ranks beside a merge are stale" \
    'if (best > 0) rank[best - 1] = merge_rank(t, id[best - 1], id[best]);' ''
fault tokenizer tokenizer.c "the word cache lacks the last id" \
    'for (size_t i = 0; i < n_ids; i++) ids_push(&t->cached, id[i]);' \
    'for (size_t i = 0; i < n_ids; i++) ids_push(&t->cached, id[i ? i - 1 : 0]);'
fault tokenizer tokenizer.c "a full word cache is not emptied whole" \
    't->cached.n = t->cached_end.n = 0;' 't->cached.n = 0;'
fault tokenizer tokenizer.c "the shortest added token wins" \
    'if (spelling.len <= *length || spelling.len > n' \
    'if ((*length && spelling.len >= *length) || spelling.len > n'
fault tokenizer tokenizer.c "special tokens are not found" 'special ? 0 : PASSES, NULL, out);' \
    'PASSES, NULL, out);'
fault tokenizer tokenizer.c "half a character is shown at once" 'if (cp == CUT_SHORT) break;' ''
fault tokenizer tokenizer.c "half a character at the end is lost" \
    'if (u->n > 0) append_character(out, CUT_SHORT, NULL, 0);' ''

# JSON and records

fault tokenizer tokenizer.c "surrogate pairs: ten bits lost" '((unit & 0x3FF) << 10)' \
    '((unit & 0x1FF) << 10)'
fault tokenizer tokenizer.c "half a surrogate pair is kept" 'unit = 0xFFFD;' ''
fault tokenizer tokenizer.c "control characters in strings" \
    'if ((unsigned char)*p->at < 0x20) return json_fail' \
    'if ((unsigned char)*p->at < 0x01) return json_fail'
fault tokenizer tokenizer.c "of equal keys the first counts" \
    'if (!strcmp(j->key, key)) found = j;' 'if (!found && !strcmp(j->key, key)) found = j;'
fault tokenizer tokenizer.c "text behind the value is ignored" \
    'if (json_value(&p, root) && p.at == p.end) return root;' \
    'if (json_value(&p, root)) return root;'
fault tokenizer tokenizer.c "brackets nested without a limit" 'JSON_MAX_DEPTH = 256' \
    'JSON_MAX_DEPTH = 1 << 28'
fault tokenizer tokenizer.c "a byte order mark is text" 'if (r->number == 1 && !strncmp' \
    'if (r->number == 0 && !strncmp'
fault data tokenizer.c "only the first file of a list is read" \
    'if (n < 0) return reader_open_next(r) && reader_line(r);' 'if (n < 0) return false;'
fault data tokenizer.c "plain text: blocks lose their last line" 'r->len += (size_t)n;' \
    'r->len += (size_t)n - 1;'

# files

fault train tokenizer.c "files are written in place" \
    'char *path = format("%s/%s", dir, name), *tmp = format("%s.%ld.tmp", path, (long)getpid());' \
    'char *path = format("%s/%s", dir, name), *tmp = format("%s", path);'
fault train tokenizer.c "write errors are ignored" 'if (error) die("%s: cannot be written' \
    'if (false) die("%s: cannot be written'
fault train tokenizer.c "an unfinished file stays" 'if (unfinished) remove(unfinished);' ''
fault tokenizer tokenizer.c "unknown settings are accepted" '{EITHER, "model.dropout", "null 0"},' \
    ''
fault tokenizer tokenizer.c "duplicate ids are accepted" 'if (*at && strcmp(*at, s)) die' \
    'if (false) die'
fault tokenizer tokenizer.c "duplicate tokens are accepted" 'if (other != id) die' \
    'if (false) die'
fault tokenizer tokenizer.c "a merge twice" 'if (*rank >= 0) die' 'if (false) die'
fault tokenizer tokenizer.c "a byte without a token" 'if (t->byte_id[b] < 0) die' 'if (false) die'
fault files tokenizer.c "an unknown end token is accepted" 'if (given && *role[i] < 0) die' \
    'if (false) die'
fault data tokenizer.c "the fingerprint ignores tokenizer.json" \
    't->fingerprint = hash_bytes(HASH_START, t->file[0].s, t->file[0].len);' 't->fingerprint = 0;'

# chat

fault template tokenizer.c "wrong prompt for tools" 'You may call one or more functions' \
    'You can call one or more functions'
fault template tokenizer.c "reasoning_content is dropped" \
    'text_or_empty(m, "reasoning_content"), *why_end' '"", *why_end'
fault template tokenizer.c "the system's turn is dropped" \
    'const Json *tool = first_of(c, tools, &parsed), *m = messages->child;' \
    'const Json *tool = first_of(c, tools, &parsed), *m = messages->child->next;'
fault template tokenizer.c "thoughts end at the first mark" 's = last_in(s, end, "</think>")' \
    's = strstr(s, "</think>")'
fault template tokenizer.c "answers of tools do not share a turn" \
    'if (!tool || !role_is(m->next, "tool")) chat_add' 'if (true) chat_add'
fault template tokenizer.c "tools of a system message are ignored" 'tools = own; // not empty' \
    '(void)own; // not empty'
fault template tokenizer.c "the prompt has no empty thoughts" 'if (prompt && !think) chat_add' \
    'if (false) chat_add'
fault data tokenizer.c "the think block is not trained" 'i % 3 > 0 && !prompt' \
    'i % 3 > 1 && !prompt'
fault data tokenizer.c "the end of a turn is not trained" \
    'for (size_t k = first; i % 3 > 0 && !prompt && k < out->n; k++)' \
    'for (size_t k = first; i % 3 > 0 && !prompt && k + (i % 3 == 2) < out->n; k++)'
fault template tokenizer.c "all of a conversation is trained" \
    'for (size_t k = first; i % 3 > 0 && !prompt' 'for (size_t k = first; !prompt'
fault data tokenizer.c "a row is encoded as a whole" 'if (why == why_end) chat_cut(c);' \
    'if (why == why_end) ids_push(&c->cut, (int)c->text.len - 2);'
fault talk tokenizer.c "a person can end a turn" 'special ? NULL : &c.said, out);' 'NULL, out);'

# options

fault options tokenizer.c "ranges are not checked" '!(value >= f->least && value <= f->most) ||' \
    ''
fault options tokenizer.c "a number may have more behind it" '*text && !*end ? number' \
    '*text ? number'
fault options tokenizer.c "options that are required may be missing" \
    'if (requires(s->letter, f) && !*(char' 'if (false && !*(char'
fault options tokenizer.c "every command knows every option" \
    'if (!f || !knows(s->letter, f)) continue;' 'if (!f) continue;'

# ---- all of them --------------------------------------------------------------------------------

started=$(date +%s)
ls "$tmp" | sed "s|^|$tmp/|" | xargs -n 1 -P 2 sh "$0" --try
total=$(ls "$tmp" | wc -l | tr -d ' ')
caught=$(cat "$tmp"/*/verdict | grep -c 'caught by: ')
did=caught
[ -z "$apply_only" ] || did=apply
printf "\n%d $did of %d (%d seconds)\n" "$caught" "$total" $(($(date +%s) - started))
cat "$tmp"/*/verdict | grep -v 'caught by: '
[ "$caught" -eq "$total" ]
