from __future__ import annotations

import builtins
from pathlib import Path

import pytest
import torch

from tests.data.refusals import message

CLASSES = "image,label\ni0.png,cat\ni1.png,dog\ni2.png,cat\ni3.png,dog\ni4.png,cat\ni5.png,dog\n"
PRICES = "image,rooms,price\ni0.png,1,10.5\ni1.png,2,20\ni2.png,3,30\ni3.png,4,45\ni4.png,5,50\ni5.png,6,61\n"
SPLIT = "image,label,part\ni0.png,cat,train\ni1.png,dog,train\ni2.png,cat,Valid\ni3.png,dog,val\ni4.png,cat,test\n"


def test_a_text_column_is_classified(table, load) -> None:
    images = load(table(CLASSES))
    assert (images.task.kind, images.classes) == ("classify", ("cat", "dog"))
    assert {s.key: images.classes[s.target] for s in images.train.samples + images.val.samples}["i1.png"] == "dog"


def test_tags_in_one_column_are_a_multilabel_task(table, load) -> None:
    images = load(table('f,tags\ni0.png,"sea, sun"\ni1.png,sun\ni2.png,\ni3.png,"sea,tree"\ni4.png,sea\ni5.png,tree\n'))
    assert (images.task.kind, images.classes) == ("multilabel", ("sea", "sun", "tree"))
    targets = {sample.key: sample.target for sample in images.train.samples + images.val.samples}
    assert targets["i0.png"] == (1.0, 1.0, 0.0)
    assert targets["i2.png"] == (0.0, 0.0, 0.0)


def test_another_tags_separator_can_be_given(table, load) -> None:
    text = "f,tags\ni0.png,sea|sun\ni1.png,sun\ni2.png,sea\ni3.png,sun\n"
    assert load(table(text), tags_separator="|").classes == ("sea", "sun")
    assert "data.tags_separator: it is empty" in message(load, table(text), tags_separator="")


def test_several_0_1_columns_are_a_multilabel_task(table, load) -> None:
    images = load(table("f,sun,sea\ni0.png,1,0\ni1.png,0,1\ni2.png,1,1\ni3.png,0,0\ni4.png,1,0\ni5.png,0,1\n"))
    assert (images.task.kind, images.classes) == ("multilabel", ("sea", "sun"))
    targets = {sample.key: sample.target for sample in images.train.samples + images.val.samples}
    assert targets["i0.png"] == (0.0, 1.0)


def test_numbers_are_a_regression_scaled_by_the_training_split_alone(table, load) -> None:
    images = load(table(PRICES), target="price")
    assert (images.task.kind, images.task.targets) == ("regress", ("price",))
    train = torch.tensor([sample.target for sample in images.train.samples])
    standard = images.task.standardise(train)
    torch.testing.assert_close(standard.mean(0), torch.zeros(1), atol=1e-6, rtol=0)
    torch.testing.assert_close(standard.std(0, unbiased=False), torch.ones(1))
    torch.testing.assert_close(images.task.original(standard), train)


def test_several_numbers_are_a_regression_with_several_targets(table, load) -> None:
    images = load(table(PRICES), target=("rooms", "price"))
    assert images.task.targets == ("rooms", "price")
    assert images.task.num_outputs == 2


def test_few_whole_numbers_are_an_error_that_names_both_readings(table, load) -> None:
    path = table("f,stars\ni0.png,1\ni1.png,2\ni2.png,1\ni3.png,2\n")
    text = message(load, path)
    assert "column 'stars' of rows.csv holds 2 distinct whole numbers" in text
    assert "--task.kind classify or --task.kind regress" in text
    assert load(path, kind="classify").classes == ("1", "2")
    assert load(path, kind="regress").task.targets == ("stars",)


def test_several_possible_targets_are_an_error_that_names_them_and_the_option(table, load) -> None:
    text = message(load, table(PRICES))
    assert "any of the columns 'rooms', 'price' can be the target" in text
    assert "--data.target COLUMN" in text


def test_a_missing_column_is_an_error_that_names_those_there_are(table, load) -> None:
    for option in ("target", "image", "split", "group"):
        text = message(load, table(CLASSES), **{option: "prize"})
        assert f"data.{option}: " in text
        assert "has no column 'prize'; its columns are 'image', 'label'" in text


def test_a_table_without_image_paths_is_an_error(table, load) -> None:
    assert "no column holds image paths" in message(load, table("a,b\nx,y\n"))


def test_two_columns_of_images_are_an_error_unless_one_alone_exists(table, load) -> None:
    text = "front,back,label\ni0.png,i1.png,a\ni2.png,i3.png,b\ni4.png,i5.png,a\n"
    assert "columns 'front', 'back' all hold image paths" in message(load, table(text))
    images = load(table(CLASSES.replace("cat", "cat.png").replace("dog", "dog.png")))
    assert images.classes == ("cat.png", "dog.png")


def test_missing_files_are_listed_with_their_lines(table, load) -> None:
    text = message(load, table(CLASSES, pictures=4))
    assert "2 of 6 images do not exist (looked in " in text
    assert "rows.csv line 6: " in text
    assert "i4.png" in text
    assert "--data.images FOLDER" in text


def test_images_are_found_in_an_images_folder_beside_the_table(table, load, tmp_path: Path, draw) -> None:
    for place in range(6):
        draw(tmp_path / f"images/i{place}.png", seed=place)
    images = load(table(CLASSES, pictures=0))
    assert images.train.source.paths[images.train.samples[0].key].parent == tmp_path / "images"
    assert images.train.samples[0].key == "i0.png" or images.val.samples[0].key == "i0.png"


def test_images_start_from_the_folder_that_is_given(table, load, tmp_path: Path, draw) -> None:
    for place in range(6):
        draw(tmp_path / f"deep/down/i{place}.png", seed=place)
    assert len(load(table(CLASSES, pictures=0), images=str(tmp_path / "deep/down")).scan.hashes) == 6
    assert "data.images: there is no folder" in message(load, table(CLASSES), images=str(tmp_path / "none"))


def test_a_row_that_repeats_an_image_is_an_error(table, load) -> None:
    text = message(load, table(CLASSES + "./i0.png,dog\n"))
    assert "rows.csv line 8: image 'i0.png' is already in rows.csv line 2; keep one row per image" in text


@pytest.mark.parametrize("cell", ["nan", "inf", "n/a", "12 000 or so", ""])
def test_bad_numbers_are_named_with_their_line(table, load, cell: str) -> None:
    text = message(load, table(PRICES.replace("45", cell)), target="price")
    found = repr(cell) if cell else "an empty cell"
    assert f"rows.csv line 5: {found} in target column 'price' is not a finite number" in text


def test_a_logarithm_of_nothing_is_an_error_that_names_the_line(table, load) -> None:
    text = message(load, table(PRICES.replace("45", "0")), target="price", log=True)
    assert "rows.csv line 5: '0' in target column 'price' has no logarithm" in text
    assert "data.log: it is for numbers" in message(load, table(CLASSES), log=True)


def test_a_logarithmic_target_is_inverted(table, load) -> None:
    task = load(table(PRICES), target="price", log=True).task
    values = torch.tensor([[10.0], [61.0]])
    assert task.log
    torch.testing.assert_close(task.original(task.standardise(values)), values)


def test_a_constant_target_is_an_error(table, load) -> None:
    text = message(load, table("f,x\n" + "".join(f"i{place}.png,7.5\n" for place in range(6))))
    assert "'x' is 7.5 in each of the" in text


def test_an_empty_class_cell_is_an_error_that_names_the_line(table, load) -> None:
    text = message(load, table(CLASSES.replace("i2.png,cat", "i2.png,")))
    assert "rows.csv line 4: target column 'label' is empty" in text


def test_a_label_per_image_is_an_error(table, load) -> None:
    text = message(load, table("f,name\ni0.png,a\ni1.png,b\ni2.png,c\n"))
    assert "column 'name' has a different label in each of its 3 rows" in text


def test_a_cell_that_is_neither_0_nor_1_is_an_error_in_multilabel(table, load) -> None:
    text = message(load, table("f,a,b\ni0.png,1,0\ni1.png,0,2\n"), kind="multilabel", target=("a", "b"))
    assert "rows.csv line 3: '2' in target column 'b' is neither 0 nor 1" in text


def test_several_columns_of_text_are_an_error(table, load) -> None:
    text = message(load, table("f,a,b\ni0.png,x,y\ni1.png,y,x\n"), target=("a", "b"))
    assert "'a', 'b' holds text" in text
    assert "classify takes one column" in message(load, table(PRICES), target=("rooms", "price"), kind="classify")


@pytest.mark.parametrize(("named", "header"), [("auto", "part"), ("part", "part"), ("auto", "split")])
def test_a_split_column_is_used_when_named_or_found(table, load, named: str, header: str) -> None:
    images = load(table(SPLIT.replace("part", header)), split=named)
    assert [sample.key for sample in images.train.samples] == ["i0.png", "i1.png"]
    assert [sample.key for sample in images.val.samples] == ["i2.png", "i3.png"]
    assert [sample.key for sample in images.test.samples] == ["i4.png"]


def test_a_wrong_split_is_an_error_that_names_the_line(table, load) -> None:
    text = message(load, table(SPLIT.replace("part", "split").replace("val\n", "vall\n")))
    assert "rows.csv line 5: 'vall' in column 'split' is no split; accepted: train, val, test" in text
    assert "marks no row as train" in message(load, table(SPLIT.replace("train", "test")), split="part")


def test_a_class_of_validation_only_is_an_error_in_tables_too(table, load) -> None:
    assert "class 'cow' is in val and not in train" in message(load, table(SPLIT.replace("i3.png,dog", "i3.png,cow")))


def test_a_group_stays_on_one_side(table, load) -> None:
    rows = "".join(f"i{place}.png,{'ab'[place % 2]},p{place // 2}\n" for place in range(20))
    images = load(table("f,label,patient\n" + rows, pictures=20), group="patient")
    sides = [{int(sample.key[1:-4]) // 2 for sample in part.samples} for part in (images.train, images.val)]
    assert sides[0].isdisjoint(sides[1])
    assert sides[1]


def test_groups_that_a_given_split_cuts_are_said(table, load) -> None:
    path = table("f,label,split,who\ni0.png,a,train,x\ni1.png,b,train,y\ni2.png,a,val,x\ni3.png,b,val,z\n")
    assert "1 group is in more than one split as given: 'x'" in load(path, target="label", group="who").notes


def test_shares_are_refused_or_said_where_they_cannot_hold(table, load) -> None:
    assert "leave nothing to train on" in message(load, table(CLASSES), val=0.5, test=0.5)
    notes = load(table(SPLIT.replace("i4.png,cat,test\n", "")), test=0.2).notes
    assert "data.test is not used: the data have their own split" in notes


def test_names_that_python_would_read_as_numbers_stay_names(table, load) -> None:
    assert load(table(CLASSES.replace("cat", "1_2").replace("dog", "3_4"))).classes == ("1_2", "3_4")


def test_groups_that_a_given_test_split_shares_with_training_are_said(table, load) -> None:
    rows = "".join(
        f"i{place}.png,{'ab'[place % 2]},p{place // 2},{'test' if place > 14 else 'train'}\n" for place in range(20)
    )
    notes = load(table("f,label,who,split\n" + rows, pictures=20), target="label", group="who").notes
    assert "1 group is in more than one split as given: 'p7'" in notes


def test_an_empty_group_is_an_error(table, load) -> None:
    text = message(load, table("f,label,who\ni0.png,a,x\ni1.png,b,\n"), group="who")
    assert "rows.csv line 3: the group column 'who' is empty" in text


def test_paths_out_of_the_folder_are_refused(table, load, tmp_path: Path, draw) -> None:
    outside = draw(tmp_path.parent / f"{tmp_path.name}-outside.png", seed=99)
    for name in (f"../{outside.name}", str(outside)):
        text = message(load, table(CLASSES + f"{name},dog\n"))
        assert "rows.csv line 8" in text
        assert "lies outside" in text
    (tmp_path / "link.png").symlink_to(outside)
    assert "lies outside" in message(load, table(CLASSES + "link.png,dog\n"))


def test_absolute_paths_inside_the_folder_are_accepted(table, load, tmp_path: Path) -> None:
    assert "i0.png" in load(table(CLASSES.replace("i0.png", str(tmp_path / "i0.png")))).scan.hashes


def test_semicolons_byte_order_marks_and_windows_paths_are_understood(table, load, tmp_path: Path, draw) -> None:
    path = table(CLASSES.replace(",", ";").replace("i0.png", "sub\\i0.png"))
    draw(tmp_path / "sub/i0.png", seed=50)
    path.write_text(path.read_text(), encoding="utf-8-sig")
    assert "sub/i0.png" in load(path).scan.hashes


def test_damaged_tables_are_errors_that_say_where(table, load, tmp_path: Path) -> None:
    assert "rows.csv line 3: it has 3 cells and the header names 2 columns" in message(
        load, table("f,label\ni0.png,a\ni1.png,b,c\n")
    )
    assert "the file is empty" in message(load, table(""))
    assert "the table has no rows" in message(load, table("f,label\n"))
    assert "column 'a' occurs more than once" in message(load, table("f,a,a\ni0.png,1,2\n"))
    assert "line 3: not readable as CSV" in message(load, table('f,label\ni0.png,a\ni1.png,"b"c\n'))
    path = table(CLASSES)
    path.write_bytes("f,label\ni0.png,é\n".encode("latin-1"))
    assert "it is not UTF-8 text" in message(load, path)


def test_lines_are_those_of_the_file_also_after_blank_and_broken_ones(table, load) -> None:
    text = 'f,label,note\ni0.png,a,"two\nlines"\n\ni1.png,b,x\nmissing.png,b,x\n'
    assert "rows.csv line 6: " in message(load, table(text), target="label")


def test_parquet_is_read_like_csv(table, load, tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    table(CLASSES)
    path = tmp_path / "rows.parquet"
    content = {"file": [f"i{place}.png" for place in range(6)], "price": [1.5, 2, 3, 4, 5, 6]}
    parquet.write_table(pyarrow.table(content), path)
    assert load(path).task.kind == "regress"
    content["price"] = [["x", "y"], ["x"], [], ["y"], ["x"], ["y"]]
    parquet.write_table(pyarrow.table(content), path)
    assert load(path).classes == ("x", "y")
    content["price"] = [1.5, 2.5, None, 4.5, 5.5, 6.5]
    parquet.write_table(pyarrow.table(content), path)
    assert "rows.parquet row 3: an empty cell in target column 'price'" in message(load, path)
    path.write_bytes(b"PAR1 no")
    assert "not readable as Parquet" in message(load, path)


def test_parquet_without_pyarrow_names_the_extra(tmp_path: Path, load, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "rows.parquet"
    path.write_bytes(b"")
    real = builtins.__import__

    def without(name: str, *args: object, **kwargs: object) -> object:
        if name.startswith("pyarrow"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    assert "pip install 'headstart[parquet]'" in message(load, path)


def test_a_tag_in_a_parquet_list_may_hold_any_separator(table, load, tmp_path: Path) -> None:
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    table("unused\n1\n")
    tags = [["sea, wide", "sun"], ["sun"], ["sea, wide"], [None, "sun"], [], ["sun"]]
    path = tmp_path / "rows.parquet"
    parquet.write_table(pyarrow.table({"image": [f"i{place}.png" for place in range(6)], "tags": tags}), path)
    images = load(path)
    assert images.classes == ("sea, wide", "sun")
    targets = {s.key: s.target for s in images.train.samples + images.val.samples}
    assert (targets["i0.png"], targets["i3.png"], targets["i4.png"]) == ((1.0, 1.0), (0.0, 1.0), (0.0, 0.0))
