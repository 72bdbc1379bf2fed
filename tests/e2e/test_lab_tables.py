"""What `make bench-lab` writes: rows of what was measured, beside those of other days."""

from __future__ import annotations

from pathlib import Path

from tests.lab.measure import PAGE, Sample, write_tables


def row(page: Path, name: str) -> str:
    [found] = [line for line in page.read_text(encoding="utf-8").splitlines() if line.startswith(f"| {name} |")]
    return found


def test_only_what_was_measured_is_written_anew(tmp_path: Path) -> None:
    page = tmp_path / "failures.md"
    page.write_text(PAGE.read_text(encoding="utf-8"), encoding="utf-8")
    write_tables(page, [])
    assert page.read_text(encoding="utf-8") == PAGE.read_text(encoding="utf-8")
    cuts = [
        Sample(name="cable cut", day=f"2031-01-0{day}", requests=100, failed=day, out=out, moved=4 + out, unserved=out)
        for day, out in enumerate([0.8, 0.5, 2.0], 1)
    ]
    write_tables(page, [Sample(name="a drain", day="2031-01-02", requests=10_000, failed=0, slowest=0.5), *cuts])
    assert row(page, "a drain") == "| a drain | 10,000 | none | 500 ms | 2031-01-02 |"
    assert row(page, "cable cut").startswith(
        "| cable cut | 3 | 0.8 (2.0) s | 4.8 (6.0) s | 6 of 300, begun up to 2.0 s after it |"
    )
    assert row(page, "cable cut").endswith("| 2031-01-01, 2031-01-02, 2031-01-03 |")
    assert row(page, "power cut") == row(PAGE, "power cut")
