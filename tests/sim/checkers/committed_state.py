"""Checker 2: the committed state (memory, devices, disk) is whole, of one epoch, and what the SVM resumes from."""

from __future__ import annotations

from itertools import pairwise

import numpy as np

from ..history import Cut, History, Image

NAME = "committed_state"


def check(history: History) -> list[str]:
    """What contradicts it, in sentences; empty when nothing does."""
    return [*_epochs_new(history), *_committed_is_cut(history), *_loaded_is_committed(history)]


def _epochs_new(history: History) -> list[str]:
    """No epoch number is used twice, and the committed epoch never goes back."""
    problems = []
    for before, after in pairwise(history.sealed_epochs):
        if after <= before:
            problems.append(f"epoch {after} was sealed after epoch {before}")
    commits = [image.epoch for image in history.images if image.moment == "commit"]
    if commits != sorted(set(commits)):
        problems.append(f"the epochs committed are {commits}")
    return problems


def _committed_is_cut(history: History) -> list[str]:
    """Memory, device state, disk and input boundary are the primary's at the cut, at the commit and ever after."""
    problems = []
    for image in history.images:
        cut = history.cuts.get(image.epoch)
        found = "was never cut" if cut is None else _difference(cut, image)
        if found:
            problems.append(f"epoch {image.epoch} at {image.moment}: {found}")
    return problems


def _difference(cut: Cut, image: Image) -> str:
    wrong = np.flatnonzero((cut.ram != image.ram).any(axis=1)).tolist()
    if wrong:
        return f"the pages {wrong} are not the primary's"
    if cut.device_state != image.device_state:
        return "the device state is not the primary's"
    if image.disk not in (cut.disk, None):
        return "the disk is not the primary's"
    return "" if cut.boundary == image.boundary else f"boundary {image.boundary}, but {cut.boundary} frames were taken"


def _loaded_is_committed(history: History) -> list[str]:
    """Whenever the SVM resumes after a load it is the primary as it was at the cut."""
    problems = []
    for load in history.loads:
        cut = history.cuts.get(load.epoch)
        if cut is None:
            problems.append(f"the SVM resumed from epoch {load.epoch}, which was never cut")
            continue
        wrong = np.flatnonzero((cut.ram != load.ram).any(axis=1)).tolist()
        if wrong:
            problems.append(f"the SVM resumed in epoch {load.epoch} with the pages {wrong} wrong")
        if cut.device_state != load.device_state:
            problems.append(f"the SVM resumed in epoch {load.epoch} with the wrong device state")
        if cut.disk != load.disk:
            problems.append(f"the SVM resumed in epoch {load.epoch} on the wrong disk")
    return problems
