"""Lines that load versions and end them."""

from __future__ import annotations

from typing import Any, get_args

from IPython.core.error import UsageError
from IPython.core.magic import Magics
from IPython.core.magic_arguments import argument, magic_arguments

from jupyter_dsserve.notebook import session
from jupyter_dsserve.notebook.arguments import fact, name_and_version, one_of, parsed, pinned
from jupyter_dsserve.notebook.progress import LoadBar
from jupyter_dsserve.notebook.views import Deployment, Version
from jupyter_dsserve.protocol.config import Priority
from jupyter_dsserve.protocol.spec import DType, Quantize, RunnerName, Strategy, Task, Zero


def _asked(words: Any) -> list[str]:
    """What may be asked for: the empty word of such a type is what is so unless told."""
    return [word for word in get_args(words) if word]


class VersionLines(Magics):
    """What a deployment has loaded."""

    @magic_arguments("dsserve load")
    @argument("name", help="The deployment, such as demo; demo@v2 names the version too.")
    @argument("--model", default="", help="A directory, a hub name or builtin:NAME; none loads a registered version.")
    @argument("--object", default="", help="Instead: the variable that holds a model of this kernel.")
    @argument("--tokenizer", default="", help="The variable that holds its tokenizer.")
    @argument("--version", default="", help="Its name; none takes the next free of v1, v2, …")
    @argument("--dtype", choices=get_args(DType), help="auto is the checkpoint's own.")
    @argument("--device", help="auto, cpu or cuda:N; cuda is cuda:0.")
    @argument("--replicas", type=int, help="How many workers.")
    @argument("--python", help="The workers' interpreter; 'kernel' is this kernel's.")
    @argument("--task", choices=get_args(Task), help="What the model is for.")
    @argument("--runner", choices=get_args(RunnerName), help="The engine.")
    @argument("--max-sequences", type=int, help="How many requests run at once; the rest wait.")
    @argument("--max-context", type=int, help="Tokens; 0 is the model's own.")
    @argument("--kv-bytes", type=int, help="Memory for keys and values; 0 is half of what is free after loading.")
    @argument("--max-step-tokens", type=int, help="The most tokens of one forward pass.")
    @argument("--num-threads", type=int, help="Processor threads; 0 leaves one core to the notebook.")
    @argument("--tp", type=int, help="How many processes (on GPUs: how many of them) share the model.")
    @argument("--zero", choices=_asked(Zero), help="Where the weights lie until their layer computes.")
    @argument("--nvme-dir", help="The folder for --zero nvme; none is the gateway's user's cache.")
    @argument("--quantize", choices=_asked(Quantize), help="Bits of a weight in linear layers.")
    @argument("--min-agreement", type=float, help="With plain transformers, 0 to 1: below it is not served.")
    @argument("--priority", choices=get_args(Priority), help="Who goes first when loads wait for memory.")
    @argument("--note", help="A word about it, in quotes.")
    @argument("--metadata", action="append", help="KEY=VALUE of the run that trained it; may be given several times.")
    @argument("--created-by", help="Who loads it; you unless told.")
    @argument("--no-wait", action="store_true", help="Do not wait until it is READY.")
    def load(self, line: str) -> Version:
        """Load a model as a version of a deployment, and wait until it is READY."""
        given = vars(parsed(self.load, line))
        name, version = name_and_version(given.pop("name"), given.pop("version"))
        wait = not given.pop("no_wait")
        given["metadata"] = dict(map(fact, given["metadata"] or ())) or None
        model = self._object(given.pop("model"), given.pop("object"))
        given["tokenizer"] = self._object(None, given["tokenizer"])
        with LoadBar() as bar:
            return session.client().load(name, model, version, wait=wait, on_progress=bar, **given)

    def _object(self, otherwise: object, name: str) -> object:
        """What the variable ``name`` of the kernel holds."""
        if not name:
            return otherwise
        if otherwise:
            raise UsageError(f"--model {otherwise} and --object {name} name two models: leave one of them out")
        assert self.shell
        if name not in self.shell.user_ns:
            raise UsageError(f"{name!r} is no variable of this kernel: run the cell that makes it first")
        return self.shell.user_ns[name]

    @magic_arguments("dsserve scale")
    @argument("name", help="demo@v1; of a single version demo is enough.")
    @argument("replicas", type=int, help="How many workers, from 1 to 64.")
    def scale(self, line: str) -> Version:
        """Change how many workers a loaded version has. New ones wait for memory if need be."""
        given = parsed(self.scale, line)
        return session.client().scale(*pinned("scale", given.name, session.versions_of), given.replicas)

    @magic_arguments("dsserve autoscale")
    @argument("name", help="demo@v1; of a single version demo is enough.")
    @argument("--min", type=int, help="The fewest workers, 1 unless told; 0 lets it rest while nobody asks it.")
    @argument("--max", type=int, help="The most workers.")
    @argument("--target-in-flight", type=float, help="Requests on a worker at most: 16 unless told.")
    @argument("--target-queue", type=float, help="Those of them that wait at most; 0 does not count.")
    @argument("--idle", dest="idle_s", type=float, help="Seconds without a request until it rests: 600 unless told.")
    @argument("--stable", dest="stable_s", type=float, help="Seconds that must need fewer workers: 60 unless told.")
    @argument("--off", action="store_true", help="End it; the version keeps the workers it has.")
    def autoscale(self, line: str) -> Version:
        """Have as many workers as what is asked of a version needs."""
        given = vars(parsed(self.autoscale, line))
        name, version = pinned("autoscale", given.pop("name"), session.versions_of)
        return session.client().autoscale(name, version, **given)

    @magic_arguments("dsserve unload")
    @argument("name", help="demo@v1, or demo for all of its versions.")
    def unload(self, line: str) -> Deployment:
        """Drain a version and end its workers; it stays registered, and `load demo@v1` loads it again."""
        return session.client().unload(*name_and_version(parsed(self.unload, line).name))

    @magic_arguments("dsserve delete")
    @argument("name", help="demo@v1, or demo for all of its versions.")
    def delete(self, line: str) -> None:
        """Unload a version and forget it, with the files of a model that was saved for it."""
        name = parsed(self.delete, line).name
        session.client().delete(*name_and_version(name))
        print(f"{name} is forgotten; what it is answering ends")

    @magic_arguments("dsserve activate")
    @argument("name", help="The deployment, or demo@v2.")
    @argument("version", nargs="?", default="", help="The version that takes all traffic.")
    @argument(
        "--strategy",
        choices=get_args(Strategy),
        default="beside",
        help="recreate ends the others first, where memory does not hold both; requests wait meanwhile.",
    )
    def activate(self, line: str) -> Deployment:
        """Give a version all traffic, loading it if need be; the others then drain and stop. Nothing is lost."""
        given = parsed(self.activate, line)
        name, version = name_and_version(given.name, given.version)
        if not version:
            raise UsageError(f"%dsserve activate {name}: {one_of(name, session.versions_of(name))}")
        with LoadBar() as bar:
            return session.client().activate(name, version, strategy=given.strategy, on_progress=bar)

    @magic_arguments("dsserve join")
    @argument("name", help="demo@v1; of a single version demo is enough.")
    def join(self, line: str) -> None:
        """The command for a shell on the gateway's machine that starts one more worker, from whatever environment."""
        name, version = pinned("join", parsed(self.join, line).name, session.versions_of)
        print(session.client().join(name, version).command)
        print("# Within ssh HOST '…' or bash -c '…' the token would stand in lists of processes: leave the printf out")
        print("# of these quotes, or write the token into a file there and give --token-file FILE in its place.")
