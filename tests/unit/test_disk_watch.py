"""`colo disk watch` ends when the VM is protected, and says in a sentence why it can't watch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pycolo.disk import watching
from pycolo.disk.watching import watch_copy
from pycolo.errors import EnvironmentFault


class ScriptedClient:
    """Answers with one status after the other."""

    def __init__(self, statuses: list[dict[str, Any]]) -> None:
        self.statuses = statuses

    def __call__(self, state_dir: Path) -> ScriptedClient:
        return self

    async def __aenter__(self) -> ScriptedClient:
        return self

    async def __aexit__(self, *_: object) -> None:
        return None

    async def status(self) -> dict[str, Any]:
        return self.statuses.pop(0)


def status(state: str, done: int, total: int) -> dict[str, Any]:
    return {"role": "primary", "state": state, "disks": {"copied_bytes": done, "copy_bytes": total}}


async def watched(monkeypatch: pytest.MonkeyPatch, *statuses: dict[str, Any]) -> ScriptedClient:
    client = ScriptedClient(list(statuses))
    monkeypatch.setattr(watching, "Client", client)
    monkeypatch.setattr(watching, "POLL_S", 0.001)
    await watch_copy(Path("state"))
    return client


async def test_it_follows_the_copy_to_its_end(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    steps = [status("solo", 0, 0), status("syncing", 5, 10), status("syncing", 10, 10), status("protected", 10, 10)]
    client = await watched(monkeypatch, *steps, status("solo", 0, 0))
    assert len(client.statuses) == 1
    assert "protected" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("wrong", "says"),
    [({"role": "secondary"}, "ask the primary"), ({"role": "primary"}, "the VM has no disks")],
)
async def test_what_can_not_be_watched_is_said(
    monkeypatch: pytest.MonkeyPatch, wrong: dict[str, Any], says: str
) -> None:
    with pytest.raises(EnvironmentFault, match=says):
        await watched(monkeypatch, wrong)
