"""The command line. It imports nothing heavy until a command runs, so ``--help`` answers at once."""

from __future__ import annotations

import inspect
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args, get_origin

import typer

from network_surgery.study import interruption
from network_surgery.study.compose import PRESETS, compose, presets
from network_surgery.study.config import Settings
from network_surgery.study.counts import format_count
from network_surgery.study.declare import declaration, names
from network_surgery.study.errors import Diverged, PageError, StudyError, explain
from network_surgery.study.terminal import Terminal, prepare, say, say_path

if TYPE_CHECKING:
    from network_surgery.study.result import Result

app = typer.Typer(
    help="Operate on a network while it trains, and find out whether that beats starting over.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)

Preset = Annotated[
    str | None,
    typer.Option(
        help="Named settings that the other options overlay; by default those of the task.",
        autocompletion=lambda: presets(),
    ),
]
Config = Annotated[Path | None, typer.Option(help="A YAML file of settings, over the preset.")]
Study = Annotated[Path, typer.Argument(help="The study's folder.", metavar="STUDY")]
Width = Annotated[int | None, typer.Option(help="Units of the random layers.")]
Step = Annotated[int | None, typer.Option(help="Units between one size of the random layer and the next.")]
Trainings = Annotated[int | None, typer.Option(help="Training runs whose layers are operated on.")]
Seed = Annotated[int | None, typer.Option(help="The first seed; every network has its own.")]
Workers = Annotated[int, typer.Option(help="Processes, each with one thread.", min=1)]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print the answer and nothing else.")]
Json = Annotated[
    bool, typer.Option("--json", help="Print one JSON document: the answer, the verdicts, the paths; nothing else.")
]
OPTIONS = [name for name in names(Settings) if declaration(Settings, name).about.option]


def _completion(setting: str) -> Callable[[str], list[str]] | None:
    """What a shell offers for a setting that has one of several values, or a list of them with commas."""
    values = _values(declaration(Settings, setting).kind)

    def complete(incomplete: str) -> list[str]:
        before, comma, begun = incomplete.rpartition(",")
        return [f"{before}{comma}{value}" for value in values if value.startswith(begun)]

    return complete if values else None


def _values(kind: Any) -> list[str]:
    """All literals in a type."""
    if get_origin(kind) is Literal:
        return [str(value) for value in get_args(kind)]
    return list(dict.fromkeys(value for part in get_args(kind) for value in _values(part)))


def with_settings(*settings: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Gives a command these settings as options, in place of its ``**flags``; one that is not given is None."""

    def extend(command: Callable[..., None]) -> Callable[..., None]:
        signature = inspect.signature(command, eval_str=True)
        parameters = [each for each in signature.parameters.values() if each.kind is not each.VAR_KEYWORD]
        for name in settings:
            about = declaration(Settings, name)
            kind = about.kind if about.kind in (int, float) else str
            option: Any = Annotated[str | None, typer.Option(
                help=about.help, autocompletion=_completion(name), metavar=f"<{kind.__name__}>", parser=_read(kind)
            )]  # fmt: skip
            parameters.append(inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=option))
        command.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
        return command

    return extend


def _read(kind: Callable[[str], Any]) -> Callable[[str], Any]:
    """Reads a setting; what is no number stays as it is written, and the settings say what is wrong with it."""

    def read(written: str) -> Any:
        try:
            return kind(written)
        except ValueError:
            return written

    return read


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import PackageNotFoundError, version

        try:
            print(f"network-surgery {version('network-surgery')}")
        except PackageNotFoundError:
            print("network-surgery, from a source tree that is not installed")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    """Operate on a network while it trains, and find out whether that beats starting over."""


@app.command()
@with_settings(*OPTIONS)
def study(
    preset: Preset = None,
    config: Config = None,
    out: Annotated[
        Path | None, typer.Option(help="The study's folder, by default a new one under runs/; a study in it goes on.")
    ] = None,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run", help="Check everything, measure two epochs, print what the study would take; write nothing."
        ),
    ] = False,
    quiet: Quiet = False,
    as_json: Json = False,
    **flags: Any,
) -> None:
    """Search schedules of operations, then compare the best ones with restarting: the main job."""
    terminal, own = Terminal(quiet, as_json), str(flags.get("task") or "")
    if first := config or (own if ":" in own else None):  # to compose these may take a while
        terminal.begin("study", first)
    settings = compose(preset, config, flags)
    if not first:
        terminal.begin("study", settings.subject)
    say(terminal.narration, _size(settings))
    preset = preset or PRESETS.get(settings.task)
    say(terminal.narration, "loading PyTorch")
    from network_surgery.study import api

    place = out or api.new_place(preset or settings.task.rpartition(":")[2])
    if dry_run:
        from network_surgery.study.estimate import estimate

        found = estimate(settings, place, terminal.narration)
        terminal.document(found.to_data()) if as_json else found.show(terminal.answer)
        return
    _show(terminal, place, lambda: api.start(settings, place, preset, terminal.narration))


def _size(settings: Settings) -> str:
    """How large a study is, in a line."""
    search = f"{format_count(settings.trials, 'trial')} in the space {settings.space}, " if settings.searches else ""
    return f"{format_count(settings.epochs, 'epoch')}, {search}{format_count(settings.seeds, 'seed')} an arm"


@app.command()
def resume(
    study: Study,
    trials: Annotated[int | None, typer.Option(help="The search goes on to this number of schedules.", min=1)] = None,
    failed: Annotated[bool, typer.Option("--failed", help="Run again whatever has failed, too.")] = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Carry on a study that was interrupted: what has ended is kept, what was running resumes from its last epoch."""
    terminal = Terminal(quiet, as_json)
    terminal.begin("resume", study)
    from network_surgery.study import api

    place = api.at_hand(study)
    _show(terminal, place, lambda: api.resume(place, trials=trials, failed=failed, console=terminal.narration))


@app.command()
def compare(
    study: Study,
    top: Annotated[int | None, typer.Option(help="How many of the best schedules.", min=1)] = None,
    seeds: Annotated[int | None, typer.Option(help="Seeds of every arm.", min=1)] = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Compare more schedules, or with more seeds; training runs that are there already count and are not run again."""
    terminal = Terminal(quiet, as_json)
    terminal.begin("compare", study)
    from network_surgery.study import api

    _show(terminal, study, lambda: api.compare(study, top=top, seeds=seeds, console=terminal.narration))


@app.command()
def track(study: Study, quiet: Quiet = False) -> None:
    """Send to MLflow what has not arrived there: a server was away, or a study was killed. Nothing is sent twice."""
    terminal = Terminal(quiet)
    terminal.begin("track", study)
    from network_surgery.study import api

    say(terminal.narration, api.track(study))


@app.command()
def report(study: Study, quiet: Quiet = False, as_json: Json = False) -> None:
    """Write results.json, figures and report.html anew from what a study has stored so far."""
    terminal = Terminal(quiet, as_json)
    terminal.begin("report", study)
    from network_surgery.study import api

    _show(terminal, study, lambda: api.report(study))


@app.command()
def doctor(
    study: Annotated[
        Path | None, typer.Argument(help="The study's folder: what is damaged there is mended.", metavar="[STUDY]")
    ] = None,
    address: Annotated[
        str | None,
        typer.Option(help="A running Ray cluster, auto or HOST:PORT, whose nodes are checked; also for the study."),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what is damaged, and mend nothing.")] = False,
) -> None:
    """Mend what is damaged in a study's folder; check every node of a Ray cluster: versions, GPUs, model, data, folder.

    Nothing that was trained is deleted. Without a study the nodes alone are checked.
    """
    terminal = Terminal()
    terminal.begin("doctor", study or address or "")
    if study is not None:
        from network_surgery.study.doctor import mend

        mend(study, dry_run, terminal.answer)
    if study is None or address is not None:
        from network_surgery.study.checkup import check_cluster

        check_cluster(address, study, terminal.answer, terminal.narration)


@app.command()
@with_settings("task", "data", "model", "start", "image_size", "stream", "workers")
def layers(
    preset: Preset = None,
    config: Config = None,
    epochs: Annotated[int, typer.Option(help="Epochs of training first, to see redundancy as it comes.", min=0)] = 0,
    image: Annotated[
        str | None,
        typer.Option(help="Random images of this size, such as 3x224x224 (what torchvision's get without --data)."),
    ] = None,
    **flags: Any,
) -> None:
    """List the layers of a network that can be operated on, with their redundancy, and why others cannot."""
    terminal = Terminal()
    terminal.begin("layers", flags["model"] or config or preset or "")
    from network_surgery.study.layers import of_data, of_image_size

    settings = compose(preset, config, flags | {"epochs": epochs or None})
    data = flags["data"]
    if image is None and data is None and config is None and settings.model.startswith("torchvision:"):
        image = "3x299x299" if "inception" in settings.model else "3x224x224"
    if image is not None and (data is not None or epochs):
        raise StudyError("--image is for random images; it goes with neither --data nor --epochs")
    console = terminal.answer
    for part in of_data(settings, epochs) if image is None else of_image_size(settings, image):
        say(console, part) if isinstance(part, str) else console.print(part, highlight=False, markup=False)


@app.command()
@with_settings("data", "model", "epochs", "device")
def isolate(
    width: Width = None,
    step: Step = None,
    iterations: Annotated[int | None, typer.Option(help="Random networks, each with its own inputs.")] = None,
    trainings: Trainings = None,
    seed: Seed = None,
    workers: Workers = 2,
    out: Annotated[Path | None, typer.Option(help="Where it is written; by default runs/isolation.")] = None,
    **flags: Any,
) -> None:
    """Measure what every operation alone does to a network's output: surgery experiment isolation."""
    flags |= {"width": width, "step": step, "iterations": iterations, "trainings": trainings, "seed": seed}
    experiment("isolation", workers=workers, out=out, **flags)


@app.command()
@with_settings("data", "model", "epochs", "image_size", "device")
def experiment(
    name: Annotated[str | None, typer.Argument(help="The experiment; without it they are listed.")] = None,
    label: Annotated[str | None, typer.Option(help="What the page calls the images.")] = None,
    train_images: Annotated[int | None, typer.Option(help="Maximum number of training images.")] = None,
    seeds: Annotated[int | None, typer.Option(help="Number of runs of each kind, each with its own seed.")] = None,
    iterations: Annotated[
        int | None, typer.Option(help="Length of the runs that are looked at; of isolation: number of random networks.")
    ] = None,
    looks: Annotated[int | None, typer.Option(help="Number of looks at each of them.")] = None,
    networks: Annotated[str | None, typer.Option(help="Networks, with commas between them.")] = None,
    factors: Annotated[
        str | None, typer.Option(help="How many times smaller files are to be, with commas between them.")
    ] = None,
    width: Width = None,
    step: Step = None,
    trainings: Trainings = None,
    seed: Seed = None,
    workers: Workers = 2,
    rows: Annotated[
        Path | None, typer.Option(help="Kept rows, or their folder: writes their page again, without measuring.")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder of page, pictures and rows; by default runs/NAME, or that of --rows."),
    ] = None,
    **flags: Any,
) -> None:
    """Measure an experiment and write its page, with pictures and rows; an interrupted one goes on where it was."""
    flags |= {
        "label": label, "train_images": train_images, "seeds": seeds, "iterations": iterations, "looks": looks,
        "networks": networks, "factors": factors, "width": width, "step": step, "trainings": trainings, "seed": seed,
    }  # fmt: skip
    terminal = Terminal()
    terminal.begin("experiment", name or "")
    from network_surgery.study.bench import experiment as bench

    if name is None:
        for known in bench.EXPERIMENTS:
            say(terminal.answer, f"{known}: {bench.load(known).question}")
        return
    with terminal.narration.status(name) as status:
        page = bench.run(name, flags, workers, out, rows, lambda ended: status.update(f"{name}: {ended}"))
    say_path(terminal.answer, str(page))


@app.command()
def ui(
    study: Annotated[Path | None, typer.Argument(help="The study's folder; by default the newest under runs/.")] = None,
    port: Annotated[int, typer.Option(help="The port on the loopback address.", min=1, max=65535)] = 5000,
) -> None:
    """Open a study in MLflow's browser interface, on this machine only."""
    import signal
    import subprocess

    terminal = Terminal()
    terminal.begin("ui", study or "")
    from network_surgery.study.search.tracking import default_uri, page
    from network_surgery.study.store.folder import Folder

    folder = Folder.open(study or _newest())
    elsewhere = folder.settings.tracking_uri
    if elsewhere and elsewhere.startswith("http"):
        raise StudyError(f"this study was tracked at {elsewhere}; open that address in a browser")
    if not elsewhere and not folder.mlflow.exists():
        raise StudyError(f"{folder.path} has nothing tracked yet (no {folder.mlflow.name})")
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    command += ["--uvicorn-opts", "--no-access-log"]  # not a line for each request of the browser
    say_path(terminal.answer, f"MLflow shows {folder.path} until Ctrl-C at\nhttp://127.0.0.1:{port}{page(folder)}")
    # MLflow's seven processes for jobs of language models have nothing to do here.
    environment = os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    environment["MLFLOW_BACKEND_STORE_URI"] = default_uri(folder)  # a process's arguments are anybody's to read
    server = subprocess.Popen(command, env=environment, start_new_session=True)

    def stop(*_: Any) -> None:
        """Ends the server and the processes of its own; Windows knows no such groups."""
        os.killpg(server.pid, signal.SIGTERM) if hasattr(os, "killpg") else server.terminate()

    for name in ("SIGINT", "SIGTERM", "SIGHUP"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), stop)
    status = server.wait()
    raise typer.Exit(max(status, 0))


def main() -> None:
    """The entry point: errors of input as one sentence with exit code 2, Ctrl-C as 130."""
    prepare()
    sys.path.append(os.getcwd())  # so that --model MODULE:FACTORY finds what lies here, as it does for python -m
    try:
        with interruption.Interruption():
            raise SystemExit(app(prog_name="surgery", standalone_mode=False) or 0)
    except (StudyError, Diverged) as error:
        message = str(error)
    except BrokenPipeError:
        raise
    except OSError as error:  # of the system: a full disk, a folder that cannot be written
        message = explain(error)
    except ValueError as error:
        from network_surgery.ops.errors import SurgeryError  # a ValueError; its package brings torch along, so only now

        if not isinstance(error, SurgeryError):
            raise
        message = str(error)
    except Exception as error:
        if not hasattr(error, "format_message"):  # what click, or the copy of it in typer, finds wrong with the line
            raise
        if not error.format_message():  # the help was asked for by writing nothing
            raise SystemExit(2) from None
        message = _of_usage(error)
    print(f"surgery: {message}", file=sys.stderr)
    raise SystemExit(2)


def _of_usage(error: Any) -> str:
    """One sentence about a line that names no command or option, or lacks one."""
    command = error.ctx.command_path if getattr(error, "ctx", None) else "surgery"
    said = error.format_message().rstrip(".").replace("Input should be", "it must be").partition(", unable to parse")[0]
    return f"{said[:1].lower()}{said[1:]}{' See' if said.endswith('?') else '; see'} {command} --help"


def _show(terminal: Terminal, place: Path, work: Callable[[], Result]) -> None:
    """Runs a stage of a study and shows what came of it; an interruption says how to go on.

    Raises:
        PageError: the study's own page could not be made; what else came of it has been shown.
    """
    unmade: PageError | None = None
    try:
        result = work()
    except PageError as error:
        from network_surgery.study.api import open as opened

        unmade, result = error, opened(place)
    except KeyboardInterrupt:
        from network_surgery.study.store.folder import Folder

        if (place / "study.json").exists():
            ended = len(Folder.open(place).records())
            words = f"\nInterrupted; {ended} training runs are kept. Go on with: surgery resume {place}"
            say_path(terminal.narration, words)
        handling = interruption.current()
        raise typer.Exit(130 if handling is None else handling.code) from None
    if terminal.as_json:
        terminal.document(result.document())
    elif terminal.quiet:
        result.show_answer(terminal.answer)
    else:
        result.show(terminal.answer)
    if unmade is not None:
        raise unmade


def _newest() -> Path:
    found = sorted(Path("runs").glob("*/study.json"), key=lambda path: path.stat().st_mtime)
    if not found:
        raise StudyError("there is no study under runs/; give the study's folder")
    return found[-1].parent
