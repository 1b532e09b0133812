"""Counts, after each cell of a kernel that starts with it, the weights that models keep alive.

`test_lessons_models.py` puts this file among the kernel's startup files.
"""

import gc
import json
import os
import sys
from pathlib import Path

from IPython import get_ipython

FILE = "LIVE_MODELS_FILE"  # names the file for what is counted: bytes after each cell


def live_bytes() -> int:
    """Return the bytes of the living models' weights, shared ones once, without the pocket models'.

    Those are small, and a lesson may hold several of them next to the reader's.
    """
    transformers = sys.modules.get("transformers")
    if transformers is None:
        return 0
    gc.collect()  # trainers refer to themselves
    models = [one for one in gc.get_objects() if type(one).__module__.startswith("transformers.")]
    weights = {
        weight.data_ptr(): weight.untyped_storage().nbytes()
        for model in models
        if isinstance(model, transformers.PreTrainedModel) and "pocket-" not in model.name_or_path
        for weight in model.parameters()
        if weight.device.type != "meta"
    }
    return sum(weights.values())


counted: list[int] = []


def count(*result: object) -> None:
    counted.append(live_bytes())
    Path(os.environ[FILE]).write_text(json.dumps(counted), encoding="utf-8")


shell = get_ipython()
if shell is not None:
    shell.events.register("post_run_cell", count)
