"""The paper's router: one classifier of x_t, trained on the latents of all sources. For comparison only."""

from __future__ import annotations

from typing import TYPE_CHECKING

from baselines.joint_classifier import JointClassifier, train_joint_classifier

from paper.units import Units, done
from promptcdm.membership import probe_of
from promptcdm.statistics import GRID
from promptcdm.tensorfile import read_tensors, write_tensors

if TYPE_CHECKING:
    from paper.stage import Stage


def classifier_units(stage: Stage) -> Units:
    """Its training."""
    path = stage.out / "work" / "classifier.safetensors"

    def train() -> dict[str, int]:
        latents = [probe_of(source, stage.backbone).latents for source in stage.sources.values()]
        trained = train_joint_classifier(latents, GRID, seed=stage.plan.seed)
        write_tensors(path, dict(trained.state_dict()), {"format": "pt"})
        return {"pictures": sum(map(len, latents))}

    return {path.with_suffix(".json"): train}


def read_classifier(stage: Stage) -> JointClassifier:
    """Read it, trained where it was not."""
    (path,) = done(classifier_units(stage))
    found = JointClassifier(int(stage.backbone.unet.config.in_channels), GRID, len(stage.names))
    found.load_state_dict(read_tensors(path.with_suffix(".safetensors"))[0])
    return found.eval()
