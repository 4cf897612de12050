"""The checks of annotations in the test run: each is made once, when its function is called for the first time.

jaxtyping's import hook puts the decorator `jaxtyping.jaxtyped` on every function, and the decorator writes and compiles
the check of its function. This takes milliseconds: at import for each function of the project, most of which a test
file never calls, and for an inner function again at each call of the outer one. `check_annotations` puts a decorator in
its place that has jaxtyping make the same check later, and keeps it.
"""

import inspect
from collections.abc import Callable
from functools import partial, update_wrapper, wraps
from types import CodeType, FunctionType
from typing import Any, ForwardRef, get_args

import jaxtyping
from beartype.roar import BeartypeCallHintViolation

#: What a check raises: the first where there are shapes.
REFUSED = (jaxtyping.TypeCheckError, BeartypeCallHintViolation)

#: jaxtyping's own decorator, which makes a check at once.
CHECKED_AT_ONCE = jaxtyping.jaxtyped

#: {the id of a function's code: its check}. A check holds its function, so no other code can have this id later. The
#: code itself would be no key: the constructors of two named tuples with the same names of fields have equal code.
_checks: dict[int, Callable[..., Any]] = {}


def check_annotations(*packages: str) -> None:
    """From now on, these packages are imported with checks of their annotations. None may have been imported yet."""
    jaxtyping.jaxtyped = checked
    jaxtyping.install_import_hook(packages, "beartype.beartype")


def checked(function: Any = None, *, typechecker: Any) -> Any:
    """`jaxtyping.jaxtyped`, except that the check of a function is made when the function is called first."""
    if function is None:
        return partial(checked, typechecker=typechecker)
    if not isinstance(function, FunctionType):
        return CHECKED_AT_ONCE(function, typechecker=typechecker)

    @wraps(function)
    def checked_function(*arguments: Any, **named: Any) -> Any:
        __tracebackhide__ = True
        if jaxtyping.config.jaxtyping_disable:
            return function(*arguments, **named)
        code = id(function.__code__)
        if code not in _checks:
            _checks[code] = _check_of(function, typechecker)
        return _checks[code](function, *arguments, **named)

    checked_function.__code__ = _in_jaxtyping(checked_function.__code__)
    return checked_function


def _in_jaxtyping(code: CodeType) -> CodeType:
    """The code as if it stood in jaxtyping: what looks for a user's line in the stack of calls passes it by."""
    return code.replace(co_filename=jaxtyping.__file__)


def _check_of(function: FunctionType, typechecker: Any) -> Callable[..., Any]:
    """What calls the function it is given first, and checks the other arguments and the result.

    It serves all functions that one `def` in the source has made, which differ in what they close over. A function of a
    module that has no shapes is checked by the type checker alone, which takes a fraction of the time.
    """
    if "<locals>" not in function.__qualname__ and not any(map(_has_shapes, function.__annotations__.values())):
        check = typechecker(function)
        return partial(_without_function, check)
    call = FunctionType(_call.__code__, function.__globals__)  # in whose globals jaxtyping looks for names
    update_wrapper(call, function)
    signature = inspect.signature(function)
    first = inspect.Parameter("_function", inspect.Parameter.POSITIONAL_ONLY, annotation=Any)
    call.__signature__ = signature.replace(parameters=[first, *signature.parameters.values()])
    return CHECKED_AT_ONCE(call, typechecker=typechecker)


def _without_function(check: Callable[..., Any], _: FunctionType, *arguments: Any, **named: Any) -> Any:
    return check(*arguments, **named)


def _has_shapes(annotation: Any) -> bool:
    """Whether jaxtyping must read it: a shape is somewhere in it, or a name in quotes, which may be anything."""
    if isinstance(annotation, str | ForwardRef):
        return True
    if isinstance(annotation, list):  # the arguments of a Callable
        return any(map(_has_shapes, annotation))
    return isinstance(annotation, type(jaxtyping.AbstractArray)) or any(map(_has_shapes, get_args(annotation)))


def _call(function: FunctionType, /, *arguments: Any, **named: Any) -> Any:
    return function(*arguments, **named)


for _own in (_without_function, _call):
    _own.__code__ = _in_jaxtyping(_own.__code__)
