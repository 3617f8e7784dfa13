"""The static decoder: recorded steps that are played again give what the lean decoder gives.

Without a GPU a step is recorded as the operators that PyTorch saw, with the tensors they read and wrote, which is what
a CUDA graph keeps of it: what depends on Python, or on a tensor that has moved, comes out wrong here, too.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

from serve.engine import CandidateRequest, Output, decoder, static
from serve.engine.decoders import open_decoder
from serve.engine.llama import LlamaDecoder
from serve.engine.local import LocalEngine
from serve.engine.lora_weights import LoraWeights, read_adapter
from serve.engine.slots import STATIC_SPAN
from serve.engine.static import Graph, StaticDecoder
from serve.policy.base import Backbone, load_backbone, resolve_model
from serve.records import Message, Sampling
from tests import tiny

GREEDY = Sampling(max_tokens=24, temperature=0.0)
ASKED = [("Hello", 0), ("What is the capital of Kenya? " * 4, 1), ("ü", 2), ("Rivers.", 1), ("Name a bird. " * 20, 0)]

gpu = (
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="CUDA graphs need a GPU, and there is none"),
)


class Tape:
    """A step as its operators and their tensors."""

    def __init__(self, step: Callable[[], Tensor], beside: Tape | None) -> None:
        self._graph = make_fx(step)()
        operators = " ".join(str(node.target) for node in self._graph.graph.nodes)
        assert not re.search(r"lift_fresh|_local_scalar_dense|nonzero", operators)  # the processor waits or copies

    def play(self) -> Tensor:
        logits: Tensor = self._graph()
        return logits


class Recorder:
    """Counts what it records."""

    def __init__(self, kind: type[Tape | Graph]) -> None:
        self.kind = kind
        self.count = 0

    def __call__(self, step: Callable[[], Tensor], beside: Tape | Graph | None) -> Tape | Graph:
        self.count += 1
        assert beside is None or isinstance(beside, self.kind)
        return self.kind(step, beside)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def adapters(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    root = tmp_path_factory.mktemp("adapters")
    return [
        tiny.write_adapter(root / "1", tiny_model, rank=4, layers=(2, 3), seed=1),
        tiny.write_adapter(root / "2", tiny_model, rank=2, layers=(1, 2, 3), seed=2),
        tiny.write_adapter(root / "3", tiny_model, rank=4, layers=(2, 3), seed=3),
    ]


@pytest.fixture(params=["tape", pytest.param("graph", marks=gpu)])
def engines(
    tiny_model: Path, adapters: list[Path], request: pytest.FixtureRequest
) -> Iterator[tuple[LocalEngine, LocalEngine, Recorder]]:
    """The lean engine, the static one, and what records its steps; versions 1 and 2 are resident in both."""
    device = "cpu" if request.param == "tape" else "cuda"
    backbone = load_backbone(resolve_model(str(tiny_model), tiny_model / "cache"), dtype="float32", device=device)
    lean, played = LocalEngine(backbone, decoder="lean"), LocalEngine(backbone, decoder="static")
    assert type(lean._decoder) is LlamaDecoder
    assert type(played._decoder) is StaticDecoder
    assert (played._decoder.record is Graph) == (device == "cuda")
    played._decoder.record = recorder = Recorder(Tape if request.param == "tape" else Graph)
    for engine in (lean, played):
        for version, path in enumerate(adapters[:2], start=1):
            engine.load(version, path)
    yield lean, played, recorder
    lean.close()
    played.close()


def answers(engine: LocalEngine, asked: Sequence[tuple[str, int]], sampling: Sampling = GREEDY) -> list[Output]:
    """All at once, so that they decode in one batch."""
    running = [
        engine.submit(engine.encode([Message("user", text)]), [CandidateRequest(version, 1)], sampling)
        for text, version in asked
    ]
    return [generation.result(60)[0] for generation in running]


def agree(ours: Sequence[Output], theirs: Sequence[Output]) -> None:
    assert [o.token_ids for o in ours] == [o.token_ids for o in theirs]
    for our, their in zip(ours, theirs, strict=True):
        assert our.logprobs == pytest.approx(their.logprobs, abs=1e-3)


Engines = tuple[LocalEngine, LocalEngine, Recorder]


def test_ragged_rows_of_several_versions_are_played_as_computed(engines: Engines) -> None:
    lean, played, recorder = engines
    agree(answers(played, ASKED), answers(lean, ASKED))
    assert 0 < recorder.count <= 4 * 2  # 1, 2, 4 and 8 rows, of up to 512 tokens; slots grow while rows join


def test_steps_are_recorded_once(engines: Engines) -> None:
    _, played, recorder = engines
    first = [answers(played, [asked]) for asked in ASKED]
    count = recorder.count
    assert [answers(played, [asked]) for asked in ASKED] == first
    assert recorder.count == count


def test_an_answer_grows_out_of_its_span(engines: Engines) -> None:
    lean, played, _ = engines
    asked = [("x" * (STATIC_SPAN - 100), 1), ("Short.", 2)]
    long = Sampling(max_tokens=100, temperature=0.0)
    answers(played, asked[1:] * 2, long)  # room for two rows, before the span grows
    short = answers(played, asked[1:], long)
    ours = answers(played, asked, long)
    assert len(played.encode([Message("user", asked[0][0])])) < STATIC_SPAN
    assert 2 * STATIC_SPAN in {span for _, span in played._slots.recorded}  # type: ignore[attr-defined]
    agree(ours, answers(lean, asked, long))
    agree(answers(played, asked[1:], long), short)


def test_weights_that_are_replaced_where_they_lie_are_seen_by_what_was_recorded(
    engines: Engines, adapters: list[Path]
) -> None:
    from safetensors.torch import load_file

    lean, played, recorder = engines
    before = answers(played, ASKED[3:])
    count = recorder.count
    tensors = load_file(adapters[2] / "adapter_model.safetensors")
    for engine in (lean, played):
        engine.load_tensors(1, tensors, scaling=2.0)
    after = answers(played, ASKED[3:])
    agree(after, answers(lean, ASKED[3:]))
    assert after[0].token_ids != before[0].token_ids
    assert recorder.count - count <= 2  # both rows may meet at another moment, but nothing has moved


def test_a_linear_that_no_version_adapts_any_more_is_still_played(engines: Engines, adapters: list[Path]) -> None:
    from safetensors.torch import load_file

    lean, played, _ = engines
    for path in (adapters[2], adapters[1]):  # the first does not touch layer 1, as version 2 did and will again
        for engine in (lean, played):
            engine.load_tensors(2, load_file(path / "adapter_model.safetensors"), scaling=2.0)
        agree(answers(played, ASKED[2:3]), answers(lean, ASKED[2:3]))


def test_a_version_that_makes_others_move_is_seen(engines: Engines, adapters: list[Path]) -> None:
    lean, played, _ = engines
    agree(answers(played, ASKED), answers(lean, ASKED))
    moves = played._bank.moves
    for engine in (lean, played):
        engine.load(3, adapters[2])
    assert played._bank.moves > moves
    asked = [*ASKED, ("And the third?", 3)]
    agree(answers(played, asked), answers(lean, asked))


@pytest.mark.parametrize("kind", ["static", "lean"])
@torch.inference_mode()
def test_all_tensors_of_a_pass_are_on_the_models_device(
    tiny_model: Path, adapters: list[Path], monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """With the device that holds no content in a GPU's place: PyTorch refuses to compute with two devices."""
    cpu = load_backbone(resolve_model(str(tiny_model), tiny_model / "cache"), dtype="float32")
    weights = cpu.weights()
    backbone = replace(cpu, dtype=torch.bfloat16, device=torch.device("meta"))
    for module in (decoder, static):
        monkeypatch.setattr(module, "check_ids", lambda *_: None)
    monkeypatch.setattr(Backbone, "require_memory", lambda *_: None)
    monkeypatch.setattr(StaticDecoder, "_step", lambda self, step, cache: step())
    with FakeTensorMode(allow_non_fake_inputs=True) as fake:
        monkeypatch.setattr(Backbone, "weights", lambda _: {n: fake.from_tensor(t) for n, t in weights.items()})
        model = open_decoder(backbone, places=3, max_rank=8, kind=kind)
    lora = read_adapter(adapters[0], model.bank.shapes, max_rank=8, dtype=torch.bfloat16)
    layers: dict[str, tuple[Tensor, Tensor]] = {}
    for name, (a, b) in lora.layers.items():
        layers[name] = fake.from_tensor(a), fake.from_tensor(b)
    with fake:
        assert model.bank.install(1, model.bank.prepare(LoraWeights(layers)), keep=0)
        slots, prompt = model.slots(), model.prompt([0, 1], [5] * 7)
        model.bank.route([0, 1])
        for chunk in torch.full((2, 7), 5).split(4, dim=1):
            logits = model.forward(chunk, prompt)
        for source in (0, 1, 1):
            slots.adopt(prompt, source)
        assert (logits.device.type, logits.dtype, logits.shape[0]) == ("meta", torch.bfloat16, 2)
        for versions in ([0, 1, 1], [1, 1, 1]):
            model.bank.route(versions)
            logits = model.forward(torch.full((3, 1), 5), slots)
            assert (logits.device.type, logits.dtype, logits.shape[0]) == ("meta", torch.bfloat16, 3)


@pytest.mark.gpu
@gpu[1]
def test_a_server_on_a_gpu_answers_in_bfloat16(tiny_model: Path) -> None:
    backbone = load_backbone(resolve_model(str(tiny_model), tiny_model / "cache"), device="auto")
    assert (backbone.device.type, backbone.dtype) == ("cuda", torch.bfloat16)
    engine = LocalEngine(backbone)
    try:
        assert type(engine._decoder) is StaticDecoder
        outputs = answers(engine, [(text, 0) for text, _ in ASKED], Sampling(max_tokens=40, temperature=1.0))
        assert {o.finish_reason for o in outputs} <= {"stop", "length"}
    finally:
        engine.close()


@pytest.mark.gpu
@gpu[1]
def test_any_other_model_is_decoded_on_the_gpu_by_transformers(tiny_model: Path, adapters: list[Path]) -> None:
    model = resolve_model(str(tiny_model), tiny_model / "cache")
    outputs = []
    for device in ("cpu", "cuda"):
        engine = LocalEngine(load_backbone(model, dtype="float32", device=device), decoder="general")
        engine.load(1, adapters[0])
        outputs.append(answers(engine, [ask for ask in ASKED if ask[1] < 2]))
        engine.close()
    agree(*outputs)
