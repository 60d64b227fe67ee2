"""The book's model with a key-value cache of bounded memory, `kv_window_size` tokens.

Each token sees itself and the `kv_window_size - 1` tokens before it; a longer prompt is read in pieces.
Generation stops at the context length.
"""

import argparse

import torch

from glassgpt.book import (
    GELU,
    GPT_CONFIG_124M,
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
    "GPT_CONFIG_124M",
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
    config = GPT_CONFIG_124M | {"kv_window_size": 1024}
    torch.manual_seed(123)
    show_generation(GPTModel(config), generate_text_simple_cached, gpt2_tokenizer(), max_new_tokens=200)


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__).parse_args()
    main()
