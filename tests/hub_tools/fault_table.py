"""The fault table: what goes wrong, how it is played, and what must come of it.

`test_faults.py` plays every row with our own client, `scripts/measure_faults.py` with the official
clients, too, and writes docs/faults.md.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tests.hub_tools import fault_scenes as scenes
from tests.hub_tools import faults
from tests.hub_tools.checkpoints import FILES as SMALL
from tests.hub_tools.fault_stage import TOKEN, Client, Report, Stage, staged
from tests.hub_tools.faulty_hub import Fault, corrupted, refused, reset_after, truncated

MB = 1_000_000
WEIGHTS = "model.safetensors"
_RANDOM = random.Random(11)
FILES = {
    "README.md": b"# tiny\n",
    "config.json": b"{}",
    "assets/note.txt": b"a note",
    WEIGHTS: _RANDOM.randbytes(4 * MB),
}
LARGE = {**FILES, WEIGHTS: _RANDOM.randbytes(20 * MB)}
ODD = {
    path: path.encode()
    for path in (
        "数据/模型 权重.bin", "a b.txt", "100%.txt", "%41.txt", "a#b.txt", "what?.txt", "1+1.txt",
        "a&b=c.txt", "ünïcode.txt", "deep/er/than/that/file.txt",
    )
}  # fmt: skip

Arrange = Callable[[Stage], None]
Scene = Callable[[Stage], Report]


@dataclass(frozen=True, slots=True)
class Row:
    """One fault. `must` is "good", or "error": refused precisely, and a rerun heals."""

    id: str
    words: str
    arrange: Arrange = lambda stage: None
    must: str = "good"
    errors: tuple[str, ...] = ()  # our types that say it precisely; also allowed where must is good
    within: float = 10.0  # seconds
    most_sent: float | None = None  # bytes of files, as a multiple of the repository
    scene: Scene = scenes.once
    files: Mapping[str, bytes] = field(default_factory=lambda: FILES)
    token: str | None = None
    slow: bool = False
    needs_mount: bool = False

    def play(self, client: Client, folder: Path) -> Report:
        """Play this row with one client in an empty folder.

        Raises:
            PermissionError: it needs a small disk, and this process may not mount one.
        """
        # those who wait too long get some time to show it
        limit = self.within + 25
        with staged(client, folder, self.files, limit=limit, token=self.token) as stage:
            self.arrange(stage)
            return self.scene(stage)

    def complaint(self, client: Client, report: Report) -> str:
        """Why a report does not satisfy this row; empty when it does."""
        if report.outcome == "good":
            if report.seconds > self.within:
                return f"good bytes after {report.seconds:.0f} s, not {self.within:.0f} s"
            if self.most_sent is not None and report.sent > self.most_sent:
                return f"fetched {report.sent:.1f} times its bytes"
            return ""
        if report.outcome != "error":
            return report.outcome
        if self.must == "good" and not self.errors:
            return f"failed: {report.error}"
        if client.is_ours and report.error not in self.errors:
            return f"{report.error} is not the precise error"
        if report.seconds > self.within:
            return f"an error only after {report.seconds:.0f} s"
        return "" if report.rerun in ("good", "") else f"a rerun does not heal: {report.rerun}"


def _file(*played: Fault | None) -> Arrange:
    """Faults on the weights, used up in order."""

    def arrange(stage: Stage) -> None:
        stage.player.faults[WEIGHTS] = list(played)

    return arrange


def _always(fault: Fault) -> Arrange:
    def arrange(stage: Stage) -> None:
        stage.player.always[WEIGHTS] = fault

    return arrange


def _listing(*played: Fault) -> Arrange:
    def arrange(stage: Stage) -> None:
        stage.player.faults[faults.LISTINGS[stage.client.dialect]] = list(played)

    return arrange


def _listing_always(fault: Fault) -> Arrange:
    def arrange(stage: Stage) -> None:
        stage.player.always[faults.LISTINGS[stage.client.dialect]] = fault

    return arrange


def _signed(*played: Fault | None) -> Arrange:
    def arrange(stage: Stage) -> None:
        stage.player.signing = True
        _file(*played)(stage)

    return arrange


def _short_lived(stage: Stage) -> None:
    stage.player.signing, stage.player.lifetime = True, 0.3
    stage.player.faults[WEIGHTS] = [faults.both(faults.limited(4 * MB), reset_after(2 * MB))]


def _without_ranges(stage: Stage) -> None:
    stage.player.without_range = True
    stage.player.faults[WEIGHTS] = [truncated(2 * MB)]


def _xet(stage: Stage) -> None:
    stage.player.always[WEIGHTS] = faults.offered_by_xet
    stage.player.always[faults.LISTINGS[stage.client.dialect]] = faults.listed_with_xet


_LOST = ("TransferError",)
_WRONG = ("DigestMismatchError", "GitDigestMismatchError", "SizeMismatchError")
_UNSAFE = ("UnsafePathError",)
_PROTOCOL = ("HubProtocolError",)
_BAD_TOKEN = "Invalid credentials in Authorization header"
_STALL = faults.stalled(2 * MB, 120)

BYTES = (
    Row("corrupt-once", "one byte of the file is wrong, once", _file(corrupted)),
    Row(
        "corrupt-always", "one byte of the file is always wrong", _always(corrupted),
        must="error", errors=_WRONG,
    ),
    Row(
        "truncated", "the body ends in the middle", _file(truncated(2 * MB)),
        most_sent=1.5,
    ),
    Row(
        "short-once", "1000 bytes are missing, and Content-Length agrees, once",
        _file(faults.shorter(1000)),
    ),
    Row(
        "drops", "every connection drops after 3 MB of 20",
        _always(truncated(3 * MB)), files=LARGE, within=30, most_sent=1.5,
    ),
    Row(
        "reset", "a TCP reset in the middle", _file(reset_after(2 * MB)), most_sent=1.5,
    ),
    Row("503-file", "503 on the file, once", _file(refused(503))),
    Row("503-listing", "503 on the listing, once", _listing(refused(503))),
    Row("500-file", "500 on the file, always", _always(refused(500)), must="error",
        errors=("HubUnreachableError",), within=60, slow=True),
    Row("429-file", "429 with Retry-After: 1 on the file", _file(refused(429, Retry_After="1"))),
    Row(
        "429-listing", "429 with Retry-After: 1 on the listing",
        _listing(refused(429, Retry_After="1")),
    ),
    Row(
        "expired", "the storage resets, and its signed URL answers 403 from then on",
        _signed(faults.both(reset_after(2 * MB), faults.burning)), most_sent=1.5,
    ),
    Row(
        "short-lived", "signed URLs live for 0.3 s, and the connection breaks later",
        _short_lived, most_sent=1.5,
    ),
    Row(
        "other-origin", "files are at another port, and a token is set",
        _signed(), token=TOKEN,
    ),
    Row(
        "stall", "the connection says nothing for 120 s after half of the file", _file(_STALL),
        within=15, most_sent=1.5, slow=True,
    ),
    Row(
        "trickle", "one connection gives 200 bytes per second after half of the file",
        _file(faults.trickling(2 * MB, 200)), within=60, most_sent=1.6, slow=True,
    ),
    Row(
        "trickle-always", "every connection gives 200 bytes per second",
        _always(faults.trickling(0, 200)), must="error", errors=_LOST, within=60, slow=True,
    ),
    Row(
        "no-ranges", "Range is ignored (200 instead of 206), and the first body breaks off",
        _without_ranges,
    ),
    Row(
        "other-range", "a range comes from elsewhere in the file, and says so, once",
        _file(truncated(2 * MB), faults.other_range),
    ),
    Row(
        "other-range-always", "every range comes from elsewhere in the file",
        _file(truncated(2 * MB), *[faults.other_range] * 60), within=15,
    ),
    Row("no-length", "no Content-Length anywhere", _always(faults.of_unknown_length)),
    Row(
        "gzip", "bodies come compressed, unasked", _always(faults.gzipped),
    ),
    Row(
        "redirect-loop", "the file redirects to itself", _always(faults.in_a_loop),
        must="error", errors=_PROTOCOL, within=30,
    ),
    Row(
        "removed", "the file is removed upstream during the download", _always(refused(404)),
        must="error", errors=("EntryNotFoundError",),
    ),
    Row(
        "changed", "the file changes upstream during the download, same length",
        _always(faults.other_bytes), must="error", errors=_WRONG,
    ),
    Row(
        "changed-length", "the file becomes shorter upstream during the download",
        _always(faults.shorter(1000)), must="error", errors=_WRONG, within=30, slow=True,
    ),
    Row("401", "401 on the listing: the hub does not know the token",
        _listing_always(refused(401, X_Error_Message=_BAD_TOKEN)),
        must="error", errors=("AuthError",), token=TOKEN),
    Row("401-anonymous", "401 on the listing, and no token is set",
        _listing_always(refused(401)), must="error", errors=("AuthError",)),
    Row("gated-file", "403 on the file: this account has not accepted the terms",
        _always(refused(403, X_Error_Code="GatedRepo")), must="error", errors=("GatedError",),
        token=TOKEN),
    Row("xet", "the hub offers the file by Xet", _xet),
    Row("403", "403 on the listing", _listing_always(refused(403)), must="error",
        errors=("GatedError",)),
    Row("web-page", "a login page instead of the listing", _listing_always(faults.a_web_page),
        must="error", errors=_PROTOCOL),
)  # fmt: skip


def _evil(id: str, words: str, path: str) -> Row:
    return Row(
        f"path-{id}", f"the listing has {words}",
        _listing_always(faults.renamed("assets/note.txt", path)),
        must="error", errors=_UNSAFE,
    )  # fmt: skip


def _absolute(stage: Stage) -> None:
    evil = f"{stage.outside}/evil.txt"
    _listing_always(faults.renamed("assets/note.txt", evil))(stage)


PATHS = (
    _evil("up", "`../evil.txt`", "../evil.txt"),
    _evil("up-within", "`assets/../../evil.txt`", "assets/../../evil.txt"),
    Row("path-absolute", "the listing has an absolute path", _absolute, must="error",
        errors=_UNSAFE),
    _evil("drive", "`C:\\evil.txt`", "C:\\evil.txt"),
    _evil("backslash", "`..\\evil.txt`", "..\\evil.txt"),
    _evil("nul", "a NUL in a name", "evil\0.txt"),
    _evil("dot", "a name that ends in a dot", "evil.txt."),
    _evil("space", "a name that ends in a space", "evil.txt "),
    Row(
        "path-case", "the listing has `README.md` and `readme.MD`",
        _listing_always(faults.listed_twice("README.md", "readme.MD")), must="error",
        errors=_UNSAFE,
    ),
    Row("odd-names", "names in Chinese, with spaces, `%`, `#`, `?`, `+`, `&`", files=ODD),
    Row("empty", "files of zero length", files={"a": b"", "b/c": b"", "README.md": b"#"}),
)  # fmt: skip

PLACES = (
    Row("symlink", "a folder inside the target is a symlink to elsewhere",
        scene=scenes.symlinked_folder,
        errors=("TargetExistsError", "UnsafePathError")),
    Row("symlink-later", "… and became one after the first download",
        scene=scenes.symlinked_later, errors=("TargetExistsError", "UnsafePathError")),
    Row("wrong-file", "a wrong file of the same size is at the target already",
        scene=scenes.wrong_file_there, errors=("TargetExistsError",)),
    Row("wrong-file-later", "… or took a file's place after the first download; rerun",
        scene=scenes.wrong_file_later),
    Row("bit-rot", "a bit of the store or cache flips; rerun", scene=scenes.bit_rot),
    Row("kill", "kill -9 in the middle, rerun", scene=scenes.killed_once,
        files=LARGE, within=20, most_sent=1.3),
    Row("kill-50", "kill -9 at random points, 50 times for us and 12 for the others",
        scene=scenes.killed_often, files=LARGE, within=15, slow=True),
    Row("two", "two processes fetch the same repository", scene=scenes.two_processes,
        files=LARGE, within=20),
    Row("disk-small", "the disk has less room than the repository", scene=scenes.small_from_start,
        must="error", errors=("DiskSpaceError",), files=LARGE, needs_mount=True),
    Row("disk-fills", "the disk fills up during the download", scene=scenes.filling_up,
        must="error", errors=("DiskSpaceError",), files=LARGE, within=20, needs_mount=True),
    Row("offline", "the hub is down, the repository cached, and offline use asked for",
        scene=scenes.offline),
    Row("down", "the hub is down, the repository cached, nothing said", scene=scenes.down,
        errors=("HubUnreachableError",), within=30, slow=True),
    Row("many", "10 000 small files", scene=scenes.many_files, within=120, slow=True,
        files={f"part/{i % 100:02d}/{i:05d}.txt": b"%d\n" % i for i in range(10_000)}),
    Row("long-listing", "a listing with 100 000 entries, of which five are wanted",
        scene=scenes.long_listing, within=60, slow=True, files=SMALL),
)  # fmt: skip

ROWS = BYTES + PATHS + PLACES
