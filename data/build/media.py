"""A few tiny pictures and sounds for the lesson on column types, each with a caption."""

from __future__ import annotations

import csv
import math
import struct
import wave
from pathlib import Path

from PIL import Image, ImageDraw

SIZE = 48
PICTURES = [
    ("kettle.png", "a red kettle", (190, 40, 40), "kettle"),
    ("parcel.png", "a brown parcel", (150, 105, 60), "parcel"),
    ("lamp.png", "a yellow lamp", (225, 180, 30), "lamp"),
    ("mug.png", "a blue mug", (40, 80, 170), "mug"),
]
RATE = 8000  # samples a second
SOUNDS = [
    ("doorbell.wav", "a doorbell, two notes", [(660, 0.25), (520, 0.35)]),
    ("hold.wav", "music on hold, three notes", [(392, 0.2), (494, 0.2), (587, 0.2)]),
    ("dial.wav", "a dial tone", [(425, 0.6)]),
]


def _draw(shape: str, colour: tuple[int, int, int]) -> Image.Image:
    image = Image.new("RGB", (SIZE, SIZE), (245, 245, 240))
    pen = ImageDraw.Draw(image)
    if shape == "parcel":
        pen.rectangle((9, 14, 39, 38), fill=colour)
        pen.line((24, 14, 24, 38), fill=(225, 200, 160), width=4)
    elif shape == "lamp":
        pen.polygon([(16, 8), (32, 8), (40, 24), (8, 24)], fill=colour)
        pen.line((24, 24, 24, 40), fill=(70, 70, 70), width=3)
        pen.line((14, 41, 34, 41), fill=(70, 70, 70), width=3)
    elif shape == "mug":
        pen.rectangle((10, 12, 32, 40), fill=colour)
        pen.arc((26, 17, 42, 33), -90, 90, fill=colour, width=4)
    else:
        pen.ellipse((10, 16, 36, 42), fill=colour)
        pen.arc((14, 6, 32, 26), 180, 360, fill=(70, 70, 70), width=3)
        pen.polygon([(34, 22), (45, 16), (36, 30)], fill=colour)
    return image


def _tone(notes: list[tuple[int, float]]) -> bytes:
    """Return 16-bit samples of the notes, each fading out."""
    samples = []
    for pitch, seconds in notes:
        count = int(RATE * seconds)
        for i in range(count):
            level = 9000 * (1 - i / count) * math.sin(2 * math.pi * pitch * i / RATE)
            samples.append(round(level))
    return struct.pack(f"<{len(samples)}h", *samples)


def _write_metadata(folder: Path, rows: list[tuple[str, str]]) -> None:
    with (folder / "metadata.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("file_name", "text"))
        writer.writerows(rows)


def make_columns(folder: Path) -> None:
    """Write the pictures and sounds, each folder with the metadata file that `datasets` reads."""
    images, sounds = folder / "images", folder / "sounds"
    for path in (images, sounds):
        path.mkdir(parents=True, exist_ok=True)
    for name, _, colour, shape in PICTURES:
        _draw(shape, colour).save(images / name)
    _write_metadata(images, [(name, text) for name, text, _, _ in PICTURES])
    for name, _, notes in SOUNDS:
        with wave.open(str(sounds / name), "wb") as file:
            file.setnchannels(1)
            file.setsampwidth(2)
            file.setframerate(RATE)
            file.writeframes(_tone(notes))
    _write_metadata(sounds, [(name, text) for name, text, _ in SOUNDS])
