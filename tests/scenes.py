"""Little scenes on a record: somebody asks, answers are written, somebody judges."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

from serve.feedback.store import NewCandidate, Store
from serve.records import Comparison, FinishReason, Judgement, Message, Sampling, Verdict, VoteReceipt


class Clock:
    """A clock that a test moves; it ticks a millisecond a look, so that rows have an order."""

    def __init__(self) -> None:
        self.time = datetime(2026, 7, 4, 12, 0, tzinfo=UTC)

    def __call__(self) -> datetime:
        self.time += timedelta(milliseconds=1)
        return self.time

    def pass_by(self, **time: float) -> None:
        """Let hours or minutes go by."""
        self.time += timedelta(**time)


def user(text: str) -> Message:
    """A user's message."""
    return Message("user", text)


def assistant(text: str) -> Message:
    """An assistant's message."""
    return Message("assistant", text)


def finish(store: Store, answer_id: str, text: str, reason: FinishReason = "stop") -> None:
    """End an answer; its token ids are its characters, with an EOS (2) when it stopped."""
    ids = [ord(c) for c in text] + ([2] if reason == "stop" else [])
    store.finish_answer(answer_id, text=text, token_ids=ids, logprobs=[-0.5] * len(ids), finish_reason=reason)


def open_comparison(
    store: Store,
    voter: str = "anna",
    prompt: str | Sequence[Message] = "Why is the sea blue?",
    *,
    versions: Sequence[int] = (0, 0),
    conversation_id: str | None = None,
    share: bool = False,
    evidence: bool = True,
    sampling: Sampling | None = None,
) -> Comparison:
    """Ask, and start a comparison whose answers are still empty."""
    messages = [user(prompt)] if isinstance(prompt, str) else prompt
    ref = store.record_prompt(voter, messages, conversation_id=conversation_id, share=share)
    candidates = [NewCandidate(version, seed) for seed, version in enumerate(versions)]
    return store.create_comparison(voter, ref, candidates, sampling or Sampling(), evidence=evidence)


def compare(
    store: Store,
    voter: str = "anna",
    prompt: str | Sequence[Message] = "Why is the sea blue?",
    texts: Sequence[str] = ("Light.", "Water."),
    *,
    versions: Sequence[int] | None = None,
    conversation_id: str | None = None,
    share: bool = False,
    evidence: bool = True,
    sampling: Sampling | None = None,
) -> Comparison:
    """Ask, and have all candidates answered: a comparison ready for its vote."""
    made = open_comparison(
        store,
        voter,
        prompt,
        versions=versions or [0] * len(texts),
        conversation_id=conversation_id,
        share=share,
        evidence=evidence,
        sampling=sampling,
    )
    for candidate, text in zip(made.candidates, texts, strict=True):
        finish(store, candidate.answer.id, text)
    return store.comparison(made.id, voter)


def ranking(comparison: Comparison, *groups: Sequence[int]) -> Judgement:
    """A ranking by position: `ranking(c, [1], [0])` prefers the right one."""
    return Judgement(tuple(tuple(comparison.candidates[i].id for i in group) for group in groups))


def prefer(store: Store, comparison: Comparison, position: int) -> VoteReceipt:
    """Put one candidate first and the rest behind it."""
    rest = [c.position for c in comparison.candidates if c.position != position]
    return store.add_vote(comparison.id, comparison.voter_id, ranking(comparison, [position], *([i] for i in rest)))


def say(store: Store, comparison: Comparison, verdict: Verdict) -> VoteReceipt:
    """Give a verdict."""
    return store.add_vote(comparison.id, comparison.voter_id, Judgement(verdict=verdict))


def add_versions(store: Store, count: int) -> None:
    """Versions 1 to `count`, staged."""
    for _ in range(count):
        store.add_version(run=None, parent=0, status="staged", report={}, sha256="00")


def three_votes(store: Store) -> list[str]:
    """Three votes by two voters; the last compares versions 1 and 0."""
    add_versions(store, 1)
    return [
        prefer(store, compare(store, prompt="Why is the sea blue?"), 0).id,
        say(store, compare(store, "ben", "100% of what?"), "tie").id,
        prefer(store, compare(store, "ben", "And the sky?", versions=(1, 0)), 1).id,
    ]
