"""What goes wrong in training without an error: found before it starts, or stopped.

>>> check_settings(args, peft_config, model)  # before the trainer is built
>>> check_trainer(trainer)  # before trainer.train()
>>> SFTTrainer(..., callbacks=[StopOnDivergence()])

What the libraries refuse themselves, in words that help, is left to them.
"""

from course_utils.training_check.divergence import StopOnDivergence
from course_utils.training_check.report import TrainingReport
from course_utils.training_check.settings import check_settings
from course_utils.training_check.trainer import check_trainer

__all__ = ["StopOnDivergence", "TrainingReport", "check_settings", "check_trainer"]
