"""10,000 broken strategies: no traceback, no hang, and single defects named by key and line.

    nice -n 10 python benchmarks/strategy_fuzz.py [--cases 10000] [--seed 1] [--only WORD]

Valid strategies (the guide's, the demos', the presets' and random ones) get a defect each, whose key and line
the generator knows (`strategy_mutations.py` says what is expected for each kind), and are loaded. Exits 1
when a claim fails. Seconds are the processor's, so that what else the machine does is not counted; loading is
stopped as hung after four times the limit by the clock.
"""

from __future__ import annotations

import argparse
import random
import signal
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import strategy_key_mutations  # noqa: F401  adds its kinds to MUTATIONS
import strategy_override_mutations  # noqa: F401
from strategy_mutations import MUTATIONS, Case, make_case
from strategy_seeds import LEAVES, Seed, make_seeds
from strategy_text_mutations import LARGE

from llamafarm import terminal
from llamafarm.errors import DataError, StrategyError
from llamafarm.strategy.load import load_strategy

MAX_SECONDS = 5.0
MIN_NAMED = 0.95
_BY_KEY = "named by key and line, or option"
_LARGE_EVERY = 20
"""Large files take seconds each: one of their kind for so many of every other."""


class Hang(BaseException):
    """Loading took longer than a person waits; no Exception, so that nothing catches it on its way."""


@dataclass(frozen=True)
class Verdict:
    """What loading a case led to."""

    case: Case
    seconds: float
    outcome: str
    """loaded, refused, or what was raised instead."""
    said: str
    """The error's three parts."""
    is_named: bool
    """Whether the error says what was expected of it."""

    @property
    def is_crash(self) -> bool:
        """Whether something other than a StrategyError or DataError was raised."""
        return self.outcome not in ("loaded", "refused")


@contextmanager
def _limit(seconds: float) -> Iterator[None]:
    def stop(_: int, __: FrameType | None) -> None:
        raise Hang

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def judge(case: Case, folder: Path) -> Verdict:
    """Load a case from a file in the folder."""
    file = folder / "s.yaml"
    file.write_bytes(case.content)
    outcome, said, is_named = "loaded", "", False
    start = time.process_time()
    try:
        with _limit(4 * MAX_SECONDS):
            load_strategy(case.strategy, file=file, overrides=case.overrides)
    except (StrategyError, DataError) as error:
        outcome, said = "refused", str(error)
        is_named = _is_named(case, error, str(file))
        if "\n" in error.problem + error.where + error.remedy:
            outcome = "an error of more than three lines"
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        outcome = f"{type(error).__name__}: {error}"
    return Verdict(case, time.process_time() - start, outcome, said, is_named)


def _is_named(case: Case, error: StrategyError | DataError, file: str) -> bool:
    expected = case.expected
    if not all(name in error.problem for name in expected.names):
        return False
    if not expected.lines:
        return not expected.option or error.where == expected.option
    place, _, line = error.where.rpartition(":")
    distances = [abs(int(line) - wanted) for wanted in expected.lines] if line.isdecimal() else []
    return place == file and bool(distances) and min(distances) <= expected.tolerance


def make_cases(num_cases: int, seed: int, num_random_seeds: int, only: str = "") -> Iterator[Case]:
    """Yield cases, each kind as often as the others but for large files; `only` those with a word in it."""
    rng = random.Random(seed)
    seeds: Sequence[Seed] = make_seeds(rng, num_random_seeds)
    num_made = 0
    for turn in range(num_cases):
        for kind in [kind for kind in MUTATIONS if only in kind]:
            if kind == LARGE and turn % _LARGE_EVERY:
                continue
            if num_made == num_cases:
                return
            num_made += 1
            yield make_case(kind, rng, seeds)


def share_named(verdicts: Iterable[Verdict]) -> float:
    """Return the part of the single defects that was named."""
    single = [verdict.is_named for verdict in verdicts if verdict.case.expected.is_single_defect]
    return sum(single) / len(single) if single else 1.0


def split_by_expectation(verdicts: Sequence[Verdict]) -> dict[str, list[Verdict]]:
    """Return the single defects apart by how exactly they must be named."""
    groups = defaultdict(list)
    for verdict in verdicts:
        expected = verdict.case.expected
        if expected.names and (expected.lines or expected.option):
            groups[_BY_KEY].append(verdict)
        elif expected.lines:
            groups["broken text, told by its line or the next"].append(verdict)
        elif expected.names:
            groups["without a line, told by words"].append(verdict)
    return dict(groups)


def failures(verdicts: Sequence[Verdict]) -> list[str]:
    """Return what contradicts the three claims; the last is made of those with a key by themselves too."""
    found = [f"{v.case.kind}: {v.outcome}" for v in verdicts if v.is_crash]
    found += [f"{v.case.kind}: {v.seconds:.1f} s" for v in verdicts if v.seconds > MAX_SECONDS]
    with_key = split_by_expectation(verdicts).get(_BY_KEY, [])
    for group, members in ((_BY_KEY, with_key), ("named in their way", verdicts)):
        if (share := share_named(members)) < MIN_NAMED:
            found.append(f"only {share:.1%} of single defects {group}")
    return found


def _show_misses(verdicts: Sequence[Verdict], num_shown: int) -> None:
    missed = [v for v in verdicts if v.case.expected.is_single_defect and not v.is_named]
    for verdict in missed[:num_shown]:
        case = verdict.case
        terminal.say(f"--- {case.kind}: {case.expected} {case.overrides}\n{verdict.outcome}: {verdict.said}")
        lines = case.content[:5000].decode(errors="replace").split("\n")
        terminal.say("\n".join(f"{number:3} {line[:200]}" for number, line in enumerate(lines, 1)))


def _row(kind: str, verdicts: Sequence[Verdict]) -> tuple[str, ...]:
    is_single = any(verdict.case.expected.is_single_defect for verdict in verdicts)
    return (
        kind,
        str(len(verdicts)),
        str(sum(verdict.outcome == "refused" for verdict in verdicts)),
        f"{share_named(verdicts):.1%}" if is_single else "-",
        f"{max(verdict.seconds for verdict in verdicts):.2f}",
    )


def main() -> int:
    """Load the cases and print a table; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--cases", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", default="", help="only the kinds with this in their name")
    parser.add_argument("--show", type=int, default=0, help="print so many cases of each kind not named")
    options = parser.parse_args()
    by_kind = defaultdict(list)
    with tempfile.TemporaryDirectory() as folder:
        for case in make_cases(options.cases, options.seed, max(20, options.cases // 50), options.only):
            by_kind[case.kind].append(judge(case, Path(folder)))
    verdicts = [verdict for group in by_kind.values() for verdict in group]
    for group in by_kind.values():
        _show_misses(group, options.show)
    head = ("kind", "number", "refused", "named", "slowest s")
    totals = [*split_by_expectation(verdicts).items(), ("all", verdicts)]
    terminal.columns([head, *(_row(kind, group) for kind, group in by_kind.items())])
    terminal.heading("altogether")
    terminal.columns([head, *(_row(group, members) for group, members in totals)])
    settings = {verdict.case.setting for verdict in verdicts} & set(LEAVES)
    terminal.say(f"{len(settings)} of the {len(LEAVES)} settings had a defect of their own")
    contradicted = failures(verdicts)
    for line in contradicted[:20]:
        terminal.warn(line)
    return 1 if contradicted else 0


if __name__ == "__main__":
    sys.exit(main())
