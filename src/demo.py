"""The book's 124M model: its configuration, where its parameters are, and ten tokens before it has learned anything.

Where the code is (`make docs` keeps the lines right):

    main                  src/demo.py:21
    GPTModel              src/glassgpt/book/model.py:51
    GPTModel.forward      src/glassgpt/model.py:180
    GPT_CONFIG_124M       src/glassgpt/book/model.py:15
    generate_text_simple  src/glassgpt/model.py:246
"""

import torch

from glassgpt.book import GPT_CONFIG_124M, GPTModel, generate_text_simple, gpt2_tokenizer, show_generation
from glassgpt.book.script import errors_in_one_line, parser
from glassgpt.book.show import show_parameters

__all__ = ["GPT_CONFIG_124M", "GPTModel", "generate_text_simple", "main"]


def main() -> None:
    """Print the configuration, the parameters of each part and ten tokens after "Hello, I am"."""
    tokenizer = gpt2_tokenizer()  # first: it may be what is missing
    torch.manual_seed(123)
    model = GPTModel(GPT_CONFIG_124M).eval()
    print("Configuration:")
    for key, value in GPT_CONFIG_124M.items():
        print(f"  {key:<15}{value}")
    print("Parameters of each part:")
    show_parameters(model)
    show_generation(model, generate_text_simple, tokenizer, max_new_tokens=10)
    print("\nIt has learned nothing yet: python src/gpt_train.py trains it, glassgpt demo a small one.")


if __name__ == "__main__":
    arguments = parser(__doc__)
    arguments.parse_args()
    with errors_in_one_line(arguments):
        main()
