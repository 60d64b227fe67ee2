"""Text from a model: sampling, decoders, and the scheduler that drives them.

Nothing here imports PyTorch before a model that needs it is given: `decoder` is the interface, `torch_decoder` two
implementations of it. `text` has the functions that users call.
"""
