"""The CPU decoder: compiled kernels, packed weights, and the decoder that puts them together. Loads no torch."""
