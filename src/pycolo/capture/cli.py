"""The command `colo compare`: what the data plane would have said of two captures."""

from __future__ import annotations

import json
from pathlib import Path

import click

from pycolo.errors import CaptureDamaged

EXIT_EQUAL, EXIT_DIVERGED = 0, 1
"""As of `diff` and `cmp`. No failure of ours has the second one (see `errors`)."""

CAPTURE = click.Path(path_type=Path, readable=False)


@click.command()
@click.argument("primary", type=CAPTURE)
@click.argument("secondary", type=CAPTURE)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object, and all divergences.")
@click.pass_context
def compare(context: click.Context, primary: Path, secondary: Path, as_json: bool) -> None:
    """Compare two captures, what the two copies of a VM sent, as a protected VM's output is compared.

    PRIMARY and SECONDARY are pcap or pcapng files with Ethernet frames, which may be gzipped; one of them may be `-`,
    standard input. Streams are compared by content, not by segments; what a client can't tell apart is no difference.

    The exit status is 0 when they are equal, 1 when they diverge, and 2 when a capture can't be read to its end.
    """
    from pycolo.capture.compare import compare_files
    from pycolo.capture.progress import progress
    from pycolo.capture.report import as_document, as_text
    from pycolo.core.offline import Comparison

    with progress("comparing") as tick:
        outcome = compare_files(primary, secondary, Comparison(), tick)
    click.echo(json.dumps(as_document(outcome)) if as_json else as_text(outcome))
    if outcome.damage:
        raise CaptureDamaged("; ".join(outcome.damage))
    context.exit(EXIT_DIVERGED if outcome.found else EXIT_EQUAL)
