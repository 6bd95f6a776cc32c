"""How the demo's images were made; the demo itself does not run this.

Needs scikit-image (its bundled photos) and the folder ``png/tools`` of Debian's package openclipart-png:
``apt-get download openclipart-png && dpkg-deb -x openclipart-png_*.deb clip``.
Run: ``python examples/make_images.py clip/usr/share/openclipart/png/tools``.
"""

from __future__ import annotations

import sys
from pathlib import Path

import skimage
from PIL import Image

PHOTOS = Path(skimage.__file__).parent / "data"
OUT = Path(__file__).parent / "images"
MARGIN = 40
LONGEST_SIDE = 512


def photo(name: str) -> Image.Image:
    return Image.open(PHOTOS / name).convert("RGB")


def drawing(path: Path) -> Image.Image:
    """A drawing without its transparent border."""
    image = Image.open(path).convert("RGBA")
    return image.crop(image.getbbox())


def on_white(image: Image.Image) -> Image.Image:
    image = image.copy()
    image.thumbnail((LONGEST_SIDE, LONGEST_SIDE))
    sheet = Image.new("RGB", (image.width + 2 * MARGIN, image.height + 2 * MARGIN), "white")
    sheet.paste(image, (MARGIN, MARGIN), image)
    return sheet


def with_object(scene: Image.Image, item: Image.Image, width: float, place: tuple[float, float]) -> Image.Image:
    """The scene with an object on it.

    Args:
        scene: RGB image.
        item: RGBA image.
        width: Of the object, as a share of the scene's.
        place: Of the object between the scene's left and right, top and bottom edges, 0 to 1.
    """
    scale = width * scene.width / item.width
    item = item.resize((int(item.width * scale), int(item.height * scale)), Image.Resampling.LANCZOS)
    left, top = int(place[0] * (scene.width - item.width)), int(place[1] * (scene.height - item.height))
    result = scene.copy()
    result.paste(item, (left, top), item)
    return result


def main(tools: Path) -> None:
    pistol = drawing(tools / "weapons" / "9_mm_gun_01.png")
    photo("chelsea.png").save(OUT / "cat.jpg", quality=88)
    photo("coffee.png").save(OUT / "coffee.jpg", quality=88)
    photo("camera.png").save(OUT / "photographer.jpg", quality=88)
    on_white(drawing(tools / "drill_peterm_.png")).save(OUT / "drill.png", optimize=True)
    with_object(photo("coffee.png"), pistol, 0.4, (0.9, 0.95)).save(OUT / "coffee_and_pistol.jpg", quality=88)
    on_white(drawing(tools / "weapons" / "m16_02.png")).save(OUT / "rifle.png", optimize=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
