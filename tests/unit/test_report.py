"""The report says what happened, never more: verdict, fixed keys, a page that stands alone, plots that lose nothing."""

import io
import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, Literal
from xml.etree import ElementTree

import pytest
from rich.console import Console

from pycolo.demo.report import (
    Checkpoints,
    Client,
    Disk,
    Failover,
    Guest,
    Packets,
    Report,
    Round,
    Series,
    checkpoints_of,
    client_of,
    number,
    quantile,
    size,
    summary_table,
    verdict,
    write_report,
)
from pycolo.demo.report_page import page
from pycolo.demo.report_plot import plot
from pycolo.errors import EnvironmentFault

GOOD = Client(
    requests=5000, failed=0, reset=0, wrong_bytes=0, lost_acknowledged=0, connections_kept=True, longest_gap_ms=121.5
)
TAKEN = [("divergence", 4.0, 1 << 20), ("time", 2.0, 4096), ("time", 3.0, 8192)]
SERIES = Series(
    samples=[(1000.0 + 5 * i, 1.0 + i % 7, ("redis", "tcp", "http")[i % 3]) for i in range(1000)],
    checkpoints=[(2000.0, "divergence", 4.0), (3000.0, "time", 2.0)],
    kill_ms=4000.0,
    takeover_ms=4090.0,
)


def a_report(*clients: Client) -> Report:
    killed: tuple[Literal["primary", "secondary"], ...] = ("primary", "secondary")
    rounds = [
        Round(who, client, checkpoints_of(TAKEN), Packets(900, 10, 1), Failover(30.0, 40.0, 90.0))
        for who, client in zip(killed, clients, strict=False)
    ]
    return Report("7.2.22", "tcg", Guest(256, 1), rounds)


def test_all_good_is_good() -> None:
    assert verdict(a_report(GOOD, GOOD)) == (True, [])


@pytest.mark.parametrize(
    ("worse", "word"),
    [
        ({"failed": 1}, "1 request failed"),
        ({"reset": 2}, "2 requests were reset"),
        ({"wrong_bytes": 3}, "3 answers had wrong bytes"),
        ({"lost_acknowledged": 1}, "1 acknowledged write was lost"),
        ({"lost_acknowledged": 2}, "2 acknowledged writes were lost"),
        ({"connections_kept": False}, "a connection did not stay open"),
        ({"requests": 0}, "no client asked anything"),
    ],
)
def test_each_trouble_in_any_round_spoils_the_verdict(worse: dict[str, Any], word: str) -> None:
    bad = replace(GOOD, **worse)
    assert verdict(a_report(GOOD, bad)) == (False, [f"{word} when the secondary died"])
    assert verdict(a_report(bad, GOOD)) == (False, [f"{word} when the primary died"])


def test_without_a_round_nothing_is_proven() -> None:
    assert verdict(a_report()) == (False, ["no round was run"])


def test_report_json_has_the_fixed_keys(tmp_path: Path) -> None:
    write_report(tmp_path / "deep" / "out", a_report(GOOD), [SERIES])
    data = json.loads((tmp_path / "deep" / "out" / "report.json").read_text())
    assert data["qemu_version"] == "7.2.22"
    assert data["accel"] == "tcg"
    assert data["guest"] == {"memory_mib": 256, "cpus": 1}
    round_ = data["rounds"][0]
    assert round_["killed"] == "primary"
    assert (
        round_["client"].items()
        >= {
            "requests": 5000,
            "failed": 0,
            "reset": 0,
            "wrong_bytes": 0,
            "lost_acknowledged": 0,
            "connections_kept": True,
            "longest_gap_ms": 121.5,
        }.items()
    )
    assert round_["checkpoints"] == {
        "count": 3,
        "reasons": {"time": 2, "divergence": 1},
        "pause_ms": {"p50": 3.0, "p99": 4.0, "max": 4.0},
        "bytes": {"p50": 8192.0, "max": 1 << 20},
    }
    assert round_["packets"] == {"released_equal": 900, "released_by_checkpoint": 10, "diverged": 1}
    assert round_["failover"] == {"detect_ms": 30.0, "claim_ms": 40.0, "takeover_ms": 90.0}
    assert data["ok"] is True
    assert data["noticed"] == []


def test_a_second_report_replaces_the_first_and_leaves_no_scraps(tmp_path: Path) -> None:
    write_report(tmp_path, a_report(GOOD), [SERIES])
    write_report(tmp_path, a_report(replace(GOOD, failed=7)), [SERIES])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["report.html", "report.json"]
    assert json.loads((tmp_path / "report.json").read_text())["rounds"][0]["client"]["failed"] == 7


def test_a_folder_that_cannot_be_written_is_one_clear_sentence(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("a file")
    with pytest.raises(EnvironmentFault, match="choose another folder"):
        write_report(tmp_path / "taken", a_report(GOOD), [SERIES])


def test_rounds_and_series_must_match(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="2 rounds but 1 series"):
        write_report(tmp_path, a_report(GOOD, GOOD), [SERIES])


class _Page(HTMLParser):
    """Collects what a browser would load from elsewhere, and the text."""

    def __init__(self) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.loads += [f"{tag} {name}" for name, _ in attrs if name in ("src", "href", "srcset", "xlink:href")]

    def handle_data(self, data: str) -> None:
        self.text += data


def parsed(html: str) -> _Page:
    result = _Page()
    result.feed(html)
    return result


def test_the_page_stands_alone_and_says_the_verdict() -> None:
    html = page(a_report(GOOD, GOOD), [SERIES, SERIES])
    assert parsed(html).loads == []
    assert "url(" not in html
    assert "@import" not in html
    assert "<h1>No client noticed</h1>" in html
    assert html.count("<svg") == 4
    bad = page(a_report(replace(GOOD, reset=2)), [SERIES])
    assert "<h1>A client noticed: 2 requests were reset when the primary died</h1>" in bad
    assert "No client noticed" not in bad


def test_texts_from_outside_are_escaped_everywhere() -> None:
    evil = '<script>alert("x")</script>'
    series = replace(SERIES, samples=[(1000.0, 2.0, evil)], checkpoints=[(1500.0, evil, 3.0)])
    report = a_report(replace(GOOD, failed=1, errors=[evil]))
    report = replace(report, qemu_version=evil, accel=evil)
    html = page(report, [series])
    assert evil not in html
    assert parsed(html).text.count("alert(") >= 3


@pytest.mark.parametrize("zoom", [None, (-500.0, 1000.0)])
@pytest.mark.parametrize("takeover_ms", [None, 4090.0, 9000.0])
@pytest.mark.parametrize("empty", [False, True])
def test_every_plot_is_well_formed_and_within_its_frame(
    zoom: tuple[float, float] | None, takeover_ms: float | None, empty: bool
) -> None:
    series = replace(SERIES, takeover_ms=takeover_ms)
    if empty:
        series = Series([], [], 4000.0, takeover_ms)
    svg = ElementTree.fromstring(plot(series, "primary", 1000.0, zoom))
    for element in svg.iter():
        for name in ("x", "x1", "x2", "cx"):
            assert -0.1 <= float(element.get(name, "0")) <= 1000.1, (element.tag, element.attrib)
        for name in ("y", "y1", "y2", "cy"):
            assert -0.1 <= float(element.get(name, "0")) <= 380.1, (element.tag, element.attrib)
    texts = [element.text or "" for element in svg.iter() if element.tag == "text"]
    assert "primary killed" in texts
    assert any("secondary took over" in text for text in texts) == (takeover_ms is not None)


def dots(svg: str) -> list[tuple[float, float]]:
    return [(float(x), float(y)) for x, y in re.findall(r"M([\d.]+) ([\d.]+)h0", svg)]


def test_downsampling_keeps_the_outlier_and_bounds_the_page() -> None:
    crowd = [(1000.0 + i / 10, 1.0 + (i % 10) / 1000, "redis") for i in range(60_000)]
    outlier = (3500.0, 480.0, "redis")
    drawn = dots(plot(replace(SERIES, samples=[*crowd, outlier]), "primary", 1120.0))
    alone = dots(plot(replace(SERIES, samples=[crowd[0], crowd[-1], outlier]), "primary", 1120.0))
    assert len(drawn) < 3000
    assert min(y for _, y in drawn) == min(y for _, y in alone)


def test_the_slowest_small_answer_has_a_tip_even_among_slower_downloads() -> None:
    downloads = [(1000.0 + 40 * i, 900.0, "download") for i in range(50)]
    svg = plot(replace(SERIES, samples=[*downloads, (2000.0, 140.0, "udp")]), "primary", 1120.0)
    assert "udp echo: 140 ms, asked at 1.000 s" in svg
    assert "download: 900" not in svg


def test_client_of_takes_the_result_line_and_refuses_anything_else() -> None:
    line: dict[str, Any] = {
        "requests": 10,
        "failed": 0,
        "reset": 0,
        "wrong_bytes": 0,
        "lost_acknowledged": 0,
        "connections_kept": True,
        "connections_opened": 4,
        "longest_gap_ms": 12.5,
        "by_kind": {"tcp": {"longest_gap_ms": 12.5, "requests": 10}},
        "errors": [],
    }
    assert client_of(line) == replace(
        GOOD,
        requests=10,
        connections_opened=4,
        longest_gap_ms=12.5,
        longest_gap_ms_by_kind={"tcp": 12.5},
        requests_by_kind={"tcp": 10},
        errors=[],
    )
    for broken in (
        {"type": "tick"},
        {**line, "failed": "none"},
        {**line, "by_kind": []},
        {**line, "by_kind": {"a": 1}},
    ):
        with pytest.raises(EnvironmentFault, match="run the demo again"):
            client_of(broken)


def test_figures_of_no_checkpoint_at_all() -> None:
    assert checkpoints_of([]).pause_ms.max == 0
    assert isinstance(checkpoints_of([]), Checkpoints)
    assert quantile([], 0.99) == 0
    assert quantile([4.0, 1.0, 3.0, 2.0], 0.5) == 2.0
    assert quantile([1.0] * 99 + [50.0], 0.99) == 1.0


@pytest.mark.parametrize(
    ("value", "text"), [(None, "–"), (0, "0"), (12345, "12\u202f345"), (118.4, "118"), (12.34, "12.3"), (0.456, "0.46")]
)
def test_numbers_for_people(value: float | None, text: str) -> None:
    assert number(value) == text


def test_sizes_for_people() -> None:
    assert [size(0), size(2048), size(3 << 20)] == ["0 B", "2 KiB", "3.0 MiB"]


def test_the_terminal_table_has_a_column_per_round_and_the_verdict() -> None:
    out = io.StringIO()
    Console(file=out, width=140).print(summary_table(a_report(GOOD, replace(GOOD, wrong_bytes=4))))
    assert "A client noticed: 4 answers had wrong bytes when the secondary died" in out.getvalue()
    assert "primary killed" in out.getvalue()
    assert "secondary killed" in out.getvalue()
    assert "121 ms" in out.getvalue() or "122 ms" in out.getvalue()


def test_a_takeover_that_never_came_is_said_so() -> None:
    lost = replace(a_report(GOOD).rounds[0], failover=Failover(30.0, None, None))
    html = page(replace(a_report(), rounds=[lost]), [replace(SERIES, takeover_ms=None)])
    assert "nobody went on" in html
    assert "took over" not in html


def test_a_round_with_a_disk_is_judged_by_its_file_system_too() -> None:
    report = a_report(GOOD)
    good = Disk(transactions=300, connect_ms=400.0, copied_bytes=100 << 20, copy_ms=200.0, fsck="")
    for disk, reasons in (
        (good, []),
        (replace(good, fsck="Inode 12 is bad"), ["the survivor's file system was damaged when the primary died"]),
        (replace(good, transactions=0), ["no transaction was committed when the primary died"]),
    ):
        with_disk = replace(report, rounds=[replace(report.rounds[0], disk=disk)])
        assert verdict(with_disk) == (not reasons, reasons)
    text = io.StringIO()
    Console(file=text, width=100).print(summary_table(replace(report, rounds=[replace(report.rounds[0], disk=good)])))
    assert "clean" in text.getvalue()
    assert "100.0 MiB in 0.20 s" in text.getvalue()
