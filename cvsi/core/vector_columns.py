"""Arrow columns of fixed-size lists to matrices, and matrices to such columns."""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor
from torch.utils.dlpack import from_dlpack

from cvsi.core.errors import CvsiError


def names_of(schema: pa.Schema) -> tuple[str, ...]:
    """The columns of a table that are lists of numbers, in its order."""
    return tuple(field.name for field in schema if _is_list_of_numbers(field.type))


def matrix_of(table: pa.Table, column: str, where: str) -> np.ndarray:
    """A column of fixed-size lists as a matrix [rows, d] float32; other lists will do where all are equally long."""
    return numbers_of(table, column, where).to(torch.float32, copy=True).numpy()


def numbers_of(table: pa.Table, column: str, where: str) -> Tensor:
    """The same in the numbers' own type, in Arrow's own memory: only to be read."""
    if column not in table.column_names:
        raise CvsiError(f"{where}: no column '{column}', which has a weight in the dataset's fusion")
    lists = table[column].combine_chunks()
    width, numbers = _width(lists), lists.flatten() if pa.types.is_nested(lists.type) else lists
    nulls = lists.null_count + numbers.null_count
    if width is None or nulls:
        raise CvsiError(f"{where}: column '{column}' is {lists.type} with {nulls} nulls, not vectors")
    return from_dlpack(numbers).reshape(len(lists), width)


def _width(lists: pa.Array) -> int | None:
    """How long each list of numbers is; None where there are no such lists or they differ."""
    kind = lists.type
    if not _is_list_of_numbers(kind):
        return None
    if pa.types.is_fixed_size_list(kind):
        return int(kind.list_size)
    lengths = pc.unique(pc.list_value_length(lists)).to_pylist()
    return int(lengths[0]) if len(lengths) == 1 and lengths[0] else None


def _is_list_of_numbers(kind: pa.DataType) -> bool:
    if not (pa.types.is_fixed_size_list(kind) or pa.types.is_list(kind) or pa.types.is_large_list(kind)):
        return False
    return bool(pa.types.is_floating(kind.value_type) or pa.types.is_integer(kind.value_type))


def column(vectors: np.ndarray) -> pa.FixedSizeListArray:
    """A matrix [rows, d] as an Arrow column of fixed-size lists."""
    return pa.FixedSizeListArray.from_arrays(pa.array(np.ascontiguousarray(vectors).reshape(-1)), vectors.shape[1])
