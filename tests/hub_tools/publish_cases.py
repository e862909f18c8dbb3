"""What the tests of publishing share: a snapshot that may be published, and hubs that misbehave."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from hub_tools.server.app import HubOptions, open_hub
from hub_tools.server.http import Request, Response
from model_cards.options import CardOptions
from model_cards.writing import write_card
from model_store.manifest import (
    Manifest,
    Source,
    Step,
    TensorDigest,
    read_manifest,
    scan,
    write_manifest,
)
from model_store.records import Measurement, RecordSet, Verdict, write_record
from tests.hub_tools.hub_calls import WEIGHTS, fill

TOKEN = "publish-test-token"
MODELSCOPE = "modelscope:ferry/Tiny"
HUGGINGFACE = "huggingface:ferry/Tiny"


def make_snapshot(folder: Path, *, verdict: Verdict | None = "pass", card: bool = True) -> Path:
    """A converted snapshot with a parity record of the given verdict, and its card."""
    fill(
        folder,
        {
            "config.json": b"{}",
            "model.safetensors": WEIGHTS,
            "qwen.tiktoken": b"AA== 0\n" * 20_000,  # large, and no suffix of weights
            "CHANGES.md": b"changed\n",
        },
    )
    source = Source("modelscope", "qwen/Qwen-VL-Chat", "v1.0.0", "c" * 40)
    step = Step("to_transformers", {}, "modelferry 0.1.0", "a" * 64, source)
    tensors = {"a.weight": TensorDigest("BF16", (4, 4), "e" * 64)}
    write_manifest(folder, Manifest(scan(folder), lineage=(step,), tensors=tensors))
    if verdict is not None:
        write_record(folder, _record(folder, verdict))
    if card:
        write_card(CardOptions(folder, title="Tiny", licence="apache-2.0"))
    return folder


def _record(folder: Path, verdict: Verdict) -> RecordSet:
    value = None if verdict == "skipped" else 0.01
    measured = Measurement("mean KL", value, "nats", 24, verdict, primary=True)
    return RecordSet(
        name="parity-native",
        claim="native",
        reference="f" * 64,
        candidate=read_manifest(folder).content_digest,
        command=("python", "-m", "verification.compare"),
        seed=0,
        measurements=(measured,),
    )


Answer = Callable[[Request], Response]


@contextmanager
def odd_hub(root: Path, wrap: Callable[[Answer], Answer]) -> Iterator[str]:
    """The local hub with its answers passed through `wrap`; yields the endpoint."""
    root.mkdir(parents=True, exist_ok=True)
    with open_hub(root, HubOptions(token=TOKEN)) as (server, _):
        server.answer = wrap(server.answer)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield server.endpoint
        finally:
            server.shutdown()
            thread.join()
