"""The pictures of the tutorial: each Graphviz source drawn into a PNG beside it, in one look.

    make pictures

A picture carries the digest of its source and the look, so that a test can tell whether it is older
than these, whatever the dates of the files and the version of Graphviz.
"""

import hashlib
import io
import subprocess
import sys
from pathlib import Path

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from testbed.terminal import REPOSITORY

LOOK = REPOSITORY / "tools" / "look.gvpr"
SOURCES = sorted(REPOSITORY.glob("part_*/*.dot"))

# In pixels, and the same for all, so that a page that fits them to its width shows all at one
# scale. It is twice the width of a README, for screens with two pixels to a point.
_WIDTH = 1680


def digest(source: Path) -> str:
    """Return the SHA-256 of a source and the look, in hexadecimal digits."""
    return hashlib.sha256(LOOK.read_bytes() + source.read_bytes()).hexdigest()


def save(image: Image.Image, picture: Path, **texts: str) -> None:
    """Save an image as a PNG of 256 colours that carries the texts; `carried` returns one."""
    information = PngInfo()
    for key, text in texts.items():
        information.add_text(key, text)
    image.convert("RGB").quantize(256).save(picture, optimize=True, pnginfo=information)


def carried(picture: Path, key: str) -> str | None:
    """Return the text that a picture carries under the key, or None if there is none."""
    with Image.open(picture) as image:
        return image.info.get(key)


def draw(source: Path) -> None:
    """Draw a source into the PNG of its name.

    Raises:
        ValueError: Graphviz finds fault with it, or it is too wide. The text says which.
    """
    styled = _graphviz("gvpr", "-c", "-f", str(LOOK), str(source))
    drawn = _graphviz("dot", "-T", "png", given=styled)
    with Image.open(io.BytesIO(drawn)) as image:
        if image.width > _WIDTH:
            raise ValueError(f"{image.width} pixels wide, more than {_WIDTH}")
        page = Image.new("RGB", (_WIDTH, image.height), "white")
        page.paste(image, ((_WIDTH - image.width) // 2, 0))
    save(page, source.with_suffix(".png"), digest=digest(source))


def _graphviz(*command: str, given: bytes = b"") -> bytes:
    done = subprocess.run(command, input=given, capture_output=True, check=False)
    if done.returncode or done.stderr:  # where it finds a fault it may go on all the same
        raise ValueError(done.stderr.decode())
    return done.stdout


def main() -> None:
    """Draw all pictures; exit with 1 where one cannot be drawn."""
    for source in SOURCES:
        name = source.relative_to(REPOSITORY)
        try:
            draw(source)
        except ValueError as error:
            sys.exit(f"{name}: {error}")
        print(name.with_suffix(".png"))


if __name__ == "__main__":
    main()
