"""From sampled token ids to text that can be shown: whole characters only, and nothing of a stop string."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from tokenizers.decoders import DecodeStream

if TYPE_CHECKING:
    from tokenizers import Tokenizer


class Transcript:
    """The text of one answer, as it grows. `text` is what has been given out."""

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str]) -> None:
        self.text = ""
        self.stopped = False
        """A stop string has come; it and what follows are not part of the text."""
        self._tokenizer = tokenizer
        self._stream = DecodeStream(skip_special_tokens=True)
        self._stop = tuple(stop)
        self._held = ""
        """Readable, but perhaps the beginning of a stop string."""

    def add(self, token_id: int) -> str:
        """One more token → what became readable; empty in the middle of a character or of a possible stop string."""
        readable = self._held + (self._stream.step(self._tokenizer, token_id) or "")
        found = [at for at in (readable.find(stop) for stop in self._stop) if at >= 0]
        if found:
            self.stopped = True
            shown = readable[: min(found)]
            self._held = ""
        else:
            shown = readable[: len(readable) - self._could_begin_stop(readable)]
            self._held = readable[len(shown) :]
        self.text += shown
        return shown

    def close(self, token_ids: Sequence[int]) -> str:
        """The answer ended without a stop string → what was held back; an unfinished character becomes U+FFFD."""
        whole: str = self._tokenizer.decode(list(token_ids), skip_special_tokens=True)
        rest = whole[len(self.text) :] if whole.startswith(self.text) else self._held
        self._held = ""
        self.text += rest
        return rest

    def _could_begin_stop(self, text: str) -> int:
        """Length of the longest end of `text` that a stop string begins with."""
        longest = min(len(text), max((len(stop) for stop in self._stop), default=0))
        for length in range(longest, 0, -1):
            if any(stop.startswith(text[-length:]) for stop in self._stop):
                return length
        return 0
