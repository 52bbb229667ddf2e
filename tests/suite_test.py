"""The tests themselves: nothing is skipped unnoticed, and the files that they name exist."""

import re
from pathlib import Path

import pytest

from tests.equipment import absent

TESTS = Path(__file__).parent
FILES = sorted(TESTS.rglob("*.py"))


@pytest.mark.parametrize("equipment", ["BROWSER", "SHARED", "VOCABULARY"])
def test_what_is_absent_skips_a_test_but_fails_it_where_it_must_be_there(monkeypatch, equipment):
    variable = f"REQUIRE_{equipment}"
    ends = (pytest.skip.Exception, pytest.fail.Exception)  # Either, because a skip that is not caught skips this test.
    monkeypatch.delenv(variable, raising=False)
    with pytest.raises(ends, match="there is none") as skipped:
        absent(equipment, "there is none")
    monkeypatch.setenv(variable, "1")
    with pytest.raises(ends, match=f"{variable} is set, but there is none") as failed:
        absent(equipment, "there is none")
    assert (skipped.type, failed.type) == ends
    assert f"{variable}=1" in (TESTS.parent / ".ci" / "run").read_text() + (TESTS / "run.sh").read_text()


def test_nothing_else_skips_a_test_but_the_operating_system_and_tensorflow():
    found = {}
    for path in FILES:
        text = path.read_text()
        skips = re.findall(r"\b(?:importorskip|skip|skipif)\(.*", text)
        system = (
            r"skipif(sys.platform != ",
            r"skipif(os.name != ",
            r'skipif(importlib.util.find_spec("tensorflow") is not',
        )
        others = [skip for skip in skips if not skip.startswith(system)]
        if others and path not in (TESTS / "equipment.py", Path(__file__)):
            found[path.name] = others
    assert found == {}


def test_refusals_are_expected_with_their_messages():
    """An error of another reason is no proof that the right thing was refused."""
    own = r"pytest\.raises\((?:InputError|CheckpointError|WeightsError|LedgerError)\)(?! as)"
    assert [str(path) for path in FILES if re.search(own, path.read_text())] == []


def test_files_that_tests_name_exist():
    names = [f"/{path.relative_to(TESTS.parent).as_posix()}" for path in FILES]
    for path in FILES:
        for name in re.findall(r"[\w/]+_test\.py|`(?:tests/|files/)[\w/]+\.py`", path.read_text()):
            assert any(known.endswith("/" + name.strip("`")) for known in names), f"{path} names {name}"
