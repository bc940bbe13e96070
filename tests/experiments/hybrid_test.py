"""A network of tokens and numbers: trained, certified from a log, and attacked."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from experiments import config as configs
from experiments import draws, hybrid, mixed, train
from lipjax.smoothing import gaussian, sampling
from lipjax.smoothing import hybrid as certificates
from lipjax.smoothing.kernels import Mask
from lipjax.smoothing.log import CountLog, stored_header

SMALL = ["epochs=60", "hidden=16", "num_samples=1500", "sample_batch=500", "num_selection=50"]


@pytest.fixture(scope="module")
def energy_dir(tmp_path_factory):
    """The layout of the energy data, with a load that depends on columns of both kinds."""
    folder = tmp_path_factory.mktemp("data")
    place = folder / "uci" / "UCI_Datasets" / "energy" / "data"
    place.mkdir(parents=True)
    rng = np.random.default_rng(0)
    values = rng.normal(size=(300, 4))
    columns = np.stack([rng.integers(0, k, 300) for k in (2, 4, 4, 6)], -1)
    load = 0.5 * columns[:, 0] + 3 * values[:, 0] + 0.2 * columns[:, 3]
    np.savetxt(place / "data.txt", np.column_stack([values, columns, load]))
    order = rng.permutation(300)
    np.savetxt(place / "index_train_0.txt", order[:270])
    np.savetxt(place / "index_test_0.txt", order[270:])
    return folder


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory, energy_dir):
    directory = tmp_path_factory.mktemp("run") / "energy"
    start(energy_dir, directory)
    return directory


def start(data_dir, directory, *more):
    options = ["--data-dir", str(data_dir), "--run-dir", str(directory)]
    with jax.numpy_dtype_promotion("standard"):
        return hybrid.main(["hybrid_energy", *SMALL, *more, *options])


@pytest.mark.few(1)
def test_certifies_both_parts_and_again_from_a_cut_log(run_dir, energy_dir, capsys):
    report = json.loads((run_dir / "hybrid.json").read_text())
    assert report["edits"][0]["certified"] > 0.6
    certified = [row["certified"] for row in report["edits"]]
    radii = [row["mean_radius"] for row in report["edits"]]
    assert certified == sorted(certified, reverse=True) and radii == sorted(radii, reverse=True)
    log = run_dir / "counts.log"
    whole = log.read_bytes()
    log.write_bytes(whole[: len(whole) // 2 + 7])
    again = start(energy_dir, run_dir)
    assert again["edits"] == report["edits"] and log.stat().st_size == len(whole)
    looser = start(energy_dir, run_dir, "alpha=0.2", "max_edits=1")
    assert looser["edits"][0]["mean_radius"] > radii[0] and len(looser["edits"]) == 2
    assert log.read_bytes()[: whole.index(b"\n")] == whole[: whole.index(b"\n")]
    assert "radius: l2 of the continuous columns, in standard deviations" in capsys.readouterr().out
    named = "holds a run with other settings, beta = 0.4 instead of 0.3; name another directory"
    with pytest.raises(SystemExit, match=named):
        start(energy_dir, run_dir, "beta=0.3")
    with pytest.raises(SystemExit, match="the log has more of 30 examples"):
        start(energy_dir, run_dir, "num_samples=1000")


def test_certifying_again_reads_the_log_and_writes_the_table(run_dir, energy_dir, tmp_path):
    log, out = run_dir / "counts.log", tmp_path / "results" / "table.json"
    whole = log.read_bytes()
    log.write_bytes(whole + b"half")
    log.chmod(0o444)
    header = stored_header(log)
    try:
        with CountLog(log, header=header, width=3, read_only=True):
            report = start(energy_dir, run_dir, "--out", str(out))
        assert log.read_bytes() == whole + b"half"
    finally:
        log.chmod(0o644)
        log.write_bytes(whole)
    table = json.loads(out.read_text())
    kept = ("edits", "noise", "keys", "weights", "data", "mean_radius_of_budgets")
    assert all(table[name] == report[name] for name in kept) and table["num_images"] == 30
    assert not {"labels", "radius", "prediction", "selfcheck"} & set(table)
    assert out.stat().st_size < 5000
    assert header["keys"] == "threefry2x32" and "IntegerGaussian(sigma=0.25" in header["noise"]


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 and no more", "another archive"])
def test_damaged_weights_are_named_and_stay(content, run_dir, energy_dir, tmp_path, capsys):
    path = tmp_path / "weights.npz"
    path.write_bytes(content) if isinstance(content, bytes) else np.savez(path, other=1)
    before = path.read_bytes()
    with pytest.raises(SystemExit, match="holds no weights of this experiment"):
        start(energy_dir, tmp_path)
    assert path.read_bytes() == before


def test_radii_of_one_class():
    """By hand: without edits the radius of Cohen et al., with edits less; a wrong class gets nothing."""
    kernel, options = Mask(0.9), dict(sigma=0.5, alpha=0.001)
    votes = np.array([[10, 0], [0, 10]]), np.array([[990, 10], [100, 900]])
    found = hybrid.one_class_radii(*votes, labels=[0, 0], kernel=kernel, max_edits=2, **options)
    own = gaussian.certify(votes[0][0], votes[1][0], **options)
    np.testing.assert_allclose(found[0], float(own.radius) / 2, rtol=1e-9)
    edited = certificates.radius(own.info["p_lower"], kernel=kernel, num_edits=2, sigma=0.5)
    assert 0 < found[2] < found[1] < found[0]
    np.testing.assert_allclose(found[2], float(edited) / 2)


def test_no_training_noise_certifies(monkeypatch):
    """`split(key, n)[i]` is `fold_in(key, i)`: with one seed both drew from the same keys."""
    seed = 0
    key = jax.random.key(seed)
    assert (split_words(key, 5) == [words(jax.random.fold_in(key, i)) for i in range(5)]).all()

    def children(keys):
        return jnp.concatenate([jax.random.split(k, 64) for k in keys])

    # Of training, and of the first weights: a step, its only part, and the examples of that.
    steps = jnp.concatenate([key[None], jax.random.split(key, 64)])
    parts = jnp.concatenate([steps, children(steps)])
    used = {tuple(w) for w in np.asarray(jax.random.key_data(parts)).tolist()}
    assert words(jax.random.fold_in(jax.random.fold_in(key, 3), 1)) in used  # negative control
    drawn = [draws.certification_key(seed, index, stage) for index in range(64) for stage in (0, 1)]
    drawn = np.asarray(jax.random.key_data(jnp.stack(drawn))).tolist()
    assert len({tuple(w) for w in drawn}) == 128 and not used & {tuple(w) for w in drawn}
    # And it is the one that is taken.
    seen = []

    def sample_counts(key, *_, **__):
        seen.append(words(key))

    monkeypatch.setattr(sampling, "sample_counts", sample_counts)
    given = []
    monkeypatch.setattr(draws, "sample_missing", lambda *_, draw, **__: given.append(draw))
    config = configs.HybridConfig(seed=seed)
    empty = mixed.Examples(np.zeros((0, 3)), np.zeros((0, 2)), np.zeros(0))
    data = mixed.Mixed(None, empty, ("a", "b"), 255, 5, (0, 5), "")
    hybrid.sample_missing(None, config, data, None, None, [])
    given[0](7, 1, 0, None, 10)
    assert seen == [words(draws.certification_key(seed, 7, 1))]


def words(key):
    return tuple(np.asarray(jax.random.key_data(key)).tolist())


def split_words(key, n):
    return np.asarray(jax.random.key_data(jax.random.split(key, n)))


def test_no_changed_column_changes_a_certified_class(run_dir, energy_dir):
    """Every change of one column of every example whose certificate allows one."""
    config = configs.override(configs.load("hybrid_energy", configs.HybridConfig), SMALL)
    data = mixed.load("energy", energy_dir)
    with jax.numpy_dtype_promotion("standard"):
        model, _ = hybrid.trained(config, data, run_dir)
    kernel, noise = hybrid.noises(config, data)

    @jax.jit
    def votes(seed, tokens, values):
        with jax.numpy_dtype_promotion("standard"):
            return sampling.sample_counts(
                jax.random.key(seed),
                model,
                (tokens, values),
                noise=noise,
                num_samples=1000,
                num_classes=3,
                batch_size=500,
            )

    tried = 0
    for tokens, values in zip(data.test.tokens[:12], data.test.values[:12]):
        first, second = (np.asarray(votes(seed, tokens, values)) for seed in (0, 1))
        found = certificates.certify(
            first, second, kernel=kernel, sigma=config.sigma, alpha=0.01, max_edits=1
        )
        if found.edits < 1:
            continue
        for column, size in enumerate(data.sizes):
            for value in range(size):
                changed = tokens.copy()
                changed[column] = value
                attacked = np.asarray(votes(2, changed, values))
                assert attacked.argmax() == found.prediction
                tried += 1
    assert tried >= 16


def test_reads_reviews_and_pictures(tmp_path):
    (tmp_path / "text_cls").mkdir()
    (tmp_path / "emoji").mkdir()
    lines = ["1\t9\t0\tA good, good film.<br />Good!", "0\t2\t0\tBad film; it's bad?"]
    for part in ("train", "test"):
        (tmp_path / "text_cls" / f"imdb_short_{part}.tsv").write_text("\n".join(lines * 4))
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (40, 32, 32, 4), dtype=np.uint8)
    groups = np.arange(40) % 9
    np.savez(tmp_path / "emoji" / "noto32_rgba.npz", X=images, y=groups)
    data = mixed.load("reviews", tmp_path)
    words = data.train.tokens[0]
    assert words[1] == words[2] == words[4] and words[5] != words[1]  # a good good film good !
    assert words[6] == mixed.PAD and data.train.tokens.max() < data.sizes
    assert data.train.values.shape == (8, 768) and data.train.values.max() <= 255
    assert set(data.train.labels // 2) == {0, 1} and data.test.labels.max() <= 3
    rest = mixed.load("reviews", tmp_path, hold_out=0.25)
    assert len(rest.train.labels) == 6 and len(rest.test.labels) == 2
    seen = {tuple(row) for row in data.train.values.tolist()}
    assert not seen & {tuple(row) for row in data.test.values.tolist()}


def test_the_network_hears_no_mask_and_no_padding():
    data = mixed.Mixed(
        None,
        mixed.Examples(np.zeros((1, 3), np.int32), np.zeros((1, 2), np.int32), np.zeros(1)),
        ("a", "b"),
        255,
        5,
        (0, 5),
        "",
    )
    config = configs.HybridConfig(hidden=4, embedding=3)
    with jax.numpy_dtype_promotion("standard"):
        model = hybrid.MixedNet(config, data, rngs=nnx.Rngs(0))
        values = jnp.ones((3, 2))
        logits = model((jnp.array([[2, 3, 0], [2, 5, 3], [2, 4, 0]]), values))
    np.testing.assert_allclose(logits[0], logits[1], rtol=1e-6)
    assert not np.allclose(logits[0], logits[2])


@pytest.mark.every
@pytest.mark.parametrize(
    "words,message",
    [
        (["hybrid_energy", "--data-dir", "nowhere"], "data.txt is missing; --data-dir must name"),
        (
            ["digits"],
            "CONFIG is 'digits'; it must be one of .* digits is a run of experiments.train",
        ),
        (["hybrid_energy", "alpha=2.0"], "alpha is 2.0"),
        (["hybrid_energy", "budget=all"], "budget is 'all'"),
    ],
)
def test_errors(words, message, tmp_path):
    with pytest.raises(SystemExit, match=message):
        hybrid.main([*words, "--run-dir", str(tmp_path / "run")])


def test_a_column_that_is_replaced_too_often(energy_dir, tmp_path):
    with pytest.raises(SystemExit, match="beta is 0.6; with 2 values in a column"):
        start(energy_dir, tmp_path / "run", "beta=0.6")


def test_train_names_the_script_of_a_hybrid_run():
    with pytest.raises(SystemExit, match="hybrid_energy is a run of experiments.hybrid"):
        train.main(["hybrid_energy"])
