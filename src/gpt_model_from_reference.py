"""The model of the book's chapters 2 to 4: dataset, attention, transformer block, GPT, and greedy generation."""

import torch

from glassgpt.book import (
    GELU,
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
    config = {
        "vocab_size": 50257,
        "context_length": 1024,
        "emb_dim": 768,
        "n_heads": 12,
        "n_layers": 12,
        "drop_rate": 0.1,
        "qkv_bias": False,
    }
    torch.manual_seed(123)
    show_generation(GPTModel(config), generate_text_simple, gpt2_tokenizer(), max_new_tokens=10)


if __name__ == "__main__":
    main()
