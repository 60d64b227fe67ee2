"""Many prompts from a file, each with options of its own, and a file of records that a killed batch goes on with."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import io
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from glassgpt.data.kinds import HEAD_BYTES, check_text
from glassgpt.data.records import MAX_RECORD_BYTES
from glassgpt.data.unpack import inner_suffix, unpacked
from glassgpt.generation.decoder import Decoder
from glassgpt.generation.options import Generation
from glassgpt.generation.row import Completion, Row
from glassgpt.generation.scheduler import Request, Scheduler, check_speculates
from glassgpt.generation.speculation import Tally
from glassgpt.generation.text import check_fits, decoder_for, prompt_ids, proposers_for
from glassgpt.json_file import parse_json
from glassgpt.options import nearest
from glassgpt.terminal_text import not_utf8
from glassgpt.tokenizer import Tokenizer

if TYPE_CHECKING:
    from glassgpt.language_model import LanguageModel

JSON_LINES = (".jsonl", ".ndjson")
"""Names of files that end so hold JSON lines."""

_N_SEEDS = 2**64
_BEGINNING = b'{"index": '
_LONGEST_LINE = 8 * MAX_RECORD_BYTES  # a record holds the prompt, in JSON, and the text


@dataclasses.dataclass(frozen=True)
class Prompt:
    """One prompt of a file."""

    line: int
    """Its line in the file, from 1."""
    text: str
    generation: Generation


@dataclasses.dataclass(frozen=True)
class Task:
    """A prompt that was checked against a model."""

    index: int
    """Its place among the prompts, from 0."""
    prompt: str
    ids: list[int]
    generation: Generation
    digest: str
    """Of all that its text depends on: model, tokenizer, tokens and options."""

    def record(self, completion: Completion) -> dict[str, Any]:
        """What is written about it."""
        told = completion.to_dict()
        return {
            **self.beginning(),
            "text": completion.text,
            "finish_reason": completion.finish_reason,
            "n_prompt_tokens": completion.n_prompt_tokens,
            "n_new_tokens": len(completion.ids),
            "seed": self.generation.seed,
            **({"logprobs": told["logprobs"]} if "logprobs" in told else {}),
            "digest": self.digest,
        }

    def beginning(self) -> dict[str, Any]:
        """What a record begins with, known before the text is."""
        return {"index": self.index, "prompt": self.prompt}


def read_prompts(path: Path, options: Mapping[str, Any]) -> list[Prompt]:
    """The prompts in a file, each with `options`, fields of `Generation`.

    In a text file each line that is not blank is a prompt; in JSON lines, where the name ends in one of `JSON_LINES`,
    each is an object with `prompt` and any field of `Generation`. Either may be packed with gzip or zstd. Without a
    seed of its own a prompt has the one of `options`, or else 0, plus its place among the prompts, so that its text is
    the same whenever it is computed. Raises `ValueError`, naming file and line, for what is none of these.
    """
    base = Generation.from_dict(options)
    first = base.seed or 0
    if inner_suffix(path) == ".json":
        raise ValueError(
            f'{path}: write the prompts as JSON lines to a .jsonl file, one {{"prompt": ...}} on each line'
        )
    prompts: list[Prompt] = []
    for line, text in _lines(path):
        fields: dict[str, Any] = {"prompt": text}
        try:
            if inner_suffix(path) in JSON_LINES:
                fields = parse_json(text.encode())
                text = _prompt_of(fields)
            if fields.get("seed") is None:
                fields["seed"] = (first + len(prompts)) % _N_SEEDS
            del fields["prompt"]
            prompts.append(Prompt(line, text, Generation.from_dict(base.to_dict() | fields)))
        except ValueError as error:
            raise ValueError(f"{path}:{line}: {error}") from None
    if not prompts:
        raise ValueError(f"{path}: no prompts in it: write one on each line")
    return prompts


def _prompt_of(fields: dict[str, Any]) -> str:
    """The prompt in a record, whose other fields are options."""
    if unknown := [name for name in fields if name != "prompt" and name not in Generation.rules()]:
        raise ValueError(f"unknown field {unknown[0]!r}: {nearest(unknown[0], ['prompt', *Generation.rules()])}")
    text = fields.get("prompt")
    if not isinstance(text, str):
        raise ValueError("no field 'prompt' that is a text")
    return text


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """(number from 1, text without its end) of each line that is not blank."""
    with path.open("rb") as plain:
        file = unpacked(path, plain)[1]
        check_text(path, file.peek(HEAD_BYTES)[:HEAD_BYTES])
        number = 0
        while data := file.readline(MAX_RECORD_BYTES + 1):
            number += 1
            if len(data) > MAX_RECORD_BYTES:
                raise ValueError(f"{path}:{number}: longer than the {MAX_RECORD_BYTES >> 20} MiB that a line may have")
            try:
                text = data.decode("utf-8-sig" if number == 1 else "utf-8").removesuffix("\n").removesuffix("\r")
            except UnicodeDecodeError as error:
                raise ValueError(f"{path}:{number}: {not_utf8(error)}; convert the file") from None
            if text.strip():
                yield number, text


def tasks_for(
    model: LanguageModel | Decoder, tokenizer: Tokenizer, path: Path, prompts: Sequence[Prompt], fingerprint: str
) -> list[Task]:
    """The prompts of `path` for a model whose weights have this `fingerprint`; errors as in `read_prompts`."""
    whose = f"{fingerprint} {tokenizer.fingerprint}"
    if tokenizer.stop_ids != {tokenizer.eot_id}:
        whose += f" {sorted(tokenizer.stop_ids)}"
    tasks = []
    for index, prompt in enumerate(prompts):
        try:
            ids = prompt_ids(model, tokenizer, prompt.text)
            check_fits(model, len(ids), prompt.generation)
            if prompt.generation.logit_bias:
                Row(ids, tokenizer, prompt.generation)
        except ValueError as error:
            raise ValueError(f"{path}:{prompt.line}: {error}") from None
        decisive = {name: value for name, value in prompt.generation.to_dict().items() if name != "speculate"}
        request = json.dumps([whose, ids, decisive])
        digest = hashlib.sha256(request.encode()).hexdigest()[:16]
        tasks.append(Task(index, prompt.text, ids, prompt.generation, digest))
    if line := next((prompt.line for prompt in prompts if prompt.generation.speculate != "none"), None):
        try:
            check_speculates(decoder_for(model, _longest(tasks)))
        except ValueError as error:
            raise ValueError(f"{path}:{line}: {error}") from None
    return tasks


def _longest(tasks: Sequence[Task]) -> int:
    """The most tokens that a text may come to."""
    return max((len(task.ids) + task.generation.max_new_tokens for task in tasks), default=1)


def complete_tasks(
    model: LanguageModel | Decoder,
    tokenizer: Tokenizer,
    tasks: Sequence[Task],
    max_rows: int | None = None,
    draft: LanguageModel | Decoder | None = None,
    tally: Tally | None = None,
    on_overflow: Callable[[int], None] | None = None,
) -> Iterator[tuple[Task, Completion | None]]:
    """An item for each token that is drawn; it has the completion where the token is the task's last.

    Tasks are begun in their order and finish in any. At most `max_rows` are decoded at once; None goes by memory.
    `draft` and `tally` as in `complete`; `on_overflow` hears the context length once for each text that exceeds it.
    """
    longest = _longest(tasks)
    scheduler = Scheduler(decoder_for(model, longest), max_rows, tally=tally)
    proposers = proposers_for(tokenizer, draft, longest)
    pending = iter(tasks)
    asked: dict[Request, Task] = {}
    drawn: dict[Request, int] = {}
    while True:
        # so many wait that the scheduler sees what they begin with; a row for each of a million would be too many
        while scheduler.n_waiting <= scheduler.max_rows and (task := next(pending, None)):
            row = Row(task.ids, tokenizer, task.generation, on_overflow)
            asked[scheduler.submit(row, proposers[row.speculate])] = task
        if not scheduler.busy:
            return
        for request, _ in scheduler.step():
            for _ in range(drawn.get(request, 0) + 1, request.row.n_drawn):  # with speculation several in one step
                yield asked[request], None
            drawn[request] = request.row.n_drawn
            if request.row.finish_reason is None:
                yield asked[request], None
            else:
                del drawn[request]
                yield asked.pop(request), request.row.completion()


class Records:
    """A file of records, one JSON object a line, to which finished tasks are appended; made by `records_at`."""

    def __init__(self, path: Path, file: BinaryIO, done: dict[int, dict[str, Any]]) -> None:
        self._path, self._file = path, file
        self.done = done
        """The records that were there already, by index."""

    def append(self, task: Task, completion: Completion) -> None:
        """Write a record; it is out of this process's hands when the method returns. `OSError` names the file."""
        try:
            self._file.write(record_line(task.record(completion)).encode())
            self._file.flush()
        except OSError as error:
            raise OSError(
                f"{self._path}: {(error.strerror or str(error)).lower()}; its whole records are kept, and the same "
                "command goes on"
            ) from error


def record_line(record: Mapping[str, Any]) -> str:
    """A record as a line of JSON."""
    return json.dumps(record, ensure_ascii=False) + "\n"


@contextlib.contextmanager
def records_at(path: Path, tasks: Sequence[Task]) -> Iterator[Records]:
    """The records of `tasks` in the file `path`, made if it is not there; what a kill left of a last line is cut off.

    `ValueError`, with nothing changed, for a file with anything else in it: another one's, or records of other
    prompts, options or another model. `OSError` where another process is at work on it.
    """
    if path.exists() and not path.is_file():
        raise ValueError(f"{path} is not a file: choose a new name")
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab+", buffering=0) as raw, _alone(path, raw):
        raw.seek(0)
        done, size = _read_records(path, raw, tasks)
        raw.truncate(size)
        with io.BufferedWriter(raw) as file:
            yield Records(path, file, done)


def _read_records(path: Path, raw: io.FileIO, tasks: Sequence[Task]) -> tuple[dict[int, dict[str, Any]], int]:
    """The records by index, and where the last whole one ends."""
    done: dict[int, dict[str, Any]] = {}
    size = number = 0
    file = io.BufferedReader(raw)
    try:
        while line := _line(file):
            number += 1
            cut_off = not line.endswith(b"\n") and (number > 1 or line.startswith(_BEGINNING))
            if cut_off and any(_begins(line, task) for task in tasks if task.index not in done):
                break
            record = _record(line)
            if record is None:
                raise ValueError(f"{path}:{number}: not a record of ours: choose a new name for the records")
            index = record["index"]
            if not 0 <= index < len(tasks) or index in done or record.get("digest") != tasks[index].digest:
                raise ValueError(
                    f"{path}:{number}: a record of other prompts or options or of another model: "
                    "give the same ones, or choose a new name for the records"
                )
            done[index] = record
            size += len(line)
    finally:
        file.detach()
    return done, size


def _line(file: io.BufferedReader[io.FileIO]) -> bytes:
    """To the end of the line, or of the file; of what is no record of ours no more than one could need."""
    line = file.readline(_LONGEST_LINE)
    if len(line) == _LONGEST_LINE and not line.endswith(b"\n") and line.startswith(_BEGINNING):
        line += file.readline()  # with the log-probabilities of a whole vocabulary
    return line


def _record(line: bytes) -> dict[str, Any] | None:
    """A whole line as a record, if it is one."""
    with contextlib.suppress(ValueError):
        record = parse_json(line)
        if line.endswith(b"\n") and type(record.get("index")) is int and isinstance(record.get("digest"), str):
            return record
    return None


def _begins(line: bytes, task: Task) -> bool:
    """Whether a line that was cut off is the beginning of this task's record."""
    known = record_line(task.beginning()).encode().removesuffix(b"}\n")
    return known.startswith(line) or line.startswith(known)


@contextlib.contextmanager
def _alone(path: Path, file: io.FileIO) -> Iterator[None]:
    """The file for this process alone, where the operating system knows such locks."""
    try:
        import fcntl
    except ImportError:
        yield
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise OSError(f"{path} is in use by another process: wait for it, or choose another name") from None
    yield
