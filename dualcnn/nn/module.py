"""Module: what all layers and models are."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple, Self

from .. import backend
from ..autograd import Tensor
from ..backend import Array, Backend
from ..recording import note_change, note_mode
from .hooks import Hook, HookHandle
from .parameter import Parameter, UninitializedParameter
from .summary import Summary, summarize

__all__ = ["LoadedKeys", "Module", "StateDictError"]


class StateDictError(ValueError):
    """A state that does not fit the module it should be loaded into."""


class LoadedKeys(NamedTuple):
    """What `load_state_dict(strict=False)` left alone."""

    missing_keys: list[str]
    unexpected_keys: list[str]


_NOWHERE = object()
"""In place of an attribute that there is not."""

_PLAIN = (int, float, str, bool)


def _are_equal(a: Any, b: Any) -> bool:
    """Whether two values are the same numbers or texts, or tuples of them, such as shapes."""
    if type(a) is not type(b):
        return False
    if type(a) is tuple:
        return len(a) == len(b) and all(map(_are_equal, a, b))
    # 0.0 and -0.0 are equal.
    return type(a) in _PLAIN and repr(a) == repr(b)


class Module:
    """Base of layers and models: parameters, buffers and submodules, by attribute name.

    A subclass calls `super().__init__()`, assigns its layers and Parameters as attributes, and
    defines `forward`. Calling the module runs `forward`; an error says in which layer it arose.

    >>> class Net(nn.Module):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.fc = nn.Linear(4, 2)
    ...     def forward(self, x):
    ...         return self.fc(x)
    """

    training: bool = True
    _buffers: Mapping[str, bool] = MappingProxyType({})
    _hooks: Mapping[int, Hook] = MappingProxyType({})

    def __init__(self) -> None:
        self.training = True
        self._buffers: dict[str, bool] = {}
        self._hooks: dict[int, Hook] = {}

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the module computes; a subclass defines it."""
        raise NotImplementedError(f"{type(self).__name__} does not define forward")

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        try:
            result = self.forward(*args, **kwargs)
        except Exception as error:
            self._locate(error, (*args, *kwargs.values()))
            raise
        if self._hooks:
            for hook in list(self._hooks.values()):
                changed = hook(self, args, result)
                result = result if changed is None else changed
        return result

    def register_forward_hook(self, hook: Hook) -> HookHandle:
        """Call `hook(module, inputs, output)` after each forward.

        A value other than None that it returns replaces the output. `.remove()` takes it off again.
        """
        self._require_init()
        return HookHandle(self._hooks, hook)  # type: ignore[arg-type]

    def _locate(self, error: Exception, args: tuple[Any, ...]) -> None:
        """Note on the error the innermost module it came from, and the path to it."""
        where = error.__dict__.get("_dualcnn_where")
        if where is None:
            shapes = ", ".join(str(tuple(a.shape)) for a in args if hasattr(a, "shape"))
            given = f" given {shapes}" if shapes else ""
            is_given = all(hasattr(a, "shape") for a in args)
            if isinstance(error, backend.MixedBackendsError) and is_given:
                error.add_note("move the input, x.to(device), or the model, model.to(device)")
            backend.tell_memory(error, *args)
            path, what = "", f"{type(self).__name__}({self.extra_repr()}){given}"
        else:
            child, path, what, note = where
            names = [name for name, module in self._own_modules() if module is child]
            path = ".".join([*names[:1], *([path] if path else [])])
            error.__notes__.remove(note)
        note = f"in layer {path}: {what}" if path else f"in {what}"
        error.__dict__["_dualcnn_where"] = (self, path, what, note)
        error.add_note(note)

    # Attributes.

    def __setattr__(self, name: str, value: Any) -> None:
        if isinstance(value, (Parameter, Module)):
            self._require_init()
        before = vars(self).get(name, _NOWHERE)
        if before is _NOWHERE:
            before = getattr(type(self), name, _NOWHERE)
        if isinstance(before, Parameter) and not isinstance(value, (Parameter, type(None))):
            raise TypeError(
                f"{type(self).__name__}.{name} is a Parameter, got {type(value).__name__}; to "
                f"change its values: .{name}.data = array, to replace it: .{name} = "
                "nn.Parameter(array)"
            )
        if name in self._buffers and value is not None and not isinstance(value, Tensor):
            value = Tensor(value)
        super().__setattr__(name, value)
        is_part = isinstance(value, (Parameter, Module)) or name in self._buffers
        # Not what a module keeps for itself as it runs, private or an array.
        is_kept = name.startswith("_") or isinstance(value, Tensor)
        is_other = before is not value and not _are_equal(before, value)
        if is_other and (is_part or (before is not _NOWHERE and not is_kept)):
            if name == "training" and isinstance(before, bool) and isinstance(value, bool):
                note_mode(self)
            else:
                note_change()

    def __delattr__(self, name: str) -> None:
        super().__delattr__(name)
        note_change()

    def _require_init(self) -> None:
        if "_buffers" not in vars(self):
            raise AttributeError(
                f"{type(self).__name__}.__init__ must call super().__init__() before it assigns "
                "layers, parameters or buffers"
            )

    def register_parameter(self, name: str, param: Parameter | None) -> None:
        """Set an attribute to a Parameter, or to None where an option leaves it out."""
        self._require_init()
        self._check_name(name)
        if param is not None and not isinstance(param, Parameter):
            raise TypeError(f"expected an nn.Parameter or None, got {type(param).__name__}")
        setattr(self, name, param)

    def register_buffer(self, name: str, tensor: Any, persistent: bool = True) -> None:
        """Set an attribute to a Tensor that is state but is not trained, such as a running mean.

        `tensor` is a Tensor, an array or None. Only persistent buffers are in `state_dict`.
        """
        self._require_init()
        self._check_name(name)
        assert isinstance(self._buffers, dict)
        self._buffers[name] = persistent
        setattr(self, name, tensor)

    def add_module(self, name: str, module: Module) -> None:
        """Set an attribute to a submodule."""
        if not isinstance(module, Module):
            raise TypeError(f"expected an nn.Module as {name!r}, got {type(module).__name__}")
        self._check_name(name)
        setattr(self, name, module)

    def _check_name(self, name: str) -> None:
        if not isinstance(name, str) or not name or "." in name:
            raise ValueError(f"expected a name without a dot, got {name!r}")
        taken = name not in self._buffers and getattr(self, name, None) is not None
        if taken and not isinstance(vars(self).get(name), (Parameter, Module)):
            raise ValueError(f"{type(self).__name__} already has an attribute {name!r}")

    # Walks. Own parameters come first, then own buffers, then submodules, each as registered.

    def _own_parameters(self) -> list[tuple[str, Parameter]]:
        return [(k, v) for k, v in vars(self).items() if isinstance(v, Parameter)]

    def _own_buffers(self) -> list[tuple[str, Tensor]]:
        own = ((name, vars(self).get(name)) for name in self._buffers)
        return [(name, buffer) for name, buffer in own if isinstance(buffer, Tensor)]

    def _own_modules(self) -> list[tuple[str, Module]]:
        return [(k, v) for k, v in vars(self).items() if isinstance(v, Module)]

    def named_modules(
        self, prefix: str = "", remove_duplicate: bool = True
    ) -> Iterator[tuple[str, Module]]:
        """This module, as `prefix`, and all below with their paths; each once by default."""
        found = self._walk(prefix)
        return _unique(found) if remove_duplicate else found

    def _walk(self, prefix: str) -> Iterator[tuple[str, Module]]:
        yield prefix, self
        for name, module in self._own_modules():
            yield from module._walk(f"{prefix}.{name}" if prefix else name)

    def modules(self) -> Iterator[Module]:
        """This module and all below, each once."""
        return (module for _, module in self.named_modules())

    def named_children(self) -> Iterator[tuple[str, Module]]:
        """The direct submodules with their names, each once."""
        return _unique(iter(self._own_modules()))

    def children(self) -> Iterator[Module]:
        """The direct submodules, each once."""
        return (module for _, module in self.named_children())

    def named_parameters(
        self, prefix: str = "", recurse: bool = True, remove_duplicate: bool = True
    ) -> Iterator[tuple[str, Parameter]]:
        """Parameters with their paths, tied ones once under their first by default."""
        found = self._members(Module._own_parameters, prefix, recurse)
        return _unique(found) if remove_duplicate else found

    def parameters(self, recurse: bool = True) -> Iterator[Parameter]:
        """The parameters in the order of registration, each once."""
        return (param for _, param in self.named_parameters(recurse=recurse))

    def named_buffers(
        self, prefix: str = "", recurse: bool = True, remove_duplicate: bool = True
    ) -> Iterator[tuple[str, Tensor]]:
        """Buffers with their paths, each once by default."""
        found = self._members(Module._own_buffers, prefix, recurse)
        return _unique(found) if remove_duplicate else found

    def buffers(self, recurse: bool = True) -> Iterator[Tensor]:
        """The buffers, each once."""
        return (buffer for _, buffer in self.named_buffers(recurse=recurse))

    def _members(
        self, own: Callable[[Module], list[tuple[str, Any]]], prefix: str, recurse: bool
    ) -> Iterator[tuple[str, Any]]:
        for path, module in self._walk(prefix) if recurse else [(prefix, self)]:
            for name, member in own(module):
                yield f"{path}.{name}" if path else name, member

    # State.

    def _state(self) -> dict[str, Tensor]:
        """Parameters and persistent buffers by path; shared ones under each of their paths."""
        found: dict[str, Tensor] = {}
        for path, module in self._walk(""):
            for name, tensor in [*module._own_parameters(), *module._own_buffers()]:
                if module._buffers.get(name, True):
                    found[f"{path}.{name}" if path else name] = tensor
        lazy = [key for key, t in found.items() if isinstance(t, UninitializedParameter)]
        if lazy:
            raise RuntimeError(
                f"the shapes of {', '.join(lazy)} are not known before the first input; run one "
                "batch through the model first: model(x)"
            )
        return found

    def state_dict(self) -> dict[str, Array]:
        """Parameters and persistent buffers by path, as contiguous copies on their backend.

        Convolution weights are `(O, C/groups, KH, KW)`. Tied parameters are under all their paths.
        """
        return {key: tensor.backend.c_copy(tensor.data) for key, tensor in self._state().items()}

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True) -> LoadedKeys:
        """Take over values from Tensors or arrays of any backend, in each parameter's own dtype.

        Raises `StateDictError`, and loads nothing, where a shape differs or, unless `strict` is
        False, where keys are missing or unexpected; it names all of them.
        """
        if not isinstance(state_dict, Mapping):
            raise TypeError(
                f"expected arrays by name, got {type(state_dict).__name__}; read a file first: "
                "model.load_state_dict(dualcnn.load(path))"
            )
        own = self._state()
        missing = [key for key in own if key not in state_dict]
        unexpected = sorted(key for key in state_dict if key not in own)
        new, misshapen = {}, []
        for key, tensor in own.items():
            if key not in state_dict:
                continue
            value = backend.asarray(state_dict[key], tensor.dtype, backend=tensor.backend)
            new[key] = value
            if tuple(value.shape) != tensor.shape:
                misshapen.append(f"{key} (expected {tensor.shape}, got {tuple(value.shape)})")
        faults = [("wrong shape", misshapen)]
        if strict:
            faults = [("missing", missing), ("unexpected", unexpected), *faults]
        if any(keys for _, keys in faults):
            lines = [f"  {what}: {', '.join(keys)}" for what, keys in faults if keys]
            raise StateDictError(
                f"the state does not fit {type(self).__name__}; nothing was loaded\n"
                + "\n".join(lines)
            )
        for key, value in new.items():
            be = own[key].backend
            own[key].data = be.assign(be.empty_like(own[key].data), value)
        return LoadedKeys(missing, unexpected)

    # Changes to all of it.

    def train(self, mode: bool = True) -> Self:
        """Put this module and all below into training mode: dropout drops, statistics are taken."""
        for module in self.modules():
            module.training = mode
        return self

    def eval(self) -> Self:
        """Put this module and all below into evaluation mode."""
        return self.train(False)

    def requires_grad_(self, requires_grad: bool = True) -> Self:
        """Want gradients of all parameters, or freeze them."""
        for param in self.parameters():
            param.requires_grad_(requires_grad)
        return self

    def zero_grad(self) -> None:
        """Forget the gradients of all parameters."""
        for param in self.parameters():
            param.grad = None

    def to(self, device: str | Backend | None = None, dtype: str | None = None) -> Self:
        """Move parameters and buffers to a backend such as "cuda", and to a floating dtype.

        Optimizers of the parameters follow at their next step, with their state.
        """
        target = None if device is None else backend.get(device)
        if dtype is not None and dtype not in ("float16", "float32", "float64"):
            raise ValueError(f'expected "float16", "float32" or "float64" as dtype, got {dtype!r}')
        for param in self.parameters():
            if not isinstance(param, UninitializedParameter):
                param.move_(target or param.backend, dtype)
        for buffer in self.buffers():
            floating = buffer.backend.is_floating(buffer.data)
            buffer.data = backend.asarray(
                buffer.data, dtype if floating else None, backend=target or buffer.backend
            )
        return self

    def apply(self, fn: Callable[[Module], Any]) -> Self:
        """Call `fn` on all submodules, then on this module; for own ways to initialise."""
        for module in self.children():
            module.apply(fn)
        fn(self)
        return self

    # What it is.

    def flops(self, output_shape: tuple[int, ...]) -> int:
        """Floating-point operations for an output of that shape, a multiply-add as two.

        0 for layers whose work is small beside convolutions and products.
        """
        return 0

    def summary(self, *shapes: tuple[int, ...]) -> Summary:
        """A table of layers: output shapes, parameters, memory and operations.

        `shapes` are those of the inputs, batch included, such as `(1, 3, 32, 32)`. Zeros are sent
        through in evaluation mode; the model and the random state stay as they are.

        >>> print(model.summary((1, 1, 28, 28)))
        """
        return summarize(self, shapes)

    def extra_repr(self) -> str:
        """The arguments that `repr` shows."""
        return ""

    def __repr__(self) -> str:
        extra, children = self.extra_repr(), self._own_modules()
        if not children:
            return f"{type(self).__name__}({extra})"
        lines = [f"({name}): {module!r}".replace("\n", "\n  ") for name, module in children]
        body = "".join(f"  {line}\n" for line in ([extra] if extra else []) + lines)
        return f"{type(self).__name__}(\n{body})"


def _unique(named: Iterator[tuple[str, Any]]) -> Iterator[tuple[str, Any]]:
    """The first of each object, by identity."""
    seen: set[int] = set()
    for name, member in named:
        if id(member) not in seen:
            seen.add(id(member))
            yield name, member
