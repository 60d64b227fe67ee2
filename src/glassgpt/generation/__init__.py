"""Text from a model: sampling, decoders, and the one loop that drives them."""

from glassgpt.generation.generate import Completion, complete, generate, stream
from glassgpt.generation.sampling import Sampling

__all__ = ["Completion", "Sampling", "complete", "generate", "stream"]
