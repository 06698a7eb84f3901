"""The paper's router: one classifier of x_t, trained on the latents of all sources. For comparison only."""

from __future__ import annotations

from pathlib import Path

from baselines.joint_classifier import JointClassifier, train_joint_classifier

from paper.sources import Opened
from paper.units import Units, done
from promptcdm.backbone import Backbone
from promptcdm.membership import probe_of
from promptcdm.statistics import GRID
from promptcdm.tensorfile import read_tensors, write_tensors


def classifier_units(sources: Opened, backbone: Backbone, out: Path, seed: int) -> Units:
    """Its training, into the folder of the run."""
    path = out / "work" / "classifier.safetensors"

    def train() -> dict[str, int]:
        latents = [probe_of(source, backbone).latents for source in sources.values()]
        trained = train_joint_classifier(latents, GRID, seed=seed)
        write_tensors(path, dict(trained.state_dict()), {"format": "pt"})
        return {"pictures": sum(map(len, latents))}

    return {path.with_suffix(".json"): train}


def read_classifier(sources: Opened, backbone: Backbone, out: Path, seed: int) -> JointClassifier:
    """Read it, trained where it was not."""
    (path,) = done(classifier_units(sources, backbone, out, seed))
    found = JointClassifier(int(backbone.unet.config.in_channels), GRID, len(sources))
    found.load_state_dict(read_tensors(path.with_suffix(".safetensors"))[0])
    return found.eval()
