import pytest

from tests.composing import composed
from topklm.plan.settings import PlanConfig
from topklm.training.checking import build
from topklm.training.config import RunConfig


@pytest.fixture
def asked():
    """asked("plan.device=H100", ...): the run's config and the plan's settings, as `plan=true` composes them."""

    def make(*overrides):
        cfg = composed("trainer=cpu", "debug=smoke", *overrides, name="plan")
        config = RunConfig.from_hydra(cfg, own=("plan",))
        return config, build(PlanConfig, config.plain["plan"], "plan")

    return make
