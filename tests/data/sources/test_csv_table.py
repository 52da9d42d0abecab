"""Tables of file names and labels."""

import pickle

import pytest

from fastervit_jax.data import open_source
from tests.data.numbered import numbered_png


@pytest.fixture
def images(tmp_path):
    for number in range(4):
        (tmp_path / "images").mkdir(exist_ok=True)
        (tmp_path / "images" / f"{number}.png").write_bytes(numbered_png(number))
    return tmp_path


def test_rows_in_order_and_labels_in_natural_order(images):
    rows = ["label,file,more", "10,images/3.png,x", "2,images/0.png,y", "10,images/1.png,z"]
    (images / "train.csv").write_text("\n".join(rows) + "\n")
    source = pickle.loads(pickle.dumps(open_source(f"csv:{images}/train.csv")))
    assert source.class_names == ("2", "10") and source.num_classes == 2
    assert [source[index].label for index in range(len(source))] == [1, 0, 1]
    assert [source[index].encoded for index in range(3)] == [numbered_png(n) for n in (3, 0, 1)]
    with pytest.raises(IndexError):
        source[3]


def test_another_root(images):
    table = images / "tables" / "t.csv"
    table.parent.mkdir()
    table.write_text("file,label\n2.png,cat\n")
    source = open_source(f"csv:{table},{images}/images")
    assert source[0].encoded == numbered_png(2)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name,label\na,b\n", "expected the columns file and label, got name, label"),
        ("", "expected the columns file and label, got no header"),
        ("file,label\n", "expected at least one row"),
        ("file,label\nimages/0.png,\n", "Invalid row 2 .* file or label is empty"),
        ("file,label\nimages/9.png,a\n", "1 of 1 files are missing in .* images/9.png"),
    ],
)
def test_bad_tables_are_refused(images, text, message):
    (images / "bad.csv").write_text(text)
    with pytest.raises(ValueError, match=message):
        open_source(f"csv:{images}/bad.csv")


def test_a_missing_table_is_refused():
    with pytest.raises(ValueError, match=r"File not found: nowhere\.csv"):
        open_source("csv:nowhere.csv")
