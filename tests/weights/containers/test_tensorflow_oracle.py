"""The reader against TensorFlow itself, where it is installed (extra ``oracles``)."""

import warnings
from pathlib import Path

import numpy as np
import pytest

from glassgpt.weights.containers.tensorflow import TensorFlowCheckpoint

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    tf = pytest.importorskip("tensorflow", reason="tensorflow-cpu is a heavy extra; golden bytes are tested always")

NX, LAYERS = 8, 3


def openai_variables(seed: int = 0) -> dict[str, np.ndarray]:
    """GPT-2 in OpenAI's names and shapes."""
    rng = np.random.default_rng(seed)
    shapes = {"model/wte": (50, NX), "model/wpe": (16, NX), "model/ln_f/g": (NX,), "model/ln_f/b": (NX,)}
    for layer in range(LAYERS):
        for name, n_in, n_out in [
            ("attn/c_attn", NX, 3 * NX),
            ("attn/c_proj", NX, NX),
            ("mlp/c_fc", NX, 4 * NX),
            ("mlp/c_proj", 4 * NX, NX),
        ]:
            shapes[f"model/h{layer}/{name}/w"] = (1, n_in, n_out)
            shapes[f"model/h{layer}/{name}/b"] = (n_out,)
        for name in ("ln_1", "ln_2"):
            shapes[f"model/h{layer}/{name}/g"] = shapes[f"model/h{layer}/{name}/b"] = (NX,)
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


def save(prefix: Path, tensors: dict) -> None:
    tf.raw_ops.SaveV2(
        prefix=str(prefix),
        tensor_names=list(tensors),
        shape_and_slices=[""] * len(tensors),
        tensors=[tf.constant(value) for value in tensors.values()],
    )


def assert_bit_equal(checkpoint: TensorFlowCheckpoint, expected: dict[str, np.ndarray]) -> None:
    assert set(checkpoint) == set(expected)
    for name, array in expected.items():
        assert checkpoint[name].dtype == array.dtype
        assert checkpoint[name].shape == array.shape
        assert checkpoint[name].tobytes() == array.tobytes()


def test_gpt2_variables(tmp_path: Path) -> None:
    variables = openai_variables()
    save(tmp_path / "model.ckpt", variables)
    checkpoint = TensorFlowCheckpoint(tmp_path)
    assert_bit_equal(checkpoint, variables)
    listed = tf.train.list_variables(str(tmp_path / "model.ckpt"))
    assert [(name, tuple(shape)) for name, shape in listed] == [(n, checkpoint.shape(n)) for n in checkpoint]


def test_two_data_files(tmp_path: Path) -> None:
    first, second = openai_variables(1), {"adam/step": np.int64(3), "adam/m": np.float32([[1, 2]])}
    save(tmp_path / "a", first)
    save(tmp_path / "b", second)
    tf.raw_ops.MergeV2Checkpoints(
        checkpoint_prefixes=[str(tmp_path / "a"), str(tmp_path / "b")],
        destination_prefix=str(tmp_path / "merged" / "model.ckpt"),
    )
    assert len(list((tmp_path / "merged").glob("*.data-*-of-00002"))) == 2
    assert_bit_equal(TensorFlowCheckpoint(tmp_path / "merged"), first | {k: np.asarray(v) for k, v in second.items()})


@pytest.mark.parametrize(
    "dtype", ["float32", "float64", "float16", "bfloat16", "int32", "int64", "uint8", "int8", "bool"]
)
def test_dtypes(tmp_path: Path, dtype: str) -> None:
    values = tf.cast(tf.constant([[0.0, 1.0, -2.5], [3.25, 100.0, 0.1]]), dtype)
    save(tmp_path / "m", {"v": values, "scalar": values[0, 1], "empty": values[:0]})
    checkpoint = TensorFlowCheckpoint(tmp_path / "m")
    expected = tf.cast(values, tf.float32).numpy() if dtype == "bfloat16" else values.numpy()
    assert checkpoint.dtype("v") == dtype
    assert checkpoint["v"].tobytes() == expected.tobytes()
    assert checkpoint["scalar"].tolist() == expected[0, 1]
    assert checkpoint["empty"].shape == (0, 3)


def test_checkpoints_of_keras_style_saver_with_state_file(tmp_path: Path) -> None:
    variable = tf.Variable(np.float32([1, 2, 3]))
    manager = tf.train.CheckpointManager(tf.train.Checkpoint(v=variable), str(tmp_path), max_to_keep=1)
    manager.save()
    checkpoint = TensorFlowCheckpoint(tmp_path)
    name = next(name for name in checkpoint if name.startswith("v/"))
    assert checkpoint[name].tolist() == [1, 2, 3]
    assert checkpoint.dtype("_CHECKPOINTABLE_OBJECT_GRAPH") == "string"


def test_partitioned_and_string_variables(tmp_path: Path) -> None:
    tf.raw_ops.SaveV2(
        prefix=str(tmp_path / "m"),
        tensor_names=["parted", "text"],
        shape_and_slices=["4 3 0,2:-", ""],
        tensors=[tf.zeros([2, 3]), tf.constant(["hello", "you"])],
    )
    checkpoint = TensorFlowCheckpoint(tmp_path / "m")
    assert sorted(checkpoint) == ["parted", "text"]
    assert checkpoint.shape("parted") == (4, 3)
    for name in checkpoint:
        with pytest.raises(ValueError, match="is partitioned|unsupported type string"):
            checkpoint[name]


def test_what_tensorflow_refuses_is_refused(tmp_path: Path) -> None:
    save(tmp_path / "m", {"v": np.arange(100, dtype=np.float32)})
    data = tmp_path / "m.data-00000-of-00001"
    altered = bytearray(data.read_bytes())
    altered[77] ^= 4
    data.write_bytes(altered)
    with pytest.raises(tf.errors.OpError, match="Checksum does not match"):
        tf.train.load_variable(str(tmp_path / "m"), "v")
    with pytest.raises(ValueError, match="wrong checksum"):
        TensorFlowCheckpoint(tmp_path / "m")["v"]
