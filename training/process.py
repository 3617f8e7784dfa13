"""The trainer's process: a process group of its own that never outlives its server and never doubles.

Two things hold even if the server is killed outright. A lock on the run's folder travels into the trainer by
inheritance, so it is free exactly when the trainer has ended. And a guard, a few lines of shell, waits on a pipe that
only the server holds: when the pipe breaks it asks the trainer's group to stop, and ten seconds later makes it.
(PR_SET_PDEATHSIG would not do: it fires when the *thread* that started the child ends.)
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from serve.errors import Conflict

INTERRUPTED = 75
"""Exit code of a trainer that was asked to stop; it goes on from its last checkpoint (EX_TEMPFAIL)."""

LOCK, LOG = "trainer.lock", "log.txt"

HANDED = "HUSTINGS_TRAINER_LOCK"
"""Says in a trainer's environment that its server handed it the lock."""

_NICENESS = 19
"""Chats go first: the trainer takes what processor time they leave. Linux compares niceness only within a session
(sched_autogroup), so the trainer stays in the server's.
"""

_GUARD = """
read -r group || exit
read -r _
kill -s TERM -- "-$group"
i=0
while [ "$i" -lt 20 ] && kill -s 0 -- "-$group"; do sleep 0.5; i=$((i + 1)); done
kill -s KILL -- "-$group"
"""


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[int | None]:
    """The lock on a run's folder while no trainer has it, as a file descriptor to hand to one; else None."""
    handle = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield None
        else:
            yield handle
    finally:
        os.close(handle)  # a trainer that inherited the lock keeps it


@contextlib.contextmanager
def held(folder: Path) -> Iterator[None]:
    """The same lock in the trainer itself, which inherited it from its server or takes it. Raises Conflict."""
    if HANDED in os.environ:
        yield
        return
    with locked(folder) as lock:
        if lock is None:
            raise Conflict("another trainer is at work in this folder; wait until it has ended")
        yield


class TrainerProcess:
    """A trainer at work in a run's folder."""

    def __init__(self, command: Sequence[str], folder: Path, lock: int) -> None:
        """Start `command` with the folder as last argument. `lock` is what `locked` gave. Raises OSError."""
        self._guard = subprocess.Popen(
            ["/bin/sh", "-c", _GUARD],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            with (folder / LOG).open("ab") as log:
                self._process = subprocess.Popen(
                    [*command, str(folder)],
                    cwd=Path(__file__).resolve().parents[1],  # where `python -m training` finds its package
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    process_group=0,
                    pass_fds=(lock,),
                    env={**os.environ, HANDED: str(lock)},
                )
        except OSError:
            self._end_guard()
            raise
        assert self._guard.stdin is not None
        self._guard.stdin.write(b"%d\n" % self.pid)
        self._guard.stdin.flush()
        with contextlib.suppress(ProcessLookupError):
            os.setpriority(os.PRIO_PROCESS, self.pid, _NICENESS)

    @property
    def pid(self) -> int:
        """The trainer's process id, which is also its group's."""
        return self._process.pid

    def poll(self) -> int | None:
        """None while it works; else its exit code (negative: the signal that ended it), and its group is gone."""
        if self._process.returncode is None:
            # Seen but not yet reaped, the trainer keeps its number: no stranger's group can be hit by the kill.
            if os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
                return None
            self._clear()
        return self._process.returncode

    def stop(self, timeout: float) -> int:
        """Ask it to end; after `timeout` seconds, kill it. Returns the exit code."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGTERM)
        deadline = time.monotonic() + timeout
        while (code := self.poll()) is None:
            if time.monotonic() > deadline:
                return self.kill()
            time.sleep(0.02)
        return code

    def kill(self) -> int:
        """End the whole group now. Returns the exit code."""
        if self.poll() is None:
            self._clear()
        return self._process.wait()

    def _clear(self) -> None:
        self._end_guard()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self._process.wait()

    def _end_guard(self) -> None:
        self._guard.kill()  # before the pipe closes, or it would take the server for dead
        self._guard.communicate()


def last_line(folder: Path) -> str:
    """The last line a trainer wrote, or nothing."""
    try:
        with (folder / LOG).open("rb") as log:
            log.seek(max(0, log.seek(0, os.SEEK_END) - 4096))
            lines = log.read().decode("utf-8", "replace").strip().splitlines()
    except FileNotFoundError:
        return ""
    return lines[-1].strip() if lines else ""


def death(code: int, folder: Path) -> str:
    """Why a trainer ended with `code`, in a sentence for people."""
    line = last_line(folder)
    if code < 0:
        name = signal.Signals(-code).name
        hint = "; the machine may have run out of memory" if -code == signal.SIGKILL else ""
        return f"the trainer was killed by {name}{hint}" + (f" (its last line: {line})" if line else "")
    if code == 0:
        return "the trainer ended without a report" + (f" (its last line: {line})" if line else "")
    return line or f"the trainer ended with exit code {code} and wrote nothing"
