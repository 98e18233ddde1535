"""The measurement of character models: the text, the weights, the search and what is written."""

from __future__ import annotations

import json
import math
import statistics
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch.nn import functional

from sbnlib import data as datasets
from sbnlib.data import DataError
from sbnlib.experiments import character_nets, characters, measurement
from sbnlib.experiments.character_nets import (
    CONTENDERS,
    CONTEXT,
    CharacterNet,
    Latent,
    encoded,
    losses,
    states,
    steps_of,
)
from sbnlib.experiments.training import generator

TEXT = "".join(f"line {k}, of {k % 7} words: the quick brown fox jumps\n" for k in range(1200))


@pytest.fixture
def small() -> datasets.Dataset:
    return encoded("small", {"train": TEXT[:9000], "validation": TEXT[:3000], "test": TEXT[:7100]})


def draw(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# The text ----------------------------------------------------------------------------------------


def test_a_text_of_the_readers_is_cut_into_blocks_without_overlap(tmp_path: Path) -> None:
    path = tmp_path / "mine.txt"
    path.write_text(TEXT, encoding="utf-8")
    data = characters.read_text(path)
    blocks = [TEXT[k : k + 2000] for k in range(0, len(TEXT), 2000)]
    assert len(data.validation) == sum(map(len, blocks[4::10]))
    assert len(data.test) == sum(map(len, blocks[9::10]))
    assert sum(len(s) for s in (data.train, data.validation, data.test)) == len(TEXT)
    letters = sorted(set(TEXT), key=lambda c: (-TEXT.count(c), c))
    assert data.num_classes == len(letters) + 1
    first = data.test.labels[:40].tolist()
    assert [blocks[9][k] == blocks[9][0] for k in range(40)] == [n == first[0] for n in first]


def test_a_character_that_the_training_part_has_not_is_the_last_number() -> None:
    data = encoded("x", {"train": "aab" * 10, "validation": "abc", "test": "é\x00a"})
    assert data.num_classes == 3
    assert data.validation.labels.tolist() == [0, 1, 2] and data.test.labels.tolist() == [2, 2, 0]
    many = "".join(chr(0x4E00 + k) * 2 for k in range(300)) + "a"
    assert encoded("x", {"train": many, "validation": "a", "test": "a"}).num_classes == 256


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"x" * 50_000 + b"\xff" + b"x" * 9, "must be UTF-8, the byte at offset 50000 is 0xff"),
        ("é".encode("latin-1") * 50_000, "must be UTF-8, the byte at offset 0 is 0xe9"),
        (b"x" * 39_999, "must have at least 40000 characters, has 39999"),
        (b"", "must have at least 40000 characters, has 0"),
        (None, "cannot be read \\(No such file or directory\\)"),
    ],
)
def test_a_text_that_cannot_be_used_is_refused_by_name(
    content: bytes | None, said: str, tmp_path: Path, capsys: Any
) -> None:
    path = tmp_path / "mine.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match=f"mine.txt: {said}"):
        characters.read_text(path)
    with pytest.raises(SystemExit) as stop:
        characters.main(["--text", str(path), "--out", str(tmp_path / "x.json")])
    assert stop.value.code == 2 and "mine.txt: " in capsys.readouterr().err


@pytest.mark.parametrize("option", ["--steps", "--seeds"])
def test_a_count_below_1_is_refused(option: str, tmp_path: Path, capsys: Any) -> None:
    with pytest.raises(SystemExit):
        characters.main([option, "0", "--out", str(tmp_path / "x.json")])
    assert option in capsys.readouterr().err


# The weights -------------------------------------------------------------------------------------


def test_absmean_is_the_rule_with_no_derivative_through_the_scale() -> None:
    """gamma = mean abs(W), W -> gamma clip(round(W/gamma), -1, 1), with the plain gradient."""
    matrix = Latent(30, 20, "absmean", draw())
    w = matrix.weight()
    eta = matrix.eta.detach().double().numpy()
    gamma = np.abs(eta).mean()
    expected = gamma * np.where(np.abs(eta) < gamma / 2, 0, np.sign(eta))
    np.testing.assert_allclose(w.detach(), expected, rtol=1e-6)
    given = torch.rand(20, 30, generator=draw(1))
    (w * given).sum().backward()
    assert torch.equal(matrix.eta.grad, given)


@pytest.mark.parametrize("name", ["fixed", "uniform", "triangular"])
def test_latent_weights_stay_where_noise_can_move_them(name: str) -> None:
    matrix = Latent(3, 2, name, draw())
    matrix.eta.data.copy_(torch.tensor([[-9.0, 9.0, 0.7], [0.2, -0.6, 1.2]]))
    matrix.keep()
    end = {"fixed": 1.0, "uniform": 1.0, "triangular": 1.5}[name]
    assert matrix.end == end and matrix.eta.abs().max() == end
    assert matrix.state().tolist() == [[-1, 1, 1], [0, -1, 1]]


@pytest.mark.parametrize("eta", [0.3, 0.9])  # between the thresholds both slopes are 1
@pytest.mark.parametrize("name", ["uniform", "triangular"])
def test_drawn_weights_have_the_law_of_two_thresholds_and_the_slope_of_the_mean(
    name: str, eta: float
) -> None:
    count = 40_000
    matrix = Latent(count, 1, name, draw())
    matrix.eta.data.fill_(eta)
    w = matrix.weight(draw(2))
    w.sum().backward()
    law = stats.uniform(-0.5, 1) if name == "uniform" else stats.triang(0.5, -1, 2)
    up, stays = law.cdf(eta - 0.5), law.cdf(eta + 0.5)
    for state, p in ((1, up), (0, stays - up), (-1, 1 - stays)):
        z = (float((w == state).double().mean()) - p) / math.sqrt(p * (1 - p) / count + 1e-12)
        assert abs(z) < 5.5  # false alarm 1e-7 in all
    slope = law.pdf(eta - 0.5) + law.pdf(eta + 0.5)
    torch.testing.assert_close(matrix.eta.grad, torch.full_like(w, slope), rtol=1e-5, atol=0)
    assert matrix.mean()[0, 0].item() == pytest.approx(up + stays - 1, abs=1e-6)


@pytest.mark.parametrize("name", CONTENDERS)
def test_every_contender_has_the_same_network_around_its_matrices(name: str) -> None:
    net = CharacterNet(50, name, draw())
    sizes = {k: tuple(v.shape) for k, v in net.named_parameters() if "matrices" not in k}
    assert sizes == {
        "embedding": (50, 16), "head.weight": (50, 192), "head.bias": (50,),
        **{f"norms.{k}.{n}": (192,) for k in (0, 1) for n in ("weight", "bias")},
    }  # fmt: skip
    assert sum(p.numel() for p in net.others()) == sum(math.prod(s) for s in sizes.values())
    ternary = states(net)
    assert (ternary is None) == (name == "real")
    if ternary is not None:
        assert ternary.numel() == 192 * (256 + 192) and set(ternary.tolist()) <= {-1, 0, 1}


# Training and what is measured -------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("name", CONTENDERS)
def test_a_contender_learns_and_its_seed_decides_all(name: str, small: datasets.Dataset) -> None:
    lr = CONTENDERS[name].rates[1]
    runs = []
    for _ in range(2):
        *_, (done, net) = steps_of(name, small, lr, 3, 30)
        assert done == 30
        runs.append(losses(net, small.test, "state").mean().item())
    before = CharacterNet(
        small.num_classes, name, generator("cpu", "start", contender=name, seed=3)
    )
    assert runs[0] == runs[1] < losses(before, small.test, "state").mean().item() - 0.5


def test_contenders_share_no_random_number(small: datasets.Dataset) -> None:
    starts = {n: CharacterNet(20, n, generator("cpu", "start", contender=n, seed=0)).embedding
              for n in ("real", "absmean")}  # fmt: skip
    assert not torch.equal(starts["real"], starts["absmean"])


@pytest.mark.parametrize("name", ["real", "uniform", "simplex"])
def test_bits_are_those_of_each_next_character(name: str, small: datasets.Dataset) -> None:
    *_, (_, net) = steps_of(name, small, CONTENDERS[name].rates[0], 0, 2)
    net.how = "state"
    labels, found = small.test.labels, losses(net, small.test, "state")
    net.how = "state"
    for k in (0, 1, 777, len(labels) - CONTEXT - 1):
        with torch.no_grad():
            scores = net(labels[None, k : k + CONTEXT]).double()
        own = functional.cross_entropy(scores, labels[k + CONTEXT][None]) / math.log(2)
        assert found[k].item() == pytest.approx(own.item(), rel=1e-5)
    assert len(found) == len(labels) - CONTEXT


def test_blocks_hold_each_character_once() -> None:
    each = torch.arange(7084.0)
    blocks = list(characters._blocks(each))
    assert [len(b) for b in blocks] == [2000, 2000, 3084]
    assert torch.equal(torch.cat(blocks), each)
    assert [len(b) for b in characters._blocks(each[:100])] == [100]


def test_the_share_that_moved_is_that_of_the_last_tenth(small: datasets.Dataset) -> None:
    settings = {"name": "fixed", "lr": 0.1, "seed": 0, "steps": 20}
    _, moved, seconds = characters._train(small, settings)
    path = [states(net).clone() for _, net in steps_of("fixed", small, 0.1, 0, 20)]
    assert moved == (path[17] != path[19]).double().mean().item() > 0 and seconds > 0


def test_a_training_that_breaks_is_the_worst_of_its_search() -> None:
    settings = {"part": "search", "name": "simplex", "lr": 1e42, "seed": 0, "steps": 3}
    (row,) = characters.trained(settings)
    assert row["validation"] is None and "infinite" in row["said"]
    assert characters._best([row, row | {"validation": 3.0}])["validation"] == 3.0


# The search and the summary ----------------------------------------------------------------------

OPTIONS = {"text": "", "steps": 5, "seeds": 3}


def test_a_search_goes_on_while_its_best_rate_is_an_end() -> None:
    found: list[dict[str, Any]] = []
    tried = []
    while jobs := characters.search_jobs("real", OPTIONS, found):
        tried += [job["lr"] for job in jobs]
        found += [job | {"validation": -job["lr"]} for job in jobs]  # the larger the better
    assert tried == [0.003, 0.01, 0.03, 0.09, 0.27, 0.81]  # and no further than three beyond
    inside = [job | {"validation": abs(job["lr"] - 0.01)}
              for job in characters.search_jobs("real", OPTIONS)]  # fmt: skip
    assert not characters.search_jobs("real", OPTIONS, inside)
    finals = characters.final_jobs("real", OPTIONS, inside)
    assert [(job["lr"], job["seed"]) for job in finals] == [(0.01, 0), (0.01, 1), (0.01, 2)]
    checks = characters._checks([row | {"part": "search"} for row in [*found]])
    assert checks == {"real: best rate inside": False}


def final(name: str, seed: int, blocks: list[float]) -> dict[str, Any]:
    own = {"part": "final", "name": name, "lr": 0.01, "seed": seed, "validation": 2.0}
    own |= {"test": statistics.fmean(blocks), "blocks": blocks, "seconds": 2.0 + seed}
    return own | {"drawn": 1.0, "mean": 3.0, "zeros": 0.2 * seed, "moved": 0.1}


def test_a_summary_is_what_its_rows_say() -> None:
    rng = np.random.default_rng(0)
    table = {name: rng.normal(2, 1, size=(4, 6)) for name in ("real", "fixed")}
    rows = [final(n, k, list(own)) for n, values in table.items() for k, own in enumerate(values)]
    twin, row = characters.summarize(rows)
    ours, other = (table[n].mean(1) for n in ("fixed", "real"))
    assert row["mean"] == pytest.approx(ours.mean())
    assert row["se"] == pytest.approx(ours.std(ddof=1) / 2)
    assert row["text_se"] == pytest.approx(table["fixed"].mean(0).std(ddof=1) / math.sqrt(6))
    differences = (table["fixed"] - table["real"]).mean(0)
    assert row["minus_twin_text_se"] == pytest.approx(differences.std(ddof=1) / math.sqrt(6))
    test = stats.ttest_ind(ours, other, equal_var=False)
    assert row["minus_twin_p"] == pytest.approx(test.pvalue)
    assert (row["drawn"], row["mean_weights"], row["time"]) == (1.0, 3.0, 1.0)
    assert row["zeros"] == pytest.approx(0.3) and row["seconds"] == 3.5
    assert "time" not in twin and "minus_twin" not in twin
    (alone,) = characters.summarize([r for r in rows if r["name"] == "fixed"])
    assert "minus_twin" not in alone


def test_five_ternary_weights_fit_in_a_byte() -> None:
    sizes = 192 * 256, 192 * 192
    assert characters._bytes("real") == 4 * sum(sizes)
    assert characters._bytes("fixed") == sum(math.ceil(n / 5) for n in sizes)
    assert 3**5 <= 2**8 < 3**6


# The command -------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_command_writes_its_file_and_goes_on_after_a_kill(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = tmp_path / "mine.txt"
    text.write_text(TEXT)
    out = tmp_path / "x.json"
    argv = ["--text", str(text), "--steps", "4", "--seeds", "2", "--only", "real", "fixed",
            "--out", str(out), "--resume-dir", str(tmp_path / "runs")]  # fmt: skip
    true, ran = characters.trained, []

    def killed(settings: Any) -> Any:
        if len(ran) == 4:
            raise KeyboardInterrupt
        ran.append(settings)
        return true(settings)

    monkeypatch.setattr(characters, "trained", killed)
    with pytest.raises(KeyboardInterrupt):
        characters.main(argv)
    again: list[Any] = []
    monkeypatch.setattr(characters, "trained", lambda s: again.append(s) or true(s))
    assert characters.main(argv) == 0 and not any(s in ran for s in again)
    found = measurement.read(out)
    assert [r["part"] for r in found["rows"]][:2] == ["text", "search"]
    assert [r["name"] for r in found["rows"] if r["part"] == "summary"] == ["real", "fixed"]
    assert found["rows"][0]["characters"] == {
        part: len(getattr(characters.read_text(text), part))
        for part in ("train", "validation", "test")
    }
    assert list(found["checks"]) == ["real: best rate inside", "fixed: best rate inside"]
    assert not (tmp_path / "runs").exists() or not list((tmp_path / "runs").iterdir())
    words = found["command"].split()
    assert words[:3] == ["python", "-m", "sbnlib.experiments.characters"]
    parsed = vars(characters._parser().parse_args(words[3:]))
    assert (parsed["steps"], parsed["seeds"], parsed["only"]) == (4, 2, ["real", "fixed"])
    json.dumps(found, allow_nan=False)


def test_the_jobs_are_listed_one_a_line(tmp_path: Path, capsys: Any) -> None:
    argv = ["--only", "real", "--steps", "2", "--list", "--resume-dir", str(tmp_path / "runs")]
    assert characters.main([*argv, "--out", str(tmp_path / "x.json")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(CONTENDERS["real"].rates) and all("--job" in line for line in lines)


@pytest.mark.slow
def test_the_doctor_says_which_rule_is_no_unit_of_its_own_pre_activation() -> None:
    """The mean size of all weights is in absmean; the drawn thresholds are a sound unit."""
    data = characters._text("")
    found = {}
    for name in ("absmean", "uniform"):
        *_, (_, net) = steps_of(name, data, 0.01, 0, 2)
        found[name] = characters.examined(net, data)
    assert found["absmean"]["codes"] == ["not-elementwise"]
    assert found["uniform"]["units"] == 2
    assert "not-elementwise" not in found["uniform"]["codes"]


def test_the_rates_are_as_many_for_each() -> None:
    assert {len(own.rates) for own in CONTENDERS.values()} == {3}
    assert character_nets.LEAST >= 20 * character_nets.BLOCK
