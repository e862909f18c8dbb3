"""The fonts of scenes: the one that every Pillow carries, and Debian's where installed.

One font teaches one font, so training prints in many; a few families are never trained on, to show
what reading is worth in a font nobody has seen. `portable` scenes use the built-in bitmap font
only, enlarged by whole pixels: unlike FreeType's outlines it is the same on every machine.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

FOLDER = Path("/usr/share/fonts")


@dataclass(frozen=True, slots=True)
class Face:
    """A font file of a Debian package; without a path the bitmap font in Pillow."""

    name: str
    package: str = ""
    path: str = ""

    @property
    def installed(self) -> bool:
        return not self.path or (FOLDER / self.path).is_file()


BITMAP = Face("Pillow bitmap")


def _faces(package: str, folder: str, *names: str) -> tuple[Face, ...]:
    found = (name.rpartition(".")[0] for name in names)
    return tuple(
        Face(stem, package, f"{folder}/{name}") for stem, name in zip(found, names, strict=True)
    )


_TRAINED = (
    *_faces("fonts-dejavu-core", "truetype/dejavu", "DejaVuSans.ttf", "DejaVuSans-Bold.ttf",
            "DejaVuSansMono.ttf", "DejaVuSansMono-Bold.ttf", "DejaVuSerif.ttf",
            "DejaVuSerif-Bold.ttf"),
    *_faces("fonts-dejavu-extra", "truetype/dejavu", "DejaVuSansCondensed-Bold.ttf",
            "DejaVuSerifCondensed.ttf"),
    *_faces("fonts-liberation", "truetype/liberation", "LiberationSans-Regular.ttf",
            "LiberationSans-Bold.ttf", "LiberationSerif-Regular.ttf", "LiberationSerif-Bold.ttf",
            "LiberationMono-Bold.ttf", "LiberationSansNarrow-Bold.ttf"),
    *_faces("fonts-freefont-ttf", "truetype/freefont", "FreeSans.ttf", "FreeSansBold.ttf",
            "FreeSerifBold.ttf", "FreeMonoBold.ttf"),
    *_faces("fonts-lato", "truetype/lato", "Lato-Regular.ttf", "Lato-Black.ttf"),
    *_faces("fonts-open-sans", "truetype/open-sans", "OpenSans-Regular.ttf", "OpenSans-Bold.ttf"),
    *_faces("fonts-roboto-unhinted", "truetype/roboto/unhinted/RobotoTTF", "Roboto-Medium.ttf",
            "Roboto-Black.ttf"),
    *_faces("fonts-firacode", "truetype/firacode", "FiraCode-Medium.ttf"),
    *_faces("fonts-inconsolata", "truetype/inconsolata", "Inconsolata.otf"),
    *_faces("fonts-urw-base35", "opentype/urw-base35", "C059-Bold.otf", "NimbusRoman-Bold.otf",
            "P052-Bold.otf", "URWBookman-Demi.otf"),
    *_faces("fonts-quicksand", "truetype/quicksand", "Quicksand-Bold.ttf"),
)  # fmt: skip
_UNSEEN = (
    *_faces("fonts-crosextra-carlito", "truetype/crosextra", "Carlito-Bold.ttf"),
    *_faces("fonts-crosextra-caladea", "truetype/crosextra", "Caladea-Bold.ttf"),
    *_faces("fonts-cantarell", "opentype/cantarell", "Cantarell-Bold.otf"),
    *_faces("fonts-hack", "truetype/hack", "Hack-Bold.ttf"),
    *_faces("fonts-linuxlibertine", "opentype/linux-libertine", "LinLibertine_RB.otf"),
    *_faces("fonts-comfortaa", "truetype/comfortaa", "Comfortaa-Bold.ttf"),
)
_CHINESE = (
    *_faces("fonts-wqy-zenhei", "truetype/wqy", "wqy-zenhei.ttc"),
    *_faces("fonts-wqy-microhei", "truetype/wqy", "wqy-microhei.ttc"),
    *_faces("fonts-droid-fallback", "truetype/droid", "DroidSansFallbackFull.ttf"),
)


@functools.cache
def trained_faces() -> tuple[Face, ...]:
    """Every font to train on that is installed here; the bitmap font always is."""
    return (BITMAP, *(face for face in _TRAINED if face.installed))


@functools.cache
def unseen_faces() -> tuple[Face, ...]:
    """Installed fonts that no training scene uses."""
    return tuple(face for face in _UNSEEN if face.installed)


@functools.cache
def chinese_faces() -> tuple[Face, ...]:
    """Installed fonts with Chinese glyphs; often none."""
    return tuple(face for face in _CHINESE if face.installed)


@dataclass(frozen=True, slots=True)
class Line:
    """A printed line: its ink as a mask, and each character's span (left, right) in its pixels."""

    mask: Image.Image  # mode "L"
    spans: tuple[tuple[int, int], ...]


def set_line(text: str, face: Face, *, height: int, pitch: int, gap: int) -> Line:
    """Set a line character by character, without kerning, cut to its ink.

    Args:
        text: what to print.
        face: the font.
        height: of the capitals, in pixels; the bitmap font takes the nearest whole zoom.
        pitch: characters start at least so many pixels apart.
        gap: pixels between two characters.
    """
    masks = [_glyph(character, face, height) for character in text]
    left, starts, spans = 0, [], []
    for mask, _ in masks:
        spare = max(pitch - mask.width - gap, 0) // 2
        starts.append(left + spare)
        ink = mask.getbbox() or (0, 0, mask.width, mask.height)  # without the side bearings
        spans.append((left + spare + ink[0], left + spare + ink[2]))
        left += max(mask.width + gap, pitch)
    top = min(top for _, top in masks)
    bottom = max(top + mask.height for mask, top in masks)
    line = Image.new("L", (left, bottom - top))
    for (mask, place), start in zip(masks, starts, strict=True):
        line.paste(mask, (start, place - top))
    first, last = spans[0][0], spans[-1][1]
    cut = line.crop((first, 0, last, line.height))
    return Line(cut, tuple((start - first, stop - first) for start, stop in spans))


@functools.lru_cache(maxsize=8192)
def _glyph(character: str, face: Face, height: int) -> tuple[Image.Image, int]:
    """A character's ink and how far it lies above the common base line (negative: above)."""
    if not face.path:
        return _bitmap_glyph(character, height)
    font = _font(face.path, _em(face.path, height))
    left, top, right, bottom = (int(edge) for edge in font.getbbox(character, anchor="ls"))
    mask = Image.new("L", (max(right - left, 1), max(bottom - top, 1)))
    ImageDraw.Draw(mask).text((-left, -top), character, fill=255, font=font, anchor="ls")
    return mask, top


def _bitmap_glyph(character: str, height: int) -> tuple[Image.Image, int]:
    font = ImageFont.load_default_imagefont()
    _, _, width, tall = font.getbbox(character)
    mask = Image.new("1", (int(width), int(tall)))
    ImageDraw.Draw(mask).text((0, 0), character, fill=1, font=font)
    bounds = mask.getbbox() or (0, 0, 1, 1)
    ink = mask.convert("L").crop(bounds)
    zoom = max(1, round(height / _BITMAP_CAPITAL))
    ink = ink.resize((ink.width * zoom, ink.height * zoom), Image.Resampling.NEAREST)
    return ink, (bounds[1] - _BITMAP_BASE) * zoom


_BITMAP_CAPITAL, _BITMAP_BASE = 7, 9  # rows of its capitals, and where they end


@functools.lru_cache(maxsize=256)
def _font(path: str, em: int) -> ImageFont.FreeTypeFont:
    # the plain layout engine: characters stand alone here, and raqm is not in every Pillow
    return ImageFont.truetype(FOLDER / path, em, layout_engine=ImageFont.Layout.BASIC)


@functools.lru_cache(maxsize=1024)
def _em(path: str, height: int) -> int:
    """The font size whose capitals are `height` pixels high."""
    probe = _font(path, 100)
    sample = "H" if probe.getlength("H") else "中"
    _, top, _, bottom = probe.getbbox(sample, anchor="ls")
    return max(8, round(100 * height / max(bottom - top, 1)))


def record(faces: Sequence[Face]) -> list[dict[str, str]]:
    """What a training or evaluation record says about its fonts."""
    return [{"name": face.name, "package": face.package or "pillow"} for face in faces]
