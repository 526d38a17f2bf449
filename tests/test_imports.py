"""What must start fast does without what takes seconds to import."""

import subprocess
import sys

import pytest


@pytest.mark.parametrize("module", ["topklm.reports.study", "topklm.reports.write", "topklm.training.init_from"])
def test_no_lightning(module):
    code = f"import sys, {module}; sys.exit('lightning' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
