"""The page over all claims, and the profile page of a normalizer, from records with given answers."""

import math
import re
import time

import pytest
from tests.claims.claim_records import part, record, write

from normlab.claims.claim_figures import forests
from normlab.claims.page import write_claims_page
from normlab.claims.verdict import Answer, decide
from normlab.claims.wording import verdict_sentences
from normlab.errors import ConfigError
from normlab.stats.regions import Region

HOLDS, FAILS, OPEN = part(effect=0.6), part(effect=1.5), part(effect=0.97)
GIVEN = {"effect": math.inf, "interval": (1.2, math.inf), "p": 1.0, "p_against": 1e-5}
PROFILE = {
    "bn": [HOLDS, HOLDS],
    "mine": [part("mine against nobn, test/loss"), part("mine against nobn, val/loss", effect=0.8)],
    "ln": [OPEN, FAILS],
    "rms": "no setting of rms trains",
}


@pytest.fixture
def folder(tmp_path):
    """Return a folder with records of each kind."""
    claim = {"statement": "γ < β & <more>", "power": "underpowered: 0.3", "order": 3}
    write(tmp_path, record("good", [HOLDS, part(effect=0.8)], profile=PROFILE))
    write(tmp_path, record("bad", [part(**GIVEN), HOLDS], claim={"order": 2, "about": "generalization"}))
    write(tmp_path, record("weak", [OPEN], claim=claim))
    write(tmp_path, record("bad", [part(effect=0.7)], fresh=True, data="breast_cancer"), "bad-fresh")
    write(tmp_path, record("good", [HOLDS], overrides=["data=wine"], data="wine"), "good-wine")
    write(tmp_path, record("fixed", [HOLDS], claim={"replace": None, "order": 4}))
    write(tmp_path, record("failed", [HOLDS], claim={"order": 5}, profile={"bn": [HOLDS], "mine": "diverged"}))
    return tmp_path


def rows_of(html):
    """Return the rows of the summary table by the address of their link."""
    body = html[html.index("<tbody>") : html.index("</tbody>")]
    return {re.search(r'href="[^"#]*#([^"]+)"', row)[1]: row for row in body.split("<tr>")[1:]}


def words(html):
    """Return the text of a piece of HTML."""
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", html))


class TestClaimsPage:
    def test_each_claim_has_a_row_in_its_order(self, folder):
        rows = rows_of(write_claims_page(folder).read_text())
        assert list(rows) == ["good", "bad", "weak", "fixed", "failed", "good-wine"]
        for key, answer in (("good", "holds"), ("bad", "does not hold"), ("weak", "undecided")):
            assert f"badge {answer.replace(' ', '-')}" in rows[key]

    def test_row_has_the_facts_of_the_record(self, folder):
        text = words(rows_of(write_claims_page(folder).read_text())["good"])
        for fact in ("ratio 0.8", "0.725 to 0.882", "24 splits of this table", "1000–1023", "1.8", "2026-11-20"):
            assert fact in text
        assert "1a2b3c4" in text

    def test_fresh_table_is_a_line_in_the_row(self, folder):
        text = words(rows_of(write_claims_page(folder).read_text())["bad"])
        assert "Fresh table breast_cancer: ✓ holds 0.7" in text

    def test_flags(self, folder):
        for name, commit in (("new", None), ("changed", "1a2b3c4")):
            registration = {"sha256": "0", "commit": commit, "date": None, "modified": True}
            write(folder, record(name, [HOLDS], registration=registration))
        rows = rows_of(write_claims_page(folder).read_text())
        assert "not the registered protocol" in rows["good-wine"]
        assert "underpowered" in rows["weak"]
        assert "changed since its registration" in rows["changed"]
        assert "not committed" in rows["new"]
        assert "flag" not in rows["good"]

    def test_tallies_count_registered_claims(self, folder):
        html = write_claims_page(folder).read_text()
        assert 'aria-label="3 holds, 1 does not hold, 1 undecided"' in html
        assert "among 5 independent claims some answer is wrong in up to 23 %" in html

    def test_answer_that_holm_takes_back(self, tmp_path):
        write(tmp_path, record("one", [part(effect=0.9, se=0.05)]))  # p = 0.035
        write(tmp_path, record("two", [OPEN]))
        html = write_claims_page(tmp_path).read_text()
        assert "after Holm: undecided" in rows_of(html)["one"]
        assert 'aria-label="0 holds, 0 does not hold, 2 undecided"' in html

    def test_text_is_escaped_and_papers_are_linked(self, folder):
        html = write_claims_page(folder).read_text()
        assert "γ &lt; β &amp; &lt;more&gt;" in html
        assert '<a href="https://arxiv.org/abs/1502.03167">arXiv:1502.03167</a>' in html

    def test_page_loads_nothing(self, folder):
        html = write_claims_page(folder).read_text()
        assert not re.findall(r'src="|url\(|@import|<link rel="stylesheet"', html)

    def test_page_of_no_records(self, tmp_path):
        assert "No claim has been tested" in write_claims_page(tmp_path).read_text()

    def test_damaged_record(self, tmp_path):
        (tmp_path / "one").mkdir()
        for text in ("{", '{"claim": {"name": "one"}}'):
            (tmp_path / "one" / "claim.json").write_text(text)
            with pytest.raises(ConfigError, match=r"claim\.json"):
                write_claims_page(tmp_path)

    def test_page_of_25_records_takes_seconds(self, tmp_path):
        for k in range(25):
            write(tmp_path, record(f"claim{k}", [part(f"bn against nobn, m{j}/loss") for j in range(20)]))
        start = time.monotonic()
        write_claims_page(tmp_path)
        assert time.monotonic() - start < 20


class TestProfile:
    @pytest.fixture
    def lists(self, folder):
        write_claims_page(folder, "mine", [("fixed", "no arm of this claim can be replaced")])
        html = (folder / "profile-mine.html").read_text()
        return {words(part_)[:14].strip(): words(part_) for part_ in html.split('<section class="list">')[1:]}

    def test_lists(self, lists):
        wins, loses, undecided, cannot = lists.values()
        assert "good" in wins
        assert "mine against nobn, validation loss: ratio 0.8" in wins  # the weakest part
        assert "No claim" in loses
        assert "No claim" in undecided
        assert "failed : the runs failed. diverged" in cannot
        assert "fixed : no arm of this claim can be replaced" in cannot

    def test_claim_against_the_arm_is_a_loss_if_it_holds(self, tmp_path):
        profile = {"bn": [HOLDS], "mine": [HOLDS]}
        write(tmp_path, record("weak", [HOLDS], claim={"weakness": True}, profile=profile))
        write(tmp_path, record("strong", [HOLDS], profile=profile))
        write_claims_page(tmp_path, "mine")
        html = (tmp_path / "profile-mine.html").read_text()
        wins, loses, *_ = (words(part_) for part_ in html.split('<section class="list">')[1:])
        assert "strong" in wins
        assert "weak" not in wins
        assert "weak" in loses

    def test_all_arms_show_the_part_that_decides_for_the_normalizer(self, folder):
        write_claims_page(folder)
        text = words(rows_of((folder / "profile-mine.html").read_text())["good"])
        assert "ratio 0.8 0.725 to 0.882 ✓ holds" in text
        assert "ratio 1.5" in text  # the second part of ln
        assert "failed: no setting of rms trains" in text

    def test_common_normalizer_has_a_profile_if_no_other_has(self, tmp_path):
        write(tmp_path, record("one", [HOLDS], profile={"bn": [HOLDS], "ln": [OPEN], "rms": [OPEN]}))
        write_claims_page(tmp_path)
        assert [path.name for path in tmp_path.glob("profile-*")] == ["profile-ln.html"]


class TestForests:
    def test_one_part(self):
        (forest,) = forests([part(effect=0.5, se=0.1)])
        (row,) = forest.rows
        low, high = row.ends
        assert 0 < low < row.at < high < forest.neutral < 100
        assert row.region == (0.0, forest.neutral)
        assert (forest.log, row.open_ends, row.answer) == (True, (False, False), Answer.HOLDS)
        assert (low + high) / 2 == pytest.approx(row.at, abs=0.02)  # the interval is symmetric on a log axis

    def test_infinite_ends_go_to_the_edge(self):
        (forest,) = forests([part(**GIVEN), part(effect=0.5, interval=(0.0, 0.7))])
        first, second = forest.rows
        assert (first.at, first.ends[1], first.open_ends) == (100.0, 100.0, (False, True))
        assert (second.ends[0], second.open_ends) == (0.0, (True, False))

    def test_twenty_parts_share_the_words_that_all_have(self):
        parts = [part(f"bn against nobn, test/loss, data.batch_size={k}", effect=1.1**k) for k in range(20)]
        (forest,) = forests(parts)
        assert forest.shared == "bn against nobn, test loss"
        assert [row.label for row in forest.rows][:2] == ["batch size 0", "batch size 1"]
        assert all(0 <= place <= 100 for place, _ in forest.ticks)
        assert 2 <= len(forest.ticks) <= 7

    def test_units_and_scales_have_axes_of_their_own(self):
        small, large = Region(high=1e-6), Region(low=0.1)
        parts = [part(), part(unit="value", effect=1e-7, se=1e-8, region=small)]
        parts += [
            part(unit="value", effect=0.5, se=0.1, region=large),
            part(unit="share", effect=0.9, region=Region(0.5)),
        ]
        assert [forest.unit for forest in forests(parts)] == ["ratio", "value", "value", "share of replicates"]

    def test_ratios_of_a_millionth_have_an_axis_of_their_own(self):
        near = part(effect=1.0, se=1e-8, region=Region(0.999999, 1.000001), level=90)
        first, second = forests([near, part(effect=0.3), near, part(effect=0.001)])
        assert [len(first.rows), len(second.rows)] == [2, 2]
        assert first.rows[0].region[1] - first.rows[0].region[0] > 50

    def test_part_without_values(self):
        nothing = part(effect=math.nan, interval=(math.nan, math.nan), n=0, p=1.0, p_against=1.0)
        for parts in ([nothing], [nothing, part()]):
            assert forests(parts)[0].rows[0].at is None
        assert (
            verdict_sentences(decide([nothing]))[0]
            == "Undecided: bn against nobn, test loss: no replicate has the values."
        )

    @pytest.mark.parametrize("unit", ["ratio", "points", "difference", "value", "slope", "share", "correlation"])
    @pytest.mark.parametrize("span", [0.001, 0.1, 0.4])
    def test_ticks(self, unit, span):
        (forest,) = forests([part(unit=unit, effect=0.5, se=span / 4, region=Region(0.5 - span))])
        places = [place for place, _ in forest.ticks]
        assert places == sorted(places)
        assert 2 <= len(places) <= 8
        assert len({label for _, label in forest.ticks}) == len(places)

    @pytest.mark.parametrize("decades", [1, 2, 3, 8, 40])
    def test_ticks_over_decades(self, decades):
        (forest,) = forests([part(effect=10.0**-decades, se=0.3)])
        assert 2 <= len(forest.ticks) <= 8


class TestSentences:
    def test_margins_of_a_millionth_keep_their_digits(self):
        near = part(effect=1.0, se=1e-8, region=Region(0.999999, 1.000001))
        (sentence,) = verdict_sentences(decide([near]))
        assert "the claim requires between 0.999999 and 1.000001." in sentence

    def test_estimate_of_too_many_infinite_values(self):
        part_ = part(
            "bn against nobn, steps/train_eval/loss/0.1",
            effect=math.nan,
            interval=(math.nan,) * 2,
            p=0.01,
            p_against=1.0,
        )
        (sentence,) = verdict_sentences(decide([part_]))
        assert sentence == (
            "Holds: bn against nobn, steps to a training loss of 0.1: no estimate from n = 24, "
            "over 29 % infinite; "
            "the claim requires below 1."
        )

    def test_holds(self):
        (sentence,) = verdict_sentences(
            decide([HOLDS, part("bn against nobn, val/acc", "points", 5.0, 1.0, Region(2.0))])
        )
        assert sentence == (
            "Holds: each of the 2 parts is shown. The weakest is bn against nobn, validation accuracy: "
            "percentage points 5 (95 % interval 3.04 to 6.96, n = 24); the claim requires above 2."
        )

    def test_does_not_hold(self):
        (sentence,) = verdict_sentences(decide([FAILS]))
        assert sentence.startswith("Does not hold: bn against nobn, test loss: ratio 1.5 (95 % interval 1.36 to")

    def test_undecided(self):
        sentences = verdict_sentences(decide([HOLDS, OPEN]))
        assert sentences[0].startswith("Undecided: 1 of the 2 parts can be shown. The weakest is bn against nobn")
        assert sentences[1] == "About 72 replicates would decide with 80 % power, if the estimate is right."
