"""Build the book's 124M model, show what it is made of, and let it write before it has learned anything."""

import argparse

import torch

from glassgpt.book import GPT_CONFIG_124M, GPTModel, generate_text_simple, gpt2_tokenizer, show_generation


def main() -> None:
    """Print the configuration, the parameter counts and ten tokens after "Hello, I am"."""
    torch.manual_seed(123)
    model = GPTModel(GPT_CONFIG_124M).eval()
    print("Configuration:")
    for key, value in GPT_CONFIG_124M.items():
        print(f"  {key:<15}{value}")
    total = sum(parameter.numel() for parameter in model.parameters())
    head = model.out_head.weight.numel()
    print(f"Parameters: {total:,}")
    print(f"Parameters if the output head were the token embedding, as in GPT-2: {total - head:,}")
    print(f"Memory for them in float32: {total * 4 / 2**20:,.0f} MiB")
    show_generation(model, generate_text_simple, gpt2_tokenizer(), max_new_tokens=10)
    print("\nIt has learned nothing yet: python src/gpt_train.py trains it, glassgpt demo a small one.")


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__).parse_args()
    main()
