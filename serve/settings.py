"""What an operator can set: `HUSTINGS_*` in the environment, `hustings.toml` beside it, flags; flags > env > file.

    HUSTINGS_MIN_NEW_VOTES=20 HUSTINGS_TRAINING__PPO__UPDATES=10 python app.py --max-interval 15m

    # hustings.toml
    promotion = "canary"
    [training.ppo]
    updates = 10

Settings are read once, at the edge (`Settings.load`), and handed on; nothing deeper reads the environment.
"""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, field_validator
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
    TomlConfigSettingsSource,
)

from serve.errors import InvalidInput, StartupError
from serve.folder import DataFolder

_FILE = Path("hustings.toml")
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_LONGEST = timedelta(days=3653)


def parse_interval(value: object) -> timedelta:
    """`90s`, `15m`, `24h` or `7d`. Raises ValueError, naming these forms, for anything else and for nothing at all."""
    span = timedelta(0)
    if isinstance(value, timedelta):
        span = value
    elif match := re.fullmatch(r"(\d{1,9}(?:\.\d{1,6})?)\s*([smhd])", str(value).strip().lower()):
        span = timedelta(seconds=min(float(match[1]) * _SECONDS[match[2]], 1e9))
    if not timedelta(0) < span <= _LONGEST:
        raise ValueError(f"{str(value)!r} is not a span of time of at most ten years; write it as 90s, 15m, 24h or 7d")
    return span


def interval_text(span: timedelta) -> str:
    """As `parse_interval` reads it, in the largest unit that leaves it whole."""
    seconds = span.total_seconds()
    unit = next((unit for unit in "dhm" if seconds % _SECONDS[unit] == 0), "s")
    return f"{seconds / _SECONDS[unit]:.6f}".rstrip("0").rstrip(".") + unit


def _is_none(value: object) -> bool:
    """The environment and flags can only write "none" as text."""
    return value is None or (isinstance(value, str) and value.strip().lower() == "none")


def _optional(value: object) -> object:
    return None if _is_none(value) else value


def _optional_interval(value: object) -> timedelta | None:
    return None if _is_none(value) else parse_interval(value)


Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=1)]


class Schedule(BaseModel):
    """When runs start by themselves, and what becomes of a version that passed. See schedule.py for changes."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    min_new_votes: Count = 50
    """New rankings and ties that make a run due."""
    max_interval: Annotated[timedelta | None, BeforeValidator(_optional_interval)] = timedelta(hours=24)
    """With at least one new vote, a run is due this long after the last one; `none` turns it off."""
    promotion: Literal["auto", "canary", "manual"] = "auto"
    """What happens to a version that passed the gate: it serves at once, is tried on blind votes first, or waits."""
    compare_share: Share = 0.2
    """Share of comparisons that pit the serving version against its predecessor or the base."""
    canary_share: Share = 0.5
    """While there is a canary, the share of comparisons that pit it against the serving version."""
    canary_deadline: Annotated[timedelta, BeforeValidator(parse_interval)] = timedelta(days=7)
    """A canary that is neither better nor worse by then goes back to staged."""


class Settings(Schedule, BaseSettings):
    """All settings of a server, validated. Make it with `Settings.load`."""

    model_config = SettingsConfigDict(
        env_prefix="HUSTINGS_",
        env_nested_delimiter="__",
        env_ignore_empty=True,
        toml_file=_FILE,
        extra="forbid",
        frozen=True,
        validate_default=True,
        hide_input_in_errors=True,
    )

    db: Path = Path("feedback.db")
    """The database; everything else the server keeps lies beside it."""
    host: str = "127.0.0.1"
    """Address to listen on."""
    port: int = Field(default=7860, ge=0, le=65535)
    """Port to listen on; 0 takes any free one."""
    model: str = "default"
    """`default`, a Hugging Face causal LM (id or folder), or a `.gguf` file."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """What the model computes in; `auto` is bfloat16 where the hardware has it and float32 elsewhere."""
    threads: Annotated[Count | None, BeforeValidator(_optional)] = None
    """Compute threads; none leaves the choice to torch."""
    cache_dir: Path = Path("~/.cache/hustings")
    """Where converted weights are kept."""
    operator_token: Annotated[str | None, BeforeValidator(_optional)] = Field(default=None, repr=False)
    """The operators' password; without one, one is made at the first start and printed once."""

    training: dict[str, Any] = Field(default_factory=dict)
    """Overrides of the training configuration, by section: `{"ppo": {"updates": 10}}`."""

    max_tokens: Count = 256
    """Longest answer, in tokens, where the caller names no limit."""
    temperature: float = Field(default=0.8, ge=0, le=2)
    """Sampling temperature where the caller names none; 0 is greedy."""
    top_p: float = Field(default=1.0, gt=0, le=1)
    """Nucleus where the caller names none; 1 leaves the distribution whole."""
    ask: Literal["always", "sometimes", "never"] = "always"
    """How often the chat page asks for a comparison, until the voter chooses."""
    rank_candidates: Annotated[int, Field(ge=3, le=6)] = 4
    """Answers to rank on the vote page where nothing that others shared waits; `batch_rows` at most."""

    batch_rows: Annotated[int, Field(ge=2)] = 16
    """Answers decoded together; a comparison has at least two."""
    queue_limit: Count = 64
    """Requests that may wait for a place in the batch; more are refused."""
    cache_tokens: int = Field(default=6144, ge=0)
    """Tokens of earlier prompts and answers whose keys and values are kept for the next turn; 0 keeps none."""
    answer_timeout: Annotated[timedelta, BeforeValidator(parse_interval)] = timedelta(minutes=10)
    """An answer that has not ended so long after it was asked for, its wait in line included, is stopped."""
    max_lora_rank: Count = 64
    """Highest rank of an adapter that can be loaded."""

    @classmethod
    def load(cls, flags: Mapping[str, Any] | None = None) -> Settings:
        """Flags (those that are not None) over the environment over `hustings.toml`.

        Raises StartupError with one sentence per setting that is unknown or out of bounds.
        """
        try:
            return cls(**{name: value for name, value in (flags or {}).items() if value is not None})
        except ValidationError as error:
            raise StartupError("; ".join(_sentence(dict(e)) for e in error.errors())) from None
        except SettingsError as error:
            raise StartupError(f"{error}: {error.__cause__}; write it as JSON") from None
        except tomllib.TOMLDecodeError as error:
            raise StartupError(f"{_FILE} is not valid TOML: {error}") from None

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Flags, environment, file, in this order; nested tables are merged."""
        return init_settings, env_settings, TomlConfigSettingsSource(settings_cls)

    @field_validator("cache_dir", "db", mode="after")
    @classmethod
    def _expand_home(cls, value: Path) -> Path:
        return value.expanduser()

    @field_validator("training", mode="after")
    @classmethod
    def _read_numbers(cls, value: dict[str, Any]) -> dict[str, Any]:
        return {name: _number(entry) for name, entry in value.items()}

    @property
    def folder(self) -> DataFolder:
        """The data folder that `db` names."""
        return DataFolder(self.db)


def _number(value: Any) -> Any:
    """The environment knows only text: read `10`, `1e-4` and `true` in it as what they are."""
    if isinstance(value, Mapping):
        return {name: _number(entry) for name, entry in value.items()}
    if isinstance(value, str):
        try:
            return json.loads(value)
        except json.JSONDecodeError:
            return value
    return value


def _sentence(error: dict[str, Any]) -> str:
    """One validation error, naming the setting as people write it."""
    name = ".".join(str(part) for part in error["loc"])
    if error["type"] == "extra_forbidden":
        return f"there is no setting {name!r}; see serve/settings.py for all of them"
    variable = "HUSTINGS_" + name.upper().replace(".", "__")
    return f"{name} ({variable}): {error['msg'].removeprefix('Value error, ')}"


def nested(assignments: Sequence[str]) -> dict[str, Any]:
    """`["ppo.updates=20"]` → `{"ppo": {"updates": 20}}`. What is no JSON is taken as text.

    Raises InvalidInput naming what is no NAME=VALUE.
    """
    settings: dict[str, Any] = {}
    for assignment in assignments:
        name, equals, text = (part.strip() for part in assignment.partition("="))
        if not equals or not name:
            raise InvalidInput(f"{assignment}: write it as NAME=VALUE, such as ppo.updates=20")
        *sections, field = name.split(".")
        place = settings
        for section in sections:
            place = place.setdefault(section, {})
            if not isinstance(place, dict):
                raise InvalidInput(f"{assignment}: {section} is both a value and a section")
        try:
            value = json.loads(text)
            json.dumps(value, allow_nan=False)  # what no JSON can carry is refused by the server, by its name
            place[field] = value
        except ValueError:
            place[field] = text
    return settings
