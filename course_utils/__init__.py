"""Helpers for the fine-tuning course: what a learner should not have to read.

Import the modules by their own names, for example ``from course_utils import hardware``; importing
the package alone loads nothing heavy.
"""

import logging
import warnings

# Library messages that ask nothing of a learner. bitsandbytes logs at import that an optional
# kernel is missing, and a line for every 8-bit product; TRL and PEFT still use an old name of
# transformers (activation_checkpointing is the new one).
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
warnings.filterwarnings(
    "ignore", r".*gradient_checkpointing(_enable)?` is deprecated", FutureWarning
)

__version__ = "0.1.0"
