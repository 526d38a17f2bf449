"""How every command behaves: what it understands as a path, names of run directories, one line on stderr for a user's
mistake, an exit code that says how it went.

Imports nothing heavy, so that ``--help`` and a mistyped override answer at once.
"""

from __future__ import annotations

import atexit
import difflib
import functools
import hashlib
import logging
import math
import os
import re
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

import hydra
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Quote, QuotedString
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, MissingMandatoryValue, OmegaConfBaseException

from .errors import Interrupted, UserError, missing_setting
from .output import output_is_broken, watched_output

log = logging.getLogger(__name__)

CONF = Path(__file__).parents[1] / "conf"
MAX_NAME = 200  # bytes of overrides in the name of a sweep's job; file systems end at 255
MISTAKES = (UserError, HydraException, OmegaConfBaseException)
# Overrides whose value is a path, whatever its characters mean in Hydra's grammar. A sweep may go over the latter.
DIRECTORIES = ("run", "resume", "hydra.run.dir", "hydra.sweep.dir")
FILES = ("data.cache_dir", "tokenizer.path", "init_from", "pretrained", "out", "dir", "sweep")
# What Hydra and OmegaConf add to a message: of use to a programmer.
ASIDES = re.compile(
    r",? set env var HYDRA_FULL_ERROR=1 to see chained exception|See https?://\S+( for details)?|"
    r"\b(full_key: |object_type=)\S*|LexerNoViableAltException: .*\n *\^|"
    r"Config search path:[^$]*"
)


def command(config_name: str) -> Callable[[Callable[[DictConfig], Any]], Callable[[], None]]:
    """Makes a command of a function that takes the config composed from ``conf/<config_name>.yaml``.

    A mistake of the user ends it with one line on stderr and exit code 1, a signal with 130, and that nobody reads its
    output any more (``| head``) with 141. A sweep goes on after a job that failed, and ends with 1.
    """

    def decorate(main: Callable[[DictConfig], Any]) -> Callable[[], None]:
        failed: list[str] = []  # why, for each job of a sweep that did
        bugs: list[Exception] = []

        @functools.wraps(main)
        def job(cfg: DictConfig) -> Any:
            logging.captureWarnings(True)  # to the log: stderr says how the command ended
            try:
                return main(cfg)
            except MISTAKES as error:
                sentence = _sentence(error, config_name)
                if _is_sweep():
                    log.error("This job failed: %s", sentence, exc_info=_traceback_wanted())
                    failed.append(sentence)
                    return math.nan
                if _traceback_wanted():
                    raise
                _leave_nothing(Path(HydraConfig.get().runtime.output_dir))
                _fail(sentence)  # no Exception, which Hydra would announce
            except Exception as bug:
                if _is_sweep():  # the jobs to come and the report are not to be lost
                    log.exception("This job failed, by a fault that is not yours:")
                    failed.append(_one_line(f"{type(bug).__name__}: {bug}"))
                    return math.nan
                bugs.append(bug)
                raise

        @functools.wraps(main)
        def run() -> None:
            with watched_output():
                _run()

        def _run() -> None:
            if not CONF.is_dir():
                _fail(f"{CONF} is missing: topklm runs from a clone of its repository, installed with pip install -e.")
            register_resolvers()
            signal.signal(signal.SIGTERM, signal.default_int_handler)  # wherever it comes, it ends like Ctrl-C
            os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra hands exceptions on instead of printing them in its own way
            try:
                sys.argv[1:] = _arguments(sys.argv[1:])
                hydra.main(version_base="1.3", config_path=str(CONF), config_name=config_name)(job)()
                if sys.stdout is not None:
                    sys.stdout.flush()
            except MISTAKES as error:
                if _traceback_wanted():
                    raise
                _fail(_sentence(error, config_name))
            except (OSError, ValueError) as error:  # of Hydra itself: it cannot make a directory, or flags contradict
                if error in bugs or _traceback_wanted():
                    raise
                _fail(_no_directory(error) if isinstance(error, OSError) else _sentence(error, config_name))
            except KeyboardInterrupt as stop:
                if isinstance(stop, Interrupted) or not output_is_broken():
                    print(stop if isinstance(stop, Interrupted) else "Interrupted.", file=sys.stderr)
                sys.exit(141 if output_is_broken() else 130)
            if failed:
                _fail(f"{len(failed)} of the sweep's jobs failed. {failed[0]}")

        return run

    return decorate


# --- what to say ------------------------------------------------------------------------------------------------------


def _is_sweep() -> bool:
    return bool(HydraConfig.get().mode == RunMode.MULTIRUN)


def _traceback_wanted() -> bool:
    return os.environ.get("TOPKLM_TRACEBACK", "0") not in ("", "0")


def _fail(sentence: str) -> NoReturn:
    print(f"Error: {sentence}", file=sys.stderr)
    sys.exit(1)


def _leave_nothing(output: Path) -> None:
    """Takes away the directory that Hydra has made for what a command would write, and a dated one's folder, where
    nothing is in them."""
    for folder in (output, output.parent):
        if folder.resolve() in (Path.cwd(), *Path.cwd().parents):
            return
        try:
            folder.rmdir()
        except OSError:  # something is there
            return


def _one_line(text: str) -> str:
    return " ".join(ASIDES.sub("", text).split()).rstrip(" ,:")


def _no_directory(error: OSError) -> str:
    return (
        f"The directory {error.filename} cannot be made ({error.strerror or error}): choose another place with "
        f"hydra.run.dir=..., or hydra.sweep.dir=... for a sweep."
    )


def _sentence(error: Exception, config_name: str) -> str:
    """What went wrong: in our words where it is a mistyped name, otherwise in Hydra's, whose reason is in the cause."""
    if isinstance(error, UserError):
        return _one_line(str(error))
    unknown = re.match(r"Could not override '(?P<name>[^']+)'", str(error))
    if unknown and isinstance(error.__cause__, (ConfigAttributeError, ConfigKeyError)):
        close = _similar_setting(unknown["name"], config_name)
        hint = f"did you mean {close}?" if close else "--cfg job lists all settings."
        return f"there is no setting {unknown['name']}: {hint}"
    if isinstance(error, MissingMandatoryValue):
        return missing_setting(error.full_key or "a setting")
    if isinstance(error, OverrideParseException):
        reason = _one_line(str(error))
        return f"{error.override} is not NAME=VALUE{f' ({reason})' if reason else ''}: quote special characters."
    if "Config group override must be" in str(error):  # null, or a list
        wrong = next(a for a in sys.argv[1:] if _group(a) and not (CONF / f"{a.replace('=', '/')}.yaml").is_file())
        return f"there is no {wrong}: choose from {choices(_group(wrong) or '')}."
    if isinstance(error, MissingConfigException) and error.options:
        group, _, choice = (error.missing_cfg_file or "").rpartition("/")
        return f"there is no {group}={choice}: choose from {', '.join(error.options)}."
    cause = error.__cause__ if isinstance(error.__cause__, OmegaConfBaseException) else ""
    return _one_line(f"{error}\n{cause}")


def _similar_setting(name: str, config_name: str) -> str | None:
    """The setting whose name is most like ``name`` among those of the choices on the command line, if any is."""
    chosen = [argument for argument in sys.argv[1:] if _group(argument)]
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(str(CONF), version_base="1.3"):
            settings = list(_names(OmegaConf.to_container(compose(config_name, chosen))))
    except MISTAKES:  # the choices are wrong too, or a sweep's
        return None
    same_leaf = (setting for setting in settings if setting.rpartition(".")[2] == name.rpartition(".")[2])
    return next(iter(difflib.get_close_matches(name, settings, n=1, cutoff=0.8)), next(same_leaf, None))


def _group(argument: str) -> str | None:
    """The group of which an override makes a choice, None for any other argument."""
    name, equals, _ = argument.partition("=")
    return name if equals and name and (CONF / name).is_dir() else None


def _names(node: Any, prefix: str = "") -> Iterator[str]:
    if isinstance(node, dict):
        for key, child in node.items():
            yield f"{prefix}{key}"
            yield from _names(child, f"{prefix}{key}.")


# --- what is asked ----------------------------------------------------------------------------------------------------


def _arguments(given: list[str]) -> list[str]:
    """The command line as Hydra can read it: ``-m``, over which its parser would stumble between overrides, comes
    first, and paths are quoted.

    Hydra makes its output directory before anything else runs, so a wrong ``run=`` must be met here.
    """
    flags = [argument for argument in given if argument in ("-m", "--multirun")]
    paths = DIRECTORIES if flags else DIRECTORIES + FILES
    read, runs = list(flags), set()
    for argument in given:
        name, _, value = argument.partition("=")
        several = name == "sweep" and value.startswith("[")
        if name.lstrip("+") in paths and value not in ("", "null") and not several:
            path = os.path.expanduser(_path(value))  # which a shell does not after the equals sign
            argument = f"{name}={QuotedString(path, Quote.single).with_quotes()}"
            if name in ("run", "resume"):
                runs.add(path)
                _check_run(name, path)
                if flags:
                    _fail(f"{name}={path} continues one run, so it does not go with -m.")
        if argument not in flags:
            read.append(argument)
    if len(runs) > 1:
        _fail("run and resume mean the same: give one of them.")
    # The run that goes on has its own data, of which the command's default need not have every setting.
    return [f"++{argument}" if runs and argument.startswith("data.on_error=") else argument for argument in read]


def _path(value: str) -> str:
    """The path that an override's value stands for: Hydra's quotes and escapes are undone where it has some, and what
    is no string to Hydra's grammar is taken as it is."""
    try:
        parsed = OverridesParser.create().parse_override(f"path={value}").value()
    except HydraException:
        return value
    return parsed if isinstance(parsed, str) else value


def _check_run(name: str, path: str) -> None:
    if not (Path(path) / "config.yaml").is_file():
        _fail(f"{name}={path}: there is no run in {path} (no config.yaml): give the directory of a run.")


def switched_on(name: str) -> bool:
    """Takes ``NAME=true`` or ``NAME=false`` off the command line: whether it was true. For a switch between commands,
    whose settings ``NAME.SETTING`` only the other command knows."""
    given = [argument for argument in sys.argv[1:] if argument.startswith(f"{name}=")]
    sys.argv[1:] = [argument for argument in sys.argv[1:] if argument not in given]
    wrong = [argument for argument in given if argument.lower() not in (f"{name}=true", f"{name}=false")]
    if wrong:
        _fail(f"{wrong[0]}: choose from true, false.")
    on = bool(given) and given[-1].lower() == f"{name}=true"
    stray = next((argument for argument in sys.argv[1:] if argument.startswith(f"{name}.")), None)
    if stray and not on:
        _fail(f"{stray} is for {name}=true: add that.")
    return on


# --- what YAML may ask for --------------------------------------------------------------------------------------------


def register_resolvers() -> None:
    """Makes known the functions that ``conf/`` uses: ``${topklm.NAME:ARGUMENT,...}``."""
    for resolver in (run_dir, job_name, heads, scratch_dir, groups):
        OmegaConf.register_new_resolver(f"topklm.{resolver.__name__}", resolver, replace=True)


def run_dir(run: str | None, resume: str | None, fresh: str) -> str:
    """The run directory: the one to continue, or a fresh one."""
    return run or resume or fresh


def job_name(overrides: Sequence[str]) -> str:
    """The directory of a sweep's job: its overrides, and nothing of its place in the sweep, so that the job is found
    again when values are added. Dense twins, which all values of k share, have one name; where metrics go changes no
    name."""
    kept = sorted(str(override) for override in overrides if not str(override).startswith(("logger=", "logger.")))
    if "topk=none" in kept and not any(override.startswith("topk.sites=") for override in kept):
        kept = [o for o in kept if o == "topk=none" or not o.startswith(("topk.", "k_schedule.", "k_schedule="))]
    whole = "_".join(kept).replace("/", "-") or "default"
    if len(whole.encode()) <= MAX_NAME:
        return whole
    digest = hashlib.sha256(whole.encode()).hexdigest()[:8]
    return whole.encode()[: MAX_NAME - 9].decode(errors="ignore") + f"_{digest}"


def groups(config: str) -> str:
    """For ``--help``: the groups of which ``conf/CONFIG.yaml`` takes a choice, a line each with all choices."""
    defaults = OmegaConf.select(OmegaConf.load(CONF / f"{config}.yaml"), "defaults")
    names = sorted(name for entry in defaults if not isinstance(entry, str) for name in entry if (CONF / name).is_dir())
    return "".join(f"{name}: {choices(name)}\n" for name in names)


def choices(group: str) -> str:
    """The choices of a group, for a sentence."""
    return ", ".join(sorted(path.stem for path in (CONF / group).glob("*.yaml")))


def heads(width: int, head_dim: int, kv_heads: int | None) -> int:
    """How many attention heads a model of this width has, so that each is ``head_dim`` wide, or wider where that does
    not come out even or ``kv_heads`` could not share them."""
    wholes = (width, head_dim, 1 if kv_heads is None else kv_heads)
    if not all(isinstance(number, int) and number > 0 for number in wholes):
        return 1  # the model's own checks say what is wrong
    return next((n for n in range(width // head_dim, 1, -1) if width % (2 * n) == 0 == n % wholes[2]), wholes[2])


@functools.cache
def scratch_dir() -> str:
    """A directory that goes with the process, for what must have one and leaves nothing."""
    folder = tempfile.mkdtemp(prefix="topklm-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder
