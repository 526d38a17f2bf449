"""Pretraining: from a composed config to a run directory."""
