"""Who is asking: cookies, tokens, sessions, and writes from other sites."""

from __future__ import annotations

import json
import re
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.testclient import TestClient
from starlette.types import Receive, Scope, Send

from serve.errors import StartupError
from serve.secrets import Secrets
from serve.web import login
from serve.web.identity import (
    LOCAL_OPERATOR,
    OPERATOR_COOKIE,
    VOTER_COOKIE,
    Identity,
    OperatorsOnly,
    is_session,
    set_session,
)
from serve.web.mark import LIGHT_OR_DARK, MARK
from tests.fakes import Web

SECRETS = Secrets(b"k" * 32, "")
OPERATOR = {"Authorization": "Bearer letmein"}


@pytest.fixture
def secrets(tmp_path: Path) -> Secrets:
    return Secrets.load_or_create(tmp_path / "secrets.json", "letmein")[0]


async def who(scope: Scope, receive: Receive, send: Send) -> None:
    """Answers with what the layer found out."""
    await JSONResponse(scope["state"])(scope, receive, send)


@pytest.fixture
def client(secrets: Secrets) -> TestClient:
    return TestClient(Identity(who, secrets))


@pytest.fixture
def web(tmp_path: Path) -> Iterator[Web]:
    made = Web(tmp_path)
    yield made
    made.close()


# Secrets


def test_the_operator_token_is_made_once_and_kept_only_as_a_hash(tmp_path: Path) -> None:
    path = tmp_path / "secrets.json"
    first, token = Secrets.load_or_create(path, None)
    again, nothing = Secrets.load_or_create(path, None)
    assert token is not None
    assert nothing is None
    assert token not in path.read_text()
    assert first == again
    assert again.is_operator_token(token)
    assert not again.is_operator_token(token + "x")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_token_of_the_operators_own_replaces_the_made_one_without_being_written(tmp_path: Path) -> None:
    path = tmp_path / "secrets.json"
    _, made = Secrets.load_or_create(path, None)
    own, shown = Secrets.load_or_create(path, "letmein")
    assert made is not None
    assert shown is None
    assert own.is_operator_token("letmein")
    assert not own.is_operator_token(made)
    assert "letmein" not in path.read_text()
    assert Secrets.load_or_create(path, None)[0].is_operator_token(made)


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"key": "xyz"}', '{"key": 7}'])
def test_damaged_secrets_stop_the_start_naming_the_file(tmp_path: Path, content: str) -> None:
    path = tmp_path / "secrets.json"
    path.write_text(content)
    with pytest.raises(StartupError, match=r"secrets\.json"):
        Secrets.load_or_create(path, None)


def test_a_signature_holds_for_its_value_its_purpose_and_its_key() -> None:
    signed = SECRETS.sign("anna", "voter")
    assert SECRETS.unsign(signed, "voter") == "anna"
    assert SECRETS.unsign(signed, "operator") is None
    assert SECRETS.unsign(signed.replace("anna", "bert"), "voter") is None
    assert Secrets(b"q" * 32, "").unsign(signed, "voter") is None
    for junk in ("", ".", "anna", "anna.", "anna.\udce9", "a.b.c"):
        assert SECRETS.unsign(junk, "voter") is None


# Voters


def test_a_program_with_a_cookie_jar_is_one_voter(client: TestClient) -> None:
    first = client.get("/api/me").json()["voter"]
    assert client.post("/v1/chat/completions").json()["voter"] == first
    assert client.get("/").json()["voter"] == first
    client.cookies.clear()
    assert client.get("/").json()["voter"] != first


@pytest.mark.parametrize("path", ["/", "/operator", "/operator/", "/login", "/api/me", "/v1/models"])
def test_pages_and_calls_hand_out_the_cookie(client: TestClient, path: str) -> None:
    cookie = client.get(path).headers["set-cookie"]
    assert cookie.startswith(f"{VOTER_COOKIE}=")
    assert "HttpOnly" in cookie
    assert "SameSite=Lax" in cookie
    assert "Secure" not in cookie


@pytest.mark.parametrize("path", ["/health", "/metrics", "/assets/app.js", "/gradio_api/queue/join", "/apix", "/v1x"])
def test_other_addresses_do_not_and_know_no_voter_without_one(client: TestClient, path: str) -> None:
    response = client.get(path)
    assert "set-cookie" not in response.headers
    assert response.json()["voter"] is None
    known = client.get("/").json()["voter"]
    assert client.get(path).json()["voter"] == known


def test_the_cookie_is_secure_under_https(client: TestClient) -> None:
    assert "Secure" in client.get("https://testserver/").headers["set-cookie"]


def test_a_forged_cookie_is_replaced(client: TestClient) -> None:
    client.cookies.set(VOTER_COOKIE, "anna." + "0" * 64)
    response = client.get("/api/me")
    assert response.json()["voter"] != "anna"
    assert VOTER_COOKIE in response.headers["set-cookie"]


def test_a_voters_row_is_written_at_the_first_real_write(web: Web) -> None:
    client = TestClient(web.app)

    def voters() -> int:
        with web.store.reading() as db:
            return int(db.execute("SELECT count(*) FROM voters").fetchone()[0])

    client.get("/api/me")
    client.get("/api/queue/next")
    before = voters()
    client.post("/api/comparisons", json={"messages": [{"role": "user", "content": "hi"}]})
    assert (before, voters()) == (0, 1)


# Operators


def test_the_token_makes_an_operator(client: TestClient) -> None:
    assert client.get("/api/runs", headers=OPERATOR).json()["operator"] is True
    assert client.get("/api/runs").json()["operator"] is False
    assert client.get("/api/runs", headers={"Authorization": "Basic bGV0bWVpbg=="}).json()["operator"] is False


def test_an_unknown_token_is_an_ordinary_voter_under_v1_and_refused_elsewhere(client: TestClient) -> None:
    wrong = {"Authorization": "Bearer sk-whatever"}
    assert client.get("/v1/models", headers=wrong).json()["operator"] is False
    for path in ("/", "/api/me", "/health", "/v1x", "/operator"):
        response = client.get(path, headers=wrong)
        assert response.status_code == 401
        assert response.json()["error"]["code"] == "unauthorized"
        assert response.headers["www-authenticate"] == "Bearer"


def test_whoever_opens_the_owner_only_socket_is_an_operator(secrets: Secrets) -> None:
    inner = Identity(who, secrets)

    async def marked(scope: Scope, receive: Receive, send: Send) -> None:
        await inner({**scope, LOCAL_OPERATOR: True}, receive, send)

    assert TestClient(marked).get("/api/runs").json()["operator"] is True
    assert TestClient(inner, headers={LOCAL_OPERATOR: "True"}).get("/api/runs").json()["operator"] is False


def test_logging_in_opens_a_session_and_logging_out_ends_it(web: Web) -> None:
    client = TestClient(web.app)
    assert client.post("/api/login", json={"token": "wrong"}).status_code == 401
    assert client.get("/api/runs").status_code == 401
    response = client.post("/api/login", json={"token": "letmein"})
    assert response.status_code == 200
    (cookie,) = [c for c in response.headers.get_list("set-cookie") if c.startswith(OPERATOR_COOKIE)]
    assert "HttpOnly" in cookie
    assert "SameSite=Lax" in cookie
    assert "letmein" not in cookie
    assert client.get("/api/runs").status_code == 200
    assert client.post("/api/logout").status_code == 200
    assert client.get("/api/runs").status_code == 401


def test_the_login_page_lets_an_operator_in(web: Web) -> None:
    client = TestClient(web.app, follow_redirects=False)
    assert 'name="token"' in client.get("/login").text
    wrong = client.post("/login", data={"token": "wrong"})
    assert wrong.status_code == 401
    assert "not the operator token" in wrong.text
    right = client.post("/login", data={"token": "letmein"})
    assert (right.status_code, right.headers["location"]) == (303, "/operator")
    assert client.get("/api/runs").status_code == 200
    assert client.get("/login").headers["location"] == "/operator"


def test_the_login_page_looks_like_the_others_and_does_without_gradio(web: Web) -> None:
    text = TestClient(web.app).get("/login").text
    common = (Path(login.__file__).parent / "look" / "common.js").read_text(encoding="utf-8")
    assert MARK in text and LIGHT_OR_DARK in text
    kept_as = re.findall(r"LOOK = '([^']+)'", common)
    assert len(kept_as) == 1 and f"'{kept_as[0]}'" in text, "the look that was chosen elsewhere holds here, too"
    assert "<script src" not in text and "Georgia" not in text


def session(secrets: Secrets) -> str:
    response = Response()
    set_session(response, secrets, Request({"type": "http", "scheme": "http"}))
    return response.headers["set-cookie"].partition("=")[2].partition(";")[0]


def test_a_session_ends_with_its_time_and_with_its_token(
    secrets: Secrets, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cookie = session(secrets)
    assert is_session(secrets, cookie)
    changed, _ = Secrets.load_or_create(tmp_path / "secrets.json", "another")
    assert not is_session(changed, cookie)
    assert not is_session(secrets, secrets.sign("anna", "voter"))
    assert not is_session(secrets, "")
    monkeypatch.setattr("time.time", lambda: 4e9)
    assert not is_session(secrets, cookie)


def test_a_browser_is_sent_to_the_login_page_and_a_program_is_refused(secrets: Secrets) -> None:
    client = TestClient(Identity(OperatorsOnly(who), secrets), follow_redirects=False)
    browser = client.get("/operator/", headers={"Accept": "text/html,*/*"})
    assert (browser.status_code, browser.headers["location"]) == (303, "/login")
    assert client.get("/operator/gradio_api/heartbeat/x").status_code == 401
    assert client.post("/operator/", headers={"Accept": "text/html"}).status_code == 401
    assert client.get("/operator/", headers=OPERATOR).json()["operator"] is True


# Other sites


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://testserver:81"},
        {"Origin": "http://testserver.evil.example"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
        {"Sec-Fetch-Site": "cross-site", "Origin": "http://testserver"},
    ],
)
def test_writes_from_other_sites_are_refused_even_to_operators(client: TestClient, headers: dict[str, str]) -> None:
    for method in ("POST", "DELETE", "PUT", "PATCH"):
        response = client.request(method, "/api/runs", headers={**OPERATOR, **headers})
        assert response.status_code == 403
        assert response.json()["error"]["code"] == "forbidden"
    assert client.get("/api/runs", headers={**OPERATOR, **headers}).status_code == 200


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Origin": "http://testserver", "Sec-Fetch-Site": "same-origin"},
        {"Origin": "https://testserver"},
        {"Sec-Fetch-Site": "none"},
        {"Origin": "https://vote.example", "X-Forwarded-Host": "vote.example"},
    ],
)
def test_writes_from_our_own_pages_and_from_programs_pass(client: TestClient, headers: dict[str, str]) -> None:
    assert client.post("/api/comparisons", headers=headers).status_code == 200


def test_only_our_own_origin_may_read_across(web: Web) -> None:
    client = TestClient(web.app)
    foreign = client.get("/health", headers={"Origin": "https://evil.example"})
    assert "access-control-allow-origin" not in foreign.headers
    own = client.get("/health", headers={"Origin": f"http://127.0.0.1:{web.settings.port}"})
    assert own.headers["access-control-allow-origin"] == f"http://127.0.0.1:{web.settings.port}"


def test_every_response_carries_the_security_headers(web: Web) -> None:
    client = TestClient(web.app)
    responses: list[Any] = [client.get("/health"), client.get("/api/none"), client.get("/login")]
    responses.append(client.post("/api/runs", headers={"Origin": "https://evil.example"}))
    for response in responses:
        assert "frame-ancestors 'none'" in response.headers["content-security-policy"]
        assert response.headers["x-content-type-options"] == "nosniff"
        assert response.headers["x-frame-options"] == "DENY"


def test_the_layer_survives_odd_headers(client: TestClient) -> None:
    for headers in (
        {"Cookie": f"{VOTER_COOKIE}"},
        {"Cookie": f"{VOTER_COOKIE}=; {OPERATOR_COOKIE}=.."},
        {"Cookie": f'{OPERATOR_COOKIE}="\\377.x"'},
        {"Authorization": ""},
        {"Authorization": "Bearer"},
        {"Origin": "http://[::1"},
    ):
        response = client.post("/v1/models", headers=headers)
        assert response.status_code in (200, 403), (headers, response.text)
        json.loads(response.text)
