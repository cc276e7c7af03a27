"""An unpickler that takes only permitted names, and bounds the memory and the time that a small file can ask for.

A pickle of a few bytes can call ``range`` with 10**10 elements and extend a list by it. It can double a tuple sixty
times, whose hash then takes centuries. The limits here grow with the size of the file; plain data stay far below them.
"""

import pickle
from collections import deque
from collections.abc import Callable, Sized
from typing import Any, BinaryIO, ClassVar

# Elements that a file may create by calls: as many as this, and as this times its bytes.
FREE_ELEMENTS, ELEMENTS_PER_BYTE = 10**6, 16

_Unpickler: Any = pickle._Unpickler  # Python's own code: that in C has no hooks

_NUMBERS = (int, float, type(None))

_TUPLES = (pickle.TUPLE, pickle.TUPLE1, pickle.TUPLE2, pickle.TUPLE3)


class TooLargeError(ValueError):
    """A pickle asks for more elements than a file of its size can hold."""


def _length(value: object) -> int:
    """Return the length of a container, a string, an array or a tensor; 0 for other values."""
    if type(value).__name__ == "TypedStorage":  # its bytes were counted; len() warns
        return 0
    try:
        return len(value) if isinstance(value, Sized) else 0
    except TypeError:  # a tensor without dimensions
        return 0


class _SizedFile:
    """The rest of a file; reading more bytes than it has raises an ``EOFError``, before memory is taken for them."""

    def __init__(self, file: BinaryIO) -> None:
        start = file.tell()
        self.size = self._left = file.seek(0, 2) - start
        file.seek(start)
        self._file = file

    def read(self, count: int) -> bytes:
        if not 0 <= count <= self._left or (count and not self._left):
            raise EOFError("it is truncated")
        self._left -= count
        return self._file.read(count)

    def readline(self) -> bytes:
        line = self._file.readline()
        self._left -= len(line)
        return line


def _counted(step: Callable) -> Callable:
    """Return a step of the unpickler that counts the elements of the tuple that it makes."""

    def load(unpickler: "BoundedUnpickler") -> None:
        step(unpickler)
        unpickler._note(unpickler.stack[-1])

    return load


class BoundedUnpickler(_Unpickler):
    """An unpickler that takes names from ``permitted(module, name)`` and calls only these."""

    dispatch: ClassVar[dict[int, Callable]] = dict(_Unpickler.dispatch)

    def __init__(self, file: BinaryIO, permitted: Callable[[str, str], object | None], **options: Any) -> None:
        sized = _SizedFile(file)
        super().__init__(sized, **options)
        self._permitted = permitted
        self._left = FREE_ELEMENTS + ELEMENTS_PER_BYTE * sized.size
        self._nested: dict[int, tuple[object, int]] = {}  # tuples of tuples by id, with their number of elements

    def find_class(self, module: str, name: str) -> object:
        replacement = self._permitted(module, name)
        if replacement is None:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        return replacement

    # --- limits -------------------------------------------------------------------------------------

    def _spend(self, elements: int) -> None:
        self._left -= elements
        if self._left < 0:
            raise TooLargeError("it asks for more elements than a file of its size can hold")

    def _elements(self, value: object) -> int:
        """Return the elements of a value, those of nested tuples included: the steps that its hash takes."""
        if id(value) in self._nested:
            return self._nested[id(value)][1]
        return len(value) + 1 if isinstance(value, tuple | frozenset) else 1

    def _note(self, value: object) -> object:
        """Count the elements of a new tuple or frozenset, in which tuples may be nested."""
        if isinstance(value, tuple | frozenset):
            inner = [self._elements(item) for item in value if isinstance(item, tuple | frozenset)]
            if inner:
                elements = len(value) + sum(inner)
                if elements > self._left:
                    self._spend(elements)
                self._nested[id(value)] = value, elements
        return value

    def _check(self, function: Any, arguments: object) -> None:
        """Raise an error for a call that is not permitted or creates too many elements."""
        if not isinstance(arguments, tuple):
            raise pickle.UnpicklingError("it calls a function without a tuple of arguments")
        first = arguments[0] if arguments else None
        if function is range:
            self._spend(len(range(*arguments)))
        elif function in (bytes, bytearray) and isinstance(first, int):
            self._spend(max(0, first))
        elif function is str and not isinstance(first, str | bytes | bytearray | None):
            raise pickle.UnpicklingError("it formats an object as text")
        elif function is slice and not all(isinstance(value, _NUMBERS) for value in arguments):
            raise pickle.UnpicklingError("it holds a slice of other values than numbers")
        for value in arguments:
            self._spend(_length(value) + 1)
            if isinstance(value, list | tuple | deque):  # these may become keys, or elements of a set
                self._spend(sum(map(self._elements, value)))

    def create(self, function: Any, *arguments: object, **options: object) -> object:
        """Call a function whose arguments are checked."""
        return self._note(function(*arguments, **options))

    # --- steps --------------------------------------------------------------------------------------

    def load_reduce(self) -> None:
        arguments = self.stack.pop()
        self._check(self.stack[-1], arguments)
        self.stack[-1] = self.create(self.stack[-1], *arguments)

    def load_newobj(self) -> None:
        arguments, cls = self.stack.pop(), self.stack.pop()
        self._check(cls, arguments)
        self.append(self.create(cls.__new__, cls, *arguments))

    def load_newobj_ex(self) -> None:
        options, arguments, cls = self.stack.pop(), self.stack.pop(), self.stack.pop()
        self._check(cls, arguments)
        self.append(self.create(cls.__new__, cls, *arguments, **options))

    def _instantiate(self, cls: object, arguments: list) -> None:
        self._check(cls, tuple(arguments))
        self.append(self.create(cls, *arguments))

    def load_build(self) -> None:
        target: Any = self.stack[-2] if len(self.stack) > 1 else None
        if callable(target) or type(target).__module__.partition(".")[0] in ("numpy", "torch"):
            raise pickle.UnpicklingError("it changes a class, a function, an array or a tensor")
        super().load_build()

    def load_frozenset(self) -> None:
        items = self.pop_mark()
        self._spend(sum(map(self._elements, items)))
        self.append(self._note(frozenset(items)))

    def load_additems(self) -> None:
        items = self.pop_mark()
        self._spend(sum(map(self._elements, items)))
        self._collection(set).update(items)

    def load_setitem(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self._spend(self._elements(key))
        self._collection(dict)[key] = value

    def load_setitems(self) -> None:
        items = self.pop_mark()
        self._spend(sum(map(self._elements, items[::2])))
        self._collection(dict).update(zip(items[::2], items[1::2], strict=True))

    def load_append(self) -> None:
        item = self.stack.pop()
        self._collection(list, deque).append(item)

    def load_appends(self) -> None:
        items = self.pop_mark()
        self._collection(list, deque).extend(items)

    def _collection(self, *kinds: type) -> Any:
        """Return the collection on the stack that a step changes."""
        found = self.stack[-1]
        if not isinstance(found, kinds):
            raise pickle.UnpicklingError(f"it adds items to a {type(found).__name__}")
        return found

    for _code, _step in {
        pickle.REDUCE: load_reduce,
        pickle.NEWOBJ: load_newobj,
        pickle.NEWOBJ_EX: load_newobj_ex,
        pickle.BUILD: load_build,
        **{code: _counted(_Unpickler.dispatch[code[0]]) for code in _TUPLES},
        pickle.FROZENSET: load_frozenset,
        pickle.ADDITEMS: load_additems,
        pickle.SETITEM: load_setitem,
        pickle.SETITEMS: load_setitems,
        pickle.APPEND: load_append,
        pickle.APPENDS: load_appends,
    }.items():
        dispatch[_code[0]] = _step
