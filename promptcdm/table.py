"""Hugging Face datasets: parquet files, or the folder of `Dataset.save_to_disk`, as rows of picture and caption.

Read with pyarrow alone. The `datasets` library would write a copy of every picture into a cache outside the source,
where no removal finds it, and a column can name files elsewhere; here a picture is the bytes in its row.

    image          struct with `bytes`, as the feature Image writes it, or binary
    text, caption  text; one of the two
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

from promptcdm.errors import BadSource
from promptcdm.places import MAX_BYTES, Place, Unreadable, read_file

PARQUET, ARROW = ".parquet", ".arrow"
SAVED, SAVED_SPLITS = "state.json", "dataset_dict.json"
_SPLIT = re.compile(r"(.+?)-\d{5}-of-\d{5}(?:-[0-9a-f]+)?\.parquet")
_MAX_GROUP = 4 << 30  # bytes of one row group, unpacked
_CAPTIONS = ("text", "caption")


@dataclass
class Table:
    """Rows of files, opened as pictures by the names `FILE/ROW`. Keeps the last group of rows read."""

    place: Place
    captions: dict[str, str] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    _group: tuple[str, int, Any] | None = None  # file, first row, its column of pictures

    def open(self, file: str) -> BinaryIO:
        """Open the picture of a row. Raises Unreadable or OSError."""
        name, _, number = file.rpartition("/")
        row = int(number)
        if (
            self._group is None
            or self._group[0] != name
            or not 0 <= row - self._group[1] < len(self._group[2])
        ):
            self._group = None
            try:
                for first, column, _ in _groups(self.place, name):
                    if row < first + len(column):
                        self._group = (name, first, column)
                        break
            except _failures() as error:
                raise Unreadable(f"cannot be read: {_line(error)}") from error
        if self._group is None:
            raise Unreadable("no such row")
        return io.BytesIO(_picture(self._group[2][row - self._group[1]].as_py()))

    def where(self, file: str) -> Path | str:
        """The path of a row's file, with the row's number behind it."""
        return self.place.where(file)


def read_table(place: Place, files: Sequence[str]) -> Table:
    """The rows of all parquet or arrow files among `files`; what is wrong is in `problems`."""
    table = Table(place)
    try:
        names = _chosen(place, files, table)
        for name in names:
            try:
                for first, pictures, texts in _groups(place, name):
                    _add_rows(table, name, first, pictures, texts)
            except _failures() as error:
                table.problems.append(f"{name}: cannot be read: {_line(error)}")
    except ImportError:
        reason = "Hugging Face datasets need pyarrow: pip install 'promptcdm[datasets]'"
        raise BadSource(f"{place.where('')}: {reason}", [reason]) from None
    return table


def _chosen(place: Place, files: Sequence[str], table: Table) -> list[str]:
    """The files of one split. Several splits are a problem: one of them may be held back for tests."""
    _failures()  # before anything else, whether pyarrow is there
    if SAVED_SPLITS in files:
        splits = sorted({PurePosixPath(file).parts[0] for file in files if file.endswith(f"/{SAVED}")})
        if len(splits) != 1:
            table.problems.append(
                f"a dataset of the splits {', '.join(splits)}; give the folder of one of them"
            )
            return []
        return _saved(place, f"{splits[0]}/", files, table)
    if SAVED in files:
        return _saved(place, "", files, table)
    parquet = [file for file in files if file.lower().endswith(PARQUET)]
    names = {match[1] for file in parquet if (match := _SPLIT.fullmatch(file))}
    if len(names) > 1:
        table.problems.append(
            f"parquet files of the splits {', '.join(sorted(names))}; give those of one, such as "
            f"{min(names)}-*.parquet"
        )
        return []
    if not parquet:
        table.problems.append(f"arrow files without {SAVED}; give the folder that save_to_disk wrote")
    return parquet


def _saved(place: Place, folder: str, files: Sequence[str], table: Table) -> list[str]:
    """The data files that `state.json` names, in its order."""
    try:
        state = json.loads(read_file(place, folder + SAVED))
        names = [folder + each["filename"] for each in state["_data_files"]]
    except (Unreadable, ValueError, KeyError, TypeError) as error:
        table.problems.append(f"{folder}{SAVED}: cannot be read: {_line(error)}")
        return []
    table.problems += [f"{name!a}: named in {SAVED}, and not there" for name in names if name not in files]
    spare = [f for f in files if f.endswith(ARROW) and f.startswith(folder) and f not in names]
    table.notes += [f"{file}: not named in {SAVED}, not used" for file in spare]
    return [name for name in names if name in files]


def _groups(place: Place, name: str) -> Iterator[tuple[int, Any, Any]]:
    """For each group of rows: the first row's number, the column of pictures and that of captions."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    first = 0
    with place.open(name) as opened:
        if name.endswith(ARROW):
            with pa.ipc.open_stream(opened) as stream:
                columns = _columns(stream.schema)
                for batch in stream:
                    yield first, *(batch.column(column) for column in columns)
                    first += len(batch)
            return
        file = pq.ParquetFile(opened)
        columns = _columns(file.schema_arrow)
        for index in range(file.num_row_groups):
            if file.metadata.row_group(index).total_byte_size > _MAX_GROUP:
                raise ValueError(f"a group of rows of more than {_MAX_GROUP >> 30} GiB; write smaller ones")
            group = file.read_row_group(index, columns=columns)
            yield first, *(group.column(column) for column in columns)
            first += len(group)


def _columns(schema: Any) -> list[str]:
    """The names of the two columns. Raises ValueError where they are not plain."""
    features = (
        json.loads((schema.metadata or {}).get(b"huggingface", b"{}")).get("info", {}).get("features", {})
    )
    images = [name for name in schema.names if features.get(name, {}).get("_type") == "Image"]
    images = images or [name for name in schema.names if name == "image"]
    texts = [name for name in schema.names if name in _CAPTIONS]
    if len(images) != 1 or len(texts) != 1:
        raise ValueError(
            f"needs one column of pictures (image) and one of captions (text or caption); here are {schema.names}"
        )
    if len(set(schema.names)) < len(schema.names):
        raise ValueError("two columns of one name")
    return [images[0], texts[0]]


def _add_rows(table: Table, name: str, first: int, pictures: Any, texts: Any) -> None:
    for row, text in enumerate(texts.to_pylist(), start=first):
        file = f"{name}/{row:08d}"
        if isinstance(text, str):
            table.captions[file] = text
        else:
            kind = "no caption" if text is None else f"its caption is no text but {type(text).__name__}"
            table.problems.append(f"{file}: {kind}")


def _picture(value: object) -> bytes:
    data = value.get("bytes") if isinstance(value, dict) else value
    if isinstance(data, bytes) and len(data) <= MAX_BYTES:
        return data
    if isinstance(data, bytes):
        raise Unreadable(f"more than {MAX_BYTES >> 20} MiB")
    if isinstance(value, dict) and value.get("path"):
        raise Unreadable(
            "names a file elsewhere instead of holding the picture; save the dataset with its pictures"
        )
    raise Unreadable("no picture")


def _failures() -> tuple[type[BaseException], ...]:
    """What pyarrow raises for bytes that are not what they claim to be. Raises ImportError without pyarrow."""
    import pyarrow as pa

    return (pa.ArrowException, Unreadable, ValueError, KeyError, OSError, AttributeError)


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:160]
