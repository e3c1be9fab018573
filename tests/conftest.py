"""For all tests: Triton's interpreter looks through the whole language once a launch, not at every
call from one of our functions to another, which took a third of its time."""

from collections.abc import Callable
from functools import cache
from typing import Any

from fastsep.kernels import interpreted


def patch_the_language_once() -> None:
    import triton.language as tl
    from triton.runtime import interpreter

    patch: Callable[[Any], Any] = interpreter._patch_lang

    @cache
    def languages(function: Any) -> list[Any]:
        return [m for m in function.__globals__.values() if m is tl or m is tl.core]

    def patch_once(function: Any) -> Any:
        unpatched = any(tl.core.is_builtin(language.load) for language in languages(function))
        return patch(function) if unpatched else interpreter._LangPatchScope()

    interpreter._patch_lang = patch_once


if interpreted():
    patch_the_language_once()
