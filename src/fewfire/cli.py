"""The command line: one thin command per verb, each calling one function below. Nothing heavy is imported for --help.

Exit codes: 0 done, 1 the work failed, 2 the call was wrong; ended by a signal, 128 and its number, as in any shell. A
failure is one line; --debug shows where.
"""

from __future__ import annotations

import json
import math
import os
import signal
import sys
import threading
import warnings
import webbrowser
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Annotated, Any

import typer

from fewfire._version import __version__

__all__ = ["app", "main"]

BROKEN_PIPE = 141
"""what a shell calls a command whose output nobody reads any more"""

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
        help="A file (.npy, .npz, .csv, .parquet, .safetensors), a folder of images, an activation store, or a "
        "built-in name: digits, patches, world.",
    ),
]
MaybeData = Annotated[str | None, typer.Argument(metavar="[DATA]", help="Default: what the run was trained on.")]
DataOptions = Annotated[
    list[str] | None,
    typer.Option("--set", help="data.options.NAME=VALUE, of DATA: a target or views of its own. Repeatable."),
]
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
    labels: Annotated[
        str | None,
        typer.Option(
            "--probe",
            metavar="LABELS",
            help="Also what the codes know of labels: a file with one a row, a column of DATA, or `labels` for digits.",
        ),
    ] = None,
    other: Annotated[
        Path | None,
        typer.Option("--compare", metavar="RUN", help="Also how alike the features of another run are."),
    ] = None,
    settings: DataOptions = None,
) -> None:
    """How well and how sparsely the model describes the rows; what the codes know of LABELS; how alike another run is.

    explained_variance weighs columns by their variance; of fvu_columns, all columns have the same say. Two numbers
    with dots between them are 95 % confidence limits.
    """
    from fewfire.evaluation import evaluate as measure
    from fewfire.report import METRICS
    from fewfire.runs import data_options, open_run

    opened = open_run(run)
    source = opened.source(data, data_options(settings or ()))
    result: dict[str, Any] = dict(measure(opened.model, source))
    if labels is not None:
        from fewfire.probing import probe, read_labels

        path = data if data is not None or opened.config is None else opened.config.data.path
        result["probe"] = probe(opened.model, source, read_labels(labels, source, path))
    if other is not None:
        from fewfire.comparison import stability

        result["stability"] = stability(opened.model, open_run(other).model)
    if as_json:
        typer.echo(json.dumps(_finite(result)))
        return
    for name, meaning in METRICS.items():
        limits = _limits(result, name)
        typer.echo(f"{name:>20}  {_number(result[name]):>12}  {limits:<22}  {meaning}".rstrip())
    if other is not None:
        _print_stability(result["stability"], other)
    if labels is not None:
        _print_probe(result["probe"])


def _limits(result: dict[str, Any], name: str) -> str:
    """The 95 % confidence limits of a number, where it has some."""
    if f"{name}_low" not in result:
        return ""
    return f"{_number(result[f'{name}_low'])} .. {_number(result[f'{name}_high'])}"


def _print_stability(found: dict[str, float], other: Path) -> None:
    from fewfire.comparison import MEANINGS

    typer.echo(f"\n{'':>20}  beside {other}")
    for name, value in found.items():
        typer.echo(f"{name:>20}  {_number(value):>12}  {MEANINGS[name]}")


def _print_probe(views: dict[str, dict[str, float]]) -> None:
    """One column a view, one line a measure."""
    from fewfire.probing import MEANINGS

    typer.echo("\n" + f"{'':>20}" + "".join(f"  {_sized(name, view):>13}" for name, view in views.items()))
    for measure, meaning in MEANINGS.items():
        typer.echo(f"{measure:>20}" + "".join(f"  {view[measure]:>13.4f}" for view in views.values()) + f"  {meaning}")


@app.command()
def encode(run: RunPath, data: DataArg, out: OutFile, settings: DataOptions = None) -> None:
    """Write the latents of every row: .npz (CSR), .parquet or .npy (dense)."""
    from fewfire.outputs import check_not_input, write_codes
    from fewfire.runs import data_options, open_run

    check_not_input(data, out)
    opened = open_run(run)
    source = opened.source(data, data_options(settings or ()), inputs_only=True)
    shape = write_codes(opened.model, source, out)
    _say(f"{out}: {shape[0]:,} rows of {shape[1]:,} latents")


@app.command()
def reconstruct(run: RunPath, data: DataArg, out: OutFile, settings: DataOptions = None) -> None:
    """Write the reconstruction of every row, a denoiser's output: .npy or .parquet."""
    from fewfire.outputs import check_not_input, write_reconstructions
    from fewfire.runs import data_options, open_run

    check_not_input(data, out)
    opened = open_run(run)
    source = opened.source(data, data_options(settings or ()), inputs_only=True)
    shape = write_reconstructions(opened.model, source, out)
    _say(f"{out}: {shape[0]:,} rows of shape {' x '.join(map(str, shape[1:]))}")


@app.command()
def score(
    run: RunPath,
    data: DataArg,
    out: OutFile,
    threshold: Annotated[
        float | None, typer.Option(help="A row above it is an anomaly. Default: by the scores of training rows.")
    ] = None,
    by: Annotated[
        str, typer.Option(help="detector, reconstruction, or auto: the detector where there can be one.")
    ] = "auto",
    settings: DataOptions = None,
) -> None:
    """Write how unusual every row is, and which columns make it so: .csv or .parquet.

    By a detector, an ensemble of small autoencoders that learns what is usual from the run's own rows, seconds when it
    is first asked for; or by the error of the run's model in reconstructing the row.
    """
    from fewfire.outputs import check_not_input
    from fewfire.runs import data_options, open_run
    from fewfire.runs.detecting import scorer
    from fewfire.scoring import write_scores

    check_not_input(data, out)
    opened = open_run(run)
    source = opened.source(data, data_options(settings or ()))
    judge = scorer(opened, by, threshold)
    rows, anomalies = write_scores(opened.model, source, out, above=judge.threshold, detector=judge.detector)
    _say(f"{out}: {rows:,} rows, {anomalies:,} of them anomalies (above {judge.threshold:.4g}), {judge.how}")


@app.command()
def harvest(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="A folder as save_pretrained writes it, or an installed package.")
    ],
    texts: Annotated[
        str | None,
        typer.Argument(metavar="TEXTS", help=".txt (a document a line), .jsonl, .csv, .parquet; or docstrings."),
    ] = None,
    layers: Annotated[
        list[str] | None, typer.Option("--layer", help="A layer's name; `list` shows all. Repeatable.")
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", help="Folder for the store.")] = None,
    per: Annotated[
        str, typer.Option(help="A row per: token; or document, as the mean, first or last token.")
    ] = "token",
    dtype: Annotated[str, typer.Option(help="float16, bfloat16 or float32.")] = "float16",
    column: Annotated[str | None, typer.Option(help="The column of the texts. Default: text, or the only one.")] = None,
    label: Annotated[str | None, typer.Option(help="The column of labels, for people to see.")] = None,
    limit: Annotated[int | None, typer.Option(help="Only so many documents.")] = None,
    max_tokens: Annotated[int | None, typer.Option(help="Cut longer documents. Default: what the model takes.")] = None,
    special_tokens: Annotated[bool, typer.Option("--special-tokens", help="Keep [CLS] and the like too.")] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Go on behind the last whole shard.")] = False,
) -> None:
    """Run a model over texts and keep what its layers put out: data for `fewfire train`. Nothing is downloaded."""
    from fewfire import harvesting

    if layers == ["list"]:
        typer.echo("\n".join(harvesting.layer_tree(harvesting.load_model(model).model)))
        return
    if texts is None or out is None or not layers:
        raise ValueError("expected MODEL TEXTS --layer NAME --out STORE; --layer list shows the names")
    stores = harvesting.harvest(
        model, texts, layers, out, per=per, dtype=dtype, column=column, label=label, limit=limit,
        max_tokens=max_tokens, special_tokens=special_tokens, resume=resume,
    )  # fmt: skip
    for store in stores.values():
        _say(f"{store.path}: {store.n_rows:,} rows of {store.d:,} from {store.n_documents:,} documents")
    _say(f"Next: fewfire train {next(iter(stores.values())).path} --out run")


@app.command()
def convert(
    source: Annotated[
        Path, typer.Argument(metavar="FROM", help="A model, or a folder of SAELens, dictionary_learning or sparsify.")
    ],
    target: Annotated[Path, typer.Argument(metavar="TO", help="A new folder.")],
    to: Annotated[str, typer.Option("--to", help="fewfire, saelens, dictionary_learning or sparsify.")],
) -> None:
    """Write a model as another library's, or theirs as ours: the same latents and reconstructions.

    Whose FROM is, its files tell. For others the preprocess is folded into the weights, so that their model takes rows
    of data; the latents stay as they are. What was written is read back and compared before TO appears.
    """
    from fewfire.conversion import convert as write

    model = write(source, target, to)
    _say(f"{target}: {model.n_latents:,} latents, {model.activation.name}, for {to}")


@app.command()
def info(
    path: Annotated[Path, typer.Argument(metavar="PATH", help="A run folder, a model folder or file; or a peer's.")],
) -> None:
    """What a model is and where it comes from, read from its header alone."""
    from fewfire import conversion, files

    foreign = conversion.is_foreign(path)
    typer.echo(json.dumps(conversion.open_foreign(path).origin if foreign else files.read_config(path), indent=2))


@app.command()
def report(run: RunPath, data: MaybeData = None, settings: DataOptions = None) -> None:
    """Write report.html: what was learned, as pictures, in one file."""
    from fewfire.report import write_report
    from fewfire.runs import data_options, open_run

    opened = open_run(run)
    _say(str(write_report(opened, opened.source(data, data_options(settings or ())))))


@app.command()
def explore(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run or model folder, or a bundle built before.")],
    data: MaybeData = None,
    port: Annotated[int | None, typer.Option(help="Default: 8765, or any that is free.", min=0, max=65535)] = None,
    export: Annotated[
        Path | None, typer.Option("--export", metavar="DIR", help="Write the page as files into a new folder instead.")
    ] = None,
    rows: Annotated[int | None, typer.Option(help="Rows to read, the first ones. Default: 250,000.", min=1)] = None,
    compare: Annotated[
        Path | None, typer.Option("--compare", metavar="RUN", help="Another run, whose features are matched.")
    ] = None,
    show: Annotated[bool | None, typer.Option("--open/--no-open", help="Show the page in a browser.")] = None,
    settings: DataOptions = None,
) -> None:
    """Look at what every feature means, in a browser: examples, neighbours, a map, the rows and the run.

    Builds RUN/explorer, again when the model or the data changed, and serves it on this machine alone until Ctrl-C.
    """
    from fewfire.explorer.build import MOST_ROWS
    from fewfire.explorer.opening import open_bundle
    from fewfire.runs import data_options

    options = data_options(settings or ())
    bundle = open_bundle(run, data, options, rows=rows or MOST_ROWS, compare=compare)
    if export is not None:
        from fewfire.explorer.export import export as write

        count = write(bundle, export)
        _say(f"{export}: {count:,} files; look at them with: python -m http.server --bind 127.0.0.1 -d {export}")
        return
    from fewfire.explorer.serve import listen, serve

    def ready(address: str) -> None:
        _say(f"{address} shows {run}, on this machine alone, until Ctrl-C")
        if show if show is not None else _has_screen():
            webbrowser.open(address)

    serve(bundle, listen(port), ready=ready)


@app.command()
def demo(
    what: Annotated[str, typer.Argument(metavar="[patches|digits|text]")] = "patches",
    out: Annotated[Path | None, typer.Option("--out", help="Folder for the run.")] = None,
    texts: Annotated[Path | None, typer.Option("--data", help="Texts of your own, for the text demo.")] = None,
    show: Annotated[bool | None, typer.Option("--open/--no-open", help="Show the report in a browser.")] = None,
) -> None:
    """Train on real data that is here already, and show the report. A minute or so, offline.

    patches and digits ship with scikit-learn. text harvests a small language model, which the text extra brings, on
    sentences from the documentation of installed packages.
    """
    from fewfire.demo import run_demo

    page = run_demo(what, out, texts=texts)
    _say(f"open {page}; to look at each feature: fewfire explore {page.parent}")
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
    """Print what a configuration may hold, as a JSON Schema: every setting, its default, and the members there are.

    A file to edit and give to `train --config` is the config.yaml of any run.
    """
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
        with _sigterm_like_ctrl_c():
            code = _run(arguments)
    except (Exception, KeyboardInterrupt) as error:
        code = _exit_code(error)
        if code != BROKEN_PIPE:
            if debug:
                raise
            line = _one_line(error)
            _say(f"fewfire: {line if len(line) < 380 else line[:350] + ' ... (--debug shows all)'}")
    sys.exit(code)


def _run(arguments: list[str]) -> int:
    """As ``app(arguments)`` does, which would swallow what Ctrl-C has to say."""
    command = typer.main.get_command(app)
    try:
        with command.make_context("fewfire", arguments) as context:
            command.invoke(context)
    except typer.Exit as done:
        return done.exit_code
    return 0


class _Terminated(KeyboardInterrupt):
    signum = signal.SIGTERM


@contextmanager
def _sigterm_like_ctrl_c() -> Iterator[None]:
    """A SIGTERM too ends the work as an exception does, so that no half-written file is left."""

    def terminate(*_: Any) -> None:
        raise _Terminated

    if threading.current_thread() is not threading.main_thread():  # the only one that may
        yield
        return
    before = signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _exit_code(error: BaseException) -> int:
    """2 when other words would have helped, 1 when the work itself failed."""
    if hasattr(error, "format_message"):  # typer's own
        return 2
    if isinstance(error, KeyboardInterrupt):
        return 128 + int(getattr(error, "signum", signal.SIGINT))
    if isinstance(error, BrokenPipeError):
        return BROKEN_PIPE
    from fewfire.disk import ModelFileError

    wrong_call = ValueError | TypeError | FileNotFoundError | FileExistsError | NotADirectoryError
    return 2 if isinstance(error, wrong_call) and not isinstance(error, ModelFileError) else 1


def _one_line(error: BaseException) -> str:
    if hasattr(error, "format_message"):
        return f"{error.format_message().rstrip('.')}; `{_command(error)} --help` shows how it is called"
    text = " ".join(str(error).split())
    if isinstance(error, KeyboardInterrupt):
        return text or "interrupted; `fewfire train` with --resume goes on from the last checkpoint, if there is one"
    if isinstance(error, MemoryError) or "can't allocate memory" in text or "out of memory" in text:
        return f"out of memory ({text[-160:] or 'no more is known'}); fewer latents or a smaller batch_size need less"
    if isinstance(error, OSError) and error.strerror and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    return text or type(error).__name__


def _command(error: Any) -> str:
    context = getattr(error, "ctx", None)
    return context.command_path if context is not None else "fewfire"


def _sized(name: str, view: dict[str, float]) -> str:
    return f"{name} ({view['size']:g})"


def _finite(value: Any) -> Any:
    """What is not finite as null, which JSON can hold."""
    if isinstance(value, dict):
        return {name: _finite(inner) for name, inner in value.items()}
    return value if math.isfinite(value) else None


def _number(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:.5g}"


def _say(line: str) -> None:
    with suppress(OSError):  # a terminal that is gone is no reason to fail
        typer.echo(line, err=True)


def _has_screen() -> bool:
    return sys.stdout.isatty() and (sys.platform in ("darwin", "win32") or bool(os.environ.get("DISPLAY")))
