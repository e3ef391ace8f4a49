"""What the cameras saw of a demonstration, as pictures in a page."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from html import escape

import numpy as np
from jaxtyping import UInt8

from daps_robot.report.image_plots import encoded

SHOWN_STEPS = 8
"""Pictures of a strip, evenly spread over the demonstration."""


def strips(name: str, images: Mapping[str, UInt8[np.ndarray, "t height width 3"]]) -> str:
    """A row of pictures for each camera, from the first step to the last."""
    return "".join(_strip(name, camera, pictures) for camera, pictures in images.items())


def _strip(name: str, camera: str, pictures: UInt8[np.ndarray, "t height width 3"]) -> str:
    shown = pictures[np.linspace(0, len(pictures) - 1, min(SHOWN_STEPS, len(pictures))).round().astype(int)]
    row = np.concatenate(list(shown), axis=1)
    data = base64.b64encode(encoded(row)).decode()
    caption = escape(f"{camera}, {pictures.shape[1]} × {pictures.shape[2]}, {name}, steps 0 to {len(pictures) - 1}")
    image = f'<img alt="{caption}" style="width:100%" src="data:image/png;base64,{data}">'
    return f"<figure>{image}<figcaption>{caption}</figcaption></figure>"
