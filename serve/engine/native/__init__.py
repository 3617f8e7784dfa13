"""The Llama forward pass in C, for x86-64: weights in the bits they were stored in, one call a step."""
