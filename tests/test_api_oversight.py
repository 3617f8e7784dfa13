"""What operators ask the API for beyond runs and versions: votes, exclusions, notes, logs, settings."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from serve.web.listener import LocalOperator
from tests.fakes import Web, publish
from tests.test_api import code, compared, operator, other, ranking, voter, web

__all__ = ["operator", "other", "voter", "web"]


def voted(client: TestClient) -> str:
    """A vote, as its id."""
    comparison = compared(client)
    answer = client.post(f"/api/comparisons/{comparison['id']}/vote", json=ranking(comparison))
    return str(answer.json()["id"])


def test_votes_are_found_and_excluded_with_a_reason_and_lifted(
    web: Web, voter: TestClient, operator: TestClient
) -> None:
    vote = voted(voter)
    (found,) = operator.get("/api/votes", params={"verdict": "ranking", "text": "sea"}).json()["votes"]
    assert (found["id"], found["voter"], found["excluded"]) == (vote, "voter-1", False)
    assert operator.get("/api/votes", params={"voter": 2}).json() == {"votes": [], "before": None}
    assert code(operator.post("/api/exclusions", json={"vote": vote, "reason": ""}), 422) == "invalid_input"
    made = operator.post("/api/exclusions", json={"vote": vote, "reason": "a slip"})
    assert made.status_code == 201 and made.json()["kind"] == "exclude"
    assert web.store.standing_votes() == 0
    assert code(operator.post("/api/exclusions", json={"vote": vote, "reason": "again"}), 409)
    assert [e["reason"] for e in operator.get("/api/exclusions").json()] == ["a slip"]
    assert operator.delete(f"/api/exclusions/{made.json()['id']}").status_code == 204
    assert web.store.standing_votes() == 1
    assert [deed["what"] for deed in operator.get("/api/log").json()] == [
        f"lifted the exclusion of vote {vote} of voter-1",
        f"excluded vote {vote} of voter-1: a slip",
    ]


def test_the_author_of_a_shared_prompt_is_found_and_excluded(
    web: Web, voter: TestClient, other: TestClient, operator: TestClient
) -> None:
    compared(voter, share=True)
    pair = other.get("/api/queue/next").json()
    other.post(f"/api/comparisons/{pair['id']}/vote", json={"verdict": "both_bad"})
    (found,) = operator.get("/api/votes", params={"asked_by": "voter-1"}).json()["votes"]
    assert (found["voter"], found["asked_by"]) == ("voter-2", "voter-1")
    made = operator.post("/api/exclusions", json={"voter": found["asked_by"], "reason": "spam"}).json()
    assert (made["voter"], made["vote"], made["prompt"]) == ("voter-1", None, None)
    assert web.store.next_in_queue("somebody else") is None
    assert operator.get("/api/votes", params={"asked_by": 2}).json()["votes"] == []


def test_demonstrations_are_listed(voter: TestClient, operator: TestClient) -> None:
    asked = {"messages": [{"role": "user", "content": "Hi"}], "answer": "Hello."}
    voter.post("/api/demonstrations", json=asked)
    (shown,) = operator.get("/api/demonstrations").json()["demonstrations"]
    assert (shown["voter"], shown["source"], shown["messages"]) == ("voter-1", "voter", asked["messages"])
    none: dict[str, object] = {"demonstrations": [], "before": None}
    for other_ones in ({"before": 1}, {"voter": 2}, {"text": "Bye"}, {"until": "2020-01-31"}, {"left_out": True}):
        assert operator.get("/api/demonstrations", params=other_ones).json() == none
    found = operator.get("/api/demonstrations", params={"voter": "voter-1", "text": "hello"}).json()
    assert [one["answer"] for one in found["demonstrations"]] == ["Hello."]


def test_a_dataset_comes_in_once(web: Web, operator: TestClient) -> None:
    lines = json.dumps({"prompt": "Hi?", "chosen": "Hello.", "rejected": "What."})
    assert operator.post("/api/import?format=trl", content=lines).status_code == 201
    again = operator.post("/api/import?format=trl", content=lines)
    assert code(again, 409) == "conflict" and "this file was imported already, on 2" in again.text
    assert web.store.standing_votes() == 1


def test_what_is_too_large_is_told_the_limit(operator: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serve.web.limits.IMPORT_BYTES", 3 * 2**20)
    refused = operator.post("/api/import?format=trl", content=b" " * (3 * 2**20 + 1))
    assert code(refused, 413) == "too_large" and "more than 3 MiB" in refused.text


def test_votes_are_found_by_date_and_what_is_no_date_is_refused(voter: TestClient, operator: TestClient) -> None:
    voted(voter)
    for since, found in (("2020-01-31", 1), ("2020-01-31T08:00+02:00", 1), ("2999-01-01", 0)):
        assert len(operator.get("/api/votes", params={"since": since}).json()["votes"]) == found
    refused = operator.get("/api/votes", params={"until": "31.01.2026"})
    assert code(refused, 422) == "invalid_input" and "until is a date such as 2026-01-31" in refused.text


def test_a_version_has_a_note_and_can_be_taken_away(web: Web, operator: TestClient, tmp_path: Path) -> None:
    publish(web.registry, tmp_path / "made")
    assert operator.put("/api/versions/1/note", json={"note": "kinder"}).status_code == 204
    newest = operator.get("/api/versions").json()["versions"][0]
    assert (newest["version"], newest["note"], newest["excluded_votes"]) == (1, "kinder", 0)
    taken = operator.get("/api/versions/1/adapter")
    with zipfile.ZipFile(io.BytesIO(taken.content)) as file:
        assert set(file.namelist()) == {
            "adapter_config.json",
            "adapter_model.safetensors",
            "manifest.json",
            "README.md",
        }
    assert code(operator.get("/api/versions/0/adapter"), 404) == "not_found"
    assert code(operator.put("/api/versions/9/note", json={"note": "?"}), 404) == "not_found"


def test_a_runs_log_and_the_settings_can_be_read(web: Web, voter: TestClient, operator: TestClient) -> None:
    voted(voter)
    run = operator.post("/api/runs", json={"force": True}).json()["id"]
    assert operator.get(f"/api/runs/{run}/log").text == ""
    folder = web.settings.folder.run(run)
    folder.mkdir(parents=True)
    (folder / "log.txt").write_text("one\ntwo\nthree\n")
    assert operator.get(f"/api/runs/{run}/log", params={"tail": 2}).text == "two\nthree"
    (folder / "log.txt").write_text(f"one\n{'two' * 1000}\nthree\n")
    assert operator.get(f"/api/runs/{run}/log", params={"tail": 2}).text == f"{'two' * 1000}\nthree", "lines are whole"
    assert code(operator.get("/api/runs/99/log"), 404) == "not_found"
    names = [setting["name"] for setting in operator.get("/api/settings").json()]
    assert "ppo.updates" in names


def test_the_board_is_json(voter: TestClient, operator: TestClient) -> None:
    assert "nothing has been learned" in operator.get("/api/board").json()["verdicts"][0]
    voted(voter)
    assert list(operator.get("/api/board").json()["votes_by_day"].values()) == [1]


def test_a_voter_takes_everything_home_and_chooses_to_share(voter: TestClient) -> None:
    voted(voter)
    mine = voter.get("/api/me/download")
    assert 'filename="hustings-mine.json"' in mine.headers["content-disposition"]
    assert len(mine.json()["votes"]) == 1
    assert voter.post("/api/me/consent", json={"share": True}).status_code == 204
    assert voter.get("/api/me/download").json()["consent"] == {"given": True, "share": True}
    assert code(voter.post("/api/me/consent", json={}), 422) == "invalid_input"


def test_the_schedule_is_changed_while_the_server_runs(web: Web, operator: TestClient) -> None:
    held = {entry["name"]: entry for entry in operator.get("/api/schedule").json()}
    assert (held["min_new_votes"]["value"], held["min_new_votes"]["fixed"]) == ("50", False)
    answer = operator.patch("/api/schedule", json={"min_new_votes": 20, "promotion": "manual"})
    held = {entry["name"]: entry["value"] for entry in answer.json()}
    assert (held["min_new_votes"], held["promotion"]) == ("20", "manual")
    refused = operator.patch("/api/schedule", json={"min_new_votes": 0})
    assert code(refused, 422) == "invalid_input"
    assert "new votes that start a run (min_new_votes) must be a whole number, 1 or more" in refused.text
    assert code(operator.patch("/api/schedule", json={"compare_share": 1}), 409) == "conflict"  # set at the start


def test_what_operators_take_away_and_when_they_came_is_logged(web: Web, operator: TestClient, tmp_path: Path) -> None:
    publish(web.registry, tmp_path / "made")
    operator.get("/api/versions/1/adapter")
    operator.get("/api/export", params={"format": "trl"})
    operator.get("/api/export", params={"format": "none such"})
    operator.post("/api/login", json={"token": "letmein"})
    operator.post("/api/login", json={"token": "wrong"})
    operator.post("/api/logout")
    assert [deed["what"] for deed in operator.get("/api/log").json()] == [
        "logged out",
        "tried to log in with a wrong token",
        "logged in",
        "exported trl",
        "downloaded version 1",
    ]


def test_the_log_tells_by_which_door_an_operator_came(web: Web, operator: TestClient) -> None:
    page = TestClient(web.app, follow_redirects=False)
    page.post("/login", data={"token": "wrong"})
    page.post("/login", data={"token": "letmein"})
    for client in (operator, page, TestClient(LocalOperator(web.app))):
        assert client.get("/api/export", params={"format": "trl"}).status_code == 200
    assert [(deed["who"], deed["what"]) for deed in operator.get("/api/log").json()] == [
        ("command line", "exported trl"),
        ("operator page", "exported trl"),
        ("operator", "exported trl"),
        ("operator page", "logged in"),
        ("somebody", "tried to log in with a wrong token"),
    ]


def test_starting_cancelling_and_importing_are_logged_once(web: Web, operator: TestClient) -> None:
    run = operator.post("/api/runs", json={"force": True}).json()["id"]
    operator.post(f"/api/runs/{run}/cancel")
    operator.post(
        "/api/import?format=trl", content=json.dumps({"prompt": "Hi?", "chosen": "Hello.", "rejected": "No."})
    )
    assert [(deed["who"], deed["what"]) for deed in operator.get("/api/log").json()] == [
        ("operator", "imported trl (votes: 1, demonstrations: 0)"),
        ("operator", f"cancelled run {run}"),
        ("operator", f"started run {run}"),
    ]
