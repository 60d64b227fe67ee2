"""The contenders, loaded: each a function that writes greedy tokens after prompts. Peers are imported here alone."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from glassgpt.bench.plan import ON_GPU, OURS
from glassgpt.generation.decoder import Decoder
from glassgpt.generation.text import complete

if TYPE_CHECKING:
    from glassgpt.tokenizer import Tokenizer

Writer = Callable[[list[list[int]], int], list[list[int]]]
"""(prompts of one length, number of new tokens) -> the new tokens of each row, decoded together."""


class Loaded(NamedTuple):
    """A contender that is ready."""

    write: Writer
    decoder: Decoder | None = None
    """What `write` runs, where it is ours."""
    weight_bytes: int | None = None


def load(contender: str, model: str, prepared: Path, threads: int, longest: int) -> Loaded:
    """A contender, with room for rows of `longest` tokens; `prepared` is where `prepare` put the peers' files."""
    if contender in OURS:
        return _ours(contender, model, threads, longest)
    if contender == "transformers":
        return Loaded(_transformers(prepared / "hf", threads))
    if contender.startswith("ctranslate2"):
        return Loaded(_ctranslate2(prepared / contender, threads))
    return Loaded(_llama(prepared / f"{contender.split()[-1]}.gguf", threads, longest))


def _ours(contender: str, model: str, threads: int, longest: int) -> Loaded:
    if contender.startswith("compiled"):
        from glassgpt.generation.cpu.load import load_decoder

        compiled, tokenizer = load_decoder(model, precision=contender.split()[1], threads=threads)
        return Loaded(_our_writer(compiled, tokenizer), compiled, compiled.weight_bytes)
    from glassgpt.checkpoint import load_model
    from glassgpt.device import set_threads
    from glassgpt.generation.graphs import GraphDecoder
    from glassgpt.generation.torch_decoder import CachedDecoder, NaiveDecoder

    set_threads(threads)
    readable, tokenizer = load_model(model, device="cuda" if contender in ON_GPU else "cpu")
    decoder: Decoder
    if contender.startswith("graphs"):
        decoder = GraphDecoder(readable, longest)
    else:
        decoder = NaiveDecoder(readable) if contender == "naive" else CachedDecoder(readable, longest)
    weight_bytes = sum(parameter.nbytes for parameter in readable.parameters())
    return Loaded(_our_writer(decoder, tokenizer), decoder, weight_bytes)


def _our_writer(decoder: Decoder, tokenizer: Tokenizer) -> Writer:
    def write(prompts: list[list[int]], n: int) -> list[list[int]]:
        # only a context of a single token is ever exceeded
        options: dict[str, Any] = dict(temperature=0, ignore_eot=True, overflow="slide")
        return [list(c.ids) for c in complete(decoder, tokenizer, prompts, max_new_tokens=n, **options)]

    return write


def _transformers(directory: Path, threads: int) -> Writer:
    import torch

    torch.set_num_threads(threads)
    model = importlib.import_module("transformers").AutoModelForCausalLM.from_pretrained(directory).eval()

    def write(prompts: list[list[int]], n: int) -> list[list[int]]:
        ids = torch.tensor(prompts)
        options = dict(max_new_tokens=n, min_new_tokens=n, do_sample=False, pad_token_id=0)
        with torch.inference_mode():
            rows = model.generate(ids, attention_mask=torch.ones_like(ids), **options)
        result: list[list[int]] = rows[:, ids.shape[1] :].tolist()
        return result

    return write


def _ctranslate2(directory: Path, threads: int) -> Writer:
    library = importlib.import_module("ctranslate2")
    words = json.loads((directory / "vocabulary.json").read_text(encoding="utf-8"))
    generator = library.Generator(str(directory), device="cpu", inter_threads=1, intra_threads=threads)

    def write(prompts: list[list[int]], n: int) -> list[list[int]]:
        texts = [[words[i] for i in row] for row in prompts]
        options = dict(max_length=n, min_length=n, sampling_topk=1, include_prompt_in_result=False)
        return [list(result.sequences_ids[0]) for result in generator.generate_batch(texts, **options)]

    return write


def _llama(path: Path, threads: int, longest: int) -> Writer:
    sizes = dict(n_ctx=longest, n_batch=512, n_ubatch=512, n_threads=threads, n_threads_batch=threads)
    llama = importlib.import_module("llama_cpp").Llama(str(path), verbose=False, **sizes)

    def write(prompts: list[list[int]], n: int) -> list[list[int]]:
        assert len(prompts) == 1
        llama.reset()
        return [list(islice(llama.generate(prompts[0], top_k=1, temp=0.0), n))]

    return write
