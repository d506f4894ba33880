"""The model of speed-up and cost, on costs whose truth is known, and on the paper's own numbers."""

import numpy as np
import pandas as pd
import pytest

from analysis.studies.ujd_loss.cost_model import SHAPE, CostModel, median_costs, predicted_speedup, relative_errors
from analysis.studies.ujd_loss.published_model import implied


def truth(frame):
    """Seconds that are sums of the model's own terms: overhead of a call, weights, multiplications, attention."""
    length, width = frame["num_tokens"], frame["channels"]
    depth, batch = frame["transformer_layers"], frame["batch_size"]
    work = batch * length * width**2 * 1e-10 + batch * length**2 * width * 3e-11
    iteration = depth * (1e-4 + work)
    sequential = depth * ((length - 1) * (1e-4 + width**2 * 2e-9) + 2 * work)
    return frame.assign(iteration_s=iteration, sequential_s=sequential)


def shapes(lengths, widths, depths, batches):
    index = pd.MultiIndex.from_product([lengths, [48], widths, depths, batches], names=["num_tokens", *SHAPE[1:]])
    return index.to_frame(index=False)


def test_costs_of_the_models_own_kind_are_found_and_carried_to_shapes_it_never_saw():
    model = CostModel.fit(truth(shapes([64, 256, 1024], [64, 256], [2, 4], [1, 16, 64])))
    unseen = truth(shapes([144, 576, 4096], [128, 768], [8], [4, 128]))
    assert model.c(unseen) == pytest.approx(unseen["iteration_s"] / unseen["sequential_s"], rel=1e-3)


def test_no_cost_is_negative_whatever_is_fitted():
    noisy = truth(shapes([64, 256], [64, 128], [2], [1, 16]))
    noisy["iteration_s"] *= np.random.default_rng(0).lognormal(0, 0.5, len(noisy))
    model = CostModel.fit(noisy)
    assert (model.iteration >= 0).all() and (model.sequential >= 0).all()


@pytest.mark.parametrize("decoder", ["ujd", "sejd"])
def test_the_speedup_is_the_ratio_of_the_layers_seconds(decoder):
    sequential_s, iteration_s, counts = 0.5, 0.02, [30, 4, 5, 3]
    seconds = [iteration_s * count for count in counts]
    if decoder == "sejd":
        seconds[0] = sequential_s
    found = predicted_speedup(4, iteration_s / sequential_s, counts[0], np.mean(counts[1:]), decoder)
    assert found == pytest.approx(4 * sequential_s / sum(seconds))


def test_ujd_is_even_where_the_mean_iterations_are_one_over_c():
    assert predicted_speedup(6, 0.04, 25, 25, "ujd") == pytest.approx(1)
    assert predicted_speedup(6, 0.04, 26, 25, "ujd") < 1


def test_an_error_is_the_same_either_way():
    assert relative_errors(np.array([2.0, 0.5, 1.0]), np.ones(3)) == pytest.approx([1, 1, 0])


def test_the_cost_of_a_case_is_the_median_of_paired_ratios_not_the_ratio_of_medians():
    rounds = pd.DataFrame({"iteration_s": [1.0, 2.0, 9.0], "sequential_s": [10.0, 40.0, 30.0]})
    case = {"checkpoint": "one", "image_size": 8, "patch": 1, "num_tokens": 65, "token_dim": 1, "channels": 64}
    case |= {"transformer_layers": 2, "batch_size": 4}
    (found,) = median_costs(rounds.assign(**case)).to_dict("records")
    assert found["c"] == 0.1 and found["steps_per_iteration"] == pytest.approx(6.4) and found["rounds"] == 3


def test_what_the_papers_numbers_imply_gives_its_times_back():
    found = implied().set_index("name")
    assert set(found.index) == {"CIFAR-10", "CIFAR-100", "AFHQ"}
    for row in found.reset_index().to_dict("records"):
        rest = row["rest"] / (row["layers"] - 1)
        for decoder in ("ujd", "sejd"):
            again = predicted_speedup(row["layers"], row["c"], row["implied_first"], rest, decoder)
            assert again == pytest.approx(row[f"speedup_{decoder}"])
    assert found.loc["AFHQ", "implied_first"] > found.loc["AFHQ", "break_even_first"]  # it loses there, and only there
    assert (found.drop("AFHQ")["implied_first"] < found.drop("AFHQ")["break_even_first"]).all()
