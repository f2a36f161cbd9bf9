"""Text: what is split and cut is what lies on disk; a small GPT learns, is operated on and resumed like any network."""

from __future__ import annotations

import io
import json
import math
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console
from rich.table import Table

from network_surgery.ops import Schedule
from network_surgery.study import conduct
from network_surgery.study.compose import compose
from network_surgery.study.config import Settings
from network_surgery.study.errors import StudyError
from network_surgery.study.layers import Layers, of_data
from network_surgery.study.task import build
from network_surgery.study.task.check import try_task
from network_surgery.study.task.samples import Batches
from network_surgery.study.task.text import LEFT_OUT, Corpus, TextTask, cut, load
from network_surgery.study.task.text import build as build_network
from network_surgery.study.training.cell import Cell
from network_surgery.study.training.examine import check
from network_surgery.study.training.run import run
from tests.study.nodes import one_slot
from tests.study.training.test_training import without_times

CPU = torch.device("cpu")
#: The smallest study of text that learns anything.
SMALL = Settings(
    task="text", data="stdlib", model="gpt", context=32, train_images=256, epochs=3, batch_size=16, learning_rate=3e-3,
    signal_images=32, held_out=32, probe=2,
)  # fmt: skip
HEADS, MLP = "blocks.0.attention.query:heads", "blocks.1.mlp.gate"
#: What each sentence is of, in which order.
SENTENCES = [f"Sentence {number} of this file is about the number {number * number}.\n" for number in range(40)]


@pytest.fixture(scope="module")
def task() -> TextTask:
    made = build(SMALL)
    assert isinstance(made, TextTask)
    return made


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Five text files, one of them in a folder, and what systems hide beside them."""
    root = tmp_path / "my texts"
    (root / "more").mkdir(parents=True)
    (root / ".hidden").mkdir()
    (root / ".hidden" / "x.txt").write_text("no")
    for number, name in enumerate(("a.txt", "b.txt", "c.md", "d", "more/e.txt")):
        (root / name).write_text("".join(f"{number}: {sentence}" for sentence in SENTENCES))
    return root


def refusal(root: Path | str, validation: float = 0.25) -> str:
    with pytest.raises(StudyError) as caught:
        load(f"folder:{root}", validation)
    message = str(caught.value)
    assert message and "\n" not in message
    return message


# -- the text ------------------------------------------------------------------------------------------------------


def test_targets_are_the_bytes_that_follow() -> None:
    windows = cut(b"0123456789abc", 4)
    assert [row.tobytes() for row in windows.inputs] == [b"0123", b"4567", b"89ab"]
    assert [row.tobytes() for row in windows.targets] == [b"1234", b"5678", b"9abc"]
    inputs, targets = Batches(windows, CPU).take(slice(1, 3))
    assert inputs.dtype == torch.int64 and inputs.shape == targets.shape == (2, 4)
    assert len(cut(b"0123", 4)) == 0 and len(cut(b"01234", 4)) == 1


def test_files_are_split_whole_and_nothing_is_lost(root: Path) -> None:
    corpus = load(f"folder:{root}", 0.25)
    parts = [corpus.train, corpus.validation, corpus.test]
    found = [part.decode().splitlines(keepends=True) for part in parts]
    files = [{line[0] for line in lines} for lines in found]
    assert [len(each) for each in files] == [3, 1, 1] and set().union(*files) == set("01234")
    assert sum(map(len, parts)) == sum(path.stat().st_size for path in root.rglob("*") if path.name not in ("x.txt",)
                                       and path.is_file())  # fmt: skip
    assert load(f"folder:{root}", 0.25) == corpus


def test_folders_that_are_split_already_stay_so(root: Path) -> None:
    for part in ("train", "test"):
        (root / part).mkdir()
    for name in ("a.txt", "b.txt", "c.md"):
        (root / name).rename(root / "train" / name)
    (root / "d").rename(root / "test" / "d")
    corpus = load(f"folder:{root}", 0.25)
    assert corpus.test.startswith(b"3: ") and len(corpus.train) > len(corpus.validation) > 0
    (root / "validation").mkdir()
    (root / "more" / "e.txt").rename(root / "validation" / "e.txt")
    corpus = load(f"folder:{root}", 0.25)
    assert corpus.validation.startswith(b"4: ") and {line[:1] for line in corpus.train.splitlines()} == {
        b"0",
        b"1",
        b"2",
    }


def test_the_standard_library_is_that_of_this_python_without_its_tests(task: TextTask) -> None:
    corpus = load("stdlib", 0.25)
    assert task.note == f"{task.fingerprint()} in windows of 32 bytes"
    assert task.note.startswith("the standard library of Python 3.") and " bytes, fingerprint " in task.note
    sizes = [len(corpus.train), len(corpus.validation), len(corpus.test)]
    assert sum(sizes) > 5_000_000 and min(sizes) > sum(sizes) / 20
    assert b"def parse_args" in corpus.train + corpus.validation + corpus.test and "test" in LEFT_OUT


def test_the_fingerprint_is_of_the_bytes(root: Path) -> None:
    def name() -> str:
        return str(TextTask(load(f"folder:{root}", 0.25), context=8).fingerprint())

    before = name()
    assert before.startswith("my texts (") and name() == before
    text = (root / "d").read_text()
    (root / "d").write_text(text.replace("Sentence 7", "sentence 7"))
    assert name() != before


def test_windows_are_thinned_by_one_factor_and_spread_over_the_text(root: Path) -> None:
    corpus = load(f"folder:{root}", 0.25)
    whole, few = TextTask(corpus, 16), TextTask(corpus, 16, windows=60)
    assert len(few.train) + len(few.validation) == 60
    assert len(few.test) == round(60 / (len(whole.train) + len(whole.validation)) * len(whole.test))
    rows = {row.tobytes() for row in whole.train.inputs}
    assert all(row.tobytes() in rows for row in few.train.inputs)
    np.testing.assert_array_equal(few.train.inputs[[0, -1]], whole.train.inputs[[0, -1]])
    assert len(TextTask(corpus, 16, windows=10**6).train) == len(whole.train)


@pytest.mark.parametrize("name", ["digits", "stdlib:", "folder:", "text"])
def test_text_of_an_unknown_name(name: str) -> None:
    with pytest.raises(StudyError, match=f"there is no text '{name}'; give 'stdlib' or 'folder:PATH'"):
        load(name, 0.25)


def test_folders_that_will_not_do(root: Path, tmp_path: Path) -> None:
    assert "there is no folder" in refusal(tmp_path / "nothing")
    (tmp_path / "empty").mkdir()
    assert refusal(tmp_path / "empty").endswith("holds no text file")
    (tmp_path / "empty" / "one.txt").write_text("only")
    assert "has 1 text file; it takes one at least for each of training" in refusal(tmp_path / "empty")
    (root / "train").mkdir()
    assert refusal(root).endswith("test; there must be both")
    (root / "test").mkdir()
    assert refusal(root).endswith("train holds no text file")
    (root / "train").rmdir()
    (root / "test").rmdir()
    (root / "picture.png").write_bytes(b"\x89PNG\0\0")
    assert "picture.png is no text (it holds a byte of zero)" in refusal(root)


@pytest.mark.parametrize(("name", "value"), [("image_size", 8), ("stream", "true"), ("augment", "flip")])
def test_settings_of_images_are_refused(name: str, value: Any) -> None:
    with pytest.raises(StudyError, match=f"{name} is {value!r}, but it is for task images alone"):
        build(replace(SMALL, **{name: value}))


def test_a_text_that_is_too_short() -> None:
    with pytest.raises(StudyError, match="the validation text of tiny has 9 bytes, but two windows of 8 bytes"):
        TextTask(Corpus("tiny", b"x" * 50, b"x" * 9, b"x" * 50), context=8)


# -- the network ---------------------------------------------------------------------------------------------------


def test_networks_that_are_not_there() -> None:
    with pytest.raises(StudyError, match="there is no model 'small_cnn' of text; give one of gpt, gpt_gelu"):
        build_network("small_cnn", 256, 32)
    with pytest.raises(StudyError, match="cannot be loaded"):
        build_network("no_such_module:make", 256, 32)


def test_a_network_of_one_s_own(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(
        "from torch import nn\n"
        "def make(vocabulary, context):\n"
        "    table = nn.Embedding(vocabulary, 8)\n"
        "    return nn.Sequential(table, nn.Linear(8, 12), nn.ReLU(), nn.Linear(12, vocabulary))\n"
        "def nothing(vocabulary, context):\n    return context\n"
        "def fails(vocabulary, context):\n    raise ValueError('no')\n"
    )
    settings = replace(SMALL, model=f"{file}:make")
    assert set(check(settings, build(settings))) == {"0", "1"}
    for name, right in (("nothing", "made a int, not"), ("fails", "failed for windows of 32 bytes: no")):
        with pytest.raises(StudyError, match=right):
            build_network(f"{file}:{name}", 256, 32)


# -- training ------------------------------------------------------------------------------------------------------


def test_it_learns_more_than_how_often_each_byte_comes(task: TextTask) -> None:
    outcome = run(Cell("original", 0, test=True), task, replace(SMALL, epochs=8), CPU)
    counts = Counter(task.train.targets.flatten().tolist())
    frequencies = torch.tensor([counts[byte] + 1.0 for byte in range(256)])
    logs = (frequencies / frequencies.sum()).log2()
    alone = float(-logs[torch.tensor(task.validation.targets).long()].mean())
    assert outcome["validation_metric"] < alone - 0.2
    for part in ("validation", "test"):
        metrics = outcome["epochs"][-1]["validation_metrics"] if part == "validation" else outcome["test_metrics"]
        assert outcome[f"{part}_metric"] == metrics["bits per byte"]
        assert math.isclose(metrics["bits per byte"], outcome[f"{part}_loss"] / math.log(2), rel_tol=1e-5)
        assert 0.1 < metrics["next-byte accuracy"] < 1
    assert set(outcome["epochs"][1]["redundancy"]) == set(check(SMALL, task))


def steps(*given: dict[str, Any]) -> list[dict[str, Any]]:
    return Schedule.from_data(given).to_data()


OPERATIONS: list[tuple[str, dict[str, Any]]] = [
    (HEADS, {"op": "mean_replace", "keep": 0.5}),
    (HEADS, {"op": "eigen_remove", "keep": 0.5}),
    (HEADS, {"op": "pcns", "keep": 0.5}),
    (HEADS, {"op": "weak_expand", "grow": 0.5}),
    (MLP, {"op": "remove_dead", "threshold": 0.9}),
    (MLP, {"op": "revive", "threshold": 0.9, "kind": "either"}),
    (MLP, {"op": "pcns", "variance_threshold": 0.1}),
    (MLP, {"op": "mean_replace", "keep": 0.5, "score": "mrs"}),
    (MLP, {"op": "min_weight", "keep": 0.5, "repair": ["least_squares"]}),
    (MLP, {"op": "zero_expand", "grow": 0.5}),
    ("embedding", {"op": "remove_dead", "threshold": 0.9, "kind": "frozen"}),
    ("embedding", {"op": "eigen_remove", "keep": 0.5, "weights": "reduced"}),
    ("embedding", {"op": "weak_expand", "grow": 0.5}),
]


@pytest.mark.parametrize(("layer", "operation"), OPERATIONS, ids=[f"{o['op']} on {n}" for n, o in OPERATIONS])
def test_every_operation_in_training(task: TextTask, layer: str, operation: dict[str, Any]) -> None:
    settings = replace(SMALL, epochs=2, train_images=64, probe=0)
    few = build(settings)
    outcome = run(Cell("surgery", 0, steps({"when": "1ep", "layer": layer, **operation})), few, settings, CPU)
    (record,) = outcome["operations"]
    before, after = record["units_before"], record["units_after"]
    name = operation["op"]
    assert after > before if "expand" in name else after == before if name == "revive" else after < before
    assert math.isfinite(outcome["validation_loss"]) and record["flops_after"] == outcome["flops"]
    if layer != "embedding" and "expand" in name:  # exact
        assert math.isclose(record["loss_after"], record["loss_before"], rel_tol=1e-5)


def test_weights_are_pruned_and_what_is_cut_off_goes(task: TextTask) -> None:
    prune = {"when": "1ep", "layer": "*", "op": "prune_weights", "fraction": 0.97, "scope": "global"}
    compact = [{"when": "1ep", "layer": name, "op": "compact"} for name in (MLP, HEADS, "embedding")]
    outcome = run(Cell("surgery", 0, steps(prune, *compact)), task, replace(SMALL, epochs=2), CPU)
    pruned, *compacted = outcome["operations"]
    assert pruned["parameters_after"] < 0.2 * pruned["parameters_before"]  # tables of embeddings are no weights
    assert any(each["units_after"] < each["units_before"] for each in compacted)


@pytest.mark.parametrize("after", [1, 2])
def test_a_resumed_run_equals_an_uninterrupted_one(after: int, task: TextTask, tmp_path: Path) -> None:
    schedule = steps(
        {"when": "1ep", "layer": HEADS, "op": "mean_replace", "keep": 0.5, "after": "rewind"},
        {"when": "2ep", "layer": MLP, "op": "weak_expand", "grow": 0.25, "after": "rewarm"},
    )
    cell, saved = Cell("search", 1, schedule), tmp_path / "cell.pt"
    settings = replace(SMALL, lr_schedule="cosine", warmup=0.1, ema=0.9, clip=0.5, accumulate=2)
    whole = run(cell, task, settings, CPU)

    def interrupt(epoch: dict[str, Any]) -> None:
        if epoch["epoch"] == after + 1:  # the checkpoint of the epoch before is there
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(cell, task, settings, CPU, interrupt, saved)
    resumed: list[float] = []
    again = run(cell, task, settings, CPU, lambda epoch: resumed.append(epoch["epoch"]), saved)
    assert resumed == [float(epoch) for epoch in range(after + 1, 4)]
    assert without_times(again) == without_times(whole)


def test_the_table_of_layers(task: TextTask) -> None:
    head, layers, *_, pinned = of_data(SMALL, 0)
    assert isinstance(layers, Layers) and isinstance(pinned, Table)
    assert "gpt on stdlib" in str(head) and "FLOPs a window" in str(head)
    assert list(layers.rows)[:3] == ["embedding", HEADS, "blocks.0.mlp.gate"]
    assert "it is the network's output" in pinned.columns[0]._cells


def test_the_preset_is_the_task_s_own() -> None:
    settings = compose(None, None, {"task": "text"})
    assert (settings.task, settings.data, settings.model) == ("text", "stdlib", "gpt")
    assert settings == compose("text", None, {})


def test_a_whole_study(tmp_path: Path) -> None:
    """Through Ray and MLflow to a report, at the smallest size."""
    shrink = {"when": "1ep", "layer": MLP, "op": "mean_replace", "keep": 0.5}
    settings = replace(
        SMALL, epochs=2, train_images=48, probe=0, schedules=([shrink],), arms=("original", "surgery", "restart"),
        seeds=1, device="cpu",
    )  # fmt: skip
    console = Console(record=True, width=200, file=io.StringIO())
    with one_slot(), conduct.begin(settings, tmp_path / "study") as (folder, task):
        assert conduct.proceed(folder, task, console)
        conduct.show(json.loads(folder.results.read_text()), folder, console)
    outcomes = {record.cell.arm: record.result for record in folder.records()}
    assert set(outcomes) == {"original", "surgery", "restart"}
    assert outcomes["restart"]["parameters"] == outcomes["surgery"]["parameters"] < outcomes["original"]["parameters"]
    assert all(0 < outcome["test_metric"] < 9 for outcome in outcomes.values())
    assert folder.report.exists() and "bits per byte" in console.export_text()


# -- transformers --------------------------------------------------------------------------------------------------


def test_without_transformers_one_sentence_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "transformers", None)
    with pytest.raises(StudyError, match="model 'transformers:gpt2' needs transformers: pip install"):
        build_network("transformers:gpt2", 256, 32)


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_a_model_of_transformers_is_trained_and_operated_on(kind: str, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    configs = {
        "llama": transformers.LlamaConfig(
            vocab_size=300, hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=4,
            max_position_embeddings=32,
        ),
        "gpt2": transformers.GPT2Config(
            vocab_size=256, n_embd=24, n_layer=1, n_head=2, n_positions=32, bos_token_id=0, eos_token_id=0
        ),
    }  # fmt: skip
    configs[kind].save_pretrained(tmp_path)
    settings = replace(SMALL, model=f"transformers:{tmp_path}", epochs=2, train_images=64, probe=0)
    task = build(settings)
    layers = check(settings, task)
    mlp = next(name for name in layers if "mlp" in name)
    outcome = run(
        Cell("surgery", 0, steps({"when": "1ep", "layer": mlp, "op": "mean_replace", "keep": 0.5})), task, settings, CPU
    )
    assert outcome["operations"][0]["units_after"] == layers[mlp] // 2
    if kind == "llama":
        assert "model.layers.0.self_attn.q_proj:heads" in layers
    assert not any(parameter.isnan().any() for parameter in try_task(task).parameters())


def test_models_of_transformers_that_will_not_do(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    for wrong, right in (
        ({"vocab_size": 200}, "has a vocabulary of 200, but bytes need 256"),
        ({"max_position_embeddings": 16}, "has 16 positions, but windows have 32 bytes; lower context"),
    ):
        transformers.LlamaConfig(**{"vocab_size": 256, **wrong}).save_pretrained(tmp_path)
        with pytest.raises(StudyError, match=right):
            build_network(f"transformers:{tmp_path}", 256, 32)
    transformers.ViTConfig().save_pretrained(tmp_path)
    with pytest.raises(StudyError, match="is no causal language model"):
        build_network(f"transformers:{tmp_path}", 256, 32)
    with pytest.raises(StudyError, match="on this machine, and nothing is downloaded"):
        build_network("transformers:nobody/no-such-model", 256, 32)
