"""Train the book's model on its text (chapter 5), write `loss.pdf` and `model.pth` here, and load it back.

Started, it is the whole of a training run: text, loaders, model, optimizer, loop, curve, saved weights.

Where the code is (`make docs` keeps the lines right):

    main                       src/gpt_train.py:64
    train_model_simple         src/glassgpt/book/training.py:73
    calc_loss_batch            src/glassgpt/book/training.py:20
    calc_loss_loader           src/glassgpt/book/training.py:28
    evaluate_model             src/glassgpt/book/training.py:42
    generate_and_print_sample  src/glassgpt/book/training.py:57
    text_to_token_ids          src/glassgpt/book/data.py:101
    token_ids_to_text          src/glassgpt/book/data.py:106
    plot_losses                src/glassgpt/book/training.py:121
    training_text              src/glassgpt/book/data.py:113
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from glassgpt.book import (
    GPT_CONFIG_124M,
    GPTModel,
    calc_loss_batch,
    calc_loss_loader,
    create_dataloader_v1,
    evaluate_model,
    generate_and_print_sample,
    gpt2_tokenizer,
    plot_losses,
    text_to_token_ids,
    token_ids_to_text,
    train_model_simple,
    training_text,
)
from glassgpt.book.script import errors_in_one_line, parser
from glassgpt.device import pick_device
from glassgpt.packages import require

__all__ = [
    "calc_loss_batch",
    "calc_loss_loader",
    "evaluate_model",
    "generate_and_print_sample",
    "main",
    "plot_losses",
    "text_to_token_ids",
    "token_ids_to_text",
    "train_model_simple",
    "training_text",
]

CHECKOUT = Path(__file__).resolve().parents[1]

GPT_CONFIG = GPT_CONFIG_124M | {"context_length": 256}  # a shorter context for a short text
GPT_CONFIG_TINY = GPT_CONFIG_124M | {"context_length": 12, "emb_dim": 32, "n_heads": 4, "n_layers": 2}
OTHER_SETTINGS = {"learning_rate": 5e-4, "num_epochs": 10, "batch_size": 2, "weight_decay": 0.1}


def main(
    gpt_config: Mapping[str, Any], settings: Mapping[str, Any]
) -> tuple[list[float], list[float], list[int], GPTModel]:
    """Train on *The Verdict*: (training losses, validation losses, tokens seen, model).

    The text is `the-verdict.txt` from here, from beside this script or from ../shared/data; else fetched.
    """
    tokenizer = gpt2_tokenizer()
    torch.manual_seed(123)
    device = pick_device()
    text = training_text([Path(), Path(__file__).resolve().parent, CHECKOUT.parent / "shared" / "data"])
    model = GPTModel(gpt_config).to(device)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=settings["learning_rate"], weight_decay=settings["weight_decay"]
    )
    split = int(0.90 * len(text))
    length = gpt_config["context_length"]
    train_loader = create_dataloader_v1(text[:split], settings["batch_size"], length, length)
    val_loader = create_dataloader_v1(
        text[split:], settings["batch_size"], length, length, shuffle=False, drop_last=False
    )
    train_losses, val_losses, tokens_seen = train_model_simple(
        model,
        train_loader,
        val_loader,
        optimizer,
        device,
        num_epochs=settings["num_epochs"],
        eval_freq=5,
        eval_iter=1,
        start_context="Every effort moves you",
        tokenizer=tokenizer,
    )
    return train_losses, val_losses, tokens_seen, model


if __name__ == "__main__":
    arguments = parser(__doc__)
    arguments.add_argument("--tiny", action="store_true", help="a tiny model, one epoch: seconds, not minutes")
    tiny = arguments.parse_args().tiny
    gpt_config = GPT_CONFIG_TINY if tiny else GPT_CONFIG
    settings = OTHER_SETTINGS | {"num_epochs": 1} if tiny else OTHER_SETTINGS

    with errors_in_one_line(arguments):
        # what would be found out after an hour of training
        require("matplotlib")
        for name in ("loss.pdf", "model.pth"):
            if Path(name).exists():  # never over somebody's file
                raise ValueError(f"{name} exists: move it away, or run in another directory")
        train_losses, val_losses, tokens_seen, model = main(gpt_config, settings)

        epochs_seen = torch.linspace(0, settings["num_epochs"], len(train_losses))
        plot_losses(epochs_seen, tokens_seen, train_losses, val_losses).savefig("loss.pdf")
        torch.save(model.state_dict(), "model.pth")
        model = GPTModel(gpt_config)
        model.load_state_dict(torch.load("model.pth", weights_only=True))
        print("Wrote loss.pdf and model.pth")
