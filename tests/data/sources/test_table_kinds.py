"""Tables as spreadsheets, pandas, competitions and other machines write them: read, or asked back with what to type."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pytest

from headstart.config.schema import Data
from headstart.data.sources.listing import list_source
from headstart.data.sources.samples import Listing
from headstart.errors import DataError

Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes a table as bytes or lines, and files of these names, which nothing opens; gives the table's path."""

    def run(lines: Sequence[str] | bytes, files: Sequence[str] = (), *, name: str = "rows.csv") -> Path:
        for file in files:
            (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / file).write_bytes(b"")
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(lines if isinstance(lines, bytes) else "".join(f"{line}\n" for line in lines).encode())
        return path

    return run


def read(path: Path, kind: str = "auto", known: Sequence[str] = (), **options: object) -> Listing:
    return list_source(Data(source=str(path), **options), kind=kind, known=known)


def ask(path: Path, kind: str = "auto", **options: object) -> str:
    with pytest.raises(DataError) as caught:
        read(path, kind, **options)
    return str(caught.value)


def labels(listing: Listing) -> dict[str, tuple[str, ...]]:
    return {record.name: record.labels for record in listing.records}


def numbers(listing: Listing) -> list[float]:
    return [next(iter(record.numbers.values())) for record in listing.records]


def columns(cells: Sequence[str], *, header: str = "image,y", mark: str = ",") -> tuple[list[str], list[str]]:
    """A table of these cells, and the images that it names."""
    files = [f"{place:03}.png" for place in range(len(cells))]
    return [header.replace(",", mark), *(f"{file}{mark}{cell}" for file, cell in zip(files, cells, strict=True))], files


NUMBERS: Mapping[str, tuple[Sequence[str], list[float], str]] = {
    "decimal commas": (["3,5", "4,0", "1", "12,25"], [3.5, 4, 1, 12.25], "decimal commas, e.g. '3,5' is 3.5"),
    "thousands commas": (["1,200.50", "900", "12,000", "7"], [1200.5, 900, 12000, 7], "thousands commas"),
    "points and commas": (["1.200,50", "900", "12.000", "7,5"], [1200.5, 900, 12000, 7.5], "thousands points and"),
    "two groups": (["1,200,000", "900.5", "12,000", "7"], [1.2e6, 900.5, 12000, 7], "thousands commas"),
    "blanks": (["1 200", "900,5", "12 000", "7"], [1200, 900.5, 12000, 7], "thousands blanks"),
    "no-break blanks": (["1\u202f200", "900.5", "12\u00a0000", "7"], [1200, 900.5, 12000, 7], "thousands blanks"),
    "apostrophes": (["1'200.5", "900", "12'000", "7"], [1200.5, 900, 12000, 7], "thousands apostrophes"),
    "lakhs": (["1,00,000", "2,50,000", "900.5", "7"], [1e5, 2.5e5, 900.5, 7], "thousands commas"),
    "minus signs": (["−3,5", "4,0", "-1", "2"], [-3.5, 4, -1, 2], "decimal commas"),
    "a currency": (["$1,200.50", "$900", "$12", "$7"], [1200.5, 900, 12, 7], "the sign '$'"),
    "a unit": (["12.5 kg", "9 kg", "8kg", "7 kg"], [12.5, 9, 8, 7], "the sign 'kg'"),
    "comma and exponent": (["0,5E-01", "1,5e2", "2", "3,0"], [0.05, 150, 2, 3], "decimal commas, e.g. '0,5E-01' is"),
    "accounts": (["(10.5)", "4", "(1)", "2"], [-10.5, 4, -1, 2], "parentheses for negative ones, e.g. '(10.5)' is"),
    "accounts in euros": (["€10,5", "(€4,0)", "€1", "€2,5"], [10.5, -4, 1, 2.5], "commas and the sign '€', which is"),
    "percent": (["12,5 %", "9 %", "8 %", "7 %"], [12.5, 9, 8, 7], "decimal commas and the sign '%'"),
    "plain": (["12.5", "1e3", "8", "-7"], [12.5, 1000, 8, -7], ""),
}


@pytest.mark.parametrize("name", NUMBERS)
def test_numbers_are_read_as_the_set_of_cells_says_and_the_spelling_is_said(write: Write, name: str) -> None:
    cells, values, said = NUMBERS[name]
    listing = read(write(*columns(cells, mark=";")))
    assert listing.kind == "regress"
    assert numbers(listing) == values
    notes = [note for note in listing.notes if "are read with" in note]
    assert bool(notes) == bool(said) and all(said in note for note in notes)


def test_a_comma_that_may_be_decimal_or_of_thousands_is_asked_about(write: Write) -> None:
    path = write(*columns([f"{1 + place},{200 + place}" for place in range(30)], mark=";"))
    text = ask(path)
    assert (
        "rows.csv line 2: '1,200' in target column 'y' is 1.2 with a decimal comma and 1200 with a decimal point"
        in text
    )
    assert "--data.decimal comma or --data.decimal point" in text
    assert numbers(read(path, decimal="comma"))[:2] == [1.2, 2.201]
    assert numbers(read(path, decimal="point"))[:2] == [1200, 2201]


def test_two_spellings_in_one_column_are_named_and_not_mixed(write: Write) -> None:
    assert "'1,5' in target column 'y' is 1.5 with a decimal comma and no number" in ask(
        write(*columns(["1,5", "2.5", "3,5", "4.5"], mark=";"))
    )
    text = ask(write(*columns(["$1,200", "€900", "$8", "€7"], mark=";")))
    assert "numbers with different signs ('$', '€')" in text and "--task.kind classify" in text
    assert "different signs ('M', 'k')" in ask(write(*columns(["12k", "1.5M", "8k", "7k"], mark=";")))
    assert "signs ('kg' and some without)" in ask(write(*columns(["12 kg", "900", "8 kg", "7"], mark=";")))


def test_short_numbers_on_both_sides_of_commas_may_be_tags(write: Write) -> None:
    path = write(*columns(['"1,3"', '"3,1"', "1", '"3,2"']))
    assert "which may be numbers with decimal commas, or tags" in ask(path)
    assert read(path, "multilabel").names == ("1", "2", "3")
    assert numbers(read(path, decimal="comma")) == [1.3, 3.1, 1, 3.2]


TAGS: Mapping[str, Sequence[str]] = {
    "pipes": ("sea|sun", "sun|sea", "sea", "sun"),
    "semicolons": ("sea;sun", "sun;sea", "sea", "sun"),
    "blanks": ("sea sun", "sun sea", "sea", "sun"),
    "slashes": ("sea/sun", "sun/sea", "sea", "sun"),
    "commas": ('"sea,sun"', '"sun, sea"', "sea", "sun"),
    "Python": ("\"['sea', 'sun']\"", "\"['sun', 'sea']\"", "['sea']", "['sun']"),
    "JSON": ('"[""sea"", ""sun""]"', '"[""sun"",""sea""]"', '"[""sea""]"', '"[""sun""]"'),
    "NumPy": ("['sea' 'sun']", "['sun' 'sea']", "['sea']", "['sun']"),
    "bare": ('"[sea, sun]"', '"[sun, sea]"', "[sea]", "[sun]"),
    "PostgreSQL": ('"{sea,sun}"', '"{sun,sea}"', "{sea}", "{sun}"),
    "tuples": ("\"('sea', 'sun')\"", "\"('sun', 'sea')\"", "\"('sea',)\"", "\"('sun',)\""),
    "arrays": (
        "\"array(['sea', 'sun'], dtype=object)\"",
        "\"array(['sun', 'sea'])\"",
        "array(['sea'])",
        "array(['sun'])",
    ),
}


@pytest.mark.parametrize("name", TAGS)
def test_tags_are_found_whatever_stands_between_them(write: Write, name: str) -> None:
    listing = read(write(*columns(TAGS[name])))
    assert (listing.kind, listing.names) == ("multilabel", ("sea", "sun"))
    assert list(labels(listing).values()) == [("sea", "sun"), ("sea", "sun"), ("sea",), ("sun",)]
    assert any("separated by" in note or "lists in brackets" in note for note in listing.notes)


NAMES: Mapping[str, Sequence[str]] = {
    "a class holds a comma": ('"Smith, Jane"', '"Doe, John"', '"Smith, Jane"', '"Doe, John"'),
    "WordNet": ('"tench, Tinca tinca"', '"crane, bird"', '"tench, Tinca tinca"', '"crane, bird"'),
    "words": ("red car", "blue car", "red bike", "blue bike", "red car", "blue bike"),
    "two words": ("fire lily", "tiger lily", "fire lily", "tiger lily"),
    "pairs": ("a|b", "c|d", "a|b", "c|d"),
    "snake case": ("apple_pie", "ice_cream", "apple_pie", "ice_cream"),
    "species": ("Rosa canina", "Rosa rugosa", "Rosa canina", "Rosa rugosa"),
    "attributes": (*(f"{colour} {thing}" for colour in "abcdef" for thing in "uvwxyz"), "a u"),
    "parentheses": ("(a)", "(b)", "(a)", "(b)"),
}


def test_tags_between_blanks_that_always_stand_in_one_order_are_found_by_their_number(write: Write) -> None:
    names = ("clear", "cultivation", "primary", "road", "water")
    sets = [[tag for place, tag in enumerate(names) if number >> place & 1] for number in range(1, 32)]
    listing = read(write(*columns([" ".join(tags) for tags in sets] * 2)))
    assert (listing.kind, listing.names) == ("multilabel", names)


@pytest.mark.parametrize("name", NAMES)
def test_parts_that_do_not_recombine_freely_are_one_name(write: Write, name: str) -> None:
    listing = read(write(*columns(NAMES[name])))
    assert listing.kind == "classify"
    assert listing.names == tuple(sorted({cell.strip('"') for cell in NAMES[name]}))


@pytest.mark.parametrize(
    ("cells", "mark"),
    [
        (('"Portland, OR"', '"Salem, OR"', '"Boston, MA"', '"Boston, MA"'), "','"),
        (("leaf healthy", "leaf", "healthy", "healthy fruit", "fruit", "leaf"), "' '"),
        (("en-de", "de-en", "en-de", "de-en"), "'-'"),
    ],
)
def test_what_may_be_one_name_or_several_tags_is_asked(write: Write, cells: Sequence[str], mark: str) -> None:
    path = write(*columns(cells))
    text = ask(path)
    assert f"task.kind: in column 'y' of rows.csv parts between {mark} recombine" in text
    assert "--task.kind classify or --task.kind multilabel" in text
    assert set(read(path, "classify").names) == {cell.strip('"') for cell in cells}
    assert read(path, "multilabel").kind == "multilabel"


def test_the_kind_that_is_given_always_wins_and_a_list_of_several_is_no_class(write: Write) -> None:
    assert len(read(write(*columns([*TAGS["pipes"], "sea"])), "classify").names) == 4
    path = write(*columns(TAGS["Python"]))
    assert "holds 2 labels, and classify takes exactly one" in ask(path, "classify")
    single = read(write(*columns(("['sea']", "['sun']", "['sea']", "['sun']"))))
    assert (single.kind, single.names) == ("classify", ("sea", "sun"))


def test_lists_without_names_or_with_a_stranger_are_refused(write: Write) -> None:
    assert "lists of 3 zeros and ones" in ask(write(*columns(['"[0, 1, 0]"', "[1 1 0]", '"[0,0,1]"'])))
    assert "holds mappings (\"{'sea': 1}\")" in ask(write(*columns(["{'sea': 1}", "{'sun': 1}", "{'sea': 1}"])))
    assert "lists of 2 numbers" in ask(write(*columns(['"[0.5, 1.5]"', '"[0.25, 2.5]"', '"[0.75, 1.0]"'])))
    assert "rows.csv line 4: 'tree' in target column 'y' is no list in brackets" in ask(
        write(*columns(["['sea']", "\"['sea', 'sun']\"", "tree"]))
    )


def test_evaluation_reads_tags_by_the_names_that_the_model_has(write: Write) -> None:
    path = write(*columns(["sea sun", "sun tree", "sea tree", "rock"]))
    assert read(path, "multilabel", ("rock", "sea", "sun", "tree")).names == ("rock", "sea", "sun", "tree")
    one = write(*columns(["grey wolf", "red fox", "grey wolf", "red fox"]))
    assert read(one, "multilabel", ("grey wolf", "red fox")).names == ("grey wolf", "red fox")


ONE_HOT = ["image,MEL,NV,BCC", "a.png,1,0,0", "b.png,0,1,0", "c.png,0,0,1", "d.png,0,1,0"]
FILES = ("a.png", "b.png", "c.png", "d.png")


@pytest.mark.parametrize("one", ["1", "1.0", "True"])
def test_columns_with_exactly_one_1_per_row_are_classes(write: Write, one: str) -> None:
    zero = {"1": "0", "1.0": "0.0", "True": "False"}[one]
    lines = [ONE_HOT[0], *(re.sub(r"\b([01])\b", lambda m: one if m[1] == "1" else zero, line) for line in ONE_HOT[1:])]
    listing = read(write(lines, FILES))
    assert (listing.kind, listing.names) == ("classify", ("BCC", "MEL", "NV"))
    assert labels(listing) == {"a.png": ("MEL",), "b.png": ("NV",), "c.png": ("BCC",), "d.png": ("NV",)}
    assert "exactly one 1 per row" in listing.notes[0] and "--task.kind multilabel" in listing.notes[0]
    assert read(write(lines, FILES), "multilabel").kind == "multilabel"


def test_a_row_with_two_classes_makes_tags_of_the_columns_or_is_named(write: Write) -> None:
    path = write([*ONE_HOT, "e.png,1,1,0"], (*FILES, "e.png"))
    assert read(path).kind == "multilabel"
    assert "rows.csv line 6: the row marks 'MEL', 'NV', and classify takes exactly one" in ask(path, "classify")
    path = write([*ONE_HOT, "e.png,0,0,0"], (*FILES, "e.png"))
    assert "rows.csv line 6: the row marks no column" in ask(path, "classify")


def test_shares_that_sum_to_one_give_the_class_with_the_largest(write: Write) -> None:
    lines = ["image,a,b,c", "a.png,0.9,0.05,0.05", "b.png,0.1,0.2,0.7", "c.png,0.33,0.34,0.33", "d.png,1,0,0"]
    listing = read(write(lines, FILES))
    assert (listing.kind, labels(listing)) == (
        "classify",
        {"a.png": ("a",), "b.png": ("c",), "c.png": ("b",), "d.png": ("a",)},
    )
    assert "shares that sum to 1" in listing.notes[0] and "--task.kind regress" in listing.notes[0]
    first = read(write(lines, FILES), "regress").records[0]
    assert tuple(first.numbers.values()) == (0.9, 0.05, 0.05)
    assert "'a', 'b' are the largest alike" in ask(write([*lines, "e.png,0.5,0.5,0"], ("e.png",)), "classify")


def test_a_class_that_no_row_marks_is_said_and_left_out(write: Write) -> None:
    lines = [f"{line},{'UNK' if place == 0 else 0}" for place, line in enumerate(ONE_HOT)]
    listing = read(write(lines, FILES))
    assert listing.names == ("BCC", "MEL", "NV")
    assert "column 'UNK' marks no image, and is no class" in listing.notes


def test_minus_one_and_one_are_flags(write: Write) -> None:
    listing = read(write(["image,smile,hat", "a.png,1,-1", "b.png,-1,-1", "c.png,1,1", "d.png,-1,1"], FILES))
    assert (listing.kind, listing.names) == ("multilabel", ("hat", "smile"))
    assert labels(listing)["a.png"] == ("smile",) and labels(listing)["b.png"] == ()
    assert "-1 is off; if it means unknown, empty those cells" in " ".join(listing.notes)


def test_a_single_column_of_0_and_1_is_two_classes(write: Write) -> None:
    listing = read(write(*columns(["0", "1", "0", "1"], header="id,has_cactus")))
    assert (listing.kind, listing.names) == ("classify", ("0", "1"))


@pytest.mark.parametrize("header", ["id,label", "id,class_id", "file,Category"])
def test_whole_numbers_in_a_column_called_label_are_classes(write: Write, header: str) -> None:
    listing = read(write(*columns([str(place % 3) for place in range(12)], header=header)))
    assert (listing.kind, listing.names) == ("classify", ("0", "1", "2"))
    assert "for quantities: --task.kind regress" in listing.notes[0]


def test_numbers_that_are_equal_are_one_class_and_said(write: Write) -> None:
    path = write(*columns(["1", "1.0", "01", "2", "2", "10"]))
    listing = read(path, "classify")
    assert listing.names == ("1", "10", "2")
    assert [row for (row,) in labels(listing).values()] == ["1", "1", "1", "2", "2", "10"]
    assert "'01', '1', '1.0' are one number, and one class: '1'" in listing.notes
    assert read(write(*columns(["1", "1.0", "2", "2.0"])), "classify").names == ("1", "2")  # no cell twice
    alike = write(*columns(["007", "012", "007", "012"]))
    assert read(alike, "classify").names == ("007", "012")
    assert read(alike, "classify", ("7", "12")).names == ("12", "7")  # the model's own spelling


NAMED = {
    "classes.txt": b"rose\ntulip\ndaisy\n",
    "class_names.txt": b"0 rose\n1 tulip\n2 daisy\n",
    "labels.json": b'["rose", "tulip", "daisy"]',
    "class_to_idx.json": b'{"rose": 0, "tulip": 1, "daisy": 2}',
    "label_num_to_disease_map.json": b'{"0": "rose", "1": "tulip", "2": "daisy"}',
}


@pytest.mark.parametrize("name", NAMED)
def test_class_indices_get_their_names_from_a_file_beside_the_table(write: Write, tmp_path: Path, name: str) -> None:
    path = write(*columns(["0", "1", "2", "0", "1", "2"]))
    (tmp_path / name).write_bytes(NAMED[name])
    listing = read(path)
    assert (listing.kind, listing.names) == ("classify", ("daisy", "rose", "tulip"))
    assert labels(listing)["001.png"] == ("tulip",)
    assert f"classes: named by {tmp_path / name}" in listing.notes
    assert read(path, "classify", ("0", "1", "2")).names == ("0", "1", "2")  # a model that knows the numbers


def test_names_that_could_count_from_0_or_1_are_asked_about(write: Write, tmp_path: Path) -> None:
    path = write(*columns(["1", "2", "1", "2"]))
    (tmp_path / "classes.txt").write_text("rose\ntulip\n")
    assert read(path).names == ("rose", "tulip")
    (tmp_path / "classes.txt").write_text("rose\ntulip\ndaisy\n")
    assert "could count them from 0 or from 1; write the number before each name, e.g. '0 rose'" in ask(path)
    (tmp_path / "classes.txt").write_text("0 rose\n1 tulip\n2 daisy\n")
    assert read(path).names == ("daisy", "tulip")


WORDS = ["nan", "NaN", "None", "NULL", "N/A", "<NA>", "NA", "#N/A", "?", "-"]


@pytest.mark.parametrize("word", WORDS)
def test_words_for_missing_are_asked_about_left_out_or_kept(write: Write, word: str) -> None:
    path = write(*columns(["a", "b", word, "a", "b", ""]))
    text = ask(path)
    assert f"rows.csv line 4: {word!r} in target column 'y' may mean that the label is missing" in text
    assert "--data.missing skip" in text and "--data.missing keep" in text
    listing = read(path, missing="skip")
    assert listing.names == ("a", "b") and len(listing.records) == 4
    assert any(note.startswith("2 rows are left out, whose label is missing") for note in listing.notes)
    whole = write(*columns(["a", "b", word, "a", "b", word]))
    assert read(whole, missing="keep").names == tuple(sorted(("a", "b", word)))


def test_missing_numbers_are_named_and_can_be_left_out(write: Write) -> None:
    path = write(*columns(["1.5", "2.5", "nan", "", "4.5", "5.5"]))
    text = ask(path)
    assert "rows.csv line 4: 'nan' in target column 'y' is not a finite number" in text
    assert "--data.missing skip" in text and "keep" not in text
    assert numbers(read(path, missing="skip")) == [1.5, 2.5, 4.5, 5.5]


def test_a_word_that_may_be_a_class_is_said_and_a_sign_is_a_class(write: Write) -> None:
    notes = read(write(*columns(["none", "scratch", "none", "scratch"]))).notes
    assert any(note.startswith("'none' (2 images) is taken for the name of a class") for note in notes)
    assert read(write(*columns(["+", "-", "+", "-"]))).names == ("+", "-")


def test_a_table_without_a_header_is_asked_about_and_loses_no_image(write: Write) -> None:
    lines, files = columns(["red", "green", "red", "green"])
    path = write(lines[1:], files)
    text = ask(path)
    assert "rows.csv line 1: the first row must name the columns" in text
    assert "image,label" in text and "--data.header false" in text
    listing = read(path, header=False)
    assert labels(listing) == {"000.png": ("red",), "001.png": ("green",), "002.png": ("red",), "003.png": ("green",)}
    assert "'column 2'" in listing.notes[0]
    assert len(read(path, header=False, target="column 2").records) == 4


def test_a_table_of_names_without_endings_and_without_a_header_is_asked_about_too(write: Write) -> None:
    path = write(["x1,red", "x2,green", "x3,red", "x4,green"], [f"x{place}.jpg" for place in (1, 2, 3, 4)])
    assert "rows.csv line 1: the first row must name the columns" in ask(path)
    assert len(read(path, header=False).records) == 4


SPELLINGS: Mapping[str, bytes] = {
    "sep": b"sep=;\nimage;label\na.png;x\nb.png;y\nc.png;x\nd.png;y\n",
    "quoted sep": b'"sep=|"\nimage|label\na.png|x\nb.png|y\nc.png|x\nd.png|y\n',
    "comments above": b"# made by hand\n# in May\nimage,label\na.png,x\nb.png,y\nc.png,x\nd.png,y\n",
    "comments between": b"image,label\na.png,x\n# again, checked, twice\nb.png,y\nc.png,x\nd.png,y\n",
    "NumPy's header": b"# image,label\na.png,x\nb.png,y\nc.png,x\nd.png,y\n",
    "pandas' index": b",image,label\n0,a.png,x\n1,b.png,y\n2,c.png,x\n3,d.png,y\n",
    "pandas' index twice": b"Unnamed: 0,image,label\n0,a.png,x\n1,b.png,y\n2,c.png,x\n3,d.png,y\n",
    "an index with holes": b",image,label\n3,a.png,x\n7,b.png,y\n9,c.png,x\n12,d.png,y\n",
    "a column called id": b"id,image,label\n1,a.png,x\n2,b.png,y\n3,c.png,x\n4,d.png,y\n",
    "mark at the end": b"image,label,\na.png,x,\nb.png,y,\nc.png,x,\nd.png,y,\n",
    "mark at the rows' end": b"image,label\na.png,x,\nb.png,y,\nc.png,x,\nd.png,y,\n",
    "byte order mark": "\ufeffimage,label\na.png,x\nb.png,y\nc.png,x\nd.png,y\n".encode(),
    "UTF-16": "image\tlabel\na.png\tx\nb.png\ty\nc.png\tx\nd.png\ty\n".encode("utf-16"),
    "a comma in the header": b"image;label, of old\na.png;x\nb.png;y\nc.png;x\nd.png;y\n",
    "an empty column": b"image,label,note\na.png,x,\nb.png,y,\nc.png,x,\nd.png,y,\n",
    "carriage returns": b"image,label\r\na.png,x\r\nb.png,y\r\nc.png,x\r\nd.png,y\r\n",
}


@pytest.mark.parametrize("name", SPELLINGS)
def test_every_spelling_of_one_table_is_read_alike(write: Write, name: str) -> None:
    listing = read(write(SPELLINGS[name], FILES))
    assert labels(listing) == {"a.png": ("x",), "b.png": ("y",), "c.png": ("x",), "d.png": ("y",)}


def test_what_is_passed_over_is_said(write: Write) -> None:
    def notes(name: str) -> str:
        return " ".join(read(write(SPELLINGS[name], FILES)).notes)

    assert "2 comment lines are passed over" in notes("comments above")
    assert "'column 1' of rows.csv numbers the rows or is empty, and is passed over" in notes("pandas' index")
    assert "read as UTF-16" in notes("UTF-16")


def test_errors_name_lines_as_an_editor_counts_them_below_what_is_passed_over(write: Write) -> None:
    path = write(b"sep=;\n# by hand\nimage;label\na.png;x\n# more\nb.png;\nc.png;y\n", FILES)
    assert "rows.csv line 6: target column 'label' is empty" in ask(path)


X_AND_Y = ("x/1.png", "x/2.png", "y/1.png")


def _moved(start: str, *, mark: str = "/") -> tuple[Sequence[str], Sequence[str], str]:
    """The three images of x and y, as another place names them."""
    return [start + file.replace("/", mark) for file in X_AND_Y], X_AND_Y, "with folders that are not here"


PLACES: Mapping[str, tuple[Sequence[str], Sequence[str], str]] = {
    "without endings": (("i1", "i2", "i3"), ("i1.jpg", "i2.jpeg", "i3.PNG"), "without the ending"),
    "in folders": (("i1", "i2", "i3"), ("p1/i1.jpg", "p1/i2.jpg", "p2/i3.jpg"), "without the ending"),
    "numbers": (("1", "2", "3"), ("train/1.jpg", "train/2.jpg", "train/3.jpg"), "without the ending"),
    "numbers with zeros": (("1", "2", "13"), ("0001.jpg", "0002.jpg", "0013.jpg"), "without the ending"),
    "Windows": _moved("C:\\d\\set\\", mark="\\"),
    "Windows with slashes": _moved("C:/d/set/"),
    "another home": _moved("/home/a/s/"),
    "another folder": _moved("data/set/"),
    "a share": _moved("\\\\srv\\s\\", mark="\\"),
    "an address": _moved("file:///d/"),
    "another case": (("A1.JPG", "A2.JPG", "A3.JPG"), ("a1.jpg", "a2.jpg", "a3.jpg"), "without the ending"),
    "in one folder": (("1.png", "2.png", "3.png"), ("train/1.png", "train/2.png", "train/3.png"), "without the folder"),
}


@pytest.mark.parametrize("name", PLACES)
def test_images_of_another_place_are_found_by_their_longest_common_tail(write: Write, name: str) -> None:
    cells, files, said = PLACES[name]
    lines = ["image,label", *(f"{cell},{label}" for cell, label in zip(cells, "aba", strict=True))]
    listing = read(write(lines, files))
    assert labels(listing) == dict(zip(files, [("a",), ("b",), ("a",)], strict=True))
    (note,) = [note for note in listing.notes if "images are named" in note]
    assert f"3 of 3 images are named {said}" in note


def test_an_image_of_the_same_name_elsewhere_is_not_taken_for_a_missing_one(write: Write) -> None:
    lines = ["image,label", "/h/s/x/1.png,a", "/h/s/x/2.png,b", "/h/s/y/1.png,a", "/h/s/y/2.png,b"]
    files = ("x/1.png", "x/2.png", "y/1.png")  # y/2.png is gone; x/2.png is another picture
    assert "1 of 4 images do not exist" in ask(write(lines, files))
    lines = ["image,label", "1.png,a", "2.png,b", "3.png,a"]
    assert "1 of 3 images do not exist" in ask(write(lines, ("1.png", "2.png", "old/3.png")))


def test_a_name_that_two_files_have_is_not_guessed(write: Write) -> None:
    files = ("x/1.png", "x/2.png", "y/1.png", "y/2.png")
    assert "no column holds image paths" in ask(write(["image,label", "1,a", "2,b"], files))


def test_of_two_files_that_fit_alike_the_one_in_the_folder_itself_is_meant(write: Write) -> None:
    files = ("1.png", "2.png", "old/1.png", "old/2.png")
    for cells in (("1", "2"), ("/h/1.png", "/h/2.png")):
        assert set(labels(read(write(["image,label", f"{cells[0]},a", f"{cells[1]},b"], files)))) == {"1.png", "2.png"}


def test_paths_that_climb_are_never_matched_by_their_tail(write: Write) -> None:
    lines = ["image,label", "../../b/1.png,a", "../../b/2.png,b"]
    assert "images do not exist" in ask(write(lines, ("1.png", "2.png")))


@pytest.mark.parametrize("word", ["dev", "eval", "validation", "Val", "testing_set", "holdout"])
def test_splits_of_a_table_may_be_spelt_as_usual(write: Write, word: str) -> None:
    lines = ["image,label,part", "a.png,x,train", "b.png,y,training", f"c.png,x,{word}", "d.png,y,train"]
    listing = read(write(lines, FILES))
    assert listing.records[2].split == ("test" if "test" in word else "val")


def test_fastai_marks_validation_by_a_flag(write: Write) -> None:
    lines = ["name,label,is_valid", "a.png,x,False", "b.png,y,False", "c.png,x,True", "d.png,y,False"]
    listing = read(write(lines, FILES))
    assert [record.split for record in listing.records] == ["train", "train", "val", "train"]
    assert any("'is_valid' marks are val" in note for note in listing.notes)


def test_public_layouts_go_through_without_a_question(write: Write, tmp_path: Path) -> None:
    ham = ["image,MEL,NV,BCC", "ISIC_1,1.0,0.0,0.0", "ISIC_2,0.0,1.0,0.0", "ISIC_3,0.0,0.0,1.0"]
    listing = read(write(ham, ("ham/p1/ISIC_1.jpg", "ham/p1/ISIC_2.jpg", "ham/p2/ISIC_3.jpg"), name="ham/truth.csv"))
    assert labels(listing) == {"p1/ISIC_1.jpg": ("MEL",), "p1/ISIC_2.jpg": ("NV",), "p2/ISIC_3.jpg": ("BCC",)}
    meta = ["lesion_id,image_id,dx,age", "H1,ISIC_1,nv,50", "H2,ISIC_2,mel,50", "H3,ISIC_3,nv,50"]
    assert read(write(meta, name="ham/meta.csv"), target="dx").names == ("mel", "nv")
    dogs = ["id,breed", "00a,pug", "00b,beagle", "00c,pug"]
    listing = read(write(dogs, [f"dogs/train/{name}.jpg" for name in ("00a", "00b", "00c")], name="dogs/labels.csv"))
    assert listing.names == ("beagle", "pug")
    pets = [
        f"{name}_{place} {number} {number} {place}" for name, number in (("Manx", 1), ("pug", 2)) for place in "123"
    ]
    files = [f"pets/images/{row.split()[0]}.jpg" for row in pets]
    listing = read(write(pets, files, name="pets/annotations/trainval.txt"), "classify", target="column 2")
    assert len(listing.records) == 6 and listing.names == ("1", "2")
    assert any("beside the table's folder" in note for note in listing.notes)
    voc = ["image,aeroplane,bicycle,bird", "2007_1,1,1,0", "2007_2,0,0,0", "2007_3,0,0,1"]
    listing = read(write(voc, [f"voc/JPEGImages/2007_{place}.jpg" for place in (1, 2, 3)], name="voc/labels.csv"))
    assert (listing.kind, listing.names) == ("multilabel", ("aeroplane", "bicycle", "bird"))
    digits = ["image,label", *(f"{place}.png,{place % 10}" for place in range(40))]
    listing = read(write(digits, [f"mnist/{place}.png" for place in range(40)], name="mnist/train.csv"))
    assert (listing.kind, len(listing.names)) == ("classify", 10)


def test_a_table_of_pixels_says_what_to_do(write: Write) -> None:
    lines = [",".join(["label", *(f"pixel{place}" for place in range(784))]), ",".join(["5", *(["0"] * 784)])]
    assert "784 of its 785 columns hold the pixels of images, 28 x 28; images are read from files" in ask(write(lines))
    row = ",".join(["5", *(["0"] * 784)])
    assert "784 of its 785 columns hold the pixels of images, 28 x 28" in ask(write([row] * 3, name="b.csv"))
    coloured = ",".join([*(f"p{place}" for place in range(192)), "label"])
    assert "192 of its 193 columns hold the pixels of images, 8 x 8 x 3" in ask(
        write([coloured, ",".join([*(["255"] * 192), "cat"])], name="c.csv")
    )
    faces = ["emotion,pixels", "0," + " ".join(["70"] * 2304), "1," + " ".join(["80"] * 2304)]
    assert "column 'pixels' holds the pixels of images, 48 x 48" in ask(write(faces, name="d.csv"))


@pytest.mark.parametrize("words", [("yes", "no"), ("Y", "N"), ("t", "f"), ("On", "Off")])
def test_columns_of_yes_and_no_are_tags_or_classes(write: Write, words: tuple[str, str]) -> None:
    rows = [(place % 2, place % 3 > 0) for place in range(6)]
    cells = [",".join(words[not flag] for flag in row) for row in rows]
    listing = read(write(*columns(cells, header="image,crack,rust")))
    assert listing.kind == "multilabel" and "(yes/no columns)" in "; ".join(listing.notes)
    assert labels(listing)["003.png"] == ("crack",)
    cells = [",".join(words[not flag] for flag in (place % 2, not place % 2)) for place in range(6)]
    listing = read(write(*columns(cells, header="image,left,right")))
    assert listing.kind == "classify" and labels(listing)["001.png"] == ("left",)
    assert read(write(*columns([words[place % 2] for place in range(6)]))).names == tuple(sorted(words))  # one column


def test_addresses_are_not_fetched_and_named_so(write: Write) -> None:
    text = ask(
        write(["url,kind", *(f"https://example.org/{place}.jpg?size=1,{'ab'[place % 2]}" for place in range(6))])
    )
    assert "column 'url' holds addresses ('https://example.org/0.jpg?size=1'), which are not fetched; download" in text


@pytest.mark.parametrize("tick", ["x", "X", "✓", "+"])
def test_a_tick_or_nothing_is_a_column_of_flags(write: Write, tick: str) -> None:
    rows = [f"{tick},{tick}", f"{tick},", ",", f",{tick}"]
    table, files = columns(rows, header="image,sun,sea")
    found = read(write(table, files))
    assert found.kind == "multilabel"
    assert labels(found) == {"000.png": ("sea", "sun"), "001.png": ("sun",), "002.png": (), "003.png": ("sea",)}
    assert f"columns 'sun', 'sea': '{tick.lower()}' is 1, an empty cell is 0" in found.notes
    assert labels(read(write(table, files), target=("sun", "sea"))) == labels(found)


def test_one_tick_per_row_is_a_class(write: Write) -> None:
    table, files = columns(["x,", ",x", "x,", ",x"], header="image,sun,sea")
    found = read(write(table, files))
    assert found.kind == "classify"
    assert [*labels(found).values()] == [("sun",), ("sea",), ("sun",), ("sea",)]


@pytest.mark.parametrize(
    "cells",
    [["2024-01-03", "2024-02-11"], ["3.1.2024", "11.2.2024"], ["01/03/24", "02/11/24"], ["2024-01-03 10:00:00", ""]],
)
def test_dates_are_asked_for(write: Write, cells: Sequence[str]) -> None:
    table, files = columns(cells)
    said = ask(write(table, files))
    assert "looks like dates" in said
    assert "days since the first" in said
    assert "classify" not in said  # every date is another


def test_dates_that_come_again_may_be_classes(write: Write) -> None:
    table, files = columns(["2024-01-03", "2024-02-11"] * 2)
    assert "to take each for a class: --task.kind classify" in ask(write(table, files))
    assert read(write(table, files), "classify").names == ("2024-01-03", "2024-02-11")


def test_names_with_digits_are_no_dates(write: Write) -> None:
    table, files = columns(["v1.2.30", "v1.2.30", "2024-01", "2024-01"])
    assert read(write(table, files)).kind == "classify"


def test_one_tag_per_row_is_told_how_to_join(write: Write) -> None:
    said = ask(write(["image,y", "a.png,red", "a.png,round", "b.png,red"], ["a.png", "b.png"]))
    assert "join them in one cell, as in 'red|round'" in said
    joined = write(["image,y", "a.png,red|round", "b.png,red"], ["a.png", "b.png"])
    assert labels(read(joined, "multilabel")) == {"a.png": ("red", "round"), "b.png": ("red",)}
