"""The commands put together, and what a person is told when one does not end well."""

import os
import sys
from collections.abc import Sequence

from cyclopts import App, CycloptsError

from unweave._version import __version__
from unweave.cli.bench_suite import bench_suite
from unweave.cli.check import check
from unweave.cli.compliance import compliance
from unweave.cli.convert import convert
from unweave.cli.decompile import decompile
from unweave.cli.diff import diff
from unweave.cli.fit_check import fit_check
from unweave.cli.generate import generate
from unweave.cli.pareto import pareto
from unweave.cli.printable import printable
from unweave.cli.recipes import recipes
from unweave.cli.report import report
from unweave.cli.subjects import subjects
from unweave.cli.suggest import suggest
from unweave.cli.sweep import sweep
from unweave.cli.texts import texts
from unweave.cli.train import train
from unweave.cli.validate import validate
from unweave.errors import UserError

FAILED = 2
"""Exit code of a request that cannot be carried out."""
INTERRUPTED = 130
"""Exit code after Ctrl-C, as shells expect it."""

app = App(
    name="unweave",
    help="Take a trained network apart into parts a person can read, and check what is said.",
    version=__version__,
    help_format="plaintext",
    version_format="plaintext",
    suppress_keyboard_interrupt=False,
    exit_on_error=False,
    result_action="return_value",
)
COMMANDS = (
    subjects, texts, decompile, report, generate, check, diff, compliance, convert, fit_check,
    train, recipes, suggest, sweep, validate, pareto, bench_suite,
)  # fmt: skip
for command in COMMANDS:
    app.command(command)


def main(arguments: Sequence[str] | None = None) -> None:
    """Carry out one command line; always ends by SystemExit.

    0: done. 2: a request that cannot be carried out, said in one sentence. 130: interrupted.
    Anything else that fails is a defect and shows its traceback.
    """
    try:
        app(list(arguments) if arguments is not None else sys.argv[1:])
        sys.stdout.flush()
    except CycloptsError:  # has been shown, with the nearest thing that exists
        code = FAILED
    except UserError as error:
        print(f"unweave: {printable(str(error))}", file=sys.stderr)
        code = FAILED
    except BrokenPipeError:  # the reader of our output has left, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    except KeyboardInterrupt:
        print("unweave: stopped; the same command goes on from here", file=sys.stderr)
        code = INTERRUPTED
    else:
        code = 0
    sys.exit(code)
