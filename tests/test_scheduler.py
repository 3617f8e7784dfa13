"""The scheduler, with a scripted trainer: when a run starts, how it can end, and what each end leaves behind."""

from __future__ import annotations

import errno
import json
import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from serve.copies import delete_copies
from serve.errors import AdapterError, Conflict, InvalidInput, NotFound, NothingToLearn, RunActive, Unavailable
from serve.feedback.store import NewCandidate, Store
from serve.folder import DataFolder
from serve.policy.adapters import Registry
from serve.policy.base import ModelFolder
from serve.records import Judgement, Message, Run, Sampling
from serve.schedule import change
from serve.settings import Settings
from tests.scenes import compare, prefer
from training.config import SFTConfig, TrainingConfig
from training.judging import Judged, Judging
from training.scheduler import Scheduler

TRAINER = """
import json, os, pathlib, signal, subprocess, sys, time

plan, run = json.loads(pathlib.Path(sys.argv[1]).read_text()), pathlib.Path(sys.argv[2])
with (run / "starts").open("a") as starts:
    print(os.getpid(), file=starts)

def measure(step, progress, **metrics):
    with (run / "metrics.jsonl").open("a") as file:
        line = {"time": f"2030-01-01T00:00:{step:02}Z", "stage": "ppo", "step": step, "progress": progress,
                "eta_seconds": 10.0, "metrics": metrics}
        file.write(json.dumps(line) + "\\n")

def save(name):
    (run / name).mkdir(exist_ok=True)
    (run / name / "adapter_config.json").write_text("{}")
    (run / name / "adapter_model.safetensors").write_bytes(b"made by run %d" % config["run"])

def interrupted(*_):
    (run / "checkpoint").mkdir(exist_ok=True)
    sys.exit(75)

config = json.loads((run / "config.json").read_text())
print("warming up", flush=True)
resumed = (run / "checkpoint").exists()
if plan.get("fragment"):
    (run / "metrics.jsonl").write_text('{"time": "2030-0\\n')
measure(1, 0.25, score=0.5, kl=float("nan"))
if not resumed:
    measure(2, 0.5, score=1.5)
if plan.get("hang") and not resumed:
    if plan.get("stubborn"):
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    else:
        signal.signal(signal.SIGTERM, interrupted)
    child = subprocess.Popen(["sleep", "60"])
    (run / "child.part").write_text(str(child.pid))
    (run / "child.part").rename(run / "child")
    while True:
        time.sleep(0.01)
if plan.get("crash"):
    raise ValueError("the loss is not finite")
if "signal" in plan:
    os.kill(os.getpid(), plan["signal"])
report = {"status": "succeeded", "adapter": True, "reasons": [], "reference": "base", "demonstrations_hash": None}
report.update(plan.get("report", {}))
if plan.get("sft") and not (run / "sft").exists():
    save("sft")
if plan.get("judges"):
    (run / "reward").mkdir(exist_ok=True)
    (run / "reward" / "report.json").write_text("{}")
if report["adapter"] and not plan.get("forgetful"):
    save("adapter")
(run / "report.part").write_text(json.dumps(report))
(run / "report.part").rename(run / "report.json")
if "last signal" in plan:
    os.kill(os.getpid(), plan["last signal"])
"""


class Clock:
    """Time that a test moves."""

    def __init__(self) -> None:
        self.now = datetime.now(UTC)

    def __call__(self) -> datetime:
        return self.now


@dataclass
class Hall:
    """A data folder with its store and registry, and a scheduler whose trainer follows `plan`."""

    folder: DataFolder
    store: Store
    registry: Registry
    clock: Clock
    settings: Settings
    scheduler: Scheduler
    plan_file: Path
    promoted: list[int] = field(default_factory=list)

    def plan(self, **plan: Any) -> None:
        self.plan_file.write_text(json.dumps(plan))

    def vote(self, count: int = 1, *, versions: tuple[int, int] = (0, 0), winner: int = 0) -> None:
        for _ in range(count):
            prompt = self.store.record_prompt("anna", [Message("user", f"question {os.urandom(4).hex()}")])
            pair = self.store.create_comparison(
                "anna",
                prompt,
                [NewCandidate(version, seed) for seed, version in enumerate(versions)],
                Sampling(),
                evidence=True,
                probability=1.0,
            )
            for candidate in pair.candidates:
                self.store.finish_answer(
                    candidate.answer.id,
                    text=f"answer {candidate.position}",
                    token_ids=[5 + candidate.position, 2],
                    logprobs=[-0.5, -0.5],
                    finish_reason="stop",
                )
            first, second = pair.candidates[winner].id, pair.candidates[1 - winner].id
            self.store.add_vote(pair.id, "anna", Judgement(ranking=((first,), (second,))))

    def restarted(self, **settings: Any) -> Hall:
        """The server once more, over the same data folder."""
        return hall(self.folder, self.store, self.clock, self.plan_file, settings)

    def trigger(self, **arguments: Any) -> Run:
        return self.scheduler.trigger(**{"stages": None, "settings": None, "force": True, "who": "test"} | arguments)

    def until(self, condition: Callable[[], object], seconds: float = 10) -> None:
        """Tick until something holds."""
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, f"waited for {seconds} s; runs: {self.store.runs()}"
            self.scheduler.tick()
            time.sleep(0.01)

    def finished(self, run: Run | None = None) -> Run:
        """Tick, at least once, until no run is active; return the last one."""
        self.scheduler.tick()
        self.until(lambda: self.store.active_run() is None)
        return self.store.run(run.id) if run else self.store.runs()[0]

    def hanging(self) -> tuple[Run, int, int]:
        """A run in the middle of its work, its trainer's pid and the pid of a child of that."""
        self.plan(hang=True)
        run = self.trigger()
        return run, *self.pids(run)

    def pids(self, run: Run) -> tuple[int, int]:
        path = self.folder.run(run.id)
        self.until((path / "child").exists)
        return int((path / "starts").read_text().split()[-1]), int((path / "child").read_text())

    def starts(self, run: Run) -> int:
        return len((self.folder.run(run.id) / "starts").read_text().split())


def hall(folder: DataFolder, store: Store, clock: Clock, plan_file: Path, settings: dict[str, Any]) -> Hall:
    chosen = Settings.load({"db": folder.db, "min_new_votes": 3, **settings})
    registry = Registry(folder, store, base_hash="base", base_name="tiny")
    promoted: list[int] = []

    def promote(version: int, who: str, why: str) -> None:
        registry.promote(version, who, why)
        promoted.append(version)

    script = plan_file.with_name("trainer.py")
    scheduler = Scheduler(
        store,
        registry,
        chosen,
        folder,
        ModelFolder(Path("/model"), "tiny", "base", Path("/cache")),
        promote,
        command=(sys.executable, "-I", "-S", str(script), str(plan_file)),
        clock=clock,
        tick_seconds=0.02,
    )
    return Hall(folder, store, registry, clock, chosen, scheduler, plan_file, promoted)


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hall]:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "trainer.py").write_text(TRAINER)
    folder, clock = DataFolder(tmp_path / "data" / "feedback.db"), Clock()
    folder.root.mkdir()
    with Store.open(folder, clock=clock) as store:
        clock.now = store.version(0).created
        made = hall(folder, store, clock, tmp_path / "plan.json", {})
        made.plan()
        yield made
        made.scheduler.stop(timeout=1)


def alive(pid: int) -> bool:
    """Whether a process works: a zombie, whom nobody has buried yet, does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


def soon(condition: Callable[[], object], seconds: float = 10) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"waited for {seconds} s"
        time.sleep(0.01)


# ── when ──────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_run_starts_by_itself_at_the_50th_new_vote_and_not_at_the_49th(server: Hall) -> None:
    server = server.restarted(min_new_votes=50)
    server.vote(49)
    server.scheduler.tick()
    assert server.store.runs() == []
    assert server.scheduler.due().next_by == server.clock.now + timedelta(hours=24)
    server.vote()
    run = server.finished()
    assert (run.id, run.status, run.trigger, run.stages) == (1, "succeeded", "votes", ("reward", "ppo"))
    server.vote(49)
    server.scheduler.tick()
    assert len(server.store.runs()) == 1, "votes that were learned from are not new"


def test_after_max_interval_a_single_new_vote_is_enough(server: Hall) -> None:
    server.clock.now += timedelta(hours=23, minutes=59)
    server.vote()
    server.scheduler.tick()
    assert server.store.runs() == []
    server.clock.now += timedelta(minutes=1)
    assert server.finished().trigger == "interval"


def test_without_new_votes_no_interval_is_long_enough(server: Hall) -> None:
    server.clock.now += timedelta(days=400)
    server.scheduler.tick()
    assert server.store.runs() == []
    assert server.scheduler.due().next_by is None


def test_the_interval_can_be_turned_off(server: Hall) -> None:
    server = server.restarted(max_interval="none")
    server.vote()
    server.clock.now += timedelta(days=400)
    server.scheduler.tick()
    assert server.store.runs() == []


def test_the_schedule_changes_while_the_server_runs(server: Hall) -> None:
    server.vote()
    server.scheduler.tick()
    assert server.store.runs() == []
    change(server.store, server.settings, {"max_interval": "10s", "promotion": "manual"}, who="operator")
    server.clock.now += timedelta(seconds=10)
    run = server.finished()
    assert (run.trigger, server.store.version(1).status) == ("interval", "staged")
    assert next((deed.who, deed.what) for deed in server.store.deeds()) == (
        "scheduler",
        "started run 1 by interval",
    )


def test_a_run_that_has_ended_lets_go_of_what_was_deleted_meanwhile(server: Hall) -> None:
    server.vote(3)
    run, _, _ = server.hanging()
    folder = server.folder.run(run.id)
    assert (folder / "snapshot.db").exists()
    delete_copies(server.folder, datetime.fromtimestamp(0, UTC), run.id)
    assert (folder / "snapshot.db").exists()
    server.scheduler.cancel(run.id, who="test")
    assert not (folder / "snapshot.db").exists()


def test_the_interval_counts_from_the_last_run_even_after_a_restart(server: Hall) -> None:
    server.vote(3)
    learned = server.finished()
    server.clock.now += timedelta(hours=20)
    server.vote()
    server = server.restarted()
    server.scheduler.tick()
    assert server.scheduler.due().next_by == learned.created + timedelta(hours=24)
    assert len(server.store.runs()) == 1


def test_due_tells_how_many_votes_are_there(server: Hall) -> None:
    server.vote(2)
    due = server.scheduler.due()
    assert (due.new_votes, due.min_new_votes, due.max_interval) == (2, 3, timedelta(hours=24))
    server.vote()
    assert server.scheduler.due().next_by == server.clock.now


def test_one_run_at_a_time(server: Hall) -> None:
    server.vote(3)
    run, _, _ = server.hanging()
    server.vote(3)
    for _ in range(3):
        server.scheduler.tick()
    assert len(server.store.runs()) == 1
    with pytest.raises(RunActive) as refused:
        server.trigger()
    assert refused.value.run == run.id


def test_a_failed_run_is_not_tried_again_at_once_and_later_less_and_less_often(server: Hall) -> None:
    server.plan(crash=True)
    server.vote(3)
    server.finished()
    server.scheduler.tick()
    assert len(server.store.runs()) == 1
    assert server.scheduler.due().next_by == server.clock.now + timedelta(minutes=5)
    server.clock.now += timedelta(minutes=5)
    server.scheduler.tick()
    server.finished()
    assert len(server.store.runs()) == 2
    assert server.scheduler.due().next_by == server.clock.now + timedelta(minutes=10)


def test_a_cancelled_run_does_not_come_back_at_once(server: Hall) -> None:
    server.vote(3)
    run, _, _ = server.hanging()
    server.scheduler.cancel(run.id, who="test")
    server.scheduler.tick()
    assert len(server.store.runs()) == 1
    assert server.scheduler.due().next_by == server.clock.now + timedelta(hours=1)


# ── by hand ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_trigger_without_enough_votes_says_how_many_are_missing(server: Hall) -> None:
    with pytest.raises(NothingToLearn, match="3 votes are missing"):
        server.trigger(force=False)
    server.vote(2)
    with pytest.raises(NothingToLearn, match="1 vote is missing"):
        server.trigger(force=False)
    assert server.store.runs() == []
    server.vote()
    assert server.trigger(force=False).status == "queued"


def test_force_needs_a_single_vote(server: Hall) -> None:
    with pytest.raises(NothingToLearn, match="no vote"):
        server.trigger()
    server.vote()
    assert server.finished(server.trigger()).status == "succeeded"


def test_force_needs_a_demonstration_when_only_sft_is_asked_for(server: Hall) -> None:
    with pytest.raises(NothingToLearn):
        server.trigger(stages=["sft"])
    server.store.add_demonstration("anna", [Message("user", "Hi")], "Good day.")
    with pytest.raises(NothingToLearn):
        server.trigger(stages=["reward", "ppo"])
    assert server.trigger().stages == ("sft",), "without stages, those are chosen that have something to learn from"


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"stages": ["dpo"]}, "dpo"),
        ({"stages": []}, "empty"),
        ({"stages": ["ppo"]}, "reward"),
        ({"settings": {"ppo": {"magic": 1}}}, "magic"),
        ({"settings": {"ppo": {"updates": 0}}}, "updates"),
    ],
)
def test_what_cannot_be_trained_is_refused_by_name(server: Hall, arguments: dict[str, Any], named: str) -> None:
    server.vote()
    with pytest.raises(InvalidInput, match=named):
        server.trigger(**arguments)
    assert server.store.runs() == []


def test_a_run_needs_what_its_stages_learn_from(server: Hall) -> None:
    server.store.add_demonstration("anna", [Message("user", "Hi")], "Good day.")
    assert server.trigger(stages=["sft"], force=False).stages == ("sft",), "it needs no votes"
    server.scheduler.cancel(1, who="test")
    with pytest.raises(NothingToLearn, match=r"no vote .* stages=\[sft\]"):
        server.trigger(stages=["sft", "reward", "ppo"])
    assert server.trigger(stages=["sft"]).stages == ("sft",)


def test_votes_are_nothing_for_sft_alone(server: Hall) -> None:
    server.vote()
    with pytest.raises(NothingToLearn, match="no demonstration"):
        server.trigger(stages=["sft"])
    assert server.store.runs() == []


def test_a_rank_that_could_not_serve_is_refused_before_the_run(server: Hall) -> None:
    server.vote()
    with pytest.raises(InvalidInput, match="rank 128 is above max_lora_rank 64"):
        server.trigger(settings={"rank": 128})
    with pytest.raises(InvalidInput, match="rank 16 is above max_lora_rank 8"):
        server.restarted(max_lora_rank=8)
    assert server.restarted(max_lora_rank=128).trigger(settings={"rank": 128}).status == "queued"


def test_broken_overrides_stop_the_server_at_its_start(server: Hall) -> None:
    with pytest.raises(InvalidInput, match="updates"):
        server.restarted(training={"ppo": {"updates": -1}})


def test_the_folder_holds_all_that_a_run_may_read(server: Hall) -> None:
    server = server.restarted(training={"ppo": {"updates": 5, "beta": 0.1}}, threads=1)
    server.vote()
    run = server.finished(server.trigger(stages=["ppo", "reward"], settings={"ppo": {"updates": 7}}))
    path = server.folder.run(run.id)
    config = json.loads((path / "config.json").read_text())
    assert config["settings"] == {"ppo": {"updates": 7, "beta": 0.1}}
    assert (config["run"], config["seed"], config["stages"], config["parent"]) == (1, 1, ["reward", "ppo"], 0)
    model = {"path": "/model", "hash": "base", "name": "tiny", "cache": "/cache", "dtype": "auto", "threads": 1}
    assert config["model"] == model
    assert (path / "snapshot.db").exists()
    assert not (path / "parent").exists(), "the base has no adapter"
    run = server.finished(server.trigger())
    path = server.folder.run(run.id)
    assert json.loads((path / "config.json").read_text())["parent"] == 1
    assert (path / "parent" / "adapter_model.safetensors").read_bytes() == b"made by run 1"


def test_settings_of_a_trigger_survive_a_crash_before_the_run_began(server: Hall) -> None:
    server.vote()
    run = server.trigger(settings={"ppo": {"updates": 7}})
    (server.folder.run(run.id)).mkdir(parents=True)
    (server.folder.run(run.id) / "snapshot.db").write_bytes(b"half a snapshot")
    server = server.restarted()
    assert server.finished(run).status == "succeeded"
    assert json.loads((server.folder.run(run.id) / "config.json").read_text())["settings"] == {"ppo": {"updates": 7}}


# ── SFT is reused ─────────────────────────────────────────────────────────────────────────────────────────────────────


def sft_run(server: Hall, **arguments: Any) -> tuple[Run, bytes]:
    """A run with SFT, and the SFT adapter it used."""
    from training.run_folder import RunFolder

    run = server.trigger(**arguments)
    server.until(lambda: (server.folder.run(run.id) / "config.json").exists())
    hashed = RunFolder(server.folder.run(run.id)).demonstrations_hash()
    server.finished(run)
    report = server.folder.run(run.id) / "report.json"
    assert json.loads(report.read_text())["reference"] == "sft"
    config = json.loads((server.folder.run(run.id) / "config.json").read_text())
    known = {"demonstrations_hash": hashed, "settings": asdict(TrainingConfig.parse(config["settings"]))}
    report.write_text(json.dumps(json.loads(report.read_text()) | known))
    return run, (server.folder.run(run.id) / "sft" / "adapter_model.safetensors").read_bytes()


def test_an_sft_adapter_is_reused_until_demonstrations_or_its_settings_change(server: Hall) -> None:
    server.plan(sft=True, report={"reference": "sft"})
    server.vote()
    server.store.add_demonstration("anna", [Message("user", "Hi")], "Good day.")
    assert sft_run(server)[1] == b"made by run 1"
    assert sft_run(server)[1] == b"made by run 1"
    assert sft_run(server, settings={"ppo": {"updates": 3}})[1] == b"made by run 1", "PPO's settings change no SFT"
    usual = {"sft": {"epochs": SFTConfig().epochs}}
    assert sft_run(server, settings=usual)[1] == b"made by run 1", "a default may be written out"
    assert sft_run(server, settings={"sft": {"epochs": 1}})[1] == b"made by run 5"
    server.store.add_demonstration("anna", [Message("user", "Bye")], "Farewell.")
    assert sft_run(server)[1] == b"made by run 6"


def test_the_hash_of_the_demonstrations_is_the_trainers_own(server: Hall) -> None:
    from training.preferences import demonstrations_hash, read_snapshot
    from training.run_folder import RunFolder

    server.store.add_demonstration("anna", [Message("user", "Hi")], "Good day.")
    run = server.finished(server.trigger(stages=["sft"]))
    folder = RunFolder(server.folder.run(run.id))
    tokenizer: Any = None  # nothing to tokenise without votes
    assert folder.demonstrations_hash() == demonstrations_hash(read_snapshot(folder.snapshot, tokenizer).demonstrations)


# ── how it can end ────────────────────────────────────────────────────────────────────────────────────────────────────


def test_success_is_published_and_serves(server: Hall) -> None:
    server.vote(3)
    run = server.finished()
    assert (run.status, run.version, run.progress, run.error) == ("succeeded", 1, 1.0, None)
    assert run.report is not None
    assert run.started is not None and run.finished is not None and run.eta_seconds is None
    version = server.store.version(1)
    assert (version.status, version.run, version.parent) == ("serving", run.id, 0)
    manifest = json.loads((server.folder.adapter(1) / "manifest.json").read_text())
    assert (manifest["run"], manifest["parent"], manifest["base"]["hash"]) == (run.id, 0, "base")
    assert server.promoted == [1]
    (promotion,) = server.store.promotions()
    assert (promotion.who, promotion.why) == ("scheduler", f"run {run.id} passed the gate")


def test_metrics_reach_the_record_without_what_is_not_a_number(server: Hall) -> None:
    server.plan(fragment=True)
    server.vote(3)
    run = server.finished()
    assert [(p.stage, p.name, p.step, p.value) for p in server.store.run_metrics(run.id)] == [
        ("ppo", "score", 1, 0.5),
        ("ppo", "score", 2, 1.5),
    ]
    assert run.stage == "ppo"


def test_with_manual_promotion_a_version_waits(server: Hall) -> None:
    server = server.restarted(promotion="manual")
    server.vote(3)
    run = server.finished()
    assert (run.status, run.version) == ("succeeded", 1)
    assert server.store.version(1).status == "staged"
    assert server.store.serving() == 0


def test_a_run_refused_before_ppo_has_no_version(server: Hall) -> None:
    reasons = ["the reward model is right 51% of the time: about 80 more votes"]
    server.plan(report={"status": "rejected", "adapter": False, "reasons": reasons})
    server.vote(3)
    run = server.finished()
    assert (run.status, run.version) == ("rejected", None)
    assert run.report is not None and run.report["reasons"] == reasons
    assert [version.number for version in server.store.versions()] == [0]


def test_a_version_refused_after_ppo_is_kept_as_rejected(server: Hall) -> None:
    server.plan(report={"status": "rejected", "adapter": True, "reasons": ["it repeats itself"]})
    server.vote(3)
    run = server.finished()
    assert (run.status, run.version) == ("rejected", 1)
    assert server.store.version(1).status == "rejected"
    assert server.store.serving() == 0
    assert server.registry.verify(1), "operators may still query it"


def test_a_crash_is_explained_by_the_last_line_of_the_log(server: Hall) -> None:
    server.plan(crash=True)
    server.vote(3)
    run = server.finished()
    assert (run.status, run.version) == ("failed", None)
    assert run.error == "ValueError: the loss is not finite"


def test_a_killed_trainer_is_explained_by_its_signal(server: Hall) -> None:
    server.plan(signal=signal.SIGKILL)
    server.vote(3)
    run = server.finished()
    assert run.status == "failed"
    assert run.error is not None
    assert "SIGKILL" in run.error and "memory" in run.error and "warming up" in run.error


def test_a_run_with_its_report_has_ended_however_its_process_did(server: Hall) -> None:
    server.plan(**{"last signal": signal.SIGSEGV})
    server.vote(3)
    run = server.finished()
    assert (run.status, run.version, server.starts(run)) == ("succeeded", 1, 1)


def test_a_report_of_failure_is_a_failure_with_its_reasons(server: Hall) -> None:
    server.plan(report={"status": "failed", "adapter": True, "reasons": ["the snapshot holds no pair"]})
    server.vote(3)
    run = server.finished()
    assert (run.status, run.version, run.error) == ("failed", None, "the snapshot holds no pair")


def test_a_report_of_an_adapter_that_is_not_there_is_a_failure(server: Hall) -> None:
    server.plan(forgetful=True)
    server.vote(3)
    run = server.finished()
    assert (run.status, run.version) == ("failed", None)
    assert run.error is not None and "adapter_config.json" in run.error


def test_a_full_disk_delays_the_publication_and_wastes_no_run(
    server: Hall, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "no space left on device")

    server.vote(3)
    with monkeypatch.context() as patch:
        patch.setattr("serve.policy.adapters.shutil.copyfile", full)
        server.until(lambda: "no space left" in caplog.text)
        for _ in range(3):
            server.scheduler.tick()
        (run,) = server.store.runs()
        assert run.status == "running"
        assert list(server.folder.adapters.iterdir()) == []
        assert caplog.text.count("no space left") == 1, "once a minute is enough"
    run = server.finished()
    assert (run.status, run.version, server.starts(run)) == ("succeeded", 1, 1)


def test_a_trainer_that_cannot_be_started_fails_its_run(server: Hall) -> None:
    server.vote(3)
    server.scheduler._command = ("/nowhere/python",)
    run = server.finished()
    assert run.status == "failed"
    assert run.error is not None and "/nowhere/python" in run.error


def test_a_broken_parent_fails_the_run_before_it_starts(server: Hall) -> None:
    server.vote(3)
    server.finished()
    (server.folder.adapter(1) / "adapter_model.safetensors").write_bytes(b"?")
    run = server.finished(server.trigger())
    assert run.status == "failed"
    assert run.error is not None and "adapter_model.safetensors" in run.error


def test_a_version_that_the_engine_refuses_stays_staged_with_the_reason(
    server: Hall, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise AdapterError("rank 512 is more than the bank holds")

    monkeypatch.setattr(server.scheduler, "_promote", refuse)
    server.vote(3)
    run = server.finished()
    assert (run.status, run.version) == ("succeeded", 1)
    assert run.error is not None and "rank 512" in run.error
    assert (server.store.version(1).status, server.store.serving()) == ("staged", 0)


def test_promotion_waits_for_an_engine_that_is_still_loading(server: Hall, monkeypatch: pytest.MonkeyPatch) -> None:
    refusals = [Unavailable("loading"), Unavailable("loading")]
    promote = server.scheduler._promote

    def later(version: int, who: str, why: str) -> None:
        if refusals:
            raise refusals.pop()
        promote(version, who, why)

    monkeypatch.setattr(server.scheduler, "_promote", later)
    server.vote(3)
    run = server.finished()
    assert (run.status, run.version, server.store.serving()) == ("succeeded", 1, 1)
    assert server.starts(run) == 1


# ── cancel ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_cancel_ends_the_whole_process_group_and_publishes_nothing(server: Hall) -> None:
    server.vote(3)
    run, trainer, child = server.hanging()
    assert alive(trainer) and alive(child)
    assert server.scheduler.cancel(run.id, who="test").status == "cancelled"
    assert not alive(trainer)
    soon(lambda: not alive(child), 2)
    server.scheduler.tick()
    assert server.store.run(run.id).status == "cancelled"
    assert server.store.run(run.id).finished is not None
    assert [version.number for version in server.store.versions()] == [0]
    server.plan()
    assert server.finished(server.trigger()).status == "succeeded", "the next run is free to start"


def test_a_run_can_be_cancelled_before_it_began(server: Hall) -> None:
    server.vote(3)
    run = server.trigger()
    assert server.scheduler.cancel(run.id, who="test").status == "cancelled"
    server.scheduler.tick()
    assert not (server.folder.run(run.id) / "starts").exists()


def test_only_a_run_that_is_on_can_be_cancelled(server: Hall) -> None:
    with pytest.raises(NotFound):
        server.scheduler.cancel(9, who="test")
    server.vote(3)
    run = server.finished()
    with pytest.raises(Conflict, match="already ended"):
        server.scheduler.cancel(run.id, who="test")
    assert server.store.run(run.id).status == "succeeded"


def test_a_run_cancelled_while_it_is_prepared_stays_cancelled(server: Hall, monkeypatch: pytest.MonkeyPatch) -> None:
    def meanwhile(run_id: int, target: Path) -> None:
        server.scheduler.cancel(run_id, who="test")
        raise OSError("no space left on device")

    monkeypatch.setattr(server.store, "snapshot", meanwhile)
    server.vote(3)
    run = server.finished()
    assert (run.status, run.error) == ("cancelled", None)


def test_a_run_that_is_just_being_promoted_cannot_be_cancelled(server: Hall, monkeypatch: pytest.MonkeyPatch) -> None:
    promote, refusals = server.scheduler._promote, []

    def meanwhile(version: int, who: str, why: str) -> None:
        with pytest.raises(Conflict, match="published as version 1") as refusal:
            server.scheduler.cancel(1, who="test")
        refusals.append(refusal.value)
        promote(version, who, why)

    monkeypatch.setattr(server.scheduler, "_promote", meanwhile)
    server.vote(3)
    run = server.finished()
    assert (run.status, server.store.serving(), len(refusals)) == ("succeeded", 1, 1)


def test_a_full_disk_fails_the_run_with_a_sentence(server: Hall, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(server.store, "snapshot", full)
    server.vote(3)
    run = server.finished()
    assert (run.status, run.error) == ("failed", "the run could not be prepared: no space left on device")


# ── the server stops, or dies ─────────────────────────────────────────────────────────────────────────────────────────


def test_a_stopped_server_interrupts_the_run_and_the_next_resumes_it_in_place(server: Hall) -> None:
    server.vote(3)
    server.plan(hang=True)
    server.scheduler.start()
    soon(server.store.active_run)
    run = server.store.runs()[0]
    soon((server.folder.run(run.id) / "child").exists)
    trainer, child = server.pids(run)
    soon(lambda: server.store.run(run.id).progress == 0.5)
    began = time.monotonic()
    server.scheduler.stop()
    assert time.monotonic() - began < 10
    assert server.store.run(run.id).status == "interrupted"
    assert not alive(trainer)
    soon(lambda: not alive(child), 2)

    server.plan()
    again = server.restarted()
    again.scheduler.start()
    seen = []
    try:
        while (now := again.store.run(run.id)).status in ("interrupted", "running"):
            seen.append(now.progress)
            time.sleep(0.005)
    finally:
        again.scheduler.stop()
    assert (now.status, now.version, again.starts(run)) == ("succeeded", 1, 2)
    assert min(seen) == 0.5, "progress never moves back"
    assert len(again.store.runs()) == 1
    assert len(again.store.run_metrics(run.id)) == 2, "a repeated step is one point"


def test_a_trainer_that_does_not_listen_is_killed_in_time(server: Hall) -> None:
    server.vote(3)
    server.plan(hang=True, stubborn=True)
    run = server.trigger()
    trainer, child = server.pids(run)
    began = time.monotonic()
    server.scheduler.stop(timeout=1.5)
    assert time.monotonic() - began < 2.5
    assert not alive(trainer)
    soon(lambda: not alive(child), 2)
    assert server.store.run(run.id).status == "interrupted"
    server.plan()
    assert server.restarted().finished(run).status == "succeeded"


def test_a_server_killed_outright_takes_its_trainer_along_and_the_next_resumes(server: Hall) -> None:
    server.vote(3)
    run, trainer, child = server.hanging()
    process = server.scheduler._trainer
    assert process is not None and process._guard.stdin is not None
    process._guard.stdin.close()  # what the end of the server's process does
    soon(lambda: not alive(trainer), 5)
    soon(lambda: not alive(child), 15)
    process._process.wait()
    server.plan()
    again = server.restarted()
    assert again.store.run(run.id).status == "running", "nobody was left to write it down"
    again.scheduler.start()
    soon(lambda: again.store.active_run() is None)
    again.scheduler.stop()
    assert again.store.run(run.id).status == "succeeded"
    assert again.starts(run) == 2


def test_two_trainers_never_work_in_one_folder(server: Hall) -> None:
    server.vote(3)
    run, trainer, _ = server.hanging()
    again = server.restarted()
    for _ in range(3):
        again.scheduler.tick()
    assert again.starts(run) == 1
    assert again.scheduler._trainer is None
    assert alive(trainer)


def test_a_run_that_ended_while_no_server_looked_is_finished_by_the_next(server: Hall) -> None:
    server.vote(3)
    run = server.trigger()
    server.scheduler.tick()
    soon((server.folder.run(run.id) / "report.json").exists)
    assert server.store.run(run.id).status == "running"
    server = server.restarted()
    assert server.finished(run).status == "succeeded"
    assert server.starts(run) == 1
    assert [version.number for version in server.store.versions()] == [1, 0]


@pytest.mark.parametrize("last_step", ["publish", "promote", "update_run"])
def test_a_crash_at_any_step_of_the_end_is_made_good_without_doing_it_twice(
    server: Hall, monkeypatch: pytest.MonkeyPatch, last_step: str
) -> None:
    class PowerCut(BaseException):
        pass

    class Doing:
        """Does one step, and then the power fails."""

        def __init__(self, step: Callable[..., Any]) -> None:
            self.step = step

        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            result = self.step(*args, **kwargs)
            if last_step != "update_run" or kwargs.get("status") == "succeeded":
                raise PowerCut
            return result

    server.vote(3)
    with monkeypatch.context() as patch, pytest.raises(PowerCut):
        if last_step == "publish":
            patch.setattr(server.registry, "publish", Doing(server.registry.publish))
        elif last_step == "promote":
            patch.setattr(server.scheduler, "_promote", Doing(server.scheduler._promote))
        else:
            patch.setattr(server.store, "update_run", Doing(server.store.update_run))
        server.finished()
    again = server.restarted()
    run = again.finished()
    assert (run.id, run.status, run.version) == (1, "succeeded", 1)
    assert [version.number for version in again.store.versions()] == [1, 0]
    assert again.store.serving() == 1
    assert len(again.store.promotions()) == 1
    assert again.starts(run) == 1


def test_a_folder_of_another_record_is_never_taken_for_the_run(server: Hall) -> None:
    server.vote(3)
    stale = server.folder.run(1)
    stale.mkdir(parents=True)
    (stale / "config.json").write_text('{"run": 1, "created": "2020-01-01T00:00:00+00:00"}')
    (stale / "report.json").write_text('{"status": "succeeded", "adapter": false}')
    run = server.finished()
    assert (run.status, run.version) == ("succeeded", 1)
    assert (stale.parent / "0001.stray-1" / "report.json").exists()


def test_a_stopped_scheduler_leaves_no_process(server: Hall) -> None:
    server.vote(3)
    _, trainer, _ = server.hanging()
    process = server.scheduler._trainer
    assert process is not None
    server.scheduler.stop(timeout=2)
    assert process._guard.poll() is not None
    assert not alive(trainer)
    server.scheduler.stop()  # and again


# ── canary ────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def canary(server: Hall) -> Hall:
    """A server with version 1 as its canary against the base."""
    server = server.restarted(promotion="canary", canary_deadline="2d", max_interval="none")
    server.vote(3)
    assert server.finished().version == 1
    assert server.store.version(1).status == "canary"
    assert server.store.serving() == 0
    return server


def test_a_canary_that_wins_blind_votes_is_promoted_by_itself(canary: Hall) -> None:
    canary.vote(5, versions=(0, 0))
    canary.scheduler.tick()
    assert canary.store.version(1).status == "canary", "votes between others say nothing"
    canary.vote(25, versions=(0, 1), winner=1)
    canary.scheduler.tick()
    assert canary.store.serving() == 1
    assert "25 wins and 0 losses" in canary.store.promotions()[0].why


def test_a_canary_that_loses_blind_votes_is_rolled_back_by_itself(canary: Hall) -> None:
    canary.vote(25, versions=(0, 1), winner=0)
    canary.scheduler.tick()
    assert canary.store.version(1).status == "rolled_back"
    assert canary.store.serving() == 0


def test_no_run_is_due_while_a_canary_is_on(canary: Hall) -> None:
    canary.vote(4, versions=(0, 1), winner=1)
    canary.scheduler.tick()
    assert canary.scheduler.due().next_by is None
    assert len(canary.store.runs()) == 1


def test_past_its_deadline_a_canary_goes_back_to_staged(canary: Hall) -> None:
    canary.clock.now += timedelta(days=2) - timedelta(seconds=1)
    canary.scheduler.tick()
    assert canary.store.version(1).status == "canary"
    canary.clock.now += timedelta(seconds=1)
    canary.scheduler.tick()
    assert canary.store.version(1).status == "staged"
    canary.vote(3)
    assert canary.finished().version == 2, "and runs are due again"


def test_a_new_canary_takes_the_place_of_the_old(canary: Hall) -> None:
    canary.finished(canary.trigger())
    assert (canary.store.version(1).status, canary.store.version(2).status) == ("staged", "canary")
    assert {deed.what for deed in canary.store.deeds() if deed.who == "scheduler"} >= {
        "set version 1 to canary: run 1 passed the gate",
        "set version 1 to staged: version 2 is tried instead",
        "set version 2 to canary: run 2 passed the gate",
    }


def test_a_canary_that_the_engine_refuses_is_staged(canary: Hall, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AdapterError("broken")

    monkeypatch.setattr(canary.scheduler, "_promote", refuse)
    canary.vote(25, versions=(0, 1), winner=1)
    canary.scheduler.tick()
    assert (canary.store.version(1).status, canary.store.serving()) == ("staged", 0)


# What the queue asks next


def test_after_a_run_its_fold_models_say_which_shared_pairs_to_ask_about(
    server: Hall, monkeypatch: pytest.MonkeyPatch
) -> None:
    pairs = [compare(server.store, "anna", f"Question {i}?", (f"{i} a", f"{i} b"), share=True) for i in range(3)]
    folds = {"0 a": (1.0, 1.0), "1 a": (2.0, -2.0), "2 a": (1.0, 0.0)}  # of 0 both are as sure, of 1 they differ most
    asked: list[Path] = []

    def ask(_: Judging, folder: Path, items: Sequence[tuple[Sequence[Message], str]]) -> list[Judged]:
        asked.append(folder)
        return [Judged(0.0, folds.get(text, (0.0, 0.0))) for _, text in items]

    monkeypatch.setattr(Judging, "ask", ask)
    server.vote()
    server.finished(server.trigger())
    assert len(server.store.undoubted(1, 10)) == len(pairs), "this run left no fold models"
    server.plan(judges=True)
    run = server.finished(server.trigger())
    server.until(lambda: not server.store.undoubted(run.id, 10))
    assert asked == [server.folder.run(run.id)]
    order = []
    while waiting := server.store.next_in_queue("ben"):
        order.append(waiting.messages[-1].content)
        prefer(server.store, waiting, 0)
    assert order == ["Question 1?", "Question 2?", "Question 0?"]
    assert len(server.store.undoubted(run.id + 1, 10)) == len(pairs), "a later run's fold models read them again"


def test_a_reward_model_that_does_not_answer_leaves_the_queue_and_the_run_as_they_are(
    server: Hall, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def ask(*_: object) -> list[Judged]:
        raise Unavailable("out of memory")

    monkeypatch.setattr(Judging, "ask", ask)
    server.vote()
    compare(server.store, share=True)
    server.plan(judges=True)
    with caplog.at_level(logging.INFO, logger="training.scheduler"):
        run = server.finished(server.trigger())
        server.until(lambda: "the queue stays as it was: out of memory" in caplog.text)
    assert run.status == "succeeded"
    assert len(server.store.undoubted(run.id, 10)) == 1
    assert server.store.next_in_queue("ben") is not None


def test_the_queue_is_read_once_the_run_has_ended_in_the_record_and_a_bug_there_is_logged(
    server: Hall, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    seen: list[str] = []
    update, failures = server.store.update_run, [Unavailable("the disk is full")]

    def ask(*_: object) -> list[Judged]:
        seen.append(server.store.run(1).status)
        raise ValueError("a bug")

    def update_run(run_id: int, **fields: Any) -> Run:
        if fields.get("status") == "succeeded" and failures:
            raise failures.pop()
        return update(run_id, **fields)

    monkeypatch.setattr(Judging, "ask", ask)
    monkeypatch.setattr(server.store, "update_run", update_run)
    server.vote()
    compare(server.store, share=True)
    server.plan(judges=True)
    server.finished(server.trigger())
    server.until(lambda: "the queue stays as it was" in caplog.text)
    assert (seen, failures) == (["succeeded"], [])


def test_nobody_at_the_page_waits_long_for_a_reward_model_that_reads_for_the_queue(
    server: Hall, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("training.scheduler._PATIENCE", 0.01)
    server.plan(judges=True)
    server.vote()
    server.finished(server.trigger())
    with server.scheduler._judging._one, pytest.raises(Unavailable, match="reading other answers; ask again"):
        server.scheduler.score([((Message("user", "Hi"),), "Hello.")])
