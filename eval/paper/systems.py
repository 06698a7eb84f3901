"""The systems that are compared. Each says which adapters it composes, by which router, with which levers.

Every router here is one of promptcdm's, or one of eval/baselines. All systems draw the same prompts from the same
seeds, with the guidance of their kind and the unconditional branch that the adapters were trained for.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, Literal

import torch
from baselines.ito import ito_router
from baselines.joint_classifier import JointClassifier, joint_classifier_router
from baselines.loratorio import loratorio_router
from baselines.switch import switch_router
from torch import Tensor

from paper.plan import Plan
from paper.prompts import Prompt
from paper.sources import backbone_folder
from promptcdm.adapter import Adapter
from promptcdm.backbone import Backbone
from promptcdm.errors import BadInput
from promptcdm.levers import Levers
from promptcdm.prompt_prior import prompt_prior
from promptcdm.router import (
    Router,
    on_device,
    posterior_router,
    prior_router,
    share_prior,
    stack_statistics,
    uniform_router,
)
from promptcdm.settings import RouterName
from promptcdm.source_statistics import Statistics


@dataclass(frozen=True)
class Asked:
    """What a router may be made from: the prompts of one batch, and the sources that are composed."""

    prompts: Sequence[Prompt]
    names: Sequence[str]  # N sources, in the order of the weights
    adapters: Sequence[Adapter]
    backbone: Backbone
    classifier: Callable[[], JointClassifier]
    best: str  # the source that alone denoises the validation pictures best

    @property
    def prior(self) -> Tensor:
        """pi_i(c), (B, N)."""
        texts = [prompt.text for prompt in self.prompts]
        return prompt_prior(self.backbone.prompt_features(texts), [_known(a) for a in self.adapters])

    @property
    def share(self) -> Tensor:
        """Each source's share of the pictures, (N,)."""
        return share_prior(
            torch.tensor([_known(a).count for a in self.adapters], device=self.backbone.device)
        )

    def only(self, sources: Sequence[str]) -> Tensor:
        """One-hot (B, N) on a source for each prompt."""
        own = torch.tensor([self.names.index(source) for source in sources])
        return torch.eye(len(self.names))[own].to(self.backbone.device)


Route = Callable[[Asked], Router | RouterName]


@dataclass(frozen=True)
class System:
    """One way to draw."""

    name: str
    what: str  # a line for the reader
    route: Route
    of: str = "sources"  # sources, backbone, soup, or a monolith
    levers: Levers = Levers()
    ancestral: bool = False  # with the noise of the reverse process (DDIM, eta 1)
    phrases: bool = False  # each phrase of a joined prompt in its own region: joined prompts only
    layout_until: float = 0.0  # with `phrases`: the backbone alone lays the scene out up to here
    tagged: bool = False  # a source, drawn from pi(c), is named before the prompt
    first: Literal["", "bare backbone", "backbone"] = ""  # composed too, before them; "backbone" is a source

    @property
    def kind(self) -> str:
        """What guidance is tuned for: composed, monolith or backbone."""
        kinds = {"sources": "composed", "soup": "composed", "backbone": "backbone"}
        return kinds.get(self.of, "monolith")


def _named(name: RouterName) -> Route:
    return lambda asked: name


def _posterior(asked: Asked, prior: Tensor | None = None) -> Router:
    """Over each source's share of the pictures, or over another prior."""
    statistics = stack_statistics([_known(adapter) for adapter in asked.adapters])
    return posterior_router(
        on_device(statistics, asked.backbone.device), asked.share if prior is None else prior
    )


def _classifier(asked: Asked) -> Router:
    return joint_classifier_router(deepcopy(asked.classifier()).to(asked.backbone.device), asked.prior)


def _oracle(asked: Asked) -> Router:
    return prior_router(asked.only([prompt.sources[0] for prompt in asked.prompts]))


def beside_backbone(router: Router, share: float) -> Router:
    """eps = share eps_backbone + (1 - share) sum_i w_i eps_i: the first of N + 1 sources is the bare backbone."""

    def route(state: Any, x_t: Tensor, alpha_bar: Tensor, eps: Tensor | None) -> tuple[Tensor, Any]:
        w, state = router.route(state, x_t, alpha_bar, None if eps is None else eps[1:])
        own = torch.full_like(w[:, :1], share)
        return torch.cat([own, (1 - share) * w], 1), state

    return Router(route, router.start, router.needs_eps)


def _monolith_beside_backbone(asked: Asked) -> Router:
    return beside_backbone(uniform_router(1), BACKBONE_SHARE)


def _best(asked: Asked) -> Router:
    return prior_router(asked.only([asked.best] * len(asked.prompts)))


def _top(route: Route, name: str, what: str, ks: Sequence[int] = (0, 1, 2)) -> list[System]:
    return [System(name if not k else f"{name} top-{k}", what, route, levers=Levers(top_k=k)) for k in ks]


UNIFORM = _named("uniform")
# Of the sum: a monolith and sources alike lose scenes in training on single pictures, and the backbone has them.
BACKBONE_SHARE = 0.3
SYSTEMS: tuple[System, ...] = (
    System("backbone", "no adapter", UNIFORM, "backbone"),
    System("monolith", "one adapter on all pictures, rank r", UNIFORM, "monolith"),
    System(
        "monolith fast", "the same at the sources' learning rate, twice its own", UNIFORM, "monolith fast"
    ),
    System("monolith 8r", "one adapter on all pictures, rank 8 r", UNIFORM, "monolith 8r"),
    System(
        "monolith tagged",
        "captions tagged by source, tag drawn from pi(c)",
        UNIFORM,
        "monolith tagged",
        tagged=True,
    ),
    System("oracle source", "the source that the prompt is about; a diagnostic", _oracle),
    System("best source", "alone denoises validation pictures best", _best),
    System("draw uniform", "one source a picture, all alike", UNIFORM, levers=Levers(draw="once")),
    System(
        "draw prompt",
        "one source a picture, from pi(c): exact",
        _named("prompt"),
        levers=Levers(draw="once"),
    ),
    System(
        "draw each step",
        "one source a step, from the product",
        _named("posterior"),
        levers=Levers(draw="step"),
        ancestral=True,
    ),
    System("average", "1 / N of each", UNIFORM),
    System(
        "composite",
        "LoRA Composite: 1 / N, own unconditional branches",
        UNIFORM,
        levers=Levers(unconditional_from="adapter"),
    ),
    System("soup", "Diffusion Soup: one adapter, the average change", UNIFORM, "soup"),
    System(
        "switch", "LoRA Switch: the next source every 5 calls", lambda asked: switch_router(len(asked.names))
    ),
    System(
        "LoRAtorio",
        "by patch, who differs most from the backbone",
        lambda asked: loratorio_router(),
        first="bare backbone",
    ),
    *_top(_classifier, "classifier", "pi(c) times a classifier of x_t that saw every source"),
    *_top(_posterior, "posterior", "each source's own Gaussian of x_t"),
    *_top(_named("prompt"), "prompt", "pi(c) from each source's captions"),
    *_top(_named("posterior"), "product", "pi(c) times the posterior: promptcdm's default"),
    System(
        "product, backbone",
        "the product, with the bare backbone in the sum",
        lambda asked: beside_backbone(_posterior(asked, asked.prior), BACKBONE_SHARE),
        first="bare backbone",
    ),
    *(
        System(f"{name}, backbone", what, _monolith_beside_backbone, name, first="bare backbone")
        for name, what in (
            ("monolith", "the monolith, with the bare backbone in the sum"),
            ("monolith 8r", "the same for rank 8 r"),
        )
    ),
    System(
        "product, backbone as source",
        "the product, the backbone one more source: without weights, known by what it draws",
        _named("posterior"),
        first="backbone",
    ),
    *(
        System(f"{name}, backbone as source", what, _named("posterior"), name, first="backbone")
        for name, what in (
            ("monolith", "the monolith and the backbone, two sources of the product"),
            ("monolith 8r", "the same for rank 8 r"),
        )
    ),
    System("Ito", "SuperDiff's OR, from pi(c)", lambda asked: ito_router(asked.prior), ancestral=True),
    System(
        "regional",
        "by region the source nearest to its phrase; all read the whole prompt",
        _named("regional"),
    ),
    System(
        "phrases",
        "by region the source nearest to its phrase, which is all it reads",
        UNIFORM,
        phrases=True,
    ),
    System(
        "phrases, layout",
        "the same after the backbone has laid the scene out",
        UNIFORM,
        phrases=True,
        layout_until=0.2,
    ),
    System(
        "monolith phrases", "the monolith reads each phrase in its region", UNIFORM, "monolith", phrases=True
    ),
)
# Which may become the primary system of its kind; all are measured alike on validation prompts.
COMPOSED = (
    *("product", "product top-1", "product top-2", "prompt top-1", "draw prompt"),
    "product, backbone as source",
)
MONOLITHS = (
    *("monolith", "monolith fast", "monolith 8r", "monolith tagged"),
    *("monolith, backbone as source", "monolith 8r, backbone as source"),
)


def systems_of(plan: Plan) -> tuple[System, ...]:
    """The systems of a plan. Raises BadInput for a name that is none.

    Where adapters have their own unconditional branch, LoRA Composite is the average itself and is left out; where
    nothing tells what the backbone draws, it is no source.
    """
    known = backbone_folder(plan) is not None
    unknown = sorted(set(plan.systems) - {system.name for system in SYSTEMS})
    if unknown:
        raise BadInput(f"no system is called {unknown[0]}; known: {', '.join(s.name for s in SYSTEMS)}")
    return tuple(
        system
        for system in SYSTEMS
        if (not plan.systems or system.name in plan.systems)
        and (system.kind != "monolith" or system.of in plan.monoliths)
        and not (system.name == "composite" and plan.training.unconditional == "adapter")
        and (known or system.first != "backbone")
    )


def system_named(name: str) -> System:
    """The system of that name."""
    return next(system for system in SYSTEMS if system.name == name)


def _known(adapter: Adapter) -> Statistics:
    assert adapter.statistics is not None  # all were trained here
    return adapter.statistics
