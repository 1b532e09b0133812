"""Every keyword that a lesson passes to a library exists in the installed version.

The calls are found in the notebooks' own syntax trees, not in a list that someone keeps, so a name
that a library drops fails here and says where it stands.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat
import pytest
import torch
from transformers import BitsAndBytesConfig

from course_utils.paths import COURSE_ROOT
from preflight.memory_plan import predict

NOTEBOOKS = [
    path
    for folder in ("notebooks", "notebooks/deeper")
    for path in sorted((COURSE_ROOT / folder).glob("[0-9]*.ipynb"))
]
LIBRARIES = (
    "transformers", "trl", "peft", "datasets", "torch", "bitsandbytes", "safetensors", "accelerate",
    "tensorboard", "pandas", "course_utils", "preflight",
)  # fmt: skip

# Callables that take any keyword, so that no signature tells a right one from a wrong one. One that
# is in none of these tables fails the test: look at it, and say here where its keywords go.
FORWARDS = {
    "fit_gpus": predict,
    "plan_fits": predict,
    "create_loraplus_optimizer": torch.optim.AdamW,
    "checked_arguments": BitsAndBytesConfig,
}
OPEN = {
    "from_pretrained": "the configuration and the loader refuse what is wrong",
    "from_config": "the model's own class refuses what is wrong",
    "check": "the check of the exercise, which test_exercises.py runs",
}
# These swallow what they do not know: only the parameters that they name are right.
STRICT = {"BitsAndBytesConfig"}
# No longer right where anything is accepted, though some still work.
DROPPED = {"load_in_4bit", "load_in_8bit", "torch_dtype", "use_auth_token", "trust_remote_code"}
# Mistakes that a lesson makes to show what comes of them.
DELIBERATE = {
    "03_quantization": {
        ("BitsAndBytesConfig", "bnb_4bit_quanttype"),
        ("quantization.checked_arguments", "bnb_4bit_quanttype"),
        ("AutoModelForCausalLM.from_pretrained", "load_in_4bit"),
    },
    "07_trainers": {
        ("SFTTrainer", "dataset_text_field"),
        ("SFTTrainer", "max_seq_length"),
        ("SFTTrainer", "packing"),
        ("SFTTrainer", "tokenizer"),
    },
}


def code_of(path: Path) -> list[str]:
    """Return a notebook's Python: one text for its cells, and one for each script it writes."""
    cells = [c.source for c in nbformat.read(path, as_version=4).cells if c.cell_type == "code"]
    scripts = [c.partition("\n")[2] for c in cells if c.startswith("%%writefile")]
    plain = [c for c in cells if not c.startswith("%%writefile")]
    magic = re.compile(r"^(\s*)[%!].*$", flags=re.M)
    return [magic.sub(r"\1pass", "\n".join(plain)), *scripts]


class Calls:
    """The calls of one text whose callable is known, and what is wrong with them."""

    def __init__(self, source: str) -> None:
        self.tree = ast.parse(source)
        nodes = list(ast.walk(self.tree))
        self.functions = {n.name: n for n in nodes if isinstance(n, ast.FunctionDef)}
        stored = {n.id for n in nodes if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
        self.names = {k: v for k, v in self._imports(nodes) if k not in stored | {*self.functions}}
        # By call, the parameters with a class as default: `def prepare(kind=SFTTrainer)`.
        self.defaults = {
            call: dict(self._defaults(function.args))
            for function in self.functions.values()
            for call in ast.walk(function)
            if isinstance(call, ast.Call)
        }
        self.dicts: dict[str, list[ast.expr]] = {}
        for node in nodes:
            if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
                self.dicts.setdefault(node.targets[0].id, []).append(node.value)
        self.checked: list[tuple[str, str]] = []
        self.faults: dict[tuple[str, str], str] = {}
        for node in nodes:
            if isinstance(node, ast.Call):
                self._check(node)

    @staticmethod
    def _imports(nodes: list[ast.AST]) -> Iterator[tuple[str, Any]]:
        """Yield the names that are imported from the libraries, with what they stand for."""
        for node in nodes:
            if isinstance(node, ast.Import):
                for alias in node.names:
                    if alias.name.split(".")[0] in LIBRARIES:
                        module = importlib.import_module(alias.name)
                        root = importlib.import_module(alias.name.split(".")[0])
                        yield alias.asname or root.__name__, module if alias.asname else root
            elif isinstance(node, ast.ImportFrom) and node.module.split(".")[0] in LIBRARIES:
                module = importlib.import_module(node.module)
                for alias in node.names:
                    if not hasattr(module, alias.name):
                        importlib.import_module(f"{node.module}.{alias.name}")
                    yield alias.asname or alias.name, getattr(module, alias.name)

    @staticmethod
    def _defaults(arguments: ast.arguments) -> Iterator[tuple[str, ast.Name]]:
        """Yield the parameters whose default is a name."""
        given = arguments.args[len(arguments.args) - len(arguments.defaults) :]
        for argument, default in zip(given, arguments.defaults, strict=True):
            if isinstance(default, ast.Name):
                yield argument.arg, default

    def _target(self, call: ast.Call) -> Any:
        """Return what is called, or None."""
        function = call.func
        if isinstance(function, ast.Name):
            function = self.defaults.get(call, {}).get(function.id, function)
        return self._resolve(function)

    def _resolve(self, node: ast.expr) -> Any:
        """Return what an expression such as `torch.optim.AdamW` stands for, or None."""
        if isinstance(node, ast.Name):
            return self.functions.get(node.id) or self.names.get(node.id)
        if isinstance(node, ast.Attribute):
            owner = self._resolve(node.value)
            if owner is not None and not isinstance(owner, ast.FunctionDef):
                return getattr(owner, node.attr)  # an error here is a name that is gone
        return None

    def _keys(self, node: ast.expr, seen: frozenset[str] = frozenset()) -> Iterator[str]:
        """Yield the keys, as far as they can be read, of what is passed with two stars."""
        if isinstance(node, ast.Dict):
            for key, value in zip(node.keys, node.values, strict=True):
                if key is None:
                    yield from self._keys(value, seen)
                elif isinstance(key, ast.Constant):
                    yield key.value
        elif isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr):
            yield from self._keys(node.left, seen)
            yield from self._keys(node.right, seen)
        elif isinstance(node, ast.Name) and node.id not in seen:
            for value in self.dicts.get(node.id, []):
                yield from self._keys(value, seen | {node.id})

    def _check(self, call: ast.Call) -> None:
        target = self._target(call)
        if target is None or not (callable(target) or isinstance(target, ast.FunctionDef)):
            return
        name = ast.unparse(call.func)
        for keyword in call.keywords:
            for key in [keyword.arg] if keyword.arg else self._keys(keyword.value):
                if isinstance(target, ast.FunctionDef) and keyword.arg is None:
                    continue  # a table of settings, whose rows are tried one by one
                self.checked.append((name, key))
                problem = self._problem(target, key)
                if problem:
                    self.faults[name, key] = f"line {call.lineno}: {problem}"

    def _problem(self, target: Any, key: str) -> str:
        """Return what is wrong with a keyword, or nothing."""
        if isinstance(target, ast.FunctionDef):
            return self._problem_of_local(target, key)
        try:
            parameters = inspect.signature(target).parameters
        except ValueError:  # written in C, without a signature
            return ""
        name = target.__name__
        named = {
            k for k, p in parameters.items() if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)
        }
        if key in named and not (name in OPEN and key in DROPPED):
            return ""
        takes_any = any(p.kind == p.VAR_KEYWORD for p in parameters.values())
        if name in FORWARDS:
            return self._problem(FORWARDS[name], key)
        if not takes_any or name in STRICT:
            return f"{name} has no such parameter"
        if key in DROPPED:
            return f"{name} should not be given this any more"
        if isinstance(target, type) and self._is_field(target, key):
            return ""
        return "" if name in OPEN else f"{name} takes any keyword: is it right to?"

    @staticmethod
    def _is_field(kind: type, key: str) -> bool:
        """Return whether a class says by an annotation or an attribute that it knows a name."""
        return hasattr(kind, key) or any(
            key in getattr(base, "__annotations__", {}) or key in getattr(base, "attribute_map", {})
            for base in kind.__mro__
        )

    def _problem_of_local(self, function: ast.FunctionDef, key: str) -> str:
        """Hold a keyword of a lesson's own function against the library that it is passed on to."""
        arguments = function.args
        own = {a.arg for a in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)}
        if key in own:
            return ""
        if arguments.kwarg is None:
            return f"{function.name} has no such parameter"
        problems = []
        for call in (n for n in ast.walk(function) if isinstance(n, ast.Call)):
            target = self._target(call)
            stars = [k.value for k in call.keywords if k.arg is None]
            inside = {n.id for s in stars for n in ast.walk(s) if isinstance(n, ast.Name)}
            if target is not None and target is not function and arguments.kwarg.arg in inside:
                problems.append(self._problem(target, key))
        return "" if "" in problems or not problems else problems[0]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_every_keyword_exists(path: Path) -> None:
    """Libraries drop arguments at every release; a lesson that passes one stops there."""
    calls = [Calls(source) for source in code_of(path)]
    faults = {call: problem for one in calls for call, problem in one.faults.items()}
    deliberate = DELIBERATE.get(path.stem, set())
    assert not {call: problem for call, problem in faults.items() if call not in deliberate}
    assert deliberate <= {*faults}, "this mistake is made no more: take it off the list"
    assert len([key for one in calls for key in one.checked]) > 5, "hardly any call was found"


@pytest.mark.parametrize(
    "source",
    [
        "from transformers import TrainingArguments\nTrainingArguments('x', warmup_ratio=0.03)",
        "from transformers import TrainingArguments as T\nT('x', **{'group_by_length': True})",
        "import transformers\ntransformers.TrainingArguments('x', evaluation_strategy='no')",
        "from trl import SFTTrainer\nSFTTrainer('m', tokenizer=None)",
        "from trl import SFTConfig\nrest = {'max_seq_length': 40}\nSFTConfig('x', **rest)",
        "from trl import SFTConfig\na = {'packing': True}\nb = a | {'packed': 1}\nSFTConfig(**b)",
        "from peft import LoraConfig\nLoraConfig(r=8, alpha=16)",
        "import torch\ntorch.optim.AdamW([], learning_rate=1)",
        "import torch.nn.functional as F\nF.cross_entropy(1, 2, ignore=-100)",
        "from transformers import BitsAndBytesConfig\nBitsAndBytesConfig(bnb_4bit_quanttype='nf4')",
        "from transformers import AutoModel\nAutoModel.from_pretrained('x', load_in_4bit=True)",
        "from transformers import LlamaConfig\nLlamaConfig(hidden_sizes=8)",
        "from trl import SFTTrainer\ndef make(kind=SFTTrainer):\n    return kind(tokenizer=1)",
        "from datasets import Dataset\nDataset.from_dict({}, fields=None)",
        "from preflight import memory_plan\nmemory_plan.fit_gpus('m', lenght=3)",
        "from course_utils import plots\nplots.bars({}, 'a', 'b', format='x')",
        "from transformers import TrainingArguments\n"
        "def make(**more):\n    return TrainingArguments('x', **{'seed': 0, **more})\n"
        "def run(rows, **more):\n    return make(**more)\n"
        "run(3, no_cuda=True)",
    ],
)
def test_a_wrong_keyword_is_caught(source: str) -> None:
    """A gate that lets anything through is none."""
    assert len(Calls(source).faults) == 1


@pytest.mark.parametrize(
    "source",
    [
        "from transformers import TrainingArguments\nTrainingArguments('x', warmup_steps=0.03)",
        "from transformers import BitsAndBytesConfig\nBitsAndBytesConfig(load_in_4bit=True)",
        "from transformers import LlamaConfig\nLlamaConfig(hidden_size=8)",
        "import torch.nn.functional as F\nF.cross_entropy(1, 2, ignore_index=-100)",
        "from transformers import TrainingArguments\n"
        "def make(rows, **more):\n    return TrainingArguments('x', **more)\n"
        "make(rows=3, use_cpu=True)",
    ],
)
def test_a_right_keyword_passes(source: str) -> None:
    """And one that stops at everything is switched off."""
    calls = Calls(source)
    assert calls.checked and not calls.faults


def test_a_name_that_is_gone_is_caught() -> None:
    """Attributes and imports vanish too."""
    with pytest.raises(AttributeError, match="AdaFactor"):
        Calls("import torch\ntorch.optim.AdaFactor(lr=1)")
    with pytest.raises(ImportError):
        Calls("from trl import setup_chat_format")


def literal_seeds(source: str) -> list[str]:
    """Return the calls and dictionaries that set a seed by a number of their own.

    The text's own functions may take one: there the seed is what is compared.
    """
    tree = ast.parse(source)
    own = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
    found = []
    for node in ast.walk(tree):
        values: list[ast.expr] = []
        if isinstance(node, ast.Call):
            name = ast.unparse(node.func).rpartition(".")[2]
            if name not in own:
                values = [keyword.value for keyword in node.keywords if keyword.arg == "seed"]
                values += node.args if name in ("set_seed", "manual_seed", "default_rng") else []
        elif isinstance(node, ast.Dict):
            pairs = zip(node.keys, node.values, strict=True)
            values = [v for k, v in pairs if isinstance(k, ast.Constant) and k.value == "seed"]
        if any(isinstance(value, ast.Constant) for value in values):
            found.append(ast.unparse(node))
    return found


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_every_seed_comes_from_the_one(path: Path) -> None:
    """With COURSE_SEED=1 everything random has to change, or what was luck stays hidden."""
    assert [seed for source in code_of(path) for seed in literal_seeds(source)] == []


@pytest.mark.parametrize(
    "source", ["set_seed(0)", "SFTConfig('x', seed=0)", "np.random.default_rng(1)", "{'seed': 0}"]
)
def test_a_seed_of_its_own_is_caught(source: str) -> None:
    assert literal_seeds(source) == [source]


def test_nothing_is_open_that_could_be_checked() -> None:
    """An exception that no lesson needs hides the next fault."""
    used = {
        name.split(".")[-1] for p in NOTEBOOKS for s in code_of(p) for name, _ in Calls(s).checked
    }
    assert {*OPEN, *FORWARDS, *STRICT} <= used
