"""Tests of files of class names that do not fit the data, and of classes with the same prompt."""

import json

import pytest
import trees
from test_custom_folder import birds, fill  # noqa: F401 - birds is a fixture
from trees import load, put, write


def lines(names):
    return "\n".join(f"{key}\t{name}" for key, name in names)


def pairs(names):
    return "{" + ", ".join(f"{json.dumps(key)}: {json.dumps(name)}" for key, name in names) + "}"


CLASSES = [(letter, f"bird {letter}") for letter in "abcdef"]
WRONG = {
    "missing": (CLASSES[:1], r"5 .*'b', 'c', 'd'"),
    "one missing": (CLASSES[1:], "'a'"),
    "doubled": ([*CLASSES, ("c", "another c")], "'c'"),
    "doubled with the same name": ([*CLASSES, CLASSES[2]], "'c'"),
    "unknown": ([*CLASSES, ("g", "bird g")], "'g'"),
    "many unknown": ([*CLASSES, *((f"x{n}", "x") for n in range(5))], r"5 .*'x0', 'x1', 'x2'"),
    "a mistyped key": ([*CLASSES[:5], ("F", "bird f")], "'f'.*'F'"),
}


@pytest.mark.parametrize("write_as", [lines, pairs])
@pytest.mark.parametrize("wrong", WRONG)
@pytest.mark.parametrize("kind", ["folder", "csv"])
def test_a_file_of_names_must_fit_the_classes(wrong, write_as, kind, birds, tmp_path):  # noqa: F811
    names, keys = WRONG[wrong]
    fill(birds, **{letter: 4 for letter, _ in CLASSES})
    root = birds
    if kind == "csv":
        root = birds / "birds.csv"
        write(root, "path,label", *(f"{letter}/{n:03d}.jpg,{letter}" for letter, _ in CLASSES for n in range(4)))
    file = tmp_path / ("names.json" if write_as is pairs else "names.txt")
    for content, fits in ((names, False), (CLASSES, True)):
        write(file, write_as(content))
        if fits:
            assert load(kind, root, "DATASET.CLASSNAMES", file).classnames == [name for _, name in CLASSES]
            continue
        with pytest.raises(ValueError, match=keys) as error:
            load(kind, root, "DATASET.CLASSNAMES", file)
        assert str(file) in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("file", "text"), [("a.txt", "a robin\r\nb wren\r\n"), ("a.json", '{"a": "robin", "b": "wren"}')]
)
def test_a_byte_order_mark_is_no_part_of_a_key(file, text, birds, tmp_path):  # noqa: F811
    fill(birds, a=4, b=4)
    (tmp_path / file).write_bytes(text.encode("utf-8-sig"))
    assert load("folder", birds, "DATASET.CLASSNAMES", tmp_path / file).classnames == ["robin", "wren"]


def test_a_name_for_a_folder_without_images_is_accepted(birds, tmp_path, warned):  # noqa: F811
    fill(birds, a=4, b=4)
    (birds / "c").mkdir()
    write(tmp_path / "names.txt", "a robin", "b wren", "c owl")
    assert load("folder", birds, "DATASET.CLASSNAMES", tmp_path / "names.txt").classnames == ["robin", "wren"]
    assert len(warned()) == 1 and "'c'" in warned()[0]


# --- classes with the same prompt ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("folders", "both"),
    [
        (["red_arrow", "red arrow"], ["'red arrow'", "'red_arrow'"]),
        (["red  arrow", "red arrow"], ["'red  arrow'", "'red arrow'"]),
        (["Robin", "robin"], ["'Robin'", "'robin'"]),  # CLIP's tokenizer has no capitals
        (["red arrow", "red-arrow"], None),
    ],
)
def test_folders_with_the_same_prompt_are_warned_of(folders, both, birds, warned):  # noqa: F811
    fill(birds, **dict.fromkeys([*folders, "wren"], 4))
    assert len(load("folder", birds).classnames) == 3
    assert len(warned()) == (both is not None)
    assert all(name in warned()[0] for name in both or ())


def test_two_classes_with_one_name_are_warned_of(birds, tmp_path, warned):  # noqa: F811
    fill(birds, a=4, b=4, c=4)
    write(tmp_path / "names.txt", "a robin", "b wren", "c robin")
    assert load("folder", birds, "DATASET.CLASSNAMES", tmp_path / "names.txt").classnames == ["robin", "wren", "robin"]
    (message,) = warned()
    assert message.count("'robin'") == 2 and "0" in message and "2" in message


def test_labels_with_one_class_name_are_warned_of(birds, warned):  # noqa: F811
    for n in range(3):
        put(birds / f"{n}.jpg")
    write(birds / "a.csv", "path,label,classname,split", "0.jpg,0,x,train", "1.jpg,1,y,train", "2.jpg,2,x,test")
    load("csv", birds / "a.csv")
    assert [message.count("'x'") for message in warned() if "prompt" in message] == [2]


# --- published files -----------------------------------------------------------------------------------

VARIANTS = ("imagenetv2", "imagenet_sketch", "imagenet_r", "imagenet", "imagenet_lt")


def replace(path, change):
    write(path, *change(path.read_text(encoding="utf-8").splitlines()), end="\n")


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("wrong", ["missing", "doubled"])
def test_imagenets_names_must_fit_its_folders(name, wrong, tmp_path):
    trees.TREES[name](tmp_path)
    path = tmp_path / ("imagenet" if name == "imagenet_lt" else trees.of(name).dataset_dir) / "classnames.txt"
    key = list(trees.WORDNET)[1]  # goldfish is in every variant
    if wrong == "missing":
        replace(path, lambda rows: [row for row in rows if not row.startswith(key)])
    else:
        replace(path, lambda rows: [*rows, f"{key} another goldfish"])
    with pytest.raises(ValueError) as error:
        load(name, tmp_path)
    message = str(error.value)
    assert str(path) in message and "\n" not in message
    assert ("'3'" if (name, wrong) == ("imagenetv2", "missing") else key) in message


def test_an_unknown_line_among_imagenets_names(tmp_path):
    trees.imagenet_lt(tmp_path)
    replace(tmp_path / "imagenet" / "classnames.txt", lambda rows: [*rows, "n01442000 a fish"])
    with pytest.raises(ValueError, match="n01442000"):
        load("imagenet_lt", tmp_path)
    trees.imagenetv2(tmp_path)
    replace(tmp_path / "imagenetv2" / "classnames.txt", lambda rows: [*rows, "n01442000 a fish"])
    with pytest.raises(FileNotFoundError, match=r"/4'"):
        load("imagenetv2", tmp_path)


DAMAGE = [
    ("places_lt", "classnames.txt", lambda rows: [*rows[:1], "beach beach", *rows[1:]], "zen_garden"),
    ("places_lt", "classnames.txt", lambda rows: [*rows[:2], *rows[1:]], "airplane_cabin"),
    ("places_lt", "classnames.txt", lambda rows: rows[:2], "below 2"),
    ("fgvc_aircraft", "variants.txt", lambda rows: [*rows[:2], *rows[1:]], "Cessna 172"),
    ("fgvc_aircraft", "variants.txt", lambda rows: [*rows, "Tu-154"], "Tu-154"),
    ("sun397", "ClassName.txt", lambda rows: [*rows[:1], *rows], "/a/abbey"),
    ("sun397", "ClassName.txt", lambda rows: [*rows, "/b/beach"], "/b/beach"),
    ("ucf101", "ucfTrainTestlist/classInd.txt", lambda rows: [*rows, "4 YoYo"], "YoYo"),
    ("ucf101", "ucfTrainTestlist/classInd.txt", lambda rows: [*rows, "3 Archery"], "'3'"),
    ("ucf101", "ucfTrainTestlist/classInd.txt", lambda rows: [*rows, "4 Archery"], "Archery"),
]


@pytest.mark.parametrize(("name", "file", "damage", "key"), DAMAGE)
def test_other_files_of_names_must_fit_their_lists(name, file, damage, key, tmp_path):
    trees.TREES[name](tmp_path)
    path = tmp_path / trees.of(name).dataset_dir / file
    replace(path, damage)
    with pytest.raises(ValueError) as error:
        load(name, tmp_path)
    assert key in str(error.value) and "\n" not in str(error.value)
    assert key == "below 2" or path.name in str(error.value)


@pytest.mark.parametrize(
    ("name", "file", "content", "key"),
    [
        ("oxford_flowers", "cat_to_name.json", '{"1": "a", "2": "b", "3": "c", "2": "d"}', "'2'"),
        ("oxford_flowers", "cat_to_name.json", '{"1": "a", "2": "b", "3": "c", "4": "d"}', "'4'"),
        ("oxford_flowers", "cat_to_name.json", '{"1": "a", "3": "c"}', "'2'"),
        ("oxford_flowers", "cat_to_name.json", '["a", "b", "c"]', "names"),
        ("inat2018", "categories.json", [0, 1, 1, 2, 3], "1"),
        ("inat2018", "categories.json", [0, 1, 3], "2"),
        ("inat2018", "categories.json", [0, 1, 2, 3, 4], "name 4"),
    ],
)
def test_json_files_of_names_must_fit_their_lists(name, file, content, key, tmp_path):
    trees.TREES[name](tmp_path)
    path = tmp_path / trees.of(name).dataset_dir / file
    if not isinstance(content, str):
        content = json.dumps([{"id": number, "name": f"name {number}"} for number in content])
    write(path, content)
    with pytest.raises(ValueError) as error:
        load(name, tmp_path)
    assert key in str(error.value) and str(path) in str(error.value) and "\n" not in str(error.value)


def test_a_spare_name_of_cifar100(tmp_path):
    trees.cifar100(tmp_path, "binary")
    replace(
        tmp_path / "cifar100" / "cifar-100-binary" / "fine_label_names.txt", lambda rows: [*rows[:3], "x", *rows[3:]]
    )
    with pytest.raises(ValueError, match="101"):
        load("cifar100_lt", tmp_path)


def test_the_case_of_a_suffix_does_not_matter(birds, tmp_path):  # noqa: F811
    fill(birds, a=4, b=4)
    (tmp_path / "NAMES.JSON").write_text('{"a": "ant", "b": "bee"}')
    assert load("folder", birds, "DATASET.CLASSNAMES", tmp_path / "NAMES.JSON").classnames == ["ant", "bee"]
