"""Space files: what they mean, what is refused and how, and the shipped ones."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from configs import config_names, config_path
from searchspace.architecture import Architecture
from searchspace.cost import count
from searchspace.mixers import WindowAttention
from searchspace.presets import preset
from searchspace.space import SearchSpace
from searchspace.spec_file import load_space, parse_space

Change = Callable[[dict[str, Any]], object]


def small() -> dict[str, Any]:
    """Return the content of a sound file with maps of 8 x 8 and 4 x 4 tokens."""
    return {
        "name": "small",
        "img_size": 16,
        "patch_size": 2,
        "mlp_ratio": 2,
        "stages": [{"dim": 8, "depth": 1}, {"dim": 16, "depth": 2, "mixers": ["elsa"]}],
        "mixers": {
            "window_attention": {
                "window_size": [4, 8],
                "num_heads": {"per_stage": [[1, 2], []]},
                "terms": ["bias+qk", "bias"],
            },
            "elsa": {"kernel_size": 3, "num_heads": {"per_stage": [2, [2, 4]]}, "gamma": [0, 1]},
        },
        "forbid": [{"mixer": "window_attention", "terms": "bias+qk", "num_heads": [2]}],
        "limits": {"macs": "1M", "params": 30000},
    }


def parse(data: dict[str, Any]) -> SearchSpace:
    return parse_space(yaml.safe_dump(data, sort_keys=False))


def look_up(architecture: Architecture) -> Callable[[str, Sequence[Any]], Any]:
    """Answer a walk with the architecture's own settings, which must be among the options."""

    def choose(name: str, options: Sequence[Any]) -> Any:
        place, *_, setting = name.split(".")
        stage = architecture.stages[int(place.removeprefix("stage"))]
        mixer = stage.mixers[0]
        if setting in ("dim", "depth", "mlp_ratio"):
            answer = getattr(stage, setting)
        else:
            answer = mixer.kind if setting == "mixer" else getattr(mixer, setting)
        assert answer in options, name
        return answer

    return choose


def test_options_are_read_for_each_stage() -> None:
    space = parse(small())

    assert space.stages[0].choices[0].kinds == {
        "window_attention": {
            "window_size": (4, 8),
            "num_heads": (1, 2),
            "terms": ("qk+bias", "bias"),
        },
        "elsa": {
            "kernel_size": (3,),
            "num_heads": (2,),
            "gamma": (0, 1),
        },
    }
    assert space.stages[1].choices[0].kinds["elsa"]["num_heads"] == (2, 4)
    assert list(space.stages[1].choices[0].kinds) == ["elsa"]
    assert space.limits == {"macs": 1e6, "params": 3e4}
    assert [stage.mlp_ratios for stage in space.stages] == [(2.0,), (2.0,)]


def test_rules_match_terms_in_any_order() -> None:
    forbidden = WindowAttention(window_size=4, num_heads=2, terms="qk+bias")
    choices = parse(small()).stages[0].choices[0]

    assert not choices.allows(forbidden)
    assert choices.allows(WindowAttention(window_size=4, num_heads=1, terms="qk+bias"))


def test_choices_per_block_give_every_block_its_own() -> None:
    space = parse({**small(), "choices_per": "block"})

    assert [len(stage.choices) for stage in space.stages] == [1, 2]


def test_a_list_of_depths_is_a_choice_and_the_deepest_stage_has_all_blocks() -> None:
    data = {**small(), "choices_per": "block"}
    data["stages"][1]["depth"] = [1, 3, 2]
    stage = parse(data).stages[1]

    assert stage.depths == (1, 3, 2)
    assert stage.max_depth == len(stage.choices) == 3


def test_a_list_of_widths_is_a_choice() -> None:
    data = small()
    data["stages"][0]["dim"] = [8, 24, 16]

    assert parse(data).stages[0].dims == (8, 24, 16)
    assert parse(data).stages[0].max_dim == 24


def test_a_family_with_one_width_for_several_stages_has_no_choice_of_it() -> None:
    data = {**small(), "family": "volo", "stem_dim": 8}
    data["stages"][0]["dim"] = [8, 24]
    data["stages"][1]["dim"] = [16, 32]

    with pytest.raises(ValueError, match=r"stages\[1\]\.dim: in the family 'volo' .*\[16, 32\]"):
        parse(data)
    data["stages"][1]["dim"] = 16
    assert parse(data).stages[0].dims == (8, 24)


def test_heads_of_class_blocks_are_checked_for_every_last_mixer() -> None:
    # Heads divide the values of ELSA, which may be narrower than the stage.
    data = small() | {"family": "volo", "stem_dim": 4, "forbid": [], "limits": {}}
    data["mixers"]["elsa"] |= {"num_heads": [2, 6], "v_dim": {"per_stage": [0, 12]}}
    data["stages"][0]["mixers"] = ["window_attention"]

    with pytest.raises(ValueError, match=r"class blocks .* got num_heads=6 and dim=16"):
        parse(data)


def test_a_space_keeps_the_text_of_its_file() -> None:
    space = parse(small())

    assert parse_space(space.source) == space


def remove(*path: Any) -> Change:
    def change(data: dict[str, Any]) -> None:
        for part in path[:-1]:
            data = data[part]
        del data[path[-1]]

    return change


def put(*path_and_value: Any) -> Change:
    *path, last, value = path_and_value

    def change(data: dict[str, Any]) -> None:
        for part in path:
            data = data[part]
        data[last] = value

    return change


WINDOW = ("mixers", "window_attention")
ERRORS: list[tuple[Change, str]] = [
    (put("colour", 1), r"colour: unknown key 'colour'\. Known: name, about"),
    (put("img_sise", 1), r"img_sise: unknown key 'img_sise'\. Did you mean 'img_size'"),
    (put("stages", 0, "deph", 1), r"stages\[0\]\.deph: unknown key 'deph'\. Did you mean 'depth'"),
    (remove("patch_size"), r"patch_size: the key 'patch_size' is missing"),
    (remove("stages", 1, "dim"), r"stages\[1\]\.dim: the key 'dim' is missing"),
    (put("img_size", "big"), r"img_size: .*integer.*got 'big'"),
    (put("img_size", 0), r"img_size: .*greater than or equal to 1.*got 0"),
    (put("mlp_ratio", -1), r"mlp_ratio\[0\]: .*greater than 0.*got -1"),
    (put("mlp_ratio", []), r"mlp_ratio: .*at least 1 item"),
    (put("mlp_ratio", 0.01), r"stages\[0\].*hidden width of the MLP"),
    (put("mlp_ratio", [2, 2]), r"stages\[0\]\.mlp_ratio: the option 2\.0 is there twice"),
    (put("stages", 0, "depth", True), r"stages\[0\]\.depth\[0\]: .*got True"),
    (put("stages", 0, "depth", [1, 0]), r"stages\[0\]\.depth\[1\]: .*greater than .*got 0"),
    (put("stages", 0, "depth", []), r"stages\[0\]\.depth: .*at least 1 item"),
    (put("stages", 1, "depth", [1, 2, 1]), r"stages\[1\]\.depth: the option 1 is there twice"),
    (put("stages", 0, "dim", [8, 8]), r"stages\[0\]\.dim: the option 8 is there twice"),
    (put("stages", 0, "dim", [8, 9]), r"does not fit stages\[0\]: .*num_heads=2 and dim=9"),
    (put("stages", 0, {"dim": [8, 4], "depth": 1, "se_reduction": 5}), r"most the .* 5 and 4"),
    (put("mixers", "elsa", "qk_dim", [0, 12]), r"two options are the same mixer at dim 16\. Keep"),
    (put("stages", []), r"stages: .*at least 1 item"),
    (put("mixers", {}), r"mixers: .*at least 1 item"),
    (put("family", "resnet"), r"family: .*'swin'.*got 'resnet'"),
    (put("choices_per", "net"), r"choices_per: .*'stage' or 'block'.*got 'net'"),
    (put("patch_size", 5), r"patch_size: it must divide img_size, got 5 and 16"),
    (put("mixers", "conv", {}), r"mixers\.conv: unknown mixer 'conv'\. Known: window_attention"),
    (put(*WINDOW, "kernel_size", 3), r"window_attention\.kernel_size: unknown setting"),
    (remove(*WINDOW, "window_size"), r"window_attention needs window_size, it is missing"),
    (put(*WINDOW, "window_size", []), r"window_size: .*at least one option, got \[\]"),
    (put(*WINDOW, "window_size", [4, 4]), r"window_size: the option 4 is there twice"),
    (put(*WINDOW, "terms", ["qk+bias", "bias+qk"]), r"'bias\+qk' is there twice"),
    (put(*WINDOW, "window_size", [True]), r"window_size must be an integer .*got True"),
    (put(*WINDOW, "window_size", [[4]]), r"a number or a word, got \[4\]"),
    (put(*WINDOW, "window_size", 0), r"window_attention: .*window_size must be .* got 0"),
    (
        put(*WINDOW, "terms", "kq"),
        r"window_attention\.terms: .*sum of qk, qr, rk, static, bias, got 'kq'",
    ),
    (put(*WINDOW, "norm", "batch"), r"norm must be one of softmax, .*got 'batch'"),
    (put(*WINDOW, "num_heads", [3]), r"does not fit stages\[0\]: .*num_heads=3 and dim=8"),
    (put(*WINDOW, "num_heads", {"per_stage": [[1]]}), r"one entry for each of the 2.*got 1"),
    (put(*WINDOW, "num_heads", {"per_stages": [[1], [1]]}), r"write a list of options or"),
    (put(*WINDOW, "num_heads", {"per_stage": [[], []]}), r"per_stage\[0\]: .*at least one option"),
    (put("mixers", "elsa", "kernel_size", 0), r"mixers\.elsa: .*integer >= 1.*got 0"),
    (put("stages", 0, "mixers", []), r"stages\[0\]\.mixers: .*at least one mixer"),
    (put("stages", 0, "mixers", ["dw"]), r"stages\[0\]\.mixers: unknown mixer 'dw'"),
    (put("stages", 0, "mixers", ["elsa", "elsa"]), r"stages\[0\]\.mixers: a mixer is named twice"),
    (put("forbid", 0, {}), r"forbid\[0\]: an empty rule would forbid everything"),
    (put("forbid", 0, "colour", 1), r"forbid\[0\]\.colour: unknown setting 'colour'"),
    (put("forbid", 0, "mixer", "depthwise_conv"), r"impossible condition: no stage offers 'depth"),
    (put("forbid", 0, "num_heads", 3), r"forbid\[0\]\.num_heads: impossible condition.*offers 3"),
    (put("forbid", 0, "terms", "qr"), r"forbid\[0\]\.terms: impossible condition.*offers 'qr'"),
    (put("forbid", 0, "gamma", 1), r"forbid\[0\]: impossible condition: no mixer"),
    (put("forbid", 0, {"mixer": "elsa"}), r"forbid: .*every mixer of stages\[1\]"),
    (put("limits", "flops", 1), r"limits\.flops: unknown cost 'flops'\. Known: params, macs"),
    (put("limits", "macs", "5 giga"), r"limits\.macs: Cannot read the amount '5 giga'"),
    (put("limits", "macs", "1K"), r"limits\.macs: even the smallest network .* limit 1,000"),
]


@pytest.mark.parametrize(("change", "message"), ERRORS)
def test_mistakes_are_refused_with_file_place_and_rule(
    change: Change, message: str, tmp_path: Path
) -> None:
    data = small()
    change(data)
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(data), encoding="utf-8")

    with pytest.raises(ValueError, match=rf"mine\.yaml: (?s:.*){message}") as caught:
        load_space(str(path))

    assert type(caught.value) is ValueError
    assert str(caught.value).count("\n") == 0


JUNK = [None, True, -1, 0, 1.5, float("nan"), 10**30, "", "x", [], [[]], {}, {"per_stage": 1}]


def places(data: Any, *path: Any) -> Iterator[tuple[Any, ...]]:
    """List the paths of all values inside nested lists and mappings."""
    children = data.items() if isinstance(data, dict) else enumerate(data)
    for key, child in children:
        yield (*path, key)
        if isinstance(child, dict | list):
            yield from places(child, *path, key)


@pytest.mark.parametrize("path", list(places(small())), ids=str)
def test_junk_anywhere_is_refused_or_gives_a_space_that_can_be_built(path: tuple[Any, ...]) -> None:
    for junk in JUNK:
        data = small()
        put(*path, junk)(data)
        try:
            space = parse(data)
        except ValueError:
            continue
        assert space.violation(space.sample(random.Random(0))) is None


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"must be a mapping with the keys name, about"),
        (b"- 1\n- 2\n", r"must be a mapping.*got \[1, 2\]"),
        (b"name: [a\nimg_size: 3\n", r"line \d: the file is not YAML"),
        (b"name: a\n\tb: c\n", r"line 2: the file is not YAML"),
        (b"name: a\nname: b\n", r"line \d: .*the key 'name' occurs twice"),
        (b"name: !!python/object:os.system {}\n", r"line 1: the file is not YAML"),
        (b"name: \x00\n", r"the file is not YAML"),
        (b"name: \xff\xfe\n", r"not UTF-8 text"),
    ],
)
def test_files_that_are_no_mapping_are_refused(
    content: bytes, message: str, tmp_path: Path
) -> None:
    path = tmp_path / "mine.yaml"
    path.write_bytes(content)

    with pytest.raises(ValueError, match=rf"mine\.yaml: .*{message}"):
        load_space(str(path))


def test_a_misspelt_key_is_reported_rather_than_the_missing_one() -> None:
    data = small()
    data["img_sise"] = data.pop("img_size")

    with pytest.raises(ValueError, match=r"img_sise: unknown key.* Did you mean 'img_size'"):
        parse(data)


def test_unknown_names_and_missing_files_are_refused() -> None:
    with pytest.raises(ValueError, match=r"Unknown space 'micra'\. Did you mean 'micro'"):
        load_space("micra")
    with pytest.raises(ValueError, match=r"no space file 'nowhere/mine\.yaml'"):
        load_space("nowhere/mine.yaml")


def test_shipped_files_are_found_by_name() -> None:
    assert {"micro", "swin_t"} <= set(config_names("spaces"))
    assert config_path("spaces", "micro").is_file()


@pytest.mark.parametrize("name", config_names("spaces"))
def test_shipped_spaces_are_named_like_their_files_and_can_be_sampled(name: str) -> None:
    space, rng = load_space(name), random.Random(0)

    assert space.name == name
    assert space.about
    assert space.size() > 10_000
    for _ in range(20):
        assert space.violation(space.sample(rng)) is None


@pytest.mark.parametrize(
    "name",
    [
        "swin_t",
        "dwconv_t",
        "elsa_swin_t",
        "elsa_swin_t_no_ghost",
        *(f"net{number}_t" for number in range(1, 8)),
        "net6n_t",
        "net7n_t",
        "swin_n_t",
    ],
)
def test_published_networks_are_points_of_the_swin_t_space(name: str) -> None:
    space, published = load_space("swin_t"), preset(name)

    built = space.build(look_up(published))

    assert built == published
    assert space.violation(built) is None


def test_micro_space_offers_every_mixer_alone_and_swins_own_settings() -> None:
    space = load_space("micro")
    single = dict(space.single_mixer_architectures())
    swin = space.build(
        lambda name, options: "window_attention" if name.endswith("mixer") else options[0]
    )

    assert set(single) == set(space.stages[0].choices[0].kinds)
    assert space.violation(swin) is None
    for mixer in (mixer for stage in swin.stages for mixer in stage.mixers):
        assert isinstance(mixer, WindowAttention)
        assert (mixer.terms, mixer.norm) == ("qk+bias", "softmax")
    assert count(swin.replace(num_classes=10)).macs < 20e6
