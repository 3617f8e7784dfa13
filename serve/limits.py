"""What may be asked of the engine: every bound in one place, checked on the server whoever calls."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from serve.errors import InvalidInput
from serve.records import Message, Sampling
from serve.settings import Settings

MAX_CANDIDATES = 6
MAX_BYTES = 200_000
"""Of all messages together: what is longer is refused before it is counted in tokens."""
MAX_MESSAGES = 1_000
"""Of one call: each is looked up in the record, however short it is."""
MAX_STOP = 200
"""Characters of a text that ends an answer."""
MAX_TOP_K = 1_000_000
"""More than any vocabulary has."""
MAX_SEED = 2**63 - 1 - 2 * MAX_CANDIDATES
"""SQLite's integers, with room for the seeds that follow from one."""


@dataclass(frozen=True)
class SamplingRequest:
    """What a caller wants of the sampling; None leaves it to the server."""

    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    stop: tuple[str, ...] = ()
    top_k: int | None = None

    @property
    def empty(self) -> bool:
        """The server chooses everything."""
        return self == SamplingRequest()


def fill_in(request: SamplingRequest | None, settings: Settings) -> Sampling:
    """The sampling that is meant, with the server's choice where there is none. Raises InvalidInput."""
    request = request or SamplingRequest()
    max_tokens = settings.max_tokens if request.max_tokens is None else request.max_tokens
    temperature = settings.temperature if request.temperature is None else request.temperature
    top_p = settings.top_p if request.top_p is None else request.top_p
    top_k = request.top_k or 0
    if max_tokens < 1:
        raise InvalidInput(f"max_tokens must be at least 1, not {max_tokens}")
    if not 0 <= temperature <= 2:
        raise InvalidInput(f"temperature must be between 0 and 2, not {temperature}")
    if not 0 < top_p <= 1:
        raise InvalidInput(f"top_p must be above 0 and at most 1, not {top_p}")
    if not 0 <= top_k <= MAX_TOP_K:
        raise InvalidInput(f"top_k must be between 0, which is off, and {MAX_TOP_K:,}, not {top_k}")
    if len(request.stop) > 4 or not all(0 < len(text) <= MAX_STOP for text in request.stop):
        raise InvalidInput(f"stop takes up to 4 texts, each of 1 to {MAX_STOP} characters")
    for text in request.stop:
        _check_unicode(text)
    return Sampling(max_tokens=max_tokens, temperature=temperature, top_p=top_p, top_k=top_k, stop=request.stop)


def stop_texts(stop: str | Sequence[str] | None) -> tuple[str, ...]:
    """One text or several, as both APIs take them."""
    return (stop,) if isinstance(stop, str) else tuple(stop or ())


def check_number(n: int) -> None:
    """How many answers may be asked for at once."""
    if not 1 <= n <= MAX_CANDIDATES:
        raise InvalidInput(f"n must be between 1 and {MAX_CANDIDATES}, not {n}")


def check_count(k: int | None, versions: Sequence[int] | None) -> int:
    """How many answers a comparison shows."""
    if versions is not None:
        if k is not None and k != len(versions):
            raise InvalidInput(f"k is {k}, but {len(versions)} versions are named; leave k out")
        k = len(versions)
    k = 2 if k is None else k
    if not 2 <= k <= MAX_CANDIDATES:
        raise InvalidInput(f"a comparison shows 2 to {MAX_CANDIDATES} answers, not {k}")
    return k


def check_seed(seed: int | None) -> None:
    """A seed must fit the record, and so must those that follow from it."""
    if seed is not None and not 0 <= seed <= MAX_SEED:
        raise InvalidInput(f"seed must be between 0 and {MAX_SEED}, not {seed}")


def check_messages(messages: Sequence[Message]) -> None:
    """A prompt ends with something that the user said."""
    if not messages or messages[-1].role != "user":
        raise InvalidInput("the last message must be the user's: it is what is answered")
    check_text(messages[-1].content, "the prompt")
    for message in messages:
        _check_unicode(message.content)


def size_of(messages: Sequence[Message]) -> int:
    """Bytes."""
    return sum(len(message.content.encode()) for message in messages)


def check_text(text: str, what: str) -> None:
    """It says something, and can be stored."""
    if not text.strip():
        raise InvalidInput(f"{what} is empty; write something")
    _check_unicode(text)


def _check_unicode(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise InvalidInput("the text holds half of a surrogate pair; send valid Unicode") from None
