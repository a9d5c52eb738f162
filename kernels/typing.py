"""Array annotations: jaxtyping's where it is imported already (the tests, which check them), else plain stand-ins.

Its import would be a visible part of a command's start.
"""

import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jax import Array
    from jaxtyping import Bool, Float, Int, Key, Num
else:
    if sys.modules.get("jaxtyping"):
        from jaxtyping import Bool, Float, Int, Key, Num
    else:

        class _Unchecked:
            def __class_getitem__(cls, _: Any):
                return Any

        Bool = Float = Int = Key = Num = _Unchecked

    def __getattr__(name: str) -> type:
        """JAX's array, imported when a module asks for it: those in NumPy alone do not load JAX."""
        if name != "Array":
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from jax import Array

        return Array


__all__ = ["Array", "Bool", "Float", "Int", "Key", "Num"]
