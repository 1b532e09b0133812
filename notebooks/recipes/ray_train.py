"""Train the recipe on two workers of Ray Train, on this machine; go on if a worker dies.

    python recipes/ray_train.py --config recipes/recipe.yaml --use_cpu --output_dir runs/10/ray

It needs `pip install -r requirements-ray.txt`. Nothing listens beyond 127.0.0.1: no dashboard, no
usage statistics, and a token that only this run knows.
"""

import json
import os
import secrets
import sys
from contextlib import nullcontext
from pathlib import Path

os.environ |= {
    "RAY_USAGE_STATS_ENABLED": "0",
    # Despite its name: with 0, Ray binds to 127.0.0.1 on Linux as well, and takes no other machine.
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    "RAY_AUTH_TOKEN": secrets.token_hex(32),
}

import ray
import torch.distributed as dist
from ray.train import Checkpoint, FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer
from transformers import TrainerCallback
from trl import (
    DatasetMixtureConfig,
    ModelConfig,
    SFTConfig,
    SFTTrainer,
    TrlParser,
    get_dataset,
    get_peft_config,
)


class Report(TrainerCallback):
    """Hands each checkpoint to Ray, once all workers have written their part of it."""

    def on_save(self, args, state, control, **_):
        dist.barrier()
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        whole = Checkpoint.from_directory(folder) if state.is_world_process_zero else None
        ray.train.report({"step": state.global_step}, checkpoint=whole)


def worker(given: dict) -> None:
    """Train as `trl sft` does, from Ray's last checkpoint if there is one; every worker runs it."""
    os.chdir(given["folder"])
    kinds = (SFTConfig, ModelConfig, DatasetMixtureConfig)
    config, model, mixture = TrlParser(kinds).parse_args_and_config(given["arguments"])
    trainer = SFTTrainer(
        model.model_name_or_path,
        config,
        train_dataset=get_dataset(mixture)["train"],
        peft_config=get_peft_config(model),
        callbacks=[Report()],
    )
    last = ray.train.get_checkpoint()
    with last.as_directory() if last else nullcontext() as folder:
        trainer.train(resume_from_checkpoint=folder)


if __name__ == "__main__":
    arguments = sys.argv[1:]
    if "--output_dir" not in arguments:
        raise SystemExit("No folder was given. Add --output_dir and a folder that all workers see.")
    output = Path(arguments[arguments.index("--output_dir") + 1]).resolve()
    ray.init(num_cpus=2, include_dashboard=False, object_store_memory=80 * 2**20)
    result = TorchTrainer(
        worker,
        train_loop_config={"folder": os.getcwd(), "arguments": arguments},
        torch_config=TorchConfig(backend="gloo"),
        scaling_config=ScalingConfig(num_workers=2),
        run_config=RunConfig(
            name="ray", storage_path=str(output), failure_config=FailureConfig(max_failures=1)
        ),
    ).fit()
    print(json.dumps({"step": result.metrics["step"], "checkpoint": result.checkpoint.path}))
    ray.shutdown()
