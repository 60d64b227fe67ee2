"""The model of the book's chapters 2 to 4: dataset, attention, transformer block, GPT, generation.

Started, it shows how a batch of text becomes scores, shape by shape, and then the book's ten tokens.

Where the code is (`make docs` keeps the lines right):

    GPTDatasetV1                src/glassgpt/book/data.py:52
    create_dataloader_v1        src/glassgpt/book/data.py:79
    SelfAttention_v1            src/glassgpt/book/attention.py:15
    SelfAttention_v2            src/glassgpt/book/attention.py:32
    CausalAttention             src/glassgpt/book/attention.py:49
    MultiHeadAttentionWrapper   src/glassgpt/book/attention.py:74
    MultiHeadAttention          src/glassgpt/model.py:69
    MultiHeadAttention.forward  src/glassgpt/model.py:105
    PyTorchMultiHeadAttention   src/glassgpt/book/attention.py:91
    LayerNorm                   src/glassgpt/model.py:23
    GELU                        src/glassgpt/model.py:37
    FeedForward                 src/glassgpt/model.py:52
    TransformerBlock            src/glassgpt/book/model.py:44
    TransformerBlock.forward    src/glassgpt/model.py:157
    GPTModel                    src/glassgpt/book/model.py:51
    GPTModel.forward            src/glassgpt/model.py:180
    GPTModel.hidden             src/glassgpt/model.py:193
    GPT_CONFIG_124M             src/glassgpt/book/model.py:15
    generate_text_simple        src/glassgpt/model.py:246
"""

import torch

from glassgpt.book import (
    GELU,
    GPT_CONFIG_124M,
    CausalAttention,
    FeedForward,
    GPTDatasetV1,
    GPTModel,
    LayerNorm,
    MultiHeadAttention,
    MultiHeadAttentionWrapper,
    PyTorchMultiHeadAttention,
    SelfAttention_v1,
    SelfAttention_v2,
    TransformerBlock,
    create_dataloader_v1,
    generate_text_simple,
    gpt2_tokenizer,
    show_generation,
)
from glassgpt.book.script import errors_in_one_line, parser
from glassgpt.book.show import show_batches, show_shapes

__all__ = [
    "GELU",
    "GPT_CONFIG_124M",
    "CausalAttention",
    "FeedForward",
    "GPTDatasetV1",
    "GPTModel",
    "LayerNorm",
    "MultiHeadAttention",
    "MultiHeadAttentionWrapper",
    "PyTorchMultiHeadAttention",
    "SelfAttention_v1",
    "SelfAttention_v2",
    "TransformerBlock",
    "create_dataloader_v1",
    "generate_text_simple",
]

TEXT = "A model reads a few words and is asked for the one that comes next."


def main() -> None:
    """From text to scores, shape by shape; then ten tokens, everything computed again for each of them."""
    tokenizer = gpt2_tokenizer()
    torch.manual_seed(123)
    model = GPTModel(GPT_CONFIG_124M)
    loader = create_dataloader_v1(TEXT, batch_size=2, max_length=4, stride=4, shuffle=False)
    inputs, _ = show_batches(loader, tokenizer)
    print("From ids to scores:")
    show_shapes(model, inputs)
    show_generation(model, generate_text_simple, tokenizer, max_new_tokens=10)


if __name__ == "__main__":
    arguments = parser(__doc__)
    arguments.parse_args()
    with errors_in_one_line(arguments):
        main()
