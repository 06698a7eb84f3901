"""Train nano's text encoder and UNet together, from scratch, on cached latents.

    python examples/nano/unet.py --pictures DIR --run DIR --steps N
    python examples/nano/unet.py --pictures DIR --run DIR --minutes 16 --device cuda --batch 512 --rate 1.4e-3 --compile

v-prediction with its weight held at SNR + 1 = 5, after min-SNR (Hang et al. 2023), bf16 autocast over fp32 weights,
Muon and AdamW (`optimizer.py`), EMA. The learning rate is constant after a warm-up and falls to zero over the last
part. Every random number is a function of the step and the kind of device, so a resumed run goes on as if it had not
stopped.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from latents import LatentSet, latent_set
from optimizer import MatrixOptimizer
from safetensors.torch import load_file, save_file
from schedule import Schedule, add_options
from tokenizer import MAX_LENGTH, VOCABULARY
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer
from vae import new_vae

WIDTH = 192  # of the text encoder and of cross-attention
EMA = 0.999
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
    step: int,
    model: nn.ModuleDict,
    data: LatentSet,
    batch: int,
    alphas_cumprod: Tensor,
    random: torch.Generator,
) -> Tensor:
    """Weighted v-prediction loss of one step's batch."""
    random.manual_seed(2_000_000_000 + step)
    x_0, tokens = data.draw(batch, random)
    t = torch.randint(1000, (batch,), generator=random, device=x_0.device)
    noise = torch.randn(x_0.shape, generator=random, device=x_0.device)
    abar = alphas_cumprod[t].view(-1, 1, 1, 1)
    x_t = abar.sqrt() * x_0 + (1 - abar).sqrt() * noise
    v = abar.sqrt() * noise - (1 - abar).sqrt() * x_0
    with torch.autocast(x_0.device.type, torch.bfloat16):
        prompt_embeds = model["text_encoder"](tokens).last_hidden_state
        predicted = model["unet"](x_t, t, prompt_embeds).sample
    # v-prediction weighs the error of x_0 by SNR + 1; beyond 5 it is held there. Min-SNR itself (SNR, at most 5) leaves
    # the noisy half of the steps, where the caption decides what is drawn, nearly without weight: it learned to draw
    # blobs of no particular object in the first 24,000 pictures.
    snr = abar.flatten() / (1 - abar.flatten())
    weight = (snr + 1).clamp(max=5) / (snr + 1)
    return (weight * (predicted.float() - v).square().mean((1, 2, 3))).mean()


def save_run(
    run: Path,
    step: int,
    model: nn.ModuleDict,
    ema: dict[str, Tensor],
    optimizer: MatrixOptimizer,
    schedule: Schedule,
) -> None:
    """Write the checkpoint beside the old one and rename, so that a kill loses nothing."""
    parts = {"model": model.state_dict(), "ema": ema, "optimizer": optimizer.state()}
    tensors = {f"{part}/{name}": t.contiguous() for part, named in parts.items() for name, t in named.items()}
    save_file(tensors, run / "unet.safetensors.partial", {"step": str(step)})
    (run / "unet.safetensors.partial").replace(run / "unet.safetensors")
    (run / "unet.json").write_text(json.dumps({"step": step, "seconds": schedule.seconds}))


def load_run(
    run: Path, model: nn.ModuleDict, optimizer: MatrixOptimizer, schedule: Schedule, start: Path | None
) -> tuple[int, dict[str, Tensor]]:
    """Step and EMA weights of the last checkpoint, or of a fresh run (from `start`, if given); the model is filled."""
    if not (run / "unet.json").exists():
        for name, module in model.items() if start else ():
            module.load_state_dict({n: t.float() for n, t in load_file(start / name / WEIGHTS[name]).items()})
        return 0, {name: tensor.clone() for name, tensor in model.state_dict().items()}
    tensors = load_file(run / "unet.safetensors")
    part = {
        p: {n.partition("/")[2]: t for n, t in tensors.items() if n.startswith(p + "/")}
        for p in ("model", "ema", "optimizer")
    }
    model.load_state_dict(part["model"])
    optimizer.load(part["optimizer"])
    kept = json.loads((run / "unet.json").read_text())
    schedule.before = kept["seconds"]
    device = next(model.parameters()).device
    return kept["step"], {name: tensor.to(device) for name, tensor in part["ema"].items()}


def train(args: argparse.Namespace) -> None:
    """Train to the end, logging and checkpointing as it goes."""
    vae: AutoencoderKL = new_vae()
    vae.load_state_dict(load_file(args.run / "vae.safetensors"))
    tokenizer = CLIPTokenizer.from_pretrained(args.run / "tokenizer")
    data = latent_set(args.pictures, vae.eval().to(args.device), tokenizer, args.run)
    model = nn.ModuleDict({"text_encoder": new_text_encoder(), "unet": new_unet()}).to(args.device)
    optimizer = MatrixOptimizer(model, args.rate)
    schedule = Schedule(args.steps, args.minutes, args.cooldown)
    step, ema = load_run(args.run, model, optimizer, schedule, args.start)
    averaged, learned = [ema[n] for n, _ in model.named_parameters()], [p.data for p in model.parameters()]
    if args.compile:
        model["unet"].compile()
    alphas_cumprod = new_scheduler().alphas_cumprod.to(args.device)
    random = torch.Generator(args.device)
    mean_loss, before, first = None, schedule.seconds, step
    while schedule.share_left(step):
        rate = args.rate * schedule.rate(step)
        loss = loss_at(step, model, data, args.batch, alphas_cumprod, random)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step(rate)
        torch._foreach_lerp_(averaged, learned, 1 - min(EMA, (1 + step) / (10 + step)))
        loss = loss.detach()
        mean_loss = loss if mean_loss is None else mean_loss.lerp(loss, 0.01)
        step += 1
        if step % 100 == 0:
            speed = (step - first) * args.batch / (schedule.seconds - before)
            row = {
                "stage": "unet",
                "step": step,
                "pictures": step * args.batch,
                "loss": round(mean_loss.item(), 5),
                "learning_rate": round(rate, 7),
                "pictures_per_second": round(speed, 1),
            }
            print(json.dumps(row), flush=True)
            with (args.run / "log.jsonl").open("a") as log:
                log.write(json.dumps(row) + "\n")
        if step % args.checkpoint_every == 0:
            save_run(args.run, step, model, ema, optimizer, schedule)
    save_run(args.run, step, model, ema, optimizer, schedule)


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
    parser.add_argument("--rate", type=float, default=7e-4, help="highest learning rate")
    parser.add_argument("--compile", action="store_true", help="torch.compile the UNet")
    parser.add_argument("--checkpoint-every", type=int, default=250, help="steps")
    add_options(parser, steps=20_000, batch=64, cooldown=0.3)
    args = parser.parse_args()
    if args.device != "cpu":
        torch.set_float32_matmul_precision("high")
        train(args)
        return
    with sdpa_kernel(SDPBackend.MATH):  # at 64 latents it is a tenth faster on a CPU than the fused kernel
        train(args)


if __name__ == "__main__":
    main()
