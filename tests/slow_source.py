"""A source that trickles, so that a run trains while the writer is still at work."""

import time
from dataclasses import replace

from topklm.data import Files
from topklm.errors import UserError


class SlowFiles(Files):
    """Local files, of which the first documents come at once and the others a second apart.

    Args:
        fast: documents that come at once. fail_at: the document at which it breaks, None for never.
    """

    name = "slow"

    def __init__(self, paths, fast=150, fail_at=None, **options):
        super().__init__(paths, **options)
        self.fast, self.fail_at = fast, fail_at

    def documents(self, after=None):
        for number, document in enumerate(super().documents(), start=1):
            if number == self.fail_at:
                raise UserError("The source broke at last.")
            if number > (after or 0):
                if number > self.fast:
                    time.sleep(1)
                yield replace(document, cursor=number)
