"""Configurations of every shape: each makes settings that survive a file, or is refused in one sentence, soon."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from typing import Any

import pytest
import yaml

from network_surgery.ops import Schedule, SurgeryError
from network_surgery.study import conduct
from network_surgery.study.compose import compose
from network_surgery.study.config import ARMS, GROUPS, Settings
from network_surgery.study.declare import declaration, names
from network_surgery.study.errors import StudyError
from network_surgery.study.search import cluster
from network_surgery.study.search.nodes import Node
from network_surgery.study.yaml_text import parse
from tests.study.nodes import node

hypothesis = pytest.importorskip("hypothesis")
from hypothesis import HealthCheck, given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402


def examples(count: int) -> Any:
    """The same examples at every run, in no more time than they take; nothing is kept on disk."""
    odd = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
    return settings(max_examples=count, derandomize=True, deadline=None, database=None, suppress_health_check=odd)


NAMES = names(Settings)
#: Words that settings know, so that what is drawn is often almost right.
WORDS = sorted({
    *ARMS, *GROUPS, "digits", "small_cnn", "mlp", "vgg16", "folder:nowhere", "torchvision:nothing", "x:y", "none",
    "auto", "true", "false", "cpu", "cuda", "adam", "sgd", "SGD", "tpe", "grid", "mixed", "removal", "pcns", "loss",
    "metric",
    "parameters", "flops", "1ep", "3it", "fc1", "conv2", "*", "min_weight", "eigen_remove", "bias", "rewind", "a=b",
    "parameters=0.2", "parameters=0.2,flops=0.5", "1e-3", "nan", "inf", "", " ", "\0", "é", "🙂", "a,b",
    "postgresql://u:p@h",
    "sqlite:///", "journal:", "asha", "MedianPruner(", "RandomSampler(1)", "step", "cosine", "..", "/", "~",
})  # fmt: skip
STEP_NAMES = (
    "when", "layer", "op", "keep", "grow", "repair", "after", "after_length", "freeze", "lr_factor", "budget",
    "allocate", "layers", "x",
)  # fmt: skip
NUMBERS = (
    0, 1, -1, 2, 3, 7, 0.5, 1e-3, 1.5, -0.1, 1e300, 2**31, 2**64, -(2**70), float("nan"), float("inf"), True, False,
    None, date(2020, 2, 29),
)  # fmt: skip
LEAVES = st.sampled_from([*WORDS, *NUMBERS]) | st.text(max_size=4)
STEPS = st.dictionaries(st.sampled_from(STEP_NAMES), LEAVES, max_size=5)
VALUES = LEAVES | STEPS | st.lists(LEAVES | STEPS | st.lists(LEAVES | STEPS, max_size=2), max_size=3)


def right(name: str) -> list[Any]:
    """Values of a setting that are right, or nearly."""
    kind = declaration(Settings, name).kind
    literals = getattr(kind, "__args__", ()) if "Literal" in str(kind) else ()
    return [Settings.__dataclass_fields__[name].default, *literals, 1, 0.5, "mlp"]


#: A setting with a value: half of them right, or nearly.
ENTRIES = st.sampled_from([(name, value) for name in NAMES for value in right(name)]) | st.tuples(
    st.sampled_from(NAMES), VALUES
)
CONFIGURATIONS = st.lists(ENTRIES, min_size=1, max_size=4).map(dict)


@contextlib.contextmanager
def refusals() -> Iterator[None]:
    """Lets nothing through but what is refused in one sentence of a sensible length."""
    try:
        yield
    except (StudyError, SurgeryError) as error:
        sentence = str(error)
        assert sentence.strip() and "\n" not in sentence and len(sentence) < 3000, sentence
        assert "Traceback" not in sentence and " object at 0x" not in sentence


@pytest.mark.long
@pytest.mark.timeout(120)
@examples(3700)
@given(data=CONFIGURATIONS)
def test_any_value_of_any_setting(data: dict[str, Any]) -> None:
    with refusals():
        made = Settings.from_data(data, "mine.yaml")
        assert Settings.from_data(json.loads(json.dumps(made.to_data())), "again") == made
        for steps in made.schedules:
            Schedule.from_data(steps)


@pytest.mark.timeout(60)
@examples(300)
@given(data=st.dictionaries(st.sampled_from([*NAMES, "epoch", "repair"]), VALUES, max_size=3), flags=CONFIGURATIONS)
def test_any_file_under_any_flags(data: dict[str, Any], flags: dict[str, Any], tmp_path_factory: Any) -> None:
    place = tmp_path_factory.getbasetemp() / "fuzzed.yaml"
    with contextlib.suppress(yaml.YAMLError):
        place.write_text(yaml.safe_dump(data, allow_unicode=True), errors="surrogatepass")
    with refusals():
        assert isinstance(compose("smoke", place, flags), Settings)


#: What YAML is made of, so that text is often almost YAML.
MARKS = ["\n", "- ", ": ", "{", "}", "[", "]", "&a ", "*a", "? ", "!!int ", "!!python/name:os.system ", "<<: ", "|\n",
         ">", "'", '"', "#", "%", "---\n", "...", "  ", "\t", "\0", "2020-02-31", "0x", "1e400", "epochs", "seed",
         "\xff",
         "~", ".nan", "1:60:60", "!!binary ", "!!set ", "!!timestamp ", "\ufeff", "[" * 60]  # fmt: skip


@pytest.mark.timeout(60)
@examples(1000)
@given(text=st.one_of(
    st.lists(st.sampled_from(MARKS), max_size=20).map(lambda parts: "".join(parts).encode("utf-8", "replace")),
    st.binary(max_size=60),
))  # fmt: skip
def test_any_text_is_yaml_or_one_sentence(text: bytes) -> None:
    with refusals():
        parse(text, "mine.yaml")


def test_yaml_that_repeats_itself_without_end_is_refused_soon() -> None:
    laughs = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(
        f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 30)
    )
    for text in (laughs, "[" * 3000, "a: " + "{a: " * 3000, "- " * 3000, "a: &a [*a]", "&a {a: *a}"):
        with pytest.raises(StudyError, match=r"mine\.yaml (is nested more than|has more than|has a value that|is not)"):
            parse(text, "mine.yaml")


@pytest.mark.timeout(200)
@examples(60)
@given(data=CONFIGURATIONS)
def test_no_study_is_half_started(data: dict[str, Any], tmp_path_factory: Any) -> None:
    """A configuration is refused and leaves nothing, or the study's folder is whole; nothing is trained here."""
    place: Path = tmp_path_factory.getbasetemp() / "begun"

    @contextlib.contextmanager
    def nothing(*_: Any) -> Iterator[list[Node]]:
        yield [node(CPU=2.0)]

    with pytest.MonkeyPatch.context() as patch, refusals():
        patch.setattr(cluster, "joined", nothing)
        patch.chdir(tmp_path_factory.getbasetemp())
        small = {"model": "mlp", "epochs": 4, "train_images": 200, "probe": 0, "device": "cpu"}
        made = Settings.from_data(small | data, "mine.yaml")
        made = Settings.from_data(
            made.to_data() | {"tracking_uri": None, "address": None, "storage": None}, "mine.yaml"
        )
        try:
            with conduct.begin(made, place) as (folder, _):
                assert (place / "study.json").exists() and folder.layers
                for each in place.iterdir():
                    each.unlink()
                place.rmdir()
        finally:
            assert not place.exists()
