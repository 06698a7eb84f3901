"""Write nano as the `StableDiffusionPipeline` folder that ships: EMA weights in fp16, with its model card.

python examples/nano/export.py --run DIR [--out promptcdm/shipped/nano]
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from diffusers import StableDiffusionPipeline
from latents import latent_scale
from safetensors.torch import load_file
from torch import nn
from transformers import CLIPTokenizer
from unet import new_scheduler, new_text_encoder, new_unet
from vae import new_vae

REPOSITORY = Path(__file__).resolve().parent.parent.parent
UNREAD = (
    0.4  # length of a word's embedding: words begin at 0.28 or less, and those that captions held grow to 1.2
)


def pipeline_of(run: Path) -> StableDiffusionPipeline:
    """The pipeline of a run's last checkpoint, fp32."""
    vae = new_vae()
    vae.load_state_dict(load_file(run / "vae.safetensors"))
    vae.register_to_config(scaling_factor=latent_scale(run))
    tensors = {n[4:]: t for n, t in load_file(run / "unet.safetensors").items() if n.startswith("ema/")}
    parts = {"text_encoder": new_text_encoder(), "unet": new_unet()}
    for name, module in parts.items():
        module.load_state_dict(
            {n.removeprefix(name + "."): t for n, t in tensors.items() if n.startswith(name + ".")}
        )
    return StableDiffusionPipeline(
        vae=vae,
        tokenizer=CLIPTokenizer.from_pretrained(run / "tokenizer"),
        scheduler=new_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
        **parts,
    )


@torch.no_grad()
def lengthen_unread_words(words: nn.Embedding) -> int:
    """Give the embeddings of words that no caption held the length of the others; how many they are.

    As they began, all of them together look like no word at all to the text encoder, and an adapter could not tell a
    turtle from a robot. Their directions stay random: nothing is learned of what they mean, and captions of other words
    are encoded as before.
    """
    length = words.weight.norm(dim=1)
    unread = length < UNREAD
    words.weight[unread] *= (length[~unread].median() / length[unread])[:, None]
    return int(unread.sum())


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=REPOSITORY / "promptcdm" / "shipped" / "nano")
    args = parser.parse_args()
    pipe = pipeline_of(args.run)
    unread = lengthen_unread_words(pipe.text_encoder.get_input_embeddings())
    pipe.to(torch.float16)
    pipe.save_pretrained(args.out, safe_serialization=True)
    for file in args.out.rglob("config.json"):  # no path of the machine that trained it
        config = json.loads(file.read_text(encoding="utf-8"))
        config.pop("_name_or_path", None)
        if file.parent.name == "text_encoder":  # transformers loads what is named here, diffusers loads fp32
            config["dtype"] = "float32"
        file.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    concepts = json.loads((args.run / "latents.json").read_text(encoding="utf-8"))["concepts"]
    (args.out / "concepts.json").write_text(json.dumps(concepts, indent=0) + "\n", encoding="utf-8")
    log = (args.run / "log.jsonl").read_text(encoding="utf-8")
    (args.out / "train_log.jsonl").write_text(log, encoding="utf-8")
    total = sum(f.stat().st_size for f in args.out.rglob("*.safetensors"))
    step = json.loads((args.run / "unet.json").read_text())["step"]
    print(f"{args.out}: {total / 1e6:.1f} MB of weights, step {step}, {unread} words of no caption")


if __name__ == "__main__":
    main()
