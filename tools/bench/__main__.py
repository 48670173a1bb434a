"""Measure speed and memory; every figure with its yardstick, in one run: `python tools/bench pairs --help`.

Each subcommand is one file next to this one, with a function `main(arguments)`.
"""

import argparse
import importlib
import sys

COMMANDS = {
    "contrastive": "PointInfoNCE of many rows, in each way it can be computed",
    "loader": "a sample with its surface, and fusing it, against a test of every point of the scene",
    "pairs": "mining the pairs of one scene, against the plain definition",
    "sparse": "sparse convolution in every engine that runs here, against spconv, FlexGEMM and the arithmetic alone",
    "splat": "splatting in every engine that runs here, targets of many views, lifting of a scene",
    "step": "a recipe's training step, with and without its priors, against the backbone alone",
}


def main() -> None:
    listed = "\n".join(f"  {name:12} {what}" for name, what in COMMANDS.items())
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        "tools/bench", description=__doc__.splitlines()[0], epilog=listed, formatter_class=form
    )
    parser.add_argument("command", choices=COMMANDS)
    command = parser.parse_args(sys.argv[1:2]).command
    importlib.import_module(command).main(sys.argv[2:])


if __name__ == "__main__":
    main()
