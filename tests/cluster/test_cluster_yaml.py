"""The cluster's file: Ray accepts it, and it holds no word that Ray would pass on to AWS unread."""

from __future__ import annotations

import copy
import json
import re
import shlex
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import ray.autoscaler
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

FILE = Path(__file__).parents[2] / "cluster.yaml"
#: Ray lets anything pass in these places. What it knows of a provider is in its schema, a node's settings are boto3's
#: ``ec2.create_instances``, and these are those that we use.
SCHEMA = json.loads((Path(ray.autoscaler.__file__).parent / "ray-schema.json").read_text())
PROVIDER = set(SCHEMA["properties"]["provider"]["properties"])
NODE = {"InstanceType", "BlockDeviceMappings", "InstanceMarketOptions", "ImageId", "KeyName", "SubnetIds"}
DEVICE, DISK = {"DeviceName", "Ebs"}, {"VolumeSize", "VolumeType"}


def problems(config: dict[str, Any]) -> list[str]:
    """Everything that is wrong with a cluster's configuration."""
    try:
        validate_config(prepare_config(copy.deepcopy(config)))
    except Exception as error:  # a schema's error, a KeyError of a missing part, …
        return [str(error) or type(error).__name__]
    found = [f"provider has no {key}" for key in set(config["provider"]) - PROVIDER]
    if not re.fullmatch(r"[a-z]{2}-[a-z]+-\d", config["provider"].get("region", "")):
        found.append("the region is none")
    for name, kind in config["available_node_types"].items():
        node = kind["node_config"]
        found += [f"{name}: there is no {key}" for key in set(node) - NODE]
        if not re.fullmatch(r"[a-z]+\d+[a-z-]*\.(\d*x?large|medium|metal)", node.get("InstanceType", "")):
            found.append(f"{name}: no instance type")
        for device in node.get("BlockDeviceMappings", ()):
            unknown = (set(device) - DEVICE) | (set(device.get("Ebs", {})) - DISK)
            found += [f"{name}: there is no {key}" for key in unknown]
        if node.get("InstanceMarketOptions", {"MarketType": "spot"}) != {"MarketType": "spot"}:
            found.append(f"{name}: strange InstanceMarketOptions")
        if not kind.get("min_workers", 0) <= kind.get("max_workers", config["max_workers"]) <= config["max_workers"]:
            found.append(f"{name}: min_workers, max_workers and the cluster's max_workers do not agree")
    return found


@pytest.fixture
def config() -> dict[str, Any]:
    return yaml.safe_load(FILE.read_text())


def test_the_file_has_no_problem(config: dict[str, Any]) -> None:
    assert problems(config) == []


def worker(config: dict[str, Any]) -> dict[str, Any]:
    return next(kind for name, kind in config["available_node_types"].items() if name != config["head_node_type"])


def moved(mapping: Callable[[dict[str, Any]], dict[str, Any]], old: str, new: str) -> Callable[[dict[str, Any]], None]:
    """A typo: what a key holds is found under another one."""

    def change(config: dict[str, Any]) -> None:
        mapping(config)[new] = mapping(config).pop(old)

    return change


def test_typos_are_found(config: dict[str, Any]) -> None:
    """The check can fail: each of these mistakes is one that it must see."""
    mistakes: list[Callable[[dict[str, Any]], Any]] = [
        moved(lambda c: c, "max_workers", "max_worker"),
        moved(lambda c: c, "setup_commands", "setup_command"),
        moved(lambda c: c["provider"], "region", "regoin"),
        moved(lambda c: c["provider"], "cache_stopped_nodes", "cache_stoped_nodes"),
        moved(lambda c: worker(c), "min_workers", "min_worker"),
        moved(lambda c: worker(c)["node_config"], "InstanceType", "instanceType"),
        moved(lambda c: worker(c)["node_config"], "InstanceMarketOptions", "InstanceMarketOption"),
        moved(lambda c: worker(c)["node_config"]["BlockDeviceMappings"][0], "Ebs", "EBS"),
        moved(lambda c: worker(c)["node_config"]["BlockDeviceMappings"][0]["Ebs"], "VolumeSize", "Size"),
        lambda c: c.update(head_node_type="haed"),
        lambda c: c["provider"].update(region="us-wset"),
        lambda c: c["provider"].update(region="us-west-2a"),
        lambda c: worker(c)["node_config"].update(InstanceType="g5-2xlarge"),
        lambda c: worker(c)["node_config"].update(InstanceMarketOptions={"MarketType": "sopt"}),
        lambda c: worker(c).update(min_workers=99),
        lambda c: worker(c).update(max_workers=c["max_workers"] + 1),
    ]
    for number, mistake in enumerate(mistakes):
        wrong = copy.deepcopy(config)
        mistake(wrong)
        assert problems(wrong), f"mistake {number} was not seen"


def test_every_command_is_shell(config: dict[str, Any]) -> None:
    commands = [command for name, value in config.items() if name.endswith("_commands") for command in value]
    assert len(commands) > 4
    script = "\n".join(commands)
    assert subprocess.run(["bash", "-n"], input=script, text=True, capture_output=True, check=False).stderr == ""


def test_what_is_installed_is_what_was_copied(config: dict[str, Any]) -> None:
    (target,) = config["file_mounts"]
    assert config["file_mounts"][target] == "."
    assert any("pip install" in command and target in command for command in config["setup_commands"])


def test_the_dashboard_is_not_open_to_the_world(config: dict[str, Any]) -> None:
    (start,) = [command for command in config["head_start_ray_commands"] if "ray start" in command]
    assert "--dashboard-host=127.0.0.1" in start and "0.0.0.0" not in FILE.read_text()


def test_the_commands_that_the_file_recommends_exist() -> None:
    lines = [line for line in FILE.read_text().splitlines() if "ray submit" in line]
    assert len(lines) == 2
    for line in lines:
        script, *words = shlex.split(line.split("cluster.yaml", 1)[1])
        assert (FILE.parent / script).is_file()
        assert_known(words)


def assert_known(words: list[str]) -> None:
    """A command of ours and its options exist."""
    from typer.main import get_command

    from network_surgery.study.cli import app

    command = get_command(app).commands[words[0]]  # type: ignore[attr-defined]
    known = {option for parameter in command.params for option in parameter.opts}
    assert {word for word in words if word.startswith("--")} <= known


def test_the_image_is_of_this_ray_and_has_no_cuda_of_its_own(config: dict[str, Any]) -> None:
    """PyTorch's wheel brings its own, and CUDA's compatibility library of an older image would hide the driver."""
    image = config["docker"]["image"]
    assert re.fullmatch(r"rayproject/ray:\d+\.\d+\.\d+-py311-cpu", image)
    assert image in (FILE.parent / "Dockerfile").read_text()


def block_of(name: str, text: str) -> str:
    """The lines that stand in comments for another cloud, or for machines of one's own."""
    lines = [line for line in text.splitlines() if line.startswith(f"#{name} ")]
    return "\n".join(line.removeprefix(f"#{name} ") for line in lines)


@pytest.mark.parametrize("cloud", ["gcp", "azure"])
def test_other_clouds_are_clusters_too(config: dict[str, Any], cloud: str) -> None:
    """Their blocks stand in comments; put in place of those of AWS, Ray takes them."""
    other = yaml.safe_load(block_of(cloud, FILE.read_text()))
    assert {"provider", "auth", "available_node_types"} == other.keys() and other["provider"]["type"] == cloud
    assert other["available_node_types"].keys() == config["available_node_types"].keys()
    validate_config(prepare_config(config | other))


def test_machines_of_ones_own_are_a_cluster_too(config: dict[str, Any]) -> None:
    """Ray gives them one type of node; ``test_ssh`` starts them."""
    other = config | yaml.safe_load(block_of("local", FILE.read_text()))
    del other["available_node_types"], other["head_node_type"]
    validate_config(prepare_config(other))
