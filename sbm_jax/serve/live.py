"""Pictures that are asked about now: which units they drive, and which voxels those predict."""

from __future__ import annotations

import base64
import hashlib
import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image

from sbm_jax.images.sources import open_bytes, open_image
from sbm_jax.serve import data_cortex, data_maps
from sbm_jax.serve.answers import Refused
from sbm_jax.serve.data_units import cards
from sbm_jax.serve.library import Library
from sbm_jax.serve.predict import by_region, predicted_map
from sbm_jax.serve.query import Words
from sbm_jax.serve.thumbs import jpeg, seen

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP")
MOST_PIXELS = 40_000_000
UPLOADS = 24  # pictures that were sent and are kept in memory
SHOWN_SIDE = 384


class Live:
    """What needs the backbone. It is loaded when it is first asked for; one thread computes at a time."""

    def __init__(self, lib: Library):
        self.lib = lib
        self._lock = threading.Lock()
        self._engine: Any = None
        self._uploads: OrderedDict[str, Image.Image] = OrderedDict()

    def work(self, task: Callable[[Any], Any]) -> Any:
        """`task(engine)` while no other thread computes."""
        with self._lock:
            if self._engine is None:
                from sbm_jax.serve.live_engine import Engine

                self._engine = Engine(self.lib)
            return task(self._engine)

    def answers(self) -> dict[str, Callable[[Words], Any]]:
        from sbm_jax.serve.live_edits import edit_answers

        return {
            "/api/picture": self.picture,
            "/api/predict": self.predict,
            "/api/cards": self.cards,
            "/api/warm": self.warm,
            **edit_answers(self),
        }

    def warm(self, words: Words) -> dict[str, Any]:
        """Load the backbone and compile, so that the first click need not wait for it. edits: the programs of edits too."""
        side, edits = self.lib.ctx.facts.backbone.image_size, words.has("edits")
        self.work(lambda engine: engine.warm(np.zeros((side, side, 3), np.uint8), edits))
        return {"warm": True}

    # Pictures --------------------------------------------------------------------------------------------------------

    def upload(self, data: bytes) -> dict[str, Any]:
        """Keep a picture in memory for a while; its name is its hash. Raises UserError for what is no picture."""
        picture = seen(self.lib, open_bytes(data, FORMATS, MOST_PIXELS))
        name = hashlib.sha256(data).hexdigest()[:32]
        with self._lock:
            self._uploads[name] = picture
            while len(self._uploads) > UPLOADS:
                self._uploads.popitem(last=False)
        return {"picture": name}

    def chosen(self, words: Words) -> Image.Image:
        """The picture of a request: `image`, a row of the stimuli, or `picture`, one that was sent."""
        if words.has("picture"):
            with self._lock:
                found = self._uploads.get(words.text("picture"))
            if found is None:
                raise Refused(404, "this picture is not kept any more; choose the file again")
            return found
        row = words.whole("image")
        if row >= len(self.lib.images.sources):
            raise Refused(404, f"there are the pictures 0 to {len(self.lib.images.sources) - 1}")
        return open_image(self.lib.images.sources[row])

    def picture(self, words: Words) -> dict[str, Any]:
        """Codes of all tokens of a picture in one dictionary, and the picture as the backbone sees it."""
        kind, hook = words.text("kind"), words.text("hook")
        self.lib.unit_key(kind, hook, 0)
        picture = self.chosen(words)
        codes = self.work(lambda engine: engine.codes(engine.pixels(picture)))[kind, hook]
        shown = seen(self.lib, picture) if not words.has("picture") else picture
        out = {"kind": kind, "hook": hook, "values": codes.values, "units": codes.units}
        out["grid"] = round(len(codes.values) ** 0.5) if kind == "patch" else 0
        out["shown"] = "data:image/jpeg;base64," + base64.b64encode(jpeg(shown, SHOWN_SIDE)).decode("ascii")
        if words.has("image"):
            row, images = words.whole("image"), self.lib.images
            labels = {name: values[row] for name, values in images.labels.items() if values[row] > 0}
            out |= {
                "id": images.ids[row],
                "caption": images.captions[row],
                "labels": labels,
                "shared": images.shared[row],
            }
        return out

    def cards(self, words: Words) -> list[dict[str, Any]]:
        """Some units of one dictionary, by number."""
        kind, hook = words.text("kind"), words.text("hook")
        units = numbers(words.text("units"))
        if len(units) > 24:
            raise Refused(400, "at most 24 units at once")
        keys = [self.lib.unit_key(kind, hook, unit) for unit in units]
        mode = words.text("mode", self.lib.modes_of(kind)[0])
        if mode not in self.lib.modes_of(kind):
            raise Refused(404, f"{mode!r} are no codes of {kind} tokens")
        return cards(
            self.lib,
            kind,
            mode,
            np.array([layer * width + u for (layer, width), u in zip(keys, units, strict=True)], int),
        )

    def predict(self, words: Words) -> dict[str, Any]:
        """What the best unit of every voxel says of its response to a picture, or to some of its patches."""
        subject, mode = self.lib.subject(words.text("subject")).name, words.text("mode")
        if not any(mode in self.lib.modes_of(kind) for kind in self.lib.kinds):
            raise Refused(404, f"{mode!r} are no codes of a dictionary")
        patches = np.array(numbers(words.text("patches")), int) if words.has("patches") else None
        if patches is not None and patches.max(initial=0) >= self.lib.ctx.facts.backbone.n_patches:
            raise Refused(404, "there are not so many patches")
        picture = self.chosen(words)
        code = self.work(lambda engine: engine.pooled(engine.codes(engine.pixels(picture)), mode, patches))
        layer = predicted_map(self.lib, subject, mode, code, part=patches is not None)
        out: dict[str, Any] = {"regions": by_region(self.lib, subject, layer.values), "note": layer.note}
        if not data_maps.why_unplaced(self.lib, subject):
            out["map"] = data_cortex.packed(data_maps.on_cortex(self.lib, subject, layer), "predicted")
        return out


def numbers(text: str) -> list[int]:
    """`3,17` -> [3, 17]. Raises Refused for anything else."""
    parts = text.split(",")
    if not all(part.isascii() and part.isdigit() and len(part) < 8 for part in parts):
        raise Refused(400, f"expected whole numbers with commas between them, not {text[:40]!r}")
    return sorted({int(part) for part in parts})
