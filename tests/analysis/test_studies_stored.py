"""Stored tables against those made again: digits of another processor are told from other results."""

import pytest

from analysis.studies.stored import Comparison, compare, rests_on

STORED = "layer,fid,deviation,iterations\n1,18.412,1.4e-07,24\n2,6.61,0.0853,7\n"
SENTENCE = 'measured\n"deviation 0.0853 in 6 of 9 cells, 4,134 times"\n'


@pytest.fixture
def compared(tmp_path):
    def compared(new, stored=STORED, name="cells.csv"):
        for folder, text in (("new", new), ("stored", stored)):
            (tmp_path / folder).mkdir(exist_ok=True)
            if text is not None:
                (tmp_path / folder / name).write_text(text, encoding="utf-8")
        return compare(tmp_path / "new", tmp_path / "stored")

    compared.folder = tmp_path
    return compared


def test_the_same_bytes_are_the_same_table(compared):
    assert compared(STORED) == Comparison()


@pytest.mark.parametrize(
    ("before", "after"),
    [("18.412", "18.4121"), ("1.4e-07", "9.7e-08"), ("0.0853", "0.085302"), ("6.61", "6.6104")],
    ids=["of itself", "of its column", "small", "smaller"],
)
def test_rounding_is_told_and_no_difference(compared, before, after):
    assert compared(STORED.replace(before, after)) == Comparison(rounded=("stored/cells.csv",))


@pytest.mark.parametrize(
    ("before", "after", "column"),
    [("18.412", "18.415", "fid"), ("0.0853", "0.0854", "deviation"), (",24", ",25", "iterations"),
     ("0.0853", "", "deviation")],
    ids=["of itself", "small", "a count", "a missing one"],
)  # fmt: skip
def test_what_is_more_than_rounding_differs(compared, before, after, column):
    found = compared(STORED.replace(before, after))
    assert not found.rounded and len(found.differing) == 1
    assert found.differing[0].endswith(f" in {column}")


def test_a_rise_is_rounded_as_what_rose(compared):
    table = "fid_rise\n0.0026425\n-0.01\n"
    assert compared(table.replace("0.0026425", "0.0026724"), table).rounded
    assert compared(table.replace("0.0026425", "0.0028"), table).differing == (
        f"'{compared.folder}/stored/cells.csv' differs from '{compared.folder}/new/cells.csv' in fid_rise",
    )


def test_a_large_count_is_compared_exactly(compared):
    table = "evaluations\n1000000\n2000000\n"
    assert compared(table.replace("1000000", "1000001"), table).differing


@pytest.mark.parametrize(
    ("before", "after", "same"),
    [("0.0853", "0.0854", True), ("4,134", "4,135", True), ("0.0853", "0.0855", False), ("6 of", "7 of", False),
     ("in", "or", False), ("4,134", "4,136", False)],
)  # fmt: skip
def test_a_sentence_may_tell_another_last_digit_and_no_other_count(compared, before, after, same):
    found = compared(SENTENCE.replace(before, after), SENTENCE, "claims.csv")
    assert (found.differing == ()) is same and bool(found.rounded) is same


def test_what_rounding_decides_never_differs_and_what_clocks_decide_is_not_looked_at(compared):
    assert compared("last\n58\n", "last\n57\n", "bits-rounding.csv") == Comparison(
        rounded=("stored/bits-rounding.csv",)
    )
    assert compared("s\n1\n", "s\n2\n", "speed-timed.csv").rounded == ("stored/bits-rounding.csv",)


@pytest.mark.parametrize(
    ("new", "stored", "told"),
    [(STORED, None, "is not stored yet"), (None, STORED, "was not made again"),
     (STORED.replace("fid", "kid"), STORED, "has other columns or rows"),
     (STORED + "3,1,1,1\n", STORED, "has other columns or rows")],
)  # fmt: skip
def test_another_table_is_told_in_a_sentence(compared, new, stored, told):
    (sentence,) = compared(new, stored).differing
    assert told in sentence


TWO = "flow,fid\nsmall,1.5\n{}"


@pytest.mark.parametrize(
    ("new", "stored", "differs"),
    [(TWO.format(""), TWO.format("large,2.5\n"), False), (TWO.format(""), TWO.format('"large, batch 4",2.5\n'), False),
     ("flow,fid\nsmall,1.6\n", TWO.format("large,2.5\n"), True), (None, "checkpoint,fid\nlarge,2.5\n", False),
     (None, TWO.format("large,2.5\n"), True), ("mean\n1.5\n", "mean\n2.0\n", False)],
    ids=["its row", "its name in a place", "another's row differs", "a table of it alone", "not made", "of all flows"],
)  # fmt: skip
def test_rows_of_a_flow_that_is_not_here_are_not_compared(compared, new, stored, differs):
    compared(new, stored)
    assert bool(compare(compared.folder / "new", compared.folder / "stored", ["large"]).differing) is differs
    assert rests_on(compared.folder / "stored", ["large", "huge"]) == (["large"] if "large" in stored else [])
