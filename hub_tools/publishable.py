"""May this snapshot leave the machine? Untampered, proven, with its card, and without secrets."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from hub_tools.errors import NotPublishableError
from hub_tools.settings import Secret
from model_cards.linting import check_card
from model_store.files import sha256_file
from model_store.manifest import MANIFEST_NAME, Manifest, scan, verify_snapshot
from model_store.paths import inside
from model_store.progress import Progress
from model_store.records import read_records

_PARITY = "parity-"
_REQUIRED = ("README.md", "LICENSE")
_NEVER = frozenset({".env", ".netrc", ".git-credentials", "id_rsa", "id_ed25519"})
_NEVER_SUFFIXES = frozenset({".pem", ".key", ".p12", ".pfx"})
_TEXT = frozenset(
    {".json", ".jsonl", ".md", ".txt", ".yaml", ".yml", ".toml", ".cfg", ".ini", ".py"}
)
# vocabularies hold every kind of text, and nobody wrote it by hand
_VOCABULARIES = frozenset({"tokenizer.json", "vocab.json", "vocab.txt", "merges.txt"})
_LARGEST_TEXT = 32 << 20

_LOCAL_PATH = re.compile(
    rb"(?:file:/{2,3}|(?<![\w.:/~$}-])/)"
    rb"(?:home|Users|root|tmp|mnt|media|var|work|workspace|data|scratch|nfs|gpfs|private)/[\w.~-]"
    rb"|\b[A-Za-z]:\\{1,2}(?:Users|Documents)\b"
)
_TOKEN = re.compile(
    rb"\bhf_[A-Za-z0-9]{30,}\b"
    rb"|\bms-[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}\b"
    rb"|\bsk-[A-Za-z0-9_-]{20,}"
    rb"|\bgh[pousr]_[A-Za-z0-9]{36,}\b"
    rb"|\bAKIA[0-9A-Z]{16}\b"
    rb"|-----BEGIN [A-Z ]*PRIVATE KEY-----"
)


@dataclass(frozen=True, slots=True)
class LocalFile:
    """One file to publish."""

    path: str  # POSIX, relative to the snapshot
    place: Path
    size: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Publishable:
    """A snapshot that passed every check."""

    folder: Path
    manifest: Manifest
    files: tuple[LocalFile, ...]  # sorted by path; the manifest is one of them


def check_publishable(
    folder: Path,
    *,
    allow_unverified: bool,
    allow_card_problems: bool,
    secrets: Iterable[Secret],
    progress: Progress,
) -> Publishable:
    """Hash and examine a snapshot.

    Args:
        folder: the snapshot.
        allow_unverified: do not ask for a green parity record.
        allow_card_problems: do not ask the card's lint.
        secrets: tokens in use; a file that has one of them is not published.
        progress: told about the hashing, and about what was waived.

    Raises:
        NotASnapshotError, DigestMismatchError, StoreError: not the snapshot that was made.
        NotPublishableError: unproven, without a card, or with something that must stay here.
        CardLintError: the card contradicts the records.
    """
    manifest = verify_snapshot(folder, progress=progress)
    _check_complete(folder, manifest)
    _check_parity(folder, manifest, waived=allow_unverified, progress=progress)
    _check_documents(folder, waived=allow_card_problems, progress=progress)
    names = [MANIFEST_NAME, *(entry.path for entry in manifest.files)]
    _check_contents(folder, names, [secret.reveal().encode() for secret in secrets])
    return Publishable(folder, manifest, _files(folder, manifest))


def _check_complete(folder: Path, manifest: Manifest) -> None:
    listed = {entry.path for entry in manifest.files}
    found = scan(folder, known=manifest.files)
    unlisted = [entry.path for entry in found if entry.path not in listed]
    if unlisted:
        raise NotPublishableError(
            f"{folder} has files that its manifest does not name, such as {unlisted[0]!r}",
            hint="Remove them; cards and records enter the manifest when our commands write them.",
        )


def _check_parity(folder: Path, manifest: Manifest, *, waived: bool, progress: Progress) -> None:
    records = read_records(folder, candidate=manifest.content_digest)
    # a snapshot held against itself proves nothing, nor does a record without a measurement
    parity = [
        record
        for record in records
        if record.name.startswith(_PARITY)
        and record.reference not in (None, record.candidate)
        and any(measurement.primary for measurement in record.measurements)
    ]
    red = [record.name for record in parity if not record.green]
    if parity and not red:
        return
    problem = (
        f"{folder} has no parity record about these files"
        if not parity
        else f"record {red[0]} says {next(r.verdict for r in parity if r.name == red[0])}"
    )
    if not waived:
        raise NotPublishableError(
            problem, hint="Run `python -m verification.compare` with it, or say --allow-unverified."
        )
    progress.log(f"not verified, and published all the same: {problem}")


def _check_documents(folder: Path, *, waived: bool, progress: Progress) -> None:
    missing = [name for name in _REQUIRED if not (folder / name).is_file()]
    if missing:
        raise NotPublishableError(
            f"{folder} has no {' and no '.join(missing)}",
            hint="Run `python -m model_cards.generate SNAPSHOT` first.",
        )
    if waived:
        progress.log("the card's lint was not asked")
    else:
        check_card(folder)


def _check_contents(folder: Path, names: Sequence[str], secrets: Sequence[bytes]) -> None:
    for name in names:
        path = PurePosixPath(name)
        if path.name in _NEVER or path.suffix.lower() in _NEVER_SUFFIXES:
            raise NotPublishableError(
                f"{name} looks like credentials", hint="Remove the file from the snapshot."
            )
        if path.suffix.lower() in _TEXT or path.name in _REQUIRED:
            _check_text(name, inside(folder, name), secrets)


def _check_text(name: str, place: Path, secrets: Sequence[bytes]) -> None:
    if place.stat().st_size > _LARGEST_TEXT:
        return
    for number, kind in _findings(place.read_bytes(), name, secrets):
        # what was found is not repeated: a token in a message is a token in a log
        raise NotPublishableError(
            f"{name}, line {number}: {kind}", hint="Remove it where the file was made, and redo it."
        )


def _findings(data: bytes, name: str, secrets: Sequence[bytes]) -> Iterator[tuple[int, str]]:
    is_vocabulary = PurePosixPath(name).name in _VOCABULARIES
    for number, line in enumerate(data.split(b"\n"), start=1):
        if any(secret in line for secret in secrets) or _TOKEN.search(line):
            yield number, "a token or key"
        elif not is_vocabulary and (found := _LOCAL_PATH.search(line)):
            yield number, f"a path of this machine ({found.group().decode('utf-8', 'replace')}…)"


def _files(folder: Path, manifest: Manifest) -> tuple[LocalFile, ...]:
    own = inside(folder, MANIFEST_NAME)
    files = [LocalFile(MANIFEST_NAME, own, own.stat().st_size, sha256_file(own))]
    files += [
        LocalFile(entry.path, inside(folder, entry.path), entry.size, entry.sha256)
        for entry in manifest.files
    ]
    return tuple(sorted(files, key=lambda file: file.path))
