"""What a host remembers of a VM beyond the life of its daemon: one small file, replaced in one step."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pycolo.config import VmConfig
from pycolo.config_messages import sentences
from pycolo.config_values import Name
from pycolo.edge.replace_file import replace_file
from pycolo.errors import EnvironmentFault

FILE_NAME = "vm.json"


class Record(BaseModel):
    """A VM that has or had a copy here.

    `home` is the host where it was protected first: it may always have a copy. `partner` is who has, or had, the other
    copy. `ended` says why the copy here is gone, and `exit_status` of which kind that is.
    """

    model_config = ConfigDict(extra="forbid")

    vm: VmConfig
    role: Literal["primary", "secondary"]
    home: Name
    partner: Annotated[str, Field(max_length=63)] = ""
    protect: bool = True
    ended: str = ""
    exit_status: int | None = None

    def save(self, folder: Path) -> None:
        """Raises EnvironmentFault."""
        try:
            replace_file(folder / FILE_NAME, self.model_dump_json(indent=1).encode())
        except OSError as problem:
            raise EnvironmentFault(
                f"{folder / FILE_NAME} can't be written ({problem.strerror}): make room in `state_dir`"
            ) from None


def load_record(folder: Path) -> Record:
    """Raises EnvironmentFault for what no daemon has written."""
    path = folder / FILE_NAME
    try:
        return Record.model_validate_json(path.read_bytes())
    except OSError as problem:
        raise EnvironmentFault(f"{path} can't be read ({problem.strerror}): remove {folder} to forget the VM") from None
    except ValidationError as problem:
        raise EnvironmentFault(f"{path}: {sentences(problem, Record)[0]}: remove {folder} to forget the VM") from None
