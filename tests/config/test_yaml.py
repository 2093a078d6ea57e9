"""Strict YAML: what plain scalars mean, what is refused, and that writing and reading are inverse."""

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from headstart.config.yaml import MAX_BYTES, dump_yaml, parse_yaml, read_yaml
from headstart.errors import ConfigError

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
NAMES = st.one_of(
    TEXT,
    st.sampled_from(
        [
            "no",
            "on",
            "012",
            "1e-3",
            "~",
            "",
            "null",
            "true",
            "1:30",
            "0x1F",
            ".5",
            "<<",
            "=",
            "2024-01-01",
            "\x85",
            "a\u2028b",
            "\ufeff",
            " a",
            "a ",
            "#",
            "- a",
        ]
    ),
)
VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False, allow_infinity=False), NAMES),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(NAMES, inner, max_size=4)),
    max_leaves=8,
)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 0.001),
        ("5e-4", 0.0005),
        ("1E+2", 100.0),
        (".5", 0.5),
        ("-3", -3),
        ("0x1F", 31),
        ("0o17", 15),
        ("true", True),
        ("False", False),
        ("~", None),
        ("null", None),
        ("no", "no"),
        ("on", "on"),
        ("yes", "yes"),
        ("012", "012"),
        ("1:30", "1:30"),
        ("2024-01-01", "2024-01-01"),
        ("1_000", "1_000"),
        ("'1e-3'", "1e-3"),
    ],
)
def test_plain_scalars_mean_what_yaml_1_2_says(text: str, value: object) -> None:
    found = parse_yaml(f"key: {text}", where="x")
    assert found == {"key": value}
    assert type(found["key"]) is type(value)


def test_keys_are_names_as_written() -> None:
    found = parse_yaml("{no: 1, 012: 2, 1e-3: 3, true: 4, ~: 5}", where="x")
    assert found == {"no": 1, "012": 2, "1e-3": 3, "true": 4, "~": 5}


@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)  # a busy machine is no fault
@given(VALUES)
@example(["\x85", "a\u2028b", "\ufeff", " a ", "#", "- a", "\r\n", "\0"])
def test_what_is_written_is_read_back_with_its_types(value: object) -> None:
    found = parse_yaml(dump_yaml(value), where="x")
    assert found == value
    assert repr(found) == repr(value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "a: 1\nb: !!python/object:os.system x\n",
            r"f\.yaml:2: the tag 'tag:yaml.org,2002:python/object:os.system' is not accepted",
        ),
        ("a: &x 1\n", r"f\.yaml:1: anchors and aliases"),
        ("a: 1\nb: *x\n", r"f\.yaml:2: anchors and aliases"),
        ("a: 1\nb: 2\na: 3\n", r"f\.yaml:3: a is given twice"),
        ("a:\n  b: 1\n  b: 2\n", r"f\.yaml:3: b is given twice"),
        ("? [1, 2]\n: 3\n", r"f\.yaml:1: a list or mapping as a key"),
        ("a: 1\n---\nb: 2\n", r"f\.yaml:2: a second document"),
        ("a: [1, 2\nb: 3\n", r"f\.yaml:2: not YAML: .*expected"),
        ("a: \x07\n", r"f\.yaml:1: not YAML: special characters"),
        ("a: " + "[" * 40 + "]" * 40, r"f\.yaml:1: nested deeper than 32 levels"),
        ("a: " + "[" * 10**5, r"f\.yaml:1: nested deeper than 32 levels"),
        ("a: " + "9" * 5000, r"f\.yaml:1: a number of 5000 digits"),
    ],
)
def test_what_is_not_plain_data_is_refused_with_its_line(text: str, message: str, tmp_path) -> None:
    path = tmp_path / "f.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        read_yaml(path)


def test_the_nesting_limit_itself_is_accepted() -> None:
    assert parse_yaml("[" * 32 + "]" * 32, where="x")


def test_a_large_file_is_refused(tmp_path) -> None:
    path = tmp_path / "f.yaml"
    path.write_bytes(b"#" * (MAX_BYTES + 1))
    with pytest.raises(ConfigError, match="larger than 1 MiB"):
        read_yaml(path)


def test_a_file_that_is_not_text_or_not_there_is_refused(tmp_path) -> None:
    path = tmp_path / "f.yaml"
    path.write_bytes(b"a: 1\nb: \xff\n")
    with pytest.raises(ConfigError, match=r"f\.yaml:2: not UTF-8"):
        read_yaml(path)
    with pytest.raises(ConfigError, match=r"cannot be read .No such file"):
        read_yaml(tmp_path / "none.yaml")
    with pytest.raises(ConfigError, match="cannot be read"):
        read_yaml(tmp_path)


def test_a_byte_order_mark_and_an_empty_file_are_fine(tmp_path) -> None:
    path = tmp_path / "f.yaml"
    path.write_bytes(b"\xef\xbb\xbfa: 1\n")
    assert read_yaml(path) == {"a": 1}
    path.write_bytes(b"# nothing\n")
    assert read_yaml(path) is None
