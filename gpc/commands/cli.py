"""The command line: `gpc COMMAND`, as `gpc -h` lists them."""

from __future__ import annotations

import argparse
import os
import shlex
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from rich.text import Text

from gpc.errors import GpcError, InputError, RunError, one_line, suggest
from gpc.inert import Console, guard_process
from gpc.installation import install

if TYPE_CHECKING:
    from omegaconf import DictConfig

LONGEST_ERROR = 4000  # characters
HELP = """\
[bold]gpc[/]: compose pretrained robot policies at test time, with honest statistics.

[bold]Commands[/]
  gpc search    KEY=VALUE ...   find the weights on search seeds, compare winner and parents on report seeds
  gpc evaluate  KEY=VALUE ...   roll out one policy, or a composition under given weights
  gpc compare   KEY=VALUE ...   two policies, or two weightings, on the same seeds until the better one is known
  gpc diagnose  KEY=VALUE ...   before any search: what fits, where the policies disagree, what composition may gain
  gpc policies  \\[SOURCE]        the bundled policies, or what one of them, or a checkpoint, reads and predicts
  gpc report    RUN \\[RUN ...]   write RUN/report.html again; of several, study.html here, with a leaderboard
  gpc replay    RUN --episode K run one recorded episode again and say whether it came out the same
  gpc serve     KEY=VALUE ...   a policy, or a composition, for robot clients of the openpi protocol
  gpc serve-env KEY=VALUE ...   a simulator for engines in other processes, which run with env=remote
  gpc deploy    KEY=VALUE ...   the control loop on a robot: dry run, shadow or live
  gpc doctor    \\[SOURCE ...]    what is installed, what is missing, and whether these policies fit the card's memory

[bold]Examples[/]
  gpc search env=pusht 'policies=\\[pusht-diffusion,pusht-flow]' search=grid search.episodes=20 report.episodes=50 run_dir=runs/demo
  gpc search env=pusht 'policies=\\[pusht-diffusion,pusht-flow]' search=racing search.budget=440 run_dir=runs/race
  gpc evaluate env=pusht 'policies=\\[pusht-diffusion,pusht-flow]' 'weights=\\[0.4,0.6]' episodes=50 run_dir=runs/mix
  gpc compare env=pusht 'policies=\\[pusht-diffusion,pusht-flow]' episodes=200 run_dir=runs/compare
  gpc compare 'policies=\\[pusht-diffusion,pusht-flow]' 'weights=\\[[0.4,0.6],\\[0,1]]'   # two weightings
  gpc evaluate 'policies=\\[pusht-beso]' sampler=ancestral       # twice the evaluations of the default, more success
  gpc serve 'policies=\\[pusht-diffusion,pusht-flow]' 'weights=\\[0.4,0.6]' port=8000
  gpc deploy robot=simulated 'policies=\\[pusht-flow]' fps=10 safety.actions=absolute mode=live seconds=30
  gpc evaluate env=policy 'policies=\\[robomimic:lift.pth]'      # in the simulator that it was trained for

A policy is a bundled name or [italic]loader:path[/]: lerobot:FOLDER, robomimic:FILE.pth, diffusion_policy:FILE.ckpt,
beso:FOLDER and, without its goal, beso_unconditional:FOLDER, and remote:ws://HOST:PORT, what gpc serve serves there.
Your own is [italic]module:function:argument[/], found in the current folder (docs/your-own-policy.md).
Signed weights, as for guidance, need composer=guidance.
The same command resumes an interrupted run.
`gpc COMMAND -h` lists what a command takes, with defaults.
"""


class Terminated(KeyboardInterrupt):
    """SIGTERM ends a command as Ctrl-C does."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Returns:
        The exit code: 0, 1 (failed while running), 2 (bad input), 130 (interrupted) or 143 (terminated).
    """
    args = list(sys.argv[1:] if argv is None else argv)
    guard_process()
    console, errors = Console(), Console(stderr=True)
    try:
        if not args or args[0] in ("-h", "--help"):
            console.print(Text.from_markup(HELP), soft_wrap=True)
            return 0
        if args[0] == "--complete":  # GPC WORD BEFORE, from the shell
            from gpc.commands.completion import completions

            line, end = os.environ.get("COMP_LINE", ""), os.environ.get("COMP_POINT", "")
            choices = completions(line[: int(end)] if end.isdigit() else line, args[2], list(COMMANDS))
            console.print(*choices, sep="\n", soft_wrap=True)
            return 0
        if args[0] == "--version":
            import gpc

            console.print(gpc.__version__)
            return 0
        if args[0] not in COMMANDS:
            raise InputError(f"unknown command {args[0]!r}{suggest(args[0], list(COMMANDS))}")
        with _terminable():
            COMMANDS[args[0]](console, args[1:])
    except GpcError as error:
        errors.print(Text("gpc:", "red"), one_line(error, LONGEST_ERROR), soft_wrap=True)
        return error.exit_code
    except KeyboardInterrupt as error:
        how, code = ("terminated", 143) if isinstance(error, Terminated) else ("interrupted", 130)
        errors.print(Text("gpc:", "yellow"), f"{how}; the same command resumes from here")
        return code
    return 0


@contextmanager
def _terminable() -> Iterator[None]:
    """Raise `Terminated` at SIGTERM, so that rows and the cursor are restored."""

    def terminate(*_: object) -> NoReturn:
        raise Terminated

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before or signal.SIG_DFL)


def _evaluate(console: Console, args: list[str]) -> None:
    if (config := _config(console, "evaluate", args)) is not None:
        from gpc.commands.experiment import evaluate_from

        _print_report(evaluate_from(config, console), console)


def _search(console: Console, args: list[str]) -> None:
    if (config := _config(console, "search", args)) is not None:
        from gpc.commands.experiment import search_from

        _print_report(search_from(config, console), console)


def _compare(console: Console, args: list[str]) -> None:
    if (config := _config(console, "compare", args)) is not None:
        from gpc.commands.comparison import compare_from

        _print_report(compare_from(config, console), console)


def _print_report(folder: Path, console: Console) -> None:
    from gpc.results.report import print_summary

    print_summary(folder, console)
    console.print(f"report: {folder / 'report.html'}", soft_wrap=True)


def _config(console: Console, name: str, args: list[str]) -> DictConfig | None:
    """Return the checked configuration; print the keys and return None for -h."""
    from omegaconf import open_dict

    from gpc.commands.checks import check_config
    from gpc.commands.config import help_text, load_config

    if {"-h", "--help"} & set(args):
        console.print(*help_text(name).splitlines(), sep="\n", soft_wrap=True)
        return None
    config = load_config(name, args)
    check_config(name, config)
    with open_dict(config):
        private = ("token", "run_dir")  # a folder does not say where it was begun
        overrides = [arg for arg in args if not arg.partition("=")[0].endswith(private)]
        config.command = shlex.join(["gpc", name, *overrides])  # for the page of the run
    return config


def _diagnose(console: Console, args: list[str]) -> None:
    if (config := _config(console, "diagnose", args)) is not None:
        from gpc.commands.diagnosis import diagnose_from

        console.print(f"report: {diagnose_from(config, console) / 'report.html'}", soft_wrap=True)


def _policies(console: Console, args: list[str]) -> None:
    args = _named(
        "policies", args, "SOURCE", "a bundled name, or loader:path; by default all that come with gpc are listed"
    )
    from gpc.policy.sources import check_source

    for source in args:
        check_source(source)
    from gpc.commands.policies import print_policies

    print_policies(args, console)


def _report(console: Console, args: list[str]) -> None:
    parser = _Parser("gpc report")
    parser.add_argument("runs", nargs="*", type=Path, help="a run folder; of several, study.html is written here")
    parser.add_argument("--rrd", type=Path, metavar="FILE", help="also write the episodes of one run for rerun.io")
    options = parser.parse_args(args)
    paths = options.runs
    from gpc.results.report import write_study

    if not paths:
        raise InputError("gpc report takes run folders, as in: gpc report runs/demo")
    if options.rrd:
        from gpc.results.rrd import write_rrd

        if len(paths) > 1:
            raise InputError(f"--rrd takes the episodes of one run, not of {len(paths)}")
        write_rrd(paths[0], options.rrd)
        console.print(f"for rerun: {options.rrd}", soft_wrap=True)
    if len(paths) > 1:
        page = Path("study.html")
        others = {path: build for path in paths if (build := _other(path))}
        write_study([path for path in paths if path not in others], page, console, others)
    else:
        page = _page(paths[0], console)
    console.print(f"report: {page}", soft_wrap=True)


def _other(path: Path) -> Callable[[], list[Any]] | None:
    """Return what makes the part of a study about a folder that is no run."""
    from gpc.bridge.page import deployed, deployment_in_study
    from gpc.commands.diagnosis_page import diagnosed, diagnosis_in_study

    if deployed(path):
        return partial(deployment_in_study, path)
    return partial(diagnosis_in_study, path) if diagnosed(path) else None


def _page(path: Path, console: Console) -> Path:
    """Write the page of a run folder of any command; print the table of a run."""
    from gpc.bridge.page import deployed, write_deploy_page
    from gpc.commands.diagnosis_page import diagnosed, write_diagnosis_page
    from gpc.results.report import print_summary, write_report

    if deployed(path):
        return write_deploy_page(path)
    if diagnosed(path):
        return write_diagnosis_page(path)

    page = write_report(path)
    print_summary(path, console)
    return page


def _replay(console: Console, args: list[str]) -> None:
    parser = _Parser("gpc replay", description="Run one recorded episode again and compare the results.")
    parser.add_argument("folder", type=Path, help="the run folder, or STUDY.json of docs/results/evidence")
    parser.add_argument("--run", help="the name of the run, of a study")
    parser.add_argument("--episode", type=int, required=True, help="the line among the rows of the run, from 0")
    parser.add_argument("--policies", nargs="+", default=[], help="where they are now, loader:path, if they have moved")
    parser.add_argument("--trust", action="store_true", help="the folder is your own: load what it names")
    parser.add_argument("--device", help="where the networks compute, as cpu or cuda:1; by default as recorded")
    parser.add_argument("--video", type=Path, help="also write both to this mp4 file")
    options = parser.parse_args(args)
    from gpc.commands.replay import replay

    result = replay(
        options.folder,
        options.episode,
        options.policies,
        console,
        options.video,
        options.trust,
        options.run,
        options.device,
    )
    console.print(*result.lines(), sep="\n", soft_wrap=True)
    if not result.same:
        raise RunError(f"episode {options.episode} of {options.run or options.folder} did not give the same results")


def _serve(console: Console, args: list[str]) -> None:
    _bridge(console, "serve", args)


def _serve_env(console: Console, args: list[str]) -> None:
    _bridge(console, "serve-env", args)


def _deploy(console: Console, args: list[str]) -> None:
    _bridge(console, "deploy", args)


def _bridge(console: Console, name: str, args: list[str]) -> None:
    config = _config(console, name, args)
    if config is None:
        return
    try:
        run = import_module(f"gpc.commands.{name.replace('-', '_')}").run
    except ImportError as error:
        extra = name.partition("-")[0]  # serve-env has serve's packages
        raise InputError(f"gpc {name} needs a package that is missing ({error}): {install(extra)}") from None
    run(config, console)


def _named(command: str, args: list[str], name: str, text: str) -> list[str]:
    """Return the arguments of a command of names alone; -h prints its help."""
    parser = _Parser(f"gpc {command}")
    parser.add_argument("names", nargs="*", metavar=name, help=text)
    names: list[str] = parser.parse_args(args).names
    return names


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """One line, as everywhere."""
        raise InputError(f"{self.prog}: {message}; {self.prog} -h lists the options")


def _doctor(console: Console, args: list[str]) -> None:
    args = _named("doctor", args, "SOURCE", "a policy whose needs of memory are shown; by default none")
    from gpc.commands.doctor import findings_table, needs_table, verdict
    from gpc.policy.sources import check_source

    for source in args:
        check_source(source)
    console.print(findings_table())
    if args:
        from gpc.inference.device import devices_here
        from gpc.inference.modules import size_of
        from gpc.policy.adapt import distinct
        from gpc.policy.load import load_policy

        sizes = {policy.name: size_of(policy) for policy in distinct([load_policy(source) for source in args])}
        console.print(needs_table(sizes))
        console.print(verdict(sizes, devices_here()), soft_wrap=True)


COMMANDS: dict[str, Callable[[Console, list[str]], None]] = {
    "search": _search,
    "evaluate": _evaluate,
    "compare": _compare,
    "policies": _policies,
    "report": _report,
    "replay": _replay,
    "serve": _serve,
    "serve-env": _serve_env,
    "deploy": _deploy,
    "diagnose": _diagnose,
    "doctor": _doctor,
}

if __name__ == "__main__":
    sys.exit(main())
