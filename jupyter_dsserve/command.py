"""What the commands share: options nobody knows are errors, and whatever ends them is said in a line."""

from __future__ import annotations

import difflib
import sys
from pathlib import Path
from typing import NoReturn

from jupyter_core.application import JupyterApp, base_aliases, base_flags
from jupyter_core.paths import jupyter_data_dir
from traitlets import Unicode, default
from traitlets.config import Config

# Of a config file: one may be for all of our commands, and the Jupyter server.
SECTIONS = frozenset(
    ("DSServeApp", "DSServeExtension", "ApplyApp", "BenchApp", "ExportApp", "KeyApp", "MonitoringApp", "ValidateApp")
)


class Command(JupyterApp):
    _loaded: Config  # last

    dsserve_data_dir = Unicode(help="Where keys, versions, routes and logs are kept.").tag(config=True)

    @default("dsserve_data_dir")
    def _default_data_dir(self) -> str:
        return str(Path(jupyter_data_dir()) / "dsserve")

    def parse_command_line(self, argv: list[str] | None = None) -> None:
        """As traitlets does, but an option it does not know is an error: traitlets only warns and goes on."""
        words = sys.argv[1:] if argv is None else argv
        if not words or words[0] not in self.subcommands:  # whose options are its own
            self._check_options(words)
        super().parse_command_line(argv)

    def _check_options(self, words: list[str]) -> None:
        own = [f"{type(self).__name__}.{name}" for name in self.class_trait_names(config=True)]
        known = [*self.aliases, *self.flags, *own, "help", "help-all", "version", "generate-config"]
        for word in words:
            name = word.removeprefix("--").partition("=")[0]
            if word.startswith("--") and name and name not in known:
                near = difflib.get_close_matches(name, known, n=1)
                self.quit(f"there is no option --{name}" + (f": did you mean --{near[0]}?" if near else "; see --help"))

    def load_config_file(self, suppress_errors: bool = True) -> None:  # type: ignore[override]  # so is Jupyter's
        """As Jupyter does, but a file that is not there, cannot be read or sets what nobody knows is an error: Jupyter
        goes on with the defaults, and limits that somebody wrote down would not hold."""
        if self.config_file and not _config_files(Path(self.config_file)):
            self.quit(f"--config {self.config_file}: there is no such *.py or *.json file")
        self.raise_config_file_errors = True
        named = f"--config {self.config_file}" if self.config_file else "a config file of Jupyter's"
        try:
            super().load_config_file(suppress_errors=False)
        except Exception as fault:
            self.quit(f"{named} cannot be used: {type(fault).__name__}: {fault}")
        if self.config_file:  # the last that is loaded; those before it are for all of Jupyter's programs
            self._check_sections(named, self._loaded)
        for name in self.config.get(type(self).__name__, {}):
            if name not in self.trait_names(config=True):
                near = difflib.get_close_matches(name, self.trait_names(config=True), n=1)
                own = f"{type(self).__name__}.{name}"
                self.quit(f"there is no setting {own}" + (f": did you mean {near[0]}?" if near else "; see --help-all"))

    def update_config(self, config: Config) -> None:
        """Called with the content of each config file."""
        self._loaded = config
        super().update_config(config)

    def _check_sections(self, named: str, config: Config) -> None:
        for section in config:
            known = {*SECTIONS, *(kind.__name__ for kind in type(self).__mro__)}
            if section not in known:
                near = difflib.get_close_matches(section, SECTIONS, n=1)
                advice = f": did you mean {near[0]}?" if near else f"; there are {', '.join(sorted(SECTIONS))}"
                self.quit(f"{named} sets {section}, which is no section of ours{advice}")

    def quit(self, message: str) -> NoReturn:
        self.log.critical(message)
        self.exit(1)
        raise SystemExit(1)


def _config_files(given: Path) -> list[Path]:
    """What traitlets reads for ``given``: the name with either ending, whatever its own is."""
    suffixes = [given.suffix] if given.suffix in (".py", ".json") else [".py", ".json"] if not given.suffix else []
    return [found for suffix in suffixes if (found := given.with_suffix(suffix)).is_file()]


SHARED_ALIASES = {"log-level": base_aliases["log-level"], "config": base_aliases["config"]}
SHARED_FLAGS = {"debug": base_flags["debug"]}
