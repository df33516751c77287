"""`metalearn replicate --docs`: the pages that are made of committed cards, the catalogue and the ledger."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from metalearn.registry import UserError
from metalearn.replicate.cards import catalogue, ledger, library, readme
from metalearn.replicate.cards.card import Card
from metalearn.replicate.cards.library import COLLECTED, ROOT
from metalearn.replicate.cards.lines import TIERS, Line, energy, lines
from metalearn.replicate.cards.listing import by_table
from metalearn.replicate.cards.markdown import table
from metalearn.replicate.cards.verdict import RULE
from metalearn.report.claims import RULE as CLAIMS
from metalearn.report.numbers import duration, span
from metalearn.train.files import write_text

REPLICATION, DEVIATIONS, README = Path("docs/replication.md"), Path("docs/deviations.md"), Path("README.md")
BEGIN, END = "<!-- replication table -->", "<!-- end of replication table -->"
MADE = "*Written by `metalearn replicate --docs`; a test holds it to the files that it is made of.*"


def write() -> Iterator[str]:
    """Write the pages into the checkout, and say what was done. Raises UserError outside of one."""
    if not (ROOT / "pyproject.toml").exists():
        raise UserError("--docs: this metalearn is no checkout, it has no docs/ to write in")
    for path, text in pages().items():
        target = ROOT / path
        if target.exists() and target.read_text("utf-8") == text:
            yield f"{path}: as it was"
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        write_text(target, text)
        yield f"{path}: written"
    if README not in pages():
        yield f"{README}: has no lines {BEGIN} and {END}, left as it is"


def pages() -> dict[Path, str]:
    """Each page's text by its path in the checkout; README.md only where it has the markers."""
    cards = library.collected()
    found = lines(catalogue.entries(), library.by_plan(cards))
    made = {REPLICATION: replication(found, cards)}
    families = ledger.read()
    if families:
        made[DEVIATIONS] = f"{ledger.page(families)}\n{MADE}\n"
    text = (ROOT / README).read_text("utf-8") if (ROOT / README).exists() else ""
    if BEGIN in text and END in text:
        made[README] = _between(text, readme.short(found, cards))
    return made


def _between(text: str, made: str) -> str:
    head, _, rest = text.partition(BEGIN)
    return f"{head}{BEGIN}\n{made}\n{END}{rest.partition(END)[2]}"


def replication(found: Sequence[Line], cards: Sequence[Card]) -> str:
    """The page of all tables: rows, verdicts with their statistics, provenance."""
    counts: dict[str, int] = {}
    for line in found:
        counts[_kind(line)] = counts.get(_kind(line), 0) + 1
    total = ", ".join(f"{count} {word}" for word, count in counts.items())
    parts = [
        "# Replication",
        MADE,
        f"Every row of the papers' tables of results, {len(found)} in all: {total}. "
        "`metalearn replicate --list` shows them on a terminal, with what lies in `runs/`; "
        "`metalearn replicate PLAN tier=TIER` runs one.",
        RULE,
        "± of ours is the sample standard deviation over seeds; "
        "of a published value it is what the paper prints, *(read)* that it was read off a figure.",
    ]
    paper = ""
    for first, members in by_table(found):
        if first.entry.paper.paper != paper:
            paper = first.entry.paper.paper
            parts.append(f"## {first.entry.paper.title} ({paper})")
        parts += _table(first, members)
    named = {line.entry.row.plan for line in found}
    others = [card for card in cards if card.plan not in named and card.tier != "smoke"]
    parts += _others(others)
    parts += ["## Provenance", *map(_provenance, cards)]
    return "\n\n".join(parts) + "\n"


def _kind(line: Line) -> str:
    """A row in the count of all."""
    word = line.judgement.word
    if word in ("cited", "not run"):
        return word
    kinds = ("reproduced", "ordering reproduced", "missed", "ordering missed", "better than published")
    return next((kind for kind in kinds if word.startswith(kind)), "run without a verdict")


def _table(first: Line, members: Sequence[Line]) -> list[str]:
    options = first.entry.table
    tiers = [tier for tier in TIERS if any(line.figure(tier) != "-" for line in members)]
    goal = "lower is better" if options.goal == "min" else "higher is better"
    unit = f", {options.unit}" if options.unit else ""
    rows = [
        (
            line.entry.name,
            line.entry.printed,
            *(line.figure(tier) for tier in tiers),
            line.seeds,
            f"cited: {line.entry.row.cited}" if line.entry.row.plan is None else line.judgement.word,
            f"`{line.entry.row.plan}`" if line.entry.row.plan else "-",
        )
        for line in members
    ]
    header = ("row", "published", *(f"ours, {tier}" for tier in tiers), "seeds", "verdict", "plan")
    said = [f"- **{line.entry.name}**: {text}" for line in members if (text := _said(line))]
    parts = [
        f"### {first.entry.key.replace('_', ' ')}: {options.title}",
        f"`{options.metric}`{unit}; {goal}.",
        table(header, rows, set(range(1, 3 + len(tiers)))),
    ]
    return [*parts, "\n".join(said)] if said else parts


def _said(line: Line) -> str:
    """The sentences behind a verdict; none where nothing was run."""
    if line.best is None:
        return ""
    value, ordering = line.judgement
    parts = [value.statement] if not value.word.startswith("no number") else []
    return ". ".join([*parts, *([ordering.statement] if ordering else [])])


def _others(cards: Sequence[Card]) -> list[str]:
    """Plans that replicate no row: what they compare is ours alone."""
    if not cards:
        return []
    parts = ["## Beyond the tables", CLAIMS]
    for card in cards:
        rows = [
            (row.contender, str(row.summary or "-"), str(len(row.values)), span(row.parameters))
            for row in card.rows
        ]
        unit = f", {card.rows[0].unit}" if card.rows and card.rows[0].unit else ""
        tier = f", tier={card.tier}" if card.tier else ""
        parts += [
            f"### {card.plan}{tier}",
            f"`{card.metric}`{unit}; {'lower' if card.goal == 'min' else 'higher'} is better.",
            table(("contender", "mean ± deviation", "seeds", "parameters"), rows, {1, 2, 3}),
            "\n".join(f"- {claim.statement}" for claim in card.claims),
        ]
    return [part for part in parts if part]


def _provenance(card: Card) -> str:
    made = card.provenance
    source, reason = made["energy"]["source"], made["energy"]["reason"]
    told = reason if card.joules is None else f"{energy(card.joules)} ({source})"
    runs = ", ".join(f"{count} {state}" for state, count in card.runs.items())
    path = (COLLECTED / card.file).relative_to(ROOT)
    report = Path("benchmarks/results/plans") / f"{card.plan.replace('/', '_')}.md"
    links = [f"[card](../{path})", *([f"[report](../{report})"] if (ROOT / report).exists() else [])]
    lines_ = [
        f"**{card.plan}**{f', tier={card.tier}' if card.tier else ''} ({', '.join(links)})",
        f"- runs: {runs}, seeds {', '.join(map(str, card.seeds))}; {duration(card.seconds)} in all",
        f"- energy: {told}",
        f"- machine: {_listed(map(_hardware, made['hardware']))}",
        f"- commit: {_listed(map(_commit, made['commits']))}; {_listed(map(_versions, made['versions']))}",
        *(f"- data: {_data(data)}" for data in made["data"]),
        f"- configuration: sha256 {made['config']['digest'][:16]}",
        f"- again: `{made['command']}`",
    ]
    return "\n".join([lines_[0], "", *lines_[1:]])


def _listed(texts: Iterable[str]) -> str:
    return ", ".join(dict.fromkeys(texts)) or "not recorded"


def _hardware(found: dict[str, object]) -> str:
    gpu = f"{found['gpu']}" if found.get("gpu") else "no GPU"
    return f"{found.get('cpu')}, {found.get('cores')} cores, {found.get('memory_gib')} GiB, {gpu}"


def _commit(found: dict[str, object]) -> str:
    commit = str(found["commit"])[:12] if found.get("commit") else "no checkout"
    return commit + (f" with changes ({found['runs']} runs)" if found.get("dirty") else "")


def _versions(found: dict[str, object]) -> str:
    return f"python {found.get('python')}, torch {found.get('torch')}"


def _data(data: dict[str, object]) -> str:
    digest = f", sha256 {str(data['digest'])[:16]}" if data.get("digest") else ""
    said = "comparable with the paper's" if data["comparable"] else f"not comparable: {data['why']}"
    return f"{data['task']}{digest}; {said}"
