"""Two hundred open chats over sixteen places, on a tiny model: nobody is left hanging and memory stays flat."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from benchmarks.crowd import gather
from benchmarks.server import Server

MINUTES = 2.0


@pytest.mark.crowd
def test_everybody_is_answered_or_told_that_it_is_full(tmp_path: Path, tiny_model: Path) -> None:
    environment = {
        "HUSTINGS_MIN_NEW_VOTES": "1000000",
        "HUSTINGS_MAX_INTERVAL": "none",
        "HUSTINGS_QUEUE_LIMIT": "16",
        "HUSTINGS_CACHE_DIR": str(tiny_model / "cache"),
    }
    with Server(tmp_path / "data", model=str(tiny_model), environment=environment) as server:
        crowd = asyncio.run(gather(server.url, server.pid, float(os.environ.get("HUSTINGS_CROWD_MINUTES", MINUTES))))
    assert crowd.broken == []
    assert crowd.hung == 0
    assert crowd.refused > 0, "the queue was never full: this tested nothing"
    assert crowd.answered > 200
    assert crowd.growth < 1.05, crowd.memory[::5]
