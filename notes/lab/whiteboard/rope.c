// Whiteboard 5, rope: rotary positions (10 minutes)
//
// QUESTION. "Write RoPE, in place. A head is a row of D numbers, D even. It has D / 2 planes; plane
// i holds the components i and i + D / 2, as in Hugging Face's Llama ("half-split"). At position p
// plane i is rotated by the angle p * theta^(-2i / D):
//
//     y[i]         = x[i] cos - x[i + D/2] sin
//     y[i + D/2]   = x[i] sin + x[i + D/2] cos
//
// There are T tokens; the first is at position `past`. With direction = -1 the function has to be
// the backward pass: it turns dy into dx. Why can it be the same function?"
//
// SHAPES:
//     x                   (T, heads, D)    rotated in place
//
// GRADED: the pairs, the angle, the position, old values not overwritten too early, the backward
// pass. You should be able to show that q . k depends on the difference of the positions only.
//
// TEST: notes/lab/whiteboard/run.sh rope
// HINTS: at the end of this file.

#include "whiteboard.h"

void my_rope(float *x, size_t T, size_t heads, size_t D, size_t past, float theta,
             float direction) {
    // Your code.
}























// HINTS. Read one, and try again.
//
// 1. Keep x[i] and x[i + D/2] in two locals before you write the first result.
//
// 2. The position of row (t, head) is past + t. It does not depend on the head.
//
// 3. i / D of two whole numbers is 0. Make one of them a float before dividing.
//
// 4. y = R x gives dx = R^T dy, and R^T rotates by -angle: cos stays, sin changes its sign.
