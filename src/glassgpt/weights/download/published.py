"""What is known of the published GPT-2 models: names, files, sizes and digests."""

from __future__ import annotations

from typing import NamedTuple

OPENAI_BASE_URLS = (
    "https://openaipublic.blob.core.windows.net/gpt-2/models",
    "https://f001.backblazeb2.com/file/LLMs-from-scratch/gpt2",
)
"""OpenAI's own files, and the book's copy of them."""

OPENAI_SIZES = {"124M": "gpt2", "355M": "gpt2-medium", "774M": "gpt2-large", "1558M": "gpt2-xl"}
"""OpenAI's names of the four GPT-2 models, and Hugging Face's."""

KNOWN_MODELS = {
    name: f"openai-community/{short}"
    for size, short in OPENAI_SIZES.items()
    for name in (short, size, f"openai-community/{short}")
}
"""Every known name of a model, and its repository on Hugging Face."""

COMMITS = {
    "gpt2": "607a30d783dfa663caf39e06633721c8d4cfcd7e",
    "gpt2-medium": "6dcaa7a952f72f9298047fd5137cd6e4f05f41da",
    "gpt2-large": "32b71b12589c2f8d625668d2335a01cac3249519",
    "gpt2-xl": "15ea56dee5df4983c59b2538573817e1667135e2",
}
"""The commits whose files are listed below; a known name means this commit."""

# In the order of fetching: the small ones first, so that what fails fails early. OpenAI's seventh, model.ckpt.meta, is
# TensorFlow's graph: nothing here reads it.
_OPENAI_FILES = (
    *("checkpoint", "hparams.json", "encoder.json", "vocab.bpe"),
    *("model.ckpt.index", "model.ckpt.data-00000-of-00001"),
)
HUGGINGFACE_FILES = ("config.json", "tokenizer.json", "model.safetensors")

# sha256, bytes, file; "-" is not published, and the checksums inside OpenAI's checkpoints prove the data when it is
# read. Sources: the book's own test (ch05/01_main-chapter-code/tests.py) for OpenAI's sizes, tiktoken for the
# vocabulary, and for the rest people who pin these files, each digest in two places but for 124M's index; those of
# 124M's two smallest files follow from their text.
_FACTS = """
196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783 1042301 encoder.json
1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5 456318 vocab.bpe
dd1b025d2e155283f5e300ce95bf6d5b6bc0f7fe010db73daa6975eb896ab9cb 77 124M/checkpoint
d9d56e4121c427164e0c55c6f03c08e1daf9002b9b672825112d19097b680318 90 124M/hparams.json
71916f763f9746f9b2a06b12d91996cf1084ae008d0424543d39391c5f2dc687 5215 124M/model.ckpt.index
2060c885360cc0cf41d7a6dbc4d24b5127aae20260c8b5ae521b5a6578407118 497759232 124M/model.ckpt.data-00000-of-00001
- 77 355M/checkpoint
- 91 355M/hparams.json
- 10399 355M/model.ckpt.index
- 1419292672 355M/model.ckpt.data-00000-of-00001
0daed7749b4f02b8f76240d5444551d7b08712dab4d0adb8239c56ba823bb7b4 665 gpt2/config.json
8414cab924d8b9b33013f0d221c5862f365ee9be39c5c2bfae8a5a9e970478a6 1355256 gpt2/tokenizer.json
248dfc3911869ec493c76e65bf2fcf7f615828b0254c12b473182f0f81d3a707 548105171 gpt2/model.safetensors
ef1a44d889ad1a0acc7731c78134f1b87d2d222f110e97dd10fd4117331caf22 718 gpt2-medium/config.json
8414cab924d8b9b33013f0d221c5862f365ee9be39c5c2bfae8a5a9e970478a6 1355256 gpt2-medium/tokenizer.json
fc5a354a19255ad494f3d71549390baca1ccf61d1d822b9408971705c687c9cd 1519984962 gpt2-medium/model.safetensors
be48115d52314bc27327e160bf10197760db02ea689d10adb24db4102edf7a8a - gpt2-xl/config.json
8414cab924d8b9b33013f0d221c5862f365ee9be39c5c2bfae8a5a9e970478a6 1355256 gpt2-xl/tokenizer.json
0f8b28eb05a8075f48b61b6f35332978c74fc7763fa9fb4051a1c30511736a6a - gpt2-xl/model.safetensors
"""


class FileToFetch(NamedTuple):
    """A file for people who fetch by browser: size in bytes and sha256 where they are published."""

    url: str
    size: int | None
    sha256: str | None
    path: str  # relative to the directory that holds the models

    def described(self) -> str:
        """Two lines: where it is; its size, its sha256 and its path."""
        size = "size unknown" if self.size is None else f"{self.size:,} bytes"
        return f"{self.url}\n    {size}, sha256 {self.sha256 or 'unknown'}, as {self.path}"


def published_files(model: str, base_url: str) -> list[FileToFetch]:
    """The files of a model under one of its two names in `OPENAI_SIZES`, in the order to fetch them in."""
    facts = {path: (size, sha256) for sha256, size, path in (line.split() for line in _FACTS.strip().split("\n"))}
    files = []
    for name in _OPENAI_FILES if model in OPENAI_SIZES else HUGGINGFACE_FILES:
        path = f"{model}/{name}"
        size, sha256 = facts.get(path) or facts.get(name) or ("-", "-")
        known = (None if size == "-" else int(size), None if sha256 == "-" else sha256)
        files.append(FileToFetch(f"{base_url}/{path}", *known, path))
    return files


def openai_size(name: str) -> str:
    """OpenAI's name of a GPT-2 model under any of its names; `ValueError` for what OpenAI did not publish."""
    for size, short in OPENAI_SIZES.items():
        if KNOWN_MODELS.get(name) == f"openai-community/{short}":
            return size
    raise ValueError(f"OpenAI published no GPT-2 called {name!r}; choose one of {', '.join(OPENAI_SIZES)}")
