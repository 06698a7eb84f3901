"""The pictures of a folder as a set: which files, their digests, and the digest of all."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from PIL import Image

from promptcdm.errors import BadInput
from promptcdm.picture import SUFFIXES, BadPicture, decode_picture
from promptcdm.places import is_hidden

GRID = "grid.png"  # all pictures of one run of `generate`


@dataclass(frozen=True)
class PictureFolder:
    """Files by their path in the folder, sorted, with the sha256 of each."""

    folder: Path
    files: tuple[str, ...]
    sha256: tuple[str, ...]

    @classmethod
    def open(cls, folder: Path) -> PictureFolder:
        """Every PNG, JPEG and WebP file in the folder and below it, by its name; hidden ones are left out.

        Raises BadInput where there is no folder, or none in it.
        """
        if not folder.is_dir():
            what = "is no folder" if folder.exists() else "no such folder"
            raise BadInput(f"{folder}: {what}; give a folder of pictures")
        files = sorted(
            path.relative_to(folder).as_posix()
            for path in folder.rglob("*")
            if path.suffix.lower() in SUFFIXES
            and path.is_file()
            and not is_hidden(path.relative_to(folder).as_posix())
        )
        if not files:
            raise BadInput(f"{folder}: holds no picture; give a folder of {', '.join(SUFFIXES)} files")
        return cls(folder, tuple(files), tuple(_digest(folder / file) for file in files))

    def without_grids(self) -> PictureFolder:
        """Without what `generate` writes beside its pictures to show them together.

        That is a grid.png without a record, in a folder where another picture has one.
        """
        recorded = {file for file in self.files if (self.folder / file).with_suffix(".json").is_file()}
        folders = {PurePosixPath(file).parent for file in recorded}
        kept = [
            index
            for index, file in enumerate(self.files)
            if file in recorded
            or PurePosixPath(file).name != GRID
            or PurePosixPath(file).parent not in folders
        ]
        return PictureFolder(
            self.folder, tuple(self.files[i] for i in kept), tuple(self.sha256[i] for i in kept)
        )

    def __len__(self) -> int:
        return len(self.files)

    @property
    def digest(self) -> str:
        """sha256 (hex) of the lines "sha256  file"."""
        lines = (f"{sha256}  {file}\n" for sha256, file in zip(self.sha256, self.files, strict=True))
        return hashlib.sha256("".join(lines).encode()).hexdigest()

    def picture(self, index: int) -> Image.Image:
        """Picture `index` as upright RGB. Raises BadInput where it cannot be read."""
        path = self.folder / self.files[index]
        try:
            return decode_picture(path.read_bytes())
        except (BadPicture, OSError) as error:
            raise BadInput(
                f"{path}: is not a picture that can be read ({error}); mend it or take it out"
            ) from error


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
