import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import spearmanr
from sklearn.metrics import (
    average_precision_score,
    brier_score_loss,
    cohen_kappa_score,
    confusion_matrix,
    roc_auc_score,
)

from thyroid import metrics
from thyroid.metrics import roc

# pROC's own example data (Robin et al. 2011, 10.1186/1471-2105-12-77; patients of Turck et al. 2010): outcome after
# subarachnoid haemorrhage with two markers and a clinical grade, and what pROC 1.19.1 for R answers to
# roc(), var() and roc.test(method = "delong", paired = TRUE).
OUTCOME = """0000110100101100101110100000000010011011000000000110001000101001110110111100011010000001000000000000
1111110001000"""
S100B = """.13 .14 .1 .04 .13 .1 .47 .16 .18 .1 .12 .1 .44 .71 .04 .08 .49 .04 .07 .33 .09 .09 .07 .11 .07 .17 .07 .11
.13 .19 .05 .16 .41 .14 .34 .35 .48 .09 .96 .25 .5 .46 .16 .07 .43 .45 .11 .08 .09 .86 .52 .08 .06 .13 2.07 .1
.14 .15 .07 .06 .77 .05 .09 .3 .03 .09 .04 .23 .7 .09 .27 .71 .08 .26 .08 .16 .09 .13 .1 .08 .11 .33 .11 .28
.07 .1 .32 .22 .07 .05 .24 .38 .1 .15 .08 .14 .1 .07 .04 .19 .56 .14 .58 .32 .82 .74 .15 .47 .17 .44 .15 .5 .48"""
WFNS = """1111325412525512522521111212113421454142551124112552125122215112521452441412142123242145115422111312
5225552445111"""
NDKA = """\
3.01 8.54 8.09 10.42 17.4 12.75 6.0 13.2 15.54 6.01 15.96 17.86 5.18 8.9 13.41 20.75 11.6 16.11 32.37 54.82 32.41
49.94 40.34 9.47 6.29 12.53 6.54 6.3 80.3 12.8 9.8 9.81 9.85 18.21 5.03 14.04 21.93 8.02 7.42 8.38 6.59 9.63 13.12
7.96 14.34 41.43 7.63 7.06 12.59 13.56 3.87 9.44 7.66 12.98 419.19 27.19 22.27 9.95 21.22 11.73 10.4 58.83 6.39 11.09
12.22 13.67 17.21 22.63 12.9 9.7 21.57 8.23 72.57 15.54 10.51 10.6 14.57 5.19 9.63 4.61 21.48 17.3 12.71 9.44 11.07
19.46 10.83 5.37 11.97 7.75 9.83 10.55 28.49 8.53 12.57 12.9 46.83 11.68 12.67 9.01 9.57 34.06 11.72 14.26 47.61 11.67
24.58 10.33 13.87 15.89 22.43 6.79 13.45"""


def digits(text: str) -> np.ndarray:
    return np.array([int(one) for one in text if one.isdigit()])


@pytest.fixture(scope="module")
def asah() -> dict[str, np.ndarray]:
    data = {
        "outcome": digits(OUTCOME),
        "s100b": np.array(S100B.split(), float),
        "wfns": digits(WFNS),
        "ndka": np.array(NDKA.split(), float),
    }
    assert {len(column) for column in data.values()} == {113}
    assert data["outcome"].sum() == 41
    return data


def test_delong_agrees_with_proc(asah):
    patient = np.arange(113)
    areas, covariance = metrics.auroc_covariance(asah["outcome"], [asah[n] for n in ("s100b", "wfns", "ndka")], patient)
    assert areas == pytest.approx([0.73136856368563685, 0.82367886178861793, 0.61195799457994582], rel=1e-12)
    variances = [0.0026686824571724378, 0.0014699147088236264, 0.0031908105493913021]
    assert np.diag(covariance) == pytest.approx(variances, rel=1e-9)
    assert covariance[0, 1] == pytest.approx(0.0011961556737675448, rel=1e-9)
    done = metrics.delong(asah["outcome"], asah["s100b"], asah["wfns"], patient)
    assert (done.z, done.p) == (pytest.approx(-2.2089835914409077), pytest.approx(0.02717578222918815))
    assert (done.difference.low, done.difference.high) == (pytest.approx(-0.17421442), pytest.approx(-0.01040618))
    done = metrics.delong(asah["outcome"], asah["s100b"], asah["ndka"], patient)
    assert (done.z, done.p) == (pytest.approx(1.3907700257355771), pytest.approx(0.16429517522305448))


def test_bootstrap_of_the_same_data_is_near_delong(asah):
    done = metrics.auroc(asah["outcome"], asah["s100b"], np.arange(113))
    reach = 1.959964 * 0.0026686824571724378**0.5
    assert done.low == pytest.approx(0.7313686 - reach, abs=0.01)
    assert done.high == pytest.approx(0.7313686 + reach, abs=0.01)


def test_delong_standard_error_of_the_ct_example():
    """Hanley & McNeil 1982's 109 CT images: area .8932, DeLong's standard error .0307 in Stata's manual (roctab)."""
    truth = np.repeat([0] * 5 + [1] * 5, [33, 6, 6, 11, 2, 3, 2, 2, 11, 33])
    rating = np.repeat([1, 2, 3, 4, 5] * 2, [33, 6, 6, 11, 2, 3, 2, 2, 11, 33])
    areas, covariance = metrics.auroc_covariance(truth, [rating], np.arange(109))
    assert round(float(areas[0]), 4) == 0.8932
    assert round(float(covariance[0, 0]) ** 0.5, 4) == 0.0307


def test_delong_over_patients_is_wider_than_over_their_images():
    rng = np.random.default_rng(0)
    truth = np.repeat(np.arange(80) % 2 == 0, 4)
    noise = np.repeat(rng.normal(0, 1, 80), 4)
    score, other = noise + truth, np.repeat(rng.normal(0, 1, 80), 4) + truth
    clustered = metrics.delong(truth, score, other, np.repeat(np.arange(80), 4))
    independent = metrics.delong(truth, score, other, np.arange(320))
    assert clustered.difference.value == independent.difference.value
    assert abs(clustered.z) < 0.6 * abs(independent.z)


def test_delong_of_a_score_with_itself():
    truth, score = np.arange(40) % 2 == 0, np.random.default_rng(0).random(40)
    done = metrics.delong(truth, score, score, np.arange(40))
    assert (done.difference.value, done.difference.low, done.p) == (0, 0, 1)


@pytest.mark.slow
@given(st.integers(0, 10_000), st.integers(2, 30), st.integers(2, 12))
@settings(max_examples=60)
def test_every_draw_is_scikit_learns_figure(seed, patients, levels):
    rng = np.random.default_rng(seed)
    patient = rng.integers(0, patients, 60)
    truth = np.arange(60) % 3 == 0
    score = rng.integers(0, levels, 60) / levels  # many ties
    draws = metrics.Draws(patient, 20, seed)
    weights = draws.counts[:, draws.places(patient)]
    area = metrics.auroc_draws(draws, truth, score, patient)
    precision = metrics.auprc_draws(draws, truth, score, patient)
    brier = metrics.brier_draws(draws, truth, score, patient)
    for row, auroc, auprc, squared in zip(weights, area, precision, brier, strict=True):
        kept = row > 0
        if len(set(truth[kept])) < 2:
            assert np.isnan(auroc)
            continue
        labels, scores, weight = truth[kept], score[kept], row[kept]
        assert auroc == pytest.approx(roc_auc_score(labels, scores, sample_weight=weight))
        assert auprc == pytest.approx(average_precision_score(labels, scores, sample_weight=weight))
        assert squared == pytest.approx(brier_score_loss(labels, scores, sample_weight=weight))


def test_draws_are_of_whole_patients():
    patient = np.array([1, 1, 2, 3, 3, 3])
    draws = metrics.Draws(patient, 500)
    assert draws.counts.shape == (501, 3)
    assert (draws.counts[0] == 1).all()
    assert (draws.counts.sum(axis=1) == 3).all()
    assert draws.counts.mean() == 1
    np.testing.assert_array_equal(draws.totals(np.ones(6), patient), draws.counts @ [2, 1, 3])


def test_interval_is_wider_when_images_share_patients():
    rng = np.random.default_rng(0)
    truth = np.repeat(rng.random(60) < 0.5, 5)
    score = np.repeat(rng.random(60), 5) + 0.5 * truth
    clustered = metrics.auroc(truth, score, np.repeat(np.arange(60), 5))
    independent = metrics.auroc(truth, score, np.arange(300))
    assert clustered.value == independent.value
    assert clustered.high - clustered.low > 1.5 * (independent.high - independent.low)


def test_interval_covers_as_often_as_it_says():
    """Normal scores one deviation apart: the true area is Phi(1 / sqrt 2) = .7602."""
    rng = np.random.default_rng(1)
    hits = 0
    for _ in range(200):
        truth = np.arange(80) % 2 == 0
        interval = metrics.auroc(truth, rng.normal(truth, 1), np.arange(80), draws=400)
        hits += interval.low <= 0.7602 <= interval.high
    assert 0.90 <= hits / 200 <= 0.985


def test_blocks_do_not_change_the_interval(monkeypatch):
    rng = np.random.default_rng(0)
    truth, score = rng.random(50) < 0.4, rng.random(50)
    whole = metrics.auroc(truth, score, np.arange(50))
    monkeypatch.setattr(roc, "_BLOCK_CELLS", 1)
    assert metrics.auroc(truth, score, np.arange(50)) == whole


def test_pairs_count_within_a_fold_only():
    """One fold's model answers on another scale: pooled it looks like chance, within folds it is perfect."""
    truth = np.array([0, 1, 0, 1, 0, 1])
    score = np.array([0.1, 0.2, 0.5, 0.6, 0.8, 0.9])
    fold = np.array([1, 1, 2, 2, 3, 3])
    assert metrics.auroc(truth, score, np.arange(6), fold=fold).value == 1
    assert metrics.auroc(truth, score, np.arange(6)).value == pytest.approx(roc_auc_score(truth, score))
    rng = np.random.default_rng(0)
    truth, score, fold = rng.random(90) < 0.4, rng.random(90), rng.integers(0, 3, 90)
    areas = [roc_auc_score(truth[fold == f], score[fold == f]) for f in range(3)]
    pairs = [truth[fold == f].sum() * (~truth[fold == f]).sum() for f in range(3)]
    assert metrics.auroc(truth, score, np.arange(90), fold=fold).value == pytest.approx(
        np.average(areas, weights=pairs)
    )


def test_a_paired_difference_is_surer_than_two_intervals():
    rng = np.random.default_rng(0)
    truth = rng.random(200) < 0.4
    score = rng.normal(truth, 1)
    other = score + rng.normal(0, 0.1, 200)
    patient = np.arange(200)
    difference = metrics.auroc_difference(truth, score, other, patient)
    one, two = metrics.auroc(truth, score, patient), metrics.auroc(truth, other, patient)
    assert difference.value == pytest.approx(one.value - two.value)
    assert difference.high - difference.low < 0.3 * (one.high - one.low)
    assert metrics.auroc_difference(truth, score, score, patient) == metrics.Interval(0, 0, 0)


def test_one_class_and_nan_are_refused():
    with pytest.raises(ValueError, match="classes"):
        metrics.auroc([1, 1], [0.1, 0.2], [1, 2])
    with pytest.raises(ValueError, match="finite"):
        metrics.auroc([0, 1], [0.1, np.nan], [1, 2])


def test_one_patient_has_a_value_and_no_interval():
    interval = metrics.auroc([0, 1, 1], [0.1, 0.2, 0.05], [7, 7, 7])
    assert (interval.value, interval.low, interval.high) == (0.5, None, None)


def test_perfect_separation_keeps_a_width():
    """Every bootstrap draw is perfect, too; a handful of patients does not prove perfection."""
    truth = np.arange(20) < 10
    few = metrics.auroc(truth, truth, np.arange(20))
    assert few.value == few.high == 1
    assert 0.7 < few.low < 0.9
    many = np.arange(400) < 200
    assert metrics.auroc(many, many, np.arange(400)).low > 0.98


def test_newcombe_holds_the_standard_error_that_hanley_and_mcneil_give():
    """At its own bounds the score interval is z times Hanley and McNeil's standard error wide, by definition."""
    low, high = metrics.newcombe(0.893, 51, 58)
    for bound in (low, high):
        q1, q2, half = bound / (2 - bound), 2 * bound**2 / (1 + bound), (51 + 58) / 2 - 1
        # method 5 puts the mean of both group sizes where method 4 has each
        variance = (bound * (1 - bound) + half * (q1 - bound**2) + half * (q2 - bound**2)) / (51 * 58)
        assert abs(0.893 - bound) == pytest.approx(1.959964 * variance**0.5, rel=1e-5)


def test_clopper_pearson_needs_72_patients_without_a_miss():
    assert metrics.clopper_pearson(72, 72)[0] > 0.95 > metrics.clopper_pearson(71, 71)[0]
    # Clopper & Pearson's bounds for 81 of 263 in Newcombe 1998 (10.1002/(sici)1097-0258(19980430)17:8<857), table I
    assert metrics.clopper_pearson(81, 263) == (pytest.approx(0.2527, abs=5e-5), pytest.approx(0.3676, abs=5e-5))


def test_figures_at_a_threshold_are_those_of_the_confusion_matrix():
    rng = np.random.default_rng(0)
    truth, called = rng.random(80) < 0.4, rng.random(80) < 0.5
    draws = metrics.Draws(np.arange(80))
    at = metrics.at_threshold(draws, truth, called, np.arange(80), 0.1)
    (tn, fp), (fn, tp) = confusion_matrix(truth, called)
    assert at["sensitivity"].value == pytest.approx(tp / (tp + fn))
    assert at["specificity"].value == pytest.approx(tn / (tn + fp))
    assert at["ppv"].value == pytest.approx(tp / (tp + fp))
    assert at["npv"].value == pytest.approx(tn / (tn + fn))
    for figure in at.values():
        assert figure.low < figure.value < figure.high


def test_predictive_values_at_another_prevalence():
    """Altman & Bland 1994 (10.1136/bmj.309.6947.102): liver scans, sensitivity .90 and specificity .63.

    At a prevalence of .25 the predictive values are .45 and .95.
    """
    truth = np.repeat([1, 1, 0, 0], [231, 27, 54, 32])
    called = np.repeat([1, 0, 0, 1], [231, 27, 54, 32])
    at = metrics.at_threshold(metrics.Draws(np.arange(344), 50), truth, called, np.arange(344), 0.25)
    assert (round(at["sensitivity"].value, 2), round(at["specificity"].value, 2)) == (0.90, 0.63)
    assert (round(at["ppv"].value, 2), round(at["npv"].value, 2)) == (0.88, 0.67)
    assert (round(at["ppv_at_prevalence"].value, 2), round(at["npv_at_prevalence"].value, 2)) == (0.45, 0.95)


def test_a_sensitivity_of_one_keeps_a_width():
    truth = np.arange(30) < 12
    at = metrics.at_threshold(metrics.Draws(np.arange(30)), truth, truth, np.arange(30), 0.1)
    assert (at["sensitivity"].low, at["sensitivity"].high) == metrics.clopper_pearson(12, 12)


def test_figures_without_a_denominator_are_left_out():
    at = metrics.at_threshold(metrics.Draws([1, 2, 3]), [1, 0, 0], [0, 0, 0], [1, 2, 3], 0.1)
    assert {"sensitivity", "specificity", "npv"} <= set(at)
    assert "ppv" not in at


def test_calibration_error_by_hand():
    """Two bins: .1 with a quarter malignant (four images), .9 with all malignant (two): (4 x .15 + 2 x .1) / 6."""
    truth, score = [1, 0, 0, 0, 1, 1], [0.1, 0.1, 0.1, 0.1, 0.9, 0.9]
    drawn = metrics.ece_draws(metrics.Draws(np.arange(6), 5), truth, score, np.arange(6))
    assert drawn[0] == pytest.approx((4 * 0.15 + 2 * 0.1) / 6)


def test_net_benefit_by_hand():
    """At a threshold of .2, one false alarm costs a quarter of what one hit gains."""
    truth, score = np.array([1, 1, 0, 0, 0]), np.array([0.9, 0.1, 0.3, 0.25, 0.05])
    assert metrics.net_benefit(truth, score, np.array([0.2]), 2 / 5)[0] == pytest.approx(1 / 5 - 2 / 5 / 4)
    assert metrics.net_benefit(truth, score, np.array([0.2]), 0.1)[0] == pytest.approx(0.5 * 0.1 - 2 / 3 * 0.9 / 4)


def test_few_patients_of_a_class_widen_the_interval():
    """With one malignant patient the bootstrap alone would claim [.842, 1] for .95."""
    truth = np.arange(21) == 20
    score = np.append(np.arange(20), 18.5)
    few = metrics.auroc(truth, score, np.arange(21))
    assert few.value == pytest.approx(0.95)
    assert few.low < 0.45


def test_missing_nothing_leaves_predictive_values_uncertain():
    truth = np.arange(20) < 8
    at = metrics.at_threshold(metrics.Draws(np.arange(20)), truth, truth | (np.arange(20) > 14), np.arange(20), 0.1)
    assert at["npv_at_prevalence"].value == 1
    low = metrics.clopper_pearson(8, 8)[0]
    assert at["npv_at_prevalence"].low < 0.98
    assert at["sensitivity"].low == low


def test_two_perfect_scores_prove_nothing_on_few_patients():
    truth = np.arange(6) < 3
    rng = np.random.default_rng(0)
    one, two = truth + rng.random(6) / 3, truth + rng.random(6) / 3
    difference = metrics.auroc_difference(truth, one, two, np.arange(6))
    assert difference.value == 0
    assert difference.low < -0.2
    with pytest.raises(ValueError, match="DeLong"):
        metrics.delong(truth, one, two, np.arange(6))
    alone = metrics.auroc_difference(truth, one, two[::-1], np.zeros(6))
    assert (alone.low, alone.high) == (None, None)


def test_calibration_error_of_perfect_probabilities_is_not_zero_in_small_sets():
    rng = np.random.default_rng(0)
    for count, low, high in ((50, 0.08, 0.2), (20_000, 0.001, 0.02)):
        score = rng.uniform(0, 1, count)
        expected = metrics.ece_if_calibrated(score, np.arange(count), draws=200)
        assert low < expected < high
        drawn = metrics.ece_draws(
            metrics.Draws(np.arange(count), 2), rng.random(count) < score, score, np.arange(count)
        )
        assert drawn[0] == pytest.approx(expected, abs=0.07)


def test_roc_band_holds_the_curve():
    rng = np.random.default_rng(0)
    truth = rng.random(150) < 0.4
    grid = np.linspace(0, 1, 21)
    low, high = metrics.roc_band(metrics.Draws(np.arange(150)), truth, rng.normal(truth, 1), np.arange(150), grid)
    assert (low <= high).all()
    assert (np.diff(low) >= 0).all()
    assert high[-1] == low[-1] == 1
    constant = metrics.roc_band(metrics.Draws(np.arange(150)), truth, np.full(150, 0.5), np.arange(150), grid)
    assert constant[0] == pytest.approx(grid)
    assert 0.1 < (high - low)[5] < 0.5


def test_accuracy_and_majority():
    assert metrics.accuracy([0, 0, 1, 1], [[0.8, 0.2], [0.3, 0.7], [0.2, 0.8], [0.6, 0.4]]) == 0.5
    assert metrics.accuracy([0, 1, 2], [[0.4, 0.3, 0.3], [0.4, 0.35, 0.25], [0.1, 0.2, 0.7]]) == pytest.approx(2 / 3)
    assert metrics.majority([0, 0, 0, 1]) == 0.75
    assert metrics.majority([0, 2, 2, 1]) == 0.5


def test_reads_as_text():
    assert str(metrics.Interval(0.8125, 0.75, 0.9)) == "0.812 [0.750, 0.900]"
    assert str(metrics.Interval(0.5, None, None)) == "0.500 [n/a]"


def of_classes(seed: int = 0, count: int = 120, k: int = 4) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Truth, probabilities and patients, two images each."""
    rng = np.random.default_rng(seed)
    patient = np.repeat(np.arange(count // 2), 2)
    truth = np.repeat(np.arange(count // 2) % k, 2)
    return truth, rng.dirichlet(np.ones(k), count) / 2 + np.eye(k)[truth] * rng.random((count, 1)) / 2, patient


@pytest.mark.parametrize("k", [2, 3, 6])
def test_macro_auroc_is_scikit_learns(k):
    truth, probability, patient = of_classes(k=k)
    probability /= probability.sum(axis=1, keepdims=True)
    draws = metrics.Draws(patient, 30)
    drawn = metrics.macro_auroc_draws(draws, truth, probability, patient)
    for row, area in zip(draws.counts[:, draws.places(patient)], drawn, strict=True):
        given = probability if k > 2 else probability[:, 1]
        expected = roc_auc_score(truth, given, sample_weight=row, multi_class="ovr", average="macro")
        assert area == pytest.approx(expected)


def test_macro_auroc_of_two_classes_is_the_auroc_with_its_interval():
    truth, probability, patient = of_classes(k=2)
    probability /= probability.sum(axis=1, keepdims=True)
    draws = metrics.Draws(patient)
    found = metrics.macro_auroc(draws, truth, probability, patient)
    assert found == metrics.auroc_interval(draws, truth == 1, probability[:, 1], patient)
    few = np.arange(12)
    assert metrics.macro_auroc(draws, truth[few], probability[few], patient[few]) == metrics.auroc_interval(
        draws, truth[few] == 1, probability[few, 1], patient[few]
    )


def test_a_class_that_a_draw_or_the_sample_lacks_does_not_count():
    """One patient has the only images of the last class; a third of the draws leave that patient out."""
    truth, probability, patient = of_classes(count=60, k=3)
    truth[:] = np.where(patient == 7, 2, patient % 2)
    draws = metrics.Draws(patient, 200)
    drawn = metrics.macro_auroc_draws(draws, truth, probability, patient)
    without = draws.counts[:, 7] == 0
    assert 0.2 < without.mean() < 0.5
    assert np.isfinite(drawn).all()
    parts = [metrics.auroc_draws(draws, truth == place, probability[:, place], patient) for place in range(3)]
    np.testing.assert_allclose(drawn[without], (parts[0] + parts[1])[without] / 2)
    np.testing.assert_allclose(drawn[~without], sum(parts)[~without] / 3)
    found = metrics.macro_auroc(draws, truth, probability, patient)
    assert 0 <= found.low < found.value < found.high <= 1
    there = truth < 2
    lacking = metrics.macro_auroc(draws, truth[there], probability[there], patient[there])
    assert lacking.value == pytest.approx(
        np.mean([roc_auc_score(truth[there] == place, probability[there, place]) for place in (0, 1)])
    )
    with pytest.raises(ValueError, match="classes"):
        metrics.macro_auroc_draws(draws, np.zeros(60, int), probability, patient)
    alone = metrics.macro_auroc(draws, truth[:4] * 0 + [0, 1, 0, 1], probability[:4], np.zeros(4, int))
    assert (alone.low, alone.high) == (None, None)


@pytest.mark.parametrize(("k", "ordered"), [(2, True), (2, False), (5, True), (5, False)])
def test_kappa_is_scikit_learns(k, ordered):
    rng = np.random.default_rng(k)
    truth, patient = rng.integers(0, k, 80), np.repeat(np.arange(40), 2)
    called = np.where(rng.random(80) < 0.6, truth, rng.integers(0, k, 80))
    draws = metrics.Draws(patient, 30)
    drawn = metrics.kappa_draws(draws, truth, called, patient, classes=k, ordered=ordered)
    for row, kappa in zip(draws.counts[:, draws.places(patient)], drawn, strict=True):
        weights = "quadratic" if ordered else None
        expected = cohen_kappa_score(truth, called, labels=range(k), weights=weights, sample_weight=row)
        assert kappa == pytest.approx(expected)
    assert metrics.kappa_draws(draws, truth, truth, patient, classes=k, ordered=ordered)[0] == 1


def test_kappa_of_one_class_alone_is_none():
    draws, same = metrics.Draws(np.arange(6), 5), np.ones(6, int)
    assert np.isnan(metrics.kappa_draws(draws, same, same, np.arange(6), classes=3, ordered=True)).all()
    assert (metrics.kappa_draws(draws, same, same * 0, np.arange(6), classes=3, ordered=True) == 0).all()


def test_rank_correlation_is_scipys():
    """Also in every draw, where a patient who is drawn twice is tied with herself."""
    rng = np.random.default_rng(0)
    patient = np.repeat(np.arange(20), 2)
    score = rng.random(40).round(1)
    other = score + rng.normal(0, 0.3, 40)
    draws = metrics.Draws(patient, 30)
    drawn = metrics.rank_correlation_draws(draws, score, other, patient)
    for row, found in zip(draws.counts[:, draws.places(patient)].astype(int), drawn, strict=True):
        assert found == pytest.approx(spearmanr(np.repeat(score, row), np.repeat(other, row)).statistic)
    found = metrics.rank_correlation(score, other, patient)
    assert found.value == pytest.approx(drawn[0])
    assert found.low < found.value < found.high


def test_rank_correlation_of_the_same_and_of_the_reversed_order_and_of_none():
    score, patient = np.array([0.1, 0.4, 0.2, 0.9]), np.arange(4)
    assert metrics.rank_correlation(score, score**3, patient).value == 1
    assert metrics.rank_correlation(score, -score, patient).value == -1
    # ranks 1 3 2 4 and 2 3 1 4: 1 - 6 (1 + 0 + 1 + 0) / (4 * 15)
    assert metrics.rank_correlation(score, [0.3, 0.4, 0.1, 0.5], patient).value == pytest.approx(0.8)
    assert metrics.rank_correlation(score, np.ones(4), patient) == metrics.Interval(0.0, None, None)
    assert metrics.rank_correlation(score, -score, np.zeros(4)) == metrics.Interval(-1.0, None, None)
