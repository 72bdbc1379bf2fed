"""What a replica finds in its file system that is not of its image: the host's folders, and values of the store."""

import posixpath
from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, model_validator

from mesh.spec.fields import FieldFault, FilePath, Part, Text, Word
from mesh.units import shown

_KINDS: tuple[Literal["source", "config", "secret", "content"], ...] = ("source", "config", "secret", "content")


def _mode(value: object) -> str:
    """Octal digits, as text: a YAML reader may take 0400 for a number, of which nobody knows in which base."""
    if isinstance(value, str) and value.isdecimal() and len(value) <= 4:
        try:
            if int(value, 8) <= 0o777:
                return f"{int(value, 8):04o}"
        except ValueError:
            pass
    raise ValueError(f'must be permissions in octal, as text, such as "0440", got {shown(value)}')


class Mount(Part):
    """A folder or file of the node (`source`), or a file that is made of a config, a secret or a text."""

    source: FilePath | None = None
    """On the host."""
    config: Word | None = None
    """Name under `desired/configs/`: a file with its value. A change of it rolls the service."""
    secret: Word | None = None
    """Name under `desired/secrets/`: a file with its value, read when a replica starts; never shown."""
    content: Text | None = None
    """What is in the file."""
    path: FilePath
    """In the container. A plain process finds files, not the host's, at this path below the folder `MESH_FILES`."""
    read_only: bool = False
    """For `source`: mounted so that it cannot be written. Files are copies, of which each replica has its own."""
    mode: Annotated[str, BeforeValidator(_mode)] = "0444"
    """Of a file that is made: its permissions."""

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        kinds = [kind for kind in _KINDS if getattr(self, kind) is not None]
        if len(kinds) != 1:
            raise ValueError(f"needs exactly one of {', '.join(_KINDS)}, got {' and '.join(kinds) or 'none'}")
        if self.source is not None:
            if "mode" in self.model_fields_set:
                raise FieldFault("mode", "is for files made of config, secret or content")
            return self
        if "read_only" in self.model_fields_set:
            raise FieldFault("read_only", "is for source: what is made of the store is a copy, and has a mode")
        if posixpath.normpath(self.path) != self.path:
            raise FieldFault("path", f"must be the path of a file, without . and .., got {shown(self.path)}")
        return self

    @property
    def is_file(self) -> bool:
        """It is made for each replica; else it is the host's."""
        return self.source is None

    @property
    def permissions(self) -> int:
        return int(self.mode, 8)
