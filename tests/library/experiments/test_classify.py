"""The training experiment: repeatable, resumable after a kill, fair to both models."""

import json
import math
import os
import statistics
import subprocess
import sys
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
from places import MEASUREMENTS
from torch import nn
from torch.nn.functional import cross_entropy

from sbnlib import data, network_estimator, registry
from sbnlib.experiments import classify, measurement, protocol, training
from sbnlib.experiments.classify import Config
from sbnlib.experiments.training import Classifier
from sbnlib.network import SBN

SMALL = Config(hidden=(12, 8), seeds=2, epochs=3, lr=(0.03, 0.1), init_gain=(3.0,))


@pytest.fixture(scope="module")
def result():
    return classify.run(SMALL)


def part(result, name, model=None):
    rows = [row for row in result["rows"] if row["part"] == name]
    return [row for row in rows if model in (None, row["model"])]


# What is asked for -------------------------------------------------------------------------------

BAD = [
    ("data", "mnist", "known are digits, fashion-mnist"),
    ("data", ["digits"], r"got \['digits'\], known are"),
    ("estimator", "nope", "known are straight_through"),
    ("noise", "student", "known are cauchy, .*logistic"),
    ("noise_scale", 0.0, "got 0.0, must be a number from 1e-37 to 1e37, or auto"),
    ("noise_scale", -1, "got -1, must be a number"),
    ("noise_scale", True, "got True, must be a number"),
    ("noise_scale", math.nan, "got nan, must be a number"),
    ("noise_scale", "automatic", "got 'automatic', must be a number .*, or auto"),
    ("norm", "layer", "got 'layer', known are none, batch"),
    ("norm", None, "got None, known are none, batch"),
    ("hidden", (), "at least one"),
    ("hidden", 100, "a list"),
    ("hidden", (10, 0), "must be an integer >= 1, got 0"),
    ("hidden", (10.0,), "must be an integer >= 1, got 10.0"),
    ("seeds", 0, "must be an integer >= 1, got 0"),
    ("seeds", True, "got True"),
    ("seeds", np.bool_(True), "got np.True_"),
    ("seeds", "3", "got '3'"),
    ("epochs", -1, "got -1"),
    ("epochs", np.float64(3), r"got np.float64\(3.0\)"),
    ("batch_size", 1.5, "got 1.5"),
    ("lr", (0.1, 0.0), "got 0.0, must be a number > 0, at most 1e37"),
    ("lr", (float("nan"),), "got nan, must be a number > 0, at most 1e37"),
    ("lr", (True,), "got True, must be a number > 0, at most 1e37"),
    ("lr", ("0.1",), "got '0.1', must be a number > 0, at most 1e37"),
    ("lr", 0.1, "a list"),
    ("lr", (0.1, 0.3, 0.1), "each number once"),
    ("init_gain", (-1.0,), "got -1.0"),
    ("init_gain", (float("inf"),), "got inf"),
    ("init_gain", (1, 1.0), "each number once"),
    ("schedule", "linear", "known are cosine, constant"),
    ("dtype", "int8", "known are float32, float64"),
    ("draws", "rank", "known are stream, example"),
    ("accelerator", "tpu", "known are cpu"),
    ("devices", 0, "got 0"),
    ("devices", 3, "batch_size: got 50, must be a multiple of the 3 devices"),
    ("stack", 0, "must be an integer >= 1, got 0"),
    ("threads", 0, "got 0"),
]


@pytest.mark.parametrize("field, value, complaint", BAD)
def test_bad_settings_are_refused(field, value, complaint):
    with pytest.raises(ValueError, match=complaint) as error:
        Config(**{field: value})
    assert field in str(error.value) or field == "devices"


@pytest.mark.parametrize("entry", registry.ESTIMATORS.values(), ids=lambda e: e.name)
def test_batch_norm_is_for_estimators_that_run_each_layer_on_the_batch(entry):
    if entry.kind in ("chain rule", "relaxation"):
        Config(estimator=entry.name, norm="batch")
        return
    words = rf"norm: got 'batch', must be none with the estimator {entry.name} \({entry.kind}\)"
    with pytest.raises(ValueError, match=words + ".* with batch norm are straight_through, .*zgr"):
        Config(estimator=entry.name, norm="batch")


def test_batch_norm_needs_two_images_a_device():
    Config(norm="batch", batch_size=4, devices=2, accelerator="cuda")
    for sizes in ({"batch_size": 1}, {"batch_size": 2, "devices": 2}):
        with pytest.raises(ValueError, match="batch_size: got 1 a device, must be at least 2"):
            Config(norm="batch", **sizes)


def test_batch_norm_on_several_cpus_is_refused():
    with pytest.raises(ValueError, match="devices: got 2 CPU processes, must be 1 with norm"):
        Config(norm="batch", devices=2)


def test_numbers_of_numpy_are_taken_as_plain_ones():
    """So that the row, the key and the command are those of Python's numbers."""
    numpy = Config(seeds=np.int64(2), hidden=(np.int32(3),), lr=(np.float32(0.5), 1))
    plain = Config(seeds=2, hidden=(3,), lr=(0.5, 1.0))
    assert asdict(numpy) == asdict(plain) and numpy.command == plain.command
    assert {type(v) for v in (numpy.seeds, *numpy.hidden)} == {int}
    assert {type(v) for v in numpy.lr} == {float}


def test_the_gain_has_its_new_name_only():
    assert "--init-gain 2.0" in Config(init_gain=(2.0,)).command
    with pytest.raises(TypeError, match="gain"):
        Config(gain=(2.0,))


def test_noise_is_found_in_any_case():
    data_set = classify.load(SMALL)
    net = classify.build(Config(noise="gAuSSian"), "sbn", data_set, 1.0, 0).net
    assert type(net.noise).__name__ == "Gaussian"


#: The scale at which E (2f(a))^2 = 1 for a ~ N(0, 1): statement 2.2, by quadrature in test_depth.
AT_GAIN_1 = {"Logistic": 0.2555, "Uniform": 0.7320, "Gaussian": 0.4306}


@pytest.mark.slow
@pytest.mark.parametrize("name", AT_GAIN_1)
def test_the_noise_has_the_scale_asked_for(name):
    scales = {}
    for scale in (1.0, 0.25, np.float32(4), 3, "auto"):
        config = Config(noise=name.upper(), noise_scale=scale)
        noise = classify.build(config, "sbn", classify.load(config), 1.0, 0).net.noise
        assert type(noise).__name__ == name
        scales[scale] = noise.scale
    assert scales.pop("auto") == pytest.approx(AT_GAIN_1[name], abs=5.1e-5)
    assert scales == {1.0: 1.0, 0.25: 0.25, 4.0: 4.0, 3: 3.0}


def test_what_is_not_asked_for_changes_neither_command_nor_key():
    """Files and folders that were kept before there were these two options."""
    data_set = classify.load(SMALL)
    assert "norm" not in SMALL.command and "scale" not in SMALL.command
    assert not {"norm", "noise_scale", "draws"} & set(classify._key(SMALL, data_set))
    for options in (
        {"noise_scale": 0.5},
        {"noise_scale": "auto"},
        {"norm": "batch"},
        {"draws": "example"},
    ):
        ((name, value),) = options.items()
        other = Config(**asdict(SMALL) | options)
        assert f" --{name.replace('_', '-')} {value}" in other.command
        assert classify._key(other, data_set) == classify._key(SMALL, data_set) | options
        parsed = vars(classify._parser().parse_args(other.command.split()[3:]))
        typed = {f: tuple(v) if isinstance(v, list) else v for f, v in parsed.items()}
        assert {f: typed[f] for f in asdict(other)} == asdict(other)


def test_batch_larger_than_the_data_is_refused_before_training(monkeypatch):
    monkeypatch.setattr(classify, "_train", None)
    with pytest.raises(ValueError, match="batch_size: got 2000, must be at most the 1078"):
        classify.run(Config(batch_size=2000))


@pytest.mark.parametrize(
    "arguments, complaint",
    [
        (["--estimator", "nope"], "known are straight_through"),
        (["--lr", "0"], "lr: got 0.0"),
        (["--batch-size", "2000"], "at most the 1078"),
        (["--data", "mnist"], "known are digits"),
        (["--seeds", "few"], "invalid int value"),
        (["--epochs", "-3"], "epochs must be an integer >= 1, got -3"),
        (["--gain", "3"], "unrecognized arguments: --gain 3"),
        (["--noise-scale", "-2"], "noise_scale: got -2.0, must be a number"),
        (["--noise-scale", "small"], "noise_scale: got 'small', must be a number"),
        (["--norm", "batch", "--estimator", "psa"], "must be none with the estimator psa"),
    ],
)
def test_command_line_refuses(arguments, complaint, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        classify.main(arguments)
    assert stop.value.code == 2 and complaint in capsys.readouterr().err
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "missing"),
    [
        ("fashion-mnist", "train-images-idx3-ubyte.gz is not there"),
        ("cifar-10", "data_batch_1.bin: cannot be read (No such file or directory)"),
    ],
)
def test_missing_data_stops_the_command(name, missing, capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("SBN_DATA", str(tmp_path))
    with pytest.raises(SystemExit):
        classify.main(["--data", name])
    assert missing in capsys.readouterr().err


def test_a_net_takes_images_in_colour():
    images = torch.rand(20, 3 * 32 * 32) * 2 - 1
    split = data.Split(images, torch.arange(20) % 10)
    colours = data.Dataset("cifar-10", (3, 32, 32), 10, split, split, split)
    row = classify.train(replace(SMALL, batch_size=10), "sbn", 0.01, 1.0, 0, data=colours)
    assert 0 <= row["test"]["sign"] <= 1


# What is computed --------------------------------------------------------------------------------


@pytest.mark.slow
def test_same_seeds_same_numbers(result):
    again = classify.run(SMALL)
    assert again["rows"] == result["rows"]


@pytest.mark.slow
def test_one_line_can_be_repeated(result):
    row = part(result, "final", "sbn")[1]
    again = classify.train(SMALL, "sbn", row["lr"], row["init_gain"], row["seed"])
    assert {"part": "final"} | again == row


def test_global_randomness_is_neither_used_nor_moved():
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first = classify.train(SMALL, "sbn", 0.03, 3.0, 0)
    torch.manual_seed(6)
    assert classify.train(SMALL, "sbn", 0.03, 3.0, 0) == first
    torch.manual_seed(5)
    assert torch.equal(torch.get_rng_state(), before)


def test_threads_are_put_back():
    before = torch.get_num_threads()
    classify.train(Config(hidden=(4,), epochs=1, threads=before + 1), "tanh", 0.03, 1.0, 0)
    assert torch.get_num_threads() == before


def test_both_models_get_the_same_search(result):
    trials = {
        m: [(r["lr"], r["init_gain"], r["seed"]) for r in part(result, "search", m)]
        for m in classify.MODELS
    }
    assert trials["sbn"] == trials["tanh"] and len(trials["sbn"]) == 2
    assert result["checks"]["same_number_of_trials"] is True
    assert all("test" not in row for row in part(result, "search"))
    assert not set(result["seeds"]) & {row["seed"] for row in part(result, "search")}


def test_the_best_by_validation_is_trained(result):
    for model, prediction in classify.MODELS.items():
        rows = part(result, "search", model)
        top = max(row["validation"][prediction] for row in rows)
        ties = [row for row in rows if row["validation"][prediction] == top]
        chosen = min(ties, key=lambda row: row["validation_loss"])
        final = part(result, "final", model)
        assert {(r["lr"], r["init_gain"]) for r in final} == {(chosen["lr"], chosen["init_gain"])}
        assert [r["seed"] for r in final] == [0, 1]


def test_a_single_setting_needs_no_search():
    rows = classify.run(Config(hidden=(4,), seeds=1, epochs=1, lr=(0.03,), init_gain=(3.0,)))[
        "rows"
    ]
    assert [row["part"] for row in rows] == ["final"] * 2 + ["summary"] * 5
    assert all(row["se"] is None for row in rows if row["part"] == "summary")


def test_summary_holds_each_prediction_against_the_twin():
    accuracies = {"sbn": [0.9, 0.8, 0.95], "tanh": [0.91, 0.83, 0.95]}
    final = {
        m: [{"model": m, "test": {"tanh" if m == "tanh" else "sign": a}} for a in values]
        for m, values in accuracies.items()
    }
    sbn, twin = classify.summarize(final, 100)
    assert sbn == {"part": "summary", "model": "sbn", "prediction": "sign"} | protocol.summary(
        accuracies["sbn"], accuracies["tanh"], images=100
    )
    assert twin == {"part": "summary", "model": "tanh", "prediction": "tanh"} | protocol.summary(
        accuracies["tanh"], images=100
    )


class FourStates(nn.Module):
    """Stands for an SBN with one unit: logits of class 1 in turn 3, 3, 3, -4 when sampled."""

    def __init__(self):
        super().__init__()
        self.turn = 0

    def forward(self, inputs, *, mode="sample", generator=None):
        value = {"sign": -1.0, "mean": 0.5}.get(mode)
        if value is None:
            value = (3.0, 3.0, 3.0, -4.0)[self.turn % 4]
            self.turn += 1
        return torch.full((len(inputs), 1), value)


def test_predictions_are_what_they_say():
    head = nn.Linear(1, 2)
    with torch.no_grad():
        head.weight.copy_(torch.tensor([[0.0], [1.0]]))
        head.bias.zero_()
    split = data.Split(torch.zeros(5, 3), torch.tensor([1, 1, 1, 1, 0]))
    model = training.Classifier(FourStates(), head, None)
    accuracy, loss = classify.evaluate(model, "sbn", split, torch.Generator())
    one = [0.8, 0.8, 0.8, 0.2, 0.8, 0.8, 0.8, 0.2, 0.8, 0.8]
    assert accuracy["sign"] == pytest.approx(0.2)
    assert accuracy["mean"] == pytest.approx(0.8)
    assert accuracy["one"] == pytest.approx(statistics.fmean(one))
    p = (8 / (1 + math.exp(-3)) + 2 / (1 + math.exp(4))) / 10  # averaged probability of class 1
    assert accuracy["ten"] == pytest.approx(0.8)
    assert loss == pytest.approx(-(4 * math.log(p) + math.log(1 - p)) / 5, rel=1e-5)


def test_twin_is_a_plain_tanh_net_with_a_start_of_its_own():
    data_set = classify.load(SMALL)
    twin = classify.build(SMALL, "tanh", data_set, 3.0, 0)
    sbn = classify.build(SMALL, "sbn", data_set, 3.0, 0)
    for (name, p), (other, q) in zip(twin.named_parameters(), sbn.named_parameters(), strict=True):
        assert name == other and p.shape == q.shape and not torch.equal(p, q)
    first, second = twin.net.layers
    x, y = data_set.test.inputs[:4].double(), data_set.test.labels[:4]
    logits = twin.head(torch.tanh(second(torch.tanh(first(x)))))
    expected = cross_entropy(logits, y, reduction="none")
    torch.testing.assert_close(twin(x, y, None), expected)
    assert first.weight.abs().max() <= 3 / math.sqrt(64) and first.weight.abs().max() > 0.37


def test_training_step_is_adam_on_the_mean_loss():
    """One epoch of one batch, against the step written out."""
    config = Config(hidden=(6,), epochs=1, batch_size=600)
    data_set = classify._on_device(config, classify.launch(config), classify.load(config))
    start, trained = (classify.build(config, "tanh", data_set, 1.0, 3) for _ in range(2))
    recipe = training.Recipe(seed=3, epochs=1, batch_size=600)
    adam = torch.optim.Adam(trained.parameters(), lr=0.01)
    training.fit(
        classify.launch(config), [training.Training(trained, [adam], recipe)], data_set.train
    )
    batch = training._order(len(data_set.train), recipe, 0)[:600]
    inputs, labels = data_set.train.inputs[batch], data_set.train.labels[batch]
    start(inputs, labels, None).mean().backward()
    for before, after in zip(start.parameters(), trained.parameters(), strict=True):
        # the first step of Adam: lr g / (|g| + eps)
        expected = before - 0.01 * before.grad / (before.grad.abs() + 1e-8)
        torch.testing.assert_close(after, expected.detach(), rtol=0, atol=1e-9)


def test_cosine_goes_to_zero_and_constant_stays():
    recipe = training.Recipe(seed=0, epochs=10, batch_size=1)
    assert [recipe.decay(e) for e in (0, 5, 10)] == pytest.approx([1.0, 0.5, 0.0])
    constant = training.Recipe(seed=0, epochs=10, batch_size=1, cosine=False)
    assert {constant.decay(e) for e in range(10)} == {1.0}


def test_it_learns():
    """Chance is 0.10; ten epochs of 64-30-10 bring both models above 0.85."""
    config = Config(hidden=(30,), epochs=10)
    for model, prediction in classify.MODELS.items():
        assert classify.train(config, model, 0.03, 3.0, 0)["test"][prediction] > 0.85


# Batch norm ---------------------------------------------------------------------------------------

NORMED = Config(hidden=(12, 8), seeds=3, epochs=2, lr=(0.03, 0.1), init_gain=(1.0,), norm="batch",
                noise_scale="auto")  # fmt: skip


def test_layers_are_linear_without_biases_and_batch_norm():
    data_set = classify.load(NORMED)
    for model in classify.MODELS:
        built, plain = (classify.build(c, model, data_set, 3.0, 0) for c in (NORMED, SMALL))
        for layer, width in zip(built.net.layers, (12, 8), strict=True):
            first, norm = layer
            assert first.bias is None and first.weight.shape[0] == norm.num_features == width
            assert norm.affine and norm.weight.dtype == torch.float64 and norm.training
        assert torch.equal(built.net.layers[0][0].weight, plain.net.layers[0].weight)


def normalized(a, over, layer):
    """Batch norm with the mean and the unbiased variance of ``over``, written out."""
    scale = layer[1].weight / (over.var(0, correction=1) + 1e-5).sqrt()
    return (a - over.mean(0)) * scale + layer[1].bias


@torch.no_grad()
def by_hand(net, unit, inputs, over):
    """The last layer's states of ``inputs``, with statistics of the images ``over``."""
    x, y = inputs, over
    for layer in net.layers:
        a, b = x @ layer[0].weight.T, y @ layer[0].weight.T
        x, y = unit(normalized(a, b, layer)), unit(normalized(b, b, layer))
    return x


def trained(model, config=NORMED):
    """A classifier after a short training, and the data."""
    fabric = classify.launch(config)
    data_set = classify._on_device(config, fabric, classify.load(config))
    one = classify._training(config, data_set, model, 0.03, 1.0, 0)
    training.fit(fabric, [one], data_set.train)
    return one.model, data_set


def test_each_prediction_has_the_statistics_of_its_own_units():
    """Those of all training images at the final weights, against batch norm written out."""
    model, data_set = trained("sbn")
    inputs, draw = data_set.train.inputs, torch.Generator().manual_seed(0)
    nets = classify.settled(model.net, "sbn", inputs, draw)
    scale, test = model.net.noise.scale, data_set.test.inputs
    units = {
        "sign": lambda a: torch.where(a >= 0, 1.0, -1.0).double(),
        "mean": lambda a: torch.tanh(a / (2 * scale)),
    }
    scores = {}
    for mode, unit in units.items():
        expected = by_hand(model.net, unit, test, inputs)
        torch.testing.assert_close(nets[mode](test, mode=mode), expected, rtol=1e-9, atol=1e-9)
        scores[mode] = model.head(expected).argmax(-1) == data_set.test.labels
    accuracy, _ = classify.evaluate(model, "sbn", data_set.test, draw, nets)
    for mode, right in scores.items():
        assert accuracy[mode] == pytest.approx(float(right.double().mean()))
    twin, _ = trained("tanh")
    (own,) = classify.settled(twin.net, "tanh", inputs, draw).values()
    torch.testing.assert_close(own(test), by_hand(twin.net, torch.tanh, test, inputs))


def test_samples_have_the_statistics_of_sampled_units():
    """The second layer's mean over 1078 draws, to within 6 standard errors: false alarm 2e-8.

    The variance of a sampled unit adds to that of its mean; 0.3 is 7 standard errors of the sum.
    """
    model, data_set = trained("sbn", Config(**asdict(NORMED) | {"noise_scale": 2.0}))
    inputs, draw = data_set.train.inputs, torch.Generator().manual_seed(0)
    nets = classify.settled(model.net, "sbn", inputs, draw)
    first, second = model.net.layers
    with torch.no_grad():
        a, weight = inputs @ first[0].weight.T, second[0].weight
        mean = torch.tanh(normalized(a, a, first) / (2 * model.net.noise.scale))
        of_means, of_noise = (mean @ weight.T).var(0), ((1 - mean**2) @ (weight**2).T).mean(0)
        norm, error = nets["sample"].layers[1][1], (of_noise / len(inputs)).sqrt()
        assert ((norm.running_mean - (mean @ weight.T).mean(0)).abs() < 6 * error).all()
        torch.testing.assert_close(norm.running_var, of_means + of_noise, rtol=0.3, atol=0)
        assert (of_noise > 0.5 * of_means).all()  # the test can tell
        torch.testing.assert_close(nets["mean"].layers[1][1].running_var, of_means)


def test_looking_at_a_network_leaves_it_as_it_is():
    for model in classify.MODELS:
        classifier, data_set = trained(model)
        before = {name: t.clone() for name, t in classifier.state_dict().items()}
        draw = torch.Generator().manual_seed(0)
        nets = classify.settled(classifier.net, model, data_set.train.inputs, draw)
        first = classify.evaluate(classifier, model, data_set.test, draw.manual_seed(1), nets)
        again = classify.evaluate(classifier, model, data_set.test, draw.manual_seed(1), nets)
        assert first == again
        after = classifier.state_dict()
        assert before.keys() == after.keys()
        assert all(torch.equal(t, after[name]) for name, t in before.items())
        assert all(m.training for m in classifier.modules())
        assert getattr(classifier.net, "mode", "sample") == "sample"
        counts = [n for name, n in after.items() if name.endswith("tracked")]
        assert counts == [2 * (1078 // 50)] * 2


def test_without_batch_norm_the_network_itself_is_looked_at():
    model, data_set = trained("sbn", SMALL)
    nets = classify.settled(model.net, "sbn", data_set.train.inputs, torch.Generator())
    assert set(nets) == {"sample", "sign", "mean"} and all(n is model.net for n in nets.values())


def test_statistics_are_taken_with_their_own_generator():
    model, data_set = trained("sbn")
    found = []
    for seed, own in ((5, 0), (6, 0), (6, 1)):
        torch.manual_seed(seed)
        before, draw = torch.get_rng_state(), torch.Generator().manual_seed(own)
        nets = classify.settled(model.net, "sbn", data_set.train.inputs, draw)
        assert torch.equal(torch.get_rng_state(), before)
        found.append(nets["sample"].layers[1][1].running_mean)
    assert torch.equal(found[0], found[1]) and not torch.equal(found[0], found[2])


class KilledError(Exception):
    pass


@pytest.mark.slow
@pytest.mark.parametrize("model", classify.MODELS)
def test_a_checkpoint_holds_the_running_statistics(model, tmp_path):
    """Killed after the second of three epochs and taken up again: the same row."""
    config = Config(**asdict(NORMED) | {"epochs": 3})
    whole, file, seen = classify.train(config, model, 0.03, 1.0, 0), tmp_path / "run.ckpt", []

    def die():
        seen.append(1)
        if len(seen) == 2:
            raise KilledError

    with pytest.raises(KilledError):
        classify.train(config, model, 0.03, 1.0, 0, checkpoint=file, after_epoch=die)
    kept = torch.load(file, weights_only=True)["model"]
    assert kept["net.layers.0.1.num_batches_tracked"] == 2 * (1078 // 50)
    assert kept["net.layers.0.1.running_mean"].abs().max() > 0.1
    assert classify.train(config, model, 0.03, 1.0, 0, checkpoint=file) == whole


def test_it_learns_with_batch_norm():
    """Chance is 0.10; five epochs of 64-30-30-10 bring all predictions above 0.85."""
    config = Config(hidden=(30, 30), epochs=5, norm="batch", noise_scale="auto")
    for model in classify.MODELS:
        row = classify.train(config, model, 0.03, 1.0, 0)
        assert min(row["test"].values()) > 0.85


# Killed and resumed ------------------------------------------------------------------------------


@pytest.mark.slow
def test_known_rows_are_not_trained_again(result, tmp_path, monkeypatch):
    classify.run(SMALL, folder=tmp_path)
    assert not list(tmp_path.glob("*.ckpt"))
    monkeypatch.setattr(classify, "fit", None)
    assert classify.run(SMALL, folder=tmp_path)["rows"] == result["rows"]


DIE = """
import os, sys
from sbnlib.experiments import classify
from sbnlib.experiments.cache import Checkpoint
save = Checkpoint.save
def save_and_die(self, fabric, state):
    save(self, fabric, state)
    if state["epoch"] == 2 and self.path.name.startswith("tanh"):
        os._exit(137)
Checkpoint.save = save_and_die
classify.main(sys.argv[1:])
"""


@pytest.mark.slow
def test_killed_process_and_the_same_command_again(result, tmp_path):
    """The real thing: the process dies, the command is given again, the file is the same."""
    out = tmp_path / "result.json"
    out.write_text('{"kind": "classify", "rows": [{"part"')  # cut off by an earlier kill
    options = [*SMALL.command.split()[3:], "--out", str(out), "--resume-dir", str(tmp_path)]
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": ""}

    def call(*program):
        return subprocess.run(
            [sys.executable, *program, *options], env=environment, capture_output=True, text=True
        )

    assert call("-c", DIE).returncode == 137
    with pytest.raises(measurement.MeasurementError, match="result.json"):
        measurement.read(out)
    left = {path.suffix for path in tmp_path.rglob("*.*") if path != out}
    assert left == {".json", ".ckpt", ".txt"}  # finished rows, the run under way, who held it
    again = call("-m", "sbnlib.experiments.classify")
    assert again.returncode == 0, again.stderr
    assert "test %" in again.stdout and "epoch" in again.stderr
    assert json.dumps(measurement.read(out)["rows"]) == json.dumps(result["rows"])
    assert [path.name for path in tmp_path.iterdir()] == ["result.json"]


# The stored file ---------------------------------------------------------------------------------

STORED = MEASUREMENTS / "classify-digits.json"


@pytest.mark.slow
def test_stored_digits_file_can_be_repeated():
    """One row of the book's file, trained again here.

    On a processor of another kind a float32 sum is rounded otherwise, a sign flips, and it is
    another training: so to within 0.02, 2.5 standard errors of an accuracy of 0.975 on 359 images,
    and twice here to the last digit.
    """
    stored = measurement.read(STORED)
    assert stored["kind"] == "classify" and all(stored["checks"].values())
    assert stored["command"] == Config().command
    row = part(stored, "final", "sbn")[0]
    again = classify.train(Config(), "sbn", row["lr"], row["init_gain"], row["seed"])
    for prediction, accuracy in again["test"].items():
        assert accuracy == pytest.approx(row["test"][prediction], abs=0.02)
    once_more = classify.train(Config(), "sbn", row["lr"], row["init_gain"], row["seed"])
    assert once_more["test"] == again["test"]


@pytest.mark.parametrize("name", registry.ESTIMATORS)
def test_every_estimator_of_the_registry_trains_a_classifier(name: str) -> None:
    # estimators that evaluate the loss put axes in front of the batch; the targets must follow
    torch.manual_seed(0)
    net, head = SBN(torch.nn.Linear(4, 3), torch.nn.Linear(3, 2)), torch.nn.Linear(2, 3)
    model = Classifier(net, head, network_estimator(name))
    inputs, labels = torch.rand(5, 4), torch.tensor([0, 1, 2, 1, 0])
    values = model(inputs, labels, torch.Generator().manual_seed(0))
    assert values.shape == (5,)
    values.mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
