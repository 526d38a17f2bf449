"""What a run was made by: versions, commit and command line."""

from __future__ import annotations

import platform
import shlex
import shutil
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

PACKAGES = ("topklm", "torch", "lightning", "tokenizers", "numpy")


def provenance(root: Path) -> dict[str, Any]:
    """Versions, git commit (None outside a repository) and command line, for the summary."""
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = "not installed"
    git = (
        subprocess.run(["git", "rev-parse", "HEAD"], cwd=root, capture_output=True, text=True)
        if shutil.which("git")
        else None
    )
    return {
        "versions": versions,
        "git_commit": git.stdout.strip() if git is not None and git.returncode == 0 else None,
        "command": shlex.join(sys.argv),
    }
