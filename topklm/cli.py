"""How every command behaves: names of run directories, one sentence for a user's mistake, an exit code that says how
it went.

Imports nothing heavy, so that ``--help`` and a mistyped override answer at once.
"""

from __future__ import annotations

import difflib
import functools
import os
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import CompactHydraException, MissingConfigException
from omegaconf import OmegaConf
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException

from .errors import Interrupted, UserError

CONF = Path(__file__).parents[1] / "conf"
MAX_NAME = 120  # characters of overrides in the name of a sweep's job; file systems end at 255


def command(main: Callable[[], Any]) -> Callable[[], None]:
    """Wraps a Hydra main function. Errors of the user end it with one sentence on stderr and exit code 1, a signal
    with 130."""

    @functools.wraps(main)
    def run() -> None:
        OmegaConf.register_new_resolver("topklm.run_dir", _run_dir, replace=True)
        OmegaConf.register_new_resolver("topklm.short", lambda text: str(text)[:MAX_NAME], replace=True)
        _flags_first()
        _check_run_argument(sys.argv[1:])
        # Hydra would print every exception in its own way; with this it hands them on.
        traceback_wanted = os.environ.setdefault("HYDRA_FULL_ERROR", "1") == "1" and "TOPKLM_TRACEBACK" in os.environ
        try:
            main()
        except (UserError, CompactHydraException, OmegaConfBaseException) as error:
            if traceback_wanted:
                raise
            _fail(_sentence(error))
        except Interrupted as stop:
            print(stop, file=sys.stderr)
            sys.exit(130)
        except KeyboardInterrupt:
            print("Interrupted.", file=sys.stderr)
            sys.exit(130)

    return run


def _fail(sentence: str) -> NoReturn:
    print(f"Error: {sentence}", file=sys.stderr)
    sys.exit(1)


def _sentence(error: Exception) -> str:
    """What went wrong, in one sentence where it is a mistyped name; otherwise in Hydra's words, whose reason is in the
    cause."""
    unknown = re.match(r"Could not override '(?P<name>[^']+)'", str(error))
    if unknown and isinstance(error.__cause__, (ConfigAttributeError, ConfigKeyError)):
        close = _similar_setting(unknown["name"])
        hint = f"did you mean {close}?" if close else "--cfg job lists all settings."
        return f"there is no setting {unknown['name']}: {hint}"
    if isinstance(error, MissingConfigException) and error.options:
        group, _, choice = (error.missing_cfg_file or "").rpartition("/")
        return f"there is no {group}={choice}: choose from {', '.join(error.options)}."
    parts = [str(error)]
    if isinstance(error.__cause__, OmegaConfBaseException):
        parts.append(str(error.__cause__).partition("\n")[0])
    return "\n".join(parts).strip()


def _similar_setting(name: str) -> str | None:
    """The setting whose name is most like ``name``, if any is."""
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        settings = list(_names(OmegaConf.to_container(compose("train"))))
    same_leaf = (setting for setting in settings if setting.rpartition(".")[2] == name.rpartition(".")[2])
    return next(iter(difflib.get_close_matches(name, settings, n=1)), next(same_leaf, None))


def _names(node: Any, prefix: str = "") -> Iterator[str]:
    if isinstance(node, dict):
        for key, child in node.items():
            yield f"{prefix}{key}"
            yield from _names(child, f"{prefix}{key}.")


def _flags_first() -> None:
    """Lets ``-m`` stand between overrides, where Hydra's parser would stumble over it."""
    flags = [argument for argument in sys.argv[1:] if argument in ("-m", "--multirun")]
    sys.argv[1:] = [*flags, *(argument for argument in sys.argv[1:] if argument not in flags)]


def _check_run_argument(arguments: list[str]) -> None:
    """Hydra makes its output directory before anything else runs, so a wrong ``run=`` must be met before Hydra."""
    for argument in arguments:
        name, _, value = argument.partition("=")
        if name in ("run", "resume") and value not in ("", "null"):
            if not (Path(value) / "config.yaml").is_file():
                _fail(f"{argument}: there is no run in {value} (no config.yaml): give the directory of a run.")
            if "-m" in arguments or "--multirun" in arguments:
                _fail(f"{argument} continues one run, so it does not go with -m.")


def _run_dir(run: str | None, resume: str | None, fresh: str) -> str:
    """The run directory: the one to continue, or a fresh one."""
    return run or resume or fresh
