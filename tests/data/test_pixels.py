"""Tests of the pixels that files of all kinds give: depths, orientations, transparency, and CoOp's reading."""

import struct
import warnings
import zlib

import numpy as np
import pictures
import pytest
import torch
from building import build
from PIL import Image

import unskew
from unskew import config
from unskew.dassl import data as dassl_data
from unskew.dassl.config import get_cfg_default as dassl_config
from unskew.data import loaders
from unskew.data.images import read_image, to_rgb

RAMP = np.arange(256, dtype=np.uint8).reshape(16, 16)
PHOTO = np.random.default_rng(0).integers(0, 256, (16, 24, 3), np.uint8)


def pixels(path, **options):
    return np.asarray(read_image(path, **options))


def save(path, image, **options):
    image.save(path, **options)
    return path


def grey(values):
    return np.repeat(np.asarray(values)[..., None], 3, axis=-1)


def png(path, bits, colour_type, row, *chunks):
    """Write a PNG file of one row."""

    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    width = 8 * len(row) // (bits * {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[colour_type])
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, 1, bits, colour_type, 0, 0, 0))
    body = b"".join(chunk(*entry) for entry in chunks) + chunk(b"IDAT", zlib.compress(b"\0" + row))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + head + body + chunk(b"IEND", b""))
    return path


def tiff(path, values):
    """Write a TIFF file of 16 bits per sample, which Pillow cannot write in colour; values [H, W, 3]."""
    height, width, samples = values.shape
    strip = values.astype("<u2").tobytes()
    tags = [(256, 4, 1, width), (257, 4, 1, height), (258, 3, 3, 8), (259, 3, 1, 1), (262, 3, 1, 2)]
    tags += [(273, 4, 1, 14), (277, 3, 1, samples), (278, 4, 1, height), (279, 4, 1, len(strip))]
    entries = b"".join(struct.pack("<HHII", *tag) for tag in tags)
    head = b"II*\0" + struct.pack("<I", 14 + len(strip)) + struct.pack("<3H", 16, 16, 16)
    path.write_bytes(head + strip + struct.pack("<H", len(tags)) + entries + bytes(4))
    return path


# --- CoOp's reading ----------------------------------------------------------------------------------


def eight_bit_images():
    rgb, ramp = Image.fromarray(PHOTO), Image.fromarray(RAMP)
    rgba = rgb.copy()
    rgba.putalpha(Image.fromarray(PHOTO[..., 0]))
    exif = Image.Exif()
    exif[0x0112] = 6
    return {
        "rgb.png": (rgb, {}),
        "turned.jpg": (rgb, {"exif": exif}),
        "grey.jpg": (ramp, {}),
        "cmyk.jpg": (rgb.convert("CMYK"), {}),
        "ycbcr.tif": (rgb.convert("YCbCr"), {}),
        "lab.tif": (Image.merge("LAB", rgb.split()), {}),
        "alpha.png": (rgba, {}),
        "grey_alpha.png": (rgba.convert("LA"), {}),
        "one_bit.png": (ramp.convert("1"), {}),
        "palette.png": (rgb.quantize(16), {"transparency": 3}),
        "palette.gif": (rgb.quantize(16), {"transparency": 3}),
        "lossless.webp": (rgba, {"lossless": True}),
        "bitmap.bmp": (rgb, {}),
    }


@pytest.mark.parametrize("name", eight_bit_images())
def test_eight_bits_are_read_as_coop_does(name, tmp_path):
    image, options = eight_bit_images()[name]
    path = save(tmp_path / name, image, **options)
    with Image.open(path) as opened:
        assert np.array_equal(pixels(path), np.asarray(opened.convert("RGB")))


# --- depths ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["deep.png", "deep.tif", "big_endian.tif", "deep.pgm"])
def test_sixteen_bit_greys_equal_eight_bits(name, tmp_path, warned):
    values = RAMP.astype(">u2" if name.startswith("big") else np.uint16) * 257
    values = values if name.startswith("big") else values.astype(np.uint16)
    for part in (values, values[:4]):  # the scale is not the image's maximum
        path = save(tmp_path / name, Image.fromarray(part))
        assert np.array_equal(pixels(path), grey(RAMP[: len(part)]))
    assert not warned()


def test_a_pgm_file_of_twelve_bits(tmp_path):
    (tmp_path / "deep.pgm").write_bytes(b"P5 3 1 4095\n" + struct.pack(">3H", 0, 2048, 4095))
    assert pixels(tmp_path / "deep.pgm")[0, :, 0].tolist() == [0, 128, 255]


def test_sixteen_bit_colours(tmp_path):
    row = (PHOTO[0].astype(">u2") * 257).astype(">u2").tobytes()
    assert np.array_equal(pixels(png(tmp_path / "colours.png", 16, 2, row)), PHOTO[:1])
    assert np.array_equal(pixels(tiff(tmp_path / "colours.tif", PHOTO.astype(int) * 257)), PHOTO)
    alpha = np.array([[200, 255], [40, 0]], ">u2") * 257
    path = png(tmp_path / "grey_alpha.png", 16, 4, alpha.astype(">u2").tobytes())
    assert np.array_equal(pixels(path), grey([[200, 40]]))
    assert np.array_equal(pixels(path, upright=True), grey([[200, 255]]))


def test_floats_from_zero_to_one(tmp_path, warned):
    for part in (RAMP, RAMP[:4]):
        path = save(tmp_path / "floats.tif", Image.fromarray(part.astype(np.float32) / 255))
        assert np.array_equal(pixels(path), grey(part))
    assert not warned()


@pytest.mark.parametrize(("kind", "low", "high"), [(np.int32, -50, 70_000), (np.float32, -3.0, 1.5)])
def test_other_numbers_are_scaled_from_minimum_to_maximum(kind, low, high, tmp_path, warned, monkeypatch):
    monkeypatch.setattr("unskew.utils.logging._warned", set())
    values = np.array([[low, (low + high) / 2, high]]).astype(kind)
    path = save(tmp_path / "numbers.tif", Image.fromarray(values))
    for _ in range(2):
        assert pixels(path)[0, :, 0].tolist() in ([0, 127, 255], [0, 128, 255])
    assert len(warned()) == 1 and "32" in warned()[0]


@pytest.mark.parametrize("values", [[np.nan, np.nan], [7, 7], [np.inf, -np.inf]])
def test_numbers_without_a_range_are_finite(values, tmp_path):
    found = pixels(save(tmp_path / "numbers.tif", Image.fromarray(np.array([values], np.float32))))
    assert found.shape == (1, 2, 3) and found.dtype == np.uint8


# --- orientation -------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".png", ".tif", ".webp"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation(suffix, orientation, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = pictures.STORED[orientation](Image.fromarray(PHOTO))
    path = save(tmp_path / f"turned{suffix}", stored, exif=exif, **({"lossless": True} if suffix == ".webp" else {}))
    assert np.array_equal(pixels(path, upright=True), PHOTO)
    with Image.open(path) as image:  # a PIL image, twice
        assert np.array_equal(np.asarray(to_rgb(image, upright=True)), PHOTO)
        assert np.array_equal(np.asarray(to_rgb(image, upright=True)), PHOTO)


@pytest.mark.parametrize("damaged", [b"Exif\0\0no tiff", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0MM\0*"])
def test_damaged_exif_data_do_not_matter(damaged, tmp_path):
    path = save(tmp_path / "photo.jpg", Image.fromarray(PHOTO), exif=damaged)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's
        assert np.array_equal(pixels(path, upright=True), pixels(path))


@pytest.mark.parametrize("value", [0, 9, 600])
def test_unknown_orientations_are_upright(value, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = value
    path = save(tmp_path / "photo.png", Image.fromarray(PHOTO), exif=exif)
    assert np.array_equal(pixels(path, upright=True), PHOTO)


# --- transparency ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "mode"), [("a.png", "RGBA"), ("a.png", "LA"), ("a.tif", "RGBA"), ("a.webp", "RGBA")])
def test_alpha_is_put_on_white(name, mode, tmp_path):
    image = Image.fromarray(PHOTO).convert(mode)
    alpha = np.full(PHOTO.shape[:2], 255, np.uint8)
    alpha[:4], alpha[4:8] = 0, 51
    image.putalpha(Image.fromarray(alpha))
    path = save(tmp_path / name, image, **({"lossless": True, "exact": True} if name.endswith("webp") else {}))
    colours, found = np.asarray(image.convert("RGB")).astype(int), pixels(path, upright=True)
    assert np.array_equal(found[8:], colours[8:]) and (found[:4] == 255).all()
    assert np.abs(found[4:8] - (0.2 * colours[4:8] + 0.8 * 255)).max() <= 1


def test_palettes_with_transparency(tmp_path):
    image = Image.new("P", (3, 1))
    image.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90])
    image.putdata([0, 1, 2])
    for name, transparency in (("a.gif", 1), ("a.png", 1), ("b.png", b"\xff\x00\xff")):
        path = save(tmp_path / name, image, transparency=transparency)
        assert pixels(path, upright=True).tolist() == [[[10, 20, 30], [255, 255, 255], [70, 80, 90]]]
    with_alpha = image.convert("PA")
    assert np.asarray(to_rgb(with_alpha, upright=True)).tolist() == [[[10, 20, 30], [40, 50, 60], [70, 80, 90]]]


@pytest.mark.parametrize(
    ("bits", "colour_type", "row", "key", "expected"),
    [
        (8, 0, [7, 9], [7], [255, 9]),
        (8, 2, [7, 8, 9, 7, 7, 7], [7, 8, 9], [255, 7]),
        (1, 0, [0b10101010], [1], [255, 0] * 4),
        (1, 0, [0b10101010], [0], [255] * 8),
        (2, 0, [0b00011011], [1], [0, 255, 170, 255]),
        (4, 0, [0x1E], [1], [255, 238]),
        (16, 0, [0x12, 0x34, 0x80, 0x80], [0x1234], [255, 128]),
        (16, 2, [0x12, 0x34] * 3 + [1, 1] * 3, [0x1234] * 3, [255, 1]),
    ],
)
def test_a_transparent_colour_of_a_png_file(bits, colour_type, row, key, expected, tmp_path):
    chunk = (b"tRNS", b"".join(struct.pack(">H", value) for value in key))
    path = png(tmp_path / "key.png", bits, colour_type, bytes(row), chunk)
    assert np.array_equal(pixels(path, upright=True), grey([expected]))


def test_the_image_itself_is_not_changed(tmp_path):
    path = png(tmp_path / "key.png", 2, 0, bytes([0b00011011]), (b"tRNS", struct.pack(">H", 1)))
    with Image.open(path) as image:
        to_rgb(image, upright=True)
        assert image.mode == "L" and image.info["transparency"] == 1
        assert list(image.tobytes()) == [0, 85, 170, 255]


@pytest.mark.parametrize("suffix", [".gif", ".webp", ".png", ".tif"])
def test_the_first_frame_of_an_animation(suffix, tmp_path):
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    options = {"lossless": True} if suffix == ".webp" else {}
    path = save(tmp_path / f"a{suffix}", frames[0], save_all=True, append_images=frames[1:], **options)
    for upright in (True, False):
        assert (pixels(path, upright=upright) == [255, 0, 0]).all()


# --- all doors ---------------------------------------------------------------------------------------


def accuracy(root, trainer="ZeroshotCLIP", **opts):
    opts = {"DATASET.TEMPLATE": pictures.TEMPLATE, "DATALOADER.NUM_WORKERS": 0, **opts}
    run = unskew.train("folder", trainer, backbone="micro", root=root, output=root.parent / "out", opts=opts)
    return run.metrics["accuracy"]


def deep(picture, path, place):
    Image.fromarray(np.asarray(picture.convert("L")).astype(np.uint16) * 257).save(path.with_suffix(".png"))


def plain(mode="RGB"):
    def save(picture, path, place):
        picture.convert(mode).save(path.with_suffix(".png"))

    return save


def bright(picture):
    return (np.asarray(picture) >= 200).all(-1)  # [H, W]


def white(picture, path, place):
    Image.fromarray(np.where(bright(picture)[..., None], np.uint8(255), picture)).save(path.with_suffix(".png"))


def cut_out(picture, path, place):
    """Make the bright pixels transparent black."""
    values = np.where(bright(picture)[..., None], np.uint8(0), picture.convert("RGBA"))
    Image.fromarray(values).save(path.with_suffix(".png"))


@pytest.fixture(scope="module")
def upright_accuracy(tmp_path_factory):
    kinds = {"RGB": plain("RGB"), "L": plain("L"), "white": white}
    return {name: accuracy(pictures.write(tmp_path_factory.mktemp(name) / "d", kinds[name])) for name in kinds}


@pytest.mark.parametrize(
    ("kind", "save"),
    [
        ("RGB", pictures.turned(".png", 2)),
        ("RGB", pictures.turned(".tif", 2)),
        ("RGB", pictures.turned(".webp", 2, lossless=True)),
        ("L", deep),
        ("white", cut_out),
    ],
)
def test_accuracy_does_not_depend_on_the_format(kind, save, upright_accuracy, tmp_path):
    assert accuracy(pictures.write(tmp_path / "digits", save)) == upright_accuracy[kind] > 60


def test_accuracy_on_photos(tmp_path):
    options = {"quality": 100, "subsampling": 0}
    photos = accuracy(pictures.write(tmp_path / "a" / "digits", pictures.turned(".jpg", 2, **options)))
    upright = accuracy(pictures.write(tmp_path / "b" / "digits", lambda p, path, _: p.save(f"{path}.jpg", **options)))
    assert photos == pytest.approx(upright, abs=1) and photos > 60


@pytest.mark.parametrize("trainer", ["ZeroshotCLIP", "FineTune"])
def test_every_kind_of_trainer_predicts_upright(trainer, tmp_path):
    logits = []
    for name, save in (("upright", plain()), ("turned", pictures.turned(".png", 2))):
        root = pictures.write(tmp_path / name / "digits", save, ("train", "val", "test"))
        built = build(trainer, root, tmp_path / "out", dataset="folder", backbone="micro", shots=1)
        batch = next(iter(built.dm.train_loader_x))["img"]
        paths = [item.impath for item in built.dm.dataset.test[:20]]
        logits.append((built.predict(paths), batch.sum(), built.class_groups()))
    assert torch.equal(logits[0][0], logits[1][0])
    assert logits[0][2].keys() == logits[1][2].keys()
    assert all(torch.equal(logits[0][2][name], group) for name, group in logits[1][2].items())


def test_published_datasets_are_not_turned(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    path = save(tmp_path / "photo.png", Image.fromarray(PHOTO), exif=exif)
    item = unskew.Datum(str(path), 0, 0, "a")
    shapes = {}
    for name in ("digits", "folder", "csv"):
        cfg = config.load(name, "micro", "ZeroshotCLIP", ("DATASET.ROOT", "data"))
        shapes[name] = loaders.DatasetWrapper(cfg, [item])[0]["img"].size
        plain_dassl = dassl_config()
        plain_dassl.DATASET.NAME = name
        shapes[f"dassl {name}"] = dassl_data.DatasetWrapper(plain_dassl, [item])[0]["img"].size
    turned = {"folder": (16, 24), "csv": (16, 24), "dassl folder": (16, 24), "dassl csv": (16, 24)}
    assert shapes == {"digits": (24, 16), "dassl digits": (24, 16), **turned}


def test_encode_images_is_upright(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    stored = pictures.STORED[6](Image.fromarray(PHOTO))
    turned = save(tmp_path / "turned.png", stored, exif=exif)
    upright = save(tmp_path / "upright.png", Image.fromarray(PHOTO))
    backbone = unskew.load_backbone("micro")
    rows = unskew.encode_images(backbone, [turned, upright])
    assert torch.equal(rows[0], rows[1])
    with Image.open(turned) as image:
        assert torch.allclose(unskew.encode_images(backbone, [image, upright])[0], rows[1], atol=1e-5)
