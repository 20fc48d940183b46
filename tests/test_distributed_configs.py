"""The files in `examples/configs/`, read by what reads them on a machine with GPUs."""

import json
import os
from pathlib import Path
from typing import ClassVar

import pytest
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils import FullyShardedDataParallelPlugin
from accelerate.utils.deepspeed import HfDeepSpeedConfig
from accelerate.utils.launch import prepare_multi_gpu_env
from training_runs import arguments, make
from transformers.integrations.deepspeed import HfTrainerDeepSpeedConfig

CONFIGS = Path(__file__).resolve().parent.parent / "examples" / "configs"
STAGES = {"deepspeed_zero2": 2, "deepspeed_zero3": 3}
LAUNCHED = {"multi_gpu": ("MULTI_GPU", 1, 4), "multi_node": ("MULTI_GPU", 2, 8), "fsdp2": ("FSDP", 1, 4)}


def test_every_file_is_read():
    assert {path.stem for path in CONFIGS.iterdir()} == STAGES.keys() | LAUNCHED.keys()


class DeepSpeedConfig(HfDeepSpeedConfig):
    """What transformers makes of a file, without the import of deepspeed, which needs GPUs."""

    mismatches: ClassVar[list[str]] = []
    fill_match, fill_only = HfTrainerDeepSpeedConfig.fill_match, HfTrainerDeepSpeedConfig.__dict__["fill_only"]
    process = HfTrainerDeepSpeedConfig.trainer_config_process
    finalize = HfTrainerDeepSpeedConfig.trainer_config_finalize
    is_auto = HfTrainerDeepSpeedConfig.is_auto


@pytest.mark.parametrize("name", STAGES)
def test_deepspeed_gets_what_the_arguments_say(name, tmp_path):
    config = DeepSpeedConfig(str(CONFIGS / f"{name}.json"))
    args = arguments(tmp_path, per_device_train_batch_size=4, gradient_accumulation_steps=2, max_grad_norm=0.5)
    config.process(args)
    config.finalize(args, make(), num_training_steps=6)
    assert config.mismatches == []
    assert '"auto"' not in json.dumps(config.config)
    assert config.config["train_batch_size"] == 8
    assert config.config["gradient_clipping"] == 0.5
    assert config.config["bf16"] == config.config["fp16"] == {"enabled": False}
    assert config.config["zero_optimization"]["stage"] == STAGES[name]
    assert (config.is_zero2(), config.is_zero3()) == (STAGES[name] == 2, STAGES[name] == 3)


@pytest.mark.parametrize("name", LAUNCHED)
def test_accelerate_launches_what_the_file_says(name):
    file = str(CONFIGS / f"{name}.yaml")
    kind, machines, processes = LAUNCHED[name]
    config = load_config_from_file(file)  # refuses keys that it does not know
    assert config.distributed_type == kind
    assert (config.num_machines, config.num_processes) == (machines, processes)
    assert "# Not run " in Path(file).read_text()


def test_sharding_wraps_the_layers_of_the_backbone(monkeypatch):
    arguments = ["--config_file", str(CONFIGS / "fsdp2.yaml"), "train.py"]
    args, _, _ = _validate_launch_command(launch_command_parser().parse_args(arguments))
    monkeypatch.setattr(os, "environ", {**os.environ, **prepare_multi_gpu_env(args)})
    plugin, model = FullyShardedDataParallelPlugin(), make()
    plugin.set_auto_wrap_policy(model)
    assert plugin.fsdp_version == 2
    assert plugin.reshard_after_forward is True
    assert plugin.state_dict_type.name == "FULL_STATE_DICT"
    wrapped = [
        module for module in model.modules() if plugin.auto_wrap_policy(module, recurse=False, nonwrapped_numel=0)
    ]
    assert wrapped == [model.backbone.embeddings, *model.layers]
