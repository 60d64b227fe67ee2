"""`quantize_model`: a model directory in 8 or 4 bits from any model, with a report of what that costs."""

from __future__ import annotations

import copy
import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from glassgpt.checkpoint import load_model, write_tensors
from glassgpt.data.corpus import read_corpus
from glassgpt.files import replacing, write_text
from glassgpt.generation.compare import Comparison, compare, tokens_per_second
from glassgpt.generation.cpu.decoder import CPUDecoder
from glassgpt.generation.cpu.load import compiled_decoder, load_decoder
from glassgpt.generation.cpu.numbers import GROUP, Groups, to_nibbles
from glassgpt.model import GPTModel
from glassgpt.options import Rule, check
from glassgpt.quantize.calibrate import Outliers, quantize_weights
from glassgpt.quantize.rounding import METHODS
from glassgpt.tokenizer import Tokenizer
from glassgpt.training.progress import Progress
from glassgpt.weights.containers.quantized_file import KEY, METHOD, VERSION
from glassgpt.weights.download.resolve import resolve_model
from glassgpt.weights.families.config_json import OURS, to_config_json
from glassgpt.weights.families.gpt2_names import to_gpt2_names
from glassgpt.weights.read import recognise

NUMBER_TYPES = {"int8": 8, "int4": 4}
REPORT = "quantization.json"
"""The report in the directory."""

_CALIBRATION = 16_384
"""Tokens that the activations are taken from, at most."""
_HELD_OUT = 4_096
"""Tokens that are predicted for the report, at most; never those of the calibration."""
_LEAST = 128
_OWN_ROWS = 16


@dataclasses.dataclass(frozen=True)
class Quantization:
    """What was written, and what it cost."""

    path: Path
    number_type: str
    method: str
    text: str
    """What calibration and comparison read, in words."""
    n_calibration_tokens: int
    comparison: Comparison
    """On the end of the text, which the calibration did not read, through the compiled decoders."""
    n_bytes: int
    """Of the weights' file."""
    float32_bytes: int
    """Of the same weights in float32."""
    bits_per_weight: float
    """Of the matrices, scales included."""
    tokens_per_second: float
    """One row, by this machine's compiled decoder; a short run."""
    float32_tokens_per_second: float
    outliers: list[Outliers]
    """One for each matrix whose activations were seen."""

    def to_dict(self) -> dict[str, Any]:
        """What the report's file says; the path is the directory that it is in."""
        values = dataclasses.asdict(self)
        del values["path"]
        values["comparison"]["rise"] = self.comparison.rise
        return values


def quantize_model(
    model: str | Path,
    out: str | Path,
    to: str,
    *,
    text: str | Path | None = None,
    method: str = "gptq",
    threads: int | None = None,
    progress: Progress | None = None,
) -> Quantization:
    """Write `model`, anything that `load_model` reads, as the new directory `out` in "int8" or "int4".

    The activations that weigh the error come from `text`, a file or folder; None: from text that the model writes
    itself, from a fixed seed. `method` is one of `rounding.METHODS`: each number to the nearest, a search for each
    group's scale, or that with errors made up for by later columns. Positions, norms and biases stay float32. `threads`
    as in `load_decoder`.

    Raises what `load_model` raises, and `ValueError` for a text that is too short, a model that is quantised already,
    or `out` that is not empty: nothing is overwritten.
    """
    check("to", to, str, Rule(help="", choices=tuple(NUMBER_TYPES)))
    check("method", method, str, Rule(help="", choices=METHODS))
    out, progress = Path(out), progress or Progress()
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"{out} is not empty: choose a new directory")
    if out.resolve() == Path.cwd():
        raise ValueError(f"{out} is the current directory, which cannot be replaced: choose a new one")
    path = resolve_model(model)
    if recognise(path)[0].name == "quantized":
        raise ValueError(f"{path} is quantised already: quantize the model that it was made from")
    with replacing(out) as new:  # before the work: there is nothing to be written where nothing can be
        new.mkdir()
        result = _quantized(path, new, out, to, text, method, threads, progress)
        write_text(new / REPORT, json.dumps(result.to_dict(), indent=2) + "\n")
        if out.exists():
            out.rmdir()  # an empty one, which not every system replaces
    return result


def _quantized(
    path: Path,
    new: Path,
    out: Path,
    to: str,
    text: str | Path | None,
    method: str,
    threads: int | None,
    progress: Progress,
) -> Quantization:
    """The model of `path`, quantised, in the directory `new`, which is to become `out`."""
    bits = NUMBER_TYPES[to]
    source, tokenizer = load_model(path)
    reference = compiled_decoder(source, message=progress.message, threads=threads)
    title, tokens = _tokens(reference, tokenizer, text, progress)
    n_held_out = min(_HELD_OUT, len(tokens) // 4)
    calibration = tokens[: min(_CALIBRATION, len(tokens) - n_held_out)]
    small = copy.deepcopy(source)
    groups, outliers = quantize_weights(
        small,
        _rows(calibration, source.context_length),
        bits,
        method,
        lambda done, total: progress.work("quantising", done, total, "matrices"),
    )
    about = {"method": method, "calibration": {"text": title, "tokens": len(calibration)}}
    _write(new, small, tokenizer, groups, bits, about)
    decoder, _ = load_decoder(new, message=progress.message, threads=threads)
    held_out = _windows(tokens[len(tokens) - n_held_out :], source.context_length)
    comparison = compare(
        reference, decoder, held_out, lambda done, total: progress.work("comparing", done, total, "tokens")
    )
    n_weights = sum(each.numbers.size for each in groups.values())
    n_scales = sum(each.scales.size for each in groups.values())
    return Quantization(
        out,
        to,
        method,
        title,
        len(calibration),
        comparison,
        (new / "model.safetensors").stat().st_size,
        4 * source.n_parameters(),
        bits + 16 * n_scales / n_weights,
        tokens_per_second(decoder),
        tokens_per_second(reference),
        outliers,
    )


def _write(
    directory: Path, model: GPTModel, tokenizer: Tokenizer, groups: dict[str, Groups], bits: int, about: dict[str, Any]
) -> None:
    tensors = {}
    for name, tensor in to_gpt2_names(model.state_dict(), model.config).items():
        if (found := groups.get(name)) is None:
            tensors[name] = tensor.float()
            continue
        numbers = found.numbers if bits == 8 else to_nibbles(found.numbers)
        tensors[f"{name}.numbers"] = torch.from_numpy(np.ascontiguousarray(numbers))
        tensors[f"{name}.scales"] = torch.from_numpy(np.ascontiguousarray(found.scales)).bfloat16()
    write_tensors(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    config = to_config_json(model.config, tokenizer.eot_id)
    # not a GPT-2 to other tools: those that skip what they do not know would run it on random weights
    config |= {"architectures": ["GPTModel"], "model_type": OURS}
    stop_ids = sorted(tokenizer.stop_ids)
    config["eos_token_id"] = stop_ids[0] if len(stop_ids) == 1 else stop_ids or None
    config[KEY] = {"quant_method": METHOD, "version": VERSION, "bits": bits, "group_size": GROUP, **about}
    write_text(directory / "config.json", json.dumps(config, indent=2) + "\n")
    generation = {"bos_token_id": tokenizer.eot_id, "eos_token_id": config["eos_token_id"]}
    write_text(directory / "generation_config.json", json.dumps(generation, indent=2) + "\n")
    tokenizer.save(directory)


def _tokens(
    decoder: CPUDecoder, tokenizer: Tokenizer, text: str | Path | None, progress: Progress
) -> tuple[str, list[int]]:
    """Which text it is, in words, and its tokens: the beginning for the calibration, the end for the comparison."""
    if text is None:
        progress.message("no text was given: the model's own, from a fixed seed, serves")
        return "text that the model wrote itself", _own_text(decoder, tokenizer, progress)
    tokens: list[int] = []
    most = _CALIBRATION + _HELD_OUT
    for document in read_corpus([text], message=progress.message):
        for piece in document.pieces(max_bytes=1 << 16):
            tokens += tokenizer.encode(piece)
        if len(tokens) > most:
            break
    if len(tokens) < _LEAST:
        raise ValueError(f"{text} has {len(tokens)} tokens, and at least {_LEAST} are needed: give a longer text")
    return str(text), tokens[:most]


def _own_text(decoder: CPUDecoder, tokenizer: Tokenizer, progress: Progress) -> list[int]:
    """Rows drawn side by side at temperature 1, each as long as the context or 512 tokens."""
    random, length = np.random.default_rng(0), min(decoder.context_length, 512)
    first = tokenizer.eot_id or 0
    tokens: list[int] = []
    total = (_CALIBRATION + _HELD_OUT) // 2
    while len(tokens) < total:
        rows = [[first] for _ in range(_OWN_ROWS)]
        scores = decoder.add(rows)
        for n in range(1, length + 1):
            # the largest of scores with Gumbel noise is a draw from their softmax
            drawn = (scores[:, : tokenizer.n_vocab] + random.gumbel(size=(_OWN_ROWS, tokenizer.n_vocab))).argmax(1)
            for row, token in zip(rows, drawn.tolist(), strict=True):
                row.append(token)
            if n < length:
                scores = decoder.step(drawn.tolist())
            progress.work("writing", min(total, len(tokens) + n * _OWN_ROWS), total, "tokens")
        for _ in rows:
            decoder.drop(0)
        tokens += [token for row in rows for token in row]
    return tokens[:total]


def _rows(tokens: Sequence[int], context_length: int) -> torch.Tensor:
    """(rows, T): whole windows; what is left at the end is dropped."""
    length = min(context_length, len(tokens))
    n_rows = len(tokens) // length
    return torch.tensor(tokens[: n_rows * length]).view(n_rows, length)


def _windows(tokens: Sequence[int], context_length: int) -> list[Sequence[int]]:
    """Each ends with the token that the next one begins with, so that every token but the first is predicted."""
    starts = range(0, len(tokens) - 1, context_length)
    return [tokens[start : start + context_length + 1] for start in starts]
