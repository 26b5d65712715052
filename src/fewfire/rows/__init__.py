"""Rows as people hand them over, and as products need them.

``as_rows`` and ``as_storage`` take anything array-like, or refuse it in a sentence that names the place; ``take``
gives rows of a storage as float32 or float64; ``check_finite`` names the first value that is not a number.
"""

from fewfire.rows.categories import Categories
from fewfire.rows.cells import as_real, is_missing
from fewfire.rows.csr import MAX_COLUMNS, as_csr
from fewfire.rows.finite import all_finite, check_finite
from fewfire.rows.gather import BFLOAT16, Storage, aligned, compute_dtype, take
from fewfire.rows.handed import as_rows, as_storage
from fewfire.rows.tables import column_names

__all__ = [
    "BFLOAT16",
    "MAX_COLUMNS",
    "Categories",
    "Storage",
    "aligned",
    "all_finite",
    "as_csr",
    "as_real",
    "as_rows",
    "as_storage",
    "check_finite",
    "column_names",
    "compute_dtype",
    "is_missing",
    "take",
]
