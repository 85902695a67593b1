"""Documents in files of text, one at a time; a long one is read in parts."""

import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from txtrain.data.files import COMPRESSED, json_lines, kind, open_file, readable
from txtrain.data.lines import LARGEST_CELL, MARK, decode_parts
from txtrain.data.long_json import parse_long
from txtrain.data.long_text import PART, SHORT, LongText, Text, text_in
from txtrain.data.tables import read_column
from txtrain.errors import UserError

TABLES = (".csv", ".tsv")
BATCH = 4 << 20  # bytes of a column of .parquet that are read at a time


def read_documents(file: Path, field: str) -> Iterator[Text]:
    """Documents of a file: a line of .jsonl, a row of .parquet, .csv or .tsv, otherwise the whole file.

    Raises:
        UserError: a row has no text in this field, or more than `LARGEST_CELL`; the file is no whole file of text.
    """
    if kind(file) == ".jsonl":
        for place, line in json_lines(file):
            yield text_of(parse_long(line, place), field, place)
    elif kind(file) in TABLES:
        for place, text in read_column(file, field):
            yield text_of({field: text}, field, place)
    else:
        with readable(file):
            if kind(file) == ".parquet":
                yield from _read_parquet(file, field)
            else:
                yield _read_text(file)


def text_of(row: Any, field: str, place: str) -> Text:
    """The field of a row that holds its text.

    Raises:
        UserError: there is none, it is no text, or it is too long.
    """
    if not isinstance(row, dict):
        raise UserError(f"{place} is {type(row).__name__}, not an object: give one JSON object per line")
    if field not in row:
        raise UserError(f"{place} has no field {field}: set data.field to one of {', '.join(map(str, row))}")
    text = row[field]
    if not isinstance(text, str | LongText):
        raise UserError(f"{place}: field {field} is {type(text).__name__}, not text: set data.field to one that is")
    size = 0
    for part in [text] if isinstance(text, str) else text:
        try:
            size += len(part.encode())
        except UnicodeEncodeError as error:
            code = f"\\u{ord(part[error.start]):x}"
            raise UserError(f"{place}: field {field} has {code} alone, half of a character: remove it") from None
    if size > LARGEST_CELL:
        raise UserError(
            f"{place}: field {field} has {size / 2**20:.1f} MiB, and a text in a table at most {LARGEST_CELL >> 20}: "
            "cut it into several, or give it as a .txt file"
        )
    return text


def _read_text(file: Path) -> Text:
    """A file as one text: in memory, if it is short."""
    # Not through `datasets`: its text builder turns "\r\n" and "\r" into "\n", whatever its options.
    most = SHORT // PART
    parts = list(islice(_read_parts(file), most + 1))
    return "".join(parts) if len(parts) <= most else LongText(partial(_read_again, file))


def _read_again(file: Path) -> Iterator[str]:
    with readable(file):
        yield from _read_parts(file)


def _read_parts(file: Path) -> Iterator[str]:
    characters = 0
    with open_file(file) as stream:
        blocks = iter(partial(stream.read, PART), b"")
        marked = (block if number else block.removeprefix(MARK) for number, block in enumerate(blocks))
        for text in decode_parts(marked, str(file)):
            if "\0" in text:
                at = characters + text.index("\0")
                raise UserError(f"{file} is binary, not text (a zero at character {at}): give a text file")
            characters += len(text)
            yield text


def _read_parquet(file: Path, field: str) -> Iterator[Text]:
    # Not through `datasets`, which reads a thousand rows at a time, however long they are.
    import pyarrow  # here, since it takes a while and the other sources do without
    from pyarrow import parquet

    with ExitStack() as stack:
        path = file
        if file.suffix in COMPRESSED:
            # Parquet is read from its end, so it cannot be unpacked as it is read.
            path = Path(stack.enter_context(TemporaryDirectory(prefix="txtrain-")), "file.parquet")
            with open_file(file) as source, path.open("wb") as target:
                shutil.copyfileobj(source, target)
        table = stack.enter_context(parquet.ParquetFile(path, memory_map=True, pre_buffer=False))
        names = table.schema_arrow.names
        if field not in names:
            text_of(dict.fromkeys(names), field, str(file))
        number = 0
        for group in range(table.metadata.num_row_groups):
            for batch in table.iter_batches(_rows_at_a_time(table.metadata, group, field), [group], [field]):
                for value in batch.column(0):
                    number += 1
                    place = f"{file} row {number}"
                    long = isinstance(value, pyarrow.StringScalar | pyarrow.LargeStringScalar) and value.is_valid
                    text = text_in(memoryview(value.as_buffer()), place) if long else value.as_py()
                    yield text_of({field: text}, field, place)


def _rows_at_a_time(metadata: Any, group: int, field: str) -> int:
    """As many rows of a row group as take a few MB."""
    rows = metadata.row_group(group)
    columns = [rows.column(number) for number in range(rows.num_columns)]
    size = sum(part.total_uncompressed_size for part in columns if part.path_in_schema.split(".")[0] == field)
    return min(1000, max(1, BATCH * rows.num_rows // max(size, 1)))
