"""Helpers for the fine-tuning course: what a learner should not have to read.

Import the modules by their own names, for example ``from course_utils import hardware``; importing
the package alone loads nothing heavy.
"""

import logging

# bitsandbytes logs a warning at import on some CPUs (an optional kernel is missing) and a line for
# every 8-bit product; neither is anything to act on.
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)

__version__ = "0.1.0"
