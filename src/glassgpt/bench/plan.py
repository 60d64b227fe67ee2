"""What is timed: the contenders, the works they are given, and sizes that fit the model."""

from __future__ import annotations

import dataclasses
import importlib.util

from glassgpt.cores import may_have_gpu

WORKS = ("decode", "prompt", "rows", "context", "first")
"""In the order in which they are done; `docs/decoding.md` says what each is."""

PRECISIONS = ("float32", "bfloat16", "int8", "int4")
ON_GPU = ("cached on the GPU", "graphs on the GPU")
"""Only where there is a CUDA device."""
OURS = ("naive", "cached", *(f"compiled {precision}" for precision in PRECISIONS), *ON_GPU)
PEERS = {
    "transformers": ("transformers",),
    "ctranslate2": ("ctranslate2 float32", "ctranslate2 int8"),
    "llama_cpp": ("llama.cpp f32", "llama.cpp f16", "llama.cpp q8_0", "llama.cpp q4_0"),
}
"""By the module that must be there."""
NEEDS = {
    "transformers": ("transformers",),
    "ctranslate2": ("ctranslate2", "transformers"),  # whose models it converts
    "llama_cpp": ("llama_cpp", "gguf"),
}
_PACKAGES = {"llama_cpp": "llama-cpp-python"}  # that are not named as their modules

FLOAT32 = ("compiled float32", "cached", "naive", *ON_GPU, "transformers", "ctranslate2 float32", "llama.cpp f32")
"""Those that write the same greedy tokens; the first of them that is there has the text that others are held to."""
ROUNDED = tuple(f"compiled {precision}" for precision in PRECISIONS[1:])

ROW_COUNTS = (1, 2, 4, 8, 16)
BATCH = 8
"""The number of rows that the table shows."""

_NAIVE_TOKENS = 16  # each costs a pass over the whole text
_N_POSITIONS = 9
_STEPS = 8  # whose median is the cost of a token at one length of the text


@dataclasses.dataclass(frozen=True)
class Sizes:
    """Numbers of tokens; each prompt and what follows it fit the context, unless that is a single token."""

    decode: tuple[int, int]
    """Of one row: prompt, new tokens."""
    naive: tuple[int, int]
    """The same where each new token reads the whole text again."""
    prompt: int
    """Of a long prompt, of which one new token is asked."""
    rows: tuple[int, int]
    """Of each row of a batch: prompt, new tokens."""
    positions: tuple[int, ...]
    """Lengths of a text at which the cost of one more token is measured."""
    steps: int
    """How many more tokens are timed at each."""

    @classmethod
    def of(cls, context_length: int) -> Sizes:
        """The sizes for a model of so many tokens of context."""

        def split(prompt: int, new: int) -> tuple[int, int]:
            prompt = max(1, min(prompt, context_length // 2))
            return prompt, max(1, min(new, context_length - prompt))

        decode = split(4, 200)
        steps = min(_STEPS, context_length - 1)
        last = context_length - steps
        spread = {1 + round((last - 1) * i / (_N_POSITIONS - 1)) for i in range(_N_POSITIONS)}
        return cls(
            decode=decode,
            naive=(decode[0], min(_NAIVE_TOKENS, decode[1])),
            prompt=max(1, min(512, context_length - 1)),
            rows=split(16, 64),
            positions=tuple(sorted(spread)) if steps else (),
            steps=steps,
        )

    @property
    def n_ids(self) -> int:
        """How many tokens of text the prompts are cut from."""
        return max(self.decode[0], self.prompt, self.rows[0] * ROW_COUNTS[-1])


def possible(work: str, contender: str, sizes: Sizes) -> bool:
    """Whether a contender can be given a work."""
    if contender == "naive":
        return work == "decode"
    if contender in OURS:
        return work != "context" or bool(sizes.positions)
    # llama-cpp-python's own loop has one row
    return work in ("decode", "prompt") or (work == "rows" and not contender.startswith("llama.cpp"))


def our_contenders() -> list[str]:
    """Those of `OURS` that this machine can run."""
    has_gpu = False
    if may_have_gpu():
        import torch  # takes seconds

        has_gpu = torch.cuda.is_available()
    return [name for name in OURS if has_gpu or name not in ON_GPU]


def installed_peers() -> tuple[list[str], list[str]]:
    """The contenders of installed packages, and a line with the command for those that are missing, if any are."""
    names: list[str] = []
    missing: list[str] = []
    packages: list[str] = []
    for peer, contenders in PEERS.items():
        lacking = [module for module in NEEDS[peer] if importlib.util.find_spec(module) is None]
        if lacking:
            missing.append(_PACKAGES.get(peer, peer))
            packages += [name for module in lacking if (name := _PACKAGES.get(module, module)) not in packages]
        else:
            names += contenders
    lines = [f"not installed: {', '.join(missing)}; pip install {' '.join(packages)}"] if missing else []
    return names, lines


def peer_threads(threads: int) -> tuple[int, ...]:
    """The numbers of threads that a peer tries, of which it keeps its fastest: one a core, or one for every two.

    Where two threads share a core's arithmetic, half as many threads as cores are often faster.
    """
    return (threads, threads // 2) if threads > 1 else (1,)
