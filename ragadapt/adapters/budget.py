"""How many parameters a method trains, and the size of a method that trains about as many as one wants."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import get_type_hints

from ragadapt.adapters.attached import attach
from ragadapt.adapters.method import method_named, options_of
from ragadapt.config import AdapterConfig
from ragadapt.encoder import Encoder
from ragadapt.errors import InvalidConfiguration

NEAR = 0.15  # share of the budget by which a size may miss it: sizes are whole numbers

_MOST = 4096  # beyond, an option is no size that anybody means


@dataclass(frozen=True, slots=True)
class Size:
    """A method's settings and what they train. parameters: trained ones; whole: of the transformer, embeddings too.

    options: those by which the size was chosen; empty where the method has none.
    """

    config: AdapterConfig
    parameters: int
    whole: int
    options: tuple[str, ...] = ()

    @property
    def share(self) -> float:
        """Of the transformer's parameters."""
        return self.parameters / self.whole

    def meets(self, wanted: int) -> bool:
        """Whether it is as near to the budget as whole numbers allow one to ask."""
        return abs(self.parameters - wanted) <= NEAR * wanted


def whole_size(encoder: Encoder) -> int:
    """Parameters of the encoder's transformer, embeddings included; what shares are shares of."""
    tower = encoder.query_tower
    if tower is None:
        raise InvalidConfiguration(
            f"Model {encoder.spec.model!r} runs inside sentence-transformers and cannot be adapted. Choose another one."
        )
    return sum(parameter.numel() for parameter in tower.model.parameters())


def size_of(encoder: Encoder, config: AdapterConfig) -> Size:
    """Counted on a fresh adapter, which is dropped again. Raises InvalidConfiguration where it cannot be attached."""
    parameters = sum(parameter.numel() for parameter in attach(encoder, config).trainable().values())
    return Size(config, parameters, whole_size(encoder))


def nearest_size(encoder: Encoder, config: AdapterConfig, wanted: int) -> Size:
    """The method at the size whose number of parameters is nearest to the budget; `Size.meets` says whether it is near.

    Where several options decide the size (modules inside and beside the layers, say), they keep the proportions that
    they have in `config`. A method without such an option has one size. Raises InvalidConfiguration.
    """
    start = size_of(encoder, config)
    options = _deciding(encoder, config, start.parameters)
    if not options:
        return start
    values = spelled(config, options)
    first = max(options, key=lambda name: values[name])
    known: dict[int, Size | None] = {}

    def at(value: int) -> Size | None:
        """The size with the first option at this value; None where the method refuses it."""
        if value not in known:
            factor = value / values[first]
            scaled = {name: max(1, round(factor * own)) for name, own in values.items()}
            known[value] = _attempt(encoder, config, scaled)
        return known[value]

    _search(at, wanted, values[first])
    found = [size for size in known.values() if size is not None]
    best = min(found, key=lambda size: (abs(size.parameters - wanted), size.parameters))
    return Size(best.config, best.parameters, best.whole, tuple(options))


def _deciding(encoder: Encoder, config: AdapterConfig, parameters: int) -> list[str]:
    """The options that decide how much is trained: those that the method names, else whole numbers whose change
    changes it."""
    method = method_named(config.method)
    if method.SIZES:
        return list(method.SIZES)
    hints = get_type_hints(method.OPTIONS)
    numbers = [name for name in method.OPTIONS.names() if hints[name] is int]
    found = []
    for name, value in spelled(config, numbers).items():
        tried = (_attempt(encoder, config, {name: other}) for other in (2 * value, max(1, value // 2)))
        other = next((size for size in tried if size is not None), None)
        if other is not None and other.parameters != parameters:
            found.append(name)
    return found


def _attempt(encoder: Encoder, config: AdapterConfig, values: Mapping[str, int]) -> Size | None:
    """The size with these options; None where the method refuses them, as it does a rank above a layer's width."""
    given = {name: getattr(config, name) for name in config.model_fields_set - {"method"}}
    try:
        changed = AdapterConfig.model_validate({**given, **values}).model_copy(update={"method": config.method})
        return size_of(encoder, changed)
    except ValueError:
        return None


def _search(at: Callable[[int], Size | None], wanted: int, start: int) -> None:
    """Look at sizes around the wanted one: double or halve until it is passed, then halve the interval. What a method
    refuses in between (a rank that is no multiple of its blocks) is passed over."""
    grows = _grows(at, start)
    few = _count(at(start)) < wanted
    near, far = start, start
    while True:
        far = 2 * near if few == grows else near // 2
        size = at(far) if 1 <= far <= _MOST else None
        if size is None or (size.parameters < wanted) != few:
            break
        near = far
    low, high = sorted((near, max(1, far)))
    while high - low > 1:
        value = _between(at, low, high)
        if value is None:
            break
        low, high = (low, value) if (_count(at(value)) > wanted) == grows else (value, high)


def _grows(at: Callable[[int], Size | None], start: int) -> bool:
    """Whether a larger value trains more; with some methods (RandLoRA) it trains less."""
    if (double := at(2 * start)) is not None:
        return double.parameters > _count(at(start))
    half = at(max(1, start // 2))
    return half is None or half.parameters < _count(at(start))


def _between(at: Callable[[int], Size | None], low: int, high: int) -> int | None:
    """The value nearest to the middle that the method takes."""
    middle = (low + high) // 2
    every = sorted(range(low + 1, high), key=lambda value: abs(value - middle))
    return next((value for value in every[:64] if at(value) is not None), None)


def _count(size: Size | None) -> int:
    assert size is not None
    return size.parameters


def spelled(config: AdapterConfig, options: Sequence[str]) -> dict[str, int]:
    """Option → value, as the method reads them; one that is no option of its own, as `layers`, as it is set."""
    read = options_of(config)
    return {name: int(getattr(read if name in read.names() else config, name)) for name in options}
