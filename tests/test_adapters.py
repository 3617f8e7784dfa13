"""The registry: what is published is whole and stays what it was, and nothing broken ever serves."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from serve.errors import AdapterError, Conflict, NotFound
from serve.feedback.store import Store
from serve.folder import DataFolder
from serve.policy.adapters import CONFIG, MANIFEST, WEIGHTS, Registry


@pytest.fixture
def folder(tmp_path: Path) -> DataFolder:
    return DataFolder(tmp_path / "data" / "feedback.db")


@pytest.fixture
def store(folder: DataFolder) -> Iterator[Store]:
    folder.root.mkdir()
    with Store.open(folder) as store:
        yield store


@pytest.fixture
def registry(folder: DataFolder, store: Store) -> Registry:
    return Registry(folder, store, base_hash="base-1", base_name="tiny")


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return adapter(tmp_path / "trained", b"weights")


def adapter(path: Path, weights: bytes) -> Path:
    path.mkdir()
    (path / CONFIG).write_text('{"peft_type": "LORA"}')
    (path / WEIGHTS).write_bytes(weights)
    (path / "README.md").write_text("PEFT leaves this too")
    return path


def publish(registry: Registry, source: Path, run: int | None = None) -> int:
    return registry.publish(source, run=run, parent=0, status="staged", report={"note": "good"}).number


def test_publish_copies_the_adapter_with_a_manifest_and_then_records_it(
    registry: Registry, store: Store, folder: DataFolder, source: Path
) -> None:
    run = store.create_run("operator", ["reward", "ppo"], {}).id
    version = registry.publish(source, run=run, parent=0, status="staged", report={"note": "good"})
    assert (version.number, version.status, version.run, version.parent) == (1, "staged", run, 0)
    published = folder.adapter(1)
    assert {entry.name for entry in published.iterdir()} == {CONFIG, WEIGHTS, MANIFEST}
    assert (published / WEIGHTS).read_bytes() == b"weights"
    manifest = json.loads((published / MANIFEST).read_text())
    assert manifest["base"] == {"model": "tiny", "hash": "base-1"}
    assert (manifest["version"], manifest["run"], manifest["parent"]) == (1, run, 0)
    assert manifest["training"] == {"note": "good"}
    assert manifest["files"] == {
        name: hashlib.sha256((source / name).read_bytes()).hexdigest() for name in (CONFIG, WEIGHTS)
    }
    assert registry.verify(1) == published


def test_a_run_publishes_once_however_often_it_is_finished(registry: Registry, store: Store, source: Path) -> None:
    run = store.create_run("operator", ["reward", "ppo"], {}).id
    assert publish(registry, source, run) == publish(registry, source, run) == 1
    assert [version.number for version in store.versions()] == [1, 0]


@pytest.mark.parametrize("name", [CONFIG, WEIGHTS])
def test_an_unfinished_adapter_is_not_published(registry: Registry, store: Store, source: Path, name: str) -> None:
    (source / name).unlink()
    with pytest.raises(AdapterError, match=name):
        publish(registry, source)
    assert len(store.versions()) == 1


class PowerCut(BaseException):
    """The machine stops here."""


def test_a_crash_before_the_rename_leaves_no_version_and_the_next_attempt_clears_up(
    registry: Registry, store: Store, folder: DataFolder, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def cut(self: Path, target: Path) -> Path:
        raise PowerCut

    with monkeypatch.context() as patch, pytest.raises(PowerCut):
        patch.setattr(Path, "rename", cut)
        publish(registry, source)
    assert not folder.adapter(1).exists()
    assert len(store.versions()) == 1
    assert publish(registry, source) == 1
    assert [entry.name for entry in folder.adapters.iterdir()] == ["v0001"]


def test_a_crash_between_the_rename_and_the_row_is_made_good_by_the_next_attempt(
    registry: Registry, store: Store, folder: DataFolder, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def cut(**_: object) -> None:
        raise PowerCut

    run = store.create_run("operator", ["reward", "ppo"], {}).id
    with monkeypatch.context() as patch, pytest.raises(PowerCut):
        patch.setattr(store, "add_version", cut)
        publish(registry, source, run)
    written = (folder.adapter(1) / MANIFEST).stat().st_ino
    assert len(store.versions()) == 1
    assert publish(registry, source, run) == 1
    assert (folder.adapter(1) / MANIFEST).stat().st_ino == written
    assert [entry.name for entry in folder.adapters.iterdir()] == ["v0001"]
    assert registry.verify(1)


def test_a_folder_of_another_record_is_moved_aside_and_never_taken_for_the_new_version(
    registry: Registry, folder: DataFolder, source: Path, tmp_path: Path
) -> None:
    folder.adapters.mkdir()
    adapter(folder.adapter(1), b"from before the backup was restored")
    assert publish(registry, source) == 1
    assert (folder.adapter(1) / WEIGHTS).read_bytes() == b"weights"
    assert (folder.adapters / "v0001.stray-1" / WEIGHTS).read_bytes() == b"from before the backup was restored"


def test_files_and_folders_are_synced_before_the_row_is_written(
    registry: Registry, store: Store, folder: DataFolder, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[str] = []
    fsync, add_version = os.fsync, store.add_version

    def watch(handle: int) -> None:
        synced.append(Path(f"/proc/self/fd/{handle}").readlink().name)
        fsync(handle)

    def last(**fields: object) -> object:
        synced.append("row")
        monkeypatch.setattr(os, "fsync", fsync)  # the record syncs in a thread of its own
        return add_version(**fields)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "fsync", watch)
    monkeypatch.setattr(store, "add_version", last)
    publish(registry, source)
    assert synced[:3] == [CONFIG, WEIGHTS, MANIFEST]
    assert synced[3].startswith(".publishing-")
    assert synced[4:] == ["adapters", "data", "row"]


def test_the_base_has_no_adapter_and_always_verifies(registry: Registry) -> None:
    assert registry.path(0) is None
    assert registry.verify(0) is None


def test_a_version_that_never_was_is_not_found(registry: Registry) -> None:
    with pytest.raises(NotFound):
        registry.verify(7)


@pytest.mark.parametrize("name", [CONFIG, WEIGHTS, MANIFEST])
def test_a_missing_file_is_named(registry: Registry, folder: DataFolder, source: Path, name: str) -> None:
    publish(registry, source)
    (folder.adapter(1) / name).unlink()
    with pytest.raises(AdapterError, match=f"{name} is missing"):
        registry.verify(1)


@pytest.mark.parametrize("name", [CONFIG, WEIGHTS, MANIFEST])
def test_a_changed_byte_is_found(registry: Registry, folder: DataFolder, source: Path, name: str) -> None:
    publish(registry, source)
    path = folder.adapter(1) / name
    content = path.read_bytes()
    path.write_bytes(content.replace(b"o", b"0", 1) if name == MANIFEST else content[:-1] + b"?")
    with pytest.raises(AdapterError, match=f"{name} is not what was published|{name} is truncated"):
        registry.verify(1)


def test_a_truncated_manifest_is_named(registry: Registry, folder: DataFolder, source: Path) -> None:
    publish(registry, source)
    path = folder.adapter(1) / MANIFEST
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(AdapterError, match=f"{MANIFEST} is truncated"):
        registry.verify(1)


def test_an_adapter_of_another_base_is_refused_by_both_names(
    registry: Registry, store: Store, folder: DataFolder, source: Path
) -> None:
    publish(registry, source)
    other = Registry(folder, store, base_hash="base-2", base_name="huge")
    with pytest.raises(AdapterError, match=r"another base .*tiny, base-1.*huge, base-2"):
        other.verify(1)
    assert Registry(folder, store, base_hash=None).verify(1), "without a model at hand, bases are not compared"


def test_promote_moves_the_pointer_and_says_who_and_why(registry: Registry, store: Store, source: Path) -> None:
    number = publish(registry, source)
    assert registry.promote(number, "anna", "it is better").status == "serving"
    assert store.serving() == number
    assert [(p.from_version, p.to_version, p.who, p.why) for p in store.promotions()] == [
        (0, 1, "anna", "it is better")
    ]


def test_a_broken_version_is_not_promoted_and_the_old_one_keeps_serving(
    registry: Registry, store: Store, folder: DataFolder, source: Path
) -> None:
    publish(registry, source)
    (folder.adapter(1) / WEIGHTS).write_bytes(b"weighty")
    with pytest.raises(AdapterError, match=WEIGHTS):
        registry.promote(1, "anna", "try it")
    assert store.serving() == 0


def test_a_version_that_the_gate_rejected_cannot_be_promoted(registry: Registry, store: Store, source: Path) -> None:
    registry.publish(source, run=None, parent=0, status="rejected", report={})
    with pytest.raises(Conflict):
        registry.promote(1, "anna", "I like it")
    assert store.serving() == 0


def test_rollback_returns_to_the_version_before(registry: Registry, store: Store, source: Path, tmp_path: Path) -> None:
    publish(registry, source)
    publish(registry, adapter(tmp_path / "second", b"more weights"))
    registry.promote(1, "anna", "first")
    registry.promote(2, "anna", "second")
    assert registry.rollback("anna", "it rambles").number == 1
    assert (store.serving(), store.version(2).status) == (1, "rolled_back")


def test_rollback_with_nothing_before_says_so(registry: Registry) -> None:
    with pytest.raises(Conflict, match="no version served before"):
        registry.rollback("anna", "why not")


def test_rollback_to_a_broken_version_is_refused_and_the_new_one_keeps_serving(
    registry: Registry, store: Store, folder: DataFolder, source: Path, tmp_path: Path
) -> None:
    publish(registry, source)
    publish(registry, adapter(tmp_path / "second", b"more weights"))
    registry.promote(1, "anna", "first")
    registry.promote(2, "anna", "second")
    (folder.adapter(1) / WEIGHTS).unlink()
    with pytest.raises(AdapterError, match=WEIGHTS):
        registry.rollback("anna", "it rambles")
    assert store.serving() == 2
