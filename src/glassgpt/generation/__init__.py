"""Text from a model: sampling, decoders, and the one loop that drives them.

Nothing here imports PyTorch before a model that needs it is given: `decoder` is the interface, `torch_decoder` two
implementations of it.
"""

from glassgpt.generation.options import Generation, Sampling
from glassgpt.generation.row import Completion
from glassgpt.generation.text import complete, generate, stream

__all__ = ["Completion", "Generation", "Sampling", "complete", "generate", "stream"]
