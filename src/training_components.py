"""The parts of the book's training, to build your own from: model, data, losses, loops, samples, pictures.

Started, it takes one training step apart, and then teaches a tiny model the week with appendix D's loop: a warmup, a
cosine and clipped gradients.

Where the code is (`make docs` keeps the lines right):

    GPTDatasetV1               src/glassgpt/book/data.py:52
    create_dataloader_v1       src/glassgpt/book/data.py:79
    GPTModel                   src/glassgpt/book/model.py:51
    GPTModel.forward           src/glassgpt/model.py:180
    TransformerBlock           src/glassgpt/book/model.py:44
    TransformerBlock.forward   src/glassgpt/model.py:157
    MultiHeadAttention         src/glassgpt/model.py:69
    FeedForward                src/glassgpt/model.py:52
    LayerNorm                  src/glassgpt/model.py:23
    GELU                       src/glassgpt/model.py:37
    text_to_token_ids          src/glassgpt/book/data.py:101
    token_ids_to_text          src/glassgpt/book/data.py:106
    calc_loss_batch            src/glassgpt/book/training.py:20
    calc_loss_loader           src/glassgpt/book/training.py:28
    evaluate_model             src/glassgpt/book/training.py:42
    generate_text_simple       src/glassgpt/model.py:246
    generate_and_print_sample  src/glassgpt/book/training.py:57
    train_model_simple         src/glassgpt/book/training.py:73
    plot_losses                src/glassgpt/book/training.py:121
    find_highest_gradient      src/glassgpt/book/appendix_d.py:17
    train_model                src/glassgpt/book/appendix_d.py:33
"""

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
    calc_loss_batch,
    calc_loss_loader,
    create_dataloader_v1,
    evaluate_model,
    find_highest_gradient,
    generate_and_print_sample,
    generate_text_simple,
    gpt2_tokenizer,
    plot_losses,
    text_to_token_ids,
    token_ids_to_text,
    train_model,
    train_model_simple,
)
from glassgpt.book.script import errors_in_one_line, parser
from glassgpt.book.show import show_batches, show_rates, show_step

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
    "find_highest_gradient",
    "generate_and_print_sample",
    "generate_text_simple",
    "plot_losses",
    "text_to_token_ids",
    "token_ids_to_text",
    "train_model",
    "train_model_simple",
]

TINY = GPT_CONFIG_124M | {"context_length": 16, "emb_dim": 64, "n_heads": 4, "n_layers": 2, "drop_rate": 0.0}
TEXT = "Monday, Tuesday, Wednesday, Thursday, Friday, Saturday, Sunday. " * 60


def main() -> None:
    """One step, part by part; then six epochs of appendix D's loop, and its learning rates."""
    tokenizer = gpt2_tokenizer()
    torch.manual_seed(123)
    model = GPTModel(TINY)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.1)
    train_loader = create_dataloader_v1(TEXT, batch_size=4, max_length=16, stride=8)
    val_loader = create_dataloader_v1(TEXT, batch_size=4, max_length=16, stride=16, shuffle=False)
    print("One step:")
    show_step(model, show_batches(train_loader, tokenizer), optimizer)
    print("\nTraining:")
    n_epochs, warmup_steps = 6, len(train_loader) // 2
    *_, rates = train_model(
        model, train_loader, val_loader, optimizer, "cpu", n_epochs, 20, 2, "Monday", tokenizer, warmup_steps
    )
    print("\nLearning rates:")
    show_rates(rates)


if __name__ == "__main__":
    arguments = parser(__doc__)
    arguments.parse_args()
    with errors_in_one_line(arguments):
        main()
