"""`python app.py doctor`: is everything there that a server needs? May run beside a server.

It changes no data, but fetches and converts the model where that has not been done yet.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import platform
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

from serve.client import Result
from serve.errors import HustingsError, PortInUse
from serve.folder import DataFolder
from serve.policy.base import ModelFolder, resolve_model
from serve.settings import Settings
from serve.sockets import bind

_DISK_FLOOR = 2 * 2**30
"""Bytes that a first start and a few runs need."""


class _Ailment(HustingsError):
    """A check that failed."""


def examine(settings: Settings) -> Result:
    """Run every check; one that fails keeps none of the others from running. Exit code 1 when one failed."""
    folder = settings.folder
    models: list[ModelFolder] = []

    def model() -> str:
        models.append(resolve_model(settings.model, settings.cache_dir))
        return f"{models[0].name} in {models[0].path}"

    checks: dict[str, Callable[[], str]] = {
        "model": model,
        "database": lambda: _database(folder),
        "adapters": lambda: _adapters(folder, models[0] if models else None),
        "port": lambda: _port(settings, folder),
        "disk": lambda: _disk(folder),
        "processor": _processor,
    }
    findings = [{"check": name, **_finding(check)} for name, check in checks.items()]
    text = "\n".join(f"{'ok  ' if f['ok'] else 'FAIL'}  {f['check']:<10} {f['finding']}" for f in findings)
    return Result({"checks": findings}, text, 0 if all(f["ok"] for f in findings) else 1)


def _finding(check: Callable[[], str]) -> dict[str, object]:
    try:
        return {"ok": True, "finding": check()}
    except (HustingsError, OSError, sqlite3.Error) as error:
        return {"ok": False, "finding": str(error)}


def _database(folder: DataFolder) -> str:
    if not folder.db.exists():
        return f"none yet; the first start makes {folder.db}"
    with closing(sqlite3.connect(f"{folder.db.resolve().as_uri()}?mode=ro", uri=True, timeout=5)) as db:
        problems = [row[0] for row in db.execute("PRAGMA integrity_check(5)") if row[0] != "ok"]
        problems += [
            f"table {row[0]}, row {row[1]} refers to nothing" for row in db.execute("PRAGMA foreign_key_check")
        ]
        if problems:
            raise _Ailment(f"{folder.db} is damaged ({'; '.join(problems[:5])}); restore it from a backup")
        votes = db.execute("SELECT count(*) FROM votes").fetchone()[0]
    return f"{folder.db} is whole; {votes} vote{'' if votes == 1 else 's'}"


def _adapters(folder: DataFolder, base: ModelFolder | None) -> str:
    versions = sorted(folder.adapters.glob("v[0-9]*"))
    problems = [problem for version in versions for problem in _adapter(version, base)]
    if problems:
        raise _Ailment("; ".join(problems))
    return f"{len(versions)} published, all as they were written"


def _adapter(version: Path, base: ModelFolder | None) -> Iterator[str]:
    try:
        manifest = json.loads((version / "manifest.json").read_text(encoding="utf-8"))
        files: dict[str, str] = {**manifest["files"]}
        trained_on = manifest["base"]["hash"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        yield f"{version / 'manifest.json'} cannot be read ({error}); restore {version} from a backup"
        return
    if base is not None and trained_on != base.hash:
        yield f"{version.name} was trained on another base; start with its --model"
    for name, sha256 in files.items():
        content = b""
        with contextlib.suppress(FileNotFoundError):
            content = (version / name).read_bytes()
        if hashlib.sha256(content).hexdigest() != sha256:
            yield f"{version / name} is not what was published; restore {version} from a backup"


def _port(settings: Settings, folder: DataFolder) -> str:
    try:
        with bind(settings.host, settings.port) as listener:
            return f"{settings.host}:{listener.getsockname()[1]} is free"
    except PortInUse:
        if folder.socket.exists():
            return f"{settings.host}:{settings.port} is taken, and a server runs on this database"
        raise


def _disk(folder: DataFolder) -> str:
    place = next(p for p in (folder.root, *folder.root.parents) if p.exists())
    free = shutil.disk_usage(place).free
    if free < _DISK_FLOOR:
        raise _Ailment(f"{free / 2**30:.1f} GiB free in {place}; a start and a few runs need 2 GiB")
    return f"{free / 2**30:.0f} GiB free in {place}"


def _processor() -> str:
    import torch

    capability = torch.cuda.get_device_name() if torch.cuda.is_available() else torch.backends.cpu.get_cpu_capability()
    capabilities = torch.cpu.get_capabilities()
    fast = ", ".join(name for name in ("avx512_bf16", "avx512_vnni", "amx_bf16", "amx_int8") if capabilities.get(name))
    return f"{capability}{f' with {fast}' if fast else ''}, {torch.get_num_threads()} threads, {platform.machine()}"
