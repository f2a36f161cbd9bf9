"""Settings: where a value comes from, and one clear sentence for every value that cannot be."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any
from unittest.mock import Mock

import pytest

from network_surgery.ops import SurgeryError
from network_surgery.study import conduct
from network_surgery.study.compose import compose, presets
from network_surgery.study.config import Count, Settings
from network_surgery.study.declare import About, declaration, names
from network_surgery.study.errors import StudyError
from network_surgery.study.training.cell import Cell


def written(folder: Path, text: str) -> Path:
    path = folder / "mine.yaml"
    path.write_text(text)
    return path


def refusal(config: Path | None = None, preset: str | None = "digits", **flags: Any) -> str:
    """The one sentence with which these settings are refused."""
    with pytest.raises(StudyError) as caught:
        compose(preset, config, flags)
    message = str(caught.value)
    assert message and "\n" not in message
    return message


@pytest.mark.parametrize("preset", presets())
def test_every_preset_loads(preset: str) -> None:
    assert isinstance(compose(preset, None, {}), Settings)


def test_the_published_code_s_faults_are_on_in_its_preset_only() -> None:
    faults = {"batchnorm_statistics": "reset", "accuracy_mode": "training", "train_on_validation": True}
    for preset in presets():
        settings = compose(preset, None, {})
        on = {name: getattr(settings, name) == value for name, value in faults.items()}
        assert set(on.values()) == {preset == "thesis-published"}, preset


def test_a_flag_beats_the_file_which_beats_the_preset(tmp_path: Path) -> None:
    config = written(tmp_path, "epochs: 7\ntrials: 9\n")
    assert compose("smoke", None, {}).epochs == 4
    composed = compose("smoke", config, {"trials": 11, "seeds": None})
    assert (composed.epochs, composed.trials, composed.seeds, composed.batch_size) == (7, 11, 2, 32)


TASK = """
from network_surgery.study.task import Classification

class Rows(Classification):
    recipe = {"epochs": 9, "batch_size": 8}

class Wrong(Classification):
    recipe = {"epoch": 9}

class Odd(Classification):
    recipe = {"epochs": 0}

class Other(Classification):
    recipe = {"task": "text"}

class Plain(Classification):
    pass
"""


def test_a_task_picks_its_defaults(tmp_path: Path) -> None:
    assert compose(None, None, {}) == compose("digits", None, {})
    assert compose(None, None, {"task": "text"}) == compose("text", None, {})
    assert compose(None, written(tmp_path, "task: text\ntrials: 3\n"), {}) == compose("text", None, {"trials": 3})
    assert compose("digits", None, {"task": "text"}).data == "digits"  # what is named is taken


def test_a_task_of_one_s_own_lies_under_everything_else(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(TASK)
    assert compose(None, None, {"task": f"{file}:Plain"}) == Settings(task=f"{file}:Plain")
    rows = f"{file}:Rows"
    assert compose(None, None, {"task": rows}) == Settings(task=rows, epochs=9, batch_size=8)
    assert compose("smoke", None, {"task": rows}).epochs == 4
    config = written(tmp_path, f"task: {rows}\nbatch_size: 4\n")
    composed = compose(None, config, {"trials": 2})
    assert (composed.task, composed.epochs, composed.batch_size, composed.trials) == (rows, 9, 4, 2)


@pytest.mark.parametrize(
    ("name", "right"),
    [
        ("Wrong", "there is no setting 'epoch'; there are"),
        ("Odd", "epochs is 0, but it must be a whole number of at least 1"),
        ("Other", "must be a mapping of settings other than task"),
    ],
)
def test_a_wrong_recipe(tmp_path: Path, name: str, right: str) -> None:
    file = tmp_path / "mine.py"
    file.write_text(TASK)
    message = refusal(preset=None, task=f"{file}:{name}")
    assert message.startswith(f"the recipe of task '{file}:{name}'") and right in message


def test_paths_of_a_task_and_a_folder_of_transformers_are_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mine.py").write_text(TASK)
    Path("llama").mkdir()
    assert compose(None, None, {"task": "mine.py:Plain"}).task == f"{tmp_path}/mine.py:Plain"
    for name, whole in (("llama", str(tmp_path / "llama")), ("someone/llama", "someone/llama")):
        model = compose(None, None, {"task": "text", "model": f"transformers:{name}"}).model
        assert model == f"transformers:{whole}"


@pytest.mark.parametrize("text", ["", "# nothing\n", "---\n"])
def test_an_empty_file_changes_nothing(tmp_path: Path, text: str) -> None:
    assert compose("smoke", written(tmp_path, text), {}) == compose("smoke", None, {})


def test_settings_survive_json() -> None:
    steps = [{"when": "2ep", "layer": "fc1", "op": "min_weight", "keep": 0.5}]
    for settings in (
        Settings(),
        Settings(objective=("flops", "accuracy"), schedules=(steps, steps), address="auto", targets=(0.9,)),
    ):
        assert Settings.from_data(json.loads(json.dumps(settings.to_data())), "here") == settings


@pytest.mark.parametrize(
    ("text", "setting", "value"),
    [
        ("learning_rate: 1e-3", "learning_rate", 0.001),  # which PyYAML reads as text
        ("learning_rate: '1e-3'", "learning_rate", 0.001),
        (
            "schedules: [[{when: 1ep, layer: fc1, op: min_weight, keep: 5e-1}]]",
            "schedules",
            ([{"when": "1ep", "layer": "fc1", "op": "min_weight", "keep": 0.5}],),
        ),
        ("epochs: 5.0", "epochs", 5),
        ("gpus_per_trial: 1", "gpus_per_trial", 1.0),
        ("objective: accuracy", "objective", ("accuracy",)),
        ("objective: [flops, accuracy]", "objective", ("flops", "accuracy")),
        ("targets: [0.9, '0.95']", "targets", (0.9, 0.95)),
        ("targets: 0.9,1", "targets", (0.9, 1.0)),
        ("tracking_uri: null", "tracking_uri", None),
        ("stream: true", "stream", "true"),
        ("stream: no", "stream", "false"),
        ("stream: auto", "stream", "auto"),
    ],
)
def test_what_yaml_may_say(tmp_path: Path, text: str, setting: str, value: Any) -> None:
    found = getattr(compose("digits", written(tmp_path, text), {}), setting)
    assert found == value and type(found) is type(value)


def test_readers_are_the_cores_of_a_trial_but_one_unless_they_are_given() -> None:
    for cores, workers, readers in ((1, None, 0), (0.5, None, 0), (4, None, 3), (4, 0, 0), (1, 2, 2)):
        assert Settings(cpus_per_trial=cores, workers=workers).readers == readers


def test_objectives_on_the_command_line_are_separated_by_commas() -> None:
    assert compose("digits", None, {"objective": "accuracy, parameters"}).objective == ("accuracy", "parameters")


def test_relative_paths_become_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    composed = compose(
        "digits", None, {"data": "folder:my images", "model": "nets/mine.py:make", "optimizer": "my.py:sgd"}
    )
    assert composed.optimizer == f"{tmp_path}/my.py:sgd"
    assert composed.data == f"folder:{tmp_path}/my images"
    assert composed.model == f"{tmp_path}/nets/mine.py:make"
    assert compose("digits", None, {"model": "package.module:make"}).model == "package.module:make"


LONGER = "must be a whole number of at least 1"
BAD_VALUES = [
    ("epochs", "0", LONGER),
    ("epochs", "-3", LONGER),
    ("epochs", "2.5", "must be a whole number"),
    ("epochs", "many", "must be a whole number"),
    ("epochs", "true", "must be a whole number"),
    ("epochs", "[1, 2]", "must be a whole number"),
    ("epochs", "{a: 1}", "must be a whole number"),
    ("epochs", "null", "must be a whole number"),
    ("epochs", ".nan", "must be a whole number"),
    ("epochs", ".inf", "must be a whole number"),
    ("epochs", "2024-01-01", "must be a whole number"),
    ("trials", "0", LONGER),
    ("generation", "0", LONGER),
    ("top", "-1", LONGER),
    ("seeds", "0", LONGER),
    ("batch_size", "0", LONGER),
    ("held_out", "0", LONGER),
    ("signal_images", "0", LONGER),
    ("seed", "-1", "must be a whole number from 0 to"),
    ("seed", "4294967296", "must be a whole number from 0 to"),
    ("validation", ".nan", "must be a number between 0 and 1"),
    ("validation", "0", "must be a number between 0 and 1"),
    ("validation", "1.0", "must be a number between 0 and 1"),
    ("validation", "-.inf", "must be a number between 0 and 1"),
    ("learning_rate", ".nan", "must be a number above 0"),
    ("learning_rate", ".inf", "must be a number above 0"),
    ("learning_rate", "0", "must be a number above 0"),
    ("learning_rate", "[0.1]", "must be a number"),
    ("learning_rate", "yes", "must be a number"),
    ("learning_rate", "fast", "must be a number"),
    ("weight_decay", "-1", "must be 0 or a number above"),
    ("weight_decay", ".nan", "must be 0 or a number above"),
    ("cpus_per_trial", "0", "must be a number above 0"),
    ("cpus_per_trial", ".nan", "must be a number above 0"),
    ("gpus_per_trial", "-1", "must be from 0 to 1, since a training run uses one GPU at most"),
    ("gpus_per_trial", "2", "must be from 0 to 1, since a training run uses one GPU at most"),
    ("gpus_per_trial", ".inf", "must be from 0 to 1, since a training run uses one GPU at most"),
    ("device", "cuda:0", "must be a device type of torch such as cpu"),
    ("optimizer", "3", "must be text"),
    ("optimizer_arguments", "nesterov", "must be a mapping such as"),
    ("lr_schedule", "cosin", "must be one of constant, step, cosine, linear, one_cycle"),
    ("warmup", "1", "must be 0 or a number between 0 and 1"),
    ("lr_steps", "[0.6, 0.3]", "must be a list of rising numbers between 0 and 1"),
    ("ema", "1", "must be a number between 0 and 1"),
    ("clip", "0", "must be a number above 0"),
    ("accumulate", "0", LONGER),
    ("model", "5", "must be text"),
    ("model", "null", "must be text"),
    ("data", "true", "must be text"),
    ("tracking_uri", "5", "must be text"),
    ("objective", "[]", "must be a list of names, one or several of metric, accuracy, loss, parameters, flops"),
    ("objective", "''", "must be a list of names, one or several of"),
    ("objective", "speed", "must be a list of names, one or several of"),
    ("objective", "[accuracy, accuracy]", "none of them twice"),
    ("objective", "'accuracy,accuracy'", "none of them twice"),
    ("objective", "[1]", "must be a list of names, one or several of"),
    ("objective", "7", "must be a list of names"),
    ("targets", "0.9", "must be a list of numbers"),
    ("targets", "[high]", "must be a list of numbers"),
    ("targets", "[.nan]", "must be a list of numbers, values of the task's metric"),
    ("objective", "{accuracy: 1}", "must be a list of names"),
    ("train_images", "0", LONGER),
    ("train_images", "1.5", "must be a whole number"),
    ("optimizer_state", "forget", "must be one of carry, reset"),
    ("batchnorm_statistics", "forget", "must be one of carry, reset"),
    ("accuracy_mode", "test", "must be one of evaluation, training"),
    ("train_on_validation", "perhaps", "must be true or false"),
    ("sampler", "[tpe]", "must be text"),
    ("enqueue", "[[keep, 0.5]]", "must be a list of parameters with their values"),
    ("image_size", "0", LONGER),
    ("stream", "1", "must be one of auto, true, false"),
    ("stream", "yes please", "must be one of auto, true, false"),
    ("workers", "-1", "must be a whole number, 0 or more"),
    ("arms", "[original]", "or a list of surgery and any of original, restart"),
    ("arms", "[surgery, surgery]", "or a list of surgery and any of original, restart"),
    ("arms", "[surgery, random]", "only together with restart"),
    ("arms", "[surgery, control]", "or a list of surgery and any of original, restart"),
    ("page", "mine", "must be text of the form MODULE:FUNCTION"),
    ("schedules", "mine", "must be a list of schedules"),
    ("schedules", "{a: 1}", "must be a list of schedules"),
    ("schedules", "[{when: 2ep, layer: fc1, op: min_weight}]", "must be a list of schedules"),
    ("schedules", "[[when, layer, op]]", "must be a list of schedules"),
]


@pytest.mark.parametrize(("name", "value", "right"), BAD_VALUES, ids=[f"{n}={v}" for n, v, _ in BAD_VALUES])
def test_a_wrong_value_in_a_file(tmp_path: Path, name: str, value: str, right: str) -> None:
    config = written(tmp_path, f"{name}: {value}\n")
    message = refusal(config)
    assert message.startswith(f"{config}: {name} is ") and right in message
    assert refusal(config, **{name: "5"}) == message  # a flag does not hide what is wrong in the file


@pytest.mark.parametrize(
    ("flags", "right"),
    [
        ({"epochs": 0}, LONGER),
        ({"seed": -1}, "must be a whole number from 0 to"),
        ({"learning_rate": float("nan")}, "must be a number above 0"),
        ({"gpus_per_trial": 1.5}, "must be from 0 to 1, since a training run uses one GPU at most"),
        ({"objective": ""}, "must be a list of names, one or several of"),
        ({"objective": "accuracy,"}, "must be a list of names, one or several of"),
        ({"device": "cuda 1"}, "must be a device type of torch such as cpu"),
    ],
    ids=str,
)
def test_a_wrong_value_on_the_command_line(flags: dict[str, Any], right: str) -> None:
    message = refusal(**flags)
    assert message.startswith(f"the command line: {next(iter(flags))} is ") and right in message


@pytest.mark.parametrize("name", ["epoch", "1", "null", "Epochs", "to_data"])
def test_an_unknown_setting(tmp_path: Path, name: str) -> None:
    message = refusal(written(tmp_path, f"{name}: 3\n"))
    assert "mine.yaml: there is no setting" in message and "there are task, data," in message


@pytest.mark.parametrize("preset", ["digit", "", "../digits", "digits.yaml"])
def test_an_unknown_preset(preset: str) -> None:
    known = ", ".join(presets())
    assert refusal(preset=preset).startswith(f"there is no preset {preset!r}; there are {known}")


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    assert refusal(tmp_path / "no.yaml").endswith("no.yaml cannot be read: No such file or directory")
    assert refusal(tmp_path).endswith("cannot be read: Is a directory")


@pytest.mark.parametrize(
    "text", ["a: [1, 2", "a: 1\n  b: 2\n", "a: b: c", "\tepochs: 3", "epochs: *none", "!!python/x 1"]
)
def test_broken_yaml(tmp_path: Path, text: str) -> None:
    assert "mine.yaml is not valid YAML at line " in refusal(written(tmp_path, text))


def test_a_file_that_is_no_text(tmp_path: Path) -> None:
    config = tmp_path / "mine.yaml"
    config.write_bytes(b"\x89PNG\r\n\x00\xff")
    assert "is not valid YAML" in refusal(config)


@pytest.mark.parametrize("text", ["- epochs: 3", "epochs", "3", "false", "[]", "0"])
def test_yaml_that_is_no_mapping(tmp_path: Path, text: str) -> None:
    assert "must hold lines of the form 'name: value'" in refusal(written(tmp_path, text))


@dataclass(frozen=True)
class More(Settings):
    """Settings with fields that are declared in different ways."""

    warmup: Annotated[Count, About("Epochs of warm-up", option=False)] = 1
    plain: int = 1
    colour: Annotated[Count, About("The colour of the report", decides=False)] = 1


def test_a_new_setting_changes_the_key_of_a_result_unless_it_is_declared_not_to_decide_it() -> None:
    cell = Cell("surgery", 0)
    key = cell.key(More())
    assert key != cell.key(Settings())
    assert len({key, cell.key(More(warmup=2)), cell.key(More(plain=2))}) == 3
    assert cell.key(More(colour=2)) == key


def test_what_does_not_decide_a_result_is_what_is_searched_compared_and_where_it_runs() -> None:
    """A golden list: whoever adds to it says that a training run gives the same result whatever the setting is."""
    assert {name for name in names(Settings) if not declaration(Settings, name).about.decides} == {
        "trials", "generation", "space", "sampler", "pruner", "storage", "enqueue", "schedules", "objective",
        "early_stopping", "first_rung", "reduction", "recovery", "seed", "top", "seeds", "arms", "targets", "page",
        "margin", "device", "cpus_per_trial", "gpus_per_trial", "workers_per_trial", "hang_factor", "accelerator",
        "address", "copy_to", "tracking_uri", "stream", "workers", "budget", "controls", "racing", "finalists",
        "sampling", "aftercare",
        "distill_temperature", "distill_weight",  # of one arm, whose cells have them in their keys
    }  # fmt: skip


def test_checkpoints_keep_their_names() -> None:
    """A golden key: with another one a study that was interrupted would start its running training runs over."""
    step = {"when": "2ep", "layer": "fc1", "op": "min_weight", "keep": 0.5}
    assert Cell("surgery", 3, [step], trial=7).key(Settings(epochs=4, train_images=100)) == "570522b0946e4b9a"


@pytest.mark.parametrize("name", names(Settings))
def test_every_setting_says_what_it_is_and_what_is_right(name: str) -> None:
    declared = declaration(Settings, name)
    assert declared.about.help and declared.right and not declared.help.endswith("..")
    assert getattr(Settings(**{name: getattr(Settings(), name)}), name) == getattr(Settings(), name)


def test_settings_are_checked_however_they_are_made() -> None:
    with pytest.raises(StudyError, match="epochs is 0, but it must be a whole number of at least 1"):
        Settings(epochs=0)
    assert Settings(**Settings(targets=(0.5,)).to_data()).targets == (0.5,)


@pytest.mark.parametrize("name", [name for name in names(Settings) if declaration(Settings, name).kind is bool])
@pytest.mark.parametrize("value", [True, False])
def test_truth_is_given_on_the_command_line_in_words(name: str, value: bool) -> None:
    settings = compose(None, None, {name: str(value).lower()})
    assert getattr(settings, name) is value
    assert declaration(Settings, name).help.startswith("true, false: ")


def test_a_search_space_that_there_is_not_is_refused_before_anything_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conduct, "build", Mock(side_effect=AssertionError))
    with pytest.raises(SurgeryError, match=r"there is no search space 'depht'; .*did you mean 'depth'"):
        conduct.check(Settings(space="depht"))
