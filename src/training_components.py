"""The parts of the book's training, to build your own from: model, data, losses, evaluation, samples."""

from glassgpt.book import (
    GELU,
    FeedForward,
    GPTDatasetV1,
    GPTModel,
    LayerNorm,
    MultiHeadAttention,
    TransformerBlock,
    calc_loss_batch,
    calc_loss_loader,
    create_dataloader_v1,
    evaluate_model,
    generate_and_print_sample,
    generate_text_simple,
    text_to_token_ids,
    token_ids_to_text,
)

__all__ = [
    "GELU",
    "FeedForward",
    "GPTDatasetV1",
    "GPTModel",
    "LayerNorm",
    "MultiHeadAttention",
    "TransformerBlock",
    "calc_loss_batch",
    "calc_loss_loader",
    "create_dataloader_v1",
    "evaluate_model",
    "generate_and_print_sample",
    "generate_text_simple",
    "text_to_token_ids",
    "token_ids_to_text",
]
