"""The book's model with a key-value cache: each token is read once, until the context is full.

Started, it generates the same text twice, without and with the cache, and shows the two speeds side by side: without
it each token costs more than the one before, with it all cost the same.

Where the code is (`make docs` keeps the lines right):

    GPTModel                     src/glassgpt/book/model.py:58
    GPTModel.forward             src/glassgpt/book/model.py:69
    GPTModel.reset_kv_cache      src/glassgpt/book/model.py:81
    generate_text_simple_cached  src/glassgpt/book/generation.py:78
    KVCache                      src/glassgpt/kv_cache.py:20
    KVCache.begin                src/glassgpt/kv_cache.py:143
    CachePass                    src/glassgpt/kv_cache.py:180
    CachePass.extend             src/glassgpt/kv_cache.py:197
    CachePass.commit             src/glassgpt/kv_cache.py:212
    MultiHeadAttention           src/glassgpt/model.py:69
    MultiHeadAttention.forward   src/glassgpt/model.py:105
    generate_text_simple         src/glassgpt/model.py:246
    GPTDatasetV1                 src/glassgpt/book/data.py:52
    create_dataloader_v1         src/glassgpt/book/data.py:79
    LayerNorm                    src/glassgpt/model.py:23
    GELU                         src/glassgpt/model.py:37
    FeedForward                  src/glassgpt/model.py:52
    TransformerBlock             src/glassgpt/book/model.py:44
    GPT_CONFIG_124M              src/glassgpt/book/model.py:15
"""

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
)
from glassgpt.book import CachedGPTModel as GPTModel
from glassgpt.book.script import errors_in_one_line, parser
from glassgpt.book.show import show_speedup
from glassgpt.cli.options import whole
from glassgpt.kv_cache import CachePass, KVCache

__all__ = [
    "GELU",
    "GPT_CONFIG_124M",
    "CachePass",
    "FeedForward",
    "GPTDatasetV1",
    "GPTModel",
    "KVCache",
    "LayerNorm",
    "MultiHeadAttention",
    "TransformerBlock",
    "create_dataloader_v1",
    "generate_text_simple",
    "generate_text_simple_cached",
]


def main(max_new_tokens: int = 100) -> None:
    """The same tokens from an untrained model of 124M parameters, without the cache and with it."""
    tokenizer = gpt2_tokenizer()
    torch.manual_seed(123)
    show_speedup(GPTModel(GPT_CONFIG_124M), tokenizer, max_new_tokens=max_new_tokens)


if __name__ == "__main__":
    arguments = parser(__doc__)
    arguments.add_argument(
        "--max-new-tokens",
        type=whole,
        default=100,
        metavar="N",
        help="length; more gives a larger ratio (default: 100)",
    )
    with errors_in_one_line(arguments):
        main(**vars(arguments.parse_args()))
