"""Errors as HTTP answers: always `{"error": {"code", "message"}}`, whoever raised them."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp

from serve.errors import HustingsError, RunActive

_CODES = {
    400: "bad_request",
    401: "unauthorized",
    403: "forbidden",
    404: "not_found",
    405: "method_not_allowed",
    413: "too_large",
}
_MESSAGES = {
    404: "there is nothing at this address; docs/api.md lists the calls",
    405: "this address does not take this method; docs/api.md lists the calls",
}


def error_body(error: HustingsError) -> dict[str, Any]:
    """What a client is told of an error."""
    # It may quote half of a surrogate pair, which cannot be sent.
    message = str(error).encode(errors="replace").decode()
    body: dict[str, Any] = {"code": error.code, "message": message}
    if isinstance(error, RunActive):
        body["run"] = error.run
    return {"error": body}


def error_response(error: HustingsError) -> JSONResponse:
    """The answer to a request that ended in this error."""
    headers = {"WWW-Authenticate": "Bearer"} if error.status == 401 else {}
    if error.status == 503:
        headers["Retry-After"] = "1"
    return JSONResponse(error_body(error), error.status, headers)


def install(app: FastAPI) -> None:
    """Let an application, and the framework under it, answer its errors in this form."""
    app.add_exception_handler(HustingsError, _known)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _http)
    app.add_exception_handler(ClientDisconnect, _cut_off)
    app.add_exception_handler(Exception, _unknown)


def install_beside(app: ASGIApp) -> None:
    """The same for a page's application, whose script also reads the framework's own `detail`."""
    assert isinstance(app, FastAPI)
    app.add_exception_handler(HTTPException, _http_with_detail)


def _known(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HustingsError)
    return error_response(error)


def _invalid(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    message = "; ".join(_sentence(dict(detail)) for detail in error.errors())
    return JSONResponse({"error": {"code": "invalid_input", "message": message}}, 422)


def _sentence(detail: dict[str, Any]) -> str:
    """One complaint, naming the field as the client wrote it."""
    if detail["type"] == "json_invalid":
        return f"the body is not valid JSON: {detail['ctx']['error']}"
    if detail["type"] == "model_attributes_type":
        return "the body must be a JSON object; send it with Content-Type: application/json"
    place, *rest = detail["loc"]
    name = ".".join(str(part) for part in rest) or str(place)
    return f"{name}: {detail['msg'].removeprefix('Value error, ')}"


def _cut_off(_: Request, __: Exception) -> JSONResponse:
    """Nobody is there to hear it, but it is no fault of the server's."""
    return JSONResponse({"error": {"code": "bad_request", "message": "the body was cut off; send it again"}}, 400)


def _http(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    return JSONResponse(_http_body(error), error.status_code, error.headers)


def _http_body(error: HTTPException) -> dict[str, Any]:
    code = _CODES.get(error.status_code, "error")
    return {"error": {"code": code, "message": _MESSAGES.get(error.status_code, error.detail)}}


def _http_with_detail(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    return JSONResponse({"detail": error.detail, **_http_body(error)}, error.status_code, error.headers)


def _unknown(_: Request, error: Exception) -> JSONResponse:
    """The server's log has the trace; the client learns nothing of the inside."""
    return JSONResponse({"error": {"code": "error", "message": "the server failed; its log says why"}}, 500)
