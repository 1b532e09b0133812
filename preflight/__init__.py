"""What to ask before a GPU is rented: is the dataset sound, what can LoRA target, does it fit?

And before an adapter is shipped: will its folder be the model that was trained?

``from preflight import adapter_check, dataset_check, lora_targets, memory_plan, training_check``;
in a terminal, ``python -m preflight`` with ``check``, ``modules``, ``memory``, ``training`` or
``adapter``.

Used by lessons: none.
"""
