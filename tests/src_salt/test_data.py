from __future__ import annotations

import pickle
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from sklearn.model_selection import train_test_split

from src_salt.config import Settings
from src_salt.data import (
    DataError,
    LabelledImages,
    TrainingDataset,
    evaluation_loader,
    find_competition,
    load_competition,
    read_ids,
    split,
    training_loader,
)

from .conftest import TEST, TRAIN

MakeSettings = Callable[..., Settings]


def rewrite_zip(path: Path, change: Callable[[dict[str, bytes]], object]) -> None:
    """Let `change` edit the zip's members, a dictionary from names to bytes."""
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    change(members)
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)


def png(*shape: int, dtype: type = np.uint8) -> bytes:
    return bytes(cv2.imencode(".png", np.zeros(shape, dtype))[1])


def unpack(folder: Path, train_to: str, test_to: str) -> None:
    for side, target in (("train", train_to), ("test", test_to)):
        zipfile.ZipFile(folder / f"{side}.zip").extractall(folder / target)
        (folder / f"{side}.zip").unlink()


# --- finding and reading ------------------------------------------------------------------------


@pytest.mark.parametrize("below", ["", "competitions", "competitions/tgs-salt"])
def test_competition_is_found_up_to_two_levels_below(
    below: str, competition_dir: Path, tmp_path: Path
) -> None:
    target = tmp_path / "input" / below
    shutil.copytree(competition_dir, target)
    assert find_competition(tmp_path / "input") == target


def test_three_levels_below_is_not_searched(competition_dir: Path, tmp_path: Path) -> None:
    shutil.copytree(competition_dir, tmp_path / "a" / "b" / "c")
    with pytest.raises(DataError, match=r"train\.csv and sample_submission\.csv"):
        find_competition(tmp_path)


def test_two_competitions_are_an_error(competition_dir: Path, tmp_path: Path) -> None:
    for name in ("one", "two"):
        shutil.copytree(competition_dir, tmp_path / name)
    with pytest.raises(DataError, match="several folders"):
        find_competition(tmp_path)


def test_missing_folder_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="there is no folder"):
        load_competition(tmp_path / "missing")


@pytest.mark.parametrize(("train_to", "test_to"), [("train", "test"), ("", "test"), ("", "")])
def test_unpacked_folders_give_the_same_data_as_zips(
    train_to: str, test_to: str, competition_dir: Path, copied_dir: Path
) -> None:
    unpack(copied_dir, train_to, test_to)  # the last case mixes train and test in one folder
    zipped, unpacked = load_competition(competition_dir), load_competition(copied_dir)
    assert unpacked.labelled.fingerprint() == zipped.labelled.fingerprint()
    assert unpacked.test.ids == zipped.test.ids
    assert np.array_equal(unpacked.test.images, zipped.test.images)


def test_arrays_equal_the_pixels_of_the_files(competition_dir: Path) -> None:
    competition = load_competition(competition_dir)
    labelled = competition.labelled
    assert list(labelled.ids) == sorted(labelled.ids)
    assert len(labelled) == TRAIN
    assert len(competition.test) == TEST
    with zipfile.ZipFile(competition_dir / "train.zip") as archive:
        for row, image_id in enumerate(labelled.ids):
            for kind, found in (("images", labelled.images[row]), ("masks", labelled.masks[row])):
                content = np.frombuffer(archive.read(f"{kind}/{image_id}.png"), np.uint8)
                pixels = cv2.imdecode(content, cv2.IMREAD_UNCHANGED)
                expected = pixels[..., 0] if kind == "images" else pixels > 0
                assert np.array_equal(found, expected)
    assert 0 < labelled.masks.mean() < 1
    assert labelled.masks.max() == 1


def test_reading_does_not_change_the_folder(copied_dir: Path) -> None:
    before = sorted((path.name, path.stat().st_mtime_ns) for path in copied_dir.iterdir())
    load_competition(copied_dir)
    assert sorted((p.name, p.stat().st_mtime_ns) for p in copied_dir.iterdir()) == before


def test_ids_that_look_like_numbers_stay_text(tmp_path: Path) -> None:
    path = tmp_path / "train.csv"
    for ids in (["0012345678", "4000000012"], ["12e0000005", "0012345678"], ["NA", "1"]):
        path.write_text("\n".join(["id,rle_mask", *(f"{i},1 1" for i in ids), ""]))
        assert read_ids(path) == ids


def test_extra_files_of_macos_are_ignored(copied_dir: Path) -> None:
    def add(members: dict[str, bytes]) -> None:
        members["__MACOSX/images/._x.png"] = b"x"
        members["images/._x.png"] = b"x"
        members["images/.DS_Store"] = b"x"

    rewrite_zip(copied_dir / "train.zip", add)
    assert len(load_competition(copied_dir).labelled) == TRAIN


# --- zip files of other programs ----------------------------------------------------------------


def rename_members(path: Path, rename: Callable[[str], str]) -> None:
    def change(members: dict[str, bytes]) -> None:
        for name in list(members):
            members[rename(name)] = members.pop(name)

    rewrite_zip(path, change)


@pytest.mark.parametrize(
    "rename",
    [
        lambda name: "./" + name,
        lambda name: name.replace("/", "\\"),
        lambda name: "train/" + name,
        lambda name: "data/tgs salt/" + name,
        lambda name: name.replace(".png", ".PNG"),
        lambda name: "/" + name.replace("/", "//"),
    ],
)
def test_names_of_other_programs_are_accepted(
    rename: Callable[[str], str], labelled: LabelledImages, copied_dir: Path
) -> None:
    rename_members(copied_dir / "train.zip", rename)
    assert load_competition(copied_dir).labelled.fingerprint() == labelled.fingerprint()


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_every_compression_of_python_and_zip64_are_accepted(
    method: int, labelled: LabelledImages, copied_dir: Path
) -> None:
    with zipfile.ZipFile(copied_dir / "train.zip") as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(copied_dir / "train.zip", "w", method) as archive:
        for name, content in members.items():
            with archive.open(name, "w", force_zip64=True) as member:
                member.write(content)
    assert load_competition(copied_dir).labelled.fingerprint() == labelled.fingerprint()


def test_folder_with_the_name_of_the_zip_is_accepted(
    labelled: LabelledImages, copied_dir: Path
) -> None:
    with zipfile.ZipFile(copied_dir / "train.zip") as archive:
        archive.extractall(copied_dir / "unpacked")
    (copied_dir / "train.zip").unlink()
    (copied_dir / "unpacked").rename(copied_dir / "train.zip")
    assert load_competition(copied_dir).labelled.fingerprint() == labelled.fingerprint()


def patch_headers(path: Path, offset: int, value: int) -> None:
    """Change a byte in the local and the central header of every member."""
    content = bytearray(path.read_bytes())
    for mark, shift in ((b"PK\1\2", 0), (b"PK\3\4", -2)):
        place = content.find(mark)
        while place >= 0:
            content[place + offset + shift] = value
            place = content.find(mark, place + 4)
    path.write_bytes(content)


def compress_and_damage(path: Path, method: int) -> None:
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    content = bytearray(path.read_bytes())
    content[70:160] = bytes(90)
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda path: patch_headers(path, 8, 1), r"images/\w+\.png: is encrypted"),
        (lambda path: patch_headers(path, 10, 9), r"images/\w+\.png: .*method \(number 9\)"),
        (lambda path: patch_headers(path, 10, 93), r"images/\w+\.png: .*method \(number 93\)"),
        (lambda path: compress_and_damage(path, zipfile.ZIP_DEFLATED), r"images/\w+\.png: "),
        (lambda path: compress_and_damage(path, zipfile.ZIP_BZIP2), r"images/\w+\.png: "),
        (lambda path: compress_and_damage(path, zipfile.ZIP_LZMA), r"images/\w+\.png: "),
        (lambda path: path.write_bytes(path.read_bytes()[:-30]), "opened as a zip"),
        (lambda path: path.write_bytes(b""), "opened as a zip"),
        (lambda path: path.write_text("<!DOCTYPE html><html>"), "begins with b'<!DOCTYPE html>"),
        (lambda path: rename_members(path, lambda name: Path(name).name), "no folder images"),
        (lambda path: rename_members(path, lambda name: "../" + name), "no folder images"),
        (
            lambda path: rewrite_zip(path, lambda all: all.update({min(all): bytes(11 << 20)})),
            r"images/\w+\.png: has more than 10 MB",
        ),
        (
            lambda path: rewrite_zip(
                path, lambda all: [all.pop(name) for name in list(all) if name.startswith("masks")]
            ),
            "no folder masks",
        ),
        (
            lambda path: rewrite_zip(
                path, lambda all: all.update({"./" + name: all[name] for name in list(all)})
            ),
            r"contains images/\w+\.png twice",
        ),
        (
            lambda path: rename_members(
                path, lambda name: ("a/" if name[7] < "8" else "b/") + name
            ),
            "several folders images: a/images, b/images",
        ),
    ],
)
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_unreadable_zip_is_named(
    change: Callable[[Path], object], message: str, copied_dir: Path
) -> None:
    change(copied_dir / "train.zip")
    with pytest.raises(DataError, match=message) as error:
        load_competition(copied_dir)
    assert str(copied_dir / "train.zip") in str(error.value)
    assert "\n" not in str(error.value)


# --- errors in real files -----------------------------------------------------------------------


def first_of(folder: Path, kind: str) -> str:
    with zipfile.ZipFile(folder / "train.zip") as archive:
        return next(name for name in archive.namelist() if name.startswith(kind))


@pytest.mark.parametrize("kind", ["images", "masks"])
@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda content: content[: len(content) // 2], "corrupt"),
        (lambda content: content[:-12], "corrupt"),
        (lambda _: b"not an image", "corrupt"),
        (lambda _: b"", "."),
        (lambda _: png(101, 100), "is 100x101 pixels, not 101x101"),
    ],
)
def test_broken_image_is_named(
    kind: str, damage: Callable[[bytes], bytes], message: str, copied_dir: Path
) -> None:
    name = first_of(copied_dir, kind)

    def change(members: dict[str, bytes]) -> None:
        members[name] = damage(members[name])

    rewrite_zip(copied_dir / "train.zip", change)
    with pytest.raises(DataError, match=message) as error:
        load_competition(copied_dir)
    assert f"train.zip/{name}: " in str(error.value)


@pytest.mark.parametrize("side", ["train", "test"])
def test_changed_bytes_inside_a_zip_are_detected(side: str, copied_dir: Path) -> None:
    path = copied_dir / f"{side}.zip"
    content = bytearray(path.read_bytes())
    content[2000] ^= 0xFF
    path.write_bytes(content)
    with pytest.raises(DataError, match=rf"{side}\.zip/\S+\.png: "):
        load_competition(copied_dir)


def test_16_bit_image_is_rejected(copied_dir: Path) -> None:
    name = first_of(copied_dir, "images")
    broken = png(101, 101, dtype=np.uint16)
    rewrite_zip(copied_dir / "train.zip", lambda members: members.update({name: broken}))
    with pytest.raises(DataError, match=f"{name}: has uint16 pixels"):
        load_competition(copied_dir)


def test_color_image_is_rejected(copied_dir: Path) -> None:
    name = first_of(copied_dir, "images")
    colors = np.random.default_rng(0).integers(0, 255, (101, 101, 3), dtype=np.uint8)
    broken = bytes(cv2.imencode(".png", colors)[1])
    rewrite_zip(copied_dir / "train.zip", lambda members: members.update({name: broken}))
    with pytest.raises(DataError, match=f"{name}: has channels that differ"):
        load_competition(copied_dir)


@pytest.mark.parametrize(
    ("kind", "message"), [("images", "mask without image"), ("masks", "image without mask")]
)
@pytest.mark.parametrize("unpacked", [False, True])
def test_missing_image_or_mask_of_a_pair_is_named(
    kind: str, message: str, unpacked: bool, copied_dir: Path
) -> None:
    name = first_of(copied_dir, kind)
    if unpacked:
        unpack(copied_dir, "", "")
        (copied_dir / name).unlink()
    else:
        rewrite_zip(copied_dir / "train.zip", lambda members: members.pop(name))
    with pytest.raises(DataError, match=f"{message}: there is no .*{name}"):
        load_competition(copied_dir)


@pytest.mark.parametrize(
    ("file", "edit", "message"),
    [
        ("train.csv", lambda t: t + "ffffffffff,\n", r"id of train\.csv without image.*ffffffffff"),
        (
            "sample_submission.csv",
            lambda t: t + "ffffffffff,1 1\n",
            "id of sample_submission.*ffff",
        ),
        (
            "train.csv",
            lambda t: t + t.splitlines()[1] + "\n",
            r"train\.csv: .* more than once",
        ),
        ("sample_submission.csv", lambda t: t + t.splitlines()[1] + "\n", "appears more than once"),
        ("train.csv", lambda t: t.replace("id,", "name,", 1), r"train\.csv: has no column 'id'"),
        ("train.csv", lambda t: t.splitlines()[0] + "\n", r"train\.csv: has no rows"),
        ("train.csv", lambda t: t + ",1 1\n", r"train\.csv: a row has no id"),
        ("train.csv", lambda _: "", r"train\.csv: cannot be read"),
    ],
)
def test_broken_csv_is_named(
    file: str, edit: Callable[[str], str], message: str, copied_dir: Path
) -> None:
    path = copied_dir / file
    path.write_text(edit(path.read_text()))
    with pytest.raises(DataError, match=message):
        load_competition(copied_dir)


def test_id_in_both_train_and_test_is_rejected(copied_dir: Path) -> None:
    shared = (copied_dir / "train.csv").read_text().splitlines()[1].split(",")[0]
    with (copied_dir / "sample_submission.csv").open("a") as file:
        file.write(f"{shared},1 1\n")
    with pytest.raises(DataError, match=f"{shared} in both train.csv and sample_submission.csv"):
        load_competition(copied_dir)


def test_invalid_and_missing_zip_are_errors(copied_dir: Path) -> None:
    (copied_dir / "test.zip").write_bytes(b"PK not really")
    with pytest.raises(DataError, match=r"test\.zip: cannot be opened as a zip"):
        load_competition(copied_dir)
    (copied_dir / "test.zip").unlink()
    with pytest.raises(DataError, match=r"neither test\.zip nor a folder test/images"):
        load_competition(copied_dir)


# --- split and loaders --------------------------------------------------------------------------


def test_split_is_scikit_learns_over_the_sorted_ids(
    labelled: LabelledImages, settings: MakeSettings
) -> None:
    train, validation = split(labelled, settings(seed=7))
    expected = train_test_split(sorted(labelled.ids), test_size=0.2, random_state=42)
    assert [list(train.ids), list(validation.ids)] == expected
    row = labelled.ids.index(validation.ids[1])
    assert np.array_equal(validation.images[1], labelled.images[row])
    assert np.array_equal(validation.masks[1], labelled.masks[row])


def test_limits_keep_the_first_images_of_each_part(
    labelled: LabelledImages, settings: MakeSettings
) -> None:
    whole = split(labelled, settings())
    limited = split(labelled, settings(limit_train=5, limit_val=2))
    assert [part.ids for part in limited] == [whole[0].ids[:5], whole[1].ids[:2]]
    assert len(split(labelled, settings(limit_train=999))[0]) == len(whole[0])


def test_three_images_are_too_few(labelled: LabelledImages, settings: MakeSettings) -> None:
    with pytest.raises(DataError, match="3 images are too few"):
        split(labelled.subset([0, 1, 2]), settings())


def epochs(labelled: LabelledImages, settings: Settings, count: int = 2) -> list[torch.Tensor]:
    """All images of each epoch, (N, 3, S, S), in the order of the loader."""
    loader = training_loader(labelled, settings)
    return [torch.cat([images for images, _ in loader]) for _ in range(count)]


def test_batches_do_not_depend_on_the_number_of_workers(
    labelled: LabelledImages, settings: MakeSettings
) -> None:
    alone = epochs(labelled, settings())
    assert all(torch.equal(*pair) for pair in zip(alone, epochs(labelled, settings()), strict=True))
    helped = epochs(labelled, settings(num_workers=2))
    assert all(torch.equal(*pair) for pair in zip(alone, helped, strict=True))
    assert not torch.equal(alone[0], epochs(labelled, settings(seed=1), 1)[0])


def test_augmentation_differs_between_epochs_and_samples(
    labelled: LabelledImages, settings: MakeSettings
) -> None:
    row = int(labelled.images.std(axis=(1, 2)).argmax())
    copies = labelled.subset([row] * 20)
    first, second = epochs(copies, settings(num_workers=2))
    assert len({image.numpy().tobytes() for image in torch.cat([first, second])}) > 20


def test_epoch_contains_every_image_once(labelled: LabelledImages, settings: MakeSettings) -> None:
    loader = training_loader(labelled, settings())
    assert sorted(index for index, _ in loader.sampler) == list(range(len(labelled)))
    orders = [[index for index, _ in loader.sampler] for _ in range(2)]
    assert orders[0] != orders[1]


@pytest.mark.parametrize(("count", "sizes"), [(8, [4, 4]), (9, [4, 4]), (10, [4, 4, 2])])
def test_last_batch_of_one_image_is_dropped(
    count: int, sizes: list[int], labelled: LabelledImages, settings: MakeSettings
) -> None:
    few = labelled.subset(range(count))
    assert [len(images) for images, _ in training_loader(few, settings())] == sizes
    assert sum(len(images) for images, _ in evaluation_loader(few, settings())) == count


def test_datasets_can_be_pickled_for_spawned_workers(labelled: LabelledImages) -> None:
    dataset = TrainingDataset(labelled, 32)
    copy = pickle.loads(pickle.dumps(dataset))
    assert torch.equal(copy[3, 99][0], dataset[3, 99][0])
