"""A load holds the weights once: measured in a fresh process, apart from Python and PyTorch themselves."""

import sys
from pathlib import Path

import pytest

from glassgpt import GPTConfig

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
from load_memory import FORMS, measure

# 160 MB, and as in GPT-2 124M a third of it the embedding
CONFIG = GPTConfig(
    vocab_size=26_000, context_length=1024, emb_dim=512, n_heads=8, n_layers=8, qkv_bias=True, tie_embeddings=True
)


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS)
def test_peak_memory_is_at_most_1_3_times_the_weights(tmp_path: Path, form: str) -> None:
    found = measure(CONFIG, form, tmp_path)
    assert found["file_bytes"] == pytest.approx(4 * CONFIG.n_parameters(), rel=1e-3)
    assert 0.9 < found["ratio"] <= 1.3
