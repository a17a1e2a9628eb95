# SPDX-License-Identifier: Apache-2.0
"""NumPy where it is installed. Torch tensors need none: without it no object is a NumPy array, and
whatever else is asked of NumPy is an ImportError that says so."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__all__ = ["np"]

if TYPE_CHECKING:
    import numpy as np
else:
    try:
        import numpy as np
    except ImportError:

        class _Absent:
            """Types of which nothing is, and nothing more."""

            class ndarray: ...

            class bool_: ...

            class integer: ...

            class floating: ...

            def __getattr__(self, name: str) -> Any:
                raise ImportError(
                    "NumPy is not installed (pip install numpy): without it amla takes torch "
                    "tensors only, no lists and no DLPack objects, and has no bench"
                )

        np = _Absent()
