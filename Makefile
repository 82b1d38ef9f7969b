# One command always works:   cc -O3 -march=native -o minimind minimind.c -lm
# What this file adds: all cores where the compiler has OpenMP, and shorthands.

CC = cc
CFLAGS = -O3 -march=native -Wall -Wextra
OPENMP := $(shell echo 'int main(void) {return 0;}' | \
            $(CC) -fopenmp -x c - -o /dev/null 2>/dev/null && echo -fopenmp)

all: minimind tokenizer

minimind: minimind.c tokenizer.c
	$(CC) $(CFLAGS) $(OPENMP) -o $@ minimind.c -lm

tokenizer: tokenizer.c
	$(CC) $(CFLAGS) -o $@ tokenizer.c

run: minimind                   # the whole story: a world, and a model that learns it
	./minimind

check: minimind                 # every gradient, and the golden numbers
	./minimind check
	./minimind check $(addprefix notes/golden/,a_dense.txt b_moe_top1.txt c_moe_top2.txt \
	  d_shared_expert.txt e_yarn.txt f_odd_shapes.txt g_moe_top1_raw.txt dpo.txt dpo_moe.txt \
	  grpo.txt grpo_moe.txt cispo.txt rope.txt lr.txt sampling.txt)

bench: minimind                 # how fast it is, and what of that is the machine
	./minimind bench

test:                           # everything that can be tested, see tests.sh
	./tests.sh

debug: minimind.c tokenizer.c   # for gdb: nothing optimised away, one thread
	$(CC) -O0 -g3 -Wall -Wextra -o minimind minimind.c -lm
	$(CC) -O0 -g3 -Wall -Wextra -o tokenizer tokenizer.c

clean:
	rm -rf minimind tokenizer out

.PHONY: all run check bench test debug clean
