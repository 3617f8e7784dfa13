"""The trainer's process: never without its server, never twice, and its end is told in a sentence."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.live_server import wait_for
from training.process import LOG, TrainerProcess, death, last_line, locked

SLEEPER = (sys.executable, "-I", "-S", "-c", "import time; print('at work', flush=True); time.sleep(60)")


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


def test_a_trainer_ends_when_its_server_is_killed(tmp_path: Path) -> None:
    script = f"""
import pathlib, time
from training.process import TrainerProcess, locked
folder = pathlib.Path({str(tmp_path)!r})
with locked(folder) as lock:
    print(TrainerProcess({SLEEPER!r}, folder, lock).pid, flush=True)
time.sleep(60)
"""
    server = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, cwd=Path(__file__).parents[1])
    assert server.stdout is not None
    trainer = int(server.stdout.readline())
    with locked(tmp_path) as lock:
        assert lock is None, "the trainer holds its folder"
    assert alive(trainer)
    server.kill()
    server.communicate()
    deadline = time.monotonic() + 10
    while alive(trainer):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    with locked(tmp_path) as lock:
        assert lock is not None, "the folder is free again"


def test_a_run_by_hand_waits_for_the_one_at_work(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "training", str(tmp_path)]
    (tmp_path / "config.json").write_text("{}")
    with locked(tmp_path):
        found = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert found.returncode == 1
    assert "another trainer is at work in this folder" in found.stderr


def test_what_is_no_runs_folder_is_told_by_name(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "training", str(tmp_path)]
    found = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert found.returncode == 2
    assert "it has no config.json" in found.stderr


def test_a_trainer_knows_the_lock_that_its_server_handed_it(tmp_path: Path) -> None:
    script = """
import pathlib, sys
from training.process import held
with held(pathlib.Path(sys.argv[1])):
    print("mine")
"""
    with locked(tmp_path) as lock:
        assert lock is not None
        trainer = TrainerProcess((sys.executable, "-c", script), tmp_path, lock)
    assert wait_for("the trainer's end", trainer.poll, 30) == 0
    assert last_line(tmp_path) == "mine"


def test_a_command_that_does_not_exist_leaves_nothing_behind(tmp_path: Path) -> None:
    with locked(tmp_path) as lock, pytest.raises(FileNotFoundError):
        assert lock is not None
        TrainerProcess(("/nowhere/python",), tmp_path, lock)
    with locked(tmp_path) as lock:
        assert lock is not None


def test_the_trainer_gives_way_to_chats(tmp_path: Path) -> None:
    with locked(tmp_path) as lock:
        assert lock is not None
        trainer = TrainerProcess(SLEEPER, tmp_path, lock)
    try:
        nice = int(Path(f"/proc/{trainer.pid}/stat").read_text().rsplit(")", 1)[1].split()[16])
        assert nice == 19
        assert os.getsid(trainer.pid) == os.getsid(0), "Linux compares niceness within a session only"
        assert os.getpgid(trainer.pid) == trainer.pid
        assert trainer.poll() is None
    finally:
        assert trainer.kill() == -signal.SIGKILL
    assert trainer.poll() == -signal.SIGKILL


@pytest.mark.parametrize(
    ("code", "log", "sentence"),
    [
        (1, "Traceback\n  ...\nValueError: no pairs\n\n", "ValueError: no pairs"),
        (1, "", "the trainer ended with exit code 1 and wrote nothing"),
        (0, "all done\n", "the trainer ended without a report (its last line: all done)"),
        (-11, "", "the trainer was killed by SIGSEGV"),
    ],
)
def test_why_a_trainer_ended_is_told_in_a_sentence(tmp_path: Path, code: int, log: str, sentence: str) -> None:
    (tmp_path / LOG).write_text(log)
    assert death(code, tmp_path) == sentence


def test_the_last_line_of_a_long_log_is_found_without_reading_it_all(tmp_path: Path) -> None:
    (tmp_path / LOG).write_text("x" * 100_000 + "\n" + "the end\n")
    assert last_line(tmp_path) == "the end"
    assert last_line(tmp_path / "nowhere") == ""
