"""The command `promptcdm evaluate clipscore`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from promptcdm.cli_evaluate import say_table
from promptcdm.errors import BadInput


def clipscore(
    texts: Annotated[
        Path,
        typer.Option(
            help="prompts: a JSON list of id and caption, a .txt, or any question file", metavar="FILE"
        ),
    ],
    images: Annotated[
        Path, typer.Option(help="JSON of id: picture, beside the pictures", metavar="MAP.json")
    ],
    model: Annotated[
        str,
        typer.Option(help="a name of open_clip's, such as ViT-B-32-quickgelu, or a folder", metavar="NAME"),
    ],
    weights: Annotated[
        Path | None, typer.Option(help="safetensors file of a model given by name", metavar="FILE")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="JSON of all figures; RESULT.clipscore.json joins RESULT's report", metavar="FILE"),
    ] = None,
    seed: Annotated[int, typer.Option(help="seed of the interval's resamples [0]", metavar="N")] = 0,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or mps", metavar="TEXT")] = "auto",
) -> None:
    """Score how near pictures are to their prompts in a CLIP of local weights.

    Beside it stands what the same pictures get with the prompts of others.
    """
    for path in (texts, images):
        if not path.is_file():
            raise BadInput(f"{path}: no such file; give prompts and a JSON map")

    from promptcdm.clipscore import clipscore as score
    from promptcdm.evaluate import load_image_map
    from promptcdm.judge import torch_device
    from promptcdm.open_clip_model import load_open_clip
    from promptcdm.question_files import read_texts

    prompts, pictures = read_texts(texts), load_image_map(images)
    loaded = load_open_clip(model, weights, torch_device(device))
    report = score(prompts, pictures, loaded, seed=seed)
    say_table(report.table())
    for failure in report.failures:
        typer.echo(f"promptcdm: {failure.id} left out; {failure.reason}", err=True)
    if out is not None:
        report.save(out)
