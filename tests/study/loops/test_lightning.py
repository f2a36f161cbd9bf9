"""Surgery in Lightning, against the real library: the same as in our trainer, and all that a Lightning training has."""

from __future__ import annotations

import logging
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from network_surgery.ops import MinWeight, Moment, Schedule, Step, carry_architecture
from network_surgery.study.errors import StudyError
from tests.study.loops.same import EPOCHS, PER_EPOCH, SCHEDULE, SHOWN, Result, adam, assert_same, loader, network, ours

try:
    from lightning import pytorch as pl
except ModuleNotFoundError:
    pl = pytest.importorskip("pytorch_lightning", reason="Lightning is not installed")

from network_surgery.study.loops.lightning import SurgeryCallback

warnings.filterwarnings("ignore", module="lightning")
for name in ("lightning.pytorch", "lightning.fabric", "pytorch_lightning", "lightning_fabric"):
    logging.getLogger(name).setLevel(logging.ERROR)
HALF = Schedule((Step(Moment(1), "net.0", MinWeight(0.5)),))


class Module(pl.LightningModule):
    """A LightningModule around the network of every loop here."""

    def __init__(self) -> None:
        super().__init__()
        self.net = network()
        carry_architecture(self)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.net(inputs)

    def training_step(self, batch: Any, index: int) -> Tensor:
        return cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch: Any, index: int) -> None:
        self.log("validation_loss", cross_entropy(self(batch[0]), batch[1]))

    def configure_optimizers(self) -> Any:
        return adam(self)


class Manual(Module):
    """Two optimizers, stepped by hand; their schedulers, too."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch: Any, index: int) -> Any:
        loss = cross_entropy(self(batch[0]), batch[1])
        for optimizer in self.optimizers():
            optimizer.zero_grad()
        self.manual_backward(loss)
        for optimizer in self.optimizers():
            optimizer.step()
        return loss

    def configure_optimizers(self) -> Any:
        return [torch.optim.Adam(part.parameters(), lr=1e-2) for part in (self.net[:2], self.net[3:])]


class Stop(pl.Callback):
    """Ends a training as a killed process would."""

    def __init__(self, after: int) -> None:
        self.after = after

    def on_train_batch_end(self, trainer: Any, *others: Any) -> None:
        if trainer.fit_loop.epoch_loop.total_batch_idx + 1 == self.after:
            trainer.save_checkpoint(Path(trainer.default_root_dir) / "a.ckpt")
            trainer.should_stop = True


class Logger(pl.loggers.CSVLogger):
    """Remembers what is logged."""

    def __init__(self) -> None:
        super().__init__("unused")
        self.logged: list[dict[str, float]] = []

    def log_metrics(self, metrics: Any, step: Any = None) -> None:
        self.logged.append({**metrics, "step": step})

    def save(self) -> None:
        pass

    def log_hyperparams(self, *others: Any, **more: Any) -> None:
        pass


def trainer(place: Path, *callbacks: Any, **options: Any) -> Any:
    settings: dict[str, Any] = {
        "max_epochs": EPOCHS, "accelerator": "cpu", "devices": 1, "enable_progress_bar": False, "logger": False,
        "enable_model_summary": False, "enable_checkpointing": False, "default_root_dir": str(place),
        "num_sanity_val_steps": 0, "use_distributed_sampler": False,
    }  # fmt: skip
    return pl.Trainer(**settings | options, callbacks=[*callbacks])


def surgery(schedule: Schedule = SCHEDULE, **options: Any) -> SurgeryCallback:
    settings = {"network": "net"} if schedule is SCHEDULE else {}
    return SurgeryCallback(schedule, signal_samples=SHOWN, held_out_samples=SHOWN, **settings | options)


@pytest.mark.parametrize("kind", [Module, Manual])
def test_lightning_does_what_our_trainer_does(kind: Any, tmp_path: Path) -> None:
    callback, module = surgery(), kind()
    trainer(tmp_path, callback).fit(module, loader())
    assert_same(ours(), Result(module.net, callback))
    assert all(record.epoch_seconds and record.training_loss_after for record in callback.records)


@pytest.mark.parametrize("kind", [Module, Manual])
@pytest.mark.parametrize("after", [8, 16, 24])
@pytest.mark.parametrize("safe", [False, True])
def test_a_training_resumes_from_lightnings_checkpoint(kind: Any, after: int, safe: bool, tmp_path: Path) -> None:
    trainer(tmp_path, surgery(), Stop(after)).fit(kind(), loader())
    callback, module = surgery(), kind()
    trainer(tmp_path, callback).fit(
        module, loader(after // PER_EPOCH), ckpt_path=tmp_path / "a.ckpt", weights_only=safe
    )
    assert_same(ours(), Result(module.net, callback))


def test_a_training_resumes_within_an_epoch(tmp_path: Path) -> None:
    """The loader starts anew there, as ever in Lightning, so only units and records' places can be compared."""
    trainer(tmp_path, surgery(), Stop(19)).fit(Module(), loader())
    callback, module = surgery(), Module()
    trainer(tmp_path, callback).fit(module, loader(2), ckpt_path=tmp_path / "a.ckpt")
    whole = ours()
    assert [record.iteration for record in callback.records] == [record["iteration"] for record in whole.records]
    assert callback._surgeon.iteration == EPOCHS * PER_EPOCH


def test_a_finished_network_is_loaded_tested_and_found_best(tmp_path: Path) -> None:
    """``load_from_checkpoint``, and ``ckpt_path="best"`` where the best one was before an operation."""
    module, best = Module(), pl.callbacks.ModelCheckpoint(tmp_path, "{step}", "validation_loss", save_top_k=-1)
    work = trainer(tmp_path, surgery(HALF), best, max_epochs=3, enable_checkpointing=True)
    work.fit(module, loader(), loader())
    first, *_, last = sorted(tmp_path.glob("step=*.ckpt"), key=lambda path: int(path.stem.split("=")[1]))
    assert Module.load_from_checkpoint(last).net[0].out_channels == 6
    assert Module.load_from_checkpoint(first).net[0].out_channels == 12
    for path, units in ((last, 6), (first, 12), (last, 6)):
        work.validate(module, loader(), ckpt_path=path, verbose=False)
        assert module.net[0].out_channels == units
        recorded = torch.load(path, weights_only=False)["callbacks"]
        (score,) = [each["current_score"] for name, each in recorded.items() if "ModelCheckpoint" in name]
        torch.testing.assert_close(work.callback_metrics["validation_loss"], score)


def test_weights_alone_are_enough_to_load_a_network(tmp_path: Path) -> None:
    module = Module()
    work = trainer(tmp_path, surgery(HALF), max_epochs=2)
    work.fit(module, loader())
    work.save_checkpoint(tmp_path / "w.ckpt", weights_only=True)
    other = Module.load_from_checkpoint(tmp_path / "w.ckpt", weights_only=True)
    torch.testing.assert_close(other.net.state_dict(), module.net.state_dict(), rtol=0, atol=0)


def test_accumulated_batches_are_one_step(tmp_path: Path) -> None:
    callback, module = surgery(HALF), Module()
    trainer(tmp_path, callback, accumulate_grad_batches=3).fit(module, loader(), loader())
    (record,) = callback.records
    assert (record.iteration, record.epoch, module.net[0].out_channels) == (3, 1, 6)
    assert callback._surgeon.epoch == EPOCHS


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true", "64-true"])
def test_precisions(precision: str, tmp_path: Path) -> None:
    callback, module = surgery(HALF), Module()
    trainer(tmp_path, callback, precision=precision, max_epochs=2).fit(module, loader())
    (record,) = callback.records
    assert module.net[0].out_channels == 6 and record.loss_after > 0


def test_samples_are_what_the_module_makes_of_them(tmp_path: Path) -> None:
    """After its hooks of batch transfer, as the network sees them."""

    class Scaled(Module):
        def on_after_batch_transfer(self, batch: Any, index: int) -> Any:
            return batch[0] * 100, batch[1]

    callback, plain = surgery(HALF), surgery(HALF)
    trainer(tmp_path, callback).fit(Scaled(), loader())
    trainer(tmp_path, plain).fit(Module(), loader())
    found = [each._surgeon.train.take(slice(0, 4))[0] for each in (callback, plain)]
    torch.testing.assert_close(found[0], 100 * found[1])


def test_averages_follow(tmp_path: Path) -> None:
    if not hasattr(pl.callbacks, "EMAWeightAveraging"):
        pytest.skip("this Lightning averages no weights by itself")
    callback, module = surgery(HALF), Module()
    averaging = pl.callbacks.EMAWeightAveraging()
    trainer(tmp_path, callback, averaging, max_epochs=3).fit(module, loader(), loader())
    assert module.net[0].out_channels == 6 and module(loader().dataset.tensors[0]).isfinite().all()


def test_loggers_get_the_records(tmp_path: Path) -> None:
    logger = Logger()
    trainer(tmp_path, surgery(HALF), logger=logger).fit(Module(), loader(), loader())
    (logged,) = [each for each in logger.logged if "surgery/units_after" in each]
    assert (logged["surgery/units_before"], logged["surgery/units_after"], logged["step"]) == (12, 6, PER_EPOCH)
    assert logged["surgery/spike_factor"] > 0


def test_one_process_of_many(tmp_path: Path) -> None:
    """DistributedDataParallel gets a new wrapper."""
    callback, module = surgery(), Module()
    try:
        trainer(tmp_path, callback, strategy="ddp").fit(module, loader())
    finally:
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
    assert_same(ours(), Result(module.net, callback))


def test_what_cannot_be_done_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(StudyError, match="no submodule 'nope'"):
        trainer(tmp_path, surgery(network="nope")).fit(Module(), loader())
    with pytest.raises(StudyError, match="a schedule is"):
        SurgeryCallback([])  # type: ignore[arg-type]


def test_without_lightning_there_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    from network_surgery.study.loops import lightning

    for name in lightning.NAMES:
        monkeypatch.setitem(sys.modules, name, None)
        monkeypatch.setitem(sys.modules, name.partition(".")[0], None)
    with pytest.raises(StudyError, match=r"pip install network-surgery\[lightning\]"):
        lightning._library()
