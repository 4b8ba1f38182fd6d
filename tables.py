"""Labels in a table: a CSV file with a row for each picture, its file name in one column and its class in another."""

import csv
import io
import os
import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from folders import decide_either, exact_part, part_in
from pictures import note
from utils import InputError, listed, printable

# What the columns are called, without regard to case, spaces and underscores; of several names of files the first.
NAMES = ("filename", "file", "filepath", "path", "imagepath", "imagename", "image", "imageid", "img", "id")
LABELS = ("label", "labels", "class", "classname", "classid", "category", "target")
SPLITS = ("split", "part", "subset", "partition")
STANDARD = ("labels", "metadata")  # tables of this name are looked for, and those that are called like a part


class NotLabels(InputError):
    """A table that doesn't give these pictures their classes."""


class Columns(NamedTuple):
    name: int
    label: int
    split: int | None


class Row(NamedTuple):
    name: str  # the picture's file
    label: str
    part: str | None


class Table(NamedTuple):
    path: Path  # below the folder that is read
    columns: str  # their names, in words
    rows: list[Row]  # those with a label
    unlabelled: list[str]


class Labelled(NamedTuple):
    file: Path  # below the folder that is read, or elsewhere
    label: str
    part: str


def is_standard(stem: str) -> bool:
    """Whether a table is looked for by this name, which says nothing about its pictures."""
    return stem.lower() in STANDARD or part_in(stem) is not None


def find_tables(others: Iterable[Path]) -> list[dict[Path, str | None]]:
    """The tables among the files of a folder that are no pictures, with their parts; those that belong together."""
    csvs = [file for file in others if file.suffix.lower() == ".csv"]
    at_top = [file for file in csvs if len(file.parts) == 1]
    inside = [file for file in csvs if len(file.parts) == 2 and file.stem.lower() in STANDARD]
    found: list[dict[Path, str | None]] = [{file: None} for file in at_top if file.stem.lower() in STANDARD]
    by_part = [{file: part for file in at_top if (part := part_in(file.stem))}]
    by_part.append({file: part for file in inside if (part := part_in(file.parts[0]))})
    found += [tables for tables in by_part if "train" in tables.values()]
    elsewhere = [file for file in inside if part_in(file.parts[0]) is None]  # annotations/labels.csv is one
    if len(elsewhere) == 1:
        found.append({elsewhere[0]: None})
    return found


def read_tables(root: Path, tables: dict[Path, str | None], files: Sequence[Path]) -> list[Labelled]:
    """The pictures that have a row, with class and part; NotLabels if the tables are about something else."""
    index = index_names(files)
    found: dict[Path, Row] = {}
    other_labels, other_parts, repeated = [], [], []
    for path, part in decide_either(tables).items():
        try:
            matched = find_files(root, read_table(root, path, part), index)
        except NotLabels:
            if len(tables) == 1 or part == "train":
                raise
            note(root, "left out, gives no labels to pictures that are here", [path])  # a competition's test has none
            continue
        for file, row in matched:
            before = found.setdefault(file, row)
            if before is row:
                continue
            if before.label != row.label:
                other_labels.append(f"{row.name} ({before.label}, {row.label})")
            elif before.part != row.part:
                other_parts.append(f"{row.name} ({before.part}, {row.part})")
            else:
                repeated.append(row.name)
    names = listed([*tables], 3)
    refuse_contradictions(root, names, "labels", other_labels)
    refuse_contradictions(root, names, "parts", other_parts)
    refuse_lists(root, names, {row.label for row in found.values()})
    note(root, f"rows of {names} that are there twice, used once", repeated)
    note(root, f"left out, no row in {names}", [file for file in files if file not in found])
    part_of = parts_by_folder(found)
    return [Labelled(file, row.label, row.part or part_of[top(file)]) for file, row in found.items()]


def top(file: Path) -> str:
    """The first of the folders that a file is in, or nothing."""
    return file.parts[0] if len(file.parts) > 1 else ""


def parts_by_folder(files: Iterable[Path]) -> dict[str, str]:
    """The parts that folders are called like; those of other names are for training, if there are any."""
    named = {folder: part_in(folder) for folder in {top(file) for file in files}}
    if None in named.values():
        named = {folder: exact_part(folder) or "train" for folder in named}
    return decide_either(named)


def refuse_contradictions(root: Path, names: str, what: str, rows: Sequence[str]) -> None:
    """InputError if rows give a picture another label, or another part, than a row before."""
    if rows:
        again = f"{len(rows):,} rows name a picture again, with other {what}: {listed(rows, 5)}"
        raise InputError(f"{root}, {names}: {again}; a picture needs one label, and is in one part: mend the table")


def refuse_lists(root: Path, names: str, labels: set[str]) -> None:
    """InputError if labels are lists of other labels, as cat|dog beside cat and dog."""
    for label in sorted(labels):
        pieces = {piece.strip() for piece in re.split(r"[|;,]", label)} - {""}
        if len(pieces) > 1 and pieces & labels:
            raise InputError(
                f"{root}, {names}: {label} looks like several labels of one picture, which needs exactly one"
            )


# --- rows ---------------------------------------------------------------------------------------------------------


def read_csv(file: Path) -> list[list[str]]:
    """The rows of a table, all as long as the first, which names the columns."""
    try:
        text = file.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{file} is not in UTF-8 (byte {error.start + 1}): save it as CSV in UTF-8") from None
    lines = text.splitlines()[:20]
    try:
        delimiter = csv.Sniffer().sniff("\n".join(lines), delimiters=",;\t|").delimiter
    except csv.Error:
        delimiter = ","
    if lines and delimiter not in lines[0]:
        delimiter = ","
    rows = []
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=True, strict=True)
    try:
        for cells in reader:
            row = [cell.strip() for cell in cells]
            if any(row):
                rows.append(row)
            width = len(rows[0]) if rows else 0
            if any(row[width:]):
                more = f"line {reader.line_num} has {len(row)} fields, and the first line {width}"
                raise InputError(f"{file}: {more}; a field with a comma needs quotes")
    except csv.Error as error:
        raise InputError(f"{file} is no CSV file that can be read: line {reader.line_num}: {error}") from None
    return [row[: len(rows[0])] + [""] * (len(rows[0]) - len(row)) for row in rows]


def read_table(root: Path, path: Path, part: str | None) -> Table:
    """The rows of a table, all of one part if no column says otherwise; NotLabels without the columns for it."""
    file = root / path
    header, *records = read_csv(file) or [[]]
    columns = choose_columns(file, header, records)
    if not records:
        raise NotLabels(f"{file} has no line below the names of the columns")
    if columns.split is None:
        parts = [part] * len(records)
    else:
        parts = read_split(file, header[columns.split], [record[columns.split] for record in records])
    rows = [Row(record[columns.name], record[columns.label], part) for record, part in zip(records, parts, strict=True)]
    names = f"{header[columns.name]} and {header[columns.label]}"
    labelled = [row for row in rows if row.label]
    return Table(path, names, labelled, [row.name for row in rows if not row.label])


def choose_columns(file: Path, header: Sequence[str], records: Sequence[Sequence[str]]) -> Columns:
    """Which columns hold the files' names, the labels, and perhaps the parts."""
    plain = [re.sub(r"[\s_-]", "", name.lower()) for name in header]
    names = [plain.index(name) for name in NAMES if name in plain]
    labels = [i for i, name in enumerate(plain) if name in LABELS]
    splits = [i for i, name in enumerate(plain) if name in SPLITS]
    there = f"its first line has {listed(header, 10) or 'nothing'}"
    if not names:
        raise NotLabels(f"{file} has no column of file names, such as file_name: {there}")
    if not labels:
        flags = [name for i, name in enumerate(header) if {record[i] for record in records} == {"0", "1"}]
        several = f"; {listed(flags, 5)} look like several labels, and one is needed" if len(flags) > 1 else ""
        raise NotLabels(f"{file} has no column of classes, such as label: {there}{several}")
    if len(labels) > 1:
        labels = [only_label(file, header, records, labels)]
    if len(splits) > 1:
        raise InputError(f"{file} has several columns of parts, {listed([header[i] for i in splits], 5)}: keep one")
    return Columns(names[0], labels[0], splits[0] if splits else None)


def only_label(file: Path, header: Sequence[str], records: Sequence[Sequence[str]], labels: Sequence[int]) -> int:
    """The column with words, if the others are numbers of the same classes; InputError if they say something else."""
    distinct = [len({record[i] for record in records}) for i in labels]
    together = len({tuple(record[i] for i in labels) for record in records})
    if {*distinct} != {together}:
        names = listed([header[i] for i in labels], 5)
        raise InputError(f"{file} has several columns of labels, {names}: a picture needs one label, keep one of them")
    words = [i for i in labels if not all(record[i].isdigit() for record in records)]
    return (words or labels)[0]


def read_split(file: Path, name: str, values: Sequence[str]) -> list[str]:
    """The parts that the values of a column name; InputError for others."""
    part_of = {value: part_in(value) for value in values}
    if unknown := sorted(value for value, part in part_of.items() if part is None):
        count = sum(value in unknown for value in values)
        others = listed([value or "nothing" for value in unknown], 5)
        raise InputError(f"{file}: column {name} has {others} in {count:,} rows, where train, val or test is needed")
    part_of = decide_either(part_of)
    return [part_of[value] for value in values]


# --- files --------------------------------------------------------------------------------------------------------


def index_names(files: Iterable[Path]) -> dict[str, list[Path]]:
    """Files by all names that a table may give them: with or without suffix, with or without the folders above."""
    index = defaultdict(list)
    for file in files:
        for i in range(len(file.parts)):
            name = PurePosixPath(*file.parts[i:])
            for key in {str(name), str(name.with_suffix(""))}:
                index[unicodedata.normalize("NFC", key)].append(file)
    return index


def find_files(root: Path, table: Table, index: dict[str, list[Path]]) -> list[tuple[Path, Row]]:
    """The file of each row that has one; NotLabels if none has, InputError if most have none."""
    found, missing, unclear = [], [], []
    folder = table.path.parent
    for row, name in zip(table.rows, without_prefix([row.name for row in table.rows], index), strict=True):
        files = index.get(name, [])
        if len(files) > 1:
            files = [file for file in files if row.part and part_in(top(file)) == row.part] or files
        if len(files) > 1:
            unclear.append(f"{row.name} ({listed(files, 3)})")
        elif files:
            found.append((files[0], row))
        elif row.name and os.path.isfile(root / folder / row.name):  # the file is outside of the folder
            found.append((folder / row.name, row))
        else:
            missing.append(row.name or "an empty name")
    if unclear:
        fits = f"{len(unclear):,} names fit several pictures: {listed(unclear, 3)}"
        raise InputError(f"{root / table.path}: {fits}; write the folder into the name")
    if len(missing) > len(found) or not found:
        none = f"{len(missing):,} of {len(table.rows):,} rows name no picture that is there: {listed(missing, 5)}"
        there = [file for files in index.values() for file in files][:1]
        called = f" (a picture is called {there[0]})" if there else ""
        raise (InputError if found else NotLabels)(f"{root / table.path}: {none}{called}")
    print(printable(f"{root}: labels from {table.path}, columns {table.columns}"))
    note(root, f"left out, no label in {table.path}", table.unlabelled)
    note(root, f"left out, rows of {table.path} without a picture", missing)
    return found


def without_prefix(names: Sequence[str], index: dict[str, list[Path]]) -> list[str]:
    """The names as the index has them: without the folders that all share, as far as that finds more files."""
    paths = [PurePosixPath(unicodedata.normalize("NFC", name.replace("\\", "/"))).parts for name in names]
    shared = 0
    for level in zip(*(path[:-1] for path in paths), strict=False):  # it ends with the fewest folders
        if len({*level}) > 1:
            break
        shared += 1
    tries = [["/".join(path[n:]) for path in paths] for n in range(shared + 1)]
    return max(tries, key=lambda tried: sum(name in index for name in tried))
