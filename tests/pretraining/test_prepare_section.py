"""The section `prepare:` chooses who does the work per scene; what comes of it is the same."""

import pytest

from prior3d import cli
from prior3d.recipe import load_recipe

RECIPE = """
seed: 3
backbone: {{name: test_convnext, decoder_stride: 4, channels: 16}}
data: {{name: synthetic_rooms, rooms: 2, frames: 6, size: [48, 64], batch_size: 2, cache: {cache}}}
priors: {{pixel_voxel: {{}}, gaussian_distillation: {{anchor: 0.1, min_views: 2}}}}
trainer: {{max_steps: 2, accelerator: cpu, draw_every: 0}}
"""

THREADS = '''
"""A runner of a stranger's."""
from concurrent.futures import ThreadPoolExecutor, as_completed
from prior3d.contracts.runner import Runner


class Threads(Runner):
    """Runs jobs in threads of this process.

    Args:
        count: of threads.
    """

    def __init__(self, *, count: int = 2) -> None:
        self.count = count

    def run(self, jobs, work):
        with ThreadPoolExecutor(self.count) as pool:
            numbers = {pool.submit(work, job): number for number, job in enumerate(jobs)}
            try:
                for done in as_completed(numbers):
                    done.result()
                    yield numbers[done]
            finally:
                pool.shutdown(cancel_futures=True)
'''


@pytest.fixture
def recipe(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE.format(cache=tmp_path / "local"))
    return path


def contents(cache):
    files = [path for path in cache.rglob("*") if path.is_file() and path.suffix != ".lock"]
    return {str(path.relative_to(cache)): path.read_bytes() for path in files}


def test_processes_and_a_strangers_threads_make_the_same_results(recipe, tmp_path, capsys):
    (tmp_path / "threads.py").write_text(THREADS)
    assert cli.prepare([str(recipe)]) == 0
    expected = contents(tmp_path / "local")
    assert {name.split("/")[0] for name in expected} == {"synthetic_rooms", "pairs", "surfaces", "prepared"}
    for runner, more in (
        ("processes", ["prepare.workers=2"]),
        ("threads", ["prepare.count=1", "--plugin", str(tmp_path / "threads.py")]),
    ):
        arguments = [str(recipe), f"data.cache={tmp_path / runner}", f"prepare.runner={runner}", *more]
        assert cli.prepare(arguments) == 0
        assert "2 scenes prepared, 2 of them now" in capsys.readouterr().out
        found = contents(tmp_path / runner)
        assert found.keys() == expected.keys()
        assert [name for name in found if found[name] != expected[name]] == []


def test_an_error_of_a_job_is_the_same_line_from_another_process(recipe, tmp_path, capsys):
    lines = []
    for more in ([], ["prepare.runner=processes", "prepare.workers=1"]):
        arguments = [str(recipe), f"data.cache={tmp_path / 'cache'}", "data.rooms=1", "data.views=1", "data.frames=1"]
        assert cli.prepare([*arguments, *more]) == 2
        lines.append(capsys.readouterr().err)
    assert lines[0] == lines[1] and lines[0].count("\n") == 1
    assert "priors.gaussian_distillation: scene train-000: 1 frames" in lines[0]


def test_the_resolved_recipe_holds_the_section_only_where_it_was_given(recipe):
    plain, chosen = load_recipe(recipe), load_recipe(recipe, ["prepare.runner=processes", "prepare.workers=4"])
    assert plain.prepare.runner == "local" and "prepare" not in plain.to_dict()
    assert chosen.to_dict()["prepare"] == {"runner": "processes", "workers": 4}
    assert ("runners", "processes", "prepare.runner") in list(chosen.uses())
    assert load_recipe(recipe, ["prepare.runner=local"]) == plain


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["prepare.runner=procceses"], "prepare.runner: unknown runner 'procceses', did you mean 'processes'?"),
        (["prepare.runner=processes", "prepare.workers=0"], "prepare.workers: "),
        (["prepare.workers=2"], "prepare.workers: unknown key"),
        (["prepare=processes"], "prepare: expected a section of keys, got the text 'processes'"),
    ],
)
def test_what_cannot_be_chosen_is_one_line(recipe, capsys, overrides, words):
    assert cli.prepare([str(recipe), *overrides]) == 2
    line = capsys.readouterr().err
    assert line.count("\n") == 1 and words in line
