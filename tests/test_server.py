"""The whole application with its pages: what Gradio leaves open is closed."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from serve.web.server import create_app
from tests.fakes import Web

OPERATOR = {"Authorization": "Bearer letmein"}


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    web = Web(tmp_path_factory.mktemp("pages"))
    app = create_app(web.service, web.training, web.settings, web.secrets)
    with TestClient(app, follow_redirects=False) as made:
        yield made
    web.close()


@pytest.fixture(autouse=True)
def stranger(client: TestClient) -> None:
    client.cookies.clear()


def test_the_chat_page_is_everybodys_and_makes_a_voter(client: TestClient) -> None:
    response = client.get("/", headers={"Accept": "text/html"})
    assert response.status_code == 200
    assert "Hustings" in response.text
    assert "hustings_voter=" in response.headers["set-cookie"]
    assert "frame-ancestors 'none'" in response.headers["content-security-policy"]


def test_a_browser_without_a_session_is_sent_from_the_operator_page_to_the_login(client: TestClient) -> None:
    for path in ("/operator", "/operator/"):
        response = client.get(path, headers={"Accept": "text/html"})
        assert (response.status_code, response.headers["location"]) == (303, "/login")
    client.post("/login", data={"token": "letmein"})
    assert client.get("/operator", headers={"Accept": "text/html"}).headers["location"] == "/operator/"
    assert "Hustings" in client.get("/operator/", headers={"Accept": "text/html"}).text


@pytest.mark.parametrize(
    "path",
    [
        "",
        "/",
        "/config",
        "/theme.css",
        "/openapi.json",
        "/monitoring/summary",
        "/gradio_api/info",
        "/gradio_api/openapi.json",
        "/gradio_api/startup-events",
        "/gradio_api/heartbeat/x",
        "/gradio_api/queue/data?session_hash=x",
        "//config",
    ],
)
def test_every_address_of_the_operator_page_is_closed_to_others(client: TestClient, path: str) -> None:
    response = client.get(f"/operator{path}")
    assert response.status_code == 401
    assert response.json()["error"]["code"] == "unauthorized"


@pytest.mark.parametrize("path", ["queue/join", "cancel", "reset", "run/predict", "call/x", "upload"])
def test_every_event_of_the_operator_page_is_closed_to_others(client: TestClient, path: str) -> None:
    response = client.post(f"/operator/gradio_api/{path}", json={"data": [], "fn_index": 0, "session_hash": "x"})
    assert response.status_code in (401, 404)
    assert response.json()["error"]["code"] in ("unauthorized", "not_found")


def test_the_pages_take_no_files_and_give_none(client: TestClient, tmp_path: Path) -> None:
    for page in ("", "/operator"):
        response = client.post(f"{page}/gradio_api/upload", files={"files": ("x", b"x")}, headers=OPERATOR)
        assert response.status_code == 404
    secret = tmp_path / "secrets.json"
    secret.write_text("{}")
    for path in (str(secret), "serve/records.py", "http://127.0.0.1:1/"):
        assert client.get(f"/gradio_api/file={path}").status_code == 403


def test_other_sites_can_neither_call_the_pages_events_nor_read_them(client: TestClient) -> None:
    evil = {"Origin": "https://evil.example"}
    assert client.post("/gradio_api/queue/join", json={}, headers=evil).status_code == 403
    read = client.get("/config", headers=evil)
    assert "access-control-allow-origin" not in read.headers


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/nothing", 404),
        ("GET", "/openapi.json", 404),
        ("GET", "/docs", 404),
        ("GET", "/api/nothing", 404),
        ("PUT", "/v1/models", 405),
        ("PUT", "/", 405),
    ],
)
def test_unknown_addresses_and_methods_answer_in_our_form_beside_the_pages(
    client: TestClient, method: str, path: str, status: int
) -> None:
    response = client.request(method, path)
    assert response.status_code == status
    assert set(response.json()["error"]) == {"code", "message"}


def test_the_pages_do_not_call_home() -> None:
    assert os.environ["GRADIO_ANALYTICS_ENABLED"] == "False"
