"""A contact sheet: one picture of many clips, a few frames of each over its title and caption. Or the frames alone."""

import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from wan_ray.media.image import encode_png

_MAX_FRAMES = 4
_FRAME_HEIGHT = 180
_GAP = 8
_PADDING = 16
_MARGIN = 24
_MIN_TEXT_WIDTH = 320
_MAX_CARD_WIDTH = 1360
_TITLE_SIZE = 19
_CAPTION_SIZE = 16
_MAX_CAPTION_LINES = 4
# Text is drawn this much larger and then reduced: Pillow alone sets letters at whole pixels, unevenly.
_FINE = 4
_BACKGROUND = (22, 24, 29)
_CARD = (36, 39, 47)
_TITLE = (240, 242, 246)
_CAPTION = (172, 178, 190)

# Where systems keep a font with Chinese, and its face for simplified Chinese within the file.
_CJK_FONTS = (
    ("/usr/share/fonts/opentype/noto/NotoSansCJK-Regular.ttc", 2),
    ("/usr/share/fonts/google-noto-cjk/NotoSansCJK-Regular.ttc", 2),
    ("/usr/share/fonts/google-noto-sans-cjk-fonts/NotoSansCJK-Regular.ttc", 2),
    ("/usr/share/fonts/noto-cjk/NotoSansCJK-Regular.ttc", 2),
    ("/usr/share/fonts/truetype/wqy/wqy-microhei.ttc", 0),
    ("/usr/share/fonts/truetype/wqy/wqy-zenhei.ttc", 0),
    ("/usr/share/fonts/truetype/droid/DroidSansFallbackFull.ttf", 0),
    ("/System/Library/Fonts/Hiragino Sans GB.ttc", 0),
    ("/System/Library/Fonts/STHeiti Light.ttc", 0),
    ("C:/Windows/Fonts/msyh.ttc", 0),
)
_STRIP_GAP = 4
_STRIP_QUALITIES = (85, 70, 50, 30)
_UNASSIGNED = "\U0010ffff"
_WORDS = re.compile(r"\s+|[\u2e80-\u9fff\uff00-\uffef]|[^\s\u2e80-\u9fff\uff00-\uffef]+")


@dataclass(frozen=True, kw_only=True)
class SheetEntry:
    """One clip: its title, caption lines (wrapped when long), and all or some of its frames, uint8 [H,W,3]."""

    title: str
    lines: Sequence[str]
    frames: Sequence[np.ndarray]


@dataclass(frozen=True, kw_only=True)
class _Text:
    text: str
    font: ImageFont.FreeTypeFont
    color: tuple[int, int, int]
    line_height: int


@dataclass(frozen=True, kw_only=True)
class _Card:
    frames: list[Image.Image]
    texts: list[_Text]
    width: int
    height: int


def contact_sheet(entries: Sequence[SheetEntry]) -> bytes:
    """A PNG of all entries in their order, each with up to four frames evenly spaced over those given.

    Text that no font on this machine can draw is left out and said to be, rather than drawn as boxes.
    """
    rows = _in_rows([_card(entry) for entry in entries])
    width = max((_row_width(row) for row in rows), default=0) + 2 * _MARGIN
    height = sum(_row_height(row) + _MARGIN for row in rows) + _MARGIN
    sheet = Image.new("RGB", (width, height), _BACKGROUND)
    y = _MARGIN
    for row in rows:
        x = _MARGIN
        for card in row:
            _draw_(sheet, card, x=x, y=y, height=_row_height(row))
            x += card.width + _MARGIN
        y += _row_height(row) + _MARGIN
    return encode_png(np.asarray(sheet))


def frame_strip(frames: Sequence[np.ndarray], *, height: int, max_bytes: int) -> bytes:
    """A JPEG of up to four of the frames side by side, at most so high and so large: coarser, then smaller, till it is.

    Frames are uint8 [H,W,3], at least one.
    """
    while True:
        shown = _scaled([frames[i] for i in _evenly_spaced(len(frames))], height)
        x, strip = 0, Image.new("RGB", (sum(f.width + _STRIP_GAP for f in shown) - _STRIP_GAP, shown[0].height))
        for frame in shown:
            strip.paste(frame, (x, 0))
            x += frame.width + _STRIP_GAP
        for quality in _STRIP_QUALITIES:
            buffer = io.BytesIO()
            strip.save(buffer, format="JPEG", quality=quality)
            if buffer.tell() <= max_bytes or height <= 16:
                return buffer.getvalue()
        height //= 2


def _card(entry: SheetEntry) -> _Card:
    frames = _scaled([entry.frames[i] for i in _evenly_spaced(len(entry.frames))], _FRAME_HEIGHT)
    text_width = max(_strip_width(frames), _MIN_TEXT_WIDTH)
    texts = _wrapped([entry.title], size=_TITLE_SIZE, color=_TITLE, width=text_width, max_lines=1)
    texts += _wrapped(entry.lines, size=_CAPTION_SIZE, color=_CAPTION, width=text_width, max_lines=_MAX_CAPTION_LINES)
    picture_height = frames[0].height + _GAP if frames else 0
    height = 2 * _PADDING + picture_height + sum(text.line_height for text in texts)
    return _Card(frames=frames, texts=texts, width=text_width + 2 * _PADDING, height=height)


def _evenly_spaced(num_frames: int) -> list[int]:
    """Indices of the first frame, the last, and what lies between at equal steps."""
    num_shown = min(num_frames, _MAX_FRAMES)
    return [round(i * (num_frames - 1) / max(num_shown - 1, 1)) for i in range(num_shown)]


def _scaled(frames: list[np.ndarray], max_height: int) -> list[Image.Image]:
    """The frames at one common height, lower than asked where the strip would be wider than the page."""
    widths = sum(frame.shape[1] / frame.shape[0] for frame in frames)
    room = _MAX_CARD_WIDTH - 2 * _PADDING - _GAP * (len(frames) - 1)
    height = int(min(max_height, room / widths)) if frames else 0
    return [
        Image.fromarray(frame).resize(
            (max(1, round(height * frame.shape[1] / frame.shape[0])), max(1, height)), Image.Resampling.LANCZOS
        )
        for frame in frames
    ]


def _strip_width(frames: list[Image.Image]) -> int:
    return sum(frame.width for frame in frames) + _GAP * max(len(frames) - 1, 0)


def _in_rows(cards: list[_Card]) -> list[list[_Card]]:
    rows: list[list[_Card]] = []
    for card in cards:
        if rows and _row_width([*rows[-1], card]) <= _MAX_CARD_WIDTH:
            rows[-1].append(card)
        else:
            rows.append([card])
    return rows


def _row_width(row: list[_Card]) -> int:
    return sum(card.width for card in row) + _MARGIN * (len(row) - 1)


def _row_height(row: list[_Card]) -> int:
    return max(card.height for card in row)


def _draw_(sheet: Image.Image, card: _Card, *, x: int, y: int, height: int) -> None:
    right, bottom = x + card.width - 1, y + height - 1
    ImageDraw.Draw(sheet).rounded_rectangle((x, y, right, bottom), radius=10, fill=_CARD)
    x, y = x + _PADDING, y + _PADDING
    left = x
    for frame in card.frames:
        sheet.paste(frame, (left, y))
        left += frame.width + _GAP
    if card.frames:
        y += card.frames[0].height + _GAP
    for text in card.texts:
        sheet.paste(text.color, (x, y), _mask(text, card.width - 2 * _PADDING))
        y += text.line_height


def _mask(text: _Text, width: int) -> Image.Image:
    large = Image.new("L", (width * _FINE, text.line_height * _FINE))
    middle = (0, large.height // 2)
    ImageDraw.Draw(large).text(middle, text.text, font=text.font, fill=255, anchor="lm")
    return large.resize((width, text.line_height), Image.Resampling.BOX)


def _wrapped(
    paragraphs: Sequence[str], *, size: int, color: tuple[int, int, int], width: int, max_lines: int
) -> list[_Text]:
    """The paragraphs as lines no wider than `width`; the last one ends in dots when there is more than max_lines."""
    lines: list[tuple[str, ImageFont.FreeTypeFont]] = []
    for paragraph in paragraphs:
        text, font = _drawable(paragraph, size)
        lines += [(line, font) for line in _lines(text, font, width)]
    if len(lines) > max_lines:
        last, font = lines[max_lines - 1]
        while last and _width(last + "...", font) > width:
            last = last[:-1]
        lines = [*lines[: max_lines - 1], (last.rstrip() + "...", font)]
    return [_Text(text=text, font=font, color=color, line_height=round(size * 1.5)) for text, font in lines]


def _lines(text: str, font: ImageFont.FreeTypeFont, width: int) -> list[str]:
    """The text broken between words, between any two Chinese characters, and inside a word wider than a line."""
    lines = [""]
    for word in _WORDS.findall(text):
        pieces = [word] if _width(word, font) <= width else list(word)
        for piece in pieces:
            if _width(lines[-1] + piece, font) > width:
                lines.append("")
            lines[-1] += piece if lines[-1] else piece.lstrip()
    return [line.rstrip() for line in lines if line.strip()]


def _width(text: str, font: ImageFont.FreeTypeFont) -> float:
    return font.getlength(text) / _FINE


def _drawable(text: str, size: int) -> tuple[str, ImageFont.FreeTypeFont]:
    """What one font can draw of the text, and that font; a note when it is less than half."""
    fonts = _fonts(size)
    shown = [_without_missing(text, font) for font in fonts]
    best = max(range(len(fonts)), key=lambda i: len(shown[i]))
    if 2 * len(shown[best]) < len(text):
        return "(text in a script that no font here draws)", fonts[0]
    return shown[best], fonts[best]


def _fonts(size: int) -> list[ImageFont.FreeTypeFont]:
    """Pillow's own Latin font, which is always there, then what Chinese ones this machine has, _FINE times `size`."""
    found = [ImageFont.truetype(path, size * _FINE, index) for path, index in _CJK_FONTS if Path(path).exists()]
    return [cast(ImageFont.FreeTypeFont, ImageFont.load_default(size * _FINE)), *found]


def _without_missing(text: str, font: ImageFont.FreeTypeFont) -> str:
    """The text without the characters for which the font draws its placeholder box."""
    box = _pixels(font, _UNASSIGNED)
    missing = {char for char in set(text) if not char.isspace() and _pixels(font, char) == box}
    return "".join(char for char in text if char not in missing)


def _pixels(font: ImageFont.FreeTypeFont, text: str) -> bytes:
    return bytes(cast(bytes, font.getmask(text)))  # Pillow's stubs do not know that its core images are buffers
