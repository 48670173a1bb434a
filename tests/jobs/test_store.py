import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest

from prior3d.errors import UserError
from prior3d.files import content_key
from prior3d.jobs.store import Store, build_once

FILES = 20


def start(script: str, *arguments: object) -> subprocess.Popen:
    preamble = "import os, sys, time\nfrom pathlib import Path\nfrom prior3d.jobs.store import build_once\n"
    command = [sys.executable, "-c", preamble + textwrap.dedent(script), *map(str, arguments)]
    paths = os.pathsep.join(path for path in sys.path if path)
    return subprocess.Popen(command, env={**os.environ, "PYTHONPATH": paths})


def wait_for(path: Path, seconds: float = 20.0) -> None:
    end = time.monotonic() + seconds
    while not path.exists():
        assert time.monotonic() < end, f"{path} did not appear"
        time.sleep(0.01)


def partials(folder: Path) -> list[Path]:
    return list(folder.glob(".*.partial"))


# Holds the lock within `build` until the file `go` appears; says so with `started`.
HOLDER = """
    entry, started, go = map(Path, sys.argv[1:4])
    def build(folder):
        (folder / "a.txt").write_text("half")
        started.write_text("")
        while not go.exists():
            time.sleep(0.01)
        (folder / "a.txt").write_text(str(os.getpid()))
    build_once(entry, build)
"""


def test_key_depends_on_values_and_not_on_their_order():
    key = content_key({"a": 1, "b": [2, "x"]})
    assert key == content_key({"b": (2, "x"), "a": 1})
    assert len(key) == 20
    assert len({key, content_key({"a": 1, "b": [2, "y"]}), content_key({"a": 1}), content_key({"a": "1"})}) == 4


@pytest.mark.parametrize("value", [Path("x"), {1, 2}, float("nan")])
def test_key_refuses_values_without_one_text(value):
    with pytest.raises((TypeError, ValueError)):
        content_key({"a": value})


def test_an_entry_is_built_once_and_says_what_it_was_built_from(tmp_path):
    store, built = Store(tmp_path), []

    def build(folder: Path) -> None:
        built.append(folder)
        (folder / "deep").mkdir()
        (folder / "deep" / "a.txt").write_text("whole")

    entries = [store.build("rooms", {"seed": 3}, build) for _ in range(2)]
    assert entries == [store.path("rooms", {"seed": 3})] * 2
    assert len(built) == 1
    assert built[0].parent == entries[0].parent  # a rename does not cross file systems
    assert (entries[0] / "deep" / "a.txt").read_text() == "whole"
    assert json.loads((entries[0] / "facts.json").read_text()) == {"seed": 3}
    assert partials(tmp_path / "rooms") == []


def test_a_build_that_raises_leaves_nothing(tmp_path):
    def build(folder: Path) -> None:
        (folder / "a.txt").write_text("half")
        raise PermissionError("of the build's own")

    with pytest.raises(PermissionError, match="own"):
        build_once(tmp_path / "entry", build)
    assert not (tmp_path / "entry").exists()
    assert partials(tmp_path) == []


def test_what_exists_is_returned_without_writing(tmp_path):
    (tmp_path / "entry").mkdir()
    assert build_once(tmp_path / "entry", lambda folder: pytest.fail("built")) == tmp_path / "entry"
    assert [path.name for path in tmp_path.iterdir()] == ["entry"]


def test_of_two_processes_one_builds_and_the_other_waits(tmp_path):
    entry, go = tmp_path / "entry", tmp_path / "go"
    first = start(HOLDER, entry, tmp_path / "first", go)
    wait_for(tmp_path / "first")
    second = start(HOLDER, entry, tmp_path / "second", go)
    time.sleep(0.5)
    assert second.poll() is None
    assert not entry.exists()
    go.write_text("")
    assert first.wait(20) == second.wait(20) == 0
    assert (entry / "a.txt").read_text() == str(first.pid)
    assert not (tmp_path / "second").exists()


def test_of_many_threads_one_builds(tmp_path):
    built = []

    def build(folder: Path) -> None:
        built.append(threading.get_ident())
        time.sleep(0.1)

    threads = [threading.Thread(target=build_once, args=(tmp_path / "entry", build)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert len(built) == 1


def test_a_killed_builder_is_succeeded_by_one_that_waits(tmp_path):
    entry, go = tmp_path / "entry", tmp_path / "go"
    first = start(HOLDER, entry, tmp_path / "first", go)
    wait_for(tmp_path / "first")
    second = start(HOLDER, entry, tmp_path / "second", go)
    time.sleep(0.3)
    first.send_signal(signal.SIGKILL)
    first.wait()
    wait_for(tmp_path / "second")
    assert not entry.exists()
    assert len(partials(tmp_path)) == 1  # the first one's is gone already, the second's is being written
    go.write_text("")
    assert second.wait(20) == 0
    assert (entry / "a.txt").read_text() == str(second.pid)
    assert partials(tmp_path) == []


def test_a_child_that_outlives_a_killed_builder_does_not_keep_the_lock(tmp_path):
    script = """
        entry, started, end = map(Path, sys.argv[1:4])
        def build(folder):
            if os.fork() == 0:
                for _ in range(1500):
                    if end.exists():
                        break
                    time.sleep(0.01)
                os._exit(0)
            started.write_text("")
            time.sleep(60)
        build_once(entry, build)
    """
    process = start(script, tmp_path / "entry", tmp_path / "started", tmp_path / "end")
    wait_for(tmp_path / "started")
    process.send_signal(signal.SIGKILL)
    process.wait()
    begin = time.monotonic()
    build_once(tmp_path / "entry", lambda folder: (folder / "a.txt").write_text("mine"))
    assert time.monotonic() - begin < 10  # its child lives for 15 s
    (tmp_path / "end").write_text("")
    assert (tmp_path / "entry" / "a.txt").read_text() == "mine"


def test_killed_at_any_moment_an_entry_is_whole_or_absent(tmp_path):
    script = f"""
        root = Path(sys.argv[1])
        def build(folder):
            for number in range({FILES}):
                (folder / f"{{number}}.txt").write_text("x" * 1000)
        for number in range(100000):
            build_once(root / f"entry-{{number}}", build)
    """
    killed_amid = 0
    for attempt in range(8):
        root = tmp_path / str(attempt)
        process = start(script, root)
        wait_for(root / "entry-0")
        time.sleep(0.003 * attempt)
        process.send_signal(signal.SIGKILL)
        process.wait()
        killed_amid += bool(partials(root))
        entries = list(root.glob("entry-*"))
        assert entries
        for entry in entries:
            assert sorted(path.stat().st_size for path in entry.iterdir()) == [1000] * FILES
        build_once(root / "next", lambda folder: None)
        assert partials(root) == []
    assert killed_amid > 0


def test_remains_of_others_are_removed_but_not_what_is_being_built(tmp_path):
    (tmp_path / ".dead.0123abcd.partial").mkdir()
    holder = start(HOLDER, tmp_path / "alive", tmp_path / "started", tmp_path / "go")
    wait_for(tmp_path / "started")
    build_once(tmp_path / "other", lambda folder: None)
    assert [path.name.split(".")[1] for path in partials(tmp_path)] == ["alive"]
    (tmp_path / "go").write_text("")
    assert holder.wait(20) == 0
    assert (tmp_path / "alive" / "a.txt").read_text() == str(holder.pid)


def test_a_cache_that_is_a_file_is_the_users_error(tmp_path):
    (tmp_path / "cache").write_text("")
    with pytest.raises(UserError, match=r"cannot make the folder .*: Not a directory; use another one") as caught:
        Store(tmp_path / "cache").build("rooms", {}, lambda folder: None)
    assert caught.value.key == "cache"
