"""How long a start takes with the default model, on two quiet cores."""

from __future__ import annotations

import statistics
import time
from pathlib import Path

import pytest

from tests.live_server import Server

pytestmark = pytest.mark.bench


def test_the_second_start_answers_within_six_seconds(tmp_path: Path) -> None:
    server = Server(tmp_path, Path("default"))
    seconds = []
    for _ in range(6):
        begin = time.monotonic()
        with server.running():
            seconds.append(time.monotonic() - begin)
    print("first start and later ones, seconds:", [round(s, 1) for s in seconds])
    assert statistics.median(seconds[1:]) < 6
