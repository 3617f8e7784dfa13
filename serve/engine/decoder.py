"""What the engine asks of a model: tokens in, the next token's logits out, every row by its own version."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

from torch import Tensor

if TYPE_CHECKING:
    from serve.engine.lora_bank import LoraBank
    from serve.records import Sampling


class Prompt(Protocol):
    """Keys and values of a prompt on its way through the model, a row for each version that reads it."""

    @property
    def length(self) -> int:
        """Tokens of the prompt that are in."""


class Running(Protocol):
    """Keys and values of the rows that decode together."""

    def adopt(self, prompt: Any, source: int) -> None:
        """Append a row that goes on from row `source` of a prompt."""

    def remove(self, row: int) -> None:
        """Drop a row; the last one takes its number."""


class Decoder(Protocol):
    """A model's forward pass with a LoRA bank in its linears. One thread calls it."""

    bank: LoraBank
    context_length: int
    """Tokens of prompt and answer together."""

    def prompt(self, versions: Sequence[int], tokens: Sequence[int]) -> Any:
        """A `Prompt` of these tokens, a row for each version; its beginning, if known, is in already."""

    def slots(self) -> Any:
        """An empty `Running`."""

    def keep(self, cache: Any, row: int, version: int, tokens: Sequence[int]) -> None:
        """What a row of a prompt or of the running ones holds may be remembered for prompts that begin alike."""

    def forget(self, version: int) -> None:
        """A version's weights have been replaced: remember nothing of it."""

    def forward(self, token_ids: Tensor, cache: Any) -> Tensor:
        """Token ids (rows, T) that follow what the decoder's own cache holds → logits of the last one (rows, V).

        Of a prompt it may take fewer tokens than it is given; its length tells.
        """

    def draw(
        self, logits: Tensor, sampling: Sequence[Sampling], uniforms: Sequence[float]
    ) -> tuple[list[int], list[float]]:
        """One token a row, as `serve.engine.sampling.draw`."""

    def settle(self) -> bool:
        """Do one more piece of preparation that only makes it faster; False when there is none left."""


def check_ids(token_ids: Tensor, vocabulary: int) -> None:
    """Raises IndexError for a token id that the model has not: a GPU that meets one computes nothing afterwards."""
    if not 0 <= int(token_ids.min()) <= int(token_ids.max()) < vocabulary:
        raise IndexError(f"a token id is outside the model's vocabulary of {vocabulary}")
