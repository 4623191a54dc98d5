# SPDX-License-Identifier: Apache-2.0
"""Every kind of image becomes the right bytes, and a broken one is named."""

from __future__ import annotations

import io
import struct
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
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
        (b"", "it holds nothing"),
    ],
)
def test_an_unreadable_image_is_named(content: bytes, why: str) -> None:
    sources = [Source("a.parquet, row 1", lambda: png(picture(0)))]
    sources.append(Source("a.parquet, row 2", lambda: content))
    message = f"a.parquet, row 2: cannot be read as an image: .*{why}; mend it or take it out"
    with pytest.raises(InputError, match=message):
        decode_all(sources, None, 3)


@pytest.mark.parametrize("error", [KeyError(5), struct.error("odd"), EOFError(), MemoryError("no")])
def test_whatever_is_raised_names_the_image(error: Exception) -> None:
    def read_it() -> bytes:
        raise error

    with pytest.raises(InputError, match=f"^b.parquet, row 3: .* an image: {type(error).__name__}"):
        decode_all([Source("b.parquet, row 3", read_it)], 4, 3)


def test_a_bomb_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 20)
    with pytest.raises(InputError, match="x: cannot be read as an image: DecompressionBombError"):
        read(picture(0, 8))
    assert read(picture(0, 5)).shape == (5, 5, 3), "a warning of Pillow's is no error"


def exif(entries: list[tuple[int, int, int, bytes]]) -> bytes:
    """Return the EXIF of a photo that was taken upside down, with other entries of any kind."""
    upside_down = (0x0112, 3, 1, struct.pack("<I", 3))
    body = [struct.pack("<HHI", *entry[:3]) + entry[3] for entry in sorted([upside_down, *entries])]
    return b"Exif\0\0II*\0" + struct.pack("<IH", 8, len(body)) + b"".join(body) + bytes(4)


UPRIGHT = np.repeat(np.repeat(GREY, 8, 0), 8, 1)[::-1, ::-1]
"""Flat blocks, which every format keeps almost as they are."""


def photo(form: str, entries: list[tuple[int, int, int, bytes]]) -> bytes:
    """Return an image that lies upside down, with EXIF."""
    buffer = io.BytesIO()
    Image.fromarray(UPRIGHT[::-1, ::-1]).save(buffer, form, exif=exif(entries))
    return buffer.getvalue()


photos = st.builds(
    photo,
    st.sampled_from(["JPEG", "PNG", "WEBP"]),
    st.lists(
        st.tuples(
            st.sampled_from([256, 270, 282, 700, 34665, 34853, 40965]),
            st.integers(0, 14),
            st.integers(0, 5),
            st.binary(min_size=4, max_size=4),
        ),
        max_size=3,
    ),
)


@given(photos)
def test_pixels_are_read_where_exif_is_broken(content: bytes) -> None:
    found = decode_all([Source("x", lambda: content)], None, 1)[0, 0].numpy().astype(int)
    apart = [np.abs(found - way).mean() for way in (UPRIGHT, UPRIGHT[::-1, ::-1])]
    assert min(apart) < 8 and max(apart) > 50


BROKEN = {
    "text as a float": (270, 11, 1, struct.pack("<f", 1.5)),
    "a pointer before the file": (34665, 9, 1, struct.pack("<i", -72)),
    "bytes as a double": (700, 12, 1, struct.pack("<f", 1.5)),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_photo_lies_upright_whatever_else_its_exif_says(kind: str) -> None:
    found = decode_all([Source("x", lambda: photo("PNG", [BROKEN[kind]]))], None, 1)[0, 0]
    assert np.array_equal(found, UPRIGHT)


def test_exif_that_is_no_exif() -> None:
    buffer = io.BytesIO()
    picture(0).save(buffer, "PNG", exif=b"Exif\0\0XX*\0\0\0")
    assert np.array_equal(
        decode_all([Source("x", buffer.getvalue)], None, 3)[0, 0], read(picture(0))[..., 0]
    )


@pytest.mark.parametrize("form", ["GIF", "PNG", "TIFF", "WEBP"])
def test_the_first_of_several_frames_is_used(form: str, caplog: pytest.LogCaptureFixture) -> None:
    buffer = io.BytesIO()
    frames = [Image.fromarray(np.full((4, 4), value, np.uint8)) for value in (10, 200)]
    frames[0].save(buffer, form, save_all=True, append_images=frames[1:])
    found = decode_all([Source("a.gif", buffer.getvalue)], None, 1)
    assert (found.int() - 10).abs().max() <= 1
    assert "1 images have several frames, such as a.gif: the first one is used" in caplog.text


@pytest.mark.parametrize("mode", ["CMYK", "YCbCr", "HSV", "PA", "RGBX", "1"])
def test_other_modes_are_read(mode: str) -> None:
    image = Image.new("RGB", (4, 4), "white").convert(mode if mode != "PA" else "P")
    image = image.convert(mode)
    assert np.array_equal(np.asarray(decode._convert(image, "RGB")), np.full((4, 4, 3), 255))


@pytest.mark.parametrize("order", ["<", ">"])
def test_sixteen_bits_of_either_order(order: str) -> None:
    deep = np.arange(64, dtype=f"{order}u2").reshape(8, 8) * 1000
    buffer = io.BytesIO()
    Image.fromarray(deep).save(buffer, "TIFF")
    found = decode_all([Source("x", buffer.getvalue)], None, 1)[0, 0]
    assert np.array_equal(found, np.round(deep / 257).astype(np.uint8))


def test_an_image_without_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decode, "_open", lambda source: Image.new("RGB", (0, 4)))
    with pytest.raises(InputError, match="x: cannot be read as an image: it has no pixels"):
        decode.first_side(Source("x", bytes))


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
