"""The web application: API, pages, health and metrics, behind one layer that knows who is asking."""

from __future__ import annotations

import asyncio
import os
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse, RedirectResponse
from starlette.middleware.cors import CORSMiddleware
from starlette.routing import Mount, Route

from serve.errors import NotFound, Unavailable
from serve.secrets import Secrets
from serve.service import Service, Training
from serve.settings import Settings
from serve.web import api, faults, login, openai_api
from serve.web.identity import Identity, OperatorsOnly, require_operator
from serve.web.limits import BODY_BYTES, BodyLimit
from serve.web.metrics import HustingsCollector, Responses, exposition, is_direct_loopback


def create_app(
    service: Service, training: Training, settings: Settings, secrets: Secrets, *, pages: bool = True
) -> FastAPI:
    """The whole application. `pages` False leaves Gradio out. Its shutdown closes the service.

    Who asks is in `request.state.voter: str` (None where `Identity` says) and `request.state.operator: bool`; for a
    page's handler, in `gr_request.request.state`.
    """

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        await service.close()

    app = FastAPI(openapi_url=None, redirect_slashes=False, lifespan=lifespan)
    faults.install(app)
    responses: Counter[int] = Counter()
    # The last one added is the outermost. CORS lets no other site in: it is here as Gradio would add its own, wider
    # one where it finds none.
    app.add_middleware(CORSMiddleware, allow_origins=[f"http://{settings.host}:{settings.port}"])
    app.add_middleware(BodyLimit)
    app.add_middleware(Identity, secrets=secrets)
    app.add_middleware(Responses, counts=responses)

    @app.get("/health")
    async def health() -> Response:
        try:
            engine = service.engine
        except Unavailable as error:
            return JSONResponse({"status": "unavailable", **faults.error_body(error)}, 503)
        body = {"status": "ok", "version": engine.serving, "model": engine.model_name, "waiting": engine.waiting}
        return JSONResponse(body)

    collector = HustingsCollector(service, training, responses)

    @app.get("/metrics")
    async def metrics(request: Request) -> Response:
        if not is_direct_loopback(request.scope):
            await require_operator(request)
        text = await asyncio.to_thread(exposition, collector)
        return Response(text, media_type="text/plain; version=0.0.4; charset=utf-8")

    app.include_router(login.create(service, secrets))
    app.mount("/api", api.create(service, training, secrets))
    app.mount("/v1", openai_api.create(service))
    if pages:
        _mount_pages(app, service, training, settings)
    return app


def _mount_pages(app: FastAPI, service: Service, training: Training, settings: Settings) -> None:
    # Gradio reads this when it is imported, which is why it is imported only here.
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    import gradio as gr

    from serve.web import chat_page, operator_page, theme, vote_page, you_page

    # "/" takes every address, so it comes last.
    pages = (
        ("/operator", operator_page.build(service, training, settings), theme.mount_options("operator")),
        ("/vote", vote_page.build(service, training, settings), theme.mount_options("vote")),
        ("/you", you_page.build(service, training), theme.mount_options("you")),
        ("/", chat_page.build(service, training, settings), theme.mount_options("chat")),
    )
    app.router.routes.append(Route("/operator", OperatorsOnly(RedirectResponse("/operator/", 303))))
    for path in ("/vote", "/you"):
        app.router.routes.append(Route(path, RedirectResponse(f"{path}/", 303)))
    # The pages take no files, so nobody shall fill the disk with some.
    for path, _, _ in pages:
        upload = f"{path.rstrip('/')}/gradio_api/upload"
        app.router.routes.append(Route(upload, _no_uploads, methods=["POST"]))
    for path, page, look in pages:
        gr.mount_gradio_app(
            app,
            page,
            path=path,
            app_kwargs={"openapi_url": None},
            enable_monitoring=False,
            run_history=False,
            show_error=False,
            max_file_size=BODY_BYTES,
            ssr_mode=False,
            **look,
        )
    mounted = {route.path: route for route in app.routes if isinstance(route, Mount)}
    for path, _, _ in pages:
        faults.install_beside(mounted[path.rstrip("/")].app)
    # Around the whole mount: Gradio's own check leaves some of its addresses open.
    mounted["/operator"].app = OperatorsOnly(mounted["/operator"].app)


async def _no_uploads(_: Request) -> Response:
    raise NotFound("Hustings takes no files; operators import datasets with POST /api/import")
