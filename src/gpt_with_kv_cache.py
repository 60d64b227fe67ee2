"""The book's model with a key-value cache: each token is read once, until the context is full."""

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
    generate_text_simple_cached,
    gpt2_tokenizer,
    show_generation,
)
from glassgpt.book import CachedGPTModel as GPTModel

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
    torch.manual_seed(123)
    show_generation(GPTModel(GPT_CONFIG_124M), generate_text_simple_cached, gpt2_tokenizer(), max_new_tokens=200)


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__).parse_args()
    main()
