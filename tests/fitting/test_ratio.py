"""What 95 % of ratios of certificates to deviations are above: as often as is said, at every level."""

from dataclasses import replace

import pytest
import torch

from harness.decoders import build_decoder
from harness.decoders.calibration import Calibration, find_calibration
from harness.decoders.exact import ExactBatch
from harness.decoders.trace import Certificate, Level, Ratio
from harness.fitting.certificate import conformal_low, levels_of, measured_ratios
from harness.flows import load_flow


def drawn(count, generator, shift=0.0):
    """(2, n) certificates over three decades, and ratios that grow with them."""
    rms = torch.exp(torch.rand(count, generator=generator) * -6)
    return torch.stack([rms, (0.3 * torch.randn(count, generator=generator) + rms.log() / 4 + shift).exp()]).double()


def test_another_value_is_above_the_quantile_as_often_as_is_said():
    generator = torch.Generator().manual_seed(0)
    for count in (19, 40, 256):
        values = torch.randn(2000, count + 1, generator=generator)
        above = torch.tensor([float(row[0]) >= conformal_low(row[1:]) for row in values]).double().mean()
        assert 0.94 <= above <= 0.94 + max(0.03, 2 / count), count


def test_every_level_is_covered_whichever_decoder_made_the_sample():
    generator = torch.Generator().manual_seed(0)
    levels = levels_of([drawn(400, generator), drawn(400, generator, -0.5)])
    ratio = Ratio(1.0, 0.5, 2.0, 1.0, 0.5, 400, levels, levels)
    assert len(levels) >= 4 and [level.rms for level in levels] == sorted(level.rms for level in levels)
    for shift in (0.0, -0.5):
        rms, true = drawn(4000, generator, shift)
        for bottom, level in zip([0.0, *(level.rms for level in levels)], levels, strict=False):
            inside = (rms > bottom) & (rms <= level.rms)
            assert (true >= ratio.of("low", rms, rms < 0))[inside].double().mean() > 0.92, level
    assert levels_of([torch.zeros(2, 0)]) == ()


def test_a_certificate_goes_by_its_level_and_a_polished_one_is_told_no_less_than_others():
    levels, after = (Level(0.1, 2.0, 1.0), Level(0.2, 1.0, 0.5)), (Level(0.05, 3.0, 0.25), Level(0.06, 4.0, 2.0))
    ratio = Ratio(1.0, 0.1, 2.0, 1.0, 0.1, 8, levels, after)
    rms, nothing = torch.tensor([0.01, 0.15, 7.0, float("nan")]), torch.zeros(4, dtype=torch.bool)
    told = Certificate(rms, rms, nothing, ratio)
    assert told.upper[:3].tolist() == pytest.approx([0.01, 0.3, 14.0]) and told.upper[3].isnan()
    assert told.estimate[:3].tolist() == pytest.approx([0.005, 0.15, 7.0])
    told = replace(told, polished=~nothing)
    assert told.upper[:3].tolist() == pytest.approx([0.04, 0.3, 14.0])
    assert told.estimate[:3].tolist() == pytest.approx([0.01 / 3, 0.15 / 4, 7 / 4])


@pytest.fixture(scope="module")
def digits():
    flow = load_flow("digits")
    made = find_calibration(flow)
    flow.fits.clear()
    flow.source = None
    flow.fits[Calibration] = made
    for ratio in measured_ratios(flow, made, 128):
        made.ratio = ratio
    return flow


@pytest.mark.parametrize("tolerance", [0.05, 0.01])
@pytest.mark.parametrize("spec", [("fitted", {"iterations": [1]}), ("fitted", {"iterations": [4, 2]}), ("sejd", {})])
def test_upper_covers_deviations_of_digits_before_and_after_polishing(digits, spec, tolerance):
    name, options = spec
    batch = ExactBatch.draw(digits, 64, torch.Generator().manual_seed(77), 64)
    plain, result = (batch.result(build_decoder(name, certify=wanted, **options)) for wanted in ("state", tolerance))
    for found in (plain, result):
        deviation = (found.tokens - batch.exact).square().mean(dim=(1, 2)).sqrt()
        assert (deviation <= found.certificate.upper).double().mean() >= 0.89  # 95 %, less two deviations of 64
    assert not result.certificate.above.any()
    assert result.fpe <= plain.fpe + 5  # what polishing and certifying it again take
