"""When a run is due, start it; watch it; finish it.

    votes ── due? ──► queued ──► running ──► report.json ──► published ──► promoted, canary or staged
                        ▲           │
                        └ interrupted: the server stopped; the next start resumes the same folder

A tick a second looks at what is recorded and takes the next step, so a server that was killed anywhere goes on from
there: everything here may happen twice and nothing counts on memory. A run is a subprocess over its own folder (see
`training.process`); this module alone carries its results into the record.
"""

from __future__ import annotations

import errno
import itertools
import logging
import shutil
import sqlite3
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

from apscheduler.schedulers.background import BackgroundScheduler

from serve.copies import settle
from serve.errors import Conflict, HustingsError, InvalidInput, NothingToLearn, RunActive, Unavailable
from serve.feedback.statistics import sequential_verdict
from serve.feedback.store import Store
from serve.folder import DataFolder
from serve.policy.adapters import Registry
from serve.policy.base import ModelFolder
from serve.records import (
    ACTIVE,
    LEARNED,
    STAGES,
    Due,
    Message,
    Run,
    RunStatus,
    SettingInfo,
    Stage,
    Version,
    VersionStatus,
)
from serve.schedule import CANARY_ALPHA, current
from serve.settings import Schedule, Settings
from training.config import TrainingConfig
from training.judging import Judging, doubt_of, has_judges
from training.process import INTERRUPTED, TrainerProcess, death, locked
from training.run_folder import MetricsTail, RunFolder
from training.settings_info import settings_info

_RETRY = {"failed": timedelta(minutes=5), "cancelled": timedelta(hours=1)}
"""How long the schedule waits after a run that came to nothing; doubled for each further one in a row."""
DOUBTED = 50
"""Pairs of the queue that fold models read after each run."""
_PATIENCE = 20.0
"""Seconds that somebody at the page waits for a reward model that reads for others."""
_LONGEST_RETRY = timedelta(days=1)

log = logging.getLogger(__name__)


class Scheduler:
    """Runs of one server, one at a time. The web's `Training` protocol; thread-safe."""

    def __init__(
        self,
        store: Store,
        registry: Registry,
        settings: Settings,
        folder: DataFolder,
        model: ModelFolder,
        promote: Callable[[int, str, str], object],
        *,
        command: Sequence[str] = (sys.executable, "-m", "training"),
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
        tick_seconds: float = 1.0,
    ) -> None:
        """`promote(version, who, why)` makes a version serve, engine and record; it may raise Unavailable to be asked
        again. `command` starts the trainer, given the run's folder as its last argument.

        Raises InvalidInput when the settings' training overrides are unknown or out of bounds, or the engine could not
        load their rank.
        """
        self._store = store
        self._registry = registry
        self._settings = settings
        self._check_settings(settings.training)
        self._folder = folder
        self._model = model
        self._promote = promote
        self._command = command
        self._clock = clock
        self._tick_seconds = tick_seconds
        self._clockwork = BackgroundScheduler(timezone=UTC)
        self._ticking = threading.Lock()
        """Held by the tick."""
        self._changing = threading.Lock()
        """Held while a run's process and status change together, never while `promote` is called."""
        self._trainer: TrainerProcess | None = None
        self._metrics: MetricsTail | None = None
        self._judging = Judging()
        self._stopping = False
        self._complained: datetime | None = None

    def start(self) -> None:
        """Begin to tick. A run that an earlier server left is resumed by the first tick."""
        run = self._store.active_run()
        settle(self._folder, None if run is None else run.id)
        if run is not None and run.status == "running":
            self._store.update_run(run.id, status="interrupted", eta_seconds=None)
        logging.getLogger("apscheduler").setLevel(logging.ERROR)  # it tells of every tick
        self._clockwork.add_job(
            self.tick,
            "interval",
            seconds=self._tick_seconds,
            next_run_time=datetime.now(UTC),
            coalesce=True,
            max_instances=1,
            misfire_grace_time=None,  # otherwise a tick that is a second late is dropped
        )
        self._clockwork.start()

    def stop(self, timeout: float = 10) -> None:
        """Stop ticking and end the trainer; the next start resumes the run from its last checkpoint. Idempotent.

        Returns within about `timeout` seconds: a trainer that has not ended a second before that is killed. Call it
        from a thread that `promote` does not wait for.
        """
        self._stopping = True
        self._judging.close()
        if self._clockwork.running:
            self._clockwork.shutdown(wait=False)
        with self._changing:
            if self._trainer is not None:
                self._trainer.stop(max(0.0, timeout - 1))
                self._trainer = None
                if (run := self._store.active_run()) is not None:
                    self._carry_metrics(run)
                    self._store.update_run(run.id, status="interrupted", eta_seconds=None)
        if self._ticking.acquire(timeout=1):  # the store is about to close: let a tick finish its sentence
            self._ticking.release()

    def tick(self) -> None:
        """Take the next step, if there is one."""
        with self._ticking:
            try:
                self._step()
            except Unavailable as reason:
                self._complain(f"the training scheduler waits: {reason}", logging.INFO)
            except Exception:
                log.exception("a tick of the training scheduler failed; the next one tries again")

    def trigger(
        self, *, stages: Sequence[Stage] | None, settings: Mapping[str, Any] | None, force: bool, who: str
    ) -> Run:
        """Queue a run by hand. `settings` override the server's own; `force` needs only something to learn from.

        Raises RunActive, NothingToLearn (says what is missing), InvalidInput (unknown stage or setting).
        """
        chosen = self._choose_stages(stages)
        overrides = _merge(self._settings.training, settings or {})
        self._check_settings(overrides)
        if (active := self._store.active_run()) is not None:
            raise RunActive(active.id)
        self._check_material(chosen, force=force)
        run = self._store.create_run("operator", chosen, {"settings": overrides, "who": who}, who=who)
        log.info("run %d: queued by %s", run.id, who)
        return run

    def cancel(self, run_id: int, *, who: str) -> Run:
        """End a run and whatever process it has; nothing of it is published.

        Raises NotFound, and Conflict when it has ended or its version is out already.
        """
        with self._changing:
            run = self._store.run(run_id)
            if run.status not in ACTIVE:
                raise Conflict(f"run {run_id} has already ended ({run.status})")
            if (version := next((v for v in self._store.versions() if v.run == run_id), None)) is not None:
                raise Conflict(f"run {run_id} has just been published as version {version.number}")
            if self._trainer is not None:
                self._trainer.kill()
                self._trainer = None
                self._carry_metrics(run)
            log.info("run %d: cancelled by %s", run_id, who)
            return self._end(run, "cancelled", who=who)

    def settings(self) -> list[SettingInfo]:
        """What a run can be told, with bounds, in words."""
        return settings_info(TrainingConfig.parse(self._settings.training))

    def score(self, items: Sequence[tuple[Sequence[Message], str]]) -> list[float] | None:
        """What the newest reward model says of answers to messages; None where no run has left one.

        Blocks for as long as a model takes to load. Raises Unavailable, also while it reads for the queue.
        """
        folders = (RunFolder(self._folder.run(run.id)) for run in self._store.runs())
        newest = next((folder for folder in folders if has_judges(folder)), None)
        if newest is None:
            return None
        return [found.score for found in self._judging.ask(newest.path, items, patience=_PATIENCE)]

    def due(self) -> Due:
        """How far the next run by schedule is."""
        new = self._store.votes_since_last_run()
        wanted = self._schedule()
        return Due(new, wanted.min_new_votes, wanted.max_interval, self._next_by(new, wanted))

    def _schedule(self) -> Schedule:
        return current(self._store, self._settings)

    # ── one tick ──────────────────────────────────────────────────────────────────────────────────────────────────

    def _step(self) -> None:
        if self._stopping:
            return
        self._judge_canary()
        run = self._store.active_run()
        if run is None:
            self._begin_if_due()
        elif self._trainer is not None:
            self._watch(run)
        else:
            self._go_on(run)

    def _begin_if_due(self) -> None:
        due = self.due()
        if due.next_by is None or due.next_by > self._clock():
            return
        trigger: Literal["votes", "interval"] = "votes" if due.new_votes >= due.min_new_votes else "interval"
        run = self._store.create_run(trigger, self._choose_stages(None), {"settings": self._settings.training})
        log.info("run %d: due by %s with %d new votes", run.id, trigger, due.new_votes)
        self._go_on(run)

    def _go_on(self, run: Run) -> None:
        """Start a run's trainer, or finish a run whose trainer had ended before anybody looked."""
        folder = RunFolder(self._folder.run(run.id))
        try:
            if folder.config().get("created") != run.created.isoformat():
                self._prepare(run, folder)
        except (HustingsError, OSError, ValueError, sqlite3.Error) as error:
            with self._changing:
                if self._is_active(run):
                    self._end(run, "failed", error=f"the run could not be prepared: {error}")
            return
        with locked(folder.path) as lock:
            if lock is None:
                return  # the trainer of a server that was killed has not ended yet
            self._metrics = MetricsTail(folder)  # from the top: a line recorded twice is recorded once
            if (report := folder.report()) is not None:
                self._carry_metrics(run)
                self._finish(run, folder, report)
                return
            with self._changing:
                if self._stopping or not self._is_active(run):
                    return
                try:
                    self._trainer = TrainerProcess(self._command, folder.path, lock)
                except OSError as error:
                    self._end(run, "failed", error=f"the trainer could not be started: {error}")
                    return
                self._store.update_run(run.id, status="running", started=run.started or self._clock())
                log.info("run %d: trainer %d in %s", run.id, self._trainer.pid, folder.path)

    def _prepare(self, run: Run, folder: RunFolder) -> None:
        """Put in the run's folder all that it may read. A crash in here leaves no config.json: it is done again."""
        folder.clear()
        self._store.snapshot(run.id, folder.snapshot)
        parent = folder.serving_at_snapshot()
        config = {
            "run": run.id,
            "created": run.created.isoformat(),
            "seed": run.id,
            "stages": list(run.stages),
            "model": {
                "path": str(self._model.path),
                "hash": self._model.hash,
                "name": self._model.name,
                "cache": str(self._model.cache),
                "dtype": self._settings.dtype,
                "threads": self._settings.threads,
            },
            "serving": {"max_tokens": self._settings.max_tokens, "temperature": self._settings.temperature},
            "parent": parent,
            "settings": self._store.run_config(run.id)["settings"],
        }
        if (adapter := self._registry.verify(parent)) is not None:
            shutil.copytree(adapter, folder.parent)
        demonstrations = folder.demonstrations_hash()
        if "sft" in run.stages and demonstrations is not None:
            earlier = (RunFolder(self._folder.run(other.id)) for other in self._store.runs() if other.id != run.id)
            if (fitting := next((e for e in earlier if e.offers_sft(demonstrations, config)), None)) is not None:
                shutil.copytree(fitting.sft, folder.sft)
        folder.write_config(config)

    def _watch(self, run: Run) -> None:
        """Carry what the trainer measured into the record, and act on its end."""
        with self._changing:
            trainer = self._trainer
            if trainer is None:
                return
            code = trainer.poll()
            self._carry_metrics(run)  # after the poll, so that the last lines are among them
            if code is None:
                return
            self._trainer = None
            folder = RunFolder(self._folder.run(run.id))
            report = folder.report()  # with it the run has ended, however its process did
            if report is None and code == INTERRUPTED:
                self._store.update_run(run.id, status="interrupted", eta_seconds=None)
            elif report is None:
                self._end(run, "failed", error=death(code, folder.path))
        if report is not None:
            self._finish(run, folder, report)

    def _carry_metrics(self, run: Run) -> None:
        rows = self._metrics.read() if self._metrics is not None else []
        if rows:
            # A resumed run repeats some steps, but its bar never moves back.
            rows[-1]["progress"] = max(run.progress, *(row["progress"] for row in rows))
            self._store.add_run_metrics(run.id, rows)

    def _finish(self, run: Run, folder: RunFolder, report: dict[str, Any]) -> None:
        """Publish what a run made and put it to work. Every step finds what an earlier, interrupted attempt did."""
        status: RunStatus = report["status"] if report.get("status") in LEARNED else "failed"
        with self._changing:
            if not self._is_active(run):
                return
            version = None
            try:
                folder.settle()
                if status != "failed" and report.get("adapter"):
                    version = self._registry.publish(
                        folder.adapter,
                        run=run.id,
                        parent=folder.config()["parent"],
                        status="staged" if status == "succeeded" else "rejected",
                        report=report,
                    )
            except HustingsError as error:
                self._end(run, "failed", report=report, error=f"the new version could not be published: {error}")
                return
            except OSError as error:  # a full disk, say: the run is done, and a later tick publishes it
                full = error.errno in (errno.ENOSPC, errno.EDQUOT)
                advice = f"; free some space in {self._folder.root}" if full else ""
                self._complain(f"run {run.id} cannot be published yet: {error}{advice}")
                return
            if version is None:  # now, while nobody can cancel it
                reasons = report.get("reasons") or ["it gave no reason"]
                self._end(run, status, report=report, error="; ".join(reasons) if status == "failed" else None)
                return
        problem = None
        if version.status == "staged":
            problem = self._put_to_work(version, f"run {run.id} passed the gate")
        with self._changing:
            self._end(run, status, version=version.number, report=report, error=problem)

    def _doubt(self, run: Run) -> None:
        """Let a run's fold models read the pairs that wait in the queue; those they differ about most come first."""
        folder = RunFolder(self._folder.run(run.id))
        if not has_judges(folder):
            return
        try:
            pairs = self._store.undoubted(run.id, DOUBTED)
            items = [(pair.messages, text) for pair in pairs for text in (pair.first_text, pair.second_text)]
            judged = self._judging.ask(folder.path, items) if items else []
            both = zip(pairs, judged[::2], judged[1::2], strict=True)
            self._store.set_doubts(run.id, [(pair.first, pair.second, doubt_of(a, b)) for pair, a, b in both])
        except Unavailable as error:
            log.info("run %d: the queue stays as it was: %s", run.id, error)
        except Exception:
            log.exception("run %d: the queue stays as it was", run.id)

    def _complain(self, problem: str, level: int = logging.ERROR) -> None:
        """Log what every tick meets again, at most once a minute."""
        now = self._clock()
        if self._complained is None or now - self._complained >= timedelta(minutes=1):
            self._complained = now
            log.log(level, "%s", problem)

    def _put_to_work(self, version: Version, why: str) -> str | None:
        """Promote a staged version or make it the canary, as configured; a sentence if that was not possible."""
        promotion = self._schedule().promotion
        if promotion == "auto":
            return self._promote_or_explain(version.number, why)
        if promotion == "canary":
            for earlier in self._store.versions():
                if earlier.status == "canary":
                    self._set_status(earlier.number, "staged", f"version {version.number} is tried instead")
            self._set_status(version.number, "canary", why)
        return None

    def _set_status(self, number: int, status: VersionStatus, why: str) -> None:
        self._store.set_version_status(number, status, who="scheduler", why=why)

    def _promote_or_explain(self, number: int, why: str) -> str | None:
        try:
            self._promote(number, "scheduler", why)
        except Unavailable:
            raise  # the engine is still loading: the next tick asks again
        except Exception as error:
            if self._stopping:
                raise  # nobody answers any more: the next start asks again
            log.exception("version %d was not promoted", number)
            return f"version {number} is staged, but could not be promoted: {error}"
        return None

    def _is_active(self, run: Run) -> bool:
        """Whether nobody has cancelled the run since it was read."""
        return self._store.run(run.id).status in ACTIVE

    def _end(
        self,
        run: Run,
        status: RunStatus,
        *,
        version: int | None = None,
        report: dict[str, Any] | None = None,
        error: str | None = None,
        who: str | None = None,
    ) -> Run:
        log.info("run %d: %s%s", run.id, status, f" ({error})" if error else "")
        learned: dict[str, Any] = {"progress": 1.0} if status in LEARNED else {}
        ended = self._store.update_run(
            run.id,
            who=who,
            status=status,
            version=version,
            report=report,
            error=error,
            eta_seconds=None,
            finished=self._clock(),
            **learned,
        )
        if learned:
            threading.Thread(target=self._doubt, args=(run,), daemon=True).start()
        settle(self._folder, None)  # what was deleted while it was on; a deletion from now on sees that it has ended
        return ended

    # ── what is due ───────────────────────────────────────────────────────────────────────────────────────────────

    def _next_by(self, new_votes: int, schedule: Schedule) -> datetime | None:
        """From the runs and versions as recorded. None while a run or a canary is on, or too few votes have come."""
        versions = self._store.versions()
        if not new_votes or self._store.active_run() is not None or any(v.status == "canary" for v in versions):
            return None
        runs = self._store.runs(limit=20, metrics=False)
        now = self._clock()
        if new_votes >= schedule.min_new_votes:
            at = now
        elif schedule.max_interval is not None:
            learned = next((run for run in runs if run.status in LEARNED), None)
            began = learned.created if learned else min(version.created for version in versions)
            at = began + schedule.max_interval
        else:
            return None
        fruitless = list(itertools.takewhile(lambda run: run.status in _RETRY, runs))
        if fruitless:
            last = fruitless[0]
            wait = min(_RETRY[last.status] * 2 ** min(len(fruitless) - 1, 20), _LONGEST_RETRY)
            at = max(at, (last.finished or last.created) + wait)
        return max(at, now)

    def _choose_stages(self, stages: Sequence[Stage] | None) -> tuple[Stage, ...]:
        """The stages asked for, in order; else those there is something to learn from."""
        if stages is None:
            sft = self._store.demonstrations_count() > 0
            votes = self._store.standing_votes() > 0
            return tuple(s for s in STAGES if (sft if s == "sft" else votes)) or ("reward", "ppo")
        if unknown := [stage for stage in stages if stage not in STAGES]:
            raise InvalidInput(f"unknown stages: {', '.join(map(str, unknown))}; there are {', '.join(STAGES)}")
        if not stages:
            raise InvalidInput(f"stages is empty; name some of {', '.join(STAGES)}, or leave it out")
        if "ppo" in stages and "reward" not in stages:
            raise InvalidInput("ppo needs a reward model: add reward to stages")
        return tuple(stage for stage in STAGES if stage in stages)

    def _check_settings(self, training: Mapping[str, Any]) -> None:
        rank, limit = TrainingConfig.parse(training).rank, self._settings.max_lora_rank
        if rank > limit:
            raise InvalidInput(
                f"rank {rank} is above max_lora_rank {limit}, so the version could not serve; lower rank, or start the "
                f"server with a max_lora_rank of {rank}"
            )

    def _check_material(self, stages: Sequence[Stage], *, force: bool) -> None:
        new, wanted = self._store.votes_since_last_run(), self._schedule().min_new_votes
        if "reward" in stages and not force and new < wanted:
            missing = "1 vote is" if wanted - new == 1 else f"{wanted - new} votes are"
            raise NothingToLearn(f"{missing} missing: {new} of {wanted} new votes are there; gather more, or force")
        votes, shown = self._store.standing_votes(), self._store.demonstrations_count()
        if "reward" in stages and not votes:
            instead = (
                "ask for stages=[sft] to learn from the demonstrations alone" if shown else "let people vote first"
            )
            raise NothingToLearn(f"there is no vote to learn from yet; {instead}")
        if "reward" not in stages and not shown:
            raise NothingToLearn(
                "there is no demonstration to learn from yet; add some, or ask for stages=[reward, ppo]"
            )

    def _judge_canary(self) -> None:
        """Promote or roll back the canary once blind votes have decided; past its deadline, put it back to staged."""
        canary = next((v for v in self._store.versions() if v.status == "canary"), None)
        if canary is None:
            return
        serving = self._store.serving()
        tally = self._store.head_to_head(canary.number, serving)
        score = f"{tally.wins} wins and {tally.losses} losses against version {serving} in blind votes"
        verdict = sequential_verdict(tally.wins, tally.losses, alpha=CANARY_ALPHA)
        if verdict == "better":
            if (problem := self._promote_or_explain(canary.number, f"canary: {score}")) is not None:
                self._set_status(canary.number, "staged", problem)
                log.warning("%s", problem)
        elif verdict == "worse":
            self._set_status(canary.number, "rolled_back", score)
            log.info("version %d was rolled back: %s", canary.number, score)
        elif self._clock() >= canary.created + self._schedule().canary_deadline:
            self._set_status(canary.number, "staged", f"{score} did not decide in time")
            log.info("version %d is staged again: %s did not decide in time", canary.number, score)


def _merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Nested settings, those of `over` winning."""
    merged = dict(base)
    for name, value in over.items():
        below = merged.get(name)
        merged[name] = _merge(below, value) if isinstance(below, Mapping) and isinstance(value, Mapping) else value
    return merged
