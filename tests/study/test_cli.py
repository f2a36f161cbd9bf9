"""The command line: it starts light, and answers bad input with one sentence and exit code 2."""

from __future__ import annotations

import contextlib
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import typer
from PIL import Image

from network_surgery.study.cli import app, main
from network_surgery.study.config import Settings
from network_surgery.study.declare import declaration, names
from network_surgery.study.store.folder import Folder
from tests.study.nodes import node


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every command runs in an empty folder, on a wide terminal, and leaves the path of modules as it was."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr(sys, "path", [*sys.path])


class Surgery:
    """Runs a command line in this process."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self._monkeypatch, self._capsys = monkeypatch, capsys

    def __call__(self, *arguments: str) -> tuple[int, str, str]:
        """The exit code, standard output and standard error."""
        self._monkeypatch.setattr(sys, "argv", ["surgery", *arguments])
        try:
            main()
            code: object = 0
        except SystemExit as end:
            code = end.code or 0
        assert isinstance(code, int)
        return code, *self._capsys.readouterr()

    def refused(self, *arguments: str) -> str:
        """The one sentence with which a command line is refused; only what goes on is written before it."""
        before = sorted(Path.cwd().rglob("*"))
        code, out, err = self(*arguments)
        assert (code, out) == (2, "")
        *before_it, sentence = err.splitlines()
        assert sentence.startswith("surgery: ") and err.endswith("\n") and len(before_it) <= 4
        assert "Traceback" not in err and sorted(Path.cwd().rglob("*")) == before
        return sentence.removeprefix("surgery: ")


@pytest.fixture
def surgery(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Surgery:
    return Surgery(monkeypatch, capsys)


def test_the_command_line_imports_nothing_heavy() -> None:
    heavy = "torch", "ray", "mlflow", "optuna", "matplotlib", "scipy", "sklearn", "numpy", "yaml"
    code = f"import sys, network_surgery.study.cli; print([name for name in {heavy!r} if name in sys.modules])"
    root = Path(__file__).parents[2]
    answer = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "[]"


@pytest.mark.parametrize("asked", [[], ["--help"]])
def test_help_names_every_command(surgery: Surgery, asked: list[str]) -> None:
    code, out, err = surgery(*asked)
    assert (code, err) == (0 if asked else 2, "")
    assert all(f" {name} " in out for name in ("study", "resume", "compare", "report", "layers", "ui"))


#: What of an experiment is no setting.
MEASURING = {"label", "train_images", "seeds", "iterations", "looks", "width", "step", "trainings", "seed"}
#: The options that are no settings, by command.
OTHERS = {
    "study": {"preset", "config", "out", "dry_run", "quiet", "as_json"},
    "resume": {"trials", "failed", "quiet", "as_json"},
    "track": {"quiet"},
    "report": {"quiet", "as_json"},
    "compare": {"top", "seeds", "quiet", "as_json"},  # of a study that has its settings already
    "layers": {"preset", "config", "epochs", "image"},
    "doctor": {"address", "dry_run"},
    "isolate": {"width", "step", "iterations", "trainings", "seed", "workers", "out"},
    "experiment": MEASURING | {"networks", "factors", "workers", "rows", "out"},
    "ui": {"port"},
}


def test_every_option_is_a_setting_or_known_to_be_none(surgery: Surgery) -> None:
    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    for command, about in commands.items():
        options = {each.name: each for each in about.params if each.param_type_name == "option"}
        settings = options.keys() - OTHERS.get(command, set())
        for name in settings:
            declared = declaration(Settings, name)
            assert options[name].help == declared.help and options[name].default is None
            assert options[name].opts == [f"--{name.replace('_', '-')}"] and declared.about.option
        if command == "study":
            assert settings == {name for name in names(Settings) if declaration(Settings, name).about.option}
    code, out, _ = surgery("study", "--help")
    assert code == 0 and "adam, adamw, sgd (momentum 0.9)" in out and "--weight-decay" not in out


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("--nothing", r"no such option: --nothing; see surgery --help"),
        ("study --spaces removal", r"no such option: --spaces.*--space.* see surgery study --help"),
        ("study --epochs", r"option '--epochs' requires an argument; see surgery.* --help"),
        ("study --trials x", r"the command line: trials is 'x', but it must be a whole number of at least 1"),
        ("study --learning-rate 0,1", r"the command line: learning_rate is '0,1', but it must be a number above 0"),
        ("compare x --seeds 0.5", r".*'--seeds'.*; see surgery compare --help"),
        ("study extra", r"got unexpected extra argument.*extra.*; see surgery study --help"),
        ("studdy", r"no such command 'studdy'.* [Ss]ee surgery --help"),
        ("report", r"missing argument '.*STUDY.*'; see surgery report --help"),
        ("ui --port 0", r"invalid value for '--port': .*1.*; see surgery ui --help"),
    ],
)
def test_a_line_that_is_no_command_is_answered_in_a_sentence(surgery: Surgery, line: str, sentence: str) -> None:
    assert re.fullmatch(sentence, surgery.refused(*line.split()))


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--preset", "digit"], "there is no preset 'digit'; there are cifar, digits"),
        (["--model", "nope"], "there is no model 'nope'; give one of small_cnn, mlp, evci_cnn"),
        (["--model", "torchvision:nope"], "torchvision has no classification model 'nope'"),
        (["--model", "vgg16"], "model 'vgg16' failed on images of 1 × 8 × 8: it needs images of at least 16 × 16"),
        (["--data", "emnist"], "there is no data 'emnist'; give 'digits', 'mnist', 'fashion_mnist', 'cifar10'"),
        (["--data", "Digits"], "'svhn' or 'folder:PATH'; did you mean 'digits'?"),
        (["--data", "folder:none"], "none/train; images must lie in"),
        (["--space", "nope"], "there is no search space 'nope'; there are mixed"),
        (
            ["--objective", "speed"],
            "the command line: objective is 'speed', but it must be a list of names, one or several of metric",
        ),
        (["--device", "cuda:1"], "the command line: device is 'cuda:1', but it must be a device type of torch such as"),
        (["--optimizer", "lion"], "there is no optimizer 'lion'; give adam, adamw, sgd, one of torch.optim (ASGD, "),
        (["--lr-schedule", "cosin"], "lr_schedule is 'cosin', but it must be one of constant, step, cosine, linear"),
        (["--trials", "0"], "the command line: trials is 0, but it must be a whole number of at least 1"),
        (["--learning-rate", "nan"], "the command line: learning_rate is nan, but it must be a number above 0"),
        (["--batch-size", "-1"], "the command line: batch_size is -1, but it must be a whole number of at least 1"),
        (["--epochs", "1"], "a search space needs at least 2 epochs, not 1"),
        (["--config", "none.yaml"], "the configuration file none.yaml cannot be read: No such file or directory"),
        (["--tracking-uri", "http://127.0.0.1:9"], "nothing can be tracked at http://127.0.0.1:9 (ConnectionError)"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_settings_are_refused_before_anything_is_made(surgery: Surgery, flags: list[str], sentence: str) -> None:
    assert sentence in surgery.refused("study", *flags, "--out", "out")


@pytest.mark.parametrize(
    ("step", "sentence"),
    [
        ("{when: 1ep, layer: fc1, op: min_weight, keep: 1.5}", "MinWeight: keep is 1.5, but it must lie above 0"),
        (
            "{when: 1ep, layer: fc1, op: cut}",
            "there is no operation 'cut'; there are collapse, compact, deepen, drop_block",
        ),
        ("{when: 1ep, layer: fc9, op: min_weight}", "names the layer 'fc9'; this network has fc1, fc2"),
        ("{when: 1ep, layer: fc1, op: min_weight, share: 1}", "min_weight has no share; it has keep"),
        ("{when: 3 epochs, layer: fc1, op: min_weight}", "'3 epochs' is not a moment of training; write it like '3ep'"),
        ("{when: 4ep, layer: fc1, op: min_weight}", "a step at 4ep, but training ends after 4 epochs"),
        ("{layer: fc1, op: min_weight}", "a step of the schedule lacks when"),
        ("[when, layer]", "mine.yaml: schedules is [[['when', 'layer']]], but it must be a list of schedules"),
    ],
)
def test_wrong_schedules_are_refused_before_anything_is_made(surgery: Surgery, step: str, sentence: str) -> None:
    Path("mine.yaml").write_text(f"schedules:\n- - {step}\n")
    assert sentence in surgery.refused("study", "--preset", "smoke", "--config", "mine.yaml", "--out", "out")


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("accumulate: 100000", "accumulate is 100000, but an epoch has 34 batches of 32 images; give at most 34"),
        ("cutout: 9", "cutout is 9, but the images are 8 × 8 pixels"),
        ("ema: 0.99999", "ema is 0.99999, but the run has 136 steps, after which 100% of the average would still be"),
        ("targets: [95]", "targets has 95, but accuracy is a fraction; give numbers above 0 and at most 1"),
        *(
            (f"lr_schedule: cosine\nschedules:\n- - {{when: 3ep, layer: fc1, op: min_weight, {after}}}", sentence)
            for after, sentence in {
                "after: rewarm, after_length: 99ep": "then rewarm 99ep' rewarms the learning rate over 3,366 steps, "
                "but training ends 34 steps later; give a shorter after_length",
                "after: rewarm, after_length: 35it": "over 35 steps, but training ends 34 steps later",
                "freeze: 2ep": "freezes layers over 68 steps, but training ends 34 steps later; give a shorter freeze",
                "after: rewind, after_length: 4ep": "rewinds the learning rate by 136 steps, but 102 have been",
            }.items()
        ),
    ],
)
def test_numbers_that_the_data_or_the_run_cannot_fill_are_refused(surgery: Surgery, line: str, sentence: str) -> None:
    Path("mine.yaml").write_text(line)
    assert sentence in surgery.refused("study", "--preset", "smoke", "--config", "mine.yaml", "--out", "out")


@pytest.mark.parametrize("command", ["resume", "compare", "report", "ui"])
def test_a_folder_without_a_study(surgery: Surgery, command: str) -> None:
    assert surgery.refused(command, "none") == "there is no study in none (it has no study.json)"
    Path("broken").mkdir()
    Path("broken/study.json").write_text('{"format": 1, "sett')
    assert "broken/study.json cannot be read" in surgery.refused(command, "broken")


def test_a_page_of_ones_own_that_fails_comes_after_the_answer(surgery: Surgery) -> None:
    Path("my_pages.py").write_text("def broken(results):\n    return results['nothing']\n")
    page = f"{Path.cwd()}/my_pages.py:broken"
    Folder.make(Path("s"), Settings(page=page), {"fc1": 8})
    code, out, err = surgery("report", "s")
    assert code == 2 and "Report   s/report.html" in out and Path("s/report.html").exists()
    assert f"surgery: the report is written, but the page {page} could not be made of 0 training runs" in err


def test_no_study_to_show(surgery: Surgery) -> None:
    assert surgery.refused("ui") == "there is no study under runs/; give the study's folder"


def test_a_folder_that_is_taken(surgery: Surgery) -> None:
    Path("out").mkdir()
    Path("out/precious.txt").write_text("mine")
    assert surgery.refused("study", "--out", "out") == "out is not empty; choose another --out"
    Path("out/study.json").write_text("{}")
    assert "study.json is not of the format" in surgery.refused("study", "--out", "out")


def test_a_folder_that_cannot_be_made(surgery: Surgery) -> None:
    assert surgery.refused("study", "--out", "/proc/none/out").startswith("/proc/none/out cannot be made: ")


def test_a_gpu_that_is_not_there(surgery: Surgery, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("network_surgery.study.search.cluster.joined", lambda *_: contextlib.nullcontext([node(CPU=2)]))
    code, _, err = surgery("study", "--preset", "smoke", "--device", "cuda", "--out", "out")
    assert code == 2 and err.splitlines()[-1].startswith("surgery: device is 'cuda', but ")
    assert not Path("out").exists()


def test_a_cluster_that_is_not_there(surgery: Surgery) -> None:
    said = surgery.refused("study", "--preset", "smoke", "--address", "127.0.0.1:1", "--out", "out")
    assert said.startswith("there is no Ray cluster at 127.0.0.1:1 (")
    assert "HOST:PORT" in surgery.refused("study", "--preset", "smoke", "--address", "127.0.0.1:head", "--out", "out")


def test_the_layers_of_a_network(surgery: Surgery) -> None:
    code, out, err = surgery("layers", "--preset", "smoke")
    assert (code, len(err.splitlines())) == (0, 1)
    for word in ("mlp on digits, untrained", "fc1", "fc2", "128", "64", "dead", "99%"):
        assert word in out
    assert "fc3" not in out.split("Not operated on")[0]


def test_layers_after_training_and_a_model_of_this_folder(surgery: Surgery) -> None:
    Path("net_of_this_test.py").write_text(
        "from torch import nn\n"
        "def make(shape, classes):\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(64, 17), nn.ReLU(), nn.Linear(17, classes))\n"
    )
    for model in ("net_of_this_test:make", "net_of_this_test.py:make"):
        code, out, err = surgery("layers", "--model", model, "--epochs", "1")
        assert (code, len(err.splitlines())) == (0, 1) and "trained for 1 epoch" in out and "17" in out


def test_the_layers_of_a_residual_network_on_a_folder_of_images(surgery: Surgery) -> None:
    random = np.random.default_rng(0)
    for part in ("train", "test"):
        for name in ("cat", "dog"):
            (Path("images") / part / name).mkdir(parents=True)
            for i in range(4):
                pixels = random.integers(0, 256, (32, 32, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(Path("images") / part / name / f"{i}.png")
    code, out, err = surgery("layers", "--data", "folder:images", "--model", "torchvision:resnet18")
    assert (code, len(err.splitlines())) == (0, 1)
    for word in ("torchvision:resnet18 on", "layer1.0.conv1", "layer4.1.conv1", "512"):
        assert word in out


def test_the_layers_of_a_torchvision_model_without_data(surgery: Surgery) -> None:
    code, out, err = surgery("layers", "--model", "torchvision:squeezenet1_1", "--image", "3x64x64")
    assert (code, len(err.splitlines())) == (0, 1)
    assert "on random images of 3 × 64 × 64" in out and "features.3.squeeze" in out
    assert "--image is '64', but it must be" in surgery.refused("layers", "--image", "64")
    assert "goes with neither --data nor --epochs" in surgery.refused("layers", "--image", "1x8x8", "--epochs", "2")


def test_experiments_are_listed_with_their_questions(surgery: Surgery) -> None:
    code, out, _ = surgery("experiment")
    assert code == 0 and "weights: Which weights go?" in out and "units: Which units go" in out


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["nope"], "there is no experiment 'nope'; give one of "),
        (["units", "--seeds", "1"], "seeds is 1; a difference between runs can be tested from 2 seeds on"),
        (["units", "--iterations", "3"], "iterations is 3; 8 looks need 64 at least"),
        (["units", "--data", "folder:nowhere"], "there is no folder"),
        (["units", "--rows", "nowhere.gz"], "the rows nowhere.gz cannot be read (No such file or directory)"),
    ],
)
def test_experiments_refuse_bad_input(surgery: Surgery, arguments: list[str], sentence: str) -> None:
    assert sentence in surgery.refused("experiment", *arguments)


def test_kept_rows_of_another_experiment_or_with_other_options_are_refused(surgery: Surgery) -> None:
    from network_surgery.study.bench.rows import FILE, Measured, Rows

    about = {"experiment": "units", "options": {"seeds": 5}, "facts": {}, "command": "", "machine": {}}
    Measured(about, Rows()).save(Path(FILE))
    assert "are of the experiment units" in surgery.refused("experiment", "weights", "--rows", FILE)
    refused = surgery.refused("experiment", "units", "--out", ".", "--seeds", "4")
    assert "measured with seeds 5, not 4; give another --out" in refused
