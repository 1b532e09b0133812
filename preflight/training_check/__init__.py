"""What goes wrong in training without an error: found before it starts.

>>> check_settings(args, peft_config, model)  # before the trainer is built
>>> check_trainer(trainer)  # before trainer.train()

What the libraries refuse themselves, in words that help, is left to them.

Used by lessons: 04, 05a, 06.
"""

from preflight.training_check.report import TrainingReport
from preflight.training_check.settings import check_settings
from preflight.training_check.trainer import check_trainer

__all__ = ["TrainingReport", "check_settings", "check_trainer"]
