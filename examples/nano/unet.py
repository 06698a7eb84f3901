"""Train nano's text encoder and UNet together, from scratch, on cached latents.

    python examples/nano/unet.py --pictures DIR --run DIR --steps N [--cooldown N]

v-prediction with its weight held at SNR + 1 = 5, after min-SNR (Hang et al. 2023), batch 64, bf16 autocast over fp32
weights, Muon and AdamW (`optimizer.py`), EMA. The learning rate is constant after a warm-up, so a run can be lengthened
at will; `--cooldown N` takes it to zero over the last N steps. Every random number is a function of the step, so a
resumed run goes on as if it had not stopped.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from latents import LatentSet, latent_set
from optimizer import MatrixOptimizer
from safetensors.torch import load_file, save_file
from tokenizer import MAX_LENGTH, VOCABULARY
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer
from vae import new_vae
from wordings import caption

BATCH = 64
WIDTH = 192  # of the text encoder and of cross-attention
LEARNING_RATE = 7e-4
CHECKPOINT_EVERY = 250
WEIGHTS = {"text_encoder": "model.safetensors", "unet": "diffusion_pytorch_model.safetensors"}


def new_text_encoder() -> CLIPTextModel:
    """A four-layer CLIP text encoder of width 192, 3.0 M parameters."""
    torch.manual_seed(1)
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=VOCABULARY,
            hidden_size=WIDTH,
            intermediate_size=4 * WIDTH,
            num_hidden_layers=4,
            num_attention_heads=4,
            max_position_embeddings=MAX_LENGTH,
            projection_dim=WIDTH,
            bos_token_id=VOCABULARY - 2,
            eos_token_id=VOCABULARY - 1,
            pad_token_id=VOCABULARY - 1,
        )
    )


def new_unet() -> UNet2DConditionModel:
    """Two resolutions, 8 x 8 and 4 x 4, cross-attention in both: about 20 M parameters.

    The caption reaches it twice: by cross-attention, and pooled, added to the embedding of the timestep
    (`addition_embed_type`), which every block hears. The second starts at zero.
    """
    torch.manual_seed(2)
    unet = UNet2DConditionModel(
        sample_size=8,
        in_channels=16,
        out_channels=16,
        block_out_channels=(192, 256),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D",) * 2,
        up_block_types=("CrossAttnUpBlock2D",) * 2,
        cross_attention_dim=WIDTH,
        attention_head_dim=4,
        norm_num_groups=32,
        addition_embed_type="text",
        addition_embed_type_num_heads=4,
    )
    nn.init.zeros_(unet.add_embedding.norm2.weight)
    return unet


def new_scheduler() -> DDIMScheduler:
    """Stable Diffusion's noise schedule, with v-prediction and trailing steps."""
    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        prediction_type="v_prediction",
        timestep_spacing="trailing",
    )


def loss_at(
    step: int, model: nn.ModuleDict, tokenizer: CLIPTokenizer, data: LatentSet, alphas_cumprod: Tensor
) -> Tensor:
    """Weighted v-prediction loss of one step's batch."""
    rng = np.random.default_rng([2, step])
    rows = data.draw(BATCH, rng)
    captions = ["" if rng.random() < 0.1 else caption(data.texts[data.text_of[row]], rng) for row in rows]
    x_0 = data.sample(rows, rng)
    t = torch.from_numpy(rng.integers(0, 1000, BATCH))
    noise = torch.from_numpy(rng.standard_normal(x_0.shape, dtype=np.float32))
    abar = alphas_cumprod[t].view(-1, 1, 1, 1)
    x_t = abar.sqrt() * x_0 + (1 - abar).sqrt() * noise
    v = abar.sqrt() * noise - (1 - abar).sqrt() * x_0
    tokens = tokenizer(
        captions, padding="max_length", truncation=True, max_length=MAX_LENGTH, return_tensors="pt"
    )
    with torch.autocast("cpu", torch.bfloat16):
        prompt_embeds = model["text_encoder"](tokens.input_ids).last_hidden_state
        predicted = model["unet"](x_t, t, prompt_embeds).sample
    # v-prediction weighs the error of x_0 by SNR + 1; beyond 5 it is held there. Min-SNR itself (SNR, at most 5) leaves
    # the noisy half of the steps, where the caption decides what is drawn, nearly without weight: it learned to draw
    # blobs of no particular object in the first 24,000 pictures.
    snr = abar.flatten() / (1 - abar.flatten())
    weight = (snr + 1).clamp(max=5) / (snr + 1)
    return (weight * (predicted.float() - v).square().mean((1, 2, 3))).mean()


def save_run(
    run: Path, step: int, model: nn.ModuleDict, ema: dict[str, Tensor], optimizer: MatrixOptimizer
) -> None:
    """Write the checkpoint beside the old one and rename, so that a kill loses nothing."""
    parts = {"model": model.state_dict(), "ema": ema, "optimizer": optimizer.state()}
    tensors = {f"{part}/{name}": t.contiguous() for part, named in parts.items() for name, t in named.items()}
    save_file(tensors, run / "unet.safetensors.partial", {"step": str(step)})
    (run / "unet.safetensors.partial").replace(run / "unet.safetensors")
    (run / "unet.json").write_text(json.dumps({"step": step}))


def load_run(
    run: Path, model: nn.ModuleDict, optimizer: MatrixOptimizer, start: Path | None
) -> tuple[int, dict[str, Tensor]]:
    """Step and EMA weights of the last checkpoint, or of a fresh run (from `start`, if given); the model is filled."""
    if not (run / "unet.json").exists():
        for name, module in model.items() if start else ():
            weights = load_file(start / name / WEIGHTS[name])
            lacking, unknown = module.load_state_dict(
                {n: t.float() for n, t in weights.items()}, strict=False
            )
            if unknown or not all(n.startswith("add_embedding.") for n in lacking):
                raise SystemExit(f"{start / name} is of another architecture: {(lacking + unknown)[:3]}")
        return 0, {name: tensor.clone() for name, tensor in model.state_dict().items()}
    tensors = load_file(run / "unet.safetensors")
    part = {
        p: {n.partition("/")[2]: t for n, t in tensors.items() if n.startswith(p + "/")}
        for p in ("model", "ema", "optimizer")
    }
    model.load_state_dict(part["model"])
    optimizer.load(part["optimizer"])
    return json.loads((run / "unet.json").read_text())["step"], part["ema"]


def train(args: argparse.Namespace) -> None:
    """Train to `--steps`, logging and checkpointing as it goes."""
    vae: AutoencoderKL = new_vae()
    vae.load_state_dict(load_file(args.run / "vae.safetensors"))
    data = latent_set(args.pictures, vae.eval(), args.run)
    tokenizer = CLIPTokenizer.from_pretrained(args.run / "tokenizer")
    model = nn.ModuleDict({"text_encoder": new_text_encoder(), "unet": new_unet()})
    optimizer = MatrixOptimizer(model, LEARNING_RATE)
    step, ema = load_run(args.run, model, optimizer, args.start)
    alphas_cumprod = new_scheduler().alphas_cumprod
    started, mean_loss, first = time.time(), None, step
    while step < args.steps:
        rate = LEARNING_RATE * min(1.0, (step + 1) / 200)
        rate *= min(1.0, (args.steps - step) / args.cooldown) if args.cooldown else 1.0
        loss = loss_at(step, model, tokenizer, data, alphas_cumprod)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step(rate)
        decay = min(0.998, (1 + step) / (10 + step))
        torch._foreach_lerp_(
            [ema[n] for n, _ in model.named_parameters()], [p.data for p in model.parameters()], 1 - decay
        )
        mean_loss = loss.item() if mean_loss is None else 0.99 * mean_loss + 0.01 * loss.item()
        step += 1
        if step % 100 == 0:
            seconds = time.time() - started
            row = {
                "stage": "unet",
                "step": step,
                "pictures": step * BATCH,
                "loss": round(mean_loss, 5),
                "learning_rate": rate,
            }
            row |= {"pictures_per_second": round((step - first) * BATCH / seconds, 1)}
            print(json.dumps(row), flush=True)
            with (args.run / "log.jsonl").open("a") as log:
                log.write(json.dumps(row) + "\n")
        if step % CHECKPOINT_EVERY == 0 or step == args.steps:
            save_run(args.run, step, model, ema, optimizer)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--pictures", type=Path, nargs="+", required=True, help="folders made by examples/emoji/build.py"
    )
    parser.add_argument(
        "--run", type=Path, required=True, help="holds vae.safetensors, the tokenizer and checkpoints"
    )
    parser.add_argument("--start", type=Path, help="a nano folder whose weights a fresh run starts from")
    parser.add_argument("--steps", type=int, default=20_000)
    parser.add_argument(
        "--cooldown", type=int, default=0, help="last steps over which the learning rate falls to zero"
    )
    with sdpa_kernel(SDPBackend.MATH):  # at 64 latents it is a tenth faster on a CPU than the fused kernel
        train(parser.parse_args())


if __name__ == "__main__":
    main()
