"""The CPU decoder beside the readable model: the same scores, equal bits however rows are put together."""

import json
import os
import platform
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from glassgpt import GPTConfig, GPTModel, Tokenizer, complete, load_decoder, save_model
from glassgpt.generation.cpu.decoder import CPUDecoder
from glassgpt.generation.cpu.load import pack_model
from glassgpt.generation.cpu.tiles import features
from glassgpt.generation.cpu.tuning import ALONE
from glassgpt.generation.cpu.weights import PRECISIONS
from glassgpt.generation.decoder import Decoder, Draw
from glassgpt.generation.options import Sampling
from glassgpt.generation.torch_decoder import NaiveDecoder
from glassgpt.model import generate_text_simple

Make = Callable[..., GPTModel]

SHAPES: list[dict[str, Any]] = [
    dict(emb_dim=12, n_heads=3, n_layers=2),  # nothing fits a vector
    dict(emb_dim=64, n_heads=4, n_layers=1, qkv_bias=True, tie_embeddings=True),
    dict(emb_dim=40, n_heads=5, n_layers=2, sliding_window=5, gelu="erf"),
    dict(emb_dim=32, n_heads=1, n_layers=1, vocab_size=65),
    dict(emb_dim=8, n_heads=8, n_layers=1, context_length=1, vocab_size=2),
    dict(emb_dim=96, n_heads=2, n_layers=3, context_length=70, vocab_size=517),
]


def oracle(model: GPTModel, ids: Sequence[int]) -> np.ndarray:
    with torch.no_grad():
        return model(torch.tensor([ids]))[0].numpy()


def ids_for(model: GPTModel, n: int, seed: int = 0) -> list[int]:
    return np.random.default_rng(seed).integers(0, model.vocab_size, min(n, model.context_length)).tolist()


@pytest.mark.parametrize("shape", SHAPES)
def test_scores_are_the_models(tiny_model: Make, shape: dict[str, Any]) -> None:
    model = tiny_model(**shape)
    decoder = CPUDecoder(pack_model(model))
    assert isinstance(decoder, Decoder)
    ids = ids_for(model, 64)
    expected = oracle(model, ids)
    n = max(1, len(ids) // 2)
    found = [decoder.add([ids[:n]])[0]] + [decoder.step([token])[0] for token in ids[n:]]
    np.testing.assert_allclose(np.stack(found), expected[n - 1 :], atol=1e-4, rtol=0)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("precision", PRECISIONS)
def test_bits_are_equal_alone_in_a_batch_and_in_pieces(tiny_model: Make, shape: dict[str, Any], precision: str) -> None:
    model = tiny_model(**shape)
    packed = pack_model(model, precision)
    ids = ids_for(model, 24)
    decoder = CPUDecoder(packed)
    alone = [decoder.read(ids[: n + 1]).scores for n in range(len(ids))]
    stepped = [decoder.add([ids[:1]])[0]] + [decoder.step([token])[0] for token in ids[1:]]
    assert np.array_equal(stepped, alone)
    prefix, pieces = None, []
    for token in ids:
        prefix = decoder.read([token], prefix)
        pieces.append(prefix.scores)
    assert np.array_equal(pieces, alone)
    crowd = CPUDecoder(packed)
    others = [ids_for(model, 3 + n, seed=n + 1) for n in range(9)]
    crowd.add([*others[:4], ids[:1], *others[4:]])
    for n, token in enumerate(ids[1 : model.context_length - 12]):
        scores = crowd.step([*(row[0] for row in others[:4]), token, *(row[0] for row in others[4:])])
        assert np.array_equal(scores[4], alone[n + 1])


def test_memory_grows_with_what_is_held(tiny_model: Make) -> None:
    model = tiny_model(context_length=600)
    decoder, ids = CPUDecoder(pack_model(model)), np.random.default_rng(0).integers(0, 97, 500).tolist()

    decoder.add([ids[:3]])
    assert decoder.cache_bytes * 4 < decoder.row_bytes
    decoder.add([ids[:5], ids[:200]])
    for n, token in enumerate(ids[200:]):  # past the room for 400 tokens that the longest begins with
        scores = decoder.step([ids[3 + n], ids[5 + n], token])
    assert decoder.cache_bytes <= 4 * decoder.row_bytes
    for row, n in enumerate((303, 305, 500)):
        np.testing.assert_allclose(scores[row], oracle(model, ids[:n])[-1], atol=2e-4, rtol=0)
    decoder.rest()
    assert decoder.cache_bytes > 0  # somebody is still there
    for _ in range(3):
        decoder.drop(0)
    decoder.rest()
    assert decoder.cache_bytes == 0
    np.testing.assert_allclose(decoder.add([ids[:9]])[0], oracle(model, ids[:9])[-1], atol=2e-4, rtol=0)


def test_rows_join_and_leave_at_any_time(tiny_model: Make) -> None:
    model = tiny_model(context_length=20)
    random = np.random.default_rng(5)
    fast, plain = CPUDecoder(pack_model(model)), NaiveDecoder(model)
    lengths: list[int] = []
    for _ in range(120):
        move = random.integers(3)
        if move == 0 or not lengths:
            prompts = [random.integers(0, 97, random.integers(1, 21)).tolist() for _ in range(random.integers(1, 4))]
            np.testing.assert_allclose(fast.add(prompts), plain.add(prompts), atol=1e-4, rtol=0)
            lengths += map(len, prompts)
        elif move == 1 and max(lengths) < 20:
            tokens = random.integers(0, 97, len(lengths)).tolist()
            np.testing.assert_allclose(fast.step(tokens), plain.step(tokens), atol=1e-4, rtol=0)
            lengths = [n + 1 for n in lengths]
        else:
            row = int(random.integers(len(lengths)))
            fast.drop(row)
            plain.drop(row)
            lengths[row] = lengths[-1]
            lengths.pop()


def test_a_prefix_joins_more_than_once_and_is_not_changed(tiny_model: Make) -> None:
    model = tiny_model()
    decoder = CPUDecoder(pack_model(model))
    prefix = decoder.read([1, 2, 3])
    decoder.join(prefix)
    first = decoder.step([4])
    decoder.join(prefix)
    both = decoder.step([5, 4])
    assert np.array_equal(both[1], first[0])
    np.testing.assert_allclose(both[0], oracle(model, [1, 2, 3, 4, 5])[-1], atol=1e-4, rtol=0)


@pytest.mark.parametrize("shape", SHAPES)
def test_greedy_tokens_are_the_oracles(tiny_model: Make, shape: dict[str, Any]) -> None:
    model = tiny_model(**{**shape, "vocab_size": 257})
    n = model.context_length - 1
    if n == 0:
        pytest.skip("a context of one token leaves no room for a second one")
    expected = generate_text_simple(model, torch.tensor([[7]]), n, model.context_length)[0, 1:].tolist()
    options = dict(max_new_tokens=n, temperature=0, ignore_eot=False)
    found = complete(CPUDecoder(pack_model(model)), Tokenizer.bytes_(), [[7]], **options)[0].ids
    assert found == expected[: len(found)]
    assert len(found) == n or expected[len(found)] == Tokenizer.bytes_().eot_id


def test_a_row_holds_no_more_than_the_context(tiny_model: Make) -> None:
    decoder = CPUDecoder(pack_model(tiny_model(context_length=8)), capacity=6)
    for prompt in ([], [1] * 7):
        with pytest.raises(ValueError, match=f"^a prompt of {len(prompt)} tokens must have from 1 to 6$"):
            decoder.read(prompt)
    decoder.add([[1] * 6])
    with pytest.raises(ValueError, match="a row of 7 tokens exceeds the 6"):
        decoder.step([1])
    with pytest.raises(ValueError, match="2 tokens for 1 live rows"):
        decoder.step([1, 2])


@pytest.mark.parametrize("precision", PRECISIONS)
def test_two_threads_give_the_bits_of_one_every_time(tiny_model: Make, precision: str) -> None:
    """Two that raced would show it sooner or later: a long prompt, then several rows, again and again."""
    packed = pack_model(tiny_model(emb_dim=96, n_heads=2, context_length=64, vocab_size=5000), precision)
    ids = np.random.default_rng(0).integers(0, 5000, 60).tolist()

    def run(decoder: CPUDecoder) -> list[np.ndarray]:
        found = [decoder.add([ids[:50], ids[:7], ids[20:40]])]
        found += [decoder.step(ids[n : n + 3]) for n in range(4)]
        draws = [Draw(Sampling(), 5000, (), [0.1, 0.5, 0.9])] * 3
        drawn, scores = decoder.run(ids[:3], draws)
        decoder.cut(0, 40)
        found += [np.array(drawn), scores, decoder.extend([ids[:5], [], ids[:9]])]
        for _ in range(3):
            decoder.drop(0)
        return found

    one, two = CPUDecoder(packed), CPUDecoder(packed, threads=2)
    assert packed.config.n_parameters() * 3 > ALONE, "work enough for both"
    expected = run(one)
    for _ in range(20):
        assert all(map(np.array_equal, run(two), expected))


# ---- from a directory ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    directory = tmp_path_factory.mktemp("saved")
    config = GPTConfig(vocab_size=257, context_length=16, emb_dim=24, n_heads=3, n_layers=2, drop_rate=0.0)
    save_model(GPTModel(config).eval(), Tokenizer.bytes_(), directory)
    return directory


def test_a_directory_is_mapped_and_gives_the_same(saved: Path) -> None:
    from glassgpt import load_model

    decoder, tokenizer = load_decoder(saved)
    model, _ = load_model(saved)
    assert tokenizer.fingerprint == Tokenizer.bytes_().fingerprint
    assert np.array_equal(decoder.read([1, 2, 3]).scores, CPUDecoder(pack_model(model)).read([1, 2, 3]).scores)


def test_text_comes_without_torch(saved: Path) -> None:
    code = (
        "import sys; from glassgpt import load_decoder, generate; "
        f"d, t = load_decoder({str(saved)!r}); generate(d, t, 'ab', max_new_tokens=3, temperature=0); "
        "assert 'torch' not in sys.modules, 'torch was imported'"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


SCORES = """
import json, sys
from glassgpt import load_decoder
from glassgpt.generation.cpu.tiles import HERE
kinds = [number.split("/") for number in sys.argv[2:]]
decoders = [load_decoder(sys.argv[1], precision=p, cache=c)[0] for p, c in kinds]
print(json.dumps([HERE, [decoder.read([1, 2, 3, 40, 5]).scores.tolist() for decoder in decoders]]))
"""
_AVX2 = "+sse3,+ssse3,+sse4.1,+sse4.2,+popcnt,+avx,+avx2,+fma,+f16c,+bmi,+bmi2"


@pytest.mark.slow
@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="compiles for other CPUs of x86-64")
@pytest.mark.parametrize(
    ("cpu", "instructions", "dot"), [("haswell", _AVX2, "pairs"), ("x86-64", "+sse2", "plain")], ids=["avx2", "sse2"]
)
def test_a_machine_with_fewer_instructions(saved: Path, tmp_path: Path, cpu: str, instructions: str, dot: str) -> None:
    if dot == "pairs" and "avx2" not in features():
        pytest.skip("this CPU has no AVX2")
    numbers = ("float32/float32", "bfloat16/int8", "int8/float32", "int4/int8")
    machine = {"NUMBA_CPU_NAME": cpu, "NUMBA_CPU_FEATURES": instructions, "NUMBA_CACHE_DIR": str(tmp_path)}
    command = [sys.executable, "-c", SCORES, str(saved), *numbers]
    done = subprocess.run(command, env=os.environ | machine, capture_output=True, text=True, check=True)
    here, scores = json.loads(done.stdout)
    assert here == [8, dot]
    for kinds, found in zip(numbers, scores, strict=True):
        precision, cache = kinds.split("/")
        expected = load_decoder(saved, precision=precision, cache=cache)[0].read([1, 2, 3, 40, 5]).scores
        # sums within a norm and a softmax have another order, after which activations may round to the next byte
        np.testing.assert_allclose(found, expected, atol=1e-5 if precision == "float32" else 1e-2, rtol=0)


def test_other_number_types_come_through_the_readable_model(tmp_path: Path, tiny_model: Make) -> None:
    model = tiny_model(vocab_size=257, dtype=torch.bfloat16)
    save_model(model, Tokenizer.bytes_(), tmp_path)
    scores = load_decoder(tmp_path)[0].read([5, 6]).scores
    np.testing.assert_allclose(scores, oracle(model.float(), [5, 6])[-1], atol=1e-4, rtol=0)


def damage(saved: Path, to: Path, change: Callable[[dict[str, np.ndarray]], None]) -> Path:
    from safetensors.numpy import load_file, save_file

    for path in saved.iterdir():
        (to / path.name).write_bytes(path.read_bytes())
    tensors = load_file(to / "model.safetensors")
    change(tensors)
    save_file(tensors, to / "model.safetensors", metadata={"format": "pt"})
    return to


def poison(tensors: dict[str, np.ndarray]) -> None:
    tensors["transformer.h.1.mlp.c_fc.weight"][3, 5] = np.nan


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda t: t.pop("transformer.h.0.ln_1.weight"), r"missing h\.0\.ln_1\.weight \[24\]"),
        (lambda t: t.update({"transformer.wpe.weight": t["transformer.wpe.weight"][:3].copy()}), "instead of"),
        (poison, "h.1.mlp.c_fc.weight holds NaN or infinite values"),
        (lambda t: t.update(extra=np.zeros(3, np.float32)), "unexpected extra"),
    ],
)
def test_a_damaged_directory_is_refused(saved: Path, tmp_path: Path, change: Any, says: str) -> None:
    damage(saved, tmp_path, change)
    with pytest.raises(ValueError, match=says) as refused:
        load_decoder(tmp_path)
    assert "\n" not in str(refused.value)


def test_a_file_that_is_cut_off_is_refused(saved: Path, tmp_path: Path) -> None:
    damage(saved, tmp_path, lambda t: None)
    whole = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(whole[:-10])
    with pytest.raises(ValueError, match=r"model\.safetensors is damaged"):
        load_decoder(tmp_path)


def test_an_unknown_precision() -> None:
    with pytest.raises(ValueError, match="precision 'int2' must be one of float32, bfloat16, int8, int4"):
        load_decoder("nowhere", precision="int2")
    with pytest.raises(ValueError, match="cache 'int2' must be one of float32, float16, int8"):
        load_decoder("nowhere", cache="int2")
