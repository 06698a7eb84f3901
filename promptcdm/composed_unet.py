"""`ComposedUNet`: equation (1) in the place of a stock pipeline's UNet.

    pipe.unet = composed = ComposedUNet(backbone, adapters, router="posterior")
    image = pipe(**composed.encode("a red bird")).images[0]

The pipeline hands over n rows, or 2n with guidance (unconditional first). At each call the router weighs the sources,
the rows that are needed are run by the backbone's engine in one forward, and the predictions are summed by w. The
pipeline's scheduler and guidance never know. The sum is linear: guiding then composing is composing then guiding.

    n, N    pictures, allowed sources         w    (n, N), or (n, N, h, w) by region
    eps     predictions, one a source         (N, n or 2n, C, h, w); a source in slices has the sum of theirs (terms.py)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionOutput
from torch import Tensor, nn

from promptcdm.adapter import Adapter
from promptcdm.backbone import Backbone
from promptcdm.compose import by_source, compose_noise, keep_largest, spread
from promptcdm.draw import drawn
from promptcdm.engine import Rows, take_rows
from promptcdm.errors import AdapterMismatch, BadInput, RunFailed
from promptcdm.feature_cache import FeatureCache
from promptcdm.levers import Levers
from promptcdm.route import NEED_PROMPT, Texts, check_router, router_of
from promptcdm.router import Router
from promptcdm.row_plan import BACKBONE, RowPlan, bare_rows, plan_rows
from promptcdm.settings import RouterName
from promptcdm.slots import SlotLora
from promptcdm.source_text import Reader, RunTexts, encode_run
from promptcdm.terms import terms_of
from promptcdm.text_memory import TextMemory


@dataclass(frozen=True)
class _Call:
    """The arguments of one UNet call, for n pictures."""

    sample: Tensor  # (n or 2n, C, h, w)
    t: Tensor  # (n or 2n,)
    embeds: Tensor  # (n or 2n, L, D)
    added: dict[str, Any]
    given: dict[str, Any]
    n: int

    @property
    def x_t(self) -> Tensor:
        """Latents of the pictures, (n, C, h, w)."""
        return self.sample[-self.n :]


@dataclass
class _Run:
    """What goes from one UNet call of a run to the next."""

    cache: FeatureCache
    memory: TextMemory
    step: int = 0
    t: float = float("inf")
    router: Router | None = None
    state: Any = None
    spread: Tensor | None = None  # (n,) as of `spread_step`, the last call in which every source was run
    spread_step: int = 0


class ComposedUNet(nn.Module):
    """One run's view on the backbone: the allowed adapters, their text embeddings and the weights so far.

    `router` is a name or a Router; `strength` scales a source's LoRA; `seed` is that of `levers.draw`. `levers` save
    rows (`levers.py`); `top_k` is short for the one of that name. Close it when done: its adapters leave the engine's
    slots. A `guidance_scale` of 0 is what suits the backbone.

    Raises AdapterMismatch for an adapter of another backbone, and BadInput for a setting out of range or given twice
    and for a router that is unknown or needs statistics that an adapter does not have.
    """

    def __init__(
        self,
        backbone: Backbone,
        adapters: Sequence[Adapter],
        *,
        router: RouterName | Router = "posterior",
        top_k: int = 0,
        levers: Levers | None = None,
        strength: Mapping[str, float] | None = None,
        guidance_scale: float = 0.0,
        seed: int = 0,
        allow_backbone_mismatch: bool = False,
    ) -> None:
        super().__init__()
        if levers is not None and top_k:
            raise BadInput(
                f"top_k is {top_k} beside levers, which have a top_k of their own; give it there alone"
            )
        self.levers = levers or Levers(top_k=top_k)
        self.levers.check()
        unknown = sorted(set(strength or {}) - {a.source for a in adapters})
        if unknown:
            raise BadInput(f"strength names {unknown[0]}, which is not among the allowed sources")
        if not isinstance(router, Router):
            check_router(router, adapters)
        for adapter in adapters:
            backbone.check_made_for(adapter.record, allow_mismatch=allow_backbone_mismatch)
        self.backbone, self.adapters, self.router = backbone, tuple(adapters), router
        self.unet = backbone.unet  # as a submodule, so that the pipeline moves it where it wants it
        self.guidance_scale, self.seed = guidance_scale or backbone.guidance_scale, seed
        self._terms = terms_of(adapters)  # what follows is a list with one entry a term
        terms = self._terms.adapters
        strengths = [(strength or {}).get(a.source, 1.0) for a in terms]
        self._loras = [_slot_lora(a, s) for a, s in zip(terms, strengths, strict=True)]
        self._own_unconditional = [self.levers.own_unconditional(a.record.unconditional) for a in terms]
        self._readers = [
            Reader(*facts) for facts in zip(terms, strengths, self._own_unconditional, strict=True)
        ]
        self._texts: RunTexts | None = None  # what `encode` made
        self._start()
        try:
            for lora in filter(None, self._loras):
                backbone.engine.admit(lora)
            for text_lora in filter(None, (reader.lora for reader in self._readers)):
                backbone.check_text_lora(text_lora)
        except AdapterMismatch:  # the second does not fit: the first must not stay behind
            self.close()
            raise

    def _start(self) -> None:
        # One (n, N) a UNet call, the mean over the places where it is by region.
        self.weights: list[Tensor] = []
        # (n,) rows run so far, a picture; a shallow row by its share of FLOPs.
        self.row_forwards = torch.zeros(0)
        self.dropped: list[dict[str, Any]] = []  # what top_k and min_weight left out, a UNet call
        self._run = _Run(FeatureCache(self.backbone.engine, self.levers.cache_interval), TextMemory())

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

    @property
    def encoder_hid_proj(self) -> Any:
        """The projection of an IP-Adapter that was loaded into the backbone before."""
        return self.backbone.unet.encoder_hid_proj

    def set_attention_slice(self, slice_size: str | int | list[int]) -> None:
        """Pass `pipe.enable_attention_slicing()` on to the UNet."""
        self.backbone.unet.set_attention_slice(slice_size)

    def enable_freeu(self, **factors: float) -> None:
        """Pass `pipe.enable_freeu(...)` on to the UNet."""
        self.backbone.unet.enable_freeu(**factors)

    def disable_freeu(self) -> None:
        """Pass `pipe.disable_freeu()` on to the UNet."""
        self.backbone.unet.disable_freeu()

    def load_lora_adapter(self, *args: object, **kwargs: object) -> None:
        """Refuse: what is loaded through the pipeline would act in every source's prediction."""
        raise BadInput(
            "a composed UNet takes no further LoRA or IP-Adapter: a source's LoRA goes into the store with "
            "import-adapter; what is to act in all sources (LCM-LoRA, IP-Adapter) is loaded into the backbone's own "
            "pipeline before it is composed"
        )

    fuse_lora = load_attn_procs = _load_ip_adapter_weights = load_lora_adapter

    def encode(self, prompt: str | Sequence[str], negative_prompt: str = "") -> dict[str, Any]:
        """Arguments for the pipeline's call: embeddings and the guidance scale. Starts a new run.

        What a source reads in its own way (trigger, soft prompt, text-encoder LoRA) is kept here for the UNet calls
        that follow.
        """
        prompts = [prompt] if isinstance(prompt, str) else list(prompt)
        self._start()
        self._texts = encode_run(self.backbone, self._readers, prompts, negative_prompt, self._is_guided())
        return self._texts.arguments(self.guidance_scale)

    @torch.compiler.disable  # type: ignore[untyped-decorator]  # the engine compiles its own forward
    @torch.no_grad()
    def forward(
        self,
        sample: Tensor,
        timestep: Tensor | float,
        encoder_hidden_states: Tensor,
        added_cond_kwargs: dict[str, Any] | None = None,
        return_dict: bool = True,
        **kwargs: Any,
    ) -> UNet2DConditionOutput | tuple[Tensor]:
        """Equation (1) over the rows, called as the stock UNet is.

        Raises BadInput where rows or texts are missing, RunFailed where a source's prediction is not finite.
        """
        guided = self._is_guided()
        if guided and len(sample) % 2:
            raise BadInput(
                f"{len(sample)} rows with guidance_scale {self.guidance_scale}: it takes the unconditional rows too"
            )
        scale = (kwargs.get("cross_attention_kwargs") or {}).get("scale", 1.0)
        if scale != 1.0:
            raise BadInput(
                f"cross_attention_kwargs has the LoRA scale {scale}; each source has its own: strength"
            )
        given = {k: v for k, v in kwargs.items() if v is not None}
        t = torch.as_tensor(timestep, device=sample.device).reshape(-1).expand(len(sample))
        n = len(sample) // 2 if guided else len(sample)
        call = _Call(sample, t, encoder_hidden_states, added_cond_kwargs or {}, given, n)
        if float(t[-1]) > self._run.t:  # noise rises only where another picture begins
            self._start()
        if self._run.step == 0:
            self._check_texts(sample, encoder_hidden_states)
        self._run.t = float(t[-1])
        eps = self._compose(call) if self.adapters else self._predict(call, bare_rows(len(sample)))
        self._run.step += 1
        return UNet2DConditionOutput(sample=eps) if return_dict else (eps,)

    def _compose(self, call: _Call) -> Tensor:
        run, levers, n = self._run, self.levers, call.n
        router = self._router()
        alpha_bar = self.backbone.alpha_bar(call.t[-n:]).to(call.sample.device)
        w = kept = None
        if not router.needs_eps:
            w, run.state = router.route(run.state, call.x_t, alpha_bar, None)
            kept = keep_largest(w, levers.top_k, levers.min_weight)
        # Where rows will be left out, the first call runs all of them: how far the sources are apart is known once.
        all_run = kept is None or (levers.drops and run.step == 0)
        active = torch.ones(n, len(self.adapters), dtype=torch.bool)
        if kept is not None and not all_run:
            active = by_source(kept).ne(0).cpu()
        guided = self._guided_now(call)
        plan = plan_rows(self._terms.of_sources(active), guided, self._own_unconditional)
        acting = sorted(set(plan.source) - {BACKBONE})
        eps = self._place(self._predict(call, plan), call, plan, acting, guided)
        eps = self._terms.within_sources(eps, acting)
        if w is None or kept is None:
            noise = self.backbone.as_noise(eps[:, -n:], call.x_t, alpha_bar)
            w, run.state = router.route(run.state, call.x_t, alpha_bar, noise)
            kept = keep_largest(w, levers.top_k, levers.min_weight)
        if levers.drops:
            self._note_dropped(w, kept, eps, n, guided, all_run)
        self.weights.append(by_source(kept).float().cpu())
        kept = kept[:, self._terms.sources(acting)]
        return compose_noise(eps, kept if guided is None else torch.cat([kept, kept]))

    def _predict(self, call: _Call, plan: RowPlan) -> Tensor:
        """Predictions of the planned rows, (R, C, h, w), counted."""
        keys = list(zip(plan.source, plan.origin, strict=True))
        predicted, cost = self._run.cache.predict(self._rows(call, plan), keys, self._run.step)
        broken = (~predicted.isfinite().flatten(1).all(1)).nonzero().flatten().tolist()
        if broken:
            i = plan.source[broken[0]]
            name = "the backbone" if i == BACKBONE else self._terms.adapters[i].source
            raise RunFailed(
                f"the prediction of {name} is not finite; train it again or leave it out of allowed"
            )
        pictures = torch.tensor(plan.origin) % call.n
        self.row_forwards = torch.zeros(call.n) if not len(self.row_forwards) else self.row_forwards
        self.row_forwards = self.row_forwards.index_add(0, pictures, cost)
        return predicted

    def _rows(self, call: _Call, plan: RowPlan) -> Rows:
        count, origin = len(call.sample), torch.tensor(plan.origin, device=call.sample.device)
        embeds = take_rows(call.embeds, origin, count)
        added = take_rows(call.added, origin, count)
        if self._texts is not None:
            self._texts.put(embeds, added, plan, count)
        loras = tuple(None if i == BACKBONE else self._loras[i] for i in plan.source)
        given = take_rows(call.given, origin, count)
        rows = Rows(call.sample[origin], call.t[origin], embeds.to(call.sample.dtype), loras, added, given)
        if not self.levers.reuse_text:
            return rows
        names = tuple(zip(plan.source, plan.origin, strict=True))
        return replace(rows, names=names, memory=self._run.memory.of(call.embeds))

    def _place(
        self, rows: Tensor, call: _Call, plan: RowPlan, acting: Sequence[int], guided: list[bool] | None
    ) -> Tensor:
        """eps (acting terms, n or 2n, C, h, w): each term's rows in their places, shared ones in all that share."""
        eps = rows.new_zeros((len(acting), *call.sample.shape))
        source = torch.tensor(plan.source, device=rows.device)
        origin = torch.tensor(plan.origin, device=rows.device)
        for place, i in enumerate(acting):
            mine = source == i if self._own_unconditional[i] else (source == i) | (source == BACKBONE)
            eps[place, origin[mine]] = rows[mine]
        for b, on in enumerate(guided or ()):
            if not on:  # outside the interval there is no guidance: both halves are the conditional
                eps[:, b] = eps[:, call.n + b]
        return eps

    def _note_dropped(
        self, w: Tensor, kept: Tensor, eps: Tensor, n: int, guided: list[bool] | None, all_run: bool
    ) -> None:
        """Record the mass that was left out and by how much it can have moved the guided sum (root mean square)."""
        run = self._run
        if all_run:
            steered = eps if guided is None else eps[:, :n] + self.guidance_scale * (eps[:, n:] - eps[:, :n])
            run.spread, run.spread_step = spread(steered).cpu(), run.step
        mass = by_source(torch.where(kept == 0, w, torch.zeros_like(w))).sum(1).float().cpu()
        assert run.spread is not None
        error = {"bound" if all_run else "estimate": (mass * run.spread).tolist()}
        self.dropped.append({"mass": mass.tolist(), "spread_of_step": run.spread_step, **error})

    def _is_guided(self) -> bool:
        """Whether the pipeline hands over unconditional rows; a distilled UNet takes the scale as an input instead."""
        return self.guidance_scale > 1 and self.config.time_cond_proj_dim is None

    def _guided_now(self, call: _Call) -> list[bool] | None:
        """For each picture, whether guidance is on at its noise level; None: the pipeline guides nothing."""
        if not self._is_guided():
            return None
        progress = 1 - call.t[-call.n :].double().cpu() / len(self.backbone.alphas_cumprod)
        return [self.levers.guidance_start <= p <= self.levers.guidance_stop for p in progress.tolist()]

    def _router(self) -> Router:
        run = self._run
        if run.router is None:
            route = self.router
            if not isinstance(route, Router):
                prompts = self._texts.prompts if self._texts else []
                texts = Texts(prompts, self.backbone.prompt_features)
                route = router_of(route, self.adapters, texts, self.device)
            if self.levers.draw:
                route = drawn(route, self.seed, once=self.levers.draw == "once")
            run.router, run.state = route, route.start
        return run.router

    def _check_texts(self, sample: Tensor, embeds: Tensor) -> None:
        """Refuse what would be drawn silently from other texts or rows than the pipeline's."""
        needing = [reader.adapter.source for reader in self._readers if reader.has_own_text]
        if self.adapters and self.router in NEED_PROMPT:
            needing.append(f"router {self.router}")
        if self._texts is None and needing:
            raise BadInput(
                f"{needing[0]} needs the prompt itself: call composed.encode(prompt) and pass what it returns to the "
                "pipeline before it runs"
            )
        halves = sample.chunk(2) if self._is_guided() else ()
        if halves and not torch.equal(*halves):
            raise BadInput(
                f"guidance_scale is {self.guidance_scale} here, and the pipeline does not guide; give both the same"
            )
        if self._texts is not None and not self._texts.are(embeds):
            raise BadInput(
                "the pipeline was given another prompt, negative prompt or guidance scale than what encode returned"
            )

    def close(self) -> None:
        """Take this view's adapters out of the engine's slots."""
        self.backbone.engine.evict([lora for lora in self._loras if lora is not None])


def _slot_lora(adapter: Adapter, strength: float) -> SlotLora | None:
    return SlotLora(adapter.source, adapter.unet_lora, strength) if adapter.unet_lora else None
