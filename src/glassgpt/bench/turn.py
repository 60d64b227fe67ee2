"""One measurement, in a process of its own: `python -m glassgpt.bench.turn RESULT`, with the request on standard input.

The request and the result are JSON objects; the result goes to a file, because the peers write to standard output.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from glassgpt.bench.plan import ON_GPU, ROUNDED, ROW_COUNTS, Sizes
from glassgpt.bench.writers import Loaded, load
from glassgpt.cores import peak_memory
from glassgpt.files import write_text
from glassgpt.generation.decoder import Decoder

_LEAST_SECONDS = 0.2  # work that is done sooner is repeated: a clock and a scheduler are not finer
_READ_NUMBERS = 10**8  # float32: more than any cache holds
_READS = 5


@dataclasses.dataclass(frozen=True)
class Request:
    """What a process is asked to measure."""

    contender: str
    work: str
    model: str
    prepared: str
    threads: int
    sizes: dict[str, Any]
    ids: list[int]
    """The tokens that prompts are cut from, `Sizes.n_ids` of them."""
    context_length: int
    reference: list[int] | None = None
    """Greedy tokens in float32 after the prompt of `decode`, where the contender's choices are to be counted."""


def measure(request: Request) -> dict[str, Any]:
    """The figures of a turn: rates in tokens per second, times in seconds, memory in bytes."""
    sizes = Sizes(**request.sizes)
    prompt, new = sizes.naive if request.contender == "naive" else sizes.decode
    longest = {
        "decode": prompt + new,
        "prompt": sizes.prompt + 1,
        "rows": sum(sizes.rows),
        "context": request.context_length,
    }[request.work]
    longest = min(longest, request.context_length)
    loaded = load(request.contender, request.model, Path(request.prepared), request.threads, longest)
    if request.work == "decode":
        return _decode(loaded, request, prompt, new)
    if request.work == "prompt":
        rows = [request.ids[: sizes.prompt]]
        loaded.write(rows, 1)
        return {"rate": sizes.prompt / seconds(lambda: loaded.write(rows, 1))}
    if request.work == "rows":
        return _rows(loaded, request.ids, *sizes.rows)
    assert loaded.decoder is not None
    return {"seconds": costs(loaded.decoder, request.ids, sizes.positions, sizes.steps)}


def _decode(loaded: Loaded, request: Request, prompt: int, new: int) -> dict[str, Any]:
    rows = [request.ids[:prompt]]
    start = time.perf_counter()
    tokens = loaded.write(rows, new)[0]
    cold = new / (time.perf_counter() - start)
    figures: dict[str, Any] = {"cold_rate": cold, "rate": new / seconds(lambda: loaded.write(rows, new))}
    figures |= {"tokens": tokens, "peak_bytes": peak_memory()}
    if loaded.decoder is None or request.contender == "naive":
        return figures
    if loaded.weight_bytes:
        # the compiled one's cache grows with the text
        held = getattr(loaded.decoder, "cache_bytes", loaded.decoder.row_bytes)
        figures |= {"weight_bytes": loaded.weight_bytes, "cache_bytes": held}
        if request.contender not in ON_GPU:  # which read another memory
            figures["read_rate"] = read_rate(request.threads)
    if request.reference is not None and request.contender in ROUNDED:
        figures["agreement"] = agreement(loaded.decoder, request.ids[:prompt], request.reference)
    return figures


def _rows(loaded: Loaded, ids: list[int], prompt: int, new: int) -> dict[str, Any]:
    """Tokens per second for each number of rows."""
    prompts = [ids[prompt * i :][:prompt] for i in range(ROW_COUNTS[-1])]
    rates = {}
    for n in ROW_COUNTS:
        loaded.write(prompts[:n], 1)  # memory is taken, code compiled
        rates[str(n)] = n * new / seconds(functools.partial(loaded.write, prompts[:n], new))
    return {"rates": rates}


def costs(decoder: Decoder, ids: Sequence[int], positions: Sequence[int], steps: int) -> dict[str, float]:
    """Seconds that one more token takes after texts of so many tokens: the median of `steps` tokens."""
    repeated = [*ids] * -(-max(positions) // len(ids))
    result = {}
    for n in positions:
        decoder.join(decoder.read(repeated[:n]))
        times = []
        for _ in range(steps):
            start = time.perf_counter()
            decoder.step([ids[0]])
            times.append(time.perf_counter() - start)
        decoder.drop(0)
        result[str(n)] = statistics.median(times)
    return result


def agreement(decoder: Decoder, prompt: list[int], text: list[int]) -> float:
    """The fraction of the tokens of `text` that the decoder finds likeliest, too, after what comes before them."""
    scores = decoder.add([prompt])
    same = 0
    for index, token in enumerate(text):
        if index:
            scores = decoder.step([text[index - 1]])
        same += int(scores[0].argmax()) == token
    decoder.drop(0)
    return same / len(text)


def seconds(run: Callable[[], object]) -> float:
    """What `run` takes: the median where it is so short that it is repeated."""
    times: list[float] = []
    while not times or sum(times) < _LEAST_SECONDS:
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def read_rate(threads: int) -> float | None:
    """Bytes per second of a plain read of memory, the best of some; None without the compiled kernels."""
    try:
        import numpy as np

        from glassgpt.generation.cpu.panels import total
    except ImportError:
        return None
    parts = np.ones((threads, _READ_NUMBERS // threads), np.float32)
    total(parts[0])  # compiled, where it was not
    times = []
    with ThreadPoolExecutor(threads) as pool:
        for _ in range(_READS):
            start = time.perf_counter()
            list(pool.map(total, parts))
            times.append(time.perf_counter() - start)
    return parts.nbytes / min(times)


def main() -> None:
    """Take the request, leave the result; an error's last line is what the parent shows."""
    write_text(Path(sys.argv[1]), json.dumps(measure(Request(**json.load(sys.stdin)))))


if __name__ == "__main__":
    main()
