"""Which licence a checkpoint carries, and the files that licence asks for.

Texts are recognised by digest, never by title, so an altered text is not mistaken for the original.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from model_cards.errors import LicenceError
from model_store.files import sha256_file, write_text


@dataclass(frozen=True, slots=True)
class Licence:
    """A licence as both hubs' front matters name it."""

    key: str
    title: str
    identifier: str  # Hugging Face's `license`: an SPDX id, or "other"
    sha256: frozenset[str]  # of the licensor's text, in the editions that are in use
    notice: str  # the attribution line that has to travel along, if any

    @property
    def front_matter(self) -> dict[str, str]:
        if self.identifier != "other":
            return {"license": self.identifier}
        return {"license": "other", "license_name": self.key, "license_link": "LICENSE"}


TONGYI = Licence(
    key="tongyi-qianwen",
    title="Tongyi Qianwen LICENSE AGREEMENT",
    identifier="other",
    sha256=frozenset({"a25ee06d1fa41e99efac462bdd3f525862cb567bd8e7bcabbfd90132077f22d2"}),
    # the wording is prescribed by the Agreement's section 3c
    notice="Tongyi Qianwen is licensed under the Tongyi Qianwen LICENSE AGREEMENT, "
    "Copyright (c) Alibaba Cloud. All Rights Reserved.",
)
APACHE = Licence(
    key="apache-2.0",
    title="Apache License 2.0",
    identifier="apache-2.0",
    sha256=frozenset(
        {
            "cfc7749b96f63bd31c3c42b5c471bf756814053e847c10f3eb003417bc523d30",  # apache.org
            "c71d239df91726fc519c6eb72d318ec65820627232b2f796219e87dcf35d0ab4",  # GitHub
        }
    ),
    notice="",
)
LICENCES = {licence.key: licence for licence in (TONGYI, APACHE)}


def find_licence(snapshot: Path, *, asked: str | None) -> Licence:
    """Recognise the licence of a snapshot by its LICENSE file.

    Args:
        snapshot: the folder.
        asked: a key of LICENCES that the user names; it must not contradict the file.

    Raises:
        LicenceError: nothing named and nothing recognised, or the two disagree.
    """
    path = snapshot / "LICENSE"
    actual = sha256_file(path) if path.is_file() else None
    found = next((licence for licence in LICENCES.values() if actual in licence.sha256), None)
    if asked is None:
        if found is None:
            state = "has no LICENSE file" if actual is None else "has a LICENSE of unknown text"
            raise LicenceError(f"{snapshot.name} {state}")
        return found
    wanted = LICENCES[asked]
    if actual is not None and wanted is not found:
        raise LicenceError(
            f"LICENSE in {snapshot.name} is not the text of {wanted.title} that we know",
            hint="Replace it by the licensor's own file, or name the licence it really is.",
        )
    return wanted


def write_licence_files(snapshot: Path, licence: Licence, *, derived_from: str | None) -> None:
    """Make sure that LICENSE and NOTICE are there; an upstream NOTICE is kept whole.

    Raises:
        LicenceError: the licensor's text is not in the snapshot and not ours to ship.
    """
    path = snapshot / "LICENSE"
    if not path.is_file():
        if licence is not APACHE:
            raise LicenceError(f"{snapshot.name} has no LICENSE file with the {licence.title}")
        text = resources.files("model_cards").joinpath("texts/Apache-2.0.txt")
        write_text(path, text.read_text(encoding="utf-8"))
    notice = snapshot / "NOTICE"
    if not notice.is_file():
        write_text(notice, _notice(licence, derived_from))


def _notice(licence: Licence, derived_from: str | None) -> str:
    lines = [licence.notice] if licence.notice else []
    if derived_from:
        lines.append(f"This checkpoint is derived from {derived_from}. Changes: see CHANGES.md.")
    else:
        lines.append("This checkpoint is distributed under the terms in LICENSE.")
    return "\n".join(lines) + "\n"
