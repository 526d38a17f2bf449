"""A job that is started again in its own directory, as of a sweep or a study: it is done, goes on, or begins."""

from __future__ import annotations

import enum
from typing import Any

from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from ..errors import UserError, run_argument
from .derived import derived
from .flat import flat, is_below
from .resume import FREE_TO_CHANGE, Defaults
from .rundir import RunDirectory
from .stored import load_config

ABSENT = object()


class Standing(enum.Enum):
    """How far a job is: not begun, or so that nothing of it counts; begun; done."""

    NEW = "new"
    BEGUN = "begun"
    FINISHED = "finished"


def standing(run: RunDirectory, given: DictConfig, defaults: Defaults) -> Standing:
    """How far the job of the config ``given`` is in its directory.

    Args:
        run: where. given: the whole config, as composed, with what it takes from ``init_from``. defaults: the settings
            of a run without overrides, by their full names; asked for only where the run there was made by a version
            that had fewer settings.

    Raises:
        UserError: the directory holds a run with other settings, or what is in it cannot be read.
    """
    if not run.config.exists():  # nothing, or one whose settings were refused
        return Standing.NEW
    status = run.read_summary().get("status")
    if not run.has_steps and status in ("failed", "interrupted"):
        return Standing.NEW
    difference = _difference(run, given, defaults)
    if difference:
        raise UserError(
            f"{run.path} already holds a run, with {difference}: continue it with {run_argument(run.path)}, or choose "
            f"another directory."
        )
    return Standing.FINISHED if status == "finished" else Standing.BEGUN


def _difference(run: RunDirectory, given: DictConfig, defaults: Defaults) -> str | None:
    """The first setting in which the run and the config compute something else, in words."""
    stored = load_config(run.path, ("seed",))
    theirs, ours = flat(stored), flat(given)
    beside = _equal_by_other_names(stored, given)
    for name in sorted(theirs.keys() | ours.keys()):
        if is_below(name, (*FREE_TO_CHANGE, *beside)):
            continue
        held, wanted = theirs.get(name, ABSENT), ours.get(name, ABSENT)
        if held == wanted or (held is ABSENT and wanted == defaults().get(name, ABSENT)):
            continue
        return f"{name}={_text(held)} and not {_text(wanted)}"
    return None


def _equal_by_other_names(stored: Any, given: DictConfig) -> tuple[str, ...]:
    """Settings that may differ, since two configs come to the same: how k is said, and all of TopK in dense twins."""
    try:
        theirs, ours = (derived(OmegaConf.to_container(cfg, resolve=True)) for cfg in (stored, given))  # type: ignore[arg-type]
    except (ValueError, TypeError, KeyError):
        return ()
    if theirs["dense"] and ours["dense"]:
        return ("topk", "k_schedule")
    return ("topk.k", "topk.k_ratio") if theirs["ks"] == ours["ks"] else ()


def _text(value: Any) -> str:
    return "nothing" if value is ABSENT else str(value)


def default_settings() -> dict[str, Any]:
    """The settings of the running Hydra command without overrides, by their full names."""
    cfg = GlobalHydra.instance().hydra.compose_config(  # type: ignore[union-attr]
        config_name=HydraConfig.get().job.config_name, overrides=[], run_mode=RunMode.RUN, with_log_configuration=False
    )
    return flat(OmegaConf.masked_copy(cfg, [str(name) for name in cfg if name != "hydra"]))
