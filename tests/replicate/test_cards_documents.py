"""The list and the pages that are made of cards; those committed are what --docs would write."""

import dataclasses
import json
import re

import pytest

from metalearn.replicate.cards import catalogue, documents, ledger, library, listing, readme
from metalearn.replicate.cards.card import ClaimOfCard
from metalearn.replicate.cards.lines import lines


def test_the_committed_pages_are_what_docs_would_write():
    for path, text in documents.pages().items():
        assert (documents.ROOT / path).exists(), f"{path} is missing: metalearn replicate --docs"
        assert (documents.ROOT / path).read_text("utf-8") == text, (
            f"{path} is old: metalearn replicate --docs"
        )


def test_committed_cards_agree_with_the_committed_reports():
    """Each mean and deviation of a card stands in the report that was written when its runs ended."""
    compared = 0
    for card in library.collected():
        report = documents.ROOT / "benchmarks/results/plans" / f"{card.plan.replace('/', '_')}.md"
        if not report.exists() or card.tier not in ("cpu", ""):
            continue
        text = report.read_text("utf-8").split("\n## ")[1]
        for row in card.rows:
            assert re.search(
                rf"\| {re.escape(row.contender)} \|[^|]*\| {re.escape(str(row.summary))} [|(]", text
            ), row
            compared += 1
        assert all(claim.statement in text for claim in card.claims)
    assert compared > 100


def test_committed_cards_name_no_folder_of_their_machine():
    for path in library.COLLECTED.glob("*.json"):
        assert not re.search(r'[" \'=](/tmp|/work|/home|/root|/data)\b', path.read_text("utf-8")), path


@pytest.fixture
def cards(make_card):
    return [
        make_card("cpu", ours=[5.0, 5.1, 5.2], theirs=[7.0, 7.1, 7.3]),
        make_card(ours=[5.0, 5.1, 5.15], theirs=[7.0, 7.1, 7.3], seconds=7200.0, joules=7200.0),
        make_card("cpu", plan="beside", alone=[1.0, 2.0]),
    ]


@pytest.fixture
def found(make_entry, cards):
    rows = [
        make_entry(5.0, 0.05, over=["theirs"]),
        make_entry(9.0, plan=None, contender=None, cited="others | here"),
    ]
    return lines(rows, library.by_plan(cards))


def test_a_line_has_all_that_is_asked_for(found):
    line = found[0]
    assert [line.figure(tier) for tier in ("cpu", "gpu_hour", "paper")] == [
        "5.10 ± 0.10",
        "-",
        "5.083 ± 0.076",
    ]
    assert (line.seeds, line.cost) == ("3", "2 h 0 min, 2 Wh")
    assert line.judgement.word == "reproduced; ordering reproduced"
    told = line.plain()
    assert told["ours"]["paper"] == {0: 5.0, 1: 5.1, 2: 5.15}
    assert (told["published"], told["spread"], told["joules"]) == (5.0, 0.05, 7200.0)
    assert found[1].plain()["ours"] == {}
    assert found[1].judgement.word == "cited"


def test_the_page_shows_rows_verdicts_and_where_they_come_from(found, cards):
    page = documents.replication(found, cards)
    verdict = "reproduced; ordering reproduced"
    assert f"| the row | 5.00 ± 0.05 | 5.10 ± 0.10 | 5.083 ± 0.076 | 3 | {verdict} | `toy` |" in page
    assert "| the row | 9 | - | - | - | cited: others \\| here | - |" in page
    assert "2 in all: 1 reproduced, 1 cited" in page
    assert "- **the row**: reproduced: our mean with its 95 % t-interval" in page
    assert "### beside, tier=cpu" in page
    assert "- energy: 2 Wh (RAPL)" in page
    assert "- energy: none told" in page
    assert "- commit: 0123456789ab" in page
    assert "not comparable: a lossy copy" not in page
    for block in page.split("\n\n"):
        if block.startswith("|"):
            counts = {len(re.findall(r"(?<!\\)\|", row)) for row in block.splitlines()}
            assert len(counts) == 1, "each row of a table has as many cells"


def test_the_short_table_lies_between_its_markers(found, cards):
    short = readme.short(found, cards)
    assert short.splitlines()[2:] == [
        f"| `{found[0].entry.place}`: a table, % | the row | 5.00 ± 0.05 | "
        "5.10 ± 0.10 (cpu, 3 seeds), 5.083 ± 0.076 (paper, 3 seeds) | theirs | "
        "reproduced; ordering reproduced |"
    ]
    text = f"head\n{documents.BEGIN}\nold\n{documents.END}\ntail\n"
    made = documents._between(text, short)
    assert made == f"head\n{documents.BEGIN}\n{short}\n{documents.END}\ntail\n"
    assert documents._between(made, short) == made


def test_clear_claims_are_told_below_the_short_table(found, make_card):
    def claim(verdict, statement):
        return ClaimOfCard(
            "", ["a", "b"], verdict, f"{statement} (paired, 3 seeds)", 0.1, 0.1, 0.95, [0], "paired"
        )

    family, won = found[0].entry.family, claim("better", "a beats b by 1 ± 0.5")
    several = {
        "few": [won, claim("unclear", "no clear difference")],
        "many": [won, won, claim("worse", "a loses"), claim("worse", "a loses"), claim("unclear", "none")],
        "open": [claim("unclear", "no clear difference")],
    }
    cards = [
        dataclasses.replace(make_card("cpu", plan=f"{family}/{name}", a=[1.0]), claims=claims)
        for name, claims in several.items()
    ]
    other = dataclasses.replace(cards[0], plan="elsewhere/plan")
    smoke = dataclasses.replace(cards[0], tier="smoke")
    assert readme.short(found, [*cards, other, smoke]).split("\n\n")[1].splitlines() == [
        f"- `{family}/few`: a beats b by 1 ± 0.5; 1 open",
        f"- `{family}/many`: of 5 comparisons 2 won, 2 lost, 1 open",
        f"- No difference is clear: `{family}/open`.",
    ]


def test_docs_writes_what_differs_and_says_where_there_are_no_markers(tmp_path, monkeypatch, found):
    (tmp_path / "pyproject.toml").touch()
    (tmp_path / "README.md").write_text("no marker\n")
    monkeypatch.setattr(documents, "ROOT", tmp_path)
    monkeypatch.setattr(documents, "lines", lambda *_: found)
    monkeypatch.setattr(documents.library, "collected", list)
    assert list(documents.write()) == [
        "docs/replication.md: written",
        "docs/deviations.md: written",
        f"README.md: has no lines {documents.BEGIN} and {documents.END}, left as it is",
    ]
    assert next(documents.write()) == "docs/replication.md: as it was"


@pytest.mark.parametrize("terminal", [False, True])
def test_the_list_on_a_terminal_and_in_a_pipe(found, capsys, monkeypatch, tmp_path, terminal):
    monkeypatch.setattr(listing, "lines", lambda *_: found)
    monkeypatch.setenv("COLUMNS", "100")
    if terminal:
        monkeypatch.setenv("FORCE_COLOR", "1")
        monkeypatch.setenv("TERM", "xterm")
    listing.show([], tmp_path, False)
    shown = re.sub(r"\x1b\[[0-9;]*m", "", capsys.readouterr().out)
    if not terminal:
        header, first, _ = (row.split("\t") for row in shown.splitlines())
        assert dict(zip(header, first, strict=True))["verdict"] == "reproduced; ordering reproduced"
        return
    assert max(map(len, shown.splitlines())) <= 100
    assert "paper 5.083 ± 0.076" in shown
    listing.show([], tmp_path, True)
    assert json.loads(capsys.readouterr().out)[0]["verdict"] == "reproduced; ordering reproduced"


def test_the_ledger_holds_every_entry(tmp_path):
    (tmp_path / "toys.yaml").write_text(
        "- {name: a_choice, switch: method.x, paper: one, code: two, ours: one, effect: none, "
        "measured: {report: benchmarks/x.md, command: metalearn x}}\n"
        "- {name: other, switch: null, paper: p, code: c, ours: o, effect: not measured, measured: null}\n"
    )
    page = ledger.page(ledger.read(tmp_path))
    assert "2 places, the effect of 1 measured" in page
    assert "### a choice\n\n- switch: `method.x`\n- paper: one" in page
    assert "- effect: none ([report](../benchmarks/x.md)), `metalearn x`" in page
    assert "- switch: no switch" in page
    assert "Measured, no difference established: [a choice](#a-choice).\n" in page
    assert "A clear effect" not in page
    text = (tmp_path / "toys.yaml").read_text().replace("effect: none", "effect: one beats two by 1 ± 0.5")
    (tmp_path / "toys.yaml").write_text(text)
    assert "A clear effect: [a choice](#a-choice).\n" in ledger.page(ledger.read(tmp_path))
    (tmp_path / "toys.yaml").write_text("- {name: a}\n")
    with pytest.raises(ledger.UserError, match=r"toys.yaml: entry 1 has no paper, code, ours, effect"):
        ledger.read(tmp_path)


def test_the_catalogue_has_every_family_and_its_verdicts_are_words():
    everything = lines(catalogue.entries(), library.by_plan(library.collected()))
    assert {line.entry.family for line in everything} == {"darts", "hypernetworks", "learned_optimizers"}
    assert all(line.judgement.word and line.judgement.value.statement for line in everything)
