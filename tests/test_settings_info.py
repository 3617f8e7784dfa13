"""Settings in words, as the code has them."""

from __future__ import annotations

from training.config import TrainingConfig
from training.settings_info import settings_info


def test_a_default_is_the_servers_where_it_has_its_own() -> None:
    config = TrainingConfig.parse({"rank": 8, "ppo": {"updates": 20}})
    found = {setting.name: setting.default for setting in settings_info(config)}
    assert (found["rank"], found["ppo.updates"], found["ppo.rollouts"]) == (8, 20, 32)


def test_every_setting_has_its_default_bounds_and_words() -> None:
    found = {setting.name: setting for setting in settings_info(TrainingConfig())}
    clip = found["ppo.clip"]
    assert (clip.default, clip.low, clip.high) == (0.2, 0.001, 10)
    assert clip.words == "How far a token's probability ratio may move in an update; none: as far as it likes."
    assert found["ppo.whiten"].low is None
    assert all(setting.words for setting in found.values()), [n for n, s in found.items() if not s.words]
