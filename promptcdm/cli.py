"""The command line: one command for each verb of the Python API, and the only place that prints.

Results go to standard output, progress and one-line errors to standard error. The exit code is 0 when done,
2 for wrong input, 1 for a failure. Modules that need torch are imported by the command that uses them, so
that help and mistakes are answered at once.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, cast

import typer

from promptcdm import __version__, cli_compare
from promptcdm.cli_attribute import attribute, ledger
from promptcdm.cli_clipscore import clipscore
from promptcdm.cli_evaluate import evaluate_app
from promptcdm.cli_export import export
from promptcdm.cli_preflight import preflight
from promptcdm.cli_questions import questions
from promptcdm.cli_store import forget, rollback, sources, verify
from promptcdm.cli_train import ALL_SETTINGS, load_backbone, say_adapter, train_adapter
from promptcdm.config import read_config, settle
from promptcdm.errors import BadSource, PromptCDMError, RunFailed
from promptcdm.flags import Config, Mismatch, Replace, Store, read_names, read_strengths, with_flags
from promptcdm.settings import (
    BackboneSettings,
    GenerateSettings,
    ImportSettings,
    Provenance,
)

app = typer.Typer(
    help="Stable Diffusion composed, at inference, from adapters that each source of data trained alone.",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # rich doubles the time of --help
    context_settings={
        "help_option_names": ["-h", "--help"],
        "token_normalize_func": lambda name: name.replace("_", "-"),  # --batch_size is --batch-size
        "max_content_width": 110,
    },
)
app.add_typer(evaluate_app, name="evaluate")
for read_results in (cli_compare.report, cli_compare.paired, cli_compare.agreement, cli_compare.calibration):
    evaluate_app.command()(read_results)
evaluate_app.command()(clipscore)
evaluate_app.command()(questions)
app.command()(export)
app.command()(preflight)
app.command()(attribute)
app.command()(ledger)
app.command("train-adapter")(train_adapter)
for of_a_store in (sources, verify, rollback, forget):
    app.command()(of_a_store)


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line and exit."""
    sys.exit(_run(argv))


def _run(argv: Sequence[str] | None) -> int:
    usage_error = cast("type[typer.BadParameter]", typer.BadParameter.__base__)
    try:
        code = app(args=argv, prog_name="promptcdm", standalone_mode=False)
    except usage_error as error:
        where = error.ctx.command_path if error.ctx else "promptcdm"
        return _refuse(f"{error.format_message().rstrip('.')}; see {where} --help", 2)
    except PromptCDMError as error:
        _refuse(str(error), 2)
        problems = error.problems if isinstance(error, BadSource) else ()
        for problem in problems if len(problems) > 1 else ():  # one alone is in the message
            typer.echo(f"  {problem}", err=True)
        return 1 if isinstance(error, RunFailed) else 2
    except typer.Abort:
        return _refuse("stopped", 1)
    except OSError as error:
        return _refuse(f"{error.strerror or error}: {error.filename or ''}".rstrip(": "), 1)
    return code if isinstance(code, int) else 0


def _refuse(message: str, code: int) -> int:
    typer.echo(f"promptcdm: {' '.join(message.split())}", err=True)
    return code


@app.callback(invoke_without_command=True)
def _root(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Show the version and exit.")] = False,
) -> None:
    if version:
        typer.echo(f"promptcdm {__version__}")
    elif context.invoked_subcommand is None:
        typer.echo(context.get_help())
    if not sys.warnoptions:
        warnings.simplefilter("ignore")  # of other libraries, for their developers


@app.command("import-adapter")
@with_flags(Provenance, ImportSettings, BackboneSettings)
def import_adapter(
    lora: Annotated[str, typer.Argument(help="file, folder or hub id of a LoRA", metavar="PATH_OR_HUB_ID")],
    source: Annotated[str, typer.Option(help="the name it gets in the store", metavar="NAME")],
    samples: Annotated[
        str | None,
        typer.Option(
            help="pictures with captions, or a .txt of captions that it draws, for the router's statistics",
            metavar="PATH_OR_URL",
        ),
    ] = None,
    replace: Replace = False,
    store: Store = Path("adapters"),
    config: Config = None,
    **flags: Any,
) -> None:
    """Bring in a LoRA of another tool's making.

    Takes kohya's, diffusers' and peft's formats. Without --samples such an adapter has no statistics for a router:
    compose it with --router uniform.
    """
    which = settle(BackboneSettings, read_config(config, ALL_SETTINGS) if config else {}, flags)

    from promptcdm.import_adapter import import_adapter as read_adapter
    from promptcdm.store import AdapterStore

    facts = asdict(settle(Provenance, {}, flags)) | asdict(settle(ImportSettings, {}, flags))
    backbone = load_backbone(which)
    adapter = read_adapter(lora, source, backbone, **facts)
    if samples is not None:
        from promptcdm.sample_statistics import with_samples

        adapter = with_samples(adapter, samples, backbone)
    AdapterStore(store).add(adapter, replace=replace)
    say_adapter(store, adapter)


@app.command()
@with_flags(BackboneSettings, GenerateSettings)
def generate(
    prompts: Annotated[list[str], typer.Argument(help="what to draw", metavar="PROMPT")],
    allowed: Annotated[
        str,
        typer.Option(help='NAME or NAME@DIGEST, with commas between; "" is the bare backbone', metavar="A,B"),
    ],
    strength: Annotated[
        list[str] | None, typer.Option(help="strength of a source's LoRA; repeatable [1]", metavar="NAME=X")
    ] = None,
    out: Annotated[Path, typer.Option(help="folder of the pictures", metavar="DIR")] = Path("out"),
    metadata: Annotated[
        bool, typer.Option("--metadata/--no-metadata", help="the parameters inside the PNG files")
    ] = True,
    weights_figure: Annotated[
        bool, typer.Option("--weights-figure", help="draw the weights of each step into weights.png")
    ] = False,
    allow_backbone_mismatch: Mismatch = False,
    store: Store = Path("adapters"),
    config: Config = None,
    **flags: Any,
) -> None:
    """Make pictures from the allowed sources.

    A source that is not named in --allowed has no influence on them.
    """
    chosen = read_config(config, ALL_SETTINGS) if config else {}
    which, settings = settle(BackboneSettings, chosen, flags), settle(GenerateSettings, chosen, flags)
    names, strengths = read_names(allowed), read_strengths(strength or [])

    from promptcdm.generate import generate as make
    from promptcdm.progress import generation_bar
    from promptcdm.store import AdapterStore

    adapters = AdapterStore(store)
    for name in names:  # an unknown source is told before a backbone is loaded
        adapters.record(name)
    backbone = load_backbone(which)
    count = len(prompts) * settings.num_images
    with generation_bar("generate", count, settings.num_inference_steps) as on_step:
        generation = make(
            prompts,
            allowed=names,
            backbone=backbone,
            store=adapters,
            settings=settings,
            strength=strengths,
            allow_backbone_mismatch=allow_backbone_mismatch,
            on_step=on_step,
        )
    paths = generation.save(out, metadata=metadata)
    if weights_figure:
        from promptcdm.timeline import weight_timeline

        weight_timeline(generation, out / "weights.png")
    for path, record in zip(paths, generation.records, strict=True):
        shares = ", ".join(f"{name} {weight:.0%}" for name, weight in record["weights"].items())
        typer.echo(f"{path}: {shares or 'bare backbone'}")
    owed = {name: line for record in generation.records for name, line in record["attribution"].items()}
    for name, line in owed.items():
        typer.echo(f"attribution owed to {name}: {line}")


@app.command()
def demo(
    out: Annotated[
        Path, typer.Option(help="folder of the report and everything it shows", metavar="DIR")
    ] = Path("demo"),
) -> None:
    """See all of it on the shipped pictures.

    Trains three adapters, composes them for three users, forgets one, scores, and writes report.html.
    """
    from promptcdm.demo import run_demo

    run_demo(out, on_progress=typer.echo)
