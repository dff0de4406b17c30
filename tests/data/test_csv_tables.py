import pytest

from thyroid.data import csv_tables
from thyroid.errors import InputError


@pytest.mark.parametrize("block", [1, 2, 100])
def test_rows_are_those_of_the_file_however_many_are_read_at_once(monkeypatch, block):
    monkeypatch.setattr(csv_tables, "_ROWS", block)
    text = '\ufefffilename, label\r\na.jpg, B\r\n\r\n"b,\n""c.jpg"\r\n갑.jpg,\r\n'
    table = csv_tables.parse(text.encode(), "labels.csv")
    assert table.to_dict("list") == {"filename": ["a.jpg", 'b,\n"c.jpg', "갑.jpg"], "label": ["B", "", ""]}
    assert table.index.tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (b"", "no header"),
        (b"a,b\n1,2\n1,2,3\n", "line 3 has more cells"),
        (b"a,a\n", "column a occurs twice"),
        (b"a\n" + b"x\n" * 5 + b"\xff\n", "not a CSV table"),
    ],
)
def test_no_table(monkeypatch, data, told):
    monkeypatch.setattr(csv_tables, "_ROWS", 2)
    with pytest.raises(InputError, match=f"labels.csv: .*{told}"):
        csv_tables.parse(data, "labels.csv")


def test_a_table_without_rows():
    table = csv_tables.parse(b"filename,label\n", "labels.csv")
    assert (table.columns.tolist(), len(table)) == (["filename", "label"], 0)
