"""Settings in words, as the code has them."""

from __future__ import annotations

from training.settings_info import settings_info


def test_every_setting_has_its_default_bounds_and_words() -> None:
    found = {setting.name: setting for setting in settings_info()}
    clip = found["ppo.clip"]
    assert (clip.default, clip.low, clip.high) == (0.2, 0.001, 10)
    assert clip.words == "How far a token's probability ratio may move in an update; none: as far as it likes."
    assert found["ppo.whiten"].low is None
    assert all(setting.words for setting in found.values()), [n for n, s in found.items() if not s.words]
