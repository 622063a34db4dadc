"""Items of tables, read by Hugging Face `datasets`: from the hub, its folders, Parquet, Arrow and CSV files.

Rows are read as Arrow stores them, so an image stays bytes or a path, as in the table. No code of a data set is
run: `datasets` no longer supports that.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from jaxvlm.data.sources.formats import Alpaca, Chat, Document, columns_to_read, recognise
from jaxvlm.data.sources.image_refs import ImageRule
from jaxvlm.data.sources.items import ItemSource, hash_files, hash_texts
from jaxvlm.errors import UserError, missing_extra, on_a_line

KINDS = {".parquet": "parquet", ".arrow": "arrow", ".csv": "csv"}  # file suffix -> its name in `datasets`


class TableItems:
    """The rows of a `datasets.Dataset`; pickles as the names of its files.

    Attributes:
      columns: their names.
      unread: names of columns that are not read.
    """

    def __init__(self, dataset: Any, name: str, files: Sequence[Path] = ()):
        """Stores its arguments; `files` are the table's own files, if they are local."""
        self._dataset, self._name, self._files = dataset.with_format("arrow"), name, files
        self.columns: list[str] = dataset.column_names
        self.unread: tuple[str, ...] = ()
        self._fingerprint = ""

    def select(self, format: Chat | Alpaca | Document) -> TableItems:
        """The same table with only the columns that are read; the items name the others in `unread`."""
        columns = columns_to_read(format, self.columns)
        selected = TableItems(self._dataset.select_columns(columns), self._name, self._files)
        selected.unread = tuple(column for column in self.columns if column not in columns)
        return selected

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, index: int) -> dict[str, Any]:
        try:
            return self._dataset[int(index)].to_pylist()[0]
        except OSError as error:
            raise UserError(f"{self.origin(index)} cannot be read ({error}); is its file gone?") from error

    def origin(self, index: int) -> str:
        """The place of row `index`: "file.parquet[12]", "hf:NAME[12]"."""
        return f"{self._name}[{index}]"

    def fingerprint(self) -> str:
        """Hash of the bytes of its own files, else of Arrow's; computed at the first call."""
        if not self._fingerprint:
            files = self._files or [Path(file["filename"]) for file in self._dataset.cache_files]
            part = [str(self._dataset.split), str(len(self._dataset))]
            self._fingerprint = hash_texts([hash_files(files), *part])
        return self._fingerprint


def load_hf(spec: str, image_folder: str, *, allow_outside: bool) -> ItemSource:
    """Opens "hf:NAME_OR_FOLDER[:SPLIT]"; a folder is from `save_to_disk`, or has data files.

    Raises:
      UserError: it cannot be opened, has no such split, or no format that is recognised.
    """
    name, split = spec.removeprefix("hf:"), ""
    if not name:
        raise UserError(f"data.source = {spec!r} names no data set; give hf:NAME_OR_FOLDER[:SPLIT]")
    if not Path(name).is_dir():
        name, _, split = name.partition(":")
    if Path(name).is_dir():
        items, folder = _open_folder(spec, Path(name), split), Path(name)
    else:
        items, folder = load_hub(spec, name, split=split or "train"), hub_folder(spec)
    rule = ImageRule(Path(image_folder) if image_folder else folder, allow_outside)
    return _recognised(items, spec, rule, image_folder)


def _recognised(items: TableItems, where: str, rule: ImageRule, image_folder: str) -> ItemSource:
    """The records of a table, in the format that its columns show."""
    format = recognise(
        items.columns, where, "describe them in a dataset_info.json and give PATH/dataset_info.json:NAME"
    )
    return ItemSource(items.select(format), format, rule, image_folder)


def load_hub(spec: str, name: str, *, split: str, subset: str | None = None, folder: str | None = None) -> TableItems:
    """A data set of the hub, or a folder of it, downloaded if it is not cached."""
    return TableItems(_load(spec, name, split=split, name=subset, data_dir=folder), spec)


def load_files(spec: str, files: Sequence[Path], split: str) -> TableItems:
    """The rows of Parquet, Arrow or CSV files, all of one kind."""
    kind = KINDS[files[0].suffix]
    dataset = _load(spec, kind, split=split, data_files=[str(file) for file in files])
    name = files[0] if len(files) == 1 else files[0].parent
    return TableItems(dataset, str(name), files)


def load_table(spec: str, rule: ImageRule, image_folder: str) -> ItemSource:
    """Opens a Parquet, Arrow or CSV file.

    Raises:
      UserError: it cannot be opened, or has no format that is recognised.
    """
    where = f"data.source = {spec!r}"
    return _recognised(load_files(where, [Path(spec)], "train"), where, rule, image_folder)


def hub_folder(spec: str) -> Path:
    """The folder of image files that come with a data set of the hub."""
    return Path(import_datasets(spec).config.HF_CACHE_HOME)


def import_datasets(spec: str) -> ModuleType:
    """The package `datasets`; raises `UserError` if it is not installed."""
    try:
        import datasets
    except ModuleNotFoundError as error:
        raise missing_extra(f"data.source = {spec!r}", "datasets", "hf") from error
    return datasets


def _open_folder(spec: str, folder: Path, split: str) -> TableItems:
    datasets = import_datasets(spec)
    saved = (folder / "state.json").is_file() or (folder / "dataset_dict.json").is_file()
    if not saved:
        return TableItems(_load(spec, str(folder), split=split or "train"), spec)
    try:
        dataset = datasets.load_from_disk(str(folder), keep_in_memory=False)
    except Exception as error:  # of Arrow, of JSON, of files
        raise _failure(spec, error) from error
    splits = dataset if isinstance(dataset, dict) else {str(dataset.split or "train"): dataset}
    split = split or ("train" if len(splits) > 1 else next(iter(splits), ""))
    if split not in splits:
        raise UserError(f"{spec!r}: there is no split {split!r} in {folder}; it has {', '.join(splits) or 'none'}")
    return TableItems(splits[split], spec)


def _load(spec: str, path: str, **options: Any) -> Any:
    datasets = import_datasets(spec)
    try:
        return datasets.load_dataset(path, keep_in_memory=False, **options)
    except Exception as error:  # of the network, of Arrow, of the hub: dozens of types
        raise _failure(spec, error) from error


def _failure(spec: str, error: Exception) -> UserError:
    cause = error.__cause__ or error  # `datasets` reports "an error occurred" and has the reason in the cause
    return UserError(
        f"{spec!r} cannot be opened by datasets ({on_a_line(cause)}); check the name, the split, "
        "the files and, for one of the hub, the network and HF_TOKEN"
    )
