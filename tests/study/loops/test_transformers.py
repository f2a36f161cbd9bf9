"""Surgery in the Trainer of transformers, against the real library: the same as in our trainer, and its checkpoints."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader

from network_surgery.ops import MinWeight, Moment, Schedule, Step, carry_architecture
from network_surgery.study.errors import StudyError
from tests.study.loops.same import EPOCHS, PER_EPOCH, SCHEDULE, SHOWN, Result, adam, assert_same, loader, network, ours

transformers = pytest.importorskip("transformers", reason="transformers is not installed")
pytest.importorskip("accelerate", reason="accelerate is not installed")

from network_surgery.study.loops.transformers import SurgeryCallback  # noqa: E402

HALF = Schedule((Step(Moment(1), "0", MinWeight(0.5)),))


class Labelled(nn.Sequential):
    """The network of every loop here, with the interface that the Trainer asks for."""

    def forward(self, inputs: Tensor, labels: Tensor | None = None) -> Any:  # type: ignore[override]
        logits = super().forward(inputs)
        return {"loss": None if labels is None else cross_entropy(logits, labels), "logits": logits}


def labelled() -> Labelled:
    return Labelled(*network())


def collate(samples: list[tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
    inputs, labels = zip(*samples, strict=True)
    return {"inputs": torch.stack(inputs), "labels": torch.stack(labels)}


class Trainer(transformers.Trainer):
    """Whose batches come in the order of our trainer."""

    def get_train_dataloader(self) -> DataLoader[Any]:
        return loader(collate=collate)


def trainer(place: Path, model: nn.Module, *callbacks: Any, kind: Any = Trainer, **options: Any) -> Any:
    settings: dict[str, Any] = {
        "num_train_epochs": EPOCHS, "use_cpu": True, "report_to": [], "save_strategy": "no", "max_grad_norm": 0,
        "disable_tqdm": True, "per_device_train_batch_size": 16, "logging_strategy": "no",
    }  # fmt: skip
    optimizer = adam(model)
    constant = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
    samples = loader().dataset
    return kind(
        model, transformers.TrainingArguments(str(place), **settings | options), callbacks=[*callbacks],
        optimizers=(optimizer, constant), train_dataset=samples, eval_dataset=samples, data_collator=collate,
    )  # fmt: skip


def surgery(schedule: Schedule = SCHEDULE, **options: Any) -> SurgeryCallback:
    settings: dict[str, Any] = {"metric": accuracy, "held_out": loader(collate=collate)}
    return SurgeryCallback(schedule, signal_samples=SHOWN, held_out_samples=SHOWN, **settings | options)


def accuracy(outputs: Any, targets: Tensor) -> Tensor:
    return (outputs["logits"].argmax(1) == targets).double()


def test_it_does_what_our_trainer_does(tmp_path: Path) -> None:
    callback, model = surgery(), labelled()
    work = trainer(tmp_path, model, callback)
    work.train()
    assert_same(ours(), Result(model, callback))
    logged = [each for each in work.state.log_history if "surgery/units_after" in each]
    assert [each["step"] for each in logged] == [record.iteration for record in callback.records]


@pytest.mark.parametrize("after", [6, 8, 12, 17, 24, 28])
def test_a_training_resumes_from_its_checkpoint(after: int, tmp_path: Path) -> None:
    saving = {"save_strategy": "steps", "save_steps": after}
    stop = transformers.TrainerCallback()
    stop.on_save = lambda args, state, control, **others: setattr(control, "should_training_stop", True)  # type: ignore
    trainer(tmp_path, labelled(), surgery(), stop, **saving).train()
    callback, model = surgery(), labelled()
    trainer(tmp_path, model, callback, **saving).train(resume_from_checkpoint=True)
    assert_same(ours(), Result(model, callback))
    assert callback._surgeon.iteration == EPOCHS * PER_EPOCH  # type: ignore[union-attr]


def test_callback_states_may_be_restored(tmp_path: Path) -> None:
    """With the Trainer's own way of doing so, which makes callbacks anew."""
    options = {"save_strategy": "epoch", "restore_callback_states_from_checkpoint": True}
    trainer(tmp_path, labelled(), surgery(), **options).train()
    callback, model = surgery(), labelled()
    trainer(tmp_path, model, callback, **options).train(resume_from_checkpoint=str(tmp_path / "checkpoint-16"))
    assert_same(ours(), Result(model, callback))


def test_the_best_network_comes_back_in_its_sizes(tmp_path: Path) -> None:
    callback, model = surgery(HALF), labelled()
    options = {
        "save_strategy": "epoch",
        "eval_strategy": "epoch",
        "load_best_model_at_end": True,
        "num_train_epochs": 2,
    }
    work = trainer(tmp_path, model, callback, greater_is_better=True, metric_for_best_model="loss", **options)
    work.train()
    assert work.state.best_model_checkpoint.endswith("checkpoint-8")  # the highest loss is the first one
    assert model[0].out_channels == 12
    assert work.evaluate()["eval_loss"] == pytest.approx(work.state.best_metric)


def test_accumulated_batches_are_one_step(tmp_path: Path) -> None:
    callback, model = surgery(HALF), labelled()
    trainer(tmp_path, model, callback, gradient_accumulation_steps=3).train()
    (record,) = callback.records
    assert (record.iteration, record.epoch, model[0].out_channels) == (3, 1, 6)
    assert record.training_loss_before is not None and 0.5 < record.training_loss_before < 3


def test_bfloat16(tmp_path: Path) -> None:
    callback, model = surgery(HALF), labelled()
    trainer(tmp_path, model, callback, bf16=True).train()
    assert model[0].out_channels == 6 and len(callback.records) == 1


def llama(tied: bool = False) -> Any:
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=32, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=32, tie_word_embeddings=tied,
    )  # fmt: skip
    return transformers.LlamaForCausalLM(config)


def tokens(count: int = 32) -> list[dict[str, Tensor]]:
    drawn = torch.randint(32, (count, 12), generator=torch.Generator().manual_seed(0))
    return [{"input_ids": row, "labels": row.clone()} for row in drawn]


def test_a_language_model_of_transformers(tmp_path: Path) -> None:
    """With optimizer and schedule that the Trainer makes late, accumulation, clipping, and a resumption."""
    layer = "model.layers.0.mlp.gate_proj"
    schedule = Schedule((Step(Moment(1), layer, MinWeight(0.5)), Step(Moment(6, "it"), "*", prune())))
    whole = []

    def run(place: Path, resume: bool, epochs: int) -> tuple[Any, SurgeryCallback]:
        model, callback = llama(), SurgeryCallback(schedule, report=whole.append)
        arguments = transformers.TrainingArguments(
            str(place), num_train_epochs=3, use_cpu=True, report_to=[], save_strategy="epoch", disable_tqdm=True,
            per_device_train_batch_size=4, gradient_accumulation_steps=2, lr_scheduler_type="cosine",
            learning_rate=1e-2, seed=3,
        )  # fmt: skip
        work = transformers.Trainer(model, arguments, train_dataset=tokens(), callbacks=[callback])
        if epochs < 3:
            work.add_callback(Last(epochs))
        work.train(resume_from_checkpoint=resume or None)
        return model, callback

    expected, before = run(tmp_path / "a", False, 3)
    run(tmp_path / "b", False, 2)
    found, after = run(tmp_path / "b", True, 3)
    assert [record.units_after for record in after.records[:1]] == [12] and len(after.records) == 2
    torch.testing.assert_close(found.state_dict(), expected.state_dict())
    assert [r.loss_after for r in after.records] == pytest.approx([r.loss_after for r in before.records])
    state = json.loads((tmp_path / "b" / "checkpoint-12" / "trainer_state.json").read_text())
    assert [each["layer"] for each in state["stateful_callbacks"]["surgery"]["theatre"]["records"]] == [layer, "*"]
    assert whole[0]["surgery/units_after"] == 12
    fresh = carry_architecture(llama())
    from safetensors.torch import load_file

    weights = load_file(tmp_path / "b" / "checkpoint-12" / "model.safetensors")
    fresh.load_state_dict(weights, strict=False)
    assert fresh.model.layers[0].mlp.gate_proj.out_features == 12
    ids = torch.stack([each["input_ids"] for each in tokens(4)])
    torch.testing.assert_close(fresh.eval()(ids).logits, found.eval()(ids).logits)


class Last(transformers.TrainerCallback):
    def __init__(self, epochs: int) -> None:
        self.epochs = epochs

    def on_epoch_end(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        if round(state.epoch) == self.epochs:
            control.should_training_stop = True


def prune() -> Any:
    from network_surgery.ops import PruneWeights

    return PruneWeights(0.5)


def test_what_cannot_be_done_is_one_sentence(tmp_path: Path) -> None:
    class Silent(nn.Sequential):
        def forward(self, inputs: Tensor, labels: Tensor | None = None) -> Any:  # type: ignore[override]
            return (super().forward(inputs),)

    with pytest.raises(StudyError, match="returns no loss"):
        trainer(tmp_path, Silent(*network()), surgery(Schedule((Step(Moment(0), "0", MinWeight(0.5)),)))).train()
    arguments = transformers.TrainingArguments(str(tmp_path), use_cpu=True, report_to=[], disable_tqdm=True)
    masks = SurgeryCallback(Schedule((Step(Moment(0), "*", prune()),)))
    with pytest.raises(StudyError, match="tie_word_embeddings=False"):
        transformers.Trainer(llama(True), arguments, train_dataset=tokens(), callbacks=[masks]).train()
    with pytest.raises(StudyError, match="a schedule is"):
        SurgeryCallback([])  # type: ignore[arg-type]
