# SPDX-License-Identifier: Apache-2.0
"""The command `tidegate`: finds its verbs by entry point and runs one; knows none of them itself.

Each package registers its verbs in pyproject.toml under `tidegate.commands`, and only the verb that
runs is imported: a worker that starts does not pay for the controller.
"""

import sys
from importlib.metadata import entry_points, version
from typing import Annotated, Any

import typer
from typer.core import TyperGroup
from typer.exceptions import TyperException

from autoscaler.errors import BadInput, TidegateError

GROUP = "tidegate.commands"


class Verbs(TyperGroup):
    """The verbs that the installed packages bring."""

    def list_commands(self, ctx: Any) -> list[str]:
        return sorted(point.name for point in entry_points(group=GROUP))

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        for point in entry_points(group=GROUP, name=cmd_name):
            command = typer.main.get_command(point.load())
            command.name = cmd_name
            return command
        return None


app = typer.Typer(
    cls=Verbs,
    help="Scale model servers from zero to many and back, and lose no request on the way.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"tidegate {version('tidegate')}")
        raise typer.Exit


@app.callback()
def _root(
    _version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version."),
    ] = False,
) -> None:
    pass


def main() -> None:
    """Run one verb. Exit 0: done; 1: it failed; 2: bad input, said in one line a problem."""
    sys.exit(_run(sys.argv[1:]))


def _run(arguments: list[str]) -> int:
    try:
        result: Any = app(arguments, prog_name="tidegate", standalone_mode=False)
    except TyperException as wrong:
        context = getattr(wrong, "ctx", None)
        verb = context.command_path if context else "tidegate"
        words = wrong.format_message()
        if (
            context and words == context.get_help()
        ):  # a verb is missing: typer answers with its help
            typer.echo(words, err=True)
        else:
            _complain(f"{words} (see: {verb} --help)")
        return wrong.exit_code
    except BadInput as wrong:
        for problem in wrong.problems:
            _complain(problem)
        return 2
    except TidegateError as failed:
        _complain(str(failed))
        return 1
    except (typer.Abort, KeyboardInterrupt):
        return 130
    return result if isinstance(result, int) else 0


def _complain(line: str) -> None:
    typer.echo(f"tidegate: {line}", err=True)


if __name__ == "__main__":
    main()
