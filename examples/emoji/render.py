"""SVG to PNG through resvg in a child process: an icon on which the renderer aborts is left out, the rest goes on."""

from __future__ import annotations

import json
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path

from PIL import Image

SCRIPT = Path(__file__).with_name("render.mjs")


def render(svgs: Mapping[str, str], npm: Path) -> tuple[dict[str, Image.Image], list[str]]:
    """Pictures (RGB, on white) by name, and the names that the renderer could not draw."""
    node = shutil.which("node")
    if node is None:
        raise SystemExit(
            "node was not found; install Node.js 18 or newer, or use the pictures in examples/emoji/slice"
        )
    names = list(svgs)
    pictures: dict[str, Image.Image] = {}
    skipped: list[str] = []
    with tempfile.TemporaryDirectory() as scratch:
        job = Path(scratch) / "job.json"
        while names:
            files = [Path(scratch) / f"{i}.png" for i in range(len(names))]
            icons = [{"svg": svgs[n], "out": str(f)} for n, f in zip(names, files, strict=True)]
            job.write_text(json.dumps({"icons": icons}), encoding="utf-8")
            command = [node, str(SCRIPT), str(npm.resolve()), str(job)]
            child = subprocess.run(command, capture_output=True, text=True, check=False)
            states = [line.split()[1] for line in child.stdout.splitlines()]
            if not states and child.returncode != 0 and "Error" in child.stderr:
                raise SystemExit(f"the renderer did not start: {child.stderr.strip().splitlines()[-1]}")
            for name, file, state in zip(names, files, states, strict=False):
                if state == "done":
                    with Image.open(file) as picture:
                        pictures[name] = picture.convert("RGB")
                else:
                    skipped.append(name)
            skipped += names[len(states) : len(states) + 1]
            names = names[len(states) + 1 :]
    return pictures, skipped
