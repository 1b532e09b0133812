"""The course's commands, ``python -m course_utils COMMAND``: doctor, check, memory and others.

Used by lessons: none.
"""

from __future__ import annotations

import argparse
import json
import os
import sys

from preflight.commands import add_commands

INSTALL = "pip install -r requirements.txt -c constraints.txt"


def doctor(options: argparse.Namespace) -> int:
    """Print what this machine can run; return 1 if something has to be fixed first."""
    try:
        from course_utils import doctor
    except ImportError as error:  # `packaging`, which reads versions, comes with the libraries
        check = {"name": error.name, "status": "FAIL", "detail": "not installed", "fix": INSTALL}
        line = "{status}  {name}: {detail}\n      fix: {fix}".format(**check)
        print(json.dumps({"ok": False, "checks": [check]}, indent=2) if options.json else line)
        return 1

    diagnosis = doctor.examine()
    print(diagnosis.to_json() if options.json else diagnosis)
    return 0 if diagnosis.ok else 1


def compare(options: argparse.Namespace) -> int:
    """Run a comparison and print its table; return 1 if a run of it failed."""
    from pathlib import Path

    from course_utils import compare

    if options.list:
        described = [method.to_dict() for method in compare.METHODS.values()]
        names = ", ".join(compare.METHODS)
        print(json.dumps(described, indent=2) if options.json else f"methods: {names}")
        return 0
    experiments = compare.chosen(
        options.file,
        options.methods and [name.strip() for name in options.methods.split(",")],
        options.seeds,
        train_rows=options.train_rows,
        test_rows=options.test_rows,
        model=options.model,
        data=options.data,
    )
    notes, sources = [], compare.Sources()
    if options.file is None:  # those of a file are as their writer wants them
        experiments, notes = compare.fitted(experiments)
    if options.minutes is not None:
        runs = 3 if options.sweep else 1
        experiments, line = compare.within(experiments, options.minutes, sources, runs)
        notes.append(line)
    print(*notes, sep="\n", end="\n" if notes else "", file=sys.stderr, flush=True)
    if options.write:
        compare.write(options.write, experiments)
        print(f"{len(experiments)} experiments are in '{options.write}'.")
        return 0
    output = Path(options.output)
    settings = {"progress": not options.json, "retry_failed": options.retry, "sources": sources}
    if options.sweep:
        experiments = compare.sweep(experiments, output, **settings)
    table = compare.run(experiments, output, **settings)
    if options.json:
        print(table.reset_index().to_json(orient="records", indent=2, force_ascii=False))
    else:
        failures = compare.reasons(output, set(table.index))
        print(compare.shown(table), *failures, f"The results are in '{output}'.", sep="\n\n")
    return 1 if table["failed"].any() else 0


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m course_utils", description=__doc__.partition("\n")[0]
    )
    commands = parser.add_subparsers(required=True, metavar="command")

    command = commands.add_parser("doctor", help="what this machine can run, and what is broken")
    command.add_argument("--json", action="store_true", help="print JSON")
    command.set_defaults(run=doctor)

    add_commands(commands)

    command = commands.add_parser("compare", help="fine-tune by several methods, side by side")
    command.add_argument(
        "file", nargs="?", help="a YAML or JSON file of experiments (default: the standard ones)"
    )
    command.add_argument(
        "--methods", metavar="NAMES", help="some of the standard methods, joined by commas"
    )
    command.add_argument(
        "--model", help="a folder, smollm2, or a name on the hub (default: COURSE_MODEL)"
    )
    command.add_argument(
        "--data", help="a JSONL file of yours, or a folder of splits (default: tickets)"
    )
    command.add_argument("--seeds", type=int, help="runs of each experiment (default: 3)")
    command.add_argument(
        "--minutes", type=float, help="take so many rows that all runs end in about that time"
    )
    command.add_argument(
        "--sweep", action="store_true", help="first find the learning rate of each by a sweep"
    )
    command.add_argument("--train-rows", type=int, help="train on so many rows (default: all)")
    command.add_argument("--test-rows", type=int, help="test on so many rows (default: all)")
    command.add_argument(
        "--output", default="build/comparison", help="folder of the results, one file a run"
    )
    command.add_argument("--retry", action="store_true", help="run again what failed before")
    command.add_argument("--write", metavar="FILE", help="write the experiments; run nothing")
    command.add_argument("--list", action="store_true", help="the standard methods")
    command.add_argument("--json", action="store_true", help="print JSON")
    command.set_defaults(run=compare)
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Run a command; return its exit code: 0 fine, 1 found something, 2 could not run."""
    return run(build_parser(), arguments)


def run(parser: argparse.ArgumentParser, arguments: list[str] | None) -> int:
    """Run the command that a parser finds in the arguments; return its exit code, as `main`."""
    options = parser.parse_args(arguments)
    try:
        status = options.run(options)
        sys.stdout.flush()
        return status
    except BrokenPipeError:  # as in `doctor | head`: the reader has enough, and nothing is wrong
        # Python flushes once more when it ends; that goes nowhere.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except ImportError as error:
        print(f"{error}. The course's libraries are needed. Run: {INSTALL}", file=sys.stderr)
        return 2
    except (ValueError, OSError, RuntimeError) as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 2


def utf8_pipes() -> None:
    """Write UTF-8 where the output is not a terminal."""
    for stream in (sys.stdout, sys.stderr):
        if not stream.isatty():  # a pipe on Windows takes a code page, which lacks many letters
            stream.reconfigure(encoding="utf-8")


if __name__ == "__main__":
    utf8_pipes()
    sys.exit(main())
