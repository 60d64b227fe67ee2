"""The model of the book's chapters 2 to 4: dataset, attention, transformer block, GPT, generation."""

import argparse

import torch

from glassgpt.book import (
    GELU,
    GPT_CONFIG_124M,
    FeedForward,
    GPTDatasetV1,
    GPTModel,
    LayerNorm,
    MultiHeadAttention,
    TransformerBlock,
    create_dataloader_v1,
    generate_text_simple,
    gpt2_tokenizer,
    show_generation,
)

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
]


def main() -> None:
    """Ten tokens from an untrained model of 124M parameters, every one computed from the start."""
    torch.manual_seed(123)
    show_generation(GPTModel(GPT_CONFIG_124M), generate_text_simple, gpt2_tokenizer(), max_new_tokens=10)


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__).parse_args()
    main()
