"""What a model named ``toy:…`` is told: read by the fleet, to refuse what is wrong, and by the toy engine."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

from jupyter_dsserve.protocol.errors import InvalidRequest


@dataclass(frozen=True, slots=True)
class ToySettings:
    """``toy:step_s=0.01,per_seq_s=0,load_s=0,bytes=1000000,fail_rate=0``, each setting optional.

    A step takes ``step_s + per_seq_s × batch`` seconds; loading takes ``load_s`` seconds and ``bytes`` bytes; the
    share ``fail_rate`` (0 to 1) of the requests fails.
    """

    step_s: float = 0.01
    per_seq_s: float = 0.0
    load_s: float = 0.0
    bytes: int = 1_000_000
    fail_rate: float = 0.0

    @staticmethod
    def parse(model: str) -> ToySettings:
        """Read ``toy:key=value,…``. Raises `InvalidRequest` naming the part that is wrong."""
        defaults = ToySettings()
        known = [f.name for f in fields(ToySettings)]
        values = {name: float(getattr(defaults, name)) for name in known}
        for part in filter(None, model.removeprefix("toy:").split(",")):
            name, _, text = part.partition("=")
            if name not in known:
                raise InvalidRequest(f"toy setting {name!r} is not known: use {', '.join(known)}", param="model")
            values[name] = _number(name, text)
        rate = values["fail_rate"]
        if rate > 1:
            raise InvalidRequest(f"toy setting fail_rate={rate} is over 1: give a share from 0 to 1", param="model")
        size = int(values.pop("bytes"))
        return ToySettings(bytes=size, **values)


def _number(name: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and value >= 0):
        raise InvalidRequest(
            f"toy setting {name}={text!r} is no number of 0 or more: write one, such as {name}=0.01", param="model"
        )
    return value
