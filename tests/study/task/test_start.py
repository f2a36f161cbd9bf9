"""What training starts from: files of every kind, wrong ones, and which arms begin with which weights."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from network_surgery.ops import Anatomy, MinWeight, describe, operate, save
from network_surgery.study import models
from network_surgery.study.config import Settings
from network_surgery.study.errors import StudyError
from network_surgery.study.references import theirs
from network_surgery.study.task import start as starting
from network_surgery.study.task.check import fresh
from network_surgery.study.task.images import ImageNetScaled, ImageTask
from network_surgery.study.task.samples import Batches
from network_surgery.study.training.cell import Cell
from network_surgery.study.training.evaluation import evaluate
from network_surgery.study.training.examine import check
from network_surgery.study.training.restart import redraw
from network_surgery.study.training.run import make_network, run

CPU = torch.device("cpu")
SETTINGS = Settings(
    model="mlp", train_images=200, epochs=1, batch_size=50, held_out=20, signal_images=20, probe=0, device="cpu"
)


@pytest.fixture(scope="module")
def digits() -> ImageTask:
    return ImageTask.of(SETTINGS)


@pytest.fixture(scope="module")
def trained(digits: ImageTask) -> nn.Module:
    """A network that knows its images somewhat."""
    torch.manual_seed(7)
    model = fresh(digits)
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    inputs, targets = Batches(digits.train, CPU).take(slice(None))
    for _ in range(20):
        optimizer.zero_grad()
        digits.training_loss(model(inputs), targets).backward()
        optimizer.step()
    return model


def begun(path: Path, task: ImageTask, **changed: Any) -> nn.Module:
    """The network that a fine-tuning begins with."""
    torch.manual_seed(3)
    return make_network(Cell("surgery", 3), task, replace(SETTINGS, start=str(path), **changed))


def sharded(weights: dict[str, Tensor], path: Path) -> Path:
    safetensors = pytest.importorskip("safetensors.torch")
    path.mkdir()
    names = sorted(weights)
    parts = {"model-1.safetensors": names[:2], "model-2.safetensors": names[2:]}
    for file, inside in parts.items():
        safetensors.save_file({name: weights[name] for name in inside}, path / file)
    index = {"weight_map": {name: file for file, inside in parts.items() for name in inside}}
    (path / "model.safetensors.index.json").write_text(json.dumps(index))
    return path


def whole(weights: dict[str, Tensor], path: Path, file: str = "model.safetensors") -> Path:
    safetensors = pytest.importorskip("safetensors.torch")
    path.mkdir()
    safetensors.save_file(weights, path / file)
    return path if file == "model.safetensors" else path / file


def of_torch(content: Any, path: Path) -> Path:
    torch.save(content, path)
    return path


FORMS: dict[str, Callable[[dict[str, Tensor], Path], Path]] = {
    "state_dict": of_torch,
    "under state_dict": lambda weights, path: of_torch({"state_dict": weights, "epoch": 3}, path),
    "under model": lambda weights, path: of_torch({"model": weights}, path),
    "under model_state_dict": lambda weights, path: of_torch({"model_state_dict": weights}, path),
    "of DataParallel": lambda weights, path: of_torch({f"module.{n}": t for n, t in weights.items()}, path),
    "compiled, in Lightning": lambda weights, path: of_torch(
        {"state_dict": {f"model._orig_mod.{n}": t for n, t in weights.items()}}, path
    ),
    "double precision": lambda weights, path: of_torch({n: t.double() for n, t in weights.items()}, path),
    "safetensors": lambda weights, path: whole(weights, path, "w.safetensors"),
    "folder": whole,
    "shards": sharded,
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_weights_back(form: str, digits: ImageTask, trained: nn.Module, tmp_path: Path) -> None:
    model = begun(FORMS[form](trained.state_dict(), tmp_path / "weights"), digits)
    torch.testing.assert_close(dict(model.state_dict()), dict(trained.state_dict()), rtol=0, atol=0)


def test_what_ops_save_wrote_goes_on_at_its_sizes(digits: ImageTask, trained: nn.Module, tmp_path: Path) -> None:
    model = begun(of_torch(trained.state_dict(), tmp_path / "w.pt"), digits)
    inputs = Batches(digits.test, CPU).take(slice(0, 9))[0]
    operate(Anatomy(model, inputs)["fc1"], MinWeight(0.5))
    save(model, tmp_path / "cut.pt")
    again = begun(tmp_path / "cut.pt", digits)
    torch.testing.assert_close(again.eval()(inputs), model.eval()(inputs), rtol=0, atol=0)
    settings = replace(SETTINGS, start=str(tmp_path / "cut.pt"))
    assert check(settings, digits) == {"fc1": 64, "fc2": 64}
    outcome = run(Cell("surgery", 3, [{"when": "0it", "layer": "fc1", "op": "min_weight"}]), digits, settings, CPU)
    assert outcome["architecture"]["shapes"]["fc1.weight"] == [32, 64]


def test_a_head_of_another_size_stays_fresh(digits: ImageTask, trained: nn.Module, tmp_path: Path) -> None:
    weights = dict(trained.state_dict())
    weights |= {"fc3.weight": torch.ones(7, 64), "fc3.bias": torch.ones(7)}
    path = of_torch(weights, tmp_path / "w.pt")
    model = begun(path, digits)
    torch.manual_seed(3)
    torch.testing.assert_close(model.fc3.state_dict(), fresh(digits).fc3.state_dict(), rtol=0, atol=0)
    torch.testing.assert_close(model.fc1.state_dict(), trained.fc1.state_dict(), rtol=0, atol=0)
    note = starting.note(replace(SETTINGS, start=str(path)), digits)
    assert note == f"training starts from {path}; fresh, as of another size: fc3.weight 10×64, fc3.bias 10."


def test_a_backbone_of_another_size_is_no_head(digits: ImageTask, trained: nn.Module, tmp_path: Path) -> None:
    weights = dict(trained.state_dict()) | {"fc2.weight": torch.ones(9, 128), "fc2.bias": torch.ones(9)}
    weights |= {"fc3.weight": torch.ones(10, 9)}
    with pytest.raises(StudyError, match=r"another network: fc2.weight is 9×128 there and 64×128 in the network"):
        begun(of_torch(weights, tmp_path / "w.pt"), digits)


class Trap:
    """What a pickle would run."""

    def __reduce__(self) -> Any:
        return exec, ("raise SystemExit('it was run')",)


def without(weights: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    return {key: value for key, value in weights.items() if key != name}


WRONG: dict[str, tuple[Callable[[dict[str, Tensor], Path], Any], str]] = {
    "code": (lambda w, p: of_torch({"state_dict": w, "run": Trap()}, p), "holds objects, not only tensors"),
    "a network": (lambda w, p: of_torch(nn.Linear(2, 2), p), "holds objects, not only tensors"),
    "a pickle": (lambda w, p: p.write_bytes(pickle.dumps(Trap())), "not opened|damaged"),
    "a number": (lambda w, p: of_torch(3, p), "holds no state_dict, but a int"),
    "an optimizer": (lambda w, p: of_torch({"lr": 0.1}, p), "holds no state_dict, but a dict"),
    "text": (lambda w, p: p.write_text("weights"), "is damaged, or no file that torch.save wrote$"),
    "nothing": (lambda w, p: p.write_bytes(b""), "is damaged, or no file that torch.save wrote"),
    "cut off": (lambda w, p: p.write_bytes(of_torch(w, p).read_bytes()[:-900]), "is damaged, or no file"),
    "missing": (lambda w, p: None, "there is no such file or folder"),
    "an empty folder": (lambda w, p: p.mkdir(), "has neither model.safetensors nor"),
    "a tensor less": (lambda w, p: of_torch(without(w, "fc2.bias"), p), "is of another network: it lacks fc2.bias"),
    "another network": (lambda w, p: of_torch({"w": torch.ones(2)}, p), r"it lacks fc1.weight, .* and 2 more"),
    "sparse": (lambda w, p: of_torch(w | {"fc1.bias": w["fc1.bias"].to_sparse()}, p), "is a sparse_coo tensor"),
    "meta": (lambda w, p: of_torch(w | {"fc1.bias": w["fc1.bias"].to("meta")}, p), "fc1.bias is a meta tensor"),
    "complex": (lambda w, p: of_torch(w | {"fc1.bias": w["fc1.bias"] * 1j}, p), r"complex numbers \(complex64\)"),
    "codes": (lambda w, p: of_torch(w | {"fc1.bias": w["fc1.bias"].to(torch.int8)}, p), r"whole numbers \(int8\)"),
    "not a number": (lambda w, p: of_torch(w | {"fc1.bias": w["fc1.bias"] / 0 * 0}, p), "fc1.bias is not finite"),
    "another save": (lambda w, p: save(nn.Linear(2, 2), p), "is of another network"),
}  # fmt: skip


@pytest.mark.parametrize("kind", WRONG)
def test_wrong_files_are_refused_in_a_sentence(
    kind: str, digits: ImageTask, trained: nn.Module, tmp_path: Path
) -> None:
    write, words = WRONG[kind]
    write(dict(trained.state_dict()), tmp_path / "w.pt")
    with pytest.raises(StudyError, match=words) as refused:
        begun(tmp_path / "w.pt", digits)
    assert "\n" not in str(refused.value)


def test_wrong_folders_of_safetensors(digits: ImageTask, trained: nn.Module, tmp_path: Path) -> None:
    path = sharded(dict(trained.state_dict()), tmp_path / "shards")
    (path / "model-2.safetensors").write_bytes(b"\0" * 99)
    with pytest.raises(StudyError, match=r"model-2.safetensors is damaged"):
        begun(path, digits)
    (path / "model-2.safetensors").unlink()
    with pytest.raises(StudyError, match=r"names model-2.safetensors, which is missing"):
        begun(path, digits)
    (path / "model.safetensors.index.json").write_text("[]")
    with pytest.raises(StudyError, match="it has no weight_map"):
        begun(path, digits)


def test_torchvision_needs_a_model_of_torchvision_and_its_weights(
    digits: ImageTask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(StudyError, match="the model is 'mlp'; give --model torchvision:NAME"):
        starting.of_model(replace(SETTINGS, start="torchvision"))
    torchvision = pytest.importorskip("torchvision")
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    starting._torchvision.cache_clear()

    def offline(*args: Any, **more: Any) -> None:
        raise OSError("no route to host")

    settings = replace(SETTINGS, start="torchvision", model="torchvision:resnet18")
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", offline)
    with pytest.raises(StudyError, match=r"neither in .* nor could they be fetched from https.*\(no route to host\)"):
        starting.of_model(settings)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        theirs = torchvision.models.resnet18()
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", lambda *args, **more: theirs.state_dict())
    start = starting.of_model(settings)
    assert start is not None and start.digest
    model = models.build("torchvision:resnet18", (3, 32, 32), 5)
    assert "fresh, as of another size: fc.weight 5×512, fc.bias 5" in start.lay(model)
    torch.testing.assert_close(model.conv1.weight, theirs.conv1.weight)
    starting._torchvision.cache_clear()


def test_a_changed_file_is_noticed(digits: ImageTask, trained: nn.Module, tmp_path: Path) -> None:
    path = of_torch(trained.state_dict(), tmp_path / "w.pt")
    settings = starting.settle(replace(SETTINGS, start=str(path)), digits)
    assert settings.start_digest and starting.load(settings, digits) is not None
    cell = Cell("surgery", 3)
    of_torch({name: tensor + 1 for name, tensor in trained.state_dict().items()}, path)
    with pytest.raises(StudyError, match=r"this study began with .*: the weights have changed"):
        starting.load(settings, digits)
    other = starting.settle(replace(SETTINGS, start=str(path)), digits)
    assert len({cell.key(each) for each in (SETTINGS, settings, other)}) == 3


def test_a_study_with_a_start_has_the_arms_for_it(digits: ImageTask, trained: nn.Module, tmp_path: Path) -> None:
    path = of_torch(trained.state_dict(), tmp_path / "w.pt")
    assert {"operate_first", "restart"} < set(starting.settle(replace(SETTINGS, start=str(path)), digits).arms)
    few = replace(SETTINGS, start=str(path), arms=("surgery", "restart"))
    assert starting.settle(few, digits).arms == ("surgery", "restart")
    assert starting.settle(SETTINGS, digits) == SETTINGS


def test_fine_tuning_starts_at_its_metric_and_a_restart_does_not(
    digits: ImageTask, trained: nn.Module, tmp_path: Path
) -> None:
    path = of_torch(trained.state_dict(), tmp_path / "w.pt")

    def metric(model: nn.Module) -> float:
        return evaluate(model, digits, Batches(digits.test, CPU), 64, "evaluation").metric

    known = metric(trained)
    assert metric(begun(path, digits)) == known > 0.6
    settings = replace(SETTINGS, start=str(path))
    restart = make_network(Cell("restart", 3, architecture=describe(trained)), digits, settings)
    assert metric(restart) < 0.4


def task_of(network: str, size: int, channels: int) -> ImageTask:
    task = ImageTask.of(replace(SETTINGS, train_images=40))
    parts = {}
    for name in ("train", "validation", "test"):
        part = getattr(task, name)
        pixels = torch.randint(256, (len(part), channels, size, size), generator=torch.Generator().manual_seed(1))
        parts[name] = type(part)(pixels.byte().numpy(), part.labels)
    return task.changed(**parts, network=network)


NETWORKS = [("small_cnn", 8, 1), ("mlp", 8, 1), ("vgg16_quarter", 16, 1), ("torchvision:resnet18", 32, 3)]


@pytest.mark.parametrize(("network", "size", "channels"), NETWORKS)
def test_a_restart_has_no_tensor_of_the_pretrained_network(
    network: str, size: int, channels: int, tmp_path: Path
) -> None:
    task = task_of(network, size, channels)
    torch.manual_seed(100)
    pretrained = fresh(task)
    for tensor in (*pretrained.parameters(), *pretrained.buffers()):
        if tensor.is_floating_point():
            tensor.data += 0.1 * torch.rand(tensor.shape)
    settings = replace(SETTINGS, model=network, start=str(of_torch(pretrained.state_dict(), tmp_path / "w.pt")))
    torch.manual_seed(3)
    restart = make_network(Cell("restart", 3, architecture=describe(pretrained)), task, settings)
    assert not starting.same(pretrained, restart)


def test_a_factory_that_brings_weights_is_noticed_and_restarts_from_fresh_ones(
    digits: ImageTask, trained: nn.Module, tmp_path: Path
) -> None:
    of_torch(trained.state_dict(), tmp_path / "w.pt")
    (tmp_path / "nets.py").write_text(
        "import torch\nfrom network_surgery.study.models import mlp\n"
        "def make(shape, classes):\n    model = mlp(shape, classes)\n"
        f"    model.load_state_dict(torch.load({str(tmp_path / 'w.pt')!r}))\n"
        "    torch.nn.init.normal_(model.fc3.weight)\n    return model\n"
        "def plain(shape, classes):\n    return mlp(shape, classes)\n"
    )
    plain = replace(SETTINGS, model=f"{tmp_path / 'nets.py'}:plain")
    assert starting.settle(plain, digits.changed(network=plain.model)) == plain
    with pytest.raises(StudyError, match="brings no weights"):
        starting.load(replace(plain, start="factory"), digits.changed(network=plain.model))
    settings = replace(SETTINGS, model=f"{tmp_path / 'nets.py'}:make")
    task = digits.changed(network=settings.model)
    settings = starting.settle(settings, task)
    assert settings.start == "factory" and settings.start_digest
    assert starting.note(settings, task).startswith("training starts from the weights of its factory (5 tensors)")
    torch.testing.assert_close(make_network(Cell("surgery", 3), task, settings).fc1.weight, trained.fc1.weight)
    restarts = [make_network(Cell("restart", s, architecture=describe(trained)), task, settings) for s in (3, 3, 4)]
    assert not starting.same(restarts[0], trained)
    torch.testing.assert_close(restarts[0].fc1.weight, restarts[1].fc1.weight)
    assert not torch.equal(restarts[0].fc1.weight, restarts[2].fc1.weight)
    unknown = make_network(Cell("restart", 3, architecture=describe(trained)), task, replace(settings, start="none"))
    torch.testing.assert_close(unknown.state_dict(), restarts[0].state_dict())  # nobody had to know that it brings any
    for rival in (
        Cell("uniform", 3, allocation={"by": "uniform", "parameters": 900}),
        Cell("distill", 3, architecture=describe(trained), teacher="original-seed-3"),
    ):
        assert not starting.same(make_network(rival, task, settings), trained)
    assert 0.5 < float((restarts[0].fc1.weight.std() / models.mlp((1, 8, 8), 10).fc1.weight.std()).detach()) < 2


def test_a_number_that_a_factory_brings_is_what_it_was_before(digits: ImageTask, tmp_path: Path) -> None:
    """A scale and a gate without ``reset_parameters``, alone in their module or beside a weight."""
    (tmp_path / "nets.py").write_text(
        "import torch\nfrom torch import nn\n"
        "class Net(nn.Module):\n    def __init__(self):\n        super().__init__()\n"
        "        self.scale = nn.Parameter(torch.tensor(2.5))\n        self.gate = nn.Parameter(torch.zeros(1))\n"
        "        self.one, self.two = nn.Linear(64, 9), nn.Linear(9, 10)\n"
        "    def forward(self, x):\n        x = self.one(x.flatten(1)).relu()\n"
        "        return self.two(x) * self.scale + self.gate\n"
        "def make(shape, classes):\n    model = Net()\n"
        f"    model.load_state_dict(torch.load({str(tmp_path / 'w.pt')!r}))\n    return model\n"
    )
    factory = f"{tmp_path / 'nets.py'}:make"
    network = theirs(factory.replace(":make", ":Net"), "model")()
    trained = {name: tensor + 1 for name, tensor in network.state_dict().items()}
    of_torch(trained, tmp_path / "w.pt")
    settings = replace(SETTINGS, model=factory)
    task = digits.changed(network=factory)
    settings = starting.settle(settings, task)
    assert float(make_network(Cell("surgery", 3), task, settings).scale) == 3.5  # type: ignore[arg-type]
    state = torch.get_rng_state()
    restart = make_network(Cell("restart", 3, architecture=describe(fresh(task))), task, settings).state_dict()
    assert (float(restart["scale"]), float(restart["gate"])) == (2.5, 0.0)
    assert not any(torch.equal(restart[name], tensor) for name, tensor in trained.items())
    torch.set_rng_state(state)


class Own(nn.Module):
    """Parameters without a ``reset_parameters``."""

    def __init__(self) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.randn(4, 25) + 3)
        self.weight, self.bias = nn.Parameter(torch.randn(25) + 5), nn.Parameter(torch.randn(25) + 5)
        self.norm = nn.BatchNorm1d(25)
        self.norm.running_mean += torch.randn(25)


def test_what_cannot_reset_itself_is_drawn_by_its_fan() -> None:
    model = Own()
    redraw(model, [name for name, _ in (*model.named_parameters(), *model.named_buffers())], 0)
    assert abs(float(model.token.mean())) < 0.1 and 0.1 < float(model.token.std()) < 0.3
    assert bool((model.weight == 1).all()) and not bool(model.bias.any()) and not bool(model.norm.running_mean.any())


def bringing(make: Callable[[], nn.Module], frozen: bool) -> tuple[nn.Module, nn.Module]:
    """Two networks of a factory that brings all its weights; if they are frozen, with a head of its own."""
    torch.manual_seed(5)
    trained, found = make(), []
    for tensor in (*trained.parameters(), *trained.buffers()):
        tensor.data += (0.1 * torch.rand(tensor.shape) + 0.1).to(tensor.dtype) + 7 * (not tensor.is_floating_point())
    for seed in (1, 2):
        torch.manual_seed(seed)
        model = make()
        model.load_state_dict(trained.state_dict())
        model.requires_grad_(not frozen)
        if frozen:
            model[-1] = nn.Linear(6, 3)  # type: ignore[operator]
        found.append(model)
    return found[0], found[1]


@pytest.mark.parametrize("frozen", [False, True], ids=["trained", "frozen"])
@pytest.mark.parametrize("norm", ["BatchNorm2d", "FrozenBatchNorm2d"])
def test_a_restart_keeps_nothing_of_a_factory_frozen_or_not(norm: str, frozen: bool) -> None:
    misc = pytest.importorskip("torchvision.ops.misc")
    kind = getattr(misc, norm, None) or getattr(nn, norm)
    parts = lambda: (nn.Conv2d(3, 6, 3), kind(6), nn.PReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 3))  # noqa: E731
    one, other = bringing(lambda: nn.Sequential(*parts()), frozen)
    before = {name: tensor.clone() for name, tensor in one.state_dict().items() if not (frozen and name[0] == "5")}
    brought = starting.same(one, other)
    assert brought and ("5.weight" in brought) is not frozen
    redraw(one, brought, 3)
    assert [name for name, tensor in before.items() if torch.equal(tensor, one.state_dict()[name])] == []
    assert one[0].weight.requires_grad is not frozen  # type: ignore[union-attr, index]


def test_constants_of_a_network_are_no_weights_that_it_brings() -> None:
    """Positions, in a buffer or as a frozen embedding, are the same for every seed; redrawing leaves buffers alone."""

    def made(seed: int) -> nn.Module:
        torch.manual_seed(seed)
        positions = torch.arange(12.0).view(4, 3).sin()
        model = nn.Sequential(nn.Embedding.from_pretrained(positions), nn.Linear(3, 2))
        model.register_buffer("positions", positions.clone())
        return model

    one = made(1)
    assert starting.same(one, made(2)) == {} and len(starting.same(one, made(1))) == 4
    redraw(one, starting.same(one, made(1)), 3)
    assert torch.equal(one.positions, made(2).positions)  # type: ignore[arg-type]


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    state = torch.get_rng_state()
    yield
    torch.set_rng_state(state)


class Halted(Exception):
    """The process ends here."""


def test_an_interrupted_fine_tuning_goes_on_as_if_it_had_not_been(
    digits: ImageTask, trained: nn.Module, tmp_path: Path
) -> None:
    path = of_torch(trained.state_dict(), tmp_path / "w.pt")
    settings = replace(SETTINGS, epochs=3, start=str(path))
    cell = Cell("surgery", 3, [{"when": "1ep", "layer": "fc1", "op": "min_weight"}], test=True)

    def halt(epoch: dict[str, Any]) -> None:
        if epoch["epoch"] == 3:
            raise Halted

    straight = run(cell, digits, settings, CPU, network=tmp_path / "straight.pt")
    with pytest.raises(Halted):
        run(cell, digits, settings, CPU, halt, saved=tmp_path / "saved.pt")
    resumed = run(cell, digits, settings, CPU, saved=tmp_path / "saved.pt", network=tmp_path / "resumed.pt")
    assert resumed["test_loss"] == straight["test_loss"]
    weights = [torch.load(tmp_path / f"{name}.pt", weights_only=True)["weights"] for name in ("straight", "resumed")]
    torch.testing.assert_close(weights[0], weights[1], rtol=0, atol=0)


def test_weights_of_torchvision_see_images_as_imagenet_scales_them(digits: ImageTask) -> None:
    assert Settings(start="torchvision").scaling == "imagenet" and Settings(start="w.pt").scaling == "half"
    assert Settings(start="torchvision", normalize="half").scaling == "half"
    part = ImageNetScaled(torch.full((2, 3, 4, 4), 255, dtype=torch.uint8), torch.zeros(2, dtype=torch.int64))
    found = part.take(np.array([0])).prepare(torch.tensor(part.pixels[:1]))
    torch.testing.assert_close(found[0, :, 0, 0], torch.tensor([0.515 / 0.229, 0.544 / 0.224, 0.594 / 0.225]))
    with pytest.raises(StudyError, match="has three colours, but those of digits have 1; give --normalize half"):
        ImageTask.of(replace(SETTINGS, normalize="imagenet"))


def test_a_start_with_other_outputs_is_refused(digits: ImageTask, tmp_path: Path) -> None:
    save(models.mlp((1, 8, 8), 7), tmp_path / "w.pt")
    with pytest.raises(StudyError, match=r"answers 2 samples by \(2, 7\), but the task needs \(2, 10\)"):
        check(replace(SETTINGS, start=str(tmp_path / "w.pt")), digits)
