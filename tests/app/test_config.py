import tomllib
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pydantic import Field, ValidationError

from anyecg.app.config import Config, _explain, _override, known_keys, load_config, render_config
from anyecg.loaders.errors import ConfigError
from anyecg.loaders.settings import Section

from ..conftest import DEMO, REPOSITORY, anyecg


def test_every_key_is_described_once():
    keys = known_keys()
    assert all(field.description for field in keys.values())
    text = render_config(load_config(None))
    said = Counter()
    for name, field in keys.items():
        key = f"[{name}]" if name in ("deepspeed", "slurm.sweep") else f"{name.split('.')[-1]} = "
        said[f"# {field.description}\n{key}"] += 1
    # The tables of the stages' jobs have the same keys.
    assert {what: text.count(what) for what in said} == said


def test_the_resolved_config_comes_back_the_same(tmp_path):
    config = load_config(DEMO / "config.toml", ["finetune.epochs=7", "shard.lead=II", f"folder={tmp_path}"])
    assert (config.finetune.epochs, config.shard.lead) == (7, "II")
    (tmp_path / "c.toml").write_text(render_config(config))
    assert load_config(tmp_path / "c.toml") == config


class Job(Section):
    """A table within a table."""

    nodes: int = Field(1, description="nodes")
    extra: dict[str, Any] = Field({}, description="options")


class Site(Section):
    """Keys, a dict and tables, declared in no good order."""

    first: Job = Job()
    sweep: dict[str, Any] = Field({}, description="what varies")
    account: str = Field("", description="account")
    second: Job = Job()


class Nested(Section):
    """Three levels deep."""

    options: dict[str, Any] = Field({}, description="options of all")
    site: Site = Site()
    seed: int = Field(0, description="seed")


def test_own_keys_come_before_the_tables_within():
    assert list(known_keys(Nested)) == [
        "seed", "options", "site.account", "site.first.nodes", "site.first.extra", "site.sweep", "site.second.nodes",
        "site.second.extra",
    ]  # fmt: skip


def test_overrides_reach_any_depth():
    tree = {}
    for text in ("site.first.nodes=4", "site.second.extra.x=[1]", 'site.sweep={"finetune.seed" = [1, 2, 3]}'):
        _override(tree, text, Path())
    site = Nested.model_validate(tree).site
    assert (site.first.nodes, site.second.extra, site.sweep) == (4, {"x": [1]}, {"finetune.seed": [1, 2, 3]})


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("site.first.node=4", "unknown key 'site.first.node'; nearest known key: 'site.first.nodes'"),
        ("site.frist.nodes=4", "unknown key 'site.frist'; nearest known key: 'site.first'"),
        ("site.second.nodes=x", "site.second.nodes: Input should be a valid integer; found 'x'"),
    ],
)
def test_an_error_of_any_depth_names_the_key(override, said):
    tree = {}
    _override(tree, override, Path())
    with pytest.raises(ValidationError) as caught:
        Nested.model_validate(tree)
    assert _explain(caught.value.errors()[0], Nested) == said


NAMES = st.text(st.characters(exclude_categories=["Cs"]), max_size=6) | st.sampled_from(["finetune.seed", "a b", '"'])
VALUES = st.recursive(
    st.booleans() | st.integers(-(2**62), 2**62) | st.floats(allow_nan=False) | NAMES | st.dates(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=3),
    max_leaves=6,
)
JOBS = st.builds(Job, nodes=st.integers(-9, 9), extra=st.dictionaries(NAMES, VALUES, max_size=3))
DICTS = st.dictionaries(NAMES, VALUES, max_size=3)
SITES = st.builds(Site, first=JOBS, second=JOBS, sweep=DICTS, account=NAMES)


@given(st.builds(Nested, options=DICTS, site=SITES, seed=st.integers(0, 9)))
@settings(max_examples=200, deadline=None)
def test_nested_sections_and_dicts_come_back_the_same(config):
    text = render_config(config)
    assert Nested.model_validate(tomllib.loads(text)) == config
    assert [text.count(f"\n[{name}]\n") for name in ("site", "site.first", "site.second")] == [1, 1, 1]


def test_the_config_for_the_real_data_needs_only_its_path():
    path = REPOSITORY / "slurm" / "configs" / "mcmed.toml"
    config = load_config(path, ["cohort.path=/data/mcmed"])
    assert (config.cohort.kind, config.cohort.path) == ("mcmed", "/data/mcmed")
    assert path.read_text().count("FILL") == 1


def test_the_config_of_the_paper_needs_only_its_data_and_the_published_weights():
    path = REPOSITORY / "slurm" / "configs" / "paper.toml"
    config = load_config(path, ["cohort.path=/data/mcmed", "finetune.weights=/data/1_lead_ECGFounder.pth"])
    assert (config.cohort.split, config.cohort.test_fraction, config.finetune.model) == ("visit", 0.2, "net1d")
    assert (config.finetune.batch_size, config.finetune.learning_rate, config.finetune.epochs) == (256, 1e-4, 20)
    assert config.finetune.weights == "/data/1_lead_ECGFounder.pth"
    assert path.read_text().count("FILL") == 2


def test_wander_and_hum_are_for_unfiltered_windows(tmp_path):
    (tmp_path / "c.toml").write_text("[shard]\npreset = 'none'\n[stream]\nwander_mv = 0.1\nhum_mv = 0.1\n")
    assert load_config(tmp_path / "c.toml").stream.wander_mv == 0.1
    load_config(DEMO / "config.toml", ["stream.noise_mv=0.1", "stream.mask_seconds=1.0", "stream.shift_seconds=2.0"])


def test_paths_count_from_the_config_and_overrides_from_here(tmp_path, monkeypatch):
    (tmp_path / "c.toml").write_text(
        '[cohort]\npath = "data"\nlabels = "/x/labels.csv"\n[finetune]\nmodel = "net1d"\nweights = "w.pth"\n'
    )
    monkeypatch.chdir("/")
    config = load_config(tmp_path / "c.toml", ["cohort.path=there"])
    assert config.cohort.path == "/there"
    assert load_config(tmp_path / "c.toml").cohort.path == str(tmp_path / "data")
    assert config.finetune.weights == str(tmp_path / "w.pth")
    assert (config.cohort.labels, config.folder) == ("/x/labels.csv", str(tmp_path / "runs/anyecg"))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[finetune]\nepoch = 3", "unknown key 'finetune.epoch'; nearest known key: 'finetune.epochs'"),
        ("[finetun]\nepochs = 3", "unknown key 'finetun'; nearest known key: 'finetune'"),
        ("epochs = 3", "unknown key 'epochs'; nearest known key: 'finetune.epochs'"),
        ("[finetune]\nepochs = '3'", "finetune.epochs: Input should be a valid integer; found '3'"),
        ("[finetune]\nepochs = 0", "finetune.epochs: Input should be greater than or equal to 1; found 0"),
        ("[finetune]\nepochs = true", "finetune.epochs"),
        ("[shard]\npreset = 'best'", "shard.preset"),
        ("[cohort]\nkind = 'x'", "cohort.kind: Input should be 'folder' or 'mcmed'; found 'x'"),
        ("[cohort]\nval_fraction = 0.6\ntest_fraction = 0.6", "must leave patients for training"),
        ("[stream]\nwander_mv = 0.1", "stream.wander_mv: found 0.1 with shard.preset = 'ecgfounder', whose filters"),
        ("[stream]\nhum_mv = 0.2\n[shard]\npreset = 'ecgfounder-paper'", "set it to 0, or shard.preset = 'none'"),
        ("[stream]\nhum_hz = 55", "stream.hum_hz: Input should be 50 or 60; found 55"),
        ("[stream]\nloader = 'tf'", "stream.loader: Input should be 'dali' or 'torch'; found 'tf'"),
        ("[stream]\nwindows_per_draw = 5\nwindows_per_sample = 2", "leave windows_per_draw 0"),
        ("cohort = 3", "cohort: "),
        ("folder = 3", "folder: "),
        ("seed = 99999999999999999999", "seed: "),
        ("[finetune]\nlearning_rate = nan", "finetune.learning_rate"),
        ("a = [", "not TOML"),
        ("a = " + "[" * 5000 + "]" * 5000, "not TOML"),
        ("\0", "not TOML"),
    ],
)
def test_a_wrong_config_is_one_clear_line(tmp_path, text, said):
    (tmp_path / "c.toml").write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_config(tmp_path / "c.toml")
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
    assert str(tmp_path / "c.toml") in str(caught.value)


@pytest.mark.parametrize("override", ["finetune.epochs", "seed.x=3", "=", "finetune=3", "x.y.z=1"])
def test_a_wrong_override_is_named(override):
    with pytest.raises(ConfigError):
        load_config(DEMO / "config.toml", [override])


TEXTS = ((DEMO / "config.toml").read_bytes(), render_config(Config()).encode())


def mutate(rng):
    """Cut, double, overwrite and swap bytes and lines of a real config."""
    data = bytearray(TEXTS[rng.integers(2)])
    for _ in range(rng.integers(1, 9)):
        first, last = sorted(int(place) for place in rng.integers(0, len(data) + 1, 2))
        last = min(last, first + int(rng.integers(1, 40)))
        kind = rng.integers(4)
        if kind == 0:
            del data[first:last]
        elif kind == 1:
            data[first:last] = data[first:last] * 2
        elif kind == 2:
            data[first:last] = rng.integers(0, 256, last - first, dtype=np.uint8).tobytes()
        else:
            data[first:first] = (b"= nan", b"[[x]]\n", b"1e999", b"'''", b"\xff", b"[cohort]\n", b"-1", b"{}")[
                rng.integers(8)
            ]
    return bytes(data)


def test_mutated_configs_give_a_config_or_a_typed_error(tmp_path):
    """R12 for configs, short form; the long form is benchmarks/fuzz_configs.py."""
    rng = np.random.default_rng(1)
    outcomes = {True: 0, False: 0}
    for _ in range(2000):
        (tmp_path / "c.toml").write_bytes(mutate(rng))
        try:
            load_config(tmp_path / "c.toml")
            outcomes[True] += 1
        except ConfigError:
            outcomes[False] += 1
    assert min(outcomes.values()) > 10


@given(st.text(max_size=40))
@example("0\n0=")
@settings(max_examples=300, deadline=None)
def test_any_override_gives_a_config_or_a_typed_error(text):
    said = ""
    try:
        load_config(None, [text])
    except ConfigError as cause:
        said = str(cause)
    assert said.isprintable()


def test_config_command_prints_the_resolved_config():
    done = anyecg("config", DEMO / "config.toml", "seed=7")
    assert done.returncode == 0
    assert tomllib.loads(done.stdout)["seed"] == 7
    assert tomllib.loads(anyecg("config", "seed=9").stdout)["seed"] == 9
