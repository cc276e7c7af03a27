"""Small trees in the folder layouts of Dassl's datasets, and the splits that they hold."""

from pathlib import Path
from types import SimpleNamespace

from yacs.config import CfgNode


def touch(*paths):
    """Create empty files: datasets list images and do not open them."""
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def class_folders(folder, classes, count=3, extension="jpg"):
    """Write images of each class; two domains have different names, so that no path occurs twice."""
    for name in classes:
        touch(*(folder / name / f"{folder.name}_{number * 37 % 11}.{extension}" for number in range(count)))


def write_list(path, lines):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines))


def office(root):
    for folder, domains in (("office31", ("amazon", "webcam", "dslr")), ("office_home", ("art", "clipart", "product"))):
        for domain in domains:
            class_folders(root / folder / domain, ["Mug", "Bike", "back_pack"])
        touch(root / folder / domains[0] / ".DS_Store", root / folder / domains[0] / "Mug" / ".hidden.jpg")


def visda17(root):
    for part in ("train", "validation"):
        lines = [f"{name}/{part}_{n}.png {label}" for label, name in enumerate(["plane", "bus"]) for n in range(3)]
        touch(*(root / "visda17" / part / line.split()[0] for line in lines))
        write_list(root / "visda17" / part / "image_list.txt", lines)


def domainnet(root):
    for domain in ("clipart", "painting", "real", "sketch", "infograph", "quickdraw"):
        for part in ("train", "test"):
            # The labels of the test part are not those of the sorted names.
            classes = enumerate(["zebra", "ant", "bus"])
            lines = [f"{domain}/{name}/{part}_{n}.jpg {label}" for label, name in classes for n in (2, 0, 1)]
            touch(*(root / "domainnet" / line.split()[0] for line in lines))
            write_list(root / "domainnet" / "splits" / f"{domain}_{part}.txt", lines)
            write_list(root / "domainnet" / "splits_mini" / f"{domain}_{part}.txt", lines[:6])


def cifar_stl(root):
    for domain in ("cifar", "stl"):
        for part in ("train", "test"):
            class_folders(root / "cifar_stl" / domain / part, ["2_bird", "0_airplane", "1_car"])


def digits(root, counts=(("mnist", 5, 3), ("mnist_m", 6, 2), ("svhn", 4, 4), ("syn", 3, 3), ("usps", 7, 3))):
    for domain, train, test in counts:
        for part, count in (("train", train), ("test", test)):
            folder = root / "digit5" / domain / f"{part}_images"
            touch(*(folder / f"{n:06d}_{n * 7 % 10}.jpg" for n in range(count)))


def pacs(root):
    for domain in ("art_painting", "cartoon", "photo", "sketch"):
        for part in ("train", "crossval"):
            classes = enumerate(["dog", "elephant"], 1)
            lines = [f"{domain}/{name}/{part}_{n}.png {label}" for label, name in classes for n in range(2)]
            if (domain, part) == ("sketch", "train"):
                lines.insert(1, "sketch/dog/n02103406_4068-1.png 1")
            touch(*(root / "pacs" / "images" / line.split()[0] for line in lines))
            write_list(root / "pacs" / "splits" / f"{domain}_{part}_kfold.txt", lines)


def vlcs(root):
    for domain in ("CALTECH", "LABELME", "PASCAL", "SUN"):
        for part in ("train", "crossval", "test"):
            class_folders(root / "VLCS" / domain / part, ["0", "1", "2"])
            touch(root / "VLCS" / domain / part / "1" / "notes.txt")


def dg_folders(root):
    for folder, domains in (("digits_dg", ("mnist", "svhn", "syn")), ("office_home_dg", ("art", "clipart", "product"))):
        for domain in domains:
            for part in ("train", "val"):
                class_folders(
                    root / folder / domain / part, ["Bike", "Alarm_Clock"] if "home" in folder else ["0", "1"]
                )


def cifar(root):
    for name in ("cifar10", "cifar100", "svhn"):
        for part, count in (("train", 10), ("test", 2)):
            class_folders(root / name / part, ["cat", "ant"], count)
        class_folders(root / f"{name}_c" / "fog" / "3", ["cat", "ant"])


def stl10(root, train=20, fold=(19, 0, 7, 3)):
    folder = root / "stl10"
    touch(*(folder / "train" / f"{n:06d}_{n % 3}.jpg" for n in range(train)))
    touch(*(folder / "test" / f"{n:06d}_{n % 3}.jpg" for n in range(5)))
    touch(*(folder / "unlabeled" / f"{n:06d}_none.jpg" for n in range(6)))
    write_list(folder / "stl10_binary" / "fold_indices.txt", ["0 1 2", " ".join(map(str, fold)), "3 1", "2 0", "1 2"])


CAMELYON = """
,patient,node,x_coord,y_coord,tumor,slide,center,split
0,004,4,3328,21792,1,0,3,0
1,004,4,3200,22272,0,0,3,0
2,020,2,3168,22272,1,1,1,0
3,020,2,3328,21760,0,1,1,1
4,012,1,1,2,0,2,0,0
5,042,3,5,6,1,3,2,0
6,043,3,5,7,0,4,4,0
"""


def camelyon17(root):
    folder = root / "camelyon17_v1.0"
    write_list(folder / "metadata.csv", CAMELYON.strip().splitlines())
    touch(folder / "RELEASE_v1.0.txt")
    for row in CAMELYON.strip().splitlines()[1:]:
        _, patient, node, x, y, *_ = row.split(",")
        stem = f"patient_{patient}_node_{node}"
        touch(folder / "patches" / stem / f"patch_{stem}_x_{x}_y_{y}.png")


IWILDCAM = """
split,filename,y,location_remapped,sequence_remapped,datetime
train,a.jpg,0,7,0,2013-06-05 05:44:19.000
train,b.jpg,1,3,1,2013-06-05 05:44:19.000
train,c.jpg,2,7,2,2013-06-05 05:44:19.000
val,d.jpg,1,0,3,2013-06-05 05:44:19.000
test,e.jpg,2,5,4,2013-06-05 05:44:19.000
train,f.jpg,0,1,5,2013-06-05 05:44:19.000
train,g.jpg,0,2,6,2013-06-05 05:44:19.000
train,h.jpg,0,4,7,2013-06-05 05:44:19.000
train,i.jpg,0,6,8,2013-06-05 05:44:19.000
"""


def iwildcam(root):
    folder = root / "iwildcam_v2.0"
    write_list(folder / "metadata.csv", IWILDCAM.strip().splitlines())
    write_list(folder / "categories.csv", ["y,category_id,name", "0,0,empty", "1,2,tayassu pecari", '2,5,"deer, red"'])
    touch(folder / "RELEASE_v2.0.txt", *(folder / "train" / f"{letter}.jpg" for letter in "abcdefghi"))


FMOW = """
split,country_code,timestamp,category
train,FRA,2002-05-17T10:12:13Z,zoo
train,JPN,2009-01-02T00:00:00Z,airport
val,FRA,2014-05-17T10:12:13Z,zoo
seq,FRA,2014-05-17T10:12:13Z,barn
test,JPN,2016-05-17T10:12:13Z,barn
train,JPN,2012-05-17T10:12:13Z,barn
"""


def fmow(root):
    folder = root / "fmow_v1.1"
    write_list(folder / "rgb_metadata.csv", FMOW.strip().splitlines())
    write_list(folder / "country_code_mapping.csv", ["alpha-3,region", "FRA,Europe", "JPN,Asia"])
    touch(folder / "RELEASE_v1.1.txt", *(folder / "images" / f"rgb_img_{n}.png" for n in range(6)))


WRITERS = (
    office,
    visda17,
    domainnet,
    cifar_stl,
    digits,
    pacs,
    vlcs,
    dg_folders,
    cifar,
    stl10,
    camelyon17,
    iwildcam,
    fmow,
)


def write_all(root):
    """Write every tree below one folder."""
    for write in WRITERS:
        write(root)


def case(name, source=(), target=(), **keys):
    """Return the keys of ``cfg.DATASET`` of one dataset."""
    return {"NAME": name, "SOURCE_DOMAINS": list(source), "TARGET_DOMAINS": list(target), **keys}


CASES = [
    case("Office31", ["webcam", "amazon"], ["dslr"]),
    case("OfficeHome", ["art"], ["product", "clipart"]),
    case("VisDA17", ["synthetic"], ["real"]),
    case("VisDA17", ["real"], ["synthetic"]),
    case("DomainNet", ["quickdraw", "clipart"], ["infograph"]),
    case("miniDomainNet", ["sketch"], ["real", "painting"]),
    case("CIFARSTL", ["stl"], ["cifar"]),
    case("Digit5", ["usps"], ["usps"]),
    case("DigitSingle", ["mnist"], ["syn", "usps"]),
    case("PACS", ["art_painting", "cartoon"], ["sketch"]),
    case("VLCS", ["caltech", "pascal"], ["sun"]),
    case("DigitsDG", ["mnist"], ["syn", "svhn"]),
    case("OfficeHomeDG", ["art", "product"], ["clipart"]),
    case("CIFAR10C", ["cifar10"], ["cifar10_c"], CIFAR_C_TYPE="fog", CIFAR_C_LEVEL=3),
    case("CIFAR100C", ["cifar100"], ["cifar100_c"], CIFAR_C_TYPE="fog", CIFAR_C_LEVEL=3),
    case("CIFAR10", NUM_LABELED=5, VAL_PERCENT=0.25),
    case("CIFAR100", NUM_LABELED=4, VAL_PERCENT=0.0, ALL_AS_UNLABELED=True),
    case("SVHN", NUM_LABELED=2),
    case("STL10", STL10_FOLD=1),
    case("STL10", STL10_FOLD=0, ALL_AS_UNLABELED=True),
]
WILDS_CASES = [
    case("Camelyon17"),
    case("Camelyon17", NUM_SHOTS=1),  # from the list that the first has written
    case("IWildCam"),
    case("FMoW"),
]


def dataset_cfg(root, keys):
    """Return a config that has what a dataset reads."""
    defaults = {"ROOT": str(root), "NUM_LABELED": -1, "NUM_SHOTS": -1, "VAL_PERCENT": 0.1, "STL10_FOLD": -1}
    corruption = {"CIFAR_C_TYPE": "", "CIFAR_C_LEVEL": 1, "ALL_AS_UNLABELED": False}
    return CfgNode({"VERBOSE": False, "DATASET": {**defaults, **corruption, **keys}})


def described(dataset):
    """Return a dataset as plain values, to compare with another or to write as JSON."""
    splits = {
        name: None if items is None else [[item.impath, item.label, item.domain, item.classname] for item in items]
        for name, items in ((name, getattr(dataset, name)) for name in ("train_x", "train_u", "val", "test"))
    }
    classes = [dataset.num_classes, dataset.classnames, sorted(dataset.lab2cname.items())]
    return {**splits, "classes": classes, "dir": dataset.dataset_dir, "domains": list(type(dataset).domains)}


def below(root, items):
    """Return items with paths relative to a folder."""
    return [(str(Path(i.impath).relative_to(root)), i.label, i.domain, i.classname) for i in items]


def subset(indices, **columns):
    """Return a subset as the package wilds has it."""
    return SimpleNamespace(indices=indices, dataset=SimpleNamespace(**columns))
