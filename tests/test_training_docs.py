"""docs/training.md is whole and true: settings, figures, labels, refusals, with the code's defaults and arithmetic."""

from __future__ import annotations

import dataclasses
import inspect
import json
import math
import re
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, get_args

import pytest
import torch

from docs.training_defaults import NAMED, PAGE, fill, settings
from serve.feedback.statistics import sequential_verdict, wilson
from serve.records import Due, Run, RunStatus, Version, VersionStatus
from serve.web import operator_view as view
from serve.web.parts import until_it_learns
from tests.run_scenes import SMALL, write_run, write_snapshot
from training.config import GateConfig
from training.gate import Answers, collapsed, judge, votes_suffice
from training.ppo_math import gae, kl_rewards, whiten
from training.rollouts import Rollout
from training.run import execute

TEXT = PAGE.read_text(encoding="utf-8")
EXPLAINED = [
    name
    for heads in re.findall(r"^- (`[\w.]+`(?:, `[\w.]+`)*)", TEXT, re.MULTILINE)
    for name in heads[1:-1].split("`, `")
]
"""Every name that begins a line of the page, or stands beside it."""


def unexplained(names: Iterator[str]) -> list[str]:
    """Names that are on the page neither themselves nor within what is there (`reward.accuracy` holds its `low`)."""
    known = set(EXPLAINED)
    whole = [[".".join(name.split(".")[:end]) for end in range(1, name.count(".") + 2)] for name in names]
    return sorted({paths[-1] for paths in whole if not known & set(paths)})


def test_the_page_says_the_defaults_and_bounds_of_the_code() -> None:
    assert fill(TEXT) == TEXT, "run python -m docs.training_defaults"


def test_every_setting_has_one_line() -> None:
    lines = NAMED.findall(TEXT)
    assert sorted(set(settings()) - set(lines)) == [], "add a line such as - `ppo.clip` (): what it is"
    assert len(lines) == len(set(lines))


def leaves(found: Mapping[str, Any], path: str = "") -> Iterator[str]:
    """The dotted place of every figure of a report."""
    for name, value in found.items():
        if isinstance(value, dict) and value:
            yield from leaves(value, f"{path}{name}.")
        else:
            yield path + name


@pytest.fixture(scope="module")
def run_folder(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on the tiny model that measures all there is: every stage, voters enough, demonstrations mixed in."""
    folder = tmp_path_factory.mktemp("run")
    write_snapshot(folder / "snapshot.db", demonstrations=12)
    run = {**SMALL, "ppo": {"updates": 2, "rollouts": 4, "value_warmup": 1, "max_tokens": 12, "ptx": 0.5}}
    report = execute(write_run(folder, tiny_model, stages=("sft", "reward", "ppo"), settings=run))
    (folder / "report.json").write_text(json.dumps(report))
    return folder


def test_every_figure_of_a_report_is_explained(run_folder: Path) -> None:
    report = json.loads((run_folder / "report.json").read_text())
    assert report["gate"]["new"], "the run must have come to the gate"
    assert unexplained(leaves(report)) == []


def test_every_metric_is_explained(run_folder: Path) -> None:
    lines = [json.loads(line) for line in (run_folder / "metrics.jsonl").read_text().splitlines()]
    assert {line["stage"] for line in lines} == {"sft", "reward", "ppo", "gate"}
    assert unexplained(name for line in lines for name in (*line, *line["metrics"])) == []


def test_nothing_is_explained_that_no_run_has(run_folder: Path) -> None:
    lines = [json.loads(line) for line in (run_folder / "metrics.jsonl").read_text().splitlines()]
    named = {name for line in lines for name in (*line, *line["metrics"])}
    for place in leaves(json.loads((run_folder / "report.json").read_text())):
        parts = place.split(".")
        named |= {".".join(parts[:end]) for end in range(1, len(parts) + 1)}
    assert sorted(set(EXPLAINED) - named - set(NAMED.findall(TEXT))) == []


def test_every_label_of_the_operator_page_is_explained() -> None:
    now = datetime(2026, 1, 1, tzinfo=UTC)
    state = view.State(
        serving=1,
        previous=0,
        due=Due(12, 50, timedelta(hours=24), now),
        standing_votes=62,
        demonstrations=3,
        runs=(Run(1, "succeeded", "votes", ("reward", "ppo"), now, version=1),),
        active=None,
        versions=(Version(1, "serving", now, run=1, parent=0), Version(0, "retired", now)),
        promotions=(),
    )
    drawn = view.summary(state) + view.versions(state) + view.runs(state)
    labels = re.findall(r"<(?:h2|th)\b[^>]*>([^<]+)<", drawn)
    assert {"Next run", "Outcome"} <= set(labels)
    labels += [title for _, title in view.CURVES] + list(view.STEPS.values())
    assert [label for label in labels if f"**{label}**" not in TEXT] == []
    words = [*get_args(RunStatus), *get_args(VersionStatus), *view.TRIGGERS.values()]
    assert [word for word in words if f"*{word}*" not in TEXT] == []


@pytest.mark.parametrize(
    ("status", "wait", "card", "words"),
    [
        ("succeeded", timedelta(), "About to start", "about to learn"),
        ("failed", timedelta(hours=1), "<time", "tries again later"),
        ("succeeded", None, "Waiting for the canary", "once its newest version has been tried out"),
    ],
)
def test_enough_votes_are_not_always_about_to_be_learned_from(
    status: RunStatus, wait: timedelta | None, card: str, words: str
) -> None:
    now = datetime.now(UTC)
    due = Due(50, 50, None, None if wait is None else now + wait)
    state = view.State(1, 0, due, 50, 0, (Run(1, status, "votes", ("reward",), now),), None, (), ())
    (drawn,) = re.findall(r'id="next-run">.*', view.summary(state))
    assert card in drawn and (card == "About to start") == ("About to start" in drawn)
    assert words in until_it_learns(due) and until_it_learns(due) != until_it_learns(None)


def refusals() -> list[str]:
    """Every sentence with which the gate refuses."""
    poor = {"value": 0.51, "low": 0.36, "high": 0.66, "comparisons": 42, "prompts": 40}
    sentences = [votes_suffice({**poor, **odd}, 50) for odd in ({}, {"value": 0.62, "low": 0.47}, {"prompts": 1})]
    parent = _answers("here is plan number {} for the garden", tokens=60, finish="stop", kl=1.0, nll=120.0, judged=0.0)
    bad = _answers("I can't you you you you you", tokens=9, finish="length", kl=40.0, nll=90.0, judged=-1.0)
    broken = dataclasses.replace(parent, kl=[math.nan] * 4)
    for new in (bad, broken):
        sentences += judge(new, parent, GateConfig(), compare=True)["reasons"]
    return [sentence for sentence in sentences if sentence]


def _answers(text: str, *, tokens: int, finish: Any, kl: float, nll: float, judged: float) -> Answers:
    ids = (7,) * tokens if finish == "length" else tuple(range(tokens))
    rollouts = [Rollout((1,), ids, (-1.0,) * tokens, text.format(i), finish) for i in range(4)]
    return Answers(rollouts, kl=[kl] * 4, base_nll=[nll] * 4, judged=[judged] * 4)


def test_every_refusal_is_quoted() -> None:
    def without_figures(text: str) -> str:
        return re.sub(r"\d+(\.\d+)?", "#", " ".join(text.split()))

    planted = sum(inspect.getsource(check).count(" refuse(") - 1 for check in (judge, collapsed))  # less its definition
    assert len({without_figures(sentence) for sentence in refusals()}) == planted + 3, (
        "plant a version for each refusal"
    )
    page = without_figures(TEXT)
    assert [sentence for sentence in refusals() if f'"{without_figures(sentence)}"' not in page] == []


def row(values: Any, form: str = "{:.2f}") -> str:
    """Cells of a table as the page writes them."""
    return "| " + " | ".join(form.format(value).replace("-", "−") for value in values) + " |"


def test_the_worked_examples_are_what_the_code_computes() -> None:
    differences = torch.tensor([0.0, 0.5, 1.0, 2.0, 3.0])
    assert row(torch.sigmoid(differences).tolist(), "{:.0%}") in TEXT
    for right, asked in ((14, 20), (140, 200), (31, 41), (17, 32)):
        found = wilson(right, asked)
        assert re.search(rf"{found.low:.0%}\s(to|and)\s{found.high:.0%}", TEXT), (right, asked)
    assert row([math.ceil((0.98 / (share - 0.5)) ** 2) for share in (0.55, 0.6, 0.65, 0.7, 0.8)], "{}") in TEXT
    assert row([0.8 * true + 0.2 * (1 - true) for true in (1.0, 0.9, 0.8, 0.5)], "{:.0%}") in TEXT
    assert sequential_verdict(8, 0, alpha=0.05) == "better"
    assert sequential_verdict(30, 14, alpha=0.05) == "undecided"

    mask = torch.ones(1, 4, dtype=torch.bool)
    log_ratios, values = torch.tensor([[0.2, -0.1, 0.6, 0.1]]), torch.tensor([[0.3, 0.4, 0.2, 0.6]])
    rewards = kl_rewards(torch.tensor([1.0]), log_ratios, torch.zeros(1, 4), mask, beta=0.1)
    surprises, _ = gae(rewards, values, mask, gamma=1.0, lam=0.0)
    advantages, returns = gae(rewards, values, mask, gamma=1.0, lam=0.95)
    for line in (log_ratios, rewards, values, surprises, advantages, returns, whiten(advantages, mask)):
        assert row(line[0].tolist()) in TEXT
