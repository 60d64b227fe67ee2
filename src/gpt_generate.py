"""Text from GPT-2 with the book's sampling (chapter 5): `python src/gpt_generate.py --prompt "Hello"`."""

import argparse

import torch

from glassgpt import GPTModel, Tokenizer, load_model
from glassgpt.book import (
    assign,
    download_and_load_gpt2,
    generate,
    gpt2_tokenizer,
    load_weights_into_gpt,
    text_to_token_ids,
    token_ids_to_text,
)
from glassgpt.cli import describe
from glassgpt.device import pick_device
from glassgpt.weights.download.published import OPENAI_SIZES
from glassgpt.weights.families.openai import config_from_settings

__all__ = ["assign", "generate", "load_weights_into_gpt"]


def load(name: str) -> tuple[GPTModel, Tokenizer]:
    """A model directory, or one of the four GPT-2 by name, fetched to `gpt2/` the first time."""
    sizes = {short: size for size, short in OPENAI_SIZES.items()}
    size = sizes.get(name, name)
    if size not in OPENAI_SIZES:
        return load_model(name)
    settings, params = download_and_load_gpt2(size, models_dir="gpt2")
    gpt = GPTModel(config_from_settings(settings))
    load_weights_into_gpt(gpt, params)
    return gpt, gpt2_tokenizer()


def main(
    prompt: str,
    model: str,
    device: str,
    max_new_tokens: int = 25,
    temperature: float = 1.0,
    top_k: int = 50,
    seed: int = 123,
) -> None:
    """Print `prompt` and `max_new_tokens` after it, drawn from the `top_k` best of each step."""
    torch_device = pick_device(device)
    gpt, tokenizer = load(model)
    gpt.to(torch_device).eval()
    torch.manual_seed(seed)
    token_ids = generate(
        gpt,
        text_to_token_ids(prompt, tokenizer).to(torch_device),
        max_new_tokens=max_new_tokens,
        context_size=gpt.config.context_length,
        top_k=top_k,
        temperature=temperature,
    )
    print("Output text:\n", token_ids_to_text(token_ids, tokenizer))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--prompt", default="Every effort moves you", help="the text to continue")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or mps (default: auto)")
    parser.add_argument("--model", default="gpt2", help="a model directory, or gpt2, gpt2-medium, gpt2-large, gpt2-xl")
    parser.add_argument("--max-new-tokens", type=int, default=25, metavar="N", help="length (default: 25)")
    parser.add_argument("--temperature", type=float, default=1.0, metavar="T", help="0 is greedy (default: 1)")
    parser.add_argument("--top-k", type=int, default=50, metavar="K", help="only the K best tokens (default: 50)")
    parser.add_argument("--seed", type=int, default=123, metavar="N", help="of the random numbers (default: 123)")
    arguments = parser.parse_args()
    try:
        main(**vars(arguments))
    except (OSError, ValueError) as error:
        parser.exit(1, f"{parser.prog}: {describe(error)[0]}\n")
