"""Names of a text encoder's layers: one spelling in our files, and those of models and of other tools.

    ours         text_encoder.text_model.encoder.layers.N.self_attn.q_proj     also k_proj, v_proj, out_proj
                 text_encoder.text_model.encoder.layers.N.mlp.fc1              also fc2
                 text_encoder_2.text_projection                                where the encoder has one
    kohya        lora_te_text_model_encoder_layers_N_self_attn_q_proj          lora_te1_, lora_te2_ where there are two
    diffusers    as ours; older: ...self_attn.to_q

Stock diffusers reads our spelling with every version of transformers, in whose version 5 CLIPTextModel has no part
`text_model` any more and CLIPTextModelWithProjection still has.
"""

from __future__ import annotations

from collections.abc import Collection

TEXT_ENCODERS = ("text_encoder", "text_encoder_2")

_KOHYA = {"lora_te_": "text_encoder", "lora_te1_": "text_encoder", "lora_te2_": "text_encoder_2"}
_KEYS = (*_KOHYA, *(f"{encoder}." for encoder in TEXT_ENCODERS))
_OLDER = {"to_q": "q_proj", "to_k": "k_proj", "to_v": "v_proj", "to_out": "out_proj"}
_PROJECTION = "text_projection"


def is_text_key(key: str) -> bool:
    """Whether a key of a LoRA file is of a text encoder, in any spelling."""
    return key.startswith(_KEYS)


def text_name(encoder: str, module: str) -> str:
    """A layer's name in the model or in a diffusers file -> ours."""
    parent, dot, last = module.removeprefix("text_model.").rpartition(".")
    inner = f"{parent}{dot}{_OLDER.get(last, last)}"
    return f"{encoder}.{inner}" if inner == _PROJECTION else f"{encoder}.text_model.{inner}"


def kohya_text_name(name: str, *, two: bool) -> str:
    """Our name -> the whole name in kohya's files, of a model with one text encoder or with two."""
    encoder, _, module = name.partition(".")
    number = {"text_encoder": "1", "text_encoder_2": "2"}[encoder] if two else ""
    return f"lora_te{number}_{module.replace('.', '_')}"


def kohya_text_names(names: Collection[str]) -> dict[str, str]:
    """Every name that kohya's files may have for these layers -> ours."""
    found = {}
    for name in names:
        encoder, _, module = name.partition(".")
        for prefix in (p for p, named in _KOHYA.items() if named == encoder):
            for spelling in (module, module.removeprefix("text_model.")):
                found[prefix + spelling.replace(".", "_")] = name
    return found
