"""The commands `prior3d-train`, `prior3d-prepare` and `prior3d-eval`: arguments, listings and error reporting.

Torch is imported only to train, prepare or evaluate.
"""

import argparse
import os
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from prior3d.errors import ArgumentError, UserError, on_command_line
from prior3d.messages import OneLineParser
from prior3d.registry import KINDS, Registry
from prior3d.version import __version__

if TYPE_CHECKING:
    from prior3d.pretraining.run import Run
    from prior3d.recipe import Recipe

_BAD_INPUT, _INTERRUPTED, _TERMINATED = 2, 130, 143
_WHICH = "which recipe? Give a YAML file or the name of a shipped recipe; --help says more"


def train(argv: Sequence[str] | None = None) -> int:
    """Run `prior3d-train`.

    Args:
        argv: command-line arguments; by default those of the process.

    Returns:
        The exit status: 0 on success, 2 after an error that the user can fix, with one line on stderr, 130 after
        Ctrl-C, 143 after SIGTERM. A bug in prior3d or in a plugin ends with its traceback.
    """
    return _command(_train, _train_parser(), argv)


def prepare(argv: Sequence[str] | None = None) -> int:
    """Run `prior3d-prepare`: compute in advance what `prior3d-train` needs before it trains.

    Args:
        argv: command-line arguments; by default those of the process.

    Returns:
        The exit status, as for `train`. Run the command again after an interruption to continue.
    """
    return _command(_prepare, _prepare_parser(), argv)


def evaluate(argv: Sequence[str] | None = None) -> int:
    """Run `prior3d-eval`: measure models with probes, or plot their features on images.

    Args:
        argv: command-line arguments; by default those of the process.

    Returns:
        The exit status, as for `train`. Run the command again after an interruption to continue.
    """
    return _command(_evaluate, _evaluate_parser(), argv)


def _command(run: Callable[[argparse.Namespace], int], parser: "_Parser", argv: Sequence[str] | None) -> int:
    try:
        arguments = parser.parse_intermixed_args(argv)
        if arguments.help is not None:
            return _print(_page(Registry(arguments.plugin), arguments.help))
        return run(arguments)
    except UserError as error:
        print(f"{parser.prog}: {on_command_line(error)}", file=sys.stderr)
        return _BAD_INPUT
    except KeyboardInterrupt:
        return _INTERRUPTED


class _Parser(OneLineParser):
    """A parser whose `--help` also describes plugins and sections."""

    def __init__(self, **settings: str) -> None:
        super().__init__(**settings, add_help=False)
        text = "show this, or what the plugin or section NAME takes (view_invariance, probes/depth, trainer)"
        self.add_argument("-h", "--help", nargs="?", const="", action=_Help, metavar="NAME", help=text)
        self.add_argument("--version", action="version", version=f"prior3d {__version__}")


class _Help(argparse.Action):
    """Print the help of the command at once, or keep the name of the plugin or section to describe."""

    def __call__(self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, name: str, _: object) -> None:
        if not name:
            parser.print_help()
            parser.exit()
        namespace.help = name


def _parser(name: str, description: str, example: str) -> _Parser:
    """Return a parser of the arguments that all commands with recipes share."""
    parser = _Parser(prog=name, description=description, epilog=f"example: {name} {example}")
    text = (
        "YAML files, names of recipes that ship with prior3d, or - for standard input, each laid over those before it;"
        " and values that override theirs, such as optim.lr=1e-3 (probes.depth=null removes an entry)"
    )
    parser.add_argument("recipe", nargs="*", metavar="RECIPE | KEY=VALUE", help=text)
    parser.add_argument("--plugin", action="append", default=[], metavar="FILE", help="a Python file with plugins")
    return parser


def _train_parser() -> _Parser:
    example = "joint data.batch_size=4 trainer.max_steps=50"
    parser = _parser("prior3d-train", "Train a backbone with the priors of a recipe.", example)
    add = parser.add_argument
    add("--out", type=Path, metavar="DIR", help="where the run folder is made; runs/ by default")
    text = "resume the run in this folder; it keeps its recipe, and trainer.max_steps=N makes it longer"
    add("--resume", type=Path, metavar="RUN", help=text)
    add("--list", action="store_true", help="list all plugins, where they come from, and what they do")
    add("--schema", action="store_true", help="print the JSON schema of recipes, for editors")
    add("--check", action="store_true", help="check the recipe and the plugins it names, then stop")
    return parser


def _prepare_parser() -> _Parser:
    description = (
        "Compute ahead what training computes once before it starts: pairs of views, surfaces, and what priors"
        " prepare for each scene. Several of these may run at the same time; existing results are reused."
    )
    return _parser("prior3d-prepare", description, "gaussian_distillation data.cache=/big/disk")


def _evaluate_parser() -> _Parser:
    description = (
        "Measure what frozen features of a model are good for: before and after training, both together and against a"
        " control, in a table and a report. MODEL is the folder of a run, an exported backbone or other weights, or a"
        " model of timm (with timm's weights, or random ones: backbone.pretrained=false)."
    )
    epilog = "example: prior3d-eval runs/joint-20250101-120000 --probes depth segmentation --seeds 3 data.rooms=24"
    parser = _Parser(prog="prior3d-eval", description=description, epilog=epilog)
    add = parser.add_argument
    add("model", nargs="?", metavar="MODEL", help="a run folder, a weight file, or a model of timm")
    add("overrides", nargs="*", metavar="KEY=VALUE", help="values of data, probes or backbone, such as data.rooms=24")
    add("--against", metavar="MODEL", help="model to compare with; for a run, by default its own initial weights")
    add("--control", metavar="MODEL", help="model of the same size, trained independently; by default random weights")
    add("--probes", nargs="+", default=[], metavar="NAME", help="what to measure; all measures whatever fits the data")
    add("--seeds", type=int, metavar="N", help="number of measurements, each with its own random draws")
    add("--out", type=Path, metavar="DIR", help="where the report is written; by default eval/ in the run folder")
    add("--pictures", nargs="+", default=[], metavar="IMAGE", help="only plot features of these images or folders")
    add("--device", choices=("auto", "cpu", "cuda"), default="auto", help="where to measure; auto takes a GPU if any")
    add("--plugin", action="append", default=[], metavar="FILE", help="a Python file with a dataset or probe")
    return parser


def _evaluate(arguments: argparse.Namespace) -> int:
    if arguments.model is None:
        raise UserError("no model is given: name a run folder, a weight file or a timm model; see --help")
    # a list of names ends at the first KEY=VALUE
    overrides = [text for text in arguments.probes if "=" in text]
    overrides += [text for text in arguments.pictures if "=" in text and not Path(text).exists()]
    probes, pictures = (
        [text for text in given if text not in overrides] for given in (arguments.probes, arguments.pictures)
    )
    from prior3d import evaluation

    request = evaluation.Arguments(
        model=arguments.model,
        against=arguments.against,
        control=arguments.control,
        probes=probes,
        seeds=arguments.seeds,
        out=arguments.out,
        overrides=[*arguments.overrides, *overrides],
        plugins=arguments.plugin,
        device=arguments.device,
    )
    if arguments.pictures:
        evaluation.plot(request, pictures)
    else:
        evaluation.run(request)
    return 0


def _train(arguments: argparse.Namespace) -> int:
    if arguments.list:
        return _print(_listing(Registry(arguments.plugin)))
    if arguments.schema:
        return _print(_json_schema(Registry(arguments.plugin)))
    if arguments.resume is not None:
        return _resume(arguments)
    recipe = _load(arguments)
    if arguments.check:
        return _print(f"{recipe.source.name} is fine")
    from prior3d import api

    return _status(api.train(recipe, out=arguments.out))


def _resume(arguments: argparse.Namespace) -> int:
    if given := _files(arguments):
        raise ArgumentError(f"a resumed run keeps its own recipe: leave out {given[0]}", "resume")
    from prior3d import api
    from prior3d.recipe.source import COMMAND_LINE

    overrides, plugins = arguments.recipe, arguments.plugin
    if arguments.check:
        from prior3d.pretraining import find_begun

        find_begun(arguments.resume, overrides, plugins)
        return _print(f"{arguments.resume} can be resumed")
    resumed = api.resume_run(
        arguments.resume, overrides, out=arguments.out, plugins=plugins, overrides_name=COMMAND_LINE
    )
    return _status(resumed)


def _status(run: "Run") -> int:
    return {None: 0, "SIGTERM": _TERMINATED}.get(run.stopped_by, _INTERRUPTED)


def _prepare(arguments: argparse.Namespace) -> int:
    recipe = _load(arguments)
    from prior3d import api

    api.prepare(recipe)
    return 0


def _load(arguments: argparse.Namespace) -> "Recipe":
    files = _files(arguments)
    if not files:
        raise UserError(_WHICH)
    overrides = [text for text in arguments.recipe if text not in files]
    from prior3d.recipe import load_recipe

    recipe = load_recipe(files, overrides, arguments.plugin)
    if "-" in files and recipe.trainer.devices > 1:
        with recipe.source.locating():
            raise UserError(
                "every process reads the recipe, but only one can read standard input: name a file", "trainer.devices"
            )
    return recipe


def _files(arguments: argparse.Namespace) -> list[str]:
    """Return the arguments that are not KEY=VALUE."""
    return [text for text in arguments.recipe if "=" not in text or os.path.isfile(text)]


def _print(text: str) -> int:
    """Print the output of a command; a reader that closes the pipe early (`| head`) is not an error."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for the flush when Python exits
    return 0


def _page(registry: Registry, name: str) -> str:
    from prior3d.recipe.help import describe

    return describe(registry, name, shutil.get_terminal_size((120, 0)).columns)


def _listing(registry: Registry) -> str:
    """Return a table of all plugins by kind: name, origin, and a summary or the reason why it cannot work."""
    lines = []
    for kind in KINDS:
        plugins, problems = registry.list(kind), registry.problems(kind)
        name, origin = (max((len(getattr(p, what)) for p in plugins), default=0) for what in ("name", "origin"))
        lines.append(f"{kind}:" if plugins else f"{kind}: none")
        for plugin in plugins:
            about = f"! {problems[plugin]}" if plugin in problems else registry.summary(plugin)
            lines.append(f"  {plugin.name:<{name}}  {plugin.origin:<{origin}}  {about}".rstrip())
    return "\n".join([*lines, *(f"! {problem}" for problem in registry.unreadable)])


def _json_schema(registry: Registry) -> str:
    import json

    from prior3d.recipe.json_schema import recipe_json_schema

    return json.dumps(recipe_json_schema(registry), indent=2)
