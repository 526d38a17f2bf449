"""Pretraining: from a composed config to a run directory."""

from .pretrain import pretrain

__all__ = ["pretrain"]
