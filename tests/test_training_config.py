"""A run's settings: nested, bounded, refused by name."""

from __future__ import annotations

import pytest

from serve.errors import InvalidInput
from training.config import TrainingConfig


def test_settings_override_defaults_and_leave_the_rest() -> None:
    config = TrainingConfig.parse({"rank": 8, "ppo": {"updates": 3}})
    assert (config.rank, config.ppo.updates) == (8, 3)
    assert config.ppo.rollouts == TrainingConfig().ppo.rollouts


def test_numbers_may_come_as_text_and_none_is_allowed_where_it_means_something() -> None:
    config = TrainingConfig.parse({"adapted_layers": "none", "ppo": {"learning_rate": "3e-5", "updates": "4"}})
    assert (config.adapted_layers, config.ppo.learning_rate, config.ppo.updates) == (None, 3e-5, 4)


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"ppo": {"updats": 3}}, "ppo.updats"),
        ({"ppo": {"updates": 0}}, "ppo.updates must be a whole number from 1"),
        ({"ppo": {"updates": 2.5}}, "ppo.updates"),
        ({"ppo": {"updates": True}}, "ppo.updates"),
        ({"ppo": {"gamma": 1.5}}, "from 0 to 1"),
        ({"ppo": {"whiten": "perhaps"}}, "ppo.whiten must be on or off"),
        ({"ppo": {"gamma": float("nan")}}, "ppo.gamma"),
        ({"ppo": {"answers_per_prompt": 33}}, "from 1 to 32"),
        ({"ppo": {"updates": 10**400}}, "ppo.updates must be a whole number from 1"),
        ({"ppo": {"rollouts": 33}}, r"multiple of ppo.answers_per_prompt \(2\), not 33"),
        ({"ppo": {"updates": 1}}, r"ppo.updates must be more than ppo.value_warmup \(1\)"),
        ({"rank": None}, "rank"),
        ({"ppo": 3}, "settings.ppo"),
        ({"rank": "many"}, "rank"),
    ],
)
def test_a_wrong_setting_is_refused_by_name_and_bounds(settings: dict[str, object], named: str) -> None:
    with pytest.raises(InvalidInput, match=named):
        TrainingConfig.parse(settings)


@pytest.mark.parametrize(
    ("given", "expected"), [(False, False), ("off", False), ("true", True), (1, True), ("0", False)]
)
def test_a_switch_is_on_or_off_in_any_of_its_spellings(given: object, expected: bool) -> None:
    assert TrainingConfig.parse({"ppo": {"whiten": given}}).ppo.whiten is expected
