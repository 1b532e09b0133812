"""Will this folder be the model that was trained? An adapter's folder, before it is shipped.

>>> check_adapter("runs/adapter")  # what it is, what goes wrong with it where, who can serve it
>>> check_adapter("runs/adapter", "llama-3.1-8b")  # and whether it fits that base
>>> as_plain_lora("runs/adapter", "runs/plain")  # the same, scaled alike by every engine

It reads the config and the header of the weights, in safetensors; it opens no pickle, loads no
weight and changes nothing (`as_plain_lora` writes another folder). What a loaded model answers,
only a comparison says: lesson 09.

Used by lessons: 09, 12.
"""

from __future__ import annotations

from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

from course_utils.display import html_table
from preflight.adapter_check.engines import Served, engine_rows, served_by
from preflight.adapter_check.folder import CONFIG, read_folder
from preflight.adapter_check.plain import as_plain_lora
from preflight.adapter_check.uses import use_findings
from preflight.findings import FindingsReport, findings_html

if TYPE_CHECKING:
    from transformers import PretrainedConfig

__all__ = ["AdapterReport", "as_plain_lora", "check_adapter"]


@dataclass(frozen=True)
class AdapterReport(FindingsReport):
    """What an adapter's folder is, what goes wrong with it where, and what engines make of it."""

    served: tuple[Served, ...]

    def __str__(self) -> str:
        return "\n\n".join([super().__str__(), "\n".join(map(str, self.served))])

    def _repr_html_(self) -> str:
        lines = escape(self.about).replace("\n", "<br>")
        table = html_table(engine_rows(self.served), ["served by", "", "why", "source"])
        return f"<p>{lines}</p>{findings_html(self.findings)}{table}"


def check_adapter(
    folder: str | Path, base: str | Path | PretrainedConfig | None = None
) -> AdapterReport:
    """Return what an adapter's folder is, what goes wrong with it where, and who can serve it.

    With `base` (what `configs.load_config` takes), names and shapes are held against it, too.
    Without, the base is what the config names, if that is a model's folder of this machine.

    Raises:
        FileNotFoundError: if there is no folder, no adapter in it, or none in safetensors.
        ValueError: if it holds a model, a file cannot be read, or peft does not know the type.
        RuntimeError: if the hub does not give the base.
    """
    adapter = read_folder(folder)
    # Peft, which is slow to load, is asked of the others; use_findings speaks of BONE.
    if adapter.kind not in ("LORA", "BONE"):
        from preflight.adapters import config_class

        config_class(adapter.kind, adapter.path / CONFIG)
    about, findings = str(adapter), [*use_findings(adapter)]
    # A folder of the name of a model on the hub can be anything.
    if base is None and adapter.base and Path(adapter.base, "config.json").is_file():
        base = adapter.base
    if base is None:
        about += "\nnot held against its base: give one to see whether they fit"
    elif not any(one.severity == "error" for one in findings):
        from preflight.adapter_check.base import fit  # torch and peft: they take seconds to load

        line, misfits = fit(adapter, base)
        about, findings = f"{about}\n{line}", [*misfits, *findings]
    return AdapterReport(about, tuple(findings), served_by(adapter))
