"""`ComposedUNet`: equation (1) in the place of a stock pipeline's UNet.

    pipe.unet = composed = ComposedUNet(backbone, adapters, router="posterior")
    image = pipe(**composed.encode("a red bird")).images[0]

The pipeline hands over n rows, or 2n with guidance (unconditional first). Each source predicts the rows in which its
weight is not zero, with its own LoRA and its own text embeddings; the predictions are summed by w. The pipeline's
scheduler and guidance never know. The sum is linear, so guiding then composing equals composing then guiding.

    rows    (latent, timestep, text embedding, adapter); `row_forwards` counts those that were run, a sample
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_args

import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionOutput
from torch import Tensor, nn

from promptcdm import lora, router
from promptcdm.adapter import Adapter
from promptcdm.backbone import Backbone
from promptcdm.compose import compose_noise, keep_top_k
from promptcdm.errors import AdapterMismatch, BadInput, RunFailed
from promptcdm.prompt import PromptEmbeds
from promptcdm.router import Router
from promptcdm.settings import RouterName

ROUTERS = get_args(RouterName)


@dataclass(frozen=True)
class _Conditioning:
    """Embeddings of the rows as the pipeline orders them: unconditional first where guidance is on."""

    embeds: Tensor  # (rows, L, D)
    pooled: Tensor | None  # (rows, D2), SDXL


class ComposedUNet(nn.Module):
    """One run's view on the backbone: the allowed adapters, their text embeddings and the weights so far.

    Raises AdapterMismatch for an adapter of another backbone, and BadInput for a router that is unknown or needs
    statistics that an adapter does not have.
    """

    def __init__(
        self,
        backbone: Backbone,
        adapters: Sequence[Adapter],
        *,
        router: RouterName = "posterior",
        top_k: int = 0,
        strength: Mapping[str, float] | None = None,
        guidance_scale: float = 5.0,
        allow_backbone_mismatch: bool = False,
    ) -> None:
        super().__init__()
        _check_router(router, adapters)
        for adapter in adapters:
            _check_backbone(adapter, backbone, allow_backbone_mismatch)
        self.backbone = backbone
        self.adapters = tuple(adapters)
        self.router_name, self.top_k, self.guidance_scale = router, top_k, guidance_scale
        self.weights: list[Tensor] = []  # one (n, N) a UNet call
        self.row_forwards: Tensor | None = None  # (n,) rows run so far, a sample
        self._own: dict[str, _Conditioning] = {}
        self._route: Router | None = None
        unknown = sorted(set(strength or {}) - {a.source for a in adapters})
        if unknown:
            raise BadInput(f"strength names {unknown[0]}, which is not among the allowed sources")
        try:
            with backbone.lock:
                for adapter in self.adapters:
                    if (name := self._name(adapter)) is not None:
                        scaled = _scaled(adapter, (strength or {}).get(adapter.source, 1.0))
                        lora.insert(backbone.unet, name, scaled)
        except AdapterMismatch:  # the second does not fit: the first must not stay behind
            self.close()
            raise

    @property
    def config(self) -> Any:
        """The UNet's configuration, which stock pipelines read."""
        return self.backbone.unet.config

    @property
    def dtype(self) -> torch.dtype:
        """What the UNet computes in."""
        return self.backbone.dtype

    @property
    def device(self) -> torch.device:
        """Where the UNet is."""
        return self.backbone.device

    @property
    def add_embedding(self) -> Any:
        """SDXL's embedding of sizes and pooled text, whose width its pipeline checks."""
        return self.backbone.unet.add_embedding

    def set_attention_slice(self, slice_size: str | int | list[int]) -> None:
        """Pass `pipe.enable_attention_slicing()` on to the UNet."""
        self.backbone.unet.set_attention_slice(slice_size)

    def load_lora_adapter(self, *args: object, **kwargs: object) -> None:
        """Refuse: a LoRA loaded through the pipeline would act in every source's prediction."""
        raise BadInput(
            "a composed UNet takes no further LoRA; add it to the store with import-adapter and allow it"
        )

    fuse_lora = load_attn_procs = load_lora_adapter

    def encode(self, prompt: str | Sequence[str], negative_prompt: str = "") -> dict[str, Any]:
        """Arguments for the pipeline's call: embeddings and the guidance scale. Starts a new run.

        Every source's own embeddings (its trigger and soft prompt) are kept here for the UNet calls that follow.
        """
        prompts = [prompt] if isinstance(prompt, str) else list(prompt)
        guided = self.guidance_scale > 1
        plain = self.backbone.encode_prompts(prompts)
        negative = self.backbone.encode_negative(negative_prompt, len(prompts))
        self.weights, self.row_forwards = [], None
        self._own = {a.source: self._conditioning_of(a, prompts, plain, negative) for a in self.adapters}
        self._route = self._router(plain)
        arguments: dict[str, Any] = {"prompt_embeds": plain.embeds, "guidance_scale": self.guidance_scale}
        if guided:
            arguments["negative_prompt_embeds"] = negative.embeds
        if plain.pooled is not None:
            arguments["pooled_prompt_embeds"] = plain.pooled
            if guided:
                arguments["negative_pooled_prompt_embeds"] = negative.pooled
        return arguments

    @torch.no_grad()
    def forward(
        self,
        sample: Tensor,
        timestep: Tensor | float,
        encoder_hidden_states: Tensor,
        added_cond_kwargs: dict[str, Tensor] | None = None,
        return_dict: bool = True,
        **kwargs: Any,
    ) -> UNet2DConditionOutput | tuple[Tensor]:
        """Equation (1) over the rows, called as the stock UNet is.

        Raises RunFailed where a source's prediction is not finite.
        """
        if self._route is None:
            raise BadInput(
                "call composed.encode(prompt) and pass what it returns to the pipeline before it runs"
            )
        guided = self.guidance_scale > 1
        if guided and len(sample) % 2:
            raise BadInput(
                f"{len(sample)} rows with guidance_scale {self.guidance_scale}: it takes the unconditional rows too"
            )
        n = len(sample) // 2 if guided else len(sample)
        given = {k: v for k, v in kwargs.items() if v is not None}
        call = _Call(sample, timestep, encoder_hidden_states, added_cond_kwargs, given)
        if not self.adapters:
            self._count(n, len(sample) // n * torch.ones(n))
            eps = self._predict(None, call, torch.arange(len(sample)))
        else:
            eps = self._compose(call, n, guided)
        return UNet2DConditionOutput(sample=eps) if return_dict else (eps,)

    def _compose(self, call: _Call, n: int, guided: bool) -> Tensor:
        sample = call.sample
        t = torch.as_tensor(call.timestep, dtype=torch.float64).reshape(-1).expand(len(sample))[-n:]
        assert self._route is not None
        w = keep_top_k(
            self._route(sample[-n:], self.backbone.alpha_bar(t).to(sample.device)), self.top_k
        )  # (n, N)
        eps = sample.new_zeros((len(self.adapters), *sample.shape))
        rows_run = torch.zeros(n)
        shared = self._shared_unconditional(call, w, n, rows_run) if guided else None
        for i, adapter in enumerate(self.adapters):
            kept = w[:, i].nonzero().flatten().cpu()  # absent rows are left out by index
            if not len(kept):
                continue
            rows = kept + n if guided else kept
            if guided and adapter.record.unconditional == "adapter":
                rows = torch.cat([kept, rows])
            elif shared is not None:
                eps[i, :n] = shared
            predicted = self._predict(adapter, call, rows)
            if not predicted.isfinite().all():
                raise RunFailed(
                    f"the prediction of {adapter.source} is not finite; train it again or leave it out of allowed"
                )
            eps[i, rows.to(sample.device)] = predicted
            rows_run[kept] += len(rows) // len(kept)
        self.weights.append(w.float().cpu())
        self._count(n, rows_run)
        return compose_noise(eps, w.repeat(2, 1) if guided else w)

    def _shared_unconditional(self, call: _Call, w: Tensor, n: int, rows_run: Tensor) -> Tensor | None:
        """The bare backbone's unconditional rows (n, C, H, W), if any source wants them: one a sample."""
        wanted = torch.tensor([a.record.unconditional == "backbone" for a in self.adapters], device=w.device)
        rows = (w[:, wanted] != 0).any(1).nonzero().flatten().cpu()
        if not len(rows):
            return None
        shared = torch.zeros_like(call.sample[:n])
        shared[rows.to(shared.device)] = self._predict(None, call, rows)
        rows_run[rows] += 1
        return shared

    def _predict(self, adapter: Adapter | None, call: _Call, rows: Tensor) -> Tensor:
        own = None if adapter is None else self._own[adapter.source]
        rows = rows.to(call.sample.device)
        with self.backbone.lock, lora.running(self.backbone.unet, self._name(adapter)):
            return call.run(self.backbone.unet, rows, own)

    def _count(self, n: int, rows_run: Tensor) -> None:
        self.row_forwards = rows_run if self.row_forwards is None else self.row_forwards + rows_run

    def _conditioning_of(
        self, adapter: Adapter, prompts: list[str], plain: PromptEmbeds, negative: PromptEmbeds
    ) -> _Conditioning:
        trigger = adapter.record.trigger
        if trigger or adapter.prompt:
            plain = self.backbone.encode_prompts(
                [f"{trigger} {p}".strip() for p in prompts], adapter.prompt or None
            )
        both = [negative, plain] if self.guidance_scale > 1 else [plain]
        pooled = [part.pooled for part in both if part.pooled is not None]
        return _Conditioning(torch.cat([part.embeds for part in both]), torch.cat(pooled) if pooled else None)

    def _router(self, plain: PromptEmbeds) -> Router:
        known = [a.statistics for a in self.adapters if a.statistics is not None]
        if self.router_name == "uniform" or not self.adapters:
            return router.uniform_router(max(1, len(self.adapters)))
        if self.router_name == "prior":
            count = torch.tensor([s.count for s in known], device=self.device)
            return router.prior_router(router.share_prior(count))
        prior = router.prompt_prior(plain.mean, [s.caption_prototypes.to(self.device) for s in known])
        if self.router_name == "prompt":
            return router.prior_router(prior)
        mean = torch.stack([s.latent_mean for s in known]).to(self.device)
        var = torch.stack([s.latent_var for s in known]).to(self.device)
        return router.posterior_router(router.SourceStatistics(mean, var), prior)

    def _name(self, adapter: Adapter | None) -> str | None:
        return None if adapter is None or not adapter.lora else f"{adapter.source}_{id(self):x}"

    def close(self) -> None:
        """Take this run's adapters out of the UNet again."""
        with self.backbone.lock:
            for adapter in self.adapters:
                if (name := self._name(adapter)) is not None:
                    lora.remove(self.backbone.unet, name)
        self._route = None


@dataclass(frozen=True)
class _Call:
    """The arguments of one UNet call, of which any rows can be run."""

    sample: Tensor
    timestep: Tensor | float
    encoder_hidden_states: Tensor
    added: dict[str, Tensor] | None
    given: dict[str, Any]

    def run(self, unet: Any, rows: Tensor, own: _Conditioning | None) -> Tensor:
        n = len(self.sample)
        t = torch.as_tensor(self.timestep, device=self.sample.device).reshape(-1).expand(n)[rows]
        embeds = self.encoder_hidden_states if own is None else _repeated(own.embeds, n)
        added = {k: v[rows] for k, v in (self.added or {}).items()}
        if own is not None and own.pooled is not None:
            added["text_embeds"] = _repeated(own.pooled, n)[rows].to(self.sample.dtype)
        given = {k: _rows_of(v, rows, n) for k, v in self.given.items()}
        embeds = embeds[rows].to(self.sample.dtype)
        predicted: Tensor
        (predicted,) = unet(
            self.sample[rows], t, embeds, added_cond_kwargs=added or None, return_dict=False, **given
        )
        return predicted


def _repeated(embeds: Tensor, rows: int) -> Tensor:
    """Each prompt's embedding for each of its pictures, in the pipelines' order."""
    return embeds.repeat_interleave(rows // len(embeds), dim=0)


def _rows_of(value: Any, rows: Tensor, n: int) -> Any:
    if isinstance(value, Tensor):
        return value[rows] if value.ndim and len(value) == n else value
    if isinstance(value, (list, tuple)):
        return type(value)(_rows_of(v, rows, n) for v in value)
    return value


def _scaled(adapter: Adapter, strength: float) -> dict[str, Tensor]:
    return {k: t * strength if k.endswith("lora_B.weight") else t for k, t in adapter.lora.items()}


def _check_router(name: str, adapters: Sequence[Adapter]) -> None:
    if name not in ROUTERS:
        raise BadInput(f"router {name!r} is unknown; accepted: {', '.join(ROUTERS)}")
    without = [a.source for a in adapters if a.statistics is None]
    if name != "uniform" and without:
        raise BadInput(
            f"router {name} needs statistics, which {', '.join(without)} does not have (imported without pictures); "
            "use --router uniform"
        )


def _check_backbone(adapter: Adapter, backbone: Backbone, allow_mismatch: bool) -> None:
    trained = adapter.record.backbone
    if trained.architecture != backbone.architecture:
        raise AdapterMismatch(
            f"{adapter.source} was trained on {trained.name} ({trained.architecture}), this backbone is "
            f"{backbone.name} ({backbone.architecture}); load the one it was trained on"
        )
    if trained.digest != backbone.digest and not allow_mismatch:
        raise AdapterMismatch(
            f"{adapter.source} was trained on {trained.name} {trained.digest[:12]}, this backbone is {backbone.name} "
            f"{backbone.digest[:12]}; load the one it was trained on or allow the mismatch (--allow-backbone-mismatch)"
        )
