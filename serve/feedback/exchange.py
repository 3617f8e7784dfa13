r"""Datasets out and in, as JSON lines.

trl     {"prompt": [message…], "chosen": [message], "rejected": [message]}; in also plain strings, and both sides whole
hh      {"chosen": "\n\nHuman: …\n\nAssistant: …", "rejected": …}, as in Anthropic's HH; a system message goes first
kto     {"prompt": [message…], "completion": [message], "label": true}; in also plain strings
sft     {"messages": [message…]}, the last one the assistant's: demonstrations; in also {"prompt": …, "completion": …}
arena   {"model_a", "model_b", "winner", "judge", "conversation_a", "conversation_b", …}, as in LMSYS's arena

Going out, voters are pseudonyms and every pair that a ranking implies is a row; in kto each answer is a row, good where
it is ranked first. Going in, a file is taken whole or not at all, and its votes are no evidence; on request they come
in as demonstrations of the answers ranked first. Rows whose two sides are equal, or answer different prompts, say
nothing about one prompt: they are left out and counted, and so are demonstrations that were imported before. A file
that came in whole is refused when it comes again. Plain prompts may have several turns under HH's marks.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from itertools import pairwise
from typing import Any

from serve.errors import InvalidInput
from serve.feedback.ballots import ballots, demonstrations, pseudonyms
from serve.feedback.entries import Ballot, BallotAnswer, ImportCounts, NewBallot, NewDemonstration
from serve.feedback.store import Store
from serve.records import FORMATS, READINGS, STYLES, Format, Message

Row = dict[str, Any]
Item = NewBallot | NewDemonstration
Talk = tuple[Message, ...]

SPEAKERS = {"Human": "user", "Assistant": "assistant"}
ARENA_TIES = {"tie": "tie", "tie (bothbad)": "both_bad", "both_bad": "both_bad", "bothbad": "both_bad"}


def export(store: Store, format: str, style: str = "conversational") -> Iterator[str]:
    """The record's standing votes (or, for sft, its demonstrations) as lines that end in a newline.

    In the style `plain` prompts and answers of trl, kto and sft are texts: of several turns with HH's marks, and sft
    as prompt and completion. The lines are of one moment, however slowly they are taken. Raises InvalidInput for an
    unknown format or style, at once.
    """
    rows = _EXPORTS[_known(format)]
    if style not in STYLES:
        raise InvalidInput(f"style is one of {', '.join(STYLES)}")
    shape = _in_words if style == "plain" else _as_it_is
    return (json.dumps(shape(row), ensure_ascii=False) + "\n" for row in rows(store))


def import_lines(
    store: Store,
    lines: str | bytes | Iterable[str | bytes],
    format: str,
    reading: str = "whole",
    *,
    who: str = "operator",
) -> ImportCounts:
    """Store a dataset whole, and log who brought it; blank lines are passed over. `reading` is one of `READINGS`.

    Raises InvalidInput naming the line that cannot be used, and Conflict where the same lines were read the same way
    before; then nothing is stored.
    """
    parse = _IMPORTS[_known(format)]
    if reading not in READINGS:
        raise InvalidInput(f"as is one of {', '.join(READINGS)}")
    if isinstance(lines, bytes):
        lines = lines.split(b"\n")
    elif isinstance(lines, str):
        lines = lines.split("\n")  # splitlines would also cut at separators that JSON allows inside strings
    rows = _Rows(lines)
    items: list[Item] = []
    skipped = 0
    try:
        for item in parse(rows):
            found = [] if item is None else _read(item, reading)
            skipped += not found
            items += found
    except InvalidInput as error:
        raise InvalidInput(str(error), line=rows.line) from error
    if not rows.seen:
        raise InvalidInput("there is nothing to import; send one JSON object a line")
    rows.sha256.update(f"{format} as {reading}".encode())
    counts = store.add_imported(items, rows.sha256.hexdigest(), who=who, format=format)
    return replace(counts, skipped=counts.skipped + skipped)


class _Rows:
    """Iterates the JSON objects of a file and knows the line it has reached, and the hash of those up to there."""

    def __init__(self, lines: Iterable[str | bytes]) -> None:
        self._lines = lines
        self.line = 0
        self.seen = 0
        self.sha256 = hashlib.sha256()

    def __iter__(self) -> Iterator[Row]:
        for raw in self._lines:
            self.line += 1
            text = _text(raw).removeprefix("\ufeff").strip()
            if not text:
                continue
            self.seen += 1
            self.sha256.update(f"{text}\n".encode())
            try:
                row = json.loads(text)
            except json.JSONDecodeError as error:
                raise InvalidInput(f"not JSON ({error.msg} at character {error.colno})") from error
            except ValueError as error:  # a number of thousands of digits
                raise InvalidInput(f"not JSON that can be read ({error})") from error
            except RecursionError as error:
                raise InvalidInput("nested too deeply") from error
            if not isinstance(row, dict):
                raise InvalidInput("not a JSON object")
            yield row


def _known(name: str) -> Format:
    for known in FORMATS:
        if name == known:
            return known
    raise InvalidInput(f"format is one of {', '.join(FORMATS)}")


# Out


def _judged(store: Store) -> Iterator[Ballot]:
    with store.reading() as db:
        yield from ballots(db)


def _trl_rows(store: Store) -> Iterator[Row]:
    for ballot in _judged(store):
        for chosen, rejected in ballot.pairs():
            yield {"prompt": _plain(ballot.messages), "chosen": _said(chosen), "rejected": _said(rejected)}


def _hh_rows(store: Store) -> Iterator[Row]:
    for ballot in _judged(store):
        for chosen, rejected in ballot.pairs():
            yield {"chosen": _hh(ballot.messages, chosen.text), "rejected": _hh(ballot.messages, rejected.text)}


def _kto_rows(store: Store) -> Iterator[Row]:
    for ballot in _judged(store):
        labels: list[tuple[BallotAnswer, bool]] = []
        if ballot.verdict == "both_bad":
            labels = [(answer, False) for answer in ballot.answers]
        elif ballot.groups is not None and len(ballot.groups) > 1:
            labels = [(ballot.answers[i], group is ballot.groups[0]) for group in ballot.groups for i in group]
        for answer, label in labels:
            yield {"prompt": _plain(ballot.messages), "completion": _said(answer), "label": label}


def _sft_rows(store: Store) -> Iterator[Row]:
    with store.reading() as db:
        for _, messages, answer in demonstrations(db):
            yield {"messages": _plain((*messages, Message("assistant", answer)))}


def _arena_rows(store: Store) -> Iterator[Row]:
    with store.reading() as db:
        judges = pseudonyms(db)
        for ballot in ballots(db):
            rank = {i: place for place, group in enumerate(ballot.groups or ()) for i in group}
            for i, a in enumerate(ballot.answers):
                for j, b in enumerate(ballot.answers[i + 1 :], start=i + 1):
                    if ballot.groups is None:
                        winner = "tie (bothbad)"
                    elif rank[i] == rank[j]:
                        winner = "tie"
                    else:
                        winner = "model_a" if rank[i] < rank[j] else "model_b"
                    yield {
                        "question_id": ballot.vote_id,
                        "model_a": _model(a),
                        "model_b": _model(b),
                        "winner": winner,
                        "judge": judges[ballot.voter_id],
                        "conversation_a": [*_plain(ballot.messages), *_said(a)],
                        "conversation_b": [*_plain(ballot.messages), *_said(b)],
                        "turn": sum(m.role == "user" for m in ballot.messages),
                        "anony": ballot.evidence,
                        "tstamp": ballot.created.timestamp(),
                    }


def _plain(messages: Iterable[Message]) -> list[dict[str, str]]:
    return [{"role": m.role, "content": m.content} for m in messages]


def _said(answer: BallotAnswer) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": answer.text}]


def _as_it_is(row: Row) -> Row:
    return row


def _in_words(row: Row) -> Row:
    """Lists of messages as text; what has none stays."""
    if "messages" in row:
        *prompt, answer = row["messages"]
        row = {"prompt": prompt, "completion": [answer]}
    if not isinstance(row.get("prompt"), list):
        return row
    answers = {name: value[0]["content"] for name, value in row.items() if name != "prompt" and isinstance(value, list)}
    return row | {"prompt": _asked(row["prompt"])} | answers


def _asked(prompt: list[dict[str, str]]) -> str:
    """A prompt of one turn is its words; of several they stand under HH's marks, up to where the answer begins."""
    if len(prompt) == 1:
        return prompt[0]["content"]
    *before, last = (Message(m["role"], m["content"]) for m in prompt)  # type: ignore[arg-type]
    return _hh((*before, last), "").rstrip(" ")


def _model(answer: BallotAnswer) -> str:
    return "imported" if answer.version is None else f"hustings-v{answer.version}"


def _hh(messages: Talk, answer: str) -> str:
    speakers = {role: speaker for speaker, role in SPEAKERS.items()}
    text = ""
    for message in (*messages, Message("assistant", answer)):
        text += message.content if message.role == "system" else f"\n\n{speakers[message.role]}: {message.content}"
    return text


# In


def _trl_items(rows: Iterable[Row]) -> Iterator[Item | None]:
    for row in rows:
        yield _pair(*(_whole(row.get("prompt"), row, side) for side in ("chosen", "rejected")))


def _hh_items(rows: Iterable[Row]) -> Iterator[Item | None]:
    for row in rows:
        yield _pair(*(_from_hh(row, side) for side in ("chosen", "rejected")))


def _kto_items(rows: Iterable[Row]) -> Iterator[Item | None]:
    """Good and bad completions of one prompt are paired in order; those left over are answers without a vote.

    Where all of them are bad, that is the vote.
    """
    labelled: dict[Talk, dict[bool, list[str]]] = {}
    for row in rows:
        *prompt, completion = _whole(row.get("prompt"), row, "completion")
        if not isinstance(row.get("label"), bool):
            raise InvalidInput("label must be true or false")
        labelled.setdefault(tuple(prompt), {True: [], False: []})[row["label"]].append(completion.content)
    for prompt_, answers in labelled.items():
        good, bad = answers[True], answers[False]
        paired = min(len(good), len(bad))
        for chosen, rejected in zip(good, bad, strict=False):
            yield _ranked(prompt_, chosen, rejected)
        left = tuple(good[paired:] + bad[paired:])
        if not good and len(bad) > 1:
            yield NewBallot(prompt_, left, verdict="both_bad")
        elif left:
            yield NewBallot(prompt_, left)


def _sft_items(rows: Iterable[Row]) -> Iterator[Item | None]:
    for row in rows:
        if "messages" in row or "completion" not in row:
            *prompt, answer = _talk(row.get("messages"), "messages")
        else:
            *prompt, answer = _whole(row.get("prompt"), row, "completion")
        if not answer.content.strip():
            raise InvalidInput("the answer is empty")
        yield NewDemonstration(tuple(prompt), answer.content)


def _arena_items(rows: Iterable[Row]) -> Iterator[Item | None]:
    for row in rows:
        a, b = (_talk(row.get(side), side) for side in ("conversation_a", "conversation_b"))
        judge = row.get("judge")
        if judge is not None and not isinstance(judge, str):
            raise InvalidInput("judge must be a string")
        winner = row.get("winner")
        if winner in ("model_a", "model_b"):
            ballot = _pair(a, b)
            if ballot and winner == "model_b":
                ballot = replace(ballot, ranking=((1,), (0,)))
        elif isinstance(winner, str) and winner in ARENA_TIES:
            answers = (a[-1].content, b[-1].content)
            same_prompt = a[:-1] == b[:-1]
            verdict: Any = ARENA_TIES[winner]
            ballot = NewBallot(a[:-1], answers, verdict=verdict) if same_prompt else None
        else:
            raise InvalidInput("winner is one of model_a, model_b, tie, tie (bothbad)")
        yield ballot and replace(ballot, judge=judge and _text(judge))


def _read(item: Item, reading: str) -> list[Item]:
    """What a row becomes: itself, or demonstrations of its best answers and perhaps of the assistant's earlier ones."""
    if reading == "whole":
        return [item]
    if isinstance(item, NewDemonstration):
        answers = [item.answer]
    else:
        answers = [item.answers[i] for i in item.ranking[0]] if item.ranking else []
    shown: list[Item] = [NewDemonstration(item.messages, answer) for answer in answers if answer.strip()]
    if shown and reading == "turns":
        for before, (asked, answer) in enumerate(pairwise(item.messages), start=1):
            if (asked.role, answer.role) == ("user", "assistant") and asked.content.strip() and answer.content.strip():
                shown.append(NewDemonstration(item.messages[:before], answer.content))
    return shown


def _pair(chosen: Talk, rejected: Talk) -> NewBallot | None:
    if chosen[:-1] != rejected[:-1]:
        return None
    return _ranked(chosen[:-1], chosen[-1].content, rejected[-1].content)


def _ranked(prompt: Talk, chosen: str, rejected: str) -> NewBallot | None:
    return None if chosen == rejected else NewBallot(prompt, (chosen, rejected), ranking=((0,), (1,)))


def _whole(prompt: Any, row: Row, side: str) -> Talk:
    """Prompt and completion as one talk. A completion that does not begin with the assistant is the whole talk."""
    completion = row.get(side)
    if isinstance(completion, str):
        if prompt is None:
            raise InvalidInput(f"prompt is missing, and {side} is plain text; send a prompt, or use format=hh")
        said: list[Any] = [{"role": "assistant", "content": completion}]
    elif isinstance(completion, list) and completion:
        said = completion
        if isinstance(completion[0], dict) and completion[0].get("role") != "assistant":
            return _talk(completion, side)
    else:
        raise InvalidInput(f"{side} must be a text or a list of messages")
    asked = _turns_asked(prompt) if isinstance(prompt, str) else prompt
    if not isinstance(asked, list):
        raise InvalidInput("prompt must be a text or a list of messages")
    return _talk([*asked, *said], f"prompt and {side}")


def _talk(value: Any, name: str) -> Talk:
    """Messages that end with an assistant's answer to a user."""
    if not isinstance(value, list):
        raise InvalidInput(f"{name} must be a list of messages")
    messages: list[Message] = []
    for message in value:
        role, content = (message.get("role"), message.get("content")) if isinstance(message, dict) else (None, None)
        if isinstance(content, list) and content and all(map(_is_text, content)):
            content = "".join(part["text"] for part in content)
        if role not in ("system", "user", "assistant") or not isinstance(content, str):
            raise InvalidInput(
                f"each message in {name} needs a role (system, user or assistant) and a content that is text"
            )
        messages.append(Message(role, _text(content)))
    if [m.role for m in messages[-2:]] != ["user", "assistant"]:
        raise InvalidInput(f"{name} must end with a user's message and the assistant's answer")
    if not messages[-2].content.strip():
        raise InvalidInput(f"the user's last message in {name} is empty")
    return tuple(messages)


def _is_text(part: Any) -> bool:
    return isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str)


def _from_hh(row: Row, side: str) -> Talk:
    text = row.get(side)
    if not isinstance(text, str):
        raise InvalidInput(f"{side} must be a text")
    return _talk(_turns(text), side)


def _turns_asked(prompt: str) -> list[dict[str, str]]:
    """A plain prompt as messages: one, or several where they stand under HH's marks up to where the answer begins."""
    before, mark, after = prompt.rpartition("\n\nAssistant:")
    turns = _turns(before) if mark and not after.strip() else []
    return turns if turns and turns[-1]["role"] == "user" else [{"role": "user", "content": prompt}]


def _turns(text: str) -> list[dict[str, str]]:
    """What stands under HH's marks, as messages; what stands before them is the system's."""
    if text.startswith("Human:"):
        text = f"\n\n{text}"
    system, *turns = re.split(r"\n\n(Human|Assistant):", text)
    messages = [{"role": "system", "content": system}] if system.strip() else []
    for speaker, content in zip(turns[::2], turns[1::2], strict=True):
        if messages and messages[-1]["role"] == SPEAKERS[speaker]:  # nobody speaks twice running: they wrote the label
            messages[-1]["content"] += f"\n\n{speaker}:{content}"
        else:
            messages.append({"role": SPEAKERS[speaker], "content": content.removeprefix(" ")})
    return messages


def _text(raw: str | bytes) -> str:
    """Text that can be stored. Raises InvalidInput for broken UTF-8 and halves of surrogate pairs."""
    try:
        if isinstance(raw, bytes):
            return raw.decode()
        raw.encode()
    except UnicodeError as error:
        raise InvalidInput("not UTF-8, or half of a surrogate pair; send whole characters") from error
    return raw


_EXPORTS: dict[Format, Callable[[Store], Iterator[Row]]] = {
    "trl": _trl_rows,
    "hh": _hh_rows,
    "kto": _kto_rows,
    "sft": _sft_rows,
    "arena": _arena_rows,
}
_IMPORTS: dict[Format, Callable[[Iterable[Row]], Iterator[Item | None]]] = {
    "trl": _trl_items,
    "hh": _hh_items,
    "kto": _kto_items,
    "sft": _sft_items,
    "arena": _arena_items,
}
