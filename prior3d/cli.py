"""The commands `prior3d-train`, `prior3d-prepare` and `prior3d-eval`: arguments, listings, how errors reach the user.

Torch is imported only to train, prepare or evaluate.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

from prior3d import __version__
from prior3d.errors import UserError
from prior3d.registry import KINDS, Registry

_BAD_INPUT, _INTERRUPTED, _TERMINATED = 2, 130, 143
_WHICH = "which recipe? Give a YAML file or the name of a shipped recipe; --help says more"


def train(argv: Sequence[str] | None = None) -> int:
    """Run `prior3d-train`.

    Args:
        argv: arguments; those of the process by default.

    Returns:
        The exit status: 0 when done, 2 with one line on stderr for what the user can mend, 130 after Ctrl-C. A bug in
        prior3d or in a plugin ends with its traceback.
    """
    return _command(_train, _train_parser(), argv)


def prepare(argv: Sequence[str] | None = None) -> int:
    """Run `prior3d-prepare`: what `prior3d-train` would compute before it trains; it then finds it done.

    Args:
        argv: arguments; those of the process by default.

    Returns:
        The exit status, as of `train`; run again after an interruption, it goes on.
    """
    return _command(_prepare, _prepare_parser(), argv)


def evaluate(argv: Sequence[str] | None = None) -> int:
    """Run `prior3d-eval`: measure models with probes, or draw their features on images.

    Args:
        argv: arguments; those of the process by default.

    Returns:
        The exit status, as of `train`; run again after an interruption, it goes on.
    """
    return _command(_evaluate, _evaluate_parser(), argv)


def _command(run: Callable[[argparse.Namespace], int], parser: "_Parser", argv: Sequence[str] | None) -> int:
    try:
        return run(parser.parse_intermixed_args(argv))
    except UserError as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        return _BAD_INPUT
    except KeyboardInterrupt:
        return _INTERRUPTED


class _Parser(argparse.ArgumentParser):
    """Tells wrong arguments as every other error, in one line."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; --help names what there is")


def _parser(name: str, description: str, example: str) -> _Parser:
    """Return a parser of the arguments that all commands take."""
    parser = _Parser(prog=name, description=description, epilog=f"example: {name} {example}")
    add = parser.add_argument
    add("recipe", nargs="?", metavar="RECIPE", help="a YAML file, or the name of a recipe that ships with prior3d")
    add("overrides", nargs="*", metavar="KEY=VALUE", help="values over the recipe's, such as optim.lr=1e-3")
    add("--plugin", action="append", default=[], metavar="FILE", help="a Python file with a prior, dataset or probe")
    add("--version", action="version", version=f"prior3d {__version__}")
    return parser


def _train_parser() -> _Parser:
    example = "joint data.batch_size=4 trainer.max_steps=50"
    parser = _parser("prior3d-train", "Train a backbone with the priors of a recipe.", example)
    add = parser.add_argument
    add("--out", type=Path, metavar="DIR", help="where the run folder is made; runs/ by default")
    add(
        "--resume",
        type=Path,
        metavar="RUN",
        help="go on with a run, by its folder; trainer.max_steps=N makes it longer",
    )
    add("--list", action="store_true", help="name the priors, datasets and probes there are, and where they are from")
    add("--schema", action="store_true", help="print the JSON schema of recipes, for editors")
    add("--check", action="store_true", help="check the recipe and the plugins it names, then stop")
    return parser


def _prepare_parser() -> _Parser:
    description = (
        "Compute what training with a recipe computes once before it starts: pairs of views, surfaces, what priors"
        " prepare of each scene. Any number of these may run side by side; what is there is not computed again."
    )
    return _parser("prior3d-prepare", description, "gaussian_distillation data.cache=/big/disk")


def _evaluate_parser() -> _Parser:
    description = (
        "Say what frozen features of a model are good for: before and after training, both together and against a"
        " control, in a table and a report. MODEL is the folder of a run, an exported backbone or other weights, or a"
        " model of timm (with timm's weights, or random ones: backbone.pretrained=false)."
    )
    epilog = "example: prior3d-eval runs/joint-20250101-120000 --probes depth segmentation --seeds 3 data.rooms=24"
    parser = _Parser(prog="prior3d-eval", description=description, epilog=epilog)
    add = parser.add_argument
    add("model", nargs="?", metavar="MODEL", help="a run folder, a weight file, or a model of timm")
    add("overrides", nargs="*", metavar="KEY=VALUE", help="values of data, probes or backbone, such as data.rooms=24")
    add("--against", metavar="MODEL", help="compare with this one; by default a run's with its own initial weights")
    add("--control", metavar="MODEL", help="trained independently, of the same size; by default random weights")
    add("--probes", nargs="+", default=[], metavar="NAME", help="what to measure; all: whatever fits the data")
    add("--seeds", type=int, metavar="N", help="measure so often, with other draws of the probes' own each time")
    add("--out", type=Path, metavar="DIR", help="where the report is written; by default eval/ in the run folder")
    add("--pictures", nargs="+", default=[], metavar="IMAGE", help="only draw features on these images or folders")
    add("--device", choices=("auto", "cpu", "cuda"), default="auto", help="where to measure; auto takes a GPU if any")
    add("--plugin", action="append", default=[], metavar="FILE", help="a Python file with a dataset or probe")
    add("--version", action="version", version=f"prior3d {__version__}")
    return parser


def _evaluate(arguments: argparse.Namespace) -> int:
    if arguments.model is None:
        raise UserError("which model? Give a run folder, a weight file or a model of timm; --help says more")
    # lists of names end where the values begin
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
    return evaluation.draw(request, pictures) if arguments.pictures else evaluation.run(request)


def _train(arguments: argparse.Namespace) -> int:
    if arguments.list:
        print(_listing(Registry(arguments.plugin)))
        return 0
    if arguments.schema:
        print(_json_schema(Registry(arguments.plugin)))
        return 0
    name, overrides = arguments.recipe, arguments.overrides
    if arguments.resume is not None and name is not None and "=" in name:  # a run that is resumed takes no recipe
        name, overrides = None, [name, *overrides]
    if arguments.check:
        from prior3d.recipe import load_recipe

        print(f"{load_recipe(_given(name), overrides, arguments.plugin).source.name} is fine")
        return 0
    if arguments.resume is None:
        _given(name)
    from prior3d import api

    run = api.train(name, overrides, out=arguments.out, plugins=arguments.plugin, resume=arguments.resume)
    return {None: 0, "SIGTERM": _TERMINATED}.get(run.stopped_by, _INTERRUPTED)


def _prepare(arguments: argparse.Namespace) -> int:
    name = _given(arguments.recipe)
    from prior3d import api

    api.prepare(name, arguments.overrides, plugins=arguments.plugin)
    return 0


def _given(name: str | None) -> str:
    if name is None:
        raise UserError(_WHICH)
    return name


def _listing(registry: Registry) -> str:
    """Return a table of all plugins by kind, with their origins; what cannot work is marked."""
    lines = []
    for kind in KINDS:
        plugins, problems = registry.list(kind), registry.problems(kind)
        width = max((len(plugin.name) for plugin in plugins), default=0)
        lines.append(f"{kind}:" if plugins else f"{kind}: none")
        for plugin in plugins:
            mark = f"  ! {problems[plugin]}" if plugin in problems else ""
            lines.append(f"  {plugin.name:<{width}}  {plugin.origin}{mark}")
    return "\n".join([*lines, *(f"! {problem}" for problem in registry.unreadable)])


def _json_schema(registry: Registry) -> str:
    import json

    from prior3d.recipe.json_schema import recipe_json_schema

    return json.dumps(recipe_json_schema(registry), indent=2)
