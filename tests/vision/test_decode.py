# SPDX-License-Identifier: Apache-2.0
"""Every kind of image becomes the right bytes, and a broken one is named."""

from __future__ import annotations

import io
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from shared_scripts.arguments import InputError
from tests.vision.conftest import picture, png
from vision_scripts import decode
from vision_scripts.decode import decode_all, mean_and_std
from vision_scripts.part import Source


def read(image: Image.Image, channels: int = 3, size: int | None = None) -> np.ndarray:
    """Return an image after a file, (H, W, C)."""
    found = decode_all([Source("x", lambda: png(image))], size, channels)
    return found[0].permute(1, 2, 0).numpy()


GREY = np.array([[0, 100], [200, 255]], dtype=np.uint8)


def palette() -> Image.Image:
    image = Image.fromarray(GREY // 100).convert("P")
    image.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90])
    return image


def transparent() -> Image.Image:
    rgba = np.dstack([GREY, GREY, GREY, np.array([[0, 255], [255, 0]], dtype=np.uint8)])
    return Image.fromarray(rgba)


def see_through_palette() -> Image.Image:
    image = palette()
    image.info["transparency"] = 0
    return image


CASES = {
    "grey": (Image.fromarray(GREY), GREY),
    "one bit": (Image.fromarray(GREY > 150), np.where(GREY > 150, 255, 0)),
    "16 bits": (Image.fromarray(GREY.astype(np.uint16) * 257), GREY),
    "palette": (palette(), np.array([[10, 40], [70, 70]])),
    "rgba": (transparent(), np.array([[255, 100], [200, 255]])),
    "la": (transparent().convert("LA"), np.array([[255, 100], [200, 255]])),
    "clear palette": (see_through_palette(), np.array([[255, 40], [70, 70]])),
}


@pytest.mark.parametrize("kind", CASES)
def test_every_mode_becomes_the_right_bytes(kind: str) -> None:
    image, red = CASES[kind]
    assert np.array_equal(read(image)[..., 0], red)
    assert read(image).shape == (2, 2, 3)
    if "palette" not in kind:
        assert np.array_equal(read(image, channels=1)[..., 0], red)


def test_numbers_without_a_range_are_refused() -> None:
    image = Image.fromarray(np.array([[0, 70_000]], dtype=np.int32))
    buffer = io.BytesIO()
    image.save(buffer, "TIFF")
    with pytest.raises(InputError, match="f.tif: .* no fixed range; save it with 16 bits"):
        decode_all([Source("f.tif", buffer.getvalue)], None, 1)


def test_a_photo_lies_as_its_camera_says() -> None:
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    buffer = io.BytesIO()
    Image.fromarray(GREY).save(buffer, "PNG", exif=exif)
    found = decode_all([Source("x", buffer.getvalue)], None, 1)
    assert np.array_equal(found[0, 0].numpy(), GREY[::-1, ::-1])


def test_another_size_is_resized_by_its_short_side_and_cut() -> None:
    wide = np.zeros((4, 12), dtype=np.uint8)
    wide[:, 4:8] = 200
    assert np.array_equal(read(Image.fromarray(wide), 1)[..., 0], np.full((4, 4), 200))
    assert read(Image.fromarray(wide), 1, size=2).shape == (2, 2, 1)


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (png(picture(1))[:-30], "truncated"),
        (b"no image", "its format is unknown"),
        (b"", "its format is unknown"),
    ],
)
def test_an_unreadable_image_is_named(content: bytes, why: str) -> None:
    sources = [Source("a.parquet, row 1", lambda: png(picture(0)))]
    sources.append(Source("a.parquet, row 2", lambda: content))
    message = f"a.parquet, row 2: cannot be read as an image: .*{why}; mend it or take it out"
    with pytest.raises(InputError, match=message):
        decode_all(sources, None, 3)


def test_channels_that_images_do_not_have() -> None:
    with pytest.raises(InputError, match="num_channels=2: images have 1 channel .* or 3"):
        read(picture(0), channels=2)


def test_the_first_image_decides_the_size_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    sources = [Source("x", partial(png, picture(0, side))) for side in (4, 4, 8)]
    assert decode_all(sources, None, 3).shape == (3, 3, 4, 4)
    assert "1 of 3 images are not of 4 x 4 pixels" in caplog.text
    caplog.clear()
    decode_all(sources, 8, 3)
    decode_all(sources[:2], None, 3)
    assert not caplog.text


def test_images_that_do_not_fit_into_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    class Small:
        available = 300

    monkeypatch.setattr(decode.psutil, "virtual_memory", lambda: Small)
    with pytest.raises(InputError, match="1 images of 8 x 8 .* lower --image_size"):
        read(picture(0))


def test_mean_and_std_are_those_of_the_values() -> None:
    images: Any = torch.randint(0, 256, (5, 3, 4, 4), dtype=torch.uint8)
    mean, std = mean_and_std(images)
    values = images.double() / 255
    assert mean == pytest.approx(values.mean((0, 2, 3)).tolist())
    assert std == pytest.approx(values.std((0, 2, 3), correction=0).tolist())
    assert mean_and_std(torch.zeros(1, 1, 2, 2, dtype=torch.uint8))[1] == [1 / 255]
