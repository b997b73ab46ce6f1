"""Reading the fields of one configuration, with every fault placed."""

from collections.abc import Mapping
from typing import Any

from hardware.faults import Fault, Path
from hardware.yaml_source import Source

_PURPOSES = {
    "hidden": "the width of the residual stream",
    "layers": "the number of layers",
    "heads": "the number of attention heads",
    "kv_heads": "the number of key and value heads",
    "head_dim": "the width of an attention head",
    "width": "the inner width of the feed-forward part",
    "vocab": "the number of rows of the token table",
    "max_positions": "the number of positions",
    "experts": "the number of routed experts",
    "experts_per_token": "the number of experts a token visits",
    "expert_width": "the inner width of one expert",
    "window": "the number of tokens a sliding-window layer sees",
}

MOST_LAYERS = 100_000
"""A stack is built layer by layer; no honest file asks for more."""


class Fields:
    """Reads the fields of one configuration and gathers what is wrong with them."""

    def __init__(self, source: Source, at: Path, config: Mapping[str, Any], kind: str) -> None:
        self.source = source
        self.at = at
        self.config = config
        self.kind = kind
        self.faults: list[Fault] = []

    def fault(self, key: str, message: str) -> None:
        """Note that something is wrong with a dotted key."""
        self.faults.append(self.source.fault((*self.at, *key.split(".")), message))

    def value(self, key: str) -> Any:
        """Return what stands at a dotted key; None if nothing does."""
        found: Any = self.config
        for part in key.split("."):
            found = found.get(part) if isinstance(found, Mapping) else None
        return found

    def integer(self, key: str, purpose: str, default: int | None = None, least: int = 1, most: int = 2**53) -> int:
        """Return a whole number; after a fault some number, so that the rest can still be checked."""
        found = self.value(key)
        if found is None:
            if default is None:
                self.fault(key, f'missing; {purpose}, which model_type "{self.kind}" needs')
            return max(least, 1) if default is None else default
        whole = isinstance(found, int) or (isinstance(found, float) and found.is_integer())
        if isinstance(found, bool) or not whole:
            self.fault(key, f"should be a whole number: {purpose} [got {found!r}]")
            return max(least, 1)
        if not least <= found <= most:
            bound = f"at least {least}" if found < least else f"at most {most}"
            self.fault(key, f"should be {bound}: {purpose} [got {found!r}]")
            return max(least, 1)
        return int(found)

    def flag(self, key: str, default: bool) -> bool:
        """Return a truth value."""
        found = self.value(key)
        if found is None:
            return default
        if not isinstance(found, bool):
            self.fault(key, f"should be true or false [got {found!r}]")
            return default
        return found

    def size(self, key: str, what: str, default: int | None = None, least: int = 1) -> int:
        """Return one of the sizes that have the same meaning in every model class."""
        return self.integer(key, _PURPOSES[what], default, least, MOST_LAYERS if what == "layers" else 2**53)

    def check_divides(self, key: str, part: int, whole: int, message: str) -> None:
        """Note a fault if a part does not divide the whole; only when the sizes themselves are right."""
        if not self.faults and whole % part:
            self.fault(key, f"{message} [got {part} and {whole}]")

    def refuse(self, key: str, allowed: object, reason: str) -> None:
        """Refuse any value but the one that is modelled."""
        found = self.value(key)
        if found is not None and found != allowed:
            self.fault(key, f"should be {allowed!r}: {reason} [got {found!r}]")
