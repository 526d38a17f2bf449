"""What a run would need and cost, before it is run: ``python train.py plan=true``."""

from .command import print_plan

__all__ = ["print_plan"]
