"""Text from GPT-2 with the book's sampling (chapter 5): `python src/gpt_generate.py --prompt "Hello"`.

Started, it continues a prompt, and shows what temperature, top-k and top-p left to choose from after it.

Where the code is (`make docs` keeps the lines right):

    generate                  src/glassgpt/book/generation.py:14
    next_token_probabilities  src/glassgpt/book/generation.py:55
    load_weights_into_gpt     src/glassgpt/book/weights.py:70
    assign                    src/glassgpt/book/weights.py:59
    download_and_load_gpt2    src/glassgpt/book/weights.py:31
    load                      src/gpt_generate.py:54
    main                      src/gpt_generate.py:70
"""

from pathlib import Path

import torch

from glassgpt import GPTModel
from glassgpt.book import (
    assign,
    download_and_load_gpt2,
    generate,
    gpt2_tokenizer,
    load_weights_into_gpt,
    text_to_token_ids,
    token_ids_to_text,
)
from glassgpt.book.data import BookTokenizer
from glassgpt.book.generation import next_token_probabilities
from glassgpt.book.script import errors_in_one_line, parser
from glassgpt.book.show import show_choices
from glassgpt.cli.options import whole
from glassgpt.device import pick_device
from glassgpt.packages import require
from glassgpt.weights.download.published import OPENAI_SIZES
from glassgpt.weights.families.openai import config_from_settings

__all__ = [
    "assign",
    "download_and_load_gpt2",
    "generate",
    "load",
    "load_weights_into_gpt",
    "main",
    "next_token_probabilities",
]

SIZES = {short: size for size, short in OPENAI_SIZES.items()}
"""GPT-2's names on Hugging Face, and OpenAI's."""


def load(name: str, n_heads: int | None = None) -> tuple[GPTModel, BookTokenizer]:
    """A model directory or file (`n_heads`: see `load_model`), or a GPT-2 by name, fetched to `gpt2/` at first."""
    size = SIZES.get(name, name)
    if size not in OPENAI_SIZES:
        from glassgpt import load_model

        if Path(name).is_dir():
            require("safetensors", "tokenizers")  # in one go
        return load_model(name, n_heads=n_heads)
    tokenizer = gpt2_tokenizer()  # first: it may be what is missing
    settings, params = download_and_load_gpt2(size, models_dir="gpt2")
    gpt = GPTModel(config_from_settings(settings))
    load_weights_into_gpt(gpt, params)
    return gpt, tokenizer


def main(
    prompt: str,
    model: str,
    device: str,
    max_new_tokens: int = 25,
    temperature: float = 1.0,
    top_k: int | None = 50,
    top_p: float | None = None,
    seed: int = 123,
    n_heads: int | None = None,
) -> None:
    """Print `prompt` and `max_new_tokens` after it, and the likeliest tokens to follow it."""
    torch_device = pick_device(device)
    gpt, tokenizer = load(model, n_heads)
    gpt.to(torch_device).eval()
    ids = text_to_token_ids(prompt, tokenizer).to(torch_device)
    sampling = {"temperature": temperature, "top_k": top_k, "top_p": top_p}
    torch.manual_seed(seed)
    token_ids = generate(gpt, ids, max_new_tokens, context_size=gpt.config.context_length, **sampling)
    print("Output text:\n", token_ids_to_text(token_ids, tokenizer))
    print("\nAfter the prompt:")
    show_choices(gpt, ids, tokenizer, **sampling)


if __name__ == "__main__":
    arguments = parser(__doc__)
    arguments.add_argument("--prompt", default="Every effort moves you", metavar="TEXT", help="the text to continue")
    arguments.add_argument("--device", default="auto", metavar="NAME", help="auto, cpu, cuda or mps (default: auto)")
    arguments.add_argument(
        "--model",
        default="gpt2",
        help="a model directory or file, or gpt2, gpt2-medium, gpt2-large, gpt2-xl (default: gpt2)",
    )
    arguments.add_argument(
        "--n-heads",
        type=whole,
        metavar="N",
        help="of a model.pth, which does not say it (default: GPT-2's at its width)",
    )
    arguments.add_argument("--max-new-tokens", type=whole, default=25, metavar="N", help="length (default: 25)")
    arguments.add_argument("--temperature", type=float, default=1.0, metavar="T", help="0 is greedy (default: 1)")
    arguments.add_argument("--top-k", type=whole, default=50, metavar="K", help="only the K best tokens (default: 50)")
    arguments.add_argument(
        "--top-p", type=float, metavar="P", help="of these the fewest whose probabilities reach P (default: all)"
    )
    arguments.add_argument("--seed", type=int, default=123, metavar="N", help="of the random numbers (default: 123)")
    given = arguments.parse_args()
    size = SIZES.get(given.model, given.model)
    with errors_in_one_line(arguments, unreachable=f"gpt_download.py {size} --print-urls lists what to put into gpt2"):
        main(**vars(given))
