"""Models that live in this kernel, saved where a worker can load them.

A worker is a process of its own: what was trained here reaches it as a directory of safetensors. Its name ends with a
digest of what is in it, so that a model that did not change is the directory it was. Nothing here imports torch: an
object of it was made by the kernel, which has.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import shutil
import sys
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jupyter_core.paths import jupyter_data_dir

from jupyter_dsserve.notebook.address import is_remote
from jupyter_dsserve.protocol.errors import DSServeError, InvalidRequest, Unavailable
from jupyter_dsserve.protocol.records import GatewayAddress
from jupyter_dsserve.protocol.sizes import shown

_DIGITS = 16
_YOUNG_S = 3600.0
_BASE, _ADAPTER = "base", "adapter"


@dataclass(frozen=True, slots=True)
class Saving:
    """How far it is: ``written_bytes`` of about ``num_bytes``."""

    kind: str
    written_bytes: int
    num_bytes: int

    @property
    def progress(self) -> float:
        return min(self.written_bytes / self.num_bytes, 1.0) if self.num_bytes else 1.0

    def __str__(self) -> str:
        return f"saving {self.kind}, {shown(self.written_bytes)} of {shown(self.num_bytes)}"


@dataclass(frozen=True, slots=True)
class Saved:
    """A model on the disk. ``path`` is what a load is told; ``folder`` goes when no version needs it; ``task`` is what
    the model is for, as far as its class says (else empty); ``device`` where the kernel's own copy lies."""

    path: Path
    folder: Path
    kind: str
    task: str
    is_new: bool
    touched_ns: int
    num_bytes: int
    kernel_bytes: int
    device: str

    def discard(self) -> None:
        """No version was made of it here. It stays if another kernel has taken it up since: then it was touched."""
        with suppress(OSError):
            if self.is_new and self.folder.stat().st_mtime_ns == self.touched_ns:
                shutil.rmtree(self.folder, ignore_errors=True)

    def __str__(self) -> str:
        cuda = "; torch.cuda.empty_cache()" if self.device.startswith("cuda") else ""
        how = "saved" if self.is_new else "is saved already"
        return (
            f"{self.kind} {how} ({shown(self.num_bytes)}) in {self.folder}; this kernel still holds its own copy "
            f"({shown(self.kernel_bytes)} on {self.device}): delete your variables of it, then "
            f"import gc; gc.collect(){cuda}"
        )


@dataclass(frozen=True, slots=True)
class Store:
    """Where they lie. A gateway has one of its own: what none of its versions names, nobody needs."""

    home: Path

    @staticmethod
    def of(address: GatewayAddress, id: str) -> Store:
        """In Jupyter's data directory, which this kernel and the gateway share; ``id`` is what the gateway's status
        says. Raises `InvalidRequest` for a gateway on another machine, `Unavailable` for what can be no id."""
        if is_remote(address.url):
            raise InvalidRequest(
                f"the gateway at {address.url} is on another machine, and does not see what this kernel saves: save "
                "the model where it does (model.save_pretrained, tokenizer.save_pretrained), and load that directory",
                param="model",
            )
        if not re.fullmatch("[0-9a-f]{16}", id):  # it names a folder
            raise Unavailable(
                f"the gateway at {address.url} has the id {id!r}, which is none: is it a dsserve gateway?"
            )
        return Store(Path(jupyter_data_dir()).resolve() / "dsserve" / "saved" / id)

    def forget(self, models: Iterable[str], in_use: Iterable[str]) -> None:
        """Delete those of ``models`` (as versions name them) that lie here, unless ``in_use`` has them too."""
        for place in self._places(models) - self._places(in_use):
            shutil.rmtree(place, ignore_errors=True)

    def sweep(self, in_use: Iterable[str], now: float) -> None:
        """Delete what ``in_use`` does not have: its versions were deleted by others. What is young may be just about to
        become a version. ``now``: seconds since the epoch."""
        there = set(self.home.iterdir()) if self.home.is_dir() else set()
        for place in there - self._places(in_use):
            with suppress(OSError):  # another kernel has just given it its name, or deleted it
                if place.stat().st_mtime < now - _YOUNG_S:
                    shutil.rmtree(place, ignore_errors=True)

    def _places(self, models: Iterable[str]) -> set[Path]:
        paths = [Path(model) for model in models if model.startswith("/")]
        return {self.home / p.relative_to(self.home).parts[0] for p in paths if self.home in p.parents}


class Job:
    """Saves ``model`` (a transformers model, one within a PEFT adapter, or a sentence-transformers one) with its
    ``tokenizer``, in a thread. Raises `InvalidRequest` at once for what is none of these.

    What wraps it (torch.compile, DistributedDataParallel, DataParallel) is looked through; it stays as it is, in
    training mode and on its device. An adapter is saved beside its base, unless its base is a directory or a hub name.
    """

    def __init__(self, home: Path, model: object, tokenizer: object = None) -> None:
        self._home = home
        self._model = _unwrapped(model)
        self._tokenizer = tokenizer
        self._write = _writer(self._model, tokenizer)
        self.kind = type(_inner(self._model)).__name__
        self._num_bytes, self._device = _held(self._model)
        home.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._aside = Path(tempfile.mkdtemp(prefix=".new-", dir=home))  # owner only
        self._saved: Saved | None = None
        self._fault: BaseException | None = None
        self._is_cancelled = False
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._run, name="dsserve-save", daemon=True)
        self._thread.start()

    @property
    def is_done(self) -> bool:
        return not self._thread.is_alive()

    @property
    def so_far(self) -> Saving:
        return Saving(self.kind, _size(self._aside), self._num_bytes)

    def result(self) -> Saved:
        """Raises `InvalidRequest` with what transformers said if it could not be saved; nothing is left then."""
        self._thread.join()
        if self._fault:
            if isinstance(self._fault, DSServeError):
                raise self._fault
            raise InvalidRequest(f"model is a {self.kind} that cannot be saved: {self._fault}", param="model")
        assert self._saved
        return self._saved

    def cancel(self) -> None:
        """Nobody wants it any more: what is written goes, at once or when the thread is through with the writing."""
        with self._lock:
            self._is_cancelled = True
            if self._saved:
                self._saved.discard()

    def _run(self) -> None:
        try:
            with _quietly():
                path = self._write(self._aside)
            place = self._home / f"{self.kind}-{_digest(self._aside)}"
            size = _size(self._aside)
            # sentence-transformers names its own task: it gives vectors.
            task = _task_of(self._model)
            with self._lock:
                if self._is_cancelled:
                    raise Unavailable(f"the saving of the {self.kind} was cancelled")
                is_new = self._put(place)
                touched_ns = place.stat().st_mtime_ns
                self._saved = Saved(
                    place / path, place, self.kind, task, is_new, touched_ns, size, self._num_bytes, self._device
                )
        except BaseException as fault:
            self._fault = fault
        finally:
            shutil.rmtree(self._aside, ignore_errors=True)

    def _put(self, place: Path) -> bool:
        """Give it its name; False if it is saved already. It is young again then, so that no other kernel sweeps it
        before a version names it."""
        with suppress(FileNotFoundError):
            os.utime(place)
            return False
        try:
            self._aside.rename(place)
        except OSError:  # another kernel was faster
            if not place.is_dir():
                raise
            os.utime(place)
            return False
        return True


# ---- what it is


def _root(kind: type) -> str:
    return kind.__module__.partition(".")[0]


def _is(model: object, root: str, name: str) -> bool:
    """Whether it is an instance of that library's class, without importing the library."""
    return any(each.__name__ == name and _root(each) == root for each in type(model).__mro__)


def _unwrapped(model: Any) -> Any:
    while True:
        if hasattr(model, "_orig_mod"):  # torch.compile
            model = model._orig_mod
        elif _is(model, "torch", "DistributedDataParallel") or _is(model, "torch", "DataParallel"):
            model = model.module
        else:
            return model


def _inner(model: Any) -> Any:
    """The transformers model within an adapter."""
    return model.get_base_model() if _is(model, "peft", "PeftModel") else model


def _writer(model: Any, tokenizer: Any) -> Callable[[Path], str]:
    """What writes it into a directory and says where within that the model lies. Raises `InvalidRequest`."""
    if _is(model, "sentence_transformers", "SentenceTransformer"):
        return lambda to: _saved_sentences(model, to)
    inner = _inner(model)
    kind = type(inner)
    name = f"{kind.__module__}.{kind.__qualname__}"
    if not _is(inner, "transformers", "PreTrainedModel"):
        raise InvalidRequest(
            f"model is a {name}: give a transformers model, one within a PEFT adapter, a sentence-transformers one, a "
            "directory, a hub name or builtin:NAME (a torch.nn.Module of your own loads as an ONNX file, task tensor)",
            param="model",
        )
    if _root(kind) != "transformers":
        raise InvalidRequest(
            f"model is a {name}, whose code only this kernel has: a worker would load transformers' own class for its "
            f"config ({inner.config.model_type}), which may compute something else",
            param="model",
        )
    if not hasattr(tokenizer, "save_pretrained"):
        what = "no tokenizer was given" if tokenizer is None else f"tokenizer is a {type(tokenizer).__name__}"
        raise InvalidRequest(
            f"{what}: give the one that {kind.__name__} was trained with, load(…, model=model, tokenizer=tokenizer)",
            param="tokenizer",
        )
    if any(hasattr(p, "ds_id") for p in inner.parameters()):
        raise InvalidRequest(
            f"model is a {kind.__name__} whose weights ZeRO-3 keeps in parts: save it with DeepSpeed's "
            "save_16bit_model or the trainer's save_model, and load that directory",
            param="model",
        )
    if _is(model, "peft", "PeftModel"):
        return lambda to: _saved_adapter(model, tokenizer, to)
    return lambda to: _saved_model(model, tokenizer, to)


def _task_of(model: Any) -> str:
    """Empty where its class does not say."""
    if _is(model, "sentence_transformers", "SentenceTransformer"):
        return "embed"
    name = type(_inner(model)).__name__
    if name.endswith("ForSequenceClassification"):
        return "classify"
    return "embed" if name.endswith("Model") and not name.endswith("LMHeadModel") else ""


# ---- writing it


@contextmanager
def _quietly() -> Iterator[None]:
    """Without the words that others would put into the cell: transformers' bar of the files that it writes, and what
    DeepSpeed makes of this machine (accelerate imports it, to see whether the model is an engine of its)."""
    bars = sys.modules.get("transformers.utils.logging")  # not imported: the kernel has it, or the model needs it not
    deepspeed, had_bars = logging.getLogger("DeepSpeed"), bool(bars and bars.is_progress_bar_enabled())
    deepspeed.addFilter(_is_no_greeting)
    if bars and had_bars:
        bars.disable_progress_bar()
    try:
        yield
    finally:
        if bars and had_bars:
            bars.enable_progress_bar()
        deepspeed.removeFilter(_is_no_greeting)


def _is_no_greeting(record: logging.LogRecord) -> bool:
    return record.filename != "real_accelerator.py"


def _saved_sentences(model: Any, to: Path) -> str:
    model.save(str(to), create_model_card=False)
    return ""


def _saved_model(model: Any, tokenizer: Any, to: Path, state: Mapping[str, Any] | None = None) -> str:
    model.save_pretrained(to, **({} if state is None else {"state_dict": dict(state)}))
    tokenizer.save_pretrained(to)
    return ""


def _saved_adapter(model: Any, tokenizer: Any, to: Path) -> str:
    """The adapter that is active, and its base beside it unless that lies somewhere that a worker sees."""
    active = model.active_adapters
    active = list(active() if callable(active) else active)
    if len(active) != 1:
        raise InvalidRequest(
            f"model has {len(active)} active adapters ({', '.join(active) or 'none'}): set_adapter the one to serve, "
            "or merge them",
            param="model",
        )
    own = to / _ADAPTER
    model.save_pretrained(own, selected_adapters=active)
    if active != ["default"]:  # PEFT puts those of other names into a folder of that name
        for file in (own / active[0]).iterdir():
            file.rename(own / file.name)
        (own / active[0]).rmdir()
    settings = own / "adapter_config.json"
    config = json.loads(settings.read_text())
    base = str(config.get("base_model_name_or_path") or "")
    if os.path.isdir(base):
        config["base_model_name_or_path"] = str(Path(base).resolve())
    elif not base or base.startswith((".", "/", "~")):
        config["base_model_name_or_path"] = f"../{_BASE}"
        inner = model.get_base_model()
        _saved_model(inner, tokenizer, to / _BASE, dict(_without_adapter(inner)))
    # PEFT writes its sets as they come, which another kernel does in another order.
    config |= {key: sorted(value) for key, value in config.items() if key in _SETS and isinstance(value, list)}
    settings.write_text(json.dumps(config, indent=2))
    tokenizer.save_pretrained(own)
    return _ADAPTER


def _without_adapter(model: Any) -> Iterator[tuple[str, Any]]:
    """The weights of the model beneath, under the names that they had before PEFT wrapped their layers."""
    layers = {name: module for name, module in model.named_modules() if _root(type(module)) == "peft"}
    kept = {name: inside for name, module in layers.items() for inside in _BENEATH if hasattr(module, inside)}
    for key, value in model.state_dict().items():
        owner = max((name for name in kept if key.startswith(f"{name}.")), key=len, default="")
        if not owner:
            yield key, value
        elif key.startswith(beneath := f"{owner}.{kept[owner]}."):
            yield f"{owner}.{key.removeprefix(beneath)}", value


_SETS = ("target_modules", "modules_to_save", "exclude_modules", "feedforward_modules")
_BENEATH = ("base_layer", "original_module")  # PEFT's: of a layer that it changes, of one that it trains whole


# ---- what it weighs


def _held(model: Any) -> tuple[int, str]:
    """The bytes of its weights, each once (tied ones share theirs), and the device of the first."""
    weights = {(str(p.device), p.data_ptr()): p for p in (*model.parameters(), *model.buffers())}
    device = next((str(p.device) for p in weights.values()), "cpu")
    return sum(p.numel() * p.element_size() for p in weights.values()), device


def _size(place: Path) -> int:
    """Of what lies in it; 0 for what went meanwhile."""
    total = 0
    for file in place.rglob("*"):
        try:
            total += file.stat().st_size if file.is_file() else 0
        except OSError:
            continue
    return total


def _digest(place: Path) -> str:
    """Of the names and the content of all files in a directory (SHA-256)."""
    found = hashlib.sha256()
    for file in sorted(p for p in place.rglob("*") if p.is_file()):
        found.update(f"\0{file.relative_to(place)}\0{file.stat().st_size}\0".encode())
        with file.open("rb") as opened:
            while piece := opened.read(1 << 20):
                found.update(piece)
    return found.hexdigest()[:_DIGITS]
