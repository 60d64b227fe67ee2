"""The book's model with a key-value cache of bounded memory: `kv_window_size` tokens, prompts read in pieces of it.

Each token sees itself and the `kv_window_size - 1` tokens before it. Generation stops at the context length.
"""

import torch

from glassgpt.book import (
    GELU,
    FeedForward,
    GPTDatasetV1,
    LayerNorm,
    MultiHeadAttention,
    TransformerBlock,
    create_dataloader_v1,
    generate_text_simple,
    gpt2_tokenizer,
    show_generation,
)
from glassgpt.book import CachedGPTModel as GPTModel
from glassgpt.book import generate_within_context as generate_text_simple_cached

__all__ = [
    "GELU",
    "FeedForward",
    "GPTDatasetV1",
    "GPTModel",
    "LayerNorm",
    "MultiHeadAttention",
    "TransformerBlock",
    "create_dataloader_v1",
    "generate_text_simple",
    "generate_text_simple_cached",
]


def main() -> None:
    """200 tokens from an untrained model of 124M parameters, with the cache."""
    config = {
        "vocab_size": 50257,
        "context_length": 1024,
        "emb_dim": 768,
        "n_heads": 12,
        "n_layers": 12,
        "drop_rate": 0.1,
        "qkv_bias": False,
        "kv_window_size": 1024,
    }
    torch.manual_seed(123)
    show_generation(GPTModel(config), generate_text_simple_cached, gpt2_tokenizer(), max_new_tokens=200)


if __name__ == "__main__":
    main()
