"""The GPU evidence, run on the CPU at tiny sizes: its file, its checks, its exit status."""

from __future__ import annotations

import dataclasses
import json
import math
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from scipy import stats

import sbnlib
from sbnlib import exact_gradient, exact_moments, kernels, measure, registry
from sbnlib.accuracy import Accuracy, Estimate
from sbnlib.exact import all_states
from sbnlib.experiments import bench, gpu, measurement
from sbnlib.experiments.gpu import CPU, TINY, Notes, Section

NAMES = [section.name for section in gpu.SECTIONS]
on_a_gpu = pytest.mark.skipif(not torch.cuda.is_available(),
                         reason="needs CUDA: torch.cuda.is_available() is False")  # fmt: skip


@pytest.fixture(autouse=True)
def one_thread():
    """Tiny work on two threads waits for the second."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def sections(monkeypatch):
    """sections(a=work, b=work, ...) puts these in place of the sections."""

    def put(**works):
        made = tuple(Section(name, work, 1) for name, work in works.items())
        monkeypatch.setattr(gpu, "SECTIONS", made)

    return put


def run(path, budget=60.0, sizes=TINY):
    return gpu.run(CPU, budget, sizes, path, command="test")


# ------------------------------------------------------------------------------ the whole run


needs_the_whole_run = pytest.mark.slow


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    path = tmp_path_factory.mktemp("evidence") / "gpu.json"
    command = [sys.executable, "-m", "sbnlib.gpu_evidence", "--device", "cpu", "--tiny",
               "--commit", "abc", "--out", str(path)]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return measurement.read(path)


def parts(found, part):
    return [row for row in found["rows"] if row["part"] == part]


@needs_the_whole_run
def test_all_sections_run_and_all_checks_hold(whole):
    assert [row["name"] for row in parts(whole, "section")] == NAMES
    assert not parts(whole, "error") and not parts(whole, "left out")
    assert whole["checks"] and all(whole["checks"].values())


@needs_the_whole_run
def test_the_file_says_where_it_comes_from(whole):
    jsonschema = pytest.importorskip("jsonschema")
    jsonschema.validate(whole, measurement.SCHEMA)
    assert (whole["kind"], whole["commit"]) == ("gpu", "abc")
    assert whole["command"].startswith("python -m sbnlib.experiments.gpu --device cpu")
    assert {"python", "torch", "numpy", "cuda"} <= set(whole["versions"])
    (environment,) = parts(whole, "environment")
    assert environment["torch"] == torch.__version__


@needs_the_whole_run
def test_every_time_has_a_spread_and_every_ratio_is_positive(whole):
    other = ("section", "search")
    timed = [row for row in whole["rows"] if "seconds" in row and row["part"] not in other]
    assert {row["part"] for row in timed} == {
        "copy", "bf16 product", "int8 product", "sample_sign", "straight_through", "fused",
        "measure", "live frame", "exact_gradient",
    }  # fmt: skip
    assert all(row["seconds"] > 0 and row["spread"] >= 0 for row in timed)
    assert whole["ratios"] and all(ratio > 0 for ratio in whole["ratios"].values())


@needs_the_whole_run
def test_the_fused_sampler_is_over_a_copy_of_the_bytes_it_moves(whole):
    moved = {row["what"]: row["bytes_an_element"] for row in parts(whole, "fused")}
    forward = {"fused forward fp32": 8, "fused forward int8": 5, "fused forward bf16": 4}
    few = {f"{what}, 32 bits": traffic for what, traffic in forward.items()}
    assert moved == forward | few | {"fused backward fp32": 12}
    for row in parts(whole, "fused"):
        assert whole["ratios"][row["what"]] == row["ratio"]
        assert row["ratio"] == pytest.approx(row["seconds"] / row["copy_seconds"])


@needs_the_whole_run
def test_what_is_claimed_of_a_gpu_has_its_name_among_the_ratios(whole):
    threads = torch.get_num_threads()
    rows = {row["samples"]: row for row in parts(whole, "measure")}
    for m, row in rows.items():
        name = f"measure 2-6-6-6 {m}"
        speed = whole["ratios"][f"{name}, Msamples/s"]
        assert speed == pytest.approx(m / row["seconds"] / 1e6)
        assert whole["ratios"][f"{name}, over {threads} threads"] == row["ratio"]
    for row in parts(whole, "exact_gradient"):
        name = "exact 5-{0}-{0}-{0}".format(row["units"])
        assert whole["ratios"][f"{name}, over {threads} threads"] == row["ratio"]
    (row,) = parts(whole, "search")
    assert whole["ratios"]["search of 3, over one by one"] == row["ratio"]
    assert row["ratio"] == pytest.approx(row["one_by_one_seconds"] / row["seconds"])
    assert gpu.FULL.trainings == 24 and gpu.FULL.trained == (784, 512, 512, 10)
    (row,) = parts(whole, "int8 product")
    assert whole["ratios"]["int8 product of signs, over bf16"] == row["ratio"]
    assert row["ratio"] == pytest.approx(row["bf16_seconds"] / row["seconds"])
    for row in parts(whole, "live frame"):
        name = f"live frame, 1e3 {row['what']}, ms"
        assert whole["ratios"][name] == pytest.approx(1e3 * row["seconds"])


def test_a_wrong_product_of_signs_fails_its_check(monkeypatch):
    notes = gpu.Notes()
    gpu.products_of_signs(CPU, TINY, notes)
    assert len(notes.checks) == 2 and all(notes.checks.values())
    monkeypatch.setattr(gpu, "on_device", lambda _, x, w: gpu.runtime.differing(x, w) + 1)
    gpu.products_of_signs(CPU, TINY, notes)
    assert not any(notes.checks.values())


def test_a_machine_with_torch_alone_says_that_no_search_was_run(monkeypatch):
    def missing(*_: object, **__: object) -> None:
        raise ModuleNotFoundError("No module named 'lightning_fabric'")

    monkeypatch.setattr(bench, "search", missing)
    notes = Notes()
    gpu.a_search(CPU, TINY, notes)
    assert not notes.ratios and "lightning_fabric" in notes.rows[0]["error"]


@pytest.mark.parametrize(("count", "name"), [(10**7, "1e7"), (10**8, "1e8"), (4096, "4096")])
def test_powers_of_ten_are_short(count, name):
    assert gpu._power(count) == name


@needs_the_whole_run
def test_every_estimator_and_every_noise_is_checked(whole):
    assert [row["name"] for row in parts(whole, "estimator")] == list(registry.ESTIMATORS)
    for part in ("frequencies", "fused parity"):
        assert {row["noise"] for row in parts(whole, part)} == set(gpu.LAWS)
    laws = {name for name in sbnlib.noise.__all__ if name != "Noise"}
    assert set(gpu.LAWS) == laws


@pytest.mark.slow
def test_import_needs_torch_and_numpy_only():
    extras = ["matplotlib", "sklearn", "lightning_fabric", "scipy", "pooch", "tqdm", "ipywidgets"]
    code = (f"import sys; sys.modules.update(dict.fromkeys({extras}))\n"
            "import sbnlib.gpu_evidence, sbnlib.experiments.gpu")  # fmt: skip
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


# ------------------------------------------------------------- budget, failures, exit status


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_cuda_it_says_so_and_does_nothing(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(gpu, "run", lambda *a, **k: pytest.fail("ran"))
    assert gpu.main([]) == 2
    said = capsys.readouterr()
    assert "is_available() is False" in said.err and not said.out
    assert not list(tmp_path.iterdir())


def test_a_device_that_is_not_there_is_named(capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert gpu.main(["--device", "cuda:1"]) == 2
    assert "cuda:1 asked for, 1 there" in capsys.readouterr().err


@pytest.mark.parametrize("arguments, said", [
    (["--budget", "0"], "--budget must be a number of seconds > 0"),
    (["--budget", "nan"], "--budget must be a number of seconds > 0"),
    (["--device", "tpu"], "must be cuda or cuda:N"),
])  # fmt: skip
def test_wrong_arguments_are_refused(arguments, said, capsys):
    with pytest.raises(SystemExit) as caught:
        gpu.main(arguments)
    assert caught.value.code == 2 and said in capsys.readouterr().err


def test_a_failed_check_gives_1(sections, tmp_path, capsys):
    sections(good=lambda d, s, n: n.check("good", True), bad=lambda d, s, n: n.check("bad", False))
    assert gpu.main(["--device", "cpu", "--tiny", "--out", str(tmp_path / "x.json")]) == 1
    assert measurement.read(tmp_path / "x.json")["checks"] == {"good": True, "bad": False}
    assert "failed: bad" in capsys.readouterr().err


def test_a_section_that_breaks_is_a_failed_check_and_the_rest_runs(sections, tmp_path):
    def broken(device, sizes, notes):
        raise RuntimeError("out of memory\nand more")

    sections(broken=broken, fine=lambda d, s, n: n.check("fine", True))
    found = run(tmp_path / "x.json")
    assert found["checks"] == {"broken: ran to its end": False, "fine": True}
    assert parts(found, "error")[0]["error"] == "RuntimeError: out of memory"


def test_a_section_that_does_not_fit_is_left_out_with_all_after_it(sections, tmp_path):
    sections(a=lambda d, s, n: n.check("a", True), b=lambda *_: None, c=lambda *_: None)
    with pytest.MonkeyPatch.context() as patch:
        wide = dataclasses.replace(gpu.SECTIONS[1], seconds=1e6)
        made = (gpu.SECTIONS[0], wide, gpu.SECTIONS[2])
        patch.setattr(gpu, "SECTIONS", made)
        found = run(tmp_path / "x.json", sizes=gpu.FULL)
    assert found["checks"] == {"a": True}
    assert parts(found, "left out")[0]["sections"] == ["b", "c"]
    assert measurement.read(tmp_path / "x.json") == json.loads(json.dumps(found))


def test_the_budget_ends_a_section_that_hangs(sections, tmp_path):
    sections(a=lambda d, s, n: n.check("a", True), hangs=lambda *_: time.sleep(60),
             c=lambda *_: None)  # fmt: skip
    start = time.monotonic()
    found = run(tmp_path / "x.json", budget=0.5)
    assert time.monotonic() - start < 20
    assert parts(found, "left out")[0]["sections"] == ["hangs", "c"]
    assert found["checks"] == {"a": True}


def test_a_kill_leaves_the_sections_before_it(sections, tmp_path):
    def killed(*_):
        raise KeyboardInterrupt

    sections(a=lambda d, s, n: n.check("a", True), killed=killed)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "x.json")
    assert measurement.read(tmp_path / "x.json")["checks"] == {"a": True}


def test_default_file_is_named_after_device_and_date(monkeypatch):
    monkeypatch.setattr(measurement, "describe_device", lambda d: "NVIDIA H100 80GB HBM3")
    monkeypatch.delenv("OUT", raising=False)
    date = time.strftime("%Y-%m-%d", time.gmtime())
    name = f"gpu-nvidia-h100-80gb-hbm3-{date}.json"
    assert gpu.default_out(torch.device("cuda")) == Path(name)
    monkeypatch.setenv("OUT", "some")
    assert gpu.default_out(torch.device("cuda")) == Path("some") / name


# ---------------------------------------------------------------- the checks can tell wrong


def checks_of(section, monkeypatch, **replaced):
    for name, value in replaced.items():
        monkeypatch.setattr(gpu, name, value)
    notes = Notes()
    section(CPU, TINY, notes)
    return [name for name, held in notes.checks.items() if not held]


def test_a_sampler_of_the_wrong_law_is_found(monkeypatch):
    def wrong(a, noise, **options):
        return sbnlib.sample_sign(a + 0.5, noise, **options)

    failed = checks_of(gpu.sampler, monkeypatch, sample_sign=wrong)
    assert {f"sampler: frequencies, {name}" for name in ("Logistic", "Gaussian")} <= set(failed)


def test_a_zero_in_place_of_a_sign_is_found(monkeypatch):
    def wrong(a, noise, **options):
        return sbnlib.sample_sign(a, noise, **options).clamp_min(0)

    failed = checks_of(gpu.sampler, monkeypatch, sample_sign=wrong)
    assert any("states are +-1" in name for name in failed)


def test_a_slope_without_its_factor_2_is_found(monkeypatch):
    def half(a, x, noise):
        return x + noise.pdf(a.detach()) * (a - a.detach())

    failed = checks_of(gpu.straight, monkeypatch, straight_through=half)
    assert failed == ["straight-through: slope 2f(a), eager"]


class Wrong:
    """:mod:`sbnlib.kernels` with a wrong function in place of one."""

    def __init__(self, **wrong):
        vars(self).update(sample=kernels.sample, straight_through=kernels.straight_through)
        vars(self).update(wrong)


@pytest.mark.parametrize(("wrong", "found"), [
    (lambda a, noise, backend=None, **o: kernels.sample(a if backend else a + 1e-2, noise, **o),
     "fused: states of the reference, Cauchy"),
    (lambda a, noise, offset=0, **o: kernels.sample(a, noise, **o),
     "fused: the same states however a draw is cut"),
    (lambda a, noise, offset=0, **o: kernels.sample(a, noise, offset=offset % 2**13, **o),
     "fused: a draw of more than 2^31 units"),
    (lambda a, noise, **o: kernels.sample(a.clamp(-5, 5), noise, **o),
     "fused: rare events in the tail at 18.4"),
    (lambda a, noise, **o: kernels.sample(a, noise, **o).clamp_(min=0),
     "fused forward int8: values +-1"),
], ids=["other logits", "no offset", "offset wraps", "clamped", "zeros"])  # fmt: skip
def test_a_fused_sampler_that_is_off_is_found(wrong, found, monkeypatch):
    assert found in checks_of(gpu.fused, monkeypatch, kernels=Wrong(sample=wrong))


def test_a_fused_slope_that_is_off_is_found(monkeypatch):
    def half(a, noise, **options):
        return kernels.straight_through(a, noise, **options) / 2

    failed = checks_of(gpu.fused, monkeypatch, kernels=Wrong(straight_through=half))
    assert failed == ["fused backward fp32: slope 2f(a)"]


@pytest.mark.parametrize("mean", [1e-4, 0.3, 4.0, 21.47])
def test_the_range_of_a_count(mean):
    low, high = gpu.poisson_range(mean, 2.5e-7)
    law = stats.poisson(mean)
    assert law.cdf(low - 1) <= 2.5e-7 < law.cdf(low)
    assert law.sf(high) <= 2.5e-7 < law.sf(high - 1)


def test_an_exact_sum_that_is_off_is_found(monkeypatch):
    calls = []

    def off(*problem):
        value, grads = exact_gradient(*problem)
        calls.append(1)
        return value * (1 + 1e-11 * (len(calls) % 2)), grads

    failed = checks_of(gpu.exact_sums, monkeypatch, exact_gradient=off)
    assert failed


def test_largest_z():
    def one(value, se):
        e = Estimate(value, se)
        return {"all": Accuracy(e, e, e, e, Estimate(0.0, 0.0), e, e, 1.0, 10)}

    assert gpu.largest_z(one(1.0, 3.0), one(2.0, 4.0)) == pytest.approx(0.2)
    assert gpu.largest_z(one(1.0, 0.0), one(1.0, 0.0)) == 0
    assert gpu.largest_z(one(1.0, math.nan), one(1.0, 0.1)) > gpu.Z_STATISTICS


# ------------------------------------------------------- sbnlib stays on its inputs' device


@pytest.mark.slow
@pytest.mark.parametrize("name", registry.ESTIMATORS)
def test_tensors_are_made_on_the_device_of_the_inputs(name):
    # With "meta" as the default device, a tensor made without a device has no numbers, and any
    # use of it beside the inputs, which are on the CPU here, is an error.
    problem = gpu._problem((2, 3, 3), 2, CPU)
    draws = torch.Generator("cpu").manual_seed(0)
    with torch.device("meta"):
        found = measure(*problem, name, 64, generator=draws)
        if registry.get(name).state_only:
            exact_moments(*problem, name)
    assert math.isfinite(found["all"].mse.value) and found["all"].mse.se >= 0


def test_states_and_signs_are_made_on_the_device_of_the_inputs():
    a = torch.linspace(-2, 2, 9, device="cpu")
    with torch.device("meta"):
        for name in gpu.LAWS:
            noise = getattr(sbnlib, name)()
            assert sbnlib.sample_sign(a, noise).device.type == "cpu"
            assert noise.pdf(noise.icdf(noise.cdf(a))).device.type == "cpu"
            assert noise.sample((3,), device="cpu").device.type == "cpu"
        assert all_states(3, device="cpu").device.type == "cpu"


@pytest.mark.gpu
@on_a_gpu
def test_every_section_on_the_device(tmp_path):
    found = gpu.run(torch.device("cuda"), 300.0, TINY, tmp_path / "x.json", command="test")
    assert all(found["checks"].values()), found["checks"]
    assert [row["name"] for row in parts(found, "section")] == NAMES
