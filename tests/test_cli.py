"""The command line and the composition root; the server itself is run by test_loop.py."""

from __future__ import annotations

import asyncio
import gzip
import json
import os
import socket
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.responses import JSONResponse
from starlette.types import Receive, Scope, Send

import app
from serve import doctor
from serve.client import ApiError, Client, over_socket, told
from serve.errors import PortInUse, StartupError
from serve.feedback.store import Store
from serve.folder import DataFolder
from serve.policy.adapters import Registry
from serve.service import Service
from serve.settings import Settings
from serve.sockets import bind, local_socket
from serve.web.listener import Entrance, HttpServer, LocalOperator
from tests.fakes import FakeEngine

ROOT = Path(__file__).parent.parent


@pytest.fixture(autouse=True)
def empty_surroundings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No hustings.toml and no settings in the environment."""
    monkeypatch.chdir(tmp_path)
    for name in [name for name in os.environ if name.startswith("HUSTINGS_")]:
        monkeypatch.delenv(name)


@pytest.fixture
def folder(tmp_path: Path) -> DataFolder:
    """A data folder with an empty record."""
    folder = DataFolder(tmp_path / "data" / "feedback.db")
    folder.root.mkdir()
    Store.open(folder).close()
    return folder


def run(folder: DataFolder, *arguments: str) -> int:
    return app.main([*arguments, "--db", str(folder.db)])


def said(capsys: pytest.CaptureFixture[str]) -> Any:
    return json.loads(capsys.readouterr().out)


# ── commands without a server ─────────────────────────────────────────────────────────────────────────────────────


def test_status_without_a_server_says_so(folder: DataFolder, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(folder, "status", "--json") == 0
    assert said(capsys) == {"serving": 0, "new_votes": 0, "run": None, "server": None}
    assert run(folder, "status") == 0
    assert "server     none runs" in capsys.readouterr().out


def test_versions_start_with_the_base(folder: DataFolder, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(folder, "versions") == 0
    head, base = capsys.readouterr().out.splitlines()
    assert head.split() == ["version", "status", "run", "parent", "created"]
    assert base.split()[:2] == ["0", "serving"]


def test_the_schedule_is_shown_and_changed(folder: DataFolder, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(folder, "schedule", "min_new_votes = 20", "max_interval=2h", "--json") == 0
    assert {entry["name"]: entry["value"] for entry in said(capsys)}["max_interval"] == "2h"
    assert run(folder, "schedule") == 0
    assert capsys.readouterr().out.splitlines()[0].split() == ["min_new_votes", "20"]
    assert run(folder, "schedule", "min_new_votes=0") == 1
    assert "(min_new_votes) must be a whole number, 1 or more, not '0'" in capsys.readouterr().err
    assert run(folder, "log") == 0
    assert "set min_new_votes to 20, max_interval to 2h" in capsys.readouterr().out
    assert run(folder, "schedule", "promotion=manual") == 0
    capsys.readouterr()
    assert run(folder, "log", "--limit", "1") == 0
    newest, rest = capsys.readouterr().out.splitlines()
    assert "set promotion to manual" in newest and rest == "(the newest 1; --limit shows more)"


def test_the_board_says_whether_it_is_getting_better(folder: DataFolder, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(folder, "board") == 0
    assert "nothing has been learned yet" in capsys.readouterr().out


def test_what_is_imported_is_exported_again(
    folder: DataFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    row = {"messages": [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Good morning."}]}
    (tmp_path / "in.jsonl").write_text(json.dumps(row) + "\n")
    assert run(folder, "import", "--format", "sft", "in.jsonl", "--json") == 0
    assert said(capsys)["demonstrations"] == 1
    assert run(folder, "export", "--format", "sft", "--out", "out.jsonl", "--json") == 0
    assert said(capsys) == {"file": "out.jsonl", "lines": 1}
    assert run(folder, "import", "--format", "sft", "in.jsonl") == 1
    assert "this file was imported already" in capsys.readouterr().err
    assert json.loads((tmp_path / "out.jsonl").read_text())["messages"] == row["messages"]
    assert run(folder, "export", "--format", "sft") == 0
    assert said(capsys)["messages"] == row["messages"]


def test_a_packed_file_is_imported_as_it_is(
    folder: DataFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    row = {"chosen": "\n\nHuman: Hello\n\nAssistant: Hi.", "rejected": "\n\nHuman: Hello\n\nAssistant: What?"}
    packed = gzip.compress(json.dumps(row).encode())
    (tmp_path / "in.jsonl.gz").write_bytes(packed)
    assert run(folder, "import", "--format", "hh", "in.jsonl.gz", "--json") == 0
    assert said(capsys)["votes"] == 1
    (tmp_path / "in.jsonl.gz").write_bytes(packed[:-12])
    assert run(folder, "import", "--format", "hh", "in.jsonl.gz") == 1
    assert "fetch it again" in capsys.readouterr().err


def test_chosen_answers_are_imported_as_demonstrations(
    folder: DataFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    row = {"prompt": "Hello", "chosen": "Good morning.", "rejected": "What."}
    (tmp_path / "in.jsonl").write_text(json.dumps(row) + "\n")
    assert run(folder, "import", "--format", "trl", "--as", "demonstrations", "in.jsonl", "--json") == 0
    assert {name: count for name, count in said(capsys).items() if count} == {"demonstrations": 1}


def test_a_bad_import_line_is_named_and_nothing_is_taken(
    folder: DataFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = json.dumps({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]})
    (tmp_path / "in.jsonl").write_text(f"{good}\nnot json\n")
    assert run(folder, "import", "--format", "sft", "in.jsonl") == 1
    assert "line 2" in capsys.readouterr().err
    with Store.open(folder) as store:
        assert store.demonstrations_count() == 0


def test_promote_and_rollback_work_without_a_server(
    folder: DataFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    publish(folder, tmp_path)
    assert run(folder, "promote", "1", "--json") == 0
    assert said(capsys) == {"serving": 1}
    assert run(folder, "rollback") == 0
    assert capsys.readouterr().out == "version 0 serves\n"
    with Store.open(folder) as store:
        assert [(p.from_version, p.to_version) for p in reversed(store.promotions())] == [(0, 1), (1, 0)]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["promote", "9"], "there is no version 9"),
        (["rollback"], "promote the one you want instead"),
        (["import", "--format", "sft", "missing.jsonl"], "cannot read missing.jsonl"),
        (["train", "--set", "ppo.updates"], "NAME=VALUE"),
        (["train", "--set", "ppo.updates=NaN"], "ppo.updates must be"),
        (["export", "--format", "sft", "--out", "nowhere/out.jsonl"], "another file with --out"),
    ],
)
def test_what_cannot_be_done_is_one_sentence(
    folder: DataFolder, arguments: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(folder, *arguments) == 1
    error = capsys.readouterr().err
    assert error.startswith("hustings: ")
    assert sentence in error
    assert "Traceback" not in error


def test_with_json_an_error_looks_as_the_api_has_it(folder: DataFolder, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(folder, "promote", "9", "--json") == 1
    error = said(capsys)["error"]
    assert error["code"] == "not_found" and "there is no version 9" in error["message"]
    assert run(DataFolder(folder.root / "none" / "feedback.db"), "status", "--json") == 1
    assert said(capsys)["error"]["code"] == "startup"

    def busy(_: httpx.Request) -> httpx.Response:
        return httpx.Response(409, json=refusal)

    refusal = {"error": {"code": "run_active", "message": "run 7 is on; wait for it", "run": 7}}
    http = httpx.AsyncClient(transport=httpx.MockTransport(busy), base_url="http://test")
    with pytest.raises(ApiError) as refused:
        asyncio.run(Client(http).call("POST", "/api/runs"))
    assert told(refused.value) == refusal


def test_training_without_votes_says_how_many_are_missing(
    folder: DataFolder, tiny_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(folder, "train", "--model", str(tiny_model)) == 1
    assert "50 votes are missing" in capsys.readouterr().err


def test_a_command_makes_no_database(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(DataFolder(tmp_path / "none" / "feedback.db"), "status") == 1
    assert "there is no database" in capsys.readouterr().err
    assert not (tmp_path / "none").exists()


def test_flags_win_over_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HUSTINGS_PORT", "1111")
    monkeypatch.setenv("HUSTINGS_HOST", "0.0.0.0")
    seen: list[Settings] = []

    def serve(settings: Settings) -> int:
        seen.append(settings)
        return 0

    monkeypatch.setattr(app, "serve", serve)
    assert app.main(["--port", "2222", "--max-interval", "15m"]) == 0
    assert (seen[0].port, seen[0].host) == (2222, "0.0.0.0")
    assert seen[0].max_interval is not None
    assert seen[0].max_interval.total_seconds() == 900


# ── starting ──────────────────────────────────────────────────────────────────────────────────────────────────────


def start(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "app.py"), *arguments]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=60, check=False)


def test_a_port_in_use_is_found_before_anything_is_made(tmp_path: Path) -> None:
    with bind("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        done = start("--port", str(port), cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr == (
        f"hustings: port {port} on 127.0.0.1 is in use; stop what listens there, or choose another port with --port\n"
    )
    assert list(tmp_path.iterdir()) == []


def test_a_second_server_on_a_database_is_refused_with_the_first_ones_pid(folder: DataFolder, tmp_path: Path) -> None:
    with Store.open(folder):
        done = start("--db", str(folder.db), "--port", "0", cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert str(os.getpid()) in done.stderr


def test_a_missing_model_ends_the_start_with_a_sentence(tmp_path: Path) -> None:
    done = start("--model", str(tmp_path / "nowhere"), "--port", "0", cwd=tmp_path)
    assert done.returncode == 1
    assert "no model folder at" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "feedback.sock").exists()


def test_the_operator_token_is_shown_at_the_first_start_only(tmp_path: Path) -> None:
    broken = ("--model", str(tmp_path / "nowhere"), "--port", "0")
    assert "Operator token" in start(*broken, cwd=tmp_path).stdout
    assert "Operator token" not in start(*broken, cwd=tmp_path).stdout


def publish(folder: DataFolder, tmp_path: Path, *, count: int = 1) -> None:
    """Versions 1 to `count`, staged, with adapters that hold no weights."""
    source = tmp_path / "source"
    source.mkdir(exist_ok=True)
    (source / "adapter_config.json").write_text("{}")
    with Store.open(folder) as store:
        for number in range(1, count + 1):
            (source / "adapter_model.safetensors").write_bytes(bytes([number]))
            registry = Registry(folder, store, base_hash=None)
            registry.publish(source, run=None, parent=None, status="staged", report={})


def attached(folder: DataFolder) -> tuple[int, FakeEngine]:
    """What serves after a start, by the record and by the engine."""
    engine = FakeEngine()
    with Store.open(folder) as store:
        registry = Registry(folder, store, base_hash=None)
        service = Service(store=store, engine=None, registry=registry, settings=Settings.load({"db": folder.db}))
        app.attach(service, store, engine)
        assert service.ready
        return store.serving(), engine


def promote(folder: DataFolder, *versions: int) -> None:
    with Store.open(folder) as store:
        for version in versions:
            store.set_serving(version, who="test", why="test")


def test_a_restart_serves_the_promoted_version(folder: DataFolder, tmp_path: Path) -> None:
    publish(folder, tmp_path, count=2)
    promote(folder, 1, 2, 1)
    serving, engine = attached(folder)
    assert (serving, engine.serving) == (1, 1)


def test_a_broken_version_gives_way_to_the_newest_whole_one(
    folder: DataFolder, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    publish(folder, tmp_path, count=4)
    promote(folder, 1, 2, 4)
    (folder.adapter(4) / "adapter_model.safetensors").write_bytes(b"flipped")
    serving, engine = attached(folder)
    assert (serving, engine.serving) == (2, 2)
    assert "version 4 cannot serve" in caplog.text
    with Store.open(folder) as store:
        last = store.promotions()[0]
    assert (last.from_version, last.to_version, last.who) == (4, 2, "server")
    assert "adapter_model.safetensors" in last.why
    assert last.rolled_back
    with Store.open(folder) as store:
        assert store.previous_serving() == 1, "a rollback does not return to the broken version"


def test_when_every_version_is_broken_the_base_serves(folder: DataFolder, tmp_path: Path) -> None:
    publish(folder, tmp_path, count=2)
    promote(folder, 1, 2)
    for version in (1, 2):
        (folder.adapter(version) / "manifest.json").unlink()
    serving, engine = attached(folder)
    assert (serving, engine.serving) == (0, 0)


# ── sockets and the entrance ──────────────────────────────────────────────────────────────────────────────────────


def test_an_unusable_host_is_a_sentence() -> None:
    with pytest.raises(StartupError, match="choose another with --host"):
        bind("203.0.113.1", 0)
    with bind("127.0.0.1", 0) as taken, pytest.raises(PortInUse):
        bind("127.0.0.1", taken.getsockname()[1])


def test_the_local_socket_is_its_owners_alone_and_goes_away(tmp_path: Path) -> None:
    path = tmp_path / "feedback.sock"
    path.write_text("left by a server that was killed")
    with local_socket(path):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert stat.S_ISSOCK(path.stat().st_mode)
    assert not path.exists()


async def local_operator(scope: Scope, receive: Receive, send: Send) -> None:
    """An application that tells who the listener says is asking."""
    local = scope.get("hustings.local_operator", False)
    await JSONResponse({"local": local})(scope, receive, send)


def test_the_local_socket_works_at_the_end_of_a_very_long_path(tmp_path: Path) -> None:
    deep = tmp_path.joinpath(*["a-folder-with-a-long-name"] * 8)
    deep.mkdir(parents=True)

    async def ask(path: Path) -> Any:
        with local_socket(path) as listener:
            server = HttpServer(LocalOperator(local_operator))
            serving = asyncio.create_task(server.serve(sockets=[listener]))
            async with over_socket(path) as client:
                assert client is not None
                answer = await client.call("GET", "/whoever")
            server.should_exit = True
            await serving
        return answer

    assert asyncio.run(ask(deep / "feedback.sock")) == {"local": True}


def test_no_server_and_a_stale_socket_are_both_no_client(tmp_path: Path) -> None:
    async def reachable(path: Path) -> bool:
        async with over_socket(path) as client:
            return client is not None

    path = tmp_path / "feedback.sock"
    assert not asyncio.run(reachable(path))
    assert not asyncio.run(reachable(tmp_path.joinpath(*["a-missing-folder-with-a-long-name"] * 8, "feedback.sock")))
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(path))
    assert not asyncio.run(reachable(path))


def test_programs_are_told_to_try_again_and_pages_wait() -> None:
    async def scene() -> None:
        entrance = Entrance()
        transport = httpx.ASGITransport(app=entrance)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as http:
            early = await http.get("/health")
            assert (early.status_code, early.json()["error"]["code"]) == (503, "unavailable")
            page = asyncio.create_task(http.get("/operator"))
            entrance.open_api(JSONResponse({"from": "api"}))
            assert (await http.get("/v1/models")).json() == {"from": "api"}
            assert not page.done()
            entrance.open(JSONResponse({"from": "all"}))
            assert (await page).json() == {"from": "all"}
            assert (await http.get("/health")).json() == {"from": "all"}

    asyncio.run(asyncio.wait_for(scene(), 10))


def test_a_stopping_server_sends_waiting_pages_away() -> None:
    async def scene() -> int:
        entrance = Entrance()
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app=entrance), base_url="http://test") as http:
            page = asyncio.create_task(http.get("/"))
            await asyncio.sleep(0)
            entrance.close()
            return (await page).status_code

    assert asyncio.run(asyncio.wait_for(scene(), 10)) == 503


def test_status_says_when_the_model_is_still_loading() -> None:
    def loading(request: httpx.Request) -> httpx.Response:
        if request.url.path == "/health":
            error = {"code": "unavailable", "message": "the model is still loading"}
            return httpx.Response(503, json={"status": "unavailable", "error": error})
        if request.url.path == "/metrics":
            return httpx.Response(200, text="hustings_new_votes 3.0\n")
        return httpx.Response(200, json={"serving": 0} if request.url.path == "/api/versions" else [])

    http = httpx.AsyncClient(transport=httpx.MockTransport(loading), base_url="http://test")
    assert "server     the model is still loading" in asyncio.run(Client(http).status()).text


def test_status_asks_for_the_newest_run_alone() -> None:
    asked: list[str | None] = []

    def answer(request: httpx.Request) -> httpx.Response:
        if request.url.path == "/metrics":
            return httpx.Response(200, text="hustings_new_votes 3.0\n")
        if request.url.path == "/api/runs":
            asked.append(request.url.params.get("limit"))
            return httpx.Response(200, json=[run_json()])
        return httpx.Response(200, json={"serving": 0})

    http = httpx.AsyncClient(transport=httpx.MockTransport(answer), base_url="http://test")
    assert "run        7 running, ppo, 40%" in asyncio.run(Client(http, inline=True).status()).text
    assert asked == ["1"]


# ── watching a run ────────────────────────────────────────────────────────────────────────────────────────────────


def run_json(**changes: Any) -> dict[str, Any]:
    body = {"id": 7, "status": "running", "stage": "ppo", "progress": 0.4, "eta_seconds": 61.0, "version": None}
    return body | {"report": None, "error": None} | changes


class RunningServer:
    """An API with one run, which goes on until it is cancelled or `states` are used up."""

    def __init__(self, *states: dict[str, Any]) -> None:
        self.asked: list[tuple[str, str]] = []
        self.body: Any = None
        self.states: Iterator[dict[str, Any]] = iter(states)
        self.state = run_json(status="queued", stage=None, progress=0.0)
        self.polled = threading.Event()

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.asked.append((request.method, request.url.path))
        if request.url.path == "/api/runs":
            self.body = json.loads(request.content)
            return httpx.Response(202, json={"id": 7, "status": "queued"})
        if request.url.path.endswith("/cancel"):
            self.states, self.state = iter(()), run_json(status="cancelled")
        else:
            self.state = next(self.states, self.state)
            self.polled.set()
        return httpx.Response(200, json=self.state)

    def client(self, *, inline: bool = False) -> Client:
        http = httpx.AsyncClient(transport=httpx.MockTransport(self), base_url="http://test")
        return Client(http, inline=inline)


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serve.client._POLL_SECONDS", 0.01)


@pytest.mark.parametrize(
    ("end", "exit_code", "words"),
    [
        (run_json(status="succeeded", version=3), 0, "run 7 succeeded: version 3"),
        (run_json(status="rejected", report={"reasons": ["about 40 more votes"]}), 3, "about 40 more votes"),
        (run_json(status="failed", error="out of memory"), 1, "out of memory"),
    ],
)
def test_train_watches_to_the_end(end: dict[str, Any], exit_code: int, words: str) -> None:
    server = RunningServer(run_json(), run_json(progress=0.9), end)
    training = server.client().train(stages=["reward"], settings={"ppo": {"updates": 2}}, force=True)
    result = asyncio.run(training)
    assert server.body == {"stages": ["reward"], "settings": {"ppo": {"updates": 2}}, "force": True}
    assert result.exit_code == exit_code
    assert words in result.text
    assert result.data["status"] == end["status"]


def test_the_progress_bar_shows_stage_share_and_time_left(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    server = RunningServer(run_json(), run_json(status="succeeded", progress=1.0))
    asyncio.run(server.client().train(stages=None, settings={}, force=False))
    shown = capsys.readouterr().err
    assert "run 7 ppo  40%" in shown
    assert "1:01 left" in shown


def interrupted(server: RunningServer, *, inline: bool) -> Any:
    """What `train` returns when Ctrl-C comes in the middle, as asyncio.run delivers it."""

    async def scene() -> Any:
        task = asyncio.create_task(server.client(inline=inline).train(stages=None, settings={}, force=False))
        await asyncio.to_thread(server.polled.wait, 5)
        task.cancel()
        return await task

    return asyncio.run(asyncio.wait_for(scene(), 10))


def test_a_server_that_stops_while_a_run_is_watched_is_one_sentence() -> None:
    def stopping(request: httpx.Request) -> httpx.Response:
        if request.method == "POST":
            return httpx.Response(202, json={"id": 7, "status": "queued"})
        raise httpx.ReadError("")

    http = httpx.AsyncClient(transport=httpx.MockTransport(stopping), base_url="http://test")
    with pytest.raises(ApiError, match="the server went away"):
        asyncio.run(Client(http).train(stages=None, settings={}, force=True))


def test_ctrl_c_leaves_a_servers_run_going_when_nobody_can_be_asked() -> None:
    server = RunningServer()
    assert interrupted(server, inline=False).exit_code == 130
    assert ("POST", "/api/runs/7/cancel") not in server.asked


def test_ctrl_c_cancels_when_that_is_the_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    monkeypatch.setattr("builtins.input", lambda question: "n" if "Leave run 7" in question else pytest.fail(question))
    server = RunningServer()
    result = interrupted(server, inline=False)
    assert result.data["status"] == "cancelled"
    assert ("POST", "/api/runs/7/cancel") in server.asked


def test_ctrl_c_cancels_a_run_that_lives_in_this_process() -> None:
    server = RunningServer()
    assert interrupted(server, inline=True).data["status"] == "cancelled"


# ── doctor ────────────────────────────────────────────────────────────────────────────────────────────────────────


def findings(folder: DataFolder, model: Path, port: int = 0) -> dict[str, tuple[bool, str]]:
    flags = {"db": folder.db, "model": str(model), "port": port, "cache_dir": folder.root / "cache"}
    result = doctor.examine(Settings.load(flags))
    assert result.exit_code == (0 if all(f["ok"] for f in result.data["checks"]) else 1)
    return {f["check"]: (f["ok"], f["finding"]) for f in result.data["checks"]}


def test_the_doctor_finds_nothing_wrong_with_a_healthy_folder(folder: DataFolder, tiny_model: Path) -> None:
    found = findings(folder, tiny_model)
    assert set(found) == {"model", "database", "adapters", "port", "disk", "processor"}
    assert all(ok for ok, _ in found.values()), found


def test_the_doctor_names_what_is_damaged(folder: DataFolder, tiny_model: Path, tmp_path: Path) -> None:
    publish(folder, tmp_path, count=3)
    (folder.adapter(1) / "adapter_model.safetensors").write_bytes(b"flipped")
    (folder.adapter(2) / "manifest.json").write_text("{")
    (folder.adapter(3) / "manifest.json").write_text('{"files": ["weights"], "base": {"hash": ""}}')
    with folder.db.open("r+b") as file:
        file.seek(4096 * 3)
        file.write(b"\xff" * 4096)
    with bind("127.0.0.1", 0) as taken:
        found = findings(folder, tmp_path / "no-model", taken.getsockname()[1])
    bad = {name: sentence for name, (ok, sentence) in found.items() if not ok}
    assert set(bad) == {"model", "database", "adapters", "port"}
    assert "v0001/adapter_model.safetensors is not what was published" in bad["adapters"]
    assert "v0002/manifest.json cannot be read" in bad["adapters"]
    assert "v0003/manifest.json cannot be read" in bad["adapters"]
