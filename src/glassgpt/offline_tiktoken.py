"""`tiktoken.get_encoding("gpt2")` without the network: the book's readers type it themselves.

tiktoken makes an encoding by calling the function under its name in a table. Importing this module, which `import
glassgpt` does, puts one there that takes the vocabulary from the installed package (see `tokenizer`).
"""

from __future__ import annotations

import contextlib
from typing import Any


def _gpt2() -> dict[str, Any]:
    """The arguments of `tiktoken.Encoding`."""
    from glassgpt.tokenizer import gpt2_tiktoken

    encoding = gpt2_tiktoken()
    return {
        "name": encoding.name,
        "explicit_n_vocab": encoding.n_vocab,
        "pat_str": encoding._pat_str,
        "mergeable_ranks": encoding._mergeable_ranks,
        "special_tokens": encoding._special_tokens,
    }


with contextlib.suppress(ImportError, AttributeError):  # another release of tiktoken may keep its table elsewhere
    import tiktoken.registry
    import tiktoken_ext.openai_public

    tiktoken_ext.openai_public.ENCODING_CONSTRUCTORS["gpt2"] = _gpt2
    if tiktoken.registry.ENCODING_CONSTRUCTORS is not None:  # it was read already
        tiktoken.registry.ENCODING_CONSTRUCTORS["gpt2"] = _gpt2
