"""Helpers for the fine-tuning course: what a learner should not have to read.

Import the modules by their own names, for example ``from course_utils import hardware``; importing
the package alone loads nothing heavy.

Used by lessons: none.
"""

import logging
import os
import warnings

# Library messages that ask nothing of a learner. bitsandbytes logs at import that an optional
# kernel is missing, and a line for every 8-bit product; TRL and PEFT still use old names of
# transformers (activation_checkpointing and cache are the new ones).
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
for _old in ("gradient_checkpointing(_enable)?", "past_key_values"):
    warnings.filterwarnings("ignore", rf".*{_old}` is deprecated", FutureWarning)
logging.getLogger("transformers.utils.generic").addFilter(
    lambda record: not record.getMessage().startswith("`past_key_values`")
)

__version__ = "0.1.0"

SEED: int  # all that is random in the lessons starts from it; the variable COURSE_SEED changes it
_SEEDS = range(1_000_001)


def __getattr__(name: str) -> int:
    # Read when it is asked for, so that a wrong value stops a lesson and not the doctor.
    if name != "SEED":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    given = os.environ.get("COURSE_SEED") or "0"
    if not given.isdecimal() or int(given) not in _SEEDS:
        raise ValueError(
            f"COURSE_SEED is {given!r}. Allowed is a whole number from {_SEEDS[0]} to "
            f"{_SEEDS[-1]:,}. Without it the seed is 0, with which the lessons' outputs were made."
        )
    return int(given)
