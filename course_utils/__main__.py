"""The course's commands: ``python -m course_utils doctor`` and ``python -m course_utils check``."""

from __future__ import annotations

import argparse
import json
import sys

INSTALL = "pip install -r requirements.txt -c constraints.txt"


def doctor(options: argparse.Namespace) -> int:
    """Print what this machine can run; return 1 if something has to be mended first."""
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


def check(options: argparse.Namespace) -> int:
    """Print what is wrong with a dataset; return 1 if it should not be trained on as it is."""
    from course_utils import data

    tokenizer = None
    if options.tokenizer:
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(options.tokenizer)
    report = data.check(
        options.dataset,
        tokenizer=tokenizer,
        max_length=options.max_length,
        eval_dataset=options.eval,
    )
    print(json.dumps(report.to_dict(), indent=2) if options.json else report.to_text())
    return 0 if report.ok else 1


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(prog="python -m course_utils", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="command")

    command = commands.add_parser("doctor", help="what this machine can run, and what is broken")
    command.add_argument("--json", action="store_true", help="print JSON")
    command.set_defaults(run=doctor)

    command = commands.add_parser("check", help="examine a dataset before training on it")
    command.add_argument(
        "dataset", help="a JSONL, JSON, CSV or Parquet file, a folder, or a hub name"
    )
    command.add_argument("--tokenizer", help="a model's folder or hub name, to check lengths too")
    command.add_argument("--max-length", type=int, default=1024, help="in tokens (default: 1024)")
    command.add_argument("--eval", help="a second dataset that must not overlap with the first")
    command.add_argument("--json", action="store_true", help="print JSON")
    command.set_defaults(run=check)
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Run a command; return its exit code: 0 fine, 1 found something, 2 could not run."""
    options = build_parser().parse_args(arguments)
    try:
        return options.run(options)
    except ImportError as error:
        print(f"{error}. The course's libraries are needed. Run: {INSTALL}", file=sys.stderr)
        return 2
    except (ValueError, OSError, RuntimeError) as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
