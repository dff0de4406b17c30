"""What every record has in common: it is checked when it is written and when it is read."""

import json
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from thyroid import atomic
from thyroid.errors import InputError


class Record(BaseModel):
    """The base of all records.

    A step cannot write a field that its record does not name, so the schema is the whole truth. A reader ignores such
    fields: a newer release may have added them.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, protected_namespaces=())

    @classmethod
    def parse(cls, content: Any, place: Path | str, unknown: Literal["forbid", "ignore"] = "forbid") -> Self:
        """Return the record with this content.

        Args:
            content: Content of the JSON file.
            place: Path of the file, for errors.
            unknown: What to do about fields that the record does not name.

        Raises:
            InputError: A field is missing, has a value of another kind or, with "forbid", is unknown. The message names
                the first one.
        """
        try:
            return cls.model_validate(content, extra=unknown)
        except InputError as error:  # of a record that explains its own fields
            raise InputError(f"{place}: {error}") from None
        except ValidationError as error:
            first, *others = error.errors(include_url=False, include_input=False)
            field = ".".join(map(str, first["loc"]))
            more = f" (and {len(others)} more)" if others else ""
            raise InputError(f"{place}: field {field}: {first['msg']}{more}") from None

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
        return cls.parse(content, path, "ignore")

    def to_dict(self) -> dict[str, Any]:
        """Return the fields that were set, as JSON. What a step leaves out stays out."""
        return self.model_dump(mode="json", exclude_unset=True, by_alias=True)

    def write(self, path: Path) -> None:
        """Write the record as JSON. The file survives a power cut."""
        atomic.write_json(path, self.to_dict())
