"""What every record has in common: it is checked when it is written and when it is read."""

import json
from pathlib import Path
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from thyroid import atomic
from thyroid.errors import InputError


class Record(BaseModel):
    """The base of all records. Fields that it does not name are refused, so that its schema is the whole truth."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, protected_namespaces=())

    @classmethod
    def parse(cls, content: Any, place: Path | str) -> Self:
        """Return the record with this content.

        Args:
            content: Content of the JSON file.
            place: Path of the file, for errors.

        Raises:
            InputError: A field is missing, is unknown or has a value of another kind. The message names the first one.
        """
        try:
            return cls.model_validate(content)
        except InputError as error:  # of a record that explains its own fields
            raise InputError(f"{place}: {error}") from None
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            field = ".".join(map(str, first["loc"]))
            raise InputError(f"{place}: field {field}: {first['msg']} ({len(error.errors())} in all)") from None

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read the record from a JSON file.

        Raises:
            FileNotFoundError: There is no such file.
            InputError: The file is not JSON, or its content is not this record (see `parse`).
        """
        try:
            content = json.loads(path.read_bytes())
        except ValueError as error:
            raise InputError(f"{path}: not JSON: {error}") from None
        return cls.parse(content, path)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields that were set, as JSON. What a step leaves out stays out."""
        return self.model_dump(mode="json", exclude_unset=True, by_alias=True)

    def write(self, path: Path) -> None:
        """Write the record as JSON. The file survives a power cut."""
        atomic.write_json(path, self.to_dict())
