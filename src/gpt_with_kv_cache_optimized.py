"""The book's model with a key-value cache of bounded memory, `kv_window_size` tokens.

Each token sees itself and the `kv_window_size - 1` tokens before it; a longer prompt is read in pieces. Generation
stops at the context length. Started, it shows who sees whom, and for several windows the memory and the pieces.

Where the code is (`make docs` keeps the lines right):

    GPTModel                     src/glassgpt/book/model.py:58
    generate_text_simple_cached  src/glassgpt/book/generation.py:99
    KVCache                      src/glassgpt/kv_cache.py:20
    KVCache.begin                src/glassgpt/kv_cache.py:143
    CachePass                    src/glassgpt/kv_cache.py:180
    CachePass.extend             src/glassgpt/kv_cache.py:197
    CachePass.commit             src/glassgpt/kv_cache.py:212
    causal_mask                  src/glassgpt/kv_cache.py:169
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
    gpt2_tokenizer,
    show_generation,
    text_to_token_ids,
)
from glassgpt.book import CachedGPTModel as GPTModel
from glassgpt.book import generate_within_context as generate_text_simple_cached
from glassgpt.book.script import errors_in_one_line, parser
from glassgpt.book.show import show_window, show_windows
from glassgpt.kv_cache import CachePass, KVCache, causal_mask

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
    "causal_mask",
    "create_dataloader_v1",
    "generate_text_simple",
    "generate_text_simple_cached",
]

WINDOWS = (None, 256, 32, 8)


def main() -> None:
    """Windows of several sizes under one untrained model of 124M parameters; then the book's tokens."""
    tokenizer = gpt2_tokenizer()
    torch.manual_seed(123)
    model = GPTModel(GPT_CONFIG_124M | {"kv_window_size": 1024})
    print("Under a window of 3:")
    show_window(3, n_tokens=7)
    prompt = text_to_token_ids("Hello, I am" * 10, tokenizer)
    print(f"\nAfter a prompt of {prompt.shape[1]} tokens, with room for {model.config.context_length}:")
    show_windows(model, prompt, WINDOWS, max_new_tokens=5)
    show_generation(model, generate_text_simple_cached, tokenizer, max_new_tokens=10)


if __name__ == "__main__":
    arguments = parser(__doc__)
    arguments.parse_args()
    with errors_in_one_line(arguments):
        main()
