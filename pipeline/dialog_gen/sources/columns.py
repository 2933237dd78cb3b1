"""The columns of a Parquet file that has images: which ones are read, and their values."""

from typing import Any, Final, NamedTuple

import pyarrow as pa

from dialog_gen.core.errors import UsageError
from dialog_gen.sources.listing import printable

IMAGE_COLUMNS: Final = ("image", "images", "jpg", "jpeg", "png", "webp", "bytes")
ID_COLUMNS: Final = ("image_id", "key", "id", "__key__")
CAPTION_COLUMNS: Final = ("caption", "text", "txt")

_TEXTS = (pa.StringScalar, pa.LargeStringScalar, pa.StringViewScalar)
_LISTS = (pa.ListScalar, pa.LargeListScalar, pa.FixedSizeListScalar)


class ImageColumns(NamedTuple):
    """The columns that are used, and `others`: columns of images that are not used."""

    image: str
    image_id: str | None
    url: str | None
    caption: str | None
    others: tuple[str, ...]
    all_images: bool = False
    """Whether all images of a list are used, or only the first."""

    def to_read(self) -> list[str]:
        """The columns that an image is read from."""
        return [name for name in (self.image, self.url, self.caption) if name]

    def unused_images(self, group: Any) -> int:
        """The number of images in a row group (its metadata) that are not used; reads no data."""
        # An empty or missing list, too, counts as a value.
        more = 0 if self.all_images else _values(group, self.image)[0] - group.num_rows
        for name in self.others:
            values, nulls = _values(group, name)
            more += values - nulls
        return more


def find_columns(schema: pa.Schema, path: str) -> ImageColumns:
    """Chooses the columns. Raises UsageError if it is unclear which column has the images of the file at `path`."""
    images = [column.name for column in schema if _holds_image(column.type)]
    image = next((name for name in IMAGE_COLUMNS if name in images), images[0] if len(images) == 1 else None)
    if image is None:
        columns = ", ".join(f"{column.name}: {column.type}" for column in schema)
        raise UsageError(
            f"{path}: which column has the images? Expected bytes or struct{{bytes, path}}, the only such "
            f"column or one named {', '.join(IMAGE_COLUMNS)}; got {columns}"
        )

    def first(*names: str) -> str | None:
        return next((name for name in names if name in schema.names and name != image), None)

    # A column of plain bytes may contain anything, for example a hash.
    others = (n for n in images if n != image and (n in IMAGE_COLUMNS or _is_image_struct(schema.field(n).type)))
    return ImageColumns(image, first(*ID_COLUMNS), first("url"), first(*CAPTION_COLUMNS), tuple(others))


def python_values(column: pa.Array, *, lossless: bool = False) -> list[Any]:
    """The values as Python objects. Texts may contain bytes that are not UTF-8: they become U+FFFD.

    With `lossless` they become backslash escapes, so that different values stay different (`listing.printable`).
    """
    try:
        values = column.to_pylist()
    except UnicodeDecodeError:
        values = [_value(scalar, "surrogateescape" if lossless else "replace") for scalar in column]
    return [printable(value) if isinstance(value, str) else value for value in values] if lossless else values


def _value(scalar: Any, errors: str) -> Any:
    if not scalar.is_valid:
        return None
    if isinstance(scalar, pa.DictionaryScalar):
        return _value(scalar.value, errors)
    if isinstance(scalar, _TEXTS):
        return scalar.as_buffer().to_pybytes().decode("utf-8", errors)
    if isinstance(scalar, pa.StructScalar):
        return {name: _value(field, errors) for name, field in scalar.items()}
    if isinstance(scalar, _LISTS):
        return [_value(element, errors) for element in scalar.values]
    return scalar.as_py()


def _values(group: Any, column: str) -> tuple[int, int]:
    """The number of values of an image column in a row group, and of those that are null as far as it is known."""
    leaves = (group.column(number) for number in range(group.num_columns))
    paths = [(leaf, leaf.path_in_schema.split(".")) for leaf in leaves]
    of_column = [(leaf, path[-1]) for leaf, path in paths if _is_leaf_of(path, column)]
    leaf = next((leaf for leaf, last in of_column if last == "bytes"), of_column[0][0])
    statistics = leaf.statistics
    nulls = statistics.null_count if statistics is not None and statistics.has_null_count else 0
    return leaf.num_values, nulls


def _is_leaf_of(path: list[str], column: str) -> bool:
    parts = column.split(".")
    return path[: len(parts)] == parts


def _holds_image(kind: Any) -> bool:
    kind = _element(kind)
    if _is_image_struct(kind):
        kind = kind.field("bytes").type
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind)


def _is_image_struct(kind: Any) -> bool:
    kind = _element(kind)
    return pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0


def _element(kind: Any) -> Any:
    is_list = pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    return kind.value_type if is_list else kind
