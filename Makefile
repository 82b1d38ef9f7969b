# One command always works:   cc -O3 -march=native -o minimind minimind.c -lm
# What this file adds: all cores where the compiler has OpenMP, and shorthands.

CC = cc
# $(call accepted,FLAGS) is FLAGS if the compiler accepts them, else nothing.
accepted = $(shell echo 'int main(void) {return 0;}' | \
             $(CC) $(1) -x c - -o /dev/null 2>/dev/null && echo '$(1)')
CFLAGS := -O3 $(call accepted,-march=native) -Wall -Wextra
OPENMP := $(call accepted,-fopenmp)
ifeq ($(OPENMP),) # macOS: brew install libomp
LIBOMP := $(firstword $(wildcard /opt/homebrew/opt/libomp /usr/local/opt/libomp) none)
OPENMP := $(call accepted,-Xpreprocessor -fopenmp -I$(LIBOMP)/include -L$(LIBOMP)/lib -lomp)
endif

# In double precision finite differences agree with the gradients to 1e-6.
DOUBLE = -Dfloat=double -Dexpf=exp -Dsqrtf=sqrt -Dlogf=log -Dfmaxf=fmax -Dfabsf=fabs

all: minimind tokenizer

minimind: minimind.c tokenizer.c
	$(CC) $(CFLAGS) $(OPENMP) -o $@ minimind.c -lm

tokenizer: tokenizer.c
	$(CC) $(CFLAGS) -o $@ tokenizer.c

out/lab/%: notes/lab/%.c notes/lab/grpo.c notes/lab/golden.c minimind.c tokenizer.c
	@mkdir -p out/lab
	$(CC) $(CFLAGS) $(OPENMP) -o $@ $< -lm

run: minimind tokenizer out/lab/world out/lab/grpo # the whole story: make run ARGS='--seed 2'
	notes/lab/story.sh $(ARGS)

check: out/lab/check            # every gradient, fast code against definitions, golden numbers
	out/lab/check
	out/lab/check notes/golden

check-double: notes/lab/check.c notes/lab/grpo.c notes/lab/golden.c minimind.c tokenizer.c
	@mkdir -p out/lab
	$(CC) $(CFLAGS) $(OPENMP) $(DOUBLE) -o out/lab/check-double $< -lm
	out/lab/check-double

bench: out/lab/bench            # how fast it is, and what of that is the machine
	out/lab/bench

test:                           # everything that can be tested; or make test GROUP='train files'
	./tests.sh $(GROUP)

faults:                         # does a mistake in the sources turn a test red? some minutes
	notes/lab/faults.sh

debug: minimind.c tokenizer.c   # minimind-debug, for gdb: nothing optimised away, one thread
	$(CC) -O0 -g3 -Wall -Wextra -o minimind-debug minimind.c -lm

gdb:                            # gdb in attention, on a small model that is made for it
	notes/gdb/prepare.sh
	DEBUGINFOD_URLS= gdb -q -x notes/gdb/start.gdb ./minimind-debug

whiteboard:                     # is my answer right? make whiteboard N=dpo, or N=dpo F=out/dpo.c
	CC='$(CC)' notes/lab/whiteboard/run.sh $(N) $(F)

notes: minimind tokenizer       # do the notes say what is true? after make run; half an hour
	for part in names links headings code 'run all'; do notes/lab/notes.sh $$part || exit 1; done

clean:
	rm -rf minimind minimind-debug tokenizer out

.PHONY: all run check check-double bench test faults debug gdb whiteboard notes clean
