"""Pictures as the page shows them: small JPEGs made when asked for, kept while there is room."""

from __future__ import annotations

import io
from pathlib import Path, PurePosixPath

from PIL import Image

from sbm_jax.images.sources import ImageSource, open_image
from sbm_jax.serve.answers import Refused
from sbm_jax.serve.library import Kept, Library

SIDES = (64, 128, 256, 512)
_KEPT_BYTES = 64 << 20


class Thumbs:
    """JPEGs of the stimuli and of the probe set, by row: the part of each picture that people and models saw."""

    def __init__(self, lib: Library):
        self.lib = lib
        self.kept = Kept(_KEPT_BYTES)

    def jpeg(self, which: str, row: int, side: int) -> bytes:
        """which: stimuli or probe. Raises Refused for a row or side that does not exist, UserError for an unreadable picture."""
        if side not in SIDES:
            raise Refused(404, f"sides are {', '.join(map(str, SIDES))}")
        return self.kept.get(
            (which, row, side), lambda: jpeg(seen(self.lib, open_image(self.source(which, row))), side), len
        )

    def source(self, which: str, row: int) -> ImageSource:
        if which == "probe":
            folder, ids = probe_folder(self.lib)
            if folder is not None:
                _in_range(row, len(ids))
                name = PurePosixPath(ids[row])
                if name.is_absolute() or ".." in name.parts:
                    raise Refused(404, "this name leads out of the folder of the probe set")
                return folder / name
        elif which != "stimuli":
            raise Refused(404, "pictures are those of `stimuli` or `probe`")
        _in_range(row, len(self.lib.images.ids))
        return self.lib.images.sources[row]


def _in_range(row: int, count: int) -> None:
    if not 0 <= row < count:
        raise Refused(404, f"there are the pictures 0 to {count - 1}")


def probe_folder(lib: Library) -> tuple[Path | None, list[str]]:
    """The folder of the probe set and the names of its pictures; None where the stimuli are the probe set."""
    store = lib.optional("exemplars")
    if store is None:
        return None, []

    def read() -> tuple[Path | None, list[str]]:
        probe = store.json("probe.json")
        return (Path(probe["folder"]).expanduser(), list(probe["ids"])) if probe["kind"] == "folder" else (None, [])

    return lib.kept.get((store.name, "probe"), read, lambda found: 100 * len(found[1]))


def seen(lib: Library, picture: Image.Image) -> Image.Image:
    """The square that the backbone sees, so that patches lie where they are drawn; at the picture's own resolution if it can."""
    geometry, facts = lib.ctx.config.extract.geometry, lib.ctx.facts.backbone
    if geometry == "processor":
        from sbm_jax.backbones.folder import read_preprocessor
        from sbm_jax.images.processor import processor

        return Image.fromarray(
            processor(read_preprocessor(Path(facts.path), facts.family), facts.image_size, facts.family)(picture)
        )
    if geometry == "stretch":
        long = max(picture.size)
        return picture.resize((long, long), Image.Resampling.BICUBIC)
    short = min(picture.size)
    left, top = (picture.width - short) // 2, (picture.height - short) // 2
    return picture.crop((left, top, left + short, top + short))


def jpeg(picture: Image.Image, side: int) -> bytes:
    """A JPEG of side x side pixels at most."""
    picture = picture.copy()
    picture.thumbnail((side, side), Image.Resampling.LANCZOS)
    stream = io.BytesIO()
    picture.save(stream, "JPEG", quality=88)
    return stream.getvalue()
