"""Which of the layouts a place holds, and its pictures with captions: files, tar shards, or rows of a table."""

from __future__ import annotations

from promptcdm.captions import Captions, add_caption, read_captions, suffix
from promptcdm.picture import SUFFIXES
from promptcdm.places import Pictures, Place
from promptcdm.shards import SHARD, list_shards
from promptcdm.table import ARROW, PARQUET, read_table


def find_pictures(place: Place) -> tuple[Pictures, Captions]:
    """Everything that `place` holds; pictures in two layouts at once are a problem. Raises BadSource."""
    files, problems = place.files()
    kinds = {
        "pictures": [file for file in files if suffix(file) in SUFFIXES],
        "tar shards": [file for file in files if suffix(file) == SHARD],
        "parquet or arrow files": [file for file in files if suffix(file) in (PARQUET, ARROW)],
    }
    held = [kind for kind, named in kinds.items() if named]
    if len(held) > 1:
        captions = Captions(problems=[f"holds {' and '.join(held)}; give each a folder of its own"])
        return place, captions
    if held == ["tar shards"]:
        shards = list_shards(place, kinds["tar shards"])
        captions = read_captions(shards, sorted(shards.members), shards=True)
        captions.problems[:0] = [*problems, *shards.problems]
        return shards, captions
    if held == ["parquet or arrow files"]:
        table = read_table(place, files)
        captions = Captions(problems=[*problems, *table.problems], notes=table.notes)
        for file, text in table.captions.items():
            add_caption(file, text, "its row", captions)
        return table, captions
    captions = read_captions(place, files)
    captions.problems[:0] = problems
    return place, captions
