"""What every test stands on: no network, bounded property tests, small models and tokenizers."""

from __future__ import annotations

import ipaddress
import os
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

# Read once, when the library is first imported, so it must stand before any test module is.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["GLASSGPT_CACHE"] = os.devnull  # what is measured on one machine must not decide a test, nor stay behind

import hypothesis
import pytest
import torch

from glassgpt import GPTConfig, GPTModel, Tokenizer

DATA = Path(__file__).parents[1].parent / "shared" / "data"
TEXT = "To be, or not to be: that is the question.\nWhether 'tis nobler in the mind to suffer 1234 slings…\n" * 20

hypothesis.settings.register_profile(
    "glassgpt", deadline=None, max_examples=25, database=None, derandomize=True, print_blob=False
)
hypothesis.settings.load_profile("glassgpt")


def pytest_runtest_setup() -> None:
    """One thread for PyTorch, whatever the test before left: on tensors this small more cost more than they bring."""
    torch.set_num_threads(1)


class NetworkUsedError(RuntimeError):
    """Not an OSError: a library that falls back when the network is down must not swallow it."""


def _is_loopback(host: object) -> bool:
    if isinstance(host, bytes):
        host = host.decode("ascii", errors="replace")
    if not isinstance(host, str) or host in ("", "localhost"):
        return host in (None, "", "localhost")
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return False
    return address.is_loopback or address.is_unspecified


@pytest.fixture(scope="session", autouse=True)
def no_network() -> Iterator[None]:
    """Refuses to resolve or to reach any address but this machine's own."""
    real = {name: getattr(socket.socket, name) for name in ("connect", "connect_ex", "sendto")}
    resolvers = ("getaddrinfo", "gethostbyname", "gethostbyname_ex", "gethostbyaddr")

    def guarded(name: str) -> Callable[..., Any]:
        def method(self: socket.socket, *args: Any) -> Any:
            address = args[-1]
            local = not isinstance(address, tuple) or self.family not in (socket.AF_INET, socket.AF_INET6)
            if not local and not _is_loopback(address[0]):
                raise NetworkUsedError(f"a test tried to reach {address[0]}:{address[1]}; tests run offline")
            return real[name](self, *args)

        return method

    def resolver(function: Callable[..., Any]) -> Callable[..., Any]:
        def resolve(host: Any, *args: Any, **options: Any) -> Any:
            if not _is_loopback(host):
                raise NetworkUsedError(f"a test tried to resolve {host!r}; tests run offline")
            return function(host, *args, **options)

        return resolve

    with pytest.MonkeyPatch.context() as patch:
        for name in real:
            patch.setattr(socket.socket, name, guarded(name))
        for name in resolvers:
            patch.setattr(socket, name, resolver(getattr(socket, name)))
        yield


@pytest.fixture
def started() -> Iterator[Callable[..., subprocess.Popen[Any]]]:
    """As `subprocess.Popen`, but a process ends with its test, whatever fails: nobody waits for one that goes on."""
    processes: list[subprocess.Popen[Any]] = []

    def start(*arguments: Any, **options: Any) -> subprocess.Popen[Any]:
        processes.append(subprocess.Popen(*arguments, **options))
        return processes[-1]

    yield start
    for process in processes:
        process.kill()
        with process:  # waits, and closes its pipes
            pass


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of public texts that lies beside a checkout; the project itself carries none."""
    if not DATA.is_dir():
        pytest.skip("no ../shared/data beside the checkout: it holds the texts this test reads")
    return DATA


@pytest.fixture(scope="session")
def sample_text() -> str:
    """A little English with digits, an apostrophe, a line end and a character outside ASCII."""
    return TEXT


@pytest.fixture(scope="session")
def tiny_model() -> Callable[..., GPTModel]:
    """Makes a small model: `tiny_model(seed=0, dtype=torch.float32, **config)`, in `eval` mode.

    Its weights are spread wider than PyTorch's, so that a mistake anywhere shows in the scores.
    """

    def make(seed: int = 0, dtype: torch.dtype = torch.float32, **changes: Any) -> GPTModel:
        shape = {"vocab_size": 97, "context_length": 16, "emb_dim": 12, "n_heads": 3, "n_layers": 2}
        torch.manual_seed(seed)
        model = GPTModel(GPTConfig.of({**shape, "drop_rate": 0.0, **changes}))
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                parameter.add_(torch.randn_like(parameter), alpha=0.5 if "emb" in name else 0.2)
        return model.to(dtype).eval()

    return make


@pytest.fixture(scope="session")
def tokenizers_by_kind(sample_text: str) -> dict[str, Tokenizer]:
    """One tokenizer of each kind: "gpt2", "bpe", "characters", "bytes"."""
    return {
        "gpt2": Tokenizer.gpt2(),
        "bpe": Tokenizer.train_bpe([sample_text], 300),
        "characters": Tokenizer.characters([sample_text]),
        "bytes": Tokenizer.bytes_(),
    }


@pytest.fixture(scope="session")
def tiny_tokenizer(tokenizers_by_kind: dict[str, Tokenizer]) -> Tokenizer:
    """The byte tokenizer, 257 ids: any text, any ids."""
    return tokenizers_by_kind["bytes"]
