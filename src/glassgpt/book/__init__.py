"""What only the book needs, under its names: *Build a Large Language Model From Scratch*, chapters 2 to 5.

The doors in `src/` re-export these names, each those that the book's file of the same name has.
Everything a maker needs beyond the book (data on disk, resuming, sampling options, serving) lies in the other
packages.
"""

from glassgpt.book.appendix_d import find_highest_gradient, train_model
from glassgpt.book.attention import (
    CausalAttention,
    MultiHeadAttentionWrapper,
    PyTorchMultiHeadAttention,
    SelfAttention_v1,
    SelfAttention_v2,
)
from glassgpt.book.data import (
    GPTDatasetV1,
    create_dataloader_v1,
    gpt2_tokenizer,
    text_to_token_ids,
    token_ids_to_text,
    training_text,
)
from glassgpt.book.generation import (
    generate,
    generate_text_simple_cached,
    generate_within_context,
)
from glassgpt.book.model import GPT_CONFIG_124M, CachedGPTModel, GPTModel, TransformerBlock
from glassgpt.book.show import show_generation
from glassgpt.book.training import (
    calc_loss_batch,
    calc_loss_loader,
    evaluate_model,
    generate_and_print_sample,
    plot_losses,
    train_model_simple,
)
from glassgpt.book.weights import (
    assign,
    download_and_load_gpt2,
    download_file,
    load_gpt2_params_from_tf_ckpt,
    load_weights_into_gpt,
)
from glassgpt.model import GELU, FeedForward, LayerNorm, MultiHeadAttention, generate_text_simple

__all__ = [  # noqa: RUF022 - in the order of the chapters
    # 2: text
    "GPTDatasetV1", "create_dataloader_v1", "gpt2_tokenizer", "text_to_token_ids", "token_ids_to_text",
    "training_text",
    # 3: attention, step by step
    "SelfAttention_v1", "SelfAttention_v2", "CausalAttention", "MultiHeadAttentionWrapper",
    "PyTorchMultiHeadAttention",
    # 3 and 4: the model
    "MultiHeadAttention", "LayerNorm", "GELU", "FeedForward", "TransformerBlock", "GPTModel",
    "GPT_CONFIG_124M", "CachedGPTModel", "generate_text_simple", "generate_text_simple_cached",
    "generate_within_context", "show_generation",
    # 5: training, sampling, GPT-2's weights
    "calc_loss_batch", "calc_loss_loader", "evaluate_model", "generate_and_print_sample", "plot_losses",
    "train_model_simple", "generate", "assign", "download_and_load_gpt2", "download_file",
    "load_gpt2_params_from_tf_ckpt", "load_weights_into_gpt",
    # appendix D: a better training loop
    "find_highest_gradient", "train_model",
]  # fmt: skip
