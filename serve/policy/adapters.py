"""The registry of published versions: publish, verify, promote, roll back.

    adapters/v0003/adapter_config.json         PEFT's own format
    adapters/v0003/adapter_model.safetensors
    adapters/v0003/manifest.json               what it is, and the SHA-256 of each file

safetensors notices neither a flipped bit nor a lost write, so both are guarded here. A version is written under a
temporary name, synced, renamed, and only then gets its row: the row is the truth, and a folder without one is
debris of a crash.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
import threading
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from serve.errors import AdapterError, Conflict
from serve.folder import DataFolder
from serve.records import BASE_VERSION, Version, VersionStatus

if TYPE_CHECKING:
    from serve.feedback.store import Store

CONFIG, WEIGHTS, MANIFEST = "adapter_config.json", "adapter_model.safetensors", "manifest.json"
_FILES = (CONFIG, WEIGHTS)
_TEMPORARY = ".publishing-"


class Registry:
    """Published adapters on disk, and which of them serves. Thread-safe."""

    def __init__(
        self, folder: DataFolder, store: Store, *, base_hash: str | None, base_name: str | None = None
    ) -> None:
        """`base_hash` is the SHA-256 of the canonical weights; without it (no model at hand) bases are not compared."""
        self._folder = folder
        self._store = store
        self._base_hash = base_hash
        self._base_name = base_name
        self._publishing = threading.Lock()

    def path(self, version: int) -> Path | None:
        """Where a version's adapter lies; None for the base, which has none."""
        return None if version == BASE_VERSION else self._folder.adapter(version)

    def publish(
        self, source: Path, *, run: int | None, parent: int | None, status: VersionStatus, report: Mapping[str, Any]
    ) -> Version:
        """Copy the adapter in `source` into the registry as the next version, durably, and record it.

        A run publishes once: asked again after a crash, this returns the version that is there. Raises AdapterError
        when `source` is not a whole adapter in PEFT's format.
        """
        with self._publishing:
            if run is not None and (done := next((v for v in self._store.versions() if v.run == run), None)):
                return done
            for name in _FILES:
                if not (source / name).is_file():
                    raise AdapterError(f"{source} has no {name}; save the adapter with PEFT's save_pretrained")
            _read_json(source / CONFIG)
            self._folder.adapters.mkdir(parents=True, exist_ok=True)
            for debris in self._folder.adapters.glob(f"{_TEMPORARY}*"):
                shutil.rmtree(debris)
            number = self._store.next_version_number()
            files = {name: _sha256(source / name) for name in _FILES}
            if not self._was_written(number, run, files):
                manifest = {
                    "version": number,
                    "run": run,
                    "parent": parent,
                    "base": {"model": self._base_name, "hash": self._base_hash},
                    "created": datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z"),
                    "files": files,
                    "training": report,
                }
                self._write(source, self._folder.adapter(number), manifest)
            sha256 = _sha256(self._folder.adapter(number) / MANIFEST)
            return self._store.add_version(run=run, parent=parent, status=status, report=report, sha256=sha256)

    def verify(self, version: int) -> Path | None:
        """The adapter's folder, once every file of it has been read and found to be what was published.

        None for the base. Raises AdapterError naming the file and the fix, NotFound for a version that never was.
        """
        record = self._store.version(version)
        folder = self.path(version)
        if folder is None:
            return None
        fix = f"restore {folder} from a backup, or serve another version"
        manifest = _read_json(folder / MANIFEST, fix)
        files, base = manifest.get("files"), manifest.get("base")
        if not isinstance(files, dict) or not isinstance(base, dict) or not set(_FILES) <= files.keys():
            raise AdapterError(f"{folder / MANIFEST} does not list the adapter's files; {fix}")
        if record.sha256 is not None and _sha256(folder / MANIFEST) != record.sha256:
            raise AdapterError(f"{folder / MANIFEST} is not what was published (its SHA-256 differs); {fix}")
        if manifest.get("version") != version:
            raise AdapterError(f"{folder / MANIFEST} is of version {manifest.get('version')}, not {version}; {fix}")
        if self._base_hash is not None and base.get("hash") != self._base_hash:
            raise AdapterError(
                f"version {version} was trained on another base ({base.get('model')}, {str(base.get('hash'))[:12]}) "
                f"than the one that is loaded ({self._base_name}, {self._base_hash[:12]}); start with its --model"
            )
        for name in _FILES:
            if not (folder / name).is_file():
                raise AdapterError(f"{folder / name} is missing; {fix}")
            if _sha256(folder / name) != files[name]:
                raise AdapterError(f"{folder / name} is not what was published (its SHA-256 differs); {fix}")
        return folder

    def promote(self, version: int, who: str, why: str) -> Version:
        """Make a version the serving one, after `verify`. The engine follows the row, so load it there first.

        Raises AdapterError and NotFound as `verify`, Conflict for a version that the gate rejected.
        """
        self.verify(version)
        return self._store.set_serving(version, who=who, why=why)

    def rollback(self, who: str, why: str) -> Version:
        """Return to the version that served before. Raises Conflict when there is none, AdapterError as `verify`."""
        previous = self._store.previous_serving()
        if previous is None:
            raise Conflict("no version served before this one; promote the one you want instead")
        self.verify(previous)
        return self._store.set_serving(previous, who=who, why=why, rolled_back=True)

    def _was_written(self, number: int, run: int | None, files: Mapping[str, str]) -> bool:
        """Whether a crash came between the folder and its row. Any other folder without a row is another record's (a
        backup was restored) and is moved aside.
        """
        target = self._folder.adapter(number)
        if not target.exists():
            return False
        try:
            manifest = _read_json(target / MANIFEST)
            same = all((target / name).is_file() and _sha256(target / name) == files[name] for name in _FILES)
        except AdapterError:
            same = False
        if same and run is not None and manifest.get("run") == run and manifest.get("files") == files:
            return True
        target.rename(free_name(target))
        return False

    def _write(self, source: Path, target: Path, manifest: Mapping[str, Any]) -> None:
        """Write the version's folder so that it exists whole or not at all."""
        temporary = Path(tempfile.mkdtemp(prefix=_TEMPORARY, dir=target.parent))
        try:
            temporary.chmod(0o755)
            for name in _FILES:
                shutil.copyfile(source / name, temporary / name)
                sync(temporary / name)
                if _sha256(temporary / name) != manifest["files"][name]:
                    raise AdapterError(f"{source / name} changed while it was copied; publish it when it is at rest")
            text = json.dumps(manifest, indent=2, ensure_ascii=False) + "\n"
            (temporary / MANIFEST).write_text(text, encoding="utf-8")
            sync(temporary / MANIFEST)
            sync(temporary)
            temporary.rename(target)
        except Exception:
            shutil.rmtree(temporary, ignore_errors=True)  # on a full disk it would only stand in the way
            raise
        sync(target.parent)
        sync(target.parent.parent)  # the first version also made adapters/


def sync(path: Path) -> None:
    """Wait until a file, or a folder's list of names, is on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _read_json(path: Path, fix: str = "train it again") -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise AdapterError(f"{path} is missing; {fix}") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise AdapterError(f"{path} is truncated or damaged ({error}); {fix}") from None
    if not isinstance(content, dict):
        raise AdapterError(f"{path} is damaged (not an object); {fix}")
    return content


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def free_name(path: Path) -> Path:
    """`v0003.stray-1`, or the next number that is free."""
    number = 1
    while (name := path.with_name(f"{path.name}.stray-{number}")).exists():
        number += 1
    return name
