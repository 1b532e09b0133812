"""A cell that hides a failure fails under `make test`, and a sound one passes."""

from __future__ import annotations

from xml.etree import ElementTree

import nbformat
import pytest
from helpers import python
from nbformat.v4 import new_code_cell, new_notebook

from course_utils.paths import COURSE_ROOT

TASK = "async def fails():\n    await asyncio.sleep(0)\n    raise ValueError('hidden')\n"
LATER = "async def fails():\n    await asyncio.sleep(0.5)\n    raise ValueError('hidden')\n"
SUITE = """import unittest
class Test(unittest.TestCase):
    def test_sums(self):
        self.assertEqual(1 + 1, {})
suite = unittest.defaultTestLoader.loadTestsFromTestCase(Test)
"""
RUN = "unittest.TextTestRunner().run(suite)"
DOCTEST = "import doctest\ndef two():\n    '''\n    >>> two()\n    {}\n    '''\n    return 2\n"
# The source of a cell, and what the report of its failure says.
AT_ONCE = {
    "an unknown cell magic": ("%%unknown\n1 + 1", "`%%unknown` not found"),
    "an unknown magic": ("%unknown", "`%unknown` not found"),
    "a wrong use of a magic": ("%timeit -z 1", "option -z not recognized"),
    "a shell line": ("!exit 3", "returned non-zero exit status 3"),
    "the first of two shell lines": ("!exit 3\n!exit 0", "returned non-zero exit status 3"),
    "a shell line that is assigned": ("files = !exit 3", "returned non-zero exit status 3"),
    "a thread": (
        "import threading\none = threading.Thread(target=lambda: 1 / 0)\none.start()\none.join()",
        "ZeroDivisionError",
    ),
    "a coroutine": (f"import asyncio\n{TASK}fails();\nNone", "never awaited: <coroutine"),
    "a coroutine without a warning": (
        f"import asyncio, warnings\nwarnings.simplefilter('ignore')\n{TASK}fails();\nNone",
        "never awaited: <coroutine",
    ),
    "a unit test": (SUITE.format(3) + RUN, "tests failed: <unittest"),
    "unittest.main": (SUITE.format(3) + "unittest.main(argv=[''], exit=False);", "tests failed"),
    "a doctest": (DOCTEST.format(3) + "doctest.testmod()", "tests failed: TestResults"),
    "a deprecated call": (
        "import warnings\nwarnings.resetwarnings()\nwarnings.warn('x', FutureWarning)",
        "is deprecated",
    ),
    "another error than meant": ("# raises ValueError\n1 / 0", "raised ['ZeroDivisionError']"),
    "no error": ("# raises ValueError\n1 / 1", "raised nothing"),
    "an error without its name": ("1 / 0  # raises", "means no error, so write one"),
}
# Seen once the last cell is done.
IN_THE_END = {
    "a task": (f"import asyncio\n{TASK}asyncio.create_task(fails());", "ValueError('hidden')"),
    "a thread that fails later": (
        "import threading\nthreading.Timer(0.5, lambda: 1 / 0).start()",
        "ZeroDivisionError",
    ),
    "a task that is kept": (f"import asyncio\n{TASK}one = asyncio.create_task(fails())", "hidden"),
    "a task that fails later": (
        f"import asyncio\n{LATER}one = asyncio.create_task(fails())",
        "hidden",
    ),
    "a coroutine that is kept": (f"import asyncio\n{TASK}fails()", "never awaited: <coroutine"),
}
SOUND = [
    "%%time\n1 + 1",
    "%matplotlib inline\n%cd -q .",
    "%%writefile written.py\nx = 1",
    "word = 'there'\n!echo {word} $word\nwords = !echo {word}\nassert words == [word]",
    "!exit 3\nassert _exit_code == 3",
    "from subprocess import CalledProcessError\ntry:\n    !exit 3\nexcept CalledProcessError:\n"
    "    pass",
    "try:\n    get_ipython().run_line_magic('unknown', '')\nexcept Exception as error:\n"
    "    print(error)",
    "# raises ZeroDivisionError\n1 / 0",
    "# raises UsageError\n%unknown",
    f"import asyncio\n{TASK}"
    "print(await asyncio.gather(fails(), return_exceptions=True))\n"
    "one = asyncio.create_task(fails())\nlater = asyncio.sleep(0, 7)",
    "try:\n    await one\nexcept ValueError:\n    pass\nassert await later == 7",
    "import threading\nserver = threading.Thread(target=threading.Event().wait, daemon=True)\n"
    "server.start()\nthreading.Thread(target=exit).start()",
    SUITE.format(2) + RUN,
    SUITE.format(3) + f"assert not {RUN}.wasSuccessful()",
    DOCTEST.format(2) + "assert doctest.testmod().attempted",
]


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What `make test` says of each cell, "" where it passes.

    Those whose failure shows in the end have a notebook each.
    """
    folder = tmp_path_factory.mktemp("hidden")
    for name, cells in {
        "0": [source for source, _ in AT_ONCE.values()],
        **{str(n): [source] for n, (source, _) in enumerate(IN_THE_END.values(), 1)},
        "sound": SOUND,
    }.items():
        cells = [
            new_code_cell(one, metadata={"tags": ["raises-exception"] * ("# raises" in one)})
            for one in cells
        ]
        nbformat.write(new_notebook(cells=cells), folder / f"{name}.ipynb")
    # As `make test`, which names the tests beside the notebooks: so their conftest is read.
    python(
        "-m", "pytest", folder, COURSE_ROOT / "tests" / "helpers.py", "-c", "pyproject.toml",
        "--nbval-lax", "--nbval-current-env", f"--junit-xml={folder}/report.xml",
    )  # fmt: skip
    cases = ElementTree.parse(folder / "report.xml").iter("testcase")
    names = [*AT_ONCE, *IN_THE_END, *SOUND]
    return {n: "".join(case.itertext()) for n, case in zip(names, cases, strict=True)}


@pytest.mark.parametrize("name", [*AT_ONCE, *IN_THE_END])
def test_a_cell_that_hides_a_failure_fails(name: str, reports: dict[str, str]) -> None:
    assert (AT_ONCE | IN_THE_END)[name][1] in reports[name]


def test_sound_cells_pass(reports: dict[str, str]) -> None:
    assert [reports[source] for source in SOUND if reports[source]] == []
