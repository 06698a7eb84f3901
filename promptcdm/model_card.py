"""What other tools show of an adapter: its model card, and the headers of its files.

Keys of the card's front matter are those of the Hugging Face hub. Header keys are those that A1111 and
sd-scripts read (`ss_*`) and of the ModelSpec standard 1.0.1 (`modelspec.*`). Nothing here holds a time, a
path, a host or a caption: the usual `ss_tag_frequency` would give the captions away.
"""

from __future__ import annotations

import html
import json
import shlex
from collections.abc import Collection, Mapping

from torch import Tensor

from promptcdm.adapter_record import AdapterRecord
from promptcdm.lora_format import lora_modules

# Licence identifiers of the hub; another one goes into license_name.
_HUB_LICENSES = (
    *("unknown", "apache-2.0", "mit", "bsd-2-clause", "bsd-3-clause", "isc", "zlib", "unlicense", "mpl-2.0"),
    *("cc0-1.0", "cc-by-3.0", "cc-by-4.0", "cc-by-sa-3.0", "cc-by-sa-4.0", "cc-by-nd-4.0", "cc-by-nc-3.0"),
    *("cc-by-nc-4.0", "cc-by-nc-sa-3.0", "cc-by-nc-sa-4.0", "cc-by-nc-nd-3.0", "cc-by-nc-nd-4.0", "ofl-1.1"),
    *(
        "creativeml-openrail-m",
        "openrail++",
        "openrail",
        "agpl-3.0",
        "gpl-2.0",
        "gpl-3.0",
        "lgpl-2.1",
        "lgpl-3.0",
    ),
)
_RESOLUTION = {"sd1": 512, "sd2": 768, "sdxl": 1024}
_SS_BASE = {"sd2": "sd_v2", "sdxl": "sdxl_base_v1-0"}
_MODELSPEC = {"sd2": "stable-diffusion-v2-768-v", "sdxl": "stable-diffusion-xl-v1-base"}


def kohya_header(record: AdapterRecord, lora: Mapping[str, Tensor]) -> dict[str, str]:
    """Header of NAME.safetensors: how A1111 and sd-scripts recognise it, and whose it is."""
    ranks = [a.shape[0] for a, _ in lora_modules(lora).values()]
    rank = str(max(ranks))
    architecture = record.backbone.architecture
    convolutions = any(a.shape[2:].numel() > 1 for a, _ in lora_modules(lora).values() if a.ndim == 4)
    arguments = {"conv_dim": rank, "conv_alpha": rank} if convolutions else {}
    return {
        "format": "pt",
        "ss_v2": str(architecture == "sd2"),
        "ss_base_model_version": _SS_BASE.get(architecture, "sd_v1"),
        "ss_network_module": "networks.lora",
        "ss_network_dim": rank,
        "ss_network_alpha": rank,
        "ss_network_args": json.dumps(arguments),
        "ss_output_name": record.source,
        **_modelspec(record, "lora"),
    }


def embedding_header(record: AdapterRecord) -> dict[str, str]:
    """Header of learned_embeds.safetensors."""
    return {"format": "pt", **_modelspec(record, "textual-inversion")}


def model_card(record: AdapterRecord, text_encoders: Collection[str]) -> str:
    """README.md of the adapter folder: front matter for the hub, who and whose it is, how to use it.

    `text_encoders` are those that its soft prompt has embeddings for.
    """
    about, usage = _about(record), _usage(record, text_encoders)
    return f"{_front_matter(record)}\n# {record.source}\n\n{about}\n\n## Use\n\n{usage}"


def token(source: str) -> str:
    """The word that stands for a source's soft prompt in stock pipelines."""
    return f"<{source}>"


def _modelspec(record: AdapterRecord, part: str) -> dict[str, str]:
    architecture = record.backbone.architecture
    resolution = record.settings.get("resolution") or _RESOLUTION.get(architecture, 64)
    facts = {
        "sai_model_spec": "1.0.1",
        "architecture": f"{_MODELSPEC.get(architecture, 'stable-diffusion-v1')}/{part}",
        "implementation": "diffusers",
        "title": record.source,
        "resolution": f"{resolution}x{resolution}",
        "license": record.license,
        "author": record.author,
        "description": record.attribution,
        "trigger_phrase": record.trigger,
    }
    return {f"modelspec.{key}": value for key, value in facts.items() if value}


def _front_matter(record: AdapterRecord) -> str:
    license_id = "unknown" if record.license == "NOASSERTION" else record.license.lower()
    lines = [f"base_model: {_yaml(record.backbone.name)}", "base_model_relation: adapter"]
    if license_id in _HUB_LICENSES:
        lines.append(f"license: {license_id}")
    else:
        lines += ["license: other", f"license_name: {_yaml(record.license)}"]
    words = [token(record.source) if "prompt" in record.kind else "", record.trigger]
    instance_prompt = " ".join(word for word in words if word)
    lines.append(f"instance_prompt: {_yaml(instance_prompt) if instance_prompt else 'null'}")
    family = "stable-diffusion-xl" if record.backbone.architecture == "sdxl" else "stable-diffusion"
    tags = [family, "text-to-image", "diffusers", "promptcdm"]
    tags += ["lora"] if "lora" in record.kind else []
    tags += ["textual_inversion"] if "prompt" in record.kind else []
    lines += ["library_name: diffusers", "pipeline_tag: text-to-image", "tags:"]
    lines += [f"- {tag}" for tag in tags]
    return "\n".join(["---", *lines, "---", ""])


def _about(record: AdapterRecord) -> str:
    by = "known by" if record.kind == "none" else "trained on"
    trained = f"{by} the {record.items} pictures of this source alone" if record.items else "imported"
    what = {
        "lora": "A LoRA",
        "prompt": "A soft prompt",
        "lora+prompt": "A LoRA and a soft prompt",
        "none": "The backbone itself as a source, without weights,",
    }[record.kind]
    rows = {
        "licence": record.license,
        "author": record.author,
        "origin": record.origin,
        "attribution": record.attribution,
        "imported from": record.imported_from,
        "trigger": record.trigger,
        "unconditional branch": record.unconditional,
        "adapter digest (sha256)": record.sha256,
        "source digest (sha256)": record.source_digest,
        "backbone digest (sha256)": record.backbone.digest,
    }
    table = "\n".join(f"| {key} | {_cell(value)} |" for key, value in rows.items() if value)
    name = _cell(record.backbone.name)
    return (
        f"{what} for {name}, {trained}, for promptcdm: images are composed from the adapters that a user may "
        f"use, and deleting this folder forgets the source.\n\n| | |\n|---|---|\n{table}"
    )


def _usage(record: AdapterRecord, text_encoders: Collection[str]) -> str:
    name = record.source
    if record.slices > 1:
        return _usage_of_slices(record)
    words = [token(name) if "prompt" in record.kind else "", record.trigger, "a tree"]
    imports = ["from diffusers import DiffusionPipeline"]
    stock = [f"pipe = DiffusionPipeline.from_pretrained({json.dumps(record.backbone.name)})"]
    if "lora" in record.kind:
        stock.append(f'pipe.load_lora_weights("{name}")  # this folder')
    if len(text_encoders) == 1:
        stock.append(f'pipe.load_textual_inversion("{name}")  # this folder')
    elif text_encoders:
        imports.append("from safetensors.torch import load_file")
        stock.append(f'learned = load_file("{name}/learned_embeds.safetensors")')
        stock += [
            f'pipe.load_textual_inversion(learned["{key}"], token="{token(name)}", '
            f"text_encoder=pipe.text_encoder{end}, tokenizer=pipe.tokenizer{end})"
            for key, end in (("clip_l", ""), ("clip_g", "_2"))
        ]
    prompt = json.dumps(" ".join(word for word in words if word), ensure_ascii=False)
    code = "\n".join([*imports, "", *stock, f"image = pipe({prompt}).images[0]"])
    backbone = shlex.quote(record.backbone.name)
    other = f"\nComfyUI, A1111, Forge, SD.Next: `{name}.safetensors`.\n" if "lora" in record.kind else ""
    return (
        f'```sh\npromptcdm generate "a tree" --allowed {name} --backbone {backbone}\n```\n\n'
        f"```python\n{code}\n```\n{other}"
    )


def _usage_of_slices(record: AdapterRecord) -> str:
    backbone = shlex.quote(record.backbone.name)
    return (
        f"The source was trained in {record.slices} slices, whose predictions promptcdm adds, each with its share of "
        "the pictures. Another tool can load one slice, which is not the whole: each folder `slice-N` has a card.\n\n"
        f'```sh\npromptcdm generate "a tree" --allowed {record.source} --backbone {backbone}\n```\n'
    )


def _yaml(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def _cell(text: str) -> str:
    return html.escape(text, quote=False).replace("|", "\\|").replace("`", "&#96;")
