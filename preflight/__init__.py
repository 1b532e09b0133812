"""What to ask before a GPU is rented: is the dataset sound, what can LoRA target, does it fit?

``from preflight import dataset_check, lora_targets, memory_plan, training_check``; in a terminal,
``python -m preflight`` with ``check``, ``modules``, ``memory`` or ``training``.

Used by lessons: none.
"""
