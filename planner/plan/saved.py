"""Saves plans to files and reads them back."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from passes.errors import InputError
from passes.ir.fields import file_bytes, json_object
from planner.plan.codec import from_json, to_json, upgraded
from planner.plan.document import PlanDocument, digest, sealed
from planner.spec.arguments import file_named, public
from planner.spec.parse import validated

#: The resolved plan in a result's folder.
PLAN = "plan.json"


def save(document: PlanDocument, file: Path) -> None:
    """Write a plan atomically; its folder is made where it is missing."""
    from passes.files.atomic import write_json
    from passes.files.os_errors import clear_disk_errors

    with clear_disk_errors(file):
        file.parent.mkdir(parents=True, exist_ok=True)
    write_json(file, to_json(document))


@public
def load_plan(what: str | Path) -> PlanDocument:
    """Read a saved plan. Raises InputError where it is none, or was edited."""
    file = file_named("the plan", what, "the file that `optimize plan` saved")
    if file.suffix in (".yaml", ".yml") and file.is_file():
        raise InputError(
            f"{file} is a spec, no plan", remedy=f"`optimize plan {file}` makes one and says where it is saved"
        )
    try:
        document = json_object(
            file_bytes(file, pipes=True), f"{file} is no plan", remedy="`optimize plan SPEC` makes one"
        )
    except FileNotFoundError:
        raise InputError(f"no plan at {file}", remedy="`optimize plan SPEC` makes one") from None
    except IsADirectoryError:
        raise InputError(
            f"{file} is a folder, and no finished result",
            remedy="name the file that `optimize plan` saved, or a result of `apply`",
        ) from None
    except OSError as error:
        raise InputError(f"{file} is no plan: {error}", remedy="`optimize plan SPEC` makes one") from None
    if "format_version" not in document or not {"chosen", "lock"} <= upgraded(document, str(file)).keys():
        raise InputError(f"{file} is no plan", remedy="`optimize plan SPEC` makes one")
    if digest(document) != document.get("digest"):
        raise InputError(f"{file} was edited since it was made", remedy="change the spec and plan again")
    return _document(document, file)


def read_plan(file: Path) -> PlanDocument:
    """Return the plan in a result's folder, whatever was done to the file since. Raises InputError where it is missing or damaged."""
    from passes.files.atomic import read_json

    return _document(read_json(file, "plan"), file)


def _document(written: Mapping[str, Any], file: Path) -> PlanDocument:
    """Read a plan of this version or one before. Its spec is one that could be planned: all that shows or runs it reads its values."""
    said = upgraded(written, str(file))
    document = from_json(PlanDocument, said, str(file))
    validated(None, to_json(document.spec) | {"model": document.lock.model}, f"the spec in {file}")
    return document if said is written else sealed(document)  # its digest was of the keys of another version
