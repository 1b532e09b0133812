"""Parts of a model that its checkpoint lacks, such as a new head: are they trained, and saved?

Used by lessons: 04, 05a, 06.
"""

from __future__ import annotations

import contextlib
import copy
import io
import warnings
from collections.abc import Iterator

import torch
import transformers
from peft import PeftModel
from peft.utils import get_peft_model_state_dict
from transformers import PreTrainedModel

from preflight.findings import Finding, finding


def new_part_findings(model: PeftModel) -> Iterator[Finding]:
    """Yield what is new in an adapter's model, starts at random, and is not saved with it.

    Such a part is found by what transformers misses in the checkpoint, so by no name.
    """
    base = model.get_base_model()
    if not isinstance(base, PreTrainedModel) or model.active_peft_config.is_prompt_learning:
        return
    missing, there = _missing(base)
    if 2 * len(missing) > len(there):  # loaded by a key_mapping, which is not known here
        return
    saved = get_peft_model_state_dict(
        model, adapter_name=model.active_adapter, save_embedding_layers=False
    )
    lost = [name for name in missing if f"base_model.model.{name}" not in saved]
    if lost:
        trained = {name for name, one in base.named_parameters() if one.requires_grad}
        parts = sorted({_whole_part(name, missing, there) for name in lost})
        yield finding(
            "new_part",
            f"The checkpoint has no {' and no '.join(parts)}: new, so random, and not saved with "
            f"the adapter ({'trained' if trained.intersection(lost) else 'nor trained'}). Loaded "
            "again it is random anew, and the adapter suits it no more. Allowed are new parts that "
            "modules_to_save names; by itself peft names classifier and score for SEQ_CLS and "
            "TOKEN_CLS, and qa_outputs for QUESTION_ANS.",
            f"Add modules_to_save={parts}.",
        )


def _whole_part(name: str, missing: set[str], there: set[str]) -> str:
    """Return the largest part around a parameter in which all is missing."""
    names = name.split(".")
    parts = (".".join(names[:depth]) for depth in range(1, len(names)))
    return next(
        part for part in parts if missing.issuperset(n for n in there if n.startswith(f"{part}."))
    )


def _missing(base: PreTrainedModel) -> tuple[set[str], set[str]]:
    """Return the parameters that no file of the checkpoint has, and all; none without a checkpoint.

    The model is loaded on the meta device, which reads the headers of its files, and no weights.
    """
    config = copy.deepcopy(base.config)
    vars(config).pop("quantization_config", None)  # names alone are asked, and its GPU can be away
    level = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()  # the report on loading was seen before
    try:
        with (
            torch.random.fork_rng(devices=[]),
            warnings.catch_warnings(),
            contextlib.redirect_stderr(io.StringIO()),  # a progress bar
        ):
            warnings.simplefilter("ignore")
            empty, report = type(base).from_pretrained(
                base.name_or_path,
                config=config,
                ignore_mismatched_sizes=True,
                device_map="meta",
                local_files_only=True,
                trust_remote_code=False,
                output_loading_info=True,
            )
    except Exception:  # no folder, not in the cache, other files: nothing to ask
        return set(), set()
    finally:
        transformers.logging.set_verbosity(level)
    return set(report["missing_keys"]), {name for name, _ in empty.named_parameters()}
