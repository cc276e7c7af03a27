"""Make the pictures of the emoji world from npm packages: ``python scripts/build_emoji.py``.

The script needs npm and the extra ``emoji`` (pip install -e ".[emoji]"). It fetches the packages, renders every emoji
at 48x48 pixels, and divides the concepts among pre-training and the parts of the downstream datasets. It writes the
list of concepts and the downstream teams' sheets to unskew/micro/pictures, and the sheets for pre-training to
output/emoji (another folder: --sheets).
"""

import argparse
import base64
import hashlib
import io
import json
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from unskew.micro import emoji, emoji_datasets
from unskew.utils.files import write_atomically


@dataclass(frozen=True)
class Package:
    """An npm package of one version, with npm's checksum (SHA-512 in base64) and the licence that it must have."""

    name: str
    version: str
    checksum: str
    licence: str


NAMES = Package(
    "emojibase-data",
    "17.0.0",
    "Yvgb5AWoHViHV/gq1qr5ZAarcBip+B27/ZLRsUJkbgAEaLlZ/fof9g882LTpmEpyhBNEC0m2SEmItljHsTygjA==",
    "MIT",
)
TEAMS = {
    "noto": Package(
        "@iconify-json/noto",
        "1.2.9",
        "DQiuXENbun41ch+XPSV55H9FaWKpHTyz46YIKtSaKYD4fIDDzL1tR6H4np/T38jfrTAeI3rcKF0mqHYeZVAuaw==",
        "Apache-2.0",
    ),
    "blobmoji": Package(  # Google's blobs, which Noto Emoji had until 2017
        "@iconify-json/noto-v1",
        "1.2.5",
        "/DsVMius69Q0fRS53z7QK1TROSuar606jiIx+laXtdsYGMXpf6LtHBx6CGfoo3UHHb/XpBsw+1L1x3eyPqMuVA==",
        "Apache-2.0",
    ),
    "fluent": Package(
        "@iconify-json/fluent-emoji-flat",
        "1.2.6",
        "RY47RgPb47fYUiyrA64sIOL0+UU02s29sXpNBbIQRBUlPlfNFTKUmZDERGuxDs/7yNGWqQYvuaSYM1M4fRXlUw==",
        "MIT",
    ),
    "twemoji": Package(
        "@iconify-json/twemoji",
        "1.2.5",
        "uKpuIEV0v6K5BW3Mjdyl+XKFVAbbcPxAgifKvEMtZoUZB5+YiY5zaMm2uNNCxyXzAWU9yNLlj41WU6/mvgALsw==",
        "CC-BY-4.0",
    ),
    "openmoji": Package(
        "@iconify-json/openmoji",
        "1.2.29",
        "vXdhkqcXVSO6suy+m9LbcUM3OdVyuNOtpV8/als/WqfkQIRxevL5Geb/g+6GH/Qwnq1OqksEmaDGTCmZ5nFKJQ==",
        "CC-BY-SA-4.0",
    ),
}

MIN_CONCEPTS = 20  # of a class of the downstream datasets
UNSEEN = 4  # concepts of each class that no model is trained on
SHARES = {"train": 0.4, "test": 0.4}  # of the other concepts of a class; the rest is val
SAME_PICTURE = 0.1  # two teams' pictures of one concept that differ less are near-duplicates
SEED = 2026
MIN_SHARED = 3  # concepts that must share a keyword


def fetch(package: Package, folder: Path) -> dict[str, bytes]:
    """Fetch a package with npm and return its files by name."""
    command = ["npm", "pack", "--silent", "--pack-destination", str(folder), f"{package.name}@{package.version}"]
    name = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.split()[-1]
    content = (folder / name).read_bytes()
    if base64.b64encode(hashlib.sha512(content).digest()).decode() != package.checksum:
        raise ValueError(f"{package.name} {package.version} from npm has another checksum than the one in this script")
    with tarfile.open(fileobj=io.BytesIO(content)) as archive:
        members = ((member.name.partition("/")[2], archive.extractfile(member)) for member in archive)
        return {path: file.read() for path, file in members if file}


def entries(files: dict[str, bytes]) -> Iterator[tuple[dict, str]]:
    """Yield the emoji of the world with their subgroups: one emoji for all genders, skins and directions.

    Flags, keycaps, letters, numbers, clocks and other signs of writing are left out, because their subgroups are not in
    `emoji.SUBGROUPS`.
    """
    subgroups = json.loads(files["meta/groups.json"])["subgroups"]
    rows = [row for row in json.loads(files["en/data.json"]) if "subgroup" in row]
    names = {row["label"] for row in rows}
    for row in rows:
        subgroup, name = subgroups[str(row["subgroup"])], row["label"]
        gendered = re.match(r"(?:man|woman|men|women)\b:? *(.*)", name)
        neutral = (
            {prefix + gendered[1] for prefix in ("", "person ", "person: ", "people ", "people with ")}
            if gendered
            else set()
        )
        if subgroup in emoji.SUBGROUPS and "facing right" not in name and not neutral & names:
            yield row, subgroup


def team_sheet(team: str, files: dict[str, bytes], codes: dict[str, str], names: dict[str, str]) -> np.ndarray:
    """Render the pictures of a team, uint8 RGBA [K, 48, 48, 4].

    Args:
        team: a key of `TEAMS`.
        files: the files of its package.
        codes: the icons of code points in this package, or in another team's if it has no such list.
        names: the name of each concept by its code.
    """
    licence = json.loads(files["info.json"])["license"]["spdx"]
    if licence != TEAMS[team].licence:
        raise ValueError(f"the licence of {team} is {licence}, not {TEAMS[team].licence}")
    icons = json.loads(files["icons.json"])
    pictures = np.zeros((len(names), emoji.TILE, emoji.TILE, 4), np.uint8)
    for picture, (code, name) in zip(pictures, names.items(), strict=True):
        slug = re.sub("[^a-z0-9]+", "-", name.lower().replace("’", "")).strip("-")
        for key in (codes.get(code), codes.get(code.replace("-fe0f", "")), slug):
            while key in icons.get("aliases", {}):
                key = icons["aliases"][key]["parent"]
            if key in icons["icons"]:
                picture[:] = rasterise(icons["icons"][key], icons)
                break
    return pictures


def rasterise(icon: dict, icons: dict) -> np.ndarray:
    """Render an icon of Iconify's JSON format to uint8 RGBA [48, 48, 4]."""
    import resvg_py

    box = [
        icon.get(key, icons.get(key, default))
        for key, default in zip(("left", "top", "width", "height"), (0, 0, 16, 16), strict=True)
    ]
    svg = (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'width="{emoji.TILE}" height="{emoji.TILE}" viewBox="{" ".join(map(str, box))}">{icon["body"]}</svg>'
    )
    return np.asarray(Image.open(io.BytesIO(bytes(resvg_py.svg_to_bytes(svg_string=svg)))).convert("RGBA"))


def difference(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return the mean difference [...] of pictures [..., 48, 48, 4], in 0..1, over the area that either covers."""
    a, b = (_small(pictures) for pictures in (a, b))
    area = np.maximum(a[..., 3], b[..., 3]).sum((-1, -2))
    return np.abs(a - b).sum((-1, -2, -3)) / 4 / np.maximum(area, 1e-6)


def _small(pictures: np.ndarray) -> np.ndarray:
    solid = pictures.astype(np.float32) / 255
    solid[..., :3] *= solid[..., 3:]
    third = emoji.TILE // 3
    return solid.reshape(*pictures.shape[:-3], third, 3, third, 3, 4).mean((-2, -4))


def usable(sheets: dict[str, np.ndarray]) -> np.ndarray:
    """Return which concepts [K] may be in a downstream dataset.

    Both downstream teams and a pre-training team must have a picture, no pre-training team a near-duplicate of either,
    and no earlier concept nearly the same picture by Twemoji.
    """
    seen = [sheets[team] for team in emoji.PRETRAINING_TEAMS]
    ours = [sheets[team] for team in emoji.DOWNSTREAM_TEAMS]
    result = np.any([emoji.drawn(s) for s in seen], axis=0) & np.all([emoji.drawn(s) for s in ours], axis=0)
    for theirs in seen:
        for mine in ours:
            result &= ~emoji.drawn(theirs) | (difference(theirs, mine) > SAME_PICTURE)
    for i, picture in enumerate(ours[0]):
        result[i] &= not result[:i].any() or difference(ours[0][:i][result[:i]], picture).min() > SAME_PICTURE / 2
    return result


def divide(subgroups: list[str], can_be_used: np.ndarray) -> list[str]:
    """Return the part of each concept, see `emoji.Concept`."""
    rng = np.random.default_rng(SEED)
    parts = [""] * len(subgroups)
    for subgroup in emoji.SUBGROUPS:
        members = [i for i, s in enumerate(subgroups) if s == subgroup and can_be_used[i]]
        if len(members) < MIN_CONCEPTS:
            continue
        members = [members[i] for i in rng.permutation(len(members))]
        unseen, rest = members[:UNSEEN], members[UNSEEN:]
        train, test = (round(SHARES[part] * len(rest)) for part in ("train", "test"))
        order = ["train"] * train + ["test"] * test + ["val"] * (len(rest) - train - test)
        for i, part in zip(unseen + rest, ["unseen"] * UNSEEN + order, strict=True):
            parts[i] = part
    return parts


def write_sheet(path: Path, pictures: np.ndarray) -> None:
    """Write pictures [K, 48, 48, 4] as one PNG file, 32 in a row."""
    rows = -(-len(pictures) // emoji.COLUMNS)
    tiles = np.zeros((rows * emoji.COLUMNS, *pictures.shape[1:]), np.uint8)
    tiles[: len(pictures)] = pictures
    tiles[tiles[..., 3] == 0] = 0  # the colour of a transparent pixel costs bytes and shows nothing
    grid = tiles.reshape(rows, emoji.COLUMNS, emoji.TILE, emoji.TILE, 4).swapaxes(1, 2)
    buffer = io.BytesIO()
    Image.fromarray(grid.reshape(rows * emoji.TILE, -1, 4)).save(buffer, "PNG", optimize=True)
    write_atomically(path, buffer.getvalue())


def build(sheets_folder: Path) -> None:
    """Fetch, render, divide and write."""
    with tempfile.TemporaryDirectory() as folder:
        rows = list(entries(fetch(NAMES, Path(folder))))
        packages = {team: fetch(package, Path(folder)) for team, package in TEAMS.items()}
    names = {row["hexcode"].lower(): row["label"] for row, _ in rows}
    codes = {
        team: json.loads(files.get("chars.json", packages["noto"]["chars.json"])) for team, files in packages.items()
    }
    sheets = {team: team_sheet(team, files, codes[team], names) for team, files in packages.items()}
    same = emoji.drawn(sheets["blobmoji"]) & (difference(sheets["blobmoji"], sheets["noto"]) < SAME_PICTURE)
    sheets["blobmoji"][same] = 0  # drawings that Noto kept
    parts = divide([subgroup for _, subgroup in rows], usable(sheets))
    tags = [tag for row, _ in rows for tag in row.get("tags", [])]
    concepts = [
        {
            "name": row["label"],
            "code": row["hexcode"].lower(),
            "subgroup": subgroup,
            "keywords": [tag for tag in row.get("tags", []) if tags.count(tag) >= MIN_SHARED],
            "part": part,
        }
        for (row, subgroup), part in zip(rows, parts, strict=True)
    ]
    lines = ",\n".join(json.dumps(concept, ensure_ascii=False) for concept in concepts)
    write_atomically(emoji.CONCEPTS, f"[\n{lines}\n]\n")
    shown = {"twemoji": {"train", "val", "test", "unseen"}, "openmoji": {"test"}}
    for team, pictures in sheets.items():
        if team in shown:
            pictures[[part not in shown[team] for part in parts]] = 0
        write_sheet((emoji.FOLDER if team in shown else sheets_folder) / f"{team}.png", pictures)
        print(f"{team}: {emoji.drawn(pictures).sum()} pictures")
    for part in ("train", "val", "test", "unseen", ""):
        print(f"{part or 'pre-training only'}: {parts.count(part)} concepts")


def draw_figure(sheets_folder: Path, path: Path) -> None:
    """Draw photos of each class: three of each team in the style of pre-training, then of the downstream datasets."""
    from matplotlib.figure import Figure

    rng, classes, concepts = np.random.default_rng(0), emoji_datasets.subgroups(), emoji.concepts()
    columns = []
    for team in (*emoji.PRETRAINING_TEAMS, *emoji.DOWNSTREAM_TEAMS):
        shipped = team in emoji.DOWNSTREAM_TEAMS
        pictures = emoji.sheet(team, emoji.FOLDER if shipped else sheets_folder)
        there = emoji.drawn(pictures) & np.array([c.part in ("test", "val") for c in concepts])
        members = [[i for i, c in enumerate(concepts) if c.subgroup == s and there[i]][:3] for s in classes]
        photos = emoji.render(
            pictures[np.resize(np.array(members), (len(classes), 3)).ravel()],
            rng,
            emoji_datasets.STYLE if shipped else emoji.PRETRAINING,
        )
        columns.append(photos.reshape(len(classes), 3, 32, 32, 3).swapaxes(1, 2).reshape(len(classes) * 32, 96, 3))
    image = np.concatenate(
        [np.pad(column, ((0, 0), (4, 4), (0, 0)), constant_values=255) for column in columns], axis=1
    )
    figure = Figure(figsize=(9, 9), layout="constrained")
    axis = figure.subplots()
    axis.imshow(image, interpolation="nearest")
    axis.set_yticks([32 * i + 15.5 for i in range(len(classes))], [emoji.SUBGROUPS[s] for s in classes])
    names = ("Noto", "Blobmoji", "Fluent", "Twemoji", "OpenMoji")
    axis.set_xticks([104 * i + 52 for i in range(len(names))], names)
    axis.tick_params(length=0, labeltop=True, labelbottom=False)
    axis.spines[:].set_visible(False)
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=90)
    Image.open(buffer).convert("RGB").quantize(128).save(path, optimize=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--sheets", type=Path, default=emoji.PRETRAINING_SHEETS, help="folder of the sheets for pre-training"
    )
    parser.add_argument("--figure", type=Path, help="only draw docs/micro_emoji.png there, from the finished sheets")
    arguments = parser.parse_args()
    if arguments.figure:
        draw_figure(arguments.sheets, arguments.figure)
        sys.exit()
    folder = arguments.sheets
    if not shutil.which("npm"):
        sys.exit("npm is not installed; the packages come from its registry")
    folder.mkdir(parents=True, exist_ok=True)
    build(folder)
