"""Array annotations: jaxtyping's where it is installed (the tests), plain stand-ins where it is not (a device)."""

from typing import TYPE_CHECKING, Any

from jax import Array

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int, Key, Num
else:
    try:
        from jaxtyping import Bool, Float, Int, Key, Num
    except ImportError:

        class _Unchecked:
            def __class_getitem__(cls, _: Any):
                return Any

        Bool = Float = Int = Key = Num = _Unchecked

__all__ = ["Array", "Bool", "Float", "Int", "Key", "Num"]
