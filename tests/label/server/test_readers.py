"""Who may use the bench."""

import pytest

from thyroid.errors import InputError
from thyroid.label.readings import Role
from thyroid.label.server.readers import MOST_BYTES, Reader, Readers

KIM, LEE = "k" * 16, "l" * 32
TABLE = f"name,token,role\nDr. Kim,{KIM},reader\n이 선생,{LEE},adjudicator\n"


@pytest.fixture
def table(tmp_path):
    def write(text: str | bytes):
        path = tmp_path / "readers.csv"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    return write


def test_a_token_tells_its_reader(table):
    readers = Readers.read(table(TABLE))
    assert readers.names == ("Dr. Kim", "이 선생")
    assert readers.of(KIM) == Reader("Dr. Kim", Role.READER)
    assert readers.of(LEE) == Reader("이 선생", Role.ADJUDICATOR)
    for other in ("", KIM[:-1], KIM + "k", KIM.upper(), "Dr. Kim", "ß" * 16):
        assert readers.of(other) is None


def test_spreadsheets_write_it_as_they_do(table):
    text = f"\ufeffRole, Token ,NAME\r\n,{KIM},Dr. Kim\r\n\r\n,,\r\n"
    assert Readers.read(table(text)).of(KIM) == Reader("Dr. Kim", Role.READER)


def test_a_session_ends_with_its_token(table):
    readers = Readers.read(table(TABLE))
    kim = readers.of(KIM)
    proof = readers.proof(kim)
    assert readers.returning("Dr. Kim", proof) == kim
    assert readers.returning("이 선생", proof) is None
    assert readers.returning("Dr. Kim", "ü") is None
    assert Readers.read(table(TABLE.replace(KIM, "n" * 16))).returning("Dr. Kim", proof) is None
    promoted = Readers.read(table(TABLE.replace(",reader", ",adjudicator"))).returning("Dr. Kim", proof)
    assert promoted == Reader("Dr. Kim", Role.ADJUDICATOR)


def test_a_reader_alone_has_a_random_token():
    (first, token), (second, other) = Readers.alone(), Readers.alone()
    assert first.of(token).role is Role.ADJUDICATOR
    assert first.of(other) is None
    assert token != other
    assert second.of(other) is not None


def test_no_token_is_kept(table):
    readers = Readers.read(table(TABLE))
    assert KIM not in repr(vars(readers))


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "columns"),
        ("name,token\nKim,x\n", "columns"),
        ("name,token,role\n", "no reader"),
        (f"name,token,role\nKim,{KIM},surgeon\n", "line 2: role surgeon"),
        (f"name,token,role\nKim,{KIM},outside\n", "line 2: role outside"),
        (f"name,token,role\nKim,{KIM},reader\nLee,short,reader\n", "line 3: token"),
        ("name,token,role\nKim,with a blank in it,reader\n", "line 2: token"),
        (f"name,token,role\nOutside,{KIM},reader\n", "line 2: name"),
        (f"name,token,role\n,{KIM},reader\n", "line 2: name"),
        (f"name,token,role\na/b,{KIM},reader\n", "line 2: name"),
        (f"name,token,role\nKim,{KIM},reader,more\n", "line 2"),
        (f"name,token,role\nKim,{KIM},reader\nKim,{LEE},reader\n", "lines 2, 3 have the same name"),
        (f"name,token,role\nKim,{KIM},reader\nLee,{KIM},reader\n", "lines 2, 3 have the same token"),
        (b"name,token,role\n\xff\xfe", "UTF-8"),
        ("x" * (MOST_BYTES + 1), "larger"),
    ],
)
def test_a_table_that_cannot_be_used(table, text, told):
    path = table(text)
    with pytest.raises(InputError) as refused:
        Readers.read(path)
    assert str(path) in str(refused.value)
    assert told in str(refused.value)
    assert KIM not in str(refused.value)


def test_a_table_that_is_not_there(tmp_path):
    with pytest.raises(InputError, match=r"readers\.csv"):
        Readers.read(tmp_path / "readers.csv")
