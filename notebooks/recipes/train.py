"""Say how many processes there are and of which kind; with --config, train as `trl sft` does.

    torchrun --nproc_per_node 2 recipes/train.py --processes 2 --config recipes/recipe.yaml

A launcher can start fewer processes than it was asked for, or share nothing, silently. With
--resume it goes on from the last whole checkpoint below --output_dir, if there is one.
"""

import argparse
import json
import os
import runpy
import sys
from datetime import timedelta

from accelerate import Accelerator, PartialState

from course_utils.checkpoints import last_whole

parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
parser.add_argument("--processes", type=int, help="how many there have to be")
parser.add_argument("--resume", action="store_true", help="go on where a run before this stopped")
parser.add_argument("--output_dir")
parser.add_argument("--ddp_timeout", type=int, default=1800, help="seconds to wait for others")
options, rest = parser.parse_known_args()
if options.output_dir:
    rest += ["--output_dir", options.output_dir]
cpu = "--use_cpu" in rest
# The one who makes the process group sets its timeout: SFTConfig's would come too late.
state = PartialState(cpu=cpu, timeout=timedelta(seconds=options.ddp_timeout))
sharded = os.environ.get("ACCELERATE_USE_FSDP") == "true"
if "--config" not in rest:
    kind = Accelerator(cpu=cpu).distributed_type.value
    if state.is_main_process:
        print(json.dumps({"processes": state.num_processes, "kind": kind, "asked FSDP": sharded}))
    state.destroy_process_group()
    sys.exit()

if options.processes not in (None, state.num_processes):
    raise RuntimeError(
        f"{options.processes} processes were asked for, and there are {state.num_processes}. "
        "Start them with torchrun --nproc_per_node."
    )
if sharded and state.device.type == "cpu":
    raise RuntimeError("FSDP was asked for; on a CPU accelerate trains with DDP: use shard.py.")
if state.is_main_process:
    kind = state.distributed_type.value
    print(json.dumps({"processes": state.num_processes, "kind": kind}), flush=True)
if options.resume:
    if not options.output_dir:
        raise RuntimeError("--resume was given without a folder. Add --output_dir, as it was then.")
    if last := last_whole(options.output_dir, state.num_processes):
        rest += ["--resume_from_checkpoint", str(last)]
sys.argv[1:] = rest
runpy.run_module("trl.scripts.sft", run_name="__main__")
