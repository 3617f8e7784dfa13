from __future__ import annotations

import asyncio
import math
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from torch import Tensor

from serve.engine import CandidateRequest, Engine, Event, Finished, Generation, Output, Token, local, lora_bank, slots
from serve.engine.decoders import KINDS
from serve.engine.generation import LocalGeneration
from serve.engine.local import LocalEngine
from serve.engine.lora_bank import Prepared
from serve.engine.lora_weights import read_adapter
from serve.engine.native.blocks import BLOCK
from serve.engine.slots import StaticSlots
from serve.errors import AdapterError, InvalidInput, NotFound, PromptTooLong, Unavailable
from serve.policy.base import Backbone, load_backbone, resolve_model
from serve.records import Message, Sampling

GREEDY = Sampling(max_tokens=24, temperature=0.0)
LONG = Sampling(max_tokens=600, temperature=1.0)
TIMEOUT = 20.0

MakeAdapter = Callable[..., Path]
MakeEngine = Callable[..., LocalEngine]


@pytest.fixture(scope="module")
def backbone(tiny_model: Path) -> Backbone:
    return load_backbone(resolve_model(str(tiny_model), tiny_model / "cache"), dtype="float32")


@pytest.fixture(scope="module")
def adapters(
    tiny_model: Path, tmp_path_factory: pytest.TempPathFactory, make_adapter: Callable[..., Path]
) -> dict[int, Path]:
    """Versions 1 to 3: of different ranks and layers."""
    root = tmp_path_factory.mktemp("adapters")
    return {
        1: make_adapter(root / "1", tiny_model, rank=4, layers=(2, 3), seed=1),
        2: make_adapter(root / "2", tiny_model, rank=2, layers=(1, 2, 3), seed=2),
        3: make_adapter(root / "3", tiny_model, rank=4, layers=(3,), seed=3),
    }


@pytest.fixture
def no_eos() -> None:
    """Asked for by name where answers are to run to max_tokens."""


@pytest.fixture
def make_engine(backbone: Backbone, request: pytest.FixtureRequest) -> Iterator[MakeEngine]:
    engines: list[LocalEngine] = []
    if "no_eos" in request.fixturenames:
        backbone = replace(backbone, eos_token_ids=frozenset())

    def make(**options: Any) -> LocalEngine:
        engines.append(LocalEngine(backbone, **options))
        return engines[-1]

    yield make
    for engine in engines:
        engine.close()


@pytest.fixture(params=KINDS)
def engine(make_engine: MakeEngine, adapters: dict[int, Path], request: pytest.FixtureRequest) -> LocalEngine:
    engine = make_engine(decoder=request.param)
    for version, path in adapters.items():
        engine.load(version, path)
    return engine


def prompt_of(engine: Engine, text: str) -> list[int]:
    return engine.encode([Message("user", text)])


def answer(
    engine: LocalEngine, prompt: Sequence[int], *candidates: tuple[int, int], sampling: Sampling = GREEDY
) -> tuple[Output, ...]:
    """`candidates` are (version, seed)."""
    return submit(engine, prompt, *candidates, sampling=sampling).result(TIMEOUT)


def submit(
    engine: LocalEngine, prompt: Sequence[int], *candidates: tuple[int, int], sampling: Sampling = GREEDY
) -> LocalGeneration:
    return engine.submit(prompt, [CandidateRequest(v, s) for v, s in candidates], sampling)


def generate(model: torch.nn.Module, prompt: Sequence[int], max_tokens: int) -> list[int]:
    """What transformers itself writes, greedily."""
    with torch.inference_mode():
        ids = model.generate(  # type: ignore[operator]
            input_ids=torch.tensor([list(prompt)]), max_new_tokens=max_tokens, do_sample=False
        )
    return [int(i) for i in ids[0, len(prompt) :]]


def collect(generation: Generation) -> list[Event]:
    return list(generation)


def text_of(events: Sequence[Event], index: int) -> str:
    return "".join(e.text for e in events if isinstance(e, Token) and e.index == index)


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + TIMEOUT
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.002)


def test_greedy_answers_are_those_of_transformers(engine: LocalEngine, backbone: Backbone) -> None:
    for text in ("Hello", "What is the capital of Kenya?", "ü"):
        prompt = prompt_of(engine, text)
        (output,) = answer(engine, prompt, (0, 1))
        assert list(output.token_ids) == generate(backbone.model, prompt, GREEDY.max_tokens)


@pytest.mark.parametrize("version", [1, 2, 3])
def test_an_adapters_greedy_answers_are_those_of_peft(
    engine: LocalEngine, backbone: Backbone, adapters: dict[int, Path], version: int
) -> None:
    prompt = prompt_of(engine, "Tell me about rivers.")
    (output,) = answer(engine, prompt, (version, 1))
    theirs = PeftModel.from_pretrained(backbone.view(), str(adapters[version]))
    assert list(output.token_ids) == generate(theirs, prompt, GREEDY.max_tokens)
    assert output.token_ids != answer(engine, prompt, (0, 1))[0].token_ids


def test_logprobs_are_the_models_at_the_sampling_temperature(engine: LocalEngine, backbone: Backbone) -> None:
    prompt = prompt_of(engine, "Sing")
    for sampling, temperature in ((Sampling(12, 0.7, top_k=5), 0.7), (Sampling(12, 0.0), 1.0)):
        (output,) = answer(engine, prompt, (0, 3), sampling=sampling)
        with torch.inference_mode():
            logits = backbone.model(input_ids=torch.tensor([[*prompt, *output.token_ids]])).logits[0]
        logprobs = torch.log_softmax(logits[len(prompt) - 1 : -1] / temperature, dim=-1)
        expected = logprobs.gather(-1, torch.tensor(output.token_ids)[:, None])[:, 0]
        # llama.c keeps keys and values as half floats
        torch.testing.assert_close(torch.tensor(output.logprobs), expected, rtol=0, atol=2e-2)


@pytest.mark.usefixtures("no_eos")
def test_versions_decode_in_the_same_step_and_each_as_if_alone(engine: LocalEngine) -> None:
    prompt = prompt_of(engine, "Two of you, please.")
    alone = [answer(engine, prompt, (version, 1))[0] for version in (0, 1, 2, 3)]
    generation = submit(engine, prompt, (0, 1), (1, 1), (2, 1), (3, 1))
    events = collect(generation)
    steps = [[e.step for e in events if isinstance(e, Token) and e.index == index] for index in range(4)]
    assert steps[0] == steps[1] == steps[2] == steps[3]
    assert len(set(steps[0])) == GREEDY.max_tokens
    assert [o.token_ids for o in generation.result()] == [o.token_ids for o in alone]
    assert [o.version for o in generation.result()] == [0, 1, 2, 3]


@pytest.mark.usefixtures("no_eos")
def test_who_joins_or_leaves_midway_changes_nobodys_answer(engine: LocalEngine) -> None:
    prompts = [prompt_of(engine, "word " * n) for n in (1, 30, 5, 12)]
    samplings = [Sampling(n, 0.0) for n in (80, 20, 50, 9)]
    alone = [
        answer(engine, p, (i % 3, 1), sampling=s)[0].token_ids
        for i, (p, s) in enumerate(zip(prompts, samplings, strict=True))
    ]
    together = []
    first_steps = []
    for i, (prompt, sampling) in enumerate(zip(prompts, samplings, strict=True)):
        generation = submit(engine, prompt, (i % 3, 1), sampling=sampling)
        first_steps.append(_first_token(generation).step)
        together.append(generation)
    assert [g.result(TIMEOUT)[0].token_ids for g in together] == alone
    assert first_steps == sorted(set(first_steps))


def _first_token(generation: Generation) -> Token:
    event = next(iter(generation))
    assert isinstance(event, Token)
    return event


def test_the_same_seed_gives_the_same_answer_alone_and_in_a_batch(engine: LocalEngine) -> None:
    sampling = Sampling(max_tokens=40, temperature=1.0)
    prompt = prompt_of(engine, "Roll a die.")
    alone = [answer(engine, prompt, (1, seed), sampling=sampling)[0].token_ids for seed in range(4)]
    others = [submit(engine, prompt_of(engine, "noise"), (v, 9), sampling=sampling) for v in (0, 1, 2)]
    together = answer(engine, prompt, *((1, seed) for seed in range(4)), sampling=sampling)
    assert [o.token_ids for o in together] == alone
    assert len(set(alone)) == 4
    for other in others:
        other.result(TIMEOUT)


@pytest.mark.usefixtures("no_eos")
def test_a_long_prompt_in_chunks_gives_the_same_answer(
    engine: LocalEngine, backbone: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local, "PREFILL_TOKENS", 32)
    prompt = prompt_of(engine, "A long story. " * 30)
    outputs = answer(engine, prompt, (0, 1), (1, 1), (0, 1))
    expected = generate(backbone.model, prompt, GREEDY.max_tokens)
    assert list(outputs[0].token_ids) == list(outputs[2].token_ids) == expected
    assert outputs[1].token_ids != outputs[0].token_ids


def count_tokens(engine: LocalEngine, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Tokens a row of each forward pass from here on."""
    passed: list[int] = []
    forward = engine._decoder.forward

    def counted(token_ids: Tensor, cache: Any) -> Tensor:
        passed.append(token_ids.shape[1])
        return forward(token_ids, cache)

    monkeypatch.setattr(engine._decoder, "forward", counted)
    return passed


@pytest.mark.usefixtures("no_eos")
def test_beside_a_stream_a_turn_computes_a_bounded_piece_of_the_waiting_prompts(
    make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = make_engine(batch_rows=6)
    stream = submit(engine, prompt_of(engine, "First"), (0, 1), (0, 2), sampling=Sampling(max_tokens=400))
    wait_until(lambda: len(stream.candidates[0].token_ids) > 2)
    passes: list[tuple[int, bool]] = []  # tokens of a pass, and whether it is a step of the running rows
    forward = engine._decoder.forward

    def noted(token_ids: Tensor, cache: Any) -> Tensor:
        passes.append((token_ids.numel(), cache is engine._slots))
        return forward(token_ids, cache)

    monkeypatch.setattr(engine._decoder, "forward", noted)
    others = [submit(engine, prompt_of(engine, f"{word} " * 40), (0, 1)) for word in ("one", "two")]
    for other in others:
        other.result(TIMEOUT)
    assert not stream.candidates[0].finish_reason, "the stream was over too soon to tell"
    stream.cancel()
    turns, piece = [], 0
    for tokens, is_step in passes:
        if is_step:
            turns.append(piece + tokens)
            piece = 0
        else:
            piece += tokens
    assert max(turns) <= 14  # a batch of 6, and 8 more
    assert sum(turn >= 13 for turn in turns) > 5  # the one that is read will be a row, too


@pytest.mark.usefixtures("no_eos")
def test_prompts_rest_while_an_adapter_is_read_but_not_for_long(
    make_engine: MakeEngine, adapters: dict[int, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = make_engine(batch_rows=6)
    stream = submit(engine, prompt_of(engine, "First"), (0, 1), sampling=Sampling(max_tokens=900))
    wait_until(lambda: len(stream.candidates[0].token_ids) > 2)
    forward = engine._decoder.forward
    seen: list[int] = []

    def slow_forward(token_ids: Tensor, cache: Any) -> Tensor:
        time.sleep(0.005)
        return forward(token_ids, cache)

    def slow_read(*arguments: Any, **options: Any) -> Any:
        other = submit(engine, prompt_of(engine, "Second"), (0, 1), sampling=Sampling(max_tokens=4))
        time.sleep(0.1)
        seen.append(len(other.candidates[0].token_ids))
        seen.append(len(other.result(TIMEOUT)[0].token_ids))  # although this adapter is still being read
        return read_adapter(*arguments, **options)

    monkeypatch.setattr(engine._decoder, "forward", slow_forward)
    monkeypatch.setattr(local, "read_adapter", slow_read)
    monkeypatch.setattr(local, "LOADING_REST", 0.5)
    engine.load(1, adapters[1])
    assert seen == [0, 4]
    assert not stream.candidates[0].finish_reason, "the stream was over too soon to tell"
    stream.cancel()


def test_a_prompt_that_cannot_begin_ends_alone_and_leaves_nothing_behind(
    engine: LocalEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompt = prompt_of(engine, "Trouble")
    with monkeypatch.context() as patch:
        patch.setattr(engine._decoder, "prompt", lambda *_: (_ for _ in ()).throw(MemoryError("no room")))
        (output,) = answer(engine, prompt, (1, 1))
    assert output.finish_reason == "error"
    assert engine.waiting == 0
    assert engine._bank._in_flight[1] == 0
    assert answer(engine, prompt, (1, 1))[0].finish_reason != "error"


@pytest.mark.usefixtures("no_eos")
def test_the_next_turn_computes_only_what_is_new_and_says_the_same(
    make_engine: MakeEngine, adapters: dict[int, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    remembering, plain = make_engine(cache_tokens=1000), make_engine()
    for engine in (remembering, plain):
        engine.load(1, adapters[1])
    sampling = Sampling(max_tokens=40, temperature=1.0)
    prompt = prompt_of(remembering, "Tell me a story that is long enough to fill some blocks of tokens.")
    first = answer(remembering, prompt, (1, 1), (1, 2), sampling=sampling)
    talk = [*prompt, *first[1].token_ids, *prompt_of(remembering, "And then?")]
    passed = count_tokens(remembering, monkeypatch)
    again = answer(remembering, talk, (1, 3), (1, 4), sampling=sampling)
    assert again == answer(plain, talk, (1, 3), (1, 4), sampling=sampling)
    known = (len(prompt) + 40 - 1) // BLOCK * BLOCK
    assert passed[0] == len(talk) - known < len(talk) / 2

    passed.clear()  # another version knows nothing of it, and both go from the beginning
    assert answer(remembering, talk, (0, 3), (1, 3), sampling=sampling) == answer(
        plain, talk, (0, 3), (1, 3), sampling=sampling
    )
    assert passed[0] == len(talk)


@pytest.mark.usefixtures("no_eos")
def test_weights_that_replace_others_do_not_go_on_from_their_past(
    make_engine: MakeEngine, adapters: dict[int, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = make_engine(cache_tokens=1000)
    prompt = prompt_of(engine, "Tell me a story that is long enough to fill some blocks of tokens.")
    sampling = Sampling(max_tokens=5, temperature=0.0)
    answers = []
    for version in (1, 2, 1):
        tensors = load_file(adapters[version] / "adapter_model.safetensors")
        engine.load_tensors(7, tensors, scaling=2.0)
        passed = count_tokens(engine, monkeypatch)
        answers.append(answer(engine, prompt, (7, 0), sampling=sampling)[0].logprobs)
        assert passed[0] == len(prompt)
    assert answers[0] == answers[2] != answers[1]


def test_sync_and_async_iteration_and_result_tell_the_same(engine: LocalEngine) -> None:
    sampling = Sampling(max_tokens=30, temperature=1.0)
    prompt = prompt_of(engine, "Say something.")

    async def listen() -> list[Event]:
        return [event async for event in submit(engine, prompt, (0, 5), (1, 6), sampling=sampling)]

    heard, read = asyncio.run(listen()), collect(submit(engine, prompt, (0, 5), (1, 6), sampling=sampling))
    outputs = answer(engine, prompt, (0, 5), (1, 6), sampling=sampling)
    for events in (heard, read):
        for index, output in enumerate(outputs):
            mine = [e for e in events if e.index == index]
            assert text_of(events, index) == output.text
            assert tuple(e.token_id for e in mine if isinstance(e, Token)) == output.token_ids
            assert mine[-1] == Finished(index, output.finish_reason)


def test_an_answer_that_reaches_eos_ends_with_stop_and_keeps_the_eos_id(
    engine: LocalEngine, backbone: Backbone
) -> None:
    prompt = prompt_of(engine, "Bye")
    sampling = Sampling(max_tokens=700, temperature=1.5)
    outputs = answer(engine, prompt, *((0, seed) for seed in range(6)), sampling=sampling)
    stopped = [o for o in outputs if o.finish_reason == "stop"]
    assert stopped
    for output in stopped:
        assert output.token_ids[-1] in backbone.eos_token_ids
        assert not set(output.token_ids[:-1]) & backbone.eos_token_ids
        assert "<|im_end|>" not in output.text
        assert output.text == backbone.tokenizer.decode(list(output.token_ids), skip_special_tokens=True)


def test_a_stop_string_ends_the_answer_and_is_never_shown(engine: LocalEngine) -> None:
    prompt = prompt_of(engine, "Count")
    (whole,) = answer(engine, prompt, (1, 1))
    stop = whole.text[5:8]
    generation = submit(engine, prompt, (1, 1), sampling=Sampling(24, 0.0, stop=(stop, "never said")))
    events = collect(generation)
    (output,) = generation.result()
    assert output.finish_reason == "stop"
    assert output.text == text_of(events, 0) == whole.text[: whole.text.index(stop)]
    assert len(output.token_ids) < len(whole.token_ids)


@pytest.mark.usefixtures("no_eos")
def test_cancelling_one_candidate_frees_its_row_and_leaves_the_others(make_engine: MakeEngine) -> None:
    engine = make_engine(batch_rows=2)
    prompt = prompt_of(engine, "Go on")
    generation = submit(engine, prompt, (0, 1), (0, 2), sampling=LONG)
    waiting = submit(engine, prompt, (0, 1))
    events = iter(generation)
    next(events)
    generation.cancel(1)
    generation.cancel(1)
    (output,) = waiting.result(TIMEOUT)  # took the freed row while candidate 0 still ran
    assert len(output.token_ids) == GREEDY.max_tokens
    generation.cancel()
    rest = list(events)
    ends = [e for e in rest if isinstance(e, Finished)]
    assert [(e.index, e.finish_reason) for e in ends] == [(1, "cancelled"), (0, "cancelled")]
    assert len(generation.result()[0].token_ids) > len(generation.result()[1].token_ids)


@pytest.mark.usefixtures("no_eos")
def test_a_cancelled_candidate_ends_within_a_step(engine: LocalEngine) -> None:
    generation = submit(engine, prompt_of(engine, "Go on"), (0, 1), (1, 1), sampling=LONG)
    events = iter(generation)
    next(events)
    generation.cancel(0)
    step_at_cancel = engine._step
    rest = []
    for event in events:
        rest.append(event)
        if isinstance(event, Finished):
            break
    generation.cancel()
    later = [e.step for e in rest if isinstance(e, Token) and e.index == 0 and e.step > step_at_cancel + 1]
    assert not later


@pytest.mark.usefixtures("no_eos")
def test_what_waits_is_counted_can_be_cancelled_and_is_bounded(make_engine: MakeEngine) -> None:
    engine = make_engine(batch_rows=1, queue_limit=2)
    prompt = prompt_of(engine, "Wait")
    running = submit(engine, prompt, (0, 1), sampling=LONG)
    next(iter(running))
    waiting = [submit(engine, prompt, (0, seed)) for seed in (1, 2)]
    assert engine.waiting == 2
    with pytest.raises(Unavailable, match="2 requests are waiting"):
        submit(engine, prompt, (0, 3))
    waiting[0].cancel()
    assert waiting[0].result(TIMEOUT)[0].finish_reason == "cancelled"
    assert engine.waiting == 1
    running.cancel()
    assert waiting[1].result(TIMEOUT)[0].finish_reason == "length"
    assert engine.waiting == 0


@pytest.mark.usefixtures("no_eos")
def test_a_place_in_line_moves_up_as_those_before_it_leave(make_engine: MakeEngine) -> None:
    engine = make_engine(batch_rows=1)
    prompt = prompt_of(engine, "Wait")
    running = submit(engine, prompt, (0, 1), sampling=LONG)
    next(iter(running))
    waiting = [submit(engine, prompt, (0, seed), sampling=LONG) for seed in (1, 2, 3)]
    assert [g.place for g in (running, *waiting)] == [0, 1, 2, 3]
    waiting[1].cancel()
    waiting[1].result(TIMEOUT)
    assert [g.place for g in (running, *waiting)] == [0, 1, 0, 2]
    running.cancel()
    next(iter(waiting[0]))
    assert [g.place for g in (running, *waiting)] == [0, 0, 0, 1]


def test_what_cannot_be_answered_is_refused_at_once(engine: LocalEngine) -> None:
    prompt = prompt_of(engine, "Hi")
    room = engine.context_length - len(prompt)
    with pytest.raises(PromptTooLong, match=rf"{len(prompt)} tokens .* {room + 1}, .* 1024"):
        submit(engine, prompt, (0, 1), sampling=Sampling(max_tokens=room + 1))
    with pytest.raises(NotFound, match="version 9"):
        submit(engine, prompt, (0, 1), (9, 1))
    with pytest.raises(NotFound, match="version 9"):
        engine.serve(9)
    for refused in (([], [(0, 1)], GREEDY), (prompt, [], GREEDY), (prompt, [(0, 1)], Sampling(max_tokens=0))):
        with pytest.raises(InvalidInput):
            submit(engine, refused[0], *refused[1], sampling=refused[2])


@pytest.mark.usefixtures("no_eos")
def test_the_last_place_of_the_context_can_be_filled(engine: LocalEngine) -> None:
    prompt = prompt_of(engine, "x" * 940)
    sampling = Sampling(max_tokens=engine.context_length - len(prompt), temperature=0.0)
    (filled,) = answer(engine, prompt, (0, 1), sampling=sampling)
    assert filled.finish_reason == "length"
    assert len(prompt) + len(filled.token_ids) == engine.context_length


@pytest.mark.usefixtures("no_eos")
def test_a_hot_swap_during_five_streams_drops_none_and_mixes_none(
    make_engine: MakeEngine, adapters: dict[int, Path]
) -> None:
    engine = make_engine(places=3)  # the base, 1 and one more: version 3 has to wait for the place of 2
    engine.load(1, adapters[1])
    engine.load(2, adapters[2])
    engine.serve(1)
    prompts = [prompt_of(engine, f"stream {i}") for i in range(5)]
    sampling = Sampling(max_tokens=60, temperature=0.0)
    versions = [1, 2, 1, 2, 1]
    alone = [answer(engine, p, (v, 1), sampling=sampling)[0].token_ids for p, v in zip(prompts, versions, strict=True)]
    streams = [submit(engine, p, (v, 1), sampling=sampling) for p, v in zip(prompts, versions, strict=True)]
    for stream in streams:
        _first_token(stream)
    engine.load(3, adapters[3])
    engine.serve(3)
    assert engine.serving == 3
    after = answer(engine, prompts[0], (engine.serving, 1), sampling=sampling)[0]
    assert [s.result(TIMEOUT)[0].token_ids for s in streams] == alone
    assert after.version == 3
    assert after.token_ids != alone[0]
    with pytest.raises(NotFound):  # the place of 2 was needed
        submit(engine, prompts[0], (2, 1))


@pytest.mark.usefixtures("no_eos")
def test_a_load_that_finds_no_place_in_time_is_refused_and_can_be_repeated(
    make_engine: MakeEngine, adapters: dict[int, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local, "INSTALL_TIMEOUT", 0.05)
    engine = make_engine(places=3)
    engine.load(1, adapters[1])
    engine.load(2, adapters[2])
    prompt = prompt_of(engine, "Busy")
    busy = submit(engine, prompt, (1, 1), (2, 1), sampling=LONG)
    with pytest.raises(Unavailable, match="version 3"):
        engine.load(3, adapters[3])
    busy.cancel()
    busy.result(TIMEOUT)
    engine.load(3, adapters[3])
    assert answer(engine, prompt, (3, 1))[0].finish_reason == "length"


def test_a_broken_adapter_is_refused_and_the_old_one_keeps_answering(
    engine: LocalEngine, adapters: dict[int, Path], tmp_path: Path
) -> None:
    prompt = prompt_of(engine, "Still there?")
    before = answer(engine, prompt, (1, 1))[0]
    tensors = load_file(adapters[1] / "adapter_model.safetensors")
    name = next(n for n in tensors if "lora_B" in n)
    tensors[name][0, 0] = math.nan
    (tmp_path / "adapter_config.json").write_bytes((adapters[1] / "adapter_config.json").read_bytes())
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    with pytest.raises(AdapterError, match="NaN"):
        engine.load(4, tmp_path)
    with pytest.raises(AdapterError, match="version 4"):
        engine.load(4, None)
    after = answer(engine, prompt, (1, 1))[0]
    assert after.token_ids == before.token_ids
    # Weights may be packed between the two answers, which rounds differently.
    assert after.logprobs == pytest.approx(before.logprobs, abs=1e-4)
    with pytest.raises(NotFound):
        submit(engine, prompt, (4, 1))


def _lora_tensors(path: Path) -> dict[str, Tensor]:
    return load_file(path / "adapter_model.safetensors")


def test_tensors_in_memory_answer_like_the_file_and_are_replaced_between_rollouts(
    engine: LocalEngine, adapters: dict[int, Path]
) -> None:
    prompt = prompt_of(engine, "Roll out")
    for version in (1, 3, 1):
        engine.load_tensors(7, _lora_tensors(adapters[version]), scaling=2.0)
        assert answer(engine, prompt, (7, 1))[0].token_ids == answer(engine, prompt, (version, 1))[0].token_ids
    with pytest.raises(AdapterError):
        engine.load_tensors(0, _lora_tensors(adapters[1]), scaling=2.0)


@pytest.mark.usefixtures("no_eos")
def test_replacing_a_version_waits_for_the_answers_it_is_writing(
    engine: LocalEngine, adapters: dict[int, Path]
) -> None:
    prompt = prompt_of(engine, "Not mixed")
    sampling = Sampling(max_tokens=60, temperature=0.0)
    (alone,) = answer(engine, prompt, (1, 1), sampling=sampling)
    engine.load_tensors(7, _lora_tensors(adapters[1]), scaling=2.0)
    running = submit(engine, prompt, (7, 1), sampling=sampling)
    _first_token(running)
    engine.load_tensors(7, _lora_tensors(adapters[2]), scaling=2.0)
    assert running.result(timeout=0)[0].token_ids == alone.token_ids
    assert answer(engine, prompt, (7, 1), sampling=sampling)[0].token_ids != alone.token_ids


def test_a_failing_step_ends_its_answers_with_error_and_the_next_request_works(
    engine: LocalEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompt = prompt_of(engine, "Trouble")
    expected = answer(engine, prompt, (0, 1))[0].token_ids
    forward = engine._decoder.forward
    calls = iter(range(100))

    def fail_in_the_third_step(token_ids: Tensor, cache: object) -> Tensor:
        if next(calls) == 3:
            raise RuntimeError("out of memory")
        return forward(token_ids, cache)

    monkeypatch.setattr(engine._decoder, "forward", fail_in_the_third_step)
    events = collect(submit(engine, prompt, (0, 1), (1, 1)))
    ends = [e for e in events if isinstance(e, Finished)]
    assert [e.finish_reason for e in ends] == ["error", "error"]
    assert all("out of memory" in (e.error or "") for e in ends)
    assert answer(engine, prompt, (0, 1))[0].token_ids == expected


@pytest.mark.usefixtures("no_eos")
def test_a_failing_prompt_ends_alone(engine: LocalEngine) -> None:
    running = submit(engine, prompt_of(engine, "Fine"), (0, 1), sampling=Sampling(200, 0.0))
    (broken,) = answer(engine, [10**6], (0, 1))
    assert broken.finish_reason == "error"
    assert running.result(TIMEOUT)[0].finish_reason == "length"


def test_a_weight_that_cannot_be_laid_out_costs_speed_and_no_answer(
    make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> bool:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(lora_bank.LoraBank, "settle", fail)
    engine = make_engine(decoder="lean")
    deadline = time.monotonic() + TIMEOUT
    while engine._unsettled:
        assert engine._thread.is_alive()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert answer(engine, prompt_of(engine, "Still there?"), (0, 1))[0].finish_reason in ("stop", "length")


@pytest.mark.usefixtures("no_eos")
def test_memory_that_ends_while_a_prompt_joins_breaks_no_later_one(
    make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = make_engine(decoder="lean")
    prompt = prompt_of(engine, "Trouble")

    def grow_by_half(self: slots.Slots, *_: int) -> None:
        self._values = []
        raise RuntimeError("out of memory")

    with monkeypatch.context() as patch:
        patch.setattr(slots.Slots, "_reserve", grow_by_half)
        assert answer(engine, prompt, (0, 1))[0].finish_reason == "error"
    assert answer(engine, prompt, (0, 1))[0].finish_reason == "length"


def test_a_waiting_adapter_is_found_by_identity() -> None:
    """Weights are tensors, which have no plain truth to compare by."""
    first, second = (local._Install(1, Prepared([torch.ones(2)]), True, Future()) for _ in range(2))
    assert [first, second].index(second) == 1


@pytest.mark.usefixtures("no_eos")
def test_a_version_that_computes_nan_fails_alone_and_leaves_no_trace(
    make_engine: MakeEngine, adapters: dict[int, Path]
) -> None:
    engine = make_engine(batch_rows=2)
    tensors = {name: t * 1e30 for name, t in _lora_tensors(adapters[1]).items()}  # finite, but its products are not
    engine.load_tensors(5, tensors, scaling=1.0)
    prompt = prompt_of(engine, "Overflow")
    expected = answer(engine, prompt, (0, 1))[0].token_ids
    good, bad = answer(engine, prompt, (0, 1), (5, 1))
    assert bad.finish_reason == "error"
    assert good.token_ids == expected
    assert [o.token_ids for o in answer(engine, prompt, (0, 1), (0, 2))] == [expected, expected]


@pytest.mark.usefixtures("no_eos")
def test_closing_cancels_everything_and_refuses_what_comes_after(
    make_engine: MakeEngine, adapters: dict[int, Path]
) -> None:
    engine = make_engine(batch_rows=1)
    prompt = prompt_of(engine, "The end")
    generations = [submit(engine, prompt, (0, 1), sampling=LONG) for _ in range(3)]
    _first_token(generations[0])
    engine.close()
    engine.close()
    assert [g.result(TIMEOUT)[0].finish_reason for g in generations] == ["cancelled"] * 3
    with pytest.raises(Unavailable):
        submit(engine, prompt, (0, 1))
    with pytest.raises(Unavailable):
        engine.load(1, adapters[1])


def test_a_listener_whose_event_loop_is_gone_does_not_stop_the_engine(no_eos: None, engine: LocalEngine) -> None:
    prompt = prompt_of(engine, "Anyone?")
    before = submit(engine, prompt, *((0, seed) for seed in range(16)), sampling=LONG)  # the whole batch
    generation = submit(engine, prompt, (0, 1))

    async def listen_briefly() -> None:
        with suppress(TimeoutError):
            await asyncio.wait_for(anext(aiter(generation)), 0.05)

    asyncio.run(listen_briefly())
    assert generation._wake_loop is not None, "it has not begun"
    before.cancel()
    wait_until(lambda: generation._wake_loop is None)  # the engine has met the closed loop
    generation.cancel()
    assert answer(engine, prompt_of(engine, "Next"), (0, 1))


def test_many_threads_get_the_answers_they_asked_for(engine: LocalEngine) -> None:
    asked = [(prompt_of(engine, f"thread {i}"), i % 4) for i in range(8)]
    expected = [answer(engine, p, (v, 1))[0].token_ids for p, v in asked]
    barrier = threading.Barrier(len(asked))

    def ask(request: tuple[list[int], int]) -> tuple[int, ...]:
        barrier.wait(TIMEOUT)
        return answer(engine, request[0], (request[1], 1))[0].token_ids

    with ThreadPoolExecutor(len(asked)) as threads:
        assert list(threads.map(ask, asked)) == expected


def test_memory_of_finished_rows_is_given_back_or_used_again(engine: LocalEngine) -> None:
    answer(engine, prompt_of(engine, "Big " * 50), (0, 1), (1, 2))
    slots: Any = engine._slots
    if isinstance(slots, StaticSlots):
        moves = slots.moves
        answer(engine, prompt_of(engine, "Big " * 50), (0, 1), (1, 2))
        assert slots.moves == moves
        return
    wait_until(lambda: not (slots.sequences if hasattr(slots, "sequences") else slots._keys))
