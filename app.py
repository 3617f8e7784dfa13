"""Hustings: a chat that learns from the people who use it. This is the composition root and the command line.

    .venv/bin/python app.py                     serve on http://127.0.0.1:7860
    .venv/bin/python app.py train               start a training run now, and watch it
    .venv/bin/python app.py status              what serves, what is learned from, what runs
    .venv/bin/python app.py versions            all versions
    .venv/bin/python app.py board               whether it is getting better, by blind votes
    .venv/bin/python app.py schedule            when runs start by themselves; `schedule min_new_votes=20` changes it
    .venv/bin/python app.py log                 who did what
    .venv/bin/python app.py promote 3           make a version serve
    .venv/bin/python app.py rollback            return to the version that served before
    .venv/bin/python app.py export --format hh  the record as JSON lines (trl, hh, kto, sft, arena)
    .venv/bin/python app.py import --format sft FILE
    .venv/bin/python app.py doctor              check model, adapters, database, port, disk and processor

Every command is a client of the HTTP API: of the running server over its owner-only socket, or of the same API
in-process when no server runs on the database.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import gzip
import io
import json
import logging
import os
import signal
import socket
import sys
import threading
import zlib
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from serve.errors import AdapterError, HustingsError, InvalidInput, NotFound, StartupError
from serve.records import BASE_VERSION, FORMATS, READINGS, STAGES, STYLES
from serve.settings import Settings, nested

if TYPE_CHECKING:  # what is slow to import is imported where it is used
    from serve.client import Client, Result
    from serve.engine import Engine
    from serve.feedback.store import Store
    from serve.policy.base import ModelFolder
    from serve.secrets import Secrets
    from serve.service import Service
    from serve.web.listener import Entrance
    from training.scheduler import Scheduler

_SETTINGS_WITHOUT_FLAG = ("operator_token", "training")
"""A token on the command line would show in the list of processes; training has `--set`."""

log = logging.getLogger("hustings")
T = TypeVar("T")


# ── the server ────────────────────────────────────────────────────────────────────────────────────────────────────


def serve(settings: Settings) -> int:
    """Serve until SIGTERM or SIGINT; the process's exit code. Raises StartupError before anything slow is begun."""
    from serve.feedback.store import Store
    from serve.secrets import Secrets
    from serve.sockets import bind, local_socket

    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    for chatty in ("uvicorn", "httpx", "apscheduler"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    folder = settings.folder
    with bind(settings.host, settings.port) as listener:
        folder.root.mkdir(parents=True, exist_ok=True)
        with Store.open(folder) as store, local_socket(folder.socket) as local:
            secrets, new_token = Secrets.load_or_create(folder.secrets, settings.operator_token)
            _greet(listener, new_token)
            code, abandoned = asyncio.run(_serve(settings, store, secrets, listener, local))
    if abandoned:  # a thread deep in native code would crash the interpreter's own farewell
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    return code


def _greet(listener: socket.socket, new_token: str | None) -> None:
    host, port = listener.getsockname()[:2]
    print(f"Hustings is on http://{f'[{host}]' if ':' in host else host}:{port}", flush=True)
    if new_token is not None:
        print(f"Operator token (shown this once; log in at /login): {new_token}", flush=True)


async def _serve(
    settings: Settings, store: Store, secrets: Secrets, listener: socket.socket, local: socket.socket
) -> tuple[int, bool]:
    """Listen, start everything, wait for a signal, stop everything. Exit code, and whether a thread was left behind."""
    from serve.web.listener import Entrance, HttpServer, LocalOperator

    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    entrance = Entrance()
    servers = {HttpServer(entrance): listener, HttpServer(LocalOperator(entrance)): local}
    listening = [asyncio.create_task(server.serve(sockets=[place])) for server, place in servers.items()]
    parts = Parts()
    starting = asyncio.create_task(_start(settings, store, secrets, entrance, parts))
    stopping = asyncio.create_task(stop.wait())
    code = 0
    try:
        await asyncio.wait({starting, stopping}, return_when=asyncio.FIRST_COMPLETED)
        if starting.done():
            starting.result()
            await stop.wait()
    except HustingsError as error:
        log.error("%s", error)
        code = 1
    except Exception:
        log.exception("the server could not start")
        code = 1
    finally:
        abandoned = not starting.done()
        starting.cancel()
        entrance.close()
        for server in servers:
            server.should_exit = True
        # The run writes its checkpoint while open requests finish.
        await asyncio.gather(parts.stop(), *listening)
        stopping.cancel()
    log.info("stopped")
    return code, abandoned


class Parts:
    """What has been started so far, and must be stopped."""

    def __init__(self) -> None:
        self.engine: Engine | None = None
        self.scheduler: Scheduler | None = None
        self.application = contextlib.AsyncExitStack()

    async def stop(self) -> None:
        """Stop the scheduler, the application with its open answers, and the engine. At most about 15 s."""
        if self.scheduler is not None:
            await _in_thread(self.scheduler.stop)
        await self.application.aclose()
        if self.engine is not None:
            await _in_thread(self.engine.close)


async def _start(settings: Settings, store: Store, secrets: Secrets, entrance: Entrance, parts: Parts) -> None:
    """Bring everything up, the model first: `/health` is 200 as soon as it can answer, the pages follow."""
    from serve.policy.adapters import Registry
    from serve.policy.base import resolve_model
    from serve.service import Service
    from serve.web.server import create_app
    from training.scheduler import Scheduler

    folder = settings.folder
    base = await _in_thread(lambda: resolve_model(settings.model, settings.cache_dir))
    registry = Registry(folder, store, base_hash=base.hash, base_name=base.name)
    service = Service(store=store, engine=None, registry=registry, settings=settings)
    scheduler = Scheduler(store, registry, settings, folder, base, service.promote_now)
    entrance.open_api(create_app(service, scheduler, settings, secrets, pages=False))

    parts.engine = engine = await _in_thread(lambda: _load_engine(settings, base))
    await _in_thread(lambda: attach(service, store, engine))
    log.info("version %d of %s serves", engine.serving, base.name)
    scheduler.start()
    parts.scheduler = scheduler

    application = await _in_thread(lambda: create_app(service, scheduler, settings, secrets))
    await parts.application.enter_async_context(application.router.lifespan_context(application))
    entrance.open(application)
    log.info("the pages are open")
    await _in_thread(spare_the_collector)


def spare_the_collector() -> None:
    """What is loaded by now stays: if Python looked through all of it for garbage, streams would stop for 200 ms."""
    gc.collect()
    gc.freeze()


def _load_engine(settings: Settings, base: ModelFolder) -> Engine:
    import torch
    from transformers.utils import logging as transformers_logging

    from serve.engine.local import LocalEngine
    from serve.policy.base import load_backbone

    transformers_logging.disable_progress_bar()
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    return LocalEngine(
        load_backbone(base, dtype=settings.dtype, device="auto"),
        batch_rows=settings.batch_rows,
        queue_limit=settings.queue_limit,
        max_lora_rank=settings.max_lora_rank,
        cache_tokens=settings.cache_tokens,
    )


def attach(service: Service, store: Store, engine: Engine) -> None:
    """Serve the promoted version; if it is broken, the newest earlier one that is whole, and say so in the record."""
    promoted = store.serving()
    served = sorted((v.number for v in store.versions() if v.status == "retired"), reverse=True)
    reason = ""
    for version in (promoted, *(v for v in served if v != BASE_VERSION), BASE_VERSION):
        try:
            service.attach(engine, version)
        except (AdapterError, NotFound) as error:
            if version == BASE_VERSION:
                raise
            reason = reason or f"version {version} could not be loaded: {error}"
            log.error("version %d cannot serve: %s", version, error)
        else:
            if version != promoted:
                store.set_serving(version, who="server", why=reason, rolled_back=True)
                log.error("serving version %d instead; once mended, promote version %d again", version, promoted)
            return


def _in_thread(function: Callable[[], T]) -> asyncio.Future[T]:
    """The function's result, from a daemon thread: unlike an executor's, it never holds up the end of the process."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()

    def settle(result: T | None, error: BaseException | None) -> None:
        if future.cancelled():
            return
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(result)  # type: ignore[arg-type]  # T itself may be None

    def work() -> None:
        result, caught = None, None
        try:
            result = function()
        except BaseException as error:  # noqa: BLE001  # handed to whoever awaits
            caught = error
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
            loop.call_soon_threadsafe(settle, result, caught)

    threading.Thread(target=work, name="hustings-start", daemon=True).start()
    return future


# ── the other commands ────────────────────────────────────────────────────────────────────────────────────────────


@contextlib.asynccontextmanager
async def connect(settings: Settings, *, trains: bool = False) -> AsyncIterator[Client]:
    """The API: of the running server, or in-process. `trains`: a scheduler runs in this process if no server does."""
    from serve.client import over_socket

    async with over_socket(settings.folder.socket) as client:
        if client is not None:
            yield client
            return
    async with _in_process(settings, trains=trains) as client:
        yield client


@contextlib.asynccontextmanager
async def _in_process(settings: Settings, *, trains: bool) -> AsyncIterator[Client]:
    import httpx

    from serve.client import Client
    from serve.engine.absent import AbsentEngine
    from serve.feedback.store import Store
    from serve.policy.adapters import Registry
    from serve.policy.base import ModelFolder, resolve_model
    from serve.secrets import Secrets
    from serve.service import Service
    from serve.web.listener import LocalOperator
    from serve.web.server import create_app
    from training.scheduler import Scheduler

    folder = settings.folder
    if not folder.db.exists():
        raise StartupError(
            f"there is no database at {folder.db}; `.venv/bin/python app.py` makes it, --db names another"
        )
    with Store.open(folder) as store:
        # Only a run needs the model; without one its name is enough.
        base = (
            resolve_model(settings.model, settings.cache_dir)
            if trains
            else ModelFolder(Path(), settings.model, "", settings.cache_dir)
        )
        registry = Registry(folder, store, base_hash=base.hash or None, base_name=base.name)
        service = Service(store=store, engine=AbsentEngine(store.serving()), registry=registry, settings=settings)
        scheduler = Scheduler(store, registry, settings, folder, base, service.promote_now)
        # The socket's owner is who may read this file: signatures are checked by nobody here, and no token is made.
        app = LocalOperator(create_app(service, scheduler, settings, Secrets(b"", ""), pages=False))
        if trains:
            scheduler.start()
        try:
            transport = httpx.ASGITransport(app=app)
            async with httpx.AsyncClient(transport=transport, base_url="http://hustings", timeout=None) as http:
                yield Client(http, inline=True)
        finally:
            if trains:
                await asyncio.to_thread(scheduler.stop)


async def _command(command: str, settings: Settings, options: dict[str, Any]) -> Result:
    overrides = nested(options.get("set") or [])  # what was typed is checked before anything is opened
    content = _read(options["file"]) if command == "import" else b""
    async with connect(settings, trains=command == "train") as client:
        if command == "train":
            return await client.train(stages=options["stages"], settings=overrides, force=options["force"])
        if command == "versions":
            return await client.versions()
        if command == "board":
            return await client.board()
        if command == "log":
            return await client.log(options["limit"])
        if command == "schedule":
            changes = nested(options.get("changes") or [])
            return await client.schedule({name: str(value) for name, value in changes.items()})
        if command == "promote":
            return await client.promote(options["version"])
        if command == "rollback":
            return await client.rollback()
        if command == "import":
            return await client.import_(content, options["format"], options["reading"])
        if command == "export":
            return await _export(client, options["format"], options["style"], options["out"])
        return await client.status()


async def _export(client: Client, format: str, style: str, out: Path | None) -> Result:
    from serve.client import Result

    lines = 0
    try:
        target = contextlib.nullcontext(sys.stdout) if out is None else out.open("w", encoding="utf-8")
    except OSError as error:
        raise InvalidInput(f"cannot write {out} ({error.strerror}); name another file with --out") from None
    with target as file:
        async for piece in client.export(format, style):
            lines += piece.count("\n")
            file.write(piece)
    if out is None:
        return Result(None, "")
    return Result({"file": str(out), "lines": lines}, f"{lines} line{'' if lines == 1 else 's'} in {out}")


def _read(file: str) -> bytes:
    """The bytes of a file, or of the input for "-", unpacked where they are gzip's."""
    try:
        content = sys.stdin.buffer.read() if file == "-" else Path(file).read_bytes()
    except OSError as error:
        raise InvalidInput(
            f"cannot read {file} ({error.strerror}); name a file of JSON lines, or - for the input"
        ) from None
    if not content.startswith(b"\x1f\x8b"):
        return content
    from serve.web.limits import IMPORT_BYTES

    try:
        with gzip.open(io.BytesIO(content)) as packed:
            lines = packed.read(IMPORT_BYTES + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise InvalidInput(f"{file} is cut off or no gzip file ({error}); fetch it again, or unpack it") from None
    if len(lines) > IMPORT_BYTES:
        raise InvalidInput(f"{file} unpacks to more than {IMPORT_BYTES >> 20} MiB; import it in parts")
    return lines


# ── the command line ──────────────────────────────────────────────────────────────────────────────────────────────


def _parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(
        prog="app.py", description="A chat that learns from votes.", argument_default=argparse.SUPPRESS
    )
    for name in Settings.model_fields:
        if name not in _SETTINGS_WITHOUT_FLAG:
            top.add_argument(f"--{name.replace('_', '-')}", metavar="X", help=_default(name))
    commands = top.add_subparsers(dest="command", metavar="COMMAND", title="commands (none: serve)")

    def add(name: str, help: str, *flags: str) -> argparse.ArgumentParser:
        parser = commands.add_parser(name, help=help, description=help, argument_default=argparse.SUPPRESS)
        for flag in ("db", *flags):
            parser.add_argument(f"--{flag}", help=_default(flag))
        parser.add_argument("--json", action="store_true", help="print JSON")
        return parser

    train = add("train", "start a training run now, and watch it", "model")
    train.add_argument("--stages", nargs="+", choices=STAGES, default=None, help="default: all that have material")
    train.add_argument("--set", action="append", metavar="NAME=VALUE", default=None, help="such as ppo.updates=20")
    train.add_argument("--force", action="store_true", default=False, help="do not wait for enough new votes")
    add("status", "what serves, what is learned from, what runs")
    add("versions", "all versions")
    add("board", "whether it is getting better, by blind votes")
    schedule = add("schedule", "when runs start by themselves, and what then; changed while the server runs")
    schedule.add_argument("changes", nargs="*", metavar="NAME=VALUE", help="such as min_new_votes=20")
    who_did_what = add("log", "who did what, newest first")
    who_did_what.add_argument("--limit", type=int, default=200, metavar="N", help="so many at most (default: 200)")
    add("promote", "make a version serve").add_argument("version", type=int)
    add("rollback", "return to the version that served before")
    export = add("export", "the record as JSON lines")
    export.add_argument("--format", choices=FORMATS, default="trl")
    export.add_argument("--style", choices=STYLES, default=STYLES[0], help="messages, or plain text")
    export.add_argument("--out", type=Path, default=None, metavar="FILE", help="default: standard output")
    import_ = add("import", "take JSON lines in, all or none")
    import_.add_argument("--format", choices=FORMATS, required=True)
    import_.add_argument(
        "--as",
        dest="reading",
        choices=READINGS,
        default="whole",
        help="demonstrations: show the answers ranked first; turns: and the assistant's earlier ones (default: whole)",
    )
    import_.add_argument("file", help="a file of JSON lines, - for standard input")
    add("doctor", "check model, adapters, database, port, disk and processor", "host", "port", "model")
    return top


def _default(setting: str) -> str:
    return f"default: {Settings.model_fields[setting].default}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Do what the arguments say; the process's exit code. What goes wrong on purpose is one sentence."""
    options = vars(_parser().parse_args(arguments))
    flags = {name: options.pop(name) for name in list(options) if name in Settings.model_fields}
    command = options.get("command") or "serve"
    try:
        settings = Settings.load(flags)
        if command == "serve":
            return serve(settings)
        if command == "doctor":
            from serve.doctor import examine

            result = examine(settings)
        else:
            logging.basicConfig(level=logging.WARNING, format="%(message)s")
            result = asyncio.run(_command(command, settings, options))
    except HustingsError as error:
        if options.get("json"):
            from serve.client import told

            print(json.dumps(told(error), indent=2))
        else:
            print(f"hustings: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    if options.get("json"):
        if result.data is not None:
            print(json.dumps(result.data, indent=2))
    elif result.text:
        print(result.text)
    return result.exit_code


if __name__ == "__main__":
    sys.exit(main())
