"""The command line: one thin command per verb, each calling one function below. Nothing heavy is imported for --help.

Exit codes: 0 done, 1 the work failed, 2 the call was wrong. A failure is one line; --debug shows where.
"""

from __future__ import annotations

import json
import math
import os
import sys
import warnings
import webbrowser
from pathlib import Path
from typing import Annotated, Any

import typer

from fewfire._version import __version__

__all__ = ["app", "main"]

INTERRUPTED = 130
"""what a shell calls a command that ended by Ctrl-C"""

app = typer.Typer(
    name="fewfire",
    help="Few features fire: train sparse autoencoders on any matrix of numbers, and see what they learned.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

RunPath = Annotated[Path, typer.Argument(metavar="RUN", help="A run folder, or a bare model folder.")]
DataArg = Annotated[
    str,
    typer.Argument(
        metavar="DATA",
        help="A file (.npy, .npz, .csv, .parquet, .safetensors), a folder of images, or a built-in name: digits, "
        "patches.",
    ),
]
MaybeData = Annotated[str | None, typer.Argument(metavar="[DATA]", help="Default: what the run was trained on.")]
OutFile = Annotated[Path, typer.Option("--out", help="The file to write.")]


@app.command()
def train(
    data: DataArg,
    out: Annotated[Path, typer.Option("--out", help="Folder for the run.")],
    config: Annotated[Path | None, typer.Option("--config", help="YAML file; see `fewfire config`.")] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="key=value, such as train.steps=500. Repeatable.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the last checkpoint in the run.")] = False,
) -> None:
    """Train a dictionary. With nothing but DATA and --out, a good one."""
    from fewfire import runs

    saved = out / "config.yaml"
    if resume and config is None and saved.is_file():
        config = saved
    runs.train(runs.load_config(config, settings or (), path=data), out, resume=resume)
    _say(f"{out} holds the model. Next: fewfire report {out}")


@app.command()
def evaluate(
    run: RunPath,
    data: MaybeData = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object, for programs.")] = False,
) -> None:
    """How well and how sparsely the model describes the rows."""
    from fewfire.evaluation import evaluate as measure
    from fewfire.report import METRICS
    from fewfire.runs import open_run

    opened = open_run(run)
    result = measure(opened.model, opened.source(data))
    if as_json:
        typer.echo(json.dumps({k: v if math.isfinite(v) else None for k, v in result.items()}))
        return
    for name, value in result.items():
        typer.echo(f"{name:>20}  {_number(value):>12}  {METRICS.get(name, '')}")


@app.command()
def encode(run: RunPath, data: DataArg, out: OutFile) -> None:
    """Write the latents of every row: .npz (CSR), .parquet or .npy (dense)."""
    from fewfire.outputs import write_codes
    from fewfire.runs import open_run

    opened = open_run(run)
    shape = write_codes(opened.model, opened.source(data), out)
    _say(f"{out}: {shape[0]:,} rows of {shape[1]:,} latents")


@app.command()
def reconstruct(run: RunPath, data: DataArg, out: OutFile) -> None:
    """Write the reconstruction of every row, a denoiser's output: .npy or .parquet."""
    from fewfire.outputs import write_reconstructions
    from fewfire.runs import open_run

    opened = open_run(run)
    shape = write_reconstructions(opened.model, opened.source(data), out)
    _say(f"{out}: {shape[0]:,} rows of shape {' x '.join(map(str, shape[1:]))}")


@app.command()
def score(
    run: RunPath,
    data: DataArg,
    out: OutFile,
    threshold: Annotated[
        float | None, typer.Option(help="A row above it is an anomaly. Default: 99 % of the training rows are below.")
    ] = None,
) -> None:
    """Write how unusual every row is, and which columns make it so: .csv or .parquet."""
    from fewfire.runs import open_run
    from fewfire.scoring import write_scores

    opened = open_run(run)
    rows, anomalies = write_scores(opened.model, opened.source(data), out, above=opened.threshold(threshold))
    _say(f"{out}: {rows:,} rows, {anomalies:,} of them anomalies")


@app.command()
def info(
    path: Annotated[Path, typer.Argument(metavar="PATH", help="A run folder, a model folder or file.")],
) -> None:
    """What a model is and where it comes from, read from its header alone."""
    from fewfire import files

    typer.echo(json.dumps(files.read_config(path), indent=2))


@app.command()
def report(run: RunPath, data: MaybeData = None) -> None:
    """Write report.html: what was learned, as pictures, in one file."""
    from fewfire.report import write_report
    from fewfire.runs import open_run

    opened = open_run(run)
    _say(str(write_report(opened, opened.source(data))))


@app.command()
def demo(
    what: Annotated[str, typer.Argument(metavar="[patches|digits]")] = "patches",
    out: Annotated[Path | None, typer.Option("--out", help="Folder for the run.")] = None,
    show: Annotated[bool | None, typer.Option("--open/--no-open", help="Show the report in a browser.")] = None,
) -> None:
    """Train on real data that ships with scikit-learn, and show the report. Under a minute, offline."""
    from fewfire.demo import run_demo

    page = run_demo(what, out)
    _say(f"open {page}")
    if show if show is not None else _has_screen():
        webbrowser.open(page.resolve().as_uri())


@app.command()
def doctor() -> None:
    """What this installation and this machine give fewfire, and what is missing and would help."""
    from fewfire.doctor import diagnose

    findings = diagnose()
    marks = {"ok": " ", "note": "-", "problem": "!"}
    for finding in findings:
        typer.echo(f"{marks[finding.state]} {finding.what:<14} {finding.says}")
    problems = sum(finding.state == "problem" for finding in findings)
    if problems:
        _say(f"fewfire: {problems} problem{'s' * (problems > 1)}, marked with !")
        raise typer.Exit(1)


@app.command()
def config() -> None:
    """Print what a configuration may hold (JSON Schema), and every member's settings with their defaults."""
    from fewfire.runs import schema

    typer.echo(json.dumps(schema(), indent=2))


@app.callback(invoke_without_command=True)
def _options(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version.", is_eager=True)] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show a traceback when something fails.")] = False,
) -> None:
    if version:
        typer.echo(__version__)
        raise typer.Exit()


# ---------------------------------------------------------------------------------------------- errors


def main() -> None:
    """Run the command line and exit with its code."""
    # Threads that wait for each other sleep instead of spinning: on a busy machine small products are ten times faster.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    arguments = sys.argv[1:]
    debug = "--debug" in arguments
    # --debug is understood anywhere, not only before the verb
    arguments = [a for a in arguments if a != "--debug"] or ["--help"]
    warnings.showwarning = lambda message, *rest, **more: _say(f"warning: {message}")
    try:
        code = app(args=arguments, prog_name="fewfire", standalone_mode=False)
    except Exception as error:
        if debug:
            raise
        line = _one_line(error)
        _say(f"fewfire: {line if len(line) < 380 else line[:350] + ' ... (--debug shows all)'}")
        sys.exit(_exit_code(error))
    if code == INTERRUPTED:
        _say("fewfire: interrupted; `fewfire train` with --resume goes on from the last checkpoint, if there is one")
    sys.exit(code or 0)


def _exit_code(error: Exception) -> int:
    """2 when other words would have helped, 1 when the work itself failed."""
    if hasattr(error, "format_message"):  # typer's own
        return 2
    from fewfire.disk import ModelFileError

    wrong_call = ValueError | TypeError | FileNotFoundError | FileExistsError | NotADirectoryError
    return 2 if isinstance(error, wrong_call) and not isinstance(error, ModelFileError) else 1


def _one_line(error: Exception) -> str:
    if hasattr(error, "format_message"):
        return f"{error.format_message().rstrip('.')}; `{_command(error)} --help` shows how it is called"
    from pydantic import ValidationError

    if isinstance(error, ValidationError):
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        if first["type"] == "extra_forbidden":
            return f"no setting {where!r}; `fewfire config` prints what there is"
        return f"{where}: {first['msg'].removeprefix('Value error, ')}; got {first['input']!r:.80}"
    return " ".join(str(error).split()) or type(error).__name__


def _command(error: Any) -> str:
    context = getattr(error, "ctx", None)
    return context.command_path if context is not None else "fewfire"


def _number(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:.5g}"


def _say(line: str) -> None:
    typer.echo(line, err=True)


def _has_screen() -> bool:
    return sys.stdout.isatty() and (sys.platform in ("darwin", "win32") or bool(os.environ.get("DISPLAY")))
