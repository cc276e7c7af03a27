"""Tests of scripts/build_emoji.py on a small registry: what it takes, leaves out, renders and divides."""

import base64
import hashlib
import importlib.util
import io
import json
import os
import sys
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from unskew.micro import emoji

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "build_emoji.py"
SUBGROUPS = {"0": "food-fruit", "1": "country-flag", "2": "person-role", "3": "drink"}
# name, code, subgroup, keywords
ROWS = [
    ("flag: Chad", "1F1F9-1F1E9", 1, []),
    ("cook", "1F9D1-200D-1F373", 2, ["chef"]),
    ("man cook", "1F468-200D-1F373", 2, ["chef"]),
    ("woman cook", "1F469-200D-1F373", 2, ["chef"]),
    ("woman with headscarf", "1F9D5", 2, ["hijab"]),
    ("cook facing right", "1F9D1-200D-1F374", 2, ["chef"]),
    *((f"fruit {i}", f"1F{i:03X}", 0, ["fruit", f"only {i}"]) for i in range(24)),
    *((f"drink {i}", f"2F{i:03X}", 3, ["drink"]) for i in range(12)),
]


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("build_emoji", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules["build_emoji"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    yield module
    del sys.modules["build_emoji"]


def _archive(files: dict[str, str]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, text in files.items():
            member = tarfile.TarInfo(f"package/{name}")
            member.size = len(text.encode())
            archive.addfile(member, io.BytesIO(text.encode()))
    return buffer.getvalue()


def _team(number: int, licence: str, with_codes: bool) -> dict[str, str]:
    """A package of icons whose colours depend on the concept and on the team; the first fruit is the same in all."""
    icons, codes = {}, {}
    for i, (name, code, _, _) in enumerate(ROWS):
        shade = (37 * i) % 256 if name == "fruit 0" else (37 * i + 60 * number) % 256
        slug = name.replace(": ", "-").replace(" ", "-")
        x, y = (8, 8) if name == "fruit 0" else (3 + (5 * i + 4 * number) % 11, 3 + (7 * i + 3 * number) % 10)
        shape = f'<circle cx="{x}" cy="{y}" r="3" fill="rgb({shade},{(91 * i) % 256},{255 - shade})"/>'
        icons[slug], codes[code.lower()] = {"body": shape}, slug
    icons["other"] = icons.pop("fruit-3")  # found by its code through an alias
    aliases = {"fruit-3": {"parent": "other"}}
    files = {"icons.json": json.dumps({"icons": icons, "aliases": aliases, "width": 16, "height": 16})}
    files["info.json"] = json.dumps({"license": {"spdx": licence}})
    return files | ({"chars.json": json.dumps(codes)} if with_codes else {})


@pytest.fixture
def registry(script, tmp_path, monkeypatch):
    """A program npm that packs small packages, with their checksums in the script."""
    rows = [{"label": name, "hexcode": code, "subgroup": subgroup, "tags": tags} for name, code, subgroup, tags in ROWS]
    meta = {"meta/groups.json": json.dumps({"subgroups": SUBGROUPS}), "en/data.json": json.dumps(rows)}
    content = {script.NAMES: _archive(meta)}
    for i, (team, package) in enumerate(script.TEAMS.items()):
        content[package] = _archive(_team(i, package.licence, team != "blobmoji"))
    packed = tmp_path / "packed"
    packed.mkdir()

    def known(package):
        name = f"{package.name.replace('/', '-').lstrip('@')}.tgz"
        (packed / name).write_bytes(content[package])
        return replace(package, checksum=base64.b64encode(hashlib.sha512(content[package]).digest()).decode())

    monkeypatch.setattr(script, "NAMES", known(script.NAMES))
    monkeypatch.setattr(script, "TEAMS", {team: known(package) for team, package in script.TEAMS.items()})
    npm = tmp_path / "bin" / "npm"
    npm.parent.mkdir()
    npm.write_text(
        "#!/bin/sh\n"  # npm pack --silent --pack-destination FOLDER NAME@VERSION
        f'name=$(echo "${{5%@*}}" | sed "s#^@##; s#/#-#").tgz; cp {packed}/"$name" "$4" && echo "$name"\n'
    )
    npm.chmod(0o755)
    monkeypatch.setenv("PATH", f"{npm.parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr(emoji, "FOLDER", tmp_path / "pictures")
    monkeypatch.setattr(emoji, "CONCEPTS", tmp_path / "pictures" / "concepts.json")
    (tmp_path / "pictures").mkdir()
    emoji.concepts.cache_clear()
    emoji.sheet.cache_clear()
    yield tmp_path
    emoji.concepts.cache_clear()
    emoji.sheet.cache_clear()


def test_build(script, registry):
    sheets = registry / "sheets"
    sheets.mkdir()
    script.build(sheets)
    concepts = emoji.concepts()
    names = [c.name for c in concepts]
    assert names == [
        "cook",
        "woman with headscarf",
        *(f"fruit {i}" for i in range(24)),
        *(f"drink {i}" for i in range(12)),
    ]
    assert concepts[2].keywords == ("fruit",)  # at least three concepts share a keyword
    parts = {c.name: c.part for c in concepts}
    assert parts["fruit 0"] == ""  # all teams have the same picture
    assert {c.part for c in concepts if c.subgroup == "food-fruit"} == {"", "train", "val", "test", "unseen"}
    assert sum(c.part == "unseen" for c in concepts) == script.UNSEEN
    assert not any(c.part for c in concepts if c.subgroup != "food-fruit")  # too few concepts for a class
    for team in script.TEAMS:
        shipped = team in emoji.DOWNSTREAM_TEAMS
        pictures = emoji.sheet(team, registry / "pictures" if shipped else sheets)
        there = emoji.drawn(pictures)
        shown = {"twemoji": {"train", "val", "test", "unseen"}, "openmoji": {"test"}}
        expected = [c.part in shown[team] for c in concepts] if shipped else [True] * len(concepts)
        if team == "blobmoji":
            expected[names.index("fruit 0")] = False  # Noto has the same one
        assert there.tolist() == expected, team
    fruit = emoji.sheet("noto", sheets)[names.index("fruit 3")]
    i = [row[0] for row in ROWS].index("fruit 3")
    inside = fruit[fruit[..., 3] == 255]
    assert len(inside) > 150 and (inside == [(37 * i) % 256, (91 * i) % 256, 255 - (37 * i) % 256, 255]).all()
    rows, columns = fruit[..., 3].nonzero()
    assert [columns.mean() / 3, rows.mean() / 3] == pytest.approx(
        [3 + 5 * i % 11 - 1 / 6, 3 + 7 * i % 10 - 1 / 6], abs=0.1
    )


def test_a_changed_package_and_another_licence_are_refused(script, registry, monkeypatch):
    noto = script.TEAMS["noto"]
    with pytest.raises(ValueError, match="checksum"):
        script.fetch(replace(noto, checksum="abc"), registry)
    files = script.fetch(noto, registry)
    monkeypatch.setitem(script.TEAMS, "noto", replace(noto, licence="MIT"))
    with pytest.raises(ValueError, match=r"Apache-2\.0"):
        script.team_sheet("noto", files, {}, {})


def test_difference_is_relative_to_the_covered_area(script):
    a, b = np.zeros((2, 48, 48, 4), np.uint8)
    a[:12, :12] = b[:12, :12] = 255
    assert script.difference(a, b) == 0
    b[:12, :12, :3] = 0  # black for white: three of four channels differ in the whole area
    assert script.difference(a, b) == pytest.approx(0.75)
    assert script.difference(np.stack([a, b]), a).tolist() == pytest.approx([0, 0.75])


def test_parts_are_disjoint_shares_of_each_class(script):
    subgroups = ["drink"] * 25 + ["game"] * 19 + ["tool"] * 30
    usable = np.ones(74, bool)
    usable[-8:] = False
    parts = script.divide(subgroups, usable)
    assert not any(parts[25:44]) and not any(parts[-8:])
    for start, count in ((0, 25), (44, 22)):
        mine = parts[start : start + count]
        assert mine.count("unseen") == 4 and mine.count("train") == mine.count("test") == round(0.4 * (count - 4))
        assert mine.count("val") == count - 4 - 2 * mine.count("train") and "" not in mine
