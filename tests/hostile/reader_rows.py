"""G1 to G3: what the reader makes of malformed files, mutants and bombs, in processes that do nothing else."""

from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

from tests.hostile.attacks import Attack, attacks, bombs, mutants
from tests.hostile.promises import Figure, Settings, judged
from tests.hostile.reading import MAX_LINE, read_all

MAX_SECONDS, MAX_MIB = 5, 400
BOMB_SECONDS, BOMB_MIB = 0.1, 50


def malformed_files(_: Settings) -> Iterator[Figure]:
    """G1."""
    found = [attack for attack in attacks(0, 0) if attack.kind != "archive"]
    yield _figure(f"{len(found)} malformed or odd files through the reader", read_apart(found))


def mutated_files(settings: Settings) -> Iterator[Figure]:
    """G2."""
    found = list(mutants(0, settings.mutants))
    yield _figure(f"{len(found):,} seeded mutants of valid images and DICOMs", read_apart(found))


def bombs_alone(_: Settings) -> Iterator[Figure]:
    """G3: each in a process of its own, since memory that one has taken hides that of the next."""
    found = [bomb for bomb in bombs() if bomb.kind.startswith("bomb")]
    results = [read_apart([bomb]) for bomb in found]
    worst = {key: max(result[key] for result in results) for key in ("slowest, s", "growth, MiB")}
    totals = {key: sum(result[key] for result in results) for key in ("read", "crashes", "bad lines")}
    yield judged(
        f"{len(found)} bombs, each in a process of its own",
        {**totals, **worst},
        {
            "all refused in one line": not any(totals.values()),
            f"under {BOMB_SECONDS} s": worst["slowest, s"] < BOMB_SECONDS,
            f"under {BOMB_MIB} MiB": worst["growth, MiB"] < BOMB_MIB,
        },
    )


def read_apart(found: Sequence[Attack]) -> dict[str, float]:
    """`read_all` in a process of its own; its death raises BrokenProcessPool."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(read_all, list(found)).result()


def _figure(tried: str, figures: dict[str, float]) -> Figure:
    return judged(
        tried,
        {name: value for name, value in figures.items() if name != "files"},
        {
            "no crash": figures["crashes"] == 0,
            f"one line of at most {MAX_LINE} characters without a path": figures["bad lines"] == 0,
            f"under {MAX_SECONDS} s of processor time": figures["slowest, s"] < MAX_SECONDS,
            f"growth under {MAX_MIB} MiB": figures["growth, MiB"] < MAX_MIB,
        },
    )
