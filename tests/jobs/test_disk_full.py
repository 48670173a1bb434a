"""A disk that is full or closed: one line with the path and what to do, nothing half-written, nothing lost."""

import errno
import os
import subprocess
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from prior3d import cli
from prior3d.contracts.runner import SceneJob
from prior3d.errors import UserError
from prior3d.files import replacing, temporary_folder, write_atomically, writing
from prior3d.jobs import Store, run_jobs
from prior3d.jobs.example import write_much
from prior3d_plugins.runners.local import Local
from prior3d_plugins.runners.processes import Processes

MIB = 2**20


@pytest.fixture
def small_disk(tmp_path):
    """A file system of one MiB; the test is skipped, visibly, where it cannot be mounted."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", folder], check=False).returncode:
        pytest.skip("a tmpfs cannot be mounted here")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


def write_numpy(size, folder, progress):
    np.save(folder / "data.npy", np.zeros(size, np.uint8))


def write_safetensors(size, folder, progress):
    save_file({"data": torch.zeros(size, dtype=torch.uint8)}, folder / "data.safetensors")


def write_torch(size, folder, progress):
    torch.save({"data": torch.zeros(size, dtype=torch.uint8)}, folder / "data.pt")


@pytest.mark.parametrize("write", [write_much, write_numpy, write_safetensors, write_torch])
@pytest.mark.parametrize("size", [2 * MIB, 20 * MIB])
def test_a_result_that_does_not_fit_is_one_line_and_leaves_what_was_there(small_disk, write, size):
    store = Store(small_disk / "cache")
    jobs = [SceneJob("rooms", name, {"room": name}, partial(write, count)) for name, count in (("a", 100), ("b", size))]
    run_jobs(jobs[:1], store)
    before = {path: path.read_bytes() for path in small_disk.rglob("*") if path.is_file()}
    with pytest.raises(UserError) as caught:
        run_jobs(jobs, store)
    line = f"cannot write {small_disk}/cache/rooms: No space left on device; free some, or use another folder"
    assert (caught.value.message, caught.value.key) == (line, "cache")
    after = {path: path.read_bytes() for path in small_disk.rglob("*") if path.is_file() and path.suffix != ".lock"}
    assert after == {path: content for path, content in before.items() if path.suffix != ".lock"}


@pytest.mark.slow
def test_a_full_disk_met_by_another_process_is_the_same_line(small_disk):
    jobs = [SceneJob("rooms", str(room), {"room": room}, partial(write_much, 2 * MIB)) for room in range(3)]
    with pytest.raises(UserError, match=r"cache: cannot write .*/rooms: No space left on device") as caught:
        run_jobs(jobs, Store(small_disk / "cache"), Processes(workers=2))
    assert caught.value.key == "cache"
    assert not list(small_disk.rglob("*.partial"))


def test_a_disk_without_room_for_a_file_atomically_written_keeps_the_old_one(small_disk):
    path = small_disk / "scores.json"
    write_atomically(path, b"old")
    with pytest.raises(UserError, match=r"cannot write .*/scores\.json: No space left on device; free some"):
        write_atomically(path, bytes(2 * MIB))
    assert path.read_bytes() == b"old"
    assert [file.name for file in small_disk.iterdir()] == ["scores.json"]


def test_preparing_on_a_full_disk_is_one_line_with_key_and_path(small_disk, tmp_path, capsys):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"""
backbone: {{name: test_convnext, decoder_stride: 4, channels: 16}}
data: {{name: synthetic_rooms, rooms: 8, frames: 12, size: [48, 64], batch_size: 2, cache: {small_disk / "cache"}}}
priors: {{depth_regression: {{}}}}
trainer: {{max_steps: 1, accelerator: cpu}}
""")
    assert cli.prepare([str(recipe)]) == 2
    line = capsys.readouterr().err
    assert line.count("\n") == 1 and "data.cache: cannot write" in line
    assert f"{small_disk}/cache/synthetic_rooms: No space left on device; free some, or use another folder" in line
    assert not list(small_disk.rglob("*.partial"))
    whole = list((small_disk / "cache" / "synthetic_rooms").glob("[!.]*"))
    assert whole and all(len(list(entry.iterdir())) == 6 for entry in whole)  # five arrays and the facts


@pytest.mark.parametrize(
    ("number", "advice"),
    [
        (errno.ENOSPC, "free some, or use another folder"),
        (errno.EDQUOT, "free some, or use another folder"),
        (errno.EROFS, "use a folder that can be written"),
        (errno.EACCES, "use a folder that can be written"),
    ],
)
def test_what_the_system_says_of_a_write_is_passed_on(monkeypatch, tmp_path, number, advice):
    path = tmp_path / "a.json"
    path.write_bytes(b"old")

    def fail(*_):
        raise OSError(number, os.strerror(number), str(path))

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", fail)
        with pytest.raises(UserError) as caught:
            write_atomically(path, b"new")
    assert caught.value.message == f"cannot write {path}: {os.strerror(number)}; {advice}"
    assert [file.name for file in tmp_path.iterdir()] == ["a.json"] and path.read_bytes() == b"old"


@pytest.mark.parametrize("runner", [Local()])
def test_other_errors_of_a_job_stay_what_they_are(tmp_path, runner):
    unreadable = PermissionError(errno.EACCES, "Permission denied", "/data/scans/a.png")
    for error in (unreadable, FileNotFoundError(errno.ENOENT, "gone"), ValueError("a bug")):

        def build(folder, progress, error=error):
            raise error

        with pytest.raises(type(error)) as caught:
            run_jobs([SceneJob("rooms", "a", {}, build)], Store(tmp_path), runner)
        assert caught.value is error


def test_what_killed_processes_left_of_a_file_goes_with_the_next_write(tmp_path):
    with replacing(tmp_path / "a.bin") as temporary:
        mine = temporary.name
        temporary.write_bytes(b"x")
    dead = subprocess.Popen(["true"])
    dead.wait()
    left = tmp_path / mine.replace(f"-{os.getpid()}.", f"-{dead.pid}.")
    alive = tmp_path / mine.replace(f"-{os.getpid()}.", f"-{os.getppid()}.")
    for file in (left, alive):
        file.write_bytes(b"half")
    write_atomically(tmp_path / "a.bin", b"whole")
    assert not left.exists() and alive.exists()  # another process may be writing it at this moment
    assert (tmp_path / "a.bin").read_bytes() == b"whole"


@pytest.mark.parametrize("host", ["node", "node-1"])
def test_what_other_machines_are_writing_on_a_shared_disk_stays(tmp_path, monkeypatch, host):
    monkeypatch.setattr("socket.gethostname", lambda: host)
    dead = subprocess.Popen(["true"])
    dead.wait()
    files = {name: tmp_path / f".a.bin.{name}-{dead.pid}.tmp" for name in ("node", "node-1", "node-2.lan", "node-x")}
    folders = {name: tmp_path / f"probe-{name}-{dead.pid}-abc_123" for name in files}
    for name, file in files.items():
        file.write_bytes(b"half")
        folders[name].mkdir()
    write_atomically(tmp_path / "a.bin", b"whole")
    with temporary_folder("probe-", tmp_path):
        assert [name for name in files if not files[name].exists()] == [host]
        assert [name for name in files if not folders[name].exists()] == [host]


@pytest.mark.parametrize(
    "error",
    [
        ValueError("4 views were requested and 2 exist"),
        RuntimeError("4 views were requested and 2 exist"),
        OSError("4 views were requested and 2 exist"),
        ValueError("No space left on device"),
        ValueError("8 requested and 4 written"),
        KeyError("quota exceeded"),
        RuntimeError("the quota exceeded what was asked"),
        FileNotFoundError(errno.ENOENT, "No such file or directory", "No space left on device"),
    ],
)
def test_errors_that_only_sound_like_a_full_disk_pass(tmp_path, error, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(total=100, free=0))
    with pytest.raises(type(error)) as caught, writing(tmp_path):
        raise error
    assert caught.value is error


@pytest.mark.parametrize(
    "error",
    [
        OSError("2097152 requested and 1048448 written"),
        OSError("Not enough free space to write 20971520 bytes after offset 128"),
        RuntimeError("write(): fd 3 failed with No space left on device"),
        SafetensorError("Error while serializing: I/O error: Disk quota exceeded (os error 122)"),
        RuntimeError("[enforce fail at inline_container.cc:671] . unexpected pos 576 vs 534"),
    ],
)
def test_what_libraries_say_of_a_full_disk_is_one_line(tmp_path, error, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(total=100, free=0))
    with pytest.raises(UserError, match="No space left on device; free some, or use another folder"), writing(tmp_path):
        raise error


def test_a_failed_write_of_torch_on_a_disk_with_space_is_not_a_full_disk(tmp_path):
    with pytest.raises(RuntimeError, match="unexpected pos"), writing(tmp_path):
        raise RuntimeError("[enforce fail at inline_container.cc:671] . unexpected pos 576 vs 534")


def test_a_block_that_fails_leaves_no_temporary_file(tmp_path):
    with pytest.raises(ZeroDivisionError), replacing(tmp_path / "a.bin") as temporary:
        temporary.write_bytes(b"half")
        raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(UserError, match="cannot write") as caught, writing(tmp_path, "cache"):
        raise OSError(errno.ENOSPC, "full")
    assert caught.value.key == "cache"
