"""Settings: flags over environment over file, and a sentence for every mistake."""

from __future__ import annotations

import os
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path

import pytest

from serve.errors import InvalidInput, StartupError
from serve.settings import Settings, nested


@pytest.fixture(autouse=True)
def clean_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No `hustings.toml` and no HUSTINGS_* of the machine that runs the tests."""
    for name in [name for name in os.environ if name.startswith("HUSTINGS_")]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def refusal(flags: Mapping[str, object] | None = None) -> str:
    with pytest.raises(StartupError) as error:
        Settings.load(flags)
    return str(error.value)


def test_the_defaults_are_those_of_the_design() -> None:
    settings = Settings.load()
    assert (settings.db, settings.host, settings.port) == (Path("feedback.db"), "127.0.0.1", 7860)
    assert (settings.min_new_votes, settings.max_interval) == (50, timedelta(hours=24))
    assert (settings.max_tokens, settings.temperature, settings.top_p) == (256, 0.8, 1.0)
    assert (settings.compare_share, settings.promotion, settings.ask) == (0.2, "auto", "always")
    assert settings.cache_dir == Path.home() / ".cache/hustings"


def test_a_flag_beats_the_environment_which_beats_the_file(clean_place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (clean_place / "hustings.toml").write_text("port = 1001\nhost = '0.0.0.0'\nmodel = 'from-file'\n")
    monkeypatch.setenv("HUSTINGS_PORT", "1002")
    monkeypatch.setenv("HUSTINGS_HOST", "::1")
    settings = Settings.load({"port": 1003, "host": None})
    assert (settings.port, settings.host, settings.model) == (1003, "::1", "from-file")


def test_training_overrides_of_file_and_environment_are_merged_and_read_as_numbers(
    clean_place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (clean_place / "hustings.toml").write_text("[training.ppo]\nupdates = 10\nepochs = 2\n")
    monkeypatch.setenv("HUSTINGS_TRAINING__PPO__UPDATES", "20")
    monkeypatch.setenv("HUSTINGS_TRAINING__REWARD__LEARNING_RATE", "1e-4")
    assert Settings.load().training == {"ppo": {"updates": 20, "epochs": 2}, "reward": {"learning_rate": 1e-4}}


@pytest.mark.parametrize(
    ("text", "span"),
    [
        ("90s", timedelta(seconds=90)),
        ("15m", timedelta(minutes=15)),
        ("24h", timedelta(hours=24)),
        ("7d", timedelta(days=7)),
        ("none", None),
    ],
)
def test_intervals_are_written_as_people_write_them(
    text: str, span: timedelta | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HUSTINGS_MAX_INTERVAL", text)
    assert Settings.load().max_interval == span


@pytest.mark.parametrize("text", ["soon", "0s", "-3h", "24"])
def test_an_interval_that_is_none_is_refused_with_the_forms_that_work(
    text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HUSTINGS_MAX_INTERVAL", text)
    assert "90s, 15m, 24h or 7d" in refusal()


def test_a_canary_must_have_a_deadline() -> None:
    assert refusal({"canary_deadline": "none"}).startswith("canary_deadline (HUSTINGS_CANARY_DEADLINE)")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("port", 70000),
        ("min_new_votes", 0),
        ("compare_share", 1.5),
        ("temperature", 3),
        ("top_p", 0),
        ("max_tokens", 0),
        ("promotion", "never"),
        ("ask", "often"),
        ("dtype", "int3"),
        ("threads", 0),
        ("batch_rows", 1),
        ("rank_candidates", 2),
        ("rank_candidates", 7),
    ],
)
def test_a_value_out_of_bounds_is_refused_by_name(name: str, value: object) -> None:
    assert refusal({name: value}).startswith(f"{name} (HUSTINGS_{name.upper()}): ")


def test_every_mistake_is_named_at_once() -> None:
    assert {part.split(" ")[0] for part in refusal({"port": -1, "top_p": 2}).split("; ")} == {"port", "top_p"}


def test_an_unknown_name_in_the_file_is_refused(clean_place: Path) -> None:
    (clean_place / "hustings.toml").write_text("min_votes = 3\n")
    assert "'min_votes'" in refusal()


def test_a_broken_file_is_refused_with_its_line(clean_place: Path) -> None:
    (clean_place / "hustings.toml").write_text("port = 1\nhost = \n")
    assert "hustings.toml" in (text := refusal()) and "line 2" in text


def test_empty_variables_count_as_unset_and_none_as_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HUSTINGS_OPERATOR_TOKEN", "")
    monkeypatch.setenv("HUSTINGS_THREADS", "none")
    settings = Settings.load()
    assert settings.operator_token is None
    assert settings.threads is None


def test_the_operator_token_stays_out_of_logs_and_errors() -> None:
    assert "hunter2" not in repr(Settings.load({"operator_token": "hunter2"}))
    assert "hunter2" not in refusal({"operator_token": "hunter2", "port": -1})


def test_the_data_folder_follows_the_database(clean_place: Path) -> None:
    assert Settings.load({"db": "data/feedback.db"}).folder.runs == clean_place / "data" / "runs"


def test_settings_given_by_hand_become_nested() -> None:
    given = ["ppo.updates=20", "ppo.learning_rate = 1e-4", "reward.epochs=2", "seed=7"]
    assert nested(given) == {"ppo": {"updates": 20, "learning_rate": 1e-4}, "reward": {"epochs": 2}, "seed": 7}
    assert nested(["seed=NaN", "rank=1e999"]) == {"seed": "NaN", "rank": "1e999"}, "no JSON can carry them"
    with pytest.raises(InvalidInput, match="NAME=VALUE"):
        nested(["ppo.updates"])
    with pytest.raises(InvalidInput, match="both"):
        nested(["ppo=1", "ppo.updates=2"])
